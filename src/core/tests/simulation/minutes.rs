//! A trigger of every minute: each of its instants has its row.

use super::*;

/// Every instant of `catchUp: "all"` has one row, whatever ledgers refuse and whenever the daemon is killed.
fn minutes(seed: u64) -> Result<(), String> {
    let mut sim = Sim::new(seed);
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
            4 if sim.pick(3) == 0 => sim.kill(),
            5 if sim.pick(3) == 0 => {
                // The clock steps back, and comes again.
                sim.now -= 100_000;
                sim.event(Event::ClockChecked);
            }
            _ if !sim.running.is_empty() => sim.end_any(|_| None),
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
    sim.show();
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
    each_seed(minutes);
}
