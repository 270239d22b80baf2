//! What has its time: when the core looks at the clock next, and what it does then.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{Effect, SWEEP_EVERY_MS, State};
use crate::core::manifest::HistoryKeep;
use crate::fire::{AppId, EpochMs, RunId};

/// A clock that goes back by less than this is being adjusted, and nobody has to be told.
const CLOCK_BACK_MS: i64 = 60_000;

/// What has its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A retry, or a run that could not be started, enters its lane.
    Enter(RunId),
    /// An end is offered again.
    Close(RunId),
    /// A cold app's ledger is asked again.
    Recover(AppId),
    /// An app's ledger held rows of another app that is still there: whether it is a copy, or that app's new name.
    Doubt(AppId),
    /// A failure handler's fire, refused under this id, is offered again.
    Fire(RunId),
}

impl State {
    /// When the core wants to look at the clock next, if nothing else happens before.
    pub fn next_deadline(&mut self) -> Option<EpochMs> {
        if self.stopping {
            let still = self.agenda.iter().filter(|Reverse((_, due))| self.is_due_while_stopping(due));
            return still.map(|Reverse((at, _))| *at).min();
        }
        let agenda = self.agenda.peek().map(|Reverse((at, _))| *at);
        [self.schedule.next_deadline(), agenda, self.next_sweep].into_iter().flatten().min()
    }

    /// Nothing begins any more, but what has ended is still to be written, and what a running run waits for to be started.
    fn is_due_while_stopping(&self, due: &Due) -> bool {
        match due {
            Due::Close(_) => true,
            Due::Enter(run) => self.runs.get(run).is_some_and(|run| run.rank > 0),
            Due::Recover(_) | Due::Doubt(_) | Due::Fire(_) => false,
        }
    }

    pub(super) fn on_clock(&mut self, now: EpochMs, effects: &mut Vec<Effect>) {
        if now < self.last_look - CLOCK_BACK_MS {
            effects.push(Effect::Notice(format!(
                "the clock went back by {} s: cron triggers that have fired ahead of it wait until it has passed those \
                 instants, because none fires twice",
                (self.last_look - now) / 1000
            )));
            self.pull_forward(now);
        }
        self.check_agenda(now, effects);
        self.last_look = now;
        if self.stopping {
            return;
        }
        for fire in self.schedule.due(now) {
            self.fire_cron(now, fire, effects);
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.next_sweep = None;
            for automation in self.registry.automations() {
                let Some(manifest) = &automation.manifest else { continue };
                if let HistoryKeep::Days(_) = manifest.keep {
                    self.next_sweep = Some(now + SWEEP_EVERY_MS);
                    effects.push(Effect::SweepHistory { handle: automation.handle.clone(), keep: manifest.keep });
                }
            }
        }
    }

    fn check_agenda(&mut self, now: EpochMs, effects: &mut Vec<Effect>) {
        while let Some(Reverse((at, _))) = self.agenda.peek()
            && *at <= now
            && let Some(Reverse((_, due))) = self.agenda.pop()
        {
            // What does not begin any more stays `queued`, for the next daemon.
            if self.stopping && !self.is_due_while_stopping(&due) {
                continue;
            }
            match due {
                Due::Enter(run) => self.enter_lane(&run),
                Due::Close(run) => {
                    if let Some(closing) = self.closing.get(&run) {
                        effects.push(Effect::CloseRun(Arc::clone(&closing.close)));
                    }
                }
                Due::Recover(app) => {
                    if let Some(cold) = self.cold.get_mut(&app) {
                        cold.scheduled = false;
                        self.recover_ledger(app, effects);
                    }
                }
                Due::Doubt(app) => {
                    if self.knows(&app) {
                        self.recover_ledger(app, effects);
                    }
                }
                Due::Fire(id) => self.fire_again(now, &id, effects),
            }
        }
    }

    /// After the clock went back: what waits for a ledger does not wait for the clock.
    fn pull_forward(&mut self, now: EpochMs) {
        let agenda = std::mem::take(&mut self.agenda).into_iter().map(|Reverse((at, due))| match due {
            Due::Close(_) | Due::Recover(_) | Due::Doubt(_) | Due::Fire(_) => Reverse((at.min(now), due)),
            Due::Enter(_) => Reverse((at, due)),
        });
        self.agenda = agenda.collect();
    }
}
