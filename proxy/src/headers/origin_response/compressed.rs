//! The head of an origin's response as its client gets it where its route compresses responses.

use memchr::memmem;

use super::fields::{Kind, drop_all};
use super::{Edited, Framing, ResponseHead};
use crate::compression::accept::Coding;
use crate::compression::content::{MIN_LENGTH, forbids_transforming, is_compressible};
use crate::config::Edits;
use crate::headers::edits::without;
use crate::http1::list::members;
use crate::http1::names::is;

/// Sums of the body (RFC 9530, and before it). A response with one, or that announces one as a trailer, is not compressed, because the
/// sum would be wrong.
const SUMS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// What is not the same for a compressed body.
const REPLACED: [&str; 4] = ["content-length", "content-encoding", "accept-ranges", "etag"];

/// A head for a client to which compression matters.
pub struct Compressed<'b> {
    /// The head without what the route replaces.
    pub head: ResponseHead<'b>,
    /// How the body must be compressed; `None`: not at all, because this client accepts no coding.
    pub coding: Option<Coding>,
    /// The length of the body before that, if it is known.
    pub length: Option<u64>,
    edits: &'b Edits,
    lines: Vec<u8>,
}

impl Compressed<'_> {
    /// What is changed in its fields.
    pub fn edited(&self) -> Edited<'_> {
        Edited {
            edits: self.edits,
            lines: &self.lines,
        }
    }
}

/// The fields that decide, as the client would get them.
#[derive(Default)]
struct Seen<'b> {
    content_type: Option<&'b [u8]>,
    etag: Option<&'b [u8]>,
    varies: bool,
    /// It must stay as it is.
    stays: bool,
}

impl<'b> Seen<'b> {
    fn read(&mut self, name: &str, value: &'b [u8]) {
        if is(name, "content-type") {
            // Who knows which of two counts.
            self.stays |= self.content_type.replace(value).is_some();
        } else if is(name, "content-encoding") {
            self.stays |= members(value).any(|coding| !coding.eq_ignore_ascii_case(b"identity"));
        } else if is(name, "cache-control") {
            self.stays |= forbids_transforming(value);
        } else if is(name, "etag") {
            self.etag = Some(value);
        } else if is(name, "vary") {
            self.varies |= members(value).any(|field| field == b"*" || field.eq_ignore_ascii_case(b"accept-encoding"));
        } else if is(name, "trailer") {
            self.stays |= members(value).any(|field| str::from_utf8(field).is_ok_and(is_sum));
        } else {
            self.stays |= is(name, "content-range") || is_sum(name);
        }
    }
}

