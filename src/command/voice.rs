//! What a run says, in the words of the program that it is taken for.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;

use tracing::{debug, info, warn};

use super::{Address, Context};
use crate::error::Error;
use crate::exit;
use crate::lock::{AcquireError, Contender, Identifier, LockPath, NodePath, Queue, Reading};
use crate::report::{self, Verbosity};

/// Whose words are used, and what they need.
#[derive(Debug)]
pub enum Voice {
    Native,
    Lockpick {
        spelling: Spelling,
    },
    SyncdSpawn {
        spelling: Spelling,
        /// The lock and the command's words as they are shown.
        lock: String,
        command: OsString,
    },
}

/// How the lock or the node that was asked for is shown, and what is below it: as it was typed, but for slashes at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelling {
    pub typed: String,
    /// What it means.
    pub path: String,
}

impl Voice {
    /// A lock or a node.
    pub(super) fn path(&self, path: &impl Display) -> String {
        let path = path.to_string();
        match self {
            Voice::Native => path,
            Voice::Lockpick { spelling } | Voice::SyncdSpawn { spelling, .. } => match path.strip_prefix(&spelling.path) {
                Some(below) => format!("{}{below}", spelling.typed),
                None => path,
            },
        }
    }

    /// A line of a list. lockpick's has the identifier's bytes as they are; ours keeps to one line, whatever is in them.
    pub(super) fn contender(&self, contender: &Contender, node: &NodePath) -> Vec<u8> {
        let identifier = match self {
            Voice::Native => contender.identifier.to_string().into_bytes(),
            Voice::Lockpick { .. } | Voice::SyncdSpawn { .. } => contender.identifier.0.clone(),
        };
        [b"'", identifier.as_slice(), b"' ", self.path(node).as_bytes(), b"\n"].concat()
    }

    /// What removes a node by hand that nobody stands behind; lockpick's does not look whether somebody does.
    fn unlock_if_dead(&self) -> &'static str {
        match self {
            Voice::Native => "unlock --if-dead",
            Voice::Lockpick { .. } | Voice::SyncdSpawn { .. } => "unlock",
        }
    }

    /// The line that removes a node if nobody stands behind it.
    pub(super) fn hint_if_dead(&self, address: &Address, node: &NodePath) -> String {
        format!("hint: {} {address} {} {}", report::by_hand(), self.unlock_if_dead(), report::typed(node))
    }

    /// Everybody in the queue that we wait in.
    pub(super) fn tell_queue(&self, lock: &LockPath, queue: &Queue, readings: &[Reading]) {
        warn!("Waiting to acquire lock, contenders are : ");
        for (name, reading) in queue.contenders().iter().zip(readings) {
            let node = self.path(&lock.node(name));
            match reading {
                Reading::There(contender) => warn!("'{}' {node}", contender.identifier.brief()),
                // Gone between the two looks.
                Reading::Missing => {}
                Reading::Forbidden => warn!("(no permission) {node}"),
            }
        }
    }

    pub(super) fn tell_signal(&self, signal: i32) {
        match self {
            Voice::Lockpick { .. } => info!("Received signal {signal}, running handler"),
            Voice::Native | Voice::SyncdSpawn { .. } => {}
        }
    }

    pub(super) fn tell_trying(&self, lock: &LockPath) {
        match self {
            Voice::Lockpick { .. } | Voice::SyncdSpawn { .. } => debug!("Trying to acquire lock on {}", self.path(lock)),
            Voice::Native => {}
        }
    }

    pub(super) fn tell_timed_out(&self, error: &AcquireError) {
        match self {
            Voice::Native => report::error(error, None),
            Voice::Lockpick { .. } | Voice::SyncdSpawn { .. } => {
                warn!("LockTimeout exception rasied by locker thread");
                tracing::error!("Failed to acquire lock within timeout!");
            }
        }
        self.tell_not_locked();
    }

    pub(super) fn tell_acquired(&self, lock: &LockPath, node: &NodePath) {
        match self {
            Voice::Lockpick { .. } => info!("Lock {} with path {} acquired", self.path(lock), self.path(node)),
            Voice::Native | Voice::SyncdSpawn { .. } => {}
        }
    }

    pub(super) fn tell_no_such_lock(&self, path: &impl Display) {
        match self {
            Voice::Native => report::error(&format_args!("no such lock: {path}"), None),
            Voice::Lockpick { .. } | Voice::SyncdSpawn { .. } => {
                report::error(&format_args!("Lock {} does not exist!", self.path(path)), None);
            }
        }
    }

    pub(super) fn tell_not_yours(&self, node: &NodePath, identifier: &Identifier) {
        match self {
            Voice::Native => report::error(&format_args!("{node} belongs to '{identifier}'"), None),
            Voice::Lockpick { .. } | Voice::SyncdSpawn { .. } => {
                report::error(&format_args!("Identifier mistmatch, got '{identifier}'"), None);
            }
        }
    }

    /// An error before there was a lock.
    pub(super) fn not_acquired(&self, error: Error) -> Result<exit::Result, Error> {
        match self {
            Voice::Native | Voice::Lockpick { .. } => Err(error),
            Voice::SyncdSpawn { .. } => {
                report::error(&error, None);
                self.tell_not_locked();
                Ok(exit::Result::Failed)
            }
        }
    }

    fn tell_not_locked(&self) {
        match self {
            Voice::SyncdSpawn { lock, .. } => report::line(could_not_lock(lock)),
            Voice::Native | Voice::Lockpick { .. } => {}
        }
    }
}

/// The script's last line when there is no lock. What it would have shown behind it was always empty.
pub fn could_not_lock(lock: &str) -> String {
    format!("Couldn't lock '{lock}': ")
}

impl Context<'_> {
    pub(super) fn tell_running(&self, lock: &LockPath, words: &str) {
        match self.voice {
            Voice::Native => {
                self.say(format_args!("Got lock on {lock}"));
                self.say(format_args!("Running your command {words}"));
            }
            Voice::SyncdSpawn { lock, command, .. } => {
                report::line(format_args!("Got lock on {lock}"));
                report::remark(&[b"Running your command ", OsStr::as_bytes(command), b"\n"].concat());
            }
            Voice::Lockpick { .. } => {}
        }
    }

    pub(super) fn tell_unlocked(&self, node: &NodePath) {
        match self.voice {
            Voice::Native => self.say(format_args!("Unlocked '{node}'")),
            Voice::SyncdSpawn { .. } => report::remark(format!("Unlocked '{}'\n", self.voice.path(node)).as_bytes()),
            Voice::Lockpick { .. } => {}
        }
    }

    /// After it was said why.
    pub(super) fn tell_not_unlocked(&self, node: &NodePath) {
        match self.voice {
            Voice::SyncdSpawn { .. } => report::remark(format!("Couldn't unlock '{}'\n", self.voice.path(node)).as_bytes()),
            Voice::Native | Voice::Lockpick { .. } => {}
        }
    }

    /// A line for the person at the terminal, unless it was asked to be quiet.
    fn say(&self, text: std::fmt::Arguments<'_>) {
        if self.verbosity != Verbosity::Quiet {
            report::line(text);
        }
    }
}
