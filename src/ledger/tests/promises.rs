//! What is promised of every row: recorded before it is told, once, and still there after a crash.

use super::*;
use crate::fire::{LogLevel, LogLine};
use crate::ledger::faults::{Point, SQLITE_FULL, SQLITE_IOERR};

#[tokio::test]
async fn a_run_is_kept_with_its_nodes_and_logs() {
    let root = root();
    let app = root.app("shop");
    let mut run = queued(&app, T0);
    run.input_json = Some(r#"{"x":1}"#.to_owned());
    let id = root.opened(&app, run).await;
    root.ledgers.start_run(&app, &id, T0 + 1, Some("ab12".to_owned())).await.unwrap();
    let agent = NewNode { kind: NodeKind::Agent, batch_id: Some(3), ..node(1) };
    root.ledgers.open_nodes(&app, &id, vec![node(0), agent]).await.unwrap();
    let usage = NodeClose { usage_json: Some(r#"{"tokens":5}"#.to_owned()), ..node_end(1) };
    root.ledgers.close_nodes(&app, &id, vec![usage]).await.unwrap();
    let line = |text: &str| LogLine { at: T0, level: LogLevel::Warn, message: text.to_owned(), fields_json: None };
    root.ledgers.append_logs(&app, &id, 0, vec![line("one"), line("two")]).await.unwrap();
    let mut close = (*end(&id, T0 + 9, RunStatus::Ok, HistoryKeep::All)).clone();
    close.end.output_json = Some(r#"{"sum":2}"#.to_owned());
    root.ledgers.close_run(&app, Arc::new(close)).await.unwrap();

    let reader = root.reader(&app);
    let row = serde_json::to_value(reader.run(&id).unwrap().unwrap()).unwrap();
    for (field, value) in [
        ("status", serde_json::json!("ok")),
        ("triggerOrigin", serde_json::json!("manual")),
        ("input", serde_json::json!({"x": 1})),
        ("output", serde_json::json!({"sum": 2})),
        ("handlerHash", serde_json::json!("ab12")),
        ("startedAt", serde_json::json!(T0 + 1)),
        ("endedAt", serde_json::json!(T0 + 9)),
        ("errorCode", serde_json::json!(null)),
    ] {
        assert_eq!(row[field], value, "{field}");
    }
    let nodes = reader.nodes(&id).unwrap();
    // Node 0 was still open when the run ended.
    assert_eq!(
        (nodes[0].ok, nodes[0].error.as_deref(), nodes[0].ended_at),
        (Some(false), Some("cancelled: the run ended before the call"), Some(T0 + 9))
    );
    assert_eq!((nodes[1].ok, nodes[1].batch_id, nodes[1].kind), (Some(true), Some(3), NodeKind::Agent));
    assert_eq!(nodes[1].usage.as_ref().unwrap().as_str(), r#"{"tokens":5}"#);
    let logs = reader.logs(&id, Some(0), 10).unwrap();
    assert_eq!((logs.len(), logs[0].seq, logs[0].message.as_str()), (1, 1, "two"));
}

#[tokio::test]
async fn a_cron_instant_is_opened_once_whatever_became_of_its_row() {
    let root = root();
    let app = root.app("shop");
    let open = |run: NewRun| root.ledgers.open_run(&app, run, Durability::Process);
    assert_eq!(open(cron(&app, "k", T0)).await, Ok(Opened::Inserted));
    assert_eq!(open(cron(&app, "k", T0)).await, Ok(Opened::Duplicate), "the same");
    assert_eq!(open(cron(&app, "k", T0 - 60_000)).await, Ok(Opened::Duplicate), "an earlier one, after a clock step");
    assert_eq!(open(cron(&app, "other", T0)).await, Ok(Opened::Inserted), "another trigger");
    let skipped = NewRun { status: RunStatus::Skipped, ..cron(&app, "k", T0 + 60_000) };
    assert_eq!(open(skipped).await, Ok(Opened::Inserted));
    assert_eq!(open(cron(&app, "k", T0 + 60_000)).await, Ok(Opened::Duplicate), "a skipped one counts");

    // Retention drops every row; the watermark stays, also in another process.
    for row in root.reader(&app).runs(&RunQuery { statuses: vec![RunStatus::Running], ..RunQuery::default() }).unwrap()
    {
        root.ledgers.close_run(&app, end(&row.run_id, T0 + 1, RunStatus::Ok, HistoryKeep::Count(0))).await.unwrap();
    }
    root.ledgers.sweep(&app, &automation("a"), HistoryKeep::Count(0), T0).await.unwrap();
    assert_eq!(root.reader(&app).runs(&RunQuery::default()).unwrap(), []);
    let next = root.after_kill(&app);
    assert_eq!(next.ledgers.open_run(&app, cron(&app, "k", T0), Durability::Process).await, Ok(Opened::Duplicate));
    let marks = next.ledgers.recover(&app).await.unwrap().watermarks;
    assert_eq!(marks, [(automation("a"), "k".to_owned(), T0 + 60_000), (automation("a"), "other".to_owned(), T0)]);
}

#[tokio::test]
async fn watermarks_only_rise_and_disarmed_triggers_have_none() {
    let root = root();
    let app = root.app("shop");
    let mark = |at| vec![(automation("a"), "k".to_owned(), at)];
    let now = async || root.ledgers.recover(&app).await.unwrap().watermarks.first().map(|mark| mark.2);
    for (given, expected) in [(T0, T0), (T0 - 1, T0), (T0 + 1, T0 + 1)] {
        root.ledgers.raise_watermarks(&app, mark(given)).await.unwrap();
        assert_eq!(now().await, Some(expected));
    }
    root.ledgers.disarm_triggers(&app, vec![(automation("a"), "k".to_owned())]).await.unwrap();
    assert_eq!(now().await, None, "what a disabled trigger did not fire was not missed");
    let below = root.ledgers.open_run(&app, cron(&app, "k", T0), Durability::Process).await;
    assert_eq!(below, Ok(Opened::Duplicate), "but nothing fires twice");
    root.ledgers.raise_watermarks(&app, mark(T0)).await.unwrap();
    assert_eq!(now().await, Some(T0 + 1), "armed again");
    // Set back by hand: the row that is there still says no.
    root.opened(&app, cron(&app, "k", T0 + 2)).await;
    root.client(&app).execute("UPDATE trigger_watermarks SET scheduled_for = 0", []).unwrap();
    let again = root.ledgers.open_run(&app, cron(&app, "k", T0 + 2), Durability::Process).await;
    assert_eq!(again, Ok(Opened::Duplicate));
}

#[tokio::test]
async fn a_delivery_is_taken_once_and_known_after_its_run_is_gone() {
    let root = root();
    let app = root.app("shop");
    let post = |id: &str, at| NewRun {
        origin: TriggerOrigin::Webhook,
        trigger: TriggerInfo { slug: Some("s".to_owned()), delivery_id: Some(id.to_owned()), ..TriggerInfo::default() },
        ..manual(&app, at)
    };
    let open = |run| root.ledgers.open_run(&app, run, Durability::Synced);
    let known = async |id: &str, at| root.ledgers.delivery(&app, "s", id, at).await.unwrap();
    assert_eq!(known("d1", T0).await, None);
    let first = root.opened(&app, post("d1", T0)).await;
    let both = (open(post("d1", T0 + 1)), open(post("d1", T0 + 1)));
    assert_eq!(
        (both.0.await, both.1.await),
        (Ok(Opened::Redelivered(first.clone())), Ok(Opened::Redelivered(first.clone())))
    );
    assert_eq!(known("d1", T0 + 1).await.unwrap().status, None, "still open");
    let mut close = (*end(&first, T0 + 2, RunStatus::Ok, HistoryKeep::Count(0))).clone();
    close.end.summary = Some("done".to_owned());
    root.ledgers.close_run(&app, Arc::new(close)).await.unwrap();
    root.ledgers.sweep(&app, &automation("a"), HistoryKeep::Count(0), T0 + 3).await.unwrap();
    let next = root.after_kill(&app);
    assert_eq!(next.reader(&app).run(&first).unwrap(), None, "retention has dropped it");
    let delivery = next.ledgers.delivery(&app, "s", "d1", T0 + DAY - 1).await.unwrap().unwrap();
    assert_eq!(
        (delivery.run_id, delivery.status, delivery.summary),
        (first, Some(RunStatus::Ok), Some("done".to_owned()))
    );
    assert_eq!(next.ledgers.delivery(&app, "other", "d1", T0).await, Ok(None));
    assert_eq!(next.ledgers.delivery(&app, "s", "d1", T0 + DAY).await, Ok(None), "outside the window");
    next.opened(&app, post("d1", T0 + DAY)).await;
    next.opened(&app, post("d2", T0 + 2 * DAY)).await;
    assert_eq!(count(&next.client(&app), "SELECT count(*) FROM webhook_deliveries"), 1, "the old one is dropped");
}

#[tokio::test]
async fn a_run_now_with_a_key_is_taken_once_per_automation() {
    let root = root();
    let app = root.app("shop");
    let asked = |name: &str, input: Option<&str>, origin| NewRun {
        automation_id: automation(name),
        origin,
        trigger: TriggerInfo { delivery_id: Some("key".to_owned()), ..TriggerInfo::default() },
        input_json: input.map(str::to_owned),
        ..manual(&app, T0)
    };
    let open = |run| root.ledgers.open_run(&app, run, Durability::Process);
    let first = root.opened(&app, asked("a", Some("{}"), TriggerOrigin::Manual)).await;
    for input in [Some("{}"), Some("3"), None] {
        let again = open(asked("a", input, TriggerOrigin::Manual)).await;
        assert_eq!(again, Ok(Opened::Redelivered(first.clone())), "{input:?}");
    }
    root.opened(&app, asked("b", None, TriggerOrigin::Manual)).await;
    root.opened(&app, asked("a", None, TriggerOrigin::Retry)).await;
    for (name, input) in [("a", Some("{}")), ("b", None)] {
        let known = root.ledgers.delivery(&app, &run_now_slug(&automation(name)), "key", T0).await.unwrap();
        assert_eq!(known.unwrap().fingerprint, Some(fingerprint(input)), "{name}");
    }
    assert_ne!(fingerprint(None), fingerprint(Some("null")));
}

#[tokio::test]
async fn only_the_transitions_of_the_table_are_made() {
    let root = root();
    let app = root.app("shop");
    let ledgers = &root.ledgers;
    for &from in RunStatus::ALL {
        for &to in RunStatus::ALL {
            if to == RunStatus::Queued || to == RunStatus::Skipped {
                // No request asks for these.
                continue;
            }
            let born = if from == RunStatus::Skipped { from } else { RunStatus::Queued };
            let id = root.opened(&app, NewRun { status: born, ..queued(&app, T0) }).await;
            if !matches!(from, RunStatus::Queued | RunStatus::Skipped) {
                ledgers.start_run(&app, &id, T0, None).await.unwrap();
            }
            if !from.is_open() && from != RunStatus::Skipped {
                ledgers.close_run(&app, end(&id, T0, from, HistoryKeep::All)).await.unwrap();
            }
            let result = match to {
                RunStatus::Running => ledgers.start_run(&app, &id, T0, None).await,
                _ => ledgers.close_run(&app, end(&id, T0, to, HistoryKeep::All)).await,
            };
            assert_eq!(result.is_ok(), from.may_become(to), "{from} -> {to}");
            let stands = root.reader(&app).run(&id).unwrap().unwrap().status;
            assert_eq!(stands, if from.may_become(to) { to } else { from }, "{from} -> {to}");
            assert!(result.is_ok() || is_illegal(result));
        }
    }
    for status in [RunStatus::Ok, RunStatus::Error, RunStatus::Cancelled] {
        let born = NewRun { status, ..manual(&app, T0) };
        assert!(is_illegal(ledgers.open_run(&app, born, Durability::Process).await), "born as {status}");
    }
    let nobody = RunId::at(T0);
    assert_eq!(ledgers.start_run(&app, &nobody, T0, None).await, Err(LedgerError::NoSuchRun { run_id: nobody }));
    let twice = manual(&app, T0);
    root.opened(&app, twice.clone()).await;
    assert!(is_illegal(ledgers.open_run(&app, twice, Durability::Process).await));
}

#[tokio::test]
async fn nodes_are_closed_once_and_an_ended_run_is_left_alone() {
    let root = root();
    let app = root.app("shop");
    let ledgers = &root.ledgers;
    let id = root.opened(&app, manual(&app, T0)).await;
    ledgers.open_nodes(&app, &id, vec![node(0), node(1)]).await.unwrap();
    // All or none: node 0 was opened already, so 2 is not either.
    assert!(is_illegal(ledgers.open_nodes(&app, &id, vec![node(2), node(0)]).await));
    ledgers.close_nodes(&app, &id, vec![node_end(0)]).await.unwrap();
    assert!(is_illegal(ledgers.close_nodes(&app, &id, vec![node_end(1), node_end(0)]).await));
    let open: Vec<_> = root.reader(&app).nodes(&id).unwrap().iter().map(|n| (n.ordinal, n.ok)).collect();
    assert_eq!(open, [(0, Some(true)), (1, None)]);

    ledgers.close_run(&app, end(&id, T0 + 7, RunStatus::Error, HistoryKeep::All)).await.unwrap();
    let before = root.reader(&app).nodes(&id).unwrap();
    let ended = Err(LedgerError::RunEnded { run_id: id.clone() });
    assert_eq!(ledgers.close_nodes(&app, &id, vec![node_end(1)]).await, ended);
    assert_eq!(ledgers.open_nodes(&app, &id, vec![node(5)]).await, ended);
    let line = LogLine { at: T0, level: LogLevel::Info, message: "late".to_owned(), fields_json: None };
    assert_eq!(ledgers.append_logs(&app, &id, 0, vec![line]).await, ended);
    assert_eq!(root.reader(&app).nodes(&id).unwrap(), before);
    assert_eq!(before[1].error.as_deref(), Some("cancelled: the run ended (handler_threw) before the call"));
    let waiting = root.opened(&app, queued(&app, T0)).await;
    assert!(is_illegal(ledgers.open_nodes(&app, &waiting, vec![node(0)]).await));
}

#[tokio::test]
async fn after_a_kill_open_runs_are_found_with_their_whole_input() {
    let root = root();
    let app = root.app("shop");
    let long = serde_json::to_string(&"x".repeat(FULL_VALUE_BYTES)).unwrap();
    let with_input = |run: NewRun| NewRun { input_json: Some(long.clone()), ..run };
    let running = root.opened(&app, with_input(manual(&app, T0))).await;
    let second = root.opened(&app, queued(&app, T0 + 20)).await;
    let first = root.opened(&app, with_input(queued(&app, T0 + 10))).await;
    root.ended(&app, T0, RunStatus::Ok, HistoryKeep::All).await;
    root.ledgers.open_nodes(&app, &running, vec![node(0)]).await.unwrap();
    assert!(root.reader(&app).run(&running).unwrap().unwrap().input.unwrap().is_truncated());

    let next = root.after_kill(&app);
    let found = next.ledgers.recover(&app).await.unwrap();
    let ids = |rows: &[NewRun]| rows.iter().map(|row| row.run_id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&found.running), std::slice::from_ref(&running));
    assert_eq!(ids(&found.queued), [first.clone(), second], "oldest first");
    assert_eq!(found.running[0].input_json.as_ref(), Some(&long));
    assert_eq!(found.queued[0].input_json.as_ref(), Some(&long));
    assert_eq!(found.quarantined, None);

    // Its end and its retry are one transaction; the input goes on to the retry and leaves the run that ended.
    let retry = NewRun {
        origin: TriggerOrigin::Retry,
        retry_of: Some(running.clone()),
        attempt: 2,
        ..with_input(queued(&app, T0 + 30))
    };
    let close = close(&running, T0 + 30, RunStatus::Error, HistoryKeep::All, "a", Some(retry.clone()));
    next.ledgers.close_run(&app, close).await.unwrap();
    let again = next.after_kill(&app).ledgers.recover(&app).await.unwrap();
    assert_eq!((again.running.len(), again.queued.len()), (0, 3));
    assert_eq!(again.queued[2], retry);
    let inputs = "SELECT count(*) FROM run_inputs";
    assert_eq!(count(&next.client(&app), inputs), 2);
    assert_eq!(
        next.reader(&app).nodes(&running).unwrap()[0].error.as_deref(),
        Some("cancelled: the run ended (handler_threw) before the call")
    );
    next.ledgers.start_run(&app, &first, T0, None).await.unwrap();
    next.ledgers.close_run(&app, end(&first, T0, RunStatus::Ok, HistoryKeep::All)).await.unwrap();
    assert_eq!(count(&next.client(&app), inputs), 1);
}

#[tokio::test]
async fn a_kill_between_any_two_answers_loses_nothing_that_was_answered() {
    let root = root();
    let app = root.app("shop");
    let mut acknowledged = Vec::new();
    for step in 0..12 {
        let id = root.opened(&app, manual(&app, T0 + step)).await;
        if step % 3 == 1 {
            let keep = HistoryKeep::All;
            root.ledgers.close_run(&app, end(&id, T0 + step, RunStatus::Ok, keep)).await.unwrap();
        }
        acknowledged.push((id, if step % 3 == 1 { RunStatus::Ok } else { RunStatus::Running }));
        let next = root.after_kill(&app);
        next.ledgers.recover(&app).await.unwrap();
        let reader = next.reader(&app);
        for (id, status) in &acknowledged {
            assert_eq!(reader.run(id).unwrap().unwrap().status, *status, "after step {step}");
        }
    }
}

#[tokio::test]
async fn requests_that_wait_together_share_a_commit_and_not_their_errors() {
    let root = root();
    let app = root.app("shop");
    root.opened(&app, manual(&app, T0)).await;
    // While another client holds the lock nothing is committed, so all of these meet in the queue.
    let client = root.client(&app);
    client.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = root.ledgers.stats();
    let twice = manual(&app, T0);
    let requests: Vec<_> = (0..500)
        .map(|n| if n % 50 == 7 { twice.clone() } else { manual(&app, T0 + n) })
        .map(|run| root.ledgers.open_run(&app, run, Durability::Synced))
        .collect();
    client.execute_batch("COMMIT").unwrap();
    let mut refused = 0;
    for request in requests {
        match request.await {
            Ok(opened) => assert_eq!(opened, Opened::Inserted),
            Err(error) => {
                assert!(is_illegal::<()>(Err(error)));
                refused += 1;
            }
        }
    }
    let after = root.ledgers.stats();
    assert_eq!((refused, after.requests - before.requests), (9, 500));
    assert!(after.groups - before.groups <= 3, "{} commits", after.groups - before.groups);
    assert_eq!(count(&client, "SELECT count(*) FROM runs"), 1 + 491);
}

#[tokio::test]
async fn a_request_that_is_refused_half_way_is_taken_back_whole_and_alone() {
    let root = root();
    let app = root.app("shop");
    let ledgers = &root.ledgers;
    let id = root.opened(&app, manual(&app, T0)).await;
    ledgers.open_nodes(&app, &id, vec![node(0)]).await.unwrap();
    let client = root.client(&app);
    client.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = ledgers.open_nodes(&app, &id, vec![node(1)]);
    let half_nodes = ledgers.open_nodes(&app, &id, vec![node(2), node(0)]);
    let no_retry = NewRun { retry_of: None, ..queued(&app, T0) };
    let half_end = close(&id, T0, RunStatus::Ok, HistoryKeep::Errors, "a", Some(no_retry));
    let half_end = ledgers.close_run(&app, half_end);
    let after = ledgers.open_nodes(&app, &id, vec![node(3)]);
    client.execute_batch("COMMIT").unwrap();
    assert_eq!(before.await, Ok(()));
    assert!(is_illegal(half_nodes.await));
    assert!(is_illegal(half_end.await));
    assert_eq!(after.await, Ok(()));
    ledgers.sweep(&app, &automation("a"), HistoryKeep::Errors, T0).await.unwrap();
    let reader = root.reader(&app);
    assert_eq!(reader.run(&id).unwrap().unwrap().status, RunStatus::Running);
    let nodes: Vec<_> = reader.nodes(&id).unwrap().iter().map(|node| (node.ordinal, node.ok)).collect();
    assert_eq!(nodes, [(0, None), (1, None), (3, None)]);
}

#[tokio::test]
async fn a_commit_that_fails_fails_for_all_of_its_group_and_leaves_nothing() {
    for code in [SQLITE_FULL, SQLITE_IOERR] {
        for point in [Point::Begin, Point::Commit] {
            let root = root();
            let (app, other) = (root.app("shop"), root.app("other"));
            let first = root.opened(&app, manual(&app, T0)).await;
            let client = root.client(&app);
            client.execute_batch("BEGIN IMMEDIATE").unwrap();
            root.ledgers.faults().strike(&app, point, code, 1000);
            let opens: Vec<_> =
                (0..20).map(|n| root.ledgers.open_run(&app, cron(&app, "k", T0 + n), Durability::Process)).collect();
            let close = root.ledgers.close_run(&app, end(&first, T0, RunStatus::Ok, HistoryKeep::Count(0)));
            client.execute_batch("COMMIT").unwrap();
            for open in opens {
                assert!(open.await.is_err_and(|error| error.is_unwritable()), "{code} {point:?}");
            }
            assert!(close.await.is_err());
            assert_eq!(root.ledgers.recover(&other).await, Ok(Recovered::default()), "only that app");
            root.opened(&other, manual(&other, T0)).await;

            root.ledgers.faults().strike(&app, point, code, 0);
            let runs = root.reader(&app).runs(&RunQuery::default()).unwrap();
            assert_eq!(runs.iter().map(|r| (&r.run_id, r.status)).collect::<Vec<_>>(), [(&first, RunStatus::Running)]);
            // Not a watermark either: the fire is taken once the disk is well again.
            root.opened(&app, cron(&app, "k", T0)).await;
        }
    }
}

#[tokio::test]
async fn a_disk_that_is_really_full_stops_writes_until_there_is_room() {
    let root = root();
    let (app, other) = (root.app("shop"), root.app("other"));
    root.opened(&app, manual(&app, T0)).await;
    root.ledgers.faults().limit_pages(&app, 1);
    let big = || NewRun { input_json: Some(format!("\"{}\"", "x".repeat(200_000))), ..manual(&app, T0) };
    let error = root.ledgers.open_run(&app, big(), Durability::Process).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unusable { fault: Fault::Full, .. }), "{error}");
    root.opened(&other, manual(&other, T0)).await;
    root.ledgers.faults().limit_pages(&app, 1_000_000);
    root.opened(&app, big()).await;
    assert_eq!(root.reader(&app).runs(&RunQuery::default()).unwrap().len(), 2);
}

#[tokio::test]
async fn state_is_kept_within_its_limits() {
    let root = root();
    let app = root.app("shop");
    let (a, b) = (automation("a"), automation("b"));
    let value = |bytes: usize| format!("\"{}\"", "v".repeat(bytes - 2));
    let set = |who: &AutomationId, key: &str, bytes| root.ledgers.state_set(&app, who, key, value(bytes), T0);
    let get = |who: &AutomationId, key: &str| root.ledgers.state_get(&app, who, key);
    assert_eq!(get(&a, "k").await, Ok(None));
    assert_eq!(set(&a, "k", 1023).await, Ok(()));
    let limit = |scope, bytes, limit| Err(LedgerError::StateLimit { scope, bytes, limit });
    assert_eq!(set(&a, "k", 1024).await, limit(StateScope::Key, 1025, 1024));
    assert_eq!(get(&a, "k").await, Ok(Some(value(1023))), "the old value stays");
    assert_eq!(get(&b, "k").await, Ok(None), "scoped");
    for key in ["l", "m", "n"] {
        assert_eq!(set(&a, key, 1023).await, Ok(()));
    }
    assert_eq!(set(&a, "o", 2).await, limit(StateScope::Automation, 4099, 4096));
    assert_eq!(set(&b, "o", 2).await, Ok(()));
    assert_eq!(set(&a, "l", 1000).await, Ok(()), "the replaced value is not counted");
    assert_eq!(set(&a, "o", 22).await, Ok(()));
    // The sum is known again after the ledger was closed.
    root.ledgers.close_all().await;
    assert_eq!(set(&a, "p", 2).await, limit(StateScope::Automation, 4099, 4096));
    assert_eq!(root.ledgers.state_delete(&app, &a, "k").await, Ok(()));
    assert_eq!(root.ledgers.state_delete(&app, &a, "k").await, Ok(()), "an absent key");
    assert_eq!((get(&a, "k").await, set(&a, "p", 2).await), (Ok(None), Ok(())));
}
