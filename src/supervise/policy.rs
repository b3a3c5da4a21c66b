//! What happens to the command, and when: events in, actions out. Nothing else decides, and nothing here does anything.

use std::time::Duration;

use super::words::{Ending, Group, Permission, STOPPING, Sender, Signal};

/// Whom a signal is passed on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Command,
    /// Its process group.
    Group,
    /// Everything that the command started and that still runs, and the command itself.
    Tree,
}

/// What becomes of the processes that a command leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    /// They are asked to end, killed after their grace, and gone before anything else happens.
    Kill,
    Wait,
    Leave,
    /// They are left where the command ended by itself, and waited for where somebody asked it to end: then they are what it
    /// was doing.
    LeaveUnlessAsked,
}

/// The signals by which one asks a command to end.
const ASKING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub group: Group,
    pub target: Target,
    pub orphans: Orphans,
    /// How long after the first TERM that was passed on everything is killed.
    pub kill_after: Option<Duration>,
    /// How long one may take to end that is asked to.
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Signal(Signal),
    /// The command was stopped by this signal; it has not ended.
    Stopped(i32),
    /// It was continued, by whomever.
    Continued,
    /// We had stopped as the command was ([`Action::Stop`]), and go on.
    Resumed,
    /// The command was reaped. `leaves`: whether something that it started still runs.
    Ended {
        ending: Ending,
        leaves: bool,
    },
    /// Nothing that the command started runs any more.
    Alone,
    /// The command has ended, and something that it started still runs; perhaps somebody new.
    Orphans,
    /// The permission to run, as it is now.
    Permission(Permission),
    /// The time asked for last is over.
    Deadline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Send(i32, Target),
    /// Stop the command and everything that it started, whoever is not stopped yet.
    Freeze,
    /// Continue whom [`Action::Freeze`] stopped, and nobody else.
    Thaw,
    /// Tell a person what the command left behind, whoever was not told of yet.
    TellOrphans,
    /// Tell of them, and send them TERM, and CONT: who is stopped could not react to TERM.
    AskOrphans,
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

/// The state of a command and of what it started.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    us: i32,
    command: i32,
    /// Bit n-1: signal n was sent to us.
    seen: u64,
    stopped: bool,
    permit: Permit,
    /// Whether the time of [`Rules::kill_after`] runs.
    is_to_be_killed: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running {
        clock: Clock,
    },
    /// The command has ended; what it left behind has not.
    Sweeping {
        outcome: Outcome,
        clock: Clock,
    },
}

/// What became of the permission to run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Permit {
    Given,
    /// Everybody stands still. `held_back`: who is to be continued afterwards because somebody asked for that meanwhile.
    Doubtful {
        held_back: Vec<Target>,
    },
    /// For good.
    Revoked,
}

/// What becomes of those who were left behind: [`Orphans`], once it is known who asked for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kill,
    Wait,
    Leave,
}

/// Whether there is an end to our patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Stands,
    Runs,
}

/// What was killed and still runs is killed again: it may have started something just before.
const KILL_AGAIN: Duration = Duration::from_millis(50);

impl Policy {
    pub fn new(rules: Rules, us: i32, command: i32) -> Policy {
        let phase = Phase::Running { clock: Clock::Stands };
        Policy { rules, us, command, seen: 0, stopped: false, permit: Permit::Given, is_to_be_killed: false, phase }
    }

