//! When cron triggers fire: what is armed, what is due, and what was missed.
//!
//! A trigger is known within its automation by its *key*: the normalised expression and the zone, with `#2`, `#3` …
//! behind a repeated one. A fire is known by (automation, key, scheduled instant) and happens once: each trigger keeps a
//! *watermark*, the latest instant that was dealt with (fired, skipped or waived), and nothing at or before it fires again,
//! whatever the clock does. The ledger holds the same watermark, so that this outlasts the process.
//!
//! Waiting costs nothing: one heap of deadlines, whose earliest is the daemon's one timer. An entry of an older
//! generation (its trigger was edited, disabled or removed) is dropped when it comes up. All work is bounded whatever the
//! gap: a clock that jumps ten years costs a few calendar steps per trigger.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::core::cron::CronSchedule;
use crate::core::manifest::{CatchUp, Manifest, Trigger};
use crate::fire::{AppId, EpochMs, Handle, TriggerInfo};

/// A fire this much behind its instant is an ordinary one; later, it was missed. Longer than the 30 s between two looks
/// at the clock, so that a busy machine is not taken for a sleeping one.
const ON_TIME_MS: i64 = 60_000;
/// Missed instants older than this are only counted.
const CATCH_UP_WINDOW_MS: i64 = 24 * 3_600_000;
/// How many missed instants `catchUp: "all"` fires at the most.
const CATCH_UP_MAX: usize = 100;
/// Counting stops here; more missed fires than this are told as this many.
const COUNT_CAP: u64 = 1_000_000;

/// What a due trigger asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct CronFire {
    pub handle: Handle,
    pub trigger: TriggerInfo,
    pub scheduled_for: EpochMs,
    /// False: record a `skipped` row instead of a run.
    pub run: bool,
    /// True for fires that make up for missed ones: they wait their turn instead of being skipped as an overlap.
    pub late: bool,
}

/// A watermark to be written to an app's ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermark {
    pub handle: Handle,
    pub key: String,
    pub at: EpochMs,
}

#[derive(Debug)]
struct Armed {
    key: String,
    expr: String,
    tz: Option<String>,
    schedule: CronSchedule,
    catch_up: CatchUp,
    generation: u64,
    next: Option<EpochMs>,
    /// When it was armed: nothing before that is its business, but for [`Schedule::recover`].
    since: EpochMs,
    watermark: EpochMs,
}

/// See the module text.
#[derive(Debug, Default)]
pub struct Schedule {
    triggers: HashMap<Handle, Vec<Armed>>,
    heap: BinaryHeap<Reverse<(EpochMs, u64, Handle)>>,
    generation: u64,
}

impl Schedule {
    /// Makes the armed triggers of one automation those of `manifest` (`None`: disabled, gone or never valid). Triggers
    /// whose key stays keep their deadline and watermark; the others start from `now`: nothing is caught up.
    /// Returns the watermarks of those that are new.
    pub fn follow(&mut self, handle: &Handle, manifest: Option<&Manifest>, now: EpochMs) -> Vec<Watermark> {
        let mut before = self.triggers.remove(handle).unwrap_or_default();
        let Some(manifest) = manifest else { return Vec::new() };
        let mut fresh = Vec::new();
        let mut armed: Vec<Armed> = Vec::new();
        for trigger in &manifest.triggers {
            let Trigger::Cron(cron) = trigger else { continue };
            let key = key_of(&cron.schedule, &armed);
            if let Some(at) = before.iter().position(|a| a.key == key) {
                let mut kept = before.swap_remove(at);
                kept.catch_up = manifest.catch_up;
                armed.push(kept);
                continue;
            }
            self.generation += 1;
            let next = cron.schedule.next_after(now);
            if let Some(next) = next {
                self.heap.push(Reverse((next, self.generation, handle.clone())));
            }
            fresh.push(Watermark { handle: handle.clone(), key: key.clone(), at: now });
            armed.push(Armed {
                key,
                expr: cron.expr.clone(),
                tz: cron.tz.clone(),
                schedule: cron.schedule,
                catch_up: manifest.catch_up,
                generation: self.generation,
                next,
                since: now,
                watermark: now,
            });
        }
        if !armed.is_empty() {
            self.triggers.insert(handle.clone(), armed);
        }
        fresh
    }

