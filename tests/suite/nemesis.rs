//! Many contenders, and a nemesis that breaks servers, connections and wrappers under them. The judge looks at what is left.
//!
//! What is done, and after how long, follows from a seed that a failing test names; when it happens to whom does not.
//! `NEMESIS_SEEDS=1,2,3` tries others.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use syncd_spawn::store::Random;
use tempfile::TempDir;

use super::bench::{Bench, Ended, LIMIT, Run, kill_tree, send};
use super::interop;
use super::journal::age;
use super::judge::{self, OnTerm, Outcome, Plan, Victim};
use super::proxy::{Fate, Proxy, Request};
use super::relay::Relay;
use super::zookeeper::{Ensemble, Server};

const LOCK: &str = "/contended";
const WORKERS: u64 = 5;
/// So many must enter after the last fault.
const MOVES_ON: usize = 10;
/// A session lasts four seconds, or one and a half.
const SHORT: &str = "tickTime=500\nmaxSessionTimeout=4000";
const SHORTER: &str = "tickTime=250\nmaxSessionTimeout=1500";
const BEYOND_SHORT: Duration = Duration::from_secs(5);

struct Dice(Random);

impl Dice {
    fn one_in(&mut self, number: u64) -> bool {
        self.0.below(number) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.index(of.len())]
    }

    fn millis(&mut self, end: u64) -> Duration {
        Duration::from_millis(self.0.below(end))
    }

    /// Lets the others go on until some moment.
    fn pause(&mut self, end: u64) {
        thread::sleep(self.millis(end));
    }
}

/// Names the seed if the test fails.
struct Seed(u64);

impl Drop for Seed {
    #[allow(clippy::print_stderr, reason = "a failing test says it")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the seed was {}", self.0);
        }
    }
}

fn seeds() -> Vec<Seed> {
    let seeds = std::env::var("NEMESIS_SEEDS").unwrap_or_else(|_| "1".to_owned());
    seeds.split(',').map(|seed| Seed(seed.trim().parse().expect("a number"))).collect()
}

/// Where contenders contend for one lock, and what is written down about them.
struct Arena {
    /// Comes to the servers directly.
    bench: Bench,
    directory: TempDir,
    outcomes: Mutex<Vec<Outcome>>,
    /// The wrappers that run, by their numbers. Locked while one is found to have ended: a pid in here is nobody else's.
    running: Mutex<BTreeMap<u32, i32>>,
    next: AtomicU32,
    /// When the nemesis was done and everything was well again.
    calm: OnceLock<Instant>,
}

impl Arena {
    fn new(servers: &str) -> Arena {
        Arena {
            bench: Bench::on(servers),
            directory: tempfile::tempdir().expect("a temporary directory"),
            outcomes: Mutex::default(),
            running: Mutex::default(),
            next: AtomicU32::new(1),
            calm: OnceLock::new(),
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u32, i32>> {
        self.running.lock().expect("not poisoned")
    }

    fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::SeqCst)
    }

    fn calm_plan(&self, kind: &'static str) -> Plan {
        Plan::calm(self.number(), kind)
    }

    fn random_plan(&self, dice: &mut Dice) -> Plan {
        Plan {
            number: self.number(),
            kind: dice.pick(&["lock", "rlock", "rlock", "wlock"]),
            patience: dice.one_in(5).then(|| Duration::from_millis(100) + dice.millis(1500)),
            term: dice.one_in(3).then(|| dice.millis(400)),
            on_term: dice.pick(&[OnTerm::CleanUp, OnTerm::Ignore]),
            kill: None,
        }
    }

    /// One that may be killed at any point, its command with it or not.
    fn mortal_plan(&self, dice: &mut Dice) -> Plan {
        let plan = self.random_plan(dice);
        let kill = dice.one_in(3).then(|| (dice.millis(500), dice.pick(&[Victim::Wrapper, Victim::All])));
        Plan { kill, ..plan }
    }

    fn start(&self, door: &Bench, plan: &Plan) -> Run {
        door.start(plan.arguments(LOCK, &self.log()))
    }

    fn ended(&self, plan: Plan, ended: Ended) {
        self.outcomes.lock().expect("not poisoned").push(Outcome { plan, ended });
    }

