//! A health check that asks as requests do: over the same protocol, with the same TLS and its verification.
//!
//! Each check has a connection of its own, so that one which could not be made today is not hidden by one that was made yesterday. Of the
//! answer only the head is read.

use std::error::Error as StdError;

use chassis::shortage::is_shortage;
use http::Uri;
use http::header::{CONNECTION, HOST, USER_AGENT};
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::v2;
use pingora::http::RequestHeader;
use pingora::prelude::{Error, ErrorType, Result};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;

use crate::config::{Health, NO_ROOTS, UpstreamLimits};
use crate::pool::endpoint::Endpoint;
use crate::pool::failure;
use crate::pool::health::Failed;

/// Opens the connections of all checks, and keeps none.
pub(super) struct Connector(v2::Connector);

impl Connector {
    pub(super) fn new() -> Self {
        // What verifies a backend comes with the peer.
        let options = ConnectorOptions {
            ca_file: Some(NO_ROOTS.into()),
            ..ConnectorOptions::new(1)
        };
        Self(v2::Connector::new(Some(options)))
    }

    /// A new connection, of whatever version of HTTP the backend and `peer` have in common.
    async fn open(&self, peer: &mut HttpPeer) -> Result<HttpSession> {
        // With room for another stream Pingora would keep it.
        peer.options.max_h2_streams = 1;
        self.0.new_http_session(peer).await
    }
}

/// Asks `endpoint`.
pub(super) async fn run(
    connector: &Connector,
    endpoint: &Endpoint,
    health: &Health,
    limits: &UpstreamLimits,
) -> std::result::Result<(), Failed> {
    let status = status(connector, endpoint, health, limits).await.map_err(|error| {
        let cause: &(dyn StdError + 'static) = error.root_cause();
        if is_shortage(cause) {
            Failed::Shortage
        } else {
            Failed::Backend(failure::in_words(&error))
        }
    })?;
    if health.status.contains(&status) {
        return Ok(());
    }
    let (first, last) = (health.status.start(), health.status.end());
    let wanted = if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    };
    Err(Failed::Backend(format!("status {status}, expected {wanted}")))
}

/// The status of the answer.
async fn status(connector: &Connector, endpoint: &Endpoint, health: &Health, limits: &UpstreamLimits) -> Result<u16> {
    let mut peer = endpoint.peer(limits, false);
    let mut session = connector.open(&mut peer).await?;
    let host = health
        .host
        .as_deref()
        .unwrap_or_else(|| host_of(endpoint.upstream.authority(), peer.is_tls()));
    session
        .write_request_header(Box::new(request(&session, host, &health.path, peer.is_tls())?))
        .await?;
    session.finish_request_body().await?;
    loop {
        session.read_response_header().await?;
        let status = session.response_header().map(|head| head.status);
        match status {
            // More follows.
            Some(status) if status.is_informational() && status.as_u16() != 101 => {}
            Some(status) => return Ok(status.as_u16()),
            None => return Error::e_explain(ErrorType::InvalidHTTPHeader, "an answer without a head"),
        }
    }
}

/// The host of `authority`, with its port unless that goes without saying.
fn host_of(authority: &str, tls: bool) -> &str {
    authority
        .strip_suffix(if tls { ":443" } else { ":80" })
        .unwrap_or(authority)
}

fn request(session: &HttpSession, host: &str, path: &str, tls: bool) -> Result<RequestHeader> {
    let mut request = RequestHeader::build("GET", path.as_bytes(), None)?;
    request.insert_header(USER_AGENT, "gopherproxy")?;
    if matches!(session, HttpSession::H2(_)) {
        let scheme = if tls { "https" } else { "http" };
        let uri = Uri::builder()
            .scheme(scheme)
            .authority(host)
            .path_and_query(path)
            .build();
        request.set_uri(uri.map_err(|error| Error::because(ErrorType::InvalidHTTPHeader, "", error))?);
    } else {
        request.insert_header(HOST, host)?;
        request.insert_header(CONNECTION, "close")?;
    }
    Ok(request)
}
