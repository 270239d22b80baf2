//! The dashboard over real HTTP: who is let in, and what the pages are served with. What the pages do is another test's.

use std::sync::Arc;

use dirigent::clock::{Clock, TestClock};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Root, run, within};

const T0: i64 = 1_800_000_000_000;

/// A daemon in this process with its listener; the client follows no redirects and keeps no cookies.
struct House {
    /// Goes with the daemon.
    _root: Root,
    base: String,
    token: String,
    client: Client,
    clock: Arc<TestClock>,
}

impl House {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = Root::new();
        root.automation("a/x", "", "export default () => ({ summary: 'ran' });");
        let clock = TestClock::at(T0);
        let daemon = root.daemon_at(Clock::Test(Arc::clone(&clock))).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("its address"));
        let token = "t".repeat(64);
        tokio::spawn(dirigent::gateway::admin::serve(daemon, listener, token.clone(), std::future::pending::<()>()));
        let client = Client::builder().redirect(Policy::none()).build().expect("a client");
        Self { _root: root, base, token, client, clock }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.base)).json(&json!({}))
    }

    /// The path of a new link.
    async fn link(&self) -> String {
        let answer: Value = json(send(self.post("/v1/login-links").bearer_auth(&self.token)).await).await;
        let url = answer["url"].as_str().expect("a link");
        assert_eq!(answer["expiresAt"], T0 + 120_000);
        url.strip_prefix(&self.base).expect("a link to where it was asked for").to_owned()
    }

    /// Opens a link; the `name=value` of the cookie.
    async fn session(&self) -> String {
        let answer = send(self.get(&self.link().await)).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        cookie(answer.headers()).split(';').next().expect("a pair").to_owned()
    }
}

async fn send(request: RequestBuilder) -> Response {
    within(request.send()).await.expect("an answer")
}

async fn json(response: Response) -> Value {
    within(response.json()).await.expect("JSON")
}

