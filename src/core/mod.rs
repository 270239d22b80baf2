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
pub mod cron;
pub mod disk;
pub mod json_depth;
pub mod json_schema;
pub mod manifest;
pub mod near_name;
pub mod registry;
pub mod run;
pub mod schedule;
pub mod shortened;
mod transitions;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use crate::core::admission::Admission;
use crate::core::disk::DiskBatch;
use crate::core::manifest::{HistoryKeep, Manifest, Trigger};
use crate::core::registry::{Change, Registry};
use crate::core::run::{Close, NewRun, RunEnd, RunSpec};
use crate::core::schedule::{Schedule, Watermark};
use crate::fire::{
    AppId, AutomationId, EpochMs, ErrorCode, Handle, Problem, RunId, RunStatus, TriggerInfo, TriggerOrigin,
};

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
/// A clock that goes back by less than this is being adjusted, and nobody has to be told.
const CLOCK_BACK_MS: i64 = 60_000;

/// Names the caller that an [`Answer`] is for; chosen by the daemon.
pub type Token = u64;

/// What happened. The one closed list of inputs.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "an event is moved once; a box would cost an allocation for each")]
pub enum Event {
    DiskChanged(DiskBatch),
    /// The timer fired, or the clock was looked at.
    ClockChecked,
    /// The ledger's answer to [`Effect::RecoverLedger`].
    LedgerRecovered {
        app: AppId,
        result: Result<Recovered, Refusal>,
    },
    FireRequested(FireRequest),
    CancelRequested {
        run: RunId,
        why: ErrorCode,
        token: Option<Token>,
    },
    /// The ledger's answer to [`Effect::OpenRun`].
    RunOpened {
        run: RunId,
        result: Result<Recorded, Refusal>,
    },
    /// The ledger's answer to [`Effect::StartRun`].
    RunStarted {
        run: RunId,
        result: Result<(), Refusal>,
    },
    RunEnded {
        run: RunId,
        end: RunEnd,
    },
    /// The answer of that app's ledger to [`Effect::CloseRun`].
    RunClosed {
        run: RunId,
        app: AppId,
        result: Result<(), Refusal>,
    },
    /// From now on nothing new is fired; what is open is left to end.
    Stopping,
}

/// What a ledger held when it was first opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Rows that were `running`: their owner is gone.
    pub running: Vec<NewRun>,
    /// Rows that were `queued`, oldest first.
    pub queued: Vec<NewRun>,
    pub watermarks: Vec<(AutomationId, String, EpochMs)>,
}

/// Why a ledger did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    /// The file is the obstacle (full, locked, not writable): the same may be taken later.
    pub passing: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    Inserted,
    /// This cron instant has a row already, or had one.
    Duplicate,
}

/// A fire that somebody asks for.
#[derive(Debug, Clone)]
pub struct FireRequest {
    pub handle: Handle,
    pub origin: TriggerOrigin,
    pub trigger: TriggerInfo,
    pub input_json: Option<String>,
    /// The run that invokes it.
    pub parent: Option<RunId>,
    /// Its row must survive power loss before it is answered.
    pub synced: bool,
    /// Told when the row is written, or why there is none.
    pub opened: Option<Token>,
    /// Told when the run has ended and that is written: [`Answer::Ended`]. When the ledger refuses the end,
    /// [`Answer::NotRecorded`].
    pub ended: Option<Token>,
}

/// What is told to a caller.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Accepted {
        run: RunId,
        status: RunStatus,
    },
    Busy {
        active: RunId,
    },
    /// There is no such automation.
    Unknown,
    /// Its manifest is invalid and was never valid.
    Unrunnable {
        problems: Vec<Problem>,
    },
    /// Too deep, or a cycle.
    Refused {
        message: String,
    },
    /// The ledger did not take it.
    NotRecorded {
        message: String,
    },
    Stopping,
    Ended(RunEnd),
    Cancelling,
    /// There is no such open run.
    NotOpen,
}

