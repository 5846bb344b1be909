//! Keeps idle connections to backends for their next request.
//!
//! Each backend has its own list, so that a request looks at no other backend's connections, and a backend that leaves the registry
//! takes its connections along. Only their number is shared ([`Room`]).
//!
//! A connection stays registered with the reactor of the runtime that opened it, and any thread may take it, check it or close it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use crate::pool::stream::OriginStream;

/// For so long after its last response a connection is not asked whether it is silent, if its next request can be sent again. The
/// question is a system call, and what the backend sends in so short a time may just as well be on its way still.
const MOMENT: Duration = Duration::from_millis(1);

/// The idle connections to one backend.
#[derive(Debug)]
pub struct Kept {
    room: Arc<Room>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The one that was used last is at the back. Requests take that one, so that the surplus grows old.
    connections: VecDeque<Connection>,
    /// The backend is gone; nothing is kept any more.
    closed: bool,
}

#[derive(Debug)]
struct Connection {
    address: SocketAddr,
    stream: OriginStream,
    since: Instant,
}

/// How many connections all backends together may keep.
#[derive(Debug)]
pub struct Room {
    limit: usize,
    used: AtomicUsize,
}

impl Room {
    /// Room for `limit` connections.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// Takes a place, if one is free.
    fn enter(&self) -> bool {
        let free = |used| (used < self.limit).then_some(used + 1);
        let entered = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        entered.is_ok()
    }

    fn leave(&self, places: usize) {
        self.used.fetch_sub(places, Ordering::Relaxed);
    }
}

