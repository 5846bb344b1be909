//! Reads a request head that came over HTTP/2 as one of HTTP/1.1, by the same rules.
//!
//! `h2` refuses what breaks RFC 9113 in a way that it knows: such a stream is reset, and nobody sees its request. What it lets pass
//! goes through [`check`], because the origin gets it over HTTP/1.1: what could be read in two ways there is refused here.

use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::request::Parts;

use crate::http1::head::{Body, Head, MOST_FIELDS, Rules, Version, check};
use crate::http1::names::is_in_token;
use crate::http1::target::{Origin, Scheme, is_same_host};
use crate::http1::violation::Violation;
use crate::rejection::Rejection;

/// The bytes of a field beside its name and its value, in HTTP/1.1.
const PER_FIELD: usize = ": \r\n".len();

/// The parts of a head that HTTP/1.1 has and HTTP/2 hasn't.
#[derive(Debug)]
pub struct Made {
    /// All cookies in one field (RFC 9113, section 8.2.3), if there are several.
    cookies: Option<Vec<u8>>,
    /// `Sec-WebSocket-Key`, which an extended CONNECT doesn't have (RFC 8441, section 5).
    key: String,
}

impl Made {
    /// Those for the head with these parts.
    pub fn of(parts: &Parts) -> Self {
        let all = parts.headers.get_all(COOKIE);
        // One without anything would only leave white space at the end.
        let cookies: Vec<_> = all
            .iter()
            .map(|one| one.as_bytes())
            .filter(|one| !one.is_empty())
            .collect();
        Self {
            cookies: (all.iter().count() > 1).then(|| cookies.join(&b"; "[..])),
            key: if is_websocket(parts) { key() } else { String::new() },
        }
    }
}

fn is_websocket(parts: &Parts) -> bool {
    let protocol = parts.extensions.get::<Protocol>();
    protocol.is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// 16 random bytes in Base64 (RFC 6455, section 4.1): 128 bits are 21 digits and a third of another.
fn key() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = fastrand::u128(..);
    let mut key = String::with_capacity(24);
    for _ in 0..21 {
        key.push(char::from(DIGITS[(bits & 63) as usize]));
        bits >>= 6;
    }
    key.push(char::from(DIGITS[(bits << 4) as usize & 63]));
    key + "=="
}

/// The target of a request with these parts: of origin form, or `*`; empty for CONNECT.
pub fn target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("", |path| path.as_str())
}

/// Checks the head with these parts, whose body `ends` with it or does not, and which may be `max_head` bytes long. Its fields are
/// put into `fields`.
///
/// # Errors
/// The first rule that it breaks.
pub fn read<'b>(
    parts: &'b Parts,
    made: &'b Made,
    fields: &'b mut Vec<httparse::Header<'b>>,
    ends: bool,
    rules: &Rules,
    max_head: usize,
) -> Result<Head<'b>, Violation> {
    let malformed = |rule| Err(Violation::malformed(rule));
    let target = target(parts);
    let scheme = match parts.uri.scheme_str() {
        None | Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(_) => return malformed("the scheme is neither http nor https"),
    };
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        let origin = Origin { scheme, authority };
        let mut hosts = parts.headers.get_all(HOST).iter();
        if hosts.any(|host| !is_same_host(origin, host.as_bytes())) {
            return malformed("Host and :authority name different hosts");
        }
        fields.push(httparse::Header {
            name: "host",
            value: authority,
        });
    }
    let mut cookies = false;
    for (name, value) in &parts.headers {
        let mut value = value.as_bytes();
        if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value {
            return malformed("a value has white space around it");
        }
        if name == HOST && authority.is_some() {
            continue;
        }
        if name == COOKIE
            && let Some(all) = &made.cookies
        {
            if std::mem::replace(&mut cookies, true) {
                continue;
            }
            value = all;
        }
        // The library takes a quotation mark for a part of a name.
        if !name.as_str().bytes().all(is_in_token) {
            return malformed("the name of a field has a byte that no name may have");
        }
        fields.push(httparse::Header {
            name: name.as_str(),
            value,
        });
    }
    if fields.len() > rules.max_fields.min(MOST_FIELDS) {
        return Err(Violation::new(
            Rejection::HeadTooLarge,
            "it has more fields than client.max_fields",
        ));
    }
    let size = |field: &httparse::Header<'_>| field.name.len() + field.value.len() + PER_FIELD;
    let line = parts.method.as_str().len() + target.len();
    if line > max_head {
        return Err(Violation::new(
            Rejection::UriTooLong,
            "the target is longer than client.max_head",
        ));
    }
    if line + fields.iter().map(size).sum::<usize>() > max_head {
        return Err(Violation::new(
            Rejection::HeadTooLarge,
            "the head is longer than client.max_head",
        ));
    }
    let Some(protocol) = parts.extensions.get::<Protocol>() else {
        let mut head = check(parts.method.as_str(), target.as_bytes(), Version::Http2, fields, rules)?;
        if !ends && !parts.headers.contains_key(CONTENT_LENGTH) {
            head.body = Body::Chunked;
        }
        return Ok(head);
    };
    if !made.key.is_empty() && !parts.headers.contains_key("sec-websocket-key") {
        fields.push(httparse::Header {
            name: "sec-websocket-key",
            value: made.key.as_bytes(),
        });
    }
    // RFC 8441, section 5: the origin is asked to switch as in HTTP/1.1.
    let mut head = check("GET", target.as_bytes(), Version::Http2, fields, rules)?;
    let Some(protocol) = rules.protocol(protocol.as_str().as_bytes()) else {
        return Err(Violation::new(
            Rejection::NotImplemented,
            ":protocol is none of client.upgrades",
        ));
    };
    if head.body != Body::Length(0) {
        return malformed("a request to switch to another protocol has a length");
    }
    head.body = Body::Upgrade;
    head.upgrade = Some(protocol);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_none_over_http1_is_refused() {
        for (name, accepted) in [("x-a", true), ("x\"a", false)] {
            let (mut parts, ()) = http::Request::get("http://a/").body(()).unwrap().into_parts();
            let field = http::HeaderName::from_lowercase(name.as_bytes()).unwrap();
            parts.headers.insert(field, http::HeaderValue::from_static("b"));
            let (made, mut fields) = (Made::of(&parts), Vec::new());
            let read = read(&parts, &made, &mut fields, true, &Rules::default(), 1000);
            assert_eq!(read.is_ok(), accepted, "{name}");
        }
    }
}
