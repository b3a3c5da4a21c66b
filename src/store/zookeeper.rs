//! ZooKeeper: persistent sequential nodes, named and filled as kazoo does it.
//!
//! A write is settled only by an answer of the server. Whatever else happens means "perhaps", and is found out on the same
//! session, or after the server itself said that the session has expired: from another session an unanswered create
//! cannot be told from one that never left.

mod session;

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};
use uuid::Uuid;
use zookeeper_client::{Acls, CreateMode, CreateOptions, Error, EventType, SessionId, SessionInfo};

use self::session::{Failure, OpenError, Session};
use super::servers::Servers;
use crate::lock::{
    AbsolutePath, Claim, Contender, Entry, Expected, FencingToken, Identifier, Limit, LockPath, NodeName, Place, Queue,
    Reading, Removal, Store, StoreError,
};

/// How long a server may take to give us a session, where another could be tried instead, and where not.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const OPEN_TIMEOUT_ALONE: Duration = Duration::from_secs(8);
/// How long the first connection may take where no limit was given; kazoo's.
const FIRST_CONNECTION: Duration = Duration::from_secs(15);
/// An answer that takes longer is taken for lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// A missed wake-up costs this much at the most.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Requests in one flight.
const FLIGHT: usize = 200;

/// A ZooKeeper ensemble below a chroot.
pub struct ZooKeeper {
    servers: Servers,
    chroot: AbsolutePath,
    release_timeout: Duration,
    link: Mutex<Link>,
    /// What names of ours may stand in the lock's directory besides the one we know (rule R4).
    loose: RefCell<Vec<String>>,
}

