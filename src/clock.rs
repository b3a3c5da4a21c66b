//! Time that goes on while we stand still and while the machine sleeps, as that of others does; and how a date is written.

use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use humantime::Rfc3339Timestamp;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

/// The last second of the year 9999, behind which there is no way to write it.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// A date of the calendar, whatever a server says: one that cannot be written is as near as can be.
pub fn date(time: SystemTime) -> Rfc3339Timestamp {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since_epoch.min(LAST))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_date_for_every_time() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        for (time, text) in [
            (at(1_532_538_592), "2018-07-25T17:09:52Z"),
            (before, "1970-01-01T00:00:00Z"),
            (at(253_402_300_800), "9999-12-31T23:59:59Z"),
            (at(i64::MAX as u64), "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(date(time).to_string(), text);
        }
    }
}
