//! Runs a command while its lock is held.

use std::convert::Infallible;
use std::ffi::OsString;
use std::future::pending;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, warn};

use super::acquire::{Acquired, HELD};
use super::{Context, GroupChoice, HeirloomChoice, LifetimeChoice, Manner, OnLost, Variable, Wish, say_what_is_left};
use crate::error::Error;
use crate::exit;
use crate::journal::Record;
use crate::lock::{Doubt, Identifier, Lifetime, Limit, Loss, NodePath, Place, Removal, Store, StoreError, hold};
use crate::report;
use crate::supervise::{Cause, Ending, Group, Outcome, Permission, Program, Rules, SuperviseError, supervise};

/// Kept of the last moments of a session, or of a promise, for what takes time though nobody has any: we are woken, everybody is
/// found and killed, and a process in the middle of a system call ends when that is done.
const TO_KILL: Duration = Duration::from_secs(1);

/// Servers are asked several times as long as this lasts, and each may take its time.
const SHORTEST_PROMISE: Duration = Duration::from_secs(5);

/// The shortest promise to stop that can be kept: half of it is for stopping, the rest for noticing that there is need to.
pub fn shortest_promise(grace: Duration) -> Duration {
    grace.saturating_add(TO_KILL).saturating_mul(2).max(SHORTEST_PROMISE)
}

/// What is run.
pub struct What {
    pub words: Vec<OsString>,
    /// What it gets in its environment besides what tells of the lock.
    pub variables: Vec<Variable>,
}

pub async fn spawn<S: Store>(
    store: &S,
    wish: &Wish,
    what: What,
    manner: &Manner,
    limit: Limit,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let What { words, mut variables } = what;
    let place = match context.acquire(store, wish, limit).await? {
        Acquired::Ours(place) => place,
        Acquired::Not(result) => return Ok(result),
    };
    let node = wish.lock.node(&place.name);
    context.tell_running(&wish.lock, &readable(&words));
    let (permit, permission) = watch::channel(Permission::Given);
    let watching = watch_over(store, &node, manner, &permit);
    variables.extend(about(wish, &node, &place));
    let program = Program::new(&words, &variables).map_err(SuperviseError::Exec);
    let of_store = store.heirloom(&place.name);
    // There is one of them at the most: where the store cannot tell who lives, the journal can.
    let heirloom = of_store.as_ref().map(|file| file.as_fd()).or_else(|| context.record.as_ref().map(Record::as_fd));
    let program = program.and_then(|program| match (heirloom, manner.heirloom) {
        (Some(heirloom), HeirloomChoice::PassOn) => program.inherits(heirloom).map_err(SuperviseError::Fork),
        (Some(_), HeirloomChoice::Close) | (None, _) => Ok(program),
    });
    let supervised = async {
        // The lock is looked at first, at every wake-up: the supervisor relies on it.
        tokio::select! {
            biased;
            never = watching => match never {},
            ran = async { supervise(&program?, rules(manner), manner.death_signal, &mut context.signals, permission).await } => ran,
        }
    };
    let (ran, left) = hold(store, &node, supervised).await;
    let is_released = tell_what_was_left(left, &node, &ran, context);
    if is_released {
        context.strike();
    }
    match ran {
        Ok(outcome) => {
            tell_how_it_ended(&words, outcome);
            Ok(exit::Result::Ran { outcome, is_released, signal_exit: manner.signal_exit })
        }
        Err(error) => {
            let result = match &error {
                SuperviseError::Exec(error) => exit::Result::NotExecuted(error.raw_os_error()),
                SuperviseError::Fork(_) => exit::Result::Failed,
                SuperviseError::Revoked => exit::Result::Lost,
            };
            report::error(&Error::Supervise { command: readable(&words[..1]), error }, None);
            Ok(result)
        }
    }
}

