//! The file itself: versions, damage, things that are no ledger, and how many are open.

use super::*;

fn siblings(root: &Root, app: &AppId) -> Vec<String> {
    let folder = root.path(app).parent().unwrap().to_owned();
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_contract_tables_have_the_contract_columns() {
    let root = root();
    let app = root.app("shop");
    root.opened(&app, manual(&app, T0)).await;
    let client = root.client(&app);
    for (table, columns) in [
        (
            "runs",
            "run_id app_id automation_id status trigger_origin trigger_json scheduled_for input_json output_json \
             summary error error_code parent_run_id retry_of attempt handler_hash queued_at started_at ended_at",
        ),
        (
            "run_nodes",
            "run_id ordinal batch_id kind name args_json result_json ok error child_run_id usage_json started_at \
             ended_at",
        ),
        ("run_logs", "run_id seq at level message fields_json"),
        ("automation_state", "automation_id key value_json updated_at"),
    ] {
        let found: String = client
            .query_row("SELECT group_concat(name, ' ') FROM pragma_table_info(?1)", [table], |row| row.get(0))
            .unwrap();
        assert_eq!(found, columns, "{table}");
    }
    assert_eq!(count(&client, "PRAGMA auto_vacuum"), 2);
    assert_eq!(client.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(), "wal");
}

#[tokio::test]
async fn an_older_file_is_brought_forward_and_keeps_its_rows() {
    let root = root();
    let app = root.app("shop");
    let id = RunId::at(T0);
    {
        let mut old = root.client(&app);
        schema::migrate(&mut old, &schema::STEPS[..1]).unwrap();
        old.execute_batch(&format!(
            "INSERT INTO runs (run_id, app_id, automation_id, status, trigger_origin, trigger_json, \
             scheduled_for, queued_at) VALUES ('{id}', 'shop', 'a', 'running', 'cron', '{{\"key\":\"k\"}}', {T0}, {T0})"
        ))
        .unwrap();
        assert_eq!(schema::user_version(&old).unwrap(), 1);
    }
    assert_eq!(root.reader(&app).run(&id).unwrap().unwrap().run_id, id, "a reader takes it as it is");
    assert_eq!(root.reader(&app).input(&id), Ok(None));
    let found = root.ledgers.recover(&app).await.unwrap();
    assert_eq!(found.running.iter().map(|row| &row.run_id).collect::<Vec<_>>(), [&id]);
    assert_eq!(schema::user_version(&root.client(&app)).unwrap(), schema::known_version());
    let again = root.ledgers.open_run(&app, cron(&app, "k", T0), Durability::Process).await;
    assert_eq!(again, Ok(Opened::Duplicate));
}

#[test]
fn a_step_that_fails_leaves_the_version_before_it() {
    let mut conn = Connection::open_in_memory().unwrap();
    let steps = ["CREATE TABLE one (x)", "CREATE TABLE two (x); CREATE TABLE one (x)"];
    assert!(schema::migrate(&mut conn, &steps).is_err());
    assert_eq!(schema::user_version(&conn).unwrap(), 1);
    assert_eq!(count(&conn, "SELECT count(*) FROM sqlite_schema"), 1);
    schema::migrate(&mut conn, &["", "CREATE TABLE two (x)", "CREATE TABLE three (x)"]).unwrap();
    assert_eq!(schema::user_version(&conn).unwrap(), 3);
}

#[tokio::test]
async fn newer_and_foreign_files_are_refused_and_left_as_they_are() {
    for (sql, newer) in [("CREATE TABLE runs (id); PRAGMA user_version = 99", true), ("CREATE TABLE runs (id)", false)]
    {
        let root = root();
        let app = root.app("shop");
        root.client(&app).execute_batch(sql).unwrap();
        let before = std::fs::read(root.path(&app)).unwrap();
        let expected = |path: PathBuf| match newer {
            true => LedgerError::NewerVersion { path, found: 99, known: schema::known_version() },
            false => LedgerError::Foreign { path },
        };
        let path = root.path(&app).canonicalize().unwrap();
        let error = root.ledgers.open_run(&app, manual(&app, T0), Durability::Process).await.unwrap_err();
        assert_eq!(error, expected(path.clone()));
        assert!(error.is_unwritable());
        assert_eq!(root.ledgers.recover(&app).await.unwrap_err(), expected(path.clone()));
        assert_eq!(Reader::open(&path).unwrap_err(), expected(path));
        root.ledgers.close_all().await;
        assert_eq!(std::fs::read(root.path(&app)).unwrap(), before);
        assert_eq!(siblings(&root, &app), [FILE]);
    }
}

#[tokio::test]
async fn a_damaged_file_is_moved_aside_with_its_log_and_a_fresh_one_is_made() {
    let healthy = root();
    let app = healthy.app("shop");
    for n in 0..50 {
        healthy.opened(&app, manual(&app, T0 + n)).await;
    }
    healthy.ledgers.close_all().await;
    let mut torn = std::fs::read(healthy.path(&app)).unwrap();
    // Inside the tree of `runs`, where opening alone does not look.
    for page in 2..torn.len() / 4096 {
        torn[page * 4096..page * 4096 + 64].fill(0xA5);
    }
    for (what, content) in [("no database", b"hello, this is text".repeat(99)), ("torn", torn)] {
        let root = root();
        let app = root.app("shop");
        std::fs::write(root.path(&app), &content).unwrap();
        std::fs::write(schema::companion(&root.path(&app), "-wal"), b"log").unwrap();
        let found = root.ledgers.recover(&app).await.unwrap();
        let aside = found.quarantined.unwrap_or_else(|| panic!("{what} was not found"));
        assert_eq!((found.running, found.queued), (vec![], vec![]), "{what}");
        assert_eq!(std::fs::read(&aside).unwrap(), content, "{what}");
        assert_eq!(std::fs::read(schema::companion(&aside, "-wal")).unwrap(), b"log", "{what}");
        assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("runtime.sqlite.corrupt-2"));
        let id = root.opened(&app, manual(&app, T0)).await;
        assert!(root.reader(&app).run(&id).unwrap().is_some(), "{what}");
    }
}

