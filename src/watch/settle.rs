//! When a target is due, and whether a reading may be taken for final. Pure: time comes in as a parameter.
//!
//! A complete save (a file closed after writing, or moved into place) is read at once. While a file is still being
//! written its target waits for the close, or for quiet. A reading that looks torn - a manifest that is no whole JSON,
//! or one that is missing where it was - is not believed at once either, as most ways to save pass through such a
//! state; it is read again until it is whole, or has been that way for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;

use super::place::{Files, Kind, Target};
use crate::core::disk::FileContent;

/// A file that is being written and not closed is read when nothing was written for that long.
const OPEN_QUIET: Duration = Duration::from_millis(50);
/// No whole JSON, though closed: the next write of a shell script that appends line by line follows sooner.
const TORN_CLOSED: Duration = Duration::from_millis(50);
/// No whole JSON, and still open, or nobody told that it was closed: a slow writer writes again within that.
const TORN_OPEN: Duration = Duration::from_millis(250);
/// What was there is gone: a save by "rename away, create", `git checkout`, or a folder made anew brings it back
/// within far less, also on a busy machine; and no person notices that long.
const GONE: Duration = Duration::from_millis(60);
/// A new folder without a manifest: it is on its way, and its coming is a hint of its own.
const EMPTY: Duration = Duration::from_millis(250);
/// However long a writer keeps on, what there is is published by then.
const LONGEST: Duration = Duration::from_secs(2);
/// Targets that may be pending. More than any folder tree has in earnest: then everything is read once instead.
const PENDING_LIMIT: usize = 50_000;

/// A reading that differs from what was published.
pub(super) enum Reading<'a> {
    /// A JSON file with new contents.
    Json(&'a FileContent),
    /// Nothing is there any more, or no manifest.
    Gone,
    /// A folder not known before, with no manifest in it.
    Empty,
    /// Anything that cannot be torn.
    Other,
}

/// Decides over readings.
pub(super) trait Gate {
    /// Whether a reading is final. When not, the target will be due again.
    fn admits(&mut self, target: &Target, reading: &Reading<'_>) -> bool;

    /// True when the target is to be published though it looks the same: a handler saved twice within one time stamp.
    fn insists(&self, target: &Target) -> bool;
}

/// Admits everything: for a scan at a point in time.
pub(super) struct OpenGate;

impl Gate for OpenGate {
    fn admits(&mut self, _target: &Target, _reading: &Reading<'_>) -> bool {
        true
    }

    fn insists(&self, _target: &Target) -> bool {
        false
    }
}

/// The targets to be read again.
pub(super) struct Dirty {
    settle: Duration,
    pending: BTreeMap<Target, Pending>,
    /// Those being read right now.
    current: BTreeMap<Target, Pending>,
}

#[derive(Clone)]
struct Pending {
    first: Instant,
    last: Instant,
    due: Instant,
    /// Files written to, and not closed.
    open: Files,
    /// Nobody tells whether files are closed.
    blind: bool,
    handler_saved: bool,
    /// The torn contents that were read last.
    torn: Option<[u8; 32]>,
}

impl Dirty {
    pub(super) fn new(settle: Duration) -> Self {
        Self { settle, pending: BTreeMap::new(), current: BTreeMap::new() }
    }

    /// Takes in a hint.
    pub(super) fn note(&mut self, target: Target, files: Files, kind: Kind, now: Instant) {
        if self.pending.len() >= PENDING_LIMIT && !self.pending.contains_key(&target) {
            self.pending.clear();
            return self.note(Target::Full, Files::NONE, Kind::Listed, now);
        }
        let soon = now + self.settle;
        let pending = self.pending.entry(target).or_insert_with(|| Pending { due: soon, ..Pending::new(now) });
        pending.last = now;
        match kind {
            Kind::Writing => {
                pending.open = pending.open.with(files);
                pending.due = (now + OPEN_QUIET).min(pending.first + LONGEST);
                return;
            }
            Kind::Saved => {
                pending.open = pending.open.without(files);
                pending.handler_saved |= files.contains(Files::HANDLER);
            }
            Kind::Listed | Kind::SelfGone => {}
            Kind::Blind => pending.blind = true,
        }
        if pending.open.is_empty() {
            pending.due = pending.due.min(soon);
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.pending.values().map(|p| p.due).min()
    }

    /// The targets to read now. To be followed by [`Self::done`].
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Target> {
        let due: Vec<Target> = self.pending.iter().filter(|(_, p)| p.due <= now).map(|(t, _)| t.clone()).collect();
        for target in &due {
            if let Some(pending) = self.pending.remove(target) {
                self.current.insert(target.clone(), pending);
            }
        }
        due
    }

    pub(super) fn done(&mut self) {
        self.current.clear();
    }

    /// A gate for readings made at `now`.
    pub(super) fn gate(&mut self, now: Instant) -> SettleGate<'_> {
        SettleGate { dirty: self, now }
    }
}

impl Pending {
    fn new(now: Instant) -> Self {
        Self { first: now, last: now, due: now, open: Files::NONE, blind: false, handler_saved: false, torn: None }
    }
}

/// Believes a torn reading only after a while.
pub(super) struct SettleGate<'a> {
    dirty: &'a mut Dirty,
    now: Instant,
}

