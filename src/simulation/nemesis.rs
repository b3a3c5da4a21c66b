//! Who makes everything go wrong, and who cleans up after the dead.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::contender::{Command, Contender};
use super::judge::OPERATOR;
use super::{STORM, World};
use crate::lock::{
    Contender as Told, Expected, Limit, LockPath, Mark, NodeName, Ownership, Queue, Reading, SIDE_TREE, Store, StoreError,
    Testimony, id_of,
};
use crate::store::{ConnectionId, Memory, MemoryServers, TESTIMONY};

const OUTAGE: Duration = Duration::from_secs(20);
/// Longer than any session.
const SILENCE: Duration = Duration::from_secs(45);
/// Of the operator.
const ROUND: Duration = Duration::from_secs(10);

/// One thing after the other goes wrong, until it is over.
pub async fn storm(world: Rc<World>, contenders: Vec<Rc<Contender>>) {
    let end = Instant::now() + STORM;
    let pause = Duration::from_millis(200 + world.below(5000));
    while Instant::now() < end && !world.judge.borrow().is_over() {
        sleep(world.up_to(pause)).await;
        let one = &contenders[world.index(contenders.len())];
        match world.below(24) {
            0..3 => {
                world.log(|| "a connection is cut".to_owned());
                at_a_connection(&world, MemoryServers::cut);
            }
            3..5 => {
                let time = world.up_to(SILENCE);
                world.log(|| format!("a connection is silent for {time:?}"));
                at_a_connection(&world, |servers, connection| servers.silence(connection, time));
            }
            5 => {
                let (server, time) = (world.index(world.ensemble.server_count()), world.up_to(OUTAGE));
                world.log(|| format!("server {server} is down for {time:?}"));
                world.ensemble.at_the_servers(|servers| servers.crash(server, time));
            }
            6 | 16..18 => {
                let (server, time) = (world.index(world.ensemble.server_count()), world.up_to(OUTAGE));
                world.log(|| format!("server {server} is cut off for {time:?}"));
                world.ensemble.at_the_servers(|servers| servers.part(server, time));
            }
            7 => {
                let time = world.up_to(OUTAGE);
                world.log(|| format!("there is no leader for {time:?}"));
                world.ensemble.at_the_servers(|servers| servers.halt(time));
            }
            // It is not to be had by a lock that lives by its session that the leader keeps its word.
            8 if one.is_bound() => {}
            8 => {
                world.log(|| format!("the session of {} expires", one.number));
                world.ensemble.at_the_servers(|servers| servers.expire_one(one.client()));
            }
            9 => {
                world.log(|| format!("{} is asked to end", one.number));
                one.ask_to_end();
            }
            10 => one.kill(&world, Command::DiesToo),
            18 => one.kill(&world, Command::Survives),
            19..23 => {
                let time = world.up_to(SILENCE * 2);
                world.log(|| format!("{} reaches nobody for {time:?}", one.number));
                world.ensemble.at_the_servers(|servers| servers.cut_off(one.client(), time));
            }
            23 => _ = tokio::task::spawn_local(try_to_bury_somebody(Rc::clone(&world))),
            11..13 => {
                let time = world.up_to(SILENCE);
                world.log(|| format!("{} is frozen for {time:?}", one.number));
                one.freeze(&world, time);
            }
            13 => rob(&world),
            _ => {}
        }
    }
    world.ensemble.at_the_servers(MemoryServers::heal);
    world.judge.borrow_mut().is_calm();
}

fn at_a_connection(world: &World, work: impl FnOnce(&mut MemoryServers, ConnectionId)) {
    let connections = world.ensemble.at_the_servers(|servers| servers.connections());
    if !connections.is_empty() {
        let chosen = connections[world.index(connections.len())];
        world.ensemble.at_the_servers(|servers| work(servers, chosen));
    }
}

/// An operator removes a node, of whoever it is.
fn rob(world: &World) {
    let locks = world.judge.borrow().locks();
    for lock in locks {
        let directory = format!("/memory{lock}");
        let names = world.ensemble.at_the_servers(|servers| servers.children(&directory));
        if names.is_empty() {
            continue;
        }
        let name = &names[world.index(names.len())];
        let path = format!("{directory}/{name}");
        let data = world.ensemble.at_the_servers(|servers| servers.data(&path)).unwrap_or_default();
        world.ensemble.at_the_servers(|servers| servers.remove(&path));
        let identifier = String::from_utf8_lossy(&data);
        world.log(|| format!("somebody removes the node of {identifier} in {lock}"));
        world.judge.borrow_mut().is_robbed(&identifier);
        return;
    }
}

