//! Servers that are none, that answer nonsense, that refuse, and that cannot go on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use zookeeper_client::{Acl, Acls, AuthId, CreateMode, Permission};

use super::bench::{Bench, Ended, LIMIT};
use super::wire::{self, Operation, Request};
use super::zookeeper::{Server, free_port};

/// Far above what a short limit, and the time-outs of the requests that are under way then, come to.
const BOUNDED: Duration = Duration::from_secs(40);

/// A length that no answer has.
const OVERSIZED: [u8; 4] = [0x7f, 0xff, 0xff, 0xff];
const NEGATIVE: [u8; 4] = [0x80, 0, 0, 1];

/// A server of our own: it grants sessions and keeps nodes as ZooKeeper does, but for the answers that the test spoils.
struct Fake {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    tree: Mutex<Tree>,
    /// What every request asked for.
    asked: Mutex<Vec<Vec<Operation>>>,
    spoil: Box<dyn Fn(&Asked) -> Said + Send + Sync>,
    is_over: AtomicBool,
}

/// Paths of nodes, below directories that are taken to be there.
#[derive(Clone, Default)]
struct Tree {
    nodes: Vec<String>,
    ephemeral: Vec<String>,
}

struct Asked {
    operations: Vec<Operation>,
    xid: i32,
}

/// What is said in place of an answer.
enum Said {
    /// The answer itself.
    Properly,
    /// An answer of this header's xid and this body.
    Instead(i32, Vec<u8>),
    /// These bytes, and then the connection ends.
    Raw(Vec<u8>),
    Nothing,
}

impl Fake {
    fn start(spoil: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            tree: Mutex::default(),
            asked: Mutex::default(),
            spoil: Box::new(spoil),
            is_over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let serving = Arc::clone(&serving);
                thread::spawn(move || serving.serve(stream));
            }
        });
        Fake { address, shared }
    }

    /// All that does not go with its session.
    fn nodes(&self) -> Vec<String> {
        let tree = self.shared.tree.lock().unwrap();
        tree.nodes.iter().filter(|node| !tree.ephemeral.contains(node)).cloned().collect()
    }

    /// Whether it was asked for anything else after it was asked for this so many times.
    fn was_asked_after(&self, request: Request, times: usize) -> bool {
        let asked = self.shared.asked.lock().unwrap();
        let mut asked = asked.iter();
        (0..times).all(|_| asked.any(|operations| request.is_in(operations))) && asked.next().is_some()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        frame(&mut stream)?;
        // Protocol 0, 30 s, session 1, a password of 16 bytes, not read-only.
        let granted = [&[0; 4][..], &30_000_i32.to_be_bytes(), &1_i64.to_be_bytes(), &16_i32.to_be_bytes(), &[7; 16], &[0]];
        stream.write_all(&framed(&granted.concat())).ok()?;
        loop {
            let request = frame(&mut stream)?;
            let (xid, kind) = (number(&request, 0), number(&request, 4));
            let operations = wire::operations(kind, &request[8..]);
            let proper = match self.tree.lock().unwrap().answer(kind, &operations) {
                Ok(body) => reply(xid, 0, &body),
                Err(error) => reply(xid, error, &[]),
            };
            self.asked.lock().unwrap().push(operations.clone());
            match (self.spoil)(&Asked { operations, xid }) {
                Said::Properly => stream.write_all(&proper).ok()?,
                Said::Instead(xid, body) => stream.write_all(&reply(xid, 0, &body)).ok()?,
                Said::Raw(bytes) => return stream.write_all(&bytes).ok(),
                Said::Nothing => {}
            }
        }
    }
}

const NO_NODE: i32 = -101;
const BAD_VERSION: i32 = -103;
const NODE_EXISTS: i32 = -110;
/// What is said of the parts of a transaction after one that was refused.
const INCONSISTENT: i32 = -2;
const STAT: [u8; 68] = [1; 68];

impl Tree {
    fn answer(&mut self, kind: i32, operations: &[Operation]) -> Result<Vec<u8>, i32> {
        const GET_ACL: i32 = 6;
        match (kind, operations) {
            (wire::MULTI, _) => Ok(self.transact(operations)),
            (GET_ACL, _) => {
                let open = [&1_i32.to_be_bytes()[..], &31_i32.to_be_bytes(), &text("world"), &text("anyone")].concat();
                Ok([&open[..], &STAT].concat())
            }
            (_, [operation]) => self.carry_out(operation),
            (_, _) => Ok(Vec::new()),
        }
    }

