//! Chunked bodies, in pieces and as a plain reader takes them.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// How many bytes of the stream it is, if it has ended.
    pub length: Option<usize>,
    pub data: Vec<u8>,
    pub trailers: Vec<u8>,
}

/// `stream` in the pieces that `cuts` says.
pub fn pieces<'s>(cuts: &'s [u8], mut stream: &'s [u8]) -> impl Iterator<Item = &'s [u8]> {
    let mut lengths = cuts.iter().map(|byte| usize::from(byte & 31).max(1)).cycle();
    std::iter::from_fn(move || {
        let length = lengths.next().unwrap_or(stream.len()).min(stream.len());
        let (piece, rest) = stream.split_at(length);
        stream = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The whole chunked body at the start of `stream`, read line by line.
pub fn plain(stream: &[u8]) -> Option<Body> {
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let line = line(&stream[at..], 256)?;
        at += line.len() + 2;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (digits, extension) = line.split_at(digits);
        let size = u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        if digits.len() > 15 || !matches!(extension.trim_ascii_start(), [] | [b';', ..]) {
            return None;
        }
        if size == 0 {
            break;
        }
        let end = usize::try_from(size).ok()?.checked_add(at)?;
        data.extend_from_slice(stream.get(at..end)?);
        stream.get(end..)?.strip_prefix(b"\r\n")?;
        at = end + 2;
    }
    let (start, mut trailers) = (at, Vec::new());
    loop {
        let line = line(&stream[at..], (8 << 10) - (at - start))?;
        at += line.len() + 2;
        if line.is_empty() {
            let length = Some(at);
            return Some(Body { length, data, trailers });
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = str::from_utf8(&line[..colon]).ok()?;
        if name.is_empty()
            || !name
                .chars()
                .all(|one| one.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(one))
        {
            return None;
        }
        let unified = name
            .to_ascii_lowercase()
            .replace(|sign: char| !sign.is_ascii_alphanumeric(), "-");
        if !is_forbidden(&unified) {
            trailers.extend_from_slice(line);
            trailers.extend_from_slice(b"\r\n");
        }
    }
}

/// What trailers may not carry; every sign in a name has become `-`.
fn is_forbidden(name: &str) -> bool {
    const NAMES: &str = " age authentication-info authorization cache-control connection content-encoding content-length content-range \
                         content-type cookie date expect expires forwarded host http2-settings if-match if-modified-since if-none-match \
                         if-range if-unmodified-since keep-alive location max-forwards origin pragma priority proxy-authenticate \
                         proxy-authentication-info proxy-authorization proxy-connection range retry-after set-cookie \
                         strict-transport-security te trailer transfer-encoding upgrade vary via warning www-authenticate \
                         x-real-ip x-request-id x-client-cert-subject ";
    name.starts_with("x-forwarded") || NAMES.contains(&format!(" {name} "))
}

/// The first line, of printable bytes, without the CRLF that it ends in; `None` when it is not there within `most` bytes.
fn line(bytes: &[u8], most: usize) -> Option<&[u8]> {
    let end = bytes
        .iter()
        .position(|byte| !matches!(byte, b'\t' | b' '..=b'~' | 0x80..))?;
    (bytes[end..].starts_with(b"\r\n") && end + 2 <= most).then_some(&bytes[..end])
}
