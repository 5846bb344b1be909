//! Hands the listening sockets from a running process to its successor, so that an upgrade loses no connection.
//!
//! The successor waits on a Unix socket; the running process, on a signal, connects to it and sends its listening sockets.
//! Both then have the same sockets with the same queue of connections, and whoever accepts serves. What follows settles
//! which of the two that is, however long either of them is paused and whenever either of them dies:
//!
//! 1. the running process sends the sockets, and goes on accepting;
//! 2. the successor gets ready (it finds its backends), accepting nothing yet, and says `READY`;
//! 3. the running process answers `GO`, and can't take that back. Until then it may say `NO` and serve on: when the successor
//!    is silent for too long, or when the running process is asked to end;
//! 4. the successor **reads** `GO`. That is the one event that decides: now it accepts connections, and says `SERVING`;
//! 5. the running process hears that, stops accepting and drains.
//!
//! Why there is always exactly one winner:
//!
//! - The successor accepts only once it has read `GO`, and reads it once. One that gives up closes its end without reading.
//! - After `GO` the running process accepts until it has heard `SERVING` from a successor that lives, or until the successor is
//!   gone. There is no time limit, because none would be right: a paused successor that has `GO` in its socket will serve when
//!   it wakes. Until then the running process takes the connections from the queue that both share, so the wait costs nothing.
//! - Neither takes silence for death, because a pause looks the same. Only the kernel knows who is dead, and says so by a closed
//!   connection and a pidfd. When the running process has died without saying `NO`, nobody but the successor has the sockets, so
//!   it serves, with backends or without.
//!
//! `protocol` has both sides as state machines, which this code drives and whose tests search all interleavings.
//!
//! With `GO` come **notes** of bytes that mean something to the caller, each in an unnamed file. A version that knows of fewer
//! ignores the other files, and one that gets fewer has empty notes. (Version 0.1.0 also never says `NO`: it closes. So a connection
//! that closes while the process lives is a `NO`.)
//!
//! Whoever can connect to the socket, or put one in its place, gets the ports or can take them. So it lies in a directory
//! that belongs to this user alone, and both sides check that (`place`).

mod place;
mod protocol;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use place::Place;
use protocol::{Message, Running, RunningEvent, SuccessorEvent};

/// Comes with the sockets.
const SOCKETS: u8 = b'F';

/// The most descriptors in one message.
const MOST_DESCRIPTORS: usize = 8;
/// The longest note, in bytes. What is longer is cut.
pub const MOST_NOTE: usize = 4 << 20;
/// How long an answer may take that costs the other side nothing.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the kernel may take to declare a process dead whose connections it has closed.
const DEATH: Duration = Duration::from_secs(5);
/// From one look at that to the next.
const POLL: Duration = Duration::from_millis(10);

/// The successor's side, before the sockets have come.
#[derive(Debug)]
pub struct Waiting(Place);

impl Waiting {
    /// Waits at `path` from now on; until it is dropped no other successor can. Makes the directory, for this user alone, if
    /// there is none. Replaces a socket that a dead successor left behind, and nothing else.
    ///
    /// # Errors
    /// When the directory is open to others, another successor waits there, or something else than a socket is in the way.
    pub fn at(path: &Path) -> io::Result<Self> {
        Place::take(path).map(Self)
    }

    /// Waits for the sockets, in the order in which the running process sends them, for `patience`. Can be dropped at any time.
    ///
    /// # Errors
    /// When none came in time, or what came is no handover.
    pub async fn receive(self, patience: Duration) -> io::Result<(Vec<TcpListener>, Predecessor)> {
        let silent = |what: &str, patience| {
            let problem = format!("no running process {what} within {patience:?}");
            io::Error::new(io::ErrorKind::TimedOut, problem)
        };
        let (stream, _) = timeout(patience, self.0.socket.accept())
            .await
            .map_err(|_| silent("handed its sockets over", patience))??;
        let peer = Peer::new(stream);
        let message = timeout(ANSWER, peer.hear()).await;
        match message.map_err(|_| silent("that connected sent its sockets", ANSWER))? {
            Some((SOCKETS, sockets)) if !sockets.is_empty() => {
                let sockets = sockets.into_iter().map(TcpListener::from).collect();
                Ok((sockets, Predecessor(peer.suspend()?)))
            }
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "what came is no handover: is the running process of another kind?",
            )),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the running process ended before it had sent its sockets",
            )),
        }
    }
}

