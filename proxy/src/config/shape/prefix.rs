//! `strip_prefix` and `add_prefix`: the path that a backend gets.

use chassis::settings::Section;

use crate::http1::path;

/// Changes to the beginning of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix {
    /// Taken away where a path begins with it, as whole segments.
    pub strip: Option<String>,
    /// Put in front of what is left.
    pub add: Option<String>,
}

impl Prefix {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            strip: section.value("strip_prefix", None, None, prefix),
            add: section.value("add_prefix", None, None, prefix),
        }
    }

    /// The target of a request that has this one: what comes first, and what comes then. Also what was taken away.
    pub fn apply<'t>(&'t self, target: &'t [u8]) -> ([&'t [u8]; 2], Option<&'t str>) {
        if target == b"*" {
            return ([b"", target], None);
        }
        let (rest, stripped) = match self
            .strip
            .as_deref()
            .and_then(|strip| Some((after(strip, target)?, strip)))
        {
            Some((rest, strip)) => (rest, Some(strip)),
            None => (target, None),
        };
        match &self.add {
            Some(add) => ([add.as_bytes(), rest], stripped),
            None if rest.first() == Some(&b'/') => ([b"", rest], stripped),
            None => ([b"/", rest], stripped),
        }
    }
}

/// What comes after the segments of `prefix` in `target`; `None` if it doesn't begin with them, as routes compare paths.
fn after<'t>(prefix: &str, target: &'t [u8]) -> Option<&'t [u8]> {
    let path = path::plain(target).ok()?;
    let rest = path.strip_prefix(prefix.as_bytes())?;
    if !matches!(rest.first(), None | Some(b'/')) {
        return None;
    }
    // However the segments are written, there are as many: a plain path has no encoded slash, and no segment that is none.
    let segments = prefix.bytes().filter(|byte| *byte == b'/').count();
    let length = path::without_query(target).len();
    let end = memchr::memchr_iter(b'/', &target[..length])
        .nth(segments)
        .unwrap_or(length);
    Some(&target[end..])
}

/// Some segments of a path.
fn prefix(text: &str) -> Result<Option<String>, String> {
    let is_plain =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%' | b';' | b'"' | b'<' | b'>');
    let is_prefix = text.starts_with('/') && !text.ends_with('/') && text.bytes().all(is_plain);
    if is_prefix && path::plain(text.as_bytes()).is_ok() {
        return Ok(Some(text.to_owned()));
    }
    Err("the beginning of a path, such as /api, without a slash at its end".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_stripped_and_added_by_whole_segments() {
        let prefix = |strip: &str, add: &str| Prefix {
            strip: prefix(strip).ok().flatten(),
            add: prefix(add).ok().flatten(),
        };
        for (strip, add, target, expected, stripped) in [
            ("/api", "", "/api/x?a=/b", "/x?a=/b", true),
            ("/api", "", "/api", "/", true),
            ("/api", "", "/api/", "/", true),
            ("/api", "", "/api?q", "/?q", true),
            ("/api", "", "/apix", "/apix", false),
            ("/api", "", "/x/api", "/x/api", false),
            ("/api", "", "*", "*", false),
            ("/api", "", "", "/", false),
            ("/api", "", "?q", "/?q", false),
            // However it is written.
            ("/api", "", "/%61pi/%61", "/%61", true),
            ("/api", "", "/api;v=1/x", "/x", true),
            ("/api", "", "/%41pi/x", "/%41pi/x", false),
            ("/a/b", "", "/a/%62/c/d", "/c/d", true),
            ("/a/b", "", "/a/b", "/", true),
            ("", "/v1", "/x?q", "/v1/x?q", false),
            ("", "/v1", "/", "/v1/", false),
            ("", "/v1", "?q", "/v1?q", false),
            ("/api", "/v1", "/api/x", "/v1/x", true),
            ("/api", "/v1", "/api", "/v1", true),
            ("/api", "/v1", "/other", "/v1/other", false),
        ] {
            let prefix = prefix(strip, add);
            let (parts, taken) = prefix.apply(target.as_bytes());
            assert_eq!(
                parts.concat().escape_ascii().to_string(),
                expected,
                "{strip} {add} {target}"
            );
            assert_eq!(taken, stripped.then_some(strip), "{strip} {add} {target}");
        }
    }

    #[test]
    fn a_prefix_that_means_several_things_is_none() {
        for text in [
            "", "/", "api", "/api/", "/a/../b", "/a//b", "/a%2fb", "/a?b", "/a b", "/a;b", "/a\\b", "/\u{e4}",
        ] {
            assert!(prefix(text).is_err(), "{text}");
        }
        for text in ["/api", "/a/b.c", "/~x"] {
            assert!(prefix(text).is_ok(), "{text}");
        }
    }
}
