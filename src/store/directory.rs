//! A directory of this host: a queue without a server.
//!
//! A lock is a directory, a contender a file in it, named and filled as in ZooKeeper. Coming in passes a turnstile, the flock
//! on the lock's directory itself: it is gone when the directory is, so no two can be in at once whatever is deleted. Going
//! out is one unlink, which no turnstile could make safer, and which a process that was stopped in there must not hold up.
//!
//! A contender that runs a command keeps a flock on its file, and the command inherits the open file. So the kernel knows
//! which of them are dead however they died, and for ever: a file comes into the queue flocked, and nobody can get hold of
//! the flock of a dead one but to look. That a file is to be flocked is said by its mode, the sticky bit without any execute
//! bit: it is there from the start, every local file system keeps it, no umask takes it away, and what cleans up old files
//! leaves such files alone. Where it is lost (a copy, a `chmod -R`), or was never set, a contender stays until it is unlocked.

mod mark;
mod root;

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::future::{Future, pending};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};
use nix::unistd::geteuid;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

pub use self::root::{Root, RootError};
use crate::local::{Dir, Trouble, Watches, boot, elsewhere, errno, host, kind, taker};
use crate::lock::{
    AbsolutePath, Claim, Contender, Entry, Expected, FencingToken, Identifier, Lifetime, LockPath, NodeName, Owner, Ownership,
    Place, Queue, Reading, Removal, Sequence, Store, StoreError,
};

/// What the names of our own files begin with; nobody lists them.
const HIDDEN: &str = ".syncd-spawn.";
/// The directory, beside the chroots, in which the last fencing token is kept: it outlives every lock's directory.
const TOKENS: &str = ".syncd-spawn";
/// A turnstile that is taken for this long is worth a word.
const TURNSTILE_SLOW: Duration = Duration::from_secs(1);
/// How often a directory may be deleted under us while we enter it.
const DELETIONS: usize = 100;
/// The kernel tells that a file was closed before it gives up the flock, so a look may come too early, and is repeated, at
/// first after this pause and then ever more rarely.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// No pause is longer where the kernel watches for us, and where it does not, or not yet.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
const LONGEST_PAUSE_UNWATCHED: Duration = Duration::from_millis(50);
/// The kernel takes many milliseconds to take a watch back, and our end waits for it; a command that runs for less than this
/// is to be spared them.
const WATCH_OURS_AFTER: Duration = Duration::from_secs(1);

/// A directory of this host, below a chroot.
pub struct Directory {
    root: Root,
    path: PathBuf,
    chroot: AbsolutePath,
    /// The files that we have flocked.
    held: RefCell<Vec<(NodeName, Rc<File>)>>,
    watches: Watches,
}

/// What became of a contender.
enum Life {
    /// It belongs to nobody, or we may not look.
    Standing,
    /// Somebody holds the flock on this file.
    Working(File),
    /// Its flock is free, and so it stays.
    Dead,
    Missing,
}

impl Directory {
    /// Nothing is looked at before it is needed.
    pub fn new(root: Root, chroot: AbsolutePath) -> Directory {
        let path = root.path();
        Directory { root, path, chroot, held: RefCell::default(), watches: Watches::default() }
    }

    fn place(&self) -> String {
        format!("file://{}", self.path.display())
    }

    fn refused(&self, Trouble { what, cause, .. }: Trouble) -> StoreError {
        StoreError::Refused { place: self.place(), what, cause }
    }

    /// The names on the way to a lock's directory. One that could be a file of ours would be renamed or removed as such.
    fn segments<'a>(&'a self, lock: &'a LockPath) -> impl Iterator<Item = Result<&'a str, Trouble>> {
        let parts = [&self.chroot, lock.as_path()].into_iter().flat_map(|path| path.as_str().split('/'));
        parts.filter(|part| !part.is_empty()).map(move |part| match part.starts_with(HIDDEN) {
            true => {
                let what = format!("to use {}{}", self.path.display(), self.chroot.join(lock.as_path()));
                Err(Trouble::said(what, format!("names that begin with {HIDDEN} are not for locks")))
            }
            false => Ok(part),
        })
    }