    /// Takes in the watermarks that an app's ledger held when the daemon started: what lies between them and `now` was
    /// missed. Returns what to fire or skip, and the watermarks of triggers that the ledger did not know.
    pub fn recover(
        &mut self,
        app: &AppId,
        known: &[(crate::fire::AutomationId, String, EpochMs)],
        now: EpochMs,
    ) -> (Vec<CronFire>, Vec<Watermark>) {
        let known: HashMap<(&str, &str), EpochMs> =
            known.iter().map(|(id, key, at)| ((id.as_str(), key.as_str()), *at)).collect();
        let (mut fires, mut fresh) = (Vec::new(), Vec::new());
        let mut handles: Vec<&Handle> = self.triggers.keys().filter(|h| h.app == *app).collect();
        handles.sort();
        for handle in handles.into_iter().cloned().collect::<Vec<_>>() {
            for armed in self.triggers.get_mut(&handle).into_iter().flatten() {
                let Some(&watermark) = known.get(&(handle.automation.as_str(), armed.key.as_str())) else {
                    // Not later than that: what has fired since is on its way to the ledger, and must not be taken for
                    // a repetition.
                    fresh.push(Watermark { handle: handle.clone(), key: armed.key.clone(), at: armed.since });
                    continue;
                };
                // What fired between the start and this moment is not missed.
                let until = armed.since.min(now);
                if watermark < until {
                    armed.missed(&handle, watermark, until, &mut fires);
                } else if watermark > armed.watermark {
                    // The clock stands before the last fire: wait until it has passed it.
                    armed.watermark = watermark;
                    self.generation += 1;
                    armed.generation = self.generation;
                    armed.next = armed.schedule.next_after(watermark.max(now));
                    if let Some(next) = armed.next {
                        self.heap.push(Reverse((next, armed.generation, handle.clone())));
                    }
                }
            }
        }
        (fires, fresh)
    }

    /// Everything whose instant has come by `now`, in the order of the instants, and re-arms it.
    pub fn due(&mut self, now: EpochMs) -> Vec<CronFire> {
        let mut fires = Vec::new();
        while let Some(Reverse((at, generation, handle))) = self.heap.peek().cloned() {
            let current = self
                .triggers
                .get_mut(&handle)
                .and_then(|list| list.iter_mut().find(|a| a.generation == generation && a.next == Some(at)));
            let Some(armed) = current else {
                self.heap.pop();
                continue;
            };
            if at > now {
                break;
            }
            self.heap.pop();
            armed.fire_due(&handle, at, now, &mut fires);
            if let Some(next) = armed.next {
                self.heap.push(Reverse((next, generation, handle)));
            }
        }
        fires
    }

    /// The earliest instant at which [`Self::due`] will have something.
    pub fn next_deadline(&mut self) -> Option<EpochMs> {
        while let Some(Reverse((at, generation, handle))) = self.heap.peek() {
            let live = self
                .triggers
                .get(handle)
                .is_some_and(|list| list.iter().any(|a| a.generation == *generation && a.next == Some(*at)));
            if live {
                return Some(*at);
            }
            self.heap.pop();
        }
        None
    }

    /// The next fire of each cron trigger of one automation, in the order of the manifest.
    pub fn next_fires(&self, handle: &Handle) -> Vec<Option<EpochMs>> {
        self.triggers.get(handle).into_iter().flatten().map(|a| a.next).collect()
    }

    /// How many triggers are armed.
    pub fn armed(&self) -> usize {
        self.triggers.values().map(Vec::len).sum()
    }
}

