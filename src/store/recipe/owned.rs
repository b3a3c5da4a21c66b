//! What vouches for a contender of ours, beside the locks and out of everybody's sight: a marker that lives as long as our
//! session, and what we say about ourselves, which stays until the contender goes.
//!
//! Both are made in one transaction with the contender. So a create that is sent again is refused as a whole if it was carried
//! out; and who finds a contender with no marker knows that nobody vouches for it. The version of the contender's node says
//! whether it waits or holds, so that one that only waited can be removed by a delete that loses against its coming to its turn.

use std::cell::Cell;
use std::rc::Rc;

use tracing::info;

use super::Recipe;
use crate::lock::{Claim, Lifetime, LockPath, Mark, NodeName, Queue, SIDE_TREE, Standing, StoreError, Testimony};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, Lasting, Operation, Refusal, Session, SessionId, Transacted};

/// What the name of a testimony ends with; it begins like the marker's.
pub const TESTIMONY: &str = ".owner";

/// A contender of ours.
pub struct Own {
    pub name: NodeName,
    pub lock: LockPath,
    pub vouched: Option<Vouched>,
}

/// What vouches for it.
pub struct Vouched {
    id: String,
    /// What its node says, and has to say again with every mark.
    identifier: Vec<u8>,
    text: String,
    /// The session that the marker is bound to; none if it has to be made again. And the last one that we asked for one in.
    marked_in: Cell<Option<SessionId>>,
    asked_in: Cell<Option<SessionId>>,
    /// Whether it lasts longer than its session, so that a testimony and a mark are of use to others.
    is_persistent: bool,
    version: Cell<Version>,
}

/// Of our node, which nobody else writes.
#[derive(Clone, Copy)]
enum Version {
    /// Never written by us, so nothing that we asked for can change it later.
    Fresh,
    Known(i32),
    /// A write was not answered.
    Unknown,
}

/// The parts of a contender's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Marker,
    Testimony,
    Contender,
}

/// Whether the side tree can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SideTree {
    Untried,
    Usable,
    Unusable,
}

/// Whether we have a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouching {
    Done,
    /// Our node is gone.
    Gone,
    /// It could not be made, and may be later.
    NotNow,
}

/// What became of a transaction by parts.
pub enum Outcome {
    Done(Vec<String>),
    Refused(Part, Refusal),
}

impl Vouched {
    /// For a claim whose marker was made in this session; none for one that nobody stands behind.
    pub fn new(claim: &Claim, lock: &LockPath, session: SessionId) -> Option<Vouched> {
        Some(Vouched {
            id: id(claim),
            identifier: claim.identifier.0.clone(),
            text: testimony(claim, lock)?,
            marked_in: Cell::new(Some(session)),
            asked_in: Cell::new(Some(session)),
            is_persistent: lasting(claim.lifetime) == Lasting::Persistent,
            version: Cell::new(Version::Fresh),
        })
    }

    /// The marker was found missing.
    pub fn is_not_marked(&self) {
        self.marked_in.set(None);
    }

    /// Whether it told of itself, for as long as its node lasts.
    pub fn has_told(&self) -> bool {
        self.is_persistent
    }

    pub fn id(&self) -> &str {
        &self.id
    }
}

fn id(claim: &Claim) -> String {
    claim.id.simple().to_string()
}

fn testimony(claim: &Claim, lock: &LockPath) -> Option<String> {
    let abandon_after = match claim.lifetime {
        Lifetime::Promised { after, .. } => Some(after),
        Lifetime::Spawned | Lifetime::Explicit | Lifetime::Session { .. } => None,
    };
    let owner = claim.owner.clone()?;
    Some(Testimony { lock: lock.clone(), owner, abandon_after, is_orphaned: false }.to_string())
}

/// How long the node of a contender lasts.
pub fn lasting(lifetime: Lifetime) -> Lasting {
    match lifetime {
        Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Explicit => Lasting::Persistent,
        Lifetime::Session { .. } => Lasting::Ephemeral,
    }
}

impl<E: Ensemble> Recipe<E> {
    pub(super) fn side_tree(&self) -> String {
        format!("{}/{SIDE_TREE}", self.chroot.as_str().trim_end_matches('/'))
    }

