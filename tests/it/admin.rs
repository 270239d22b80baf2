//! The admin API over real HTTP: who may ask, and what the command line relies on.

use std::net::SocketAddr;

use dirigent::daemon::Daemon;
use dirigent::fire::AppId;
use dirigent::ledger::faults::{Point, SQLITE_FULL};
use futures::StreamExt;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Root, Served, start, within};

/// A client of the admin API.
pub struct Admin {
    pub base: String,
    pub token: String,
    pub client: Client,
}

impl Admin {
    pub fn of(root: &Root, served: &Served) -> Self {
        // Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = std::fs::read_to_string(root.join(".dirigent/token")).expect("a token");
        let admin = served.ready["admin"].as_str().expect("an address").trim_start_matches("http://").to_owned();
        Self { base: format!("http://{admin}"), token: token.trim().to_owned(), client: Client::new() }
    }

    /// The API of a daemon in this process, on any free port of `ip`.
    pub async fn in_process(daemon: &Daemon, ip: &str) -> (Self, SocketAddr) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let token = "t".repeat(64);
        tokio::spawn(dirigent::gateway::admin::serve(
            daemon.clone(),
            listener,
            token.clone(),
            std::future::pending::<()>(),
        ));
        (Self { base: format!("http://127.0.0.1:{}", address.port()), token, client: Client::new() }, address)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }
}

