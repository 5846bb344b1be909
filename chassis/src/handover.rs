//! Listening sockets handed from a running process to its successor, so that an upgrade loses no connection.
//!
//! The successor waits on a Unix socket; the running process, told by a signal, connects to it and sends its
//! listening sockets. Both then have the same sockets with the same queue of connections, and who accepts serves. What
//! follows settles that there is never a moment when nobody serves, whoever of the two dies:
//!
//! 1. the running process sends the sockets;
//! 2. the successor gets ready (it finds its backends), serving nothing yet, and says `READY`;
//! 3. the running process, if it is still waiting, answers `GO`. A successor that does not hear that leaves;
//! 4. the successor accepts connections and says `SERVING`;
//! 5. the running process stops accepting and drains. If it does not hear that, it goes on serving.
//!
//! (Pingora's own handover has no answer: the old process leaves after five seconds, whatever became of the new one.)
//!
//! Whoever can connect to that socket, or put one in its place, gets the ports of the proxy or can take them. So it lies
//! in a directory that belongs to this user alone, and both sides check that.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

const SOCKETS: u8 = b'F';
const READY: u8 = b'R';
const GO: u8 = b'G';
const SERVING: u8 = b'S';

/// How many sockets may be handed over at once.
const MOST_SOCKETS: usize = 8;
/// How long an answer may take that costs the other side nothing.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a waiting successor looks.
const POLL: Duration = Duration::from_millis(20);

/// The successor's side, before the sockets have come.
#[derive(Debug)]
pub struct Waiting {
    socket: UnixListener,
    path: PathBuf,
}

impl Waiting {
    /// Waits at `path` from now on. Its directory is made, for this user alone, if it is not there. A socket that an earlier
    /// successor left behind is replaced.
    ///
    /// # Errors
    /// When the directory is open to others, or the socket can't be made.
    pub fn at(path: &Path) -> io::Result<Self> {
        let said = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
        let directory = directory_of(path)?;
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(said(
                    &format!(
                        "can't make {}; set upgrade_sock to a place that can be",
                        directory.display()
                    ),
                    error,
                ));
            }
            _ => {}
        }
        let path = &private(path)?;
        let make = || {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let socket = UnixListener::bind(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = make().map_err(|error| said(&format!("can't wait at {}", path.display()), error))?;
        Ok(Self {
            socket,
            path: path.clone(),
        })
    }

    /// Waits for the sockets, in the order in which the running process sends them, for `patience`.
    ///
    /// # Errors
    /// When none came in time, or what came is no handover.
    #[allow(
        clippy::disallowed_methods,
        reason = "a successor has no runtime yet, and nothing else to do"
    )]
    pub fn receive(self, patience: Duration) -> io::Result<(Vec<TcpListener>, Predecessor)> {
        let end = Instant::now() + patience;
        let stream = loop {
            match self.socket.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    std::thread::sleep(POLL);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no running process handed its sockets over within {patience:?}"),
                    ));
                }
                Err(error) => return Err(error),
            }
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let sockets = receive_sockets(&stream)?;
        Ok((sockets, Predecessor(stream)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Another successor may have put its own there, or the directory may be gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// The running process, as its successor sees it.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Says that this process is ready to serve.
    ///
    /// # Errors
    /// When the running process has given up waiting, so that this one must not serve.
    pub fn ready(&mut self) -> io::Result<()> {
        let given_up = |_| io::Error::other("the running process does not wait any more, and goes on serving");
        self.0.write_all(&[READY]).map_err(given_up)?;
        expect(&mut self.0, GO, ANSWER).map_err(given_up)
    }

    /// Says that this process serves. If nobody hears it, the other one is gone, which is as good.
    pub fn serving(mut self) {
        let _ = self.0.write_all(&[SERVING]);
    }
}

/// A successor that waits, as the running process sees it.
#[derive(Debug)]
pub struct Successor(UnixStream);

impl Successor {
    /// The successor that waits at `path`, if there is one.
    ///
    /// # Errors
    /// When something is there that must not be trusted.
    pub fn waiting_at(path: &Path) -> io::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        // An error means nobody: the socket of one that is gone.
        Ok(UnixStream::connect(private(path)?).ok().map(Self))
    }

    /// Sends `sockets` and returns when the successor serves them. It may take `patience` to get ready.
    ///
    /// # Errors
    /// When the successor does not get there: this process must go on serving.
    pub fn hand_over(mut self, sockets: &[&TcpListener], patience: Duration) -> io::Result<()> {
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::Error::other("too many sockets for one handover"));
        }
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&[SOCKETS])],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        expect(&mut self.0, READY, patience)?;
        self.0.write_all(&[GO])?;
        expect(&mut self.0, SERVING, ANSWER)
    }
}