    /// All of it or nothing, in the words of a transaction's answer.
    fn transact(&mut self, operations: &[Operation]) -> Vec<u8> {
        let part = |kind: i32, body: &[u8]| [&kind.to_be_bytes()[..], &[0], &0_i32.to_be_bytes(), body].concat();
        let mut tried = self.clone();
        let answers: Vec<_> = operations.iter().map(|operation| tried.carry_out(operation)).collect();
        let parts: Vec<_> = match answers.iter().position(Result::is_err) {
            None => {
                *self = tried;
                operations.iter().zip(answers).map(|(operation, body)| part(operation.kind, &body.unwrap())).collect()
            }
            Some(refused) => (0..answers.len())
                .map(|number| match number.cmp(&refused) {
                    std::cmp::Ordering::Less => 0,
                    std::cmp::Ordering::Equal => *answers[number].as_ref().unwrap_err(),
                    std::cmp::Ordering::Greater => INCONSISTENT,
                })
                .map(|error: i32| part(-1, &error.to_be_bytes()))
                .collect(),
        };
        let end = [&(-1_i32).to_be_bytes()[..], &[1], &(-1_i32).to_be_bytes()].concat();
        [parts.concat(), end].concat()
    }

    fn carry_out(&mut self, operation: &Operation) -> Result<Vec<u8>, i32> {
        /// Whether we are still there is asked by a delete of a version that no node has.
        const NO_VERSION: i32 = i32::MAX;
        let path = &operation.path;
        let is_there = self.nodes.contains(path);
        if operation.is(Request::Create) {
            let path = if operation.is_sequential { format!("{path}0000000000") } else { path.clone() };
            if self.nodes.contains(&path) {
                return Err(NODE_EXISTS);
            }
            self.nodes.push(path.clone());
            self.ephemeral.extend(operation.is_ephemeral.then(|| path.clone()));
            let is_with_stat = operation.kind == Request::Create as i32;
            return Ok([&text(&path), &STAT[..if is_with_stat { STAT.len() } else { 0 }]].concat());
        }
        if operation.is(Request::List) {
            let names = self.nodes.iter().filter_map(|node| node.strip_prefix(path.as_str())?.strip_prefix('/'));
            let names: Vec<_> = names.filter(|name| !name.contains('/')).map(text).collect();
            return Ok([&i32::try_from(names.len()).unwrap().to_be_bytes()[..], &names.concat()].concat());
        }
        if operation.is(Request::Close) {
            let gone = std::mem::take(&mut self.ephemeral);
            self.nodes.retain(|node| !gone.contains(node));
            return Ok(Vec::new());
        }
        let needs_it = [Request::Delete, Request::Exists, Request::Read, Request::Mark];
        if !is_there && (operation.is_check() || needs_it.iter().any(|request| operation.is(*request))) {
            return Err(NO_NODE);
        }
        if operation.is(Request::Delete) {
            if operation.version == NO_VERSION {
                return Err(BAD_VERSION);
            }
            self.nodes.retain(|node| node != path);
            return Ok(Vec::new());
        }
        if operation.is(Request::Exists) || operation.is(Request::Mark) {
            return Ok(STAT.to_vec());
        }
        if operation.is(Request::Read) {
            return Ok([&text("me"), &STAT[..]].concat());
        }
        if operation.is(Request::Sync) {
            return Ok(text(path));
        }
        Ok(Vec::new())
    }
}

fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn number(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
}

fn text(text: &str) -> Vec<u8> {
    framed(text.as_bytes())
}

fn reply(xid: i32, error: i32, body: &[u8]) -> Vec<u8> {
    framed(&[&xid.to_be_bytes()[..], &1_i64.to_be_bytes(), &error.to_be_bytes(), body].concat())
}

/// It told no panic, and ended in time and without being busy.
#[track_caller]
fn calm(ended: Ended, started: Instant) -> Ended {
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    assert!(started.elapsed() < BOUNDED && ended.cpu < Duration::from_secs(1), "{:?} {ended:?}", started.elapsed());
    ended
}

