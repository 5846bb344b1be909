//! Chunked bodies of responses, as they come out of a connection in pieces, and as they are written for the client.
//!
//! The first line of the input says how the rest, the stream, is cut: each of its bytes is the length of a piece, `a` for one byte to
//! `z` for 26, over and over. The cuts and the room for the data change nothing, a plain reading of the whole stream comes to
//! the same body, and what is written of a body is that body to the reader.
#![no_main]

use std::convert::Infallible;

use bytes::BytesMut;
use gopherproxy::http1::chunked::{BadFraming, Decoder, write_chunk, write_last};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return Corpus::Reject;
    };
    let (cuts, stream) = (&input[..end], &input[end + 1..]);
    let decoded = decode(std::iter::once(stream), usize::MAX);
    let room = cuts.len() + 1;
    for (again, how) in [
        (decode(pieces(cuts, stream), usize::MAX), "cut"),
        (decode(stream.chunks(1), usize::MAX), "byte by byte"),
        (decode(std::iter::once(stream), room), "with little room"),
        (decode(pieces(cuts, stream), room), "cut, with little room"),
    ] {
        assert_eq!(again, decoded, "{how}");
    }
    let whole = decoded.clone().ok().filter(|body| body.length.is_some());
    assert_eq!(whole, plain(stream));

    // Whatever is sent on, chunk by chunk, is the same body with the same trailers, now all of them.
    let (data, trailers) = match &decoded {
        Ok(body) => (&body.data[..], &body.trailers[..]),
        Err(_) => (stream, &[][..]),
    };
    let mut written = BytesMut::from(cuts);
    for piece in pieces(cuts, data) {
        let length = write_chunk(&mut written, |out| {
            out.extend_from_slice(piece);
            Ok::<_, Infallible>(())
        });
        assert_eq!(length, Ok(piece.len()));
    }
    write_last(&mut written, trailers);
    let written = written.strip_prefix(cuts).expect("what was there before");
    let body = Body {
        length: Some(written.len()),
        data: data.into(),
        trailers: trailers.into(),
    };
    assert_eq!(decode(std::iter::once(written), usize::MAX), Ok(body));
    Corpus::Keep
});

#[derive(Debug, Clone, PartialEq, Eq)]
struct Body {
    /// How many bytes of the stream it is, if it has ended.
    length: Option<usize>,
    data: Vec<u8>,
    trailers: Vec<u8>,
}

/// `stream` in the pieces that `cuts` says.
fn pieces<'s>(cuts: &'s [u8], mut stream: &'s [u8]) -> impl Iterator<Item = &'s [u8]> {
    let mut lengths = cuts.iter().map(|byte| usize::from(byte & 31).max(1)).cycle();
    std::iter::from_fn(move || {
        let length = lengths.next().unwrap_or(stream.len()).min(stream.len());
        let (piece, rest) = stream.split_at(length);
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn decode<'s>(pieces: impl Iterator<Item = &'s [u8]>, room: usize) -> Result<Body, BadFraming> {
    let (mut decoder, mut data, mut at) = (Decoder::default(), BytesMut::new(), 0);
    for mut piece in pieces {
        while !piece.is_empty() && !decoder.ended() {
            let before = data.len();
            let taken = decoder.decode(piece, &mut data, room)?;
            let more = data.len() - before;
            assert!(more <= room && (taken == piece.len() || decoder.ended() || more == room));
            at += taken;
            piece = &piece[taken..];
        }
    }
    Ok(Body {
        length: decoder.ended().then_some(at),
        data: data.into(),
        trailers: decoder.trailers().into(),
    })
}

/// The whole chunked body at the start of `stream`, read line by line.
fn plain(stream: &[u8]) -> Option<Body> {
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let line = line(&stream[at..], 256)?;
        at += line.len() + 2;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (digits, extension) = line.split_at(digits);
        let size = u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        if digits.len() > 15 || !matches!(extension.trim_ascii_start(), [] | [b';', ..]) {
            return None;
        }
        if size == 0 {
            break;
        }
        let end = usize::try_from(size).ok()?.checked_add(at)?;
        data.extend_from_slice(stream.get(at..end)?);
        stream.get(end..)?.strip_prefix(b"\r\n")?;
        at = end + 2;
    }
    let (start, mut trailers) = (at, Vec::new());
    loop {
        let line = line(&stream[at..], (8 << 10) - (at - start))?;
        at += line.len() + 2;
        if line.is_empty() {
            let length = Some(at);
            return Some(Body { length, data, trailers });
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = str::from_utf8(&line[..colon]).ok()?;
        if name.is_empty()
            || !name
                .chars()
                .all(|one| one.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(one))
        {
            return None;
        }
        if !is_forbidden(&name.to_ascii_lowercase().replace('_', "-")) {
            trailers.extend_from_slice(line);
            trailers.extend_from_slice(b"\r\n");
        }
    }
}

/// What trailers may not carry, `_` taken for `-`.
fn is_forbidden(name: &str) -> bool {
    const NAMES: &str = " age authentication-info authorization cache-control connection content-encoding content-length content-range \
                         content-type cookie date expect expires forwarded host http2-settings if-match if-modified-since if-none-match \
                         if-range if-unmodified-since keep-alive location max-forwards origin pragma priority proxy-authenticate \
                         proxy-authentication-info proxy-authorization proxy-connection range retry-after set-cookie \
                         strict-transport-security te trailer transfer-encoding upgrade vary via warning www-authenticate \
                         x-real-ip x-request-id ";
    name.starts_with("x-forwarded") || NAMES.contains(&format!(" {name} "))
}

/// The first line, of printable bytes, without the CRLF that it ends in; `None` when it is not there within `most` bytes.
fn line(bytes: &[u8], most: usize) -> Option<&[u8]> {
    let end = bytes
        .iter()
        .position(|byte| !matches!(byte, b'\t' | b' '..=b'~' | 0x80..))?;
    (bytes[end..].starts_with(b"\r\n") && end + 2 <= most).then_some(&bytes[..end])
}
