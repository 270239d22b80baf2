//! Reading, checking and writing the two files of an automation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::arguments::{ListAutomations, ManifestArgument, ReadAutomation, ValidateManifest, WriteAutomation};
use super::arguments::{bad_arguments, handle};
use super::fitting::{Room, cut};
use super::{Builder, SHOWN_PROBLEMS, ToolReply, VALUE_BYTES, shown};
use crate::core::manifest::{self, MAX_HANDLER_BYTES};
use crate::edit::{self, EditError, Files, Proposal};
use crate::fire::{Handle, Problem};
use crate::gateway::problem::ProblemDocument;
use crate::handler_check::Contract;
use crate::inspect::{Reachable, Subject, inspect};

const DEFAULT_AUTOMATIONS: usize = 100;
const MAX_AUTOMATIONS: usize = 500;
/// Problems and triggers of each automation that a list shows; read_automation shows all.
const SHOWN_OF_EACH: usize = 8;
/// The handle of a draft that has none yet.
const NAMELESS: &str = "draft/draft";

impl Builder {
    pub(super) async fn list_automations(&self, given: ListAutomations) -> ToolReply {
        let (parts, problems) = self.api.overview(None, |views| views).await?;
        let after = given.cursor.as_deref().map(handle).transpose()?;
        let limit = given.limit.unwrap_or(DEFAULT_AUTOMATIONS);
        if !(1..=MAX_AUTOMATIONS).contains(&limit) {
            return Err(bad_arguments(format!("limit is {limit}; it must be from 1 to {MAX_AUTOMATIONS}")));
        }
        let mut asked: Vec<_> = parts.into_iter().flatten().collect();
        asked.retain(|view| given.app.as_deref().is_none_or(|app| view.app_id.as_str() == app));
        asked.sort_by(|a, b| a.handle.cmp(&b.handle));
        asked.retain(|view| after.as_ref().is_none_or(|after| view.handle > *after));
        let more = asked.len() > limit;
        asked.truncate(limit);
        let next = asked.last().filter(|_| more).map(|view| view.handle.clone());
        let mut automations = shown(&asked)?;
        let mut room = Room::of(VALUE_BYTES);
        for view in automations.as_array_mut().into_iter().flatten() {
            // A strip of marks is for people to look at, and the handle says the other two.
            for name in ["recent", "appId", "automationId"] {
                view.as_object_mut().map(|view| view.shift_remove(name));
            }
            room.fit_texts(view, &["name", "description"]);
            room.fit_texts(&mut view["lastRun"], &["error", "summary"]);
            for list in ["problems", "triggers"] {
                cut(view, list, SHOWN_OF_EACH);
            }
        }
        // Those of automations stand with them.
        let others = problems.into_iter().filter(|problem| {
            !of_an_automation(problem) && given.app.as_deref().is_none_or(|app| of_app(problem, app))
        });
        let mut told = json!({ "automations": automations, "next": next, "problems": others.collect::<Vec<_>>() });
        cut(&mut told, "problems", SHOWN_PROBLEMS);
        if !self.api.fires_by_itself() {
            told["note"] = json!("no daemon serves this root: nothing fires by itself until `dirigent serve` runs");
        }
        Ok(told)
    }

    pub(super) async fn read_automation(&self, given: ReadAutomation) -> ToolReply {
        let handle = handle(&given.handle)?;
        let mut told = shown(&self.api.automation(handle.clone()).await?)?;
        // Without one when a file cannot be read as text: the problems of the automation say why, and what can be
        // shown is shown.
        told["revision"] = Value::Null;
        if let Ok(files) = self.files(&handle).await {
            // The very texts that the revision is of.
            told["revision"] = json!(files.revision());
            told["manifest"] = json!(files.manifest);
            told["handler"] = json!(files.handler);
        }
        Ok(told)
    }

    pub(super) async fn validate_manifest(&self, given: ValidateManifest) -> ToolReply {
        let ValidateManifest { handle: named, manifest, handler, remove_webhook } = given;
        let proposal = proposal(manifest, handler, remove_webhook);
        if proposal.files == Files::default() {
            return Err(bad_arguments("there is nothing to check: give `manifest`, `handler` or both"));
        }
        let target = handle(named.as_deref().unwrap_or(NAMELESS))?;
        let standing = if named.is_some() { self.files(&target).await? } else { Files::default() };
        let mut problems = self.judge(&target, &proposal, &standing).await?;
        if named.is_none() {
            // The other half may be anywhere.
            problems.retain(|problem| !matches!(&*problem.code, "no_manifest" | "missing_handler"));
            for path in problems.iter_mut().filter_map(|problem| problem.path.as_mut()) {
                *path = path.rsplit('/').next().unwrap_or_default().to_owned();
            }
        }
        let valid = !problems.iter().any(Problem::is_error);
        Ok(json!({ "valid": valid, "problems": problems }))
    }

