//! Compresses a body piece by piece.
//!
//! An encoder keeps what has been written back until there is enough for a block, unless it is told to give out everything. Its memory
//! does not depend on the length of the body. Each thread keeps a few encoders whose responses have ended: to make one means to allocate
//! and to clear its tables.

use std::cell::RefCell;
use std::convert::Infallible;

use bytes::BytesMut;
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, SafeResult};

use super::accept::Coding;
use crate::http1::chunked::write_chunk;

/// The level of gzip. Each level above costs more time than it saves bytes.
const GZIP_LEVEL: u32 = 5;

/// The window of gzip, as a power of two: 32 KiB, the largest that there is.
const GZIP_WINDOW: u8 = 15;

/// What an encoder of gzip takes: twice the window, as much for its chains, 128 KiB for its table and 64 KiB for symbols.
const GZIP_SIZE: usize = 324 << 10;

/// The level of zstd, which is the library's default.
const ZSTD_LEVEL: i32 = 3;

/// The windows of zstd, as powers of two: 1 KiB for the shortest bodies, and 64 KiB, far below the 8 MiB that every client has room
/// for (RFC 9659). With 128 KiB an encoder would take twice the memory.
const ZSTD_WINDOWS: std::ops::RangeInclusive<u32> = 10..=16;

/// The tables of zstd, as powers of two of 4 bytes each. Larger ones take more memory than they save bytes in such a window.
const ZSTD_TABLES: [CParameter; 2] = [CParameter::HashLog(15), CParameter::ChainLog(14)];

/// How much room there is for the output of one call, in bytes.
const STEP: usize = 16 << 10;

/// How many encoders of each coding a thread keeps.
const KEPT: usize = 2;

/// What becomes of the bytes that an encoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// They may wait for more.
    More,
    /// All of them are written: more may not come for long.
    Flush,
    /// The body ends with them.
    End,
}

/// Compresses one body.
pub struct Encoder {
    state: Option<State>,
    /// It has bytes that were not written.
    holds_back: bool,
    size: usize,
}

enum State {
    Gzip(Compress),
    Zstd(CCtx<'static>),
}

thread_local! {
    static FREE: RefCell<Vec<State>> = const { RefCell::new(Vec::new()) };
}

impl Encoder {
    /// An encoder for a body of this `length`, if that is known; `None` when there is no memory for it.
    pub fn new(coding: Coding, length: Option<u64>) -> Option<Self> {
        let free = FREE.with_borrow_mut(|free| {
            let place = free.iter().position(|state| state.coding() == coding)?;
            Some(free.swap_remove(place))
        });
        let mut state = match (free, coding) {
            (Some(state), _) => state,
            (None, Coding::Gzip) => State::Gzip(Compress::new_gzip(Compression::new(GZIP_LEVEL), GZIP_WINDOW)),
            (None, Coding::Zstd) => State::Zstd(CCtx::try_create()?),
        };
        let size = match &mut state {
            State::Gzip(gzip) => {
                gzip.reset();
                GZIP_SIZE
            }
            State::Zstd(zstd) => {
                begin(zstd, length).ok()?;
                zstd.sizeof()
            }
        };
        Some(Self {
            state: Some(state),
            holds_back: false,
            size,
        })
    }

    /// What it takes in memory, in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether it has bytes that were not written, which [`Then::Flush`] writes.
    pub fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// Compresses `data` and appends what it writes to `out`, as a chunk if that is asked for. Returns how many bytes that is.
    pub fn write(&mut self, data: &[u8], then: Then, chunked: bool, out: &mut BytesMut) -> usize {
        if !chunked {
            let before = out.len();
            self.encode(data, then, out);
            return out.len() - before;
        }
        let Ok(length) = write_chunk(out, |out| {
            self.encode(data, then, out);
            Ok::<_, Infallible>(())
        });
        length
    }

    fn encode(&mut self, data: &[u8], then: Then, out: &mut BytesMut) {
        match &mut self.state {
            Some(State::Gzip(gzip)) => deflate(gzip, data, then, out),
            Some(State::Zstd(zstd)) => compress(zstd, data, then, out),
            None => {}
        }
        self.holds_back = then == Then::More && (self.holds_back || !data.is_empty());
    }
}

impl State {
    fn coding(&self) -> Coding {
        match self {
            Self::Gzip(_) => Coding::Gzip,
            Self::Zstd(_) => Coding::Zstd,
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        let Some(state) = self.state.take() else { return };
        // At the end of its thread there is no place to keep it.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.iter().filter(|kept| kept.coding() == state.coding()).count() < KEPT {
                free.push(state);
            }
        });
    }
}

