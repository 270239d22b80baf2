//! The example apps, as a newcomer gets them.

use std::time::Duration;

use dirigent::clock::{Clock, TestClock};
use dirigent::fire::{ErrorCode, RunStatus};
use serde_json::Value;

use crate::harness::{Root, ended, run, start, until};

/// 2026-11-23T06:59:30Z: half a minute before Monday, 8:00 in Berlin.
const START: i64 = 1_795_417_170_000;
const MINUTE: i64 = 60_000;

fn output(end: &dirigent::core::run::RunEnd) -> Value {
    let text = end.output_json.as_deref().unwrap_or_else(|| panic!("no output: {end:?}"));
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_valid_and_does_what_it_says() {
    let root = Root::copy_of("fixtures/apps");
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let problems = daemon.look(|state| state.registry.problems()).await.unwrap();
    assert_eq!(problems, [], "the examples have no problems");

    let mut told = daemon.services().bus.runs();
    clock.set(START + MINUTE);
    until(&daemon, "both cron fires are over", |state| state.open_runs().count() == 0).await;
    for (app, count) in [("auto.heartbeat", "1"), ("bookshelf", "1")] {
        let fired = "select count(*) from runs where trigger_origin = 'cron' and status = 'ok'";
        root.sql_becomes(&mut told, app, fired, &[count]).await;
    }
    let (_, beat) = run(&daemon, "auto.heartbeat/beat", None).await;
    assert_eq!(output(&beat)["beats"], 2);
    let digest = root.sql("bookshelf", "select kind, name, ok from run_nodes order by ordinal");
    assert_eq!(digest, ["tool|centraid_read|1", "tool|centraid_read|1", "tool|centraid_write|1"]);
    let data = rusqlite::Connection::open(root.join("bookshelf/data.sqlite")).unwrap();
    assert_eq!(data.query_row("select count(*) from digests", [], |row| row.get::<_, i64>(0)).unwrap(), 1);

    let (_, added) = run(&daemon, "bookshelf/add-from-web", Some(r#"{"title":"Emma","author":"Jane Austen"}"#)).await;
    assert_eq!(output(&added)["added"], true, "{added:?}");

    let (_, review) = run(&daemon, "auto.editor/review", None).await;
    assert_eq!(output(&review)["repeats"], serde_json::json!(["the"]));
    assert_eq!(
        root.sql("auto.editor", "select count(*) from runs where trigger_origin = 'invoke' and status = 'ok'"),
        ["2"]
    );

    let (_, moon) = run(&daemon, "auto.almanac/moon", Some(r#"{"at":"2024-04-08T18:00:00Z"}"#)).await;
    assert_eq!(output(&moon)["phase"], "new moon");

    let (_, end) = start(&daemon, "auto.supplier/fetch-prices", None).await;
    let failed = ended(end).await;
    assert_eq!((failed.status, failed.error_code), (RunStatus::Error, Some(ErrorCode::HandlerThrew)));
    let noted = "select count(*) from runs where automation_id = 'note-failure' and trigger_origin = 'failure' and status = 'ok'";
    root.sql_becomes(&mut told, "auto.supplier", noted, &["1"]).await;
    daemon.stop(Duration::ZERO).await;
}
