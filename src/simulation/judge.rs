//! Who sees everything, and objects.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::lock::{Kind, LockPath, NodePath, Queue, SIDE_TREE, Standing, Testimony};
use crate::store::{MemoryEnsemble, MemoryServers, TESTIMONY};

pub struct Judge {
    ensemble: MemoryEnsemble,
    began: Instant,
    inside: BTreeMap<u64, Inside>,
    /// Whose nodes may be left: who died, or said that it could not remove them.
    excused: BTreeSet<String>,
    /// Of those, whose hosts never come back.
    lost: BTreeSet<String>,
    /// Of those, whose commands run on.
    survived: BTreeSet<String>,
    /// Whose node somebody removed.
    robbed: BTreeSet<String>,
    locks: BTreeSet<String>,
    /// Since when nothing goes wrong any more.
    calm_since: Option<Instant>,
    objection: Option<String>,
    log: Option<Vec<(Instant, String)>>,
}

struct Inside {
    identifier: String,
    client: u64,
    node: NodePath,
    lock: LockPath,
    kind: Kind,
    is_frozen: bool,
    /// Since when somebody has taken its node away, and it may not know yet.
    robbed_at: Option<Instant>,
    thawed_at: Instant,
}

/// The client that all operators and hosts are.
pub const OPERATOR: u64 = 0;
/// Everybody notices everything within this time, once it is calm.
const NOTICING: Duration = Duration::from_secs(25);

impl Judge {
    pub fn new(ensemble: MemoryEnsemble, is_logged: bool) -> Judge {
        // The same steps whether it is logged or not.
        ensemble.at_the_servers(|servers| {
            if is_logged {
                servers.write_notes();
            }
        });
        Judge {
            ensemble,
            began: Instant::now(),
            inside: BTreeMap::new(),
            excused: BTreeSet::new(),
            lost: BTreeSet::new(),
            survived: BTreeSet::new(),
            robbed: BTreeSet::new(),
            locks: BTreeSet::new(),
            calm_since: None,
            objection: None,
            log: is_logged.then(Vec::new),
        }
    }

    /// What happened, and what is to be said about it.
    pub fn verdict(self) -> (Vec<String>, Result<(), String>) {
        let mut log = self.log.unwrap_or_default();
        let notes = self.ensemble.at_the_servers(MemoryServers::take_notes);
        log.extend(notes.into_iter().map(|(at, note)| (at, format!("        {note}"))));
        log.sort_by_key(|(at, _)| *at);
        let line = |(at, text): (Instant, String)| format!("{:>9.3} {text}", (at - self.began).as_secs_f64());
        (log.into_iter().map(line).collect(), self.objection.map_or(Ok(()), Err))
    }

