//! Runs a command while its lock is held.

use std::ffi::OsString;
use std::future::pending;

use tracing::{debug, warn};

use super::{Acquired, Context, GroupChoice, HELD, HeirloomChoice, Manner, OnLost, Wish, say_what_is_left};
use crate::error::Error;
use crate::exit;
use crate::lock::{Identifier, Lifetime, Limit, NodePath, Place, Removal, Store, StoreError, hold};
use crate::report;
use crate::supervise::{Cause, Ending, Group, Outcome, Program, Rules, SuperviseError, supervise};

pub async fn spawn<S: Store>(
    store: &S,
    wish: &Wish,
    words: &[OsString],
    manner: &Manner,
    limit: Limit,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let lifetime = Lifetime::Spawned;
    let place = match context.acquire(store, wish, lifetime, limit).await? {
        Acquired::Ours(place) => place,
        Acquired::Not(result) => return Ok(result),
    };
    let node = wish.lock.node(&place.name);
    context.say(format_args!("Got lock on {}", wish.lock));
    context.say(format_args!("Running your command {}", readable(words)));
    let lost = async {
        match (store.lost(&wish.lock, &place.name, lifetime, &mut |_| ()).await, manner.on_lost) {
            (Ok(_), OnLost::Stop) => warn!("{node} was removed while the command runs: stopping it"),
            (Ok(_), OnLost::Ignore) => {
                warn!("{node} was removed while the command runs, which goes on without the lock");
                pending::<()>().await;
            }
            (Err(error), _) => {
                warn!("{error}: if {node} is taken away, nobody will notice");
                pending::<()>().await;
            }
        }
    };
    let program = Program::new(words, &variables(wish, &node, &place)).map_err(SuperviseError::Exec);
    let program = program.and_then(|program| match (store.heirloom(&place.name), manner.heirloom) {
        (Some(heirloom), HeirloomChoice::PassOn) => program.inherits(&*heirloom).map_err(SuperviseError::Fork),
        (Some(_), HeirloomChoice::Close) | (None, _) => Ok(program),
    });
    let run = async { supervise(&program?, rules(manner), manner.death_signal, &mut context.signals, lost).await };
    let (ran, left) = hold(store, &node, run).await;
    let is_released = tell_what_was_left(left, &node, &ran, context);
    match ran {
        Ok(outcome) => {
            tell_how_it_ended(words, outcome);
            Ok(exit::Result::Ran { outcome, is_released, signal_exit: manner.signal_exit })
        }
        Err(error) => {
            let result = match &error {
                SuperviseError::Exec(error) => exit::Result::NotExecuted(error.raw_os_error()),
                SuperviseError::Fork(_) => exit::Result::Failed,
            };
            report::error(&Error::Supervise { command: readable(&words[..1]), error }, None);
            Ok(result)
        }
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

/// Says whether the lock is free.
fn tell_what_was_left(
    left: Result<Removal, StoreError>,
    node: &NodePath,
    ran: &Result<Outcome, SuperviseError>,
    context: &Context<'_>,
) -> bool {
    let is_revoked = matches!(ran, Ok(Outcome { cause: Cause::Revoked, .. }));
    match left {
        Ok(Removal::Removed) => context.say(format_args!("Unlocked '{node}'")),
        Ok(Removal::Missing | Removal::Changed) if is_revoked => debug!("{node} is gone, as we knew"),
        Ok(Removal::Missing | Removal::Changed) => warn!("{node} was gone before it was released"),
        Err(error) => {
            report::error(&error, None);
            say_what_is_left(context.address, &error);
            return false;
        }
    }
    true
}

fn variables(wish: &Wish, node: &NodePath, place: &Place) -> [(&'static str, OsString); 5] {
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
