//! The fields that a route sets and adds.

use bytes::Bytes;

use crate::config::{Edits, Part, Shape};

/// The trailers of a request that its backend gets, of these `lines`: some servers take them for fields of the head.
pub fn kept_trailers(lines: &[u8], shape: &Shape) -> Vec<u8> {
    without(lines, |name| shape.drops(name))
}

/// These `lines`, each a field, without those with a name that it `drops`.
pub fn without(lines: &[u8], drops: impl Fn(&str) -> bool) -> Vec<u8> {
    let name =
        |line: &[u8]| String::from_utf8_lossy(line.split(|byte| *byte == b':').next().unwrap_or_default()).into_owned();
    let kept = lines
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| !drops(&name(line)));
    kept.flatten().copied().collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_is_no_way_around_what_a_route_removes() {
        let shape =
            Shape::of("{request_headers: {set: {X-A: b}, remove: [C]}, forward_auth: {url: http://a, copy: [User]}}");
        let lines = b"x_a: 1\r\nx-sum: 2\r\nC: 3\r\nUSER: admin\r\n";
        assert_eq!(kept_trailers(lines, &shape.unwrap()), b"x-sum: 2\r\n");
    }
}
