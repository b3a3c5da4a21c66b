//! Coming into a queue exactly once, whatever is lost on the way.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::Recipe;
use super::bound::Bound;
use super::owned::{Outcome, Own, Part, SideTree, Vouched, lasting};
use crate::lock::{Claim, Entry, Expected, FencingToken, Lifetime, LockPath, NodeName, Place, StoreError};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Created, Ensemble, Failure, Refusal, Session, SessionId};

/// Between two creates, once one and the next were not answered.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// So many creates without an answer are worth a word.
const DOUBTS_TO_TELL: u32 = 4;

/// How far an entry has come.
pub struct Entering<'r, E: Ensemble> {
    recipe: &'r Recipe<E>,
    lock: &'r LockPath,
    directory: String,
    claim: Claim,
    /// A create of ours that was never answered.
    in_doubt: Option<Unanswered>,
    /// Whether that session is not to be used for anything else.
    must_end: bool,
    place: Option<Place>,
    /// The session in which a marker was made with it, and whether we know yet when it was made.
    marked_in: Option<SessionId>,
    is_token_known: bool,
    /// How often a create was not answered.
    doubts: u32,
    /// Whether we know that we may delete what we create: whoever may not would leave a node on every run.
    may_leave: bool,
    /// Nothing is asked for any more, only settled, until then.
    end: Option<(Instant, Result<Entry, StoreError>)>,
}

