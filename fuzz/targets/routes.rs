//! Which route a request takes, and that its path has one meaning.
//!
//! The first line of the input is a request: its method, its host and its target, with spaces between. Each other line is a route: its
//! hosts, its paths and its methods, each a list with commas or `-`. Without routes there are those of the proxy's own tests.
#![no_main]

use std::sync::LazyLock;

use chassis::settings::Settings;
use gopherproxy::config::Config;
use gopherproxy::config::routes::{LONGEST_HOST, Matches, plain_host};
use gopherproxy::http1::path;
use gopherproxy::http1::target::{is_authority, split_target, why_no_target};
use gopherproxy::snapshot::table::Table;
use libfuzzer_sys::{Corpus, fuzz_target};

#[path = "../../proxy/src/snapshot/table/model.rs"]
mod model;

/// With more of them reading the configuration takes most of the time.
const MOST_ROUTES: usize = 12;

/// Those of the proxy's tests.
static KNOWN: LazyLock<Routes> = LazyLock::new(|| {
    let text = include_str!("../../proxy/tests/routes/routes.yaml");
    Routes::new(text).expect("they are valid")
});

struct Routes {
    matches: Vec<Matches>,
    table: Table,
}

impl Routes {
    fn new(text: &str) -> Option<Self> {
        let config = Config::parse(text, Settings::new([])).ok()?;
        let matches: Vec<_> = config.routes.into_iter().map(|route| route.matches).collect();
        let table = Table::new(&matches);
        Some(Self { matches, table })
    }

    /// Those that these lines describe, unless two are equal or one is wrong.
    fn read(lines: &[&str]) -> Option<Self> {
        let mut text = "gopherproxy:\n  routes:\n".to_owned();
        for (number, line) in lines.iter().enumerate() {
            let mut words = line.split(' ');
            let mut list = || {
                let items = words.next().filter(|items| *items != "-").unwrap_or_default();
                let quoted = items.split(',').filter(|item| !item.is_empty());
                let quoted: Vec<_> = quoted.map(|item| format!("'{}'", item.replace('\'', "''"))).collect();
                quoted.join(", ")
            };
            let (hosts, paths, methods) = (list(), list(), list());
            text += &format!("    r{number}: {{hosts: [{hosts}], paths: [{paths}], methods: [{methods}]}}\n");
        }
        Self::new(&text)
    }

    fn check(&self, authority: &[u8], path: &[u8], method: &str) {
        let mut room = [0; LONGEST_HOST];
        let host = plain_host(authority, &mut room);
        let expected = model::pick(&self.matches, host, path, method);
        let picked = self.table.pick(Some(authority), path, method);
        assert_eq!(
            picked,
            expected,
            "{method} {} {}",
            authority.escape_ascii(),
            path.escape_ascii()
        );
        if !is_authority(authority) {
            return;
        }
        // However it is written, a host is the same.
        let mut written = vec![authority.to_ascii_uppercase(), authority.to_ascii_lowercase()];
        let is_address = authority.starts_with(b"[");
        if !authority.contains(&b':') || authority.ends_with(b"]") {
            written.push([authority, b":8443"].concat());
            if !is_address && !authority.ends_with(b".") {
                written.push([authority, b"."].concat());
            }
        }
        for authority in written {
            let picked = self.table.pick(Some(&authority), path, method);
            let longer = plain_host(&authority, &mut room).is_none();
            assert!(picked == expected || longer, "{}", authority.escape_ascii());
        }
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut words = lines.next().unwrap_or_default().splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(authority), Some(target)) = (words.next(), words.next(), words.next()) else {
        return Corpus::Reject;
    };
    // A request with another method or target never gets as far as this.
    let (Ok(method), None) = (str::from_utf8(method), why_no_target(target)) else {
        return Corpus::Reject;
    };
    let lines: Option<Vec<_>> = lines.map(|line| str::from_utf8(line).ok()).collect();
    let Some(lines) = lines.filter(|lines| lines.len() <= MOST_ROUTES) else {
        return Corpus::Reject;
    };
    let (_, target) = split_target(target);
    let path = path::plain(target);
    let meaning = meaning(target);
    assert_eq!(path.as_deref().ok(), meaning.as_deref(), "{}", target.escape_ascii());
    let Ok(path) = path else {
        return Corpus::Keep;
    };
    assert_eq!(path, lenient(target), "{}", target.escape_ascii());
    if lines.is_empty() {
        KNOWN.check(authority, &path, method);
        return Corpus::Keep;
    }
    let Some(routes) = Routes::read(&lines) else {
        return Corpus::Reject;
    };
    routes.check(authority, &path, method);
    Corpus::Keep
});

