//! A certificate of the proxy's own making, to try TLS with before there is one that everybody trusts.
//!
//! An authority is made for it, signs it, and its key is thrown away. So whoever trusts that authority trusts this certificate, and
//! nothing that anybody could sign later.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chassis::replace::replace;
use chassis::settings::quoted;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::certificates::{Certificate, LoadError};

/// For how long it is valid. Browsers take none that is valid for longer than 398 days.
const LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
/// Clocks differ.
const SKEW: Duration = Duration::from_secs(3600);

/// The files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfMade {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificate of the authority, for clients.
    pub authority: PathBuf,
    /// Until when they are valid.
    pub not_after: SystemTime,
    /// Whether they were there already.
    pub found: bool,
}

/// Makes a certificate for `hosts`, names or addresses, in `directory`, unless there is one that is valid. Only the owner can read the
/// key.
///
/// # Errors
/// A host that can't be one, or a file that can't be written; or one that is there and can't be used.
pub fn make(directory: &Path, hosts: &[String], now: SystemTime) -> Result<SelfMade, String> {
    let file = |name: &str| directory.join(format!("self-made{name}"));
    let made = SelfMade {
        cert: file(".crt"),
        key: file(".key"),
        authority: file("-ca.pem"),
        not_after: now + LIFE,
        found: false,
    };
    if made.cert.exists() {
        let there = Certificate::load(&made.cert, &made.key)
            .map_err(|error| format!("{error}; remove {} to have another made", made.cert.display()))?;
        if there.remark(now).is_none() {
            let not_after = Duration::from_secs(u64::try_from(there.not_after).unwrap_or(0));
            return Ok(SelfMade {
                not_after: UNIX_EPOCH + not_after,
                found: true,
                ..made
            });
        }
    }
    let failed = |path: &Path, error: std::io::Error| LoadError::new(path, error).to_string();
    let signed = sign(hosts, now)?;
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    // The certificate last: where it is, all is.
    let files = [
        (&made.key, signed.key),
        (&made.authority, signed.authority),
        (&made.cert, signed.cert),
    ];
    for (path, content) in files {
        replace(path, content.as_bytes()).map_err(|error| failed(path, error))?;
    }
    let readable = fs::set_permissions(&made.authority, fs::Permissions::from_mode(0o644));
    readable.map_err(|error| failed(&made.authority, error))?;
    Ok(made)
}

/// What is written, PEM.
struct Signed {
    cert: String,
    key: String,
    authority: String,
}

fn sign(hosts: &[String], now: SystemTime) -> Result<Signed, String> {
    let failed = |error: rcgen::Error| error.to_string();
    let valid = |params: &mut CertificateParams| {
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LIFE).into();
    };
    let named = |name: String| {
        let mut names = DistinguishedName::new();
        names.push(DnType::CommonName, name);
        names
    };
    let mut authority = CertificateParams::default();
    // Each has a name of its own: clients look an authority up by it.
    authority.distinguished_name = named(format!("GopherProxy, self-made {:08x}", fastrand::u32(..)));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut authority);
    let authority_key = KeyPair::generate().map_err(failed)?;
    let authority_cert = authority.self_signed(&authority_key).map_err(failed)?;

    let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect::<Vec<_>>();
    if let Some(host) = hosts.iter().find(|host| !is_host(host)) {
        return Err(format!(
            "{} is not a host: expected a name such as www.shop.example, *.shop.example or localhost, or an IP address",
            quoted(host)
        ));
    }
    let mut params = CertificateParams::new(hosts.clone()).map_err(failed)?;
    params.distinguished_name = named(
        hosts
            .first()
            .map_or("localhost", |host| host)
            .chars()
            .take(64)
            .collect(),
    );
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params);
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params
        .signed_by(&key, &Issuer::new(authority, authority_key))
        .map_err(failed)?;
    Ok(Signed {
        cert: cert.pem(),
        key: key.serialize_pem(),
        authority: authority_cert.pem(),
    })
}

/// Whether a certificate can be for it.
fn is_host(host: &str) -> bool {
    let of_label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(of_label);
    let name = host.strip_prefix("*.").unwrap_or(host);
    host.parse::<std::net::IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(is_label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(hosts: &[&str]) -> Vec<String> {
        hosts.iter().map(|host| (*host).to_owned()).collect()
    }

    #[test]
    fn a_certificate_is_made_once_and_again_when_it_has_expired() {
        let files = tempfile::tempdir().unwrap();
        let directory = files.path().join("new/certificates");
        let now = SystemTime::now();
        let made = make(&directory, &hosts(&["Localhost", "127.0.0.1", "*.a.example"]), now).unwrap();
        assert!(!made.found);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&made.key), mode(&made.authority)), (0o600, 0o644));
        let certificate = Certificate::load(&made.cert, &made.key).unwrap();
        assert_eq!(certificate.names, ["localhost", "*.a.example"]);
        assert_eq!(certificate.remark(now), None);
        let ends = UNIX_EPOCH + Duration::from_secs(certificate.not_after.try_into().unwrap());
        assert!(ends <= made.not_after && ends + Duration::from_secs(1) > made.not_after);

        let first = fs::read(&made.cert).unwrap();
        let again = make(&directory, &hosts(&["b.example"]), now + LIFE - SKEW).unwrap();
        assert!(again.found && again.not_after == ends, "{again:?}");
        assert_eq!(fs::read(&made.cert).unwrap(), first);
        let later = make(&directory, &hosts(&["b.example"]), now + LIFE + SKEW).unwrap();
        assert!(!later.found);
        let certificate = Certificate::load(&later.cert, &later.key).unwrap();
        assert_eq!(certificate.names, ["b.example"]);

        // One that somebody has put there stays.
        fs::write(&made.cert, "somebody's").unwrap();
        let error = make(&directory, &hosts(&["b.example"]), now).unwrap_err();
        assert!(
            error.contains("self-made.crt: ") && error.contains("to have another made"),
            "{error}"
        );
        assert_eq!(fs::read(&made.cert).unwrap(), b"somebody's");
    }

    #[test]
    fn what_is_no_host_is_named() {
        let files = tempfile::tempdir().unwrap();
        for host in [
            "",
            "a b",
            "a..b",
            "a.*.b",
            "*",
            "localhost:8443",
            "https://a.example",
            "ä.example",
        ] {
            let error = make(files.path(), &hosts(&["localhost", host]), SystemTime::now()).unwrap_err();
            assert!(error.starts_with(&format!("{} is not a host", quoted(host))), "{error}");
            assert_eq!(fs::read_dir(files.path()).unwrap().count(), 0);
        }
    }
}
