//! The handover protocol: two state machines, without clocks or sockets, that decide who serves. The code around them turns what
//! happens into events and sends their messages; the tests run them through every interleaving.

/// What one side says to the other: one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Message {
    /// From the successor: it can serve.
    Ready = b'R',
    /// From the running process: serve.
    Go = b'G',
    /// From the running process: don't. It serves on.
    No = b'N',
    /// From the successor: it accepts connections.
    Serving = b'S',
}

impl Message {
    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'R' => Some(Self::Ready),
            b'G' => Some(Self::Go),
            b'N' => Some(Self::No),
            b'S' => Some(Self::Serving),
            _ => None,
        }
    }
}

/// What happens to the running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunningEvent {
    /// The successor said something, and lives; `None` is a byte of another protocol.
    Heard(Option<Message>),
    /// The successor is gone: it gave up, or it is dead, whatever it said before.
    Gone,
    /// The successor has been silent for too long. Comes only when there is nothing to hear.
    Timeout,
    /// This process has been asked to end.
    CalledOff,
}

/// The running process, which accepts connections in every state but the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Running {
    /// It has sent the sockets and waits for READY. It may still change its mind.
    Offered,
    /// It has said GO and can't take that back: it waits, for as long as it takes, until the successor serves or is gone.
    Committed,
    /// It serves on. The end of a handover that failed.
    Keeps,
    /// It stops accepting and drains. The end of a handover that succeeded.
    HandedOver,
}

impl Running {
    /// The next state, and what to say on the way there.
    pub(super) const fn on(self, event: RunningEvent) -> (Self, Option<Message>) {
        match (self, event) {
            (Self::Offered, RunningEvent::Heard(Some(Message::Ready))) => (Self::Committed, Some(Message::Go)),
            (Self::Offered, RunningEvent::Gone) => (Self::Keeps, None),
            (Self::Offered, _) => (Self::Keeps, Some(Message::No)),
            (Self::Committed, RunningEvent::Heard(Some(Message::Serving)) | RunningEvent::CalledOff) => {
                (Self::HandedOver, None)
            }
            (Self::Committed, RunningEvent::Gone) => (Self::Keeps, None),
            (Self::Committed | Self::Keeps | Self::HandedOver, _) => (self, None),
        }
    }
}

/// What happens to the successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SuccessorEvent {
    /// It has found what it needs to serve well.
    Prepared,
    /// It has looked for long enough. Comes only when there is nothing to hear.
    Unprepared,
    /// The running process said something; `None` is a byte of another protocol.
    Heard(Option<Message>),
    /// The running process is dead.
    Died,
    /// The running process has been silent for too long. Comes only when there is nothing to hear.
    Timeout,
}

/// The successor, which accepts connections in the state `Serves` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Successor {
    /// It has the sockets and looks for backends.
    Preparing,
    /// It has said READY and waits for the answer.
    Asking,
    /// The running process is dead, and nobody else can serve: it will, with backends or without.
    Alone,
    /// It serves. From here there is no way back.
    Serves,
    /// It leaves; the running process serves on.
    Leaves,
}

