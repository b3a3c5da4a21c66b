//! What a call writes into the journal about itself, before anything is asked for; and what is written there of others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{timeout, timeout_at};
use tracing::warn;

use crate::journal::{Entry, Family, Journal, Life, Record, StateDir};
use crate::local::{Trouble, elsewhere, errno};
use crate::lock::Limit;

/// How long a disk may take for an entry that nobody wants any more.
const TO_CANCEL: Duration = Duration::from_secs(1);

/// An entry that is being written, by another thread: a disk may take its time.
pub enum Recording {
    Writing(oneshot::Receiver<Result<Record, Trouble>>),
    /// There is none where it could not be written.
    Done(Option<Record>),
}

impl Recording {
    pub fn begin(state_dir: &StateDir, entry: Entry) -> Recording {
        let state_dir = state_dir.clone();
        match elsewhere(move || Arc::new(Journal::make(&state_dir)?).write(&entry)) {
            Ok(writing) => Recording::Writing(writing),
            Err(error) => Recording::Done(without(&Trouble::new("to start a thread", errno(&error)))),
        }
    }

    /// Waits until it is written, or cannot be, or time is up: then nothing is asked for either.
    ///
    /// # Cancellation
    /// May be dropped and called again.
    pub async fn finish(&mut self, limit: Limit) {
        let Recording::Writing(writing) = self else { return };
        let written = match limit {
            Limit::Never => writing.await,
            Limit::At(until) | Limit::Once(until) => match timeout_at(until, writing).await {
                Ok(written) => written,
                Err(_) => return,
            },
        };
        *self = Recording::Done(match written {
            Ok(Ok(record)) => Some(record),
            Ok(Err(trouble)) => without(&trouble),
            Err(_) => without(&Trouble::said("to keep a journal", "the thread that writes it has ended")),
        });
    }

    /// What was written, once it is finished.
    pub fn record(self) -> Option<Record> {
        match self {
            Recording::Writing(_) => None,
            Recording::Done(record) => record,
        }
    }

    /// Nothing was asked for, so nothing is to be remembered.
    ///
    /// # Cancellation
    /// May be dropped: then the entry stays, and a later run strikes it.
    pub async fn cancel(self) {
        let record = match self {
            Recording::Writing(writing) => timeout(TO_CANCEL, writing).await.ok().and_then(|written| written.ok()?.ok()),
            Recording::Done(record) => record,
        };
        strike(record);
    }
}

/// What this host's journal tells of a run; `None` where there is no journal.
///
/// # Cancellation
/// May be dropped.
pub async fn look_up(state_dir: &StateDir, family: Family) -> Result<Option<Life>, Trouble> {
    let state_dir = state_dir.clone();
    // A disk may take its time, and signals none.
    let looking = elsewhere(move || match Journal::open(&state_dir)? {
        Some(journal) => Arc::new(journal).look(&family, |_| true).map(Some),
        None => Ok(None),
    });
    let ended = || Err(Trouble::said("to read the journal", "the thread that reads it has ended"));
    match looking {
        Ok(looking) => looking.await.unwrap_or_else(|_| ended()),
        Err(error) => Err(Trouble::new("to start a thread", errno(&error))),
    }
}

/// Removes the entry, if there is one: nothing is left of what it tells of.
pub fn strike(record: Option<Record>) {
    if let Some(Err(trouble)) = record.map(Record::strike) {
        warn!("{trouble}: a later run will");
    }
}

fn without(trouble: &Trouble) -> Option<Record> {
    warn!("{trouble}: if we are killed, nobody but an operator can tell that our node has no owner");
    None
}
