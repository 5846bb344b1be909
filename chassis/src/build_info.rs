//! The version and commit a binary was built from.
//!
//! The environment of the build may set both (`VERSION`, `COMMIT`): a container build has no repository to ask. An empty variable
//! counts as absent: that is what an unset `--build-arg` looks like. Otherwise they are Cargo.toml's version and git's commit.

use prometheus::{IntGaugeVec, Opts, Registry};

/// The release: `VERSION` at build time, else the version in Cargo.toml.
pub const VERSION: &str = or_default(option_env!("VERSION"), env!("CARGO_PKG_VERSION"));

/// The commit: `COMMIT` at build time, else what is checked out (see build.rs), else `unknown`.
pub const COMMIT: &str = or_default(option_env!("COMMIT"), "unknown");

const fn or_default(value: Option<&'static str>, default: &'static str) -> &'static str {
    match value {
        Some(value) if !value.is_empty() => value,
        _ => default,
    }
}

/// What `--version` prints behind the name of the program, such as `0.1.0 (commit 1a2b3c4)`.
pub fn describe() -> &'static str {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| format!("{VERSION} (commit {COMMIT})"))
}

/// Registers `NAME{version,commit} 1`, which lets a query join any series to the build it came from.
///
/// # Errors
/// When `name` is taken or not a metric name.
pub fn register(registry: &Registry, name: &str) -> prometheus::Result<()> {
    let info = IntGaugeVec::new(
        Opts::new(name, "Always 1; the labels tell which build is running."),
        &["version", "commit"],
    )?;
    info.with_label_values(&[VERSION, COMMIT]).set(1);
    registry.register(Box::new(info))
}

#[cfg(test)]
mod tests {
    use super::or_default;

    #[test]
    fn an_absent_or_empty_variable_means_the_default() {
        assert_eq!(or_default(None, "d"), "d");
        assert_eq!(or_default(Some(""), "d"), "d");
        assert_eq!(or_default(Some("1.2.3"), "d"), "1.2.3");
    }
}
