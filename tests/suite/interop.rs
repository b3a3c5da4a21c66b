//! One queue with kazoo, whose recipes lockpick drives.

use std::path::{Path, PathBuf};

use super::bench::{Bench, HOLD, Run, kill_tree};
use super::names::Old;

/// The oldest release that lockpick ran with, and the current one; each with lockpick itself beside it.
pub const KAZOOS: [&str; 2] = ["kazoo-2.5.0", "kazoo"];

/// The interpreter that has this release.
pub fn python(kazoo: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let environments = std::env::var_os("SYNCD_SPAWN_TEST_PYTHONS").map_or_else(|| root.join("target"), PathBuf::from);
    let python = environments.join(kazoo).join("bin/python");
    assert!(python.exists(), "{} with kazoo is missing; contrib/test installs it", python.display());
    python
}

/// Kazoo's own recipes, by hand.
pub fn peer(kazoo: &str, bench: &Bench, arguments: &[&str]) -> Run {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kazoo_peer.py");
    let mut words = vec![script.to_str().unwrap(), bench.servers(), bench.chroot()];
    words.extend(arguments);
    Run::start(bench.program(python(kazoo).to_str().unwrap(), words))
}

/// Makes of each function that takes a peer a test with every release of kazoo.
macro_rules! with_every_kazoo {
    ($($name:ident),+ $(,)?) => {
        mod with_the_current_kazoo {
            $(#[test] fn $name() { super::$name(&|bench, arguments| super::peer("kazoo", bench, arguments)); })+
        }
        mod with_kazoo_2_5 {
            $(#[test] fn $name() { super::$name(&|bench, arguments| super::peer("kazoo-2.5.0", bench, arguments)); })+
        }
    };
}

type Peer<'a> = &'a dyn Fn(&Bench, &[&str]) -> Run;

with_every_kazoo!(
    we_wait_for_kazoo,
    kazoo_waits_for_us,
    a_mixed_queue_is_one_queue,
    each_lists_the_others_nodes,
    each_releases_the_others_nodes,
    who_waits_behind_kazoo_clears_away_the_dead_in_front_of_it,
    whoever_says_that_it_waits_or_holds_is_listed_and_released_as_ever,
);

const KINDS: [&str; 3] = ["lock", "rlock", "wlock"];

fn we_wait_for_kazoo(kazoo: Peer<'_>) {
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

fn kazoo_waits_for_us(kazoo: Peer<'_>) {
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

fn a_mixed_queue_is_one_queue(kazoo: Peer<'_>) {
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

fn each_lists_the_others_nodes(kazoo: Peer<'_>) {
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

fn each_releases_the_others_nodes(kazoo: Peer<'_>) {
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

fn who_waits_behind_kazoo_clears_away_the_dead_in_front_of_it(kazoo: Peer<'_>) {
    let bench = Bench::zookeeper();
    let holder = bench.hold(["-n", "/dead"]).ready();
    let dead = bench.start(["-n", "/dead", "true"]).waits();
    let kazoos = kazoo(&bench, &["hold", "wlock", "/dead", "kazoo's"]);
    bench.queue_reaches("/dead", 3);
    let ours = bench.hold(["-n", "/dead"]).waits();
    for run in [dead, holder] {
        kill_tree(run.pid());
        assert_eq!(run.end().died_of(), libc::SIGKILL);
    }
    let kazoos = kazoos.ready();
    assert_eq!((ours.stdout(), bench.queue("/dead").len()), (String::new(), 2));
    kazoos.finish().good();
    ours.ready().finish().good();
    assert!(bench.queue("/dead").is_empty());
}

fn whoever_says_that_it_waits_or_holds_is_listed_and_released_as_ever(kazoo: Peer<'_>) {
    let bench = Bench::zookeeper();
    let ours = |identifier| ["-n", "/said", "-l", "wlock", "-i", identifier];
    let held = kazoo(&bench, &["hold", "wlock", "/said", "kazoo's"]).ready();
    let first = bench.hold(ours("first")).waits();
    let second = bench.hold(ours("second")).waits();
    let kazoos = kazoo(&bench, &["hold", "wlock", "/said", "kazoo's again"]);
    let queue = bench.queue_reaches("/said", 4);
    let names = || queue.iter().map(|name| format!("/said/{name}"));
    let listed = |who: &[&str]| {
        assert_eq!(kazoo(&bench, &["contenders", "/said"]).finish().good().stdout(), who.join("\n") + "\n");
        let ours = bench.run(["list", "/said"]).good();
        let behind = names().skip(4 - who.len());
        let lines: Vec<_> = who.iter().zip(behind).map(|(who, node)| format!("'{who}' {node}\n")).collect();
        assert_eq!(ours.stdout(), lines.concat());
    };
    listed(&["kazoo's", "first", "second", "kazoo's again"]);
    held.finish().good();
    let first = first.ready();
    listed(&["first", "second", "kazoo's again"]);
    // Released by the other while it holds, and then while it waits.
    kazoo(&bench, &["release", &names().nth(1).unwrap()]).finish().good();
    first.end().failed(123, "was removed while the command runs");
    let second = second.ready();
    listed(&["second", "kazoo's again"]);
    assert_eq!(kazoos.stdout(), "");
    let third = bench.hold(ours("third")).waits();
    kazoo(&bench, &["release", &format!("/said/{}", bench.queue("/said")[2])]).finish().good();
    third.warns("was removed while we waited: queueing again at the end");
    second.finish().good();
    kazoos.ready().finish().good();
    third.ready().finish().good();
    assert!(bench.queue("/said").is_empty());
    bench.forgets();
}

/// Under the default chroot, where everybody's locks are who says nothing else.
#[test]
fn lockpick_kazoo_and_ours_under_every_name_are_one_queue_in_the_default_chroot() {
    let old = Old::new();
    let lock = format!("/{}", uuid::Uuid::new_v4().simple());
    let devops = old.bench.in_chroot("/devops");
    let servers = devops.servers().to_owned();
    let lockpick = |kazoo: &str, action: &str, identifier: &str, path: &str| {
        let program = python(kazoo).with_file_name("lockpick");
        Run::start(
            devops.program(program.to_str().unwrap(), ["-s", &servers, "-i", identifier, "-r", "60", "-p", "1", action, path]),
        )
    };
    let script = old.without_a_place(
        "syncd_spawn",
        &["-s", &servers, "-C", "script", "-n", &lock, "-l", "lock", "-i", "60", "echo ready; cat >/dev/null"],
    );
    let script = Run::start(script).ready();
    // Each enters when the one before it stands in the queue.
    let mut waiting = vec![script];
    for number in 0..5 {
        waiting.push(match number {
            0 => lockpick(KAZOOS[0], "wlock", "lockpick on the old kazoo", &lock),
            1 => Run::start(old.without_a_place("lockpick", &["-s", &servers, "-i", "ours", "-r", "60", "wlock", &lock])),
            2 => lockpick(KAZOOS[1], "wlock", "lockpick on the current kazoo", &lock),
            3 => peer(KAZOOS[0], &devops, &["hold", "wlock", &lock, "the old kazoo"]),
            _ => peer(KAZOOS[1], &devops, &["hold", "wlock", &lock, "the current kazoo"]),
        });
        devops.queue_reaches(&lock, waiting.len());
    }
    let everybody =
        ["script", "lockpick on the old kazoo", "ours", "lockpick on the current kazoo", "the old kazoo", "the current kazoo"];
    let queue = devops.queue(&lock);
    let listed: Vec<_> = everybody.iter().zip(&queue).map(|(who, name)| format!("'{who}' {lock}/{name}\n")).collect();
    let listed = listed.concat();
    let ours = Run::start(old.without_a_place("lockpick", &["-s", &servers, "list", &lock])).finish().good();
    assert_eq!(ours.stdout(), listed);
    let theirs = lockpick(KAZOOS[0], "list", "", &lock).finish().good();
    let mut theirs: Vec<_> = theirs.stdout().replace("'b'", "'").replace("'' /", "' /").lines().map(str::to_owned).collect();
    theirs.sort_by_key(|line| line.rsplit("__").next().map(str::to_owned));
    assert_eq!(theirs.join("\n") + "\n", listed);
    for kazoo in KAZOOS {
        let listed = peer(kazoo, &devops, &["contenders", &lock]).finish().good();
        assert_eq!(listed.stdout().lines().collect::<Vec<_>>(), everybody);
    }
    // Whoever has the lock next has it, and is released by another.
    let mut waiting = waiting.into_iter();
    waiting.next().unwrap().finish().good();
    for number in 0..3 {
        let held = waiting.next().unwrap().finish().good();
        let node = format!("{lock}/{}", queue[number + 1]);
        assert_eq!(held.stdout().lines().last(), Some(node.as_str()));
        let identifier = everybody[number + 1];
        match number {
            1 => lockpick(KAZOOS[1], "unlock", identifier, &node).finish().good(),
            _ => Run::start(old.without_a_place("lockpick", &["-s", &servers, "-i", identifier, "unlock", &node]))
                .finish()
                .good(),
        };
    }
    for kazoos in waiting {
        kazoos.ready().finish().good();
    }
    assert_eq!(devops.queue(&lock), Vec::<String>::new());
    devops.remove(&lock);
}
