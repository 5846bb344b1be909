//! Heads of origins' responses, and what the client gets of them.
//!
//! The first byte of the input says what the request was and how the response is delivered, in its bits; the rest is what came from
//! the origin. A plain reading comes to the same framing and the same fields for the client; the head is the same in
//! whatever pieces it arrives, and read from fields; and what the client gets is read here with the framing that was promised. A head
//! that is odd (LF alone, folded values, a space before a colon) is first refused, and once straightened it means what a lenient
//! plain reading says.
#![no_main]

use bytes::BytesMut;
use gopherproxy::headers::origin_response::{Delivery, Framing, ResponseHead, parse};
use gopherproxy::headers::straighten::{may_straighten, straighten};
use gopherproxy::http1::head;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((bits, stream)) = input.split_first() else {
        return Corpus::Reject;
    };
    let to_head = bits & 1 != 0;
    let delivery = Delivery {
        keeps: bits & 2 != 0,
        old: bits & 4 != 0,
        trailers: bits & 8 != 0,
        hsts: None,
        cookie: None,
        edits: None,
    };
    let straight = straighten(stream);
    assert_eq!(straight, lenient(stream));
    let strict = check(stream, to_head, delivery, usize::from(bits >> 4));
    match (strict, straight) {
        (Ok(Some(length)), straight) => {
            let (straight, same_length) = straight.expect("what is straight stays so");
            assert_eq!(
                (stream[..length].trim_ascii_start(), length),
                (&straight[..], same_length)
            );
        }
        (Err(_), Some((straight, length))) => {
            let again = check(&straight, to_head, delivery, 0);
            if again == Ok(Some(straight.len())) {
                // Nobody takes a part of it for all.
                for cut in [length - 1, length / 2, usize::from(bits >> 4), 0] {
                    let part = &stream[..cut.min(length - 1)];
                    match parse(part, &mut head::room(), to_head) {
                        Ok(read) => assert!(read.is_none()),
                        Err(_) => assert!(straighten(part).is_none() && may_straighten(part), "{cut} bytes of it"),
                    }
                }
            }
        }
        (Ok(None) | Err(_), _) => {}
    }
    Corpus::Keep
});

/// Checks what comes of `stream`, read strictly. Returns the length of the head.
fn check(stream: &[u8], to_head: bool, delivery: Delivery<'_>, cut: usize) -> Result<Option<usize>, &'static str> {
    let mut room = head::room();
    let read = parse(stream, &mut room, to_head);
    let plain = plain(stream, to_head);
    let (head, length) = match read {
        Ok(Some(read)) => read,
        read => {
            assert!(plain.is_none(), "{read:?}");
            return read.map(|_| None);
        }
    };
    let plain = plain.expect("a head");
    assert_eq!(
        (head.status, head.framing, head.reusable),
        (plain.status, plain.framing, plain.reusable)
    );
    assert_eq!(length, plain.length);
    for cut in [length - 1, length / 2, cut, 0] {
        let part = parse(&stream[..cut.min(length - 1)], &mut head::room(), to_head).map(|read| read.is_none());
        assert_eq!(part, Ok(true), "{cut} bytes of it");
    }

    let mut written = BytesMut::from("before");
    let framing = head.write(&delivery, &mut written);
    let written = written.strip_prefix(b"before").expect("what was there before");
    plain.check(written, framing, delivery);
    let fields: Vec<_> = plain
        .fields
        .iter()
        .map(|(name, value)| httparse::Header { name, value })
        .collect();
    let again =
        ResponseHead::from_fields(plain.status, plain.minor, plain.reason, &fields, to_head).expect("the same head");
    assert_eq!(
        (again.framing, again.reusable, again.upgrade()),
        (head.framing, head.reusable, head.upgrade())
    );
    let mut once_more = BytesMut::new();
    assert_eq!(again.write(&delivery, &mut once_more), framing);
    plain.check(&once_more, framing, delivery);

    if plain.fields.len() > 230 {
        // There may be too many with those that are added.
        return Ok(Some(length));
    }
    let mut room = head::room();
    let (seen, written_length) = parse(written, &mut room, to_head)
        .expect("a good head")
        .expect("a whole head");
    assert_eq!(
        (seen.status, seen.framing, written_length),
        (head.status, framing, written.len())
    );
    Ok(Some(length))
}

/// The head at the start of `stream`, read leniently and in the usual form, and its length.
fn lenient(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let stream = &stream[..stream.len().min(64 << 10)];
    let (mut lines, mut at): (Vec<Vec<u8>>, _) = (Vec::new(), 0);
    loop {
        let end = stream[at..].iter().position(|byte| *byte == b'\n')? + at;
        let line = &stream[at..end];
        let mut line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
        at = end + 1;
        match (line.first(), lines.len()) {
            (None, 0) => {}
            (None, _) => break,
            (Some(first), 2..) if is_space(first) => {
                let value = lines.last_mut()?;
                value.push(b' ');
                value.extend(line.iter().skip_while(|byte| is_space(byte)));
            }
            (Some(_), 0) => lines.push(line),
            (Some(_), _) => {
                if let Some(colon) = line.iter().position(|byte| *byte == b':') {
                    let name = line[..colon].iter().rposition(|byte| !is_space(byte));
                    line.drain(name.map_or(0, |last| last + 1)..colon);
                }
                lines.push(line);
            }
        }
    }
    Some((lines.join(&b"\r\n"[..]).into_iter().chain(*b"\r\n\r\n").collect(), at))
}

/// A head, read the plain way.
struct Plain<'s> {
    length: usize,
    minor: u8,
    status: u16,
    reason: &'s [u8],
    fields: Vec<(&'s str, &'s [u8])>,
    framing: Framing,
    reusable: bool,
    /// What Content-Length says, if the client is to get it.
    announced: Option<u64>,
}

