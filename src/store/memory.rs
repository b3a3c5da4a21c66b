//! An ensemble in memory, for tests: the same recipe as on ZooKeeper, and every fault that a real ensemble can have.
//!
//! It lives on tokio's clock, so on a paused one an hour of faults takes a moment; and by its seed every run of it can be
//! repeated, as long as whoever uses it does the same.

mod random;
mod servers;
mod tree;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::random::Random;
use self::servers::{Answer, Request};
pub use self::servers::{ConnectionId, Deletion, Faults, Servers as MemoryServers};
use super::ensemble::{
    Created, Ensemble, Failure, Lasting, Node, OpenError, Operation, Refusal, Session, SessionId, Stat, Transacted, Watched,
};
use super::recipe::Recipe;
use super::servers::{Server, Servers};
use crate::lock::{AbsolutePath, Limit, LockPath, StoreError};

/// The queues of an ensemble in memory.
pub type Memory = Recipe<MemoryEnsemble>;

const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// Nobody waits for anything: it is there, or it comes with an event.
const SOON: Duration = Duration::from_hours(1);

/// One client of it; a clone is another client of the same.
#[derive(Clone)]
pub struct MemoryEnsemble {
    shared: Arc<Shared>,
    addresses: Servers,
    client: u64,
}

struct Shared {
    servers: Mutex<servers::Servers>,
    /// There may be something that happens earlier than was thought.
    changed: Notify,
    is_driven: AtomicBool,
}

impl Default for MemoryEnsemble {
    fn default() -> MemoryEnsemble {
        MemoryEnsemble::new(1, SESSION_TIMEOUT, Random(0), Faults::default())
    }
}

impl MemoryEnsemble {
    /// So many servers, which keep sessions for so long, with these faults. Needs a runtime.
    pub fn new(count: u16, session_timeout: Duration, random: Random, faults: Faults) -> MemoryEnsemble {
        let server = |number| Server { host: format!("memory{number}"), port: 1 };
        let addresses = Servers { servers: (0..count).map(server).collect(), chroot: None };
        let servers = Mutex::new(servers::Servers::new(usize::from(count), session_timeout, random, faults));
        let shared = Arc::new(Shared { servers, changed: Notify::new(), is_driven: AtomicBool::new(false) });
        MemoryEnsemble { shared, addresses, client: 0 }
    }

    /// The same ensemble, seen by another client.
    #[must_use]
    pub fn seen_by(&self, client: u64) -> MemoryEnsemble {
        MemoryEnsemble { client, ..self.clone() }
    }

    /// How many servers there are.
    pub fn server_count(&self) -> usize {
        self.addresses.servers.len()
    }

    /// Looks at the servers, or does something to them.
    pub fn at_the_servers<T>(&self, work: impl FnOnce(&mut MemoryServers) -> T) -> T {
        self.shared.with(work)
    }

    /// Whoever comes to it contends below the same root.
    #[allow(clippy::missing_panics_doc, reason = "the path is a good one")]
    pub async fn connect(&self, limit: Limit, release_timeout: Duration) -> Result<Memory, StoreError> {
        let root = AbsolutePath::parse("/memory").expect("a path");
        Recipe::open(self.clone(), root, limit, release_timeout).await
    }

    /// Deletes a lock's directory and everybody in it, as an operator would.
    pub fn delete(&self, lock: &LockPath) {
        let directory = format!("/memory{lock}");
        self.shared.with(|servers| {
            for name in servers.children(&directory) {
                servers.remove(&format!("{directory}/{name}"));
            }
            servers.remove(&directory);
        });
    }
}

impl Shared {
    fn with<T>(self: &Arc<Self>, work: impl FnOnce(&mut servers::Servers) -> T) -> T {
        if !self.is_driven.swap(true, Ordering::Relaxed) {
            tokio::spawn(drive(Arc::downgrade(self)));
        }
        let mut servers = self.servers.lock().expect("not poisoned");
        let result = work(&mut servers);
        servers.advance();
        drop(servers);
        self.changed.notify_one();
        result
    }
}

