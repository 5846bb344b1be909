//! The admin port: `/metrics` for Prometheus, `/healthz` for "is it running", `/readyz` for "send it traffic".
//!
//! A Pingora `ServeHttp` of its own rather than Pingora's Prometheus app, because that one answers every path with the
//! metrics of the global registry.

use std::net::TcpListener;
use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use log::error;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora::services::listening;
use prometheus::{Registry, TextEncoder};

use crate::listener::{Doors, Listening};

/// What a process shows on its admin port.
pub trait Probed: Send + Sync + 'static {
    /// That the process should get traffic, as one line of text that may tell more.
    ///
    /// # Errors
    /// Why it should not, as one line of text.
    fn ready(&self) -> Result<String, String>;

    /// Brings metrics that are only read, such as a table's size, up to date before a scrape.
    fn refresh(&self) {}
}

/// The admin port's HTTP application.
pub struct Admin {
    registry: Registry,
    probed: Arc<dyn Probed>,
}

impl Admin {
    /// Shows the metrics of `registry`.
    pub fn new(registry: Registry, probed: Arc<dyn Probed>) -> Self {
        Self { registry, probed }
    }

    /// Serves on `socket` from when `doors` open until `end`, later than the shutdown, so that a shutdown can be watched.
    ///
    /// # Errors
    /// When the socket can't tell its address.
    pub fn listen(
        self,
        socket: TcpListener,
        doors: Doors,
        end: ShutdownWatch,
    ) -> std::io::Result<Listening<listening::Service<Self>>> {
        let service = Listening::new(socket, doors, |address| {
            let mut service = listening::Service::new("admin".into(), self);
            service.add_tcp(address);
            service.threads = Some(1);
            service
        })?;
        Ok(service.until(end))
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Vec<u8>> {
        if method != Method::GET && method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "the admin port takes GET\n");
        }
        match path {
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.probed.ready() {
                Ok(state) => text(StatusCode::OK, format!("{state}\n")),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/metrics" => {
                self.probed.refresh();
                match TextEncoder::new().encode_to_string(&self.registry.gather()) {
                    Ok(metrics) => text(StatusCode::OK, metrics),
                    Err(problem) => {
                        error!(error = problem.to_string().as_str(); "can't encode the metrics");
                        text(StatusCode::INTERNAL_SERVER_ERROR, "can't encode the metrics\n")
                    }
                }
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "not found: this port has /metrics, /healthz and /readyz\n",
            ),
        }
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        self.answer(&request.method, request.uri.path())
    }
}

fn text(status: StatusCode, body: impl Into<Vec<u8>>) -> Response<Vec<u8>> {
    let body = body.into();
    let mut response = Response::new(Vec::new());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(prometheus::TEXT_FORMAT),
    );
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    *response.body_mut() = body;
    response
}
