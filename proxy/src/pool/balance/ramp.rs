//! Slow start: how much of its weight a backend has that became alive a while ago.

use std::time::{Duration, Instant};

/// Its whole weight is so many parts.
pub const WHOLE: u32 = 20;
/// It begins with a tenth.
const FIRST: u32 = WHOLE / 10;

/// Since when a backend is alive.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rise {
    alive: bool,
    /// `None` where it was there from the start.
    since: Option<Instant>,
}

impl Rise {
    /// It is alive at `now`. `from_start`: so are all others from now on, and none was before.
    pub fn alive(&mut self, now: Instant, from_start: bool) {
        if !std::mem::replace(&mut self.alive, true) {
            self.since = (!from_start).then_some(now);
        }
    }

    /// Whether it is alive.
    pub fn is_alive(&self) -> bool {
        self.alive
    }

    /// It is not alive.
    pub fn down(&mut self) {
        self.alive = false;
    }

    /// How many parts of its weight it has at `now`, of [`WHOLE`], and when there will be one more.
    pub fn parts(&self, slow_start: Option<Duration>, now: Instant) -> (u32, Option<Instant>) {
        let (Some(since), Some(time)) = (self.since, slow_start) else {
            return (WHOLE, None);
        };
        // As many steps as there are parts to be had, each as long as the others.
        let ends = |parts: u32| since + time * (parts + 1 - FIRST) / (WHOLE - FIRST);
        let parts = (FIRST..WHOLE).find(|parts| now < ends(*parts));
        parts.map_or((WHOLE, None), |parts| (parts, Some(ends(parts))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_gets_from_a_tenth_to_all_of_its_weight_in_even_steps() {
        let start = Instant::now();
        let slow_start = Some(Duration::from_secs(36));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rise = Rise::default();
        rise.alive(start, false);
        assert_eq!(rise.parts(slow_start, start), (2, Some(at(2))));
        for second in 0..36 {
            let (parts, next) = rise.parts(slow_start, at(second));
            assert_eq!(u64::from(parts), 2 + second / 2, "after {second} s");
            assert_eq!(next, Some(at(second / 2 * 2 + 2)));
            // To be alive still is nothing new.
            rise.alive(at(second), false);
        }
        assert_eq!(rise.parts(slow_start, at(36)), (WHOLE, None));
        assert_eq!(rise.parts(None, start), (WHOLE, None));
        rise.down();
        rise.alive(at(50), false);
        assert_eq!(rise.parts(slow_start, at(50)).0, 2, "it begins again");
    }

    #[test]
    fn who_is_there_from_the_start_has_all_of_it() {
        let start = Instant::now();
        let slow_start = Some(Duration::from_secs(30));
        let mut rise = Rise::default();
        rise.alive(start, true);
        rise.alive(start, false);
        assert_eq!(rise.parts(slow_start, start), (WHOLE, None));
        rise.down();
        rise.alive(start, false);
        assert_eq!(rise.parts(slow_start, start).0, FIRST);
    }
}
