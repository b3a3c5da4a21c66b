//! The directory store among the other processes and the other users of its host.

use std::fs;
use std::future::pending;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use syncd_spawn::lock::{
    AbsolutePath, Claim, Entry, Expected, Identifier, Lifetime, LockPath, Mode, Removal, Store, StoreError,
};
use syncd_spawn::store::{Directory, Root};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::bench::{BINARY, Bench, Ended, HOLD, Run, children, copy_binary, kill_tree, send, wait_until};

/// How long a lock may be left lying when nobody holds it any more.
const PROMPTLY: Duration = Duration::from_secs(10);

/// A contender's name that nobody got.
const CONTENDER: &str = "00000000000000000000000000000000__lock__0000000000";

/// Users whom nothing belongs to.
const USERS: [u32; 2] = [65534, 65533];

#[test]
fn what_a_killed_command_has_started_holds_the_lock_too() {
    let bench = Bench::directory();
    // In the background a shell gives its commands nothing to read, unless it is told to.
    let command = "exec 3<&0; cat <&3 >/dev/null 3<&- & echo ready; wait";
    let mut holder = bench.start(["-n", "/left", "--", "sh", "-c", command]).ready();
    let next = bench.hold(["-n", "/left"]).waits();
    let command = children(holder.pid())[0];
    holder.kill();
    send(command, libc::SIGKILL);
    wait_until("the command is gone", || !is_there(command));
    bench.run(["-n", "/left", "--no-wait", "true"]).failed(124, "not acquired in time");
    assert_eq!(next.stdout(), "");
    let over = Instant::now();
    assert_eq!(holder.finish().died_of(), libc::SIGKILL);
    let next = next.ready();
    assert!(over.elapsed() < PROMPTLY, "{:?}", over.elapsed());
    next.finish().good();
}

#[test]
fn when_wrapper_and_command_are_killed_the_next_one_starts_promptly() {
    let bench = Bench::directory();
    for kind in ["lock", "rlock", "wlock"] {
        let holder = bench.hold(["-n", "/both", "-l", kind]).ready();
        let next = bench.hold(["-n", "/both", "-l", "wlock"]).waits();
        let killed = Instant::now();
        kill_tree(holder.pid());
        let next = next.ready();
        assert!(killed.elapsed() < PROMPTLY, "{:?}", killed.elapsed());
        assert_eq!(bench.queue("/both").len(), 1, "nobody has to clear the dead away");
        assert_eq!(holder.end().died_of(), libc::SIGKILL);
        next.finish().good();
    }
    // And with nobody waiting, the next one who comes does not notice.
    let holder = bench.hold(["-n", "/both"]).ready();
    kill_tree(holder.pid());
    assert_eq!(holder.end().died_of(), libc::SIGKILL);
    assert_eq!(bench.run(["list", "/both"]).good().stdout(), "");
    bench.run(["-n", "/both", "--no-wait", "true"]).good();
}

#[test]
fn a_newborn_is_never_taken_for_dead() {
    /// Fails where two are in here at once.
    const ALONE: &str = r#"mkdir "$0" && rmdir "$0""#;
    let bench = Bench::directory();
    let directory = tempfile::tempdir().unwrap();
    let guard = directory.path().join("guard");
    let arguments = ["-n", "/newborn", "-l", "wlock", "--", "sh", "-c", ALONE, guard.to_str().unwrap()];
    let is_over = AtomicBool::new(false);
    let until_over = |look: &dyn Fn()| {
        while !is_over.load(Ordering::Relaxed) {
            look();
        }
    };
    let unharmed =
        |ended: Ended| assert!(!ended.stderr.contains("was removed") && !ended.stderr.contains("was gone"), "{ended:?}");
    thread::scope(|scope| {
        let runs: Vec<_> =
            (0..3).map(|_| scope.spawn(|| (0..50).for_each(|_| unharmed(bench.run(arguments).good())))).collect();
        let impatient = || {
            let ended = bench.run(["--no-wait"].into_iter().chain(arguments));
            assert!([0, 124].contains(&ended.code()), "{ended:?}");
            unharmed(ended);
        };
        let list = || {
            let ended = bench.run(["list", "/newborn"]);
            assert!(ended.code() == 0 || ended.stderr.contains("no such lock"), "{ended:?}");
        };
        scope.spawn(move || until_over(&impatient));
        scope.spawn(move || until_over(&list));
        let runs: Vec<_> = runs.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        for run in runs {
            run.unwrap();
        }
    });
    assert!(bench.queue("/newborn").is_empty());
}

