//! Many at once: nobody overlaps, first come first served, readers share.

use std::fs;

use super::bench::{Bench, HOLD, on_every_store};
use super::zookeeper::Server;

/// Adds one to a counter in a file, with no protection of its own, and notes its node.
const INCREMENT: &str =
    r#"read n <"$0/counter"; n=$((n + 1)); echo $n >"$0/counter"; echo "$SYNCD_SPAWN_LOCK_NODE" >>"$0/log""#;

on_every_store!(
    however_long_an_identifier_is_who_waits_names_the_node_behind_it,
    fifty_writers_at_once_lose_no_increment_and_are_served_in_order,
    twenty_readers_hold_together_while_a_writer_waits_and_a_reader_behind_it_too,
    a_waiter_that_gives_up_in_the_middle_lets_nobody_in_too_early,
    all_kinds_in_one_queue_come_in_order,
);

fn however_long_an_identifier_is_who_waits_names_the_node_behind_it(bench: &Bench) {
    let long = "x".repeat(60_000);
    let holder = bench.hold(["-n", "/x", "-i", &long]).ready();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    let waiter = bench.hold(["-n", "/x"]).waits();
    waiter.warns(&format!("{}...' {node} since ", &long[..1024]));
    assert!(bench.run(["list", "/x"]).good().stdout().contains(&long), "a list has all of it");
    holder.finish().good();
    waiter.ready().finish().good();
}

fn fifty_writers_at_once_lose_no_increment_and_are_served_in_order(bench: &Bench) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("counter"), "0\n").unwrap();
    let place = directory.path().to_str().unwrap();
    let runs: Vec<_> =
        (0..50).map(|_| bench.start(["-q", "-n", "/counter", "-l", "wlock", "--", "sh", "-c", INCREMENT, place])).collect();
    for run in runs {
        let ended = run.finish().good();
        assert_eq!(ended.stderr, "");
    }
    assert_eq!(fs::read_to_string(directory.path().join("counter")).unwrap(), "50\n");
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    let sequences: Vec<&str> = log.lines().map(|node| node.rsplit("__").next().unwrap()).collect();
    assert_eq!(sequences.len(), 50);
    assert!(sequences.is_sorted_by(|earlier, later| earlier < later), "{sequences:?}");
    assert!(bench.queue("/counter").is_empty());
}

fn twenty_readers_hold_together_while_a_writer_waits_and_a_reader_behind_it_too(bench: &Bench) {
    let readers: Vec<_> = (0..20).map(|_| bench.hold(["-n", "/rw", "-l", "rlock"])).collect();
    let mut readers: Vec<_> = readers.into_iter().map(super::bench::Run::ready).collect();
    let writer = bench.hold(["-n", "/rw", "-l", "wlock"]).waits();
    let late = bench.hold(["-n", "/rw", "-l", "rlock"]).waits();
    assert!(late.stderr().contains(", 1 in front"), "{}", late.stderr());
    assert!(writer.stderr().contains(", 20 in front"), "{}", writer.stderr());
    let last = readers.remove(7);
    for reader in readers {
        reader.finish().good();
    }
    assert_eq!(bench.queue("/rw").len(), 3);
    assert_eq!((writer.stdout().as_str(), late.stdout().as_str()), ("", ""));
    last.finish().good();
    let writer = writer.ready();
    assert_eq!(late.stdout(), "");
    writer.finish().good();
    late.ready().finish().good();
    assert!(bench.queue("/rw").is_empty());
}

fn a_waiter_that_gives_up_in_the_middle_lets_nobody_in_too_early(bench: &Bench) {
    let holder = bench.hold(["-n", "/middle"]).ready();
    let middle = bench.hold(["-n", "/middle"]).waits();
    let last = bench.hold(["-n", "/middle"]).waits();
    let held = bench.queue("/middle").remove(0);
    middle.signal(libc::SIGTERM);
    assert_eq!(middle.end().died_of(), libc::SIGTERM);
    last.warns(&format!("/middle/{held}"));
    assert_eq!(last.stdout(), "");
    holder.finish().good();
    last.ready().finish().good();
}

#[test]
fn a_holder_watches_its_own_node_and_a_waiter_its_predecessor_only() {
    let server = Server::start("4lw.commands.whitelist=*");
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/herd"]).ready();
    let waiters: Vec<_> = (0..4).map(|_| bench.hold(["-n", "/herd"]).waits()).collect();
    let queue = bench.queue("/herd");
    let deadline = std::time::Instant::now() + super::bench::LIMIT;
    let expected: Vec<_> = queue.iter().zip([2, 1, 1, 1, 0]).map(|(name, watchers)| (name.clone(), watchers)).collect();
    loop {
        let answer = server.ask("wchp");
        let found: Vec<_> = queue.iter().map(|name| (name.clone(), watchers(&answer, name))).collect();
        if found == expected {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}\n{answer}");
    }
    holder.finish().good();
    for waiter in waiters {
        waiter.ready().finish().good();
    }
}

/// How many sessions watch a node, in the server's answer: a path a line, and below it a session a line.
fn watchers(answer: &str, name: &str) -> usize {
    answer.lines().skip_while(|line| !line.ends_with(name)).skip(1).take_while(|line| line.starts_with('\t')).count()
}

fn all_kinds_in_one_queue_come_in_order(bench: &Bench) {
    let first = bench.hold(["-n", "/mixed", "-l", "lock"]).ready();
    let rest: Vec<_> = ["rlock", "rlock", "wlock", "rlock", "lock", "rlock"]
        .into_iter()
        .map(|kind| bench.start(["-n", "/mixed", "-l", kind].into_iter().chain(HOLD)).waits())
        .collect();
    first.finish().good();
    let mut rest = rest.into_iter();
    let mut next = || rest.next().unwrap();
    let (one, two) = (next().ready(), next().ready());
    let (writer, three, lock, four) = (next(), next(), next(), next());
    assert_eq!((writer.stdout(), three.stdout()), (String::new(), String::new()));
    one.finish().good();
    two.finish().good();
    writer.ready().finish().good();
    let three = three.ready();
    assert_eq!((lock.stdout(), four.stdout()), (String::new(), String::new()));
    three.finish().good();
    lock.ready().finish().good();
    four.ready().finish().good();
}