/// The running process, as its successor sees it.
#[derive(Debug)]
pub struct Predecessor(Suspended);

impl Predecessor {
    /// Waits until this process is `prepared` and the running one lets it serve. From then on it must serve: nobody else will.
    ///
    /// # Errors
    /// Why this process must not serve: the running one does.
    pub async fn take_over(self, prepared: impl Future<Output = Result<(), String>>) -> Result<TakenOver, String> {
        let peer = self.0.resume().map_err(|error| error.to_string())?;
        let mut side = protocol::Successor::Preparing;
        let mut notes = Vec::new();
        let mut unprepared = None;
        tokio::pin!(prepared);
        loop {
            let has_looked = unprepared.is_some();
            let mut found = |found: Result<(), String>| match found {
                Ok(()) => SuccessorEvent::Prepared,
                Err(why) => {
                    unprepared = Some(why);
                    SuccessorEvent::Unprepared
                }
            };
            let mut event = match side {
                protocol::Successor::Preparing => tokio::select! {
                    biased;
                    event = peer.hear_predecessor(&mut notes) => event,
                    result = &mut prepared => found(result),
                },
                protocol::Successor::Alone if has_looked => SuccessorEvent::Unprepared,
                protocol::Successor::Alone => found(prepared.as_mut().await),
                _ => timeout(ANSWER, peer.hear_predecessor(&mut notes))
                    .await
                    .unwrap_or(SuccessorEvent::Timeout),
            };
            // What there is to hear comes before the end of patience, however late both are seen.
            let impatient = matches!(event, SuccessorEvent::Unprepared | SuccessorEvent::Timeout);
            if impatient && side != protocol::Successor::Alone && peer.is_readable() {
                event = peer.hear_predecessor(&mut notes).await;
            }
            let said;
            (side, said) = side.on(event);
            if let Some(message) = said {
                // If it can't be said, the other is gone, which is heard next.
                let _ = peer.say(message as u8, &[]);
            }
            match side {
                protocol::Successor::Serves => {
                    let alone = event != SuccessorEvent::Heard(Some(Message::Go));
                    return Ok(TakenOver { notes, alone, peer });
                }
                protocol::Successor::Leaves => {
                    return Err(match event {
                        SuccessorEvent::Timeout => format!("the running process said nothing for {ANSWER:?}"),
                        SuccessorEvent::Heard(Some(Message::No)) => "the running process has called it off".into(),
                        SuccessorEvent::Heard(_) => "the running process speaks another protocol".into(),
                        _ => unprepared.unwrap_or_else(|| "not prepared".into()),
                    });
                }
                _ => {}
            }
        }
    }
}

/// The right to serve.
#[derive(Debug)]
pub struct TakenOver {
    /// What the running process left.
    notes: Vec<Vec<u8>>,
    /// The running process died before it could answer.
    pub alone: bool,
    peer: Peer,
}

impl TakenOver {
    /// The note of this number, from 0. Empty when there is none.
    pub fn note(&self, number: usize) -> &[u8] {
        self.notes.get(number).map_or(&[], Vec::as_slice)
    }

    /// Says that this process accepts connections. If nobody hears it, the other one is dead.
    pub fn serving(self) {
        let _ = self.peer.say(Message::Serving as u8, &[]);
    }
}

/// A successor that waits, as the running process sees it.
#[derive(Debug)]
pub struct Successor(Peer);

