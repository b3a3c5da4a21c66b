//! Servers that cannot be reached, or go away.

use std::thread;
use std::time::{Duration, Instant};

use super::bench::{Bench, wait_until};
use super::proxy::{Direction, Ending, Fate, Proxy, Request};
use super::zookeeper::Server;

#[test]
fn a_server_that_cannot_be_reached_is_named_with_the_cause_within_the_limit() {
    let nowhere = Bench::on("127.0.0.1:1");
    for arguments in
        [&["-t", "1s", "true"][..], &["--no-wait", "true"], &["-t", "1", "list", "/x"], &["-t", "0", "wlock", "/x"]]
    {
        let started = Instant::now();
        let ended = nowhere.run(arguments).failed(125, "cannot reach 127.0.0.1:1: connection refused\nhint: ");
        assert!(started.elapsed() < Duration::from_secs(10), "{ended:?}");
    }
    let nameless = Bench::on("no-such-host.invalid:2181");
    nameless.run(["--no-wait", "true"]).failed(125, "cannot reach no-such-host.invalid:2181: ");
    let several = Bench::on("127.0.0.1:1,127.0.0.1:2");
    several.run(["-t", "500ms", "true"]).failed(125, "cannot reach 127.0.0.1:1,127.0.0.1:2: 127.0.0.1:");
}

#[test]
fn without_a_limit_a_first_connection_is_given_up_after_a_while_and_a_signal_ends_it_sooner() {
    let nowhere = Bench::on("127.0.0.1:1");
    let run = nowhere.start(["-v", "true"]);
    run.warns("cannot reach 127.0.0.1:1: connection refused; trying on");
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().died_of(), libc::SIGTERM);
    nowhere.run(["true"]).failed(125, "cannot reach 127.0.0.1:1: connection refused");
}

#[test]
fn a_server_that_hangs_is_an_error_within_the_limit() {
    let server = Server::start("");
    let bench = Bench::on(&server.address());
    bench.run(["-q", "-n", "/x", "true"]).good();
    server.signal(libc::SIGSTOP);
    let started = Instant::now();
    bench.run(["-t", "2s", "true"]).failed(125, &format!("cannot reach {}: no answer", server.address()));
    let run = bench.start(["true"]);
    // Once the client has its thread, it is connecting.
    while std::fs::read_dir(format!("/proc/{}/task", run.pid())).unwrap().count() < 2 {
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    run.signal(libc::SIGINT);
    assert_eq!(run.end().died_of(), libc::SIGINT);
    assert!(started.elapsed() < Duration::from_secs(20));
    let run = bench.start(["-q", "-n", "/x", "true"]);
    let told = bench.start(["-n", "/x", "true"]);
    told.warns(&format!("{} does not answer; trying on", server.address()));
    server.signal(libc::SIGCONT);
    assert_eq!(run.end().good().stderr, "");
    told.end().good();
}

#[test]
fn a_server_that_goes_away_while_the_command_runs_changes_nothing_for_it() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/away"]).ready();
    let waiter = bench.hold(["-n", "/away", "-l", "rlock"]).waits();
    server.kill();
    holder.warns("cannot reach");
    waiter.warns("cannot reach");
    assert!(server.restart());
    waiter.warns("again");
    assert_eq!((bench.queue("/away").len(), waiter.stdout().as_str()), (2, ""));
    holder.finish().good();
    waiter.ready().finish().good();
    assert!(bench.queue("/away").is_empty());
}

#[test]
fn a_command_that_ends_while_the_server_is_away_is_released_when_it_is_back() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let holder = bench.start(["-n", "/back", "--", "sh", "-c", "echo ready; read x; exit 3"]);
    let mut holder = holder.ready();
    server.kill();
    holder.write(b"\n");
    holder.warns("cannot reach");
    assert!(server.restart());
    holder.end().failed(3, "Unlocked '/back/");
    assert!(bench.queue("/back").is_empty());
}

#[test]
fn what_could_not_be_released_is_named_with_the_line_that_unlocks_it() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let hold = |lock, script| bench.start(["--release-timeout", "1500ms", "-n", lock, "--", "sh", "-c", script]).ready();
    let good = hold("/left", "echo ready; read x || true");
    let bad = hold("/bad", "echo ready; read x; exit 4");
    let node = bench.queue("/left").remove(0);
    server.kill();
    let line = format!("hint: syncd-spawn -s {} -c {} unlock /left/{node}", server.address(), bench.chroot());
    let ended = good.finish().failed(125, &format!("/left/{node} could not be removed from {}", server.address()));
    assert!(ended.stderr.contains(&line), "{}", ended.stderr);
    bad.finish().failed(4, "could not be removed");
    assert!(server.restart());
    let unlock = line.strip_prefix("hint: syncd-spawn ").unwrap().split(' ');
    bench.run(unlock).good();
    assert!(bench.queue("/left").is_empty());
}

