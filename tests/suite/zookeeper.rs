//! Real ZooKeeper servers, from Debian's package, on free loopback ports.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::relay::Relay;

/// The server's own class path; with the wildcard it would find a logger that swallows its log.
const JARS: [&str; 18] = [
    "zookeeper",
    "zookeeper-jute",
    "slf4j-api",
    "slf4j-log4j12",
    "log4j-1.2",
    "metrics-core",
    "snappy-java",
    "commons-cli",
    "jackson-core",
    "jackson-databind",
    "jackson-annotations",
    "netty-common",
    "netty-buffer",
    "netty-transport",
    "netty-handler",
    "netty-codec",
    "netty-resolver",
    "netty-transport-native-unix-common",
];
const START_LIMIT: Duration = Duration::from_mins(1);
/// How long one that is asked may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A session lasts four seconds at the most; a member that is silent is given up after two and a half.
const MEMBER: &str = "tickTime=500\nmaxSessionTimeout=4000\ninitLimit=20\nsyncLimit=5\nforceSync=no\n";
/// So many ensembles run at once, however many tests do.
const ENSEMBLES: usize = 3;

/// Ends the server and removes its directory once its standard input is closed, whatever ended the tests.
const KEEPER: &str =
    r#"directory=$1; shift; "$@" >"$directory/log" 2>&1 & echo $!; cat >/dev/null; kill -9 $!; rm -rf "$directory""#;

/// A standalone server. Dropped, it is killed.
pub struct Server {
    port: u16,
    directory: PathBuf,
    options: Vec<String>,
    running: Option<Running>,
}

struct Running {
    pid: i32,
    keeper: Child,
    /// Closed, it ends the server.
    _leash: ChildStdin,
}

