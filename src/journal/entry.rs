//! One entry: what a run that may die has to have said about itself before. Lines of a key and a value, the version first.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::clock::{self, date};
use crate::local::boot;
use crate::lock::{AbsolutePath, LockPath, NodeName, id_of};
use crate::store::Servers;

const VERSION: &str = "syncd-spawn-journal 1";
const DEAD: &str = "dead ";
/// The digits that all names of one wish begin with.
const FAMILY_DIGITS: usize = 28;

/// Where the nodes of a run are, and whose they are. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub servers: Servers,
    pub chroot: AbsolutePath,
    pub lock: LockPath,
    pub family: Family,
    /// For people to read: the host, its boot, the process.
    pub host: String,
    pub boot: String,
    pub pid: u32,
    pub since: SystemTime,
    /// When it was first seen that everybody is dead, though there was no node.
    pub dead: Option<Seen>,
}

/// A moment of this host, however its calendar is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub boot: String,
    /// How long the host had been up, asleep or not.
    pub uptime: Duration,
}

/// What all names begin with that a wish ever has, see [`Claim::family`](crate::lock::Claim::family). It is the entry's name too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Family(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("it is of a version that is not known here")]
    Version,
    #[error("its line {0:?} is not known here")]
    Line(String),
    #[error("its {0} is not usable")]
    Value(&'static str),
    #[error("its {0} is missing")]
    Missing(&'static str),
}

impl Family {
    pub fn parse(text: &str) -> Option<Family> {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == FAMILY_DIGITS && text.bytes().all(is_digit)).then(|| Family(text.to_owned()))
    }

    /// That of a node of ours; none if it is somebody else's.
    pub fn of(name: &NodeName) -> Option<Family> {
        Family::parse(id_of(name)?.get(..FAMILY_DIGITS)?)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether that node is one of them.
    pub fn has(&self, name: &NodeName) -> bool {
        name.as_str().starts_with(&self.0)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Seen {
    pub fn now() -> Seen {
        Seen { boot: boot(), uptime: clock::now() }
    }

    fn parse(text: &str) -> Option<Seen> {
        let (boot, seconds) = text.split_once(' ')?;
        // Without its last letter a number is none that was written.
        Some(Seen { boot: boot.to_owned(), uptime: Duration::from_secs(seconds.strip_suffix('s')?.parse().ok()?) })
    }

    /// How long ago it was; none if it was in another boot, of which nothing tells how long ago that is.
    pub fn age(&self, now: &Seen) -> Option<Duration> {
        if self.boot == now.boot { now.uptime.checked_sub(self.uptime) } else { None }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}s", self.boot, self.uptime.as_secs())
    }
}

impl Entry {
    pub fn parse(text: &str) -> Result<Entry, EntryError> {
        let (version, lines) = text.split_once('\n').ok_or(EntryError::Version)?;
        if version != VERSION {
            return Err(EntryError::Version);
        }
        let mut fields = Fields::default();
        for line in lines.lines() {
            // Nobody waits for the disk with these, so one may have been cut off: then the next one stands below it.
            if let Some(value) = line.strip_prefix(DEAD) {
                fields.dead = Seen::parse(value).or(fields.dead);
                continue;
            }
            if DEAD.starts_with(line) {
                continue;
            }
            let unknown = || EntryError::Line(line.to_owned());
            let (key, value) = line.split_once(' ').ok_or_else(unknown)?;
            let field = fields.of(key).ok_or_else(unknown)?;
            if field.replace(value).is_some() {
                return Err(unknown());
            }
        }
        fields.entry()
    }

    /// What is added to say since when it is known to be dead; the last one counts.
    pub fn dead_line(seen: &Seen) -> String {
        format!("\n{DEAD}{seen}\n")
    }

    /// For how long it has been known to be dead; none if nobody has noted it in this boot.
    pub fn dead_for(&self, now: &Seen) -> Option<Duration> {
        self.dead.as_ref()?.age(now)
    }

    /// The lock's directory, below no chroot.
    pub fn directory(&self) -> AbsolutePath {
        self.chroot.join(self.lock.as_path())
    }

    /// Whether these servers have what it tells of. One that both name is enough, for it belongs to one ensemble.
    pub fn is_at(&self, servers: &Servers, chroot: &AbsolutePath) -> bool {
        self.chroot == *chroot && self.servers.servers.iter().any(|server| servers.servers.contains(server))
    }
}

/// As it stands in its file.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { servers, chroot, lock, family, host, boot, pid, since, dead } = self;
        let since = date(*since);
        write!(
            f,
            "{VERSION}\nservers {servers}\nchroot {chroot}\nlock {lock}\nfamily {family}\nhost {host}\nboot {boot}\npid {pid}\n\
             since {since}\n"
        )?;
        dead.as_ref().map_or(Ok(()), |seen| f.write_str(&Entry::dead_line(seen)))
    }
}

