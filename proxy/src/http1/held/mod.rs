//! The memory that clients make the proxy hold while somebody is waited for, and who gives it back when it is too much.
//!
//! Unfinished heads, responses that nobody reads and uploads that nobody takes are bounded for each connection, and still add up
//! to more than a small machine has. So there is a budget for all of them, and a share of it for each client. Over either, whoever
//! has waited longest is cut: an attacker's old connections go, and new requests pass.
//!
//! Only a connection that waits and holds more than [`SMALL`] takes the lock here. A request that comes whole and is answered at
//! once does not. Small requests are counted all the same, because they are many; and once they and the others fill half of the
//! budget, those that begin to wait are in the books too, so that they can be cut.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::task::AtomicWaker;

/// What a request may hold, in bytes, without being in the books.
pub const SMALL: usize = 4 << 10;

/// What a request in flight takes beside the bytes that it holds: its futures, its record and the connection to its backend.
pub const REQUEST: usize = 16 << 10;

/// What the kernel takes for what waits to be sent to somebody who takes nothing: [`chassis::listener::UNSENT`], and as much for its
/// own structures and for what is on its way.
pub const SENDING: usize = 256 << 10;

/// What the kernel's buffers take at both ends of a transfer that stalls after `sent` bytes, with `left` more to come, if that is
/// known, into a buffer of `receiving` bytes.
pub fn stalled(sent: u64, left: Option<u64>, receiving: usize) -> usize {
    let at_most =
        |bytes: u64, most: usize| usize::try_from(bytes.saturating_mul(2)).map_or(most, |bytes| bytes.min(most));
    at_most(sent, SENDING) + at_most(left.unwrap_or(u64::MAX), receiving)
}

/// How much all may hold, and one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All of them, in bytes.
    pub all: usize,
    /// One client.
    pub each: usize,
}

impl Limits {
    /// At most `all`, and a quarter of it for each client.
    pub fn new(all: usize) -> Self {
        Self { all, each: all / 4 }
    }
}

/// Since when somebody waits; numbered, because several can begin at the same moment.
type Ticket = (Instant, u64);

/// Who waits, with how much.
#[derive(Debug)]
struct Waiter {
    client: Option<u128>,
    bytes: usize,
    end: Arc<End>,
}

/// What one client holds.
#[derive(Debug, Default)]
struct Share {
    bytes: usize,
    waiting: BTreeSet<Ticket>,
}

/// The order to give back what is held, to the task that holds it.
#[derive(Debug, Default)]
struct End {
    given: AtomicBool,
    waker: AtomicWaker,
}

impl End {
    fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The books.
#[derive(Debug, Default)]
struct Ledger {
    bytes: usize,
    waiting: BTreeMap<Ticket, Waiter>,
    shares: HashMap<u128, Share>,
}

impl Ledger {
    fn insert(&mut self, ticket: Ticket, waiter: Waiter) {
        self.bytes += waiter.bytes;
        if let Some(client) = waiter.client {
            let share = self.shares.entry(client).or_default();
            share.bytes += waiter.bytes;
            share.waiting.insert(ticket);
        }
        self.waiting.insert(ticket, waiter);
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiting.remove(&ticket)?;
        self.bytes -= waiter.bytes;
        if let Some(client) = waiter.client
            && let Some(share) = self.shares.get_mut(&client)
        {
            share.bytes -= waiter.bytes;
            share.waiting.remove(&ticket);
            if share.waiting.is_empty() {
                self.shares.remove(&client);
            }
        }
        Some(waiter)
    }

    /// Takes out who has waited longest of `client`, until it holds no more than `each`; and then of all, until they hold no more
    /// than `all`.
    fn cut(&mut self, client: Option<u128>, all: usize, each: usize) -> Vec<Waiter> {
        let mut cut = Vec::new();
        while let Some(share) = client.and_then(|client| self.shares.get(&client))
            && share.bytes > each
            && let Some(longest) = share.waiting.first().copied()
        {
            cut.extend(self.remove(longest));
        }
        while self.bytes > all
            && let Some((longest, _)) = self.waiting.first_key_value()
        {
            let longest = *longest;
            cut.extend(self.remove(longest));
        }
        cut
    }
}

/// The budget of a process.
#[derive(Debug, Default)]
pub struct Budget {
    ledger: Mutex<Ledger>,
    /// The same as in the books, for who only wants to know.
    bytes: AtomicUsize,
    waiting: AtomicUsize,
    tickets: AtomicUsize,
    /// Half of the budget is used.
    tight: AtomicBool,
}

impl Budget {
    /// How many bytes are in the books.
    pub fn held(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether there is room for a request while `in_flight` are there, itself included. Those that are not in the books hold little, but
    /// they are many. If there is none, whoever has waited longest makes it.
    pub fn has_room(&self, in_flight: usize, limits: Limits) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let unbooked = in_flight.saturating_sub(waiting).saturating_mul(REQUEST);
        let used = self.held().saturating_add(unbooked);
        let tight = used > limits.all / 2;
        if tight != self.tight.load(Ordering::Relaxed) {
            self.tight.store(tight, Ordering::Relaxed);
        }
        if used <= limits.all {
            return true;
        }
        let left = limits.all.saturating_sub(unbooked);
        self.change(|ledger| ledger.cut(None, left, limits.each));
        unbooked <= limits.all
    }

