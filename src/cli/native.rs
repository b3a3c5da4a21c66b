//! The grammar of `syncd-spawn` itself.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::{Answer, values};
use crate::command::{
    Action, Address, GroupChoice, HeirloomChoice, Layout, LifetimeChoice, LimitOver, Links, Manner, OnLost, Request, Suspect,
    Unlocking, Voice, Wait, WaitLimit, Wish, shortest_promise,
};
use crate::exit::{self, SignalExit};
use crate::journal::StateDir;
use crate::lock::{AbsolutePath, Identifier, LockPath, Mode, NodePath, PathError, Reports};
use crate::report::Verbosity;
use crate::store::Location;
use crate::supervise::{Orphans, Target};

/// So much of a value that is not usable is shown, in characters.
const LONGEST_ECHO: usize = 60;

/// The words of options, and what they stand for.
const LOCK_TYPES: [(&str, Mode); 3] = [("lock", Mode::Lock), ("rlock", Mode::Read), ("wlock", Mode::Write)];
const ORPHANS: [(&str, Orphans); 3] = [("kill", Orphans::Kill), ("wait", Orphans::Wait), ("leave", Orphans::Leave)];
const ON_LOST: [(&str, OnLost); 2] = [("stop", OnLost::Stop), ("ignore", OnLost::Ignore)];
const TARGETS: [(&str, Target); 2] = [("command", Target::Command), ("group", Target::Group)];
const GROUPS: [(&str, GroupChoice); 3] = [("auto", GroupChoice::Auto), ("own", GroupChoice::Own), ("same", GroupChoice::Same)];
const SIGNAL_EXITS: [(&str, SignalExit); 3] =
    [("auto", SignalExit::Auto), ("code", SignalExit::Code), ("raise", SignalExit::Raise)];

/// What says how a command is run; a subcommand runs none.
const SPAWN_ONLY: [(&str, &str); 13] = [
    ("node", "--node"),
    ("lock_type", "--lock-type"),
    ("kill_after", "--kill-after"),
    ("orphans", "--orphans"),
    ("grace", "--grace"),
    ("on_lost", "--on-lost"),
    ("ephemeral", "--ephemeral"),
    ("abandon_after", "--abandon-after"),
    ("forward_to", "--forward-to"),
    ("group", "--group"),
    ("pdeathsig", "--pdeathsig"),
    ("signal_exit", "--signal-exit"),
    ("close", "--close"),
];

/// What some subcommands have no use for.
const MISPLACED: [(&[&str], &str, &str, &str); 6] = [
    (
        &["unlock", "list"],
        "state_dir",
        "--state-dir",
        "only what contends, reap, and unlock --if-dead have to do with the journal",
    ),
    (&["reap"], "servers", "--servers", "it goes to the servers that it finds in the journal"),
    (&["reap"], "chroot", "--chroot", "it goes where the journal says"),
    (&["install"], "servers", "--servers", "it goes to no server"),
    (&["install"], "chroot", "--chroot", "it goes to no server"),
    (&["install"], "state_dir", "--state-dir", "it runs nothing"),
];

const USAGE: &str = "syncd-spawn [OPTIONS] [-n NODE] [-l lock|rlock|wlock] [--] COMMAND [ARG]...
       syncd-spawn [OPTIONS] lock|rlock|wlock LOCK_PATH
       syncd-spawn [OPTIONS] unlock NODE...
       syncd-spawn [OPTIONS] unlock --if-dead NODE|LOCK_PATH...
       syncd-spawn [OPTIONS] list [--long] LOCK_PATH
       syncd-spawn [--state-dir DIR] reap
       syncd-spawn install [--links] DIR";

const AFTER_HELP: &str = "\
The first word that is no option is the command; after it, or after --, nothing is ours.

Called as lockpick or as syncd_spawn (its script), it takes that program's command line, defaults and environment, and answers
as that one did. install --links makes both names.

