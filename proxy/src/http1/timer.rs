//! A timer for deadlines that keep moving.
//!
//! Each request moves the deadlines of an idle client and a silent origin, which are almost never reached. Setting a
//! timer would be the most expensive part of that. So this one is not touched when a deadline moves, and is set again
//! only when it fires too early: once per timeout, not thousands of times.
//!
//! Time in which the process did not run (stopped, suspended) does not count.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use chassis::pauses;
use tokio::time::{Instant, Sleep, sleep_until};

/// One timer, for one deadline at a time.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when the process has run for `limit` since `since`.
    pub fn poll(&mut self, context: &mut Context<'_>, since: std::time::Instant, limit: Duration) -> Poll<()> {
        let end = Instant::from_std(since) + limit;
        ready!(self.poll_until(context, end));
        let lost = pauses::lost_since(since);
        if lost.is_zero() {
            Poll::Ready(())
        } else {
            self.poll_until(context, end + lost)
        }
    }

    /// Ready when `end` has passed.
    fn poll_until(&mut self, context: &mut Context<'_>, end: Instant) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if timer.deadline() >= end || Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_fires_at_the_end_however_the_end_has_moved() {
        let mut timer = Timer::default();
        let start = Instant::now();
        for seconds in [60, 5, 30, 31, 1] {
            let end = start + Duration::from_secs(seconds);
            let polled = poll_fn(|context| Poll::Ready(timer.poll_until(context, end))).await;
            assert!(polled.is_pending(), "{seconds}");
        }
        for seconds in [3, 10, 2] {
            let end = start + Duration::from_secs(seconds);
            poll_fn(|context| timer.poll_until(context, end)).await;
            let late = Instant::now().saturating_duration_since(end);
            assert!(Instant::now() >= end && (seconds < 10 || late < Duration::from_millis(10)));
        }
    }
}
