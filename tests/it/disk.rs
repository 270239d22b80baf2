//! Disk to registry, live.

use std::fs;

use dirigent::clock::{Clock, TestClock};
use dirigent::core::State;
use dirigent::fire::TriggerOrigin;

use crate::harness::{Root, handle, run, until};

const OK: &str = "export default async () => ({ summary: 'done' });";
const CRON: &str = r#""triggers": [{"kind": "cron", "expr": "* * * * *"}]"#;
/// 2026-03-02T00:00:00Z.
const START: i64 = 1_772_409_600_000;

fn known(text: &'static str) -> impl Fn(&mut State) -> bool + Clone + Send + 'static {
    move |state| state.registry.get(&handle(text)).is_some()
}

fn armed(count: usize) -> impl Fn(&mut State) -> bool + Clone + Send + 'static {
    move |state| state.schedule.armed() == count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_dropped_in_can_be_run_and_follows_every_edit() {
    let root = Root::new();
    let daemon = root.daemon().await;

    root.automation("late.app/x", CRON, OK);
    until(&daemon, "the dropped folder", |state| known("late.app/x")(state) && state.schedule.armed() == 1).await;
    until(&daemon, "its handler", |state| {
        let automation = state.registry.get(&handle("late.app/x")).expect("known");
        state.registry.problems_of(automation).is_empty()
    })
    .await;
    let (_, end) = run(&daemon, "late.app/x", None).await;
    assert_eq!(end.summary.as_deref(), Some("done"));

    root.write("late.app/automations/x/automation.json", "{\n  \"name\": \"x\",\n  \"prompt\": }\n");
    until(&daemon, "the broken manifest", |state| {
        let automation = state.registry.get(&handle("late.app/x")).expect("still there");
        let problems = state.registry.problems_of(automation);
        !automation.valid
            && problems.iter().any(|p| p.code == "invalid_json" && p.line == Some(3) && p.column.is_some())
            && state.schedule.armed() == 1
    })
    .await;

    root.manifest("late.app/x", &format!("\"enabled\": false, {CRON}"));
    until(&daemon, "being disabled", armed(0)).await;
    root.manifest("late.app/x", CRON);
    until(&daemon, "being enabled", armed(1)).await;

    fs::rename(root.join("late.app/automations/x"), root.join("late.app/automations/renamed")).unwrap();
    until(&daemon, "the rename", |state| known("late.app/renamed")(state) && !known("late.app/x")(state)).await;
    fs::remove_dir_all(root.join("late.app")).unwrap();
    until(&daemon, "the deletion", |state| state.registry.apps().count() == 0 && state.schedule.armed() == 0).await;
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_handler_is_missed_until_its_folder_is_there() {
    let root = Root::new();
    root.automation("a/x", r#""onFailure": "ops/page""#, OK);
    root.automation("a/own", r#""onFailure": "own""#, "export default () => { throw new Error('no'); };");
    let daemon = root.daemon().await;
    let warned = |text: &'static str, count: usize| {
        move |state: &mut State| {
            let automation = state.registry.get(&handle(text)).expect("known");
            let problems = state.registry.problems_of(automation);
            let all = problems.iter().all(|p| p.code == "invalid_on_failure" && !p.is_error() && p.line == Some(5));
            automation.valid && all && problems.len() == count
        }
    };
    until(&daemon, "the warning", warned("a/x", 1)).await;
    root.automation("ops/page", "", OK);
    until(&daemon, "its end", warned("a/x", 0)).await;
    fs::remove_dir_all(root.join("ops")).unwrap();
    until(&daemon, "its return", warned("a/x", 1)).await;

    until(&daemon, "the warning", warned("a/own", 1)).await;
    let (_, end) = run(&daemon, "a/own", None).await;
    assert_eq!(end.error_code, Some(dirigent::fire::ErrorCode::HandlerThrew), "it runs as any other");
    daemon.stop(std::time::Duration::ZERO).await;
    assert_eq!(root.sql("a", "select automation_id, trigger_origin from runs"), ["own|manual"], "it handles nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_registry_is_the_same_without_any_ledger() {
    let root = Root::new();
    root.automation("a/x", CRON, OK);
    root.automation("b/y", r#""triggers": [{"kind": "cron", "expr": "0 9 * * 1", "tz": "Europe/Berlin"}]"#, OK);
    let told = |state: &mut State| {
        let handles: Vec<String> = state.registry.automations().map(|a| a.handle.to_string()).collect();
        (handles, state.schedule.next_fires(&handle("b/y")))
    };
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let before = daemon.look(told).await;
    run(&daemon, "a/x", None).await;
    daemon.stop(std::time::Duration::ZERO).await;
    for app in ["a", "b"] {
        for file in fs::read_dir(root.join(app)).unwrap().map(|f| f.unwrap().path()) {
            if file.to_string_lossy().contains("runtime.sqlite") {
                fs::remove_file(file).unwrap();
            }
        }
    }
    let daemon = root.daemon_at(Clock::Test(clock)).await;
    assert_eq!(daemon.look(told).await, before);
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cron_fires_on_the_instant_and_once() {
    let root = Root::new();
    root.automation("a/x", CRON, "export default ({ ctx }) => ({ output: ctx.run.trigger });");
    let clock = TestClock::at(START + 30_000);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let mut told = daemon.services().bus.runs();
    for to in [START + 60_000, START + 10_000, START + 60_000, START + 120_000] {
        clock.set(to);
        let fires = if to == START + 120_000 { 2 } else { 1 };
        until(&daemon, "the fire", move |state| state.open_runs().count() == 0 && state.schedule.armed() == 1).await;
        let count = "select count(*) from runs where status = 'ok'";
        root.sql_becomes(&mut told, "a", count, &[&fires.to_string()]).await;
    }
    let rows =
        root.sql("a", "select trigger_origin, status, scheduled_for, output_json from runs order by scheduled_for");
    let cron = TriggerOrigin::Cron;
    assert_eq!(
        rows,
        [START + 60_000, START + 120_000]
            .map(|at| { format!(r#"{cron}|ok|{at}|{{"origin":"cron","scheduledFor":{at}}}"#) })
    );
    daemon.stop(std::time::Duration::ZERO).await;
}
