//! Forwards a request over HTTP/1.1 on a connection of our own.
//!
//! - `upload`: the request and its body, on the way to the origin.
//! - `duplex`: one try: both bodies at once.
//! - `coming`: the body of its response, as the origin delimits it.
//! - `tunnel`: a try that has switched to another protocol.
//! - `waits`: the deadlines of both ends of a try, and what it holds.
//!
//! Here is what is around a try: which endpoint, which connection, whose fault a failure is, and whether another try follows.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use chassis::listener::UNSENT;
use chassis::shortage::is_shortage;
use pingora::server::configuration::ServerConf;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::exchange::retry::{self, Failure, Next, Try};
use crate::forward::client::ClientSide;
use crate::http1::downstream::ClientFault;
use crate::lifecycle::Lifecycle;
use crate::observe::metrics::Metrics;
use crate::pool::balance::place::Place;
use crate::pool::endpoint::{Endpoint, Upstream};
use crate::pool::retry_budget::RetryBudget;
use crate::rejection::{Delivery, Rejection};

mod coming;
mod duplex;
mod tunnel;
mod upload;
mod waits;

use duplex::Duplex;
use upload::Upload;

/// Why a try ended before its response did.
#[derive(Debug)]
enum Broken {
    /// The client's doing.
    Client(ClientFault),
    /// There was no connection to the origin.
    NoConnection(io::Error),
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
        Self::Origin(
            Failure::Closed,
            format!("the connection to the backend broke: {error}").into(),
        )
    }

    fn failure(&self) -> Option<Failure> {
        match self {
            Self::Client(_) => None,
            Self::NoConnection(_) => Some(Failure::NotConnected),
            Self::Origin(failure, _) => Some(*failure),
        }
    }

    fn rejection(&self) -> Rejection {
        match self {
            Self::Client(fault) => fault.rejection(),
            Self::NoConnection(error) if error.kind() == io::ErrorKind::TimedOut => Rejection::BackendTimeout,
            Self::Origin(Failure::TimedOut, _) => Rejection::BackendTimeout,
            Self::NoConnection(_) | Self::Origin(..) => Rejection::BackendFailed,
        }
    }

    fn into_words(self) -> Cow<'static, str> {
        match self {
            Self::Client(fault) => fault.to_string().into(),
            Self::NoConnection(error) => format!("no connection to the backend: {error}").into(),
            Self::Origin(_, error) => error,
        }
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
    /// Nothing has been answered, and where it can be sent again takes more than this forwarder can do.
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

/// The direct forwarder.
pub struct Direct {
    budget: Arc<RetryBudget>,
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    /// The addresses of this machine that connections may come from; any, if there are none.
    from: Vec<IpAddr>,
}

