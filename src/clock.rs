//! Time that goes on while we stand still and while the machine sleeps, as that of others does.

use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

/// The time since some moment.
///
/// # Panics
/// Never on Linux: `CLOCK_BOOTTIME` is there since 2.6.39.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it").into()
}

/// Ready once the clock shows `when`, at once when the machine wakes up later than that. It looks whenever it is polled, so
/// whatever wakes us first will do.
///
/// # Cancellation
/// May be dropped.
pub async fn reaches(when: Duration) {
    let mut alarm = pin!(async {
        // Without a descriptor for it nothing wakes us, but for what else we wait for.
        match ring(when).await {
            Ok(()) => {}
            Err(_) => pending().await,
        }
    });
    poll_fn(|context| if now() >= when { Poll::Ready(()) } else { alarm.as_mut().poll(context) }).await;
}

/// A timer of the runtime would not count the time that the machine sleeps.
async fn ring(when: Duration) -> io::Result<()> {
    let timer = TimerFd::new(TimerClock::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
    timer.set(Expiration::OneShot(TimeSpec::from_duration(when)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
    #[allow(deprecated, reason = "its safe successor is an unsafe one; this descriptor is owned, and stays the same")]
    let watched = AsyncFd::new(OwnedFd::from(timer))?;
    watched.readable().await.map(drop)
}