    /// Changes the books with `change`, and has those go whom it has cut.
    fn change(&self, change: impl FnOnce(&mut Ledger) -> Vec<Waiter>) {
        let mut ledger: MutexGuard<'_, Ledger> = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = change(&mut ledger);
        self.bytes.store(ledger.bytes, Ordering::Relaxed);
        self.waiting.store(ledger.waiting.len(), Ordering::Relaxed);
        drop(ledger);
        cut.iter().for_each(|waiter| waiter.end.give());
    }
}

/// What is in the books of one connection.
#[derive(Debug)]
struct Booked {
    ticket: Ticket,
    bytes: usize,
    end: Arc<End>,
}

/// What one connection holds.
#[derive(Debug)]
pub struct Hold {
    budget: Arc<Budget>,
    client: Option<u128>,
    limits: Limits,
    booked: Option<Box<Booked>>,
    /// It was cut, and may linger so that its client can read why.
    cut: bool,
}

impl Hold {
    /// Nothing, by a connection of `client`, if that is not a proxy with many clients behind it.
    pub fn new(budget: Arc<Budget>, client: Option<u128>, limits: Limits) -> Self {
        Self {
            budget,
            client,
            limits,
            booked: None,
            cut: false,
        }
    }

    /// Nothing, by another request of the same client.
    pub fn another(&self) -> Self {
        Self::new(Arc::clone(&self.budget), self.client, self.limits)
    }

    /// Begins a request, under these limits.
    pub fn begin(&mut self, limits: Limits) {
        self.cut = false;
        self.limits = limits;
    }

    /// Notes that the connection waits and holds so many `bytes`. It does so since it held anything; or since what it held then was
    /// taken, if `moved` says that it was. Ready when it has to give them back.
    pub fn poll(&mut self, context: &mut Context<'_>, bytes: usize, moved: bool) -> Poll<()> {
        let small = bytes <= SMALL && !self.cut && !self.budget.tight.load(Ordering::Relaxed);
        if small && self.booked.is_none() {
            return Poll::Pending;
        }
        self.poll_booked(context, bytes, moved, small)
    }

    #[cold]
    fn poll_booked(&mut self, context: &mut Context<'_>, bytes: usize, moved: bool, small: bool) -> Poll<()> {
        if small {
            self.release();
            return Poll::Pending;
        }
        let bytes = bytes + REQUEST;
        if self.booked.as_ref().is_none_or(|booked| booked.bytes != bytes || moved) {
            self.book(bytes, moved);
        }
        let Some(booked) = &self.booked else {
            return Poll::Pending;
        };
        booked.end.waker.register(context.waker());
        if booked.end.given.load(Ordering::Acquire) {
            self.booked = None;
            self.cut = true;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn book(&mut self, bytes: usize, moved: bool) {
        let before = self.booked.take();
        if before
            .as_ref()
            .is_some_and(|before| before.end.given.load(Ordering::Acquire))
        {
            // It is out of the books, and hears so now.
            self.booked = before;
            return;
        }
        let end = before
            .as_ref()
            .map(|before| Arc::clone(&before.end))
            .unwrap_or_default();
        let ticket = match &before {
            Some(before) if !moved => before.ticket,
            _ => (
                Instant::now(),
                self.budget.tickets.fetch_add(1, Ordering::Relaxed) as u64,
            ),
        };
        let (client, limits) = (self.client, self.limits);
        let waiter = Waiter {
            client,
            bytes,
            end: Arc::clone(&end),
        };
        let mut late = false;
        self.budget.change(|ledger| {
            late = before.is_some_and(|before| ledger.remove(before.ticket).is_none());
            if late {
                return Vec::new();
            }
            ledger.insert(ticket, waiter);
            ledger.cut(client, limits.all, limits.each)
        });
        self.booked = Some(Box::new(Booked { ticket, bytes, end }));
        // Somebody has just cut it, and may not have said so yet.
        if late && let Some(booked) = &self.booked {
            booked.end.given.store(true, Ordering::Release);
        }
    }

    /// Notes that nothing is held any more, or nobody waited for.
    pub fn release(&mut self) {
        if let Some(booked) = self.booked.take() {
            self.budget.change(|ledger| {
                ledger.remove(booked.ticket);
                Vec::new()
            });
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests;
