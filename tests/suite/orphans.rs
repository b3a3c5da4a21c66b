//! What nobody stands behind any more: how it is listed, who says so, and how it is removed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zookeeper_client::{Acl, AuthId, Permission};

use super::bench::{BINARY, Bench, HOLD, LIMIT, Run, kill_tree, on_every_store, send, wait_until};
use super::names::Old;
use super::proxy::{Direction, Proxy};
use super::terminal::Terminal;
use super::zookeeper::Server;

/// kazoo's, with a number that comes first.
const FOREIGN: &str = "503e61fadc8f492497db823b87e64afe__lock__0000000000";
/// The shortest promise.
const PROMISE: Duration = Duration::from_secs(5);
const PROMISES: [&str; 6] = ["--abandon-after", "5s", "--grace", "500ms", "--release-timeout", "1s"];

/// On a server whose sessions end soon.
fn hasty() -> Bench {
    static HASTY: OnceLock<Server> = OnceLock::new();
    let server = HASTY.get_or_init(|| Server::start("tickTime=500\nminSessionTimeout=1000\nmaxSessionTimeout=3000"));
    Bench::on(&server.address())
}

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    state: String,
    identifier: String,
    host: String,
    pid: String,
    since: String,
    owner: String,
    node: String,
}

impl Row {
    fn says(&self, state: &str, identifier: &str, pid: &str, owner: &str) -> bool {
        (self.state.as_str(), self.identifier.as_str(), self.pid.as_str(), self.owner.as_str())
            == (state, identifier, pid, owner)
    }
}

fn table(bench: &Bench, lock: &str) -> Vec<Row> {
    let listed = bench.run(["list", "--long", lock]).good();
    let mut lines = listed.stdout().lines().map(|line| {
        let mut cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned);
        let mut cell = || cells.next().unwrap_or_else(|| panic!("a cell is missing: {}", listed.stdout()));
        let [state, identifier, host, pid, since, owner, node] = [(); 7].map(|()| cell());
        Row { state, identifier, host, pid, since, owner, node }
    });
    let header = lines.next().expect("a header");
    assert_eq!((header.state.as_str(), header.since.as_str(), header.node.as_str()), ("STATE", "SINCE", "NODE"));
    lines.collect()
}

/// Waits until a table is as it is to be.
fn table_becomes(bench: &Bench, lock: &str, is_so: impl Fn(&[Row]) -> bool) -> Vec<Row> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let rows = table(bench, lock);
        if is_so(&rows) {
            return rows;
        }
        assert!(Instant::now() < deadline, "{rows:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn is_orphaned(row: &Row) -> bool {
    row.owner.starts_with("orphaned")
}

/// Kills a run and what it started, and waits until nobody vouches for it any more. Its node.
fn orphan(bench: &Bench, run: Run, lock: &str, identifier: &str) -> String {
    kill_tree(run.pid());
    assert_eq!(run.end().died_of(), libc::SIGKILL);
    let has = |row: &Row| row.identifier == identifier && is_orphaned(row);
    let rows = table_becomes(bench, lock, |rows| rows.iter().any(has));
    rows.into_iter().find(has).expect("it is there").node
}

/// Types a line at a shell that finds the program.
fn type_in(bench: &Bench, program: &Path, line: &str) -> Run {
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut shell = bench.program("sh", ["-c", line]);
    shell.env("PATH", path).env_remove("SYNCD_SPAWN_SERVERS").env_remove("SYNCD_SPAWN_CHROOT");
    Run::start(shell)
}

fn hint(run: &Run) -> String {
    run.warns("\nhint: ");
    run.warns("__lock__0000000000\n");
    let text = run.stderr();
    let hints: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("hint: ")).collect();
    let [hint] = hints[..] else { panic!("{text}") };
    hint.to_owned()
}

fn program() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    symlink(BINARY, directory.path().join("syncd-spawn")).unwrap();
    directory
}

on_every_store!(
    a_table_says_who_holds_who_waits_and_who_stands_behind,
    what_lives_or_may_is_not_removed_if_dead,
    a_waiter_that_comes_to_its_turn_is_unlocked_all_the_same,
);

