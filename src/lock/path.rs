//! Paths of locks and of the nodes in them, well formed because they exist.

use std::fmt;

use super::contender::NodeName;

/// The first segment that no path at the servers may have: ZooKeeper keeps its own nodes there.
const RESERVED_BY_ZOOKEEPER: &str = "zookeeper";
/// The side tree of this program, beside the locks of a chroot.
pub const SIDE_TREE: &str = ".syncd-spawn";

/// An absolute path: `/` alone, or segments that every store can hold.
///
/// What ZooKeeper would refuse with a bare "bad arguments", or answer with a confusing "no node", is refused here with the
/// position: empty and relative paths, `//`, `.` and `..`, control characters, private-use and non-BMP characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AbsolutePath(String);

/// The path of a lock, relative to the chroot: the directory in which the contenders queue. Whether it is ZooKeeper's own only
/// the chroot tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockPath(AbsolutePath);

/// A contender's node: the lock it stands in and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodePath {
    pub lock: LockPath,
    pub name: NodeName,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("it is empty")]
    Empty,
    #[error("it does not start with /")]
    Relative,
    #[error("it has an empty segment (//) at character {0}")]
    EmptySegment(usize),
    #[error("it has a segment {0:?}")]
    DotSegment(String),
    #[error("it has the character {character:?} at position {position}, which ZooKeeper refuses")]
    Character { character: char, position: usize },
    #[error("{0:?} is reserved")]
    Reserved(String),
    #[error("it names no lock, only the root")]
    Root,
    #[error("its last part is a contender's node, not a lock (unlock takes nodes)")]
    IsNode,
    #[error("its last part is no contender's node (…__lock__0000000000 or …__rlock__0000000000)")]
    NoNode,
}

impl AbsolutePath {
    pub const ROOT: &'static str = "/";

    /// Parses an absolute path; trailing slashes are dropped, so `/` and `//` are the root.
    pub fn parse(text: &str) -> Result<AbsolutePath, PathError> {
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if !text.starts_with('/') {
            return Err(PathError::Relative);
        }
        let path = text.trim_end_matches('/');
        if path.is_empty() {
            return Ok(AbsolutePath(Self::ROOT.to_owned()));
        }
        for (position, character) in path.chars().enumerate() {
            if is_refused(character) {
                return Err(PathError::Character { character, position: position + 1 });
            }
        }
        let mut position = 1;
        for segment in path[1..].split('/') {
            match segment {
                "" => return Err(PathError::EmptySegment(position)),
                "." | ".." => return Err(PathError::DotSegment(segment.to_owned())),
                _ => position += segment.chars().count() + 1,
            }
        }
        Ok(AbsolutePath(path.to_owned()))
    }

