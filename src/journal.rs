//! The journal: what the runs of this host have in ZooKeeper's queues, so that what the dead leave is found and removed.
//!
//! A persistent node outlives its owner. So before it is asked for an entry is written that tells where it will be, in a
//! directory of this host that outlives a crash. The entry is flocked, and the command inherits the flocked file: the kernel knows
//! whether anybody lives who could work under the node, however the others died. Whoever gets the flock may remove it.

mod entry;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::unistd::{Uid, geteuid};

pub use self::entry::{Entry, EntryError, Family, Seen};
use crate::local::{Dir, Trouble, Watch, Watches, boot, check_file_system, errno, host};
use crate::lock::{AbsolutePath, LockPath};
use crate::store::Servers;

/// Root's own directory, and that of others below their state directory.
const OF_ROOT: &str = "/var/lib/syncd-spawn";
const OF_USERS: &str = "syncd-spawn";
/// What an entry is called before it is flocked and whole.
const NEWBORN: &str = ".new.";
/// Twice the longest session that servers grant, and some more: then no request of the dead can be carried out any more.
pub const KEEP: Duration = Duration::from_mins(2);
/// No entry is longer: its three long parts are words of a command line, none of which may have more than 128 KiB.
const LONGEST: u64 = 1024 * 1024;

/// Where the journal is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateDir {
    /// The default: one for each user.
    Own,
    Named(PathBuf),
}

impl StateDir {
    pub fn parse(text: &OsStr) -> Result<StateDir, String> {
        match Path::new(text).is_absolute() {
            true => Ok(StateDir::Named(PathBuf::from(text))),
            false => Err("it does not start with /".to_owned()),
        }
    }

    fn path(&self) -> Result<PathBuf, Trouble> {
        match self {
            StateDir::Named(path) => Ok(path.clone()),
            StateDir::Own => own_path(geteuid(), |name| env::var_os(name)).ok_or_else(|| {
                Trouble::said("to keep a journal", "neither XDG_STATE_HOME nor HOME says where (--state-dir does)")
            }),
        }
    }
}

fn own_path(user: Uid, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if user.is_root() {
        return Some(PathBuf::from(OF_ROOT));
    }
    // A relative one is to be ignored, says its specification.
    let absolute = |name| variable(name).filter(|path| path.as_bytes().starts_with(b"/")).map(PathBuf::from);
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join(OF_USERS))
}

/// A directory of entries, a file each.
pub struct Journal {
    dir: Dir,
}

/// Whether somebody lives who works under what an entry tells of.
pub enum Life {
    Living,
    /// Nobody does, and its flock is ours.
    Dead(Box<Dead>),
    /// Somebody removed it meanwhile.
    Gone,
    /// It is about something that was not asked for.
    Elsewhere,
    /// It is not ours to look at.
    Foreign {
        user: u32,
    },
    Garbled(EntryError),
    /// Its name is none that an entry has.
    Stranger,
}

impl Journal {
    /// Opens it; `None` if it is missing.
    pub fn open(at: &StateDir) -> Result<Option<Journal>, Trouble> {
        let path = at.path()?;
        let using = || format!("to use {}", path.display());
        let Some(dir) = Dir::at(&path)? else { return Ok(None) };
        check_file_system(&dir).map_err(|why| Trouble::said(using(), why))?;
        if *at == StateDir::Own {
            let stat = dir.stat_itself()?;
            if stat.st_uid != geteuid().as_raw() {
                return Err(Trouble::said(using(), format!("it belongs to user {}", stat.st_uid)));
            }
            if stat.st_mode & 0o022 != 0 {
                return Err(Trouble::said(using(), "others may write to it"));
            }
        }
        Ok(Some(Journal { dir }))
    }

