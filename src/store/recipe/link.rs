//! The way to an ensemble: one session after the other, at whichever server answers, and the same session as long as the
//! servers keep it.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::planted::{Mistake, planted};
use crate::store::ensemble::{Ensemble, Failure, OpenError, Refusal, Session, SessionId};

/// How long a server may take to give us a session, where another could be tried instead, and where not. If none did it in time
/// they get twice as long, for they may all be slow.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const OPEN_TIMEOUT_ALONE: Duration = Duration::from_secs(8);
/// An answer that takes longer is taken for lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// After so much of it a person wants to know.
const SILENCE: Duration = Duration::from_secs(3);
/// Closing is a courtesy in the end: the server does the same when the session times out.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two attempts; none is made after a connection that was good for something.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub struct Link<E: Ensemble> {
    ensemble: E,
    state: Mutex<State<E::Session>>,
    /// What went wrong last.
    trouble: RefCell<String>,
    /// Whether the connection that we have, or had last, gave us any answer.
    is_answered: Cell<bool>,
    /// Whether a person was told that there is no connection, and before that, that there is no answer.
    is_told: Cell<bool>,
    is_told_of_silence: Cell<bool>,
    /// When the connection was asked for, by the ensemble's clock.
    connected: Cell<Option<(SessionId, Duration)>>,
    /// Whether our server may not have seen yet what others were told before we came.
    may_be_behind: Cell<bool>,
}

/// The session as far as we know it.
struct State<S: Session> {
    session: Option<Rc<S>>,
    /// A session that no server has called expired.
    resume: Option<S::Key>,
    /// Whether there never was one: then we cannot have seen anything that a server has not.
    is_first: bool,
    pause: Duration,
    /// How long a server may take.
    within: Duration,
}

impl<E: Ensemble> Link<E> {
    pub fn new(ensemble: E) -> Link<E> {
        let within = Duration::ZERO;
        let state = Mutex::new(State { session: None, resume: None, is_first: true, pause: Duration::ZERO, within });
        Link {
            ensemble,
            state,
            trouble: RefCell::default(),
            is_answered: Cell::new(true),
            is_told: Cell::default(),
            is_told_of_silence: Cell::default(),
            connected: Cell::default(),
            may_be_behind: Cell::new(true),
        }
    }

    pub fn place(&self) -> String {
        self.ensemble.servers().to_string()
    }

    /// The ensemble's.
    pub fn clock(&self) -> Duration {
        self.ensemble.clock()
    }

    /// When the connection that we have of this session was asked for.
    pub fn connected(&self, session: SessionId) -> Option<Duration> {
        self.connected.get().filter(|(connected, _)| *connected == session).map(|(_, asked)| asked)
    }

    /// The ensemble's.
    pub async fn reaches(&self, when: Duration) {
        self.ensemble.reaches(when).await;
    }

    /// What went wrong last, for a message that something did.
    pub fn trouble(&self) -> String {
        match self.trouble.borrow().as_str() {
            "" => "no answer".to_owned(),
            trouble => trouble.to_owned(),
        }
    }

    /// Closes the session.
    pub async fn close(self) {
        if let Some(session) = self.state.into_inner().session
            && let Ok(session) = Rc::try_unwrap(session)
        {
            session.close(CLOSE_TIMEOUT).await;
        }
    }

