//! Callers that are slow, idle, many or wrong about their own length: none of them delays a good one.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// Everything that the server says until it closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset ends it as well as a close.
    let _ = within(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn say(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = within(TcpStream::connect(address)).await.expect("a connection");
    within(stream.write_all(text.as_bytes())).await.expect("it is taken");
    stream
}

fn head(slug: &str, more: &str) -> String {
    format!("POST /_centraid-hook/{slug} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\n{more}\r\n")
}

/// Bounds that end quickly what is tested, and nothing else.
fn bounds() -> Bounds {
    let never = Duration::from_secs(600);
    Bounds { open: 512, head: never, body: never, idle: never }
}

async fn echo(root: &Root, bounds: Bounds) -> (Daemon, Hooks, SocketAddr) {
    root.automation("a/echo", &webhook("echo", ""), ECHO);
    root.automation("a/parked", &webhook("parked", ""), PARKED);
    let daemon = root.daemon().await;
    let (hooks, address) = Hooks::bounded(&daemon, root, bounds).await;
    (daemon, hooks, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_come_in_time_is_given_up() {
    let root = Root::new();
    let soon = Duration::from_millis(50);
    let (_daemon, _hooks, address) = echo(&root, Bounds { head: soon, body: soon, ..bounds() }).await;
    for (said, answered) in [
        ("", ""),
        ("POST /_centraid-hook/echo HTTP/1.1\r\nauthori", ""),
        // The body: none of it, and some.
        (&head("echo", "content-length: 10\r\n"), "HTTP/1.1 408"),
        (&format!("{}12345", head("echo", "content-length: 10\r\n")), "HTTP/1.1 408"),
        (&format!("{}3\r\nabc\r\n", head("echo", "transfer-encoding: chunked\r\n")), "HTTP/1.1 408"),
    ] {
        let mut stream = say(address, said).await;
        let told = rest(&mut stream).await;
        assert!(told.starts_with(answered) && told.is_empty() == answered.is_empty(), "{said:?}: {told:?}");
        assert!(answered.is_empty() || told.contains("{\"error\":"), "{told}");
    }
    assert!(!root.join("a/runtime.sqlite").exists(), "nothing was fired");

    let root = Root::new();
    let (_daemon, _hooks, address) = echo(&root, Bounds { idle: soon, ..bounds() }).await;
    let mut stream = say(address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(rest(&mut stream).await.contains("200 OK"), "an idle connection is closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn good_callers_are_served_when_all_places_are_held() {
    let root = Root::new();
    let (daemon, hooks, address) = echo(&root, Bounds { open: 8, ..bounds() }).await;
    let mut held = Vec::new();
    for n in 0..40 {
        let said = match n % 3 {
            0 => "POST /_centraid-hook/echo HTTP/1.1\r\nx-slow".to_owned(),
            1 => head("echo", "content-length: 10\r\n") + "123",
            _ => "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        };
        held.push(say(address, &said).await);
        if n % 4 == 0 {
            let alone = reqwest::Client::new().post(format!("{}/_centraid-hook/echo", hooks.base));
            assert_eq!(answer(alone.bearer_auth(SECRET).body("1")).await.status, 200, "after {n}");
        }
    }
    drop(held);

    // When all wait for runs, those who have waited longest are answered early; their runs go on.
    let first = hooks.post("parked?wait=60").header("webhook-id", "d1");
    let first = tokio::spawn(answer(first));
    until(&daemon, "it runs", |state| state.open_runs().any(|run| run.active)).await;
    let waiting: Vec<_> = (0..12)
        .map(|_| {
            let alone = reqwest::Client::new().post(format!("{}/_centraid-hook/parked?wait=60", hooks.base));
            tokio::spawn(answer(alone.bearer_auth(SECRET).header("webhook-id", "d1")))
        })
        .collect();
    let early = within(first).await.expect("no panic");
    assert_eq!((early.status, &early.body["status"]), (202, &json!("running")));
    let run = dirigent::fire::RunId::new(&early.run()).expect("an id");
    assert_eq!(answer(hooks.post("echo")).await.status, 200);
    daemon.cancel(run).await;
    for post in waiting {
        let got = within(post).await.expect("no panic");
        assert!([202, 500].contains(&got.status) && got.run() == early.run(), "{got:?}");
    }
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_lie_change_nothing() {
    let root = Root::new();
    let (daemon, _hooks, address) = echo(&root, bounds()).await;
    let close = "connection: close\r\n";
    let chunked = "transfer-encoding: chunked\r\nconnection: close\r\n";
    let huge = "f".repeat(65_537);
    for (said, answered, summary) in [
        (format!("{}12345", head("echo", "content-length: 1\r\nconnection: close\r\n")), "200", Some("number 1")),
        (format!("{}2\r\n12\r\n1\r\n3\r\n0\r\n\r\n", head("echo", chunked)), "200", Some("number 123")),
        (head("echo", close), "200", Some("undefined undefined")),
        (head("echo", "content-length: 99999999999\r\n"), "413", None),
        (head("echo", "content-length: -1\r\n"), "400", None),
        (head("echo", "content-length: 1\r\ncontent-length: 2\r\n"), "400", None),
        (format!("{}10001\r\n{huge}\r\n", head("echo", chunked)), "413", None),
        ("POST /_centraid-hook/nope HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n".to_owned(), "404", None),
        ("nonsense\r\n\r\n".to_owned(), "400", None),
    ] {
        let mut stream = say(address, &said).await;
        let told = rest(&mut stream).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {answered}")), "{}: {told:?}", &said[..said.len().min(200)]);
        assert!(summary.is_none_or(|summary| told.contains(summary)), "{told}");
    }
    // Who writes all of a large body before reading still learns the answer.
    let body = "x".repeat(600_000);
    for secret in [SECRET, "wrong"] {
        let text = format!(
            "POST /_centraid-hook/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\ncontent-length: 600000\r\n\r\n{body}"
        );
        let mut stream = say(address, &text).await;
        let told = rest(&mut stream).await;
        assert!(told.starts_with(if secret == SECRET { "HTTP/1.1 413" } else { "HTTP/1.1 401" }), "{told:?}");
        assert!(told.contains("connection: close"), "so that nothing more is sent on it: {told:?}");
    }
    // One connection, many posts, also ones sent ahead of their answers.
    let both = format!(
        "{}1{}2",
        head("echo", "content-length: 1\r\n"),
        head("echo", "content-length: 1\r\nconnection: close\r\n")
    );
    let told = rest(&mut say(address, &both).await).await;
    assert!(told.contains("number 1") && told.contains("number 2"), "{told}");
    daemon.stop(Duration::ZERO).await;
}