fn cookie(headers: &HeaderMap) -> &str {
    headers.get("set-cookie").expect("a cookie").to_str().expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_lets_one_browser_in_once() {
    let house = House::new().await;
    let link = house.link().await;
    for other in ["cross-site", "same-site"] {
        let elsewhere = send(house.get(&link).header("sec-fetch-site", other)).await;
        assert_eq!(elsewhere.status(), StatusCode::FORBIDDEN, "{other}");
        assert!(elsewhere.headers().get("set-cookie").is_none());
    }
    let first = send(house.get(&link).header("sec-fetch-site", "none")).await;
    assert_eq!((first.status(), &first.headers()["location"]), (StatusCode::SEE_OTHER, &"/".parse().unwrap()));
    let attributes: Vec<&str> = cookie(first.headers()).split("; ").collect();
    assert_eq!(attributes[1..], ["Path=/", "HttpOnly", "SameSite=Strict"], "and no Domain");

    let late = house.link().await;
    house.clock.set(T0 + 120_000);
    for bad in [link.as_str(), &late, "/login", "/login?code=", "/login?code=00&code=00"] {
        let answer = send(house.get(bad)).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{bad}");
        assert!(answer.headers().get("set-cookie").is_none(), "{bad}");
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/html; charset=utf-8");
        let page = within(answer.text()).await.unwrap();
        assert!(page.contains("dirigent dashboard") && !page.contains("{{"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_opens_the_pages_and_the_api_and_makes_no_links() {
    let house = House::new().await;
    let session = house.session().await;
    let (name, secret) = session.split_once('=').unwrap();
    let from_here = ("origin", house.base.as_str());
    let fire = "/v1/automations/a/x/run?wait=60";
    let (foreign, localhost) = ("http://evil.example", house.base.replace("127.0.0.1", "localhost"));
    for (what, request, status, code) in [
        ("no cookie, page", house.get("/"), 401, None),
        ("no cookie, API", house.get("/v1/automations"), 401, Some("unauthorized")),
        ("page", house.get("/").header("cookie", &session), 200, None),
        ("among others", house.get("/").header("cookie", format!("a=b; {session}; c")), 200, None),
        ("another name", house.get("/").header("cookie", format!("x{session}")), 401, None),
        ("a part of it", house.get("/").header("cookie", format!("{name}={}", &secret[1..])), 401, None),
        ("API", house.get("/v1/automations").header("cookie", &session), 200, None),
        ("no route", house.get("/nope").header("cookie", &session), 404, Some("not_found")),
        (
            "a wrong token beside it",
            house.get("/v1/automations").header("cookie", &session).bearer_auth("x"),
            401,
            Some("unauthorized"),
        ),
        (
            "another host",
            house.get("/v1/automations").header("cookie", &session).header("host", "evil.example"),
            421,
            Some("wrong_host"),
        ),
        ("a page by another host", house.get("/").header("host", "evil.example"), 421, Some("wrong_host")),
        ("a change from nowhere", house.post(fire).header("cookie", &session), 403, Some("cross_site")),
        (
            "a change by navigation",
            house.post(fire).header("cookie", &session).header("sec-fetch-site", "none"),
            403,
            Some("cross_site"),
        ),
        (
            "a change from elsewhere",
            house.post(fire).header("cookie", &session).header("origin", foreign),
            403,
            Some("cross_site"),
        ),
        (
            "a change from another of its names",
            house.post(fire).header("cookie", &session).header("origin", &localhost),
            403,
            Some("cross_site"),
        ),
        (
            "a form from here",
            house
                .client
                .post(format!("{}{fire}", house.base))
                .header("cookie", &session)
                .header(from_here.0, from_here.1),
            415,
            Some("not_json"),
        ),
        ("a change", house.post(fire).header("cookie", &session).header(from_here.0, from_here.1), 200, None),
        (
            "a change by an older browser",
            house.post(fire).header("cookie", &session).header("sec-fetch-site", "same-origin"),
            200,
            None,
        ),
        (
            "a link",
            house.post("/v1/login-links").header("cookie", &session).header(from_here.0, from_here.1),
            403,
            Some("token_needed"),
        ),
    ] {
        let answer = send(request).await;
        assert_eq!(answer.status().as_u16(), status, "{what}");
        if let Some(code) = code {
            assert_eq!(json(answer).await["code"], code, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_it_is_left_alone_or_closed() {
    let house = House::new().await;
    let (left, closed) = (house.session().await, house.session().await);
    let status = async |session: &str| send(house.get("/v1/automations").header("cookie", session)).await.status();
    let hours = 3_600_000;
    for at in [11, 22] {
        house.clock.set(T0 + at * hours);
        assert_eq!(status(&left).await, StatusCode::OK, "{at} h");
        assert_eq!(status(&closed).await, StatusCode::OK, "{at} h");
    }
    let logout = house.post("/v1/logout").header("cookie", &closed).header("origin", &house.base);
    let answer = send(logout).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(cookie(answer.headers()).contains("=; ") && cookie(answer.headers()).contains("Max-Age=0"));
    assert_eq!(status(&closed).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&left).await, StatusCode::OK);
    house.clock.set(T0 + 34 * hours);
    assert_eq!(status(&left).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_are_served_as_what_they_are_and_may_be_kept() {
    let house = House::new().await;
    let session = house.session().await;
    let index = within(send(house.get("/").header("cookie", &session)).await.text()).await.unwrap();
    assert!(!index.contains("{{"), "{index}");
    let named: Vec<&str> = index.split("\"/assets/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(named.len() >= 4, "{named:?}");
    for name in &named {
        let answer = send(house.get(&format!("/assets/{name}"))).await;
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        let kind = match name.rsplit('.').next() {
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(answer.headers()[CONTENT_TYPE], kind, "{name}");
        assert_eq!(answer.headers()["cache-control"], "public, max-age=31536000, immutable", "{name}");
    }
    let app = named.iter().find(|name| name.ends_with("/app.js")).unwrap();
    for gone in [
        format!("/assets/0000000000000000/{}", app.rsplit('/').next().unwrap()),
        format!("/assets/{}", app.replace("app.js", "nope.js")),
        format!("/assets/{}", app.replace("app.js", "..%2f..%2fCargo.toml")),
    ] {
        assert_eq!(send(house.get(&gone)).await.status(), StatusCode::NOT_FOUND, "{gone}");
    }
    let elsewhere = send(house.get(&format!("/assets/{app}")).header("sec-fetch-site", "cross-site")).await;
    assert_eq!(elsewhere.status(), StatusCode::FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_has_the_strict_headers() {
    let house = House::new().await;
    let session = house.session().await;
    let link = house.link().await;
    for (what, request) in [
        ("health", house.get("/healthz")),
        ("refused", house.get("/v1/automations")),
        ("by token", house.get("/v1/automations").bearer_auth(&house.token)),
        ("index", house.get("/").header("cookie", &session)),
        ("door", house.get("/")),
        ("login", house.get(&link)),
        ("no login", house.get("/login")),
        ("asset", house.get("/assets/x/app.js")),
        ("no route", house.get("/nope").bearer_auth(&house.token)),
        ("another host", house.get("/").header("host", "evil.example")),
        ("another method", house.client.request(Method::DELETE, format!("{}/", house.base))),
    ] {
        let answer = send(request).await;
        let headers = answer.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let policy = text("content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.split("; ").any(|part| part == rule), "{what}: {rule} is not in {policy:?}");
        }
        assert!(!policy.contains("unsafe"), "{what}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(text(name), value, "{what}: {name}");
        }
        assert!(headers.get("access-control-allow-origin").is_none(), "{what}");
    }
}

/// The pages' own words for a schedule; what they would get wrong they leave to the expression.
#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_put_into_words_or_left_alone() {
    let root = Root::new();
    let words = include_str!("../../src/gateway/dashboard/cron.js").replace("export function", "function");
    let handler = format!("{words}\nexport default ({{ input }}) => ({{ output: input.map(cronWords) }});");
    root.automation("a/words", "", &handler);
    let daemon = root.daemon().await;
    let table = [
        ("* * * * *", Some("every minute")),
        ("*/5 * * * *", Some("every 5 minutes")),
        ("*/7 * * * *", None),
        ("0 8 * * MON", Some("Mondays at 08:00")),
        ("30 2 * * 1-5", Some("weekdays at 02:30")),
        ("0 22 * * 6,0", Some("weekends at 22:00")),
        ("0 */6 * * *", Some("every 6 hours at :00")),
        ("0 */5 * * *", None),
        ("15,45 * * * *", Some("every hour at :15 and :45")),
        ("*/15 9-17 * * mon-FRI", Some("every 15 minutes from 09:00 to 17:59 on weekdays")),
        ("0 9-17 * * *", Some("every hour from 09:00 to 17:00")),
        ("0,30 9-17 * * *", None),
        ("0 9 1,15 * 1", Some("the 1st and 15th or Mondays at 09:00")),
        ("0 0 29 2 *", Some("the 29th in February at 00:00")),
        ("3 2,14 * * 5-7", Some("Fridays, Saturdays and Sundays at 02:03 and 14:03")),
        ("0 12 * jun-aug *", Some("daily from June to August at 12:00")),
        ("0 8 */2 * *", None),
        ("0 8 * * */2", None),
        ("61 * * *", None),
    ];
    let exprs: Vec<&str> = table.iter().map(|(expr, _)| *expr).collect();
    let (_, end) = run(&daemon, "a/words", Some(&json!(exprs).to_string())).await;
    let told: Vec<Option<String>> = serde_json::from_str(&end.output_json.expect("an output")).expect("words");
    for ((expr, words), told) in table.iter().zip(told) {
        assert_eq!(told.as_deref(), *words, "{expr}");
    }
}

#[test]
fn the_command_prints_a_link_to_the_daemon_that_runs() {
    let root = Root::new();
    let absent = root.cli(&["--json", "dashboard"]);
    assert_eq!(absent.status.code(), Some(3), "{absent:?}");
    let error: Value = serde_json::from_slice(&absent.stderr).expect("JSON");
    assert_eq!(error["error"]["code"], "no_daemon");

    let served = root.serve();
    let admin = served.ready["admin"].as_str().expect("an address");
    let printed = root.cli(&["--json", "dashboard"]);
    let answer: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert!(answer["url"].as_str().is_some_and(|url| url.starts_with(&format!("{admin}/login?code="))), "{answer}");
    assert!(answer["expiresAt"].as_str().is_some_and(|at| at.ends_with('Z')), "{answer}");
    // Here stdout is no terminal, so nothing is opened.
    let printed = root.cli(&["dashboard"]);
    let told = String::from_utf8_lossy(&printed.stdout);
    assert!(printed.status.success() && told.trim().starts_with(admin) && told.lines().count() == 1, "{printed:?}");
}
