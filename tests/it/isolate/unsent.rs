//! Calls that were pending when an automation's handler settled: what was sent, what was abandoned, and what the log says.

use dirigent::isolate::wire;

use super::*;

fn count(groups: &[(Option<u32>, Vec<CtxCall>)]) -> usize {
    groups.iter().map(|(_, calls)| calls.len()).sum()
}

fn tools(groups: &[(Option<u32>, Vec<CtxCall>)]) -> Vec<&str> {
    let calls = groups.iter().flat_map(|(_, calls)| calls);
    calls
        .map(|call| match &call.body {
            CtxCallBody::Tool { name, .. } => name.as_str(),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// `level message` of each line.
fn lines(seen: &Seen) -> Vec<String> {
    seen.logs.iter().map(|line| format!("{} {}", line.level, line.message)).collect()
}

const CANCELLED: &str = "and they are cancelled";

#[tokio::test]
async fn a_call_is_sent_or_abandoned_by_when_it_was_made() {
    // Handler's body, tools that were sent, tools that were abandoned in their ticks, and the last lines of the log.
    type Case = (&'static str, &'static [&'static str], &'static [&'static [&'static str]], Vec<String>);
    let told = |names: &str| format!("warn the handler settled before {names}; await each call");
    let line = |text: &str| format!("info {text}");
    let cases: Vec<Case> = vec![
        ("await ctx.tool('a')", &["a"], &[], vec![]),
        ("ctx.tool('a')", &[], &[&["a"]], vec![told("1 of its calls had ended, and it is cancelled: tool a")]),
        (
            "ctx.tool('a'); throw new Error('x')",
            &[],
            &[&["a"]],
            vec![told("1 of its calls had ended, and it is cancelled: tool a")],
        ),
        (
            "log.info('one'); ctx.tool('a'); await null; ctx.tool('b'); log.info('two')",
            &[],
            &[&["a", "b"]],
            vec![line("one"), line("two"), told(&format!("2 of its calls had ended, {CANCELLED}: tool a and tool b"))],
        ),
        (
            "ctx.tool('hang'); await tick(); ctx.tool('b'); log.info('last')",
            &["hang"],
            &[&["b"]],
            vec![line("last"), told(&format!("2 of its calls had ended, {CANCELLED}: tool hang and tool b"))],
        ),
        (
            "ctx.tool('hang'); await tick(); await ctx.tool('fail')",
            &["hang", "fail"],
            &[],
            vec![told("1 of its calls had ended, and it is cancelled: tool hang")],
        ),
        // A getter of what was returned runs last of all.
        (
            "return { get output() { ctx.tool('a'); return 1 } }",
            &[],
            &[&["a"]],
            vec![told("1 of its calls had ended, and it is cancelled: tool a")],
        ),
    ];
    let pool = pool();
    for (body, sent, abandoned, expected) in cases {
        let source = format!(
            "const tick = () => new Promise((done) => setTimeout(done, 1));
            export default async ({{ ctx, log }}) => {{ {body} }}"
        );
        let seen = run_in(&pool, job(&source)).await;
        assert_eq!(tools(&seen.batches), sent, "{body}");
        let groups: Vec<Vec<&str>> = seen.abandoned.iter().map(|group| tools(std::slice::from_ref(group))).collect();
        assert_eq!(groups, abandoned, "{body}");
        assert!(seen.abandoned.iter().all(|(tick, calls)| tick.is_some() == (calls.len() > 1)), "{body}");
        assert_eq!(lines(&seen), expected, "{body}");
        let failed = body.contains("throw") || body.contains("'fail'");
        assert_eq!(matches!(seen.end.outcome, Outcome::Failed { code: ErrorCode::HandlerThrew, .. }), failed, "{body}");
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn what_waited_for_a_place_in_flight_is_abandoned() {
    // In one tick: nothing was sent yet. With a tick between: as many as may be in flight were.
    for (pause, sent) in [("", 0), ("await new Promise((done) => setTimeout(done, 1));", 256)] {
        let seen = run(&format!(
            "export default async ({{ ctx }}) => {{
                Promise.all(Array.from({{ length: 300 }}, (_, i) => ctx.tool('hang', {{ i }})));
                {pause} return {{ summary: 'done' }} }}"
        ))
        .await;
        assert_eq!((count(&seen.batches), count(&seen.abandoned)), (sent, 300 - sent));
        let ticks: Vec<Option<u32>> = seen.batches.iter().chain(&seen.abandoned).map(|(tick, _)| *tick).collect();
        assert!(ticks[0].is_some() && ticks.iter().all(|tick| *tick == ticks[0]), "{ticks:?}");
        let ids: Vec<u32> =
            seen.batches.iter().chain(&seen.abandoned).flat_map(|(_, calls)| calls).map(|call| call.id).collect();
        assert_eq!(ids, (0..300).collect::<Vec<_>>());
        assert_eq!(
            lines(&seen),
            [format!(
                "warn the handler settled before 300 of its calls had ended, {CANCELLED}: \
                 tool hang, tool hang, tool hang and 297 more; await each call"
            )]
        );
        assert_eq!(seen.end.outcome, Outcome::Settled { summary: Some("done".into()), output_json: None });
    }
}

#[tokio::test]
async fn the_line_names_every_kind_of_call() {
    let cases = [
        ("ctx.state.set('last', 1); ctx.state.get('a\\nb')", "state.set \"last\" and state.get \"a\\nb\""),
        ("ctx.agent({ prompt: 'p' }); ctx.invoke('app/x'); ctx.runs.last()", "agent, invoke app/x and runs.last"),
        ("ctx.runs.list(); ctx.state.delete('k')", "runs.list and state.delete \"k\""),
    ];
    let pool = pool();
    for (body, names) in cases {
        let seen = run_in(&pool, job(&format!("export default ({{ ctx }}) => {{ {body} }}"))).await;
        let told = lines(&seen);
        assert!(told.len() == 1 && told[0].ends_with(&format!(": {names}; await each call")), "{told:?}");
    }
    pool.shutdown().await;
}

#[tokio::test]
async fn a_flood_of_calls_is_told_in_part() {
    let seen = run("export default ({ ctx }) => {
        for (let i = 0; i < 21000; i++) ctx.tool('t', { i });
        return { summary: 'done' } }")
    .await;
    assert_eq!((count(&seen.batches), count(&seen.abandoned)), (0, wire::MAX_ABANDONED));
    assert!(seen.messages()[0].contains("21000 of its calls"), "{:?}", seen.messages());
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }), "{:?}", seen.end.outcome);

    // More than a frame: in several, of the same tick.
    let seen = run("export default ({ ctx }) => {
        for (let i = 0; i < 6; i++) ctx.tool('t', { text: 'x'.repeat(1 << 19) }) }")
    .await;
    assert_eq!(seen.abandoned.len(), 3);
    assert!(seen.abandoned.iter().all(|(tick, calls)| calls.len() == 2 && *tick == seen.abandoned[0].0));
}

#[tokio::test]
async fn a_stopped_run_warns_of_nothing() {
    let pool = pool_with(1, 2, small_limits());
    let limited = "export default async ({ ctx }) => { ctx.tool('a'); for (;;); }";
    let seen = run_in(&pool, Job { cpu_ms: Some(100), ..job(limited) }).await;
    assert_eq!(seen.failure().0, ErrorCode::CpuLimit);
    assert_eq!((count(&seen.batches), count(&seen.abandoned), seen.logs.len()), (0, 0, 0));

    let aborted = "export default async ({ ctx, log }) => { ctx.tool('hang'); log.info('ready');
        await new Promise((done) => ctx.abortSignal.addEventListener('abort', done)); ctx.tool('a') }";
    let (seen, _) = abort_when_ready(&pool, aborted).await;
    assert_eq!(seen.end.outcome, Outcome::Aborted);
    assert_eq!((tools(&seen.abandoned), seen.logs.len()), (vec!["a"], 0));
    pool.shutdown().await;
}
