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

use chunks::{Body, pieces, plain};

mod chunks;

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