    /// Opens it, and makes it where it is missing.
    pub fn make(at: &StateDir) -> Result<Journal, Trouble> {
        if let Some(journal) = Journal::open(at)? {
            return Ok(journal);
        }
        let path = at.path()?;
        let making = |errno| Trouble::new(format!("to make {}", path.display()), errno);
        // Not what a named one is in: a path that was mistyped, or is not mounted, is to be noticed.
        match DirBuilder::new().mode(0o700).recursive(*at == StateDir::Own).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(making(errno(&error))),
        }
        Journal::open(at)?.ok_or_else(|| making(Errno::ENOENT))
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes an entry, so that it survives whatever becomes of us and of the host. Waits for the disk.
    pub fn write(self: Arc<Journal>, entry: &Entry) -> Result<Record, Trouble> {
        let name = entry.family.as_str();
        let newborn = format!("{NEWBORN}{name}");
        let trouble = |errno| self.dir.trouble("to write", name, errno);
        let mut file = self.dir.create(&newborn, 0o600).map_err(trouble)?;
        // Hidden until it is flocked and whole, so that nobody takes a newborn for dead, or for garbled.
        let written = file
            .lock()
            .and_then(|()| file.write_all(entry.to_string().as_bytes()))
            .and_then(|()| file.sync_all())
            .map_err(|error| trouble(errno(&error)))
            .and_then(|()| self.dir.rename(&newborn, name));
        if let Err(trouble) = written {
            _ = self.dir.remove(&newborn);
            return Err(trouble);
        }
        let record = Record { family: entry.family.clone(), file, journal: Arc::clone(&self) };
        match self.sync() {
            Ok(()) => Ok(record),
            Err(trouble) => record.strike().and(Err(trouble)),
        }
    }

    /// Every name of an entry, and every other name that is not hidden. Removes what was never finished.
    pub fn names(&self) -> Result<(Vec<Family>, Vec<String>), Trouble> {
        let (mut families, mut strangers) = (Vec::new(), Vec::new());
        for name in self.dir.names()? {
            match Family::parse(&name) {
                Some(family) => families.push(family),
                None if name.starts_with(NEWBORN) => self.remove_unfinished(&name),
                None if name.starts_with('.') => {}
                None => strangers.push(name),
            }
        }
        families.sort();
        Ok((families, strangers))
    }

    /// Nothing was asked for yet under what was not finished.
    fn remove_unfinished(&self, name: &str) {
        let Ok(Some(file)) = self.dir.open_file(name) else { return };
        let age =
            file.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed().unwrap_or_default());
        // One that was just made may not be flocked yet.
        if age.is_ok_and(|age| age > KEEP) && file.try_lock().is_ok() {
            // It may be somebody else's.
            _ = self.dir.remove(name);
        }
    }

    /// Arms a watch that names each entry for which nobody lives any more. The kernel tells it a moment before it gives up the flock.
    ///
    /// # Errors
    /// As [`Watches::arm_closes`].
    pub fn watch<'w>(&self, watches: &'w Watches) -> io::Result<Watch<'w>> {
        watches.arm_closes(&self.dir)
    }

    /// Looks at one entry, and takes its flock if it is wanted and nobody has it.
    pub fn look(self: &Arc<Journal>, family: &Family, is_wanted: impl Fn(&Entry) -> bool) -> Result<Life, Trouble> {
        let name = family.as_str();
        let trouble = |errno| self.dir.trouble("to look at", name, errno);
        let io_trouble = |error| trouble(errno(&error));
        let us = geteuid();
        let is_ours = |user| us.is_root() || us.as_raw() == user;
        // For reading only, or all who watch would be woken by each other's looks.
        let mut file = match self.dir.open_file(name) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Life::Gone),
            Err(errno) => {
                return match self.dir.stat(name)? {
                    None => Ok(Life::Gone),
                    Some(stat) if !is_ours(stat.st_uid) => Ok(Life::Foreign { user: stat.st_uid }),
                    Some(_) => Err(trouble(errno)),
                };
            }
        };
        let metadata = file.metadata().map_err(io_trouble)?;
        if !is_ours(metadata.uid()) {
            return Ok(Life::Foreign { user: metadata.uid() });
        }
        let mut text = Vec::new();
        Read::by_ref(&mut file).take(LONGEST).read_to_end(&mut text).map_err(io_trouble)?;
        let entry = match Entry::parse(&String::from_utf8_lossy(&text)) {
            Ok(entry) if entry.family != *family => return Ok(Life::Garbled(EntryError::Value("name"))),
            Ok(entry) => entry,
            Err(error) => return Ok(Life::Garbled(error)),
        };
        if !is_wanted(&entry) {
            return Ok(Life::Elsewhere);
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Life::Living),
            Err(TryLockError::Error(error)) => return Err(io_trouble(error)),
        }
        // Its owner may have removed it before he let go of it.
        match self.dir.stat(name)? {
            Some(stat) if (stat.st_dev, stat.st_ino) == (metadata.dev(), metadata.ino()) => {
                let record = Record { family: family.clone(), file, journal: Arc::clone(self) };
                Ok(Life::Dead(Box::new(Dead { entry, record })))
            }
            Some(_) | None => Ok(Life::Gone),
        }
    }

    fn sync(&self) -> Result<(), Trouble> {
        let directory = self.dir.fd().try_clone_to_owned().map(File::from);
        let synced = directory.and_then(|directory| directory.sync_all());
        synced.map_err(|error| Trouble::new(format!("to write {}", self.path().display()), errno(&error)))
    }
}