pub async fn answer(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
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
    root.automation("b/parked", "", "export default () => new Promise((done) => setTimeout(done, 1e8));");
    root.cli(&["run", "a/x"]);
    let newer = rusqlite::Connection::open(root.join("a/runtime.sqlite")).expect("the ledger opens");
    newer.pragma_update(None, "user_version", 99).expect("a version");
    drop(newer);
    let _served = root.serve();
    let run = root.cli(&["--json", "run", "b/y"]);
    assert_eq!(run.status.code(), Some(0), "{run:?}");
    assert!(run.stderr.is_empty(), "another app's ledger is none of its business: {run:?}");

    // A run whose own ledger cannot be read any more is cancelled all the same.
    let parked = root.cli(&["--json", "run", "b/parked", "--no-wait"]);
    let parked: Value = serde_json::from_slice(&parked.stdout).expect("JSON");
    let newer = rusqlite::Connection::open(root.join("b/runtime.sqlite")).expect("the ledger opens");
    newer.pragma_update(None, "user_version", 99).expect("a version");
    let id = parked["runId"].as_str().expect("an id");
    let cancel = root.cli(&["--json", "cancel", id]);
    assert_eq!(cancel.status.code(), Some(0), "{cancel:?}");
    // One that is nowhere may be where nobody can look.
    let unknown = root.cli(&["cancel", "00000000-0000-7000-8000-000000000000"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("unreadable are those of a, b"), "{unknown:?}");
}

fn ledger_problem(list: &Value, app: &str) -> Option<Value> {
    let path = format!("{app}/runtime.sqlite");
    list["problems"].as_array()?.iter().find(|p| p["code"] == "ledger" && p["path"] == path.as_str()).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_cannot_be_used_is_told_with_its_reason_until_it_can() {
    let root = Root::new();
    let obstacles = [
        ("folder", "this is a folder", "move it away"),
        ("foreign", "another program's database", "move it away"),
        ("newer", "newer version", "upgrade"),
    ];
    for (app, ..) in obstacles {
        root.automation(&format!("{app}/x"), "", "export default () => ({ summary: 'ran' });");
    }
    let ledger = |app: &str| root.join(app).join("runtime.sqlite");
    std::fs::create_dir(ledger("folder")).expect("a folder");
    for (app, version) in [("foreign", 0), ("newer", 99)] {
        let other = rusqlite::Connection::open(ledger(app)).expect("a database");
        other.execute_batch(&format!("create table runs (id); pragma user_version = {version}")).expect("a table");
    }
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let host_path = root.path().display().to_string();
    for (app, reason, remedy) in obstacles {
        let (_, list) = admin.get("/v1/automations").await;
        let problem = ledger_problem(&list, app).unwrap_or_else(|| panic!("{app}: {list}"));
        let (status, refused) = admin.post(&format!("/v1/automations/{app}/x/run"), json!({})).await;
        assert_eq!((status, &refused["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("ledger")), "{app}");
        let (_, one) = admin.get(&format!("/v1/automations/{app}/x")).await;
        assert_eq!(one["automation"]["problems"][0], problem, "{app}");
        for (told, hint) in [(&problem["message"], &problem["hint"]), (&refused["detail"], &refused["hint"])] {
            assert!(told.as_str().is_some_and(|told| told.contains(reason) && !told.contains(&host_path)), "{told}");
            assert!(hint.as_str().is_some_and(|hint| hint.contains(remedy)), "{app}: {hint}");
        }
        let run = root.cli(&["--json", "run", &format!("{app}/x")]);
        let error: Value = serde_json::from_slice(&run.stderr).unwrap_or_else(|error| panic!("{error}: {run:?}"));
        assert_eq!(run.status.code(), Some(1), "{app}");
        assert!(error["error"]["message"].as_str().is_some_and(|told| told.contains(reason)), "{error}");
        assert!(error["error"]["hint"].as_str().is_some_and(|hint| hint.contains(remedy)), "{error}");

        let _ = std::fs::remove_dir(ledger(app)).or_else(|_| std::fs::remove_file(ledger(app)));
        let (_, list) = admin.get("/v1/automations").await;
        assert_eq!(ledger_problem(&list, app), None, "{app}: it is gone");
        let (status, ran) = admin.post(&format!("/v1/automations/{app}/x/run?wait=60"), json!({})).await;
        assert_eq!((status, &ran["summary"]), (StatusCode::OK, &json!("ran")), "{app}: {ran}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_until_a_write_succeeds() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    let app = AppId::new("a").expect("an id");
    let run = "/v1/automations/a/x/run?wait=60";
    assert_eq!(admin.post(run, json!({})).await.0, StatusCode::OK);
    daemon.services().ledgers.faults().strike(&app, Point::Commit, SQLITE_FULL, u32::MAX);
    let (status, refused) = admin.post(run, json!({})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("ledger")));
    assert!(refused["detail"].as_str().is_some_and(|told| told.contains("is full")), "{refused}");
    daemon.services().ledgers.faults().strike(&app, Point::Commit, SQLITE_FULL, 0);
    for _ in 0..2 {
        let (_, list) = admin.get("/v1/automations").await;
        let problem = ledger_problem(&list, "a").expect("looking frees no space");
        assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("free some space")), "{problem}");
    }
    assert_eq!(admin.post(run, json!({})).await.0, StatusCode::OK);
    let (_, list) = admin.get("/v1/automations").await;
    assert_eq!(ledger_problem(&list, "a"), None);
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ledger_that_was_moved_aside_is_shown() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    root.write("a/runtime.sqlite", &"this is no database. ".repeat(500));
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    assert_eq!(admin.post("/v1/automations/a/x/run?wait=60", json!({})).await.0, StatusCode::OK);
    let (_, list) = admin.get("/v1/automations").await;
    let problems = list["problems"].as_array().cloned().unwrap_or_default();
    let moved = problems.iter().find(|p| p["code"] == "ledger_moved").unwrap_or_else(|| panic!("{list}"));
    let path = moved["path"].as_str().expect("where it is");
    assert!(path.starts_with("a/runtime.sqlite.corrupt-") && root.join(path).is_file(), "{path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_cancelled_whatever_state_the_ledgers_are_in() {
    let root = Root::new();
    root.automation("a/parked", "", "export default () => new Promise((done) => setTimeout(done, 1e8));");
    root.automation("b/y", "", "export default () => {};");
    root.automation("c/z", "", "export default () => {};");
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    let (ended, _) = crate::harness::run(&daemon, "c/z", None).await;
    crate::harness::run(&daemon, "b/y", None).await;
    let (parked, end) = start(&daemon, "a/parked", None).await;
    for app in ["a", "b"] {
        let client = rusqlite::Connection::open(root.join(app).join("runtime.sqlite")).expect("the ledger opens");
        client.pragma_update(None, "user_version", 99).expect("a version");
    }
    let cancel = |run: &str| format!("/v1/runs/{run}/cancel");
    let (status, body) = admin.post(&cancel(parked.as_str()), json!({})).await;
    assert_eq!((status, &body["status"]), (StatusCode::ACCEPTED, &json!("cancelling")), "{body}");
    within(end).await.expect("its end");
    let (status, body) = admin.post(&cancel(ended.as_str()), json!({})).await;
    assert_eq!((status, &body["code"], &body["runStatus"]), (StatusCode::CONFLICT, &json!("not_open"), &json!("ok")));

    // Nobody can say whether it is in one of those that cannot be read.
    let unknown = "00000000-0000-7000-8000-000000000000";
    for (method, path) in [
        (Method::POST, cancel(unknown)),
        (Method::POST, format!("/v1/runs/{unknown}/replay")),
        (Method::GET, format!("/v1/runs/{unknown}")),
        (Method::GET, format!("/v1/runs/{unknown}/events")),
    ] {
        let (status, body) = answer(admin.request(method, &path).header("content-type", "application/json")).await;
        assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("ledger")), "{path}: {body}");
        assert_eq!(body["apps"], json!(["a", "b"]), "{path}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_is_refused_before_there_is_a_run_of_it() {
    let root = Root::new();
    root.write("dirigent.toml", "[limits]\nvalue_bytes = 1024\n");
    root.automation("a/x", "", "export default ({ input }) => ({ summary: typeof input });");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let nested = |levels: usize| -> Value {
        let text = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        serde_json::from_str(&text).expect("JSON")
    };
    for (input, status, code) in [
        (json!("x".repeat(1022)), 200, None),
        (json!("x".repeat(1023)), 413, Some("too_large")),
        (json!("x".repeat(70_000)), 413, Some("too_large")),
        (nested(100), 200, None),
        (nested(101), 400, Some("too_deep")),
    ] {
        let size = input.to_string().len();
        let (got, body) = admin.post("/v1/automations/a/x/run?wait=60", json!({ "input": input })).await;
        assert_eq!((got.as_u16(), body["code"].as_str()), (status, code), "{size} bytes: {body}");
        assert_eq!(body["status"], if code.is_some() { json!(status) } else { json!("ok") }, "{size} bytes");
    }
    assert_eq!(root.sql("a", "select summary from runs order by run_id"), ["string", "object"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_handle_is_answered_with_the_nearest_one() {
    let root = Root::new();
    root.automation("auto.mail/digest", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    for (path, hint) in [
        ("auto.mail/digset/run", Some("did you mean auto.mail/digest?")),
        ("auto.mial/digest/run", Some("did you mean auto.mail/digest?")),
        ("auto.mail/di%20gest/run", Some("did you mean auto.mail/digest?")),
        ("zzzz/zzzz/run", None),
    ] {
        let (status, body) = admin.post(&format!("/v1/automations/{path}"), json!({})).await;
        assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("unknown_automation")), "{path}: {body}");
        assert_eq!(body["hint"].as_str(), hint, "{path}");
    }
}

// Elsewhere, only the first address of the loopback network is there.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_listener_on_all_interfaces_answers_to_the_address_that_was_reached() {
    let root = Root::new();
    let daemon = root.daemon().await;
    let (admin, address) = Admin::in_process(&daemon, "0.0.0.0").await;
    let port = address.port();
    for (reached, host, status) in [
        ("127.0.0.2", None, 200),
        ("127.0.0.1", None, 200),
        ("127.0.0.2", Some(format!("localhost:{port}")), 200),
        ("127.0.0.2", Some(format!("127.0.0.3:{port}")), 421),
        ("127.0.0.2", Some(format!("127.0.0.2:{}", port ^ 1)), 421),
        ("127.0.0.2", Some(format!("evil.example:{port}")), 421),
    ] {
        let mut request = admin.client.get(format!("http://{reached}:{port}/v1/automations")).bearer_auth(&admin.token);
        if let Some(host) = &host {
            request = request.header("host", host);
        }
        assert_eq!(answer(request).await.0.as_u16(), status, "{reached} as {host:?}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}
