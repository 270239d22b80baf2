//! The core against a virtual clock and a ledger that is a list.

mod outages;
mod races;
mod runs;
mod simulation;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;

use super::*;
use crate::core::disk::{AppFolder, AutomationFolder, FileContent, HandlerFile};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
/// 2026-03-02T00:00:00Z, a Monday.
const START: i64 = 1_772_409_600_000;

/// A core with its surroundings: rows, launched runs, answers.
struct World {
    state: State,
    now: EpochMs,
    rows: BTreeMap<RunId, NewRun>,
    ends: HashMap<RunId, RunEnd>,
    running: Vec<RunSpec>,
    aborted: Vec<(RunId, ErrorCode)>,
    answers: HashMap<Token, Vec<Answer>>,
    marks: Vec<String>,
    watermarks: Marks,
    /// Recoveries are answered from the rows.
    recovers: bool,
    notices: Vec<String>,
    /// When set, the ledger refuses everything.
    broken: bool,
}

fn refused() -> Refusal {
    Refusal { message: "disk full".to_owned(), passing: true }
}

/// What a ledger that refuses everything answers; `None` when the effect asks no ledger.
fn refusal_of(effect: &Effect) -> Option<Event> {
    Some(match effect {
        Effect::OpenRun { run, .. } => Event::RunOpened { run: run.run_id.clone(), result: Err(refused()) },
        Effect::StartRun { run, handle, .. } => {
            Event::RunStarted { run: run.clone(), app: handle.app.clone(), result: Err(refused()) }
        }
        Effect::SetWatermarks { app, .. } | Effect::DisarmTriggers { app, .. } => {
            Event::TriggersNoted { app: app.clone(), result: Err(refused()) }
        }
        Effect::CloseRun(close) => {
            Event::RunClosed { run: close.run.clone(), app: close.handle.app.clone(), result: Err(refused()) }
        }
        Effect::RecoverLedger { app } => Event::LedgerRecovered { app: app.clone(), result: Err(refused()) },
        _ => return None,
    })
}

/// Watermarks by automation and trigger, and whether that trigger is armed.
type Marks = BTreeMap<(AutomationId, String), (EpochMs, bool)>;

/// What a ledger with these rows and watermarks tells when it is opened.
fn found_in(rows: &BTreeMap<RunId, NewRun>, marks: &Marks) -> Recovered {
    let open = |status| rows.values().filter(|row| row.status == status).cloned().collect();
    let armed = marks.iter().filter(|(_, (_, armed))| *armed);
    Recovered {
        running: open(RunStatus::Running),
        queued: open(RunStatus::Queued),
        watermarks: armed.map(|((id, key), (at, _))| (id.clone(), key.clone(), *at)).collect(),
    }
}

fn handle(text: &str) -> Handle {
    text.parse().unwrap()
}

/// A row of app `a` that an earlier daemon left, with an input.
fn queued(id: &str) -> NewRun {
    NewRun {
        run_id: RunId::at(START - MINUTE),
        app_id: AppId::new("a").unwrap(),
        automation_id: AutomationId::new(id).unwrap(),
        status: RunStatus::Queued,
        origin: TriggerOrigin::Manual,
        trigger: TriggerInfo::default(),
        scheduled_for: None,
        input_json: Some("7".into()),
        parent_run_id: None,
        retry_of: None,
        attempt: 1,
        handler_hash: None,
        queued_at: START - MINUTE,
        started_at: None,
        ended_at: None,
        summary: None,
        error: None,
    }
}

/// An app folder that has these automations (id, further manifest fields).
fn folder(name: &str, automations: &[(&str, &str)]) -> AppFolder {
    use sha2::Digest;
    let automations = automations.iter().map(|(id, extra)| {
        let comma = if extra.is_empty() { "" } else { "," };
        let text = format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}}{comma}{extra}}}"#);
        AutomationFolder {
            id: AutomationId::new(id).unwrap(),
            dir: PathBuf::from(id),
            present: true,
            manifest: FileContent::Bytes {
                sha256: sha2::Sha256::digest(text.as_bytes()).into(),
                bytes: Arc::from(text.into_bytes()),
            },
            handler: HandlerFile::Present { len: 1, mtime_ns: 0, inode: 0 },
        }
    });
    AppFolder {
        name: name.into(),
        app: AppId::new(name).ok(),
        dir: PathBuf::from(name),
        present: true,
        has_index_html: false,
        app_json: FileContent::Absent,
        automations: automations.collect(),
        complete: true,
        problems: Vec::new(),
    }
}