impl<'r, E: Ensemble> Entering<'r, E> {
    pub fn new(recipe: &'r Recipe<E>, lock: &'r LockPath, claim: &Claim) -> Entering<'r, E> {
        let directory = recipe.directory(lock);
        let claim = claim.clone();
        Entering {
            recipe,
            lock,
            directory,
            claim,
            in_doubt: None,
            must_end: false,
            place: None,
            marked_in: None,
            is_token_known: false,
            doubts: 0,
            may_leave: false,
            end: None,
        }
    }

    /// [`Store::enter`](crate::lock::Store::enter): one step after the other, each of which may end in doubt. That is settled by
    /// the next connection.
    pub async fn enter(mut self, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        let mut give_up = pin!(give_up);
        loop {
            let is_settled = self.in_doubt.is_none() && self.place.is_none() && self.recipe.loose_in(self.lock).is_empty();
            if let Some((_, result)) = self.end.take_if(|_| is_settled) {
                return result;
            }
            let Some(session) = self.session(give_up.as_mut()).await? else { continue };
            let step = match self.end.as_ref().map(|(until, _)| *until) {
                Some(until) => timeout_at(until, self.step(session, give_up.as_mut())).await,
                None => Ok(self.step(session, give_up.as_mut()).await),
            };
            match step {
                Ok(Ok(Some(result))) => return result,
                Ok(Ok(None) | Err(Failure::InDoubt(_))) => {}
                // What we have made is taken out again, if it may be.
                Ok(Err(Failure::Said(refusal))) if self.end.is_none() && self.place.is_some() => {
                    self.ends_with(Err(self.refused("to let us enter", &refusal)));
                }
                Ok(Err(Failure::Said(refusal))) => return Err(self.left(refusal.to_string())),
                Err(_) => return Err(self.left("no answer in time".to_owned())),
            }
        }
    }

    /// A session, unless it is time to give up.
    async fn session(&mut self, give_up: Pin<&mut impl Future<Output = ()>>) -> Result<Option<Rc<E::Session>>, StoreError> {
        let link = &self.recipe.link;
        if let Some((until, _)) = self.end {
            return timeout_at(until, link.session()).await.map(Some).map_err(|_| self.left(link.trouble()));
        }
        tokio::select! {
            biased;
            () = give_up => {
                self.ends_with(Ok(Entry::GaveUp));
                Ok(None)
            }
            session = async {
                sleep(self.pause()).await;
                link.session().await
            } => Ok(Some(session)),
        }
    }

    async fn step(
        &mut self,
        session: Rc<E::Session>,
        mut give_up: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Result<Entry, StoreError>>, Failure> {
        if let Some(unanswered) = self.in_doubt
            && !self.may_ask_again(&session, unanswered)
        {
            self.settle(session, unanswered).await?;
            return Ok(None);
        }
        if let (Some(_), Some(place)) = (&self.end, &self.place) {
            // By its name: no look at the queue is needed for that, and there may be none to be had.
            self.recipe.remove_once(&session, self.lock, &place.name, Expected::Anything).await?;
            self.place = None;
        }
        let keep = self.place.as_ref().map(|place| &place.name).filter(|_| self.end.is_none());
        self.recipe.sweep(&session, self.lock, keep).await?;
        match (self.end.take(), self.place.take()) {
            (Some((_, result)), _) => {
                self.recipe.forget_loose(self.lock);
                Ok(Some(result))
            }
            (None, Some(place)) => {
                self.place = Some(place);
                self.come_in(&session, give_up).await
            }
            (None, None) => {
                let has_a_way_out = tokio::select! {
                    biased;
                    has_one = self.has_a_way_out(&session) => has_one?,
                    () = give_up.as_mut() => {
                        self.ends_with(Ok(Entry::GaveUp));
                        false
                    }
                };
                if has_a_way_out {
                    self.create(&session, give_up.as_mut()).await?;
                }
                if self.place.is_none() || self.in_doubt.is_some() {
                    return Ok(None);
                }
                if self.recipe.loose_in(self.lock).is_empty() {
                    return self.come_in(&session, give_up).await;
                }
                // The others first.
                self.recipe.loosen(self.lock, self.claim.family());
                Ok(None)
            }
        }
    }

    /// Finds out when our node was made, which the answer to a transaction does not tell in 3.8.0 (ZOOKEEPER-4026); and who is
    /// there, in the same flight, for that is what is asked next.
    async fn come_in(
        &mut self,
        session: &Rc<E::Session>,
        give_up: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Result<Entry, StoreError>>, Failure> {
        let Some(mut place) = self.place.clone() else { return Ok(None) };
        if !self.is_token_known {
            let path = format!("{}/{}", self.directory, place.name);
            let is_listed = |names: &[String]| names.iter().any(|name| name == place.name.as_str());
            let looked = async {
                let (stat, listing) = tokio::join!(session.stat(&path), session.children(&self.directory));
                match (stat?, listing) {
                    (_, Err(failure @ Failure::InDoubt(_))) => Err(failure),
                    (None, Ok(names)) if is_listed(&names) => Err(Failure::InDoubt("our node is there, and is not".to_owned())),
                    (stat, listing) => Ok((stat, listing.ok())),
                }
            };
            let looked = tokio::select! {
                biased;
                looked = self.recipe.link.ask(session, looked) => looked,
                () = give_up => {
                    self.ends_with(Ok(Entry::GaveUp));
                    return Ok(None);
                }
            };
            let (stat, listing) = match looked {
                Err(Failure::Said(refusal)) => {
                    self.ends_with(Err(self.refused("to show us in", &refusal)));
                    return Ok(None);
                }
                looked => looked?,
            };
            // Where it was refused the next look will say so.
            self.recipe.first_look.replace(listing.map(|names| (self.lock.clone(), names)));
            // Where somebody has removed it already, there is no use for a token.
            place.token = FencingToken(stat.map_or(0, |stat| stat.czxid));
        }
        let vouched = self.marked_in.and_then(|session| Vouched::new(&self.claim, self.lock, session));
        if vouched.is_none() && matches!(self.claim.lifetime, Lifetime::Promised { .. }) {
            warn!(
                "nobody can be told when {} is abandoned: it is kept until somebody releases it",
                self.lock.node(&place.name)
            );
            self.recipe.bound.set(None);
        }
        let own = Own { name: place.name.clone(), lock: self.lock.clone(), vouched };
        self.recipe.own.replace(Some(Rc::new(own)));
        Ok(Some(Ok(Entry::In(place))))
    }

    /// A create that comes with a marker is refused if it was carried out before. So the question what became of it is the request
    /// itself.
    fn may_ask_again(&self, session: &E::Session, unanswered: Unanswered) -> bool {
        let would_be_marked = self.recipe.side.get() != SideTree::Unusable;
        let is_of_it = unanswered.sent_in == session.id();
        unanswered.is_marked && would_be_marked && is_of_it && !self.must_end && self.end.is_none()
    }

    /// Finds out what became of a create that was not answered.
    async fn settle(&mut self, session: Rc<E::Session>, unanswered: Unanswered) -> Result<(), Failure> {
        if unanswered.sent_in == session.id() {
            if !self.must_end {
                let found = self.recipe.find(&session, &self.directory, &self.claim.prefix()).await?;
                self.has_come_in(found);
                self.marked_in = unanswered.is_marked.then_some(unanswered.sent_in);
                self.must_end = self.place.is_none();
            }
            // While the session belongs to the server that we asked, a create that another one still has is refused. Back there
            // it would not be, and a resume that comes late brings it back. So it ends with its session, and once that was asked
            // for it may come late too.
            if self.must_end {
                self.recipe.link.end(session).await?;
            }
        }
        self.must_end = false;
        self.recipe.loosen(self.lock, self.claim.family());
        if self.place.is_none() {
            // That session has ended, so the create can no longer land; but it may have landed (rule R3).
            self.start_afresh();
        }
        self.in_doubt = None;
        Ok(())
    }

    /// Those of ours that were found; there should be one.
    fn has_come_in(&mut self, found: Vec<Place>) {
        self.place = found.into_iter().min_by_key(|place| place.name.sequence());
        self.is_token_known = self.place.is_some();
    }

    /// Whether we could leave again what we are about to enter.
    async fn has_a_way_out(&mut self, session: &Rc<E::Session>) -> Result<bool, Failure> {
        let link = &self.recipe.link;
        let bound = match self.claim.lifetime {
            Lifetime::Session { notice } => {
                let connected = link.connected(session.id()).unwrap_or_default();
                Some(Bound::to_session(session.id(), session.timeout(), notice, connected))
            }
            Lifetime::Promised { after, notice } => Some(Bound::to_promise(after, notice, link.clock())),
            Lifetime::Spawned | Lifetime::Explicit => None,
        };
        if let (Lifetime::Session { notice }, Some(bound)) = (self.claim.lifetime, &bound)
            && !bound.leaves_time()
        {
            let place = link.place();
            self.ends_with(Err(StoreError::SessionTooShort { place, session: session.timeout(), notice }));
            return Ok(false);
        }
        self.recipe.bound.set(bound);
        if !self.may_leave {
            let probe = format!("probe-{}", self.claim.id.simple());
            let tries_side_tree = self.claim.owner.is_some() && self.recipe.side.get() == SideTree::Untried;
            let asked = async {
                let side_tree = async {
                    match tries_side_tree {
                        true => session.may_delete(&self.recipe.side_tree(), &probe).await,
                        false => Ok(()),
                    }
                };
                let (lock, side_tree) = tokio::join!(session.may_delete(&self.directory, &probe), side_tree);
                match (lock, side_tree) {
                    (Err(failure @ Failure::InDoubt(_)), _) | (_, Err(failure @ Failure::InDoubt(_))) => Err(failure),
                    answers => Ok(answers),
                }
            };
            let (lock, side_tree) = self.recipe.link.ask(session, asked).await?;
            match side_tree {
                // Where it is missing we shall make it.
                Ok(()) | Err(Failure::Said(Refusal::NoNode)) if tries_side_tree => self.recipe.side.set(SideTree::Usable),
                Ok(()) => {}
                Err(Failure::Said(refusal)) => self.recipe.does_without_a_side_tree(&refusal),
                Err(failure) => return Err(failure),
            }
            match lock {
                Ok(()) => self.may_leave = true,
                // The same.
                Err(Failure::Said(Refusal::NoNode)) => {}
                Err(Failure::Said(refusal)) => {
                    self.ends_with(Err(self.refused("to let us delete what we create in", &refusal)));
                    return Ok(false);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(true)
    }

    async fn create(&mut self, session: &Rc<E::Session>, give_up: Pin<&mut impl Future<Output = ()>>) -> Result<(), Failure> {
        let link = &self.recipe.link;
        let created = tokio::select! {
            biased;
            created = self.ask_to_enter(session) => created,
            () = give_up => {
                // It has left, and what is asked for next on this connection is answered after it.
                self.ends_with(Ok(Entry::GaveUp));
                Err(Failure::InDoubt("given up".to_owned()))
            }
        };
        match created {
            Ok(Asked::Made { path, zxid, is_marked }) => {
                link.is_up_to_date();
                self.in_doubt = None;
                if let Some(name) = path.rsplit_once('/').and_then(|(_, name)| NodeName::parse(name)) {
                    self.marked_in = is_marked.then(|| session.id());
                    self.is_token_known = zxid.is_some();
                    self.place = Some(Place { name, token: FencingToken(zxid.unwrap_or_default()) });
                    return Ok(());
                }
                // No server is known to number this way; but what it made is not to be left behind.
                let odd = Refusal::Other(format!("it made {path}, which is no contender's name"));
                self.recipe.loosen(self.lock, self.claim.family());
                link.ask(session, session.delete(&path, None)).await?;
                self.ends_with(Err(self.refused("to number us in", &odd)));
                Ok(())
            }
            // An earlier one was carried out, and not answered.
            Ok(Asked::Refused(Part::Marker, Refusal::NodeExists)) => {
                let found = self.recipe.find(session, &self.directory, &self.claim.prefix()).await?;
                self.has_come_in(found);
                self.marked_in = Some(session.id());
                self.in_doubt = None;
                if self.place.is_none() {
                    // Somebody has removed it since.
                    self.start_afresh();
                }
                Ok(())
            }
            Ok(Asked::Refused(Part::Marker, Refusal::NoNode)) => self.recipe.make_side_tree(session).await,
            Ok(Asked::Refused(Part::Marker | Part::Testimony, refusal)) => {
                self.recipe.does_without_a_side_tree(&refusal);
                Ok(())
            }
            Ok(Asked::Refused(Part::Contender, Refusal::NoNode)) => {
                match link.ask(session, session.make_directory(&self.directory)).await {
                    Err(Failure::Said(refusal)) => {
                        self.ends_with(Err(self.refused("to make", &refusal)));
                        Ok(())
                    }
                    made => made,
                }
            }
            Ok(Asked::Refused(Part::Contender, refusal)) | Err(Failure::Said(refusal)) => {
                self.ends_with(Err(self.refused("to let us enter", &refusal)));
                Ok(())
            }
            Err(Failure::InDoubt(cause)) => {
                if planted(Mistake::CreatesBlindlyAgain) {
                    self.claim = self.claim.renewed();
                    return Ok(());
                }
                let is_marked = self.recipe.creation(&self.claim, self.lock).is_some();
                self.in_doubt = Some(Unanswered { sent_in: session.id(), is_marked });
                self.doubts += 1;
                if self.doubts == DOUBTS_TO_TELL {
                    warn!("{} does not answer our request to enter {}: {cause}; trying on", link.place(), self.lock);
                }
                Ok(())
            }
        }
    }

    async fn ask_to_enter(&self, session: &Rc<E::Session>) -> Result<Asked, Failure> {
        if let Some(operations) = self.recipe.creation(&self.claim, self.lock) {
            return match self.recipe.transact(session, operations).await? {
                Outcome::Done(mut paths) => match paths.pop() {
                    Some(path) => Ok(Asked::Made { path, zxid: None, is_marked: true }),
                    None => Err(Failure::InDoubt("an answer that tells nothing".to_owned())),
                },
                Outcome::Refused(part, why) => Ok(Asked::Refused(part, why)),
            };
        }
        let path = format!("{}/{}", self.directory, self.claim.prefix());
        match self.recipe.link.ask(session, session.create(&path, &self.claim.identifier.0, lasting(self.claim.lifetime))).await
        {
            Ok(Created { path, zxid }) => Ok(Asked::Made { path, zxid: Some(zxid), is_marked: false }),
            Err(Failure::Said(refusal)) => Ok(Asked::Refused(Part::Contender, refusal)),
            Err(failure) => Err(failure),
        }
    }

    /// Under a name that was never used; what the last one may have left is found by the family's.
    fn start_afresh(&mut self) {
        self.recipe.loosen(self.lock, self.claim.family());
        self.claim = self.claim.renewed();
        (self.marked_in, self.is_token_known) = (None, false);
    }

    fn ends_with(&mut self, result: Result<Entry, StoreError>) {
        self.end = Some((Instant::now() + self.recipe.release_timeout, result));
    }

    /// What is never answered may be what ends the connection, so it is not asked for again and again at once.
    fn pause(&self) -> Duration {
        match self.doubts {
            0 | 1 => Duration::ZERO,
            doubts => FIRST_PAUSE.saturating_mul(1 << doubts.min(10)).min(LONGEST_PAUSE),
        }
    }

    fn refused(&self, what: &str, refusal: &Refusal) -> StoreError {
        self.recipe.refused(format!("{what} {}", self.directory), refusal)
    }

    /// What is there of ours for all we know, when it cannot be settled.
    fn left(&self, cause: String) -> StoreError {
        let (lock, place) = (self.lock, self.recipe.link.place());
        if let Some(Place { name, .. }) = &self.place {
            return StoreError::NotRemoved { node: lock.node(name), place, cause };
        }
        let prefix = self.claim.family();
        StoreError::Unsettled { prefix: format!("{lock}/{prefix}"), place, cause }
    }
}

/// A create that may have been carried out, or may yet be.
#[derive(Clone, Copy)]
struct Unanswered {
    sent_in: SessionId,
    /// Whether a marker comes with it.
    is_marked: bool,
}

/// The answer to a request to enter.
enum Asked {
    Made {
        path: String,
        /// The answer to a transaction does not tell it.
        zxid: Option<u64>,
        is_marked: bool,
    },
    Refused(Part, Refusal),
}
