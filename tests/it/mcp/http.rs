//! Servers over HTTP that do what they should not: each fails its own call, with a reason and without a secret.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::{call, one, root_with};
use crate::admin::Admin;
use crate::harness::{Root, within};

/// What is set as a header, and must be seen nowhere else.
const SECRET: &str = "hunter2hunter2";

/// A server in this process. Its tools are its misdeeds.
#[derive(Clone, Default)]
struct Server {
    seen: Arc<Mutex<Seen>>,
    comes: Arc<Notify>,
}

#[derive(Default)]
struct Seen {
    /// Sessions that were opened, the last of which is good, unless it was forgotten.
    sessions: u32,
    forgotten: bool,
    forgets_all: bool,
    /// What a request of a session that is not known is answered with.
    forgets: Option<(u16, String)>,
    /// What each greeting is answered with instead, as `(status, headers)`.
    greeting: Option<(u16, Vec<(&'static str, String)>)>,
    /// Methods, with the tools that were called.
    requests: Vec<String>,
    /// Let go when the test says so.
    held: Option<watch::Receiver<bool>>,
    /// What has come and was not looked for yet.
    news: Vec<String>,
}

impl Server {
    async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        base
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic")
    }

    fn methods(&self) -> Vec<String> {
        self.seen().requests.clone()
    }

    fn notes(&self, what: String) {
        let mut seen = self.seen();
        seen.requests.push(what.clone());
        seen.news.push(what);
        self.comes.notify_one();
    }

    /// Waits until one more of these has come.
    async fn asked_for(&self, what: &str) {
        loop {
            let at = self.seen().news.iter().position(|new| new == what);
            match at {
                Some(at) => {
                    self.seen().news.remove(at);
                    return;
                }
                None => within(self.comes.notified()).await,
            }
        }
    }
}

fn plain(status: u16, content_type: &str, body: impl Into<Body>) -> Response {
    Response::builder().status(status).header("content-type", content_type).body(body.into()).expect("one")
}

fn result(id: &Value, result: Value) -> Response {
    plain(200, "application/json", json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string())
}

fn text(id: &Value, text: &str) -> Response {
    result(id, json!({"content": [{"type": "text", "text": text}]}))
}

/// An error of the protocol, as the body of a refusal.
fn refusal(status: u16, more: Value) -> Response {
    let mut body = json!({"jsonrpc": "2.0", "error": {"code": -32000, "message": format!("bad, {SECRET}")}});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    plain(status, "application/json", body.to_string())
}

const TOOLS: &[&str] = &[
    "fine",
    "waits",
    "fails",
    "refuses",
    "refuses-nobody",
    "refuses-null",
    "refuses-by-id",
    "conflicts",
    "fails-in-json",
    "accepts",
    "empty",
    "limits",
    "endless",
    "endless-stream",
    "drops",
    "nothing",
    "html",
    "binary",
    "stranger",
    "forbids",
    "moves",
    "silent",
];

async fn answer(State(server): State<Server>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/slash" {
        let mut response = plain(307, "text/plain", "");
        response.headers_mut().insert("location", "/slash/".parse().expect("a header"));
        return response;
    }
    let body = axum::body::to_bytes(body, 1 << 24).await.expect("a body");
    if parts.method != "POST" {
        server.notes(parts.method.to_string());
        return plain(405, "text/plain", "");
    }
    let message: Value = serde_json::from_slice(&body).expect("JSON");
    let method = message["method"].as_str().unwrap_or_default().to_owned();
    let id = message["id"].clone();
    let session = parts.headers.get("mcp-session-id").map(|value| value.to_str().expect("a text").to_owned());
    let tool = message["params"]["name"].as_str().map(|name| format!(" {name}")).unwrap_or_default();
    server.notes(format!("{method}{tool}"));
    {
        let mut seen = server.seen();
        if method == "initialize" {
            if let Some((status, headers)) = &seen.greeting {
                let mut response = plain(*status, "text/plain", format!("no, {SECRET}"));
                for (name, value) in headers {
                    response.headers_mut().insert(*name, value.parse().expect("a header"));
                }
                return response;
            }
            seen.sessions += 1;
            seen.forgotten = false;
            let info = json!({"name": "hostile", "version": "1"});
            let told = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info});
            let mut response = result(&id, told);
            response.headers_mut().insert("mcp-session-id", seen.sessions.to_string().parse().expect("a header"));
            return response;
        }
        if seen.forgotten || (seen.forgets_all && !id.is_null()) || session != Some(seen.sessions.to_string()) {
            let (status, body) = seen.forgets.clone().unwrap_or((404, "who are you?".to_owned()));
            return plain(status, "application/json", body);
        }
    }
    match method.as_str() {
        "tools/list" => {
            let tools: Vec<Value> =
                TOOLS.iter().map(|name| json!({"name": name, "description": SECRET, "inputSchema": {}})).collect();
            result(&id, json!({ "tools": tools }))
        }
        "tools/call" => misdeed(&server, message["params"]["name"].as_str().unwrap_or_default(), &id).await,
        _ => plain(202, "text/plain", ""),
    }
}

