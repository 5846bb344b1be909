//! How many files and connections this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit on open descriptors as far as this process may (the soft limit to the hard one), and returns it.
pub fn raise_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // One that can't be raised stays what it is, which is no worse than not to have tried.
    let raised = current != maximum
        && setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
        .is_ok();
    let limit = if raised { maximum } else { current };
    count(limit)
}

/// The limit on open descriptors as it is.
pub fn limit() -> usize {
    count(getrlimit(Resource::Nofile).current)
}

/// None stands for no limit.
fn count(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}
