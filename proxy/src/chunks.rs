//! Where a chunked body ends.
//!
//! Pingora's chunk parser reads an empty size as zero and a bare line feed as part of an extension, which others
//! do not: bytes that one reader takes for the body another takes for the next request. So the framing of every chunked
//! request is followed here, strictly, before Pingora sees it.

/// Longer size lines and trailers are nobody's honest framing.
const MAX_LINE: usize = 256;
const MAX_TRAILERS: usize = 8 << 10;
/// More digits than a number of 64 bits has; Pingora takes no more either.
const MAX_DIGITS: usize = 16;

/// The framing is not what RFC 9112 says.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFraming;

/// Follows a chunked body from its first size line to the empty line at its end.
#[derive(Debug, Clone)]
pub struct Chunks {
    place: Place,
    /// Bytes of the current line, or of all trailers.
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the digits of a size; `None` before the first.
    Size(Option<u64>),
    /// In the spaces between a size and its extensions.
    Space(u64),
    /// In the extensions behind a size.
    Extension(u64),
    /// After the CR of a size line.
    SizeLineFeed(u64),
    /// So many bytes before the end of a chunk.
    Data(u64),
    DataReturn,
    DataLineFeed,
    /// In the trailers, on a line with something in it or on an empty one.
    Trailer {
        empty: bool,
    },
    TrailerLineFeed {
        empty: bool,
    },
    End,
}

impl Default for Chunks {
    /// At the start of a body.
    fn default() -> Self {
        Self {
            place: Place::Size(None),
            line: 0,
        }
    }
}

impl Chunks {
    /// Whether the body has ended.
    pub fn ended(&self) -> bool {
        self.place == Place::End
    }

    /// Follows `bytes`; returns how many of them belong to the body: all, unless it ends in them.
    ///
    /// # Errors
    /// When the framing is broken.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<usize, BadFraming> {
        let mut at = 0;
        while at < bytes.len() && !self.ended() {
            if let Place::Data(left) = self.place {
                let here = left.min((bytes.len() - at) as u64);
                self.place = if here == left {
                    Place::DataReturn
                } else {
                    Place::Data(left - here)
                };
                at += usize::try_from(here).map_err(|_| BadFraming)?;
            } else {
                self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<(), BadFraming> {
        use Place::{
            Data, DataLineFeed, DataReturn, End, Extension, Size, SizeLineFeed, Space, Trailer, TrailerLineFeed,
        };

        self.line += 1;
        let next = match (self.place, byte) {
            (Size(so_far), digit) if digit.is_ascii_hexdigit() && self.line <= MAX_DIGITS => {
                let digit = char::from(digit).to_digit(16).map_or(0, u64::from);
                Size(Some(so_far.unwrap_or(0) << 4 | digit))
            }
            (Size(Some(size)) | Space(size) | Extension(size), b'\r') => SizeLineFeed(size),
            (Size(Some(size)) | Space(size), b' ' | b'\t') => Space(size),
            (Size(Some(size)) | Space(size), b';') => Extension(size),
            (Extension(size), b'\t' | b' '..=b'~' | 0x80..) => Extension(size),
            (SizeLineFeed(0), b'\n') => Trailer { empty: true },
            (SizeLineFeed(size), b'\n') => Data(size),
            (DataReturn, b'\r') => DataLineFeed,
            (DataLineFeed, b'\n') => Size(None),
            (Trailer { empty }, b'\r') => TrailerLineFeed { empty },
            (Trailer { .. }, b'\t' | b' '..=b'~' | 0x80..) => Trailer { empty: false },
            (TrailerLineFeed { empty: true }, b'\n') => End,
            (TrailerLineFeed { empty: false }, b'\n') => Trailer { empty: true },
            _ => return Err(BadFraming),
        };
        let most = match self.place {
            Trailer { .. } | TrailerLineFeed { .. } => MAX_TRAILERS,
            _ => MAX_LINE,
        };
        if self.line > most {
            return Err(BadFraming);
        }
        if matches!(next, Data(_) | Size(None)) || matches!((self.place, next), (SizeLineFeed(_), Trailer { .. })) {
            self.line = 0;
        }
        self.place = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes belong to the body, however it is cut into pieces; `None` when it has not ended.
    fn end(body: &[u8]) -> Result<Option<usize>, BadFraming> {
        let follow = |piece: usize| {
            let mut chunks = Chunks::default();
            let mut at = 0;
            for part in body.chunks(piece) {
                at += chunks.follow(part)?;
            }
            Ok(chunks.ended().then_some(at))
        };
        let whole = follow(body.len().max(1));
        for piece in 1..body.len() {
            assert_eq!(
                follow(piece),
                whole,
                "in pieces of {piece}: {:?}",
                body.escape_ascii().to_string()
            );
        }
        whole
    }

    #[test]
    fn a_body_ends_at_its_empty_line_and_not_a_byte_later() {
        for body in [
            "0\r\n\r\n",
            "4\r\nwiki\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n00\r\n\r\n",
            "4;name=\"value\"\r\n\r\n\r\n\r\n0\r\n\r\n",
            "1 \t;a=b c\r\nx\r\n0000000000000000\r\n\r\n",
            "1 \r\nx\r\n0\r\nTrailer: value\r\nOther: value\r\n\r\n",
            &format!("0\r\nTrailer: {}\r\n\r\n", "x".repeat(MAX_LINE)),
        ] {
            assert_eq!(end(body.as_bytes()), Ok(Some(body.len())), "{body:?}");
            let more = body.to_owned() + "GET / HTTP/1.1\r\n\r\n";
            assert_eq!(end(more.as_bytes()), Ok(Some(body.len())), "{more:?}");
            assert_eq!(end(&body.as_bytes()[..body.len() - 1]), Ok(None), "{body:?} cut short");
        }
    }

    #[test]
    fn framing_that_readers_disagree_on_is_refused() {
        for body in [
            "\r\n\r\n",
            ";x\r\n\r\n",
            " 4\r\nwiki\r\n0\r\n\r\n",
            "+4\r\nwiki\r\n0\r\n\r\n",
            "0x4\r\nwiki\r\n0\r\n\r\n",
            "4\nwiki\n0\n\n",
            "4;a\nb\r\nwiki\r\n0\r\n\r\n",
            "4;a\rb\r\nwiki\r\n0\r\n\r\n",
            "4\r\nwikipedia\r\n0\r\n\r\n",
            "4\r\nwiki0\r\n\r\n",
            "g\r\n\r\n",
            "11111111111111111\r\n\r\n",
            "00000000000000001\r\nx\r\n0\r\n\r\n",
            "1 1\r\nx\r\n0\r\n\r\n",
            "0\r\nTrailer\0: x\r\n\r\n",
            "0\r\nTrailer: x\n\r\n",
        ] {
            assert_eq!(end(body.as_bytes()), Err(BadFraming), "{body:?}");
        }
        for size in [0, 4] {
            let line = |length| format!("{size};{}\r\n", "x".repeat(length - 4));
            assert_eq!(end(line(MAX_LINE).as_bytes()), Ok(None));
            assert_eq!(end(line(MAX_LINE + 1).as_bytes()), Err(BadFraming));
        }
        let long_trailers = format!("0\r\n{}", "x: y\r\n".repeat(MAX_TRAILERS));
        assert_eq!(Chunks::default().follow(long_trailers.as_bytes()), Err(BadFraming));
    }
}
