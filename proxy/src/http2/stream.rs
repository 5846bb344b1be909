//! One request over HTTP/2 and its response: the client's side of an exchange.
//!
//! - The client's window opens as the origin takes what was read of a body, not before. So an upload that nobody takes waits at the
//!   client.
//! - `h2` gets no more of a response than the client's window has room for. What the client's connection doesn't take of that waits
//!   in memory, up to `http2.send_buffer`.
//! - Deadlines and minimum rates are those of a client of HTTP/1.1.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{FlowControl, Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use crate::http1::downstream::ClientFault;
use crate::http1::held::{Hold, stalled};
use crate::http1::names::{is_forbidden_in_trailers, is_in_token};
use crate::http1::progress::{Limits, Progress};
use crate::http1::timer::Timer;
use crate::rejection::Body as Answer;

/// How much of interim responses a client may have to take before the final one, in bytes. No window holds them up, so they would pile
/// up for a client that reads nothing. Those behind that are left out.
const MAX_INTERIM: usize = 64 << 10;

/// Longer trailers of a request are left out, as the origin would get no such head.
const MAX_TRAILERS: usize = 8 << 10;

/// What a field takes beside its name and its value, in bytes (RFC 9113, section 10.5.1).
const PER_FIELD: usize = 32;

/// The body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// More comes.
    Coming,
    /// What comes belongs to another protocol, if the origin agrees to switch, and isn't read before.
    AfterSwitch,
    /// Whatever comes belongs to that protocol.
    Tunnel,
    /// The client has sent its end.
    Ended,
}

/// A stream.
#[derive(Debug)]
pub struct Stream {
    incoming: RecvStream,
    flow: FlowControl,
    respond: SendResponse<Bytes>,
    /// Where the body of the response goes, once its head was sent.
    outgoing: Option<SendStream<Bytes>>,
    body: Body,
    /// The length that the body was announced with.
    length: Option<u64>,
    /// What has come of the body in one frame, and was not read yet.
    piece: Bytes,
    /// How much was read of the body and still counts against the client's window.
    unreleased: usize,
    body_bytes: u64,
    trailers: Vec<u8>,
    /// How much interim responses have taken.
    interim: usize,
    /// The end of the response was sent.
    finished: bool,
    /// How much of the body of the response was sent.
    sent: usize,
    /// The client has reset the stream, or its connection has ended.
    gone: bool,
    /// How its client gets on with it.
    pub progress: Progress,
    send_buffer: usize,
    /// For whatever is waited for on behalf of this stream; never for two things at a time.
    pub timer: Timer,
    /// What it makes the proxy hold.
    pub hold: Hold,
}

impl Stream {
    /// A stream whose request has come, with a body of this `length`, if that is known. `switches`: its body belongs to another
    /// protocol.
    pub fn new(
        mut incoming: RecvStream,
        respond: SendResponse<Bytes>,
        (length, switches): (Option<u64>, bool),
        limits: &Limits,
        send_buffer: usize,
        hold: Hold,
    ) -> Self {
        let flow = incoming.flow_control().clone();
        let body = match (switches, incoming.is_end_stream()) {
            (true, _) => Body::AfterSwitch,
            (false, true) => Body::Ended,
            (false, false) => Body::Coming,
        };
        Self {
            incoming,
            flow,
            respond,
            outgoing: None,
            body,
            length,
            piece: Bytes::new(),
            unreleased: 0,
            body_bytes: 0,
            trailers: Vec::new(),
            interim: 0,
            finished: false,
            sent: 0,
            gone: false,
            progress: Progress::new(limits),
            send_buffer,
            timer: Timer::default(),
            hold,
        }
    }

    /// Whether the whole body has been read. One of another protocol begins when the origin has agreed to switch.
    pub fn body_ended(&self) -> bool {
        match self.body {
            Body::Coming | Body::Tunnel => false,
            Body::AfterSwitch => true,
            Body::Ended => self.piece.is_empty(),
        }
    }

    /// How much is still to be read, if that is known.
    pub fn body_left(&self) -> Option<u64> {
        match self.body {
            Body::Coming => Some(self.length?.saturating_sub(self.body_bytes)),
            Body::AfterSwitch => Some(0),
            Body::Tunnel => None,
            Body::Ended => Some(self.piece.len() as u64),
        }
    }