impl World {
    fn new(slots: usize) -> Self {
        let mut serial = 0_u64;
        let new_id = move |_| {
            serial += 1;
            RunId::new(&format!("00000000-0000-7000-8000-{serial:012}")).unwrap()
        };
        Self {
            state: State::new(slots, true, Box::new(new_id)),
            now: START,
            rows: BTreeMap::new(),
            ends: HashMap::new(),
            running: Vec::new(),
            aborted: Vec::new(),
            answers: HashMap::new(),
            marks: Vec::new(),
            watermarks: BTreeMap::new(),
            recovers: false,
            notices: Vec::new(),
            broken: false,
        }
    }

    /// A world whose one app `a` holds these automations (id, further manifest fields), recovered from an empty ledger.
    fn with(slots: usize, automations: &[(&str, &str)]) -> Self {
        let mut world = Self::new(slots);
        world.recovers = true;
        world.disk(automations);
        world
    }

    /// The answer to a recovery of app `a` that was left open.
    fn recovered(&mut self, found: Recovered) {
        self.event(Event::LedgerRecovered { app: AppId::new("a").unwrap(), result: Ok(found) });
    }

    /// What the ledger holds.
    fn found(&self) -> Recovered {
        found_in(&self.rows, &self.watermarks)
    }

    fn disk(&mut self, automations: &[(&str, &str)]) {
        self.disk_of("a", automations);
    }

    /// The root's one app is called this, and has these automations.
    fn disk_of(&mut self, name: &str, automations: &[(&str, &str)]) {
        let app = folder(name, automations);
        self.event(Event::DiskChanged(DiskBatch { full: true, apps: vec![app], root_problems: Vec::new() }));
    }

