//! Locks that are bound to a session: they go with their holder, and the command goes before them.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::bench::{BINARY, Bench, LIMIT, Run, children, on_every_store, send};
use super::proxy::{Direction, Proxy};
use super::terminal::Terminal;
use super::zookeeper::Server;

/// What the hasty server grants. A holder that is disturbed for a third of it has to stop its command: that is longer than a
/// machine keeps it from running that does other things, too.
const SESSION: Duration = Duration::from_secs(6);
/// Too short to be noticed.
const SHORT: Duration = Duration::from_millis(500);
const BOUND: [&str; 6] = ["--ephemeral", "--grace", "500ms", "--group", "own", "-n"];

/// A server whose sessions end soon.
fn hasty() -> Server {
    Server::start("tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=6000")
}

/// Starts a command under a lock that is bound to a session.
fn start(bench: &Bench, lock: &str, script: &str) -> Run {
    bench.start(BOUND.into_iter().chain([lock, "--", "sh", "-c", script]))
}

/// Says `ready`, then writes numbered lines until it is stopped.
fn writer(who: &str, file: &Path) -> String {
    // One process, for a shell that is just starting another one cannot be stopped.
    let file = file.display();
    let python = format!(
        "import itertools, time\nwith open('{file}', 'a', 1) as lines:\n for i in itertools.count():\n  \
         print('{who}', i, file=lines)\n  time.sleep(0.005)"
    );
    format!("echo ready; exec python3 -c \"{python}\"")
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits until somebody has written some more.
fn grows(file: &Path) {
    let (deadline, before) = (Instant::now() + LIMIT, lines(file).len());
    while lines(file).len() < before + 3 {
        assert!(Instant::now() < deadline, "{:?}", lines(file));
        thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody writes after the one who came after him.
fn assert_one_after_the_other(file: &Path) {
    let lines = lines(file);
    let first = lines.iter().position(|line| line.starts_with("new")).expect("the new one has written");
    let late: Vec<_> = lines[first..].iter().filter(|line| line.starts_with("old")).collect();
    assert!(first > 0 && late.is_empty(), "{late:?}");
}

on_every_store!(a_bound_lock_is_a_lock_like_any_other,);

fn a_bound_lock_is_a_lock_like_any_other(bench: &Bench) {
    let holder = bench.hold(["--ephemeral", "-n", "/bound"]).ready();
    let unbound = bench.hold(["-n", "/bound"]).waits();
    let bound = bench.hold(["--ephemeral", "-n", "/bound", "-l", "rlock"]).waits();
    assert_eq!(bench.queue("/bound").len(), 3);
    holder.finish().good();
    let unbound = unbound.ready();
    assert!(!bound.stdout().contains("ready"));
    unbound.finish().good();
    bound.ready().finish().good();
    assert_eq!(bench.run(["-q", "--ephemeral", "-n", "/bound", "--", "sh", "-c", "exit 7"]).code(), 7);
    let run = bench.start(["--ephemeral", "-n", "/bound", "--", "sh", "-c", "trap 'exit 8' TERM; echo ready; read x"]).ready();
    let node = bench.queue("/bound").remove(0);
    bench.remove(&format!("/bound/{node}"));
    run.end().failed(123, "was removed while the command runs: stopping it");
    assert!(bench.queue("/bound").is_empty());
}

#[test]
fn a_grace_that_no_session_has_room_for_is_refused() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let ended = bench.run(["--ephemeral", "--grace", "3s", "-n", "/long", "echo", "ran"]);
    assert_eq!(ended.failed(125, "grants sessions of 6s, too short to stop a command within 4s before one can have expired\nhint: a shorter --grace fits").stdout(), "");
    assert!(bench.queue("/long").is_empty());
}

#[test]
fn a_bound_lock_goes_with_its_holder_and_a_persistent_one_stays() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let mut bound = start(&bench, "/goes", "echo ready; cat >/dev/null").ready();
    // On a host that does not come back.
    let lost = tempfile::tempdir().unwrap();
    let mut unbound = bench.with_variable("SYNCD_SPAWN_STATE_DIR", lost.path()).hold(["-n", "/stays"]).ready();
    let next = bench.hold(["-n", "/goes"]).waits();
    bound.kill();
    unbound.kill();
    next.ready().finish().good();
    assert!(bench.queue("/goes").is_empty());
    assert_eq!(bench.queue("/stays").len(), 1);
}

#[test]
fn without_servers_a_command_ends_before_its_session_can_have_expired() {
    for (script, wrote) in [
        ("trap 'echo cleaned; exit 0' TERM; echo ready; while :; do sleep 0.02; done", "ready\ncleaned\n"),
        ("trap '' TERM; echo ready; while :; do sleep 0.02; done", "ready\n"),
        ("trap '' TERM; (setsid sh -c 'while :; do sleep 0.02; done') & echo ready; while :; do sleep 0.02; done", "ready\n"),
    ] {
        let mut server = hasty();
        let bench = Bench::on(&server.address());
        let run = start(&bench, "/away", script).ready();
        let gone = Instant::now();
        server.kill();
        if wrote.contains("cleaned") {
            run.says(wrote);
            // The last proof is a quarter of it old, or half where there is much else to do; half a second is for the grace, one for
            // the rest.
            let lasted = gone.elapsed() + SESSION / 2 + Duration::from_millis(1500);
            assert!(lasted >= SESSION * 7 / 8, "{lasted:?}");
        }
        let ended = run.end().failed(123, "cannot confirm our session in time: stopping the command before /away/");
        assert!(gone.elapsed() < SESSION, "{:?}", gone.elapsed());
        assert_eq!(ended.stdout(), wrote);
    }
}

#[test]
fn a_server_that_hangs_costs_nothing_while_another_answers() {
    // Sessions of 20 s: had the silent one as long for its answer as others have, it would be too late for the other one.
    let server = Server::start("tickTime=1000");
    let bench = Bench::on(&server.address());
    let [silent, other] = [(); 2].map(|()| Proxy::start(&server.address(), &[]));
    other.blackhole(Direction::ToServer);
    let both = bench.through(&format!("{},{}", silent.address(), other.address()));
    let run = both.hold(["--ephemeral", "-n", "/two"]).ready();
    other.heal();
    silent.blackhole(Direction::ToServer);
    silent.blackhole(Direction::ToClient);
    other.is_tried_again();
    let ended = run.finish().good();
    assert!(!ended.stderr.contains("confirm"), "{}", ended.stderr);
    assert!(bench.queue("/two").is_empty());
}

#[test]
fn who_wants_a_loss_ignored_runs_on_without_servers() {
    let mut server = hasty();
    let bench = Bench::on(&server.address());
    let options = ["--on-lost", "ignore", "--release-timeout", "1s"].into_iter().chain(BOUND);
    let mut run = bench.start(options.chain(["/on", "--", "sh", "-c", "echo ready; read x; exit 6"])).ready();
    server.kill();
    run.warns("cannot confirm our session in time: the command goes on without the lock");
    run.write(b"\n");
    assert_eq!(run.end().code(), 6);
}

#[test]
fn whoever_stands_still_for_longer_than_his_session_does_not_work_on() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let old = start(&bench, "/still", &writer("old", &file)).ready();
    let new = start(&bench, "/still", &writer("new", &file)).waits();
    grows(&file);
    let command = children(old.pid())[0];
    old.signal(libc::SIGSTOP);
    // Its group.
    send(-command, libc::SIGSTOP);
    let new = new.ready();
    grows(&file);
    // It passes a CONT on, if the command may run.
    old.signal(libc::SIGCONT);
    old.end().failed(123, "may be somebody else's already: killing the command");
    grows(&file);
    assert_one_after_the_other(&file);
    new.signal(libc::SIGTERM);
    assert_eq!(new.end().died_of(), libc::SIGTERM);
    assert!(bench.queue("/still").is_empty());
}