impl Manner {
    /// How long a contender lasts whose command is run like this.
    pub fn lifetime(&self) -> Lifetime {
        let notice = self.grace.saturating_add(TO_KILL);
        match self.lifetime {
            LifetimeChoice::Persistent => Lifetime::Spawned,
            LifetimeChoice::Ephemeral => Lifetime::Session { notice },
            LifetimeChoice::Promised { abandon_after: after } => Lifetime::Promised { after, notice },
        }
    }
}

/// Permits the command to run as long as the lock is ours.
///
/// # Cancellation
/// May be dropped; that is the only end it has.
async fn watch_over<S: Store>(store: &S, node: &NodePath, manner: &Manner, permit: &watch::Sender<Permission>) -> Infallible {
    let mut tell = |doubt| match (doubt, manner.on_lost) {
        (Doubt::Arisen | Doubt::Dispelled, OnLost::Ignore) => {}
        (Doubt::Arisen, OnLost::Stop) => {
            permit.send_replace(Permission::Doubtful);
            warn!("we stood still, and {node} may be somebody else's by now: the command stands still until we know");
        }
        (Doubt::Dispelled, OnLost::Stop) => {
            permit.send_replace(Permission::Given);
            warn!("{node} is ours still: the command goes on");
        }
    };
    let lost = store.lost(&node.lock, &node.name, manner.lifetime(), &mut tell).await;
    let (permission, text) = verdict(&lost, node, manner);
    permit.send_replace(permission);
    warn!("{text}");
    pending().await
}

/// What a loss means for the command, and what a person reads about it.
fn verdict(lost: &Result<Loss, StoreError>, node: &NodePath, manner: &Manner) -> (Permission, String) {
    let given = Permission::Given;
    let revoked = |within| Permission::Revoked { within };
    match (lost, manner.on_lost, manner.lifetime) {
        (Ok(Loss::Removed), OnLost::Stop, _) => {
            (revoked(manner.grace), format!("{node} was removed while the command runs: stopping it"))
        }
        (Ok(Loss::Removed), OnLost::Ignore, _) => {
            (given, format!("{node} was removed while the command runs, which goes on without the lock"))
        }
        (Ok(Loss::Expiring(left)), OnLost::Stop, lifetime) => {
            let within = left.saturating_sub(TO_KILL);
            let fate = match lifetime {
                LifetimeChoice::Persistent | LifetimeChoice::Ephemeral => "be somebody else's",
                LifetimeChoice::Promised { .. } => "be taken for abandoned",
            };
            let what = if left.is_zero() {
                format!("{node} may {fate} already: killing the command")
            } else if within.is_zero() {
                format!("killing the command before {node} can {fate}")
            } else {
                format!("stopping the command before {node} can {fate}")
            };
            (revoked(within), format!("{}: {what}", unconfirmed(lifetime)))
        }
        (Ok(Loss::Expiring(_)), OnLost::Ignore, lifetime) => {
            (given, format!("{}: the command goes on without the lock, {node} is lost", unconfirmed(lifetime)))
        }
        // It was an answer, so others see us as yet, and there is time for the whole grace.
        (Err(error), OnLost::Stop, LifetimeChoice::Ephemeral | LifetimeChoice::Promised { .. }) => {
            (revoked(manner.grace), format!("{error}: nobody can tell whether {node} is ours still: stopping the command"))
        }
        (Err(error), OnLost::Ignore, _) | (Err(error), OnLost::Stop, LifetimeChoice::Persistent) => {
            (given, format!("{error}: if {node} is taken away, nobody will notice"))
        }
    }
}

/// What is wrong when a loss is near.
fn unconfirmed(lifetime: LifetimeChoice) -> &'static str {
    match lifetime {
        LifetimeChoice::Persistent | LifetimeChoice::Ephemeral => "cannot confirm our session in time",
        LifetimeChoice::Promised { .. } => "cannot confirm in time that others see us alive",
    }
}

fn rules(manner: &Manner) -> Rules {
    let Manner { kill_after, grace, orphans, target, .. } = *manner;
    let group = match manner.group {
        GroupChoice::Auto => Group::auto(),
        GroupChoice::Own => Group::own(),
        GroupChoice::Same => Group::Same,
    };
    Rules { group, target, orphans, kill_after, grace }
}

