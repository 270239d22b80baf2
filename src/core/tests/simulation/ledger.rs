//! A ledger as a list, with its watermarks.

use super::super::*;

#[derive(Default, Clone)]
pub struct Ledger {
    pub rows: BTreeMap<RunId, NewRun>,
    marks: Marks,
    /// Every cron instant that was taken: automation, trigger, instant.
    pub fired: Vec<(AutomationId, String, EpochMs)>,
}

/// The file is well, and what it was asked is wrong.
fn illegal(text: &str) -> Refusal {
    Refusal { message: text.to_owned(), passing: false }
}

impl Ledger {
    fn become_(&mut self, run: &RunId, next: RunStatus) -> Result<(), Refusal> {
        let row = self.rows.get_mut(run).ok_or_else(|| illegal("no such run"))?;
        if !row.status.may_become(next) {
            return Err(illegal("illegal transition"));
        }
        row.status = next;
        Ok(())
    }

    /// Does what it is asked; `None` when nobody waits for the answer.
    pub fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::OpenRun { run, .. } => {
                let id = run.run_id.clone();
                let mut recorded = Recorded::Inserted;
                if let (Some(key), Some(at)) = (&run.trigger.key, run.scheduled_for) {
                    let mark = self.marks.entry((run.automation_id.clone(), key.clone())).or_insert((0, true));
                    if at <= mark.0 {
                        recorded = Recorded::Duplicate;
                    } else {
                        *mark = (at, true);
                        self.fired.push((run.automation_id.clone(), key.clone(), at));
                    }
                }
                if recorded == Recorded::Inserted {
                    assert!(self.rows.insert(id.clone(), run).is_none(), "a row is opened once");
                }
                Some(Event::RunOpened { run: id, result: Ok(recorded) })
            }
            Effect::StartRun { run, handle, .. } => {
                let result = self.become_(&run, RunStatus::Running);
                Some(Event::RunStarted { run, app: handle.app, result })
            }
            Effect::CloseRun(close) => {
                let result = self.become_(&close.run, close.end.status);
                if let Some(next) = close.next.as_ref().filter(|_| result.is_ok()) {
                    assert!(self.rows.insert(next.run_id.clone(), next.clone()).is_none());
                }
                Some(Event::RunClosed { run: close.run.clone(), app: close.handle.app.clone(), result })
            }
            Effect::RecoverLedger { app } => {
                Some(Event::LedgerRecovered { app, result: Ok(found_in(&self.rows, &self.marks)) })
            }
            Effect::SetWatermarks { marks, .. } => {
                for (id, key, at) in marks {
                    let mark = self.marks.entry((id, key)).or_insert((at, true));
                    *mark = (mark.0.max(at), true);
                }
                None
            }
            Effect::DisarmTriggers { triggers, .. } => {
                for trigger in triggers {
                    self.marks.entry(trigger).and_modify(|mark| mark.1 = false);
                }
                None
            }
            _ => None,
        }
    }
}
