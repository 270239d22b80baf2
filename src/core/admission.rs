//! Who may run now: the concurrency mode of each automation, and the slots that all of them share.
//!
//! Each automation has a *lane*: the runs that count as active, and those that wait for one of them to end. An active
//! run needs a *slot*, of which there is a fixed number (running isolates); active runs without one are *ready*. Ready
//! runs are served deepest first (a child before new parents, or parents that wait for children would pile up), then
//! app by app in turn, first in first out within an app. A run that waits for a child gives its slot up meanwhile, so
//! that a full house of parents never starves its children.
//!
//! Such a *suspended* run still has its host process. Runs of rank `r` are started only while fewer than
//! `slots * (r + 2)` runs have a host: so each rank leaves a full set of slots to the next, and the hosts are bounded by
//! `slots * (MAX_INVOKE_DEPTH + 2)`. Ranks end there, waits through lanes need not: so when nothing runs at all, one run is
//! started in any case.
//!
//! Plain bookkeeping: it knows run ids and nothing of ledgers, hosts or time.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::core::manifest::{Concurrency, ConcurrencyMode};
use crate::fire::{AppId, Handle, RunId};

/// How a new fire of an automation is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is active; it runs as soon as there is a slot.
    Active,
    /// It waits in its lane.
    Waiting,
    /// It takes the place of these runs, which are to be cancelled once its row is written; it waits until they are gone.
    Supersedes(Vec<RunId>),
    /// There is no room: this run is active.
    Busy(RunId),
}

#[derive(Debug, Default)]
struct Lane {
    active: Vec<RunId>,
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    run: RunId,
    /// Accepted on its own terms (an invoke, a retry, a failure, a late fire): never superseded, never counted.
    patient: bool,
}

#[derive(Debug, Default)]
struct Level {
    queues: HashMap<AppId, VecDeque<RunId>>,
    turns: VecDeque<AppId>,
}

/// See the module text.
#[derive(Debug)]
pub struct Admission {
    lanes: HashMap<Handle, Lane>,
    /// Ready runs by depth.
    ready: BTreeMap<u32, Level>,
    slots: usize,
    in_use: usize,
    /// Runs that have given up their slot until their children end.
    suspended: usize,
}

impl Admission {
    /// `slots`: how many isolates may run at once.
    pub fn new(slots: usize) -> Self {
        Self { lanes: HashMap::new(), ready: BTreeMap::new(), slots: slots.max(1), in_use: 0, suspended: 0 }
    }

    /// Decides on a new fire and enters it into its lane, unless it is refused. A `patient` fire is never refused.
    pub fn admit(&mut self, handle: &Handle, run: &RunId, concurrency: Concurrency, patient: bool) -> Verdict {
        let lane = self.lanes.entry(handle.clone()).or_default();
        if lane.waiting.is_empty() && lane.active.len() < capacity(concurrency) {
            lane.active.push(run.clone());
            return Verdict::Active;
        }
        if concurrency.mode == ConcurrencyMode::Restart && !patient {
            let mut superseded: Vec<RunId> = lane.active.clone();
            superseded.extend(lane.waiting.iter().filter(|w| !w.patient).map(|w| w.run.clone()));
            lane.waiting.push_front(Waiter { run: run.clone(), patient });
            return Verdict::Supersedes(superseded);
        }
        let room = concurrency.mode == ConcurrencyMode::Queued
            && lane.waiting.iter().filter(|w| !w.patient).count() < concurrency.max as usize;
        if patient || room {
            lane.waiting.push_back(Waiter { run: run.clone(), patient });
            return Verdict::Waiting;
        }
        match lane.active.first().or(lane.waiting.front().map(|w| &w.run)) {
            Some(active) => Verdict::Busy(active.clone()),
            // Unreachable with a capacity of at least one, and harmless: nothing is active, so it may be.
            None => {
                lane.active.push(run.clone());
                Verdict::Active
            }
        }
    }

    /// Takes a run out of its lane, wherever it stands, and returns the waiters that become active by that.
    pub fn leave(&mut self, handle: &Handle, run: &RunId, concurrency: Concurrency) -> Vec<RunId> {
        let Some(lane) = self.lanes.get_mut(handle) else { return Vec::new() };
        lane.active.retain(|r| r != run);
        lane.waiting.retain(|w| w.run != *run);
        let mut promoted = Vec::new();
        while lane.active.len() < capacity(concurrency)
            && let Some(next) = lane.waiting.pop_front()
        {
            lane.active.push(next.run.clone());
            promoted.push(next.run);
        }
        if lane.active.is_empty() && lane.waiting.is_empty() {
            self.lanes.remove(handle);
        }
        promoted
    }

