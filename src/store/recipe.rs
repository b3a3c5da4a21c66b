//! The lock recipe: persistent sequential nodes, named and filled as kazoo does it, in any ensemble.
//!
//! A write is settled only by an answer of the server. Whatever else happens means "perhaps", and is found out on the same
//! session, or after the server itself said that the session has expired: from another session an unanswered create
//! cannot be told from one that never left.

mod bound;
mod burial;
mod entering;
mod link;
mod owned;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use self::bound::{Bound, Tie};
use self::burial::Ahead;
pub use self::burial::Witness;
use self::entering::Entering;
use self::link::Link;
#[cfg(test)]
pub use self::owned::TESTIMONY;
use self::owned::{Own, SideTree, Vouching};
use super::ensemble::{Ensemble, Failure, Node, Refusal, Session, Stat, Watched};
use crate::lock::{
    AbsolutePath, Claim, Contender, Doubt, Entry, Expected, FencingToken, Identifier, Lifetime, Limit, LockPath, Loss,
    NodeName, Ownership, Place, Queue, Reading, Removal, Standing, Store, StoreError,
};
use crate::planted::{Mistake, planted};

/// How long the first connection may take where no limit was given; kazoo's.
const FIRST_CONNECTION: Duration = Duration::from_secs(15);
/// A missed wake-up costs this much at the most.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Requests in one flight.
const FLIGHT: usize = 200;

/// The queues of an ensemble below a chroot.
pub struct Recipe<E: Ensemble> {
    link: Link<E>,
    chroot: AbsolutePath,
    release_timeout: Duration,
    /// What may stand in a lock's directory of ours besides the node that we know (rule R4).
    loose: RefCell<Vec<Loose>>,
    /// What the contender of ours is bound to that we work under, or want to, and which one that is.
    bound: Cell<Option<Bound>>,
    own: RefCell<Option<Rc<Own>>>,
    side: Cell<SideTree>,
    /// What was listed together with our first look at our own node.
    first_look: RefCell<Option<(LockPath, Vec<String>)>>,
    ahead: Ahead,
    witness: Option<Witness>,
}

struct Loose {
    lock: LockPath,
    family: String,
}

impl<E: Ensemble> Recipe<E> {
    /// Connects, and goes on trying until `limit`: 15 s where there is none, one round of all servers for one look.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`], with the last cause.
    ///
    /// # Cancellation
    /// May be dropped: nothing was written.
    pub async fn open(
        ensemble: E,
        chroot: AbsolutePath,
        limit: Limit,
        release_timeout: Duration,
    ) -> Result<Recipe<E>, StoreError> {
        let store = Recipe {
            link: Link::new(ensemble),
            chroot,
            release_timeout,
            loose: RefCell::default(),
            bound: Cell::default(),
            own: RefCell::default(),
            side: Cell::new(SideTree::Untried),
            first_look: RefCell::default(),
            ahead: Ahead::default(),
            witness: None,
        };
        let is_connected = match limit {
            Limit::Once(until) => timeout_at(until, store.link.connect_once()).await.unwrap_or_default(),
            Limit::At(until) => timeout_at(until, store.link.session()).await.is_ok(),
            Limit::Never => timeout_at(Instant::now() + FIRST_CONNECTION, store.link.session()).await.is_ok(),
        };
        match is_connected {
            true => Ok(store),
            false => Err(StoreError::Unreachable { place: store.link.place(), cause: store.link.trouble() }),
        }
    }

    /// The same with somebody who is asked before a node is removed whose owner has promised to stop.
    pub fn with_witness(self, witness: Witness) -> Recipe<E> {
        Recipe { witness: Some(witness), ..self }
    }

    /// Closes the session; the nodes stay.
    pub async fn close(self) {
        self.link.close().await;
    }

    fn directory(&self, lock: &LockPath) -> String {
        self.chroot.join(lock.as_path()).to_string()
    }

    fn refused(&self, what: impl Into<String>, refusal: &Refusal) -> StoreError {
        StoreError::Refused { place: self.link.place(), what: what.into(), cause: refusal.to_string() }
    }

    /// Ready when something became of the node. Armed with the look, so nothing falls between.
    async fn watch(&self, session: &Rc<E::Session>, path: &str) -> Result<Watched, Failure> {
        let watched = session.watch(path).await;
        if let Err(Failure::InDoubt(cause)) = &watched {
            self.link.give_up(session, cause).await;
        }
        watched
    }

