//! `list`: prints a queue in order.

use std::io::ErrorKind;

use tracing::warn;

use super::{Context, Layout, Unless};
use crate::clock::date;
use crate::error::Error;
use crate::exit;
use crate::lock::{Limit, LockPath, NodeName, Owner, Ownership, Queue, Reading, Standing, Store, StoreError};
use crate::report;

const HEADER: [&str; 7] = ["STATE", "IDENTIFIER", "HOST", "PID", "SINCE", "OWNER", "NODE"];
/// In a cell that has nothing to say.
const NOTHING: &str = "-";
/// Where an identifier may not be read.
const NO_PERMISSION: &str = "(no permission)";

pub async fn list<S: Store>(
    store: &S,
    lock: &LockPath,
    layout: Layout,
    limit: Limit,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let is_table = match layout {
        Layout::Lines => false,
        Layout::Table => true,
        Layout::Auto => report::is_answer_for_a_person(),
    };
    let looked = context.look(limit, async {
        let queue = store.contenders(lock).await?;
        let readings = store.read(lock, queue.contenders()).await?;
        let owners = if is_table { store.owners(lock, queue.contenders()).await? } else { Vec::new() };
        Ok((queue, readings, owners))
    });
    let (queue, readings, owners): (Queue, Vec<Reading>, Vec<Ownership>) = match looked.await? {
        Unless::Done(Ok(found)) => found,
        Unless::Done(Err(StoreError::NoLock(lock))) => {
            context.voice.tell_no_such_lock(&lock);
            return Ok(exit::Result::No);
        }
        Unless::Done(Err(error)) => return Err(error.into()),
        Unless::AskedToEnd(signal) => return Ok(exit::Result::Interrupted(signal)),
    };
    let answer = if is_table {
        let contenders = queue.contenders().iter().zip(readings).zip(&owners);
        let rows = contenders.filter_map(|((name, reading), owner)| row(lock, &queue, name, reading, owner));
        report::table(HEADER, rows.collect()).into_bytes()
    } else {
        let contenders = queue.contenders().iter().zip(readings);
        contenders.flat_map(|(name, reading)| line(lock, name, reading, context)).collect()
    };
    for stranger in queue.strangers() {
        warn!("{lock}/{stranger} is no contender: nobody waits for it");
    }
    // A reader may take its time, and nothing of ours is at stake.
    context.signals.inherited().restore();
    match report::answer(&answer) {
        Ok(()) => Ok(exit::Result::Done),
        // Somebody who has read enough, such as head.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(exit::Result::Interrupted(libc::SIGPIPE)),
        Err(error) => Err(Error::System { what: "cannot write the list to standard output", error }),
    }
}

fn line(lock: &LockPath, name: &NodeName, reading: Reading, context: &Context<'_>) -> Vec<u8> {
    let node = lock.node(name);
    match reading {
        Reading::There(contender) => context.voice.contender(&contender, &node),
        // Gone between the two looks.
        Reading::Missing => Vec::new(),
        Reading::Forbidden => format!("{NO_PERMISSION} {}\n", context.voice.path(&node)).into_bytes(),
    }
}

/// A contender's cells; none if it is gone.
fn row(lock: &LockPath, queue: &Queue, name: &NodeName, reading: Reading, ownership: &Ownership) -> Option<[String; 7]> {
    let state = match queue.standing(name) {
        Standing::Held => "held",
        Standing::Behind(_) => "waiting",
        Standing::Gone => return None,
        // The numbers are used up: nobody is let in any more.
        Standing::UsedUp => "stuck",
    };
    let (identifier, since) = match reading {
        Reading::There(contender) => (contender.identifier.to_string(), date(contender.since).to_string()),
        Reading::Missing => return None,
        Reading::Forbidden => (NO_PERMISSION.to_owned(), NOTHING.to_owned()),
    };
    let (owner, text) = match ownership {
        Ownership::Owned(owner) => (Some(owner), "alive".to_owned()),
        Ownership::Orphaned { owner, since: Some(since), .. } => (owner.as_ref(), format!("orphaned since {}", date(*since))),
        Ownership::Orphaned { owner, since: None, .. } => (owner.as_ref(), "orphaned".to_owned()),
        Ownership::Unknown => (None, "unknown".to_owned()),
    };
    let (host, pid) = match owner {
        Some(Owner { host, pid, .. }) => (host.clone(), pid.map(|pid| pid.to_string())),
        None => (NOTHING.to_owned(), None),
    };
    let pid = pid.unwrap_or_else(|| NOTHING.to_owned());
    Some([state.to_owned(), identifier, host, pid, since, text, lock.node(name).to_string()])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::lock::{Contender, Identifier};

    #[test]
    fn a_row_says_whose_turn_it_is_and_whether_anybody_stands_behind_it() {
        let lock = LockPath::parse("/x").unwrap();
        let names = ["a__rlock__0000000001", "b__rlock__0000000002", "c__lock__0000000003", "d__lock__2147483647"];
        let queue = Queue::new(names);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_532_538_592);
        let owner =
            Owner { host: "h1".to_owned(), boot: "b".to_owned(), pid: Some(7), started: at, command: "true".to_owned() };
        let contender = || Reading::There(Contender { identifier: Identifier(b"it's\n".to_vec()), since: at, version: 0 });
        let row = |at: usize, reading, ownership: &Ownership| {
            row(&lock, &queue, &queue.contenders()[at], reading, ownership).map(|row| row.join("|"))
        };
        let (when, orphaned) =
            ("2018-07-25T17:09:52Z", |owner, since| Ownership::Orphaned { owner, since, abandon_after: None });
        for (number, ownership, cells) in [
            (0, Ownership::Owned(owner.clone()), format!("held|it's\\n|h1|7|{when}|alive|/x/{}", names[0])),
            (1, Ownership::Unknown, format!("held|it's\\n|-|-|{when}|unknown|/x/{}", names[1])),
            (
                2,
                orphaned(Some(Owner { pid: None, ..owner }), Some(at)),
                format!("waiting|it's\\n|h1|-|{when}|orphaned since {when}|/x/{}", names[2]),
            ),
            (3, orphaned(None, None), format!("stuck|it's\\n|-|-|{when}|orphaned|/x/{}", names[3])),
        ] {
            assert_eq!(row(number, contender(), &ownership), Some(cells));
        }
        assert_eq!(row(0, Reading::Missing, &Ownership::Unknown), None);
        let forbidden = row(0, Reading::Forbidden, &Ownership::Unknown).unwrap();
        assert_eq!(forbidden, format!("held|(no permission)|-|-|-|unknown|/x/{}", names[0]));
    }
}
