//! The life of runs: admitted, run, ended, retried, handed over.

use super::*;

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
    world.broken = true;
    world.manual("x", 9);
    assert_eq!(world.aborted.len(), 1, "what cannot be recorded takes nobody's place");
    world.broken = false;
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
fn parents_that_wait_leave_hosts_to_those_they_wait_for() {
    let parallel = r#""concurrency":{"mode":"parallel","max":1000}"#;
    let mut world = World::with(2, &[("p", parallel), ("c", ""), ("q", "")]);
    // `c` is in the line already, at depth 0, when the parents come to wait for it.
    let (mut served, mut token) = (0, 0);
    let blocker = world.manual("q", 9_000).unwrap();
    for _ in 0..200 {
        token += 1;
        world.manual("p", token).unwrap();
    }
    let child = world.manual("c", 9_001).unwrap();
    let mut asked = std::collections::HashSet::new();
    for _ in 0..5_000 {
        let hosts = world.running.len();
        assert!(hosts <= 2 * (MAX_INVOKE_DEPTH as usize + 2), "{hosts} hosts");
        let parents: Vec<RunId> =
            world.running.iter().filter(|s| s.handle == handle("a/p")).map(|s| s.run_id.clone()).collect();
        if let Some(parent) = parents.iter().find(|id| !asked.contains(*id)) {
            asked.insert(parent.clone());
            token += 1;
            world.fire("c", TriggerOrigin::Invoke, Some(parent.clone()), token);
            continue;
        }
        if world.is_running(&blocker) {
            world.end(&blocker, None);
            continue;
        }
        let Some(run) = world.running.iter().find(|s| s.handle == handle("a/c")).map(|s| s.run_id.clone()) else {
            break;
        };
        world.end(&run, None);
        let parent = world.rows[&run].parent_run_id.clone();
        served += usize::from(parent.is_some());
        if let Some(parent) = parent {
            world.end(&parent, None);
        }
    }
    assert_eq!(served, 200, "every parent got its child");
    assert_eq!(world.ends[&child].status, RunStatus::Ok);
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

    let mut world = World::with(1, &[("p", ""), ("c", "")]);
    let busy = world.manual("c", 1).unwrap();
    let parent = world.manual("p", 2).unwrap();
    world.end(&busy, None);
    let busy = world.manual("c", 3).unwrap();
    world.fire("c", TriggerOrigin::Invoke, Some(parent.clone()), 4);
    let child = world.accepted(4).unwrap();
    world.event(Event::Stopping);
    world.end(&busy, None);
    assert!(world.is_running(&child), "a run that was let go on gets the child that it waits for");
    world.end(&child, None);
    world.end(&parent, None);
    world.assert_quiet();
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

#[test]
fn a_post_that_the_filter_refuses_is_only_recorded() {
    let mut world = World::with(8, &[("x", "")]);
    let busy = world.manual("x", 1).unwrap();
    let post = |token| FireRequest {
        synced: true,
        skip: Some(Skip::Filter),
        opened: Some(token),
        ..FireRequest::new(handle("a/x"), TriggerOrigin::Webhook)
    };
    world.event(Event::FireRequested(post(2)));
    let [Answer::Skipped { run }] = &world.answers[&2][..] else { panic!("{:?}", world.answers[&2]) };
    let row = &world.rows[run];
    assert_eq!((row.status, row.trigger.reason.as_deref()), (RunStatus::Skipped, Some("filter")));
    world.broken = true;
    world.event(Event::FireRequested(post(3)));
    assert!(matches!(world.answers[&3][..], [Answer::NotRecorded { .. }]));
    world.broken = false;
    world.end(&busy, None);
    world.assert_quiet();
}