fn plain(stream: &[u8], to_head: bool) -> Option<Plain<'_>> {
    let mut from = 0;
    while stream[from..].starts_with(b"\r\n") {
        from += 2;
    }
    let end = stream[from..].windows(4).position(|four| four == b"\r\n\r\n")? + from;
    let (length, text) = (end + 4, &stream[from..end]);
    if length > 64 << 10 {
        return None;
    }
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..end]);
        rest = &rest[end + 2..];
    }
    lines.push(rest);
    if lines.len() > 241
        || !lines
            .concat()
            .iter()
            .all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
    {
        return None;
    }
    let line = lines[0];
    let minor = match line.get(..9)? {
        b"HTTP/1.0 " => 0,
        b"HTTP/1.1 " => 1,
        _ => return None,
    };
    let digits = str::from_utf8(line.get(9..12)?).ok()?;
    let status: u16 = digits
        .bytes()
        .all(|digit| digit.is_ascii_digit())
        .then(|| digits.parse().ok())??;
    let reason = match &line[12..] {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return None,
    };
    let mut fields = Vec::new();
    for line in &lines[1..] {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = str::from_utf8(&line[..colon]).ok()?;
        if !is_token(name) {
            return None;
        }
        fields.push((name, line[colon + 1..].trim_ascii()));
    }
    let mut plain = Plain {
        length,
        minor,
        status,
        reason,
        fields,
        framing: Framing::None,
        reusable: false,
        announced: None,
    };
    plain.understand(to_head)?;
    Some(plain)
}

