//! A tree of nodes, as far as a queue needs one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use crate::lock::{NodeName, Sequence};
use crate::store::ensemble::{Lasting, Node, Operation, Refusal, SessionId, Stat};

/// The nodes by their paths; the root is always there.
#[derive(Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    data: Vec<u8>,
    stat: Stat,
    /// How many children it ever had: the next one's number.
    entered: i64,
    /// Whose end ends it too.
    session: Option<SessionId>,
}

/// A change, decided: carried out by every server in the same order.
#[derive(Clone)]
pub enum Change {
    Create { path: String, data: Vec<u8>, session: Option<SessionId>, at: SystemTime },
    Delete(String),
    Set { path: String, data: Vec<u8>, at: SystemTime },
}

/// Without the random part of names, so that a run that is repeated looks the same.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Create { path, data, .. } => {
                write!(f, "{} is made: {}", short(path), String::from_utf8_lossy(data).lines().next().unwrap_or_default())
            }
            Change::Delete(path) => write!(f, "{} is deleted", short(path)),
            Change::Set { path, .. } => write!(f, "{} is written", short(path)),
        }
    }
}

/// A path with a contender's name cut to its number, and what begins as one without that beginning.
pub fn short(path: &str) -> String {
    let Some((front, name)) = path.rsplit_once('/') else { return path.to_owned() };
    match NodeName::parse(name) {
        Some(name) => format!("{front}/{}", name.sequence()),
        None if name.len() >= 32 => format!("{front}/…{}", &name[32..]),
        None => path.to_owned(),
    }
}

impl Tree {
    /// What an operation means now: its change, if it is one.
    pub fn change(&self, operation: Operation, session: SessionId) -> Result<Option<Change>, Refusal> {
        match operation {
            Operation::Create { path, .. } if self.nodes.contains_key(&path) => Err(Refusal::NodeExists),
            Operation::Create { path, data, lasting } => self.creation(path, data, lasting, session).map(Some),
            Operation::CreateNext { prefix, data, lasting } => {
                let entered = self.nodes.get(parent(&prefix)).ok_or(Refusal::NoNode)?.entered;
                self.creation(format!("{prefix}{}", Sequence::new(entered)), data, lasting, session).map(Some)
            }
            Operation::Delete { path, version } => self.deletion(&path, version).map(Some),
            Operation::Set { path, data, version } => {
                self.expect(&path, version)?;
                Ok(Some(Change::Set { path, data, at: SystemTime::now() }))
            }
            Operation::Check { path } => self.expect(&path, None).map(|_| None),
        }
    }

    fn creation(&self, path: String, data: Vec<u8>, lasting: Lasting, session: SessionId) -> Result<Change, Refusal> {
        if self.nodes.get(parent(&path)).ok_or(Refusal::NoNode)?.session.is_some() {
            return Err(Refusal::Other("ephemeral node can not have children".to_owned()));
        }
        let session = match lasting {
            Lasting::Persistent => None,
            Lasting::Ephemeral => Some(session),
        };
        Ok(Change::Create { path, data, session, at: SystemTime::now() })
    }

    fn expect(&self, path: &str, version: Option<i32>) -> Result<&Entry, Refusal> {
        let entry = self.nodes.get(path).ok_or(Refusal::NoNode)?;
        match version {
            Some(version) if version != entry.stat.version => Err(Refusal::BadVersion),
            Some(_) | None => Ok(entry),
        }
    }

    /// What is missing of a directory, from the top.
    pub fn directories(&self, path: &str) -> Vec<Change> {
        let ends = path.match_indices('/').skip(1).map(|(end, _)| end).chain([path.len()]);
        let missing = ends.map(|end| &path[..end]).filter(|directory| !self.nodes.contains_key(*directory));
        let create = |path: &str| Change::Create { path: path.to_owned(), data: vec![], session: None, at: SystemTime::now() };
        missing.map(create).collect()
    }

    /// What deleting a node means now.
    pub fn deletion(&self, path: &str, version: Option<i32>) -> Result<Change, Refusal> {
        self.expect(path, version)?;
        if self.children(path).is_ok_and(|children| !children.is_empty()) {
            return Err(Refusal::Other("node has not empty children".to_owned()));
        }
        Ok(Change::Delete(path.to_owned()))
    }

    /// The nodes that end with a session.
    pub fn bound_to(&self, session: SessionId) -> Vec<String> {
        let bound = self.nodes.iter().filter(|(_, entry)| entry.session == Some(session));
        oldest_first(bound.map(|(path, entry)| (path.as_str(), entry)))
    }

    pub fn apply(&mut self, change: &Change, zxid: u64) {
        match change {
            Change::Create { path, data, session, at } => {
                if let Some(parent) = self.nodes.get_mut(parent(path)) {
                    parent.entered += 1;
                }
                let stat = Stat { czxid: zxid, ctime: *at, mtime: *at, version: 0 };
                self.nodes.insert(path.clone(), Entry { data: data.clone(), stat, entered: 0, session: *session });
            }
            Change::Delete(path) => _ = self.nodes.remove(path),
            Change::Set { path, data, at } => {
                if let Some(entry) = self.nodes.get_mut(path) {
                    entry.data.clone_from(data);
                    (entry.stat.mtime, entry.stat.version) = (*at, entry.stat.version + 1);
                }
            }
        }
    }

    pub fn children(&self, path: &str) -> Result<Vec<String>, Refusal> {
        if path != "/" && !self.nodes.contains_key(path) {
            return Err(Refusal::NoNode);
        }
        let front = format!("{}/", path.trim_end_matches('/'));
        let below = self.nodes.range(front.clone()..).map_while(|(path, entry)| Some((path.strip_prefix(&front)?, entry)));
        Ok(oldest_first(below.filter(|(name, _)| !name.contains('/'))))
    }

    pub fn read(&self, path: &str) -> Result<Node, Refusal> {
        let entry = self.nodes.get(path).ok_or(Refusal::NoNode)?;
        Ok(Node { data: entry.data.clone(), stat: entry.stat })
    }

    pub fn stat(&self, path: &str) -> Option<Stat> {
        self.nodes.get(path).map(|entry| entry.stat)
    }
}

/// Names are random, and a run that is repeated is to be the same.
fn oldest_first<'t>(entries: impl Iterator<Item = (&'t str, &'t Entry)>) -> Vec<String> {
    let mut entries: Vec<_> = entries.map(|(name, entry)| (entry.stat.czxid, name.to_owned())).collect();
    entries.sort();
    entries.into_iter().map(|(_, name)| name).collect()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}
