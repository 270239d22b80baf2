//! How a run ends, and what is told of it: failures with their place, what is returned, aborts.

use super::*;

#[tokio::test]
async fn failures_have_their_code_and_place() {
    use ErrorCode::{BadOutput, HandlerLoad, HandlerThrew, NeverSettled, NoDefaultExport};
    let cases: &[(&str, ErrorCode, &str)] = &[
        (
            "export default () => {\n  throw new Error('boom');\n}",
            HandlerThrew,
            "boom\n    at default (app/auto/handler.js:2:9)",
        ),
        (
            "export default async () => { await null; null.x }",
            HandlerThrew,
            "TypeError: Cannot read properties of null (reading 'x')\n    at default (app/auto/handler.js:1:47)",
        ),
        ("export default () => { throw null }", HandlerThrew, "null"),
        ("export default () => { throw undefined }", HandlerThrew, "undefined"),
        ("export default () => { throw 'text' }", HandlerThrew, "text"),
        ("export default () => { throw Symbol('s') }", HandlerThrew, "Symbol(s)"),
        (
            "export default () => { throw { toString() { throw 1 }, get message() { throw 2 } } }",
            HandlerThrew,
            "{ toString: [Function: toString], message: [Getter] }",
        ),
        (
            "export default () => { throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 } }) }",
            HandlerThrew,
            "[Proxy]",
        ),
        (
            "export default () => { const e = new Error('x'); Object.defineProperty(e, 'stack', { get() { throw 1 } }); throw e }",
            HandlerThrew,
            "x",
        ),
        (
            "export default () => Promise.reject(new DOMException('m', 'AbortError'))",
            HandlerThrew,
            "AbortError: m\n    at default (app/auto/handler.js:1:37)",
        ),
        (
            "export default ({ ctx }) => ctx.tool('fail')",
            HandlerThrew,
            "no luck\n    at default (app/auto/handler.js:1:33)",
        ),
        ("export default { then(resolve) {} }", NoDefaultExport, "the default export is not a function"),
        ("export default 5", NoDefaultExport, "the default export is not a function"),
        (
            "export const a = 1",
            NoDefaultExport,
            "the module has no default export; write `export default async ({ ctx, log, input }) => {…}`",
        ),
        (
            "",
            NoDefaultExport,
            "the module has no default export; write `export default async ({ ctx, log, input }) => {…}`",
        ),
        (
            "export default async () => {\n  await 5 5;\n}",
            HandlerLoad,
            "SyntaxError: Unexpected number\n    at app/auto/handler.js:2:11",
        ),
        ("throw new Error('top')", HandlerLoad, "top\n    at app/auto/handler.js:1:7"),
        ("await null; throw new RangeError('late')", HandlerLoad, "RangeError: late\n    at app/auto/handler.js:1:19"),
        (
            "await new Promise(() => {}); export default () => {}",
            NeverSettled,
            "the handler's promise can never settle: no call and no timer is left that could",
        ),
        (
            "export default () => new Promise(() => {})",
            NeverSettled,
            "the handler's promise can never settle: no call and no timer is left that could",
        ),
        (
            "export default () => ({ then() {} })",
            NeverSettled,
            "the handler's promise can never settle: no call and no timer is left that could",
        ),
        (
            "\nimport fs from 'node:fs'; export default () => {}",
            HandlerLoad,
            "import of \"node:fs\" is not possible: a handler is one module and imports nothing\n    at app/auto/handler.js:2:16",
        ),
        (
            "export * from './other.js'",
            HandlerLoad,
            "import of \"./other.js\" is not possible: a handler is one module and imports nothing\n    at app/auto/handler.js:1:15",
        ),
        (
            "export default () => ({ output: 1n })",
            BadOutput,
            "output is not JSON: TypeError: Do not know how to serialize a BigInt",
        ),
        ("export default () => ({ output: () => {} })", BadOutput, "output is a function, which JSON has no form for"),
        ("export default () => ({ get output() { throw new Error('g') } })", BadOutput, "output is not JSON: g"),
        (
            "export default () => ({ output: 'x'.repeat(1 << 20) })",
            BadOutput,
            "output is 1048578 bytes of JSON; the limit is 1048576",
        ),
    ];
    let pool = pool();
    for (source, code, message) in cases {
        let seen = run_in(&pool, job(source)).await;
        let (got_code, got) = seen.failure();
        assert_eq!(got_code, *code, "{source}: {got}");
        let is_prefix = got.strip_prefix(message).is_some_and(|rest| rest.is_empty() || rest.starts_with("\n    at "));
        assert!(is_prefix, "{source}\n got: {got:?}\nwant: {message:?}");
        assert!(!got.contains("dirigent:") && !got.contains("ext:") && !got.contains("file:"), "{got}");
    }
    let coded = run_in(&pool, job("export default ({ ctx }) => ctx.tool('fail')")).await;
    assert!(matches!(coded.end.outcome, Outcome::Failed { error_code: Some(ref code), .. } if code == "tool_failed"));
    pool.shutdown().await;
}

