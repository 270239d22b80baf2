//! A delivery that is posted again starts nothing, and is answered as the first post would be now.

use super::*;
use crate::harness::handle;

const DAY: i64 = 24 * 3_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_delivery_is_answered_with_the_first_run() {
    let root = Root::new();
    root.automation("a/echo", &format!(r#""history": {{"keep": {{"count": 0}}}}, {}"#, webhook("echo", "")), ECHO);
    root.automation("a/throws", &webhook("throws", ""), "export default () => { throw new Error('no luck'); };");
    root.automation("a/picky", &webhook("picky", r#", "filter": {"type": "object"}"#), ECHO);
    root.automation("a/other", &webhook("other", ""), ECHO);
    let clock = TestClock::at(START);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let hooks = Hooks::of(&daemon, &root).await;
    let count = || root.sql("a", "select count(*) from webhook_deliveries")[0].clone();

    for (slug, header, status) in
        [("echo", "webhook-id", 200), ("throws", "x-github-delivery", 500), ("picky", "idempotency-key", 200)]
    {
        let first = answer(hooks.post(slug).header(header, "d1").body("[1]")).await;
        assert_eq!(first.status, status, "{first:?}");
        let again = answer(hooks.post(slug).header(header, "d1").body("[1]")).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
    }
    assert_eq!(count(), "3");
    // Its row is long gone, and the id belongs to its slug alone.
    let one = answer(hooks.post("echo").header("webhook-id", "d1")).await;
    let two = answer(hooks.post("other").header("webhook-id", "d1")).await;
    assert_ne!(one.run(), two.run());
    assert_eq!(one.body["summary"], "object [1]", "of the first body");
    // Also after the automation was switched off: the sender asks what became of it.
    root.manifest("a/echo", &format!(r#""enabled": false, {}"#, webhook("echo", "")));
    until(&daemon, "it is off", |state| !state.registry.get(&handle("a/echo")).expect("it").enabled()).await;
    let off = answer(hooks.post("echo").header("webhook-id", "d1")).await;
    assert_eq!((off.status, off.run()), (200, one.run()));
    assert_eq!(answer(hooks.post("echo").header("webhook-id", "d2")).await.body["ok"], false);

    // A day later it is another delivery.
    clock.set(START + DAY - 1);
    assert_eq!(answer(hooks.post("other").header("webhook-id", "d1")).await.run(), two.run());
    clock.set(START + DAY);
    let later = answer(hooks.post("other").header("webhook-id", "d1")).await;
    assert_ne!(later.run(), two.run());
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_of_one_delivery_at_the_same_time_are_one_run() {
    let root = Root::new();
    root.write("dirigent.toml", "[hooks]\nposts_per_minute = 1000\n");
    root.automation("a/parked", &webhook("parked", ""), PARKED);
    root.automation("a/quick", &webhook("quick", ""), ECHO);
    let daemon = root.daemon().await;
    let hooks = Hooks::of(&daemon, &root).await;

    // Busy and `single`: the ones that come late find the first, not a conflict.
    let posts = (0..40).map(|_| answer(hooks.post("parked?wait=0").header("webhook-id", "d1")));
    let answers = futures::future::join_all(posts).await;
    let run = answers[0].run();
    for got in &answers {
        assert_eq!((got.status, got.run()), (202, run.clone()), "{got:?}");
        assert_eq!(got.body["status"], "running");
    }
    assert_eq!(root.sql("a", "select count(*) from runs"), ["1"]);
    assert_eq!(answer(hooks.post("parked?wait=0").header("webhook-id", "d2")).await.status, 409);

    // Those who wait learn the end, whichever post started it.
    let waiting =
        futures::future::join_all((0..5).map(|_| answer(hooks.post("parked?wait=60").header("webhook-id", "d1"))));
    let cancel = async {
        let id = dirigent::fire::RunId::new(&run).expect("an id");
        daemon.cancel(id).await
    };
    let (answers, _) = tokio::join!(waiting, cancel);
    for got in &answers {
        assert_eq!((got.status, got.run()), (500, run.clone()), "{got:?}");
        assert_eq!((&got.body["ok"], &got.body["status"]), (&json!(false), &json!("cancelled")));
    }

    let posts = (0..60).map(|n| answer(hooks.post("quick").header("webhook-id", format!("q{}", n % 6)).body("1")));
    let answers = futures::future::join_all(posts).await;
    let done = answers.iter().filter(|got| got.status == 200).map(Answered::run);
    let runs: std::collections::BTreeSet<String> = done.collect();
    // `single`: of the six, some may have met a run of another.
    assert!(answers.iter().all(|got| [200, 409].contains(&got.status)), "{answers:?}");
    let rows = root.sql("a", "select count(*) from runs where automation_id = 'quick'");
    assert_eq!(rows, [runs.len().to_string()]);
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_of_a_delivery_is_run_and_is_not_its_answer() {
    let root = Root::new();
    root.automation(
        "a/flaky",
        &format!(r#""retry": {{"max": 1, "backoffMs": 1}}, {}"#, webhook("flaky", "")),
        "export default ({ ctx }) => { if (ctx.run.attempt < 2) throw new Error('not yet'); return { summary: 'at last' }; };",
    );
    let daemon = root.daemon().await;
    let hooks = Hooks::of(&daemon, &root).await;
    let mut events = daemon.services().bus.runs();
    let first = answer(hooks.post("flaky").header("webhook-id", "d1")).await;
    assert_eq!(first.status, 500, "{first:?}");
    let rows = "select attempt, status, summary from runs order by rowid";
    root.sql_becomes(&mut events, "a", rows, &["1|error|", "2|ok|at last"]).await;
    let again = answer(hooks.post("flaky").header("webhook-id", "d1")).await;
    assert_eq!((again.status, again.body), (500, first.body));
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_leaves_its_run_and_its_delivery() {
    let root = Root::new();
    root.automation("a/parked", &webhook("parked", ""), PARKED);
    let daemon = root.daemon().await;
    let hooks = Hooks::of(&daemon, &root).await;
    let mut events = daemon.services().bus.runs();
    let post = tokio::spawn(hooks.post("parked?wait=60").header("webhook-id", "d1").send());
    let opened = within(events.recv()).await.expect("an event");
    post.abort();
    let _ = post.await;
    let again = answer(hooks.post("parked?wait=0").header("webhook-id", "d1")).await;
    assert_eq!((again.status, again.run()), (202, opened.run_id.to_string()));
    daemon.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_outlives_a_kill() {
    let root = Root::new();
    let queued = format!(r#""concurrency": {{"mode": "queued"}}, {}"#, webhook("queued", ""));
    root.automation(
        "a/queued",
        &queued,
        "export default ({ input }) => input === 'go' ? { summary: 'went' } : new Promise((done) => setTimeout(done, 1e8));",
    );
    let mut served = root.serve();
    let hooks = Hooks::at(served.ready["hooks"].as_str().expect("an address"));
    let running = answer(hooks.post("queued?wait=0").header("webhook-id", "d1")).await;
    let waiting = answer(hooks.post("queued?wait=0").header("webhook-id", "d2").body("\"go\"")).await;
    assert_eq!((running.status, waiting.status), (202, 202));
    assert_eq!((&running.body["status"], &waiting.body["status"]), (&json!("running"), &json!("queued")));
    served.kill();

    let served = root.serve();
    let hooks = Hooks::at(served.ready["hooks"].as_str().expect("an address"));
    let again = answer(hooks.post("queued?wait=60").header("webhook-id", "d1")).await;
    assert_eq!((again.status, again.run()), (500, running.run()), "{again:?}");
    let went = answer(hooks.post("queued?wait=60").header("webhook-id", "d2").body("\"go\"")).await;
    assert_eq!((went.status, went.run(), &went.body["summary"]), (200, waiting.run(), &json!("went")));
    assert_eq!(root.sql("a", "select count(*) from runs"), ["2"]);
}
