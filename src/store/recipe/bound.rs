//! A contender that its owner may work under only as long as he can prove something to himself: how long others cannot be where
//! he is.
//!
//! One that is bound to its session: the leader ends a session that it has not heard of for the session's timeout. It hears of it
//! when it is opened or resumed, and else by the server that we are connected to, which tells it twice a tick whom it has heard;
//! not by what it has to decide for us. What a server answers by itself proves nothing, for it may be cut off; nor does a `sync`,
//! which a leader answers that is none any more. So a question that a majority has to agree to proves that half a tick before the
//! leader was told of us.
//!
//! One whose owner has promised to stop when he is cut off: others count for how long his marker has been missing. So a question
//! that a majority has to agree to proves that it was there when we asked.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use super::Recipe;
use super::owned::Vouching;
use crate::lock::{Doubt, LockPath, Loss, NodeName, Store, StoreError};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, Operation, Refusal, Session, SessionId, Transacted};

/// No node is ever written so often: a delete of this version is decided, and does nothing.
const NO_VERSION: i32 = i32::MAX;
/// Between two questions whether a marker is there.
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);

/// What we work under, and how far it is to be trusted. Times are of the ensemble's clock.
#[derive(Clone, Copy)]
pub struct Bound {
    pub to: Tie,
    /// How long before others can be where we are whoever works under it has to know.
    notice: Duration,
    /// Until so long after it was proved nobody else can be.
    lasts: Duration,
    /// Between two questions, and how long an answer may take.
    interval: Duration,
    /// When what has to be proved was true.
    proved: Duration,
    /// What was sent then was answered.
    asked: Duration,
}

/// What it is bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    Session(SessionId),
    /// A marker, in whichever session: so we have promised.
    Promise,
}

impl Bound {
    /// To a session, by a connection that was asked for at this time.
    pub fn to_session(session: SessionId, timeout: Duration, notice: Duration, connected: Duration) -> Bound {
        let bound = Bound {
            to: Tie::Session(session),
            notice,
            lasts: Duration::ZERO,
            interval: Duration::ZERO,
            proved: connected,
            asked: connected,
        };
        bound.with_sessions_of(timeout)
    }

    /// To the promise to stop after so long, before a marker was asked for.
    pub fn to_promise(after: Duration, notice: Duration, now: Duration) -> Bound {
        let interval = (after / 8).min(LONGEST_INTERVAL);
        Bound { to: Tie::Promise, notice, lasts: after, interval, proved: now, asked: now }
    }

    /// The interval is more than half a tick: no server that grants such a session has a tick longer than a quarter of it, but for
    /// odd ones.
    fn with_sessions_of(self, timeout: Duration) -> Bound {
        Bound { lasts: timeout * 7 / 8, interval: timeout / 8, ..self }
    }

    /// Until then nobody else can be where we are.
    pub fn safe_until(&self) -> Duration {
        self.proved + self.lasts
    }

    /// How long an answer may take while nobody works. Who has promised little time is not to be stopped for a slow way.
    fn in_doubt(&self) -> Duration {
        match self.to {
            Tie::Session(_) => self.interval,
            Tie::Promise => self.interval.max(LONGEST_INTERVAL / 2),
        }
    }

    /// When the notice has to be given.
    fn due(&self) -> Duration {
        self.safe_until().saturating_sub(self.notice)
    }

    /// Whether two questions may stay unanswered before the notice has to be given.
    pub fn leaves_time(&self) -> bool {
        self.notice.saturating_add(self.interval * 3) <= self.lasts
    }