async fn misdeed(server: &Server, tool: &str, id: &Value) -> Response {
    let endless = || futures::stream::repeat_with(|| Ok::<_, Infallible>(vec![b'x'; 1 << 16]));
    match tool {
        "fine" => text(id, "fine"),
        "waits" => {
            let held = server.seen().held.clone();
            held.expect("something to wait for").wait_for(|free| *free).await.expect("the test lives");
            text(id, "waited")
        }
        "fails" => plain(500, "text/html", format!("<h1>{SECRET}</h1>")),
        "refuses" => plain(400, "text/plain", format!("bad, {SECRET}")),
        "refuses-nobody" => refusal(400, json!({})),
        "refuses-null" => refusal(400, json!({"id": null})),
        "refuses-by-id" => refusal(400, json!({ "id": id })),
        "conflicts" => refusal(409, json!({"id": "server-error"})),
        "fails-in-json" => refusal(500, json!({})),
        "accepts" => plain(202, "text/plain", ""),
        "empty" => plain(200, "application/json", ""),
        "limits" => plain(429, "text/plain", "slow down"),
        "endless" => plain(200, "application/json", Body::from_stream(endless())),
        "endless-stream" => plain(200, "text/event-stream", Body::from_stream(endless())),
        "drops" => {
            let told = json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "on it"}});
            plain(200, "text/event-stream", format!("data: {told}\n\ndata: {{\"jso"))
        }
        "nothing" => plain(200, "text/event-stream", ""),
        "html" => plain(200, "text/html", "<h1>Welcome</h1>"),
        "binary" => plain(200, "application/json", vec![0xff, 0xfe, 0x00]),
        "stranger" => text(&json!(424_242), "for somebody else"),
        "forbids" => plain(403, "text/plain", format!("not with {SECRET}")),
        "moves" => {
            let mut response = plain(302, "text/plain", "");
            response.headers_mut().insert("location", "/elsewhere".parse().expect("a header"));
            response
        }
        "silent" => std::future::pending().await,
        other => panic!("{other}"),
    }
}

