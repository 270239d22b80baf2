//! The only reader of real time, and the test clock beside it.
//!
//! Wall time is what schedules speak of; it may step in either direction. Waiting for a wall instant therefore never
//! sleeps longer than [`RECHECK`]: after a machine's sleep or a clock change, what is due is noticed within that time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::fire::EpochMs;

/// The longest that anybody waits without looking at the wall clock again.
pub const RECHECK: Duration = Duration::from_secs(30);

/// A source of wall time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    Real,
    Test(Arc<TestClock>),
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "this is the one reader of the wall clock")]
    pub fn now_ms(&self) -> EpochMs {
        match self {
            Clock::Real => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            }
            Clock::Test(clock) => clock.now_ms.load(Ordering::SeqCst),
        }
    }

    /// Returns at the wall instant, or earlier when it is time to look at the clock again. Without an instant, waits
    /// for the latter only on a test clock, and for ever on the real one: with nothing armed there is nothing to check.
    pub async fn wait_until(&self, at_ms: Option<EpochMs>) {
        match self {
            Clock::Real => {
                let Some(at_ms) = at_ms else { return std::future::pending().await };
                let left = Duration::from_millis(u64::try_from(at_ms.saturating_sub(self.now_ms())).unwrap_or(0));
                tokio::time::sleep(left.min(RECHECK)).await;
            }
            Clock::Test(clock) => loop {
                let moved = clock.moved.notified();
                tokio::pin!(moved);
                moved.as_mut().enable();
                if at_ms.is_some_and(|at| at <= self.now_ms()) {
                    return;
                }
                moved.await;
            },
        }
    }
}

/// A wall clock that stands still until it is moved.
#[derive(Debug)]
pub struct TestClock {
    now_ms: AtomicI64,
    moved: Notify,
}

impl TestClock {
    pub fn at(now_ms: EpochMs) -> Arc<Self> {
        Arc::new(Self { now_ms: AtomicI64::new(now_ms), moved: Notify::new() })
    }

    /// Sets the clock, forward or back, and wakes whoever waits.
    pub fn set(&self, now_ms: EpochMs) {
        self.now_ms.store(now_ms, Ordering::SeqCst);
        self.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_test_clock_wakes_at_the_instant_and_not_before() {
        let test = TestClock::at(1_000);
        let clock = Clock::Test(Arc::clone(&test));
        let mut waiting = tokio_test_task(clock.clone(), 2_000);
        test.set(1_999);
        assert!(futures::poll!(&mut waiting).is_pending());
        test.set(2_000);
        waiting.await;
        assert_eq!(clock.now_ms(), 2_000);
    }

    fn tokio_test_task(clock: Clock, at: EpochMs) -> std::pin::Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move { clock.wait_until(Some(at)).await })
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_deadline_is_looked_at_again_within_the_recheck() {
        let clock = Clock::Real;
        let before = tokio::time::Instant::now();
        clock.wait_until(Some(clock.now_ms() + 3_600_000)).await;
        assert_eq!(before.elapsed(), RECHECK);
    }
}
