//! `gopherproxy backend …` on the command line.

use std::process::Command;

use crate::support::{Process, Redis, eventually, get, origin, with_redis};

/// Runs `gopherproxy backend …`; returns its exit code and what it said.
async fn backend(arguments: &str, variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gopherproxy"));
    command.arg("backend").args(arguments.split(' '));
    command.env_clear().envs(variables.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().expect("the binary starts"));
    let output = output.await.expect("no panic");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
    (output.status.code().expect("an exit code"), said.concat())
}

#[tokio::test]
async fn what_it_writes_is_in_the_hash_beside_the_set_and_nothing_else_changes() {
    let redis = Redis::start().await;
    redis
        .command("SADD gopher_backends http://a:1 http://b:2 https://c:3")
        .await;
    redis.command("SADD gopher_backends:api http://[::1]:80").await;
    let url = redis.address().to_string();
    let variables = [("REDIS_URL", url.as_str())];
    for (arguments, answer) in [
        ("drain a:1", "a:1 in the pool default is now drained (weight=1 drain)"),
        (
            "drain http://A:1/",
            "a:1 in the pool default is already drained (weight=1 drain)",
        ),
        (
            "weight 3 a:1",
            "a:1 in the pool default now has the weight 3 (weight=3 drain)",
        ),
        ("undrain a:1", "a:1 in the pool default is no longer drained (weight=3)"),
        (
            "weight 0 https://c:3",
            "https://c:3 in the pool default now has the weight 0 (weight=0)",
        ),
        (
            "backup b:2",
            "b:2 in the pool default is now a backup (weight=1 backup)",
        ),
        (
            "drain --pool api [::1]:80",
            "[::1]:80 in the pool api is now drained (weight=1 drain)",
        ),
        (
            "drain -f d:4",
            "d:4 in the pool default is now drained (weight=1 drain)",
        ),
    ] {
        let (code, said) = backend(arguments, &variables).await;
        assert_eq!(code, 0, "{arguments}: {said}");
        let line: serde_json::Value = serde_json::from_str(&said).expect("a line of the log");
        assert_eq!(line["msg"], answer, "{arguments}");
    }
    assert_eq!(redis.members().await, ["http://a:1", "http://b:2", "https://c:3"]);
    redis.command("SREM gopher_backends http://b:2").await;
    redis.command("HSET {gopher_backends}:meta http://e:5 wieght=3").await;
    let list = "a:1 weight=3
https://c:3 weight=0
b:2 weight=1 backup (not registered now)
d:4 weight=1 drain (not registered now)
malformed: \"wieght=3\": in the :meta of e:5: expected weight=N (0 to 100), backup and drain
";
    assert_eq!(backend("list", &variables).await, (0, list.to_owned()));
    let (_, of_api) = backend("list -p api", &variables).await;
    assert_eq!(of_api, "[::1]:80 weight=1 drain\n");
    // What is said of one that has left can be taken back.
    for arguments in ["primary b:2", "undrain d:4", "weight 1 a:1"] {
        let (code, said) = backend(arguments, &variables).await;
        assert_eq!(code, 0, "{arguments}: {said}");
    }
    let mut fields = redis.command("HKEYS {gopher_backends}:meta").await;
    fields.sort();
    assert_eq!(fields, ["http://e:5", "https://c:3"]);
    assert_eq!(
        backend("list -p other", &variables).await,
        (0, "gopher_backends:other is empty\n".to_owned())
    );
}

#[tokio::test]
async fn what_it_cant_do_it_says_and_does_not_do() {
    let redis = Redis::start().await;
    redis.command("SADD gopher_backends https://a:1").await;
    redis.command("ACL SETUSER v1 on >hunter2 ~gopher_backends +@all").await;
    redis.command("SET {gopher_backends:text}:meta text").await;
    let (url, v1) = (
        redis.address().to_string(),
        format!("redis://v1:hunter2@{}", redis.address()),
    );
    let files = tempfile::tempdir().expect("a directory");
    let embedded = files.path().join("embedded.yaml");
    std::fs::write(
        &embedded,
        "gopherproxy: {registry: {kind: in-process}, sentinel: {enabled: true}}",
    )
    .expect("written");
    let in_process = format!("drain a:1 -c {}", embedded.display());
    let listed = files.path().join("listed.yaml");
    std::fs::write(&listed, "gopherproxy: {pools: {default: {}, old: {backends: [a:1]}}}").expect("written");
    let of_the_file =
        ["drain a:1", "weight 3 a:1 -f", "list"].map(|what| format!("{what} -p old -c {}", listed.display()));
    let elsewhere = "the backends of the pool old are in the configuration (gopherproxy.pools.old.backends)";
    for (arguments, url, code, named) in [
        (
            "drain a:1",
            &url,
            1,
            "a:1 is not registered in the pool default (https://a:1 is); if it is about to start, add --force",
        ),
        (
            "drain b:1",
            &url,
            1,
            "b:1 is not registered in the pool default (see `gopherproxy backend list`)",
        ),
        (
            "drain b:1 -p ap",
            &url,
            1,
            "b:1 is not registered in the pool ap (gopher_backends:ap is empty)",
        ),
        ("drain https://a:1", &v1, 1, "NOPERM"),
        ("list -p text", &url, 1, "{gopher_backends:text}:meta: redis://"),
        (
            "drain a:1 -p AP",
            &url,
            2,
            "expected a name of 1 to 63 of a-z, 0-9, _ and -",
        ),
        ("drain a", &url, 2, "the port is missing"),
        ("weight 101 a:1", &url, 2, "expected a whole number from 0 to 100"),
        ("drain a:1", &"127.0.0.1:1".to_owned(), 1, "redis://127.0.0.1:1"),
        ("drain a:1 -c /no/such/file", &url, 1, "can't read the configuration"),
        (in_process.as_str(), &url, 1, "registry.kind is in-process"),
        (&of_the_file[0], &url, 1, elsewhere),
        (&of_the_file[1], &url, 1, elsewhere),
        (&of_the_file[2], &url, 1, elsewhere),
    ] {
        let (got, said) = backend(arguments, &[("REDIS_URL", url)]).await;
        assert_eq!(got, code, "{arguments}: {said}");
        assert!(said.contains(named) && !said.contains("hunter2"), "{arguments}: {said}");
    }
    for key in ["{gopher_backends}:meta", "{gopher_backends:old}:meta"] {
        assert_eq!(redis.command(&format!("EXISTS {key}")).await, ["0"], "{key}");
    }
}

