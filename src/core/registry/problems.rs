//! What is wrong with what is registered: an automation's own problems, those that follow from its neighbours, and those
//! of folders.

use super::{Automation, Registry};
use crate::core::disk::HandlerFile;
use crate::core::manifest::Manifest;
use crate::core::near_name::nearest_handle;
use crate::fire::{Handle, Problem};

impl Registry {
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
        if let Some(manifest) = automation.manifest.as_ref().filter(|_| automation.valid) {
            let at = automation.on_failure_at;
            problems.extend(self.failure_handler_problem(&automation.handle, manifest, at));
        }
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

    /// An `onFailure` that will fire nothing. A warning: the automation itself runs as well as any. `at`: line and column
    /// of what it says.
    pub fn failure_handler_problem(
        &self,
        own: &Handle,
        manifest: &Manifest,
        at: Option<(u32, u32)>,
    ) -> Option<Problem> {
        let target = manifest.on_failure_handle(&own.app)?;
        let problem = |message: String| {
            let problem = Problem::warning("invalid_on_failure", "onFailure", message).in_path(manifest_path(own));
            match at {
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

/// Below the root.
pub(super) fn manifest_path(handle: &Handle) -> String {
    format!("{}/automations/{}/automation.json", handle.app, handle.automation)
}
