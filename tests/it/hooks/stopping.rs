//! A daemon that is asked to stop, and one that serves no webhooks.

use super::*;
use crate::harness::Served;

/// Posts until a daemon says that it is stopping meet no limit.
const MANY: &str = "[hooks]\nposts_per_minute = 1000000\n";

/// Asks the daemon to stop, and waits until it takes no more fires. A signal that came before would be one with the next.
async fn stop(served: &Served, hooks: &Hooks) -> Answered {
    served.signal();
    loop {
        let got = answer(hooks.post("echo")).await;
        if got.status != 200 {
            return got;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_stopping_callers_are_told_to_come_back() {
    let root = Root::new();
    root.write("dirigent.toml", MANY);
    root.automation("a/parked", &webhook("parked", ""), PARKED);
    root.automation("a/echo", &webhook("echo", ""), ECHO);
    let mut served = root.serve();
    let hooks = Hooks::at(served.ready["hooks"].as_str().expect("an address"));
    let parked = answer(hooks.post("parked?wait=0")).await;
    let waiting = tokio::spawn(answer(hooks.post("parked?wait=60").header("webhook-id", "d1")));
    assert_eq!(within(waiting).await.expect("no panic").status, 409);
    let refused = stop(&served, &hooks).await;
    assert_eq!((refused.status, refused.body["error"].is_string()), (503, true), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    let token = std::fs::read_to_string(root.join(".dirigent/token")).expect("a token");
    let admin = served.ready["admin"].as_str().expect("an address");
    let run_now =
        hooks.client.post(format!("{admin}/v1/automations/a/echo/run")).bearer_auth(token.trim()).json(&json!({}));
    let refused = answer(run_now).await;
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (503, true), "{refused:?}");
    // A second signal cancels what runs at once.
    assert_eq!(served.terminate(), Some(0));
    let row = format!("select status, error_code from runs where run_id = '{}'", parked.run());
    assert_eq!(root.sql("a", &row), ["cancelled|interrupted"]);
    assert!(!root.join(".dirigent/daemon.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_that_waits_when_the_daemon_goes_is_answered() {
    let root = Root::new();
    let queued = format!(r#""concurrency": {{"mode": "queued"}}, {}"#, webhook("queued", ""));
    root.write("dirigent.toml", MANY);
    root.automation("a/queued", &queued, PARKED);
    root.automation("b/echo", &webhook("echo", ""), ECHO);
    let mut served = root.serve();
    let hooks = Hooks::at(served.ready["hooks"].as_str().expect("an address"));
    let first = answer(hooks.post("queued?wait=0")).await;
    let post = |id: &str| tokio::spawn(answer(hooks.post("queued?wait=60").header("webhook-id", id)));
    let second = post("d2");
    let open = "select count(*) from runs where status in ('running', 'queued')";
    while root.sql("a", open) != ["2"] {
        tokio::task::yield_now().await;
    }
    stop(&served, &hooks).await;
    assert_eq!(served.terminate(), Some(0));
    let second = within(second).await.expect("no panic");
    assert_eq!((second.status, &second.body["status"]), (202, &json!("queued")), "it is run by the next daemon");
    let rows = root.sql("a", "select run_id, status from runs order by rowid");
    assert_eq!(rows, [format!("{}|cancelled", first.run()), format!("{}|queued", second.run())]);
}

#[test]
fn a_desktop_serves_no_webhooks_and_leaves_them_as_they_are() {
    let root = Root::new();
    root.automation("a/echo", &webhook("echo", ""), ECHO);
    let manifest = || std::fs::read(root.join("a/automations/echo/automation.json")).expect("a manifest");
    let before = manifest();
    let mut served = root.serve_with(&["--role", "desktop"], &[]);
    assert_eq!(served.ready["hooks"], Value::Null, "{}", served.ready);
    let info: Value =
        serde_json::from_slice(&std::fs::read(root.join(".dirigent/daemon.json")).expect("it is announced"))
            .expect("JSON");
    assert!(info.get("hooks").is_none() && info["admin"].is_string(), "{info}");
    let tested = root.cli(&["--json", "webhook", "test", "a/echo", "--secret", SECRET]);
    assert_eq!(tested.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&tested.stderr).contains("no_hooks"));
    assert_eq!(served.terminate(), Some(0));
    assert_eq!(manifest(), before);
    let both = root.cli(&["serve", "--role", "desktop", "--hooks", "127.0.0.1:0"]);
    assert_eq!(both.status.code(), Some(2));
}
