//! Every response that the proxy makes itself.
//!
//! One table maps what went wrong to a status, a reason and a line. The client gets a status and that line, which names no backend
//! and no address, with the request's id. The operator gets the reason in metrics and log, and in the log the error's own words.

mod body;
mod limited;

use std::time::Duration;

use chassis::clock::HttpDate;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use pingora::http::ResponseHeader;

pub use body::{Body, Form, Kind, Page, Pages, Prepared};
pub use limited::LimitedAnswers;

/// Why the proxy answers a request itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// The client is over its limit.
    Limited,
    /// No backend is alive.
    NoBackend,
    /// No route is for the request.
    NoRoute,
    /// The request's route has an answer of its own.
    Answered,
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
    /// The route is not for this client (`allow`, `deny`).
    Forbidden,
    /// The route is for users with a password, and this is none of them.
    Unauthorized,
    /// So many passwords are being verified that this one would wait too long.
    AuthBusy,
    /// The route's authentication service (`forward_auth`) has refused the request. The client gets its answer.
    AuthRefused,
    /// The route's authentication service gave no answer that means anything.
    AuthUnavailable,
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
    pub const ALL: [Self; 27] = [
        Self::Limited,
        Self::NoBackend,
        Self::NoRoute,
        Self::Answered,
        Self::BackendsBusy,
        Self::BackendFailed,
        Self::BackendTimeout,
        Self::BadRequest,
        Self::Redirected,
        Self::PlainHttp,
        Self::AcmeChallenge,
        Self::Forbidden,
        Self::Unauthorized,
        Self::AuthBusy,
        Self::AuthRefused,
        Self::AuthUnavailable,
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

    /// The status and its phrase, the reason in metrics and log, and what happened, as the client reads it.
    const fn parts(self) -> (u16, &'static str, &'static str, &'static str) {
        const BUSY: &str = "there are too many connections; try again later";
        match self {
            Self::Limited => (
                429,
                "Too Many Requests",
                "limited",
                "you are over your limit; try again later",
            ),
            Self::NoBackend => (
                503,
                "Service Unavailable",
                "no_backend",
                "no backend is available; try again later",
            ),
            Self::NoRoute => (404, "Not Found", "no_route", "nothing is served at this URL"),
            Self::Answered => (200, "OK", "answered", "the proxy answers this URL itself"),
            Self::BackendsBusy => (
                503,
                "Service Unavailable",
                "backends_busy",
                "every backend is busy; try again later",
            ),
            Self::BackendFailed => (502, "Bad Gateway", "backend_failed", "the backend gave no valid answer"),
            Self::BackendTimeout => (
                504,
                "Gateway Timeout",
                "backend_timeout",
                "the backend took too long to answer",
            ),
            Self::BadRequest => (
                400,
                "Bad Request",
                "bad_request",
                "the request is malformed or ambiguous",
            ),
            Self::Redirected => (308, "Permanent Redirect", "redirected", "use the URL in Location"),
            Self::PlainHttp => (
                400,
                "Bad Request",
                "plain_http",
                "plain HTTP on a port for TLS; use https",
            ),
            Self::AcmeChallenge => (200, "OK", "acme_challenge", "this is the proof"),
            Self::Forbidden => (403, "Forbidden", "forbidden", "this address may not use this URL"),
            Self::Unauthorized => (
                401,
                "Unauthorized",
                "unauthorized",
                "this URL needs a user and a password",
            ),
            Self::AuthBusy => (
                503,
                "Service Unavailable",
                "auth_busy",
                "too many passwords are being verified; try again later",
            ),
            Self::AuthRefused => (403, "Forbidden", "auth_refused", "you may not use this URL"),
            Self::AuthUnavailable => (
                503,
                "Service Unavailable",
                "auth_unavailable",
                "your access can't be checked at the moment; try again later",
            ),
            Self::MethodNotAllowed => (
                405,
                "Method Not Allowed",
                "method_not_allowed",
                "CONNECT and TRACE are not proxied",
            ),
            Self::RequestTimeout => (
                408,
                "Request Timeout",
                "request_timeout",
                "the request took too long to arrive",
            ),
            Self::BodyTooLarge => (
                413,
                "Content Too Large",
                "body_too_large",
                "the body of the request is too large",
            ),
            Self::HeadTooLarge => (
                431,
                "Request Header Fields Too Large",
                "head_too_large",
                "the header fields of the request are too large",
            ),
            Self::UriTooLong => (414, "URI Too Long", "uri_too_long", "the URL is too long"),
            Self::NotImplemented => (
                501,
                "Not Implemented",
                "not_implemented",
                "the request asks for a coding or a protocol that is not supported",
            ),
            Self::TooManyConnections => (503, "Service Unavailable", "too_many_connections", BUSY),
            Self::BadProxyHeader => (
                400,
                "Bad Request",
                "bad_proxy_header",
                "the PROXY protocol header is malformed",
            ),
            // 503 and not 408, because it is the proxy that has too little: the same request may pass in a moment.
            Self::HeldTooMuch => (
                503,
                "Service Unavailable",
                "held_too_much",
                "too many slow requests are waiting; try again later",
            ),
            Self::ClientGone => (499, "Client Closed Request", "client_gone", "the client went away"),
            Self::Internal => (500, "Internal Server Error", "internal", "the proxy has made a mistake"),
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        self.parts().0
    }

    /// The words that belong to the status.
    pub const fn phrase(self) -> &'static str {
        self.parts().1
    }

    /// The word in metrics and log.
    pub const fn reason(self) -> &'static str {
        self.parts().2
    }

    /// What happened, in the words that a client reads.
    pub const fn happened(self) -> &'static str {
        self.parts().3
    }

    /// Whether the request counts as dropped: one that a backend should have answered and none did.
    pub const fn is_drop(self) -> bool {
        matches!(
            self,
            Self::Limited | Self::NoBackend | Self::BackendsBusy | Self::BackendFailed | Self::BackendTimeout
        )
    }

    /// The head of the response with this body to a request that Pingora forwards.
    pub fn header(self, body: &Body<'_>) -> ResponseHeader {
        let mut header = ResponseHeader::build(self.status(), Some(6)).expect("every status here is a valid one");
        header
            .insert_header(header::CONTENT_TYPE, content_type(body))
            .and_then(|()| header.insert_header(header::CONTENT_LENGTH, body.length()))
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
            // UNAUTHENTICATED
            Self::Unauthorized => 16,
            // PERMISSION_DENIED
            Self::Forbidden | Self::AuthRefused => 7,
            // RESOURCE_EXHAUSTED
            Self::Limited | Self::BodyTooLarge | Self::HeadTooLarge | Self::UriTooLong => 8,
            // FAILED_PRECONDITION: the same call can't pass here, but over TLS.
            Self::Redirected => 9,
            // UNIMPLEMENTED
            Self::MethodNotAllowed | Self::NotImplemented | Self::NoRoute | Self::Answered => 12,
            // INTERNAL. (No authority asks for a proof by a call of gRPC, nor over HTTP/2.)
            Self::BadRequest | Self::PlainHttp | Self::AcmeChallenge | Self::BadProxyHeader | Self::Internal => 13,
            // UNAVAILABLE: the same call may pass in a moment.
            Self::NoBackend
            | Self::BackendsBusy
            | Self::BackendFailed
            | Self::TooManyConnections
            | Self::HeldTooMuch
            | Self::AuthBusy
            | Self::AuthUnavailable => 14,
        }
    }

    /// The whole response to a call of gRPC, which has no body ("Trailers-Only"). It may be made again after `retry_after`.
    pub fn grpc_response(self, retry_after: Option<Duration>) -> Response<()> {
        let mut response = Response::new(());
        let fields = response.headers_mut();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        fields.insert("grpc-status", self.grpc_status().into());
        // It has no character that needs to be encoded.
        fields.insert("grpc-message", HeaderValue::from_static(self.happened()));
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
    pub fn answer(self, body: &Body<'_>, delivery: Delivery) -> Vec<u8> {
        self.answer_with(self.own_fields(), body, delivery)
    }

    /// The head of the response with this body to a client of HTTP/2.
    pub fn response(self, body: &Body<'_>) -> Response<()> {
        self.response_with(self.own_fields(), body)
    }

    /// The head of the response that sends a client of HTTP/2 to the URL `location`.
    pub fn redirecting(location: &str, body: &Body<'_>) -> Response<()> {
        Self::Redirected.response_with(&format!("Location: {location}\r\n"), body)
    }

    fn response_with(self, lines: &str, body: &Body<'_>) -> Response<()> {
        let mut response = Response::new(());
        let status = body.status().map_or(self.status(), |(status, _)| status);
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        let fields = response.headers_mut();
        if status != NO_CONTENT {
            fields.insert(header::CONTENT_TYPE, content_type(body));
            fields.insert(header::CONTENT_LENGTH, body.length().into());
        }
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
            Self::Unauthorized => "WWW-Authenticate: Basic realm=\"Restricted\", charset=\"UTF-8\"\r\n",
            Self::MethodNotAllowed => "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n",
            _ => "",
        }
    }

    /// The response that sends a client to the URL `location`.
    pub fn redirect(location: &str, body: &Body<'_>, delivery: Delivery) -> Vec<u8> {
        Self::Redirected.answer_with(&format!("Location: {location}\r\n"), body, delivery)
    }

    fn answer_with(self, fields: &str, body: &Body<'_>, delivery: Delivery) -> Vec<u8> {
        let (status, phrase) = body.status().unwrap_or((self.status(), self.phrase()));
        let (mut digits, mut size) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (date, length) = (HttpDate::now(), body.length());
        let described: [&[u8]; 4] = match status {
            NO_CONTENT => [b""; 4],
            _ => [
                b"\r\nContent-Type: ",
                body.content_type().as_bytes(),
                b"\r\nContent-Length: ",
                size.format(length).as_bytes(),
            ],
        };
        let [kind, kind_value, size, size_value] = described;
        let parts: [&[u8]; 13] = [
            b"HTTP/1.1 ",
            digits.format(status).as_bytes(),
            b" ",
            phrase.as_bytes(),
            kind,
            kind_value,
            size,
            size_value,
            b"\r\nDate: ",
            date.as_bytes(),
            b"\r\n",
            fields.as_bytes(),
            if delivery.keeps {
                b"Connection: keep-alive\r\n\r\n"
            } else {
                b"Connection: close\r\n\r\n"
            },
        ];
        let mut answer = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + length);
        for part in parts {
            answer.extend_from_slice(part);
        }
        if !delivery.head_only {
            body.write(&mut answer);
        }
        answer
    }
}

