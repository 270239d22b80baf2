//! Random events against ledgers that answer late and out of step, with apps that come, go and get other names, ledgers
//! that refuse, and kills. `SIM_SEEDS` sets how many seeds are tried; `SIM_SEED` (with `SIM_STEPS`) tries one and shows all
//! that happened.

mod ledger;
mod minutes;
mod storm;

use super::*;
use ledger::Ledger;

/// Enough to meet most orders, few enough for every run of the tests.
const DEFAULT_SEEDS: u64 = 60;
/// Few, so that there is always somebody who waits for one.
const SLOTS: usize = 2;
/// Tokens of ends begin here, so that they are told from those of answers.
const ENDED: Token = 1_000_000;

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
    /// The last one given to a caller.
    token: Token,
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
    launched: HashMap<RunId, u32>,
    opened: HashMap<Token, u32>,
    ended: HashMap<Token, u32>,
    accepted: HashMap<Token, RunId>,
    log: Vec<String>,
    random: u64,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let serial = Arc::new(std::sync::atomic::AtomicU64::new(0));
        Self {
            state: State::new(SLOTS, true, ids(&serial)),
            serial,
            token: 0,
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
            launched: HashMap::new(),
            opened: HashMap::new(),
            ended: HashMap::new(),
            accepted: HashMap::new(),
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
            Effect::Answer { token, answer } => {
                if *token >= ENDED {
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
            Some(ledger) => ledger.perform(effect),
            None => refusal_of(&effect),
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

    /// Ends one of those that run, whichever.
    fn end_any(&mut self, code: impl FnOnce(&mut Self) -> Option<ErrorCode>) {
        let at = self.pick(self.running.len());
        let code = code(self);
        self.end(at, code);
    }

    /// `kill -9`, and another daemon: what is in the queues is done, or not; nobody hears of it.
    fn kill(&mut self) {
        for app in self.queues.keys().cloned().collect::<Vec<_>>() {
            for _ in 0..self.pick(4) {
                self.work(&app);
            }
        }
        self.queues.clear();
        self.slow.clear();
        self.inbox.clear();
        self.running.clear();
        self.log.push("=== killed".to_owned());
        self.exempt = self.token;
        self.now += [0, 10_000, 600_000][self.pick(3)];
        self.state = State::new(SLOTS, true, ids(&self.serial));
        self.disk();
    }

    /// Everything that happened, for who asked for one seed.
    fn show(&self) {
        if std::env::var("SIM_SEED").is_ok() {
            for line in &self.log {
                println!("{line}");
            }
        }
    }
}

/// Tries the seeds, all of them whatever fails; or the one that is asked for.
fn each_seed(run: impl Fn(u64) -> Result<(), String> + std::panic::RefUnwindSafe) {
    if let Ok(seed) = std::env::var("SIM_SEED") {
        return run(seed.parse().unwrap()).unwrap();
    }
    let all = std::env::var("SIM_SEEDS").map_or(DEFAULT_SEEDS, |seeds| seeds.parse().unwrap());
    let mut bad = 0;
    for seed in 1..=all {
        let error = match std::panic::catch_unwind(|| run(seed)) {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(_) => "panic".to_owned(),
        };
        bad += 1;
        if bad <= 12 {
            println!("seed {seed}: {}", error.chars().take(400).collect::<String>());
        }
    }
    assert_eq!(bad, 0, "of {all}");
}
