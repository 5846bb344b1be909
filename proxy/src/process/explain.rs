//! What happens to a request by the routes of a configuration, in words: `gopherproxy -t --explain URL`.

mod description;

use std::fmt::Write;

use crate::config::Config;
use crate::config::routes::{LONGEST_HOST, Misfit, Rank, Route, plain_host};
use crate::http1::head;
use crate::http1::path;
use crate::http1::target::{Scheme, is_authority, split_target};
use crate::http1::violation::Violation;
use crate::snapshot::table::Table;

/// Says which route of `config` the request with this method for this URL takes, what is done with it, and why the others are not
/// chosen.
///
/// # Errors
/// When that is no request.
pub fn explain(config: &Config, method: &str, url: &str) -> Result<String, String> {
    let (origin, _) = split_target(url.as_bytes());
    let Some(origin) = origin.filter(|origin| is_authority(origin.authority)) else {
        return Err(format!(
            "expected a URL such as https://www.example.com/path, got {}",
            chassis::settings::quoted(url)
        ));
    };
    let mut text = format!("{method} {url}");
    // The request, so that this refuses what the proxy does, with the same words.
    let host = String::from_utf8_lossy(origin.authority);
    let request = format!("{method} {url} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut scratch = head::scratch();
    let refused = |text, violation: Violation| {
        let Violation { rejection, rule } = violation;
        format!("{text}\n  is answered {}: {rule}", rejection.status())
    };
    let head = match head::parse(request.as_bytes(), &mut scratch, &config.client.head) {
        Ok(head) => head,
        Err(violation) => return Ok(refused(text, violation)),
    };
    if origin.scheme == Scheme::Http
        && let Some(redirect) = &config.tls.redirect
    {
        match redirect.location(&head) {
            Some(Ok(location)) => {
                let _ = write!(text, "\n  tls.redirect sends it to {location} first (status 308)");
            }
            Some(Err(violation)) => return Ok(refused(text, violation)),
            None => text += "\n  tls.redirect exempts its path",
        }
    }
    if config.routes.is_empty() {
        return Ok(text + "\n  there are no routes: it goes to the pool default, as all requests do");
    }
    let path = match path::plain(head.path) {
        Ok(path) => path,
        Err(rule) => return Ok(refused(text, Violation::malformed(rule))),
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
            for (name, value) in description::lines(config, route, &head) {
                let _ = write!(text, "\n    {name}: {value}");
            }
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
    fn it_says_all_that_a_route_does_and_no_value_of_a_field() {
        let text = "gopherproxy:
  limit: {exempt: [192.0.2.0/24]}
  client: {max_body: 1MiB}
  pools:
    stable:
      backends: [10.0.0.7:80, 'https://10.0.0.8:443']
      balance: hash:header:X-Shop
      sticky: {cookie: backend, secret: hush hush}
      max_inflight: 200
      slow_start: 30s
      read_timeout: 7s
    canary: {read_timeout: 9s}
  routes:
    shop:
      paths: [/shop]
      split: {stable: 95, canary: 5}
      allow: [10.0.0.0/8]
      deny: [10.9.0.0/16, '2001:db8::/32']
      basic_auth: /etc/users
      forward_auth: {url: 'http://10.0.0.5/verify?key=hush', copy: [Remote-User, Remote-Groups]}
      request_headers: {set: {X-Key: hush}, add: {X-Site: hush}, remove: [Cookie]}
      response_headers: {remove: [Server]}
      strip_prefix: /shop
      add_prefix: /v1
      retries: 1
    plain: {paths: [/plain], answer: hush, allow: [10.0.0.0/8]}
";
        let config = config(text);
        let shop = explain(&config, "GET", "http://a.example/shop/cart?q").unwrap();
        let expected = "    split: canary (5 of 100 clients), stable (95 of 100 clients)
    limit: 5 at once, then 2 a second, for each client; none for 192.0.2.0/24
    allow: 10.0.0.0/8; 403 for others
    deny: 403 for 10.9.0.0/16, 2001:db8::/32
    basic_auth: 401 without a password of /etc/users (0 users); backends get no Authorization
    forward_auth: asks http://10.0.0.5:80/verify first, 503 after 2s; backends get Remote-User, Remote-Groups of a 2xx answer, and clients any other answer
    request_headers: set X-Key; add X-Site; remove cookie
    response_headers: remove server
    strip_prefix: /shop
    add_prefix: /v1
    backends get: /v1/cart?q, with X-Forwarded-Prefix: /shop
    backends: the set gopher_backends:canary in the registry (canary's), 10.0.0.7:80, https://10.0.0.8:443 (stable's)
    balance: round_robin (canary's), hash:header:x-shop (stable's)
    sticky: none (canary's), the cookie backend (stable's)
    max_inflight: none (canary's), 200 (stable's)
    slow_start: none (canary's), 30s (stable's)
    connect_timeout: 2s (each pool's)
    read_timeout: 9s (canary's), 7s (stable's)
    write_timeout: 60s (each pool's)
    tunnel_idle_timeout: 1h (each pool's)
    retries: 1
    max_body: 1048576 bytes (client.max_body)
";
        assert!(shop.contains(expected) && !shop.contains("hush"), "{shop}");
        let plain = explain(&config, "GET", "http://a.example/plain").unwrap();
        assert!(plain.contains("allow: 10.0.0.0/8; 403 for others"), "{plain}");
        assert!(!plain.contains("_timeout") && !plain.contains("hush"), "{plain}");
    }

    #[test]
    fn it_says_where_https_comes_first() {
        let tls = "tls: {listen: 8443, certificates: /etc/tls, redirect: true, redirect_exempt: [/health]}";
        for routes in ["", ", routes: {all: {}}"] {
            let config = config(&format!("gopherproxy: {{{tls}{routes}}}"));
            for (url, line) in [
                (
                    "http://a.example:8080/b?c",
                    Some("tls.redirect sends it to https://a.example:8443/b?c first (status 308)"),
                ),
                ("http://a.example/health/db", Some("tls.redirect exempts its path")),
                ("https://a.example/b", None),
            ] {
                let text = explain(&config, "GET", url).unwrap();
                let second = text.lines().nth(1).map(str::trim);
                assert_eq!(second.filter(|line| line.starts_with("tls.redirect")), line, "{text}");
            }
        }
    }

    #[test]
    fn what_the_proxy_refuses_is_said_to_be_refused() {
        let config = config("gopherproxy: {routes: {all: {}}}");
        for (method, url, answer) in [
            (
                "TRACE",
                "http://a/",
                "is answered 405: CONNECT and TRACE are not proxied",
            ),
            ("GET", "http://a/x#y", "is answered 400: the target has a fragment"),
            ("GE T", "http://a/", "is answered 400: "),
            ("GET", "http://a/x y", "is answered 400: "),
            (
                "GET",
                "http://a/x/../y",
                "is answered 400: the path has a segment . or ..",
            ),
        ] {
            let text = explain(&config, method, url).unwrap();
            assert!(text.contains(answer) && !text.contains("takes"), "{text}");
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
    rest: {compress: true}
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
    backends: the set gopher_backends in the registry
    balance: round_robin (default's)
    connect_timeout: 2s (default's)
    read_timeout: 10s
    write_timeout: 60s (default's)
    tunnel_idle_timeout: 1h (default's)
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
            (
                "GET",
                "https://x.test/",
                "compress: text, with zstd or gzip, for clients that accept it",
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
