//! The life of one run inside the core: admitted, opened, started, cancelled, ended, retried, handed to its failure
//! handler. Every way out of [`State::runs`] leads through [`State::forget`], which gives back the lane, the slot and
//! the parent's wait, so that none of them can leak.

use super::*;
use crate::core::admission::Verdict;
use crate::core::schedule::CronFire;

/// Backoff between retries never exceeds this.
const MAX_BACKOFF_MS: u64 = 3_600_000;

impl State {
    pub(super) fn fire_cron(&mut self, now: EpochMs, fire: CronFire, effects: &mut Vec<Effect>) {
        let Some(manifest) = self.registry.get(&fire.handle).and_then(|a| a.manifest.clone()) else { return };
        let request = FireRequest {
            handle: fire.handle,
            origin: TriggerOrigin::Cron,
            trigger: fire.trigger,
            input_json: None,
            parent: None,
            synced: false,
            opened: None,
            ended: None,
        };
        if !fire.run {
            let missed = request.trigger.missed.unwrap_or(1);
            let text = format!(
                "{missed} scheduled {} missed and not made up for",
                if missed == 1 { "fire was" } else { "fires were" }
            );
            self.record_skipped(now, &request, text, effects);
        } else if fire.late {
            self.admit_as(now, request, manifest, true, effects);
        } else {
            self.admit(now, request, manifest, effects);
        }
    }

    fn record_skipped(&mut self, now: EpochMs, request: &FireRequest, summary: String, effects: &mut Vec<Effect>) {
        let mut row = NewRun::from_request(request, (self.new_id)(now), now);
        row.status = RunStatus::Skipped;
        row.ended_at = Some(now);
        row.summary = Some(summary);
        effects.push(Effect::OpenRun { run: row, synced: false });
    }

    pub(super) fn admit(
        &mut self,
        now: EpochMs,
        request: FireRequest,
        manifest: Arc<Manifest>,
        effects: &mut Vec<Effect>,
    ) {
        let patient = matches!(request.origin, TriggerOrigin::Invoke | TriggerOrigin::Failure | TriggerOrigin::Retry);
        self.admit_as(now, request, manifest, patient, effects);
    }

    fn admit_as(
        &mut self,
        now: EpochMs,
        request: FireRequest,
        manifest: Arc<Manifest>,
        patient: bool,
        effects: &mut Vec<Effect>,
    ) {
        let id = (self.new_id)(now);
        let verdict = self.admission.admit(&request.handle, &id, manifest.concurrency, patient);
        if let Verdict::Busy(active) = verdict {
            if request.origin == TriggerOrigin::Cron {
                let request = FireRequest {
                    trigger: TriggerInfo { reason: Some("overlap".to_owned()), ..request.trigger },
                    ..request
                };
                self.record_skipped(now, &request, format!("run {active} was still active"), effects);
            } else if let Some(token) = request.opened {
                effects.push(Effect::Answer { token, answer: Answer::Busy { active } });
            }
            return;
        }
        // While stopping, what is accepted is left queued for the next daemon.
        let may_launch = verdict == Verdict::Active && !self.stopping;
        let (mut depth, mut inherited) = (0, false);
        if let Some(parent) = request.parent.as_ref().and_then(|id| self.runs.get_mut(id)) {
            depth = parent.depth + 1;
            parent.children += 1;
            // A parent that waits gives its slot up, to the child itself when that may run.
            if std::mem::take(&mut parent.holds_slot) {
                inherited = may_launch;
                if !inherited {
                    self.admission.free_slot();
                }
            }
        }
        let launch = inherited || (may_launch && self.admission.try_slot());
        let mut row = NewRun::from_request(&request, id.clone(), now);
        if launch {
            (row.status, row.started_at) = (RunStatus::Running, Some(now));
        }
        effects.push(Effect::OpenRun { run: row.clone(), synced: request.synced });
        let run = Run {
            row,
            handle: request.handle,
            manifest,
            depth,
            phase: Phase::Opening { launch },
            holds_slot: launch,
            children: 0,
            ending: None,
            opened: request.opened,
            ended: request.ended,
        };
        self.runs.insert(id, run);
        if let Verdict::Supersedes(older) = verdict {
            for run in older {
                self.cancel(now, &run, ErrorCode::Superseded, effects);
            }
        }
    }

