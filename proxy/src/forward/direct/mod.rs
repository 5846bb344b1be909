//! Forwards a request over HTTP/1.1 on a connection of our own.
//!
//! - `connect`: a new connection to an origin.
//! - `upload`: the request and its body, on the way to the origin.
//! - `duplex`: one try: both bodies at once.
//! - `download`: the body of its response, on the way to the client.
//! - `coming`: that body, as the origin delimits it.
//! - `tunnel`: a try that has switched to another protocol.
//! - `waits`: the deadlines of both ends of a try, and what it holds.
//!
//! Here is what is around a try: which endpoint, which connection, whose fault a failure is, and whether another try follows.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use chassis::shortage::is_shortage;
use pingora::server::configuration::ServerConf;

use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::exchange::retry::{self, Failure, Next, Try};
use crate::forward::client::{ClientSide, answer_here};
use crate::http1::downstream::ClientFault;
use crate::lifecycle::Lifecycle;
use crate::pool::balance::place::Place;
use crate::pool::endpoint::{Endpoint, Upstream};
use crate::pool::failure;
use crate::pool::stream::OriginStream;
use crate::rejection::Rejection;

mod coming;
mod connect;
mod download;
mod duplex;
mod tunnel;
mod upload;
mod waits;

use connect::{Connected, Connector};
use duplex::{Duplex, origin};
use upload::Upload;

/// Why a try ended before its response did.
#[derive(Debug)]
enum Broken {
    /// The client's doing.
    Client(ClientFault),
    /// There was no connection to the origin.
    NoConnection(io::Error),
    /// There was one, but no TLS on it; in words for the log.
    NoTls(String),
    /// The same, because the origin speaks HTTP/2 alone.
    NoHttp1(String),
    /// The origin's doing, in words for the log.
    Origin(Failure, Cow<'static, str>),
}

impl From<ClientFault> for Broken {
    fn from(fault: ClientFault) -> Self {
        Self::Client(fault)
    }
}

impl Broken {
    /// A connection to the origin that broke.
    fn closed(error: &io::Error) -> Self {
        Self::Origin(Failure::Closed, broke(error))
    }

    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Client(_) => None,
            Self::NoConnection(_) | Self::NoTls(_) | Self::NoHttp1(_) => Some(Failure::NotConnected),
            Self::Origin(failure, _) => Some(*failure),
        }
    }

    fn rejection(&self) -> Rejection {
        match self {
            Self::Client(fault) => fault.rejection(),
            Self::NoConnection(error) if error.kind() == io::ErrorKind::TimedOut => Rejection::BackendTimeout,
            Self::Origin(Failure::TimedOut, _) => Rejection::BackendTimeout,
            Self::NoConnection(_) | Self::NoTls(_) | Self::NoHttp1(_) | Self::Origin(..) => Rejection::BackendFailed,
        }
    }

    fn into_words(self) -> Cow<'static, str> {
        match self {
            Self::Client(fault) => fault.to_string().into(),
            Self::NoConnection(error) => format!("no connection to the backend: {error}").into(),
            Self::NoTls(why) | Self::NoHttp1(why) => why.into(),
            Self::Origin(_, error) => error,
        }
    }
}

/// That the connection to the origin broke, in words for the log.
fn broke(error: &io::Error) -> Cow<'static, str> {
    if duplex::is_cut(error) {
        return "the backend cut the connection, without the end that TLS has".into();
    }
    match failure::late_in_words(error) {
        Some(words) => words.into(),
        None => format!("the connection to the backend broke: {error}").into(),
    }
}

/// How the client's connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Another request may follow.
    Keep,
    /// It closes; the client gets the time to read what it was sent.
    Close,
    /// It is cut: the client is gone, or must see that its response is not whole.
    Cut,
    /// It is cut, and the client is not there to take what it has not taken.
    Abandon,
}