    /// What is to be done while somebody in front of us, or ourselves, is there: to vouch for ourselves in every session, and to
    /// bury whoever nobody vouches for.
    async fn tend(
        &self,
        session: &Rc<E::Session>,
        lock: &LockPath,
        name: &NodeName,
        is_ours: bool,
    ) -> Result<Watched, Failure> {
        let vouching = self.keep_vouching(session);
        if is_ours || self.own().is_none() {
            return vouching.await;
        }
        tokio::select! {
            biased;
            gone = vouching => gone,
            buried = async {
                if !self.ahead.has_forgotten_the_removed.replace(true) {
                    match self.forget_the_removed(session, lock).await {
                        Ok(()) | Err(Failure::Said(_)) => {}
                        Err(failure) => return Err(failure),
                    }
                }
                self.bury_in_time(session, lock, name).await
            } => buried,
        }
    }

    /// Has our marker be there in this session. Ready when our node is gone: then somebody else's is of no interest.
    async fn keep_vouching(&self, session: &Rc<E::Session>) -> Result<Watched, Failure> {
        loop {
            match self.vouch(session).await? {
                Vouching::Done => return pending().await,
                Vouching::Gone => return Ok(Watched::Gone),
                Vouching::NotNow => sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Forgets what those of a family have told of themselves whose nodes are gone.
    pub async fn forget(&self, family: &str) -> Result<(), StoreError> {
        let side_tree = self.side_tree();
        loop {
            let session = self.link.session().await;
            match self.forget_family(&session, family, None).await {
                Ok(()) => return Ok(()),
                Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(refusal)) => return Err(self.refused(format!("to clear {side_tree}"), &refusal)),
            }
        }
    }

    /// Ready when a look finds nothing, or no answer: for a wake-up that was missed, and a client that hangs.
    async fn look_now_and_then(&self, session: &Rc<E::Session>, path: &str) -> Result<(), Failure> {
        loop {
            sleep(LOOK_AGAIN).await;
            if self.link.ask(session, session.stat(path)).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Looks for nodes of ours behind a barrier, so that what the server has done is seen.
    async fn find(&self, session: &Rc<E::Session>, directory: &str, prefix: &str) -> Result<Vec<Place>, Failure> {
        let found = self.link.ask(session, async {
            let barrier = async { if planted(Mistake::LooksWithoutABarrier) { Ok(()) } else { session.sync(directory).await } };
            let (barrier, listing) = tokio::join!(barrier, session.children(directory));
            barrier?;
            let names = match listing {
                Ok(names) => names,
                Err(Failure::Said(Refusal::NoNode)) => Vec::new(),
                Err(failure) => return Err(failure),
            };
            let mut found = Vec::new();
            for name in names.into_iter().filter(|name| name.starts_with(prefix)) {
                if let Some(stat) = session.stat(&format!("{directory}/{name}")).await? {
                    found.push((name, stat.czxid));
                }
            }
            Ok(found)
        });
        let places = found
            .await?
            .into_iter()
            .filter_map(|(name, czxid)| NodeName::parse(&name).map(|name| Place { name, token: FencingToken(czxid) }));
        Ok(places.collect())
    }

    /// Something of this family may stand in the lock's directory, or may have.
    fn loosen(&self, lock: &LockPath, family: String) {
        let mut loose = self.loose.borrow_mut();
        if !loose.iter().any(|loose| loose.family == family) {
            loose.push(Loose { lock: lock.clone(), family });
        }
    }

    fn loose_in(&self, lock: &LockPath) -> Vec<String> {
        self.loose.borrow().iter().filter(|loose| loose.lock == *lock).map(|loose| loose.family.clone()).collect()
    }

    /// Removes what is of our loose families, but for `keep` (rules R3 and R4).
    async fn sweep(&self, session: &Rc<E::Session>, lock: &LockPath, keep: Option<&NodeName>) -> Result<(), Failure> {
        let directory = self.directory(lock);
        for family in self.loose_in(lock) {
            for place in self.find(session, &directory, &family).await? {
                if Some(&place.name) != keep {
                    self.remove_once(session, lock, &place.name, Expected::Anything).await?;
                }
            }
            self.forget_family(session, &family, keep).await?;
        }
        Ok(())
    }

    /// All of it is settled.
    fn forget_loose(&self, lock: &LockPath) {
        self.loose.borrow_mut().retain(|loose| loose.lock != *lock);
    }

    /// Removes a node of ours, and whatever else may be there of its family.
    async fn leave_until(
        &self,
        until: Instant,
        lock: &LockPath,
        name: &NodeName,
        expected: Expected,
    ) -> Result<Removal, StoreError> {
        let removal = self.remove(lock, name, expected, until).await?;
        while let Some(family) = self.loose_in(lock).pop() {
            let unsettled = |cause| {
                let prefix = format!("{lock}/{family}");
                StoreError::Unsettled { prefix, place: self.link.place(), cause }
            };
            let session = timeout_at(until, self.link.session()).await.map_err(|_| unsettled(self.link.trouble()))?;
            match timeout_at(until, self.sweep(&session, lock, None)).await {
                Ok(Ok(())) => self.forget_loose(lock),
                Ok(Err(Failure::InDoubt(_))) => {}
                Ok(Err(Failure::Said(refusal))) => return Err(unsettled(refusal.to_string())),
                Err(_) => return Err(unsettled("no answer in time".to_owned())),
            }
        }
        Ok(removal)
    }

    async fn remove(
        &self,
        lock: &LockPath,
        name: &NodeName,
        expected: Expected,
        until: Instant,
    ) -> Result<Removal, StoreError> {
        let not_removed = |cause: String| StoreError::NotRemoved { node: lock.node(name), place: self.link.place(), cause };
        let mut in_doubt = false;
        loop {
            let Ok(session) = timeout_at(until, self.link.session()).await else {
                return Err(not_removed(self.link.trouble()));
            };
            let asked = timeout_at(until, self.remove_once(&session, lock, name, expected)).await;
            match asked.map_err(|_| not_removed("no answer in time".to_owned()))? {
                // The name is never used again, so it is our own delete that was carried out.
                Ok(Removal::Missing) if in_doubt => return Ok(Removal::Removed),
                Ok(removal) => return Ok(removal),
                Err(Failure::Said(refusal)) => return Err(not_removed(refusal.to_string())),
                Err(Failure::InDoubt(_)) if planted(Mistake::DeletesOnlyOnce) => return Ok(Removal::Removed),
                Err(Failure::InDoubt(_)) => in_doubt = true,
            }
        }
    }
}

impl<E: Ensemble> Store for Recipe<E> {
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        Entering::new(self, lock, claim).enter(give_up).await
    }

    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError> {
        let directory = self.directory(lock);
        let listing = async |session: &E::Session| match self.bound.get() {
            Some(Bound { to: Tie::Session(id), .. }) => match id == session.id() {
                true => self.while_bound(session, lock, session.children(&directory)).await,
                // The session has ended, and our node with it, whatever is listed yet.
                false => Err(Failure::Said(Refusal::NoNode)),
            },
            Some(Bound { to: Tie::Promise, .. }) | None => session.children(&directory).await,
        };
        let mut has_made_sure = false;
        loop {
            let first_look = self.first_look.take().filter(|(of, _)| of == lock);
            let listed = match first_look {
                Some((_, names)) => Ok(names),
                None => self.link.look(listing).await,
            };
            let queue = match listed {
                Ok(names) => Queue::new(names),
                Err(Refusal::NoNode) => return Err(StoreError::NoLock(lock.clone())),
                Err(refusal) => return Err(self.refused(format!("to list {lock}"), &refusal)),
            };
            if !self.mark(lock, &queue).await? {
                continue;
            }
            let own = self.own().filter(|own| own.lock == *lock);
            if let Some(own) = &own {
                self.ahead.names.replace(queue.ahead_of(&own.name).cloned().collect());
            }
            let ours = own.filter(|own| queue.standing(&own.name) == Standing::Held);
            // Once is enough: on a slow way it is never surer than that, and whoever works under it is told in time.
            match ours {
                Some(own) if !has_made_sure && !self.is_sure(lock, &own.name).await? => has_made_sure = true,
                Some(_) | None => return Ok(queue),
            }
        }
    }

    async fn read(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Reading>, StoreError> {
        let mut readings = Vec::with_capacity(names.len());
        for flight in names.chunks(FLIGHT) {
            let paths: Vec<String> = flight.iter().map(|name| format!("{}/{name}", self.directory(lock))).collect();
            let refused = |refusal| self.refused(format!("to read {lock}"), &refusal);
            let answers = self.link.look(async |session| session.read(paths.clone()).await).await.map_err(refused)?;
            for answer in answers {
                readings.push(match answer {
                    Ok(Node { data, stat: Stat { ctime: since, version, .. } }) => {
                        Reading::There(Contender { identifier: Identifier(data), since, version })
                    }
                    Err(Refusal::NoNode) => Reading::Missing,
                    Err(Refusal::NoAuth) => Reading::Forbidden,
                    Err(refusal) => return Err(refused(refusal)),
                });
            }
        }
        Ok(readings)
    }

    async fn owners(&self, _lock: &LockPath, names: &[NodeName]) -> Result<Vec<Ownership>, StoreError> {
        let refused = |refusal| self.refused(format!("to read {}", self.side_tree()), &refusal);
        self.find_owners(names).await.map_err(refused)
    }

    async fn bury(&self, lock: &LockPath, name: &NodeName) -> Result<bool, StoreError> {
        loop {
            let session = self.link.session().await;
            match self.bury_once(&session, lock, name).await {
                Ok(is_buried) => return Ok(is_buried),
                Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(refusal)) => {
                    info!("cannot look after {}: {refusal}", lock.node(name));
                    return Ok(false);
                }
            }
        }
    }

    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        let is_ours = self.own().is_some_and(|own| own.name == *name);
        loop {
            let session = self.link.session().await;
            let outcome = tokio::select! {
                biased;
                watched = async {
                    let watched = self.watch(&session, &path).await;
                    // If it is our doing, the answer comes after the event, and there is something to say.
                    drop(self.ahead.burying.lock().await);
                    watched
                } => watched,
                looked = self.look_now_and_then(&session, &path) => looked.map(|()| Watched::Gone),
                tended = self.tend(&session, lock, name, is_ours) => tended,
            };
            match outcome {
                Ok(Watched::Gone) => return Ok(()),
                Err(Failure::InDoubt(_)) if planted(Mistake::MissesAWakeUp) => pending().await,
                // Another event, or a lost connection: the watch is armed again.
                Ok(Watched::There) | Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(refusal)) => return Err(self.refused(format!("to watch {lock}"), &refusal)),
            }
        }
    }

    async fn lost(
        &self,
        lock: &LockPath,
        name: &NodeName,
        lifetime: Lifetime,
        tell: &mut dyn FnMut(Doubt),
    ) -> Result<Loss, StoreError> {
        let lifetime = match lifetime {
            // A promise that nobody could be told of binds nobody.
            Lifetime::Promised { .. } if self.bound.get().is_none() => Lifetime::Spawned,
            lifetime => lifetime,
        };
        match lifetime {
            Lifetime::Spawned | Lifetime::Explicit => {
                let mut is_told = false;
                loop {
                    match self.gone(lock, name).await {
                        // A server that is cut off may have forgotten a node that is there: no reason to stop a command.
                        Ok(()) if self.is_gone_for_all(lock, name).await => return Ok(Loss::Removed),
                        Err(error) if !is_told => {
                            is_told = true;
                            warn!("{error}: if {} is taken away, nobody may notice; trying on", lock.node(name));
                        }
                        // We vouch for ourselves all the same.
                        Ok(()) | Err(_) => {}
                    }
                    sleep(LOOK_AGAIN).await;
                }
            }
            Lifetime::Promised { .. } | Lifetime::Session { .. } => self.lost_with_what_it_is_bound_to(lock, name, tell).await,
        }
    }

    async fn leave(&self, lock: &LockPath, name: &NodeName, expected: Expected) -> Result<Removal, StoreError> {
        self.first_look.take();
        let until = Instant::now() + self.release_timeout;
        let Some(bound) = self.bound.get().filter(|bound| bound.to != Tie::Promise) else {
            return self.leave_until(until, lock, name, expected).await;
        };
        // What cannot be removed before the session may have expired goes with it.
        let until = until.min(Instant::now() + bound.safe_until().saturating_sub(self.link.clock()));
        if let Ok(Ok(removal)) = timeout_at(until, self.leave_until(until, lock, name, expected)).await {
            return Ok(removal);
        }
        self.forget_loose(lock);
        Ok(Removal::LeftToSession)
    }
}