fn a_table_says_who_holds_who_waits_and_who_stands_behind(bench: &Bench) {
    let holder = bench.hold(["-i", "it's mine", "-n", "/x"]).ready();
    let waiter = bench.hold(["-i", "next", "-n", "/x"]).waits();
    bench.run(["-i", "by hand", "rlock", "/raw"]).good();
    bench.plant(&format!("/raw/{FOREIGN}"), "a peer");
    let rows = table(bench, "/x");
    let [first, second] = &rows[..] else { panic!("{rows:#?}") };
    assert!(first.says("held", "it's mine", &holder.pid().to_string(), "alive"), "{first:#?}");
    assert!(second.says("waiting", "next", &waiter.pid().to_string(), "alive"), "{second:#?}");
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!((first.host.as_str(), second.host.as_str()), (host.as_str(), host.as_str()));
    assert!(first.since.ends_with('Z') && first.since.starts_with("20"), "{first:#?}");
    let rows = table(bench, "/raw");
    let unknown = |identifier| rows.iter().find(|row| row.identifier == identifier && row.owner == "unknown");
    for identifier in ["by hand", "a peer"] {
        assert_eq!(unknown(identifier).map(|row| (row.host.as_str(), row.pid.as_str())), Some(("-", "-")), "{rows:#?}");
    }
    // Programs read what they always did; only a person gets the table unasked.
    let listed = bench.run(["list", "/x"]).good();
    assert_eq!(listed.stdout(), format!("'it's mine' {}\n'next' {}\n", first.node, second.node));
    let mut terminal = Terminal::start(bench, &[BINARY, "list", "/x"]);
    terminal.end();
    for text in ["STATE", "held", "waiting", "alive", &first.node, &second.node] {
        terminal.shows(text);
    }
    assert_eq!(bench.run(["list", "--long", "/none"]).code(), 1);
    holder.finish().good();
    waiter.ready().finish().good();
    assert_eq!(bench.run(["list", "--long", "/x"]).good().stdout().lines().count(), 1);
}

fn what_lives_or_may_is_not_removed_if_dead(bench: &Bench) {
    let holder = bench.hold(["-i", "mine", "-n", "/x"]).ready();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    let raw = bench.run(["-i", "raw", "lock", "/raw"]).good().stdout().trim_end().to_owned();
    let lives = format!("{node}: its owner lives: pid {} on ", holder.pid());
    bench.run(["unlock", "--if-dead", &node]).failed(1, &lives);
    bench.run(["unlock", "--if-dead", "-i", "yours", &node]).failed(1, "belongs to 'mine'");
    let unknown = "nothing tells whether its owner lives; unlock without --if-dead removes it";
    bench.run(["unlock", "--if-dead", &raw]).failed(1, unknown);
    let missing = format!("/x/{FOREIGN}");
    bench.run(["unlock", "--if-dead", &missing, &raw]).failed(1, &format!("no such lock: {missing}"));
    bench.run(["unlock", "--if-dead", "/none"]).failed(1, "no such lock: /none");
    for lock in ["/x", "/raw"] {
        assert_eq!(bench.run(["unlock", "--if-dead", lock]).good().stderr, "");
        assert_eq!(bench.queue(lock).len(), 1);
    }
    bench.run(["unlock", &raw]).good();
    holder.finish().good();
    assert_eq!(bench.run(["unlock", "--if-dead", "/x", "/raw"]).good().stderr, "");
}

fn a_waiter_that_comes_to_its_turn_is_unlocked_all_the_same(bench: &Bench) {
    for _ in 0..5 {
        let holder = bench.hold(["-n", "/turn"]).ready();
        let waiter = bench.hold(["-n", "/turn"]).waits();
        let node = format!("/turn/{}", bench.queue("/turn")[1]);
        let unlocking = bench.start(["unlock", &node]);
        holder.finish().good();
        assert_eq!(unlocking.end().good().stderr, "");
        // It queues again, or has come to its turn and is stopped.
        drop(waiter);
        bench.run(["-t", "30s", "-n", "/turn", "true"]).good();
    }
}