/// Makes `zstd` ready for a body of this `length`, and has it allocate all that it needs.
fn begin(zstd: &mut CCtx<'static>, length: Option<u64>) -> SafeResult {
    let (least, most) = (*ZSTD_WINDOWS.start(), *ZSTD_WINDOWS.end());
    // No window is longer than the body needs.
    let window = length.map_or(most, |length| (u64::BITS - length.leading_zeros()).clamp(least, most));
    zstd.reset(ResetDirective::SessionAndParameters)?;
    zstd.set_parameter(CParameter::CompressionLevel(ZSTD_LEVEL))?;
    zstd.set_parameter(CParameter::WindowLog(window))?;
    for table in ZSTD_TABLES {
        zstd.set_parameter(table)?;
    }
    let mut nothing = [0; 0];
    zstd.compress_stream2(
        &mut OutBuffer::around(&mut nothing[..]),
        &mut InBuffer::around(b""),
        ZSTD_EndDirective::ZSTD_e_continue,
    )
}

/// Calls `step` with room for output until it says that it is done; it returns how much it has written.
fn in_steps(out: &mut BytesMut, mut step: impl FnMut(&mut [u8]) -> (usize, bool)) {
    loop {
        let before = out.len();
        out.resize(before + STEP, 0);
        let (written, done) = step(&mut out[before..]);
        out.truncate(before + written);
        if done {
            return;
        }
    }
}

fn deflate(gzip: &mut Compress, mut data: &[u8], then: Then, out: &mut BytesMut) {
    let flush = match then {
        Then::More => FlushCompress::None,
        Then::Flush => FlushCompress::Sync,
        Then::End => FlushCompress::Finish,
    };
    in_steps(out, |room| {
        let (read, written) = (gzip.total_in(), gzip.total_out());
        let status = gzip
            .compress(data, room, flush)
            .expect("it fails only when its state is broken");
        let here = |total: u64, before: u64| usize::try_from(total.wrapping_sub(before)).unwrap_or(0);
        let read = here(gzip.total_in(), read);
        let written = here(gzip.total_out(), written);
        data = &data[read..];
        let done = match then {
            Then::End => status == Status::StreamEnd,
            Then::More | Then::Flush => data.is_empty() && written < room.len(),
        };
        (written, done)
    });
}