/// Operators and hosts look after what the dead have left, again and again.
pub async fn look_after(world: &World) {
    loop {
        sleep(ROUND).await;
        clean_up(world, Care::OfTheRest).await;
    }
}

/// Who is to be removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// Whom those who wait do not remove themselves.
    OfTheRest,
    OfEverybody,
}

/// Hosts that come back remove what their dead have left; of those that do not an operator does it, if nobody vouches for it.
pub async fn clean_up(world: &World, care: Care) {
    if !world.judge.borrow().excuses_anybody() {
        return;
    }
    let Ok(store) = world.ensemble.seen_by(OPERATOR).connect(Limit::Never, OUTAGE).await else { return };
    let locks = world.judge.borrow().locks();
    for lock in locks {
        let Ok((queue, told, owners)) = list(&store, &lock).await else { continue };
        for ((name, reading), owner) in queue.contenders().iter().zip(told).zip(owners) {
            let Reading::There(Told { identifier, version, .. }) = reading else { continue };
            let identifier = identifier.to_string();
            let (is_excused, is_lost, has_survived) = {
                let judge = world.judge.borrow();
                (judge.is_excused(&identifier), judge.is_lost(&identifier), judge.has_survived(&identifier))
            };
            let expected = match (is_excused && !has_survived, is_lost, owner) {
                (false, _, _) | (true, true, Ownership::Owned(_)) => continue,
                (true, true, Ownership::Orphaned { .. }) => {
                    let is_removed_by_others = Mark::of(version) == Mark::Waiting || has_promised(world, name);
                    if is_removed_by_others && care == Care::OfTheRest {
                        continue;
                    }
                    Expected::Orphaned(version)
                }
                (true, true, Ownership::Unknown) => Expected::Version(version),
                (true, false, _) => Expected::Anything,
            };
            let left = store.leave(&lock, name, expected).await.map_err(|_| "it failed");
            world.log(|| format!("{} of {identifier} is cleared: {expected:?}, {left:?}", name.sequence()));
        }
    }
    store.close().await;
}

async fn list(store: &Memory, lock: &LockPath) -> Result<(Queue, Vec<Reading>, Vec<Ownership>), StoreError> {
    let queue = store.contenders(lock).await?;
    let told = store.read(lock, queue.contenders()).await?;
    let owners = store.owners(lock, queue.contenders()).await?;
    Ok((queue, told, owners))
}

fn has_promised(world: &World, name: &NodeName) -> bool {
    let path = format!("/memory/{SIDE_TREE}/{}{TESTIMONY}", id_of(name).unwrap_or_default());
    let data = world.ensemble.at_the_servers(|servers| servers.data(&path));
    data.and_then(|data| Testimony::parse(&data)).is_some_and(|testimony| testimony.abandon_after.is_some())
}

/// An operator takes somebody for dead, and is right or not.
async fn try_to_bury_somebody(world: Rc<World>) {
    let Ok(store) = world.ensemble.seen_by(OPERATOR).connect(Limit::Never, OUTAGE).await else { return };
    let locks: Vec<_> = world.judge.borrow().locks().collect();
    let lock = &locks[world.index(locks.len())];
    if let Ok((queue, told, owners)) = list(&store, lock).await
        && !queue.contenders().is_empty()
    {
        let chosen = world.index(queue.contenders().len());
        if let Reading::There(Told { identifier, version, .. }) = &told[chosen] {
            let name = &queue.contenders()[chosen];
            let has_survived = world.judge.borrow().has_survived(&identifier.to_string());
            if owners[chosen] != Ownership::Unknown && !has_survived {
                let left = store.leave(lock, name, Expected::Orphaned(*version)).await.map_err(|_| "it failed");
                world.log(|| format!("an operator tries to bury {} of {identifier}: {left:?}", name.sequence()));
            }
        }
    }
    store.close().await;
}
