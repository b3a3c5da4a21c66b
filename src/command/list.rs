//! `list`: prints a queue in order.

use std::io::ErrorKind;

use tracing::warn;

use super::{Context, Unless};
use crate::error::Error;
use crate::exit;
use crate::lock::{Limit, LockPath, Queue, Reading, Store, StoreError};
use crate::report;

pub async fn list<S: Store>(
    store: &S,
    lock: &LockPath,
    limit: Limit,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let looked = context.look(limit, async {
        let queue = store.contenders(lock).await?;
        let readings = store.read(lock, queue.contenders()).await?;
        Ok((queue, readings))
    });
    let (queue, readings): (Queue, Vec<Reading>) = match looked.await? {
        Unless::Done(Ok(found)) => found,
        Unless::Done(Err(StoreError::NoLock(lock))) => {
            context.voice.tell_no_such_lock(&lock);
            return Ok(exit::Result::No);
        }
        Unless::Done(Err(error)) => return Err(error.into()),
        Unless::AskedToEnd(signal) => return Ok(exit::Result::Interrupted(signal)),
    };
    let mut lines = Vec::new();
    for (name, reading) in queue.contenders().iter().zip(readings) {
        let node = lock.node(name);
        match reading {
            Reading::There(contender) => lines.extend(context.voice.contender(&contender, &node)),
            // Gone between the two looks.
            Reading::Missing => {}
            Reading::Forbidden => lines.extend(format!("(no permission) {}\n", context.voice.path(&node)).into_bytes()),
        }
    }
    for stranger in queue.strangers() {
        warn!("{lock}/{stranger} is no contender: nobody waits for it");
    }
    // A reader may take its time, and nothing of ours is at stake.
    context.signals.inherited().restore();
    match report::answer(&lines) {
        Ok(()) => Ok(exit::Result::Done),
        // Somebody who has read enough, such as head.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(exit::Result::Interrupted(libc::SIGPIPE)),
        Err(error) => Err(Error::System { what: "cannot write the list to standard output", error }),
    }
}
