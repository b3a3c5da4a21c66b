//! What a contender's owner tells about itself, and what that says about whether it lives.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::contender::{Identifier, NodeName};
use super::path::LockPath;
use crate::clock::date;

const VERSION: &str = "syncd-spawn-owner 1";
/// As much of a command as anybody reads, in bytes.
const LONGEST_COMMAND: usize = 1024;

/// Who stands behind a contender. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub host: String,
    /// The host's boot: a process id means nothing after the next one.
    pub boot: String,
    /// Where it can be told.
    pub pid: Option<u32>,
    pub started: SystemTime,
    /// What is run, without its arguments.
    pub command: String,
}

/// What an owner has its store keep about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Testimony {
    pub lock: LockPath,
    pub owner: Owner,
    /// Cut off from every server for that long, the owner has stopped its command: so it has promised.
    pub abandon_after: Option<Duration>,
    /// Whether somebody has found that nobody vouches for it any more.
    pub is_orphaned: bool,
}

/// Whether somebody stands behind a contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Its owner lives, or did a session's timeout ago.
    Owned(Owner),
    /// Its owner no longer vouches for it: it is dead, or cut off. What it has started may yet run.
    Orphaned {
        owner: Option<Owner>,
        /// When that was first found, if it was before.
        since: Option<SystemTime>,
        /// After so long its command is stopped, as it has promised, and whoever stands behind it removes it.
        abandon_after: Option<Duration>,
    },
    /// It tells nothing of an owner: it is lockpick's, kazoo's, or was locked by hand.
    Unknown,
}

/// Where it runs, for a person who looks for it.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = Identifier(self.host.clone().into_bytes());
        match self.pid {
            Some(pid) => write!(f, "pid {pid} on {host}"),
            None => write!(f, "on {host}"),
        }
    }
}

impl Owner {
    /// What is run, cut to what is read of it.
    #[must_use]
    pub fn with_command(self, command: &[u8]) -> Owner {
        let mut command = Identifier(command.to_vec()).to_string();
        command.truncate(command.floor_char_boundary(LONGEST_COMMAND));
        Owner { command, ..self }
    }
}

impl Testimony {
    /// As it is written; `None` if that is not known here.
    pub fn parse(text: &[u8]) -> Option<Testimony> {
        let text = std::str::from_utf8(text).ok()?;
        let lines = text.strip_prefix(VERSION)?.strip_prefix('\n')?;
        let of = |key: &str| lines.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        let owner = Owner {
            host: of("host")?.to_owned(),
            boot: of("boot")?.to_owned(),
            pid: match of("pid") {
                Some(text) => Some(text.parse().ok()?),
                None => None,
            },
            started: humantime::parse_rfc3339(of("started")?).ok()?,
            command: of("command")?.to_owned(),
        };
        Some(Testimony {
            lock: LockPath::parse(of("lock")?).ok()?,
            owner,
            abandon_after: match of("abandon-after") {
                Some(text) => Some(humantime::parse_duration(text).ok()?),
                None => None,
            },
            is_orphaned: of("orphaned").is_some(),
        })
    }
}

/// Lines of a key and a value, the version first.
impl fmt::Display for Testimony {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Testimony { lock, owner: Owner { host, boot, pid, started, command }, abandon_after, is_orphaned } = self;
        let started = date(*started);
        write!(f, "{VERSION}\nlock {lock}\nhost {host}\nboot {boot}\n")?;
        if let Some(pid) = pid {
            writeln!(f, "pid {pid}")?;
        }
        write!(f, "started {started}\ncommand {command}\n")?;
        if let Some(time) = abandon_after {
            writeln!(f, "abandon-after {}", humantime::format_duration(*time))?;
        }
        match is_orphaned {
            true => f.write_str("orphaned yes\n"),
            false => Ok(()),
        }
    }
}

/// What the version of a contender's node says. Nodes of others are never written again, so theirs stays 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It may hold, wait, or be no node of ours.
    None,
    /// Odd: it waits. Whoever removes it must find that very version: it may have come to its turn.
    Waiting,
    /// Even: it holds, or is about to.
    Holding,
}

impl Mark {
    pub fn of(version: i32) -> Mark {
        match version {
            0 => Mark::None,
            odd if odd % 2 != 0 => Mark::Waiting,
            _ => Mark::Holding,
        }
    }
}

/// What whoever stands behind an orphan may do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It only waited, so nothing runs under it: remove it.
    Bury,
    /// Its command is stopped once nobody has vouched for it for this long.
    BuryAfter(Duration),
    /// What it has started may run: its host or an operator must say that it does not.
    Leave,
}

