//! Reads and writes chunked bodies (RFC 9112, section 7.1).
//!
//! The decoder is strict. Some decoders take an empty size for zero, and a bare LF for the end of a line or for part of an
//! extension. Where two of them disagree, what one takes for the body is the next message to the other.

use std::convert::Infallible;

use bytes::{Buf, BufMut, BytesMut};

use crate::http1::names::{is_forbidden_in_trailers, is_in_token};

/// The most bytes in a size line, its CRLF included.
const MAX_LINE: u16 = 256;

/// The most bytes in the trailers, the empty line behind them included.
const MAX_TRAILERS: u16 = 8 << 10;

/// The most digits in a size. More of them overflow in one reader or another.
const MAX_DIGITS: u16 = 15;

/// The space that [`write_chunk`] needs in front of the data: the digits of a `u64`, and CRLF.
const SIZE_ROOM: usize = 18;

/// How much longer than its data a chunk can be while [`write_chunk`] writes it.
pub const CHUNK_OVERHEAD: usize = SIZE_ROOM + 2;

/// The framing is not what RFC 9112, section 7.1 says. The text is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFraming(pub &'static str);

/// Decodes a chunked body, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub struct Decoder {
    place: Place,
    /// Bytes of the current line, or of all trailers.
    line: u16,
    /// The trailers that are kept so far, and the one that is arriving.
    trailers: Vec<u8>,
}

/// Which byte comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// One of a size; `None` before the first digit.
    Size(Option<u64>),
    /// White space behind a size, where only an extension or the end of the line may follow.
    Padding(u64),
    /// One of the extensions behind a size.
    Extension(u64),
    /// The LF of a size line.
    SizeLineFeed(u64),
    /// Data, of which this many bytes are left in the chunk.
    Data(u64),
    /// The CR behind the data.
    DataReturn,
    /// The LF behind the data.
    DataLineFeed,
    /// The first of a trailer, or the CR of the empty line behind the last.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    /// The LF of the empty line.
    LastLineFeed,
    /// None: the body has ended.
    End,
}

impl Default for Place {
    fn default() -> Self {
        Self::Size(None)
    }
}

impl Decoder {
    /// Whether the body has ended.
    pub fn ended(&self) -> bool {
        self.place == Place::End
    }

    /// The trailers as received, each line with its CRLF, without those that a trailer must not carry (RFC 9110, section 6.5.1).
    /// Empty until the body has ended.
    pub fn trailers(&self) -> &[u8] {
        if self.ended() { &self.trailers } else { &[] }
    }

    /// Decodes `bytes` until they or the body end, and appends the data to `data`, at most `room` bytes. Returns how many of
    /// `bytes` belong to the body. When it is fewer than there are, either the body has ended or there is more data than `room`.
    ///
    /// # Errors
    /// When the framing is broken. `data` has got the data of the whole chunks before that place. The decoder is of no more use.
    pub fn decode(&mut self, bytes: &[u8], data: &mut BytesMut, room: usize) -> Result<usize, BadFraming> {
        let mut at = 0;
        let end = data.len().saturating_add(room);
        // The length of `data` up to the last chunk of which the end was seen.
        let mut whole = data.len();
        while at < bytes.len() {
            let rest = &bytes[at..];
            at += match self.place {
                Place::End => break,
                Place::Data(left) => {
                    let most = rest.len().min(end - data.len());
                    let here = usize::try_from(left).map_or(most, |left| left.min(most));
                    if here == 0 {
                        break;
                    }
                    data.extend_from_slice(&rest[..here]);
                    self.place = match left - here as u64 {
                        0 => Place::DataReturn,
                        left => Place::Data(left),
                    };
                    here
                }
                Place::DataReturn if rest.starts_with(b"\r\n") => {
                    self.place = Place::Size(None);
                    2
                }
                place => match plain_size_line(place, rest) {
                    Some((size, length)) => {
                        self.place = behind_size_line(size);
                        length
                    }
                    None => {
                        if let Err(error) = self.step(rest[0]) {
                            data.truncate(whole);
                            return Err(error);
                        }
                        1
                    }
                },
            };
            if self.place == Place::Size(None) {
                whole = data.len();
            }
        }
        Ok(at)
    }