    /// Starts a contender, sends it TERM at its time, and writes down how it ended.
    fn contend(&self, door: &Bench, mut plan: Plan) {
        let started = Instant::now();
        let mut run = self.start(door, &plan);
        self.running().insert(plan.number, run.pid());
        let (mut term, mut kill) = (plan.term, plan.kill);
        loop {
            {
                let mut running = self.running();
                if !run.is_running() {
                    running.remove(&plan.number);
                    break;
                }
            }
            if term.is_some_and(|after| started.elapsed() >= after) {
                term = None;
                run.signal(libc::SIGTERM);
            }
            if let Some((_, victim)) = kill.take_if(|(after, _)| started.elapsed() >= *after) {
                match victim {
                    Victim::Wrapper => run.signal(libc::SIGKILL),
                    Victim::All => {
                        self.note(&format!("killed {}\n", plan.number));
                        kill_tree(run.pid());
                    }
                }
            }
            let is_late = self.calm.get().is_some_and(|calm| calm.elapsed() > LIMIT);
            assert!(!is_late, "all is well, but it does not end: {plan:?}\n{}", run.stderr());
            thread::sleep(Duration::from_millis(3));
        }
        // What was not sent is no reason to end.
        plan.term = plan.term.filter(|_| term.is_none());
        plan.kill = plan.kill.filter(|_| kill.is_none());
        self.ended(plan, run.end());
    }

    /// Writes a line into the log.
    fn note(&self, line: &str) {
        let log = fs::File::options().append(true).create(true).open(self.log());
        log.and_then(|mut log| log.write_all(line.as_bytes())).expect("a log");
    }

    /// Has workers contend, who come by this door, until the nemesis is done and some more have entered.
    fn contend_while(&self, seed: &Seed, door: &Bench, nemesis: impl FnOnce(&mut Dice)) {
        self.contend_as_planned(seed, door, Arena::random_plan, nemesis);
    }

    fn contend_as_planned(
        &self,
        seed: &Seed,
        door: &Bench,
        plan: fn(&Arena, &mut Dice) -> Plan,
        nemesis: impl FnOnce(&mut Dice),
    ) {
        thread::scope(|scope| {
            for worker in 1..=WORKERS {
                let mut dice = Dice(Random(seed.0 << 8 | worker));
                scope.spawn(move || {
                    while self.calm.get().is_none() {
                        let plan = plan(self, &mut dice);
                        self.contend(door, plan);
                    }
                });
            }
            // Whatever happens, the workers are to end.
            let _done = Done(&self.calm);
            nemesis(&mut Dice(Random(seed.0 << 8)));
            // All is well again, so the queue moves on.
            let (before, deadline) = (self.entered(), Instant::now() + LIMIT);
            while self.entered() < before + MOVES_ON {
                assert!(Instant::now() < deadline, "nobody enters any more: {:?}", self.bench.queue(LOCK));
                thread::sleep(Duration::from_millis(10));
            }
        });
    }

    /// How many entered so far.
    fn entered(&self) -> usize {
        judge::entered(&fs::read_to_string(self.log()).unwrap_or_default())
    }

    /// Has the judge look at it.
    fn ends_well(self) {
        assert_eq!(processes_in(self.bench.chroot()), Vec::<String>::new(), "somebody is left");
        let log = fs::read_to_string(self.log()).expect("a log");
        let outcomes = self.outcomes.into_inner().expect("not poisoned");
        let objections = judge::objections(&log, &outcomes);
        assert!(objections.is_empty(), "{}\n{log}", objections.join("\n"));
        self.bench.queue_reaches(LOCK, 0);
        self.bench.forgets();
    }
}

struct Done<'a>(&'a OnceLock<Instant>);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.set(Instant::now()).expect("it is done once");
    }
}

/// The command lines of those who have this chroot in their environment.
fn processes_in(chroot: &str) -> Vec<String> {
    let setting = format!("SYNCD_SPAWN_CHROOT={chroot}\0");
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let path = entry.ok()?.path();
        let environment = fs::read(path.join("environ")).ok()?;
        String::from_utf8_lossy(&environment).contains(&setting).then(|| fs::read_to_string(path.join("cmdline")).ok())?
    });
    processes.collect()
}

