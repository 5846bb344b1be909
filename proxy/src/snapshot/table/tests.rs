use chassis::settings::Settings;

use super::*;
use crate::config::{Config, Route};
use crate::http1::path;
use crate::http1::target::split_target;

const ROUTES: &str = include_str!("../../../tests/routes/routes.yaml");
const REQUESTS: &str = include_str!("../../../tests/routes/requests.txt");

fn routes(text: &str) -> Vec<Route> {
    Config::parse(text, Settings::new([])).unwrap().routes
}

fn table(routes: &[Route]) -> Table {
    Table::new(routes.iter().map(|route| &route.matches))
}

#[test]
fn the_most_specific_route_is_chosen_wherever_it_stands() {
    let in_order = routes(ROUTES);
    let reversed: Vec<_> = in_order.iter().rev().cloned().collect();
    let rows = REQUESTS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut count = 0;
    for row in rows {
        let words: Vec<_> = row.splitn(4, ' ').collect();
        let (method, url) = (words[0], words[1]);
        let (origin, target) = split_target(url.as_bytes());
        let (authority, path) = (origin.unwrap().authority, path::plain(target));
        if words[2] == "!" {
            let refused = path.unwrap_err();
            assert!(refused.contains(words[3]), "{row}: {refused}");
        } else {
            let path = path.unwrap();
            for routes in [&in_order, &reversed] {
                let picked = table(routes).pick(Some(authority), &path, method);
                let name = picked.map(|number| routes[number as usize].name.as_str());
                assert_eq!(name, Some(words[2]), "{row}");
                let mut room = [0; LONGEST_HOST];
                let host = plain_host(authority, &mut room);
                let matches: Vec<_> = routes.iter().map(|route| route.matches.clone()).collect();
                let by_model = model::pick(&matches, host, &path, method);
                assert_eq!(by_model, picked, "{row}");
            }
        }
        count += 1;
    }
    assert!(count >= 60, "{count}");
}

#[test]
fn a_request_without_a_host_has_the_routes_for_any() {
    let routes = routes("gopherproxy: {routes: {a: {hosts: [a.example]}, b: {paths: [/b]}}}");
    let table = table(&routes);
    assert_eq!(table.pick(None, b"/b/x", "GET"), Some(1));
    assert_eq!(table.pick(None, b"/", "GET"), None);
    assert_eq!(table.pick(Some(b"a.example"), b"/b", "GET"), Some(0));
    let longest = format!("{}a.example", "x.".repeat(122));
    assert_eq!(table.pick(Some(longest.as_bytes()), b"/b", "GET"), Some(1));
    let too_long = format!("{}a.example", "x.".repeat(200));
    assert_eq!(table.pick(Some(too_long.as_bytes()), b"/b", "GET"), Some(1));
}

#[test]
fn no_routes_choose_none() {
    assert_eq!(Table::new([]).pick(Some(b"a.example"), b"/", "GET"), None);
}

/// Random routes of few words, so that they meet often, and random requests of the same words.
#[test]
fn a_random_table_chooses_what_looking_at_each_route_does() {
    const WORDS: [&str; 6] = ["a", "aa", "b", "a-b", "a.b", "%61"];
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut chosen = 0;
    for _ in 0..300 {
        let mut drawn = Vec::new();
        for _ in 0..random.usize(1..40) {
            let matches = random_matches(&mut random, &WORDS);
            let equal = drawn.iter().any(|other| overlap(other, &matches));
            if !equal {
                drawn.push(matches);
            }
        }
        let table = Table::new(&drawn);
        for _ in 0..60 {
            let host = random_host(&mut random, &WORDS).trim_start_matches("*.").to_owned();
            let target = random_path(&mut random, &WORDS) + if random.bool() { "/" } else { "" };
            let target = target.trim_start_matches('=').replace("//", "/");
            let path = path::plain(target.as_bytes()).unwrap();
            let method = random.choice(["GET", "POST", "PUT"]).unwrap();
            let expected = model::pick(&drawn, Some(host.as_bytes()), &path, method);
            assert_eq!(
                table.pick(Some(host.as_bytes()), &path, method),
                expected,
                "SEED={seed}: {method} {host}{target} in {drawn:#?}"
            );
            chosen += u32::from(expected.is_some());
        }
    }
    assert!((2_000..17_000).contains(&chosen), "{chosen}");
}

fn random_host(random: &mut fastrand::Rng, words: &[&str]) -> String {
    let labels: Vec<_> = (0..random.usize(1..4))
        .map(|_| random.choice(words).unwrap().replace('%', "x"))
        .collect();
    let any = if random.bool() { "*." } else { "" };
    format!("{any}{}", labels.join("."))
}

fn random_path(random: &mut fastrand::Rng, words: &[&str]) -> String {
    let segments: String = (0..random.usize(0..4))
        .map(|_| format!("/{}", random.choice(words).unwrap()))
        .collect();
    let (exact, slash) = (
        if random.bool() { "=" } else { "" },
        if random.bool() { "/" } else { "" },
    );
    let path = if segments.is_empty() {
        "/".to_owned()
    } else {
        segments + slash
    };
    format!("{exact}{path}")
}

fn random_matches(random: &mut fastrand::Rng, words: &[&str]) -> Matches {
    let some = |random: &mut fastrand::Rng, make: &dyn Fn(&mut fastrand::Rng) -> String| -> String {
        let count = random.usize(0..3);
        let all: Vec<_> = (0..count).map(|_| format!("{:?}", make(random))).collect();
        all.join(", ")
    };
    let hosts = some(random, &|random| random_host(random, words));
    let paths = some(random, &|random| random_path(random, words));
    let methods = some(random, &|random| {
        (*random.choice(["GET", "POST", "PUT"]).unwrap()).to_owned()
    });
    let text = format!("gopherproxy: {{routes: {{a: {{hosts: [{hosts}], paths: [{paths}], methods: [{methods}]}}}}}}");
    routes(&text).remove(0).matches
}

/// Whether two routes have a pattern in common.
fn overlap(one: &Matches, other: &Matches) -> bool {
    fn meet<T: PartialEq>(one: &[T], other: &[T], root: &T) -> bool {
        let is_any = |list: &[T]| list.is_empty() || list.contains(root);
        one.iter().any(|item| other.contains(item)) || is_any(one) && is_any(other)
    }
    let no_host = Host::Exact(String::new());
    meet(&one.hosts, &other.hosts, &no_host)
        && meet(&one.paths, &other.paths, &Path::Below(Vec::new()))
        && meet(&one.methods, &other.methods, &String::new())
}

/// Of this process, in KiB. Other tests run beside this one.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_thousand_routes_over_300_hosts_take_less_than_two_mebibytes() {
    const TABLES: usize = 100;
    let route = |number: usize| {
        let (host, path) = (number % 300, ["/", "/api/v1", "=/health", "/static"][number / 300]);
        let wildcard = if host % 3 == 0 { "*." } else { "" };
        format!("    r{number}: {{hosts: ['{wildcard}site{host}.example.com'], paths: [{path}]}}\n")
    };
    let text: String = (0..1000).map(route).collect();
    let routes = routes(&format!("gopherproxy:\n  routes:\n{text}"));
    let before = resident();
    let tables: Vec<_> = (0..TABLES).map(|_| table(&routes)).collect();
    let each = resident().saturating_sub(before) / TABLES;
    assert!(each < 2 << 10, "{each} KiB");
    assert!(
        tables
            .iter()
            .all(|table| table.pick(Some(b"site1.example.com"), b"/x", "GET") == Some(1))
    );
}
