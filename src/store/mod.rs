//! Places where a queue is kept.

mod servers;
mod zookeeper;

pub use servers::{Server, Servers, ServersError};
pub use zookeeper::ZooKeeper;