#[test]
fn a_host_that_never_comes_back_is_cleared_by_hand_and_not_while_its_marker_lives() {
    let bench = hasty();
    let (elsewhere, lost) = bench.on_a_lost_host();
    let mut holder = elsewhere.hold(["-i", "gone", "-n", "/x"]).ready();
    let waiter = bench.hold(["-n", "/x", "-p", "200ms"]).waits();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    let (pid, wrapper) = (holder.pid(), holder.pid().to_string());
    kill_tree(pid);
    assert!(fs::read_dir(lost.path()).unwrap().next().is_some(), "it had a journal");
    drop(lost);
    bench.run(["unlock", "--if-dead", &node]).failed(1, &format!("{node}: its owner lives: pid {pid} on "));
    assert!(!holder.is_running());
    waiter.warns(&format!("{node} since "));
    waiter.warns(&format!(", whose owner (pid {pid} on "));
    let rows = table_becomes(&bench, "/x", |rows| rows[0].owner.starts_with("orphaned since 20"));
    assert!(rows[0].says("held", "gone", &wrapper, &rows[0].owner) && rows[1].state == "waiting", "{rows:#?}");
    waiter.warns(" is dead or cut off since 20");
    let typed = hint(&waiter);
    let (servers, chroot) = (bench.servers(), bench.chroot());
    assert_eq!(typed, format!("syncd-spawn -s {servers} -c {chroot} unlock --if-dead {node}"));
    bench.run(["unlock", "--if-dead", "-i", "another", &node]).failed(1, "belongs to 'gone'");
    assert!(!waiter.stdout().contains("ready"));
    // Time and again that it is so, and once how to remove it.
    let deadline = Instant::now() + LIMIT;
    while waiter.stderr().matches(", whose owner").count() < 3 {
        assert!(Instant::now() < deadline, "{}", waiter.stderr());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(type_in(&bench, program().path(), &typed).finish().good().stderr, "");
    let told = waiter.ready().finish().good().stderr;
    assert_eq!(told.matches("hint: ").count(), 1, "{told}");
    bench.run(["unlock", "--if-dead", &node]).failed(1, &format!("no such lock: {node}"));
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn who_looks_once_is_told_that_an_orphan_is_in_the_way() {
    let bench = hasty();
    let (elsewhere, lost) = bench.on_a_lost_host();
    let holder = elsewhere.hold(["-n", "/x"]).ready();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    let living = bench.run(["-q", "--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time: /x, behind /x/");
    assert_eq!(living.stderr.lines().count(), 1, "{living:?}");
    kill_tree(holder.pid());
    drop(lost);
    // Until its session has expired it lives, for all that anybody knows.
    let mut told = String::new();
    wait_until("somebody is told", || {
        let skipped = bench.run(["-q", "--no-wait", "-E", "0", "-n", "/x", "true"]);
        assert_eq!(skipped.code(), 0);
        told = skipped.stderr;
        told.lines().count() == 3
    });
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with(&format!("syncd-spawn: {node}: its owner (pid {} on ", holder.pid())), "{told}");
    assert!(lines[2].starts_with("syncd-spawn: not acquired in time: /x, behind "), "{told}");
    let typed = lines[1].strip_prefix("hint: ").unwrap();
    type_in(&bench, program().path(), typed).finish().good();
    bench.run(["-q", "--no-wait", "-n", "/x", "true"]).good();
}

#[test]
fn what_a_killed_wrapper_left_running_on_this_host_keeps_its_node() {
    let bench = hasty();
    let mut holder = bench.start(["--pdeathsig", "none", "-i", "heir", "-n", "/x"].into_iter().chain(HOLD)).ready();
    holder.kill();
    let rows = table_becomes(&bench, "/x", |rows| is_orphaned(&rows[0]));
    let runs = format!("{}: its owner, or what that has started, still runs on this host", rows[0].node);
    bench.run(["unlock", "--if-dead", &rows[0].node]).failed(1, &runs);
    bench.run(["unlock", "--if-dead", "/x"]).failed(1, &runs);
    let entry = bench.state_dir().join(&bench.entries()[0]);
    let (elsewhere, lost) = bench.on_a_lost_host();
    if nix::unistd::geteuid().is_root() {
        // Nobody else could give it away.
        std::os::unix::fs::chown(&entry, Some(65534), None).unwrap();
        bench.run(["unlock", "--if-dead", &rows[0].node]).failed(1, "still runs on this host");
        std::os::unix::fs::chown(&entry, Some(0), None).unwrap();
    }
    let text = fs::read(&entry).unwrap();
    fs::write(&entry, "garbled").unwrap();
    bench.run(["unlock", "--if-dead", &rows[0].node]).failed(1, "its entry in this host's journal is not usable");
    fs::write(&entry, text).unwrap();
    // A journal in which others may write is none; and it is of this boot.
    fs::set_permissions(lost.path(), Permissions::from_mode(0o700)).unwrap();
    fs::write(lost.path().join("file"), "").unwrap();
    let broken = elsewhere.with_variable("SYNCD_SPAWN_STATE_DIR", lost.path().join("file"));
    broken.run(["unlock", "--if-dead", &rows[0].node]).failed(1, "nothing tells whether it still runs on this host");
    assert_eq!(bench.queue("/x").len(), 1);
    assert_eq!(holder.finish().died_of(), libc::SIGKILL);
    let deadline = Instant::now() + LIMIT;
    while bench.run(["unlock", "--if-dead", &rows[0].node]).code() != 0 {
        assert!(Instant::now() < deadline, "its command has ended");
    }
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn the_path_of_a_lock_stands_for_every_orphan_in_it() {
    let bench = hasty();
    let (elsewhere, _lost) = bench.on_a_lost_host();
    let read = |bench: &Bench, identifier| bench.hold(["-l", "rlock", "-n", "/x", "-i", identifier]).ready();
    let (first, second) = (read(&elsewhere, "first"), read(&elsewhere, "second"));
    let alive = read(&bench, "alive");
    let raw = bench.run(["-i", "raw", "rlock", "/x"]).good();
    let mut heir =
        bench.start(["--pdeathsig", "none", "-l", "rlock", "-i", "heir", "-n", "/x"].into_iter().chain(HOLD)).ready();
    heir.kill();
    let orphans = [orphan(&bench, first, "/x", "first"), orphan(&bench, second, "/x", "second")];
    table_becomes(&bench, "/x", |rows| rows.iter().any(|row| row.identifier == "heir" && is_orphaned(row)));
    // What carries another identifier is refused.
    let ended = bench.run(["unlock", "--if-dead", "-i", "first", "/x"]).failed(1, "belongs to 'second'");
    assert!(ended.stderr.contains(&format!("removed {}: its owner (pid ", orphans[0])), "{}", ended.stderr);
    let ended = bench.run(["unlock", "--if-dead", "/x"]).failed(1, "still runs on this host");
    assert!(ended.stderr.contains(&format!("removed {}: its owner (pid ", orphans[1])), "{}", ended.stderr);
    heir.finish();
    bench.run(["reap"]).good();
    let queue = bench.queue("/x");
    assert_eq!(queue.len(), 2, "{queue:?}");
    assert!(raw.stdout().contains(&queue[1]));
    assert_eq!(bench.run(["unlock", "--if-dead", "/x"]).good().stderr, "");
    alive.finish().good();
    bench.run(["unlock", raw.stdout().trim_end()]).good();
}

#[test]
fn under_the_old_name_the_line_is_lockpicks() {
    let bench = hasty();
    let (elsewhere, _lost) = bench.on_a_lost_host();
    let node = orphan(&bench, elsewhere.hold(["-i", "gone", "-n", "/x"]).ready(), "/x", "gone");
    let old = Old::on(&bench);
    let waiter = old.start_lockpick(&["-r", "60", "-p", "1", "lock", "/x"]);
    waiter.warns(&format!("{node}: its owner (pid "));
    let typed = hint(&waiter);
    assert_eq!(typed, format!("lockpick -s {} -c {} unlock {node}", bench.servers(), bench.chroot()));
    type_in(&bench, old.path(), &typed).finish().good();
    waiter.end().good();
}

#[test]
fn in_a_directory_the_kernel_says_who_is_dead() {
    let bench = Bench::directory();
    let mut holder = bench.start(["--pdeathsig", "none", "-i", "heir", "-n", "/x"].into_iter().chain(HOLD)).ready();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    holder.kill();
    // The wrapper took it, and is dead; nobody tells who has it now.
    let rows = table(&bench, "/x");
    assert!(rows[0].says("held", "heir", "-", "alive") && rows[0].host != "-", "{rows:#?}");
    bench.run(["unlock", "--if-dead", &node]).failed(1, "its owner lives: on ");
    let heir = holder.finish();
    assert_eq!(heir.died_of(), libc::SIGKILL);
    assert_eq!(bench.queue("/x").len(), 1);
    let deadline = Instant::now() + LIMIT;
    while bench.run(["unlock", "--if-dead", &node]).code() != 0 {
        assert!(Instant::now() < deadline, "its command has ended");
    }
    assert!(bench.queue("/x").is_empty());
    // A look at the lock clears it, too.
    let killed = bench.hold(["-n", "/x"]).ready();
    kill_tree(killed.pid());
    killed.end();
    bench.run(["unlock", "--if-dead", "/x"]).good();
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn a_promise_that_would_not_be_kept_is_not_taken() {
    let nowhere = Bench::on("127.0.0.1:1");
    for (options, complaint) in [
        (&["--abandon-after", "11s"][..], "--abandon-after 11s is too short for --grace 5s: it has to be 12s at least"),
        (
            &["--abandon-after", "4s", "--grace", "0"],
            "--abandon-after 4s is too short for --grace 0s: it has to be 5s at least",
        ),
        (&["--abandon-after", "1m", "--ephemeral"], "--abandon-after does not go with --ephemeral: a lock that goes with"),
        (&["--abandon-after", "1m", "--on-lost=ignore"], "--abandon-after does not go with --on-lost=ignore: a command that"),
        (&["--abandon-after", "1m", "--orphans=leave"], "--abandon-after does not go with --orphans=leave: what is left"),
        (&["--abandon-after", "1m", "--pdeathsig=TERM"], "--abandon-after does not go with --pdeathsig other than KILL: a"),
        (&["--abandon-after", "0"], "it must be more than nothing"),
        (&["--abandon-after", "soon"], "'soon' for '--abandon-after <DURATION>'"),
    ] {
        let ended = nowhere.run(options.iter().copied().chain(["-n", "/x", "true"]));
        assert!(ended.code() == 125 && ended.stderr.contains(complaint), "{options:?}: {ended:?}");
    }
    nowhere.run(["--abandon-after", "1m", "lock", "/x"]).failed(125, "--abandon-after belongs to a command that is run");
    // A site's default gives way to what is typed, and not to another one.
    let bench = Bench::directory().with_variable("SYNCD_SPAWN_ABANDON_AFTER", "1m");
    for option in ["-q", "--ephemeral", "--on-lost=ignore", "--orphans=leave"] {
        bench.run([option, "-n", "/x", "true"]).good();
    }
    let both = bench.with_variable("SYNCD_SPAWN_ON_LOST", "ignore");
    both.run(["-n", "/x", "true"]).failed(125, "SYNCD_SPAWN_ABANDON_AFTER does not go with SYNCD_SPAWN_ON_LOST=ignore");
    // In a directory nothing has to be promised, and the journal of others means something to what looks for the dead.
    bench.run(["--abandon-after", "18446744073709551615s", "-n", "/x", "true"]).good();
    let node = format!("/x/{FOREIGN}");
    bench.run(["--state-dir", "/nonexistent", "unlock", "--if-dead", &node]).failed(1, "no such lock");
    bench.run(["--state-dir", "/nonexistent", "unlock", &node]).failed(125, "--state-dir means nothing to unlock");
}

/// Numbered lines of somebody, as long as it is let.
fn writer(who: &str, file: &Path) -> [String; 4] {
    let script = format!("echo ready; while echo {who} >>{}; do sleep 0.02; done", file.display());
    ["--".to_owned(), "sh".to_owned(), "-c".to_owned(), script]
}

#[test]
fn a_promise_is_kept_before_the_next_one_gets_in() {
    let bench = hasty();
    let (elsewhere, lost) = bench.on_a_lost_host();
    let proxy = Proxy::start(bench.servers(), &[]);
    let file = lost.path().join("lines");
    let options =
        |who| PROMISES.map(str::to_owned).into_iter().chain(["-n".to_owned(), "/x".to_owned()]).chain(writer(who, &file));
    let old = elsewhere.through(&proxy.address()).start(options("old")).ready();
    let new = bench.start(options("new")).waits();
    proxy.blackhole(Direction::ToServer);
    proxy.blackhole(Direction::ToClient);
    old.warns("cannot confirm in time that others see us alive: stopping the command before /x/");
    old.warns("can be taken for abandoned");
    assert_eq!(old.end().code(), 123);
    let ended = fs::read_to_string(&file).unwrap();
    let new = new.ready();
    let lines = fs::read_to_string(&file).unwrap();
    let late = lines.strip_prefix(&ended).expect("it is only added to");
    assert!(ended.contains("old") && !late.contains("old"), "{late}");
    // No line that removes it before.
    new.warns("and stops its command within 5s");
    assert!(!new.stderr().contains("hint: "), "{}", new.stderr());
    new.signal(libc::SIGTERM);
    assert_eq!(new.end().died_of(), libc::SIGTERM);
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn a_promise_that_was_not_kept_is_not_relied_on_where_this_host_knows_better() {
    let bench = hasty();
    let heir = "sleep 1000 & echo pid $!; echo ready; wait";
    let options = PROMISES.into_iter().chain(["-n", "/x", "--", "sh", "-c", heir]);
    let mut holder = bench.start(options).ready();
    let pid = holder.stdout().lines().find_map(|line| line.strip_prefix("pid ")).unwrap().parse().unwrap();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    let waiter = bench.hold(["-v", "-n", "/x"]).waits();
    // Alone: what it was to stop lives on.
    holder.kill();
    let kept = format!("{node}: its owner was to stop its command by now, but something of it lives on this host");
    waiter.warns(&kept);
    assert!(!waiter.stdout().contains("ready"));
    send(pid, libc::SIGKILL);
    waiter.ready().finish().good();
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn where_nobody_can_be_told_nobody_is_bound_by_a_promise() {
    let bench = Bench::zookeeper();
    bench.plant("/.syncd-spawn/stranger", "");
    let side_tree = format!("{}/.syncd-spawn", bench.chroot());
    bench.admin(async move |client| {
        let acl = [Acl::new(Permission::READ | Permission::ADMIN, AuthId::new("world", "anyone"))];
        client.set_acl(&side_tree, &acl, None).await
    });
    let holder = bench.hold(["--abandon-after", "1m", "-i", "mine", "-n", "/x"]).ready();
    let rows = table(&bench, "/x");
    assert!(rows[0].says("held", "mine", "-", "unknown"), "{rows:#?}");
    let warning = format!("nobody can be told when {} is abandoned: it is kept until somebody releases it", rows[0].node);
    assert!(holder.finish().good().stderr.contains(&warning));
    assert!(bench.queue("/x").is_empty());
}

#[test]
fn who_has_promised_and_never_comes_back_is_waited_for_no_longer_than_that() {
    let bench = hasty();
    let (elsewhere, _lost) = bench.on_a_lost_host();
    let holder = elsewhere.hold(PROMISES.into_iter().chain(["-n", "/x"])).ready();
    let waiter = bench.hold(["-n", "/x"]).waits();
    let killed = Instant::now();
    kill_tree(holder.pid());
    assert_eq!(holder.end().died_of(), libc::SIGKILL);
    let waiter = waiter.ready();
    assert!(killed.elapsed() > PROMISE, "{:?}", killed.elapsed());
    waiter.finish().good();
    assert!(bench.queue("/x").is_empty());
}