#[tokio::test]
async fn damage_that_shows_later_is_moved_aside_then() {
    let root = root();
    let app = root.app("shop");
    root.opened(&app, manual(&app, T0)).await;
    root.ledgers.faults().strike(&app, faults::Point::Commit, faults::SQLITE_CORRUPT, 1);
    let error = root.ledgers.open_run(&app, manual(&app, T0), Durability::Process).await.unwrap_err();
    assert!(error.is_corrupt());
    let id = root.opened(&app, manual(&app, T0 + 1)).await;
    let runs = root.reader(&app).runs(&RunQuery::default()).unwrap();
    assert_eq!(runs.iter().map(|row| &row.run_id).collect::<Vec<_>>(), [&id]);
    let aside = root.ledgers.quarantined(&app).unwrap();
    assert_eq!(count(&Connection::open(aside).unwrap(), "SELECT count(*) FROM runs"), 1, "nothing was lost");
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_no_regular_file_is_neither_opened_nor_followed() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target.sqlite");
    let fifo = |path: &std::path::Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    for (what, suffix) in [("folder", ""), ("link", ""), ("fifo", ""), ("link", "-wal"), ("fifo", "-shm")] {
        let root = root();
        let (app, other) = (root.app("shop"), root.app("other"));
        let path = schema::companion(&root.path(&app), suffix);
        match what {
            "folder" => std::fs::create_dir(&path).unwrap(),
            "link" => symlink(&target, &path).unwrap(),
            _ => fifo(&path),
        }
        if !suffix.is_empty() {
            std::fs::write(root.path(&app), b"").unwrap();
        }
        let error = root.ledgers.open_run(&app, manual(&app, T0), Durability::Process).await.unwrap_err();
        assert!(matches!(error, LedgerError::NotAFile { .. }), "{what}{suffix}: {error}");
        assert!(root.ledgers.recover(&app).await.is_err(), "{what}{suffix}");
        assert!(Reader::open(&root.path(&app)).is_err(), "{what}{suffix}");
        assert!(!target.exists(), "{what}{suffix}");
        root.opened(&other, manual(&other, T0)).await;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn an_app_folder_may_be_a_link() {
    let root = root();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), root.dir.path().join("shop")).unwrap();
    let app = AppId::new("shop").unwrap();
    let id = root.opened(&app, manual(&app, T0)).await;
    assert!(elsewhere.path().join(FILE).exists());
    assert!(root.reader(&app).run(&id).unwrap().is_some());
}