Examples:
  syncd-spawn -l wlock -- cmd args
  syncd-spawn -n /test -C 'test' -l rlock sleep 5
  syncd-spawn -s localhost:2181 -c /test -i \"test lock1\" rlock /mylock
  syncd-spawn list /mylock -s h:2181
  syncd-spawn -s file: -n /nightly -- backup --all
  syncd-spawn reap

Exit status:
  the command's   it ran and ended by itself
  128+n           signal n ended the command, or us while we waited
  0 / 1           lock, unlock, list, reap: done / no (no such lock, not yours, not dead)
  123             the lock was taken away while the command ran; the command was stopped
  124             not acquired in time (-E changes it)
  125             ours: bad usage, server unreachable or refused us, release failed
  126 / 127       the command cannot be run / is not found

The command gets SYNCD_SPAWN_LOCK_PATH, SYNCD_SPAWN_LOCK_NODE, SYNCD_SPAWN_LOCK_TYPE and SYNCD_SPAWN_FENCING_TOKEN, and
SYNCD_SPAWN_HELD, by which a run inside it knows what it must not wait for.";

/// Run a command while holding a distributed lock, and let go when it is done.
#[derive(Parser)]
#[command(
    name = "syncd-spawn",
    version,
    override_usage = USAGE,
    after_long_help = AFTER_HELP,
    after_help = "--help says more.",
    disable_help_subcommand = true,
    subcommand_negates_reqs = true,
    subcommand_help_heading = "Subcommands",
    max_term_width = 100
)]
struct Native {
    #[command(flatten)]
    spawn: SpawnOnly,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    subcommand: Option<Sub>,
    /// The command and its arguments, executed without a shell
    #[arg(help_heading = "Command", trailing_var_arg = true, value_name = "COMMAND", value_parser = OsStringValueParser::new())]
    command: Vec<OsString>,
}

#[derive(Args)]
#[command(next_help_heading = "Connection")]
#[allow(clippy::doc_markdown, reason = "it is read on a terminal")]
struct Connection {
    /// ZooKeeper servers, or a directory of this host
    ///
    /// HOST:PORT[,HOST:PORT]...[/CHROOT], with zk:// or tcp:// before it or not; the port is 2181 where none is given, an
    /// IPv6 address stands in brackets. file:///DIR keeps the locks in a directory of this host, without a server; file: in
    /// $XDG_RUNTIME_DIR/syncd-spawn, or without that variable in /run/lock or /tmp, in a directory of this user.
    #[arg(
        short,
        long,
        global = true,
        env = "SYNCD_SPAWN_SERVERS",
        default_value = "localhost:2181",
        value_parser = Location::parse
    )]
    servers: Location,
    /// What all paths are below [default: /devops]
    ///
    /// Made where it is missing. / is no chroot. An error if the servers end in another one.
    #[arg(short, long, global = true, env = "SYNCD_SPAWN_CHROOT", value_parser = chroot)]
    chroot: Option<AbsolutePath>,
}

#[derive(Args)]
#[command(next_help_heading = "Waiting")]
struct Waiting {
    /// Give up after this long (90s, 1m30s, 500ms, or seconds)
    ///
    /// One limit over connecting and waiting for the lock. Without a limit we wait as long as it takes for the lock, and 15 s
    /// for a first connection. 0 looks once.
    #[arg(short, long, global = true, value_name = "DURATION", env = "SYNCD_SPAWN_TIMEOUT", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Give up if the lock is not free at once
    #[arg(long, global = true)]
    no_wait: bool,
    /// Give up after this many times --retry-sleep; 0 looks once
    #[arg(short, long, global = true, value_name = "COUNT", env = "SYNCD_SPAWN_RETRY_COUNT")]
    retry_count: Option<u32>,
    /// Time between two lines that say who is in front
    #[arg(
        short = 'p',
        long,
        global = true,
        value_name = "DURATION",
        env = "SYNCD_SPAWN_RETRY_SLEEP",
        default_value = "3s",
        value_parser = values::positive_duration
    )]
    retry_sleep: Duration,
    /// Exit status if the lock was not acquired in time
    #[arg(
        short = 'E',
        long,
        global = true,
        value_name = "STATUS",
        env = "SYNCD_SPAWN_CONFLICT_EXIT_CODE",
        default_value_t = exit::TIMED_OUT
    )]
    conflict_exit_code: u8,
    /// Give up releasing the lock after this long
    ///
    /// The release is tried again until the server has confirmed it. What could not be released is named, with the line that
    /// unlocks it.
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        env = "SYNCD_SPAWN_RELEASE_TIMEOUT",
        default_value = "60s",
        value_parser = values::positive_duration
    )]
    release_timeout: Duration,
}

