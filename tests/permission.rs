//! A permission that is in doubt, or revoked, on real processes.
//!
//! A process of its own with no other thread: the process half takes signals over, and reaps every child.

use std::ffi::OsString;
use std::fs::{self, File};
use std::future::poll_fn;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use syncd_spawn::supervise::{
    Cause, Ending, Group, Inherited, Orphans, Outcome, Permission, Program, Rules, Signals, SuperviseError, Target, supervise,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::sleep;

/// What everything must happen within.
const LIMIT: Duration = Duration::from_secs(30);
/// Long enough for who is not stopped to show it.
const WHILE: Duration = Duration::from_millis(150);
const GRACE: Duration = Duration::from_secs(20);
const KILLED: Ending = Ending::Signaled { number: libc::SIGKILL, dumped_core: false };
const TERMINATED: Ending = Ending::Signaled { number: libc::SIGTERM, dumped_core: false };

/// Writes a line into the file `$1` again and again, after its pid into `$1.pid`; ends with the directory.
const WRITE: &str = "write() { sh -c 'echo $$ >$1.pid; while echo line >>$1; do sleep 0.002; done' sh $1; }; ";

fn main() {
    let inherited = Inherited::take_over();
    let neighbour = Neighbour::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let signals = Signals::listen(inherited).expect("signals");
        let mut stage = Stage { signals, neighbour: &neighbour, directory: tempfile::tempdir().unwrap() };
        stage.all_stand_still_in_doubt_and_go_on_afterwards().await;
        stage.a_continue_is_held_back_until_the_doubt_is_dispelled().await;
        stage.whoever_is_continued_by_somebody_else_in_doubt_is_stopped_again().await;
        stage.after_a_stop_the_permission_is_looked_at_before_the_continue_is_passed_on().await;
        stage.who_was_stopped_before_a_doubt_stays_stopped().await;
        stage.a_doubt_that_comes_true_kills_from_where_they_stand().await;
        stage.a_grace_is_cut_to_the_time_that_is_left().await;
        stage.orphans_stand_still_too().await;
        stage.nothing_starts_in_doubt().await;
    });
}

/// Where the tests play.
struct Stage<'a> {
    signals: Signals,
    neighbour: &'a Neighbour,
    directory: TempDir,
}

/// A file that somebody writes into.
struct Pen(PathBuf);

impl Pen {
    fn length(&self) -> u64 {
        fs::metadata(&self.0).map_or(0, |metadata| metadata.len())
    }

    /// Waits until there is more in it.
    async fn moves(&self) {
        let (deadline, before) = (Instant::now() + LIMIT, self.length());
        while self.length() <= before {
            assert!(Instant::now() < deadline, "nobody writes into {}", self.0.display());
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nobody has written for a while.
    async fn comes_to_rest(&self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let before = self.length();
            sleep(WHILE).await;
            if self.length() == before {
                return;
            }
            assert!(Instant::now() < deadline, "somebody writes into {}", self.0.display());
        }
    }

    /// Asserts that nobody writes from now on.
    #[track_caller]
    fn rests(&self) -> impl Future<Output = ()> {
        let before = self.length();
        let place = std::panic::Location::caller();
        async move {
            sleep(WHILE).await;
            assert_eq!(self.length(), before, "somebody writes into {}: {place}", self.0.display());
        }
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(self.0.with_extension("pid")).unwrap().trim().parse().unwrap()
    }
}

/// Whoever sends signals for us: our own are none to pass on. A child that we had before, which does not stand still with those
/// who have to.
struct Neighbour {
    orders: ChildStdin,
    answers: File,
}

impl Neighbour {
    /// To be called before anything is supervised.
    fn new() -> Neighbour {
        let serve = "while read number pid; do kill -$number $pid && echo; done";
        let shell = Command::new("sh").args(["-c", serve]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Child { stdin, stdout, .. } = shell.expect("sh");
        Neighbour { orders: stdin.expect("piped"), answers: File::from(OwnedFd::from(stdout.expect("piped"))) }
    }

    /// Sends a signal, and lets those who are told of it do something about it.
    async fn sends(&self, number: i32, pid: i32) {
        writeln!(&self.orders, "{number} {pid}").expect("it reads");
        (&self.answers).read_exact(&mut [0]).expect("it has sent it");
        let deadline = Instant::now() + LIMIT;
        while number == libc::SIGSTOP && !is_stopped(pid) {
            assert!(Instant::now() < deadline, "it does not stop");
            sleep(Duration::from_millis(2)).await;
        }
        sleep(WHILE).await;
    }
}

fn ourselves() -> i32 {
    std::process::id().cast_signed()
}

fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

impl Stage<'_> {
    /// Pens with these names, nothing written yet.
    fn pens<const N: usize>(&self, names: [&str; N]) -> [Pen; N] {
        names.map(|name| {
            let path = self.directory.path().join(name);
            _ = fs::remove_file(&path);
            Pen(path)
        })
    }

