//! How a client gets on with one request: whether it is waited for, and how fast it sends and takes.

use std::time::{Duration, Instant};

use crate::http1::rate::Rate;

/// What is wrong with a longer body.
pub const BODY_TOO_LARGE: &str = "the request body is longer than max_body";

/// What a client may take to send a request and to read its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between two pieces of a request body.
    pub read_timeout: Duration,
    /// For the client to take a piece of the response.
    pub write_timeout: Duration,
    /// The fewest bytes a second, on average, that a request body may arrive at and a response be read at.
    pub min_rate: Option<u64>,
    /// The longest request body, in bytes.
    pub max_body: Option<u64>,
}

/// The progress of a client, within its limits.
#[derive(Debug)]
pub struct Progress {
    /// What it sends.
    pub reading: Rate,
    /// What it takes.
    pub writing: Rate,
    /// What it may take for that.
    pub limits: Limits,
}

impl Progress {
    /// Nothing has been sent or taken.
    pub fn new(limits: &Limits) -> Self {
        Self {
            reading: Rate::default(),
            writing: Rate::default(),
            limits: *limits,
        }
    }

    /// From now on the client is answered while it sends, so that how fast it does may depend on the answer.
    pub fn both_talk(&mut self) {
        self.limits.min_rate = None;
    }

    /// Since when the client is waited for to send more of its body, and for how long it may be.
    pub fn sending(&self) -> Option<(Instant, Duration)> {
        Some((self.reading.waits_since()?, self.limits.read_timeout))
    }

    /// Since when the client is waited for to take more of the response, and for how long it may be.
    pub fn taking(&self) -> Option<(Instant, Duration)> {
        Some((self.writing.waits_since()?, self.limits.write_timeout))
    }
}