    pub(super) fn marker(&self, id: &str) -> String {
        format!("{}/{id}", self.side_tree())
    }

    pub(super) fn testimony(&self, id: &str) -> String {
        format!("{}/{id}{TESTIMONY}", self.side_tree())
    }

    /// Asks once for a transaction of named parts.
    pub(super) async fn transact(
        &self,
        session: &Rc<E::Session>,
        operations: Vec<(Part, Operation)>,
    ) -> Result<Outcome, Failure> {
        let (parts, operations): (Vec<_>, Vec<_>) = operations.into_iter().unzip();
        match self.link.ask(session, session.transact(operations)).await? {
            Transacted::Done(paths) => Ok(Outcome::Done(paths)),
            Transacted::Refused { at, why } => match parts.get(at) {
                Some(part) => Ok(Outcome::Refused(*part, why)),
                None => Err(Failure::InDoubt(format!("an answer to what was not asked: {why}"))),
            },
        }
    }

    /// What makes a contender together with what vouches for it; none if nothing does.
    pub(super) fn creation(&self, claim: &Claim, lock: &LockPath) -> Option<Vec<(Part, Operation)>> {
        if self.side.get() == SideTree::Unusable {
            return None;
        }
        let (id, data) = (id(claim), testimony(claim, lock)?.into_bytes());
        let create = |path, lasting| Operation::Create { path, data: data.clone(), lasting };
        let mut operations = vec![(Part::Marker, create(self.marker(&id), Lasting::Ephemeral))];
        let lasting = lasting(claim.lifetime);
        if lasting == Lasting::Persistent {
            operations.push((Part::Testimony, create(self.testimony(&id), Lasting::Persistent)));
        }
        let prefix = format!("{}/{}", self.directory(lock), claim.prefix());
        operations.push((Part::Contender, Operation::CreateNext { prefix, data: claim.identifier.0.clone(), lasting }));
        Some(operations)
    }

    /// Nothing is written beside the locks from here on.
    pub(super) fn does_without_a_side_tree(&self, why: &Refusal) {
        if self.side.replace(SideTree::Unusable) != SideTree::Unusable {
            info!("cannot write to {}: {why}; if we die, nobody but this host and an operator can tell", self.side_tree());
        }
    }

    /// Makes the side tree, or has us do without.
    pub(super) async fn make_side_tree(&self, session: &Rc<E::Session>) -> Result<(), Failure> {
        match self.link.ask(session, session.make_directory(&self.side_tree())).await {
            Err(Failure::Said(why)) => {
                self.does_without_a_side_tree(&why);
                Ok(())
            }
            made => made,
        }
    }

    pub(super) fn own(&self) -> Option<Rc<Own>> {
        self.own.borrow().clone()
    }

    /// Makes our marker again, if the session that it was bound to has ended.
    ///
    /// # Cancellation
    /// May be dropped.
    pub(super) async fn vouch(&self, session: &Rc<E::Session>) -> Result<Vouching, Failure> {
        let Some(own) = self.own() else { return Ok(Vouching::Done) };
        let Some(vouched) = own.vouched.as_ref().filter(|vouched| vouched.marked_in.get() != Some(session.id())) else {
            return Ok(Vouching::Done);
        };
        let not_now = |why: &Refusal| {
            info!("cannot write to {}: {why}", self.side_tree());
            Ok(Vouching::NotNow)
        };
        let mut is_told = true;
        loop {
            // In this session it can only be ours; an old session's may be there until that has ended for everybody.
            let may_be_there = vouched.asked_in.replace(Some(session.id())) == Some(session.id());
            match self.transact(session, self.vouching(&own, vouched, is_told)).await {
                Ok(Outcome::Done(_)) => {}
                Ok(Outcome::Refused(Part::Marker, Refusal::NodeExists)) if may_be_there => {}
                Ok(Outcome::Refused(Part::Contender, Refusal::NoNode)) => return Ok(Vouching::Gone),
                Ok(Outcome::Refused(Part::Marker, Refusal::NoNode)) => {
                    match self.link.ask(session, session.make_directory(&self.side_tree())).await {
                        Ok(()) => continue,
                        Err(Failure::Said(why)) => return not_now(&why),
                        Err(failure) => return Err(failure),
                    }
                }
                Ok(Outcome::Refused(Part::Testimony, Refusal::NoNode)) if is_told => {
                    is_told = false;
                    continue;
                }
                Ok(Outcome::Refused(_, why)) | Err(Failure::Said(why)) => return not_now(&why),
                Err(failure) => return Err(failure),
            }
            vouched.marked_in.set(Some(session.id()));
            return Ok(Vouching::Done);
        }
    }

