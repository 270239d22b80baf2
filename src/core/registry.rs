//! What is registered: the automations of every app, as the disk last told, and what is wrong with them.
//!
//! The registry is a function of the disk alone. It holds, for each automation, the manifest it was last *good* with:
//! a manifest that turns invalid keeps its cron triggers (the last good registration) but closes its webhook, and at a
//! cold start an invalid manifest registers nothing. The same bytes again change nothing.
//!
//! A webhook id that stands in two manifests is served by neither; both carry the problem.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use crate::core::disk::{AppFolder, AutomationFolder, DiskBatch, FileContent, HandlerFile};
use crate::core::manifest::{self, Manifest, Trigger, Webhook};
use crate::core::near_name::nearest_handle;
use crate::fire::{AppId, AutomationId, Handle, Problem};

/// Everything that is known about one automation.
#[derive(Debug, Clone)]
pub struct Automation {
    pub handle: Handle,
    pub dir: PathBuf,
    /// The manifest in force: the current one, or the last good one while the current one is invalid.
    pub manifest: Option<Arc<Manifest>>,
    /// True when the file on disk is valid now.
    pub valid: bool,
    /// Problems of the manifest and the handler file, without those that follow from other automations.
    own_problems: Vec<Problem>,
    /// Line and column of `onFailure` in the file as it is now.
    on_failure_at: Option<(u32, u32)>,
    pub handler: HandlerFile,
    manifest_file: FileContent,
}

impl Automation {
    /// Enabled as the manifest in force says; an automation without one is not.
    pub fn enabled(&self) -> bool {
        self.manifest.as_ref().is_some_and(|m| m.enabled)
    }

    /// Of the manifest's file, as it was last read.
    pub fn manifest_sha256(&self) -> Option<[u8; 32]> {
        match &self.manifest_file {
            FileContent::Bytes { sha256, .. } => Some(*sha256),
            FileContent::Absent | FileContent::Unreadable(_) => None,
        }
    }

    /// The provisioned webhook, if any, whether or not it is open.
    pub fn webhook(&self) -> Option<&Webhook> {
        self.manifest.as_ref()?.triggers.iter().find_map(|t| match t {
            Trigger::Webhook(webhook) => Some(webhook),
            _ => None,
        })
    }
}

/// One app folder.
#[derive(Debug, Clone)]
pub struct App {
    pub dir: PathBuf,
    pub has_ui: bool,
    pub automations: BTreeMap<AutomationId, Automation>,
    /// Problems of the folder itself.
    pub problems: Vec<Problem>,
}

/// How an automation's registration changed; what the schedule has to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A folder that was not known.
    Added(Handle),
    /// Its manifest in force, or its being enabled, changed.
    Changed(Handle),
    Removed(Handle),
    /// An app that was not known: its ledger is to be recovered before anything of it runs.
    AppAdded(AppId),
    AppRemoved(AppId),
}

/// See the module text.
#[derive(Debug, Default)]
pub struct Registry {
    apps: BTreeMap<AppId, App>,
    /// Folders whose name breaks the grammar, by that name.
    misnamed: BTreeMap<String, Vec<Problem>>,
    root_problems: Vec<Problem>,
    /// Who claims each webhook id; more than one closes it for all.
    webhooks: HashMap<String, Vec<Handle>>,
    revision: u64,
    /// Webhook ids that [`Self::by_webhook`] may answer otherwise now.
    touched_webhooks: BTreeSet<String>,
}

impl Registry {
    /// Takes in what the disk shows and tells what changed, apps before their automations.
    pub fn apply(&mut self, batch: DiskBatch) -> Vec<Change> {
        let mut changes = Vec::new();
        if batch.full {
            let seen: std::collections::HashSet<&str> = batch.apps.iter().map(|a| a.name.as_str()).collect();
            let misnamed = self.misnamed.len();
            self.misnamed.retain(|name, _| seen.contains(name.as_str()));
            self.note(self.misnamed.len() != misnamed || self.root_problems != batch.root_problems);
            self.root_problems = batch.root_problems;
            let gone: Vec<AppId> = self.apps.keys().filter(|id| !seen.contains(id.as_str())).cloned().collect();
            for app in gone {
                self.remove_app(&app, &mut changes);
            }
        }
        for folder in batch.apps {
            self.apply_app(folder, &mut changes);
        }
        changes
    }