impl Armed {
    fn fire_due(&mut self, handle: &Handle, at: EpochMs, now: EpochMs, fires: &mut Vec<CronFire>) {
        let latest = self.schedule.prev_at_or_before(now).unwrap_or(at).max(at);
        if latest == at && now - at <= ON_TIME_MS {
            fires.push(self.fire(handle, at, None, true, false));
        } else {
            self.missed(handle, at - 1, now, fires);
        }
        self.watermark = latest;
        self.next = self.schedule.next_after(now.max(latest));
    }

    /// Deals with the instants in `(after, until]` as `catchUp` says.
    fn missed(&self, handle: &Handle, after: EpochMs, until: EpochMs, fires: &mut Vec<CronFire>) {
        let Some(latest) = self.schedule.prev_at_or_before(until).filter(|&latest| latest > after) else { return };
        let total = self.schedule.count_between(after, until, COUNT_CAP).max(1);
        let horizon = until - CATCH_UP_WINDOW_MS;
        if self.catch_up == CatchUp::Skip || latest < horizon {
            fires.push(self.fire(handle, latest, Some(total), false, true));
            return;
        }
        let mut instants = vec![latest];
        if self.catch_up == CatchUp::All {
            while instants.len() < CATCH_UP_MAX
                && let Some(earlier) = self.schedule.prev_at_or_before(instants[instants.len() - 1] - 1)
                && earlier > after
                && earlier >= horizon
            {
                instants.push(earlier);
            }
        }
        let mut waived = Some(total.saturating_sub(instants.len() as u64));
        for &at in instants.iter().rev() {
            fires.push(self.fire(handle, at, waived.take().or(Some(0)), true, true));
        }
    }

    fn fire(&self, handle: &Handle, at: EpochMs, missed: Option<u64>, run: bool, late: bool) -> CronFire {
        CronFire {
            handle: handle.clone(),
            trigger: TriggerInfo {
                key: Some(self.key.clone()),
                expr: Some(self.expr.clone()),
                tz: self.tz.clone(),
                scheduled_for: Some(at),
                missed,
                reason: (!run).then(|| "missed".to_owned()),
                ..TriggerInfo::default()
            },
            scheduled_for: at,
            run,
            late,
        }
    }
}

