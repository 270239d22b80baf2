//! What a daemon does when time was lost, a ledger refuses, or an app gets another name while it runs.

use dirigent::clock::{Clock, TestClock};
use dirigent::core::Answer;
use dirigent::fire::AppId;
use dirigent::ledger::faults::{Point, SQLITE_FULL};

use crate::harness::{Root, ended, handle, start, until, within};

/// 2026-03-02T00:00:00Z.
const START: i64 = 1_772_409_600_000;
const HOUR: i64 = 3_600_000;
const PARKED: &str = "export default () => new Promise((done) => setTimeout(done, 1e8));";

#[tokio::test(flavor = "multi_thread")]
async fn every_instant_of_an_outage_is_made_up_for_in_its_order() {
    let root = Root::new();
    root.automation(
        "a/hourly",
        r#""catchUp": "all", "concurrency": {"mode": "parallel", "max": 3}, "triggers": [{"kind": "cron", "expr": "0 * * * *"}]"#,
        "export default ({ ctx }) => ({ summary: `missed ${ctx.run.trigger.missed}` });",
    );
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock)).await;
    // Its trigger is known to the ledger when its app's first row is written.
    let (_, end) = start(&daemon, "a/hourly", None).await;
    ended(end).await;
    daemon.stop(std::time::Duration::ZERO).await;
    drop(daemon);

    let daemon = root.daemon_at(Clock::Test(TestClock::at(START + 20 * HOUR + 120_000))).await;
    let mut events = daemon.services().bus.runs();
    let made_up = "select (scheduled_for - 1772409600000) / 3600000, summary from runs where trigger_origin = 'cron' order by rowid";
    let expected: Vec<String> = (1..=20).map(|hour| format!("{hour}|missed 0")).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    root.sql_becomes(&mut events, "a", made_up, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_the_disk_refused_is_written_when_it_takes_it() {
    let root = Root::new();
    root.automation("a/parked", "", PARKED);
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let (run, end) = start(&daemon, "a/parked", None).await;
    let app = AppId::new("a").expect("a name");
    // Each request is tried again alone when its group fails, so one end meets the fault twice.
    daemon.services().ledgers.faults().strike(&app, Point::Commit, SQLITE_FULL, 2);
    assert_eq!(daemon.cancel(run).await, Answer::Cancelling);
    let told = within(end).await.expect("an answer");
    assert!(matches!(&told, Answer::NotRecorded { message } if message.contains("ended in cancelled")), "{told:?}");
    assert_eq!(root.sql("a", "select status from runs"), ["running"]);
    let mut events = daemon.services().bus.runs();
    daemon.services().ledgers.faults().strike(&app, Point::Commit, SQLITE_FULL, 0);
    clock.set(START + 60_000);
    root.sql_becomes(&mut events, "a", "select status, error_code from runs", &["cancelled|cancelled"]).await;
    until(&daemon, "it holds nothing", |state| state.is_idle()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_run_goes_with_its_app_to_another_name() {
    let root = Root::new();
    root.automation("a/parked", "", PARKED);
    let daemon = root.daemon().await;
    let mut events = daemon.services().bus.runs();
    let (run, end) = start(&daemon, "a/parked", None).await;
    std::fs::rename(root.join("a"), root.join("b")).expect("a rename");
    let there = handle("b/parked");
    until(&daemon, "its run under the new name", move |state| state.open_runs().any(|run| run.handle == there)).await;
    daemon.cancel(run).await;
    let told = ended(end).await;
    assert_eq!(told.status.as_str(), "cancelled");
    root.sql_becomes(&mut events, "b", "select status from runs", &["cancelled"]).await;
}
