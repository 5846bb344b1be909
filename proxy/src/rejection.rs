//! Every response that the proxy makes itself.
//!
//! One table maps what went wrong to a status, a reason and a body. The client gets a status and one short line that names no
//! backend and no address. The operator gets the reason in metrics and log, and in the log the error's own words.

use std::borrow::Cow;
use std::time::Duration;

use chassis::clock::HttpDate;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use pingora::http::ResponseHeader;

/// Why the proxy answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The client is over its limit.
    Limited,
    /// No backend is alive.
    NoBackend,
    /// Each backend has as many requests in flight as it may.
    BackendsBusy,
    /// The backend, and those tried after it, broke.
    BackendFailed,
    /// The backend took too long.
    BackendTimeout,
    /// The request can't be understood, or could be in two ways.
    BadRequest,
    /// The client should use HTTPS.
    Redirected,
    /// Plain HTTP on the port for TLS.
    PlainHttp,
    /// An authority asks for a proof that a host is this proxy's, which is the body.
    AcmeChallenge,
    /// CONNECT and TRACE are not proxied.
    MethodNotAllowed,
    /// The client took too long to send its request.
    RequestTimeout,
    /// The request body is longer than `client.max_body`.
    BodyTooLarge,
    /// The request head is longer than `client.max_head`, or has too many fields.
    HeadTooLarge,
    /// The request line alone is longer than `client.max_head`, or the target is longer than any can be.
    UriTooLong,
    /// The request has a transfer coding that this proxy does not have.
    NotImplemented,
    /// There are too many connections, in all or from this client.
    TooManyConnections,
    /// A balancer in `proxy_protocol` did not begin its connection with the header. It is sent nothing: it may not speak HTTP.
    BadProxyHeader,
    /// Clients make the proxy hold more than `client.max_held`, and this one has waited longest.
    HeldTooMuch,
    /// The client went away before there was an answer. Nobody sees the status; the log says 499.
    ClientGone,
    /// A mistake of ours.
    Internal,
}

impl Rejection {
    /// All of them, so that each has its series from the start.
    pub const ALL: [Self; 20] = [
        Self::Limited,
        Self::NoBackend,
        Self::BackendsBusy,
        Self::BackendFailed,
        Self::BackendTimeout,
        Self::BadRequest,
        Self::Redirected,
        Self::PlainHttp,
        Self::AcmeChallenge,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::BodyTooLarge,
        Self::HeadTooLarge,
        Self::UriTooLong,
        Self::NotImplemented,
        Self::TooManyConnections,
        Self::BadProxyHeader,
        Self::HeldTooMuch,
        Self::ClientGone,
        Self::Internal,
    ];

