//! The core against a virtual clock and a ledger that is a list.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;

use super::*;
use crate::core::disk::{AppFolder, AutomationFolder, FileContent, HandlerFile};

const MINUTE: i64 = 60_000;
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
    recovering: Vec<AppId>,
    /// When set, the ledger refuses.
    broken: bool,
}

fn handle(text: &str) -> Handle {
    text.parse().unwrap()
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
            recovering: Vec::new(),
            broken: false,
        }
    }

    /// A world whose one app `a` holds these automations (id, further manifest fields), recovered from an empty ledger.
    fn with(slots: usize, automations: &[(&str, &str)]) -> Self {
        let mut world = Self::new(slots);
        world.disk(automations);
        world.event(Event::LedgerRecovered { app: AppId::new("a").unwrap(), found: Recovered::default() });
        world
    }

    fn disk(&mut self, automations: &[(&str, &str)]) {
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
        let app = AppFolder {
            name: "a".into(),
            app: AppId::new("a").ok(),
            dir: PathBuf::from("a"),
            present: true,
            has_index_html: false,
            app_json: FileContent::Absent,
            automations: automations.collect(),
            complete: true,
            problems: Vec::new(),
        };
        self.event(Event::DiskChanged(DiskBatch { full: true, apps: vec![app], root_problems: Vec::new() }));
    }

    fn event(&mut self, event: Event) {
        let mut effects = VecDeque::from(self.state.on_event(self.now, event));
        while let Some(effect) = effects.pop_front() {
            let follow = self.perform(effect);
            effects.extend(follow.into_iter().flat_map(|event| self.state.on_event(self.now, event)));
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::OpenRun { run, .. } => {
                let id = run.run_id.clone();
                if self.broken {
                    return Some(Event::RunOpened { run: id, result: Err("disk full".into()) });
                }
                let twice = run.origin == TriggerOrigin::Cron
                    && self.rows.values().any(|r| {
                        (&r.automation_id, &r.trigger.key, r.scheduled_for)
                            == (&run.automation_id, &run.trigger.key, run.scheduled_for)
                    });
                let recorded = if twice { Recorded::Duplicate } else { Recorded::Inserted };
                if !twice {
                    assert!(self.rows.insert(id.clone(), run).is_none(), "a row is opened once");
                }
                Some(Event::RunOpened { run: id, result: Ok(recorded) })
            }
            Effect::StartRun { run, .. } => {
                self.transition(&run, RunStatus::Running);
                Some(Event::RunStarted { run, result: Ok(()) })
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
            Effect::CloseRun { run, end, retry, ended, .. } => {
                self.transition(&run, end.status);
                self.running.retain(|spec| spec.run_id != run);
                if let Some(token) = ended {
                    self.answers.entry(token).or_default().push(Answer::Ended(end.clone()));
                }
                assert!(self.ends.insert(run, end).is_none(), "a run is closed once");
                if let Some(retry) = retry {
                    self.rows.insert(retry.run_id.clone(), retry);
                }
                None
            }
            Effect::Answer { token, answer } => {
                self.answers.entry(token).or_default().push(answer);
                None
            }
            Effect::SetWatermarks { marks, .. } => {
                self.marks
                    .extend(marks.into_iter().map(|(id, key, at)| format!("{id} {key} {}", (at - START) / MINUTE)));
                None
            }
            Effect::RecoverLedger { app } => {
                self.recovering.push(app);
                None
            }
            Effect::CloseLedger { .. } | Effect::SweepHistory { .. } | Effect::Notice(_) => None,
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
        self.event(Event::FireRequested(FireRequest {
            handle: handle(&format!("a/{id}")),
            origin,
            trigger: TriggerInfo::default(),
            input_json: Some(format!("\"{token}\"")),
            parent,
            synced: false,
            opened: Some(token),
            ended: Some(token + 1000),
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
        assert_eq!(self.state.load(), ((0, self.state.load().0.1), (0, 0)));
        for row in self.rows.values() {
            assert!(!row.status.is_open(), "{row:?}");
        }
    }
}

const EVERY_MINUTE: &str = r#""triggers":[{"kind":"cron","expr":"* * * * *"}]"#;

#[test]
fn a_cron_fire_is_recorded_then_launched_then_closed() {
    let mut world = World::with(8, &[("x", EVERY_MINUTE)]);
    assert_eq!(world.marks, ["x * * * * * UTC 0"]);
    world.advance(START + MINUTE);
    let spec = world.running[0].clone();
    assert_eq!((spec.origin, spec.trigger.scheduled_for), (TriggerOrigin::Cron, Some(START + MINUTE)));
    world.advance(START + 2 * MINUTE);
    assert_eq!(
        world.statuses(),
        [(TriggerOrigin::Cron, RunStatus::Running), (TriggerOrigin::Cron, RunStatus::Skipped)],
        "an overlap is skipped and recorded"
    );
    world.end(&spec.run_id, None);
    world.assert_quiet();
}

#[test]
fn run_now_of_a_busy_automation_names_the_active_run() {
    let mut world = World::with(8, &[("x", "")]);
    let first = world.manual("x", 1).unwrap();
    assert_eq!(world.manual("x", 2), None);
    assert_eq!(world.answers[&2], [Answer::Busy { active: first.clone() }]);
    world.manual("nope", 3);
    assert_eq!(world.answers[&3], [Answer::Unknown]);
    world.end(&first, None);
    assert!(world.manual("x", 4).is_some());
}

#[test]
fn restart_cancels_the_active_run_and_takes_its_place() {
    let mut world = World::with(8, &[("x", r#""concurrency":{"mode":"restart"}"#)]);
    let first = world.manual("x", 1).unwrap();
    let second = world.manual("x", 2).unwrap();
    assert_eq!(world.aborted, [(first.clone(), ErrorCode::Superseded)]);
    assert!(!world.is_running(&second), "not before the first is gone");
    world.end(&first, None);
    assert_eq!(world.ends[&first].status, RunStatus::Cancelled, "what it returned at the last moment does not count");
    assert!(world.is_running(&second));
    let third = world.manual("x", 3).unwrap();
    let fourth = world.manual("x", 4).unwrap();
    assert_eq!(world.ends[&third].error_code, Some(ErrorCode::Superseded), "one that waits is superseded, too");
    world.end(&second, None);
    world.end(&fourth, None);
    world.assert_quiet();
}

#[test]
fn a_fire_that_cannot_be_recorded_is_not_run() {
    let mut world = World::with(8, &[("x", "")]);
    world.broken = true;
    world.manual("x", 1);
    assert!(matches!(world.answers[&1][..], [Answer::NotRecorded { .. }]));
    assert!(world.running.is_empty());
    world.broken = false;
    assert!(world.manual("x", 2).is_some(), "it holds nothing");
}

#[test]
fn a_parent_that_waits_never_starves_its_child() {
    let mut world = World::with(1, &[("p", ""), ("c", ""), ("other", "")]);
    let parent = world.manual("p", 1).unwrap();
    let other = world.manual("other", 2).unwrap();
    world.fire("c", TriggerOrigin::Invoke, Some(parent.clone()), 3);
    let child = world.accepted(3).unwrap();
    assert!(world.is_running(&child), "the only slot goes to the child");
    assert!(!world.is_running(&other));
    world.end(&child, None);
    assert!(matches!(world.answers[&1003][..], [Answer::Ended(_)]));
    assert!(!world.is_running(&other), "the parent has its slot again");
    world.end(&parent, None);
    assert!(world.is_running(&other));
    world.end(&other, None);
    world.assert_quiet();
}

#[test]
fn an_invoke_waits_its_turn_and_cycles_and_depth_are_refused() {
    let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    let automations: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "")).collect();
    let mut world = World::with(64, &automations);
    let mut run = world.manual("n0", 0).unwrap();
    for n in 1..=8_u64 {
        world.fire(&format!("n{n}"), TriggerOrigin::Invoke, Some(run.clone()), n);
        run = world.accepted(n).unwrap();
    }
    world.fire("n9", TriggerOrigin::Invoke, Some(run.clone()), 9);
    assert!(matches!(&world.answers[&9][..], [Answer::Refused { message }] if message.contains("depth")));
    world.fire("n3", TriggerOrigin::Invoke, Some(run.clone()), 10);
    let [Answer::Refused { message }] = &world.answers[&10][..] else { panic!("{:?}", world.answers[&10]) };
    assert!(message.contains("a/n0 -> a/n1") && message.ends_with("a/n8 -> a/n3"), "{message}");

    let busy = world.manual("n9", 11).unwrap();
    let mut other = World::with(8, &[("p", ""), ("c", "")]);
    let child = other.manual("c", 1).unwrap();
    let parent = other.manual("p", 2).unwrap();
    other.fire("c", TriggerOrigin::Invoke, Some(parent), 3);
    let waiting = other.accepted(3).unwrap();
    assert!(!other.is_running(&waiting));
    other.end(&child, None);
    assert!(other.is_running(&waiting));
    world.end(&busy, None);
}

#[test]
fn children_end_with_their_parent() {
    let mut world = World::with(8, &[("p", ""), ("c", ""), ("d", "")]);
    let parent = world.manual("p", 1).unwrap();
    let busy = world.manual("d", 2).unwrap();
    world.fire("c", TriggerOrigin::Invoke, Some(parent.clone()), 3);
    world.fire("d", TriggerOrigin::Invoke, Some(parent.clone()), 4);
    let (running, waiting) = (world.accepted(3).unwrap(), world.accepted(4).unwrap());
    world.end(&parent, Some(ErrorCode::Timeout));
    assert_eq!(world.aborted, [(running.clone(), ErrorCode::ParentEnded)]);
    assert_eq!(world.ends[&waiting].error_code, Some(ErrorCode::ParentEnded));
    world.end(&running, None);
    world.end(&busy, None);
    world.assert_quiet();
}

#[test]
fn a_failed_run_is_retried_with_backoff_and_then_handed_over() {
    let mut world =
        World::with(8, &[("x", r#""retry":{"max":2,"backoffMs":1000},"onFailure":"h""#), ("h", r#""onFailure":"x""#)]);
    let first = world.manual("x", 1).unwrap();
    world.end(&first, Some(ErrorCode::HandlerThrew));
    for (wait, attempt) in [(1000, 2), (2000, 3)] {
        assert_eq!(world.running.len(), 0);
        assert_eq!(world.state.next_deadline(), Some(world.now + wait));
        world.advance(world.now + wait);
        let spec = world.running[0].clone();
        assert_eq!((spec.origin, spec.attempt), (TriggerOrigin::Retry, attempt));
        assert_eq!(spec.input_json.as_deref(), Some("\"1\""));
        world.end(&spec.run_id, Some(ErrorCode::HandlerThrew));
    }
    let handler = world.running[0].clone();
    assert_eq!((handler.handle, handler.origin), (handle("a/h"), TriggerOrigin::Failure));
    let input: serde_json::Value = serde_json::from_str(&handler.input_json.unwrap()).unwrap();
    assert_eq!(input["failedRun"]["errorCode"], "handler_threw");
    assert_eq!(input["failedRun"]["triggerOrigin"], "retry");
    assert_eq!(input["failedRun"]["input"], "1");
}

#[test]
fn failure_chains_stop_at_three() {
    let mut world = World::with(8, &[("x", r#""onFailure":"y""#), ("y", r#""onFailure":"x""#)]);
    let first = world.manual("x", 1).unwrap();
    world.end(&first, Some(ErrorCode::HandlerThrew));
    let mut chain = 0;
    while let Some(spec) = world.running.first().cloned() {
        chain += 1;
        world.end(&spec.run_id, Some(ErrorCode::HandlerThrew));
    }
    assert_eq!(chain, MAX_FAILURE_DEPTH);
    let mut world = World::with(8, &[("x", r#""onFailure":"y""#), ("y", "")]);
    let first = world.manual("x", 1).unwrap();
    world.event(Event::CancelRequested { run: first.clone(), why: ErrorCode::Cancelled, token: Some(9) });
    world.end(&first, Some(ErrorCode::HandlerThrew));
    assert_eq!(world.running.len(), 0, "a cancelled run has no failure to handle");
    assert_eq!(world.answers[&9], [Answer::Cancelling]);
    world.assert_quiet();
}

#[test]
fn what_a_dead_daemon_left_open_is_closed_retried_or_run() {
    let mut world = World::new(8);
    world.disk(&[("x", r#""retry":{"max":1,"backoffMs":1000}"#), ("y", ""), ("z", "")]);
    let mut serial = 500;
    let mut row = |id: &str, status, parent: Option<RunId>| {
        serial += 1;
        NewRun {
            run_id: RunId::new(&format!("00000000-0000-7000-8000-{serial:012}")).unwrap(),
            app_id: AppId::new("a").unwrap(),
            automation_id: AutomationId::new(id).unwrap(),
            status,
            origin: TriggerOrigin::Manual,
            trigger: TriggerInfo::default(),
            scheduled_for: None,
            input_json: Some("7".into()),
            parent_run_id: parent,
            retry_of: None,
            attempt: 1,
            handler_hash: None,
            queued_at: START - MINUTE,
            started_at: None,
            ended_at: None,
            summary: None,
            error: None,
        }
    };
    let retried = row("x", RunStatus::Running, None);
    let lost = row("y", RunStatus::Running, None);
    let queued = row("z", RunStatus::Queued, None);
    let orphan = row("z", RunStatus::Queued, Some(lost.run_id.clone()));
    for row in [&retried, &lost, &queued, &orphan] {
        world.rows.insert(row.run_id.clone(), row.clone());
    }
    world.event(Event::LedgerRecovered {
        app: AppId::new("a").unwrap(),
        found: Recovered {
            running: vec![retried.clone(), lost.clone()],
            queued: vec![queued.clone(), orphan.clone()],
            watermarks: Vec::new(),
        },
    });
    for row in [&retried, &lost] {
        assert_eq!(world.ends[&row.run_id].error_code, Some(ErrorCode::Interrupted));
    }
    assert_eq!(world.ends[&orphan.run_id].status, RunStatus::Cancelled);
    assert!(world.is_running(&queued.run_id));
    world.advance(START + 1000);
    assert!(world.running.iter().any(|s| s.origin == TriggerOrigin::Retry && s.input_json.as_deref() == Some("7")));
}

#[test]
fn missed_fires_are_caught_up_only_at_a_cold_start() {
    let hourly = r#""catchUp":"once","triggers":[{"kind":"cron","expr":"0 * * * *"}]"#;
    let mut world = World::new(8);
    world.disk(&[("x", hourly)]);
    assert_eq!(world.marks, [""; 0], "the ledger is asked first");
    let mark = (AutomationId::new("x").unwrap(), "0 * * * * UTC".to_owned(), START - 3 * 60 * MINUTE);
    let found = Recovered { watermarks: vec![mark], ..Recovered::default() };
    world.event(Event::LedgerRecovered { app: AppId::new("a").unwrap(), found });
    assert_eq!(world.running[0].trigger.missed, Some(2));

    let mut world = World::with(8, &[("x", hourly)]);
    world.disk(&[("x", &format!(r#""enabled":false,{hourly}"#))]);
    world.advance(START + 5 * 60 * MINUTE);
    world.disk(&[("x", hourly)]);
    assert!(world.running.is_empty() && world.rows.is_empty(), "being disabled is no outage");
    assert_eq!(world.state.next_deadline(), Some(START + 6 * 60 * MINUTE));
}

#[test]
fn stopping_starts_nothing_new_and_keeps_what_was_accepted() {
    let mut world = World::with(1, &[("x", EVERY_MINUTE), ("y", "")]);
    let running = world.manual("x", 1).unwrap();
    let queued = world.manual("y", 2).unwrap();
    world.event(Event::Stopping);
    world.manual("y", 3);
    assert_eq!(world.answers[&3], [Answer::Stopping]);
    assert_eq!(world.state.next_deadline(), None);
    world.end(&running, None);
    assert_eq!(world.rows[&queued].status, RunStatus::Queued, "left for the next daemon");
}

/// Random events from a seed: whatever happens, every row is opened and closed once, `single` never runs twice at a time,
/// the slots are kept, and in the end nothing is held.
#[test]
fn no_sequence_of_events_leaks_or_doubles_anything() {
    for seed in 1..=200_u64 {
        let mut world = World::with(
            3,
            &[
                ("single", r#""triggers":[{"kind":"cron","expr":"* * * * *"}],"retry":{"max":1,"backoffMs":500}"#),
                ("queued", r#""concurrency":{"mode":"queued","max":2}"#),
                ("parallel", r#""concurrency":{"mode":"parallel","max":2},"onFailure":"single""#),
                ("restart", r#""concurrency":{"mode":"restart"}"#),
            ],
        );
        let ids = ["single", "queued", "parallel", "restart"];
        let mut random = seed;
        let mut pick = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % below).unwrap()
        };
        for step in 0..120_u64 {
            let running: Vec<RunId> = world.running.iter().map(|s| s.run_id.clone()).collect();
            match pick(10) {
                0..=2 => {
                    world.manual(ids[pick(4)], step);
                }
                3 if !running.is_empty() => {
                    let parent = running[pick(running.len() as u64)].clone();
                    world.fire(ids[pick(4)], TriggerOrigin::Invoke, Some(parent), step);
                }
                4 if !running.is_empty() => {
                    let run = running[pick(running.len() as u64)].clone();
                    world.event(Event::CancelRequested { run, why: ErrorCode::Cancelled, token: None });
                }
                5 => world.advance(world.now + 20_000),
                6 => world.broken = pick(4) == 0,
                _ if !running.is_empty() => {
                    let run = running[pick(running.len() as u64)].clone();
                    world.end(&run, (pick(3) == 0).then_some(ErrorCode::HandlerThrew));
                }
                _ => {}
            }
            for (id, max) in [("single", 1), ("queued", 1), ("parallel", 2), ("restart", 1)] {
                let n = world.running.iter().filter(|s| s.handle == handle(&format!("a/{id}"))).count();
                assert!(n <= max, "seed {seed}: {n} of {id} at once");
            }
        }
        world.broken = false;
        // Disabled, so that no new cron fire comes; then everything is let end.
        world.disk(&ids.map(|id| (id, r#""enabled":false"#)));
        for _ in 0..1000 {
            let Some(run) = world.running.first().map(|s| s.run_id.clone()) else {
                let Some(at) = world.state.next_deadline() else { break };
                world.advance(at);
                continue;
            };
            world.end(&run, None);
        }
        world.assert_quiet();
    }
}
