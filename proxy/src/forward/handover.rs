//! What travels beside a request through Pingora, which gives no session back: its exchange and its client, in a task-local
//! [`Handover`].

use std::cell::Cell;
use std::sync::Arc;

use bytes::BytesMut;
use pingora::protocols::http::ServerSession;

use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::forward::client::Client;
use crate::forward::direct::Ending;
use crate::http1::downstream::ClientFault;
use crate::lifecycle::Lifecycle;
use crate::pool::balance::Picked;
use crate::pool::endpoint::Endpoint;

tokio::task_local! {
    /// What is handed to Pingora's hooks with a request, and handed back.
    pub static HANDOVER: Handover;
}

/// An exchange and its client, while Pingora has the request.
#[derive(Default)]
pub struct Handover {
    exchange: Cell<Option<Box<Exchange>>>,
    client: Cell<Option<(Client, Ending)>>,
    /// What the session goes on with.
    left: Cell<Option<Box<Left>>>,
    /// The cookie that the response gets.
    cookie: Cell<Option<String>>,
}

/// A request that the direct forwarder leaves to Pingora.
pub struct Left {
    /// Who has sent it.
    pub client: Client,
    /// What was read of its body.
    pub first: BytesMut,
    /// The request.
    pub request: Request,
    /// Whether the process is on its way out.
    pub lifecycle: Arc<Lifecycle>,
}

impl Handover {
    /// Of `exchange`, to the hooks.
    pub fn new(exchange: Box<Exchange>) -> Self {
        Self {
            exchange: Cell::new(Some(exchange)),
            ..Self::default()
        }
    }

    /// Takes the exchange, at the other end.
    pub fn take() -> Option<Box<Exchange>> {
        HANDOVER.try_with(|handover| handover.exchange.take()).ok().flatten()
    }

    /// Hands the client back, and says how its connection goes on.
    pub fn give_back(client: Client, ending: Ending) {
        // Without a scope there is nobody to take it, so it is closed.
        let _ = HANDOVER.try_with(|handover| handover.client.set(Some((client, ending))));
    }

    /// Has `session` forward a request that was the direct forwarder's.
    pub fn leave(session: &mut ServerSession, left: Left) {
        let _ = HANDOVER.try_with(|handover| handover.left.set(Some(Box::new(left))));
        session.enable_retry_buffering();
    }

    /// Takes the request that was left to the session, if one was.
    pub fn left() -> Option<Left> {
        let left = HANDOVER.try_with(|handover| handover.left.take());
        left.ok().flatten().map(|left| *left)
    }

    /// Has the session write this cookie with the response.
    pub fn keep_cookie(cookie: Option<String>) {
        let _ = HANDOVER.try_with(|handover| handover.cookie.set(cookie));
    }

    /// Takes the cookie, in the session.
    pub fn cookie() -> Option<String> {
        HANDOVER.try_with(|handover| handover.cookie.take()).ok().flatten()
    }

    /// Takes the client that was handed back.
    pub fn client() -> Option<(Client, Ending)> {
        HANDOVER.try_with(|handover| handover.client.take()).ok().flatten()
    }
}

/// What Pingora's upstream half has tried for a request.
#[derive(Default)]
pub struct Tries {
    /// How many tries there were.
    pub count: usize,
    /// Where it was sent last; `None` before the first try.
    pub endpoint: Option<Endpoint>,
    /// Where it is sent next, if that isn't where it was sent last.
    pub next: Option<Picked>,
    /// What is not to be tried again.
    pub failed: Vec<Endpoint>,
    /// The last try had a connection.
    pub connected: bool,
    /// The last try was on a kept connection that the backend had closed.
    pub stale: bool,
    /// A backend has said over HTTP/2 that it did not act on the request.
    pub refused: bool,
    /// A piece of the body was sent in this try, so its head was too.
    pub body_sent: bool,
    /// The head of a response came in this try, of an interim one perhaps.
    pub heard: bool,
}

/// A request, its client and its record, on the way through Pingora's hooks.
pub struct Exchange {
    /// The request.
    pub request: Request,
    /// What becomes of it.
    pub record: Record,
    /// The client, unless the session has it.
    pub client: Option<Client>,
    /// The status of the response with which it switches to another protocol.
    pub switched: u16,
    /// What is wrong with what has come of the request's body, if anything is, and the session has the client.
    pub fault: Option<ClientFault>,
    /// What Pingora has tried, if it forwards.
    pub tries: Tries,
}

impl Exchange {
    /// Of `request`, which `client` has sent. Boxed once, because it is handed on several times, and is large.
    pub fn new(request: Request, record: Record, client: Client) -> Box<Self> {
        Box::new(Self {
            request,
            record,
            switched: client.switched(),
            client: Some(client),
            fault: None,
            tries: Tries::default(),
        })
    }

    /// Where it is sent now: where it was found to go next, or else where it was sent last.
    pub fn next_endpoint(&mut self) -> Endpoint {
        match (self.tries.next.take(), self.tries.endpoint.take()) {
            (Some(Picked { endpoint, place }), _) => {
                self.record.place = place;
                endpoint
            }
            (None, Some(last)) => last,
            (None, None) => self.request.endpoint.clone(),
        }
    }
}