#[tokio::test]
async fn what_is_returned_is_taken_as_far_as_it_goes() {
    let long = format!("({{ summary: '{}é' + 'x'.repeat(10) }})", "y".repeat(4095));
    let cases: &[(&str, Option<&str>, Option<&str>)] = &[
        ("undefined", None, None),
        ("null", None, None),
        ("5", None, None),
        ("[1]", None, None),
        ("'text'", None, None),
        ("({ summary: 5, output: undefined })", None, None),
        ("({ summary: 's', output: null })", Some("s"), Some("null")),
        ("({ output: JSON.parse('{\"__proto__\": 1}') })", None, Some("{\"__proto__\":1}")),
        ("Object.create({ summary: 'inherited' })", Some("inherited"), None),
        ("({ then(resolve) { resolve({ summary: 'thenable' }) } })", Some("thenable"), None),
        ("({ get summary() { throw 1 }, output: 1 })", None, Some("1")),
    ];
    let pool = pool();
    for (value, summary, output) in cases {
        for source in [format!("export default () => {value}"), format!("export default async () => {value}")] {
            let seen = run_in(&pool, job(&source)).await;
            let expected = Outcome::Settled { summary: summary.map(Into::into), output_json: output.map(Into::into) };
            assert_eq!(seen.end.outcome, expected, "{source}");
        }
    }
    let seen = run_in(&pool, job(&format!("export default () => {long}"))).await;
    assert_eq!(seen.end.outcome, Outcome::Settled { summary: Some("y".repeat(4095)), output_json: None });
    pool.shutdown().await;
}

#[tokio::test]
async fn nothing_runs_after_the_end() {
    let seen = run(r#"
        export default async ({ ctx, log }) => {
            await null;
            (async () => { for (;;) await null; })();
            Promise.resolve().then(() => Promise.resolve()).then(() => Promise.resolve()).then(() => { for (;;); });
            setTimeout(() => log.info('never'), 0); setInterval(() => ctx.tool('never'), 1);
            return { summary: 'early' };
        };
    "#)
    .await;
    assert_eq!(seen.end.outcome, Outcome::Settled { summary: Some("early".into()), output_json: None });
    assert!(seen.logs.is_empty() && seen.batches.is_empty());
    assert!(seen.end.cpu_ms < 5000);
}

#[tokio::test]
async fn stray_errors_are_logged_and_do_not_fail_the_run() {
    let seen = run(r#"
        export default async ({ ctx }) => {
            Promise.reject(new Error('stray')); const late = Promise.reject(new Error('handled')); late.catch(() => {});
            setTimeout(() => { throw new Error('in timer'); }, 1); queueMicrotask(() => { throw 'in microtask'; });
            ctx.abortSignal.addEventListener('x', () => { throw new Error('in listener'); }); ctx.abortSignal.dispatchEvent(new Event('x'));
            await new Promise((r) => setTimeout(r, 5));
        };
    "#)
    .await;
    let firsts: Vec<&str> = seen.messages().iter().map(|m| m.lines().next().unwrap_or_default()).collect();
    assert_eq!(
        firsts,
        [
            "uncaught exception in a listener of x: Error: in listener",
            "uncaught exception in queueMicrotask: in microtask",
            "unhandled promise rejection: Error: stray",
            "uncaught exception in setTimeout: Error: in timer",
        ]
    );
    assert!(seen.logs.iter().all(|line| line.level == LogLevel::Error));
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
}

#[tokio::test]
async fn check_compiles_and_runs_nothing() {
    let pool = pool();
    let cases = [
        ("throw 1; export default () => {}", None),
        ("for (;;); export default 5", None),
        ("export const a = 1", Some(ErrorCode::NoDefaultExport)),
        ("export default {", Some(ErrorCode::HandlerLoad)),
        ("import 'x'; export default () => {}", Some(ErrorCode::HandlerLoad)),
    ];
    for (source, expected) in cases {
        let seen = run_in(&pool, Job { kind: JobKind::Check, ..job(source) }).await;
        match (expected, &seen.end.outcome) {
            (None, Outcome::Returned { value_json: None }) => {}
            (Some(code), Outcome::Failed { code: got, .. }) if code == *got => {}
            (_, other) => panic!("{source}: {other:?}"),
        }
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn an_abort_is_told_first_and_then_enforced() {
    let pool = pool();
    let polite = "export default async ({ ctx, log }) => { log.info('ready');
        await new Promise((resolve) => ctx.abortSignal.addEventListener('abort', resolve));
        log.info(`${ctx.abortSignal.aborted} ${ctx.abortSignal.reason.name} ${ctx.abortSignal.reason.message}`); await ctx.state.set('cleaned', true); }";
    let (seen, _) = abort_when_ready(&pool, polite).await;
    assert_eq!(seen.end.outcome, Outcome::Aborted);
    assert_eq!(seen.messages(), ["true AbortError cancelled by a person"]);
    assert_eq!(seen.batches.len(), 1, "cleaning up may call");

    for stubborn in [
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 60000)) }",
        "export default async ({ log, ctx }) => { log.info('ready'); await ctx.tool('hang') }",
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 1)); for (;;) {} }",
        "export default async ({ log }) => { log.info('ready'); await new Promise((r) => setTimeout(r, 1)); for (;;) await null }",
        "export default async ({ log }) => { log.info('ready'); setInterval(() => {}, 1); await new Promise(() => {}) }",
    ] {
        let (seen, took) = abort_when_ready(&pool, stubborn).await;
        assert_eq!(seen.end.outcome, Outcome::Aborted, "{stubborn}");
        println!("aborted in {took:?}: {stubborn}");
    }
    assert_well(&pool).await;
    pool.shutdown().await;
}
