//! Runs and what they leave in the ledger.

use std::time::Duration;

use dirigent::core::Answer;
use dirigent::fire::{ErrorCode, RunStatus};

use crate::harness::{Root, ended, handle, request, run, start, until};

const DONE: Duration = Duration::ZERO;
/// Waits for ever, until it is cancelled.
const PARKED: &str = "export default () => new Promise((done) => setTimeout(done, 1e8));";

#[tokio::test(flavor = "multi_thread")]
async fn a_run_and_its_calls_are_recorded() {
    let root = Root::new();
    root.automation(
        "a/x",
        "",
        r#"export default async ({ ctx, log, input }) => {
          log.info('hello', { n: input.n });
          await ctx.state.set('seen', input.n);
          const [one, two] = await Promise.all([
            ctx.tool('centraid_describe', {}),
            ctx.tool('centraid_describe', { app: 'a' }),
          ]);
          await ctx.tool('centraid_describe', { app: 'nope' }).catch((error) => log.warn(error.message));
          return { summary: `saw ${await ctx.state.get('seen')}`, output: { two: two.app.id, one: typeof one } };
        };"#,
    );
    let daemon = root.daemon().await;
    let (id, end) = run(&daemon, "a/x", Some(r#"{"n": 7}"#)).await;
    assert_eq!((end.status, end.error, end.summary.as_deref()), (RunStatus::Ok, None, Some("saw 7")));
    let row = "select status, trigger_origin, input_json, output_json, length(handler_hash), attempt,
                 queued_at <= started_at and started_at <= ended_at from runs";
    assert_eq!(root.sql("a", row), [r#"ok|manual|{"n": 7}|{"two":"a","one":"object"}|64|1|1"#]);
    let nodes = "select ordinal, batch_id is null, kind, name, ok, error is null, ended_at is not null from run_nodes
                 order by ordinal";
    assert_eq!(
        root.sql("a", nodes),
        ["0|0|tool|centraid_describe|1|1|1", "1|0|tool|centraid_describe|1|1|1", "2|1|tool|centraid_describe|0|0|1",]
    );
    assert_eq!(root.sql("a", "select count(distinct batch_id) from run_nodes"), ["1"]);
    let logs = root.sql("a", "select seq, level, message, fields_json from run_logs order by seq");
    assert_eq!(logs[0], r#"0|info|hello|{"n":7}"#);
    assert!(logs[1].starts_with("1|warn|"), "{logs:?}");
    assert_eq!(root.sql("a", "select automation_id, key, value_json from automation_state"), ["x|seen|7"]);
    assert_eq!(root.sql("a", "select run_id from runs"), [id.as_str()]);
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_their_codes_and_their_place() {
    let root = Root::new();
    let table = [
        ("threw", "export default () => { throw new Error('boom') };", ErrorCode::HandlerThrew, "boom"),
        ("syntax", "export default () => {", ErrorCode::HandlerLoad, "handler.js:1"),
        ("import", "import x from 'y'; export default () => x;", ErrorCode::HandlerLoad, "import"),
        ("nodefault", "export const x = 1;", ErrorCode::NoDefaultExport, "default"),
        ("notfunction", "export default 3;", ErrorCode::NoDefaultExport, "default"),
        ("never", "export default () => new Promise(() => {});", ErrorCode::NeverSettled, ""),
        ("bigint", "export default () => ({ output: 1n });", ErrorCode::BadOutput, ""),
        (
            "refused",
            "export default ({ ctx }) => ctx.tool('github.list', {});",
            ErrorCode::ToolNotAllowed,
            "requires.tools",
        ),
    ];
    for (id, handler, ..) in table {
        root.automation(&format!("a/{id}"), "", handler);
    }
    root.manifest("a/absent", "");
    root.automation(
        "a/schema",
        r#""outputSchema": {"type": "object", "required": ["n"]}"#,
        "export default () => ({ output: {} });",
    );
    let daemon = root.daemon().await;
    for (id, _, code, told) in table
        .into_iter()
        .chain([("absent", "", ErrorCode::HandlerLoad, "handler.js"), ("schema", "", ErrorCode::OutputSchema, "\"n\"")])
    {
        let (_, end) = run(&daemon, &format!("a/{id}"), None).await;
        let error = end.error.unwrap_or_default();
        assert_eq!((end.status, end.error_code), (RunStatus::Error, Some(code)), "{id}: {error}");
        assert!(error.contains(told), "{id}: {error}");
        assert!(!error.contains(&*root.path().to_string_lossy()), "{id} shows a path of the host: {error}");
    }
    let (_, end) = run(&daemon, "a/threw", None).await;
    let error = end.error.unwrap();
    assert!(error.contains("a/threw/handler.js:1:"), "{error}");
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_invokes_children_in_parallel_and_fails_with_them() {
    let root = Root::new();
    root.automation(
        "a/parent",
        "",
        r#"export default async ({ ctx, input }) => {
          const both = await Promise.all([1, 2].map((n) => ctx.invoke('child', { input: { n, fail: input } })));
          return { output: both.map((b) => b.output) };
        };"#,
    );
    root.automation(
        "a/child",
        r#""concurrency": {"mode": "parallel", "max": 2}"#,
        "export default ({ input }) => { if (input.fail) throw new Error('no ' + input.n); return { output: input.n * 10 } };",
    );
    let daemon = root.daemon().await;
    let (parent, end) = run(&daemon, "a/parent", Some("false")).await;
    assert_eq!(end.output_json.as_deref(), Some("[10,20]"), "{end:?}");
    let children = format!("select count(*) from runs where parent_run_id = '{parent}' and trigger_origin = 'invoke'");
    assert_eq!(root.sql("a", &children), ["2"]);
    let nodes = format!(
        "select count(*) from run_nodes n join runs c on c.run_id = n.child_run_id where n.run_id = '{parent}' and n.kind = 'invoke'"
    );
    assert_eq!(root.sql("a", &nodes), ["2"]);
    let (_, end) = run(&daemon, "a/parent", Some("true")).await;
    assert_eq!(end.error_code, Some(ErrorCode::HandlerThrew));
    assert!(end.error.unwrap().contains("a/child"));
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_is_gone_and_a_timeout_says_so() {
    let root = Root::new();
    root.automation("a/parked", "", PARKED);
    root.automation("a/short", r#""timeoutMs": 200"#, PARKED);
    root.automation("a/spin", r#""timeoutMs": 200"#, "export default () => { for (;;) {} };");
    root.automation(
        "a/aware",
        r#""timeoutMs": 200"#,
        "export default ({ ctx, log }) => new Promise((done) => ctx.abortSignal.addEventListener('abort', () => { log.info('told'); done(); }));",
    );
    let daemon = root.daemon().await;
    let (id, end) = start(&daemon, "a/parked", None).await;
    let Answer::Busy { active } = daemon.fire(request("a/parked", None)).await else { panic!("it is busy") };
    assert_eq!(active, id);
    assert_eq!(daemon.cancel(id.clone()).await, Answer::Cancelling);
    let end = ended(end).await;
    assert_eq!((end.status, end.error_code), (RunStatus::Cancelled, Some(ErrorCode::Cancelled)));
    assert_eq!(daemon.cancel(id).await, Answer::NotOpen);
    for id in ["a/short", "a/spin", "a/aware"] {
        let (_, end) = run(&daemon, id, None).await;
        assert_eq!((end.status, end.error_code), (RunStatus::Error, Some(ErrorCode::Timeout)), "{id}: {end:?}");
    }
    assert_eq!(root.sql("a", "select message from run_logs"), ["told"]);
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_handled_once_and_a_retry_comes_first() {
    let root = Root::new();
    root.automation(
        "a/flaky",
        r#""retry": {"max": 1, "backoffMs": 1}, "onFailure": "catcher""#,
        "export default ({ ctx }) => { throw new Error('attempt ' + ctx.run.attempt); };",
    );
    root.automation(
        "a/catcher",
        "",
        "export default ({ input }) => ({ summary: input.failedRun.error.split('\\n')[0], output: input.failedRun });",
    );
    let daemon = root.daemon().await;
    let mut told = daemon.services().bus.runs();
    run(&daemon, "a/flaky", Some("5")).await;
    until(&daemon, "the end of all", |state| state.open_runs().count() == 0).await;
    let caught = "select count(*) from runs where automation_id = 'catcher' and ended_at is not null";
    root.sql_becomes(&mut told, "a", caught, &["1"]).await;
    let rows = root.sql(
        "a",
        "select automation_id, trigger_origin, status, attempt, summary from runs order by queued_at, run_id",
    );
    assert_eq!(rows, ["flaky|manual|error|1|", "flaky|retry|error|2|", "catcher|failure|ok|1|attempt 2"]);
    let output = root.sql("a", "select json_extract(output_json, '$.input', '$.automationId', '$.errorCode') from runs where automation_id = 'catcher'");
    assert_eq!(output, [r#"[5,"flaky","handler_threw"]"#]);
    assert_eq!(root.sql("a", "select r.attempt from runs r join runs o on o.run_id = r.retry_of"), ["2"]);
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_keeps_what_the_manifest_says() {
    let root = Root::new();
    let handler = "export default ({ input }) => { if (input === 'fail') throw new Error('x'); };";
    for (id, keep) in
        [("count", r#"{"count": 2}"#), ("none", r#"{"count": 0}"#), ("errors", "\"errors\""), ("all", "\"all\"")]
    {
        root.automation(&format!("a/{id}"), &format!(r#""history": {{"keep": {keep}}}"#), handler);
    }
    let daemon = root.daemon().await;
    for id in ["count", "none", "errors", "all"] {
        for input in ["\"ok\"", "\"fail\"", "\"ok\"", "\"ok\""] {
            run(&daemon, &format!("a/{id}"), Some(input)).await;
        }
    }
    // Retention follows the answer; closing the ledger waits for it.
    daemon.stop(DONE).await;
    let rows = root.sql("a", "select automation_id, group_concat(status, ',') from (select * from runs order by run_id) group by 1 order by 1");
    assert_eq!(rows, ["all|ok,error,ok,ok", "count|ok,ok", "errors|error"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_runs_are_seen_without_the_current_one() {
    let root = Root::new();
    root.automation(
        "a/x",
        "",
        r#"export default async ({ ctx, input }) => {
          const list = await ctx.runs.list({ limit: 10 });
          const failed = await ctx.runs.last({ status: 'error' });
          if (input === 'fail') throw new Error('x');
          return { summary: input, output: { list: list.map((r) => [r.status, r.summary]), failed: failed?.status ?? null } };
        };"#,
    );
    let daemon = root.daemon().await;
    run(&daemon, "a/x", Some("\"one\"")).await;
    run(&daemon, "a/x", Some("\"fail\"")).await;
    let (_, end) = run(&daemon, "a/x", Some("\"three\"")).await;
    assert_eq!(end.output_json.as_deref(), Some(r#"{"list":[["error",null],["ok","one"]],"failed":"error"}"#));
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_fires_run_in_order_and_restart_replaces() {
    let root = Root::new();
    let gate = r#"export default async ({ ctx, input }) => {
      if (input === 'first') await new Promise((done) => { ctx.abortSignal.addEventListener('abort', done); });
      return { summary: input };
    };"#;
    root.automation("a/queued", r#""concurrency": {"mode": "queued", "max": 2}"#, gate);
    root.automation("a/restart", r#""concurrency": {"mode": "restart"}"#, gate);
    let daemon = root.daemon().await;
    let (first, first_end) = start(&daemon, "a/queued", Some("\"first\"")).await;
    let (second, second_end) = start(&daemon, "a/queued", Some("\"second\"")).await;
    let (_, third_end) = start(&daemon, "a/queued", Some("\"third\"")).await;
    assert!(matches!(daemon.fire(request("a/queued", None)).await, Answer::Busy { .. }));
    assert_eq!(root.sql("a", &format!("select status from runs where run_id = '{second}'")), ["queued"]);
    daemon.cancel(first).await;
    assert_eq!(ended(first_end).await.status, RunStatus::Cancelled);
    assert_eq!(ended(second_end).await.summary.as_deref(), Some("second"));
    assert_eq!(ended(third_end).await.summary.as_deref(), Some("third"));

    let (_, first_end) = start(&daemon, "a/restart", Some("\"first\"")).await;
    let (_, second_end) = start(&daemon, "a/restart", Some("\"second\"")).await;
    let first = ended(first_end).await;
    assert_eq!((first.status, first.error_code), (RunStatus::Cancelled, Some(ErrorCode::Superseded)));
    assert_eq!(ended(second_end).await.status, RunStatus::Ok);
    assert!(daemon.look(|state| state.registry.get(&handle("a/restart")).is_some()).await.unwrap());
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_limited_and_a_stop_leaves_nothing_running() {
    let root = Root::new();
    root.write("dirigent.toml", "[limits]\nnodes = 5\n");
    root.automation(
        "a/many",
        "",
        "export default async ({ ctx }) => { for (let n = 0; n < 9; n++) await ctx.tool('centraid_describe', {}); };",
    );
    root.automation("a/parked", "", PARKED);
    let daemon = root.daemon().await;
    let (_, end) = run(&daemon, "a/many", None).await;
    assert_eq!(end.error_code, Some(ErrorCode::LimitExceeded));
    assert_eq!(root.sql("a", "select count(*) from run_nodes"), ["5"]);
    let (_, end) = start(&daemon, "a/parked", None).await;
    daemon.stop(DONE).await;
    assert_eq!(ended(end).await.status, RunStatus::Cancelled);
    assert_eq!(
        root.sql("a", "select status, error_code from runs where automation_id = 'parked'"),
        ["cancelled|interrupted"]
    );
}
