//! What a builder proposes, and how it comes to stand on disk: whole, or not at all.

use std::path::{Path, PathBuf};

use sha2::Digest;

use super::{Alone, EditError, handler_path, manifest_path, shown};
use crate::core::manifest::{self, MAX_HANDLER_BYTES, MAX_MANIFEST_BYTES};
use crate::fire::{Handle, Problem};
use crate::watch;

/// An automation's two files as they are on disk.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Files {
    /// `automation.json`
    pub manifest: Option<String>,
    /// `handler.js`
    pub handler: Option<String>,
}

impl Files {
    /// Reads both; one that is not there is `None`.
    ///
    /// # Errors
    /// [`EditError::Unreadable`] for a file that is there and cannot be read, or leads elsewhere.
    pub fn read(app_dir: &Path, handle: &Handle) -> Result<Self, EditError> {
        let text = |path: &str, bytes: Result<Vec<u8>, Problem>| {
            let problem = match bytes.map(String::from_utf8) {
                Ok(Ok(text)) => return Ok(Some(text)),
                Ok(Err(_)) => Problem::error("not_utf8", "", "the file is not UTF-8"),
                Err(problem) if problem.code == "not_found" => return Ok(None),
                Err(problem) => problem,
            };
            Err(EditError::Unreadable { path: shown(handle, path), problem: Box::new(problem) })
        };
        if !app_dir.is_dir() {
            return Ok(Self::default());
        }
        let path = manifest_path(handle);
        Ok(Self {
            manifest: text(&path, watch::read_app_file(app_dir, Path::new(&path), MAX_MANIFEST_BYTES))?,
            handler: text(&handler_path(handle), watch::read_handler(app_dir, &handle.automation))?,
        })
    }

