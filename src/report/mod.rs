//! What a person or a program reads. Standard output is for answers only; all else goes to standard error.

mod log;
mod table;

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;
use tokio::time::sleep;

pub use self::log::{Verbosity, start_log};
pub use self::table::table;

/// The program that we are taken for: whose words we use, and whose numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Native,
    /// lockpick.
    Lockpick,
    /// lockpick's script.
    SyncdSpawn,
}

impl Dialect {
    /// The name in log lines, and of the program that does things by hand. The script called lockpick for both.
    fn name(self) -> &'static str {
        match self {
            Dialect::Native => "syncd-spawn",
            Dialect::Lockpick | Dialect::SyncdSpawn => "lockpick",
        }
    }
}

static DIALECT: OnceLock<Dialect> = OnceLock::new();
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Speaks like this from here on; the first one stays.
pub fn speak(dialect: Dialect) {
    _ = DIALECT.set(dialect);
}

/// Standard output was closed when we were started: what is there now takes an answer, and nobody reads it.
pub fn stdout_was_closed() {
    STDOUT_WAS_CLOSED.store(true, Ordering::Relaxed);
}

/// The program by which something is done by hand: where an old name is used there need not be another.
pub fn by_hand() -> &'static str {
    dialect().name()
}

/// A word of a line that is to be typed: quoted where a shell would read it as something else.
pub fn typed(word: &impl Display) -> String {
    let word = word.to_string();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,@%+=[]".contains(&byte);
    match word.bytes().all(is_plain) && !word.is_empty() {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn dialect() -> Dialect {
    DIALECT.get().copied().unwrap_or(Dialect::Native)
}

/// What a pipe takes whole, once it takes anything.
const LONGEST_LINE: usize = libc::PIPE_BUF;
/// How long a line waits for a reader, in milliseconds. Signals are not looked at meanwhile.
const PATIENCE: u16 = 50;
/// The same for a remark, which somebody may rely on.
const REMARK_PATIENCE: u16 = 5000;

/// Writes a line to standard error. It is lost where nobody reads: who waits for a reader keeps the whole queue waiting.
pub fn line(text: impl Display) {
    let mut text = format!("{text}\n");
    if text.len() > LONGEST_LINE {
        let end = text.floor_char_boundary(LONGEST_LINE - "...\n".len());
        text.replace_range(end.., "...\n");
    }
    let stderr = io::stderr();
    if is_writable(stderr.as_fd(), PATIENCE) {
        // One write, so that it does not mix with the command's own; eprintln! would panic on a closed pipe.
        _ = write(stderr, text.as_bytes());
    }
}

/// Whether a line could be written without waiting for anybody any longer.
fn is_writable(fd: BorrowedFd<'_>, patience: u16) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    !matches!(poll(&mut fds, PollTimeout::from(patience)), Ok(0))
}

/// The one error of a run, and what can be done about it.
pub fn error(error: &impl Display, hint: Option<&str>) {
    match dialect() {
        Dialect::Native => {
            let hint = hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            line(format_args!("syncd-spawn: {error}{hint}"));
        }
        // All that lockpick says is lines of a log; hints are about options that it has not.
        Dialect::Lockpick | Dialect::SyncdSpawn => tracing::error!("{error}"),
    }
}

/// Standard error as it is, where an old program wrote no line of a log.
pub fn verbatim(text: &str) {
    _ = write(io::stderr(), text.as_bytes());
}

/// Writes an answer to standard output, all of it or with an error. Waits for a reader.
pub fn answer(text: impl AsRef<[u8]>) -> io::Result<()> {
    // Not by std's, which takes a standard output that cannot be written to for one that was closed, and that for well.
    let stdout = io::stdout();
    let mut rest = text.as_ref();
    if STDOUT_WAS_CLOSED.load(Ordering::Relaxed) && !rest.is_empty() {
        return Err(Errno::EBADF.into());
    }
    while !rest.is_empty() {
        match write(&stdout, rest) {
            Ok(length) => rest = &rest[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => _ = is_writable(stdout.as_fd(), PATIENCE),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Whether an answer is read by a person.
pub fn is_answer_for_a_person() -> bool {
    io::stdout().is_terminal()
}

/// Writes to standard output what is no answer, but was there before. Like a [`line`] it is lost where nobody reads.
pub fn remark(text: &[u8]) {
    if is_writable(io::stdout().as_fd(), REMARK_PATIENCE) {
        _ = answer(text);
    }
}

/// Waits until standard output takes a line, or never will.
///
/// # Cancellation
/// May be dropped.
pub async fn answerable() {
    while !is_writable(io::stdout().as_fd(), 0) {
        sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_quoted_where_a_shell_would_not_take_it_as_it_is() {
        for (word, shown) in [
            ("h1:2181,[::1]:2182", "h1:2181,[::1]:2182"),
            ("file:///var/lock", "file:///var/lock"),
            ("/a b/c", "'/a b/c'"),
            ("/it's;$x", r"'/it'\''s;$x'"),
            ("/caf\u{e9}", "'/caf\u{e9}'"),
            ("", "''"),
        ] {
            assert_eq!(typed(&word), shown);
        }
    }
}
