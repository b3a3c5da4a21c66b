//! `lock`, `rlock`, `wlock`: acquires a lock, prints its node and leaves it held.

use std::io;

use super::{Acquired, Context, Unless, Wish, say_what_is_left};
use crate::error::Error;
use crate::exit;
use crate::lock::{Expected, Lifetime, Limit, Store};
use crate::report;
use crate::supervise::stdout_was_closed;

pub async fn lock<S: Store>(store: &S, wish: &Wish, limit: Limit, context: &mut Context<'_>) -> Result<exit::Result, Error> {
    let place = match context.acquire(store, wish, Lifetime::Explicit, limit).await? {
        Acquired::Ours(place) => place,
        Acquired::Not(result) => return Ok(result),
    };
    let node = wish.lock.node(&place.name);
    context.voice.tell_acquired(&wish.lock, &node);
    let result = match context.unless_asked_to_end(report::answerable()).await {
        Ok(Unless::AskedToEnd(signal)) => Ok(exit::Result::Interrupted(signal)),
        Err(error) => Err(error),
        Ok(Unless::Done(())) if stdout_was_closed() => Err(Error::Output(io::Error::from_raw_os_error(libc::EBADF))),
        Ok(Unless::Done(())) => match report::answer(format!("{}\n", context.voice.path(&node))) {
            Ok(()) => return Ok(exit::Result::Done),
            Err(error) => Err(Error::Output(error)),
        },
    };
    // A lock that nobody can name is one that nobody can release.
    if let Err(error) = store.leave(&wish.lock, &place.name, Expected::Anything).await {
        report::error(&error, None);
        say_what_is_left(context.address, &error);
    }
    result
}