#[derive(Args)]
#[command(next_help_heading = "General")]
struct Common {
    /// Where it is written down which locks runs of this host have or ask for
    ///
    /// What is left of a run that was killed is found there and removed by the next one, or by reap. It has to be on a local
    /// file system, and to outlive a crash of the host. The default is /var/lib/syncd-spawn for root and
    /// $XDG_STATE_HOME/syncd-spawn or ~/.local/state/syncd-spawn for others. Where nothing can be written there is a warning.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SYNCD_SPAWN_STATE_DIR",
        value_parser = OsStringValueParser::new().try_map(|text| StateDir::parse(&text))
    )]
    state_dir: Option<StateDir>,
    /// Who holds the lock, for people to read; unlock removes only what carries it
    ///
    /// The default is the page of the CI job if there is one, else user@host:pid. unlock checks it only where it is given.
    #[arg(
        short,
        long,
        global = true,
        visible_short_alias = 'C',
        visible_alias = "content",
        value_name = "TEXT",
        env = "SYNCD_SPAWN_IDENTIFIER",
        value_parser = OsStringValueParser::new().try_map(values::identifier)
    )]
    identifier: Option<Identifier>,
    /// Say more (-vv: debugging, -vvv: the client library too)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Args)]
#[command(next_help_heading = "Command")]
struct SpawnOnly {
    /// Path of the lock [default: / and the command's file name]
    #[arg(short, long, value_name = "PATH", value_parser = LockPath::parse)]
    node: Option<LockPath>,
    /// lock and wlock hold alone, rlock together with other readers
    #[arg(
        short,
        long,
        value_name = "TYPE",
        default_value = "lock",
        value_parser = one_of(LOCK_TYPES)
    )]
    lock_type: Mode,
    /// Kill everything this long after the first TERM that was passed on
    ///
    /// Off by default: the command may take its time to end.
    #[arg(
        short,
        long,
        value_name = "DURATION",
        env = "SYNCD_SPAWN_KILL_AFTER",
        value_parser = values::positive_duration
    )]
    kill_after: Option<Duration>,
    /// What becomes of processes that the command leaves behind
    ///
    /// kill: they get TERM, and KILL after --grace, and the lock is released when they are gone. wait: it is kept until they have
    /// ended. leave: it is released though they run.
    #[arg(
        long,
        value_name = "kill|wait|leave",
        env = "SYNCD_SPAWN_ORPHANS",
        default_value = "kill",
        value_parser = one_of(ORPHANS)
    )]
    orphans: Orphans,
    /// Time between TERM and KILL for what is asked to end
    ///
    /// That is processes which the command left behind, and the command when its lock was taken away.
    #[arg(
        long,
        value_name = "DURATION",
        env = "SYNCD_SPAWN_GRACE",
        default_value = "5s",
        value_parser = values::duration
    )]
    grace: Duration,
    /// What happens when the lock is taken away while the command runs
    ///
    /// stop: the command and all that it started get TERM, and KILL after --grace; the status is 123. ignore: it is told, no more.
    #[arg(
        long,
        value_name = "stop|ignore",
        env = "SYNCD_SPAWN_ON_LOST",
        default_value = "stop",
        value_parser = one_of(ON_LOST)
    )]
    on_lost: OnLost,
    /// Bind the lock to our session with the servers
    ///
    /// By default a lock stays until it is released, whatever becomes of us. With this it goes when the host does, and nobody
    /// has to remove it. In exchange the command is stopped when the servers have not confirmed the session for seven eighths of
    /// its 30 s, less --grace and a second: TERM, and KILL after --grace, before the session can have expired; the status is 123.
    /// Ctrl-Z or a host that sleeps for longer than the session loses the lock: the command stands still until that is known, and
    /// is killed.
    /// --on-lost=ignore lets it run on in each case. With file: nothing changes: the kernel keeps a lock exactly as long as the
    /// work runs.
    #[arg(long)]
    ephemeral: bool,
    /// Promise to stop the command when we are cut off from the servers for this long
    ///
    /// By default nobody but this host or an operator removes what we leave when we die while we hold the lock. With this whoever
    /// waits does, once nobody has vouched for it for this long and some more: so it is for hosts that do not come back, such as
    /// pods. In exchange the command is stopped by then when no server can be reached: TERM, and KILL after --grace; the status is
    /// 123. It has to be twice as long as --grace and a second, and 5 s at least. When we are killed nobody but the kernel stops
    /// the command (see --pdeathsig; a set-user-ID one is spared), so what that has started runs on, except where we are the first
    /// process of a container; and when we alone are stopped (a debugger, kill -STOP) nobody does. With file: nothing changes.
    #[arg(long, value_name = "DURATION", env = "SYNCD_SPAWN_ABANDON_AFTER", value_parser = values::positive_duration)]
    abandon_after: Option<Duration>,
    /// Whom signals are passed on to
    #[arg(
        long,
        value_name = "command|group",
        env = "SYNCD_SPAWN_FORWARD_TO",
        default_value = "command",
        value_parser = one_of(TARGETS)
    )]
    forward_to: Target,
    /// The command's process group
    ///
    /// auto: ours where there is a controlling terminal, one of its own otherwise.
    #[arg(
        long,
        value_name = "auto|own|same",
        env = "SYNCD_SPAWN_GROUP",
        default_value = "auto",
        value_parser = one_of(GROUPS)
    )]
    group: GroupChoice,
    /// What the command gets when we were killed
    ///
    /// From the kernel, and the command alone: what it started gets nothing, except where we are the first process of a container.
    #[arg(
        long,
        value_name = "SIGNAL|none",
        env = "SYNCD_SPAWN_PDEATHSIG",
        default_value = "KILL",
        value_parser = values::death_signal
    )]
    pdeathsig: DeathSignal,
    /// How to leave when a signal ended the command
    ///
    /// code: 128 and its number. raise: die of it. auto: die of it if it was sent to us too, else 128 and its number.
    #[arg(
        long,
        value_name = "auto|code|raise",
        env = "SYNCD_SPAWN_SIGNAL_EXIT",
        default_value = "auto",
        value_parser = one_of(SIGNAL_EXITS)
    )]
    signal_exit: SignalExit,
    /// Do not let the command inherit the file that stands for the lock
    ///
    /// It is what tells that somebody still works under the lock. With this the lock ends with us if we are killed, whatever of
    /// the command still runs.
    #[arg(long)]
    close: bool,
}

