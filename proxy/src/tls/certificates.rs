//! The certificates on disk, and which of them a client gets.
//!
//! A client names the host that it wants (SNI). It gets the certificate for exactly that name, or else for `*.parent`, or
//! else the default, which is the first. Where several certificates have the name, it gets the first whose kind of key it can verify,
//! those with an elliptic curve before those with RSA, because signing with RSA costs ten times as much.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chassis::regular_file::{self, Problem};
use log::warn;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore, SignatureAlgorithm};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Source;

/// No certificate with its chain, and no list of authorities, is longer, in bytes.
const MAX_SIZE: usize = 1 << 20;

/// Why certificates can't be used: the file, and the reason. It never quotes what is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    path: PathBuf,
    why: String,
}

impl LoadError {
    /// About the file at `path`.
    pub fn new(path: &Path, why: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            why: why.to_string(),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.why)
    }
}

impl std::error::Error for LoadError {}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Where it was read.
    pub path: PathBuf,
    /// The hosts that it is for, in lower case; `*.parent` is any host in the domain `parent`.
    pub names: Vec<String>,
    /// From when it is valid, in seconds since 1970.
    pub not_before: i64,
    /// Until when it is, in seconds since 1970.
    pub not_after: i64,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    /// Reads it and its key.
    pub(super) fn load(cert: &Path, key: &Path) -> Result<Self, LoadError> {
        let read = |path: &Path| read(path).map_err(|why| LoadError::new(path, why));
        Self::parse(&read(cert)?, &read(key)?)
            .map_err(|why| match why {
                Unusable::Certificate(why) => LoadError::new(cert, why),
                Unusable::Key(why) => LoadError::new(key, why),
                Unusable::Pair => LoadError::new(key, format_args!("it is not the key of {}", cert.display())),
            })
            .map(|certificate| Self {
                path: cert.to_owned(),
                ..certificate
            })
    }

    /// Reads it and its key from one file, in one step: when it is replaced, no half of it is seen. `None` when there is none yet.
    ///
    /// # Errors
    /// That it can't be used, and why.
    pub fn load_issued(path: &Path) -> Result<Option<Self>, LoadError> {
        if let Err(error) = fs::symlink_metadata(path)
            && error.kind() == io::ErrorKind::NotFound
        {
            return Ok(None);
        }
        let both = read(path).map_err(|why| LoadError::new(path, why))?;
        let certificate = Self::parse(&both, &both).map_err(|why| match why {
            Unusable::Certificate(why) | Unusable::Key(why) => LoadError::new(path, why),
            Unusable::Pair => LoadError::new(path, "the key in it is not that of the certificate"),
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            ..certificate
        }))
    }

    /// The certificate in `cert` with the key in `key`, both PEM.
    ///
    /// # Errors
    /// Which of them can't be used, and why.
    pub fn parse(cert: &[u8], key: &[u8]) -> Result<Self, Unusable> {
        let chain = chain(cert).map_err(Unusable::Certificate)?;
        let Some(leaf) = chain.first() else {
            return Err(Unusable::Certificate("it holds no certificate".into()));
        };
        let (names, not_before, not_after) = facts(leaf).map_err(Unusable::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            Unusable::Key(match error {
                pem::Error::NoItemsFound => "it holds no unencrypted private key in PEM form".to_owned(),
                _ => "it is not PEM".to_owned(),
            })
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Unusable::Pair,
            _ => Unusable::Key(
                "it is a key of a kind that is not supported: use ECDSA (P-256, P-384), Ed25519 or RSA".into(),
            ),
        })?;
        Ok(Self {
            path: PathBuf::new(),
            names,
            not_before,
            not_after,
            key: Arc::new(key),
        })
    }

    /// What it is called in metrics: the first host that it is for, or its file.
    pub fn name(&self) -> String {
        self.names
            .first()
            .cloned()
            .unwrap_or_else(|| self.path.display().to_string())
    }

    /// What is wrong with it at `now`, though it can be used.
    pub fn remark(&self, now: SystemTime) -> Option<&'static str> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if now > self.not_after {
            Some("the certificate has expired: clients will refuse it")
        } else if now < self.not_before {
            Some("the certificate is not valid yet: clients will refuse it")
        } else {
            None
        }
    }

    /// The certificate itself, without the chain.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    fn is_rsa(&self) -> bool {
        self.key.key.algorithm() == SignatureAlgorithm::RSA
    }
}