    /// Runs a script, in the directory of the pens, while `story` gives and takes the permission.
    async fn play(
        &mut self,
        orphans: Orphans,
        script: &str,
        first: Permission,
        story: impl AsyncFnOnce(&watch::Sender<Permission>),
    ) -> Result<Outcome, SuperviseError> {
        let script = format!("cd {}; {WRITE}{script}", self.directory.path().display());
        let words = ["sh", "-c", &script].map(OsString::from);
        let program = Program::new(&words, &[]).expect("words");
        let rules = Rules { group: Group::Own, target: Target::Command, orphans, kill_after: None, grace: GRACE };
        let (permit, permission) = watch::channel(first);
        let told = async {
            story(&permit).await;
            std::future::pending::<()>().await;
        };
        let started = Instant::now();
        tokio::select! {
            biased;
            () = told => unreachable!("it is pending"),
            ran = supervise(&program, rules, Some(libc::SIGKILL), &mut self.signals, permission) => ran,
            () = sleep(LIMIT) => panic!("it has not ended after {:?}", started.elapsed()),
        }
    }

    async fn all_stand_still_in_doubt_and_go_on_afterwards(&mut self) {
        let pens = self.pens(["command", "child", "daemon"]);
        let [command, child, daemon] = &pens;
        let script = "write child & (setsid sh -c 'while echo line >>daemon; do sleep 0.002; done' &); write command";
        let ran = self.play(Orphans::Kill, script, Permission::Given, async |permit| {
            for _ in 0..3 {
                tokio::join!(command.moves(), child.moves(), daemon.moves());
                permit.send_replace(Permission::Doubtful);
                tokio::task::yield_now().await;
                // From the first moment on.
                tokio::join!(command.rests(), child.rests(), daemon.rests());
                permit.send_replace(Permission::Given);
            }
            tokio::join!(command.moves(), child.moves(), daemon.moves());
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: TERMINATED, cause: Cause::Revoked });
        tokio::join!(command.rests(), child.rests(), daemon.rests());
    }

