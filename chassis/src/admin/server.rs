//! The connections of the admin port: few and short, and the newest always gets in.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::http1::{self, Response};
use super::{Admin, Rejection};
use crate::descriptors;
use crate::listener::{Doors, Listening};
use crate::pauses::timeout;
use crate::shortage::is_shortage;

/// How many connections there are at most, where there are descriptors for them.
const MOST: usize = 64;
/// How many there may always be.
const LEAST: usize = 4;
/// Descriptors that are kept for when the process has none left, so that it can still be asked why.
const RESERVED: usize = 4;
/// How long a request may take to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer may take to be sent. With the head's it is less than Prometheus waits by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the client may take to end the connection then.
const LINGER: Duration = Duration::from_millis(500);
/// How long after a failure a connection is accepted again.
const PAUSE: Duration = Duration::from_millis(50);

/// The admin port, as Pingora runs it: a service with a thread of its own.
pub struct AdminService {
    admin: Arc<Admin>,
    listening: Listening,
    end: ShutdownWatch,
}

impl AdminService {
    pub(super) fn new(admin: Admin, socket: TcpListener, doors: Doors, end: ShutdownWatch) -> io::Result<Self> {
        Ok(Self {
            admin: Arc::new(admin),
            listening: Listening::new("admin", socket, doors)?,
            end,
        })
    }

    /// Accepts connections for ever. What fails is tried again.
    async fn accept(&self, socket: &tokio::net::TcpListener) {
        let slots = Arc::new(Slots::default());
        let most = (descriptors::limit() / 16).clamp(LEAST, MOST);
        slots.reserve.fill();
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    if slots.len() >= most {
                        self.displace(&slots);
                    }
                    let admin = Arc::clone(&self.admin);
                    slots.spawn(peer.ip(), |slot| serve(admin, slot, stream));
                    // It gets to read before it is the oldest of many.
                    tokio::task::yield_now().await;
                }
                // Another thread may be quicker to take what is given up, so this may come again at once.
                Err(error) if is_shortage(&error) && slots.reserve.give_up_one() => {}
                Err(error) => {
                    if is_shortage(&error) {
                        self.displace(&slots);
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn displace(&self, slots: &Slots) {
        if slots.displace() {
            self.admin.count(Rejection::TooManyConnections);
        }
    }
}

#[async_trait]
impl Service for AdminService {
    async fn start_service(&mut self, _fds: Option<ListenFds>, _shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let Some(socket) = self.listening.open().await else {
            return;
        };
        let mut end = self.end.clone();
        tokio::select! {
            () = self.accept(&socket) => {}
            // The sender lives as long as the server, so an error too means that the end has come.
            _ = end.wait_for(|end| *end) => {}
        }
    }

    fn name(&self) -> &str {
        self.listening.service()
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }

    /// None that Pingora would have to know of.
    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(Vec::new())
    }
}

/// Serves one connection: one request, one answer, the end.
///
/// The stream is dropped before the slot, so that its descriptor is free for the reserve.
async fn serve(admin: Arc<Admin>, slot: Slot, mut stream: TcpStream) {
    let (response, head_only) = match timeout(HEAD_TIMEOUT, http1::read(&mut stream)).await {
        Ok(None) => return,
        Ok(Some(Ok(request))) => {
            slot.asks();
            (admin.answer(&request), request.method == Method::HEAD)
        }
        Ok(Some(Err(rejection))) => {
            admin.count(rejection);
            (Response::refusal(rejection), false)
        }
        Err(_) => {
            admin.count(Rejection::RequestTimeout);
            (Response::refusal(Rejection::RequestTimeout), false)
        }
    };
    // Its memory and its place are wanted by those who read what they asked for.
    let written = timeout(ANSWER_TIMEOUT, http1::write(&mut stream, &response, head_only)).await;
    drop(response);
    match written {
        Ok(Ok(())) => drop(timeout(LINGER, http1::discard(&mut stream)).await),
        Ok(Err(_)) | Err(_) => admin.count(Rejection::ClientGone),
    }
}

/// Descriptors that are held for nothing but to be given up.
#[derive(Default)]
struct Reserve(Mutex<Vec<File>>);

impl Reserve {
    fn lock(&self) -> MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is missing, as far as there is any.
    fn fill(&self) {
        let mut files = self.lock();
        while files.len() < RESERVED
            && let Ok(file) = File::open("/dev/null")
        {
            files.push(file);
        }
    }

    fn give_up_one(&self) -> bool {
        self.lock().pop().is_some()
    }
}

/// The connections that there are.
#[derive(Default)]
struct Slots {
    /// The oldest first.
    entries: Mutex<Vec<Entry>>,
    next: AtomicU64,
    reserve: Reserve,
}

struct Entry {
    number: u64,
    peer: IpAddr,
    /// Its request has come.
    asks: bool,
    task: AbortHandle,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    /// Starts a task that has a slot until it drops it.
    fn spawn<T>(self: &Arc<Self>, peer: IpAddr, serve: impl FnOnce(Slot) -> T)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        // Held until the entry is there, because the task may end before.
        let mut entries = self.lock();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            slots: Arc::clone(self),
            number,
        };
        let task = tokio::spawn(serve(slot)).abort_handle();
        entries.push(Entry {
            number,
            peer,
            asks: false,
            task,
        });
    }

    /// Ends a connection to make room for a newer one, if there is one.
    fn displace(&self) -> bool {
        let mut entries = self.lock();
        let Some(victim) = victim(&entries) else { return false };
        entries.remove(victim).task.abort();
        true
    }
}

