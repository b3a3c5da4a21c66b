//! Places where a queue is kept.

mod directory;
mod ensemble;
mod location;
mod memory;
mod recipe;
mod servers;
mod zookeeper;

pub use directory::{Directory, Root, RootError};
pub use location::{Location, LocationError};
pub use memory::{ConnectionId, Deletion, Faults, Memory, MemoryEnsemble, MemoryServers, Random};
#[cfg(test)]
pub use recipe::TESTIMONY;
pub use recipe::Witness;
pub use servers::{Server, Servers, ServersError};
pub use zookeeper::ZooKeeper;