fn root_for(base: &str) -> Root {
    root_with(&json!({"one": {"url": format!("{base}/mcp"), "headers": {"X-Api-Key": SECRET}}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn misdeeds_over_http_fail_the_call_alone() {
    let server = Server::default();
    let (free, held) = watch::channel(false);
    server.seen().held = Some(held);
    let root = root_for(&server.listen().await);
    let daemon = root.daemon().await;
    let waiting = call(&daemon, json!([["one.waits"]]));
    let failing = async {
        server.asked_for("tools/call waits").await;
        for (tool, part) in [
            ("fails", "it answered HTTP 500"),
            ("refuses", "it answered HTTP 400 Bad Request: bad, [redacted]"),
            ("refuses-nobody", "it answered HTTP 400 Bad Request: bad, [redacted]"),
            ("refuses-null", "it answered HTTP 400 Bad Request: bad, [redacted]"),
            ("refuses-by-id", "it answered HTTP 400 Bad Request: bad, [redacted]"),
            ("conflicts", "it answered HTTP 409 Conflict: bad, [redacted]"),
            ("fails-in-json", "it answered HTTP 500 Internal Server Error: bad, [redacted]"),
            ("accepts", "it took the request and answered nothing"),
            ("stranger", "its answer names another request"),
            ("empty", "it answered with what is not of this protocol"),
            ("limits", "it answered HTTP 429"),
            ("forbids", "HTTP 403 Forbidden: not with [redacted]; set `headers` of the server in mcp.json"),
            ("moves", "HTTP 302 Found; it points elsewhere"),
            ("html", "it answered with text/html, which is not of this protocol; check `url`"),
            ("binary", "it answered with what is not of this protocol"),
            ("endless", "exceeded the maximum size of 16777216 bytes"),
            ("endless-stream", "the stream of its answer ended before the answer"),
            ("drops", "the stream of its answer ended before the answer"),
            ("nothing", "the stream of its answer ended before the answer"),
        ] {
            let result = one(&daemon, &format!("one.{tool}")).await;
            assert_eq!(result["code"], "mcp_failed", "{tool}: {result}");
            let message = result["message"].as_str().expect("a message");
            assert!(message.starts_with(&format!("one.{tool}: ")) && message.contains(part), "{tool}: {result}");
            assert!(!message.contains("hunter2"), "{tool}: {result}");
            let called = format!("tools/call {tool}");
            assert_eq!(server.methods().iter().filter(|method| **method == called).count(), 1, "{tool}: asked twice");
            // At once: there is no pause for a server that is up.
            assert_eq!(one(&daemon, "one.fine").await["ok"], "fine", "{tool}");
        }
        free.send_replace(true);
    };
    let (waited, ()) = tokio::join!(waiting, failing);
    assert_eq!(waited[0]["ok"], "waited", "a call in flight outlives the failures of others");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_ends_with_the_time_of_the_call() {
    let server = Server::default();
    let root = root_for(&server.listen().await);
    root.write("dirigent.toml", "[mcp]\ncall_timeout_s = 3\n");
    let daemon = root.daemon().await;
    let result = one(&daemon, "one.silent").await;
    assert_eq!(result["code"], "mcp_timeout", "{result}");
    server.asked_for("notifications/cancelled").await;
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_calls_as_a_run_may_make_are_on_their_way_at_once() {
    let server = Server::default();
    let (free, held) = watch::channel(false);
    server.seen().held = Some(held);
    let root = root_for(&server.listen().await);
    let daemon = root.daemon().await;
    let waiting = call(&daemon, Value::Array(vec![json!(["one.waits"]); 100]));
    let seeing = async {
        for _ in 0..100 {
            server.asked_for("tools/call waits").await;
        }
        free.send_replace(true);
    };
    let (waited, ()) = tokio::join!(waiting, seeing);
    assert!(waited.iter().all(|result| result["ok"] == "waited"), "{waited:?}");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_session_is_opened_again() {
    let error = |message: &str| json!({"jsonrpc": "2.0", "error": {"code": -32000, "message": message}});
    let mut null = error("Bad Request: Server not initialized");
    null["id"] = Value::Null;
    for forgets in [
        None,
        Some((404, error("Session not found").to_string())),
        Some((400, error("Bad Request: No valid session ID provided").to_string())),
        Some((400, null.to_string())),
        Some((400, "unknown Mcp-Session-Id".to_owned())),
    ] {
        let server = Server::default();
        server.seen().forgets = forgets.clone();
        let root = root_for(&server.listen().await);
        let daemon = root.daemon().await;
        assert_eq!(one(&daemon, "one.fine").await["ok"], "fine");
        server.seen().forgotten = true;
        for result in call(&daemon, json!([["one.fine"], ["one.fine"], ["one.fine"]])).await {
            assert_eq!(result["ok"], "fine", "{forgets:?}");
        }
        assert_eq!(server.seen().sessions, 2, "one greeting for all of them: {forgets:?}");
        daemon.stop(Duration::ZERO).await;
    }
}

/// It may have done what it was asked, so that is not repeated; but what is asked next has a new session.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_may_be_of_the_session_renews_it() {
    let server = Server::default();
    server.seen().forgets = Some((400, r#"{"error": "bad request"}"#.to_owned()));
    let root = root_for(&server.listen().await);
    let daemon = root.daemon().await;
    assert_eq!(one(&daemon, "one.fine").await["ok"], "fine");
    server.seen().forgotten = true;
    let result = one(&daemon, "one.fine").await;
    assert_eq!(result["code"], "mcp_failed");
    assert_eq!(result["message"], "one.fine: it answered HTTP 400 Bad Request: bad request");
    assert_eq!(one(&daemon, "one.fine").await["ok"], "fine");
    assert_eq!(server.seen().sessions, 2);
    daemon.stop(Duration::ZERO).await;
}

/// A server that never knows its own sessions is not asked for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_forgotten_at_once_fails_the_call() {
    let server = Server::default();
    let root = root_for(&server.listen().await);
    server.seen().forgets = Some((400, r#"{"error": "no such session"}"#.to_owned()));
    server.seen().forgets_all = true;
    let daemon = root.daemon().await;
    let result = one(&daemon, "one.fine").await;
    assert_eq!(result["message"], "one: tools/list: it answered HTTP 400 Bad Request: no such session", "{result}");
    assert_eq!(server.seen().sessions, 2);
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greeting_that_is_refused_says_what_to_set() {
    let elsewhere = Server::default();
    let other = elsewhere.listen().await;
    let challenge = vec![("www-authenticate", "Bearer realm=\"x\"".to_owned())];
    let away = || vec![("location", format!("{other}/mcp"))];
    let to_headers = "set `headers` of the server in mcp.json";
    let to_url = "nothing is sent there: set the final address as `url`";
    for (status, headers, told, remedy) in [
        (401, challenge.clone(), "authorization (HTTP 401)", to_headers),
        (401, vec![], "HTTP 401 Unauthorized: no, [redacted]", to_headers),
        (403, challenge, "(HTTP 403)", to_headers),
        (403, vec![], "HTTP 403 Forbidden: no, [redacted]", to_headers),
        (404, vec![], "HTTP 404 Not Found: no, [redacted]", "check `url` of the server in mcp.json"),
        (301, away(), "HTTP 301", to_url),
        (302, away(), "HTTP 302", to_url),
        (303, away(), "HTTP 303", to_url),
        (307, away(), "HTTP 307", to_url),
        (308, away(), "HTTP 308", to_url),
        (500, vec![], "it answered HTTP 500", ""),
        (503, vec![("retry-after", "7".to_owned())], "it answered HTTP 503", ""),
    ] {
        let server = Server::default();
        server.seen().greeting = Some((status, headers));
        let root = root_for(&server.listen().await);
        let daemon = root.daemon().await;
        let result = one(&daemon, "one.fine").await;
        let message = result["message"].as_str().expect("a message");
        assert!(message.contains(told) && message.contains(remedy), "{status}: {message}");
        assert!(!message.contains("hunter2"), "{status}: {message}");
        assert_eq!(server.methods(), ["initialize"], "{status}");
        daemon.stop(Duration::ZERO).await;
    }
    assert!(elsewhere.seen().requests.is_empty(), "no other host is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_within_the_host_is_followed() {
    let server = Server::default();
    let root = root_with(&json!({"one": {"url": format!("{}/slash", server.listen().await)}}));
    let daemon = root.daemon().await;
    assert_eq!(one(&daemon, "one.fine").await["ok"], "fine");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_lists_what_the_servers_offer() {
    let server = Server::default();
    let base = server.listen().await;
    let entry = json!({"url": format!("{base}/mcp"), "headers": {"X-Api-Key": SECRET}});
    let root = root_with(&json!({
        "one": entry, "broken": {"command": "/no/such/program"}, "half": {}, "off": {"command": "x", "disabled": true, "odd": 1}, "unset": {"command": "x", "env": {"K": "${NO_SUCH_VARIABLE}"}},
    }));
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    let (status, catalog) = admin.get("/v1/tools").await;
    assert_eq!(status, 200, "{catalog}");
    let servers = catalog["mcp"].as_array().expect("a list");
    let told: Vec<(&str, Option<&str>)> = servers
        .iter()
        .map(|server| (server["server"].as_str().expect("a name"), server["error"]["code"].as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("broken", Some("mcp_failed")),
            ("half", Some("mcp_not_configured")),
            ("off", Some("mcp_not_configured")),
            ("one", None),
            ("unset", Some("mcp_not_configured"))
        ]
    );
    let message = servers[2]["error"]["message"].as_str().expect("a message");
    assert!(message.contains("\"off\" is disabled"), "{message}");
    let tools = servers[3]["tools"].as_array().expect("tools");
    assert_eq!((tools.len(), &tools[0]["name"]), (TOOLS.len(), &json!("fine")));
    assert_eq!(tools[0]["description"], "[redacted]");
    assert_eq!(server.methods().iter().filter(|method| *method == "initialize").count(), 1);
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tried_is_told_each_time_and_where_nobody_listens_is_named() {
    let server = Server::default();
    let url = format!("{}/mcp", server.listen().await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let free = free.expect("an address").to_string();
    let root = root_with(&json!({
        "one": {"url": url, "headers": {"X-Key": "${NO_SUCH_VARIABLE}"}},
        "two": {"url": format!("http://{free}/mcp"), "headrs": {}},
        "gone": {"url": url, "disabled": true},
    }));
    let daemon = root.daemon().await;
    for _ in 0..6 {
        let result = one(&daemon, "one.fine").await;
        assert_eq!(result["code"], "mcp_not_configured", "{result}");
        let message = result["message"].as_str().expect("a message");
        assert!(message.contains("NO_SUCH_VARIABLE is not set") && !message.contains("next try"), "{message}");
    }
    let results = call(&daemon, json!([["two.fine"], ["gone.fine"], ["onne.fine"], ["other.fine"]])).await;
    for (at, code, told) in [
        (0, "mcp_failed", format!("it could not be reached at {free}: ")),
        (1, "mcp_not_configured", "\"gone\" is disabled".to_owned()),
        (2, "tool_not_allowed", "mcp.json has no MCP server \"onne\"; did you mean \"one.fine\"?".to_owned()),
        (3, "tool_not_allowed", "name it in the manifest's `requires.tools`".to_owned()),
    ] {
        assert_eq!(results[at]["code"], code, "{results:?}");
        assert!(results[at]["message"].as_str().expect("a message").contains(&told), "{told}: {}", results[at]);
    }
    assert!(server.methods().is_empty());
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    let (_, catalog) = admin.get("/v1/tools").await;
    let problems = catalog["problems"].as_array().expect("a list");
    let told = problems.iter().find(|problem| problem["field"] == "mcpServers.two.headrs").expect("a warning");
    assert_eq!((&told["severity"], &told["hint"]), (&json!("warning"), &json!("did you mean \"headers\"?")), "{told}");
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_however_fine_shows_a_header() {
    let server = Server::default();
    let root = root_for(&server.listen().await);
    let served = root.serve_with(&["--hooks", "127.0.0.1:0"], &[("DIRIGENT_LOG", "trace")]);
    for tool in ["fine", "refuses", "fails", "forbids"] {
        let told = root.cli(&["run", "a/caller", "--input", &json!([[format!("one.{tool}")]]).to_string()]);
        assert!(told.status.success() && !String::from_utf8_lossy(&told.stdout).contains(SECRET), "{told:?}");
    }
    drop(served);
    let log = std::fs::read_to_string(root.join("serve.log")).expect("a log");
    assert!(log.contains("TRACE") && !log.contains(SECRET), "a secret is in the log");
    // With what is not in its main file yet.
    for part in ["runtime.sqlite", "runtime.sqlite-wal"] {
        let ledger = std::fs::read(root.join("a").join(part)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&ledger).contains(SECRET), "a secret is in {part}");
    }
}