    pub fn on(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Signal(signal) => self.on_signal(signal),
            // Our own doing; the terminal stops nobody who is stopped.
            Event::Stopped(libc::SIGSTOP) if self.is_doubtful() => vec![],
            Event::Stopped(signal) => {
                self.stopped = true;
                match self.rules.group {
                    Group::Same | Group::Foreground if STOPPING.contains(&signal) => vec![Action::Stop(signal)],
                    Group::Same | Group::Foreground | Group::Own => vec![],
                }
            }
            // By somebody who does not know of the doubt.
            Event::Continued if self.is_doubtful() => vec![Action::Freeze],
            Event::Continued => {
                self.stopped = false;
                vec![]
            }
            Event::Resumed => match self.rules.group {
                // The shell continues our group only.
                Group::Foreground => self.go_on(Target::Group),
                Group::Same | Group::Own => vec![],
            },
            Event::Permission(permission) => self.on_permission(permission),
            Event::Deadline => match self.phase {
                Phase::Running { clock: Clock::Stands } | Phase::Sweeping { clock: Clock::Stands, .. } => vec![],
                Phase::Running { clock: Clock::Runs } | Phase::Sweeping { clock: Clock::Runs, .. } => kill().into(),
            },
            Event::Ended { ending, leaves } => self.on_end(Outcome { ending, cause: self.cause(ending) }, leaves),
            Event::Orphans => match (self.phase, self.orphans(), &self.permit) {
                (Phase::Running { .. }, _, _) => vec![],
                (Phase::Sweeping { .. }, _, Permit::Doubtful { .. }) => vec![Action::Freeze],
                (Phase::Sweeping { .. }, Fate::Kill, _) | (Phase::Sweeping { .. }, _, Permit::Revoked) => {
                    vec![Action::AskOrphans]
                }
                (Phase::Sweeping { .. }, Fate::Wait | Fate::Leave, Permit::Given) => vec![Action::TellOrphans],
            },
            Event::Alone => match self.phase {
                Phase::Running { .. } => vec![],
                Phase::Sweeping { outcome: Outcome { ending, cause }, .. } => {
                    let cause = if self.permit == Permit::Revoked { Cause::Revoked } else { cause };
                    vec![Action::Finish(Outcome { ending, cause })]
                }
            },
        }
    }

    fn on_permission(&mut self, permission: Permission) -> Vec<Action> {
        match (permission, std::mem::replace(&mut self.permit, Permit::Given)) {
            (Permission::Revoked { within }, permit) => {
                self.permit = Permit::Revoked;
                self.run_clock();
                let grace = self.rules.grace.min(within);
                match permit {
                    // Nobody may work on.
                    _ if grace.is_zero() => kill().into(),
                    Permit::Given | Permit::Doubtful { .. } => ask_to_end(Target::Tree, grace).into(),
                    // They were asked already; the time may have become shorter.
                    Permit::Revoked => vec![Action::WaitFor(grace)],
                }
            }
            // What was taken is not given back.
            (Permission::Given | Permission::Doubtful, Permit::Revoked) => {
                self.permit = Permit::Revoked;
                vec![]
            }
            (Permission::Given, Permit::Given) => vec![],
            (Permission::Given, Permit::Doubtful { held_back }) => {
                let mut actions = vec![Action::Thaw];
                actions.extend(held_back.into_iter().flat_map(|target| self.go_on(target)));
                if let Phase::Sweeping { outcome, .. } = self.phase {
                    actions.extend(self.sweep(outcome));
                }
                actions
            }
            (Permission::Doubtful, Permit::Given) => {
                self.permit = Permit::Doubtful { held_back: Vec::new() };
                vec![Action::Freeze]
            }
            (Permission::Doubtful, permit @ Permit::Doubtful { .. }) => {
                self.permit = permit;
                vec![]
            }
        }
    }

    fn on_end(&mut self, outcome: Outcome, leaves: bool) -> Vec<Action> {
        if !leaves {
            return vec![Action::Finish(outcome)];
        }
        let clock = match self.phase {
            Phase::Running { clock } | Phase::Sweeping { clock, .. } => clock,
        };
        self.phase = Phase::Sweeping { outcome, clock };
        match (&self.permit, self.orphans()) {
            // They were told already, with the command.
            (Permit::Revoked, _) => vec![],
            // They run on without us, so they are not left standing.
            (Permit::Doubtful { .. }, Fate::Leave) => vec![Action::Thaw, Action::Finish(outcome)],
            (Permit::Doubtful { .. }, Fate::Kill | Fate::Wait) => vec![Action::Freeze],
            (Permit::Given, _) => self.sweep(outcome),
        }
    }

    /// What becomes of those who were left behind.
    fn sweep(&mut self, outcome: Outcome) -> Vec<Action> {
        match self.orphans() {
            Fate::Leave => vec![Action::Finish(outcome)],
            Fate::Wait => vec![Action::TellOrphans],
            Fate::Kill => {
                self.run_clock();
                vec![Action::AskOrphans, Action::WaitFor(self.rules.grace)]
            }
        }
    }

    /// What becomes of them as things stand.
    fn orphans(&self) -> Fate {
        let was_asked = ASKING.iter().any(|number| self.seen & (1 << (number - 1)) != 0);
        match self.rules.orphans {
            Orphans::Kill => Fate::Kill,
            Orphans::Wait => Fate::Wait,
            Orphans::LeaveUnlessAsked if was_asked => Fate::Wait,
            Orphans::Leave | Orphans::LeaveUnlessAsked => Fate::Leave,
        }
    }

    fn is_doubtful(&self) -> bool {
        matches!(self.permit, Permit::Doubtful { .. })
    }

    fn run_clock(&mut self) {
        let (Phase::Running { clock } | Phase::Sweeping { clock, .. }) = &mut self.phase;
        *clock = Clock::Runs;
    }

    fn on_signal(&mut self, signal: Signal) -> Vec<Action> {
        let Signal { number, sender } = signal;
        let is_from_terminal = sender == Sender::Kernel && is_the_terminals(number);
        if sender == Sender::Process(self.us) {
            // Our own doing: a write to a closed pipe, say.
            return vec![];
        }
        self.seen |= 1_u64.checked_shl(number.cast_unsigned().wrapping_sub(1)).unwrap_or(0);
        match (self.rules.group, sender) {
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
        let target = match self.phase {
            Phase::Running { .. } => self.rules.target,
            Phase::Sweeping { .. } => Target::Tree,
        };
        if number == libc::SIGCONT {
            return self.go_on(target);
        }
        let mut actions = vec![Action::Send(number, target)];
        if let (libc::SIGTERM, false, Some(kill_after)) = (number, self.is_to_be_killed, self.rules.kill_after) {
            self.is_to_be_killed = true;
            self.run_clock();
            // A stopped command could not react to TERM.
            actions.extend(self.go_on(target));
            actions.push(Action::WaitFor(kill_after));
        }
        actions
    }

    /// Continues them, once there is no doubt.
    fn go_on(&mut self, target: Target) -> Vec<Action> {
        match &mut self.permit {
            Permit::Doubtful { held_back } => {
                if !held_back.contains(&target) {
                    held_back.push(target);
                }
                vec![]
            }
            Permit::Given | Permit::Revoked => {
                self.stopped = false;
                vec![Action::Send(libc::SIGCONT, target)]
            }
        }
    }

    fn cause(&self, ending: Ending) -> Cause {
        match ending {
            _ if self.permit == Permit::Revoked => Cause::Revoked,
            Ending::Signaled { number, .. } if self.seen & (1 << (number - 1)) != 0 => Cause::Passed,
            Ending::Signaled { .. } | Ending::Exited(_) => Cause::Own,
        }
    }
}

