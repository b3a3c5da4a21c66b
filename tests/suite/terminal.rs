//! A terminal of its own, with keys to press.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::openpty;
use nix::unistd::ttyname;

use super::bench::{Bench, LIMIT, kill_tree, type_until_taken};

/// A program with a controlling terminal. Dropped, it is killed.
pub struct Terminal {
    program: Child,
    keys: Option<File>,
    path: PathBuf,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts a program as the first of a session with a terminal.
    pub fn start(bench: &Bench, program: &[&str]) -> Terminal {
        let pty = openpty(None, None).expect("a terminal");
        let path = ttyname(&pty.slave).expect("a name");
        let mut command: Command = bench.program("setsid", ["--ctty"].iter().chain(program));
        let slave = || pty.slave.try_clone().expect("a clone");
        let program = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().expect("setsid is there");
        drop((command, pty.slave));
        let keys = File::from(pty.master);
        let shown = Arc::default();
        let (screen, to) = (keys.try_clone().expect("a clone"), Arc::clone(&shown));
        thread::spawn(move || read(screen.into(), &to));
        Terminal { program, keys: Some(keys), path, shown }
    }

    pub fn pid(&self) -> i32 {
        self.program.id().cast_signed()
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.as_mut().expect("not hung up").write_all(keys.as_bytes()).expect("it is there");
    }

    pub fn resize(&self, columns: u32) {
        let path = self.path.to_str().expect("UTF-8");
        let resized = Command::new("stty").args(["-F", path, "cols", &columns.to_string()]).status();
        assert!(resized.expect("stty is there").success());
    }

    /// Takes the terminal away, as a closed window does.
    pub fn hang_up(&mut self) {
        // The reader's copy goes with the first read that fails; the keys are the last but that.
        self.keys = None;
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("not poisoned")).into_owned()
    }

    /// Waits until this is shown so often.
    pub fn shows_times(&self, text: &str, times: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.shown().matches(text).count() < times {
            assert!(Instant::now() < deadline, "{text:?} is not shown {times} times: {:?}", self.shown());
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn shows(&self, text: &str) {
        self.shows_times(text, 1);
    }

    /// Types a line until the shell has done this.
    pub fn types(&mut self, line: &str, shown: &str) {
        type_until_taken(self, |terminal| terminal.press(line), |terminal| terminal.shown().contains(shown));
    }

    /// Has the shell end.
    pub fn leaves(&mut self) {
        let exit = |terminal: &mut Terminal| drop(terminal.keys.as_mut().map(|keys| keys.write_all(b"exit\n")));
        type_until_taken(self, exit, |terminal| terminal.program.try_wait().expect("our child").is_some());
    }

    /// Waits for the end of the program.
    pub fn end(&mut self) {
        let deadline = Instant::now() + LIMIT;
        while self.program.try_wait().expect("our child").is_none() {
            assert!(Instant::now() < deadline, "it does not end: {:?}", self.shown());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.program.try_wait().is_ok_and(|ended| ended.is_none()) {
            kill_tree(self.pid());
            _ = self.program.wait();
        }
    }
}

fn read(screen: OwnedFd, to: &Mutex<Vec<u8>>) {
    let mut screen = File::from(screen);
    let mut buffer = [0; 4096];
    // It fails once nobody has the terminal open any more.
    while let Ok(length @ 1..) = screen.read(&mut buffer) {
        to.lock().expect("not poisoned").extend_from_slice(&buffer[..length]);
    }
}