/// What became of a request.
pub enum Outcome {
    /// It has been answered, or there is nobody to answer.
    Ended(Ending),
    /// Nothing has been answered, and where it can be sent takes more than this forwarder can do.
    Moves(Moved),
}

/// A request that another forwarder goes on with.
pub struct Moved {
    /// Where it is sent next; the budget has paid for that.
    pub endpoint: Endpoint,
    /// Where it was sent before.
    pub tried: Vec<Endpoint>,
    /// What was read of its body, without its framing.
    pub body: BytesMut,
}

/// The connection that a try takes.
#[derive(Clone, Copy)]
struct Wanted {
    /// None that was kept.
    new: bool,
    /// The origin may not choose HTTP/2.
    http1_only: bool,
}

/// The direct forwarder.
pub struct Direct {
    lifecycle: Arc<Lifecycle>,
    connector: Connector,
}

impl Direct {
    /// A forwarder with Pingora's settings about connections.
    pub fn new(lifecycle: Arc<Lifecycle>, conf: &ServerConf) -> Self {
        Self {
            lifecycle,
            connector: Connector::new(conf),
        }
    }

    /// Whether the process is on its way out.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// Forwards `request`, which `client` has sent, and its answer. `may_move`: whether another forwarder may go on with it.
    pub async fn forward(
        &self,
        request: &Request,
        client: &mut impl ClientSide,
        record: &mut Record,
        may_move: impl Fn() -> bool,
    ) -> Outcome {
        let limits = &request.route.upstream;
        let mut upload = Upload::new(request, limits.retry_buffer);
        let mut endpoint = request.endpoint.clone();
        let mut tried: Vec<Endpoint> = Vec::new();
        let mut on_new_connection = false;
        let upgrade = request.upgrade.is_some();
        loop {
            record.backend = Some(Arc::clone(&endpoint.upstream));
            // Its series is there before its answer is, while the backend is surely known.
            endpoint.upstream.duration();
            let wanted = Wanted {
                new: on_new_connection,
                // What can't move gets HTTP/1.1 or nothing.
                http1_only: endpoint.is_tls() && (upgrade || !may_move()),
            };
            let one_try = self.try_once(request, &endpoint, wanted, client, &mut upload, record);
            let (broken, last) = match one_try.await {
                Ok(Some(ending)) => return Outcome::Ended(ending),
                Ok(None) => match upload.take_body() {
                    Some(body) => return Outcome::Moves(Moved { endpoint, tried, body }),
                    // Another try is made only while all is held.
                    None => (
                        origin(Failure::Malformed, "the backend has chosen HTTP/2 too late"),
                        None,
                    ),
                },
                Err(failed) => failed,
            };
            match last.map_or(Next::Fail, retry::next) {
                Next::Reconnect => on_new_connection = true,
                next => {
                    self.blame(&broken, &endpoint, client, request);
                    tried.push(endpoint.clone());
                    let connected = broken.failure() != Some(Failure::NotConnected);
                    let fits = |upstream: &Upstream| upstream.may_speak_http1(limits, upgrade);
                    let may_retry = next == Next::Retry && tried.len() <= limits.retries;
                    let pick = || {
                        let (pool, affinity) = (&request.route.pool, &request.affinity);
                        let other = pool.pick_again(&tried, connected, affinity, fits);
                        other.or_else(|| may_move().then(|| pool.pick_again(&tried, connected, affinity, |_| true))?)
                    };
                    record.place = Place::default();
                    let other = may_retry.then(pick).flatten();
                    let paid = other.filter(|_| request.route.pool.retries.take(limits.retry_budget, Instant::now()));
                    let Some(other) = paid else {
                        return Outcome::Ended(fail(broken, request, client, record).await);
                    };
                    endpoint = other.endpoint;
                    record.place = other.place;
                    on_new_connection = false;
                }
            }
            request.route.pool.metrics.upstream_retries.inc();
            if !endpoint.speaks_http1(limits, upgrade)
                && may_move()
                && let Some(body) = upload.take_body()
            {
                return Outcome::Moves(Moved { endpoint, tried, body });
            }
            upload.rewind();
        }
    }

