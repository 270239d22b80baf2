//! The functional core: every scheduling decision, and nothing else.
//!
//! [`State::on_event`] is the only place where scheduling state advances. It takes one [`Event`] and the wall clock, and
//! returns the [`Effect`]s that the daemon is to perform, in order. It is plain synchronous code: no clock, no files, no
//! SQLite, no V8, no tokio; even the source of run ids is handed in. So every decision can be tested with a table and a
//! virtual clock.
//!
//! A fire enters the core four times: when it is asked for (and [`Effect::OpenRun`] writes its row), when its row is
//! written (and [`Effect::Launch`] starts it), when it has ended ([`Effect::CloseRun`]), and when its end is written: only
//! then are callers told, and what follows from it begins. A completion of a run that is not known any more changes
//! nothing.
//!
//! A ledger may refuse any of it. What only hinders for a while (a full disk, a lock) is asked again: an end until it is
//! written, a start after a pause, and an app's missed cron fires when its ledger can be used again.

pub mod admission;
mod agenda;
pub mod cron;
pub mod disk;
mod ends;
mod event;
mod firing;
pub mod json_depth;
pub mod json_schema;
pub mod manifest;
pub mod near_name;
mod recovery;
pub mod registry;
mod requests;
pub mod run;
pub mod schedule;
pub mod shortened;
mod transitions;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use agenda::Due;
pub use event::{Answer, Effect, Event, FireRequest, Recorded, Recovered, Refusal, Skip, Token};

use crate::core::admission::Admission;
use crate::core::disk::DiskBatch;
use crate::core::manifest::{HistoryKeep, Manifest, Trigger};
use crate::core::registry::{Change, Registry};
use crate::core::run::{Close, NewRun, RunEnd, RunSpec};
use crate::core::schedule::{CronFire, Schedule, Watermark};
use crate::fire::{AppId, AutomationId, EpochMs, ErrorCode, Handle, RunId, RunStatus, TriggerInfo, TriggerOrigin};

/// `ctx.invoke` nests at most this deep.
pub const MAX_INVOKE_DEPTH: u32 = 8;
/// A chain of failure handlers is at most this long.
pub const MAX_FAILURE_DEPTH: u32 = 3;
/// `{days}` histories are swept this often.
const SWEEP_EVERY_MS: i64 = 3_600_000;
/// A ledger that refused a start or a recovery is asked again after this long.
const REFUSED_PAUSE_MS: i64 = 30_000;
/// An end that a ledger refused is offered again after this long, doubled each time up to [`REFUSED_PAUSE_MS`].
const FIRST_CLOSE_PAUSE_MS: i64 = 1_000;
/// A folder that gets another name is seen to come and to go, in any order. What looks like a copy of an app is one when
/// the other app is still there after this long.
const DOUBT_MS: i64 = 3_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its row is being written; `launch`: as `running`.
    Opening {
        launch: bool,
    },
    /// In its automation's lane.
    Waiting,
    /// A retry before its time.
    Delayed,
    /// In the line for a slot.
    Ready,
    /// Its row is being set to `running`.
    Starting,
    Running,
}

#[derive(Debug)]
struct Run {
    row: NewRun,
    handle: Handle,
    manifest: Arc<Manifest>,
    /// How many runs stand above it.
    depth: u32,
    /// Its place in the line for a slot: its depth, or that of the deepest run that waits for it.
    rank: u32,
    phase: Phase,
    holds_slot: bool,
    /// It has given its slot up while it waits for children; its host is still there.
    suspended: bool,
    /// Children that it waits for.
    children: u32,
    /// Runs whose place it takes once its row is written.
    supersedes: Vec<RunId>,
    /// Why it is being cancelled.
    ending: Option<ErrorCode>,
    opened: Option<Token>,
    ended: Option<Token>,
}

/// A run that has ended, until that is written.
#[derive(Debug)]
struct Closing {
    close: Arc<Close>,
    /// A failure handler in another app, fired when the end is written: its row cannot share the transaction.
    failure: Option<FireRequest>,
    ended: Option<Token>,
    refusals: u32,
}

/// An app whose ledger is to be asked what the app has missed.
#[derive(Debug, Default)]
struct Cold {
    /// The agenda says when it is asked next.
    scheduled: bool,
    /// Why it refused last; told once.
    reason: Option<String>,
}

/// A skipped row that is being written.
#[derive(Debug)]
struct Skipping {
    handle: Handle,
    /// Of the cron trigger.
    key: Option<String>,
    /// Who is to be told.
    opened: Option<Token>,
}

