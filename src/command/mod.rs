//! What was asked for, a file each.

mod acquire;
mod install;
mod list;
mod lock;
mod reap;
mod record;
mod request;
mod spawn;
mod unlock;
mod voice;

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::warn;

use self::record::{Recording, look_up, strike};
pub use self::request::{
    Action, Address, GroupChoice, HeirloomChoice, Layout, LifetimeChoice, LimitOver, Links, Manner, OnLost, Request, Suspect,
    Unlocking, Variable, Wait, WaitLimit, Wish,
};
pub use self::spawn::shortest_promise;
pub use self::voice::{Spelling, Voice, could_not_lock};
use crate::error::Error;
use crate::exit;
use crate::journal::{Entry, Family, Life, Record, StateDir};
use crate::local::Watches;
use crate::lock::{Claim, Expected, Lifetime, Limit, LockPath, NodePath, Removal, Store, StoreError};
use crate::report::{self, Verbosity};
use crate::store::{Directory, Witness, ZooKeeper};
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
            let store = store.with_witness(witness(&state_dir));
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

/// Who lives on this host, by its journal.
fn witness(state_dir: &StateDir) -> Witness {
    let state_dir = state_dir.clone();
    Box::new(move |name| {
        let (family, state_dir) = (Family::of(name), state_dir.clone());
        Box::pin(async move {
            match family {
                Some(family) => matches!(look_up(&state_dir, family).await, Ok(Some(Life::Living))),
                None => false,
            }
        })
    })
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
