//! The process half: what happens to the command from its start to its end. It knows no locks.

mod child;
mod descendants;
mod policy;
mod signals;
mod words;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::ready;
use std::io;
use std::process;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::yield_now;
use tracing::warn;

use self::child::{Change, Child, Start, adopt_orphans, has_changed, has_children, next_change, send_to, spawn};
pub use self::child::{Inherited, Program, die_of, stdout_was_closed};
use self::descendants::{Process, children, descendants};
use self::policy::{Action, Event, Policy};
pub use self::policy::{Cause, Orphans, Outcome, Rules, Target};
pub use self::signals::Signals;
pub use self::words::{Ending, Group, Permission};
use crate::clock;

#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Nothing was executed.
    #[error("{0}")]
    Exec(io::Error),
    /// Nothing was started.
    #[error("cannot start a process: {0}")]
    Fork(io::Error),
    /// Nothing was started.
    #[error("its permission was revoked before it was started")]
    Revoked,
}

impl Group {
    /// With a controlling terminal the command stays in our group, so that it keeps the terminal and its keys.
    pub fn auto() -> Group {
        match File::open("/dev/tty") {
            Ok(_) => Group::Same,
            Err(_) => Group::Own,
        }
    }

    /// A group of its own; at a terminal it stops and goes on with us.
    pub fn own() -> Group {
        match Group::auto() {
            Group::Same => Group::Foreground,
            other => other,
        }
    }
}

/// So many looks at the tree a freeze may take; all but the first find who was forked during the one before.
const LOOKS: usize = 16;

