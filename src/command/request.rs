//! What can be asked for, whichever grammar it was typed in.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, SystemTime};

use super::Voice;
use crate::exit::SignalExit;
use crate::journal::StateDir;
use crate::local::{boot, host};
use crate::lock::{AbsolutePath, Claim, Identifier, Lifetime, LockPath, Mode, NodePath, Owner, Reports};
use crate::report::{Verbosity, typed};
use crate::store::{Root, Servers};
use crate::supervise::{Orphans, Target};

/// What was asked for, checked.
#[derive(Debug)]
pub struct Request {
    pub address: Address,
    pub state_dir: StateDir,
    pub verbosity: Verbosity,
    pub voice: Voice,
    /// A warning about what was typed.
    pub remark: Option<String>,
    /// How long a release may take before it is given up.
    pub release_timeout: Duration,
    pub action: Action,
}

/// Where the queues are kept.
#[derive(Clone, Debug)]
pub enum Address {
    ZooKeeper { servers: Servers, chroot: AbsolutePath },
    Directory { root: Root, chroot: AbsolutePath },
}

impl Address {
    /// Where it is, for messages.
    pub fn place(&self) -> String {
        match self {
            Address::ZooKeeper { servers, .. } => servers.to_string(),
            Address::Directory { root, .. } => root.to_string(),
        }
    }

    /// Why this cannot be done there: ZooKeeper keeps nodes of its own below the true root.
    pub fn objection(&self, action: &Action) -> Option<String> {
        let (Address::ZooKeeper { chroot, .. } | Address::Directory { chroot, .. }) = self;
        action.locks().into_iter().find_map(|lock| {
            let path = chroot.join(lock.as_path());
            path.reserved().map(|reserved| format!("the lock {path} is not usable: /{reserved} is reserved"))
        })
    }
}

/// As it is typed.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::ZooKeeper { servers, chroot } => write!(f, "-s {} -c {}", typed(servers), typed(chroot)),
            Address::Directory { root, chroot } => write!(f, "-s {} -c {}", typed(root), typed(chroot)),
        }
    }
}

/// What the command gets in its environment.
pub type Variable = (&'static str, OsString);

#[derive(Debug)]
pub enum Action {
    Spawn { wish: Wish, words: Vec<OsString>, variables: Vec<Variable>, manner: Manner },
    Lock(Wish),
    Unlock { unlocking: Unlocking, identifier: Option<Identifier>, wait: Wait },
    List { lock: LockPath, layout: Layout, wait: Wait },
    Reap { wait: Wait },
    Install { directory: PathBuf, links: Links },
}

impl Action {
    /// What a call that contends is going to stand in the queue as.
    pub fn claim(&self) -> Option<Claim> {
        let claim = |wish: &Wish, lifetime| Claim::new(wish.mode, lifetime, wish.identifier.clone());
        match self {
            Action::Spawn { wish, words, manner, .. } => Some(claim(wish, manner.lifetime()).owned_by(us(words))),
            Action::Lock(wish) => Some(claim(wish, Lifetime::Explicit)),
            Action::Unlock { .. } | Action::List { .. } | Action::Reap { .. } | Action::Install { .. } => None,
        }
    }

    /// The lock that it contends for.
    pub fn lock(&self) -> Option<&LockPath> {
        match self {
            Action::Spawn { wish, .. } | Action::Lock(wish) => Some(&wish.lock),
            Action::Unlock { .. } | Action::List { .. } | Action::Reap { .. } | Action::Install { .. } => None,
        }
    }

    /// Every lock that it names.
    fn locks(&self) -> Vec<&LockPath> {
        match self {
            Action::Spawn { wish, .. } | Action::Lock(wish) => vec![&wish.lock],
            Action::List { lock, .. } => vec![lock],
            Action::Unlock { unlocking: Unlocking::Nodes(nodes), .. } => nodes.iter().map(|node| &node.lock).collect(),
            Action::Unlock { unlocking: Unlocking::IfDead(suspects), .. } => suspects.iter().map(Suspect::lock).collect(),
            Action::Reap { .. } | Action::Install { .. } => Vec::new(),
        }
    }
}

/// This process, which is going to run that command. Its arguments are left out: on the host others may see them, and here everybody
/// could.
fn us(words: &[OsString]) -> Owner {
    let owner =
        Owner { host: host(), boot: boot(), pid: Some(process::id()), started: SystemTime::now(), command: String::new() };
    owner.with_command(words.first().map(|word| word.as_bytes()).unwrap_or_default())
}

/// What is to be unlocked.
#[derive(Debug)]
pub enum Unlocking {
    /// These, whoever stands behind them.
    Nodes(Vec<NodePath>),
    /// Of these what nobody stands behind any more.
    IfDead(Vec<Suspect>),
}

/// What may have no owner any more.
#[derive(Clone, Debug)]
pub enum Suspect {
    Node(NodePath),
    /// Everybody in it.
    Lock(LockPath),
}

impl Suspect {
    fn lock(&self) -> &LockPath {
        match self {
            Suspect::Node(node) => &node.lock,
            Suspect::Lock(lock) => lock,
        }
    }
}

/// How a queue is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// An identifier and a node each, as lockpick has it.
    Lines,
    /// Everything that is known.
    Table,
    /// A table for a person, lines for a program.
    Auto,
}

/// Whether the old names are installed too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    Make,
    Omit,
}

/// How a command is run.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub kill_after: Option<Duration>,
    pub grace: Duration,
    pub orphans: Orphans,
    pub target: Target,
    pub group: GroupChoice,
    pub on_lost: OnLost,
    pub lifetime: LifetimeChoice,
    /// What the kernel sends the command when we are gone.
    pub death_signal: Option<i32>,
    pub signal_exit: SignalExit,
    pub heirloom: HeirloomChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupChoice {
    /// The same as ours where there is a controlling terminal, an own one otherwise.
    Auto,
    Own,
    Same,
}

/// What keeps the lock while the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifetimeChoice {
    /// The node: it stays whatever becomes of us and the servers.
    Persistent,
    /// Our session with the servers, where there are any: without it the command must not run.
    Ephemeral,
    /// The node; and whoever waits may remove it once nobody has vouched for it for this long, for by then the command does not run
    /// any more.
    Promised { abandon_after: Duration },
}

/// What happens when the lock is taken away while the command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLost {
    Stop,
    Ignore,
}

/// Whether the command inherits the file that stands for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeirloomChoice {
    PassOn,
    Close,
}

/// The lock that is wanted.
#[derive(Debug)]
pub struct Wish {
    pub lock: LockPath,
    pub mode: Mode,
    pub identifier: Identifier,
    pub wait: Wait,
}

#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub limit: WaitLimit,
    pub over: LimitOver,
    pub reports: Reports,
    pub conflict_status: u8,
}

/// What the limit is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOver {
    /// Connecting, and waiting for the lock.
    Everything,
    /// Waiting for the lock; a first connection may take its time before.
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitLimit {
    Never,
    Once,
    Within(Duration),
}