/// An entry whose flock is ours. Dropped, it stays in the journal, and the flock is given up.
pub struct Record {
    journal: Arc<Journal>,
    family: Family,
    file: File,
}

impl Record {
    /// Writes one more line.
    fn append(&self, line: &str) -> Result<(), Trouble> {
        let (dir, name) = (&self.journal.dir, self.family.as_str());
        let trouble = |errno| dir.trouble("to write", name, errno);
        match dir.open_to_append(name).map_err(trouble)? {
            Some(mut file) => file.write_all(line.as_bytes()).map_err(|error| trouble(errno(&error))),
            // An operator removed it.
            None => Ok(()),
        }
    }

    /// Removes it: nothing is left of what it tells of.
    pub fn strike(self) -> Result<(), Trouble> {
        self.journal.dir.remove(self.family.as_str()).map(drop)
    }

    /// The same so that it does not come back when the host crashes. Waits for the disk.
    pub fn strike_for_good(self) -> Result<(), Trouble> {
        let journal = Arc::clone(&self.journal);
        self.strike()?;
        journal.sync()
    }
}

/// The flocked file.
impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// What everybody is dead for.
pub struct Dead {
    pub entry: Entry,
    record: Record,
}

impl Dead {
    /// Its nodes were removed.
    pub fn strike(self) -> Result<(), Trouble> {
        self.record.strike()
    }

    /// There was no node: it is kept as long as a request of the dead may still be carried out. Says whether it is.
    pub fn strike_unless_young(self, now: &Seen) -> Result<Age, Trouble> {
        match self.entry.dead_for(now) {
            Some(age) if age > KEEP => self.strike().map(|()| Age::Over),
            Some(_) => Ok(Age::Young),
            None => self.record.append(&Entry::dead_line(now)).map(|()| Age::Young),
        }
    }
}

/// Whether a request of the dead may still be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    Young,
    Over,
}

impl Entry {
    /// That of this process, now.
    pub fn of_us(servers: Servers, chroot: AbsolutePath, lock: LockPath, family: Family) -> Entry {
        let pid = process::id();
        Entry { servers, chroot, lock, family, host: host(), boot: boot(), pid, since: SystemTime::now(), dead: None }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::local::News;

    #[test]
    fn the_default_is_each_users_own() {
        let own = |user: u32, variables: &[(&str, &str)]| {
            let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            own_path(Uid::from_raw(user), variable).map(|path| path.to_str().unwrap().to_owned())
        };
        let home = ("HOME", "/home/me");
        assert_eq!(own(0, &[home, ("XDG_STATE_HOME", "/state")]).unwrap(), "/var/lib/syncd-spawn");
        assert_eq!(own(7, &[home, ("XDG_STATE_HOME", "/state")]).unwrap(), "/state/syncd-spawn");
        for state in ["", "relative"] {
            assert_eq!(own(7, &[home, ("XDG_STATE_HOME", state)]).unwrap(), "/home/me/.local/state/syncd-spawn");
        }
        assert_eq!(own(7, &[("HOME", "")]), None);
        assert_eq!(own(7, &[]), None);
    }

    fn journal(directory: &Path) -> Arc<Journal> {
        Arc::new(Journal::make(&StateDir::Named(directory.join("state"))).unwrap())
    }

    fn entry(family: &str) -> Entry {
        let path = |text| AbsolutePath::parse(text).unwrap();
        let lock = LockPath::parse("/lock").unwrap();
        Entry::of_us(Servers::parse("h").unwrap(), path("/"), lock, Family::parse(family).unwrap())
    }

    const FAMILY: &str = "503e61fadc8f492497db823b87e6";

    #[test]
    fn an_entry_lives_as_long_as_its_file_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        let record = Arc::clone(&journal).write(&entry(FAMILY)).unwrap();
        let (families, strangers) = journal.names().unwrap();
        assert_eq!((families.len(), strangers.len()), (1, 0));
        assert!(matches!(journal.look(&families[0], |_| true).unwrap(), Life::Living));
        let heirloom = record.as_fd().try_clone_to_owned().unwrap();
        drop(record);
        assert!(matches!(journal.look(&families[0], |_| true).unwrap(), Life::Living));
        drop(heirloom);
        assert!(matches!(journal.look(&families[0], |_| false).unwrap(), Life::Elsewhere));
        let Life::Dead(dead) = journal.look(&families[0], |_| true).unwrap() else { panic!("it is dead") };
        assert_eq!((dead.entry.pid, dead.entry.dead.as_ref()), (process::id(), None));
        assert!(matches!(journal.look(&families[0], |_| true).unwrap(), Life::Living), "one looks after it");
        dead.strike().unwrap();
        assert!(matches!(journal.look(&families[0], |_| true).unwrap(), Life::Gone));
    }

