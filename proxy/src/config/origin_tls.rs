//! `upstream.tls`: how origins that speak TLS are verified, and what the proxy shows them.
//!
//! Everything is read and checked when the configuration is, because Pingora panics on a certificate or a key that it can't use. It
//! never sees the platform's roots itself: an origin is verified by the certificates from here or not connected to.
//!
//! Sessions are resumed within what was read at one time, so none outlives the certificates that it was verified by.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use chassis::settings::Section;
use chassis::yaml;
use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::absolute_or_none;

/// The variables by which the platform's root certificates are replaced, as OpenSSL has them.
const ROOTS_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// How many sessions are kept to be resumed: eight for each name, so those of 128 names.
const SESSIONS: usize = 1024;

/// The protocols that origins may choose from, by their names in the handshake.
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS to origins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OriginTls {
    /// The certificates that origins' certificates are verified by, in place of the platform's.
    ca_file: Option<PathBuf>,
    /// The name that origins' certificates must have, in place of the host of each member.
    server_name: Option<String>,
    /// The certificate that origins are shown.
    cert: Option<PathBuf>,
    /// Its private key.
    key: Option<PathBuf>,
    /// What the files hold.
    credentials: Arc<Credentials>,
}

/// Root certificates, and the client's own.
#[derive(Default)]
pub struct Credentials {
    roots: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
    /// Tells connections that were made with these credentials from others.
    pub group: u64,
    /// `roots` as Pingora has them, once an origin needs them.
    for_pingora: OnceLock<Arc<CaType>>,
    /// How the direct forwarder connects; not at all without roots.
    handshakes: Option<Handshakes>,
}

/// How handshakes with origins are made.
struct Handshakes {
    /// The origin may choose HTTP/2.
    with_http2: Arc<ClientConfig>,
    /// It may not.
    http1_only: Arc<ClientConfig>,
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    for_pingora: Arc<CertKey>,
}

impl Credentials {
    /// The root certificates.
    pub fn roots(&self) -> Arc<CaType> {
        let wrap = |root: &CertificateDer<'_>| WrappedX509::new(root.to_vec(), parse_x509);
        let roots = || self.roots.iter().map(wrap).collect();
        Arc::clone(self.for_pingora.get_or_init(roots))
    }

    /// How to make a handshake in which the origin may choose HTTP/2, or only HTTP/1.1. There is none without root certificates.
    pub fn handshake(&self, http1_only: bool) -> Option<&Arc<ClientConfig>> {
        let handshakes = self.handshakes.as_ref()?;
        Some(if http1_only {
            &handshakes.http1_only
        } else {
            &handshakes.with_http2
        })
    }

    /// The certificate that origins are shown, with its key.
    pub fn identity(&self) -> Option<Arc<CertKey>> {
        self.identity.as_ref().map(|identity| Arc::clone(&identity.for_pingora))
    }