#[test]
fn ctrl_z_for_longer_than_the_session_loses_the_lock() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let mut terminal = Terminal::start(&bench, &["bash", "--norc", "-i"]);
    terminal.press("PS1='prom''pt> '\n");
    terminal.shows("prompt> ");
    let script = directory.path().join("script");
    fs::write(&script, writer("old", &file)).unwrap();
    terminal.press(&format!("{BINARY} {} /key -- sh {}\n", BOUND.join(" "), script.display()));
    terminal.shows("ready");
    let new = start(&bench, "/key", &writer("new", &file)).waits();
    grows(&file);
    terminal.press("\x1a");
    terminal.shows("Stopped");
    let new = new.ready();
    grows(&file);
    terminal.types("fg; echo left with $?\n", "left with 123");
    assert_one_after_the_other(&file);
    terminal.leaves();
    new.signal(libc::SIGTERM);
    assert_eq!(new.end().died_of(), libc::SIGTERM);
    assert!(bench.queue("/key").is_empty());
}

#[test]
fn whoever_stood_still_and_is_known_yet_goes_on_when_that_is_known() {
    // The longer the notice, the longer a session is known that cannot be trusted any more.
    let server = Server::start("tickTime=500\nmaxSessionTimeout=12000");
    let bench = Bench::on(&server.address());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let script = writer("old", &file);
    let arguments = ["--ephemeral", "--grace", "4s", "--group", "own", "-n", "/known", "--", "sh", "-c", &script];
    let run = bench.start(arguments).ready();
    grows(&file);
    let command = children(run.pid())[0];
    run.signal(libc::SIGSTOP);
    send(-command, libc::SIGSTOP);
    // Longer than we can trust a session of twelve seconds, and shorter than it lasts.
    thread::sleep(Duration::from_secs(6));
    run.signal(libc::SIGCONT);
    run.warns("the command stands still until we know");
    run.warns("is ours still: the command goes on");
    // By the CONT that was held back.
    grows(&file);
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().died_of(), libc::SIGTERM);
    assert!(bench.queue("/known").is_empty());
}

#[test]
fn a_short_stop_disturbs_nobody() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("lines");
    let run = start(&bench, "/short", &writer("old", &file)).ready();
    let next = bench.hold(["-n", "/short"]).waits();
    grows(&file);
    let command = children(run.pid())[0];
    for _ in 0..2 {
        run.signal(libc::SIGSTOP);
        send(-command, libc::SIGSTOP);
        thread::sleep(SHORT);
        // The shell in the group and its sleep are continued by us and by nobody.
        run.signal(libc::SIGCONT);
        send(-command, libc::SIGCONT);
        grows(&file);
        server.signal(libc::SIGSTOP);
        thread::sleep(SHORT);
        server.signal(libc::SIGCONT);
        grows(&file);
    }
    // For longer than a session all goes on as ever.
    let until = Instant::now() + SESSION + SHORT;
    while Instant::now() < until {
        grows(&file);
    }
    assert!(!run.stderr().contains("cannot confirm") && !next.stdout().contains("ready"), "{}", run.stderr());
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().died_of(), libc::SIGTERM);
    next.ready().finish().good();
}
