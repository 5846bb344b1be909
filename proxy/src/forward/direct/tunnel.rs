//! A try after the origin has switched to another protocol: bytes in both directions.
//!
//! Either end may close its half and go on reading. The other end is told so once it has everything, and the tunnel ends with its
//! second half. One that is idle for `upstream.tunnel_idle_timeout` ends too, which is nobody's fault.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::AsyncWrite;

use super::duplex::Duplex;
use super::{Broken, Ending, broke};
use crate::forward::client::ClientSide;
use crate::http1::scratch::Scratch;
use crate::rejection::Rejection;

/// One direction of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Open,
    /// Its sender has closed, and its receiver has not been told.
    Ending,
    /// Its receiver has been told, or takes nothing any more.
    Over,
}

impl<C: ClientSide> Duplex<'_, C> {
    /// Moves what comes in either direction, until both are over or one end is gone.
    pub(super) fn poll_tunnel(&mut self, context: &mut Context<'_>) -> Poll<Result<Ending, Broken>> {
        let before = (self.up, self.down);
        let (client_gone, up_moved) = self.poll_tunnel_up(context);
        let (origin_gone, down_moved) = self.poll_tunnel_down(context)?;
        if up_moved || down_moved || before != (self.up, self.down) {
            self.says_since = None;
        }
        if origin_gone || (self.up, self.down) == (Half::Over, Half::Over) {
            return Poll::Ready(Ok(Ending::Close));
        }
        // What it has not taken it never will.
        if client_gone || (self.up == Half::Over && self.client.poll_left(context).is_ready()) {
            return Poll::Ready(Ok(Ending::Cut));
        }
        let since = *self.says_since.get_or_insert_with(Instant::now);
        let limit = self.request.route.upstream.tunnel_idle_timeout;
        ready!(self.client.timer().poll(context, since, limit));
        Poll::Ready(Ok(if self.pending.is_empty() {
            Ending::Close
        } else {
            Ending::Abandon
        }))
    }

    /// From the client to the origin: whether the client is gone, and whether anything was moved.
    fn poll_tunnel_up(&mut self, context: &mut Context<'_>) -> (bool, bool) {
        let mut moved = false;
        while self.up != Half::Over {
            let before = self.upload.unsent();
            let sent = self.upload.poll_send(context, &mut self.origin);
            moved |= self.upload.unsent() < before;
            match sent {
                Poll::Ready(Ok(())) if self.client.body_ended() => {
                    // The kernel sends what it has, and then the end; TLS has an end of its own before that. If it can't be sent,
                    // reading will tell why.
                    if Pin::new(&mut self.origin).poll_shutdown(context).is_ready() {
                        self.up = Half::Over;
                    }
                    break;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    // What the origin has said before is still the client's.
                    self.up = Half::Over;
                    break;
                }
                Poll::Pending => break,
            }
            match self.upload.poll_read(context, self.client) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return (true, moved),
                Poll::Pending => break,
            }
        }
        (false, moved)
    }

    /// From the origin to the client, likewise.
    fn poll_tunnel_down(&mut self, context: &mut Context<'_>) -> Result<(bool, bool), Broken> {
        let mut moved = false;
        while self.down != Half::Over {
            let before = self.pending.len();
            let flushed = self.poll_flush(context);
            moved |= self.pending.len() < before;
            match flushed {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => break,
            }
            if self.down == Half::Ending {
                if self.client.poll_finish(context).is_ready() {
                    self.down = Half::Over;
                }
                break;
            }
            let mut read = Scratch::take();
            match read.poll_read(&mut self.origin, context) {
                Poll::Ready(Ok(0)) => self.down = Half::Ending,
                Poll::Ready(Err(error)) => {
                    self.record.failed(Rejection::BackendFailed, Some(broke(&error)));
                    return Ok((true, moved));
                }
                Poll::Ready(Ok(count)) => {
                    moved = true;
                    self.record.bytes += count as u64;
                    self.send(context, Scratch::take(), &read)?;
                }
                Poll::Pending => break,
            }
        }
        Ok((false, moved))
    }
}
