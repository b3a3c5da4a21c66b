//! What is done to the command: started, signalled, reaped. The only unsafe code.
//!
//! `std::process` and `tokio::process` are not used: they wait until the exec has happened, reset SIGPIPE, and want to reap
//! for themselves. Between fork and exec there are system calls only, for another thread may have held a lock.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::Receiver;

use super::descendants::Process;
use super::words::{Ending, Group};

/// Bit 0 to 2: the standard stream of that number was closed; bit 3: SIGPIPE was ignored.
static AT_START: AtomicU8 = AtomicU8::new(0);
const SIGPIPE_IGNORED: u8 = 1 << 3;

/// Rust's runtime ignores SIGPIPE and opens closed standard streams before `main`, and keeps neither fact; so they are
/// looked at before it runs (as uutils does it).
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        let mut seen = 0;
        for fd in 0..3 {
            // SAFETY: F_GETFD takes no pointer.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
                seen |= 1 << fd;
            }
        }
        if is_ignored(libc::SIGPIPE) {
            seen |= SIGPIPE_IGNORED;
        }
        AT_START.store(seen, Ordering::Relaxed);
    }
    look
};

/// Whether standard output was closed when we were started. What is there now is `/dev/null`.
pub fn stdout_was_closed() -> bool {
    AT_START.load(Ordering::Relaxed) & 1 << 1 != 0
}

fn is_ignored(signal: i32) -> bool {
    let mut action = zeroed_action();
    // SAFETY: with no new action given, sigaction only writes the old one, which lives here.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
    asked == 0 && action.sa_sigaction == libc::SIG_IGN
}

fn set_disposition(signal: i32, disposition: libc::sighandler_t) {
    let mut action = zeroed_action();
    action.sa_sigaction = disposition;
    // SAFETY: SIG_DFL and SIG_IGN, the only dispositions used here, run no code of ours.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

fn zeroed_action() -> libc::sigaction {
    // SAFETY: all zeros is a valid sigaction: SIG_DFL, no flags, an empty mask.
    unsafe { std::mem::zeroed() }
}

fn empty_mask() -> libc::sigset_t {
    // SAFETY: an all-zeros sigset_t is the empty set on Linux.
    unsafe { std::mem::zeroed() }
}

/// The signal state that we were started with, and that the command gets back exactly.
pub struct Inherited {
    mask: libc::sigset_t,
    /// Bit n-1: signal n was ignored.
    ignored: u64,
}

impl Inherited {
    /// Remembers it, and blocks every signal from here on. Must come before the first thread, which inherits the mask.
    pub fn take_over() -> Inherited {
        let mut ignored = 0;
        for signal in 1..=64 {
            let is_ignored = match signal {
                libc::SIGPIPE => AT_START.load(Ordering::Relaxed) & SIGPIPE_IGNORED != 0,
                _ => is_ignored(signal),
            };
            ignored |= u64::from(is_ignored) << (signal - 1);
        }
        let mut mask = empty_mask();
        let mut all = empty_mask();
        // SAFETY: both sets live here.
        unsafe {
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut mask);
        }
        // Ignored, the kernel would reap our children before we can.
        set_disposition(libc::SIGCHLD, libc::SIG_DFL);
        Inherited { mask, ignored }
    }

    /// Lets signals through again as they would have been when we were started: from here on they end us.
    pub fn restore(&self) {
        // SAFETY: the set lives here.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut()) };
    }

    /// Whether this signal was ignored when we were started (`nohup`, a job put into the background by a script).
    pub fn ignores(&self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.ignored & 1 << (signal - 1) != 0
    }
}

/// Closes our copies of what was passed on to us, and is to the command by now: else nobody who waits for its end of a pipe
/// would ever see it. All that is ours is closed by an exec, which tells it apart.
fn close_passed_on() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let numbers: Vec<libc::c_int> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // SAFETY: takes numbers. What is not closed by an exec was open when we were started: nothing of ours knows it.
        unsafe {
            if libc::fcntl(number, libc::F_GETFD) == 0 {
                libc::close(number);
            }
        }
    }
}

