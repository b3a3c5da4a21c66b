//! What `-s` takes: where a store is.

use crate::store::directory::{Root, RootError};
use crate::store::servers::{Servers, ServersError};

/// Servers of ZooKeeper, or a directory of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    ZooKeeper(Servers),
    Directory(Root),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    #[error(transparent)]
    Servers(#[from] ServersError),
    #[error(transparent)]
    Root(#[from] RootError),
}

impl Location {
    pub fn parse(text: &str) -> Result<Location, LocationError> {
        let text = text.trim();
        match text.strip_prefix("file:") {
            Some(rest) => Ok(Location::Directory(Root::parse(rest)?)),
            None => Ok(Location::ZooKeeper(Servers::parse(text)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_never_chosen_unless_it_is_asked_for() {
        for text in ["localhost", "/tmp/locks", "file", "tcp://h1/file:", "file:///tmp/locks", "file:"] {
            let is_directory = matches!(Location::parse(text), Ok(Location::Directory(_)));
            assert_eq!(is_directory, text.starts_with("file:"), "{text}");
        }
    }
}