    /// Whether a run counts as active in its lane.
    pub fn is_active(&self, handle: &Handle, run: &RunId) -> bool {
        self.lanes.get(handle).is_some_and(|lane| lane.active.contains(run))
    }

    /// Puts a run that was in another lane into this one, at its end. `active`: it ran there already.
    pub fn adopt(&mut self, handle: &Handle, run: &RunId, concurrency: Concurrency, active: bool) {
        let lane = self.lanes.entry(handle.clone()).or_default();
        if active || (lane.waiting.is_empty() && lane.active.len() < capacity(concurrency)) {
            lane.active.push(run.clone());
        } else {
            lane.waiting.push_back(Waiter { run: run.clone(), patient: true });
        }
    }

    /// The runs that a waiting run waits for in its lane; none for an active one.
    pub fn ahead<'a>(&'a self, handle: &Handle, run: &'a RunId) -> impl Iterator<Item = &'a RunId> {
        let lane = self.lanes.get(handle).filter(|lane| lane.waiting.iter().any(|w| w.run == *run));
        lane.into_iter().flat_map(move |lane| {
            let before = lane.waiting.iter().map(|w| &w.run).take_while(move |other| *other != run);
            lane.active.iter().chain(before)
        })
    }

    /// Whether one more run of this rank may have a slot and a host.
    fn fits(&self, rank: u32) -> bool {
        let hosts = self.in_use + self.suspended;
        self.in_use == 0 || (self.in_use < self.slots && hosts < self.slots * (rank as usize + 2))
    }

    /// Takes a slot at once, if one is free and nobody of that rank or a deeper one is waiting for it.
    pub fn try_slot(&mut self, rank: u32) -> bool {
        let first = self.ready.last_key_value().is_none_or(|(deepest, _)| *deepest < rank);
        let free = first && self.fits(rank);
        self.in_use += usize::from(free);
        free
    }

    /// Lines an active run up for a slot.
    pub fn line_up(&mut self, run: RunId, app: &AppId, depth: u32) {
        let level = self.ready.entry(depth).or_default();
        let queue = level.queues.entry(app.clone()).or_default();
        if queue.is_empty() {
            level.turns.push_back(app.clone());
        }
        queue.push_back(run);
    }

    /// The next run to get a slot, which it then holds; none below `least_rank`.
    pub fn next_ready(&mut self, least_rank: u32) -> Option<RunId> {
        let (&rank, _) = self.ready.last_key_value()?;
        // Whoever is less deep fits even less.
        if rank < least_rank || !self.fits(rank) {
            return None;
        }
        let mut entry = self.ready.last_entry()?;
        let level = entry.get_mut();
        let app = level.turns.pop_front()?;
        let run = level.queues.get_mut(&app).and_then(VecDeque::pop_front);
        if level.queues.get(&app).is_some_and(|q| !q.is_empty()) {
            level.turns.push_back(app);
        } else {
            level.queues.remove(&app);
        }
        if level.turns.is_empty() {
            entry.remove();
        }
        self.in_use += usize::from(run.is_some());
        run
    }

    /// Takes a run out of the line.
    pub fn step_out(&mut self, run: &RunId, app: &AppId, depth: u32) {
        let Some(level) = self.ready.get_mut(&depth) else { return };
        if let Some(queue) = level.queues.get_mut(app) {
            queue.retain(|r| r != run);
            if queue.is_empty() {
                level.queues.remove(app);
                level.turns.retain(|a| a != app);
            }
        }
        if level.turns.is_empty() {
            self.ready.remove(&depth);
        }
    }

    /// Gives a slot back.
    pub fn free_slot(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }

    /// Gives a slot back until [`Self::retake_slot`]: for a parent that waits for its child.
    pub fn suspend_slot(&mut self) {
        self.free_slot();
        self.suspended += 1;
    }

    /// Takes a slot whether or not one is free: for a parent that goes on after its child has ended. The excess is
    /// bounded by the parents that were waiting, and is worked off before anything new starts.
    pub fn retake_slot(&mut self) {
        self.drop_suspended();
        self.in_use += 1;
    }

