//! Who makes everything go wrong, and who cleans up after the dead.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::contender::Contender;
use super::{STORM, World};
use crate::lock::{Expected, Limit, Reading, Store};
use crate::store::{ConnectionId, MemoryServers};

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
        match world.below(18) {
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
            10 => one.kill(),
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

/// An operator looks after what the dead have left, again and again.
pub async fn look_after(world: &World) {
    loop {
        sleep(ROUND).await;
        clean_up(world).await;
    }
}

/// An operator unlocks what the dead have left.
pub async fn clean_up(world: &World) {
    if !world.judge.borrow().excuses_anybody() {
        return;
    }
    let Ok(store) = world.ensemble.seen_by(0).connect(Limit::Never, OUTAGE).await else { return };
    let locks = world.judge.borrow().locks();
    for lock in locks {
        let Ok(queue) = store.contenders(&lock).await else { continue };
        let Ok(readings) = store.read(&lock, queue.contenders()).await else { continue };
        for (name, reading) in queue.contenders().iter().zip(readings) {
            let Reading::There(contender) = reading else { continue };
            let identifier = contender.identifier.to_string();
            if world.judge.borrow().is_excused(&identifier) {
                let left = store.leave(&lock, name, Expected::Version(contender.version)).await;
                let left = left.map_err(|_| "it failed");
                world.log(|| format!("the operator unlocks {} of {identifier}: {left:?}", name.sequence()));
            }
        }
    }
    store.close().await;
}
