//! What handshakes are made with, and its replacement while the proxy runs.
//!
//! Everything is loaded anew at a reload and, because nobody tells a proxy that a certificate was renewed, whenever a file has
//! changed. It is all replaced or nothing: a file that can't be used leaves everything as it was. Listeners and connections are not
//! touched. A certificate and its key can't be replaced in one step, so between the two they don't match; then the next look finds
//! both.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use log::warn;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use super::certificates::{Certificates, LoadError, Mark, marks, provider, read, roots};
use super::tickets::{SHORTEST_SECRET, Tickets};
use super::{ClientAuth, Settings, Version};

/// What the proxy speaks over TLS (ALPN), the best first.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// What handshakes are made with.
#[derive(Debug)]
pub struct Server {
    /// For the library.
    pub config: Arc<ServerConfig>,
    /// The certificates in it.
    pub certificates: Arc<Certificates>,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Whether a client that asks for no host, or for one without a certificate, is refused.
    pub strict_sni: bool,
}

impl Server {
    /// Reads everything that `settings` name. Session tickets get their keys from `secret` where no file has one.
    ///
    /// # Errors
    /// The first file that can't be used, and why.
    pub fn load(settings: &Settings, secret: &[u8]) -> Result<Self, LoadError> {
        let certificates = Arc::new(Certificates::load(&settings.certificates)?);
        let verifier = verifier(settings)?;
        let from_file = settings.ticket_secret.as_deref().map(ticket_secret).transpose()?;

        let versions: &[&SupportedProtocolVersion] = match settings.min_version {
            Version::Tls12 => &[&version::TLS13, &version::TLS12],
            Version::Tls13 => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(versions)
            .map_err(|error| LoadError::new(Path::new("rustls"), error))?;
        // Whoever resumes a session is not verified again, however long ago its certificate has expired: each resumption gives a
        // ticket for the next. So where clients show certificates there are no tickets.
        let resumes = verifier.is_none();
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        // A ticket has the whole session in it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = usize::from(resumes);
        if resumes {
            config.ticketer = Arc::new(Tickets::new(from_file.as_deref().unwrap_or(secret)));
        }
        Ok(Self {
            config: Arc::new(config),
            certificates,
            handshake_timeout: settings.handshake_timeout,
            strict_sni: settings.strict_sni,
        })
    }

    /// Logs which certificates clients will refuse.
    fn remark(&self) {
        for certificate in self.certificates.all() {
            if let Some(remark) = certificate.remark(SystemTime::now()) {
                let (path, name) = (certificate.path.display().to_string(), certificate.name());
                warn!(path = path.as_str(), name = name.as_str(); "{remark}");
            }
        }
    }
}

/// What verifies the certificates of clients.
type Verifier = Arc<dyn ClientCertVerifier>;

/// What verifies clients' certificates, if they show any.
fn verifier(settings: &Settings) -> Result<Option<Verifier>, LoadError> {
    let (Some(path), true) = (&settings.client_ca, settings.client_auth != ClientAuth::None) else {
        return Ok(None);
    };
    let pem = read(path).map_err(|why| LoadError::new(path, why))?;
    let roots = roots(path, &pem)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()));
    let builder = match settings.client_auth {
        ClientAuth::Required => builder,
        ClientAuth::Optional | ClientAuth::None => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|error| LoadError::new(path, error))?;
    Ok(Some(verifier))
}

/// The secret in a file.
fn ticket_secret(path: &Path) -> Result<Vec<u8>, LoadError> {
    let secret = read(path).map_err(|why| LoadError::new(path, why))?;
    if secret.len() < SHORTEST_SECRET {
        let why = format!(
            "it is shorter than {SHORTEST_SECRET} bytes; `openssl rand -out {} 48` makes one",
            path.display()
        );
        return Err(LoadError::new(path, why));
    }
    Ok(secret)
}

/// What handshakes are made with now.
pub struct Live {
    now: ArcSwap<Server>,
    sources: Mutex<Sources>,
}

/// What that was loaded from.
struct Sources {
    settings: Settings,
    /// For tickets, where there is no file.
    secret: Vec<u8>,
    /// What the files looked like when they were last read.
    marks: Vec<Mark>,
}

impl Live {
    /// Loads what `settings` name. Session tickets get their keys from `secret` where no file has one.
    ///
    /// # Errors
    /// The first file that can't be used, and why.
    pub fn new(settings: Settings, secret: Vec<u8>) -> Result<Self, LoadError> {
        let marks = seen(&settings);
        let server = Server::load(&settings, &secret)?;
        server.remark();
        Ok(Self {
            now: ArcSwap::from_pointee(server),
            sources: Mutex::new(Sources {
                settings,
                secret,
                marks,
            }),
        })
    }

    /// For one handshake.
    pub fn server(&self) -> Arc<Server> {
        self.now.load_full()
    }

    /// Whether there is a certificate. The first from an authority takes a while.
    pub fn has_any(&self) -> bool {
        !self.now.load().certificates.all().is_empty()
    }

    /// Loads what `settings` name.
    ///
    /// # Errors
    /// The first file that can't be used, and why; nothing has changed then.
    pub fn change(&self, settings: &Settings) -> Result<(), LoadError> {
        let mut sources = self.sources();
        self.load(&mut sources, settings)
    }

    /// Loads everything again if a file has changed since the last time; `None` if none has.
    pub fn look(&self) -> Option<Result<(), LoadError>> {
        let mut sources = self.sources();
        if seen(&sources.settings) == sources.marks {
            return None;
        }
        let settings = sources.settings.clone();
        Some(self.load(&mut sources, &settings))
    }

    fn load(&self, sources: &mut Sources, settings: &Settings) -> Result<(), LoadError> {
        // Before the files are read, so that a change while they are is found at the next look.
        let marks = seen(settings);
        let loaded = Server::load(settings, &sources.secret);
        if *settings == sources.settings {
            sources.marks = marks.clone();
        }
        let server = loaded?;
        server.remark();
        (sources.settings, sources.marks) = (settings.clone(), marks);
        self.now.store(Arc::new(server));
        Ok(())
    }

    /// The secret that session tickets get their keys from where no file has one.
    pub fn secret(&self) -> Vec<u8> {
        self.sources().secret.clone()
    }

    /// Takes the secret of the process that ran before, so that its clients' tickets count here.
    ///
    /// # Errors
    /// As [`Live::change`].
    pub fn inherit(&self, secret: &[u8]) -> Result<(), LoadError> {
        let mut sources = self.sources();
        secret.clone_into(&mut sources.secret);
        let settings = sources.settings.clone();
        self.load(&mut sources, &settings)
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the files that `settings` name look like.
fn seen(settings: &Settings) -> Vec<Mark> {
    let others = [&settings.client_ca, &settings.ticket_secret];
    let others: Vec<_> = others.into_iter().filter_map(|path| path.as_deref()).collect();
    marks(&settings.certificates, &others)
}
