//! Steady traffic over TLS: requests over both protocols, and WebSockets over both. Each client counts what it gets and says what it lost.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::ext::Protocol;
use http::{Method, Request};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::http2::{Answer, upload};
use super::load::Load;
use super::tls::Client;
use super::{LIMIT, eventually};

/// The name that the clients ask for, which the certificate has to have.
pub const HOST: &str = "a.example";

/// Connections of HTTP/2, the requests on each at a time, and how often one of those begins.
pub const CONNECTIONS: u64 = 3;
const LANES: usize = 4;
const PACE: Duration = Duration::from_millis(40);

/// WebSockets over each protocol.
const SOCKETS: usize = 4;
const WORD: &[u8; 5] = b"word\n";

/// A request over HTTP/2, and what its answer has to be.
#[derive(Clone, Copy)]
pub struct Exchange {
    pub method: &'static str,
    pub path: &'static str,
    pub fields: &'static [(&'static str, &'static str)],
    pub body: &'static [u8],
    /// Whether an answer counts as one. An error is a loss.
    pub check: fn(&Answer) -> Result<bool, String>,
}

/// A GET that has to be answered with 200.
pub const GET: Exchange = Exchange {
    method: "GET",
    path: "/delay/3",
    fields: &[],
    body: b"",
    check: |answer| match answer.status {
        200 => Ok(true),
        status => Err(format!("{status}: {}", answer.text())),
    },
};

/// What the clients of a kind share.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    /// Requests over HTTP/2 that were answered.
    answered: AtomicU64,
    /// Connections of HTTP/2, and WebSockets over each protocol, that were opened.
    connections: AtomicU64,
    sockets: AtomicU64,
    /// Words that came back over WebSockets.
    words: AtomicU64,
    /// Raised when every WebSocket shall be closed and replaced by another.
    generation: AtomicU64,
    lost: Mutex<Vec<String>>,
}

