//! The words: who stands in a queue, and what its node is called.

use std::fmt;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::owner::Owner;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `lock`, a mutex: alone, and excluding readers too.
    Lock,
    /// `rlock`: together with other readers.
    Read,
    /// `wlock`: alone.
    Write,
}

impl Mode {
    pub fn kind(self) -> Kind {
        match self {
            Mode::Lock | Mode::Write => Kind::Exclusive,
            Mode::Read => Kind::Shared,
        }
    }

    /// The word that asks for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Lock => "lock",
            Mode::Read => "rlock",
            Mode::Write => "wlock",
        }
    }
}

/// What a contender can be seen to be: `lock` and `wlock` look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Exclusive,
    Shared,
}

impl Kind {
    /// The mark in a node's name, which is kazoo's.
    pub fn mark(self) -> &'static str {
        match self {
            Kind::Exclusive => "__lock__",
            Kind::Shared => "__rlock__",
        }
    }
}

/// A place in the queue: the number that ZooKeeper put behind the name.
///
/// ZooKeeper counts in 32 bits with a sign. At the end 3.8 sticks at 2147483647, or turns negative where creates were
/// pipelined; from there on numbers no longer tell who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(i64);

impl Sequence {
    const LAST: i64 = i32::MAX as i64;
    const NEARLY_LAST: i64 = Self::LAST - (1 << 20);

    pub fn new(number: i64) -> Sequence {
        Sequence(number)
    }

    pub fn number(self) -> i64 {
        self.0
    }

    /// Whether order by number has ended: at the last number, or past it.
    pub fn is_used_up(self) -> bool {
        self.0 < 0 || self.0 >= Self::LAST
    }

    /// Whether the end is near enough to warn somebody.
    pub fn is_nearly_used_up(self) -> bool {
        self.0 >= Self::NEARLY_LAST
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}", self.0)
    }
}

/// The name of a contender's node: a prefix that is never used twice, the mark of its kind, its sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeName {
    text: String,
    kind: Kind,
    sequence: Sequence,
}

impl NodeName {
    /// Parses a name; `None` is a stranger, listed but never waited for.
    ///
    /// A negative number is a contender too (past the end of the numbers), so that it is seen and refused.
    pub fn parse(text: &str) -> Option<NodeName> {
        let digits = text.len() - text.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (front, number) = match text[..digits].strip_suffix('-') {
            Some(front) if (9..=10).contains(&(text.len() - digits)) => (front, &text[front.len()..]),
            Some(_) | None if text.len() - digits == 10 => (&text[..digits], &text[digits..]),
            Some(_) | None => return None,
        };
        let kind = [Kind::Shared, Kind::Exclusive].into_iter().find(|kind| front.ends_with(kind.mark()))?;
        let sequence = Sequence(number.parse().ok()?);
        Some(NodeName { text: text.to_owned(), kind, sequence })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn sequence(&self) -> Sequence {
        self.sequence
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Grows with every contender of a store, so that what a lock protects can refuse a holder that came too late.
///
/// ZooKeeper: the node's creation zxid. Not the sequence, which restarts when the lock's directory is deleted. A directory:
/// the clock's microseconds, or one more than the last token where that is higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FencingToken(pub u64);

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a person reads of a contender: bytes, kept as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identifier(pub Vec<u8>);

impl Identifier {
    /// ZooKeeper closes the connection on a request of a megabyte; nobody reads an identifier that long.
    pub const LONGEST: usize = 64 * 1024;

    /// As it is shown, cut where that is longer than a message has room for.
    pub fn brief(&self) -> String {
        let mut text = self.to_string();
        if text.len() > LONGEST_IN_A_MESSAGE {
            text.truncate(text.floor_char_boundary(LONGEST_IN_A_MESSAGE));
            text.push_str("...");
        }
        text
    }
}

const LONGEST_IN_A_MESSAGE: usize = 1024;

/// Invalid UTF-8 and control characters are escaped, so that one identifier stays on one line.
impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// How long a contender lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the run that it stands for, where the store can tell.
    Spawned,
    /// The same; and the owner promises that nobody works under it any more once it was cut off from every server for so long.
    /// Whoever works under it has to be told so long before.
    Promised { after: Duration, notice: Duration },
    /// It belongs to nobody, and stays until somebody removes it.
    Explicit,
    /// As long as the session that made it, where the store has sessions; elsewhere as long as the run. Whoever works under
    /// it has to be told so long before the session can have expired.
    Session { notice: Duration },
}

/// A wish to stand in a queue.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Makes the node's name unique, so that a create whose answer was lost can be found again (kazoo's trick, and Curator's).
    pub id: Uuid,
    pub mode: Mode,
    pub lifetime: Lifetime,
    pub identifier: Identifier,
    /// Who stands behind it, for all who want to know; nobody does behind one that outlives its run.
    pub owner: Option<Owner>,
}

/// The last digits of a claim's id count how often it was renewed; the others are random.
const COUNTER: u128 = 0xffff;

impl Claim {
    pub fn new(mode: Mode, lifetime: Lifetime, identifier: Identifier) -> Claim {
        Claim { id: Uuid::new_v4(), mode, lifetime, identifier, owner: None }
    }

