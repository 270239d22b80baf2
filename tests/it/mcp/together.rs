//! Many calls at once: on one server, across servers, and on one that is dead.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::{call, call_in_run, hostile, one, root_with};
use crate::harness::within;

/// All calls of a tick are on their way before any of them has its answer, and each has its own time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn calls_of_one_tick_run_side_by_side_within_and_across_servers() {
    let root = root_with(&json!({"one": hostile(json!({})), "two": hostile(json!({}))}));
    let daemon = root.daemon().await;
    let door = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = door.local_addr().expect("an address").port();
    let knock = |server: &str| json!([format!("{server}.knock"), {"port": port}]);
    let calls: Vec<Value> = (0..40).map(|n| knock(if n % 2 == 0 { "one" } else { "two" })).collect();
    let running = call_in_run(&daemon, Value::Array(calls));
    let opening = async {
        let mut waiting = Vec::new();
        for _ in 0..40 {
            waiting.push(within(door.accept()).await.expect("a knock").0);
        }
        let mut events = daemon.services().bus.runs();
        let last = waiting.pop();
        for mut knocking in waiting {
            knocking.write_all(b"!").await.expect("it waits");
        }
        // The last one is let in when the others have their rows closed, a millisecond ago at least.
        let closed = "select count(*) from run_nodes where ended_at is not null";
        root.sql_becomes(&mut events, "a", closed, &["39"]).await;
        let then = "select max(ended_at) from run_nodes";
        let then: i64 = root.sql("a", then)[0].parse().expect("a time");
        while dirigent::clock::Clock::Real.now_ms() <= then {
            tokio::task::yield_now().await;
        }
        last.expect("one more").write_all(b"!").await.expect("it waits");
    };
    let ((run_id, results), ()) = tokio::join!(running, opening);
    assert!(results.iter().all(|result| result["ok"] == "opened"), "{results:?}");
    let nodes = format!(
        "select count(*), count(distinct batch_id), count(batch_id), sum(ok), \
         sum(ended_at = (select max(ended_at) from run_nodes)) from run_nodes where run_id = '{run_id}'"
    );
    assert_eq!(root.sql("a", &nodes), ["40|1|40|40|1"]);
    daemon.stop(Duration::ZERO).await;
}

/// However many ask, a server that dies at its start is started once for all of them, and not again before its pause
/// is over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_dead_server_is_not_stampeded() {
    let env = json!({"START": "die", "STARTS_FILE": "starts.txt"});
    let root = root_with(&json!({"one": hostile(env), "two": hostile(json!({}))}));
    let daemon = root.daemon().await;
    let calls = || Value::Array(vec![json!(["one.pid"]); 20]);
    // Pauses of half a second, one, two, and four, which is too long to be waited for.
    for round in 0..6 {
        let (a, b, c, other) = tokio::join!(
            call(&daemon, calls()),
            call(&daemon, calls()),
            call(&daemon, calls()),
            one(&daemon, "two.pid")
        );
        for result in a.iter().chain(&b).chain(&c) {
            assert_eq!(result["code"], "mcp_failed");
            let message = result["message"].as_str().expect("a message");
            assert!(message.contains("(exit status: 3)"), "{message}");
            assert_eq!(message.contains("the next try is in"), round > 3, "{round}: {message}");
        }
        assert!(other["ok"].is_number(), "another server is not held up: {other}");
    }
    daemon.stop(Duration::ZERO).await;
    let starts = std::fs::read_to_string(root.join("starts.txt")).expect("what it wrote");
    assert_eq!(starts.lines().count(), 4, "for 360 calls");
}
