//! What a client's side reads of a body, and what it leaves.

use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::future::{Either, select};
use gopherproxy::http1::chunked::Decoder;
use gopherproxy::http1::downstream::{self, ClientFault, Downstream};
use gopherproxy::http1::head::Body;
use gopherproxy::http1::held::{self, Hold};
use gopherproxy::http1::progress::Limits;
use gopherproxy::tls::stream::Stream;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;

use crate::chunks::{pieces, plain};

const LIMITS: Limits = Limits {
    read_timeout: Duration::from_secs(60),
    write_timeout: Duration::from_secs(60),
    min_rate: None,
    max_body: None,
};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime needs nothing");
}

/// Lets a client send `stream`, which begins with `body`, in the pieces that `cuts` says, and compares what is read of it with a
/// plain reading.
pub fn check(body: Body, cuts: &[u8], stream: &[u8]) {
    let (begun, whole) = match body {
        Body::Length(length) => {
            let whole = usize::try_from(length).ok().and_then(|length| stream.get(..length));
            (
                downstream::Body::Length(length),
                whole.map(|data| (data.len(), data.to_vec())),
            )
        }
        Body::Chunked => (
            downstream::Body::Chunked(Decoder::default()),
            plain(stream).and_then(|body| Some((body.length?, body.data))),
        ),
        // Until the origin agrees to switch there is none.
        Body::Upgrade => (downstream::Body::Length(0), Some((0, Vec::new()))),
    };
    let (read, received) = RUNTIME.with(|runtime| runtime.block_on(receive(begun, cuts, stream)));
    match (read, whole) {
        (Ok(data), Some((length, expected))) => {
            assert_eq!(data, expected);
            assert!(stream[length..].starts_with(&received), "more than the body was used");
        }
        (Err(ClientFault::Gone | ClientFault::BadFraming(_)), None) => {}
        (read, whole) => unreachable!("{read:?} of {whole:?}"),
    }
}

/// Both ends of a connection. It has no ports, of which thousands of inputs a second would leave none.
fn connection() -> (UnixStream, TcpStream) {
    let (ours, theirs) = UnixStream::pair().expect("there are descriptors");
    let theirs = theirs.into_std().expect("it was made a moment ago");
    let theirs = std::net::TcpStream::from(OwnedFd::from(theirs));
    (ours, TcpStream::from_std(theirs).expect("it does not block"))
}

/// The data of the body, and what was received besides.
async fn receive(body: downstream::Body, cuts: &[u8], stream: &[u8]) -> (Result<Vec<u8>, ClientFault>, Vec<u8>) {
    let (mut sender, receiver) = connection();
    let hold = Hold::new(Arc::default(), None, held::Limits::new(usize::MAX));
    let mut client = Downstream::new(Stream::Plain(receiver), &LIMITS, hold);
    // The first piece came with the head.
    let mut pieces = pieces(cuts, stream);
    client.received.extend_from_slice(pieces.next().unwrap_or_default());
    client.begin(body, &LIMITS);
    let feed = async {
        for piece in pieces {
            // The other end may have seen enough.
            let _ = sender.write_all(piece).await;
            yield_now().await;
        }
        drop(sender);
    };
    let read = async {
        let mut data = BytesMut::new();
        while !client.body().ended() {
            data.reserve(1 + cuts.len());
            poll_fn(|context| client.poll_body(context, &mut data)).await?;
        }
        Ok(data.to_vec())
    };
    let read = match select(pin!(read), pin!(feed)).await {
        // Nobody takes the rest, so that sending it could wait for ever.
        Either::Left((read, _)) => read,
        Either::Right(((), read)) => read.await,
    };
    (read, client.received.to_vec())
}
