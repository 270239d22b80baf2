//! `dirigent webhook`: credentials that are shown once, and a post that tries them.

use std::process::{Output, Stdio};

use super::*;
use crate::harness::Served;

const PENDING: &str = r#""triggers": [{"kind": "webhook", "pending": true}]"#;

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn code_of(output: &Output) -> Option<String> {
    let told: Value = serde_json::from_slice(&output.stderr).ok()?;
    Some(told["error"]["code"].as_str()?.to_owned())
}

fn test(root: &Root, args: &[&str], secret: &str) -> Output {
    let args = [&["--json", "webhook", "test"], args].concat();
    let mut command = root.command(&args);
    command.env("DIRIGENT_WEBHOOK_SECRET", secret).stdin(Stdio::null());
    command.output().expect("the program runs")
}

/// Waits until the daemon has taken in the manifest as it is: the post is refused before.
fn test_until(root: &Root, args: &[&str], secret: &str, refused: &str) -> Output {
    loop {
        let tested = test(root, args, secret);
        if code_of(&tested).as_deref() != Some(refused) {
            return tested;
        }
    }
}

#[test]
fn credentials_are_minted_shown_once_tried_and_replaced() {
    let root = Root::new();
    root.automation("a/in", PENDING, ECHO);
    let absent = test(&root, &["a/in"], "x");
    assert_eq!((absent.status.code(), code_of(&absent).as_deref()), (Some(1), Some("no_provisioned_webhook")));

    // Without a daemon the address is the one that the next has by default.
    let first = json_of(&root.cli(&["--json", "webhook", "provision", "in"]));
    let (slug, old) = (first["slug"].as_str().expect("a slug"), first["secret"].as_str().expect("a secret").to_owned());
    assert_eq!(first["url"], format!("http://127.0.0.1:7391/_centraid-hook/{slug}"));
    assert_eq!(test(&root, &["a/in"], &old).status.code(), Some(3), "no daemon");
    let again = root.cli(&["--json", "webhook", "provision", "in"]);
    assert_eq!((again.status.code(), code_of(&again).as_deref()), (Some(1), Some("no_pending_webhook")));
    let on_disk = std::fs::read_to_string(root.join("a/automations/in/automation.json")).expect("a manifest");
    assert!(on_disk.contains(slug) && !on_disk.contains(&old));

    let served: Served = root.serve();
    let tested = json_of(&test(&root, &["a/in", "--body", "[1]"], &old));
    assert_eq!((&tested["httpStatus"], &tested["answer"]["summary"]), (&json!(200), &json!("object [1]")));
    let shown = root.cli(&["webhook", "test", "a/in", "--secret", &old]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains(r#"object {"test":true}"#), "{text}");
    assert_eq!(root.cli(&["webhook", "test", "a/in"]).status.code(), Some(2), "no secret is wrong usage");

    let rotated = root.cli(&["webhook", "rotate", "a/in"]);
    let text = String::from_utf8_lossy(&rotated.stdout).into_owned();
    let hooks = served.ready["hooks"].as_str().expect("an address");
    assert!(rotated.status.success() && text.contains(&format!("{hooks}/_centraid-hook/{slug}")), "{text}");
    let new = text.lines().find_map(|line| line.strip_prefix("secret")).expect("a secret").trim().to_owned();
    assert!(new != old && new.len() == 48);
    let tested = test_until(&root, &["a/in"], &new, "unauthorized");
    assert!(tested.status.success(), "{tested:?}");
    let refused = test(&root, &["a/in"], &old);
    assert_eq!((refused.status.code(), code_of(&refused).as_deref()), (Some(1), Some("unauthorized")));

    assert!(root.cli(&["disable", "a/in"]).status.success());
    let skipped = loop {
        let tested = test(&root, &["a/in"], &new);
        if !tested.status.success() {
            break tested;
        }
    };
    assert_eq!(json_of(&skipped)["answer"], json!({ "ok": false, "skipped": "automation disabled" }));
    let log = std::fs::read_to_string(root.join("serve.log")).expect("a log");
    assert!(![&old, &new].iter().any(|secret| log.contains(*secret)), "{log}");
}

#[test]
fn a_signed_webhook_is_tested_with_the_secret_that_it_refers_to() {
    let root = Root::new();
    let verify = |reference: &str| {
        format!(
            r#""triggers": [{{"kind": "webhook", "pending": true, "verify": {{"scheme": "standard-webhooks", "secretRef": "{reference}"}}}}]"#
        )
    };
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    root.automation("a/file", &verify("file:hook.key"), ECHO);
    root.automation("a/env", &verify("env:DIRIGENT_TEST_HOOK"), ECHO);
    root.write("a/hook.key", key);
    for id in ["file", "env"] {
        let minted = root.cli(&["--json", "webhook", "provision", id]);
        let told = String::from_utf8_lossy(&minted.stderr).into_owned();
        assert!(minted.status.success() && told.contains("standard-webhooks"), "{told}");
    }
    let _served = root.serve_with(&["--hooks", "127.0.0.1:0"], &[("DIRIGENT_TEST_HOOK", key)]);
    let tested = root.cli(&["--json", "webhook", "test", "a/file"]);
    assert_eq!(json_of(&tested)["answer"]["ok"], true, "{tested:?}");
    let unset = root.cli(&["--json", "webhook", "test", "a/env"]);
    assert_eq!(code_of(&unset).as_deref(), Some("no_secret"));
    assert_eq!(json_of(&test(&root, &["a/env"], key))["answer"]["ok"], true);
    let wrong = test(&root, &["a/env"], "whsec_AAAA");
    assert_eq!(code_of(&wrong).as_deref(), Some("unauthorized"));
    assert_eq!(code_of(&test(&root, &["a/env"], "no base64!")).as_deref(), Some("bad_secret"));
}
