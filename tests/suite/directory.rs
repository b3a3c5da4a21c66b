//! What only the directory store promises: the kernel says who lives, and the file system is not always kind.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{geteuid, mkfifo};
use tempfile::TempDir;

use super::bench::{BINARY, Bench, Ended, HOLD, Run, copy_binary, wait_until};

/// How soon the next in line must be told, on a machine that does many other things at that moment.
const PROMPTLY: Duration = Duration::from_secs(10);
/// Adds one to a counter in a file, with no protection of its own, and notes its node and its token.
const INCREMENT: &str = r#"read n <"$0/counter"; n=$((n + 1)); echo $n >"$0/counter"
    echo "$SYNCD_SPAWN_LOCK_NODE $SYNCD_SPAWN_FENCING_TOKEN" >>"$0/log""#;

fn root(bench: &Bench) -> PathBuf {
    PathBuf::from(bench.servers().strip_prefix("file://").expect("a directory"))
}

/// Where a path of the chroot is.
fn file(bench: &Bench, path: &str) -> PathBuf {
    root(bench).join(&bench.chroot()[1..]).join(&path[1..])
}

fn token(ended: &Ended) -> u64 {
    ended.stdout().trim().parse().expect("a token")
}

const SAY_TOKEN: [&str; 4] = ["--", "sh", "-c", "echo $SYNCD_SPAWN_FENCING_TOKEN"];

#[test]
fn two_hundred_processes_lose_no_increment_and_come_in_order_with_growing_tokens() {
    let bench = Bench::directory();
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("counter"), "0\n").unwrap();
    let mut runs: Vec<_> = (0..200)
        .map(|_| {
            let mut command = bench.command(["-q", "-n", "/counter", "-l", "wlock", "--", "sh", "-c", INCREMENT]);
            command.arg(place.path()).stdin(Stdio::null()).spawn().unwrap()
        })
        .collect();
    for run in &mut runs {
        assert!(run.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(place.path().join("counter")).unwrap(), "200\n");
    let log = fs::read_to_string(place.path().join("log")).unwrap();
    let (nodes, tokens): (Vec<_>, Vec<_>) = log.lines().map(|line| line.split_once(' ').unwrap()).unzip();
    let sequences: Vec<_> = nodes.iter().map(|node| node.rsplit("__").next().unwrap()).collect();
    assert_eq!(sequences.len(), 200);
    assert!(sequences.is_sorted_by(|earlier, later| earlier < later), "{sequences:?}");
    assert!(tokens.is_sorted_by(|earlier, later| earlier < later), "{tokens:?}");
    assert!(bench.queue("/counter").is_empty());
}

/// Kills the wrapper, and then has what it started end by itself.
fn a_killed_wrapper_hands_the_lock_on_when_all_have_ended<'a>(holds: impl IntoIterator<Item = &'a str>) {
    let bench = Bench::directory();
    let mut holder = bench.start(holds).ready();
    let next = bench.hold(["-n", "/x"]).waits();
    holder.signal(libc::SIGKILL);
    wait_until("the wrapper is dead", || !holder.is_running());
    let listed = bench.run(["list", "/x"]).good();
    assert_eq!(listed.stdout().lines().count(), 2);
    assert_eq!(next.stdout(), "");
    let since = Instant::now();
    assert_eq!(holder.finish().died_of(), libc::SIGKILL);
    let next = next.ready();
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    assert_eq!(bench.queue("/x").len(), 1);
    next.finish().good();
}

#[test]
fn a_killed_wrapper_hands_the_lock_on_when_its_command_has_ended_and_no_sooner() {
    a_killed_wrapper_hands_the_lock_on_when_all_have_ended(["--pdeathsig", "none", "-n", "/x"].into_iter().chain(HOLD));
}

#[test]
fn what_a_command_started_that_was_killed_with_its_wrapper_keeps_the_lock_until_it_has_ended() {
    let nested = ["-n", "/x", "--", "sh", "-c", "sh -c 'echo ready; exec cat >/dev/null'; exit"];
    a_killed_wrapper_hands_the_lock_on_when_all_have_ended(nested);
}

