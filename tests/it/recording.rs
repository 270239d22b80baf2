//! What a run leaves in its ledger, and what of it is told live.

use std::path::PathBuf;
use std::time::Duration;

use dirigent::clock::Clock;
use dirigent::config::Config;
use dirigent::core::Answer;
use dirigent::daemon::{Daemon, Options, RunHappening, Scope};
use dirigent::fire::{ErrorCode, RunStatus};

use crate::harness::{PROGRAM, Root, handle, run, start, until, within};

const DONE: Duration = Duration::ZERO;

fn options(root: &Root) -> Options {
    Options {
        root: root.path().to_owned(),
        data: None,
        config: Config::load(root.path()).expect("settings"),
        clock: Clock::Real,
        program: PathBuf::from(PROGRAM),
        scope: Scope::Root { poll: false },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_right_before_the_end_have_their_rows() {
    let root = Root::new();
    // The batch is on its way, and the end comes right behind it.
    root.automation(
        "a/x",
        r#""history": {"keep": "all"}"#,
        "export default async ({ ctx }) => {
           for (let n = 0; n < 3; n++) ctx.tool('centraid_describe', { n }).catch(() => {});
           await new Promise((done) => setTimeout(done));
         };",
    );
    let daemon = root.daemon().await;
    for _ in 0..20 {
        let (_, end) = run(&daemon, "a/x", None).await;
        assert_eq!(end.status, RunStatus::Ok, "{end:?}");
    }
    let rows = "select count(*), count(ok), count(ended_at), sum(ordinal), count(batch_id) from run_nodes";
    assert_eq!(root.sql("a", rows), ["60|60|60|60|60"]);
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runs_log_limit_holds_for_the_queries_that_it_calls_too() {
    let root = Root::new();
    root.write("dirigent.toml", "[limits]\nlog_lines = 20\nlog_bytes = 2000\n");
    root.write("a/app.json", r#"{"queries": [{"name": "talk"}]}"#);
    root.write(
        "a/queries/talk.js",
        "export default ({ log, input }) => { for (let n = 0; n < input.n; n++) log.info(input.text ?? 'q'); };",
    );
    root.automation(
        "a/x",
        "",
        "export default async ({ ctx, log, input }) => {
           log.info('first');
           for (const each of input) await ctx.tool('centraid_read', { app: 'a', query: 'talk', input: each });
           for (let n = 0; n < 30; n++) log.info('last');
         };",
    );
    let daemon = root.daemon().await;
    let marker = "log truncated: a run may log 20 lines and 2000 bytes";
    let long = "y".repeat(900);
    for (what, input, kept) in [
        ("lines", r#"[{"n": 8}, {"n": 8}, {"n": 8}]"#.to_owned(), 20),
        // The query's own host cuts, and says so.
        ("one host's lines", r#"[{"n": 50}, {"n": 8}]"#.to_owned(), 20),
        ("bytes", format!(r#"[{{"n": 1, "text": "{long}"}}, {{"n": 2, "text": "{long}"}}]"#), 3),
        ("one host's bytes", format!(r#"[{{"n": 1, "text": "{long}{long}{long}"}}, {{"n": 8}}]"#), 1),
    ] {
        let (id, end) = run(&daemon, "a/x", Some(&input)).await;
        assert_eq!(end.status, RunStatus::Ok, "{what}: {end:?}");
        let lines = root.sql("a", &format!("select message from run_logs where run_id = '{id}' order by seq"));
        let (last, rest) = lines.split_last().expect("lines");
        assert_eq!((last.as_str(), rest.len()), (marker, kept), "{what}: {rest:?}");
        assert!(rest.iter().all(|line| !line.contains("truncated")), "{what}: {rest:?}");
    }
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_stands_in_the_ledger_and_the_end_comes_last() {
    let root = Root::new();
    root.automation(
        "a/x",
        "",
        "export default async ({ ctx, log }) => {
           for (let n = 0; n < 20; n++) { log.info('line ' + n); await ctx.tool('centraid_describe', {}); }
           log.info('good bye');
         };",
    );
    let daemon = root.daemon().await;
    let mut told = daemon.services().bus.runs();
    let (id, _) = run(&daemon, "a/x", None).await;
    let mut seen = Vec::new();
    loop {
        let event = within(told.recv()).await.expect("an event");
        match &event.what {
            RunHappening::Log { seq, .. } => seen.push(format!("log {seq}")),
            RunHappening::NodeOpened { ordinal, .. } => {
                let row = format!("select 1 from run_nodes where run_id = '{id}' and ordinal = {ordinal}");
                assert_eq!(root.sql("a", &row), ["1"]);
                seen.push(format!("opened {ordinal}"));
            }
            RunHappening::NodeClosed { ordinal, .. } => seen.push(format!("closed {ordinal}")),
            RunHappening::Ended { .. } => break,
            RunHappening::Opened { .. } | RunHappening::Started { .. } => {}
        }
    }
    let mut expected: Vec<String> =
        (0..20).flat_map(|n| [format!("log {n}"), format!("opened {n}"), format!("closed {n}")]).collect();
    expected.push("log 20".to_owned());
    assert_eq!(seen, expected);
    daemon.stop(DONE).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_gets_no_host_in_its_time_has_timed_out() {
    use std::os::unix::fs::PermissionsExt;
    let root = Root::new();
    root.automation("a/x", r#""timeoutMs": 200"#, "export default () => {};");
    // Makes the snapshot; as a host it takes all that it is told, and never says that it is ready.
    let script = format!("#!/bin/sh\n[ \"$2\" = --snapshot ] && exec {PROGRAM} \"$@\"\nexec cat >/dev/null\n");
    root.write("mute", &script);
    std::fs::set_permissions(root.join("mute"), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let daemon = Daemon::start(Options { program: root.join("mute"), ..options(&root) }).await.expect("a daemon");
    let (_, end) = run(&daemon, "a/x", None).await;
    assert_eq!((end.status, end.error_code), (RunStatus::Error, Some(ErrorCode::Timeout)), "{end:?}");
    let error = end.error.unwrap_or_default();
    assert!(error.contains("no host process was free") && error.contains("timeoutMs of 200"), "{error}");
    daemon.stop(DONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_apart_from_code_is_made_on_the_first_run_and_nothing_comes_back_into_the_code() {
    let (root, data) = (Root::new(), Root::new());
    root.automation("a/x", "", "export default () => ({ summary: 'done' });");
    root.automation("b/parked", "", "export default () => new Promise((done) => setTimeout(done, 1e8));");
    let fresh = data.join("not/yet/there");
    let daemon = Daemon::start(Options { data: Some(fresh.clone()), ..options(&root) }).await.expect("a daemon");
    let (_, end) = run(&daemon, "a/x", None).await;
    assert_eq!(end.summary.as_deref(), Some("done"), "{end:?}");
    assert!(fresh.join("a/runtime.sqlite").exists() && !root.join("a/runtime.sqlite").exists());
    // An app that comes while the daemon runs.
    root.automation("c/y", "", "export default () => ({ summary: 'new' });");
    until(&daemon, "the new app", |state| state.registry.get(&handle("c/y")).is_some()).await;
    assert_eq!(run(&daemon, "c/y", None).await.1.summary.as_deref(), Some("new"));
    daemon.stop(DONE).await;

    let daemon = root.daemon().await;
    let (id, end) = start(&daemon, "b/parked", None).await;
    std::fs::remove_dir_all(root.join("b")).expect("it goes");
    until(&daemon, "the app is gone", |state| state.registry.get(&handle("b/parked")).is_none()).await;
    daemon.cancel(id).await;
    // There is no ledger any more that could take its end.
    assert!(matches!(within(end).await, Ok(Answer::NotRecorded { .. })));
    daemon.stop(DONE).await;
    assert!(!root.join("b").exists(), "the app came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_say_what_to_do() {
    let root = Root::new();
    root.write("dirigent.toml", "[limits]\nvalue_bytes = 20000\n");
    root.write("a/app.json", r#"{"queries": [{"name": "deep"}, {"name": "half"}]}"#);
    let nest = "let value = 1; for (let n = 0; n < 300; n++) value = [value];";
    root.write("a/queries/deep.js", &format!("export default () => {{ {nest} return value; }};"));
    root.write("a/queries/half.js", "export default () => 'half \\ud800 a pair';");
    root.automation("a/big", "", "export default () => ({ output: 'z'.repeat(9000) });");
    root.automation("mail/digest", "", "export default () => {};");
    root.automation("a/call", "", &format!("export default async ({{ ctx, input }}) => {{ {nest} await ({{
      near: () => ctx.invoke('bgi'),
      elsewhere: () => ctx.invoke('digest'),
      far: () => ctx.invoke('quite/different'),
      deep: () => ctx.tool('centraid_read', {{ app: 'a', query: 'deep' }}),
      half: () => ctx.tool('centraid_read', {{ app: 'a', query: 'half' }}),
      halfArgs: () => ctx.tool('centraid_describe', {{ text: '\\ud800' }}),
      args: () => ctx.tool('centraid_describe', {{ value }}),
      input: () => ctx.invoke('big', {{ input: value }}),
      filter: () => ctx.runs.list({{ limt: 1 }}),
      large: () => ctx.runs.list({{ automationId: 'big' }}),
      small: () => ctx.runs.list({{ automationId: 'big', limit: 1 }}).then((rows) => {{ throw new Error('rows: ' + rows.length); }}),
      last: () => ctx.runs.last({{ automationId: 'big' }}).then((row) => {{ throw new Error('last: ' + row.status); }}),
      lastOfOwn: () => ctx.runs.last().then((row) => {{ throw new Error('own: ' + row.status); }}),
    }})[input](); }};"));
    let daemon = root.daemon().await;
    for _ in 0..3 {
        assert_eq!(run(&daemon, "a/big", None).await.1.status, RunStatus::Ok);
    }
    for (case, told) in [
        ("near", "there is no automation a/bgi; did you mean \"a/big\"?"),
        ("elsewhere", "there is no automation a/digest; did you mean \"mail/digest\"?"),
        ("far", "there is no automation quite/different\n"),
        ("deep", "nests deeper than 100 levels"),
        ("half", "half of a surrogate pair"),
        ("halfArgs", "half of a surrogate pair"),
        ("args", "nests deeper than 100 levels"),
        ("input", "nests deeper than 100 levels"),
        ("filter", "\"limt\" is not a filter field; the fields are automationId, status, since, limit"),
        ("large", "smaller `limit`"),
        ("small", "rows: 1"),
        ("last", "last: ok"),
        ("lastOfOwn", "own: error"),
    ] {
        let (_, end) = run(&daemon, "a/call", Some(&format!("\"{case}\""))).await;
        let error = end.error.unwrap_or_default();
        assert_eq!(end.error_code, Some(ErrorCode::HandlerThrew), "{case}: {error}");
        assert!(error.contains(told), "{case}: {error}");
    }
    daemon.stop(DONE).await;
}
