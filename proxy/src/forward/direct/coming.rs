//! The body of a response, as its origin delimits it.

use crate::http1::chunked::Decoder;

/// What is still to come of a body.
#[derive(Debug)]
pub(super) enum Coming {
    Length(u64),
    Chunked(Decoder),
    /// Until the origin closes the connection.
    Close {
        closed: bool,
    },
}

impl Coming {
    /// How much, if that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::Close { .. } => None,
        }
    }

    /// Whether all of it has come.
    pub(super) fn ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(decoder) => decoder.ended(),
            Self::Close { closed } => *closed,
        }
    }

    /// The trailers of one that has ended.
    pub(super) fn trailers(&self) -> &[u8] {
        match self {
            Self::Chunked(decoder) => decoder.trailers(),
            Self::Length(_) | Self::Close { .. } => b"",
        }
    }
}