/// What [`values::death_signal`] gives; an alias, for clap takes an `Option` for an option that may be left out.
type DeathSignal = std::option::Option<i32>;

impl SpawnOnly {
    fn manner(&self, origins: Origins<'_>) -> Result<Manner, Answer> {
        Ok(Manner {
            kill_after: self.kill_after,
            grace: self.grace,
            orphans: self.orphans,
            target: self.forward_to,
            group: self.group,
            on_lost: self.on_lost,
            lifetime: self.lifetime(origins)?,
            death_signal: self.pdeathsig,
            signal_exit: self.signal_exit,
            heirloom: if self.close { HeirloomChoice::Close } else { HeirloomChoice::PassOn },
        })
    }

    fn lifetime(&self, origins: Origins<'_>) -> Result<LifetimeChoice, Answer> {
        let unpromised = if self.ephemeral { LifetimeChoice::Ephemeral } else { LifetimeChoice::Persistent };
        let Some(after) = self.abandon_after else { return Ok(unpromised) };
        let (on_lost, orphans) = (self.on_lost == OnLost::Ignore, self.orphans == Orphans::Leave);
        let survives = self.pdeathsig != Some(libc::SIGKILL);
        let conflicts = [
            (self.ephemeral, "ephemeral", "", "a lock that goes with our session is not there any more by then"),
            (on_lost, "on_lost", "=ignore", "a command that is not stopped makes it a promise that is not kept"),
            (orphans, "orphans", "=leave", "what is left running is stopped by nobody"),
            (survives, "pdeathsig", " other than KILL", "a command that outlives us is stopped by nobody"),
        ];
        let name = origins.name("abandon_after");
        if let Some((_, id, value, why)) = conflicts.into_iter().find(|(is_given, ..)| *is_given) {
            // A site's default gives way to what is typed.
            return match origins.is_typed("abandon_after") || !origins.is_typed(id) {
                true => usage(format!("{name} does not go with {}{value}: {why}", origins.name(id))),
                false => Ok(unpromised),
            };
        }
        let shortest = shortest_promise(self.grace);
        if after < shortest {
            let [after, grace, shortest] = [after, self.grace, shortest].map(humantime::format_duration);
            let for_what = origins.name("grace");
            return usage(format!("{name} {after} is too short for {for_what} {grace}: it has to be {shortest} at least"));
        }
        Ok(LifetimeChoice::Promised { abandon_after: after })
    }
}