/// The lines by their keys, each of which may stand there once, but for that of the dead.
#[derive(Default)]
struct Fields<'t> {
    servers: Option<&'t str>,
    chroot: Option<&'t str>,
    lock: Option<&'t str>,
    family: Option<&'t str>,
    host: Option<&'t str>,
    boot: Option<&'t str>,
    pid: Option<&'t str>,
    since: Option<&'t str>,
    dead: Option<Seen>,
}

impl<'t> Fields<'t> {
    fn of(&mut self, key: &str) -> Option<&mut Option<&'t str>> {
        Some(match key {
            "servers" => &mut self.servers,
            "chroot" => &mut self.chroot,
            "lock" => &mut self.lock,
            "family" => &mut self.family,
            "host" => &mut self.host,
            "boot" => &mut self.boot,
            "pid" => &mut self.pid,
            "since" => &mut self.since,
            _ => return None,
        })
    }

    fn entry(self) -> Result<Entry, EntryError> {
        let time = |text: &str| humantime::parse_rfc3339(text).ok();
        Ok(Entry {
            // A chroot is said once.
            servers: value("servers", self.servers, |text| Servers::parse(text).ok().filter(|it| it.chroot.is_none()))?,
            chroot: value("chroot", self.chroot, |text| AbsolutePath::parse(text).ok())?,
            lock: value("lock", self.lock, |text| LockPath::parse(text).ok())?,
            family: value("family", self.family, Family::parse)?,
            host: value("host", self.host, |text| Some(text.to_owned()))?,
            boot: value("boot", self.boot, |text| Some(text.to_owned()))?,
            pid: value("pid", self.pid, |text| text.parse().ok())?,
            since: value("since", self.since, time)?,
            dead: self.dead,
        })
    }
}