    /// What tells it from others.
    fn parts(&self) -> impl Hash + PartialEq {
        let identity = self.identity.as_ref();
        let identity = identity.map(|identity| (&identity.chain[..], identity.key.secret_der()));
        (&self.roots[..], identity)
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Credentials {}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown.field("roots", &self.roots.len());
        shown
            .field("identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

impl Handshakes {
    /// Verifies by `roots` and shows `identity`.
    fn new(roots: &[CertificateDer<'static>], identity: Option<&Identity>) -> Result<Self, rustls::Error> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone())?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store);
        let mut http1_only = match identity {
            Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?,
            None => builder.with_no_client_auth(),
        };
        http1_only.resumption = Resumption::in_memory_sessions(SESSIONS);
        http1_only.alpn_protocols = vec![HTTP1.to_vec()];
        // Both have the same sessions.
        let mut with_http2 = http1_only.clone();
        with_http2.alpn_protocols.insert(0, HTTP2.to_vec());
        Ok(Self {
            with_http2: Arc::new(with_http2),
            http1_only: Arc::new(http1_only),
        })
    }
}

impl OriginTls {
    pub(super) fn read(mut section: Section<'_>, defaults: &Self) -> Self {
        let tls = Self {
            ca_file: section.value("ca_file", None, defaults.ca_file.clone(), file_or_none),
            server_name: section.value("server_name", None, defaults.server_name.clone(), name_or_none),
            cert: section.value("cert", None, defaults.cert.clone(), file_or_none),
            key: section.value("key", None, defaults.key.clone(), file_or_none),
            credentials: Arc::default(),
        };
        let alone = match (&tls.cert, &tls.key) {
            (Some(_), None) => Some(("cert", "a certificate needs its private key: set key too")),
            (None, Some(_)) => Some(("key", "a private key needs its certificate: set cert too")),
            _ => None,
        };
        if let Some((key, problem)) = alone {
            section.settings().mistake(&section.place(key), problem);
        }
        section.finish();
        tls
    }

    /// What the files hold.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The name that the certificate of an origin at `host` must have. Never empty, because `host` is not.
    pub fn name_of<'n>(&'n self, host: &'n str) -> &'n str {
        self.server_name.as_deref().unwrap_or(host)
    }

    /// Tells connections that were made with this from others.
    pub fn group(&self) -> u64 {
        self.credentials.group
    }

    /// Reads the files, which the keys of `section` name. `expected`: there are origins that speak TLS for certain.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn load(&mut self, section: &str, expected: bool) -> Result<(), String> {
        let named = |key: &str| format!("{section}.{key}");
        let roots = match &self.ca_file {
            Some(path) => roots_of(path).map_err(|problem| mistake(&named("ca_file"), path, &problem))?,
            None => platform_roots()?,
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(identity_of(section, cert, key)?),
            _ => None,
        };
        let mut credentials = Credentials {
            roots,
            identity,
            ..Credentials::default()
        };
        if !credentials.roots.is_empty() {
            let handshakes = Handshakes::new(&credentials.roots, credentials.identity.as_ref());
            // Both were checked.
            let handshakes = handshakes.map_err(|error| format!("{section}: {error}"))?;
            credentials.handshakes = Some(handshakes);
        }
        let mut hasher = DefaultHasher::new();
        (credentials.parts(), &self.server_name).hash(&mut hasher);
        credentials.group = hasher.finish();
        self.credentials = Arc::new(credentials);
        self.check_roots(section, expected)
    }

    /// The same, but where `other` has the same keys and has read its files already, what they hold is shared.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn load_like(&mut self, other: &Self, section: &str, expected: bool) -> Result<(), String> {
        let keys = |tls: &Self| {
            (
                tls.ca_file.clone(),
                tls.server_name.clone(),
                tls.cert.clone(),
                tls.key.clone(),
            )
        };
        if keys(self) != keys(other) {
            return self.load(section, expected);
        }
        self.credentials = Arc::clone(&other.credentials);
        self.check_roots(section, expected)
    }

    fn check_roots(&self, section: &str, expected: bool) -> Result<(), String> {
        let configured = self.server_name.is_some() || self.cert.is_some();
        if self.credentials.roots.is_empty() && (expected || configured) {
            return Err(format!(
                "this machine has no root certificates to verify origins by: install ca-certificates, or set {section}.ca_file"
            ));
        }
        Ok(())
    }
}

/// `key` is the path of the key that names the file.
fn mistake(key: &str, path: &Path, problem: &str) -> String {
    format!("{key}: {}: {problem}", path.display())
}

/// The certificates in the PEM file at `path`, each of which must be usable.
fn roots_of(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let roots = certificates(path)?;
    match roots.iter().position(|root| !is_usable(root)) {
        Some(index) => Err(format!(
            "certificate {} of it can't be used to verify others",
            index + 1
        )),
        None => Ok(roots),
    }
}

/// The platform's root certificates. One that can't be used is left out, as every program does, unless a variable names the file.
fn platform_roots() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    let variable = ROOTS_VARIABLES.iter().find(|name| std::env::var_os(name).is_some());
    if let Some(variable) = variable {
        let problem = match found.errors.first() {
            Some(error) => Some(error.to_string()),
            None if found.certs.is_empty() => Some("there is no certificate".into()),
            None if !found.certs.iter().all(is_usable) => Some("a certificate can't be used to verify others".into()),
            None => None,
        };
        if let Some(problem) = problem {
            return Err(format!(
                "{variable}, the root certificates that origins are verified by: {problem}; correct or unset it, or set \
                 gopherproxy.upstream.tls.ca_file"
            ));
        }
    }
    let mut roots = found.certs;
    roots.retain(is_usable);
    Ok(roots)
}

/// Whether both rustls and Pingora take `certificate` for a root.
fn is_usable(certificate: &CertificateDer<'static>) -> bool {
    let parses = X509Certificate::from_der(certificate).is_ok_and(|(rest, _)| rest.is_empty());
    parses && RootCertStore::empty().add(certificate.clone()).is_ok()
}

fn identity_of(section: &str, cert: &Path, key: &Path) -> Result<Identity, String> {
    let mistake = |key: &str, path: &Path, problem: &str| mistake(&format!("{section}.{key}"), path, problem);
    let chain = certificates(cert).map_err(|problem| mistake("cert", cert, &problem))?;
    if !chain.iter().all(|one| X509Certificate::from_der(one).is_ok()) {
        return Err(mistake("cert", cert, "one of its certificates can't be parsed"));
    }
    let pem = yaml::read_file(key).map_err(|problem| mistake("key", key, &problem))?;
    // What is wrong with a key is not quoted.
    let secret = PrivateKeyDer::from_pem_slice(pem.as_bytes());
    let secret = secret.map_err(|_| mistake("key", key, "there is no private key in PEM form"))?;
    // Pingora sees its bytes alone, and tells by them what kind of key it is.
    if !PrivateKeyDer::try_from(secret.secret_der()).is_ok_and(|seen| seen == secret) {
        return Err(mistake(
            "key",
            key,
            "its form is unusual; convert it with openssl pkcs8 -topk8 -nodes",
        ));
    }
    CertifiedKey::from_der(chain.clone(), secret.clone_key(), &default_provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => mistake("key", key, &format!("it is not the key of {}", cert.display())),
        _ => mistake("key", key, "a key of this kind can't be used"),
    })?;
    let for_pingora = CertKey::new(
        chain.iter().map(|one| one.to_vec()).collect(),
        secret.secret_der().to_vec(),
    );
    Ok(Identity {
        chain,
        key: secret,
        for_pingora: Arc::new(for_pingora),
    })
}