impl Plain<'_> {
    /// RFC 9112, section 6.3, and what may be wrong with it.
    fn understand(&mut self, to_head: bool) -> Option<()> {
        let options = self.options();
        let said = |option: &str| options.iter().any(|one| one == option);
        let (tokens, odd): (Vec<_>, Vec<_>) = options.iter().partition(|option| is_token(option));
        let names = tokens
            .iter()
            .filter(|option| !["close", "keep-alive"].contains(&option.as_str()));
        if names.count() > 32 {
            return None;
        }
        let keeps = odd.is_empty() && !said("close") && (self.minor == 1 || said("keep-alive"));
        if self.status < 100 || (self.status == 101 && self.minor == 0) {
            return None;
        }
        let codings = self.values("transfer-encoding");
        let (coded, chunked) = (
            !codings.is_empty(),
            codings.iter().all(|coding| coding.eq_ignore_ascii_case(b"chunked")),
        );
        let lengths: Vec<&[u8]> = self
            .values("content-length")
            .into_iter()
            .flat_map(|value| value.split(|byte| *byte == b','))
            .collect();
        let numbers: Vec<Option<u64>> = lengths.iter().map(|length| number(length.trim_ascii())).collect();
        let length = match numbers[..] {
            [] => None,
            [first, ..] if numbers.iter().all(|number| *number == first) => Some(first),
            _ => Some(None),
        };
        let announces = coded || !matches!(length, None | Some(Some(0)));
        if self.status < 200 || self.status == 204 {
            self.reusable = keeps && !announces && !to_head && self.status != 101;
            return Some(());
        }
        if coded {
            if self.minor == 0 || !chunked {
                return None;
            }
        } else if length == Some(None) {
            return None;
        }
        if !coded {
            self.announced = length.flatten();
        }
        if to_head || self.status == 304 {
            self.reusable = keeps && !announces && !to_head;
        } else if coded {
            self.framing = Framing::Chunked;
            // A length beside a coding does not count, but one that is none puts everything in doubt.
            self.reusable = keeps && length != Some(None);
        } else if let Some(length) = self.announced {
            self.framing = Framing::Length(length);
            self.reusable = keeps;
        } else {
            self.framing = Framing::Close;
        }
        Some(())
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|field| field.0.eq_ignore_ascii_case(name));
        named.map(|field| field.1).collect()
    }

    /// The options of all `Connection` fields, in lower case.
    fn options(&self) -> Vec<String> {
        let lists = self.values("connection").into_iter();
        lists
            .flat_map(|list| list.split(|byte| *byte == b','))
            .map(|option| {
                option
                    .trim_ascii()
                    .iter()
                    .map(|byte| char::from(byte.to_ascii_lowercase()))
                    .collect()
            })
            .filter(|option: &String| !option.is_empty())
            .collect()
    }

    /// Checks the head that the client gets.
    fn check(&self, written: &[u8], framing: Framing, delivery: Delivery<'_>) {
        let expected = match self.framing {
            Framing::Chunked | Framing::Close if delivery.old => Framing::Close,
            Framing::Chunked | Framing::Close => Framing::Chunked,
            framing => framing,
        };
        assert_eq!(framing, expected);
        let line = [format!("HTTP/1.1 {} ", self.status).as_bytes(), self.reason, b"\r\n"].concat();
        let rest = written.strip_prefix(&line[..]).expect("the status line");
        let mut room = [httparse::EMPTY_HEADER; 256];
        let read = httparse::parse_headers(rest, &mut room);
        let Ok(httparse::Status::Complete((length, fields))) = read else {
            unreachable!("{read:?}")
        };
        assert_eq!(length, rest.len());
        let mut fields: Vec<_> = fields.iter().map(|field| (field.name, field.value)).collect();

        // What the proxy says itself is at the end.
        if self.status == 101 {
            assert_eq!(fields.pop(), Some(("Connection", &b"upgrade"[..])));
        } else if self.status >= 200 {
            let asks = self.status == 426 && !self.values("upgrade").is_empty();
            let keeps = delivery.keeps && framing != Framing::Close;
            let connection = format!(
                "{}{}",
                if asks { "upgrade, " } else { "" },
                if keeps { "keep-alive" } else { "close" }
            );
            assert_eq!(fields.pop(), Some(("Connection", connection.as_bytes())));
        }
        let passed_on =
            self.passed_on(framing == Framing::Chunked && self.framing == Framing::Chunked && delivery.trailers);
        if self.status >= 200 && !passed_on.iter().any(|field| field.0.eq_ignore_ascii_case("date")) {
            assert!(
                fields
                    .pop()
                    .is_some_and(|(name, value)| name == "Date" && value.len() == 29)
            );
        }
        if framing == Framing::Chunked {
            assert_eq!(fields.pop(), Some(("Transfer-Encoding", &b"chunked"[..])));
        }
        let is_length = |field: &(&str, &[u8])| field.0.eq_ignore_ascii_case("content-length");
        let lengths: Vec<_> = fields
            .iter()
            .filter(|field| is_length(field))
            .map(|field| field.1)
            .collect();
        let announced = self.announced.map(|length| length.to_string());
        assert_eq!(lengths, announced.iter().map(String::as_bytes).collect::<Vec<_>>());
        fields.retain(|field| !is_length(field));
        assert_eq!(fields, passed_on);
    }

    /// The origin's fields for the client, but for Content-Length.
    fn passed_on(&self, trailers: bool) -> Vec<(&str, &[u8])> {
        let options = self.options();
        let mut fields = self.fields.clone();
        fields.retain(|(name, _)| {
            let name = name.to_ascii_lowercase();
            match &*name {
                "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "content-length" => {
                    false
                }
                "upgrade" => matches!(self.status, 101 | 426),
                "trailer" => trailers && !options.contains(&name),
                _ => !options.contains(&name),
            }
        });
        fields
    }
}

fn is_token(text: &str) -> bool {
    let may_be = |one: char| one.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(one);
    !text.is_empty() && text.chars().all(may_be)
}

/// The number that the digits are.
fn number(digits: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(digits).ok()?;
    (!digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())).then(|| digits.parse().ok())?
}
