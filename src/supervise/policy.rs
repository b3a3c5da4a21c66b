//! What happens to the command, and when: events in, actions out. Nothing else decides, and nothing here does anything.

use std::time::Duration;

use super::child::Ending;
use super::signals::{STOPPING, Sender, Signal};

/// Where the command stands towards us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// In our process group: there is a terminal, and its keys reach us both.
    Same,
    /// In a group of its own.
    Own,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub group: Group,
    /// How long after the first TERM that was passed on the command is killed.
    pub kill_after: Option<Duration>,
    /// How long a command may take to end once its lock is lost.
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Signal(Signal),
    /// The command was stopped by this signal; it has not ended.
    Stopped(i32),
    Ended(Ending),
    /// The permission to run was withdrawn.
    Revoked,
    /// The time asked for last is over.
    Deadline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Send(i32),
    Kill,
    /// Stop ourselves with this signal, as the command was.
    Stop(i32),
    /// A [`Event::Deadline`] then, at the latest.
    WaitFor(Duration),
    Finish(Outcome),
}

/// How the command ended, and what led to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub ending: Ending,
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its own doing, or somebody else's.
    Own,
    /// The signal that ended it had been sent to us too.
    Passed,
    Revoked,
}

/// The state of a command that runs.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    us: i32,
    command: i32,
    /// Bit n-1: signal n was sent to us.
    seen: u64,
    stopped: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// TERM went by, and the clock runs.
    Terminating,
    Revoked,
}

impl Policy {
    pub fn new(rules: Rules, us: i32, command: i32) -> Policy {
        Policy { rules, us, command, seen: 0, stopped: false, phase: Phase::Running }
    }

    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Signal(signal) => self.on_signal(signal),
            Event::Stopped(signal) => {
                self.stopped = true;
                match self.rules.group {
                    Group::Same if STOPPING.contains(&signal) => vec![Action::Stop(signal)],
                    Group::Same | Group::Own => vec![],
                }
            }
            Event::Revoked => match self.phase {
                Phase::Revoked => vec![],
                Phase::Running | Phase::Terminating => {
                    self.phase = Phase::Revoked;
                    // A stopped command could not react to TERM.
                    vec![Action::Send(libc::SIGTERM), Action::Send(libc::SIGCONT), Action::WaitFor(self.rules.grace)]
                }
            },
            Event::Deadline => match self.phase {
                Phase::Running => vec![],
                Phase::Terminating | Phase::Revoked => vec![Action::Kill],
            },
            Event::Ended(ending) => vec![Action::Finish(Outcome { ending, cause: self.cause(ending) })],
        }
    }

    fn on_signal(&mut self, signal: Signal) -> Vec<Action> {
        let Signal { number, sender } = signal;
        let is_from_terminal = sender == Sender::Kernel && is_the_terminals(number);
        self.seen |= 1_u64.checked_shl(number.cast_unsigned().wrapping_sub(1)).unwrap_or(0);
        match (self.rules.group, sender) {
            // Our own doing: a write to a closed pipe, say.
            (_, Sender::Process(pid)) if pid == self.us => vec![],
            // Sent to the group, which it belongs to.
            (Group::Same, Sender::Process(pid)) if pid == self.command => vec![],
            // The terminal has told the whole group already.
            (Group::Same, _) if is_from_terminal => vec![],
            // The shell continues the whole group; a second one would look like a request.
            (Group::Same, _) if number == libc::SIGCONT && !self.stopped => vec![],
            _ if number == libc::SIGCHLD => vec![],
            _ => self.pass_on(number),
        }
    }

    fn pass_on(&mut self, number: i32) -> Vec<Action> {
        let mut actions = vec![Action::Send(number)];
        if number == libc::SIGCONT {
            self.stopped = false;
        }
        if let (libc::SIGTERM, Phase::Running, Some(kill_after)) = (number, self.phase, self.rules.kill_after) {
            self.phase = Phase::Terminating;
            actions.extend([Action::Send(libc::SIGCONT), Action::WaitFor(kill_after)]);
        }
        actions
    }

    fn cause(&self, ending: Ending) -> Cause {
        match (self.phase, ending) {
            (Phase::Revoked, _) => Cause::Revoked,
            (_, Ending::Signaled { number, .. }) if self.seen & (1 << (number - 1)) != 0 => Cause::Passed,
            (_, Ending::Signaled { .. } | Ending::Exited(_)) => Cause::Own,
        }
    }
}

