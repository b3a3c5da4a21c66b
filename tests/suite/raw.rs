//! `lock`, `rlock`, `wlock`, `unlock` and `list` by hand.

use std::fs::File;
use std::process::Stdio;

use super::bench::{Bench, Run, on_every_store};

/// Takes a raw lock and gives its node.
fn take(bench: &Bench, arguments: &[&str]) -> String {
    let ended = bench.run(arguments).good();
    assert_eq!(ended.stderr, "");
    ended.stdout().strip_suffix('\n').expect("one line").to_owned()
}

on_every_store!(
    a_raw_lock_prints_its_node_and_stays_until_it_is_unlocked,
    readers_share_and_everything_else_excludes,
    list_is_in_queue_order_and_shows_strangers_on_standard_error_only,
    list_of_nothing_says_so,
    unlock_checks_the_identifier_where_one_is_given,
    unlock_takes_several_nodes_and_refuses_what_is_no_contenders_node,
    a_lock_whose_node_cannot_be_printed_is_released_and_fails,
    the_limit_is_one_deadline_over_the_whole_wait,
    retry_count_times_retry_sleep_is_a_limit_too_and_the_status_can_be_chosen,
    a_waiter_that_was_removed_queues_again_at_the_end,
    at_the_end_of_the_numbers_we_refuse_and_leave_nothing,
    an_identifier_is_bytes_in_and_bytes_out,
);

fn a_raw_lock_prints_its_node_and_stays_until_it_is_unlocked(bench: &Bench) {
    let node = take(bench, &["-i", "test lock1", "wlock", "/mylock"]);
    assert_eq!(node, format!("/mylock/{}", bench.queue("/mylock")[0]));
    assert_eq!(bench.data(&node), b"test lock1");
    let listed = bench.run(["list", "/mylock"]).good();
    assert_eq!((listed.stdout(), listed.stderr.as_str()), (format!("'test lock1' {node}\n").as_str(), ""));
    let unlocked = bench.run(["unlock", &node]).good();
    assert_eq!((unlocked.stdout(), unlocked.stderr.as_str()), ("", ""));
    assert_eq!(bench.tree(), ["", "/mylock"]);
}

fn readers_share_and_everything_else_excludes(bench: &Bench) {
    for (held, asked, is_shared) in [
        ("rlock", "rlock", true),
        ("rlock", "wlock", false),
        ("rlock", "lock", false),
        ("wlock", "rlock", false),
        ("wlock", "wlock", false),
        ("wlock", "lock", false),
        ("lock", "rlock", false),
        ("lock", "wlock", false),
        ("lock", "lock", false),
    ] {
        let lock = format!("/{held}-{asked}");
        take(bench, &[held, &lock]);
        let second = bench.run([asked, &lock, "--no-wait"]);
        assert_eq!(second.code(), if is_shared { 0 } else { 124 }, "{second:?}");
        assert_eq!(bench.queue(&lock).len(), if is_shared { 2 } else { 1 });
    }
}

fn list_is_in_queue_order_and_shows_strangers_on_standard_error_only(bench: &Bench) {
    let nodes: Vec<String> = (0..12).map(|number| take(bench, &["-i", &format!("it's {number}"), "rlock", "/q"])).collect();
    bench.plant("/q/stranger", "");
    bench.plant("/q/x__READ__0000000001", "");
    let listed = bench.run(["list", "/q/"]).good();
    let expected: Vec<String> = nodes.iter().enumerate().map(|(number, node)| format!("'it's {number}' {node}")).collect();
    assert_eq!(listed.stdout().lines().collect::<Vec<_>>(), expected);
    assert!(listed.stderr.contains("/q/stranger is no contender") && listed.stderr.contains("/q/x__READ__0000000001"));
    // Nobody waits for a stranger, whatever its number.
    bench.plant("/w/stranger__READ__0000000000", "");
    take_writer_at_once(bench, "/w");
}

fn take_writer_at_once(bench: &Bench, lock: &str) {
    assert_eq!(bench.run(["wlock", lock, "--no-wait"]).code(), 0);
}

fn list_of_nothing_says_so(bench: &Bench) {
    bench.run(["list", "/none"]).failed(1, "no such lock: /none");
    let node = take(bench, &["lock", "/empty"]);
    bench.run(["unlock", &node]).good();
    assert_eq!(bench.run(["list", "/empty"]).good().stdout(), "");
}

fn unlock_checks_the_identifier_where_one_is_given(bench: &Bench) {
    let node = take(bench, &["-i", "mine", "lock", "/u"]);
    bench.run(["unlock", "-i", "yours", &node]).failed(1, "belongs to 'mine'");
    bench.run(["unlock", "-i", "", &node]).failed(1, "belongs to 'mine'");
    assert_eq!(bench.queue("/u").len(), 1);
    bench.run(["unlock", "--content", "mine", &node]).good();
    bench.run(["unlock", "-i", "mine", &node]).failed(1, "no such lock");
    let empty = take(bench, &["-i", "", "lock", "/u"]);
    assert_eq!(bench.data(&empty), b"");
    bench.run(["unlock", "-i", "", &empty]).good();
}

fn unlock_takes_several_nodes_and_refuses_what_is_no_contenders_node(bench: &Bench) {
    let nodes = [take(bench, &["rlock", "/many"]), take(bench, &["rlock", "/many"])];
    let missing = "/many/00000000000000000000000000000000__lock__0000000099";
    bench.run(["unlock", &nodes[0], missing, &nodes[1]]).failed(1, &format!("no such lock: {missing}"));
    assert!(bench.queue("/many").is_empty());
    for path in ["/many", "/", "/many/stranger", "many"] {
        bench.run(["unlock", path]).failed(125, "NODE");
    }
    assert_eq!(bench.tree(), ["", "/many"]);
}

