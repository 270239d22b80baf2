//! `ctx.agent` from a handler, through a real daemon, against local servers that speak each provider's own protocol.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dirigent::fire::{ErrorCode, RunStatus};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::admin::Admin;
use crate::harness::{Root, ended, run, start, within};

/// Whatever holds a text and is set for every test: what stands in it serves as a key.
const KEY_VARIABLE: &str = "CARGO_MANIFEST_DIR";

/// What a server was asked: its path, the key it was shown, the body.
type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A server that gives these answers in turn; when they run out, a test has asked too often.
pub async fn server(answers: Vec<(u16, Value)>) -> (String, Asked) {
    let asked: Asked = Arc::default();
    let (seen, answers) = (Arc::clone(&asked), Arc::new(Mutex::new(VecDeque::from(answers))));
    let app = Router::new().fallback(move |request: Request| {
        let (seen, answers) = (Arc::clone(&seen), Arc::clone(&answers));
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
            let key = ["x-api-key", "x-goog-api-key", "authorization"].iter().find_map(|name| parts.headers.get(*name));
            let key = key.map_or("", |value| value.to_str().expect("a text")).to_owned();
            let body = serde_json::from_slice(&body).expect("JSON");
            seen.lock().expect("no panic").push((parts.uri.to_string(), key, body));
            let (status, answer) = answers.lock().expect("no panic").pop_front().expect("one answer for each request");
            Response::builder()
                .status(status)
                .header("retry-after", "0")
                .body(axum::body::Body::from(answer.to_string()))
                .expect("one")
        }
    });
    (listen(app).await, asked)
}

async fn listen(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, app).await });
    base
}

/// A whole answer of this provider.
pub fn answered(provider: &str, text: &str) -> Value {
    match provider {
        "anthropic" => json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6",
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 7, "output_tokens": 3},
        }),
        "gemini" => json!({
            "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP", "index": 0}],
            "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10},
            "modelVersion": "m-1", "responseId": "r",
        }),
        "ollama" => json!({
            "model": "m-1", "created_at": "2026-01-12T14:02:11.5Z", "message": {"role": "assistant", "content": text},
            "done_reason": "stop", "done": true, "total_duration": 1, "load_duration": 1,
            "prompt_eval_count": 7, "prompt_eval_duration": 1, "eval_count": 3, "eval_duration": 1,
        }),
        _ => json!({
            "id": "c", "object": "chat.completion", "created": 0, "model": "m-1",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }),
    }
}

fn settings(provider: &str, base: &str) -> String {
    format!("[models.{provider}]\nbase_url = \"{base}\"\napi_key_env = \"{KEY_VARIABLE}\"\n")
}

