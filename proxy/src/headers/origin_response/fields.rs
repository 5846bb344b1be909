//! Reads the fields of an origin's response that concern its framing and its connection.

use crate::http1::head::is_canonical_length;
use crate::http1::list::members;
use crate::http1::names::{is, is_in_token};

/// The fields with a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Connection,
    ContentLength,
    Date,
    /// Concerns the connection alone, and means nothing here (RFC 9110, section 7.6.1).
    HopByHop,
    Trailer,
    TransferEncoding,
    Upgrade,
    Other,
}

impl Kind {
    /// Most names are as long as none of those, so they are compared with none. The usual spellings come first, because a
    /// case-sensitive comparison takes a few machine words.
    pub fn of(name: &str) -> Self {
        match name.len() {
            2 if is(name, "te") => Self::HopByHop,
            4 if name == "Date" || is(name, "date") => Self::Date,
            7 if is(name, "upgrade") => Self::Upgrade,
            7 if is(name, "trailer") => Self::Trailer,
            10 if name == "Connection" || is(name, "connection") => Self::Connection,
            10 if is(name, "keep-alive") => Self::HopByHop,
            14 if name == "Content-Length" || is(name, "content-length") => Self::ContentLength,
            16 if is(name, "proxy-connection") => Self::HopByHop,
            17 if name == "Transfer-Encoding" || is(name, "transfer-encoding") => Self::TransferEncoding,
            _ => Self::Other,
        }
    }
}

/// What the `Transfer-Encoding` fields say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    None,
    /// Each of them says it.
    Chunked,
    Unknown,
}

impl Coding {
    pub fn and(self, value: &[u8]) -> Self {
        match self {
            Self::None | Self::Chunked if value.eq_ignore_ascii_case(b"chunked") => Self::Chunked,
            _ => Self::Unknown,
        }
    }
}

/// What the `Content-Length` fields say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    None,
    /// A single field, as the client may get it.
    One(u64),
    /// The same number several times, or with zeros in front.
    Rewritten(u64),
    Faulty,
}

impl Length {
    pub fn and(self, value: &[u8]) -> Self {
        match digits(value) {
            Some(number) if self == Self::None && is_canonical_length(value) => Self::One(number),
            _ => self.and_each(value),
        }
    }

    #[cold]
    fn and_each(mut self, list: &[u8]) -> Self {
        for number in list.split(|byte| *byte == b',') {
            self = match (self, digits(number.trim_ascii())) {
                (Self::None, Some(number)) => Self::Rewritten(number),
                (Self::One(before) | Self::Rewritten(before), Some(number)) if before == number => {
                    Self::Rewritten(number)
                }
                _ => Self::Faulty,
            };
        }
        self
    }
}

/// The number that consists of these digits and nothing else, if it has 64 bits.
fn digits(bytes: &[u8]) -> Option<u64> {
    let (first, _) = bytes.split_first()?;
    // `parse` would take a sign.
    first
        .is_ascii_digit()
        .then(|| str::from_utf8(bytes).ok()?.parse().ok())
        .flatten()
}

/// What the `Connection` fields say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connection {
    pub close: bool,
    pub keep_alive: bool,
    /// The number of other options, which are the names of fields.
    pub nominated: usize,
}

impl Connection {
    pub fn read(&mut self, value: &[u8]) {
        if value == b"keep-alive" {
            self.keep_alive = true;
            return;
        }
        for option in members(value) {
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"close") || !option.iter().copied().all(is_in_token) {
                // Who knows what else was meant.
                self.close = true;
            } else {
                self.nominated += 1;
            }
        }
    }
}

/// Drops the fields that `Connection` names. It can't remove the framing, and whether
/// `Upgrade` is passed on depends on the status.
#[cold]
pub fn drop_nominated(fields: &[httparse::Header<'_>], dropped: &mut Indices) {
    let connection = fields.iter().filter(|field| Kind::of(field.name) == Kind::Connection);
    for option in connection.flat_map(|field| members(field.value)) {
        let protected = ["close", "keep-alive", "upgrade", "content-length", "transfer-encoding"];
        if protected
            .iter()
            .any(|name| option.eq_ignore_ascii_case(name.as_bytes()))
        {
            continue;
        }
        for (index, field) in fields.iter().enumerate() {
            if option.eq_ignore_ascii_case(field.name.as_bytes()) {
                dropped.insert(index);
            }
        }
    }
}

/// Drops all fields of a kind.
#[cold]
pub fn drop_all(fields: &[httparse::Header<'_>], dropped: &mut Indices, kind: Kind) {
    for (index, field) in fields.iter().enumerate() {
        if Kind::of(field.name) == kind {
            dropped.insert(index);
        }
    }
}

/// Whether the client gets a field of a kind.
pub fn holds(fields: &[httparse::Header<'_>], dropped: Indices, kind: Kind) -> bool {
    let mut named = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| Kind::of(field.name) == kind);
    named.any(|(index, _)| !dropped.contains(index))
}

/// Indices of fields, of which there are at most [`MOST_FIELDS`](crate::http1::head::MOST_FIELDS).
#[derive(Debug, Clone, Copy, Default)]
pub struct Indices([u64; 4]);

impl Indices {
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub fn contains(self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// In order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().enumerate().flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros();
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(word * 64 + bit as usize)
            })
        })
    }
}