#[test]
fn a_server_that_is_killed_again_and_again_breaks_no_promise() {
    let mut server = Server::start("");
    for seed in seeds() {
        let arena = Arena::new(&server.address());
        arena.contend_while(&seed, &arena.bench, |dice| {
            for _ in 0..12 {
                dice.pause(600);
                server.kill();
                dice.pause(300);
                assert!(server.restart());
            }
        });
        arena.ends_well();
    }
}

#[test]
fn a_server_that_is_killed_at_any_step_of_a_run_breaks_no_promise() {
    let mut server = Server::start("");
    let arena = Arena::new(&server.address());
    let (connect, close) = (Request::Connect, Request::Close);
    let (creates, looks, deletes) = ([Request::Create; 3], [Request::Exists; 2], [Request::Delete; 2]);
    for request in [connect].into_iter().chain(creates).chain(looks).chain(deletes).chain([close]) {
        let proxy = Proxy::start(&server.address(), &[(request, Fate::Spared)]);
        let plan = arena.calm_plan("wlock");
        let run = arena.start(&arena.bench.through(&proxy.address()), &plan);
        proxy.loses(1);
        server.kill();
        assert!(server.restart());
        arena.ended(plan, run.end());
        assert_eq!(arena.bench.queue(LOCK), Vec::<String>::new());
    }
    // While one says that it waits, and while it says that it holds.
    for marks in 1..=2 {
        let holder = arena.bench.hold(["-n", LOCK]).ready();
        let proxy = Proxy::start(&server.address(), &vec![(Request::Mark, Fate::Spared); marks]);
        let plan = arena.calm_plan("wlock");
        let run = arena.start(&arena.bench.through(&proxy.address()), &plan);
        proxy.loses(1);
        let holder = if marks == 1 {
            Some(holder)
        } else {
            drop(holder.finish().good());
            None
        };
        proxy.loses(marks);
        server.kill();
        assert!(server.restart());
        holder.map(|holder| holder.finish().good());
        arena.ended(plan, run.end());
        assert_eq!(arena.bench.queue(LOCK), Vec::<String>::new());
    }
    // While one runs, and others wait.
    let holder = arena.bench.hold(["-n", LOCK]).ready();
    let plans = ["wlock", "rlock", "lock"].map(|kind| arena.calm_plan(kind));
    let waiters: Vec<_> = plans.iter().map(|plan| arena.start(&arena.bench, plan).waits()).collect();
    server.kill();
    holder.warns("cannot reach");
    assert!(server.restart());
    holder.finish().good();
    for (plan, waiter) in plans.into_iter().zip(waiters) {
        arena.ended(plan, waiter.end());
    }
    arena.ends_well();
}

#[test]
fn a_server_that_is_stopped_for_longer_than_sessions_last_breaks_no_promise() {
    let server = Server::start(SHORT);
    for seed in seeds() {
        let arena = Arena::new(&server.address());
        let holder = arena.bench.hold(["-n", "/held"]).ready();
        let waiter = arena.bench.hold(["-n", "/held"]).waits();
        let queue = arena.bench.queue("/held");
        arena.contend_while(&seed, &arena.bench, |dice| {
            for _ in 0..2 {
                dice.pause(700);
                server.signal(libc::SIGSTOP);
                thread::sleep(BEYOND_SHORT);
                server.signal(libc::SIGCONT);
            }
        });
        assert!(server.log().contains("Expiring session"), "{}", server.log());
        assert_eq!((arena.bench.queue("/held"), waiter.stdout()), (queue, String::new()));
        holder.finish().good();
        waiter.ready().finish().good();
        arena.ends_well();
    }
}

