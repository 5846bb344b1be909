//! What the backend and the client get to see of each other.
//!
//! Pingora takes the hop-by-hop fields off requests; here are the fields that tell the backend whose request it is, and what
//! has to go from responses. What a peer that is not trusted says of itself (X-Forwarded-*, Forwarded, X-Real-IP,
//! X-Request-Id) is replaced, never passed on.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::prelude::{Error, ErrorType, Result};

use crate::client::Client;

const FORWARDED_FOR: &str = "X-Forwarded-For";
const FORWARDED_HOST: &str = "X-Forwarded-Host";
const FORWARDED_PROTO: &str = "X-Forwarded-Proto";
const REQUEST_ID: &str = "X-Request-Id";

/// How this proxy calls itself in `Via`.
const VIA: &str = "1.1 gopherproxy";

/// A longer X-Request-Id is not kept, even from a trusted peer: it goes into the log.
const MAX_REQUEST_ID: usize = 128;

/// The id of a request: what a trusted peer gave it, else a new one of 128 random bits.
pub fn request_id(headers: &HeaderMap, client: Client) -> HeaderValue {
    let is_id = |value: &&HeaderValue| {
        !value.is_empty() && value.len() <= MAX_REQUEST_ID && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let given = client
        .trusted_peer
        .then(|| headers.get(REQUEST_ID))
        .flatten()
        .filter(is_id);
    given.cloned().unwrap_or_else(|| {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
            pair.copy_from_slice(&[byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
        }
        HeaderValue::from_bytes(&digits).expect("hexadecimal digits are a valid value")
    })
}

/// Tells the backend about the request: X-Forwarded-For, -Host and -Proto, X-Request-Id and Via. `Host` stays what it is; a
/// client of HTTP/1.0 that sends none gets `backend`, because the backend hears HTTP/1.1, which requires one.
///
/// # Errors
/// When a field could not be inserted, which the names and values here give no reason for.
pub fn describe_request(
    request: &mut RequestHeader,
    client: Client,
    peer: IpAddr,
    request_id: &HeaderValue,
    backend: &str,
) -> Result<()> {
    let mut forwarded_for = peer.to_canonical().to_string();
    if client.trusted_peer {
        let mut hops: Vec<&str> = request
            .headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|hop| hop.to_str().ok())
            .collect();
        hops.push(&forwarded_for);
        forwarded_for = hops.join(", ");
    } else {
        remove_claims(request);
    }
    request.insert_header(FORWARDED_FOR, forwarded_for)?;
    // What a peer that is not trusted said is gone by now.
    if !client.trusted_peer || !request.headers.contains_key(FORWARDED_PROTO) {
        request.insert_header(FORWARDED_PROTO, HeaderValue::from_static("http"))?;
    }
    if (!client.trusted_peer || !request.headers.contains_key(FORWARDED_HOST))
        && let Some(host) = request.headers.get(header::HOST).cloned()
    {
        request.insert_header(FORWARDED_HOST, host)?;
    }
    if !request.headers.contains_key(header::HOST) {
        request.insert_header(header::HOST, backend)?;
    }
    request.insert_header(REQUEST_ID, request_id)?;
    request.append_header(header::VIA, HeaderValue::from_static(VIA))?;
    Ok(())
}

/// Removes what an untrusted peer says about where its request came from.
fn remove_claims(request: &mut RequestHeader) {
    let claims: Vec<_> = request
        .headers
        .keys()
        .filter(|name| is_claim(name.as_str()))
        .cloned()
        .collect();
    for claim in &claims {
        request.remove_header(claim);
    }
}

/// Whether a field of this name, in lower case, tells where a request came from. CGI and its kin take `_` for `-`.
fn is_claim(name: &str) -> bool {
    const FAMILY: &str = "x-forwarded";
    const OTHERS: [&str; 3] = ["forwarded", "x-real-ip", "x-request-id"];
    let alike = |name: &str, known: &str| {
        name.len() == known.len()
            && std::iter::zip(name.bytes(), known.bytes())
                .all(|(byte, known)| byte == known || (byte == b'_' && known == b'-'))
    };
    name.get(..FAMILY.len()).is_some_and(|family| alike(family, FAMILY))
        || OTHERS.iter().any(|known| alike(name, known))
}

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
    let mut codings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && !(coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none())
    {
        return broken("the backend's transfer coding is not chunked");
    }
    let mut lengths = response.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(());
    };
    let others = lengths.next().is_some();
    let canonical = |value: &HeaderValue| {
        let digits = value.as_bytes();
        !digits.is_empty()
            && digits.iter().all(u8::is_ascii_digit)
            && (digits.first() != Some(&b'0') || digits.len() == 1)
    };
    if !others && canonical(first) {
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

/// Whether one of the `Connection` fields, of which Pingora reads only the first, says that the client closes.
pub fn client_closes(headers: &HeaderMap) -> bool {
    let options = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    options
        .into_iter()
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Takes off a response what concerns only the connection to the backend. Its framing (Content-Length, Transfer-Encoding)
/// stays, for Pingora to frame the response anew; `Upgrade` stays on the answer that accepts one.
pub fn strip_hop_by_hop(response: &mut ResponseHeader) {
    let nominated: Vec<String> = response
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| {
            !matches!(
                name.as_str(),
                "" | "close" | "keep-alive" | "upgrade" | "content-length" | "transfer-encoding"
            )
        })
        .collect();
    for name in &nominated {
        response.remove_header(name.as_str());
    }
    // One look for all of them, because most responses have none.
    let switches = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let hop_by_hop: Vec<HeaderName> = response
        .headers
        .keys()
        .filter(|name| match name.as_str() {
            "keep-alive" | "proxy-connection" => true,
            "connection" | "upgrade" => !switches,
            _ => false,
        })
        .cloned()
        .collect();
    for name in &hop_by_hop {
        response.remove_header(name);
    }
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

    fn described(trusted_peer: bool, fields: &[(&str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in fields {
            request.append_header((*name).to_owned(), *value).unwrap();
        }
        let client = Client {
            address: "192.0.2.1".parse().unwrap(),
            trusted_peer,
        };
        let id = request_id(&request.headers, client);
        describe_request(
            &mut request,
            client,
            "::ffff:10.0.0.1".parse().unwrap(),
            &id,
            "backend:80",
        )
        .unwrap();
        request
    }

    fn all(request: &RequestHeader, name: &str) -> Vec<String> {
        request
            .headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect()
    }

    const CLAIMS: [(&str, &str); 8] = [
        ("Host", "shop.example"),
        ("X-Forwarded-For", "1.1.1.1"),
        ("X-Forwarded-For", "2.2.2.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.shop.example"),
        ("X-Forwarded-Prefix", "/admin"),
        ("X-Real-Ip", "1.1.1.1"),
        ("X-Request-Id", "abc-123"),
    ];

    #[test]
    fn what_an_untrusted_peer_claims_is_replaced() {
        let request = described(false, &CLAIMS);
        assert_eq!(all(&request, "x-forwarded-for"), ["10.0.0.1"]);
        assert_eq!(all(&request, "x-forwarded-proto"), ["http"]);
        assert_eq!(all(&request, "x-forwarded-host"), ["shop.example"]);
        assert_eq!(all(&request, "x-forwarded-prefix"), [""; 0]);
        assert_eq!(all(&request, "x-real-ip"), [""; 0]);
        assert_eq!(all(&request, "via"), ["1.1 gopherproxy"]);
        assert_ne!(all(&request, "x-request-id"), ["abc-123"]);
    }

    #[test]
    fn what_a_trusted_peer_says_is_passed_on_and_the_peer_added() {
        let request = described(true, &CLAIMS);
        assert_eq!(all(&request, "x-forwarded-for"), ["1.1.1.1, 2.2.2.2, 10.0.0.1"]);
        assert_eq!(all(&request, "x-forwarded-proto"), ["https"]);
        assert_eq!(all(&request, "x-forwarded-host"), ["www.shop.example"]);
        assert_eq!(all(&request, "x-real-ip"), ["1.1.1.1"]);
        assert_eq!(all(&request, "x-request-id"), ["abc-123"]);
    }

    #[test]
    fn a_request_id_that_could_be_mischief_is_made_anew() {
        for id in ["", "a b", &"x".repeat(MAX_REQUEST_ID + 1)] {
            let request = described(true, &[("X-Request-Id", id)]);
            let [made] = all(&request, "x-request-id").try_into().unwrap();
            assert_eq!(made.len(), 32, "{made}");
        }
    }

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
    fn claims_are_known_by_all_their_names() {
        for name in [
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded",
            "x_forwarded-host",
            "forwarded",
            "x_real_ip",
            "x_request_id",
        ] {
            assert!(is_claim(name), "{name}");
        }
        for name in ["x-forward", "forwarded-by", "x-real-ip-2", "host", ""] {
            assert!(!is_claim(name), "{name}");
        }
    }

    #[test]
    fn a_client_of_http_1_0_without_a_host_gets_the_backends() {
        assert_eq!(described(false, &[]).headers["host"], "backend:80");
        assert_eq!(described(false, &[("Host", "a")]).headers["host"], "a");
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
