//! What the clients of the proxy's own answers read: a line, the same in JSON, or a page of the operator's.
//!
//! Each has the request's id, so that a user can report it and an operator find it in the log.

use bytes::Bytes;
use http::StatusCode;

use super::Rejection;

/// In which form a client wants to read what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As text, or as the operator's page.
    Text,
    /// As JSON: it takes nothing else.
    Json,
    /// As a status of gRPC, without a body.
    Grpc,
}

impl Form {
    /// The form for a client whose `Accept` fields have these values.
    pub fn accepted<'v>(accept: impl Iterator<Item = &'v [u8]>) -> Self {
        let mut form = Self::Text;
        for range in accept.flat_map(|value| value.split(|byte| *byte == b',')) {
            match Range::of(range) {
                Range::Json => form = Self::Json,
                Range::None => {}
                Range::Other => return Self::Text,
            }
        }
        form
    }

    /// The form for the client of a request with this head, as the origin gets it.
    pub fn of_head(head: &[u8]) -> Self {
        let lines = head.split(|byte| *byte == b'\n').skip(1);
        Self::accepted(lines.filter_map(|line| {
            let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
            name.eq_ignore_ascii_case(b"accept").then_some(&value[1..])
        }))
    }
}

/// What a media range means here (RFC 9110, section 12.5.1).
enum Range {
    Json,
    Other,
    /// Nothing: it is empty, or says what is not accepted.
    None,
}