    fn apply_app(&mut self, folder: AppFolder, changes: &mut Vec<Change>) {
        let Some(id) = folder.app else {
            let shown = folder.present.then_some(folder.problems);
            self.note(self.misnamed.get(&folder.name) != shown.as_ref());
            match shown {
                Some(problems) => self.misnamed.insert(folder.name, problems),
                None => self.misnamed.remove(&folder.name),
            };
            return;
        };
        if !folder.present {
            self.remove_app(&id, changes);
            return;
        }
        if !self.apps.contains_key(&id) {
            changes.push(Change::AppAdded(id.clone()));
            self.note(true);
        }
        let mut problems = folder.problems;
        if let FileContent::Unreadable(problem) = folder.app_json {
            problems.push(problem);
        }
        let app = self.apps.entry(id.clone()).or_insert_with(|| App {
            dir: folder.dir.clone(),
            has_ui: false,
            automations: BTreeMap::new(),
            problems: Vec::new(),
        });
        app.dir = folder.dir;
        let changed = app.has_ui != folder.has_index_html || app.problems != problems;
        app.has_ui = folder.has_index_html;
        app.problems = problems;
        let mut gone = Vec::new();
        if folder.complete {
            let seen: std::collections::HashSet<&AutomationId> = folder.automations.iter().map(|a| &a.id).collect();
            gone.extend(app.automations.keys().filter(|id| !seen.contains(id)).cloned());
        }
        self.note(changed);
        for automation in gone {
            self.remove_automation(&id, &automation, changes);
        }
        for seen in folder.automations {
            if seen.present {
                self.apply_automation(&id, seen, changes);
            } else {
                self.remove_automation(&id, &seen.id, changes);
            }
        }
    }

    fn apply_automation(&mut self, app_id: &AppId, seen: AutomationFolder, changes: &mut Vec<Change>) {
        let Some(app) = self.apps.get_mut(app_id) else { return };
        let handle = Handle::new(app_id.clone(), seen.id.clone());
        let known = app.automations.contains_key(&seen.id);
        let entry = app.automations.entry(seen.id).or_insert_with(|| Automation {
            handle: handle.clone(),
            dir: seen.dir.clone(),
            manifest: None,
            valid: false,
            own_problems: Vec::new(),
            on_failure_at: None,
            handler: HandlerFile::Absent,
            manifest_file: FileContent::Absent,
        });
        entry.dir = seen.dir;
        let same_file = entry.manifest_file == seen.manifest;
        if !(known && same_file && entry.handler == seen.handler) {
            self.revision += 1;
        }
        entry.handler = seen.handler;
        if known && same_file {
            return;
        }
        let before = entry.manifest.clone();
        let was_valid = entry.valid;
        let ReadManifest { manifest, problems, on_failure_at } = read_manifest(&handle, &seen.manifest);
        entry.own_problems = problems;
        entry.on_failure_at = on_failure_at;
        entry.valid = manifest.is_some();
        entry.manifest_file = seen.manifest;
        match (manifest, &entry.manifest_file) {
            (Some(manifest), _) => entry.manifest = Some(Arc::new(manifest)),
            // No file at all is not a broken file: there is nothing left to keep.
            (None, FileContent::Absent) => entry.manifest = None,
            (None, _) => {}
        }
        let after = entry.manifest.clone();
        self.reclaim_webhook(&handle, before.as_deref(), after.as_deref());
        if !known {
            changes.push(Change::Added(handle));
        } else if !same(before.as_ref(), after.as_ref()) || was_valid != self.is_valid(&handle) {
            changes.push(Change::Changed(handle));
        }
    }