#[test]
fn a_node_with_children_is_not_forced() {
    let bench = &Bench::zookeeper();
    let node = take(bench, &["lock", "/full"]);
    bench.plant(&format!("{node}/child"), "");
    bench.run(["unlock", &node]).failed(125, &format!("{node} could not be removed"));
    assert_eq!(bench.queue("/full").len(), 1);
}

fn an_identifier_is_bytes_in_and_bytes_out(bench: &Bench) {
    use std::os::unix::ffi::OsStrExt;
    let identifier = std::ffi::OsStr::from_bytes(b"it's \xff\n\xc3\xa9");
    let node = bench.run(["-i".as_ref(), identifier, "lock".as_ref(), "/bytes".as_ref()]).good();
    let node = node.stdout().trim_end();
    assert_eq!(bench.data(node), identifier.as_bytes());
    assert_eq!(bench.run(["list", "/bytes"]).good().stdout(), format!("'it's \\xff\\n\u{e9}' {node}\n"));
    bench.run(["unlock".as_ref(), "-i".as_ref(), identifier, node.as_ref()]).good();
    let long = "x".repeat(64 * 1024);
    bench.run(["-i", &long, "lock", "/bytes"]).good();
    bench.run(["-i", &format!("{long}x"), "lock", "/bytes"]).failed(125, "65537 bytes");
}

fn a_lock_whose_node_cannot_be_printed_is_released_and_fails(bench: &Bench) {
    let mut full = bench.command(["lock", "/unprinted"]);
    full.stdout(File::options().write(true).open("/dev/full").unwrap());
    let ended = full.stderr(Stdio::piped()).output().unwrap();
    assert_eq!(ended.status.code(), Some(125), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("cannot write the node to standard output"));
    let closed = format!("exec {} lock /unprinted >&-", super::bench::BINARY);
    Run::start(bench.program("sh", ["-c", &closed])).finish().failed(125, "cannot write the node");
    let unwritable = bench.command(["lock", "/unprinted"]).stdout(File::open("/dev/null").unwrap()).output().unwrap();
    assert_eq!(unwritable.status.code(), Some(125), "{unwritable:?}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let broken = bench.command(["lock", "/unprinted"]).stdout(writer).output().unwrap();
    assert_eq!(broken.status.code(), Some(125), "{broken:?}");
    assert!(bench.queue("/unprinted").is_empty());
}

fn the_limit_is_one_deadline_over_the_whole_wait(bench: &Bench) {
    let first = bench.hold(["-n", "/limit"]).ready();
    let second = bench.hold(["-n", "/limit"]).waits();
    let started = std::time::Instant::now();
    let third = bench.start(["-t", "4s", "-p", "300ms", "wlock", "/limit"]).waits();
    // A new predecessor does not start the clock again.
    first.finish().good();
    let ended = third.end().failed(124, "not acquired in time: /limit, behind /limit/");
    assert!(started.elapsed() >= std::time::Duration::from_secs(4));
    assert!(ended.stderr.matches("Waiting to acquire lock /limit").count() >= 2, "{}", ended.stderr);
    second.ready().finish().good();
    assert!(bench.queue("/limit").is_empty());
}

fn retry_count_times_retry_sleep_is_a_limit_too_and_the_status_can_be_chosen(bench: &Bench) {
    take(bench, &["-i", "holder", "lock", "/r"]);
    let ended = bench.run(["-r", "3", "-p", "1s", "-E", "9", "-n", "/r", "true"]).failed(9, "not acquired in time");
    assert!(ended.stderr.contains("behind 'holder' /r/"), "{}", ended.stderr);
    bench.run(["-r", "0", "-n", "/r", "true"]).failed(124, "not acquired in time");
    bench.run(["-t", "0", "-E", "0", "-n", "/r", "true"]).failed(0, "not acquired in time");
    let quiet = bench.run(["-q", "--no-wait", "-n", "/r", "true"]).failed(124, "not acquired in time");
    assert_eq!(quiet.stderr.lines().count(), 1, "{}", quiet.stderr);
    assert_eq!(bench.queue("/r").len(), 1);
}

fn a_waiter_that_was_removed_queues_again_at_the_end(bench: &Bench) {
    let holder = bench.hold(["-n", "/evicted"]).ready();
    let waiter = bench.hold(["-n", "/evicted"]).waits();
    let queue = bench.queue("/evicted");
    bench.remove(&format!("/evicted/{}", queue[1]));
    holder.finish().good();
    let waiter = waiter.ready();
    waiter.warns(&format!("/evicted/{} was removed while we waited", queue[1]));
    let again = bench.queue("/evicted");
    assert!(again.len() == 1 && again[0] != queue[1], "{again:?}");
    waiter.finish().good();
    assert!(bench.queue("/evicted").is_empty());
}

fn at_the_end_of_the_numbers_we_refuse_and_leave_nothing(bench: &Bench) {
    let last = "/used/00000000000000000000000000000000__lock__-2147483648";
    bench.plant(last, "");
    let ended = bench.run(["-n", "/used", "true"]).failed(125, "the numbers of /used are used up");
    assert!(ended.stderr.contains("hint: let everybody leave /used, then delete it"), "{ended:?}");
    assert_eq!(bench.queue("/used").len(), 1);
    bench.remove(last);
    bench.remove("/used");
    let node = take(bench, &["lock", "/used"]);
    assert!(node.ends_with("__lock__0000000000"), "{node}");
}
