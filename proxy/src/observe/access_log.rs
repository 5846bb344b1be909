//! The access log: one line per request.
//!
//! [`chassis::json_log`] escapes every string and writes off the request's path. To `RUST_LOG` the line has the target `access`, so
//! that `RUST_LOG=access=off` silences it.

use std::time::Duration;

use chassis::json_log;

use crate::tls::Agreed;

/// Longer texts are cut: a line is for reading, and long lines would push others out of the queue.
const MAX_PATH: usize = 2048;
const MAX_METHOD: usize = 64;
const MAX_ERROR: usize = 1024;

/// The fields that are logged for a request.
#[derive(Debug)]
pub struct Line<'r> {
    /// The method, or `-`.
    pub method: &'r str,
    /// The target; what follows a `?` is not logged, because queries carry secrets.
    pub target: &'r str,
    /// The peer of the connection: an address with its port.
    pub remote_addr: &'r str,
    /// The version of HTTP: `h1` or `h2`.
    pub protocol: &'r str,
    /// What the client got; 499 when it went away before there was an answer.
    pub status: u16,
    /// From the head of the request to the end of the response.
    pub duration: Duration,
    /// The client: an address.
    pub client: &'r str,
    /// The backend that answered, or the last one that was tried.
    pub backend: Option<&'r str>,
    /// The X-Request-Id that the backend saw.
    pub request_id: Option<&'r str>,
    /// How long the response body was, in bytes.
    pub bytes: Option<u64>,
    /// The status of a call of gRPC.
    pub grpc_status: Option<u16>,
    /// Why the proxy answered itself.
    pub reason: Option<&'static str>,
    /// The words of the error behind the reason.
    pub error: Option<&'r str>,
    /// What was agreed on in the handshake of the connection.
    pub tls: Option<&'r Agreed>,
    /// The route, where there are routes.
    pub route: Option<&'r str>,
    /// The pool, where there is more than one.
    pub pool: Option<&'r str>,
}

impl Line<'_> {
    /// Writes the line, unless `RUST_LOG` turns the access log off.
    pub fn write(&self) {
        json_log::access("request", |line| {
            line.text("method", json_log::cut(self.method, MAX_METHOD));
            line.text("path", self.path());
            line.plain("remote_addr", self.remote_addr);
            line.number("status", self.status.into());
            line.millis("duration_ms", self.duration);
            line.plain("client", self.client);
            if let Some(backend) = self.backend {
                line.plain("backend", backend);
            }
            if let Some(id) = self.request_id {
                line.text("request_id", id);
            }
            if let Some(bytes) = self.bytes {
                line.number("bytes", bytes);
            }
            if let Some(status) = self.grpc_status {
                line.number("grpc_status", status.into());
            }
            if let Some(reason) = self.reason {
                line.text("reason", reason);
            }
            if let Some(error) = self.error {
                line.text("error", json_log::cut(error, MAX_ERROR));
            }
            if self.tls.is_some() || self.protocol != "h1" {
                line.plain("protocol", self.protocol);
            }
            if let Some(tls) = self.tls {
                line.plain("tls", tls.version);
                if let Some(sni) = &tls.sni {
                    line.text("sni", sni);
                }
            }
            if let Some(route) = self.route {
                line.plain("route", route);
            }
            if let Some(pool) = self.pool {
                line.plain("pool", pool);
            }
        });
    }

    /// The target without authority (which may hold a password) and query, cut at [`MAX_PATH`].
    fn path(&self) -> &str {
        let absolute = || {
            let (scheme, rest) = self.target.split_once("://")?;
            (!scheme.contains(['/', '?'])).then(|| rest.find(['/', '?']).map_or("/", |start| &rest[start..]))
        };
        // Nearly all begin with a slash, and need no search.
        let path = if self.target.starts_with('/') {
            self.target
        } else {
            absolute().unwrap_or(self.target)
        };
        let path = memchr::memchr(b'?', path.as_bytes()).map_or(path, |query| &path[..query]);
        json_log::cut(path, MAX_PATH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_left_out_and_a_long_path_is_cut_between_characters() {
        let path = |target: &str| {
            let line = Line {
                method: "GET",
                target,
                remote_addr: "127.0.0.1:1",
                protocol: "h1",
                status: 200,
                duration: Duration::ZERO,
                client: "127.0.0.1",
                backend: None,
                request_id: None,
                bytes: None,
                grpc_status: None,
                reason: None,
                error: None,
                tls: None,
                route: None,
                pool: None,
            };
            line.path().to_owned()
        };
        assert_eq!(path("/a?password=x"), "/a");
        assert_eq!(path("/a"), "/a");
        assert_eq!(path("*"), "*");
        assert_eq!(path("http://user:secret@host/a?b"), "/a");
        assert_eq!(path("http://user:secret@host"), "/");
        assert_eq!(path("/a?to=http://user@host/"), "/a");
        let long = format!("/{}", "\u{e4}".repeat(5000));
        // Each takes six bytes in the log.
        assert_eq!(path(&long).len(), 1 + 2 * ((MAX_PATH - 1) / 6));
        assert_eq!(path(&format!("/{}", "a".repeat(5000))).len(), MAX_PATH);
    }
}
