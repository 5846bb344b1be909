//! What to probe and how.

use std::collections::BTreeSet;
use std::time::Duration;

use chassis::settings::{Section, Settings, duration, whole};
use registry::Member;

/// What to probe and how. Every key has an environment variable, because the sentinel's own process takes no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The origins to probe: at least one, none twice.
    pub targets: Vec<Member>,
    /// From the start of one cycle to the start of the next.
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
            targets: [8081, 8082, 8083].map(origin).into(),
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
            concurrency: 512,
        }
    }
}

impl Config {
    /// Reads the keys of `section` and their variables; mistakes go to `settings`.
    pub fn read(settings: &Settings, section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let targets = section.list("targets", Some("SENTINEL_TARGETS"), default.targets, |entry| {
            entry
                .parse()
                .map_err(|problem: String| format!("host:port, as in 10.0.0.7:8081 or [::1]:8081 ({problem})"))
        });
        if targets.is_empty() {
            settings.mistake("SENTINEL_TARGETS: no target, takes at least one host:port");
        }
        let mut seen = BTreeSet::new();
        for twice in targets.iter().filter(|target| !seen.insert(*target)) {
            settings.mistake(format!(
                "SENTINEL_TARGETS: {twice} is there twice, takes each target once"
            ));
        }
        Self {
            targets,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(targets: &str) -> Result<Config, String> {
        let settings = Settings::new([("SENTINEL_TARGETS".to_owned(), targets.to_owned())]);
        let mut section = settings.section("sentinel", None);
        let config = Config::read(&settings, &mut section);
        section.finish();
        settings.finish(config).map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn targets_may_have_spaces_names_and_ipv6() {
        let config = read(" 10.0.0.1:80 , origin:8081,[::1]:8081 ").unwrap();
        let targets: Vec<String> = config.targets.iter().map(ToString::to_string).collect();
        assert_eq!(targets, ["10.0.0.1:80", "origin:8081", "[::1]:8081"]);
    }

    #[test]
    fn a_wrong_target_is_named() {
        for (targets, named) in [
            ("", "no target"),
            ("a:1,,b:2", r#"entry 2 is """#),
            ("a:1,b", r#"entry 2 is "b", takes host:port"#),
            ("a:1,A:1", "a:1 is there twice"),
            ("::1:80", "in brackets"),
            ("http://a:1", r#"entry 1 is "http://a:1""#),
        ] {
            let mistakes = read(targets).unwrap_err();
            assert!(mistakes.contains("SENTINEL_TARGETS"), "{mistakes}");
            assert!(mistakes.contains(named), "{targets:?}: {mistakes}");
        }
    }
}
