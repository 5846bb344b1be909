//! `request_headers` and `response_headers`: fields that are set, added and removed.

use std::fmt;

use chassis::settings::{Section, nearest};

use crate::http1::names::{is, is_alike, is_claim, is_hop_by_hop, is_in_token, unified};

/// The most fields that a route may set, add and remove in one direction: each costs every request time.
pub(super) const MOST: usize = 64;

/// Changes to the fields of a head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// The fields that go, as [`is_alike`] compares them: those that are removed, and those that are set, in place of which others come.
    dropped: Vec<String>,
    /// The fields that come, in order, each with its value.
    added: Vec<(String, Vec<Part>)>,
}

/// A part of the value of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// This text.
    Text(String),
    /// The address of the client.
    Client,
    /// The host that the request names.
    Host,
    /// The id of the request.
    RequestId,
    /// The name of the route.
    Route,
}

/// The names in braces that stand for something.
const PLACES: [&str; 4] = ["client", "host", "request_id", "route"];

impl Edits {
    pub(super) fn of_requests(section: Section<'_>) -> Self {
        Self::read(section, request_name)
    }

    pub(super) fn of_responses(section: Section<'_>) -> Self {
        Self::read(section, response_name)
    }

    fn read(mut section: Section<'_>, name: impl Fn(&str) -> Result<String, String> + Copy) -> Self {
        let set = section.pairs("set", name, value);
        let added = section.pairs("add", name, value);
        let removed = section.list("remove", None, Vec::new(), name);
        if let Some((both, _)) = set
            .iter()
            .find(|(name, _)| removed.iter().any(|removed| is(name, removed)))
        {
            let problem = format_args!("{both} is in set too, which replaces it; leave it out of one of them");
            section.settings().mistake(&section.place("remove"), problem);
        }
        if set.len() + added.len() + removed.len() > MOST {
            let problem = format_args!("set, add and remove have more than {MOST} fields together; change fewer");
            section.settings().mistake(&section.place("set"), problem);
        }
        section.finish();
        let set_names = set.iter().map(|(name, _)| name);
        Self {
            dropped: set_names.chain(&removed).map(|name| unified(name)).collect(),
            added: set.into_iter().chain(added).collect(),
        }
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.added.is_empty()
    }

    /// Whether a field of this name goes. Its other spellings do too, which some servers take for the same name: a client could send
    /// what it may not under one of them.
    pub fn drop(&self, name: &str) -> bool {
        self.dropped.iter().any(|dropped| is_alike(name, dropped))
    }

    /// Whether a field of this name comes.
    pub fn adds(&self, name: &str) -> bool {
        self.added.iter().any(|(added, _)| is(added, name))
    }

    /// The fields that come, in order.
    pub fn added(&self) -> &[(String, Vec<Part>)] {
        &self.added
    }
}

/// The names of the fields, without their values, which may be secrets.
impl fmt::Display for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = || self.added.iter().map(|(name, _)| name.as_str());
        let added = |replaces: bool| names().filter(|name| self.drop(name) == replaces).collect::<Vec<_>>();
        let dropped = self.dropped.iter().map(String::as_str);
        let removed: Vec<_> = dropped
            .filter(|dropped| !names().any(|name| is_alike(name, dropped)))
            .collect();
        let all = [("set", added(true)), ("add", added(false)), ("remove", removed)];
        let parts = all.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<_> = parts
            .map(|(key, names)| format!("{key} {}", names.join(", ")))
            .collect();
        f.write_str(&parts.join("; "))
    }
}

/// The name of a field that a client may send and an origin get.
pub(super) fn request_name(text: &str) -> Result<String, String> {
    let name = field_name(text)?;
    if is_claim(&name) || is_alike(&name, "via") {
        return Err("a field that the proxy does not write itself; it tells backends who the client is by X-Forwarded-*, X-Request-Id and Via".into());
    }
    if is_alike(&name, "host") {
        return Err("a field other than Host, which backends get as the client sent it".into());
    }
    if is_alike(&name, "expect") {
        return Err("a field other than Expect, which the proxy answers too".into());
    }
    Ok(name)
}

