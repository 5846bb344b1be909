//! The sentinel's configuration: what to probe, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chassis::settings::{Expected, List, Section, duration, whole};
use registry::{Member, PoolName};

/// What to probe and how. Every key has an environment variable, because the sentinel's own process takes no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// In whose name targets are registered; none: see [`Config::id_or_default`].
    pub id: Option<String>,
    /// The origins to probe, for each pool that has any: at least one in all, none twice in a pool.
    pub pools: BTreeMap<PoolName, Vec<Member>>,
    /// From the start of one probe of a target to the start of the next, and from one look at the registry to the next.
    pub interval: Duration,
    /// How long a connection may take, the lookup of the name included.
    pub timeout: Duration,
    /// Successes in a row that make a target up.
    pub rise: u32,
    /// Failures in a row that make a target down.
    pub fall: u32,
    /// How many probes may be under way at once.
    pub concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        let origin = |port| {
            format!("host.docker.internal:{port}")
                .parse()
                .expect("a name and a port are a member")
        };
        Self {
            id: None,
            pools: BTreeMap::from([(PoolName::default(), [8081, 8082, 8083].map(origin).into())]),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
            concurrency: 512,
        }
    }
}

impl Config {
    /// Reads the keys of `section` and their variables.
    pub fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let unnamed = &default.pools[&PoolName::default()];
        let lists = section.lists(
            "targets",
            "pools",
            "SENTINEL_TARGETS",
            unnamed,
            str::parse::<PoolName>,
            target,
        );
        let pools = lists.map_or(default.pools, |lists| pools(section, lists));
        Self {
            id: section.value("id", Some("SENTINEL_ID"), default.id, id_or_none),
            pools,
            interval: section.value("interval", Some("SENTINEL_INTERVAL"), default.interval, duration),
            timeout: section.value("timeout", Some("SENTINEL_TIMEOUT"), default.timeout, duration),
            rise: section.value("rise", Some("SENTINEL_RISE"), default.rise, whole(1..=100)),
            fall: section.value("fall", Some("SENTINEL_FALL"), default.fall, whole(1..=100)),
            concurrency: section.value(
                "concurrency",
                Some("SENTINEL_CONCURRENCY"),
                default.concurrency,
                whole(1..=10_000),
            ),
        }
    }
}

/// The lists of targets as pools.
fn pools(section: &Section<'_>, lists: Vec<List<PoolName, Member>>) -> BTreeMap<PoolName, Vec<Member>> {
    let settings = section.settings();
    let mut pools = BTreeMap::new();
    let only = lists.len() == 1;
    for List { name, place, values } in lists {
        // Where the place doesn't name the pool.
        let label = match &name {
            Some(name) if place == section.place("targets") => format!("{name}: "),
            _ => String::new(),
        };
        if values.is_empty() && (name.is_some() || only) {
            settings.mistake(&place, format_args!("{label}expected at least one host:port, got none"));
            continue;
        }
        let mut seen = BTreeSet::new();
        for twice in values.iter().filter(|target| !seen.insert(*target)) {
            settings.mistake(&place, format_args!("{label}{twice} is there twice"));
        }
        let name = name.unwrap_or_default();
        if pools.contains_key(&name) {
            settings.mistake(
                &place,
                format_args!(
                    "the targets of the pool {name} are there twice; a list without a name is that of the pool default"
                ),
            );
        }
        pools.insert(name, values);
    }
    pools.retain(|_, targets| !targets.is_empty());
    pools
}

/// A target as people write it: `host:port`, or the `http://host:port/` that a browser shows. As in a URL, `http://host` is port 80 and
/// `https://host` port 443.
fn target(text: &str) -> Result<Member, Expected> {
    let expected = |why: &str| format!("a host and a port, such as 10.0.0.7:8081, origin:8081 or [::1]:8081 ({why})");
    if text.is_empty() {
        return Err(expected("an entry is empty"));
    }
    if text.contains([';', '=']) {
        return Err(expected(
            "those of other pools stand under sentinel.pools, or as in SENTINEL_TARGETS=a:1,b:2;NAME=c:3",
        ));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.parse().map_err(|why: String| match text.rsplit_once(':') {
            None => expected("the port is missing"),
            Some(_) => expected(&why),
        });
    };
    let (tls, usual) = match scheme.to_ascii_lowercase().as_str() {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return Err(expected("only http:// and https:// origins can be probed")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(expected("a path or a user has no place in a target"));
    }
    let with_port = format!("{authority}:{usual}");
    let target: Member = authority
        .parse()
        .or_else(|why: String| with_port.parse().map_err(|_: String| expected(&why)))?;
    Ok(if tls { target.over_tls() } else { target })
}

impl Config {
    /// The targets of all pools.
    pub fn targets(&self) -> impl Iterator<Item = &Member> {
        self.pools.values().flatten()
    }

    /// The id, or else the name of this host and `port`, the admin port: two processes of one host can't have the same,
    /// and one that is started again has the same again.
    pub fn id_or_default(&self, port: u16) -> String {
        self.id.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = host.trim().replace(|c| !is_id_char(c), "-");
            format!("{host}:{port}")
        })
    }
}

