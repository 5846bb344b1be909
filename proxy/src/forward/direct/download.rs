//! The body of a response on its way to the client: as the origin frames it, then compressed if need be, then as the client gets it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;

use super::Broken;
use super::coming::Coming;
use super::duplex::{Duplex, origin};
use crate::compression::encoder::{Encoder, Then};
use crate::exchange::retry::Failure;
use crate::forward::client::ClientSide;
use crate::headers::origin_response::trailers_of_compressed;
use crate::http1::chunked::{BadFraming, write_chunk, write_data, write_last};
use crate::http1::downstream::ClientFault;
use crate::http1::scratch::Scratch;
use crate::http1::splice::{self, poll_splice};
use crate::pool::stream::OriginStream;

/// A response whose head has been sent to the client.
pub(super) struct Response {
    pub(super) coming: Coming,
    /// What compresses it.
    pub(super) encoder: Option<Box<Encoder>>,
    /// The client gets it in chunks.
    pub(super) chunked: bool,
    /// The origin's connection can be used again once the response has ended.
    pub(super) reusable: bool,
    pub(super) keeps: bool,
}

impl Response {
    /// The trailers that the client gets.
    pub(super) fn trailers(&self) -> Cow<'_, [u8]> {
        match self.coming.trailers() {
            trailers if self.encoder.is_some() => trailers_of_compressed(trailers).into(),
            trailers => trailers.into(),
        }
    }
}

impl<C: ClientSide> Duplex<'_, C> {
    /// What it means that the origin has closed its half; `whole`: and has said so, where it speaks TLS.
    pub(super) fn origin_closed(&mut self, whole: bool) -> Result<(), Broken> {
        match &mut self.response {
            Some(Response {
                coming: Coming::Close { closed },
                encoder,
                chunked,
                ..
            }) if whole => {
                *closed = true;
                if let Some(encoder) = encoder {
                    self.record.bytes += encoder.write(b"", Then::End, *chunked, &mut self.pending) as u64;
                }
                if *chunked {
                    write_last(&mut self.pending, b"");
                }
                self.pending_size = self.pending.capacity();
                Ok(())
            }
            Some(_) => Err(origin(
                Failure::Closed,
                "the backend closed the connection in the middle of a response",
            )),
            None => Err(match &self.send_error {
                Some(error) => Broken::closed(error),
                None => origin(Failure::Closed, "the backend closed the connection before a response"),
            }),
        }
    }

    /// Passes on what an encoder holds back, because more may not come for long.
    pub(super) fn flush_encoder(&mut self, context: &mut Context<'_>) -> Result<(), ClientFault> {
        let Some(Response {
            encoder: Some(encoder),
            chunked,
            ..
        }) = &mut self.response
        else {
            return Ok(());
        };
        if !encoder.holds_back() {
            return Ok(());
        }
        let mut out = Scratch::take();
        self.record.bytes += encoder.write(b"", Then::Flush, *chunked, &mut out) as u64;
        self.send(context, out, b"")
    }

    /// Has the kernel move some of the body, if the client gets it as it comes and there is much of it. Ready with whether it has.
    pub(super) fn poll_splice(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        let (
            Some(Response {
                coming: Coming::Length(left @ splice::WORTHWHILE..),
                encoder: None,
                ..
            }),
            OriginStream::Plain(origin),
            Some(client),
        ) = (&mut self.response, &self.origin, self.client.plain())
        else {
            return Poll::Ready(Ok(false));
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX);
        let moved = ready!(poll_splice(origin, client, most, context)).map_err(|error| Broken::closed(&error))?;
        let Some(moved) = moved else {
            return Poll::Ready(Ok(false));
        };
        *left -= moved.came as u64;
        self.says_since = None;
        self.record.bytes += moved.came as u64;
        self.pending_size = moved.left.capacity();
        self.pending = moved.left;
        self.client.sent(moved.sent)?;
        Poll::Ready(Ok(true))
    }

    /// Passes on `bytes` of the body, behind what is in `out`.
    pub(super) fn body(&mut self, context: &mut Context<'_>, bytes: &[u8], mut out: Scratch) -> Result<(), Broken> {
        let Some(response) = &mut self.response else {
            return Ok(());
        };
        if response.encoder.is_some() {
            return self.compress(context, bytes, out);
        }
        let (mut taken, mut as_they_are) = (bytes.len(), &b""[..]);
        let mut broken = None;
        let data = match &mut response.coming {
            Coming::Length(left) => {
                as_they_are = up_to(left, bytes);
                taken = as_they_are.len();
                taken
            }
            Coming::Chunked(decoder) => {
                let mut decode = |out: &mut BytesMut| {
                    match decoder.decode(bytes, out, usize::MAX) {
                        Ok(decoded) => taken = decoded,
                        Err(bad) => broken = Some(bad),
                    }
                    Ok::<_, Infallible>(())
                };
                let decoded = if response.chunked {
                    let Ok(decoded) = write_chunk(&mut out, decode);
                    decoded
                } else {
                    let before = out.len();
                    let Ok(()) = decode(&mut out);
                    out.len() - before
                };
                if response.chunked && decoder.ended() {
                    write_last(&mut out, decoder.trailers());
                }
                decoded
            }
            Coming::Close { .. } if response.chunked => {
                write_data(&mut out, bytes);
                bytes.len()
            }
            Coming::Close { .. } => {
                as_they_are = bytes;
                bytes.len()
            }
        };
        // Whatever comes behind a response belongs to nobody.
        response.reusable &= taken == bytes.len();
        self.record.bytes += data as u64;
        self.pass_on(context, out, as_they_are, broken)
    }

    /// The same through an encoder.
    fn compress(&mut self, context: &mut Context<'_>, bytes: &[u8], mut out: Scratch) -> Result<(), Broken> {
        let Some(Response {
            coming,
            encoder: Some(encoder),
            chunked,
            reusable,
            ..
        }) = &mut self.response
        else {
            return Ok(());
        };
        let mut taken = bytes.len();
        let mut broken = None;
        let mut decoded = None;
        let data = match coming {
            Coming::Length(left) => {
                let data = up_to(left, bytes);
                taken = data.len();
                data
            }
            Coming::Chunked(decoder) => {
                let decoded = decoded.insert(Scratch::take());
                match decoder.decode(bytes, decoded, usize::MAX) {
                    Ok(length) => taken = length,
                    Err(bad) => broken = Some(bad),
                }
                &decoded[..]
            }
            Coming::Close { .. } => bytes,
        };
        let then = match broken {
            // No end: the client must see that there is none.
            Some(_) => Then::Flush,
            None if coming.ended() => Then::End,
            None => Then::More,
        };
        self.record.bytes += encoder.write(data, then, *chunked, &mut out) as u64;
        if *chunked && then == Then::End {
            write_last(&mut out, &trailers_of_compressed(coming.trailers()));
        }
        *reusable &= taken == bytes.len();
        self.pass_on(context, out, b"", broken)
    }

    /// Sends the client what came before the framing broke, if it has.
    fn pass_on(
        &mut self,
        context: &mut Context<'_>,
        out: Scratch,
        behind: &[u8],
        broken: Option<BadFraming>,
    ) -> Result<(), Broken> {
        self.send(context, out, behind)?;
        broken.map_or(Ok(()), |BadFraming(what)| Err(origin(Failure::Malformed, what)))
    }
}

/// What of `bytes` belongs to a body of which `left` are to come.
fn up_to<'b>(left: &mut u64, bytes: &'b [u8]) -> &'b [u8] {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= taken as u64;
    &bytes[..taken]
}
