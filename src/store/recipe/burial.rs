//! What the dead have left: how it is recognized, and removed so that it loses against whoever is alive after all.
//!
//! A contender is removed in one transaction with making its marker and deleting it again. That is refused while the marker
//! lives; and it leaves nothing behind.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;
use tracing::{info, warn};

use super::owned::{Outcome, Own, Part, TESTIMONY, Vouched};
use super::{FLIGHT, LOOK_AGAIN, Recipe};
use crate::lock::{Expected, LockPath, Mark, NodeName, Ownership, Queue, Removal, Testimony, Verdict, id_of, verdict};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, Lasting, Node, Operation, Refusal, Session, Watched};

/// Says whether anything lives on this host that could work under a node, as far as the host knows; without waiting for the network.
pub type Witness = Box<dyn Fn(&NodeName) -> Pin<Box<dyn Future<Output = bool>>>>;

/// What a wait knows of those in front of us.
#[derive(Default)]
pub struct Ahead {
    /// They, as of the last look.
    pub names: RefCell<Vec<NodeName>>,
    /// Whom of them nobody vouches for.
    orphans: RefCell<HashMap<NodeName, Orphan>>,
    /// Locked while one is removed.
    pub burying: Mutex<()>,
    pub has_forgotten_the_removed: Cell<bool>,
}

/// How long we have seen that nobody vouches for somebody in front of us.
#[derive(Clone, Copy)]
struct Orphan {
    /// By the ensemble's clock.
    since: Duration,
    told: Edition,
}

/// A testimony is written whenever somebody vouches for its contender again, and then it is another edition.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Edition {
    czxid: u64,
    version: i32,
}

/// What was found of somebody in front of us.
enum Finding {
    Gone,
    Vouched,
    /// Nobody ever vouched for it, for all that can be seen: lockpick's, kazoo's, locked by hand, or below another chroot.
    Foreign,
    Orphaned {
        version: i32,
        testimony: Option<Testimony>,
        told: Edition,
    },
}

/// What is found beside the locks of a contender.
enum Beside<'n> {
    Marked(&'n Node),
    /// It was vouched for once.
    Unmarked(&'n Node),
    Nothing,
}

impl Beside<'_> {
    fn new<'n>(marker: &'n Result<Node, Refusal>, testimony: &'n Result<Node, Refusal>) -> Beside<'n> {
        match (marker, testimony) {
            (Ok(marker), _) => Beside::Marked(marker),
            (Err(Refusal::NoNode), Ok(testimony)) => Beside::Unmarked(testimony),
            (Err(_), _) => Beside::Nothing,
        }
    }
}

impl<E: Ensemble> Recipe<E> {
    /// Asks once for a node's removal, together with what its owner has the servers keep.
    pub(super) async fn remove_once(
        &self,
        session: &Rc<E::Session>,
        lock: &LockPath,
        name: &NodeName,
        expected: Expected,
    ) -> Result<Removal, Failure> {
        self.remove_with(session, lock, name, expected, None).await
    }

    /// The same if its testimony has that version.
    async fn remove_with(
        &self,
        session: &Rc<E::Session>,
        lock: &LockPath,
        name: &NodeName,
        expected: Expected,
        told: Option<Edition>,
    ) -> Result<Removal, Failure> {
        let path = format!("{}/{name}", self.directory(lock));
        let (version, is_orphaned) = match expected {
            Expected::Anything => (None, false),
            Expected::Version(version) => (Some(version), false),
            Expected::Orphaned(version) => (Some(version), true),
        };
        let has_told = |own: &Own| own.vouched.as_ref().is_some_and(Vouched::has_told);
        let is_ours_without = self.own().is_some_and(|own| own.name == *name && !has_told(&own));
        let id = id_of(name).filter(|_| !is_ours_without);
        let mut tells = id.is_some();
        loop {
            let mut operations = Vec::new();
            if let Some(id) = id.filter(|_| is_orphaned) {
                operations.extend(self.tomb(id));
            }
            operations.push((Part::Contender, Operation::Delete { path: path.clone(), version }));
            if let Some(id) = id.filter(|_| tells) {
                let version = told.map(|edition| edition.version);
                let delete = Operation::Delete { path: self.testimony(id), version };
                operations.push((Part::Testimony, delete));
            }
            return match self.transact(session, operations).await? {
                Outcome::Done(_) => Ok(Removal::Removed),
                Outcome::Refused(Part::Contender, Refusal::NoNode) => {
                    if let (Some(id), Expected::Anything) = (id, expected) {
                        self.forget_one(session, id).await?;
                    }
                    Ok(Removal::Missing)
                }
                // Somebody lives; or there is no side tree any more, and nobody can tell.
                Outcome::Refused(Part::Marker, Refusal::NodeExists | Refusal::NoNode)
                | Outcome::Refused(Part::Contender | Part::Testimony, Refusal::BadVersion) => Ok(Removal::Changed),
                // It never told anything, or nobody may delete what it told.
                Outcome::Refused(Part::Testimony, _) if told.is_none() => {
                    tells = false;
                    continue;
                }
                Outcome::Refused(Part::Testimony, Refusal::NoNode) => Ok(Removal::Changed),
                Outcome::Refused(_, why) => Err(Failure::Said(why)),
            };
        }
    }

