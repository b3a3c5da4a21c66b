//! The journal: what a killed run leaves in ZooKeeper is found, proven dead and removed by the next one on its host.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use syncd_spawn::journal::{Entry, KEEP, Seen};
use tempfile::TempDir;

use super::bench::{BINARY, Bench, Ended, HOLD, Run, children, cpu, kill_tree, send, wait_until};
use super::proxy::{Direction, Fate, Proxy, Request};
use super::zookeeper::{Server, free_port};

/// How soon who waits is to get in, once nobody lives any more.
const PROMPTLY: Duration = Duration::from_secs(5);
const FAMILY: &str = "503e61fadc8f492497db823b87e6";
const REMOVED: &str = "nobody lives who could work under it";
/// A command that holds its lock until what it started has ended, which reads the standard input: killed, it leaves that.
const LEAVES_AN_HEIR: [&str; 4] = ["--", "sh", "-c", "exec 3<&0; setsid cat <&3 >/dev/null 2>&1 3<&- & echo ready; wait"];

fn nothing_is_left(bench: &Bench, lock: &str) {
    assert_eq!((bench.queue(lock), bench.entries()), (Vec::new(), Vec::new()));
}

/// The path of the only entry.
fn only_entry(bench: &Bench) -> PathBuf {
    let entries = bench.entries();
    assert_eq!(entries.len(), 1, "{entries:?}");
    bench.state_dir().join(&entries[0])
}

/// What an entry would say of a run on another boot of this host.
fn forged(bench: &Bench, lock: &str, family: &str) -> String {
    format!(
        "syncd-spawn-journal 1\nservers {}\nchroot {}\nlock {lock}\nfamily {family}\nhost lost.host\n\
         boot 00000000-0000-0000-0000-000000000000\npid 4711\nsince 2018-07-25T17:09:52Z\n",
        bench.servers(),
        bench.chroot()
    )
}

fn forge(bench: &Bench, family: &str, text: &str) -> PathBuf {
    fs::create_dir_all(bench.state_dir()).unwrap();
    let path = bench.state_dir().join(family);
    fs::write(&path, text).unwrap();
    path
}

/// Has an entry be dead since this host is up.
pub fn age(path: &Path) {
    // So that this is long ago.
    while Seen::now().uptime <= KEEP {
        thread::sleep(Duration::from_millis(100));
    }
    let seen = Seen { uptime: Duration::ZERO, ..Seen::now() };
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text + &Entry::dead_line(&seen)).unwrap();
}

#[test]
fn an_entry_is_there_before_the_node_and_gone_after_it_whatever_became_of_the_run() {
    let bench = Bench::zookeeper();
    let holder = bench.hold(["-n", "/x", "-l", "wlock"]).ready();
    let node = bench.queue("/x").remove(0);
    let path = only_entry(&bench);
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), &node[..28]);
    let text = fs::read_to_string(&path).unwrap();
    for line in [format!("servers {}", bench.servers()), format!("chroot {}", bench.chroot()), "lock /x".to_owned()] {
        assert!(text.lines().any(|other| other == line), "{text}");
    }
    assert!(text.contains(&format!("\npid {}\n", holder.pid())) && !text.contains("dead"), "{text}");
    let modes = [&bench.state_dir(), &path].map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o777);
    assert_eq!(modes, [0o700, 0o600]);
    // In time, by a signal, or not at all.
    bench.run(["-t", "2s", "-n", "/x", "true"]).failed(124, "not acquired in time");
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    let waiter = bench.hold(["-n", "/x"]).waits();
    assert_eq!(bench.entries().len(), 2);
    waiter.signal(libc::SIGTERM);
    assert_eq!(waiter.end().died_of(), libc::SIGTERM);
    assert_eq!(only_entry(&bench), path);
    holder.signal(libc::SIGTERM);
    assert_eq!(holder.end().died_of(), libc::SIGTERM);
    nothing_is_left(&bench, "/x");
    bench.run(["-n", "/x", "false"]).failed(1, "");
    bench.run(["-n", "/x", "no-such-command"]).failed(127, "cannot run");
    bench.run(["-n", "/x", "--ephemeral", "true"]).good();
    nothing_is_left(&bench, "/x");
    let taken = bench.hold(["-n", "/x"]).ready();
    bench.remove(&format!("/x/{}", bench.queue("/x")[0]));
    assert_eq!(taken.end().code(), 123);
    nothing_is_left(&bench, "/x");
    // A directory tells by itself who lives, and where nobody was reached there is nothing.
    bench.through(&format!("file://{}", bench.state_dir().display())).run(["-n", "/d", "true"]).good();
    let nobody = bench.through("127.0.0.1:1");
    nobody.run(["--no-wait", "-n", "/x", "true"]).failed(125, "cannot reach");
    let waits = nobody.start(["-n", "/x", "true"]);
    wait_until("it is written", || bench.entries().iter().any(|name| name.len() == 28));
    waits.signal(libc::SIGTERM);
    assert_eq!(waits.end().died_of(), libc::SIGTERM);
    assert_eq!(bench.entries().iter().filter(|name| name.len() == 28).count(), 0);
}

