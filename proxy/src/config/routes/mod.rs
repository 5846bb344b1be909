//! `routes`: which requests go where, and what is done with them.

mod action;
mod matches;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use chassis::settings::{Section, duration, whole};
use registry::PoolName;

use super::limit::{Limit, Rate};
use super::shape::Shape;
use super::size_or_none;
use super::upstream::{MOST_RETRIES, UpstreamLimits};
pub use action::{Action, Redirect, RedirectPart, Split};
pub use matches::{Host, LONGEST_HOST, Matches, Misfit, Path, Rank, any_or_each, plain_host};

/// The most patterns in all routes together: each host of a route with each of its paths and each of its methods is one.
const MOST_PATTERNS: usize = 100_000;

/// A route.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Its name, in the log and in metrics.
    pub name: String,
    /// Which requests are its own.
    pub matches: Matches,
    /// What is done with them.
    pub action: Action,
    /// What its clients may send, beside the limit for all requests.
    pub limit: RouteLimit,
    /// What stands for it in place of the pool's.
    pub overrides: Overrides,
    /// What is done to its requests and their responses.
    pub shape: Shape,
}

impl Route {
    /// Reads the files that it names.
    pub(super) fn load(&mut self) -> Result<(), String> {
        let named = |problem| format!("gopherproxy.routes.{}.{problem}", self.name);
        self.shape.load().map_err(named)
    }
}

/// What the clients of a route may send.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouteLimit {
    /// What the limit for all requests allows.
    Global,
    /// So much of this route, within the limit for all requests.
    Own(Rate),
    /// As much as they like.
    Unlimited,
}

/// What a route sets in place of the settings for its pool, or for all clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `upstream.connect_timeout`.
    pub connect_timeout: Option<Duration>,
    /// `upstream.read_timeout`.
    pub read_timeout: Option<Duration>,
    /// `upstream.write_timeout`.
    pub write_timeout: Option<Duration>,
    /// `upstream.tunnel_idle_timeout`.
    pub tunnel_idle_timeout: Option<Duration>,
    /// `upstream.retries`.
    pub retries: Option<usize>,
    /// `client.max_body`.
    pub max_body: Option<Option<u64>>,
}

impl Overrides {
    /// What a backend may take by these and, where they say nothing, by those of its pool.
    pub fn over(&self, pool: &UpstreamLimits) -> UpstreamLimits {
        UpstreamLimits {
            connect_timeout: self.connect_timeout.unwrap_or(pool.connect_timeout),
            read_timeout: self.read_timeout.unwrap_or(pool.read_timeout),
            write_timeout: self.write_timeout.unwrap_or(pool.write_timeout),
            tunnel_idle_timeout: self.tunnel_idle_timeout.unwrap_or(pool.tunnel_idle_timeout),
            retries: self.retries.unwrap_or(pool.retries),
            ..pool.clone()
        }
    }

    fn read(section: &mut Section<'_>) -> Self {
        let some_size = |text: &str| size_or_none(text).map(Some);
        let some_duration = |text: &str| duration(text).map(Some);
        Self {
            connect_timeout: section.value("connect_timeout", None, None, some_duration),
            read_timeout: section.value("read_timeout", None, None, some_duration),
            write_timeout: section.value("write_timeout", None, None, some_duration),
            tunnel_idle_timeout: section.value("tunnel_idle_timeout", None, None, some_duration),
            retries: section.value("retries", None, None, |text| whole(0..=MOST_RETRIES)(text).map(Some)),
            max_body: section.value("max_body", None, None, some_size),
        }
    }
}

/// What only matters where requests go to a pool.
const OF_BACKENDS: [&str; 6] = [
    "connect_timeout",
    "read_timeout",
    "write_timeout",
    "tunnel_idle_timeout",
    "retries",
    "max_body",
];

/// Reads the routes. There are these `pools`, and without a limit of its own a route has this one.
pub(super) fn read(section: &mut Section<'_>, pools: &BTreeSet<PoolName>, global: &Limit) -> Vec<Route> {
    let settings = section.settings();
    let mut taken = HashMap::new();
    let mut routes: Vec<Route> = Vec::new();
    for named in section.named("routes", name) {
        let (place, mut section) = (named.place, named.section);
        let matches = Matches::read(&mut section);
        let action = Action::read(&mut section, pools);
        let limit = RouteLimit::read(&mut section, global);
        let overrides = Overrides::read(&mut section);
        let shape = Shape::read(&mut section);
        if !action.is_forward() {
            shape.check_without_backends(&section);
            for key in OF_BACKENDS.into_iter().chain(Shape::OF_BACKENDS) {
                section.key_has_no_effect(key, "the proxy answers the requests of this route itself");
            }
        }
        section.finish();
        if taken.len() + matches.patterns() > MOST_PATTERNS {
            let problem = format_args!(
                "the hosts, paths and methods of all routes make more than {MOST_PATTERNS} combinations; list fewer of them"
            );
            settings.mistake(&place, problem);
            break;
        }
        if let Some((other, pattern)) = claim(&matches, routes.len(), &mut taken) {
            let other = &routes[other].name;
            let problem = format_args!(
                "the route {other} matches the same requests ({pattern}), and neither is more specific; \
                 narrow one of them by host, path or method, or merge them"
            );
            settings.mistake(&place, problem);
        }
        routes.push(Route {
            name: named.name,
            matches,
            action,
            limit,
            overrides,
            shape,
        });
    }
    routes
}

impl RouteLimit {
    fn read(section: &mut Section<'_>, global: &Limit) -> Self {
        if !section.has("limit") {
            return Self::Global;
        }
        let (is_on, mut part) = section.switchable("limit", None);
        let rate = Rate::read(&mut part, [None, None], global.rate());
        part.finish();
        if is_on { Self::Own(rate) } else { Self::Unlimited }
    }
}

/// The patterns of all routes, each with the number of its route.
type Taken = HashMap<(Option<Host>, Option<Path>, Option<String>), usize>;

/// Takes the patterns of the route with this `number`. Returns another route that has one of them, and that one in words.
fn claim(matches: &Matches, number: usize, taken: &mut Taken) -> Option<(usize, String)> {
    let mut conflict = None;
    for host in any_or_each(&matches.hosts) {
        for path in any_or_each(&matches.paths) {
            // A path with all below it is the same as none, if it is the root.
            let path = path.filter(|path| **path != Path::Below(Vec::new()));
            for method in any_or_each(&matches.methods) {
                let other = *taken
                    .entry((host.cloned(), path.cloned(), method.cloned()))
                    .or_insert(number);
                if other != number && conflict.is_none() {
                    let host = host.map_or("any host".to_owned(), Host::to_string);
                    let path = path.map_or("any path".to_owned(), Path::to_string);
                    let method = method.map_or("any method", String::as_str);
                    conflict = Some((other, format!("{host}, {path}, {method}")));
                }
            }
        }
    }
    conflict
}

/// The name of a route.
fn name(text: &str) -> Result<String, String> {
    let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_name = (1..=63).contains(&text.len()) && text.bytes().all(is_in_name);
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "a name of letters, digits, - and _, 63 at most".into())
}