    /// A suspended run has ended.
    pub fn drop_suspended(&mut self) {
        self.suspended = self.suspended.saturating_sub(1);
    }

    /// Slots in use and in all.
    pub fn slots(&self) -> (usize, usize) {
        (self.in_use, self.slots)
    }

    /// Active runs that wait for a slot, and runs that wait in their lanes.
    pub fn waiting(&self) -> (usize, usize) {
        let ready = self.ready.values().flat_map(|l| l.queues.values()).map(VecDeque::len).sum();
        (ready, self.lanes.values().map(|l| l.waiting.len()).sum())
    }
}

fn capacity(concurrency: Concurrency) -> usize {
    match concurrency.mode {
        ConcurrencyMode::Parallel => (concurrency.max as usize).max(1),
        ConcurrencyMode::Single | ConcurrencyMode::Queued | ConcurrencyMode::Restart => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(n: u8) -> RunId {
        RunId::new(&format!("00000000-0000-7000-8000-0000000000{n:02}")).unwrap()
    }

    fn handle(text: &str) -> Handle {
        text.parse().unwrap()
    }

    fn mode(mode: ConcurrencyMode, max: u32) -> Concurrency {
        Concurrency { mode, max }
    }

    #[test]
    fn each_mode_meets_a_second_and_a_third_fire_in_its_way() {
        use ConcurrencyMode::{Parallel, Queued, Restart, Single};
        for (concurrency, second, third) in [
            (mode(Single, 1), Verdict::Busy(run(1)), Verdict::Busy(run(1))),
            (mode(Queued, 1), Verdict::Waiting, Verdict::Busy(run(1))),
            (mode(Parallel, 2), Verdict::Active, Verdict::Busy(run(1))),
            (mode(Restart, 1), Verdict::Supersedes(vec![run(1)]), Verdict::Supersedes(vec![run(1), run(2)])),
        ] {
            let mut admission = Admission::new(8);
            let x = handle("a/x");
            assert_eq!(admission.admit(&x, &run(1), concurrency, false), Verdict::Active);
            assert_eq!(admission.admit(&x, &run(2), concurrency, false), second, "{concurrency:?}");
            assert_eq!(admission.admit(&x, &run(3), concurrency, false), third, "{concurrency:?}");
            assert_eq!(admission.admit(&handle("a/y"), &run(4), concurrency, false), Verdict::Active);
        }
    }

    #[test]
    fn a_patient_fire_waits_its_turn_in_any_mode() {
        let mut admission = Admission::new(8);
        let (x, single) = (handle("a/x"), mode(ConcurrencyMode::Single, 1));
        admission.admit(&x, &run(1), single, false);
        assert_eq!(admission.admit(&x, &run(2), single, true), Verdict::Waiting);
        assert_eq!(admission.admit(&x, &run(3), single, false), Verdict::Busy(run(1)));
        assert_eq!(admission.leave(&x, &run(1), single), [run(2)]);
        assert!(admission.is_active(&x, &run(2)));
        assert_eq!(admission.leave(&x, &run(2), single), []);
        assert_eq!(admission.admit(&x, &run(4), single, false), Verdict::Active);
    }

    #[test]
    fn slots_go_to_the_deepest_then_in_turns_between_apps() {
        let mut admission = Admission::new(1);
        assert!(admission.try_slot(0));
        assert!(!admission.try_slot(0));
        let (a, b) = (AppId::new("a").unwrap(), AppId::new("b").unwrap());
        for (n, app, depth) in [(1, &a, 0), (2, &a, 0), (3, &b, 0), (4, &a, 1)] {
            admission.line_up(run(n), app, depth);
        }
        admission.step_out(&run(9), &a, 0);
        let mut order = Vec::new();
        for _ in 0..5 {
            admission.free_slot();
            order.extend(admission.next_ready(0));
        }
        assert_eq!(order, [run(4), run(1), run(3), run(2)]);
        assert_eq!(admission.waiting(), (0, 0));
    }

    #[test]
    fn who_steps_out_of_the_line_is_not_served() {
        let mut admission = Admission::new(1);
        let a = AppId::new("a").unwrap();
        admission.line_up(run(1), &a, 0);
        assert!(!admission.try_slot(0), "a newcomer does not overtake the line");
        admission.step_out(&run(1), &a, 0);
        assert_eq!(admission.next_ready(0), None);
        assert!(admission.try_slot(0));
    }
}
