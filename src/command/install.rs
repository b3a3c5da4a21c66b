//! `install`: copies the running program into a directory, for images and init containers without a shell.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Links;
use crate::error::Error;
use crate::exit;
use crate::report;

const NAME: &str = "syncd-spawn";
/// What lockpick and its script are called.
const OLD_NAMES: [&str; 2] = ["lockpick", "syncd_spawn"];

/// Every path appears whole, in the place of whatever had its name.
pub(super) fn install(directory: &Path, links: Links) -> Result<exit::Result, Error> {
    let mut installed = vec![place(directory, NAME, copy_of_ourselves)?];
    if let Links::Make = links {
        for name in OLD_NAMES {
            installed.push(place(directory, name, |path| symlink(NAME, path))?);
        }
    }
    // The names, too, survive a crash of the host.
    File::open(directory).and_then(|opened| opened.sync_all()).map_err(|error| not_installed(directory, error))?;
    let answer: Vec<u8> = installed.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\n"].concat()).collect();
    report::answer(answer).map_err(Error::system("cannot write to standard output what was installed"))?;
    Ok(exit::Result::Done)
}

fn place(directory: &Path, name: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    let temporary = directory.join(format!(".{name}.{}", Uuid::new_v4().simple()));
    let placed = make(&temporary).and_then(|()| fs::rename(&temporary, &path));
    placed.map(|()| path.clone()).map_err(|error| {
        // It may never have been made.
        _ = fs::remove_file(&temporary);
        not_installed(&path, error)
    })
}

fn copy_of_ourselves(path: &Path) -> io::Result<()> {
    let mut copy = File::create_new(path)?;
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    // Whatever the umask takes away.
    copy.set_permissions(Permissions::from_mode(0o755))?;
    copy.sync_all()
}

fn not_installed(path: &Path, error: io::Error) -> Error {
    Error::Install { path: path.to_owned(), error }
}
