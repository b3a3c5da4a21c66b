//! Entering a queue, waiting for one's turn, or leaving it again.

use std::future::Future;
use std::pin::Pin;
use std::slice;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::contender::{Claim, Lifetime, NodeName, Place};
use super::owner::Ownership;
use super::path::{LockPath, NodePath};
use super::queue::{Queue, Standing};
use super::store::{Entry, Expected, Reading, Store, StoreError};
use crate::planted::{Mistake, planted};

/// How long who leaves looks at the queue once more, where servers do not answer.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// How long we may wait for our turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Never,
    /// One look, no waiting for others; and no longer than this for an answer.
    Once(Instant),
    At(Instant),
}

/// Who waits, and what ends the wait: a limit, or a wish to stop.
pub struct Patience<'s> {
    limit: Limit,
    stop: Pin<&'s mut dyn Future<Output = ()>>,
    over: Option<Over>,
}

#[derive(Clone, Copy)]
enum Over {
    TimedOut,
    /// We did not even come to look.
    NoAnswer,
    Stopped,
}

impl<'s> Patience<'s> {
    /// `stop` is ready when the caller no longer wants the lock; it is not polled again after that.
    pub fn new(limit: Limit, stop: Pin<&'s mut dyn Future<Output = ()>>) -> Patience<'s> {
        Patience { limit, stop, over: None }
    }

    /// # Cancellation
    /// May be dropped and called again; once over it stays over.
    async fn over(&mut self) -> Over {
        if let Some(over) = self.over {
            return over;
        }
        let limit = self.limit;
        let timed_out = async {
            match limit {
                Limit::At(instant) | Limit::Once(instant) => sleep_until(instant).await,
                Limit::Never => std::future::pending().await,
            }
        };
        let over = tokio::select! {
            biased;
            () = self.stop.as_mut() => Over::Stopped,
            () = timed_out => match limit {
                Limit::Once(_) => Over::NoAnswer,
                Limit::At(_) | Limit::Never => Over::TimedOut,
            },
        };
        self.over = Some(over);
        over
    }

    /// Looks for the last time, once the time is over.
    async fn last_look<T>(&mut self, look: impl Future<Output = T>) -> Over {
        tokio::select! {
            biased;
            () = self.stop.as_mut() => Over::Stopped,
            _ = timeout(LAST_LOOK, look) => Over::TimedOut,
        }
    }
}

/// What is told of the queue while we wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reports {
    /// Who is in front: at once, when it changes, and then at this interval.
    Predecessor { every: Duration },
    /// Everybody, at this interval; and at the end, where the time is over before that.
    Queue { every: Duration },
}

