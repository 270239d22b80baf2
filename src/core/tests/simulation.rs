//! Random events against ledgers that answer late and out of step, with apps that come, go and get other names, ledgers
//! that refuse, and kills. `SIM_SEEDS` sets how many seeds are tried; `SIM_SEED` (with `SIM_STEPS`) tries one and shows all
//! that happened.

use super::races::folder;
use super::*;

/// Enough to meet most orders, few enough for every run of the tests.
const DEFAULT_SEEDS: u64 = 60;

#[derive(Default, Clone)]
struct Ledger {
    rows: BTreeMap<RunId, NewRun>,
    marks: BTreeMap<(AutomationId, String), (EpochMs, bool)>,
    fired: Vec<(AutomationId, String, EpochMs)>,
}

#[derive(Default, Clone)]
struct Folder {
    automations: Vec<(String, String)>,
    ledger: Ledger,
}

fn ids(serial: &Arc<std::sync::atomic::AtomicU64>) -> Box<dyn FnMut(EpochMs) -> RunId + Send> {
    let serial = Arc::clone(serial);
    Box::new(move |_| {
        let n = serial.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        RunId::new(&format!("00000000-0000-7000-8000-{n:012}")).unwrap()
    })
}

struct Sim {
    /// Handlers are read at once, and ledgers refuse for long enough that all that was asked together is refused.
    prompt: bool,
    serial: Arc<std::sync::atomic::AtomicU64>,
    /// Tokens up to this one were of a daemon that is gone.
    exempt: Token,
    state: State,
    now: EpochMs,
    apps: BTreeMap<String, Folder>,
    away: Vec<(String, Folder)>,
    broken: bool,
    queues: BTreeMap<String, VecDeque<Effect>>,
    slow: Vec<Effect>,
    inbox: Vec<Event>,
    running: Vec<RunSpec>,
    aborted: Vec<RunId>,
    launched: HashMap<RunId, u32>,
    opened: HashMap<Token, u32>,
    ended: HashMap<Token, u32>,
    accepted: HashMap<Token, RunId>,
    ok: Vec<RunId>,
    log: Vec<String>,
    random: u64,
}

fn apart(passing: bool, text: &str) -> Refusal {
    Refusal { message: text.to_owned(), passing }
}

impl Sim {
    fn new(seed: u64, slots: usize) -> Self {
        let serial = Arc::new(std::sync::atomic::AtomicU64::new(0));
        Self {
            state: State::new(slots, true, ids(&serial)),
            serial,
            exempt: 0,
            prompt: false,
            now: START,
            apps: BTreeMap::new(),
            away: Vec::new(),
            broken: false,
            queues: BTreeMap::new(),
            slow: Vec::new(),
            inbox: Vec::new(),
            running: Vec::new(),
            aborted: Vec::new(),
            launched: HashMap::new(),
            opened: HashMap::new(),
            ended: HashMap::new(),
            accepted: HashMap::new(),
            ok: Vec::new(),
            log: Vec::new(),
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        }
    }

    fn pick(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from((self.random >> 11) % below as u64).unwrap()
    }

    fn event(&mut self, event: Event) {
        if self.prompt {
            for effect in std::mem::take(&mut self.slow) {
                self.queues.entry("a".to_owned()).or_default().push_back(effect);
            }
        }
        self.log.push(format!("> {event:?}").chars().take(260).collect());
        let effects = self.state.on_event(self.now, event);
        for effect in effects {
            self.log.push(format!("    {effect:?}").chars().take(200).collect());
            self.take(effect);
        }
    }

