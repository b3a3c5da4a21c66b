//! `lock`, `rlock`, `wlock`: acquires a lock, prints its node and leaves it held.

use tracing::error;

use super::acquire::Acquired;
use super::{Context, Unless, Wish, say_what_is_left};
use crate::error::Error;
use crate::exit;
use crate::journal::Record;
use crate::lock::{Expected, Limit, Store};
use crate::report;

pub async fn lock<S: Store>(store: &S, wish: &Wish, limit: Limit, context: &mut Context<'_>) -> Result<exit::Result, Error> {
    let place = match context.acquire(store, wish, limit).await? {
        Acquired::Ours(place) => place,
        Acquired::Not(result) => return Ok(result),
    };
    let node = wish.lock.node(&place.name);
    context.voice.tell_acquired(&wish.lock, &node);
    let result = match context.unless_asked_to_end(report::answerable()).await {
        Ok(Unless::AskedToEnd(signal)) => Ok(exit::Result::Interrupted(signal)),
        Err(error) => Err(error),
        Ok(Unless::Done(())) => match report::answer(format!("{}\n", context.voice.path(&node))) {
            Ok(()) => {
                // It is somebody else's now, and outlives us on purpose.
                if let Some(Err(trouble)) = context.record.take().map(Record::strike_for_good) {
                    error!("{trouble}: remove it, or a later run takes {node} for one that nobody wants");
                }
                return Ok(exit::Result::Done);
            }
            Err(error) => Err(Error::Output(error)),
        },
    };
    // A lock that nobody can name is one that nobody can release.
    match store.leave(&wish.lock, &place.name, Expected::Anything).await {
        Ok(_) => context.strike(),
        Err(error) => {
            report::error(&error, None);
            say_what_is_left(context.address, &error);
        }
    }
    result
}