impl<'b> ResponseHead<'b> {
    /// The head for a client that accepts this `coding`, if any, where the route compresses responses and changes what `edited` says.
    /// `None`: compression changes nothing about this response, whatever its client accepts.
    pub fn compressed(&self, coding: Option<Coding>, edited: Edited<'b>) -> Option<Compressed<'b>> {
        let length = match self.framing {
            // A response to HEAD has the fields that GET would get (RFC 9110, section 9.3.2).
            Framing::None if self.status >= 200 && !matches!(self.status, 204 | 304) => self.announced(),
            Framing::None => return None,
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::Close => None,
        };
        if self.status == 206 || length.is_some_and(|length| length < MIN_LENGTH) {
            return None;
        }
        let seen = self.seen(edited);
        if seen.stays || !seen.content_type.is_some_and(is_compressible) {
            return None;
        }
        let mut head = *self;
        let mut lines = Vec::with_capacity(edited.lines.len() + 128);
        if let Some(coding) = coding {
            head.compress();
            extend_without(&mut lines, edited.lines, is_replaced);
            field(&mut lines, "Content-Encoding", &[coding.name().as_bytes()]);
            // The bytes are others than those that the origin has named so (RFC 9110, section 8.8.3.3).
            match seen.etag {
                Some(weak) if weak.starts_with(b"W/\"") => field(&mut lines, "ETag", &[weak]),
                Some(strong) if strong.starts_with(b"\"") => field(&mut lines, "ETag", &[b"W/", strong]),
                _ => {}
            }
        } else {
            lines.extend_from_slice(edited.lines);
        }
        if !seen.varies {
            field(&mut lines, "Vary", &[b"Accept-Encoding"]);
        }
        Some(Compressed {
            head,
            coding,
            length,
            edits: edited.edits,
            lines,
        })
    }

    /// The head of a response with 304 to a client that accepts a coding and has sent `request`, where the route compresses responses: with
    /// the weak tag of a compressed body if that is the one that the client asks about. `None`: it stays as it is.
    ///
    /// The head does not say whether a response with 200 would be compressed, because it seldom has a `Content-Type`. A cache must not use it
    /// for what it has stored if it names a strong tag that is not the stored one (RFC 9111, section 4.3.4).
    pub fn revalidated(&self, request: &[u8], edited: Edited<'b>) -> Option<Compressed<'b>> {
        let seen = self.seen(edited);
        let tag = seen.etag.filter(|tag| tag.starts_with(b"\""))?;
        let weak = [b"W/", tag].concat();
        let tags = request.split(|byte| *byte == b'\n').filter_map(parts);
        let mut tags = tags.filter(|(name, _)| is(name, "if-none-match"));
        if seen.stays || !tags.any(|(_, tags)| memmem::find(tags, &weak).is_some()) {
            return None;
        }
        let mut head = *self;
        head.leave_out(|name| is(name, "etag"));
        let mut lines = Vec::with_capacity(edited.lines.len() + 128);
        extend_without(&mut lines, edited.lines, |name| is(name, "etag"));
        field(&mut lines, "ETag", &[&weak]);
        if !seen.varies {
            field(&mut lines, "Vary", &[b"Accept-Encoding"]);
        }
        Some(Compressed {
            head,
            coding: None,
            length: None,
            edits: edited.edits,
            lines,
        })
    }

    /// What decides, in what the client would get.
    fn seen(&self, edited: Edited<'b>) -> Seen<'b> {
        let mut seen = Seen::default();
        for (index, field) in self.fields.iter().enumerate() {
            if !self.dropped.contains(index) && !edited.edits.drop(field.name) {
                seen.read(field.name, field.value);
            }
        }
        for (name, value) in edited.lines.split_inclusive(|byte| *byte == b'\n').filter_map(parts) {
            seen.read(name, value);
        }
        seen
    }

    /// Leaves out what does not hold for a compressed body, whose length nobody knows.
    fn compress(&mut self) {
        self.leave_out(is_replaced);
        // A body that was not chunked has no trailers to announce.
        if self.framing != Framing::Chunked {
            drop_all(self.fields, &mut self.dropped, Kind::Trailer);
        }
        self.length = None;
        if self.framing != Framing::None {
            self.framing = Framing::Chunked;
        }
    }

    fn leave_out(&mut self, unwanted: impl Fn(&str) -> bool) {
        for (index, field) in self.fields.iter().enumerate() {
            if unwanted(field.name) {
                self.dropped.insert(index);
            }
        }
    }

    /// The length that its head says, of a body that does not follow.
    fn announced(&self) -> Option<u64> {
        let field = || str::from_utf8(self.values("content-length").next()?).ok()?.parse().ok();
        self.length.or_else(field)
    }
}

/// The trailers of a compressed body, of these `lines`: without sums of what it was before.
pub fn trailers_of_compressed(lines: &[u8]) -> Vec<u8> {
    without(lines, is_sum)
}

fn is_sum(name: &str) -> bool {
    SUMS.iter().any(|sum| is(name, sum))
}

fn is_replaced(name: &str) -> bool {
    REPLACED.iter().any(|replaced| is(name, replaced))
}

/// Adds these `lines` without those with a name that is `unwanted`.
fn extend_without(out: &mut Vec<u8>, lines: &[u8], unwanted: impl Fn(&str) -> bool) {
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        if !parts(line).is_some_and(|(name, _)| unwanted(name)) {
            out.extend_from_slice(line);
        }
    }
}

/// The name and the value in a line.
fn parts(line: &[u8]) -> Option<(&str, &[u8])> {
    let end = memchr::memchr(b':', line)?;
    Some((str::from_utf8(&line[..end]).ok()?, line[end + 1..].trim_ascii()))
}

fn field(lines: &mut Vec<u8>, name: &str, value: &[&[u8]]) {
    lines.extend_from_slice(name.as_bytes());
    lines.extend_from_slice(b": ");
    value.iter().for_each(|part| lines.extend_from_slice(part));
    lines.extend_from_slice(b"\r\n");
}
