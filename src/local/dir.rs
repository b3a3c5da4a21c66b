//! A directory by its descriptor: what is done in it is done there, whoever puts a symbolic link in the way meanwhile.

use std::fmt::{self, Display};
use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::dir::Dir as Listing;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat, umask};
use nix::unistd::{UnlinkatFlags, unlinkat};
use tokio::sync::oneshot;

pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What could not be done, and why.
#[derive(Debug)]
pub struct Trouble {
    pub what: String,
    pub cause: String,
    errno: Option<Errno>,
}

impl Trouble {
    pub fn new(what: impl Into<String>, errno: Errno) -> Trouble {
        let mut text = errno.desc().to_owned();
        // As errors are written here.
        text[..1].make_ascii_lowercase();
        Trouble { what: what.into(), cause: text, errno: Some(errno) }
    }

    pub fn said(what: impl Into<String>, cause: impl Into<String>) -> Trouble {
        Trouble { what: what.into(), cause: cause.into(), errno: None }
    }

    /// Whether something was not there, or not any more.
    pub fn is_absence(&self) -> bool {
        self.errno == Some(Errno::ENOENT)
    }
}

impl Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trouble { what, cause, errno: _ } = self;
        write!(f, "cannot {}: {cause}", what.strip_prefix("to ").unwrap_or(what))
    }
}

