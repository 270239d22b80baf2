//! How fast a server may talk.

use tokio::time::Instant;

/// Lines at once.
const BURST: f64 = 100.0;
/// Lines in a second, in the long run.
const PER_SECOND: f64 = 20.0;

/// Lets lines through at a bounded pace, and counts those that it does not.
pub struct Pace {
    left: f64,
    at: Instant,
    dropped: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: BURST, at: Instant::now(), dropped: 0 }
    }
}

impl Pace {
    /// Whether one more line may pass; if so, how many were dropped since the last that did.
    pub fn next(&mut self) -> Option<u64> {
        let now = Instant::now();
        self.left = BURST.min(self.left + PER_SECOND * (now - self.at).as_secs_f64());
        self.at = now;
        if self.left < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.left -= 1.0;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_and_counted() {
        let mut pace = Pace::default();
        assert_eq!((0..1000).filter_map(|_| pace.next()).count(), 100);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((0..1000).filter_map(|_| pace.next()).collect::<Vec<_>>()[..2], [900, 0]);
    }
}
