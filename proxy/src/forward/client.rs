//! The client's side of an exchange, as forwarders see it.
//!
//! A forwarder reads the body of the request and writes the response through [`ClientSide`], and does not know which version of HTTP
//! the client speaks. Forwarders are generic over it, so that a request over HTTP/1.1 costs no dynamic calls. [`Client`] is either
//! version, for the way through Pingora's hooks.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::exchange::record::Record;
use crate::exchange::request::Request;
use crate::headers::origin_response::{Delivery as HeadDelivery, Framing, ResponseHead};
use crate::http1::downstream::{ClientFault, Downstream};
use crate::http1::held::{Hold, SENDING, stalled};
use crate::http1::progress::Progress;
use crate::http1::timer::Timer;
use crate::http2::stream::Stream;
use crate::rejection::{Body, Delivery, Form, Rejection};

/// A client, by the version of HTTP that it speaks.
#[derive(Debug)]
pub enum Client {
    /// HTTP/1.1 or HTTP/1.0.
    Http1(Box<Downstream>),
    /// A stream of HTTP/2.
    Http2(Box<Stream>),
}

impl Client {
    /// The status of the response that switches to another protocol.
    pub fn switched(&self) -> u16 {
        match self {
            Self::Http1(_) => Downstream::SWITCHED,
            Self::Http2(_) => Stream::SWITCHED,
        }
    }
}

