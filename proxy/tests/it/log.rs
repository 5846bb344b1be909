//! The log: what is in it and what is not, for whom, and what becomes of it when nobody takes it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::support::{
    Connection, LIMIT, Process, Redis, Started, UNLIMITED, child, embedded, eventually, get, origin, proxy_over,
    resident_kib, with_redis,
};

/// The binary, run to its end with these arguments and variables.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gopherproxy"));
    let command = command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("the binary starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_costs_lines_and_no_request() {
    let (proxy, _origins) = proxy_over(1).await;
    proxy.stop_reading(true);
    // Lines of 2 KiB and more, 12 MiB of them, for a queue of 8 and the same again that is being written.
    let long = format!("/{}", "x".repeat(2000));
    let mut client = Connection::open(proxy.address()).await;
    let memory = resident_kib(&proxy);
    for _ in 0..10_000 {
        assert_eq!(client.get(&long).await.status, 200);
    }
    let dropped = proxy.metric("gopherproxy_access_log_dropped_lines_total").await;
    assert!((1000.0..9000.0).contains(&dropped), "{dropped}");
    let grown = resident_kib(&proxy).saturating_sub(memory);
    assert!(grown < 40 << 10, "{grown} KiB");
    // It leaves all the same, and does not wait for a reader for long.
    proxy.signal("TERM");
    let (status, took) = proxy.ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_non_blocking_and_late_gets_every_line_whole() {
    const REQUESTS: usize = 2000;
    let (proxy, _origins) = proxy_over(1).await;
    proxy.unblock_stdout();
    proxy.stop_reading(true);
    // Forty times what a pipe holds.
    let long = format!("/{}", "x".repeat(1500));
    let mut client = Connection::open(proxy.address()).await;
    for _ in 0..REQUESTS {
        assert_eq!(client.get(&long).await.status, 200);
    }
    proxy.stop_reading(false);
    eventually("each request has its line", async || {
        proxy.lines("request").len() == REQUESTS
    })
    .await;
    assert_eq!(proxy.metric("gopherproxy_access_log_dropped_lines_total").await, 0.0);
    // And each line is one, which this panics about otherwise.
    proxy.log();
}

#[tokio::test]
async fn a_reader_that_has_left_costs_exactly_the_lines_that_it_did_not_read() {
    let origin = origin();
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("gopherproxy.yaml");
    std::fs::write(&path, embedded(&[origin.address()])).expect("written");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = child::command(env!("CARGO_BIN_EXE_gopherproxy"));
    command
        .arg("-c")
        .arg(&path)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(writer);
    let _proxy = child::start(command);
    let mut addresses = Vec::new();
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    while addresses.len() < 2 {
        let line: Value = serde_json::from_str(&lines.next().expect("a line")).expect("JSON");
        if line["msg"] == "listening" {
            addresses.push((
                line["service"].as_str().expect("a name").to_owned(),
                line["address"].as_str().expect("text").parse().expect("an address"),
            ));
        }
    }
    addresses.sort();
    let [(_, admin), (_, address)] = addresses.try_into().expect("two");
    let dropped = async || {
        let metrics = get(admin, "/metrics").await.text();
        let mut lines = metrics.lines();
        let dropped = lines.find_map(|line| line.strip_prefix("gopherproxy_access_log_dropped_lines_total "));
        dropped.expect("it is there").parse::<usize>().expect("a number")
    };
    eventually("it has a backend", async || get(address, "/").await.status == 200).await;
    // Everything that it said until now has been read: the request's line is the last.
    assert!(lines.any(|line| line.contains("\"status\":200")));
    drop(lines);
    let (mut client, before) = (Connection::open(address).await, dropped().await);
    for _ in 0..50 {
        assert_eq!(client.get("/").await.status, 200);
    }
    eventually("each line is counted", async || dropped().await == before + 50).await;
    assert_eq!(before, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_refused_all_the_time_leaves_the_log_to_others() {
    const REFUSED: usize = 4000;
    let origin = origin();
    let strict = embedded(&[origin.address()]).replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.001}\n")
        + "  client: {max_requests: 1000000}\n";
    let proxy = Process::proxy(&strict).await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    assert_eq!(client.get("/first").await.status, 200);
    let start = Instant::now();
    for _ in 0..REFUSED / 100 {
        client.send("GET /flood HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100)).await;
        for _ in 0..100 {
            assert_eq!(client.response().await.status, 429);
        }
    }
    // It is one client, however it is refused.
    let mut client = Connection::open(proxy.address()).await;
    client.send("GET /flood HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.response().await.status, 400);
    let most = 1000.0 + 5.0 * (1.0 + start.elapsed().as_secs_f64());

    let mut other = Connection::open_from(proxy.address(), [127, 0, 0, 2].into()).await;
    other.send("GET /other HTTP/1.1\r\n\r\n").await;
    assert_eq!(other.response().await.status, 400);
    proxy.request_line("/other").await;
    let lines = proxy.lines("request");
    let logged = lines.iter().filter(|line| line["path"] == "/flood").count();
    assert!((1000.0..=most).contains(&(logged as f64)), "{logged} of at most {most}");
    // Nothing is lost to the metrics, and the log says that there was more.
    let metric = async |name: &str| proxy.metric(&format!("gopherproxy_{name}")).await;
    let suppressed = metric("access_log_suppressed_lines_total").await;
    assert_eq!(suppressed, (REFUSED + 1 - logged) as f64);
    assert_eq!(metric("rejections_total{reason=\"limited\"}").await, REFUSED as f64);
    assert_eq!(metric("rejections_total{reason=\"bad_request\"}").await, 2.0);
    let is_its = |line: &Value| line["last_client"] == "127.0.0.1" && line["count"].as_u64() >= Some(1);
    proxy
        .said("too many refused requests; their lines are left out", is_its)
        .await;
}

#[tokio::test]
async fn nothing_that_a_terminal_obeys_is_in_the_log() {
    let (proxy, _origins) = proxy_over(1).await;
    // The last has nothing that JSON itself would have escaped.
    for hostile in [
        "/a\u{9b}2J\u{7f}\u{1b}[31m\u{202e}\u{2066}\u{200b}\u{feff}",
        "/b\u{9b}2J\u{202e}",
    ] {
        let mut client = Connection::open(proxy.address()).await;
        client.send(format!("GET {hostile} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        client.response().await;
        // It decodes to what was sent.
        let line = proxy.request_line(hostile).await;
        assert_eq!(line["method"], "GET");
    }
    let text = proxy.text();
    assert!(
        text.contains(r"/a\u009b2J\u007f\u001b[31m\u202e\u2066\u200b\ufeff"),
        "{text}"
    );
    assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
}

#[tokio::test]
async fn the_documented_default_of_the_filter_is_the_default() {
    let origin = origin();
    let mut said = Vec::new();
    for rust_log in ["", "info"] {
        let proxy = Process::proxy_with(&embedded(&[origin.address()]), &[("RUST_LOG", rust_log)]).await;
        proxy.active_backends(1).await;
        assert_eq!(get(proxy.address(), "/").await.status, 200);
        proxy.request_line("/").await;
        proxy.signal("TERM");
        proxy.ended().await;
        proxy.said("drained; leaving", |_| true).await;
        let mut messages: Vec<String> = proxy.log().iter().map(|line| line["msg"].to_string()).collect();
        // Whether it has to wait depends on who of the two is first, the sentinel or the proxy's first look.
        messages.retain(|message| message != "\"waiting for the first backends\"");
        messages.sort();
        said.push(messages);
    }
    assert_eq!(said[0], said[1]);
}

#[tokio::test]
async fn no_level_puts_a_secret_into_the_log() {
    let redis = Redis::start().await;
    redis.command("CONFIG SET requirepass sesame-redis").await;
    let origin = origin();
    for level in ["debug", "trace"] {
        let configuration = embedded(&[origin.address()]);
        let proxy = Process::proxy_with(&configuration, &[("RUST_LOG", level)]).await;
        proxy.active_backends(1).await;
        let lines = "Authorization: Bearer sesame-token\r\nCookie: id=sesame-cookie\r\n";
        let mut client = Connection::open(proxy.address()).await;
        let answer = client.request("GET", "/a?key=sesame-query", lines, "").await;
        assert_eq!(answer.status, 200);
        client.request("POST", "/echo", lines, "sesame-body").await;
        // Heads that nobody can read, on both ports.
        for port in [proxy.address(), proxy.admin()] {
            let mut client = Connection::open(port).await;
            client
                .send(format!("GET /b?key=sesame-query HTTP/1.1\r\n{lines}no field\r\n\r\n"))
                .await;
            assert_eq!(client.response().await.status, 400, "{port}");
        }
        // And with a password for Redis.
        let with_password =
            with_redis(&redis).replace("registry: {redis: '", "registry: {redis: 'redis://:sesame-redis@");
        let other = Process::proxy_with(&with_password, &[("RUST_LOG", level)]).await;
        let sentinel = Process::sentinel(&[
            ("RUST_LOG", level),
            ("REDIS_URL", &format!("redis://:sesame-redis@{}", redis.address())),
            ("SENTINEL_TARGETS", &origin.address().to_string()),
            ("SENTINEL_INTERVAL", "100ms"),
        ])
        .await;
        other.active_backends(1).await;
        assert_eq!(get(other.address(), "/").await.status, 200);
        other.request_line("/").await;
        for process in [&proxy, &other, &sentinel] {
            process.signal("TERM");
            process.ended().await;
            let text = process.text();
            assert!(!text.contains("sesame"), "{text}");
        }
    }
}

#[tokio::test]
async fn what_a_client_sends_in_place_of_a_request_line_is_not_in_the_log() {
    let origin = origin();
    let proxy = Process::proxy(&embedded(&[origin.address()])).await;
    proxy.active_backends(1).await;
    let hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 /sesame ";
    let long = format!("GET /?{} HTTP/1.1\r\n", "sesame".repeat(20_000));
    for (before, (sent, method, path)) in [
        (&b"Cookie: sid=sesame\r\n\r\n"[..], "-", "-"),
        (b"Authorization: Bearer\tsesame\r\n\r\n", "-", "-"),
        (
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na=1&password: sesame x\r\n\r\n",
            "-",
            "-",
        ),
        (b"GET user:sesame@a HTTP/1.1\r\n\r\n", "GET", "-"),
        (b"GET http://user:sesame@a/b HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/b"),
        (b"GET /b#sesame HTTP/1.1\r\nHost: a\r\n\r\n", "GET", "/b"),
        (hello, "-", "-"),
        (long.as_bytes(), "GET", "/"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Connection::open(proxy.address()).await;
        // The longest is refused before all of it is sent.
        let _ = client.try_send(sent).await;
        let _ = client.try_rest().await;
        let refused = |line: &&Value| line["status"] != 200;
        eventually("it has its line", async || {
            proxy.lines("request").iter().filter(refused).count() == before + 1
        })
        .await;
        let lines = proxy.lines("request");
        let line = lines.iter().rfind(refused).expect("the last");
        assert_eq!(
            (&line["method"], &line["path"]),
            (&method.into(), &path.into()),
            "{line}"
        );
    }
    let text = proxy.text();
    assert!(!text.contains("sesame"), "{text}");
}

#[test]
fn a_mistake_in_rust_log_is_named() {
    for (rust_log, problem) in [
        (
            "inof",
            "RUST_LOG: expected a level (off, error, warn, info, debug, trace) or a target (access, ",
        ),
        ("info,acces", " where it says \"acces\", got \"info,acces\""),
        (
            "access=of",
            "RUST_LOG: expected a level (off, error, warn, info, debug, trace) behind \"access\", got \"access=of\"",
        ),
    ] {
        let output = run(&["-t"], &[("RUST_LOG", rust_log)]);
        assert_eq!(output.status.code(), Some(1), "{rust_log}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(problem), "{said}");
    }
    let output = run(&["-t"], &[("RUST_LOG", "acess=off")]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("RUST_LOG names a target that this program does not have\",\"target\":\"acess\""),
        "{said}"
    );
}

/// A process on a terminal of its own, and what it says there.
struct OnTerminal {
    child: Started,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).expect("it is ours");
        unlockpt(&terminal).expect("it is ours");
        let name = ptsname(&terminal, Vec::new()).expect("it has a name");
        let side = || {
            let mut options = std::fs::File::options();
            options
                .read(true)
                .write(true)
                .custom_flags(OFlags::NOCTTY.bits().cast_signed());
            options.open(name.to_str().expect("text")).expect("the other side")
        };
        let mut command = child::command(env!("CARGO_BIN_EXE_gopherproxy"));
        command.args(arguments).env_clear().envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(side()).stderr(side());
        let child = child::start(command);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let (mut terminal, mut some) = (std::fs::File::from(terminal), [0; 4096]);
            while let Ok(read @ 1..) = terminal.read(&mut some) {
                shown
                    .lock()
                    .expect("no test panics with it")
                    .extend_from_slice(&some[..read]);
            }
        });
        Self { child, screen }
    }

    fn screen(&self) -> String {
        let screen = self.screen.lock().expect("no test panics with it").clone();
        String::from_utf8(screen).expect("text").replace("\r\n", "\n")
    }

    async fn shows(&self, text: &str) {
        let end = Instant::now() + LIMIT;
        while !self.screen().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in {:?}", self.screen());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn people_at_a_terminal_get_text() {
    let files = tempfile::tempdir().expect("a directory");
    let path = files.path().join("gopherproxy.yaml");
    let path = path.to_str().expect("text");
    std::fs::write(path, "gopherproxy: {limit: {burst: none}, upstream: {read_timeout: 5}}").expect("written");
    let mut test = OnTerminal::start(&["-t", "-c", path], &[]);
    assert_eq!(test.child.wait().expect("it ends").code(), Some(1));
    test.shows("\n  line 1: gopherproxy.upstream.read_timeout: expected a duration")
        .await;
    let screen = test.screen();
    assert!(screen.starts_with("the configuration is bad: "), "{screen}");
    assert!(
        !screen.contains("can't start") && !screen.contains("\\n") && !screen.contains('{'),
        "{screen}"
    );

    let origin = origin();
    std::fs::write(path, embedded(&[origin.address()])).expect("written");
    let mut test = OnTerminal::start(&["-t", "-c", path], &[]);
    assert_eq!(test.child.wait().expect("it ends").code(), Some(0));
    test.shows("the configuration is good\n").await;

    let mut health = OnTerminal::start(&["--healthcheck"], &[("METRICS_PORT", "1")]);
    assert_eq!(health.child.wait().expect("it ends").code(), Some(1));
    health.shows("not ready: nobody answers at 127.0.0.1:1").await;

    let proxy = OnTerminal::start(&["-c", path], &[]);
    proxy.shows(" listening service=proxy address=127.0.0.1:").await;
    let screen = proxy.screen();
    let address = screen
        .split("service=proxy address=")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let address = address.and_then(|address| address.parse().ok()).expect("an address");
    let mut client = Connection::open(address).await;
    client.send("GET /\u{9b}2J\u{1b}[31m HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.response().await;
    proxy
        .shows("Z INFO  request method=GET path=\"/\\u009b2J\\u001b[31m\" ")
        .await;
    let screen = proxy.screen();
    assert!(
        screen
            .bytes()
            .all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)),
        "{screen:?}"
    );
}
