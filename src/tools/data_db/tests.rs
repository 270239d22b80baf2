use super::*;
use crate::tools::tests::Folder;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TODOS: &str = "CREATE TABLE todos (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE, done INTEGER DEFAULT 0);";

/// One app with the given migrations.
struct App(Arc<Folder>);

impl App {
    fn with(migrations: &[(&str, &str)]) -> Self {
        let app = Self(Arc::new(Folder::with(&[("todos/app.json", "{}")])));
        for (name, sql) in migrations {
            app.0.write(&format!("todos/migrations/{name}"), sql);
        }
        app
    }

    fn data_path(&self) -> PathBuf {
        self.0.0.path().join("todos/data.sqlite")
    }

    async fn open(&self, read_only: bool) -> Result<DataDb, CallError> {
        let migrations = Migrations::of_app(self.0.clone(), self.0.0.path().join("todos"));
        DataDb::open(self.data_path(), migrations, read_only).await
    }

    async fn action(&self) -> DataDb {
        self.open(false).await.unwrap()
    }

    async fn query(&self) -> DataDb {
        self.open(true).await.unwrap()
    }

    /// Looks at the file from outside.
    fn one<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        Connection::open(self.data_path()).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

async fn call(db: &DataDb, args: Value) -> Result<Value, CallError> {
    let reply = db.call(&args.to_string()).await?;
    Ok(reply.map_or(json!("undefined"), |text| serde_json::from_str(&text).unwrap()))
}

/// A code and a part of the message.
type Refusal = (&'static str, &'static str);

/// Performs the calls in turn; each is to give the value, or an error of the code whose message holds the text.
async fn check(db: &DataDb, calls: &[(Value, Result<Value, Refusal>)]) {
    for (args, expected) in calls {
        match (call(db, args.clone()).await, expected) {
            (Ok(found), Ok(wanted)) => assert_eq!(&found, wanted, "{args}"),
            (Err(error), Err((code, part))) => {
                assert_eq!(&error.code, code, "{args}: {}", error.message);
                assert!(error.message.contains(part), "{args}: {}", error.message);
            }
            (found, wanted) => panic!("{args}: {found:?}, not {wanted:?}"),
        }
    }
}

#[tokio::test]
async fn the_four_operations() {
    let app = App::with(&[("0001_init.sql", TODOS)]);
    let db = app.action().await;
    let insert = "INSERT INTO todos (text) VALUES (?)";
    check(
        &db,
        &[
            (json!({"op": "get", "sql": "SELECT * FROM todos"}), Ok(json!("undefined"))),
            (json!({"op": "all", "sql": "SELECT * FROM todos"}), Ok(json!([]))),
            (json!({"op": "run", "sql": insert, "params": ["a"]}), Ok(json!({"changes": 1, "lastInsertRowid": 1}))),
            (json!({"op": "run", "sql": insert, "params": ["b"]}), Ok(json!({"changes": 1, "lastInsertRowid": 2}))),
            (
                json!({"op": "get", "sql": "SELECT * FROM todos WHERE id = ?", "params": [2]}),
                Ok(json!({"id": 2, "text": "b", "done": 0})),
            ),
            (
                json!({"op": "all", "sql": "SELECT text FROM todos ORDER BY id"}),
                Ok(json!([{"text": "a"}, {"text": "b"}])),
            ),
            (json!({"op": "run", "sql": "UPDATE todos SET done = 1"}), Ok(json!({"changes": 2, "lastInsertRowid": 2}))),
            (json!({"op": "run", "sql": "SELECT 1"}), Ok(json!({"changes": 0, "lastInsertRowid": 2}))),
            (json!({"op": "get", "sql": "INSERT INTO todos (text) VALUES ('c') RETURNING id"}), Ok(json!({"id": 3}))),
            (json!({"op": "get", "sql": "DELETE FROM todos WHERE id = 3"}), Ok(json!("undefined"))),
            (
                json!({"op": "exec", "sql": "CREATE TABLE t (x); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)"}),
                Ok(json!("undefined")),
            ),
            (json!({"op": "get", "sql": "SELECT count(*) AS n FROM t;  -- tail"}), Ok(json!({"n": 2}))),
            (
                json!({"op": "run", "sql": insert, "params": ["a"]}),
                Err(("SQLITE_CONSTRAINT", "UNIQUE constraint failed")),
            ),
            (json!({"op": "get", "sql": "SELEC 1"}), Err(("SQLITE_ERROR", "syntax error"))),
            (json!({"op": "get", "sql": "SELECT 1; SELECT 2"}), Err((INVALID_CALL, "use `exec`"))),
            (json!({"op": "get"}), Err((INVALID_CALL, "`sql`"))),
            (json!({"op": "drop", "sql": "x"}), Err((INVALID_CALL, "no database operation \"drop\""))),
            (json!([]), Err((INVALID_CALL, "malformed"))),
        ],
    )
    .await;
    db.finish(true).await;
    assert_eq!(app.one::<i64>("SELECT count(*) FROM todos"), 2);
    assert_eq!(app.one::<String>("PRAGMA journal_mode"), "wal");
}

#[tokio::test]
async fn values_cross_both_ways() {
    let app = App::with(&[]);
    let db = app.action().await;
    let get = |sql: &str, params: Value| json!({"op": "get", "sql": sql, "params": params});
    let select = |params: Value| json!({"op": "get", "sql": "SELECT ? AS v, typeof(?1) AS t", "params": params});
    check(
        &db,
        &[
            (select(json!([null])), Ok(json!({"v": null, "t": "null"}))),
            (select(json!([true])), Ok(json!({"v": 1, "t": "integer"}))),
            (select(json!([9007199254740991_i64])), Ok(json!({"v": 9007199254740991_i64, "t": "integer"}))),
            (select(json!([9007199254740993_i64])), Err(("SQLITE_MISMATCH", "column \"v\" holds 9007199254740993"))),
            (select(json!([18446744073709551615_u64])), Ok(json!({"v": 18446744073709551615.0, "t": "real"}))),
            (select(json!([1.5])), Ok(json!({"v": 1.5, "t": "real"}))),
            (select(json!(["ü\u{0}\"\\"])), Ok(json!({"v": "ü\u{0}\"\\", "t": "text"}))),
            (select(json!([{"$blob": "AAH/"}])), Ok(json!({"v": {"$blob": "AAH/"}, "t": "blob"}))),
            (select(json!([{"$blob": "%"}])), Err((INVALID_CALL, "parameter 1: `$blob` is no base64"))),
            (select(json!([{"a": 1}])), Err((INVALID_CALL, "parameter 1: an object cannot be stored"))),
            (select(json!([[1]])), Err((INVALID_CALL, "a list cannot be stored"))),
            (select(json!([])), Err((INVALID_CALL, "has 1 placeholders, but 0"))),
            (select(json!([1, 2])), Err((INVALID_CALL, "has 1 placeholders, but 2"))),
            (select(json!(null)), Err((INVALID_CALL, "has 1 placeholders, but 0"))),
            (select(json!(7)), Err((INVALID_CALL, "must be a list"))),
            (json!({"op": "get", "sql": "SELECT ?", "params": {"a": 7}}), Err((INVALID_CALL, "has no name"))),
            (get("SELECT 9e999 AS v, CAST(x'ff41' AS TEXT) AS w", json!([])), Ok(json!({"v": null, "w": "\u{fffd}A"}))),
            (
                get("SELECT :a AS a, @b AS b, $c AS c, :a AS again", json!({"a": 1, "@b": 2})),
                Ok(json!({"a": 1, "b": 2, "c": null, "again": 1})),
            ),
            (get("SELECT :a", json!({"a": 1, "z": 2})), Err((INVALID_CALL, "no placeholder \"z\""))),
            (get("SELECT 1 AS __proto__, 2 AS 'a\"b'", json!([])), Ok(json!({"__proto__": 1, "a\"b": 2}))),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_query_reads_only_and_creates_the_file_when_it_must() {
    let app = App::with(&[("0001_init.sql", TODOS), ("0002_seed.sql", "INSERT INTO todos (text) VALUES ('a')")]);
    for round in ["no file yet", "file in place"] {
        let db = app.query().await;
        let refused = || Err(("SQLITE_READONLY", "a query may only read"));
        check(
            &db,
            &[
                (json!({"op": "all", "sql": "SELECT text FROM todos"}), Ok(json!([{"text": "a"}]))),
                (json!({"op": "run", "sql": "INSERT INTO todos (text) VALUES ('b')"}), refused()),
                (json!({"op": "exec", "sql": "DROP TABLE todos"}), refused()),
                (json!({"op": "exec", "sql": "PRAGMA query_only = 0"}), Err(("SQLITE_AUTH", "PRAGMA query_only"))),
                (json!({"op": "exec", "sql": "BEGIN IMMEDIATE; DELETE FROM todos"}), refused()),
            ],
        )
        .await;
        db.finish(true).await;
        assert_eq!(app.one::<i64>("SELECT count(*) FROM todos"), 1, "{round}");
    }
}

#[tokio::test]
async fn other_files_pragmas_and_the_record_of_migrations_are_out_of_reach() {
    let app = App::with(&[("0001_init.sql", TODOS)]);
    let db = app.action().await;
    let elsewhere = app.0.0.path().join("elsewhere.sqlite");
    let elsewhere = elsewhere.to_str().unwrap();
    let exec = |sql: &str| json!({"op": "exec", "sql": sql});
    for (sql, part) in [
        (format!("ATTACH '{elsewhere}' AS e"), "no ATTACH"),
        ("ATTACH ':memory:' AS e".to_owned(), "no ATTACH"),
        (format!("VACUUM INTO '{elsewhere}'"), "VACUUM"),
        ("VACUUM".to_owned(), "VACUUM"),
        ("DETACH main".to_owned(), "DETACH"),
        ("SELECT load_extension('x')".to_owned(), ""),
        ("PRAGMA journal_mode = DELETE".to_owned(), "PRAGMA journal_mode"),
        ("PRAGMA temp_store_directory = '/tmp'".to_owned(), "PRAGMA temp_store_directory"),
        ("PRAGMA hard_heap_limit = 1".to_owned(), "PRAGMA hard_heap_limit"),
        ("PRAGMA writable_schema = 1".to_owned(), "PRAGMA writable_schema"),
        ("PRAGMA user_version = 9".to_owned(), "PRAGMA user_version"),
        ("PRAGMA wal_checkpoint(TRUNCATE)".to_owned(), "PRAGMA wal_checkpoint"),
        ("DELETE FROM _dirigent_migrations".to_owned(), "not the app's own"),
        ("UPDATE _dirigent_migrations SET name = 'x'".to_owned(), "not the app's own"),
        ("DROP TABLE _DIRIGENT_migrations".to_owned(), "not the app's own"),
        ("ALTER TABLE _dirigent_migrations RENAME TO x".to_owned(), "not the app's own"),
        ("SELECT writefile('x', 'y')".to_owned(), "no such function"),
    ] {
        let error = call(&db, exec(&sql)).await.expect_err(&sql);
        assert!(error.message.contains(part), "{sql}: {error:?}");
        assert!(!error.message.contains(elsewhere), "{sql}: {error:?}");
    }
    for sql in [
        "PRAGMA table_info(todos)",
        "SELECT * FROM pragma_table_info('todos')",
        "PRAGMA user_version",
        "PRAGMA foreign_keys = OFF",
        "CREATE VIRTUAL TABLE found USING fts5(text); INSERT INTO found VALUES ('x'); SELECT * FROM found('x')",
        "ALTER TABLE todos ADD COLUMN note TEXT",
        "CREATE TEMP TABLE scratch (x)",
        "SELECT * FROM _dirigent_migrations",
    ] {
        call(&db, exec(sql)).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    assert!(!std::path::Path::new(elsewhere).exists());
}

#[tokio::test]
async fn transactions_hold_together_and_do_not_nest() {
    let app = App::with(&[("0001_init.sql", TODOS)]);
    let db = app.action().await;
    let tx = |op: &str, tx: u64| json!({"op": op, "tx": tx});
    let insert = |text: &str| json!({"op": "run", "sql": "INSERT INTO todos (text) VALUES (?)", "params": [text]});
    let within = |text: &str, tx: u64| {
        let mut args = insert(text);
        args["tx"] = json!(tx);
        args
    };
    let count = || json!({"op": "get", "sql": "SELECT count(*) AS n FROM todos"});
    let done = || Ok(json!("undefined"));
    check(
        &db,
        &[
            (json!({"op": "begin"}), Err((INVALID_CALL, "needs `tx`"))),
            (tx("begin", 1), done()),
            (tx("begin", 2), Err((INVALID_CALL, "do not nest"))),
            (within("a", 2), Err((INVALID_CALL, "has ended"))),
            (tx("commit", 2), Err((INVALID_CALL, "not open"))),
        ],
    )
    .await;
    call(&db, within("a", 1)).await.unwrap();
    call(&db, insert("joins")).await.unwrap();
    check(&db, &[(count(), Ok(json!({"n": 2}))), (tx("rollback", 1), done()), (count(), Ok(json!({"n": 0})))]).await;
    call(&db, tx("begin", 3)).await.unwrap();
    call(&db, within("b", 3)).await.unwrap();
    check(
        &db,
        &[
            (tx("commit", 3), done()),
            (within("c", 3), Err((INVALID_CALL, "has ended"))),
            (count(), Ok(json!({"n": 1}))),
        ],
    )
    .await;
    call(&db, tx("begin", 4)).await.unwrap();
    call(&db, within("left open", 4)).await.unwrap();
    db.finish(true).await;
    assert_eq!(app.one::<i64>("SELECT count(*) FROM todos"), 1);
}

#[tokio::test]
async fn a_commit_that_fails_leaves_no_transaction_open() {
    let references = "CREATE TABLE a (id INTEGER PRIMARY KEY);
        CREATE TABLE b (a INTEGER REFERENCES a (id) DEFERRABLE INITIALLY DEFERRED);";
    let app = App::with(&[("0001_init.sql", references)]);
    let db = app.action().await;
    let run = |sql: &str| json!({"op": "run", "sql": sql});
    call(&db, json!({"op": "exec", "sql": "PRAGMA foreign_keys = ON"})).await.unwrap();
    call(&db, json!({"op": "begin", "tx": 1})).await.unwrap();
    call(&db, run("INSERT INTO b VALUES (7)")).await.unwrap();
    let refused = Err(("SQLITE_CONSTRAINT", "FOREIGN KEY constraint failed"));
    check(&db, &[(json!({"op": "commit", "tx": 1}), refused)]).await;
    call(&db, run("INSERT INTO a VALUES (1)")).await.unwrap();
    db.finish(true).await;
    assert_eq!(app.one::<i64>("SELECT (SELECT count(*) FROM a) * 10 + (SELECT count(*) FROM b)"), 10);
}

#[tokio::test]
async fn calls_are_performed_in_the_order_they_were_made_even_when_nobody_waits() {
    let app = App::with(&[("0001_init.sql", TODOS)]);
    let db = app.action().await;
    for index in 0..100 {
        drop(
            db.call(
                &json!({"op": "run", "sql": "INSERT INTO todos (text) VALUES (?)", "params": [index.to_string()]})
                    .to_string(),
            ),
        );
    }
    db.finish(true).await;
    assert_eq!(app.one::<i64>("SELECT sum(id = text + 1) FROM todos"), 100);
}

const RUNAWAY: &str = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test]
async fn a_runaway_statement_stops_with_its_session() {
    for drops in [true, false] {
        let app = App::with(&[("0001_init.sql", TODOS)]);
        let db = app.action().await;
        call(&db, json!({"op": "begin", "tx": 1})).await.unwrap();
        call(&db, json!({"op": "run", "sql": "INSERT INTO todos (text) VALUES ('a')"})).await.unwrap();
        let endless = db.call(&json!({"op": "get", "sql": RUNAWAY}).to_string());
        let started = Instant::now();
        if drops {
            drop(db)
        } else {
            db.finish(false).await
        }
        let error = endless.await.unwrap_err();
        assert_eq!(error.code, "SQLITE_INTERRUPT");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        // The write lock is free again, and nothing was kept.
        let db = app.action().await;
        check(&db, &[(json!({"op": "begin", "tx": 1}), Ok(json!("undefined")))]).await;
        check(&db, &[(json!({"op": "get", "sql": "SELECT count(*) AS n FROM todos"}), Ok(json!({"n": 0})))]).await;
    }
}

#[tokio::test]
async fn a_wait_for_a_lock_stops_with_its_session() {
    let app = App::with(&[("0001_init.sql", TODOS)]);
    let db = app.action().await;
    let holder = Connection::open(app.data_path()).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting = db.call(&json!({"op": "run", "sql": "DELETE FROM todos"}).to_string());
    let started = Instant::now();
    db.finish(false).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(matches!(waiting.await.unwrap_err().code.as_str(), "SQLITE_BUSY" | "SQLITE_INTERRUPT"));
}

#[tokio::test]
async fn results_and_values_are_bounded() {
    let app = App::with(&[]);
    let db = app.action().await;
    let many =
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT hex(zeroblob(50000)) AS v FROM n";
    check(
        &db,
        &[
            (json!({"op": "all", "sql": many}), Err(("SQLITE_TOOBIG", "larger than 16777216 bytes"))),
            (json!({"op": "get", "sql": "SELECT zeroblob(20000000)"}), Err(("SQLITE_TOOBIG", "larger than"))),
            (json!({"op": "get", "sql": "SELECT zeroblob(1000000000)"}), Err(("SQLITE_TOOBIG", "too big"))),
            (json!({"op": "get", "sql": "SELECT 1 AS still"}), Ok(json!({"still": 1}))),
        ],
    )
    .await;
}

#[tokio::test]
async fn migrations_run_once_in_name_order_and_later_ones_follow() {
    let app = App::with(&[
        ("0002_more.sql", "INSERT INTO todos (text) VALUES ('two')"),
        ("0001_init.sql", TODOS),
        ("notes.txt", "no SQL"),
        (".0003_hidden.sql", "no SQL"),
    ]);
    app.action().await.finish(true).await;
    app.0.write("todos/migrations/0003_last.sql", "INSERT INTO todos (text) VALUES ('three')");
    for _ in 0..2 {
        app.query().await.finish(true).await;
        app.action().await.finish(true).await;
    }
    let applied = "SELECT group_concat(name) FROM (SELECT name FROM _dirigent_migrations ORDER BY rowid)";
    assert_eq!(app.one::<String>(applied), "0001_init.sql,0002_more.sql,0003_last.sql");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM todos"), 2);
    assert_eq!(app.one::<i64>("SELECT min(length(sha256)) FROM _dirigent_migrations"), 64);
    assert!(app.one::<i64>("SELECT min(applied_at) FROM _dirigent_migrations") > 1_700_000_000_000);
    // The count that another host of the format goes by.
    assert_eq!(app.one::<i64>("PRAGMA user_version"), 3);
}

#[tokio::test]
async fn a_failing_migration_is_named_and_leaves_nothing_half_done() {
    for (sql, part) in [
        ("CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1);", "no such table: nowhere"),
        ("CREATE TABLE extra (x); COMMIT; SELECT broken(", "remove COMMIT"),
        ("CREATE TABLE extra (x); BEGIN;", "remove BEGIN"),
        ("CREATE TABLE extra (x); ATTACH 'x' AS y;", "no ATTACH"),
        ("CREATE TABLE extra (x); DELETE FROM _dirigent_migrations;", "not the app's own"),
        (
            "CREATE TABLE extra (x REFERENCES todos DEFERRABLE INITIALLY DEFERRED); INSERT INTO extra VALUES (7);",
            "FOREIGN KEY",
        ),
    ] {
        let app =
            App::with(&[("0001_init.sql", TODOS), ("0002_bad.sql", sql), ("0003_after.sql", "CREATE TABLE after (x)")]);
        for read_only in [false, true] {
            let error = app.open(read_only).await.err().expect(sql);
            assert_eq!(error.code, HANDLER_ERROR);
            assert!(error.message.contains("migration 0002_bad.sql failed: "), "{sql}: {}", error.message);
            assert!(error.message.contains(part), "{sql}: {}", error.message);
        }
        assert_eq!(app.one::<i64>("SELECT count(*) FROM sqlite_schema WHERE name IN ('extra', 'after')"), 0, "{sql}");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM _dirigent_migrations"), 1, "{sql}");
        app.0.write("todos/migrations/0002_bad.sql", "CREATE TABLE extra (x)");
        app.action().await.finish(true).await;
        assert_eq!(app.one::<i64>("SELECT count(*) FROM _dirigent_migrations"), 3, "{sql}");
    }
}

#[tokio::test]
async fn a_database_that_another_host_migrated_goes_on_from_there() {
    let app = App::with(&[
        ("0001_init.sql", TODOS),
        ("0002_seed.sql", "INSERT INTO todos (text) VALUES ('seed')"),
        ("0003_new.sql", "INSERT INTO todos (text) VALUES ('new')"),
    ]);
    let other_host = Connection::open(app.data_path()).unwrap();
    other_host
        .execute_batch(&format!("{TODOS} INSERT INTO todos (text) VALUES ('seed'); PRAGMA user_version = 2;"))
        .unwrap();
    drop(other_host);
    app.query().await.finish(true).await;
    assert_eq!(app.one::<String>("SELECT group_concat(text) FROM (SELECT text FROM todos ORDER BY id)"), "seed,new");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM _dirigent_migrations"), 3);
    assert_eq!(app.one::<i64>("PRAGMA user_version"), 3);
    // A file that comes late with a low number is new here, whatever the count says.
    app.0.write("todos/migrations/0002_late.sql", "INSERT INTO todos (text) VALUES ('late')");
    app.action().await.finish(true).await;
    assert_eq!(app.one::<i64>("SELECT count(*) FROM todos WHERE text = 'late'"), 1);
}

#[tokio::test]
async fn sessions_that_start_together_migrate_once() {
    let app = App::with(&[("0001_init.sql", TODOS), ("0002_seed.sql", "INSERT INTO todos (text) VALUES ('a')")]);
    let sessions = futures::future::join_all((0..8).map(|index| app.open(index % 2 == 0))).await;
    for session in sessions {
        session.unwrap().finish(true).await;
    }
    assert_eq!(app.one::<i64>("SELECT count(*) FROM todos"), 1);
}

#[tokio::test]
async fn what_is_no_database_is_refused_without_a_path_of_the_host() {
    let app = App::with(&[]);
    std::fs::write(app.data_path(), "this is no database, but long enough to look like a broken one").unwrap();
    let mut messages = vec![app.open(true).await.err().unwrap(), app.open(false).await.err().unwrap()];
    std::fs::remove_file(app.data_path()).unwrap();
    std::fs::create_dir(app.data_path()).unwrap();
    messages.push(app.open(true).await.err().unwrap());
    #[cfg(unix)]
    {
        std::fs::remove_dir(app.data_path()).unwrap();
        let outside = app.0.0.path().join("outside.sqlite");
        std::fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, app.data_path()).unwrap();
        messages.push(app.open(false).await.err().unwrap());
    }
    let root = app.0.0.path().to_str().unwrap();
    for error in messages {
        assert_eq!(error.code, HANDLER_ERROR);
        assert!(error.message.contains("data.sqlite"), "{}", error.message);
        assert!(!error.message.contains(root), "{}", error.message);
    }
}

#[tokio::test]
async fn an_app_without_migrations_gets_no_table_of_them() {
    let app = App::with(&[]);
    app.query().await.finish(true).await;
    assert_eq!(app.one::<i64>("SELECT count(*) FROM sqlite_schema"), 0);
}
