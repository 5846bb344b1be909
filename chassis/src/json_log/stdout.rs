//! Unbuffered standard output that waits where a non-blocking write would fail.
//!
//! Whoever reads a pipe can make its other end non-blocking too: the setting belongs to the open file, which both share. A write
//! then fails where it would have waited, and Rust's own `Stdout` takes that for an error after it has written a part.

use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long one wait for the reader takes at most, in nanoseconds; then the output is tried again.
const WAIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// The same where the output called itself ready and was not.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 10_000_000,
};

/// Standard output. Each write takes a part of the bytes or more, and waits for the reader if need be.
pub(super) struct StandardOutput;

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_to(&io::stdout(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
    use std::io::Read;

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
}