fn suspect(text: &str) -> Result<Suspect, PathError> {
    NodePath::parse(text).map(Suspect::Node).or_else(|error| LockPath::parse(text).map(Suspect::Lock).map_err(|_| error))
}

/// Parses one of these words, each of which stands for something.
fn one_of<T: Copy, const N: usize>(words: [(&'static str, T); N]) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| match words.iter().find(|(word, _)| *word == text) {
        Some((_, meaning)) => Ok(*meaning),
        None => Err(format!("it is none of {}", words.map(|(word, _)| word).join(", "))),
    }
}

#[derive(Subcommand)]
enum Sub {
    /// Acquire a mutex, print its node and leave it held
    Lock {
        /// Path of the lock, below the chroot
        #[arg(value_parser = LockPath::parse)]
        lock_path: LockPath,
    },
    /// Acquire a read lock, print its node and leave it held
    Rlock {
        /// Path of the lock, below the chroot
        #[arg(value_parser = LockPath::parse)]
        lock_path: LockPath,
    },
    /// Acquire a write lock, print its node and leave it held
    Wlock {
        /// Path of the lock, below the chroot
        #[arg(value_parser = LockPath::parse)]
        lock_path: LockPath,
    },
    /// Release locks by the nodes that were printed
    Unlock {
        /// Only what nobody stands behind any more
        ///
        /// Refused, with status 1, while its owner lives, or did a session's timeout ago; while its owner, or what that has started,
        /// still runs on this host; and where nothing tells, as of what lockpick, kazoo and lock, rlock and wlock left. The path of
        /// a lock stands for all such nodes in it; those that are removed are named. Whether something still runs on another host
        /// that is only cut off, nobody can tell from here.
        #[arg(long)]
        if_dead: bool,
        /// A node as it was printed by lock, rlock, wlock or list; with --if-dead a lock, too
        #[arg(required = true, value_name = "NODE", value_parser = suspect)]
        nodes: Vec<Suspect>,
    },
    /// Print the queue in order
    ///
    /// To a terminal as a table: who holds and who waits, its identifier, host and process, since when it is there, whether
    /// its owner is alive, orphaned (nobody vouches for it any more: it is dead, or cut off from the servers), or unknown, and
    /// its node. Unknown is what lockpick, kazoo and lock, rlock and wlock leave. To anything else 'IDENTIFIER' NODE, a line each.
    List {
        /// Print the table to anything
        #[arg(long)]
        long: bool,
        /// Path of the lock, below the chroot
        #[arg(value_parser = LockPath::parse)]
        lock_path: LockPath,
    },
    /// Remove what dead runs of this host left, and print the nodes
    Reap,
    /// Copy this program into a directory, whole or not at all
    ///
    /// What was there under its name is replaced. The paths that were made are printed.
    #[allow(clippy::doc_markdown, reason = "it is read on a terminal")]
    Install {
        /// Make links to it under the old names, lockpick and syncd_spawn, too
        ///
        /// Called as lockpick.py or syncd_spawn.sh it is the old program as well; those links are yours to make.
        #[arg(long)]
        links: bool,
        /// The directory, which must be there
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Kept for subcommands to come, so that no script breaks when they do
    #[command(hide = true, name = "completions", aliases = ["man"])]
    Reserved {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_parser = OsStringValueParser::new())]
        words: Vec<OsString>,
    },
}