/// A name for a sentinel, which becomes part of a Redis key.
fn id_or_none(text: &str) -> Result<Option<String>, String> {
    match text {
        "none" => Ok(None),
        _ if (1..=128).contains(&text.len()) && text.chars().all(is_id_char) => Ok(Some(text.to_owned())),
        _ => Err("a name of up to 128 letters, digits and .-_: or none for the host's name and the admin port".into()),
    }
}

fn is_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':')
}

#[cfg(test)]
mod tests {
    use chassis::settings::Settings;

    use super::*;

    fn read(targets: &str) -> Result<Config, String> {
        read_with("", targets)
    }

    fn read_with(file: &str, targets: &str) -> Result<Config, String> {
        let settings = Settings::new([("SENTINEL_TARGETS".to_owned(), targets.to_owned())]);
        let mut section = settings.top(chassis::yaml::parse(file).unwrap());
        let config = Config::read(&mut section);
        section.finish();
        let read = settings.finish(config).map(|(config, _)| config);
        read.map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn an_id_is_a_short_name_and_the_default_tells_processes_of_one_host_apart() {
        for (text, id) in [("edge-1.example:a_b", Some("edge-1.example:a_b")), ("none", None)] {
            assert_eq!(id_or_none(text), Ok(id.map(str::to_owned)));
        }
        for text in ["", "a b", "a*", "{a}", "é", &"a".repeat(129)] {
            assert!(id_or_none(text).is_err(), "{text:?}");
        }
        let config = Config::default();
        assert_eq!(config.id_or_default(1), config.id_or_default(1));
        assert_ne!(config.id_or_default(1), config.id_or_default(2));
        assert!(id_or_none(&config.id_or_default(1)).is_ok());
    }

    #[test]
    fn targets_may_have_spaces_names_ipv6_and_what_a_browser_adds() {
        for (text, expected) in [
            (
                " 10.0.0.1:80 , origin:8081,[::1]:8081 ",
                &["10.0.0.1:80", "origin:8081", "[::1]:8081"][..],
            ),
            ("http://host:8081/", &["host:8081"]),
            ("HTTP://host:8081,http://[::1]:1", &["host:8081", "[::1]:1"]),
            ("http://host,http://[::1]/", &["host:80", "[::1]:80"]),
            (
                "https://host,HTTPS://[::1]/,https://host:8443/",
                &["https://host:443", "https://[::1]:443", "https://host:8443"],
            ),
        ] {
            let config = read(text).unwrap();
            let targets: Vec<String> = config.targets().map(ToString::to_string).collect();
            assert_eq!(targets, expected);
            assert!(config.pools.keys().all(PoolName::is_default));
        }
        assert_eq!(read(""), Ok(Config::default()), "an empty variable is unset");
    }

    #[test]
    fn a_wrong_target_is_one_mistake_that_says_what_is_wrong() {
        for (targets, named) in [
            ("none", "expected at least one host:port, got none"),
            ("a:1,,b:2", "entry 2: expected a host and a port, such as 10.0.0.7:8081"),
            ("a", "(the port is missing), got \"a\""),
            ("a:1,b", "entry 2: expected a host and a port"),
            ("a:1,A:1", "a:1 is there twice"),
            ("::1:80", "expected brackets around an IPv6 address"),
            ("a:0", "expected a port from 1 to 65535"),
            (
                "ftp://a:1",
                "only http:// and https:// origins can be probed), got \"ftp://a:1\"",
            ),
            ("https://a:1,https://A:1", "https://a:1 is there twice"),
            ("https://a:1/x", "a path or a user has no place in a target"),
            ("http://a:1/x", "a path or a user has no place in a target"),
            ("http://user:hunter2@a:1", "a path or a user has no place in a target"),
            ("http://a:x", "expected a port"),
        ] {
            let mistakes = read(targets).unwrap_err();
            assert!(mistakes.contains("has a mistake: SENTINEL_TARGETS: "), "{mistakes}");
            assert!(mistakes.contains(named), "{targets:?}: {mistakes}");
            assert!(!mistakes.contains("hunter2"), "{mistakes}");
        }
    }

    /// The pools and their targets, as the variable would have them.
    fn shown(config: &Config) -> String {
        let pools = config.pools.iter().map(|(name, targets)| {
            let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
            format!("{name}={}", targets.join(","))
        });
        pools.collect::<Vec<_>>().join(";")
    }

    #[test]
    fn other_pools_have_targets_of_their_own() {
        for (file, variable, expected) in [
            ("", "a:1,b:2;api=c:3,d:4", "api=c:3,d:4;default=a:1,b:2"),
            ("", " api = a:1 ; web=http://a:1/ ", "api=a:1;web=a:1"),
            ("", "default=a:1", "default=a:1"),
            ("", "none;api=a:1", "api=a:1"),
            (
                "targets: [a:1]\npools: {api: [a:1, c:3]}",
                "",
                "api=a:1,c:3;default=a:1",
            ),
            ("pools: {api: 'c:3,d:4', default: b:1}", "", "api=c:3,d:4;default=b:1"),
            ("targets: none\npools: {api: c:3}", "", "api=c:3"),
            ("pools: {api: c:3}", "", "api=c:3"),
            ("targets: [a:1]\npools: {api: c:3}", "b:2", "default=b:2"),
        ] {
            assert_eq!(
                shown(&read_with(file, variable).unwrap()),
                expected,
                "{file:?} {variable:?}"
            );
        }
        assert_eq!(read_with("pools: {}", ""), Ok(Config::default()));
    }

    #[test]
    fn a_wrong_pool_is_a_mistake_that_names_it() {
        for (file, variable, named) in [
            (
                "",
                "a:1;api=",
                "SENTINEL_TARGETS: api: expected at least one host:port, got none",
            ),
            (
                "",
                "a:1;api=none",
                "SENTINEL_TARGETS: api: expected at least one host:port, got none",
            ),
            (
                "",
                "a:1;",
                "SENTINEL_TARGETS: expected a list before and behind each ;, got nothing",
            ),
            ("", "a:1;api=b:1,b:1", "SENTINEL_TARGETS: api: b:1 is there twice"),
            (
                "",
                "a:1;api=b:1,b",
                "SENTINEL_TARGETS: api: entry 2: expected a host and a port",
            ),
            (
                "",
                "a:1;Api=b:1",
                "SENTINEL_TARGETS: expected a name of 1 to 63 of a-z, 0-9, _ and -, got \"Api\"",
            ),
            (
                "",
                "a:1;b:1",
                "the targets of the pool default are there twice; a list without a name",
            ),
            ("", "a:1;default=b:1", "the targets of the pool default are there twice"),
            ("", "api=a:1;api=b:1", "the targets of the pool api are there twice"),
            ("", "a:1,api=b:1", "entry 2: expected a host and a port, such as"),
            (
                "targets: a:1\npools: {default: b:1}",
                "",
                "line 2: pools.default: the targets of the pool default are there twice",
            ),
            (
                "pools: {api: []}",
                "",
                "line 1: pools.api: expected at least one host:port, got none",
            ),
            ("pools: {api: [a:1, a:1]}", "", "line 1: pools.api: a:1 is there twice"),
            ("pools: {a.b: a:1}", "", "expected a name of 1 to 63"),
            (
                "pools: {api: {a: 1}}",
                "",
                "line 1: pools.api: entry 1: expected one value",
            ),
            (
                "targets: 'a:1;api=b:1'",
                "",
                "those of other pools stand under sentinel.pools",
            ),
            (
                "targets: none",
                "",
                "line 1: targets: expected at least one host:port, got none",
            ),
        ] {
            let mistakes = read_with(file, variable).unwrap_err();
            assert!(mistakes.contains(named), "{file:?} {variable:?}: {mistakes}");
        }
    }
}
