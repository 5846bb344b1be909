//! Calls of gRPC: over HTTP/2 to the proxy, and from it over HTTP/2 to origins with TLS and without.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, client};
use http::{HeaderMap, Request, Response};

use crate::support::authority::Authority;
use crate::support::http2::{Answer as Got, CLEARTEXT, Http2};
use crate::support::http2_origin::{Answer, Http2Origin, whole};
use crate::support::{Connection, Process, RawOrigin, embedded_targets, eventually};

const H2C: &str = "  upstream: {protocol: h2c}\n";

async fn proxy_to(target: String, more: &str) -> Process {
    let proxy = Process::proxy(&(embedded_targets(&[target]) + CLEARTEXT + more)).await;
    proxy.active_backends(1).await;
    proxy
}

/// A call of this method.
fn call(path: &str) -> Request<()> {
    let request = Request::post(format!("http://test{path}"));
    let request = request
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(()).expect("a request")
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let parsed = fields
        .iter()
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
    parsed.collect()
}

/// Answers a call with each of its messages as it comes and the status 5, or with the status alone if the path is `/refuse`.
fn echo() -> Answer {
    Arc::new(|mut request, mut respond| {
        Box::pin(async move {
            assert_eq!(request.headers()["te"], "trailers");
            let head = Response::builder().header("content-type", "application/grpc");
            if request.uri().path() == "/refuse" {
                let head = head.header("grpc-status", "5").body(()).expect("a head");
                let _ = respond.send_response(head, true);
                return;
            }
            let Ok(mut response) = respond.send_response(head.body(()).expect("a head"), false) else {
                return;
            };
            while let Some(Ok(message)) = request.body_mut().data().await {
                let _ = request.body_mut().flow_control().release_capacity(message.len());
                if response.send_data(message, false).is_err() {
                    return;
                }
            }
            let trailers = [("grpc-status", "5"), ("grpc-message", "why"), ("x-more", "more")];
            let forbidden = [("content-length", "7"), ("x-forwarded-for", "192.0.2.1")];
            let _ = response.send_trailers(fields(&[&trailers[..], &forbidden].concat()));
        })
    })
}

/// Whether a call of the proxy's own was refused, with this status and nothing else.
fn is_refused(got: &Got, status: &str) {
    assert_eq!((got.status, got.header("grpc-status")), (200, Some(status)), "{got:?}");
    assert_eq!(got.header("content-type"), Some("application/grpc"));
    assert!(got.header("grpc-message").is_some_and(|message| !message.is_empty()));
    assert!(got.body.is_empty() && got.trailers.is_none(), "{got:?}");
}

#[tokio::test]
async fn messages_and_trailers_pass_both_ways_as_they_come() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().expect("a directory");
    let ca_file = authority.write(directory.path());
    let plain = Http2Origin::start(None, Some(echo())).await;
    let acceptor = authority.issue("localhost").acceptor(&["h2"], None);
    let secure = Http2Origin::start(Some(acceptor), Some(echo())).await;
    let tls = format!("  upstream: {{tls: {{ca_file: '{ca_file}'}}}}\n");
    for (target, more) in [
        (plain.address.to_string(), H2C.to_owned()),
        (format!("https://localhost:{}", secure.address.port()), tls),
    ] {
        let proxy = proxy_to(target, &more).await;
        let mut client = Http2::open(proxy.address()).await;
        let got = client.send(call("/unary"), b"a message").await.expect("an answer");
        assert_eq!((got.status, got.text()), (200, "a message".into()));
        let trailers = fields(&[("grpc-status", "5"), ("grpc-message", "why"), ("x-more", "more")]);
        assert_eq!(got.trailers, Some(trailers.clone()));
        assert_eq!(proxy.request_line("/unary").await["grpc_status"], 5);

        let mut requests = client.requests.clone().ready().await.expect("it is open");
        let (response, mut messages) = requests.send_request(call("/both"), false).expect("it is sent");
        let mut answers = response.await.expect("a head").into_body();
        for message in ["one", "two", "three"] {
            messages
                .send_data(Bytes::from_static(message.as_bytes()), false)
                .expect("sent");
            assert_eq!(answers.data().await.expect("a message").expect("it is open"), message);
        }
        messages.send_data(Bytes::new(), true).expect("sent");
        assert!(answers.data().await.is_none());
        assert_eq!(answers.trailers().await.expect("they come"), Some(trailers));

        // A response that is a head alone ends with it: gRPC's clients take an empty frame behind it for a fault.
        let mut requests = client.requests.clone().ready().await.expect("it is open");
        let (response, _) = requests.send_request(call("/refuse"), true).expect("it is sent");
        let response = response.await.expect("a head");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["grpc-status"]),
            (200, &"5".parse().expect("a value"))
        );
        assert!(response.body().is_end_stream());
        assert_eq!(proxy.request_line("/refuse").await["grpc_status"], 5);
    }
}

