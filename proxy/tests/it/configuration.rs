//! The command line, the file and the environment.

use std::process::{Command, Output};

use crate::support::{Process, embedded, free_port, get, origin};

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gopherproxy"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("the binary starts");
    let said = String::from_utf8(output.stdout.clone()).expect("text");
    (output, said)
}

#[test]
fn the_version_tells_the_commit() {
    let (output, said) = run(&["--version"], &[]);
    assert!(output.status.success());
    let version = concat!("gopherproxy ", env!("CARGO_PKG_VERSION"), " (commit ");
    assert!(said.starts_with(version), "{said}");
    let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../.git");
    assert!(!said.contains("unknown") || !checkout.exists(), "{said}");
    let output = Command::new(Process::binary("sentinel"))
        .arg("--version")
        .output()
        .expect("the binary starts");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("sentinel "));
}

#[test]
fn a_good_configuration_is_checked_without_starting_anything() {
    for file in ["gopherproxy.yaml", "embedded.yaml"] {
        let path = format!("{}/../conf/{file}", env!("CARGO_MANIFEST_DIR"));
        let (output, said) = run(&["-t", "-c", &path], &[]);
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("the configuration is good") && !said.contains("listening"),
            "{said}"
        );
    }
}

#[test]
fn a_bad_configuration_names_all_that_is_wrong_and_starts_nothing() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("bad.yaml");
    std::fs::write(
        &path,
        "thread: 1\ngopherproxy: {limit: {burst: none}, upstream: {read_timeout: 5}}",
    )
    .expect("written");
    let path = path.to_str().expect("text");
    for arguments in [&["-t", "-c", path][..], &["-c", path]] {
        let (output, said) = run(arguments, &[("PROXY_PORT", "http"), ("TRUSTED_PROXIES", "all")]);
        assert_eq!(output.status.code(), Some(1));
        let [line] = said.lines().collect::<Vec<_>>().try_into().expect("one line");
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let error = line["error"].as_str().expect("the mistakes");
        for part in [
            "thread:",
            "limit.burst: got \"none\"",
            "read_timeout: got \"5\"",
            "PROXY_PORT",
            "TRUSTED_PROXIES",
            path,
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    let (output, said) = run(&["-c", "/nowhere.yaml"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("can't read the configuration /nowhere.yaml"), "{said}");
}

#[tokio::test]
async fn the_environment_wins_over_the_file() {
    let (origin, port) = (origin(), free_port());
    let variables = [
        ("PROXY_PORT", port.to_string()),
        ("RATE_LIMIT_BURST", "1".into()),
        ("RATE_LIMIT_PER_SECOND", "0.01".into()),
    ];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let proxy = Process::proxy_with(&embedded(&[origin.address()]), &variables).await;
    proxy.active_backends(1).await;
    assert_eq!(proxy.address().port(), port);
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    assert_eq!(get(proxy.address(), "/").await.status, 429);
}

#[tokio::test]
async fn the_log_filter_is_the_users() {
    let origin = origin();
    let proxy = Process::proxy_with(
        &embedded(&[origin.address()]),
        &[("RUST_LOG", "info,access=off,pingora=debug")],
    )
    .await;
    proxy.active_backends(1).await;
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    proxy.signal("TERM");
    proxy.ended().await;
    assert_eq!(proxy.lines("request").len(), 0);
}
