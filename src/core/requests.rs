//! Fires that somebody asks for: whether there is such an automation, whether it may be invoked from there, and the row
//! that is made of it.

use std::sync::Arc;

use super::{Answer, Effect, FireRequest, MAX_INVOKE_DEPTH, Run, Skip, State};
use crate::core::manifest::Manifest;
use crate::core::run::NewRun;
use crate::fire::{EpochMs, Handle, RunId, RunStatus, TriggerInfo};

impl State {
    pub(super) fn on_request(&mut self, now: EpochMs, request: FireRequest, effects: &mut Vec<Effect>) {
        let answer = match self.check_request(&request) {
            Ok(manifest) => {
                match request.skip {
                    Some(Skip::Filter) => {
                        let reason = Some("filter".to_owned());
                        let request = FireRequest { trigger: TriggerInfo { reason, ..request.trigger }, ..request };
                        let told = "the body does not pass the webhook's filter".to_owned();
                        self.record_skipped(now, &request, told, effects);
                    }
                    None => self.admit(now, request, manifest, false, effects),
                }
                return;
            }
            Err(answer) => answer,
        };
        if let Some(token) = request.opened {
            effects.push(Effect::Answer { token, answer });
        }
    }

    fn check_request(&self, request: &FireRequest) -> Result<Arc<Manifest>, Answer> {
        if self.stopping {
            return Err(Answer::Stopping);
        }
        let automation = self.registry.get(&request.handle).ok_or(Answer::Unknown)?;
        let Some(manifest) = &automation.manifest else {
            return Err(Answer::Unrunnable { problems: self.registry.problems_of(automation) });
        };
        if let Some(parent) = &request.parent {
            let Some(parent) = self.runs.get(parent).filter(|p| p.ending.is_none()) else {
                return Err(Answer::Refused { message: "the invoking run has ended".to_owned() });
            };
            let chain = self.chain(parent);
            if chain.contains(&&request.handle) {
                let names: Vec<String> =
                    chain.iter().rev().map(|h| h.to_string()).chain([request.handle.to_string()]).collect();
                return Err(Answer::Refused { message: format!("invoke cycle: {}", names.join(" -> ")) });
            }
            if parent.depth >= MAX_INVOKE_DEPTH {
                return Err(Answer::Refused { message: format!("invoke depth is over {MAX_INVOKE_DEPTH}") });
            }
        }
        Ok(Arc::clone(manifest))
    }

    /// The handles from a run up to the one that nobody invoked.
    fn chain<'a>(&'a self, run: &'a Run) -> Vec<&'a Handle> {
        let mut chain = vec![&run.handle];
        let mut above = run.row.parent_run_id.as_ref();
        while let Some(parent) = above.and_then(|id| self.runs.get(id)) {
            chain.push(&parent.handle);
            above = parent.row.parent_run_id.as_ref();
        }
        chain
    }
}

impl NewRun {
    pub(super) fn from_request(request: &FireRequest, run_id: RunId, now: EpochMs) -> Self {
        Self {
            run_id,
            app_id: request.handle.app.clone(),
            automation_id: request.handle.automation.clone(),
            status: RunStatus::Queued,
            origin: request.origin,
            trigger: request.trigger.clone(),
            scheduled_for: request.trigger.scheduled_for,
            input_json: request.input_json.clone(),
            parent_run_id: request.parent.clone(),
            retry_of: None,
            attempt: 1,
            handler_hash: None,
            queued_at: now,
            started_at: None,
            ended_at: None,
            summary: None,
            error: None,
        }
    }
}