impl Dir {
    /// Opens a directory by its path, whose last part must be no symbolic link; `None` if it is missing.
    pub fn at(path: &Path) -> Result<Option<Dir>, Trouble> {
        open_directory(AT_FDCWD, path, path.to_owned())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory in this one; `None` if it is missing.
    pub fn open(&self, name: &str) -> Result<Option<Dir>, Trouble> {
        open_directory(&self.fd, Path::new(name), self.path.join(name))
    }

    /// Opens a directory in this one, and makes it where it is missing.
    ///
    /// Its mode is what the umask says. But where the owner of this one opened it to others, they are to come in there too:
    /// then it gets this one's mode, and the sticky bit, so that everybody's files stay his own.
    pub fn make(&self, name: &str) -> Result<Dir, Trouble> {
        if let Some(dir) = self.open(name)? {
            return Ok(dir);
        }
        let what = || format!("to make {}", self.path.join(name).display());
        let create = |mode| mkdirat(&self.fd, name, Mode::from_bits_truncate(mode));
        let made = match inherited_mode(self.stat_itself()?.st_mode) {
            // With its mode from the start: the others may be coming in already. The set-group-ID bit comes by itself.
            Some(mode) => {
                let mask = umask(Mode::empty());
                let created = create(mode);
                umask(mask);
                created
            }
            None => create(0o777),
        };
        match made {
            Ok(()) | Err(Errno::EEXIST) => self.open(name)?.ok_or_else(|| Trouble::new(what(), Errno::ENOENT)),
            Err(errno) => Err(Trouble::new(what(), errno)),
        }
    }

    /// Waits until we are the only one who may change what is in here; it lasts until the last copy of this descriptor is closed.
    ///
    /// # Cancellation
    /// May be dropped.
    pub async fn pass_turnstile(&self) -> Result<(), Trouble> {
        let trouble = |errno| Trouble::new(format!("to lock {}", self.path.display()), errno);
        let file = File::from(self.fd.try_clone().map_err(|error| trouble(errno(&error)))?);
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                // Whoever is in there may have been stopped.
                let locked = elsewhere(move || file.lock()).map_err(|error| trouble(errno(&error)))?;
                locked.await.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        locked.map_err(|error| trouble(errno(&error)))
    }

    pub fn stat_itself(&self) -> Result<FileStat, Trouble> {
        fstat(&self.fd).map_err(|errno| Trouble::new(format!("to look at {}", self.path.display()), errno))
    }

    /// Every name in it, in no order.
    pub fn names(&self) -> Result<Vec<String>, Trouble> {
        let trouble = |errno| Trouble::new(format!("to list {}", self.path.display()), errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listing = Listing::openat(&self.fd, ".", flags, Mode::empty()).map_err(trouble)?;
        let mut names = Vec::new();
        for entry in listing.iter() {
            let name = entry.map_err(trouble)?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    pub fn stat(&self, name: &str) -> Result<Option<FileStat>, Trouble> {
        self.unless_missing("to look at", name, fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW))
    }

    /// Opens a file for reading only: closing it then wakes nobody who watches for a writer.
    pub fn open_file(&self, name: &str) -> Result<Option<File>, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens a file for reading, and for adding to its end.
    pub fn open_to_append(&self, name: &str) -> Result<Option<File>, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Makes a file for writing that was not there.
    pub fn create(&self, name: &str, mode: u32) -> Result<File, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        openat(&self.fd, name, flags, Mode::from_bits_truncate(mode)).map(File::from)
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Trouble> {
        renameat(&self.fd, from, &self.fd, to).map_err(|errno| self.trouble("to rename a file to", to, errno))
    }

    /// Removes a file; says whether it was there.
    pub fn remove(&self, name: &str) -> Result<bool, Trouble> {
        let removed = unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir);
        self.unless_missing("to remove", name, removed).map(|removed| removed.is_some())
    }

    pub fn trouble(&self, what: &str, name: &str, errno: Errno) -> Trouble {
        Trouble::new(format!("{what} {}", self.path.join(name).display()), errno)
    }

    fn unless_missing<T>(&self, what: &str, name: &str, done: nix::Result<T>) -> Result<Option<T>, Trouble> {
        match done {
            Ok(value) => Ok(Some(value)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.trouble(what, name, errno)),
        }
    }
}

/// Has another thread wait for something that the kernel blocks for. Nobody waits for that thread when the answer is no
/// longer wanted; what the work holds is given up when it is done.
pub fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<oneshot::Receiver<T>> {
    let (answer, answered) = oneshot::channel();
    thread::Builder::new().name("files".to_owned()).spawn(move || drop(answer.send(work())))?;
    Ok(answered)
}

pub fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn open_directory(parent: impl AsFd + Copy, name: &Path, path: PathBuf) -> Result<Option<Dir>, Trouble> {
    let what = || format!("to open {}", path.display());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(parent, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(Dir { fd, path })),
        Err(Errno::ENOENT) => Ok(None),
        // The kernel says the same of a symbolic link and of a file.
        Err(errno @ (Errno::ENOTDIR | Errno::ELOOP)) => match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Err(Trouble::said(what(), format!("it is {}, not a directory", kind(&stat)))),
            Err(_) => Err(Trouble::new(what(), errno)),
        },
        Err(errno) => Err(Trouble::new(what(), errno)),
    }
}

/// What a directory gets that is made in one with this mode, where that is more than the umask's.
fn inherited_mode(parent: u32) -> Option<u32> {
    const STICKY: u32 = libc::S_ISVTX;
    match (parent & 0o002 != 0, parent & 0o020 != 0 && parent & libc::S_ISGID != 0) {
        (true, _) => Some(parent & 0o7777 | STICKY),
        (false, true) => Some(parent & 0o7777),
        (false, false) => None,
    }
}

/// What it is, in words.
pub fn kind(stat: &FileStat) -> &'static str {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a directory",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFIFO => "a pipe",
        libc::S_IFSOCK => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_that_was_opened_to_others_hands_its_mode_down() {
        for (parent, inherited) in [
            (0o700, None),
            (0o755, None),
            (0o775, None),
            (0o2755, None),
            (0o1777, Some(0o1777)),
            (0o777, Some(0o1777)),
            (0o2775, Some(0o2775)),
            (0o2770, Some(0o2770)),
            (0o3770, Some(0o3770)),
        ] {
            assert_eq!(inherited_mode(parent | libc::S_IFDIR), inherited, "{parent:o}");
        }
    }
}
