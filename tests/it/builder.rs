//! The MCP server for builders: with the official TypeScript client (`npm ci --prefix tests/mcp-servers`; those tests are
//! asked for by name), and with the SDK that it is built on, for what the other client cannot do.

mod hostile;

use std::path::Path;
use std::process::Stdio;

use rmcp::model::{CallToolRequestParams, CallToolResult, ClientRequest};
use rmcp::service::{PeerRequestOptions, RoleClient, RunningService};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::harness::{PROGRAM, Root, Served, within};

/// By which way a client gets at the tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `dirigent mcp`, and no daemon.
    Alone,
    /// `dirigent mcp` beside a daemon.
    Beside,
    /// The daemon itself.
    Http,
}

impl Way {
    fn daemon(self, root: &Root) -> Option<Served> {
        (self != Self::Alone).then(|| root.serve())
    }
}

fn token(root: &Root) -> String {
    std::fs::read_to_string(root.join(".dirigent/token")).expect("a token").trim().to_owned()
}

fn endpoint(served: &Served) -> String {
    format!("{}/mcp", served.ready["admin"].as_str().expect("an address"))
}

/// `client.mjs`
struct TypeScript {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    greeting: Value,
}

impl TypeScript {
    async fn connect(root: &Root, served: Option<&Served>, way: Way) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mcp-servers");
        assert!(
            folder.join("node_modules/@modelcontextprotocol/sdk").is_dir(),
            "the client is not installed; run `npm ci --prefix tests/mcp-servers` (node 20 or newer)"
        );
        let mut command = Command::new("node");
        command.arg(folder.join("client.mjs"));
        match (way, served) {
            (Way::Http, Some(served)) => command.args(["http", &endpoint(served), &token(root)]),
            _ => command.args(["stdio", PROGRAM, "mcp", "--root"]).arg(root.path()),
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node runs; hint: install Node.js");
        let stdin = child.stdin.take().expect("a pipe");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut client = Self { _child: child, stdin, lines, greeting: Value::Null };
        client.greeting = client.line().await;
        client
    }

    async fn line(&mut self) -> Value {
        let line = within(self.lines.next_line()).await.expect("it can be read").expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }

