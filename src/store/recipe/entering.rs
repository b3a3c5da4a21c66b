//! Coming into a queue exactly once, whatever is lost on the way.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::Recipe;
use super::bound::Bound;
use crate::lock::{Claim, Entry, FencingToken, Lifetime, LockPath, NodeName, Place, StoreError};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, Lasting, Refusal, Session, SessionId};

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
    /// The session in which a create of ours was never answered.
    in_doubt: Option<SessionId>,
    /// Whether that session is not to be used for anything else.
    must_end: bool,
    place: Option<Place>,
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
        give_up: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Result<Entry, StoreError>>, Failure> {
        if let Some(sent_in) = self.in_doubt {
            self.settle(session, sent_in).await?;
            return Ok(None);
        }
        let keep = self.place.as_ref().map(|place| &place.name).filter(|_| self.end.is_none());
        self.recipe.sweep(&session, self.lock, keep).await?;
        match (self.end.take(), self.place.take()) {
            (Some((_, result)), _) => {
                self.recipe.forget_loose(self.lock);
                Ok(Some(result))
            }
            (None, Some(place)) => Ok(Some(Ok(Entry::In(place)))),
            (None, None) => {
                if self.has_a_way_out(&session).await? {
                    self.create(&session, give_up).await?;
                }
                let Some(place) = self.place.take() else { return Ok(None) };
                if self.recipe.loose_in(self.lock).is_empty() {
                    return Ok(Some(Ok(Entry::In(place))));
                }
                // The others first.
                self.recipe.loosen(self.lock, self.claim.family());
                self.place = Some(place);
                Ok(None)
            }
        }
    }

    /// Finds out what became of a create that was not answered.
    async fn settle(&mut self, session: Rc<E::Session>, sent_in: SessionId) -> Result<(), Failure> {
        if sent_in == session.id() {
            if !self.must_end {
                let found = self.recipe.find(&session, &self.directory, &self.claim.prefix()).await?;
                self.place = found.into_iter().min_by_key(|place| place.name.sequence());
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
            self.claim = self.claim.renewed();
        }
        self.in_doubt = None;
        Ok(())
    }

    /// Whether we could leave again what we are about to enter.
    async fn has_a_way_out(&mut self, session: &Rc<E::Session>) -> Result<bool, Failure> {
        if let Lifetime::Session { notice } = self.claim.lifetime {
            let connected = self.recipe.link.connected(session.id()).unwrap_or_default();
            let bound = Bound::new(session.id(), session.timeout(), notice, connected);
            if !bound.leaves_time() {
                let place = self.recipe.link.place();
                self.ends_with(Err(StoreError::SessionTooShort { place, session: session.timeout(), notice }));
                return Ok(false);
            }
            self.recipe.bound.set(Some(bound));
        }
        if !self.may_leave {
            let probe = format!("probe-{}", self.claim.id.simple());
            match self.recipe.link.ask(session, session.may_delete(&self.directory, &probe)).await {
                Ok(()) => self.may_leave = true,
                // We shall make it.
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
        let lasting = match self.claim.lifetime {
            Lifetime::Spawned | Lifetime::Explicit => Lasting::Persistent,
            Lifetime::Session { .. } => Lasting::Ephemeral,
        };
        let path = format!("{}/{}", self.directory, self.claim.prefix());
        let created = tokio::select! {
            biased;
            created = link.ask(session, session.create(&path, &self.claim.identifier.0, lasting)) => created,
            () = give_up => {
                // It has left, and what is asked for next on this connection is answered after it.
                self.ends_with(Ok(Entry::GaveUp));
                Err(Failure::InDoubt("given up".to_owned()))
            }
        };
        match created {
            Ok(created) => {
                link.is_up_to_date();
                if let Some(name) = created.path.rsplit_once('/').and_then(|(_, name)| NodeName::parse(name)) {
                    self.place = Some(Place { name, token: FencingToken(created.zxid) });
                    return Ok(());
                }
                // No server is known to number this way; but what it made is not to be left behind.
                let odd = Refusal::Other(format!("it made {}, which is no contender's name", created.path));
                self.recipe.loosen(self.lock, self.claim.family());
                link.ask(session, session.delete(&created.path, None)).await?;
                self.ends_with(Err(self.refused("to number us in", &odd)));
                Ok(())
            }
            Err(Failure::Said(Refusal::NoNode)) => match link.ask(session, session.make_directory(&self.directory)).await {
                Err(Failure::Said(refusal)) => {
                    self.ends_with(Err(self.refused("to make", &refusal)));
                    Ok(())
                }
                made => made,
            },
            Err(Failure::Said(refusal)) => {
                self.ends_with(Err(self.refused("to let us enter", &refusal)));
                Ok(())
            }
            Err(Failure::InDoubt(cause)) => {
                if planted(Mistake::CreatesBlindlyAgain) {
                    return Ok(());
                }
                self.in_doubt = Some(session.id());
                self.doubts += 1;
                if self.doubts == DOUBTS_TO_TELL {
                    warn!("{} does not answer our request to enter {}: {cause}; trying on", link.place(), self.lock);
                }
                Ok(())
            }
        }
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
