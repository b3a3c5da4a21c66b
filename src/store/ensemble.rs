//! What a queue needs from servers that keep a tree of nodes: sessions, and requests in them.
//!
//! A session here is one connection to one server. When that is lost the same session can be resumed at another server, as
//! long as no server has said that it has expired.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::servers::{Server, Servers};

/// Servers, and the way to them.
#[allow(async_fn_in_trait, reason = "one thread, and the caller is generic over the ensemble: no Send is needed")]
pub trait Ensemble {
    type Session: Session;

    fn servers(&self) -> &Servers;

    /// Opens a session at one server, or resumes one there.
    ///
    /// # Cancellation
    /// May be dropped; a session that comes up nevertheless is closed again.
    async fn open(
        &self,
        server: &Server,
        resume: Option<&<Self::Session as Session>::Key>,
        within: Duration,
    ) -> Result<Self::Session, OpenError>;

    /// For pauses that differ from everybody else's.
    fn random(&self) -> u128;

    /// The time since some moment, which goes on while we stand still or the machine sleeps.
    fn clock(&self) -> Duration;

    /// Ready once the clock shows `when`, or shows more when we wake up. It looks whenever it is polled.
    async fn reaches(&self, when: Duration);
}

/// One connection to one server. Dropped, it is abandoned: the session may be resumed elsewhere.
///
/// A request leaves when its future is first polled, one after the other in that order, and is answered in that order. What
/// was sent is sent: a write whose future is dropped may be carried out.
#[allow(async_fn_in_trait, reason = "one thread, and the caller is generic over the ensemble: no Send is needed")]
pub trait Session {
    /// What it takes to resume the session elsewhere.
    type Key: Clone;

    fn id(&self) -> SessionId;

    fn key(&self) -> Self::Key;

    fn server(&self) -> &Server;

    /// Whether the connection is known to be lost.
    fn is_over(&self) -> bool;

    /// How long the servers keep the session without hearing of us.
    fn timeout(&self) -> Duration;

    /// Creates a node whose name is the last part of `prefix` and the next number of its directory.
    async fn create(&self, prefix: &str, data: &[u8], lasting: Lasting) -> Result<Created, Failure>;

    /// Creates a directory and what is missing above it; one that is there is no error.
    async fn make_directory(&self, path: &str) -> Result<(), Failure>;

    async fn delete(&self, path: &str, version: Option<i32>) -> Result<(), Failure>;

    /// Does all of it in one transaction, or nothing.
    async fn transact(&self, operations: Vec<Operation>) -> Result<Transacted, Failure>;

    /// Finds out whether we may delete in a directory, where not everybody may: by making a node called `probe` there and
    /// deleting it, in one transaction that nobody sees.
    async fn may_delete(&self, directory: &str, probe: &str) -> Result<(), Failure>;

    /// Returns once this server has seen what the ensemble had done when it was asked.
    async fn sync(&self, path: &str) -> Result<(), Failure>;

    async fn children(&self, path: &str) -> Result<Vec<String>, Failure>;

    async fn stat(&self, path: &str) -> Result<Option<Stat>, Failure>;

    /// Reads several nodes in one flight.
    async fn read(&self, paths: Vec<String>) -> Result<Vec<Result<Node, Refusal>>, Failure>;

    /// Returns once something became of the node, or at once if it is not there.
    async fn watch(&self, path: &str) -> Result<Watched, Failure>;

    /// Closes the session; says whether the servers confirmed it in this time. Nothing of a session can happen that has ended.
    async fn close(self, within: Duration) -> bool;
}

/// The name that the servers give a session, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionId(pub i64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// How long a node lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    Persistent,
    /// As long as the session that made it.
    Ephemeral,
}

/// A part of a transaction; a later one sees what the earlier ones did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Create {
        path: String,
        data: Vec<u8>,
        lasting: Lasting,
    },
    /// The same with the next number of its directory behind the path.
    CreateNext {
        prefix: String,
        data: Vec<u8>,
        lasting: Lasting,
    },
    Delete {
        path: String,
        version: Option<i32>,
    },
    Set {
        path: String,
        data: Vec<u8>,
        version: Option<i32>,
    },
    /// Does nothing, if the node is there.
    Check {
        path: String,
    },
}

/// What became of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub enum Transacted {
    /// All of it was done; these are the paths of what was made, in that order.
    Done(Vec<String>),
    /// Nothing was done, because of the operation at this place.
    Refused { at: usize, why: Refusal },
}

/// What a create made.
#[derive(Debug)]
pub struct Created {
    pub path: String,
    pub zxid: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// The transaction that created it.
    pub czxid: u64,
    pub ctime: SystemTime,
    /// When its data was written last.
    pub mtime: SystemTime,
    pub version: i32,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub data: Vec<u8>,
    pub stat: Stat,
}

/// What became of a node that was watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    Gone,
    /// It was there when the event was sent: its data changed, or the watch ended for another reason.
    There,
}

/// Why a session could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The server itself said that the session to resume has expired: nothing of it can happen any more.
    Expired,
    Failed(String),
}

/// Why a request has no result.
#[derive(Debug)]
pub enum Failure {
    /// The server's own answer: it did nothing.
    Said(Refusal),
    /// Connection closed, reset or silent: the request may have been carried out, or may yet be.
    InDoubt(String),
}

/// A server's own answer that it did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no such node")]
    NoNode,
    #[error("there is one already")]
    NodeExists,
    #[error("it was written meanwhile")]
    BadVersion,
    #[error("not authorized")]
    NoAuth,
    #[error("{0}")]
    Other(String),
}
