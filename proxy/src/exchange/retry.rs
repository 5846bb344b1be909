//! Decides whether a request that failed may be sent again, and where.
//!
//! A pure function of what happened. A request is repeated only if the origin can't have acted on it, or its method is idempotent
//! (RFC 9110, section 9.2.2); and in either case only while the client has seen nothing of a final response and everything that was
//! read of the body is still held. After a timeout it is not: the same request would only load another backend.

/// How a try ended without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There was no connection.
    NotConnected,
    /// The origin closed the connection, or it broke.
    Closed,
    /// The origin did or said nothing for too long.
    TimedOut,
    /// The origin said something that is no response.
    Malformed,
}

/// What is known of a try that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// How it failed.
    pub failure: Failure,
    /// It was on a connection that had served another request before.
    pub reused: bool,
    /// The whole head of the request was written.
    pub head_sent: bool,
    /// A byte of a response came.
    pub heard: bool,
    /// The client has got something of a final response.
    pub answering: bool,
    /// The method is idempotent.
    pub idempotent: bool,
    /// Everything that was read of the request is held and can be sent again.
    pub held: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send it again to the same endpoint, on a new connection. The origin had closed a kept one, which is nobody's failure, so
    /// this costs no retry.
    Reconnect,
    /// Send it again to another endpoint, if there is one and retries are left.
    Retry,
    /// Give up.
    Fail,
}

/// Decides what follows `last`.
pub fn next(last: Try) -> Next {
    if last.answering || !last.held {
        return Next::Fail;
    }
    let unsent = !last.head_sent;
    match last.failure {
        Failure::NotConnected => Next::Retry,
        Failure::Closed if !(unsent || last.idempotent) => Next::Fail,
        Failure::Closed if last.reused && !last.heard => Next::Reconnect,
        Failure::Closed => Next::Retry,
        Failure::TimedOut | Failure::Malformed => Next::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All tries there can be, with the decision about each.
    fn all() -> impl Iterator<Item = (Try, Next)> {
        use Failure::{Closed, Malformed, NotConnected, TimedOut};
        [NotConnected, Closed, TimedOut, Malformed]
            .into_iter()
            .flat_map(|failure| {
                (0..64_u8).map(move |bits| {
                    let bit = |index: u8| bits >> index & 1 == 1;
                    let last = Try {
                        failure,
                        reused: bit(0),
                        head_sent: bit(1),
                        heard: bit(2),
                        answering: bit(3),
                        idempotent: bit(4),
                        held: bit(5),
                    };
                    (last, next(last))
                })
            })
    }

    #[test]
    fn nothing_is_sent_twice_that_may_have_been_acted_on() {
        for (last, next) in all().filter(|(_, next)| *next != Next::Fail) {
            let untouched = last.failure == Failure::NotConnected || !last.head_sent;
            assert!(untouched || last.idempotent, "{last:?}: {next:?}");
            assert!(last.held && !last.answering, "{last:?}: {next:?}");
        }
    }

    #[test]
    fn the_truth_table() {
        let first = Try {
            failure: Failure::Closed,
            reused: false,
            head_sent: true,
            heard: false,
            answering: false,
            idempotent: true,
            held: true,
        };
        for (last, expected) in [
            (first, Next::Retry),
            (
                Try {
                    idempotent: false,
                    ..first
                },
                Next::Fail,
            ),
            (
                Try {
                    idempotent: false,
                    head_sent: false,
                    ..first
                },
                Next::Retry,
            ),
            (Try { heard: true, ..first }, Next::Retry),
            (
                Try {
                    answering: true,
                    ..first
                },
                Next::Fail,
            ),
            (Try { held: false, ..first }, Next::Fail),
            (Try { reused: true, ..first }, Next::Reconnect),
            (
                Try {
                    reused: true,
                    heard: true,
                    ..first
                },
                Next::Retry,
            ),
            (
                Try {
                    reused: true,
                    idempotent: false,
                    ..first
                },
                Next::Fail,
            ),
            (
                Try {
                    reused: true,
                    idempotent: false,
                    head_sent: false,
                    ..first
                },
                Next::Reconnect,
            ),
            (
                Try {
                    failure: Failure::NotConnected,
                    idempotent: false,
                    head_sent: false,
                    ..first
                },
                Next::Retry,
            ),
            (
                Try {
                    failure: Failure::NotConnected,
                    held: false,
                    ..first
                },
                Next::Fail,
            ),
            (
                Try {
                    failure: Failure::TimedOut,
                    ..first
                },
                Next::Fail,
            ),
            (
                Try {
                    failure: Failure::TimedOut,
                    head_sent: false,
                    ..first
                },
                Next::Fail,
            ),
            (
                Try {
                    failure: Failure::Malformed,
                    heard: true,
                    ..first
                },
                Next::Fail,
            ),
        ] {
            assert_eq!(next(last), expected, "{last:?}");
        }
        let decided = |wanted| all().filter(|(_, next)| *next == wanted).count();
        assert_eq!((decided(Next::Reconnect), decided(Next::Retry)), (3, 25));
    }
}
