//! Places, and what a hint about one of them means. Pure.
//!
//! Everything the daemon itself writes beside the manifests (`runtime.sqlite`, its journal, `data.sqlite`, temporary
//! files) falls out here, by name, before any work is done for it.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fire::{Handle, Problem};

/// A folder's name on disk.
pub(super) type Name = Arc<OsStr>;

pub(super) const MANIFEST: &str = "automation.json";
pub(super) const HANDLER: &str = "handler.js";
pub(super) const AUTOMATIONS: &str = "automations";
pub(super) const APP_JSON: &str = "app.json";
pub(super) const INDEX_HTML: &str = "index.html";
/// Config-map mounts swap this link to change all files beside it at once.
const MOUNT_SWITCH: &str = "..data";

/// A folder that is followed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Place {
    Root,
    /// App.
    App(Name),
    /// The `automations` folder of an app.
    Automations(Name),
    /// App and automation.
    Entry(Name, Name),
    /// App, automation, and the name of a file in another folder of the app that the automation has a link to.
    Linked(Name, Name, Name),
}

/// What is to be read again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Target {
    /// Everything.
    Full,
    /// The list of apps.
    Root,
    /// An app with all its automations.
    App(Name),
    /// `app.json` and `index.html` of an app.
    Front(Name),
    /// Whatever stands in `automations` under that name.
    Entry(Name, Name),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Closed after writing, or moved into place: a complete save.
    Saved,
    /// Written to, and still open.
    Writing,
    /// Appeared, went away, or its attributes changed.
    Listed,
    /// The place itself moved or went away.
    SelfGone,
    /// Something changed, and nobody knows how: from polls, and from kernels that do not tell when a file is closed.
    Blind,
}

/// Which of an automation's files a hint is about: bits, so that two files being written are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Files(u8);

impl Files {
    pub(super) const NONE: Files = Files(0);
    pub(super) const MANIFEST: Files = Files(1);
    pub(super) const HANDLER: Files = Files(2);

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn contains(self, other: Files) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) fn with(self, other: Files) -> Files {
        Files(self.0 | other.0)
    }

    pub(super) fn without(self, other: Files) -> Files {
        Files(self.0 & !other.0)
    }
}

/// The target that a hint makes due, or none when it concerns nobody. `name` is the file within the place.
pub(super) fn classify(place: &Place, name: Option<&OsStr>, kind: Kind) -> Option<(Target, Files)> {
    let whole = |target| Some((target, Files::NONE));
    match (place, name) {
        (Place::Root, None) => whole(if kind == Kind::SelfGone { Target::Full } else { Target::Root }),
        (Place::Root, Some(name)) if is_skipped(name) => None,
        (Place::Root, Some(name)) => whole(Target::App(Arc::from(name))),
        (Place::App(app), None) => whole(Target::App(app.clone())),
        (Place::App(app), Some(name)) if name == AUTOMATIONS => whole(Target::App(app.clone())),
        (Place::App(app), Some(name)) if name == APP_JSON || name == INDEX_HTML => whole(Target::Front(app.clone())),
        (Place::App(_), Some(_)) => None,
        (Place::Automations(app), None) => whole(Target::App(app.clone())),
        (Place::Automations(_), Some(name)) if is_skipped(name) => None,
        (Place::Automations(app), Some(name)) => whole(Target::Entry(app.clone(), Arc::from(name))),
        (Place::Entry(app, entry), name) => {
            let files = match name {
                None => Files::NONE,
                Some(name) if name == MANIFEST => Files::MANIFEST,
                Some(name) if name == HANDLER => Files::HANDLER,
                Some(name) if name == MOUNT_SWITCH => Files::NONE,
                Some(_) => return None,
            };
            Some((Target::Entry(app.clone(), entry.clone()), files))
        }
        (Place::Linked(_, _, file), Some(name)) if name != &**file => None,
        (Place::Linked(app, entry, _), _) => whole(Target::Entry(app.clone(), entry.clone())),
    }
}

/// Files of the root that other rooms read: a folder of that name would be in their way.
const ROOT_FILES: [&str; 2] = ["dirigent.toml", "mcp.json"];

/// Why no automation of this handle would ever be seen, or its app would be in the way of other things.
pub fn unusable(handle: &Handle) -> Option<Problem> {
    let (app, automation) = (handle.app.as_str(), handle.automation.as_str());
    let told = if is_skipped(OsStr::new(app)) {
        format!("a folder {app} is no app: it is left alone")
    } else if is_skipped(OsStr::new(automation)) {
        format!("a folder {automation} is no automation: it is left alone")
    } else if ROOT_FILES.contains(&app) {
        format!("{app} is a file of the root, and cannot be an app")
    } else {
        return None;
    };
    Some(Problem::error("invalid_name", "", told).with_hint("choose another name, without `_` before it"))
}

/// Folders that are nobody's app or automation, and not worth a word.
pub(super) fn is_skipped(name: &OsStr) -> bool {
    matches!(name.as_encoded_bytes().first(), Some(b'.' | b'_')) || name == "node_modules"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_make_targets_due_and_unrelated_files_do_not() {
        let n = |text: &str| -> Name { Arc::from(OsStr::new(text)) };
        let app = Place::App(n("a"));
        let automations = Place::Automations(n("a"));
        let entry = Place::Entry(n("a"), n("x"));
        let linked = Place::Linked(n("a"), n("x"), n("real.json"));
        let cases: &[(&Place, Option<&str>, Kind, Option<Target>)] = &[
            (&Place::Root, Some("a"), Kind::Listed, Some(Target::App(n("a")))),
            (&Place::Root, Some(".dirigent"), Kind::Listed, None),
            (&Place::Root, Some("_old"), Kind::Listed, None),
            (&Place::Root, Some("node_modules"), Kind::Listed, None),
            (&Place::Root, None, Kind::SelfGone, Some(Target::Full)),
            (&Place::Root, None, Kind::Blind, Some(Target::Root)),
            (&app, Some("runtime.sqlite-wal"), Kind::Saved, None),
            (&app, Some("data.sqlite"), Kind::Listed, None),
            (&app, Some("app.json"), Kind::Saved, Some(Target::Front(n("a")))),
            (&app, Some("index.html"), Kind::Listed, Some(Target::Front(n("a")))),
            (&app, Some("automations"), Kind::Listed, Some(Target::App(n("a")))),
            (&app, None, Kind::SelfGone, Some(Target::App(n("a")))),
            (&automations, Some("x"), Kind::Listed, Some(Target::Entry(n("a"), n("x")))),
            (&automations, Some(".x.swp"), Kind::Listed, None),
            (&entry, Some("automation.json"), Kind::Saved, Some(Target::Entry(n("a"), n("x")))),
            (&entry, Some("handler.js"), Kind::Writing, Some(Target::Entry(n("a"), n("x")))),
            (&entry, Some("..data"), Kind::Saved, Some(Target::Entry(n("a"), n("x")))),
            (&entry, Some(".automation.json.tmp"), Kind::Saved, None),
            (&entry, Some("4913"), Kind::Listed, None),
            (&linked, Some("real.json"), Kind::Saved, Some(Target::Entry(n("a"), n("x")))),
            (&linked, Some("runtime.sqlite"), Kind::Saved, None),
        ];
        for (place, name, kind, expected) in cases {
            let got = classify(place, name.map(OsStr::new), *kind).map(|(target, _)| target);
            assert_eq!(&got, expected, "{place:?} {name:?} {kind:?}");
        }
    }
}