#[test]
fn a_command_that_is_killed_with_its_wrapper_hands_the_lock_on_at_once() {
    let bench = Bench::directory();
    let holder = bench.hold(["-n", "/x"]).ready();
    let next = bench.hold(["-n", "/x"]).waits();
    let since = Instant::now();
    holder.signal(libc::SIGKILL);
    let next = next.ready();
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    next.finish().good();
    holder.finish();
}

#[test]
fn a_killed_waiter_is_out_of_the_queue() {
    let bench = Bench::directory();
    let holder = bench.hold(["-n", "/x"]).ready();
    let waiter = bench.hold(["-n", "/x"]).waits();
    let behind = bench.hold(["-n", "/x"]).waits();
    waiter.signal(libc::SIGKILL);
    behind.warns(", 1 in front");
    assert_eq!(bench.queue("/x").len(), 2);
    holder.finish().good();
    behind.ready().finish().good();
}

#[test]
fn what_was_left_running_on_purpose_does_not_keep_the_lock() {
    let bench = Bench::directory();
    let place = tempfile::tempdir().unwrap();
    let fifo = place.path().join("fifo");
    mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = r#"cat "$0" >/dev/null 2>&1 & echo ready; exec cat >/dev/null"#;
    let holder = bench.start(["--orphans", "leave", "-n", "/x", "--", "sh", "-c", script, fifo.to_str().unwrap()]).ready();
    let mut writer = None;
    wait_until("it reads", || {
        writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo).ok();
        writer.is_some()
    });
    let next = bench.hold(["-n", "/x"]).waits();
    let since = Instant::now();
    holder.finish().good();
    let next = next.ready();
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    next.finish().good();
    // Nobody reads there any more once it is gone, and it has to be there still.
    writer.unwrap().write_all(b"still there").expect("it reads");
}

/// User and system time of a process, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn waiting_takes_no_processor_time() {
    let bench = Bench::directory();
    let holder = bench.hold(["-n", "/x"]).ready();
    let waiter = bench.hold(["-n", "/x", "-p", "1h"]).waits();
    let explicit = bench.run(["wlock", "/y"]).good();
    let behind_explicit = bench.hold(["-n", "/y", "-p", "1h"]).waits();
    let all = [holder.pid(), waiter.pid(), behind_explicit.pid()];
    let before = all.map(ticks);
    // This is the measurement: nothing is to happen.
    thread::sleep(Duration::from_secs(3));
    // Starting up may have gone on for a moment, and what was used before may have been all but a tick, in both modes. Whoever
    // looked again and again would use dozens.
    let after = all.map(ticks);
    assert!(after.iter().zip(before).all(|(after, before)| *after <= before + 5), "{before:?} {after:?}");
    bench.run(["unlock", explicit.stdout().trim()]).good();
    behind_explicit.ready().finish().good();
    holder.finish().good();
    waiter.ready().finish().good();
}

#[test]
fn whoever_gets_no_watch_from_the_kernel_is_woken_too() {
    let bench = Bench::directory();
    let holder = bench.hold(["-n", "/x"]).ready();
    let script = r#"echo 0 >/proc/sys/user/max_inotify_instances && exec "$@""#;
    let mut command = bench.program("unshare", ["--user", "--map-root-user", "sh", "-c", script, "sh", BINARY, "-n", "/x"]);
    command.args(HOLD);
    let waiter = Run::start(command).waits();
    let since = Instant::now();
    holder.finish().good();
    let waiter = waiter.ready();
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    waiter.finish().good();
}

#[test]
fn an_explicit_lock_belongs_to_nobody_and_stays_whatever_its_mode() {
    let bench = Bench::directory();
    let node = bench.run(["wlock", "/x"]).good().stdout().trim().to_owned();
    for mode in [0o644, 0o600, 0o1777, 0o755] {
        fs::set_permissions(file(&bench, &node), Permissions::from_mode(mode)).unwrap();
        bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, &node);
    }
    bench.run(["unlock", &node]).good();
    bench.run(["--no-wait", "-n", "/x", "true"]).good();
}

#[test]
fn a_command_that_lost_its_mark_keeps_its_lock_until_it_is_unlocked() {
    let bench = Bench::directory();
    let mut holder = bench.hold(["-n", "/x"]).ready();
    let node = format!("/x/{}", bench.queue("/x")[0]);
    fs::set_permissions(file(&bench, &node), Permissions::from_mode(0o644)).unwrap();
    holder.signal(libc::SIGKILL);
    wait_until("the wrapper is dead", || !holder.is_running());
    holder.finish();
    bench.run(["--no-wait", "-n", "/x", "true"]).failed(124, &node);
    bench.run(["unlock", &node]).good();
}

