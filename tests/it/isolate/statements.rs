//! `db` calls that a query or an action did not await: carried through before it ends well, and told when they fail.

use serde_json::{Value, json};

use super::*;
use crate::harness;

/// Stands for a database: a table of the statements that it was given, in their order, as `op sql`. A statement with
/// `bad` in it fails, one with `hang` is never answered.
#[derive(Default)]
struct FakeDb(Vec<String>);

impl FakeDb {
    fn answer(&mut self, call: &CtxCall) -> Option<CtxReply> {
        let CtxCallBody::Db { args_json } = &call.body else { panic!("{call:?}") };
        let args: Value = serde_json::from_str(args_json).expect("JSON");
        let text = |key: &str| args[key].as_str().unwrap_or_default();
        self.0.push(format!("{} {}", text("op"), text("sql")).trim().to_owned());
        match text("sql") {
            sql if sql.contains("hang") => None,
            sql if sql.contains("bad") => Some(Err(CallError::new("SQLITE_ERROR", format!("no such table: {sql}")))),
            _ => Some(Ok(None)),
        }
    }
}

fn action(body: &str) -> Job {
    Job {
        script_name: "app/actions/act.js".into(),
        kind: JobKind::Action { app: "app".into(), name: "act".into() },
        ..job(&format!(
            "const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
            export default async ({{ db, log }}) => {{ const run = (sql) => db.prepare(sql).run();\n{body} }}"
        ))
    }
}

async fn act(pool: &Pool, job: Job) -> (Vec<String>, Seen) {
    let mut db = FakeDb::default();
    let seen = follow(pool.run(job).await.expect("a host"), |call| db.answer(call)).await;
    assert_eq!(seen.abandoned.len(), 0);
    (db.0, seen)
}

