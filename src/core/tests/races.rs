//! Answers that come in an unlucky order, apps that come and go meanwhile, and waits that hold each other up.

use super::*;

/// A parked row is parked again by each recovery that finds it.
#[test]
fn a_parked_row_is_started_once() {
    let broken = r#""timeoutMs":"soon""#;
    let mut world = World::new(4);
    world.recovers = true;
    let parked = queued("z");
    world.rows.insert(parked.run_id.clone(), parked.clone());
    world.disk(&[("z", broken), ("x", EVERY_MINUTE)]);
    // The disk is full for a moment; the ledger is asked again.
    world.broken = true;
    world.advance(START + MINUTE);
    world.broken = false;
    world.advance(START + 2 * MINUTE);
    world.disk(&[("z", ""), ("x", r#""enabled":false"#)]);
    while let Some(run) = world.running.first().map(|s| s.run_id.clone()) {
        world.end(&run, None);
    }
    world.assert_quiet();
}

/// The ledger has written an end with its retry; a recovery that is read behind it is heard before.
#[test]
fn a_retry_that_a_recovery_finds_first_enters_once() {
    for backoff in [0, 1000] {
        let mut world = World::with(4, &[("x", &format!(r#""retry":{{"max":1,"backoffMs":{backoff}}}"#))]);
        let run = world.manual("x", 1).unwrap();
        // Any recovery that is under way (an app that was away, a ledger that refused a cron fire).
        world.recovers = false;
        world.disk_of("b", &[]);
        world.disk(&[("x", &format!(r#""retry":{{"max":1,"backoffMs":{backoff}}}"#))]);
        let end = RunEnd::error(ErrorCode::HandlerThrew, "boom", world.now);
        let mut effects = world.state.on_event(world.now, Event::RunEnded { run: run.clone(), end });
        assert_eq!(effects.len(), 1);
        let closed = world.perform(effects.remove(0)).unwrap();
        let found = world.found();
        world.recovered(found);
        world.event(closed);
        world.advance(world.now + 2000);
        let starts = world.running.len();
        while let Some(run) = world.running.first().map(|s| s.run_id.clone()) {
            world.end(&run, None);
        }
        assert_eq!(starts, 1);
        world.assert_quiet();
    }
}

/// A run that is waited for by a deep one is raised; the children that it makes afterwards are not.
#[test]
fn children_of_a_raised_run_are_served() {
    let mut world = World::with(1, &[("n0", ""), ("n1", ""), ("n2", ""), ("n3", ""), ("n4", ""), ("a", ""), ("c", "")]);
    let mut run = world.manual("n0", 100).unwrap();
    let a0 = world.manual("a", 101).unwrap();
    for n in 1..=4 {
        world.fire(&format!("n{n}"), TriggerOrigin::Invoke, Some(run.clone()), n);
        run = world.accepted(n).unwrap();
        assert!(world.is_running(&run));
    }
    world.fire("a", TriggerOrigin::Invoke, Some(run.clone()), 5);
    assert!(world.is_running(&a0), "it is waited for");
    world.fire("c", TriggerOrigin::Invoke, Some(a0.clone()), 6);
    let c = world.accepted(6).unwrap();
    assert!(world.is_running(&c), "everybody waits for it, and it waits for a host: {:?}", world.state.load());
}

/// The ranks end at 8, but who waits for whom does not.
#[test]
fn who_is_waited_for_by_all_is_served_whatever_the_ranks() {
    let names: Vec<String> = (0..8).flat_map(|n| [format!("n{n}"), format!("m{n}")]).collect();
    let automations: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "")).collect();
    let mut world = World::with(1, &automations);
    let mut run = world.manual("n0", 100).unwrap();
    let mut other = world.manual("m0", 101).unwrap();
    for n in 1..=7 {
        world.fire(&format!("n{n}"), TriggerOrigin::Invoke, Some(run.clone()), n);
        run = world.accepted(n).unwrap();
    }
    world.fire("m0", TriggerOrigin::Invoke, Some(run.clone()), 8);
    for n in 1..=3 {
        assert!(world.is_running(&other), "m{} of {:?}", n - 1, world.state.load());
        world.fire(&format!("m{n}"), TriggerOrigin::Invoke, Some(other.clone()), 10 + n);
        other = world.accepted(10 + n).unwrap();
    }
    assert!(world.is_running(&other), "{:?}", world.state.load());
}

/// `cp -r a b` while a run of `a` is open: the copy's ledger tells of the same run.
#[test]
fn a_copy_of_an_app_takes_no_run_away() {
    let mut world = World::with(4, &[("x", "")]);
    let run = world.manual("x", 1).unwrap();
    world.recovers = false;
    let copied = world.found();
    let apps = vec![folder("a", &[("x", "")]), folder("b", &[("x", "")])];
    world.event(Event::DiskChanged(DiskBatch { full: true, apps, root_problems: Vec::new() }));
    world.event(Event::LedgerRecovered { app: AppId::new("b").unwrap(), result: Ok(copied) });
    assert_eq!(world.manual("x", 2), None, "a/x is `single`, and its run goes on");
    let end = RunEnd::cancelled(ErrorCode::Cancelled, world.now);
    let effects = world.state.on_event(world.now, Event::RunEnded { run, end });
    let [Effect::CloseRun(close)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(close.handle.app.as_str(), "a", "its row in a's ledger would stay `running`");
}

/// An end that waits for its ledger goes with a renamed app; the retry in it does not.
#[test]
fn a_retry_goes_with_its_renamed_app() {
    let manifest = r#""retry":{"max":1,"backoffMs":1000}"#;
    let mut world = World::with(4, &[("x", manifest)]);
    let run = world.manual("x", 1).unwrap();
    world.broken = true;
    world.end(&run, Some(ErrorCode::HandlerThrew));
    world.recovers = false;
    world.disk_of("b", &[("x", manifest)]);
    world.broken = false;
    let found = world.found();
    world.event(Event::LedgerRecovered { app: AppId::new("b").unwrap(), result: Ok(found) });
    assert_eq!(world.ends[&run].status, RunStatus::Error);
    world.advance(world.now + 2000);
    let retry = world.rows.values().find(|r| r.origin == TriggerOrigin::Retry).unwrap();
    assert!(world.is_running(&retry.run_id), "{retry:?} {:?} {:?}", world.ends.get(&retry.run_id), world.notices);
}

/// An end that comes between a rename and the recovery under the new name is lost, and the run done again.
#[test]
fn an_end_between_a_rename_and_its_recovery_is_kept() {
    let manifest = r#""retry":{"max":1,"backoffMs":0}"#;
    let mut world = World::with(4, &[("x", manifest)]);
    let run = world.manual("x", 1).unwrap();
    world.recovers = false;
    world.disk_of("b", &[("x", manifest)]);
    let end = RunEnd {
        status: RunStatus::Ok,
        error: None,
        error_code: None,
        ..RunEnd::cancelled(ErrorCode::Cancelled, world.now)
    };
    let effects = world.state.on_event(world.now, Event::RunEnded { run: run.clone(), end });
    let [Effect::CloseRun(close)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(close.handle.app.as_str(), "a");
    world.running.clear();
    // There is no folder `a` any more.
    world.event(Event::RunClosed { run: run.clone(), app: AppId::new("a").unwrap(), result: Err(refused()) });
    let found = world.found();
    world.event(Event::LedgerRecovered { app: AppId::new("b").unwrap(), result: Ok(found) });
    assert_eq!(world.ends[&run].status, RunStatus::Ok, "it ended well");
    assert!(world.running.is_empty(), "and is not run again");
}

/// Disabled and enabled again while the app's ledger refuses.
#[test]
fn being_disabled_is_no_outage_while_a_ledger_refuses_either() {
    let every = r#""triggers":[{"kind":"cron","expr":"*/10 * * * *"}]"#;
    let mut world = World::with(4, &[("x", every)]);
    world.broken = true;
    world.advance(START + 11 * MINUTE);
    world.disk(&[("x", &format!(r#""enabled":false,{every}"#))]);
    world.advance(START + 5 * HOUR + 5 * MINUTE);
    world.disk(&[("x", every)]);
    world.broken = false;
    world.advance(START + 5 * HOUR + 6 * MINUTE);
    assert!(world.rows.is_empty(), "{:?}", world.rows.values().map(|r| &r.trigger).collect::<Vec<_>>());
}

/// An app whose first recovery is under way (or refused) goes for a moment and comes back.
#[test]
fn an_app_that_flickers_at_the_start_still_makes_up_for_the_outage() {
    let hourly = r#""triggers":[{"kind":"cron","expr":"0 * * * *"}]"#;
    let mut world = World::new(4);
    world.watermarks.insert((AutomationId::new("x").unwrap(), "0 * * * * UTC".to_owned()), (START - 3 * HOUR, true));
    world.now = START + MINUTE;
    world.disk(&[("x", hourly)]);
    world.event(Event::DiskChanged(DiskBatch { full: true, apps: vec![], root_problems: Vec::new() }));
    world.recovers = true;
    world.disk(&[("x", hourly)]);
    assert_eq!(world.running.len(), 1);
}

/// A child whose start is refused while the daemon stops.
#[test]
fn a_child_is_asked_again_for_its_start_while_stopping() {
    let mut world = World::with(1, &[("p", ""), ("c", "")]);
    let parent = world.manual("p", 1).unwrap();
    let busy = {
        // Takes c's lane.
        world.fire("c", TriggerOrigin::Manual, None, 2);
        world.accepted(2).unwrap()
    };
    world.fire("c", TriggerOrigin::Invoke, Some(parent.clone()), 3);
    let child = world.accepted(3).unwrap();
    assert!(world.is_running(&busy));
    world.event(Event::Stopping);
    world.broken = true;
    // busy ends; its end is refused, and so is the child's start.
    world.end(&busy, None);
    world.broken = false;
    world.advance(world.now + 2 * MINUTE);
    assert!(world.is_running(&child), "{:?}", world.state.next_deadline());
}

/// Rows of an overlap, and the count of what was skipped, are lost when the ledger refuses them.
#[test]
fn a_skipped_row_that_is_refused_is_made_up_for() {
    let mut world = World::with(4, &[("x", r#""triggers":[{"kind":"cron","expr":"0 * * * *"}]"#)]);
    world.advance(START + HOUR);
    let first = world.running[0].run_id.clone();
    world.broken = true;
    world.advance(START + 2 * HOUR);
    world.broken = false;
    world.end(&first, None);
    world.advance(START + 2 * HOUR + 5 * MINUTE);
    let instants: Vec<_> = world.rows.values().map(|r| (r.scheduled_for.unwrap() - START) / HOUR).collect();
    assert_eq!(instants, [1, 2]);
}

/// An app that is gone when its refusal comes is remembered as cold; when it comes back, its absence counts as an
/// outage.
#[test]
fn an_app_that_was_away_missed_nothing() {
    let every = r#""triggers":[{"kind":"cron","expr":"*/10 * * * *"}]"#;
    let mut world = World::with(4, &[("x", every)]);
    // The folder is taken away just when the trigger is due: the row is refused, and by then the app is known to be gone.
    world.now = START + 10 * MINUTE;
    let effects = world.state.on_event(world.now, Event::ClockChecked);
    let [Effect::OpenRun { run, .. }] = &effects[..] else { panic!("{effects:?}") };
    world.event(Event::DiskChanged(DiskBatch { full: true, apps: vec![], root_problems: Vec::new() }));
    world.event(Event::RunOpened { run: run.run_id.clone(), result: Err(refused()) });
    world.advance(START + 5 * HOUR + 5 * MINUTE);
    world.disk(&[("x", every)]);
    assert!(world.rows.is_empty(), "{:?}", world.rows.values().map(|r| &r.trigger).collect::<Vec<_>>());
}

/// Of missed instants that are made up for together, a ledger refuses the first alone (a lock that ends meanwhile).
#[test]
fn an_instant_that_is_refused_before_others_is_made_up_for() {
    let all =
        r#""catchUp":"all","concurrency":{"mode":"parallel","max":9},"triggers":[{"kind":"cron","expr":"0 * * * *"}]"#;
    let mut world = World::with(8, &[("x", all)]);
    world.now = START + 3 * HOUR + 10 * MINUTE;
    let effects = world.state.on_event(world.now, Event::ClockChecked);
    // A lock that ends meanwhile.
    for (n, effect) in effects.into_iter().enumerate() {
        world.broken = n == 0;
        let answer = world.perform(effect).unwrap();
        world.broken = false;
        world.event(answer);
    }
    world.advance(world.now + 5 * MINUTE);
    let instants: Vec<_> = world.rows.values().map(|r| (r.scheduled_for.unwrap() - START) / HOUR).collect();
    assert_eq!(instants, [1, 2, 3]);
}
