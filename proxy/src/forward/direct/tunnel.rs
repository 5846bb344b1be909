//! A try after the origin has switched to another protocol: bytes in both directions.

use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncReadExt;

use super::duplex::{Duplex, origin};
use super::{Broken, Ending};
use crate::exchange::retry::Failure;
use crate::forward::client::ClientSide;
use crate::http1::scratch::Scratch;
use crate::rejection::Rejection;

impl<C: ClientSide> Duplex<'_, C> {
    /// Moves what comes in either direction, until one end closes and the other has everything.
    pub(super) fn poll_tunnel(&mut self, context: &mut Context<'_>) -> Poll<Result<Ending, Broken>> {
        let (there, there_moved) = self.poll_tunnel_up(context);
        let (back, back_moved) = self.poll_tunnel_down(context)?;
        if there_moved || back_moved {
            self.says_since = None;
        }
        // What the other end has closed for is sent first.
        if (there || back) && self.pending.is_empty() && (back || self.upload.unsent() == 0) {
            return Poll::Ready(Ok(Ending::Close));
        }
        let since = *self.says_since.get_or_insert_with(Instant::now);
        let limit = self.request.policy.upstream.tunnel_idle_timeout;
        ready!(self.client.timer().poll(context, since, limit));
        Poll::Ready(Err(origin(
            Failure::TimedOut,
            "nothing was said for upstream.tunnel_idle_timeout",
        )))
    }

    /// From the client to the origin: whether that is over, and whether anything was moved.
    fn poll_tunnel_up(&mut self, context: &mut Context<'_>) -> (bool, bool) {
        let mut moved = false;
        loop {
            let before = self.upload.unsent();
            let sent = self.upload.poll_send(context, &mut self.origin);
            moved |= self.upload.unsent() < before;
            match sent {
                Poll::Ready(Ok(())) if self.client.body_ended() => return (true, moved),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return (true, moved),
                Poll::Pending => return (false, moved),
            }
            match self.upload.poll_read(context, self.client) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return (true, moved),
                Poll::Pending => return (false, moved),
            }
        }
    }

    /// From the origin to the client, likewise.
    fn poll_tunnel_down(&mut self, context: &mut Context<'_>) -> Result<(bool, bool), Broken> {
        let mut moved = false;
        loop {
            let before = self.pending.len();
            let flushed = self.poll_flush(context);
            moved |= self.pending.len() < before;
            match flushed {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return Ok((false, moved)),
            }
            let mut read = Scratch::take();
            match pin!(self.origin.read_buf(&mut *read)).poll(context) {
                Poll::Ready(Ok(0)) => return Ok((true, moved)),
                Poll::Ready(Err(error)) => {
                    let words = format!("the connection to the backend broke: {error}");
                    self.record.failed(Rejection::BackendFailed, Some(words.into()));
                    return Ok((true, moved));
                }
                Poll::Ready(Ok(count)) => {
                    moved = true;
                    self.record.bytes += count as u64;
                    self.send(context, Scratch::take(), &read)?;
                }
                Poll::Pending => return Ok((false, moved)),
            }
        }
    }
}