/// Where we are; from here on we are at the root, so that we keep no file system busy.
fn leave_directory() -> Option<OwnedFd> {
    let directory = open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    env::set_current_dir("/").ok()?;
    Some(directory)
}

/// Orphans of the command come to us, and are seen, instead of to the first process.
pub fn adopt_orphans() {
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// A command that can be executed: everything that needs memory is made before the fork.
pub struct Program {
    /// Where the command may be, in the order of PATH.
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// What the command inherits besides the standard streams, by the number that it has there.
    heirloom: Option<OwnedFd>,
    /// Whether `LISTEN_PID` names us, and so has to name the command: it gets the descriptors that were meant.
    is_listener: bool,
}

const LISTEN_PID: &str = "LISTEN_PID";

/// Where an inherited descriptor is out of the way of scripts, which number theirs from 3 and have bash number them from 10;
/// and where that is beyond a limit, at least of the standard streams. From 64 on the kernel makes a larger table, and takes
/// milliseconds for it where there was another thread.
const OUT_OF_THE_WAY: [i32; 2] = [50, 3];

impl Program {
    /// `words` are the command and its arguments, one at least; `variables` are added to our environment, or replace what is
    /// there.
    ///
    /// # Errors
    /// A word with a NUL byte in it.
    pub fn new(words: &[OsString], variables: &[(&str, OsString)]) -> io::Result<Program> {
        let name = words.first().map(OsString::as_os_str).unwrap_or_default();
        let mut environment = Vec::new();
        let mut is_listener = false;
        for (key, value) in env::vars_os().filter(|(key, _)| !variables.iter().any(|(name, _)| key == *name)) {
            if key == LISTEN_PID && value == std::process::id().to_string().as_str() {
                is_listener = true;
                continue;
            }
            environment.push(c_string(&[key.as_bytes(), b"=", value.as_bytes()])?);
        }
        for (key, value) in variables {
            environment.push(c_string(&[key.as_bytes(), b"=", value.as_bytes()])?);
        }
        Ok(Program {
            candidates: candidates(name)?,
            arguments: words.iter().map(|word| c_string(&[word.as_bytes()])).collect::<io::Result<_>>()?,
            environment,
            heirloom: None,
            is_listener,
        })
    }

    /// The command inherits this open file too, and whatever it starts.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn inherits(mut self, file: impl AsFd) -> io::Result<Program> {
        let mut copies = OUT_OF_THE_WAY.iter().map(|lowest| fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(*lowest)));
        // A number beyond the limit of this process is refused.
        let copy = copies.by_ref().find(|copy| *copy != Err(Errno::EINVAL)).unwrap_or(Err(Errno::EMFILE))?;
        // SAFETY: the kernel has just given us this number, and nobody else knows it.
        self.heirloom = Some(unsafe { OwnedFd::from_raw_fd(copy) });
        Ok(self)
    }
}

fn candidates(name: &OsStr) -> io::Result<Vec<CString>> {
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return Ok(vec![c_string(&[name.as_bytes()])?]);
    }
    let path = env::var_os("PATH").unwrap_or_else(|| OsString::from_vec(b"/bin:/usr/bin".to_vec()));
    env::split_paths(&path).map(|directory| c_string(&[directory.join(name).as_os_str().as_bytes()])).collect()
}

