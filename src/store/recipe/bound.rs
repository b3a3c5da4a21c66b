//! A contender that is bound to its session: how long others cannot be where we are.
//!
//! The leader ends a session that it has not heard of for the session's timeout. It hears of it when it is opened or resumed, and
//! else by the server that we are connected to, which tells it twice a tick whom it has heard; not by what it has to decide for
//! us. What a server answers by itself proves nothing, for it may be cut off; nor does a `sync`, which a leader answers that is
//! none any more. So a question that a majority has to agree to proves that half a tick before the leader was told of us.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::Recipe;
use crate::lock::{Doubt, LockPath, Loss, NodeName, Store, StoreError};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, Refusal, Session, SessionId};

/// No node is ever written so often: a delete of this version is decided, and does nothing.
const NO_VERSION: i32 = i32::MAX;

/// A session, and how far it is to be trusted. Times are of the ensemble's clock.
#[derive(Clone, Copy)]
pub struct Bound {
    pub session: SessionId,
    pub timeout: Duration,
    /// How long before the end of the session whoever works under it has to know.
    pub notice: Duration,
    /// What was sent then the leader has heard of.
    heard: Duration,
    /// What was sent then was answered, and the leader will have heard of it half a tick later.
    asked: Duration,
}

impl Bound {
    /// A session, by a connection that was asked for at this time.
    pub fn new(session: SessionId, timeout: Duration, notice: Duration, connected: Duration) -> Bound {
        Bound { session, timeout, notice, heard: connected, asked: connected }
    }

    /// Between two questions whether the session lives, and how long an answer may take. It is more than half a tick: no server
    /// that grants this session has a tick longer than a quarter of it, but for odd ones.
    fn interval(&self) -> Duration {
        self.timeout / 8
    }

    /// Until then the leader cannot have ended the session.
    pub fn safe_until(&self) -> Duration {
        self.heard + self.timeout * 7 / 8
    }

    /// When the notice has to be given.
    fn due(&self) -> Duration {
        self.safe_until().saturating_sub(self.notice)
    }

    /// Whether two questions may stay unanswered before the notice has to be given.
    pub fn leaves_time(&self) -> bool {
        self.notice.saturating_add(self.interval() * 3) <= self.timeout * 7 / 8
    }

    /// With a question that was sent then, and answered, over a connection that was asked for at that time.
    fn confirmed(self, sent: Duration, connected: Option<Duration>, timeout: Duration) -> Bound {
        let heard = self.heard.max(connected.unwrap_or_default());
        match self.asked + self.interval() <= sent {
            true => Bound { timeout, heard: heard.max(self.asked), asked: sent, ..self },
            false => Bound { timeout, heard, ..self },
        }
    }
}

/// What the ensemble knows of our contender.
enum Known {
    Alive,
    Gone,
    /// The session has ended.
    Over,
}

impl<E: Ensemble> Recipe<E> {
    /// [`Store::lost`] of a contender that is bound to a session.
    pub(super) async fn lost_with_its_session(
        &self,
        lock: &LockPath,
        name: &NodeName,
        tell: &mut dyn FnMut(Doubt),
    ) -> Result<Loss, StoreError> {
        let mut gone = pin!(self.gone(lock, name));
        if planted(Mistake::TrustsAnOldSession) {
            return gone.await.map(|()| Loss::Removed);
        }
        loop {
            let Some(bound) = self.bound.get() else { return Ok(Loss::Expiring(Duration::ZERO)) };
            let has_asked = Cell::new(false);
            let expiring = || Ok(Loss::Expiring(bound.safe_until().saturating_sub(self.link.clock())));
            let known = tokio::select! {
                biased;
                () = self.link.reaches(bound.due()) => {
                    if has_asked.get() && self.link.clock() <= bound.due() + bound.interval() / 4 {
                        return expiring();
                    }
                    // We were away, perhaps not the servers: they may know us yet. Nobody else may wait for a connection meanwhile, and
                    // not be polled.
                    gone.set(self.gone(lock, name));
                    tell(Doubt::Arisen);
                    let asked = async {
                        self.has_the_leader_hear_of_us().await;
                        self.ask_about(lock, name).await
                    };
                    let began = self.link.clock();
                    let Ok(known) = timeout(bound.interval(), asked).await else {
                        if self.link.clock() > began + bound.interval() * 2 {
                            // And again.
                            continue;
                        }
                        return expiring();
                    };
                    if let Ok(Known::Alive) = known {
                        tell(Doubt::Dispelled);
                    }
                    known
                }
                gone_now = gone.as_mut() => {
                    gone_now?;
                    gone.set(self.gone(lock, name));
                    let Ok(known) = timeout(bound.interval(), self.ask_about(lock, name)).await else { return expiring() };
                    known
                }
                known = async {
                    self.link.reaches(bound.asked + bound.interval()).await;
                    has_asked.set(true);
                    self.ask_about(lock, name).await
                } => known,
            };
            match known? {
                Known::Alive => {}
                Known::Gone => return Ok(Loss::Removed),
                Known::Over => return Ok(Loss::Expiring(Duration::ZERO)),
            }
        }
    }

