//! Decides which lines are written: `RUST_LOG`, over the program's default.
//!
//! The syntax is `env_logger`'s. The meaning differs in three ways:
//!
//! - The default stays where `RUST_LOG` says nothing: `access=off` turns one target off and leaves the others.
//! - A level without a target applies to this project's own targets. Others get at most `info`, and at most their default, because
//!   at `debug` Pingora logs heads with the secrets in them. A target that is named gets its level.
//! - A word that is neither a level nor a target is a mistake. `env_logger` takes `inof` for a target, and is silent.

use log::LevelFilter;

use crate::settings::Expected;

/// The target of the access log.
pub(super) const ACCESS: &str = "access";

/// The targets of this project: its crates, and the access log.
const OURS: [&str; 6] = [ACCESS, "chassis", "gopherproxy", "origin", "registry", "sentinel"];

/// The targets of all dependencies that log.
const LIBRARIES: [&str; 8] = [
    "pingora",
    "pingora_cache",
    "pingora_core",
    "pingora_load_balancing",
    "pingora_lru",
    "pingora_pool",
    "pingora_proxy",
    "pingora_runtime",
];

const LEVELS: &str = "off, error, warn, info, debug, trace";

/// What `RUST_LOG` says, one of its words after the other.
struct Directives<'s> {
    /// The level without a target.
    global: Option<LevelFilter>,
    targets: Vec<(&'s str, LevelFilter)>,
}

impl<'s> Directives<'s> {
    fn parse(text: &'s str) -> Result<Self, Expected> {
        let mut directives = Self {
            global: None,
            targets: Vec::new(),
        };
        // What follows a slash is a text that every message must contain.
        let words = text.split('/').next().unwrap_or_default();
        for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                Some((target, _)) if names_a_library_in_part(target.trim()) => {
                    return Err(format!(
                        "a target's whole name ({}, {}) where it says {:?}",
                        OURS.join(", "),
                        LIBRARIES.join(", "),
                        target.trim()
                    ));
                }
                Some((target, level)) => match level.trim().parse() {
                    Ok(level) => directives.targets.push((target.trim(), level)),
                    Err(_) => return Err(format!("a level ({LEVELS}) behind {target:?}")),
                },
                None => match word.parse() {
                    Ok(level) => directives.global = Some(level),
                    Err(_) if is_known(word) => directives.targets.push((word, LevelFilter::Trace)),
                    Err(_) => {
                        let (ours, libraries) = (OURS.join(", "), LIBRARIES.join(", "));
                        let expected = format!("a level ({LEVELS}) or a target ({ours}, {libraries})");
                        // Who reads this reads all of the variable too.
                        return Err(if word == text.trim() {
                            expected
                        } else {
                            format!("{expected} where it says {word:?}")
                        });
                    }
                },
            }
        }
        Ok(directives)
    }

    /// Whether one of them is for `target`. A target is for all that begin with it.
    fn name(&self, target: &str) -> bool {
        self.targets.iter().any(|(name, _)| target.starts_with(name))
    }
}

fn is_known(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or(target);
    OURS.contains(&krate) || LIBRARIES.contains(&krate)
}

/// Whether `target` is no target, and would still select a library's, as `env_logger` looks at how targets begin. Their level is
/// for who names them in full, because of the secrets that they log.
fn names_a_library_in_part(target: &str) -> bool {
    !is_known(target)
        && LIBRARIES
            .iter()
            .any(|library| library.starts_with(target) || target.starts_with(library))
}

/// What is written of all that is logged.
pub(super) struct Filter {
    rust_log: String,
    /// The level of a target, or, without one, of all others. These count more than what `rust_log` says.
    levels: Vec<(Option<String>, LevelFilter)>,
    /// The targets in `rust_log` that nothing here has.
    pub(super) strangers: Vec<String>,
}

impl Filter {
    /// A logger with this filter.
    pub(super) fn logger(&self) -> env_logger::Builder {
        let mut logger = env_logger::Builder::new();
        logger.parse_filters(&self.rust_log);
        for (target, level) in &self.levels {
            logger.filter(target.as_deref(), *level);
        }
        logger
    }
}

