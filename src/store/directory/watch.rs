//! Being woken when something happens to one file, without polling.

use std::io;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

use super::dir::Dir;

/// A watch on a contender's file.
pub struct Watch {
    events: Receiver,
}

/// What may end a contender: a change of its links, the close of its last writer, its own end.
const OF_FILE: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_DONT_FOLLOW);
/// The same of any file in a directory.
const OF_DIRECTORY: AddWatchFlags =
    AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_CLOSE_WRITE).union(AddWatchFlags::IN_MOVED_FROM);

impl Watch {
    /// Arms a watch on a file, or on its whole directory where the file may not be read.
    ///
    /// # Errors
    /// The file is missing, or the kernel has no more watches for this user.
    pub fn new(dir: &Dir, name: &str) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        match inotify.add_watch(&dir.path().join(name), OF_FILE) {
            Err(Errno::EACCES) => inotify.add_watch(dir.path(), OF_DIRECTORY)?,
            added => added?,
        };
        // It is read like a pipe, and tokio asks no more of what it is to wait for.
        Ok(Watch { events: Receiver::from_owned_fd_unchecked(inotify.into())? })
    }

    /// Waits until something happened.
    ///
    /// # Cancellation
    /// May be dropped and called again.
    pub async fn event(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            self.events.readable().await?;
            match self.events.try_read(&mut events) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