    pub fn is_root(&self) -> bool {
        self.0 == Self::ROOT
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This path with another absolute one below it.
    #[must_use]
    pub fn join(&self, below: &AbsolutePath) -> AbsolutePath {
        match (self.is_root(), below.is_root()) {
            (true, _) => below.clone(),
            (_, true) => self.clone(),
            (false, false) => AbsolutePath(format!("{}{}", self.0, below.0)),
        }
    }

    /// The first segment, if it belongs to ZooKeeper itself or to this program.
    pub fn reserved(&self) -> Option<&str> {
        Some(self.first_segment()).filter(|first| [RESERVED_BY_ZOOKEEPER, SIDE_TREE].contains(first))
    }

    fn first_segment(&self) -> &str {
        self.0[1..].split('/').next().unwrap_or_default()
    }

    fn split_last(&self) -> (&str, &str) {
        self.0.rsplit_once('/').expect("an absolute path has a slash")
    }
}

/// What `PathUtils.validatePath` of the server refuses, and what travels badly: everything outside the BMP.
fn is_refused(character: char) -> bool {
    matches!(character,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{10ffff}')
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl LockPath {
    pub fn parse(text: &str) -> Result<LockPath, PathError> {
        Self::new(AbsolutePath::parse(text)?)
    }

    fn new(path: AbsolutePath) -> Result<LockPath, PathError> {
        if path.is_root() {
            return Err(PathError::Root);
        }
        if path.first_segment() == SIDE_TREE {
            return Err(PathError::Reserved(format!("/{SIDE_TREE}")));
        }
        if NodeName::parse(path.split_last().1).is_some() {
            return Err(PathError::IsNode);
        }
        Ok(LockPath(path))
    }

    pub fn as_path(&self) -> &AbsolutePath {
        &self.0
    }

    pub fn node(&self, name: &NodeName) -> NodePath {
        NodePath { lock: self.clone(), name: name.clone() }
    }
}

impl fmt::Display for LockPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl NodePath {
    pub fn parse(text: &str) -> Result<NodePath, PathError> {
        let path = AbsolutePath::parse(text)?;
        let (lock, name) = path.split_last();
        let name = NodeName::parse(name).ok_or(PathError::NoNode)?;
        let lock = AbsolutePath::parse(lock).map_err(|_| PathError::Root)?;
        Ok(NodePath { lock: LockPath::new(lock)?, name })
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.lock, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> PathError {
        LockPath::parse(text).expect_err(text)
    }

    #[test]
    fn trailing_slashes_are_dropped() {
        for text in ["/a", "/a/", "/a///"] {
            assert_eq!(LockPath::parse(text).unwrap().to_string(), "/a");
        }
        assert_eq!(LockPath::parse("/é/b c").unwrap().to_string(), "/é/b c");
    }

    #[test]
    fn what_names_no_lock_is_refused_with_its_reason() {
        assert_eq!(refusal(""), PathError::Empty);
        assert_eq!(refusal("a/b"), PathError::Relative);
        assert_eq!(refusal("/"), PathError::Root);
        assert_eq!(refusal("//"), PathError::Root);
        assert_eq!(refusal("/a//b"), PathError::EmptySegment(4 - 1));
        assert_eq!(refusal("/a/./b"), PathError::DotSegment(".".into()));
        assert_eq!(refusal("/a/.."), PathError::DotSegment("..".into()));
        assert_eq!(refusal("/.syncd-spawn"), PathError::Reserved("/.syncd-spawn".into()));
    }

    #[test]
    fn characters_that_the_server_refuses_are_refused_with_their_position() {
        for character in ['\0', '\n', '\u{1f}', '\u{7f}', '\u{9f}', '\u{e000}', '\u{f8ff}', '\u{ffff}', '😀'] {
            assert_eq!(refusal(&format!("/a/b{character}")), PathError::Character { character, position: 5 });
        }
    }

    #[test]
    fn a_node_is_no_lock_and_a_lock_is_no_node() {
        let node = "/db/main/503e61fadc8f492497db823b87e64afe__rlock__0000000038";
        assert_eq!(refusal(node), PathError::IsNode);
        assert_eq!(NodePath::parse(node).unwrap().to_string(), node);
        assert_eq!(NodePath::parse("/db/main"), Err(PathError::NoNode));
        assert_eq!(NodePath::parse("/x__lock__0000000001"), Err(PathError::Root));
        assert_eq!(NodePath::parse("/db/x__lock__000000001"), Err(PathError::NoNode));
    }

    #[test]
    fn a_chroot_is_put_before_a_path_once() {
        let root = AbsolutePath::parse("/").unwrap();
        let devops = AbsolutePath::parse("/devops/").unwrap();
        let lock = AbsolutePath::parse("/a/b").unwrap();
        assert_eq!(root.join(&lock).as_str(), "/a/b");
        assert_eq!(devops.join(&lock).as_str(), "/devops/a/b");
        assert_eq!(devops.join(&root).as_str(), "/devops");
    }

    #[test]
    fn a_path_is_zookeepers_own_below_the_true_root_only() {
        let reserved = |chroot: &str, lock: &str| {
            let path = AbsolutePath::parse(chroot).unwrap().join(LockPath::parse(lock).unwrap().as_path());
            path.reserved().map(str::to_owned)
        };
        assert_eq!(reserved("/", "/zookeeper/x"), Some("zookeeper".into()));
        assert_eq!(reserved("/zookeeper", "/x"), Some("zookeeper".into()));
        for (chroot, lock) in [("/devops", "/zookeeper"), ("/", "/devops/zookeeper"), ("/", "/zookeepers")] {
            assert_eq!(reserved(chroot, lock), None, "{chroot} {lock}");
        }
    }
}
