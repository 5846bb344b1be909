//! Request heads and bodies, as they arrive on a client's connection in pieces.
//!
//! The first line of the input says how the rest, the stream, is cut: each of its bytes is the length of a piece, `a` for
//! one byte to `z` for 26, over and over. Whatever the cuts are, the proxy comes to the same answer, which is that of
//! [`model`], a reader of the whole stream at once. httparse reads what is accepted as the same request. What is passed on is that
//! request without the fields that end here, to the model and to Pingora. The body is read to its end and not a byte further.
#![no_main]

mod body;
#[path = "../chunks.rs"]
mod chunks;
mod model;
mod pingora_view;

use bytes::Bytes;
use gopherproxy::exchange::request::RequestId;
use gopherproxy::headers::request::{Origination, write_request};
use gopherproxy::http1::head::{self, Body, RequestLine};
use libfuzzer_sys::{Corpus, fuzz_target};

use chunks::pieces;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return Corpus::Reject;
    };
    let (cuts, stream) = (&input[..end], &input[end + 1..]);
    let _ = RequestLine::guess(stream);
    let rules = head::Rules {
        max_fields: head::MOST_FIELDS,
        raw_targets: cuts.len() % 4 >= 2,
        ..head::Rules::default()
    };
    let _ = head::parse(stream, &mut head::scratch(), &rules);
    body::check(Body::Chunked, cuts, stream);

    let length = length_in_pieces(cuts, stream);
    assert_eq!(length, model::head_length(stream));
    let Some((head, rest)) = length.and_then(|length| stream.split_at_checked(length)) else {
        return Corpus::Keep;
    };
    let mut scratch = head::scratch();
    let Ok(parsed) = head::parse(head, &mut scratch, &rules) else {
        return Corpus::Keep;
    };
    let request = model::request(head);
    assert_eq!(parsed.body, request.body);
    assert_eq!(parsed.keeps, request.keeps());
    assert_eq!(parsed.upgrade.is_some(), parsed.body == Body::Upgrade);
    if str::from_utf8(request.target).is_ok() {
        agrees_with_httparse(head, &request);
    } else {
        assert!(rules.raw_targets);
    }

    let trusted_peer = cuts.len() % 2 == 1;
    let given = parsed.values("x-request-id").next().filter(|_| trusted_peer);
    let about = Origination {
        peer: "192.0.2.1",
        trusted_peer,
        tls: None,
        backend: "backend:80",
        id: &given.and_then(RequestId::given).unwrap_or_else(RequestId::random),
        shape: None,
    };
    let (mut written, mut spans) = (Vec::new(), Vec::new());
    write_request(&parsed, about, &mut written, &mut spans);
    let written = Bytes::from(written);
    let passed_on = model::request(&written);
    model::check_passed_on(&request, trusted_peer, &passed_on);
    pingora_view::agrees(&passed_on, parsed.method, &written, &spans);
    body::check(parsed.body, cuts, rest);
    Corpus::Keep
});

/// Looks for the end of the head after each piece, as a connection does; more pieces change nothing once it is there.
fn length_in_pieces(cuts: &[u8], stream: &[u8]) -> Option<usize> {
    let (mut received, mut scanned, mut found) = (0, 0, None);
    for piece in pieces(cuts, stream) {
        received += piece.len();
        let length = head::length(&stream[..received], scanned);
        assert!(found.is_none() || length == found, "{found:?} became {length:?}");
        found = length;
        if found.is_none() {
            scanned = received;
        }
    }
    assert_eq!(found, head::length(stream, 0));
    found
}

/// httparse takes all of the head for a request, with the same line and the same fields.
fn agrees_with_httparse(head: &[u8], request: &model::Request<'_>) {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Request::new(&mut fields);
    assert_eq!(parsed.parse(head), Ok(httparse::Status::Complete(head.len())));
    assert_eq!(parsed.method.map(str::as_bytes), Some(request.method));
    assert_eq!(parsed.path.map(str::as_bytes), Some(request.target));
    assert_eq!(parsed.version, Some(request.minor));
    let fields = parsed.headers.iter().map(|field| (field.name.as_bytes(), field.value));
    assert!(fields.eq(request.fields.iter().copied()), "{:?}", request.fields);
}
