//! ZooKeeper: persistent sequential nodes, named and filled as kazoo does it.
//!
//! A write is settled only by an answer of the server. Whatever else happens means "perhaps", and is found out on the same
//! session, or after the server itself said that the session has expired: from another session an unanswered create
//! cannot be told from one that never left.

mod link;
mod session;

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error, EventType, SessionId};

use self::link::Link;
use self::session::{Failure, Session};
use super::servers::Servers;
use crate::lock::{
    AbsolutePath, Claim, Contender, Entry, Expected, FencingToken, Identifier, Limit, LockPath, NodeName, Place, Queue,
    Reading, Removal, Store, StoreError,
};

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

/// A ZooKeeper ensemble below a chroot.
pub struct ZooKeeper {
    link: Link,
    chroot: AbsolutePath,
    release_timeout: Duration,
    /// What names of ours may stand in a lock's directory besides the one we know (rule R4).
    loose: RefCell<Vec<Loose>>,
}

#[derive(Clone)]
struct Loose {
    lock: LockPath,
    prefix: String,
}

impl ZooKeeper {
    /// Connects, and goes on trying until `limit`: 15 s where there is none, one round of all servers for one look.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`], with the last cause.
    ///
    /// # Cancellation
    /// May be dropped: nothing was written.
    pub async fn connect(
        servers: Servers,
        chroot: AbsolutePath,
        limit: Limit,
        release_timeout: Duration,
    ) -> Result<ZooKeeper, StoreError> {
        let store = ZooKeeper { link: Link::new(servers), chroot, release_timeout, loose: RefCell::default() };
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

    fn refused(&self, what: impl Into<String>, error: &Error) -> StoreError {
        StoreError::Refused { place: self.link.place(), what: what.into(), cause: error.to_string() }
    }

    /// Ready when the node was deleted (true) or something else became of it. Armed with the look, so nothing falls between.
    async fn watch(&self, session: &Rc<Session>, path: &str) -> Result<bool, Failure> {
        let path = path.to_owned();
        let watched = session.call(|client| async move {
            match client.check_and_watch_stat(&path).await? {
                (None, _) => Ok(true),
                (Some(_), watcher) => Ok(watcher.changed().await.event_type == EventType::NodeDeleted),
            }
        });
        let watched = watched.await;
        if let Err(Failure::InDoubt(cause)) = &watched {
            self.link.give_up(session, cause).await;
        }
        watched
    }

    /// Ready when a look finds nothing, or no answer: for a wake-up that was missed, and a client that hangs.
    async fn look_now_and_then(&self, session: &Rc<Session>, path: &str) -> Result<(), Failure> {
        loop {
            sleep(LOOK_AGAIN).await;
            let path = path.to_owned();
            if self.link.ask(session, |client| async move { client.check_stat(&path).await }).await?.is_none() {
                return Ok(());
            }
        }
    }

    async fn make_directory(&self, session: &Rc<Session>, directory: &str) -> Result<(), Failure> {
        let directory = directory.to_owned();
        self.link.ask(session, |client| async move { client.mkdir(&directory, &persistent()).await }).await
    }

    async fn create(&self, session: &Rc<Session>, path: String, data: Vec<u8>) -> Result<Place, Failure> {
        let created = self.link.ask(session, move |client| async move {
            let options = CreateMode::PersistentSequential.with_acls(Acls::anyone_all());
            let (stat, sequence) = client.create(&path, &data, &options).await?;
            Ok((format!("{path}{sequence}"), stat.czxid))
        });
        let (path, czxid) = created.await?;
        if let Some(name) = path.rsplit_once('/').and_then(|(_, name)| NodeName::parse(name)) {
            return Ok(Place { name, token: FencingToken(czxid.cast_unsigned()) });
        }
        // No server is known to number this way; but what it made is not to be left behind.
        let odd = Error::UnexpectedError(format!("it made {path}, which is no contender's name"));
        self.link.ask(session, |client| async move { client.delete(&path, None).await }).await?;
        Err(Failure::Said(odd))
    }

    /// Looks for nodes of ours behind a barrier, so that what the server has done is seen.
    async fn find(&self, session: &Rc<Session>, directory: &str, prefix: &str) -> Result<Vec<Place>, Failure> {
        let path = directory.to_owned();
        let prefix = prefix.to_owned();
        let found = self.link.ask(session, move |client| async move {
            let barrier = client.sync(&path);
            let listing = client.list_children(&path);
            barrier.await?;
            let names = match listing.await {
                Ok(names) => names,
                Err(Error::NoNode) => Vec::new(),
                Err(error) => return Err(error),
            };
            let mut found = Vec::new();
            for name in names.into_iter().filter(|name| name.starts_with(&prefix)) {
                if let Some(stat) = client.check_stat(&format!("{path}/{name}")).await? {
                    found.push((name, stat.czxid));
                }
            }
            Ok(found)
        });
        let places = found.await?.into_iter().filter_map(|(name, czxid)| {
            NodeName::parse(&name).map(|name| Place { name, token: FencingToken(czxid.cast_unsigned()) })
        });
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
    async fn sweep(&self, session: &Rc<Session>, lock: &LockPath, keep: Option<&NodeName>) -> Result<(), Failure> {
        let directory = self.directory(lock);
        for prefix in self.loose_in(lock) {
            for place in self.find(session, &directory, &prefix).await? {
                if Some(&place.name) == keep {
                    continue;
                }
                let path = format!("{directory}/{}", place.name);
                match self.link.ask(session, |client| async move { client.delete(&path, None).await }).await {
                    Ok(()) | Err(Failure::Said(Error::NoNode)) => {}
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
            let path = path.clone();
            match self.link.ask(&session, move |client| async move { client.delete(&path, version).await }).await {
                Ok(()) => return Ok(Removal::Removed),
                // The name is never used again, so it is our own delete that was carried out.
                Err(Failure::Said(Error::NoNode)) if in_doubt => return Ok(Removal::Removed),
                Err(Failure::Said(Error::NoNode)) => return Ok(Removal::Missing),
                Err(Failure::Said(Error::BadVersion)) => return Ok(Removal::Changed),
                Err(Failure::Said(error)) => return Err(not_removed(error.to_string())),
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

impl Store for ZooKeeper {
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
            match entering.in_doubt {
                Some(sent_in) if sent_in != session.id() => {
                    // The server ended that session, so the create can no longer land; but it may have landed (rule R3).
                    self.loosen(lock, entering.claim.prefix());
                    entering.claim = entering.claim.renewed();
                }
                Some(_) => match self.find(&session, &directory, &entering.claim.prefix()).await {
                    Ok(found) => {
                        self.loosen(lock, entering.claim.prefix());
                        entering.place = found.into_iter().min_by_key(|place| place.name.sequence());
                    }
                    Err(Failure::InDoubt(_)) => continue,
                    Err(Failure::Said(error)) => return Err(self.left(lock, &entering, error.to_string())),
                },
                None => {}
            }
            entering.in_doubt = None;
            let keep = entering.place.as_ref().map(|place| &place.name).filter(|_| end.is_none());
            match self.sweep(&session, lock, keep).await {
                Ok(()) => {}
                Err(Failure::InDoubt(_)) => continue,
                Err(Failure::Said(error)) => return Err(self.left(lock, &entering, error.to_string())),
            }
            match (end.take(), &entering.place) {
                (Some((_, result)), _) => {
                    self.forget_loose(lock);
                    return result;
                }
                (None, Some(_)) => return Ok(Entry::In(entering.place.expect("just seen"))),
                (None, None) => {}
            }
            let refused = |what: String, error| Some((Instant::now() + self.release_timeout, Err(self.refused(what, error))));
            let path = format!("{directory}/{}", entering.claim.prefix());
            match self.create(&session, path, entering.claim.identifier.0.clone()).await {
                Ok(place) if self.loose_in(lock).is_empty() => return Ok(Entry::In(place)),
                Ok(place) => {
                    self.loosen(lock, entering.claim.prefix());
                    entering.place = Some(place);
                }
                Err(Failure::Said(Error::NoNode)) => {
                    if let Err(Failure::Said(error)) = self.make_directory(&session, &directory).await {
                        end = refused(format!("to make {directory}"), &error);
                    }
                }
                Err(Failure::Said(error)) => end = refused(format!("to let us enter {directory}"), &error),
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
        let listing = self.link.look(|| {
            let directory = directory.clone();
            |client: Client| async move { client.list_children(&directory).await }
        });
        match listing.await {
            Ok(names) => Ok(Queue::new(names)),
            Err(Error::NoNode) => Err(StoreError::NoLock(lock.clone())),
            Err(error) => Err(self.refused(format!("to list {lock}"), &error)),
        }
    }

    async fn read(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Reading>, StoreError> {
        let mut readings = Vec::with_capacity(names.len());
        for flight in names.chunks(FLIGHT) {
            let paths: Vec<String> = flight.iter().map(|name| format!("{}/{name}", self.directory(lock))).collect();
            let answers = self.link.look(|| {
                let paths = paths.clone();
                |client: Client| async move {
                    // Asked for when called, so all leave before the first is waited for.
                    let asked: Vec<_> = paths.iter().map(|path| client.get_data(path)).collect();
                    let mut answers = Vec::with_capacity(asked.len());
                    for answer in asked {
                        answers.push(match answer.await {
                            Ok((data, stat)) => Reading::There(Contender {
                                identifier: Identifier(data),
                                since: SystemTime::UNIX_EPOCH + Duration::from_millis(stat.ctime.try_into().unwrap_or(0)),
                                version: stat.version,
                            }),
                            Err(Error::NoNode) => Reading::Missing,
                            Err(Error::NoAuth) => Reading::Forbidden,
                            Err(error) => return Err(error),
                        });
                    }
                    Ok(answers)
                }
            });
            readings.extend(answers.await.map_err(|error| self.refused(format!("to read {lock}"), &error))?);
        }
        Ok(readings)
    }

    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        loop {
            let session = self.link.session().await;
            let outcome = tokio::select! {
                watched = self.watch(&session, &path) => watched,
                looked = self.look_now_and_then(&session, &path) => looked.map(|()| true),
            };
            match outcome {
                Ok(true) => return Ok(()),
                // Another event, or a lost connection: the watch is armed again.
                Ok(false) | Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(error)) => return Err(self.refused(format!("to watch {lock}"), &error)),
            }
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
                Err(Failure::Said(error)) => return Err(unsettled(error.to_string())),
            }
        }
        Ok(removal)
    }
}

fn persistent() -> CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}
