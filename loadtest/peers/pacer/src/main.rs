//! `pacer ADDRESS PATH --rate N`: GET requests at a fixed rate, and how long the answers took.
//!
//! The rate does not depend on the answers (an open loop). Each request has a time at which it is due; when every connection is
//! still busy at that time, the request is late because the server was slow, and its latency counts from when it was due.
//! A generator that waits for an answer before it sends the next request would leave out just the requests that a
//! stall would have met, and report a better server than its clients see.
//!
//! One thread, which sleeps until the next request is due or an answer comes: it shares its core with the origins, and with more threads
//! latency would tell how the kernel shares that core between them. When it wakes too late for a request, and a
//! connection was free for it, that is this program's fault and no server's, and the latency counts from when the request
//! was really sent.
//!
//! A virtual machine stands still now and then, for milliseconds and all of it. This program sees that from its own clock, for it
//! did not run when it was to; nothing that a server does can make it miss that. It can't tell how long the answers took that
//! were under way, so their latencies are left out (and counted), and all that is due later is due so much later: sent at once
//! it would be a queue that no client made.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// How long a server may take for an answer before its connection is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the last request was due those that are late may still be sent. A longer queue than that at the end is one that
/// grows: the server is slower than the rate, and its latencies would say how long the run was and nothing else.
const GRACE: Duration = Duration::from_millis(50);
/// How much later than it was to a program runs when the machine has stood still: more than it takes to read an answer from every
/// connection, and far less than a stop that a 99th percentile would show.
const STOOD_STILL: Duration = Duration::from_micros(500);
/// Header fields of a response that are looked at.
const MAX_FIELDS: usize = 32;
/// The event of the timer; those of connections are their numbers.
const TIMER: u64 = u64::MAX;

/// Sends GET requests at a fixed rate and prints the latencies as one JSON object.
#[derive(Parser)]
#[command(name = "pacer")]
struct Arguments {
    /// The server.
    address: SocketAddr,

    /// What to ask it for.
    path: String,

    /// Requests a second, over all connections.
    #[arg(long)]
    rate: u32,

    /// How long, in seconds.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,

    /// How many keepalive connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
}

/// A connection, and the request on it that is not answered.
struct Connection {
    stream: TcpStream,
    /// From when the latency counts.
    sent: Option<Instant>,
    /// Whether the machine stood still since.
    unseen: bool,
    received: Vec<u8>,
}

/// A run: what is due, who is free to send it, and what has come of it.
struct Run {
    request: String,
    start: Instant,
    /// When this program last ran, or is to run next at the latest.
    awake: Instant,
    rate: u32,
    requests: u64,
    /// The next that is not due yet, or that nobody was free for.
    next: u64,
    connections: Vec<Connection>,
    free: VecDeque<usize>,
    latencies: Vec<u64>,
    /// How many answers there are whose latency is not known.
    unseen: u64,
    failures: Vec<String>,
}