impl Direct {
    /// A forwarder with Pingora's settings about connections.
    pub fn new(budget: Arc<RetryBudget>, lifecycle: Arc<Lifecycle>, metrics: Arc<Metrics>, conf: &ServerConf) -> Self {
        let from = conf.client_bind_to_ipv4.iter().chain(&conf.client_bind_to_ipv6);
        Self {
            budget,
            lifecycle,
            metrics,
            // Each was parsed as an address when the configuration was read.
            from: from.filter_map(|address| address.parse().ok()).collect(),
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
        loop {
            record.backend = Some(Arc::clone(&endpoint.upstream));
            // Its series is there before its answer is, while the backend is surely known.
            endpoint.upstream.duration(&self.metrics);
            let one_try = self.try_once(request, &endpoint, on_new_connection, client, &mut upload, record);
            let (broken, last) = match one_try.await {
                Ok(ending) => return Outcome::Ended(ending),
                Err(failed) => failed,
            };
            match last.map_or(Next::Fail, retry::next) {
                Next::Reconnect => on_new_connection = true,
                next => {
                    self.blame(&broken, &endpoint, client, request);
                    tried.push(endpoint.clone());
                    let connected = !matches!(broken, Broken::NoConnection(_));
                    let fits = |upstream: &Upstream| upstream.is_plain(limits, request.upgrade.is_some());
                    let may_retry = next == Next::Retry && tried.len() <= limits.retries;
                    let pick = || {
                        let (pool, affinity) = (&request.route.pool, &request.affinity);
                        let other = pool.pick_again(&tried, connected, affinity, fits);
                        other.or_else(|| may_move().then(|| pool.pick_again(&tried, connected, affinity, |_| true))?)
                    };
                    record.place = Place::default();
                    let other = may_retry.then(pick).flatten();
                    let paid = other.filter(|_| self.budget.take(limits.retry_budget, Instant::now()));
                    let Some(other) = paid else {
                        return Outcome::Ended(fail(broken, request, client, record).await);
                    };
                    endpoint = other.endpoint;
                    record.place = other.place;
                    on_new_connection = false;
                    if !fits(&endpoint.upstream)
                        && let Some(body) = upload.take_body()
                    {
                        return Outcome::Moves(Moved { endpoint, tried, body });
                    }
                }
            }
            self.metrics.upstream_retries.inc();
            upload.rewind();
        }
    }

    /// Sends `request` to `endpoint` once and its answer to the client. When that fails, what is known for deciding over another
    /// try; nothing if the client has failed.
    async fn try_once(
        &self,
        request: &Request,
        endpoint: &Endpoint,
        on_new_connection: bool,
        client: &mut impl ClientSide,
        upload: &mut Upload,
        record: &mut Record,
    ) -> Result<Ending, (Broken, Option<Try>)> {
        let Endpoint { upstream, address } = endpoint;
        let limits = &request.route.upstream;
        // A connection that the origin closes at this moment costs a request that can't be sent again a 502. One that was used a
        // moment ago is unlikely to be closed now.
        let longest = (!upload.is_repeatable(client)).then_some(limits.reuse_idle);
        let kept = if on_new_connection {
            None
        } else {
            upstream.kept.take(*address, longest, Instant::now())
        };
        let reused = kept.is_some();
        let stream = match kept {
            Some(stream) => Ok(stream),
            None => self.connect(*address, limits.connect_timeout).await,
        };
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
        let stream = stream.map_err(|error| failed(Broken::NoConnection(error), upload, false, false))?;
        let mut duplex = Duplex::new(request, stream, &self.lifecycle, client, upload, record);
        let done = poll_fn(|context| duplex.poll(context)).await;
        let (heard, answering) = (duplex.heard(), duplex.is_answering());
        match done {
            Ok(ending) => {
                if let Some(stream) = duplex.into_reusable() {
                    upstream.kept.keep(*address, stream, Instant::now());
                }
                Ok(ending)
            }
            Err(broken) => {
                drop(duplex);
                Err(failed(broken, upload, heard, answering))
            }
        }
    }

    async fn connect(&self, address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let connect = async {
            let of_family: Vec<_> = self
                .from
                .iter()
                .filter(|from| from.is_ipv4() == address.is_ipv4())
                .collect();
            if of_family.is_empty() {
                return TcpStream::connect(address).await;
            }
            let from = of_family[fastrand::usize(..of_family.len())];
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            socket.bind(SocketAddr::new(*from, 0))?;
            socket.connect(address).await
        };
        let stream = timeout(limit, connect)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "not within upstream.connect_timeout"))??;
        stream.set_nodelay(true)?;
        // As towards clients, so that an origin that takes nothing makes the kernel hold no more.
        SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
        Ok(stream)
    }

    /// Records that a try has failed, unless that says nothing about the backend.
    fn blame(&self, broken: &Broken, endpoint: &Endpoint, client: &impl ClientSide, request: &Request) {
        let limits = &request.route.upstream.ejection;
        match broken {
            Broken::Client(_) => {}
            Broken::NoConnection(error) if is_shortage(error) => {}
            Broken::NoConnection(_) => request.route.pool.unreachable(endpoint, limits),
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
    let delivery = Delivery {
        keeps: false,
        head_only: request.to_head,
        form: request.form(),
    };
    let pages = &request.policy.error_pages;
    let body = pages.body(rejection, delivery.form, record.id.as_str());
    let length = body.length();
    if client.reject(rejection, &body, delivery).await.is_err() {
        return Ending::Cut;
    }
    record.answered_here(rejection, delivery, length);
    Ending::Close
}
