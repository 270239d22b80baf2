//! Retention: the exact rows that each `history.keep` leaves, and what it must not cost.

use super::*;

/// Ends eight runs, two days apart, the third and sixth in error; then keeps one running, one queued and one skipped.
/// Their numbers are 0..8, `r`, `q`, `s`.
async fn history(root: &Root, app: &AppId) -> Vec<(char, RunId)> {
    let mut rows = Vec::new();
    let old = root.opened(app, manual(app, T0 - DAY)).await;
    rows.push(('r', old));
    rows.push(('q', root.opened(app, queued(app, T0 - DAY)).await));
    for n in 0..8_u8 {
        let status = if n % 3 == 2 { RunStatus::Error } else { RunStatus::Ok };
        let id = root.ended(app, T0 + i64::from(n) * 2 * DAY, status, HistoryKeep::All).await;
        rows.push((char::from(b'0' + n), id));
    }
    let skipped = NewRun { status: RunStatus::Skipped, ..queued(app, T0 + 15 * DAY) };
    rows.push(('s', root.opened(app, skipped).await));
    rows
}

fn left(root: &Root, app: &AppId, rows: &[(char, RunId)]) -> String {
    let reader = root.reader(app);
    rows.iter().filter(|(_, id)| reader.run(id).unwrap().is_some()).map(|(name, _)| *name).collect()
}

#[tokio::test]
async fn each_shape_leaves_exactly_its_rows() {
    let at = T0 + 16 * DAY;
    for (keep, expected) in [
        (HistoryKeep::All, "rq01234567s"),
        (HistoryKeep::Count(100), "rq01234567s"),
        (HistoryKeep::Count(3), "rq67s"),
        (HistoryKeep::Count(1), "rqs"),
        (HistoryKeep::Count(0), "rq"),
        (HistoryKeep::Errors, "rq25"),
        (HistoryKeep::Days(1000), "rq01234567s"),
        // Run 4 ended 8 days and 5 ms after T0, so not more than 8 days before `at`.
        (HistoryKeep::Days(8), "rq4567s"),
        (HistoryKeep::Days(0), "rq"),
        (HistoryKeep::Days(u64::MAX), "rq01234567s"),
    ] {
        let root = root();
        let app = root.app("shop");
        let rows = history(&root, &app).await;
        root.ledgers.sweep(&app, &automation("a"), keep, at).await.unwrap();
        assert_eq!(left(&root, &app, &rows), expected, "{keep:?}");
        root.ledgers.sweep(&app, &automation("other"), HistoryKeep::Count(0), at).await.unwrap();
        assert_eq!(left(&root, &app, &rows), expected, "another automation's retention");
    }
}

#[tokio::test]
async fn each_end_of_a_run_applies_it_to_what_came_before() {
    for keep in [HistoryKeep::Count(2), HistoryKeep::Errors, HistoryKeep::Days(3)] {
        let root = root();
        let app = root.app("shop");
        let mut rows = history(&root, &app).await;
        let mut now = T0 + 16 * DAY;
        // A long life: runs that end out of order, skipped ones between, and now and then another open of the file.
        for n in 0..30_u8 {
            let name = char::from(b'A' + n);
            now += DAY / 2;
            let status = if n % 4 == 1 { RunStatus::Error } else { RunStatus::Ok };
            if n % 7 == 3 {
                let skipped = NewRun { status: RunStatus::Skipped, ..queued(&app, now) };
                rows.push((name, root.opened(&app, skipped).await));
            } else {
                rows.push((name, root.ended(&app, now, status, keep).await));
            }
            if n == 15 {
                let long = &rows[0].1;
                root.ledgers.close_run(&app, end(long, now, RunStatus::Ok, keep)).await.unwrap();
            }
            if n == 20 {
                root.ledgers.close_all().await;
            }
        }
        root.ledgers.close_all().await;
        let expected = match keep {
            HistoryKeep::Count(_) => "q]^",
            HistoryKeep::Errors => "q25BFJNVZ^",
            // Half a day apart: the last six, and the seventh by the 5 ms that it took. The long run ended seven days
            // before the end.
            _ => "qXYZ[\\]^",
        };
        assert_eq!(left(&root, &app, &rows), expected, "{keep:?}");
    }
}

#[tokio::test]
async fn a_long_history_goes_in_chunks_and_gives_its_space_back() {
    let root = root();
    let app = root.app("shop");
    let id = root.opened(&app, manual(&app, T0)).await;
    // More nodes than one step may drop, and values that take pages of their own.
    for batch in 0..5_u32 {
        let args = format!("\"{}\"", "n".repeat(20_000));
        let nodes = (0..100).map(|n| NewNode { args_json: args.clone(), ..node(batch * 100 + n) }).collect();
        root.ledgers.open_nodes(&app, &id, nodes).await.unwrap();
    }
    root.ledgers.close_run(&app, end(&id, T0, RunStatus::Ok, HistoryKeep::All)).await.unwrap();
    let client = root.client(&app);
    client
        .execute_batch(&format!(
            "WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 11999) \
             INSERT INTO runs (run_id, app_id, automation_id, status, trigger_origin, queued_at, ended_at) \
             SELECT printf('{}-%06d', n), 'shop', 'a', 'ok', 'manual', {T0} + n, {T0} + n FROM n",
            RunId::at(T0 + 1).as_str()
        ))
        .unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM runs"), 12_001);
    let pages = count(&client, "PRAGMA page_count");
    let last = root.ended(&app, T0 + DAY, RunStatus::Ok, HistoryKeep::Count(3)).await;
    root.ledgers.sweep(&app, &automation("a"), HistoryKeep::Count(3), T0).await.unwrap();
    assert_eq!(count(&client, "SELECT count(*) FROM runs"), 3);
    assert_eq!(count(&client, "SELECT count(*) FROM run_nodes"), 0);
    assert!(root.reader(&app).run(&last).unwrap().is_some());
    root.ledgers.close_all().await;
    let (after, free) = (count(&client, "PRAGMA page_count"), count(&client, "PRAGMA freelist_count"));
    assert!(after * 5 < pages && free <= 256, "{pages} pages before, {after} after, {free} of them free");
}

#[tokio::test]
async fn rows_that_another_client_drops_or_adds_do_not_mislead_the_count() {
    let root = root();
    let app = root.app("shop");
    let keep = HistoryKeep::Count(5);
    for n in 0..5 {
        root.ended(&app, T0 + n, RunStatus::Ok, keep).await;
    }
    let ended = "SELECT count(*) FROM runs WHERE ended_at IS NOT NULL";
    root.client(&app).execute("DELETE FROM runs WHERE rowid <= 3", []).unwrap();
    for (n, expected) in [(10, 3), (11, 4), (12, 5), (13, 5)] {
        root.ended(&app, T0 + n, RunStatus::Ok, keep).await;
        root.ledgers.sweep(&app, &automation("a"), keep, T0).await.unwrap();
        assert_eq!(count(&root.client(&app), ended), expected, "after run {n}");
    }
}

#[tokio::test]
async fn a_sweep_of_an_app_without_ledger_makes_none() {
    let root = root();
    let app = root.app("shop");
    root.ledgers.sweep(&app, &automation("a"), HistoryKeep::Days(1), T0).await.unwrap();
    assert_eq!(root.ledgers.recover(&app).await, Ok(Recovered::default()));
    assert!(!root.path(&app).exists());
    assert_eq!(root.ledgers.stats().opens, 0);
}