    #[must_use]
    pub fn owned_by(self, owner: Owner) -> Claim {
        Claim { owner: Some(owner), ..self }
    }

    /// The same wish under a name that was never used: the next of its family.
    #[must_use]
    pub fn renewed(&self) -> Claim {
        let id = self.id.as_u128();
        let next = id & !COUNTER | id.wrapping_add(1) & COUNTER;
        Claim { id: Uuid::from_u128(next), ..self.clone() }
    }

    /// What all names that this wish ever has begin with, and nobody else's: so whatever is left of it can be found by one word.
    pub fn family(&self) -> String {
        format!("{:.28}", self.id.simple().to_string())
    }

    /// The node's name but for the sequence.
    pub fn prefix(&self) -> String {
        format!("{}{}", self.id.simple(), self.mode.kind().mark())
    }
}

/// Where a claim got its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub name: NodeName,
    pub token: FencingToken,
}

/// Somebody in the queue, as far as it tells about itself.
#[derive(Clone, Debug)]
pub struct Contender {
    pub identifier: Identifier,
    /// When it entered, by the store's clock.
    pub since: SystemTime,
    /// The version of what was read, for a removal that must not hit anything newer.
    pub version: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kazoos() {
        let name = NodeName::parse("503e61fadc8f492497db823b87e64afe__rlock__0000000038").unwrap();
        assert_eq!((name.kind(), name.sequence().number()), (Kind::Shared, 38));
        let name = NodeName::parse("9d2badeec7684f35b10f4860db42e45c__lock__2147483646").unwrap();
        assert_eq!((name.kind(), name.sequence().number()), (Kind::Exclusive, 2_147_483_646));
        let claim = Claim::new(Mode::Write, Lifetime::Spawned, Identifier::default());
        let name = NodeName::parse(&format!("{}{}", claim.prefix(), Sequence(7))).unwrap();
        assert_eq!((name.kind(), name.sequence().number()), (Kind::Exclusive, 7));
        assert_eq!(name.as_str().len(), "503e61fadc8f492497db823b87e64afe__lock__0000000007".len());
    }

    #[test]
    fn a_renewed_claim_has_a_name_of_its_own_in_the_same_family() {
        let first = Claim::new(Mode::Lock, Lifetime::Spawned, Identifier::default());
        for id in [first.id, Uuid::from_u128(first.id.as_u128() | COUNTER)] {
            let claim = Claim { id, ..first.clone() };
            let renewed = claim.renewed();
            assert_ne!(renewed.prefix(), claim.prefix());
            assert_eq!(renewed.family(), claim.family());
            assert!(renewed.prefix().starts_with(&claim.family()));
            assert_eq!((claim.family().len(), renewed.id.get_version_num()), (28, 4));
        }
    }

    #[test]
    fn what_ends_in_neither_mark_and_ten_digits_is_a_stranger() {
        for text in [
            "",
            "0000000001",
            "_c_1c5f-lock-0000000001",
            "x__READ__0000000001",
            "x__lock__000000001",
            "x__lock__00000000001",
            "x__lock__0000000001 ",
            "x__lock__000000000a",
            "x__lock__0000000001/y",
            "x__lock__-1",
            "é",
        ] {
            assert_eq!(NodeName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_past_the_end_are_seen() {
        for text in ["x__lock__2147483647", "x__lock__-2147483648", "x__rlock__-000000001", "x__lock__9999999999"] {
            assert!(NodeName::parse(text).unwrap().sequence().is_used_up(), "{text}");
        }
        assert!(!Sequence(2_147_483_646).is_used_up());
        assert!(Sequence(2_147_483_646).is_nearly_used_up());
        assert!(!Sequence(2_000_000_000).is_nearly_used_up());
    }

    #[test]
    fn an_identifier_stays_on_its_line_whatever_its_bytes() {
        assert_eq!(Identifier(b"it's \xff\nme \xc3\xa9".to_vec()).to_string(), "it's \\xff\\nme é");
    }
}