impl Kept {
    /// An empty list, which shares `room` with those of other backends.
    pub fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            waiting: Mutex::default(),
        }
    }

    /// Of the connections to `address` that `fit`, the one that was used last and is still silent. For a request that can't be sent
    /// again it must have been idle for `longest` at most. Those that have waited for longer stay for others.
    pub fn take(
        &self,
        address: SocketAddr,
        fits: impl Fn(&OriginStream) -> bool,
        longest: Option<Duration>,
        now: Instant,
    ) -> Option<OriginStream> {
        loop {
            let mut waiting = self.waiting();
            let fits = |one: &Connection| one.address == address && fits(&one.stream);
            let at = waiting.connections.iter().rposition(fits)?;
            let idle = now.saturating_duration_since(waiting.connections[at].since);
            if longest.is_some_and(|longest| idle > longest) {
                return None;
            }
            let mut stream = waiting.connections.remove(at)?.stream;
            drop(waiting);
            self.room.leave(1);
            let silent = if longest.is_none() && idle < MOMENT {
                seems_silent(&mut stream)
            } else {
                is_silent(&mut stream)
            };
            if silent {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection. When there is no room, the oldest one of this backend is closed; if it has none, `stream` is.
    pub fn keep(&self, address: SocketAddr, stream: OriginStream, now: Instant) {
        let mut waiting = self.waiting();
        if waiting.closed {
            return;
        }
        let oldest = if self.room.enter() {
            None
        } else {
            let Some(oldest) = waiting.connections.pop_front() else {
                return;
            };
            Some(oldest)
        };
        waiting.connections.push_back(Connection {
            address,
            stream,
            since: now,
        });
        // Closing is a system call, for which no other thread should wait.
        drop(waiting);
        drop(oldest);
    }

    /// Closes those that have ended, that said something without being asked, and that have waited for `longest` or more.
    pub fn sweep(&self, longest: Duration, now: Instant) {
        let mut over = Vec::new();
        let mut waiting = self.waiting();
        for _ in 0..waiting.connections.len() {
            let Some(mut connection) = waiting.connections.pop_front() else {
                break;
            };
            if seems_silent(&mut connection.stream) && now.saturating_duration_since(connection.since) < longest {
                waiting.connections.push_back(connection);
            } else {
                over.push(connection);
            }
        }
        drop(waiting);
        self.room.leave(over.len());
    }

    /// Closes all, and from now on each that is handed in: the backend is gone, though requests in flight may still use it.
    pub fn close(&self) {
        let mut waiting = self.waiting();
        waiting.closed = true;
        let over = std::mem::take(&mut waiting.connections);
        drop(waiting);
        self.room.leave(over.len());
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether nothing has come that tokio has heard of. While it has heard of nothing that takes no system call, for which others would
/// wait for the lock of a sweep; the next one finds what this one has missed.
fn seems_silent(stream: &mut OriginStream) -> bool {
    stream.is_silent(|tcp, buffer| tcp.try_read(buffer))
}

/// Whether nothing has come, not even the end. The kernel is asked: tokio hears of what has come only when a thread has time for that,
/// which on a busy machine is milliseconds later.
fn is_silent(stream: &mut OriginStream) -> bool {
    stream.is_silent(|tcp, buffer| Ok(recv(tcp, buffer, RecvFlags::empty()).map(|(read, _)| read)?))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A backend, and the connections to it that it has accepted.
    struct Origin {
        listener: TcpListener,
        address: SocketAddr,
    }

    impl Origin {
        async fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            Self { listener, address }
        }

        /// Both ends of a new connection: the proxy's and the origin's.
        async fn connect(&self) -> (OriginStream, TcpStream) {
            let (ours, accepted) = tokio::join!(TcpStream::connect(self.address), self.listener.accept());
            (OriginStream::Plain(ours.unwrap()), accepted.unwrap().0)
        }
    }

    fn kept(limit: usize) -> Kept {
        Kept::new(Arc::new(Room::new(limit)))
    }

    fn used(kept: &Kept) -> usize {
        kept.room.used.load(Ordering::Relaxed)
    }

    /// The local ports of the connections that are taken until there is none.
    fn ports(kept: &Kept, address: SocketAddr, now: Instant) -> Vec<u16> {
        let taken = std::iter::from_fn(|| kept.take(address, |_| true, None, now));
        taken.map(|stream| stream.tcp().local_addr().unwrap().port()).collect()
    }

    /// Waits until the reactor has noted that something came.
    async fn heard(stream: &OriginStream) {
        stream.tcp().ready(Interest::READABLE).await.unwrap();
    }

    async fn is_closed(mut end: TcpStream) -> bool {
        let read = tokio::time::timeout(20 * SECOND, async { end.read(&mut [0]).await }).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn the_one_used_last_is_taken_first_and_only_for_its_address() {
        let (one, two) = (Origin::new().await, Origin::new().await);
        let kept = kept(10);
        let now = Instant::now();
        let mut ends = Vec::new();
        let mut local = Vec::new();
        for origin in [&one, &two, &one] {
            let (ours, theirs) = origin.connect().await;
            local.push(ours.tcp().local_addr().unwrap().port());
            kept.keep(origin.address, ours, now);
            ends.push(theirs);
        }
        assert_eq!(used(&kept), 3);
        assert_eq!(ports(&kept, one.address, now), [local[2], local[0]]);
        assert_eq!(ports(&kept, two.address, now), [local[1]]);
        assert_eq!(used(&kept), 0);
    }

    #[tokio::test]
    async fn one_that_waited_for_too_long_stays_for_others() {
        let origin = Origin::new().await;
        let kept = kept(10);
        let start = Instant::now();
        let (old, _old_end) = origin.connect().await;
        let (new, _new_end) = origin.connect().await;
        let local = [&old, &new].map(|stream| stream.tcp().local_addr().unwrap().port());
        kept.keep(origin.address, old, start);
        kept.keep(origin.address, new, start + 3 * SECOND);
        let last = start + 3 * SECOND;
        let take = || kept.take(origin.address, |_| true, Some(SECOND), last + SECOND);
        let taken = take().map(|stream| stream.tcp().local_addr().unwrap().port());
        assert_eq!((taken, take().is_none()), (Some(local[1]), true));
        let later = kept.take(origin.address, |_| true, Some(3 * SECOND), last + SECOND);
        assert!(later.is_none());
        assert_eq!(ports(&kept, origin.address, last), [local[0]]);
    }

    #[tokio::test]
    async fn the_kernel_is_asked_unless_the_last_response_was_a_moment_ago_and_the_request_can_be_sent_again() {
        let origin = Origin::new().await;
        let kept = kept(10);
        let now = Instant::now();
        for (longest, idle, taken) in [
            (None, MOMENT / 2, true),
            (None, MOMENT, false),
            (Some(SECOND), MOMENT / 2, false),
        ] {
            let (ours, theirs) = origin.connect().await;
            // Without a wait in between the reactor hears nothing of this.
            theirs.try_write(b"x").unwrap();
            kept.keep(origin.address, ours, now);
            let found = kept.take(origin.address, |_| true, longest, now + idle);
            assert_eq!(found.is_some(), taken, "{longest:?} {idle:?}");
        }
    }

    #[tokio::test]
    async fn one_that_said_something_or_has_ended_is_closed_and_an_older_one_taken() {
        let origin = Origin::new().await;
        let kept = kept(10);
        let now = Instant::now();
        let (silent, _silent_end) = origin.connect().await;
        let (spoke, mut spoke_end) = origin.connect().await;
        let (ended, ended_end) = origin.connect().await;
        let local = silent.tcp().local_addr().unwrap().port();
        spoke_end.write_all(b"x").await.unwrap();
        drop(ended_end);
        heard(&spoke).await;
        heard(&ended).await;
        for stream in [silent, spoke, ended] {
            kept.keep(origin.address, stream, now);
        }
        assert_eq!(ports(&kept, origin.address, now), [local]);
        assert_eq!(used(&kept), 0);
        assert!(is_closed(spoke_end).await);
    }

    #[tokio::test]
    async fn a_sweep_closes_the_old_the_ended_and_those_that_spoke() {
        let origin = Origin::new().await;
        let kept = kept(10);
        let start = Instant::now();
        let (old, old_end) = origin.connect().await;
        let (spoke, mut spoke_end) = origin.connect().await;
        let (good, _good_end) = origin.connect().await;
        let (ended, ended_end) = origin.connect().await;
        let (better, _better_end) = origin.connect().await;
        let local = [&better, &good].map(|stream| stream.tcp().local_addr().unwrap().port());
        spoke_end.write_all(b"x").await.unwrap();
        drop(ended_end);
        heard(&spoke).await;
        heard(&ended).await;
        kept.keep(origin.address, old, start);
        let now = start + SECOND;
        for stream in [spoke, good, ended, better] {
            kept.keep(origin.address, stream, now);
        }
        kept.sweep(2 * SECOND, start + 2 * SECOND);
        assert_eq!(used(&kept), 2);
        assert!(is_closed(old_end).await && is_closed(spoke_end).await);
        assert_eq!(ports(&kept, origin.address, now), local, "in the order as before");
    }

    #[tokio::test]
    async fn without_room_the_oldest_of_the_same_backend_makes_place() {
        let origin = Origin::new().await;
        let room = Arc::new(Room::new(2));
        let (one, other) = (Kept::new(Arc::clone(&room)), Kept::new(Arc::clone(&room)));
        let now = Instant::now();
        let mut ends = Vec::new();
        let mut local = Vec::new();
        for _ in 0..3 {
            let (ours, theirs) = origin.connect().await;
            local.push(ours.tcp().local_addr().unwrap().port());
            one.keep(origin.address, ours, now);
            ends.push(theirs);
        }
        assert!(is_closed(ends.remove(0)).await);
        let (ours, theirs) = origin.connect().await;
        other.keep(origin.address, ours, now);
        assert!(is_closed(theirs).await, "it has none that could make place");
        assert_eq!(used(&one), 2);
        assert_eq!(ports(&one, origin.address, now), [local[2], local[1]]);

        let (ours, theirs) = origin.connect().await;
        other.keep(origin.address, ours, now);
        assert_eq!(used(&other), 1, "there is room again");
        drop(other);
        assert!(is_closed(theirs).await);
        assert_eq!(used(&one), 0);

        let (ours, theirs) = origin.connect().await;
        kept(0).keep(origin.address, ours, now);
        assert!(is_closed(theirs).await);
    }

    #[tokio::test]
    async fn a_backend_that_is_gone_keeps_none() {
        let origin = Origin::new().await;
        let kept = kept(10);
        let now = Instant::now();
        let (before, before_end) = origin.connect().await;
        let (after, after_end) = origin.connect().await;
        kept.keep(origin.address, before, now);
        kept.close();
        assert!(is_closed(before_end).await);
        kept.keep(origin.address, after, now);
        assert!(is_closed(after_end).await);
        assert_eq!(used(&kept), 0);
    }

    /// As the proxy's runtime opens connections and the pool's sweeps them.
    #[test]
    fn any_thread_may_look_at_a_connection_and_close_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let kept = kept(10);
        let now = Instant::now();
        let (origin, silent_end, ended_end, old_end) = runtime.block_on(async {
            let origin = Origin::new().await;
            let (silent, silent_end) = origin.connect().await;
            let (ended, mut ended_end) = origin.connect().await;
            let (old, old_end) = origin.connect().await;
            ended_end.shutdown().await.unwrap();
            heard(&ended).await;
            kept.keep(origin.address, old, now);
            kept.keep(origin.address, silent, now + SECOND);
            kept.keep(origin.address, ended, now + SECOND);
            (origin, silent_end, ended_end, old_end)
        });
        kept.sweep(SECOND, now + SECOND);
        assert_eq!(used(&kept), 1);
        assert!(runtime.block_on(async { is_closed(ended_end).await && is_closed(old_end).await }));
        let stream = kept.take(origin.address, |_| true, None, now).unwrap();

        // And the runtime still wakes who waits for it.
        let (mut stream, mut silent_end) = (stream, silent_end);
        let read = runtime.spawn(async move {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            byte
        });
        runtime.block_on(async {
            silent_end.write_all(b"y").await.unwrap();
            assert_eq!(read.await.unwrap(), *b"y");
        });
    }
}