fn is_revoked(ran: &Result<Outcome, SuperviseError>) -> bool {
    matches!(ran, Ok(Outcome { cause: Cause::Revoked, .. }) | Err(SuperviseError::Revoked))
}

/// Says whether the lock is free.
fn tell_what_was_left(
    left: Result<Removal, StoreError>,
    node: &NodePath,
    ran: &Result<Outcome, SuperviseError>,
    context: &Context<'_>,
) -> bool {
    match left {
        Ok(Removal::Removed) => context.tell_unlocked(node),
        Ok(Removal::LeftToSession) if is_revoked(ran) => debug!("{node} goes with its session"),
        Ok(Removal::LeftToSession) => warn!("the servers cannot be reached: {node} goes with our session, when that expires"),
        Ok(Removal::Missing | Removal::Changed) => {
            if is_revoked(ran) {
                debug!("{node} is gone, as we knew");
            } else {
                warn!("{node} was gone before it was released");
            }
            context.tell_not_unlocked(node);
        }
        Err(error) => {
            report::error(&error, None);
            say_what_is_left(context.address, &error);
            context.tell_not_unlocked(node);
            return false;
        }
    }
    true
}

fn about(wish: &Wish, node: &NodePath, place: &Place) -> [Variable; 5] {
    let mut held = std::env::var_os(HELD).unwrap_or_default();
    if !held.is_empty() {
        held.push(" ");
    }
    held.push(place.name.as_str());
    [
        ("SYNCD_SPAWN_LOCK_PATH", wish.lock.to_string().into()),
        ("SYNCD_SPAWN_LOCK_NODE", node.to_string().into()),
        ("SYNCD_SPAWN_LOCK_TYPE", wish.mode.word().into()),
        ("SYNCD_SPAWN_FENCING_TOKEN", place.token.to_string().into()),
        (HELD, held),
    ]
}

fn tell_how_it_ended(words: &[OsString], outcome: Outcome) {
    if let Ending::Signaled { number, dumped_core } = outcome.ending {
        let core = if dumped_core { ", core dumped" } else { "" };
        let cause = match outcome.cause {
            Cause::Own if number == libc::SIGKILL => " (out of memory?)",
            Cause::Own => "",
            Cause::Passed | Cause::Revoked => return,
        };
        warn!("{} was ended by signal {number}{core}{cause}", readable(&words[..1]));
    }
}