fn c_string(parts: &[&[u8]]) -> io::Result<CString> {
    Ok(CString::new(parts.concat())?)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// A child that was forked; only this process reaps it, so its pid means nobody else.
pub struct Child {
    pid: libc::pid_t,
    group: Group,
    /// The terminal that its group was given.
    terminal: Option<File>,
}

/// How a command is started.
pub struct Start {
    pub group: Group,
    /// What the kernel sends it when we are gone.
    pub death_signal: Option<i32>,
}

/// Tells how the exec went: closed by it, or the reason why it failed.
pub struct ExecPipe(Receiver);

/// Forks and has the child execute the program, with what we were given. Must be called from the main thread, for the death
/// signal is that of the thread; and needs a runtime.
pub fn spawn(program: &Program, start: &Start, inherited: &Inherited) -> io::Result<(Child, ExecPipe)> {
    let (report, reporter) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let exec = ExecPipe(Receiver::from_owned_fd(report)?);
    let terminal = match start.group {
        Group::Foreground if has_terminal() => Some(File::options().read(true).write(true).open("/dev/tty")?),
        Group::Foreground | Group::Same | Group::Own => None,
    };
    let mut listener = format!("{LISTEN_PID}=0000000000\0").into_bytes();
    let listen_pid: *mut libc::c_char = listener.as_mut_ptr().cast();
    let mut environment = pointers(&program.environment);
    if program.is_listener {
        environment.insert(0, listen_pid);
    }
    let prepared = Prepared {
        program,
        start,
        inherited,
        arguments: pointers(&program.arguments),
        environment,
        listen_pid,
        terminal: terminal.as_ref().map(AsRawFd::as_raw_fd),
        directory: leave_directory(),
        parent: std::process::id().cast_signed(),
    };
    // How a script without a #! line is run, as execvp(3) does it: sh, the script, its arguments.
    let mut script_arguments = vec![c"sh".as_ptr(), ptr::null()];
    script_arguments.extend(prepared.arguments.iter().skip(1));
    // SAFETY: the child only makes system calls on memory that was prepared above, until it executes or exits.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: we are the child of this fork; see there.
            let errno = unsafe { execute(&prepared, &mut script_arguments) };
            // Nobody looks at the status: the errno is what tells.
            // SAFETY: errno lives here, and the pipe is open. _exit leaves without running anything of ours.
            unsafe {
                libc::write(reporter.as_raw_fd(), (&raw const errno).cast(), size_of_val(&errno));
                libc::_exit(127)
            }
        }
        pid => {
            drop(reporter);
            close_passed_on();
            let child = Child { pid, group: start.group, terminal };
            match start.group {
                Group::Same => {}
                // The child does it as well; whoever comes first, it is done before anybody signals the group.
                Group::Own | Group::Foreground => child.lead_group(),
            }
            Ok((child, exec))
        }
    }
}

/// All that the child needs between fork and exec.
struct Prepared<'p> {
    program: &'p Program,
    start: &'p Start,
    inherited: &'p Inherited,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
    listen_pid: *mut libc::c_char,
    terminal: Option<libc::c_int>,
    directory: Option<OwnedFd>,
    parent: libc::pid_t,
}

