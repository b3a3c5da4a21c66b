//! `syncd-spawn` under test: started, watched, signalled, and looked at from outside.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use syncd_spawn::lock::SIDE_TREE;
use tempfile::TempDir;
use uuid::Uuid;
use zookeeper_client::{Acls, Client, CreateMode};

use super::zookeeper::Server;

pub const BINARY: &str = env!("CARGO_BIN_EXE_syncd-spawn");

/// What everything must happen within, on the slowest machine.
pub const LIMIT: Duration = Duration::from_mins(1);

/// A command that holds its lock until its standard input ends.
pub const HOLD: [&str; 4] = ["--", "sh", "-c", "echo ready; exec cat >/dev/null"];

/// Makes of each function that takes a bench a test on every store.
macro_rules! on_every_store {
    ($($name:ident),+ $(,)?) => {
        mod on_zookeeper {
            $(#[test] fn $name() { super::$name(&$crate::bench::Bench::zookeeper()); })+
        }
        mod on_directory {
            $(#[test] fn $name() { super::$name(&$crate::bench::Bench::directory()); })+
        }
    };
}
pub(crate) use on_every_store;

/// A chroot of its own in a store, and the program pointed there.
#[derive(Clone)]
pub struct Bench {
    servers: String,
    chroot: String,
    /// Where the directory store keeps its queues.
    root: Option<Arc<TempDir>>,
    /// Where the program keeps its journal.
    state: Arc<TempDir>,
    environment: Vec<(OsString, OsString)>,
}

impl Bench {
    /// On the shared server.
    pub fn zookeeper() -> Bench {
        Bench::on(&Server::shared().address())
    }

    /// On these servers.
    pub fn on(servers: &str) -> Bench {
        let chroot = format!("/{}", Uuid::new_v4().simple());
        let state = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        Bench { servers: servers.to_owned(), chroot, root: None, state, environment: Vec::new() }
    }

    /// In a directory of its own.
    pub fn directory() -> Bench {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut bench = Bench::on(&format!("file://{}", root.path().display()));
        bench.root = Some(Arc::new(root));
        bench
    }

    /// Where the program keeps its journal; made by its first run.
    pub fn state_dir(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// The names of the journal's entries, and of whatever else is in there.
    pub fn entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.state_dir()).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }

    pub fn is_directory(&self) -> bool {
        self.root.is_some()
    }

    pub fn servers(&self) -> &str {
        &self.servers
    }

    pub fn chroot(&self) -> &str {
        &self.chroot
    }

    /// Where a path of the chroot is in the file system, if that is where the store is.
    pub fn file(&self, path: &str) -> Option<PathBuf> {
        self.root.as_ref().map(|root| root.path().join(&self.chroot[1..]).join(path.trim_start_matches('/')))
    }

    /// The same place reached through other addresses, such as a proxy's.
    pub fn through(&self, servers: &str) -> Bench {
        Bench { servers: servers.to_owned(), root: None, ..self.clone() }
    }

    /// The same store below another chroot.
    pub fn in_chroot(&self, chroot: &str) -> Bench {
        Bench { chroot: chroot.to_owned(), ..self.clone() }
    }

    pub fn with_variable(&self, name: impl Into<OsString>, value: impl Into<OsString>) -> Bench {
        let mut bench = self.clone();
        bench.environment.push((name.into(), value.into()));
        bench
    }

    /// The same place for a run on a host of its own, which does not come back when it is dead: its journal is lost.
    pub fn on_a_lost_host(&self) -> (Bench, TempDir) {
        let lost = tempfile::tempdir().expect("a temporary directory");
        (self.with_variable("SYNCD_SPAWN_STATE_DIR", lost.path()), lost)
    }

    /// The program, with nothing of this machine's environment that could change what it does.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        self.program(BINARY, arguments)
    }

    /// Any program, with the environment that the program under test gets.
    pub fn program<A: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("SYNCD_SPAWN_SERVERS", &self.servers).env("SYNCD_SPAWN_CHROOT", &self.chroot);
        command.env("SYNCD_SPAWN_STATE_DIR", self.state_dir());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(arguments);
        command
    }

    /// Starts it, with its standard streams in our hands.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        Run::start(self.command(arguments))
    }

    /// Runs it to its end, with nothing to read.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ended {
        self.start(arguments).finish()
    }

    /// Starts a command that holds a lock until told to finish.
    pub fn hold<'a>(&self, options: impl IntoIterator<Item = &'a str>) -> Run {
        self.start(options.into_iter().chain(HOLD))
    }

    /// The names in a lock's directory in order of their numbers, seen from outside.
    pub fn queue(&self, lock: &str) -> Vec<String> {
        let path = format!("{}{lock}", self.chroot);
        let mut names = match self.file(lock) {
            Some(directory) => visible(&directory),
            None => self.inspect(&async |client| match client.list_children(&path).await {
                Err(zookeeper_client::Error::NoNode) => Ok(Vec::new()),
                listed => listed,
            }),
        };
        names.sort_by_key(|name| name.rsplit("__").next().map(str::to_owned));
        names
    }

    /// Waits until so many stand in a queue.
    pub fn queue_reaches(&self, lock: &str, length: usize) -> Vec<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let queue = self.queue(lock);
            if queue.len() == length {
                return queue;
            }
            assert!(Instant::now() < deadline, "{lock} has {queue:?}, not {length}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Puts a node into the chroot, as somebody else would, and its parents where they are missing.
    pub fn plant(&self, path: &str, data: &str) {
        if let Some(file) = self.file(path) {
            fs::create_dir_all(file.parent().expect("absolute")).expect("a directory");
            return fs::write(file, data).expect("a file");
        }
        let (path, data) = (format!("{}{path}", self.chroot), data.to_owned());
        self.admin(async move |client| {
            let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
            client.mkdir(path.rsplit_once('/').expect("absolute").0, &options).await?;
            client.create(&path, data.as_bytes(), &options).await.map(|_| ())
        });
    }

    /// Removes a node of the chroot, as an operator would.
    pub fn remove(&self, path: &str) {
        if let Some(file) = self.file(path) {
            return if file.is_dir() { fs::remove_dir_all(file) } else { fs::remove_file(file) }.expect("it is there");
        }
        let path = format!("{}{path}", self.chroot);
        self.admin(async move |client| client.delete(&path, None).await);
    }

    /// What a node says.
    pub fn data(&self, path: &str) -> Vec<u8> {
        if let Some(file) = self.file(path) {
            return fs::read(file).expect("it is there");
        }
        let path = format!("{}{path}", self.chroot);
        self.inspect(&async |client| client.get_data(&path).await.map(|(data, _)| data))
    }

    /// What is kept beside the locks about their contenders: a marker each, and what its owner says of itself.
    pub fn side_tree(&self) -> Vec<String> {
        self.queue(&format!("/{SIDE_TREE}"))
    }

    /// Makes the place for that, so that nobody has to make it first.
    pub fn plant_side_tree(&self) {
        self.plant(&format!("/{SIDE_TREE}"), "");
    }

    /// Waits until nothing is kept there of anybody: a marker goes with its session, at the latest when that expires.
    pub fn forgets(&self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = self.side_tree();
            let told: Vec<_> = left.iter().filter(|name| name.contains('.')).collect();
            assert!(told.is_empty(), "nobody is left, but this is: {told:?}");
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "nobody is left, but this is: {left:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything below the chroot, but for the empty directory that is kept beside the locks.
    pub fn tree(&self) -> Vec<String> {
        if let Some(root) = self.file("") {
            let (mut found, mut next) = (Vec::new(), vec![String::new()]);
            while let Some(path) = next.pop() {
                next.extend(visible(&root.join(path.trim_start_matches('/'))).iter().map(|name| format!("{path}/{name}")));
                found.push(path);
            }
            found.sort();
            return found;
        }
        let root = &self.chroot;
        self.inspect(&async |client| {
            let (mut found, mut next) = (Vec::new(), vec![root.clone()]);
            while let Some(path) = next.pop() {
                let is_side_tree = path.ends_with(&format!("/{SIDE_TREE}"));
                match client.list_children(&path).await {
                    Ok(names) if names.is_empty() && is_side_tree => continue,
                    Ok(names) => next.extend(names.iter().map(|name| format!("{path}/{name}"))),
                    Err(zookeeper_client::Error::NoNode) => continue,
                    Err(error) => return Err(error),
                }
                found.push(path[root.len()..].to_owned());
            }
            found.sort();
            Ok(found)
        })
    }

    /// Speaks to the server without the program under test.
    pub fn admin<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T, zookeeper_client::Error>) -> T {
        self.attempt(work).expect("the server does it")
    }

    /// The same for what only reads, so it may be asked again: where sessions are short a connection is given up after a fraction
    /// of a second without an answer, and a busy machine may take that long.
    fn inspect<T>(&self, work: &impl AsyncFn(&Client) -> Result<T, zookeeper_client::Error>) -> T {
        let mut found = None;
        wait_until("the server answers", || match self.attempt(work) {
            Ok(done) => found.replace(done).is_none(),
            Err(error) if is_no_answer(&error) => false,
            Err(error) => panic!("the server does not do it: {error}"),
        });
        found.expect("it answered")
    }

    fn attempt<T>(
        &self,
        work: impl AsyncFnOnce(&Client) -> Result<T, zookeeper_client::Error>,
    ) -> Result<T, zookeeper_client::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut connected = None;
        wait_until("the server is there", || {
            let connector = Client::connector().with_session_timeout(Duration::from_secs(20));
            connected = runtime.block_on(connector.connect(&self.servers)).ok();
            connected.is_some()
        });
        let client = connected.expect("the server is there");
        runtime.block_on(async {
            let done = work(&client).await;
            let mut state = client.state_watcher();
            drop(client);
            while !state.changed().await.is_terminated() {}
            done
        })
    }
}

