//! The process half: what happens to the command from its start to its end. It knows no locks.

mod child;
mod descendants;
mod policy;
mod signals;
mod words;

use std::cell::Cell;
use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::process;

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use self::child::{Change, Child, Start, adopt_orphans, has_children, has_terminal, next_change, send_to, spawn};
pub use self::child::{Inherited, Program, die_of, stdout_was_closed};
use self::descendants::{Process, children, descendants};
use self::policy::{Action, Event, Policy};
pub use self::policy::{Cause, Orphans, Outcome, Rules, Target};
pub use self::signals::Signals;
pub use self::words::{Ending, Group};

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

    /// A group of its own, which gets the terminal if that is ours to give.
    pub fn own() -> Group {
        if has_terminal() { Group::Foreground } else { Group::Own }
    }
}

/// Runs a command to its end: passes signals on, and stops it once `revoked` is ready.
///
/// `death_signal` is what the kernel sends the command when we are gone. When this returns the command has been reaped, and
/// what it left behind is gone too, as the rules have it.
///
/// # Cancellation
/// Must not be dropped before it is ready, or nobody looks after the command.
pub async fn supervise(
    program: &Program,
    rules: Rules,
    death_signal: Option<i32>,
    signals: &mut Signals,
    revoked: impl Future<Output = ()>,
) -> Result<Outcome, SuperviseError> {
    adopt_orphans();
    let start = Start { group: rules.group, death_signal };
    let us = process::id().cast_signed();
    let others = children(us);
    let (child, exec) = spawn(program, &start, signals.inherited()).map_err(SuperviseError::Fork)?;
    let tree = Tree { child, us, others, has_ended: Cell::new(false) };
    let mut policy = Policy::new(rules, us, tree.child.pid());
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
        for event in event.into_iter().chain(tree.changes()) {
            for action in policy.on(event) {
                match action {
                    Action::Send(signal, target) => tree.send(signal, target),
                    Action::TellOrphans => tree.tell(),
                    Action::Stop(signal) => tree.child.stop_with(signal),
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

/// The command and everything that descends from it.
struct Tree {
    child: Child,
    us: i32,
    /// Children that we had before (`sleep 9 & exec syncd-spawn ...`).
    others: Vec<i32>,
    has_ended: Cell<bool>,
}

impl Tree {
    fn processes(&self) -> Vec<Process> {
        // Without a child of any kind there is no need to look.
        if has_children() { descendants(self.us, &self.others) } else { Vec::new() }
    }

    fn send(&self, signal: i32, target: Target) {
        match target {
            Target::Command => self.child.send(signal),
            Target::Group => self.child.send_to_group(signal),
            Target::Tree => self.processes().into_iter().for_each(|process| send_to(process, signal)),
        }
    }

    fn tell(&self) {
        let names: Vec<_> = self.processes().iter().map(|process| format!("{} ({})", process.name(), process.pid)).collect();
        if !names.is_empty() {
            warn!("the command has ended, and left behind: {}", names.join(", "));
        }
    }

    /// What became of the command and of what it left behind; who else is our child is reaped as well.
    fn changes(&self) -> impl Iterator<Item = Event> {
        let changes = std::iter::from_fn(next_change).filter(|(pid, _)| *pid == self.child.pid());
        let events = changes.map(|(_, change)| match change {
            Change::Stopped(signal) => Event::Stopped(signal),
            Change::Ended(ending) => {
                self.has_ended.set(true);
                Event::Ended { ending, leaves: !self.processes().is_empty() }
            }
        });
        events.chain(std::iter::once_with(|| self.alone()).flatten())
    }

    fn alone(&self) -> Option<Event> {
        (self.has_ended.get() && self.processes().is_empty()).then_some(Event::Alone)
    }
}
