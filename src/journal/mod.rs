//! The journal: what the runs of this host have in ZooKeeper's queues, so that what the dead leave is found and removed.
//!
//! A persistent node outlives its owner. So before it is asked for an entry is written that tells where it will be, in a
//! directory of this host that outlives a crash. The entry is flocked, and the command inherits the flocked file: the kernel knows
//! whether anybody lives who could work under the node, however the others died. Whoever gets the flock may remove it.

mod book;
mod entry;

pub use book::{Age, Dead, Journal, Life, Record, StateDir};
pub use entry::{Entry, EntryError, Family};