/// What a terminal sends to its whole foreground group.
fn is_the_terminals(number: i32) -> bool {
    STOPPING.contains(&number) || [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGWINCH].contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: i32 = 100;
    const COMMAND: i32 = 101;
    const SOMEBODY: Sender = Sender::Process(7);
    const GROUPS: [Group; 2] = [Group::Same, Group::Own];

    fn policy(group: Group, kill_after: Option<u64>) -> Policy {
        let rules = Rules { group, kill_after: kill_after.map(Duration::from_secs), grace: Duration::from_secs(5) };
        Policy::new(rules, US, COMMAND)
    }

    fn on(policy: &mut Policy, number: i32, sender: Sender) -> Vec<Action> {
        policy.on(Event::Signal(Signal { number, sender }))
    }

    #[test]
    fn every_signal_of_a_process_is_passed_on_but_for_the_death_of_children() {
        for group in GROUPS {
            for number in (1..=64).filter(|number| *number != libc::SIGCHLD && *number != libc::SIGCONT) {
                assert_eq!(on(&mut policy(group, None), number, SOMEBODY), [Action::Send(number)], "{number}");
            }
            assert_eq!(on(&mut policy(group, None), libc::SIGCHLD, SOMEBODY), []);
        }
        assert_eq!(on(&mut policy(Group::Own, None), libc::SIGCONT, SOMEBODY), [Action::Send(libc::SIGCONT)]);
    }

    #[test]
    fn what_the_terminal_has_told_the_whole_group_is_not_told_twice() {
        for number in 1..=31 {
            let actions = on(&mut policy(Group::Same, None), number, Sender::Kernel);
            let is_silent = is_the_terminals(number) || number == libc::SIGCHLD || number == libc::SIGCONT;
            assert_eq!(actions.is_empty(), is_silent, "{number}");
        }
        assert_eq!(on(&mut policy(Group::Own, None), libc::SIGINT, Sender::Kernel), [Action::Send(libc::SIGINT)]);
    }

    #[test]
    fn our_own_signals_and_in_its_own_group_the_commands_are_dropped() {
        for group in GROUPS {
            assert_eq!(on(&mut policy(group, None), libc::SIGPIPE, Sender::Process(US)), []);
        }
        assert_eq!(on(&mut policy(Group::Same, None), libc::SIGTERM, Sender::Process(COMMAND)), []);
        let sent = on(&mut policy(Group::Own, None), libc::SIGTERM, Sender::Process(COMMAND));
        assert_eq!(sent, [Action::Send(libc::SIGTERM)]);
    }

    #[test]
    fn a_second_term_is_passed_on_too_and_does_not_start_the_clock_again() {
        let mut policy = policy(Group::Own, Some(3));
        let (term, cont) = (Action::Send(libc::SIGTERM), Action::Send(libc::SIGCONT));
        assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [term, cont, Action::WaitFor(Duration::from_secs(3))]);
        assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [term]);
        assert_eq!(policy.on(Event::Deadline), [Action::Kill]);
    }

    #[test]
    fn a_stop_by_the_terminal_stops_us_too_and_a_plain_one_never() {
        for number in STOPPING {
            assert_eq!(policy(Group::Same, None).on(Event::Stopped(number)), [Action::Stop(number)]);
            assert_eq!(policy(Group::Own, None).on(Event::Stopped(number)), []);
        }
        for group in GROUPS {
            assert_eq!(policy(group, None).on(Event::Stopped(libc::SIGSTOP)), []);
        }
        let mut policy = policy(Group::Same, None);
        assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), []);
        policy.on(Event::Stopped(libc::SIGSTOP));
        assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), [Action::Send(libc::SIGCONT)]);
    }

    #[test]
    fn a_revoked_command_is_asked_to_end_once_and_killed_after_its_grace() {
        for group in GROUPS {
            let mut policy = policy(group, Some(60));
            on(&mut policy, libc::SIGTERM, SOMEBODY);
            let asked = [Action::Send(libc::SIGTERM), Action::Send(libc::SIGCONT), Action::WaitFor(Duration::from_secs(5))];
            assert_eq!(policy.on(Event::Revoked), asked);
            assert_eq!(policy.on(Event::Revoked), []);
            assert_eq!(policy.on(Event::Deadline), [Action::Kill]);
            let ending = Ending::Signaled { number: libc::SIGKILL, dumped_core: false };
            assert_eq!(policy.on(Event::Ended(ending)), [Action::Finish(Outcome { ending, cause: Cause::Revoked })]);
        }
    }

    #[test]
    fn an_ending_tells_whether_its_signal_had_been_sent_to_us() {
        let by_term = Ending::Signaled { number: libc::SIGTERM, dumped_core: false };
        let finish = |ending, cause| [Action::Finish(Outcome { ending, cause })];
        let mut policy = policy(Group::Own, None);
        assert_eq!(policy.on(Event::Ended(by_term)), finish(by_term, Cause::Own));
        on(&mut policy, libc::SIGTERM, SOMEBODY);
        assert_eq!(policy.on(Event::Ended(by_term)), finish(by_term, Cause::Passed));
        let by_kill = Ending::Signaled { number: libc::SIGKILL, dumped_core: false };
        assert_eq!(policy.on(Event::Ended(by_kill)), finish(by_kill, Cause::Own));
        assert_eq!(policy.on(Event::Ended(Ending::Exited(143))), finish(Ending::Exited(143), Cause::Own));
    }

    #[test]
    fn a_deadline_nobody_asked_for_does_nothing() {
        assert_eq!(policy(Group::Own, None).on(Event::Deadline), []);
    }
}
