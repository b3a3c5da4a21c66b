//! Holders that have promised to stop when they are cut off: over many seeds nobody starts before they have.

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use syncd_spawn::store::Random;

use super::bench::{Bench, LIMIT, Run};
use super::proxy::{Direction, Proxy};
use super::zookeeper::Server;

const SEEDS: u64 = 100;
/// So many of them at a time.
const AT_ONCE: u64 = 20;

/// The longest a command of a holder works.
const WORK: Duration = Duration::from_secs(12);

/// What becomes of one holder.
#[derive(Debug)]
struct Plan {
    /// From when the command has started.
    cut_after: Duration,
    directions: &'static [Direction],
    /// It is not cut off for ever.
    healed_after: Option<Duration>,
    delay: Duration,
    command: &'static str,
}

/// Ends when it is asked to, when it has cleaned up, not before it is killed, or never by its own process group.
const COMMANDS: [&str; 4] = [
    "",
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), write(), sys.exit(0)))",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork() or os.setsid()",
];

impl Plan {
    fn of(seed: u64) -> Plan {
        let mut random = Random(seed);
        let directions: [&[Direction]; 3] =
            [&[Direction::ToServer], &[Direction::ToClient], &[Direction::ToServer, Direction::ToClient]];
        Plan {
            cut_after: random.up_to(Duration::from_millis(1500)),
            directions: directions[random.index(3)],
            healed_after: (random.below(3) == 0).then(|| random.up_to(WORK)),
            delay: random.up_to(Duration::from_millis(100)),
            command: COMMANDS[random.index(COMMANDS.len())],
        }
    }

    fn is_cut_off_for_good(&self) -> bool {
        self.healed_after.is_none()
    }
}

/// Says `ready`, then writes a line now and then into one file with everybody else.
fn writer(who: &str, file: &str, first: &str, work: Duration) -> [String; 3] {
    let mut script = String::new();
    write!(
        script,
        "import os, signal, sys, time\n\
         lines = os.open({file:?}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n\
         write = lambda: os.write(lines, b'{who}\\n')\n\
         {first}\n\
         end = time.monotonic() + {}\n\
         print('ready', flush=True)\n\
         while time.monotonic() < end:\n  write()\n  time.sleep(0.02)\n",
        work.as_secs_f64()
    )
    .expect("a string");
    ["python3".to_owned(), "-c".to_owned(), script]
}

#[test]
fn whoever_is_cut_off_has_stopped_its_command_before_anybody_else_starts() {
    let server = Server::start("tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=2000");
    let mut abandoned = 0;
    for first in (0..SEEDS).step_by(AT_ONCE.try_into().expect("a small number")) {
        let server = &server;
        let tried: Vec<bool> = thread::scope(|scope| {
            let tries: Vec<_> = (first..first + AT_ONCE).map(|seed| scope.spawn(move || hand_over(server, seed))).collect();
            tries.into_iter().map(|tried| tried.join().expect("it holds")).collect()
        });
        abandoned += tried.into_iter().filter(|was_abandoned| *was_abandoned).count();
    }
    assert!(abandoned > 30, "only {abandoned} were abandoned");
}

/// Cuts a holder off as its seed says, and sees who comes after it. Says whether it was abandoned.
fn hand_over(server: &Server, seed: u64) -> bool {
    let plan = Plan::of(seed);
    // On different hosts, which do not come back.
    let (bench, other) = (Bench::on(&server.address()), tempfile::tempdir().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines").display().to_string();
    let proxy = Proxy::start(&server.address(), &[]);
    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.delay(direction, plan.delay);
    }
    let options = ["--abandon-after", "6s", "--grace", "500ms", "--release-timeout", "1s", "--group", "own", "-n", "/x", "--"];
    let command = writer("old", &file, plan.command, WORK);
    let words = options.into_iter().chain(command.iter().map(String::as_str));
    let holder = bench.through(&proxy.address()).start(words).ready();
    let command = writer("new", &file, "", Duration::from_millis(200));
    let words = ["-v", "-n", "/x", "--"].into_iter().chain(command.iter().map(String::as_str));
    let waiter = bench.with_variable("SYNCD_SPAWN_STATE_DIR", other.path()).start(words).waits();
    let ready = Instant::now();
    at(ready + plan.cut_after);
    plan.directions.iter().for_each(|direction| proxy.blackhole(*direction));
    let healed = plan.healed_after.map(|after| ready + plan.cut_after + after);
    let (mut holder, mut waiter) = (Some(holder), Some(waiter));
    let (mut before, mut after) = (None, None);
    let deadline = Instant::now() + LIMIT;
    while before.is_none() || after.is_none() {
        assert!(Instant::now() < deadline, "seed {seed}, {plan:?}: somebody does not come to an end");
        if healed.is_some_and(|healed| healed <= Instant::now()) {
            proxy.heal();
        }
        before = before.or_else(|| ended(&mut holder));
        after = after.or_else(|| ended(&mut waiter));
        thread::sleep(Duration::from_millis(5));
    }
    let (before, after) = (before.expect("ended"), after.expect("ended").good());
    let text = fs::read_to_string(&file).unwrap();
    let news = text.lines().position(|line| line == "new").expect("the new one has written");
    let late = text.lines().skip(news).filter(|line| *line == "old").count();
    assert_eq!(late, 0, "seed {seed}, {plan:?}: the old one works beside the new one\n{before:?}\n{after:?}");
    assert!(bench.queue("/x").is_empty(), "seed {seed}, {plan:?}\n{before:?}\n{after:?}");
    // It need not say so: the answer to its removal may be lost in a moment when the machine has no time for sessions of 2 s.
    let was_abandoned = after.stderr.contains("its owner was to stop its command by now");
    if plan.is_cut_off_for_good() {
        // Stopped, unless its work was done before; and what it could not release is told.
        assert!([123, 125].contains(&before.code()), "seed {seed}, {plan:?}\n{before:?}");
    }
    was_abandoned
}

fn at(when: Instant) {
    thread::sleep(when.saturating_duration_since(Instant::now()));
}

fn ended(run: &mut Option<Run>) -> Option<super::bench::Ended> {
    let is_running = run.as_mut().is_some_and(Run::is_running);
    if is_running { None } else { run.take().map(Run::end) }
}
