//! What a person or a program reads. Standard output is for answers only; all else goes to standard error.

mod log;

use std::fmt::Display;
use std::io::{self, Write};

pub use self::log::{Verbosity, start_log};

/// Writes a line to standard error, where somebody still listens there.
pub fn line(text: impl Display) {
    // One write, so that it does not mix with the command's own; eprintln! would panic on a closed pipe.
    _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// The one error of a run, and what can be done about it.
pub fn error(error: &impl Display, hint: Option<&str>) {
    let hint = hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    line(format_args!("syncd-spawn: {error}{hint}"));
}

/// Writes an answer to standard output, all of it or with an error.
pub fn answer(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
