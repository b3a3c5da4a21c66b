//! One queue with kazoo, whose recipes lockpick drives.

use std::path::{Path, PathBuf};

use super::bench::{Bench, HOLD, Run};

fn kazoo(bench: &Bench, arguments: &[&str]) -> Run {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = PathBuf::from(
        std::env::var_os("SYNCD_SPAWN_TEST_PYTHON").unwrap_or_else(|| root.join("target/kazoo/bin/python").into()),
    );
    assert!(python.exists(), "{} with kazoo is missing; contrib/test installs it", python.display());
    let script = root.join("tests/kazoo_peer.py");
    let mut words = vec![script.to_str().unwrap(), bench.servers(), bench.chroot()];
    words.extend(arguments);
    Run::start(bench.program(python.to_str().unwrap(), words))
}

const KINDS: [&str; 3] = ["lock", "rlock", "wlock"];

#[test]
fn we_wait_for_kazoo() {
    let bench = Bench::zookeeper();
    for held in KINDS {
        let lock = format!("/{held}");
        let holder = kazoo(&bench, &["hold", held, &lock, "kazoo's"]).ready();
        for asked in KINDS {
            let ours = ["--no-wait", "-n", &lock, "-l", asked, "--", "true"];
            let is_shared = (held, asked) == ("rlock", "rlock");
            assert_eq!(bench.run(ours).code(), if is_shared { 0 } else { 124 }, "{asked} behind kazoo's {held}");
        }
        let waiter = bench.start(["-n", &lock, "-l", "wlock"].into_iter().chain(HOLD)).waits();
        assert!(waiter.stderr().contains(&format!("behind 'kazoo's' {lock}/")), "{}", waiter.stderr());
        holder.finish().good();
        waiter.ready().finish().good();
        assert!(bench.queue(&lock).is_empty());
    }
}

#[test]
fn kazoo_waits_for_us() {
    let bench = Bench::zookeeper();
    for held in KINDS {
        for asked in KINDS {
            let lock = format!("/{held}-{asked}");
            let holder = bench.start(["-n", &lock, "-l", held].into_iter().chain(HOLD)).ready();
            let kazoos = kazoo(&bench, &["hold", asked, &lock, "kazoo's"]);
            // Its plain lock does not wait for readers; ours does.
            if held == "rlock" && asked != "wlock" {
                kazoos.ready().finish().good();
                holder.finish().good();
            } else {
                bench.queue_reaches(&lock, 2);
                assert_eq!(kazoos.stdout(), "");
                holder.finish().good();
                kazoos.ready().finish().good();
            }
            assert!(bench.queue(&lock).is_empty());
        }
    }
}

#[test]
fn a_mixed_queue_is_one_queue() {
    let bench = Bench::zookeeper();
    let first = bench.hold(["-n", "/mixed", "-l", "wlock"]).ready();
    let second = kazoo(&bench, &["hold", "rlock", "/mixed", "second"]);
    bench.queue_reaches("/mixed", 2);
    let third = bench.hold(["-n", "/mixed", "-l", "lock"]).waits();
    let fourth = kazoo(&bench, &["hold", "wlock", "/mixed", "fourth"]);
    bench.queue_reaches("/mixed", 4);
    first.finish().good();
    let second = second.ready();
    assert_eq!((third.stdout(), fourth.stdout()), (String::new(), String::new()));
    second.finish().good();
    let third = third.ready();
    assert_eq!(fourth.stdout(), "");
    third.finish().good();
    fourth.ready().finish().good();
    assert!(bench.queue("/mixed").is_empty());
}

#[test]
fn each_lists_the_others_nodes() {
    let bench = Bench::zookeeper();
    let ours = bench.run(["-i", "ours", "rlock", "/list"]).good();
    let kazoos = kazoo(&bench, &["hold", "rlock", "/list", "kazoo's"]).ready();
    let queue = bench.queue("/list");
    assert_eq!(
        bench.run(["list", "/list"]).good().stdout(),
        format!("'ours' {}\n'kazoo's' /list/{}\n", ours.stdout().trim_end(), queue[1])
    );
    assert_eq!(kazoo(&bench, &["contenders", "/list"]).finish().good().stdout(), "ours\nkazoo's\n");
    kazoos.finish().good();
}

#[test]
fn each_releases_the_others_nodes() {
    let bench = Bench::zookeeper();
    let ours = bench.run(["-i", "ours", "wlock", "/release"]).good();
    let kazoos = kazoo(&bench, &["hold", "wlock", "/release", "kazoo's"]);
    bench.queue_reaches("/release", 2);
    kazoo(&bench, &["release", ours.stdout().trim_end()]).finish().good();
    let kazoos = kazoos.ready();
    let waiter = bench.hold(["-n", "/release"]).waits();
    let held = format!("/release/{}", bench.queue("/release")[0]);
    bench.run(["unlock", "-i", "kazoo's", &held]).good();
    waiter.ready().finish().good();
    // Its own release finds nothing, which it takes well.
    kazoos.finish();
    assert!(bench.queue("/release").is_empty());
}
