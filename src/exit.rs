//! What the shell sees: the one table of numbers.

use crate::report::Dialect;
use crate::supervise::{Cause, Ending, Outcome};

/// How a run of this program came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Result {
    Done,
    /// A raw command answers no: no such lock, not yours.
    No,
    /// The command ran. `is_released`: whether the lock is gone, too.
    Ran {
        outcome: Outcome,
        is_released: bool,
        signal_exit: SignalExit,
    },
    /// A signal asked us to end before there was a command.
    Interrupted(i32),
    TimedOut {
        status: u8,
    },
    /// The command could not be executed, for this reason.
    NotExecuted(Option<i32>),
    /// The lock was lost before the command could be started.
    Lost,
    /// What was typed is not usable.
    BadUsage,
    Failed,
}

/// How to leave when a signal ended the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalExit {
    /// Die of it if it had been sent to us too; else 128 and its number.
    Auto,
    Code,
    Raise,
}

/// How to leave the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    With(u8),
    /// Die of this signal, so that a shell stops its loop and systemd sees what it sent; else leave with 128 and its number.
    BySignal(i32),
}

pub const TIMED_OUT: u8 = 124;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The numbers that are our own, and which the old programs had less of.
struct Column {
    bad_usage: u8,
    failed: u8,
    lost: u8,
    /// `None`: a signal that asks us to end before there is a command is one to die of.
    interrupted: Option<u8>,
}

fn column(dialect: Dialect) -> Column {
    match dialect {
        Dialect::Native => Column { bad_usage: 125, failed: 125, lost: 123, interrupted: None },
        Dialect::Lockpick => Column { bad_usage: 2, failed: 1, lost: 1, interrupted: Some(1) },
        Dialect::SyncdSpawn => Column { bad_usage: 1, failed: 1, lost: 1, interrupted: None },
    }
}

/// The status of what was not acquired in time, where nobody chose another.
pub fn timed_out(dialect: Dialect) -> u8 {
    match dialect {
        Dialect::Native => TIMED_OUT,
        Dialect::Lockpick | Dialect::SyncdSpawn => 1,
    }
}

impl Result {
    pub fn leave(self, dialect: Dialect) -> Leave {
        let Column { bad_usage, failed, lost, interrupted } = column(dialect);
        match self {
            Result::Done => Leave::With(0),
            Result::No => Leave::With(1),
            Result::TimedOut { status } => Leave::With(status),
            Result::BadUsage => Leave::With(bad_usage),
            Result::Failed => Leave::With(failed),
            Result::NotExecuted(Some(libc::ENOENT)) => Leave::With(NOT_FOUND),
            Result::NotExecuted(_) => Leave::With(CANNOT_EXECUTE),
            Result::Lost => Leave::With(lost),
            Result::Interrupted(signal @ (libc::SIGINT | libc::SIGTERM)) => {
                interrupted.map_or(Leave::BySignal(signal), Leave::With)
            }
            Result::Interrupted(signal) => Leave::BySignal(signal),
            Result::Ran { outcome: Outcome { ending, cause }, is_released, signal_exit } => match (ending, cause) {
                (_, Cause::Revoked) => Leave::With(lost),
                (Ending::Exited(0), _) if !is_released => Leave::With(failed),
                (Ending::Exited(code), _) => Leave::With(code),
                (Ending::Signaled { number, .. }, _) => match (signal_exit, cause) {
                    (SignalExit::Raise, _) | (SignalExit::Auto, Cause::Passed) => Leave::BySignal(number),
                    (SignalExit::Code, _) | (SignalExit::Auto, Cause::Own | Cause::Revoked) => {
                        Leave::With(signal_status(number))
                    }
                },
            },
        }
    }
}

