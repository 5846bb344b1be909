//! The head of an origin's response: read strictly, and written anew for the client.
//!
//! The head says how the origin delimits the body (RFC 9112, section 6.3) and whether its connection may be used again. A head that
//! can be read in two ways is an error, and any doubt about where the response ends costs the connection. The client
//! gets one framing, and the origin's fields in their order without those that concern the connection alone.

mod compressed;
mod fields;
mod http2;

use std::ops::Range;

use bytes::{BufMut, BytesMut};
use chassis::clock::HttpDate;

use crate::config::Edits;
use crate::exchange::request::Request;
use crate::headers::origin_response::fields::{
    Coding, Connection, Indices, Kind, Length, drop_all, drop_nominated, holds,
};
use crate::http1::head;
use crate::http1::names::{is, is_in_token};
use crate::http1::violation::{LF_ALONE, has_lf_alone};
pub use compressed::{Compressed, trailers_of_compressed};

/// The longest head, in bytes.
pub const MAX_HEAD: usize = 64 << 10;

/// More fields that `Connection` nominates are an error: each is looked for among all.
const MAX_NOMINATED: usize = 32;

/// The most bytes that [`ResponseHead::write`] adds to the status line and the fields.
const ADDED: usize = 192;

/// The field that `Delivery::hsts` is for.
const HSTS: &str = "strict-transport-security";

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none, whatever the head says.
    None,
    /// By its length, in bytes, which may be 0.
    Length(u64),
    /// By its last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// How a response is delivered to the client.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'r> {
    /// The connection to the client is kept, if the response can end without its end.
    pub keeps: bool,
    /// The client speaks HTTP/1.0: it knows no chunks. It must not get a 1xx response at all.
    pub old: bool,
    /// Trailers can be passed on.
    pub trailers: bool,
    /// For so many seconds the client should use TLS and nothing else (RFC 6797). What the origin says of that counts for more.
    pub hsts: Option<u64>,
    /// The value of a `Set-Cookie` of the proxy's own.
    pub cookie: Option<&'r str>,
    /// What the route changes in a final response.
    pub edits: Option<Edited<'r>>,
}

/// What a route changes in the fields of a response.
#[derive(Debug, Clone, Copy)]
pub struct Edited<'r> {
    /// Which of the origin's fields go.
    pub edits: &'r Edits,
    /// The fields that come, each a line with its CRLF.
    pub lines: &'r [u8],
}

impl<'r> Edited<'r> {
    /// What the route of `request` changes.
    pub fn of(request: &'r Request) -> Option<Self> {
        let shaped = request.shaped.as_deref()?;
        let shape = request.route.shape.as_deref()?;
        Some(Self {
            edits: &shape.response_headers,
            lines: &shaped.response_fields,
        })
    }
}

impl Delivery<'_> {
    /// What the route changes in a response of this `status`.
    fn edits(&self, status: u16) -> Option<Edited<'_>> {
        self.edits.filter(|_| status >= 200 || status == 101)
    }
}

/// The head of an origin's response.
#[derive(Debug, Clone, Copy)]
pub struct ResponseHead<'b> {
    /// 100 to 999.
    pub status: u16,
    /// How the origin delimits the body.
    pub framing: Framing,
    /// The origin keeps the connection (RFC 9112, section 9.3), and there is no doubt about where this response ends. There always is after
    /// HEAD, and where a length or a coding announces a body that cannot be.
    pub reusable: bool,
    reason: &'b [u8],
    fields: &'b [httparse::Header<'b>],
    /// The field lines as received; `None` if there are only `fields`.
    raw: Option<&'b [u8]>,
    /// The fields that the client doesn't get.
    dropped: Indices,
    /// Content-Length, if it isn't one of the fields as the client gets it.
    length: Option<u64>,
    has_date: bool,
    has_trailer: bool,
    /// `Upgrade` is passed on.
    upgrades: bool,
}