impl Successor {
    /// The successor that waits at `path`, if there is one.
    ///
    /// # Errors
    /// When something is there that must not be trusted, or does not answer.
    pub async fn waiting_at(path: &Path) -> io::Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        match UnixStream::connect(place::private(path)?).await {
            Ok(stream) => Ok(Some(Self(Peer::new(stream)))),
            // Nobody: the socket of one that is gone.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                Ok(None)
            }
            Err(error) => Err(io::Error::new(
                error.kind(),
                match error.kind() {
                    io::ErrorKind::WouldBlock => format!(
                        "the successor at {} takes no connection, and its queue is full: is it stopped? End it",
                        path.display()
                    ),
                    _ => format!("can't connect to {}: {error}", path.display()),
                },
            )),
        }
    }

    /// Its process id, where that can be seen.
    pub fn pid(&self) -> Option<i32> {
        self.0.pid
    }

    /// Sends `sockets`, and returns when this process must stop accepting: the successor serves them. The successor may take
    /// `patience` to get ready; then it gets the `notes`. When `called_off` comes first, the successor is sent away; if it comes when
    /// the successor has the order to serve, this process need not wait for it.
    ///
    /// # Errors
    /// Why the successor does not get there: this process must go on accepting.
    pub async fn hand_over(
        self,
        sockets: &[&TcpListener],
        patience: Duration,
        notes: impl FnOnce() -> Vec<Vec<u8>>,
        called_off: impl Future<Output = ()>,
    ) -> Result<(), String> {
        let peer = self.0;
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        peer.say(SOCKETS, &sockets).map_err(|error| error.to_string())?;
        let mut side = Running::Offered;
        let mut notes = Some(notes);
        let mut impatient = Some(Instant::now() + patience);
        tokio::pin!(called_off);
        loop {
            let mut event = tokio::select! {
                biased;
                heard = peer.hear() => peer.running_event(heard),
                () = &mut called_off => RunningEvent::CalledOff,
                () = sleep_until(impatient.unwrap_or_else(Instant::now)), if impatient.is_some() => RunningEvent::Timeout,
            };
            if event == RunningEvent::Timeout && peer.is_readable() {
                event = peer.running_event(peer.hear().await);
            }
            let said;
            (side, said) = side.on(event);
            match said {
                Some(Message::Go) => {
                    let notes = notes.take().map(|notes| notes()).unwrap_or_default();
                    peer.go(&notes);
                    impatient = Some(Instant::now() + ANSWER);
                }
                Some(message) => drop(peer.say(message as u8, &[])),
                None => {}
            }
            match side {
                Running::HandedOver => return Ok(()),
                Running::Keeps => {
                    return Err(match event {
                        RunningEvent::Gone => "it has ended".into(),
                        RunningEvent::Timeout => format!("it said nothing for {patience:?}"),
                        RunningEvent::CalledOff => "the handover was called off".into(),
                        RunningEvent::Heard(_) => "it speaks another protocol".into(),
                    });
                }
                Running::Committed if event == RunningEvent::Timeout => {
                    impatient = None;
                    warn!(
                        pid = peer.pid.unwrap_or_default();
                        "the successor may serve and does not yet: is it stopped? Serving until it does, or ends"
                    );
                }
                Running::Offered | Running::Committed => {}
            }
        }
    }
}

/// The other process: a connection to it, and what the kernel says of its life.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    pid: Option<i32>,
    /// `None` where its process can't be seen, as in another container.
    process: Option<OwnedFd>,
}

/// The same without a runtime.
#[derive(Debug)]
struct Suspended {
    stream: std::os::unix::net::UnixStream,
    pid: Option<i32>,
    process: Option<OwnedFd>,
}

