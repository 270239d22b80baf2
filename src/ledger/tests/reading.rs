//! The reader: its filters, and that reading and writing do not wait for each other.

use rusqlite::{StatementStatus, params};

use super::*;

async fn sample(root: &Root, app: &AppId) -> Vec<RunId> {
    let mut ids: Vec<RunId> = Vec::new();
    for (n, name, status) in [(0, "a", 'o'), (1, "b", 'e'), (2, "a", 'e'), (3, "b", 'o'), (4, "a", 's'), (5, "a", 'r')]
    {
        let at = T0 + n * 1000;
        let run = NewRun {
            automation_id: automation(name),
            status: if status == 's' { RunStatus::Skipped } else { RunStatus::Running },
            origin: if n == 3 { TriggerOrigin::Invoke } else { TriggerOrigin::Manual },
            parent_run_id: (n == 3).then(|| ids[0].clone()),
            ..manual(app, at)
        };
        let id = root.opened(app, run).await;
        let ended = match status {
            'o' => Some(RunStatus::Ok),
            'e' => Some(RunStatus::Error),
            _ => None,
        };
        if let Some(ended) = ended {
            let close = close(&id, at + 5, ended, HistoryKeep::All, name, None);
            root.ledgers.close_run(app, close).await.unwrap();
        }
        ids.push(id);
    }
    ids
}

#[tokio::test]
async fn filters_select_and_order() {
    let root = root();
    let app = root.app("shop");
    let ids = sample(&root, &app).await;
    let all = RunQuery::default;
    let reader = root.reader(&app);
    let check = |what: &str, query: RunQuery, expected: &[usize]| {
        let found: Vec<RunId> = reader.runs(&query).unwrap().into_iter().map(|row| row.run_id).collect();
        let expected: Vec<RunId> = expected.iter().map(|&n| ids[n].clone()).collect();
        assert_eq!(found, expected, "{what}");
    };
    check("all, newest first", all(), &[5, 4, 3, 2, 1, 0]);
    check("automation", RunQuery { automation: Some(automation("a")), ..all() }, &[5, 4, 2, 0]);
    check("statuses", RunQuery { statuses: vec![RunStatus::Ok, RunStatus::Skipped], ..all() }, &[4, 3, 0]);
    check("origin", RunQuery { origin: Some(TriggerOrigin::Invoke), ..all() }, &[3]);
    check("since", RunQuery { since: Some(T0 + 4000), ..all() }, &[5, 4]);
    check("parent", RunQuery { parent: Some(ids[0].clone()), ..all() }, &[3]);
    check("first page", RunQuery { limit: 2, ..all() }, &[5, 4]);
    check("next page", RunQuery { limit: 2, before: Some(ids[4].clone()), ..all() }, &[3, 2]);
    check("nobody", RunQuery { automation: Some(automation("zzz")), ..all() }, &[]);
    assert_eq!(reader.children(&ids[0]).unwrap().len(), 1);
    assert_eq!(reader.open_runs().unwrap(), [ids[5].clone()]);
    let history = reader.history(None, 2).unwrap();
    assert_eq!(history[&automation("a")].counts, Counts { ok: 1, error: 1, total: 4 });
    assert_eq!(history[&automation("b")].counts, Counts { ok: 1, error: 1, total: 2 });
    let a = &history[&automation("a")];
    let recent: Vec<_> = a.recent.iter().map(|run| (&run.run_id, run.status, run.ended_at)).collect();
    assert_eq!(
        (a.open, recent.as_slice()),
        (1, &[(&ids[5], RunStatus::Running, None), (&ids[4], RunStatus::Skipped, Some(T0 + 4000))][..])
    );
    let one = reader.history(Some(&automation("a")), 2).unwrap();
    assert_eq!(one.into_iter().collect::<Vec<_>>(), [(automation("a"), a.clone())]);
    assert_eq!(reader.history(Some(&automation("a")), 9).unwrap()[&automation("a")].recent.len(), 4);
    let input = root.opened(&app, NewRun { input_json: Some("1".to_owned()), ..manual(&app, T0 + 9000) }).await;
    let inputs = |outline| {
        let rows = reader.runs(&RunQuery { outline, limit: 1, ..all() }).unwrap();
        rows.into_iter().map(|row| (row.run_id, row.input.is_some())).collect::<Vec<_>>()
    };
    assert_eq!((inputs(false), inputs(true)), (vec![(input.clone(), true)], vec![(input, false)]));
}

