//! How a run ends: its end is written together with what follows from it (the retry, or the failure handler's run), and
//! only when that is done is anyone told and does anything follow. Every way out of [`State::closing`] is an answer of a
//! ledger, or that there is no such ledger any more.

use super::*;

/// Backoff between retries never exceeds this.
const MAX_BACKOFF_MS: u64 = 3_600_000;
/// How often an end is offered to the ledger of an app that is not there: about half a minute.
const UNKNOWN_APP_OFFERS: u32 = 5;

impl State {
    pub(super) fn on_ended(&mut self, now: EpochMs, id: &RunId, end: RunEnd, effects: &mut Vec<Effect>) {
        let Some(run) = self.runs.get(id) else { return };
        if run.phase != Phase::Running {
            return;
        }
        let end = match run.ending {
            Some(why) => RunEnd::cancelled(why, end.ended_at),
            None => end,
        };
        self.end(now, id, end, effects);
    }

    pub(super) fn end(&mut self, now: EpochMs, id: &RunId, end: RunEnd, effects: &mut Vec<Effect>) {
        let Some(run) = self.forget(id) else { return };
        if run.children > 0 {
            for child in self.children_of(id).collect::<Vec<_>>() {
                self.cancel(now, &child, ErrorCode::ParentEnded, effects);
            }
        }
        self.conclude(now, &run.row, end, run.ended, effects);
    }

    /// Has an end written, together with what follows from it: the retry, or else the failure handler's run.
    pub(super) fn conclude(
        &mut self,
        now: EpochMs,
        row: &NewRun,
        end: RunEnd,
        ended: Option<Token>,
        effects: &mut Vec<Effect>,
    ) {
        let handle = row.handle();
        let manifest = self.registry.get(&handle).and_then(|a| a.manifest.clone());
        let keep = manifest.as_ref().map_or(HistoryKeep::All, |m| m.keep);
        let (mut next, mut failure) = (None, None);
        if let Some(manifest) = manifest.filter(|_| end.status == RunStatus::Error) {
            next = self.retry_of(now, row, &manifest);
            if next.is_none() {
                failure = failure_fire(row, &end, &manifest);
            }
        }
        if let Some(fire) = failure.take_if(|fire| fire.handle.app == handle.app) {
            if self.registry.get(&fire.handle).is_some_and(|a| a.manifest.is_some()) {
                next = Some(NewRun::from_request(&fire, (self.new_id)(now), now));
            } else {
                effects.push(no_failure_handler(&handle, &fire.handle));
            }
        }
        let close = Arc::new(Close { run: row.run_id.clone(), handle, end, keep, next });
        effects.push(Effect::CloseRun(Arc::clone(&close)));
        self.closing.insert(row.run_id.clone(), Closing { close, failure, ended, refusals: 0 });
    }

