//! The hook listener over real HTTP: what it answers, whom it lets in, and what it does with a body.

mod cli;
mod connections;
mod deliveries;
mod stopping;

use std::net::SocketAddr;
use std::time::Duration;

use dirigent::clock::{Clock, TestClock};
use dirigent::config::Config;
use dirigent::daemon::Daemon;
use dirigent::fire::AppId;
use dirigent::gateway::hooks::{self, Bounds, signature};
use dirigent::ledger::faults::{Point, SQLITE_FULL};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Digest;
use tokio::sync::oneshot;

use crate::harness::{Root, until, within};

const SECRET: &str = "s3cret";
const ECHO: &str = "export default ({ input, ctx }) => ({ summary: typeof input + ' ' + JSON.stringify(input) });";
const PARKED: &str = "export default () => new Promise((done) => setTimeout(done, 1e8));";
/// 2026-03-02T00:00:00Z.
const START: i64 = 1_772_409_600_000;

/// The field of a webhook with this slug and the usual secret.
fn webhook(slug: &str, more: &str) -> String {
    webhook_of(slug, SECRET, more)
}

fn webhook_of(slug: &str, secret: &str, more: &str) -> String {
    let hash = hex::encode(sha2::Sha256::digest(secret));
    format!(r#""triggers": [{{"kind": "webhook", "id": "{slug}", "secretHash": "{hash}"{more}}}]"#)
}

/// What was answered.
#[derive(Debug)]
struct Answered {
    status: u16,
    body: Value,
    headers: reqwest::header::HeaderMap,
}

impl Answered {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn run(&self) -> String {
        self.body["runId"].as_str().unwrap_or_else(|| panic!("no run in {self:?}")).to_owned()
    }
}

async fn answer(request: RequestBuilder) -> Answered {
    let response = within(request.send()).await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = within(response.bytes()).await.expect("a body");
    Answered { status, body: serde_json::from_slice(&body).unwrap_or(Value::Null), headers }
}

/// A hook listener, in this process or another.
struct Hooks {
    base: String,
    client: reqwest::Client,
    /// Dropping it stops a listener of this process.
    _shut: Option<oneshot::Sender<()>>,
}

impl Hooks {
    fn at(address: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = if address.starts_with("http") { address.to_owned() } else { format!("http://{address}") };
        Self { base, client: reqwest::Client::new(), _shut: None }
    }

    async fn of(daemon: &Daemon, root: &Root) -> Self {
        Self::bounded(daemon, root, Bounds::default()).await.0
    }

    async fn bounded(daemon: &Daemon, root: &Root, bounds: Bounds) -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let settings = Config::load(root.path()).expect("settings").hooks;
        let (shut, shut_rx) = oneshot::channel::<()>();
        tokio::spawn(hooks::serve(daemon.clone(), listener, settings, bounds, async {
            let _ = shut_rx.await;
        }));
        let hooks = Self::at(&address.to_string());
        (Self { _shut: Some(shut), ..hooks }, address)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// A post with the usual secret.
    fn post(&self, slug: &str) -> RequestBuilder {
        self.request(Method::POST, &format!("/_centraid-hook/{slug}")).bearer_auth(SECRET)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_the_table() {
    let root = Root::new();
    root.write("dirigent.toml", "[hooks]\nposts_per_minute = 30\n");
    root.automation("a/echo", &webhook("echo", ""), ECHO);
    root.automation("a/quiet", &webhook("quiet", ""), "export default () => {};");
    root.automation("a/throws", &webhook("throws", ""), "export default () => { throw new Error('no luck'); };");
    root.automation("a/parked", &webhook("parked", ""), PARKED);
    root.automation("a/off", &format!(r#""enabled": false, {}"#, webhook("off", "")), ECHO);
    let filter = r#", "filter": {"type": "object", "required": ["action"]}"#;
    root.automation("a/picky", &webhook("picky", filter), ECHO);
    root.automation("a/pending", r#""triggers": [{"kind": "webhook", "pending": true}]"#, ECHO);
    root.automation("a/limited", &webhook("limited", ""), ECHO);
    root.automation("b/full", &webhook("full", ""), ECHO);
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let hooks = Hooks::of(&daemon, &root).await;
    let plain = |method: Method, path: &str| hooks.request(method, path);
    let at = |slug: &str| format!("/_centraid-hook/{slug}");

    // 200
    let got = answer(hooks.post("echo").body(r#"{"a": 1}"#)).await;
    assert_eq!((got.status, &got.body["summary"]), (200, &json!(r#"object {"a":1}"#)), "{got:?}");
    assert_eq!((&got.body["ok"], &got.body["status"]), (&json!(true), &json!("ok")));
    let row = format!("select status, trigger_origin, trigger_json from runs where run_id = '{}'", got.run());
    assert_eq!(root.sql("a", &row), [r#"ok|webhook|{"slug":"echo"}"#]);
    assert_eq!(got.header("content-type"), Some("application/json"));
    let got = answer(hooks.post("quiet")).await;
    assert_eq!(got.body, json!({ "ok": true, "runId": got.run(), "status": "ok" }), "no summary");

    // 202
    let parked = answer(hooks.post("parked?wait=0.01")).await;
    let run = parked.run();
    assert_eq!((parked.status, parked.body), (202, json!({ "ok": true, "runId": run, "status": "running" })));

    // 409
    let busy = answer(hooks.post("parked")).await;
    assert_eq!((busy.status, busy.run()), (409, run));
    assert!(busy.body["error"].is_string() && busy.body.as_object().is_some_and(|o| o.len() == 2), "{busy:?}");

    // 500
    let got = answer(hooks.post("throws")).await;
    let body = json!({ "ok": false, "runId": got.run(), "status": "error", "error": got.body["error"] });
    assert_eq!((got.status, &got.body), (500, &body));
    assert!(got.body["error"].as_str().is_some_and(|told| told.contains("no luck")), "{got:?}");

    // 503, and what is right again when the disk is.
    let full = AppId::new("b").expect("a name");
    assert_eq!(answer(hooks.post("full")).await.status, 200);
    daemon.services().ledgers.faults().strike(&full, Point::Commit, SQLITE_FULL, u32::MAX);
    let got = answer(hooks.post("full").header("webhook-id", "f1")).await;
    assert_eq!((got.status, got.body["error"].is_string()), (503, true), "{got:?}");
    assert!(got.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{got:?}");
    daemon.services().ledgers.faults().strike(&full, Point::Commit, SQLITE_FULL, 0);
    assert_eq!(answer(hooks.post("full").header("webhook-id", "f1")).await.status, 200);

    let large = "x".repeat(64 * 1024 + 1);
    let chunked = || reqwest::Body::wrap_stream(futures::stream::iter([Ok::<_, std::io::Error>(large.clone())]));
    let no_wait = hooks.post("quiet").header("prefer", "respond-async");
    for (what, request, status, part) in [
        ("respond-async", no_wait, 202, json!({ "ok": true })),
        ("disabled", hooks.post("off"), 200, json!({ "ok": false, "skipped": "automation disabled" })),
        ("filtered", hooks.post("picky").body("{}"), 200, json!({ "ok": false, "skipped": "filter" })),
        ("filtered, empty", hooks.post("picky"), 200, json!({ "ok": false, "skipped": "filter" })),
        ("passed", hooks.post("picky").body(r#"{"action":1}"#), 200, json!({ "ok": true })),
        ("no secret", plain(Method::POST, &at("echo")), 401, json!({})),
        ("a wrong secret", plain(Method::POST, &at("echo")).bearer_auth("S3cret"), 401, json!({})),
        ("no secret, disabled", plain(Method::POST, &at("off")), 401, json!({})),
        ("no secret, too large", plain(Method::POST, &at("echo")).body(large.clone()), 401, json!({})),
        (
            "the other header",
            plain(Method::POST, &at("quiet")).header("x-openclaw-webhook-secret", SECRET),
            200,
            json!({ "ok": true }),
        ),
        ("unknown", hooks.post("nope"), 404, json!({})),
        ("pending", hooks.post("pending"), 404, json!({})),
        ("no slug", hooks.post(""), 404, json!({})),
        ("a slash", hooks.post("echo/"), 404, json!({})),
        ("an escape", hooks.post("%65cho"), 404, json!({})),
        ("no grammar", hooks.post("e.cho"), 404, json!({})),
        ("elsewhere", plain(Method::POST, "/v1/automations").bearer_auth(SECRET), 404, json!({})),
        ("elsewhere, read", plain(Method::GET, "/"), 404, json!({})),
        ("read", plain(Method::GET, &at("echo")), 405, json!({})),
        ("read, unknown", plain(Method::GET, &at("no.pe")), 405, json!({})),
        ("put", plain(Method::PUT, &at("echo")).bearer_auth(SECRET), 405, json!({})),
        ("asked from a page", plain(Method::OPTIONS, &at("echo")), 405, json!({})),
        ("too large", hooks.post("echo").body(large.clone()), 413, json!({})),
        ("too large, in pieces", hooks.post("echo").body(chunked()), 413, json!({})),
        ("large", hooks.post("quiet").body(large[1..].to_owned()), 200, json!({ "ok": true })),
        ("no wait at all", hooks.post("quiet?wait=long"), 400, json!({})),
        ("too long a wait", hooks.post("quiet?wait=60.5"), 400, json!({})),
        ("a wait that is none", hooks.post("quiet?wait=NaN"), 400, json!({})),
        ("a wait before now", hooks.post("quiet?wait=-1"), 400, json!({})),
        ("the longest wait", hooks.post("quiet?wait=60&x=1"), 200, json!({ "ok": true })),
    ] {
        // The unfinished run of one post must not be in the way of the next.
        until(&daemon, "quiet is idle", |state| {
            !state.open_runs().any(|run| run.handle.automation.as_str() == "quiet")
        })
        .await;
        let got = answer(request).await;
        assert_eq!(got.status, status, "{what}: {got:?}");
        for (name, value) in part.as_object().expect("an object") {
            assert_eq!(&got.body[name], value, "{what}");
        }
        if part == json!({}) {
            let told = got.body.as_object().is_some_and(|body| body.len() == 1 && body["error"].is_string());
            assert!(told, "{what}: {got:?}");
        }
        assert_eq!(got.header("allow").is_some(), status == 405, "{what}");
        assert!(status != 405 || got.header("allow") == Some("POST"), "{what}");
    }
    let rows = root.sql("a", "select status, trigger_json from runs where automation_id = 'picky' order by rowid");
    let skipped = r#"skipped|{"slug":"picky","reason":"filter"}"#;
    assert_eq!(rows, [skipped, skipped, r#"ok|{"slug":"picky"}"#]);
    assert_eq!(root.sql("a", "select count(*) from runs where automation_id = 'off'"), ["0"]);

    // 429, after the secret; a stranger uses nothing up.
    for _ in 0..40 {
        assert_eq!(answer(plain(Method::POST, &at("limited")).bearer_auth("x")).await.status, 401);
    }
    clock.set(START + 1_000);
    for _ in 0..30 {
        assert_eq!(answer(hooks.post("limited")).await.status, 200);
    }
    clock.set(START + 20_000);
    let got = answer(hooks.post("limited").body(large.clone())).await;
    assert_eq!((got.status, got.header("retry-after")), (429, Some("41")), "{got:?}");
    assert_eq!(answer(hooks.post("echo")).await.status, 200, "each has its own");
    clock.set(START + 61_000);
    assert_eq!(answer(hooks.post("limited")).await.status, 200);

    let healthy = within(plain(Method::GET, "/healthz").send()).await.expect("an answer");
    assert_eq!((healthy.status().as_u16(), healthy.text().await.expect("text").as_str()), (200, "ok\n"));
    let got = answer(plain(Method::POST, "/healthz")).await;
    assert_eq!((got.status, got.header("allow")), (405, Some("GET, HEAD")));
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_what_the_handler_gets() {
    let root = Root::new();
    root.automation(
        "a/echo",
        &webhook("echo", ""),
        "export default ({ input, ctx }) => ({ summary: `${typeof input} ${JSON.stringify(input)} ${input === ctx.input}`.slice(0, 60) });",
    );
    let daemon = root.daemon().await;
    let hooks = Hooks::of(&daemon, &root).await;
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for (body, summary) in [
        (b"".as_slice(), "undefined undefined true"),
        (br#"{"a":[1,2]}"#, r#"object {"a":[1,2]} true"#),
        (b"null", "object null true"),
        (b"7", "number 7 true"),
        (b"hello", r#"string "hello" true"#),
        (b"a=1&b=2", r#"string "a=1&b=2" true"#),
        (b"\xff\xfeA", "string \"\u{fffd}\u{fffd}A\" true"),
        (br#"{"__proto__": {"x": 1}}"#, r#"object {"__proto__":{"x":1}} true"#),
        (br#"["\ud800", "\udc00\ud800"]"#, r#"object ["\ud800","\udc00\ud800"] true"#),
        (b"1e999", "number null true"),
        (b"\0\x01", "string \"\\u0000\\u0001\" true"),
        (deep.as_bytes(), "string \"[[[[["),
    ] {
        let got = answer(hooks.post("echo").body(body.to_vec())).await;
        assert_eq!(got.status, 200, "{got:?}");
        let told = got.body["summary"].as_str().unwrap_or_default();
        assert!(told.starts_with(summary), "{told:?} is not {summary:?}");
    }
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_over_the_raw_bytes_stands_in_place_of_the_secret() {
    use dirigent::core::manifest::{SecretRef, Verify, VerifyScheme};
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let root = Root::new();
    let schemes = ["standard-webhooks", "github", "stripe", "hmac-sha256"];
    for scheme in schemes {
        let verify = format!(r#", "verify": {{"scheme": "{scheme}", "secretRef": "file:secrets/hook"}}"#);
        root.automation(&format!("a/{scheme}"), &webhook(scheme, &verify), ECHO);
    }
    root.write("a/secrets/hook", &format!("{KEY}\n"));
    let now_s = START / 1000;
    let daemon = root.daemon_at(Clock::Test(TestClock::at(START))).await;
    let hooks = Hooks::of(&daemon, &root).await;
    let body = b"{ \"spaced\" :  1 }\n";
    let signed = |scheme: &str, key: &str, at_s: i64| {
        let scheme = VerifyScheme::parse(scheme).expect("a scheme");
        let verify = Verify { scheme, secret_ref: SecretRef::Env("X".to_owned()), header: None };
        let signed = signature::sign(&verify, key.as_bytes(), &format!("m{at_s}"), at_s, body).expect("a key");
        signature::to_headers(signed).expect("headers")
    };
    for scheme in schemes {
        let post = |headers, body: &[u8]| {
            hooks.request(Method::POST, &format!("/_centraid-hook/{scheme}")).headers(headers).body(body.to_vec())
        };
        let timed = ["standard-webhooks", "stripe"].contains(&scheme);
        let other = format!("{}AAAA", &KEY[..KEY.len() - 4]);
        for (what, request, status) in [
            ("signed", post(signed(scheme, KEY, now_s), body), 200),
            ("signed otherwise", post(signed(scheme, &other, now_s), body), 401),
            ("another body", post(signed(scheme, KEY, now_s), &body[1..]), 401),
            ("too old", post(signed(scheme, KEY, now_s - 301), body), if timed { 401 } else { 200 }),
            ("too early", post(signed(scheme, KEY, now_s + 301), body), if timed { 401 } else { 200 }),
            ("old", post(signed(scheme, KEY, now_s - 300), body), 200),
            ("the minted secret", hooks.post(scheme).body(body.to_vec()), 401),
            ("too large", post(signed(scheme, KEY, now_s), &[b'x'; 65_537]), 413),
        ] {
            let got = answer(request).await;
            assert_eq!(got.status, status, "{scheme}, {what}: {got:?}");
        }
    }
    let ids = root.sql("a", "select json_extract(trigger_json, '$.deliveryId') from runs where automation_id = 'standard-webhooks' order by rowid");
    assert_eq!(ids, [format!("m{now_s}"), format!("m{}", now_s - 300)], "the id that was signed");

    // A sender changes over: both are good, then the new one alone; then there is none.
    let post = |key: &str| {
        hooks.request(Method::POST, "/_centraid-hook/github").headers(signed("github", key, now_s)).body(body.to_vec())
    };
    for (file, old, new) in [("new\nold\n", 200, 200), ("new", 401, 200), ("\n", 401, 401)] {
        root.write("a/secrets/hook", file);
        assert_eq!((answer(post("old")).await.status, answer(post("new")).await.status), (old, new), "{file:?}");
    }
    std::fs::remove_file(root.join("a/secrets/hook")).expect("it was there");
    assert_eq!(answer(post("new")).await.status, 401);
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_says_holds_at_once() {
    let root = Root::new();
    root.automation("a/x", &webhook("x", ""), ECHO);
    let daemon = root.daemon().await;
    let hooks = Hooks::of(&daemon, &root).await;
    let post = |secret: &str| hooks.request(Method::POST, "/_centraid-hook/x").bearer_auth(secret);
    let x = || crate::harness::handle("a/x");
    assert_eq!(answer(post(SECRET)).await.status, 200);

    root.manifest("a/x", &webhook_of("x", "rotated", ""));
    let hash: [u8; 32] = sha2::Sha256::digest("rotated").into();
    until(&daemon, "the new secret", move |state| {
        state.registry.get(&x()).and_then(|a| a.webhook()).is_some_and(|w| w.secret_sha256 == Some(hash))
    })
    .await;
    assert_eq!((answer(post(SECRET)).await.status, answer(post("rotated")).await.status), (401, 200));

    root.manifest("b/x", &webhook("x", ""));
    until(&daemon, "two claim it", |state| state.registry.by_webhook("x").is_none()).await;
    assert_eq!((answer(post("rotated")).await.status, answer(post(SECRET)).await.status), (404, 404));
    std::fs::remove_dir_all(root.join("b")).expect("it was there");
    until(&daemon, "one claims it", |state| state.registry.by_webhook("x").is_some()).await;
    assert_eq!(answer(post("rotated")).await.status, 200);

    root.manifest("a/x", &format!(r#""enabled": false, {}"#, webhook_of("x", "rotated", "")));
    until(&daemon, "it is off", move |state| !state.registry.get(&x()).expect("it").enabled()).await;
    let got = answer(post("rotated")).await;
    assert_eq!((got.status, &got.body["skipped"]), (200, &json!("automation disabled")));

    root.write("a/automations/x/automation.json", "{ \"name\": ");
    until(&daemon, "it is broken", move |state| !state.registry.get(&x()).expect("it").valid).await;
    assert_eq!(answer(post("rotated")).await.status, 404, "it fails closed");
    daemon.stop(Duration::ZERO).await;
}