    pub(super) async fn write_automation(&self, given: WriteAutomation) -> ToolReply {
        let WriteAutomation { handle: named, manifest, handler, revision, remove_webhook } = given;
        let handle = handle(&named)?;
        let proposal = proposal(manifest, handler, remove_webhook);
        if proposal.files == Files::default() {
            return Err(bad_arguments("there is nothing to write: give `manifest`, `handler` or both"));
        }
        let standing = self.files(&handle).await?;
        // What is judged is what is written: a change between the two is told.
        let revision = revision.unwrap_or_else(|| standing.revision());
        let problems = self.judge(&handle, &proposal, &standing).await?;
        if problems.iter().any(Problem::is_error) {
            return Err(self.not_written(&handle, EditError::Refused { handle: handle.clone(), problems }).await);
        }
        let proposal = Proposal { revision: Some(revision), ..proposal };
        let (app_dir, target) = (self.api.app_dir(&handle), handle.clone());
        let writing = self.api.read(move || edit::write_proposed(&app_dir, &target, &proposal));
        let written = match writing.await? {
            Ok(written) => written,
            Err(error) => return Err(self.not_written(&handle, error).await),
        };
        if let Some(text) = &written.files.manifest {
            self.api.seen(&handle, edit::sha256(text.as_bytes())).await;
        }
        Ok(json!({
            "handle": handle,
            "created": written.created,
            "enabled": written.enabled,
            "revision": written.files.revision(),
            "problems": problems,
            "next": next_step(&written, &handle),
        }))
    }

    async fn files(&self, handle: &Handle) -> Result<Files, ProblemDocument> {
        let (app_dir, target) = (self.api.app_dir(handle), handle.clone());
        let read = self.api.read(move || Files::read(&app_dir, &target)).await?;
        match read {
            Ok(files) => Ok(files),
            Err(error) => Err(self.not_written(handle, error).await),
        }
    }

    /// Everything that is to be said of a proposal, each problem with the file that it is in.
    async fn judge(
        &self,
        handle: &Handle,
        proposal: &Proposal,
        standing: &Files,
    ) -> Result<Vec<Problem>, ProblemDocument> {
        let folder = format!("{}/automations/{}", handle.app, handle.automation);
        let files = standing.clone().with(&proposal.files);
        let mut problems = proposal.shortcomings(handle, standing);
        let mut owner = None;
        if let Some(text) = &files.manifest {
            let judged = manifest::propose(text, standing.manifest.as_deref(), &handle.app, proposal.removes_webhook);
            let in_path = |problem: Problem| problem.in_path(format!("{folder}/automation.json"));
            let root = self.api.root();
            let manifest = text.clone().into_bytes();
            let astray = self.api.read(move || Reachable::under(&root).problems(&manifest)).await?;
            problems.extend(judged.problems.into_iter().chain(astray).map(in_path));
            let parsed = manifest::parse(text.as_bytes(), &handle.app);
            if let Some(manifest) = parsed.manifest.map(Arc::new) {
                let unheard = self.api.failure_handler_problem(handle, &manifest, parsed.on_failure_at).await?;
                problems.extend(unheard);
                owner = Some((handle.app.clone(), manifest));
            }
        }
        if let Some(text) = files.handler.filter(|text| text.len() <= MAX_HANDLER_BYTES) {
            let subject = Subject {
                script_name: format!("{handle}/handler.js"),
                bytes: text.into_bytes(),
                contract: Contract::Automation,
                owner,
            };
            let found = inspect(self.api.pool(), subject).await;
            let found = found.map_err(|error| ProblemDocument::unavailable("no_host", error.to_string()))?;
            problems.extend(found.into_iter().map(|problem| problem.in_path(format!("{folder}/handler.js"))));
        }
        Ok(problems)
    }

    async fn not_written(&self, handle: &Handle, error: EditError) -> ProblemDocument {
        self.api.not_edited(handle, &error).await
    }
}

fn proposal(manifest: Option<ManifestArgument>, handler: Option<String>, remove_webhook: Option<bool>) -> Proposal {
    let files = Files { manifest: manifest.map(ManifestArgument::into_text), handler };
    Proposal { files, revision: None, removes_webhook: remove_webhook.unwrap_or(false) }
}

/// Whether a problem stands in an automation's folder.
fn of_an_automation(problem: &Problem) -> bool {
    problem.path.as_deref().is_some_and(|path| path.split('/').nth(1) == Some("automations"))
}

/// Whether a problem stands in an app's folder.
fn of_app(problem: &Problem, app: &str) -> bool {
    problem.path.as_deref().is_some_and(|path| path.split('/').next() == Some(app))
}

/// What a builder would do, or ask for, now.
fn next_step(written: &edit::Written, handle: &Handle) -> Value {
    let pending = written.files.manifest.as_deref().is_some_and(|text| {
        let parsed = manifest::parse(text.as_bytes(), &handle.app).manifest;
        parsed.is_some_and(|m| m.triggers.iter().any(|t| matches!(t, manifest::Trigger::WebhookPending { .. })))
    });
    let mut steps = vec!["run_automation tries it, get_run shows what it did".to_owned()];
    if pending {
        steps.push(format!("a person mints the webhook's address and secret: `dirigent webhook provision {handle}`"));
    }
    if !written.enabled {
        steps.push(format!("a person enables it: `dirigent enable {handle}`"));
    }
    json!(steps)
}
