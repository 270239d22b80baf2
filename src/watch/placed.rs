//! Where each place is followed from: the kernel's source, or the poller for those it refuses.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::place::{Kind, Place};
use super::poll::Poller;
use super::source::{Hint, Refusal, Silent, Source, Waker};
use super::{WatchMode, WatcherState};

/// Starts and stops following places. To be called before a place is read.
pub(super) trait Watches {
    fn watch(&mut self, place: &Place, dir: &Path);
    fn unwatch(&mut self, place: &Place);
}

/// Follows nothing: for a single scan.
pub(super) struct Nowhere;

impl Watches for Nowhere {
    fn watch(&mut self, _place: &Place, _dir: &Path) {}
    fn unwatch(&mut self, _place: &Place) {}
}

pub(super) struct Placed {
    source: Box<dyn Source>,
    poller: Poller,
    poll_interval: Duration,
    next_tick: Option<Instant>,
    /// What the kernel said when it refused.
    refusal: Option<String>,
}

impl Placed {
    /// A source that cannot be made is replaced by polling.
    pub(super) fn new(source: io::Result<Box<dyn Source>>, poll_interval: Duration) -> Self {
        let (source, refusal) = match source {
            Ok(source) => (source, None),
            Err(error) => (Box::new(Silent::new()) as Box<dyn Source>, Some(error.to_string())),
        };
        Self { source, poller: Poller::default(), poll_interval, next_tick: None, refusal }
    }

    pub(super) fn waker(&self) -> Waker {
        self.source.waker()
    }

    /// When the next poll is due; none while nothing is polled.
    pub(super) fn next_tick(&mut self, now: Instant) -> Option<Instant> {
        if self.poller.is_empty() {
            self.next_tick = None;
        } else if self.next_tick.is_none() {
            self.next_tick = now.checked_add(self.poll_interval);
        }
        self.next_tick
    }

    /// Polls, when that is due.
    pub(super) fn tick(&mut self, now: Instant, sink: &mut dyn FnMut(Hint<'_>)) {
        if self.next_tick(now).is_some_and(|at| at <= now) {
            self.poller.tick(&mut |place| sink(Hint::At { place, name: None, kind: Kind::Blind }));
            self.next_tick = now.checked_add(self.poll_interval);
        }
    }

    pub(super) fn wait(&mut self, timeout: Option<Duration>, sink: &mut dyn FnMut(Hint<'_>)) -> io::Result<()> {
        self.source.wait(timeout, sink)
    }

    pub(super) fn state(&self) -> WatcherState {
        let watches = self.source.count();
        let mode = match (self.poller.is_empty(), watches) {
            (true, _) => WatchMode::Native,
            (false, 0) => WatchMode::Polling,
            (false, _) => WatchMode::Mixed,
        };
        let message = self.refusal.clone().filter(|text| mode != WatchMode::Native && !text.is_empty());
        WatcherState { mode, watches, message, problems: Vec::new() }
    }
}

impl Watches for Placed {
    fn watch(&mut self, place: &Place, dir: &Path) {
        match self.source.watch(place, dir) {
            // Gone: its parent tells when it is back.
            Ok(()) | Err(Refusal::Gone) => self.poller.remove(place),
            Err(Refusal::Refused(text)) => {
                self.poller.add(place, dir);
                if !text.is_empty() {
                    self.refusal = Some(text);
                }
            }
        }
    }

    fn unwatch(&mut self, place: &Place) {
        self.source.unwatch(place);
        self.poller.remove(place);
    }
}
