//! Networks that hold up, delay and cut what goes between a contender and its server. Judged at the server itself, which
//! everybody else reaches.

use std::thread;
use std::time::{Duration, Instant};

use super::bench::Bench;
use super::proxy::Direction::{ToClient, ToServer};
use super::proxy::{Direction, Fate, Proxy, Request};

/// Far below the time after which an answer is taken for lost, and far above what a run needs.
const PROMPTLY: Duration = Duration::from_secs(4);
/// Far above what a short limit, and the time-outs of the requests that are under way then, come to.
const BOUNDED: Duration = Duration::from_secs(40);

/// Says `ready`, and ends well once it is given a line.
const READ: [&str; 4] = ["--", "sh", "-c", "echo ready; read line"];

/// A lock's queue with nobody in it, whose directories are there: the first create is the contender's.
fn with_a_stranger() -> Bench {
    let bench = Bench::zookeeper();
    bench.plant("/lock/stranger", "");
    bench.plant_side_tree();
    bench
}

fn reading(options: &[&'static str]) -> Vec<&'static str> {
    [options, &["-n", "/lock"], &READ].concat()
}

/// Each of these waits for time-outs, so they do it together.
fn either_way(test: impl Fn(Direction) + Sync) {
    thread::scope(|scope| {
        for direction in [ToServer, ToClient] {
            let test = &test;
            scope.spawn(move || test(direction));
        }
    });
}

#[test]
fn a_contender_that_enters_survives_a_blackhole() {
    either_way(|direction| {
        let bench = with_a_stranger();
        let proxy = Proxy::start(bench.servers(), &[(Request::Create, Fate::Blackhole(direction))]);
        let run = bench.through(&proxy.address()).start(reading(&[]));
        proxy.loses(1);
        proxy.is_tried_again();
        assert_eq!(run.stdout(), "");
        // Now the first create arrives at the server, or its answer at nobody, while the contender looks for its node.
        proxy.heal();
        let mut run = run.ready();
        assert_eq!(bench.queue("/lock").len(), 2, "ours and the stranger");
        run.write(b"\n");
        assert_eq!(run.end().good().stdout(), "ready\n");
        assert_eq!(bench.queue("/lock"), ["stranger"]);
    });
}

#[test]
fn a_waiter_behind_a_blackhole_is_woken_by_what_happened_meanwhile() {
    either_way(|direction| {
        let bench = Bench::zookeeper();
        let proxy = Proxy::start(bench.servers(), &[]);
        let holder = bench.hold(["-n", "/lock"]).ready();
        let waiter = bench.through(&proxy.address()).start(reading(&[])).waits();
        proxy.blackhole(direction);
        holder.finish().good();
        proxy.is_tried_again();
        assert_eq!((waiter.stdout().as_str(), bench.queue("/lock").len()), ("", 1));
        proxy.heal();
        let mut waiter = waiter.ready();
        waiter.write(b"\n");
        assert_eq!(waiter.end().good().stdout(), "ready\n");
        assert!(bench.queue("/lock").is_empty());
    });
}

#[test]
fn a_command_runs_on_through_a_blackhole() {
    either_way(|direction| {
        let bench = Bench::zookeeper();
        let proxy = Proxy::start(bench.servers(), &[]);
        let mut run = bench.through(&proxy.address()).start(reading(&[])).ready();
        let node = bench.queue("/lock");
        proxy.blackhole(direction);
        proxy.is_tried_again();
        assert!(run.is_running() && bench.queue("/lock") == node);
        proxy.heal();
        run.write(b"\n");
        assert_eq!(run.end().good().stdout(), "ready\n");
        assert!(bench.queue("/lock").is_empty());
    });
}

#[test]
fn a_release_survives_a_blackhole() {
    either_way(|direction| {
        let bench = Bench::zookeeper();
        let proxy = Proxy::start(bench.servers(), &[(Request::Delete, Fate::Blackhole(direction))]);
        let mut run = bench.through(&proxy.address()).start(reading(&[])).ready();
        run.write(b"\n");
        proxy.loses(1);
        proxy.is_tried_again();
        assert!(run.is_running());
        proxy.heal();
        let ended = run.end().good();
        assert!(ended.stdout() == "ready\n" && ended.stderr.contains("Unlocked '/lock/"), "{ended:?}");
        assert!(bench.queue("/lock").is_empty());
    });
}

#[test]
fn a_deadline_within_a_partition_is_kept_and_says_what_may_be_left() {
    either_way(|direction| {
        let bench = with_a_stranger();
        let proxy = Proxy::start(bench.servers(), &[(Request::Create, Fate::Blackhole(direction))]);
        let started = Instant::now();
        let run = bench.through(&proxy.address()).start(reading(&["-t", "4s", "--release-timeout", "1s"]));
        let ended = run.end().failed(124, "not acquired in time: /lock");
        assert!(started.elapsed() < BOUNDED && ended.stdout.is_empty(), "{ended:?}");
        let (_, said) = ended.stderr.split_once("never answered whether /lock/").expect("it says what may be left");
        let (prefix, _) = said.split_once('…').expect("the beginning of a name");
        proxy.heal();
        let queue = bench.queue("/lock");
        let ours: Vec<_> = queue.iter().filter(|name| *name != "stranger").collect();
        // What did not get there before may land now.
        assert!(ours.len() == 1 || ours.is_empty() && direction == ToServer, "{queue:?}");
        assert!(ours.iter().all(|name| name.starts_with(prefix)), "{queue:?}");
        for name in ours {
            bench.run(["unlock", &format!("/lock/{name}")]).good();
        }
    });
}

#[test]
fn what_was_entered_before_a_deadline_is_taken_back_after_a_blackhole() {
    either_way(|direction| {
        let bench = with_a_stranger();
        let proxy = Proxy::start(bench.servers(), &[(Request::Create, Fate::Blackhole(direction))]);
        let run = bench.through(&proxy.address()).start(reading(&["-t", "4s"]));
        proxy.loses(1);
        // The deadline is over long before.
        proxy.is_tried_again();
        proxy.heal();
        let ended = run.end().failed(124, "not acquired in time: /lock");
        assert!(ended.stdout.is_empty() && !ended.stderr.contains("hint"), "{ended:?}");
        assert_eq!(bench.queue("/lock"), ["stranger"]);
    });
}

#[test]
fn a_waiter_whose_deadline_passes_in_a_blackhole_leaves_when_it_can() {
    either_way(|direction| {
        let bench = Bench::zookeeper();
        let holder = bench.hold(["-n", "/lock"]).ready();
        let proxy = Proxy::start(bench.servers(), &[]);
        let waiter = bench.through(&proxy.address()).start(reading(&["-t", "4s"])).waits();
        proxy.blackhole(direction);
        proxy.is_tried_again();
        assert!(direction == ToClient || bench.queue("/lock").len() == 2, "nobody could take it back");
        proxy.heal();
        let ended = waiter.end().failed(124, "not acquired in time: /lock, behind /lock/");
        assert!(ended.stdout.is_empty() && !ended.stderr.contains("hint"), "{ended:?}");
        assert_eq!(bench.queue("/lock").len(), 1);
        holder.finish().good();
    });
}

#[test]
fn on_a_slow_network_everything_works_and_once() {
    let bench = Bench::zookeeper();
    let proxy = Proxy::start(bench.servers(), &[]);
    for direction in [ToServer, ToClient] {
        proxy.delay(direction, Duration::from_millis(200));
    }
    let slow = bench.through(&proxy.address());
    let mut holder = slow.start(reading(&[])).ready();
    let mut waiter = slow.start(reading(&[])).waits();
    assert_eq!(bench.queue("/lock").len(), 2);
    assert_eq!(slow.run(["list", "/lock"]).good().stdout().lines().count(), 2);
    holder.write(b"\n");
    assert_eq!(holder.end().good().stdout(), "ready\n");
    waiter = waiter.ready();
    waiter.write(b"\n");
    assert_eq!(waiter.end().good().stdout(), "ready\n");
    let node = slow.run(["wlock", "/lock"]).good();
    assert_eq!(bench.queue("/lock").len(), 1);
    slow.run(["unlock", node.stdout().trim_end()]).good();
    assert!(bench.queue("/lock").is_empty());
}

/// Runs a command while the server keeps one answer back; gives how long that took.
fn with_an_answer_held_back(request: Request) -> Duration {
    let bench = with_a_stranger();
    let proxy = Proxy::start(bench.servers(), &[(request, Fate::HeldBack)]);
    let started = Instant::now();
    let ended = bench.through(&proxy.address()).run(["-n", "/lock", "echo", "ran"]).good();
    assert_eq!((ended.stdout(), proxy.lost()), ("ran\n", 1), "{request:?}: {ended:?}");
    assert_eq!(bench.queue("/lock"), ["stranger"]);
    started.elapsed()
}

#[test]
fn an_answer_that_the_server_keeps_until_it_is_asked_again_stalls_nobody() {
    for request in [Request::Create, Request::List, Request::Delete, Request::Close] {
        let took = with_an_answer_held_back(request);
        assert!(took < PROMPTLY, "{request:?}: {took:?}");
    }
}

#[test]
fn a_session_that_the_server_keeps_until_somebody_else_connects_is_asked_for_again() {
    let took = with_an_answer_held_back(Request::Connect);
    assert!(took < BOUNDED, "{took:?}");
}

#[test]
fn a_waiter_whose_watch_is_not_confirmed_is_woken_promptly() {
    let bench = Bench::zookeeper();
    let holder = bench.hold(["-n", "/lock"]).ready();
    let proxy = Proxy::start(bench.servers(), &[(Request::Exists, Fate::HeldBack)]);
    let waiter = bench.through(&proxy.address()).start(reading(&[])).waits();
    proxy.loses(1);
    let started = Instant::now();
    holder.finish().good();
    let mut waiter = waiter.ready();
    assert!(started.elapsed() < PROMPTLY, "{:?}", started.elapsed());
    waiter.write(b"\n");
    waiter.end().good();
    assert!(bench.queue("/lock").is_empty());
}

#[test]
fn a_thousand_locks_and_unlocks_over_connections_that_are_cut_leave_nothing() {
    const WORKERS: usize = 8;
    const CYCLES: usize = 125;
    let bench = Bench::zookeeper();
    let proxy = Proxy::chaos(bench.servers(), 1);
    let cut = bench.through(&proxy.address());
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (cut, own) = (&cut, format!("/own-{worker}"));
            scope.spawn(move || {
                // By turns a lock of its own, and one that all of them want.
                for lock in [own.as_str(), "/shared"].into_iter().cycle().take(CYCLES) {
                    let node = cut.run(["-q", "lock", lock]).good();
                    cut.run(["unlock", node.stdout().trim_end()]).good();
                }
            });
        }
    });
    let mut tree: Vec<_> = (0..WORKERS).map(|worker| format!("/own-{worker}")).collect();
    tree.insert(0, String::new());
    tree.push("/shared".to_owned());
    assert_eq!(bench.tree(), tree);
    assert!(proxy.lost() > CYCLES, "{} connections were cut", proxy.lost());
}