fn key_of(schedule: &CronSchedule, before: &[Armed]) -> String {
    let base = format!("{} {}", schedule.expr(), schedule.tz_name());
    let mut key = base.clone();
    let mut n = 1;
    while before.iter().any(|a| a.key == key) {
        n += 1;
        key = format!("{base} #{n}");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::manifest;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    /// 2026-03-02T00:00:00Z, a Monday.
    const START: i64 = 1_772_409_600_000;

    fn manifest(cron: &[&str], catch_up: &str) -> Manifest {
        let triggers: Vec<String> = cron.iter().map(|e| format!(r#"{{"kind":"cron","expr":"{e}"}}"#)).collect();
        let text = format!(
            r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}},"catchUp":"{catch_up}","triggers":[{}]}}"#,
            triggers.join(",")
        );
        let parsed = manifest::parse(text.as_bytes(), &AppId::new("a").unwrap());
        parsed.manifest.unwrap_or_else(|| panic!("{:?}", parsed.problems))
    }

    fn handle() -> Handle {
        "a/x".parse().unwrap()
    }

    fn followed(cron: &[&str], catch_up: &str) -> Schedule {
        let mut schedule = Schedule::default();
        schedule.follow(&handle(), Some(&manifest(cron, catch_up)), START);
        schedule
    }

    fn told(fires: &[CronFire]) -> Vec<(i64, bool, Option<u64>)> {
        fires.iter().map(|f| ((f.scheduled_for - START) / MINUTE, f.run, f.trigger.missed)).collect()
    }

    #[test]
    fn registration_fires_nothing_and_a_due_trigger_fires_once() {
        let mut schedule = followed(&["*/5 * * * *"], "once");
        assert_eq!(schedule.due(START), []);
        assert_eq!(schedule.next_deadline(), Some(START + 5 * MINUTE));
        assert_eq!(told(&schedule.due(START + 5 * MINUTE)), [(5, true, None)]);
        assert_eq!(schedule.due(START + 5 * MINUTE), []);
        assert_eq!(schedule.due(START + 3 * MINUTE), [], "a clock that steps back repeats nothing");
        assert_eq!(schedule.next_deadline(), Some(START + 10 * MINUTE));
    }

    #[test]
    fn a_kept_key_keeps_its_deadline_and_a_new_one_starts_from_now() {
        let mut schedule = followed(&["0 * * * *", "0 * * * *"], "once");
        let both = manifest(&["0 * * * *", "30 * * * *"], "once");
        let fresh = schedule.follow(&handle(), Some(&both), START + 10 * MINUTE);
        assert_eq!(fresh.iter().map(|w| w.key.as_str()).collect::<Vec<_>>(), ["30 * * * * UTC"]);
        assert_eq!(schedule.next_fires(&handle()), [Some(START + HOUR), Some(START + 30 * MINUTE)]);
        schedule.follow(&handle(), None, START);
        assert_eq!(schedule.next_deadline(), None);
        assert_eq!(schedule.due(START + 10 * HOUR), [], "what was disarmed never fires");
    }

    #[test]
    fn missed_instants_follow_the_policy() {
        for (policy, gap, expected) in [
            ("once", 5 * HOUR + MINUTE, vec![(300, true, Some(4))]),
            ("skip", 5 * HOUR + MINUTE, vec![(300, false, Some(5))]),
            ("all", 3 * HOUR + MINUTE, vec![(60, true, Some(0)), (120, true, Some(0)), (180, true, Some(0))]),
        ] {
            let mut schedule = followed(&["0 * * * *"], policy);
            assert_eq!(told(&schedule.due(START + gap)), expected, "{policy}");
            assert_eq!(schedule.due(START + gap), [], "{policy}");
        }
    }

    #[test]
    fn catching_up_is_bounded_by_a_day_and_a_hundred() {
        let ten_years = 3650 * 24 * HOUR;
        let mut all = followed(&["* * * * *"], "all");
        let fires = all.due(START + ten_years);
        assert_eq!(fires.len(), 100);
        assert_eq!(fires[0].trigger.missed, Some(COUNT_CAP - 100));
        assert!(fires.is_sorted_by_key(|f| f.scheduled_for));

        let mut weekly = followed(&["0 0 * * 2"], "once");
        let fires = weekly.due(START + 5 * 24 * HOUR);
        assert_eq!(told(&fires), [(24 * 60, false, Some(1))], "older than a day: counted, not run");
    }

    #[test]
    fn what_lies_between_the_ledger_and_now_was_missed() {
        let id = handle().automation;
        let mut schedule = followed(&["0 * * * *"], "once");
        let known = [(id.clone(), "0 * * * * UTC".to_owned(), START - 3 * HOUR)];
        let (fires, fresh) = schedule.recover(&handle().app, &known, START + 10);
        assert_eq!((told(&fires), fresh), (vec![(0, true, Some(2))], vec![]));

        let (fires, fresh) = followed(&["0 * * * *"], "once").recover(&handle().app, &[], START);
        assert_eq!((fires.len(), fresh.len()), (0, 1), "a trigger that the ledger does not know was never missed");

        let mut ahead = followed(&["0 * * * *"], "once");
        let known = [(id, "0 * * * * UTC".to_owned(), START + 2 * HOUR)];
        assert_eq!(ahead.recover(&handle().app, &known, START).0, []);
        assert_eq!(ahead.next_deadline(), Some(START + 3 * HOUR), "a clock behind the last fire waits");
    }
}
