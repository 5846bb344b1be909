//! PROXY protocol headers, as they come in pieces.
//!
//! The first line of the input says how the rest, the stream, is cut. A header is read to its end and not a byte further, whatever the
//! cuts, and says what a plain reading of the whole stream says.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use gopherproxy::listen::proxy_protocol::{NoHeader, Parsed, parse, read};
use libfuzzer_sys::{Corpus, fuzz_target};
use tokio::io::{AsyncRead, ReadBuf};

use chunks::pieces;

#[allow(dead_code, reason = "another target reads bodies with it")]
mod chunks;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return Corpus::Reject;
    };
    let (cuts, stream) = (&input[..end], &input[end + 1..]);
    let expected = plain(stream);

    let mut left = Pieces(pieces(cuts, stream).collect());
    let found = read(&mut left).now_or_never().expect("nothing is waited for");
    let left: usize = left.0.iter().map(|piece| piece.len()).sum();
    match (&found, &expected) {
        (Ok(client), Some((length, named))) => {
            assert_eq!(client, named);
            assert_eq!(left, stream.len() - length, "not a byte further");
        }
        (Err(NoHeader::Silent), None) => assert!(stream.is_empty()),
        (Err(NoHeader::Malformed(_)), None) => assert!(!stream.is_empty()),
        _ => panic!("{found:?}, but {expected:?}"),
    }

    // Whatever is known at any point stays true.
    let length = expected.map(|(length, _)| length);
    for cut in 0..=stream.len().min(4200) {
        match parse(&stream[..cut]) {
            Ok(Parsed::More(more)) => {
                assert!(more > 0);
                assert!(length.is_none_or(|length| cut + more <= length), "{cut} + {more}");
            }
            Ok(Parsed::Whole(client)) => assert_eq!(Some((length.expect("one"), client)), expected),
            Err(_) => assert_eq!(expected, None),
        }
    }
    Corpus::Keep
});

/// A stream that arrives in pieces.
struct Pieces<'s>(std::collections::VecDeque<&'s [u8]>);

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if let Some(piece) = self.0.pop_front() {
            let (now, later) = piece.split_at(piece.len().min(buffer.remaining()));
            buffer.put_slice(now);
            if !later.is_empty() {
                self.0.push_front(later);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// How long the header of `stream` is and whom it names.
fn plain(stream: &[u8]) -> Option<(usize, Option<SocketAddr>)> {
    if let Some(rest) = stream.strip_prefix(b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a") {
        let length = rest
            .get(2..4)?
            .iter()
            .fold(0, |sum, byte| sum * 256 + usize::from(*byte));
        let body = rest[4..].get(..length).filter(|body| body.len() <= 4096)?;
        let ip = |from: &[u8]| -> IpAddr {
            let bits = from.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte));
            match from.len() {
                4 => Ipv4Addr::from_bits(bits as u32).into(),
                _ => Ipv6Addr::from_bits(bits).into(),
            }
        };
        let named = |size: usize| {
            let port = body[2 * size..][..2]
                .iter()
                .fold(0, |sum, byte| sum << 8 | u16::from(*byte));
            SocketAddr::new(ip(&body[..size]), port)
        };
        let client = match (rest[0], rest[1]) {
            (0x20, _) | (0x21, 0x00) => None,
            (0x21, 0x11) if length >= 12 => Some(named(4)),
            (0x21, 0x21) if length >= 36 => Some(named(16)),
            (0x21, 0x12) if length >= 12 => None,
            (0x21, 0x22) if length >= 36 => None,
            (0x21, 0x31 | 0x32) if length >= 216 => None,
            _ => return None,
        };
        return Some((16 + length, client));
    }
    let end = stream.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &stream[..end];
    if end + 2 > 107 || line.contains(&b'\r') || line.contains(&b'\n') {
        return None;
    }
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let client = match words[..] {
        [b"PROXY", b"UNKNOWN", ..] => None,
        [b"PROXY", family, from, to, from_port, to_port] => {
            fn text(word: &[u8]) -> Option<&str> {
                str::from_utf8(word).ok()
            }
            let ip = |word| -> Option<IpAddr> {
                match family {
                    b"TCP4" => Some(text(word)?.parse::<Ipv4Addr>().ok()?.into()),
                    b"TCP6" => Some(text(word)?.parse::<Ipv6Addr>().ok()?.into()),
                    _ => None,
                }
            };
            let port = |word: &[u8]| -> Option<u16> {
                let digits =
                    !word.is_empty() && word.iter().all(u8::is_ascii_digit) && (word[..1] != *b"0" || word.len() == 1);
                text(word)?.parse().ok().filter(|_| digits)
            };
            ip(to)?;
            port(to_port)?;
            Some(SocketAddr::new(ip(from)?, port(from_port)?))
        }
        _ => return None,
    };
    Some((end + 2, client))
}