/// The certificates in the PEM file at `path`; at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = yaml::read_file(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("there is no certificate in PEM form".into()),
        Ok(certificates) => Ok(certificates),
        Err(_) => Err("it is not a file of certificates in PEM form".into()),
    }
}

fn file_or_none(text: &str) -> Result<Option<PathBuf>, String> {
    absolute_or_none(
        text,
        "none or the absolute path of a PEM file, such as /etc/gopherproxy/origins.pem",
    )
}

/// A name or an address that a certificate can have. An empty one would turn verification off.
fn name_or_none(text: &str) -> Result<Option<String>, String> {
    if text == "none" {
        return Ok(None);
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    match ServerName::try_from(name) {
        Ok(_) if !name.is_empty() => Ok(Some(name.to_owned())),
        _ => Err("a host name or an address, such as origin.example, or none".into()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(key: &KeyPair) -> String {
        let params = CertificateParams::new(vec!["origin.example".into()]).unwrap();
        params.self_signed(key).unwrap().pem()
    }

    fn loaded(files: &[(&str, &str)]) -> Result<OriginTls, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let (_, text) = files.iter().find(|(file, _)| *file == name)?;
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let mut tls = OriginTls {
            ca_file: path("ca"),
            cert: path("cert"),
            key: path("key"),
            ..OriginTls::default()
        };
        tls.load("gopherproxy.upstream.tls", false).map(|()| tls)
    }

    #[test]
    fn credentials_are_equal_when_the_files_hold_the_same() {
        let keys = [(); 2].map(|()| KeyPair::generate().unwrap());
        let [one, other] = [&keys[0], &keys[1]].map(|key| (certificate(key), key.serialize_pem()));
        let first = loaded(&[("ca", &one.0), ("cert", &one.0), ("key", &one.1)]).unwrap();
        assert_eq!(first.credentials().roots().len(), 1);
        assert!(first.credentials().identity().is_some());
        for (files, same) in [
            ([("ca", &one.0), ("cert", &one.0), ("key", &one.1)], true),
            ([("ca", &other.0), ("cert", &one.0), ("key", &one.1)], false),
            ([("ca", &one.0), ("cert", &other.0), ("key", &other.1)], false),
        ] {
            let files = files.map(|(name, text)| (name, text.as_str()));
            let second = loaded(&files).unwrap();
            assert_eq!(*first.credentials() == *second.credentials(), same);
            assert_eq!(first.credentials().group == second.credentials().group, same);
        }
        let without = loaded(&[("ca", &one.0)]).unwrap();
        assert_ne!(without.credentials().group, first.credentials().group);
    }

    #[test]
    fn files_that_can_not_be_used_are_named_and_nothing_of_a_key_is_shown() {
        let keys = [(); 2].map(|()| KeyPair::generate().unwrap());
        let [one, other] = [&keys[0], &keys[1]].map(|key| (certificate(key), key.serialize_pem()));
        let cut = one.0.replacen("MI", "AA", 1);
        let secret = &one.1.lines().nth(1).unwrap()[..20];
        for (files, problem) in [
            (&[("ca", "")][..], "ca: there is no certificate in PEM form"),
            (&[("ca", "nonsense")], "ca: there is no certificate in PEM form"),
            (&[("ca", &one.1)], "ca: there is no certificate in PEM form"),
            (
                &[("ca", &(one.0.clone() + &cut))],
                "ca: certificate 2 of it can't be used",
            ),
            (
                &[("ca", "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n")],
                "ca: it is not a file of certificates",
            ),
            (
                &[("ca", &one.0), ("cert", &cut), ("key", &one.1)],
                "cert: one of its certificates can't be parsed",
            ),
            (
                &[("ca", &one.0), ("cert", &one.0), ("key", &one.0)],
                "key: there is no private key in PEM form",
            ),
            (
                &[("ca", &one.0), ("cert", &one.0), ("key", &other.1)],
                "key: it is not the key of",
            ),
            (
                &[
                    ("ca", &one.0),
                    ("cert", &one.0),
                    ("key", &one.1.replacen("MI", "AA", 1)),
                ],
                "key: ",
            ),
        ] {
            let refused = loaded(files).unwrap_err();
            assert!(refused.contains(problem), "{problem}: {refused}");
            assert!(!refused.contains(secret), "{refused}");
        }
        let mut missing = OriginTls {
            ca_file: Some("/nowhere/ca.pem".into()),
            ..OriginTls::default()
        };
        let refused = missing.load("gopherproxy.upstream.tls", false).unwrap_err();
        assert!(
            refused.starts_with("gopherproxy.upstream.tls.ca_file: /nowhere/ca.pem: No such file"),
            "{refused}"
        );
    }
}