    pub(super) fn on_opened(
        &mut self,
        now: EpochMs,
        id: &RunId,
        result: Result<Recorded, String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(run) = self.runs.get_mut(id) else {
            if let Err(message) = result {
                effects.push(Effect::Notice(format!("a skipped run could not be recorded: {message}")));
            }
            return;
        };
        let Phase::Opening { launch } = run.phase else { return };
        let refused = match result {
            Ok(Recorded::Inserted) => None,
            Ok(Recorded::Duplicate) => Some("this instant has been fired already".to_owned()),
            Err(message) => Some(message),
        };
        if let Some(message) = refused {
            let (opened, ended) = (run.opened, run.ended);
            for token in opened.into_iter().chain(ended) {
                effects.push(Effect::Answer { token, answer: Answer::NotRecorded { message: message.clone() } });
            }
            self.forget(id);
            return;
        }
        if let Some(token) = run.opened.take() {
            let answer = Answer::Accepted { run: id.clone(), status: run.row.status };
            effects.push(Effect::Answer { token, answer });
        }
        if let Some(why) = run.ending {
            self.end(now, id, RunEnd::cancelled(why, now), effects);
        } else if launch {
            run.phase = Phase::Running;
            effects.push(Effect::Launch(run.spec(now)));
        } else {
            run.phase = Phase::Waiting;
            self.line_up_if_active(id);
        }
    }