/// The filter that `rust_log` makes of `default`.
///
/// # Errors
/// What `rust_log` should be instead.
pub(super) fn parse(rust_log: &str, default: &str) -> Result<Filter, Expected> {
    let users = Directives::parse(rust_log)?;
    let ours = Directives::parse(default)?;
    // env_logger itself would print a complaint about what follows a slash, and go on.
    env_filter::Builder::new()
        .try_parse(rust_log)
        .map_err(|error| format!("levels and targets, such as info,access=off ({error})"))?;
    let mut levels = Vec::new();
    if let Some(global) = users.global.or(ours.global) {
        levels.push((None, global.min(LevelFilter::Info)));
        if global > LevelFilter::Info {
            for target in OURS.into_iter().filter(|target| !users.name(target)) {
                levels.push((Some(target.to_owned()), global));
            }
        }
    }
    for (target, level) in ours.targets {
        if !users.name(target) {
            let level = users.global.map_or(level, |global| global.min(level));
            levels.push((Some(target.to_owned()), level));
        }
    }
    let targets = users.targets.iter().map(|(target, _)| *target);
    let strangers = targets.filter(|target| !is_known(target)).map(str::to_owned);
    Ok(Filter {
        rust_log: rust_log.to_owned(),
        levels,
        strangers: strangers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use log::{Level, Log, Metadata};

    use super::*;

    const DEFAULT: &str = "info,pingora=warn,pingora_core=warn,pingora_proxy=off";

    /// The most that `target` logs.
    fn level(rust_log: &str, target: &str) -> LevelFilter {
        let logger = parse(rust_log, DEFAULT).unwrap().logger().build();
        let enabled = |level: &Level| logger.enabled(&Metadata::builder().level(*level).target(target).build());
        Level::iter()
            .filter(enabled)
            .max()
            .map_or(LevelFilter::Off, |level| level.to_level_filter())
    }

    #[test]
    fn what_rust_log_does_not_name_stays_as_it_was() {
        use LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
        for (rust_log, ours, access, core, proxy, stranger) in [
            ("", Info, Info, Warn, Off, Info),
            ("info", Info, Info, Warn, Off, Info),
            ("INFO", Info, Info, Warn, Off, Info),
            ("warn", Warn, Warn, Warn, Off, Warn),
            ("error", Error, Error, Error, Off, Error),
            ("off", Off, Off, Off, Off, Off),
            ("debug", Debug, Debug, Warn, Off, Info),
            ("trace", Trace, Trace, Warn, Off, Info),
            ("access=off", Info, Off, Warn, Off, Info),
            ("info,access=off", Info, Off, Warn, Off, Info),
            ("debug,access=off", Debug, Off, Warn, Off, Info),
            ("gopherproxy", Trace, Info, Warn, Off, Info),
            ("gopherproxy::reload=debug", Info, Info, Warn, Off, Info),
            ("pingora_core=debug", Info, Info, Debug, Off, Info),
            ("pingora=debug", Info, Info, Debug, Debug, Info),
            ("debug,pingora_proxy=trace", Debug, Debug, Warn, Trace, Info),
            ("redis=debug", Info, Info, Warn, Off, Debug),
        ] {
            let got = [
                "gopherproxy::startup",
                "access",
                "pingora_core::server",
                "pingora_proxy",
                "redis",
            ]
            .map(|target| level(rust_log, target));
            assert_eq!(got, [ours, access, core, proxy, stranger], "{rust_log:?}");
        }
    }

    #[test]
    fn a_mistake_is_named_and_a_stranger_is_reported() {
        let mistake = |rust_log| parse(rust_log, DEFAULT).map(drop).unwrap_err();
        for rust_log in ["inof", "info,acces", "warning", "debug trace"] {
            let mistake = mistake(rust_log);
            assert!(mistake.contains("a level (off, error,"), "{mistake}");
            assert!(mistake.contains(" or a target (access, "), "{mistake}");
            let place = match rust_log.strip_prefix("info,") {
                Some(word) => format!(" where it says {word:?}"),
                None => "pingora_runtime)".to_owned(),
            };
            assert!(mistake.ends_with(&place), "{mistake}");
        }
        assert_eq!(
            mistake("access=of"),
            "a level (off, error, warn, info, debug, trace) behind \"access\""
        );
        assert!(mistake("access=").contains("behind \"access\""));
        for rust_log in [
            "=trace",
            "trace, =trace",
            "p=trace",
            "info,ping = debug",
            "pingora_core:=trace",
        ] {
            let mistake = mistake(rust_log);
            assert!(
                mistake.starts_with("a target's whole name (access, "),
                "{rust_log}: {mistake}"
            );
        }
        assert!(mistake("info/a/b").contains("such as info,access=off ("));
        let strangers = |rust_log| parse(rust_log, DEFAULT).unwrap().strangers;
        assert_eq!(
            strangers("acess=off,info,hyper::client=debug"),
            ["acess", "hyper::client"]
        );
        assert_eq!(strangers("gopherproxy::pool=debug,pingora_core=off"), [""; 0]);
    }
}
