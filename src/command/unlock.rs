//! `unlock`: removes nodes, if the identifier agrees; or only those that nobody stands behind.

use std::slice;

use tracing::{info, warn};

use super::record::look_up;
use super::{Address, Context, Suspect, Unless, Unlocking, say_what_is_left};
use crate::error::Error;
use crate::exit;
use crate::journal::{Family, Life};
use crate::local::{boot, host};
use crate::lock::{Expected, Identifier, Limit, LockPath, NodePath, Owner, Ownership, Reading, Removal, Store, StoreError};
use crate::report;

pub async fn unlock<S: Store>(
    store: &S,
    unlocking: &Unlocking,
    identifier: Option<&Identifier>,
    limit: Limit,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let mut unlock = Unlock { store, identifier, limit, context };
    match unlock.all(unlocking).await {
        Ok(true) => Ok(exit::Result::Done),
        Ok(false) => Ok(exit::Result::No),
        Err(Stop::Asked(signal)) => Ok(exit::Result::Interrupted(signal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

struct Unlock<'u, 'r, S> {
    store: &'u S,
    identifier: Option<&'u Identifier>,
    limit: Limit,
    context: &'u mut Context<'r>,
}

/// What became of a node.
enum Fate {
    Removed,
    /// It was not there, or not any more.
    Missing,
    /// It stays, and it was said why.
    Refused,
}

/// Why nothing more is done.
enum Stop {
    Asked(i32),
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.into())
    }
}

impl<S: Store> Unlock<'_, '_, S> {
    /// Says whether everything was as it was asked for.
    async fn all(&mut self, unlocking: &Unlocking) -> Result<bool, Stop> {
        let mut is_done = true;
        match unlocking {
            Unlocking::Nodes(nodes) => {
                for node in nodes {
                    let fate = self.release(node).await?;
                    is_done &= self.is_removed(node, &fate);
                }
            }
            Unlocking::IfDead(suspects) => {
                for suspect in suspects {
                    is_done &= match suspect {
                        Suspect::Node(node) => {
                            let fate = self.bury(node).await?;
                            self.is_removed(node, &fate)
                        }
                        Suspect::Lock(lock) => self.bury_all(lock).await?,
                    };
                }
            }
        }
        Ok(is_done)
    }

    /// For a node that was asked for by its name.
    fn is_removed(&self, node: &NodePath, fate: &Fate) -> bool {
        if let Fate::Missing = fate {
            self.context.voice.tell_no_such_lock(node);
        }
        matches!(fate, Fate::Removed)
    }

    /// Removes a node, whoever stands behind it.
    async fn release(&mut self, node: &NodePath) -> Result<Fate, Stop> {
        loop {
            let read = self.context.look(self.limit, self.store.read(&node.lock, slice::from_ref(&node.name))).await?;
            let expected = match finished(read)??.pop() {
                Some(Reading::Missing) | None => return Ok(Fate::Missing),
                Some(reading) => match self.version(node, &reading) {
                    Ok(Some(version)) => Expected::Version(version),
                    // Who may delete a node need not be allowed to read it.
                    Ok(None) => Expected::Anything,
                    Err(fate) => return Ok(fate),
                },
            };
            match self.remove(node, expected).await? {
                Removal::Removed | Removal::LeftToSession => return Ok(Fate::Removed),
                Removal::Missing => return Ok(Fate::Missing),
                // Whoever waits writes his own node when he begins to, and when he comes to his turn.
                Removal::Changed => info!("{node} has changed: looking again"),
            }
        }
    }

    /// Removes a node that nobody stands behind any more.
    async fn bury(&mut self, node: &NodePath) -> Result<Fate, Stop> {
        let (store, name) = (self.store, slice::from_ref(&node.name));
        let looked = self.context.look(self.limit, async {
            let readings = store.read(&node.lock, name).await?;
            let owners = store.owners(&node.lock, name).await?;
            Ok(readings.into_iter().zip(owners).next())
        });
        let (reading, ownership) = match finished(looked.await?)?? {
            None | Some((Reading::Missing, _)) => return Ok(Fate::Missing),
            Some(found) => found,
        };
        let version = match self.version(node, &reading) {
            Ok(Some(version)) => version,
            Ok(None) => return Ok(refused(&format!("{node} may not be read, so nothing tells whether its owner lives"))),
            Err(fate) => return Ok(fate),
        };
        let owner = match ownership {
            Ownership::Owned(owner) => return Ok(refused(&format!("{node}: its owner lives: {owner}"))),
            Ownership::Unknown => {
                return Ok(refused(&format!(
                    "{node}: nothing tells whether its owner lives; unlock without --if-dead removes it"
                )));
            }
            Ownership::Orphaned { owner, .. } => owner,
        };
        if let Some(objection) = self.objection(node, owner.as_ref()).await? {
            return Ok(refused(&format!("{node}: {objection}")));
        }
        Ok(match self.remove(node, Expected::Orphaned(version)).await? {
            Removal::Removed | Removal::LeftToSession => Fate::Removed,
            Removal::Missing => Fate::Missing,
            Removal::Changed => refused(&format!("{node} has changed meanwhile: its owner may be back")),
        })
    }

    /// Removes everybody from a lock whom nobody stands behind. Says whether none is left.
    async fn bury_all(&mut self, lock: &LockPath) -> Result<bool, Stop> {
        let store = self.store;
        let looked = self.context.look(self.limit, async {
            let queue = store.contenders(lock).await?;
            let owners = store.owners(lock, queue.contenders()).await?;
            Ok((queue, owners))
        });
        let (queue, owners) = match finished(looked.await?)? {
            Err(StoreError::NoLock(_)) => {
                self.context.voice.tell_no_such_lock(lock);
                return Ok(false);
            }
            found => found?,
        };
        let mut is_done = true;
        for (name, ownership) in queue.contenders().iter().zip(owners) {
            let Ownership::Orphaned { owner, .. } = ownership else { continue };
            let node = lock.node(name);
            match self.bury(&node).await? {
                Fate::Removed => {
                    let owner = owner.map(|owner| format!(" ({owner})")).unwrap_or_default();
                    warn!("removed {node}: its owner{owner} is dead or cut off");
                }
                Fate::Missing => {}
                Fate::Refused => is_done = false,
            }
        }
        Ok(is_done)
    }

    /// The version of a node that may be removed, if it may be read; or why it must not be.
    fn version(&self, node: &NodePath, reading: &Reading) -> Result<Option<i32>, Fate> {
        match (reading, self.identifier) {
            (Reading::There(contender), Some(identifier)) if contender.identifier != *identifier => {
                self.context.voice.tell_not_yours(node, &contender.identifier);
                Err(Fate::Refused)
            }
            (Reading::There(contender), _) => Ok(Some(contender.version)),
            (Reading::Forbidden, Some(_)) => Err(refused(&format!("{node}: its identifier may not be read"))),
            (Reading::Forbidden, None) => Ok(None),
            (Reading::Missing, _) => Err(Fate::Missing),
        }
    }

    async fn remove(&mut self, node: &NodePath, expected: Expected) -> Result<Removal, Stop> {
        match self.context.leave(self.limit, self.store, node, expected).await? {
            Unless::Done(Ok(removal)) => Ok(removal),
            Unless::Done(Err(error)) => {
                say_what_is_left(self.context.address, &error);
                Err(error.into())
            }
            Unless::AskedToEnd(signal) => {
                report::error(&format_args!("{node} may have been removed, or not"), None);
                Err(Stop::Asked(signal))
            }
        }
    }

    /// What speaks against removing a node that nobody vouches for: that something runs on this host which could work under it.
    async fn objection(&mut self, node: &NodePath, owner: Option<&Owner>) -> Result<Option<String>, Stop> {
        let family = match self.context.address {
            Address::ZooKeeper { .. } => Family::of(&node.name),
            // The kernel has said that everybody is dead.
            Address::Directory { .. } => None,
        };
        let Some(family) = family else { return Ok(None) };
        let looking = look_up(self.context.state_dir, family);
        let looked = finished(self.context.unless_asked_to_end(looking).await?)?;
        let is_of_this_boot = owner.is_some_and(|owner| owner.host == host() && owner.boot == boot());
        Ok(match looked {
            Ok(Some(Life::Living)) => Some("its owner, or what that has started, still runs on this host".to_owned()),
            Ok(Some(Life::Foreign { user })) => Some(format!(
                "its entry in this host's journal belongs to user {user}: nobody else can tell whether it still runs"
            )),
            Ok(Some(Life::Garbled(error))) => Some(format!("its entry in this host's journal is not usable: {error}")),
            Ok(Some(Life::Dead(_) | Life::Gone | Life::Elsewhere | Life::Stranger) | None) => None,
            Err(trouble) if is_of_this_boot => Some(format!("{trouble}: nothing tells whether it still runs on this host")),
            Err(trouble) => {
                info!("{trouble}");
                None
            }
        })
    }
}

fn finished<T>(looked: Unless<T>) -> Result<T, Stop> {
    match looked {
        Unless::Done(found) => Ok(found),
        Unless::AskedToEnd(signal) => Err(Stop::Asked(signal)),
    }
}

fn refused(why: &str) -> Fate {
    report::error(&why, None);
    Fate::Refused
}