/// This one has neither a body nor fields about it (RFC 9110, section 8.6).
const NO_CONTENT: u16 = 204;

fn content_type(body: &Body<'_>) -> HeaderValue {
    HeaderValue::from_str(body.content_type()).unwrap_or(HeaderValue::from_static("text/plain"))
}

/// How a response of the proxy's own is delivered.
#[derive(Debug, Clone, Copy)]
pub struct Delivery {
    /// The connection is kept.
    pub keeps: bool,
    /// The request is HEAD, so that there is no body.
    pub head_only: bool,
    /// The form that the client reads it in.
    pub form: Form,
}

impl Delivery {
    /// To a client from which nothing more is read.
    pub const LAST: Self = Self {
        keeps: false,
        head_only: false,
        form: Form::Text,
    };

    /// Whether there is no body.
    pub fn is_bodiless(self) -> bool {
        self.head_only || self.form == Form::Grpc
    }
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
        for rejection in Rejection::ALL {
            let expected = Body::Line(rejection, "7f3a");
            assert_eq!(rejection.header(&expected).status.as_u16(), rejection.status());
            let answer = String::from_utf8(rejection.answer(&expected, Delivery::LAST)).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} {}\r\n", rejection.status(), rejection.phrase())));
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
            assert!(head.contains("\r\nDate: ") && head.ends_with("\r\nConnection: close"));
            let expected = format!("{}: {} (request 7f3a)\n", rejection.phrase(), rejection.happened());
            assert_eq!(body, expected);
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
            assert!(!message.contains('%') && message == rejection.happened());
            let unavailable = rejection.status() == 503 || rejection == Rejection::BackendFailed;
            assert_eq!(rejection.grpc_status() == 14, unavailable, "{rejection:?}");
        }
        assert_eq!(Rejection::Limited.grpc_status(), 8);
        assert_eq!(Rejection::BackendTimeout.grpc_status(), 4);
    }
}
