//! The time of day, within the range that date formats can write.
//!
//! The formats have four digits for a year and begin in 1970, and the functions that write them panic outside of that range. A
//! wrong clock must not end a request, so everything that writes a date takes the time from [`now`].

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 9999-12-31T23:59:59Z, in seconds since 1970.
const LAST: u64 = 253_402_300_799;

/// The time that the clock shows, or the nearest one in the years 1970 to 9999.
pub fn now() -> SystemTime {
    UNIX_EPOCH + since_1970()
}

/// [`now`] as the time since 1970.
pub fn since_1970() -> Duration {
    within(SystemTime::now())
}

/// `time` since 1970, moved to the nearest second that can be written.
fn within(time: SystemTime) -> Duration {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) if since.as_secs() <= LAST => since,
        Ok(_) => Duration::from_secs(LAST),
        Err(_) => Duration::ZERO,
    }
}

/// A time as in a `Date` field (RFC 9110, section 5.6.7).
#[derive(Debug, Clone, Copy)]
pub struct HttpDate([u8; HttpDate::LENGTH]);

impl HttpDate {
    const LENGTH: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();

    /// [`now`], written once a second and thread.
    pub fn now() -> Self {
        thread_local! {
            static WRITTEN: Cell<Option<(u64, HttpDate)>> = const { Cell::new(None) };
        }
        let second = since_1970().as_secs();
        match WRITTEN.get() {
            Some((of, date)) if of == second => date,
            _ => {
                let date = Self::at(second);
                WRITTEN.set(Some((second, date)));
                date
            }
        }
    }

    /// As bytes, in ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `second` is at most [`LAST`].
    fn at(second: u64) -> Self {
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        let mut date = [b' '; Self::LENGTH];
        // Every date in these years has this length.
        for (to, from) in date.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self(date)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_date_can_be_written_for_becomes_the_nearest_one() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let before = UNIX_EPOCH - Duration::from_millis(1);
        let long_before = UNIX_EPOCH - Duration::from_secs(1 << 40);
        for (time, since) in [
            (before, 0),
            (long_before, 0),
            (UNIX_EPOCH, 0),
            (at(784_111_777), 784_111_777),
            (at(LAST), LAST),
            (at(LAST + 1), LAST),
            (at(1 << 60), LAST),
        ] {
            let since_1970 = within(time);
            assert_eq!(since_1970.as_secs(), since, "{time:?}");
            // Neither panics.
            let text = humantime::format_rfc3339_millis(UNIX_EPOCH + since_1970).to_string();
            assert_eq!(text.len(), 24, "{text}");
            HttpDate::at(since_1970.as_secs());
        }
        let date = |second| String::from_utf8(HttpDate::at(second).0.into()).unwrap();
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(LAST), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
