//! `tls`: TLS with clients.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chassis::settings::{Entry, Section, duration, truth};

use super::acme::Acme;
use super::address::{any, port, socket_address};
use super::{absolute_or_none, or_none};
use crate::http1::redirect::Redirect;
use crate::tls::{ClientAuth, Settings, Source, Version};

/// TLS with clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Where clients connect with TLS.
    pub listen: Option<SocketAddr>,
    /// What handshakes are made with.
    pub settings: Settings,
    /// Which requests without TLS are sent to HTTPS.
    pub redirect: Option<Redirect>,
    /// For how long clients should use nothing else than TLS.
    pub hsts: Option<Duration>,
}

impl Tls {
    /// Reads the section; `others` are the keys and addresses of the other ports, and certificates also come from `acme`.
    pub(super) fn read(mut section: Section<'_>, others: &[(&str, SocketAddr)], acme: Option<&Acme>) -> Self {
        let settings = section.settings();
        let listen = section.value("listen", None, None, address_or_none);
        let listen = section.part("listen", "TLS_PORT", listen, port, |listen, port| {
            Some(listen.map_or(any(port), |address| SocketAddr::new(address.ip(), port)))
        });
        let of_other = |(_, other): &&(&str, SocketAddr)| Some(*other) == listen && other.port() != 0;
        if let Some((key, address)) = others.iter().find(of_other) {
            let text = format_args!("{address} is the address of {key} too; each needs its own");
            settings.mistake(&section.place("listen"), text);
        }
        let redirects = section.value("redirect", None, false, truth);
        let own_port = listen.map_or(443, |address| address.port());
        let redirect = Redirect {
            port: section
                .value("redirect_port", None, None, port_or_auto)
                .unwrap_or(own_port),
            exempt: section.list("redirect_exempt", None, Vec::new(), path),
        };
        if !redirects {
            for key in ["redirect_port", "redirect_exempt"] {
                section.key_has_no_effect(key, "gopherproxy.tls.redirect is not true");
            }
        }
        let mut tls = Self {
            listen,
            redirect: Some(redirect).filter(|_| redirects && listen.is_some()),
            hsts: section
                .value("hsts", None, None, duration_or_none)
                .filter(|_| listen.is_some()),
            settings: Settings {
                certificates: certificates(&mut section),
                handshake_timeout: section.value("handshake_timeout", None, Duration::from_secs(5), duration),
                min_version: section.value("min_version", None, Version::Tls12, version),
                strict_sni: section.value("strict_sni", None, false, truth),
                client_auth: section.value("client_auth", None, ClientAuth::None, client_auth),
                client_ca: section.value("client_ca", None, None, file_or_none),
                ticket_secret: section.value("ticket_secret", None, None, file_or_none),
            },
        };
        let issued = acme
            .iter()
            .flat_map(|acme| acme.hosts.iter().map(|host| acme.certificate(host)));
        tls.settings.certificates.extend(issued.map(Source::Issued));
        if tls.listen.is_none() {
            if acme.is_some() {
                settings.mistake(
                    &section.place("listen"),
                    "acme.hosts gets certificates for clients that speak TLS, and there is no port for them: set it, or TLS_PORT",
                );
            }
            section.has_no_effect("gopherproxy.tls.listen is none; set it, or TLS_PORT");
        } else if tls.settings.certificates.is_empty() {
            settings.mistake(
                &section.place("listen"),
                "TLS needs a certificate: tls.certificates lists files ({cert: FILE, key: FILE}) or names a directory of pairs, and acme.hosts \
                 names hosts whose certificates the proxy gets itself",
            );
        } else if tls.settings.client_auth == ClientAuth::None {
            section.key_has_no_effect("client_ca", "gopherproxy.tls.client_auth is none");
        } else if tls.settings.client_ca.is_none() {
            settings.mistake(
                &section.place("client_auth"),
                "clients' certificates are verified by an authority: tls.client_ca names the file with its certificate",
            );
        }
        section.finish();
        tls
    }
}

fn certificates(section: &mut Section<'_>) -> Vec<Source> {
    let settings = section.settings();
    let source = |entry| match entry {
        Entry::Text(place, text) => {
            if !Path::new(&text).is_absolute() {
                settings.mistake(
                    &place,
                    format_args!(
                        "expected {{cert: FILE, key: FILE}}, or the absolute path of a directory, got {}",
                        chassis::settings::quoted(&text)
                    ),
                );
            }
            Source::Directory(text.into())
        }
        Entry::Section(mut pair) => {
            let source = Source::Pair {
                cert: pair.value("cert", None, PathBuf::new(), file),
                key: pair.value("key", None, PathBuf::new(), file),
            };
            for key in ["cert", "key"] {
                if let place @ chassis::settings::Place::Unset(_) = pair.place(key) {
                    settings.mistake(
                        &place,
                        "each entry names two files, its certificate as cert and its private key as key; one of them has none",
                    );
                }
            }
            pair.finish();
            source
        }
    };
    section.entries("certificates").into_iter().map(source).collect()
}

fn address_or_none(text: &str) -> Result<Option<SocketAddr>, String> {
    or_none(text, socket_address)
}

fn file(text: &str) -> Result<PathBuf, String> {
    let is_absolute = Path::new(text).is_absolute();
    is_absolute
        .then(|| text.into())
        .ok_or_else(|| "the absolute path of a PEM file".into())
}

fn file_or_none(text: &str) -> Result<Option<PathBuf>, String> {
    absolute_or_none(text, "none or the absolute path of a file")
}

fn duration_or_none(text: &str) -> Result<Option<Duration>, String> {
    or_none(text, duration)
}

fn port_or_auto(text: &str) -> Result<Option<u16>, String> {
    let number = || text.parse().ok().filter(|port| *port != 0);
    match text {
        "auto" => Ok(None),
        _ => number()
            .map(Some)
            .ok_or_else(|| "auto, or a port from 1 to 65535".into()),
    }
}

/// A path that a target can begin with.
fn path(text: &str) -> Result<String, String> {
    let is_path = text.starts_with('/')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    is_path
        .then(|| text.to_owned())
        .ok_or_else(|| "a path such as /health".into())
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "1.2" => Ok(Version::Tls12),
        "1.3" => Ok(Version::Tls13),
        _ => Err("1.2 or 1.3".into()),
    }
}

fn client_auth(text: &str) -> Result<ClientAuth, String> {
    match text {
        "none" => Ok(ClientAuth::None),
        "optional" => Ok(ClientAuth::Optional),
        "required" => Ok(ClientAuth::Required),
        _ => Err("none, optional or required".into()),
    }
}