    /// Sends `request` to `endpoint` once and its answer to the client. Returns nothing if the endpoint has chosen HTTP/2 and was sent
    /// nothing. When that fails, what is known for deciding over another try; nothing if the client has failed.
    async fn try_once(
        &self,
        request: &Request,
        endpoint: &Endpoint,
        wanted: Wanted,
        client: &mut impl ClientSide,
        upload: &mut Upload,
        record: &mut Record,
    ) -> Result<Option<Ending>, (Broken, Option<Try>)> {
        let Endpoint { upstream, address } = endpoint;
        let limits = &request.route.upstream;
        // A connection that the origin closes at this moment costs a request that can't be sent again a 502. One that was used a
        // moment ago is unlikely to be closed now.
        let longest = (!upload.is_repeatable(client)).then_some(limits.reuse_idle);
        let now = Instant::now();
        record.place.sent(now);
        let kept = if wanted.new {
            None
        } else {
            let fits = |stream: &OriginStream| stream.is_made_with(&limits.tls);
            upstream.kept.take(*address, fits, longest, now)
        };
        let reused = kept.is_some();
        let failed = |broken: Broken, upload: &Upload, heard, answering| {
            let last = broken.failure().map(|failure| Try {
                failure,
                reused,
                head_sent: upload.head_is_sent(),
                heard,
                answering,
                idempotent: request.idempotent,
                held: upload.is_held(),
            });
            (broken, last)
        };
        let stream = match kept {
            Some(stream) => stream,
            None => match self.connector.connect(endpoint, limits, wanted.http1_only).await {
                Ok(Connected::Http1(stream)) => stream,
                Ok(Connected::Http2) => return Ok(None),
                Err(broken) => return Err(failed(broken, upload, false, false)),
            },
        };
        let mut duplex = Duplex::new(request, stream, &self.lifecycle, client, upload, record);
        let done = poll_fn(|context| duplex.poll(context)).await;
        let (heard, answering) = (duplex.heard(), duplex.is_answering());
        match done {
            Ok(ending) => {
                if let Some(stream) = duplex.into_reusable() {
                    upstream.kept.keep(*address, stream, Instant::now());
                }
                Ok(Some(ending))
            }
            Err(broken) => {
                drop(duplex);
                Err(failed(broken, upload, heard, answering))
            }
        }
    }

    /// Records that a try has failed, unless that says nothing about the backend.
    fn blame(&self, broken: &Broken, endpoint: &Endpoint, client: &impl ClientSide, request: &Request) {
        let limits = &request.route.upstream.ejection;
        match broken {
            Broken::Client(_) => {}
            Broken::NoConnection(error) if is_shortage(error) => {}
            Broken::NoConnection(_) | Broken::NoTls(_) => request.route.pool.unreachable(endpoint, limits),
            // A client has asked for what it does not offer.
            Broken::NoHttp1(_) => {}
            // Both wait for the client, and the backend's patience has ended first.
            Broken::Origin(Failure::Closed | Failure::TimedOut, _) if client.sending().is_some() => {}
            Broken::Origin(..) => request.route.pool.failed(&endpoint.upstream, limits),
        }
    }
}

/// Ends a request that nobody will answer: answers it here, if nothing of a response has been sent.
async fn fail(broken: Broken, request: &Request, client: &mut impl ClientSide, record: &mut Record) -> Ending {
    let rejection = broken.rejection();
    let stalls = matches!(broken, Broken::Client(fault) if fault.is_stall());
    record.failed(rejection, Some(broken.into_words()));
    if record.status != 0 || rejection == Rejection::ClientGone {
        return if stalls { Ending::Abandon } else { Ending::Cut };
    }
    match answer_here(client, request, record, rejection, false).await {
        Err(_) => Ending::Cut,
        Ok(()) => Ending::Close,
    }
}
