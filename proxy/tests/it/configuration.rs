//! The command line, the file and the environment.

use std::process::{Command, Output};

use crate::support::{Connection, Process, embedded, free_port, get, origin};

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
fn the_state_file_can_not_be_the_configuration_itself() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("gopherproxy.yaml");
    let text = format!("gopherproxy: {{discovery: {{state_file: {}}}}}\n", path.display());
    std::fs::write(&path, &text).expect("written");
    let (output, said) = run(&["-t", "-c", path.to_str().expect("text")], &[]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("discovery.state_file is this file"), "{said}");
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
fn what_happens_to_a_request_is_printed_as_text_through_a_pipe_too() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("routes.yaml");
    let text = "gopherproxy: {routes: {all: {methods: [PUT]}, ping: {paths: [=/ping], answer: ok}}}";
    std::fs::write(&path, text).expect("written");
    let path = path.to_str().expect("text");
    let explain = |url, method| run(&["-t", "-c", path, "--explain", url, "-X", method], &[]);
    let (output, said) = explain("http://a.example/ping", "PUT");
    assert!(output.status.success(), "{said}");
    let expected = "PUT http://a.example/ping\n  takes the route ping\n";
    assert!(
        said.starts_with(expected) && said.ends_with("\n  not all: it is for any path\n"),
        "{said}"
    );
    let (_, said) = explain("http://a.example/", "GET");
    assert!(
        said.contains("is answered 404\n  not all: it is for other methods\n"),
        "{said}"
    );
    // That says nothing of the configuration.
    let (output, said) = explain("a.example/ping", "GET");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("can't explain") && said.contains("expected a URL such as") && !said.contains("configuration"),
        "{said}"
    );
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
            "line 1: thread: unknown key; did you mean threads?",
            "line 2: gopherproxy.limit.burst: expected a whole number from 1 to 1000000, got \"none\"",
            "read_timeout: expected a duration with a unit, such as 5s or 5ms, got \"5\"",
            "PROXY_PORT: expected a port",
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

#[test]
fn what_is_no_ordinary_file_is_refused_at_once() {
    let files = tempfile::tempdir().expect("a directory");
    let at = |name: &str| files.path().join(name).to_str().expect("text").to_owned();
    assert!(
        Command::new("mkfifo")
            .arg(at("fifo"))
            .status()
            .expect("mkfifo is there")
            .success()
    );
    let large = std::fs::File::create(at("large")).expect("a file");
    large.set_len(1 << 30).expect("a sparse file");
    for (name, nested) in [("brackets", "["), ("braces", "{a: "), ("dashes", "- ")] {
        std::fs::write(at(name), nested.repeat(200_000)).expect("written");
    }
    for (path, named) in [
        (at("fifo"), "a device, a pipe or a socket, not a regular file"),
        (at("."), "a directory, not a regular file"),
        ("/dev/zero".into(), "a device, a pipe or a socket, not a regular file"),
        (at("large"), "larger than 1 MiB"),
        (at("brackets"), "nested more than 32 levels deep"),
        (at("braces"), "nested more than 32 levels deep"),
        (at("dashes"), "nested more than 32 levels deep"),
    ] {
        let (output, said) = run(&["-t", "-c", &path], &[]);
        assert_eq!(output.status.code(), Some(1), "{path}: {said}");
        assert!(said.contains(named), "{path}: {said}");
    }
}

#[test]
fn a_kubernetes_service_link_is_called_one_and_the_prefixed_variable_wins() {
    let link = ("PROXY_PORT", "tcp://10.0.0.1:80");
    let (output, said) = run(&["-t"], &[link]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("a service link, which Kubernetes sets") && said.contains("enableServiceLinks: false"),
        "{said}"
    );
    let (output, said) = run(&["-t"], &[link, ("GOPHERPROXY_PROXY_PORT", "8080")]);
    assert!(output.status.success(), "{said}");
    let output = Command::new(Process::binary("sentinel"))
        .env_clear()
        .env("SENTINEL_METRICS_PORT", "tcp://10.0.0.1:80")
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("GOPHERPROXY_SENTINEL_METRICS_PORT, which wins"), "{said}");
}

#[test]
fn a_key_without_effect_is_told_at_the_check_and_at_the_start() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("targets.yaml");
    std::fs::write(&path, "gopherproxy:\n  sentinel:\n    targets: [origin:80]\n").expect("written");
    let path = path.to_str().expect("text");
    let (output, said) = run(&["-t", "-c", path], &[]);
    assert!(output.status.success(), "{said}");
    let [warning, good] = said.lines().collect::<Vec<_>>().try_into().expect("two lines");
    let warning: serde_json::Value = serde_json::from_str(warning).expect("JSON");
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["msg"], "a key in the configuration has no effect");
    assert_eq!(warning["key"], "gopherproxy.sentinel.targets");
    assert_eq!(warning["line"], 3);
    assert!(good.contains("the configuration is good"), "{good}");
}

#[tokio::test]
async fn the_environment_wins_over_the_file_and_an_empty_variable_is_unset() {
    let (origin, port) = (origin(), free_port());
    let variables = [
        ("PROXY_PORT", "tcp://10.0.0.1:80".into()),
        ("GOPHERPROXY_PROXY_PORT", port.to_string()),
        ("RATE_LIMIT_BURST", "1".into()),
        ("RATE_LIMIT_PER_SECOND", "0.01".into()),
        // The compose file sets variables that nobody has given a value.
        ("TRUSTED_PROXIES", String::new()),
        ("METRICS_PORT", String::new()),
        ("REDIS_URL", String::new()),
        ("RATE_LIMIT", String::new()),
        ("SENTINEL_TARGETS", String::new()),
        ("RUST_LOG", String::new()),
    ];
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let file = embedded(&[origin.address()]) + "  trusted_proxies: [127.0.0.2]\n";
    let proxy = Process::proxy_with(&file, &variables).await;
    proxy.active_backends(1).await;
    assert_eq!(proxy.address().port(), port);
    assert_eq!(get(proxy.address(), "/").await.status, 200);
    assert_eq!(get(proxy.address(), "/").await.status, 429);
    let mut trusted = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    for (client, status) in [("192.0.2.1", 200), ("192.0.2.2", 200), ("192.0.2.1", 429)] {
        let line = format!("X-Forwarded-For: {client}\r\n");
        assert_eq!(trusted.request("GET", "/", &line, "").await.status, status, "{client}");
    }
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
