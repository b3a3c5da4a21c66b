//! What is kept beside the locks: a marker as long as somebody vouches for a contender, what its owner says of itself as long as
//! the contender is there, and what the version of its node says.

use std::time::{Duration, SystemTime};

use syncd_spawn::lock::{NodeName, Testimony, id_of};
use zookeeper_client::{Acl, Acls, AuthId, CreateMode, Error, Permission, Stat};

use super::bench::{Bench, LIMIT, Run, wait_until};
use super::interop::{KAZOOS, peer, python};
use super::proxy::{Direction, Proxy, Request};
use super::wire::MULTI;
use super::zookeeper::Server;

const SIDE_TREE: &str = "/.syncd-spawn";
const DOES_WITHOUT: &str = "if we die, nobody but this host and an operator can tell";

/// A server whose sessions last four seconds.
fn hasty() -> Server {
    Server::start("tickTime=500\nmaxSessionTimeout=4000")
}

/// What a node says, and of which session and version it is.
fn node(bench: &Bench, path: &str) -> Option<(Vec<u8>, Stat)> {
    let path = format!("{}{path}", bench.chroot());
    bench.admin(async move |client| match client.get_data(&path).await {
        Ok(node) => Ok(Some(node)),
        Err(Error::NoNode) => Ok(None),
        Err(error) => Err(error),
    })
}

fn version(bench: &Bench, lock: &str, name: &str) -> i32 {
    node(bench, &format!("{lock}/{name}")).expect("it is there").1.version
}

fn id(name: &str) -> String {
    id_of(&NodeName::parse(name).expect("a name")).expect("one of ours").to_owned()
}

fn marker(name: &str) -> String {
    format!("{SIDE_TREE}/{}", id(name))
}

fn testimony(name: &str) -> String {
    format!("{SIDE_TREE}/{}.owner", id(name))
}

/// Whether somebody has written down that nobody vouches for it.
fn is_told_orphaned(bench: &Bench, name: &str) -> bool {
    node(bench, &testimony(name)).is_some_and(|(text, _)| Testimony::parse(&text).expect("it is whole").is_orphaned)
}

/// Waits until the servers have forgotten the session of one that vouched for this.
fn expires(bench: &Bench, name: &str) {
    wait_until("its session expires", || node(bench, &marker(name)).is_none());
}

fn nothing_is_left(bench: &Bench, lock: &str) {
    assert_eq!(bench.queue(lock), Vec::<String>::new());
    bench.forgets();
}

/// Asserts that a contender stands there as lockpick and kazoo know them, with this version, and that somebody vouches for it.
#[track_caller]
fn is_vouched_for(bench: &Bench, name: &str, run: &Run, version: i32) {
    let (data, stat) = node(bench, &format!("/x/{name}")).expect("it is there");
    assert_eq!((data.as_slice(), stat.version, stat.ephemeral_owner), (&b"me"[..], version, 0));
    let (told, told_stat) = node(bench, &testimony(name)).expect("it tells of itself");
    let (marked, marker_stat) = node(bench, &marker(name)).expect("it is marked");
    assert_eq!((told_stat.ephemeral_owner, marker_stat.ephemeral_owner != 0, &marked), (0, true, &told));
    let Testimony { lock, owner, abandon_after, is_orphaned } = Testimony::parse(&told).expect("a testimony");
    assert_eq!((lock.to_string().as_str(), abandon_after, is_orphaned), ("/x", None, false));
    let read = |path| std::fs::read_to_string(path).unwrap().trim_end().to_owned();
    assert_eq!(owner.host, read("/proc/sys/kernel/hostname"));
    assert_eq!(owner.boot, read("/proc/sys/kernel/random/boot_id"));
    assert_eq!(owner.pid.map(u32::cast_signed), Some(run.pid()));
    assert!(SystemTime::now().duration_since(owner.started).unwrap() < LIMIT * 2, "{:?}", owner.started);
    // Its arguments are nobody's business.
    assert_eq!(owner.command, "sh");
    assert!(!String::from_utf8(told).unwrap().contains("ready"));
}