#[test]
fn a_newborn_is_never_taken_for_dead_by_whoever_looks_all_the_time() {
    let bench = Bench::directory();
    let lock = LockPath::parse("/looked/at").unwrap();
    let store = || {
        let root = Root::parse(bench.servers().strip_prefix("file:").unwrap()).unwrap();
        Directory::new(root, AbsolutePath::parse(bench.chroot()).unwrap())
    };
    let run = |work: &dyn Fn(&Runtime)| work(&Builder::new_current_thread().enable_all().build().unwrap());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Two of them, for one of them may hold a flock while the other looks.
        for _ in 0..2 {
            scope.spawn(|| {
                run(&|runtime| {
                    let store = store();
                    while !is_over.load(Ordering::Relaxed) {
                        match runtime.block_on(store.contenders(&lock)) {
                            Ok(_) | Err(StoreError::NoLock(_)) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            });
        }
        let born = scope.spawn(|| {
            run(&|runtime| {
                let store = store();
                for _ in 0..3000 {
                    let claim = Claim::new(Mode::Write, Lifetime::Spawned, Identifier(b"newborn".to_vec()));
                    let entered = runtime.block_on(store.enter(&lock, &claim, pending())).unwrap();
                    let Entry::In(place) = entered else { panic!("nobody gave up") };
                    let removal = runtime.block_on(store.leave(&lock, &place.name, Expected::Anything)).unwrap();
                    assert_eq!(removal, Removal::Removed, "somebody took it for dead");
                }
            });
        });
        let born = born.join();
        is_over.store(true, Ordering::Relaxed);
        born.unwrap();
    });
}

#[test]
fn without_a_runtime_directory_it_is_below_run_lock_or_tmp() {
    let bench = Bench::on("file:");
    for (option, expected) in [("rw", "/run/lock/syncd-spawn-0"), ("ro", "/tmp/syncd-spawn-0")] {
        let script = r#"set -e; exec 9<"$0"; mount -t tmpfs -o "$1" tmpfs /run/lock; mount -t tmpfs tmpfs /tmp
            /proc/self/fd/9 -q -n /default true; stat -c '%a %n' "$2""#;
        let ended = Run::start(bench.program("unshare", ["-rm", "sh", "-c", script, BINARY, option, expected])).finish().good();
        assert_eq!(ended.stdout(), format!("700 {expected}\n"));
    }
}

#[test]
fn what_is_no_form_of_a_directory_is_bad_usage() {
    let bench = Bench::directory();
    for form in ["file:relative", "file:/one", "file://host/x", "file://", "file:///a/../b"] {
        bench.run(["-s", form, "-n", "/l", "true"]).failed(125, form);
        bench.with_variable("SYNCD_SPAWN_SERVERS", form).run(["list", "/l"]).failed(125, form);
    }
}

/// Has every command refused with this path in the error.
fn all_refuse(bench: &Bench, lock: &str, path: &Path, why: &str) {
    let node = format!("{lock}/{CONTENDER}");
    let commands = [&["-n", lock, "true"][..], &["--no-wait", "lock", lock], &["list", lock], &["unlock", &node]];
    for arguments in commands {
        let ended = bench.run(arguments.iter().copied()).failed(125, why);
        assert!(ended.stderr.contains(path.to_str().unwrap()), "{}", ended.stderr);
        assert_eq!(ended.stdout(), "");
    }
}

#[test]
fn a_lock_that_is_named_like_a_file_of_ours_is_refused_and_takes_no_harm() {
    let bench = Bench::directory();
    let user = geteuid();
    for name in [format!(".syncd-spawn.{user}.0000000005"), format!(".syncd-spawn.new.{user}"), ".syncd-spawn.x".to_owned()] {
        for below in ["", "/below"] {
            let path = bench.file(&format!("/a/{name}")).unwrap();
            all_refuse(&bench, &format!("/a/{name}{below}"), &path, "names that begin with .syncd-spawn. are not for locks");
        }
        assert!(!bench.file("/a").unwrap().join(&name).exists());
    }
}

#[test]
fn what_is_no_contenders_is_left_alone() {
    let bench = Bench::directory();
    for stranger in ["notes.txt", ".hidden", "x__READ__0000000001"] {
        bench.plant(&format!("/l/{stranger}"), "not ours");
    }
    fs::create_dir(bench.file("/l/below").unwrap()).unwrap();
    symlink("/nowhere/at/all", bench.file("/l/link").unwrap()).unwrap();
    let ended = bench.run(["-n", "/l", "--no-wait", "true"]).good();
    assert!(!ended.stderr.contains("notes.txt"), "{}", ended.stderr);
    let listed = bench.run(["list", "/l"]).good();
    assert_eq!(listed.stdout(), "");
    for stranger in ["notes.txt", "x__READ__0000000001", "below", "link"] {
        assert!(listed.stderr.contains(&format!("/l/{stranger} is no contender")), "{}", listed.stderr);
    }
    for stranger in ["notes.txt", ".hidden", "x__READ__0000000001"] {
        assert_eq!(bench.data(&format!("/l/{stranger}")), b"not ours");
    }
    assert!(bench.file("/l/below").unwrap().is_dir() && bench.file("/l/link").unwrap().is_symlink());
}

#[test]
fn on_a_full_disk_nobody_enters_and_everybody_leaves() {
    let bench = Bench::on("file:///unused");
    let script = r#"set -e
        mount -t tmpfs -o size=256k tmpfs "$1"
        syncd() { "$binary" -s "file://$place" -c /c "$@"; }
        binary=$0 place=$1
        held=$(syncd lock /held)
        dd if=/dev/zero of="$place/fill" bs=4k 2>/dev/null || :
        long=$(head -c 60000 /dev/zero | tr '\0' x)
        for lock in /held /new; do
            status=0; syncd -q --no-wait -i "$long" rlock $lock || status=$?
            [ $status = 125 ] || { echo "status $status of $lock"; exit 1; }
        done
        echo "left: $(ls "$place/c/held" | wc -l) $(ls "$place/c/new" | wc -l) $(ls -A "$place/c/held" | grep -c new || :)"
        syncd unlock "$held"
        rm "$place/fill"
        syncd -i "$long" lock /held >/dev/null
        echo done"#;
    let place = tempfile::tempdir().unwrap();
    let ended = Run::start(bench.program("unshare", ["-rm", "sh", "-c", script, BINARY, place.path().to_str().unwrap()]));
    let ended = ended.finish().good();
    assert_eq!(ended.stdout(), "left: 1 0 0\ndone\n", "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("no space left on device").count(), 2, "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("{}/c/held/", place.path().display())), "{}", ended.stderr);
}

/// The program where every user may run it.
struct Everybodys {
    _directory: TempDir,
    binary: PathBuf,
}

impl Everybodys {
    fn new() -> Everybodys {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let binary = directory.path().join("syncd-spawn");
        copy_binary(&binary);
        Everybodys { _directory: directory, binary }
    }

    fn command(&self, bench: &Bench, user: u32, umask: u32, arguments: &[&str]) -> Command {
        let script = format!(r#"umask {umask:03o}; exec setpriv --reuid={user} --regid={user} --clear-groups "$@""#);
        bench.program("sh", ["-c", &script, "sh", self.binary.to_str().unwrap()].into_iter().chain(arguments.iter().copied()))
    }

    fn run_as(&self, bench: &Bench, user: u32, arguments: &[&str]) -> Ended {
        Run::start(self.command(bench, user, 0o022, arguments)).finish()
    }

    fn hold_as(&self, bench: &Bench, user: u32, umask: u32, options: &[&str]) -> Run {
        let arguments: Vec<&str> = options.iter().copied().chain(HOLD).collect();
        Run::start(self.command(bench, user, umask, &arguments))
    }
}

#[test]
fn users_who_come_first_at_the_same_time_both_come_in() {
    let bench = Bench::directory();
    fs::set_permissions(root(&bench), fs::Permissions::from_mode(0o1777)).unwrap();
    let everybodys = Everybodys::new();
    for round in 0..60 {
        let lock = format!("/first/{round}/a/b/c/d");
        let arguments = ["-q", "-n", &lock, "true"];
        let runs = USERS.map(|user| match geteuid().is_root() {
            true => Run::start(everybodys.command(&bench, user, 0o077, &arguments)),
            // It takes root to be two users. One user shares it with himself.
            false => bench.start(arguments),
        });
        for run in runs {
            run.finish().good();
        }
        assert_eq!(mode(&bench.file(&lock).unwrap()), 0o1777);
    }
    let group = root(&bench).join("group");
    fs::create_dir(&group).unwrap();
    fs::set_permissions(&group, fs::Permissions::from_mode(0o2775)).unwrap();
    bench.run(["-c", "/group", "-n", "/of/a", "true"]).good();
    assert_eq!((mode(&group.join("of")), mode(&group.join("of/a"))), (0o2775, 0o2775));
}

#[test]
fn a_run_of_another_user_is_waited_for_until_it_ends_or_is_dead() {
    let bench = Bench::directory();
    fs::set_permissions(root(&bench), fs::Permissions::from_mode(0o1777)).unwrap();
    if !geteuid().is_root() {
        // It takes root to be two users. What one user waits for is tested above.
        bench.hold(["-n", "/shared"]).ready().finish().good();
        return assert_eq!(mode(&bench.file("/shared").unwrap()), 0o1777);
    }
    let everybodys = Everybodys::new();
    for (umask, is_killed) in [(0o022, false), (0o077, false), (0o022, true)] {
        let holder = everybodys.hold_as(&bench, USERS[0], umask, &["-n", "/shared"]).ready();
        let waiter = everybodys.hold_as(&bench, USERS[1], umask, &["-n", "/shared"]).waits();
        assert_eq!(waiter.stderr().contains("its identifier may not be read"), umask == 0o077, "{}", waiter.stderr());
        assert_eq!(waiter.stdout(), "");
        let over = Instant::now();
        if is_killed {
            kill_tree(holder.pid());
            assert_eq!(holder.end().died_of(), libc::SIGKILL);
        } else {
            holder.finish().good();
        }
        let waiter = waiter.ready();
        assert!(over.elapsed() < PROMPTLY, "{:?}", over.elapsed());
        waiter.finish().good();
    }
    // The other could not clear the dead away, but it stands in nobody's way.
    everybodys.run_as(&bench, USERS[1], &["--no-wait", "-n", "/shared", "true"]).good();
    everybodys.run_as(&bench, USERS[0], &["--no-wait", "-n", "/shared", "true"]).good();
    assert!(bench.queue("/shared").is_empty());
}

/// The directory that the store was given.
fn root(bench: &Bench) -> PathBuf {
    PathBuf::from(bench.servers().strip_prefix("file://").unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie holds nothing any more.
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}