#[test]
fn a_waiter_whose_server_is_away_gives_up_in_time_and_says_what_is_left() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let node = bench.run(["lock", "/gone"]).good();
    let waiter = bench.start(["-t", "6s", "--release-timeout", "1s", "-n", "/gone", "true"]).waits();
    server.kill();
    let started = Instant::now();
    waiter.end().failed(124, "could not be removed");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(server.restart());
    assert_eq!(bench.queue("/gone").len(), 2);
    drop(node);
}

#[test]
fn a_waiter_is_woken_by_what_happened_while_it_was_cut_off() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let node = bench.run(["lock", "/woken"]).good();
    let waiter = bench.start(["-n", "/woken", "echo", "ran"]).waits();
    server.kill();
    waiter.warns("cannot reach");
    assert!(server.restart());
    bench.run(["unlock", node.stdout().trim_end()]).good();
    assert_eq!(waiter.end().good().stdout(), "ran\n");
    assert!(bench.queue("/woken").is_empty());
}

/// A place where the directories are there, so that the first create is a contender's.
fn with_a_stranger(lock: &str) -> Bench {
    let bench = Bench::zookeeper();
    bench.plant(&format!("{lock}/stranger"), "");
    bench.plant_side_tree();
    bench
}

#[test]
fn a_lost_request_or_reply_makes_neither_two_nodes_nor_leaves_one() {
    let mut table: Vec<Vec<(Request, Fate)>> = Vec::new();
    for fate in [Fate::Unanswered, Fate::Eaten] {
        for request in [Request::Connect, Request::Create, Request::List, Request::Exists, Request::Delete, Request::Close] {
            table.push(vec![(request, fate)]);
        }
        // The watch, which comes after the look at the own node.
        table.push(vec![(Request::Exists, Fate::Spared), (Request::Exists, fate)]);
        // What is asked for again, and refused because it was done.
        table.push(vec![(Request::Create, Fate::Unanswered), (Request::Create, fate)]);
        // The barrier of the session that is resumed, and that before the look for the node that was made.
        table.push(vec![(Request::Create, Fate::Unanswered), (Request::Sync, fate)]);
        table.push(vec![(Request::Create, Fate::Unanswered), (Request::Sync, Fate::Spared), (Request::Sync, fate)]);
    }
    table.push(vec![
        (Request::Create, Fate::Eaten),
        (Request::Create, Fate::Unanswered),
        (Request::Delete, Fate::Eaten),
        (Request::Delete, Fate::Unanswered),
    ]);
    let mut benches = Vec::new();
    for ending in [Ending::Fin, Ending::Reset] {
        for losses in &table {
            let bench = with_a_stranger("/once");
            let proxy = Proxy::start_with(bench.servers(), losses, ending);
            let through = bench.through(&proxy.address());
            let run = through.hold(["-n", "/once"]).ready();
            assert_eq!(bench.queue("/once").len(), 2, "ours and the stranger: {losses:?} {ending:?}");
            // Its watch is asked for while the command runs already.
            let is_before = |loss: &&(Request, Fate)| !matches!(loss.0, Request::Delete | Request::Close);
            proxy.loses(losses.iter().filter(is_before).count());
            let ended = run.finish().good();
            assert_eq!(ended.stdout(), "ready\n", "{losses:?} {ending:?}");
            assert_eq!(bench.queue("/once"), ["stranger"], "{losses:?} {ending:?}");
            assert_eq!(proxy.lost(), losses.len(), "{losses:?} {ending:?}");
            benches.push(bench);
        }
    }
    // A session whose end was lost has to expire.
    benches.iter().for_each(Bench::forgets);
}

