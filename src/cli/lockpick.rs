//! The grammar of lockpick.

use std::env;
use std::ffi::{OsStr, OsString};
use std::mem;
use std::time::Duration;

use super::argparse::{Grammar, Item, Opt, Stop, Takes, repr};
use super::{Answer, values};
use crate::command::{Action, Address, Layout, LimitOver, Request, Spelling, Unlocking, Voice, Wait, WaitLimit, Wish};
use crate::exit;
use crate::journal::StateDir;
use crate::lock::{AbsolutePath, LockPath, Mode, NodePath, Reports};
use crate::report::{Dialect, Verbosity};
use crate::store::Location;

const GRAMMAR: Grammar = Grammar {
    options: &[
        Opt { short: "-h", long: "--help", takes: Takes::Nothing },
        Opt { short: "-s", long: "--servers", takes: Takes::Value },
        Opt { short: "-c", long: "--chroot", takes: Takes::Value },
        Opt { short: "-i", long: "--identifier", takes: Takes::Value },
        Opt { short: "-v", long: "--verbose", takes: Takes::Nothing },
        Opt { short: "-r", long: "--retry-count", takes: Takes::Value },
        Opt { short: "-p", long: "--retry-sleep", takes: Takes::Value },
    ],
    positionals: &["action", "lock_path"],
};
const ACTIONS: [(&str, Verb); 5] = [
    ("lock", Verb::Lock(Mode::Lock)),
    ("rlock", Verb::Lock(Mode::Read)),
    ("wlock", Verb::Lock(Mode::Write)),
    ("unlock", Verb::Unlock),
    ("list", Verb::List),
];

const USAGE: &str = "\
usage: lockpick [-h] [-s SERVERS] [-c CHROOT] [-i IDENTIFIER] [-v]
                [-r RETRY_COUNT] [-p RETRY_SLEEP]
                {lock,rlock,wlock,unlock,list} lock_path
";
const HELP: &str = "
Distributed locking using Zookeeper primarily for scripting. After acquiring
the lock, the zk node is printed to STDOUT. This zk node should be passed to
unlock. Note: all logs are printed to STDERR

positional arguments:
  {lock,rlock,wlock,unlock,list}
                        lock: acquire a mutex lock. rlock: acquire a read lock
                        wlock: acquire a write lock. unlock: release lock
                        identified by zk node. list: list all lock contenders
  lock_path             ZK path to lock OR ZK node to unlock. For the
                        unlockaction this must be the chrooted zk path to the
                        node e.g.lockpick lock -c /devops /mylocklockpick
                        unlock -c /devops /mylock/9d2badeec7684f35b10f4860db42
                        e45c__rlock__0000000022

optional arguments:
  -h, --help            show this help message and exit
  -s SERVERS, --servers SERVERS
  -c CHROOT, --chroot CHROOT
                        ZK chroot for the lock path
  -i IDENTIFIER, --identifier IDENTIFIER
                        Optional string identifier to add to the lock node OR
                        verify when unlocking
  -v, --verbose
  -r RETRY_COUNT, --retry-count RETRY_COUNT
  -p RETRY_SLEEP, --retry-sleep RETRY_SLEEP

The native form of this program: syncd-spawn --help
";

const NOT_UTF8: &str = "it is not UTF-8";
/// A longer one is as good.
const LONGEST_TICK: i64 = 365 * 24 * 3600;
/// lockpick gives up none of its releases; one that waits for a terminal does.
const RELEASE_TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Clone, Copy)]
enum Verb {
    Lock(Mode),
    Unlock,
    List,
}

/// What was typed, as argparse takes it.
struct Typed {
    servers: OsString,
    chroot: OsString,
    identifier: Option<OsString>,
    verbose: u8,
    retry_count: i64,
    retry_sleep: i64,
    verb: Verb,
    lock_path: OsString,
}

/// Why nothing is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    Help(String),
    /// In argparse's words, after its usage.
    Usage(String),
    /// What argparse took, and nothing can be done with.
    Unusable(String),
}

pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, Answer> {
    let words: Vec<OsString> = words.into_iter().skip(1).collect();
    request(&words).map_err(|refusal| match refusal {
        Refusal::Help(stdout) => Answer::Help(stdout),
        Refusal::Usage(stderr) => Answer::Verbatim { stdout: String::new(), stderr, result: exit::Result::BadUsage },
        Refusal::Unusable(text) => Answer::Usage(text),
    })
}

/// What a command line of lockpick asks for, its name left out.
pub fn request(words: &[OsString]) -> Result<Request, Refusal> {
    let typed = read(words)?;
    let Spelling { typed: spelt, path } = spelling(&typed.lock_path)?;
    let wait = |limit| Wait {
        limit,
        over: LimitOver::Waiting,
        reports: Reports::Queue { every: seconds(typed.retry_sleep.clamp(1, LONGEST_TICK)) },
        conflict_status: exit::timed_out(Dialect::Lockpick),
    };
    let no_lock = |error| unusable("the lock path", &typed.lock_path, &error);
    let identifier = typed.identifier.map(values::identifier).transpose();
    let identifier = identifier.map_err(Refusal::Unusable)?;
    let action = match typed.verb {
        Verb::Lock(mode) => {
            let limit = match typed.retry_count.saturating_mul(typed.retry_sleep) {
                ..=0 => WaitLimit::Once,
                limit => WaitLimit::Within(seconds(limit)),
            };
            let lock = LockPath::parse(&path).map_err(no_lock)?;
            Action::Lock(Wish { lock, mode, identifier: identifier.unwrap_or_default(), wait: wait(limit) })
        }
        Verb::Unlock => {
            let node = NodePath::parse(&path).map_err(no_lock)?;
            Action::Unlock { unlocking: Unlocking::Nodes(vec![node]), identifier, wait: wait(WaitLimit::Never) }
        }
        Verb::List => {
            let lock = LockPath::parse(&path).map_err(no_lock)?;
            Action::List { lock, layout: Layout::Lines, wait: wait(WaitLimit::Never) }
        }
    };
    let address = address(&typed.servers, &typed.chroot)?;
    if let Some(objection) = address.objection(&action) {
        return Err(Refusal::Unusable(objection));
    }
    Ok(Request {
        state_dir: state_dir(env::var_os("SYNCD_SPAWN_STATE_DIR").as_deref())?,
        address,
        verbosity: Verbosity::Verbose(typed.verbose),
        voice: Voice::Lockpick { spelling: Spelling { typed: spelt, path } },
        remark: None,
        release_timeout: RELEASE_TIMEOUT,
        action,
    })
}

fn read(words: &[OsString]) -> Result<Typed, Refusal> {
    let mut typed = Typed {
        servers: "127.0.0.1:2181".into(),
        chroot: values::DEFAULT_CHROOT.into(),
        identifier: None,
        verbose: 0,
        retry_count: 3,
        retry_sleep: 3,
        verb: Verb::List,
        lock_path: OsString::new(),
    };
    let read = GRAMMAR.read(words, |Item { name, value }| {
        match name {
            "--help" => return Err(Stop::Asked(())),
            "--servers" => typed.servers = value,
            "--chroot" => typed.chroot = value,
            "--identifier" => typed.identifier = Some(value),
            "--verbose" => typed.verbose = typed.verbose.saturating_add(1).min(2),
            "--retry-count" => typed.retry_count = integer(&value).map_err(Stop::Complaint)?,
            "--retry-sleep" => typed.retry_sleep = integer(&value).map_err(Stop::Complaint)?,
            "action" => typed.verb = verb(&value).map_err(Stop::Complaint)?,
            "lock_path" => typed.lock_path = value,
            _ => unreachable!("the grammar has no {name}"),
        }
        Ok(())
    });
    match read {
        Ok(()) => Ok(typed),
        Err(Stop::Asked(())) => Err(Refusal::Help(format!("{USAGE}{HELP}"))),
        Err(Stop::Complaint(text)) => Err(Refusal::Usage(format!("{USAGE}lockpick: error: {text}\n"))),
    }
}

