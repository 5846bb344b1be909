//! What the backend and the client get to see of each other.
//!
//! Pingora takes the hop-by-hop fields off requests; here are the fields that tell the backend whose request it is, and what
//! has to go from responses. What a peer that is not trusted says of itself (X-Forwarded-*, Forwarded, X-Real-IP,
//! X-Request-Id) is replaced, never passed on.

use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use crate::client::Client;

const FORWARDED_FOR: &str = "X-Forwarded-For";
const FORWARDED_HOST: &str = "X-Forwarded-Host";
const FORWARDED_PROTO: &str = "X-Forwarded-Proto";
const REQUEST_ID: &str = "X-Request-Id";
const REAL_IP: &str = "X-Real-Ip";

/// How this proxy calls itself in `Via`.
const VIA: &str = "1.1 gopherproxy";

/// A longer X-Request-Id is not kept, even from a trusted peer: it goes into the log.
const MAX_REQUEST_ID: usize = 128;

/// The id of a request: what a trusted peer gave it, else a new one of 128 random bits.
pub fn request_id(headers: &HeaderMap, client: Client) -> HeaderValue {
    let is_id = |value: &&HeaderValue| {
        !value.is_empty() && value.len() <= MAX_REQUEST_ID && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    let given = headers.get(REQUEST_ID).filter(|_| client.trusted_peer).filter(is_id);
    given.cloned().unwrap_or_else(|| {
        HeaderValue::try_from(format!("{:032x}", fastrand::u128(..))).expect("hexadecimal digits are a valid value")
    })
}

/// Tells the backend about the request: X-Forwarded-For, -Host and -Proto, X-Request-Id and Via.
///
/// # Errors
/// When a field could not be inserted, which the names and values here give no reason for.
pub fn describe_request(
    request: &mut RequestHeader,
    client: Client,
    peer: IpAddr,
    request_id: &HeaderValue,
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
    if !request.headers.contains_key(FORWARDED_PROTO) {
        request.insert_header(FORWARDED_PROTO, HeaderValue::from_static("http"))?;
    }
    if !request.headers.contains_key(FORWARDED_HOST)
        && let Some(host) = request.headers.get(header::HOST).cloned()
    {
        request.insert_header(FORWARDED_HOST, host)?;
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
        .filter(|name| name.as_str().starts_with("x-forwarded-"))
        .cloned()
        .collect();
    for claim in &claims {
        request.remove_header(claim);
    }
    request.remove_header(&header::FORWARDED);
    request.remove_header(REAL_IP);
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
    response.remove_header("Keep-Alive");
    response.remove_header("Proxy-Connection");
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        response.remove_header(&header::CONNECTION);
        response.remove_header(&header::UPGRADE);
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
        describe_request(&mut request, client, "::ffff:10.0.0.1".parse().unwrap(), &id).unwrap();
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
}
