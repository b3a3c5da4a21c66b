//! Being woken when something happens to one file, without polling.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::net::unix::pipe::Receiver;

use super::dir::Dir;

/// What watches are made with. They are kept for the next one: a user may not have many, and the kernel takes milliseconds to
/// close one, which nobody is to wait for who has just come to his turn.
#[derive(Default)]
pub struct Watches {
    spare: RefCell<Vec<Instance>>,
}

struct Instance {
    inotify: Inotify,
    events: Receiver,
}

/// A watch on a file.
pub struct Watch<'w> {
    watches: &'w Watches,
    /// Always there but at the very end.
    instance: Option<Instance>,
    watched: WatchDescriptor,
}

/// What may end a file or a flock on it: a change of its links, the close of its last writer, its own end.
const OF_FILE: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_DONT_FOLLOW);
/// The same of any file in a directory.
const OF_DIRECTORY: AddWatchFlags =
    AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_CLOSE_WRITE).union(AddWatchFlags::IN_MOVED_FROM);

impl Instance {
    fn new() -> io::Result<Instance> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // It is read like a pipe, and tokio asks no more of what it is to wait for.
        let events = Receiver::from_owned_fd_unchecked(inotify.as_fd().try_clone_to_owned()?)?;
        Ok(Instance { inotify, events })
    }
}

impl Watches {
    /// Arms a watch on a file, or on its whole directory where the file may not be read.
    ///
    /// # Errors
    /// The file is missing, or the kernel has no more watches for this user.
    pub fn arm(&self, dir: &Dir, name: &str) -> io::Result<Watch<'_>> {
        let spare = self.spare.borrow_mut().pop();
        let instance = spare.map_or_else(Instance::new, Ok)?;
        let watched = match instance.inotify.add_watch(&dir.path().join(name), OF_FILE) {
            Err(Errno::EACCES) => instance.inotify.add_watch(dir.path(), OF_DIRECTORY),
            added => added,
        };
        match watched {
            Ok(watched) => Ok(Watch { watches: self, instance: Some(instance), watched }),
            Err(errno) => {
                self.spare.borrow_mut().push(instance);
                Err(errno.into())
            }
        }
    }
}

impl Watch<'_> {
    /// Waits until something happened, or seems to have.
    ///
    /// # Cancellation
    /// May be dropped and called again.
    pub async fn event(&self) -> io::Result<()> {
        let Some(Instance { events, .. }) = &self.instance else {
            return std::future::pending().await;
        };
        let mut buffer = [0; 4096];
        loop {
            events.readable().await?;
            match events.try_read(&mut buffer) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            // It may have ended with its file. What it told meanwhile makes the next one look once too often, no more.
            _ = instance.inotify.rm_watch(self.watched);
            self.watches.spare.borrow_mut().push(instance);
        }
    }
}