impl Counts {
    fn lost(&self, what: String) {
        self.lost.lock().expect("no test panics with it").push(what);
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Requests over HTTP/2 with TLS, several at a time on each connection. A connection that gets a GOAWAY is replaced by another, and a
/// request that the GOAWAY says was not taken is sent again.
pub struct Streams {
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
}

impl Streams {
    pub fn start(to: SocketAddr, client: &Client, exchange: Exchange) -> Self {
        let (counts, client) = (Arc::new(Counts::default()), client.over_http2());
        let clients = (0..CONNECTIONS).map(|_| {
            let (counts, client) = (Arc::clone(&counts), client.clone());
            tokio::spawn(async move {
                while !counts.stops() {
                    match connect(&client, to).await {
                        Ok(requests) => {
                            counts.connections.fetch_add(1, Ordering::Relaxed);
                            join_all((0..LANES).map(|_| lane(requests.clone(), exchange, &counts))).await;
                        }
                        Err(error) => counts.lost(format!("no connection of HTTP/2: {error}")),
                    }
                }
            })
        });
        Self {
            clients: clients.collect(),
            counts,
        }
    }

    /// How many requests have been answered so far.
    pub fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// How many connections have been opened so far.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Ends it, and none may have been lost; returns how many were answered.
    pub async fn lost_none(self) -> u64 {
        end(&self.counts, self.clients).await;
        self.counts.answered.load(Ordering::Relaxed)
    }
}

/// Ends clients when what they have begun is done.
async fn end(counts: &Counts, clients: Vec<JoinHandle<()>>) {
    counts.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client does not panic");
    }
    let lost = counts.lost.lock().expect("no test panics with it");
    assert_eq!(
        *lost,
        [""; 0],
        "besides {} answers",
        counts.answered.load(Ordering::Relaxed)
    );
}

async fn connect(client: &Client, to: SocketAddr) -> io::Result<SendRequest<Bytes>> {
    let stream = client.try_open(to, HOST).await?.into_stream();
    let handshake = h2::client::handshake(stream).await;
    let (requests, connection) = handshake.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(requests)
}

/// One request after the other, until the connection takes no more.
async fn lane(mut requests: SendRequest<Bytes>, exchange: Exchange, counts: &Counts) {
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !counts.stops() {
        ticks.tick().await;
        let once = async {
            requests = requests.clone().ready().await?;
            let request = Request::builder().method(exchange.method);
            let mut request = request.uri(format!("https://{HOST}{}", exchange.path));
            for (name, value) in exchange.fields {
                request = request.header(*name, *value);
            }
            let request = request.body(()).expect("a request");
            let (response, mut body) = requests.send_request(request, exchange.body.is_empty())?;
            if !exchange.body.is_empty() {
                // It may be answered, and reset, before it has all been sent.
                let _ = upload(&mut body, exchange.body, true).await;
            }
            Answer::of(response.await?).await
        };
        match timeout(LIMIT, once).await {
            Ok(Ok(answer)) => match (exchange.check)(&answer) {
                Ok(counted) => drop(counts.answered.fetch_add(counted.into(), Ordering::Relaxed)),
                Err(problem) => counts.lost(problem),
            },
            Ok(Err(error)) if is_goodbye(&error) => return,
            Ok(Err(error)) => return counts.lost(format!("a stream: {error}")),
            Err(_) => return counts.lost("a stream without an answer".into()),
        }
    }
}

/// Whether a connection has ended as it should: the request was not taken, or not even sent.
pub fn is_goodbye(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// WebSockets over HTTP/1.1 and HTTP/2 with TLS, on which a word and its echo follow each other.
pub struct Sockets {
    counts: [Arc<Counts>; 2],
    clients: [Vec<JoinHandle<()>>; 2],
}

impl Sockets {
    pub fn start(to: SocketAddr, client: &Client) -> Self {
        let counts: [Arc<Counts>; 2] = Default::default();
        let start = |http2: bool| {
            let counts = &counts[usize::from(http2)];
            let client = if http2 { client.over_http2() } else { client.clone() };
            let task = |_| {
                let (counts, client) = (Arc::clone(counts), client.clone());
                tokio::spawn(async move {
                    while !counts.stops() {
                        let talked = match http2 {
                            false => talk_over_http1(&client, to, &counts).await,
                            true => talk_over_http2(&client, to, &counts).await,
                        };
                        if let Err(problem) = talked {
                            counts.lost(format!("a WebSocket (over HTTP/2: {http2}): {problem}"));
                        }
                    }
                })
            };
            (0..SOCKETS).map(task).collect()
        };
        let clients = [start(false), start(true)];
        Self { counts, clients }
    }

    fn sum(&self, of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        self.counts
            .iter()
            .map(|counts| of(counts).load(Ordering::Relaxed))
            .sum()
    }

    /// How many have been opened so far.
    pub fn opened(&self) -> u64 {
        self.sum(|counts| &counts.sockets)
    }

    /// Closes each and opens another in its place.
    pub fn replace(&self) {
        for counts in &self.counts {
            counts.generation.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until there are words and their echoes over each protocol.
    pub async fn talk(&self) {
        for counts in &self.counts {
            let before = counts.words.load(Ordering::Relaxed);
            eventually("WebSockets echo", async || {
                counts.words.load(Ordering::Relaxed) > before + 3 * SOCKETS as u64
            })
            .await;
        }
    }

    /// Ends it, and no word may have been lost; returns how many were opened.
    pub async fn lost_none(self) -> u64 {
        let opened = async |counts: &Counts, clients| {
            end(counts, clients).await;
            counts.sockets.load(Ordering::Relaxed)
        };
        let ([http1, http2], [of_http1, of_http2]) = (self.counts, self.clients);
        opened(&http1, of_http1).await + opened(&http2, of_http2).await
    }
}

/// When the next word is said on a WebSocket, and whether.
struct Talk<'a> {
    counts: &'a Counts,
    generation: u64,
    ticks: Interval,
    words: u64,
}

impl<'a> Talk<'a> {
    fn begin(counts: &'a Counts) -> Self {
        counts.sockets.fetch_add(1, Ordering::Relaxed);
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            counts,
            generation: counts.generation.load(Ordering::Relaxed),
            ticks,
            words: 0,
        }
    }

    async fn goes_on(&mut self) -> bool {
        self.ticks.tick().await;
        !self.counts.stops() && self.counts.generation.load(Ordering::Relaxed) == self.generation
    }

    /// Something came back.
    fn heard(&mut self, heard: io::Result<Vec<u8>>) -> io::Result<()> {
        match heard {
            Ok(heard) if heard == WORD => self.words += 1,
            other => return Err(io::Error::other(format!("{other:?} after {} words", self.words))),
        }
        self.counts.words.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What comes at the end of a WebSocket.
fn ends(rest: &[u8]) -> io::Result<()> {
    match rest {
        [] => Ok(()),
        rest => Err(io::Error::other(format!("{rest:?} for the end"))),
    }
}

async fn talk_over_http1(client: &Client, to: SocketAddr, counts: &Counts) -> io::Result<()> {
    let mut socket = client.try_open(to, HOST).await?;
    let lines = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let response = socket.try_request("GET", "/upgrade", lines, "").await?;
    if response.status != 101 {
        return Err(io::Error::other(format!("{}: {}", response.status, response.text())));
    }
    let mut talk = Talk::begin(counts);
    while talk.goes_on().await {
        socket.try_send(WORD).await?;
        talk.heard(socket.try_bytes(WORD.len()).await)?;
    }
    socket.try_finish().await?;
    ends(&socket.try_rest().await?)
}

async fn talk_over_http2(client: &Client, to: SocketAddr, counts: &Counts) -> io::Result<()> {
    let requests = connect(client, to).await?;
    let ready = timeout(LIMIT, requests.ready()).await?;
    let mut requests = ready.map_err(io::Error::other)?;
    // The proxy offers it in its settings.
    while !requests.is_extended_connect_protocol_enabled() {
        sleep(Duration::from_millis(5)).await;
    }
    let request = Request::builder().method(Method::CONNECT);
    let request = request.uri(format!("https://{HOST}/upgrade"));
    let request = request.extension(Protocol::from_static("websocket"));
    let sent = requests.send_request(request.body(()).expect("a request"), false);
    let (response, mut up) = sent.map_err(io::Error::other)?;
    let response = timeout(LIMIT, response).await?.map_err(io::Error::other)?;
    if response.status() != 200 {
        return Err(io::Error::other(response.status().to_string()));
    }
    let mut down = response.into_body();
    let mut talk = Talk::begin(counts);
    while talk.goes_on().await {
        upload(&mut up, WORD, false).await.map_err(io::Error::other)?;
        talk.heard(hear(&mut down, WORD.len()).await)?;
    }
    up.send_data(Bytes::new(), true).map_err(io::Error::other)?;
    ends(&hear(&mut down, usize::MAX).await?)
}

/// So many bytes, unless the stream ends before.
async fn hear(down: &mut RecvStream, length: usize) -> io::Result<Vec<u8>> {
    let mut heard = Vec::new();
    while heard.len() < length {
        let Some(data) = timeout(LIMIT, down.data()).await? else {
            break;
        };
        let data = data.map_err(io::Error::other)?;
        let _ = down.flow_control().release_capacity(data.len());
        heard.extend_from_slice(&data);
    }
    Ok(heard)
}

/// All of it at once, with requests over HTTP/1.1 too.
pub struct Traffic {
    pub requests: Load,
    pub streams: Streams,
    pub sockets: Sockets,
}

impl Traffic {
    pub fn start(to: SocketAddr, client: &Client) -> Self {
        Self {
            requests: Load::over_tls(to, client, "/delay/3", 100),
            streams: Streams::start(to, client, GET),
            sockets: Sockets::start(to, client),
        }
    }

    /// Waits until all of it has gone on.
    pub async fn flows(&self) {
        let (requests, streams) = (self.requests.answered(), self.streams.answered());
        eventually("traffic of both protocols flows", async || {
            self.requests.answered() > requests + 40 && self.streams.answered() > streams + 40
        })
        .await;
        self.sockets.talk().await;
    }

    /// Ends it, and nothing may have been lost; returns how many requests were answered, those for WebSockets too.
    pub async fn lost_none(self) -> u64 {
        self.requests.lost_none().await + self.streams.lost_none().await + self.sockets.lost_none().await
    }
}
