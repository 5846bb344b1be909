//! Finds the end of a chunked body.
//!
//! Pingora's chunk parser reads an empty size as zero and a bare line feed as part of an extension, which others
//! do not: bytes that one reader takes for the body another takes for the next request. So the framing of every chunked
//! request is followed here, strictly, before Pingora sees it.

/// Longer size lines and trailers are nobody's honest framing.
const MAX_LINE: usize = 256;
const MAX_TRAILERS: usize = 8 << 10;

/// A size of more digits overflows in one reader or another.
const MAX_DIGITS: usize = 15;

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
    /// In the spaces behind a size, where nothing but an extension may follow.
    Padding(u64),
    /// In the extensions behind a size.
    Extension(u64),
    /// After the CR of a size line.
    SizeLineFeed(u64),
    /// So many bytes before the end of a chunk.
    Data(u64),
    DataReturn,
    DataLineFeed,
    /// At the start of a trailer, or of the empty line behind the last.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed {
        last: bool,
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
            Data, DataLineFeed, DataReturn, End, Extension, Padding, Size, SizeLineFeed, TrailerLineFeed, TrailerName,
            TrailerStart, TrailerValue,
        };

        self.line += 1;
        let next = match (self.place, byte) {
            (Size(so_far), digit) if digit.is_ascii_hexdigit() && self.line <= MAX_DIGITS => {
                let digit = char::from(digit).to_digit(16).map_or(0, u64::from);
                Size(Some(so_far.unwrap_or(0) * 16 + digit))
            }
            (Size(Some(size)) | Padding(size) | Extension(size), b'\r') => SizeLineFeed(size),
            (Size(Some(size)) | Padding(size), b' ' | b'\t') => Padding(size),
            (Size(Some(size)) | Padding(size), b';') => Extension(size),
            (Extension(size), b'\t' | b' '..=b'~' | 0x80..) => Extension(size),
            (SizeLineFeed(0), b'\n') => TrailerStart,
            (SizeLineFeed(size), b'\n') => Data(size),
            (DataReturn, b'\r') => DataLineFeed,
            (DataLineFeed, b'\n') => Size(None),
            (TrailerStart, b'\r') => TrailerLineFeed { last: true },
            // What is no field may be a request that another reader would find here.
            (TrailerStart | TrailerName, byte) if is_in_name(byte) => TrailerName,
            (TrailerName, b':') => TrailerValue,
            (TrailerValue, b'\r') => TrailerLineFeed { last: false },
            (TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => TrailerValue,
            (TrailerLineFeed { last: true }, b'\n') => End,
            (TrailerLineFeed { last: false }, b'\n') => TrailerStart,
            _ => return Err(BadFraming),
        };
        let most = match self.place {
            TrailerStart | TrailerName | TrailerValue | TrailerLineFeed { .. } => MAX_TRAILERS,
            _ => MAX_LINE,
        };
        if self.line > most {
            return Err(BadFraming);
        }
        if matches!(next, Data(_) | Size(None)) || matches!((self.place, next), (SizeLineFeed(_), TrailerStart)) {
            self.line = 0;
        }
        self.place = next;
        Ok(())
    }
}

/// Whether `byte` may be in the name of a field, or in any other token.
pub fn is_in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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
            "4 \t; name\r\nwiki\r\n0\r\n\r\n",
            "000000000000004\r\nwiki\r\n0\r\n\r\n",
            "1 \r\nx\r\n0\r\nTrailer: value\r\nOther: value\r\n\r\n",
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
            "ffffffffffffffff\r\n\r\n",
            "0000000000000004\r\nwiki\r\n0\r\n\r\n",
            "4 4\r\nwiki\r\n0\r\n\r\n",
            "0\r\nTrailer\0: x\r\n\r\n",
            "0\r\nTrailer: x\n\r\n",
            "0\r\nTrailer\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            "0\r\n x\r\n\r\n",
            "0\r\nTrailer: x\r\n y\r\n\r\n",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(end(body.as_bytes()), Err(BadFraming), "{body:?}");
        }
        let long_line = format!("4;{}\r\n", "x".repeat(MAX_LINE));
        let line = |length: usize| format!("0;{}\r\n\r\n", "x".repeat(length - 4));
        assert_eq!(end(line(MAX_LINE).as_bytes()), Ok(Some(MAX_LINE + 2)));
        assert_eq!(end(line(MAX_LINE + 1).as_bytes()), Err(BadFraming));
        let trailers = format!("0\r\n{}\r\n", "x: y\r\n".repeat(MAX_LINE));
        assert_eq!(end(trailers.as_bytes()), Ok(Some(trailers.len())));
        let long_trailers = format!("0\r\n{}", "x: y\r\n".repeat(MAX_TRAILERS));
        assert_eq!(end(long_line.as_bytes()), Err(BadFraming));
        assert_eq!(Chunks::default().follow(long_trailers.as_bytes()), Err(BadFraming));
    }
    /// Every short line that is taken here is read the same way by the parser that Pingora uses.
    #[test]
    fn what_is_a_size_line_here_is_the_same_for_pingora() {
        const BYTES: &[u8] = b"04Fx; \t\r\n";
        let mut taken = 0;
        for number in 0..BYTES.len().pow(6) {
            let digit = |place: u32| BYTES[number / BYTES.len().pow(place) % BYTES.len()];
            let line = [digit(0), digit(1), digit(2), digit(3), digit(4), digit(5)];
            let mut chunks = Chunks::default();
            for (index, byte) in line.iter().enumerate() {
                if chunks.step(*byte).is_err() {
                    break;
                }
                let size = match chunks.place {
                    Place::Data(size) => size,
                    Place::TrailerStart => 0,
                    _ => continue,
                };
                let read = httparse::parse_chunk_size(&line);
                let line = line.escape_ascii();
                assert_eq!(read, Ok(httparse::Status::Complete((index + 1, size))), "{line}");
                taken += 1;
                break;
            }
        }
        assert!(taken > 1000, "{taken} lines were taken");
    }
}
