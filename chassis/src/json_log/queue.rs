//! The queue of lines for standard output, with a bound in bytes, and the thread that empties it in batches.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much may wait for the writer before lines are dropped, in bytes: some 30,000 lines.
const CAPACITY: usize = 8 << 20;

/// How long lines of requests are gathered before they are written, and how many bytes are enough to write at once: waking the
/// writer for each of them, and a system call for each, costs more than making it. All other lines are written at once.
const GATHER: Duration = Duration::from_millis(10);
const ENOUGH: usize = 64 << 10;

/// Lines waiting for the writer thread.
///
/// One buffer that producers append to and the writer swaps out whole: a producer holds the lock for a copy of some 300
/// bytes and never during a write.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signalled when `pending` stops being empty.
    filled: Condvar,
    /// Signalled when the writer is to gather no longer.
    enough: Condvar,
    /// Signalled when everything pushed so far has been written.
    drained: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// The writer holds a batch that is not written yet.
    writing: bool,
    /// There is a line that is not to wait for others.
    at_once: bool,
    /// Somebody waits until all is written, so the writer gathers no more lines.
    hurry: bool,
}

impl Queue {
    /// How many lines were dropped: the queue was full, or the output did not take them.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A panic while holding the lock can't leave the buffer half-changed, so a poisoned lock is as good as a whole one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, its end included.
    pub(super) fn push(&self, line: &[u8], at_once: bool) {
        let mut state = self.lock();
        if state.pending.len() + line.len() > CAPACITY {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.pending.is_empty();
        state.pending.extend_from_slice(line);
        let enough = at_once || (state.pending.len() >= ENOUGH && state.pending.len() - line.len() < ENOUGH);
        state.at_once |= at_once;
        drop(state);
        if was_empty {
            self.filled.notify_one();
        }
        if enough {
            self.enough.notify_one();
        }
    }

    /// Writes batches to `out` for ever.
    pub(super) fn write_out(&self, out: impl Write) {
        /// A burst may grow the buffers to [`CAPACITY`]; past this they are given back.
        const KEPT: usize = 256 << 10;

        let mut writer = Writer { out, cut: Vec::new() };
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            state.writing = false;
            if state.pending.is_empty() && std::mem::take(&mut state.hurry) {
                self.drained.notify_all();
            }
            while state.pending.is_empty() {
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state = self
                .enough
                .wait_timeout_while(state, GATHER, |state| {
                    !state.hurry && !state.at_once && state.pending.len() < ENOUGH
                })
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            std::mem::swap(&mut state.pending, &mut batch);
            state.writing = true;
            state.at_once = false;
            drop(state);

            self.dropped.fetch_add(writer.write(&batch), Ordering::Relaxed);
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }

    /// Returns when everything pushed so far has been written or dropped, after `limit` at the latest.
    pub(super) fn wait_until_written(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let mut state = self.lock();
        while state.writing || !state.pending.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.hurry = true;
            self.enough.notify_one();
            state = self
                .drained
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// An output that gets whole lines, whatever fails on the way.
struct Writer<W> {
    out: W,
    /// The rest of a line whose beginning is out, because the output failed in the middle of it. It goes first.
    cut: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes `lines`, and returns how many of them the output did not take.
    fn write(&mut self, lines: &[u8]) -> u64 {
        let written = write_some(&mut self.out, &self.cut);
        self.cut.drain(..written);
        if !self.cut.is_empty() {
            return count(lines);
        }
        let (written, lost) = lines.split_at(write_some(&mut self.out, lines));
        let is_cut = written.last().is_some_and(|last| *last != b'\n');
        let end = lost.iter().position(|byte| is_cut && *byte == b'\n');
        let (cut, lost) = lost.split_at(end.map_or(0, |end| end + 1));
        self.cut.extend_from_slice(cut);
        count(lost)
    }
}

/// Writes `bytes` until an error, and returns how many were written.
fn write_some(out: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(more) => written += more,
        }
    }
    written
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A standard output that takes nothing until it is told to.
    struct Stalled(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_output_drops_lines_past_the_bound_and_never_blocks() {
        let queue = Arc::new(Queue::default());
        let (go, stalled) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let out = Stalled(stalled, Arc::clone(&written));
        let writer = Arc::clone(&queue);
        std::thread::spawn(move || writer.write_out(out));

        let long = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let lines = 3 * CAPACITY / long.len();
        for _ in 0..lines {
            queue.push(&long, false);
        }
        let dropped = usize::try_from(queue.dropped()).unwrap();
        assert!(dropped >= lines / 3, "{dropped} of {lines} lines dropped");

        drop(go);
        queue.wait_until_written(Duration::from_secs(10));
        let written = written.lock().unwrap_or_else(PoisonError::into_inner).len();
        assert_eq!(
            written / long.len() + dropped,
            lines,
            "every line was written or counted"
        );
    }

    /// An output with room for so many bytes, a few at a time: a disk that is full and then is not.
    #[derive(Default)]
    struct Disk {
        room: usize,
        holds: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let taken = bytes.len().min(self.room).min(5);
            self.room -= taken;
            self.holds.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_fails_anywhere_gets_whole_lines_and_the_others_are_counted() {
        let batches = [&b"first\nsecond\n"[..], b"third\n", b"fourth\nfifth\n", b"sixth\n"];
        let all: Vec<&str> = vec!["first", "second", "third", "fourth", "fifth", "sixth"];
        for room in 0..40 {
            for more in 0..20 {
                let out = Disk {
                    room,
                    ..Disk::default()
                };
                let mut writer = Writer { out, cut: Vec::new() };
                let mut lost = writer.write(batches[0]) + writer.write(batches[1]);
                writer.out.room += more;
                lost += writer.write(batches[2]);
                writer.out.room = 100;
                lost += writer.write(batches[3]);
                let text = String::from_utf8(writer.out.holds).unwrap();
                assert!(text.ends_with("sixth\n"), "{text:?}");
                let lines: Vec<&str> = text.lines().collect();
                assert!(lines.iter().all(|line| all.contains(line)), "{text:?}");
                assert_eq!(
                    lines.len() as u64 + lost,
                    all.len() as u64,
                    "{room} and {more}: {text:?}"
                );
            }
        }
    }
}