#[test]
fn what_is_no_zookeeper_is_an_error_and_no_hang() {
    let sayings: [&[u8]; 8] = [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        // Cut short, in the length and in what should follow.
        &[0, 0],
        &[0, 0, 0, 37, 0, 0],
        &OVERSIZED,
        &NEGATIVE,
        &[0, 0, 0, 4, 1, 2, 3, 4],
        // A session whose password is longer than the answer.
        &[0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
    ];
    thread::scope(|scope| {
        for saying in sayings {
            for hangs_up in [true, false] {
                scope.spawn(move || {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let address = listener.local_addr().unwrap().to_string();
                    let is_over = Arc::new(AtomicBool::new(false));
                    let over = Arc::clone(&is_over);
                    let server = thread::spawn(move || {
                        let mut silent = Vec::new();
                        for mut stream in listener.incoming().map_while(Result::ok) {
                            _ = stream.write_all(saying);
                            silent.extend((!hangs_up).then_some(stream));
                            if over.load(Ordering::SeqCst) {
                                return;
                            }
                        }
                    });
                    let started = Instant::now();
                    let ended = Bench::on(&address).run(["-t", "1500ms", "true"]);
                    calm(ended, started).failed(125, &format!("cannot reach {address}: "));
                    is_over.store(true, Ordering::SeqCst);
                    _ = TcpStream::connect(&address);
                    server.join().unwrap();
                });
            }
        }
    });
}

/// Answers that no server gives, to any request.
fn nonsense(asked: &Asked, number: usize) -> Said {
    let xid = asked.xid;
    match number {
        0 => Said::Raw(reply(xid, 0, &[0; 80])[..50].to_vec()),
        1 => Said::Raw(OVERSIZED.to_vec()),
        2 => Said::Raw(NEGATIVE.to_vec()),
        3 => Said::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        4 => Said::Instead(xid + 1000, Vec::new()),
        5 => Said::Raw(reply(xid, 12345, &[])),
        // A body cut short: of nothing, of a string, and of a node's data.
        6 => Said::Instead(xid, vec![0; 3]),
        7 => Said::Instead(xid, [&100_i32.to_be_bytes()[..], b"short"].concat()),
        // A string that is not UTF-8.
        8 => Said::Instead(xid, [&1_i32.to_be_bytes()[..], &2_i32.to_be_bytes(), &[0xff, 0xfe]].concat()),
        _ => Said::Nothing,
    }
}
const NONSENSE: usize = 10;

/// Runs something against a server that answers these of such requests with nonsense, in every way at a time.
fn spoiled(request: Request, which: Range<usize>, check: impl Fn(&Fake, &Bench, &str) + Sync) {
    thread::scope(|scope| {
        for number in 0..NONSENSE {
            let (check, which) = (&check, which.clone());
            scope.spawn(move || {
                let asked_before = AtomicUsize::new(0);
                let fake = Fake::start(move |asked| {
                    let is_such = request.is_in(&asked.operations);
                    match is_such && which.contains(&asked_before.fetch_add(1, Ordering::SeqCst)) {
                        true => nonsense(asked, number),
                        false => Said::Properly,
                    }
                });
                let bench = Bench::on(&fake.address);
                check(&fake, &bench, &format!("nonsense {number} to {request:?}"));
            });
        }
    });
}

const ALL: Range<usize> = 0..usize::MAX;

#[test]
fn one_answer_that_is_nonsense_is_a_lost_answer() {
    thread::scope(|scope| {
        for request in [Request::Create, Request::Exists, Request::List, Request::Delete] {
            scope.spawn(move || {
                spoiled(request, 0..1, |fake, bench, what| {
                    let started = Instant::now();
                    let ended = calm(bench.run(["-n", "/lock", "echo", "ran"]), started);
                    assert!(ended.status.success() && ended.stdout() == "ran\n", "{what}: {ended:?}");
                    assert!(fake.nodes().is_empty(), "{what}: {:?}", fake.nodes());
                });
            });
        }
    });
}

#[test]
fn nothing_but_nonsense_is_an_error_in_time() {
    let wish = ["-t", "5s", "--release-timeout", "5s", "-n", "/lock", "echo", "ran"];
    thread::scope(|scope| {
        // The node of a lock without an owner is found by a look at the queue.
        scope.spawn(|| {
            spoiled(Request::Create, ALL, |fake, bench, what| {
                let started = Instant::now();
                let ended = calm(bench.run(["lock", "/lock"]), started).good();
                assert_eq!(fake.nodes(), [format!("{}{}", bench.chroot(), ended.stdout().trim_end())], "{what}");
            });
        });
        for request in [Request::Create, Request::List] {
            scope.spawn(move || {
                spoiled(request, ALL, |fake, bench, what| {
                    let started = Instant::now();
                    let ended = calm(bench.run(wish), started);
                    assert!(ended.status.code() == Some(124) && ended.stdout() == "", "{what}: {ended:?}");
                    assert!(ended.stderr.contains("not acquired in time: /lock"), "{what}: {ended:?}");
                    assert!(fake.nodes().is_empty(), "{what}: {:?}", fake.nodes());
                });
            });
        }
        scope.spawn(|| {
            spoiled(Request::Delete, ALL, |fake, bench, what| {
                let started = Instant::now();
                let ended = calm(bench.run(&wish[2..]), started);
                assert!(ended.stdout() == "ran\n" && fake.nodes().is_empty(), "{what}: {ended:?}");
                match ended.status.success() {
                    true => assert!(ended.stderr.contains("Unlocked '/lock/"), "{what}: {ended:?}"),
                    false => drop(ended.failed(125, "could not be removed")),
                }
            });
        });
    });
}

#[test]
fn a_watch_that_is_answered_with_nonsense_does_not_stop_the_command() {
    // The one before is the look at the own node.
    spoiled(Request::Exists, 1..2, |fake, bench, what| {
        let mut run = bench.hold(["-n", "/lock"]).ready();
        let started = Instant::now();
        while run.is_running() && !fake.was_asked_after(Request::Exists, 2) {
            assert!(started.elapsed() < LIMIT, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
        let ended = calm(run.finish(), started);
        assert!(ended.status.success() && ended.stdout() == "ready\n", "{what}: {ended:?}");
        assert!(fake.nodes().is_empty(), "{what}: {:?}", fake.nodes());
    });
}

#[test]
fn a_listing_that_cannot_be_read_is_an_error_in_time() {
    spoiled(Request::Read, ALL, |_, bench, what| {
        bench.run(["lock", "/lock"]).good();
        let started = Instant::now();
        let ended = calm(bench.run(["-t", "2s", "list", "/lock"]), started);
        assert!(ended.status.success() || ended.status.code() == Some(125), "{what}: {ended:?}");
        assert!(ended.status.success() || ended.stderr.contains(bench.servers()), "{what}: {ended:?}");
    });
    spoiled(Request::Read, 0..1, |_, bench, what| {
        let node = bench.run(["lock", "/lock"]).good();
        let listed = bench.run(["list", "/lock"]).good();
        assert!(listed.stdout().ends_with(node.stdout()), "{what}: {listed:?}");
    });
}

#[test]
fn a_request_that_the_server_hangs_up_on_is_told_and_not_hammered() {
    let server = Server::start_with("", &["-Djute.maxbuffer=20000"]);
    let bench = Bench::on(&server.address());
    let run = bench.start(["-t", "6s", "-i", &"x".repeat(60_000), "-n", "/big", "true"]);
    run.warns("does not answer our request to enter /big");
    let ended = run.end().failed(124, "not acquired in time: /big");
    assert!(ended.cpu < Duration::from_secs(1), "{:?}", ended.cpu);
    assert!(bench.queue("/big").is_empty());
}

#[test]
fn a_queue_that_takes_more_than_a_megabyte_is_listed_and_waited_in() {
    const LENGTH: usize = 20_000;
    let server = Server::start("");
    let bench = Bench::on(&server.address());
    let name = |number| format!("{}/many/{number:032x}__rlock__{number:010}", bench.chroot());
    bench.plant("/many/stranger", "");
    bench.admin(async |client| {
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        for first in (0..LENGTH).step_by(1000) {
            let mut batch = client.new_multi_writer();
            for number in first..first + 1000 {
                batch.add_create(&name(number), b"many", &options)?;
            }
            batch.commit().await.expect("a batch");
        }
        Ok(())
    });
    let listed = bench.run(["list", "/many"]).good();
    assert_eq!(listed.stdout().lines().count(), LENGTH);
    let reader = bench.hold(["-n", "/many", "-l", "rlock"]).ready();
    let writer = bench.hold(["-n", "/many", "-l", "wlock"]);
    writer.warns(&format!("{} in front", LENGTH + 1));
    reader.finish().good();
    bench.admin(async |client| {
        for first in (0..LENGTH).step_by(1000) {
            let mut batch = client.new_multi_writer();
            for number in first..first + 1000 {
                batch.add_delete(&name(number), None)?;
            }
            batch.commit().await.expect("a batch");
        }
        Ok(())
    });
    writer.ready().finish().good();
    assert_eq!(bench.queue("/many"), ["stranger"]);
}

/// Lets everybody do only this in a directory.
fn permit(bench: &Bench, path: &str, permission: Permission) {
    let path = format!("{}{path}", bench.chroot());
    bench.admin(async move |client| {
        let acl = [Acl::new(permission, AuthId::new("world", "anyone"))];
        client.set_acl(&path, &acl, None).await
    });
}

#[test]
fn a_server_that_refuses_is_an_error_that_says_what_and_leaves_nothing() {
    let bench = Bench::zookeeper();
    bench.plant("/acl/stranger", "");
    permit(&bench, "/acl", Permission::READ | Permission::ADMIN);
    bench.run(["-n", "/acl", "true"]).failed(125, "to let us enter");
    bench.run(["-n", "/acl/deep/lock", "true"]).failed(125, "to make");
    permit(&bench, "/acl", Permission::CREATE | Permission::DELETE | Permission::ADMIN);
    bench.run(["-n", "/acl", "true"]).failed(125, "refused to list /acl: not authorized");
    bench.run(["list", "/acl"]).failed(125, "refused to list /acl: not authorized");
    permit(&bench, "/acl", Permission::ALL);
    assert_eq!(bench.queue("/acl"), ["stranger"]);
    // An ephemeral node can have no children.
    let ephemeral = format!("{}/ephemeral", bench.chroot());
    bench.admin(async |client| {
        client.create(&ephemeral, b"", &CreateMode::Ephemeral.with_acls(Acls::anyone_all())).await?;
        bench.run(["-n", "/ephemeral", "true"]).failed(125, "ephemeral");
        Ok(())
    });
}

#[test]
fn where_nodes_may_be_made_but_not_deleted_nobody_enters() {
    let bench = Bench::zookeeper();
    bench.plant("/acl/stranger", "");
    permit(&bench, "/acl", Permission::CREATE | Permission::READ | Permission::ADMIN);
    let ended = bench.run(["-t", "20s", "--release-timeout", "1s", "-n", "/acl", "echo", "ran"]);
    let raw = bench.run(["-t", "20s", "--release-timeout", "1s", "lock", "/acl"]);
    let queue = bench.queue("/acl");
    permit(&bench, "/acl", Permission::ALL);
    for name in queue.iter().filter(|name| *name != "stranger") {
        bench.remove(&format!("/acl/{name}"));
    }
    for ended in [ended, raw] {
        assert_eq!(ended.stdout(), "", "{ended:?}");
        let ended = ended.failed(125, "/acl");
        assert!(ended.stderr.contains("delete") && ended.stderr.contains("not authorized"), "{ended:?}");
    }
    assert_eq!(queue, ["stranger"]);
}

#[test]
fn a_server_that_only_lets_us_read_is_no_server() {
    // One of three, whose others never start; it knows which one it is by a file among its data.
    let data = tempfile::tempdir().unwrap();
    fs::write(data.path().join("myid"), "1").unwrap();
    let members: Vec<_> = (1..=3).map(|id| format!("server.{id}=127.0.0.1:{}:{}", free_port(), free_port())).collect();
    let settings = format!("dataDir={}\ninitLimit=5\nsyncLimit=2\n{}", data.path().display(), members.join("\n"));
    let server = Server::start_with(&settings, &["-Dreadonlymode.enabled=true"]);
    assert!(server.ask("srvr").contains("read-only"), "{}", server.ask("srvr"));
    let bench = Bench::on(&server.address());
    for arguments in [&["-t", "2s", "echo", "ran"][..], &["--no-wait", "echo", "ran"], &["-t", "2s", "list", "/x"]] {
        let started = Instant::now();
        let ended = bench.run(arguments).failed(125, &format!("cannot reach {}: ", server.address()));
        assert_eq!(calm(ended, started).stdout(), "");
    }
}

#[test]
fn more_contenders_than_the_server_lets_in_from_one_address_all_finish() {
    const CONTENDERS: usize = 8;
    let server = Server::start("maxClientCnxns=3");
    let bench = Bench::on(&server.address());
    thread::scope(|scope| {
        for number in 0..CONTENDERS {
            let bench = &bench;
            scope.spawn(move || {
                let ended = bench.run(["-n", &format!("/lock-{}", number % 2), "echo", "ran"]).good();
                assert_eq!(ended.stdout(), "ran\n");
            });
        }
    });
    assert_eq!(bench.tree(), ["", "/lock-0", "/lock-1"]);
}

/// Whether the server does not hang up on it at once.
fn is_kept(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn that_there_may_be_too_many_connections_is_said_however_the_server_ends_ours() {
    let server = Server::start("maxClientCnxns=3");
    let bench = Bench::on(&server.address());
    // The one that asked whether it serves may not be gone yet.
    let started = Instant::now();
    let idle: Vec<_> = std::iter::repeat_with(|| TcpStream::connect(server.address()))
        .inspect(|_| assert!(started.elapsed() < LIMIT))
        .filter_map(Result::ok)
        .filter(is_kept)
        .take(3)
        .collect();
    // Whether the client sees an end, a reset or a broken pipe is a matter of moments, so many try at once.
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| bench.run(["-t", "4s", "true"]).failed(125, "too many connections?"));
        }
    });
    drop(idle);
    bench.run(["true"]).good();
}

