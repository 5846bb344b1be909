//! Asks a running process of the same program whether it is ready: for container health checks, in images without a shell.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long a connection may take, and after it the whole answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// More of an answer is not read.
const MAX_ANSWER: usize = 4096;

/// Asks `/readyz` at `admin`, where the process listens; an unspecified address is asked through loopback.
///
/// # Errors
/// What the process answered instead of 200, or that nobody answered.
pub fn ready(admin: SocketAddr) -> Result<(), Box<dyn Error>> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let own = [admin.ip()];
    let hosts = match admin.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => &[v4][..],
        // A container without IPv6 has no ::1, and a host without IPv4 no 127.0.0.1.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => &[v6, v4],
        _ => &own,
    };
    let mut nobody = None;
    for address in hosts.iter().map(|host| SocketAddr::new(*host, admin.port())) {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return ask(stream, address),
            Err(error) => nobody = Some(format!("nobody answers at {address}: {error}")),
        }
    }
    Err(nobody.unwrap_or_default().into())
}

fn ask(mut stream: TcpStream, address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let answer = exchange(&mut stream, address).map_err(|error| match error.kind() {
        // What a socket's own timeout is called on Linux.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no answer from {address} within {TIMEOUT:?}"),
        _ => format!("nobody answers at {address}: {error}"),
    })?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let reason = answer.split("\r\n\r\n").nth(1).unwrap_or(&answer).trim();
    Err(format!("{address} says: {reason}").into())
}

/// Sends the question; returns the answer, or as much of it as anybody needs.
fn exchange(stream: &mut TcpStream, address: SocketAddr) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let question = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    while answer.len() < MAX_ANSWER {
        // A socket's timeout is for one read, and whoever dribbles would never reach it.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn answering(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        port
    }

    #[test]
    fn every_address_is_asked_where_it_is_reached() {
        for ip in ["127.0.0.1", "0.0.0.0", "::"] {
            let port = answering("HTTP/1.1 200 OK\r\n\r\nready\n");
            let asked = ready(SocketAddr::new(ip.parse().unwrap(), port));
            assert!(asked.is_ok(), "{ip}: {asked:?}");
        }
    }

    #[test]
    fn who_is_not_ready_says_why_and_who_is_not_there_is_named() {
        let port = answering("HTTP/1.1 503 Service Unavailable\r\n\r\nno backend is alive\n");
        let error = ready(SocketAddr::from(([127, 0, 0, 1], port))).unwrap_err().to_string();
        assert_eq!(error, format!("127.0.0.1:{port} says: no backend is alive"));
        // It took one question.
        let error = ready(SocketAddr::new("::".parse().unwrap(), port))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("nobody answers at 127.0.0.1:{port}: ")),
            "{error}"
        );
    }

    #[test]
    fn an_answer_that_dribbles_or_never_comes_is_not_waited_for() {
        for dribbles in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(TIMEOUT / 20)).unwrap();
                for byte in b"HTTP/1.1 200 OK\r\n".iter().cycle() {
                    if dribbles && stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    // The pace: nothing comes but the question.
                    if matches!(stream.read(&mut [0; 4096]), Ok(0)) {
                        return;
                    }
                }
            });
            let begun = Instant::now();
            let error = ready(address).unwrap_err().to_string();
            assert_eq!(error, format!("no answer from {address} within 2s"));
            assert!(begun.elapsed() < 5 * TIMEOUT, "{:?}", begun.elapsed());
        }
    }
}
