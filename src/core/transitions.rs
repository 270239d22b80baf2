//! The life of one run inside the core up to its end: admitted, opened, started, cancelled. Every way out of
//! [`State::runs`] leads through [`State::forget`], which gives back the lane, the slot and the parent's wait, so that none
//! of them can leak.

use super::*;
use crate::core::admission::Verdict;
use crate::core::firing::REPEATED;

impl State {
    /// Decides on a fire and has its row written. `late`: it makes up for a missed one, so it waits its turn; and its row is
    /// written as `queued`, in the order of the instants, since the ledger takes none below the last.
    pub(super) fn admit(
        &mut self,
        now: EpochMs,
        request: FireRequest,
        manifest: Arc<Manifest>,
        late: bool,
        effects: &mut Vec<Effect>,
    ) {
        let patient =
            late || matches!(request.origin, TriggerOrigin::Invoke | TriggerOrigin::Failure | TriggerOrigin::Retry);
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
        let (mut depth, mut rank) = (0, 0);
        if let Some(parent) = request.parent.as_ref().and_then(|id| self.runs.get_mut(id)) {
            depth = parent.depth + 1;
            rank = (parent.rank + 1).min(MAX_INVOKE_DEPTH);
            parent.children += 1;
            // A parent that waits gives its slot up, to the child itself when that may run.
            if std::mem::take(&mut parent.holds_slot) {
                parent.suspended = true;
                self.admission.suspend_slot();
            }
        }
        // While stopping, what is accepted is left queued for the next daemon.
        let may_launch = verdict == Verdict::Active && !late && !self.stopping;
        let launch = may_launch && self.admission.try_slot(rank);
        let mut row = NewRun::from_request(&request, id.clone(), now);
        if launch {
            (row.status, row.started_at) = (RunStatus::Running, Some(now));
        }
        effects.push(Effect::OpenRun { run: row.clone(), synced: request.synced });
        let mut run = Run { opened: request.opened, ended: request.ended, ..Run::new(row, manifest) };
        (run.depth, run.rank) = (depth, rank);
        (run.phase, run.holds_slot) = (Phase::Opening { launch }, launch);
        if let Verdict::Supersedes(older) = verdict {
            run.supersedes = older;
        }
        self.runs.insert(id.clone(), run);
        self.press(&id);
    }

    pub(super) fn on_opened(
        &mut self,
        now: EpochMs,
        id: &RunId,
        result: Result<Recorded, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(skipping) = self.skipping.remove(id) {
            self.on_skipped(now, id, skipping, result, effects);
            return;
        }
        let Some(run) = self.runs.get_mut(id) else { return };
        let Phase::Opening { launch } = run.phase else { return };
        let trigger = run.row.cron_trigger();
        let refused = match result {
            Ok(Recorded::Inserted) => None,
            Ok(Recorded::Redelivered(first)) => {
                if let Some(token) = run.opened {
                    effects.push(Effect::Answer { token, answer: Answer::Redelivered { run: first } });
                }
                self.forget(id);
                return;
            }
            Ok(Recorded::Duplicate) => Some(Refusal { message: REPEATED.to_owned(), passing: false }),
            Err(refusal) => Some(refusal),
        };
        if let Some(refusal) = refused {
            let answer = Answer::NotRecorded { message: refusal.message.clone() };
            for token in run.opened.into_iter().chain(run.ended) {
                effects.push(Effect::Answer { token, answer: answer.clone() });
            }
            if run.opened.is_none() {
                let (handle, origin, told) = (&run.handle, run.row.origin, &refusal.message);
                let text = format!("{handle}: a fire ({origin}) was not recorded, so it is not run: {told}");
                effects.push(Effect::Notice(text));
            }
            if let Some(run) = self.forget(id) {
                self.keep_failure_fire(now, run, &refusal);
            }
            if let Some(trigger) = trigger {
                self.after_fire(now, trigger, Err(&refusal), effects);
            }
            return;
        }
        for older in std::mem::take(&mut run.supersedes) {
            self.cancel(now, &older, ErrorCode::Superseded, effects);
        }
        if let Some(trigger) = trigger {
            self.after_fire(now, trigger, Ok(()), effects);
        }
        let Some(run) = self.runs.get_mut(id) else { return };
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
        let Some(run) = self.runs.get_mut(id).filter(|run| run.phase == Phase::Delayed) else { return };
        if let Some(current) = self.registry.get(&run.handle).and_then(|a| a.manifest.clone()) {
            run.manifest = current;
        }
        run.phase = Phase::Waiting;
        self.admission.admit(&run.handle, id, run.manifest.concurrency, true);
        self.press(id);
        self.line_up_if_active(id);
    }

