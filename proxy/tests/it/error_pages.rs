//! What users read when the proxy itself answers: a line with the request's id, JSON, or the operator's page.

use std::net::SocketAddr;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::http2::{Http2, request as request2};
use crate::support::{Connection, Process, RawOrigin, UNLIMITED, embedded, eventually, free_port};

const CLEARTEXT: &str = "  http2: {cleartext: true}\n";

/// A proxy over an origin whose answers are no HTTP, with these keys more.
async fn broken(more: &str) -> (Process, RawOrigin) {
    let origin = RawOrigin::answering("nonsense\r\n\r\n").await;
    let proxy = Process::proxy(&(embedded(&[origin.address]) + CLEARTEXT + more)).await;
    proxy.active_backends(1).await;
    (proxy, origin)
}

/// The line's id and length in the log, which must be that of `body`.
async fn logged(proxy: &Process, path: &str, body: &str) -> String {
    let line = proxy.request_line(path).await;
    assert_eq!(line["bytes"], body.len(), "{line}");
    line["request_id"].as_str().expect("an id").to_owned()
}

fn json(body: &str) -> Value {
    serde_json::from_str(body).expect("JSON")
}

#[tokio::test]
async fn an_answer_says_what_happened_and_the_id_that_the_log_has() {
    let (proxy, _origin) = broken("  client: {max_body: 10B}\n").await;
    const TOO_LARGE: &str = "Content Too Large: the body of the request is too large";
    const FAILED: &str = "Bad Gateway: the backend gave no valid answer";
    const JSON: &str = "Accept: application/json, application/problem+json\r\n";
    let body = "x".repeat(11);
    for (path, sent, status, says) in [("/large", body.as_str(), 413, TOO_LARGE), ("/failed", "", 502, FAILED)] {
        let mut client = Connection::open(proxy.address()).await;
        let text = client.request("POST", path, "Accept: */*\r\n", sent).await;
        let id = logged(&proxy, path, &text.text()).await;
        assert_eq!((text.status, text.text()), (status, format!("{says} (request {id})\n")));
        assert_eq!(text.header("content-type"), Some("text/plain"));

        let mut client = Connection::open(proxy.address()).await;
        let object = client.request("POST", &format!("{path}/json"), JSON, sent).await;
        let id = logged(&proxy, &format!("{path}/json"), &object.text()).await;
        assert_eq!(object.header("content-type"), Some("application/json"));
        let expected = serde_json::json!({"error": says, "status": status, "request_id": id});
        assert_eq!(json(&object.text()), expected);

        let mut client = Http2::open(proxy.address()).await;
        let mut asked = request2("POST", &format!("{path}/2"));
        let accept = "application/json".parse().expect("a value");
        asked.headers_mut().insert("accept", accept);
        let length = sent.len().to_string().parse().expect("a value");
        asked.headers_mut().insert("content-length", length);
        let object = client.send(asked, sent.as_bytes()).await.expect("an answer");
        let id = logged(&proxy, &format!("{path}/2"), &object.text()).await;
        assert_eq!(object.header("content-type"), Some("application/json"));
        assert_eq!(json(&object.text())["request_id"], id.as_str());
        assert_eq!(json(&object.text())["status"], status);
    }

    // To HEAD it is the same without a body.
    let mut client = Connection::open(proxy.address()).await;
    let head = client.request("HEAD", "/head", "", "").await;
    assert_eq!((head.status, head.body.len()), (502, 0));
    assert_eq!(logged(&proxy, "/head", "").await.len(), 32);
}

/// A page for each of these statuses in a directory of its own, and the key that names them.
fn pages(pages: &[(u16, &str, &str)]) -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut keys = Vec::new();
    for (status, name, text) in pages {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        keys.push(format!("{status}: {}", path.display()));
    }
    let key = format!("  error_pages: {{{}}}\n", keys.join(", "));
    (directory, key)
}

#[tokio::test]
async fn a_page_of_the_operators_takes_the_place_of_the_line_and_a_reload_changes_it() {
    let html = (502, "502.html", "<p>{status}: <b>{request_id}</b>");
    let (files, key) = pages(&[html, (413, "413.json", "{\"id\": \"{request_id}\"}")]);
    let (proxy, _origin) = broken(&(key + "  client: {max_body: 10B}\n")).await;
    let failed = async |path: &'static str| {
        let response = Connection::open(proxy.address()).await.get(path).await;
        let id = logged(&proxy, path, &response.text()).await;
        (response, id)
    };
    let (page, id) = failed("/page").await;
    assert_eq!((page.status, page.text()), (502, format!("<p>502: <b>{id}</b>")));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let page = Http2::open(proxy.address()).await.get("/page2").await;
    let id = logged(&proxy, "/page2", &page.text()).await;
    assert_eq!(page.text(), format!("<p>502: <b>{id}</b>"));

    let mut client = Connection::open(proxy.address()).await;
    let page = client.request("POST", "/large", "", &"x".repeat(11)).await;
    let id = logged(&proxy, "/large", &page.text()).await;
    assert_eq!(
        (page.status, json(&page.text())["id"].as_str()),
        (413, Some(id.as_str()))
    );
    let mut client = Http2::open(proxy.address()).await;
    let mut asked = request2("POST", "/large2");
    asked
        .headers_mut()
        .insert("content-length", "11".parse().expect("a value"));
    let page = client.send(asked, &[b'x'; 11]).await.expect("an answer");
    let id = logged(&proxy, "/large2", &page.text()).await;
    assert_eq!(json(&page.text())["id"], id.as_str());

    // The files are read again; if one can't be, everything stays.
    std::fs::write(files.path().join("502.html"), "new").expect("written");
    std::fs::rename(files.path().join("413.json"), files.path().join("413")).expect("renamed");
    proxy.signal("HUP");
    proxy
        .said("configuration not reloaded; the old one stays", |_| true)
        .await;
    assert!(failed("/stays").await.0.text().starts_with("<p>502"));
    std::fs::rename(files.path().join("413"), files.path().join("413.json")).expect("renamed");
    proxy.signal("HUP");
    proxy.said("configuration reloaded", |_| true).await;
    assert_eq!(failed("/new").await.0.text(), "new");
}

#[tokio::test]
async fn a_page_that_is_not_there_is_a_mistake() {
    let target = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let checked = Process::check(&(embedded(&[target]) + "  error_pages: {502: /nowhere/502.html}\n"));
    assert!(!checked.ended().await.0.success());
    let problem = "gopherproxy.error_pages.502: /nowhere/502.html: No such file";
    eventually("it says why", async || checked.text().contains(problem)).await;
}

#[tokio::test]
async fn a_client_over_its_limit_reads_the_page_too() {
    let (_files, key) = pages(&[(429, "429.txt", "slow down, {request_id}")]);
    let origin = RawOrigin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = Process::proxy(
        &(embedded(&[origin.address]).replace(UNLIMITED, "  limit: {burst: 1, per_second: 0.01}\n") + &key),
    )
    .await;
    proxy.active_backends(1).await;
    let mut client = Connection::open(proxy.address()).await;
    client.get("/").await;
    let refused = client.get("/refused").await;
    let id = logged(&proxy, "/refused", &refused.text()).await;
    assert_eq!((refused.status, refused.text()), (429, format!("slow down, {id}")));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("content-type"), Some("text/plain; charset=utf-8"));
}