fn verb(value: &OsString) -> Result<Verb, String> {
    let known = ACTIONS.iter().find(|(word, _)| *word == value);
    known.map(|(_, verb)| *verb).ok_or_else(|| {
        let choices = ACTIONS.map(|(word, _)| format!("'{word}'")).join(", ");
        format!("invalid choice: {} (choose from {choices})", repr(value))
    })
}

/// A number as Python's `int` takes it. One that is too large for us is as good as the largest.
fn integer(value: &OsString) -> Result<i64, String> {
    let invalid = || format!("invalid int value: {}", repr(value));
    let text = value.to_str().ok_or_else(invalid)?.trim();
    let (is_negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let mut number = 0_i64;
    for group in digits.split(|byte| *byte == b'_') {
        if group.is_empty() || !group.iter().all(u8::is_ascii_digit) {
            return Err(invalid());
        }
        for digit in group {
            number = number.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
        }
    }
    Ok(if is_negative { -number } else { number })
}

fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.max(0).unsigned_abs())
}

fn spelling(typed: &OsStr) -> Result<Spelling, Refusal> {
    let text = typed.to_str().ok_or_else(|| unusable("the lock path", typed, &NOT_UTF8))?;
    Ok(Spelling { typed: text.trim_end_matches('/').to_owned(), path: collapsed(text) })
}

/// An absolute path, as kazoo makes one: empty segments are dropped, and without a leading slash it means the same.
fn collapsed(text: &str) -> String {
    let segments: Vec<&str> = text.split('/').filter(|segment| !segment.is_empty()).collect();
    format!("/{}", segments.join("/"))
}

fn unusable(what: &str, value: &OsStr, why: &dyn std::fmt::Display) -> Refusal {
    Refusal::Unusable(format!("{what} {} is not usable: {why}", values::quoted(value)))
}

/// It had none, and so no option for it; what a site has chosen for all runs holds here too.
fn state_dir(variable: Option<&OsStr>) -> Result<StateDir, Refusal> {
    match variable.filter(|text| !text.is_empty()) {
        None => Ok(StateDir::Own),
        Some(text) => StateDir::parse(text).map_err(|why| unusable("the state directory", text, &why)),
    }
}

fn address(servers: &OsString, chroot: &OsString) -> Result<Address, Refusal> {
    let text = servers.to_string_lossy();
    let location = Location::parse(&text).map_err(|error| unusable("the server", servers, &error))?;
    let path = chroot.to_str().ok_or_else(|| unusable("the chroot", chroot, &NOT_UTF8))?;
    let path = AbsolutePath::parse(&collapsed(path)).map_err(|error| unusable("the chroot", chroot, &error))?;
    if let Some(reserved) = path.reserved() {
        return Err(unusable("the chroot", chroot, &format_args!("/{reserved} is reserved")));
    }
    Ok(match location {
        // A chroot behind the servers was never looked at: -c has a default.
        Location::ZooKeeper(mut servers) => {
            servers.chroot = None;
            Address::ZooKeeper { servers, chroot: path }
        }
        Location::Directory(root) => Address::Directory { root, chroot: path },
    })
}

/// A request for a lock, and nothing else.
pub fn wish(words: &[OsString]) -> Result<(Request, Spelling), Refusal> {
    let mut request = request(words)?;
    match mem::replace(&mut request.voice, Voice::Native) {
        Voice::Lockpick { spelling } => Ok((request, spelling)),
        Voice::Native | Voice::SyncdSpawn { .. } => unreachable!("it is lockpick's"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_what_python_takes_for_one() {
        for (text, number) in [("3", 3), (" +3\n", 3), ("-1", -1), ("1_000", 1000), ("99999999999999999999", i64::MAX)] {
            assert_eq!(integer(&text.into()), Ok(number), "{text}");
        }
        for text in ["", "x", "1.5", "0x1", "1__0", "_1", "--1", "- 1", "1s"] {
            assert_eq!(integer(&text.into()), Err(format!("invalid int value: '{text}'")), "{text}");
        }
    }
}
