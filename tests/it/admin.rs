//! The admin API over real HTTP: who may ask, and what the command line relies on.

use futures::StreamExt;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Root, Served, within};

struct Admin {
    base: String,
    token: String,
    client: Client,
}

impl Admin {
    fn of(root: &Root, served: &Served) -> Self {
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = std::fs::read_to_string(root.join(".dirigent/token")).expect("a token");
        let admin = served.ready["admin"].as_str().expect("an address").trim_start_matches("http://").to_owned();
        Self { base: format!("http://{admin}"), token: token.trim().to_owned(), client: Client::new() }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let response = within(request.send()).await.expect("an answer");
    let status = response.status();
    (status, response.json().await.unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_holds_the_token_and_comes_from_here_may_ask() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let run = "/v1/automations/a/x/run";
    let plain = |method: Method, path: &str| admin.client.request(method, format!("{}{path}", admin.base));

    assert_eq!(answer(plain(Method::GET, "/healthz")).await.0, StatusCode::OK);
    let json_type = ("content-type", "application/json");
    for (what, request, status, code) in [
        ("no token", plain(Method::GET, "/v1/automations"), 401, "unauthorized"),
        ("a wrong token", plain(Method::GET, "/v1/automations").bearer_auth("x"), 401, "unauthorized"),
        ("no token, no route", plain(Method::GET, "/nope"), 401, "unauthorized"),
        (
            "another host",
            admin.request(Method::GET, "/v1/automations").header("host", "evil.example"),
            421,
            "wrong_host",
        ),
        (
            "another origin",
            admin.request(Method::POST, run).header(json_type.0, json_type.1).header("origin", "http://evil.example"),
            403,
            "cross_site",
        ),
        (
            "another site",
            admin.request(Method::POST, run).header(json_type.0, json_type.1).header("sec-fetch-site", "cross-site"),
            403,
            "cross_site",
        ),
        ("a form", admin.request(Method::POST, run).header(json_type.0, "text/plain"), 415, "not_json"),
        ("no route", admin.request(Method::GET, "/nope"), 404, "not_found"),
        ("another method", admin.request(Method::DELETE, "/v1/automations"), 405, "method_not_allowed"),
    ] {
        let (got, body) = answer(request).await;
        assert_eq!((got.as_u16(), body["code"].as_str()), (status, Some(code)), "{what}: {body}");
        assert_eq!(body["status"], status, "{what}");
    }
    assert!(!root.join("a/runtime.sqlite").exists() || root.sql("a", "select 1 from runs").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_started_followed_listed_and_replayed() {
    let root = Root::new();
    root.automation(
        "a/x",
        "",
        "export default async ({ ctx, log, input }) => { log.info('one'); await ctx.tool('centraid_describe', {}); log.info('two'); return { summary: 'got ' + input, output: { input } }; };",
    );
    root.automation("a/parked", "", "export default () => new Promise((done) => setTimeout(done, 1e8));");
    root.write("a/automations/broken/automation.json", "{");
    let served = root.serve();
    let admin = Admin::of(&root, &served);

    let (status, body) = admin.post("/v1/automations/a/x/run?wait=60", json!({ "input": 3 })).await;
    assert_eq!((status, &body["status"], &body["output"]), (StatusCode::OK, &json!("ok"), &json!({ "input": 3 })));
    let id = body["runId"].as_str().unwrap().to_owned();

    let response = admin.request(Method::GET, &format!("/v1/runs/{id}/events")).send().await.unwrap();
    let events: Vec<Value> = within(
        eventsource_stream::Eventsource::eventsource(response.bytes_stream())
            .map(|event| serde_json::from_str(&event.expect("an event").data).expect("JSON"))
            .collect(),
    )
    .await;
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.first(), Some(&"opened"));
    assert_eq!(kinds.last(), Some(&"ended"));
    for kind in ["started", "log", "nodeOpened", "nodeClosed"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }

    let (status, body) = admin.post(&format!("/v1/runs/{id}/replay?wait=60"), json!({})).await;
    assert_eq!((status, &body["summary"]), (StatusCode::OK, &json!("got 3")));
    let (_, detail) = admin.get(&format!("/v1/runs/{id}")).await;
    assert_eq!((&detail["run"]["status"], &detail["nodes"][0]["name"]), (&json!("ok"), &json!("centraid_describe")));
    assert_eq!(detail["logs"].as_array().map(Vec::len), Some(2));

    let (status, parked) = admin.post("/v1/automations/a/parked/run", json!({})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let (status, busy) = admin.post("/v1/automations/a/parked/run", json!({})).await;
    assert_eq!((status, &busy["code"], &busy["runId"]), (StatusCode::CONFLICT, &json!("busy"), &parked["runId"]));
    let cancel = format!("/v1/runs/{}/cancel", parked["runId"].as_str().unwrap());
    assert_eq!(admin.post(&cancel, json!({})).await.0, StatusCode::ACCEPTED);

    let (_, list) = admin.get("/v1/automations").await;
    let views = list["automations"].as_array().unwrap();
    let find = |id: &str| views.iter().find(|v| v["handle"] == format!("a/{id}")).unwrap();
    assert_eq!((&find("x")["state"], &find("x")["counts"]["ok"]), (&json!("enabled"), &json!(2)));
    assert_eq!(find("broken")["state"], "invalid");
    assert!(list["problems"].as_array().unwrap().iter().any(|p| p["code"] == "invalid_json"));
    let (_, one) = admin.get("/v1/automations/a/x").await;
    assert!(one["handler"].as_str().unwrap().contains("export default"));

    for (path, status, code) in [
        ("/v1/automations/a/nope/run", 404, "unknown_automation"),
        ("/v1/automations/..%2f/nope/run", 404, "unknown_automation"),
        ("/v1/automations/a/broken/run", 409, "invalid_manifest"),
        ("/v1/automations/a/x/run?wait=-1", 400, "bad_query"),
        ("/v1/runs/nope/cancel", 404, "unknown_run"),
        (&format!("/v1/runs/{id}/cancel"), 409, "not_open"),
    ] {
        let (got, body) = admin.post(path, json!({})).await;
        assert_eq!((got.as_u16(), body["code"].as_str()), (status, Some(code)), "{path}: {body}");
    }
    let (got, body) = admin.post("/v1/automations/a/x/run", json!({ "inputs": 1 })).await;
    assert_eq!((got, &body["code"]), (StatusCode::BAD_REQUEST, &json!("bad_body")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_cannot_be_read_hides_no_other_apps_runs() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    root.automation("b/y", "", "export default () => ({ summary: 'seen' });");
    root.cli(&["run", "a/x"]);
    let newer = rusqlite::Connection::open(root.join("a/runtime.sqlite")).expect("the ledger opens");
    newer.pragma_update(None, "user_version", 99).expect("a version");
    drop(newer);
    let _served = root.serve();
    let run = root.cli(&["--json", "run", "b/y"]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
}