    /// The status, the reason in metrics and log, and the line that the client reads.
    const fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Limited => (429, "limited", "Too Many Requests\n"),
            Self::NoBackend => (503, "no_backend", "Service Unavailable\n"),
            Self::BackendsBusy => (503, "backends_busy", "Service Unavailable\n"),
            Self::BackendFailed => (502, "backend_failed", "Bad Gateway\n"),
            Self::BackendTimeout => (504, "backend_timeout", "Gateway Timeout\n"),
            Self::BadRequest => (400, "bad_request", "Bad Request\n"),
            Self::Redirected => (308, "redirected", "Permanent Redirect\n"),
            Self::PlainHttp => (400, "plain_http", "Plain HTTP on a port for TLS; use https\n"),
            Self::AcmeChallenge => (200, "acme_challenge", "OK\n"),
            Self::MethodNotAllowed => (405, "method_not_allowed", "Method Not Allowed\n"),
            Self::RequestTimeout => (408, "request_timeout", "Request Timeout\n"),
            Self::BodyTooLarge => (413, "body_too_large", "Content Too Large\n"),
            Self::HeadTooLarge => (431, "head_too_large", "Request Header Fields Too Large\n"),
            Self::UriTooLong => (414, "uri_too_long", "URI Too Long\n"),
            Self::NotImplemented => (501, "not_implemented", "Not Implemented\n"),
            Self::TooManyConnections => (503, "too_many_connections", "Service Unavailable\n"),
            Self::BadProxyHeader => (400, "bad_proxy_header", "Bad Request\n"),
            // 503 and not 408, because it is the proxy that has too little: the same request may pass in a moment.
            Self::HeldTooMuch => (503, "held_too_much", "Service Unavailable\n"),
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
            Self::Limited | Self::NoBackend | Self::BackendsBusy | Self::BackendFailed | Self::BackendTimeout
        )
    }

    /// The head of the response to a request that Pingora forwards; its body is [`Rejection::body`].
    pub fn header(self) -> ResponseHeader {
        let mut header = ResponseHeader::build(self.status(), Some(6)).expect("every status here is a valid one");
        header
            .insert_header(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))
            .and_then(|()| header.insert_header(header::CONTENT_LENGTH, self.body().len()))
            .expect("names and values are literals");
        header
    }

    /// The status that a call of gRPC gets (its specification, "Status codes").
    pub const fn grpc_status(self) -> u16 {
        match self {
            // CANCELLED
            Self::ClientGone => 1,
            // DEADLINE_EXCEEDED
            Self::BackendTimeout | Self::RequestTimeout => 4,
            // RESOURCE_EXHAUSTED
            Self::Limited | Self::BodyTooLarge | Self::HeadTooLarge | Self::UriTooLong => 8,
            // FAILED_PRECONDITION: the same call can't pass here, but over TLS.
            Self::Redirected => 9,
            // UNIMPLEMENTED
            Self::MethodNotAllowed | Self::NotImplemented => 12,
            // INTERNAL. (No authority asks for a proof by a call of gRPC, nor over HTTP/2.)
            Self::BadRequest | Self::PlainHttp | Self::AcmeChallenge | Self::BadProxyHeader | Self::Internal => 13,
            // UNAVAILABLE: the same call may pass in a moment.
            Self::NoBackend
            | Self::BackendsBusy
            | Self::BackendFailed
            | Self::TooManyConnections
            | Self::HeldTooMuch => 14,
        }
    }

    /// The whole response to a call of gRPC, which has no body ("Trailers-Only"). It may be made again after `retry_after`.
    pub fn grpc_response(self, retry_after: Option<Duration>) -> Response<()> {
        let mut response = Response::new(());
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert("grpc-status", self.grpc_status().into());
        // Words and spaces, which need no encoding.
        let message = HeaderValue::from_static(self.body().trim_ascii_end());
        fields.insert("grpc-message", message);
        if let Some(retry_after) = retry_after {
            let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            fields.insert("grpc-retry-pushback-ms", (millis + 1).into());
        }
        response
    }

    /// The same where Pingora has the call. The length says that the head is all.
    pub fn grpc_header(self) -> ResponseHeader {
        let mut response = self.grpc_response(None);
        response.headers_mut().insert(header::CONTENT_LENGTH, 0.into());
        response.into_parts().0.into()
    }

    /// The whole response, as bytes.
    pub fn answer(self, delivery: Delivery) -> Vec<u8> {
        self.answer_with(self.own_fields(), delivery)
    }

    /// The head of the response to a client of HTTP/2; its body is [`Rejection::body`].
    pub fn response(self) -> Response<()> {
        self.response_with(self.own_fields())
    }

    /// The head of the response that sends a client of HTTP/2 to the URL `location`.
    pub fn redirecting(location: &str) -> Response<()> {
        Self::Redirected.response_with(&format!("Location: {location}\r\n"))
    }

    fn response_with(self, lines: &str) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(self.status()).unwrap_or_default();
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        fields.insert(header::CONTENT_LENGTH, self.body().len().into());
        let date = HttpDate::now();
        let own = lines.lines().filter_map(|line| line.split_once(": "));
        for (name, value) in own
            .map(|(name, value)| (name, value.as_bytes()))
            .chain([("Date", date.as_bytes())])
        {
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                fields.insert(name, value);
            }
        }
        response
    }

    /// Its own fields, each a line with its CRLF.
    const fn own_fields(self) -> &'static str {
        match self {
            Self::MethodNotAllowed => "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n",
            _ => "",
        }
    }

    /// The response that sends a client to the URL `location`.
    pub fn redirect(location: &str, delivery: Delivery) -> Vec<u8> {
        Self::Redirected.answer_with(&format!("Location: {location}\r\n"), delivery)
    }

    /// The whole response to an authority that asks for this proof.
    pub fn proof(proof: &[u8], delivery: Delivery) -> Vec<u8> {
        Self::AcmeChallenge.answer_of("", proof, delivery)
    }

    fn answer_with(self, fields: &str, delivery: Delivery) -> Vec<u8> {
        self.answer_of(fields, self.body().as_bytes(), delivery)
    }

    fn answer_of(self, fields: &str, body: &[u8], delivery: Delivery) -> Vec<u8> {
        let (status, _, line) = self.parts();
        let (mut digits, mut length) = (itoa::Buffer::new(), itoa::Buffer::new());
        let date = HttpDate::now();
        let parts: [&[u8]; 12] = [
            b"HTTP/1.1 ",
            digits.format(status).as_bytes(),
            b" ",
            line.trim_ascii_end().as_bytes(),
            b"\r\nContent-Type: text/plain\r\nContent-Length: ",
            length.format(body.len()).as_bytes(),
            b"\r\nDate: ",
            date.as_bytes(),
            b"\r\n",
            fields.as_bytes(),
            if delivery.keeps {
                b"Connection: keep-alive\r\n\r\n"
            } else {
                b"Connection: close\r\n\r\n"
            },
            if delivery.head_only { b"" } else { body },
        ];
        parts.concat()
    }
}

