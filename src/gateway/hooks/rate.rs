//! How often each webhook is posted to: so many authenticated posts in any 60 seconds.
//!
//! Only a caller who holds a secret gets here, so strangers can neither use up a limit nor make this grow. What is
//! refused does not count: a sender that backs off is let in again as soon as its older posts are a minute old.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::fire::EpochMs;

const WINDOW_MS: i64 = 60_000;
/// Slugs that are remembered before those that have been quiet for a minute are dropped.
const FEW: usize = 64;

/// See the module text.
#[derive(Debug)]
pub struct RateLimit {
    posts: usize,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    by_slug: HashMap<String, VecDeque<EpochMs>>,
    /// The map is swept when it has grown to this.
    sweep_at: usize,
}

impl RateLimit {
    /// At most `posts` in 60 seconds.
    pub fn new(posts: u32) -> Self {
        Self { posts: usize::try_from(posts).unwrap_or(usize::MAX), recent: Mutex::default() }
    }

    /// Counts a post.
    ///
    /// # Errors
    /// When there is no room for it: the seconds until there is, at least 1.
    pub fn count(&self, slug: &str, now: EpochMs) -> Result<(), u64> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if !recent.by_slug.contains_key(slug) {
            recent.make_room(now);
            recent.by_slug.insert(slug.to_owned(), VecDeque::new());
        }
        let Some(times) = recent.by_slug.get_mut(slug) else { return Ok(()) };
        forget_old(times, now);
        match times.front() {
            Some(oldest) if times.len() >= self.posts => {
                let left_ms = u64::try_from(oldest + WINDOW_MS - now).unwrap_or(0);
                Err(left_ms.div_ceil(1000).max(1))
            }
            _ => {
                times.push_back(now);
                Ok(())
            }
        }
    }
}

impl Recent {
    fn make_room(&mut self, now: EpochMs) {
        if self.by_slug.len() < self.sweep_at.max(FEW) {
            return;
        }
        self.by_slug.retain(|_, times| {
            forget_old(times, now);
            !times.is_empty()
        });
        self.sweep_at = 2 * self.by_slug.len();
    }
}

/// Drops what is a minute old, and what a clock that went back has left in the future.
fn forget_old(times: &mut VecDeque<EpochMs>, now: EpochMs) {
    while times.front().is_some_and(|at| *at <= now - WINDOW_MS) {
        times.pop_front();
    }
    while times.back().is_some_and(|at| *at > now) {
        times.pop_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_posts_fit_into_any_minute() {
        let limit = RateLimit::new(3);
        for (at, expected) in [
            (0, Ok(())),
            (1_000, Ok(())),
            (59_000, Ok(())),
            (59_001, Err(1)),
            (59_999, Err(1)),
            (60_000, Ok(())),
            (60_001, Err(1)),
            (60_999, Err(1)),
            (61_000, Ok(())),
            (61_001, Err(58)),
            // The clock goes back: what is ahead of it does not bar the way for an hour.
            (-3_600_000, Ok(())),
        ] {
            assert_eq!(limit.count("s", at), expected, "at {at}");
        }
        assert_eq!(limit.count("other", 61_002), Ok(()));
    }

    #[test]
    fn quiet_slugs_are_forgotten() {
        let limit = RateLimit::new(60);
        for n in 0..10_000_i64 {
            limit.count(&format!("s{n}"), n * 1000).unwrap();
        }
        assert!(limit.recent.lock().unwrap().by_slug.len() <= 2 * FEW + 1);
    }
}