/// Why a certificate and a key can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// The certificate can't.
    Certificate(String),
    /// The key can't.
    Key(String),
    /// They don't belong together.
    Pair,
}

/// The library that does the cryptography.
pub fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// The certificates in `pem`, in their order.
pub(super) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        // The error can quote the file.
        .map_err(|_| "it is not PEM".to_owned())
}

/// The authorities whose certificates are in the file at `path`.
///
/// # Errors
/// Why the file can't be used.
pub fn authorities(path: &Path) -> Result<RootCertStore, LoadError> {
    let pem = read(path).map_err(|why| LoadError::new(path, why))?;
    roots(path, &pem)
}

/// The authorities in `pem`, which was read at `path`.
pub(super) fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    for authority in chain(pem).map_err(|why| LoadError::new(path, why))? {
        let added = roots.add(authority);
        added.map_err(|_| LoadError::new(path, "one of its certificates can't be read"))?;
    }
    if roots.is_empty() {
        return Err(LoadError::new(path, "it holds no certificate"));
    }
    Ok(roots)
}

/// The names of a certificate, and from when until when it is valid.
fn facts(der: &CertificateDer<'_>) -> Result<(Vec<String>, i64, i64), String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| "its first certificate can't be read".to_owned())?;
    let alternatives = certificate
        .subject_alternative_name()
        .map_err(|_| "its first certificate has names that can't be read".to_owned())?;
    let alternatives = alternatives
        .iter()
        .flat_map(|alternatives| &alternatives.value.general_names);
    let names = alternatives.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let validity = certificate.validity();
    Ok((
        names.collect(),
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// All certificates of the configuration.
#[derive(Debug)]
pub struct Certificates {
    all: Vec<Certificate>,
    /// By host. The places in `all`, the best first.
    exact: HashMap<String, Vec<usize>>,
    /// The same by the domain of all hosts in it.
    wildcard: HashMap<String, Vec<usize>>,
    default: Vec<usize>,
}

impl Certificates {
    /// Reads all.
    ///
    /// # Errors
    /// The first file that can't be used, and why.
    pub fn load(sources: &[Source]) -> Result<Self, LoadError> {
        let pairs = pairs(sources)?;
        let all: Result<Vec<_>, _> = pairs.iter().map(|(cert, key)| Certificate::load(cert, key)).collect();
        let mut all = all?;
        for path in issued(sources) {
            match Certificate::load_issued(path) {
                Ok(certificate) => all.extend(certificate),
                // The authority will give another one, and the others are still good.
                Err(error) => {
                    warn!(error = error.to_string().as_str(); "a certificate from the authority can't be used")
                }
            }
        }
        Ok(Self::new(all))
    }

    /// These, the default first.
    pub fn new(all: Vec<Certificate>) -> Self {
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<usize>>::new(), HashMap::<_, Vec<usize>>::new());
        let mut order: Vec<_> = (0..all.len()).collect();
        order.sort_by_key(|place| all[*place].is_rsa());
        for place in order {
            for name in &all[place].names {
                let places = match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default(),
                    None => exact.entry(name.clone()).or_default(),
                };
                places.push(place);
            }
        }
        // Those for the same host as the first are as good as the first.
        let first = all.first().and_then(|first| first.names.first());
        let alike = first.and_then(|name| match name.strip_prefix("*.") {
            Some(parent) => wildcard.get(parent),
            None => exact.get(name),
        });
        let default = alike.cloned().unwrap_or_else(|| (0..all.len().min(1)).collect());
        Self {
            all,
            exact,
            wildcard,
            default,
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Certificate] {
        &self.all
    }

    /// When the first certificate of each name ends, in seconds since 1970.
    pub fn expiry(&self) -> BTreeMap<String, i64> {
        let mut expiry = BTreeMap::new();
        for certificate in &self.all {
            let ends = expiry.entry(certificate.name()).or_insert(certificate.not_after);
            *ends = certificate.not_after.min(*ends);
        }
        expiry
    }

    /// Whether there is a certificate for the host `name`.
    pub fn has(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| self.named(name).is_some())
    }

    /// The certificates for a host in lower case.
    fn named(&self, name: &str) -> Option<&[usize]> {
        let parent = || name.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent));
        self.exact.get(name).or_else(parent).map(Vec::as_slice)
    }

    /// The certificates for a client that asks for `name`, the best first.
    fn choice(&self, name: Option<&str>) -> impl Iterator<Item = &Certificate> {
        let named = name.and_then(|name| self.named(name));
        named
            .unwrap_or(&self.default)
            .iter()
            .filter_map(|place| self.all.get(*place))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let verifiable =
            |certificate: &&Certificate| certificate.key.key.choose_scheme(client.signature_schemes()).is_some();
        let mut choice = self.choice(client.server_name());
        choice.find(verifiable).map(|certificate| Arc::clone(&certificate.key))
    }
}