/// Reads the head at the start of `bytes`; `None` if it has not all arrived. The number is the length of the head, its empty line
/// included. `to_head`: the request was HEAD.
///
/// # Errors
/// What is wrong with it, for the log: fixed words, and nothing of the head.
pub fn parse<'b>(
    bytes: &'b [u8],
    room: &'b mut head::Room<'b>,
    to_head: bool,
) -> Result<Option<(ResponseHead<'b>, usize)>, &'static str> {
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut response, bytes, room) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
        Ok(_) => return Err("the head is longer than 64 KiB"),
        Err(error) => return Err(fault(error)),
    };
    let head = &bytes[..length];
    let fields: &'b [httparse::Header<'b>] = response.headers;
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err("the status line is incomplete");
    };
    let start = fields.first().map_or(length, |field| offset(head, field.name));
    // httparse takes LF for the end of a line, and nowhere else.
    let ends = |line: usize| head[..line].ends_with(b"\r\n");
    let lines_end = fields.iter().all(|field| ends(offset(head, field.name))) && head.ends_with(b"\r\n\r\n");
    if !lines_end || (!head.starts_with(b"H") && has_lf_alone(&head[..start])) {
        return Err(LF_ALONE);
    }
    let start = start.min(length - 2);
    // httparse gives no reason that is not ASCII, which RFC 9112, section 4 allows.
    let line = head[..start].trim_ascii_start();
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let reason = line.get(REASON..).unwrap_or_default();
    let head = ResponseHead {
        raw: Some(&head[start..length - 2]),
        ..ResponseHead::read(status, minor, reason, fields, to_head)?
    };
    Ok(Some((head, length)))
}

/// Where in its line the reason begins.
const REASON: usize = "HTTP/1.1 200 ".len();

/// Where in `bytes` the `part` of them begins.
fn offset(bytes: &[u8], part: &str) -> usize {
    part.as_ptr().addr() - bytes.as_ptr().addr()
}

fn fault(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "the name of a field is not a token",
        httparse::Error::HeaderValue => "a field has a control character",
        httparse::Error::NewLine => "a CR is not followed by LF",
        httparse::Error::Status => "the status is not three digits and a reason",
        httparse::Error::Token => "a token has a control character",
        httparse::Error::TooManyHeaders => "there are more than 240 fields",
        httparse::Error::Version => "the version is neither HTTP/1.1 nor HTTP/1.0",
    }
}

