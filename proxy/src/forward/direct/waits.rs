//! What a try costs while it waits: time, for which either end has a deadline, and memory.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::Broken;
use super::duplex::{Duplex, origin};
use crate::exchange::retry::Failure;
use crate::forward::client::ClientSide;
use crate::http1::downstream::ClientFault;
use crate::http1::held::stalled;

/// How often a client is looked at that is not read from, because its upload waits for the origin.
const LOOK: Duration = Duration::from_secs(1);

impl<C: ClientSide> Duplex<'_, C> {
    /// Ready when what is held while somebody is waited for is too much.
    pub(super) fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let moved = std::mem::take(&mut self.moved);
        let held = self.held();
        ready!(self.client.hold().poll(context, held, moved));
        // A request that could be sent again is worth more than another try of it.
        if self.upload.give_up() {
            let held = self.held();
            return self.client.hold().poll(context, held, false);
        }
        Poll::Ready(())
    }

    fn held(&self) -> usize {
        let mut held = self.request.weight + self.client.held() + self.partial.capacity();
        held += self.pending_size + self.upload.held();
        let encoder = self.response.as_ref().and_then(|response| response.encoder.as_ref());
        held += encoder.map_or(0, |encoder| encoder.size());
        // Where one end stalls, the kernel's buffers fill up at both.
        if !self.pending.is_empty() {
            let receiving = SockRef::from(self.origin.tcp()).recv_buffer_size().unwrap_or_default();
            let left = self.response.as_ref().and_then(|response| response.coming.left());
            held += stalled(self.record.bytes, left, receiving);
        }
        if self.upload.unsent() > 0 {
            held += self.client.stalled();
        }
        held += self.origin.held();
        held
    }

    /// Ready when somebody has been waited for too long.
    pub(super) fn poll_deadlines(&mut self, context: &mut Context<'_>) -> Poll<Broken> {
        let limits = &self.request.route.upstream;
        let reads = self.client.taking();
        let stalls = reads.is_some();
        let waits_for_word = self.request.expects && !self.continues && !self.client.body_ended();
        // While the client doesn't read, the origin may have nowhere to put what it would say.
        let says = !stalls && (self.upload.is_done() || waits_for_word || self.send_error.is_some());
        let takes = !stalls && self.upload.unsent() + self.origin.unsent() > 0;
        let since = |wait: &mut Option<Instant>| *wait.get_or_insert_with(Instant::now);
        let says = says.then(|| (since(&mut self.says_since), limits.read_timeout));
        let takes = takes.then(|| (since(&mut self.takes_since), limits.write_timeout));
        let sends = self.client.sending().filter(|_| !waits_for_word);
        loop {
            let looks = (takes.is_some() && !self.client.body_ended()).then(|| (since(&mut self.looked), LOOK));
            let earliest = [says, takes, sends, reads, looks]
                .into_iter()
                .flatten()
                .min_by_key(|(since, limit)| *since + *limit);
            let Some((from, limit)) = earliest else {
                return Poll::Pending;
            };
            ready!(self.client.timer().poll(context, from, limit));
            let ended = |wait: Option<(Instant, Duration)>| wait == earliest;
            return Poll::Ready(if ended(sends) {
                ClientFault::SlowToSend.into()
            } else if ended(reads) {
                ClientFault::SlowToRead.into()
            } else if ended(takes) {
                origin(Failure::TimedOut, "the backend took nothing for upstream.write_timeout")
            } else if !ended(looks) {
                origin(Failure::TimedOut, "the backend said nothing for upstream.read_timeout")
            } else if self.client.has_closed(context) {
                ClientFault::Gone.into()
            } else {
                self.looked = Some(Instant::now());
                continue;
            });
        }
    }
}