/// The session as far as we know it.
#[derive(Default)]
struct Link {
    session: Option<Rc<Session>>,
    /// A session that the server has not called expired.
    resume: Option<SessionInfo>,
    trouble: String,
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
        let link = Mutex::new(Link::default());
        let store = ZooKeeper { servers, chroot, release_timeout, link, loose: RefCell::default() };
        let until = match limit {
            Limit::At(instant) => instant,
            Limit::Never | Limit::Once => Instant::now() + FIRST_CONNECTION,
        };
        let connected = if limit == Limit::Once {
            let mut link = store.link.lock().await;
            timeout_at(until, store.try_all(&mut link)).await.unwrap_or_default().is_some()
        } else {
            timeout_at(until, store.session()).await.is_ok()
        };
        match connected {
            true => Ok(store),
            false => Err(StoreError::Unreachable { place: store.place(), cause: store.trouble() }),
        }
    }

    /// Closes the session; the nodes stay.
    pub async fn close(self) {
        if let Some(session) = self.link.into_inner().session
            && let Ok(session) = Rc::try_unwrap(session)
        {
            session.close().await;
        }
    }

    fn place(&self) -> String {
        self.servers.to_string()
    }

    fn trouble(&self) -> String {
        match self.link.try_lock() {
            Ok(link) if !link.trouble.is_empty() => link.trouble.clone(),
            Ok(_) | Err(_) => "no answer".to_owned(),
        }
    }

    fn directory(&self, lock: &LockPath) -> String {
        self.chroot.join(lock.as_path()).to_string()
    }

    fn refused(&self, what: impl Into<String>, error: &Error) -> StoreError {
        StoreError::Refused { place: self.place(), what: what.into(), cause: error.to_string() }
    }

    /// A session with a live connection, however long that takes.
    ///
    /// # Cancellation
    /// May be dropped.
    async fn session(&self) -> Rc<Session> {
        let mut link = self.link.lock().await;
        let mut pause = FIRST_PAUSE;
        let mut said = false;
        loop {
            match &link.session {
                Some(session) if !session.is_over() => return Rc::clone(session),
                Some(session) => info!("lost the connection to {}", session.server()),
                None => {}
            }
            link.session = None;
            if let Some(session) = self.try_all(&mut link).await {
                if said {
                    warn!("connected to {} again", session.server());
                }
                return session;
            }
            if pause == LONGEST_PAUSE && !said {
                warn!("cannot reach {}: {}; trying on", self.servers, link.trouble);
                said = true;
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tries every server once.
    async fn try_all(&self, link: &mut Link) -> Option<Rc<Session>> {
        let servers = &self.servers.servers;
        let within = if servers.len() == 1 { OPEN_TIMEOUT_ALONE } else { OPEN_TIMEOUT };
        let first = (Uuid::new_v4().as_u128() % servers.len() as u128) as usize;
        let (before, after) = servers.split_at(first);
        for server in after.iter().chain(before) {
            let resumes = link.resume.is_some();
            let opened = match Session::open(server, link.resume.clone(), within).await {
                Err(OpenError::Expired) => {
                    info!("{server} says that our session has expired");
                    link.resume = None;
                    Session::open(server, None, within).await
                }
                opened => opened,
            };
            match opened {
                Ok(session) => {
                    debug!("session {} at {server}", session.id());
                    if resumes {
                        // We may have come to a server that has seen less than we have; reads behind a sync are not stale.
                        _ = timeout(within, session.call(|client| async move { client.sync("/").await })).await;
                    }
                    link.resume = Some(session.info().clone());
                    return Some(Rc::clone(link.session.insert(Rc::new(session))));
                }
                Err(OpenError::Expired) => link.trouble = format!("{server}: no session to be had"),
                Err(OpenError::Failed(cause)) if servers.len() == 1 => link.trouble = cause,
                Err(OpenError::Failed(cause)) => link.trouble = format!("{server}: {cause}"),
            }
            debug!("{server}: {}", link.trouble);
        }
        None
    }

    /// Asks once, for an answer in time. What is in doubt ends the connection, so that the next request goes by a new one.
    async fn ask<T, F>(
        &self,
        session: &Rc<Session>,
        request: impl FnOnce(zookeeper_client::Client) -> F + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        let answer = match timeout(ANSWER_TIMEOUT, session.call(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::InDoubt(format!("no answer in {}", humantime::format_duration(ANSWER_TIMEOUT)))),
        };
        if let Err(Failure::InDoubt(cause)) = &answer {
            self.give_up(session, cause).await;
        }
        answer
    }

    /// Has the next request go by a new connection.
    async fn give_up(&self, session: &Rc<Session>, cause: &str) {
        debug!("{}: {cause}", session.server());
        let mut link = self.link.lock().await;
        cause.clone_into(&mut link.trouble);
        link.session.take_if(|current| Rc::ptr_eq(current, session));
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
            self.give_up(session, cause).await;
        }
        watched
    }

    /// Ready when a look finds nothing, or no answer: for a wake-up that was missed, and a client that hangs.
    async fn look_now_and_then(&self, session: &Rc<Session>, path: &str) -> Result<(), Failure> {
        loop {
            sleep(LOOK_AGAIN).await;
            let path = path.to_owned();
            if self.ask(session, |client| async move { client.check_stat(&path).await }).await?.is_none() {
                return Ok(());
            }
        }
    }

    /// Asks for something that changes nothing, again and again until it is answered.
    async fn look<T, F, R>(&self, request: impl Fn() -> R) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
        R: FnOnce(zookeeper_client::Client) -> F + Send + 'static,
    {
        loop {
            let session = self.session().await;
            match self.ask(&session, request()).await {
                Ok(value) => return Ok(value),
                Err(Failure::Said(error)) => return Err(error),
                Err(Failure::InDoubt(_)) => {}
            }
        }
    }

    async fn make_directory(&self, session: &Rc<Session>, directory: &str) -> Result<(), Failure> {
        let directory = directory.to_owned();
        self.ask(session, |client| async move { client.mkdir(&directory, &persistent()).await }).await
    }

    async fn create(&self, session: &Rc<Session>, path: String, data: Vec<u8>) -> Result<Place, Failure> {
        let created = self.ask(session, move |client| async move {
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
        self.ask(session, |client| async move { client.delete(&path, None).await }).await?;
        Err(Failure::Said(odd))
    }

    /// Looks for nodes of ours behind a barrier, so that what the server has done is seen.
    async fn find(&self, session: &Rc<Session>, directory: &str, prefix: &str) -> Result<Vec<Place>, Failure> {
        let path = directory.to_owned();
        let prefix = prefix.to_owned();
        let found = self.ask(session, move |client| async move {
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

    /// Removes what carries one of our loose names, but for `keep` (rules R3 and R4).
    async fn sweep(&self, lock: &LockPath, keep: Option<&NodeName>, until: Instant) -> Result<(), StoreError> {
        let directory = self.directory(lock);
        let loose = self.loose.borrow().clone();
        for prefix in loose {
            let found = loop {
                let session = timeout_at(until, self.session()).await.map_err(|_| self.unsettled(lock, &prefix))?;
                match self.find(&session, &directory, &prefix).await {
                    Ok(found) => break found,
                    Err(Failure::Said(error)) => return Err(self.refused(format!("to list {lock}"), &error)),
                    Err(Failure::InDoubt(_)) => {}
                }
            };
            for place in found.iter().filter(|place| Some(&place.name) != keep) {
                self.remove(lock, &place.name, Expected::Anything, until).await?;
            }
        }
        if keep.is_none() {
            self.loose.borrow_mut().clear();
        }
        Ok(())
    }

    fn unsettled(&self, lock: &LockPath, prefix: &str) -> StoreError {
        StoreError::Unsettled { prefix: format!("{lock}/{prefix}"), place: self.place(), cause: self.trouble() }
    }

    async fn remove(
        &self,
        lock: &LockPath,
        name: &NodeName,
        expected: Expected,
        until: Instant,
    ) -> Result<Removal, StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        let not_removed = |cause: String| StoreError::NotRemoved { node: lock.node(name), place: self.place(), cause };
        let version = match expected {
            Expected::Anything => None,
            Expected::Version(version) => Some(version),
        };
        let mut in_doubt = false;
        loop {
            let Ok(session) = timeout_at(until, self.session()).await else {
                return Err(not_removed(self.trouble()));
            };
            let path = path.clone();
            match self.ask(&session, move |client| async move { client.delete(&path, version).await }).await {
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

impl Store for ZooKeeper {
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        let directory = self.directory(lock);
        let mut claim = claim.clone();
        let mut give_up = pin!(give_up);
        // From here on nothing is asked for any more, only settled.
        let mut settle_until: Option<Instant> = None;
        // The session in which a create of ours was never answered.
        let mut in_doubt: Option<SessionId> = None;
        loop {
            let is_clear = in_doubt.is_none() && self.loose.borrow().is_empty();
            let session = match settle_until {
                Some(_) if is_clear => return Ok(Entry::GaveUp),
                Some(until) => timeout_at(until, self.session()).await.map_err(|_| self.unsettled(lock, &claim.prefix()))?,
                None => tokio::select! {
                    biased;
                    () = give_up.as_mut() => {
                        settle_until = Some(Instant::now() + self.release_timeout);
                        continue;
                    }
                    session = self.session() => session,
                },
            };
            match in_doubt {
                Some(sent_in) if sent_in != session.id() => {
                    // The server ended that session, so the create can no longer land; but it may have landed (rule R3).
                    self.loose.borrow_mut().push(claim.prefix());
                    claim = claim.renewed();
                    in_doubt = None;
                }
                Some(_) => match self.find(&session, &directory, &claim.prefix()).await {
                    Ok(mut found) => {
                        in_doubt = None;
                        self.loose.borrow_mut().push(claim.prefix());
                        found.sort_by_key(|place| place.name.sequence());
                        if settle_until.is_none() && !found.is_empty() {
                            let place = found.swap_remove(0);
                            self.sweep(lock, Some(&place.name), Instant::now() + self.release_timeout).await?;
                            return Ok(Entry::In(place));
                        }
                    }
                    Err(Failure::Said(error)) => return Err(self.refused(format!("to list {lock}"), &error)),
                    Err(Failure::InDoubt(_)) => continue,
                },
                None => {}
            }
            if let Some(until) = settle_until {
                self.sweep(lock, None, until).await?;
                return Ok(Entry::GaveUp);
            }
            let path = format!("{directory}/{}", claim.prefix());
            let place = match self.create(&session, path, claim.identifier.0.clone()).await {
                Ok(place) => place,
                Err(Failure::Said(Error::NoNode)) => match self.make_directory(&session, &directory).await {
                    Ok(()) | Err(Failure::InDoubt(_)) => continue,
                    Err(Failure::Said(error)) => return Err(self.refused(format!("to make {directory}"), &error)),
                },
                Err(Failure::Said(error)) => {
                    self.sweep(lock, None, Instant::now() + self.release_timeout).await?;
                    return Err(self.refused(format!("to let us enter {directory}"), &error));
                }
                Err(Failure::InDoubt(_)) => {
                    in_doubt = Some(session.id());
                    continue;
                }
            };
            self.sweep(lock, Some(&place.name), Instant::now() + self.release_timeout).await?;
            return Ok(Entry::In(place));
        }
    }

    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError> {
        let directory = self.directory(lock);
        let listing = self.look(|| {
            let directory = directory.clone();
            |client: zookeeper_client::Client| async move { client.list_children(&directory).await }
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
            let answers = self.look(|| {
                let paths = paths.clone();
                |client: zookeeper_client::Client| async move {
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
            let session = self.session().await;
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
        self.sweep(lock, None, until).await?;
        Ok(removal)
    }
}

fn persistent() -> CreateOptions<'static> {
    CreateMode::Persistent.with_acls(Acls::anyone_all())
}

/// Half of it fixed, half of it random, so that waiters do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    pause / 2 + (pause / 2).mul_f64(f64::from(Uuid::new_v4().as_fields().0) / f64::from(u32::MAX))
}
