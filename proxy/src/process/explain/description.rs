//! What is done with the requests of a route, in lines of `key: value`.
//!
//! Fields that a route writes are named without their values: one may be a key for the backends, and this text is for tickets and chats.

use std::time::Duration;

use registry::{Member, PoolName};

use crate::config::routes::{Action, Host, Overrides, Path, Route, RouteLimit};
use crate::config::{Config, Edits, PoolSettings, Shape, UpstreamLimits, Users};
use crate::http1::head::Head;

type Lines = Vec<(&'static str, String)>;

/// What happens to the request with this head, which takes this `route`.
pub fn lines(config: &Config, route: &Route, head: &Head<'_>) -> Lines {
    let mut lines = Lines::new();
    of_matches(&mut lines, route);
    of_action(&mut lines, route, head);
    lines.push(("limit", limit(config, route.limit)));
    of_access(&mut lines, &route.shape);
    if route.action.is_forward() {
        of_shape(&mut lines, &route.shape, head);
        let pools = route.action.pools();
        of_balance(&mut lines, config, &pools);
        of_pools(&mut lines, config, &route.overrides, &pools);
    }
    lines
}

fn of_matches(lines: &mut Lines, route: &Route) {
    let matches = &route.matches;
    lines.push(("hosts", list(&matches.hosts, Host::to_string)));
    lines.push(("paths", list(&matches.paths, Path::to_string)));
    lines.push(("methods", list(&matches.methods, String::clone)));
}

fn of_action(lines: &mut Lines, route: &Route, head: &Head<'_>) {
    lines.push(match &route.action {
        Action::Pool(pool) => ("pool", pool.to_string()),
        Action::Split(split) => {
            let total: u64 = split.pools.iter().map(|(_, share)| u64::from(*share)).sum();
            let share = |(pool, share): &(PoolName, u32)| format!("{pool} ({share} of {total} clients)");
            ("split", list(&split.pools, share))
        }
        Action::Redirect(redirect) => {
            let location = redirect.location(head).unwrap_or_else(|_| "none".to_owned());
            ("redirect", format!("{location} (status {})", redirect.status))
        }
        Action::Answer(answer) => {
            let (status, length, content_type) = (answer.status, answer.body.len(), &answer.content_type);
            ("answer", format!("status {status}, {length} bytes of {content_type}"))
        }
    });
}

fn limit(config: &Config, limit: RouteLimit) -> String {
    let rate = |burst: u32, per_second: f64| format!("{burst} at once, then {per_second} a second, for each client");
    let exempt = match &config.limit.exempt[..] {
        [] => String::new(),
        exempt => format!("; none for {}", list(exempt, ToString::to_string)),
    };
    let all = match config.limit_enabled {
        true => rate(config.limit.burst, config.limit.per_second),
        false => "none for all requests".to_owned(),
    };
    match limit {
        RouteLimit::Global if config.limit_enabled => all + &exempt,
        RouteLimit::Global => all,
        RouteLimit::Unlimited => "none".to_owned(),
        RouteLimit::Own(own) => {
            let own = rate(own.burst, own.per_second);
            format!("{own} on this route; and {all}{exempt}")
        }
    }
}

/// Who may use the route.
fn of_access(lines: &mut Lines, shape: &Shape) {
    let access = &shape.access;
    if !access.allow.is_empty() {
        lines.push(("allow", format!("{}; 403 for others", access.allow)));
    }
    if !access.deny.is_empty() {
        lines.push(("deny", format!("403 for {}", access.deny)));
    }
}

/// What is done to requests that go to a backend, and to their responses.
fn of_shape(lines: &mut Lines, shape: &Shape, head: &Head<'_>) {
    // Each part by its name, so that none that is added is forgotten here.
    let Shape {
        access: _,
        users,
        auth,
        request_headers,
        response_headers,
        prefix,
        compress,
    } = shape;
    if let Some(file) = users {
        let count = file.users.as_ref().map_or(0, Users::count);
        let (path, s) = (file.path.display(), if count == 1 { "" } else { "s" });
        lines.push((
            "basic_auth",
            format!("401 without a password of {path} ({count} user{s}); backends get no Authorization"),
        ));
    }
    if let Some(auth) = auth {
        let (url, timeout) = (&auth.url, auth.timeout);
        let copied = match &auth.copy[..] {
            [] => "nothing".to_owned(),
            copy => copy.join(", "),
        };
        lines.push((
            "forward_auth",
            format!(
                "asks {url} first, 503 after {}; backends get {copied} of a 2xx answer, and clients any other answer",
                time(timeout)
            ),
        ));
    }
    let mut edits = |name, edits: &Edits| {
        if !edits.is_empty() {
            lines.push((name, edits.to_string()));
        }
    };
    edits("request_headers", request_headers);
    edits("response_headers", response_headers);
    if prefix.strip.is_some() || prefix.add.is_some() {
        let (target, stripped) = prefix.apply(head.path);
        for (name, value) in [("strip_prefix", &prefix.strip), ("add_prefix", &prefix.add)] {
            lines.extend(value.as_ref().map(|value| (name, value.clone())));
        }
        let target = String::from_utf8_lossy(&target.concat()).into_owned();
        let stripped = stripped.map_or(String::new(), |prefix| format!(", with X-Forwarded-Prefix: {prefix}"));
        lines.push(("backends get", target + &stripped));
    }
    if *compress {
        lines.push((
            "compress",
            "text, with zstd or gzip, for clients that accept it".to_owned(),
        ));
    }
}

/// Which backends these `pools` have, and how one is chosen.
fn of_balance(lines: &mut Lines, config: &Config, pools: &[&PoolName]) {
    let backends = |(name, pool): (&PoolName, &PoolSettings)| match pool.backends.len() {
        0 => format!("the set {} in the registry", name.key()),
        _ => list(&pool.backends.iter().collect::<Vec<_>>(), |member: &&Member| {
            member.to_string()
        }),
    };
    let none = || "none".to_owned();
    let text = match pools {
        [pool] => config.pools.get_key_value(*pool).map(backends).unwrap_or_default(),
        pools => by_pool(config, pools, backends),
    };
    lines.push(("backends", text));
    lines.push((
        "balance",
        by_pool(config, pools, |(_, pool)| pool.balance.algorithm.to_string()),
    ));
    let sticky = |pool: &PoolSettings| Some(format!("the cookie {}", pool.balance.sticky.as_ref()?.cookie));
    let max_inflight = |pool: &PoolSettings| pool.balance.max_inflight.map(|most| most.to_string());
    let slow_start = |pool: &PoolSettings| pool.balance.slow_start.map(time);
    type Value<'v> = &'v dyn Fn(&PoolSettings) -> Option<String>;
    let optional: [(&str, Value<'_>); 3] = [
        ("sticky", &sticky),
        ("max_inflight", &max_inflight),
        ("slow_start", &slow_start),
    ];
    for (name, value) in optional {
        if pools
            .iter()
            .filter_map(|pool| config.pools.get(*pool))
            .any(|pool| value(pool).is_some())
        {
            lines.push((
                name,
                by_pool(config, pools, |(_, pool)| value(pool).unwrap_or_else(none)),
            ));
        }
    }
}

/// The value of each of these `pools`, and whose it is.
fn by_pool(config: &Config, pools: &[&PoolName], value: impl Fn((&PoolName, &PoolSettings)) -> String) -> String {
    let values: Vec<_> = pools
        .iter()
        .filter_map(|pool| config.pools.get_key_value(*pool))
        .map(|(name, pool)| (name, value((name, pool))))
        .collect();
    match &values[..] {
        [(_, first), others @ ..] if !others.is_empty() && others.iter().all(|(_, other)| other == first) => {
            format!("{first} (each pool's)")
        }
        values => list(values, |(name, value)| format!("{value} ({name}'s)")),
    }
}

/// What backends and clients may take where requests go to these `pools`.
fn of_pools(lines: &mut Lines, config: &Config, own: &Overrides, pools: &[&PoolName]) {
    type Value = fn(&UpstreamLimits) -> String;
    let values: [(&str, bool, Value); 5] = [
        ("connect_timeout", own.connect_timeout.is_some(), |limits| {
            time(limits.connect_timeout)
        }),
        ("read_timeout", own.read_timeout.is_some(), |limits| {
            time(limits.read_timeout)
        }),
        ("write_timeout", own.write_timeout.is_some(), |limits| {
            time(limits.write_timeout)
        }),
        ("tunnel_idle_timeout", own.tunnel_idle_timeout.is_some(), |limits| {
            time(limits.tunnel_idle_timeout)
        }),
        ("retries", own.retries.is_some(), |limits| limits.retries.to_string()),
    ];
    for (name, is_own, value) in values {
        let text = match is_own {
            true => value(&own.over(&UpstreamLimits::default())),
            false => by_pool(config, pools, |(_, pool)| value(&pool.upstream)),
        };
        lines.push((name, text));
    }
    let size = |size: Option<u64>| size.map_or("none".to_owned(), |bytes| format!("{bytes} bytes"));
    lines.push((
        "max_body",
        match own.max_body {
            Some(own) => size(own),
            None => format!("{} (client.max_body)", size(config.client.transfer.max_body)),
        },
    ));
}

/// A duration as the file has it.
fn time(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(3600) && duration.subsec_nanos() == 0 => {
            format!("{}h", seconds / 3600)
        }
        _ => format!("{duration:?}"),
    }
}

fn list<T>(all: &[T], text: impl Fn(&T) -> String) -> String {
    match all {
        [] => "any".to_owned(),
        all => all.iter().map(text).collect::<Vec<_>>().join(", "),
    }
}