impl Successor {
    /// The next state, and what to say on the way there. (SERVING is said later, once connections are accepted.)
    pub(super) const fn on(self, event: SuccessorEvent) -> (Self, Option<Message>) {
        match (self, event) {
            (Self::Preparing, SuccessorEvent::Prepared) => (Self::Asking, Some(Message::Ready)),
            (Self::Preparing, SuccessorEvent::Died) => (Self::Alone, None),
            (Self::Asking, SuccessorEvent::Heard(Some(Message::Go)) | SuccessorEvent::Died) => (Self::Serves, None),
            (Self::Preparing | Self::Asking, _) => (Self::Leaves, None),
            (Self::Alone, SuccessorEvent::Prepared | SuccessorEvent::Unprepared) => (Self::Serves, None),
            (Self::Alone | Self::Serves | Self::Leaves, _) => (self, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Both processes and what is on its way between them. A pause needs no state of its own: it is any stretch in which a
    /// process takes no step, and timeouts of the other may come in it, for they may come whenever there is nothing to hear.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    struct World {
        running: Running,
        successor: Successor,
        /// Killed, whatever it was doing.
        running_killed: bool,
        successor_killed: bool,
        /// Asked to end while it served alone or was handing over; it does not accept any more once it has been heard.
        running_stopped: bool,
        /// Whether the successor accepts: a moment after it has decided to.
        accepts: bool,
        /// What each has decided to say and has not said yet, for a pause can come in between.
        running_says: Option<Message>,
        successor_says: Option<Message>,
        to_running: [Option<Message>; 2],
        to_successor: Option<Message>,
        /// Closed by the running process, of its own will or by its death.
        running_closed: bool,
        successor_closed: bool,
    }

    const START: World = World {
        running: Running::Offered,
        successor: Successor::Preparing,
        running_killed: false,
        successor_killed: false,
        running_stopped: false,
        accepts: false,
        running_says: None,
        successor_says: None,
        to_running: [None; 2],
        to_successor: None,
        running_closed: false,
        successor_closed: false,
    };

    /// What can happen next.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Step {
        Running(RunningEvent),
        Successor(SuccessorEvent),
        RunningSays(Message),
        SuccessorSays(Message),
        /// The successor's listeners are up, and it will say so.
        Accepts,
        KillRunning,
        KillSuccessor,
    }

    impl World {
        fn running_accepts(&self) -> bool {
            !self.running_killed && !self.running_stopped && self.running != Running::HandedOver
        }

        fn successor_accepts(&self) -> bool {
            !self.successor_killed && self.accepts
        }

        fn steps(&self) -> Vec<Step> {
            let mut steps = Vec::new();
            if !self.running_killed {
                steps.push(Step::KillRunning);
                if let Some(message) = self.running_says {
                    steps.push(Step::RunningSays(message));
                } else if matches!(self.running, Running::Offered | Running::Committed) {
                    steps.push(Step::Running(RunningEvent::CalledOff));
                    steps.push(Step::Running(match (self.to_running[0], self.successor_closed) {
                        (Some(Message::Serving), _) if self.successor_killed => RunningEvent::Gone,
                        (Some(message), _) => RunningEvent::Heard(Some(message)),
                        (None, true) => RunningEvent::Gone,
                        (None, false) => RunningEvent::Timeout,
                    }));
                }
            }
            if !self.successor_killed {
                steps.push(Step::KillSuccessor);
                let heard = match (self.to_successor, self.running_closed) {
                    (Some(message), _) => Some(SuccessorEvent::Heard(Some(message))),
                    // Closed without a word: only death does that, and the kernel confirms it.
                    (None, true) => Some(SuccessorEvent::Died),
                    (None, false) => None,
                };
                match self.successor {
                    _ if self.successor_says.is_some() => steps.extend(self.successor_says.map(Step::SuccessorSays)),
                    Successor::Preparing => {
                        steps.push(Step::Successor(SuccessorEvent::Prepared));
                        steps.push(Step::Successor(heard.unwrap_or(SuccessorEvent::Unprepared)));
                    }
                    Successor::Asking => steps.push(Step::Successor(heard.unwrap_or(SuccessorEvent::Timeout))),
                    Successor::Alone => {
                        steps.push(Step::Successor(SuccessorEvent::Prepared));
                        steps.push(Step::Successor(SuccessorEvent::Unprepared));
                    }
                    Successor::Serves if !self.accepts => steps.push(Step::Accepts),
                    Successor::Serves | Successor::Leaves => {}
                }
            }
            steps
        }

        fn after(mut self, step: Step) -> Self {
            match step {
                Step::Running(event) => {
                    if matches!(event, RunningEvent::Heard(_)) {
                        self.to_running = [self.to_running[1], None];
                    }
                    (self.running, self.running_says) = self.running.on(event);
                    self.running_stopped |= event == RunningEvent::CalledOff;
                    self.running_closes();
                }
                Step::RunningSays(message) => {
                    self.running_says = None;
                    if !self.successor_closed {
                        assert_eq!(self.to_successor, None, "it speaks once: GO or NO");
                        self.to_successor = Some(message);
                    }
                    self.running_closes();
                }
                Step::Successor(event) => {
                    if matches!(event, SuccessorEvent::Heard(_)) {
                        self.to_successor = None;
                    }
                    (self.successor, self.successor_says) = self.successor.on(event);
                    self.successor_closed |= self.successor == Successor::Leaves;
                }
                Step::SuccessorSays(message) => {
                    self.successor_says = None;
                    if !self.running_closed {
                        let place = self.to_running.iter_mut().find(|place| place.is_none());
                        *place.expect("READY and SERVING, at most") = Some(message);
                    }
                }
                Step::Accepts => {
                    self.accepts = true;
                    self.successor_says = Some(Message::Serving);
                }
                Step::KillRunning => (self.running_killed, self.running_closed) = (true, true),
                Step::KillSuccessor => (self.successor_killed, self.successor_closed) = (true, true),
            }
            self
        }

        /// At the end, and once everything is said, it closes its side.
        fn running_closes(&mut self) {
            let at_end = matches!(self.running, Running::Keeps | Running::HandedOver);
            self.running_closed |= at_end && self.running_says.is_none();
        }

        /// Every state that can be reached from here by steps that `may` be taken.
        fn reachable(self, may: impl Fn(&World, Step) -> bool) -> HashSet<World> {
            let (mut seen, mut open) = (HashSet::from([self]), vec![self]);
            while let Some(world) = open.pop() {
                for step in world.steps().into_iter().filter(|step| may(&world, *step)) {
                    let next = world.after(step);
                    if seen.insert(next) {
                        open.push(next);
                    }
                }
            }
            seen
        }

        /// The states in which nothing happens any more, but that somebody is killed or asked to end.
        fn ends(self) -> impl Iterator<Item = World> {
            let left_alone = |_: &World, step| !is_harm(step);
            let reachable = self.reachable(left_alone);
            reachable.into_iter().filter(move |world| {
                let mut steps = world.steps().into_iter().filter(|step| !is_harm(*step));
                steps.all(|step| world.after(step) == *world)
            })
        }
    }

    fn is_harm(step: Step) -> bool {
        matches!(
            step,
            Step::KillRunning | Step::KillSuccessor | Step::Running(RunningEvent::CalledOff)
        )
    }

    fn is_of_successor(step: Step) -> bool {
        matches!(step, Step::Successor(_) | Step::SuccessorSays(_) | Step::Accepts)
    }

    fn everything() -> HashSet<World> {
        START.reachable(|_, _| true)
    }

    #[test]
    fn in_the_end_exactly_one_serves_whoever_pauses_and_whoever_dies() {
        let everything = everything();
        assert!(everything.len() > 100, "the model does something: {}", everything.len());
        for world in everything {
            for end in world.ends() {
                let serve = usize::from(end.running_accepts()) + usize::from(end.successor_accepts());
                // One that is killed or stopped after the other has left leaves nobody, as it would have without a handover.
                let running_gone = end.running_killed || end.running_stopped;
                let gone = running_gone && (end.successor_killed || end.successor == Successor::Leaves)
                    || end.successor_killed && end.running == Running::HandedOver;
                assert_eq!(serve, usize::from(!gone), "{end:?}");
            }
        }
    }

    #[test]
    fn a_successor_leaves_only_while_the_running_process_serves_or_after_it_was_asked_to_end() {
        for world in everything() {
            for step in world.steps() {
                let leaves = world.after(step).successor == Successor::Leaves && world.successor != Successor::Leaves;
                let sent_away = world.running_stopped || world.to_successor == Some(Message::No);
                assert!(!leaves || world.running_accepts() || sent_away, "{step:?} in {world:?}");
            }
        }
    }

    #[test]
    fn the_running_process_stops_accepting_only_while_the_successor_accepts_or_because_it_was_asked_to_end() {
        for world in everything() {
            for step in world.steps().into_iter().filter(|step| !is_harm(*step)) {
                let next = world.after(step);
                let stops = world.running_accepts() && !next.running_accepts();
                assert!(!stops || next.successor_accepts(), "{step:?} in {world:?}");
            }
        }
    }

    #[test]
    fn one_that_is_stopped_for_ever_takes_nobody_along() {
        for world in everything() {
            // The successor takes no more step: the running process serves, unless the successor accepted, or it was asked to end.
            if world.running_accepts() && !world.accepts {
                let frozen = |_: &World, step| !is_of_successor(step) && !is_harm(step);
                assert!(world.reachable(frozen).iter().all(World::running_accepts), "{world:?}");
            }
            // The running process takes no more step: the successor still comes to a decision.
            if !world.successor_killed {
                let frozen = |_: &World, step| is_of_successor(step);
                let decided = world
                    .reachable(frozen)
                    .into_iter()
                    .any(|world| world.successor == Successor::Leaves || world.accepts);
                assert!(decided, "{world:?}");
            }
        }
    }

    #[test]
    fn once_asked_to_end_the_running_process_never_waits_for_the_successor() {
        for world in everything().into_iter().filter(|world| !world.running_killed) {
            let (next, _) = world.running.on(RunningEvent::CalledOff);
            assert!(matches!(next, Running::Keeps | Running::HandedOver), "{world:?}");
        }
    }

    #[test]
    fn a_byte_of_another_protocol_ends_the_handover_and_nothing_else() {
        let garbled = RunningEvent::Heard(None);
        assert_eq!(Running::Offered.on(garbled), (Running::Keeps, Some(Message::No)));
        assert_eq!(Running::Committed.on(garbled), (Running::Committed, None));
        for waiting in [Successor::Preparing, Successor::Asking] {
            assert_eq!(waiting.on(SuccessorEvent::Heard(None)), (Successor::Leaves, None));
        }
    }
}