fn compress(zstd: &mut CCtx<'static>, data: &[u8], then: Then, out: &mut BytesMut) {
    let directive = match then {
        Then::More => ZSTD_EndDirective::ZSTD_e_continue,
        Then::Flush => ZSTD_EndDirective::ZSTD_e_flush,
        Then::End => ZSTD_EndDirective::ZSTD_e_end,
    };
    let mut input = InBuffer::around(data);
    in_steps(out, |room| {
        let mut output = OutBuffer::around(room);
        let left = zstd
            .compress_stream2(&mut output, &mut input, directive)
            .expect("it fails only for want of memory, which it has");
        let all = input.pos == data.len();
        (output.pos(), all && (then == Then::More || left == 0))
    });
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Text with repetitions, the same for the same seed.
    fn text(length: usize, random: &mut fastrand::Rng) -> Vec<u8> {
        let words = [
            "the ",
            "proxy ",
            "of ",
            "a ",
            "response\n",
            "{\"id\": ",
            "}, ",
            "compress",
        ];
        let mut text = Vec::with_capacity(length + 16);
        while text.len() < length {
            match random.u8(..8) {
                0 => text.push(random.u8(..)),
                word => text.extend_from_slice(words[usize::from(word)].as_bytes()),
            }
        }
        text.truncate(length);
        text
    }

    fn decoded(coding: Coding, compressed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match coding {
            Coding::Gzip => {
                let mut decoder = flate2::read::GzDecoder::new(compressed);
                decoder.read_to_end(&mut plain).unwrap();
                assert!(decoder.into_inner().is_empty());
            }
            Coding::Zstd => {
                // As little room as the documentation promises.
                let mut decoder = zstd_safe::DCtx::create();
                decoder.set_parameter(zstd_safe::DParameter::WindowLogMax(16)).unwrap();
                let mut input = InBuffer::around(compressed);
                let mut room = vec![0; 64 << 10];
                loop {
                    let mut output = OutBuffer::around(&mut room[..]);
                    let left = decoder.decompress_stream(&mut output, &mut input).unwrap();
                    let written = output.pos();
                    plain.extend_from_slice(&room[..written]);
                    if left == 0 {
                        assert_eq!(input.pos, compressed.len());
                        break;
                    }
                    assert!(written > 0 || input.pos < compressed.len(), "the frame has an end");
                }
            }
        }
        plain
    }

    /// What can be read of a stream that has not ended.
    fn readable(coding: Coding, compressed: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut room = [0; 4096];
        match coding {
            Coding::Gzip => {
                let mut decoder = flate2::read::GzDecoder::new(compressed);
                while let Ok(read @ 1..) = decoder.read(&mut room) {
                    plain.extend_from_slice(&room[..read]);
                }
            }
            Coding::Zstd => {
                let mut decoder = zstd_safe::DCtx::create();
                let mut input = InBuffer::around(compressed);
                loop {
                    let mut output = OutBuffer::around(&mut room[..]);
                    decoder.decompress_stream(&mut output, &mut input).unwrap();
                    let written = output.pos();
                    plain.extend_from_slice(&room[..written]);
                    if written == 0 && input.pos == compressed.len() {
                        break;
                    }
                }
            }
        }
        plain
    }

    #[test]
    fn any_sequence_of_pieces_decodes_to_the_same_bytes() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let coding = if seed % 2 == 0 { Coding::Gzip } else { Coding::Zstd };
            let length = match random.u8(..4) {
                0 => random.usize(..20),
                1 => random.usize(..5_000),
                _ => random.usize(..400_000),
            };
            let plain = text(length, &mut random);
            let known = random.bool().then_some(length as u64);
            let mut encoder = Encoder::new(coding, known).unwrap();
            let mut out = BytesMut::new();
            let (mut left, mut written) = (&plain[..], 0);
            while !left.is_empty() {
                let most = [1, 100, 10_000, 200_000][random.usize(..4)];
                let (piece, rest) = left.split_at(random.usize(..=most).min(left.len()));
                let then = if random.u8(..4) == 0 { Then::Flush } else { Then::More };
                written += encoder.write(piece, then, false, &mut out);
                left = rest;
                if then == Then::Flush {
                    assert!(!encoder.holds_back());
                    if out.len() < 20_000 {
                        assert_eq!(readable(coding, &out), plain[..plain.len() - left.len()], "seed {seed}");
                    }
                }
            }
            written += encoder.write(b"", Then::End, false, &mut out);
            assert_eq!(written, out.len());
            assert!(!encoder.holds_back());
            assert!(decoded(coding, &out) == plain, "seed {seed}");
        }
    }

    #[test]
    fn chunks_hold_the_same_bytes_and_none_is_empty() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let plain = text(100_000, &mut fastrand::Rng::with_seed(1));
            let (mut bare, mut chunked) = (BytesMut::new(), BytesMut::new());
            for (is_chunked, out) in [(false, &mut bare), (true, &mut chunked)] {
                let mut encoder = Encoder::new(coding, None).unwrap();
                for piece in plain.chunks(3_000) {
                    encoder.write(piece, Then::More, is_chunked, out);
                }
                encoder.write(b"", Then::End, is_chunked, out);
            }
            let mut data = BytesMut::new();
            let mut decoder = crate::http1::chunked::Decoder::default();
            assert_eq!(decoder.decode(&chunked, &mut data, usize::MAX), Ok(chunked.len()));
            assert!(!decoder.ended());
            assert_eq!(data, bare);
        }
    }

    #[test]
    fn an_encoder_takes_bounded_memory_and_makes_text_smaller() {
        for (coding, most) in [(Coding::Gzip, 400 << 10), (Coding::Zstd, 700 << 10)] {
            let mut encoder = Encoder::new(coding, None).unwrap();
            let size = encoder.size();
            let plain = text(2 << 20, &mut fastrand::Rng::with_seed(1));
            let mut out = BytesMut::new();
            encoder.write(&plain, Then::More, false, &mut out);
            if let Some(State::Zstd(zstd)) = &encoder.state {
                assert_eq!(zstd.sizeof(), size, "it has allocated all in the beginning");
            }
            assert!(size <= most, "{coding:?}: {size}");
            encoder.write(b"", Then::End, false, &mut out);
            assert!(out.len() < plain.len() * 6 / 10, "{coding:?}: {}", out.len());
        }
        FREE.with_borrow_mut(Vec::clear);
        let short = Encoder::new(Coding::Zstd, Some(2000)).unwrap().size();
        assert!(short <= 256 << 10, "{short}");
    }

    #[test]
    fn an_encoder_of_a_response_that_broke_off_leaves_nothing_to_the_next() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            for _ in 0..3 {
                let mut broken = Encoder::new(coding, Some(1 << 20)).unwrap();
                broken.write(
                    b"a secret that is not the next client's",
                    Then::More,
                    false,
                    &mut BytesMut::new(),
                );
                drop(broken);
                let mut out = BytesMut::new();
                let mut encoder = Encoder::new(coding, Some(5)).unwrap();
                assert!(!encoder.holds_back());
                encoder.write(b"hello", Then::End, false, &mut out);
                assert_eq!(decoded(coding, &out), b"hello");
            }
        }
    }
}
