//! An HTTP client for the few requests that an order takes: one connection each, bounded in time and size.
//!
//! It understands what an authority says when it wants to be left alone, which `instant-acme` does not pass on: the status of
//! what is not JSON, and `Retry-After`.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chassis::clock;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::pool::reach;
use crate::tls::certificates::{LoadError, authorities, provider};

/// For a request and its response.
const PATIENCE: Duration = Duration::from_secs(30);
/// For a connection to any of the addresses of a host.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// No response is longer, in bytes.
const LONGEST: usize = 1 << 20;

/// Why there is no response that means anything.
#[derive(Debug)]
pub struct NoAnswer {
    /// In words.
    pub why: String,
    /// The authority has more requests than it wants.
    pub limited: bool,
    /// Not to be asked again before.
    pub retry_after: Option<SystemTime>,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for NoAnswer {}

impl NoAnswer {
    fn new(why: impl fmt::Display) -> Self {
        Self {
            why: why.to_string(),
            limited: false,
            retry_after: None,
        }
    }
}

/// Asks an authority.
#[derive(Clone)]
pub struct Client {
    tls: Arc<ClientConfig>,
}

impl Client {
    /// One that trusts the authority in `ca_file`, or else those that this machine trusts.
    ///
    /// # Errors
    /// When the file can't be used, or the machine trusts nobody.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, LoadError> {
        let roots = match ca_file {
            Some(path) => authorities(path)?,
            None => roots_of_machine()?,
        };
        let versions = ClientConfig::builder_with_provider(Arc::new(provider())).with_safe_default_protocol_versions();
        let builder = versions.map_err(|error| LoadError::new(Path::new("rustls"), error))?;
        let mut tls = builder.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls) })
    }
}

fn roots_of_machine() -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = "it has no certificates of authorities: install ca-certificates, or set acme.ca_file";
        return Err(LoadError::new(Path::new("this machine"), why));
    }
    Ok(roots)
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let tls = Arc::clone(&self.tls);
        Box::pin(async move {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let response = match timeout(PATIENCE, exchange(tls, request)).await {
                Ok(response) => response,
                Err(_) => Err(NoAnswer::new(format_args!("no response within {PATIENCE:?}"))),
            };
            response.map_err(|no_answer| {
                let why = format!("{host}: {}", no_answer.why);
                Error::Other(Box::new(NoAnswer { why, ..no_answer }))
            })
        })
    }
}

async fn exchange(tls: Arc<ClientConfig>, mut request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, NoAnswer> {
    let uri = std::mem::take(request.uri_mut());
    let authority = uri.authority().filter(|_| uri.scheme() == Some(&Scheme::HTTPS));
    let authority = authority.ok_or_else(|| NoAnswer::new(format_args!("{uri} is no https:// URL")))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(NoAnswer::new)?;
    let tcp = connect(host, authority.port_u16().unwrap_or(443)).await;
    let tcp = tcp.map_err(NoAnswer::new)?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await;
    let stream = stream.map_err(|error| {
        NoAnswer::new(format_args!(
            "no TLS with the directory: {error} (acme.ca_file names the authority of a private one)"
        ))
    })?;
    let field = HeaderValue::from_str(authority.as_str()).map_err(NoAnswer::new)?;
    request.headers_mut().insert(header::HOST, field);
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    *request.uri_mut() = path.parse::<Uri>().map_err(NoAnswer::new)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(NoAnswer::new)?;
    // It ends with the sender. Its errors are those of the request, too.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(NoAnswer::new)?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, LONGEST).collect().await.map_err(NoAnswer::new)?;
    understood(parts, body.to_bytes())
}

/// A connection to the host.
async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<_> = lookup_host((host, port)).await?.collect();
    let connected = reach::any(&addresses, CONNECT_PATIENCE).await;
    let (_, stream) = connected.map_err(|error| io::Error::new(error.kind(), format!("no connection: {error}")))?;
    Ok(stream)
}

fn understood(parts: http::response::Parts, body: Bytes) -> Result<BytesResponse, NoAnswer> {
    let retry_after = parts.headers.get(header::RETRY_AFTER).and_then(time_of);
    let status = parts.status;
    let limited = matches!(status.as_u16(), 429 | 503);
    let problem: Option<instant_acme::Problem> = serde_json::from_slice(&body).ok();
    if status.is_success() || (status.is_client_error() && !limited && problem.is_some()) {
        return Ok(BytesResponse {
            parts,
            body: Box::new(body),
        });
    }
    let detail = problem.and_then(|problem| problem.detail).unwrap_or_default();
    let separator = if detail.is_empty() { "" } else { ": " };
    Err(NoAnswer {
        why: format!("it answers {}{separator}{detail}", status.as_u16()),
        limited,
        retry_after,
    })
}

/// When `Retry-After` says, in seconds or as a date.
fn time_of(field: &HeaderValue) -> Option<SystemTime> {
    let text = field.to_str().ok()?.trim();
    match text.parse::<u32>() {
        Ok(seconds) => clock::now().checked_add(Duration::from_secs(seconds.into())),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    fn answer(status: u16, retry_after: Option<&str>, body: &'static str) -> Result<BytesResponse, NoAnswer> {
        let mut builder = Response::builder().status(status);
        if let Some(retry_after) = retry_after {
            builder = builder.header("retry-after", retry_after);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        understood(parts, Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn what_means_nothing_is_said_in_words_with_the_time_to_come_back() {
        const BAD_NONCE: &str = r#"{"type":"urn:ietf:params:acme:error:badNonce","detail":"stale"}"#;
        assert!(answer(200, None, "{}").is_ok());
        assert!(answer(400, None, BAD_NONCE).is_ok(), "the library tries again");
        let error = answer(429, Some("120"), r#"{"detail":"too many"}"#).err().unwrap();
        assert!(error.limited && error.why == "it answers 429: too many", "{error}");
        let wait = error.retry_after.unwrap().duration_since(clock::now()).unwrap();
        assert!((100..=120).contains(&wait.as_secs()));
        let error = answer(503, Some("Fri, 01 Jan 2100 00:00:00 GMT"), "<html>")
            .err()
            .unwrap();
        assert!(error.limited && error.why == "it answers 503", "{error}");
        assert!(error.retry_after.is_some());
        for (status, body) in [(500, "{}"), (404, "<html>"), (302, "")] {
            let error = answer(status, Some("soon"), body).err().unwrap();
            assert!(!error.limited && error.retry_after.is_none(), "{error}");
        }
    }
}
