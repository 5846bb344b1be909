//! Writes what an authentication service is asked, and adds to the head of a request what its answer says.
//!
//! The service gets the client's fields, because it knows which of them it needs. It does not get those that concern a connection, a body
//! or a stored response: the question has neither a body nor a condition. Nor does it get what a client could deceive it with.

use bytes::Bytes;
use pingora::http::RequestHeader;
use pingora::prelude::Result;

use crate::config::{ForwardAuth, Shape};
use crate::headers::origin_response::ResponseHead;
use crate::headers::request::Span;
use crate::http1::head::Head;
use crate::http1::names::{is, is_alike, is_claim, is_hop_by_hop};

/// Fields that are not passed on: the question has a host of its own and no body, and wants a whole answer. The last one is another
/// proxy's way to name what was asked for, which some services believe rather than `X-Forwarded-Uri`.
const NOT_ASKED: [&str; 4] = ["host", "expect", "range", "x-rewrite-url"];

/// The same by how they begin. `X-Original-URL` and its like are such names too.
const FAMILIES_NOT_ASKED: [&str; 3] = ["content-", "if-", "x-original-"];

/// What the service is told as the backend is.
const AS_THE_BACKEND: [&str; 4] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// Credentials. The service judges them, even if backends get others from it.
const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];

/// The request that asks `auth` for the one with this head, of a route with this `shape`. The backend gets the fields at `spans` of
/// `written`.
pub fn question(head: &Head<'_>, shape: &Shape, auth: &ForwardAuth, written: &[u8], spans: &[Span]) -> Bytes {
    let mut question = Vec::with_capacity(written.len() + 256);
    let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| question.extend_from_slice(part));
    let service = auth.url.service.to_string();
    let host = service.strip_suffix(":80").unwrap_or(&service);
    put(&[
        b"GET ",
        auth.url.target.as_bytes(),
        b" HTTP/1.1\r\nHost: ",
        host.as_bytes(),
        b"\r\n",
    ]);
    for field in head.fields {
        if is_asked(field.name, shape, auth) && !head.nominates(field.name) {
            put(&[field.name.as_bytes(), b": ", field.value, b"\r\n"]);
        }
    }
    let slash: &[u8] = if matches!(head.path.first(), Some(b'/' | b'*')) {
        b""
    } else {
        b"/"
    };
    put(&[b"X-Forwarded-Method: ", head.method.as_bytes(), b"\r\n"]);
    put(&[b"X-Forwarded-Uri: ", slash, head.path, b"\r\n"]);
    for span in spans {
        let name = String::from_utf8_lossy(&written[span.name()]);
        if AS_THE_BACKEND.iter().any(|told| is(told, &name)) {
            put(&[name.as_bytes(), b": ", &written[span.value()], b"\r\n"]);
        }
    }
    put(&[b"\r\n"]);
    question.into()
}

/// Whether the service gets a client's field of this name.
fn is_asked(name: &str, shape: &Shape, auth: &ForwardAuth) -> bool {
    let of_family = |family: &str| name.get(..family.len()).is_some_and(|start| is_alike(start, family));
    let is_credential = CREDENTIALS.iter().any(|one| is(one, name));
    !is_hop_by_hop(name)
        && !is_claim(name)
        && !shape.is_password(name)
        && !NOT_ASKED.iter().any(|one| is_alike(name, one))
        && !FAMILIES_NOT_ASKED.iter().any(|family| of_family(family))
        && (is_credential || !auth.decides(name))
}

