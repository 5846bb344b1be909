//! Unbuffered standard output that waits where a non-blocking write would fail.
//!
//! Whoever reads a pipe can make its other end non-blocking too: the setting belongs to the open file, which both share. A write
//! then fails where it would have waited, and Rust's own `Stdout` takes that for an error after it has written a part.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long one wait for the reader takes at most, in nanoseconds; then the output is tried again.
const WAIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The same where the output called itself ready and was not.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// What a pipe takes without the bytes of another writer in between (POSIX's `PIPE_BUF` on Linux).
const UNDIVIDED: usize = 4096;

/// Standard output. Each write takes a part of the bytes or more, and waits for the reader if need be.
///
/// During an upgrade two processes can have the same one. A slow reader of a pipe or a socket would then get the beginning of
/// one's line, some lines of the other, and the end, so these get whole lines that are written undivided.
pub(super) struct StandardOutput {
    divides: bool,
}

impl StandardOutput {
    pub(super) fn new() -> Self {
        let kind = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .and_then(|output| File::from(output).metadata());
        Self {
            divides: kind.is_ok_and(|kind| kind.file_type().is_fifo() || kind.file_type().is_socket()),
        }
    }
}

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_to(&io::stdout(), if self.divides { undivided(bytes) } else { bytes })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines at the beginning of `bytes` that one write takes undivided. A line that is too long for that is cut.
fn undivided(bytes: &[u8]) -> &[u8] {
    let Some(most) = bytes.get(..UNDIVIDED) else {
        return bytes;
    };
    most.iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(most, |end| &most[..=end])
}

fn write_to(output: &impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let mut was_ready = false;
    loop {
        match rustix::io::write(output, bytes) {
            Err(Errno::AGAIN) if was_ready => {
                was_ready = false;
                let _ = poll(&mut [], Some(&PAUSE));
            }
            Err(Errno::AGAIN) => {
                // If the wait itself fails, the next write reports it.
                was_ready = poll(&mut [PollFd::new(output, PollFlags::OUT)], Some(&WAIT)).is_ok_and(|ready| ready > 0);
            }
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read};

    use super::*;

    #[test]
    fn a_pipe_that_would_block_is_waited_for_and_gets_every_byte() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let sent: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let writing = std::thread::spawn(move || {
            let mut left = sent.as_slice();
            while !left.is_empty() {
                let written = write_to(&writer, left).unwrap();
                left = &left[written..];
            }
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        assert!(received == expected);
    }

    #[test]
    fn the_lines_of_two_processes_stay_whole_where_the_reader_is_slow() {
        let (reader, writer) = io::pipe().unwrap();
        let writing = ["a", "b"].map(|letter| {
            let writer = writer.try_clone().unwrap();
            std::thread::spawn(move || {
                let lines = format!("{}\n", letter.repeat(300)).repeat(2_000);
                let mut left = lines.as_bytes();
                while !left.is_empty() {
                    let written = write_to(&writer, undivided(left)).unwrap();
                    left = &left[written..];
                }
            })
        });
        drop(writer);
        let mut reader = io::BufReader::with_capacity(1_000, reader);
        let (mut count, mut line) = (0, String::new());
        while reader.read_line(&mut line).unwrap() > 0 {
            let letter = &line[..1];
            assert_eq!(line, format!("{}\n", letter.repeat(300)));
            count += 1;
            line.clear();
        }
        assert_eq!(count, 4_000);
        writing.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn one_write_has_whole_lines_where_they_are_not_too_long() {
        assert_eq!(undivided(b"a\nb\n"), b"a\nb\n");
        let lines = "0123456789\n".repeat(1_000);
        assert_eq!(undivided(lines.as_bytes()).len(), UNDIVIDED / 11 * 11);
        assert_eq!(undivided(&[b'x'; 2 * UNDIVIDED]).len(), UNDIVIDED);
    }
}
