//! The lock recipe: persistent sequential nodes, named and filled as kazoo does it, in any ensemble.
//!
//! A write is settled only by an answer of the server. Whatever else happens means "perhaps", and is found out on the same
//! session, or after the server itself said that the session has expired: from another session an unanswered create
//! cannot be told from one that never left.

mod bound;
mod link;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use self::bound::Bound;
use self::link::Link;
use super::ensemble::{Ensemble, Failure, Lasting, Node, Refusal, Session, SessionId, Stat, Watched};
use crate::lock::{
    AbsolutePath, Claim, Contender, Doubt, Entry, Expected, FencingToken, Identifier, Lifetime, Limit, LockPath, Loss,
    NodeName, Place, Queue, Reading, Removal, Store, StoreError,
};
use crate::planted::{Mistake, planted};

/// How long the first connection may take where no limit was given; kazoo's.
const FIRST_CONNECTION: Duration = Duration::from_secs(15);
/// A missed wake-up costs this much at the most.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Between two creates, once one and the next were not answered.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So many creates without an answer are worth a word.
const DOUBTS_TO_TELL: u32 = 4;
/// Requests in one flight.
const FLIGHT: usize = 200;

/// The queues of an ensemble below a chroot.
pub struct Recipe<E: Ensemble> {
    link: Link<E>,
    chroot: AbsolutePath,
    release_timeout: Duration,
    /// What names of ours may stand in a lock's directory besides the one we know (rule R4).
    loose: RefCell<Vec<Loose>>,
    /// The session that a contender of ours is bound to.
    bound: Cell<Option<Bound>>,
}

#[derive(Clone)]
struct Loose {
    lock: LockPath,
    prefix: String,
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
        let store =
            Recipe { link: Link::new(ensemble), chroot, release_timeout, loose: RefCell::default(), bound: Cell::default() };
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

    fn too_short(&self, timeout: Duration, notice: Duration) -> StoreError {
        let [timeout, notice] = [timeout, notice].map(humantime::format_duration);
        let why = format!("a session of {timeout} ends too soon for a command that may take {notice} to end");
        StoreError::Unsuitable { place: self.link.place(), why }
    }

