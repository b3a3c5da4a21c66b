//! Many contenders, every fault, and a judge, on a clock of their own: the real acquire and release code over an ensemble in
//! memory. A seed is a whole run; what it finds can be repeated to the letter.
//!
//! `cargo test simulation` tries ten thousand seeds; `contrib/simulate COUNT [FIRST]` any number of them, from any seed on.

#![allow(clippy::print_stdout, reason = "for those who run it by hand")]

mod contender;
mod judge;
mod nemesis;

use std::cell::RefCell;
use std::env;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use self::contender::Contender;
use self::judge::Judge;
use self::nemesis::Care;
use crate::planted::{Mistake, plant};
use crate::store::{Faults, MemoryEnsemble, Random};

/// Faults are made for so long.
const STORM: Duration = Duration::from_mins(1);
/// Everybody is through so long after the last fault, unless somebody waits for nothing.
const CALM: Duration = Duration::from_mins(20);

/// What everybody in one run shares.
struct World {
    ensemble: MemoryEnsemble,
    judge: RefCell<Judge>,
    random: RefCell<Random>,
}

impl World {
    fn below(&self, limit: u64) -> u64 {
        self.random.borrow_mut().below(limit)
    }

    fn up_to(&self, longest: Duration) -> Duration {
        self.random.borrow_mut().up_to(longest)
    }

    /// So many times in a hundred.
    fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn index(&self, length: usize) -> usize {
        self.random.borrow_mut().index(length)
    }

    fn log(&self, text: impl FnOnce() -> String) {
        self.judge.borrow_mut().log(text);
    }
}

/// Runs one seed to its end, and answers what was wrong with it. `log` hears what happens.
fn run(seed: u64, log: Option<&mut Vec<String>>) -> Result<(), String> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let everything = LocalSet::new();
    let (lines, verdict) = runtime.block_on(everything.run_until(world(seed, log.is_some())));
    if let Some(log) = log {
        *log = lines;
    }
    verdict
}

async fn world(seed: u64, is_logged: bool) -> (Vec<String>, Result<(), String>) {
    let mut random = Random(seed);
    let servers = if random.below(3) == 0 { 1 } else { 3 };
    let faults = Faults {
        latency: random.up_to(Duration::from_millis(50)),
        lag: random.up_to(Duration::from_secs(3)),
        lost_requests: random.below(51),
        lost_answers: random.below(81),
        late_requests: random.below(61),
        late: Duration::from_secs(20),
    };
    let longest = if random.below(2) == 0 { 35 } else { 5 };
    let session_timeout = Duration::from_secs(6 + random.below(longest));
    let ensemble = MemoryEnsemble::new(servers, session_timeout, Random(random.number()), faults);
    let judge = RefCell::new(Judge::new(ensemble.clone(), is_logged));
    let world = Rc::new(World { ensemble, judge, random: RefCell::new(random) });
    world.log(|| format!("{servers} servers, sessions of {session_timeout:?}, {faults:?}"));
    let contenders: Vec<Rc<Contender>> = (1..=3 + world.below(6)).map(|number| Contender::new(number, &world)).collect();
    let lives: Vec<_> = contenders.iter().map(|contender| contender.live(&world)).collect();
    let storm = tokio::task::spawn_local(nemesis::storm(Rc::clone(&world), contenders.clone()));
    let everybody = async {
        for life in lives {
            life.await;
        }
        storm.await.expect("it ends");
        // What is under way for a late landing, lands; and the sessions of the dead end.
        sleep(faults.late * 2 + session_timeout * 2).await;
        nemesis::clean_up(&world, Care::OfEverybody).await;
    };
    let with_an_operator = async {
        tokio::select! {
            biased;
            () = everybody => {}
            () = nemesis::look_after(&world) => {}
        }
    };
    if timeout(STORM + CALM, with_an_operator).await.is_err() {
        let waiting: Vec<u64> = contenders.iter().filter(|one| !one.is_done()).map(|one| one.number).collect();
        world.judge.borrow_mut().objects(|| format!("{waiting:?} never came to an end"));
    }
    world.judge.borrow_mut().looks_at_what_is_left();
    world.judge.replace(Judge::new(world.ensemble.clone(), false)).verdict()
}

/// Tries seeds on every core, and answers the first that fails with what was wrong.
fn first_failure(first: u64, count: u64, mistake: Option<Mistake>) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(first), Mutex::new(None::<(u64, String)>));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                plant(mistake);
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < first + count
                    && found.lock().expect("not poisoned").as_ref().is_none_or(|(failed, _)| *failed > seed)
                {
                    if let Err(what) = run(seed, None) {
                        let mut found = found.lock().expect("not poisoned");
                        if found.as_ref().is_none_or(|(failed, _)| *failed > seed) {
                            *found = Some((seed, what));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().expect("not poisoned")
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

#[test]
fn never_two_never_stuck_and_nothing_left_whatever_fails() {
    let (first, count) = (number("SIMULATE_FIRST", 0), number("SIMULATE_COUNT", 10_000));
    let started = std::time::Instant::now();
    if let Some((seed, what)) = first_failure(first, count, None) {
        let mut log = Vec::new();
        _ = run(seed, Some(&mut log));
        panic!("seed {seed}: {what}\n{}\nagain: contrib/simulate 1 {seed}", log.join("\n"));
    }
    println!("{count} seeds from {first} in {:?}", started.elapsed());
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..50 {
        let [mut one, mut two] = [Vec::new(), Vec::new()];
        assert_eq!(run(seed, Some(&mut one)), run(seed, Some(&mut two)));
        assert_eq!(run(seed, Some(&mut one)), run(seed, None));
        let parting = one.iter().zip(&two).find(|(one, two)| one != two);
        assert_eq!(parting, None, "seed {seed}");
        assert_eq!(one.len(), two.len(), "seed {seed}");
        assert!(one.len() > 10);
    }
}

#[test]
fn every_planted_mistake_is_found() {
    for mistake in [
        Mistake::IgnoresThePredecessor,
        Mistake::CreatesBlindlyAgain,
        Mistake::LooksWithoutABarrier,
        Mistake::ReleasesBeforeTheEnd,
        Mistake::DeletesOnlyOnce,
        Mistake::MissesAWakeUp,
        Mistake::TrustsAnOldSession,
        Mistake::TrustsAMereLook,
        Mistake::RunsWithoutAMark,
        Mistake::BuriesTheLiving,
        Mistake::BuriesWhoeverIsOrphaned,
        Mistake::BuriesTooEarly,
        Mistake::BreaksItsPromise,
    ] {
        let found = first_failure(0, 2000, Some(mistake));
        let (seed, what) = found.unwrap_or_else(|| panic!("nobody noticed {mistake:?}"));
        println!("{mistake:?}: seed {seed}: {what}");
    }
}
