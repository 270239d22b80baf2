//! A server that misbehaves fails its own call, with a reason, and nothing else.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Witness, call, call_in_run, hostile, one, root_with};
use crate::harness::{ended, start, within};

const SECRET: &str = "postgres://me:hunter2@db";

fn message(result: &Value) -> &str {
    result["message"].as_str().unwrap_or_else(|| panic!("no error: {result}"))
}

/// Each misdeed in a run of its own, on the same server; after each, the server (or the next one) answers.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn misdeeds_fail_the_call_alone() {
    let env = json!({"SECRET_URL": SECRET});
    let root = root_with(&json!({"one": hostile(env.clone()), "two": hostile(env)}));
    let daemon = root.daemon().await;
    let bystander = one(&daemon, "two.pid").await["ok"].clone();
    for (tool, dies, found) in [
        ("garbage", false, Ok(json!("after garbage"))),
        ("die", true, Err("it last said: goodbye from [redacted]")),
        ("huge", false, Err("it sent a message of 1048576")),
        ("anonymous", true, Err("it sent a message of 104857600 bytes; at most 33619968 are taken")),
        ("infinite", false, Err("cannot be read: number out of range")),
        ("deep", false, Err("nests deeper than 100 levels")),
        ("shapeless", false, Err("answered with what is no result")),
        ("refusal", false, Err("out of order: [redacted]")),
        ("stderr", false, Ok(json!("said a lot"))),
        ("notifications", false, Ok(json!("told a lot"))),
        ("imposter", false, Ok(json!("mine"))),
        ("with.dots", false, Ok(json!("dots"))),
        ("ask", true, Err("it asked 64 things without reading an answer")),
    ] {
        let before = one(&daemon, "one.pid").await;
        let result = one(&daemon, &format!("one.{tool}")).await;
        match found {
            Ok(value) => assert_eq!(result["ok"], value, "{tool}: {result}"),
            Err(part) => {
                assert_eq!(result["code"], "mcp_failed", "{tool}: {result}");
                assert!(message(&result).contains(part), "{tool}: {result}");
                assert!(message(&result).len() < 2000, "{tool}");
            }
        }
        let after = one(&daemon, "one.pid").await;
        assert!(before.get("ok").is_some() && after.get("ok").is_some(), "{tool}: {before}, {after}");
        assert_eq!(before != after, dies, "{tool}");
    }
    assert_eq!(one(&daemon, "two.pid").await["ok"], bystander, "another server is left alone");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_death_rejects_all_calls_in_flight_with_the_reason() {
    let root = root_with(&json!({"one": hostile(json!({}))}));
    let daemon = root.daemon().await;
    for result in call(&daemon, json!([["one.never"], ["one.never"], ["one.die"]])).await {
        assert_eq!(result["code"], "mcp_failed");
        assert!(message(&result).contains("the server ended (exit status: 3)"), "{result}");
    }
    // Its output ends, and it does not.
    for result in call(&daemon, json!([["one.never"], ["one.mute"]])).await {
        assert_eq!(result["code"], "mcp_failed");
        assert!(message(&result).contains("the server ended (exit status: 0)"), "{result}");
    }
    assert!(one(&daemon, "one.pid").await["ok"].is_number());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn secrets_stay_out_of_results_errors_and_logs() {
    let root = root_with(&json!({"one": hostile(json!({"SECRET_URL": SECRET}))}));
    let daemon = root.daemon().await;
    let (run_id, results) = call_in_run(
        &daemon,
        json!([["one.confess"], ["one.confess", {"how": "error"}], ["one.tell"], ["one.environment"]]),
    )
    .await;
    assert_eq!(results[0]["ok"], json!({"[redacted]": "it is [redacted]!"}));
    assert_eq!(results[1], json!({"code": "mcp_tool_error", "message": "I know [redacted]"}));
    assert_eq!(results[2]["ok"], "done");
    assert_eq!(results[3]["ok"]["SECRET_URL"], "[redacted]");
    let logged = root.sql("a", &format!("select level, message from run_logs where run_id = '{run_id}' order by seq"));
    assert!(logged.contains(&"info|one.tell: 1 of 2: [redacted]".to_owned()), "{logged:?}");
    assert!(logged.contains(&"warn|one.tell: half done".to_owned()), "{logged:?}");
    assert!(!logged.iter().any(|line| line.contains("not mine")), "{logged:?}");
    let bytes = std::fs::read(root.join("a/runtime.sqlite")).expect("the ledger");
    assert!(!String::from_utf8_lossy(&bytes).contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_flood_of_messages_leaves_the_log_readable() {
    let root = root_with(&json!({"one": hostile(json!({}))}));
    let daemon = root.daemon().await;
    let (run_id, results) = call_in_run(&daemon, json!([["one.notifications"]])).await;
    assert_eq!(results[0]["ok"], "told a lot");
    let lines = root.sql("a", &format!("select count(*) from run_logs where run_id = '{run_id}'"));
    let lines: u32 = lines[0].parse().unwrap();
    assert!((100..5000).contains(&lines), "{lines} of 40000");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_list_that_changes_is_asked_for_again() {
    let root = root_with(&json!({"one": hostile(json!({}))}));
    let daemon = root.daemon().await;
    let unknown = one(&daemon, "one.grown").await;
    assert_eq!(unknown["code"], "unknown_tool");
    assert_eq!(one(&daemon, "one.grow").await["ok"], "grown");
    assert_eq!(one(&daemon, "one.grown").await["ok"], "I am new");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn silence_ends_with_the_time_of_the_call_and_of_the_start() {
    let root = root_with(&json!({
        "one": hostile(json!({})),
        "two": hostile(json!({"START": "silent"})),
        "four": hostile(json!({"START": "die", "SECRET_URL": SECRET})),
    }));
    root.write("dirigent.toml", "[mcp]\ncall_timeout_s = 9\nstart_timeout_s = 6\n");
    let daemon = root.daemon().await;
    let results = call(&daemon, json!([["one.never"], ["two.pid"], ["four.pid"]])).await;
    assert_eq!(results[0]["code"], "mcp_timeout");
    assert!(message(&results[0]).contains("call_timeout_s"), "{results:?}");
    assert_eq!(results[1]["code"], "mcp_failed");
    assert!(message(&results[1]).contains("did not answer within 6 s"), "{results:?}");
    assert!(
        message(&results[2])
            .contains("it ended before it answered (exit status: 3); it last said: no database at [redacted]"),
        "{results:?}"
    );
    // The server was told that nobody waits any more.
    assert_eq!(one(&daemon, "one.cancellation").await["ok"], "cancelled 1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_server_is_greeted_as_it_knows_it() {
    let root = root_with(&json!({
        "one": hostile(json!({"START": "modern"})),
        "two": hostile(json!({"START": "refuse", "SECRET_URL": SECRET})),
    }));
    let daemon = root.daemon().await;
    let results = call(&daemon, json!([["one.confess", {"how": "error"}], ["two.pid"]])).await;
    assert_eq!(results[0]["message"], "I know undefined", "{results:?}");
    assert!(message(&results[1]).contains("it refused to start a session: not today, [redacted]"), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn lists_without_end_or_sense_are_held_to_what_can_be_used() {
    let list = |kind: &str| hostile(json!({"LIST": kind}));
    let root = root_with(&json!({"one": list("endless"), "two": list("huge"), "four": list("odd")}));
    let daemon = root.daemon().await;
    let calls = json!([["one.pid"], ["two.pid"], ["four.pid"], ["one.nothing"], ["two.nothing"], ["four.nothing"]]);
    let results = call(&daemon, calls).await;
    for result in &results[..3] {
        assert!(result["ok"].is_number(), "{result}");
    }
    for result in &results[3..] {
        assert_eq!(result["code"], "unknown_tool", "{result}");
        assert!(message(result).len() < 1000 && !message(result).contains('\u{1b}'), "{result}");
    }
    let offers = daemon.services().mcp.catalog(crate::harness::PATIENCE).await;
    let of = |name: &str| offers.iter().find(|offer| offer.server == name).and_then(|offer| offer.tools.clone());
    let count = |name: &str, tool: &str| {
        let tools = of(name).expect("its tools");
        tools.iter().filter(|found| found["name"] == *tool).count()
    };
    assert_eq!((count("one", "page-50"), count("one", "page-51")), (1, 0));
    assert!(of("two").expect("its tools").len() <= 5000);
    assert_eq!((count("four", "pid"), count("four", "a b"), count("four", "")), (1, 0, 0));
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_list_that_nobody_waited_for_is_asked_for_again() {
    let witness = Witness::new().await;
    let root = root_with(&json!({"one": hostile(json!({"LIST": "late", "WITNESS_PORT": witness.port()}))}));
    root.automation(
        "a/waits",
        r#""requires": {"tools": ["one.*"]}"#,
        "export default ({ ctx }) => ctx.tool('one.pid', {});",
    );
    let daemon = root.daemon().await;
    let (run_id, end) = start(&daemon, "a/waits", None).await;
    let (_process, _asked) = (witness.sees().await, witness.sees().await);
    daemon.cancel(run_id).await;
    ended(end).await;
    let result = one(&daemon, "one.pid").await;
    assert!(result["ok"].is_number(), "{result}");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_greeting_without_sense_is_told() {
    let start = |kind: &str| hostile(json!({"START": kind}));
    let root = root_with(&json!({"one": start("version"), "two": start("shape")}));
    let daemon = root.daemon().await;
    let results = call(&daemon, json!([["one.pid"], ["two.pid"]])).await;
    // Many servers are careless with it.
    assert!(results[0]["ok"].is_number(), "a version that nobody knows: {}", results[0]);
    assert!(message(&results[1]).contains("it answered the greeting with what is no answer to it"), "{results:?}");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_server_that_reads_nothing_holds_up_its_own_calls_alone() {
    let root = root_with(&json!({"one": hostile(json!({})), "two": hostile(json!({}))}));
    root.write("dirigent.toml", "[mcp]\ncall_timeout_s = 5\n");
    let daemon = root.daemon().await;
    assert_eq!(one(&daemon, "one.deaf").await["code"], "mcp_timeout");
    // More than a pipe holds: the message stays half sent.
    let long = json!({"text": "x".repeat(1 << 20)});
    let results = call(&daemon, json!([["one.pid", long], ["one.pid"], ["two.pid"]])).await;
    assert_eq!(results[0]["code"], "mcp_timeout", "{}", results[0]);
    assert_eq!(results[1]["code"], "mcp_timeout", "{}", results[1]);
    assert!(results[2]["ok"].is_number(), "{}", results[2]);
    within(daemon.stop(Duration::ZERO)).await;
}
