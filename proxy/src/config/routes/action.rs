//! What is done with the requests of a route.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use chassis::settings::{Section, nearest, quoted, whole};
use registry::PoolName;

use crate::http1::head::Head;
use crate::http1::path::without_query;
use crate::http1::redirect::{push_encoded, without_port};
use crate::http1::violation::Violation;
use crate::rejection::Prepared;

/// What is done with the requests of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// They go to the backends of this pool.
    Pool(PoolName),
    /// Each client's go to one of these pools.
    Split(Split),
    /// They are sent to another URL.
    Redirect(Redirect),
    /// They get this answer.
    Answer(Arc<Prepared>),
}

/// Pools, each with the share of the clients that it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Two or more, by their names, in order. Not all shares are zero.
    pub pools: Vec<(PoolName, u32)>,
}

/// A URL to send clients to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The URL, in parts.
    pub url: Vec<RedirectPart>,
}

/// A part of the URL that clients are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedirectPart {
    /// This text.
    Text(String),
    /// The path of the request.
    Path,
    /// A `?` and the query of the request, or nothing if it has none.
    Query,
    /// The host of the request, without a port.
    Host,
}

impl Action {
    /// Reads what is done; there are these `pools`.
    pub(super) fn read(section: &mut Section<'_>, pools: &BTreeSet<PoolName>) -> Self {
        let known = |text: &str| known_pool(text, pools);
        let pool = section.value("pool", None, None, |text| known(text).map(Some));
        let has_split = section.has("split");
        let mistakes = section.settings().mistakes();
        let split = Split {
            pools: section.pairs("split", known, whole(0..=10_000)),
        };
        // Otherwise what is missing has been named.
        let is_whole = section.settings().mistakes() == mistakes;
        let url = section.value("redirect", None, None, |text| url(text).map(Some));
        let body = section.text("answer");
        let status = section.value("status", None, None, |text| whole(100..=999)(text).map(Some));
        let plain = "text/plain; charset=utf-8".to_owned();
        let content_type = section.value("content_type", None, plain, media_type);

        let actions = [
            ("pool", pool.is_some()),
            ("split", has_split),
            ("redirect", url.is_some()),
            ("answer", body.is_some()),
        ];
        let given: Vec<_> = actions
            .iter()
            .filter_map(|(key, given)| given.then_some(*key))
            .collect();
        if let [first, second, ..] = given[..] {
            section.settings().mistake(
                &section.place(second),
                format_args!("the route has {first} too; a request can't have both, so leave one out"),
            );
        }
        if body.is_none() {
            section.key_has_no_effect("content_type", "the route has no answer of its own");
        }
        let wrong_status = |expected: &str| {
            let got = status.unwrap_or_default();
            section.settings().mistake(
                &section.place("status"),
                format_args!("expected {expected}, got \"{got}\""),
            );
        };
        if let Some(url) = url {
            let status = status.unwrap_or(308);
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                wrong_status("the status of a redirect (301, 302, 303, 307 or 308)");
            }
            return Self::Redirect(Redirect { status, url });
        }
        if let Some(body) = body {
            let status = status.unwrap_or(200);
            if !matches!(status, 200..=299 | 400..=599) {
                wrong_status("a status from 200 to 299 or from 400 to 599 (a redirect has the key redirect)");
            } else if matches!(status, 204 | 205) && !body.is_empty() {
                wrong_status("a status with a body; leave the answer empty for this one");
            }
            return Self::Answer(Arc::new(Prepared {
                status,
                content_type,
                body: body.into(),
            }));
        }
        section.key_has_no_effect("status", "the route has neither a redirect nor an answer of its own");
        if has_split {
            if is_whole {
                split.check(section);
            }
            return Self::Split(split);
        }
        let default = PoolName::default();
        if pool.is_none() && !pools.contains(&default) {
            section.settings().mistake(
                &section.place("pool"),
                format_args!("the route has no pool of its own, and there is none named {default}; set one"),
            );
        }
        Self::Pool(pool.unwrap_or(default))
    }

    /// The pools that the requests go to.
    pub fn pools(&self) -> Vec<&PoolName> {
        match self {
            Self::Pool(pool) => vec![pool],
            Self::Split(split) => split.pools.iter().map(|(pool, _)| pool).collect(),
            Self::Redirect(_) | Self::Answer(_) => Vec::new(),
        }
    }

    /// Whether the requests go to backends.
    pub fn is_forward(&self) -> bool {
        matches!(self, Self::Pool(_) | Self::Split(_))
    }
}

impl Redirect {
    /// The answer that sends clients there.
    pub fn answer(&self) -> Prepared {
        let mut answer = Prepared {
            status: self.status,
            content_type: "text/plain".to_owned(),
            body: Bytes::new(),
        };
        answer.body = format!("{}: use the URL in Location\n", answer.phrase()).into();
        answer
    }