fn value<T>(key: &'static str, text: Option<&str>, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, EntryError> {
    parse(text.ok_or(EntryError::Missing(key))?).ok_or(EntryError::Value(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "syncd-spawn-journal 1\nservers h1:2181,[::1]:2182\nchroot /devops\nlock /a b/c\n\
                        family 503e61fadc8f492497db823b87e6\nhost some.host\nboot 0b5d2b4e-51bb-4b9b-8f0d-1b1d6f3c1c11\n\
                        pid 4711\nsince 2018-07-25T17:09:52Z\n";

    #[test]
    fn what_was_written_is_read_again() {
        let entry = Entry::parse(TEXT).unwrap();
        assert_eq!(entry.to_string(), TEXT);
        assert_eq!((entry.lock.to_string().as_str(), entry.pid, entry.dead), ("/a b/c", 4711, None));
        let dead = Entry { dead: Some(seen("b1", 90)), ..entry };
        assert_eq!(dead.to_string(), format!("{TEXT}\ndead b1 90s\n"));
        assert_eq!(Entry::parse(&dead.to_string()), Ok(dead));
    }

    fn seen(boot: &str, seconds: u64) -> Seen {
        Seen { boot: boot.to_owned(), uptime: Duration::from_secs(seconds) }
    }

    #[test]
    fn of_what_was_noted_about_a_dead_one_the_last_whole_line_counts() {
        let first = Entry::dead_line(&seen("b1", 90));
        let second = Entry::dead_line(&seen("b2", 7));
        let dead = |lines: &str| Entry::parse(&format!("{TEXT}{lines}")).unwrap().dead;
        for end in 0..first.len() - "s\n".len() {
            assert_eq!(dead(&first[..end]), None, "{:?}", &first[..end]);
            assert_eq!(dead(&format!("{}{second}", &first[..end])), Some(seen("b2", 7)));
        }
        assert_eq!(dead(&format!("{first}{second}")), Some(seen("b2", 7)));
        assert_eq!(dead(&format!("{second}{first}dead b3 7")), Some(seen("b1", 90)));
    }

    #[test]
    fn how_long_ago_something_was_is_known_within_a_boot() {
        let age = |now: &Seen| seen("b1", 90).age(now);
        assert_eq!(age(&seen("b1", 100)), Some(Duration::from_secs(10)));
        assert_eq!((age(&seen("b1", 80)), age(&seen("b2", 100))), (None, None));
    }

    #[test]
    fn what_is_not_known_or_not_whole_is_no_entry() {
        let with = |line: &str| Entry::parse(&format!("{TEXT}{line}\n")).unwrap_err();
        assert_eq!(with("colour red"), EntryError::Line("colour red".to_owned()));
        assert_eq!(with("pid 4712"), EntryError::Line("pid 4712".to_owned()));
        assert_eq!(with("deadly"), EntryError::Line("deadly".to_owned()));
        for text in ["", "syncd-spawn-journal 1", "syncd-spawn-journal 2\nservers h1\n", "\n\n"] {
            assert_eq!(Entry::parse(text), Err(EntryError::Version), "{text:?}");
        }
        for line in TEXT.lines().skip(1) {
            let key = line.split(' ').next().unwrap();
            let without = Entry::parse(&TEXT.replace(&format!("{line}\n"), "")).unwrap_err();
            assert_eq!(without.to_string(), format!("its {key} is missing"));
        }
        for (from, to) in [
            ("servers h1:2181", "servers "),
            ("[::1]:2182", "h2/chroot"),
            ("chroot /devops", "chroot devops"),
            ("lock /a b/c", "lock /"),
            ("family 503e61fadc8f492497db823b87e6", "family "),
            ("family 503e61fadc8f492497db823b87e6", "family 503e61fadc8f492497db823b87e64"),
            ("family 503e", "family 503E"),
            ("pid 4711", "pid -1"),
            ("since 2018", "since 20i8"),
        ] {
            assert!(matches!(Entry::parse(&TEXT.replace(from, to)), Err(EntryError::Value(_))), "{to}");
        }
        for end in 0..TEXT.len() {
            assert!(Entry::parse(&TEXT[..end]).is_err() || end == TEXT.len() - 1, "{:?}", &TEXT[..end]);
        }
    }

    #[test]
    fn a_node_of_ours_has_a_family_and_others_have_none() {
        let family = |name: &str| Family::of(&NodeName::parse(name).unwrap());
        let ours = family("503e61fadc8f492497db823b87e64afe__rlock__0000000038").unwrap();
        assert_eq!(ours.as_str(), "503e61fadc8f492497db823b87e6");
        assert_eq!(family("short__lock__0000000038"), None);
    }

    #[test]
    fn servers_are_the_same_where_both_name_one_of_them() {
        let entry = Entry::parse(TEXT).unwrap();
        let is_at =
            |servers: &str, chroot: &str| entry.is_at(&Servers::parse(servers).unwrap(), &AbsolutePath::parse(chroot).unwrap());
        assert!(is_at("h1", "/devops") && is_at("h3,[::1]:2182", "/devops"));
        assert!(!is_at("h1:2182", "/devops") && !is_at("h2", "/devops") && !is_at("h1", "/"));
    }
}
