//! Server-sent events over real HTTP: nothing is missing and nothing comes twice, whatever breaks in between.

use futures::{Stream, StreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::harness::{Root, run, start, within};

/// One event: its kind, its id, its data.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    kind: String,
    id: String,
    data: Value,
}

/// Opens a stream, after the event with this id.
async fn open(admin: &Admin, path: &str, after: Option<&str>) -> impl Stream<Item = Sent> + Unpin + use<> {
    let mut request = admin.request(Method::GET, path);
    if let Some(id) = after {
        request = request.header("last-event-id", id);
    }
    let response = within(request.send()).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK, "{path} after {after:?}");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let events = eventsource_stream::Eventsource::eventsource(response.bytes_stream());
    // A daemon that is killed breaks its streams off.
    let events = events.take_while(|event| std::future::ready(event.is_ok())).map(|event| {
        let event = event.expect("an event");
        Sent { kind: event.event, id: event.id, data: serde_json::from_str(&event.data).unwrap_or(Value::Null) }
    });
    Box::pin(events)
}

async fn all(stream: impl Stream<Item = Sent>) -> Vec<Sent> {
    within(stream.collect()).await
}

/// What happened, without the time at which it was told.
fn place(sent: &Sent) -> (String, Value) {
    let number = ["seq", "ordinal"].into_iter().find_map(|name| sent.data.get(name)).cloned();
    (sent.data["type"].as_str().expect("a type").to_owned(), number.unwrap_or_default())
}

const BUSY: &str = "export default async ({ ctx, log }) => {
    log.info('one', { a: 1 });
    await Promise.all([0, 1, 2].map(() => ctx.tool('centraid_describe', {})));
    log.warn('two');
    await ctx.tool('nope', {}).catch(() => log.error('three'));
    return { summary: 'done' };
};";

