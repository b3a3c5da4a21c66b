//! The process half: what happens to the command from its start to its end. It knows no locks.

mod child;
mod policy;
mod signals;

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::process;

use tokio::time::{Instant, sleep_until};

use self::child::{Change, Child, next_change, spawn};
pub use self::child::{Ending, Inherited, Program, die_of, stdout_was_closed};
use self::policy::{Action, Event, Policy};
pub use self::policy::{Cause, Group, Outcome, Rules};
pub use self::signals::Signals;

#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Nothing was executed.
    #[error("{0}")]
    Exec(io::Error),
    /// Nothing was started.
    #[error("cannot start a process: {0}")]
    Fork(io::Error),
}

impl Group {
    /// With a controlling terminal the command stays in our group, so that it keeps the terminal and its keys.
    pub fn auto() -> Group {
        match File::open("/dev/tty") {
            Ok(_) => Group::Same,
            Err(_) => Group::Own,
        }
    }
}

/// Runs a command to its end: passes signals on, and stops it once `revoked` is ready.
///
/// When this returns the command has been reaped.
///
/// # Cancellation
/// Must not be dropped before it is ready, or nobody looks after the command.
pub async fn supervise(
    program: &Program,
    rules: Rules,
    signals: &mut Signals,
    revoked: impl Future<Output = ()>,
) -> Result<Outcome, SuperviseError> {
    let (child, exec) = spawn(program, rules.group, signals.inherited()).map_err(SuperviseError::Fork)?;
    let mut policy = Policy::new(rules, process::id().cast_signed(), child.pid());
    let mut exec_error = None;
    let mut is_executing = true;
    let mut revoked = pin!(revoked);
    let mut is_revoked = false;
    let mut deadline: Option<Instant> = None;
    loop {
        let event = tokio::select! {
            biased;
            signal = signals.next() => signal.ok().map(Event::Signal),
            outcome = exec.outcome(), if is_executing => {
                is_executing = false;
                exec_error = outcome.err();
                None
            }
            () = revoked.as_mut(), if !is_revoked => {
                is_revoked = true;
                Some(Event::Revoked)
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                deadline = None;
                Some(Event::Deadline)
            }
        };
        // One after the other: a signal is passed on before the command is reaped, never after.
        for event in event.into_iter().chain(changes(&child)) {
            for action in policy.on(event) {
                match action {
                    Action::Send(signal) => child.send(signal),
                    Action::Kill => child.kill(),
                    Action::Stop(signal) => child::stop_ourselves(signal),
                    Action::WaitFor(time) => {
                        let then = Instant::now() + time;
                        deadline = Some(deadline.map_or(then, |earlier| earlier.min(then)));
                    }
                    Action::Finish(outcome) => {
                        // A child that ended before its exec is known to have gone well may have written why.
                        if is_executing {
                            exec_error = exec.outcome().await.err();
                        }
                        return exec_error.map_or(Ok(outcome), |error| Err(SuperviseError::Exec(error)));
                    }
                }
            }
        }
    }
}

/// What became of the command; other children, whoever left them to us, are reaped as well.
fn changes(child: &Child) -> impl Iterator<Item = Event> {
    std::iter::from_fn(next_change).filter(|(pid, _)| *pid == child.pid()).map(|(_, change)| match change {
        Change::Stopped(signal) => Event::Stopped(signal),
        Change::Ended(ending) => Event::Ended(ending),
    })
}