    /// The lock's directory; `None` if it is missing.
    fn find(&self, lock: &LockPath) -> Result<Option<Dir>, StoreError> {
        let find = || {
            let Some(mut dir) = self.root.open(&self.path)? else {
                return Ok(None);
            };
            for name in self.segments(lock) {
                match dir.open(name?)? {
                    Some(below) => dir = below,
                    None => return Ok(None),
                }
            }
            Ok(Some(dir))
        };
        let found = find().map_err(|trouble| self.refused(trouble))?;
        found.iter().try_for_each(|dir| root::check_file_system(dir, &self.place()))?;
        Ok(found)
    }

    /// The lock's directory and that of the tokens, made where they are missing.
    fn make(&self, lock: &LockPath) -> Result<(Dir, Dir), StoreError> {
        let refused = |trouble| self.refused(trouble);
        let root = self.root.make(&self.path).map_err(refused)?;
        root::check_file_system(&root, &self.place())?;
        let tokens = root.make(TOKENS).map_err(refused)?;
        let mut dir = root;
        for name in self.segments(lock) {
            dir = name.and_then(|name| dir.make(name)).map_err(refused)?;
        }
        root::check_file_system(&dir, &self.place())?;
        Ok((dir, tokens))
    }

    /// Waits until nobody else comes in.
    ///
    /// # Cancellation
    /// May be dropped.
    async fn turnstile(&self, dir: &Dir) -> Result<(), StoreError> {
        let mut passing = pin!(dir.pass_turnstile());
        let refused = |trouble| self.refused(trouble);
        if let Ok(passed) = timeout(TURNSTILE_SLOW, passing.as_mut()).await {
            return passed.map_err(refused);
        }
        warn!("another process is just entering {}, and has been for a while: was it stopped?", dir.path().display());
        passing.await.map_err(refused)
    }

    /// Adds us at the end. The caller has passed both turnstiles.
    fn come_in(&self, dir: &Dir, tokens: &Dir, claim: &Claim) -> Result<Place, Trouble> {
        let token = next_token(tokens)?;
        let names = dir.names()?;
        let sequence = next_sequence(&names);
        mark::advance(dir, &names, sequence.number().cast_unsigned())?;
        let name = format!("{}{sequence}", claim.prefix());
        // There is but one at a time, so one that is there is of somebody who was killed just here.
        let newborn = format!("{HIDDEN}new.{}", geteuid());
        let file = match dir.create(&newborn, mode_of(claim.lifetime)) {
            Err(Errno::EEXIST) => dir.remove(&newborn).map(|_| dir.create(&newborn, mode_of(claim.lifetime)))?,
            created => created,
        };
        let file = file.map_err(|errno| dir.trouble("to make", &newborn, errno))?;
        // Hidden until it is flocked and filled, so that nobody takes a newborn for dead, or reads half an identifier.
        let filled = fill(&file, claim).map_err(|errno| dir.trouble("to write", &name, errno));
        if let Err(trouble) = filled.and_then(|()| dir.rename(&newborn, &name)) {
            _ = dir.remove(&newborn);
            return Err(trouble);
        }
        let name = NodeName::parse(&name).expect("it is made of a mark and ten digits");
        match claim.lifetime {
            Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Session { .. } => {
                self.held.borrow_mut().push((name.clone(), Rc::new(file)));
            }
            Lifetime::Explicit => {}
        }
        Ok(Place { name, token })
    }