    /// How much of the body has been read.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// The trailers of a body that has ended, each line with its CRLF.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Reads more of the body and appends its data to `data`, for which it has spare capacity. Ready when there is some, or the
    /// body has ended. The last frame may be empty: then there is no data, and the end.
    pub fn poll_body(&mut self, context: &mut Context<'_>, data: &mut BytesMut) -> Poll<Result<(), ClientFault>> {
        let before = data.len();
        while !self.body_ended() && data.len() == before {
            if self.piece.is_empty() {
                ready!(self.poll_piece(context))?;
            }
            let here = self.piece.len().min(data.capacity() - data.len());
            data.extend_from_slice(&self.piece[..here]);
            self.piece.advance(here);
            self.body_bytes += here as u64;
        }
        let too_large =
            self.progress.limits.max_body.is_some_and(|max| self.body_bytes > max) && self.body != Body::Tunnel;
        Poll::Ready(if too_large {
            Err(ClientFault::BodyTooLarge)
        } else {
            Ok(())
        })
    }

    /// Reads the next frame. Whoever wants it has passed on what came before.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientFault>> {
        // Without capacity to release there is nothing to be done about an error.
        let _ = self.flow.release_capacity(std::mem::take(&mut self.unreleased));
        match self.incoming.poll_data(context) {
            Poll::Pending => {
                self.progress.reading.wait();
                Poll::Pending
            }
            Poll::Ready(Some(Ok(piece))) => {
                self.unreleased = piece.len();
                let keeps = self.progress.reading.keeps(piece.len(), self.progress.limits.min_rate);
                self.piece = piece;
                if self.incoming.is_end_stream() {
                    self.body = Body::Ended;
                }
                Poll::Ready(if keeps { Ok(()) } else { Err(ClientFault::SlowToSend) })
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(self.failed(&error))),
            Poll::Ready(None) => match self.incoming.poll_trailers(context) {
                Poll::Pending => {
                    self.progress.reading.wait();
                    Poll::Pending
                }
                Poll::Ready(Ok(trailers)) => {
                    self.trailers = trailers.as_ref().map_or_else(Vec::new, to_lines);
                    self.body = Body::Ended;
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(&error))),
            },
        }
    }

    fn failed(&mut self, error: &h2::Error) -> ClientFault {
        // What `h2` itself has found, such as a body of another length than was announced.
        let broken = error.is_library() && error.is_reset();
        self.gone = true;
        if broken {
            ClientFault::BadFraming("the stream breaks a rule of HTTP/2 (RFC 9113)")
        } else {
            ClientFault::Gone
        }
    }

    /// Whether the client has reset the stream, or its connection has ended.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Sends the head of an interim response.
    pub fn inform(&mut self, response: Response<()>) {
        let size = |(name, value): (&HeaderName, &HeaderValue)| PER_FIELD + name.as_str().len() + value.len();
        self.interim += PER_FIELD + response.headers().iter().map(size).sum::<usize>();
        if self.interim > MAX_INTERIM {
            return;
        }
        // If the client is gone, the next read or write says so.
        let _ = self.respond.send_informational(response);
    }

    /// Sends the head of the final response; `ends`: there is nothing more.
    pub fn begin(&mut self, response: Response<()>, ends: bool) {
        self.outgoing = self.respond.send_response(response, ends).ok();
        self.finished = ends;
    }

    /// Sends a whole response of the proxy's own, and waits for nothing.
    ///
    /// # Errors
    /// When the client is gone.
    pub fn respond(&mut self, response: Response<()>, body: Option<&Answer<'_>>) -> Result<(), ClientFault> {
        respond(&mut self.respond, response, body)?;
        self.finished = true;
        Ok(())
    }

    /// Sends some of `head` and, behind it, of `body`, which are data both; returns how many bytes. `last`: nothing follows.
    pub fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        body: &[u8],
        last: bool,
    ) -> Poll<Result<usize, ClientFault>> {
        let all = head.len() + body.len();
        let Some(outgoing) = &mut self.outgoing else {
            self.gone = true;
            return Poll::Ready(Err(ClientFault::Gone));
        };
        outgoing.reserve_capacity(all);
        while outgoing.capacity() == 0 {
            match outgoing.poll_capacity(context) {
                Poll::Pending => {
                    self.progress.writing.wait();
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => {
                    self.gone = true;
                    return Poll::Ready(Err(ClientFault::Gone));
                }
            }
        }
        let taken = all.min(outgoing.capacity());
        let of_head = taken.min(head.len());
        let mut data = BytesMut::with_capacity(taken);
        data.extend_from_slice(&head[..of_head]);
        data.extend_from_slice(&body[..taken - of_head]);
        let ends = last && taken == all;
        if outgoing.send_data(data.freeze(), ends).is_err() {
            self.gone = true;
            return Poll::Ready(Err(ClientFault::Gone));
        }
        self.finished |= ends;
        self.sent += taken;
        if !self.progress.writing.keeps(taken, self.progress.limits.min_rate) {
            return Poll::Ready(Err(ClientFault::SlowToRead));
        }
        Poll::Ready(Ok(taken))
    }

    /// Ends the response, with these trailers, each a line with its CRLF.
    pub fn end(&mut self, trailers: &[u8]) {
        if let Some(outgoing) = self.outgoing.as_mut().filter(|_| !self.finished) {
            self.finished = true;
            // If the client is gone, there is nobody to tell.
            let _ = if trailers.is_empty() {
                outgoing.send_data(Bytes::new(), true)
            } else {
                outgoing.send_trailers(fields(trailers))
            };
        }
    }

    /// Gives up the response, so that the client sees that it isn't whole.
    pub fn reset(mut self, reason: Reason) {
        if !self.finished {
            self.respond.send_reset(reason);
        }
    }

    /// From now on whatever comes belongs to another protocol.
    pub fn switch(&mut self) {
        self.body = Body::Tunnel;
        self.progress.both_talk();
    }

    /// Ready when the client has reset the stream, or its connection has ended.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let reset = match &mut self.outgoing {
            Some(outgoing) => outgoing.poll_reset(context),
            None => self.respond.poll_reset(context),
        };
        self.gone |= reset.is_ready();
        reset.map(drop)
    }

    /// What it takes in memory beside what its forwarder holds, in bytes.
    pub fn held(&self) -> usize {
        let coming = if self.body == Body::Ended {
            0
        } else {
            self.flow.used_capacity()
        };
        let unsent = if self.progress.writing.waits_since().is_some() {
            self.sent.min(self.send_buffer)
        } else {
            0
        };
        self.piece.len() + coming + unsent
    }

    /// What an upload takes that its origin doesn't take, beside what its forwarder holds, in bytes.
    pub fn stalled(&self) -> usize {
        stalled(self.body_bytes, Some(0), 0)
    }
}