impl Run {
    fn new(arguments: &Arguments) -> Result<Self, Box<dyn Error>> {
        let length = Duration::try_from_secs_f64(arguments.seconds)?;
        let connect = |_| {
            let stream = TcpStream::connect(arguments.address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(Connection {
                stream,
                sent: None,
                unseen: false,
                received: Vec::new(),
            })
        };
        let connections = (0..arguments.connections)
            .map(connect)
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            request: format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", arguments.path, arguments.address),
            start: Instant::now() + Duration::from_millis(20),
            awake: Instant::now(),
            rate: arguments.rate,
            requests: u64::try_from(length.as_nanos() * u128::from(arguments.rate) / 1_000_000_000)?,
            next: 0,
            free: (0..connections.len()).collect(),
            connections,
            latencies: Vec::new(),
            unseen: 0,
            failures: Vec::new(),
        })
    }

    /// The time. Takes notice when it is later than it can be.
    fn now(&mut self) -> Instant {
        let now = Instant::now();
        let late = now.saturating_duration_since(self.awake);
        self.awake = now;
        if late > STOOD_STILL {
            self.start += late;
            for connection in &mut self.connections {
                connection.unseen = connection.sent.is_some();
            }
        }
        now
    }

    /// When the next request is due; `None` after the last.
    fn due(&self) -> Option<Instant> {
        let after = Duration::from_nanos(self.next.saturating_mul(1_000_000_000) / u64::from(self.rate));
        (self.next < self.requests).then(|| self.start + after)
    }

    /// When nothing more is sent, and when nothing more is waited for.
    fn ends(&self) -> (Instant, Instant) {
        let last = Duration::from_nanos(self.requests.saturating_mul(1_000_000_000) / u64::from(self.rate));
        let sending = self.start + last + GRACE;
        (sending, sending + ANSWER_TIMEOUT)
    }

    /// Sends on a connection that is free; the latency counts from `from`.
    fn send(&mut self, number: usize, from: Instant) {
        let connection = &mut self.connections[number];
        match connection.stream.write(self.request.as_bytes()) {
            Ok(sent) if sent == self.request.len() => {
                connection.sent = Some(from);
                connection.unseen = false;
            }
            // So few bytes fit into any socket that is not broken. It is never free again.
            Ok(_) => self.failures.push("a request could not be sent whole".into()),
            Err(error) => self.failures.push(error.to_string()),
        }
    }

    /// Sends everything that is due and that a connection is free for.
    fn send_due(&mut self) {
        loop {
            let now = self.now();
            let Some(due) = self.due() else { return };
            if due > now || now >= self.ends().0 {
                return;
            }
            let Some(number) = self.free.pop_front() else { return };
            self.next += 1;
            self.send(number, now);
        }
    }

    /// Reads what has come on a connection; after an answer the request that has waited longest takes it.
    fn answered(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        match read_answer(&mut connection.stream, &mut connection.received) {
            Ok(false) => {}
            Ok(true) => {
                let now = self.now();
                let connection = &mut self.connections[number];
                match connection.sent.take() {
                    Some(_) if connection.unseen => self.unseen += 1,
                    Some(sent) => {
                        let latency = now.duration_since(sent).as_nanos();
                        self.latencies.push(u64::try_from(latency).unwrap_or(u64::MAX));
                    }
                    None => {}
                }
                match self.due() {
                    // No connection was free when it was due, or it would have been sent: it was late because of the server.
                    Some(due) if due <= now && self.free.is_empty() && now < self.ends().0 => {
                        self.next += 1;
                        self.send(number, due);
                    }
                    _ => self.free.push_back(number),
                }
            }
            // It is never free again.
            Err(error) => {
                connection.sent = None;
                self.failures.push(error.to_string());
            }
        }
    }

    /// Whether there is nothing more to send or to wait for.
    fn is_over(&self) -> bool {
        let (sending, waiting) = self.ends();
        let now = Instant::now();
        let sent = self.due().is_none() || now >= sending;
        let answered = self.connections.iter().all(|connection| connection.sent.is_none());
        (sent && answered) || now >= waiting
    }

    fn run(&mut self) -> io::Result<()> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, connection) in self.connections.iter().enumerate() {
            let event = epoll::EventData::new_u64(number as u64);
            epoll::add(&poll, &connection.stream, event, epoll::EventFlags::IN)?;
        }
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(&poll, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        let mut events = Vec::with_capacity(self.connections.len() + 1);
        while !self.is_over() {
            self.send_due();
            // With no connection free there is nothing to do at the time when the next is due.
            let (now, (sending, waiting)) = (self.now(), self.ends());
            let end = if now < sending { sending } else { waiting };
            let wake = self
                .due()
                .filter(|_| !self.free.is_empty() && now < sending)
                .unwrap_or(end);
            set(&timer, wake.saturating_duration_since(now))?;
            events.clear();
            self.awake = wake.max(now);
            match epoll::wait(&poll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.now();
            for event in &events {
                match event.data.u64() {
                    TIMER => {}
                    number => self.answered(usize::try_from(number).unwrap_or(0)),
                }
            }
        }
        Ok(())
    }
}

/// Sets a timer that fires once. It is never read, only set anew, which is as good.
fn set(timer: &OwnedFd, after: Duration) -> io::Result<()> {
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    // A time of nothing would turn it off.
    let after = after.max(Duration::from_nanos(1));
    let value = Timespec::try_from(after).map_err(io::Error::other)?;
    let time = Itimerspec {
        it_interval: never,
        it_value: value,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &time)?;
    Ok(())
}

/// Reads what there is; whether it is a whole response, of which nothing stays in `received`.
fn read_answer(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 16 << 10];
    loop {
        let read = match stream.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        received.extend_from_slice(&piece[..read]);
        if length(received)?.is_some_and(|length| received.len() >= length) {
            received.clear();
            return Ok(true);
        }
    }
}

/// How long the response is that `received` begins with; `None` while its head has not all come.
fn length(received: &[u8]) -> io::Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let head = match response.parse(received).map_err(io::Error::other)? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(head) => head,
    };
    if response.code != Some(200) {
        return Err(io::Error::other(format!("status {:?}", response.code)));
    }
    let body = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok())
        .ok_or_else(|| io::Error::other("a response without Content-Length"))?;
    Ok(Some(head + body))
}

