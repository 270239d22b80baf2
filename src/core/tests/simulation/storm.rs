//! Everything at random, and then everything comes to rest: no row stays open, no cron instant fires twice, and whoever
//! asked was answered once.

use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];
const FORMS: [(&str, &str); 5] = [
    ("s", r#""triggers":[{"kind":"cron","expr":"* * * * *"}],"retry":{"max":1,"backoffMs":500}"#),
    ("q", r#""concurrency":{"mode":"queued","max":2},"retry":{"max":2,"backoffMs":0}"#),
    ("p", r#""concurrency":{"mode":"parallel","max":2},"onFailure":"s""#),
    ("r", r#""concurrency":{"mode":"restart"},"onFailure":"b/q""#),
    ("e", r#""triggers":[{"kind":"cron","expr":"*/3 * * * *"}],"catchUp":"all""#),
];

/// What may happen, besides the ordinary.
#[derive(Debug, Clone, Copy)]
struct Weather {
    renames: bool,
    kills: bool,
}

fn forms() -> Vec<(String, String)> {
    FORMS.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

fn run(seed: u64, weather: Weather, steps: u64) -> Result<(), String> {
    let mut sim = Sim::new(seed);
    for name in ["a", "b"] {
        sim.apps.insert(name.to_owned(), Folder { automations: forms(), ledger: Ledger::default() });
    }
    sim.disk();
    for _ in 0..steps {
        for _ in 0..sim.pick(4) {
            sim.settle_some();
        }
        if !weather.renames {
            sim.check_limits()?;
        }
        sim.something(weather);
    }
    sim.come_to_rest();
    let wrong = sim.wrong();
    if wrong.is_empty() {
        return Ok(());
    }
    sim.show();
    Err(wrong.join("; "))
}

impl Sim {
    /// No more at once than the concurrency of each allows, nor than there are slots.
    fn check_limits(&self) -> Result<(), String> {
        for app in ["a", "b"] {
            for (id, most) in [("s", 1), ("q", 1), ("p", 2), ("r", 1), ("e", 1)] {
                let n = self.running.iter().filter(|s| s.handle == handle(&format!("{app}/{id}"))).count();
                if n > most {
                    return Err(format!("{n} of {app}/{id} at once"));
                }
            }
        }
        if self.state.load().0.0 > SLOTS + self.running.len() {
            return Err("slots".to_owned());
        }
        Ok(())
    }

    fn something(&mut self, weather: Weather) {
        match self.pick(24) {
            0..=4 => self.fire(TriggerOrigin::Manual, None),
            5..=7 if !self.running.is_empty() => {
                let at = self.pick(self.running.len());
                let parent = self.running[at].run_id.clone();
                self.fire(TriggerOrigin::Invoke, Some(parent));
            }
            8 if !self.running.is_empty() => {
                let at = self.pick(self.running.len());
                let run = self.running[at].run_id.clone();
                self.event(Event::CancelRequested { run, why: ErrorCode::Cancelled, token: None });
            }
            9 | 10 => {
                self.now += [500, 20_000, 40_000, 90_000][self.pick(4)];
                self.event(Event::ClockChecked);
            }
            11 => self.broken = self.pick(3) == 0,
            12 if weather.renames && self.pick(3) == 0 => self.rename(),
            13 if self.pick(2) == 0 => {
                if let Some((name, folder)) = self.away.pop() {
                    self.apps.insert(name, folder);
                } else if let Some(name) = self.any_app() {
                    let folder = self.apps.remove(&name).unwrap();
                    self.away.push((name, folder));
                }
                self.disk();
            }
            14 => self.edit(),
            15 if weather.kills && self.pick(4) == 0 => self.kill(),
            _ if !self.running.is_empty() => {
                self.end_any(|sim| (sim.pick(3) == 0).then_some(ErrorCode::HandlerThrew));
            }
            _ => {}
        }
    }

    fn fire(&mut self, origin: TriggerOrigin, parent: Option<RunId>) {
        self.token += 1;
        let app = NAMES[self.pick(3)];
        let id = FORMS[self.pick(5)].0;
        self.event(Event::FireRequested(FireRequest {
            parent,
            opened: Some(self.token),
            ended: Some(self.token + ENDED),
            ..FireRequest::new(handle(&format!("{app}/{id}")), origin)
        }));
    }

    fn any_app(&mut self) -> Option<String> {
        if self.apps.is_empty() {
            return None;
        }
        let at = self.pick(self.apps.len());
        self.apps.keys().nth(at).cloned()
    }

    /// An app folder gets a name that is free.
    fn rename(&mut self) {
        let free: Vec<&str> = NAMES.into_iter().filter(|name| !self.apps.contains_key(*name)).collect();
        if free.is_empty() {
            return;
        }
        let Some(from) = self.any_app() else { return };
        let to = free[self.pick(free.len())].to_owned();
        if !self.away.iter().any(|(name, _)| *name == to) {
            let moved = self.apps.remove(&from).unwrap();
            self.apps.insert(to, moved);
            self.disk();
        }
    }

    /// An automation is deleted, broken, switched off or put right.
    fn edit(&mut self) {
        let Some(name) = self.any_app() else { return };
        let (id, form) = FORMS[self.pick(5)];
        let how = self.pick(4);
        let list = &mut self.apps.get_mut(&name).unwrap().automations;
        list.retain(|(other, _)| other != id);
        match how {
            0 => {}
            1 => list.push((id.to_owned(), r#""timeoutMs":"soon""#.to_owned())),
            2 => list.push((id.to_owned(), format!(r#""enabled":false,{form}"#))),
            _ => list.push((id.to_owned(), form.to_owned())),
        }
        self.disk();
    }

    /// Everything comes back, well and without cron, and is let end.
    fn come_to_rest(&mut self) {
        self.broken = false;
        while let Some((name, folder)) = self.away.pop() {
            self.apps.insert(name, folder);
        }
        for folder in self.apps.values_mut() {
            folder.automations =
                FORMS.iter().map(|(a, b)| ((*a).to_owned(), format!(r#""enabled":false,{b}"#))).collect();
        }
        self.disk();
        self.drain();
        for _ in 0..3000 {
            if !self.running.is_empty() {
                self.end_any(|_| None);
                self.drain();
                continue;
            }
            let Some(at) = self.state.next_deadline() else { break };
            if self.state.is_idle() && self.state.runs.is_empty() && at > self.now + 120_000 {
                break;
            }
            self.now = self.now.max(at);
            self.event(Event::ClockChecked);
            self.drain();
        }
    }

    /// All that is not as it must be at rest.
    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (app, folder) in &self.apps {
            for row in folder.ledger.rows.values().filter(|row| row.status.is_open()) {
                wrong.push(format!(
                    "open row: {app}/{} {} {} {:?}",
                    row.automation_id, row.run_id, row.status, row.origin
                ));
            }
            let mut fired = folder.ledger.fired.clone();
            fired.sort();
            fired.dedup();
            if fired.len() != folder.ledger.fired.len() {
                wrong.push("a cron instant fired twice".to_owned());
            }
        }
        for (run, n) in self.launched.iter().filter(|(_, n)| **n > 1) {
            wrong.push(format!("{run} launched {n} times"));
        }
        let state = &self.state;
        if !state.runs.is_empty() || !state.closing.is_empty() || !state.parked.is_empty() {
            wrong.push(format!("held: {:?} {:?}", state.runs.keys(), state.closing.keys()));
        }
        let ((used, _), waiting) = state.load();
        if used != 0 || waiting != (0, 0) {
            wrong.push(format!("slots {used}, waiting {waiting:?}"));
        }
        if !state.skipping.is_empty() || state.recoveries != 0 {
            wrong.push("skipping or recoveries".to_owned());
        }
        for n in self.exempt + 1..=self.token {
            if self.opened.get(&n) != Some(&1) {
                wrong.push(format!("token {n} answered {:?} times", self.opened.get(&n)));
            }
            if let Some(run) = self.accepted.get(&n)
                && self.ended.get(&(n + ENDED)) != Some(&1)
            {
                wrong.push(format!("the end of {run} told {:?} times", self.ended.get(&(n + ENDED))));
            }
        }
        wrong
    }
}

fn many(weather: Weather) {
    each_seed(|seed| {
        let steps = std::env::var("SIM_STEPS").map_or(20 + seed % 120, |steps| steps.parse().unwrap());
        run(seed, weather, steps)
    });
}

#[test]
fn without_renames() {
    many(Weather { renames: false, kills: false });
}

#[test]
fn with_renames() {
    many(Weather { renames: true, kills: false });
}

#[test]
fn with_kills() {
    many(Weather { renames: false, kills: true });
}

#[test]
fn with_kills_and_renames() {
    many(Weather { renames: true, kills: true });
}