#[test]
fn a_waiter_that_is_stopped_for_longer_than_its_session_lasts_keeps_its_place_if_nobody_wants_it() {
    let server = Server::start(SHORTER);
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/place"]).ready();
    let stopped = bench.hold(["-n", "/place"]).waits();
    let queue = bench.queue("/place");
    stopped.signal(libc::SIGSTOP);
    expire(&server, 1);
    holder.finish().good();
    assert_eq!(bench.queue("/place"), queue[1..]);
    stopped.signal(libc::SIGCONT);
    let stopped = stopped.ready();
    let behind = bench.hold(["-n", "/place"]).waits();
    assert_eq!((bench.queue("/place").len(), &bench.queue("/place")[0]), (2, &queue[1]));
    stopped.finish().good();
    behind.ready().finish().good();
    assert!(bench.queue("/place").is_empty());
    bench.forgets();
}

#[test]
fn a_waiter_that_is_stopped_for_longer_than_its_session_lasts_loses_its_place_and_queues_again() {
    let server = Server::start(SHORTER);
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/place"]).ready();
    let stopped = bench.hold(["-n", "/place"]).waits();
    let behind = bench.hold(["-n", "/place", "-l", "rlock"]).waits();
    let queue = bench.queue("/place");
    stopped.signal(libc::SIGSTOP);
    expire(&server, 1);
    bench.queue_reaches("/place", 2);
    assert_eq!(bench.queue("/place"), [queue[0].as_str(), &queue[2]]);
    holder.finish().good();
    let behind = behind.ready();
    stopped.signal(libc::SIGCONT);
    stopped.warns(&format!("/place/{} was removed", queue[1]));
    let again = bench.queue_reaches("/place", 2);
    assert!(again[0] == queue[2] && !queue.contains(&again[1]), "{again:?} after {queue:?}");
    assert_eq!(stopped.stdout(), "");
    behind.finish().good();
    stopped.ready().finish().good();
    assert!(bench.queue("/place").is_empty());
    bench.forgets();
}

#[test]
fn a_wrapper_that_is_stopped_for_longer_than_its_session_lasts_keeps_its_lock() {
    let server = Server::start(SHORTER);
    let bench = Bench::on(&server.address());
    let script = "echo ready; read line; echo done; exit 7";
    let holder = bench.start(["-n", "/kept", "--", "sh", "-c", script]);
    let mut holder = holder.ready();
    let waiter = bench.hold(["-n", "/kept", "-p", "100ms"]).waits();
    let queue = bench.queue("/kept");
    holder.signal(libc::SIGSTOP);
    expire(&server, 1);
    // Its command ends meanwhile, and nobody is told.
    holder.write(b"\n");
    holder.says("done");
    waits_on(&waiter);
    assert_eq!((bench.queue("/kept"), waiter.stdout()), (queue, String::new()));
    holder.signal(libc::SIGCONT);
    assert_eq!(holder.end().code(), 7);
    waiter.ready().finish().good();
    assert!(bench.queue("/kept").is_empty());
}

#[test]
fn a_contender_whose_session_expires_while_its_create_is_in_doubt_stands_in_the_queue_once() {
    let server = Server::start(SHORTER);
    let arena = Arena::new(&server.address());
    let stranger = format!("{LOCK}/stranger");
    arena.bench.plant(&stranger, "");
    arena.bench.plant_side_tree();
    for (number, fate) in (1..).zip([Fate::Unanswered, Fate::Eaten]) {
        // Not heard again before it is stopped.
        let mut losses = vec![(Request::Create, fate)];
        losses.resize(4, (Request::Connect, Fate::Eaten));
        let proxy = Proxy::start(&server.address(), &losses);
        let plan = arena.calm_plan("wlock");
        let run = arena.start(&arena.bench.through(&proxy.address()), &plan);
        proxy.loses(1);
        run.signal(libc::SIGSTOP);
        expire(&server, number);
        run.signal(libc::SIGCONT);
        arena.ended(plan, run.end());
        arena.bench.queue_reaches(LOCK, 1);
    }
    arena.bench.remove(&stranger);
    arena.ends_well();
}