/// `ignores`: of which options the variable is not read.
fn command(ignores: impl Fn(&str) -> bool) -> clap::Command {
    // A variable that is set to nothing says nothing.
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    Native::command().bin_name("syncd-spawn").mut_args(|arg| {
        // So that what is wrong with one is said of the option that it was given to.
        let has_value = arg.get_action().takes_values() && !arg.is_positional();
        let arg = if has_value { arg.allow_negative_numbers(true) } else { arg };
        if is_empty(&arg) || ignores(arg.get_id().as_str()) { arg.env(None::<&str>) } else { arg }
    })
}

fn matches(words: &[OsString]) -> Result<ArgMatches, Answer> {
    let with = |ignores: &dyn Fn(&str) -> bool| command(ignores).try_get_matches_from(words);
    match with(&|_| false).map_err(answer) {
        Err(Answer::Usage(_)) => {}
        done => return done,
    }
    // Perhaps it is about a variable, which is blamed on its option; and one that means nothing here is not looked at.
    let typed = with(&|_| true).map_err(answer)?;
    let is_useless = |id: &str| misplaced(&typed, id).is_some();
    with(&is_useless).map_err(|error| {
        let is_to_blame = |arg: &&clap::Arg| with(&|id| id != arg.get_id().as_str() || is_useless(id)).is_err();
        match Native::command().get_arguments().find(is_to_blame) {
            Some(arg) => answer_about(error, &variable(arg.get_id().as_str())),
            None => answer(error),
        }
    })
}

/// What is wrong with an option that means nothing to the subcommand that was typed.
fn misplaced(matches: &ArgMatches, id: &str) -> Option<String> {
    let (subcommand, its) = matches.subcommand()?;
    if let Some((_, option)) = SPAWN_ONLY.iter().find(|(of_spawn, _)| *of_spawn == id) {
        return Some(format!(
            "{option} belongs to a command that is run, and {subcommand} is a subcommand; \
             to run a command of that name write -- {subcommand}"
        ));
    }
    let is_it =
        |(subcommands, misplaced, ..): &&(&[&str], &str, &str, &str)| subcommands.contains(&subcommand) && *misplaced == id;
    let (_, _, option, why) = MISPLACED.iter().find(is_it)?;
    // Whether something still runs on this host.
    let is_needed = id == "state_dir" && subcommand == "unlock" && its.get_flag("if_dead");
    (!is_needed).then(|| format!("{option} means nothing to {subcommand}: {why}"))
}

/// The site's default of an option.
fn variable(id: &str) -> String {
    format!("SYNCD_SPAWN_{}", id.to_uppercase())
}

/// Where the values are from.
#[derive(Clone, Copy)]
struct Origins<'m>(&'m ArgMatches);

impl Origins<'_> {
    /// Whether an option was typed, and is no site's default.
    fn is_typed(self, id: &str) -> bool {
        self.0.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// What to call it so that whoever reads it knows where to look: an option, or a site's default.
    fn name(self, id: &str) -> String {
        match self.0.value_source(id) {
            Some(ValueSource::EnvVariable) => variable(id),
            _ => format!("--{}", id.replace('_', "-")),
        }
    }
}

pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Request, Answer> {
    let words: Vec<_> = words.into_iter().collect();
    let matches = matches(&words)?;
    let origins = Origins(&matches);
    let placed = SPAWN_ONLY.iter().map(|(id, _)| *id).chain(MISPLACED.iter().map(|(_, id, ..)| *id));
    if let Some(text) = placed.filter(|id| origins.is_typed(id)).find_map(|id| misplaced(&matches, id)) {
        return usage(text);
    }
    let limits: Vec<_> = [("timeout", "--timeout"), ("no_wait", "--no-wait"), ("retry_count", "--retry-count")]
        .into_iter()
        .filter(|(id, _)| origins.is_typed(id))
        .map(|(_, option)| option)
        .collect();
    if let [first, second, ..] = limits[..] {
        return usage(format!("{first} and {second} both say how long to wait; give one"));
    }
    let native = Native::from_arg_matches(&matches).map_err(answer)?;
    let wait = wait(&native.waiting, limits.first().copied());
    let address = address(native.connection, origins)?;
    let Common { state_dir, identifier, verbose, quiet } = native.common;
    let state_dir = state_dir.unwrap_or(StateDir::Own);
    let verbosity = if quiet { Verbosity::Quiet } else { Verbosity::Verbose(verbose) };
    let release_timeout = native.waiting.release_timeout;
    let wish = |lock, mode, identifier: Option<Identifier>| Wish {
        lock,
        mode,
        identifier: identifier.unwrap_or_else(values::default_identifier),
        wait,
    };
    let action = match native.subcommand {
        Some(Sub::Lock { lock_path }) => Action::Lock(wish(lock_path, Mode::Lock, identifier)),
        Some(Sub::Rlock { lock_path }) => Action::Lock(wish(lock_path, Mode::Read, identifier)),
        Some(Sub::Wlock { lock_path }) => Action::Lock(wish(lock_path, Mode::Write, identifier)),
        Some(Sub::Unlock { if_dead: true, nodes }) => Action::Unlock { unlocking: Unlocking::IfDead(nodes), identifier, wait },
        Some(Sub::Unlock { if_dead: false, nodes }) => {
            let nodes = nodes.into_iter().map(|suspect| match suspect {
                Suspect::Node(node) => Ok(node),
                Suspect::Lock(lock) => {
                    usage(format!("invalid value '{lock}' for '<NODE>...': {} (--if-dead takes locks, too)", PathError::NoNode))
                }
            });
            Action::Unlock { unlocking: Unlocking::Nodes(nodes.collect::<Result<_, _>>()?), identifier, wait }
        }
        Some(Sub::List { long, lock_path }) => {
            Action::List { lock: lock_path, layout: if long { Layout::Table } else { Layout::Auto }, wait }
        }
        Some(Sub::Reap) => Action::Reap { wait },
        Some(Sub::Install { links, directory }) => {
            Action::Install { directory, links: if links { Links::Make } else { Links::Omit } }
        }
        Some(Sub::Reserved { words: _ }) => {
            return usage(
                "completions and man are kept for subcommands to come; to run a command of that name write -- \
                 before it",
            );
        }
        None => {
            let Some(name) = native.command.first() else {
                return usage("no command was given");
            };
            let manner = native.spawn.manner(origins)?;
            let SpawnOnly { node, lock_type, .. } = native.spawn;
            let lock = match node {
                Some(lock) => lock,
                None => values::lock_of_command(name).or_else(usage)?,
            };
            Action::Spawn { wish: wish(lock, lock_type, identifier), words: native.command, variables: Vec::new(), manner }
        }
    };
    if let Some(objection) = address.objection(&action) {
        return usage(objection);
    }
    Ok(Request { address, state_dir, verbosity, voice: Voice::Native, remark: None, release_timeout, action })
}

