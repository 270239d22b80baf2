//! What crosses of `ctx` and `db`: which words, in which batches, how large.

use super::*;

#[tokio::test]
async fn ctx_calls_cross_as_they_are_documented() {
    let mut with_input = job(r#"
        const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return [e.name, e.message, e.code ?? null, e.path ?? null]; } };
        export default async ({ ctx, input, log }) => ({ output: {
            same: ctx.input === input, run: ctx.run, log: ctx.log === log,
            tool: await ctx.tool('t', JSON.parse('{"__proto__": {"x": 1}, "a": [1, null]}')),
            own: Object.hasOwn(await ctx.tool('t', JSON.parse('{"__proto__": 1}')), '__proto__'),
            none: await ctx.tool('t'), empty: await ctx.tool('t', null),
            agent: await ctx.agent({ prompt: 'p' }),
            invoke: await ctx.invoke('app/other', { input: [1] }), bare: await ctx.invoke('other'),
            get: [await ctx.state.get('k')].map((v) => v === undefined), set: (await ctx.state.set('k', undefined)) ?? null,
            del: [await ctx.state.del('k'), await ctx.state.delete('k')].length,
            last: await ctx.runs.last({ status: 'ok' }), list: (await ctx.runs.list()).length,
            fail: await failed(ctx.tool('fail')),
            bigint: await failed(ctx.tool('t', { a: 1n })), cyclic: (await failed(ctx.tool('t', (() => { const o = {}; o.o = o; return o; })())))[0],
            array: await failed(ctx.tool('t', [1])), name: await failed(ctx.tool(5)), key: await failed(ctx.state.get(1)),
            fn: await failed(ctx.state.set('k', () => {})), agentless: await failed(ctx.agent('x')), getter: await failed(ctx.tool('t', { get a() { throw new RangeError('mine'); } })),
            unknown: await failed((async () => ctx.fetch('x'))()), unknownState: await failed((async () => ctx.state.put)()),
            then: [ctx.then ?? null, ctx[Symbol.iterator] ?? null, JSON.stringify(ctx.state)], has: 'tool' in ctx,
        } });
    "#);
    with_input.input_json = Some(r#"{"__proto__":1,"n":[1.5,"é"]}"#.into());
    let pool = pool();
    let seen = run_in(&pool, with_input).await;
    let output = seen.output();
    let expected = serde_json::json!({
        "same": true, "log": true,
        "run": {"id": "r1", "automationId": "auto", "appId": "app", "attempt": 1, "trigger": {"origin": "manual"}},
        "tool": {"__proto__": {"x": 1}, "a": [1, null]}, "own": true, "none": {}, "empty": {},
        "agent": "an answer",
        "invoke": {"output": {"handle": "app/other", "input": [1]}, "childRunId": "c1"},
        "bare": {"output": {"handle": "other", "input": null}, "childRunId": "c1"},
        "get": [true], "set": null, "del": 2, "last": {"runId": "b"}, "list": 2,
        "fail": ["Error", "no luck", "tool_failed", "args.x"],
        "bigint": ["TypeError", "Do not know how to serialize a BigInt", null, null], "cyclic": "TypeError",
        "array": ["TypeError", "ctx.tool(name, args): args must be an object", "INVALID_INPUT", null],
        "name": ["TypeError", "ctx.tool(name, args): name must be a non-empty string", "INVALID_INPUT", null],
        "key": ["TypeError", "ctx.state.get(key): the key must be a string", "INVALID_INPUT", null],
        "fn": ["TypeError", "ctx.state.set(key, value): a function or symbol cannot be stored", "INVALID_INPUT", null],
        "agentless": ["TypeError", "ctx.agent({ prompt, json? }): an object is needed", "agent_bad_args", null],
        "getter": ["RangeError", "mine", null, null],
        "unknown": ["TypeError", "ctx.fetch does not exist; ctx has: tool, agent, state, runs, invoke, run, input, abortSignal, log", null, null],
        "unknownState": ["TypeError", "ctx.state.put does not exist; ctx.state has: get, set, delete, del", null, null],
        "then": [null, null, "{}"], "has": true,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&output[key], value, "{key}");
    }
    let bodies: Vec<&CtxCallBody> = seen.batches.iter().flat_map(|(_, calls)| calls).map(|call| &call.body).collect();
    assert!(bodies.contains(&&CtxCallBody::StateSet { key: "k".into(), value_json: "null".into() }));
    assert!(bodies.contains(&&CtxCallBody::RunsList { filter_json: Some(r#"{"status":"ok","limit":1}"#.into()) }));
    assert!(bodies.contains(&&CtxCallBody::Agent { args_json: r#"{"prompt":"p"}"#.into() }));
    assert_eq!(
        dirigent::isolate::CTX_MEMBERS.join(", "),
        "tool, agent, state, runs, invoke, run, input, abortSignal, log"
    );
    pool.shutdown().await;
}

#[tokio::test]
async fn calls_of_one_tick_come_together() {
    let seen = run(r#"
        export default async ({ ctx, log }) => {
            await Promise.all([ctx.tool('a'), Promise.resolve().then(() => ctx.tool('b')), ctx.tool('c')]);
            log.info('between');
            await ctx.tool('d');
            await Promise.all(Array.from({ length: 600 }, (_, i) => ctx.tool('many', { i })));
        };
    "#)
    .await;
    let names = |calls: &[CtxCall]| -> Vec<String> {
        calls
            .iter()
            .map(|call| match &call.body {
                CtxCallBody::Tool { name, .. } => name.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    };
    assert_eq!(names(&seen.batches[0].1), ["a", "c", "b"]);
    assert_eq!(names(&seen.batches[1].1), ["d"]);
    assert!(seen.batches[0].0.is_some() && seen.batches[1].0.is_none());
    let many: Vec<_> = seen.batches.iter().filter(|(_, calls)| names(calls)[0] == "many").collect();
    assert_eq!(many[0].1.len(), 256, "as many as may be in flight");
    assert!(many.iter().all(|(tick, _)| tick.is_some() && *tick == many[0].0 && *tick != seen.batches[0].0));
    let order: Vec<u32> = many.iter().flat_map(|(_, calls)| calls.iter().map(|call| call.id)).collect();
    assert_eq!(order.len(), 600);
    assert!(order.is_sorted());
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
}

#[tokio::test]
async fn values_of_every_size_cross_or_are_refused() {
    let seen = run(r#"
        const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return e.code; } };
        export default async ({ ctx }) => {
            const text = 'é'.repeat(5 << 20);
            const back = await ctx.tool('t', { text });
            return { output: { same: back.text === text, large: await failed(ctx.tool('t', { t: 'x'.repeat(17 << 20) })),
                many: (await Promise.all(Array.from({ length: 8 }, () => ctx.tool('t', { t: 'x'.repeat(3 << 20) })))).length } };
        };
    "#)
    .await;
    assert_eq!(seen.output(), serde_json::json!({"same": true, "large": "too_large", "many": 8}));
}

#[tokio::test]
async fn queries_and_actions_get_a_database() {
    let pool = pool();
    let source = r#"
        const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return [e.message, e.code ?? null]; } };
        export default async ({ db, log, app, input, query, body }, second) => {
            const get = await db.prepare('select ?').get(1, 'x');
            const named = await db.prepare('select :a').all({ a: 1 });
            await db.prepare('insert').run(); await db.exec('vacuum');
            let leaked;
            const result = await db.transaction(async (tx) => { leaked = tx; await tx.prepare('in tx').run(5); return 'committed'; });
            const rolled = await failed(db.transaction(async (tx) => { await tx.exec('bad'); throw new RangeError('undo'); }));
            const nested = await failed(db.transaction((tx) => tx.transaction(async () => {})));
            const late = await failed(leaked.exec('late'));
            return { get, named, result, rolled, nested, late, app, same: second === input, query: query === input, body: body === input, input };
        };
    "#;
    for (kind, is_query) in [
        (JobKind::Query { app: "shop".into(), name: "q".into() }, true),
        (JobKind::Action { app: "shop".into(), name: "a".into() }, false),
    ] {
        let mut sent = Vec::new();
        let running =
            pool.run(Job { kind, input_json: Some("{\"i\":1}".into()), ..job(source) }).await.expect("a host");
        let seen = follow(running, |call| {
            let CtxCallBody::Db { args_json } = &call.body else { panic!("{call:?}") };
            let args: serde_json::Value = serde_json::from_str(args_json).expect("JSON");
            sent.push(args_json.clone());
            Some(match args["op"].as_str().expect("op") {
                "get" => Ok(Some("{\"n\":1}".into())),
                "all" => Ok(Some("[]".into())),
                _ => Ok(None),
            })
        })
        .await;
        let Outcome::Returned { value_json: Some(json) } = &seen.end.outcome else { panic!("{:?}", seen.end.outcome) };
        let value: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(
            value,
            serde_json::json!({
                "get": {"n": 1}, "named": [], "result": "committed", "rolled": ["undo", null],
                "nested": ["tx.transaction: a transaction inside a transaction is not possible", null],
                "late": ["tx: the transaction is over", null],
                "app": "shop", "same": true, "query": is_query, "body": !is_query, "input": {"i": 1},
            })
        );
        assert_eq!(
            sent,
            [
                r#"{"op":"get","sql":"select ?","params":[1,"x"]}"#,
                r#"{"op":"all","sql":"select :a","params":{"a":1}}"#,
                r#"{"op":"run","sql":"insert"}"#,
                r#"{"op":"exec","sql":"vacuum"}"#,
                r#"{"op":"begin","tx":1}"#,
                r#"{"op":"run","sql":"in tx","params":[5],"tx":1}"#,
                r#"{"op":"commit","tx":1}"#,
                r#"{"op":"begin","tx":2}"#,
                r#"{"op":"exec","sql":"bad","tx":2}"#,
                r#"{"op":"rollback","tx":2}"#,
                r#"{"op":"begin","tx":3}"#,
                r#"{"op":"rollback","tx":3}"#,
            ]
        );
    }
    let big = Job {
        kind: JobKind::Query { app: "a".into(), name: "q".into() },
        ..job("export default () => 'x'.repeat(17 << 20)")
    };
    assert_eq!(run_in(&pool, big).await.failure().0, ErrorCode::BadOutput);
    pool.shutdown().await;
}
