//! Every answer that is the proxy's own.
//!
//! One place maps what went wrong to a status, a reason and a body. Two audiences are kept apart: the client gets a status and
//! one short line that names no backend and no address; the operator gets the reason in the metrics and the log, and
//! there the error's own words.

use std::time::Duration;

use http::{HeaderValue, header};
use pingora::ErrorSource;
use pingora::http::ResponseHeader;
use pingora::prelude::{Error, ErrorType};

use crate::gate::{is_bad_framing, is_too_slow};

/// Why the proxy answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The client is over its limit.
    Limited,
    /// No backend is alive.
    NoBackend,
    /// The backend, and those tried after it, broke.
    BackendFailed,
    /// The backend took too long.
    BackendTimeout,
    /// The request can't be understood, or could be in two ways.
    BadRequest,
    /// CONNECT and TRACE are not proxied.
    MethodNotAllowed,
    /// The client took too long to send its request.
    RequestTimeout,
    /// The request body is longer than `client.max_body`.
    BodyTooLarge,
    /// The request head is longer than `client.max_head`, or has too many fields.
    HeadTooLarge,
    /// There are too many connections, in all or from this client.
    TooManyConnections,
    /// The client went away before there was an answer. Nobody sees the status; the log says 499.
    ClientGone,
    /// A mistake of ours.
    Internal,
}

impl Rejection {
    /// All of them, so that each has its series from the start.
    pub const ALL: [Self; 12] = [
        Self::Limited,
        Self::NoBackend,
        Self::BackendFailed,
        Self::BackendTimeout,
        Self::BadRequest,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::BodyTooLarge,
        Self::HeadTooLarge,
        Self::TooManyConnections,
        Self::ClientGone,
        Self::Internal,
    ];

    /// The status, the reason in metrics and log, and the line that the client reads.
    const fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Limited => (429, "limited", "Too Many Requests\n"),
            Self::NoBackend => (503, "no_backend", "Service Unavailable\n"),
            Self::BackendFailed => (502, "backend_failed", "Bad Gateway\n"),
            Self::BackendTimeout => (504, "backend_timeout", "Gateway Timeout\n"),
            Self::BadRequest => (400, "bad_request", "Bad Request\n"),
            Self::MethodNotAllowed => (405, "method_not_allowed", "Method Not Allowed\n"),
            Self::RequestTimeout => (408, "request_timeout", "Request Timeout\n"),
            Self::BodyTooLarge => (413, "body_too_large", "Content Too Large\n"),
            Self::HeadTooLarge => (431, "head_too_large", "Request Header Fields Too Large\n"),
            Self::TooManyConnections => (503, "too_many_connections", "Service Unavailable\n"),
            Self::ClientGone => (499, "client_gone", ""),
            Self::Internal => (500, "internal", "Internal Server Error\n"),
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        self.parts().0
    }

    /// The word in metrics and log.
    pub const fn reason(self) -> &'static str {
        self.parts().1
    }

    /// The body: one short line.
    pub const fn body(self) -> &'static str {
        self.parts().2
    }

    /// Whether the request counts as dropped: one that a backend should have answered and none did.
    pub const fn is_drop(self) -> bool {
        matches!(
            self,
            Self::Limited | Self::NoBackend | Self::BackendFailed | Self::BackendTimeout
        )
    }

    /// What a failure inside Pingora means to the client.
    pub fn of(error: &Error) -> Self {
        match (error.etype(), error.esource()) {
            (ErrorType::HTTPStatus(413), _) => Self::BodyTooLarge,
            (ErrorType::ReadError, ErrorSource::Downstream) if is_bad_framing(error.root_cause()) => Self::BadRequest,
            (ErrorType::ReadError, ErrorSource::Downstream) if is_too_slow(error.root_cause()) => Self::RequestTimeout,
            (
                ErrorType::ReadTimedout | ErrorType::WriteTimedout | ErrorType::ConnectTimedout,
                ErrorSource::Upstream,
            ) => Self::BackendTimeout,
            (_, ErrorSource::Upstream) => Self::BackendFailed,
            (ErrorType::ReadTimedout, ErrorSource::Downstream) => Self::RequestTimeout,
            (
                ErrorType::ReadError | ErrorType::WriteError | ErrorType::WriteTimedout | ErrorType::ConnectionClosed,
                ErrorSource::Downstream,
            ) => Self::ClientGone,
            (_, ErrorSource::Downstream) => Self::BadRequest,
            (_, ErrorSource::Internal | ErrorSource::Unset) => Self::Internal,
        }
    }

    /// The head of the answer; its body is [`Rejection::body`].
    pub fn header(self) -> ResponseHeader {
        let mut header = ResponseHeader::build(self.status(), Some(6)).expect("every status here is a valid one");
        header
            .insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))
            .and_then(|()| header.insert_header(header::CONTENT_LENGTH, self.body().len()))
            .and_then(|()| match self {
                Self::MethodNotAllowed => {
                    header.insert_header(header::ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
                }
                _ => Ok(()),
            })
            .expect("names and values are literals");
        header
    }

    /// The whole answer as bytes, for a connection that Pingora has not seen yet. It closes the connection.
    pub fn raw(self) -> Vec<u8> {
        let (status, _, body) = self.parts();
        let phrase = body.trim_end();
        let allow = match self {
            Self::MethodNotAllowed => "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n",
            _ => "",
        };
        format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\n{allow}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }
}

