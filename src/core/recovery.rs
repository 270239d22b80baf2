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
                self.on_refused(now, app, &refusal);
                if let Some(cold) = self.cold.get_mut(app)
                    && cold.reason.as_ref() != Some(&refusal.message)
                {
                    effects.push(Effect::Notice(format!("{app}: its ledger cannot be used: {}", refusal.message)));
                    cold.reason = Some(refusal.message);
                }
                return;
            }
            // What it holds cannot be understood; what is new can still be written.
            Err(refusal) => {
                effects.push(Effect::Notice(format!("{app}: its ledger cannot be read: {}", refusal.message)));
                Recovered::default()
            }
        };
        self.unrecovered.remove(app);
        let running = found.running.into_iter().map(|row| (row, true));
        for (row, running) in running.chain(found.queued.into_iter().map(|row| (row, false))) {
            // The ledger that holds a row owns it, whatever the app was called when it was written.
            let row = NewRun { app_id: app.clone(), ..row };
            if closed.contains(&(app.clone(), row.run_id.clone())) || self.is_ours(now, app, &row, effects) {
                continue;
            }
            if running {
                let message = "the daemon that ran it is gone";
                self.conclude(now, &row, RunEnd::error(ErrorCode::Interrupted, message, now), None, effects);
            } else {
                self.requeue(now, row, effects);
            }
        }
        if self.cold.remove(app).is_some() {
            let recovered = self.schedule.recover(app, &found.watermarks, now);
            self.disarm(recovered.dropped, effects);
            self.set_watermarks(recovered.fresh, effects);
            for fire in recovered.fires {
                self.fire_cron(now, fire, effects);
            }
        }
    }

    /// A ledger refused something that a recovery makes up for: it is asked again after a while.
    pub(super) fn on_refused(&mut self, now: EpochMs, app: &AppId, refusal: &Refusal) {
        if !refusal.passing || !self.scheduling || !self.knows(app) {
            return;
        }
        let cold = self.cold.entry(app.clone()).or_default();
        if !std::mem::replace(&mut cold.scheduled, true) {
            self.agenda.push(Reverse((now + REFUSED_PAUSE_MS, Due::Recover(app.clone()))));
        }
    }

    /// Whether an open row belongs to a run of this daemon: then its app's folder was away for a moment, or has got
    /// another name, and the run goes with it.
    fn is_ours(&mut self, now: EpochMs, app: &AppId, row: &NewRun, effects: &mut Vec<Effect>) -> bool {
        let run = &row.run_id;
        let owner = self.closing.get(run).map(|closing| &closing.close.handle.app);
        let Some(owner) = owner.or(self.runs.get(run).map(|run| &run.handle.app)).cloned() else { return false };
        if owner == *app {
            return true;
        }
        if self.knows(&owner) {
            let asked = self.doubted.iter().any(|(doubted, _)| doubted == app);
            if self.doubted.insert((app.clone(), run.clone())) {
                if !asked {
                    self.agenda.push(Reverse((now + DOUBT_MS, Due::Doubt(app.clone()))));
                }
                return true;
            }
            self.doubted.remove(&(app.clone(), run.clone()));
            // A copy of an app brings copies of its open rows. Nobody runs them, and nothing follows from their end.
            // When it is refused, the next recovery finds them again.
            let end = RunEnd {
                error: Some(format!("a copy of a run of {owner}")),
                ..RunEnd::cancelled(ErrorCode::Interrupted, now)
            };
            let close = Close { run: run.clone(), handle: row.handle(), end, keep: HistoryKeep::All, next: None };
            effects.push(Effect::CloseRun(Arc::new(close)));
            return true;
        }
        self.renamed.insert(owner, app.clone());
        if let Some(closing) = self.closing.get_mut(run) {
            let handle = Handle::new(app.clone(), closing.close.handle.automation.clone());
            let mut close = Close { handle, ..(*closing.close).clone() };
            if let Some(next) = &mut close.next {
                next.app_id = app.clone();
            }
            closing.close = Arc::new(close);
            effects.push(Effect::CloseRun(Arc::clone(&closing.close)));
            return true;
        }
        self.relocate(run, app);
        true
    }

    /// Takes in a `queued` row that is in the ledger: one that an earlier daemon accepted and did not start, a retry, a
    /// failure handler's run.
    pub(super) fn requeue(&mut self, now: EpochMs, row: NewRun, effects: &mut Vec<Effect>) {
        let parked = self.parked.get(&row.handle()).is_some_and(|rows| rows.iter().any(|r| r.run_id == row.run_id));
        if parked || self.runs.contains_key(&row.run_id) || self.closing.contains_key(&row.run_id) {
            return;
        }
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

    /// The run belongs to `app` from now on.
    fn relocate(&mut self, id: &RunId, app: &AppId) {
        let Some(run) = self.runs.get_mut(id) else { return };
        let to = Handle::new(app.clone(), run.handle.automation.clone());
        let from = std::mem::replace(&mut run.handle, to.clone());
        run.row.app_id = app.clone();
        let (phase, rank, concurrency) = (run.phase, run.rank, run.manifest.concurrency);
        if phase == Phase::Delayed {
            return;
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
    }

    /// Cancels a row that waits for a valid manifest. False when there is none of that id.
    pub(super) fn cancel_parked(
        &mut self,
        now: EpochMs,
        id: &RunId,
        why: ErrorCode,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let found = self.parked.values_mut().find_map(|rows| {
            let at = rows.iter().position(|row| row.run_id == *id)?;
            Some(rows.swap_remove(at))
        });
        let Some(row) = found else { return false };
        self.parked.retain(|_, rows| !rows.is_empty());
        self.conclude(now, &row, RunEnd::cancelled(why, now), None, effects);
        true
    }
}
