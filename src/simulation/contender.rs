//! One who wants a lock, and works under it.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::World;
use crate::lock::{
    AcquireError, Claim, Doubt, Expected, Happening, Identifier, Lifetime, Limit, LockPath, Loss, Mode, NodePath, Owner,
    Patience, Place, Reading, Removal, Reports, Store, StoreError, acquire, hold,
};
use crate::store::Memory;

/// How long it says what it waits for.
const TICK: Duration = Duration::from_secs(3);
/// No outage is longer.
const RELEASE_TIMEOUT: Duration = Duration::from_mins(10);
/// What a command does to end when it is asked to.
const CLEANING_UP: Duration = Duration::from_millis(300);
/// The longest a command outlives its wrapper.
const SURVIVING: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(200);

/// What becomes of the command of a wrapper that is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Command {
    DiesToo,
    Survives,
}

pub struct Contender {
    pub number: u64,
    lock: LockPath,
    mode: Mode,
    lifetime: Lifetime,
    rounds: u64,
    round: Cell<u64>,
    /// Asked to end.
    term: Notify,
    is_asked: Cell<bool>,
    frozen_until: Cell<Instant>,
    is_done: Cell<bool>,
    /// What a life that is cut short leaves running.
    is_dead: Cell<bool>,
    is_survived: Cell<bool>,
    /// Whether its host does not come back when it dies.
    pub is_lost: Cell<bool>,
    pub node: Cell<Option<NodePath>>,
    life: Cell<Option<JoinHandle<()>>>,
}

impl Contender {
    pub fn new(number: u64, world: &World) -> Rc<Contender> {
        let name = if world.chance(80) { "/lock" } else { "/other" };
        let lock = LockPath::parse(name).expect("a path");
        world.judge.borrow_mut().knows(&lock);
        let mode = match world.below(10) {
            0..5 => Mode::Lock,
            5..8 => Mode::Read,
            _ => Mode::Write,
        };
        let notice = CLEANING_UP + Duration::from_secs(1);
        let lifetime = match world.below(10) {
            0..2 => Lifetime::Explicit,
            2..4 => Lifetime::Session { notice },
            4..7 => Lifetime::Promised { after: Duration::from_secs(5 + world.below(40)), notice },
            _ => Lifetime::Spawned,
        };
        Rc::new(Contender {
            number,
            lock,
            mode,
            lifetime,
            rounds: 1 + world.below(3),
            round: Cell::new(0),
            term: Notify::new(),
            is_asked: Cell::new(false),
            frozen_until: Cell::new(Instant::now()),
            is_done: Cell::new(false),
            is_dead: Cell::new(false),
            is_survived: Cell::new(false),
            is_lost: Cell::new(world.chance(50)),
            node: Cell::default(),
            life: Cell::default(),
        })
    }

    /// Which client of the servers it is now.
    pub fn client(&self) -> u64 {
        self.number * 10 + self.round.get()
    }

    /// Whether its lock lives by its session.
    pub fn is_bound(&self) -> bool {
        matches!(self.lifetime, Lifetime::Session { .. })
    }

    fn has_promised(&self) -> bool {
        matches!(self.lifetime, Lifetime::Promised { .. })
    }

    /// Whether somebody else may remove its node once its session has ended.
    fn is_owned(&self) -> bool {
        self.lifetime != Lifetime::Explicit
    }

    pub fn is_done(&self) -> bool {
        self.is_done.get()
    }