/// Answers a request with a whole response of the proxy's own, and waits for nothing: the body is short, or one that all clients share,
/// so that it may wait for the client's window.
///
/// # Errors
/// When the client is gone.
pub fn respond(
    respond: &mut SendResponse<Bytes>,
    response: Response<()>,
    body: Option<&Answer<'_>>,
) -> Result<(), ClientFault> {
    let gone = |_| ClientFault::Gone;
    let pieces = body.map_or_else(Vec::new, Answer::pieces);
    let mut outgoing = respond.send_response(response, pieces.is_empty()).map_err(gone)?;
    let last = pieces.len();
    for (number, piece) in (1..).zip(pieces) {
        outgoing.send_data(piece, number == last).map_err(gone)?;
    }
    Ok(())
}

/// The trailers that may be passed on, each as a line with its CRLF; none, if they are too long.
pub fn to_lines(trailers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        // The library takes a quotation mark for a part of a name.
        if name.as_str().bytes().all(is_in_token) && !is_forbidden_in_trailers(name.as_str()) {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
    }
    if lines.len() > MAX_TRAILERS {
        lines.clear();
    }
    lines
}

/// The fields in `lines`, each of which ends with CRLF.
fn fields(lines: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        if let (Some(name), Some(value)) = (parts.next(), parts.next())
            && let Ok(name) = HeaderName::from_bytes(name)
            && let Ok(value) = HeaderValue::from_bytes(value.trim_ascii())
        {
            fields.append(name, value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_are_the_same_as_lines_and_as_fields_but_for_those_that_no_trailer_may_be() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [
            ("grpc-status", "0"),
            ("x-sum", "a: b"),
            ("host", "evil"),
            ("x-forwarded-for", "1.1.1.1"),
        ] {
            trailers.append(name, HeaderValue::from_static(value));
        }
        // One that the library takes from the wire.
        let odd = HeaderName::from_lowercase(b"x\"a").unwrap();
        trailers.append(odd.clone(), HeaderValue::from_static("no token"));
        let text = to_lines(&trailers);
        assert_eq!(text, b"grpc-status: 0\r\nx-sum: a: b\r\n");
        trailers.remove(odd);
        trailers.remove("host");
        trailers.remove("x-forwarded-for");
        assert_eq!(fields(&text), trailers);
        trailers.insert("x-long", HeaderValue::from_bytes(&[b'x'; MAX_TRAILERS]).unwrap());
        assert_eq!(to_lines(&trailers), b"");
    }
}
