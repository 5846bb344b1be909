//! What Pingora makes of a request that was let through: nothing, or the same.

use futures::join;
use gopherproxy::http1::head::Body;
use pingora::http::RequestHeader;
use pingora::protocols::http::v1::server::HttpSession;
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use crate::model::{self, Request};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime needs nothing");
}

/// Lets Pingora read `head`, and then the bytes of the body as they come, and compares what it has read. Returns the head that it
/// has read.
pub fn agrees<'s>(request: &Request<'_>, head: &[u8], pieces: impl Iterator<Item = &'s [u8]>) -> RequestHeader {
    RUNTIME.with(|runtime| runtime.block_on(compare(request, head, pieces)))
}

async fn compare<'s>(request: &Request<'_>, head: &[u8], pieces: impl Iterator<Item = &'s [u8]>) -> RequestHeader {
    let (mut client, stream) = tokio::io::duplex(1 << 20);
    let mut session = HttpSession::new(Box::new(stream));
    session.set_pipelined_prefix(head.into());
    let read = session.read_request().await;
    assert!(matches!(read, Ok(Some(_))), "{read:?}");
    let seen = session.req_header();
    assert_eq!(seen.method.as_str().as_bytes(), request.method);
    assert_eq!(seen.raw_path(), request.target);
    assert_eq!(seen.headers.len(), request.fields.len());
    for (name, value) in &request.fields {
        let name = str::from_utf8(name).expect("a name is text");
        assert!(seen.headers.get_all(name).iter().any(|seen| seen.as_bytes() == *value));
    }
    let seen = seen.clone();
    if request.body == Body::Upgrade {
        return seen;
    }

    let mut sent = Vec::new();
    let feed = async {
        for piece in pieces {
            sent.extend_from_slice(piece);
            client.write_all(piece).await.expect("the other end is open");
            yield_now().await;
        }
        drop(client);
    };
    let mut received = Vec::new();
    let read = async {
        while let Some(piece) = session.read_body_bytes().await? {
            received.extend_from_slice(&piece);
        }
        Ok::<_, Box<pingora::Error>>(())
    };
    let (read, ()) = join!(read, feed);
    let whole = match request.body {
        Body::Length(length) => (sent.len() as u64 == length).then_some(sent),
        Body::Chunked | Body::Upgrade => model::chunked(&sent).map(|(_, data)| data),
    };
    match read {
        Ok(()) => assert_eq!(Some(received), whole),
        Err(error) => assert!(whole.is_none(), "{error}"),
    }
    seen
}
