//! The coding that a client prefers, from its `Accept-Encoding` (RFC 9110, section 12.5.3).

/// A content coding that the proxy can apply (RFC 9110, section 8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878, with a window that RFC 9659 allows.
    Zstd,
}

impl Coding {
    /// Its name in fields.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The weight of a coding that a client accepts as much as any, in thousandths.
const MOST: u16 = 1000;

/// What a client says of the codings that matter here, in thousandths. `None`: nothing.
#[derive(Debug, Default)]
struct Weights {
    gzip: Option<u16>,
    zstd: Option<u16>,
    identity: Option<u16>,
    others: Option<u16>,
}

/// The coding that a client with these lines of `Accept-Encoding` prefers; `None` if that is none, or one that the proxy can't apply.
///
/// Of two codings with the same weight it is zstd before gzip before none. Zstd must be named: `*` stands for gzip alone, because a
/// client that says it may be older than zstd. Without a line there is no compression, though the RFC would allow it.
pub fn preferred<'v>(lines: impl Iterator<Item = &'v [u8]>) -> Option<Coding> {
    let mut weights = Weights::default();
    for member in lines.flat_map(|line| line.split(|byte| *byte == b',')) {
        let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        // What can't be read is not accepted.
        let weight = parts.next().map_or(MOST, |text| weight(text).unwrap_or(0));
        let place = match name {
            b"*" => &mut weights.others,
            _ if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => &mut weights.gzip,
            _ if name.eq_ignore_ascii_case(b"zstd") => &mut weights.zstd,
            _ if name.eq_ignore_ascii_case(b"identity") => &mut weights.identity,
            _ => continue,
        };
        // Of a coding that is named twice the lower weight counts: it may be a ban.
        *place = Some(place.map_or(weight, |before| before.min(weight)));
    }
    let gzip = weights.gzip.or(weights.others).unwrap_or(0);
    let zstd = weights.zstd.unwrap_or(0);
    // Acceptable if it isn't named, but no more than what is.
    let identity = weights.identity.unwrap_or(0);
    if zstd > 0 && zstd >= gzip.max(identity) {
        Some(Coding::Zstd)
    } else if gzip > 0 && gzip >= identity {
        Some(Coding::Gzip)
    } else {
        None
    }
}

/// The thousandths that `text` gives as `q=0.5` (RFC 9110, section 12.4.2).
fn weight(text: &[u8]) -> Option<u16> {
    let value = text.strip_prefix(b"q=").or_else(|| text.strip_prefix(b"Q="))?;
    let (whole, fraction) = match value {
        [whole] => (whole, &b""[..]),
        [whole, b'.', fraction @ ..] => (whole, fraction),
        _ => return None,
    };
    if fraction.len() > 3 || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = (0..3).map(|place| u16::from(fraction.get(place).map_or(0, |digit| digit - b'0')));
    let thousandths = digits.fold(0, |sum, digit| sum * 10 + digit);
    match whole {
        b'0' => Some(thousandths),
        b'1' if thousandths == 0 => Some(MOST),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coding_is_the_one_that_the_client_prefers() {
        let (gzip, zstd) = (Some(Coding::Gzip), Some(Coding::Zstd));
        for (lines, expected) in [
            (&[][..], None),
            (&[""], None),
            (&[","], None),
            (&["gzip"], gzip),
            (&["GZip"], gzip),
            (&["x-gzip"], gzip),
            (&["zstd"], zstd),
            (&["br"], None),
            (&["deflate"], None),
            (&["gzip, deflate, br, zstd"], zstd),
            (&["gzip, deflate, br"], gzip),
            (&["gzip", "zstd"], zstd),
            (&["zstd;q=0.5, gzip"], gzip),
            (&["zstd;q=0.5, gzip;q=0.5"], zstd),
            (&["zstd;q=0.499, gzip;q=0.5"], gzip),
            (&["gzip;q=1.0, zstd ; q=1.000"], zstd),
            (&["gzip;Q=1"], gzip),
            // Refused.
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000, zstd;q=0"], None),
            (&["zstd;q=0, gzip"], gzip),
            (&["*;q=0"], None),
            (&["gzip, *;q=0"], gzip),
            (&["gzip;q=0, *"], None),
            (&["gzip, gzip;q=0"], None),
            // Anything.
            (&["*"], gzip),
            (&["*;q=0.1"], gzip),
            (&["zstd, *"], zstd),
            (&["zstd;q=0.5, *"], gzip),
            // Rather as it is.
            (&["identity"], None),
            (&["identity, gzip;q=0.5"], None),
            (&["identity;q=0.5, gzip;q=0.5"], gzip),
            (&["identity;q=0.5, gzip;q=0.4, zstd;q=0.6"], zstd),
            (&["identity;q=0, gzip;q=0.1"], gzip),
            (&["identity;q=0"], None),
            // No weights.
            (&["gzip;q=2"], None),
            (&["gzip;q=1.001"], None),
            (&["gzip;q=0.1234"], None),
            (&["gzip;q="], None),
            (&["gzip;q=.5"], None),
            (&["gzip;q=-1"], None),
            (&["gzip;q=1;q=0"], gzip),
            (&["gzip;a=b"], None),
            (&["gzip zstd"], None),
            (&["agzip, gzipa"], None),
            (&[" \tgzip\t;\tq=0.3 , ,"], gzip),
        ] {
            let lines: Vec<&str> = lines.to_vec();
            assert_eq!(
                preferred(lines.iter().map(|line| line.as_bytes())),
                expected,
                "{lines:?}"
            );
        }
    }
}