    /// Takes one byte that is no data.
    fn step(&mut self, byte: u8) -> Result<(), BadFraming> {
        use Place::{
            DataLineFeed, DataReturn, End, Extension, LastLineFeed, Padding, Size, SizeLineFeed, TrailerLineFeed,
            TrailerName, TrailerStart, TrailerValue,
        };

        self.line += 1;
        let next = match (self.place, byte) {
            (Size(before), digit) if HEX[usize::from(digit)] < 16 && self.line <= MAX_DIGITS => {
                Size(Some(before.unwrap_or(0) << 4 | u64::from(HEX[usize::from(digit)])))
            }
            (Size(Some(size)) | Padding(size) | Extension(size), b'\r') => SizeLineFeed(size),
            (Size(Some(size)) | Padding(size), b' ' | b'\t') => Padding(size),
            (Size(Some(size)) | Padding(size), b';') => Extension(size),
            (Extension(size), b'\t' | b' '..=b'~' | 0x80..) => Extension(size),
            (SizeLineFeed(size), b'\n') => behind_size_line(size),
            (DataReturn, b'\r') => DataLineFeed,
            (DataLineFeed, b'\n') => Size(None),
            (TrailerStart, b'\r') => LastLineFeed,
            // What is no field may be a request that another reader would find here.
            (TrailerStart | TrailerName, byte) if is_in_token(byte) => TrailerName,
            (TrailerName, b':') => TrailerValue,
            (TrailerValue, b'\r') => TrailerLineFeed,
            (TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => TrailerValue,
            (TrailerLineFeed, b'\n') => TrailerStart,
            (LastLineFeed, b'\n') => End,
            (place, byte) => return Err(BadFraming(fault(place, byte))),
        };
        match self.place {
            TrailerStart | TrailerName | TrailerValue | TrailerLineFeed | LastLineFeed => {
                if self.line > MAX_TRAILERS {
                    return Err(BadFraming("the trailers are longer than 8 KiB"));
                }
                if !matches!(next, LastLineFeed | End) {
                    self.trailers.push(byte);
                }
                if self.place == TrailerLineFeed {
                    self.judge_trailer();
                }
            }
            _ if self.line > MAX_LINE => return Err(BadFraming("the line of a chunk size is longer than 256 bytes")),
            SizeLineFeed(_) | DataLineFeed => self.line = 0,
            _ => {}
        }
        self.place = next;
        Ok(())
    }

    /// Drops the trailer that has just ended, if it is none that may be passed on.
    fn judge_trailer(&mut self) {
        let lines = self.trailers.strip_suffix(b"\r\n").unwrap_or_default();
        let start = memchr::memrchr(b'\n', lines).map_or(0, |before| before + 1);
        let name = lines[start..].split(|byte| *byte == b':').next().unwrap_or_default();
        if is_forbidden_in_trailers(&String::from_utf8_lossy(name)) {
            self.trailers.truncate(start);
        }
    }
}

/// The size and the length of a size line at the start of `bytes`, if it is all there and has no extension, as almost all have
/// none.
fn plain_size_line(place: Place, bytes: &[u8]) -> Option<(u64, usize)> {
    if place != Place::Size(None) {
        return None;
    }
    let (mut size, mut digits) = (0, 0);
    while let Some(digit) = bytes.get(digits).map(|byte| HEX[usize::from(*byte)])
        && digit < 16
    {
        if digits == usize::from(MAX_DIGITS) {
            return None;
        }
        size = size << 4 | u64::from(digit);
        digits += 1;
    }
    (digits > 0 && bytes[digits..].starts_with(b"\r\n")).then_some((size, digits + 2))
}

fn behind_size_line(size: u64) -> Place {
    if size == 0 {
        Place::TrailerStart
    } else {
        Place::Data(size)
    }
}

/// What is wrong with `byte` at `place`.
#[cold]
fn fault(place: Place, byte: u8) -> &'static str {
    match (place, byte) {
        (Place::SizeLineFeed(_) | Place::DataLineFeed | Place::TrailerLineFeed | Place::LastLineFeed, _) => {
            "a CR is not followed by LF"
        }
        (Place::DataReturn, _) => "the data of a chunk is longer than its size",
        (_, b'\n') => "a line ends with LF alone",
        (Place::Size(None), b'\r' | b';' | b' ' | b'\t') => "a chunk size is empty",
        (Place::Size(Some(_)), _) if HEX[usize::from(byte)] < 16 => "a chunk size has more than 15 digits",
        (Place::Size(_) | Place::Padding(_), _) => "a chunk size is not a hexadecimal number",
        (Place::Extension(_), _) => "a chunk extension has a control character",
        _ => "a trailer is not a field",
    }
}

/// The value of each hexadecimal digit, and 16 for all other bytes.
static HEX: [u8; 256] = {
    let mut values = [16; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0;
    while value < 16 {
        values[digits[value as usize] as usize] = value;
        values[digits[value as usize].to_ascii_uppercase() as usize] = value;
        value += 1;
    }
    values
};

/// Appends one chunk: its size, the data that `fill` appends, CRLF. Appends nothing if there is no data. Returns the length of the
/// data.
///
/// The size has no leading zeros, and the data isn't moved to make it fit unless what is in front of the chunk is longer.
///
/// # Errors
/// Those of `fill`. What it had appended by then is a chunk as well.
pub fn write_chunk<E>(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<usize, E> {
    let before = out.len();
    out.put_bytes(0, SIZE_ROOM);
    let filled = fill(out);
    let from = before + SIZE_ROOM;
    let length = out.len().saturating_sub(from);
    if length == 0 {
        out.truncate(before);
        return filled.map(|()| 0);
    }
    let mut line = [b'0'; SIZE_ROOM];
    line[SIZE_ROOM - 2..].copy_from_slice(b"\r\n");
    let (mut start, mut left) = (SIZE_ROOM - 2, length);
    while left > 0 {
        start -= 1;
        line[start] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    // `start` bytes of the room are not needed, so that either what is in front of them or what is behind them moves.
    out[before..from].copy_from_slice(&line);
    if before <= length {
        out.copy_within(..before, start);
        out.advance(start);
    } else {
        out.copy_within(before + start.., before);
        out.truncate(out.len() - start);
    }
    out.put_slice(b"\r\n");
    filled.map(|()| length)
}

/// Appends `data` as one chunk; nothing if there is none.
pub fn write_data(out: &mut BytesMut, data: &[u8]) {
    let Ok(_) = write_chunk(out, |out| {
        out.put_slice(data);
        Ok::<_, Infallible>(())
    });
}

/// Appends the end of a chunked body: the last chunk, `trailers` (lines that end in CRLF) and the empty line.
pub fn write_last(out: &mut BytesMut, trailers: &[u8]) {
    out.put_slice(b"0\r\n");
    out.put_slice(trailers);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
