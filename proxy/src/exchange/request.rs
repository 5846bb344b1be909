//! An admitted request, as the origin gets it.

use std::sync::Arc;

use bytes::Bytes;

use crate::compression::accept::Coding;
use crate::config::Forwarder;
use crate::pool::balance::Affinity;
use crate::pool::endpoint::Endpoint;
use crate::rejection::Form;
use crate::snapshot::Policy;
use crate::snapshot::route::Route;

/// A request that goes to an origin, without its body, which the client is still to send.
#[derive(Clone)]
pub struct Request {
    /// Its head, from the request line to the empty line.
    pub head: Bytes,
    /// What it takes while it is in flight, in bytes, with the head that the client has sent.
    pub weight: usize,
    /// The rules that it is served by.
    pub policy: Arc<Policy>,
    /// Where it goes, and what that may take.
    pub route: Arc<Route>,
    /// The backend whose turn it is, at one of its addresses.
    pub endpoint: Endpoint,
    /// What ties it to backends.
    pub affinity: Affinity,
    /// Who forwards it.
    pub forwarder: Forwarder,
    /// It is a call of gRPC over HTTP/2.
    pub grpc: bool,
    /// The method is HEAD, so that no response has a body.
    pub to_head: bool,
    /// Its method is idempotent (RFC 9110, section 9.2.2).
    pub idempotent: bool,
    /// The body is chunked.
    pub chunked: bool,
    /// The client speaks HTTP/1.0.
    pub old: bool,
    /// Another request may follow on the client's connection.
    pub keeps: bool,
    /// The client has said that none will.
    pub last: bool,
    /// The client may wait for "100 Continue" before it sends the body.
    pub expects: bool,
    /// The protocol that the client asks to switch to.
    pub upgrade: Option<Bytes>,
    /// What its route does beside forwarding it, if it does anything.
    pub shaped: Option<Box<Shaped>>,
    /// For so many seconds the client should use TLS and nothing else.
    pub hsts: Option<u64>,
}

/// What a route does to a request and its response, beside what stands in the head.
#[derive(Debug, Clone)]
pub struct Shaped {
    /// What the client has to show before the request goes to a backend.
    pub guarded: Option<Box<Guarded>>,
    /// The fields that the route adds to the response, each a line with its CRLF.
    pub response_fields: Bytes,
    /// The route compresses responses: with this coding, if the client accepts one.
    pub compress: Option<Option<Coding>>,
}

/// What is looked at before a request goes to a backend.
#[derive(Debug, Clone)]
pub struct Guarded {
    /// What the client says of itself (`Authorization`), where its route asks for a password.
    pub authorization: Option<Bytes>,
    /// What the route's authentication service is asked.
    pub question: Option<Bytes>,
}

impl Request {
    /// The form in which its client reads why there is no response.
    pub fn form(&self) -> Form {
        if self.grpc {
            Form::Grpc
        } else {
            Form::of_head(&self.head)
        }
    }
}

/// Whether `method` is known to be idempotent.
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
}

/// Identifies a request, here and at the origin.
#[derive(Debug, Clone)]
pub enum RequestId {
    /// 128 random bits, in hexadecimal digits.
    Made([u8; 32]),
    /// Given by a trusted peer.
    Given(Box<[u8]>),
}

impl RequestId {
    /// A longer one is not taken, even from a trusted peer: it goes into the log.
    const LONGEST: usize = 128;

    /// A new one.
    pub fn random() -> Self {
        let mut text = [0; 32];
        for (place, byte) in text.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
            place.copy_from_slice(&HEX[usize::from(byte)]);
        }
        Self::Made(text)
    }

    /// The id that a trusted peer has `given`, if it is a valid one.
    pub fn given(given: &[u8]) -> Option<Self> {
        let is_id = (1..=Self::LONGEST).contains(&given.len()) && given.iter().all(u8::is_ascii_graphic);
        is_id.then(|| Self::Given(given.into()))
    }

    /// Its text, in ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Made(text) => text,
            Self::Given(text) => text,
        }
    }

    /// The same as a string.
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// Each byte in two hexadecimal digits.
static HEX: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut all = [[0; 2]; 256];
    let mut byte = 0;
    while byte < all.len() {
        all[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_that_could_be_mischief_is_none() {
        for id in ["", "a b", "\u{e4}", "a\r\n", &"x".repeat(RequestId::LONGEST + 1)] {
            assert!(RequestId::given(id.as_bytes()).is_none(), "{id:?}");
        }
        assert_eq!(
            RequestId::given(b"abc-123").map(|id| id.as_str().to_owned()).as_deref(),
            Some("abc-123")
        );
        let (one, other) = (RequestId::random(), RequestId::random());
        assert_eq!(one.as_str().len(), 32);
        assert_ne!(one.as_str(), other.as_str());
    }

    #[test]
    fn methods_that_may_be_repeated() {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            assert!(is_idempotent(method), "{method}");
        }
        for method in ["POST", "PATCH", "get", "PROPFIND", ""] {
            assert!(!is_idempotent(method), "{method}");
        }
    }
}