/// Words as the old script showed them: separated by blanks. On one line, whatever is in them.
fn readable(words: &[OsString]) -> String {
    let words: Vec<String> = words.iter().map(|word| Identifier(word.as_encoded_bytes().to_vec()).to_string()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::SignalExit;
    use crate::supervise::{Orphans, Target};

    const GRACE: Duration = Duration::from_secs(5);
    const AFTER: Duration = Duration::from_secs(90);
    const PROMISED: LifetimeChoice = LifetimeChoice::Promised { abandon_after: AFTER };
    const LIFETIMES: [LifetimeChoice; 3] = [LifetimeChoice::Persistent, LifetimeChoice::Ephemeral, PROMISED];

    fn manner(lifetime: LifetimeChoice, on_lost: OnLost) -> Manner {
        Manner {
            kill_after: None,
            grace: GRACE,
            orphans: Orphans::Kill,
            target: Target::Command,
            group: GroupChoice::Own,
            on_lost,
            lifetime,
            death_signal: None,
            signal_exit: SignalExit::Auto,
            heirloom: HeirloomChoice::PassOn,
        }
    }

    fn on(lost: &Result<Loss, StoreError>, lifetime: LifetimeChoice, on_lost: OnLost) -> (Permission, String) {
        let node = NodePath::parse("/db/00__lock__0000000007").unwrap();
        verdict(lost, &node, &manner(lifetime, on_lost))
    }

    fn expiring(milliseconds: u64) -> Loss {
        Loss::Expiring(Duration::from_millis(milliseconds))
    }

    fn refused() -> Result<Loss, StoreError> {
        Err(StoreError::Refused { place: "h:2181".to_owned(), what: "to watch /db".to_owned(), cause: "no".to_owned() })
    }

    #[test]
    fn a_bound_lock_is_told_of_early_enough_for_the_grace_and_the_kill() {
        assert_eq!(manner(LifetimeChoice::Persistent, OnLost::Stop).lifetime(), Lifetime::Spawned);
        let notice = Duration::from_secs(6);
        assert_eq!(manner(LifetimeChoice::Ephemeral, OnLost::Stop).lifetime(), Lifetime::Session { notice });
        assert_eq!(manner(PROMISED, OnLost::Stop).lifetime(), Lifetime::Promised { after: AFTER, notice });
    }

    #[test]
    fn a_promise_leaves_as_much_time_for_noticing_as_for_stopping() {
        for (grace, shortest) in [(0, 5000), (500, 5000), (1500, 5000), (1600, 5200), (5000, 12_000)] {
            assert_eq!(shortest_promise(Duration::from_millis(grace)), Duration::from_millis(shortest), "{grace}");
        }
        assert_eq!(shortest_promise(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn whoever_took_the_node_away_gave_the_command_its_whole_grace() {
        for lifetime in LIFETIMES {
            let (permission, text) = on(&Ok(Loss::Removed), lifetime, OnLost::Stop);
            assert_eq!(permission, Permission::Revoked { within: GRACE });
            assert!(text.contains("was removed while the command runs: stopping it"), "{text}");
        }
    }

    #[test]
    fn a_session_that_expires_leaves_time_for_the_kill_or_none_at_all() {
        for (left, within, text) in [
            (6000, 5000, "stopping the command before /db/00__lock__0000000007 can be somebody else's"),
            (1500, 500, "stopping the command before"),
            (900, 0, "killing the command before"),
            (0, 0, "may be somebody else's already: killing the command"),
        ] {
            let (permission, said) = on(&Ok(expiring(left)), LifetimeChoice::Ephemeral, OnLost::Stop);
            assert_eq!(permission, Permission::Revoked { within: Duration::from_millis(within) });
            assert!(said.starts_with("cannot confirm our session in time: ") && said.contains(text), "{said}");
        }
    }

    #[test]
    fn a_promise_is_kept_before_anybody_can_rely_on_it() {
        for (left, within, text) in [
            (6000, 5000, "stopping the command before /db/00__lock__0000000007 can be taken for abandoned"),
            (900, 0, "killing the command before /db/00__lock__0000000007 can be taken for abandoned"),
            (0, 0, "/db/00__lock__0000000007 may be taken for abandoned already: killing the command"),
        ] {
            let (permission, said) = on(&Ok(expiring(left)), PROMISED, OnLost::Stop);
            assert_eq!(permission, Permission::Revoked { within: Duration::from_millis(within) });
            assert_eq!(said, format!("cannot confirm in time that others see us alive: {text}"));
        }
    }

    #[test]
    fn a_store_that_cannot_look_is_enough_for_a_persistent_node_and_not_for_a_session_or_a_promise() {
        assert_eq!(on(&refused(), LifetimeChoice::Persistent, OnLost::Stop).0, Permission::Given);
        for lifetime in [LifetimeChoice::Ephemeral, PROMISED] {
            let (permission, text) = on(&refused(), lifetime, OnLost::Stop);
            assert_eq!(permission, Permission::Revoked { within: GRACE });
            assert!(text.starts_with("h:2181 refused to watch /db: no: nobody can tell"), "{text}");
        }
    }

    #[test]
    fn who_wants_a_loss_ignored_is_only_told() {
        for lost in [Ok(Loss::Removed), Ok(expiring(6000)), Ok(expiring(0)), refused()] {
            for lifetime in LIFETIMES {
                let (permission, text) = on(&lost, lifetime, OnLost::Ignore);
                assert_eq!(permission, Permission::Given);
                assert!(!text.contains("stopping") && !text.contains("killing"), "{text}");
            }
        }
    }
}
