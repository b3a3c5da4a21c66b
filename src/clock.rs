//! Time that goes on while we stand still and while the machine sleeps, as that of others does.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep};

/// A timer does not count the time that the machine sleeps, and nothing need wake us when it no longer does.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The time since some moment.
///
/// # Panics
/// Never on Linux: `CLOCK_BOOTTIME` is there since 2.6.39.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it").into()
}

/// Ready once `clock` shows `when`. It looks whenever it is polled.
///
/// # Cancellation
/// May be dropped.
pub async fn reaches(clock: impl Fn() -> Duration, when: Duration) {
    let mut timer = pin!(sleep(Duration::ZERO));
    poll_fn(|context| {
        loop {
            let left = when.saturating_sub(clock());
            if left.is_zero() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + left.min(LOOK_AGAIN));
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}
