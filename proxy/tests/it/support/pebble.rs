//! An authority that speaks ACME: Debian's pebble, and a server before it that counts requests and can answer in its place.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::tls::{Authority, Client};
use super::{Connection, Started, child, eventually, free_port};

/// What the server before pebble does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Everything goes to pebble.
    Pass,
    /// Orders get a 429, with so many seconds to wait.
    Limit(u32),
    /// The last step of an order gets no answer.
    Hold,
    /// Certificates are to be renewed in a window that is over.
    Renew,
}

/// Where the parts of an authority are. Its proxies listen on `http` and `tls`.
pub struct Pebble {
    pub http: u16,
    pub tls: u16,
    /// How long a certificate is valid, in seconds.
    pub life: u32,
    directory: SocketAddr,
    behind: SocketAddr,
    management: SocketAddr,
    names: u16,
    names_management: SocketAddr,
    /// Who signed the certificate of the directory.
    authority: Authority,
    files: TempDir,
    requests: Arc<Mutex<Vec<String>>>,
    rule: Arc<Mutex<Rule>>,
    running: Mutex<Vec<Started>>,
}

impl Pebble {
    /// One that does not run yet. `None`, said once, where pebble is not installed.
    #[allow(clippy::print_stderr, reason = "for whoever runs the tests")]
    pub fn new(life: u32) -> Option<Self> {
        if child::find("pebble").is_none() {
            eprintln!("not tested, because pebble is not installed (Debian has it; make test gets it there)");
            return None;
        }
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let authority = Authority::new();
        let files = tempfile::tempdir().expect("a directory");
        authority.issue(&["localhost"]).write(files.path(), "pebble");
        std::fs::write(files.path().join("ca.pem"), authority.pem()).expect("written");
        Some(Self {
            http: free_port(),
            tls: free_port(),
            life,
            directory: local(free_port()),
            behind: local(free_port()),
            management: local(free_port()),
            names: free_port(),
            names_management: local(free_port()),
            authority,
            files,
            requests: Arc::default(),
            rule: Arc::new(Mutex::new(Rule::Pass)),
            running: Mutex::default(),
        })
    }

    /// One that runs.
    pub async fn start(life: u32) -> Option<Self> {
        let pebble = Self::new(life)?;
        pebble.run().await;
        Some(pebble)
    }

    /// Runs it.
    pub async fn run(&self) {
        let path = |name: &str| self.files.path().join(name);
        let configuration = serde_json::json!({ "pebble": {
            "listenAddress": self.behind.to_string(),
            "managementListenAddress": self.management.to_string(),
            "certificate": path("pebble.crt"),
            "privateKey": path("pebble.key"),
            "httpPort": self.http,
            "tlsPort": self.tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": self.life,
        }});
        std::fs::write(path("pebble.json"), configuration.to_string()).expect("written");
        let names = format!("127.0.0.1:{}", self.names);
        let mut lookups = child::command(child::tool("pebble-challtestsrv"));
        lookups.args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", &names]);
        lookups.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        lookups.args(["-management", &self.names_management.to_string()]);
        let mut pebble = child::command(child::tool("pebble"));
        pebble
            .arg("-config")
            .arg(path("pebble.json"))
            .args(["-dnsserver", &names]);
        pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_AUTHZREUSE", "0");
        // Requests are counted.
        pebble.env("PEBBLE_WFE_NONCEREJECT", "0");
        for mut command in [lookups, pebble] {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            self.running
                .lock()
                .expect("no test panics with it")
                .push(child::start(command));
        }
        for address in [self.names_management, self.behind, self.management] {
            eventually("pebble listens", async || TcpStream::connect(address).await.is_ok()).await;
        }
        let front = Front {
            acceptor: self.acceptor(),
            client: self.authority.client(),
            behind: self.behind,
            address: self.directory,
            requests: Arc::clone(&self.requests),
            rule: Arc::clone(&self.rule),
        };
        let listener = TcpListener::bind(self.directory).await.expect("a free port");
        tokio::spawn(async move {
            let front = Arc::new(front);
            while let Ok((tcp, _)) = listener.accept().await {
                let front = Arc::clone(&front);
                // A client may leave at any time.
                tokio::spawn(async move { front.serve(tcp).await });
            }
        });
    }

    fn acceptor(&self) -> TlsAcceptor {
        let pair = self.authority.issue(&["localhost"]);
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_no_client_auth();
        let certificate = CertificateDer::from_pem_slice(pair.cert.as_bytes()).expect("PEM");
        let config = builder.with_single_cert(vec![certificate], key).expect("a pair");
        TlsAcceptor::from(Arc::new(config))
    }

