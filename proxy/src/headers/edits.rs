//! The fields that a route sets and adds.

use bytes::Bytes;

use crate::config::{Edits, Part};

/// What the values of fields may name.
#[derive(Debug, Clone, Copy)]
pub struct Values<'v> {
    /// The address of the client.
    pub client: &'v str,
    /// The host of the request.
    pub host: &'v [u8],
    /// The id of the request.
    pub id: &'v [u8],
    /// The name of the route.
    pub route: &'v str,
}

impl Values<'_> {
    /// Appends the value with these parts to `out`. None of them has a byte that ends a line: a host was checked, and so was an id.
    pub fn write(&self, parts: &[Part], out: &mut Vec<u8>) {
        for part in parts {
            out.extend_from_slice(match part {
                Part::Text(text) => text.as_bytes(),
                Part::Client => self.client.as_bytes(),
                Part::Host => self.host,
                Part::RequestId => self.id,
                Part::Route => self.route.as_bytes(),
            });
        }
    }

    /// The fields that `edits` add, each a line with its CRLF. They are made with the request, as long as all of this is known.
    pub fn lines(&self, edits: &Edits) -> Bytes {
        if edits.added().is_empty() {
            return Bytes::new();
        }
        let mut lines = Vec::with_capacity(64 * edits.added().len());
        for (name, parts) in edits.added() {
            lines.extend_from_slice(name.as_bytes());
            lines.extend_from_slice(b": ");
            self.write(parts, &mut lines);
            lines.extend_from_slice(b"\r\n");
        }
        lines.into()
    }
}