fn is_no_answer(error: &zookeeper_client::Error) -> bool {
    use zookeeper_client::Error;
    matches!(error, Error::ConnectionLoss | Error::SessionExpired | Error::Timeout | Error::NoHosts | Error::Custom(_))
}

/// Types a line until an interactive shell takes it. One that takes the terminal back from a job may lose what is typed, even
/// behind its prompt (seen with bash 5.2, while everything of ours stood still).
pub fn type_until_taken<T>(at: &mut T, mut type_it: impl FnMut(&mut T), mut is_taken: impl FnMut(&mut T) -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_taken(at) {
        assert!(Instant::now() < deadline, "the shell takes nothing");
        type_it(at);
        let again = Instant::now() + Duration::from_secs(3);
        while !is_taken(at) && Instant::now() < again {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes that {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The names in a directory that are not hidden; none where there is no directory.
fn visible(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let names = entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"));
    names.filter(|name| !name.starts_with('.')).collect()
}

/// Makes a file that can be executed. Another process writes it: what we write ourselves is open in every child, too, that
/// another test starts at that moment, until its exec, and cannot be executed until then.
pub fn make_executable(path: &Path, contents: &[u8]) {
    let write = ["-c", "cat >\"$0\" && chmod 755 \"$0\""];
    let mut writer = Command::new("sh").args(write).arg(path).stdin(Stdio::piped()).spawn().expect("sh is there");
    writer.stdin.take().expect("piped").write_all(contents).expect("it reads");
    assert!(writer.wait().expect("our child").success(), "{} cannot be written", path.display());
}

/// The program, for others than us at a place of theirs.
pub fn copy_binary(path: &Path) {
    make_executable(path, &fs::read(BINARY).expect("the program"));
}

/// A program that runs. Dropped, it is killed, and what it started with it.
pub struct Run {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    ended: Option<ExitStatus>,
    cpu: Duration,
}

/// What a program wrote, when it has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// What it used until shortly before its end, its children left out.
    pub cpu: Duration,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

struct Stream {
    text: Arc<(Mutex<Text>, Condvar)>,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    is_whole: bool,
}

impl Run {
    pub fn start(mut command: Command) -> Run {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdin = child.stdin.take();
        let stdout = Stream::read(child.stdout.take().expect("piped"));
        let stderr = Stream::read(child.stderr.take().expect("piped"));
        Run { child, stdin, stdout, stderr, ended: None, cpu: Duration::ZERO }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits until the command says `ready`: it holds its lock.
    pub fn ready(self) -> Run {
        self.says("ready\n");
        self
    }

    /// Waits until the program says that it waits.
    pub fn waits(self) -> Run {
        self.warns("Waiting to acquire lock");
        self
    }

    /// Waits until this is on standard output.
    pub fn says(&self, text: &str) {
        self.stdout.wait_for(text, &self.stderr);
    }

    /// Waits until this is on standard error.
    pub fn warns(&self, text: &str) {
        self.stderr.wait_for(text, &self.stdout);
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("open").write_all(bytes).expect("it reads");
    }

    pub fn signal(&self, number: i32) {
        send(self.pid(), number);
    }

    /// `kill -9`, and nothing else: what it started lives on. Its standard input stays open.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let deadline = Instant::now() + LIMIT;
        while self.is_running() {
            assert!(Instant::now() < deadline, "it does not die");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The same to the group that it leads.
    pub fn signal_group(&self, number: i32) {
        send(-self.pid(), number);
    }

    /// Stops it, and waits until none of its threads runs.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        self.stands_still();
    }

    /// Waits until none of its threads runs.
    pub fn stands_still(&self) {
        wait_until("it stops", || is_stopped(self.pid()));
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.cpu = cpu(self.pid()).unwrap_or(self.cpu);
            self.ended = self.child.try_wait().expect("our child");
        }
        self.ended.is_none()
    }

    /// Ends its standard input and waits for its end.
    pub fn finish(mut self) -> Ended {
        self.stdin = None;
        self.end()
    }

    /// Waits for its end, its standard input still open.
    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + LIMIT;
        while self.is_running() {
            assert!(Instant::now() < deadline, "it does not end: {}{}", self.stdout.so_far(), self.stderr.so_far());
            thread::sleep(Duration::from_millis(2));
        }
        Ended {
            status: self.ended.expect("ended"),
            cpu: self.cpu,
            stdout: self.stdout.whole(),
            stderr: String::from_utf8_lossy(&self.stderr.whole()).into_owned(),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.is_running() {
            kill_tree(self.pid());
            _ = self.child.wait();
        }
    }
}

/// The time that a process has used, by the kernel's ticks of 10 ms.
pub fn cpu(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// Whether every thread of a process is stopped: a signal tells them all, and each stops in its own time.
fn is_stopped(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it is there").flatten();
    let mut states = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    states.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
}

/// Kills a process and its descendants, parents first, so that none can start another.
pub fn kill_tree(pid: i32) {
    let children = children(pid);
    send(pid, libc::SIGKILL);
    children.into_iter().for_each(kill_tree);
}

pub fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Sends any signal, real-time ones too. One that has gone already is as good.
pub fn send(pid: i32, number: i32) {
    let sent =
        Command::new("sh").args(["-c", "kill -s $1 -- $2 2>/dev/null", "sh", &number.to_string(), &pid.to_string()]).status();
    sent.expect("sh is there");
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Stream {
        let text = Arc::<(Mutex<Text>, Condvar)>::default();
        let shared = Arc::clone(&text);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let length = from.read(&mut buffer).unwrap_or(0);
                let mut state = shared.0.lock().expect("not poisoned");
                state.bytes.extend_from_slice(&buffer[..length]);
                state.is_whole = length == 0;
                shared.1.notify_all();
                if length == 0 {
                    return;
                }
            }
        });
        Stream { text }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.0.lock().expect("not poisoned").bytes).into_owned()
    }

    fn wait_for(&self, wanted: &str, other: &Stream) {
        let deadline = Instant::now() + LIMIT;
        let mut state = self.text.0.lock().expect("not poisoned");
        while !String::from_utf8_lossy(&state.bytes).contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !state.is_whole && !left.is_zero(),
                "{wanted:?} is not in {:?}; the other stream: {:?}",
                String::from_utf8_lossy(&state.bytes),
                other.so_far()
            );
            state = self.text.1.wait_timeout(state, left.min(Duration::from_millis(200))).expect("not poisoned").0;
        }
    }

    /// Everything, once whoever could write to it has ended or closed it.
    fn whole(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        let mut state = self.text.0.lock().expect("not poisoned");
        while !state.is_whole {
            assert!(Instant::now() < deadline, "somebody keeps it open: {:?}", String::from_utf8_lossy(&state.bytes));
            state = self.text.1.wait_timeout(state, Duration::from_millis(200)).expect("not poisoned").0;
        }
        std::mem::take(&mut state.bytes)
    }
}

impl Ended {
    /// The exit status, which must be one and no signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("it died of a signal: {self:?}"))
    }

    /// The signal it died of, which must be one.
    pub fn died_of(&self) -> i32 {
        self.status.signal().unwrap_or_else(|| panic!("it did not die of a signal: {self:?}"))
    }

    pub fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("UTF-8")
    }

    /// Asserts that it went well.
    #[track_caller]
    pub fn good(self) -> Ended {
        assert!(self.status.success(), "{self:?}");
        self
    }

    /// Asserts that it left with this status and said this on standard error.
    #[track_caller]
    pub fn failed(self, code: i32, text: &str) -> Ended {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert!(self.stderr.contains(text), "{text:?} is not in {:?}", self.stderr);
        self
    }
}