/// What a path means, segment by segment; nothing if that depends on the reader.
fn meaning(target: &[u8]) -> Option<Vec<u8>> {
    let path = target.split(|byte| *byte == b'?').next()?;
    if matches!(path, b"" | b"*") {
        return Some(b"/".to_vec());
    }
    let segments: Vec<_> = path.split(|byte| *byte == b'/').skip(1).collect();
    let mut plain = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let is_last = number + 1 == segments.len();
        let decoded = decode(segment)?;
        let odd = |byte: &u8| matches!(byte, b'/' | b'\\' | 0..b' ' | 0x7f);
        let name = decoded.split(|byte| *byte == b';').next()?;
        let overlong = decoded.windows(2).any(|pair| {
            let length = pair[0].leading_ones();
            let bits = u32::from(pair[0]) << 6 & (0x7f >> length) << 6 | u32::from(pair[1]) & 0x3f;
            // The bits that a shorter form has no room for are in these two bytes.
            let unused = if length == 2 { 7 } else { 8 - length };
            (2..=6).contains(&length) && pair[1].leading_ones() == 1 && bits >> unused == 0
        });
        if overlong || decoded.iter().any(odd) || matches!(name, b"." | b"..") || (name.is_empty() && !is_last) {
            return None;
        }
        plain.push(b'/');
        plain.extend_from_slice(name);
    }
    Some(plain)
}

/// The same segment with its percent-encoded bytes decoded; nothing if a `%` encodes none.
fn decode(segment: &[u8]) -> Option<Vec<u8>> {
    let mut pieces = segment.split(|byte| *byte == b'%');
    let mut decoded = pieces.next()?.to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        decoded.push(u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?);
        decoded.extend_from_slice(rest);
    }
    Some(decoded)
}

/// The same bytes with the overlong forms of ASCII in them decoded.
fn narrow(bytes: &[u8]) -> Vec<u8> {
    let mut narrow = Vec::new();
    let mut rest = bytes;
    while let [lead, after @ ..] = rest {
        let length = lead.leading_ones() as usize;
        let tail = after.get(..length.saturating_sub(1)).unwrap_or_default();
        let is_form = (2..=6).contains(&length) && !tail.is_empty() && tail.iter().all(|byte| byte.leading_ones() == 1);
        let first = u64::from(*lead) & 0x7f >> length;
        let value = tail
            .iter()
            .fold(first, |value, byte| value << 6 | u64::from(byte & 0x3f));
        match u8::try_from(value) {
            Ok(byte @ ..0x80) if is_form => {
                narrow.push(byte);
                rest = &after[tail.len()..];
            }
            _ => {
                narrow.push(*lead);
                rest = after;
            }
        }
    }
    narrow
}

/// What an origin makes of a target that decodes first, overlong UTF-8 too, takes a backslash for a slash, drops parameters, merges slashes, and resolves
/// dots.
fn lenient(target: &[u8]) -> Vec<u8> {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    if matches!(path, b"" | b"*") {
        return b"/".to_vec();
    }
    let decoded = narrow(&decode(path).unwrap_or_else(|| path.to_vec()));
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_with_slash = false;
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')).skip(1) {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        ends_with_slash = matches!(name, b"" | b"." | b"..");
        match name {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    let mut path: Vec<u8> = segments.iter().flat_map(|name| [b"/", *name].concat()).collect();
    if ends_with_slash {
        path.push(b'/');
    }
    path
}