#[tokio::test]
async fn a_client_of_http_1_1_gets_what_it_can_and_the_log_has_the_status() {
    let origin = Http2Origin::start(None, Some(echo())).await;
    let proxy = proxy_to(origin.address.to_string(), H2C).await;
    let mut client = Connection::open(proxy.address()).await;
    let response = client
        .request("POST", "/call", "Content-Type: application/grpc\r\n", "message")
        .await;
    assert_eq!((response.status, response.text()), (200, "message".into()));
    assert_eq!(proxy.request_line("/call").await["grpc_status"], 5);
    let response = client
        .request("POST", "/refuse", "Content-Type: application/grpc\r\n", "message")
        .await;
    assert_eq!((response.status, response.header("grpc-status")), (200, Some("5")));
    assert_eq!(response.header("content-length"), Some("0"));
    assert_eq!(proxy.request_line("/refuse").await["grpc_status"], 5);
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_origin() {
    let (heard, hears) = tokio::sync::mpsc::unbounded_channel();
    let waits: Answer = Arc::new(move |_, mut respond| {
        let heard = heard.clone();
        Box::pin(async move {
            let _ = heard.send(None);
            let reset = std::future::poll_fn(|context| respond.poll_reset(context)).await;
            let _ = heard.send(reset.ok());
        })
    });
    let mut hears = hears;
    let origin = Http2Origin::start(None, Some(waits)).await;
    let proxy = proxy_to(origin.address.to_string(), H2C).await;
    let client = Http2::open(proxy.address()).await;
    for ends in [true, false] {
        let mut requests = client.requests.clone().ready().await.expect("it is open");
        let (_response, mut messages) = requests.send_request(call("/wait"), ends).expect("it is sent");
        assert_eq!(hears.recv().await, Some(None), "it is there");
        messages.send_reset(Reason::CANCEL);
        assert_eq!(hears.recv().await, Some(Some(Reason::CANCEL)));
    }
    eventually("both are recorded", async || proxy.lines("request").len() == 2).await;
    assert!(proxy.lines("request").iter().all(|line| line["status"] == 499));
}

#[tokio::test]
async fn a_refused_call_gets_a_status_of_grpc_in_a_response_without_a_body() {
    // Over its limit.
    let origin = Http2Origin::start(None, Some(echo())).await;
    let limit = "  limit: {burst: 1, per_second: 0.5}\n";
    let configuration = embedded_targets(&[origin.address.to_string()]).replace(crate::support::UNLIMITED, limit);
    let proxy = Process::proxy(&(configuration + CLEARTEXT + H2C)).await;
    proxy.active_backends(1).await;
    let mut client = Http2::open(proxy.address()).await;
    let got = client.send(call("/call"), b"a message").await.expect("an answer");
    assert!(got.trailers.is_some());
    let got = client.send(call("/limited"), b"a message").await.expect("an answer");
    is_refused(&got, "8");
    let pause = got
        .header("grpc-retry-pushback-ms")
        .and_then(|millis| millis.parse::<u64>().ok());
    assert!(pause.is_some_and(|millis| (1..=2001).contains(&millis)), "{got:?}");
    let line = proxy.request_line("/limited").await;
    assert_eq!(
        (&line["status"], &line["grpc_status"], &line["reason"]),
        (&200.into(), &8.into(), &"limited".into())
    );
    // Anybody else gets the usual response.
    let got = client
        .send(Request::post("http://test/other").body(()).expect("a request"), b"")
        .await
        .expect("an answer");
    assert_eq!((got.status, got.header("grpc-status")), (429, None));
    drop(origin);
}

#[tokio::test]
async fn a_call_that_no_origin_answers_gets_a_status_of_grpc_from_either_forwarder() {
    let breaks: Answer = Arc::new(|_, mut respond| Box::pin(async move { respond.send_reset(Reason::INTERNAL_ERROR) }));
    let silent: Answer = Arc::new(|mut request, respond| {
        Box::pin(async move {
            whole(request.body_mut()).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(respond);
        })
    });
    let breaking = Http2Origin::start(None, Some(breaks)).await;
    let silent = Http2Origin::start(None, Some(silent)).await;
    let raw_breaking = RawOrigin::start(|mut peer| async move { drop(peer.head().await) }).await;
    let raw_silent = RawOrigin::start(|mut peer| async move { drop(peer.until("never").await) }).await;
    let h2c = "  upstream: {protocol: h2c, read_timeout: 300ms}\n";
    let http1 = "  upstream: {read_timeout: 300ms}\n";
    for (address, more, status, reason) in [
        (breaking.address, h2c, "14", "backend_failed"),
        (silent.address, h2c, "4", "backend_timeout"),
        (raw_breaking.address, http1, "14", "backend_failed"),
        (raw_silent.address, http1, "4", "backend_timeout"),
    ] {
        let proxy = proxy_to(address.to_string(), more).await;
        let mut client = Http2::open(proxy.address()).await;
        let got = client.send(call("/call"), b"a message").await;
        let got = got.unwrap_or_else(|error| panic!("{reason} {more}: {error}: {:?}", proxy.lines("request")));
        is_refused(&got, status);
        let line = proxy.request_line("/call").await;
        assert_eq!((&line["status"], &line["reason"]), (&200.into(), &reason.into()));
        assert_eq!(line["grpc_status"].to_string(), status);
    }
    let gone = RawOrigin::answering("").await;
    let proxy = proxy_to(gone.address.to_string(), "").await;
    drop(gone);
    proxy.active_backends(0).await;
    let mut client = Http2::open_with(proxy.address(), &client::Builder::new()).await;
    is_refused(&client.send(call("/none"), b"").await.expect("an answer"), "14");
}
