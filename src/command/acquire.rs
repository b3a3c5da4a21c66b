//! Enters a queue and waits for our turn, telling a person about it.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::pin::pin;

use tokio::time::timeout_at;
use tracing::{info, warn};

use super::reap::Reaper;
use super::{Address, Context, Unless, Voice, Wish, say_what_is_left};
use crate::clock::date;
use crate::error::Error;
use crate::exit;
use crate::lock::{
    AcquireError, Happening, Lifetime, Limit, Mark, NodeName, NodePath, Ownership, Patience, Place, Reading, Store, StoreError,
    acquire,
};
use crate::report;

/// How waiting for the lock ended.
pub enum Acquired {
    Ours(Place),
    Not(exit::Result),
}

impl Context<'_> {
    /// Enters the queue and waits, telling a person about it.
    pub(super) async fn acquire<S: Store>(&mut self, store: &S, wish: &Wish, limit: Limit) -> Result<Acquired, Error> {
        self.voice.tell_trying(&wish.lock);
        let acquired = self.contend(store, wish, limit).await;
        match acquired {
            Ok(Acquired::Ours(_)) => {}
            Ok(Acquired::Not(_)) | Err(_) => self.strike(),
        }
        acquired
    }

    async fn contend<S: Store>(&mut self, store: &S, wish: &Wish, limit: Limit) -> Result<Acquired, Error> {
        let claim = self.claim.take().expect("whoever contends has made one");
        let mut reaper = Reaper::new(self.state_dir, self.address, &wish.lock);
        if let (Limit::Once(until), Some(reaper)) = (limit, &mut reaper) {
            // One look is to find nobody in front who is dead.
            let pass = async { timeout_at(until, reaper.look_once()).await.unwrap_or(Ok(())) };
            match self.unless_asked_to_end(pass).await? {
                Unless::Done(Ok(())) => {}
                Unless::Done(Err(text)) => info!("{text}"),
                Unless::AskedToEnd(signal) => return Ok(Acquired::Not(exit::Result::Interrupted(signal))),
            }
        }
        let around = held_around();
        let (address, voice, watches) = (self.address, self.voice, &self.watches);
        let asked: Cell<Option<io::Result<i32>>> = Cell::new(None);
        let mut stop = pin!(async { asked.set(Some(self.signals.asked_to_end().await)) });
        let patience = Patience::new(limit, stop.as_mut());
        let is_something_left = &mut self.is_something_left;
        let mut orphan = None;
        let mut tell = |happening: Happening<'_>| {
            *is_something_left |= matches!(happening, Happening::LeftBehind { .. });
            tell(address, voice, &mut orphan, &happening);
        };
        let acquiring = acquire(store, &wish.lock, claim, &around, patience, wish.wait.reports, &mut tell);
        let is_removing = reaper.as_ref().map(Reaper::removing).unwrap_or_default();
        let mut reaping = pin!(async {
            match &mut reaper {
                Some(reaper) => reaper.reap(watches).await,
                None => pending().await,
            }
        });
        let acquired = tokio::select! {
            biased;
            acquired = acquiring => acquired,
            never = reaping.as_mut() => match never {},
        };
        Reaper::finish(reaping, &is_removing).await;
        if let Err(AcquireError::Store(StoreError::NotRemoved { .. } | StoreError::Unsettled { .. })) = &acquired {
            self.is_something_left = true;
        }
        match (acquired, asked.take()) {
            (Ok(place), _) => Ok(Acquired::Ours(place)),
            (Err(AcquireError::Stopped(_)), Some(Ok(signal))) => {
                voice.tell_signal(signal);
                Ok(Acquired::Not(exit::Result::Interrupted(signal)))
            }
            (Err(AcquireError::Stopped(_)), Some(Err(error))) => Err(Error::system("cannot read signals")(error)),
            (Err(error @ AcquireError::TimedOut { .. }), _) => {
                voice.tell_timed_out(&error);
                Ok(Acquired::Not(exit::Result::TimedOut { status: wish.wait.conflict_status }))
            }
            (Err(AcquireError::Store(error)), _) => {
                say_what_is_left(self.address, &error);
                voice.not_acquired(error.into()).map(Acquired::Not)
            }
            (Err(error), _) => voice.not_acquired(error.into()).map(Acquired::Not),
        }
    }
}

/// The variable by which a run knows the nodes that the runs around it hold: names, separated by blanks.
pub const HELD: &str = "SYNCD_SPAWN_HELD";

fn held_around() -> Vec<NodeName> {
    let held = std::env::var(HELD).unwrap_or_default();
    held.split_ascii_whitespace().filter_map(NodeName::parse).collect()
}