/// One open run, for whoever looks.
#[derive(Debug, Clone)]
pub struct OpenRun {
    pub run: RunId,
    pub handle: Handle,
    /// It runs, or is about to: it does not wait for anything but its ledger.
    pub active: bool,
}

/// All scheduling state. See the module text.
pub struct State {
    pub registry: Registry,
    pub schedule: Schedule,
    admission: Admission,
    runs: HashMap<RunId, Run>,
    closing: HashMap<RunId, Closing>,
    skipping: HashMap<RunId, Skipping>,
    /// Cron triggers with a row that is being written, and the fires that wait for it: the ledger takes no instant below
    /// the last, so each is offered when the one before it is written.
    firing: HashMap<(Handle, String), VecDeque<CronFire>>,
    /// Fires of failure handlers that were refused.
    refused: HashMap<RunId, FireRequest>,
    agenda: BinaryHeap<Reverse<(EpochMs, Due)>>,
    /// Apps whose ledger is to be asked what they have missed: all that were there when the daemon started, and those
    /// whose ledger has refused a cron fire. Until it answers, nothing of theirs is fired by cron; it is made up for.
    cold: HashMap<AppId, Cold>,
    /// Apps of the first scan whose ledger has not answered yet: only their triggers can have missed what lies before this
    /// daemon.
    unrecovered: HashSet<AppId>,
    /// Apps that are gone, and the name under which their rows were found again.
    renamed: HashMap<AppId, AppId>,
    /// Rows in the ledger of this app that looked like copies when they were last seen.
    doubted: HashSet<(AppId, RunId)>,
    /// Ledgers that are being recovered, and runs whose end was written meanwhile: a ledger that was read before that
    /// still tells of them as open.
    recoveries: usize,
    closed_meanwhile: HashSet<(AppId, RunId)>,
    /// Rows that an earlier daemon left queued, of automations whose manifest was never valid in this one's life.
    parked: HashMap<Handle, Vec<NewRun>>,
    last_look: EpochMs,
    scheduling: bool,
    seen_full_scan: bool,
    stopping: bool,
    next_sweep: Option<EpochMs>,
    new_id: Box<dyn FnMut(EpochMs) -> RunId + Send>,
}

impl State {
    /// `slots`: how many isolates may run at once. `new_id` makes run ids, unique and rising with the time given.
    /// Without `scheduling` nothing is armed and no ledger is recovered: for a process that runs what it is asked to and
    /// owns nothing else.
    pub fn new(slots: usize, scheduling: bool, new_id: Box<dyn FnMut(EpochMs) -> RunId + Send>) -> Self {
        Self {
            registry: Registry::default(),
            schedule: Schedule::default(),
            admission: Admission::new(slots),
            runs: HashMap::new(),
            closing: HashMap::new(),
            skipping: HashMap::new(),
            firing: HashMap::new(),
            refused: HashMap::new(),
            agenda: BinaryHeap::new(),
            cold: HashMap::new(),
            unrecovered: HashSet::new(),
            renamed: HashMap::new(),
            doubted: HashSet::new(),
            recoveries: 0,
            closed_meanwhile: HashSet::new(),
            parked: HashMap::new(),
            last_look: 0,
            scheduling,
            seen_full_scan: false,
            stopping: false,
            next_sweep: None,
            new_id,
        }
    }