/// Never returns but with the reason why nothing could be executed.
///
/// # Safety
/// Only in the child of a fork. The pointer lists end in null; `script_arguments` has a place for the script at 1.
unsafe fn execute(prepared: &Prepared<'_>, script_arguments: &mut [*const libc::c_char]) -> i32 {
    let Prepared { program, start, inherited, arguments, environment, listen_pid, terminal, directory, parent } = prepared;
    // SAFETY: system calls on numbers and on memory prepared before the fork.
    unsafe {
        if let Some(signal) = start.death_signal {
            libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0);
            // Gone before we could ask for it. Not "is it 1": in a container our parent may well be.
            // And 0 is a parent in another PID namespace, which cannot be told apart.
            if ![*parent, 0].contains(&libc::getppid()) {
                libc::_exit(127);
            }
        }
        match start.group {
            Group::Same => {}
            Group::Own | Group::Foreground => _ = libc::setpgid(0, 0),
        }
        if let Some(terminal) = terminal
            && libc::tcgetpgrp(*terminal) == libc::getpgid(*parent)
        {
            // TTOU is blocked still, or this would stop us.
            libc::tcsetpgrp(*terminal, libc::getpid());
        }
        if let Some(directory) = directory {
            libc::fchdir(directory.as_raw_fd());
        }
        let closed = AT_START.load(Ordering::Relaxed);
        for fd in (0..3).filter(|fd| closed & 1 << fd != 0) {
            libc::close(fd);
        }
        write_pid(listen_pid.add(LISTEN_PID.len() + 1), libc::getpid());
        if let Some(heirloom) = &program.heirloom {
            libc::fcntl(heirloom.as_raw_fd(), libc::F_SETFD, 0);
        }
        // The first is set by Rust's runtime, the second by us; for the others Rust has handlers, which would swallow them.
        for signal in [libc::SIGPIPE, libc::SIGCHLD, libc::SIGSEGV, libc::SIGBUS] {
            set_disposition(signal, if inherited.ignores(signal) { libc::SIG_IGN } else { libc::SIG_DFL });
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const inherited.mask, ptr::null_mut());
        let mut failure = libc::ENOENT;
        for candidate in &program.candidates {
            libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                // Somewhere else in PATH there may be one that we may run.
                libc::EACCES => failure = libc::EACCES,
                libc::ENOEXEC => {
                    script_arguments[1] = candidate.as_ptr();
                    libc::execve(c"/bin/sh".as_ptr(), script_arguments.as_ptr(), environment.as_ptr());
                    return *libc::__errno_location();
                }
                errno => return errno,
            }
        }
        failure
    }
}

/// Writes a number without asking for memory.
///
/// # Safety
/// There are ten bytes there, and a zero behind them.
unsafe fn write_pid(text: *mut libc::c_char, pid: libc::pid_t) {
    let (mut length, mut rest) = (0, pid.cast_unsigned());
    while rest > 0 {
        rest /= 10;
        length += 1;
    }
    let mut rest = pid.cast_unsigned();
    // SAFETY: a pid has ten digits at the most.
    unsafe {
        *text.add(length) = 0;
        for place in (0..length).rev() {
            *text.add(place) = (b'0' + (rest % 10).to_le_bytes()[0]).cast_signed();
            rest /= 10;
        }
    }
}

impl ExecPipe {
    /// Waits until the command is executed, or the attempt failed with this error.
    ///
    /// # Cancellation
    /// May be dropped and called again.
    pub async fn outcome(&self) -> Result<(), io::Error> {
        loop {
            self.0.readable().await?;
            let mut errno = [0; size_of::<i32>()];
            match self.0.try_read(&mut errno) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Child {
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal to the command alone.
    pub fn send(&self, signal: i32) {
        // SAFETY: takes two numbers. The pid is ours until it is reaped, and then this child is gone.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Sends a signal to the command's group. Where that is ours too, we get it back from ourselves and drop it.
    pub fn send_to_group(&self, signal: i32) {
        let group = match self.group {
            Group::Same => 0,
            Group::Own | Group::Foreground => -self.pid,
        };
        // SAFETY: takes two numbers; the group exists as long as its leader is not reaped.
        unsafe { libc::kill(group, signal) };
    }

    /// Stops this process as the command was stopped, and returns when it is continued. The command has the terminal then, and
    /// is not continued.
    pub fn stop_with(&self, signal: i32) {
        self.give_terminal_to_us();
        stop_ourselves(signal);
        match self.group {
            Group::Same | Group::Own => {}
            Group::Foreground => self.lead_group(),
        }
    }

    fn lead_group(&self) {
        // SAFETY: takes numbers. TTOU is blocked in every thread of ours, or the last would stop us.
        unsafe {
            libc::setpgid(self.pid, self.pid);
            if let Some(terminal) = self.terminal.as_ref().map(AsRawFd::as_raw_fd)
                && libc::tcgetpgrp(terminal) == libc::getpgrp()
            {
                libc::tcsetpgrp(terminal, self.pid);
            }
        }
    }

    fn give_terminal_to_us(&self) {
        if let Some(terminal) = self.terminal.as_ref().map(AsRawFd::as_raw_fd) {
            // SAFETY: takes numbers; see above.
            unsafe {
                if libc::tcgetpgrp(terminal) == self.pid {
                    libc::tcsetpgrp(terminal, libc::getpgrp());
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.give_terminal_to_us();
    }
}

/// Sends a signal to a process if it is still the one that was seen, and nobody else who got its number.
pub fn send_to(process: Process, signal: i32) {
    // SAFETY: takes numbers; the descriptor is owned, and closed when it is dropped.
    let handle = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, process.pid, 0) {
            -1 => None,
            handle => i32::try_from(handle).ok().map(|handle| OwnedFd::from_raw_fd(handle)),
        }
    };
    if !process.is_there() {
        return;
    }
    // SAFETY: takes numbers; no information is passed with the signal.
    unsafe {
        match &handle {
            Some(handle) => {
                libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), 0);
            }
            // A kernel before 5.3.
            None => _ = libc::kill(process.pid, signal),
        }
    }
}

/// Whether the terminal is ours to give, when we have it: standard input and output are it, and we lead our group.
fn has_terminal() -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::getpgrp() == libc::getpid() && (0..2).all(|fd| libc::tcgetpgrp(fd) != -1) }
}

/// Waits for a descriptor in the runtime. It is owned, so it stays the same one until it is no longer watched.
pub fn watched<T: AsFd + AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor belongs to `fd`, which the AsyncFd owns and gives back only after it has ceased to watch.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// What became of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Stopped(i32),
    Continued,
    Ended(Ending),
}