/// A small file system, which is gone with the process that mounted it for itself.
struct Disk {
    keeper: Child,
    /// Closed, it ends the keeper.
    _leash: ChildStdin,
    place: tempfile::TempDir,
}

impl Disk {
    fn mount(size: &str) -> Disk {
        let place = tempfile::tempdir().unwrap();
        let script = r#"mount -t tmpfs -o size="$1" tmpfs "$2" && echo mounted && exec cat >/dev/null"#;
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", size])
            .arg(place.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let leash = keeper.stdin.take().expect("piped");
        let mut said = [0; 8];
        keeper.stdout.take().expect("piped").read_exact(&mut said).expect("it is mounted");
        Disk { keeper, _leash: leash, place }
    }

    /// Where everybody else sees it.
    fn path(&self) -> PathBuf {
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(self.place.path().strip_prefix("/").unwrap())
    }

    fn fill(&self) {
        let mut ballast = File::create(self.path().join("ballast")).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        _ = self.keeper.kill();
        _ = self.keeper.wait();
    }
}

#[test]
fn a_server_whose_disk_is_full_is_an_outage_until_there_is_room_again() {
    let disk = Disk::mount("1m");
    // Its log would take 64 MiB at once.
    let mut server = Server::start_with(&format!("dataDir={}", disk.path().display()), &["-Dzookeeper.preAllocSize=64"]);
    let bench = Bench::on(&server.address());
    let holder = bench.hold(["-n", "/disk"]).ready();
    let waiter = bench.start(["-n", "/disk", "echo", "ran"]).waits();
    disk.fill();
    // The first write that fails ends the server.
    let started = Instant::now();
    while TcpStream::connect(server.address()).is_ok() {
        assert!(started.elapsed() < LIMIT, "it writes on");
        let ended = bench.run(["-t", "1s", "--release-timeout", "1s", "-n", "/other", "echo", "ran"]);
        assert!(ended.stdout() == "ran\n" || [Some(124), Some(125)].contains(&ended.status.code()), "{ended:?}");
    }
    let ended = bench.run(["-t", "1s", "-n", "/other", "true"]);
    ended.failed(125, &format!("cannot reach {}: connection refused", server.address()));
    waiter.warns("cannot reach");
    disk.free();
    server.kill();
    assert!(server.restart());
    holder.finish().good();
    assert_eq!(waiter.end().good().stdout(), "ran\n");
    assert_eq!(bench.run(["-n", "/disk", "echo", "ran"]).good().stdout(), "ran\n");
    assert!(bench.queue("/disk").is_empty());
}
