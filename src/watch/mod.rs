//! The disk, as seen by the daemon: walks the apps folder, follows its changes, and hands over settled batches of
//! folders with the *contents* of their files, so that nobody behind it has to touch the disk.
//!
//! Words: a *place* is a folder that is followed (the root, an app, its `automations`, one automation). A *hint* is
//! what the kernel or a poll says about a place; it makes a *target* due, and the target is read again. What was last
//! sent is remembered by hash: only a difference is *published*. Reading is *settled* when it is not in the middle of
//! a save.
//!
//! - `walk` reads one folder at a time; `guard` opens files without following a link out of the app, and without
//!   blocking; `tree` remembers what was published and makes batches; `settle` decides when a target is due and
//!   whether a reading is torn (pure, virtual time); `place` maps hints to targets (pure); `inotify` and `native` are
//!   the sources of hints, `poll` stands in where they cannot; `worker` is the thread that runs all of it.
//!
//! Invariants
//! - Hints are hints. A place is watched first and read afterwards; a lost hint costs latency until the next rescan.
//! - Folders are watched, never files.
//! - The batches received so far, applied in order, equal what was last read. The first is full; so is one after the
//!   root vanished or came back, and one after a restart of the thread. All others carry differences only.
//! - Memory is bounded by the number of folders, whatever the flood: hints collapse to a set of targets, and while the
//!   receiver is behind, nothing more is read.
//! - Idle costs nothing: one blocked thread, no tick, except where folders must be polled.
//!
//! A mistake here shows as an edit that is not noticed, or as a half-written manifest that closes a webhook.
#![allow(clippy::result_large_err, reason = "a problem is what people are shown, whole, and is rare")]

mod guard;
#[cfg(target_os = "linux")]
mod inotify;
#[cfg(any(test, not(target_os = "linux")))]
mod native;
mod place;
mod placed;
mod poll;
mod settle;
mod source;
mod tree;
mod walk;
mod worker;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use crate::core::disk::{AppFolder, AutomationFolder, DiskBatch, FileContent, HandlerFile};
use crate::fire::Problem;

pub use guard::{list_app_dir, make_app_dir, read_app_file, read_handler, remove_empty};
pub use place::unusable;
pub use write::write_atomic;

/// How the root is followed.
#[derive(Debug, Clone)]
pub struct WatchConfig {
    pub root: PathBuf,
    /// Never ask the kernel, poll everything: for network and container mounts.
    pub poll: bool,
    /// Between two looks at a polled folder.
    pub poll_interval: Duration,
    /// How long a complete save waits for others to share its batch.
    pub settle: Duration,
    /// Between two full rescans, against hints that never came.
    pub rescan_interval: Duration,
}

impl WatchConfig {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            poll: false,
            // A change is seen within two seconds, for a per mille of a core at 10,000 automations.
            poll_interval: Duration::from_secs(2),
            // Long enough to gather the two or three events of one save, a fraction of what a person notices.
            settle: Duration::from_micros(500),
            rescan_interval: Duration::from_secs(600),
        }
    }
}

/// What the watcher tells, in order.
#[derive(Debug, Clone)]
pub enum DiskEvent {
    Batch(DiskBatch),
    Watcher(WatcherState),
}

/// How changes are noticed. Sent after the first batch and whenever it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatcherState {
    pub mode: WatchMode,
    /// Folders that the kernel watches, when this was sent.
    pub watches: usize,
    /// Why it is not all native, and the command that changes it.
    pub message: Option<String>,
    /// Trouble of the watcher itself: a root that cannot be read, a restart.
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchMode {
    /// The kernel tells of changes in every folder.
    Native,
    /// Every folder is polled.
    Polling,
    /// The kernel watches some folders; the rest is polled.
    Mixed,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("the apps folder {} cannot be read: {source}", root.display())]
    Root { root: PathBuf, source: std::io::Error },
    #[error("the watcher's thread cannot be started: {0}")]
    Thread(std::io::Error),
}

/// Follows a root from its own thread. Stops when dropped.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<worker::Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watcher {
    /// Starts following. The first event is a full batch.
    ///
    /// `rt` only waits for room in `tx`: the thread itself never blocks on the receiver, nor any task on the disk.
    ///
    /// # Errors
    /// [`WatchError::Root`] when the root is no readable folder. That watches are refused is no error: see
    /// [`WatcherState`].
    pub fn start(
        cfg: WatchConfig,
        tx: tokio::sync::mpsc::Sender<DiskEvent>,
        rt: tokio::runtime::Handle,
    ) -> Result<Self, WatchError> {
        Self::start_with(cfg, tx, rt, Box::new(source::kernel))
    }

    fn start_with(
        cfg: WatchConfig,
        tx: tokio::sync::mpsc::Sender<DiskEvent>,
        rt: tokio::runtime::Handle,
        make_source: source::MakeSource,
    ) -> Result<Self, WatchError> {
        std::fs::read_dir(&cfg.root).map_err(|source| WatchError::Root { root: cfg.root.clone(), source })?;
        let shared = Arc::new(worker::Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || worker::run(&cfg, &tx, &rt, &theirs, &*make_source))
            .map_err(WatchError::Thread)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Reads everything again and publishes what differs.
    pub fn rescan(&self) {
        self.shared.ask_rescan();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic was reported as an event already.
            let _ = thread.join();
        }
    }
}

/// One full scan, without a watcher: a full batch. A root that cannot be read is a problem of the root, and no apps.
pub fn scan(root: &Path) -> DiskBatch {
    let mut tree = tree::Tree::new(root);
    tree.first_scan(&mut placed::Nowhere)
}