/// Who goes when there are too many: of the address that has the most connections the oldest, and one without a request
/// before one with. So an address that fills the slots displaces itself, and one that asks at once is served.
fn victim(entries: &[Entry]) -> Option<usize> {
    let connections = |peer: IpAddr| entries.iter().filter(|entry| entry.peer == peer).count();
    let most = entries.iter().map(|entry| connections(entry.peer)).max()?;
    let candidates = || (0..entries.len()).filter(|index| connections(entries[*index].peer) == most);
    candidates()
        .find(|index| !entries[*index].asks)
        .or_else(|| candidates().next())
}

/// A connection's place among the connections.
struct Slot {
    slots: Arc<Slots>,
    number: u64,
}

impl Slot {
    /// Notes that its request has come.
    fn asks(&self) {
        for entry in self.slots.lock().iter_mut().filter(|entry| entry.number == self.number) {
            entry.asks = true;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.lock().retain(|entry| entry.number != self.number);
        self.slots.reserve.fill();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Instant;

    use prometheus::{IntCounterVec, Opts, Registry};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::admin::Probed;

    /// How often the metrics were written.
    #[derive(Default)]
    struct Writings(AtomicU64);

    impl Probed for Writings {
        fn ready(&self) -> Result<String, String> {
            Ok("ready".into())
        }

        fn refresh(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn slow_readers_of_many_series_share_few_texts_and_are_cut() {
        const SERIES: usize = 50_000;
        let registry = Registry::new();
        let many = IntCounterVec::new(Opts::new("many", "Some megabytes."), &["number"]).unwrap();
        registry.register(Box::new(many.clone())).unwrap();
        for number in 0..SERIES {
            many.with_label_values(&[&format!("{number:0>80}")]).inc();
        }
        let writings = Arc::new(Writings::default());
        let admin = Admin::new(registry, Arc::clone(&writings) as _).unwrap();
        let socket = crate::listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = socket.local_addr().unwrap();
        let (_end, watch) = tokio::sync::watch::channel(false);
        let doors = Doors::default();
        doors.open();
        let mut service = admin.listen(socket, doors, watch).unwrap();
        let admin = Arc::clone(&service.admin);
        let socket = service.listening.open().await.unwrap();
        let serving = tokio::spawn(async move { service.accept(&socket).await });

        let ask = || async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            let mut beginning = [0; 15];
            stream.read_exact(&mut beginning).await.unwrap();
            assert_eq!(&beginning, b"HTTP/1.1 200 OK");
            stream
        };
        // Whoever comes next displaces one of them.
        let (mut slow, start) = (Vec::new(), Instant::now());
        while slow.len() < MOST - 1 {
            slow.push(ask().await);
        }
        let (texts, seconds) = (writings.0.load(Ordering::Relaxed), start.elapsed().as_secs());
        assert!(
            texts <= seconds + 1,
            "{texts} texts in {seconds} s for {} readers",
            slow.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
        let mut metrics = String::new();
        stream.read_to_string(&mut metrics).await.unwrap();
        assert_eq!(metrics.lines().filter(|line| line.starts_with("many{")).count(), SERIES);
        // All end, and what they held is free.
        let (gone, end) = (
            admin.rejections.with_label_values(&["client_gone"]),
            Instant::now() + 4 * ANSWER_TIMEOUT,
        );
        while gone.get() < slow.len() as u64 {
            assert!(Instant::now() < end, "{} of {} are cut", gone.get(), slow.len());
            sleep(PAUSE).await;
        }
        assert_eq!(Arc::strong_count(&admin.metrics().unwrap()), 1);
        serving.abort();
    }

    #[tokio::test]
    async fn the_oldest_of_the_address_that_has_the_most_goes_and_who_asks_goes_last() {
        let (a, b) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let slots = Arc::new(Slots::default());
        let (tell, told) = std::sync::mpsc::channel();
        for (peer, asks) in [(b, false), (a, true), (a, false), (a, true), (a, false)] {
            let tell = tell.clone();
            slots.spawn(peer, |slot| async move {
                if asks {
                    slot.asks();
                }
                tell.send(()).unwrap();
                std::future::pending::<()>().await;
            });
        }
        tokio::task::yield_now().await;
        assert_eq!(told.try_iter().count(), 5, "all run");
        let left = || slots.lock().iter().map(|entry| entry.number).collect::<Vec<_>>();
        for expected in [vec![0, 1, 3, 4], vec![0, 1, 3], vec![0, 3], vec![3], vec![]] {
            assert!(slots.displace());
            assert_eq!(left(), expected);
        }
        assert!(!slots.displace());
    }
}