/// TERM, and CONT: who is stopped could not react to TERM. After the grace there is a deadline.
fn ask_to_end(target: Target, grace: Duration) -> [Action; 3] {
    [Action::Send(libc::SIGTERM, target), Action::Send(libc::SIGCONT, target), Action::WaitFor(grace)]
}

/// All at once; those who are left, again.
fn kill() -> [Action; 2] {
    [Action::Send(libc::SIGKILL, Target::Tree), Action::WaitFor(KILL_AGAIN)]
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
    const GROUPS: [Group; 3] = [Group::Same, Group::Own, Group::Foreground];
    const GRACE: Duration = Duration::from_secs(5);
    const GOOD: Ending = Ending::Exited(0);

    fn rules(group: Group) -> Rules {
        Rules { group, target: Target::Command, orphans: Orphans::Kill, kill_after: None, grace: GRACE }
    }

    fn policy(group: Group) -> Policy {
        Policy::new(rules(group), US, COMMAND)
    }

    fn on(policy: &mut Policy, number: i32, sender: Sender) -> Vec<Action> {
        policy.on(Event::Signal(Signal { number, sender }))
    }

    fn send(number: i32) -> Action {
        Action::Send(number, Target::Command)
    }

    const fn to_tree(number: i32) -> Action {
        Action::Send(number, Target::Tree)
    }

    fn finish(ending: Ending, cause: Cause) -> [Action; 1] {
        [Action::Finish(Outcome { ending, cause })]
    }

    const ORPHANS: [Orphans; 4] = [Orphans::Kill, Orphans::Wait, Orphans::Leave, Orphans::LeaveUnlessAsked];
    const KILLED: [Action; 2] = [to_tree(libc::SIGKILL), Action::WaitFor(KILL_AGAIN)];

    const fn asked(grace: Duration) -> [Action; 3] {
        [to_tree(libc::SIGTERM), to_tree(libc::SIGCONT), Action::WaitFor(grace)]
    }

    fn permitted(policy: &mut Policy) -> Vec<Action> {
        policy.on(Event::Permission(Permission::Given))
    }

    fn doubted(policy: &mut Policy) -> Vec<Action> {
        policy.on(Event::Permission(Permission::Doubtful))
    }

    fn revoked(policy: &mut Policy, within: Duration) -> Vec<Action> {
        policy.on(Event::Permission(Permission::Revoked { within }))
    }

    fn ended(policy: &mut Policy, leaves: bool) -> Vec<Action> {
        policy.on(Event::Ended { ending: GOOD, leaves })
    }

    fn by(number: i32) -> Ending {
        Ending::Signaled { number, dumped_core: false }
    }

    #[test]
    fn every_signal_of_a_process_is_passed_on_but_for_the_death_of_children() {
        for group in GROUPS {
            for number in (1..=64).filter(|number| ![libc::SIGCHLD, libc::SIGCONT].contains(number)) {
                assert_eq!(on(&mut policy(group), number, SOMEBODY), [send(number)], "{number}");
            }
            assert_eq!(on(&mut policy(group), libc::SIGCHLD, SOMEBODY), []);
        }
        assert_eq!(on(&mut policy(Group::Own), libc::SIGCONT, SOMEBODY), [send(libc::SIGCONT)]);
    }

    #[test]
    fn a_signal_goes_to_the_group_where_that_was_asked_for() {
        for group in GROUPS {
            let rules = Rules { target: Target::Group, ..rules(group) };
            let sent = on(&mut Policy::new(rules, US, COMMAND), libc::SIGTERM, SOMEBODY);
            assert_eq!(sent, [Action::Send(libc::SIGTERM, Target::Group)]);
        }
    }

    #[test]
    fn what_the_terminal_has_told_the_whole_group_is_not_told_twice() {
        for number in 1..=31 {
            let actions = on(&mut policy(Group::Same), number, Sender::Kernel);
            let is_silent = is_the_terminals(number) || number == libc::SIGCHLD || number == libc::SIGCONT;
            assert_eq!(actions.is_empty(), is_silent, "{number}");
        }
        assert_eq!(on(&mut policy(Group::Own), libc::SIGINT, Sender::Kernel), [send(libc::SIGINT)]);
    }

    #[test]
    fn our_own_signals_and_in_its_own_group_the_commands_are_dropped() {
        for group in GROUPS {
            assert_eq!(on(&mut policy(group), libc::SIGPIPE, Sender::Process(US)), []);
        }
        assert_eq!(on(&mut policy(Group::Same), libc::SIGTERM, Sender::Process(COMMAND)), []);
        let sent = on(&mut policy(Group::Own), libc::SIGTERM, Sender::Process(COMMAND));
        assert_eq!(sent, [send(libc::SIGTERM)]);
    }

    #[test]
    fn a_second_term_is_passed_on_too_and_does_not_start_the_clock_again() {
        let kill_after = Duration::from_secs(3);
        let rules = Rules { kill_after: Some(kill_after), ..rules(Group::Own) };
        let mut policy = Policy::new(rules, US, COMMAND);
        let (term, cont) = (send(libc::SIGTERM), send(libc::SIGCONT));
        assert_eq!(on(&mut policy, libc::SIGINT, SOMEBODY), [send(libc::SIGINT)]);
        assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [term, cont, Action::WaitFor(kill_after)]);
        assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [term]);
        assert_eq!(policy.on(Event::Deadline), KILLED);
    }

    #[test]
    fn a_stop_by_the_terminal_stops_us_too_and_a_plain_one_never() {
        for number in STOPPING {
            assert_eq!(policy(Group::Same).on(Event::Stopped(number)), [Action::Stop(number)]);
            assert_eq!(policy(Group::Foreground).on(Event::Stopped(number)), [Action::Stop(number)]);
            assert_eq!(policy(Group::Own).on(Event::Stopped(number)), []);
        }
        for group in GROUPS {
            assert_eq!(policy(group).on(Event::Stopped(libc::SIGSTOP)), []);
        }
        let mut policy = policy(Group::Same);
        assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), []);
        policy.on(Event::Stopped(libc::SIGSTOP));
        assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), [send(libc::SIGCONT)]);
        assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), []);
    }

    #[test]
    fn a_revoked_tree_is_asked_to_end_once_and_killed_after_its_grace() {
        for orphans in ORPHANS {
            for leaves in [false, true] {
                let rules = Rules { orphans, kill_after: Some(Duration::from_mins(1)), ..rules(Group::Own) };
                let mut policy = Policy::new(rules, US, COMMAND);
                on(&mut policy, libc::SIGTERM, SOMEBODY);
                assert_eq!(revoked(&mut policy, GRACE), asked(GRACE));
                assert_eq!(policy.on(Event::Deadline), KILLED);
                let ended = policy.on(Event::Ended { ending: by(libc::SIGKILL), leaves });
                if leaves {
                    assert_eq!(ended, []);
                    assert_eq!(policy.on(Event::Orphans), [Action::AskOrphans]);
                    assert_eq!(policy.on(Event::Deadline), KILLED);
                    assert_eq!(policy.on(Event::Alone), finish(by(libc::SIGKILL), Cause::Revoked));
                } else {
                    assert_eq!(ended, finish(by(libc::SIGKILL), Cause::Revoked));
                }
            }
        }
    }

    #[test]
    fn a_grace_ends_within_the_time_that_is_left_and_without_any_all_are_killed_at_once() {
        let second = Duration::from_secs(1);
        for (within, grace) in [(Duration::MAX, GRACE), (GRACE, GRACE), (second, second)] {
            assert_eq!(revoked(&mut policy(Group::Own), within), asked(grace));
        }
        assert_eq!(revoked(&mut policy(Group::Own), Duration::ZERO), KILLED);
        let no_grace = Rules { grace: Duration::ZERO, ..rules(Group::Own) };
        assert_eq!(revoked(&mut Policy::new(no_grace, US, COMMAND), GRACE), KILLED);
    }

    #[test]
    fn what_was_revoked_can_only_end_sooner() {
        let second = Duration::from_secs(1);
        let mut policy = policy(Group::Own);
        assert_eq!(revoked(&mut policy, GRACE), asked(GRACE));
        assert_eq!(permitted(&mut policy), []);
        assert_eq!(doubted(&mut policy), []);
        // Of two deadlines the earlier one counts.
        assert_eq!(revoked(&mut policy, second), [Action::WaitFor(second)]);
        assert_eq!(revoked(&mut policy, Duration::ZERO), KILLED);
        assert_eq!(policy.on(Event::Deadline), KILLED);
        assert_eq!(ended(&mut policy, false), finish(GOOD, Cause::Revoked));
    }

    #[test]
    fn in_doubt_all_stand_still_and_go_on_when_it_is_dispelled() {
        for group in GROUPS {
            let mut policy = policy(group);
            assert_eq!(permitted(&mut policy), []);
            for _ in 0..2 {
                assert_eq!(doubted(&mut policy), [Action::Freeze]);
                assert_eq!(doubted(&mut policy), []);
                assert_eq!(policy.on(Event::Stopped(libc::SIGSTOP)), [], "as we did it");
                assert_eq!(policy.on(Event::Deadline), []);
                assert_eq!(policy.on(Event::Alone), []);
                assert_eq!(policy.on(Event::Orphans), []);
                assert_eq!(policy.on(Event::Continued), [Action::Freeze], "by somebody who knows of no doubt");
                assert_eq!(permitted(&mut policy), [Action::Thaw]);
                assert_eq!(policy.on(Event::Continued), []);
                assert_eq!(permitted(&mut policy), []);
            }
        }
    }

    #[test]
    fn in_doubt_signals_are_passed_on_but_nobody_is_continued_before_it_is_dispelled() {
        for group in GROUPS {
            let mut policy = policy(group);
            policy.on(Event::Stopped(libc::SIGSTOP));
            doubted(&mut policy);
            for number in (1..=64).filter(|number| ![libc::SIGCHLD, libc::SIGCONT].contains(number)) {
                assert_eq!(on(&mut policy, number, SOMEBODY), [send(number)], "{number}");
            }
            assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), []);
            assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), []);
            assert_eq!(permitted(&mut policy), [Action::Thaw, send(libc::SIGCONT)]);
            assert_eq!(permitted(&mut policy), []);
        }
    }

    #[test]
    fn who_was_stopped_before_a_doubt_and_not_continued_since_stays_stopped() {
        let mut policy = policy(Group::Same);
        policy.on(Event::Stopped(libc::SIGSTOP));
        assert_eq!(doubted(&mut policy), [Action::Freeze]);
        // Which continues only whom the freeze had stopped.
        assert_eq!(permitted(&mut policy), [Action::Thaw]);
        assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), [send(libc::SIGCONT)], "we know that it is stopped yet");
    }

    #[test]
    fn the_time_to_kill_runs_in_doubt_too() {
        let kill_after = Duration::from_secs(3);
        let mut policy = Policy::new(Rules { kill_after: Some(kill_after), ..rules(Group::Own) }, US, COMMAND);
        doubted(&mut policy);
        assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [send(libc::SIGTERM), Action::WaitFor(kill_after)]);
        assert_eq!(policy.on(Event::Deadline), KILLED);
        assert_eq!(permitted(&mut policy), [Action::Thaw, send(libc::SIGCONT)]);
    }

    #[test]
    fn a_doubt_that_comes_true_ends_all_from_where_they_stand() {
        for group in GROUPS {
            for within in [GRACE, Duration::ZERO] {
                let mut policy = policy(group);
                doubted(&mut policy);
                on(&mut policy, libc::SIGCONT, SOMEBODY);
                let expected = if within.is_zero() { KILLED.to_vec() } else { asked(GRACE).to_vec() };
                assert_eq!(revoked(&mut policy, within), expected);
                assert_eq!(permitted(&mut policy), []);
                assert_eq!(policy.on(Event::Deadline), KILLED);
                assert_eq!(ended(&mut policy, false), finish(GOOD, Cause::Revoked));
            }
        }
    }

    #[test]
    fn orphans_stand_still_in_doubt_and_what_the_rules_have_for_them_comes_afterwards() {
        for (orphans, afterwards) in [
            (Orphans::Kill, vec![Action::Thaw, Action::AskOrphans, Action::WaitFor(GRACE)]),
            (Orphans::Wait, vec![Action::Thaw, Action::TellOrphans]),
        ] {
            for is_doubted_before in [true, false] {
                let mut policy = Policy::new(Rules { orphans, ..rules(Group::Own) }, US, COMMAND);
                if is_doubted_before {
                    doubted(&mut policy);
                    assert_eq!(ended(&mut policy, true), [Action::Freeze]);
                } else {
                    assert_eq!(ended(&mut policy, true), afterwards[1..]);
                    assert_eq!(doubted(&mut policy), [Action::Freeze]);
                }
                assert_eq!(policy.on(Event::Orphans), [Action::Freeze], "who is seen only now, too");
                assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [to_tree(libc::SIGTERM)]);
                assert_eq!(on(&mut policy, libc::SIGCONT, SOMEBODY), []);
                let mut afterwards = afterwards.clone();
                afterwards.insert(1, to_tree(libc::SIGCONT));
                assert_eq!(permitted(&mut policy), afterwards);
                assert_eq!(policy.on(Event::Alone), finish(GOOD, Cause::Own));
            }
        }
    }

    #[test]
    fn orphans_that_may_run_on_without_us_are_not_left_standing() {
        let mut policy = Policy::new(Rules { orphans: Orphans::Leave, ..rules(Group::Own) }, US, COMMAND);
        doubted(&mut policy);
        let [finished] = finish(GOOD, Cause::Own);
        assert_eq!(ended(&mut policy, true), [Action::Thaw, finished]);
    }

    #[test]
    fn a_command_that_ends_in_doubt_has_ended() {
        for orphans in ORPHANS {
            let mut policy = Policy::new(Rules { orphans, ..rules(Group::Own) }, US, COMMAND);
            doubted(&mut policy);
            assert_eq!(ended(&mut policy, false), finish(GOOD, Cause::Own));
        }
    }

    #[test]
    fn orphans_in_doubt_end_like_anybody_when_it_comes_true() {
        for orphans in [Orphans::Kill, Orphans::Wait] {
            for within in [GRACE, Duration::ZERO] {
                let mut policy = Policy::new(Rules { orphans, ..rules(Group::Own) }, US, COMMAND);
                ended(&mut policy, true);
                doubted(&mut policy);
                let expected = if within.is_zero() { KILLED.to_vec() } else { asked(GRACE).to_vec() };
                assert_eq!(revoked(&mut policy, within), expected);
                assert_eq!(policy.on(Event::Orphans), [Action::AskOrphans]);
                assert_eq!(policy.on(Event::Deadline), KILLED);
                assert_eq!(policy.on(Event::Alone), finish(GOOD, Cause::Revoked));
            }
        }
    }

    #[test]
    fn when_we_go_on_a_group_that_the_shell_does_not_know_goes_on_with_us_unless_there_is_a_doubt() {
        let to_group = Action::Send(libc::SIGCONT, Target::Group);
        for (group, expected) in [(Group::Same, vec![]), (Group::Own, vec![]), (Group::Foreground, vec![to_group])] {
            let mut policy = policy(group);
            policy.on(Event::Stopped(libc::SIGTSTP));
            assert_eq!(policy.on(Event::Resumed), expected);
            policy.on(Event::Stopped(libc::SIGTSTP));
            doubted(&mut policy);
            assert_eq!(policy.on(Event::Resumed), []);
            assert_eq!(permitted(&mut policy), [vec![Action::Thaw], expected].concat());
        }
    }

    #[test]
    fn an_ending_tells_whether_its_signal_had_been_sent_to_us() {
        let ended = |policy: &mut Policy, ending| policy.on(Event::Ended { ending, leaves: false });
        let mut policy = policy(Group::Own);
        assert_eq!(ended(&mut policy, by(libc::SIGTERM)), finish(by(libc::SIGTERM), Cause::Own));
        on(&mut policy, libc::SIGTERM, SOMEBODY);
        on(&mut policy, 64, SOMEBODY);
        assert_eq!(ended(&mut policy, by(libc::SIGTERM)), finish(by(libc::SIGTERM), Cause::Passed));
        assert_eq!(ended(&mut policy, by(64)), finish(by(64), Cause::Passed));
        assert_eq!(ended(&mut policy, by(libc::SIGKILL)), finish(by(libc::SIGKILL), Cause::Own));
        assert_eq!(ended(&mut policy, Ending::Exited(143)), finish(Ending::Exited(143), Cause::Own));
    }

    #[test]
    fn who_leaves_nobody_behind_is_done_whatever_the_rule() {
        for orphans in [Orphans::Kill, Orphans::Wait, Orphans::Leave] {
            let mut policy = Policy::new(Rules { orphans, ..rules(Group::Own) }, US, COMMAND);
            assert_eq!(policy.on(Event::Ended { ending: GOOD, leaves: false }), finish(GOOD, Cause::Own));
        }
    }

    #[test]
    fn orphans_are_asked_to_end_then_killed_until_none_is_left_and_only_then_we_are_done() {
        let mut policy = policy(Group::Own);
        assert_eq!(policy.on(Event::Orphans), []);
        let asked = [Action::AskOrphans, Action::WaitFor(GRACE)];
        assert_eq!(policy.on(Event::Ended { ending: GOOD, leaves: true }), asked);
        assert_eq!(policy.on(Event::Orphans), [Action::AskOrphans], "who is seen later is asked, too");
        assert_eq!(on(&mut policy, libc::SIGUSR1, SOMEBODY), [to_tree(libc::SIGUSR1)]);
        for _ in 0..3 {
            assert_eq!(policy.on(Event::Deadline), KILLED);
        }
        assert_eq!(policy.on(Event::Alone), finish(GOOD, Cause::Own));
    }

    #[test]
    fn orphans_may_be_waited_for_or_left() {
        let mut waits = Policy::new(Rules { orphans: Orphans::Wait, ..rules(Group::Own) }, US, COMMAND);
        assert_eq!(waits.on(Event::Ended { ending: GOOD, leaves: true }), [Action::TellOrphans]);
        assert_eq!(waits.on(Event::Deadline), []);
        assert_eq!(waits.on(Event::Orphans), [Action::TellOrphans]);
        assert_eq!(on(&mut waits, libc::SIGTERM, SOMEBODY), [to_tree(libc::SIGTERM)]);
        assert_eq!(waits.on(Event::Alone), finish(GOOD, Cause::Own));
        let mut leaves = Policy::new(Rules { orphans: Orphans::Leave, ..rules(Group::Own) }, US, COMMAND);
        assert_eq!(leaves.on(Event::Ended { ending: GOOD, leaves: true }), finish(GOOD, Cause::Own));
    }

    #[test]
    fn orphans_are_left_unless_somebody_asked_the_command_to_end() {
        let policy = || Policy::new(Rules { orphans: Orphans::LeaveUnlessAsked, ..rules(Group::Own) }, US, COMMAND);
        let mut of_itself = policy();
        on(&mut of_itself, libc::SIGUSR1, SOMEBODY);
        assert_eq!(ended(&mut of_itself, true), finish(GOOD, Cause::Own));
        for number in ASKING {
            let mut asked = policy();
            on(&mut asked, number, SOMEBODY);
            assert_eq!(ended(&mut asked, true), [Action::TellOrphans]);
            assert_eq!(asked.on(Event::Alone), finish(GOOD, Cause::Own));
        }
    }

    #[test]
    fn the_time_to_kill_runs_from_the_first_term_whatever_is_going_on() {
        let kill_after = Duration::from_secs(1);
        for orphans in [Orphans::Kill, Orphans::Wait] {
            let rules = Rules { orphans, kill_after: Some(kill_after), ..rules(Group::Own) };
            let mut policy = Policy::new(rules, US, COMMAND);
            policy.on(Event::Ended { ending: GOOD, leaves: true });
            let asked = [to_tree(libc::SIGTERM), to_tree(libc::SIGCONT), Action::WaitFor(kill_after)];
            assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), asked);
            assert_eq!(on(&mut policy, libc::SIGTERM, SOMEBODY), [to_tree(libc::SIGTERM)]);
            assert_eq!(policy.on(Event::Deadline), KILLED);
        }
    }

    #[test]
    fn a_signal_of_our_own_is_none_that_was_sent_to_us() {
        let mut policy = policy(Group::Own);
        on(&mut policy, libc::SIGPIPE, Sender::Process(US));
        let ended = policy.on(Event::Ended { ending: by(libc::SIGPIPE), leaves: false });
        assert_eq!(ended, finish(by(libc::SIGPIPE), Cause::Own));
    }

    #[test]
    fn a_lock_lost_while_orphans_are_waited_for_ends_them() {
        let mut policy = Policy::new(Rules { orphans: Orphans::Wait, ..rules(Group::Own) }, US, COMMAND);
        policy.on(Event::Ended { ending: GOOD, leaves: true });
        assert_eq!(revoked(&mut policy, GRACE), asked(GRACE));
        assert_eq!(policy.on(Event::Deadline), KILLED);
        assert_eq!(policy.on(Event::Alone), finish(GOOD, Cause::Revoked));
    }

    #[test]
    fn a_deadline_nobody_asked_for_does_nothing_and_nobody_is_alone_while_the_command_runs() {
        assert_eq!(policy(Group::Own).on(Event::Deadline), []);
        assert_eq!(policy(Group::Own).on(Event::Alone), []);
    }
}