    fn life(dir: &Dir, name: &str) -> Result<Life, Trouble> {
        let Some(stat) = regular(dir, name)? else {
            return Ok(Life::Missing);
        };
        if !is_marked(stat.st_mode) {
            return Ok(Life::Standing);
        }
        let trouble = |errno| dir.trouble("to look at", name, errno);
        let file = match dir.open_file(name) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Life::Missing),
            // What cannot be looked at cannot be told to be dead.
            Err(Errno::EACCES) => return Ok(Life::Standing),
            Err(errno) => return Err(trouble(errno)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(Life::Dead),
            Err(TryLockError::WouldBlock) => Ok(Life::Working(file)),
            Err(TryLockError::Error(error)) => Err(trouble(errno(&error))),
        }
    }

    fn read_one(dir: &Dir, name: &str) -> Result<Reading, Trouble> {
        let trouble = |errno| dir.trouble("to read", name, errno);
        if regular(dir, name)?.is_none() {
            return Ok(Reading::Missing);
        }
        let file = match dir.open_file(name) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(Reading::Missing),
            Err(Errno::EACCES) => return Ok(Reading::Forbidden),
            Err(errno) => return Err(trouble(errno)),
        };
        let stat = fstat(&file).map_err(trouble)?;
        let mut identifier = Vec::new();
        Read::take(&file, Identifier::LONGEST as u64).read_to_end(&mut identifier).map_err(|error| trouble(errno(&error)))?;
        Ok(Reading::There(Contender { identifier: Identifier(identifier), since: modified(&stat), version: version(&stat) }))
    }

    fn ownership(dir: &Dir, name: &str) -> Result<Ownership, Trouble> {
        let file = match Self::life(dir, name)? {
            Life::Standing | Life::Missing => return Ok(Ownership::Unknown),
            Life::Dead => return Ok(Ownership::Orphaned { owner: None, since: None, abandon_after: None }),
            Life::Working(file) => file,
        };
        let stat = fstat(&file).map_err(|errno| dir.trouble("to look at", name, errno))?;
        let started = modified(&stat);
        Ok(Ownership::Owned(Owner { host: host(), boot: boot(), pid: taker(&file), started, command: String::new() }))
    }

    fn remove(dir: &Dir, name: &str, expected: Expected) -> Result<Removal, Trouble> {
        let Some(stat) = regular(dir, name)? else {
            return Ok(Removal::Missing);
        };
        let is_as_expected = match expected {
            Expected::Anything => true,
            Expected::Version(expected) => expected == version(&stat),
            // Once it is dead it stays so.
            Expected::Orphaned(expected) => expected == version(&stat) && matches!(Self::life(dir, name)?, Life::Dead),
        };
        if !is_as_expected {
            return Ok(Removal::Changed);
        }
        // The directory's mode may well allow it, but that is for coming and going.
        let us = geteuid();
        if !us.is_root() && us.as_raw() != stat.st_uid {
            let what = format!("to remove {}", dir.path().join(name).display());
            return Err(Trouble::said(what, format!("it belongs to user {}", stat.st_uid)));
        }
        match dir.remove(name)? {
            true => Ok(Removal::Removed),
            false => Ok(Removal::Missing),
        }
    }
}

