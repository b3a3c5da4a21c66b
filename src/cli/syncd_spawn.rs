//! The grammar of lockpick's script. What it asked lockpick for is asked for in lockpick's grammar still.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::lockpick::{self, Refusal};
use super::{Answer, values};
use crate::command::{Action, GroupChoice, HeirloomChoice, LifetimeChoice, Manner, OnLost, Request, Voice, could_not_lock};
use crate::exit::{self, SignalExit};
use crate::report::Verbosity;
use crate::supervise::{Orphans, Target};

/// Letters that take a value have a colon, as `getopts` has it. Of `-z` and `-c` each published script has one.
const LETTERS: &str = "z:c:s:r:i:S:n:l:C:hd";
/// `lock` was a `wlock` here from the beginning.
const LOCK_TYPES: [(&str, &str); 3] = [("lock", "wlock"), ("rlock", "rlock"), ("wlock", "wlock")];

/// How a command is run that is as it was with the script: what it leaves behind is left, unless it was asked to end.
const MANNER: Manner = Manner {
    kill_after: None,
    grace: Duration::from_secs(5),
    orphans: Orphans::LeaveUnlessAsked,
    // The shell would end at once, and what it runs go on.
    target: Target::Tree,
    group: GroupChoice::Auto,
    on_lost: OnLost::Stop,
    lifetime: LifetimeChoice::Persistent,
    death_signal: Some(libc::SIGKILL),
    signal_exit: SignalExit::Auto,
    heirloom: HeirloomChoice::PassOn,
};

fn help(program: &OsStr) -> String {
    format!(
        "\
Spawns the given command only if it can acquire (create) the given node in ZK.
Waits on if the given node already exists or exits with error otherwise, simple as that.
Useful for running programs in distributed environments where the runs need to be synchronized.

{program} -n NODE -C CONTENT [options] <COMMAND>
  -d             run in debug mode, prints lot of information for debugging
  -z PATH        path to the zookeepercli command, default is zookeepercli in your PATH
  -c LOCKPICKCMD path to lockpick command, default is lockpick cmd in your PATH
  -s ZK_SERVERS  zk servers to connect to host1[:port1][,host2[:port2]]... format, default is localhost:2181
  -r PATH        zk chroot to use, default is /devops
  -S SECONDS     numbers of seconds to wait between retrying for a lock, default is 5 seconds
  -i RETRIES     number of times to retry acquiring lock, default is 3
  -n NODE        zk node path to lock, for example /service/api, REQUIRED
  -l LOCKTYPE    lock type to use, options are: [lock, rlock, wlock], REQUIRED
  -C CONTENT     content to put in the zk node, useful for debugging/informative purposes, REQUIRED
The native form of this program: syncd-spawn --help
",
        program = program.display()
    )
}

#[derive(Default)]
struct Typed {
    servers: OsString,
    chroot: OsString,
    sleep: OsString,
    retries: OsString,
    node: OsString,
    lock_type: OsString,
    content: OsString,
    debug: bool,
    /// What the option would have been for, and is not.
    ignored: Option<&'static str>,
    command: OsString,
}

pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, Answer> {
    let mut words = words.into_iter();
    let program = words.next().unwrap_or_default();
    let typed = read(&program, &words.collect::<Vec<_>>(), |name| env::var_os(name).unwrap_or_default())?;
    if [&typed.node, &typed.lock_type, &typed.content].iter().any(|value| value.is_empty())
        || typed.command.as_bytes().trim_ascii().is_empty()
    {
        return told(format!("\nERROR: -n -C -l & COMMAND are mandatory\n\n{}", help(&program)), String::new());
    }
    let Some((_, action)) = LOCK_TYPES.iter().find(|(word, _)| typed.lock_type == *word) else {
        let lock_type = typed.lock_type.display();
        return told(format!("ERROR: Unknown -l LOCKTYPE '{lock_type}' passed\nUsage: \n{}", help(&program)), String::new());
    };
    // As the script shows it: without one slash at the end, where there is any.
    let lock = values::one_line(&typed.node);
    let lock = lock.strip_suffix('/').unwrap_or(&lock).to_owned();
    let option = |name: &str, value: &OsStr| [OsStr::new(name), OsStr::new("="), value].into_iter().collect::<OsString>();
    let asked = lockpick::wish(&[
        option("--servers", &typed.servers),
        option("--chroot", &typed.chroot),
        option("--identifier", &typed.content),
        option("--retry-count", &typed.retries),
        option("--retry-sleep", &typed.sleep),
        "--".into(),
        (*action).into(),
        typed.node,
    ]);
    let (request, spelling) = match asked {
        Ok(asked) => asked,
        Err(Refusal::Help(stderr) | Refusal::Usage(stderr)) => {
            return told(String::new(), format!("{stderr}{}\n", could_not_lock(&lock)));
        }
        Err(Refusal::Unusable(text)) => return Err(Answer::Usage(format!("{text}\n{}", could_not_lock(&lock)))),
    };
    let Action::Lock(wish) = request.action else { unreachable!("a lock was asked for") };
    // The name that the script had in the messages of its shell.
    let words = vec![shell().into(), "-c".into(), "--".into(), evaluated(&typed.command), program];
    let variables = if typed.debug { vec![("DEBUG", "yes".into())] } else { Vec::new() };
    Ok(Request {
        remark: typed.ignored.map(str::to_owned),
        verbosity: Verbosity::Verbose(if typed.debug { 2 } else { 0 }),
        voice: Voice::SyncdSpawn { spelling, lock, command: typed.command },
        action: Action::Spawn { wish, words, variables, manner: MANNER },
        ..request
    })
}

