//! What concerns whoever watches all runs: their beginnings and ends, and that the registry has changed. Numbered, and
//! the newest few thousand kept, so that a listener that was away, or slow, gets exactly what it has not seen, or is
//! told that this is no longer possible.
//!
//! Numbers begin at 1 with each life of the daemon; [`Headlines::boot`] tells those lives apart.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::RunEvent;

/// Headlines that are kept: some minutes of a busy root, and less than a MiB.
const KEPT: usize = 4096;

/// One of them.
#[derive(Debug, Clone)]
pub enum Headline {
    /// A run was opened, was started, or has ended.
    Run(Arc<RunEvent>),
    RegistryChanged,
}

/// All of this daemon's life. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Headlines {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    boot: String,
    kept: Mutex<VecDeque<Headline>>,
    /// The number of the newest.
    newest: watch::Sender<u64>,
}

impl Default for Headlines {
    fn default() -> Self {
        // Its keys come from the system's random numbers: another value in each process.
        let boot = format!("{:016x}", RandomState::new().build_hasher().finish());
        Self { inner: Arc::new(Inner { boot, kept: Mutex::default(), newest: watch::Sender::new(0) }) }
    }
}

/// Headlines were dropped before they were taken; what is next is the newest.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap;

impl Headlines {
    /// Names this life of the daemon: 16 hex digits.
    pub fn boot(&self) -> &str {
        &self.inner.boot
    }

    pub(super) fn tell(&self, headline: Headline) {
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(headline);
        // Under the lock: whoever hears of a number finds it.
        self.inner.newest.send_modify(|newest| *newest += 1);
    }

    /// Listens to what comes after the headline of this number; without one, to what comes from now on.
    pub fn listen(&self, after: Option<u64>) -> Listener {
        let news = self.inner.newest.subscribe();
        let newest = *news.borrow();
        Listener { headlines: self.clone(), news, taken: after.unwrap_or(newest) }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Headline>> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who listens.
pub struct Listener {
    headlines: Headlines,
    news: watch::Receiver<u64>,
    taken: u64,
}

impl Listener {
    /// The number of the last one taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next one; waits for it.
    ///
    /// # Errors
    /// [`Gap`] when it is not kept any more, or was never told in this life; the listener then goes on from now.
    pub async fn next(&mut self) -> Result<Headline, Gap> {
        loop {
            if let Some(found) = self.try_next() {
                return found;
            }
            // The sender lives as long as this listener does.
            let _ = self.news.changed().await;
        }
    }

    fn try_next(&mut self) -> Option<Result<Headline, Gap>> {
        let kept = self.headlines.kept();
        let newest = *self.news.borrow_and_update();
        if self.taken == newest {
            return None;
        }
        let oldest = newest - kept.len() as u64 + 1;
        let wanted = self.taken.checked_add(1);
        let index = wanted.and_then(|wanted| usize::try_from(wanted.checked_sub(oldest)?).ok());
        match index.and_then(|index| kept.get(index)) {
            Some(headline) => {
                self.taken += 1;
                Some(Ok(headline.clone()))
            }
            None => {
                self.taken = newest;
                Some(Err(Gap))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_gets_what_it_has_not_seen_or_hears_of_the_gap() {
        let headlines = Headlines::default();
        assert_ne!(headlines.boot(), Headlines::default().boot());
        let tell = |count: usize| (0..count).for_each(|_| headlines.tell(Headline::RegistryChanged));
        let taken = async |mut listener: Listener, count: u64| {
            for _ in 0..count {
                listener.next().await.unwrap();
            }
            assert!(listener.try_next().is_none());
            listener.taken()
        };
        let early = headlines.listen(None);
        tell(3);
        assert_eq!(taken(early, 3).await, 3);
        for (after, left) in [(Some(0), 3), (Some(1), 2), (Some(3), 0), (None, 0)] {
            assert_eq!(taken(headlines.listen(after), left).await, 3, "{after:?}");
        }
        tell(KEPT);
        assert_eq!(taken(headlines.listen(Some(3)), KEPT as u64).await, 3 + KEPT as u64);
        // One that is too old, and one that this life has never told.
        for after in [2, u64::MAX] {
            let mut listener = headlines.listen(Some(after));
            assert_eq!(listener.next().await.err(), Some(Gap), "{after}");
            assert!(listener.try_next().is_none());
            tell(1);
            assert!(listener.next().await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_listener_that_waits_is_woken() {
        let headlines = Headlines::default();
        let mut listener = headlines.listen(None);
        let waiting = tokio::spawn(async move { listener.next().await.is_ok() });
        tokio::task::yield_now().await;
        headlines.tell(Headline::RegistryChanged);
        assert!(waiting.await.unwrap());
    }
}
