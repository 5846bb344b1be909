//! Writes the head of an origin's response for a client of HTTP/2.

use chassis::clock::HttpDate;
use http::header::{CONTENT_LENGTH, DATE, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::fields::Kind;
use super::{Delivery, Edited, ResponseHead};
use crate::http1::names::is;

impl ResponseHead<'_> {
    /// The head that the client gets. It has no reason, and nothing that concerns a connection (RFC 9113, section 8.2.2). A 101 becomes
    /// the 200 that an extended CONNECT is answered with (RFC 8441, section 5).
    pub fn to_http2(&self, delivery: &Delivery<'_>) -> Response<()> {
        let switches = self.status == 101;
        let mut fields = HeaderMap::with_capacity(self.fields.len() + 2);
        let edited = delivery.edits(self.status);
        for (index, field) in self.fields.iter().enumerate() {
            let is_handshake =
                Kind::of(field.name) == Kind::Upgrade || (switches && is(field.name, "sec-websocket-accept"));
            let is_dropped = edited.is_some_and(|edited| edited.edits.drop(field.name));
            if self.dropped.contains(index) || is_handshake || is_dropped {
                continue;
            }
            // The parser has let nothing through that is no name or no value.
            if let Ok(name) = HeaderName::from_bytes(field.name.as_bytes())
                && let Ok(value) = HeaderValue::from_bytes(field.value)
            {
                fields.append(name, value);
            }
        }
        let lines = edited
            .map_or(&b""[..], |Edited { lines, .. }| lines)
            .split(|byte| *byte == b'\n');
        for line in lines.filter_map(|line| line.strip_suffix(b"\r")) {
            let Some(end) = memchr::memchr(b':', line) else {
                continue;
            };
            if let Ok(name) = HeaderName::from_bytes(&line[..end])
                && let Ok(value) = HeaderValue::from_bytes(&line[end + 2..])
            {
                fields.append(name, value);
            }
        }
        if let Some(length) = self.length {
            fields.insert(CONTENT_LENGTH, length.into());
        }
        if (switches || self.status >= 200)
            && !self.has_date
            && let Ok(date) = HeaderValue::from_bytes(HttpDate::now().as_bytes())
        {
            fields.insert(DATE, date);
        }
        if let Some(seconds) = delivery.hsts
            && !fields.contains_key(STRICT_TRANSPORT_SECURITY)
            && let Ok(value) = HeaderValue::try_from(format!("max-age={seconds}"))
        {
            fields.insert(STRICT_TRANSPORT_SECURITY, value);
        }
        if let Some(cookie) = delivery.cookie
            && let Ok(value) = HeaderValue::from_str(cookie)
        {
            fields.append(SET_COOKIE, value);
        }
        let mut response = Response::new(());
        let status = if switches { 200 } else { self.status };
        // It is 100 to 999, which is what a status can be.
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
        *response.headers_mut() = fields;
        response
    }
}
