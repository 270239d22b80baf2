//! What ledgers tell when they are opened: rows that an earlier daemon left, rows of this one whose app was away or has
//! got another name, and what was missed.
//!
//! The ledger that holds a row owns it, whatever the app was called when it was written. A row of a run that this daemon
//! knows is never ended here, also when the ledger was read before its end was written.

use super::*;

impl State {
    pub(super) fn recover_ledger(&mut self, app: AppId, effects: &mut Vec<Effect>) {
        self.recoveries += 1;
        effects.push(Effect::RecoverLedger { app });
    }

    pub(super) fn on_recovered(
        &mut self,
        now: EpochMs,
        app: &AppId,
        result: Result<Recovered, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        self.recoveries = self.recoveries.saturating_sub(1);
        let closed = if self.recoveries == 0 {
            std::mem::take(&mut self.closed_meanwhile)
        } else {
            self.closed_meanwhile.clone()
        };
        // It is recovered again when it comes back.
        if !self.knows(app) {
            return;
        }
        let found = match result {
            Ok(found) => found,
            Err(refusal) if refusal.passing => {
                self.cold.insert(app.clone());
                self.agenda.push(Reverse((now + REFUSED_PAUSE_MS, Due::Recover(app.clone()))));
                return;
            }
            // What it holds cannot be understood; what is new can still be written.
            Err(_) => Recovered::default(),
        };
        let open =
            found.running.into_iter().map(|row| (row, true)).chain(found.queued.into_iter().map(|row| (row, false)));
        for (row, running) in open {
            // The ledger that holds a row owns it, whatever the app was called when it was written.
            let row = NewRun { app_id: app.clone(), ..row };
            if closed.contains(&row.run_id) || self.is_ours(app, &row.run_id, effects) {
                continue;
            }
            if running {
                let message = "the daemon that ran it is gone";
                self.conclude(now, &row, RunEnd::error(ErrorCode::Interrupted, message, now), None, effects);
            } else {
                self.requeue(now, row, effects);
            }
        }
        if self.cold.remove(app) {
            let recovered = self.schedule.recover(app, &found.watermarks, now);
            self.disarm(recovered.dropped, effects);
            self.set_watermarks(recovered.fresh, effects);
            for fire in recovered.fires {
                self.fire_cron(now, fire, effects);
            }
        }
    }

    /// Whether an open row belongs to a run of this daemon: then its app's folder was away for a moment, or has got
    /// another name, and the run goes with it.
    fn is_ours(&mut self, app: &AppId, run: &RunId, effects: &mut Vec<Effect>) -> bool {
        if let Some(closing) = self.closing.get_mut(run) {
            if closing.close.handle.app != *app {
                let handle = Handle::new(app.clone(), closing.close.handle.automation.clone());
                closing.close = Arc::new(Close { handle, ..(*closing.close).clone() });
                effects.push(Effect::CloseRun(Arc::clone(&closing.close)));
            }
            return true;
        }
        self.relocate(run, app)
    }

    /// Takes in a `queued` row that is in the ledger: one that an earlier daemon accepted and did not start, a retry, a
    /// failure handler's run.
    pub(super) fn requeue(&mut self, now: EpochMs, row: NewRun, effects: &mut Vec<Effect>) {
        let Some(automation) = self.registry.get(&row.handle()) else {
            let end = RunEnd {
                error: Some("its automation is gone".to_owned()),
                ..RunEnd::cancelled(ErrorCode::HandlerLoad, now)
            };
            self.conclude(now, &row, end, None, effects);
            return;
        };
        match automation.manifest.clone() {
            // Nobody is left to take the result.
            _ if row.parent_run_id.is_some() => {
                self.conclude(now, &row, RunEnd::cancelled(ErrorCode::ParentEnded, now), None, effects);
            }
            // It was accepted when there was a valid one, so it waits for the next.
            None => self.parked.entry(row.handle()).or_default().push(row),
            Some(manifest) => {
                let (id, due) = (row.run_id.clone(), row.trigger.not_before.filter(|at| *at > now));
                self.runs.insert(id.clone(), Run::new(row, manifest));
                match due {
                    Some(at) => self.agenda.push(Reverse((at, Due::Enter(id)))),
                    None => self.enter_lane(&id),
                }
            }
        }
    }

    /// Whether this is a run of ours; if so it belongs to `app` from now on.
    fn relocate(&mut self, id: &RunId, app: &AppId) -> bool {
        let Some(run) = self.runs.get_mut(id) else { return false };
        if run.handle.app == *app {
            return true;
        }
        let to = Handle::new(app.clone(), run.handle.automation.clone());
        let from = std::mem::replace(&mut run.handle, to.clone());
        run.row.app_id = app.clone();
        let (phase, rank, concurrency) = (run.phase, run.rank, run.manifest.concurrency);
        if phase == Phase::Delayed {
            return true;
        }
        let active = self.admission.is_active(&from, id);
        if phase == Phase::Ready {
            self.admission.step_out(id, &from.app, rank);
            self.admission.line_up(id.clone(), app, rank);
        }
        for promoted in self.admission.leave(&from, id, concurrency) {
            self.line_up_if_active(&promoted);
        }
        self.admission.adopt(&to, id, concurrency, active);
        self.line_up_if_active(id);
        true
    }
}