    /// A session that is resumed is told to the leader at once: so that is what happens to it.
    async fn has_the_leader_hear_of_us(&self) {
        let session = self.link.session().await;
        self.link.give_up(&session, "the leader is to hear of us").await;
    }

    /// Whoever waited for long has hardly asked anything: before the turn is taken the session is made sure of. False if there
    /// was need to, so that everything may be different now.
    pub(super) async fn is_sure_of_its_session(&self) -> bool {
        let is_sure = self.bound.get().is_none_or(|bound| self.link.clock() + bound.interval() * 2 < bound.due());
        if !is_sure {
            self.has_the_leader_hear_of_us().await;
        }
        is_sure
    }

    /// Asks until it is answered whether our session lives, and our node with it.
    async fn ask_about(&self, lock: &LockPath, name: &NodeName) -> Result<Known, StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        loop {
            let session = self.link.session().await;
            let Some(bound) = self.bound.get().filter(|bound| bound.session == session.id()) else {
                return Ok(Known::Over);
            };
            let sent = self.link.clock();
            let question = async {
                if planted(Mistake::TrustsAMereLook) {
                    return match session.stat(&path).await? {
                        Some(_) => Err(Failure::Said(Refusal::BadVersion)),
                        None => Err(Failure::Said(Refusal::NoNode)),
                    };
                }
                session.delete(&path, Some(NO_VERSION)).await
            };
            match self.link.ask_within(bound.interval(), &session, question).await {
                Err(Failure::Said(Refusal::BadVersion)) => {
                    self.confirm(&session, sent);
                    return Ok(Known::Alive);
                }
                Ok(()) | Err(Failure::Said(Refusal::NoNode)) => return Ok(Known::Gone),
                Err(Failure::Said(refusal)) => return Err(self.refused(format!("to tell of {lock}"), &refusal)),
                Err(Failure::InDoubt(_)) => {}
            }
        }
    }

    /// Whether a majority agrees that a node of ours is not there; where we may not ask, what we saw must do.
    pub(super) async fn is_gone_for_all(&self, lock: &LockPath, name: &NodeName) -> bool {
        let path = format!("{}/{name}", self.directory(lock));
        loop {
            let session = self.link.session().await;
            match self.link.ask(&session, session.delete(&path, Some(NO_VERSION))).await {
                Err(Failure::Said(Refusal::BadVersion)) => return false,
                Ok(()) | Err(Failure::Said(_)) => return true,
                Err(Failure::InDoubt(_)) => {}
            }
        }
    }

    /// Asks for something in the same flight as whether the session lives.
    pub(super) async fn while_bound<T>(
        &self,
        session: &E::Session,
        lock: &LockPath,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let own = self.own.borrow().clone();
        let path = own.map(|name| format!("{}/{name}", self.directory(lock)));
        let sent = self.link.clock();
        let life = async {
            match &path {
                Some(path) => session.delete(path, Some(NO_VERSION)).await,
                None => Ok(()),
            }
        };
        let (life, answer) = tokio::join!(life, request);
        match life {
            Err(Failure::Said(Refusal::BadVersion)) => self.confirm(session, sent),
            // The listing will show it.
            Ok(()) | Err(Failure::Said(_)) => {}
            Err(Failure::InDoubt(cause)) => return Err(Failure::InDoubt(cause)),
        }
        answer
    }

    fn confirm(&self, session: &E::Session, sent: Duration) {
        if let Some(bound) = self.bound.get().filter(|bound| bound.session == session.id()) {
            self.bound.set(Some(bound.confirmed(sent, self.link.connected(session.id()), session.timeout())));
        }
    }
}