    fn remove_automation(&mut self, app: &AppId, id: &AutomationId, changes: &mut Vec<Change>) {
        let Some(removed) = self.apps.get_mut(app).and_then(|a| a.automations.remove(id)) else { return };
        self.reclaim_webhook(&removed.handle, removed.manifest.as_deref(), None);
        self.note(true);
        changes.push(Change::Removed(removed.handle));
    }

    fn remove_app(&mut self, id: &AppId, changes: &mut Vec<Change>) {
        let Some(app) = self.apps.get(id) else { return };
        let automations: Vec<AutomationId> = app.automations.keys().cloned().collect();
        for automation in automations {
            self.remove_automation(id, &automation, changes);
        }
        self.apps.remove(id);
        self.note(true);
        changes.push(Change::AppRemoved(id.clone()));
    }

    fn note(&mut self, changed: bool) {
        self.revision += u64::from(changed);
    }

    /// Another number whenever anything that can be shown of the registry has changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    fn reclaim_webhook(&mut self, handle: &Handle, before: Option<&Manifest>, after: Option<&Manifest>) {
        let (before, after) = (webhook_id(before), webhook_id(after));
        // Also where the id stays: its secret, its being enabled or valid may not.
        self.touched_webhooks.extend(before.into_iter().chain(after).map(str::to_owned));
        if before == after {
            return;
        }
        if let Some(id) = before
            && let Some(claims) = self.webhooks.get_mut(id)
        {
            claims.retain(|h| h != handle);
            if claims.is_empty() {
                self.webhooks.remove(id);
            }
        }
        if let Some(id) = after {
            self.webhooks.entry(id.to_owned()).or_default().push(handle.clone());
        }
    }

    fn is_valid(&self, handle: &Handle) -> bool {
        self.get(handle).is_some_and(|a| a.valid)
    }

    pub fn get(&self, handle: &Handle) -> Option<&Automation> {
        self.apps.get(&handle.app)?.automations.get(&handle.automation)
    }

    pub fn app(&self, id: &AppId) -> Option<&App> {
        self.apps.get(id)
    }

    pub fn apps(&self) -> impl Iterator<Item = (&AppId, &App)> {
        self.apps.iter()
    }

    pub fn automations(&self) -> impl Iterator<Item = &Automation> {
        self.apps.values().flat_map(|app| app.automations.values())
    }

    /// The automation that a webhook id opens: enabled or not, but valid now and the only one to claim the id.
    pub fn by_webhook(&self, id: &str) -> Option<&Automation> {
        match self.webhooks.get(id)?.as_slice() {
            [only] => self.get(only).filter(|a| a.valid),
            _ => None,
        }
    }

    /// Webhook ids of automations that were read, changed or removed since the last call: whoever keeps what
    /// [`Self::by_webhook`] says asks again for these.
    pub fn take_touched_webhooks(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.touched_webhooks)
    }

    /// All problems of one automation, those that follow from its neighbours included.
    pub fn problems_of(&self, automation: &Automation) -> Vec<Problem> {
        let mut problems = automation.own_problems.clone();
        match &automation.handler {
            HandlerFile::Present { .. } => {}
            HandlerFile::Absent => problems.push(
                Problem::error("missing_handler", "", "there is no handler.js beside automation.json")
                    .with_hint("write one, or scaffold a new automation with `dirigent new`")
                    .in_path(format!(
                        "{}/automations/{}/handler.js",
                        automation.handle.app, automation.handle.automation
                    )),
            ),
            HandlerFile::Unreadable(problem) => problems.push(problem.clone()),
        }
        problems.extend(self.failure_handler_problem(automation));
        if let Some(webhook) = automation.webhook() {
            let others: Vec<String> = self
                .webhooks
                .get(&webhook.id)
                .into_iter()
                .flatten()
                .filter(|h| **h != automation.handle)
                .map(Handle::to_string)
                .collect();
            if !others.is_empty() {
                problems.push(
                    Problem::error(
                        "duplicate_webhook",
                        "triggers",
                        format!(
                            "webhook id {:?} is also claimed by {}; neither is served",
                            webhook.id,
                            others.join(", ")
                        ),
                    )
                    .with_hint("give one of them another id")
                    .in_path(manifest_path(&automation.handle)),
                );
            }
        }
        problems
    }

    /// An `onFailure` that will fire nothing. A warning: the automation itself runs as well as any.
    fn failure_handler_problem(&self, automation: &Automation) -> Option<Problem> {
        let own = &automation.handle;
        let manifest = automation.manifest.as_ref().filter(|_| automation.valid)?;
        let target = manifest.on_failure_handle(&own.app)?;
        let problem = |message: String| {
            let problem = Problem::warning("invalid_on_failure", "onFailure", message).in_path(manifest_path(own));
            match automation.on_failure_at {
                Some((line, column)) => problem.at(line, column),
                None => problem,
            }
        };
        if target == *own {
            let message =
                "onFailure names the automation itself, which never handles its own failure: nothing is fired";
            return Some(problem(message.to_owned()).with_hint("name another automation, or leave `onFailure` out"));
        }
        if self.get(&target).is_some() {
            return None;
        }
        let known: Vec<&Handle> = self.automations().map(|a| &a.handle).filter(|handle| *handle != own).collect();
        let hint = match nearest_handle(&target.to_string(), &known) {
            Some(near) if near.app == own.app => format!("did you mean \"{}\"?", near.automation),
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "until it is there, a failure of this automation is handled by nobody".to_owned(),
        };
        Some(problem(format!("onFailure names {target}, and there is no such automation")).with_hint(hint))
    }

    /// Every problem under the root: folders, manifests, handlers.
    pub fn problems(&self) -> Vec<Problem> {
        let automations = self.automations().flat_map(|automation| self.problems_of(automation));
        self.folder_problems().into_iter().chain(automations).collect()
    }

    /// The problems that belong to no automation: of the root, of folders with a name that is none, of apps.
    pub fn folder_problems(&self) -> Vec<Problem> {
        let folders = self.root_problems.iter().chain(self.misnamed.values().flatten());
        folders.chain(self.apps.values().flat_map(|app| &app.problems)).cloned().collect()
    }
}