    /// Changes when one of the files does.
    pub fn revision(&self) -> String {
        let mut hash = sha2::Sha256::new();
        for file in [&self.manifest, &self.handler] {
            // With its length, so that nothing can move from one into the other; and none is not empty.
            hash.update(file.as_ref().map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(file.as_deref().unwrap_or_default());
        }
        hex::encode(&hash.finalize()[..16])
    }

    /// With what is proposed in place of what is there.
    #[must_use]
    pub fn with(self, proposed: &Self) -> Self {
        let Self { manifest, handler } = proposed.clone();
        Self { manifest: manifest.or(self.manifest), handler: handler.or(self.handler) }
    }
}

/// What a builder proposes.
#[derive(Debug, Default, Clone)]
pub struct Proposal {
    /// What is to be written; a file that is left out stays.
    pub files: Files,
    /// Of the files that it goes by ([`Files::revision`]).
    pub revision: Option<String>,
    /// Whether a webhook may go with its credentials.
    pub removes_webhook: bool,
}

impl Proposal {
    /// What is to be said of it by its parts: what is missing, too large, or named as nothing can be. The rest is
    /// [`manifest::propose`]'s. `standing`: the files that are there.
    pub fn shortcomings(&self, handle: &Handle, standing: &Files) -> Vec<Problem> {
        let mut problems: Vec<Problem> = watch::unusable(handle).into_iter().collect();
        let missing = |code, name| Problem::error(code, "", format!("{handle} has no {name} yet: propose one, too"));
        if self.files.manifest.is_none() && standing.manifest.is_none() {
            problems.push(missing("no_manifest", "manifest").in_path(shown(handle, &manifest_path(handle))));
        }
        let path = shown(handle, &handler_path(handle));
        match &self.files.handler {
            None if standing.handler.is_none() => problems.push(missing("missing_handler", "handler").in_path(path)),
            Some(handler) if handler.len() > MAX_HANDLER_BYTES => {
                let message = format!("the handler may have {MAX_HANDLER_BYTES} bytes, but has {}", handler.len());
                problems.push(Problem::error("too_large", "", message).in_path(path));
            }
            _ => {}
        }
        problems
    }
}

/// What became of a proposal.
#[derive(Debug)]
pub struct Written {
    /// It was not there before.
    pub created: bool,
    pub enabled: bool,
    pub files: Files,
    /// Warnings of the manifest.
    pub problems: Vec<Problem>,
}

/// Writes what a builder proposes: the manifest, the handler, or both.
///
/// The handler is written before the manifest, so that no watcher sees a manifest without one.
///
/// # Errors
/// [`EditError`]. [`EditError::Refused`] has every problem, and nothing was written; after [`EditError::Write`] the
/// handler may be the new one, but of a new automation nothing is left.
pub fn write_proposed(app_dir: &Path, handle: &Handle, proposal: &Proposal) -> Result<Written, EditError> {
    let _alone = Alone::with(app_dir, handle)?;
    let standing = Files::read(app_dir, handle)?;
    if proposal.revision.as_ref().is_some_and(|revision| *revision != standing.revision()) {
        return Err(EditError::Changed { handle: handle.clone() });
    }
    let refused = |problems| EditError::Refused { handle: handle.clone(), problems };
    let shortcomings = proposal.shortcomings(handle, &standing);
    let files = standing.clone().with(&proposal.files);
    let (Some(text), Some(handler), true) = (&files.manifest, &files.handler, shortcomings.is_empty()) else {
        return Err(refused(shortcomings));
    };
    let judged = manifest::propose(text, standing.manifest.as_deref(), &handle.app, proposal.removes_webhook);
    let Some(text) = judged.text else { return Err(refused(judged.problems)) };
    // Proposed alone, a handler leaves the manifest as it is laid out.
    let text = standing.manifest.clone().filter(|_| proposal.files.manifest.is_none()).unwrap_or(text);

    let folder = format!("automations/{}", handle.automation);
    let made = watch::make_app_dir(app_dir, Path::new(&folder))
        .map_err(|problem| EditError::Unreadable { path: shown(handle, &folder), problem: Box::new(problem) })?;
    let new = [(handler_path(handle), &standing.handler, handler), (manifest_path(handle), &standing.manifest, &text)];
    for (path, standing, text) in &new {
        if standing.as_ref() == Some(*text) {
            continue;
        }
        if let Err(source) = watch::write_atomic(&app_dir.join(path), text.as_bytes()) {
            undo(app_dir, handle, &made);
            return Err(EditError::Write { path: shown(handle, path), source });
        }
    }
    Ok(Written {
        created: standing.manifest.is_none(),
        enabled: judged.enabled,
        files: Files { manifest: Some(text), handler: Some(handler.clone()) },
        problems: judged.problems,
    })
}

/// Half an automation in a folder of its own is worth nothing, and would be shown as a broken one.
fn undo(app_dir: &Path, handle: &Handle, made: &[PathBuf]) {
    if !made.is_empty() {
        // It may not have come that far.
        let _ = std::fs::remove_file(app_dir.join(handler_path(handle)));
        watch::remove_empty(made);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::edit::set_enabled;

    const PENDING: &str = r#"{"name":"n","own":[1],"prompt":"p","triggers":[{"kind":"webhook","pending":true}],"generated":{"by":"t","at":"now"}}"#;

    fn proposed(manifest: Option<&str>, handler: Option<&str>) -> Proposal {
        let files = Files { manifest: manifest.map(str::to_owned), handler: handler.map(str::to_owned) };
        Proposal { files, ..Proposal::default() }
    }

    fn by(files: &Files, proposal: &Proposal) -> Proposal {
        Proposal { revision: Some(files.revision()), ..proposal.clone() }
    }

    const HANDLER: &str = "export default async () => {};";

    #[test]
    fn a_proposal_makes_and_changes_an_automation_and_never_enables_it() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        let whole = proposed(Some(&PENDING.replace("\"own\"", "\"enabled\":true,\"own\"")), Some(HANDLER));
        let written = write_proposed(&app, &handle, &whole).unwrap();
        assert!(written.created && !written.enabled);
        let files = Files::read(&app, &handle).unwrap();
        assert_eq!(files, written.files);
        assert!(files.manifest.as_ref().unwrap().contains("\"enabled\": false"));

        // The handler alone; the manifest stays as it is, to the byte.
        set_enabled(&app, &handle, true).unwrap();
        let before = Files::read(&app, &handle).unwrap();
        let mended = proposed(None, Some("export default async () => ({});"));
        let written = write_proposed(&app, &handle, &by(&before, &mended)).unwrap();
        assert!(!written.created && written.enabled, "one that a person has enabled goes on");
        let after = Files::read(&app, &handle).unwrap();
        assert_eq!((&after.manifest, &after.handler), (&before.manifest, &mended.files.handler));

        // By what it was before.
        let late = write_proposed(&app, &handle, &by(&before, &whole)).unwrap_err();
        assert_eq!(late.code(), "changed_meanwhile");
        assert_eq!(Files::read(&app, &handle).unwrap(), after);
    }

    #[test]
    fn what_is_refused_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        let large = "x".repeat(MAX_HANDLER_BYTES + 1);
        for (files, code) in [
            (proposed(Some("{}"), Some(HANDLER)), "missing_field"),
            (proposed(Some(PENDING), None), "missing_handler"),
            (proposed(None, Some(HANDLER)), "no_manifest"),
            (proposed(Some(PENDING), Some(&large)), "too_large"),
            (proposed(Some(&PENDING.replace("\"pending\":true", "\"id\":\"x\"")), Some(HANDLER)), "minted_field"),
        ] {
            match write_proposed(&app, &handle, &files).unwrap_err() {
                EditError::Refused { problems, .. } => {
                    assert!(problems.iter().any(|problem| problem.code == code), "{code}: {problems:?}");
                }
                other => panic!("{code}: {other}"),
            }
            assert!(!app.exists(), "{code}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_proposal_writes_nothing_outside_its_app() {
        use std::os::unix::fs::symlink;
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let whole = proposed(Some(PENDING), Some(HANDLER));
        for (app, at) in [("a", "automations"), ("b", "automations/x"), ("c", "automations/x/handler.js")] {
            let app_dir = root.path().join(app);
            let handle: Handle = format!("{app}/x").parse().unwrap();
            std::fs::create_dir_all(app_dir.join(at).parent().unwrap()).unwrap();
            symlink(outside.path().join("gone"), app_dir.join(at)).unwrap();
            assert!(write_proposed(&app_dir, &handle, &whole).is_err(), "{at}");
            std::fs::remove_file(app_dir.join(at)).unwrap();
            let target = outside.path().join("there");
            if at.ends_with(".js") {
                std::fs::write(&target, "mine").unwrap()
            } else {
                std::fs::create_dir(&target).unwrap()
            }
            symlink(&target, app_dir.join(at)).unwrap();
            assert!(write_proposed(&app_dir, &handle, &whole).is_err(), "{at}");
            if at.ends_with(".js") {
                assert_eq!(std::fs::read_to_string(&target).unwrap(), "mine");
            } else {
                assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "{at}");
                std::fs::remove_dir(&target).unwrap();
            }
        }
    }

    #[test]
    fn no_automation_is_made_where_none_would_be_seen() {
        let root = tempfile::tempdir().unwrap();
        for handle in ["node_modules/x", "a/node_modules", "a/_x", "mcp.json/x", "dirigent.toml/x"] {
            let target: Handle = handle.parse().unwrap();
            let app = root.path().join(target.app.as_str());
            match write_proposed(&app, &target, &proposed(Some(PENDING), Some(HANDLER))).unwrap_err() {
                EditError::Refused { problems, .. } => assert_eq!(problems[0].code, "invalid_name", "{handle}"),
                other => panic!("{handle}: {other}"),
            }
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_failed_write_leaves_no_half_an_automation() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        // A folder where the manifest must be: the handler is written, and then no more.
        let made = watch::make_app_dir(&app, Path::new("automations/x")).unwrap();
        std::fs::write(app.join("automations/x/handler.js"), HANDLER).unwrap();
        undo(&app, &handle, &made);
        assert!(!app.exists());
        // What somebody else has made stays.
        std::fs::create_dir_all(app.join("automations/x")).unwrap();
        std::fs::write(app.join("automations/x/handler.js"), HANDLER).unwrap();
        undo(&app, &handle, &[]);
        assert!(app.join("automations/x/handler.js").exists());
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_changed_while_another_process_changes_something() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        write_proposed(&app, &handle, &proposed(Some(PENDING), Some(HANDLER))).unwrap();
        // Another open file is as good as another process.
        let other = File::open(root.path()).unwrap();
        other.lock().unwrap();
        let (told, is_told) = std::sync::mpsc::channel();
        let (folder, target) = (app.clone(), handle.clone());
        let switch = std::thread::spawn(move || {
            let switched = set_enabled(&folder, &target, true);
            told.send(()).unwrap();
            switched
        });
        let text = Files::read(&app, &handle).unwrap().manifest.unwrap();
        std::fs::write(app.join(manifest_path(&handle)), text.replace("\"name\": \"n\"", "\"name\": \"m\"")).unwrap();
        assert!(is_told.try_recv().is_err(), "it waits");
        drop(other);
        assert!(switch.join().unwrap().unwrap().changed);
        let text = Files::read(&app, &handle).unwrap().manifest.unwrap();
        assert!(text.contains("\"m\"") && text.contains("\"enabled\": true"), "both changes are there: {text}");
    }
}
