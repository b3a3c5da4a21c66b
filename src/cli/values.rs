//! Values of options: durations, and what stands in for options that were not given.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, gethostname};

use crate::lock::{Identifier, LockPath};

pub const DEFAULT_CHROOT: &str = "/devops";

/// A longer time is as good, and the clock has no room for every one.
const LONGEST: Duration = Duration::from_hours(24 * 365 * 100);

/// `90s`, `1m30s`, `500ms`, or a bare number of seconds; a century where it is more.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        let seconds: f64 = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
        return Ok(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST));
    }
    let parsed = humantime::parse_duration(text);
    parsed.map(|time| time.min(LONGEST)).map_err(|error| format!("{error} (write 90s, 1m30s, 500ms, or a number of seconds)"))
}

pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than nothing".to_owned()),
        duration => Ok(duration),
    }
}

/// A signal by its name (`TERM`, `SIGTERM`, `RTMIN+1`) or number, or `none`.
pub fn death_signal(text: &str) -> Result<Option<i32>, String> {
    if text == "none" {
        return Ok(None);
    }
    let unknown = || format!("it is no signal, and not none (KILL, SIGTERM, 15, {}...)", "RTMIN+1");
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let number = match (name.parse::<i32>(), name.split_once('+')) {
        (Ok(number), _) => number,
        (Err(_), Some(("RTMIN", offset))) => {
            offset.parse().ok().and_then(|offset| libc::SIGRTMIN().checked_add(offset)).ok_or_else(unknown)?
        }
        (Err(_), _) => format!("SIG{name}").parse::<Signal>().map_err(|_| unknown())? as i32,
    };
    if (1..=libc::SIGRTMAX()).contains(&number) { Ok(Some(number)) } else { Err(unknown()) }
}

/// A value in a message: on one line, whatever is in it, and seen even where it is empty.
pub fn quoted(value: &OsStr) -> String {
    format!("'{}'", one_line(value))
}

/// What would move the cursor is escaped.
pub fn one_line(value: &OsStr) -> String {
    Identifier(value.as_bytes().to_vec()).to_string()
}

pub fn identifier(bytes: OsString) -> Result<Identifier, String> {
    let identifier = Identifier(bytes.into_vec());
    match identifier.0.len() {
        length if length > Identifier::LONGEST => {
            Err(format!("the identifier has {length} bytes; {} are allowed", Identifier::LONGEST))
        }
        _ => Ok(identifier),
    }
}

/// Who we are where nobody said so: the CI job's page if there is one, else `user@host:pid`.
pub fn default_identifier() -> Identifier {
    Identifier(ci_job(|name| env::var_os(name).filter(|value| !value.is_empty())).unwrap_or_else(who_we_are).into_vec())
}

fn ci_job(variable: impl Fn(&str) -> Option<OsString>) -> Option<OsString> {
    let github = || {
        let mut url = variable("GITHUB_SERVER_URL")?;
        for part in ["/", "GITHUB_REPOSITORY", "/actions/runs/", "GITHUB_RUN_ID"] {
            url.push(if part.starts_with('/') { OsString::from(part) } else { variable(part)? });
        }
        Some(url)
    };
    variable("CI_JOB_URL").or_else(github).or_else(|| variable("BUILDKITE_BUILD_URL")).or_else(|| variable("BUILD_URL"))
}

fn who_we_are() -> OsString {
    let user = match User::from_uid(Uid::current()) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => Uid::current().to_string(),
    };
    let host = gethostname().unwrap_or_else(|_| "localhost".into());
    let mut text = OsString::from(user);
    text.push("@");
    text.push(host);
    text.push(format!(":{}", process::id()));
    text
}

/// The lock of a command that names none: its file name.
pub fn lock_of_command(command: &OsStr) -> Result<LockPath, String> {
    let unusable =
        |why: &str| format!("no lock can be named after the command {}: {why}; name one with --node", command.display());
    let name = command.to_str().ok_or_else(|| unusable("its name is not UTF-8"))?;
    let name = name.rsplit('/').next().unwrap_or(name);
    if name.is_empty() {
        return Err(unusable("it has no file name"));
    }
    LockPath::parse(&format!("/{name}")).map_err(|error| unusable(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_humantimes_or_a_number_of_seconds() {
        for (text, milliseconds) in
            [("90s", 90_000), ("1m30s", 90_000), ("500ms", 500), ("7", 7000), ("0.25", 250), ("0", 0), ("1h 5m", 3_900_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for long in ["18000000000000000000", "99999999999999999999999", "5000000000000000s", "101years"] {
            assert_eq!(duration(long), Ok(LONGEST), "{long}");
        }
        for text in ["", "-1", "1x", "s", "1.2.3", "inf", "nan", "1e3", "9999999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0").is_err());
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn a_signal_has_a_name_or_a_number() {
        for (text, signal) in [("KILL", 9), ("SIGTERM", 15), ("15", 15), ("RTMIN+1", libc::SIGRTMIN() + 1), ("SIGUSR1", 10)] {
            assert_eq!(death_signal(text), Ok(Some(signal)), "{text}");
        }
        assert_eq!(death_signal("none"), Ok(None));
        for text in ["", "0", "65", "-1", "TERMINATE", "kill", "RTMIN+99", "RTMIN+x", "RTMIN+2147483647", "RTMIN+2147483648"] {
            assert!(death_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_ci_job_is_named_by_its_page() {
        let with = |set: &[(&str, &str)]| {
            ci_job(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("CI_JOB_URL", "https://gitlab/j/1")]), Some("https://gitlab/j/1".into()));
        assert_eq!(with(&[("BUILD_URL", "https://jenkins/7")]), Some("https://jenkins/7".into()));
        assert_eq!(with(&[("BUILDKITE_BUILD_URL", "https://b/1")]), Some("https://b/1".into()));
        let github = [("GITHUB_SERVER_URL", "https://github.com"), ("GITHUB_REPOSITORY", "a/b"), ("GITHUB_RUN_ID", "9")];
        assert_eq!(with(&github), Some("https://github.com/a/b/actions/runs/9".into()));
        assert_eq!(with(&github[..2]), None);
    }

    #[test]
    fn a_lock_is_named_after_the_commands_file_name() {
        for (command, lock) in [("/usr/bin/backup", "/backup"), ("backup.sh", "/backup.sh"), ("./a b", "/a b")] {
            assert_eq!(lock_of_command(OsStr::new(command)).unwrap().to_string(), lock);
        }
        for command in ["", "/", "..", "bin/", "a\nb"] {
            assert!(lock_of_command(OsStr::new(command)).is_err(), "{command}");
        }
    }
}
