//! The one meaning of a path, by which routes are chosen.
//!
//! A rule about `/admin` is worth nothing if the proxy takes `/x/../admin` for something else and the origin does not. Origins decode,
//! resolve and merge in ways of their own, so [`plain`] refuses what they disagree about, and compares everything else decoded.

use std::borrow::Cow;

/// The path of a target, as routes compare it: without its query, with percent-encoded bytes decoded, and without what follows a `;` in
/// a segment, which some origins take for parameters. `*` and an empty path are `/`.
///
/// # Errors
/// What is ambiguous about it.
pub fn plain(target: &[u8]) -> Result<Cow<'_, [u8]>, &'static str> {
    let path = without_query(target);
    if matches!(path, b"" | b"*") {
        return Ok(Cow::Borrowed(b"/"));
    }
    if memchr::memchr2(b'%', b';', path).is_none() {
        check(path)?;
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path)?;
    check(&decoded)?;
    Ok(Cow::Owned(decoded))
}

/// What comes before the query.
pub fn without_query(target: &[u8]) -> &[u8] {
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    &target[..end]
}

fn check(path: &[u8]) -> Result<(), &'static str> {
    let mut before = 0;
    for (at, byte) in path.iter().enumerate() {
        match byte {
            b'\\' => return Err("the path has a backslash, which some origins take for a slash"),
            b'/' if before == b'/' => return Err("the path has an empty segment, which some origins leave out"),
            b'.' if before == b'/'
                && matches!(
                    path[at..],
                    [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]
                ) =>
            {
                return Err("the path has a segment . or .., which clients resolve before they send it");
            }
            _ if begins_overlong(before, *byte) => return Err(OVERLONG),
            _ => {}
        }
        before = *byte;
    }
    Ok(())
}

const OVERLONG: &str = "the path has an overlong form of UTF-8, which some origins decode to a dot or a slash";

/// Whether these two bytes begin the encoding of a character in more bytes than it takes (RFC 3629, section 3). The two long forms are from
/// before that RFC.
const fn begins_overlong(lead: u8, next: u8) -> bool {
    match lead {
        0xc0 | 0xc1 => matches!(next, 0x80..=0xbf),
        0xe0 => matches!(next, 0x80..=0x9f),
        0xf0 => matches!(next, 0x80..=0x8f),
        0xf8 => matches!(next, 0x80..=0x87),
        0xfc => matches!(next, 0x80..=0x83),
        _ => false,
    }
}

fn decode(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    let mut is_parameter = false;
    let mut before = 0;
    while let [byte, after @ ..] = rest {
        rest = after;
        let mut byte = *byte;
        if byte == b'/' {
            is_parameter = false;
        } else if byte == b'%' {
            let digits = match *rest {
                [high, low, ..] => hex(high).zip(hex(low)),
                _ => None,
            };
            let Some((high, low)) = digits else {
                return Err("the path has a % without two hexadecimal digits after it");
            };
            byte = high << 4 | low;
            rest = &rest[2..];
            match byte {
                b'/' | b'\\' => return Err("the path has an encoded slash or backslash, which some origins decode"),
                0..b' ' | 0x7f => return Err("the path has an encoded control character"),
                _ => {}
            }
        } else if byte == b'\\' {
            // In a parameter too, which `check` does not see.
            is_parameter = false;
        }
        // The same.
        if begins_overlong(before, byte) {
            return Err(OVERLONG);
        }
        before = byte;
        is_parameter |= byte == b';';
        if !is_parameter {
            decoded.push(byte);
        }
    }
    Ok(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_compared_decoded_and_without_parameters() {
        for (target, expected) in [
            ("/", "/"),
            ("", "/"),
            ("?a", "/"),
            ("*", "/"),
            ("/a/b?c=/../d", "/a/b"),
            ("/%61dmin", "/admin"),
            ("/%41%2d%7e", "/A-~"),
            ("/a%20b", "/a b"),
            ("/\u{e4}", "/\u{e4}"),
            ("/%C3%a4", "/\u{e4}"),
            ("/%2561", "/%61"),
            // Characters of two, three and four bytes, the first of each length.
            ("/%c2%80%e0%a0%80%F0%90%80%80", "/\u{80}\u{800}\u{10000}"),
            ("/\u{80}\u{800}\u{10000}", "/\u{80}\u{800}\u{10000}"),
            // A full-width dot and slash are characters like any other.
            ("/%ef%bc%8e%ef%bc%8e%ef%bc%8fa", "/\u{ff0e}\u{ff0e}\u{ff0f}a"),
            ("/a%3Fb", "/a?b"),
            ("/admin;x=1/users;y", "/admin/users"),
            ("/admin%3Bx", "/admin"),
            ("/a/", "/a/"),
            ("/.well-known/a", "/.well-known/a"),
            ("/a../b..", "/a../b.."),
            ("/...", "/..."),
            ("/a.b", "/a.b"),
        ] {
            assert_eq!(plain(target.as_bytes()).as_deref(), Ok(expected.as_bytes()), "{target}");
        }
    }

    #[test]
    fn what_origins_disagree_about_is_refused() {
        for (target, word) in [
            ("/a/../b", "segment . or .."),
            ("/..", "segment . or .."),
            ("/./a", "segment . or .."),
            ("/a/.", "segment . or .."),
            ("/a/.?b", "segment . or .."),
            ("/%2e%2E/a", "segment . or .."),
            ("/a/.%2e", "segment . or .."),
            ("/a/..;/b", "segment . or .."),
            ("/a/.;x", "segment . or .."),
            ("/a/..%3b/b", "segment . or .."),
            ("/a%2fb", "encoded slash"),
            ("/a%2Fb", "encoded slash"),
            ("/a%5cb", "encoded slash"),
            ("/a;b%2fc", "encoded slash"),
            ("/a\\b", "backslash"),
            ("/a;b\\c", "backslash"),
            ("//a", "empty segment"),
            ("/a//b", "empty segment"),
            ("/a/;b/c", "empty segment"),
            ("/a%00", "control"),
            ("/a%7F", "control"),
            ("/a%0d%0a", "control"),
            ("/%c0%ae%c0%ae/admin", "overlong"),
            ("/a%C0%AFb", "overlong"),
            ("/a%c1%9cb", "overlong"),
            ("/%c1%a1dmin", "overlong"),
            ("/a%e0%80%afb", "overlong"),
            ("/a%e0%9f%bfb", "overlong"),
            ("/a%f0%80%80%afb", "overlong"),
            ("/a%f8%80%80%80%afb", "overlong"),
            ("/a%fc%80%80%80%80%afb", "overlong"),
            ("/a;%c0%af../b", "overlong"),
            ("/admin%c0%bbx", "overlong"),
            ("/%u002e%u002e/a", "two hexadecimal digits"),
            ("/%", "two hexadecimal digits"),
            ("/%6", "two hexadecimal digits"),
            ("/%zz", "two hexadecimal digits"),
            ("/%+1", "two hexadecimal digits"),
        ] {
            let refused = plain(target.as_bytes()).unwrap_err();
            assert!(refused.contains(word), "{target}: {refused}");
        }
        for target in [
            &b"/\xc0\xae\xc0\xae/admin"[..],
            b"/\xc0%ae/",
            b"/%c0\xae/",
            b"/a\xe0\x80\xae",
            b"/a;\xc0\xaf",
        ] {
            let refused = plain(target).unwrap_err();
            assert!(refused.contains("overlong"), "{refused}");
        }
    }
}