impl Range {
    fn of(range: &[u8]) -> Self {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let kind = parts.next().unwrap_or_default();
        let is_zero = |weight: &[u8]| weight.iter().all(|byte| matches!(byte, b'0' | b'.'));
        let refused = |part: &[u8]| matches!(part, [b'q' | b'Q', b'=', weight @ ..] if is_zero(weight));
        if kind.is_empty() || parts.any(refused) {
            return Self::None;
        }
        let kind = kind.to_ascii_lowercase();
        match kind.strip_prefix(b"application/") {
            Some(subtype) if subtype == b"json" || subtype.ends_with(b"+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body<'b> {
    /// One line of text, with the request's id.
    Line(Rejection, &'b str),
    /// One object of JSON.
    Json(String),
    /// The operator's page, with the request's id as it stands there.
    Page(&'b Page, String),
    /// What an authority asks for.
    Proof(&'b [u8]),
    /// The answer of a route.
    Prepared(&'b Prepared),
}

/// An answer that the operator has written, with a status of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Its status.
    pub status: u16,
    /// Its media type.
    pub content_type: String,
    /// Empty if the status allows none.
    pub body: Bytes,
}

impl Prepared {
    /// The words that belong to the status.
    pub fn phrase(&self) -> &'static str {
        let status = StatusCode::from_u16(self.status).ok();
        status.and_then(|status| status.canonical_reason()).unwrap_or_default()
    }
}

impl Body<'_> {
    /// The status and its phrase, if they are not those of the rejection.
    pub fn status(&self) -> Option<(u16, &'static str)> {
        match self {
            Self::Prepared(answer) => Some((answer.status, answer.phrase())),
            _ => None,
        }
    }

    /// Its media type.
    pub fn content_type(&self) -> &str {
        match self {
            Self::Prepared(answer) => &answer.content_type,
            Self::Line(..) | Self::Proof(_) => "text/plain",
            Self::Json(_) => "application/json",
            Self::Page(page, _) => page.kind.content_type(),
        }
    }

    /// Its length, in bytes.
    pub fn length(&self) -> usize {
        match self {
            Self::Line(rejection, id) => line(*rejection, id).iter().map(|part| part.len()).sum(),
            Self::Json(text) => text.len(),
            Self::Page(page, id) => {
                let pieces: usize = page.pieces.iter().map(Bytes::len).sum();
                pieces + (page.pieces.len() - 1) * id.len()
            }
            Self::Proof(proof) => proof.len(),
            Self::Prepared(answer) => answer.body.len(),
        }
    }

    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Line(rejection, id) => {
                for part in line(*rejection, id) {
                    out.extend_from_slice(part.as_bytes());
                }
            }
            Self::Json(text) => out.extend_from_slice(text.as_bytes()),
            Self::Page(page, id) => {
                for (index, piece) in page.pieces.iter().enumerate() {
                    if index > 0 {
                        out.extend_from_slice(id.as_bytes());
                    }
                    out.extend_from_slice(piece);
                }
            }
            Self::Proof(proof) => out.extend_from_slice(proof),
            Self::Prepared(answer) => out.extend_from_slice(&answer.body),
        }
    }

    /// The same in pieces. All requests share those of a page, so that clients who read nothing make the proxy hold no copies.
    pub fn pieces(&self) -> Vec<Bytes> {
        let (page, id) = match self {
            Self::Page(page, id) => (page, id),
            Self::Prepared(answer) if answer.body.is_empty() => return Vec::new(),
            Self::Prepared(answer) => return vec![answer.body.clone()],
            _ => {
                let mut whole = Vec::with_capacity(self.length());
                self.write(&mut whole);
                return vec![whole.into()];
            }
        };
        let id = Bytes::copy_from_slice(id.as_bytes());
        let mut pieces = Vec::with_capacity(2 * page.pieces.len());
        for (index, piece) in page.pieces.iter().enumerate() {
            if index > 0 {
                pieces.push(id.clone());
            }
            pieces.push(piece.clone());
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

/// The line, in parts: nothing is put together before it is sent.
fn line(rejection: Rejection, id: &str) -> [&str; 6] {
    let (phrase, happened) = (rejection.phrase(), rejection.happened());
    [phrase, ": ", happened, " (request ", id, ")\n"]
}

/// What a page is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HTML.
    Html,
    /// JSON.
    Json,
    /// Plain text.
    Text,
}

impl Kind {
    /// That of files whose names end so.
    pub fn of_extension(extension: &str) -> Option<Self> {
        Some(match extension {
            "html" | "htm" => Self::Html,
            "json" => Self::Json,
            "txt" => Self::Text,
            _ => return None,
        })
    }

    const fn content_type(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
        }
    }

    /// `text` as it may stand in a page.
    fn escape(self, text: &str) -> String {
        let mut escaped = String::with_capacity(text.len());
        for char in text.chars() {
            match (self, char) {
                (Self::Html, '&') => escaped.push_str("&amp;"),
                (Self::Html, '<') => escaped.push_str("&lt;"),
                (Self::Html, '>') => escaped.push_str("&gt;"),
                (Self::Html, '"') => escaped.push_str("&quot;"),
                (Self::Html, '\'') => escaped.push_str("&#39;"),
                (Self::Json, '"' | '\\') => escaped.extend(['\\', char]),
                _ => escaped.push(char),
            }
        }
        escaped
    }
}

/// An operator's page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    kind: Kind,
    /// What stands before, between and after the places of the request's id; never empty.
    pieces: Vec<Bytes>,
}

impl Page {
    /// The page with this text for answers of this status. `{status}` and `{request_id}` in it are replaced.
    pub fn new(kind: Kind, text: &str, status: u16) -> Self {
        let text = text.replace("{status}", itoa::Buffer::new().format(status));
        let pieces = text
            .split("{request_id}")
            .map(|piece| Bytes::copy_from_slice(piece.as_bytes()));
        Self {
            kind,
            pieces: pieces.collect(),
        }
    }
}

/// The operator's pages, by status.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pages(Vec<(u16, Page)>);

impl Pages {
    /// These pages.
    pub fn new(pages: Vec<(u16, Page)>) -> Self {
        Self(pages)
    }

    /// What a client reads in this form whose request, with this `id`, was answered with `rejection`. (One of gRPC reads no body.)
    pub fn body<'b>(&'b self, rejection: Rejection, form: Form, id: &'b str) -> Body<'b> {
        let page = self.0.iter().find(|(status, _)| *status == rejection.status());
        match (page, form) {
            (Some((_, page)), Form::Text) => Body::Page(page, page.kind.escape(id)),
            (Some((_, page)), Form::Json) if page.kind == Kind::Json => Body::Page(page, page.kind.escape(id)),
            (_, Form::Json) => Body::Json(json(rejection, id)),
            (None, Form::Text) | (_, Form::Grpc) => Body::Line(rejection, id),
        }
    }
}

fn json(rejection: Rejection, id: &str) -> String {
    let (phrase, happened, status) = (rejection.phrase(), rejection.happened(), rejection.status());
    let id = Kind::Json.escape(id);
    format!("{{\"error\":\"{phrase}: {happened}\",\"status\":{status},\"request_id\":\"{id}\"}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &Body<'_>) -> String {
        let mut written = Vec::new();
        body.write(&mut written);
        assert_eq!(body.length(), written.len());
        assert_eq!(body.pieces().concat(), written);
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn only_who_accepts_nothing_but_json_gets_json() {
        for (accept, form) in [
            (&[][..], Form::Text),
            (&[""], Form::Text),
            (&["*/*"], Form::Text),
            (&["application/json"], Form::Json),
            (&["Application/JSON; q=0.5"], Form::Json),
            (&["application/problem+json, application/json"], Form::Json),
            (&["application/json", "application/vnd.api+json"], Form::Json),
            (&["application/json, */*;q=0.1"], Form::Text),
            (&["application/json", "text/html"], Form::Text),
            (&["application/json, text/html; q=0"], Form::Json),
            (&["application/json; q=0.0"], Form::Text),
            (&["application/*"], Form::Text),
            (&["application/jsonp"], Form::Text),
            (&["text/html"], Form::Text),
        ] {
            assert_eq!(
                Form::accepted(accept.iter().map(|value| value.as_bytes())),
                form,
                "{accept:?}"
            );
            let fields: String = accept.iter().map(|value| format!("aCCept: {value}\r\n")).collect();
            let head = format!("GET /accept:text/html HTTP/1.1\r\nHost: a\r\n{fields}X-Accept: a/b\r\n\r\n");
            assert_eq!(Form::of_head(head.as_bytes()), form, "{head}");
        }
    }

    #[test]
    fn every_answer_says_what_happened_in_one_line_with_the_id() {
        let none = Pages::default();
        for rejection in Rejection::ALL {
            let line = text(&none.body(rejection, Form::Text, "7f3a"));
            assert!(
                line.ends_with(" (request 7f3a)\n") && line.matches('\n').count() == 1,
                "{line}"
            );
            assert!(line.starts_with(rejection.phrase()), "{line}");
            let object = none.body(rejection, Form::Json, "a\"\\b");
            assert_eq!(object.content_type(), "application/json");
            let object: serde_json::Value = serde_json::from_str(&text(&object)).unwrap();
            assert_eq!(object["status"], rejection.status());
            assert_eq!(object["request_id"], "a\"\\b");
            assert!(object["error"].as_str().is_some_and(|error| line.starts_with(error)));
        }
    }

    #[test]
    fn a_page_replaces_the_line_and_nothing_gets_out_of_its_place() {
        let page = |kind, text| (502, Page::new(kind, text, 502));
        let pages = |kind, text| Pages::new(vec![page(kind, text)]);
        let body = |pages: &Pages, form, id| text(&pages.body(Rejection::BackendFailed, form, id));
        let html = pages(Kind::Html, "<b>{status}</b>{request_id}, {request_id}{x}");
        assert_eq!(
            body(&html, Form::Text, "1<&'\">"),
            "<b>502</b>1&lt;&amp;&#39;&quot;&gt;, 1&lt;&amp;&#39;&quot;&gt;{x}"
        );
        assert!(body(&html, Form::Json, "1").starts_with("{\"error\":\"Bad Gateway: "));
        let other = text(&html.body(Rejection::NoBackend, Form::Text, "1"));
        assert!(other.starts_with("Service Unavailable: "), "{other}");
        let json = pages(Kind::Json, "{\"id\":\"{request_id}\"}");
        for form in [Form::Text, Form::Json] {
            assert_eq!(body(&json, form, "a\"\\"), "{\"id\":\"a\\\"\\\\\"}");
        }
        assert_eq!(body(&pages(Kind::Text, ""), Form::Text, "<"), "");
        assert_eq!(body(&pages(Kind::Text, "{request_id}"), Form::Text, "<"), "<");
    }
}
