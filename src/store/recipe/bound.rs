//! A contender that is bound to its session: how long others cannot be where we are.
//!
//! The leader ends a session that it has not heard of for the session's timeout. It hears of us by the server that we are
//! connected to, which tells it twice a tick whom it has heard; and by whatever it has to decide or to confirm for us. So what
//! counts is when we sent the last `sync` that was answered, for a mere look may be answered by a server that is cut off.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::Recipe;
use crate::clock;
use crate::lock::{Doubt, LockPath, Loss, NodeName, Store, StoreError};
use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, Session, SessionId};

/// A session, and how far it is to be trusted.
#[derive(Clone, Copy)]
pub struct Bound {
    pub session: SessionId,
    pub timeout: Duration,
    /// On the ensemble's clock: what was sent then has been confirmed.
    pub confirmed: Duration,
}

impl Bound {
    /// Between two requests that confirm the session.
    fn beat(&self) -> Duration {
        self.timeout / 8
    }

    /// How long after a confirmation the leader cannot have ended the session. It may know of us what is a beat older, and half a
    /// tick: no server that grants this session has a tick longer than a quarter of it, but for odd ones.
    fn trusted(&self) -> Duration {
        self.timeout * 3 / 4
    }

    fn safe_until(&self) -> Duration {
        self.confirmed + self.trusted()
    }

    /// Whether two confirmations may be missed before the notice has to be given.
    pub fn leaves_time_for(&self, notice: Duration) -> bool {
        notice + self.beat() * 2 <= self.trusted()
    }
}

/// What one request told.
enum Beat {
    Confirmed,
    Gone,
    /// The servers have ended the session.
    Over,
}

impl<E: Ensemble> Recipe<E> {
    /// [`Store::lost`] of a contender that is bound to a session.
    pub(super) async fn lost_with_its_session(
        &self,
        lock: &LockPath,
        name: &NodeName,
        notice: Duration,
        tell: &mut dyn FnMut(Doubt),
    ) -> Result<Loss, StoreError> {
        let mut gone = pin!(self.gone(lock, name));
        if planted(Mistake::TrustsAnOldSession) {
            return gone.await.map(|()| Loss::Removed);
        }
        loop {
            let Some(bound) = self.bound.get() else { return Ok(Loss::Expiring(Duration::ZERO)) };
            let due = bound.safe_until().saturating_sub(notice);
            let beat = tokio::select! {
                biased;
                () = self.reaches(due) => None,
                gone = gone.as_mut() => match gone {
                    Ok(()) => Some(match timeout(bound.beat(), self.link.session()).await {
                        Ok(session) if session.id() == bound.session => Beat::Gone,
                        Ok(_) | Err(_) => Beat::Over,
                    }),
                    Err(error) => return Err(error),
                },
                beat = async {
                    self.reaches(bound.confirmed + bound.beat()).await;
                    self.beat(lock, name).await
                } => Some(beat?),
            };
            let beat = match beat {
                Some(beat) => beat,
                // We were away, not the servers: they may know us yet.
                None if self.link.clock() > due + bound.beat() => {
                    tell(Doubt::Arisen);
                    match timeout(bound.beat(), self.beat(lock, name)).await {
                        Ok(beat) => {
                            let beat = beat?;
                            if let Beat::Confirmed = beat {
                                tell(Doubt::Dispelled);
                            }
                            beat
                        }
                        Err(_) => return Ok(self.expiring(bound)),
                    }
                }
                None => return Ok(self.expiring(bound)),
            };
            match beat {
                Beat::Confirmed => {}
                Beat::Gone => return Ok(Loss::Removed),
                Beat::Over => return Ok(Loss::Expiring(Duration::ZERO)),
            }
        }
    }

    fn expiring(&self, bound: Bound) -> Loss {
        Loss::Expiring(bound.safe_until().saturating_sub(self.link.clock()))
    }

    /// Asks until it is answered whether our session lives, and our node with it.
    async fn beat(&self, lock: &LockPath, name: &NodeName) -> Result<Beat, StoreError> {
        let path = format!("{}/{name}", self.directory(lock));
        loop {
            let session = self.link.session().await;
            if self.bound.get().is_none_or(|bound| bound.session != session.id()) {
                return Ok(Beat::Over);
            }
            match self.link.ask(&session, self.confirmed(&session, session.stat(&path))).await {
                Ok(Some(_)) => return Ok(Beat::Confirmed),
                Ok(None) => return Ok(Beat::Gone),
                Err(Failure::InDoubt(_)) => {}
                Err(Failure::Said(refusal)) => return Err(self.refused(format!("to look at {lock}"), &refusal)),
            }
        }
    }

    /// Asks for something behind a barrier, which confirms the session.
    pub(super) async fn confirmed<T>(
        &self,
        session: &E::Session,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let sent = self.link.clock();
        let (barrier, answer) = tokio::join!(session.sync("/"), request);
        barrier?;
        let answer = answer?;
        if let Some(bound) = self.bound.get().filter(|bound| bound.session == session.id()) {
            self.bound.set(Some(Bound { confirmed: sent.max(bound.confirmed), timeout: session.timeout(), ..bound }));
        }
        Ok(answer)
    }

    async fn reaches(&self, when: Duration) {
        clock::reaches(|| self.link.clock(), when).await;
    }
}
