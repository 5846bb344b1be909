//! The answers to clients over their limit.

use std::borrow::Cow;
use std::time::Duration;

use http::Response;

use super::{Body, Delivery, Rejection};

/// Prepared responses to clients over their limit: in a flood they are most of what a proxy sends.
#[derive(Debug)]
pub struct LimitedAnswers {
    policy: String,
    /// Their own fields, by the seconds of their `Retry-After`, less one.
    prepared: Vec<String>,
}

impl LimitedAnswers {
    /// Waits up to this many seconds have a prepared answer.
    const PREPARED: u64 = 10;

    /// For buckets of `burst` requests that fill up in `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        // The draft's window is in whole seconds; rounded up, it promises no more than the bucket gives.
        let policy = format!("\"client\";q={burst};w={}", whole_seconds(refill));
        let prepared = (1..=Self::PREPARED).map(|seconds| fields(&policy, seconds)).collect();
        Self { policy, prepared }
    }

    /// A 429 for a client that will be served after `retry_after`.
    pub fn answer(&self, retry_after: Duration, body: &Body<'_>, delivery: Delivery) -> Vec<u8> {
        Rejection::Limited.answer_with(&self.fields(retry_after), body, delivery)
    }

    /// The head of the same for a client of HTTP/2.
    pub fn response(&self, retry_after: Duration, body: &Body<'_>) -> Response<()> {
        Rejection::Limited.response_with(&self.fields(retry_after), body)
    }

    fn fields(&self, retry_after: Duration) -> Cow<'_, str> {
        let seconds = whole_seconds(retry_after);
        let prepared = usize::try_from(seconds - 1)
            .ok()
            .and_then(|index| self.prepared.get(index));
        match prepared {
            Some(fields) => Cow::Borrowed(fields),
            None => Cow::Owned(fields(&self.policy, seconds)),
        }
    }
}

/// `Retry-After`, and `RateLimit` and `RateLimit-Policy` of the IETF's draft-ietf-httpapi-ratelimit-headers.
fn fields(policy: &str, seconds: u64) -> String {
    format!("Retry-After: {seconds}\r\nRateLimit-Policy: {policy}\r\nRateLimit: \"client\";r=0;t={seconds}\r\n")
}

/// Rounded up, and at least one.
fn whole_seconds(duration: Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::Form;
    use super::*;

    #[test]
    fn a_limited_client_is_told_whole_seconds_rounded_up() {
        let answers = LimitedAnswers::new(5, Duration::from_millis(2500));
        let delivery = Delivery {
            keeps: true,
            head_only: true,
            form: Form::Text,
        };
        for (millis, seconds) in [(1, "1"), (500, "1"), (1000, "1"), (1001, "2"), (60_000, "60")] {
            let answer = String::from_utf8(answers.answer(
                Duration::from_millis(millis),
                &Body::Line(Rejection::Limited, "1"),
                delivery,
            ))
            .unwrap();
            for line in [
                &format!("\r\nRetry-After: {seconds}\r\n"),
                &format!("\r\nRateLimit: \"client\";r=0;t={seconds}\r\n"),
                "\r\nRateLimit-Policy: \"client\";q=5;w=3\r\n",
            ] {
                assert!(answer.contains(line), "{line:?} not in {answer}");
            }
            assert!(answer.ends_with("\r\nConnection: keep-alive\r\n\r\n"));
        }
    }
}