    /// Advances by one event. `now` is the wall clock.
    pub fn on_event(&mut self, now: EpochMs, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::DiskChanged(batch) => self.on_disk(now, batch, &mut effects),
            Event::ClockChecked => self.on_clock(now, &mut effects),
            Event::LedgerRecovered { app, result } => self.on_recovered(now, &app, result, &mut effects),
            Event::FireRequested(request) => self.on_request(now, request, &mut effects),
            Event::CancelRequested { run, why, token } => {
                let found = self.cancel(now, &run, why, &mut effects);
                if let Some(token) = token {
                    let answer = if found { Answer::Cancelling } else { Answer::NotOpen };
                    effects.push(Effect::Answer { token, answer });
                }
            }
            Event::RunOpened { run, result } => self.on_opened(now, &run, result, &mut effects),
            Event::RunStarted { run, app, result } => self.on_started(now, &run, &app, result, &mut effects),
            Event::TriggersNoted { app, result } => {
                if let Err(refusal) = result {
                    self.on_refused(now, &app, &refusal);
                }
            }
            Event::RunEnded { run, end } => self.on_ended(now, &run, end, &mut effects),
            Event::RunClosed { run, app, result } => self.on_closed(now, &run, &app, result, &mut effects),
            Event::Stopping => self.stopping = true,
        }
        self.serve_ready(now, &mut effects);
        effects
    }

    /// Nothing runs, and every end is written.
    pub fn is_idle(&self) -> bool {
        self.closing.is_empty() && !self.open_runs().any(|run| run.active)
    }

    /// Nothing new is fired any more.
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Every run that has not ended.
    pub fn open_runs(&self) -> impl Iterator<Item = OpenRun> + '_ {
        self.runs.iter().map(|(id, run)| OpenRun {
            run: id.clone(),
            handle: run.handle.clone(),
            active: matches!(run.phase, Phase::Opening { launch: true } | Phase::Starting | Phase::Running),
        })
    }

    /// Slots in use and in all; runs waiting for a slot, and in their lanes.
    pub fn load(&self) -> ((usize, usize), (usize, usize)) {
        (self.admission.slots(), self.admission.waiting())
    }

    fn on_disk(&mut self, now: EpochMs, batch: DiskBatch, effects: &mut Vec<Effect>) {
        let cold_start = batch.full && !self.seen_full_scan;
        self.seen_full_scan |= batch.full;
        let changes = self.registry.apply(batch);
        if !self.scheduling {
            return;
        }
        let (mut fresh, mut dropped) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::AppAdded(app) => {
                    self.renamed.remove(&app);
                    if cold_start {
                        self.unrecovered.insert(app.clone());
                    }
                    if self.unrecovered.contains(&app) {
                        self.cold.insert(app.clone(), Cold::default());
                    }
                    self.recover_ledger(app, effects);
                }
                Change::AppRemoved(app) => {
                    self.cold.remove(&app);
                    self.parked.retain(|handle, _| handle.app != app);
                    self.doubted.retain(|(doubted, _)| *doubted != app);
                    effects.push(Effect::CloseLedger { app });
                }
                Change::Added(ref handle) | Change::Changed(ref handle) => {
                    let (added, handle) = (matches!(change, Change::Added(_)), handle.clone());
                    let manifest = self.registry.get(&handle).and_then(|a| a.manifest.clone());
                    let enabled = manifest.as_deref().filter(|m| m.enabled);
                    let armed_before = added && self.unrecovered.contains(&handle.app);
                    let followed = self.schedule.follow(&handle, enabled, now, armed_before);
                    // A cold app's watermarks are in its ledger, which is not read yet.
                    if !self.cold.contains_key(&handle.app) {
                        fresh.extend(followed.fresh);
                        dropped.extend(followed.dropped);
                    }
                    if manifest.is_some() {
                        for row in self.parked.remove(&handle).unwrap_or_default() {
                            self.requeue(now, row, effects);
                        }
                    }
                }
                Change::Removed(handle) => {
                    dropped.extend(self.schedule.follow(&handle, None, now, false).dropped);
                    for row in self.parked.remove(&handle).unwrap_or_default() {
                        self.requeue(now, row, effects);
                    }
                }
            }
        }
        self.disarm(dropped, effects);
        self.set_watermarks(fresh, effects);
        let keeps_days = |m: &Arc<Manifest>| matches!(m.keep, HistoryKeep::Days(_));
        if self.next_sweep.is_none() && self.registry.automations().any(|a| a.manifest.as_ref().is_some_and(keeps_days))
        {
            self.next_sweep = Some(now + SWEEP_EVERY_MS);
        }
    }

    fn knows(&self, app: &AppId) -> bool {
        self.registry.app(app).is_some()
    }

    fn set_watermarks(&self, marks: Vec<Watermark>, effects: &mut Vec<Effect>) {
        let mut by_app: BTreeMap<AppId, Vec<(AutomationId, String, EpochMs)>> = BTreeMap::new();
        for mark in marks {
            by_app.entry(mark.handle.app).or_default().push((mark.handle.automation, mark.key, mark.at));
        }
        effects.extend(by_app.into_iter().map(|(app, marks)| Effect::SetWatermarks { app, marks }));
    }

    fn disarm(&self, dropped: Vec<(Handle, String)>, effects: &mut Vec<Effect>) {
        let mut by_app: BTreeMap<AppId, Vec<(AutomationId, String)>> = BTreeMap::new();
        for (handle, key) in dropped {
            // A ledger that went with its app is not made anew for this.
            if self.knows(&handle.app) {
                by_app.entry(handle.app).or_default().push((handle.automation, key));
            }
        }
        effects.extend(by_app.into_iter().map(|(app, triggers)| Effect::DisarmTriggers { app, triggers }));
    }
}

/// How many cron triggers of a manifest there are; the order is that of [`Schedule::next_fires`].
pub fn cron_triggers(manifest: &Manifest) -> impl Iterator<Item = &manifest::CronTrigger> {
    manifest.triggers.iter().filter_map(|t| match t {
        Trigger::Cron(cron) => Some(cron),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