/// Waits until the server has taken so many sessions for dead.
fn expire(server: &Server, number: usize) {
    let deadline = Instant::now() + LIMIT;
    while server.log().matches("Expiring session").count() < number {
        assert!(Instant::now() < deadline, "{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until it has looked again, found that it still has to wait, and said so.
fn waits_on(waiter: &Run) {
    let said = || waiter.stderr().matches("Waiting to acquire lock").count();
    let (before, deadline) = (said(), Instant::now() + LIMIT);
    while said() < before + 5 {
        assert!(Instant::now() < deadline, "{}", waiter.stderr());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn wrappers_that_are_stopped_for_longer_than_their_sessions_last_break_no_promise() {
    let server = Server::start(SHORTER);
    for seed in seeds() {
        let arena = Arena::new(&server.address());
        arena.contend_while(&seed, &arena.bench, |dice| {
            for _ in 0..4 {
                dice.pause(500);
                let stopped: Vec<i32> = {
                    let running = arena.running();
                    let stopped = running.values().copied().filter(|_| dice.one_in(2)).collect::<Vec<_>>();
                    for pid in &stopped {
                        send(*pid, libc::SIGSTOP);
                    }
                    stopped
                };
                thread::sleep(Duration::from_secs(2) + dice.millis(500));
                let running = arena.running();
                let still = stopped.iter().filter(|pid| running.values().any(|running| running == *pid));
                still.for_each(|pid| send(*pid, libc::SIGCONT));
            }
        });
        assert!(server.log().contains("Expiring session"), "{}", server.log());
        arena.ends_well();
    }
}

#[test]
fn a_leader_that_is_killed_again_and_again_breaks_no_promise() {
    let mut ensemble = Ensemble::start();
    for seed in seeds() {
        let arena = Arena::new(&ensemble.servers());
        arena.contend_while(&seed, &arena.bench, |dice| {
            for _ in 0..6 {
                dice.pause(1000);
                let leader = ensemble.leader();
                ensemble.member(leader).kill();
                ensemble.successor(leader);
                ensemble.heal();
            }
        });
        arena.ends_well();
    }
}

#[test]
fn a_leader_that_is_stopped_for_longer_than_sessions_last_breaks_no_promise() {
    let ensemble = Ensemble::start();
    for seed in seeds() {
        let arena = Arena::new(&ensemble.servers());
        arena.contend_while(&seed, &arena.bench, |dice| {
            for _ in 0..2 {
                dice.pause(700);
                let leader = ensemble.leader();
                ensemble.members()[leader].signal(libc::SIGSTOP);
                let stopped = Instant::now();
                ensemble.successor(leader);
                thread::sleep(BEYOND_SHORT.saturating_sub(stopped.elapsed()));
                dice.pause(700);
                ensemble.members()[leader].signal(libc::SIGCONT);
            }
        });
        arena.ends_well();
    }
}

#[test]
fn a_rolling_restart_breaks_no_promise() {
    let mut ensemble = Ensemble::start();
    for seed in seeds() {
        let arena = Arena::new(&ensemble.servers());
        let holder = arena.bench.hold(["-n", "/held"]).ready();
        let waiter = arena.bench.hold(["-n", "/held"]).waits();
        let queue = arena.bench.queue("/held");
        arena.contend_while(&seed, &arena.bench, |dice| {
            for member in 0..3 {
                dice.pause(300);
                ensemble.member(member).terminate();
                ensemble.heal();
            }
        });
        assert_eq!((arena.bench.queue("/held"), waiter.stdout()), (queue, String::new()));
        holder.finish().good();
        waiter.ready().finish().good();
        arena.ends_well();
    }
}

#[test]
fn servers_without_a_majority_for_a_while_break_no_promise() {
    let mut ensemble = Ensemble::start();
    for seed in seeds() {
        let arena = Arena::new(&ensemble.servers());
        let holder = arena.bench.hold(["-n", "/held"]).ready();
        let ends = arena.bench.start(["-n", "/ends", "--", "sh", "-c", "echo ready; read line; exit 3"]);
        let mut ends = ends.ready();
        let waiters = ["/held", "/ends"].map(|lock| arena.bench.hold(["-n", lock]).waits());
        arena.contend_while(&seed, &arena.bench, |dice| {
            dice.pause(700);
            let leader = ensemble.leader();
            ensemble.member(leader).kill();
            ensemble.member((leader + 1) % 3).kill();
            ends.write(b"\n");
            for run in waiters.iter().chain([&holder]) {
                run.warns("cannot reach");
            }
            dice.pause(1000);
            ensemble.heal();
        });
        ends.end().failed(3, "Unlocked");
        let [waits, enters] = waiters;
        enters.ready().finish().good();
        assert_eq!((arena.bench.queue("/held").len(), waits.stdout()), (2, String::new()));
        holder.finish().good();
        waits.ready().finish().good();
        arena.ends_well();
    }
}

#[test]
fn a_contender_whose_create_is_under_way_while_it_moves_stands_in_the_queue_once() {
    let ensemble = Ensemble::relayed();
    let arena = Arena::new(&ensemble.servers());
    // The directories are there, so the first create is the contender's.
    arena.bench.plant(&format!("{LOCK}/stranger"), "");
    arena.bench.plant_side_tree();
    let leader = ensemble.leader();
    let (one, other) = (&ensemble.members()[(leader + 1) % 3], &ensemble.members()[(leader + 2) % 3]);
    for delay in [200, 600] {
        ensemble.slow(Duration::from_millis(delay));
        let runs = [("lock", true), ("wlock", false), ("wlock", true), ("rlock", false), ("rlock", true), ("lock", false)];
        let runs = runs.map(|(kind, is_terminated)| {
            let proxies = if is_terminated {
                let losses = [(Request::Create, Fate::Unanswered)];
                ensemble.members().iter().map(|member| Proxy::start(&member.address(), &losses)).collect()
            } else {
                moving(one, other)
            };
            let term = is_terminated.then_some(Duration::ZERO);
            let plan = Plan { term, ..arena.calm_plan(kind) };
            let run = arena.start(&arena.bench.through(&addresses(&proxies)), &plan);
            (plan, run, proxies)
        });
        for (plan, run, proxies) in &runs {
            let deadline = Instant::now() + LIMIT;
            while proxies.iter().all(|proxy| proxy.lost() == 0) {
                assert!(Instant::now() < deadline, "no create was lost: {}", run.stderr());
                thread::sleep(Duration::from_millis(1));
            }
            if plan.term.is_some() {
                run.signal(libc::SIGTERM);
            }
        }
        for (plan, run, _proxies) in runs {
            arena.ended(plan, run.end());
        }
    }
    ensemble.slow(Duration::ZERO);
    arena.bench.queue_reaches(LOCK, 1);
    arena.bench.remove(&format!("{LOCK}/stranger"));
    arena.ends_well();
}

#[test]
fn a_create_that_is_stuck_in_a_slow_server_never_lands_after_the_contender_has_moved() {
    let ensemble = Ensemble::relayed();
    let arena = Arena::new(&ensemble.servers());
    let stranger = format!("{LOCK}/stranger");
    arena.bench.plant(&stranger, "");
    arena.bench.plant_side_tree();
    let leader = ensemble.leader();
    let (slow, other) = (&ensemble.members()[(leader + 1) % 3], &ensemble.members()[(leader + 2) % 3]);
    let mut runs = Vec::new();
    ensemble.slow_one((leader + 1) % 3, Duration::from_secs(1));
    for to in [other, &ensemble.members()[leader]].repeat(2) {
        let proxies = moving(slow, to);
        let plan = arena.calm_plan("wlock");
        let run = arena.start(&arena.bench.through(&addresses(&proxies)), &plan);
        runs.push((plan, run, proxies));
    }
    for (plan, run, proxies) in runs {
        arena.ended(plan, run.end());
        assert!(proxies[0].lost() > 0);
    }
    // What goes by the slow server now arrives after what is stuck there.
    Bench::on(&slow.address()).plant("/behind", "");
    arena.bench.queue_reaches(LOCK, 1);
    arena.bench.remove(&stranger);
    arena.ends_well();
}

/// Ways to two servers: a contender comes to the one, and once its create is there it can only come to the other.
fn moving(from: &Server, to: &Server) -> Vec<Proxy> {
    let mut losses = vec![(Request::Create, Fate::Unanswered)];
    losses.resize(1000, (Request::Connect, Fate::Eaten));
    vec![Proxy::start(&from.address(), &losses), Proxy::start(&to.address(), &[(Request::Connect, Fate::Eaten)])]
}

fn addresses(proxies: &[Proxy]) -> String {
    let addresses: Vec<_> = proxies.iter().map(Proxy::address).collect();
    addresses.join(",")
}

#[test]
fn slow_servers_and_clients_that_move_between_them_break_no_promise() {
    let ensemble = Ensemble::relayed();
    for seed in seeds() {
        let arena = Arena::new(&ensemble.servers());
        let relays: Vec<_> = ensemble.members().iter().map(|member| Relay::start(&member.address())).collect();
        let servers: Vec<_> = relays.iter().map(Relay::address).collect();
        arena.contend_while(&seed, &arena.bench.through(&servers.join(",")), |dice| {
            for _ in 0..10 {
                ensemble.slow(Duration::from_millis(100) + dice.millis(400));
                dice.pause(2500);
                relays.iter().filter(|_| dice.one_in(2)).for_each(Relay::cut);
            }
            ensemble.slow(Duration::ZERO);
        });
        arena.ends_well();
    }
}

#[test]
fn a_waiter_that_is_robbed_of_its_node_never_runs_without_one_and_gets_in_at_last() {
    for seed in seeds() {
        let arena = Arena::new(&Server::shared().address());
        let mut robbed = Vec::new();
        arena.contend_while(&seed, &arena.bench, |dice| {
            while robbed.len() < 20 {
                let blocker = arena.bench.hold(["-n", LOCK]).ready();
                // Nobody behind it holds the lock, as long as it is there.
                let waiters = queue_with_waiters(&arena.bench).split_off(1);
                robbed.extend(waiters.into_iter().filter(|name| dice.one_in(2) && rob(&arena.bench, name)));
                dice.pause(100);
                blocker.finish().good();
            }
        });
        let log = fs::read_to_string(arena.log()).expect("a log");
        let ran: Vec<_> = robbed.iter().filter(|name| judge::nodes(&log).contains(format!("{LOCK}/{name}").as_str())).collect();
        assert!(ran.is_empty(), "ran without its node: {ran:?}\n{log}");
        arena.ends_well();
    }
}

/// The queue, once there is more than its head.
fn queue_with_waiters(bench: &Bench) -> Vec<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let queue = bench.queue(LOCK);
        if queue.len() > 1 {
            return queue;
        }
        assert!(Instant::now() < deadline, "nobody comes");
    }
}

/// Takes a node away, as an operator would; says whether it was still there.
fn rob(bench: &Bench, name: &str) -> bool {
    let path = format!("{}{LOCK}/{name}", bench.chroot());
    bench.admin(async move |client| match client.delete(&path, None).await {
        Ok(()) => Ok(true),
        Err(zookeeper_client::Error::NoNode) => Ok(false),
        Err(error) => Err(error),
    })
}

#[test]
fn runs_that_are_killed_at_any_point_hold_up_nobody_and_nobody_cleans_up_after_them() {
    let server = Server::start("");
    for seed in seeds() {
        let arena = Arena::new(&server.address());
        arena.contend_and_die(&seed);
        arena.leaves_nothing();
    }
}

#[test]
fn runs_that_are_killed_in_one_queue_with_kazoo_hold_up_nobody_either() {
    /// As many as ours would be too much for two processors.
    const PEERS: u64 = 2;
    let server = Server::start("");
    for seed in seeds() {
        let arena = Arena::new(&server.address());
        thread::scope(|scope| {
            for peer in 1..=PEERS {
                let mut dice = Dice(Random((seed.0 << 8) | (WORKERS + peer)));
                let arena = &arena;
                scope.spawn(move || arena.take_turns_as_kazoo(&mut dice));
            }
            arena.contend_and_die(&seed);
            // Who waits as kazoo may still stand behind somebody dead.
            arena.next_one();
        });
        arena.leaves_nothing();
    }
}

impl Arena {
    /// Contends for some time, while wrappers are killed, and nobody holds up the others.
    fn contend_and_die(&self, seed: &Seed) {
        /// How long nobody may enter, beyond what a run takes at that time that has nobody before it.
        const GAP: Duration = Duration::from_secs(1);
        let (mut gaps, mut lone) = (Vec::new(), Vec::new());
        self.contend_as_planned(seed, &self.bench, Arena::mortal_plan, |_| {
            let end = Instant::now() + Duration::from_secs(20);
            thread::scope(|scope| {
                let probe = scope.spawn(|| lone_runs(self.bench.servers(), end));
                let (mut entered, mut since) = (0, Instant::now());
                while since < end {
                    thread::sleep(Duration::from_millis(5));
                    assert!(since.elapsed() < LIMIT, "nobody enters: {:?}", self.bench.queue(LOCK));
                    if self.entered() > entered {
                        entered = self.entered();
                        let now = Instant::now();
                        gaps.push((since, now));
                        since = now;
                    }
                }
                lone = probe.join().expect("it ends well");
            });
        });
        let beyond = gaps.iter().map(|(since, until)| {
            let meanwhile = lone.iter().filter(|(started, ended)| started < until && ended > since);
            (*until - *since).saturating_sub(meanwhile.map(|(started, ended)| *ended - *started).max().unwrap_or_default())
        });
        let longest = beyond.max().expect("somebody entered");
        assert!(longest < GAP, "nobody entered for {longest:?} more than a lone run took");
        let outcomes = self.outcomes.lock().expect("not poisoned");
        let killed = outcomes.iter().filter(|outcome| outcome.ended.status.signal() == Some(libc::SIGKILL)).count();
        assert!(killed > 20, "only {killed} were killed");
    }

    /// Contends by kazoo's recipe, and is not killed. Its plain lock would not wait for readers.
    fn take_turns_as_kazoo(&self, dice: &mut Dice) {
        let log = self.log();
        let mut kazoo = interop::peer("kazoo", &self.bench, &["turns", LOCK, log.to_str().expect("UTF-8")]);
        let mut turns = 0;
        while self.calm.get().is_none() {
            let plan = self.calm_plan(dice.pick(&["rlock", "wlock"]));
            kazoo.write(format!("{} {}\n", plan.number, plan.kind).as_bytes());
            kazoo.says(&format!("left {}\n", plan.number));
            self.outcomes.lock().expect("not poisoned").push(Outcome::of_turn(plan));
            turns += 1;
        }
        kazoo.finish().good();
        assert!(turns > 10, "kazoo entered only {turns} times");
    }

    /// The next one who comes.
    fn next_one(&self) {
        let plan = self.calm_plan("wlock");
        let run = self.start(&self.bench, &plan);
        self.ended(plan, run.end());
    }

    /// Nothing is left of the dead, as soon as all of them are, and somebody else has come.
    fn leaves_nothing(self) {
        let deadline = Instant::now() + LIMIT;
        while !processes_in(self.bench.chroot()).is_empty() {
            assert!(Instant::now() < deadline, "somebody is left");
            thread::sleep(Duration::from_millis(10));
        }
        self.next_one();
        self.bench.run(["--no-wait", "-n", LOCK, "true"]).good();
        assert_eq!(self.bench.queue(LOCK), Vec::<String>::new());
        // Whoever was killed where he had no node, or had not written everything down yet, is remembered for a while.
        for entry in self.bench.entries() {
            let path = self.bench.state_dir().join(&entry);
            let text = fs::read_to_string(&path).expect("an entry");
            if text.contains("dead ") {
                age(&path);
            } else {
                assert!(entry.starts_with(".new."), "nobody looked for {entry}: {text}");
                fs::File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::UNIX_EPOCH))
                    .expect("a file");
            }
        }
        self.bench.run(["--no-wait", "-n", LOCK, "true"]).good();
        assert_eq!(self.bench.entries(), Vec::<String>::new());
        self.ends_well();
    }
}

/// When runs started and ended that contend with nobody: as long as this takes, the machine has no time for others either.
fn lone_runs(servers: &str, end: Instant) -> Vec<(Instant, Instant)> {
    let bench = Bench::on(servers);
    let mut runs = Vec::new();
    while Instant::now() < end {
        let started = Instant::now();
        bench.run(["-n", "/alone", "true"]).good();
        runs.push((started, Instant::now()));
        thread::sleep(Duration::from_millis(100));
    }
    runs
}