impl Store for Directory {
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        let mut give_up = pin!(give_up);
        let mut deletions = 0;
        loop {
            let (dir, tokens) = self.make(lock)?;
            let turnstiles = async {
                self.turnstile(&dir).await?;
                self.turnstile(&tokens).await
            };
            tokio::select! {
                biased;
                () = give_up.as_mut() => return Ok(Entry::GaveUp),
                passed = turnstiles => passed?,
            }
            match self.come_in(&dir, &tokens, claim) {
                Ok(place) => return Ok(Entry::In(place)),
                // Somebody deleted the directory that we were in.
                Err(trouble) if trouble.is_absence() && deletions < DELETIONS => deletions += 1,
                Err(trouble) => return Err(self.refused(trouble)),
            }
        }
    }

    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError> {
        let dir = self.find(lock)?.ok_or_else(|| StoreError::NoLock(lock.clone()))?;
        let mut names = dir.names().map_err(|trouble| self.refused(trouble))?;
        // Those behind us are not ours to look at: with many in a queue that would be most of a hand-over.
        let is_there = |name: &NodeName| names.iter().any(|there| there == name.as_str());
        let ours = self.held.borrow().iter().filter(|(name, _)| is_there(name)).map(|(name, _)| name.sequence()).max();
        let mut trouble = None;
        names.retain(|name| {
            if name.starts_with(HIDDEN) {
                return false;
            }
            match (NodeName::parse(name), ours) {
                (None, _) => return true,
                (Some(name), Some(ours)) if name.sequence() > ours => return true,
                (Some(_), _) => {}
            }
            match Self::life(&dir, name) {
                Ok(Life::Standing | Life::Working(_)) => true,
                // Where it belongs to somebody else it may have to stay, but it stands in nobody's way.
                Ok(Life::Dead) => {
                    _ = dir.remove(name);
                    false
                }
                Ok(Life::Missing) => false,
                Err(error) => {
                    trouble = Some(error);
                    true
                }
            }
        });
        match trouble {
            Some(trouble) => Err(self.refused(trouble)),
            None => Ok(Queue::new(names)),
        }
    }

    async fn read(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Reading>, StoreError> {
        match self.find(lock)? {
            Some(dir) => {
                let readings = names.iter().map(|name| Self::read_one(&dir, name.as_str()));
                readings.collect::<Result<_, _>>().map_err(|trouble| self.refused(trouble))
            }
            None => Ok(vec![Reading::Missing; names.len()]),
        }
    }

    async fn owners(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Ownership>, StoreError> {
        match self.find(lock)? {
            Some(dir) => {
                let owners = names.iter().map(|name| Self::ownership(&dir, name.as_str()));
                owners.collect::<Result<_, _>>().map_err(|trouble| self.refused(trouble))
            }
            None => Ok(vec![Ownership::Unknown; names.len()]),
        }
    }

    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError> {
        let is_ours = self.heirloom(name).is_some();
        let watch_from = Instant::now() + if is_ours { WATCH_OURS_AFTER } else { Duration::ZERO };
        let name = name.as_str();
        let mut pause = FIRST_PAUSE;
        let mut watch = None;
        let mut released = None;
        loop {
            let Some(dir) = self.find(lock)? else {
                return Ok(());
            };
            if watch.is_none() && Instant::now() >= watch_from {
                // The kernel may have none left; it is asked again, for others give theirs back.
                watch = self.watches.arm(&dir, name).ok();
            }
            match Self::life(&dir, name).map_err(|trouble| self.refused(trouble))? {
                Life::Dead | Life::Missing => return Ok(()),
                Life::Working(file) if !is_ours && watch.is_none() && released.is_none() => {
                    released = elsewhere(move || drop(file.lock_shared())).ok();
                }
                Life::Working(_) | Life::Standing => {}
            }
            drop(dir);
            let event = async {
                match &watch {
                    Some(watch) => watch.event().await,
                    None => pending().await,
                }
            };
            let release = async {
                match &mut released {
                    Some(released) => drop(released.await),
                    None => pending().await,
                }
            };
            tokio::select! {
                happened = event => {
                    pause = FIRST_PAUSE;
                    if happened.is_err() {
                        watch = None;
                    }
                }
                () = release => released = None,
                () = sleep(pause) => pause *= 2,
            }
            pause = pause.min(if watch.is_some() { LONGEST_PAUSE } else { LONGEST_PAUSE_UNWATCHED });
        }
    }

    async fn leave(&self, lock: &LockPath, name: &NodeName, expected: Expected) -> Result<Removal, StoreError> {
        let not_removed = |cause| StoreError::NotRemoved { node: lock.node(name), place: self.place(), cause };
        let removal = match self.find(lock) {
            Ok(Some(dir)) => Self::remove(&dir, name.as_str(), expected).map_err(|Trouble { cause, .. }| not_removed(cause)),
            Ok(None) => Ok(Removal::Missing),
            Err(StoreError::Refused { what, cause, .. }) => Err(not_removed(format!("{what}: {cause}"))),
            Err(error) => Err(not_removed(error.to_string())),
        };
        // What the command left running may have the file still open, and others wait for its flock; whoever removes it then
        // finds nobody alive.
        self.held.borrow_mut().retain(|(held, file)| held != name || file.unlock().is_err());
        removal
    }

    fn heirloom(&self, name: &NodeName) -> Option<Rc<File>> {
        self.held.borrow().iter().find(|(held, _)| held == name).map(|(_, file)| Rc::clone(file))
    }
}

/// Higher than every token so far. The clock lets it grow where the last one is lost (a reboot empties `/run`), the last one
/// where the clock was set back.
fn next_token(tokens: &Dir) -> Result<FencingToken, Trouble> {
    let names = tokens.names()?;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
    let token = mark::highest(&names).map_or(now, |last| now.max(last.saturating_add(1)));
    mark::advance(tokens, &names, token)?;
    Ok(FencingToken(token))
}

/// The number after the last one, which may have left already. The highest number is handed out again and again, as
/// ZooKeeper does it; nobody holds by it.
fn next_sequence(names: &[String]) -> Sequence {
    let there = names.iter().filter_map(|name| NodeName::parse(name)).map(|name| name.sequence());
    let there = there.filter(|sequence| !sequence.is_used_up()).map(Sequence::number).max();
    let last = mark::highest(names).and_then(|last| i64::try_from(last).ok()).max(there);
    Sequence::new(last.map_or(0, |last| last.saturating_add(1).min(i32::MAX.into())))
}

fn mode_of(lifetime: Lifetime) -> u32 {
    match lifetime {
        Lifetime::Spawned | Lifetime::Promised { .. } | Lifetime::Session { .. } => 0o666 | libc::S_ISVTX,
        Lifetime::Explicit => 0o666,
    }
}

fn is_marked(mode: u32) -> bool {
    mode & libc::S_ISVTX != 0 && mode & 0o111 == 0
}

fn fill(mut file: &File, claim: &Claim) -> Result<(), Errno> {
    let stat = fstat(file.as_fd())?;
    if is_marked(stat.st_mode) == (claim.lifetime == Lifetime::Explicit) {
        // A file system without modes.
        return Err(Errno::EOPNOTSUPP);
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Errno::EWOULDBLOCK),
        Err(TryLockError::Error(error)) => return Err(errno(&error)),
    }
    file.write_all(&claim.identifier.0).map_err(|error| errno(&error))
}

/// What the kernel says of a contender's file; `None` if it is missing.
fn regular(dir: &Dir, name: &str) -> Result<Option<FileStat>, Trouble> {
    match dir.stat(name)? {
        Some(stat) if stat.st_mode & libc::S_IFMT != libc::S_IFREG => {
            let what = format!("to take {} for a contender", dir.path().join(name).display());
            Err(Trouble::said(what, format!("it is {}", kind(&stat))))
        }
        stat => Ok(stat),
    }
}

fn modified(stat: &FileStat) -> SystemTime {
    let since = Duration::new(stat.st_mtime.try_into().unwrap_or(0), stat.st_mtime_nsec.try_into().unwrap_or(0));
    SystemTime::UNIX_EPOCH + since
}

/// Different after every change of what a contender says.
fn version(stat: &FileStat) -> i32 {
    let mut version = stat.st_ino ^ stat.st_size.cast_unsigned();
    for part in [stat.st_mtime, stat.st_mtime_nsec] {
        version = version.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part.cast_unsigned();
    }
    #[allow(clippy::cast_possible_truncation, reason = "any 32 bits of it will do")]
    let version = (version ^ version >> 32) as u32;
    version.cast_signed()
}