/// Equal in meaning for whoever follows the registry: the same allocation, or the same registration.
fn same(a: Option<&Arc<Manifest>>, b: Option<&Arc<Manifest>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

fn webhook_id(manifest: Option<&Manifest>) -> Option<&str> {
    manifest?.triggers.iter().find_map(|t| match t {
        Trigger::Webhook(webhook) => Some(webhook.id.as_str()),
        _ => None,
    })
}

fn manifest_path(handle: &Handle) -> String {
    format!("{}/automations/{}/automation.json", handle.app, handle.automation)
}

/// What became of a manifest file.
struct ReadManifest {
    /// Present when it is valid.
    manifest: Option<Manifest>,
    /// All of them, each with its file.
    problems: Vec<Problem>,
    on_failure_at: Option<(u32, u32)>,
}

fn read_manifest(handle: &Handle, file: &FileContent) -> ReadManifest {
    let path = manifest_path(handle);
    let refused = |problem| ReadManifest { manifest: None, problems: vec![problem], on_failure_at: None };
    match file {
        FileContent::Absent => refused(
            Problem::error("missing_manifest", "", "there is no automation.json in this folder")
                .with_hint("scaffold one with `dirigent new`, or remove the folder")
                .in_path(path),
        ),
        FileContent::Unreadable(problem) => refused(problem.clone()),
        FileContent::Bytes { bytes, .. } => {
            let parsed = manifest::parse(bytes, &handle.app);
            ReadManifest {
                manifest: parsed.manifest,
                problems: parsed.problems.into_iter().map(|p| p.in_path(path.clone())).collect(),
                on_failure_at: parsed.on_failure_at,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(text: &str) -> Handle {
        text.parse().expect("a handle")
    }

    fn manifest_json(extra: &str) -> String {
        format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}}{extra}}}"#)
    }

    fn file(text: &str) -> FileContent {
        use sha2::Digest;
        FileContent::Bytes { bytes: Arc::from(text.as_bytes()), sha256: sha2::Sha256::digest(text.as_bytes()).into() }
    }

    fn folder(app: &str, automations: &[(&str, Option<&str>)], complete: bool) -> AppFolder {
        AppFolder {
            name: app.to_owned(),
            app: AppId::new(app).ok(),
            dir: PathBuf::from(app),
            present: true,
            has_index_html: false,
            app_json: FileContent::Absent,
            automations: automations
                .iter()
                .map(|(id, text)| AutomationFolder {
                    id: AutomationId::new(id).expect("an id"),
                    dir: PathBuf::from(id),
                    present: text.is_some(),
                    manifest: text.map_or(FileContent::Absent, file),
                    handler: HandlerFile::Present { len: 1, mtime_ns: 1, inode: 1 },
                })
                .collect(),
            complete,
            problems: Vec::new(),
        }
    }

    fn full(apps: Vec<AppFolder>) -> DiskBatch {
        DiskBatch { full: true, apps, root_problems: Vec::new() }
    }

    #[test]
    fn a_folder_is_added_changed_and_removed() {
        let mut registry = Registry::default();
        let one = manifest_json("");
        let changes = registry.apply(full(vec![folder("a", &[("x", Some(&one))], true)]));
        assert_eq!(changes, [Change::AppAdded(AppId::new("a").unwrap()), Change::Added(handle("a/x"))]);
        assert_eq!(registry.apply(full(vec![folder("a", &[("x", Some(&one))], true)])), [], "the same bytes");
        let two = manifest_json(r#","enabled":false"#);
        assert_eq!(
            registry.apply(full(vec![folder("a", &[("x", Some(&two))], true)])),
            [Change::Changed(handle("a/x"))]
        );
        assert!(!registry.get(&handle("a/x")).unwrap().enabled());
        assert_eq!(registry.apply(full(vec![folder("a", &[], true)])), [Change::Removed(handle("a/x"))]);
        assert_eq!(registry.apply(full(vec![])), [Change::AppRemoved(AppId::new("a").unwrap())]);
    }

    #[test]
    fn an_invalid_manifest_keeps_the_last_good_one_and_a_cold_start_has_none() {
        let mut registry = Registry::default();
        let good = manifest_json(r#","triggers":[{"kind":"cron","expr":"* * * * *"}]"#);
        registry.apply(full(vec![folder("a", &[("x", Some(&good)), ("cold", Some("{"))], true)]));
        registry.apply(full(vec![folder("a", &[("x", Some("{ nope")), ("cold", Some("{"))], true)]));
        let x = registry.get(&handle("a/x")).unwrap();
        assert!(!x.valid && x.manifest.is_some());
        assert_eq!(registry.problems_of(x)[0].code, "invalid_json");
        assert!(registry.problems_of(x)[0].line.is_some());
        assert!(registry.get(&handle("a/cold")).unwrap().manifest.is_none());
    }

    #[test]
    fn a_webhook_id_claimed_twice_is_served_by_neither_until_one_lets_go() {
        let mut registry = Registry::default();
        let hook = manifest_json(&format!(
            r#","triggers":[{{"kind":"webhook","id":"slug","secretHash":"{}"}}]"#,
            "0".repeat(64)
        ));
        registry.apply(full(vec![folder("a", &[("x", Some(&hook)), ("y", Some(&hook))], true)]));
        assert!(registry.by_webhook("slug").is_none());
        for id in ["a/x", "a/y"] {
            let problems = registry.problems_of(registry.get(&handle(id)).unwrap());
            assert_eq!(problems.last().unwrap().code, "duplicate_webhook", "{id}");
        }
        registry.apply(full(vec![folder("a", &[("x", Some(&hook))], true)]));
        assert_eq!(registry.by_webhook("slug").unwrap().handle, handle("a/x"));
        registry.apply(full(vec![folder("a", &[("x", Some("{"))], true)]));
        assert!(registry.by_webhook("slug").is_none(), "an invalid manifest closes its webhook");
    }

    #[test]
    fn its_revision_changes_with_whatever_can_be_shown() {
        let mut registry = Registry::default();
        let good = manifest_json("");
        let one = || folder("a", &[("x", Some(&good))], true);
        let touched = || AppFolder {
            automations: vec![AutomationFolder {
                handler: HandlerFile::Present { len: 2, mtime_ns: 2, inode: 1 },
                ..one().automations.remove(0)
            }],
            ..one()
        };
        let misnamed = || AppFolder { name: "~".to_owned(), app: None, ..folder("", &[], true) };
        let gone = AppFolder { present: false, ..misnamed() };
        let part = |app: AppFolder| DiskBatch { full: false, apps: vec![app], root_problems: Vec::new() };
        let problem = Problem::error("unreadable", "", "told");
        for (what, batch, changes) in [
            ("an app", full(vec![one()]), true),
            ("the same again", full(vec![one()]), false),
            ("a manifest", part(folder("a", &[("x", Some("{"))], true)), true),
            ("the same again", part(folder("a", &[("x", Some("{"))], true)), false),
            ("back", part(one()), true),
            ("a handler", part(touched()), true),
            ("a page", part(AppFolder { has_index_html: true, ..touched() }), true),
            ("a problem", part(AppFolder { has_index_html: true, problems: vec![problem.clone()], ..touched() }), true),
            ("a folder whose name is none", part(misnamed()), true),
            ("the same again", part(misnamed()), false),
            ("it goes", part(gone), true),
            ("a problem of the root", DiskBatch { root_problems: vec![problem], ..full(Vec::new()) }, true),
            ("none", full(Vec::new()), true),
            ("the same again", full(Vec::new()), false),
        ] {
            let before = registry.revision();
            registry.apply(batch);
            assert_eq!(registry.revision() != before, changes, "{what}");
        }
    }

    #[test]
    fn a_failure_handler_that_fires_nothing_is_warned_about_until_it_is_there() {
        let mut registry = Registry::default();
        let plain = manifest_json("");
        let naming = |target: &str| manifest_json(&format!(r#","onFailure":"{target}""#));
        let told = |registry: &Registry| registry.problems_of(registry.get(&handle("a/x")).unwrap());
        for (target, hint) in [
            ("x", "name another"),
            ("a/x", "name another"),
            ("rescu", "did you mean \"rescue\"?"),
            ("b/on-faliure", "did you mean \"b/on-failure\"?"),
            ("zzzzzzzz", "handled by nobody"),
        ] {
            let named = naming(target);
            let apps = vec![
                folder("a", &[("x", Some(&named)), ("rescue", Some(&plain))], true),
                folder("b", &[("on-failure", Some(&plain))], true),
            ];
            registry.apply(full(apps));
            let automation = registry.get(&handle("a/x")).unwrap();
            assert!(automation.valid && automation.enabled(), "{target}: it runs all the same");
            let problems = told(&registry);
            let [problem] = problems.as_slice() else { panic!("{target}: {problems:?}") };
            assert_eq!((problem.code.as_str(), problem.is_error()), ("invalid_on_failure", false), "{target}");
            assert!(problem.hint.as_deref().is_some_and(|told| told.contains(hint)), "{problem:?}");
            let column = named.find("onFailure").unwrap() + "onFailure':".len() + 1;
            assert_eq!((problem.line, problem.column), (Some(1), u32::try_from(column).ok()), "{target}");
        }
        let named = naming("late/rescue");
        registry.apply(full(vec![folder("a", &[("x", Some(&named))], true)]));
        assert_eq!(told(&registry).len(), 1);
        let late = |there: bool| DiskBatch {
            full: false,
            apps: vec![folder("late", &[("rescue", there.then_some("{"))], false)],
            root_problems: Vec::new(),
        };
        registry.apply(late(true));
        assert_eq!(told(&registry), [], "it is there now; what is wrong with it is its own problem");
        registry.apply(late(false));
        assert_eq!(told(&registry).len(), 1);
    }
}
