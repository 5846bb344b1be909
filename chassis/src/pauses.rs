//! Times when the process did not run: stopped by a signal, by a debugger, or with its whole machine.
//!
//! When it runs again, every deadline that passed meanwhile fires at once, whatever the other side did. So a deadline for somebody
//! else asks here, when it fires, how much of its time was lost ([`lost_since`]), or is a [`timeout`], which does so itself.
//!
//! A thread looks at the clock twice a second; a longer gap between two looks is a pause. Whoever asks is a look too, so that
//! it does not matter which thread wakes first after a pause. The monotonic clock stands still while Linux suspends the machine, so
//! that no deadline passes then.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time::error::Elapsed;

/// From one look at the clock to the next.
const LOOK: Duration = Duration::from_millis(500);
/// A gap between two looks that is longer is a pause. A thread may be that late on a busy machine, and is then no more late than
/// the others.
const PAUSE: Duration = Duration::from_secs(1);
/// How many pauses are remembered: more than anybody waits through.
const REMEMBERED: usize = 16;

static HISTORY: Mutex<History> = Mutex::new(History::new());

/// Starts to look for pauses; before that, there are none. Once in a process.
///
/// # Errors
/// When there can be no more threads.
pub fn watch() -> io::Result<()> {
    let look_for_ever = || {
        loop {
            history().look(Instant::now());
            #[allow(clippy::disallowed_methods, reason = "this thread is no runtime's")]
            thread::sleep(LOOK);
        }
    };
    thread::Builder::new().name("pauses".into()).spawn(look_for_ever)?;
    Ok(())
}

/// For how much of the time since `start` the process did not run. A pause counts from the last look before it, so that it may
/// be up to half a second too long; one of less than half a second may not be noticed.
pub fn lost_since(start: Instant) -> Duration {
    let now = Instant::now();
    let mut history = history();
    if history.looked.is_some() {
        history.look(now);
    }
    history.lost_since(start)
}

/// Waits for `future` for at most `limit`, as [`tokio::time::timeout`] does, not counting the time when the process did not run.
///
/// # Errors
/// When it takes longer.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let start = tokio::time::Instant::now();
    let mut lost = Duration::ZERO;
    loop {
        match tokio::time::timeout_at(start + limit + lost, future.as_mut()).await {
            Ok(output) => return Ok(output),
            Err(late) => {
                let known = std::mem::replace(&mut lost, lost_since(start.into_std()));
                if lost <= known {
                    return Err(late);
                }
            }
        }
    }
}

fn history() -> MutexGuard<'static, History> {
    HISTORY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last pauses.
struct History {
    /// When somebody last looked.
    looked: Option<Instant>,
    /// From when to when, the oldest first.
    pauses: VecDeque<(Instant, Instant)>,
}

impl History {
    const fn new() -> Self {
        Self {
            looked: None,
            pauses: VecDeque::new(),
        }
    }

    fn look(&mut self, now: Instant) {
        // A thread that waited for the lock comes with a time that is past.
        let before = self.looked.unwrap_or(now);
        self.looked = Some(now.max(before));
        if now.saturating_duration_since(before) > PAUSE {
            if self.pauses.len() == REMEMBERED {
                self.pauses.pop_front();
            }
            self.pauses.push_back((before, now));
        }
    }

    fn lost_since(&self, start: Instant) -> Duration {
        let lost = |&(from, to): &(Instant, Instant)| to.saturating_duration_since(from.max(start));
        self.pauses.iter().map(lost).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_pause_counts_for_what_began_before_its_end() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut history = History::new();
        for seconds in [0.0, 0.5, 1.3, 31.3, 31.8, 32.3, 37.3] {
            history.look(at(seconds));
        }
        for (since, lost) in [
            (0.0, 35.0),
            (1.0, 35.0),
            (11.3, 25.0),
            (31.3, 5.0),
            (32.0, 5.0),
            (35.3, 2.0),
            (37.3, 0.0),
            (40.0, 0.0),
        ] {
            assert_eq!(history.lost_since(at(since)), Duration::from_secs_f64(lost), "{since}");
        }
    }

    #[test]
    fn looks_out_of_order_and_busy_moments_are_no_pauses() {
        let start = Instant::now();
        let mut history = History::new();
        history.look(start + 5 * SECOND);
        history.look(start);
        history.look(start + 6 * SECOND);
        assert_eq!(history.lost_since(start), Duration::ZERO);
    }

    #[test]
    fn the_last_pauses_are_remembered_and_no_more() {
        let start = Instant::now();
        let mut history = History::new();
        for second in 0..100 {
            history.look(start + 2 * second * SECOND);
        }
        assert_eq!(history.pauses.len(), REMEMBERED);
        assert_eq!(history.lost_since(start + 197 * SECOND), SECOND);
        assert_eq!(history.lost_since(start + 194 * SECOND), 4 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_without_pauses_is_one() {
        let start = tokio::time::Instant::now();
        assert!(timeout(SECOND, std::future::pending::<()>()).await.is_err());
        assert_eq!(start.elapsed(), SECOND);
        assert_eq!(timeout(SECOND, async { 1 }).await, Ok(1));
    }
}
