//! Who is let in, over real HTTP: every combination of credential, `Host`, `Origin`, `Sec-Fetch-Site`, method and kind
//! of content at every sort of resource. What is expected comes from [`expected`], which knows the rules and nothing of
//! the gateway. Requests are written by hand, because clients put a `Host` right that is missing or stands there twice.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Root, Served, within};

const RUN: &str = "/v1/automations/a/x/run";
/// Requests that are on their way at once on each connection.
const AHEAD: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    /// Tells everybody whether the process is there, and nothing else.
    Health,
    Read(&'static str),
    /// Starts a run.
    Change(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credential {
    None,
    WrongToken,
    /// The right token after another word than `Bearer`.
    OtherScheme,
    Token,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Exact,
    /// `localhost` and the right port: another name of the same listener.
    Localhost,
    /// A name that somebody else may let point here.
    Other,
    OtherPort,
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
}

const CREDENTIALS: [Credential; 4] =
    [Credential::None, Credential::WrongToken, Credential::OtherScheme, Credential::Token];
const HOSTS: [Host; 7] =
    [Host::Exact, Host::Localhost, Host::Other, Host::OtherPort, Host::Absent, Host::Twice, Host::RightThenOther];
const ORIGINS: [Origin; 6] =
    [Origin::Absent, Origin::Same, Origin::Other, Origin::OtherPort, Origin::Https, Origin::Null];
const SITES: [Option<&str>; 6] =
    [None, Some("same-origin"), Some("none"), Some("same-site"), Some("cross-site"), Some("nonsense")];
/// Methods with kinds of content.
const SENDINGS: [(&str, Option<&str>); 9] = [
    ("GET", None),
    ("OPTIONS", None),
    ("POST", None),
    ("POST", Some("application/json")),
    ("POST", Some("Application/JSON; charset=utf-8")),
    ("POST", Some("text/plain;charset=UTF-8")),
    ("POST", Some("application/x-www-form-urlencoded")),
    ("POST", Some("multipart/form-data; boundary=b")),
    ("POST", Some("application/jsonp")),
];
const RESOURCES: [Resource; 3] = [Resource::Health, Resource::Read("/v1/automations"), Resource::Change(RUN)];

#[derive(Debug, Clone, Copy)]
struct Ask {
    resource: Resource,
    credential: Credential,
    host: Host,
    origin: Origin,
    site: Option<&'static str>,
    method: &'static str,
    content: Option<&'static str>,
}

fn all() -> Vec<Ask> {
    let mut asks = Vec::new();
    for resource in RESOURCES {
        for credential in CREDENTIALS {
            for host in HOSTS {
                for origin in ORIGINS {
                    for site in SITES {
                        for (method, content) in SENDINGS {
                            asks.push(Ask { resource, credential, host, origin, site, method, content });
                        }
                    }
                }
            }
        }
    }
    asks
}

/// The rules, once more.
fn expected(ask: &Ask) -> u16 {
    if ask.host == Host::Absent {
        return 421;
    }
    if ask.resource == Resource::Health {
        return if ask.method == "GET" { 200 } else { 405 };
    }
    if !matches!(ask.host, Host::Exact | Host::Localhost) {
        return 421;
    }
    if ask.credential != Credential::Token {
        return 401;
    }
    if !matches!(ask.origin, Origin::Absent | Origin::Same) || !matches!(ask.site, None | Some("same-origin" | "none"))
    {
        return 403;
    }
    let json =
        ask.content.is_some_and(|content| content.to_ascii_lowercase().split(';').next() == Some("application/json"));
    match (ask.method, ask.resource) {
        ("POST", _) if !json => 415,
        ("POST", Resource::Change(_)) => 202,
        ("GET", Resource::Read(_)) => 200,
        _ => 405,
    }
}

impl Ask {
    fn bytes(&self, port: u16, token: &str) -> Vec<u8> {
        let path = match self.resource {
            Resource::Health => "/healthz",
            Resource::Read(path) | Resource::Change(path) => path,
        };
        let ours = format!("127.0.0.1:{port}");
        let mut head = format!("{} {path} HTTP/1.1\r\n", self.method);
        let mut add = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        match self.host {
            Host::Exact => add("Host", &ours),
            Host::Localhost => add("Host", &format!("localhost:{port}")),
            Host::Other => add("Host", &format!("rebound.example:{port}")),
            Host::OtherPort => add("Host", &format!("127.0.0.1:{}", port ^ 1)),
            Host::Absent => {}
            Host::Twice => ["Host", "host"].into_iter().for_each(|name| add(name, &ours)),
            Host::RightThenOther => {
                add("Host", &ours);
                add("Host", "rebound.example");
            }
        }
        match self.credential {
            Credential::None => {}
            Credential::WrongToken => add("Authorization", &format!("Bearer {}", "0".repeat(token.len()))),
            Credential::OtherScheme => add("Authorization", &format!("Basic {token}")),
            Credential::Token => add("Authorization", &format!("Bearer {token}")),
        }
        match self.origin {
            Origin::Absent => {}
            Origin::Same if self.host == Host::Localhost => add("Origin", &format!("http://localhost:{port}")),
            Origin::Same => add("Origin", &format!("http://{ours}")),
            Origin::Other => add("Origin", "http://evil.example"),
            Origin::OtherPort => add("Origin", &format!("http://127.0.0.1:{}", port ^ 1)),
            Origin::Https => add("Origin", &format!("https://{ours}")),
            Origin::Null => add("Origin", "null"),
        }
        if let Some(site) = self.site {
            add("Sec-Fetch-Site", site);
        }
        if self.method == "OPTIONS" {
            add("Access-Control-Request-Method", "POST");
            add("Access-Control-Request-Headers", "content-type, authorization");
        }
        if let Some(content) = self.content {
            add("Content-Type", content);
        }
        // Valid JSON whatever it is called: only what it is called may keep it out.
        let body = if self.method == "POST" { r#"{"input":{"from":"the matrix"}}"# } else { "" };
        add("Content-Length", &body.len().to_string());
        format!("{head}\r\n{body}").into_bytes()
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
        assert!(read > 0, "the connection was closed");
    }
}

struct Listener {
    address: SocketAddr,
    token: String,
}

impl Listener {
    fn of(root: &Root, served: &Served) -> Self {
        let admin = served.ready["admin"].as_str().expect("an address").trim_start_matches("http://");
        let token = std::fs::read_to_string(root.join(".dirigent/token")).expect("a token");
        Self { address: admin.parse().expect("an address"), token: token.trim().to_owned() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_combination_of_what_a_request_says_of_itself_is_judged_by_the_rules() {
    let root = Root::new();
    root.automation("a/x", r#""concurrency": {"mode": "queued", "max": 100000}"#, "export default () => {};");
    let served = root.serve();
    let listener = Listener::of(&root, &served);
    let asks = all();
    let mut connection = Connection::open(listener.address).await;
    let (mut wrong, mut let_in) = (Vec::new(), 0);
    for some in asks.chunks(AHEAD) {
        for ask in some {
            connection.send(&ask.bytes(listener.address.port(), &listener.token)).await;
        }
        for ask in some {
            let answer = connection.answer().await;
            let cors = answer.headers.iter().any(|(name, _)| name.starts_with("access-control-"));
            if answer.status != expected(ask) || cors {
                wrong.push(format!("{ask:?}: expected {}, got {answer:?}", expected(ask)));
            }
            let_in += usize::from(answer.status == 202);
        }
    }
    let some: Vec<&String> = wrong.iter().step_by(wrong.len() / 20 + 1).collect();
    assert!(wrong.is_empty(), "{} of {} are wrong, such as {some:#?}", wrong.len(), asks.len());
    assert_eq!(let_in, 2 * 2 * 3 * 2, "hosts, origins, sites and kinds of content that are right");
    let rows = root.sql("a", "select count(*) from runs where trigger_origin = 'manual'");
    assert_eq!(rows, [let_in.to_string()], "as many runs as were answered so");
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