#[test]
fn a_lost_request_or_reply_of_a_lock_without_an_owner_makes_neither_two_nodes_nor_none() {
    let mut table: Vec<Vec<(Request, Fate)>> = Vec::new();
    for fate in [Fate::Unanswered, Fate::Eaten] {
        for request in [Request::Connect, Request::Create, Request::List, Request::Close] {
            table.push(vec![(request, fate)]);
        }
        // The barrier before the look for the node that may have been made.
        table.push(vec![(Request::Create, Fate::Unanswered), (Request::Sync, fate)]);
        table.push(vec![(Request::Create, Fate::Eaten), (Request::Sync, Fate::Spared), (Request::Sync, fate)]);
    }
    table.push(vec![(Request::Create, Fate::Eaten), (Request::Create, Fate::Unanswered)]);
    for ending in [Ending::Fin, Ending::Reset] {
        for losses in &table {
            let bench = with_a_stranger("/once");
            let proxy = Proxy::start_with(bench.servers(), losses, ending);
            let ended = bench.through(&proxy.address()).run(["lock", "/once"]).good();
            assert_eq!(bench.queue("/once").len(), 2, "ours and the stranger: {losses:?} {ending:?}");
            assert_eq!(proxy.lost(), losses.len(), "{losses:?} {ending:?}");
            bench.run(["unlock", ended.stdout().trim_end()]).good();
            assert_eq!((bench.queue("/once"), bench.side_tree()), (vec!["stranger".to_owned()], Vec::new()));
        }
    }
}

#[test]
fn a_signal_right_after_a_lost_create_leaves_nothing() {
    for fate in [Fate::Unanswered, Fate::Eaten] {
        for _ in 0..10 {
            let bench = Bench::zookeeper();
            let holder = bench.hold(["-n", "/term"]).ready();
            for arguments in [&["-n", "/term", "echo", "ran"][..], &["lock", "/term"]] {
                let proxy = Proxy::start(bench.servers(), &[(Request::Create, fate)]);
                let run = bench.through(&proxy.address()).start(arguments.iter().copied());
                let deadline = Instant::now() + super::bench::LIMIT;
                while proxy.lost() == 0 {
                    assert!(Instant::now() < deadline);
                }
                run.signal(libc::SIGTERM);
                let ended = run.end();
                assert_eq!((ended.died_of(), ended.stdout()), (libc::SIGTERM, ""));
                assert_eq!(bench.queue("/term").len(), 1);
            }
            holder.finish().good();
            bench.forgets();
        }
    }
}

#[test]
fn a_place_that_was_found_again_is_named_when_it_cannot_be_settled() {
    let bench = Bench::zookeeper();
    bench.plant("/named/stranger", "");
    // The reply is lost, the node is found; and at the look for a second one nothing is heard any more.
    let losses = [
        (Request::Create, Fate::Unanswered),
        // Of the session that is resumed, and of the first look.
        (Request::Sync, Fate::Spared),
        (Request::Sync, Fate::Spared),
        (Request::Sync, Fate::Blackhole(Direction::ToServer)),
    ];
    let proxy = Proxy::start(bench.servers(), &losses);
    let run = bench.through(&proxy.address()).start(["--release-timeout", "1s", "lock", "/named"]);
    let deadline = Instant::now() + super::bench::LIMIT;
    while proxy.lost() < losses.len() {
        assert!(Instant::now() < deadline, "{}", run.stderr());
        thread::sleep(Duration::from_millis(5));
    }
    run.signal(libc::SIGTERM);
    let ended = run.end();
    assert_eq!(ended.died_of(), libc::SIGTERM);
    let left = bench.queue("/named").into_iter().find(|name| name != "stranger").expect("it is there");
    assert!(ended.stderr.contains(&format!("unlock /named/{left}")), "{left} is not named in {}", ended.stderr);
}

#[test]
fn no_wait_does_not_wait_for_a_server_that_went_away() {
    for request in [Request::Create, Request::List] {
        let bench = Bench::zookeeper();
        bench.plant("/once/stranger", "");
        let proxy = Proxy::start(bench.servers(), &[(request, Fate::Blackhole(Direction::ToServer))]);
        let run = bench.through(&proxy.address()).start(["--no-wait", "--release-timeout", "1s", "-n", "/once", "true"]);
        run.end().failed(125, "");
        assert_eq!(proxy.lost(), 1);
    }
}

#[test]
fn servers_that_are_all_slow_to_let_us_in_get_more_time() {
    let bench = Bench::zookeeper();
    let proxies = [(); 2].map(|()| Proxy::start(bench.servers(), &[]));
    let slowly = |by| proxies.iter().for_each(|proxy| proxy.delay(Direction::ToClient, by));
    slowly(Duration::from_millis(1500));
    let holder = bench.through(&proxies.each_ref().map(Proxy::address).join(",")).hold(["-n", "/x"]);
    wait_until("it is let in", || {
        proxies.iter().flat_map(Proxy::flights).any(|flight| flight.contains(&(Request::Permissions as i32)))
    });
    slowly(Duration::ZERO);
    holder.ready().finish().good();
}