impl Gate for SettleGate<'_> {
    fn admits(&mut self, target: &Target, reading: &Reading<'_>) -> bool {
        let known = self.dirty.current.get(target).or_else(|| self.dirty.pending.get(target)).cloned();
        // Read along with its app, without a hint of its own: nobody told whether it is being written.
        let mut pending = known.unwrap_or_else(|| Pending { blind: true, ..Pending::new(self.now) });
        let patience = match reading {
            Reading::Other => return true,
            Reading::Gone => GONE,
            Reading::Empty => EMPTY,
            Reading::Json(FileContent::Bytes { bytes, sha256 }) => {
                if serde_json::from_slice::<IgnoredAny>(bytes).is_ok() {
                    // Whole, and yet perhaps the old tail behind a new head.
                    if !pending.open.contains(Files::MANIFEST) {
                        return true;
                    }
                    OPEN_QUIET
                } else {
                    if pending.torn.is_some_and(|torn| torn != *sha256) {
                        pending.last = self.now;
                    }
                    pending.torn = Some(*sha256);
                    if pending.blind || !pending.open.is_empty() { TORN_OPEN } else { TORN_CLOSED }
                }
            }
            Reading::Json(FileContent::Absent | FileContent::Unreadable(_)) => return true,
        };
        let until = (pending.last + patience).min(pending.first + LONGEST);
        if until <= self.now {
            return true;
        }
        // Looked at now and then while it waits: the rest may come without a hint.
        pending.due = until.min(self.now + OPEN_QUIET);
        self.dirty.pending.insert(target.clone(), pending);
        false
    }

    fn insists(&self, target: &Target) -> bool {
        let pending = self.dirty.current.get(target).or_else(|| self.dirty.pending.get(target));
        pending.is_some_and(|p| p.handler_saved)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::watch::place::Name;

    const MS: Duration = Duration::from_millis(1);

    fn entry() -> Target {
        Target::Entry(Name::from(std::ffi::OsStr::new("a")), Name::from(std::ffi::OsStr::new("x")))
    }

    fn content(text: &str) -> FileContent {
        let mut sha256 = [0; 32];
        sha256.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        FileContent::Bytes { bytes: Arc::from(text.as_bytes()), sha256 }
    }

    /// One step of a table: what happens, and what is to come of it.
    enum Step {
        /// At this millisecond there is a hint about the manifest.
        Hint(u32, Kind),
        /// The target is due at this time and not before; it reads as this text; and is it published?
        Read(u32, &'static str, bool),
        /// As `Read`, with nothing there any more.
        Gone(u32, bool),
        /// As `Read`, a new folder without manifest.
        Empty(u32, bool),
        /// Nothing is due any more.
        Idle,
    }
    use Step::{Empty, Gone, Hint, Idle, Read};

    fn check(name: &str, steps: &[Step]) {
        let start = Instant::now();
        let mut dirty = Dirty::new(Duration::ZERO);
        for (i, step) in steps.iter().enumerate() {
            let mut read = |at: u32, reading: &Reading<'_>, published: bool| {
                let now = start + MS * at;
                assert_eq!(
                    dirty.next_due(),
                    Some(now),
                    "{name}, step {i}: due, {:?}",
                    dirty.next_due().map(|d| d - start)
                );
                assert_eq!(dirty.take_due(now), [entry()], "{name}, step {i}");
                assert_eq!(dirty.gate(now).admits(&entry(), reading), published, "{name}, step {i}: published");
                dirty.done();
            };
            match step {
                Hint(at, kind) => dirty.note(entry(), Files::MANIFEST, *kind, start + MS * *at),
                Read(at, text, published) => read(*at, &Reading::Json(&content(text)), *published),
                Gone(at, published) => read(*at, &Reading::Gone, *published),
                Empty(at, published) => read(*at, &Reading::Empty, *published),
                Idle => assert_eq!(dirty.next_due(), None, "{name}, step {i}: idle"),
            }
        }
    }

    #[test]
    fn readings_are_believed_when_they_can_be() {
        use Kind::{Blind, Listed, Saved, Writing};
        check("a complete save at once", &[Hint(0, Saved), Read(0, "{}", true), Idle]);
        check("in place", &[Hint(0, Writing), Hint(1, Writing), Hint(2, Saved), Read(2, "{}", true), Idle]);
        check(
            "a slow writer, whole only at the close",
            &[
                Hint(0, Writing),
                Read(50, "", false),
                Hint(60, Writing),
                Hint(100, Writing),
                Read(150, "{", false),
                Read(200, "{", false),
                Hint(240, Writing),
                Hint(241, Saved),
                Read(241, "{}", true),
                Idle,
            ],
        );
        check("never closed, whole after some quiet", &[Hint(0, Writing), Read(50, "{}", true), Idle]);
        check(
            "never closed, torn: published in the end",
            &[
                Hint(0, Writing),
                Read(50, "{", false),
                Read(100, "{", false),
                Read(150, "{", false),
                Read(200, "{", false),
                Read(250, "{", true),
                Idle,
            ],
        );
        check("closed and torn: published soon", &[Hint(0, Saved), Read(0, "{", false), Read(50, "{", true), Idle]);
        check(
            "closed, torn, and growing without hints",
            &[Hint(0, Saved), Read(0, "{", false), Read(50, "{\"a\"", false), Read(100, "{\"a\":1}", true)],
        );
        check(
            "away and back",
            &[Hint(0, Listed), Gone(0, false), Hint(5, Listed), Hint(6, Saved), Read(5, "{}", true)],
        );
        check("away", &[Hint(0, Listed), Gone(0, false), Gone(50, false), Gone(60, true), Idle]);
        check(
            "a new folder, its manifest on the way",
            &[Hint(0, Listed), Empty(0, false), Hint(20, Saved), Read(20, "{}", true)],
        );
        check(
            "a poll in the middle of a save",
            &[Hint(0, Blind), Read(0, "", false), Read(50, "{", false), Read(100, "{}", true)],
        );
    }

    #[test]
    fn a_writer_that_never_rests_is_published_after_the_longest_wait() {
        let start = Instant::now();
        let mut dirty = Dirty::new(MS);
        for at in 0..3_000 {
            let now = start + MS * at;
            dirty.note(entry(), Files::MANIFEST, Kind::Writing, now);
            if !dirty.take_due(now).is_empty() {
                assert!(dirty.gate(now).admits(&entry(), &Reading::Json(&content("{"))));
                assert_eq!(at, 2_000);
                return;
            }
        }
        panic!("it was never due");
    }

    #[test]
    fn a_handler_saved_within_one_time_stamp_is_published_though_it_looks_the_same() {
        let now = Instant::now();
        let mut dirty = Dirty::new(Duration::ZERO);
        dirty.note(entry(), Files::HANDLER, Kind::Saved, now);
        dirty.take_due(now);
        assert!(dirty.gate(now).insists(&entry()));
        dirty.done();
        dirty.note(entry(), Files::MANIFEST, Kind::Saved, now);
        dirty.take_due(now);
        assert!(!dirty.gate(now).insists(&entry()));
    }

    #[test]
    fn a_flood_of_names_collapses_to_one_rescan() {
        let now = Instant::now();
        let mut dirty = Dirty::new(Duration::ZERO);
        for n in 0..=PENDING_LIMIT {
            let name = Name::from(std::ffi::OsStr::new(&n.to_string()));
            dirty.note(Target::App(name), Files::NONE, Kind::Listed, now);
        }
        assert_eq!(dirty.take_due(now), [Target::Full]);
    }
}
