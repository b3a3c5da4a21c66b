//! The old names, lockpick and `syncd_spawn`, exactly; lockpick itself is the oracle where it can be.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;

use tempfile::TempDir;
use uuid::Uuid;

use super::bench::{BINARY, Bench, Ended, Run};
use super::interop::{KAZOOS, python};
use super::zookeeper::Server;

/// The program under its old names, in a chroot of its own.
pub struct Old {
    pub bench: Bench,
    directory: TempDir,
}

impl Old {
    pub fn new() -> Old {
        Old::on(&Bench::zookeeper())
    }

    pub fn on(bench: &Bench) -> Old {
        let directory = tempfile::tempdir().unwrap();
        for name in ["lockpick", "syncd_spawn"] {
            symlink(BINARY, directory.path().join(name)).unwrap();
        }
        // Under the old names none of ours is read.
        let bench = bench.with_variable("SYNCD_SPAWN_IDENTIFIER", "not read");
        Old { bench, directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn program(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    /// A program that is told no place.
    pub fn without_a_place(&self, name: &str, arguments: &[&str]) -> Command {
        let bench =
            self.bench.with_variable("SYNCD_SPAWN_SERVERS", "not read").with_variable("SYNCD_SPAWN_CHROOT", "/not-read");
        bench.program(&self.program(name), arguments)
    }

    /// lockpick, without a place.
    fn bare(&self, arguments: &[&str]) -> Command {
        self.without_a_place("lockpick", arguments)
    }

    pub fn start_lockpick(&self, arguments: &[&str]) -> Run {
        let place = ["-s", self.bench.servers(), "-c", self.bench.chroot()];
        Run::start(self.bare(&[&place, arguments].concat()))
    }

    pub fn lockpick(&self, arguments: &[&str]) -> Ended {
        self.start_lockpick(arguments).finish()
    }

    /// Takes a lock by lockpick and gives its node.
    pub fn take(&self, arguments: &[&str]) -> String {
        self.lockpick(arguments).good().stdout().trim_end().to_owned()
    }

    pub fn script_command(&self, arguments: &[&str]) -> Command {
        let bench = self.bench.with_variable("ZK_SERVERS", self.bench.servers()).with_variable("ZKCHROOT", self.bench.chroot());
        let bench = bench.with_variable("SYNCD_SPAWN_SERVERS", "not read").with_variable("SYNCD_SPAWN_CHROOT", "/not-read");
        bench.program(&self.program("syncd_spawn"), arguments)
    }

    pub fn start_script(&self, arguments: &[&str]) -> Run {
        Run::start(self.script_command(arguments))
    }

    pub fn script(&self, arguments: &[&str]) -> Ended {
        self.start_script(arguments).finish()
    }
}

/// Unique names, numbers and times, each replaced by what it is.
pub fn normalised(text: &str) -> String {
    let mut normal = String::new();
    for line in text.lines() {
        let line = match line.split_once("] ") {
            Some((time, rest)) if time.starts_with("[2") && time.len() == 24 => format!("[TIME] {rest}"),
            Some(_) | None => line.to_owned(),
        };
        let mut rest = line.as_str();
        while let Some(mark) =
            ["__lock__", "__rlock__"].into_iter().filter_map(|mark| rest.find(mark).map(|at| (at, mark))).min()
        {
            let (at, mark) = mark;
            let (front, number) = (&rest[..at], &rest[at + mark.len()..]);
            let is_unique = at >= 32 && front[at - 32..].bytes().all(|byte| byte.is_ascii_hexdigit());
            normal.push_str(if is_unique { &front[..at - 32] } else { front });
            normal.push_str(if is_unique { "UUID" } else { "" });
            normal.push_str(mark);
            let digits = number.bytes().take_while(u8::is_ascii_digit).count();
            normal.push_str(if digits == 10 { "N" } else { "" });
            rest = &number[digits..];
        }
        normal.push_str(rest.trim_end());
        normal.push('\n');
    }
    normal
}

/// What lockpick's README shows. A node that is typed is one that was shown; what is typed stands behind the dollar.
const README: &str = r#"
$ lockpick -s localhost:2181 -c /test -i "test lock1" rlock /mylock
/mylock/503e61fadc8f492497db823b87e64afe__rlock__0000000038
$ lockpick -s localhost:2181 -c /test -i "test lock1" rlock /mylock
/mylock/e21b0ecd480346aaaba23e77946e16e9__rlock__0000000039
$ lockpick -s localhost:2181 -c /test -i "test lock1" list /mylock
'test lock1' /mylock/e21b0ecd480346aaaba23e77946e16e9__rlock__0000000039
'test lock1' /mylock/503e61fadc8f492497db823b87e64afe__rlock__0000000038
$ lockpick -s localhost:2181 -c /test -i "test lock1" wlock /mylock
[2018-07-25 19:09:53,095] WARNING lockpick: Waiting to acquire lock, contenders are :
[2018-07-25 19:09:53,103] WARNING lockpick: 'test lock1' /mylock/e21b0ecd480346aaaba23e77946e16e9__rlock__0000000039
[2018-07-25 19:09:53,103] WARNING lockpick: 'test lock1' /mylock/503e61fadc8f492497db823b87e64afe__rlock__0000000038
[2018-07-25 19:09:53,104] WARNING lockpick: 'test lock1' /mylock/492b4a6c1727417daf511b343d0d11b7__lock__0000000042
[2018-07-25 19:09:56,104] WARNING lockpick: Waiting to acquire lock, contenders are :
[2018-07-25 19:09:56,114] WARNING lockpick: 'test lock1' /mylock/e21b0ecd480346aaaba23e77946e16e9__rlock__0000000039
[2018-07-25 19:09:56,114] WARNING lockpick: 'test lock1' /mylock/503e61fadc8f492497db823b87e64afe__rlock__0000000038
[2018-07-25 19:09:56,114] WARNING lockpick: 'test lock1' /mylock/492b4a6c1727417daf511b343d0d11b7__lock__0000000042
[2018-07-25 19:09:59,116] WARNING lockpick: LockTimeout exception rasied by locker thread
[2018-07-25 19:09:59,117] ERROR lockpick: Failed to acquire lock within timeout!
$ lockpick -s localhost:2181 -c /test -i "test lock1" unlock /mylock/503e61fadc8f492497db823b87e64afe__rlock__0000000038
$ lockpick -s localhost:2181 -c /test -i "test lock1" unlock /mylock/e21b0ecd480346aaaba23e77946e16e9__rlock__0000000039
$ lockpick -s localhost:2181 -c /test -i "test lock1" wlock /mylock
/mylock/d6602d4a54124826b27c50a43ab67a5e__lock__0000000043
$ ./syncd_spawn -n /test -C 'test' -l rlock sleep 5
Got lock on /test
Running your command sleep 5
Unlocked '/test/141bcfad04c6459591164ea12d1604af__rlock__0000000011'
"#;

#[test]
fn the_examples_of_lockpicks_readme_produce_the_documented_lines() {
    let old = Old::new();
    let place = old.path().display();
    let server = Server::prepare(2181);
    // Whoever comes before it listens may say so.
    let script = format!(
        "ip link set lo up\n{server} >{place}/log 2>&1 & server=$!\ntrap 'kill -9 $server' EXIT\n\
         until (: </dev/tcp/localhost/2181) 2>/dev/null; do sleep 0.1; done\n\
         unset SYNCD_SPAWN_SERVERS SYNCD_SPAWN_CHROOT\nPATH={place}:$PATH\ncd {place}\nexec 2>&1\n\
         while IFS= read -r line; do eval \"$line\"; echo done $((number += 1)); done\n",
        server = server.command_line(),
    );
    fs::write(old.path().join("script"), script).unwrap();
    let path = old.path().join("script").display().to_string();
    let mut shell = Run::start(old.bench.program("unshare", ["-rn", "bash", &path]));
    let (mut seen, mut nodes) = (0, Vec::<(String, String)>::new());
    for (number, example) in README.split("\n$ ").enumerate().skip(1) {
        let (typed, documented) = example.split_once('\n').unwrap_or((example, ""));
        let typed = nodes.iter().fold(typed.to_owned(), |typed, (theirs, ours)| typed.replace(theirs, ours));
        shell.write(format!("{typed}\n").as_bytes());
        let done = format!("done {number}\n");
        shell.says(&done);
        let said = shell.stdout();
        let shown = said[seen..].strip_suffix(&done).unwrap();
        seen = said.len();
        assert_eq!(normalised(shown), normalised(&format!("{}\n", documented.trim_end())).trim_start_matches('\n'), "{typed}");
        nodes.extend(documented.lines().zip(shown.lines()).filter(|(line, _)| line.starts_with("/mylock/")).map(pair));
    }
    assert_eq!(nodes.len(), 3);
    shell.finish();
}

fn pair((theirs, ours): (&str, &str)) -> (String, String) {
    (theirs.to_owned(), ours.to_owned())
}

/// What is in the queue before, what is typed, and what comes of it.
struct Row {
    typed: &'static [&'static str],
    code: i32,
    stdout: &'static str,
    stderr: &'static str,
}

const fn row(typed: &'static [&'static str], code: i32, stdout: &'static str, stderr: &'static str) -> Row {
    Row { typed, code, stdout, stderr }
}

const NEW: &str = "/free/UUID__lock__N\n";
const WAITED: &str = "\
[TIME] WARNING lockpick: Waiting to acquire lock, contenders are :
[TIME] WARNING lockpick: 'its' /held/UUID__lock__N
[TIME] WARNING lockpick: '' /held/UUID__lock__N
[TIME] WARNING lockpick: LockTimeout exception rasied by locker thread
[TIME] ERROR lockpick: Failed to acquire lock within timeout!
";
const TIMED_OUT: &str = "\
[TIME] WARNING lockpick: LockTimeout exception rasied by locker thread
[TIME] ERROR lockpick: Failed to acquire lock within timeout!
";

/// Each option, one at a time. `/held` is held by `its`, whose node is NODE; `/free` and `/empty` are free.
const LOCKPICK: [Row; 41] = [
    row(&["lock", "/free"], 0, NEW, ""),
    row(&["wlock", "/free"], 0, NEW, ""),
    row(&["rlock", "/free"], 0, "/free/UUID__rlock__N\n", ""),
    row(&["lock", "/free///"], 0, NEW, ""),
    row(&["lock", "free/"], 0, "free/UUID__lock__N\n", ""),
    row(&["lock", "//free"], 0, "//free/UUID__lock__N\n", ""),
    row(&["-c", "/", "lock", "CHROOT//free"], 0, "CHROOT//free/UUID__lock__N\n", ""),
    row(&["-c", "BARE", "lock", "/free"], 0, NEW, ""),
    row(&["-c", "//CHROOT", "lock", "/free"], 0, NEW, ""),
    row(&["list", "//held"], 0, "'its' //held/UUID__lock__N\n", ""),
    row(&["unlock", "//NODE"], 0, "", ""),
    row(
        &["-v", "lock", "//free"],
        0,
        "//free/UUID__lock__N\n",
        "[TIME] INFO lockpick: Lock //free with path //free/UUID__lock__N acquired\n",
    ),
    row(
        &["unlock", "//held///141bcfad04c6459591164ea12d1604af__lock__0000000011"],
        1,
        "",
        "[TIME] ERROR lockpick: Lock //held///UUID__lock__N does not exist!\n",
    ),
    row(&["list", "/held"], 0, "'its' /held/UUID__lock__N\n", ""),
    row(&["list", "held"], 0, "'its' held/UUID__lock__N\n", ""),
    row(&["list", "/empty"], 0, "", ""),
    row(&["unlock", "NODE"], 0, "", ""),
    row(&["unlock", "NODE/"], 0, "", ""),
    row(&["-i", "its", "unlock", "NODE"], 0, "", ""),
    row(&["unlock", "NODE", "--identifier", "its"], 0, "", ""),
    row(&["-i", "mine", "unlock", "NODE"], 1, "", "[TIME] ERROR lockpick: Identifier mistmatch, got 'its'\n"),
    row(
        &["unlock", "/held/141bcfad04c6459591164ea12d1604af__lock__0000000011"],
        1,
        "",
        "[TIME] ERROR lockpick: Lock /held/UUID__lock__N does not exist!\n",
    ),
    row(&["-i", "mine", "lock", "/free"], 0, NEW, ""),
    row(&["lock", "--identifier=mine", "/free"], 0, NEW, ""),
    row(&["lock", "/free", "--ident", "mine"], 0, NEW, ""),
    row(&["-imine", "lock", "/free"], 0, NEW, ""),
    row(&["-v", "lock", "/free"], 0, NEW, "[TIME] INFO lockpick: Lock /free with path /free/UUID__lock__N acquired\n"),
    row(&["lock", "/free", "--verb"], 0, NEW, "[TIME] INFO lockpick: Lock /free with path /free/UUID__lock__N acquired\n"),
    row(&["-v", "unlock", "NODE"], 0, "", ""),
    row(&["-v", "list", "/held"], 0, "'its' /held/UUID__lock__N\n", ""),
    row(&["-r", "0", "lock", "/free"], 0, NEW, ""),
    row(&["-r", "0", "lock", "/held"], 1, "", TIMED_OUT),
    row(&["--retry-count", "0", "rlock", "/held"], 1, "", TIMED_OUT),
    row(&["-r", "-1", "wlock", "/held"], 1, "", TIMED_OUT),
    row(&["-r", "2", "-p", "2", "lock", "/held"], 1, "", WAITED),
    row(&["lock", "/held", "--retry-count=2", "--retry-sleep=2"], 1, "", WAITED),
    row(&["--retry-s", "2", "--retry-c", "2", "wlock", "/held"], 1, "", WAITED),
    row(&["-p", "1", "lock", "/free"], 0, NEW, ""),
    row(&["--", "lock", "/free"], 0, NEW, ""),
    row(&["lock", "--", "/free"], 0, NEW, ""),
    row(&["-c", "CHROOT//", "lock", "/free"], 0, NEW, ""),
];

/// lockpick itself, as it is published now: its lines are doubled, and it shows bytes as Python does.
fn lockpick_itself(bench: &Bench, arguments: &[&str]) -> Ended {
    let lockpick = python(KAZOOS[0]).with_file_name("lockpick");
    let undone = |text: &str| text.replace("'b'", "'").replace("'' ", "' ").replace("''\n", "'\n");
    loop {
        let mut ended = Run::start(bench.program(lockpick.to_str().unwrap(), arguments)).finish();
        // Its list fails where somebody goes while it is read, and at a limit it is itself who goes.
        if ended.stderr.contains("NoNodeError") {
            continue;
        }
        ended.stdout = undone(ended.stdout()).into_bytes();
        if !ended.stderr.starts_with("usage: ") {
            let lines = ended.stderr.lines().filter(|line| line.starts_with('['));
            ended.stderr = lines.map(|line| undone(&format!("{line}\n"))).collect();
        }
        return ended;
    }
}

#[test]
fn every_option_of_lockpick_does_what_lockpick_does_with_it() {
    thread::scope(|scope| {
        for rows in LOCKPICK.chunks(LOCKPICK.len().div_ceil(4)) {
            scope.spawn(move || {
                let old = Old::new();
                for row in rows {
                    old.does(row, Lockpick::Ours);
                    old.does(row, Lockpick::Itself);
                }
            });
        }
    });
}

#[derive(Clone, Copy)]
enum Lockpick {
    Ours,
    Itself,
}

impl Old {
    fn does(&self, Row { typed, code, stdout, stderr }: &Row, lockpick: Lockpick) {
        let bench = &self.bench;
        let its = self.take(&["-i", "its", "lock", "/held"]);
        let empty = self.take(&["lock", "/empty"]);
        self.lockpick(&["unlock", &empty]).good();
        let words: Vec<_> = typed
            .iter()
            .map(|word| word.replace("NODE", &its).replace("CHROOT", bench.chroot()).replace("BARE", &bench.chroot()[1..]))
            .collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let ended = match lockpick {
            Lockpick::Ours => self.lockpick(&words),
            Lockpick::Itself => lockpick_itself(bench, &[&["-s", bench.servers(), "-c", bench.chroot()], &words[..]].concat()),
        };
        let said = normalised(ended.stdout()).replace(bench.chroot(), "CHROOT");
        assert_eq!((ended.code(), said.as_str()), (*code, *stdout), "{words:?} {ended:?}");
        let said = normalised(&ended.stderr);
        match lockpick {
            Lockpick::Ours => assert_eq!(said, *stderr, "{words:?}"),
            Lockpick::Itself => {
                // It may say one thing more often, and lists in any order.
                let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
                assert_eq!(lines(&said), lines(stderr), "{words:?}");
            }
        }
        if words.iter().any(|word| word.contains("mine")) && *code == 0 {
            assert_eq!(bench.data(ended.stdout().trim_end()), b"mine");
        }
        for lock in ["/free", "/held"] {
            for name in bench.queue(lock) {
                bench.remove(&format!("{lock}/{name}"));
            }
        }
    }
}

#[test]
fn what_lockpick_refuses_is_refused_in_its_words() {
    let old = Old::new();
    for typed in [
        &[][..],
        &["lock"],
        &["-v"],
        &["mutex", "/x"],
        &["mutex"],
        &["-r", "x", "lock", "/x"],
        &["lock", "/x", "-p", "1.5"],
        &["-p", "it's", "lock", "/x"],
        &["-r", "", "lock", "/x"],
        &["--re", "1", "lock", "/x"],
        &["--retry=1"],
        &["-q", "lock", "/x", "y"],
        &["-r", "lock", "/x"],
        &["-r", "-v", "lock", "/x"],
        &["-vx", "lock", "/x"],
        &["--verbose=1", "lock", "/x"],
        &["lock", "/x", "-s"],
        &["lock", "/x", "--", "-v"],
        &["--timeout", "1", "lock", "/x"],
    ] {
        let ours = Run::start(old.bare(typed)).finish();
        let theirs = lockpick_itself(&old.bench, typed);
        assert_eq!((ours.code(), ours.stdout(), &ours.stderr), (2, "", &theirs.stderr), "{typed:?}");
        assert_eq!(theirs.code(), 2, "{typed:?}");
    }
}

#[test]
fn the_help_of_lockpick_is_its_own_with_a_line_that_names_the_native_form() {
    let old = Old::new();
    let theirs = Run::start({
        let lockpick = python(KAZOOS[0]).with_file_name("lockpick");
        let mut program = old.bench.program(lockpick.to_str().unwrap(), ["--help"]);
        program.env("COLUMNS", "80");
        program
    });
    // As in its README; Python has renamed it since.
    let theirs = theirs.finish().good().stdout().replace("\noptions:\n", "\noptional arguments:\n");
    for typed in [&["--help"][..], &["-h"], &["-vh", "-r", "x"], &["lock", "--h"]] {
        let ours = Run::start(old.bare(typed)).finish().good();
        assert_eq!(ours.stdout(), format!("{theirs}\nThe native form of this program: syncd-spawn --help\n"));
    }
}

#[test]
fn the_place_of_lockpicks_locks_is_told_as_lockpick_has_it() {
    let old = Old::new();
    let servers = old.bench.servers();
    let unique = format!("/{}", Uuid::new_v4().simple());
    let list = |arguments: &[&str]| Run::start(old.bare(arguments)).finish().good().stdout().to_owned();
    let node = list(&["-s", servers, "lock", &unique]);
    let listed = format!("'' {node}");
    // The default chroot is /devops, a chroot behind the servers is nothing, and none can be asked for.
    assert_eq!(list(&["-s", &format!("{servers}/elsewhere"), "list", &unique]), listed);
    assert_eq!(list(&["-c", "/devops//", "--serv", servers, "list", &unique]), listed);
    for none in ["", "/", "//"] {
        let below = format!("/devops{unique}");
        assert_eq!(
            list(&[&format!("--chroot={none}"), "-s", servers, "-c", none, "list", &below]),
            format!("'' /devops{node}")
        );
    }
    list(&["-s", servers, "unlock", node.trim_end()]);
}

#[test]
fn a_lock_below_a_chroot_may_be_called_zookeeper() {
    let old = Old::new();
    for lock in ["/zookeeper", "/zookeeper/x"] {
        let node = old.take(&["-i", "its", "lock", lock]);
        let place = ["-s", old.bench.servers(), "-c", old.bench.chroot()];
        for listed in [lockpick_itself(&old.bench, &[&place[..], &["list", lock]].concat()), old.bench.run(["list", lock])] {
            assert!(listed.good().stdout().contains(&format!("'its' {node}\n")));
        }
        old.lockpick(&["unlock", &node]).good();
    }
}

#[test]
fn what_lockpick_takes_and_cannot_use_is_an_error_in_a_line_and_1() {
    let old = Old::new();
    for (typed, said) in [
        (&["lock", "/"][..], "it names no lock"),
        (&["lock", ""], "the lock path '' is not usable: it names no lock"),
        (&["list", "/"], "the lock path '/' is not usable: it names no lock"),
        (&["list", ""], "it names no lock"),
        (&["unlock", ""], "no contender's node"),
        (&["list", "/a/../b"], "it has a segment \"..\""),
        (&["list", "/a\nb\u{1b}"], "the lock path '/a\\nb\\u{1b}' is not usable: it has the character '\\n'"),
        (&["-c", "/", "lock", "/zookeeper/x"], "/zookeeper is reserved"),
        (&["-c", "/zookeeper", "lock", "/x"], "/zookeeper is reserved"),
        (&["-c", "x/.", "lock", "/a"], "the chroot 'x/.' is not usable"),
        (&["-s", "h:x", "lock", "/a"], "the server 'h:x' is not usable"),
        (&["-s", "", "lock", "/a"], "the server '' is not usable"),
        (&["unlock", "/a"], "no contender's node"),
    ] {
        let ended = Run::start(old.bare(typed)).finish().failed(1, said);
        assert!(normalised(&ended.stderr).starts_with("[TIME] ERROR lockpick: "), "{}", ended.stderr);
        assert_eq!((ended.stdout(), ended.stderr.lines().count()), ("", 1), "{}", ended.stderr);
    }
}

#[test]
fn who_waits_once_learns_who_holds_the_lock() {
    let old = Old::new();
    old.take(&["-i", "its", "lock", "/held"]);
    let ended = old.lockpick(&["-r", "1", "-p", "3", "lock", "/held"]);
    assert_eq!((ended.code(), normalised(&ended.stderr).as_str()), (1, WAITED));
    let ended = old.script(&["-n", "/held", "-C", "c", "-l", "lock", "-i", "1", "-S", "3", "true"]);
    let waited = WAITED.replace("'' /held", "'c' /held") + "Couldn't lock '/held':\n";
    assert_eq!((ended.code(), normalised(&ended.stderr)), (1, waited));
    assert_eq!(old.bench.queue("/held").len(), 1);
}

#[test]
fn more_verbose_says_more_in_the_same_form() {
    let old = Old::new();
    let ended = old.lockpick(&["-vv", "lock", "/free"]).good();
    let said = normalised(&ended.stderr);
    assert!(said.contains("[TIME] DEBUG lockpick: Trying to acquire lock on /free\n"), "{said}");
    assert!(said.contains("[TIME] INFO lockpick: Lock /free with path"), "{said}");
    assert!(said.lines().all(|line| line.starts_with("[TIME] ")), "{said}");
    let holder = old.start_lockpick(&["-v", "-p", "1", "lock", "/free"]);
    holder.warns("Waiting to acquire lock");
    holder.signal(libc::SIGTERM);
    let ended = holder.end().failed(1, "INFO lockpick: Received signal 15, running handler");
    assert_eq!(ended.stdout(), "");
}

const USAGE: &str = "\
Spawns the given command only if it can acquire (create) the given node in ZK.
Waits on if the given node already exists or exits with error otherwise, simple as that.
Useful for running programs in distributed environments where the runs need to be synchronized.

PROGRAM -n NODE -C CONTENT [options] <COMMAND>
";

/// Each option of the script, one at a time, with what is shown on both streams.
#[test]
fn every_option_of_the_script_does_what_the_script_did_with_it() {
    let old = Old::new();
    old.take(&["-i", "its", "wlock", "/held"]);
    let run = "Got lock on /free\n";
    let shown = |kind: &str| format!("Running your command echo  hi\n hi\nUnlocked '/free/UUID__{kind}__N'\n");
    let unlocked = |said: &str, kind| format!("Running your command {said}Unlocked '/free/UUID__{kind}__N'\n");
    let waited = "\
[TIME] WARNING lockpick: Waiting to acquire lock, contenders are :
[TIME] WARNING lockpick: 'its' /held/UUID__lock__N
[TIME] WARNING lockpick: 'c' /held/UUID__KIND__N
[TIME] WARNING lockpick: LockTimeout exception rasied by locker thread
[TIME] ERROR lockpick: Failed to acquire lock within timeout!
Couldn't lock '/held':
";
    let taken = |kind| waited.replace("KIND", kind);
    let at_once = TIMED_OUT.to_owned() + "Couldn't lock '/held':\n";
    let mandatory = format!("\nERROR: -n -C -l & COMMAND are mandatory\n\n{USAGE}");
    let unknown = |lock_type: &str| format!("ERROR: Unknown -l LOCKTYPE '{lock_type}' passed\nUsage:\n{USAGE}");
    let wait: [&str; 6] = ["-n", "/held", "-C", "c", "-S", "2"];
    let free = ["-n", "/free", "-C", "c"];
    let with = |front: &[&'static str], rest: &[&'static str]| [front, rest].concat();
    let rows: Vec<(Vec<&str>, i32, String, String)> = vec![
        // Words are joined by blanks; those of echo's argument are the shell's business.
        (with(&free, &["-l", "lock", "echo", "' hi'"]), 0, shown("lock").replace("echo  hi", "echo ' hi'"), run.into()),
        (with(&free, &["-l", "wlock", "true"]), 0, unlocked("true\n", "lock"), run.into()),
        (with(&free, &["-l", "rlock", "--", "true"]), 0, unlocked("true\n", "rlock"), run.into()),
        (
            with(&free, &["-lrlock", "echo hi | tr h j; exit 3"]),
            3,
            unlocked("echo hi | tr h j; exit 3\nji\n", "rlock"),
            run.into(),
        ),
        (with(&free, &["-lrlock", "printf x"]), 0, unlocked("printf x\nx", "rlock"), run.into()),
        (with(&["-n", "/free/", "-C", "c", "-l"], &["rlock", "true"]), 0, unlocked("true\n", "rlock"), run.into()),
        (
            with(&["-n", "/free//", "-C", "c", "-l"], &["rlock", "true"]),
            0,
            unlocked("true\n", "rlock"),
            "Got lock on /free/\n".into(),
        ),
        (
            with(&["-n", "//free/", "-C", "c", "-l"], &["rlock", "echo $SYNCD_SPAWN_LOCK_PATH"]),
            0,
            unlocked("echo $SYNCD_SPAWN_LOCK_PATH\n/free\n", "rlock").replace("'/free", "'//free"),
            "Got lock on //free\n".into(),
        ),
        (with(&["-r", "BARE"], &with(&free, &["-l", "rlock", "true"])), 0, unlocked("true\n", "rlock"), run.into()),
        (
            with(&["-n", "free", "-C", "c", "-l"], &["rlock", "true"]),
            0,
            unlocked("true\n", "rlock").replace("/free", "free"),
            "Got lock on free\n".into(),
        ),
        (with(&free, &["-l", "rlock", "kill -9 $$"]), 137, unlocked("kill -9 $$\n", "rlock"), String::new()),
        (
            with(&free, &["-l", "rlock", "no-such-command"]),
            127,
            unlocked("no-such-command\n", "rlock"),
            format!("{run}PROGRAM: line 1: no-such-command: command not found\n"),
        ),
        (with(&["-s", "SERVERS"], &with(&free, &["-l", "rlock", "true"])), 0, unlocked("true\n", "rlock"), run.into()),
        (with(&["-r", "CHROOT"], &with(&free, &["-l", "rlock", "true"])), 0, unlocked("true\n", "rlock"), run.into()),
        (with(&wait, &["-i", "2", "-l", "lock", "true"]), 1, String::new(), taken("lock")),
        (with(&wait, &["-i", "2", "-l", "rlock", "true"]), 1, String::new(), taken("rlock")),
        (with(&wait, &["-i", "0", "-l", "rlock", "true"]), 1, String::new(), at_once),
        (
            with(&free, &["-z", "/bin/zookeepercli", "-l", "rlock", "true"]),
            0,
            unlocked("true\n", "rlock"),
            format!("[TIME] WARNING lockpick: -z is ignored: nothing here calls zookeepercli\n{run}"),
        ),
        (
            with(&free, &["-c", "/bin/lockpick", "-l", "rlock", "true"]),
            0,
            unlocked("true\n", "rlock"),
            format!("[TIME] WARNING lockpick: -c is ignored: nothing here calls lockpick\n{run}"),
        ),
        (with(&["-h"], &[]), 1, USAGE.into(), String::new()),
        (with(&["-x"], &[]), 1, USAGE.into(), "PROGRAM: illegal option -- x\n".into()),
        (with(&["-n"], &[]), 1, USAGE.into(), "PROGRAM: option requires an argument -- n\n".into()),
        (with(&[], &[]), 1, mandatory.clone(), String::new()),
        (with(&free, &["-l", "lock"]), 1, mandatory.clone(), String::new()),
        (with(&free, &["-l", "lock", " ", ""]), 1, mandatory.clone(), String::new()),
        (with(&free, &["true"]), 1, mandatory.clone(), String::new()),
        (with(&["-n", "/free", "-C", "", "-l"], &["lock", "true"]), 1, mandatory, String::new()),
        (with(&free, &["-l", "mutex", "true"]), 1, unknown("mutex"), String::new()),
    ];
    for (typed, code, stdout, stderr) in rows {
        old.script_does(&typed, code, &stdout, &stderr);
    }
    assert_eq!(old.bench.queue("/held").len(), 1);
}

impl Old {
    fn script_does(&self, typed: &[&str], code: i32, stdout: &str, stderr: &str) {
        let (servers, chroot) = (self.bench.servers(), self.bench.chroot());
        let placed = |word: &&str| word.replace("SERVERS", servers).replace("CHROOT", chroot).replace("BARE", &chroot[1..]);
        let typed: Vec<String> = typed.iter().map(placed).collect();
        let ended = self.script(&typed.iter().map(String::as_str).collect::<Vec<_>>());
        let program = self.program("syncd_spawn");
        let mut said = normalised(&ended.stdout().replace(&program, "PROGRAM"));
        if let Some((front, rest)) = said.split_once("<COMMAND>\n") {
            let (options, native) = rest.split_once("The native form").expect("a line that names it");
            assert_eq!((options.lines().count(), native), (10, " of this program: syncd-spawn --help\n"), "{rest}");
            said = format!("{front}<COMMAND>\n");
        }
        assert_eq!((ended.code(), said.as_str()), (code, stdout), "{typed:?} {ended:?}");
        let said = normalised(&ended.stderr.replace(&program, "PROGRAM"));
        if code == 137 {
            assert!(said.starts_with("Got lock on /free\n") && said.contains("was ended by signal 9"), "{said}");
        } else {
            assert_eq!(said, stderr, "{typed:?}");
        }
        assert_eq!(self.bench.queue("/free"), Vec::<String>::new());
    }
}

/// One of eval's, which has none, where it was that before; and its own path is never evaluated.
#[test]
fn what_begins_like_an_option_is_no_option_of_the_commands_shell() {
    let old = Old::new();
    let invalid = |option| format!("eval: {option}: invalid option\neval: usage: eval [arg ...]\n");
    for (words, shown, code, said) in [
        (&["--", "-x"][..], "-x", 2, invalid("-x")),
        (&["--", "-c", "echo"], "-c echo", 2, invalid("-c")),
        (&[" -x"], " -x", 2, invalid("-x")),
        (&["--", "--", "echo", "\"it's\""], "-- echo \"it's\"", 2, invalid("--")),
        (&["+x"], "+x", 127, "+x: command not found\n".to_owned()),
        (&["-"], "-", 127, "-: command not found\n".to_owned()),
    ] {
        let typed = [&["-n", "/free", "-C", "c", "-l", "rlock"], words].concat();
        let stdout = format!("Running your command {shown}\nUnlocked '/free/UUID__rlock__N'\n");
        old.script_does(&typed, code, &stdout, &format!("Got lock on /free\nPROGRAM: line 1: {said}"));
    }
}

#[test]
fn a_number_that_is_none_is_lockpicks_complaint_and_the_scripts_last_line() {
    let old = Old::new();
    for (letter, option) in [("-i", "-r/--retry-count"), ("-S", "-p/--retry-sleep")] {
        let ended = old.script(&["-n", "/free/", "-C", "c", "-l", "lock", letter, "x", "true"]);
        let last = format!("lockpick: error: argument {option}: invalid int value: 'x'\nCouldn't lock '/free': \n");
        let ended = ended.failed(1, &last);
        assert!(ended.stderr.starts_with("usage: lockpick [-h]") && ended.stdout().is_empty(), "{ended:?}");
    }
}

#[test]
fn the_scripts_variables_stand_in_for_its_options_and_no_other_does() {
    let old = Old::new();
    let place = old.bench.with_variable("ZK_SERVERS", old.bench.servers()).with_variable("ZKCHROOT", old.bench.chroot());
    let program = old.program("syncd_spawn");
    old.take(&["lock", "/held"]);
    let hurried = place.with_variable("SLEEP", "1").with_variable("RETRIES", "1");
    let typed = ["-n", "/held", "-C", "c", "-l", "lock", "true"];
    Run::start(hurried.program(&program, typed)).finish().failed(1, "Couldn't lock '/held': ");
    // -n, -l, -C and the command came from anywhere.
    let strayed = ["NODE=/stray", "LOCKTYPE=lock", "CONTENT=c", "COMMAND=true"].iter().fold(place, |bench, stray| {
        let (name, value) = stray.split_once('=').unwrap();
        bench.with_variable(name, value)
    });
    let ended = Run::start(strayed.program(&program, [""; 0])).finish();
    assert!(ended.code() == 1 && ended.stdout().contains("are mandatory"), "{ended:?}");
    let ended = Run::start(strayed.program(&program, ["-n", "/x", "-C", "y", "-l", "rlock", "echo $NODE"])).finish().good();
    assert!(ended.stdout().contains("\n/stray\nUnlocked '/x/"), "{ended:?}");
}

#[test]
fn where_there_is_no_bash_the_script_takes_sh() {
    let old = Old::new();
    let bin = tempfile::tempdir().unwrap();
    symlink("/bin/sh", bin.path().join("sh")).unwrap();
    let mut script = old.script_command(&["-n", "/x", "-C", "y", "-l", "rlock", "echo", "one", "&&", "echo", "two"]);
    script.env("PATH", bin.path());
    assert!(Run::start(script).finish().good().stdout().contains("\none\ntwo\nUnlocked"));
}