    /// The URL of the directory.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/dir", self.directory.port())
    }

    /// Who signed the certificate of the directory, as a file.
    pub fn ca_file(&self) -> PathBuf {
        self.files.path().join("ca.pem")
    }

    /// A place for a proxy's storage.
    pub fn storage(&self) -> PathBuf {
        self.files.path().join("storage")
    }

    /// `configuration` with the ports that pebble looks at, and certificates for these hosts.
    pub fn proxy(&self, configuration: &str, hosts: &str, more: &str) -> String {
        self.proxy_at(self.http, self.tls, configuration, hosts, more)
    }

    /// The same on other ports.
    pub fn proxy_at(&self, http: u16, tls: u16, configuration: &str, hosts: &str, more: &str) -> String {
        let configuration = configuration.replacen("listen: 127.0.0.1:0", &format!("listen: 127.0.0.1:{http}"), 1);
        format!(
            "{configuration}  tls: {{listen: '127.0.0.1:{tls}'}}\n  acme:\n    hosts: [{hosts}]\n    directory: {}\n    ca_file: {}\n    \
             storage: {}\n    terms_agreed: true\n{more}",
            self.url(),
            self.ca_file().display(),
            self.storage().display(),
        )
    }

    /// A client that trusts pebble's certificates.
    pub async fn client(&self) -> Client {
        let mut connection = self.authority.client().open(self.management, "localhost").await;
        let root = connection.get("/roots/0").await;
        Client::trusting(&root.text())
    }

    /// Has the name lead to an address at which nothing listens, or to the proxy again.
    pub async fn lose(&self, host: &str, lost: bool) {
        let (path, body) = if lost {
            ("/add-a", serde_json::json!({"host": host, "addresses": ["127.0.0.77"]}))
        } else {
            ("/clear-a", serde_json::json!({"host": host}))
        };
        let mut connection = Connection::open(self.names_management).await;
        assert_eq!(
            connection.request("POST", path, "", &body.to_string()).await.status,
            200
        );
    }

    /// What the server before pebble does from now on.
    pub fn rule(&self, rule: Rule) {
        *self.rule.lock().expect("no test panics with it") = rule;
    }

    /// How many requests there were whose path begins so.
    pub fn count(&self, path: &str) -> usize {
        let requests = self.requests.lock().expect("no test panics with it");
        requests.iter().filter(|request| request.starts_with(path)).count()
    }
}

/// The server before pebble. Its clients send one request on a connection.
struct Front {
    acceptor: TlsAcceptor,
    client: Client,
    behind: SocketAddr,
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    rule: Arc<Mutex<Rule>>,
}

impl Front {
    async fn serve(&self, tcp: TcpStream) -> io::Result<()> {
        let mut client = self.acceptor.accept(tcp).await?;
        let mut request = Vec::new();
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if client.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let line = String::from_utf8_lossy(&request);
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        self.requests.lock().expect("no test panics with it").push(path.clone());
        let rule = *self.rule.lock().expect("no test panics with it");
        let answer = match rule {
            Rule::Limit(seconds) if path == "/order-plz" => Some((
                format!("429 Too Many Requests\r\nRetry-After: {seconds}"),
                r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many orders"}"#.to_owned(),
            )),
            Rule::Hold if path.starts_with("/finalize-order/") => std::future::pending().await,
            Rule::Renew if path == "/dir" => Some(("200 OK".to_owned(), self.directory())),
            Rule::Renew if path.starts_with("/renewal-info/") => Some((
                "200 OK\r\nRetry-After: 21600".to_owned(),
                r#"{"suggestedWindow":{"start":"2020-01-01T00:00:00Z","end":"2020-01-02T00:00:00Z"}}"#.to_owned(),
            )),
            _ => None,
        };
        if let Some((status, body)) = answer {
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        let tcp = TcpStream::connect(self.behind).await?;
        let mut pebble = self.client.shake(tcp, "localhost").await?.into_stream();
        pebble.write_all(&request).await?;
        copy_bidirectional(&mut client, &mut pebble).await?;
        Ok(())
    }

    /// Pebble's directory, with one resource more.
    fn directory(&self) -> String {
        let at = |path: &str| format!("https://localhost:{}/{path}", self.address.port());
        serde_json::json!({
            "newNonce": at("nonce-plz"),
            "newAccount": at("sign-me-up"),
            "newOrder": at("order-plz"),
            "renewalInfo": at("renewal-info"),
        })
        .to_string()
    }
}

/// Lets a proxy that shares this storage order at once, though an order has failed.
pub fn forgive(storage: &Path) {
    let path = storage.join("state.json");
    let text = std::fs::read_to_string(&path).expect("it is there");
    let mut state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for host in state.as_object_mut().expect("hosts").values_mut() {
        host["next_attempt"] = 0.into();
    }
    std::fs::write(path, state.to_string()).expect("written");
}
