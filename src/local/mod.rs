//! Directories and files of this host.

mod dir;
mod file_system;
mod watch;

pub use self::dir::{Dir, Trouble, elsewhere, errno, kind};
pub use self::file_system::check_file_system;
pub use self::watch::{News, Watch, Watches};
