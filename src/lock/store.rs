//! What a lock needs from a place that keeps queues.

use std::fs::File;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use humantime::format_duration;

use super::contender::{Claim, Contender, Lifetime, NodeName, Place};
use super::owner::Ownership;
use super::path::{LockPath, NodePath};
use super::queue::Queue;

/// A place that keeps queues.
///
/// Only [`enter`](Store::enter) and [`leave`](Store::leave) must not be dropped before they are ready: the others read, or
/// write what can be written again. So a timeout or a signal has one clean-up: [`leave`](Store::leave).
#[allow(async_fn_in_trait, reason = "one thread, and the caller is generic over the store: no Send is needed")]
pub trait Store {
    /// Adds us at the end of the queue exactly once, whatever is lost on the way; makes the lock's directory where it is missing.
    ///
    /// Once `give_up` is ready nothing more is asked for: what was asked for is settled and taken out again
    /// ([`Entry::GaveUp`]). An error leaves nothing behind either, except [`StoreError::Unsettled`], which says so.
    ///
    /// # Cancellation
    /// Must not be dropped before it is ready; that is what `give_up` is for.
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError>;

    /// Everybody in the lock's directory now; one that vanishes meanwhile is no error, a missing directory is
    /// [`StoreError::NoLock`]. Waits out an outage.
    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError>;

    /// What these contenders tell about themselves, in the order asked. Waits out an outage.
    async fn read(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Reading>, StoreError>;

    /// Whether somebody stands behind these contenders, in the order asked. Waits out an outage.
    async fn owners(&self, _lock: &LockPath, names: &[NodeName]) -> Result<Vec<Ownership>, StoreError> {
        Ok(vec![Ownership::Unknown; names.len()])
    }

    /// Removes a contender in front of us if nobody vouches for it and nothing can run under it; says whether it did. One look,
    /// for those who cannot wait: [`gone`](Store::gone) does the same.
    async fn bury(&self, _lock: &LockPath, _name: &NodeName) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Returns once that node may be gone, at once if it is. Arms its watch before it looks; survives reconnects and new
    /// sessions.
    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError>;

    /// Returns once the store cannot vouch for our lock any longer; for a persistent node, once the node itself is gone; for
    /// one that is bound to a session, its notice before that session can have expired.
    ///
    /// `tell` hears of a doubt that may pass: we stood still (stopped, or asleep) for longer than the session can wait for us,
    /// and nobody knows yet whether it did.
    async fn lost(
        &self,
        lock: &LockPath,
        name: &NodeName,
        _lifetime: Lifetime,
        _tell: &mut dyn FnMut(Doubt),
    ) -> Result<Loss, StoreError> {
        self.gone(lock, name).await.map(|()| Loss::Removed)
    }

    /// Removes a node once, retried until the store confirmed it or the release timeout is over.
    ///
    /// # Cancellation
    /// Must not be dropped before it is ready, or nobody knows whether the node is there.
    async fn leave(&self, lock: &LockPath, name: &NodeName, expected: Expected) -> Result<Removal, StoreError>;

    /// What the command has to inherit, where the store tells by it that somebody still works under our contender.
    fn heirloom(&self, _name: &NodeName) -> Option<Rc<File>> {
        None
    }
}

/// How [`Store::enter`] ended.
#[derive(Debug)]
pub enum Entry {
    In(Place),
    GaveUp,
}

/// How a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The node is gone: somebody removed it.
    Removed,
    /// The session could not be confirmed. It can have expired after this time, not before.
    Expiring(Duration),
}

/// Whether our lock may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    Arisen,
    Dispelled,
}

/// What a removal must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Our own node, which nobody else writes.
    Anything,
    /// The node as it was read.
    Version(i32),
    /// The node as it was read, and nobody who vouches for it.
    Orphaned(i32),
}

/// What a removal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// It was not there.
    Missing,
    /// It was there, but not as it had been read.
    Changed,
    /// The store could not be reached; but the session that it is bound to ends now, and takes it along.
    LeftToSession,
}

/// What a look at one node gave.
#[derive(Clone, Debug)]
pub enum Reading {
    There(Contender),
    Missing,
    /// We may see that it is there, but not what it says.
    Forbidden,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody there could be spoken to in the time that was given.
    #[error("cannot reach {place}: {cause}")]
    Unreachable { place: String, cause: String },
    /// The store answered no.
    #[error("{place} refused {what}: {cause}")]
    Refused { place: String, what: String, cause: String },
    /// No lock can be relied upon there.
    #[error("{place} cannot keep locks: {why}")]
    Unsuitable { place: String, why: String },
    /// No room between the moment when a session can no longer be confirmed and its end.
    #[error(
        "{place} grants sessions of {}, too short to stop a command within {} before one can have expired",
        format_duration(*.session),
        format_duration(*.notice)
    )]
    SessionTooShort { place: String, session: Duration, notice: Duration },
    #[error("no such lock: {0}")]
    NoLock(LockPath),
    /// A node of ours is still there, as far as anybody knows.
    #[error("{node} could not be removed from {place}: {cause}")]
    NotRemoved { node: NodePath, place: String, cause: String },
    /// We asked for a node, were never answered, and could not find out.
    #[error("{place} never answered whether {prefix}… was made: {cause}")]
    Unsettled { prefix: String, place: String, cause: String },
}
