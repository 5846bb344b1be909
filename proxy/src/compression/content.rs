//! Which types of content are worth compressing.

use crate::http1::list::members;

/// The shortest body of a known length that is compressed, in bytes. A shorter one fits into a packet as it is.
pub const MIN_LENGTH: u64 = 1024;

/// What is text, or compresses like it, beside `text/*` and what ends with `+json` or `+xml`.
const TYPES: [&str; 12] = [
    "application/json",
    "application/javascript",
    "application/x-javascript",
    "application/ecmascript",
    "application/xml",
    "application/x-ndjson",
    "application/yaml",
    "application/toml",
    "application/wasm",
    "application/vnd.ms-fontobject",
    "font/ttf",
    "font/otf",
];

/// Whether a body with this `Content-Type` is worth compressing.
pub fn is_compressible(content_type: &[u8]) -> bool {
    let end = content_type.iter().position(|byte| *byte == b';');
    let media = content_type[..end.unwrap_or(content_type.len())].trim_ascii();
    let Ok(media) = str::from_utf8(media) else {
        return false;
    };
    let media = media.to_ascii_lowercase();
    // It compresses its messages itself.
    if media.starts_with("application/grpc") {
        return false;
    }
    media.starts_with("text/") || media.ends_with("+json") || media.ends_with("+xml") || TYPES.contains(&&*media)
}

/// Whether a line of `Cache-Control` forbids that a body is changed (RFC 9111, section 5.2.2.6).
pub fn forbids_transforming(cache_control: &[u8]) -> bool {
    members(cache_control).any(|directive| directive.eq_ignore_ascii_case(b"no-transform"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_compressible_and_what_is_compressed_is_not() {
        for media in [
            "text/html",
            "text/html; charset=utf-8",
            "Text/HTML ;charset=utf-8",
            "text/event-stream",
            "application/json",
            "application/problem+json",
            "application/atom+xml",
            "image/svg+xml",
            "application/wasm",
            "application/javascript;a=\"b;c\"",
        ] {
            assert!(is_compressible(media.as_bytes()), "{media}");
        }
        for media in [
            "",
            ";",
            "text",
            "image/png",
            "image/webp",
            "video/mp4",
            "audio/ogg",
            "font/woff2",
            "application/zip",
            "application/gzip",
            "application/pdf",
            "application/octet-stream",
            "application/grpc",
            "application/grpc+json",
            "application/grpc-web-text",
            "application/jsonx",
            "multipart/form-data",
            "\u{e4}text/html",
        ] {
            assert!(!is_compressible(media.as_bytes()), "{media}");
        }
        assert!(!is_compressible(b"text/\xff"));
    }
}
