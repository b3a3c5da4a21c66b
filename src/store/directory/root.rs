//! Where the directory is, and whether locks may be kept there.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::unistd::{AccessFlags, Uid, access, geteuid};

use crate::local::{self, Dir, Trouble};
use crate::lock::{AbsolutePath, PathError, StoreError};

/// The directory that holds everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// The default: one for each user, and for nobody else.
    Own,
    Named(AbsolutePath),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    #[error("a directory is written file:///ABSOLUTE/DIR, or file: for the default one")]
    Form,
    #[error("the directory {0:?} is not usable: {1}")]
    Path(String, PathError),
}

impl Root {
    /// Parses what follows `file:`. It is taken as it stands: nothing is decoded.
    pub fn parse(rest: &str) -> Result<Root, RootError> {
        if rest.is_empty() {
            return Ok(Root::Own);
        }
        let path = rest.strip_prefix("//").filter(|path| path.starts_with('/')).ok_or(RootError::Form)?;
        AbsolutePath::parse(path).map(Root::Named).map_err(|error| RootError::Path(path.to_owned(), error))
    }

    pub fn path(&self) -> PathBuf {
        match self {
            Root::Own => {
                let is_ours = |parent: &Path| access(parent, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
                own_path(env::var_os("XDG_RUNTIME_DIR"), geteuid(), is_ours)
            }
            Root::Named(path) => PathBuf::from(path.as_str()),
        }
    }

    /// Opens it; `None` if it is missing.
    pub fn open(&self, path: &Path) -> Result<Option<Dir>, Trouble> {
        let Some(dir) = Dir::at(path)? else {
            return Ok(None);
        };
        if *self == Root::Own {
            let stat = fstat(dir.fd()).map_err(|errno| Trouble::new(format!("to look at {}", path.display()), errno))?;
            let us = geteuid();
            if stat.st_uid != us.as_raw() {
                return Err(Trouble::said(format!("to use {}", path.display()), format!("it belongs to user {}", stat.st_uid)));
            }
            if stat.st_mode & 0o022 != 0 {
                return Err(Trouble::said(format!("to use {}", path.display()), "others may write to it"));
            }
        }
        Ok(Some(dir))
    }

    /// Opens it, and makes it where it is missing.
    pub fn make(&self, path: &Path) -> Result<Dir, Trouble> {
        if let Some(dir) = self.open(path)? {
            return Ok(dir);
        }
        let mut builder = DirBuilder::new();
        match self {
            Root::Own => _ = builder.mode(0o700),
            // Not what it is in: a path that was mistyped, or is not mounted, is to be noticed.
            Root::Named(_) => {}
        }
        let what = || format!("to make {}", path.display());
        match builder.create(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Trouble::new(what(), Errno::from_raw(error.raw_os_error().unwrap_or_default()))),
        }
        self.open(path)?.ok_or_else(|| Trouble::new(what(), Errno::ENOENT))
    }
}

/// As `-s` takes it.
impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Root::Own => f.write_str("file:"),
            Root::Named(path) => write!(f, "file://{path}"),
        }
    }
}

fn own_path(runtime: Option<OsString>, user: Uid, is_ours: impl Fn(&Path) -> bool) -> PathBuf {
    // A relative one is to be ignored, says its specification.
    if let Some(runtime) = runtime.filter(|runtime| runtime.as_bytes().starts_with(b"/")) {
        return Path::new(&runtime).join("syncd-spawn");
    }
    let name = format!("syncd-spawn-{user}");
    let preferred = Path::new("/run/lock");
    match preferred.join(&name) {
        path if path.is_dir() || is_ours(preferred) => path,
        _ => Path::new("/tmp").join(name),
    }
}

/// Refuses what other hosts may see as well: their flocks and our inotify do not meet there.
pub fn check_file_system(dir: &Dir, place: &str) -> Result<(), StoreError> {
    local::check_file_system(dir).map_err(|why| StoreError::Unsuitable { place: place.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_an_absolute_directory_or_the_default() {
        assert_eq!(Root::parse(""), Ok(Root::Own));
        for text in ["///a", "///a/b/", "///"] {
            let path = text[2..].trim_end_matches('/');
            let expected = if path.is_empty() { "file:///".to_owned() } else { format!("file://{path}") };
            assert_eq!(Root::parse(text).unwrap().to_string(), expected);
        }
        for text in ["relative", "/a", "//", "//host/a", "//host", " "] {
            assert_eq!(Root::parse(text), Err(RootError::Form), "{text}");
        }
        assert!(matches!(Root::parse("///a/../b"), Err(RootError::Path(..))));
    }

    #[test]
    fn the_default_is_each_users_own() {
        let user = Uid::from_raw(u32::MAX - 7);
        let own = |runtime: Option<&str>, lock_is_ours: bool| {
            own_path(runtime.map(OsString::from), user, |_| lock_is_ours).to_str().unwrap().to_owned()
        };
        assert_eq!(own(Some("/run/user/7"), true), "/run/user/7/syncd-spawn");
        for runtime in [None, Some(""), Some("relative")] {
            assert_eq!(own(runtime, true), "/run/lock/syncd-spawn-4294967288");
            assert_eq!(own(runtime, false), "/tmp/syncd-spawn-4294967288");
        }
    }
}