    pub fn log(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push((Instant::now(), text()));
        }
    }

    pub fn objects(&mut self, text: impl FnOnce() -> String) {
        let text = text();
        self.log(|| format!("OBJECTION: {text}"));
        self.objection.get_or_insert(text);
    }

    pub fn is_over(&self) -> bool {
        self.objection.is_some()
    }

    /// A command starts under this node.
    pub fn enters(&mut self, number: u64, client: u64, identifier: &str, node: &NodePath, kind: Kind) {
        self.log(|| format!("{number} enters as {}", node.name.sequence()));
        let (lock, directory) = (node.lock.clone(), format!("/memory{}", node.lock));
        let (names, (made, was_taken), with_our_name, was_robbed) = self.ensemble.at_the_servers(|servers| {
            let names = servers.children(&directory);
            let ours = |name: &&String| servers.data(&format!("{directory}/{name}")).as_deref() == Some(identifier.as_bytes());
            let with_our_name = names.iter().filter(ours).count();
            (
                names,
                {
                    let made = servers.made(identifier.as_bytes());
                    let is_taken = |path: &&str| servers.deletion(path).is_some_and(|deletion| deletion.client != client);
                    (made.len(), made.iter().any(is_taken))
                },
                with_our_name,
                servers.was_removed(&format!("{directory}/{}", node.name))
                    || servers.deletion(&format!("{directory}/{}", node.name)).is_some_and(|it| it.client == OPERATOR),
            )
        });
        let has_lost_a_place = self.robbed.contains(identifier)
            || was_taken
            || self.ensemble.at_the_servers(|servers| servers.has_lost_a_session(client));
        if !was_robbed {
            if Queue::new(&names).standing(&node.name) != Standing::Held {
                self.objects(|| format!("{number} enters {lock} though it is not its turn"));
            }
            if with_our_name != 1 {
                self.objects(|| format!("{number} enters {lock} with {with_our_name} nodes"));
            }
            if made != 1 && !has_lost_a_place {
                self.objects(|| format!("{number} lost its place: it made {made} nodes in {lock}"));
            }
        }
        self.inside.insert(
            number,
            Inside {
                identifier: identifier.to_owned(),
                client,
                node: node.clone(),
                lock,
                kind,
                is_frozen: false,
                robbed_at: was_robbed.then(Instant::now),
                thawed_at: Instant::now(),
            },
        );
        self.works(number);
    }

    /// Its command does something.
    pub fn works(&mut self, number: u64) {
        self.notices_what_was_taken(number);
        let Some(me) = self.inside.get(&number) else { return };
        let conflicts = |other: &Inside| me.kind == Kind::Exclusive || other.kind == Kind::Exclusive;
        let beside = self.inside.iter().find(|(other, inside)| {
            **other != number
                && inside.lock == me.lock
                && conflicts(inside)
                && !inside.is_frozen
                && inside.robbed_at.is_none()
                && me.robbed_at.is_none()
        });
        let has_noticed_nothing = match (me.robbed_at, self.calm_since) {
            (Some(robbed_at), Some(calm_since)) => robbed_at.max(calm_since).max(me.thawed_at).elapsed() > NOTICING,
            _ => false,
        };
        // Nobody is there to tell a command whose wrapper is dead.
        if has_noticed_nothing && !self.survived.contains(&me.identifier) {
            self.objects(|| format!("{number} works on, long after its node was removed"));
            return;
        }
        if let Some((other, Inside { lock, .. })) = beside {
            let text = format!("{number} works beside {other} under {lock}");
            self.objects(|| text);
        }
    }

    /// Those who stand behind it may take away what is nobody's; only an operator may do more.
    fn notices_what_was_taken(&mut self, number: u64) {
        let numbers: Vec<u64> = self.inside.keys().copied().collect();
        for other in numbers {
            let Some(inside) = self.inside.get_mut(&other) else { continue };
            let path = format!("/memory{}", inside.node);
            let Some(deletion) = self.ensemble.at_the_servers(|servers| servers.deletion(&path)) else { continue };
            if deletion.client == OPERATOR {
                inside.robbed_at.get_or_insert(deletion.at);
            } else if deletion.client != inside.client && other == number {
                self.objects(|| format!("{number} works under what {} has taken away", deletion.client));
            }
        }
    }

    pub fn leaves(&mut self, number: u64) {
        if self.inside.remove(&number).is_some() {
            self.log(|| format!("{number} has ended"));
        }
    }

    /// Its command was stopped because its session could not be confirmed.
    pub fn is_stopped(&mut self, number: u64, is_session_alive: bool) {
        if is_session_alive && self.calm_since.is_some_and(|since| since.elapsed() > NOTICING) {
            self.objects(|| format!("{number} was stopped for nothing: its session lives, and everybody answers"));
        }
    }

    pub fn is_calm(&mut self) {
        self.log(|| "it is calm from here on".to_owned());
        self.calm_since = Some(Instant::now());
    }

    pub fn freezes(&mut self, number: u64, is_frozen: bool) {
        if let Some(inside) = self.inside.get_mut(&number) {
            inside.is_frozen = is_frozen;
            inside.thawed_at = Instant::now();
        }
    }

    /// Somebody removes its node.
    pub fn is_robbed(&mut self, identifier: &str) {
        self.robbed.insert(identifier.to_owned());
        if let Some(inside) = self.inside.values_mut().find(|inside| inside.identifier == identifier) {
            inside.robbed_at.get_or_insert_with(Instant::now);
        }
    }

    /// It says that its node was removed while it waited.
    pub fn is_evicted(&mut self, number: u64, client: u64, node: &NodePath, is_owned: bool) {
        self.log(|| format!("{number} was evicted: {}", node.name.sequence()));
        let path = format!("/memory{}/{}", node.lock, node.name);
        let (was_removed, has_lost_a_session) =
            self.ensemble.at_the_servers(|servers| (servers.was_removed(&path), servers.has_lost_a_session(client)));
        let deletion = self.ensemble.at_the_servers(|servers| servers.deletion(&path)).filter(|it| it.client != client);
        if deletion.is_some_and(|deletion| deletion.was_marked && deletion.client != OPERATOR) {
            self.objects(|| format!("{number} was taken out though its marker was there"));
        }
        let is_gone =
            was_removed || is_owned && has_lost_a_session || deletion.is_some_and(|deletion| deletion.client == OPERATOR);
        if !is_gone {
            self.objects(|| format!("{number} says that its node {} was removed, which nobody did", node.name.sequence()));
        }
    }

    /// What is left of it may be left, for an operator to remove.
    pub fn excuses(&mut self, identifier: &str) {
        self.excused.insert(identifier.to_owned());
    }

    /// The host of who has died does not come back.
    pub fn loses(&mut self, identifier: &str) {
        self.lost.insert(identifier.to_owned());
    }

    pub fn is_lost(&self, identifier: &str) -> bool {
        self.lost.contains(identifier)
    }

    /// The command of who has died runs on, or has ended.
    pub fn survives(&mut self, identifier: &str, lives: bool) {
        match lives {
            true => _ = self.survived.insert(identifier.to_owned()),
            false => _ = self.survived.remove(identifier),
        }
    }

    pub fn has_survived(&self, identifier: &str) -> bool {
        self.survived.contains(identifier)
    }

    pub fn is_inside(&self, number: u64) -> bool {
        self.inside.contains_key(&number)
    }

    /// Whether somebody else removed that node.
    pub fn was_taken(&self, client: u64, node: &NodePath) -> bool {
        let path = format!("/memory{node}");
        self.ensemble.at_the_servers(|servers| {
            servers.was_removed(&path) || servers.deletion(&path).is_some_and(|deletion| deletion.client != client)
        })
    }

    pub fn is_excused(&self, identifier: &str) -> bool {
        self.excused.contains(identifier)
    }

    pub fn excuses_anybody(&self) -> bool {
        !self.excused.is_empty()
    }

    pub fn knows(&mut self, lock: &LockPath) {
        self.locks.insert(lock.to_string());
    }

    pub fn locks(&self) -> impl Iterator<Item = LockPath> + use<> {
        self.locks.clone().into_iter().map(|lock| LockPath::parse(&lock).expect("it was one"))
    }

    /// It has come to its end: nothing of it is left, unless it said so.
    pub fn ends(&mut self, number: u64, client: u64, identifier: &str, lock: &LockPath) {
        if self.is_excused(identifier) {
            return;
        }
        if self.told().iter().any(|(_, testimony)| testimony.owner.pid.map(u64::from) == Some(client)) {
            self.objects(|| format!("{number} has ended and left what it told of itself"));
        }
        let left = self.left(lock).into_iter().filter(|(_, data)| data == identifier.as_bytes()).count();
        if left != 0 {
            self.objects(|| format!("{number} has ended and left {left} nodes in {lock}"));
        }
    }

    pub fn looks_at_what_is_left(&mut self) {
        for lock in self.locks() {
            let left = self.left(&lock);
            if !left.is_empty() {
                let owners: Vec<_> = left.iter().map(|(_, data)| String::from_utf8_lossy(data)).collect();
                self.objects(|| format!("at the end there is something of {owners:?} in {lock}"));
            }
        }
        // What the dead have told stays where somebody removed their nodes by hand, until the next one waits for that lock.
        let by_hand: String = self.ensemble.at_the_servers(|servers| servers.removed().collect());
        let left: Vec<_> =
            self.told().into_iter().filter(|(id, _)| !by_hand.contains(id)).map(|(_, it)| it.owner.pid).collect();
        if !left.is_empty() {
            self.objects(|| format!("at the end there is what {left:?} told of themselves"));
        }
        let marked: Vec<_> = self.beside().into_iter().filter(|name| name.strip_suffix(TESTIMONY).is_none()).collect();
        if !marked.is_empty() {
            self.objects(|| format!("at the end there are {} markers", marked.len()));
        }
    }

    fn beside(&self) -> Vec<String> {
        self.ensemble.at_the_servers(|servers| servers.children(&format!("/memory/{SIDE_TREE}")))
    }

    /// What is known of owners, by the ids of their contenders.
    fn told(&self) -> Vec<(String, Testimony)> {
        let of = |name: String| {
            let data = self.ensemble.at_the_servers(|servers| servers.data(&format!("/memory/{SIDE_TREE}/{name}")))?;
            Some((name.strip_suffix(TESTIMONY)?.to_owned(), Testimony::parse(&data)?))
        };
        self.beside().into_iter().filter_map(of).collect()
    }

    fn left(&self, lock: &LockPath) -> Vec<(String, Vec<u8>)> {
        let directory = format!("/memory{lock}");
        self.ensemble.at_the_servers(|servers| {
            let data = |name: String| {
                let data = servers.data(&format!("{directory}/{name}")).unwrap_or_default();
                (name, data)
            };
            servers.children(&directory).into_iter().map(data).collect()
        })
    }
}