    /// The URL for the client of the request with this head.
    ///
    /// # Errors
    /// When that takes a host and the request names none, as only HTTP/1.0 may.
    pub fn location(&self, head: &Head<'_>) -> Result<String, Violation> {
        let (path, query) = head.path.split_at(without_query(head.path).len());
        let mut location = String::new();
        for part in &self.url {
            match part {
                RedirectPart::Text(text) => location.push_str(text),
                RedirectPart::Path if matches!(path, b"" | b"*") => location.push('/'),
                RedirectPart::Path => push_encoded(&mut location, path),
                RedirectPart::Query => push_encoded(&mut location, query),
                RedirectPart::Host => {
                    let missing = "without a Host field there is nowhere to redirect to";
                    let host = head.host.ok_or(Violation::malformed(missing))?;
                    push_encoded(&mut location, without_port(host));
                }
            }
        }
        Ok(location)
    }
}

impl Split {
    fn check(&self, section: &Section<'_>) {
        let problem = match &self.pools[..] {
            [] | [_] => {
                "expected two pools or more with their shares, such as {stable: 95, canary: 5}; one pool has the key pool"
            }
            pools if pools.iter().all(|(_, share)| *share == 0) => "all shares are 0, so that no pool gets a request",
            _ => return,
        };
        section.settings().mistake(&section.place("split"), problem);
    }

    /// The pool of the client with this key, by its number. It is the same in every process and after every restart, and a client
    /// stays when the share of its pool grows.
    pub fn of_client(&self, client: u128) -> usize {
        let total: u64 = self.pools.iter().map(|(_, share)| u64::from(*share)).sum();
        // The point of this client between 0 and the total.
        let point = (u128::from(spread(client)) * u128::from(total)) >> 64;
        let mut end = 0;
        let is_here = |(_, share): &(PoolName, u32)| {
            end += u128::from(*share);
            point < end
        };
        self.pools.iter().position(is_here).unwrap_or(0)
    }
}

/// A number that hardly differs less between neighbours than between strangers (the finalizer of SplitMix64, over both halves).
fn spread(key: u128) -> u64 {
    let mix = |mut value: u64| {
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    };
    let [high, low] = [key >> 64, key].map(|half| u64::try_from(half & u128::from(u64::MAX)).unwrap_or(0));
    mix(mix(high.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ low)
}

fn known_pool(text: &str, pools: &BTreeSet<PoolName>) -> Result<PoolName, String> {
    let names = || pools.iter().map(PoolName::as_str);
    if let Some(pool) = pools.iter().find(|pool| pool.as_str() == text) {
        return Ok(pool.clone());
    }
    Err(match nearest(text, names()) {
        Some(near) => format!("the name of a pool (did you mean {near}?)"),
        None => format!(
            "the name of a pool in gopherproxy.pools ({})",
            names().collect::<Vec<_>>().join(", ")
        ),
    })
}

/// The URL that clients are sent to: absolute, or a path on the same host.
fn url(text: &str) -> Result<Vec<RedirectPart>, String> {
    let is_absolute = ["http://", "https://"]
        .iter()
        .any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
    // What the client sends must not become the host.
    let is_absolute = is_absolute
        && !["://{path}", "://{query}", ":///", "://?"]
            .iter()
            .any(|no_host| text.contains(no_host));
    let is_path = text.starts_with('/') && !text.starts_with("//") && !text.starts_with("/{");
    if !(is_absolute || is_path) {
        return Err("a URL that begins with https:// or http://, or a path that begins with /".into());
    }
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'"' | b'<' | b'>'))
    {
        return Err("a URL in printable ASCII without spaces; encode other bytes with %".into());
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('{') {
        let Some((name, after)) = from.split_once('}') else {
            return Err("a } for each {".into());
        };
        if !before.is_empty() {
            parts.push(RedirectPart::Text(before.to_owned()));
        }
        parts.push(match name {
            "path" => RedirectPart::Path,
            "query" => RedirectPart::Query,
            "host" => RedirectPart::Host,
            _ => {
                let near = nearest(name, ["path", "query", "host"]);
                let near = near.map_or(String::new(), |near| format!("; did you mean {{{near}}}?"));
                return Err(format!(
                    "{{path}}, {{query}} or {{host}} between braces, and not {}{near}",
                    quoted(name)
                ));
            }
        });
        rest = after;
    }
    if rest.contains('}') {
        return Err("a { for each }".into());
    }
    if !rest.is_empty() {
        parts.push(RedirectPart::Text(rest.to_owned()));
    }
    Ok(parts)
}

/// The value of `Content-Type`.
fn media_type(text: &str) -> Result<String, String> {
    let is_type = text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && text.contains('/');
    is_type
        .then(|| text.to_owned())
        .ok_or_else(|| "a media type such as text/plain".into())
}
