//! Certificates, and clients that speak TLS.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http2::Http2;
use super::{Connection, LIMIT};

/// A connection with TLS.
pub type Secure = Connection<TlsStream<TcpStream>>;

/// An authority that certificates come from.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Pair {
    /// Writes it to `NAME.crt` and `NAME.key`, each replaced in one step.
    pub fn write(&self, directory: &Path, name: &str) {
        for (end, pem) in [("crt", &self.cert), ("key", &self.key)] {
            let (path, new) = (directory.join(format!("{name}.{end}")), directory.join(".new"));
            std::fs::write(&new, pem).expect("a file");
            std::fs::rename(new, path).expect("renamed");
        }
    }
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for these hosts.
    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, |_| {})
    }

    /// The same with further wishes.
    pub fn issue_with(&self, names: &[&str], wishes: impl FnOnce(&mut CertificateParams)) -> Pair {
        self.issue_for(
            &KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key"),
            names,
            wishes,
        )
    }

    /// A certificate for these hosts with an RSA key, always the same: the library makes none.
    pub fn issue_rsa(&self, names: &[&str]) -> Pair {
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(include_str!("rsa.key"), &PKCS_RSA_SHA256).expect("a key");
        self.issue_for(&key, names, |_| {})
    }

    fn issue_for(&self, key: &KeyPair, names: &[&str], wishes: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        wishes(&mut params);
        let cert = params.signed_by(key, &self.issuer).expect("a certificate");
        Pair {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A certificate for a client with this name.
    pub fn issue_client(&self, name: &str) -> Pair {
        self.issue_with(&[], |params| {
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("a certificate");
        Arc::new(roots)
    }

    /// A client that trusts this authority alone.
    pub fn client(&self) -> Client {
        self.client_with(rustls::ALL_VERSIONS, None)
    }

    /// The same with these versions, and a certificate of its own.
    pub fn client_with(&self, versions: &[&'static SupportedProtocolVersion], own: Option<&Pair>) -> Client {
        self.client_of(rustls::crypto::ring::default_provider(), versions, own)
    }

    /// The same with what this provider knows.
    pub fn client_of(
        &self,
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        own: Option<&Pair>,
    ) -> Client {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(self.roots());
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(Pair { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(vec![cert], key).expect("a pair")
            }
        };
        Client(config)
    }
}

/// A client that speaks TLS. It remembers its sessions.
#[derive(Clone)]
pub struct Client(pub ClientConfig);

impl Client {
    /// One that trusts this authority, PEM.
    pub fn trusting(authority: &str) -> Self {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(authority.as_bytes()).expect("PEM");
        roots.add(certificate).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_root_certificates(roots);
        Self(builder.with_no_client_auth())
    }

    /// Connects and asks for the host `name`.
    pub async fn try_open(&self, to: SocketAddr, name: &str) -> io::Result<Secure> {
        let tcp = timeout(LIMIT, TcpStream::connect(to)).await??;
        tcp.set_nodelay(true)?;
        self.shake(tcp, name).await
    }

    /// Shakes hands on a connection, and asks for the host `name`.
    pub async fn shake(&self, tcp: TcpStream, name: &str) -> io::Result<Secure> {
        let name = ServerName::try_from(name.to_owned()).expect("a host");
        let connector = TlsConnector::from(Arc::new(self.0.clone()));
        let stream = timeout(LIMIT, connector.connect(name, tcp)).await??;
        Ok(Connection::over(stream))
    }

    pub async fn open(&self, to: SocketAddr, name: &str) -> Secure {
        self.try_open(to, name).await.expect("a handshake")
    }

    /// The same client, which speaks HTTP/2.
    pub fn over_http2(&self) -> Self {
        let mut client = self.clone();
        client.0.alpn_protocols = vec![b"h2".to_vec()];
        client
    }

    pub async fn open_http2(&self, to: SocketAddr, name: &str) -> Http2 {
        let connection = self.over_http2().open(to, name).await;
        Http2::over(connection.into_stream(), &h2::client::Builder::new()).await
    }
}

/// The certificate that the server showed.
pub fn shown(connection: &Secure) -> CertificateDer<'static> {
    let (_, session) = connection.stream().get_ref();
    session.peer_certificates().expect("it has shown one")[0]
        .clone()
        .into_owned()
}

impl Pair {
    /// The certificate itself.
    pub fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("PEM")
    }
}

/// `configuration` with TLS on a free port, certificates from this directory, and these further lines of the section.
pub fn with_tls(configuration: &str, directory: &Path, more: &str) -> String {
    format!(
        "{configuration}  tls:\n    listen: 127.0.0.1:0\n    certificates: {}\n{more}",
        directory.display()
    )
}