#[tokio::test]
async fn a_drained_backend_gets_no_request_though_it_leaves_and_comes_back() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let [a, b] = origins.each_ref().map(|origin| origin.address());
    redis
        .command(&format!("SADD gopher_backends http://{a} http://{b}"))
        .await;
    let url = redis.address().to_string();
    let variables = [("REDIS_URL", url.as_str())];
    let proxy = Process::proxy(&with_redis(&redis)).await;
    proxy.active_backends(2).await;
    // Which of the two get any of some requests.
    let used = async || {
        let mut used = [false; 2];
        for _ in 0..10 {
            let answered = get(proxy.address(), "/").await.origin();
            used[usize::from(answered == b)] = true;
        }
        used
    };
    assert_eq!(used().await, [true; 2]);
    for (arguments, expected) in [
        ("drain", [false, true]),
        ("undrain", [true; 2]),
        ("weight 0", [false, true]),
    ] {
        let (code, said) = backend(&format!("{arguments} {a}"), &variables).await;
        assert_eq!(code, 0, "{said}");
        eventually(arguments, async || used().await == expected).await;
    }
    redis.command(&format!("SREM gopher_backends http://{a}")).await;
    proxy.active_backends(1).await;
    redis.command(&format!("SADD gopher_backends http://{a}")).await;
    proxy.active_backends(2).await;
    assert_eq!(used().await, [false, true]);
}

#[tokio::test]
async fn a_user_of_version_1_reads_the_set_without_the_hash() {
    let (redis, origin) = (Redis::start().await, origin());
    redis
        .command(&format!("SADD gopher_backends http://{}", origin.address()))
        .await;
    redis
        .command("ACL SETUSER v1 on >pass ~gopher_backends -@all +smembers")
        .await;
    let url = format!("redis://v1:pass@{}", redis.address());
    let proxy = Process::proxy_with(&with_redis(&redis), &[("REDIS_URL", &url)]).await;
    proxy.active_backends(1).await;
    let success = "gopherproxy_discovery_last_success_timestamp_seconds";
    let first = proxy.metric(success).await;
    eventually("it is read again", async || proxy.metric(success).await > first).await;
    assert_eq!(proxy.lines("registry gives no usable set").len(), 0);
    assert_eq!(
        proxy
            .lines("can't read the weights of the backends; the last ones stay")
            .len(),
        1
    );
}

#[tokio::test]
async fn the_users_in_the_documentation_have_the_rights_they_need() {
    let (redis, origins) = (Redis::start().await, [origin(), origin()]);
    let [a, b] = origins.each_ref().map(|origin| origin.address());
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/redis.md");
    let text = std::fs::read_to_string(path).expect("the page");
    let users: Vec<&str> = text.lines().filter(|line| line.starts_with("ACL SETUSER ")).collect();
    assert_eq!(users.len(), 3);
    for user in users {
        assert_eq!(redis.command(&user.replace("PASSWORD", "pass")).await, ["OK"], "{user}");
    }
    let url = |user: &str| format!("redis://{user}:pass@{}", redis.address());
    let targets = format!("{a},{b};api={b}");
    let (sentinel, proxy, operator) = (url("sentinel"), url("proxy"), url("operator"));
    let variables = [
        ("REDIS_URL", sentinel.as_str()),
        ("SENTINEL_TARGETS", &targets),
        ("SENTINEL_INTERVAL", "50ms"),
    ];
    let sentinel = Process::sentinel(&variables).await;
    let proxy = Process::proxy_with(&with_redis(&redis), &[("REDIS_URL", &proxy)]).await;
    proxy.active_backends(2).await;
    for arguments in [format!("drain {a}"), format!("weight 2 {b} -p api"), "list".to_owned()] {
        let (code, said) = backend(&arguments, &[("REDIS_URL", &operator)]).await;
        assert_eq!(code, 0, "{arguments}: {said}");
    }
    eventually("the proxy has read it", async || {
        get(proxy.address(), "/").await.origin() == b && get(proxy.address(), "/").await.origin() == b
    })
    .await;
    eventually("a cycle ends", async || {
        get(sentinel.admin(), "/readyz").await.status == 200
    })
    .await;
    assert_eq!(redis.command("ACL LOG").await, [""; 0], "nothing was refused");
}