#[test]
fn an_entry_is_written_while_the_server_is_still_being_reached() {
    let bench = Bench::zookeeper();
    let proxy = Proxy::start(bench.servers(), &[]);
    proxy.blackhole(Direction::ToClient);
    let run = bench.through(&proxy.address()).hold(["-n", "/x"]);
    wait_until("it is written", || bench.entries().len() == 1);
    assert!(proxy.flights().iter().all(|flight| flight.iter().all(|request| *request == Request::Connect as i32)));
    proxy.heal();
    run.ready().finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn what_is_killed_with_its_command_is_removed_by_the_next_one() {
    let bench = Bench::zookeeper();
    for (kind, options) in [("lock", &[][..]), ("rlock", &["--no-wait"]), ("wlock", &["-t", "30s"])] {
        let holder = bench.hold(["-n", "/x", "-l", kind]).ready();
        kill_tree(holder.pid());
        assert_eq!(holder.end().died_of(), libc::SIGKILL);
        let node = bench.queue("/x").remove(0);
        let since = Instant::now();
        let next = bench.run(options.iter().copied().chain(["-n", "/x", "-l", "wlock", "echo", "ran"])).good();
        assert_eq!(next.stdout(), "ran\n");
        assert!(next.stderr.contains(&format!("removed /x/{node}: {REMOVED} (pid ")), "{}", next.stderr);
        assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
        nothing_is_left(&bench, "/x");
    }
    // By one who contends for another lock, too, and by a raw lock; not by one in another chroot.
    let holder = bench.hold(["-n", "/x"]).ready();
    kill_tree(holder.pid());
    assert_eq!(holder.end().died_of(), libc::SIGKILL);
    bench.run(["--no-wait", "-c", &format!("{}/elsewhere", bench.chroot()), "-n", "/x", "true"]).good();
    assert_eq!(bench.queue("/x").len(), 1);
    let ended = bench.run(["--no-wait", "lock", "/y"]).good();
    assert!(ended.stderr.contains(REMOVED), "{}", ended.stderr);
    nothing_is_left(&bench, "/x");
}

#[test]
fn who_waits_gets_in_by_himself_when_the_command_of_a_killed_wrapper_has_ended_and_no_sooner() {
    let bench = Bench::zookeeper();
    let mut holder = bench.start(["--pdeathsig", "none", "-n", "/x"].into_iter().chain(HOLD)).ready();
    holder.kill();
    let next = bench.hold(["-n", "/x", "-p", "100ms"]).waits();
    enters_when_the_last_has_ended(&bench, next, holder);
}

/// So many entries of other servers that looks at all of them are far between.
fn many_of_others(bench: &Bench) -> usize {
    let others = Bench::on("others:2181");
    for number in 0..1000 {
        let family = format!("{number:04}{}", &FAMILY[4..]);
        forge(bench, &family, &forged(&others, "/x", &family));
    }
    bench.entries().len()
}

#[test]
fn who_waits_learns_of_each_death_at_once_and_need_not_look_at_everything() {
    let bench = Bench::zookeeper();
    let others = many_of_others(&bench);
    let mut holder = bench.hold(["-n", "/x"]).ready();
    for waiter in [(); 4].map(|()| bench.hold(["-n", "/x"]).waits()) {
        kill_tree(holder.pid());
        let since = Instant::now();
        assert_eq!(holder.end().died_of(), libc::SIGKILL);
        holder = waiter.ready();
        assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    }
    holder.finish().good();
    assert_eq!((bench.queue("/x"), bench.entries().len()), (Vec::new(), others));
}

#[test]
fn who_waits_takes_no_processor_time_for_the_releases_and_looks_of_others() {
    let bench = Bench::zookeeper();
    many_of_others(&bench);
    let holder = bench.hold(["-n", "/x"]).ready();
    let waiters = [(); 2].map(|()| bench.hold(["-n", "/x", "-p", "1h"]).waits());
    // After that they look at everything very rarely.
    let used = || waiters.each_ref().map(|waiter| cpu(waiter.pid()).unwrap());
    thread::sleep(Duration::from_millis(500));
    let before = used();
    forge(&bench, FAMILY, &forged(&bench, "/x", FAMILY));
    for _ in 0..20 {
        bench.run(["-n", "/y", "true"]).good();
    }
    for (after, before) in used().into_iter().zip(before) {
        assert!(after < before + Duration::from_millis(300), "{before:?} {after:?}");
    }
    holder.finish().good();
    for waiter in waiters {
        waiter.ready().finish().good();
    }
    assert_eq!(bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn who_gets_no_watch_from_the_kernel_finds_the_dead_too() {
    let bench = Bench::zookeeper();
    let holder = bench.hold(["-n", "/x"]).ready();
    let script = r#"echo 0 >/proc/sys/user/max_inotify_instances && exec "$@""#;
    let mut command = bench.program("unshare", ["--user", "--map-root-user", "sh", "-c", script, "sh", BINARY, "-n", "/x"]);
    command.args(HOLD);
    let waiter = Run::start(command).waits();
    kill_tree(holder.pid());
    assert_eq!(holder.end().died_of(), libc::SIGKILL);
    let since = Instant::now();
    let waiter = waiter.ready();
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    waiter.finish().good();
    nothing_is_left(&bench, "/x");
}

/// As long as somebody lives nobody else enters, however he asks.
fn enters_when_the_last_has_ended(bench: &Bench, next: Run, holder: Run) {
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    assert_eq!(bench.run(["reap"]).good().stdout(), "");
    assert_eq!((bench.queue("/x").len(), next.stdout()), (2, String::new()));
    let over = Instant::now();
    assert_eq!(holder.finish().died_of(), libc::SIGKILL);
    let next = next.ready();
    assert!(over.elapsed() < PROMPTLY, "{:?}", over.elapsed());
    next.finish().good();
    nothing_is_left(bench, "/x");
}

#[test]
fn a_daemon_that_a_killed_command_started_keeps_the_lock_until_it_has_ended() {
    let bench = Bench::zookeeper();
    let mut holder = bench.start(["-n", "/x"].into_iter().chain(LEAVES_AN_HEIR)).ready();
    let command = children(holder.pid())[0];
    let next = bench.hold(["-n", "/x"]).waits();
    holder.kill();
    send(command, libc::SIGKILL);
    wait_until("the command is dead", || !Path::new(&format!("/proc/{command}")).exists());
    enters_when_the_last_has_ended(&bench, next, holder);
}

#[test]
fn with_close_the_lock_ends_with_a_killed_wrapper_whatever_of_its_command_still_runs() {
    let bench = Bench::zookeeper();
    let mut holder = bench.start(["--close", "--pdeathsig", "none", "-n", "/x"].into_iter().chain(HOLD)).ready();
    holder.kill();
    bench.run(["--no-wait", "-n", "/x", "true"]).good();
    holder.finish();
    nothing_is_left(&bench, "/x");
}

#[test]
fn a_killed_waiter_is_out_of_the_queue() {
    let bench = Bench::zookeeper();
    let holder = bench.hold(["-n", "/x"]).ready();
    for arguments in [&["-n", "/x", "true"][..], &["wlock", "/x"]] {
        let waiter = bench.start(arguments.iter().copied()).waits();
        let behind = bench.hold(["-n", "/x"]).waits();
        waiter.signal(libc::SIGKILL);
        behind.warns(", 1 in front");
        assert_eq!(waiter.end().died_of(), libc::SIGKILL);
        assert_eq!((bench.queue("/x").len(), bench.entries().len()), (2, 2));
        kill_tree(behind.pid());
        assert_eq!(behind.end().died_of(), libc::SIGKILL);
        bench.run(["reap"]).good();
    }
    holder.finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn a_raw_lock_outlives_its_process_once_its_node_was_printed() {
    let bench = Bench::zookeeper();
    let node = bench.run(["lock", "/x"]).good();
    assert_eq!(bench.entries(), Vec::<String>::new());
    assert_eq!(bench.run(["reap"]).good().stdout(), "");
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, "not acquired in time");
    bench.run(["unlock", node.stdout().trim_end()]).good();
    // One that cannot be printed, and one that nobody reads.
    let mut full = bench.command(["lock", "/x"]);
    full.stdout(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(full.status().unwrap().code(), Some(125));
    nothing_is_left(&bench, "/x");
}

#[test]
fn a_node_whose_owner_never_heard_of_it_is_found() {
    let server = Server::start("");
    let bench = Bench::on(&server.address());
    bench.run(["-n", "/x", "true"]).good();
    // One server in common is enough to know them.
    let nobody = format!("127.0.0.1:{}", free_port());
    for arguments in [&["-n", "/x", "true"][..], &["lock", "/x"]] {
        // It does not come back to find out.
        let losses = [&[(Request::Create, Fate::Unanswered)][..], &[(Request::Connect, Fate::Eaten); 100]].concat();
        let proxy = Proxy::start(&server.address(), &losses);
        let through = bench.through(&format!("{},{}", proxy.address(), nobody));
        let mut run = through.start(arguments.iter().copied());
        proxy.loses(2);
        run.kill();
        bench.queue_reaches("/x", 1);
        let through = bench.through(&format!("{},{}", server.address(), nobody));
        assert!(through.run(["-t", "30s", "-n", "/x", "true"]).good().stderr.contains(REMOVED));
        nothing_is_left(&bench, "/x");
    }
}

#[test]
fn an_entry_without_a_node_is_kept_until_no_request_of_the_dead_can_be_under_way() {
    let bench = Bench::zookeeper();
    let text = forged(&bench, "/x", FAMILY);
    let path = forge(&bench, FAMILY, &text);
    bench.run(["--no-wait", "-n", "/x", "true"]).good();
    let ended = bench.run(["reap", "-v"]).good();
    assert_eq!(ended.stdout(), "");
    assert!(ended.stderr.contains("looking again later"), "{}", ended.stderr);
    assert!(fs::read_to_string(&path).unwrap().starts_with(&format!("{text}\ndead ")));
    // The request lands, and whoever waits behind it gets in.
    let next = bench.hold(["-n", "/other"]).ready();
    let node = format!("/x/{FAMILY}4c8a__lock__0000000000");
    bench.plant(&node, "late");
    let waiter = bench.hold(["-n", "/x"]).ready();
    waiter.warns(&format!("removed {node}: {REMOVED} (pid 4711 on lost.host since 2018-07-25T17:09:52Z)"));
    waiter.finish().good();
    next.finish().good();
    nothing_is_left(&bench, "/x");
    // Or it never does.
    let path = forge(&bench, FAMILY, &text);
    age(&path);
    bench.run(["--no-wait", "-n", "/x", "true"]).good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn whatever_a_lock_s_servers_and_chroot_are_called_its_dead_are_found() {
    let bench = Bench::zookeeper();
    let named = bench.through(&bench.servers().replace("127.0.0.1", "localhost"));
    let below = format!("{}/x", bench.chroot());
    for (next, lock) in [(bench.clone(), "/x"), (named.in_chroot("/"), &below)] {
        let holder = named.hold(["-n", "/x"]).ready();
        let waiting = next.hold(["-n", lock]).waits();
        kill_tree(holder.pid());
        waiting.ready().finish().good();
        let holder = named.hold(["-n", "/x"]).ready();
        kill_tree(holder.pid());
        let ended = next.run(["--no-wait", "-n", lock, "true"]).good();
        assert!(ended.stderr.contains(REMOVED), "{}", ended.stderr);
        nothing_is_left(&bench, "/x");
    }
    // A lock that is called the same, and is another one, is no reason to touch the entry.
    let elsewhere = Server::start("");
    let holder = bench.hold(["-n", "/x"]).ready();
    kill_tree(holder.pid());
    let text = fs::read_to_string(only_entry(&bench)).unwrap();
    bench.through(&elsewhere.address()).run(["--no-wait", "-n", "/x", "true"]).good();
    assert_eq!((fs::read_to_string(only_entry(&bench)).unwrap(), bench.queue("/x").len()), (text, 1));
    bench.run(["--no-wait", "-n", "/x", "true"]).good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn who_waits_for_a_silent_server_holds_nobody_up_whose_lock_is_called_the_same() {
    let (bench, other) = (Bench::zookeeper(), Server::start(""));
    let proxy = Proxy::start(&other.address(), &[]);
    let elsewhere = bench.through(&other.address());
    let in_front = elsewhere.hold(["-n", "/x"]).ready();
    let waiter = bench.through(&proxy.address()).hold(["-n", "/x"]).waits();
    let holder = bench.hold(["-n", "/x"]).ready();
    proxy.blackhole(Direction::ToClient);
    kill_tree(holder.pid());
    // The one that waits elsewhere has looked, too, and tries to reach its server.
    proxy.is_tried_again();
    bench.run(["-t", "6s", "-n", "/x", "true"]).good();
    proxy.heal();
    in_front.finish().good();
    waiter.ready().finish().good();
    nothing_is_left(&bench, "/x");
}

#[test]
fn who_reaps_holds_nobody_up_while_it_waits_for_another_server() {
    let bench = Bench::zookeeper();
    let proxy = Proxy::start(bench.servers(), &[]);
    let silent = bench.through(&proxy.address());
    // It is reaped second.
    let good = bench.through(&bench.servers().replace("127.0.0.1", "localhost"));
    let holders = [silent.hold(["-n", "/silent"]).ready(), good.hold(["-n", "/x"]).ready()];
    proxy.blackhole(Direction::ToClient);
    for holder in &holders {
        kill_tree(holder.pid());
    }
    let reaper = bench.start(["-t", "1h", "reap"]);
    proxy.is_tried_again();
    good.run(["-t", "30s", "-n", "/x", "true"]).good();
    reaper.signal(libc::SIGTERM);
    reaper.end().died_of();
    proxy.heal();
    assert_eq!(bench.run(["reap"]).good().stdout().lines().count(), 1);
    nothing_is_left(&bench, "/silent");
}

#[test]
fn however_long_a_lock_s_path_is_its_dead_are_found() {
    let bench = Bench::zookeeper();
    let lock = format!("/{}", "k".repeat(100_000));
    let holder = bench.start(["-n", &lock].into_iter().chain(HOLD)).ready();
    kill_tree(holder.pid());
    let ended = bench.run(["--no-wait", "-n", &lock, "true"]).good();
    assert!(!ended.stderr.contains("no entry of the journal"), "{}", ended.stderr);
    nothing_is_left(&bench, &lock);
}

#[test]
fn what_a_failed_release_left_is_removed_later() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    for later in [&["reap"][..], &["--no-wait", "-n", "/x", "true"]] {
        let holder = bench.hold(["--release-timeout", "300ms", "-n", "/x"]).ready();
        server.kill();
        holder.finish().failed(125, "could not be removed");
        bench.run(["reap", "-t", "300ms"]).failed(125, &format!("cannot reach {}", server.address()));
        let path = only_entry(&bench);
        assert!(server.restart());
        assert_eq!(bench.queue("/x").len(), 1);
        assert!(bench.run(later.iter().copied()).good().stderr.contains(REMOVED));
        assert!(!path.exists());
        nothing_is_left(&bench, "/x");
    }
}

#[test]
fn reap_removes_what_the_dead_left_everywhere_and_prints_it() {
    let bench = Bench::zookeeper();
    assert!(bench.run(["reap"]).good().stderr.contains("is not there"));
    let living = bench.hold(["-n", "/living"]).ready();
    // C7: a host that was started again.
    let other = Bench::on(bench.servers());
    let families: Vec<String> = (0..3).map(|number| format!("{number}{}", &FAMILY[1..])).collect();
    let nodes: Vec<_> = families.iter().map(|family| format!("/of/dead/{family}ffff__rlock__0000000000")).collect();
    for (number, place) in [&bench, &bench, &other].into_iter().enumerate() {
        place.plant(&nodes[number], "");
        forge(&bench, &families[number], &forged(place, "/of/dead", &families[number]));
    }
    // Somebody else's, and two of one family.
    let stranger = format!("/of/dead/{}0000__lock__0000000007", "0".repeat(28));
    bench.plant(&stranger, "");
    let again = nodes[0].replace("ffff", "0000");
    bench.plant(&again, "");
    let ended = bench.run(["reap"]).good();
    let mut printed: Vec<&str> = ended.stdout().lines().collect();
    printed.sort_unstable();
    let mut expected = nodes.clone();
    expected.push(again);
    expected.sort_unstable();
    assert_eq!(printed, expected);
    assert_eq!(ended.stderr.matches(REMOVED).count(), 4, "{}", ended.stderr);
    assert_eq!((bench.queue("/of/dead"), other.queue("/of/dead")), (vec![stranger[9..].to_owned()], Vec::new()));
    assert_eq!((bench.entries().len(), bench.queue("/living").len()), (1, 1));
    let quiet = bench.run(["reap", "-q"]).good();
    assert_eq!((quiet.stdout(), quiet.stderr.as_str()), ("", ""));
    living.finish().good();
    assert_eq!(bench.entries(), Vec::<String>::new());
}

#[test]
fn reap_fails_where_a_server_cannot_be_reached_and_does_the_rest() {
    let bench = Bench::zookeeper();
    let nowhere = Bench::on(&format!("127.0.0.1:{}", free_port()));
    let gone = format!("0{}", &FAMILY[1..]);
    forge(&bench, &gone, &forged(&nowhere, "/x", &gone));
    forge(&bench, FAMILY, &forged(&bench, "/x", FAMILY));
    let node = format!("/x/{FAMILY}ffff__lock__0000000000");
    bench.plant(&node, "");
    let ended = bench.run(["reap", "-t", "3s"]).failed(125, &format!("cannot reach {}", nowhere.servers()));
    assert_eq!(ended.stdout(), format!("{node}\n"));
    assert_eq!(bench.entries(), [gone]);
    // A call that contends elsewhere has nothing to do with it.
    assert!(!bench.run(["-v", "--no-wait", "-n", "/x", "true"]).good().stderr.contains("cannot reach"));
    let mut homeless = bench.command(["reap"]);
    homeless.env("SYNCD_SPAWN_STATE_DIR", "/dev/null");
    Run::start(homeless).finish().failed(125, "/dev/null: it is a device, not a directory");
}

#[test]
fn what_is_no_entry_is_told_about_and_left_alone() {
    let bench = Bench::zookeeper();
    let good = forged(&bench, "/x", FAMILY);
    let other = format!("0{}", &FAMILY[1..]);
    for (name, text, why) in [
        (FAMILY, String::new(), "it is of a version that is not known here"),
        (FAMILY, good.replace("journal 1", "journal 2"), "it is of a version that is not known here"),
        (FAMILY, good.replace("pid 4711", "pid many"), "its pid is not usable"),
        (FAMILY, good.replace("pid 4711", "secret x"), "its line \"secret x\" is not known here"),
        (&other, good.clone(), "its name is not usable"),
        ("notes.txt", good.clone(), "is no entry of the journal"),
    ] {
        let node = format!("/x/{FAMILY}ffff__lock__0000000000");
        bench.plant(&node, "");
        let path = forge(&bench, name, &text);
        for arguments in [&["-v", "reap"][..], &["-v", "--no-wait", "-n", "/y", "true"]] {
            let ended = bench.run(arguments.iter().copied()).good();
            let said = ended.stderr.lines().filter(|line| line.contains(why) && line.contains(path.to_str().unwrap()));
            assert_eq!(said.count(), 1, "{}", ended.stderr);
        }
        assert_eq!((fs::read_to_string(&path).unwrap(), bench.queue("/x").len()), (text, 1));
        fs::remove_file(path).unwrap();
        bench.remove(&node);
    }
}

#[test]
fn two_who_reap_at_once_do_not_disturb_each_other() {
    let bench = Bench::zookeeper();
    for round in 0..5 {
        let families: Vec<String> = (0..20).map(|number| format!("{round}{number:02}{}", &FAMILY[3..])).collect();
        for family in &families {
            bench.plant(&format!("/x/{family}ffff__lock__0000000000"), "");
            forge(&bench, family, &forged(&bench, "/x", family));
        }
        let contenders = (0..2).map(|_| bench.start(["-q", "-n", "/x", "true"]));
        let reapers = (0..3).map(|_| bench.start(["reap", "-q"]));
        let runs: Vec<_> = reapers.chain(contenders).collect();
        let ended: Vec<Ended> = runs.into_iter().map(|run| run.finish().good()).collect();
        assert!(ended.iter().all(|ended| ended.stderr.is_empty()), "{ended:?}");
        let printed: Vec<&str> = ended.iter().flat_map(|ended| ended.stdout().lines()).collect();
        let unique: std::collections::BTreeSet<_> = printed.iter().collect();
        assert_eq!(printed.len(), unique.len(), "each is removed once");
        nothing_is_left(&bench, "/x");
    }
}

#[test]
fn without_a_usable_directory_there_is_a_warning_and_the_command_runs() {
    let bench = Bench::zookeeper();
    let with = |directory: &str| bench.with_variable("SYNCD_SPAWN_STATE_DIR", directory);
    for (directory, why) in [
        ("/proc/syncd-spawn", "cannot make /proc/syncd-spawn"),
        ("/nowhere/at/all", "cannot make /nowhere/at/all"),
        ("/dev/null", "it is a device, not a directory"),
    ] {
        let ended = with(directory).run(["-n", "/x", "echo", "ran"]).good();
        assert_eq!((ended.stdout(), ended.stderr.matches("WARNING").count()), ("ran\n", 1), "{}", ended.stderr);
        assert!(ended.stderr.contains(why) && ended.stderr.contains("if we are killed"), "{}", ended.stderr);
        assert_eq!(with(directory).run(["-q", "-n", "/x", "echo", "ran"]).good().stderr, "");
        with(directory).run(["--no-wait", "lock", &format!("/raw{}", directory.len())]).good();
        with(directory).run(["--ephemeral", "-n", "/x", "true"]).good();
    }
    let place = tempfile::tempdir().unwrap();
    for (options, fill, why) in [
        ("ro", "true", "read-only file system"),
        ("size=64k", r#"head -c 1m /dev/zero >"$1/.fill" 2>/dev/null || :"#, "no space left on device"),
    ] {
        let script = format!(
            r#"set -e; mount -t tmpfs -o "$2" tmpfs "$1"; {fill}
            "$0" --state-dir "$1" -n /x -- echo ran; ls -A "$1" | grep -v fill || :"#
        );
        let place = place.path().to_str().unwrap();
        let ended = Run::start(bench.program("unshare", ["-rm", "sh", "-c", &script, BINARY, place, options])).finish().good();
        assert_eq!((ended.stdout(), ended.stderr.matches("WARNING").count()), ("ran\n", 1), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{}", ended.stderr);
    }
    assert_eq!((bench.queue("/x"), bench.entries()), (Vec::new(), Vec::new()));
}

#[test]
fn the_default_directory_is_each_users_own() {
    let bench = Bench::zookeeper();
    let script = r#"set -e; mount -t tmpfs tmpfs /var/lib; unset SYNCD_SPAWN_STATE_DIR
        "$0" -q -n /x -- sh -c 'stat -c "%a %n" /var/lib/syncd-spawn /var/lib/syncd-spawn/*'
        ls /var/lib/syncd-spawn; chmod 777 /var/lib/syncd-spawn; "$0" -n /x true"#;
    let ended = Run::start(bench.program("unshare", ["-rm", "sh", "-c", script, BINARY])).finish().good();
    let lines: Vec<&str> = ended.stdout().lines().collect();
    let [directory, entry] = lines[..] else { panic!("{ended:?}") };
    assert_eq!(directory, "700 /var/lib/syncd-spawn");
    assert!(entry.starts_with("600 /var/lib/syncd-spawn/"), "{entry}");
    assert!(ended.stderr.contains("cannot use /var/lib/syncd-spawn: others may write to it"), "{}", ended.stderr);
    if !geteuid().is_root() {
        // It takes root to be somebody else.
        return;
    }
    let user = User::new();
    let show = ["-q", "-n", "/x", "--", "sh", "-c", r#"stat -c "%a %n" "$0" "$1" "$1"/*"#];
    for (variable, parent) in [("HOME", ".local/state"), ("XDG_STATE_HOME", ".")] {
        let home = user.home.path().join(variable);
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(USER), None).unwrap();
        let parent = home.join(parent);
        let state = parent.join("syncd-spawn");
        let mut command = user.command(&bench, &show);
        command.args([&parent, &state]).env_remove("SYNCD_SPAWN_STATE_DIR").env(variable, &home);
        let ended = Run::start(command).finish().good();
        let modes: Vec<&str> = ended.stdout().lines().map(|line| &line[..3]).collect();
        assert_eq!(modes[1..], ["700", "600"], "{}", ended.stdout());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0);
    }
    let mut command = user.command(&bench, &["-n", "/x", "true"]);
    command.env_remove("SYNCD_SPAWN_STATE_DIR");
    Run::start(command).finish().good().failed(0, "neither XDG_STATE_HOME nor HOME says where");
    let mut command = user.command(&bench, &["reap"]);
    command.env_remove("SYNCD_SPAWN_STATE_DIR");
    Run::start(command).finish().failed(125, "neither XDG_STATE_HOME nor HOME says where");
}

const USER: u32 = 65534;

/// Somebody else, and the program where he may run it.
struct User {
    home: TempDir,
}

impl User {
    fn new() -> User {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        fs::copy(BINARY, home.path().join("syncd-spawn")).unwrap();
        User { home }
    }

    fn command(&self, bench: &Bench, arguments: &[&str]) -> Command {
        let binary = self.home.path().join("syncd-spawn");
        let [user, group] = ["reuid", "regid"].map(|id| format!("--{id}={USER}"));
        let words = [user.as_str(), &group, "--clear-groups", binary.to_str().unwrap()];
        bench.program("setpriv", words.into_iter().chain(arguments.iter().copied()))
    }
}

#[test]
fn another_users_entries_are_left_to_him_and_to_root() {
    if !geteuid().is_root() {
        // It takes root to be somebody else.
        return;
    }
    let bench = Bench::zookeeper();
    let user = User::new();
    let shared = user.home.path().join("state");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    let bench = bench.with_variable("SYNCD_SPAWN_STATE_DIR", &shared);
    for mode in [0o600, 0o666] {
        let holder = bench.hold(["-n", "/x"]).ready();
        kill_tree(holder.pid());
        assert_eq!(holder.end().died_of(), libc::SIGKILL);
        let entry = fs::read_dir(&shared).unwrap().next().unwrap().unwrap().path();
        fs::set_permissions(&entry, Permissions::from_mode(mode)).unwrap();
        let ended = Run::start(user.command(&bench, &["reap", "-v"])).finish().good();
        assert!(ended.stderr.contains("belongs to user 0; left alone"), "{}", ended.stderr);
        let ended = Run::start(user.command(&bench, &["-n", "/x", "--no-wait", "true"])).finish();
        assert_eq!(ended.failed(124, "not acquired in time").stderr.matches("WARNING").count(), 0);
        assert!(bench.run(["--no-wait", "-n", "/x", "true"]).good().stderr.contains(REMOVED));
    }
    let holder = Run::start(user.command(&bench, &["-n", "/x"].into_iter().chain(HOLD).collect::<Vec<_>>())).ready();
    kill_tree(holder.pid());
    assert_eq!(holder.end().died_of(), libc::SIGKILL);
    assert_eq!(bench.run(["reap"]).good().stdout().lines().count(), 1);
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
}

#[test]
fn the_boot_unit_starts_what_the_program_understands() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd/syncd-spawn-reap.service");
    let text = fs::read_to_string(&unit).unwrap();
    let settings: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    for setting in [("Type", "oneshot"), ("After", "network-online.target"), ("Wants", "network-online.target")] {
        assert!(settings.contains(&setting), "{setting:?}");
    }
    let starts: Vec<&str> = settings.iter().filter(|(key, _)| *key == "ExecStart").map(|(_, value)| *value).collect();
    let [start] = starts[..] else { panic!("{starts:?}") };
    let words: Vec<&str> = start.split(' ').collect();
    assert_eq!(words[0], "/usr/bin/syncd-spawn");
    let bench = Bench::zookeeper();
    assert_eq!(bench.run(words[1..].iter().copied()).good().stdout(), "");
    if Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success()) {
        // It looks whether the program is there.
        let place = tempfile::tempdir().unwrap();
        let copy = place.path().join("syncd-spawn-reap.service");
        File::create(&copy).unwrap().write_all(text.replace(words[0], BINARY).as_bytes()).unwrap();
        let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && !said.contains("syncd-spawn-reap"), "{said}");
    }
}

#[test]
fn who_waits_gets_in_though_the_server_was_away_meanwhile() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let mut holder = bench.start(["--pdeathsig", "none", "-n", "/x"].into_iter().chain(HOLD)).ready();
    let next = bench.hold(["-n", "/x"]).waits();
    holder.kill();
    server.kill();
    holder.finish();
    next.warns("cannot reach");
    assert!(server.restart());
    let since = Instant::now();
    let next = next.ready();
    // A server that is not quite up may have one connection wait for 8 s; what was tried in vain before is not to add its pause.
    assert!(since.elapsed() < Duration::from_secs(14), "{:?}", since.elapsed());
    next.finish().good();
    nothing_is_left(&bench, "/x");
}