/// The name of a field that an origin may send and a client get.
fn response_name(text: &str) -> Result<String, String> {
    let name = field_name(text)?;
    if is(&name, "date") {
        return Err("a field other than Date, which is the time of the response".into());
    }
    Ok(name)
}

fn field_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 128 || !text.bytes().all(is_in_token) {
        return Err("the name of a field, such as X-Frame-Options".into());
    }
    if is_hop_by_hop(text) || is_alike(text, "content-length") {
        return Err("a field that does not concern a connection or the length of a body".into());
    }
    Ok(text.to_owned())
}

/// The value of a field. Only what looks like a place in braces has to be one: other braces stand for themselves, as in JSON.
fn value(text: &str) -> Result<Vec<Part>, String> {
    if text.is_empty() || text.len() > 4096 || !text.bytes().all(|byte| matches!(byte, b' '..=b'~' | 0x80..)) {
        return Err(
            "a value of one line, not empty, with at most 4096 bytes; list a field in remove to take it away".into(),
        );
    }
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('{') {
        plain.push_str(before);
        let name = from.split_once('}').map(|(name, _)| name);
        let Some(name) = name.filter(|name| is_place(name)) else {
            plain.push('{');
            rest = from;
            continue;
        };
        let part = match name {
            "client" => Part::Client,
            "host" => Part::Host,
            "request_id" => Part::RequestId,
            "route" => Part::Route,
            _ => {
                let near = nearest(name, PLACES);
                let near = near.map_or(String::new(), |near| format!("; did you mean {{{near}}}?"));
                return Err(format!(
                    "{{client}}, {{host}}, {{request_id}} or {{route}} and not {{{name}}}{near}"
                ));
            }
        };
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(part);
        rest = &from[name.len() + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

fn is_place(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    #[test]
    fn places_in_braces_are_parts_of_values_and_other_braces_are_text() {
        for (written, parts) in [
            ("DENY", vec![text("DENY")]),
            ("{client}", vec![Part::Client]),
            ("a {host}{route}", vec![text("a "), Part::Host, Part::Route]),
            ("{request_id};", vec![Part::RequestId, text(";")]),
            ("{\"a\":{\"b\":1}}", vec![text("{\"a\":{\"b\":1}}")]),
            ("{", vec![text("{")]),
            ("{}", vec![text("{}")]),
            ("{{client}}", vec![text("{"), Part::Client, text("}")]),
        ] {
            assert_eq!(value(written).as_ref(), Ok(&parts), "{written}");
        }
        assert!(value("{clent}").unwrap_err().contains("did you mean {client}?"));
        for wrong in ["", "a\r\nb", "a\nb", "\0", "a\tb", "\u{7f}"] {
            assert!(value(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_names_of_fields_are_shown_and_no_value() {
        let shape = crate::config::Shape::of(
            "request_headers: {set: {X-Key: hush, X-b: hush}, add: {X-Site: hush}, remove: [Cookie, X-C]}",
        );
        let edits = shape.unwrap().request_headers;
        assert_eq!(edits.to_string(), "set X-Key, X-b; add X-Site; remove cookie, x-c");
        let shape = crate::config::Shape::of("request_headers: {set: {X_User: hush}, remove: [X_C]}");
        assert_eq!(shape.unwrap().request_headers.to_string(), "set X_User; remove x-c");
        assert_eq!(Edits::default().to_string(), "");
    }

    #[test]
    fn what_frames_a_message_or_says_who_the_client_is_cannot_be_changed() {
        let both = [
            "Connection",
            "te",
            "Transfer-Encoding",
            "transfer_encoding",
            "Content-Length",
            "Upgrade",
            "a b",
            "",
            "a:",
        ];
        let of_requests = [
            "Host",
            "X-Forwarded-For",
            "x_forwarded_for",
            "X-Request-Id",
            "Forwarded",
            "X-Real-Ip",
            "Via",
            "Expect",
        ];
        for name in both {
            assert!(request_name(name).is_err() && response_name(name).is_err(), "{name}");
        }
        for name in of_requests {
            assert!(request_name(name).is_err(), "{name}");
        }
        assert!(response_name("Date").is_err());
        for name in ["Server", "X-User", "Cookie", "Authorization"] {
            assert!(request_name(name).is_ok() && response_name(name).is_ok(), "{name}");
        }
    }
}