#[tokio::test]
async fn a_missing_folder_is_an_error_and_is_not_made() {
    let root = root();
    let app = AppId::new("gone").unwrap();
    let error = root.ledgers.open_run(&app, manual(&app, T0), Durability::Process).await.unwrap_err();
    assert!(matches!(error, LedgerError::Unusable { fault: Fault::CannotOpen, .. }), "{error}");
    assert!(!root.dir.path().join("gone").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_is_removed_while_open_is_made_again() {
    let root = root();
    let app = root.app("shop");
    root.opened(&app, manual(&app, T0)).await;
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(schema::companion(&root.path(&app), suffix)).unwrap();
    }
    let id = root.opened(&app, manual(&app, T0)).await;
    let runs = root.reader(&app).runs(&RunQuery::default()).unwrap();
    assert_eq!(runs.iter().map(|row| &row.run_id).collect::<Vec<_>>(), [&id]);
}

#[tokio::test]
async fn open_ledgers_are_bounded_and_reopening_is_not_noticed() {
    let root = root_with(|config| config.max_open = 4);
    let apps: Vec<AppId> = (0..20).map(|n| root.app(&format!("app{n}"))).collect();
    let mut ids = Vec::new();
    for round in 0..5 {
        // All at once: most of them have to wait for room.
        let opens: Vec<_> = apps
            .iter()
            .map(|app| {
                let run = manual(app, T0 + round);
                ids.push((app.clone(), run.run_id.clone()));
                root.ledgers.open_run(app, run, Durability::Process)
            })
            .collect();
        for open in opens {
            assert!(root.ledgers.stats().open <= 4);
            assert_eq!(open.await, Ok(Opened::Inserted));
        }
    }
    assert!(root.ledgers.stats().opens >= 20);
    for (app, id) in &ids {
        root.ledgers.close_run(app, end(id, T0 + 9, RunStatus::Ok, HistoryKeep::Count(2))).await.unwrap();
    }
    root.ledgers.close_all().await;
    assert_eq!(root.ledgers.stats().open, 0);
    for app in &apps {
        assert_eq!(root.reader(app).runs(&RunQuery::default()).unwrap().len(), 2);
    }
}

#[tokio::test]
async fn requests_of_one_app_stay_in_order_across_closes() {
    let root = root_with(|config| config.max_open = 1);
    let apps = [root.app("one"), root.app("two")];
    let mut answers = Vec::new();
    for n in 0..40 {
        for app in &apps {
            answers.push(root.ledgers.state_set(app, &automation("a"), "k", n.to_string(), T0));
        }
        if n % 10 == 0 {
            drop(root.ledgers.close_app(&apps[0]));
        }
    }
    for answer in answers {
        answer.await.unwrap();
    }
    for app in &apps {
        assert_eq!(root.ledgers.state_get(app, &automation("a"), "k").await, Ok(Some("39".to_owned())));
    }
    root.ledgers.close_app(&apps[1]).await;
    root.ledgers.close_all().await;
    assert_eq!(root.ledgers.stats().open, 0);
}

#[tokio::test]
async fn an_idle_ledger_closes_by_itself() {
    let root = root_with(|config| config.idle_close = Duration::ZERO);
    let app = root.app("shop");
    for n in 0..20 {
        root.opened(&app, manual(&app, T0 + n)).await;
    }
    // Told to close at once whenever it has nothing to do, it must still have served everything.
    root.ledgers.close_all().await;
    assert_eq!(siblings(&root, &app), [FILE], "closed, and nothing left beside it");
    assert_eq!(root.reader(&app).runs(&RunQuery::default()).unwrap().len(), 20);
}

#[tokio::test]
async fn what_stands_in_the_way_is_kept_until_a_write_succeeds() {
    let root = root();
    let app = root.app("shop");
    let open = || root.ledgers.open_run(&app, manual(&app, T0), Durability::Process);
    assert_eq!(root.ledgers.obstacle(&app), None);
    root.ledgers.faults().strike(&app, faults::Point::Commit, faults::SQLITE_FULL, 1);
    let error = open().await.unwrap_err();
    assert_eq!(root.ledgers.obstacle(&app), Some(error), "known when the caller is refused");
    root.ledgers.recover(&app).await.unwrap();
    assert!(root.ledgers.obstacle(&app).is_some(), "a full disk can be read");
    open().await.unwrap();
    assert_eq!(root.ledgers.obstacle(&app), None);

    let other = root.app("other");
    std::fs::create_dir(root.path(&other)).unwrap();
    assert!(root.ledgers.recover(&other).await.is_err());
    assert!(matches!(root.ledgers.obstacle(&other), Some(LedgerError::NotAFile { .. })));
    assert_eq!(root.ledgers.obstacle(&app), None, "each app for itself");
    std::fs::remove_dir(root.path(&other)).unwrap();
    root.ledgers.raise_watermarks(&other, vec![]).await.unwrap();
    assert_eq!(root.ledgers.obstacle(&other), None);
    // A row that is refused says nothing against the file.
    let again = root.opened(&app, manual(&app, T0 + 1)).await;
    let end = || end(&again, T0 + 2, RunStatus::Ok, HistoryKeep::All);
    root.ledgers.close_run(&app, end()).await.unwrap();
    assert!(root.ledgers.close_run(&app, end()).await.is_err());
    assert_eq!(root.ledgers.obstacle(&app), None);
}
