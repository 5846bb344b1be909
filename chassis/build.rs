//! Tells the compiler which commit it builds, so that `make` and `cargo` give binaries of the same version.

#![allow(clippy::print_stdout, reason = "that is how a build script speaks to cargo")]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=COMMIT");
    if std::env::var("COMMIT").is_ok_and(|commit| !commit.is_empty()) {
        return;
    }
    // It grows whenever another commit is checked out. Without it cargo looks at the sources alone.
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(log) if Path::new(&log).exists() => println!("cargo::rerun-if-changed={log}"),
        _ => println!("cargo::rerun-if-changed=build.rs"),
    }
    if let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) {
        println!("cargo::rustc-env=COMMIT={commit}");
    }
}

/// What git prints; nothing where there is no git or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
