//! Who descends from whom, as the kernel tells it in `/proc`.
//!
//! By descent and not by process group: a daemon that made itself a session of its own is found too, for it comes to us when
//! its parent ends. Where `/proc` is missing or hides others nobody is seen; who was adopted is still reaped when it ends.

use std::fs;

/// A process, and when it was started, so that nobody else is taken for it who gets its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// In the kernel's ticks since boot.
    started: u64,
}

/// What `/proc/PID/stat` says.
struct Stat {
    name: String,
    state: char,
    parent: i32,
    threads: u64,
    started: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Process> {
        stat(pid).map(|stat| Process { pid, started: stat.started })
    }

    pub fn is_there(self) -> bool {
        Process::of(self.pid) == Some(self)
    }

    /// Whether it is stopped: it does nothing until it is continued.
    pub fn is_stopped(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.state == 'T')
    }

    /// Its name, on one line whatever it is.
    pub fn name(self) -> String {
        stat(self.pid).map(|stat| stat.name.escape_debug().to_string()).unwrap_or_default()
    }
}

/// Everybody who descends from `ancestor` and runs, parents first; but for the children `except` and who descends from them.
///
/// One look is no proof that there is nobody: who is just forked while his parent ends may be seen at neither place.
pub fn descendants(ancestor: i32, except: &[Process]) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let mut next: Vec<i32> = children(ancestor);
    while let Some(pid) = next.pop() {
        let Some(Stat { state, threads, started, .. }) = stat(pid) else {
            continue;
        };
        let process = Process { pid, started };
        if found.contains(&process) || except.contains(&process) {
            continue;
        }
        next.extend(children(pid));
        // One whose first thread has ended is shown as a zombie, though the others run on.
        if !"ZX".contains(state) || threads > 1 {
            found.push(process);
        }
    }
    found
}

/// The children of all threads of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(children) => found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok())),
            // A thread that has ended, or a kernel that was built without these files.
            Err(_) if thread.path().exists() => return children_by_parent(pid),
            Err(_) => {}
        }
    }
    found
}

fn children_by_parent(parent: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

fn stat(pid: i32) -> Option<Stat> {
    parse(&String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/stat")).ok()?))
}

/// The name stands in parentheses, and may have blanks and parentheses in it.
fn parse(text: &str) -> Option<Stat> {
    let (front, back) = text.rsplit_once(')')?;
    let name = front.split_once('(')?.1.to_owned();
    let mut fields = back.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let threads = fields.nth(15)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some(Stat { name, state, parent, threads, started })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_may_have_anything_in_it() {
        let text = "12 (a ) b)) S 7 12 12 0 -1 4194304 100 0 0 0 3 2 0 0 20 0 1 0 4242 1000 2 3\n";
        let stat = parse(text).unwrap();
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a ) b)", 'S', 7));
        assert_eq!((stat.threads, stat.started), (1, 4242));
        assert!(parse("").is_none());
    }

    #[test]
    fn children_and_theirs_are_found_but_not_who_was_excepted() {
        let us = std::process::id().cast_signed();
        let mut shell = Command::new("sh").args(["-c", "sleep 1000 & read x; kill $!"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = shell.id().cast_signed();
        while children(pid).is_empty() {
            std::thread::yield_now();
        }
        let of_shell = |process: &Process| process.pid == pid || children(pid).contains(&process.pid);
        assert_eq!(descendants(us, &[]).into_iter().filter(of_shell).count(), 2);
        assert_eq!(descendants(us, &[Process::of(pid).unwrap()]).into_iter().filter(of_shell).count(), 0);
        assert!(children_by_parent(us).contains(&pid));
        assert!(Process::of(pid).unwrap().is_there());
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(Process::of(pid).is_none());
    }
}
