//! Who is let in, over real HTTP: every combination of credential, `Host`, `Origin`, `Sec-Fetch-Site`, method and kind
//! of content at every sort of resource. What is expected comes from [`expected`], which knows the rules and nothing of
//! the gateway. Requests are written by hand, because clients put a `Host` right that is missing or stands there twice.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Root, Served, within};

/// Requests that are on their way at once on each connection.
const AHEAD: usize = 64;
const CONNECTIONS: usize = 4;

/// What stands at a path, as far as access goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Tells everybody whether the process is there, and nothing else.
    Health,
    /// Of the API, and read only.
    Read,
    /// Of the API, and changes something: answered with this status when it is let in.
    Change(u16),
    /// Makes a link that opens a session; not for sessions.
    Link,
    /// For programs alone: not for sessions, whatever the method. Answered so when a POST is let in.
    Programs(u16),
    /// The dashboard, to who has a session; a page that says how to get in, to others.
    Page,
    /// A file of the dashboard, or the page for logging in: no data.
    Open(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Resource {
    path: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credential {
    None,
    WrongToken,
    /// The right token after another word than `Bearer`.
    OtherScheme,
    Token,
    Session,
    WrongSession,
    /// A token that is given decides alone.
    SessionAndWrongToken,
    /// The session's secret in a cookie of another name.
    OtherCookie,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Exact,
    /// `localhost` and the right port: another name of the same listener.
    Localhost,
    /// A name that somebody else may let point here.
    Other,
    OtherPort,
    NoPort,
    Absent,
    Twice,
    RightThenOther,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Absent,
    /// That of the `Host` header.
    Same,
    Other,
    /// Another server on this machine: the same site, yet another origin.
    OtherPort,
    Https,
    /// What a sandboxed frame or a `data:` page says.
    Null,
    NotText,
}

/// A method with a kind of content.
type Sending = (&'static str, Option<&'static str>);

/// What is tried in every combination, and after it what is tried beside what is right otherwise.
type Choices<T, const MAIN: usize, const RARE: usize> = ([T; MAIN], [T; RARE]);

const CREDENTIALS: Choices<Credential, 4, 4> = (
    [Credential::None, Credential::WrongToken, Credential::Token, Credential::Session],
    [Credential::OtherScheme, Credential::WrongSession, Credential::SessionAndWrongToken, Credential::OtherCookie],
);
const HOSTS: Choices<Host, 4, 4> = (
    [Host::Exact, Host::Other, Host::Absent, Host::Twice],
    [Host::Localhost, Host::OtherPort, Host::NoPort, Host::RightThenOther],
);
const ORIGINS: Choices<Origin, 4, 3> =
    ([Origin::Absent, Origin::Same, Origin::Other, Origin::Null], [Origin::OtherPort, Origin::Https, Origin::NotText]);
const SITES: Choices<Option<&str>, 5, 2> = (
    [None, Some("same-origin"), Some("none"), Some("same-site"), Some("cross-site")],
    [Some("nonsense"), Some("Same-Origin")],
);
const SENDINGS: Choices<Sending, 6, 5> = (
    [
        ("GET", None),
        ("OPTIONS", None),
        ("POST", None),
        ("POST", Some("application/json")),
        ("POST", Some("text/plain;charset=UTF-8")),
        ("POST", Some("application/x-www-form-urlencoded")),
    ],
    [
        ("GET", Some("application/json")),
        ("POST", Some("Application/JSON; charset=utf-8")),
        ("POST", Some("multipart/form-data; boundary=b")),
        ("POST", Some("application/jsonp")),
        ("PUT", Some("application/json")),
    ],
);

#[derive(Debug, Clone)]
struct Ask {
    resource: Resource,
    credential: Credential,
    host: Host,
    origin: Origin,
    site: Option<&'static str>,
    sending: Sending,
}

/// All combinations of the main choices; and each rare one with every pair of main ones that a right request allows.
fn all(resource: &Resource) -> Vec<Ask> {
    let mut asks = Vec::new();
    let mut add = |credential, host, origin, site, sending| {
        asks.push(Ask { resource: resource.clone(), credential, host, origin, site, sending });
    };
    for credential in CREDENTIALS.0 {
        for host in HOSTS.0 {
            for origin in ORIGINS.0 {
                for site in SITES.0 {
                    SENDINGS.0.into_iter().for_each(|sending| add(credential, host, origin, site, sending));
                }
            }
        }
    }
    let (host, origin, site) = (Host::Exact, Origin::Absent, None);
    for sending in SENDINGS.0.into_iter().chain(SENDINGS.1) {
        CREDENTIALS.1.into_iter().for_each(|credential| add(credential, host, Origin::Same, site, sending));
        for credential in [Credential::Token, Credential::Session] {
            HOSTS.1.into_iter().for_each(|host| add(credential, host, Origin::Same, site, sending));
            ORIGINS.1.into_iter().for_each(|origin| add(credential, host, origin, site, sending));
            SITES.1.into_iter().for_each(|site| add(credential, host, origin, site, sending));
            add(credential, host, Origin::Same, Some("same-origin"), sending);
        }
    }
    asks
}

/// The rules, once more.
fn expected(ask: &Ask) -> u16 {
    let Ask { credential, host, origin, site, sending: (method, content), .. } = *ask;
    let kind = ask.resource.kind;
    let reads = method == "GET";
    if kind == Kind::Health {
        return if reads { 200 } else { 405 };
    }
    if !matches!(host, Host::Exact | Host::Localhost) {
        return 421;
    }
    if !matches!(origin, Origin::Absent | Origin::Same) || !matches!(site, None | Some("same-origin" | "none")) {
        return 403;
    }
    match kind {
        Kind::Page if !reads => return 405,
        Kind::Page => return if has_session(credential) { 200 } else { 401 },
        Kind::Open(status) => return if reads { status } else { 405 },
        _ => {}
    }
    let by_session = credential == Credential::Session;
    if !by_session && credential != Credential::Token {
        return 401;
    }
    // Every browser says where a change comes from.
    if by_session && !reads && origin == Origin::Absent && site != Some("same-origin") {
        return 403;
    }
    let json = content
        .is_some_and(|content| content.split(';').next().is_some_and(|c| c.eq_ignore_ascii_case("application/json")));
    match (method, kind) {
        // What takes no POST says so, whatever its body is called.
        ("POST", Kind::Change(_) | Kind::Link | Kind::Programs(_)) if !json => 415,
        (_, Kind::Programs(_)) if by_session => 403,
        ("POST", Kind::Programs(status)) => status,
        ("POST", Kind::Link) if by_session => 403,
        ("POST", Kind::Link) => 200,
        ("POST", Kind::Change(status)) => status,
        ("GET", Kind::Read) => 200,
        _ => 405,
    }
}

/// Whether a page finds one: pages know no tokens.
fn has_session(credential: Credential) -> bool {
    matches!(credential, Credential::Session | Credential::SessionAndWrongToken)
}

impl Ask {
    fn bytes(&self, listener: &Listener) -> Vec<u8> {
        let Listener { token, session, cookie, .. } = listener;
        let port = listener.address.port();
        let ours = format!("127.0.0.1:{port}");
        let (method, content) = self.sending;
        let mut head = format!("{method} {} HTTP/1.1\r\n", self.resource.path).into_bytes();
        let mut add = |name: &str, value: &[u8]| {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        };
        match self.host {
            Host::Exact => add("Host", ours.as_bytes()),
            Host::Localhost => add("Host", format!("localhost:{port}").as_bytes()),
            Host::Other => add("Host", format!("rebound.example:{port}").as_bytes()),
            Host::OtherPort => add("Host", format!("127.0.0.1:{}", port ^ 1).as_bytes()),
            Host::NoPort => add("Host", b"127.0.0.1"),
            Host::Absent => {}
            Host::Twice => ["Host", "host"].into_iter().for_each(|name| add(name, ours.as_bytes())),
            Host::RightThenOther => {
                add("Host", ours.as_bytes());
                add("Host", b"rebound.example");
            }
        }
        let wrong = "0".repeat(token.len());
        match self.credential {
            Credential::None => {}
            Credential::WrongToken => add("Authorization", format!("Bearer {wrong}").as_bytes()),
            Credential::OtherScheme => add("Authorization", format!("Basic {token}").as_bytes()),
            Credential::Token => add("Authorization", format!("Bearer {token}").as_bytes()),
            Credential::Session => add("Cookie", format!("first=1; {cookie}={session}; last=1").as_bytes()),
            Credential::WrongSession => add("Cookie", format!("{cookie}={wrong}").as_bytes()),
            Credential::SessionAndWrongToken => {
                add("Cookie", format!("{cookie}={session}").as_bytes());
                add("Authorization", format!("Bearer {wrong}").as_bytes());
            }
            Credential::OtherCookie => add("Cookie", format!("dirigent_session_1={session}").as_bytes()),
        }
        match self.origin {
            Origin::Absent => {}
            Origin::Same if self.host == Host::Localhost => {
                add("Origin", format!("http://localhost:{port}").as_bytes());
            }
            Origin::Same => add("Origin", format!("http://{ours}").as_bytes()),
            Origin::Other => add("Origin", b"http://evil.example"),
            Origin::OtherPort => add("Origin", format!("http://127.0.0.1:{}", port ^ 1).as_bytes()),
            Origin::Https => add("Origin", format!("https://{ours}").as_bytes()),
            Origin::Null => add("Origin", b"null"),
            Origin::NotText => add("Origin", b"http://\xff"),
        }
        if let Some(site) = self.site {
            add("Sec-Fetch-Site", site.as_bytes());
        }
        if method == "OPTIONS" {
            add("Access-Control-Request-Method", b"POST");
            add("Access-Control-Request-Headers", b"content-type, authorization");
        }
        if let Some(content) = content {
            add("Content-Type", content.as_bytes());
        }
        // Valid JSON whatever it is called: only what it is called may keep it out.
        let body: &[u8] = if method == "POST" { b"{}" } else { b"" };
        add("Content-Length", body.len().to_string().as_bytes());
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(body);
        head
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    /// With names in small letters.
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// A connection that is kept open, and what has come in on it.
struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("it listens"), unread: Vec::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("it reads");
    }

    /// The next answer; its body is taken by its stated length, which every one here has.
    async fn answer(&mut self) -> Answer {
        let end = loop {
            if let Some(end) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            self.read_more().await;
        };
        let head = String::from_utf8(self.unread[..end].to_vec()).expect("a head is text");
        self.unread.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer { status: status.expect("a status"), headers, body: String::new() };
        let length = answer.header("content-length").unwrap_or_else(|| panic!("no length: {answer:?}"));
        let length: usize = length.parse().expect("a number");
        while self.unread.len() < length {
            self.read_more().await;
        }
        answer.body = String::from_utf8(self.unread.drain(..length).collect()).expect("text");
        answer
    }

    async fn read_more(&mut self) {
        let read = within(self.stream.read_buf(&mut self.unread)).await.expect("it answers");
        assert!(read > 0, "the connection was closed; unread: {:?}", String::from_utf8_lossy(&self.unread));
    }
}

struct Listener {
    address: SocketAddr,
    token: String,
    /// The name of the session's cookie, and its secret.
    cookie: String,
    session: String,
    /// Where the dashboard's style sheet is.
    style: String,
}

impl Listener {
    /// With a session that a link of its own has opened.
    async fn of(root: &Root, served: &Served) -> Self {
        let admin = served.ready["admin"].as_str().expect("an address").trim_start_matches("http://");
        let address: SocketAddr = admin.parse().expect("an address");
        let token = std::fs::read_to_string(root.join(".dirigent/token")).expect("a token").trim().to_owned();
        let mut connection = Connection::open(address).await;
        let mut ask = async |head: String| {
            connection.send(format!("{head}\r\nHost: {admin}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
            connection.answer().await
        };
        let link = ask(format!(
            "POST /v1/login-links HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        ));
        let link: serde_json::Value = serde_json::from_str(&link.await.body).expect("JSON");
        let url = link["url"].as_str().expect("an address").to_owned();
        let path = url.strip_prefix(&format!("http://{admin}")).expect("an address here");
        let logged_in = ask(format!("GET {path} HTTP/1.1")).await;
        assert_eq!((logged_in.status, logged_in.header("location")), (303, Some("/")));
        let set = logged_in.header("set-cookie").expect("a cookie");
        let (pair, attributes) = set.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
        let (cookie, session) = pair.split_once('=').expect("a name and a value");
        assert_eq!(ask(format!("GET {path} HTTP/1.1")).await.status, 401, "a link works once");
        let page = ask(format!("GET / HTTP/1.1\r\nCookie: {pair}")).await.body;
        let style = page.split('"').find(|part| part.ends_with("/style.css")).expect("a style sheet").to_owned();
        Self { address, token, cookie: cookie.to_owned(), session: session.to_owned(), style }
    }

    /// Sends all, and gives what was answered otherwise than by the rules, and how many runs were answered for.
    async fn judge(&self, asks: &[Ask]) -> (Vec<String>, usize) {
        let mut connection = Connection::open(self.address).await;
        let (mut wrong, mut runs) = (Vec::new(), 0);
        for some in asks.chunks(AHEAD) {
            for ask in some {
                connection.send(&ask.bytes(self)).await;
            }
            for ask in some {
                let answer = connection.answer().await;
                let cors = answer.headers.iter().any(|(name, _)| name.starts_with("access-control-"));
                if answer.status != expected(ask) || cors {
                    wrong.push(format!("{ask:?}: expected {}, got {}: {}", expected(ask), answer.status, answer.body));
                }
                runs += usize::from(answer.status == 202);
            }
        }
        (wrong, runs)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_of_what_a_request_says_of_itself_is_judged_by_the_rules() {
    let root = Root::new();
    root.automation("a/x", r#""concurrency": {"mode": "queued", "max": 10000}"#, "export default () => {};");
    root.automation("a/y", "", "export default () => {};");
    let served = root.serve();
    let listener = Listener::of(&root, &served).await;
    let manifest = std::fs::read(root.join("a/automations/y/automation.json")).expect("a manifest");
    let resources = [
        ("/healthz", Kind::Health),
        ("/v1/automations", Kind::Read),
        ("/openapi.json", Kind::Read),
        ("/metrics", Kind::Read),
        // Only with what is to be refused.
        ("/v1/automations/a/y/disable", Kind::Change(200)),
        ("/v1/automations/a/x/run", Kind::Change(202)),
        ("/v1/login-links", Kind::Link),
        // What it would rather have said of itself is no question of access.
        ("/mcp", Kind::Programs(406)),
        ("/", Kind::Page),
        (&listener.style, Kind::Open(200)),
        // A code that is no good.
        ("/login", Kind::Open(401)),
    ];
    let asks: Vec<Ask> = resources
        .into_iter()
        .flat_map(|(path, kind)| all(&Resource { path: path.to_owned(), kind }))
        .filter(|ask| ask.resource.kind != Kind::Change(200) || expected(ask) != 200)
        .collect();
    let parts = asks.chunks(asks.len().div_ceil(CONNECTIONS)).map(|part| listener.judge(part));
    let (mut wrong, mut let_in) = (Vec::new(), 0);
    for (w, l) in futures::future::join_all(parts).await {
        wrong.extend(w);
        let_in += l;
    }
    let some: Vec<&String> = wrong.iter().step_by(wrong.len() / 20 + 1).collect();
    assert!(wrong.is_empty(), "{} of {} are wrong, such as {some:#?}", wrong.len(), asks.len());
    let right = asks.iter().filter(|ask| expected(ask) == 202).count();
    assert_eq!(let_in, right);
    let rows = root.sql("a", "select count(*) from runs where trigger_origin = 'manual'");
    assert_eq!(rows, [right.to_string()], "as many runs as were answered so, and {} were asked for", asks.len());
    assert_eq!(std::fs::read(root.join("a/automations/y/automation.json")).expect("a manifest"), manifest);
}

#[test]
fn an_address_that_others_reach_must_be_meant() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let root = Root::new();
        let refused = root.cli(&["--json", "serve", "--admin", address]);
        assert_eq!(refused.status.code(), Some(2), "{address}: {refused:?}");
        assert!(refused.stdout.is_empty(), "{address}: not ready: {refused:?}");
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(told.contains("--i-know"), "{address}: {told}");
        assert!(!root.join(".dirigent/token").exists(), "{address}: nothing was begun");
    }
}
