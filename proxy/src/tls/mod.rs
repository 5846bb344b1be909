//! TLS with clients. What needs the network or the metrics is in [`listen`](crate::listen).
//!
//! - [`certificates`]: the certificates on disk, and which of them a client gets.
//! - [`self_made`]: a certificate to try TLS with.
//! - [`server`]: what handshakes are made with, and its replacement while the proxy runs.
//! - [`stream`]: a client's connection, encrypted or not.
//! - [`subject`]: the names in a certificate as text.
//! - [`tickets`]: session tickets that replicas and successors can read.

pub mod certificates;
pub mod self_made;
pub mod server;
pub mod stream;
pub mod subject;
pub mod tickets;

use std::path::PathBuf;
use std::time::Duration;

/// What TLS with clients is configured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the certificates are. The first is the default.
    pub certificates: Vec<Source>,
    /// From the first byte of a connection, or from its beginning, to the end of the handshake.
    pub handshake_timeout: Duration,
    /// The lowest version.
    pub min_version: Version,
    /// A client that names no host, or one without a certificate, is refused.
    pub strict_sni: bool,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// The authorities that clients' certificates come from.
    pub client_ca: Option<PathBuf>,
    /// What the keys of session tickets come from.
    pub ticket_secret: Option<PathBuf>,
}

/// Where certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In two PEM files.
    Pair {
        /// The certificate and those between it and its root.
        cert: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// All pairs in a directory.
    Directory(PathBuf),
    /// One file with a certificate and its key, which the proxy gets from an authority. It may not be there yet.
    Issued(PathBuf),
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They are asked. What they show must be valid.
    Optional,
    /// They have to.
    Required,
}

/// What a client and the proxy agreed on in a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The version of TLS, such as `1.3`.
    pub version: &'static str,
    /// The host that the client asked for.
    pub sni: Option<Box<str>>,
    /// The subject of the client's certificate, if it showed a valid one.
    pub subject: Option<Box<str>>,
}