/// Adds to a request what backends get of an `answer`: to its `head`, and to its `header` for Pingora.
///
/// # Errors
/// When a field is none to the library that holds the header.
pub fn add_copied(
    answer: &ResponseHead<'_>,
    auth: &ForwardAuth,
    head: &mut Bytes,
    header: &mut RequestHeader,
) -> Result<()> {
    let mut lines = Vec::new();
    for name in &auth.copy {
        for value in answer.values(name) {
            header.append_header(name.clone(), value)?;
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
    }
    if !lines.is_empty() {
        let fields = head.strip_suffix(b"\r\n").unwrap_or(head);
        *head = [fields, &lines, b"\r\n"].concat().into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::request::RequestId;
    use crate::headers::request::{Origination, Shaping, write_request};
    use crate::http1::head as parser;

    /// The lines of the question about the request with this head, from a peer that is trusted or not, in order.
    fn lines(keys: &str, request: &str, trusted_peer: bool) -> Vec<String> {
        let shape = Shape::of(keys).unwrap();
        let mut scratch = parser::scratch();
        let head = parser::parse(request.as_bytes(), &mut scratch, &parser::Rules::default()).unwrap();
        let about = Origination {
            peer: "10.0.0.1",
            trusted_peer,
            tls: None,
            backend: "backend:80",
            id: &RequestId::given(b"id").unwrap(),
            shape: Some(Shaping {
                shape: &shape,
                client: "192.0.2.1",
                route: "shop",
            }),
        };
        let (mut written, mut spans) = (Vec::new(), Vec::new());
        write_request(&head, about, &mut written, &mut spans);
        let question = question(&head, &shape, shape.auth.as_ref().unwrap(), &written, &spans);
        let text = String::from_utf8(question.to_vec()).unwrap();
        let lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n");
        lines.map(str::to_owned).collect()
    }

    const AUTH: &str = "forward_auth: {url: http://auth/, copy: [Cookie, Remote-User]}";

    #[test]
    fn a_question_has_the_client_s_fields_but_for_those_of_connection_body_condition_and_claims() {
        let head = "POST /shop/a?b HTTP/1.1\r\nHost: shop\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nContent-Length: 2\r\nContent-Type: a/b\r\n\
                    TE: trailers\r\nExpect: 100-continue\r\nIf-Match: x\r\nRange: bytes=0-1\r\nProxy-Authorization: secret\r\nCookie: a=b\r\n\
                    remote_user: admin\r\nX_Original_Url: /\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Uri: /public\r\nX-Forwarded-For: 192.0.2.9\r\n\
                    Accept: c/d\r\n\r\n";
        let keys = format!("{{{AUTH}, strip_prefix: /shop, request_headers: {{remove: [Accept]}}}}");
        let expected = |proto: &str, hops: &str| {
            let all = "GET / HTTP/1.1\nHost: auth\nCookie: a=b\nAccept: c/d\nX-Forwarded-Method: POST\nX-Forwarded-Uri: /shop/a?b\n";
            let mut lines: Vec<_> = all.lines().map(str::to_owned).collect();
            lines.extend([
                format!("X-Forwarded-Proto: {proto}"),
                "X-Forwarded-Host: shop".to_owned(),
                format!("X-Forwarded-For: {hops}"),
                "X-Request-Id: id".to_owned(),
            ]);
            lines
        };
        assert_eq!(lines(&keys, head, false), expected("http", "10.0.0.1"));
        // What a trusted proxy says of the client holds, but not which request this is.
        assert_eq!(lines(&keys, head, true), expected("https", "192.0.2.9, 10.0.0.1"));
    }

    #[test]
    fn a_password_that_the_proxy_verifies_goes_to_no_service() {
        let head = "GET * HTTP/1.0\r\nAuthorization: Basic secret\r\n\r\n".replace("GET *", "OPTIONS *");
        let passed = lines(&format!("{{{AUTH}}}"), &head, false);
        assert!(passed.contains(&"Authorization: Basic secret".to_owned()), "{passed:?}");
        let kept = lines(&format!("{{{AUTH}, basic_auth: /etc/users}}"), &head, false);
        let expected = "GET / HTTP/1.1|Host: auth|X-Forwarded-Method: OPTIONS|X-Forwarded-Uri: *|X-Forwarded-Proto: http|\
                        X-Forwarded-For: 10.0.0.1|X-Request-Id: id";
        assert_eq!(kept.join("|"), expected);
    }

    #[test]
    fn backends_get_the_fields_of_an_answer_by_the_names_in_copy() {
        let shape = Shape::of(AUTH).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nremote-user: a\r\nRemote-User: b\r\nRemote_User: c\r\nOther: d\r\n\r\n";
        let mut room = parser::room();
        let (answer, _) = crate::headers::origin_response::parse(answer, &mut room, false)
            .unwrap()
            .unwrap();
        let mut head = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut header = RequestHeader::build("GET", b"/", None).unwrap();
        add_copied(&answer, shape.auth.as_ref().unwrap(), &mut head, &mut header).unwrap();
        assert_eq!(
            head,
            "GET / HTTP/1.1\r\nHost: a\r\nRemote-User: a\r\nRemote-User: b\r\n\r\n"
        );
        let values: Vec<_> = header.headers.get_all("remote-user").iter().collect();
        assert_eq!(values, ["a", "b"]);
    }
}
