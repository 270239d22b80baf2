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
use crate::fire::{AppId, AutomationId, EpochMs, Handle, TriggerInfo};

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

/// What following a manifest changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// Of triggers that are new.
    pub fresh: Vec<Watermark>,
    /// Triggers that are armed no more.
    pub dropped: Vec<(Handle, String)>,
}

/// What a ledger's watermarks come to.
#[derive(Debug, Default, PartialEq)]
pub struct Caught {
    /// What was missed, as the policies say.
    pub fires: Vec<CronFire>,
    /// Of triggers that the ledger did not know.
    pub fresh: Vec<Watermark>,
    /// Triggers that the ledger takes for armed, and that are not.
    pub dropped: Vec<(Handle, String)>,
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
    /// When it was armed: nothing before that is its business.
    since: EpochMs,
    /// It was armed already before this daemon came: what its ledger has not seen was missed, also before `since`.
    before: bool,
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
    /// `armed_before`: they were armed before this daemon came, so that what its ledger has not seen is missed.
    pub fn follow(
        &mut self,
        handle: &Handle,
        manifest: Option<&Manifest>,
        now: EpochMs,
        armed_before: bool,
    ) -> Followed {
        let mut before = self.triggers.remove(handle).unwrap_or_default();
        let mut fresh = Vec::new();
        let mut armed: Vec<Armed> = Vec::new();
        for trigger in manifest.map_or(&[][..], |m| &m.triggers) {
            let (Trigger::Cron(cron), Some(manifest)) = (trigger, manifest) else { continue };
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
                before: armed_before,
            });
        }
        if !armed.is_empty() {
            self.triggers.insert(handle.clone(), armed);
        }
        Followed { fresh, dropped: before.into_iter().map(|a| (handle.clone(), a.key)).collect() }
    }

    /// Takes in the watermarks of the armed triggers that an app's ledger holds: what lies between them and `now` was
    /// missed. What [`Self::due`] gave out meanwhile is taken not to have been fired.
    pub fn recover(&mut self, app: &AppId, known: &[(AutomationId, String, EpochMs)], now: EpochMs) -> Caught {
        let mut known: HashMap<(AutomationId, String), EpochMs> =
            known.iter().map(|(id, key, at)| ((id.clone(), key.clone()), *at)).collect();
        let mut caught = Caught::default();
        let mut handles: Vec<Handle> = self.triggers.keys().filter(|h| h.app == *app).cloned().collect();
        handles.sort();
        for handle in handles {
            for armed in self.triggers.get_mut(&handle).into_iter().flatten() {
                let known = known.remove(&(handle.automation.clone(), armed.key.clone()));
                let watermark = match known {
                    Some(known) if armed.before => known,
                    known => known.map_or(armed.since, |known| known.max(armed.since)),
                };
                if known != Some(watermark) {
                    caught.fresh.push(Watermark { handle: handle.clone(), key: armed.key.clone(), at: watermark });
                }
                armed.settle(&handle, watermark, now, &mut caught.fires);
                // A clock that stands before the last fire waits until it has passed it.
                armed.next = armed.schedule.next_after(watermark.max(now));
                self.generation += 1;
                armed.generation = self.generation;
                if let Some(next) = armed.next {
                    self.heap.push(Reverse((next, armed.generation, handle.clone())));
                }
            }
        }
        let dropped = known.into_keys().map(|(id, key)| (Handle::new(app.clone(), id), key));
        caught.dropped = dropped.collect();
        caught.dropped.sort();
        caught
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
            armed.settle(&handle, at - 1, now, &mut fires);
            armed.next = armed.schedule.next_after(now.max(at));
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
    /// Deals with the instants in `(after, now]`: the latest is an ordinary fire when it is on time, what lies before it was
    /// missed.
    fn settle(&self, handle: &Handle, after: EpochMs, now: EpochMs, fires: &mut Vec<CronFire>) {
        let Some(latest) = self.schedule.prev_at_or_before(now).filter(|latest| *latest > after) else { return };
        let on_time = now - latest <= ON_TIME_MS;
        let missed_some = self.schedule.prev_at_or_before(latest - 1).is_some_and(|earlier| earlier > after);
        if !on_time || (missed_some && self.catch_up != CatchUp::Skip) {
            // One that makes up for others stands for the latest as well.
            self.missed(handle, after, now, fires);
            return;
        }
        if missed_some {
            self.missed(handle, after, latest - 1, fires);
        }
        fires.push(self.fire(handle, latest, None, true, false));
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
        schedule.follow(&handle(), Some(&manifest(cron, catch_up)), START, true);
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
        let fresh = schedule.follow(&handle(), Some(&both), START + 10 * MINUTE, false);
        assert_eq!(fresh.dropped, [(handle(), "0 * * * * UTC #2".to_owned())]);
        assert_eq!(fresh.fresh.iter().map(|w| w.key.as_str()).collect::<Vec<_>>(), ["30 * * * * UTC"]);
        assert_eq!(schedule.next_fires(&handle()), [Some(START + HOUR), Some(START + 30 * MINUTE)]);
        schedule.follow(&handle(), None, START, false);
        assert_eq!(schedule.next_deadline(), None);
        assert_eq!(schedule.due(START + 10 * HOUR), [], "what was disarmed never fires");
    }

    #[test]
    fn missed_instants_follow_the_policy() {
        for (policy, gap, expected) in [
            ("once", 5 * HOUR + 2 * MINUTE, vec![(300, true, Some(4))]),
            ("skip", 5 * HOUR + 2 * MINUTE, vec![(300, false, Some(5))]),
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
    fn a_fire_on_time_after_a_sleep_is_an_ordinary_one() {
        for (policy, expected) in [
            ("once", vec![(300, true, Some(4))]),
            ("skip", vec![(240, false, Some(4)), (300, true, None)]),
            (
                "all",
                vec![
                    (60, true, Some(0)),
                    (120, true, Some(0)),
                    (180, true, Some(0)),
                    (240, true, Some(0)),
                    (300, true, Some(0)),
                ],
            ),
        ] {
            let mut schedule = followed(&["0 * * * *"], policy);
            assert_eq!(told(&schedule.due(START + 5 * HOUR + 10)), expected, "{policy}");
        }
    }

    #[test]
    fn what_lies_between_the_ledger_and_now_was_missed() {
        let id = handle().automation;
        let known = |at| [(id.clone(), "0 * * * * UTC".to_owned(), at)];
        let recover = |schedule: &mut Schedule, at, now| {
            let caught = schedule.recover(&handle().app, &known(at), now);
            (told(&caught.fires), caught.fresh.len(), caught.dropped.len())
        };
        let mut schedule = followed(&["0 * * * *"], "once");
        assert_eq!(recover(&mut schedule, START - 3 * HOUR, START + 10), (vec![(0, true, Some(2))], 0, 0));

        // What came due while the ledger was not ready was not fired.
        let mut late = followed(&["0 * * * *"], "once");
        late.due(START + HOUR);
        assert_eq!(recover(&mut late, START, START + 3 * HOUR - 1), (vec![(120, true, Some(1))], 0, 0));
        assert_eq!(late.due(START + 3 * HOUR - 1), []);
        assert_eq!(late.next_deadline(), Some(START + 3 * HOUR));

        let caught = followed(&["0 * * * *"], "once").recover(&handle().app, &[], START);
        assert_eq!(
            (caught.fires.len(), caught.fresh.len()),
            (0, 1),
            "one that the ledger does not know missed nothing"
        );
        let caught = Schedule::default().recover(&handle().app, &known(START - HOUR), START);
        assert_eq!((caught.fires.len(), caught.dropped.len()), (0, 1), "one that is armed no more missed nothing");

        let mut ahead = followed(&["0 * * * *"], "once");
        assert_eq!(recover(&mut ahead, START + 2 * HOUR, START), (vec![], 0, 0));
        assert_eq!(ahead.next_deadline(), Some(START + 3 * HOUR), "a clock behind the last fire waits");
    }
}