/// The two files of each certificate.
fn pairs(sources: &[Source]) -> Result<Vec<(PathBuf, PathBuf)>, LoadError> {
    let mut pairs = Vec::new();
    for source in sources {
        match source {
            Source::Pair { cert, key } => pairs.push((cert.clone(), key.clone())),
            Source::Directory(path) => {
                let before = pairs.len();
                in_directory(path, &mut pairs)?;
                if pairs.len() == before {
                    let why = "it holds no certificates: neither NAME.crt with NAME.key, nor a folder with fullchain.pem and privkey.pem";
                    return Err(LoadError::new(path, why));
                }
            }
            Source::Issued(_) => {}
        }
    }
    Ok(pairs)
}

/// The files of certificates that the proxy gets itself.
fn issued(sources: &[Source]) -> impl Iterator<Item = &Path> {
    sources.iter().filter_map(|source| match source {
        Source::Issued(path) => Some(path.as_path()),
        Source::Pair { .. } | Source::Directory(_) => None,
    })
}

/// The pairs in a directory, in the order of their names. What begins with a dot is left out, as Kubernetes has its links there.
fn in_directory(path: &Path, pairs: &mut Vec<(PathBuf, PathBuf)>) -> Result<(), LoadError> {
    let failed = |error: io::Error| LoadError::new(path, error);
    let entries: Result<Vec<_>, _> = fs::read_dir(path).map_err(failed)?.collect();
    let mut entries: Vec<_> = entries.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
    entries.retain(|entry| {
        entry
            .file_name()
            .is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
    });
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            let (cert, key) = (entry.join("fullchain.pem"), entry.join("privkey.pem"));
            if cert.exists() || key.exists() {
                pairs.push((cert, key));
            }
        } else if entry.extension().is_some_and(|extension| extension == "crt") {
            let key = entry.with_extension("key");
            pairs.push((entry, key));
        }
    }
    Ok(())
}

/// What a file is, as far as that can be seen without reading it.
pub(super) type Mark = (PathBuf, Option<(SystemTime, u64)>);

/// What tells whether any of the files that `sources` and `others` name has changed: their times and lengths, behind symbolic links.
pub(super) fn marks(sources: &[Source], others: &[&Path]) -> Vec<Mark> {
    let mark = |path: &Path| {
        let metadata = fs::metadata(path).ok();
        let seen = metadata.and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
        (path.to_owned(), seen)
    };
    // Without the directories' own pairs: when one appears or leaves, the list is another.
    let pairs = pairs(sources).unwrap_or_default();
    let files = pairs.iter().flat_map(|(cert, key)| [cert.as_path(), key]);
    files
        .chain(issued(sources))
        .chain(others.iter().copied())
        .map(mark)
        .collect()
}

/// Reads a file of certificates or of a key.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    match regular_file::read(path, MAX_SIZE) {
        Ok((bytes, _)) => Ok(bytes),
        Err(Problem::TooLarge(_)) => Err("it is longer than 1 MiB".into()),
        Err(problem) => Err(problem.to_string()),
    }
}

#[cfg(test)]
mod tests;