/// One client's request and its response.
///
/// What is written goes out in this order: heads of interim responses, the head of the final one, its body, its end.
pub trait ClientSide: Send + Sync + Unpin + Sized + 'static {
    /// The status of the response that switches to another protocol.
    const SWITCHED: u16;

    /// The client as it travels.
    fn into_client(self: Box<Self>) -> Client;

    /// The client after that, if it speaks this version.
    fn from_client(client: Client) -> Option<Box<Self>>;

    /// Whether the whole body of the request has been read.
    fn body_ended(&self) -> bool;

    /// How much of it is still to be read, if that is known.
    fn body_left(&self) -> Option<u64>;

    /// How much of it has been read.
    fn body_bytes(&self) -> u64;

    /// The trailers of a body that has ended, each line with its CRLF.
    fn trailers(&self) -> &[u8];

    /// Reads more of the body and appends its data to `data`, for which it has spare capacity. Ready when there is some, or the
    /// body has ended.
    fn poll_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Poll<Result<(), ClientFault>>;

    /// Whether [`ClientSide::received_body`] may have something.
    fn has_received(&self) -> bool;

    /// Moves what has been received of the body to `data`, as far as that has spare capacity, and waits for nothing.
    ///
    /// # Errors
    /// When the client is at fault.
    fn received_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Result<(), ClientFault>;

    /// The connection, and how much of the body is to come on it, where the body comes as it is and none of it waits to be read here. What
    /// is taken from it directly is noted by [`ClientSide::came`].
    fn plain_body(&self) -> Option<(&TcpStream, u64)> {
        None
    }

    /// Notes that `count` bytes of the body have come.
    ///
    /// # Errors
    /// When the client is at fault.
    fn came(&mut self, _count: usize) -> Result<(), ClientFault> {
        Ok(())
    }

    /// Appends the head of a response to `out`, if bytes are what the client gets it in. Returns the framing of its body, which the
    /// caller adds: none for a client that frames by itself.
    fn write_head(&mut self, head: &ResponseHead<'_>, delivery: &HeadDelivery<'_>, out: &mut BytesMut) -> Framing;

    /// Sends some of `head` and, behind it, of `body`; returns how many bytes. `last`: nothing follows them, and no trailers.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        last: bool,
    ) -> Poll<Result<usize, ClientFault>>;

    /// The connection, where the client gets bytes as they are. What is sent on it directly is noted by [`ClientSide::sent`].
    fn plain(&self) -> Option<&TcpStream> {
        None
    }

    /// Notes that the client has taken `count` bytes of the response.
    ///
    /// # Errors
    /// When it is too slow.
    fn sent(&mut self, _count: usize) -> Result<(), ClientFault> {
        Ok(())
    }

    /// The response has ended, with these trailers. In HTTP/1.1 its framing has said so.
    fn end(&mut self, trailers: &[u8]);

    /// Tells the client of a tunnel that it will be sent nothing more, though it may go on sending. Ready when it is told, or gone.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<()>;

    /// Ready when the client of a tunnel is gone after it has ended its half. Over HTTP/1.1 only a write can tell.
    fn poll_left(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Answers the request with a rejection, of which the client reads `body`.
    fn reject(
        &mut self,
        rejection: Rejection,
        body: &Body<'_>,
        delivery: Delivery,
    ) -> impl Future<Output = Result<(), ClientFault>> + Send;

    /// From now on whatever comes belongs to another protocol.
    fn switch(&mut self);

    /// From now on the client is answered while it sends, so that how fast it does may depend on the answer.
    fn both_talk(&mut self) {
        self.progress_mut().both_talk();
    }

    /// The client is not waited for, whatever it was asked before.
    fn excuse_sending(&mut self) {
        self.progress_mut().reading.excuse();
    }

    /// Since when the client is waited for to send more of its body, and for how long it may be.
    fn sending(&self) -> Option<(Instant, Duration)> {
        self.progress().sending()
    }

    /// Since when the client is waited for to take more of the response, and for how long it may be.
    fn taking(&self) -> Option<(Instant, Duration)> {
        self.progress().taking()
    }

    /// Ready when the client has gone away. For a request whose body has ended.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()>;

    /// Whether the client has gone away, for one that is not read from while its request waits.
    fn has_closed(&mut self, context: &mut Context<'_>) -> bool;

    /// Whether more has come than the request, and may be the next or belong to another protocol.
    fn has_more(&self) -> bool;

    /// What it takes in memory beside what its forwarder holds, in bytes.
    fn held(&self) -> usize;

    /// What an upload takes that its origin doesn't take, beside what its forwarder holds, in bytes.
    fn stalled(&self) -> usize;

    /// How it gets on with this request.
    fn progress(&self) -> &Progress;

    /// The same, to be changed.
    fn progress_mut(&mut self) -> &mut Progress;

    /// What it makes the proxy hold.
    fn hold(&mut self) -> &mut Hold;

    /// For whatever is waited for on behalf of this client; never for two things at a time.
    fn timer(&mut self) -> &mut Timer;

    /// Whether nobody can tell if what comes after a response is another request. `continues`: the client has been told to send its
    /// body, or has begun without that.
    ///
    /// A client that waits for "100 Continue" sends no body after the response, but its next request; or it does send it. What came
    /// behind a handshake that was not accepted is another protocol's, or a request.
    fn leaves_doubt(&self, request: &Request, continues: bool) -> bool {
        (request.expects && !continues && !self.body_ended()) || (request.upgrade.is_some() && self.has_more())
    }

    /// Ready when the client has been waited for too long.
    fn poll_slow(&mut self, context: &mut Context<'_>) -> Poll<ClientFault> {
        let waits = [
            (self.sending(), ClientFault::SlowToSend),
            (self.taking(), ClientFault::SlowToRead),
        ];
        let waits = waits.into_iter().filter_map(|(wait, fault)| Some((wait?, fault)));
        match waits.min_by_key(|((since, limit), _)| *since + *limit) {
            Some(((since, limit), fault)) => self.timer().poll(context, since, limit).map(|()| fault),
            None => Poll::Pending,
        }
    }

    /// Writes all of `bytes`, within the deadlines of a response. `last`: nothing follows them, and no trailers. `beside`: so many bytes are
    /// held for the response beside them.
    ///
    /// # Errors
    /// When the client is gone, or too slow.
    fn write_all(
        &mut self,
        mut bytes: &[u8],
        last: bool,
        beside: usize,
    ) -> impl Future<Output = Result<(), ClientFault>> + Send {
        poll_fn(move |context| {
            while !bytes.is_empty() {
                let Poll::Ready(written) = self.poll_write(context, bytes, b"", last) else {
                    let held = bytes.len() + beside + self.held() + SENDING;
                    if self.hold().poll(context, held, false).is_ready() {
                        return Poll::Ready(Err(ClientFault::HeldTooMuch));
                    }
                    return self.poll_slow(context).map(Err);
                };
                bytes = &bytes[written?..];
            }
            self.hold().release();
            Poll::Ready(Ok(()))
        })
    }
}

/// Answers `request` with a rejection, and notes that in `record`. `keeps`: another request may follow.
///
/// # Errors
/// When the client is gone.
pub async fn answer_here(
    client: &mut impl ClientSide,
    request: &Request,
    record: &mut Record,
    rejection: Rejection,
    keeps: bool,
) -> Result<(), ClientFault> {
    let delivery = Delivery {
        keeps,
        head_only: request.to_head,
        form: request.form(),
    };
    let pages = &request.policy.error_pages;
    let body = pages.body(rejection, delivery.form, record.id.as_str());
    let length = body.length();
    client.reject(rejection, &body, delivery).await?;
    record.answered_here(rejection, delivery, length);
    Ok(())
}

impl ClientSide for Downstream {
    const SWITCHED: u16 = 101;

    fn into_client(self: Box<Self>) -> Client {
        Client::Http1(self)
    }

    fn from_client(client: Client) -> Option<Box<Self>> {
        match client {
            Client::Http1(client) => Some(client),
            Client::Http2(_) => None,
        }
    }

    fn body_ended(&self) -> bool {
        self.body().ended()
    }

    fn body_left(&self) -> Option<u64> {
        self.body().left()
    }

    fn body_bytes(&self) -> u64 {
        self.body_bytes()
    }

    fn trailers(&self) -> &[u8] {
        self.trailers()
    }

    fn poll_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Poll<Result<(), ClientFault>> {
        self.poll_body(context, data)
    }

    fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    fn received_body(&mut self, _context: &mut Context<'_>, data: &mut BytesMut) -> Result<(), ClientFault> {
        self.received_body(data)
    }

    fn plain_body(&self) -> Option<(&TcpStream, u64)> {
        Self::plain_body(self)
    }

    fn came(&mut self, count: usize) -> Result<(), ClientFault> {
        Self::came(self, count)
    }

    fn write_head(&mut self, head: &ResponseHead<'_>, delivery: &HeadDelivery<'_>, out: &mut BytesMut) -> Framing {
        let framing = head.write(delivery, out);
        self.begin_response(!delivery.keeps, framing == Framing::Close);
        framing
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        last: bool,
    ) -> Poll<Result<usize, ClientFault>> {
        self.poll_write(context, head, body, last)
    }

    fn plain(&self) -> Option<&TcpStream> {
        Self::plain(self)
    }

    fn sent(&mut self, count: usize) -> Result<(), ClientFault> {
        Self::sent(self, count)
    }

    fn end(&mut self, _trailers: &[u8]) {
        self.end_response();
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_finish(context)
    }

    async fn reject(&mut self, rejection: Rejection, body: &Body<'_>, delivery: Delivery) -> Result<(), ClientFault> {
        self.write_all(&rejection.answer(body, delivery), true, 0).await
    }

    fn switch(&mut self) {
        self.switch();
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_gone(context)
    }

    fn has_closed(&mut self, _context: &mut Context<'_>) -> bool {
        Self::has_closed(self)
    }

    fn has_more(&self) -> bool {
        !self.received.is_empty()
    }

    fn held(&self) -> usize {
        self.received.capacity()
    }

    fn stalled(&self) -> usize {
        // What a client goes on to send when nobody reads it makes the kernel double that.
        stalled(self.body_bytes(), self.body().left(), 2 * self.receive_buffer())
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn hold(&mut self) -> &mut Hold {
        &mut self.hold
    }

    fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }
}

impl ClientSide for Stream {
    const SWITCHED: u16 = 200;

    fn into_client(self: Box<Self>) -> Client {
        Client::Http2(self)
    }

    fn from_client(client: Client) -> Option<Box<Self>> {
        match client {
            Client::Http2(client) => Some(client),
            Client::Http1(_) => None,
        }
    }

    fn body_ended(&self) -> bool {
        self.body_ended()
    }

    fn body_left(&self) -> Option<u64> {
        self.body_left()
    }

    fn body_bytes(&self) -> u64 {
        self.body_bytes()
    }

    fn trailers(&self) -> &[u8] {
        self.trailers()
    }

    fn poll_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Poll<Result<(), ClientFault>> {
        self.poll_body(context, data)
    }

    fn has_received(&self) -> bool {
        true
    }

    fn received_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Result<(), ClientFault> {
        match self.poll_body(context, data) {
            Poll::Ready(read) => read,
            Poll::Pending => Ok(()),
        }
    }

    fn write_head(&mut self, head: &ResponseHead<'_>, delivery: &HeadDelivery<'_>, _out: &mut BytesMut) -> Framing {
        let response = head.to_http2(delivery);
        match (head.status, head.framing) {
            (101, _) => self.begin(response, false),
            (..200, _) => self.inform(response),
            (_, Framing::None | Framing::Length(0)) => self.begin(response, true),
            (_, _) => self.begin(response, false),
        }
        match head.framing {
            Framing::Chunked => Framing::Close,
            framing => framing,
        }
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        last: bool,
    ) -> Poll<Result<usize, ClientFault>> {
        self.poll_write(context, head, body, last)
    }

    fn end(&mut self, trailers: &[u8]) {
        self.end(trailers);
    }

    fn poll_finish(&mut self, _context: &mut Context<'_>) -> Poll<()> {
        self.end(b"");
        Poll::Ready(())
    }

    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_gone(context)
    }

    async fn reject(&mut self, rejection: Rejection, body: &Body<'_>, delivery: Delivery) -> Result<(), ClientFault> {
        if delivery.form == Form::Grpc {
            return self.respond(rejection.grpc_response(None), None);
        }
        self.respond(rejection.response(body), (!delivery.head_only).then_some(body))
    }

    fn switch(&mut self) {
        self.switch();
    }

    fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.poll_gone(context)
    }

    fn has_closed(&mut self, context: &mut Context<'_>) -> bool {
        self.poll_gone(context).is_ready()
    }

    /// Each request has a stream of its own.
    fn has_more(&self) -> bool {
        false
    }

    fn held(&self) -> usize {
        self.held()
    }

    fn stalled(&self) -> usize {
        self.stalled()
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }

    fn progress_mut(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn hold(&mut self) -> &mut Hold {
        &mut self.hold
    }

    fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }
}