/// Reads options up to the first word that is none, as `getopts` does; what was not given may come from a variable, or is the
/// script's default.
fn read(program: &OsStr, words: &[OsString], variable: impl Fn(&str) -> OsString) -> Result<Typed, Answer> {
    let mut typed = Typed {
        servers: variable("ZK_SERVERS"),
        chroot: variable("ZKCHROOT"),
        sleep: variable("SLEEP"),
        retries: variable("RETRIES"),
        ..Typed::default()
    };
    let complain = |what: &str, letter: u8| {
        let letter = char::from(letter);
        told(help(program), format!("{}: {what} -- {letter}\n", program.display()))
    };
    let mut words = words.iter();
    let command = loop {
        let rest = words.as_slice();
        let Some(word) = words.next() else { break rest };
        let letters = match word.as_bytes() {
            b"--" => break words.as_slice(),
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => break rest,
        };
        let mut letters = letters.iter();
        while let Some(letter) = letters.next() {
            let place = LETTERS.bytes().position(|known| known == *letter && known != b':');
            let Some(place) = place else { return complain("illegal option", *letter) };
            let mut value = OsString::new();
            if LETTERS.as_bytes().get(place + 1) == Some(&b':') {
                let rest = std::mem::take(&mut letters).as_slice();
                value = match rest {
                    [] => match words.next() {
                        Some(word) => word.clone(),
                        None => return complain("option requires an argument", *letter),
                    },
                    rest => OsStr::from_bytes(rest).to_owned(),
                };
            }
            match letter {
                b'z' => typed.ignored = Some("-z is ignored: nothing here calls zookeepercli"),
                b'c' => typed.ignored = Some("-c is ignored: nothing here calls lockpick"),
                b's' => typed.servers = value,
                b'r' => typed.chroot = value,
                b'i' => typed.retries = value,
                b'S' => typed.sleep = value,
                b'n' => typed.node = value,
                b'l' => typed.lock_type = value,
                b'C' => typed.content = value,
                b'd' => typed.debug = true,
                _ => return told(help(program), String::new()),
            }
        }
    };
    typed.command = OsString::from_vec(command.iter().map(|word| word.as_bytes()).collect::<Vec<_>>().join(&b' '));
    for (value, default) in [
        (&mut typed.servers, "localhost:2181"),
        (&mut typed.chroot, values::DEFAULT_CHROOT),
        (&mut typed.sleep, "5"),
        (&mut typed.retries, "3"),
    ] {
        if value.is_empty() {
            *value = default.into();
        }
    }
    Ok(typed)
}

/// What the shell is given. What begins like an option was one of `eval`, which says that it has none.
fn evaluated(command: &OsStr) -> OsString {
    match command.as_bytes().trim_ascii_start() {
        words @ [b'-', ..] => {
            let quoted = words.split(|byte| *byte == b'\'').collect::<Vec<_>>().join(&br"'\''"[..]);
            OsString::from_vec([b"eval '", quoted.as_slice(), b"'"].concat())
        }
        _ => command.to_owned(),
    }
}

fn told<T>(stdout: String, stderr: String) -> Result<T, Answer> {
    Err(Answer::Verbatim { stdout, stderr, result: exit::Result::BadUsage })
}

/// The shell that the script was written for, or the one that is everywhere.
fn shell() -> &'static str {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = env::split_paths(&path).any(|directory| {
        let found = fs::metadata(directory.join("bash"));
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    });
    if is_there { "bash" } else { "sh" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(line: &[&str]) -> Result<Typed, String> {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        read("./syncd_spawn".as_ref(), &words, |_| OsString::new()).map_err(|answer| match answer {
            Answer::Verbatim { stderr, .. } => stderr,
            Answer::Help(_) | Answer::Usage(_) => unreachable!("it is verbatim"),
        })
    }

    #[test]
    fn options_are_read_as_getopts_reads_them() {
        for line in [
            &["-n", "/x", "-d", "-C", "c", "echo", "-n", "y"][..],
            &["-dn/x", "-Cc", "--", "echo", "-n", "y"],
            &["-z", "q", "-dn", "/x", "-C", "", "-C", "c", "echo -n", "y"],
        ] {
            let typed = reads(line).ok().unwrap();
            assert_eq!((typed.node, typed.content, typed.debug), ("/x".into(), "c".into(), true), "{line:?}");
            assert_eq!(typed.command, "echo -n y", "{line:?}");
        }
        assert_eq!(reads(&["-", "x"]).ok().unwrap().command, "- x");
        assert_eq!(reads(&["-dx"]).err().unwrap(), "./syncd_spawn: illegal option -- x\n");
        assert_eq!(reads(&["-:"]).err().unwrap(), "./syncd_spawn: illegal option -- :\n");
        assert_eq!(reads(&["-d", "-n"]).err().unwrap(), "./syncd_spawn: option requires an argument -- n\n");
        assert_eq!(reads(&["-h"]).err().unwrap(), "");
    }

    #[test]
    fn a_variable_stands_in_for_an_option_and_a_default_for_both() {
        let words = |line: &[&str]| line.iter().map(OsString::from).collect::<Vec<_>>();
        let variable = |name: &str| OsString::from(if name == "SLEEP" { "" } else { name });
        let typed = read("s".as_ref(), &words(&["-i", "9", "x"]), variable).ok().unwrap();
        assert_eq!((typed.servers, typed.chroot), ("ZK_SERVERS".into(), "ZKCHROOT".into()));
        assert_eq!((typed.retries, typed.sleep), ("9".into(), "5".into()));
        let typed = reads(&["x"]).ok().unwrap();
        assert_eq!((typed.servers, typed.chroot), ("localhost:2181".into(), "/devops".into()));
        assert_eq!((typed.retries, typed.sleep), ("3".into(), "5".into()));
    }
}
