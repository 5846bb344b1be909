//! The admin port, and that the two ports are two.

use crate::support::{Connection, Process, eventually, free_port, get, proxy_over};

#[tokio::test]
async fn the_admin_port_has_three_pages_and_nothing_else() {
    let (proxy, origins) = proxy_over(1).await;
    let health = get(proxy.admin(), "/healthz").await;
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    eventually("a check has passed", async || {
        get(proxy.admin(), "/readyz").await.text() == "ready\n"
    })
    .await;
    let metrics = get(proxy.admin(), "/metrics").await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4"));
    assert!(metrics.text().contains("\n# TYPE gopherproxy_active_backends gauge\n"));
    for path in ["/", "/metrics/", "/healthz/x", "/headers", "//metrics"] {
        assert_eq!(get(proxy.admin(), path).await.status, 404, "{path}");
    }
    let mut client = Connection::open(proxy.admin()).await;
    assert_eq!(client.request("POST", "/metrics", "", "x").await.status, 405);
    let head = Connection::open(proxy.admin())
        .await
        .request("HEAD", "/healthz", "", "")
        .await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("3")));
    assert_eq!(origins[0].requests(), 0);
}

#[tokio::test]
async fn through_the_proxy_port_the_admin_pages_are_the_backends() {
    let (proxy, origins) = proxy_over(1).await;
    for path in ["/metrics", "/healthz", "/readyz"] {
        let response = get(proxy.address(), path).await;
        assert_eq!((response.status, response.origin()), (200, origins[0].address()));
    }
}

#[tokio::test]
async fn a_binary_can_ask_a_running_one_whether_it_is_ready() {
    let (proxy, _origins) = proxy_over(1).await;
    let ask = |port: u16| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gopherproxy"));
        let command = command
            .arg("--healthcheck")
            .env_clear()
            .env("METRICS_PORT", port.to_string());
        let output = command.output().expect("the binary starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    assert_eq!(ask(proxy.admin().port()), (Some(0), String::new()));
    let (code, said) = ask(free_port());
    assert_eq!(code, Some(1));
    assert!(said.contains("nobody answers at 127.0.0.1:"), "{said}");
    let unready = Process::proxy(
        "gopherproxy: {listen: '127.0.0.1:0', admin_listen: '127.0.0.1:0', registry: {redis: '127.0.0.1:1'}}",
    )
    .await;
    let (code, said) = ask(unready.admin().port());
    assert_eq!(code, Some(1));
    assert!(said.contains("no backends discovered yet"), "{said}");
}
