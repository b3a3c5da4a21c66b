//! The words of the process half.

use std::time::Duration;

/// A signal by its raw number, so that real-time signals have one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    pub number: i32,
    pub sender: Sender,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The terminal's keys, a hang-up, an alarm: the kernel sent it, to everybody whom it concerns.
    Kernel,
    Process(i32),
}

/// What the terminal stops a job with.
pub const STOPPING: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Whether the command may run, as far as whoever permits it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    Given,
    /// Perhaps it was lost, and soon somebody knows. Until then nobody works on.
    Doubtful,
    /// Lost for good. It can be somebody else's after this time: by then nobody works on.
    Revoked {
        within: Duration,
    },
}

/// Where the command stands towards us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// In our process group: there is a terminal, and its keys reach us both.
    Same,
    /// In a group of its own.
    Own,
    /// In a group of its own, at a terminal: it stops and goes on with us, and has the terminal where that is ours to give.
    Foreground,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Exited(u8),
    Signaled { number: i32, dumped_core: bool },
}
