//! Hints from the system's own interface on macOS, Windows and the BSDs, by way of `notify`.
//!
//! Those interfaces follow whole trees and speak in paths, and tell nothing of a file being closed, so every hint is
//! [`Kind::Blind`] but for renames. The callback runs on another thread: it drops the ledgers' files by name, and
//! collects the rest in a bounded set.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{ErrorKind, RecursiveMode, Watcher as _};

use super::place::{Kind, Place};
use super::source::{Hint, Refusal, Source, Waker};

/// Paths that may wait to be looked at; more than that is cheaper read as a whole.
const PENDING_LIMIT: usize = 20_000;

#[derive(Default)]
struct Pending {
    paths: HashSet<(PathBuf, bool)>,
    lost: bool,
    broken: Option<String>,
}

pub(super) struct Native {
    watcher: notify::RecommendedWatcher,
    pending: Arc<Mutex<Pending>>,
    places: HashMap<PathBuf, Vec<Place>>,
    dirs: HashMap<Place, PathBuf>,
    /// Trees that the system follows: the root, and apps that lie elsewhere.
    trees: Vec<(Place, PathBuf)>,
    thread: Thread,
}

impl Native {
    /// To be waited on by the calling thread.
    pub(super) fn new() -> io::Result<Self> {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let thread = std::thread::current();
        let (theirs, waker) = (Arc::clone(&pending), thread.clone());
        let watcher = notify::recommended_watcher(move |event| {
            if collect(&theirs, event) {
                waker.unpark();
            }
        })
        .map_err(|error| io::Error::other(format!("the system's watcher cannot be used: {error}")))?;
        Ok(Self { watcher, pending, places: HashMap::new(), dirs: HashMap::new(), trees: Vec::new(), thread })
    }

    /// Has the system follow the tree at `dir`, unless it does.
    fn follow(&mut self, place: &Place, dir: &Path) -> Result<(), Refusal> {
        let former = self.dirs.get(place).is_some_and(|former| former == dir);
        if matches!(place, Place::App(_)) && self.trees.iter().any(|(p, tree)| p != place && dir.starts_with(tree)) {
            return Ok(());
        }
        if !matches!(place, Place::Root | Place::App(_)) {
            return Ok(());
        }
        // The root is asked for again with every rescan: it may be another folder by the same name.
        if former && matches!(place, Place::App(_)) {
            return Ok(());
        }
        self.leave(place);
        match self.watcher.watch(dir, RecursiveMode::Recursive) {
            Ok(()) => {
                self.trees.push((place.clone(), dir.to_owned()));
                Ok(())
            }
            Err(error) => Err(match error.kind {
                ErrorKind::PathNotFound => Refusal::Gone,
                ErrorKind::MaxFilesWatch => Refusal::Refused(format!(
                    "the system refuses more watches at {}, so folders are polled; on Linux raise the limit with: \
                     sudo sysctl fs.inotify.max_user_watches=524288",
                    dir.display()
                )),
                _ => Refusal::Refused(format!(
                    "the system cannot watch {}, so it is polled: {error}; on a network mount use: --poll",
                    dir.display()
                )),
            }),
        }
    }

    fn leave(&mut self, place: &Place) {
        if let Some(at) = self.trees.iter().position(|(p, _)| p == place) {
            let (_, tree) = self.trees.swap_remove(at);
            // It fails when the folder is gone, and the watch with it.
            let _ = self.watcher.unwatch(&tree);
        }
    }

    fn forget(&mut self, place: &Place) {
        if let Some(dir) = self.dirs.remove(place)
            && let Some(places) = self.places.get_mut(&dir)
        {
            places.retain(|p| p != place);
            if places.is_empty() {
                self.places.remove(&dir);
            }
        }
    }
}

impl Source for Native {
    fn watch(&mut self, place: &Place, dir: &Path) -> Result<(), Refusal> {
        self.follow(place, dir)?;
        if self.dirs.get(place).is_none_or(|former| former != dir) {
            self.forget(place);
            self.dirs.insert(place.clone(), dir.to_owned());
            self.places.entry(dir.to_owned()).or_default().push(place.clone());
        }
        Ok(())
    }

    fn unwatch(&mut self, place: &Place) {
        self.leave(place);
        self.forget(place);
    }

    fn wait(&mut self, timeout: Option<Duration>, sink: &mut dyn FnMut(Hint<'_>)) -> io::Result<()> {
        let mut taken = std::mem::take(&mut *lock(&self.pending));
        if taken.paths.is_empty() && !taken.lost && taken.broken.is_none() {
            match timeout {
                Some(timeout) => std::thread::park_timeout(timeout),
                None => std::thread::park(),
            }
            taken = std::mem::take(&mut *lock(&self.pending));
        }
        if let Some(message) = taken.broken {
            return Err(io::Error::other(message));
        }
        if taken.lost {
            sink(Hint::Overflow);
        }
        for (path, saved) in &taken.paths {
            let kind = if *saved { Kind::Saved } else { Kind::Blind };
            let parent = path.parent().and_then(|parent| self.places.get(parent));
            for place in parent.into_iter().flatten() {
                sink(Hint::At { place, name: path.file_name(), kind });
            }
            for place in self.places.get(path).into_iter().flatten() {
                sink(Hint::At { place, name: None, kind: Kind::SelfGone });
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        let thread = self.thread.clone();
        Arc::new(move || thread.unpark())
    }

    fn count(&self) -> usize {
        self.trees.len()
    }
}

/// True when there is something to wake up for.
fn collect(pending: &Mutex<Pending>, event: notify::Result<notify::Event>) -> bool {
    let event = match event {
        Ok(event) => event,
        Err(error) => {
            match error.kind {
                // A folder that went away while it was being watched: its parent tells.
                ErrorKind::PathNotFound | ErrorKind::WatchNotFound => lock(pending).lost = true,
                _ => lock(pending).broken = Some(error.to_string()),
            }
            return true;
        }
    };
    if event.need_rescan() {
        lock(pending).lost = true;
        return true;
    }
    let saved = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Access(_) => return false,
        EventKind::Modify(ModifyKind::Name(_)) => true,
        _ => false,
    };
    let mut paths = event.paths;
    paths.retain(|path| !path.file_name().is_some_and(is_database));
    if paths.is_empty() {
        return false;
    }
    let mut pending = lock(pending);
    if pending.paths.len() + paths.len() > PENDING_LIMIT {
        pending.paths.clear();
        pending.lost = true;
    } else if !pending.lost {
        pending.paths.extend(paths.into_iter().map(|path| (path, saved)));
    }
    true
}

/// `runtime.sqlite`, `data.sqlite` and their journals.
fn is_database(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.starts_with(b"runtime.sqlite") || bytes.starts_with(b"data.sqlite")
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}