/// 128 and the signal's number, as shells have it.
pub fn signal_status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(ending: Ending, cause: Cause, is_released: bool) -> Leave {
        Result::Ran { outcome: Outcome { ending, cause }, is_released, signal_exit: SignalExit::Auto }.leave(Dialect::Native)
    }

    #[test]
    fn every_code_of_the_command_is_ours() {
        for code in 0..=u8::MAX {
            assert_eq!(ran(Ending::Exited(code), Cause::Own, true), Leave::With(code));
        }
    }

    #[test]
    fn a_failed_release_shows_after_a_good_command_only() {
        assert_eq!(ran(Ending::Exited(0), Cause::Own, false), Leave::With(125));
        for code in 1..=u8::MAX {
            assert_eq!(ran(Ending::Exited(code), Cause::Own, false), Leave::With(code));
        }
    }

    #[test]
    fn a_signal_that_was_passed_on_is_died_of_and_another_is_128_and_its_number() {
        for number in 1..=64 {
            let ending = Ending::Signaled { number, dumped_core: false };
            assert_eq!(ran(ending, Cause::Passed, true), Leave::BySignal(number));
            assert_eq!(ran(ending, Cause::Own, false), Leave::With(128 + u8::try_from(number).unwrap()));
        }
    }

    #[test]
    fn how_to_leave_after_a_signal_can_be_chosen() {
        let ending = Ending::Signaled { number: 15, dumped_core: false };
        for cause in [Cause::Own, Cause::Passed] {
            let ran = |signal_exit| {
                Result::Ran { outcome: Outcome { ending, cause }, is_released: true, signal_exit }.leave(Dialect::Native)
            };
            assert_eq!(ran(SignalExit::Code), Leave::With(143));
            assert_eq!(ran(SignalExit::Raise), Leave::BySignal(15));
        }
    }

    #[test]
    fn what_is_ours_has_its_own_numbers() {
        let ending = Ending::Exited(0);
        assert_eq!(ran(ending, Cause::Revoked, true), Leave::With(123));
        assert_eq!(Result::Lost.leave(Dialect::Native), Leave::With(123));
        assert_eq!(Result::Done.leave(Dialect::Native), Leave::With(0));
        assert_eq!(Result::No.leave(Dialect::Native), Leave::With(1));
        assert_eq!(Result::TimedOut { status: TIMED_OUT }.leave(Dialect::Native), Leave::With(124));
        assert_eq!(Result::TimedOut { status: 0 }.leave(Dialect::Native), Leave::With(0));
        assert_eq!(Result::Failed.leave(Dialect::Native), Leave::With(125));
        assert_eq!(Result::NotExecuted(Some(libc::EACCES)).leave(Dialect::Native), Leave::With(126));
        assert_eq!(Result::NotExecuted(None).leave(Dialect::Native), Leave::With(126));
        assert_eq!(Result::NotExecuted(Some(libc::ENOENT)).leave(Dialect::Native), Leave::With(127));
        assert_eq!(Result::Interrupted(libc::SIGTERM).leave(Dialect::Native), Leave::BySignal(libc::SIGTERM));
    }
    #[test]
    fn under_the_old_names_what_is_ours_is_1_and_bad_usage_of_lockpick_2() {
        let lost = Result::Ran {
            outcome: Outcome { ending: Ending::Exited(0), cause: Cause::Revoked },
            is_released: true,
            signal_exit: SignalExit::Auto,
        };
        let unreleased = Result::Ran {
            outcome: Outcome { ending: Ending::Exited(0), cause: Cause::Own },
            is_released: false,
            signal_exit: SignalExit::Auto,
        };
        for dialect in [Dialect::Lockpick, Dialect::SyncdSpawn] {
            for result in [Result::No, Result::Failed, Result::Lost, lost, unreleased] {
                assert_eq!(result.leave(dialect), Leave::With(1), "{result:?}");
            }
            assert_eq!(Result::Done.leave(dialect), Leave::With(0));
            assert_eq!(Result::TimedOut { status: timed_out(dialect) }.leave(dialect), Leave::With(1));
            assert_eq!(Result::NotExecuted(Some(libc::ENOENT)).leave(dialect), Leave::With(127));
            assert_eq!(Result::Interrupted(libc::SIGHUP).leave(dialect), Leave::BySignal(libc::SIGHUP));
        }
        assert_eq!(Result::BadUsage.leave(Dialect::Native), Leave::With(125));
        assert_eq!(Result::BadUsage.leave(Dialect::Lockpick), Leave::With(2));
        assert_eq!(Result::BadUsage.leave(Dialect::SyncdSpawn), Leave::With(1));
        for signal in [libc::SIGINT, libc::SIGTERM] {
            assert_eq!(Result::Interrupted(signal).leave(Dialect::Lockpick), Leave::With(1));
            assert_eq!(Result::Interrupted(signal).leave(Dialect::SyncdSpawn), Leave::BySignal(signal));
        }
    }
}
