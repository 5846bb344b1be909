//! `http2`: what a client connection of HTTP/2 may take beside what every client may.

use chassis::settings::{Section, size, truth, whole};

/// The largest window, in bytes (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The smallest: what a client may send before it has heard of any other.
const MIN_WINDOW: u32 = (1 << 16) - 1;

/// What a client connection of HTTP/2 may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http2 {
    /// Whether clients may speak HTTP/2 without TLS, by prior knowledge.
    pub cleartext: bool,
    /// Streams that may be open at a time.
    pub max_streams: u32,
    /// How much of a request body may wait to be read, in bytes.
    pub stream_window: u32,
    /// The same of all streams together.
    pub connection_window: u32,
    /// How much of a response may wait for the client's connection, in bytes.
    pub send_buffer: usize,
    /// Streams with a fault of the client's that are reset before the connection is ended.
    pub max_resets: usize,
}

impl Http2 {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let limits = Self {
            cleartext: section.value("cleartext", None, false, truth),
            max_streams: section.value("max_streams", None, 100, whole(1..=10_000)),
            stream_window: section.value("stream_window", None, 256 << 10, window),
            connection_window: section.value("connection_window", None, 1 << 20, window),
            send_buffer: section.value("send_buffer", None, 64 << 10, send_buffer),
            max_resets: section.value("max_resets", None, 256, whole(1..=100_000)),
        };
        section.finish();
        limits
    }
}

fn window(text: &str) -> Result<u32, String> {
    let bytes = size(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
    bytes
        .filter(|bytes| (MIN_WINDOW..=MAX_WINDOW).contains(bytes))
        .ok_or_else(|| "a size from 64KiB to 2147483647B".to_owned())
}

fn send_buffer(text: &str) -> Result<usize, String> {
    let bytes = size(text).ok().and_then(|bytes| usize::try_from(bytes).ok());
    bytes
        .filter(|bytes| (4 << 10..=16 << 20).contains(bytes))
        .ok_or_else(|| "a size from 4KiB to 16MiB".to_owned())
}