/// `told` is the orphan in front of us that it was said of how to remove it.
fn tell(address: &Address, voice: &Voice, told: &mut Option<NodeName>, happening: &Happening<'_>) {
    match happening {
        Happening::Waiting { lock, predecessor, reading, ownership, ahead } => {
            let who = match reading {
                Reading::There(contender) => {
                    let since = date(contender.since);
                    format!("'{}' {} since {since}", contender.identifier.brief(), lock.node(predecessor))
                }
                Reading::Missing => return,
                Reading::Forbidden => format!("{} (its identifier may not be read)", lock.node(predecessor)),
            };
            // One that only waited is removed by whoever stands behind it.
            let is_in_the_way = !matches!(reading, Reading::There(contender) if Mark::of(contender.version) == Mark::Waiting);
            let orphan = Some(*predecessor).filter(|_| is_in_the_way && is_for_an_operator(ownership));
            let whose = orphaned(ownership).map(|text| format!(", whose {text}")).unwrap_or_default();
            let hint = hint_once(address, voice, told, orphan.map(|name| lock.node(name)));
            warn!("Waiting to acquire lock {lock}: behind {who}{whose}, {ahead} in front{hint}");
        }
        Happening::Queued { lock, queue, readings, predecessor } => {
            voice.tell_queue(lock, queue, readings);
            let orphan = predecessor.filter(|(_, ownership)| is_for_an_operator(ownership));
            let orphan = orphan.and_then(|(name, ownership)| Some((lock.node(name), orphaned(ownership)?)));
            let hint = hint_once(address, voice, told, orphan.as_ref().map(|(node, _)| node.clone()));
            if let Some((node, text)) = orphan.filter(|_| !hint.is_empty()) {
                warn!("{}: its {text}{hint}", voice.path(&node));
            }
        }
        Happening::GivenUp { lock, predecessor, ownership } if is_for_an_operator(ownership) => {
            // Nobody who looks once would ever learn why it never succeeds.
            let node = lock.node(predecessor);
            let text = orphaned(ownership).unwrap_or_default();
            report::error(&format_args!("{}: its {text}", voice.path(&node)), None);
            report::line(voice.hint_if_dead(address, &node));
        }
        Happening::GivenUp { .. } => {}
        Happening::Evicted { node, lifetime: Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Explicit } => {
            warn!("{node} was removed while we waited: queueing again at the end");
        }
        Happening::Evicted { node, lifetime: Lifetime::Session { .. } } => {
            warn!("{node} went with our session, or was removed, while we waited: queueing again at the end");
        }
        Happening::NearlyUsedUp { node } => {
            warn!("{node}: the numbers of {} end at 2147483647; drain and delete the directory before", node.lock);
        }
        Happening::LeftBehind { error } => {
            tracing::error!("{error}");
            say_what_is_left(address, error);
        }
    }
}

/// What is said of who stands behind an orphan.
fn orphaned(ownership: &Ownership) -> Option<String> {
    let Ownership::Orphaned { owner, since, abandon_after } = ownership else { return None };
    let owner = owner.as_ref().map(|owner| format!(" ({owner})")).unwrap_or_default();
    let since = since.map(|since| format!(" since {}", date(since)));
    let promise = abandon_after.map(|time| format!(" and stops its command within {}", humantime::format_duration(time)));
    Some(format!("owner{owner} is dead or cut off{}{}", since.unwrap_or_default(), promise.unwrap_or_default()))
}

/// Who has promised to stop is removed by whoever stands behind it, and not before it has.
fn is_for_an_operator(ownership: &Ownership) -> bool {
    matches!(ownership, Ownership::Orphaned { abandon_after: None, .. })
}

/// How an orphan is removed, if that was not said of it yet.
fn hint_once(address: &Address, voice: &Voice, told: &mut Option<NodeName>, orphan: Option<NodePath>) -> String {
    let name = orphan.as_ref().map(|node| node.name.clone());
    match orphan {
        Some(node) if *told != name => {
            *told = name;
            format!("\n{}", voice.hint_if_dead(address, &node))
        }
        Some(_) | None => {
            *told = name;
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::command::Spelling;
    use crate::lock::{AbsolutePath, Owner};
    use crate::store::Servers;

    #[test]
    fn an_orphan_is_told_with_what_is_known_of_its_owner() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_secs(1_532_538_592);
        let owner = Owner { host: "h1".to_owned(), boot: String::new(), pid: Some(7), started: since, command: String::new() };
        let orphan = |owner, since| orphaned(&Ownership::Orphaned { owner, since, abandon_after: None });
        assert_eq!(orphan(None, None).unwrap(), "owner is dead or cut off");
        let text = "owner (pid 7 on h1) is dead or cut off since 2018-07-25T17:09:52Z";
        assert_eq!(orphan(Some(owner.clone()), Some(since)).unwrap(), text);
        assert_eq!((orphaned(&Ownership::Owned(owner)), orphaned(&Ownership::Unknown)), (None, None));
    }

    #[test]
    fn how_an_orphan_is_removed_is_said_once_and_again_when_there_was_another_one_or_none() {
        let address =
            Address::ZooKeeper { servers: Servers::parse("h").unwrap(), chroot: AbsolutePath::parse("/a b").unwrap() };
        let node = |number| NodePath::parse(&format!("/x/0__lock__000000000{number}")).unwrap();
        let mut told = None;
        let mut hint = |voice: &Voice, orphan| hint_once(&address, voice, &mut told, orphan);
        let said = |number| format!("\nhint: syncd-spawn -s h:2181 -c '/a b' unlock --if-dead /x/0__lock__000000000{number}");
        assert_eq!(hint(&Voice::Native, Some(node(1))), said(1));
        assert_eq!(hint(&Voice::Native, Some(node(1))), "");
        assert_eq!(hint(&Voice::Native, Some(node(2))), said(2));
        assert_eq!(hint(&Voice::Native, None), "");
        let spelling = Spelling { typed: "x".to_owned(), path: "/x".to_owned() };
        let old = hint(&Voice::Lockpick { spelling }, Some(node(2)));
        assert_eq!(old, said(2).replace(" --if-dead", ""));
    }
}
