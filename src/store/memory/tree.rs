//! A tree of nodes, as far as a queue needs one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use crate::lock::{NodeName, Sequence};
use crate::store::ensemble::{Lasting, Node, Refusal, SessionId, Stat};

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
}

/// Without the random part of names, so that a run that is repeated looks the same.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Create { path, data, .. } => write!(f, "{} is made: {}", short(path), String::from_utf8_lossy(data)),
            Change::Delete(path) => write!(f, "{} is deleted", short(path)),
        }
    }
}

/// A path with a contender's name cut to its number.
pub fn short(path: &str) -> String {
    match path.rsplit_once('/').and_then(|(front, name)| Some((front, NodeName::parse(name)?))) {
        Some((front, name)) => format!("{front}/{}", name.sequence()),
        None => path.to_owned(),
    }
}

impl Tree {
    /// What creating the next child with this prefix means now.
    pub fn sequential(
        &self,
        prefix: &str,
        data: &[u8],
        lasting: Lasting,
        session: SessionId,
    ) -> Result<(String, Change), Refusal> {
        let parent = self.nodes.get(parent(prefix)).ok_or(Refusal::NoNode)?;
        if parent.session.is_some() {
            return Err(Refusal::Other("ephemeral node can not have children".to_owned()));
        }
        let path = format!("{prefix}{}", Sequence::new(parent.entered));
        let session = match lasting {
            Lasting::Persistent => None,
            Lasting::Ephemeral => Some(session),
        };
        let change = Change::Create { path: path.clone(), data: data.to_vec(), session, at: SystemTime::now() };
        Ok((path, change))
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
        let entry = self.nodes.get(path).ok_or(Refusal::NoNode)?;
        match version {
            Some(version) if version != entry.stat.version => Err(Refusal::BadVersion),
            Some(_) | None if self.children(path).is_ok_and(|children| !children.is_empty()) => {
                Err(Refusal::Other("node has not empty children".to_owned()))
            }
            Some(_) | None => Ok(Change::Delete(path.to_owned())),
        }
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
                let stat = Stat { czxid: zxid, ctime: *at, version: 0 };
                self.nodes.insert(path.clone(), Entry { data: data.clone(), stat, entered: 0, session: *session });
            }
            Change::Delete(path) => _ = self.nodes.remove(path),
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