impl Suspended {
    fn resume(self) -> io::Result<Peer> {
        Ok(Peer {
            stream: UnixStream::from_std(self.stream)?,
            pid: self.pid,
            process: self.process,
        })
    }
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let process = pid
            .and_then(Pid::from_raw)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { stream, pid, process }
    }

    fn suspend(self) -> io::Result<Suspended> {
        Ok(Suspended {
            stream: self.stream.into_std()?,
            pid: self.pid,
            process: self.process,
        })
    }

    /// Whether it is dead; `None` where that can't be seen.
    fn is_dead(&self) -> Option<bool> {
        self.process.as_ref().map(is_ready)
    }

    /// Whether it has said something that is not read yet, or closed.
    fn is_readable(&self) -> bool {
        is_ready(&self.stream)
    }

    /// Sends one byte, and `descriptors` with it. There is always room for the few bytes of a handover, so this never waits.
    fn say(&self, byte: u8, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("too many sockets for one handover"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.stream, &[IoSlice::new(&[byte])], &mut ancillary, flags)?;
        Ok(())
    }

    /// Says GO, with the notes. Without them where there is no memory for one.
    fn go(&self, notes: &[Vec<u8>]) {
        let files: io::Result<Vec<_>> = notes.iter().map(|note| unnamed_file(note)).collect();
        let with_notes = files.and_then(|files| {
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            self.say(Message::Go as u8, &files)
        });
        if let Err(error) = with_notes {
            warn!(error = error.to_string().as_str(); "the successor starts without what this process knows of its clients");
            // If this can't be said either, the successor gives up soon, which is heard.
            let _ = self.say(Message::Go as u8, &[]);
        }
    }

    /// The next byte, with the descriptors that came along; `None` when no more will come. Can be dropped at any time.
    async fn hear(&self) -> Option<(u8, Vec<OwnedFd>)> {
        let receive = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let message = rustix::net::recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut byte)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            let descriptors = ancillary.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            Ok((message.bytes > 0).then(|| (byte[0], descriptors.flatten().collect())))
        };
        // An error is a connection that the other side reset.
        self.stream.async_io(Interest::READABLE, receive).await.ok().flatten()
    }

    fn running_event(&self, heard: Option<(u8, Vec<OwnedFd>)>) -> RunningEvent {
        let Some((byte, _)) = heard else {
            return RunningEvent::Gone;
        };
        let message = Message::from_byte(byte);
        if message == Some(Message::Serving) && self.is_dead() == Some(true) {
            return RunningEvent::Gone;
        }
        RunningEvent::Heard(message)
    }

    async fn hear_predecessor(&self, notes: &mut Vec<Vec<u8>>) -> SuccessorEvent {
        match self.hear().await {
            Some((byte, descriptors)) => {
                let message = Message::from_byte(byte);
                let read = |file| contents(file).unwrap_or_default();
                notes.extend(descriptors.into_iter().map(read));
                SuccessorEvent::Heard(message)
            }
            None => {
                let end = Instant::now() + DEATH;
                while self.is_dead() == Some(false) {
                    if Instant::now() >= end {
                        return SuccessorEvent::Heard(Some(Message::No));
                    }
                    sleep(POLL).await;
                }
                SuccessorEvent::Died
            }
        }
    }
}

/// Whether there is something to read now. Asks the kernel, because what the runtime knows can be older than a timer.
fn is_ready(descriptor: &impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut descriptor = [PollFd::new(descriptor, PollFlags::IN)];
    rustix::event::poll(&mut descriptor, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn unnamed_file(contents: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("handover", MemfdFlags::CLOEXEC)?);
    file.write_all(&contents[..contents.len().min(MOST_NOTE)])?;
    Ok(file)
}

fn contents(file: OwnedFd) -> io::Result<Vec<u8>> {
    let (mut file, mut contents) = (File::from(file), Vec::new());
    file.rewind()?;
    file.take(MOST_NOTE as u64).read_to_end(&mut contents)?;
    Ok(contents)
}

#[cfg(test)]
mod tests;