/// Runs a command to its end: passes signals on, lets it stand still while its permission is in doubt, and stops it once that
/// is revoked.
///
/// Whoever gives the permission is to be polled before this, at every wake-up: we may have stood still ourselves, and before
/// anybody is continued it is to be known what became of the permission.
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
    mut permission: watch::Receiver<Permission>,
) -> Result<Outcome, SuperviseError> {
    // Signals that come now are passed on when there is a command.
    let is_known = permission.wait_for(|permission| *permission != Permission::Doubtful).await;
    if is_known.is_ok_and(|permission| matches!(*permission, Permission::Revoked { .. })) {
        return Err(SuperviseError::Revoked);
    }
    adopt_orphans();
    let start = Start { group: rules.group, death_signal };
    let us = process::id().cast_signed();
    let others = RefCell::new(children(us).into_iter().filter_map(Process::of).collect());
    let (child, exec) = spawn(program, &start, signals.inherited()).map_err(SuperviseError::Fork)?;
    let tree = Tree { child, us, others, told: RefCell::default(), frozen: RefCell::default(), has_ended: Cell::new(false) };
    let mut policy = Policy::new(rules, us, tree.child.pid());
    let mut exec_error = None;
    let mut is_executing = true;
    let mut has_resumed = false;
    let mut is_more = false;
    let mut deadline: Option<Duration> = None;
    'waiting: loop {
        // What is over by now comes before the signals, the one among them that continues the command.
        let event = tokio::select! {
            biased;
            Ok(()) = permission.changed() => Some(Event::Permission(*permission.borrow())),
            () = clock::reaches(deadline.unwrap_or_default()), if deadline.is_some() => {
                deadline = None;
                Some(Event::Deadline)
            }
            () = ready(()), if has_resumed => {
                has_resumed = false;
                Some(Event::Resumed)
            }
            signal = signals.next() => signal.ok().map(Event::Signal),
            outcome = exec.outcome(), if is_executing => {
                is_executing = false;
                exec_error = outcome.err();
                None
            }
            () = ready(()), if is_more => None,
        };
        // Asked before the signals are read: when anybody has ended by one that was sent to our group, we have it too.
        is_more = has_changed();
        let arrived = if is_more { signals.arrived().unwrap_or_default() } else { VecDeque::new() };
        let mut news = None;
        if matches!(event, Some(Event::Resumed | Event::Signal(_))) || !arrived.is_empty() {
            // Perhaps we stood still, and in the middle of this turn: before anybody goes on the permission is looked at again.
            yield_now().await;
            if matches!(permission.has_changed(), Ok(true)) {
                news = Some(Event::Permission(*permission.borrow_and_update()));
            }
        }
        // One after the other: a signal is passed on before the command is reaped, never after.
        let arrived = arrived.into_iter().map(Event::Signal);
        for event in news.into_iter().chain(event).chain(arrived).chain(tree.changes(is_more)) {
            for action in policy.on(event) {
                match action {
                    Action::Send(signal, target) => tree.send(signal, target),
                    Action::Freeze => tree.freeze(),
                    Action::Thaw => tree.thaw(),
                    Action::TellOrphans => _ = tree.tell(),
                    Action::AskOrphans => tree.ask_to_end(),
                    Action::Stop(signal) => {
                        tree.child.stop_with(signal);
                        has_resumed = true;
                        continue 'waiting;
                    }
                    Action::WaitFor(time) => {
                        let then = clock::now().saturating_add(time);
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
    /// Children that we had before (`sleep 9 & exec syncd-spawn ...`), and theirs as far as we have seen them.
    others: RefCell<Vec<Process>>,
    /// Whom the command left behind, and a person was told about.
    told: RefCell<Vec<Process>>,
    /// Whom we stopped, and have to continue.
    frozen: RefCell<Vec<Process>>,
    has_ended: Cell<bool>,
}

impl Tree {
    fn processes(&self) -> Vec<Process> {
        // Without a child of any kind there is no need to look.
        if has_children() { descendants(self.us, &self.others.borrow()) } else { Vec::new() }
    }

    fn send(&self, signal: i32, target: Target) {
        match target {
            Target::Command => self.child.send(signal),
            Target::Group => self.child.send_to_group(signal),
            Target::Tree => {
                self.processes().into_iter().for_each(|process| send_to(process, signal));
                if self.is_hidden() {
                    self.child.send(signal);
                }
            }
        }
    }

    /// Whether `/proc` is missing, or does not show us the command. That one we know without.
    fn is_hidden(&self) -> bool {
        !self.has_ended.get() && Process::of(self.child.pid()).is_none()
    }

    /// Who is stopped cannot fork, so after some looks there is nobody new; and a storm of forks does not keep us here.
    fn freeze(&self) {
        if self.is_hidden() {
            self.child.send(libc::SIGSTOP);
        }
        let mut frozen = self.frozen.borrow_mut();
        for _ in 0..LOOKS {
            let running: Vec<Process> = self.processes().into_iter().filter(|process| !process.is_stopped()).collect();
            for process in &running {
                send_to(*process, libc::SIGSTOP);
            }
            let new: Vec<Process> = running.into_iter().filter(|process| !frozen.contains(process)).collect();
            if new.is_empty() {
                return;
            }
            frozen.extend(new);
        }
    }

    fn thaw(&self) {
        self.frozen.take().into_iter().for_each(|process| send_to(process, libc::SIGCONT));
        if self.is_hidden() {
            self.child.send(libc::SIGCONT);
        }
    }

    /// Those left behind that nobody was told about yet.
    fn tell(&self) -> Vec<Process> {
        let mut told = self.told.borrow_mut();
        let new: Vec<Process> = self.processes().into_iter().filter(|process| !told.contains(process)).collect();
        if !new.is_empty() {
            let names: Vec<_> = new.iter().map(|process| format!("{} ({})", process.name(), process.pid)).collect();
            warn!("the command has ended, and left behind: {}", names.join(", "));
        }
        told.extend(&new);
        new
    }

    fn ask_to_end(&self) {
        for process in self.tell() {
            send_to(process, libc::SIGTERM);
            // Who is stopped could not react to it.
            send_to(process, libc::SIGCONT);
        }
    }

    /// What became of the command, if somebody changed, and of what it left behind; who else is our child is reaped as well.
    fn changes(&self, is_change: bool) -> impl Iterator<Item = Event> {
        self.look_after_others();
        // Not before the signals are passed on that come before it in the same turn.
        let change = std::iter::once_with(move || is_change.then(next_change).flatten()).flatten();
        let changes = change.filter(|(pid, _)| *pid == self.child.pid());
        let events = changes.map(|(_, change)| match change {
            Change::Stopped(signal) => Event::Stopped(signal),
            Change::Continued => Event::Continued,
            Change::Ended(ending) => {
                self.has_ended.set(true);
                Event::Ended { ending, leaves: !self.is_alone() }
            }
        });
        events.chain(std::iter::once_with(|| self.rest()).flatten())
    }

    /// Once nobody is left to reap: it is a walk through the tree.
    fn rest(&self) -> Option<Event> {
        (self.has_ended.get() && !has_changed()).then(|| if self.is_alone() { Event::Alone } else { Event::Orphans })
    }

    /// Whether nobody is left, running or not yet reaped. Who ends leaves his children to us in the same moment, so the
    /// kernel's word that we have none is final, as no walk through the tree would be.
    fn is_alone(&self) -> bool {
        let others = self.others.borrow();
        !has_children()
            || !others.is_empty() && children(self.us).iter().all(|pid| others.iter().any(|other| other.pid == *pid))
    }

    /// Children of those may become ours.
    fn look_after_others(&self) {
        let mut others = self.others.borrow_mut();
        let new: Vec<Process> = others.iter().flat_map(|other| children(other.pid)).filter_map(Process::of).collect();
        for process in new {
            if !others.contains(&process) {
                others.push(process);
            }
        }
    }
}
