//! What can be typed; every grammar gives the same [`Request`]s.

mod native;
mod values;

use std::ffi::OsString;

use crate::command::Request;

/// What parsing gave instead of a request.
#[derive(Debug)]
pub enum Answer {
    /// Help or version, asked for.
    Help(String),
    /// What was typed is not usable.
    Usage(String),
}

/// Parses the command line, the program's name first.
///
/// # Errors
/// [`Answer`]: help that was asked for, or what is wrong with it.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, Answer> {
    native::parse(words)
}