/// Has things happen when their time has come.
async fn drive(shared: Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let next = shared.servers.lock().expect("not poisoned").advance();
        let next = next.unwrap_or_else(|| Instant::now() + SOON);
        tokio::select! {
            biased;
            () = shared.changed.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

impl Ensemble for MemoryEnsemble {
    type Session = MemorySession;

    fn servers(&self) -> &Servers {
        &self.addresses
    }

    async fn open(&self, server: &Server, resume: Option<&SessionId>, within: Duration) -> Result<MemorySession, OpenError> {
        let number = self.addresses.servers.iter().position(|known| known == server).expect("one of ours");
        let (opened, opening) = oneshot::channel();
        self.shared.with(|servers| servers.open(self.client, number, resume.copied(), opened));
        let mut opening = Opening { shared: Arc::clone(&self.shared), opening };
        match timeout(within, &mut opening.opening).await {
            Ok(Ok(Some((connection, id)))) => {
                Ok(MemorySession { shared: Arc::clone(&self.shared), server: server.clone(), connection, id })
            }
            Ok(Ok(None)) => Err(OpenError::Expired),
            Ok(Err(_)) => Err(OpenError::Failed("connection refused".to_owned())),
            Err(_) => Err(OpenError::Failed("no answer".to_owned())),
        }
    }

    fn random(&self) -> u128 {
        u128::from(self.shared.servers.lock().expect("not poisoned").random.number())
    }

    fn clock(&self) -> Duration {
        self.shared.servers.lock().expect("not poisoned").clock()
    }

    async fn reaches(&self, when: Duration) {
        sleep(when.saturating_sub(self.clock())).await;
    }
}

/// A connection that nobody may be there for when it comes up.
struct Opening {
    shared: Arc<Shared>,
    opening: oneshot::Receiver<Option<(ConnectionId, SessionId)>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Ok(Some((connection, _))) = self.opening.try_recv() {
            self.shared.servers.lock().expect("not poisoned").abandon(connection);
        }
    }
}

/// One connection to one server in memory.
pub struct MemorySession {
    shared: Arc<Shared>,
    server: Server,
    connection: ConnectionId,
    id: SessionId,
}

impl MemorySession {
    async fn call(&self, request: Request) -> Result<Answer, Failure> {
        let (reply, answer) = oneshot::channel();
        self.shared.with(|servers| servers.send(self.connection, request, reply));
        match answer.await {
            Ok(answer) => answer.map_err(Failure::Said),
            Err(_) => Err(Failure::InDoubt("the connection was lost".to_owned())),
        }
    }
}

impl Drop for MemorySession {
    fn drop(&mut self) {
        self.shared.servers.lock().expect("not poisoned").abandon(self.connection);
    }
}

impl Session for MemorySession {
    type Key = SessionId;

    fn id(&self) -> SessionId {
        self.id
    }

    fn key(&self) -> SessionId {
        self.id
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn is_over(&self) -> bool {
        !self.shared.servers.lock().expect("not poisoned").is_open(self.connection)
    }

    fn timeout(&self) -> Duration {
        self.shared.servers.lock().expect("not poisoned").session_timeout()
    }

    async fn create(&self, prefix: &str, data: &[u8], lasting: Lasting) -> Result<Created, Failure> {
        match self.call(Request::Create { prefix: prefix.to_owned(), data: data.to_vec(), lasting }).await? {
            Answer::Created(created) => Ok(created),
            other => unexpected(&other),
        }
    }

    async fn make_directory(&self, path: &str) -> Result<(), Failure> {
        self.call(Request::MakeDirectory(path.to_owned())).await.map(drop)
    }

    async fn delete(&self, path: &str, version: Option<i32>) -> Result<(), Failure> {
        self.call(Request::Delete { path: path.to_owned(), version }).await.map(drop)
    }

    async fn transact(&self, operations: Vec<Operation>) -> Result<Transacted, Failure> {
        match self.call(Request::Transact(operations)).await? {
            Answer::Transacted(transacted) => Ok(transacted),
            other => unexpected(&other),
        }
    }

    /// Everybody may.
    async fn may_delete(&self, _directory: &str, _probe: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn sync(&self, _path: &str) -> Result<(), Failure> {
        self.call(Request::Sync).await.map(drop)
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, Failure> {
        match self.call(Request::Children(path.to_owned())).await? {
            Answer::Children(names) => Ok(names),
            other => unexpected(&other),
        }
    }

    async fn stat(&self, path: &str) -> Result<Option<Stat>, Failure> {
        match self.call(Request::Stat(path.to_owned())).await? {
            Answer::Stat(stat) => Ok(stat),
            other => unexpected(&other),
        }
    }

    async fn read(&self, paths: Vec<String>) -> Result<Vec<Result<Node, Refusal>>, Failure> {
        match self.call(Request::Read(paths)).await? {
            Answer::Nodes(nodes) => Ok(nodes),
            other => unexpected(&other),
        }
    }

    async fn watch(&self, path: &str) -> Result<Watched, Failure> {
        match self.call(Request::Watch(path.to_owned())).await? {
            Answer::Watched(watched) => Ok(watched),
            other => unexpected(&other),
        }
    }

    async fn close(self, within: Duration) -> bool {
        matches!(timeout(within, self.call(Request::Close)).await, Ok(Ok(_)))
    }
}

fn unexpected(answer: &Answer) -> ! {
    unreachable!("{answer:?} answers another question")
}