    /// What makes a marker for a contender that is there.
    fn vouching(&self, own: &Own, vouched: &Vouched, is_told: bool) -> Vec<(Part, Operation)> {
        let data = vouched.text.clone().into_bytes();
        let contender = format!("{}/{}", self.directory(&own.lock), own.name);
        let mark = Operation::Create { path: self.marker(&vouched.id), data: data.clone(), lasting: Lasting::Ephemeral };
        let mut operations = vec![(Part::Contender, Operation::Check { path: contender }), (Part::Marker, mark)];
        if vouched.is_persistent {
            // Written in any case: whoever counts how long nobody has vouched for us begins anew.
            let path = self.testimony(&vouched.id);
            let tell = match is_told {
                true => Operation::Set { path, data, version: None },
                false => Operation::Create { path, data, lasting: Lasting::Persistent },
            };
            operations.push((Part::Testimony, tell));
        }
        operations
    }

    /// Has the version of our node say what this queue says of us. False if there is reason to look again.
    ///
    /// # Cancellation
    /// May be dropped.
    pub(super) async fn mark(&self, lock: &LockPath, queue: &Queue) -> Result<bool, StoreError> {
        let Some(own) = self.own().filter(|own| own.lock == *lock) else { return Ok(true) };
        let Some(vouched) = own.vouched.as_ref().filter(|vouched| vouched.is_persistent) else { return Ok(true) };
        let wanted = match queue.standing(&own.name) {
            Standing::Held => Mark::Holding,
            Standing::Behind(_) => Mark::Waiting,
            Standing::Gone | Standing::UsedUp => return Ok(true),
        };
        if wanted == Mark::Holding && planted(Mistake::RunsWithoutAMark) {
            return Ok(true);
        }
        let path = format!("{}/{}", self.directory(lock), own.name);
        loop {
            let version = match (vouched.version.get(), wanted) {
                // Nobody stood in front of us at the first look: nothing is written, as little as by those who know no marks.
                (Version::Fresh, Mark::Holding) => return Ok(true),
                (Version::Fresh, Mark::Waiting | Mark::None) => 0,
                (Version::Known(version), wanted) if Mark::of(version) == wanted => return Ok(true),
                (Version::Known(version), _) => version,
                (Version::Unknown, _) => {
                    let stat = self.link.look(async |session| session.stat(&path).await).await;
                    match stat.map_err(|why| self.refused(format!("to look at {path}"), &why))? {
                        Some(stat) => vouched.version.set(Version::Known(stat.version)),
                        None => return Ok(false),
                    }
                    continue;
                }
            };
            let previous = vouched.version.replace(Version::Unknown);
            // To be removed by others if we die is worth something, but not our place.
            let is_optional = version == 0 && wanted == Mark::Waiting;
            let session = self.link.session().await;
            let set = Operation::Set { path: path.clone(), data: vouched.identifier.clone(), version: Some(version) };
            match self.transact(&session, vec![(Part::Contender, set)]).await {
                Ok(Outcome::Done(_)) => vouched.version.set(Version::Known(version.wrapping_add(1))),
                Ok(Outcome::Refused(_, Refusal::BadVersion)) | Err(Failure::InDoubt(_)) => {}
                Ok(Outcome::Refused(_, Refusal::NoNode)) => return Ok(false),
                Ok(Outcome::Refused(_, why)) | Err(Failure::Said(why)) if is_optional => {
                    info!("cannot mark {path} as waiting: {why}");
                    vouched.version.set(previous);
                    return Ok(true);
                }
                Ok(Outcome::Refused(_, why)) | Err(Failure::Said(why)) => {
                    return Err(self.refused(format!("to mark {path}"), &why));
                }
            }
        }
    }
}
