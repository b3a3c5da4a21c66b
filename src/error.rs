//! One error over the halves' own.

use std::io;
use std::path::PathBuf;

use crate::local::Trouble;
use crate::lock::{AcquireError, StoreError};
use crate::supervise::SuperviseError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Already explained, with how to type it right.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot run {command}: {error}")]
    Supervise { command: String, error: SuperviseError },
    #[error("{0}")]
    Journal(Trouble),
    #[error("cannot write the node to standard output: {0}")]
    Output(io::Error),
    #[error("cannot install {}: {error}", path.display())]
    Install { path: PathBuf, error: io::Error },
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
}

impl Error {
    pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::System { what, error }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<String> {
        let store = match self {
            Error::Store(error) | Error::Acquire(AcquireError::Store(error)) => error,
            Error::Acquire(AcquireError::UsedUp(lock)) => {
                return Some(format!("let everybody leave {lock}, then delete it: its numbers start again"));
            }
            Error::Acquire(AcquireError::Nested(_)) => {
                return Some("give the inner command another lock, or none: it runs under the outer one".to_owned());
            }
            Error::Acquire(AcquireError::TimedOut { .. } | AcquireError::NoAnswer(_) | AcquireError::Stopped(_))
            | Error::Usage(_)
            | Error::Supervise { .. }
            | Error::Journal(_)
            | Error::Output(_)
            | Error::Install { .. }
            | Error::System { .. } => return None,
        };
        match store {
            StoreError::Unreachable { .. } => Some(
                "is a server listening there? -s takes HOST:PORT[,HOST:PORT] or file:///DIR; -t gives it more time".to_owned(),
            ),
            StoreError::Unsuitable { .. } => {
                Some("use a directory on a local file system, or ZooKeeper, which is made for several hosts".to_owned())
            }
            StoreError::SessionTooShort { .. } => Some("a shorter --grace fits".to_owned()),
            StoreError::Refused { .. }
            | StoreError::NoLock(_)
            | StoreError::NotRemoved { .. }
            | StoreError::Unsettled { .. } => None,
        }
    }
}
