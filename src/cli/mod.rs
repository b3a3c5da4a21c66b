//! What can be typed; every grammar gives the same [`Request`]s.

mod argparse;
mod lockpick;
mod native;
mod syncd_spawn;
mod values;

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::command::Request;
use crate::exit;
use crate::report::Dialect;

/// What parsing gave instead of a request.
#[derive(Debug)]
pub enum Answer {
    /// Help or version, asked for.
    Help(String),
    /// What was typed is not usable.
    Usage(String),
    /// The same to the byte, where an old program had its own way to say it.
    Verbatim { stdout: String, stderr: String, result: exit::Result },
}

/// The program that we are taken for, by the name under which we were called.
pub fn dialect(name: Option<&OsStr>) -> Dialect {
    match name.and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str) {
        Some("lockpick" | "lockpick.py") => Dialect::Lockpick,
        Some("syncd_spawn" | "syncd_spawn.sh") => Dialect::SyncdSpawn,
        Some(_) | None => Dialect::Native,
    }
}

/// Parses the command line, the program's name first.
///
/// # Errors
/// [`Answer`]: help that was asked for, or what is wrong with it.
pub fn parse(dialect: Dialect, words: impl IntoIterator<Item = OsString>) -> Result<Request, Answer> {
    match dialect {
        Dialect::Native => native::parse(words),
        Dialect::Lockpick => lockpick::parse(words),
        Dialect::SyncdSpawn => syncd_spawn::parse(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_old_names_to_the_letter_are_the_old_programs() {
        for (name, expected) in [
            ("lockpick", Dialect::Lockpick),
            ("/usr/local/bin/lockpick", Dialect::Lockpick),
            ("lockpick.py", Dialect::Lockpick),
            ("./syncd_spawn", Dialect::SyncdSpawn),
            ("../syncd_spawn.sh", Dialect::SyncdSpawn),
            ("syncd-spawn", Dialect::Native),
            ("lockpick2", Dialect::Native),
            ("lockpick.sh", Dialect::Native),
            ("syncd_spawn.py", Dialect::Native),
            ("lockpick/x", Dialect::Native),
            ("", Dialect::Native),
        ] {
            assert_eq!(dialect(Some(OsStr::new(name))), expected, "{name}");
        }
        assert_eq!(dialect(None), Dialect::Native);
    }
}
