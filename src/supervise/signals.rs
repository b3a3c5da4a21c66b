//! Signals as a stream, one for one and with their sender.
//!
//! Everything is blocked and read from a signalfd: that is the only way to see all 62 ordinary and real-time signals, and to
//! tell the terminal's keys from a `kill(2)`.

use std::collections::VecDeque;
use std::io;
use std::mem;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use super::child::{Inherited, stop_ourselves, watched};
use super::words::{STOPPING, Sender, Signal};

/// The stream of signals sent to this process.
pub struct Signals {
    fd: AsyncFd<SignalFd>,
    /// Read, but not yet asked for.
    pending: VecDeque<Signal>,
    inherited: Inherited,
}

/// So many are read before anything else is looked at.
const MOST_AT_ONCE: usize = 64;
/// What ends a wait.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

impl Signals {
    /// Listens; needs a runtime. `inherited` has blocked them all, so nothing sent since then is lost.
    pub fn listen(inherited: Inherited) -> io::Result<Signals> {
        let fd = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd: watched(fd)?, pending: VecDeque::new(), inherited })
    }

    pub fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// The next signal.
    ///
    /// # Cancellation
    /// May be dropped; none is lost.
    pub async fn next(&mut self) -> io::Result<Signal> {
        loop {
            self.read()?;
            if let Some(signal) = self.pending.pop_front() {
                return Ok(signal);
            }
            // What came since the look above is found by the next one.
            self.fd.readable_mut().await?.clear_ready();
        }
    }

    /// Those that are there now, whether the runtime has noticed or not.
    pub fn arrived(&mut self) -> io::Result<VecDeque<Signal>> {
        let mut arrived = mem::take(&mut self.pending);
        self.read()?;
        arrived.append(&mut self.pending);
        Ok(arrived)
    }

    /// Not until there is none: who sends faster than we read must not keep us from everything else. But all that are not
    /// real-time ones, for those come first and merge.
    fn read(&mut self) -> io::Result<()> {
        while self.pending.len() < MOST_AT_ONCE
            && let Some(record) = self.fd.get_ref().read_signal()?
        {
            let sender = match record.ssi_code {
                code if code > 0 => Sender::Kernel,
                _ => Sender::Process(record.ssi_pid.cast_signed()),
            };
            self.pending.push_back(Signal { number: record.ssi_signo.cast_signed(), sender });
        }
        Ok(())
    }

    /// Waits for a signal that asks us to end, and answers its number. Of the others those that stop a job stop us; the rest
    /// means nothing while there is no command. One that was ignored when we were started is no request.
    ///
    /// # Cancellation
    /// May be dropped; none is lost.
    pub async fn asked_to_end(&mut self) -> io::Result<i32> {
        loop {
            let Signal { number, .. } = self.next().await?;
            let is_heard = !self.inherited.ignores(number);
            if is_heard && ENDING.contains(&number) {
                return Ok(number);
            }
            if is_heard && STOPPING.contains(&number) {
                stop_ourselves(number);
            }
            // Whoever sends without end keeps us from no limit.
            yield_now().await;
        }
    }
}