impl Server {
    /// The one that tests share, each below a chroot of its own.
    pub fn shared() -> &'static Server {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Server::start(""))
    }

    /// Starts one for a test that wants to break it. `settings` are added to its configuration.
    pub fn start(settings: &str) -> Server {
        Server::start_with(settings, &[])
    }

    /// The same with options for Java, such as system properties.
    pub fn start_with(settings: &str, options: &[&str]) -> Server {
        for _ in 0..5 {
            let mut server = Server::prepare_with(free_port(), settings);
            server.options = options.iter().map(|option| (*option).to_owned()).collect();
            if server.restart() {
                return server;
            }
        }
        panic!("no ZooKeeper could be started");
    }

    /// Makes its directory and its configuration, but does not start it.
    pub fn prepare(port: u16) -> Server {
        Server::prepare_with(port, "")
    }

    fn prepare_with(port: u16, settings: &str) -> Server {
        // Its own even where another has the same port, in a network of its own. Its keeper removes it.
        let directory =
            tempfile::Builder::new().prefix("syncd-spawn-zookeeper-").tempdir().expect("a temporary directory").keep();
        fs::write(
            directory.join("zoo.cfg"),
            format!(
                "tickTime=2000\ndataDir={}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
                 maxClientCnxns=0\n{settings}\n",
                directory.join("data").display()
            ),
        )
        .expect("a configuration");
        fs::write(
            directory.join("log4j.properties"),
            "log4j.rootLogger=INFO, A\nlog4j.appender.A=org.apache.log4j.ConsoleAppender\n\
             log4j.appender.A.layout=org.apache.log4j.PatternLayout\n\
             log4j.appender.A.layout.ConversionPattern=%d %p %c %m%n\n",
        )
        .expect("a log configuration");
        Server { port, directory, options: Vec::new(), running: None }
    }

    /// What starts it, in words that need no quotes.
    fn words(&self) -> Vec<String> {
        let jars = Path::new("/usr/share/java");
        assert!(jars.join("zookeeper.jar").exists(), "Debian's package zookeeper is missing; contrib/test installs it");
        let class_path: Vec<_> = JARS.iter().map(|jar| format!("{}/{jar}.jar", jars.display())).collect();
        let mut words: Vec<String> =
            ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"].map(str::to_owned).into();
        words.push(class_path.join(":"));
        words.push(format!("-Dlog4j.configuration=file:{}", self.directory.join("log4j.properties").display()));
        words.extend(self.options.iter().cloned());
        words.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned());
        words.push(self.directory.join("zoo.cfg").display().to_string());
        words
    }

    pub fn command_line(&self) -> String {
        self.words().join(" ")
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it again on the data it had. False if it ended at once, because somebody else took the port.
    pub fn restart(&mut self) -> bool {
        self.launch();
        self.serves()
    }

    /// Starts it, and does not wait until it serves.
    fn launch(&mut self) {
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", KEEPER, "sh"])
            .arg(&self.directory)
            .args(self.words())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setsid and sh");
        let leash = keeper.stdin.take().expect("piped");
        let mut pid = [0; 16];
        let length = keeper.stdout.take().expect("piped").read(&mut pid).expect("the server's pid");
        let pid = String::from_utf8_lossy(&pid[..length]).trim().parse().expect("a pid");
        self.running = Some(Running { pid, keeper, _leash: leash });
    }

    /// Waits until it serves. False if it ended, because somebody else took the port.
    fn serves(&self) -> bool {
        let pid = self.running.as_ref().expect("it runs").pid;
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if self.ask("srvr").contains("Mode: ") {
                return true;
            }
            if !Path::new(&format!("/proc/{pid}")).exists() || self.log().contains("Address already in use") {
                assert!(self.log().contains("Address already in use"), "ZooKeeper ended:\n{}", self.log());
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("ZooKeeper did not start:\n{}", self.log());
    }

    /// What it wrote since it was started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Asks by one of its four-letter words; an empty answer is none.
    pub fn ask(&self, word: &str) -> String {
        self.ask_within(ANSWER_LIMIT, word)
    }

    fn ask_within(&self, limit: Duration, word: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(self.address()) {
            stream.set_read_timeout(Some(limit)).expect("a timeout");
            _ = stream.write_all(word.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
        }
        answer
    }

    /// Asks it to end, and waits until it hears nobody any more.
    pub fn terminate(&mut self) {
        self.signal(libc::SIGTERM);
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(self.address()).is_ok() {
            assert!(Instant::now() < deadline, "ZooKeeper does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
    }

    /// `kill -9`; the data stays.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let running = self.running.take().expect("it runs");
        // The keeper would remove the directory.
        signal(running.keeper.id().cast_signed(), libc::SIGKILL);
        let Running { mut keeper, .. } = running;
        keeper.wait().expect("our child");
        while TcpStream::connect(self.address()).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn signal(&self, number: i32) {
        signal(self.running.as_ref().expect("it runs").pid, number);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(Running { pid, mut keeper, _leash: leash }) = self.running.take() {
            signal(pid, libc::SIGCONT);
            drop(leash);
            _ = keeper.wait();
        }
        _ = fs::remove_dir_all(&self.directory);
    }
}

/// Three servers that vote. Dropped, they are killed.
pub struct Ensemble {
    members: Vec<Server>,
    /// By which each reaches the ports where the others hear their followers, if they are their leader; two for each in turn.
    relays: Vec<Relay>,
    _turn: Turn,
}

impl Ensemble {
    pub fn start() -> Ensemble {
        Ensemble::start_with(Between::Nothing)
    }

    /// The same with what it takes to make them slow.
    pub fn relayed() -> Ensemble {
        Ensemble::start_with(Between::Relays)
    }

    fn start_with(between: Between) -> Ensemble {
        let turn = Turn::take();
        for _ in 0..5 {
            let (mut members, relays) = Ensemble::prepare(between);
            members.iter_mut().for_each(Server::launch);
            if members.iter().all(Server::serves) {
                return Ensemble { members, relays, _turn: turn };
            }
        }
        panic!("no ZooKeeper ensemble could be started");
    }

    fn prepare(between: Between) -> (Vec<Server>, Vec<Relay>) {
        let ports = [(); 3].map(|()| [free_port(), free_port(), free_port()]);
        let mut relays = Vec::new();
        let members = ports.iter().enumerate().map(|(me, [port, ..])| {
            let mut settings = MEMBER.to_owned();
            for (other, [_, quorum, election]) in ports.iter().enumerate() {
                let quorum = match between {
                    Between::Relays if other != me => {
                        let relay = Relay::start(&format!("127.0.0.1:{quorum}"));
                        let port = relay.port();
                        relays.push(relay);
                        port
                    }
                    Between::Relays | Between::Nothing => *quorum,
                };
                writeln!(settings, "server.{}=127.0.0.1:{quorum}:{election}", other + 1).expect("a string");
            }
            let server = Server::prepare_with(*port, &settings);
            let data = server.directory.join("data");
            fs::create_dir_all(&data).and_then(|()| fs::write(data.join("myid"), (me + 1).to_string())).expect("its number");
            server
        });
        (members.collect(), relays)
    }

    /// The connection string of all.
    pub fn servers(&self) -> String {
        let addresses: Vec<_> = self.members.iter().map(Server::address).collect();
        addresses.join(",")
    }

    pub fn members(&self) -> &[Server] {
        &self.members
    }

    pub fn member(&mut self, number: usize) -> &mut Server {
        &mut self.members[number]
    }

    /// The number of the leader; waits until there is one.
    pub fn leader(&self) -> usize {
        self.leader_among(&[0, 1, 2])
    }

    /// The leader whom the others make in place of one that was killed or stopped.
    pub fn successor(&self, of: usize) -> usize {
        self.leader_among(&[(of + 1) % 3, (of + 2) % 3])
    }

    fn leader_among(&self, members: &[usize]) -> usize {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            // One that was stopped gives no answer.
            let leads = |member: usize| self.members[member].ask_within(ANSWER_LIMIT / 10, "srvr").contains("Mode: leader");
            if let Some(leader) = members.iter().copied().find(|member| leads(*member)) {
                return leader;
            }
            let logs: Vec<_> = members.iter().map(|member| self.members[*member].log()).collect();
            assert!(Instant::now() < deadline, "nobody leads:\n{}", logs.join("\n\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts again whoever was ended, and waits until all serve.
    pub fn heal(&mut self) {
        self.members.iter_mut().filter(|member| member.running.is_none()).for_each(Server::launch);
        assert!(self.members.iter().all(Server::serves), "somebody took a port");
    }

    /// From now on what followers say to their leader arrives this much later: no change is done sooner.
    pub fn slow(&self, delay: Duration) {
        (0..3).for_each(|member| self.slow_one(member, delay));
    }

    /// The same for one follower: what it was asked for is done so much later, and the others need not wait for it.
    pub fn slow_one(&self, member: usize, delay: Duration) {
        assert!(!self.relays.is_empty(), "nothing between them can be slow");
        for relay in &self.relays[2 * member..2 * member + 2] {
            relay.slow(delay);
        }
    }
}

/// What is between the members.
#[derive(Clone, Copy)]
enum Between {
    Nothing,
    Relays,
}

/// The right to run an ensemble.
struct Turn;

static TAKEN: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

impl Turn {
    fn take() -> Turn {
        let taken = TAKEN.0.lock().expect("not poisoned");
        *TAKEN.1.wait_while(taken, |taken| *taken == ENSEMBLES).expect("not poisoned") += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.0.lock().expect("not poisoned") -= 1;
        TAKEN.1.notify_one();
    }
}

fn signal(pid: i32, number: i32) {
    let name = nix::sys::signal::Signal::try_from(number).expect("an ordinary signal");
    // One that has gone already is as good.
    _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), name);
}

/// A port that is none of those which the kernel gives to outgoing connections, so that none of them takes it while its
/// server is down. None is given twice.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        // Other processes begin elsewhere.
        let number = std::process::id().wrapping_mul(101).wrapping_add(GIVEN.fetch_add(1, Ordering::SeqCst));
        let port = 10_000 + u16::try_from(number % 20_000).expect("it is small");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
