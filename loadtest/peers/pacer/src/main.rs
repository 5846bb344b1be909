//! `pacer ADDRESS PATH --rate N`: GET requests at a fixed rate, and how long the answers took.
//!
//! The rate does not depend on the answers (an open loop). Each request has a time at which it is due; when every connection is
//! still busy at that time, the request is late because the server was slow, and its latency counts from when it was due.
//! A generator that waits for an answer before it sends the next request would leave out just the requests that a
//! stall would have met, and report a better server than its clients see.
//!
//! One thread a connection, with blocking sockets: the kernel wakes a thread within microseconds of its time, where the timers
//! of an event loop have steps of a millisecond. When a thread that had time left wakes too late, that is this program's
//! fault and no server's, and the latency counts from when the request was really sent.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// How long a server may take for an answer before its connection is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after the last request was due those that are late may still be sent. A longer queue than that at the end is one that
/// grows: the server is slower than the rate, and its latencies would say how long the run was and nothing else.
const GRACE: Duration = Duration::from_millis(50);
/// Header fields of a response that are looked at.
const MAX_FIELDS: usize = 32;

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

/// When each request is due.
struct Schedule {
    start: Instant,
    rate: u32,
    requests: u64,
    next: AtomicU64,
    end: Instant,
}

impl Schedule {
    fn new(rate: u32, length: Duration) -> Self {
        let start = Instant::now() + Duration::from_millis(20);
        Self {
            start,
            rate,
            requests: u64::try_from(length.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX),
            next: AtomicU64::new(0),
            end: start + length + GRACE,
        }
    }

    /// When the next request that nobody has taken is due; `None` after the last.
    fn take(&self) -> Option<Instant> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let after = Duration::from_nanos(number.saturating_mul(1_000_000_000) / u64::from(self.rate));
        (number < self.requests && Instant::now() < self.end).then(|| self.start + after)
    }
}

/// Waits until `due` and returns the time from which the latency counts.
#[expect(
    clippy::disallowed_methods,
    reason = "the thread is the connection's own, and no runtime's"
)]
fn wait_for(due: Instant) -> Instant {
    let early = due.saturating_duration_since(Instant::now());
    if early.is_zero() {
        return due;
    }
    thread::sleep(early);
    Instant::now()
}

/// One connection's requests, until the schedule has no more. The latency of each goes to `latencies`, in nanoseconds.
fn run(arguments: &Arguments, schedule: &Schedule, latencies: &mut Vec<u64>) -> io::Result<()> {
    let mut stream = TcpStream::connect(arguments.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", arguments.path, arguments.address);
    let mut received = Vec::new();
    while let Some(due) = schedule.take() {
        let from = wait_for(due);
        stream.write_all(request.as_bytes())?;
        match read_answer(&mut stream, &mut received) {
            // Never answered, as far as this run goes; so are those that this connection would have sent.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        }
        latencies.push(u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(())
}

/// Reads one response and leaves nothing of it in `received`.
fn read_answer(stream: &mut TcpStream, received: &mut Vec<u8>) -> io::Result<()> {
    received.clear();
    let mut piece = [0; 16 << 10];
    loop {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        received.extend_from_slice(&piece[..read]);
        if length(received)?.is_some_and(|length| received.len() >= length) {
            return Ok(());
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
    // Threads inherit it. Where it can't be set they wake up to 50 µs late, which `wait_for` allows for.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let schedule = Schedule::new(arguments.rate, Duration::try_from_secs_f64(arguments.seconds)?);
    let connections: Vec<_> = thread::scope(|scope| {
        let connection = || {
            let mut latencies = Vec::new();
            let ended = run(arguments, &schedule, &mut latencies);
            (latencies, ended)
        };
        let threads: Vec<_> = (0..arguments.connections).map(|_| scope.spawn(connection)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut latencies = Vec::new();
    let mut failures = Vec::new();
    for connection in connections {
        let (more, ended) = connection.map_err(|_| "a thread has panicked")?;
        latencies.extend(more);
        failures.extend(ended.err().map(|error| error.to_string()));
    }
    let took = schedule.start.elapsed();
    latencies.sort_unstable();
    let missing = schedule.requests.saturating_sub(latencies.len() as u64);
    Ok(serde_json::json!({
        "due": schedule.requests,
        "answered": latencies.len(),
        "seconds": took.as_secs_f64(),
        "failed_connections": failures.len(),
        "first_failure": failures.first().map_or("", String::as_str),
        "p50_us": percentile(&latencies, missing, 50),
        "p99_us": percentile(&latencies, missing, 99),
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
}
