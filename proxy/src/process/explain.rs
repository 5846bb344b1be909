//! What happens to a request by the routes of a configuration, in words: `gopherproxy -t --explain URL`.

use std::fmt::Write;
use std::time::Duration;

use registry::PoolName;

use crate::config::Config;
use crate::config::routes::{Action, Host, LONGEST_HOST, Misfit, Path, Rank, Redirect, Route, RouteLimit, plain_host};
use crate::http1::head::{self, Rules};
use crate::http1::path;
use crate::http1::target::{Scheme, is_authority, split_target};
use crate::snapshot::table::Table;

/// Says which route of `config` the request with this method for this URL takes, what is done with it, and why the others are not
/// chosen.
///
/// # Errors
/// When that is no request.
pub fn explain(config: &Config, method: &str, url: &str) -> Result<String, String> {
    let (origin, target) = split_target(url.as_bytes());
    let Some(origin) = origin.filter(|origin| is_authority(origin.authority)) else {
        return Err(format!(
            "expected a URL such as https://www.example.com/path, got {}",
            chassis::settings::quoted(url)
        ));
    };
    let mut text = format!("{method} {url}");
    if origin.scheme == Scheme::Http && config.tls.redirect.is_some() {
        text += "\n  tls.redirect sends it to https first, unless its path is in redirect_exempt";
    }
    if config.routes.is_empty() {
        return Ok(text + "\n  there are no routes: it goes to the pool default, as all requests do");
    }
    let path = match path::plain(target) {
        Ok(path) => path,
        Err(problem) => return Ok(format!("{text}\n  is answered 400: {problem}")),
    };
    let routes = &config.routes;
    let table = Table::new(routes.iter().map(|route| &route.matches));
    let number = table.pick(Some(origin.authority), &path, method);
    let chosen = number.and_then(|number| routes.get(usize::try_from(number).ok()?));
    let mut room = [0; LONGEST_HOST];
    let host = plain_host(origin.authority, &mut room);
    let rank = |route: &Route| route.matches.rank(host, &path, method);
    let best = chosen.and_then(|route| rank(route).ok());
    match chosen {
        Some(route) => {
            let _ = write!(text, "\n  takes the route {}", route.name);
            describe(&mut text, config, route, method, url);
        }
        None => text += "\n  takes no route, and is answered 404",
    }
    let others = routes
        .iter()
        .filter(|route| chosen.is_none_or(|chosen| chosen.name != route.name));
    let mut elsewhere = 0;
    for route in others {
        let why = match (rank(route), best) {
            (Ok(other), Some(best)) => why_less(best, other),
            (Ok(_), None) => continue,
            (Err(Misfit::Host), _) => {
                elsewhere += 1;
                continue;
            }
            (Err(Misfit::Path), _) => "is for other paths",
            (Err(Misfit::Method), _) => "is for other methods",
        };
        let _ = write!(text, "\n  not {}: it {why}", route.name);
    }
    match elsewhere {
        0 => {}
        1 => text += "\n  not 1 more, which is for other hosts",
        _ => {
            let _ = write!(text, "\n  not {elsewhere} more, which are for other hosts");
        }
    }
    Ok(text)
}

/// Why a route that matches too is less specific.
fn why_less(best: Rank, other: Rank) -> &'static str {
    if best.host != other.host {
        return match (best.host.0, other.host) {
            (_, (false, 0)) => "is for any host",
            (true, _) => "has a wildcard for the host, which comes after an exact one",
            (false, _) => "has a shorter wildcard for the host",
        };
    }
    if best.path != other.path {
        return match (best.path.0, other.path) {
            (_, (false, 0)) => "is for any path",
            (true, _) => "has a prefix for the path, which comes after an exact one",
            (false, _) => "has a shorter prefix for the path",
        };
    }
    "is for any method"
}

/// What is done with the requests of `route`.
fn describe(text: &mut String, config: &Config, route: &Route, method: &str, url: &str) {
    let mut line = |name: &str, value: &str| {
        let _ = write!(text, "\n    {name}: {value}");
    };
    let matches = &route.matches;
    line("hosts", &list(&matches.hosts, Host::to_string));
    line("paths", &list(&matches.paths, Path::to_string));
    line("methods", &list(&matches.methods, String::clone));
    match &route.action {
        Action::Pool(pool) => line("pool", pool.as_str()),
        Action::Split(split) => {
            let total: u64 = split.pools.iter().map(|(_, share)| u64::from(*share)).sum();
            let share = |(pool, share): &(PoolName, u32)| format!("{pool} ({share} of {total} clients)");
            line("split", &split.pools.iter().map(share).collect::<Vec<_>>().join(", "));
        }
        Action::Redirect(redirect) => {
            let location = location(redirect, method, url).unwrap_or_else(|| "none".to_owned());
            line("redirect", &format!("{location} (status {})", redirect.status));
        }
        Action::Answer(answer) => {
            let length = answer.body.len();
            line(
                "answer",
                &format!("status {}, {length} bytes of {}", answer.status, answer.content_type),
            );
        }
    }
    let all = match config.limit_enabled {
        true => rate(config.limit.burst, config.limit.per_second),
        false => "none for all requests".to_owned(),
    };
    match route.limit {
        RouteLimit::Global => line("limit", &all),
        RouteLimit::Unlimited => line("limit", "none"),
        RouteLimit::Own(own) => {
            let own = rate(own.burst, own.per_second);
            line("limit", &format!("{own} on this route; and {all}"));
        }
    }
    let own = &route.overrides;
    let mut own_line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            line(name, &value);
        }
    };
    let duration = |duration: Option<Duration>| duration.map(|duration| format!("{duration:?}"));
    own_line("connect_timeout", duration(own.connect_timeout));
    own_line("read_timeout", duration(own.read_timeout));
    own_line("write_timeout", duration(own.write_timeout));
    own_line("tunnel_idle_timeout", duration(own.tunnel_idle_timeout));
    own_line("retries", own.retries.map(|retries| retries.to_string()));
    let size = |size: Option<u64>| size.map_or("none".to_owned(), |bytes| format!("{bytes} bytes"));
    own_line("max_body", own.max_body.map(size));
}