    fn take(&mut self, effect: Effect) {
        let app = match &effect {
            Effect::OpenRun { run, .. } => {
                if run.status == RunStatus::Running {
                    self.slow.push(effect);
                    return;
                }
                run.app_id.to_string()
            }
            Effect::RecoverLedger { app } | Effect::SetWatermarks { app, .. } | Effect::DisarmTriggers { app, .. } => {
                app.to_string()
            }
            // Its handler is read first.
            Effect::StartRun { .. } => {
                self.slow.push(effect);
                return;
            }
            Effect::CloseRun(close) => close.handle.app.to_string(),
            Effect::Launch(spec) => {
                *self.launched.entry(spec.run_id.clone()).or_default() += 1;
                self.running.push(spec.clone());
                return;
            }
            Effect::AbortRun { run, .. } => {
                self.aborted.push(run.clone());
                return;
            }
            Effect::Answer { token, answer } => {
                if *token >= 1_000_000 {
                    *self.ended.entry(*token).or_default() += 1;
                } else {
                    *self.opened.entry(*token).or_default() += 1;
                    if let Answer::Accepted { run, .. } = answer {
                        self.accepted.insert(*token, run.clone());
                    }
                }
                return;
            }
            _ => return,
        };
        self.queues.entry(app).or_default().push_back(effect);
    }

    /// One ledger does the first of what it is asked.
    fn work(&mut self, app: &str) {
        let Some(effect) = self.queues.get_mut(app).and_then(VecDeque::pop_front) else { return };
        if self.queues[app].is_empty() {
            self.queues.remove(app);
        }
        let broken = self.broken;
        let event = match self.apps.get_mut(app).map(|folder| &mut folder.ledger).filter(|_| !broken) {
            Some(ledger) => ledger.perform(effect, &mut self.ok),
            None => Ledger::refuse(effect),
        };
        self.inbox.extend(event);
    }

    fn disk(&mut self) {
        let apps = self.apps.iter().map(|(name, f)| {
            let list: Vec<(&str, &str)> = f.automations.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            folder(name, &list)
        });
        let apps = apps.collect();
        self.event(Event::DiskChanged(DiskBatch { full: true, apps, root_problems: Vec::new() }));
    }

    fn settle_some(&mut self) {
        match self.pick(3) {
            0 if !self.slow.is_empty() => {
                let at = self.pick(self.slow.len());
                let effect = self.slow.swap_remove(at);
                let app = match &effect {
                    Effect::OpenRun { run, .. } => run.app_id.to_string(),
                    Effect::StartRun { handle, .. } => handle.app.to_string(),
                    _ => unreachable!(),
                };
                self.queues.entry(app).or_default().push_back(effect);
            }
            1 if !self.queues.is_empty() => {
                let at = self.pick(self.queues.len());
                let app = self.queues.keys().nth(at).unwrap().clone();
                self.work(&app);
            }
            _ if !self.inbox.is_empty() => {
                let at = self.pick(self.inbox.len());
                let event = self.inbox.swap_remove(at);
                self.event(event);
            }
            _ => {}
        }
    }

    fn drain(&mut self) {
        while !(self.slow.is_empty() && self.queues.is_empty() && self.inbox.is_empty()) {
            self.settle_some();
        }
    }

    fn end(&mut self, at: usize, code: Option<ErrorCode>) {
        let run = self.running.swap_remove(at).run_id;
        let end = match code {
            Some(code) => RunEnd::error(code, "boom", self.now),
            None => RunEnd {
                status: RunStatus::Ok,
                ..RunEnd { error: None, error_code: None, ..RunEnd::cancelled(ErrorCode::Cancelled, self.now) }
            },
        };
        self.event(Event::RunEnded { run, end });
    }
}

impl Ledger {
    fn refuse(effect: Effect) -> Option<Event> {
        let refused = || apart(true, "disk full");
        match effect {
            Effect::OpenRun { run, .. } => Some(Event::RunOpened { run: run.run_id, result: Err(refused()) }),
            Effect::StartRun { run, handle, .. } => {
                Some(Event::RunStarted { run, app: handle.app, result: Err(refused()) })
            }
            Effect::SetWatermarks { app, .. } | Effect::DisarmTriggers { app, .. } => {
                Some(Event::TriggersNoted { app, result: Err(refused()) })
            }
            Effect::CloseRun(close) => {
                Some(Event::RunClosed { run: close.run.clone(), app: close.handle.app.clone(), result: Err(refused()) })
            }
            Effect::RecoverLedger { app } => Some(Event::LedgerRecovered { app, result: Err(refused()) }),
            _ => None,
        }
    }

