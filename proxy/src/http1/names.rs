//! Classifies the names of fields.
//!
//! CGI and its descendants take `-` for `_`, and some of them every other sign in a name too (lighttpd). So all spellings of a name that
//! differ in such signs alone count as the same.

/// Fields that concern one connection alone. The backend gets none of the client's.
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "upgrade",
    "transfer-encoding",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "http2-settings",
];

/// Bit `n` is set when a name of `n` bytes may be one of those: most names are none, and need no comparison.
const LENGTHS: u32 = {
    let (mut lengths, mut index) = (1 << CONTENT_LENGTH.len(), 0);
    while index < HOP_BY_HOP.len() {
        lengths |= 1 << HOP_BY_HOP[index].len();
        index += 1;
    }
    lengths
};

const CONTENT_LENGTH: &str = "content-length";

/// Whether two names are the same, in upper or lower case.
pub fn is(name: &str, other: &str) -> bool {
    name.eq_ignore_ascii_case(other)
}

/// Whether a field of this name concerns the client's connection alone, or is another spelling of one that does or of the
/// length of the body.
pub fn is_hop_by_hop(name: &str) -> bool {
    let may_be = LENGTHS
        .checked_shr(u32::try_from(name.len()).unwrap_or(u32::MAX))
        .unwrap_or(0)
        & 1
        == 1;
    may_be
        && (HOP_BY_HOP.iter().any(|one| is_alike(name, one))
            || (is_alike(name, CONTENT_LENGTH) && !is(name, CONTENT_LENGTH)))
}

/// Whether `name` is `known`, which is [`unified`], for a reader to whom all signs in a name are the same.
pub fn is_alike(name: &str, known: &str) -> bool {
    name.len() == known.len()
        && std::iter::zip(name.bytes(), known.bytes())
            .all(|(byte, known)| byte.to_ascii_lowercase() == known || (known == b'-' && !byte.is_ascii_alphanumeric()))
}

/// The spelling of `name` that [`is_alike`] takes for every other.
pub fn unified(name: &str) -> String {
    name.to_ascii_lowercase()
        .replace(|sign: char| !sign.is_ascii_alphanumeric(), "-")
}

/// The field with the subject of the client's certificate, which nobody but this proxy writes.
pub const CLIENT_CERT_SUBJECT: &str = "x-client-cert-subject";

/// Whether a field of this name says where a request came from, or from whom.
pub fn is_claim(name: &str) -> bool {
    const FAMILY: &str = "x-forwarded";
    const OTHERS: [&str; 4] = ["forwarded", "x-real-ip", "x-request-id", CLIENT_CERT_SUBJECT];
    name.get(..FAMILY.len()).is_some_and(|family| is_alike(family, FAMILY))
        || OTHERS.iter().any(|known| is_alike(name, known))
}

/// Whether `byte` may be in the name of a field, or in any other token (RFC 9110, section 5.6.2).
pub fn is_in_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

static TOKEN: [bool; 256] = {
    let bytes = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (mut table, mut index) = ([false; 256], 0);
    while index < bytes.len() {
        table[bytes[index] as usize] = true;
        index += 1;
    }
    table
};

/// Fields that decide how a message is framed, routed, processed, authenticated or cached before its trailers are read.
const NOT_IN_TRAILERS: [&str; 32] = [
    "age",
    "authentication-info",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "priority",
    "proxy-authentication-info",
    "range",
    "retry-after",
    "set-cookie",
    "strict-transport-security",
    "vary",
    "via",
    "warning",
    "www-authenticate",
];

/// Whether a field of this name is not allowed in trailers (RFC 9110, section 6.5.1): it would deceive readers that merge trailers
/// into the head.
pub fn is_forbidden_in_trailers(name: &str) -> bool {
    is_hop_by_hop(name) || is_claim(name) || NOT_IN_TRAILERS.iter().any(|one| is_alike(name, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_known_by_all_their_names() {
        for name in [
            "x-forwarded-for",
            "X_Forwarded_For",
            "x-forwarded",
            "x_forwarded-host",
            "forwarded",
            "x_real_ip",
            "x_request_id",
            "X.Forwarded~For",
            "x+real!ip",
        ] {
            assert!(is_claim(name), "{name}");
        }
        for name in ["x-forward", "forwarded-by", "x-real-ip-2", "x-realsip", "host", ""] {
            assert!(!is_claim(name), "{name}");
        }
        assert!(
            is_hop_by_hop("Transfer.Encoding") && is_hop_by_hop("content.length") && !is_hop_by_hop("content-length")
        );
        assert!(is_alike("remote.user", &unified("Remote_User")) && is_alike("Remote-User", &unified("remote~user")));
    }
}
