//! Suites that run the real binary against real servers, as one crate that links once.

mod bench;
mod bound;
mod cli;
mod contention;
mod contract;
mod directory;
mod docs;
mod host;
mod install;
mod interop;
mod journal;
mod judge;
mod names;
mod nemesis;
mod old_bugs;
mod outage;
mod partition;
mod proxy;
mod raw;
mod refusal;
mod relay;
mod signals;
mod spawn;
mod supervision;
mod terminal;
mod zookeeper;
