//! Being woken when something happens to files, without polling.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
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
    /// Another descriptor of it.
    events: Receiver,
}

/// A watch on a file, or on those of a directory.
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

/// That the last descriptor of a file was closed which could write to it. Not of one that was removed before: it has no name
/// any more, and nobody waits for it. (`nix` has no name for that flag.)
const CLOSES_IN_DIRECTORY: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_ONLYDIR)
    .union(AddWatchFlags::IN_DONT_FOLLOW)
    .union(AddWatchFlags::from_bits_retain(libc::IN_EXCL_UNLINK));

/// What happened to files of a directory.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// To those of these names.
    Of(Vec<OsString>),
    /// More than the kernel had room for.
    OfMany,
}

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
        self.add(|inotify| match inotify.add_watch(&dir.path().join(name), OF_FILE) {
            Err(Errno::EACCES) => inotify.add_watch(dir.path(), OF_DIRECTORY),
            added => added,
        })
    }

    /// Arms a watch that tells which files of a directory nobody can write to any more.
    ///
    /// # Errors
    /// The kernel has no more watches for this user, or the directory is gone.
    pub fn arm_closes(&self, dir: &Dir) -> io::Result<Watch<'_>> {
        self.add(|inotify| inotify.add_watch(dir.path(), CLOSES_IN_DIRECTORY))
    }

    fn add(&self, add: impl FnOnce(&Inotify) -> nix::Result<WatchDescriptor>) -> io::Result<Watch<'_>> {
        let spare = self.spare.borrow_mut().pop();
        let instance = spare.map_or_else(Instance::new, Ok)?;
        match add(&instance.inotify) {
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
        loop {
            events.readable().await?;
            if take(events)? {
                return Ok(());
            }
        }
    }

    /// Waits until something happened, and says to which files of the directory.
    ///
    /// # Errors
    /// The watch is over: the directory is gone.
    ///
    /// # Cancellation
    /// As [`Watch::event`].
    pub async fn news(&self) -> io::Result<News> {
        let Some(Instance { inotify, events }) = &self.instance else {
            return std::future::pending().await;
        };
        loop {
            events.readable().await?;
            match inotify.read_events() {
                Ok(told) => return self.sum_up(told),
                // It is for tokio to find that out. What comes in between is lost.
                Err(Errno::EAGAIN) if take(events)? => return Ok(News::OfMany),
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn sum_up(&self, told: Vec<InotifyEvent>) -> io::Result<News> {
        let is = |event: &InotifyEvent, what| event.mask.contains(what);
        if told.iter().any(|event| event.wd == self.watched && is(event, AddWatchFlags::IN_IGNORED)) {
            return Err(Errno::ENOENT.into());
        }
        if told.iter().any(|event| is(event, AddWatchFlags::IN_Q_OVERFLOW)) {
            return Ok(News::OfMany);
        }
        Ok(News::Of(told.into_iter().filter_map(|event| event.name).collect()))
    }
}

/// Takes out some of what was told; says whether there was something.
fn take(events: &Receiver) -> io::Result<bool> {
    match events.try_read(&mut [0; 4096]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
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