    /// Starts its life, and waits for its end.
    pub fn live(self: &Rc<Self>, world: &Rc<World>) -> impl Future<Output = ()> + use<> {
        let (me, whole) = (Rc::clone(self), Rc::clone(world));
        let life = async move {
            for round in 0..me.rounds {
                sleep(whole.up_to(Duration::from_secs(20))).await;
                me.round.set(round);
                me.once(&whole, round).await;
                if me.is_asked.get() {
                    break;
                }
            }
            me.is_done.set(true);
        };
        let frozen = Frozen { me: Rc::clone(self), world: Rc::clone(world), life: Box::pin(life), thaw: None };
        let life = tokio::task::spawn_local(frozen);
        self.life.set(Some(life));
        let me = Rc::clone(self);
        async move {
            if let Some(life) = me.life.take()
                && let Err(error) = life.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    fn identifier(&self, round: u64) -> String {
        format!("{} for the {round}. time", self.number)
    }

    async fn once(&self, world: &World, round: u64) {
        let identifier = self.identifier(round);
        let patience = world.up_to(Duration::from_secs(40));
        let (limit, how_long) = match world.below(10) {
            0..6 => (Limit::Never, "for as long as it takes".to_owned()),
            6..9 => (Limit::At(Instant::now() + patience), format!("within {patience:?}")),
            _ => (Limit::Once(Instant::now() + Duration::from_secs(15)), "at once".to_owned()),
        };
        // What can be lost with a session is worth a longer look.
        let is_long = world.chance(if self.is_bound() || self.has_promised() { 50 } else { 10 });
        let work = match self.has_promised() {
            true if is_long => Duration::from_secs(80),
            _ if is_long => Duration::from_secs(40),
            _ => world.up_to(Duration::from_secs(4)),
        };
        world.log(|| format!("{} {:?} {:?} wants {} {how_long}", self.number, self.mode, self.lifetime, self.lock));
        // What was started and not yet ended, and dies with us if we are killed.
        let death = Death { me: self, world, identifier: &identifier, is_near: Cell::new(true) };
        let store = loop {
            let far = Limit::At(Instant::now() + Duration::from_hours(1));
            let ensemble = world.ensemble.seen_by(self.client());
            tokio::select! {
                biased;
                () = self.asked() => break None,
                store = ensemble.connect(far, RELEASE_TIMEOUT) => if let Ok(store) = store { break Some(store) },
            }
        };
        if let Some(store) = store {
            self.contend(world, &store, &identifier, limit, work).await;
            store.close().await;
        }
        death.is_near.set(false);
        world.log(|| format!("{} is through", self.number));
        if !self.is_bound() {
            world.judge.borrow_mut().ends(self.number, self.client(), &identifier, &self.lock);
        }
    }

    fn owner(&self) -> Owner {
        let pid = u32::try_from(self.client()).expect("a small number");
        Owner {
            host: "memory".to_owned(),
            boot: "0".to_owned(),
            pid: Some(pid),
            started: SystemTime::UNIX_EPOCH,
            command: "work".to_owned(),
        }
    }

    async fn contend(&self, world: &World, store: &Memory, identifier: &str, limit: Limit, work: Duration) {
        let claim = Claim::new(self.mode, self.lifetime, Identifier(identifier.as_bytes().to_vec()));
        let claim = match self.lifetime {
            Lifetime::Explicit => claim,
            Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Session { .. } => claim.owned_by(self.owner()),
        };
        let mut observer = |happening: Happening<'_>| match happening {
            Happening::Waiting { predecessor, .. } => {
                world.log(|| format!("{} is behind {}", self.number, predecessor.sequence()));
            }
            Happening::Evicted { node, .. } => {
                world.judge.borrow_mut().is_evicted(self.number, self.client(), &node, self.is_owned());
            }
            Happening::NearlyUsedUp { .. } | Happening::Queued { .. } | Happening::GivenUp { .. } => {}
            Happening::LeftBehind { error } => {
                world.judge.borrow_mut().objects(|| format!("{} left something behind: {error}", self.number));
            }
        };
        let mut stop = pin!(self.asked());
        let patience = Patience::new(limit, stop.as_mut());
        let acquired =
            acquire(store, &self.lock, claim, &[], patience, Reports::Predecessor { every: TICK }, &mut observer).await;
        match acquired {
            Ok(place) => self.hold(world, store, identifier, &place, work).await,
            Err(AcquireError::Stopped(_)) if self.is_asked.get() => {}
            Err(AcquireError::TimedOut { .. }) => match limit {
                Limit::Never => world.judge.borrow_mut().objects(|| format!("{} timed out without a limit", self.number)),
                Limit::At(until) | Limit::Once(until) => {
                    if Instant::now() < until && !matches!(limit, Limit::Once(_)) {
                        world.judge.borrow_mut().objects(|| format!("{} timed out too early", self.number));
                    }
                }
            },
            Err(AcquireError::NoAnswer(_)) if matches!(limit, Limit::Once(_)) => {}
            Err(error) => {
                world.judge.borrow_mut().objects(|| format!("{} could not have it: {error}", self.number));
            }
        }
    }

    async fn hold(&self, world: &World, store: &Memory, identifier: &str, place: &Place, work: Duration) {
        let node = self.lock.node(&place.name);
        self.node.set(Some(node.clone()));
        let released = match self.lifetime {
            Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Session { .. } => {
                hold(store, &node, self.work(world, store, identifier, &node, work)).await.1
            }
            Lifetime::Explicit => self.unlock(world, identifier, &node, work).await,
        };
        self.node.set(None);
        world.log(|| format!("{} released: {:?}", self.number, released.as_ref().map_err(|_| "it failed")));
        match released {
            Ok(Removal::Removed) => {}
            Ok(Removal::Missing) if world.judge.borrow().was_taken(self.client(), &node) => {}
            Ok(Removal::Missing)
                if self.is_bound() && world.ensemble.at_the_servers(|servers| servers.has_lost_a_session(self.client())) => {}
            // It goes with its session, or the judge will find it in the end.
            Ok(Removal::LeftToSession) if self.is_bound() => {}
            Ok(Removal::Missing | Removal::Changed | Removal::LeftToSession) => {
                world.judge.borrow_mut().objects(|| format!("the node of {} had vanished", self.number));
            }
            Err(error) => world.judge.borrow_mut().objects(|| format!("{} could not release: {error}", self.number)),
        }
    }

    /// The command: it does something now and then, and takes a moment to end when it is asked to. While the lock is in doubt
    /// it stands still.
    async fn work(&self, world: &World, store: &Memory, identifier: &str, node: &NodePath, work: Duration) {
        let (doubts, mut doubt) = watch::channel(Doubt::Dispelled);
        let mut tell = |doubt| {
            world.log(|| format!("{}: doubt {doubt:?}", self.number));
            world.judge.borrow_mut().freezes(self.number, doubt == Doubt::Arisen);
            _ = doubts.send(doubt);
        };
        let mut lost = pin!(store.lost(&node.lock, &node.name, self.lifetime, &mut tell));
        let mut has_started = false;
        let mut left = work;
        let mut is_asked = false;
        let mut grace = Duration::ZERO;
        while !left.is_zero() {
            tokio::select! {
                biased;
                lost = lost.as_mut() => {
                    world.log(|| format!("{} has lost its lock: {lost:?}", self.number));
                    match lost {
                        Ok(Loss::Removed) => {
                            self.was_removed(world, node);
                            grace = CLEANING_UP;
                        }
                        Ok(Loss::Expiring(within)) => {
                            grace = CLEANING_UP.min(within);
                            let is_alive = !world.ensemble.at_the_servers(|servers| servers.has_lost_a_session(self.client()))
                                && !world.judge.borrow().was_taken(self.client(), node);
                            world.judge.borrow_mut().is_stopped(self.number, is_alive);
                        }
                        Err(error) => world.judge.borrow_mut().objects(|| format!("{}: {error}", self.number)),
                    }
                    break;
                }
                () = self.asked(), if !is_asked => {
                    is_asked = true;
                    left = if has_started { left.min(CLEANING_UP) } else { Duration::ZERO };
                }
                () = async {
                    _ = doubt.wait_for(|doubt| *doubt == Doubt::Dispelled).await;
                    sleep(if has_started { left.min(STEP) } else { Duration::ZERO }).await;
                } => match has_started {
                    // It arose while this step was under way.
                    _ if *doubt.borrow() == Doubt::Arisen => {}
                    true => {
                        left = left.saturating_sub(STEP);
                        world.judge.borrow_mut().works(self.number);
                    }
                    false => {
                        has_started = true;
                        world.judge.borrow_mut().enters(self.number, self.client(), identifier, node, self.mode.kind());
                    }
                },
            }
        }
        if has_started && !grace.is_zero() {
            world.log(|| format!("{} cleans up for {grace:?}", self.number));
            world.judge.borrow_mut().freezes(self.number, false);
            let end = Instant::now() + grace;
            sleep_until(end).await;
            // Who was frozen meanwhile is killed on waking.
            if Instant::now() == end {
                world.judge.borrow_mut().works(self.number);
            }
        }
        world.judge.borrow_mut().leaves(self.number);
    }

    fn was_removed(&self, world: &World, node: &NodePath) {
        let was_taken = world.judge.borrow().was_taken(self.client(), node);
        if !was_taken {
            world.judge.borrow_mut().objects(|| format!("{} lost its node, which nobody removed", self.number));
        }
    }

    /// A lock that belongs to nobody, until somebody else unlocks it.
    async fn unlock(&self, world: &World, identifier: &str, node: &NodePath, work: Duration) -> Result<Removal, StoreError> {
        world.judge.borrow_mut().enters(self.number, self.client(), identifier, node, self.mode.kind());
        sleep(work).await;
        let store = world.ensemble.seen_by(self.client()).connect(Limit::Never, RELEASE_TIMEOUT).await;
        world.judge.borrow_mut().leaves(self.number);
        let store = match store {
            Ok(store) => store,
            Err(error) => {
                world.judge.borrow_mut().excuses(identifier);
                world.log(|| format!("{} cannot unlock: {error}", self.number));
                return Ok(Removal::Removed);
            }
        };
        let reading = store.read(&node.lock, std::slice::from_ref(&node.name)).await?.pop();
        let released = match reading {
            Some(Reading::There(contender)) => store.leave(&node.lock, &node.name, Expected::Version(contender.version)).await,
            Some(Reading::Missing | Reading::Forbidden) | None => Ok(Removal::Missing),
        };
        store.close().await;
        released
    }

    /// Ready once it was asked to end.
    async fn asked(&self) {
        while !self.is_asked.get() {
            self.term.notified().await;
        }
    }

    pub fn ask_to_end(&self) {
        self.is_asked.set(true);
        self.term.notify_waiters();
    }

    /// `kill -9`, of the command too; or not, where it does not die with its wrapper.
    pub fn kill(self: &Rc<Self>, world: &Rc<World>, command: Command) {
        let Some(life) = self.life.take() else { return };
        self.is_dead.set(true);
        self.is_done.set(true);
        let is_frozen = self.frozen_until.get() > Instant::now();
        let is_left = command == Command::Survives && self.lifetime == Lifetime::Spawned && !is_frozen;
        if is_left && world.judge.borrow().is_inside(self.number) {
            let (me, world, time) = (Rc::clone(self), Rc::clone(world), world.up_to(SURVIVING));
            let identifier = self.identifier(self.round.get());
            self.is_survived.set(true);
            world.judge.borrow_mut().survives(&identifier, true);
            tokio::task::spawn_local(async move {
                let end = Instant::now() + time;
                while Instant::now() < end {
                    sleep(STEP).await;
                    world.judge.borrow_mut().works(me.number);
                }
                let mut judge = world.judge.borrow_mut();
                judge.leaves(me.number);
                judge.survives(&identifier, false);
            });
        }
        life.abort();
    }

    /// Stops it and its command for a time.
    pub fn freeze(&self, world: &World, time: Duration) {
        self.frozen_until.set(Instant::now() + time);
        world.ensemble.at_the_servers(|servers| servers.freeze(self.client(), time));
        world.judge.borrow_mut().freezes(self.number, true);
    }
}

/// Dropped before it was through: it was killed.
struct Death<'c> {
    me: &'c Contender,
    world: &'c World,
    identifier: &'c str,
    is_near: Cell<bool>,
}

impl Drop for Death<'_> {
    fn drop(&mut self) {
        if !self.is_near.get() {
            return;
        }
        let mut judge = self.world.judge.borrow_mut();
        judge.log(|| format!("{} was killed", self.me.number));
        if !self.me.is_survived.get() {
            judge.leaves(self.me.number);
        }
        if self.me.is_lost.get() {
            judge.loses(self.identifier);
        }
        // What is bound to its session goes with it, without anybody's help.
        if !self.me.is_bound() {
            judge.excuses(self.identifier);
        }
    }
}

/// A life that stands still at times.
struct Frozen<F> {
    me: Rc<Contender>,
    world: Rc<World>,
    life: Pin<Box<F>>,
    thaw: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for Frozen<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let until = self.me.frozen_until.get();
        if until > Instant::now() {
            let thaw = self.thaw.insert(Box::pin(sleep_until(until)));
            _ = thaw.as_mut().poll(context);
            return Poll::Pending;
        }
        if self.thaw.take().is_some() {
            self.world.judge.borrow_mut().freezes(self.me.number, false);
        }
        self.life.as_mut().poll(context)
    }
}