const TWO_TURNS: &str = r"export default async ({ ctx }) => {
  const text = await ctx.agent({ prompt: 'two and two?' });
  const json = { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] };
  const value = await ctx.agent({ prompt: 'as JSON', json });
  return { output: { text, value } };
};";

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_asked_recorded_and_validated() {
    let root = Root::new();
    let mut config = String::new();
    let mut servers = Vec::new();
    for (provider, path) in [
        ("anthropic", "/v1/messages"),
        ("gemini", "/v1beta/models/m-1:generateContent"),
        ("local", "/chat/completions"),
        ("ollama", "/api/chat"),
        ("openai", "/chat/completions"),
    ] {
        let (base, asked) = server(vec![
            (429, json!({"error": {"message": "slow down"}})),
            (200, answered(provider, "four")),
            (200, answered(provider, r#"{"n": "x"}"#)),
            (503, json!({"error": {"message": "overloaded"}})),
            (200, answered(provider, r#"{"n": 4}"#)),
        ])
        .await;
        config.push_str(&settings(provider, &base));
        root.automation(&format!("a/{provider}"), &format!(r#""requires": {{"model": "{provider}/m-1"}}"#), TWO_TURNS);
        servers.push((provider, path, asked));
    }
    root.write("dirigent.toml", &config);
    let daemon = root.daemon().await;
    let key = std::env::var(KEY_VARIABLE).expect("set for every test");
    for (provider, path, asked) in servers {
        let (id, end) = run(&daemon, &format!("a/{provider}"), None).await;
        assert_eq!(end.output_json.as_deref(), Some(r#"{"text":"four","value":{"n":4}}"#), "{provider}: {end:?}");
        let nodes = format!("select kind, ok, usage_json from run_nodes where run_id = '{id}' order by ordinal");
        let usage = |input: u32, output: u32| {
            format!(
                r#"agent|1|{{"model":"{provider}/m-1","provider":"{provider}","inputTokens":{input},"outputTokens":{output}}}"#
            )
        };
        assert_eq!(root.sql("a", &nodes), [usage(7, 3), usage(14, 6)], "{provider}: the repair counts too");
        let asked = asked.lock().expect("no panic").clone();
        assert_eq!(asked.len(), 5, "{provider}: each overload was asked again, and the wrong answer repaired");
        for (at, shown, body) in asked {
            assert_eq!((at.as_str(), shown.trim_start_matches("Bearer ")), (path, key.as_str()), "{provider}");
            assert!(body.to_string().contains("two and two?") || body.to_string().contains("as JSON"), "{body}");
        }
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_fails_says_what_to_do_and_leaves_no_key() {
    let root = Root::new();
    let asks = "export default ({ ctx }) => ctx.agent({ prompt: 'x', json: { type: 'integer' } });";
    let key = std::env::var(KEY_VARIABLE).expect("set for every test");
    let (refuses, _) = server(vec![(401, json!({"error": {"message": format!("no such key: {key}")}}))]).await;
    let (rambles, _) = server(vec![(200, answered("rambles", "well")), (200, answered("rambles", "four"))]).await;
    let (babbles, _) =
        server(vec![(200, json!({"choices": [{"message": {"content": "1"}, "finish_reason": "length"}]}))]).await;
    let mut config = settings("refuses", &refuses) + &settings("rambles", &rambles) + &settings("babbles", &babbles);
    config.push_str("[models.keyless]\nbase_url = \"http://127.0.0.1:9\"\napi_key_env = \"DIRIGENT_TEST_UNSET\"\n");
    root.write("dirigent.toml", &config);
    for (id, model, told) in [
        ("none", None, "\"requires\": {\"model\""),
        ("unset", Some("unheard/m"), "[models.unheard]"),
        ("near", Some("antropic/m"), "did you mean \"anthropic\"?"),
        ("keyless", Some("keyless/m"), "DIRIGENT_TEST_UNSET"),
        ("refuses", Some("refuses/m"), "no such key: [key]; check the key in the environment variable"),
        ("rambles", Some("rambles/m"), "does not validate against `json`, also after a repair"),
        ("babbles", Some("babbles/m"), "ask for a shorter answer, or raise `max_tokens`"),
    ] {
        let requires = model.map(|model| format!(r#""requires": {{"model": "{model}"}}"#)).unwrap_or_default();
        root.automation(&format!("{id}/x"), &requires, asks);
        let daemon = root.daemon().await;
        let (_, end) = run(&daemon, &format!("{id}/x"), None).await;
        assert_eq!((end.status, end.error_code), (RunStatus::Error, Some(ErrorCode::HandlerThrew)));
        let error = end.error.unwrap_or_default();
        assert!(error.contains(told), "{id}: {error}");
        let nodes = root.sql(id, "select ok, error, usage_json from run_nodes");
        assert!(nodes.len() == 1 && nodes[0].starts_with("0|") && nodes[0].contains(told), "{nodes:?}");
        assert_eq!(nodes[0].contains("\"inputTokens\":14"), id == "rambles", "a failed turn has its cost: {nodes:?}");
        assert!(!error.contains(&key) && !nodes[0].contains(&key), "{error}");
        daemon.stop(std::time::Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_hangs_up() {
    let root = Root::new();
    let (came, comes) = oneshot::channel::<()>();
    let (gone, goes) = oneshot::channel::<()>();
    let signals = Arc::new(Mutex::new(Some((came, gone))));
    // Held until whoever asked hangs up: then the answer's future is dropped, and `gone` with it.
    let base = listen(Router::new().fallback(move || {
        let (came, gone) = signals.lock().expect("no panic").take().expect("one request");
        async move {
            let _held = gone;
            came.send(()).expect("the test waits");
            std::future::pending::<()>().await;
            "never".into_response()
        }
    }))
    .await;
    root.write("dirigent.toml", &settings("slow", &base));
    root.automation(
        "a/x",
        r#""requires": {"model": "slow/m"}"#,
        "export default ({ ctx }) => ctx.agent({ prompt: 'x' });",
    );
    let daemon = root.daemon().await;
    let (id, end) = start(&daemon, "a/x", None).await;
    within(comes).await.expect("the request comes");
    daemon.cancel(id).await;
    assert_eq!(ended(end).await.status, RunStatus::Cancelled);
    within(goes).await.expect_err("the server was told that nobody waits");
    assert_eq!(root.sql("a", "select ok, ended_at is not null from run_nodes"), ["0|1"]);
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_the_run_has_no_time_for_is_told_to_the_handler() {
    let root = Root::new();
    let base =
        listen(Router::new().fallback(|| async { (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "50")]) })).await;
    root.write("dirigent.toml", &settings("busy", &base));
    root.automation(
        "a/x",
        r#""requires": {"model": "busy/m"}, "timeoutMs": 40000"#,
        "export default ({ ctx }) => ctx.agent({ prompt: 'x' }).catch((error) => ({ summary: error.message }));",
    );
    let daemon = root.daemon().await;
    let (_, end) = run(&daemon, "a/x", None).await;
    let told = end.summary.unwrap_or_default();
    assert!(told.contains("it asks to wait 50 s, which is too long for this run"), "{told}");
    daemon.stop(std::time::Duration::ZERO).await;
}

/// An option with another name is no silent text where a value was meant.
#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_nobody_reads_are_refused() {
    let root = Root::new();
    root.automation(
        "a/x",
        r#""requires": {"model": "ollama/m"}"#,
        "export default async ({ ctx }) => {
            const told = [];
            for (const args of [{ prompt: 'x', schema: {} }, { prompt: 5 }, {}, 'x', { prompt: ' ' }]) {
                await ctx.agent(args).catch((error) => told.push(error.code, error.message));
            }
            return { output: { told } };
        };",
    );
    let daemon = root.daemon().await;
    let (_, end) = run(&daemon, "a/x", None).await;
    let output: Value = serde_json::from_str(&end.output_json.expect("an output")).expect("JSON");
    let told: Vec<&str> = output["told"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(told.iter().step_by(2).copied().collect::<Vec<_>>(), ["agent_bad_args"; 5], "{told:?}");
    assert!(told[1].contains("`schema`") && told[1].contains("`json`"), "{told:?}");
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_however_fine_shows_a_key() {
    const KEY: &str = "sk-very-secret-0123456789";
    let root = Root::new();
    let mut config = String::new();
    for provider in ["anthropic", "gemini", "local", "ollama", "openai"] {
        let (base, _) = server(vec![(200, answered(provider, "four"))]).await;
        config.push_str(&format!("[models.{provider}]\nbase_url = \"{base}\"\napi_key_env = \"THE_KEY\"\n"));
        root.automation(
            &format!("a/{provider}"),
            &format!(r#""requires": {{"model": "{provider}/m-1"}}"#),
            "export default async ({ ctx }) => ({ summary: await ctx.agent({ prompt: 'two and two?' }) });",
        );
    }
    root.write("dirigent.toml", &config);
    let mut served = root.serve_with(&["--hooks", "127.0.0.1:0"], &[("THE_KEY", KEY), ("DIRIGENT_LOG", "trace")]);
    for provider in ["anthropic", "gemini", "local", "ollama", "openai"] {
        let told = root.cli(&["run", &format!("a/{provider}")]);
        assert!(String::from_utf8_lossy(&told.stdout).contains("four"), "{told:?}");
    }
    served.kill();
    let log = std::fs::read_to_string(root.join("serve.log")).expect("a log");
    assert!(log.contains("TRACE") && !log.contains(KEY), "a key is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mock_model_is_refused_before_anything_runs() {
    let root = Root::new();
    root.automation("a/x", r#""requires": {"model": "centraid-mock/m"}"#, "export default () => {};");
    let shown = root.cli(&["validate"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("mock_model_disallowed"), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn automations_are_listed_with_measured_tokens_beside_the_estimate() {
    let root = Root::new();
    let (base, _) = server((0..4).map(|_| (200, answered("local", "four"))).collect()).await;
    root.write("dirigent.toml", &settings("local", &base));
    let asks = "export default async ({ ctx, input }) => {
      for (let n = 0; n < input; n++) await ctx.agent({ prompt: 'x' });
    };";
    let estimate = |tokens: u32| {
        let cost = format!(r#""costEstimate": {{"model": "local/m", "tokensPerFire": {tokens}}}"#);
        format!(r#""requires": {{"model": "local/m"}}, {cost}"#)
    };
    root.automation("a/asks", &estimate(15), asks);
    root.automation("a/unasked", &estimate(7), asks);
    root.automation("b/silent", r#""requires": {"model": "local/m"}"#, asks);
    root.automation("c/idle", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    for (handle, input) in [("a/asks", 2), ("a/asks", 0), ("b/silent", 1), ("a/asks", 1), ("c/idle", 0)] {
        let run = admin.post(&format!("/v1/automations/{handle}/run?wait=60"), json!({ "input": input })).await.1;
        assert_eq!(run["status"], "ok", "{run}");
    }
    // Each answer is of 7 tokens in and 3 out.
    let of_asks = json!({
        "runs": 3, "calls": 3, "inputTokens": 21, "outputTokens": 9, "tokensPerRun": 10.0, "models": ["local/m"],
    });
    let cost = json!({ "model": "local/m", "tokensPerFire": 15.0 });
    let of = |view: &Value| (view["costEstimate"].clone(), view["usage"].clone());
    let check = |list: &Value, told: &str| {
        let views: Vec<_> = list["automations"].as_array().expect("a list").iter().map(of).collect();
        let expected = [
            (cost.clone(), of_asks.clone()),
            (json!({ "model": "local/m", "tokensPerFire": 7.0 }), Value::Null),
            (Value::Null, views[2].1.clone()),
            (Value::Null, Value::Null),
        ];
        assert_eq!(views, expected, "{told}");
        assert_eq!(views[2].1["tokensPerRun"], 10.0, "{told}");
    };
    let listed = || {
        let told = root.cli(&["--json", "list"]);
        serde_json::from_slice::<Value>(&told.stdout).unwrap_or_else(|error| panic!("{error}: {told:?}"))
    };
    check(&admin.get("/v1/automations").await.1, "the API");
    check(&listed(), "the daemon's list");
    assert_eq!(of(&admin.get("/v1/automations/a/asks").await.1["automation"]), (cost.clone(), of_asks.clone()));
    let schemas = admin.get("/openapi.json").await.1["components"]["schemas"].clone();
    let described = &schemas["MeasuredUsage"]["properties"];
    assert!(described["tokensPerRun"]["description"].as_str().is_some_and(|text| text.contains("tokensPerFire")));
    assert!(schemas["AutomationView"]["properties"]["usage"].is_object(), "{schemas}");
    drop(served);
    check(&listed(), "the disk's list");

    let shown = root.cli(&["list"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let cells = |handle: &str| {
        let line = shown.lines().find(|line| line.starts_with(handle)).expect("its line");
        line.split("  ").filter(|cell| !cell.is_empty()).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    for (handle, measured, estimated) in
        [("a/asks", "10", "15"), ("a/unasked", "-", "7"), ("b/silent", "10", "-"), ("c/idle", "-", "-")]
    {
        assert_eq!(cells(handle)[4..6], [measured, estimated], "{handle}: {shown}");
    }
    assert!(shown.contains("over the last 20 runs of each"), "{shown}");
    std::fs::remove_dir_all(root.path().join("a")).expect("a folder");
    std::fs::remove_dir_all(root.path().join("b")).expect("a folder");
    let shown = root.cli(&["list"]);
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("ESTIMATE"), "nobody asks a model: {shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_tokens_stand_beside_the_estimate() {
    let root = Root::new();
    let (base, _) = server((0..4).map(|_| (200, answered("local", "four"))).collect()).await;
    root.write("dirigent.toml", &settings("local", &base));
    root.automation(
        "a/asks",
        r#""requires": {"model": "local/m"}, "costEstimate": {"model": "local/m", "tokensPerFire": 12}"#,
        "export default async ({ ctx, input }) => { for (let n = 0; n < input; n++) await ctx.agent({ prompt: 'x' }); };",
    );
    root.automation("a/fails", "", "export default () => { throw new Error('no'); };");
    root.automation("b/idle", "", "export default () => {};");
    let daemon = root.daemon().await;
    run(&daemon, "a/asks", Some("3")).await;
    run(&daemon, "a/asks", Some("1")).await;
    run(&daemon, "a/fails", None).await;
    let stats = |args: &[&str]| -> Vec<Value> {
        let told = root.cli(&[&["--json", "stats"], args].concat());
        let told: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|error| panic!("{error}: {told:?}"));
        told["automations"].as_array().expect("a list").clone()
    };
    let all = stats(&[]);
    let handles: Vec<&Value> = all.iter().map(|line| &line["handle"]).collect();
    assert_eq!(handles, ["a/asks", "a/fails", "b/idle"]);
    let of = |line: &Value, names: &[&str]| names.iter().map(|name| line[*name].clone()).collect::<Vec<_>>();
    let counted = ["fires", "ok", "error", "successRate", "agentCalls", "tokens", "costEstimate"];
    let tokens =
        |input: u32, output: u32, per_fire: Option<f64>| json!({"input": input, "output": output, "perFire": per_fire});
    assert_eq!(
        of(&all[0], &counted),
        [
            json!(2),
            json!(2),
            json!(0),
            json!(1.0),
            json!(4),
            tokens(28, 12, Some(20.0)),
            json!({"model": "local/m", "tokensPerFire": 12.0}),
        ]
    );
    assert!(all[0]["durationMs"]["p50"].as_i64() <= all[0]["durationMs"]["p95"].as_i64());
    let none = Value::Null;
    let failed = [json!(1), json!(0), json!(1), json!(0.0), json!(0), tokens(0, 0, None), none.clone()];
    assert_eq!(of(&all[1], &counted), failed);
    assert_eq!(of(&all[2], &["fires", "successRate", "durationMs"]), [json!(0), none.clone(), none]);
    assert_eq!(stats(&["asks"]), [all[0].clone()]);
    assert_eq!(stats(&["a/fails", "--since", "2099-01-01"])[0]["fires"], 0);
    let shown = root.cli(&["stats"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    let line = shown.lines().find(|line| line.starts_with("a/asks")).expect("its line");
    assert!(line.contains("100 %") && line.trim_end().ends_with("20           12"), "{shown}");
    assert_eq!(root.cli(&["stats", "nobody"]).status.code(), Some(1));
    assert_eq!(root.cli(&["stats", "--since", "soon"]).status.code(), Some(2));
    daemon.stop(std::time::Duration::ZERO).await;
}
