//! How deep values may nest on their way out of a handler and back into it.

use dirigent::core::json_depth::MAX_JSON_DEPTH;

use super::*;

/// `nested(n)` is an array in an array, `n` deep; `wrapped(n)` is an object around one, `n` in all.
const NESTED: &str = "const nested = (n) => { let v = []; for (let i = 1; i < n; i++) v = [v]; return v; };
    const wrapped = (n) => ({ v: nested(n - 1) });
    const failed = async (p) => { try { await p; return 'fine'; } catch (e) { return `${e.code}: ${e.message}`; } };";

#[tokio::test]
async fn arguments_are_as_deep_as_they_may_be_or_refused() {
    let seen = run(&format!(
        "{NESTED}
        export default async ({{ ctx, log }}) => {{
            const most = {MAX_JSON_DEPTH}, out = {{}};
            for (const [name, call] of [
                ['tool', (n) => ctx.tool('t', wrapped(n))],
                ['agent', (n) => ctx.agent({{ prompt: 'p', json: wrapped(n - 1) }})],
                ['invoke', (n) => ctx.invoke('x', {{ input: nested(n) }})],
                ['set', (n) => ctx.state.set('k', nested(n))],
                ['last', (n) => ctx.runs.last(wrapped(n))],
                ['list', (n) => ctx.runs.list(wrapped(n))],
            ]) out[name] = [await failed(call(most)), await failed(call(most + 1))];
            log.info('deep', nested(most)); log.info('deeper', nested(most + 1));
            return {{ output: out }};
        }}"
    ))
    .await;
    let output = seen.output();
    for (name, got) in output.as_object().expect("an object") {
        let refused = "too_deep: the call's argument nests deeper than 100 levels of arrays and objects";
        // An invoke of the test's own wraps what it was given, and then its answer is too deep.
        let fine = if name == "invoke" { "too_deep: the result nests" } else { "fine" };
        assert!(got[0].as_str().is_some_and(|text| text.starts_with(fine)), "{name}: {got}");
        assert_eq!(got[1], refused, "{name}");
    }
    assert_eq!(output.as_object().map(serde_json::Map::len), Some(6));
    assert_eq!(seen.batches.len(), 6, "nothing is sent of what was refused");
    assert!(seen.logs[0].fields_json.as_ref().is_some_and(|fields| fields.starts_with("[[[")));
    assert_eq!(
        seen.logs[1].fields_json.as_deref(),
        Some("\"what was logged nests deeper than 100 levels of arrays and objects\"")
    );
}

#[tokio::test]
async fn results_are_as_deep_as_they_may_be_or_refused() {
    let pool = pool();
    let output = |n: usize| job(&format!("{NESTED} export default () => ({{ output: nested({n}) }})"));
    let value = |n: usize, kind| Job { kind, ..job(&format!("{NESTED} export default () => nested({n})")) };
    let query = || JobKind::Query { app: "shop".into(), name: "q".into() };
    let action = || JobKind::Action { app: "shop".into(), name: "a".into() };
    for (job, what) in [
        (output(MAX_JSON_DEPTH), None),
        (output(MAX_JSON_DEPTH + 1), Some("output")),
        (value(MAX_JSON_DEPTH, query()), None),
        (value(MAX_JSON_DEPTH + 1, query()), Some("the returned value")),
        (value(MAX_JSON_DEPTH + 1, action()), Some("the returned value")),
    ] {
        let seen = run_in(&pool, job).await;
        match what {
            None => assert!(!matches!(seen.end.outcome, Outcome::Failed { .. }), "{:?}", seen.end.outcome),
            Some(what) => {
                let message = format!("{what} nests deeper than 100 levels of arrays and objects");
                assert_eq!(seen.failure(), (ErrorCode::BadOutput, message.as_str()));
            }
        }
    }
    let params = Job {
        kind: action(),
        ..job(&format!("{NESTED} export default ({{ db }}) => failed(db.prepare('x').get(nested(200)))"))
    };
    let seen = run_in(&pool, params).await;
    assert!(seen.batches.is_empty());
    match &seen.end.outcome {
        Outcome::Returned { value_json: Some(json) } => assert!(json.starts_with("\"too_deep: "), "{json}"),
        other => panic!("{other:?}"),
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_is_too_deep_is_an_error() {
    let pool = pool();
    let source = format!(
        "{NESTED} export default async ({{ ctx }}) => ({{ output: [await failed(ctx.tool('a')), await failed(ctx.tool('b'))] }})"
    );
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let mut answers = [nested(MAX_JSON_DEPTH), nested(MAX_JSON_DEPTH + 1)].into_iter();
    let running = pool.run(job(&source)).await.expect("a host");
    let seen = follow(running, |_| Some(Ok(answers.next()))).await;
    assert_eq!(
        seen.output(),
        serde_json::json!(["fine", "too_deep: the result nests deeper than 100 levels of arrays and objects"])
    );
    pool.shutdown().await;
}