/// The answers to clients over their limit, prepared: saying no is what a proxy does most when it matters most.
#[derive(Debug)]
pub struct LimitedAnswers {
    policy: HeaderValue,
    /// By the seconds of their `Retry-After`, less one.
    prepared: Vec<ResponseHeader>,
}

impl LimitedAnswers {
    /// Waits up to this many seconds have a prepared answer.
    const PREPARED: u64 = 10;

    /// For buckets of `burst` requests that fill up in `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        // The draft's window is in whole seconds; rounded up, it promises no more than the bucket gives.
        let window = whole_seconds(refill);
        let policy = HeaderValue::from_str(&format!("\"client\";q={burst};w={window}"))
            .expect("digits and punctuation are a valid value");
        let prepared = (1..=Self::PREPARED)
            .map(|seconds| Self::build(&policy, seconds))
            .collect();
        Self { policy, prepared }
    }

    /// The head of a 429 for a client that will be served after `retry_after`.
    pub fn header(&self, retry_after: Duration) -> ResponseHeader {
        let seconds = whole_seconds(retry_after);
        usize::try_from(seconds - 1)
            .ok()
            .and_then(|index| self.prepared.get(index))
            .cloned()
            .unwrap_or_else(|| Self::build(&self.policy, seconds))
    }

    /// `Retry-After`, and `RateLimit` and `RateLimit-Policy` of the IETF's draft-ietf-httpapi-ratelimit-headers.
    fn build(policy: &HeaderValue, seconds: u64) -> ResponseHeader {
        let mut header = Rejection::Limited.header();
        header
            .insert_header(header::RETRY_AFTER, seconds)
            .and_then(|()| header.insert_header("RateLimit-Policy", policy))
            .and_then(|()| header.insert_header("RateLimit", format!("\"client\";r=0;t={seconds}")))
            .expect("names are literals, values digits and punctuation");
        header
    }
}

/// Rounded up, and at least one.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_a_reason_of_its_own_and_a_body_of_one_line() {
        let mut reasons: Vec<_> = Rejection::ALL.iter().map(|rejection| rejection.reason()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), Rejection::ALL.len());
        for rejection in Rejection::ALL.into_iter().filter(|one| *one != Rejection::ClientGone) {
            assert_eq!(rejection.body().matches('\n').count(), 1);
            assert_eq!(rejection.header().status.as_u16(), rejection.status());
            let raw = String::from_utf8(rejection.raw()).unwrap();
            assert!(raw.starts_with(&format!("HTTP/1.1 {} ", rejection.status())));
            assert!(raw.ends_with(&format!("\r\n\r\n{}", rejection.body())));
        }
    }

    #[test]
    fn timeouts_of_a_backend_are_504_and_its_other_failures_502() {
        let rejection = |etype, source: ErrorSource| {
            let mut error = Error::new(etype);
            error.esource = source;
            Rejection::of(&error).status()
        };
        use ErrorSource::{Downstream, Internal, Upstream};
        assert_eq!(rejection(ErrorType::ReadTimedout, Upstream), 504);
        assert_eq!(rejection(ErrorType::ConnectTimedout, Upstream), 504);
        assert_eq!(rejection(ErrorType::ConnectRefused, Upstream), 502);
        assert_eq!(rejection(ErrorType::InvalidHTTPHeader, Upstream), 502);
        assert_eq!(rejection(ErrorType::ReadTimedout, Downstream), 408);
        assert_eq!(rejection(ErrorType::InvalidHTTPHeader, Downstream), 400);
        assert_eq!(rejection(ErrorType::ConnectionClosed, Downstream), 499);
        assert_eq!(rejection(ErrorType::HTTPStatus(413), Downstream), 413);
        assert_eq!(rejection(ErrorType::InternalError, Internal), 500);
    }

    #[test]
    fn a_limited_client_is_told_whole_seconds_rounded_up() {
        let answers = LimitedAnswers::new(5, Duration::from_millis(2500));
        for (millis, seconds) in [(1, "1"), (500, "1"), (1000, "1"), (1001, "2"), (60_000, "60")] {
            let header = answers.header(Duration::from_millis(millis));
            assert_eq!(header.headers["retry-after"], seconds);
            assert_eq!(header.headers["ratelimit"], format!("\"client\";r=0;t={seconds}"));
            assert_eq!(header.headers["ratelimit-policy"], "\"client\";q=5;w=3");
        }
    }
}
