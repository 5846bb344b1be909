//! Connect errors that are caused by this machine, not by the peer.
//!
//! A process that has no descriptor left can't connect to anything. If it took that for the death of all its backends, a shortage
//! would become an outage.

use std::error::Error;
use std::io;

use rustix::io::Errno;

/// Whether `error` is a shortage of this process or this machine: of descriptors, memory or ports.
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    const SHORTAGES: [Errno; 5] = [
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::ADDRNOTAVAIL,
    ];
    error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error)
        .is_some_and(|number| SHORTAGES.iter().any(|shortage| shortage.raw_os_error() == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_ours_and_a_refusal_is_theirs() {
        for (errno, ours) in [
            (Errno::MFILE, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::CONNREFUSED, false),
            (Errno::TIMEDOUT, false),
            (Errno::HOSTUNREACH, false),
        ] {
            let error = io::Error::from(errno);
            assert_eq!(is_shortage(&error), ours, "{error}");
        }
        assert!(!is_shortage(&io::Error::other("text")));
    }
}