#[tokio::test]
async fn a_run_is_dead_when_its_last_retry_failed() {
    let root = root();
    let app = root.app("shop");
    let dead = || {
        let query = RunQuery { dead: true, ..RunQuery::default() };
        root.reader(&app).runs(&query).unwrap().into_iter().map(|row| row.run_id).collect::<Vec<_>>()
    };
    let mut id = root.opened(&app, manual(&app, T0)).await;
    for attempt in 2..=3 {
        let retry = NewRun {
            origin: TriggerOrigin::Retry,
            retry_of: Some(id.clone()),
            attempt,
            ..queued(&app, T0 + i64::from(attempt))
        };
        let next = retry.run_id.clone();
        let close = close(&id, T0 + 1, RunStatus::Error, HistoryKeep::All, "a", Some(retry));
        root.ledgers.close_run(&app, close).await.unwrap();
        assert_eq!(dead(), [], "a retry is pending");
        root.ledgers.start_run(&app, &next, T0 + 5, None).await.unwrap();
        id = next;
    }
    root.ledgers.close_run(&app, end(&id, T0 + 9, RunStatus::Error, HistoryKeep::All)).await.unwrap();
    assert_eq!(dead(), [id]);
    let never_retried = root.ended(&app, T0 + 50, RunStatus::Error, HistoryKeep::All).await;
    assert!(!dead().contains(&never_retried));

    // A retry that repeats another run, or is no queued row, is a bug.
    let open = root.opened(&app, manual(&app, T0)).await;
    for retry in [
        NewRun { retry_of: Some(never_retried), ..queued(&app, T0) },
        NewRun { retry_of: Some(open.clone()), ..manual(&app, T0) },
    ] {
        let close = close(&open, T0 + 1, RunStatus::Error, HistoryKeep::All, "a", Some(retry));
        assert!(is_illegal(root.ledgers.close_run(&app, close).await));
    }
    assert_eq!(root.reader(&app).run(&open).unwrap().unwrap().status, RunStatus::Running, "taken back whole");
}

#[tokio::test]
async fn readers_and_the_writer_do_not_wait_for_each_other() {
    let root = root();
    let app = root.app("shop");
    let first = root.opened(&app, manual(&app, T0)).await;
    // A client in the middle of a long read.
    let client = root.client(&app);
    client.execute_batch("BEGIN").unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM runs"), 1);
    let second = root.opened(&app, manual(&app, T0 + 1)).await;
    root.ledgers.close_run(&app, end(&first, T0 + 2, RunStatus::Ok, HistoryKeep::Count(0))).await.unwrap();
    root.ledgers.sweep(&app, &automation("a"), HistoryKeep::Count(0), T0).await.unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM runs"), 1, "its snapshot stands");
    client.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM runs"), 1);
    // A client in the middle of a long write: readers go on with what is committed.
    client.execute_batch("BEGIN IMMEDIATE; DELETE FROM runs").unwrap();
    let rows = root.reader(&app).runs(&RunQuery::default()).unwrap();
    assert_eq!(rows.into_iter().map(|row| row.run_id).collect::<Vec<_>>(), [second]);
    client.execute_batch("ROLLBACK").unwrap();
}

#[tokio::test]
async fn a_ledger_is_read_without_a_daemon_and_without_writing() {
    let root = root();
    let app = root.app("shop");
    assert!(Reader::open(&root.path(&app)).unwrap().is_none(), "absent");
    let id = root.opened(&app, manual(&app, T0)).await;
    // As a kill leaves it: the row is in the log only.
    let killed = root.after_kill(&app);
    let copy = Reader::open_still(&killed.path(&app)).unwrap();
    assert!(copy.run(&id).unwrap().is_some(), "from a copy, with the log");
    root.ledgers.close_all().await;
    assert!(root.reader(&app).run(&id).unwrap().is_some(), "no daemon");

    // As a backup on a read-only mount, under a name that a URI has to escape.
    let odd = root.dir.path().join("back up %20?#");
    std::fs::create_dir(&odd).unwrap();
    let still = odd.join(FILE);
    std::fs::copy(root.path(&app), &still).unwrap();
    assert!(Reader::open_still(&still).unwrap().run(&id).unwrap().is_some(), "as it is");
    assert_eq!(std::fs::read_dir(&odd).unwrap().count(), 1, "nothing was put beside it");
    let reader = root.reader(&app);
    assert!(reader.conn_for_tests().execute("DELETE FROM runs", []).is_err(), "a reader cannot write");
}

