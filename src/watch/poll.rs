//! Looking at folders from time to time, where the kernel does not tell.
//!
//! A place is remembered by a signature of `stat` facts, and no file is opened while that stays the same. File
//! systems stamp times coarsely: a second save within the same stamp leaves no trace in it. So a place whose signature
//! changed is reported again for the next ticks, and the reading, compared by hash, decides.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::place::{APP_JSON, AUTOMATIONS, HANDLER, INDEX_HTML, MANIFEST, Place};

/// Ticks for which a changed place is reported again: at the default interval longer than the two seconds of the
/// coarsest stamps (FAT).
const RECHECKS: u8 = 2;

/// Inode, length, modification and change time of one file; zeros when there is none.
type Facts = [i128; 4];
type Signature = [Facts; 3];

struct Polled {
    dir: PathBuf,
    signature: Signature,
    rechecks: u8,
}

#[derive(Default)]
pub(super) struct Poller {
    places: HashMap<Place, Polled>,
}

impl Poller {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Starts looking at a place, from what it is now: to be called before it is read.
    pub(super) fn add(&mut self, place: &Place, dir: &Path) {
        if self.places.get(place).is_none_or(|polled| polled.dir != dir) {
            let polled = Polled { dir: dir.to_owned(), signature: look(place, dir), rechecks: RECHECKS };
            self.places.insert(place.clone(), polled);
        }
    }

    pub(super) fn remove(&mut self, place: &Place) {
        self.places.remove(place);
    }

    /// Looks at every place and reports those to be read.
    pub(super) fn tick(&mut self, report: &mut dyn FnMut(&Place)) {
        for (place, polled) in &mut self.places {
            let now = look(place, &polled.dir);
            if now != polled.signature {
                polled.signature = now;
                polled.rechecks = RECHECKS;
                report(place);
            } else if polled.rechecks > 0 {
                polled.rechecks -= 1;
                report(place);
            }
        }
    }
}

fn look(place: &Place, dir: &Path) -> Signature {
    let file = |name: &str| facts(&dir.join(name));
    // Only who it is: a ledger's journal comes and goes in an app folder.
    let identity = |path: &Path| [facts(path)[0], 0, 0, 0];
    match place {
        Place::Root | Place::Automations(_) => [facts(dir), [0; 4], [0; 4]],
        Place::App(_) => {
            let mut app = identity(dir);
            app[1] = identity(&dir.join(AUTOMATIONS))[0];
            [app, file(APP_JSON), identity(&dir.join(INDEX_HTML))]
        }
        Place::Entry(..) => [identity(dir), file(MANIFEST), file(HANDLER)],
        Place::Linked(_, _, name) => [facts(&dir.join(&**name)), [0; 4], [0; 4]],
    }
}

fn facts(path: &Path) -> Facts {
    let Ok(meta) = std::fs::metadata(path) else {
        return [0; 4];
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let stamp = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        [
            i128::from(meta.ino()) + 1,
            i128::from(meta.len()),
            stamp(meta.mtime(), meta.mtime_nsec()),
            stamp(meta.ctime(), meta.ctime_nsec()),
        ]
    }
    #[cfg(not(unix))]
    {
        let created = meta.created().map_or(0, super::walk::nanos);
        [created + 1, i128::from(meta.len()), meta.modified().map_or(0, super::walk::nanos), 0]
    }
}
