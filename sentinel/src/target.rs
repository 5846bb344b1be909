//! Decides from consecutive probes whether a target is up or down.

/// How many probes in a row it takes to change a target's state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thresholds {
    /// Successes that make a target up.
    pub(crate) rise: u32,
    /// Failures that make a target down.
    pub(crate) fall: u32,
}

/// What is known of a target.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Too few probes yet: neither added to the registry nor removed from it, so that a sentinel that restarts takes away
    /// nothing on a single lost packet.
    #[default]
    Unknown,
    Up,
    Down,
}

/// What the last probes of a target said.
#[derive(Debug, Default)]
pub(crate) struct Target {
    state: State,
    /// How many probes in a row contradicted `state`, all with the result `streak_of`.
    streak: u32,
    streak_of: State,
}

impl Target {
    /// Takes a probe's result; returns the new state when this one changed it.
    pub(crate) fn observe(&mut self, success: bool, thresholds: Thresholds) -> Option<State> {
        let (seen, needed) = if success {
            (State::Up, thresholds.rise)
        } else {
            (State::Down, thresholds.fall)
        };
        if self.streak_of != seen {
            self.streak_of = seen;
            self.streak = 0;
        }
        self.streak = self.streak.saturating_add(1);
        let changed = self.state != seen && self.streak >= needed;
        changed.then(|| {
            self.state = seen;
            seen
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state after each probe of `probes`, where `+` is a success.
    fn states(probes: &str, rise: u32, fall: u32) -> String {
        let mut target = Target::default();
        let observe = |probe| {
            let before = target.state;
            let changed = target.observe(probe == '+', Thresholds { rise, fall });
            assert_eq!(changed.is_some(), target.state != before);
            match target.state {
                State::Unknown => '?',
                State::Up => 'u',
                State::Down => 'd',
            }
        };
        probes.chars().map(observe).collect()
    }

    #[test]
    fn one_probe_decides_by_default() {
        assert_eq!(states("+-+--+", 1, 1), "ududdu");
        assert_eq!(states("-+", 1, 1), "du");
    }

    #[test]
    fn thresholds_take_that_many_in_a_row() {
        assert_eq!(states("++-+--+---+++", 2, 3), "?uuuuuuuudduu");
        assert_eq!(states("-+-+-", 2, 2), "?????", "undecided changes nothing");
    }
}