#[tokio::test(flavor = "multi_thread")]
async fn a_runs_stream_goes_on_after_every_event_also_in_another_daemon() {
    let root = Root::new();
    root.automation("a/x", "", BUSY);
    let mut served = root.serve();
    let admin = Admin::of(&root, &served);
    let (_, body) = admin.post("/v1/automations/a/x/run?wait=60", json!({})).await;
    assert_eq!(body["summary"], "done", "{body}");
    let path = format!("/v1/runs/{}/events", body["runId"].as_str().expect("an id"));
    let whole = all(open(&admin, &path, None).await).await;
    // Opened, started, three lines, four calls with their ends, ended.
    assert_eq!(whole.len(), 14, "{whole:?}");
    assert_eq!((whole[0].data["type"].as_str(), whole[13].data["type"].as_str()), (Some("opened"), Some("ended")));

    for restarted in [false, true] {
        let admin = if restarted {
            served.kill();
            served = root.serve();
            Admin::of(&root, &served)
        } else {
            Admin::of(&root, &served)
        };
        for (index, told) in whole[..13].iter().enumerate() {
            let rest = all(open(&admin, &path, Some(&told.id)).await).await;
            assert_eq!(rest, whole[index + 1..], "after {index}, restarted: {restarted}");
        }
        let over = within(admin.request(Method::GET, &path).header("last-event-id", &whole[13].id).send()).await;
        assert_eq!(over.expect("an answer").status(), StatusCode::NO_CONTENT, "there is nothing to come back for");
    }
    for id in ["nope", "", "9.0.0."] {
        let (status, body) =
            crate::admin::answer(Admin::of(&root, &served).request(Method::GET, &path).header("last-event-id", id))
                .await;
        assert_eq!((status.as_u16(), &body["code"]), (400, &json!("bad_last_event_id")), "{id:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_stream_that_breaks_off_anywhere_is_resumed_without_gap_or_repeat() {
    let root = Root::new();
    root.automation("a/x", "", BUSY);
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    for cut in [1, 2, 3, 5, 8, 13] {
        let (id, _end) = start(&daemon, "a/x", None).await;
        let path = format!("/v1/runs/{id}/events");
        let first: Vec<Sent> = within(open(&admin, &path, None).await.take(cut).collect()).await;
        let rest = all(open(&admin, &path, first.last().map(|sent| sent.id.as_str())).await).await;
        let mut seen: Vec<_> = first.iter().chain(&rest).map(place).collect();
        assert_eq!(seen.last().map(|(kind, _)| kind.as_str()), Some("ended"), "cut after {cut}");
        let mut expected: Vec<_> = all(open(&admin, &path, None).await).await.iter().map(place).collect();
        seen.sort_by_key(|place| format!("{place:?}"));
        expected.sort_by_key(|place| format!("{place:?}"));
        assert_eq!(seen, expected, "cut after {cut}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

/// The id with which a stream begins: it comes without an event, so a client's parser shows it with the next one only.
async fn first_id(admin: &Admin) -> String {
    let response = within(admin.request(Method::GET, "/v1/events").send()).await.expect("an answer");
    let mut bytes = response.bytes_stream();
    let first = within(bytes.next()).await.expect("a block").expect("bytes");
    let text = String::from_utf8(first.to_vec()).expect("text");
    text.trim().strip_prefix("id: ").or_else(|| text.trim().strip_prefix("id:")).expect("an id alone").trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_runs_are_told_to_who_comes_back_or_that_this_cannot_be() {
    let root = Root::new();
    root.automation("a/x", "", BUSY);
    root.automation("b/y", "", "export default () => {};");
    let daemon = root.daemon().await;
    let (admin, _) = Admin::in_process(&daemon, "127.0.0.1").await;
    let begin = first_id(&admin).await;
    let mut runs = Vec::new();
    for handle in ["a/x", "b/y", "a/x"] {
        runs.push(run(&daemon, handle, None).await.0.to_string());
    }
    let whole: Vec<Sent> = within(open(&admin, "/v1/events", Some(&begin)).await.take(9).collect()).await;
    for (run, events) in runs.iter().zip(whole.chunks(3)) {
        let kinds: Vec<_> = events.iter().map(|sent| (sent.kind.as_str(), sent.data["runId"].as_str())).collect();
        let run = Some(run.as_str());
        assert_eq!(kinds, [("opened", run), ("started", run), ("ended", run)]);
    }
    for (index, told) in whole[..8].iter().enumerate() {
        let left = 8 - index;
        let rest: Vec<Sent> = within(open(&admin, "/v1/events", Some(&told.id)).await.take(left).collect()).await;
        assert_eq!(rest, whole[index + 1..]);
    }

    // An id of another daemon's life, and one that this daemon has never given out.
    let (boot, _) = begin.split_once('-').expect("an id");
    for id in ["0123456789abcdef-5".to_owned(), format!("{boot}-5000")] {
        let mut stream = open(&admin, "/v1/events", Some(&id)).await;
        let reset = within(stream.next()).await.expect("an event");
        assert_eq!((reset.kind.as_str(), &reset.data), ("reset", &json!({})), "{id}");
        let (next, _) = run(&daemon, "b/y", None).await;
        let told = within(stream.next()).await.expect("an event");
        assert_eq!((told.kind.as_str(), told.data["runId"].as_str()), ("opened", Some(next.as_str())));
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_all_runs_hears_that_the_registry_changed() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let mut stream = open(&admin, "/v1/events", None).await;
    let mut last = String::new();
    for change in ["new", "gone", "handler"] {
        match change {
            "new" => root.automation("a/y", "", "export default () => {};"),
            "gone" => std::fs::remove_dir_all(root.join("a/automations/y")).expect("it goes"),
            _ => root.write("a/automations/x/handler.js", "export default () => ({ summary: 'other' });"),
        }
        let told = within(stream.next()).await.expect("an event");
        assert_eq!((told.kind.as_str(), &told.data), ("registry", &json!({})), "{change}");
        last = told.id;
    }
    // Also of what changed while nobody listened.
    drop(stream);
    std::fs::remove_dir_all(root.join("a/automations/x")).expect("it goes");
    within(async { while admin.get("/v1/automations/a/x").await.0 != StatusCode::NOT_FOUND {} }).await;
    let told = within(open(&admin, "/v1/events", Some(&last)).await.next()).await.expect("an event");
    assert_eq!((told.kind.as_str(), &told.data), ("registry", &json!({})));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_the_daemon_and_have_a_limit() {
    let root = Root::new();
    root.automation("a/parked", "", "export default () => new Promise((done) => setTimeout(done, 1e8));");
    let mut served = root.serve();
    let admin = Admin::of(&root, &served);
    let (_, parked) = admin.post("/v1/automations/a/parked/run", json!({})).await;
    let path = format!("/v1/runs/{}/events", parked["runId"].as_str().expect("an id"));
    let mut streams = Vec::new();
    let last = loop {
        let response = within(admin.request(Method::GET, "/v1/events").send()).await.expect("an answer");
        if response.status() != StatusCode::OK {
            break response;
        }
        streams.push(response);
        assert!(streams.len() < 5000, "there is no limit");
    };
    assert_eq!((last.status(), streams.len()), (StatusCode::SERVICE_UNAVAILABLE, 256));
    assert!(last.headers().contains_key("retry-after"));
    let refused: Value = within(last.json()).await.expect("JSON");
    assert_eq!(refused["code"], "too_many_streams");
    streams.clear();
    // Places come back when the connections are seen to be gone.
    let following = loop {
        let response = within(admin.request(Method::GET, &path).send()).await.expect("an answer");
        if response.status() == StatusCode::OK {
            break response;
        }
    };
    let all_runs = open(&admin, "/v1/events", None).await;
    let stopped = tokio::task::spawn_blocking(move || served.terminate());
    let told = within(following.text()).await.expect("it ends in order");
    assert!(told.contains("\"ended\""), "a run that is cancelled with the daemon is told to the end: {told}");
    let kinds: Vec<String> = all(all_runs).await.into_iter().map(|sent| sent.kind).collect();
    assert_eq!(kinds, ["ended"]);
    assert_eq!(within(stopped).await.expect("it ends"), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_tables_are_told_to_the_pages_of_their_app() {
    let root = Root::copy_of("fixtures/apps");
    let served = root.serve();
    let admin = Admin::of(&root, &served);
    let mut changes = open(&admin, "/centraid/bookshelf/_changes", None).await;
    let add = json!({ "app": "bookshelf", "action": "add_book", "input": { "title": "Emma", "author": "Austen" } });
    let (status, body) = admin.post("/centraid/_tool/centraid_write", add).await;
    assert_eq!((status, &body["isError"]), (StatusCode::OK, &json!(false)), "{body}");
    let change = within(changes.next()).await.expect("an event");
    assert_eq!((change.kind.as_str(), &change.data), ("change", &json!({ "table": "books" })));
    let (status, body) = admin.get("/centraid/nope/_changes").await;
    assert_eq!((status, &body["code"]), (StatusCode::NOT_FOUND, &json!("unknown_app")));
}
