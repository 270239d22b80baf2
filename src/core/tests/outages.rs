//! What an earlier daemon left, what was missed, and ledgers that refuse.

use super::*;

#[test]
fn what_a_dead_daemon_left_open_is_closed_retried_or_run() {
    let mut world = World::new(8);
    world.disk(&[("x", r#""retry":{"max":1,"backoffMs":1000}"#), ("y", ""), ("z", "")]);
    let retried = NewRun { status: RunStatus::Running, ..queued("x") };
    let lost = NewRun { status: RunStatus::Running, ..queued("y") };
    let orphan = NewRun { parent_run_id: Some(lost.run_id.clone()), ..queued("z") };
    let queued = queued("z");
    for row in [&retried, &lost, &queued, &orphan] {
        world.rows.insert(row.run_id.clone(), row.clone());
    }
    world.recovered(Recovered {
        running: vec![retried.clone(), lost.clone()],
        queued: vec![queued.clone(), orphan.clone()],
        watermarks: Vec::new(),
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
    world.recovered(Recovered { watermarks: vec![mark], ..Recovered::default() });
    assert_eq!(world.running[0].trigger.missed, Some(2));

    let mut world = World::with(8, &[("x", hourly)]);
    world.disk(&[("x", &format!(r#""enabled":false,{hourly}"#))]);
    world.advance(START + 5 * 60 * MINUTE);
    world.disk(&[("x", hourly)]);
    assert!(world.running.is_empty() && world.rows.is_empty(), "being disabled is no outage");
    assert_eq!(world.state.next_deadline(), Some(START + 6 * 60 * MINUTE));
}

#[test]
fn every_missed_instant_is_made_up_for_whatever_overtakes() {
    let all =
        r#""catchUp":"all","concurrency":{"mode":"parallel","max":3},"triggers":[{"kind":"cron","expr":"0 * * * *"}]"#;
    let mut world = World::new(8);
    world.disk(&[("x", all)]);
    world.watermarks.insert((AutomationId::new("x").unwrap(), "0 * * * * UTC".to_owned()), (START - 7 * HOUR, true));
    world.now = START + 10 * MINUTE;
    world.recovered(world.found());
    let instants: Vec<_> = world.rows.values().map(|r| (r.scheduled_for.unwrap() - START) / HOUR).collect();
    assert_eq!(instants, [-6, -5, -4, -3, -2, -1, 0]);
    while let Some(run) = world.running.first().map(|spec| spec.run_id.clone()) {
        world.end(&run, None);
    }
    assert!(world.rows.values().all(|row| row.status == RunStatus::Ok));
    world.assert_quiet();
}

#[test]
fn what_was_disabled_missed_nothing() {
    let hourly = r#""triggers":[{"kind":"cron","expr":"0 * * * *"}]"#;
    let disabled = format!(r#""enabled":false,{hourly}"#);
    // Disabled while up or while down, enabled while down or while up: (before, when the next daemon starts, after).
    for (before, at_start, after) in [
        (disabled.as_str(), hourly, hourly),
        (hourly, disabled.as_str(), hourly),
        (disabled.as_str(), disabled.as_str(), hourly),
    ] {
        let mut world = World::with(8, &[("x", hourly)]);
        world.disk(&[("x", before)]);
        let mut next = World::new(8);
        (next.watermarks, next.now) = (world.watermarks, START + 5 * HOUR + 10 * MINUTE);
        next.disk(&[("x", at_start)]);
        next.recovered(next.found());
        let mut third = World::new(8);
        (third.watermarks, third.now, third.rows) = (next.watermarks, START + 9 * HOUR + 10 * MINUTE, next.rows);
        third.disk(&[("x", after)]);
        let expected = usize::from(at_start == hourly);
        third.recovered(third.found());
        assert_eq!(third.rows.len(), expected, "only the outage in which it was enabled counts");
    }
}

#[test]
fn cron_fires_that_a_ledger_refused_are_made_up_for_when_it_takes_them() {
    let mut world = World::with(8, &[("x", r#""triggers":[{"kind":"cron","expr":"*/10 * * * *"}]"#), ("y", "")]);
    world.broken = true;
    world.advance(START + 45 * MINUTE);
    assert!(world.rows.is_empty() && world.running.is_empty(), "nothing runs unrecorded");
    assert!(world.notices.iter().any(|told| told.contains("disk full")));
    world.broken = false;
    world.advance(START + 46 * MINUTE);
    let trigger = &world.running[0].trigger;
    assert_eq!((trigger.scheduled_for, trigger.missed), (Some(START + 40 * MINUTE), Some(3)));
    let run = world.running[0].run_id.clone();
    world.end(&run, None);
    world.advance(START + 50 * MINUTE);
    assert_eq!(world.running[0].trigger.scheduled_for, Some(START + 50 * MINUTE), "and then as ever");
}

#[test]
fn a_recovery_that_is_refused_is_asked_for_again() {
    let mut world = World::new(8);
    (world.recovers, world.broken) = (true, true);
    let lost = queued("z");
    world.rows.insert(lost.run_id.clone(), lost.clone());
    world.disk(&[("z", EVERY_MINUTE)]);
    world.advance(START + 20_000);
    assert!(world.running.is_empty());
    world.broken = false;
    world.advance(START + REFUSED_PAUSE_MS);
    assert!(world.is_running(&lost.run_id));
    world.end(&lost.run_id, None);
    world.advance(START + MINUTE);
    assert_eq!(world.running.len(), 1, "its cron goes on");
}

#[test]
fn an_end_that_is_refused_is_offered_until_it_is_taken() {
    let mut world = World::with(8, &[("x", r#""onFailure":"h""#), ("h", "")]);
    let run = world.manual("x", 1).unwrap();
    world.broken = true;
    world.end(&run, Some(ErrorCode::HandlerThrew));
    let [Answer::NotRecorded { message }] = &world.answers[&1001][..] else { panic!("{:?}", world.answers[&1001]) };
    assert!(message.contains("ended in error") && message.contains("disk full"), "{message}");
    assert!(!world.state.is_idle(), "a daemon that stops waits for it");
    world.event(Event::Stopping);
    world.advance(START + 5 * MINUTE);
    assert!(world.ends.is_empty() && world.running.is_empty(), "nothing follows from an end that is not written");
    world.broken = false;
    world.advance(world.now + REFUSED_PAUSE_MS);
    assert_eq!(world.ends[&run].error_code, Some(ErrorCode::HandlerThrew), "the end that it had, and not another");
    assert!(world.state.is_idle());
    let handler = world.rows.values().find(|row| row.origin == TriggerOrigin::Failure).expect("in the same step");
    assert_eq!(handler.status, RunStatus::Queued);
}

#[test]
fn a_failure_is_handled_in_another_app_once_its_end_is_written() {
    let mut world = World::with(8, &[("x", r#""onFailure":"b/h""#)]);
    let run = world.manual("x", 1).unwrap();
    world.end(&run, Some(ErrorCode::HandlerThrew));
    assert!(world.notices.iter().any(|told| told.contains("b/h")), "{:?}", world.notices);
    world.assert_quiet();
}

#[test]
fn a_start_that_is_refused_is_tried_again() {
    let mut world = World::with(1, &[("x", ""), ("y", "")]);
    let first = world.manual("x", 1).unwrap();
    let second = world.manual("y", 2).unwrap();
    world.broken = true;
    world.end(&first, None);
    assert!(!world.is_running(&second));
    world.broken = false;
    world.advance(world.now + REFUSED_PAUSE_MS);
    assert!(world.is_running(&second));
    world.end(&second, None);
    assert!(matches!(world.answers[&1002][..], [Answer::Ended(_)]), "whoever waited for it is told");
    world.assert_quiet();
}

#[test]
fn a_run_whose_app_gets_another_name_is_closed_in_the_ledger_that_holds_it() {
    let mut world = World::with(8, &[("x", ""), ("y", "")]);
    let run = world.manual("x", 1).unwrap();
    let waiting = world.manual("y", 2).unwrap();
    world.event(Event::CancelRequested { run: waiting.clone(), why: ErrorCode::Cancelled, token: None });
    world.broken = true;
    world.end(&waiting, None);
    world.broken = false;
    world.disk_of("b", &[("x", ""), ("y", "")]);
    let found = world.found();
    world.event(Event::LedgerRecovered { app: AppId::new("b").unwrap(), result: Ok(found) });
    assert_eq!(world.ends[&waiting].status, RunStatus::Cancelled);
    world.fire_in("b", "x", TriggerOrigin::Manual, None, 3);
    assert!(matches!(world.answers[&3][..], [Answer::Busy { .. }]), "it counts as active there");
    world.end(&run, None);
    assert_eq!(world.ends[&run].status, RunStatus::Ok);
    world.assert_quiet();
}

#[test]
fn rows_left_under_another_name_are_closed_and_run_under_the_new_one() {
    let mut world = World::new(8);
    let (lost, kept) = (NewRun { status: RunStatus::Running, ..queued("x") }, queued("y"));
    for row in [&lost, &kept] {
        world.rows.insert(row.run_id.clone(), row.clone());
    }
    world.recovers = true;
    world.disk_of("b", &[("x", ""), ("y", "")]);
    assert_eq!(world.ends[&lost.run_id].error_code, Some(ErrorCode::Interrupted));
    assert_eq!(world.running[0].handle, handle("b/y"));
    world.end(&kept.run_id, None);
    world.assert_quiet();
}

#[test]
fn a_recovery_that_was_read_before_an_end_was_written_does_not_end_the_run_again() {
    let mut world = World::with(8, &[("x", "")]);
    let run = world.manual("x", 1).unwrap();
    world.recovers = false;
    world.disk_of("b", &[]);
    world.disk(&[("x", "")]);
    let before = world.found();
    world.end(&run, None);
    world.recovered(before);
    world.event(Event::LedgerRecovered { app: AppId::new("b").unwrap(), result: Ok(Recovered::default()) });
    assert_eq!(world.ends[&run].status, RunStatus::Ok);
    world.assert_quiet();
}

#[test]
fn a_row_whose_manifest_is_broken_at_the_start_waits_for_a_valid_one() {
    let mut world = World::new(8);
    let row = queued("z");
    world.rows.insert(row.run_id.clone(), row.clone());
    world.recovers = true;
    world.disk(&[("z", r#""timeoutMs":"soon""#)]);
    assert_eq!(world.rows[&row.run_id].status, RunStatus::Queued);
    world.disk(&[("z", "")]);
    assert!(world.is_running(&row.run_id));
    world.end(&row.run_id, None);
    world.assert_quiet();

    let gone = queued("gone");
    world.rows.insert(gone.run_id.clone(), gone.clone());
    world.recovered(world.found());
    assert_eq!(world.ends[&gone.run_id].status, RunStatus::Cancelled, "there is nothing to wait for");
}

#[test]
fn a_clock_that_goes_back_is_told() {
    let mut world = World::with(8, &[("x", EVERY_MINUTE)]);
    world.advance(START + 30 * MINUTE);
    world.now = START;
    world.event(Event::ClockChecked);
    assert!(world.notices.iter().any(|told| told.contains("went back")), "{:?}", world.notices);
}

#[test]
fn a_new_name_that_is_seen_before_the_old_one_is_gone_is_no_copy() {
    for is_copy in [false, true] {
        let mut world = World::with(8, &[("x", "")]);
        let run = world.manual("x", 1).unwrap();
        let both = vec![folder("a", &[("x", "")]), folder("b", &[("x", "")])];
        world.recovers = false;
        world.event(Event::DiskChanged(DiskBatch { full: true, apps: both, root_problems: Vec::new() }));
        world.recovers = true;
        world.event(Event::LedgerRecovered { app: AppId::new("b").unwrap(), result: Ok(world.found()) });
        assert!(world.ends.is_empty(), "nothing is decided yet");
        if !is_copy {
            world.disk_of("b", &[("x", "")]);
        }
        let before = world.ends.len();
        world.advance(world.now + DOUBT_MS);
        // The list that stands for all ledgers here is one: the copy's row is the row.
        assert_eq!(world.ends.len() - before, usize::from(is_copy));
        if !is_copy {
            world.end(&run, None);
            assert_eq!(world.ends[&run].status, RunStatus::Ok);
            world.assert_quiet();
        }
    }
}
