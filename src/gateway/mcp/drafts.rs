//! Reading, checking and writing the two files of an automation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::arguments::{ListAutomations, ManifestArgument, ReadAutomation, ValidateManifest, WriteAutomation};
use super::arguments::{bad_arguments, handle};
use super::{Builder, ToolReply, shown};
use crate::core::manifest;
use crate::edit::{self, EditError, Files};
use crate::fire::{Handle, Problem};
use crate::gateway::problem::ProblemDocument;
use crate::handler_check::Contract;
use crate::inspect::{Subject, inspect};

const DEFAULT_AUTOMATIONS: u32 = 100;
/// The handle of a draft that has none yet.
const NAMELESS: &str = "draft/draft";

impl Builder {
    pub(super) async fn list_automations(&self, given: ListAutomations) -> ToolReply {
        let (parts, problems) = self.api.overview(None, |views| views).await?;
        let after = given.cursor.as_deref().map(handle).transpose()?;
        let limit = usize::try_from(given.limit.unwrap_or(DEFAULT_AUTOMATIONS)).unwrap_or(usize::MAX);
        let mut asked: Vec<_> = parts.into_iter().flatten().collect();
        asked.retain(|view| given.app.as_deref().is_none_or(|app| view.app_id.as_str() == app));
        asked.sort_by(|a, b| a.handle.cmp(&b.handle));
        asked.retain(|view| after.as_ref().is_none_or(|after| view.handle > *after));
        let more = asked.len() > limit;
        asked.truncate(limit);
        let next = asked.last().filter(|_| more).map(|view| view.handle.clone());
        let mut automations = shown(&asked)?;
        for view in automations.as_array_mut().into_iter().flatten() {
            // A strip of marks is for people to look at, and the handle says the other two.
            for name in ["recent", "appId", "automationId"] {
                view.as_object_mut().map(|view| view.shift_remove(name));
            }
        }
        // Those of automations stand with them.
        let others = problems.into_iter().filter(|problem| !of_an_automation(problem)).collect::<Vec<_>>();
        let mut told = json!({ "automations": automations, "next": next, "problems": others });
        if !self.api.fires_by_itself() {
            told["note"] = json!("no daemon serves this root: nothing fires by itself until `dirigent serve` runs");
        }
        Ok(told)
    }

    pub(super) async fn read_automation(&self, given: ReadAutomation) -> ToolReply {
        let handle = handle(&given.handle)?;
        let mut told = shown(&self.api.automation(handle.clone()).await?)?;
        let files = self.files(&handle).await?;
        told["revision"] = json!(files.revision());
        Ok(told)
    }

    pub(super) async fn validate_manifest(&self, given: ValidateManifest) -> ToolReply {
        let proposed = Files { manifest: given.manifest.map(ManifestArgument::into_text), handler: given.handler };
        if proposed == Files::default() {
            return Err(bad_arguments("there is nothing to check: give `manifest`, `handler` or both"));
        }
        let (handle, standing) = match &given.handle {
            Some(text) => {
                let handle = handle(text)?;
                let standing = self.files(&handle).await?;
                (handle, standing)
            }
            None => (handle(NAMELESS)?, Files::default()),
        };
        let mut problems = self.judge(&handle, &proposed, &standing).await?;
        if given.handle.is_none() {
            for path in problems.iter_mut().filter_map(|problem| problem.path.as_mut()) {
                *path = path.rsplit('/').next().unwrap_or_default().to_owned();
            }
        }
        let valid = !problems.iter().any(Problem::is_error);
        Ok(json!({ "valid": valid, "problems": problems }))
    }

    pub(super) async fn write_automation(&self, given: WriteAutomation) -> ToolReply {
        let handle = handle(&given.handle)?;
        let proposed = Files { manifest: given.manifest.map(ManifestArgument::into_text), handler: given.handler };
        if proposed == Files::default() {
            return Err(bad_arguments("there is nothing to write: give `manifest`, `handler` or both"));
        }
        let standing = self.files(&handle).await?;
        // What is judged is what is written: a change between the two is told.
        let revision = given.revision.unwrap_or_else(|| standing.revision());
        let problems = self.judge(&handle, &proposed, &standing).await?;
        if problems.iter().any(Problem::is_error) {
            return Err(self.not_written(&handle, EditError::Refused { handle: handle.clone(), problems }).await);
        }
        let (app_dir, target) = (self.api.app_dir(&handle), handle.clone());
        let writing = self.api.read(move || edit::write_proposed(&app_dir, &target, &proposed, Some(&revision)));
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
        proposed: &Files,
        standing: &Files,
    ) -> Result<Vec<Problem>, ProblemDocument> {
        let folder = format!("{}/automations/{}", handle.app, handle.automation);
        let files = standing.clone().with(proposed);
        let mut problems = Vec::new();
        let mut owner = None;
        if let Some(text) = &files.manifest {
            match manifest::propose(text, standing.manifest.as_deref(), &handle.app) {
                Ok(judged) => {
                    let in_path = |problem: Problem| problem.in_path(format!("{folder}/automation.json"));
                    problems.extend(judged.problems.into_iter().map(in_path));
                    let parsed = judged.text.and_then(|text| manifest::parse(text.as_bytes(), &handle.app).manifest);
                    owner = parsed.map(|manifest| (handle.app.clone(), Arc::new(manifest)));
                }
                Err(source) => {
                    let error = EditError::Rewrite { handle: handle.clone(), source };
                    return Err(self.not_written(handle, error).await);
                }
            }
        }
        if let Some(text) = files.handler {
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

/// Whether a problem stands in an automation's folder.
fn of_an_automation(problem: &Problem) -> bool {
    problem.path.as_deref().is_some_and(|path| path.split('/').nth(1) == Some("automations"))
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