    /// A retry whose time has come, or a row that an earlier daemon left queued.
    pub(super) fn enter_lane(&mut self, id: &RunId) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if let Some(current) = self.registry.get(&run.handle).and_then(|a| a.manifest.clone()) {
            run.manifest = current;
        }
        run.phase = Phase::Waiting;
        self.admission.admit(&run.handle, id, run.manifest.concurrency, true);
        self.line_up_if_active(id);
    }

    fn line_up_if_active(&mut self, id: &RunId) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.phase == Phase::Waiting && self.admission.is_active(&run.handle, id) {
            run.phase = Phase::Ready;
            self.admission.line_up(id.clone(), &run.handle.app, run.depth);
        }
    }

    /// Gives free slots to those who wait for one.
    pub(super) fn serve_ready(&mut self, now: EpochMs, effects: &mut Vec<Effect>) {
        while !self.stopping
            && let Some(id) = self.admission.next_ready()
        {
            let Some(run) = self.runs.get_mut(&id) else {
                self.admission.free_slot();
                continue;
            };
            run.holds_slot = true;
            run.phase = Phase::Starting;
            effects.push(Effect::StartRun { run: id, handle: run.handle.clone(), at: now });
        }
    }

    pub(super) fn on_started(
        &mut self,
        now: EpochMs,
        id: &RunId,
        result: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.phase != Phase::Starting {
            return;
        }
        if let Err(message) = result {
            // The row stays `queued`: the next daemon that can write the ledger runs it.
            let handle = run.handle.clone();
            let ended = run.ended;
            effects.push(Effect::Notice(format!("{handle}: run {id} cannot be started: {message}")));
            if let Some(token) = ended {
                effects.push(Effect::Answer { token, answer: Answer::NotRecorded { message } });
            }
            self.forget(id);
        } else if let Some(why) = run.ending {
            self.end(now, id, RunEnd::cancelled(why, now), effects);
        } else {
            run.phase = Phase::Running;
            run.row.status = RunStatus::Running;
            run.row.started_at = Some(now);
            effects.push(Effect::Launch(run.spec(now)));
        }
    }

    /// Cancels an open run. False when there is no such run.
    pub(super) fn cancel(&mut self, now: EpochMs, id: &RunId, why: ErrorCode, effects: &mut Vec<Effect>) -> bool {
        let Some(run) = self.runs.get_mut(id) else { return false };
        if run.ending.is_some() {
            return true;
        }
        match run.phase {
            // The ledger has not answered yet; its answer ends the run.
            Phase::Opening { .. } | Phase::Starting => run.ending = Some(why),
            Phase::Waiting | Phase::Delayed | Phase::Ready => self.end(now, id, RunEnd::cancelled(why, now), effects),
            Phase::Running => {
                run.ending = Some(why);
                effects.push(Effect::AbortRun { run: id.clone(), why });
            }
        }
        true
    }

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

    fn end(&mut self, now: EpochMs, id: &RunId, end: RunEnd, effects: &mut Vec<Effect>) {
        let Some(run) = self.forget(id) else { return };
        if run.children > 0 {
            let children: Vec<RunId> = self
                .runs
                .iter()
                .filter(|(_, r)| r.row.parent_run_id.as_ref() == Some(id))
                .map(|(id, _)| id.clone())
                .collect();
            for child in children {
                self.cancel(now, &child, ErrorCode::ParentEnded, effects);
            }
        }
        if let Some(token) = run.opened {
            effects.push(Effect::Answer { token, answer: Answer::Ended(end.clone()) });
        }
        self.conclude(now, &run.row, end, run.ended, effects);
    }

    /// Writes an end, and what follows from it: the retry, or the failure handler. The retry's row is written with the
    /// end in one step, so that it cannot be lost between the two.
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
        let retry =
            manifest.as_ref().filter(|_| end.status == RunStatus::Error).and_then(|m| self.retry_of(now, row, m));
        let failed = end.status == RunStatus::Error && retry.is_none();
        let failure = manifest.as_ref().filter(|_| failed).and_then(|m| failure_fire(row, &end, m));
        effects.push(Effect::CloseRun { run: row.run_id.clone(), handle, end, keep, retry: retry.clone(), ended });
        if let (Some(row), Some(manifest)) = (retry, manifest) {
            self.delay(row, manifest);
        }
        if let Some(request) = failure {
            let target = self.registry.get(&request.handle).and_then(|a| a.manifest.clone());
            match target {
                Some(target) => self.admit(now, request, target, effects),
                None => effects.push(Effect::Notice(format!(
                    "{}: its failure handler {} is not registered",
                    row.handle(),
                    request.handle
                ))),
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

    fn delay(&mut self, row: NewRun, manifest: Arc<Manifest>) {
        let due = row.trigger.not_before.unwrap_or(0);
        self.delayed.push(Reverse((due, row.run_id.clone())));
        self.hold(row, manifest, Phase::Delayed);
    }

    fn hold(&mut self, row: NewRun, manifest: Arc<Manifest>, phase: Phase) {
        let run = Run {
            handle: row.handle(),
            manifest,
            depth: 0,
            phase,
            holds_slot: false,
            children: 0,
            ending: None,
            opened: None,
            ended: None,
            row,
        };
        self.runs.insert(run.row.run_id.clone(), run);
    }

    /// A row that an earlier daemon accepted and did not start.
    pub(super) fn requeue(&mut self, now: EpochMs, row: NewRun, effects: &mut Vec<Effect>) {
        if self.runs.contains_key(&row.run_id) {
            return;
        }
        let manifest = self.registry.get(&row.handle()).and_then(|a| a.manifest.clone());
        match manifest {
            // Nobody is left to take the result.
            _ if row.parent_run_id.is_some() => {
                self.conclude(now, &row, RunEnd::cancelled(ErrorCode::ParentEnded, now), None, effects);
            }
            None => {
                let end = RunEnd {
                    error: Some("its automation is gone or was never valid".to_owned()),
                    ..RunEnd::cancelled(ErrorCode::HandlerLoad, now)
                };
                self.conclude(now, &row, end, None, effects);
            }
            Some(manifest) if row.trigger.not_before.is_some_and(|at| at > now) => self.delay(row, manifest),
            Some(manifest) => {
                let id = row.run_id.clone();
                self.hold(row, manifest, Phase::Waiting);
                self.enter_lane(&id);
            }
        }
    }

    /// Takes a run out, and gives back all that it held.
    fn forget(&mut self, id: &RunId) -> Option<Run> {
        let run = self.runs.remove(id)?;
        if run.phase == Phase::Ready {
            self.admission.step_out(id, &run.handle.app, run.depth);
        }
        if run.holds_slot {
            self.admission.free_slot();
        }
        let current = self.registry.get(&run.handle).and_then(|a| a.manifest.as_ref()).unwrap_or(&run.manifest);
        for promoted in self.admission.leave(&run.handle, id, current.concurrency) {
            self.line_up_if_active(&promoted);
        }
        if let Some(parent) = run.row.parent_run_id.as_ref().and_then(|id| self.runs.get_mut(id)) {
            parent.children = parent.children.saturating_sub(1);
            if parent.children == 0 && parent.phase == Phase::Running && !parent.holds_slot {
                parent.holds_slot = true;
                self.admission.retake_slot();
            }
        }
        Some(run)
    }
}

impl Run {
    fn spec(&self, now: EpochMs) -> RunSpec {
        RunSpec {
            run_id: self.row.run_id.clone(),
            handle: self.handle.clone(),
            manifest: Arc::clone(&self.manifest),
            origin: self.row.origin,
            trigger: self.row.trigger.clone(),
            input_json: self.row.input_json.clone(),
            attempt: self.row.attempt,
            started_at: self.row.started_at.unwrap_or(now),
        }
    }
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
        handle,
        origin: TriggerOrigin::Failure,
        trigger: TriggerInfo {
            failed_run: Some(row.run_id.clone()),
            failure_depth: Some(depth),
            ..TriggerInfo::default()
        },
        input_json: Some(failed.to_string()),
        parent: None,
        synced: false,
        opened: None,
        ended: None,
    })
}