    fn become_(&mut self, run: &RunId, next: RunStatus) -> Result<(), Refusal> {
        let row = self.rows.get_mut(run).ok_or_else(|| apart(false, "no such run"))?;
        if !row.status.may_become(next) {
            return Err(apart(false, "illegal transition"));
        }
        row.status = next;
        Ok(())
    }

    fn perform(&mut self, effect: Effect, ok: &mut Vec<RunId>) -> Option<Event> {
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
                if result.is_ok() {
                    if close.end.status == RunStatus::Ok {
                        ok.push(close.run.clone());
                    }
                    if let Some(next) = &close.next {
                        assert!(self.rows.insert(next.run_id.clone(), next.clone()).is_none());
                    }
                }
                Some(Event::RunClosed { run: close.run.clone(), app: close.handle.app.clone(), result })
            }
            Effect::RecoverLedger { app } => {
                let open = |status| self.rows.values().filter(|r| r.status == status).cloned().collect();
                let armed = self.marks.iter().filter(|(_, (_, armed))| *armed);
                Some(Event::LedgerRecovered {
                    app,
                    result: Ok(Recovered {
                        running: open(RunStatus::Running),
                        queued: open(RunStatus::Queued),
                        watermarks: armed.map(|((id, key), (at, _))| (id.clone(), key.clone(), *at)).collect(),
                    }),
                })
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

const FORMS: [(&str, &str); 5] = [
    ("s", r#""triggers":[{"kind":"cron","expr":"* * * * *"}],"retry":{"max":1,"backoffMs":500}"#),
    ("q", r#""concurrency":{"mode":"queued","max":2},"retry":{"max":2,"backoffMs":0}"#),
    ("p", r#""concurrency":{"mode":"parallel","max":2},"onFailure":"s""#),
    ("r", r#""concurrency":{"mode":"restart"},"onFailure":"b/q""#),
    ("e", r#""triggers":[{"kind":"cron","expr":"*/3 * * * *"}],"catchUp":"all""#),
];

fn forms() -> Vec<(String, String)> {
    FORMS.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn run(seed: u64, renames: bool, restarts: bool, steps: u64) -> Result<(), String> {
    let mut sim = Sim::new(seed, 2);
    for name in ["a", "b"] {
        sim.apps.insert(name.to_owned(), Folder { automations: forms(), ledger: Ledger::default() });
    }
    sim.disk();
    let mut token = 0;
    for _ in 0..steps {
        for _ in 0..sim.pick(4) {
            sim.settle_some();
        }
        if !renames {
            for app in ["a", "b"] {
                for (id, most) in [("s", 1), ("q", 1), ("p", 2), ("r", 1), ("e", 1)] {
                    let n = sim.running.iter().filter(|s| s.handle == handle(&format!("{app}/{id}"))).count();
                    if n > most {
                        return Err(format!("{n} of {app}/{id} at once"));
                    }
                }
            }
            if sim.state.load().0.0 > 2 + sim.running.len() {
                return Err("slots".to_owned());
            }
        }
        match sim.pick(24) {
            0..=4 => {
                token += 1;
                let app = ["a", "b", "c"][sim.pick(3)];
                let id = FORMS[sim.pick(5)].0;
                sim.event(Event::FireRequested(FireRequest {
                    opened: Some(token),
                    ended: Some(token + 1_000_000),
                    ..FireRequest::new(handle(&format!("{app}/{id}")), TriggerOrigin::Manual)
                }));
            }
            5..=7 if !sim.running.is_empty() => {
                token += 1;
                let at = sim.pick(sim.running.len());
                let parent = sim.running[at].run_id.clone();
                let app = ["a", "b", "c"][sim.pick(3)];
                let id = FORMS[sim.pick(5)].0;
                sim.event(Event::FireRequested(FireRequest {
                    parent: Some(parent),
                    opened: Some(token),
                    ended: Some(token + 1_000_000),
                    ..FireRequest::new(handle(&format!("{app}/{id}")), TriggerOrigin::Invoke)
                }));
            }
            8 if !sim.running.is_empty() => {
                let at = sim.pick(sim.running.len());
                let run = sim.running[at].run_id.clone();
                sim.event(Event::CancelRequested { run, why: ErrorCode::Cancelled, token: None });
            }
            9 | 10 => {
                sim.now += [500, 20_000, 40_000, 90_000][sim.pick(4)];
                sim.event(Event::ClockChecked);
            }
            11 => sim.broken = sim.pick(3) == 0,
            12 if renames && sim.pick(3) == 0 => {
                let names: Vec<String> = sim.apps.keys().cloned().collect();
                let free: Vec<&str> = ["a", "b", "c"].into_iter().filter(|n| !sim.apps.contains_key(*n)).collect();
                if !names.is_empty() && !free.is_empty() {
                    let from = names[sim.pick(names.len())].clone();
                    let to = free[sim.pick(free.len())].to_owned();
                    if !sim.away.iter().any(|(n, _)| *n == to) {
                        let moved = sim.apps.remove(&from).unwrap();
                        sim.apps.insert(to, moved);
                        sim.disk();
                    }
                }
            }
            13 if sim.pick(2) == 0 => {
                if let Some((name, folder)) = sim.away.pop() {
                    sim.apps.insert(name, folder);
                } else {
                    let names: Vec<String> = sim.apps.keys().cloned().collect();
                    let name = names[sim.pick(names.len())].clone();
                    let folder = sim.apps.remove(&name).unwrap();
                    sim.away.push((name, folder));
                }
                sim.disk();
            }
            14 => {
                let names: Vec<String> = sim.apps.keys().cloned().collect();
                if !names.is_empty() {
                    let name = names[sim.pick(names.len())].clone();
                    let which = sim.pick(5);
                    let how = sim.pick(4);
                    let list = &mut sim.apps.get_mut(&name).unwrap().automations;
                    let id = FORMS[which].0;
                    list.retain(|(a, _)| a != id);
                    match how {
                        0 => {}
                        1 => list.push((id.to_owned(), r#""timeoutMs":"soon""#.to_owned())),
                        2 => list.push((id.to_owned(), format!(r#""enabled":false,{}"#, FORMS[which].1))),
                        _ => list.push((id.to_owned(), FORMS[which].1.to_owned())),
                    }
                    sim.disk();
                }
            }
            15 if restarts && sim.pick(4) == 0 => {
                // A kill: what is in the queues is done, or not; nobody hears of it.
                for app in sim.queues.keys().cloned().collect::<Vec<_>>() {
                    for _ in 0..sim.pick(4) {
                        sim.work(&app);
                    }
                }
                sim.queues.clear();
                sim.slow.clear();
                sim.inbox.clear();
                sim.running.clear();
                sim.log.push("=== killed".to_owned());
                sim.exempt = token;
                sim.now += [0, 10_000, 600_000][sim.pick(3)];
                sim.state = State::new(2, true, ids(&sim.serial));
                sim.disk();
            }
            _ if !sim.running.is_empty() => {
                let at = sim.pick(sim.running.len());
                let code = (sim.pick(3) == 0).then_some(ErrorCode::HandlerThrew);
                sim.end(at, code);
            }
            _ => {}
        }
    }
    // Everything comes back, well and without cron, and is let end.
    sim.broken = false;
    while let Some((name, folder)) = sim.away.pop() {
        sim.apps.insert(name, folder);
    }
    for folder in sim.apps.values_mut() {
        folder.automations = FORMS.iter().map(|(a, b)| ((*a).to_owned(), format!(r#""enabled":false,{b}"#))).collect();
    }
    sim.disk();
    sim.drain();
    for _ in 0..3000 {
        if !sim.running.is_empty() {
            let at = sim.pick(sim.running.len());
            sim.end(at, None);
            sim.drain();
            continue;
        }
        let Some(at) = sim.state.next_deadline() else { break };
        if sim.state.is_idle() && sim.state.runs.is_empty() && at > sim.now + 120_000 {
            break;
        }
        sim.now = sim.now.max(at);
        sim.event(Event::ClockChecked);
        sim.drain();
    }
    let mut wrong = Vec::new();
    for (app, folder) in &sim.apps {
        for row in folder.ledger.rows.values().filter(|row| row.status.is_open()) {
            wrong.push(format!("open row: {app}/{} {} {} {:?}", row.automation_id, row.run_id, row.status, row.origin));
        }
        let mut fired = folder.ledger.fired.clone();
        fired.sort();
        fired.dedup();
        if fired.len() != folder.ledger.fired.len() {
            wrong.push("a cron instant fired twice".to_owned());
        }
    }
    for (run, n) in sim.launched.iter().filter(|(_, n)| **n > 1) {
        wrong.push(format!("{run} launched {n} times"));
    }
    if !sim.state.runs.is_empty() || !sim.state.closing.is_empty() || !sim.state.parked.is_empty() {
        wrong.push(format!("held: {:?} {:?}", sim.state.runs.keys(), sim.state.closing.keys()));
    }
    let ((used, _), waiting) = sim.state.load();
    if used != 0 || waiting != (0, 0) {
        wrong.push(format!("slots {used}, waiting {waiting:?}"));
    }
    if !sim.state.skipping.is_empty() || sim.state.recoveries != 0 {
        wrong.push("skipping or recoveries".to_owned());
    }
    for n in sim.exempt + 1..=token {
        if sim.opened.get(&n) != Some(&1) {
            wrong.push(format!("token {n} answered {:?} times", sim.opened.get(&n)));
        }
        if let Some(run) = sim.accepted.get(&n)
            && sim.ended.get(&(n + 1_000_000)) != Some(&1)
        {
            wrong.push(format!("the end of {run} told {:?} times", sim.ended.get(&(n + 1_000_000))));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    if std::env::var("SIM_SEED").is_ok() {
        for line in &sim.log {
            println!("{line}");
        }
    }
    Err(wrong.join("; "))
}

fn many(renames: bool, restarts: bool) {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        run(seed.parse().unwrap(), renames, restarts, std::env::var("SIM_STEPS").map_or(120, |s| s.parse().unwrap()))
            .unwrap();
        return;
    }
    let mut bad = 0;
    let all = std::env::var("SIM_SEEDS").map_or(DEFAULT_SEEDS, |s| s.parse().unwrap());
    let mut told = 0;
    for seed in 1..=all {
        let steps = 20 + seed % 120;
        let result = std::panic::catch_unwind(|| run(seed, renames, restarts, steps));
        let error = match result {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(_) => "panic".to_owned(),
        };
        bad += 1;
        if told < 12 {
            told += 1;
            println!("seed {seed} steps {steps}: {}", error.chars().take(400).collect::<String>());
        }
    }
    assert_eq!(bad, 0, "of {all}");
}

#[test]
fn without_renames() {
    many(false, false);
}

#[test]
fn with_renames() {
    many(true, false);
}

#[test]
fn with_kills() {
    many(false, true);
}

#[test]
fn with_kills_and_renames() {
    many(true, true);
}

/// Every instant of `catchUp: "all"` has one row, whatever ledgers refuse and whenever the daemon is killed.
fn minutes(seed: u64) -> Result<(), String> {
    let mut sim = Sim::new(seed, 2);
    sim.prompt = true;
    let form = r#""concurrency":{"mode":"parallel","max":1000},"catchUp":"all","triggers":[{"kind":"cron","expr":"* * * * *"}]"#;
    let every3 = r#""catchUp":"skip","triggers":[{"kind":"cron","expr":"*/3 * * * *"}]"#;
    let automations = vec![("all".to_owned(), form.to_owned()), ("other".to_owned(), every3.to_owned())];
    sim.apps.insert("a".to_owned(), Folder { automations, ledger: Ledger::default() });
    sim.disk();
    sim.drain();
    for _ in 0..60 {
        match sim.pick(8) {
            0..=2 => {
                let to = sim.now + [500, 20_000, 40_000, 90_000, 400_000][sim.pick(5)];
                while let Some(at) = sim.state.next_deadline().filter(|at| *at <= to) {
                    if sim.pick(3) == 0 {
                        break;
                    }
                    sim.now = sim.now.max(at);
                    sim.event(Event::ClockChecked);
                    if sim.pick(3) > 0 {
                        sim.drain();
                    }
                }
                sim.drain();
                sim.now = sim.now.max(to);
                sim.event(Event::ClockChecked);
            }
            3 => {
                sim.drain();
                sim.broken = sim.pick(2) == 0;
            }
            4 if sim.pick(3) == 0 => {
                for app in sim.queues.keys().cloned().collect::<Vec<_>>() {
                    for _ in 0..sim.pick(4) {
                        sim.work(&app);
                    }
                }
                sim.queues.clear();
                sim.slow.clear();
                sim.inbox.clear();
                sim.running.clear();
                sim.log.push("=== killed".to_owned());
                sim.now += [0, 10_000, 600_000][sim.pick(3)];
                sim.state = State::new(2, true, ids(&sim.serial));
                sim.disk();
            }
            5 if sim.pick(3) == 0 => {
                // The clock steps back, and comes again.
                sim.now -= 100_000;
                sim.event(Event::ClockChecked);
            }
            _ if !sim.running.is_empty() => {
                let at = sim.pick(sim.running.len());
                sim.end(at, None);
            }
            _ => sim.settle_some(),
        }
    }
    sim.broken = false;
    sim.drain();
    for _ in 0..200 {
        sim.now += 10_000;
        sim.event(Event::ClockChecked);
        sim.drain();
        while !sim.running.is_empty() {
            sim.end(0, None);
            sim.drain();
        }
    }
    let ledger = &sim.apps["a"].ledger;
    let mut fired: Vec<i64> =
        ledger.fired.iter().filter(|f| f.0.as_str() == "all").map(|f| (f.2 - START) / MINUTE).collect();
    fired.sort_unstable();
    let last = (sim.now - START) / MINUTE;
    let missing: Vec<i64> = (1..=last).filter(|m| !fired.contains(m)).collect();
    if std::env::var("SIM_SEED").is_ok() {
        for line in &sim.log {
            println!("{line}");
        }
    }
    let run: usize =
        ledger.rows.values().filter(|r| r.automation_id.as_str() == "all" && r.status == RunStatus::Ok).count();
    let open = ledger.rows.values().filter(|r| r.status.is_open()).count();
    if missing.is_empty() && open == 0 {
        Ok(())
    } else {
        Err(format!("missing {missing:?} of {last}, ok {run}, open {open}"))
    }
}

#[test]
fn every_minute_has_its_row() {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        return minutes(seed.parse().unwrap()).unwrap();
    }
    let mut bad = 0;
    for seed in 1..=std::env::var("SIM_SEEDS").map_or(DEFAULT_SEEDS, |s| s.parse().unwrap()) {
        if let Err(error) = minutes(seed) {
            bad += 1;
            if bad < 12 {
                println!("seed {seed}: {error}");
            }
        }
    }
    assert_eq!(bad, 0);
}