    /// Whoever waits in a lane is served no later than its rank says: so neither are those before it, nor what they wait
    /// for in turn. Without this a run of low rank could stand in the line for ever, because those who wait for it hold
    /// all the hosts that its rank may use.
    fn press(&mut self, id: &RunId) {
        let Some(run) = self.runs.get(id).filter(|run| run.rank > 0) else { return };
        let mut work: Vec<(RunId, u32)> =
            self.admission.ahead(&run.handle, id).map(|before| (before.clone(), run.rank)).collect();
        while let Some((id, rank)) = work.pop() {
            let Some(run) = self.runs.get_mut(&id).filter(|run| run.rank < rank) else { continue };
            if run.phase == Phase::Ready {
                self.admission.step_out(&id, &run.handle.app, run.rank);
                self.admission.line_up(id.clone(), &run.handle.app, rank);
            }
            run.rank = rank;
            let run = &self.runs[&id];
            work.extend(self.admission.ahead(&run.handle, &id).map(|before| (before.clone(), rank)));
            if run.children > 0 {
                let below = (rank + 1).min(MAX_INVOKE_DEPTH);
                work.extend(self.children_of(&id).map(|child| (child, below)));
            }
        }
    }

    pub(super) fn children_of<'a>(&'a self, parent: &'a RunId) -> impl Iterator<Item = RunId> + 'a {
        self.runs
            .iter()
            .filter(move |(_, run)| run.row.parent_run_id.as_ref() == Some(parent))
            .map(|(id, _)| id.clone())
    }

    pub(super) fn line_up_if_active(&mut self, id: &RunId) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.phase == Phase::Waiting && self.admission.is_active(&run.handle, id) {
            run.phase = Phase::Ready;
            self.admission.line_up(id.clone(), &run.handle.app, run.rank);
        }
    }

    /// Gives free slots to those who wait for one; while stopping, only to those that a running one waits for.
    pub(super) fn serve_ready(&mut self, now: EpochMs, effects: &mut Vec<Effect>) {
        let least_rank = u32::from(self.stopping);
        while let Some(id) = self.admission.next_ready(least_rank) {
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
        app: &AppId,
        result: Result<(), Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(run) = self.runs.get_mut(id) else { return };
        if run.phase != Phase::Starting {
            return;
        }
        if let Err(Refusal { message, passing }) = result {
            // A ledger that it has left meanwhile knows nothing of it.
            let passing = passing || *app != run.handle.app;
            let (handle, ended) = (run.handle.clone(), run.ended);
            effects.push(Effect::Notice(format!("{handle}: run {id} cannot be started: {message}")));
            // The row is still `queued`.
            if let Some(why) = run.ending.filter(|_| passing) {
                self.end(now, id, RunEnd::cancelled(why, now), effects);
            } else if passing && self.knows(&handle.app) {
                self.let_go(id);
                if let Some(run) = self.runs.get_mut(id) {
                    run.phase = Phase::Delayed;
                }
                self.agenda.push(Reverse((now + REFUSED_PAUSE_MS, Due::Enter(id.clone()))));
            } else {
                if let Some(token) = ended {
                    effects.push(Effect::Answer { token, answer: Answer::NotRecorded { message } });
                }
                self.forget(id);
            }
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
        let Some(run) = self.runs.get_mut(id) else { return self.cancel_parked(now, id, why, effects) };
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

    /// Takes a run out, and gives back all that it held.
    pub(super) fn forget(&mut self, id: &RunId) -> Option<Run> {
        self.let_go(id);
        let run = self.runs.remove(id)?;
        if let Some(parent) = run.row.parent_run_id.as_ref().and_then(|id| self.runs.get_mut(id)) {
            parent.children = parent.children.saturating_sub(1);
            if parent.children == 0 && parent.phase == Phase::Running && std::mem::take(&mut parent.suspended) {
                parent.holds_slot = true;
                self.admission.retake_slot();
            }
        }
        Some(run)
    }

    /// Gives back a run's place in the line, its slot and its lane.
    fn let_go(&mut self, id: &RunId) {
        let Some(run) = self.runs.get_mut(id) else { return };
        let handle = run.handle.clone();
        if run.phase == Phase::Ready {
            self.admission.step_out(id, &handle.app, run.rank);
        }
        if std::mem::take(&mut run.holds_slot) {
            self.admission.free_slot();
        }
        if std::mem::take(&mut run.suspended) {
            self.admission.drop_suspended();
        }
        let own = run.manifest.concurrency;
        let current = self.registry.get(&handle).and_then(|a| a.manifest.as_ref()).map_or(own, |m| m.concurrency);
        for promoted in self.admission.leave(&handle, id, current) {
            self.line_up_if_active(&promoted);
        }
    }
}

impl Run {
    /// A run whose row is in the ledger, or about to be, and that holds nothing yet.
    pub(super) fn new(row: NewRun, manifest: Arc<Manifest>) -> Self {
        Self {
            handle: row.handle(),
            manifest,
            depth: 0,
            rank: 0,
            phase: Phase::Delayed,
            holds_slot: false,
            suspended: false,
            children: 0,
            supersedes: Vec::new(),
            ending: None,
            opened: None,
            ended: None,
            row,
        }
    }

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