    /// Refused if there is a marker; does nothing if there is none.
    fn tomb(&self, id: &str) -> Vec<(Part, Operation)> {
        if planted(Mistake::BuriesTheLiving) {
            return Vec::new();
        }
        let path = self.marker(id);
        vec![
            (Part::Marker, Operation::Create { path: path.clone(), data: Vec::new(), lasting: Lasting::Persistent }),
            (Part::Marker, Operation::Delete { path, version: None }),
        ]
    }

    /// A contender of ours was removed by somebody who knows nothing of testimonies.
    async fn forget_one(&self, session: &Rc<E::Session>, id: &str) -> Result<(), Failure> {
        match self.link.ask(session, session.delete(&self.testimony(id), None)).await {
            Ok(()) | Err(Failure::Said(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// Forgets what those of this family have told whose contender is gone.
    pub(super) async fn forget_family(
        &self,
        session: &Rc<E::Session>,
        family: &str,
        keep: Option<&NodeName>,
    ) -> Result<(), Failure> {
        let names = match self.link.ask(session, session.children(&self.side_tree())).await {
            Ok(names) => names,
            Err(Failure::Said(_)) => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let keep = keep.and_then(id_of);
        for id in names.iter().filter_map(|name| name.strip_suffix(TESTIMONY)) {
            if id.starts_with(family) && Some(id) != keep {
                self.forget_one(session, id).await?;
            }
        }
        Ok(())
    }

    /// Looks at who stands in front of us, in an order that matters: a testimony that is not written again afterwards proves that
    /// the marker has been missing since.
    async fn find_orphan(&self, session: &Rc<E::Session>, lock: &LockPath, name: &NodeName) -> Result<Finding, Failure> {
        let Some(id) = id_of(name) else { return Ok(Finding::Foreign) };
        let paths = vec![self.testimony(id), self.marker(id), format!("{}/{name}", self.directory(lock))];
        let nodes = self.link.ask(session, session.read(paths)).await?;
        let [testimony, marker, contender] = nodes.as_slice() else { return Ok(Finding::Foreign) };
        Ok(match (contender, Beside::new(marker, testimony)) {
            (Err(Refusal::NoNode), _) => Finding::Gone,
            (_, Beside::Marked(_)) => Finding::Vouched,
            (_, Beside::Nothing) | (Err(_), Beside::Unmarked(_)) => Finding::Foreign,
            (Ok(Node { stat, .. }), Beside::Unmarked(node)) => Finding::Orphaned {
                version: stat.version,
                testimony: Testimony::parse(&node.data),
                told: Edition { czxid: node.stat.czxid, version: node.stat.version },
            },
        })
    }

    /// One look at somebody in front of us; says what is to be done next.
    async fn bury_if_orphaned(&self, session: &Rc<E::Session>, lock: &LockPath, name: &NodeName) -> Result<Next, Failure> {
        let known = self.ahead.orphans.borrow_mut().remove(name);
        let (version, testimony, told) = match self.find_orphan(session, lock, name).await? {
            Finding::Gone => return Ok(Next::Gone),
            Finding::Vouched => return Ok(Next::Look),
            Finding::Foreign => return Ok(Next::LookFurther),
            Finding::Orphaned { version, testimony, told } => (version, testimony, told),
        };
        let now = self.link.clock();
        let orphan = known.filter(|orphan| orphan.told == told).unwrap_or(Orphan { since: now, told });
        self.ahead.orphans.borrow_mut().insert(name.clone(), orphan);
        let abandon_after = testimony.as_ref().and_then(|testimony| testimony.abandon_after);
        let mark = if planted(Mistake::BuriesWhoeverIsOrphaned) { Mark::Waiting } else { Mark::of(version) };
        let (bound_to, after) = match verdict(mark, abandon_after) {
            Verdict::Bury => (None, Duration::ZERO),
            Verdict::BuryAfter(_) if planted(Mistake::BuriesTooEarly) => (Some(told), Duration::ZERO),
            Verdict::BuryAfter(time) => (Some(told), time),
            Verdict::Leave => (Some(told), Duration::MAX),
        };
        let left = orphan.since.saturating_add(after).saturating_sub(now);
        if !left.is_zero() {
            self.tell_that_it_is_orphaned(session, name, testimony, told).await?;
            return Ok(Next::LookAfter(left.min(LOOK_AGAIN)));
        }
        // Whoever has promised to stop is relied on by others, who cannot know better.
        if bound_to.is_some() && self.lives_here(name).await {
            info!("{}: its owner was to stop its command by now, but something of it lives on this host", lock.node(name));
            return Ok(Next::LookAfter(LOOK_AGAIN));
        }
        let _burying = self.ahead.burying.lock().await;
        match self.remove_with(session, lock, name, Expected::Orphaned(version), bound_to).await? {
            Removal::Removed => {
                self.ahead.orphans.borrow_mut().remove(name);
                let node = lock.node(name);
                match bound_to {
                    None => info!("removed {node}: it waited, and nobody vouches for it any more"),
                    Some(_) => {
                        warn!("removed {node}: its owner was to stop its command by now, and nobody has vouched for it since");
                    }
                }
                Ok(Next::Gone)
            }
            Removal::Missing => Ok(Next::Gone),
            Removal::Changed | Removal::LeftToSession => Ok(Next::Look),
        }
    }

    async fn lives_here(&self, name: &NodeName) -> bool {
        match &self.witness {
            Some(witness) => witness(name).await,
            None => false,
        }
    }

    /// Writes down that it was found orphaned: the servers note when.
    async fn tell_that_it_is_orphaned(
        &self,
        session: &Rc<E::Session>,
        name: &NodeName,
        testimony: Option<Testimony>,
        told: Edition,
    ) -> Result<(), Failure> {
        let Some((id, testimony)) = id_of(name).zip(testimony).filter(|(_, testimony)| !testimony.is_orphaned) else {
            return Ok(());
        };
        let data = Testimony { is_orphaned: true, ..testimony }.to_string().into_bytes();
        let mut operations = self.tomb(id);
        let set = Operation::Set { path: self.testimony(id), data, version: Some(told.version) };
        operations.push((Part::Testimony, set));
        if let Outcome::Done(_) = self.transact(session, operations).await? {
            // Not by its owner, so it does not count.
            if let Some(orphan) = self.ahead.orphans.borrow_mut().get_mut(name).filter(|orphan| orphan.told == told) {
                orphan.told.version = told.version.wrapping_add(1);
            }
        }
        Ok(())
    }

    /// [`Store::bury`](crate::lock::Store::bury), in one session.
    pub(super) async fn bury_once(&self, session: &Rc<E::Session>, lock: &LockPath, name: &NodeName) -> Result<bool, Failure> {
        Ok(matches!(self.bury_if_orphaned(session, lock, name).await?, Next::Gone))
    }

    /// Ready once somebody in front of us is gone because nobody vouches for it.
    pub(super) async fn bury_in_time(
        &self,
        session: &Rc<E::Session>,
        lock: &LockPath,
        name: &NodeName,
    ) -> Result<Watched, Failure> {
        loop {
            if let Some(id) = id_of(name)
                && self.watch(session, &self.marker(id)).await? == Watched::There
            {
                continue;
            }
            let looked = async {
                let next = self.bury_if_orphaned(session, lock, name).await?;
                if let Next::LookFurther = next {
                    self.bury_those_ahead(session, lock).await?;
                }
                Ok(next)
            };
            let next = match looked.await {
                Err(Failure::Said(refusal)) => {
                    info!("cannot look after {}: {refusal}", lock.node(name));
                    Next::Look
                }
                next => next?,
            };
            match next {
                Next::Gone => return Ok(Watched::Gone),
                Next::Look | Next::LookFurther => sleep(LOOK_AGAIN).await,
                Next::LookAfter(time) => self.link.reaches(self.link.clock() + time).await,
            }
        }
    }

    /// Whoever stands between us and an orphan may know nothing of markers. So we look after all who are in front of us.
    async fn bury_those_ahead(&self, session: &Rc<E::Session>, lock: &LockPath) -> Result<(), Failure> {
        let beside = match self.link.ask(session, session.children(&self.side_tree())).await {
            Ok(names) => names,
            Err(Failure::Said(_)) => return Ok(()),
            Err(failure) => return Err(failure),
        };
        let beside: HashSet<String> = beside.into_iter().collect();
        let is_orphaned = |id: &str| !beside.contains(id) && beside.contains(&format!("{id}{TESTIMONY}"));
        let ahead = self.ahead.names.borrow().clone();
        for name in ahead.iter().filter(|name| id_of(name).is_some_and(is_orphaned)) {
            self.bury_if_orphaned(session, lock, name).await?;
        }
        Ok(())
    }

    /// Whether somebody stands behind each of these.
    pub(super) async fn find_owners(&self, names: &[NodeName]) -> Result<Vec<Ownership>, Refusal> {
        let mut owners = Vec::with_capacity(names.len());
        for flight in names.chunks(FLIGHT / 2) {
            let ids = flight.iter().filter_map(id_of);
            let paths: Vec<_> = ids.flat_map(|id| [self.marker(id), self.testimony(id)]).collect();
            let nodes = self.link.look(async |session| session.read(paths.clone()).await).await?;
            let mut pairs = nodes.chunks_exact(2);
            owners.extend(flight.iter().map(|name| match id_of(name).and_then(|_| pairs.next()) {
                Some([marker, testimony]) => ownership(&Beside::new(marker, testimony)),
                Some(_) | None => Ownership::Unknown,
            }));
        }
        Ok(owners)
    }

    /// Forgets what those have told whose contender in this lock was removed by somebody who knows nothing of testimonies, and
    /// who could not do it themselves. Whoever has to wait has time for it, once.
    pub(super) async fn forget_the_removed(&self, session: &Rc<E::Session>, lock: &LockPath) -> Result<(), Failure> {
        let (side_tree, directory) = (self.side_tree(), self.directory(lock));
        // In this order: who is not in the queue after it had a testimony is gone for good.
        let (told, queue) = self
            .link
            .ask(session, async {
                let (told, queue) = tokio::join!(session.children(&side_tree), session.children(&directory));
                Ok((told?, queue?))
            })
            .await?;
        let queue = Queue::new(queue);
        let is_queueing = |id: &str| queue.contenders().iter().any(|name| id_of(name) == Some(id));
        let lives = |id: &str| told.iter().any(|name| name == id);
        let strays = told.iter().filter_map(|name| name.strip_suffix(TESTIMONY)).filter(|id| !is_queueing(id) && !lives(id));
        let strays: Vec<_> = strays.collect();
        for flight in strays.chunks(FLIGHT) {
            let paths = flight.iter().map(|id| self.testimony(id)).collect();
            let nodes = self.link.ask(session, session.read(paths)).await?;
            for (id, node) in flight.iter().zip(nodes) {
                let testimony = node.ok().and_then(|node| Testimony::parse(&node.data));
                if testimony.is_some_and(|testimony| testimony.lock == *lock) {
                    self.forget_one(session, id).await?;
                }
            }
        }
        Ok(())
    }
}

/// What is next for who stands behind somebody.
enum Next {
    /// Nothing: it is gone.
    Gone,
    /// Another look, now and then.
    Look,
    /// And one at who stands in front of it.
    LookFurther,
    LookAfter(Duration),
}

fn ownership(beside: &Beside<'_>) -> Ownership {
    match beside {
        Beside::Marked(marker) => match Testimony::parse(&marker.data) {
            Some(testimony) => Ownership::Owned(testimony.owner),
            None => Ownership::Unknown,
        },
        Beside::Unmarked(node) => {
            let testimony = Testimony::parse(&node.data);
            let since = testimony.as_ref().filter(|testimony| testimony.is_orphaned).map(|_| node.stat.mtime);
            let abandon_after = testimony.as_ref().and_then(|testimony| testimony.abandon_after);
            Ownership::Orphaned { owner: testimony.map(|testimony| testimony.owner), since, abandon_after }
        }
        Beside::Nothing => Ownership::Unknown,
    }
}
