//! Published servers, over both transports.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{call, call_in_run, configure, everything, package, root_with};
use crate::harness::{Root, run, within};

fn everything_entry() -> Value {
    json!({"command": "node", "args": [everything(), "stdio"], "env": {"API_TOKEN": "hunter2hunter2", "TZ": "UTC"}})
}

fn says(result: &Value, part: &str) -> bool {
    result["message"].as_str().is_some_and(|message| message.contains(part))
}

/// What every transport has to get right.
async fn checks_out(root: &Root, secret_in_reach: bool) {
    let daemon = root.daemon().await;
    let calls = json!([
        ["one.echo", {"message": "hello"}],
        ["one.get-structured-content", {"location": "Chicago"}],
        ["one.get-tiny-image"],
        ["one.get-sum", {"a": "x", "b": 1}],
        ["one.get-sum", {"a": 2, "b": 3}],
        ["one.get-smu", {"a": 2, "b": 3}],
        ["one.get-env"],
        ["one.trigger-long-running-operation", {"duration": 0.2, "steps": 4}],
    ]);
    let (run_id, results) = call_in_run(&daemon, calls).await;
    assert_eq!(results[0]["ok"], "Echo: hello");
    assert_eq!(results[1]["ok"], json!({"temperature": 36, "conditions": "Light rain / drizzle", "humidity": 82}));
    assert_eq!(results[2]["ok"][1]["mimeType"], "image/png", "mixed contents stay a list");
    assert_eq!(results[3]["code"], "mcp_tool_error");
    assert!(says(&results[3], "expected number"), "{}", results[3]);
    assert_eq!(results[4]["ok"], "The sum of 2 and 3 is 5.");
    assert_eq!(results[5]["code"], "unknown_tool");
    assert!(says(&results[5], "did you mean \"one.get-sum\"?"), "{}", results[5]);
    let environment = results[6]["ok"].as_object().expect("JSON text becomes a value");
    if secret_in_reach {
        assert_eq!((&environment["API_TOKEN"], &environment["TZ"]), (&json!("[redacted]"), &json!("UTC")));
        let foreign: Vec<&String> = environment.keys().filter(|name| name.starts_with("CARGO")).collect();
        assert!(foreign.is_empty() && environment.contains_key("PATH"), "{foreign:?}");
    }
    assert!(results[7]["ok"].as_str().is_some_and(|text| text.contains("completed")), "{}", results[7]);
    let logged = root.sql("a", &format!("select message from run_logs where run_id = '{run_id}' order by seq"));
    let progress: Vec<&String> = logged.iter().filter(|line| line.contains("long-running")).collect();
    let expected: Vec<String> =
        (1..=4).map(|step| format!("one.trigger-long-running-operation: {step} of 4")).collect();
    assert_eq!(progress, expected.iter().collect::<Vec<_>>());
    let nodes = root.sql("a", "select kind, name, ok from run_nodes order by ordinal limit 2");
    assert_eq!(nodes, ["tool|one.echo|1", "tool|one.get-structured-content|1"]);
    let bytes = std::fs::read(root.join("a/runtime.sqlite")).expect("the ledger");
    assert!(!String::from_utf8_lossy(&bytes).contains("hunter2"));
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_published_server_over_stdio() {
    checks_out(&root_with(&json!({"one": everything_entry()})), true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_published_server_over_streamable_http() {
    let server = HttpServer::start(None);
    let root = root_with(&json!({"one": {
        "type": "http", "url": format!("http://127.0.0.1:{}/mcp", server.port), "headers": {"X-Api-Key": "hunter2hunter2"},
    }}));
    checks_out(&root, false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn an_http_server_that_goes_and_comes_back_is_used_again() {
    let server = HttpServer::start(None);
    let port = server.port;
    let root = root_with(&json!({"one": {"url": format!("http://127.0.0.1:{port}/mcp")}}));
    let daemon = root.daemon().await;
    let echo = || json!([["one.echo", {"message": "hello"}]]);
    assert_eq!(call(&daemon, echo()).await[0]["ok"], "Echo: hello");
    drop(server);
    let failed = call(&daemon, echo()).await;
    assert_eq!(failed[0]["code"], "mcp_failed");
    assert!(says(&failed[0], "refused"), "{failed:?}");
    let _server = HttpServer::start(Some(port));
    assert_eq!(call(&daemon, echo()).await[0]["ok"], "Echo: hello");
}

/// It refuses a session that it does not know with HTTP 400 and an error that names no request.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn an_http_server_that_was_restarted_is_used_on_without_a_failed_call() {
    let server = HttpServer::start(None);
    let port = server.port;
    let root = root_with(&json!({"one": {"url": format!("http://127.0.0.1:{port}/mcp")}}));
    let daemon = root.daemon().await;
    let echo = || json!([["one.echo", {"message": "hello"}], ["one.get-sum", {"a": 2, "b": 3}]]);
    let mut server = Some(server);
    for _ in 0..3 {
        let results = call(&daemon, echo()).await;
        assert_eq!(results[0]["ok"], "Echo: hello", "{results:?}");
        assert_eq!(results[1]["ok"], "The sum of 2 and 3 is 5.", "{results:?}");
        drop(server.take());
        server = Some(HttpServer::start(Some(port)));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn a_server_keeps_what_it_knows_from_run_to_run() {
    let root = Root::new();
    let memory = package("server-memory/dist/index.js");
    let file = root.join("memory.jsonl");
    let root = {
        configure(&root, &json!({"one": {"command": "node", "args": [memory], "env": {"MEMORY_FILE_PATH": file}}}));
        root.automation("a/caller", super::CALLER_FIELDS, super::CALLER);
        root
    };
    let daemon = root.daemon().await;
    let entity = json!({"name": "Ada", "entityType": "person", "observations": ["wrote the first program"]});
    let made = call(&daemon, json!([["one.create_entities", {"entities": [entity]}]])).await;
    assert!(made[0].get("ok").is_some(), "{made:?}");
    let found = call(&daemon, json!([["one.search_nodes", {"query": "first program"}]])).await;
    assert_eq!(found[0]["ok"]["entities"][0]["name"], "Ada", "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn only_what_a_manifest_names_is_called() {
    let root = root_with(&json!({"one": everything_entry(), "three": everything_entry(), "five": everything_entry()}));
    let daemon = root.daemon().await;
    let sum = json!({"a": 1, "b": 1});
    let results = call(
        &daemon,
        json!([["three.get-sum", sum], ["three.echo", sum], ["five.echo", sum], ["two.echo", sum], ["four.x", sum]]),
    )
    .await;
    assert_eq!(results[0]["ok"], "The sum of 1 and 1 is 2.");
    for (at, code, told) in [
        (1, "tool_not_allowed", "requires.tools"),
        (2, "tool_not_allowed", "requires.mcps"),
        (3, "unknown_mcp_server", "\"two\""),
        (4, "unknown_mcp_server", "add it to `mcpServers` in mcp.json"),
    ] {
        assert_eq!(results[at]["code"], code, "{}", results[at]);
        assert!(says(&results[at], told), "{}", results[at]);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn the_weather_example_works() {
    let root = Root::copy_of("fixtures/apps");
    configure(&root, &json!({"everything": {"command": "node", "args": [everything()]}}));
    let daemon = root.daemon().await;
    let (_, report) = run(&daemon, "auto.weather/report", None).await;
    let summary = "Los Angeles 73°, Sunny / Clear; Chicago 36°, Light rain / drizzle; New York 33°, Cloudy";
    assert_eq!(report.summary.as_deref(), Some(summary), "{report:?}");
    let (_, report) = run(&daemon, "auto.weather/report", Some(r#"{"cities": ["Atlantis", "Chicago"]}"#)).await;
    assert_eq!(report.summary.as_deref(), Some("Chicago 36°, Light rain / drizzle"));

    // As on a machine without node.
    configure(&root, &json!({"everything": {"command": "no-such-npx", "args": ["-y"]}}));
    let (_, report) = run(&daemon, "auto.weather/report", None).await;
    let error = report.error.expect("an error");
    assert!(error.contains("the program \"no-such-npx\" cannot be run") && error.contains("in PATH?"), "{error}");
    let problems = daemon.look(|state| state.registry.problems()).await.unwrap();
    assert_eq!(problems, []);
}

#[test]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
fn tools_lists_them_all_without_a_daemon() {
    let root = Root::copy_of("fixtures/apps");
    configure(
        &root,
        &json!({
            "everything": everything_entry(),
            "broken": {"command": "no-such-program"},
            "half": {},
            "unset": {"command": "node", "env": {"K": "${NO_SUCH_VARIABLE}"}},
        }),
    );
    let output = root.cli(&["tools", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(told["builtin"][1]["name"], "centraid_read");
    assert!(told["apps"].as_array().unwrap().iter().any(|app| app["id"] == "bookshelf"), "{told}");
    let server = |name: &str| told["mcp"].as_array().unwrap().iter().find(|s| s["server"] == name).unwrap().clone();
    let everything = server("everything");
    let sum = everything["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "get-sum").unwrap().clone();
    assert_eq!(sum["inputSchema"]["required"], json!(["a", "b"]));
    for (name, code) in [("broken", "mcp_failed"), ("half", "mcp_not_configured"), ("unset", "mcp_not_configured")] {
        assert_eq!(server(name)["error"]["code"], code, "{told}");
    }
    let problem = &told["problems"][0];
    assert_eq!((&problem["field"], &problem["line"]), (&json!("mcpServers.half"), &json!(1)), "{told}");

    let output = root.cli(&["tools"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for part in [
        "centraid_write",
        "bookshelf: query books",
        "everything.get-sum",
        "NO_SUCH_VARIABLE is not set",
        "mcpServers.half",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

/// The daemon's own server is asked, and no second one is started.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn tools_of_a_running_daemon_are_those_of_its_own_servers() {
    let witness = super::Witness::new().await;
    let root = root_with(&json!({"one": super::hostile(json!({"WITNESS_PORT": witness.port()}))}));
    let _daemon = root.serve();
    let mut pids = Vec::new();
    for _ in 0..2 {
        let command = root.command(&["tools", "--json"]);
        let output = tokio::task::spawn_blocking(move || {
            let mut command = command;
            command.output()
        });
        let output = within(output).await.expect("a thread").expect("the program runs");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let tools = told["mcp"][0]["tools"].as_array().unwrap_or_else(|| panic!("{told}"));
        assert!(tools.iter().any(|tool| tool["name"] == "pid"), "{told}");
        let output = root.cli(&["--json", "run", "a/caller", "--input", "[[\"one.pid\"]]"]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let result: Value = serde_json::from_str(text.lines().last().expect("a result")).expect("JSON");
        pids.push(result["output"]["results"][0]["ok"].clone());
    }
    let first = witness.sees().await;
    assert_eq!(pids, [json!(first.pid), json!(first.pid)], "one process for all");
}

/// The published server in its HTTP mode.
struct HttpServer {
    child: Child,
    port: u16,
}

impl HttpServer {
    fn start(port: Option<u16>) -> Self {
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let port = port.unwrap_or_else(free);
        let mut child = Command::new("node")
            .args([everything().as_str(), "streamableHttp"])
            .env("PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node runs");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let listens = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("listening on port")));
        assert!(listens.is_some(), "it does not listen");
        // Whatever it says later must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, port }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