impl<'b> ResponseHead<'b> {
    /// The head with these parts, for a response that another parser has read. `minor` is 0 for HTTP/1.0 and 1 for all later versions.
    ///
    /// # Errors
    /// As [`parse`] has them.
    pub fn from_fields(
        status: u16,
        minor: u8,
        reason: &'b [u8],
        fields: &'b [httparse::Header<'b>],
        to_head: bool,
    ) -> Result<Self, &'static str> {
        if !reason.iter().all(is_text) {
            return Err("the reason has a control character");
        }
        if fields.len() > head::MOST_FIELDS {
            return Err("there are more than 240 fields");
        }
        for field in fields {
            if field.name.is_empty() || !field.name.bytes().all(is_in_token) {
                return Err("the name of a field is not a token");
            }
            if !field.value.iter().all(is_text) {
                return Err("a field has a control character");
            }
        }
        Self::read(status, minor, reason, fields, to_head)
    }

    /// Of fields that have been checked one by one.
    fn read(
        status: u16,
        minor: u8,
        reason: &'b [u8],
        fields: &'b [httparse::Header<'b>],
        to_head: bool,
    ) -> Result<Self, &'static str> {
        if !(100..1000).contains(&status) {
            return Err("the status is less than 100");
        }
        let switches = status == 101;
        if switches && minor == 0 {
            return Err("a response of HTTP/1.0 switches protocols");
        }
        let mut dropped = Indices::default();
        let mut connection = Connection::default();
        let (mut length, mut coding) = (Length::None, Coding::None);
        let (mut has_date, mut has_trailer, mut upgrades) = (false, false, false);
        for (index, field) in fields.iter().enumerate() {
            let drops = match Kind::of(field.name) {
                Kind::Other => false,
                Kind::Date => {
                    has_date = true;
                    false
                }
                Kind::HopByHop => true,
                Kind::Connection => {
                    connection.read(field.value);
                    true
                }
                Kind::Upgrade => {
                    upgrades |= switches || status == 426;
                    !(switches || status == 426)
                }
                Kind::Trailer => {
                    has_trailer = true;
                    false
                }
                Kind::TransferEncoding => {
                    coding = coding.and(field.value);
                    true
                }
                Kind::ContentLength => {
                    length = length.and(field.value);
                    false
                }
            };
            if drops {
                dropped.insert(index);
            }
        }
        if connection.nominated > MAX_NOMINATED {
            return Err("Connection names more than 32 fields");
        }
        if connection.nominated > 0 {
            drop_nominated(fields, &mut dropped);
            has_date &= holds(fields, dropped, Kind::Date);
        }

        // Neither says anything where there can't be a body, whatever it says.
        let bodiless = status < 200 || status == 204;
        let announced =
            coding != Coding::None || !matches!(length, Length::None | Length::One(0) | Length::Rewritten(0));
        let framing = match (coding, length) {
            _ if bodiless => Framing::None,
            (Coding::Unknown, _) => return Err("the transfer coding is not chunked"),
            (Coding::Chunked, _) if minor == 0 => {
                // RFC 9112, section 6.1: the framing is faulty. Readers of HTTP/1.0 know no chunks.
                return Err("a response of HTTP/1.0 has a transfer coding");
            }
            (Coding::None, Length::Faulty) => return Err("Content-Length is not one number"),
            _ if to_head || status == 304 => Framing::None,
            (Coding::Chunked, _) => Framing::Chunked,
            (Coding::None, Length::One(length) | Length::Rewritten(length)) => Framing::Length(length),
            (Coding::None, Length::None) => Framing::Close,
        };
        let rewritten = match length {
            Length::None => None,
            Length::One(_) if !bodiless && coding == Coding::None => None,
            length => {
                drop_all(fields, &mut dropped, Kind::ContentLength);
                match length {
                    Length::Rewritten(length) if !bodiless && coding == Coding::None => Some(length),
                    _ => None,
                }
            }
        };
        let keeps = !connection.close && (minor == 1 || connection.keep_alive);
        let ends = match framing {
            Framing::None => !to_head && !announced && !switches,
            Framing::Length(_) => true,
            // A length beside a coding does not count (RFC 9112, section 6.3), but one that is none puts everything in doubt.
            Framing::Chunked => length != Length::Faulty,
            Framing::Close => false,
        };
        Ok(Self {
            status,
            framing,
            reusable: keeps && ends,
            reason,
            fields,
            raw: None,
            dropped,
            length: rewritten,
            has_date,
            has_trailer,
            upgrades,
        })
    }

    /// The same for a response that is known to have no body, though its head doesn't say so: HTTP/2 says that beside the head.
    pub fn without_body(self) -> Self {
        self.with_length(0)
    }

    /// The same for a response whose body is known to have this `length`, though its head may not say so.
    pub fn with_length(self, length: u64) -> Self {
        match self.framing {
            Framing::Chunked | Framing::Close => Self {
                framing: Framing::Length(length),
                length: Some(length),
                ..self
            },
            Framing::None | Framing::Length(_) => self,
        }
    }

    /// The values of all fields of this name that may be passed on, in order.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        let dropped = self.dropped;
        let passed = self
            .fields
            .iter()
            .enumerate()
            .filter(move |(index, _)| !dropped.contains(*index));
        passed.filter_map(move |(_, field)| is(field.name, name).then_some(field.value))
    }

    /// The protocol to which a 101 switches; `None` for any other response, and where not exactly one `Upgrade` field names it.
    pub fn upgrade(&self) -> Option<&'b [u8]> {
        let mut values = self.fields.iter().filter(|field| Kind::of(field.name) == Kind::Upgrade);
        let protocol = values.next()?.value;
        (self.status == 101 && values.next().is_none()).then_some(protocol)
    }

    /// Appends the head that the client gets. Returns how the body behind it must be delimited.
    pub fn write(&self, delivery: &Delivery<'_>, out: &mut BytesMut) -> Framing {
        let framing = match self.framing {
            Framing::Chunked | Framing::Close if delivery.old => Framing::Close,
            Framing::Chunked | Framing::Close => Framing::Chunked,
            framing => framing,
        };
        let (status, digit) = (self.status, |number: u16| b"0123456789"[usize::from(number % 10)]);
        let digits = [digit(status / 100), digit(status / 10), digit(status), b' '];
        let raw = self.raw.map_or(0, <[u8]>::len);
        out.reserve(ADDED + self.reason.len() + raw);
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(&digits);
        out.put_slice(self.reason);
        out.put_slice(b"\r\n");

        let mut dropped = self.dropped;
        let trailers = delivery.trailers && (self.framing, framing) == (Framing::Chunked, Framing::Chunked);
        if self.has_trailer && !trailers {
            drop_all(self.fields, &mut dropped, Kind::Trailer);
        }
        let edited = delivery.edits(self.status);
        if let Some(Edited { edits, .. }) = edited {
            for (index, field) in self.fields.iter().enumerate() {
                if edits.drop(field.name) {
                    dropped.insert(index);
                }
            }
        }
        let mut from = 0;
        for index in dropped.iter() {
            self.write_fields(from..index, out);
            from = index + 1;
        }
        self.write_fields(from..self.fields.len(), out);
        if let Some(Edited { lines, .. }) = edited {
            out.put_slice(lines);
        }

        if let Some(length) = self.length {
            out.put_slice(b"Content-Length: ");
            out.put_slice(itoa::Buffer::new().format(length).as_bytes());
            out.put_slice(b"\r\n");
        }
        if framing == Framing::Chunked {
            out.put_slice(b"Transfer-Encoding: chunked\r\n");
        }
        if self.status >= 200 && !self.has_date {
            out.put_slice(b"Date: ");
            out.put_slice(HttpDate::now().as_bytes());
            out.put_slice(b"\r\n");
        }
        if let Some(seconds) = delivery.hsts
            && !self.fields.iter().any(|field| is(field.name, HSTS))
            && edited.is_none_or(|edited| !edited.edits.adds(HSTS))
        {
            out.put_slice(b"Strict-Transport-Security: max-age=");
            out.put_slice(itoa::Buffer::new().format(seconds).as_bytes());
            out.put_slice(b"\r\n");
        }
        if let Some(cookie) = delivery.cookie {
            out.reserve(ADDED + cookie.len());
            out.put_slice(b"Set-Cookie: ");
            out.put_slice(cookie.as_bytes());
            out.put_slice(b"\r\n");
        }
        let keeps = delivery.keeps && framing != Framing::Close;
        // RFC 9110, section 7.8: where there is `Upgrade`, `Connection` says so.
        out.put_slice(match (self.status, self.upgrades, keeps) {
            (101, ..) => b"Connection: upgrade\r\n\r\n",
            (..200, ..) => b"\r\n",
            (_, false, true) => b"Connection: keep-alive\r\n\r\n",
            (_, false, false) => b"Connection: close\r\n\r\n",
            (_, true, true) => b"Connection: upgrade, keep-alive\r\n\r\n",
            (_, true, false) => b"Connection: upgrade, close\r\n\r\n",
        });
        framing
    }

    /// Appends some of the fields: as they came, if their lines are there.
    fn write_fields(&self, fields: Range<usize>, out: &mut BytesMut) {
        if fields.is_empty() {
            return;
        }
        let Some(raw) = self.raw else {
            for field in &self.fields[fields] {
                out.put_slice(field.name.as_bytes());
                out.put_slice(b": ");
                out.put_slice(field.value);
                out.put_slice(b"\r\n");
            }
            return;
        };
        let start = |index: usize| {
            let field = self.fields.get(index);
            field.map_or(raw.len(), |field| offset(raw, field.name))
        };
        out.put_slice(&raw[start(fields.start)..start(fields.end)]);
    }
}

/// Whether `byte` may be in a value or a reason.
fn is_text(byte: &u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests;