/// What a person may want to read while we wait.
#[derive(Debug)]
pub enum Happening<'a> {
    /// We are behind somebody.
    Waiting { lock: &'a LockPath, predecessor: &'a NodeName, reading: &'a Reading, ownership: &'a Ownership, ahead: usize },
    /// We wait, and this is the queue, and who stands right in front of us.
    Queued { lock: &'a LockPath, queue: &'a Queue, readings: &'a [Reading], predecessor: Option<(&'a NodeName, &'a Ownership)> },
    /// We do not wait, and somebody is in the way whom nobody stands behind.
    GivenUp { lock: &'a LockPath, predecessor: &'a NodeName, ownership: &'a Ownership },
    /// Our node is gone while we waited: somebody removed it, or the session that it was bound to has expired. We queue again at
    /// the end.
    Evicted { node: NodePath, lifetime: Lifetime },
    /// The directory's numbers end soon.
    NearlyUsedUp { node: NodePath },
    /// Our node could not be taken out again.
    LeftBehind { error: &'a StoreError },
}

#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    #[error("not acquired in time: {lock}{}", behind.as_ref().map(|node| format!(", behind {node}")).unwrap_or_default())]
    TimedOut { lock: LockPath, behind: Option<NodePath> },
    #[error("no answer about {0} in time")]
    NoAnswer(LockPath),
    #[error("stopped while waiting for {0}")]
    Stopped(LockPath),
    #[error("the numbers of {0} are used up")]
    UsedUp(LockPath),
    #[error("{0} is held by a run around this one: waiting for it would never end")]
    Nested(NodePath),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Enters the queue of `lock` and waits until it is our turn.
///
/// `around` are the nodes that the runs around this one hold: waiting for one of those would never end. After an error nothing
/// of ours is in the queue, or `observer` was told so.
///
/// # Cancellation
/// Must not be dropped before it is ready: `patience` says when to stop.
pub async fn acquire<S: Store>(
    store: &S,
    lock: &LockPath,
    mut claim: Claim,
    around: &[NodeName],
    mut patience: Patience<'_>,
    reports: Reports,
    observer: &mut dyn FnMut(Happening<'_>),
) -> Result<Place, AcquireError> {
    loop {
        let entry = store.enter(lock, &claim, async { _ = patience.over().await }).await;
        let place = match (entry, patience.over) {
            (Ok(Entry::In(place)), _) => place,
            (Ok(Entry::GaveUp), _) => return Err(over(patience.over().await, lock, None)),
            (Err(error), Some(end)) => {
                observer(Happening::LeftBehind { error: &error });
                return Err(over(end, lock, None));
            }
            (Err(error), None) => return Err(error.into()),
        };
        if place.name.sequence().is_nearly_used_up() {
            observer(Happening::NearlyUsedUp { node: lock.node(&place.name) });
        }
        match wait(store, lock, &place, around, &mut patience, reports, observer).await {
            Ok(Turn::Ours) => return Ok(place),
            Ok(Turn::Evicted) => {
                // Should the listing have been a stale one, nothing is left behind.
                if let Err(error) = store.leave(lock, &place.name, Expected::Anything).await {
                    observer(Happening::LeftBehind { error: &error });
                }
                observer(Happening::Evicted { node: lock.node(&place.name), lifetime: claim.lifetime });
                claim = claim.renewed();
            }
            Err(error) => {
                if let Err(error) = store.leave(lock, &place.name, Expected::Anything).await {
                    observer(Happening::LeftBehind { error: &error });
                }
                return Err(error);
            }
        }
    }
}

enum Turn {
    Ours,
    Evicted,
}

async fn wait<S: Store>(
    store: &S,
    lock: &LockPath,
    place: &Place,
    around: &[NodeName],
    patience: &mut Patience<'_>,
    reports: Reports,
    observer: &mut dyn FnMut(Happening<'_>),
) -> Result<Turn, AcquireError> {
    let me = &place.name;
    let (Reports::Predecessor { every } | Reports::Queue { every }) = reports;
    let mut ticks = interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_told = false;
    loop {
        let queue = tokio::select! {
            biased;
            queue = store.contenders(lock) => queue,
            end = patience.over() => return Err(over(end, lock, None)),
        };
        let queue = match queue {
            Ok(queue) => queue,
            Err(StoreError::NoLock(_)) => Queue::default(),
            Err(error) => return Err(error.into()),
        };
        let predecessor = match queue.standing(me) {
            Standing::Held => return Ok(Turn::Ours),
            Standing::Gone => return Ok(Turn::Evicted),
            Standing::UsedUp => return Err(AcquireError::UsedUp(lock.clone())),
            Standing::Behind(_) if planted(Mistake::IgnoresThePredecessor) => return Ok(Turn::Ours),
            Standing::Behind(predecessor) => predecessor,
        };
        if let Some(held) = queue.ahead_of(me).find(|name| around.contains(name)) {
            return Err(AcquireError::Nested(lock.node(held)));
        }
        if let Limit::Once(_) = patience.limit {
            let is_buried = tokio::select! {
                biased;
                is_buried = store.bury(lock, predecessor) => is_buried?,
                end = patience.over() => return Err(over(end, lock, Some(predecessor))),
            };
            if is_buried {
                continue;
            }
            let owners = tokio::select! {
                biased;
                owners = store.owners(lock, slice::from_ref(predecessor)) => owners.unwrap_or_default(),
                end = patience.over() => match end {
                    Over::Stopped => return Err(over(end, lock, Some(predecessor))),
                    Over::TimedOut | Over::NoAnswer => Vec::new(),
                },
            };
            if let [ownership @ Ownership::Orphaned { .. }] = owners.as_slice() {
                observer(Happening::GivenUp { lock, predecessor, ownership });
            }
            return Err(over(Over::TimedOut, lock, Some(predecessor)));
        }
        let ahead = queue.ahead_of(me).count();
        let report = async {
            loop {
                match reports {
                    Reports::Predecessor { .. } => {
                        let names = [predecessor.clone(), me.clone()];
                        let read = tokio::try_join!(store.read(lock, &names), store.owners(lock, &names[..1]));
                        let (readings, owners) = read.unwrap_or_default();
                        match (readings.as_slice(), owners.as_slice()) {
                            // Somebody removed ours: the next look will show it.
                            ([_, Reading::Missing], _) => return Ok::<(), StoreError>(()),
                            ([reading, ..], [ownership, ..]) => {
                                observer(Happening::Waiting { lock, predecessor, reading, ownership, ahead });
                            }
                            // It could not be read, which is no reason not to wait.
                            _ => {}
                        }
                        ticks.tick().await;
                    }
                    Reports::Queue { .. } => {
                        ticks.tick().await;
                        match tell_queue(store, lock, me, observer).await? {
                            Told::Everybody => is_told = true,
                            Told::Nothing => return Ok(()),
                        }
                    }
                }
            }
        };
        tokio::select! {
            biased;
            gone = store.gone(lock, predecessor) => gone?,
            // Before a report that would come at the same moment.
            end = patience.over() => {
                let end = match (end, reports) {
                    (Over::TimedOut, Reports::Queue { .. }) if !is_told => {
                        patience.last_look(tell_queue(store, lock, me, observer)).await
                    }
                    (end, _) => end,
                };
                return Err(over(end, lock, Some(predecessor)));
            }
            seen = report => seen?,
        }
        if let Reports::Predecessor { .. } = reports {
            ticks.reset();
        }
    }
}

enum Told {
    Everybody,
    /// We are not in the queue any more.
    Nothing,
}

async fn tell_queue<S: Store>(
    store: &S,
    lock: &LockPath,
    me: &NodeName,
    observer: &mut dyn FnMut(Happening<'_>),
) -> Result<Told, StoreError> {
    let queue = match store.contenders(lock).await {
        Ok(queue) if queue.standing(me) != Standing::Gone => queue,
        Ok(_) | Err(StoreError::NoLock(_)) => return Ok(Told::Nothing),
        Err(error) => return Err(error),
    };
    let readings = store.read(lock, queue.contenders()).await?;
    let predecessor = match queue.standing(me) {
        Standing::Behind(predecessor) => slice::from_ref(predecessor),
        Standing::Held | Standing::Gone | Standing::UsedUp => &[],
    };
    let owners = store.owners(lock, predecessor).await?;
    let predecessor = predecessor.iter().zip(&owners).next();
    observer(Happening::Queued { lock, queue: &queue, readings: &readings, predecessor });
    Ok(Told::Everybody)
}

fn over(over: Over, lock: &LockPath, behind: Option<&NodeName>) -> AcquireError {
    match over {
        Over::NoAnswer => AcquireError::NoAnswer(lock.clone()),
        Over::TimedOut => AcquireError::TimedOut { lock: lock.clone(), behind: behind.map(|name| lock.node(name)) },
        Over::Stopped => AcquireError::Stopped(lock.clone()),
    }
}