/// Longer than the limits that are tried with it, and shorter than what an answer may take.
const NOT_AN_ANSWER: Duration = Duration::from_secs(6);

#[test]
fn a_limit_and_a_signal_do_not_wait_for_an_answer_as_long_as_nothing_was_written() {
    let silent = &[(Request::Permissions, Fate::Blackhole(Direction::ToServer))];
    let bench = Bench::zookeeper();
    let proxy = Proxy::start(bench.servers(), silent);
    let started = Instant::now();
    bench.through(&proxy.address()).run(["-t", "3s", "-n", "/x", "true"]).failed(124, "not acquired in time: /x");
    assert!(started.elapsed() < NOT_AN_ANSWER, "{:?}", started.elapsed());
    for number in [libc::SIGTERM, libc::SIGINT] {
        let proxy = Proxy::start(bench.servers(), silent);
        let run = bench.through(&proxy.address()).start(["-n", "/x", "true"]);
        proxy.loses(1);
        let asked = Instant::now();
        run.signal(number);
        assert_eq!(run.end().died_of(), number);
        assert!(asked.elapsed() < NOT_AN_ANSWER, "{:?}", asked.elapsed());
    }
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn a_release_is_given_up_at_its_limit_though_an_answer_is_due() {
    let bench = Bench::zookeeper();
    let proxy = Proxy::start(bench.servers(), &[]);
    let holder = bench.through(&proxy.address()).hold(["--release-timeout", "1s", "-n", "/x"]).ready();
    proxy.answers(&[Request::Exists as i32]);
    proxy.blackhole(Direction::ToServer);
    let finished = Instant::now();
    holder.finish().failed(125, "could not be removed");
    assert!(finished.elapsed() < NOT_AN_ANSWER, "{:?}", finished.elapsed());
}

#[test]
fn an_answer_that_lay_there_while_we_stood_still_is_not_believed() {
    let bench = Bench::zookeeper();
    bench.run(["-n", "/x", "true"]).good();
    // It looks at the queue for the first time, and stands still when it is told that it is alone.
    let looks = [Request::Exists as i32, Request::List as i32];
    let proxy = Proxy::start(bench.servers(), &[(Request::Exists, Fate::Blackhole(Direction::ToClient))]);
    let run = bench.through(&proxy.address()).hold(["-n", "/x"]);
    wait_until("it looks", || proxy.flights().last().is_some_and(|flight| *flight == looks));
    run.stop();
    let asked = Instant::now();
    proxy.heal();
    proxy.answers(&looks);
    let node = &bench.queue("/x")[0];
    bench.remove(&format!("/x/{node}"));
    let other = bench.hold(["-n", "/x"]).ready();
    // For longer than an answer may take.
    thread::sleep(Duration::from_secs(9).saturating_sub(asked.elapsed()));
    run.signal(libc::SIGCONT);
    let run = run.waits();
    run.warns(&format!("{node} was removed while we waited"));
    assert!(!run.stdout().contains("ready"));
    other.finish().good();
    run.ready().finish().good();
}

#[test]
fn unlock_ends_at_its_limit_and_at_a_signal() {
    let bench = Bench::zookeeper();
    let node = bench.run(["lock", "/unlock"]).good();
    let node = node.stdout().trim_end();
    let proxy = Proxy::start(bench.servers(), &[(Request::Delete, Fate::Blackhole(Direction::ToServer))]);
    let started = Instant::now();
    bench.through(&proxy.address()).run(["-t", "3s", "unlock", node]).failed(125, "could not be removed");
    assert!(started.elapsed() < Duration::from_secs(20));
    let proxy = Proxy::start(bench.servers(), &[(Request::Delete, Fate::Blackhole(Direction::ToServer))]);
    let run = bench.through(&proxy.address()).start(["unlock", node]);
    while proxy.lost() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    run.signal(libc::SIGINT);
    let ended = run.end();
    assert_eq!(ended.died_of(), libc::SIGINT);
    assert!(ended.stderr.contains("may have been removed, or not"), "{ended:?}");
    bench.run(["unlock", node]).good();
}