    /// A session with a live connection, however long that takes.
    ///
    /// # Cancellation
    /// May be dropped.
    pub async fn session(&self) -> Rc<E::Session> {
        let mut state = self.state.lock().await;
        loop {
            match &state.session {
                Some(session) if !session.is_over() => return Rc::clone(session),
                Some(session) => info!("lost the connection to {}", session.server()),
                None => {}
            }
            state.session = None;
            if self.is_answered.replace(false) {
                state.pause = Duration::ZERO;
            }
            if state.pause == LONGEST_PAUSE && !self.is_told.replace(true) {
                warn!("cannot reach {}: {}; trying on", self.ensemble.servers(), self.trouble());
            }
            sleep(self.jittered(state.pause)).await;
            state.pause = (state.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            let mut trying = pin!(self.try_all(&mut state));
            if timeout(SILENCE, trying.as_mut()).await.is_err() {
                if !self.is_told.get() && !self.is_told_of_silence.replace(true) {
                    warn!("{} does not answer; trying on", self.ensemble.servers());
                }
                trying.await;
            }
        }
    }

    /// Tries every server once, for no longer than that takes where one of them is quick; says whether there is a session now.
    ///
    /// # Cancellation
    /// May be dropped.
    pub async fn connect_once(&self) -> bool {
        let mut state = self.state.lock().await;
        self.is_answered.set(false);
        self.try_all(&mut state).await;
        state.session.is_some()
    }

    async fn try_all(&self, state: &mut State<E::Session>) {
        let servers = &self.ensemble.servers().servers;
        let shortest = if servers.len() == 1 { OPEN_TIMEOUT_ALONE } else { OPEN_TIMEOUT };
        let within = state.within.clamp(shortest, OPEN_TIMEOUT_ALONE);
        state.within = Duration::ZERO;
        let first = (self.ensemble.random() % servers.len() as u128) as usize;
        let (before, after) = servers.split_at(first);
        for server in after.iter().chain(before) {
            let mut asked = self.ensemble.clock();
            let opened = match self.ensemble.open(server, state.resume.as_ref(), within).await {
                Err(OpenError::Expired) => {
                    info!("{server} says that our session has expired");
                    state.resume = None;
                    asked = self.ensemble.clock();
                    self.ensemble.open(server, None, within).await
                }
                opened => opened,
            };
            let cause = match opened {
                Ok(session) => {
                    debug!("session {} at {server}", session.id());
                    self.connected.set(Some((session.id(), asked)));
                    state.resume = Some(session.key());
                    let caught_up = if state.is_first { Ok(()) } else { catch_up(&session, within).await };
                    self.may_be_behind.set(state.is_first);
                    state.is_first = false;
                    match caught_up {
                        Ok(()) => {
                            state.session = Some(Rc::new(session));
                            return;
                        }
                        Err(cause) => cause,
                    }
                }
                Err(OpenError::Expired) => "no session to be had".to_owned(),
                Err(OpenError::Failed(cause)) => cause,
            };
            debug!("{server}: {cause}");
            self.trouble.replace(if servers.len() == 1 { cause } else { format!("{server}: {cause}") });
        }
        state.within = within * 2;
    }

    /// Asks once, for an answer in time. What is in doubt ends the connection, so that the next request goes by a new one.
    ///
    /// # Cancellation
    /// As the request's.
    pub async fn ask<T>(
        &self,
        session: &Rc<E::Session>,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.ask_within(ANSWER_TIMEOUT, session, request).await
    }

    /// The same for an answer that is wanted sooner, or later.
    pub async fn ask_within<T>(
        &self,
        time: Duration,
        session: &Rc<E::Session>,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let sent = self.clock();
        let answer = match timeout(time, request).await {
            // It may have lain there while we stood still, and is not true any more.
            Ok(answer) if self.clock().saturating_sub(sent) <= time => answer,
            Ok(_) | Err(_) => Err(Failure::InDoubt(format!("no answer in {}", humantime::format_duration(time)))),
        };
        match &answer {
            Ok(_) | Err(Failure::Said(_)) => {
                self.is_answered.set(true);
                if self.is_told.replace(false) | self.is_told_of_silence.replace(false) {
                    warn!("connected to {} again", session.server());
                }
            }
            Err(Failure::InDoubt(cause)) => self.give_up(session, cause).await,
        }
        answer
    }

    /// Asks for something that changes nothing, again and again until it is answered. In the first session, as long as nothing
    /// was written in it, it is asked behind a barrier, in the same flight: whoever has just been told of a node must find it.
    ///
    /// # Cancellation
    /// May be dropped.
    pub async fn look<T>(&self, request: impl AsyncFn(&E::Session) -> Result<T, Failure>) -> Result<T, Refusal> {
        loop {
            let session = self.session().await;
            let asked = async {
                if !self.may_be_behind.get() {
                    return request(&session).await;
                }
                let (barrier, answer) = tokio::join!(session.sync("/"), request(&session));
                barrier?;
                self.may_be_behind.set(false);
                answer
            };
            match self.ask(&session, asked).await {
                Ok(value) => return Ok(value),
                Err(Failure::Said(refusal)) => return Err(refusal),
                Err(Failure::InDoubt(_)) => {}
            }
        }
    }

    /// Ends a session, so that nothing that was sent in it and never answered can happen any more. In doubt it may yet be
    /// there, and is resumed.
    ///
    /// # Cancellation
    /// May be dropped, which leaves it in doubt.
    pub async fn end(&self, session: Rc<E::Session>) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        state.session.take_if(|current| Rc::ptr_eq(current, &session));
        if let Ok(session) = Rc::try_unwrap(session)
            && session.close(OPEN_TIMEOUT).await
        {
            state.resume = None;
            return Ok(());
        }
        Err(Failure::InDoubt("it was not confirmed that our session has ended".to_owned()))
    }

    /// Our server has answered a write, so it has seen everything before that.
    pub fn is_up_to_date(&self) {
        self.may_be_behind.set(false);
    }

    /// Has the next request go by a new connection.
    pub async fn give_up(&self, session: &Rc<E::Session>, cause: &str) {
        debug!("{}: {cause}", session.server());
        self.trouble.replace(cause.to_owned());
        self.state.lock().await.session.take_if(|current| Rc::ptr_eq(current, session));
    }

    /// Half of it fixed, half of it random, so that waiters do not come back all at once.
    fn jittered(&self, pause: Duration) -> Duration {
        let share = (self.ensemble.random() % 1000) as u32;
        pause / 2 + pause / 2 * share / 1000
    }
}

/// We may have come to a server that has seen less than we have. Behind a sync it has seen all that; a server that does not
/// answer one would show us an old queue, without ourselves.
///
/// It has to be the first request of the connection, too. The client numbers requests anew in every connection, and servers pair
/// what was committed with who asked for it by session and number: they would take a write of the connection before for the
/// request of that number in this one. No write is ever the first, and the answer to a sync comes after all that was proposed.
async fn catch_up<S: Session>(session: &S, within: Duration) -> Result<(), String> {
    if planted(Mistake::LooksWithoutABarrier) {
        return Ok(());
    }
    match timeout(within, session.sync("/")).await {
        Ok(Ok(()) | Err(Failure::Said(_))) => Ok(()),
        Ok(Err(Failure::InDoubt(cause))) => Err(cause),
        Err(_) => Err("it is behind the others".to_owned()),
    }
}