    #[test]
    fn what_had_no_node_is_kept_for_a_while_after_it_was_first_seen() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        drop(Arc::clone(&journal).write(&entry(FAMILY)).unwrap());
        let family = Family::parse(FAMILY).unwrap();
        let dead = || match journal.look(&family, |_| true).unwrap() {
            Life::Dead(dead) => *dead,
            _ => panic!("it is dead"),
        };
        // However long it lived.
        let now = Seen::now();
        for (later, age) in [(0, Age::Young), (60, Age::Young), (119, Age::Young), (122, Age::Over)] {
            let now = Seen { uptime: now.uptime + Duration::from_secs(later), ..now.clone() };
            assert_eq!(dead().strike_unless_young(&now).unwrap(), age, "{later}");
        }
        assert_eq!(journal.names().unwrap().0, []);
    }

    #[tokio::test]
    async fn a_watch_names_the_dead_and_no_looks_and_no_releases() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        let watches = Watches::default();
        let watch = journal.watch(&watches).unwrap();
        let write = |digit: char| Arc::clone(&journal).write(&entry(&FAMILY.replacen('5', &digit.to_string(), 1))).unwrap();
        let (released, killed) = (write('1'), write('2'));
        let families = journal.names().unwrap().0;
        let look = |family: &Family| journal.look(family, |_| true).unwrap();
        assert!(families.iter().all(|family| matches!(look(family), Life::Living)));
        released.strike().unwrap();
        drop(killed);
        let named = |family: &Family| News::Of(vec![family.as_str().into()]);
        assert_eq!(watch.news().await.unwrap(), named(&families[1]));
        let Life::Dead(dead) = look(&families[1]) else { panic!("it is dead") };
        // Whoever looks after it takes note once that there is no node.
        assert_eq!(dead.strike_unless_young(&Seen::now()).unwrap(), Age::Young);
        assert_eq!(watch.news().await.unwrap(), named(&families[1]));
        for _ in 0..3 {
            let Life::Dead(dead) = look(&families[1]) else { panic!("it is dead") };
            assert_eq!(dead.strike_unless_young(&Seen::now()).unwrap(), Age::Young);
        }
        let next = write('3');
        let family = next.family.clone();
        drop(next);
        assert_eq!(watch.news().await.unwrap(), named(&family));
        let path = journal.path().to_owned();
        // An open one is not gone.
        drop(journal);
        fs::remove_dir_all(path).unwrap();
        assert_eq!(watch.news().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn only_what_was_not_finished_long_ago_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        let path = journal.path().join(format!("{NEWBORN}{FAMILY}"));
        let file = File::create(&path).unwrap();
        journal.names().unwrap();
        assert!(path.exists());
        file.set_modified(SystemTime::now() - KEEP * 2).unwrap();
        file.lock().unwrap();
        journal.names().unwrap();
        assert!(path.exists());
        drop(file);
        journal.names().unwrap();
        assert!(!path.exists());
    }
}
