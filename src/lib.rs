//! `syncd-spawn` runs a command while it holds a distributed lock, and lets go when the command is done.
//!
//! The crate is a lock half ([`lock`]) that knows no processes, a process half ([`supervise`]) that knows no locks, and
//! commands ([`command`]) that introduce them. Queues are kept in a [`store`]; what the dead leave there stands in a [`journal`]. Rules (whose turn it is, what to do when
//! something happens) are pure functions; stores, signals and children are at the edge.
//!
//! `main -> cli -> command -> {lock, supervise, store, journal, report}`; `store -> lock`; only [`exit`] knows numbers.

pub mod cli;
mod clock;
pub mod command;
pub mod error;
pub mod exit;
pub mod journal;
mod local;
pub mod lock;
mod planted;
pub mod report;
#[cfg(test)]
mod simulation;
pub mod store;
pub mod supervise;
