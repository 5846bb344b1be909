//! The admin port: `/metrics` for Prometheus, `/healthz` for "is it running", `/readyz` for "send it traffic".
//!
//! It has a small server of its own (`server`, `http1`), because nobody who reaches this port may be able to blind Prometheus, or
//! use up the memory and descriptors that clients need. The server allows one request per connection and few connections, has
//! deadlines for everything, and never logs what it was sent. Pingora's server has none of that, and hyper's ends a connection
//! whose `Date` it can't write.

mod http1;
mod server;

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use log::error;
use pingora::server::ShutdownWatch;
use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};

use crate::listener::Doors;
use http1::{Body, Request, Response};
pub use server::AdminService;

/// Whoever asks for the metrics within this time of another gets the same text, if it is still being sent. So readers that are
/// slow on purpose can't make the process hold many of them.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// What a process shows on its admin port.
pub trait Probed: Send + Sync + 'static {
    /// Whether the process should get traffic: one line of text, which may say more.
    ///
    /// # Errors
    /// Why it should not, as one line of text.
    fn ready(&self) -> Result<String, String>;

    /// Brings metrics that are only read, such as a table's size, up to date before a scrape.
    fn refresh(&self) {}
}

/// What the admin port answers.
pub struct Admin {
    registry: Registry,
    probed: Arc<dyn Probed>,
    /// Connections that ended without a good answer, by reason.
    rejections: IntCounterVec,
    /// The metrics as they were last written, and when.
    metrics: Mutex<Option<(Instant, Weak<str>)>>,
}

impl Admin {
    /// Shows the metrics of `registry`, and registers its own there.
    ///
    /// # Errors
    /// When their name is taken.
    pub fn new(registry: Registry, probed: Arc<dyn Probed>) -> prometheus::Result<Self> {
        let rejections = IntCounterVec::new(
            Opts::new(
                "gopherproxy_admin_rejections_total",
                "Connections to the admin port that were refused or cut, by reason.",
            ),
            &["reason"],
        )?;
        registry.register(Box::new(rejections.clone()))?;
        for rejection in Rejection::ALL {
            rejections.with_label_values(&[rejection.reason()]);
        }
        Ok(Self {
            registry,
            probed,
            rejections,
            metrics: Mutex::default(),
        })
    }

    /// Serves on `socket` from when `doors` open until `end`, later than the shutdown, so that a shutdown can be watched.
    ///
    /// # Errors
    /// When the socket's address can't be read.
    pub fn listen(self, socket: TcpListener, doors: Doors, end: ShutdownWatch) -> std::io::Result<AdminService> {
        AdminService::new(self, socket, doors, end)
    }

    fn count(&self, rejection: Rejection) {
        self.rejections.with_label_values(&[rejection.reason()]).inc();
    }

    fn answer(&self, request: &Request) -> Response {
        if request.method != Method::GET && request.method != Method::HEAD {
            return Response::text(StatusCode::METHOD_NOT_ALLOWED, "the admin port takes GET\n");
        }
        match request.path.as_str() {
            "/healthz" => Response::text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.probed.ready() {
                Ok(state) => Response::text(StatusCode::OK, format!("{state}\n")),
                Err(reason) => Response::text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            },
            "/metrics" => match self.metrics() {
                Ok(metrics) => Response {
                    status: StatusCode::OK,
                    body: Body::Shared(metrics),
                },
                Err(problem) => {
                    error!(error = problem.to_string().as_str(); "can't encode the metrics");
                    Response::text(StatusCode::INTERNAL_SERVER_ERROR, "can't encode the metrics\n")
                }
            },
            _ => Response::text(
                StatusCode::NOT_FOUND,
                "not found: this port has /metrics, /healthz and /readyz\n",
            ),
        }
    }

    fn metrics(&self) -> prometheus::Result<Arc<str>> {
        let mut latest = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((written, metrics)) = &*latest
            && written.elapsed() < SHARED_FOR
            && let Some(metrics) = metrics.upgrade()
        {
            return Ok(metrics);
        }
        self.probed.refresh();
        let metrics: Arc<str> = TextEncoder::new().encode_to_string(&self.registry.gather())?.into();
        *latest = Some((Instant::now(), Arc::downgrade(&metrics)));
        Ok(metrics)
    }
}

/// Why a connection ended without a good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rejection {
    /// What came is no request.
    BadRequest,
    /// The head is too long, or has too many fields.
    HeadTooLarge,
    /// The head took too long.
    RequestTimeout,
    /// There were too many connections, and this was one that made them so.
    TooManyConnections,
    /// The client took too long to take its answer.
    ClientGone,
}

impl Rejection {
    const ALL: [Self; 5] = [
        Self::BadRequest,
        Self::HeadTooLarge,
        Self::RequestTimeout,
        Self::TooManyConnections,
        Self::ClientGone,
    ];

    /// The word in the metrics; the proxy's own port has the same.
    const fn reason(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::HeadTooLarge => "head_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::TooManyConnections => "too_many_connections",
            Self::ClientGone => "client_gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ready;

    impl Probed for Ready {
        fn ready(&self) -> Result<String, String> {
            Ok("ready".into())
        }
    }

    #[test]
    fn the_metrics_are_shared_only_while_somebody_still_reads_them() {
        let admin = Admin::new(Registry::new(), Arc::new(Ready)).unwrap();
        let first = admin.metrics().unwrap();
        admin.count(Rejection::BadRequest);
        let shared = admin.metrics().unwrap();
        assert!(Arc::ptr_eq(&first, &shared));
        drop((first, shared));
        let fresh = admin.metrics().unwrap();
        assert!(
            fresh.contains("gopherproxy_admin_rejections_total{reason=\"bad_request\"} 1\n"),
            "{fresh}"
        );
    }
}