/// The rule for one that nobody vouches for.
pub fn verdict(mark: Mark, abandon_after: Option<Duration>) -> Verdict {
    match (mark, abandon_after) {
        (Mark::Waiting, _) => Verdict::Bury,
        (Mark::None | Mark::Holding, Some(time)) => Verdict::BuryAfter(with_margin(time)),
        (Mark::None | Mark::Holding, None) => Verdict::Leave,
    }
}

/// For two clocks that do not run alike, and for a kill that takes its time on a busy host.
fn with_margin(time: Duration) -> Duration {
    time.saturating_add(time / 8).saturating_add(Duration::from_secs(1))
}

/// What tells a contender's marker from others': the part of its name that is never used twice. Only names of ours have one.
pub fn id_of(name: &NodeName) -> Option<&str> {
    let id = name.as_str().split("__").next()?;
    let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (id.len() == 32 && id.bytes().all(is_digit)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "syncd-spawn-owner 1\nlock /a b/c\nhost some.host\nboot 0b5d2b4e-51bb-4b9b-8f0d-1b1d6f3c1c11\n\
                        pid 4711\nstarted 2018-07-25T17:09:52Z\ncommand sleep 5\n";

    #[test]
    fn what_was_written_is_read_again() {
        let testimony = Testimony::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(testimony.to_string(), TEXT);
        assert_eq!((testimony.owner.pid, testimony.abandon_after, testimony.is_orphaned), (Some(4711), None, false));
        let abandoned = Testimony { abandon_after: Some(Duration::from_millis(90_500)), is_orphaned: true, ..testimony };
        assert_eq!(abandoned.to_string(), format!("{TEXT}abandon-after 1m 30s 500ms\norphaned yes\n"));
        assert_eq!(Testimony::parse(abandoned.to_string().as_bytes()), Some(abandoned));
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over_and_what_is_not_whole_is_nothing() {
        assert!(Testimony::parse(format!("{TEXT}colour red\n").as_bytes()).is_some());
        for line in TEXT.lines().filter(|line| !line.starts_with("pid ")) {
            assert_eq!(Testimony::parse(TEXT.replace(&format!("{line}\n"), "").as_bytes()), None, "{line}");
        }
        for text in ["", "syncd-spawn-owner 2\nlock /x\n", "127.0.0.1"] {
            assert_eq!(Testimony::parse(text.as_bytes()), None);
        }
        assert_eq!(Testimony::parse(format!("{TEXT}abandon-after soon\n").as_bytes()), None);
    }

    #[test]
    fn a_command_is_one_line_of_bounded_length() {
        let owner = Testimony::parse(TEXT.as_bytes()).unwrap().owner;
        assert_eq!(owner.clone().with_command(b"echo a\nb \xff").command, "echo a\\nb \\xff");
        assert_eq!(owner.to_string(), "pid 4711 on some.host");
        assert_eq!(Owner { pid: None, host: "a\nb".to_owned(), ..owner.clone() }.to_string(), "on a\\nb");
        assert_eq!(owner.with_command("é".repeat(1000).as_bytes()).command.len(), 1024);
    }

    #[test]
    fn only_a_waiter_is_removed_at_once_and_only_who_promised_later() {
        let promised = Some(Duration::from_secs(40));
        for (version, mark) in [(0, Mark::None), (1, Mark::Waiting), (2, Mark::Holding), (3, Mark::Waiting), (4, Mark::Holding)]
        {
            assert_eq!(Mark::of(version), mark);
            match mark {
                Mark::Waiting => {
                    assert_eq!((verdict(mark, None), verdict(mark, promised)), (Verdict::Bury, Verdict::Bury));
                }
                Mark::None | Mark::Holding => {
                    assert_eq!(verdict(mark, None), Verdict::Leave);
                    assert_eq!(verdict(mark, promised), Verdict::BuryAfter(Duration::from_secs(46)));
                }
            }
        }
    }

    #[test]
    fn names_of_ours_have_an_id_and_others_may_not() {
        let id = |name: &str| id_of(&NodeName::parse(name).unwrap()).map(str::to_owned);
        let ours = "503e61fadc8f492497db823b87e64afe";
        assert_eq!(id(&format!("{ours}__rlock__0000000038")).as_deref(), Some(ours));
        for other in ["x__lock__0000000001", "503e61fadc8f492497db823b87e64afe0__lock__0000000001", "__lock__0000000001"] {
            assert_eq!(id(other), None);
        }
    }
}