#[test]
fn the_token_grows_though_the_directory_is_emptied_or_deleted_or_the_clock_set_back() {
    let bench = Bench::directory();
    let next = || token(&bench.run(["-q", "-n", "/x"].iter().chain(&SAY_TOKEN)).good());
    let first = next();
    for entry in fs::read_dir(file(&bench, "/x")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let second = next();
    fs::remove_dir_all(file(&bench, "/x")).unwrap();
    let third = next();
    fs::remove_dir_all(file(&bench, "/")).unwrap();
    let fourth = next();
    assert!(first < second && second < third && third < fourth, "{first} {second} {third} {fourth}");
    // As if the clock had been ahead by a century, whoever used it then.
    let ahead = fourth + 100 * 365 * 86_400 * 1_000_000;
    File::create(root(&bench).join(format!(".syncd-spawn/.syncd-spawn.4711.{ahead}"))).unwrap();
    assert_eq!(next(), ahead + 1);
    assert_eq!(next(), ahead + 2);
}

#[test]
fn numbers_go_on_though_the_queue_was_empty_and_begin_again_in_a_new_directory() {
    let bench = Bench::directory();
    let number = || bench.run(["wlock", "/x"]).good().stdout().trim().rsplit("__").next().unwrap().to_owned();
    let release = || bench.run(["unlock", &format!("/x/{}", bench.queue("/x")[0])]).good();
    for expected in ["0000000000", "0000000001", "0000000002"] {
        assert_eq!(number(), expected);
        release();
    }
    fs::remove_dir_all(file(&bench, "/x")).unwrap();
    assert_eq!(number(), "0000000000");
}

#[test]
fn a_directory_that_is_deleted_under_its_waiters_is_made_again() {
    let bench = Bench::directory();
    let holder = bench.hold(["-n", "/x"]).ready();
    let waiter = bench.hold(["-n", "/x"]).waits();
    // Files go one by one: a waiter that looked in between could find nobody in front, and its own file still there.
    waiter.stop();
    fs::remove_dir_all(file(&bench, "/x")).unwrap();
    waiter.signal(libc::SIGCONT);
    waiter.warns("queueing again at the end");
    waiter.ready().finish().good();
    // The command was stopped, for its lock was taken away.
    assert_eq!(holder.end().code(), 123);
}

#[test]
fn leftovers_of_somebody_who_was_killed_while_entering_are_replaced() {
    let bench = Bench::directory();
    bench.plant("/x/stranger", "");
    let leftover = file(&bench, "/x").join(format!(".syncd-spawn.new.{}", geteuid()));
    fs::write(&leftover, "half an ident").unwrap();
    let listed = bench.run(["list", "/x"]).good();
    assert_eq!(listed.stdout(), "");
    assert!(!listed.stderr.contains(".syncd-spawn.new"), "{listed:?}");
    bench.run(["-n", "/x", "true"]).good();
    assert!(!leftover.exists());
    assert!(file(&bench, "/x/stranger").exists());
}

#[test]
fn a_turnstile_that_is_held_up_leaves_signals_limits_and_releases_alone() {
    let bench = Bench::directory();
    let explicit = bench.run(["rlock", "/x"]).good().stdout().trim().to_owned();
    let holder = bench.hold(["-l", "rlock", "-n", "/x"]).ready();
    let directory = File::open(file(&bench, "/x")).unwrap();
    directory.lock().unwrap();
    bench.run(["-t", "300ms", "-n", "/x", "true"]).failed(124, "not acquired in time");
    let waiter = bench.start(["-n", "/x", "true"]);
    waiter.warns("was it stopped?");
    waiter.signal(libc::SIGTERM);
    assert_eq!(waiter.end().died_of(), libc::SIGTERM);
    assert_eq!(bench.run(["list", "/x"]).good().stdout().lines().count(), 2);
    bench.run(["unlock", &explicit]).good();
    holder.finish().good();
    let waiter = bench.hold(["-n", "/x"]);
    waiter.warns("was it stopped?");
    drop(directory);
    waiter.ready().finish().good();
}

#[test]
fn what_is_in_the_way_is_named_and_left_alone() {
    let bench = Bench::directory();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir_all(file(&bench, "/")).unwrap();
    symlink(elsewhere.path(), file(&bench, "/link")).unwrap();
    fs::write(file(&bench, "/file"), "precious").unwrap();
    for (lock, what) in
        [("/link", "a symbolic link"), ("/link/below", "a symbolic link"), ("/file", "a file"), ("/file/x", "a file")]
    {
        let name = file(&bench, lock.get(..5).unwrap()).display().to_string();
        for arguments in [vec!["-n", lock, "true"], vec!["wlock", lock], vec!["list", lock]] {
            let ended = bench.run(arguments).failed(125, &format!("it is {what}, not a directory"));
            assert!(ended.stderr.contains(&name), "{ended:?}");
        }
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(file(&bench, "/file")).unwrap(), "precious");

    let target = elsewhere.path().join("target");
    fs::write(&target, "precious").unwrap();
    fs::create_dir_all(file(&bench, "/x")).unwrap();
    for (what, number) in [("a symbolic link", 1), ("a directory", 2), ("a pipe", 3)] {
        let node = format!("/x/a__lock__000000000{number}");
        let path = file(&bench, &node);
        match number {
            1 => symlink(&target, &path).unwrap(),
            2 => fs::create_dir(&path).unwrap(),
            _ => mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        }
        for arguments in [vec!["-n", "/x", "true"], vec!["list", "/x"], vec!["unlock", &node]] {
            let ended = bench.run(arguments).failed(125, &format!("it is {what}"));
            assert!(ended.stderr.contains(&path.display().to_string()), "{ended:?}");
        }
        assert!(path.symlink_metadata().is_ok(), "{what} is left alone");
        assert_eq!(bench.queue("/x").len(), 1, "nothing of ours is left behind");
        if number == 2 { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
    }
    assert_eq!(fs::read_to_string(target).unwrap(), "precious");

    let root = elsewhere.path().join("root");
    symlink(elsewhere.path(), &root).unwrap();
    let servers = format!("file://{}", root.display());
    bench.run(["-s", &servers, "-n", "/x", "true"]).failed(125, "it is a symbolic link, not a directory");
}

#[test]
fn what_is_missing_is_made_by_those_who_enter_but_not_what_the_directory_is_in() {
    let place = tempfile::tempdir().unwrap();
    let bench = Bench::directory();
    let nowhere = format!("{}/no/such", place.path().display());
    let refusal = format!("to make {nowhere}: no such file or directory");
    bench.run(["-s", &format!("file://{nowhere}"), "-n", "/c/d", "true"]).failed(125, &refusal);
    let servers = format!("file://{}/a", place.path().display());
    bench.run(["-s", &servers, "list", "/c/d"]).failed(1, "no such lock: /c/d");
    bench.run(["-s", &servers, "unlock", "/c/d/x__lock__0000000000"]).failed(1, "no such lock");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    bench.run(["-s", &servers, "-n", "/c/d", "true"]).good();
    bench.run(["-s", &servers, "list", "/c/d"]).good();
}

/// A directory that several users share, and the program where all of them can run it.
struct Shared {
    place: TempDir,
}

const OTHERS: [u32; 2] = [54321, 54322];

impl Shared {
    fn new(mode: u32) -> Shared {
        assert!(geteuid().is_root(), "becoming several users takes root");
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        copy_binary(&place.path().join("syncd-spawn"));
        fs::create_dir(place.path().join("root")).unwrap();
        fs::set_permissions(place.path().join("root"), Permissions::from_mode(mode)).unwrap();
        Shared { place }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn start<'a>(&self, user: u32, umask: &str, arguments: impl IntoIterator<Item = &'a str>) -> Run {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
        command.args(["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"]).arg(self.place.path().join("syncd-spawn"));
        command.args(["-s", &format!("file://{}", self.root().display()), "-c", "/"]).args(arguments);
        Run::start(command)
    }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

#[test]
fn users_share_a_directory_that_its_owner_opened_and_nobody_releases_anothers_lock() {
    let [one, other] = OTHERS;
    for root_mode in [0o1777, 0o777] {
        let shared = Shared::new(root_mode);
        let holder = shared.start(one, "022", ["-n", "/x"].into_iter().chain(HOLD)).ready();
        let listed = shared.start(other, "022", ["list", "/x"]).finish().good();
        let node = listed.stdout().rsplit(' ').next().unwrap().trim().to_owned();
        shared.start(other, "022", ["unlock", &node]).finish().failed(125, "it belongs to user 54321");
        shared.start(other, "022", ["--no-wait", "-n", "/x", "true"]).finish().failed(124, &node);
        let waiter = shared.start(other, "022", ["-n", "/x"].into_iter().chain(HOLD)).waits();
        // A dead one that only its owner may delete stands in nobody's way.
        let mut holder = holder;
        holder.signal(libc::SIGKILL);
        wait_until("the wrapper is dead", || !holder.is_running());
        let since = Instant::now();
        holder.finish();
        let waiter = waiter.ready();
        assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
        assert_eq!(shared.start(other, "022", ["list", "/x"]).finish().good().stdout().lines().count(), 1);
        waiter.finish().good();
        assert_eq!(shared.start(one, "022", ["list", "/x"]).finish().good().stdout(), "");
        let left = fs::read_dir(shared.root().join("x")).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with('.')).collect();
        assert!(left.is_empty(), "{left:?}");
        let first = token(&shared.start(one, "022", ["-q", "-n", "/x"].into_iter().chain(SAY_TOKEN)).finish().good());
        let second = token(&shared.start(other, "022", ["-q", "-n", "/x"].into_iter().chain(SAY_TOKEN)).finish().good());
        assert!(first < second);
    }
}

#[test]
fn whoever_hides_his_files_is_waited_for_all_the_same() {
    let [one, other] = OTHERS;
    let shared = Shared::new(0o1777);
    let holder = shared.start(one, "077", ["-n", "/x"].into_iter().chain(HOLD)).ready();
    let listed = shared.start(other, "077", ["list", "/x"]).finish().good();
    assert!(listed.stdout().starts_with("(no permission) /x/"), "{listed:?}");
    let waiter = shared.start(other, "077", ["-n", "/x"].into_iter().chain(HOLD)).waits();
    let since = Instant::now();
    holder.finish().good();
    let waiter = waiter.ready();
    assert!(since.elapsed() < PROMPTLY, "{:?}", since.elapsed());
    waiter.finish().good();
}

#[test]
fn a_directory_that_others_may_not_write_to_is_refused_to_them() {
    let [one, other] = OTHERS;
    for root_mode in [0o755, 0o700] {
        let shared = Shared::new(root_mode);
        std::os::unix::fs::chown(shared.root(), Some(one), Some(one)).unwrap();
        shared.start(one, "022", ["-n", "/x", "true"]).finish().good();
        shared.start(other, "022", ["-n", "/x", "true"]).finish().failed(125, "permission denied");
        shared.start(other, "022", ["wlock", "/y"]).finish().failed(125, "permission denied");
        shared.start(one, "022", ["--no-wait", "-n", "/x", "true"]).finish().good();
    }
}

#[test]
fn modes_are_the_umasks() {
    for (umask, directory, file) in [("077", 0o700, 0o600), ("022", 0o755, 0o644), ("027", 0o750, 0o640)] {
        let shared = Shared::new(0o755);
        let holder = shared.start(0, umask, ["-n", "/a/x"].into_iter().chain(HOLD)).ready();
        let explicit = shared.start(0, umask, ["wlock", "/a/y"]).finish().good().stdout().trim().to_owned();
        for path in ["a", "a/x", "a/y", ".syncd-spawn"] {
            assert_eq!(mode(&shared.root().join(path)), directory, "{path}");
        }
        assert_eq!(mode(&shared.root().join(&explicit[1..])), file);
        for path in ["a/x", "a/y", ".syncd-spawn"] {
            for entry in fs::read_dir(shared.root().join(path)).unwrap() {
                let path = entry.unwrap().path();
                assert_eq!(mode(&path) & 0o777, file, "{}", path.display());
            }
        }
        holder.finish().good();
    }
}

#[test]
fn the_default_directory_is_ours_alone_or_refused() {
    let bench = Bench::directory();
    let runtime = tempfile::tempdir().unwrap();
    let own = runtime.path().join("syncd-spawn");
    let run = |arguments: &[&str]| {
        let mut command = bench.command(["-s", "file:"].iter().chain(arguments));
        Run::start({
            command.env("XDG_RUNTIME_DIR", runtime.path());
            command
        })
        .finish()
    };
    run(&["-n", "/x", "true"]).good();
    assert_eq!(mode(&own), 0o700);
    fs::set_permissions(&own, Permissions::from_mode(0o770)).unwrap();
    run(&["-n", "/x", "true"]).failed(125, "others may write to it");
    fs::remove_dir_all(&own).unwrap();
    symlink(root(&bench), &own).unwrap();
    run(&["-n", "/x", "true"]).failed(125, "it is a symbolic link, not a directory");
    fs::remove_file(&own).unwrap();
    fs::create_dir(&own).unwrap();
    if geteuid().is_root() {
        std::os::unix::fs::chown(&own, Some(OTHERS[0]), None).unwrap();
        run(&["-n", "/x", "true"]).failed(125, "it belongs to user 54321");
    }
    assert_eq!(fs::read_dir(root(&bench)).unwrap().count(), 0);
}

/// Runs a script where it may mount what it likes; `$0` is the program, `$1` a directory.
fn in_a_mount_namespace(script: &str) -> Ended {
    let place = tempfile::tempdir().unwrap();
    let mut command =
        Bench::directory().program("unshare", ["--user", "--map-root-user", "--mount", "sh", "-ec", script, BINARY]);
    command.arg(place.path());
    Run::start(command).finish()
}

#[test]
fn a_full_disk_is_named_and_nothing_is_left_on_it() {
    let ended = in_a_mount_namespace(
        r#"mount -t tmpfs -o size=64k tmpfs "$1"; export SYNCD_SPAWN_SERVERS="file://$1" SYNCD_SPAWN_CHROOT=/
        "$0" -q -n /x true
        dd if=/dev/zero of="$1/ballast" bs=4k count=100 2>/dev/null || true
        "$0" -q -n /x true && exit 1
        echo "status $?"; ls -A "$1/x"
        rm "$1/ballast"
        "$0" -q --no-wait -n /x true"#,
    )
    .good();
    assert!(ended.stderr.contains("no space left on device"), "{ended:?}");
    let said: Vec<_> = ended.stdout().lines().collect();
    assert_eq!(said[0], "status 125");
    assert!(said[1..].iter().all(|name| !name.contains("lock__") && !name.contains("new")), "{said:?}");
}

#[test]
fn a_release_that_cannot_even_look_is_named_with_the_line_that_does_it() {
    let bench = Bench::directory();
    let holder = bench.hold(["-n", "/x", "--on-lost", "ignore"]).ready();
    let (directory, away) = (bench.file("/x").unwrap(), bench.file("/away").unwrap());
    fs::rename(&directory, &away).unwrap();
    fs::write(&directory, "").unwrap();
    let ended = holder.finish().failed(125, "could not be removed from ");
    let typed = ended.stderr.lines().find_map(|line| line.strip_prefix("hint: ")).expect("a hint");
    assert!(typed.contains(" unlock /x/"), "{typed}");
}

#[test]
fn a_disk_without_inodes_or_one_that_is_read_only_is_named() {
    let ended = in_a_mount_namespace(
        r#"export SYNCD_SPAWN_SERVERS="file://$1" SYNCD_SPAWN_CHROOT=/
        mount -t tmpfs -o nr_inodes=6 tmpfs "$1"
        "$0" -q -n /x true
        "$0" wlock /x >/dev/null || true
        "$0" -q -n /x/y -- true && exit 1; echo "status $?"
        mount -o remount,ro "$1"
        "$0" -q -l rlock -n /x -- true && exit 1; echo "status $?"
        "$0" list /x"#,
    )
    .good();
    assert!(ended.stderr.contains("no space left on device"), "{ended:?}");
    assert!(ended.stderr.contains("read-only file system"), "{ended:?}");
    let said: Vec<_> = ended.stdout().lines().collect();
    assert_eq!(said[..2], ["status 125", "status 125"]);
    assert!(said[2].contains("__lock__"), "{said:?}");
}
