//! What is registered: the automations of every app, as the disk last told, and what is wrong with them.
//!
//! The registry is a function of the disk alone. It holds, for each automation, the manifest it was last *good* with:
//! a manifest that turns invalid keeps its cron triggers (the last good registration) but closes its webhook, and at a
//! cold start an invalid manifest registers nothing. The same bytes again change nothing.
//!
//! A webhook id that stands in two manifests is served by neither; both carry the problem.

mod problems;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use crate::core::disk::{AppFolder, AutomationFolder, DiskBatch, FileContent, HandlerFile};
use crate::core::manifest::{self, Manifest, Trigger, Webhook};
use crate::fire::{AppId, AutomationId, Handle, Problem};
use problems::manifest_path;

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

    /// The manifest's file, as it was last read.
    pub fn manifest_bytes(&self) -> Option<&[u8]> {
        match &self.manifest_file {
            FileContent::Bytes { bytes, .. } => Some(bytes),
            FileContent::Absent | FileContent::Unreadable(_) => None,
        }
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
mod tests;