/// The latency in microseconds that `percent` of the requests did not exceed. `missing` ones were never answered, which is longer than
/// any latency: `None` where it is theirs.
fn percentile(sorted: &[u64], missing: u64, percent: u64) -> Option<f64> {
    let rank = ((sorted.len() as u64 + missing) * percent).div_ceil(100);
    let index = usize::try_from(rank.saturating_sub(1)).ok()?;
    let latency = Duration::from_nanos(*sorted.get(index)?);
    Some((latency.as_secs_f64() * 1e7).round() / 10.0)
}

fn measure(arguments: &Arguments) -> Result<serde_json::Value, Box<dyn Error>> {
    // Where it can't be set, the thread wakes up to 50 µs late, which is allowed for.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let mut run = Run::new(arguments)?;
    run.run()?;
    let took = run.start.elapsed();
    run.latencies.sort_unstable();
    let answered = run.latencies.len() as u64 + run.unseen;
    let missing = run.requests.saturating_sub(answered);
    Ok(serde_json::json!({
        "due": run.requests,
        "answered": answered,
        "unseen": run.unseen,
        "seconds": took.as_secs_f64(),
        "failed_connections": run.failures.len(),
        "first_failure": run.failures.first().map_or("", String::as_str),
        "p50_us": percentile(&run.latencies, missing, 50),
        "p99_us": percentile(&run.latencies, missing, 99),
    }))
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the result is this program's output"
)]
fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("pacer: {problem}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_response_is_whole_when_its_body_is() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 0..38 {
            assert_eq!(length(&response[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(length(&response[..38]).unwrap(), Some(41));
        assert!(length(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(length(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn what_was_never_answered_is_slower_than_anything() {
        let sorted: Vec<u64> = (1..=100).map(|micros| micros * 1000).collect();
        assert_eq!(percentile(&sorted, 0, 50), Some(50.0));
        assert_eq!(percentile(&sorted, 0, 99), Some(99.0));
        assert_eq!(percentile(&sorted, 100, 50), Some(100.0));
        assert_eq!(percentile(&sorted, 100, 99), None);
        assert_eq!(percentile(&[], 0, 50), None);
    }

    /// A server with one connection that answers everything at once, except that it pauses before the tenth answer.
    fn server_that_pauses(pause: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let mut number = 0;
            while let Ok(1..) = stream.read(&mut request) {
                number += 1;
                if number == 10 {
                    thread::park_timeout(pause);
                }
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .unwrap();
            }
        });
        address
    }

    #[test]
    fn a_pause_of_the_server_counts_for_all_requests_that_were_due_in_it() {
        let pause = Duration::from_millis(400);
        let arguments = Arguments {
            address: server_that_pauses(pause),
            path: "/".into(),
            rate: 100,
            seconds: 1.0,
            connections: 1,
        };
        let result = measure(&arguments).unwrap();
        assert_eq!(result["failed_connections"], 0, "{result}");
        // Of a hundred requests the pause met forty, not one.
        let slow = result["p99_us"].as_f64().unwrap_or(f64::INFINITY);
        assert!(slow >= pause.as_secs_f64() * 1e6 * 0.75, "{result}");
    }

    /// Reads the answer on the only connection, as though this program ran when it was to.
    fn read_on_time(run: &mut Run) {
        while run.connections[0].sent.is_some() {
            run.awake = Instant::now() + Duration::from_secs(60);
            run.answered(0);
            thread::yield_now();
        }
    }

    #[test]
    fn what_was_under_way_when_the_machine_stood_still_is_left_out_and_the_rest_is_put_off() {
        let still = Duration::from_secs(1);
        let arguments = Arguments {
            address: server_that_pauses(Duration::ZERO),
            path: "/".into(),
            rate: 1,
            seconds: 10.0,
            connections: 1,
        };
        let mut run = Run::new(&arguments).unwrap();
        let due = run.due().unwrap();
        run.free.clear();
        run.send(0, Instant::now());
        run.awake = Instant::now() - still;
        run.now();
        read_on_time(&mut run);
        assert!(run.due().unwrap() >= due + still);
        assert_eq!((run.unseen, run.latencies.len()), (1, 0));
        run.send(0, Instant::now());
        read_on_time(&mut run);
        assert_eq!((run.unseen, run.latencies.len()), (1, 1));
        assert_eq!(run.failures, [""; 0]);
    }
}