/// Whether [`next_change`] has one; nobody is reaped.
pub fn has_changed() -> bool {
    let which = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: all zeros is a valid siginfo_t, and this one lives here. Without a change its pid stays 0.
    unsafe {
        let mut found: libc::siginfo_t = std::mem::zeroed();
        libc::waitid(libc::P_ALL, 0, &raw mut found, which) == 0 && found.si_pid() != 0
    }
}

/// The next child that stopped, was continued or ended, if there is one; one that ended is reaped. Signals merge, so there may be
/// more.
pub fn next_change() -> Option<(i32, Change)> {
    let mut status = 0;
    // SAFETY: status lives here.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) };
    if pid <= 0 {
        return None;
    }
    let change = if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status))
    } else if libc::WIFCONTINUED(status) {
        Change::Continued
    } else if libc::WIFSIGNALED(status) {
        Change::Ended(Ending::Signaled { number: libc::WTERMSIG(status), dumped_core: libc::WCOREDUMP(status) })
    } else {
        Change::Ended(Ending::Exited(libc::WEXITSTATUS(status).to_le_bytes()[0]))
    };
    Some((pid, change))
}

/// Whether there is a child, reaped or not.
pub fn has_children() -> bool {
    // SAFETY: asks, and takes no pointer that is written to.
    unsafe { libc::waitid(libc::P_ALL, 0, ptr::null_mut(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0 }
}

/// Stops this process as that signal would have, and returns when it is continued. Where no shell could continue it (an
/// orphaned group) the kernel ignores the signal, and so it returns at once.
pub fn stop_ourselves(signal: i32) {
    set_disposition(signal, libc::SIG_DFL);
    deliver(signal);
}

/// Dies of that signal; returns if that is not possible, as for the first process of a container.
pub fn die_of(signal: i32) {
    // The core that may be wanted is the command's, and that was dumped.
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    set_disposition(signal, libc::SIG_DFL);
    deliver(signal);
}

/// Sends a signal to ourselves and lets it through, which every thread blocks.
fn deliver(signal: i32) {
    let mut through = empty_mask();
    // SAFETY: the set lives here, the rest are numbers.
    unsafe {
        libc::sigaddset(&raw mut through, signal);
        libc::kill(libc::getpid(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const through, ptr::null_mut());
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const through, ptr::null_mut());
    }
}
