//! This host, its directories and files.

mod dir;
mod file_system;
mod flock;
mod host;
mod watch;

pub use self::dir::{Dir, Trouble, elsewhere, errno, kind};
pub use self::file_system::check_file_system;
pub use self::flock::taker;
pub use self::host::{boot, host};
pub use self::watch::{News, Watch, Watches};
