//! What was asked for, a file each.

mod install;
mod list;
mod lock;
mod reap;
mod record;
mod request;
mod spawn;
mod unlock;
mod voice;

use std::cell::Cell;
use std::future::Future;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use self::reap::Reaper;
use self::record::{Recording, strike};
pub use self::request::{
    Action, Address, GroupChoice, HeirloomChoice, Layout, LifetimeChoice, LimitOver, Links, Manner, OnLost, Request, Suspect,
    Unlocking, Variable, Wait, WaitLimit, Wish,
};
pub use self::spawn::shortest_promise;
pub use self::voice::{Slash, Voice, could_not_lock};
use crate::error::Error;
use crate::exit;
use crate::journal::{Entry, Family, Record, StateDir};
use crate::local::Watches;
use crate::lock::{
    AcquireError, Claim, Expected, Happening, Lifetime, Limit, LockPath, Mark, NodeName, NodePath, Ownership, Patience, Place,
    Reading, Removal, Store, StoreError, acquire,
};
use crate::report::{self, Verbosity};
use crate::store::{Directory, ZooKeeper};
use crate::supervise::Signals;

/// How long one look may take: that of `--no-wait`, and those of `unlock` and `list` where no limit was given.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// What every command works with.
struct Context<'r> {
    verbosity: Verbosity,
    address: &'r Address,
    state_dir: &'r StateDir,
    voice: &'r Voice,
    signals: Signals,
    /// What a call that contends will stand in the queue as.
    claim: Option<Claim>,
    /// What the journal says about it.
    record: Option<Record>,
    /// With which it sees others die.
    watches: Watches,
    /// Whether something of ours is in the queue that could not be taken out.
    is_something_left: bool,
}

/// Does what was asked for.
///
/// # Cancellation
/// Must not be dropped before it is ready: it is to leave nothing behind.
pub async fn run(request: Request, signals: Signals) -> Result<exit::Result, Error> {
    let Request { address, state_dir, verbosity, voice, remark, release_timeout, action } = request;
    if let Some(remark) = remark {
        warn!("{remark}");
    }
    let mut context = Context {
        verbosity,
        address: &address,
        state_dir: &state_dir,
        voice: &voice,
        signals,
        claim: action.claim(),
        record: None,
        watches: Watches::default(),
        is_something_left: false,
    };
    let wait = match &action {
        Action::Spawn { wish, .. } | Action::Lock(wish) => wish.wait,
        Action::Unlock { wait, .. } | Action::List { wait, .. } => *wait,
        Action::Reap { wait } => return reap::reap(&state_dir, wait.limit, release_timeout, &mut context).await,
        Action::Install { directory, links } => return install::install(directory, *links),
    };
    let mut limit = until(wait.limit);
    match address.clone() {
        Address::ZooKeeper { servers, chroot } => {
            let connecting = match wait.over {
                LimitOver::Everything => limit,
                LimitOver::Waiting => Limit::Never,
            };
            let opening = ZooKeeper::connect(servers, chroot, connecting, release_timeout);
            let store = match context.connect(opening, &action, connecting).await {
                Ok(Unless::Done(store)) => store,
                Err(error) => return voice.not_acquired(error),
                Ok(Unless::AskedToEnd(signal)) => return Ok(exit::Result::Interrupted(signal)),
            };
            if let LimitOver::Waiting = wait.over {
                limit = until(wait.limit);
            }
            let result = Box::pin(act(&store, action, limit, &mut context)).await;
            store.close().await;
            result
        }
        Address::Directory { root, chroot } => Box::pin(act(&Directory::new(root, chroot), action, limit, &mut context)).await,
    }
}

async fn act<S: Store>(store: &S, action: Action, limit: Limit, context: &mut Context<'_>) -> Result<exit::Result, Error> {
    match action {
        Action::Spawn { wish, words, variables, manner } => {
            spawn::spawn(store, &wish, spawn::What { words, variables }, &manner, limit, context).await
        }
        Action::Lock(wish) => lock::lock(store, &wish, limit, context).await,
        Action::Unlock { unlocking, identifier, .. } => {
            unlock::unlock(store, &unlocking, identifier.as_ref(), limit, context).await
        }
        Action::List { lock, layout, .. } => list::list(store, &lock, layout, limit, context).await,
        Action::Reap { .. } | Action::Install { .. } => unreachable!("it needs no store of its own"),
    }
}

fn until(limit: WaitLimit) -> Limit {
    match limit {
        WaitLimit::Never => Limit::Never,
        WaitLimit::Once => Limit::Once(Instant::now() + LOOK_TIMEOUT),
        // A limit beyond the end of the clock is none.
        WaitLimit::Within(time) => Instant::now().checked_add(time).map_or(Limit::Never, Limit::At),
    }
}

/// What came of something that a signal may end.
enum Unless<T> {
    Done(T),
    /// By this signal.
    AskedToEnd(i32),
}

/// How waiting for the lock ended.
enum Acquired {
    Ours(Place),
    Not(exit::Result),
}

