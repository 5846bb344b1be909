//! Request heads and chunked bodies, as they come out of a connection in pieces.
//!
//! The first line of the input says how the rest, the stream, is cut: each of its bytes is the length of a piece, `a` for
//! one byte to `z` for 26, over and over. Whatever the cuts are the proxy has to come to the same answer; to that of
//! [`model`], which reads the whole at once; what it lets through, httparse has to read as the same request; and what it
//! passes on has to be that request without what ends here, to the model and to Pingora.
#![no_main]

mod model;
mod pingora_view;

use bytes::BytesMut;
use gopherproxy::headers::request::{Origination, write_request};
use gopherproxy::http1::chunks::{BadFraming, Chunks};
use gopherproxy::http1::head::{self, Body, RequestLine};
use http::HeaderValue;
use libfuzzer_sys::{Corpus, fuzz_target};

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
    let _ = follow_chunks(cuts, stream);

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

    let about = Origination {
        peer: &HeaderValue::from_static("192.0.2.1"),
        trusted_peer: cuts.len() % 2 == 1,
        backend: "backend:80",
    };
    let mut written = BytesMut::new();
    let provenance = write_request(&parsed, about, &mut written);
    let passed_on = model::request(&written);
    model::check_passed_on(&request, about.trusted_peer, &passed_on);
    let here = match parsed.body {
        Body::Length(length) => rest.len().min(usize::try_from(length).unwrap_or(usize::MAX)),
        Body::Chunked => match follow_chunks(cuts, rest) {
            Ok((here, _)) => here,
            Err(BadFraming) => return Corpus::Keep,
        },
        Body::Upgrade => rest.len(),
    };
    // Pingora reads only the targets that are URIs.
    if str::from_utf8(passed_on.target).is_ok_and(|target| http::Uri::try_from(target).is_ok()) {
        let mut seen = pingora_view::agrees(&passed_on, &written, pieces(cuts, &rest[..here]));
        provenance.tell(&mut seen).expect("there is room for more fields");
        model::check_told(about.trusted_peer, &seen.headers);
    }
    Corpus::Keep
});

/// `stream` in the pieces that `cuts` tells.
fn pieces<'s>(cuts: &'s [u8], mut stream: &'s [u8]) -> impl Iterator<Item = &'s [u8]> {
    let mut lengths = cuts.iter().map(|byte| usize::from(byte & 31).max(1)).cycle();
    std::iter::from_fn(move || {
        let length = lengths.next().unwrap_or(stream.len()).min(stream.len());
        let (piece, rest) = stream.split_at(length);
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

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

/// Follows a chunked body in pieces, byte by byte and at once, and returns how much of `stream` it is and what was in it.
fn follow_chunks(cuts: &[u8], stream: &[u8]) -> Result<(usize, Option<Vec<u8>>), BadFraming> {
    fn follow<'s>(pieces: impl Iterator<Item = &'s [u8]>) -> Result<(usize, bool), BadFraming> {
        let (mut chunks, mut at) = (Chunks::default(), 0);
        for piece in pieces {
            let taken = chunks.follow(piece)?;
            assert!(taken == piece.len() || chunks.ended());
            at += taken;
        }
        Ok((at, chunks.ended()))
    }
    let answer = follow(std::iter::once(stream));
    assert_eq!(follow(pieces(cuts, stream)), answer, "cut by {cuts:?}");
    assert_eq!(follow(stream.chunks(1)), answer, "byte by byte");

    let whole = model::chunked(stream);
    let end = answer.as_ref().ok().and_then(|(at, ended)| ended.then_some(*at));
    assert_eq!(end, whole.as_ref().map(|(length, _)| *length));
    let (at, _) = answer?;
    Ok((at, whole.map(|(_, data)| data)))
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
