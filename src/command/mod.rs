//! What was asked for, a file each.

mod install;
mod list;
mod lock;
mod request;
mod spawn;
mod unlock;
mod voice;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};
use tracing::warn;

pub use self::request::{
    Action, Address, GroupChoice, HeirloomChoice, LifetimeChoice, LimitOver, Links, Manner, OnLost, Request, Variable, Wait,
    WaitLimit, Wish,
};
pub use self::voice::{Slash, Voice, could_not_lock};
use crate::error::Error;
use crate::exit;
use crate::lock::{
    AcquireError, Claim, Expected, Happening, Lifetime, Limit, NodeName, NodePath, Patience, Place, Reading, Removal, Store,
    StoreError, acquire,
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
    voice: &'r Voice,
    signals: Signals,
}

/// Does what was asked for.
///
/// # Cancellation
/// Must not be dropped before it is ready: it is to leave nothing behind.
pub async fn run(request: Request, signals: Signals) -> Result<exit::Result, Error> {
    let Request { address, verbosity, voice, remark, release_timeout, action } = request;
    if let Some(remark) = remark {
        warn!("{remark}");
    }
    let mut context = Context { verbosity, address: &address, voice: &voice, signals };
    let wait = match &action {
        Action::Spawn { wish, .. } | Action::Lock(wish) => wish.wait,
        Action::Unlock { wait, .. } | Action::List { wait, .. } => *wait,
        Action::Install { directory, links } => return install::install(directory, *links),
    };
    let mut limit = until(wait.limit);
    match address.clone() {
        Address::ZooKeeper { servers, chroot } => {
            let connecting = match wait.over {
                LimitOver::Everything => limit,
                LimitOver::Waiting => Limit::Never,
            };
            let connecting = ZooKeeper::connect(servers, chroot, connecting, release_timeout);
            let store = match context.unless_asked_to_end(connecting).await? {
                Unless::Done(Ok(store)) => store,
                Unless::Done(Err(error)) => return voice.not_acquired(error.into()),
                Unless::AskedToEnd(signal) => return Ok(exit::Result::Interrupted(signal)),
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
        Action::Unlock { nodes, identifier, .. } => unlock::unlock(store, &nodes, identifier.as_ref(), limit, context).await,
        Action::List { lock, .. } => list::list(store, &lock, limit, context).await,
        Action::Install { .. } => unreachable!("it needs no store"),
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
    async fn acquire<S: Store>(&mut self, store: &S, wish: &Wish, lifetime: Lifetime, limit: Limit) -> Result<Acquired, Error> {
        self.voice.tell_trying(&wish.lock);
        let claim = Claim::new(wish.mode, lifetime, wish.identifier.clone());
        let around = held_around();
        let (address, voice) = (self.address, self.voice);
        let asked: Cell<Option<io::Result<i32>>> = Cell::new(None);
        let mut stop = pin!(async { asked.set(Some(self.signals.asked_to_end().await)) });
        let patience = Patience::new(limit, stop.as_mut());
        let mut tell = |happening: Happening<'_>| tell(address, voice, &happening);
        let acquired = acquire(store, &wish.lock, claim, &around, patience, wish.wait.reports, &mut tell).await;
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

fn tell(address: &Address, voice: &Voice, happening: &Happening<'_>) {
    match happening {
        Happening::Waiting { lock, predecessor, reading, ahead } => {
            let who = match reading {
                Reading::There(contender) => {
                    let since = humantime::format_rfc3339_seconds(contender.since.max(SystemTime::UNIX_EPOCH));
                    format!("'{}' {} since {since}", contender.identifier, lock.node(predecessor))
                }
                Reading::Missing => return,
                Reading::Forbidden => format!("{} (its identifier may not be read)", lock.node(predecessor)),
            };
            warn!("Waiting to acquire lock {lock}: behind {who}, {ahead} in front");
        }
        Happening::Queued { lock, queue, readings } => voice.tell_queue(lock, queue, readings),
        Happening::Evicted { node } => warn!("{node} was removed while we waited: queueing again at the end"),
        Happening::NearlyUsedUp { node } => {
            warn!("{node}: the numbers of {} end at 2147483647; drain and delete the directory before", node.lock);
        }
        Happening::LeftBehind { error } => {
            tracing::error!("{error}");
            say_what_is_left(address, error);
        }
    }
}

/// A node that could not be removed, with the line that will.
fn say_what_is_left(address: &Address, error: &StoreError) {
    match error {
        StoreError::NotRemoved { node, .. } => {
            report::line(format_args!("hint: {} {address} unlock {node}", report::by_hand()));
        }
        StoreError::Unsettled { prefix, .. } => {
            let lock = prefix.rsplit_once('/').map_or(prefix.as_str(), |(lock, _)| lock);
            let name = report::by_hand();
            report::line(format_args!("hint: {name} {address} list {lock} shows whether there is one; unlock removes it"));
        }
        StoreError::Unreachable { .. } | StoreError::Refused { .. } | StoreError::Unsuitable { .. } | StoreError::NoLock(_) => {
        }
    }
}