    pub(super) fn on_closed(
        &mut self,
        now: EpochMs,
        id: &RunId,
        app: &AppId,
        result: Result<(), Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let knows = self.knows(app);
        let Some(closing) = self.closing.get_mut(id).filter(|closing| closing.close.handle.app == *app) else {
            // The end of a copy, or an answer of the app that it belonged to before.
            if let Err(refusal) = &result {
                self.on_refused(now, app, refusal);
            }
            return;
        };
        if let Err(refusal) = &result {
            let Close { handle, end, .. } = &*closing.close;
            let message =
                format!("run {id} ended in {}, but that could not be recorded: {}", end.status, refusal.message);
            effects.push(Effect::Notice(format!("{handle}: {message}")));
            if let Some(token) = closing.ended.take() {
                effects.push(Effect::Answer { token, answer: Answer::NotRecorded { message } });
            }
            // An app that is gone may be about to appear under another name, with the row in its ledger.
            if refusal.passing && (knows || closing.refusals < UNKNOWN_APP_OFFERS) {
                let pause = FIRST_CLOSE_PAUSE_MS << closing.refusals.min(5);
                closing.refusals += 1;
                self.agenda.push(Reverse((now + pause.min(REFUSED_PAUSE_MS), Due::Close(id.clone()))));
                return;
            }
        }
        let Some(Closing { close, failure, ended, refusals }) = self.closing.remove(id) else { return };
        if result.is_err() {
            // An offer whose answer was lost may have been taken: then what follows from it is in the ledger.
            if refusals > 0 && knows && self.scheduling {
                self.recover_ledger(app.clone(), effects);
            }
            return;
        }
        if self.recoveries > 0 {
            self.closed_meanwhile.insert((app.clone(), id.clone()));
        }
        if let Some(token) = ended {
            effects.push(Effect::Answer { token, answer: Answer::Ended(close.end.clone()) });
        }
        if let Some(mut row) = close.next.clone() {
            // The ledger may have got another name with its app while it wrote. When the name is not known, the row is
            // found by the next recovery.
            if let Some(name) = self.renamed.get(app) {
                row.app_id = name.clone();
            }
            if self.knows(&row.app_id) {
                self.requeue(now, row, effects);
            }
        }
        if let Some(fire) = failure {
            match self.registry.get(&fire.handle).and_then(|a| a.manifest.clone()) {
                Some(manifest) => self.admit(now, fire, manifest, false, effects),
                None => effects.push(no_failure_handler(&close.handle, &fire.handle)),
            }
        }
    }

    fn retry_of(&mut self, now: EpochMs, row: &NewRun, manifest: &Manifest) -> Option<NewRun> {
        if row.attempt > manifest.retry.max {
            return None;
        }
        let doublings = (row.attempt.saturating_sub(1)).min(32);
        let wait = manifest.retry.backoff_ms.saturating_mul(1 << doublings).min(MAX_BACKOFF_MS);
        let due = now + i64::try_from(wait).unwrap_or(i64::MAX / 2);
        Some(NewRun {
            run_id: (self.new_id)(now),
            status: RunStatus::Queued,
            origin: TriggerOrigin::Retry,
            trigger: TriggerInfo { not_before: Some(due), reason: None, ..row.trigger.clone() },
            scheduled_for: None,
            // Whoever invoked the first attempt was told of its failure; the retry stands on its own.
            parent_run_id: None,
            retry_of: Some(row.run_id.clone()),
            attempt: row.attempt + 1,
            handler_hash: None,
            queued_at: now,
            started_at: None,
            ended_at: None,
            ..row.clone()
        })
    }
}

fn no_failure_handler(failed: &Handle, handler: &Handle) -> Effect {
    Effect::Notice(format!("{failed}: its failure handler {handler} is not registered, so nothing handles its failure"))
}

/// The fire of the automation that handles this failure, unless the chain is too long or would handle itself.
fn failure_fire(row: &NewRun, end: &RunEnd, manifest: &Manifest) -> Option<FireRequest> {
    let handle = manifest.on_failure_handle(&row.app_id)?;
    let depth = row.trigger.failure_depth.unwrap_or(0) + 1;
    if handle == row.handle() || depth > MAX_FAILURE_DEPTH {
        return None;
    }
    let input = row.input_json.as_deref().map(|text| {
        serde_json::from_str::<serde_json::Value>(text).unwrap_or_else(|_| serde_json::Value::String(text.to_owned()))
    });
    let failed = serde_json::json!({ "failedRun": {
        "runId": row.run_id,
        "automationId": row.automation_id,
        "appId": row.app_id,
        "error": end.error,
        "errorCode": end.error_code,
        "triggerOrigin": row.origin,
        "startedAt": row.started_at,
        "endedAt": end.ended_at,
        "input": input,
    }});
    Some(FireRequest {
        trigger: TriggerInfo {
            failed_run: Some(row.run_id.clone()),
            failure_depth: Some(depth),
            ..TriggerInfo::default()
        },
        input_json: Some(failed.to_string()),
        ..FireRequest::new(handle, TriggerOrigin::Failure)
    })
}