    /// With a question that was sent then, and answered, over a connection to such a session that was asked for at that time.
    fn confirmed(self, sent: Duration, connected: Option<Duration>, timeout: Duration) -> Bound {
        match self.to {
            Tie::Promise => Bound { proved: sent, asked: sent, ..self },
            Tie::Session(_) => {
                let bound = Bound { proved: self.proved.max(connected.unwrap_or_default()), ..self.with_sessions_of(timeout) };
                match bound.asked + bound.interval <= sent {
                    true => Bound { proved: bound.proved.max(bound.asked), asked: sent, ..bound },
                    false => bound,
                }
            }
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
    /// [`Store::lost`] of a contender that is bound to something.
    pub(super) async fn lost_with_what_it_is_bound_to(
        &self,
        lock: &LockPath,
        name: &NodeName,
        tell: &mut dyn FnMut(Doubt),
    ) -> Result<Loss, StoreError> {
        let mut gone = pin!(self.gone(lock, name));
        let trusts = match self.bound.get().map(|bound| bound.to) {
            Some(Tie::Session(_)) => planted(Mistake::TrustsAnOldSession),
            Some(Tie::Promise) => planted(Mistake::BreaksItsPromise),
            None => false,
        };
        if trusts {
            return gone.await.map(|()| Loss::Removed);
        }
        loop {
            let Some(bound) = self.bound.get() else { return Ok(Loss::Expiring(Duration::ZERO)) };
            let has_asked = Cell::new(false);
            let expiring = || Ok(Loss::Expiring(bound.safe_until().saturating_sub(self.link.clock())));
            let known = tokio::select! {
                biased;
                () = self.link.reaches(bound.due()) => {
                    if has_asked.get() && self.link.clock() <= bound.due() + bound.interval / 4 {
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
                    let Ok(known) = timeout(bound.in_doubt(), asked).await else {
                        if self.link.clock() > began + bound.in_doubt() * 2 {
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
                    let Ok(known) = timeout(bound.interval, self.ask_about(lock, name)).await else { return expiring() };
                    known
                }
                known = async {
                    self.link.reaches(bound.asked + bound.interval).await;
                    has_asked.set(true);
                    self.ask_about(lock, name).await
                } => known,
            };
            let known = match known {
                // There is no time left to find out.
                Err(_) if self.link.clock() >= bound.due() => return expiring(),
                known => known?,
            };
            match known {
                Known::Alive => {}
                // Who has promised may have been taken for dead: others may be where we are.
                Known::Gone if bound.to == Tie::Promise && self.link.clock() >= bound.due() => return expiring(),
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

    /// Whoever waited for long has hardly asked anything: before the turn is taken it is made sure of what it is bound to. False if
    /// there was need to, so that everything may be different now.
    pub(super) async fn is_sure(&self, lock: &LockPath, name: &NodeName) -> Result<bool, StoreError> {
        let Some(bound) = self.bound.get() else { return Ok(true) };
        if self.link.clock() + bound.interval * 2 < bound.due() {
            return Ok(true);
        }
        match bound.to {
            Tie::Session(_) => self.has_the_leader_hear_of_us().await,
            Tie::Promise => _ = self.ask_about(lock, name).await?,
        }
        Ok(false)
    }

    /// Asks until it is answered whether what we are bound to lasts, and our node with it.
    async fn ask_about(&self, lock: &LockPath, name: &NodeName) -> Result<Known, StoreError> {
        loop {
            let session = self.link.session().await;
            let Some(bound) = self.bound.get() else { return Ok(Known::Over) };
            let sent = self.link.clock();
            let asked = match bound.to {
                Tie::Session(id) if id != session.id() => return Ok(Known::Over),
                Tie::Session(_) => self.ask_about_its_session(&session, bound.interval, lock, name).await,
                Tie::Promise => self.ask_about_its_marker(&session, bound.interval, lock, name).await,
            };
            match asked {
                Ok(Some(known)) => {
                    if let Known::Alive = known {
                        self.confirm(&session, sent);
                    }
                    return Ok(known);
                }
                Ok(None) | Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(refusal)) => return Err(self.refused(format!("to tell of {lock}"), &refusal)),
            }
        }
    }

    async fn ask_about_its_session(
        &self,
        session: &Rc<E::Session>,
        within: Duration,
        lock: &LockPath,
        name: &NodeName,
    ) -> Result<Option<Known>, Failure> {
        let path = format!("{}/{name}", self.directory(lock));
        let question = async {
            if planted(Mistake::TrustsAMereLook) {
                return match session.stat(&path).await? {
                    Some(_) => Err(Failure::Said(Refusal::BadVersion)),
                    None => Err(Failure::Said(Refusal::NoNode)),
                };
            }
            session.delete(&path, Some(NO_VERSION)).await
        };
        match self.link.ask_within(within, session, question).await {
            Err(Failure::Said(Refusal::BadVersion)) => Ok(Some(Known::Alive)),
            Ok(()) | Err(Failure::Said(Refusal::NoNode)) => Ok(Some(Known::Gone)),
            Err(failure) => Err(failure),
        }
    }

    /// None if it was missing: the next question makes it again, if our node is there.
    async fn ask_about_its_marker(
        &self,
        session: &Rc<E::Session>,
        within: Duration,
        lock: &LockPath,
        name: &NodeName,
    ) -> Result<Option<Known>, Failure> {
        let Some(own) = self.own() else { return Ok(Some(Known::Gone)) };
        let Some(vouched) = &own.vouched else { return Ok(Some(Known::Gone)) };
        let is_vouched = match self.vouch(session).await? {
            Vouching::Done => true,
            Vouching::NotNow => false,
            Vouching::Gone => return Ok(Some(Known::Gone)),
        };
        let question = vec![
            Operation::Check { path: format!("{}/{name}", self.directory(lock)) },
            Operation::Delete { path: self.marker(vouched.id()), version: Some(NO_VERSION) },
        ];
        match self.link.ask_within(within, session, session.transact(question)).await? {
            Transacted::Refused { at: 0, why: Refusal::NoNode } => Ok(Some(Known::Gone)),
            Transacted::Refused { at: 1, why: Refusal::BadVersion } => Ok(Some(Known::Alive)),
            Transacted::Done(_) | Transacted::Refused { at: 1, why: Refusal::NoNode } if is_vouched => {
                vouched.is_not_marked();
                Ok(None)
            }
            Transacted::Refused { why, .. } => Err(Failure::Said(why)),
            Transacted::Done(_) => Err(Failure::Said(Refusal::NoNode)),
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
        let path = self.own().map(|own| format!("{}/{}", self.directory(lock), own.name));
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
        let is_of_it = |bound: &Bound| match bound.to {
            Tie::Session(id) => id == session.id(),
            Tie::Promise => true,
        };
        if let Some(bound) = self.bound.get().filter(is_of_it) {
            self.bound.set(Some(bound.confirmed(sent, self.link.connected(session.id()), session.timeout())));
        }
    }
}