    async fn a_continue_is_held_back_until_the_doubt_is_dispelled(&mut self) {
        let neighbour = self.neighbour;
        let [pen] = self.pens(["command"]);
        let ran = self.play(Orphans::Kill, "write command", Permission::Given, async |permit| {
            pen.moves().await;
            neighbour.sends(libc::SIGSTOP, pen.pid()).await;
            permit.send_replace(Permission::Doubtful);
            tokio::task::yield_now().await;
            neighbour.sends(libc::SIGCONT, ourselves()).await;
            pen.rests().await;
            permit.send_replace(Permission::Given);
            // It was passed on to the command, which is not the one that was stopped.
            pen.rests().await;
            neighbour.sends(libc::SIGCONT, pen.pid()).await;
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: Duration::ZERO });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: KILLED, cause: Cause::Revoked });
    }

    async fn whoever_is_continued_by_somebody_else_in_doubt_is_stopped_again(&mut self) {
        let neighbour = self.neighbour;
        let [pen] = self.pens(["command"]);
        let script = "echo $$ >command.pid; while echo line >>command; do sleep 0.002; done";
        let ran = self.play(Orphans::Kill, script, Permission::Given, async |permit| {
            pen.moves().await;
            permit.send_replace(Permission::Doubtful);
            tokio::task::yield_now().await;
            pen.rests().await;
            neighbour.sends(libc::SIGCONT, pen.pid()).await;
            pen.comes_to_rest().await;
            permit.send_replace(Permission::Given);
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: TERMINATED, cause: Cause::Revoked });
    }

    async fn after_a_stop_the_permission_is_looked_at_before_the_continue_is_passed_on(&mut self) {
        let [pen] = self.pens(["command"]);
        let script = "echo $$ >command.pid; while echo line >>command; do sleep 0.002; done";
        let ran = self.play(Orphans::Kill, script, Permission::Given, async |permit| {
            pen.moves().await;
            // It may stop us at once, in the middle of a turn.
            let mut last = Instant::now();
            let stop = "kill -STOP $1 && kill -STOP $2 && sleep 1 && kill -CONT $2";
            let words = ["-c", stop, "sh", &pen.pid().to_string(), &ourselves().to_string()].map(str::to_owned);
            drop(Command::new("sh").args(words).spawn().expect("sh"));
            // As whoever looks at the clock whenever he is polled.
            let stood_still = poll_fn(|_| match last.elapsed() {
                gap if gap > WHILE * 4 => Poll::Ready(()),
                _ => {
                    last = Instant::now();
                    Poll::Pending
                }
            });
            tokio::select! {
                biased;
                () = stood_still => permit.send_replace(Permission::Doubtful),
                () = async { loop { sleep(Duration::from_millis(10)).await; } } => unreachable!("it has no end"),
            };
            pen.rests().await;
            assert!(is_stopped(pen.pid()));
            permit.send_replace(Permission::Given);
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: TERMINATED, cause: Cause::Revoked });
    }

    async fn who_was_stopped_before_a_doubt_stays_stopped(&mut self) {
        let neighbour = self.neighbour;
        let [pen] = self.pens(["command"]);
        let script = "echo $$ >command.pid; while echo line >>command; do sleep 0.002; done";
        let ran = self.play(Orphans::Kill, script, Permission::Given, async |permit| {
            pen.moves().await;
            let pid = pen.pid();
            neighbour.sends(libc::SIGSTOP, pid).await;
            permit.send_replace(Permission::Doubtful);
            pen.comes_to_rest().await;
            permit.send_replace(Permission::Given);
            pen.rests().await;
            assert!(is_stopped(pid));
            // And a CONT to us, in doubt or not, continues it.
            permit.send_replace(Permission::Doubtful);
            neighbour.sends(libc::SIGCONT, ourselves()).await;
            pen.rests().await;
            permit.send_replace(Permission::Given);
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: TERMINATED, cause: Cause::Revoked });
    }

    async fn a_doubt_that_comes_true_kills_from_where_they_stand(&mut self) {
        let neighbour = self.neighbour;
        let pens = self.pens(["command", "child"]);
        let [command, child] = &pens;
        let ran = self.play(Orphans::Wait, "write child & write command", Permission::Given, async |permit| {
            tokio::join!(command.moves(), child.moves());
            permit.send_replace(Permission::Doubtful);
            tokio::task::yield_now().await;
            tokio::join!(command.rests(), child.rests());
            neighbour.sends(libc::SIGCONT, ourselves()).await;
            permit.send_replace(Permission::Revoked { within: Duration::ZERO });
        });
        let (before, ran) = (command.length(), ran.await.unwrap());
        assert_eq!(ran, Outcome { ending: KILLED, cause: Cause::Revoked });
        assert!(command.length() > before, "it had run");
        tokio::join!(command.rests(), child.rests());
    }

    async fn a_grace_is_cut_to_the_time_that_is_left(&mut self) {
        let [pen] = self.pens(["command"]);
        let started = Instant::now();
        let ran = self.play(Orphans::Kill, "trap '' TERM; write command", Permission::Given, async |permit| {
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: Duration::from_mins(1) });
            tokio::task::yield_now().await;
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: Duration::from_millis(200) });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: KILLED, cause: Cause::Revoked });
        assert!(started.elapsed() < GRACE);
        pen.rests().await;
    }

    async fn orphans_stand_still_too(&mut self) {
        let [pen] = self.pens(["orphan"]);
        let ran = self.play(Orphans::Wait, "write orphan & exit 3", Permission::Given, async |permit| {
            pen.moves().await;
            permit.send_replace(Permission::Doubtful);
            tokio::task::yield_now().await;
            pen.rests().await;
            permit.send_replace(Permission::Given);
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: Ending::Exited(3), cause: Cause::Revoked });
        pen.rests().await;
    }

    async fn nothing_starts_in_doubt(&mut self) {
        let [pen] = self.pens(["command"]);
        let ran = self.play(Orphans::Kill, "write command", Permission::Doubtful, async |permit| {
            pen.rests().await;
            permit.send_replace(Permission::Given);
            pen.moves().await;
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert_eq!(ran.await.unwrap(), Outcome { ending: TERMINATED, cause: Cause::Revoked });
        let [pen] = self.pens(["command"]);
        let ran = self.play(Orphans::Kill, "write command", Permission::Doubtful, async |permit| {
            permit.send_replace(Permission::Revoked { within: GRACE });
        });
        assert!(matches!(ran.await, Err(SuperviseError::Revoked)));
        assert!(!pen.0.exists());
    }
}