    async fn send(&mut self, request: Value) {
        within(self.stdin.write_all(format!("{request}\n").as_bytes())).await.expect("it reads");
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.send(json!({ "method": method, "params": params })).await;
        let mut answer = self.line().await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    /// What a tool gives, or refuses with.
    async fn call(&mut self, tool: &str, arguments: Value) -> Result<Value, Value> {
        let mut result = self.ask("tools/call", json!({ "name": tool, "arguments": arguments })).await;
        let told = result["structuredContent"].take();
        let text = result["content"][0]["text"].as_str().expect("a text for models");
        assert_eq!(serde_json::from_str::<Value>(text).expect("JSON"), told);
        if result["isError"] == true { Err(told) } else { Ok(told) }
    }
}

fn codes(told: &Value) -> Vec<&str> {
    let problems = told["problems"].as_array().unwrap_or_else(|| panic!("no problems: {told}"));
    problems.iter().map(|problem| problem["code"].as_str().expect("a code")).collect()
}

/// From nothing to an automation that works, with the tools alone, as a model would go about it.
async fn builds_an_automation(way: Way) {
    let root = Root::new();
    root.write("shop/app.json", r#"{"queries": [{"name": "open_orders", "description": "Orders not shipped yet"}]}"#);
    root.write("shop/queries/open_orders.js", "export default () => [{ total: 40 }, { total: 2 }];");
    let served = way.daemon(&root);
    let mut client = TypeScript::connect(&root, served.as_ref(), way).await;
    assert_eq!(client.greeting["server"]["name"], "dirigent", "{}", client.greeting);
    assert!(client.greeting["instructions"].as_str().is_some_and(|text| text.contains("write_automation")));

    // What there is.
    let listed = client.ask("tools/list", json!({})).await;
    let names: Vec<&str> =
        listed["tools"].as_array().expect("tools").iter().filter_map(|t| t["name"].as_str()).collect();
    let expected = [
        "list_automations",
        "read_automation",
        "list_tools",
        "validate_manifest",
        "write_automation",
        "run_automation",
        "get_run",
        "list_runs",
    ];
    assert_eq!(names, expected, "and nothing that enables or provisions");
    let guide = client.ask("resources/read", json!({ "uri": "dirigent://guide" })).await;
    assert!(guide["contents"][0]["text"].as_str().is_some_and(|text| text.starts_with("# Writing automations")));
    assert_eq!(client.call("list_automations", json!({})).await.expect("a list")["automations"], json!([]));
    let catalog = client.call("list_tools", json!({})).await.expect("a catalog");
    assert!(catalog.to_string().contains("Orders not shipped yet"), "{catalog}");

    // All that is wrong with a first try is told at once, and nothing is written.
    let handler = "export default async ({ ctx, input }) => {\n  const orders = await ctx.tol('centraid_read');\n};\n";
    let manifest = json!({ "name": "", "triggers": [{ "kind": "cron", "expr": "61 * * * *" }] });
    let draft = json!({ "manifest": manifest, "handler": handler });
    let checked = client.call("validate_manifest", draft.clone()).await.expect("a verdict");
    let wrong = ["missing_field", "missing_field", "missing_field", "invalid_trigger", "unknown_ctx_member"];
    let mut found = codes(&checked);
    found.sort_unstable();
    let mut all = wrong.to_vec();
    all.sort_unstable();
    assert_eq!((&checked["valid"], found), (&json!(false), all), "{checked}");
    let misnamed = checked["problems"].as_array().into_iter().flatten().find(|p| p["code"] == "unknown_ctx_member");
    let misnamed = misnamed.expect("it is told");
    assert_eq!((&misnamed["path"], &misnamed["line"]), (&json!("handler.js"), &json!(2)));
    assert_eq!(misnamed["hint"], "did you mean `ctx.tool`?");
    let mut proposal = draft;
    proposal["handle"] = json!("shop/digest");
    let refused = client.call("write_automation", proposal).await.expect_err("a refusal");
    assert_eq!((&refused["code"], codes(&refused).len()), (&json!("invalid_proposal"), 5), "{refused}");
    let written = client.call("read_automation", json!({ "handle": "shop/digest" })).await;
    assert_eq!(written.expect_err("nothing")["code"], "unknown_automation");
    assert!(!root.join("shop/automations").exists());

    // A manifest that mints its own webhook, and one that would enable itself.
    let mut manifest = json!({
        "name": "Digest",
        "prompt": "When the shop calls, sum up the open orders above a limit.",
        "generated": { "by": "a model", "at": "2026-11-21T09:00:00Z" },
        "enabled": true,
        "triggers": [{ "kind": "webhook", "id": "mine", "secretHash": "00".repeat(32) }],
    });
    let handler = "export default async ({ ctx, log, input }) => {\n\
                   \x20 const orders = await ctx.tool('centraid_read', { query: 'open_orders' });\n\
                   \x20 log.info('read', { count: orders.length });\n\
                   \x20 const above = orders.filter((order) => order.total > input.limit.value);\n\
                   \x20 return { summary: `${above.length} orders`, output: { count: above.length } };\n\
                   };\n";
    let write = |manifest: &Value| json!({ "handle": "shop/digest", "manifest": manifest, "handler": handler });
    let refused = client.call("write_automation", write(&manifest)).await.expect_err("a refusal");
    let refused = codes(&refused).into_iter().filter(|code| *code == "minted_field").count();
    assert_eq!(refused, 2);
    manifest["triggers"] = json!([{ "kind": "webhook", "pending": true }]);
    let written = client.call("write_automation", write(&manifest)).await.expect("it is written");
    assert_eq!((&written["created"], &written["enabled"]), (&json!(true), &json!(false)), "{written}");
    assert_eq!(codes(&written), ["not_enabled"], "{written}");
    let text = std::fs::read_to_string(root.join("shop/automations/digest/automation.json")).expect("a manifest");
    assert!(text.contains("\"enabled\": false") && text.contains("\"pending\": true"), "{text}");

    // It runs, and fails; the trace says where.
    let run = json!({ "handle": "shop/digest", "input": { "limit": 10 } });
    let ended = client.call("run_automation", run.clone()).await.expect("a run");
    assert_eq!(ended["status"], "ok", "wrong, but no error: {ended}");
    assert_eq!(ended["output"], json!({ "count": 0 }), "{ended}");
    let ended = client.call("run_automation", json!({ "handle": "shop/digest" })).await.expect("a run");
    assert_eq!((&ended["status"], &ended["errorCode"]), (&json!("error"), &json!("handler_threw")), "{ended}");
    let trace = client.call("get_run", json!({ "runId": ended["runId"] })).await.expect("a trace");
    assert!(trace["run"]["error"].as_str().is_some_and(|error| error.contains("handler.js:4")), "{trace}");
    assert_eq!((&trace["nodes"][0]["name"], &trace["nodes"][0]["ok"]), (&json!("centraid_read"), &json!(true)));
    assert_eq!(trace["nodes"][0]["result"], json!([{ "total": 40 }, { "total": 2 }]));
    assert_eq!((&trace["logs"][0]["message"], &trace["logs"][0]["fields"]), (&json!("read"), &json!({ "count": 2 })));

    // The handler alone is mended, by what was read.
    let read = client.call("read_automation", json!({ "handle": "shop/digest" })).await.expect("it is there");
    assert_eq!((&read["handler"], &read["automation"]["state"]), (&json!(handler), &json!("disabled")));
    let mended = handler.replace("input.limit.value", "(input?.limit ?? 0)");
    let mend = json!({ "handle": "shop/digest", "handler": mended, "revision": read["revision"] });
    let written = client.call("write_automation", mend.clone()).await.expect("it is written");
    assert_eq!((&written["created"], codes(&written)), (&json!(false), vec![]), "{written}");
    let late = client.call("write_automation", mend).await.expect_err("it has changed");
    assert_eq!(late["code"], "changed_meanwhile");
    let ended = client.call("run_automation", run).await.expect("a run");
    assert_eq!((&ended["status"], &ended["output"]), (&json!("ok"), &json!({ "count": 1 })), "{ended}");

    let as_text = json!({ "handle": "shop/digest", "input": "{\"limit\": 1}" });
    let ended = client.call("run_automation", as_text).await.expect("a run");
    assert_eq!(ended["output"], json!({ "count": 2 }), "a text that is an object is one: {ended}");
    let runs = client.call("list_runs", json!({ "handle": "shop/digest" })).await.expect("runs");
    let states: Vec<&Value> = runs["runs"].as_array().expect("runs").iter().map(|run| &run["status"]).collect();
    assert_eq!(states, ["ok", "ok", "error", "ok"]);
    let failed = json!({ "automation": "shop/digest", "status": ["error"], "limit": 1 });
    assert_eq!(client.call("list_runs", failed).await.expect("runs")["runs"].as_array().map(Vec::len), Some(1));
    let listed = client.call("list_automations", json!({ "app": "shop" })).await.expect("a list");
    let view = &listed["automations"][0];
    assert_eq!(
        (&view["handle"], &view["state"], &view["counts"]["total"]),
        (&json!("shop/digest"), &json!("disabled"), &json!(4))
    );
    assert_eq!(view["triggers"], json!([{ "kind": "webhook", "id": null, "pending": true, "open": false }]));
    assert_eq!(listed.get("note").is_some(), way == Way::Alone, "{listed}");

    // A person mints the webhook and enables it; then the builder may go on, and keeps both.
    assert!(root.cli(&["webhook", "provision", "shop/digest"]).status.success());
    assert!(root.cli(&["enable", "shop/digest"]).status.success());
    manifest["description"] = json!("Changed after it went live.");
    let written = client.call("write_automation", json!({ "handle": "shop/digest", "manifest": manifest })).await;
    assert_eq!(written.expect("it is written")["enabled"], true);
    let text = std::fs::read_to_string(root.join("shop/automations/digest/automation.json")).expect("a manifest");
    assert!(text.contains("secretHash") && text.contains("went live") && !text.contains("pending"), "{text}");

    // What does not fit is told, not guessed.
    for (tool, arguments, code) in [
        ("run_automation", json!({ "handle": "shop/digets" }), "unknown_automation"),
        ("run_automation", json!({ "handle": "digest" }), "bad_arguments"),
        ("run_automation", json!({ "handle": "shop/digest", "waitSeconds": 301 }), "bad_arguments"),
        ("write_automation", json!({ "handle": "../etc/x", "handler": "x" }), "bad_arguments"),
        ("write_automation", json!({ "handle": "shop/new" }), "bad_arguments"),
        ("write_automation", json!({ "handle": "shop/new", "manifest": 3 }), "bad_arguments"),
        ("list_runs", json!({ "status": ["failed"] }), "bad_arguments"),
        ("list_runs", json!({ "limits": 3 }), "bad_arguments"),
        ("get_run", json!({ "runId": "../x" }), "bad_arguments"),
        ("get_run", json!({ "runId": "01936b2c-0000-7000-8000-000000000000" }), "unknown_run"),
    ] {
        let refused = client.call(tool, arguments.clone()).await.expect_err("a refusal");
        assert_eq!(refused["code"], code, "{tool} {arguments}: {refused}");
        assert!(refused["message"].as_str().is_some_and(|message| !message.is_empty()), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an MCP client: npm ci --prefix tests/mcp-servers"]
async fn a_builder_makes_an_automation_without_a_daemon() {
    builds_an_automation(Way::Alone).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an MCP client: npm ci --prefix tests/mcp-servers"]
async fn a_builder_makes_an_automation_beside_a_daemon() {
    builds_an_automation(Way::Beside).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an MCP client: npm ci --prefix tests/mcp-servers"]
async fn a_builder_makes_an_automation_over_http() {
    builds_an_automation(Way::Http).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an MCP client: npm ci --prefix tests/mcp-servers"]
async fn without_the_token_there_is_no_server() {
    let root = Root::new();
    let served = root.serve();
    std::fs::write(root.join(".dirigent/token"), "wrong").expect("a token");
    let client = TypeScript::connect(&root, Some(&served), Way::Http).await;
    assert!(client.greeting["refused"].as_str().is_some_and(|why| why.contains("401")), "{}", client.greeting);
}

pub type Client = RunningService<RoleClient, ()>;

pub async fn stdio(root: &Root) -> (Child, Client) {
    let mut command = Command::from(root.command(&["mcp"]));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
    let pipes = (child.stdout.take().expect("a pipe"), child.stdin.take().expect("a pipe"));
    let client = within(rmcp::serve_client((), pipes)).await.expect("a greeting");
    (child, client)
}

pub async fn call(client: &Client, tool: &str, arguments: Value) -> CallToolResult {
    let arguments = arguments.as_object().cloned().expect("an object");
    within(client.call_tool(CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments)))
        .await
        .expect("an answer")
}

/// Waits until the newest run of `a/slow` has this status.
async fn until_status(client: &Client, status: &str) {
    loop {
        let runs = call(client, "list_runs", json!({ "automation": "a/slow" })).await;
        let runs = runs.structured_content.expect("runs");
        if runs["runs"][0]["status"] == status {
            return;
        }
        tokio::task::yield_now().await;
    }
}

const SLOW: &str = "export default async () => { await new Promise((done) => setTimeout(done, 600000)); };";

async fn cancelled_call_cancels(way: Way) {
    let root = Root::new();
    root.automation("a/slow", r#""timeoutMs": 3600000"#, SLOW);
    let _served = way.daemon(&root);
    let (_child, client) = stdio(&root).await;
    let arguments = json!({ "handle": "a/slow", "waitSeconds": 300 }).as_object().cloned();
    let request = CallToolRequestParams::new("run_automation").with_arguments(arguments.expect("an object"));
    let request = ClientRequest::CallToolRequest(rmcp::model::Request::new(request));
    let under_way =
        client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.expect("it is sent");
    until_status(&client, "running").await;
    under_way.cancel(Some("the test says so".to_owned())).await.expect("it is told");
    until_status(&client, "cancelled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_cancelled_takes_its_run_along() {
    cancelled_call_cancels(Way::Alone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_takes_its_run_along_in_the_daemon_too() {
    cancelled_call_cancels(Way::Beside).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_leaves_no_run_of_its_own_behind() {
    let root = Root::new();
    root.automation("a/slow", r#""timeoutMs": 3600000"#, SLOW);
    let (mut child, client) = stdio(&root).await;
    let started = call(&client, "run_automation", json!({ "handle": "a/slow", "waitSeconds": 0 })).await;
    let started = started.structured_content.expect("a run");
    assert!(started["runId"].is_string(), "{started}");
    until_status(&client, "running").await;
    client.cancel().await.expect("it ends");
    assert_eq!(within(child.wait()).await.expect("an end").code(), Some(0));
    assert_eq!(root.sql("a", "select status from runs where status in ('queued', 'running')"), Vec::<String>::new());
    // And the root is free again.
    root.automation("a/quick", "", "export default () => {};");
    assert!(root.cli(&["run", "a/quick"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn references_that_lead_nowhere_are_told_before_anything_runs() {
    let root = Root::new();
    root.automation("a/notify", "", "export default () => {};");
    root.write("mcp.json", r#"{"mcpServers": {"mail": {"command": "no-such-program"}}}"#);
    let (_child, client) = stdio(&root).await;
    let manifest = json!({
        "name": "n",
        "prompt": "p",
        "generated": { "by": "t", "at": "now" },
        "requires": { "mcps": ["mial"], "model": "nobody/model" },
        "onFailure": "notfy",
    });
    let draft = json!({ "handle": "a/x", "manifest": manifest, "handler": "export default () => {};" });
    for tool in ["validate_manifest", "write_automation"] {
        let told = call(&client, tool, draft.clone()).await.structured_content.expect("an answer");
        let mut found: Vec<(&str, &str)> = told["problems"]
            .as_array()
            .expect("problems")
            .iter()
            .map(|problem| (problem["field"].as_str().expect("a field"), problem["severity"].as_str().expect("one")))
            .collect();
        found.sort_unstable();
        let expected = ["onFailure", "requires.mcps[0]", "requires.model"].map(|field| (field, "warning"));
        assert_eq!(found, expected, "{tool}: {told:#}");
        assert!(told.to_string().contains("did you mean"), "{told:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_come_and_go_beneath_a_client() {
    let root = Root::new();
    root.automation("a/quick", "", "export default () => ({ output: 1 });");
    let (_child, client) = stdio(&root).await;
    for serving in [false, true, false] {
        let mut served = serving.then(|| root.serve());
        let ended = call(&client, "run_automation", json!({ "handle": "a/quick" })).await;
        assert_eq!(ended.structured_content.expect("a run")["output"], 1);
        let listed = call(&client, "list_automations", json!({})).await.structured_content.expect("a list");
        assert_eq!(listed.get("note").is_none(), serving, "{listed}");
        if let Some(served) = &mut served {
            assert_eq!(served.terminate(), Some(0));
        }
    }
    assert_eq!(root.sql("a", "select count(*) from runs where status = 'ok'"), ["3"]);
}

/// Starts a run of `a/slow` that this client waits for.
async fn start_slow(client: &Client) {
    let arguments = json!({ "handle": "a/slow", "waitSeconds": 300 }).as_object().cloned();
    let request = CallToolRequestParams::new("run_automation").with_arguments(arguments.expect("an object"));
    let request = ClientRequest::CallToolRequest(rmcp::model::Request::new(request));
    client.send_cancellable_request(request, PeerRequestOptions::no_options()).await.expect("it is sent");
    until_status(client, "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_cancels_the_call_that_is_under_way() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let root = Root::new();
        root.automation("a/slow", r#""timeoutMs": 3600000"#, SLOW);
        let (mut child, client) = stdio(&root).await;
        start_slow(&client).await;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
        // SAFETY: a plain system call on our own child.
        unsafe { libc::kill(pid, signal) };
        assert_eq!(within(child.wait()).await.expect("an end").code(), Some(0));
        assert_eq!(root.sql("a", "select status from runs"), ["cancelled"], "signal {signal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_cancels_the_call_that_is_under_way() {
    let root = Root::new();
    root.automation("a/slow", r#""timeoutMs": 3600000"#, SLOW);
    let (mut child, client) = stdio(&root).await;
    start_slow(&client).await;
    client.cancel().await.expect("it ends");
    assert_eq!(within(child.wait()).await.expect("an end").code(), Some(0));
    assert_eq!(root.sql("a", "select status from runs"), ["cancelled"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_a_run_is_told_who_is_in_its_way() {
    let root = Root::new();
    root.automation("a/slow", r#""timeoutMs": 3600000"#, SLOW);
    root.automation("a/quick", "", "export default () => ({ output: 1 });");
    let (_child, client) = stdio(&root).await;
    let (_other_child, other) = stdio(&root).await;
    let started = call(&client, "run_automation", json!({ "handle": "a/slow", "waitSeconds": 0 })).await;
    assert_eq!(started.is_error, Some(false), "{started:?}");
    for client in [&client, &other] {
        let refused = call(client, "run_automation", json!({ "handle": "a/quick", "waitSeconds": 0 })).await;
        let told = refused.structured_content.expect("a refusal");
        assert_eq!((refused.is_error, &told["code"]), (Some(true), &json!("busy")), "{told}");
        // All else goes on.
        let read = call(client, "read_automation", json!({ "handle": "a/quick" })).await;
        assert_eq!(read.is_error, Some(false));
    }
}