#[tokio::test]
async fn rows_edited_by_hand_are_shown_or_reported() {
    let root = root();
    let app = root.app("shop");
    let id = root.ended(&app, T0, RunStatus::Ok, HistoryKeep::All).await;
    root.client(&app).execute("UPDATE runs SET output_json = '{broken', trigger_json = '['", []).unwrap();
    let row = root.reader(&app).run(&id).unwrap().unwrap();
    assert_eq!(serde_json::to_value(&row).unwrap()["output"], "{broken");
    root.client(&app).execute("UPDATE runs SET status = 'odd'", []).unwrap();
    assert!(matches!(root.reader(&app).run(&id), Err(LedgerError::BadRow { .. })));
}

#[tokio::test]
async fn tallies_add_up_what_runs_took() {
    let root = root();
    let app = root.app("shop");
    let ids = sample(&root, &app).await;
    let agent = |input: &str| {
        let usage = format!(r#"{{"model":"p/m","inputTokens":{input},"outputTokens":2}}"#);
        (NewNode { kind: NodeKind::Agent, ..node(0) }, NodeClose { usage_json: Some(usage), ..node_end(0) })
    };
    let run = |n: i64, status: RunStatus, took: i64, retry_of: Option<RunId>| {
        let at = T0 + 10_000 + n * 1000;
        (NewRun { automation_id: automation("c"), retry_of, ..manual(&app, at) }, status, at + took)
    };
    for n in 0..20 {
        let status = if n < 15 { RunStatus::Ok } else { RunStatus::Error };
        let (run, status, end) = run(n, status, 100 * (20 - n), (n == 19).then(|| ids[2].clone()));
        let id = root.opened(&app, run).await;
        if n < 3 {
            let (open, close) = agent(["7", "null", "\"x\""][usize::try_from(n).unwrap()]);
            root.ledgers.open_nodes(&app, &id, vec![open]).await.unwrap();
            root.ledgers.close_nodes(&app, &id, vec![close]).await.unwrap();
        }
        root.ledgers.close_run(&app, close(&id, end, status, HistoryKeep::All, "c", None)).await.unwrap();
    }
    let edited = format!("UPDATE run_nodes SET usage_json = '{{' WHERE run_id > '{}'", ids[5].as_str());
    let reader = root.reader(&app);
    let c = Tally {
        fires: 19,
        retries: 1,
        ok: 15,
        error: 5,
        duration: Some(Quantiles { p50_ms: 1000, p95_ms: 1900 }),
        agent_calls: 3,
        input_tokens: 7,
        output_tokens: 6,
        ..Tally::default()
    };
    let five = Some(Quantiles { p50_ms: 5, p95_ms: 5 });
    let a = Tally { fires: 3, ok: 1, error: 1, skipped: 1, open: 1, duration: five, ..Tally::default() };
    let all = reader.tallies(None, None).unwrap();
    assert_eq!(all.keys().map(AutomationId::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((all[&automation("a")], all[&automation("c")]), (a, c));
    assert_eq!(reader.tallies(Some(&automation("c")), None).unwrap(), [(automation("c"), c)].into());
    let late = reader.tallies(None, Some(T0 + 4000)).unwrap();
    assert_eq!(late[&automation("a")], Tally { fires: 1, skipped: 1, open: 1, ..Tally::default() });
    assert_eq!(late.len(), 2, "b has none since then");
    assert_eq!(reader.tallies(Some(&automation("zzz")), None).unwrap(), [].into());
    // Whatever a person has made of the rows.
    root.client(&app).execute(&edited, []).unwrap();
    let edited = reader.tallies(None, None).unwrap()[&automation("c")];
    assert_eq!(edited, Tally { agent_calls: 0, input_tokens: 0, output_tokens: 0, ..c });
}

fn asked(provider: &str, input: u32) -> NodeClose {
    let usage = format!(r#"{{"model":"{provider}/m","provider":"{provider}","inputTokens":{input},"outputTokens":1}}"#);
    NodeClose { usage_json: Some(usage), ..node_end(0) }
}

#[tokio::test]
async fn the_newest_usage_is_of_the_last_runs_that_ran() {
    let root = root();
    let app = root.app("shop");
    let usage = || root.reader(&app).history(Some(&automation("a")), 1).unwrap()[&automation("a")].usage.clone();
    for n in 0..=i64::try_from(NEWEST).unwrap() {
        let id = root.opened(&app, manual(&app, T0 + n)).await;
        // Older than the window, two models, and calls that recorded nothing.
        let call = match n {
            0 => Some(asked("old", 1_000_000)),
            1 => Some(asked("q", 10)),
            2 => Some(asked("p", 30)),
            3 => Some(NodeClose { usage_json: Some("{".to_owned()), ..node_end(0) }),
            5 => Some(NodeClose { usage_json: Some(r#"{"model":7}"#.to_owned()), ..node_end(0) }),
            4 => Some(node_end(0)),
            _ => None,
        };
        if let Some(call) = call {
            root.ledgers.open_nodes(&app, &id, vec![NewNode { kind: NodeKind::Agent, ..node(0) }]).await.unwrap();
            root.ledgers.close_nodes(&app, &id, vec![call]).await.unwrap();
        }
        let status = if n % 2 == 0 { RunStatus::Ok } else { RunStatus::Error };
        root.ledgers.close_run(&app, end(&id, T0 + n + 1, status, HistoryKeep::All)).await.unwrap();
        if n == 0 {
            let first = usage().unwrap();
            assert_eq!((first.runs, first.calls, first.models), (1, 1, vec!["old/m".to_owned()]));
        }
    }
    let expected = NewestUsage {
        runs: 20,
        calls: 3,
        input_tokens: 40,
        output_tokens: 2,
        models: ["7", "p/m", "q/m"].map(str::to_owned).to_vec(),
    };
    assert_eq!(usage(), Some(expected.clone()));
    // Neither what was skipped nor what is under way moves the window.
    for n in 0..50 {
        root.opened(&app, NewRun { status: RunStatus::Skipped, ..queued(&app, T0 + DAY + n) }).await;
    }
    root.opened(&app, manual(&app, T0 + DAY + 60)).await;
    assert_eq!(usage(), Some(expected.clone()));
    let other = root.opened(&app, NewRun { automation_id: automation("b"), ..manual(&app, T0) }).await;
    root.ledgers.close_run(&app, close(&other, T0, RunStatus::Ok, HistoryKeep::All, "b", None)).await.unwrap();
    assert_eq!(root.reader(&app).history(None, 1).unwrap()[&automation("b")].usage, None, "it asked none");

    // A file of the version before is read all the same.
    root.ledgers.close_all().await;
    let older = "DROP INDEX run_nodes_usage; DROP INDEX runs_ended; PRAGMA user_version = 4";
    root.client(&app).execute_batch(older).unwrap();
    assert_eq!(usage(), Some(expected));
}

#[tokio::test]
async fn figures_are_read_from_indexes_and_a_statement_is_planned_once() {
    let root = root();
    let app = root.app("shop");
    sample(&root, &app).await;
    let reader = root.reader(&app);
    let conn = reader.conn_for_tests();
    for (sql, index) in [
        ("SELECT automation_id, status, count(*) FROM runs WHERE ended_at IS NOT NULL GROUP BY 1, 2", "runs_ended"),
        (
            "SELECT n.usage_json FROM runs r JOIN run_nodes n ON n.run_id = r.run_id WHERE n.usage_json IS NOT NULL",
            "run_nodes_usage",
        ),
    ] {
        let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let steps: Vec<String> = plan.query_map([], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        assert!(steps.iter().any(|step| step.contains(&format!("COVERING INDEX {index}"))), "{steps:?}");
        assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{steps:?}");
    }
    let writer = schema::open_writer(&root.path(&app), false).unwrap();
    for conn in [conn, &writer] {
        let sql = "SELECT run_id FROM runs WHERE automation_id = ?1 LIMIT ?2";
        for (limit, rows) in [(0, 0), (100, 4), (1, 1)] {
            let mut statement = conn.prepare_cached(sql).unwrap();
            assert_eq!(statement.query_map(params!["a", limit], |_| Ok(())).unwrap().count(), rows);
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "LIMIT {limit}");
        }
    }
}