fn wait(waiting: &Waiting, given: Option<&str>) -> Wait {
    let by_count = |count| WaitLimit::Within(waiting.retry_sleep.saturating_mul(count));
    let limit = match (given, waiting.timeout, waiting.retry_count) {
        (Some("--no-wait"), _, _) => WaitLimit::Once,
        (Some("--retry-count"), _, Some(count)) | (None, None, Some(count)) => by_count(count),
        (_, Some(timeout), _) => WaitLimit::Within(timeout),
        (_, None, _) => WaitLimit::Never,
    };
    let limit = if limit == WaitLimit::Within(Duration::ZERO) { WaitLimit::Once } else { limit };
    let reports = Reports::Predecessor { every: waiting.retry_sleep };
    Wait { limit, over: LimitOver::Everything, reports, conflict_status: waiting.conflict_exit_code }
}

fn address(connection: Connection, origins: Origins<'_>) -> Result<Address, Answer> {
    let default = || AbsolutePath::parse(values::DEFAULT_CHROOT).expect("the default is well formed");
    let address = match (connection.servers, connection.chroot) {
        (Location::Directory(root), chroot) => Address::Directory { root, chroot: chroot.unwrap_or_else(default) },
        (Location::ZooKeeper(mut servers), given) => {
            let chroot = match (servers.chroot.take(), given) {
                (Some(inside), Some(given)) if inside != given => {
                    match (origins.is_typed("servers"), origins.is_typed("chroot")) {
                        (true, false) => inside,
                        (false, true) => given,
                        (true, true) | (false, false) => {
                            let (servers, chroot) = (origins.name("servers"), origins.name("chroot"));
                            return usage(format!("{servers} ends in the chroot {inside} and {chroot} says {given}; give one"));
                        }
                    }
                }
                (Some(chroot), _) | (None, Some(chroot)) => chroot,
                (None, None) => default(),
            };
            Address::ZooKeeper { servers, chroot }
        }
    };
    let (Address::Directory { chroot, .. } | Address::ZooKeeper { chroot, .. }) = &address;
    match chroot.reserved() {
        Some(reserved) => usage(format!("the chroot {chroot} is not usable: /{reserved} is reserved")),
        None => Ok(address),
    }
}

/// Nothing and `/` are no chroot.
fn chroot(text: &str) -> Result<AbsolutePath, PathError> {
    AbsolutePath::parse(if text.is_empty() { AbsolutePath::ROOT } else { text })
}

fn usage<T>(text: impl Into<String>) -> Result<T, Answer> {
    Err(Answer::Usage(format!("{}\nhint: syncd-spawn --help", text.into())))
}

/// At the top these are known, so it was a subcommand that does not know them.
fn is_of_a_command_that_is_run(error: &clap::Error) -> bool {
    let invalid = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    ["-n", "-l", "-k"].contains(&invalid.as_str()) || SPAWN_ONLY.iter().any(|(_, option)| invalid == *option)
}

/// About a value that did not come from the option that clap has in mind.
fn answer_about(mut error: clap::Error, name: &str) -> Answer {
    match error.insert(ContextKind::InvalidArg, ContextValue::String(name.to_owned())) {
        Some(_) => answer(error),
        None => Answer::Usage(format!("invalid value for '{name}': it is not UTF-8")),
    }
}

fn answer(mut error: clap::Error) -> Answer {
    if let Some(ContextValue::StyledStrs(mut tips)) = error.remove(ContextKind::Suggested) {
        // What begins with a dash is no command, and would be one behind --.
        tips.retain(|tip| !tip.to_string().starts_with("to pass "));
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
    let mut text = error.render().to_string();
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some((longest, _)) = value.char_indices().nth(LONGEST_ECHO)
    {
        text = text.replace(value, &format!("{}...", &value[..longest]));
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Answer::Help(text),
        ErrorKind::UnknownArgument if is_of_a_command_that_is_run(&error) => Answer::Usage(format!(
            "{} belongs to a command that is run, and before it is a subcommand; to run a command of that name write -- before it",
            error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default()
        )),
        _ => Answer::Usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned()),
    }
}