fn receive_sockets(stream: &UnixStream) -> io::Result<Vec<TcpListener>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut tag = [0];
    rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut tag)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let sockets: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        })
        .flatten()
        .collect();
    if tag != [SOCKETS] || sockets.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what came is no handover: is the running process of another kind?",
        ));
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

/// Reads one byte, which must be `wanted`.
fn expect(stream: &mut UnixStream, wanted: u8, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    let mut byte = [0];
    match stream.read_exact(&mut byte) {
        Ok(()) if byte == [wanted] => Ok(()),
        Ok(()) => Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks another protocol")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::other("it has ended")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it said nothing for {patience:?}"),
        )),
        Err(error) => Err(error),
    }
}

fn directory_of(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(directory) if path.is_absolute() && path.file_name().is_some() => Ok(directory),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not the absolute path of a file", path.display()),
        )),
    }
}

/// `path` with the real name of its directory, which only this user can enter.
fn private(path: &Path) -> io::Result<PathBuf> {
    let directory = fs::canonicalize(directory_of(path)?)?;
    let entry = fs::metadata(&directory)?;
    let own = entry.uid() == rustix::process::geteuid().as_raw();
    if !entry.is_dir() || !own || entry.mode() & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "{} must be a directory of this user that nobody else can enter (mode 0700), or others could take the ports",
                directory.display()
            ),
        ));
    }
    Ok(directory.join(path.file_name().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn socket() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private").join("upgrade.sock");
        (directory, path)
    }

    #[test]
    fn the_successor_gets_the_same_sockets_in_order() {
        let (_directory, path) = place();
        let waiting = Waiting::at(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        let ours = [socket(), socket()];
        let addresses = ours.each_ref().map(|socket| socket.local_addr().unwrap());
        let successor = thread::spawn(move || {
            let (sockets, mut predecessor) = waiting.receive(SOON).unwrap();
            predecessor.ready().unwrap();
            predecessor.serving();
            sockets
        });
        let handover = Successor::waiting_at(&path).unwrap().expect("it waits");
        handover.hand_over(&ours.each_ref(), SOON).unwrap();
        let theirs = successor.join().unwrap();
        let received: Vec<_> = theirs.iter().map(|socket| socket.local_addr().unwrap()).collect();
        assert_eq!(received, addresses);
        assert!(Successor::waiting_at(&path).unwrap().is_none(), "nobody waits any more");
    }

    #[test]
    fn a_successor_that_dies_before_it_serves_has_taken_nothing() {
        for dies_after_ready in [false, true] {
            let (_directory, path) = place();
            let waiting = Waiting::at(&path).unwrap();
            let successor = thread::spawn(move || {
                let (_, mut predecessor) = waiting.receive(SOON).unwrap();
                if dies_after_ready {
                    predecessor.ready().unwrap();
                }
            });
            let handover = Successor::waiting_at(&path).unwrap().expect("it waits");
            let error = handover.hand_over(&[&socket()], SOON).unwrap_err();
            assert_eq!(error.to_string(), "it has ended");
            successor.join().unwrap();
        }
    }

    #[test]
    fn a_successor_that_nobody_waits_for_any_more_must_not_serve() {
        let (_directory, path) = place();
        let waiting = Waiting::at(&path).unwrap();
        let handover = Successor::waiting_at(&path).unwrap().expect("it waits");
        let error = handover.hand_over(&[&socket()], Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (_, mut predecessor) = waiting.receive(SOON).unwrap();
        let error = predecessor.ready().unwrap_err().to_string();
        assert!(error.contains("goes on serving"), "{error}");
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused_by_both_sides() {
        let (_directory, path) = place();
        let waiting = Waiting::at(&path).unwrap();
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        let error = Successor::waiting_at(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0700"), "{error}");
        drop(waiting);
        let error = Waiting::at(&path).unwrap_err().to_string();
        assert!(error.contains("mode 0700"), "{error}");
    }

    #[test]
    fn waiting_ends() {
        let (_directory, path) = place();
        let error = Waiting::at(&path).unwrap().receive(Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!path.exists());
        assert!(Waiting::at(Path::new("upgrade.sock")).is_err(), "not an absolute path");
    }
}
