//! Makes the head of a response, as Pingora read it from the origin, unambiguous for the client.

use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::ResponseHeader;
use pingora::prelude::{Error, ErrorType, Result};

use crate::http1::head::is_canonical_length;

/// Makes the framing of a response say one thing, for Pingora passes it on as it came: one Content-Length in digits, none
/// where there can't be a body, HTTP/1.1 as the version, which is this proxy's own.
///
/// # Errors
/// When it says two things, or a transfer coding that nobody here can undo.
pub fn straighten(response: &mut ResponseHeader) -> Result<()> {
    let broken = |what: &'static str| {
        Error::e_explain(ErrorType::InvalidHTTPHeader, what).map_err(|error: Box<Error>| error.into_up())
    };
    response.set_version(Version::HTTP_11);
    if response.status.is_informational() || response.status == StatusCode::NO_CONTENT {
        response.remove_header(&header::CONTENT_LENGTH);
        response.remove_header(&header::TRANSFER_ENCODING);
        return Ok(());
    }
    let (mut chunked, mut lengths, mut canonical) = (false, 0, true);
    for (name, value) in &response.headers {
        if name == header::TRANSFER_ENCODING {
            if chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return broken("the backend's transfer coding is not chunked");
            }
            chunked = true;
        } else if name == header::CONTENT_LENGTH {
            lengths += 1;
            canonical &= is_canonical_length(value.as_bytes());
        }
    }
    if lengths == 0 || (lengths == 1 && canonical) {
        return Ok(());
    }
    let mut meant = None;
    for value in response.headers.get_all(header::CONTENT_LENGTH) {
        for length in value.to_str().unwrap_or_default().split(',') {
            let length = length.trim();
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            match length.parse::<u64>() {
                Ok(length) if digits && *meant.get_or_insert(length) == length => {}
                _ => return broken("the backend's Content-Length says two things"),
            }
        }
    }
    response.insert_header(header::CONTENT_LENGTH, meant.unwrap_or_default())
}

/// Takes off a response what concerns only the connection to the backend. Its framing (Content-Length, Transfer-Encoding)
/// stays, for Pingora to frame the response anew; `Upgrade` stays on the answers that accept one or ask for one.
pub fn strip_hop_by_hop(response: &mut ResponseHeader) {
    // One look for all of them, because most responses have none.
    let switches = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut ending: Vec<HeaderName> = Vec::new();
    for (name, value) in &response.headers {
        let ends = match name.as_str() {
            "keep-alive" | "proxy-connection" => true,
            "upgrade" => !switches && response.status != StatusCode::UPGRADE_REQUIRED,
            "connection" => {
                ending.extend(nominated(value));
                !switches
            }
            _ => false,
        };
        if ends {
            ending.push(name.clone());
        }
    }
    for name in &ending {
        response.remove_header(name);
    }
}

/// The fields that a Connection field says end with the connection. Options are no fields, and framing is not the backend's to
/// take off.
fn nominated(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    let names = value.to_str().unwrap_or_default().split(',');
    names
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name: &HeaderName| {
            !matches!(
                name.as_str(),
                "close" | "keep-alive" | "upgrade" | "content-length" | "transfer-encoding"
            )
        })
}

/// Whether a response to `method` ends with its head.
pub fn has_no_body(method: &Method, response: &ResponseHeader) -> bool {
    let length = response.headers.get(header::CONTENT_LENGTH);
    method == Method::HEAD
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || (!response.status.is_informational() && length.is_some_and(|length| length == "0"))
}

/// Whether the response has to end with its connection, because a client of `version` knows no chunks and the length of
/// the body is not known.
pub fn ends_with_connection(version: Version, response: &ResponseHeader) -> bool {
    version == Version::HTTP_10
        && !response.status.is_informational()
        && !response.headers.contains_key(header::CONTENT_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_fields_of_a_response_go_and_its_framing_stays() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Connection", "close, X-Internal, Content-Length"),
            ("X-Internal", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Upgrade", "h2c"),
            ("Content-Length", "3"),
            ("X-Public", "1"),
        ] {
            response.append_header(name, value).unwrap();
        }
        strip_hop_by_hop(&mut response);
        let mut names: Vec<_> = response.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-public"]);
    }

    #[test]
    fn framing_that_says_one_thing_is_said_once_and_all_other_is_refused() {
        let straightened = |status: u16, fields: &[(&'static str, &str)]| {
            let mut response = ResponseHeader::build(status, None).unwrap();
            for (name, value) in fields {
                response.append_header(*name, *value).unwrap();
            }
            straighten(&mut response)
                .map(|()| {
                    let field = |name| {
                        response
                            .headers
                            .get_all(name)
                            .iter()
                            .map(|value| value.to_str().unwrap().to_owned())
                            .collect::<Vec<_>>()
                            .join("|")
                    };
                    (field("content-length"), field("transfer-encoding"))
                })
                .map_err(drop)
        };
        let length = |length: &str| Ok((length.to_owned(), String::new()));
        assert_eq!(straightened(200, &[("Content-Length", "2")]), length("2"));
        assert_eq!(
            straightened(200, &[("Content-Length", "2"), ("Content-Length", "2")]),
            length("2")
        );
        assert_eq!(straightened(200, &[("Content-Length", "2, 2")]), length("2"));
        assert_eq!(straightened(200, &[("Content-Length", "02")]), length("2"));
        assert_eq!(straightened(204, &[("Content-Length", "2")]), length(""));
        assert_eq!(straightened(103, &[("Transfer-Encoding", "chunked")]), length(""));
        assert_eq!(straightened(200, &[]), length(""));
        assert_eq!(
            straightened(200, &[("Transfer-Encoding", "Chunked")]),
            Ok((String::new(), "Chunked".into()))
        );
        for fields in [
            &[("Content-Length", "2"), ("Content-Length", "3")][..],
            &[("Content-Length", "2, 3")],
            &[("Content-Length", "+2")],
            &[("Content-Length", "")],
            &[("Transfer-Encoding", "gzip")],
            &[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
        ] {
            assert_eq!(straightened(200, fields), Err(()), "{fields:?}");
        }
    }
}