/// How a response of the proxy's own is delivered.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// The connection is kept.
    pub keeps: bool,
    /// The request is HEAD, so that there is no body.
    pub head_only: bool,
    /// The request is a call of gRPC over HTTP/2, whose response has a status of its own and no body.
    pub grpc: bool,
}

impl Delivery {
    /// To a client from which nothing more is read.
    pub const LAST: Self = Self {
        keeps: false,
        head_only: false,
        grpc: false,
    };
}

/// Prepared responses to clients over their limit: in a flood they are most of what a proxy sends.
#[derive(Debug)]
pub struct LimitedAnswers {
    policy: String,
    /// Their own fields, by the seconds of their `Retry-After`, less one.
    prepared: Vec<String>,
}

impl LimitedAnswers {
    /// Waits up to this many seconds have a prepared answer.
    const PREPARED: u64 = 10;

    /// For buckets of `burst` requests that fill up in `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        // The draft's window is in whole seconds; rounded up, it promises no more than the bucket gives.
        let policy = format!("\"client\";q={burst};w={}", whole_seconds(refill));
        let prepared = (1..=Self::PREPARED).map(|seconds| fields(&policy, seconds)).collect();
        Self { policy, prepared }
    }

    /// A 429 for a client that will be served after `retry_after`.
    pub fn answer(&self, retry_after: Duration, delivery: Delivery) -> Vec<u8> {
        Rejection::Limited.answer_with(&self.fields(retry_after), delivery)
    }

    /// The head of the same for a client of HTTP/2.
    pub fn response(&self, retry_after: Duration) -> Response<()> {
        Rejection::Limited.response_with(&self.fields(retry_after))
    }

    fn fields(&self, retry_after: Duration) -> Cow<'_, str> {
        let seconds = whole_seconds(retry_after);
        let prepared = usize::try_from(seconds - 1)
            .ok()
            .and_then(|index| self.prepared.get(index));
        match prepared {
            Some(fields) => Cow::Borrowed(fields),
            None => Cow::Owned(fields(&self.policy, seconds)),
        }
    }
}

/// `Retry-After`, and `RateLimit` and `RateLimit-Policy` of the IETF's draft-ietf-httpapi-ratelimit-headers.
fn fields(policy: &str, seconds: u64) -> String {
    format!("Retry-After: {seconds}\r\nRateLimit-Policy: {policy}\r\nRateLimit: \"client\";r=0;t={seconds}\r\n")
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
            let answer = String::from_utf8(rejection.answer(Delivery::LAST)).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} {}\r\n", rejection.status(), body.trim_end())));
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
            assert!(head.contains("\r\nDate: ") && head.ends_with("\r\nConnection: close"));
            assert_eq!(body, rejection.body());
        }
    }

    #[test]
    fn a_refused_call_of_grpc_gets_a_status_of_its_own() {
        for rejection in Rejection::ALL {
            let response = rejection.grpc_response(Some(Duration::from_micros(1500)));
            assert_eq!(response.status(), 200);
            let field = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(field("content-type"), "application/grpc");
            assert_eq!(field("grpc-status"), rejection.grpc_status().to_string());
            assert_eq!(field("grpc-retry-pushback-ms"), "2");
            let message = field("grpc-message");
            assert!(!message.contains('%') && message == rejection.body().trim_end());
            let unavailable = rejection.status() == 503 || rejection == Rejection::BackendFailed;
            assert_eq!(rejection.grpc_status() == 14, unavailable, "{rejection:?}");
        }
        assert_eq!(Rejection::Limited.grpc_status(), 8);
        assert_eq!(Rejection::BackendTimeout.grpc_status(), 4);
    }

    #[test]
    fn a_limited_client_is_told_whole_seconds_rounded_up() {
        let answers = LimitedAnswers::new(5, Duration::from_millis(2500));
        let delivery = Delivery {
            keeps: true,
            head_only: true,
            grpc: false,
        };
        for (millis, seconds) in [(1, "1"), (500, "1"), (1000, "1"), (1001, "2"), (60_000, "60")] {
            let answer = String::from_utf8(answers.answer(Duration::from_millis(millis), delivery)).unwrap();
            for line in [
                &format!("\r\nRetry-After: {seconds}\r\n"),
                &format!("\r\nRateLimit: \"client\";r=0;t={seconds}\r\n"),
                "\r\nRateLimit-Policy: \"client\";q=5;w=3\r\n",
            ] {
                assert!(answer.contains(line), "{line:?} not in {answer}");
            }
            assert!(answer.ends_with("\r\nConnection: keep-alive\r\n\r\n"));
        }
    }
}