/// What is to be done. The one closed list of outputs, to be performed in order.
#[derive(Debug)]
pub enum Effect {
    RecoverLedger {
        app: AppId,
    },
    CloseLedger {
        app: AppId,
    },
    SetWatermarks {
        app: AppId,
        marks: Vec<(AutomationId, String, EpochMs)>,
    },
    /// Triggers that are not armed any more: what they would have fired from now on is no outage.
    DisarmTriggers {
        app: AppId,
        triggers: Vec<(AutomationId, String)>,
    },
    /// Write the row; then [`Event::RunOpened`].
    OpenRun {
        run: NewRun,
        synced: bool,
    },
    /// `queued` becomes `running`; then [`Event::RunStarted`].
    StartRun {
        run: RunId,
        handle: Handle,
        at: EpochMs,
    },
    Launch(RunSpec),
    AbortRun {
        run: RunId,
        why: ErrorCode,
    },
    /// Write the end; then [`Event::RunClosed`].
    CloseRun(Arc<Close>),
    SweepHistory {
        handle: Handle,
        keep: HistoryKeep,
    },
    Answer {
        token: Token,
        answer: Answer,
    },
    /// Something an operator should know.
    Notice(String),
}

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

/// What has its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A retry, or a run that could not be started, enters its lane.
    Enter(RunId),
    /// An end is offered again.
    Close(RunId),
    /// A cold app's ledger is asked again.
    Recover(AppId),
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
    agenda: BinaryHeap<Reverse<(EpochMs, Due)>>,
    /// Apps whose ledger is to be asked what they have missed: all that were there when the daemon started, and those
    /// whose ledger has refused a cron fire. Until it answers, nothing of theirs is fired by cron; it is made up for.
    cold: HashSet<AppId>,
    /// Ledgers that are being recovered, and runs whose end was written meanwhile: a ledger that was read before that
    /// still tells of them as open.
    recoveries: usize,
    closed_meanwhile: HashSet<RunId>,
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
            agenda: BinaryHeap::new(),
            cold: HashSet::new(),
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
            Event::RunStarted { run, result } => self.on_started(now, &run, result, &mut effects),
            Event::RunEnded { run, end } => self.on_ended(now, &run, end, &mut effects),
            Event::RunClosed { run, app, result } => self.on_closed(now, &run, &app, result, &mut effects),
            Event::Stopping => self.stopping = true,
        }
        self.serve_ready(now, &mut effects);
        effects
    }

    /// When the core wants to look at the clock next, if nothing else happens before.
    pub fn next_deadline(&mut self) -> Option<EpochMs> {
        if self.stopping {
            // Nothing begins any more, but what has ended is still to be written.
            let ends = self.agenda.iter().filter(|Reverse((_, due))| matches!(due, Due::Close(_)));
            return ends.map(|Reverse((at, _))| *at).min();
        }
        let agenda = self.agenda.peek().map(|Reverse((at, _))| *at);
        [self.schedule.next_deadline(), agenda, self.next_sweep].into_iter().flatten().min()
    }

    /// Nothing runs, and every end is written.
    pub fn is_idle(&self) -> bool {
        self.closing.is_empty() && !self.open_runs().any(|run| run.active)
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
                    if cold_start {
                        self.cold.insert(app.clone());
                    }
                    self.recover_ledger(app, effects);
                }
                Change::AppRemoved(app) => {
                    self.cold.remove(&app);
                    self.parked.retain(|handle, _| handle.app != app);
                    effects.push(Effect::CloseLedger { app });
                }
                Change::Added(handle) | Change::Changed(handle) => {
                    let manifest = self.registry.get(&handle).and_then(|a| a.manifest.clone());
                    let enabled = manifest.as_deref().filter(|m| m.enabled);
                    let followed = self.schedule.follow(&handle, enabled, now);
                    // A cold app's watermarks are in its ledger, which is not read yet.
                    if !self.cold.contains(&handle.app) {
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
                    dropped.extend(self.schedule.follow(&handle, None, now).dropped);
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

    fn on_clock(&mut self, now: EpochMs, effects: &mut Vec<Effect>) {
        self.check_agenda(now, effects);
        if self.stopping {
            return;
        }
        if now < self.last_look - CLOCK_BACK_MS {
            effects.push(Effect::Notice(format!(
                "the clock went back by {} s: cron triggers that have fired ahead of it wait until it has passed those \
                 instants, because none fires twice",
                (self.last_look - now) / 1000
            )));
        }
        self.last_look = now;
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
            match due {
                // While stopping, its row stays `queued`, for the next daemon.
                Due::Enter(run) if !self.stopping => self.enter_lane(&run),
                Due::Close(run) => {
                    if let Some(closing) = self.closing.get(&run) {
                        effects.push(Effect::CloseRun(Arc::clone(&closing.close)));
                    }
                }
                Due::Recover(app) if self.cold.contains(&app) => self.recover_ledger(app, effects),
                Due::Enter(_) | Due::Recover(_) => {}
            }
        }
    }

    fn knows(&self, app: &AppId) -> bool {
        self.registry.app(app).is_some()
    }

    fn recover_ledger(&mut self, app: AppId, effects: &mut Vec<Effect>) {
        self.recoveries += 1;
        effects.push(Effect::RecoverLedger { app });
    }

    fn on_recovered(
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

    fn on_request(&mut self, now: EpochMs, request: FireRequest, effects: &mut Vec<Effect>) {
        let answer = match self.check_request(&request) {
            Ok(manifest) => {
                self.admit(now, request, manifest, false, effects);
                return;
            }
            Err(answer) => answer,
        };
        if let Some(token) = request.opened {
            effects.push(Effect::Answer { token, answer });
        }
    }

    fn check_request(&self, request: &FireRequest) -> Result<Arc<Manifest>, Answer> {
        if self.stopping {
            return Err(Answer::Stopping);
        }
        let automation = self.registry.get(&request.handle).ok_or(Answer::Unknown)?;
        let Some(manifest) = &automation.manifest else {
            return Err(Answer::Unrunnable { problems: self.registry.problems_of(automation) });
        };
        if let Some(parent) = &request.parent {
            let Some(parent) = self.runs.get(parent).filter(|p| p.ending.is_none()) else {
                return Err(Answer::Refused { message: "the invoking run has ended".to_owned() });
            };
            let chain = self.chain(parent);
            if chain.contains(&&request.handle) {
                let names: Vec<String> =
                    chain.iter().rev().map(|h| h.to_string()).chain([request.handle.to_string()]).collect();
                return Err(Answer::Refused { message: format!("invoke cycle: {}", names.join(" -> ")) });
            }
            if parent.depth >= MAX_INVOKE_DEPTH {
                return Err(Answer::Refused { message: format!("invoke depth is over {MAX_INVOKE_DEPTH}") });
            }
        }
        Ok(Arc::clone(manifest))
    }

    /// The handles from a run up to the one that nobody invoked.
    fn chain<'a>(&'a self, run: &'a Run) -> Vec<&'a Handle> {
        let mut chain = vec![&run.handle];
        let mut above = run.row.parent_run_id.as_ref();
        while let Some(parent) = above.and_then(|id| self.runs.get(id)) {
            chain.push(&parent.handle);
            above = parent.row.parent_run_id.as_ref();
        }
        chain
    }
}

impl NewRun {
    fn from_request(request: &FireRequest, run_id: RunId, now: EpochMs) -> Self {
        Self {
            run_id,
            app_id: request.handle.app.clone(),
            automation_id: request.handle.automation.clone(),
            status: RunStatus::Queued,
            origin: request.origin,
            trigger: request.trigger.clone(),
            scheduled_for: request.trigger.scheduled_for,
            input_json: request.input_json.clone(),
            parent_run_id: request.parent.clone(),
            retry_of: None,
            attempt: 1,
            handler_hash: None,
            queued_at: now,
            started_at: None,
            ended_at: None,
            summary: None,
            error: None,
        }
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