#[test]
fn a_run_is_vouched_for_while_it_waits_and_while_it_holds_and_its_version_says_which() {
    let bench = Bench::zookeeper();
    let options = ["-n", "/x", "-i", "me"];
    let holder = bench.hold(options).ready();
    let first = bench.queue("/x").remove(0);
    is_vouched_for(&bench, &first, &holder, 0);
    let waiter = bench.hold(options).waits();
    let queue = bench.queue("/x");
    assert_eq!((queue.len(), &queue[0], bench.side_tree().len()), (2, &first, 4));
    is_vouched_for(&bench, &queue[1], &waiter, 1);
    is_vouched_for(&bench, &first, &holder, 0);
    holder.finish().good();
    let waiter = waiter.ready();
    is_vouched_for(&bench, &queue[1], &waiter, 2);
    let mut tree = vec![String::new(), SIDE_TREE.to_owned(), marker(&queue[1]), testimony(&queue[1])];
    tree.extend(["/x".to_owned(), format!("/x/{}", queue[1])]);
    assert_eq!(bench.tree(), tree);
    waiter.finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn whoever_is_passed_by_others_waits_once_and_one_that_is_not_stood_behind_has_no_marker() {
    let bench = Bench::zookeeper();
    let raw = bench.run(["rlock", "/x"]).good();
    let other = bench.hold(["-n", "/x", "-l", "rlock"]).ready();
    let bound = bench.hold(["-n", "/x", "-l", "rlock", "--ephemeral"]).ready();
    let waiter = bench.hold(["-n", "/x", "-l", "wlock"]).waits();
    let queue = bench.queue("/x");
    let versions: Vec<_> = queue.iter().map(|name| version(&bench, "/x", name)).collect();
    assert_eq!(versions, [0, 0, 0, 1]);
    // The one that is bound to its session goes with it, and what it says of itself is on its marker.
    let told: Vec<_> = queue.iter().map(|name| node(&bench, &testimony(name)).is_some()).collect();
    let marked: Vec<_> = queue.iter().map(|name| node(&bench, &marker(name)).is_some()).collect();
    assert_eq!((told, marked), (vec![false, true, false, true], vec![false, true, true, true]));
    let (_, stat) = node(&bench, &marker(&queue[2])).expect("it is marked");
    assert_eq!(stat.ephemeral_owner, node(&bench, &format!("/x/{}", queue[2])).unwrap().1.ephemeral_owner);
    // Behind somebody else now, which is no other thing to say.
    bound.finish().good();
    waiter.warns(", 2 in front");
    bench.run(["unlock", raw.stdout().trim_end()]).good();
    assert_eq!(version(&bench, "/x", &queue[3]), 1);
    other.finish().good();
    let waiter = waiter.ready();
    assert_eq!(version(&bench, "/x", &queue[3]), 2);
    waiter.finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn nothing_is_left_beside_the_locks_however_a_run_ends() {
    let bench = Bench::zookeeper();
    bench.run(["-n", "/x", "true"]).good();
    bench.run(["-n", "/x", "false"]).failed(1, "");
    bench.run(["-n", "/x", "no-such-command"]).failed(127, "cannot run");
    bench.run(["-n", "/x", "--ephemeral", "true"]).good();
    nothing_is_left(&bench, "/x");
    let holder = bench.hold(["-n", "/x"]).ready();
    bench.run(["-t", "2s", "-n", "/x", "true"]).failed(124, "not acquired in time");
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    let waiter = bench.hold(["-n", "/x"]).waits();
    waiter.signal(libc::SIGTERM);
    assert_eq!(waiter.end().died_of(), libc::SIGTERM);
    wait_until("only the holder's is left", || bench.side_tree().len() == 2);
    holder.signal(libc::SIGTERM);
    assert_eq!(holder.end().died_of(), libc::SIGTERM);
    nothing_is_left(&bench, "/x");
}

#[test]
fn nothing_is_left_beside_the_locks_of_whom_somebody_else_has_released() {
    let bench = Bench::zookeeper();
    let unlock = |path: &str| drop(bench.run(["unlock", path]).good());
    // These know nothing of what is beside the locks.
    let kazoo = |path: &str| drop(peer(KAZOOS[0], &bench, &["release", path]).finish().good());
    let lockpick = |path: &str| {
        let program = python(KAZOOS[1]).with_file_name("lockpick");
        let words = ["-s", bench.servers(), "-c", bench.chroot(), "-i", "me", "unlock", path];
        drop(Run::start(bench.program(program.to_str().unwrap(), words)).finish().good());
    };
    for way in [&unlock as &dyn Fn(&str), &kazoo, &lockpick] {
        let holder = bench.hold(["-n", "/x", "-i", "me"]).ready();
        let waiter = bench.hold(["-n", "/x", "-i", "me"]).waits();
        let queue = bench.queue("/x");
        way(&format!("/x/{}", queue[1]));
        waiter.warns(&format!("/x/{} was removed while we waited: queueing again at the end", queue[1]));
        wait_until("it has queued again", || bench.queue("/x").len() == 2);
        assert_eq!(node(&bench, &testimony(&queue[1])).map(|_| ()), None);
        way(&format!("/x/{}", queue[0]));
        holder.end().failed(123, "was removed while the command runs");
        waiter.ready().finish().good();
        nothing_is_left(&bench, "/x");
    }
}

#[test]
fn a_waiter_that_nobody_vouches_for_is_removed_by_the_one_behind_it() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let (lost, _directory) = bench.on_a_lost_host();
    let holder = bench.hold(["-n", "/x", "-l", "rlock"]).ready();
    let mut dead = lost.hold(["-n", "/x", "-l", "wlock"]).waits();
    let behind = bench.hold(["-v", "-n", "/x"]).waits();
    let queue = bench.queue("/x");
    dead.kill();
    wait_until("it is removed", || !bench.queue("/x").contains(&queue[1]));
    assert_eq!(bench.queue("/x"), [queue[0].as_str(), &queue[2]]);
    assert!(node(&bench, &testimony(&queue[1])).is_none() && bench.side_tree().len() == 4);
    holder.finish().good();
    behind.ready().finish().good();
    // By one that does not wait, too, if that is all that it would have to wait for.
    let holder = bench.hold(["-n", "/x", "-l", "rlock"]).ready();
    let mut dead = lost.hold(["-n", "/x", "-l", "wlock"]).waits();
    let name = bench.queue("/x").remove(1);
    bench.run(["--no-wait", "-n", "/x", "-l", "rlock", "true"]).failed(124, "not acquired in time");
    dead.kill();
    expires(&bench, &name);
    bench.run(["--no-wait", "-n", "/x", "-l", "rlock", "true"]).good();
    assert_eq!(bench.queue("/x").len(), 1);
    holder.finish().good();
    nothing_is_left(&bench, "/x");
}

/// Kills one that holds, and waits until it was found that nobody vouches for it.
fn dies(bench: &Bench, mut run: Run, name: &str) {
    run.kill();
    wait_until("it is written down", || is_told_orphaned(bench, name));
    assert!(node(bench, &marker(name)).is_none());
}

#[test]
fn a_holder_that_nobody_vouches_for_is_left_to_its_host_and_to_operators() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let ((one, _one), (other, _other)) = (bench.on_a_lost_host(), bench.on_a_lost_host());
    // One that never waited, and one that did.
    let first = one.hold(["-n", "/x"]).ready();
    let second = other.hold(["-n", "/x"]).waits();
    let next = bench.hold(["-n", "/x"]).waits();
    let queue = bench.queue("/x");
    dies(&bench, first, &queue[0]);
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    assert_eq!((bench.queue("/x"), second.stdout()), (queue.clone(), String::new()));
    bench.run(["unlock", &format!("/x/{}", queue[0])]).good();
    let second = second.ready();
    assert_eq!(version(&bench, "/x", &queue[1]), 2);
    dies(&bench, second, &queue[1]);
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    assert_eq!((bench.queue("/x"), next.stdout()), (queue[1..].to_vec(), String::new()));
    bench.run(["unlock", &format!("/x/{}", queue[1])]).good();
    next.ready().finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn a_holder_that_lives_is_not_removed_though_its_marker_is_gone() {
    let bench = Bench::zookeeper();
    let first = bench.hold(["-n", "/x"]).ready();
    let second = bench.hold(["-n", "/x"]).waits();
    let third = bench.hold(["-n", "/x"]).waits();
    let queue = bench.queue("/x");
    let loses_its_marker = |name| {
        bench.remove(&marker(name));
        wait_until("it is written down", || is_told_orphaned(&bench, name));
        bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    };
    loses_its_marker(&queue[0]);
    assert_eq!((bench.queue("/x"), second.stdout()), (queue.clone(), String::new()));
    first.finish().good();
    let second = second.ready();
    loses_its_marker(&queue[1]);
    assert_eq!((bench.queue("/x"), third.stdout()), (queue[1..].to_vec(), String::new()));
    second.finish().good();
    third.ready().finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn a_holder_that_lives_vouches_for_itself_again_after_its_session_has_expired() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/x"]).ready();
    let waiter = bench.hold(["-n", "/x"]).waits();
    let queue = bench.queue("/x");
    let (told, before) = node(&bench, &marker(&queue[0])).expect("it is marked");
    holder.signal(libc::SIGSTOP);
    wait_until("it is written down", || is_told_orphaned(&bench, &queue[0]));
    holder.signal(libc::SIGCONT);
    wait_until("it is marked again", || node(&bench, &marker(&queue[0])).is_some());
    let (told_again, after) = node(&bench, &marker(&queue[0])).expect("it is marked");
    assert!(told == told_again && before.ephemeral_owner != after.ephemeral_owner);
    assert_eq!(node(&bench, &testimony(&queue[0])).expect("it tells of itself").0, told);
    assert_eq!((bench.queue("/x"), waiter.stdout()), (queue, String::new()));
    holder.finish().good();
    waiter.ready().finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn what_a_dead_owner_said_is_swept_by_the_next_who_waits_for_that_lock_when_its_contender_was_released() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let names = ["/x", "/y"].map(|lock| {
        let (lost, _directory) = bench.on_a_lost_host();
        let mut dead = lost.hold(["-n", lock]).ready();
        dead.kill();
        bench.queue(lock).remove(0)
    });
    for (lock, name) in ["/x", "/y"].into_iter().zip(&names) {
        expires(&bench, name);
        bench.remove(&format!("{lock}/{name}"));
        bench.run(["-n", lock, "true"]).good();
    }
    assert_eq!(bench.side_tree().len(), 2);
    for (lock, name) in ["/x", "/y"].into_iter().zip(&names) {
        let holder = bench.hold(["-n", lock]).ready();
        // Who is robbed and lives will do it itself.
        let robbed = bench.hold(["-n", lock]).waits();
        let waiter = bench.hold(["-n", lock]).waits();
        wait_until("it is swept", || node(&bench, &testimony(name)).is_none());
        let others = names.iter().filter(|other| node(&bench, &testimony(other)).is_some()).count();
        assert_eq!(others, usize::from(lock == "/x"), "only its own lock's");
        holder.finish().good();
        robbed.ready().finish().good();
        waiter.ready().finish().good();
    }
    nothing_is_left(&bench, "/x");
}

/// Has everything work as ever, and nothing be said of what is beside the locks by default.
fn does_without(bench: &Bench) {
    let said = bench.run(["-v", "-n", "/x", "true"]).good().stderr;
    assert!(
        said.contains(&format!("cannot write to {}{SIDE_TREE}: ", bench.chroot())) && said.contains(DOES_WITHOUT),
        "{said}"
    );
    let holder = bench.hold(["-n", "/x"]).ready();
    let waiter = bench.hold(["-n", "/x"]).waits();
    let names = bench.queue("/x");
    bench.run(["-t", "2s", "-n", "/x", "true"]).failed(124, "not acquired in time");
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    bench.run(["unlock", &format!("/x/{}", names[1])]).good();
    waiter.warns("was removed while we waited");
    wait_until("it has queued again", || bench.queue("/x").len() == 2);
    let again = bench.queue("/x").remove(1);
    assert_eq!([&names[0], &again].map(|name| version(bench, "/x", name)), [0, 0]);
    assert_eq!(holder.finish().good().stdout(), "ready\n");
    let ended = waiter.ready().finish().good();
    assert!(!ended.stderr.contains(SIDE_TREE), "{}", ended.stderr);
    bench.run(["-q", "--ephemeral", "-n", "/x", "true"]).good();
    assert_eq!(bench.queue("/x"), Vec::<String>::new());
}

/// Lets everybody do only this there.
fn permit(bench: &Bench, path: &str, permission: Permission) {
    let path = format!("{}{path}", bench.chroot());
    let acl = [Acl::new(permission, AuthId::new("world", "anyone"))];
    bench.admin(async move |client| client.set_acl(&path, &acl, None).await);
}

#[test]
fn where_nothing_may_be_written_beside_the_locks_we_do_without() {
    for permission in [Permission::READ, Permission::NONE, Permission::CREATE | Permission::READ, Permission::DELETE] {
        let bench = Bench::zookeeper();
        bench.plant_side_tree();
        permit(&bench, SIDE_TREE, permission | Permission::ADMIN);
        does_without(&bench);
        permit(&bench, SIDE_TREE, Permission::ALL);
        assert_eq!(bench.side_tree(), Vec::<String>::new(), "{permission:?}");
    }
    // It is not there, and nobody may make it.
    let bench = Bench::zookeeper();
    bench.plant("/x/stranger", "");
    bench.remove("/x/stranger");
    permit(&bench, "", Permission::READ | Permission::ADMIN);
    does_without(&bench);
    assert_eq!(bench.tree(), ["", "/x"]);
    // Nothing can be in it.
    let bench = Bench::zookeeper();
    bench.plant("/x/stranger", "");
    bench.remove("/x/stranger");
    let ephemeral = format!("{}{SIDE_TREE}", bench.chroot());
    bench.admin(async |client| {
        client.create(&ephemeral, b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await?;
        let bench = bench.clone();
        tokio::task::spawn_blocking(move || does_without(&bench)).await.unwrap();
        Ok(())
    });
    bench.run(["-n", "/x", "true"]).good();
    nothing_is_left(&bench, "/x");
}

/// The number of the server's last transaction.
fn transactions(server: &Server) -> u64 {
    let said = server.ask("srvr");
    let zxid = said.lines().find_map(|line| line.strip_prefix("Zxid: 0x")).unwrap_or_else(|| panic!("{said}"));
    u64::from_str_radix(zxid, 16).unwrap()
}

/// Runs something through a proxy; says what was asked for in every flight, and how many transactions it took.
fn counted(server: &Server, bench: &Bench, work: impl FnOnce(&Bench, &Proxy)) -> (Vec<Vec<i32>>, u64) {
    let proxy = Proxy::start(&server.address(), &[]);
    // So long that all that is asked for together has left before the first answer is there.
    proxy.delay(Direction::ToClient, Duration::from_millis(60));
    let before = transactions(server);
    work(&bench.through(&proxy.address()), &proxy);
    (proxy.flights(), transactions(server) - before)
}

#[test]
fn whoever_is_alone_takes_as_many_round_trips_and_transactions_as_without_a_marker() {
    let server = Server::start("");
    let bench = Bench::on(&server.address());
    bench.run(["-n", "/x", "true"]).good();
    let (marked, took) = counted(&server, &bench, |through, proxy| {
        let holder = through.hold(["-n", "/x"]).ready();
        // Its watch is armed.
        proxy.answers(&[Request::Exists as i32]);
        holder.finish().good();
    });
    let of = |requests: &[Request]| requests.iter().map(|request| *request as i32).collect::<Vec<_>>();
    let watch = of(&[Request::Exists]);
    let end = of(&[Request::Close]);
    let looks = of(&[Request::Exists, Request::List]);
    let (connect, release) = (of(&[Request::Connect]), vec![MULTI]);
    let expected = [connect, vec![Request::Permissions as i32; 2], vec![MULTI], looks, watch, release, end];
    assert_eq!(marked, expected);
    // The same by hand, one after the other, and without a marker.
    let directory = format!("{}/x", bench.chroot());
    let (plain, plainly_took) = counted(&server, &bench, |through, _| {
        through.admin(async |client| {
            client.get_acl(&directory).await?;
            let next = CreateMode::PersistentSequential.with_acls(Acls::anyone_all());
            let (_, sequence) = client.create(&format!("{directory}/by-hand"), b"", &next).await?;
            let node = format!("{directory}/by-hand{sequence}");
            client.list_children(&directory).await?;
            let watch = client.check_and_watch_stat(&node).await?;
            client.delete(&node, None).await.map(|()| drop(watch))
        });
    });
    let plainly =
        [Request::Create, Request::List, Request::Exists, Request::Delete, Request::Close].map(|request| of(&[request]));
    let plainly = [of(&[Request::Connect]), of(&[Request::Permissions])].into_iter().chain(plainly).collect::<Vec<_>>();
    assert_eq!(plain, plainly);
    assert_eq!((marked.len(), took), (plain.len(), plainly_took));
}

#[test]
fn who_waits_behind_kazoo_buries_the_dead_in_front_of_it_too() {
    let server = hasty();
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/x"]).ready();
    let (elsewhere, _lost) = bench.on_a_lost_host();
    let mut dead = elsewhere.hold(["-n", "/x"]).waits();
    let name = bench.queue_reaches("/x", 2).remove(1);
    dead.kill();
    expires(&bench, &name);
    let kazoos = peer(KAZOOS[1], &bench, &["hold", "wlock", "/x", "kazoo's"]);
    bench.queue_reaches("/x", 3);
    let ours = bench.hold(["-n", "/x"]).waits();
    wait_until("the dead one is gone", || !bench.queue("/x").contains(&name));
    holder.finish().good();
    kazoos.ready().finish().good();
    ours.ready().finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn whoever_waits_below_another_chroot_is_not_taken_for_dead() {
    let bench = Bench::zookeeper();
    let nearer = bench.in_chroot(&format!("{}/app", bench.chroot()));
    let holder = bench.hold(["-n", "/app/db"]).ready();
    let far = bench.hold(["-n", "/app/db"]).waits();
    bench.queue_reaches("/app/db", 2);
    let near = nearer.hold(["-n", "/db"]).waits();
    let queue = bench.queue_reaches("/app/db", 3);
    // Whoever comes only to look would remove a dead one.
    nearer.run(["--no-wait", "-n", "/db", "true"]).failed(124, "not acquired in time");
    assert_eq!(bench.queue("/app/db"), queue);
    holder.finish().good();
    far.ready().finish().good();
    assert!(!near.stderr().contains("removed"), "{}", near.stderr());
    near.ready().finish().good();
    nothing_is_left(&bench, "/app/db");
    nearer.forgets();
}