    /// Ready when something became of the node. Armed with the look, so nothing falls between.
    async fn watch(&self, session: &Rc<E::Session>, path: &str) -> Result<Watched, Failure> {
        let watched = session.watch(path).await;
        if let Err(Failure::InDoubt(cause)) = &watched {
            self.link.give_up(session, cause).await;
        }
        watched
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

    async fn create(&self, session: &Rc<E::Session>, path: &str, claim: &Claim) -> Result<Place, Failure> {
        let lasting = match claim.lifetime {
            Lifetime::Spawned | Lifetime::Explicit => Lasting::Persistent,
            Lifetime::Session { .. } => Lasting::Ephemeral,
        };
        let created = self.link.ask(session, session.create(path, &claim.identifier.0, lasting)).await?;
        self.link.is_up_to_date();
        if let Some(name) = created.path.rsplit_once('/').and_then(|(_, name)| NodeName::parse(name)) {
            return Ok(Place { name, token: FencingToken(created.zxid) });
        }
        // No server is known to number this way; but what it made is not to be left behind.
        self.link.ask(session, session.delete(&created.path, None)).await?;
        Err(Failure::Said(Refusal::Other(format!("it made {}, which is no contender's name", created.path))))
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

    /// Something of this name may stand in the lock's directory, or may have.
    fn loosen(&self, lock: &LockPath, prefix: String) {
        let mut loose = self.loose.borrow_mut();
        if !loose.iter().any(|loose| loose.prefix == prefix) {
            loose.push(Loose { lock: lock.clone(), prefix });
        }
    }

    fn loose_in(&self, lock: &LockPath) -> Vec<String> {
        self.loose.borrow().iter().filter(|loose| loose.lock == *lock).map(|loose| loose.prefix.clone()).collect()
    }

    /// Removes what carries one of our loose names, but for `keep` (rules R3 and R4).
    async fn sweep(&self, session: &Rc<E::Session>, lock: &LockPath, keep: Option<&NodeName>) -> Result<(), Failure> {
        let directory = self.directory(lock);
        for prefix in self.loose_in(lock) {
            for place in self.find(session, &directory, &prefix).await? {
                if Some(&place.name) == keep {
                    continue;
                }
                let path = format!("{directory}/{}", place.name);
                match self.link.ask(session, session.delete(&path, None)).await {
                    Ok(()) | Err(Failure::Said(Refusal::NoNode)) => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
        Ok(())
    }

    /// All of it is settled.
    fn forget_loose(&self, lock: &LockPath) {
        self.loose.borrow_mut().retain(|loose| loose.lock != *lock);
    }

    /// What is there of ours for all we know, when it cannot be settled.
    fn left(&self, lock: &LockPath, entering: &Entering, cause: String) -> StoreError {
        let place = self.link.place();
        if let Some(Place { name, .. }) = &entering.place {
            return StoreError::NotRemoved { node: lock.node(name), place, cause };
        }
        let loose = self.loose_in(lock).pop().filter(|_| entering.in_doubt.is_none());
        let prefix = loose.unwrap_or_else(|| entering.claim.prefix());
        StoreError::Unsettled { prefix: format!("{lock}/{prefix}"), place, cause }
    }

    async fn remove(
        &self,
        lock: &LockPath,
        name: &NodeName,
        expected: Expected,
        until: Instant,
    ) -> Result<Removal, StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        let not_removed = |cause: String| StoreError::NotRemoved { node: lock.node(name), place: self.link.place(), cause };
        let version = match expected {
            Expected::Anything => None,
            Expected::Version(version) => Some(version),
        };
        let mut in_doubt = false;
        loop {
            let Ok(session) = timeout_at(until, self.link.session()).await else {
                return Err(not_removed(self.link.trouble()));
            };
            match self.link.ask(&session, session.delete(&path, version)).await {
                Ok(()) => return Ok(Removal::Removed),
                // The name is never used again, so it is our own delete that was carried out.
                Err(Failure::Said(Refusal::NoNode)) if in_doubt => return Ok(Removal::Removed),
                Err(Failure::Said(Refusal::NoNode)) => return Ok(Removal::Missing),
                Err(Failure::Said(Refusal::BadVersion)) => return Ok(Removal::Changed),
                Err(Failure::Said(refusal)) => return Err(not_removed(refusal.to_string())),
                Err(Failure::InDoubt(_)) if planted(Mistake::DeletesOnlyOnce) => return Ok(Removal::Removed),
                Err(Failure::InDoubt(_)) => in_doubt = true,
            }
        }
    }
}

/// How far an entry has come.
struct Entering {
    claim: Claim,
    /// The session in which a create of ours was never answered.
    in_doubt: Option<SessionId>,
    place: Option<Place>,
    /// How often a create was not answered.
    doubts: u32,
}

impl Entering {
    /// What is never answered may be what ends the connection, so it is not asked for again and again at once.
    fn pause(&self) -> Duration {
        match self.doubts {
            0 | 1 => Duration::ZERO,
            doubts => FIRST_PAUSE.saturating_mul(1 << doubts.min(10)).min(LONGEST_PAUSE),
        }
    }
}

impl<E: Ensemble> Store for Recipe<E> {
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        let directory = self.directory(lock);
        let mut give_up = pin!(give_up);
        let mut entering = Entering { claim: claim.clone(), in_doubt: None, place: None, doubts: 0 };
        // From here on nothing is asked for any more, only settled, until then.
        let mut end: Option<(Instant, Result<Entry, StoreError>)> = None;
        loop {
            let is_clear = entering.in_doubt.is_none() && entering.place.is_none() && self.loose_in(lock).is_empty();
            let session = match end {
                Some((_, result)) if is_clear => return result,
                Some((until, _)) => match timeout_at(until, self.link.session()).await {
                    Ok(session) => session,
                    Err(_) => return Err(self.left(lock, &entering, self.link.trouble())),
                },
                None => tokio::select! {
                    biased;
                    () = give_up.as_mut() => {
                        end = Some((Instant::now() + self.release_timeout, Ok(Entry::GaveUp)));
                        continue;
                    }
                    session = async {
                        sleep(entering.pause()).await;
                        self.link.session().await
                    } => session,
                },
            };
            if let Some(sent_in) = entering.in_doubt {
                if sent_in == session.id() {
                    match self.find(&session, &directory, &entering.claim.prefix()).await {
                        Ok(found) => entering.place = found.into_iter().min_by_key(|place| place.name.sequence()),
                        Err(Failure::InDoubt(_)) => continue,
                        Err(Failure::Said(refusal)) => return Err(self.left(lock, &entering, refusal.to_string())),
                    }
                    // While the session belongs to the server that we asked, a create that another one still has is refused. Back
                    // there it would not be, and a resume that comes late brings it back. So it ends with its session.
                    if entering.place.is_none() && self.link.end(session).await.is_err() {
                        continue;
                    }
                }
                self.loosen(lock, entering.claim.prefix());
                if entering.place.is_none() {
                    // The server ended that session, so the create can no longer land; but it may have landed (rule R3).
                    entering.claim = entering.claim.renewed();
                }
                entering.in_doubt = None;
                continue;
            }
            let keep = entering.place.as_ref().map(|place| &place.name).filter(|_| end.is_none());
            match self.sweep(&session, lock, keep).await {
                Ok(()) => {}
                Err(Failure::InDoubt(_)) => continue,
                Err(Failure::Said(refusal)) => return Err(self.left(lock, &entering, refusal.to_string())),
            }
            match (end.take(), &entering.place) {
                (Some((_, result)), _) => {
                    self.forget_loose(lock);
                    return result;
                }
                (None, Some(_)) => return Ok(Entry::In(entering.place.expect("just seen"))),
                (None, None) => {}
            }
            let refused =
                |what: String, refusal| Some((Instant::now() + self.release_timeout, Err(self.refused(what, refusal))));
            if let Lifetime::Session { notice } = claim.lifetime {
                let bound = Bound { session: session.id(), timeout: session.timeout(), confirmed: self.link.clock() };
                if !bound.leaves_time_for(notice) {
                    end = Some((Instant::now() + self.release_timeout, Err(self.too_short(bound.timeout, notice))));
                    continue;
                }
                self.bound.set(Some(bound));
            }
            let path = format!("{directory}/{}", entering.claim.prefix());
            match self.create(&session, &path, &entering.claim).await {
                Ok(place) if self.loose_in(lock).is_empty() => return Ok(Entry::In(place)),
                Ok(place) => {
                    self.loosen(lock, entering.claim.prefix());
                    entering.place = Some(place);
                }
                Err(Failure::Said(Refusal::NoNode)) => {
                    let made = self.link.ask(&session, session.make_directory(&directory)).await;
                    if let Err(Failure::Said(refusal)) = made {
                        end = refused(format!("to make {directory}"), &refusal);
                    }
                }
                Err(Failure::Said(refusal)) => end = refused(format!("to let us enter {directory}"), &refusal),
                Err(Failure::InDoubt(_)) if planted(Mistake::CreatesBlindlyAgain) => {}
                Err(Failure::InDoubt(cause)) => {
                    entering.in_doubt = Some(session.id());
                    entering.doubts += 1;
                    if entering.doubts == DOUBTS_TO_TELL {
                        warn!("{} does not answer our request to enter {lock}: {cause}; trying on", self.link.place());
                    }
                }
            }
        }
    }

    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError> {
        let directory = self.directory(lock);
        let listing = async |session: &E::Session| match self.bound.get() {
            Some(_) => self.confirmed(session, session.children(&directory)).await,
            None => session.children(&directory).await,
        };
        match self.link.look(listing).await {
            Ok(names) => Ok(Queue::new(names)),
            Err(Refusal::NoNode) => Err(StoreError::NoLock(lock.clone())),
            Err(refusal) => Err(self.refused(format!("to list {lock}"), &refusal)),
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

    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        loop {
            let session = self.link.session().await;
            let outcome = tokio::select! {
                biased;
                watched = self.watch(&session, &path) => watched,
                looked = self.look_now_and_then(&session, &path) => looked.map(|()| Watched::Gone),
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
        match lifetime {
            Lifetime::Spawned | Lifetime::Explicit => self.gone(lock, name).await.map(|()| Loss::Removed),
            Lifetime::Session { notice } => self.lost_with_its_session(lock, name, notice, tell).await,
        }
    }

    async fn leave(&self, lock: &LockPath, name: &NodeName, expected: Expected) -> Result<Removal, StoreError> {
        let until = Instant::now() + self.release_timeout;
        let removal = self.remove(lock, name, expected, until).await?;
        while let Some(prefix) = self.loose_in(lock).pop() {
            let unsettled = |cause| {
                let prefix = format!("{lock}/{prefix}");
                StoreError::Unsettled { prefix, place: self.link.place(), cause }
            };
            let session = timeout_at(until, self.link.session()).await.map_err(|_| unsettled(self.link.trouble()))?;
            match self.sweep(&session, lock, None).await {
                Ok(()) => self.forget_loose(lock),
                Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(refusal)) => return Err(unsettled(refusal.to_string())),
            }
        }
        Ok(removal)
    }
}