#[tokio::test]
async fn what_was_not_awaited_is_carried_through() {
    let cases: &[(&str, &[&str])] = &[
        ("run('a'); return 1", &["run a"]),
        ("await run('a'); run('b'); db.exec('c'); return 1", &["run a", "run b", "exec c"]),
        // What a continuation makes is a statement like any other.
        ("run('a').then(() => run('b')).then(() => run('c')); return 1", &["run a", "run b", "run c"]),
        ("(async () => { await null; await run('a'); await null; await run('b') })(); return 1", &["run a", "run b"]),
        ("(async () => { try { await run('bad') } catch { run('a') } })(); return 1", &["run bad", "run a"]),
        ("run('bad').catch(() => {}); run('a'); return 1", &["run bad", "run a"]),
        // A handler may come late.
        (
            "const p = run('bad'); await run('a'); await run('b'); p.catch(() => {}); return 1",
            &["run bad", "run a", "run b"],
        ),
        (
            "const p = run('bad'); (async () => { await run('a'); try { await p } catch {} })(); return 1",
            &["run bad", "run a"],
        ),
        (
            "db.transaction(async (tx) => { await tx.exec('a'); await tx.exec('b') }); return 1",
            &["begin", "exec a", "exec b", "commit"],
        ),
        ("db.transaction((tx) => { tx.exec('a'); tx.exec('b') }); return 1", &["begin", "exec a", "exec b", "commit"]),
        // An open transaction counts also while none of its statements waits.
        (
            "db.transaction(async (tx) => { await tx.exec('a'); await sleep(5); await tx.exec('b') }).then(() => run('c')); return 1",
            &["begin", "exec a", "exec b", "commit", "run c"],
        ),
        (
            "db.transaction(async (tx) => { await sleep(5); throw new Error('undo') }).catch(() => {}); return 1",
            &["begin", "rollback"],
        ),
        // Nothing but statements keeps a handler going.
        ("run('a'); setInterval(() => {}, 1); setTimeout(() => run('late'), 60_000); return 1", &["run a"]),
        ("setTimeout(() => run('late'), 60_000); return 1", &[]),
        // The result is what it was when the promise settled; what its getters ask for is made too.
        ("let n = 1; run('a').then(() => { n = 2 }); return { toJSON() { run('b'); return n } }", &["run a", "run b"]),
    ];
    let pool = pool();
    for (body, expected) in cases {
        let (statements, seen) = act(&pool, action(body)).await;
        assert_eq!(statements, *expected, "{body}");
        assert_eq!(seen.end.outcome, Outcome::Returned { value_json: Some("1".into()) }, "{body}");
        assert_eq!(seen.messages(), [""; 0], "{body}");
    }
    // A handler that is no async function, and a query.
    for kind in [
        JobKind::Action { app: "app".into(), name: "act".into() },
        JobKind::Query { app: "app".into(), name: "ask".into() },
    ] {
        let source = "export default ({ db }) => { for (let i = 0; i < 1000; i++) db.prepare(`s${i}`).run(); }";
        let (statements, seen) = act(&pool, Job { kind, ..job(source) }).await;
        assert_eq!(statements, (0..1000).map(|i| format!("run s{i}")).collect::<Vec<_>>());
        assert_eq!(seen.end.outcome, Outcome::Returned { value_json: None });
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn a_failure_that_nobody_handled_fails_the_handler() {
    let told = |message: &str| format!("{message} (not awaited by the handler: await each `db` call)");
    // Body, statements, message's first line, the error's own code, messages of the log.
    type Case = (&'static str, &'static [&'static str], String, Option<&'static str>, &'static [&'static str]);
    let sql = Some("SQLITE_ERROR");
    let cases: &[Case] = &[
        ("run('bad'); return 1", &["run bad"], told("no such table: bad"), sql, &[]),
        // The others are made all the same; their failures are in the log.
        (
            "run('a'); run('bad'); run('b'); db.exec('bad too'); run('c'); return 1",
            &["run a", "run bad", "run b", "exec bad too", "run c"],
            told("no such table: bad"),
            sql,
            &["unhandled promise rejection: Error: no such table: bad too"],
        ),
        ("run('bad'); await run('a'); return 1", &["run bad", "run a"], told("no such table: bad"), sql, &[]),
        ("run('bad').then(() => run('b')); return 1", &["run bad"], told("no such table: bad"), sql, &[]),
        ("(async () => { await run('bad') })(); return 1", &["run bad"], told("no such table: bad"), sql, &[]),
        // Statements that cannot even be sent.
        ("db.prepare('a').run(1n); return 1", &[], told("TypeError: Do not know how to serialize a BigInt"), None, &[]),
        (
            "(async () => { for (const name of ['a', null]) await run(name.trim()) })(); return 1",
            &["run a"],
            told("TypeError: Cannot read properties of null (reading 'trim')"),
            None,
            &[],
        ),
        (
            "db.transaction(async (tx) => { await tx.exec('bad') }); return 1",
            &["begin", "exec bad", "rollback"],
            told("no such table: bad"),
            sql,
            &[],
        ),
        (
            "db.transaction(async (tx) => { await tx.exec('a'); throw new RangeError('undo') }); return 1",
            &["begin", "exec a", "rollback"],
            told("RangeError: undo"),
            None,
            &[],
        ),
        // A handler that throws: what was sent is made, the rest is not.
        (
            "run('a'); await sleep(1); run('b'); db.exec('c'); throw new Error('no')",
            &["run a"],
            "no".into(),
            None,
            &[
                "the handler failed: 2 of its `db` calls were not sent and are not made: db.run and db.exec; await each call",
            ],
        ),
        (
            "run('a'); return () => {}",
            &[],
            "a function was returned, which JSON has no form for".into(),
            None,
            &["the handler failed: 1 of its `db` calls was not sent and is not made: db.run; await each call"],
        ),
        (
            "run('bad'); await sleep(1); await run('bad too')",
            &["run bad", "run bad too"],
            "no such table: bad too".into(),
            sql,
            &["unhandled promise rejection: Error: no such table: bad"],
        ),
    ];
    let pool = pool();
    for (body, expected, message, code, logged) in cases {
        let (statements, seen) = act(&pool, action(body)).await;
        assert_eq!(statements, *expected, "{body}");
        let Outcome::Failed { message: got, error_code, .. } = &seen.end.outcome else {
            panic!("{body}: {:?}", seen.end)
        };
        assert_eq!((got.lines().next(), error_code.as_deref()), (Some(message.as_str()), *code), "{body}");
        let firsts: Vec<&str> = seen.messages().iter().map(|m| m.lines().next().unwrap_or_default()).collect();
        assert_eq!(firsts, *logged, "{body}");
    }
    let (_, seen) = act(&pool, action("run('bad'); return 1")).await;
    let (code, message) = seen.failure();
    assert_eq!(code, ErrorCode::HandlerThrew);
    assert!(message.contains("\n    at default (app/actions/act.js:3:1)"), "{message}");
    // Of very many only the number is kept, until each has been handled.
    let many = "const all = Array.from({ length: 3000 }, () => run('bad')); await run('a');";
    let (_, seen) = act(&pool, action(&format!("{many} for (const p of all) try {{ await p }} catch {{}}"))).await;
    assert_eq!(seen.end.outcome, Outcome::Returned { value_json: None });
    let (_, seen) = act(&pool, action(&format!("{many} for (const p of all.slice(0, -1)) p.catch(() => {{}})"))).await;
    assert!(seen.failure().1.starts_with(&told("a promise was rejected")), "{:?}", seen.end);
    pool.shutdown().await;
}

#[tokio::test]
async fn limits_hold_while_statements_are_carried_through() {
    let pool = pool_with(1, 2, Limits::default());
    let endless = [
        "const again = () => run('a').then(again); again(); return 1",
        "run('a').then(() => { for (;;); }); return 1",
        "(async () => { for (;;) await null })(); return 1",
    ];
    for body in endless {
        let (_, seen) = act(&pool, Job { cpu_ms: Some(200), ..action(body) }).await;
        assert_eq!(seen.failure().0, ErrorCode::CpuLimit, "{body}");
    }
    let body = "run('a').then(() => { const all = []; for (;;) all.push(new Array(1e5).fill(1.5)) }); return 1";
    let (_, seen) = act(&pool, action(body)).await;
    assert_eq!(seen.failure().0, ErrorCode::MemoryLimit);

    let never = "db.transaction(() => new Promise(() => {})); run('a'); return 1";
    let (statements, seen) = act(&pool, action(never)).await;
    assert_eq!(statements, ["begin", "run a"]);
    let (code, message) = seen.failure();
    assert_eq!(code, ErrorCode::NeverSettled);
    assert!(message.starts_with("a transaction that the handler did not await can never end"), "{message}");

    // The daemon's wall limit: it aborts, or drops, a run whose statement is not answered.
    for drops in [false, true] {
        let mut running = pool.run(action("run('hang'); return 1")).await.expect("a host");
        assert!(matches!(running.events.recv().await, Some(JobEvent::Batch { .. })));
        if drops {
            drop(running);
        } else {
            running.control.abort("too long");
            assert_eq!(follow(running, |_| None).await.end.outcome, Outcome::Aborted);
        }
    }
    pool.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_of_an_app_loses_no_statement() {
    let root = harness::Root::new();
    root.write("shop/migrations/1.sql", "CREATE TABLE orders (n INTEGER UNIQUE)");
    let actions = [
        ("many", "for (let n = 0; n < 1000; n++) add(db, n)"),
        ("twice", "add(db, 1000); add(db, 5)"),
        ("at-once", "db.transaction(async (tx) => { for (let n = 2000; n < 2500; n++) add(tx, n) })"),
        ("undone", "db.transaction(async (tx) => { await add(tx, 3000); await add(tx, 5) })"),
        ("throws", "await add(db, 4000); add(db, 4001); throw new Error('no')"),
    ];
    for (name, body) in actions {
        root.write(
            &format!("shop/actions/{name}.js"),
            &format!(
                "const add = (db, n) => db.prepare('INSERT INTO orders VALUES (?)').run(n);
                export default async ({{ db }}) => {{ {body}; return {{ body: 'done' }} }}"
            ),
        );
    }
    let entries: Vec<Value> = actions.iter().map(|(name, _)| json!({ "name": name })).collect();
    root.write("shop/app.json", &json!({ "actions": entries }).to_string());
    root.automation(
        "shop/act",
        "",
        "export default async ({ ctx, input }) => {
            try { return { output: await ctx.tool('centraid_write', { app: 'shop', action: input, input: {} }) } }
            catch (error) { return { output: { error: error.message } } } }",
    );
    let daemon = root.daemon().await;
    let twice = "actions/twice.js: UNIQUE constraint failed: orders.n (not awaited by the handler";
    let undone = "actions/undone.js: UNIQUE constraint failed: orders.n (not awaited by the handler";
    for (name, count, error) in [
        ("many", 1000, None),
        ("twice", 1001, Some(twice)),
        ("at-once", 1501, None),
        ("undone", 1501, Some(undone)),
        ("throws", 1502, Some("actions/throws.js: no")),
    ] {
        let (_, end) = harness::run(&daemon, "shop/act", Some(&json!(name).to_string())).await;
        let output: Value = serde_json::from_str(end.output_json.as_deref().expect("an output")).expect("JSON");
        match error {
            None => assert_eq!(output["body"], "done", "{name}: {output}"),
            Some(words) => assert!(output["error"].as_str().is_some_and(|e| e.contains(words)), "{name}: {output}"),
        }
        let data = rusqlite::Connection::open(root.join("shop/data.sqlite")).expect("a database");
        let found: i64 = data.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).expect("a number");
        assert_eq!(found, count, "{name}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}
