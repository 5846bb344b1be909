use chassis::settings::{Remark, Settings};
use registry::PoolName;

use super::*;
use crate::config::Config;
use crate::rejection::Prepared;

fn read(routes: &str) -> Result<Config, String> {
    let text = format!("gopherproxy:\n  routes:\n{routes}");
    Config::parse(&text, Settings::new([])).map_err(|error| error.to_string())
}

fn one(keys: &str) -> Route {
    read(&format!("    a: {{{keys}}}")).unwrap().routes.remove(0)
}

fn mistake(keys: &str) -> String {
    read(&format!("    a: {{{keys}}}")).unwrap_err()
}

#[test]
fn patterns_are_kept_as_requests_are_compared() {
    let route = one(
        "hosts: [WWW.Example.com., '*.Example.com', '2001:DB8:0::1', '[::1]', 10.0.0.1], paths: [/v1/, /v1, /, =/x/, /%61%20b], methods: [GET, M-SEARCH]",
    );
    let below = |path: &str| Path::Below(path.into());
    let exact = |name: &str| Host::Exact(name.into());
    assert_eq!(
        route.matches,
        Matches {
            hosts: vec![
                exact("www.example.com"),
                Host::Below("example.com".into()),
                exact("[2001:db8::1]"),
                exact("[::1]"),
                exact("10.0.0.1"),
            ],
            paths: vec![
                below("/v1"),
                below("/v1"),
                below(""),
                Path::Exact("/x/".into()),
                below("/a b")
            ],
            methods: vec!["GET".into(), "M-SEARCH".into()],
        }
    );
    assert_eq!(one("").action, Action::Pool(PoolName::default()));
    assert_eq!(one("").matches, one("hosts: [], paths: none").matches);
}