impl Context<'_> {
    /// Connects, and writes into the journal meanwhile what we are going to ask for: it is there before that is.
    async fn connect(
        &mut self,
        connecting: impl Future<Output = Result<ZooKeeper, StoreError>>,
        action: &Action,
        limit: Limit,
    ) -> Result<Unless<ZooKeeper>, Error> {
        let entry = self.claim.as_ref().and_then(|claim| self.entry(action.lock()?, claim));
        let mut recording = match entry {
            Some(entry) => Recording::begin(self.state_dir, entry),
            None => Recording::Done(None),
        };
        let both = async { tokio::join!(connecting, recording.finish(limit)).0 };
        match self.unless_asked_to_end(both).await {
            Ok(Unless::Done(Ok(store))) => {
                self.record = recording.record();
                Ok(Unless::Done(store))
            }
            Ok(Unless::Done(Err(error))) => {
                recording.cancel().await;
                Err(error.into())
            }
            Ok(Unless::AskedToEnd(signal)) => {
                recording.cancel().await;
                Ok(Unless::AskedToEnd(signal))
            }
            Err(error) => Err(error),
        }
    }

    /// What the journal is to say; nothing where the server itself removes what the dead leave.
    fn entry(&self, lock: &LockPath, claim: &Claim) -> Option<Entry> {
        match (self.address, claim.lifetime) {
            (Address::ZooKeeper { servers, chroot }, Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Explicit) => {
                let family = Family::parse(&claim.family()).expect("a claim makes it");
                Some(Entry::of_us(servers.clone(), chroot.clone(), lock.clone(), family))
            }
            (Address::ZooKeeper { .. }, Lifetime::Session { .. }) | (Address::Directory { .. }, _) => None,
        }
    }

    /// Nothing of ours is in the queue any more, unless something else could not be taken out: the journal is told.
    fn strike(&mut self) {
        let record = self.record.take();
        if !self.is_something_left {
            strike(record);
        }
    }

    /// Looks at the store, which may be dropped: until the limit, or for a while where there is none.
    async fn look<T>(
        &mut self,
        limit: Limit,
        looking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<Unless<Result<T, StoreError>>, Error> {
        let until = match limit {
            Limit::At(instant) | Limit::Once(instant) => instant,
            Limit::Never => Instant::now() + LOOK_TIMEOUT,
        };
        let place = self.address.place();
        self.unless_asked_to_end(async {
            let no_answer = || StoreError::Unreachable { place, cause: "no answer in time".to_owned() };
            timeout_at(until, looking).await.unwrap_or_else(|_| Err(no_answer()))
        })
        .await
    }

    /// Removes somebody's node, until the limit: nothing of ours is at stake, so it may be given up half-way.
    async fn leave<S: Store>(
        &mut self,
        limit: Limit,
        store: &S,
        node: &NodePath,
        expected: Expected,
    ) -> Result<Unless<Result<Removal, StoreError>>, Error> {
        let place = self.address.place();
        let leaving = store.leave(&node.lock, &node.name, expected);
        self.unless_asked_to_end(async {
            match limit {
                Limit::Never => leaving.await,
                Limit::At(until) | Limit::Once(until) => timeout_at(until, leaving).await.unwrap_or_else(|_| {
                    Err(StoreError::NotRemoved { node: node.clone(), place, cause: "no answer in time".to_owned() })
                }),
            }
        })
        .await
    }

    /// Waits for something that may be dropped, or for a signal that asks us to end.
    async fn unless_asked_to_end<T>(&mut self, work: impl Future<Output = T>) -> Result<Unless<T>, Error> {
        tokio::select! {
            biased;
            signal = self.signals.asked_to_end() => {
                signal.map(Unless::AskedToEnd).map_err(Error::system("cannot read signals"))
            }
            done = work => Ok(Unless::Done(done)),
        }
    }

    /// Enters the queue and waits, telling a person about it.
    async fn acquire<S: Store>(&mut self, store: &S, wish: &Wish, limit: Limit) -> Result<Acquired, Error> {
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
        let mut reaper = Reaper::new(self.state_dir, self.address);
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
const HELD: &str = "SYNCD_SPAWN_HELD";

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
                    let since = humantime::format_rfc3339_seconds(contender.since.max(SystemTime::UNIX_EPOCH));
                    format!("'{}' {} since {since}", contender.identifier, lock.node(predecessor))
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
    let since = since.map(|since| format!(" since {}", humantime::format_rfc3339_seconds(since.max(SystemTime::UNIX_EPOCH))));
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

/// A node that could not be removed, with the line that will.
fn say_what_is_left(address: &Address, error: &StoreError) {
    match error {
        StoreError::NotRemoved { node, .. } => {
            report::line(format_args!("hint: {} {address} unlock {}", report::by_hand(), report::typed(node)));
        }
        StoreError::Unsettled { prefix, .. } => {
            let lock = prefix.rsplit_once('/').map_or(prefix.as_str(), |(lock, _)| lock);
            let name = report::by_hand();
            report::line(format_args!("hint: {name} {address} list {lock} shows whether there is one; unlock removes it"));
        }
        StoreError::Unreachable { .. }
        | StoreError::Refused { .. }
        | StoreError::Unsuitable { .. }
        | StoreError::SessionTooShort { .. }
        | StoreError::NoLock(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
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
        let old = hint(&Voice::Lockpick { slash: Slash::None }, Some(node(2)));
        assert_eq!(old, said(2).replace(" --if-dead", ""));
    }
}
