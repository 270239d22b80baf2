//! The admin API over real HTTP: its resources, its refusals, and its own description.

use std::collections::{BTreeMap, BTreeSet};

use dirigent::fire::RunId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::admin::{Admin, answer};
use crate::harness::{Root, run, start, within};

const PARKED: &str = "export default () => new Promise((done) => setTimeout(done, 1e8));";

/// What the document says: for each path its methods and their operations.
async fn described(admin: &Admin) -> BTreeMap<String, BTreeMap<String, Value>> {
    let (status, document) = admin.get("/openapi.json").await;
    assert_eq!((status, &document["openapi"]), (StatusCode::OK, &json!("3.1.0")));
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    serde_json::from_value(document["paths"].clone()).expect("paths")
}

/// A path with something in each of its places.
fn filled(path: &str) -> String {
    path.replace("{runId}", RunId::at(0).as_str())
        .replace("{app}", "a")
        .replace("{id}", "x")
        .replace("{name}", "centraid_describe")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_describes_what_is_served_and_every_refusal_is_a_problem() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let paths = described(&admin).await;
    let mut names = BTreeSet::new();
    for (path, operations) in &paths {
        let url = filled(path);
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let what = format!("{method} {path}");
            let request = admin.request(method.clone(), &url).header("content-type", "application/json").body("{}");
            let response = within(request.send()).await.expect("an answer");
            let status = response.status().as_u16();
            let Some(operation) = operations.get(&method.as_str().to_lowercase()) else {
                let mut allowed: Vec<String> = operations.keys().map(|name| name.to_uppercase()).collect();
                allowed.extend(operations.contains_key("get").then(|| "HEAD".to_owned()));
                let told = response.headers()["allow"].to_str().expect("text").to_owned();
                let told: BTreeSet<&str> = told.split(',').map(str::trim).collect();
                assert_eq!((status, told), (405, allowed.iter().map(String::as_str).collect()), "{what}");
                let body: Value = within(response.json()).await.expect("JSON");
                assert_eq!(body["code"], "method_not_allowed", "{what}");
                continue;
            };
            assert!(names.insert(operation["operationId"].as_str().expect("a name").to_owned()), "{what}");
            assert!(operation["responses"].get(status.to_string()).is_some(), "{what} answered {status}");
            let type_ = response.headers()["content-type"].to_str().expect("text").to_owned();
            if status >= 400 {
                assert_eq!(type_, "application/problem+json", "{what}");
                let body: Value = within(response.json()).await.expect("JSON");
                assert_ne!(body["code"], "not_found", "{what} is served");
            }
            if path == "/healthz" {
                continue;
            }
            let anonymous = admin.client.request(method.clone(), format!("{}{url}", admin.base));
            let (status, body) = answer(anonymous).await;
            assert_eq!((status.as_u16(), &body["code"]), (401, &json!("unauthorized")), "{what}");
            let (status, body) = answer(
                admin.request(method.clone(), &format!("{url}?nope=1")).header("content-type", "application/json"),
            )
            .await;
            assert_eq!((status.as_u16(), &body["code"]), (400, &json!("bad_query")), "{what}");
            if method == Method::POST {
                for kind in ["text/plain", "application/x-www-form-urlencoded"] {
                    let form = admin.request(Method::POST, &url).header("content-type", kind).body("{}");
                    let (status, body) = answer(form).await;
                    assert_eq!((status.as_u16(), &body["code"]), (415, &json!("not_json")), "{what}");
                }
                let bare = admin.request(Method::POST, &url).body("{}");
                assert_eq!(answer(bare).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{what}");
            }
        }
    }
    assert_eq!(names.len(), 23, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_its_rule_and_tells_nothing_of_the_inside() {
    let root = Root::new();
    root.write("dirigent.toml", "[limits]\nvalue_bytes = 1024\n");
    root.automation("a/x", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let run = "/v1/automations/a/x/run";
    let long = format!("{{\"input\":\"{}\"}}", "x".repeat(80_000));
    let nothing = String::new();
    for (method, path, body, status, code, told) in [
        ("GET", "/v1/nope", &nothing, 404, "not_found", "no such resource"),
        ("GET", "/v1/automations/%ff/x", &nothing, 400, "bad_path", "UTF-8"),
        ("GET", "/v1/automations/..%2f../x", &nothing, 404, "unknown_automation", "../../x"),
        ("GET", "/v1/runs/1", &nothing, 404, "unknown_run", "no such run"),
        ("GET", "/v1/runs?limit=0", &nothing, 400, "bad_query", "from 1 to 500"),
        ("GET", "/v1/runs?limit=abc", &nothing, 400, "bad_query", "it must be a whole number"),
        ("GET", "/v1/runs?stauts=ok", &nothing, 400, "bad_query", "did you mean status?"),
        ("GET", "/v1/runs?status=fine", &nothing, 400, "bad_query", "queued, running, ok"),
        ("GET", "/v1/runs?origin=x", &nothing, 400, "bad_query", "cron, webhook"),
        ("GET", "/v1/runs?since=yesterday", &nothing, 400, "bad_query", "RFC 3339"),
        ("GET", "/v1/runs?automation=x", &nothing, 400, "bad_query", "<appId>/<automationId>"),
        ("GET", "/v1/runs?cursor=7", &nothing, 400, "bad_query", "the id of a run"),
        ("GET", "/v1/runs?app=a&app=b", &nothing, 400, "bad_query", "more than once"),
        ("POST", "/v1/automations/a/x/run?wait=1e9", &nothing, 400, "bad_query", "0 to 600"),
        ("POST", run, &"{".to_owned(), 400, "bad_body", "line 1, column 1"),
        ("POST", run, &"[1]".to_owned(), 400, "bad_body", "`input` is the only member"),
        ("POST", run, &"{\"inputs\":1}".to_owned(), 400, "bad_body", "`input` is the only member"),
        ("POST", run, &long, 413, "too_large", "1024 bytes"),
        ("POST", "/v1/automations/a/x/enable", &"{\"a\":1}".to_owned(), 400, "bad_body", "without members"),
        ("POST", "/v1/automations/a/x/enable", &long, 413, "too_large", "1024"),
        ("POST", "/v1/automations/a/gone/enable", &nothing, 404, "unknown_automation", "a/gone"),
        ("POST", "/v1/automations/b/x/disable", &nothing, 404, "unknown_automation", "b/x"),
        ("POST", "/v1/automations/a/x/webhook/provision", &nothing, 409, "no_pending_webhook", "webhook"),
        ("POST", "/v1/automations/a/x/webhook/rotate", &nothing, 409, "no_provisioned_webhook", "webhook"),
    ] {
        let method: Method = method.parse().expect("a method");
        let request = admin.request(method, path).header("content-type", "application/json").body(body.clone());
        let (got, document) = answer(request).await;
        assert_eq!((got.as_u16(), document["code"].as_str()), (status, Some(code)), "{path}: {document}");
        let text = document.to_string();
        assert!(text.contains(told), "{path}: {text}");
        for inside in [root.path().to_str().expect("text"), "serde", "axum", "Deserialize", "deserialize", "sqlite3"] {
            assert!(!text.contains(inside), "{path}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_automation_is_listed_with_its_history_and_switched() {
    let root = Root::new();
    root.automation(
        "a/x",
        "\"costEstimate\": {\"model\": \"m/1\", \"tokensPerFire\": 12.5}",
        "export default ({ input }) => { if (input === 'fail') throw new Error('no'); };",
    );
    root.automation("a/new", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let mut ids = Vec::new();
    for n in 0..22 {
        let input = if n % 4 == 0 { "fail" } else { "fine" };
        let (_, body) = admin.post("/v1/automations/a/x/run?wait=60", json!({ "input": input })).await;
        ids.push(body["runId"].as_str().expect("an id").to_owned());
    }
    let view = async |id: &str| {
        let (_, list) = admin.get("/v1/automations").await;
        let views = list["automations"].as_array().expect("views").clone();
        views.into_iter().find(|view| view["automationId"] == id).expect("a view")
    };
    let x = view("x").await;
    let (counts, rate) = (json!({ "total": 22, "ok": 16, "error": 6 }), json!(16.0 / 22.0));
    assert_eq!((&x["counts"], &x["successRate"], &x["activeRuns"]), (&counts, &rate, &json!(0)));
    assert_eq!(x["costEstimate"], json!({ "model": "m/1", "tokensPerFire": 12.5 }));
    let recent: Vec<&str> = x["recent"].as_array().expect("rows").iter().filter_map(|r| r["runId"].as_str()).collect();
    let newest: Vec<&str> = ids.iter().rev().take(20).map(String::as_str).collect();
    assert_eq!(recent, newest);
    assert_eq!((&x["recent"][0]["status"], &x["lastRun"]["runId"]), (&json!("ok"), &json!(ids[21])));
    let (_, one) = admin.get("/v1/automations/a/x").await;
    assert_eq!((&one["automation"]["counts"], &one["automation"]["recent"]), (&counts, &x["recent"]));
    let new = view("new").await;
    assert_eq!((&new["successRate"], &new["recent"], &new["costEstimate"]), (&Value::Null, &json!([]), &Value::Null));

    for (action, enabled, changed) in
        [("disable", false, true), ("disable", false, false), ("enable", true, true), ("enable", true, false)]
    {
        let (status, body) = admin.post(&format!("/v1/automations/a/x/{action}"), json!({})).await;
        assert_eq!((status, &body["enabled"], &body["changed"]), (StatusCode::OK, &json!(enabled), &json!(changed)));
        assert_eq!((&body["handle"], &body["problems"]), (&json!("a/x"), &json!([])));
        // At once: who lists next sees it.
        assert_eq!(view("x").await["enabled"], enabled, "{action}");
        let manifest = std::fs::read_to_string(root.join("a/automations/x/automation.json")).expect("a manifest");
        assert!(manifest.contains(&format!("\"enabled\": {enabled}")), "{manifest}");
    }
    let (_, problems) = admin.get("/v1/problems").await;
    assert_eq!(problems, json!({ "problems": [] }));
    root.write("a/automations/x/automation.json", "{");
    let (_, refused) = loop {
        let told = admin.post("/v1/automations/a/x/enable", json!({})).await;
        let (_, problems) = admin.get("/v1/problems").await;
        if problems["problems"][0]["code"] == "invalid_json" {
            break told;
        }
    };
    assert_eq!(refused["code"], "invalid_manifest");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_told_once_and_stand_nowhere_in_the_clear() {
    let root = Root::new();
    root.automation("a/x", "\"triggers\": [{\"kind\": \"webhook\", \"pending\": true}]", "export default () => {};");
    let daemon = root.daemon().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let base = format!("http://{}", listener.local_addr().expect("its address"));
    let options = dirigent::gateway::admin::Options {
        token: "t".repeat(64),
        hooks: Some("0.0.0.0:7391".parse().expect("an address")),
    };
    tokio::spawn(dirigent::gateway::admin::serve(daemon.clone(), listener, options, std::future::pending()));
    let admin = Admin { base, token: "t".repeat(64), client: reqwest::Client::new() };
    let mint = async |what: &str| {
        let path = format!("/v1/automations/a/x/webhook/{what}");
        let request = admin.request(Method::POST, &path).header("content-type", "application/json").body("{}");
        let response = within(request.send()).await.expect("an answer");
        assert_eq!(
            (response.status(), &response.headers()["cache-control"]),
            (StatusCode::OK, &"no-store".parse().unwrap())
        );
        let body: Value = within(response.json()).await.expect("JSON");
        body
    };
    let first = mint("provision").await;
    let slug = first["slug"].as_str().expect("a slug").to_owned();
    assert_eq!(first["url"], format!("http://127.0.0.1:7391/_centraid-hook/{slug}"));
    let (_, one) = admin.get("/v1/automations/a/x").await;
    assert_eq!(one["automation"]["triggers"][0]["id"], slug, "the registry has seen it");
    let second = mint("rotate").await;
    assert_eq!((&second["slug"], &second["url"]), (&first["slug"], &first["url"]));
    assert_ne!(second["secret"], first["secret"]);
    let (_, one) = admin.get("/v1/automations/a/x").await;
    for minted in [&first, &second] {
        let secret = minted["secret"].as_str().expect("a secret");
        assert!(secret.len() == 48 && !one.to_string().contains(secret));
    }
    let (status, again) = admin.post("/v1/automations/a/x/webhook/provision", json!({})).await;
    assert_eq!((status, &again["code"]), (StatusCode::CONFLICT, &json!("no_pending_webhook")));
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_paged_newest_first_over_all_apps_while_others_come() {
    let root = Root::new();
    for handle in ["a/x", "a/y", "b/z"] {
        root.automation(handle, "", "export default ({ input }) => { if (input) throw new Error('asked to'); };");
    }
    root.automation("c/caller", "", "export default async ({ ctx }) => { await ctx.invoke('b/z'); };");
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    let mut made = Vec::new();
    for n in 0..9 {
        let handle = ["a/x", "b/z", "a/y"][n % 3];
        made.push(run(&daemon, handle, (n == 4).then_some("1")).await.0.to_string());
    }
    let ids = |page: &Value| -> Vec<String> {
        let runs = page["runs"].as_array().expect("runs").iter();
        runs.map(|run| run["runId"].as_str().expect("an id").to_owned()).collect()
    };
    let newest = |wanted: &dyn Fn(usize) -> bool| -> Vec<String> {
        (0..9).rev().filter(|n| wanted(*n)).map(|n| made[n].clone()).collect()
    };
    let mut seen = Vec::new();
    let mut path = "/v1/runs?limit=2".to_owned();
    let mut later = Vec::new();
    loop {
        let (_, page) = admin.get(&path).await;
        seen.extend(ids(&page));
        assert!(page["runs"][0].get("input").is_none() && page["runs"][0].get("output").is_none());
        // A cursor stays good when its run is gone.
        if seen.len() == 4 {
            let ledger = rusqlite::Connection::open(root.join("a/runtime.sqlite")).expect("the ledger opens");
            ledger.execute("delete from runs where run_id = ?1", [&seen[3]]).expect("it goes");
        }
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/runs?limit=2&cursor={next}");
        later.push(run(&daemon, "a/x", None).await.0.to_string());
    }
    assert_eq!(seen, newest(&|_| true), "and none of {later:?}");
    let gone = made.iter().position(|id| *id == seen[3]).expect("it was there");
    assert_eq!(gone, 5, "of a/y");

    let since = format!("&cursor={}", later[0]);
    for (filter, wanted) in [
        ("app=a", Box::new(|n: usize| n % 3 != 1) as Box<dyn Fn(usize) -> bool>),
        ("automation=b/z", Box::new(|n| n % 3 == 1)),
        ("app=a&automation=y", Box::new(|n| n % 3 == 2)),
        ("app=a&automation=b/z", Box::new(|_| false)),
        ("app=zzz", Box::new(|_| false)),
        ("status=error", Box::new(|n| n == 4)),
        ("status=ok,queued&app=b", Box::new(|n| n % 3 == 1 && n != 4)),
        ("origin=cron", Box::new(|_| false)),
        ("since=0", Box::new(|_| true)),
        ("since=2100-01-01T00:00:00%2B02:00", Box::new(|_| false)),
    ] {
        let (status, page) = admin.get(&format!("/v1/runs?{filter}{since}")).await;
        assert_eq!((status, ids(&page)), (StatusCode::OK, newest(&|n| n != gone && wanted(n))), "{filter}");
    }

    let (parent, _) = run(&daemon, "c/caller", None).await;
    let (_, page) = admin.get(&format!("/v1/runs?parent={parent}")).await;
    let child = &page["runs"][0];
    assert_eq!((&child["appId"], &child["triggerOrigin"]), (&json!("b"), &json!("invoke")));
    let (_, detail) = admin.get(&format!("/v1/runs/{parent}")).await;
    assert_eq!(detail["children"], page["runs"], "also from another app's ledger");
    assert_eq!(detail["nodes"][0]["childRunId"], child["runId"]);

    let other = rusqlite::Connection::open(root.join("a/runtime.sqlite")).expect("the ledger opens");
    other.pragma_update(None, "user_version", 99).expect("a version");
    let (_, page) = admin.get("/v1/runs").await;
    assert!(page["runs"].as_array().expect("runs").iter().all(|run| run["appId"] != "a"));
    assert_eq!(
        (&page["problems"][0]["code"], &page["problems"][0]["path"]),
        (&json!("ledger"), &json!("a/runtime.sqlite"))
    );
    let (_, page) = admin.get("/v1/runs?app=b").await;
    assert_eq!(page["problems"], json!([]), "that ledger is not asked");
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_one_fire_of_many_posts_also_after_a_kill() {
    let root = Root::new();
    root.automation("a/parked", "", PARKED);
    root.automation("a/quick", "", "export default ({ input }) => ({ summary: 'got ' + input, output: [input] });");
    let mut served = root.serve();
    let admin = Admin::of(&root, &served);
    let post = async |admin: &Admin, path: &str, key: &str, input: Value| {
        let path = format!("/v1/automations/{path}");
        let request = admin.request(Method::POST, &path).header("idempotency-key", key);
        let response = within(request.json(&json!({ "input": input })).send()).await.expect("an answer");
        let replayed = response.headers().contains_key("idempotency-replayed");
        let status = response.status().as_u16();
        let body: Value = within(response.json()).await.expect("JSON");
        (status, replayed, body)
    };
    // All at once, of an automation that takes one at a time.
    let posts = (0..8).map(|_| post(&admin, "a/parked/run", "k1", json!(1)));
    let answers = futures::future::join_all(posts).await;
    let first = answers[0].2["runId"].clone();
    assert!(answers.iter().all(|(status, _, body)| *status == 202 && body["runId"] == first), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed, _)| !replayed).count(), 1, "{answers:?}");
    assert_eq!(post(&admin, "a/parked/run", "k2", json!(1)).await.2["code"], "busy");
    let (status, _, body) = post(&admin, "a/parked/run", "k1", json!(2)).await;
    assert_eq!((status, &body["code"], &body["runId"]), (422, &json!("idempotency_key_reused"), &first));

    let (status, replayed, ran) = post(&admin, "a/quick/run?wait=60", "\"k1\"", json!(7)).await;
    assert_eq!((status, replayed, &ran["summary"]), (200, false, &json!("got 7")), "the key is the automation's own");
    let (status, replayed, again) = post(&admin, "a/quick/run", "k1", json!(7)).await;
    assert_eq!((status, replayed, &again), (200, true, &ran), "quoted or not, it is the same key");

    served.kill();
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let (status, replayed, body) = post(&admin, "a/parked/run?wait=60", "k1", json!(1)).await;
    assert_eq!((status, replayed, &body["runId"]), (200, true, &first));
    assert_eq!((&body["status"], &body["errorCode"]), (&json!("error"), &json!("interrupted")));
    let (_, replayed, again) = post(&admin, "a/quick/run", "k1", json!(7)).await;
    assert_eq!((replayed, &again), (true, &ran));
    assert_eq!(root.sql("a", "select count(*) from runs"), ["2"]);
    for key in ["", "a b", &"x".repeat(256)] {
        let (status, _, body) = post(&admin, "a/quick/run", key, json!(1)).await;
        assert_eq!((status, &body["code"]), (400, &json!("bad_idempotency_key")), "{key:?}");
    }
    // What a client waits for is the end of the first run, also when that goes on.
    let (status, _, parked) = post(&admin, "a/parked/run", "k3", json!(1)).await;
    assert_eq!(status, 202);
    let cancel = format!("/v1/runs/{}/cancel", parked["runId"].as_str().expect("an id"));
    let (waited, cancelled) =
        tokio::join!(post(&admin, "a/parked/run?wait=60", "k3", json!(1)), admin.post(&cancel, json!({})));
    assert_eq!((waited.0, waited.1, &waited.2["status"]), (200, true, &json!("cancelled")));
    assert_eq!(cancelled.0, StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_answer_in_one_shape_with_the_status_of_their_code() {
    let root = Root::copy_of("fixtures/apps");
    // Its server comes from npm, and has tests of its own.
    std::fs::remove_file(root.join("mcp.json")).expect("it names a server");
    root.write("broken/app.json", "{");
    root.write("bad/app.json", "{\"queries\": [{\"name\": \"throws\"}]}");
    root.write("bad/queries/throws.js", "export default () => { throw new Error('on purpose'); };");
    root.write("mcp.json", r#"{"mcpServers": {"half": {}}}"#);
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    for (tool, args, status, code) in [
        ("centraid_describe", json!({}), 200, None),
        ("centraid_describe", json!({ "app": "bookshelf", "query": "books" }), 200, None),
        ("centraid_read", json!({ "app": "bookshelf", "query": "books", "input": { "limit": 3 } }), 200, None),
        ("centraid_raed", json!({}), 404, Some("unknown_tool")),
        ("github.create_issue", json!({}), 404, Some("unknown_tool")),
        ("centraid_describe", json!({ "app": "nope" }), 404, Some("UNKNOWN_APP")),
        ("centraid_read", json!({ "app": "bookshelf", "query": "nope" }), 404, Some("UNKNOWN_QUERY")),
        ("centraid_write", json!({ "app": "bookshelf", "action": "nope" }), 404, Some("UNKNOWN_ACTION")),
        ("centraid_read", json!({ "app": "bookshelf", "query": "add_book" }), 400, Some("WRONG_KIND")),
        (
            "centraid_read",
            json!({ "app": "bookshelf", "query": "books", "input": { "limit": 0 } }),
            400,
            Some("INVALID_INPUT"),
        ),
        ("centraid_read", json!([]), 400, Some("INVALID_INPUT")),
        ("centraid_describe", json!({ "app": "broken" }), 400, Some("INVALID_MANIFEST")),
        ("centraid_read", json!({ "app": "bad", "query": "throws" }), 500, Some("HANDLER_ERROR")),
    ] {
        let (got, body) = admin.post(&format!("/centraid/_tool/{tool}"), args.clone()).await;
        assert_eq!((got.as_u16(), body["error"]["code"].as_str()), (status, code), "{tool} {args}: {body}");
        assert_eq!(body["isError"], code.is_some(), "{tool} {args}");
        assert_eq!(body.get("data").is_some(), code.is_none(), "{tool} {args}");
        if code.is_some() {
            let message = body["error"]["message"].as_str().expect("a message");
            assert!(!message.is_empty() && !message.contains(root.path().to_str().expect("text")), "{message}");
        }
    }
    let (_, catalog) = admin.get("/v1/tools").await;
    let names: Vec<&str> =
        catalog["tools"].as_array().expect("tools").iter().filter_map(|t| t["name"].as_str()).collect();
    assert_eq!(names, ["centraid_describe", "centraid_read", "centraid_write"]);
    let app = |id: &str| {
        let apps = catalog["apps"].as_array().expect("apps").iter();
        apps.clone().find(|app| app["app"]["id"] == id).expect("an app").clone()
    };
    assert_eq!(app("bookshelf")["queries"][0]["name"], "books");
    assert_eq!(app("broken")["error"]["code"], "INVALID_MANIFEST");
    let half = &catalog["mcp"][0];
    assert_eq!((&half["server"], &half["error"]["code"]), (&json!("half"), &json!("mcp_not_configured")));
    assert_eq!(catalog["problems"][0]["field"], "mcpServers.half");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_read_by_another_program_and_count_what_happened() {
    let root = Root::new();
    root.automation("a/x", "\"triggers\": [{\"kind\": \"cron\", \"expr\": \"0 0 1 1 *\"}]", "export default () => {};");
    root.automation("a/fails", "\"enabled\": false", "export default () => { throw new Error('no'); };");
    root.automation("a/parked", "", PARKED);
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    for handle in ["a/x", "a/x", "a/fails"] {
        run(&daemon, handle, None).await;
    }
    let (_parked, _end) = start(&daemon, "a/parked", None).await;
    let response = within(admin.request(Method::GET, "/metrics").send()).await.expect("an answer");
    assert!(response.headers()["content-type"].to_str().expect("text").starts_with("application/openmetrics-text"));
    let text = within(response.text()).await.expect("text");
    let exposition =
        openmetrics_parser::openmetrics::parse_openmetrics(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    for family in [
        "dirigent_build",
        "dirigent_fires",
        "dirigent_run_duration_seconds",
        "dirigent_slots_used",
        "dirigent_hosts",
        "dirigent_ledger_commits",
        "dirigent_watcher_mode",
        "dirigent_event_streams",
        "dirigent_start_time_seconds",
    ] {
        assert!(exposition.families.contains_key(family), "{family}: {text}");
    }
    for line in [
        "dirigent_fires_total{origin=\"manual\",status=\"ok\"} 2",
        "dirigent_fires_total{origin=\"manual\",status=\"error\"} 1",
        "dirigent_run_duration_seconds_count{status=\"ok\"} 2",
        "dirigent_runs_open 1",
        "dirigent_slots_used 1",
        "dirigent_triggers_armed 1",
        "dirigent_automations{state=\"enabled\"} 2",
        "dirigent_automations{state=\"disabled\"} 1",
        "dirigent_ledgers_open 1",
        "dirigent_ledgers_blocked 0",
        "dirigent_event_streams 0",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}: {text}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_is_not_ready_and_takes_no_fires() {
    let root = Root::new();
    root.automation("a/parked", "", PARKED);
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    assert_eq!(answer(admin.request(Method::GET, "/readyz")).await.0, StatusCode::OK);
    let (_run, _end) = start(&daemon, "a/parked", None).await;
    let stopping = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.stop(crate::harness::PATIENCE).await }
    });
    let refused = async {
        loop {
            let (status, body) = admin.get("/readyz").await;
            if status != StatusCode::OK {
                return (status, body);
            }
        }
    };
    let (status, body) = within(refused).await;
    assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("stopping")));
    let (status, body) = admin.post("/v1/automations/a/parked/run", json!({})).await;
    assert_eq!((status, &body["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("stopping")));
    assert_eq!(answer(admin.request(Method::GET, "/healthz")).await.0, StatusCode::OK, "it is still there");
    stopping.abort();
    daemon.stop(std::time::Duration::ZERO).await;
}
