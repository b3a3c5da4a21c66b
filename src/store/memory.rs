//! Queues in memory, for tests: everybody who has a clone of it contends with the others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::lock::{
    Claim, Contender, Entry, Expected, FencingToken, LockPath, NodeName, Place, Queue, Reading, Removal, Sequence, Store,
    StoreError,
};

/// A place that lasts as long as the last of its clones.
#[derive(Clone)]
pub struct Memory {
    locks: Rc<RefCell<HashMap<LockPath, Lock>>>,
    /// The last fencing token; whoever waits for a change listens here.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Lock {
    entered: i64,
    contenders: Vec<(NodeName, Contender)>,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory { locks: Rc::default(), changes: watch::Sender::new(0) }
    }
}

impl Memory {
    /// Deletes a lock's directory and everybody in it, as an operator would.
    pub fn delete(&self, lock: &LockPath) {
        self.locks.borrow_mut().remove(lock);
        self.changes.send_modify(|_| {});
    }

    fn find<T>(&self, lock: &LockPath, name: &NodeName, found: impl FnOnce(&Contender) -> T) -> Option<T> {
        let locks = self.locks.borrow();
        locks.get(lock)?.contenders.iter().find(|(there, _)| there == name).map(|(_, contender)| found(contender))
    }
}

impl Store for Memory {
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        tokio::select! {
            biased;
            () = give_up => return Ok(Entry::GaveUp),
            () = std::future::ready(()) => {}
        }
        let mut locks = self.locks.borrow_mut();
        let lock = locks.entry(lock.clone()).or_default();
        let name = format!("{}{}", claim.prefix(), Sequence::new(lock.entered));
        let name = NodeName::parse(&name).expect("it is made of a mark and ten digits");
        lock.entered += 1;
        let contender = Contender { identifier: claim.identifier.clone(), since: SystemTime::now(), version: 0 };
        lock.contenders.push((name.clone(), contender));
        self.changes.send_modify(|last| *last += 1);
        Ok(Entry::In(Place { name, token: FencingToken(*self.changes.borrow()) }))
    }

    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError> {
        match self.locks.borrow().get(lock) {
            Some(lock) => Ok(Queue::new(lock.contenders.iter().map(|(name, _)| name.as_str()))),
            None => Err(StoreError::NoLock(lock.clone())),
        }
    }

    async fn read(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Reading>, StoreError> {
        let read = |name| self.find(lock, name, Clone::clone).map_or(Reading::Missing, Reading::There);
        Ok(names.iter().map(read).collect())
    }

    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError> {
        let mut changes = self.changes.subscribe();
        while self.find(lock, name, |_| ()).is_some() {
            changes.changed().await.expect("the sender is ours");
        }
        Ok(())
    }

    async fn leave(&self, lock: &LockPath, name: &NodeName, expected: Expected) -> Result<Removal, StoreError> {
        match (self.find(lock, name, |contender| contender.version), expected) {
            (None, _) => Ok(Removal::Missing),
            (Some(version), Expected::Version(expected)) if version != expected => Ok(Removal::Changed),
            (Some(_), Expected::Anything | Expected::Version(_)) => {
                if let Some(lock) = self.locks.borrow_mut().get_mut(lock) {
                    lock.contenders.retain(|(there, _)| there != name);
                }
                self.changes.send_modify(|_| {});
                Ok(Removal::Removed)
            }
        }
    }
}