#[test]
fn an_answer_keeps_its_spaces_and_line_ends() {
    for (keys, body) in [
        (r#"answer: "ok\n""#, "ok\n"),
        ("answer: ' ok '", " ok "),
        ("answer: ok", "ok"),
        ("answer: 5", "5"),
        ("answer: ", ""),
    ] {
        let Action::Answer(answer) = one(keys).action else {
            panic!("{keys}");
        };
        assert_eq!(answer.body, body.as_bytes(), "{keys}");
    }
    let robots = read("    a:\n      answer: |\n        User-agent: *\n        Disallow: /\n").unwrap();
    assert!(
        matches!(&robots.routes[0].action, Action::Answer(answer) if answer.body == "User-agent: *\nDisallow: /\n")
    );
    assert!(mistake("answer: [ok]").contains("routes.a.answer: expected one value, got a list"));
}

#[test]
fn what_is_wrong_with_a_part_is_not_reported_of_the_whole_too() {
    for keys in [
        "split: {default: 1, other: 2}",
        "split: {default: x}",
        "split: default",
        "forward_auth: 'http://a/'",
    ] {
        let mistake = mistake(keys);
        assert!(mistake.starts_with("the configuration has a mistake: "), "{mistake}");
    }
}

#[test]
fn a_pattern_that_no_request_can_have_is_a_mistake() {
    for host in [
        "''",
        "'*'",
        "'*.'",
        "a:80",
        "'[::1]:80'",
        "a.*.b",
        "'*.10.0.0.1'",
        "'*.[::1]'",
        "a/b",
        "a b",
        ".a",
        "a..b",
        "http://a",
        "'[::1'",
    ] {
        let mistake = mistake(&format!("hosts: [{host}]"));
        assert!(
            mistake.contains("routes.a.hosts: entry 1: expected "),
            "{host}: {mistake}"
        );
    }
    for path in [
        "a", "=a", "/a?b", "/a#b", "/a;b", "/a/*", "/a/../b", "/a//b", "/a%2fb", "/%", "''",
    ] {
        let mistake = mistake(&format!("paths: [{path:?}]"));
        assert!(
            mistake.contains("routes.a.paths: entry 1: expected a path "),
            "{path}: {mistake}"
        );
    }
    for method in ["get", "TRACE", "CONNECT", "'GE T'", "''"] {
        let mistake = mistake(&format!("methods: [{method}]"));
        assert!(
            mistake.contains("routes.a.methods: entry 1: expected a method "),
            "{method}: {mistake}"
        );
    }
    for name in ["a.b", "a b", "'\"'", "\u{e4}"] {
        let mistake = read(&format!("    {name}: {{}}")).unwrap_err();
        assert!(
            mistake.contains("a name of letters, digits, - and _"),
            "{name}: {mistake}"
        );
    }
}

#[test]
fn two_routes_for_the_same_requests_are_a_mistake_that_names_both() {
    for (first, second, pattern) in [
        ("", "", "any host, any path, any method"),
        ("", "paths: [/]", "any host, any path, any method"),
        ("hosts: [a, B]", "hosts: [b., c]", "b, any path, any method"),
        ("paths: [/v1]", "paths: [/v2, /v1/]", "any host, /v1, any method"),
        ("paths: [=/a]", "paths: [=/%61]", "any host, =/a, any method"),
        (
            "hosts: ['*.a'], methods: [GET, PUT]",
            "hosts: ['*.A'], methods: [PUT]",
            "*.a, any path, PUT",
        ),
    ] {
        let mistake = read(&format!("    one: {{{first}}}\n    two: {{{second}}}")).unwrap_err();
        let expected = format!(
            "line 4: gopherproxy.routes.two: the route one matches the same requests ({pattern}), and neither is more specific; "
        );
        assert!(mistake.contains(&expected), "{mistake}");
    }
    for (first, second) in [
        ("", "paths: [=/]"),
        ("", "methods: [GET]"),
        ("hosts: [a]", "hosts: ['*.a']"),
        ("paths: [=/a]", "paths: [/a]"),
        ("hosts: [a, a], paths: [/, /]", "hosts: [b]"),
    ] {
        read(&format!("    one: {{{first}}}\n    two: {{{second}}}")).unwrap();
    }
}

#[test]
fn too_many_patterns_are_a_mistake_at_once() {
    let list = |prefix: &str| {
        (0..2_000)
            .map(|number| format!("{prefix}{number}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mistake = mistake(&format!("hosts: [{}], paths: [{}]", list("h"), list("/")));
    assert!(mistake.contains("more than 100000 combinations"), "{mistake}");
}

#[test]
fn a_route_does_one_thing() {
    let redirect = |keys: &str| match one(keys).action {
        Action::Redirect(redirect) => redirect,
        other => panic!("{other:?}"),
    };
    let text = |text: &str| RedirectPart::Text(text.into());
    assert_eq!(
        redirect("redirect: 'https://{host}.x/a{path}{query}'").url,
        [
            text("https://"),
            RedirectPart::Host,
            text(".x/a"),
            RedirectPart::Path,
            RedirectPart::Query
        ]
    );
    assert_eq!(redirect("redirect: /login").status, 308);
    assert_eq!(redirect("redirect: /login, status: 302").status, 302);
    let answer = Prepared {
        status: 503,
        body: "closed\r\nX: y".into(),
        content_type: "text/html".into(),
    };
    assert_eq!(
        one(r#"answer: "closed\r\nX: y", status: 503, content_type: text/html"#).action,
        Action::Answer(answer.into())
    );
    for (keys, problem) in [
        ("pool: default, answer: x", "routes.a.answer: the route has pool too"),
        (
            "pool: default, redirect: /x",
            "routes.a.redirect: the route has pool too",
        ),
        (
            "split: {default: 1}, pool: default",
            "routes.a.split: the route has pool too",
        ),
        ("redirect: /x, answer: x", "routes.a.answer: the route has redirect too"),
        ("pool: defalut", "expected the name of a pool (did you mean default?)"),
        (
            "pool: other",
            "expected the name of a pool in gopherproxy.pools (default)",
        ),
        (
            "split: {defaul: 1, default: 2}",
            "routes.a.split.defaul: expected the name of a pool (did you mean default?)",
        ),
        ("split: {default: 1}", "routes.a.split: expected two pools or more"),
        ("split: {}", "routes.a.split: expected two pools or more"),
        (
            "split: {default: 1.5}",
            "routes.a.split.default: expected a whole number",
        ),
        (
            "split: {default: -1}",
            "routes.a.split.default: expected a whole number",
        ),
        (
            "redirect: www.example.com",
            "routes.a.redirect: expected a URL that begins with",
        ),
        (
            "redirect: //www.example.com",
            "routes.a.redirect: expected a URL that begins with",
        ),
        (
            "redirect: '{path}'",
            "routes.a.redirect: expected a URL that begins with",
        ),
        (
            "redirect: '/{path}'",
            "routes.a.redirect: expected a URL that begins with",
        ),
        (
            "redirect: 'https://{path}'",
            "routes.a.redirect: expected a URL that begins with",
        ),
        (
            "redirect: 'https:///x'",
            "routes.a.redirect: expected a URL that begins with",
        ),
        ("redirect: 'https://a/{pth}'", "did you mean {path}?"),
        (
            "redirect: 'https://a/{path'",
            "routes.a.redirect: expected a } for each {",
        ),
        (
            "redirect: 'https://a/path}'",
            "routes.a.redirect: expected a { for each }",
        ),
        (
            r#"redirect: "https://a/\r\nX: y""#,
            "routes.a.redirect: expected a URL in printable ASCII",
        ),
        (
            "redirect: 'https://a/\u{e4}'",
            "routes.a.redirect: expected a URL in printable ASCII",
        ),
        (
            "redirect: /x, status: 200",
            "routes.a.status: expected the status of a redirect",
        ),
        ("redirect: /x, status: x", "routes.a.status: expected a whole number"),
        (
            "answer: x, status: 302",
            "routes.a.status: expected a status from 200 to 299",
        ),
        (
            "answer: x, status: 101",
            "routes.a.status: expected a status from 200 to 299",
        ),
        (
            "answer: x, status: 204",
            "routes.a.status: expected a status with a body",
        ),
        (
            r#"answer: x, content_type: "text/plain\r\nX: y""#,
            "routes.a.content_type: expected a media type",
        ),
        (
            "answer: x, content_type: html",
            "routes.a.content_type: expected a media type",
        ),
        ("redirct: /x", "routes.a.redirct: unknown key; did you mean redirect?"),
        ("path: [/x]", "routes.a.path: unknown key; did you mean paths?"),
    ] {
        let mistake = mistake(keys);
        assert!(mistake.contains(problem), "{keys}: {mistake}");
    }
}

#[test]
fn a_route_sets_some_limits_and_leaves_the_others() {
    let route = one("read_timeout: 5s, retries: 0, max_body: 1M");
    let pool = Config::parse("", Settings::new([])).unwrap().every_pool.upstream;
    let over = route.overrides.over(&pool);
    assert_eq!((over.read_timeout, over.retries), (Duration::from_secs(5), 0));
    assert_eq!(
        (over.connect_timeout, over.retry_buffer),
        (pool.connect_timeout, pool.retry_buffer)
    );
    assert_eq!(route.overrides.max_body, Some(Some(1 << 20)));
    assert_eq!(one("max_body: none").overrides.max_body, Some(None));
    assert_eq!(one("").overrides, Overrides::default());
    assert_eq!(one("").limit, RouteLimit::Global);
    assert_eq!(one("limit: none").limit, RouteLimit::Unlimited);
    assert_eq!(one("limit: off").limit, RouteLimit::Unlimited);
    // What it does not say is as in the limit for all.
    let (burst, per_second) = (50, 2.0);
    assert_eq!(
        one("limit: {burst: 50}").limit,
        RouteLimit::Own(Rate { burst, per_second })
    );
    for (keys, problem) in [
        ("limit: {burst: 0}", "routes.a.limit.burst: expected a whole number"),
        (
            "limit: {burst: 1000000, per_second: 1}",
            "routes.a.limit.per_second: at 1 requests a second",
        ),
        ("limit: {clients: 5000}", "routes.a.limit.clients: unknown key"),
        ("limit: 5", "routes.a.limit: expected keys and values, or off"),
        ("retries: 99", "routes.a.retries: expected a whole number from 0 to 10"),
        (
            "read_timeout: 5",
            "routes.a.read_timeout: expected a duration with a unit",
        ),
    ] {
        let mistake = mistake(keys);
        assert!(mistake.contains(problem), "{keys}: {mistake}");
    }
}

#[test]
fn a_key_without_effect_is_remarked() {
    let config =
        read("    a: {answer: x, read_timeout: 5s}\n    b: {hosts: [b], status: 302, content_type: text/html}")
            .unwrap();
    let remarks: Vec<_> = config
        .remarks
        .iter()
        .map(|remark| match remark {
            Remark::NoEffect { key, .. } | Remark::Overridden { key, .. } => key.as_str(),
        })
        .collect();
    let expected = ["a.read_timeout", "b.content_type", "b.status"].map(|key| format!("gopherproxy.routes.{key}"));
    assert_eq!(remarks, expected);
}

#[test]
fn a_client_keeps_its_pool_and_each_pool_gets_its_share() {
    let split = |pools: &[(&str, u32)]| Split {
        pools: pools
            .iter()
            .map(|(name, share)| (name.parse().unwrap(), *share))
            .collect(),
    };
    let clients = || (0..100_000u128).map(|number| 0xffff_0a00_0000 + number);
    let canaries = |split: &Split| -> Vec<u128> { clients().filter(|client| split.of_client(*client) == 0).collect() };
    let (small, large) = (
        canaries(&split(&[("canary", 5), ("stable", 95)])),
        canaries(&split(&[("canary", 200), ("stable", 800)])),
    );
    assert!((4_700..5_300).contains(&small.len()), "{}", small.len());
    assert!((19_500..20_500).contains(&large.len()), "{}", large.len());
    assert!(small.iter().all(|client| large.contains(client)));
    // These must never change: they are what every replica and every version agrees on.
    assert_eq!(small[..4], [39, 69, 75, 90].map(|number| 0xffff_0a00_0000 + number));
    assert_eq!(canaries(&split(&[("canary", 0), ("stable", 1)])), []);
    assert_eq!(canaries(&split(&[("canary", 1), ("stable", 0)])).len(), 100_000);
    // Neighbours in IPv6 differ in the upper half.
    let networks = (0..10_000u128).map(|number| (0x2001_0db8 << 96) + (number << 64));
    let of_networks = networks.filter(|client| split(&[("a", 1), ("b", 1)]).of_client(*client) == 0);
    assert!((4_700..5_300).contains(&of_networks.count()));
}
