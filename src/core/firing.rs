//! Cron fires on their way into a ledger, rows that are only skipped, and fires that are offered again.
//!
//! A ledger takes no instant of a trigger at or below the last one that it has taken. So of each trigger one row is
//! written at a time, and the next is offered when that stands: were a later one written first, the earlier would be lost.
//! When one is refused for a while, those behind it are dropped, and all of them are made up for from the ledger's
//! watermark as soon as it takes writes again.

use super::*;

/// What is told of a cron fire whose instant is at or below its trigger's watermark.
pub(super) const REPEATED: &str = "its instant, or a later one of the same trigger, has been fired already";

impl State {
    pub(super) fn fire_cron(&mut self, now: EpochMs, fire: CronFire, effects: &mut Vec<Effect>) {
        // Its ledger is not ready: this instant is among those that are made up for when it is.
        if self.cold.contains_key(&fire.handle.app) {
            return;
        }
        let trigger = (fire.handle.clone(), fire.trigger.key.clone().unwrap_or_default());
        match self.firing.get_mut(&trigger) {
            Some(behind) => behind.push_back(fire),
            None => self.offer(now, trigger, fire, effects),
        }
    }

    fn offer(&mut self, now: EpochMs, trigger: (Handle, String), fire: CronFire, effects: &mut Vec<Effect>) {
        let Some(manifest) = self.registry.get(&fire.handle).and_then(|a| a.manifest.clone()) else { return };
        self.firing.entry(trigger).or_default();
        let request = FireRequest { trigger: fire.trigger, ..FireRequest::new(fire.handle, TriggerOrigin::Cron) };
        if fire.run {
            self.admit(now, request, manifest, fire.late, effects);
        } else {
            let missed = request.trigger.missed.unwrap_or(1);
            let text = format!(
                "{missed} scheduled {} missed and not made up for",
                if missed == 1 { "fire was" } else { "fires were" }
            );
            self.record_skipped(now, &request, text, effects);
        }
    }

    /// A trigger's row is written, or refused: the next one's turn.
    pub(super) fn after_fire(
        &mut self,
        now: EpochMs,
        trigger: (Handle, String),
        outcome: Result<(), &Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let mut behind = self.firing.remove(&trigger).unwrap_or_default();
        if let Err(refusal) = outcome {
            self.on_refused(now, &trigger.0.app, refusal);
        }
        if self.cold.contains_key(&trigger.0.app) || self.stopping {
            return;
        }
        if let Some(next) = behind.pop_front() {
            self.offer(now, trigger.clone(), next, effects);
            // Whoever is gone from the registry leaves nothing behind either.
            if let Some(queue) = self.firing.get_mut(&trigger) {
                *queue = behind;
            }
        }
    }

    /// Writes a row that is not run, and why.
    pub(super) fn record_skipped(
        &mut self,
        now: EpochMs,
        request: &FireRequest,
        summary: String,
        effects: &mut Vec<Effect>,
    ) {
        let mut row = NewRun::from_request(request, (self.new_id)(now), now);
        row.status = RunStatus::Skipped;
        row.ended_at = Some(now);
        row.summary = Some(summary);
        let key = row.cron_trigger().map(|(_, key)| key);
        let skipping = Skipping { handle: request.handle.clone(), key, opened: request.opened };
        self.skipping.insert(row.run_id.clone(), skipping);
        effects.push(Effect::OpenRun { run: row, synced: request.synced });
    }

    pub(super) fn on_skipped(
        &mut self,
        now: EpochMs,
        id: &RunId,
        skipping: Skipping,
        result: Result<Recorded, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let Skipping { handle, key, opened } = skipping;
        let (answer, refusal) = match result {
            Ok(Recorded::Inserted) => (Answer::Skipped { run: id.clone() }, None),
            Ok(Recorded::Redelivered(run)) => (Answer::Redelivered { run }, None),
            Ok(Recorded::Duplicate) => (Answer::NotRecorded { message: REPEATED.to_owned() }, None),
            Err(refusal) => (Answer::NotRecorded { message: refusal.message.clone() }, Some(refusal)),
        };
        match (opened, &answer) {
            (Some(token), _) => effects.push(Effect::Answer { token, answer }),
            (None, Answer::NotRecorded { message }) => {
                effects.push(Effect::Notice(format!("{handle}: a skipped fire was not recorded: {message}")));
            }
            (None, _) => {}
        }
        if let Some(key) = key {
            self.after_fire(now, (handle, key), refusal.as_ref().map_or(Ok(()), Err), effects);
        }
    }

    /// A failure handler in another app is fired when that app's ledger takes it: nobody else would ask again.
    pub(super) fn keep_failure_fire(&mut self, now: EpochMs, run: Run, refusal: &Refusal) {
        if run.row.origin != TriggerOrigin::Failure || !refusal.passing || !self.knows(&run.handle.app) {
            return;
        }
        let id = run.row.run_id.clone();
        let request = FireRequest {
            trigger: run.row.trigger,
            input_json: run.row.input_json,
            ..FireRequest::new(run.handle, TriggerOrigin::Failure)
        };
        self.refused.insert(id.clone(), request);
        self.agenda.push(Reverse((now + REFUSED_PAUSE_MS, Due::Fire(id))));
    }

    pub(super) fn fire_again(&mut self, now: EpochMs, id: &RunId, effects: &mut Vec<Effect>) {
        let Some(request) = self.refused.remove(id) else { return };
        if let Some(manifest) = self.registry.get(&request.handle).and_then(|a| a.manifest.clone()) {
            self.admit(now, request, manifest, false, effects);
        }
    }
}
