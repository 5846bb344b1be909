//! `acme`: certificates that the proxy gets from an authority, and renews.

use std::path::{Path, PathBuf};

use chassis::settings::{Section, truth};
use http::Uri;
use http::uri::Scheme;

use super::absolute_or_none;

/// The directory of Let's Encrypt.
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Where `conf/gopherproxy.service` and the image may write.
const STORAGE: &str = "/var/lib/gopherproxy/acme";

/// Certificates from an authority that speaks ACME (RFC 8555).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The hosts that get certificates, each one of its own.
    pub hosts: Vec<String>,
    /// Whom the authority may write to.
    pub emails: Vec<String>,
    /// Where the authority's directory is.
    pub directory: String,
    /// The certificate of who signed the directory's; without it those count that this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// The directory for what the proxy gets and has to remember.
    pub storage: PathBuf,
    /// How it is proved that a host is this proxy's.
    pub challenge: Challenge,
}

/// How it is proved that a host is this proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// By a response on port 80.
    Http01,
    /// By a certificate on port 443 (RFC 8737).
    TlsAlpn01,
}

impl Acme {
    /// Reads the section; `None` where no host is named.
    pub(super) fn read(mut section: Section<'_>) -> Option<Self> {
        let settings = section.settings();
        let agreed = section.value("terms_agreed", None, false, truth);
        let mut acme = Self {
            hosts: section.list("hosts", None, Vec::new(), host),
            emails: section.list("emails", None, Vec::new(), email),
            directory: section.value("directory", None, DIRECTORY.into(), directory),
            ca_file: section.value("ca_file", None, None, file_or_none),
            storage: section.value("storage", None, STORAGE.into(), absolute),
            challenge: section.value("challenge", None, Challenge::Http01, challenge),
        };
        acme.hosts.sort_unstable();
        acme.hosts.dedup();
        if acme.hosts.is_empty() {
            section.has_no_effect("gopherproxy.acme.hosts names no host");
        } else if !agreed {
            settings.mistake(
                &section.place("terms_agreed"),
                format_args!(
                    "expected true, got false: an authority gives certificates to those who agree to its terms; read those that {} links to, \
                     and set it",
                    acme.directory
                ),
            );
        }
        section.finish();
        (!acme.hosts.is_empty()).then_some(acme)
    }

    /// The file of a host's certificate and its key.
    pub fn certificate(&self, host: &str) -> PathBuf {
        self.storage.join(format!("{host}.pem"))
    }
}

fn host(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err(
            "the name of one host (a wildcard would take a challenge through DNS, which the proxy does not do: name each host, \
             or have certbot get the certificate and name its directory in tls.certificates)"
                .into(),
        );
    }
    let name = text.to_ascii_lowercase();
    let label = |label: &str| {
        let is_made_of = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(is_made_of)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // As a last label, digits are an address.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_name = name.len() <= 253 && name.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit());
    is_name
        .then_some(name)
        .ok_or_else(|| "the name of a host in ASCII, such as www.shop.example".into())
}

fn email(text: &str) -> Result<String, String> {
    let is_one = text.split_once('@').is_some_and(|(name, host)| {
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
        plain(name) && plain(host) && !host.contains(['@', '?'])
    });
    is_one
        .then(|| text.into())
        .ok_or_else(|| "an address for mail, such as ops@shop.example".into())
}

fn directory(text: &str) -> Result<String, String> {
    let uri: Option<Uri> = text.parse().ok();
    let is_https = |uri: &Uri| {
        uri.scheme() == Some(&Scheme::HTTPS)
            && uri
                .authority()
                .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'))
    };
    uri.filter(is_https)
        .map(|_| text.into())
        .ok_or_else(|| format!("the URL of an ACME directory, https:// and without a password, such as {DIRECTORY}"))
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let is_absolute = Path::new(text).is_absolute();
    is_absolute
        .then(|| text.into())
        .ok_or_else(|| format!("the absolute path of a directory, such as {STORAGE}"))
}

fn file_or_none(text: &str) -> Result<Option<PathBuf>, String> {
    absolute_or_none(text, "none or the absolute path of a PEM file")
}

fn challenge(text: &str) -> Result<Challenge, String> {
    match text {
        "http-01" => Ok(Challenge::Http01),
        "tls-alpn-01" => Ok(Challenge::TlsAlpn01),
        _ => Err("http-01 or tls-alpn-01".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_and_nothing_that_could_be_a_path() {
        for good in ["shop.example", "a", "xn--bcher-kva.example", "1.shop.example"] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        assert_eq!(host("Shop.Example").as_deref(), Ok("shop.example"));
        let long = "a".repeat(64);
        for wrong in [
            "",
            ".",
            "shop.example.",
            "-a.example",
            "a-.example",
            "a_b.example",
            "../etc",
            "a/b",
            "bücher.example",
            "192.0.2.1",
            "::1",
            "a:443",
            "https://a.example",
            &long,
        ] {
            assert!(host(wrong).unwrap_err().contains("such as www.shop.example"), "{wrong}");
        }
        assert!(host("*.shop.example").unwrap_err().contains("a wildcard would take"));
    }

    #[test]
    fn a_directory_has_https_and_no_password() {
        assert!(directory("https://localhost:14000/dir").is_ok());
        for wrong in [
            "",
            "letsencrypt",
            "http://ca.example/directory",
            "https:///directory",
            "https://user:secret@ca.example/",
            "ftp://ca.example/",
        ] {
            assert!(directory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_address_for_mail_can_say_nothing_else() {
        assert!(email("ops@shop.example").is_ok());
        for wrong in [
            "",
            "ops",
            "@a",
            "a@",
            "a@b@c",
            "a b@c",
            "a@b,c@d",
            "a@b?subject=x",
            "a@b\n",
        ] {
            assert!(email(wrong).is_err(), "{wrong}");
        }
    }
}
