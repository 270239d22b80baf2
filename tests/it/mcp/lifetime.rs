//! When servers start, stop, and are replaced.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use dirigent::fire::RunStatus;
use serde_json::{Value, json};

use super::{Witness, call, configure, hostile, one, root_with};
use crate::harness::{ended, start};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn all_runs_share_one_process() {
    let witness = Witness::new().await;
    let root = root_with(&json!({"one": hostile(json!({"WITNESS_PORT": witness.port()}))}));
    let daemon = root.daemon().await;
    let calls = Value::Array(vec![json!(["one.pid"]); 10]);
    let (first, second) = tokio::join!(call(&daemon, calls.clone()), call(&daemon, calls));
    let process = witness.sees().await;
    for result in first.iter().chain(&second) {
        assert_eq!(result["ok"], process.pid, "one start, whoever asks first");
    }
    daemon.stop(Duration::ZERO).await;
    process.goes().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn an_idle_server_goes_with_all_its_processes_and_comes_back_when_it_is_needed() {
    let witness = Witness::new().await;
    let env = json!({"WITNESS_PORT": witness.port(), "GRANDCHILD": "1"});
    let root = root_with(&json!({"one": hostile(env)}));
    root.write("dirigent.toml", "[mcp]\nidle_s = 0.3\n");
    let daemon = root.daemon().await;
    let pid = one(&daemon, "one.pid").await["ok"].clone();
    // In either order: itself, and what it has started.
    let (process, other) = (witness.sees().await, witness.sees().await);
    assert!(pid == process.pid || pid == other.pid);
    process.goes().await;
    other.goes().await;
    let again = one(&daemon, "one.pid").await["ok"].clone();
    assert!(again.is_number() && again != pid, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_cancelled_run_cancels_its_calls() {
    let root = root_with(&json!({"one": hostile(json!({}))}));
    root.automation(
        "a/waits",
        r#""requires": {"tools": ["one.*"]}"#,
        "export default async ({ ctx, log }) => { await ctx.tool('one.pid', {}); log.info('asks'); await ctx.tool('one.never', {}); };",
    );
    let daemon = root.daemon().await;
    let mut events = daemon.services().bus.runs();
    let (run_id, end) = start(&daemon, "a/waits", None).await;
    let asked = "select count(*) from run_nodes where name = 'one.never'";
    root.sql_becomes(&mut events, "a", asked, &["1"]).await;
    // The call is on its way once the server has seen it.
    while one(&daemon, "one.calls").await["ok"].as_u64().is_none_or(|calls| calls < 2) {}
    daemon.cancel(run_id).await;
    assert_eq!(ended(end).await.status, RunStatus::Cancelled);
    assert_eq!(one(&daemon, "one.cancellation").await["ok"], "cancelled 1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_changed_file_replaces_only_what_it_changes() {
    let witness = Witness::new().await;
    let env = json!({"WITNESS_PORT": witness.port()});
    let root = root_with(&json!({"one": hostile(env.clone()), "two": hostile(json!({}))}));
    let daemon = root.daemon().await;
    let kept = one(&daemon, "two.pid").await["ok"].clone();
    let before = one(&daemon, "one.pid").await["ok"].clone();
    let process = witness.sees().await;

    let changed = hostile(json!({"WITNESS_PORT": witness.port(), "MODE": "new"}));
    configure(&root, &json!({"one": changed, "two": hostile(json!({}))}));
    assert_eq!(one(&daemon, "two.pid").await["ok"], kept);
    process.goes().await;
    let after = one(&daemon, "one.pid").await["ok"].clone();
    assert!(after.is_number() && after != before, "{after}");

    // A file that says nothing changes nothing, and says so.
    root.write("mcp.json", "{\"mcpServers\": {\n\"one\": }");
    assert_eq!(one(&daemon, "one.pid").await["ok"], after);
    let problems = daemon.services().mcp.problems().await;
    assert_eq!(problems.len(), 1);
    let problem = &problems[0];
    assert_eq!(
        (problem.code.as_str(), problem.line, problem.path.as_deref()),
        ("invalid_json", Some(2), Some("mcp.json"))
    );
    let listed = String::from_utf8(root.cli(&["list"]).stdout).expect("UTF-8");
    assert!(listed.contains("mcp.json:2:"), "{listed}");

    // Gone from the file, gone from the machine; and without a file there is no server.
    let process = witness.sees().await;
    configure(&root, &json!({"two": hostile(json!({}))}));
    assert_eq!(one(&daemon, "two.pid").await["ok"], kept);
    process.goes().await;
    assert_eq!(one(&daemon, "one.pid").await["code"], "unknown_mcp_server");
    std::fs::remove_file(root.join("mcp.json")).expect("it is there");
    assert_eq!(one(&daemon, "two.pid").await["code"], "unknown_mcp_server");
    assert!(daemon.services().mcp.problems().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_missing_variable_is_told_where_it_is_missed() {
    let root = root_with(&json!({"one": hostile(json!({"KEY": "Bearer ${NO_SUCH_VARIABLE}"}))}));
    let daemon = root.daemon().await;
    let result = one(&daemon, "one.pid").await;
    assert_eq!(result["code"], "mcp_not_configured");
    assert!(result["message"].as_str().unwrap().contains("NO_SUCH_VARIABLE is not set"), "{result}");
    let problems = daemon.services().mcp.problems().await;
    assert_eq!((problems.len(), problems[0].field.as_str()), (1, "mcpServers.one"));
}

/// What has left its server's group and session, and listens to nothing, goes with it all the same.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn what_a_server_has_started_goes_with_it() {
    let witness = Witness::new().await;
    let env = json!({"WITNESS_PORT": witness.port(), "GRANDCHILD": "detached"});
    for (what, idle_s) in [("idle", 0.3), ("died", 300.0), ("gone from the file", 300.0)] {
        let root = root_with(&json!({"one": hostile(env.clone())}));
        root.write("dirigent.toml", &format!("[mcp]\nidle_s = {idle_s:?}\n"));
        let daemon = root.daemon().await;
        assert!(one(&daemon, "one.pid").await["ok"].is_number(), "{what}");
        let (process, other) = (witness.sees().await, witness.sees().await);
        match what {
            "died" => assert_eq!(one(&daemon, "one.die").await["code"], "mcp_failed"),
            "gone from the file" => {
                configure(&root, &json!({}));
                assert_eq!(one(&daemon, "one.pid").await["code"], "unknown_mcp_server");
            }
            _ => {}
        }
        process.goes().await;
        other.goes().await;
        daemon.stop(Duration::ZERO).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn nothing_is_left_of_a_daemon_that_stops_or_is_killed() {
    let witness = Witness::new().await;
    let env = json!({"WITNESS_PORT": witness.port(), "GRANDCHILD": "detached"});
    let silent = json!({"WITNESS_PORT": witness.port(), "GRANDCHILD": "detached", "START": "silent"});
    let root = root_with(&json!({"one": hostile(env), "two": hostile(silent)}));
    let waits = "export default ({ ctx, input }) => ctx.tool(input, {});";
    root.automation("a/waits", r#""requires": {"mcps": ["one", "two"]}, "concurrency": {"mode": "parallel"}"#, waits);
    for killed in [false, true] {
        let mut served = root.serve();
        let mut seen = Vec::new();
        // One call is in flight, and one waits for its server's start.
        for tool in ["one.never", "two.pid"] {
            let started = root.cli(&["run", "a/waits", "--no-wait", "--input", &json!(tool).to_string()]);
            assert!(started.status.success(), "{started:?}");
            seen.extend([witness.sees().await, witness.sees().await]);
        }
        if killed {
            served.kill();
            served = root.serve();
        } else {
            served.signal();
            served.signal();
        }
        for process in seen {
            process.goes().await;
        }
        served.terminate();
        let notes = std::fs::read_dir(root.join(".dirigent/mcp")).map_or(0, Iterator::count);
        assert_eq!(notes, 0, "nothing to be looked for");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn no_server_outlives_a_daemon_that_is_killed() {
    let witness = Witness::new().await;
    let root = root_with(&json!({"one": hostile(json!({"WITNESS_PORT": witness.port(), "TOKEN": "${MY_TOKEN}"}))}));
    let mut command = root.command(&["--json", "serve", "--admin", "127.0.0.1:0"]);
    let log = std::fs::File::create(root.join("serve.log")).expect("a log");
    let mut daemon = command
        .env("MY_TOKEN", "hunter2hunter2")
        .env("DIRIGENT_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("it starts");
    let mut ready = String::new();
    BufReader::new(daemon.stdout.take().expect("a pipe")).read_line(&mut ready).expect("a line");
    let output = root.cli(&["run", "a/caller", "--input", r#"[["one.environment"]]"#, "--json"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("[redacted]") && !told.contains("hunter2"), "{output:?}");
    let process = witness.sees().await;
    daemon.kill().expect("it can be killed");
    daemon.wait().expect("it is gone");
    process.goes().await;
    let log = std::fs::read_to_string(root.join("serve.log")).expect("a log");
    assert!(!log.contains("hunter2"), "a secret is in the log");
}