    fn event(&mut self, event: Event) {
        let mut effects = VecDeque::from(self.state.on_event(self.now, event));
        // A run that is launched at once has its handler read before its row is written: others overtake it.
        let mut slow = VecDeque::new();
        while let Some(effect) = effects.pop_front().or_else(|| slow.pop_front()) {
            if matches!(&effect, Effect::OpenRun { run, .. } if run.status == RunStatus::Running) && !effects.is_empty()
            {
                slow.push_back(effect);
                continue;
            }
            let follow = self.perform(effect);
            effects.extend(follow.into_iter().flat_map(|event| self.state.on_event(self.now, event)));
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match &effect {
            Effect::CloseRun(close) => self.running.retain(|spec| spec.run_id != close.run),
            Effect::RecoverLedger { .. } if !self.recovers => return None,
            _ => {}
        }
        if let Some(event) = refusal_of(&effect).filter(|_| self.broken) {
            return Some(event);
        }
        match effect {
            Effect::OpenRun { run, .. } => {
                let id = run.run_id.clone();
                let mut recorded = Recorded::Inserted;
                if let (Some(key), Some(at)) = (&run.trigger.key, run.scheduled_for) {
                    let mark = self.watermarks.entry((run.automation_id.clone(), key.clone())).or_insert((0, true));
                    if at <= mark.0 {
                        recorded = Recorded::Duplicate;
                    } else {
                        mark.0 = at;
                    }
                }
                if recorded == Recorded::Inserted {
                    assert!(self.rows.insert(id.clone(), run).is_none(), "a row is opened once");
                }
                Some(Event::RunOpened { run: id, result: Ok(recorded) })
            }
            Effect::StartRun { run, handle, .. } => {
                self.transition(&run, RunStatus::Running);
                Some(Event::RunStarted { run, app: handle.app, result: Ok(()) })
            }
            Effect::Launch(spec) => {
                assert_eq!(self.rows[&spec.run_id].status, RunStatus::Running, "its row says so before it runs");
                self.running.push(spec);
                None
            }
            Effect::AbortRun { run, why } => {
                self.aborted.push((run, why));
                None
            }
            Effect::CloseRun(close) => {
                let Close { run, handle, end, next, .. } = (*close).clone();
                self.transition(&run, end.status);
                assert!(self.ends.insert(run.clone(), end).is_none(), "a run is closed once");
                if let Some(next) = next {
                    self.rows.insert(next.run_id.clone(), next);
                }
                Some(Event::RunClosed { run, app: handle.app, result: Ok(()) })
            }
            Effect::Answer { token, answer } => {
                self.answers.entry(token).or_default().push(answer);
                None
            }
            Effect::SetWatermarks { marks, .. } => {
                for (id, key, at) in marks {
                    self.marks.push(format!("{id} {key} {}", (at - START) / MINUTE));
                    let mark = self.watermarks.entry((id, key)).or_insert((at, true));
                    *mark = (mark.0.max(at), true);
                }
                None
            }
            Effect::DisarmTriggers { triggers, .. } => {
                for trigger in triggers {
                    self.watermarks.entry(trigger).and_modify(|mark| mark.1 = false);
                }
                None
            }
            Effect::RecoverLedger { app } => Some(Event::LedgerRecovered { app, result: Ok(self.found()) }),
            Effect::Notice(text) => {
                self.notices.push(text);
                None
            }
            Effect::CloseLedger { .. } | Effect::SweepHistory { .. } => None,
        }
    }

    fn transition(&mut self, run: &RunId, next: RunStatus) {
        let row = self.rows.get_mut(run).expect("the row was opened");
        assert!(row.status.may_become(next), "{run}: {} to {next}", row.status);
        row.status = next;
    }

    fn advance(&mut self, to: EpochMs) {
        while let Some(at) = self.state.next_deadline().filter(|at| *at <= to) {
            self.now = self.now.max(at);
            self.event(Event::ClockChecked);
        }
        self.now = to;
        self.event(Event::ClockChecked);
    }

    fn fire(&mut self, id: &str, origin: TriggerOrigin, parent: Option<RunId>, token: Token) {
        self.fire_in("a", id, origin, parent, token);
    }

    fn fire_in(&mut self, app: &str, id: &str, origin: TriggerOrigin, parent: Option<RunId>, token: Token) {
        self.event(Event::FireRequested(FireRequest {
            input_json: Some(format!("\"{token}\"")),
            parent,
            opened: Some(token),
            ended: Some(token + 1000),
            ..FireRequest::new(handle(&format!("{app}/{id}")), origin)
        }));
    }

    fn manual(&mut self, id: &str, token: Token) -> Option<RunId> {
        self.fire(id, TriggerOrigin::Manual, None, token);
        self.accepted(token)
    }

    fn accepted(&self, token: Token) -> Option<RunId> {
        match self.answers.get(&token)?.as_slice() {
            [Answer::Accepted { run, .. }] => Some(run.clone()),
            _ => None,
        }
    }

    fn end(&mut self, run: &RunId, error: Option<ErrorCode>) {
        let end = match error {
            Some(code) => RunEnd::error(code, "boom", self.now),
            None => RunEnd {
                status: RunStatus::Ok,
                ended_at: self.now,
                summary: None,
                output_json: Some("1".into()),
                error: None,
                error_code: None,
            },
        };
        self.event(Event::RunEnded { run: run.clone(), end });
    }

    fn is_running(&self, run: &RunId) -> bool {
        self.running.iter().any(|spec| spec.run_id == *run)
    }

    fn statuses(&self) -> Vec<(TriggerOrigin, RunStatus)> {
        self.rows.values().map(|row| (row.origin, row.status)).collect()
    }

    /// Nothing is open, and nothing is held.
    fn assert_quiet(&self) {
        assert_eq!(self.state.runs.len(), 0);
        assert!(self.state.closing.is_empty() && self.state.is_idle());
        assert_eq!(self.state.load(), ((0, self.state.load().0.1), (0, 0)));
        for row in self.rows.values() {
            assert!(!row.status.is_open(), "{row:?}");
        }
    }
}

const EVERY_MINUTE: &str = r#""triggers":[{"kind":"cron","expr":"* * * * *"}]"#;