fn rate(burst: u32, per_second: f64) -> String {
    format!("{burst} at once, then {per_second} a second, for each client")
}

fn list<T>(all: &[T], text: impl Fn(&T) -> String) -> String {
    match all {
        [] => "any".to_owned(),
        all => all.iter().map(text).collect::<Vec<_>>().join(", "),
    }
}

/// Where the client is sent.
fn location(redirect: &Redirect, method: &str, url: &str) -> Option<String> {
    let (origin, _) = split_target(url.as_bytes());
    let host = String::from_utf8_lossy(origin?.authority).into_owned();
    let request = format!("{method} {url} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut scratch = head::scratch();
    let head = head::parse(request.as_bytes(), &mut scratch, &Rules::default()).ok()?;
    redirect.location(&head).ok()
}

#[cfg(test)]
mod tests {
    use chassis::settings::Settings;

    use super::*;

    const ROUTES: &str = include_str!("../../tests/routes/routes.yaml");
    const REQUESTS: &str = include_str!("../../tests/routes/requests.txt");

    fn config(text: &str) -> Config {
        Config::parse(text, Settings::new([])).unwrap()
    }

    #[test]
    fn every_request_of_the_table_is_explained() {
        let config = config(ROUTES);
        let rows = REQUESTS
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        for row in rows {
            let words: Vec<_> = row.splitn(4, ' ').collect();
            let text = explain(&config, words[0], words[1]).unwrap();
            if words[2] == "!" {
                assert!(
                    text.contains("\n  is answered 400: ") && text.contains(words[3]),
                    "{row}: {text}"
                );
                continue;
            }
            assert!(
                text.contains(&format!("\n  takes the route {}\n", words[2])),
                "{row}: {text}"
            );
            // Each other route has a reason, or is one of those for other hosts.
            let reasons = text.lines().filter(|line| line.starts_with("  not ")).count();
            let elsewhere = text
                .lines()
                .find_map(|line| line.strip_prefix("  not ")?.split_once(" more, ")?.0.parse().ok());
            let elsewhere: usize = elsewhere.unwrap_or(0);
            let named = reasons - usize::from(elsewhere > 0);
            assert_eq!(named + elsewhere + 1, config.routes.len(), "{row}: {text}");
        }
    }

    #[test]
    fn it_says_what_is_done_and_why_the_others_lost() {
        let text = "gopherproxy:
  limit: {burst: 9}
  routes:
    api: {hosts: [a.example, b.example], paths: [/v1], limit: {burst: 50}, read_timeout: 10s, max_body: none, retries: 0}
    get: {hosts: [a.example], paths: [/v1], methods: [PUT]}
    all: {hosts: [a.example], limit: none}
    exact: {hosts: [a.example], paths: [=/v1]}
    wild: {hosts: ['*.example']}
    rest: {}
    old: {hosts: [old.example], redirect: 'https://a.example{path}{query}', status: 301}
    ping: {paths: [=/ping], answer: pong}
";
        let config = config(text);
        assert_eq!(
            explain(&config, "GET", "http://a.example/v1/x").unwrap(),
            "GET http://a.example/v1/x
  takes the route api
    hosts: a.example, b.example
    paths: /v1
    methods: any
    pool: default
    limit: 50 at once, then 2 a second, for each client on this route; and 9 at once, then 2 a second, for each client
    read_timeout: 10s
    retries: 0
    max_body: none
  not all: it is for any path
  not exact: it is for other paths
  not get: it is for other methods
  not ping: it is for other paths
  not rest: it is for any host
  not wild: it has a wildcard for the host, which comes after an exact one
  not 1 more, which is for other hosts"
        );
        for (method, url, line) in [
            (
                "GET",
                "https://old.example/a?b",
                "redirect: https://a.example/a?b (status 301)",
            ),
            (
                "GET",
                "https://x.test/ping",
                "answer: status 200, 4 bytes of text/plain; charset=utf-8",
            ),
            (
                "GET",
                "https://a.example/v1",
                "not api: it has a prefix for the path, which comes after an exact one",
            ),
            ("PUT", "https://a.example/v1/x", "not api: it is for any method"),
            ("GET", "https://a.example/", "limit: none"),
        ] {
            let text = explain(&config, method, url).unwrap();
            assert!(text.contains(line), "{text}");
        }
        for wrong in ["/a", "a.example/", "ftp://a/", "http:///a", "http://u:p@a/"] {
            let problem = explain(&config, "GET", wrong).unwrap_err();
            assert!(
                problem.starts_with("expected a URL such as ") && !problem.contains("u:p"),
                "{problem}"
            );
        }
        let none = explain(&self::config(""), "GET", "http://a/").unwrap();
        assert!(none.contains("there are no routes"), "{none}");
        let missing = explain(
            &self::config("gopherproxy: {routes: {a: {hosts: [a]}}}"),
            "GET",
            "http://b/",
        )
        .unwrap();
        assert!(
            missing.contains("takes no route, and is answered 404\n  not 1 more"),
            "{missing}"
        );
    }
}
