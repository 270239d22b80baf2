//! The MCP server for builders under what may come its way: long answers, wrong arguments, broken files, people who change
//! things at the same time.

use serde_json::{Value, json};
use tokio::process::Command;

use super::{call, codes, stdio};
use crate::harness::Root;

#[tokio::test(flavor = "multi_thread")]
async fn answers_fit_a_model_whatever_a_run_leaves() {
    let root = Root::new();
    let handler = "export default async ({ ctx, log, input }) => {\n\
                   \x20 for (let i = 0; i < 300; i++) await ctx.tool(`t${i}`.repeat(5000), { n: 'n'.repeat(5000) }).catch(() => {});\n\
                   \x20 for (let i = 0; i < 300; i++) log.info(`m${i}`.repeat(500), { f: 'f'.repeat(1000) });\n\
                   \x20 return { output: { text: 'x'.repeat(900000) } };\n\
                   };\n";
    root.automation("a/long", &format!(r#""description": "{}""#, "d".repeat(100_000)), handler);
    let (_child, client) = stdio(&root).await;
    let ended = call(&client, "run_automation", json!({ "handle": "a/long", "input": ["i".repeat(200_000)] })).await;
    let ended = ended.structured_content.expect("a run");
    assert_eq!((&ended["status"], &ended["output"]["bytes"]), (&json!("ok"), &json!(900_011)), "{ended}");
    for (tool, arguments, most) in [
        ("get_run", json!({ "runId": ended["runId"] }), 256 * 1024),
        ("get_run", json!({ "runId": ended["runId"], "valueBytes": 0 }), 200 * 1024),
        ("list_runs", json!({}), 4096),
        ("list_automations", json!({}), 4096),
    ] {
        let told = call(&client, tool, arguments).await.structured_content.expect("an answer");
        assert!(told.to_string().len() < most, "{tool}: {}", told.to_string().len());
        if tool == "get_run" {
            let ordinals: Vec<u64> =
                told["nodes"].as_array().expect("calls").iter().filter_map(|node| node["ordinal"].as_u64()).collect();
            assert_eq!((ordinals.len(), ordinals[0], ordinals[149]), (150, 0, 299), "its beginning and its end");
            assert_eq!(told["nodesLeftOut"], 150);
            assert_eq!(told["run"]["output"]["_truncated"], true);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_by_its_name() {
    let root = Root::new();
    root.automation("a/odd", "", "export default () => {};");
    std::fs::write(root.join("a/automations/odd/automation.json"), b"{\"name\": \"\xff\"}").expect("a file");
    root.write("b/automations/half/automation.json", "{\"name\": ");
    root.write("b/automations/half/handler.js", "export default () => {};");
    let (_child, client) = stdio(&root).await;
    // What can be shown of a broken one is shown.
    let read = call(&client, "read_automation", json!({ "handle": "a/odd" })).await.structured_content.expect("files");
    assert_eq!((&read["revision"], &read["handler"]), (&Value::Null, &json!("export default () => {};")));
    assert_eq!(read["automation"]["problems"][0]["code"], "not_utf8", "{read}");

    let good = json!({ "name": "n", "prompt": "p", "generated": { "by": "t", "at": "now" } });
    let handler = "export default () => {};";
    for (tool, arguments, expected) in [
        ("list_automations", json!({ "limit": 0 }), "limit is 0; it must be from 1 to 500"),
        ("list_automations", json!({ "limit": 501 }), "limit is 501; it must be from 1 to 500"),
        ("list_runs", json!({ "limit": "3" }), "limit: invalid type: string \"3\", expected u32"),
        ("list_runs", json!({ "status": ["ok", 3] }), "status[1]: invalid type: integer `3`, expected a string"),
        ("list_tools", json!({ "app": "nope" }), "there is no app nope"),
        ("get_run", json!({}), "missing field `runId`"),
    ] {
        let refused = call(&client, tool, arguments.clone()).await;
        let told = refused.structured_content.expect("a refusal");
        assert_eq!((refused.is_error, &told["message"]), (Some(true), &json!(expected)), "{tool} {arguments}");
    }
    // The verdict on a draft is what writing it would say.
    for (draft, expected) in [
        (json!({ "handle": "b/new", "manifest": good }), "missing_handler"),
        (json!({ "handle": "b/new", "handler": handler }), "no_manifest"),
        (json!({ "handle": "b/_new", "manifest": good, "handler": handler }), "invalid_name"),
        (json!({ "handle": "mcp.json/x", "manifest": good, "handler": handler }), "invalid_name"),
        (json!({ "handle": "b/half", "manifest": good }), "broken_file"),
        (json!({ "handle": "b/new", "manifest": good, "handler": "/".repeat(1_100_000) }), "too_large"),
    ] {
        let checked = call(&client, "validate_manifest", draft.clone()).await.structured_content.expect("a verdict");
        let refused = call(&client, "write_automation", draft).await.structured_content.expect("a refusal");
        assert_eq!((&checked["valid"], codes(&checked)), (&json!(false), vec![expected]));
        assert_eq!((&refused["code"], codes(&refused)), (&json!("invalid_proposal"), vec![expected]));
    }
    assert!(!root.join("b/automations/new").exists() && !root.join("mcp.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_wins_over_a_builder() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    let (_child, client) = stdio(&root).await;
    let mut manifest = json!({ "name": "n", "prompt": "p", "generated": { "by": "t", "at": "now" } });
    // While a builder writes without end, a person switches to and fro: no switch is undone.
    for round in 0..20 {
        manifest["description"] = json!(round.to_string());
        let writing = async {
            for _ in 0..3 {
                call(&client, "write_automation", json!({ "handle": "a/x", "manifest": manifest })).await;
            }
        };
        let command = root.command(&[if round % 2 == 0 { "disable" } else { "enable" }, "a/x"]);
        let (_, switched) = tokio::join!(writing, Command::from(command).output());
        assert!(switched.expect("an end").status.success());
        let text = std::fs::read_to_string(root.join("a/automations/x/automation.json")).expect("a manifest");
        let now: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(now["enabled"], round % 2 == 1, "round {round}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_provisions_is_told_which_secret_a_builder_has_chosen() {
    let root = Root::new();
    let (_child, client) = stdio(&root).await;
    // A file that the builder has written itself is no secret; only a person can see that.
    let verify = json!({ "scheme": "github", "secretRef": "file:automations/x/handler.js" });
    let manifest = json!({
        "name": "n", "prompt": "p", "generated": { "by": "t", "at": "now" },
        "triggers": [{ "kind": "webhook", "pending": true, "verify": verify }],
    });
    let draft = json!({ "handle": "a/x", "manifest": manifest, "handler": "export default () => {};" });
    assert_eq!(call(&client, "write_automation", draft).await.is_error, Some(false));
    let minted = root.cli(&["webhook", "provision", "a/x"]);
    let told = String::from_utf8_lossy(&minted.stderr).into_owned();
    assert!(minted.status.success() && told.contains("file:automations/x/handler.js"), "{told}");
    // From then on it stays as it is.
    let mut manifest: Value = manifest;
    manifest["triggers"][0]["verify"]["secretRef"] = json!("env:HOME");
    let refused = call(&client, "write_automation", json!({ "handle": "a/x", "manifest": manifest })).await;
    assert_eq!(codes(&refused.structured_content.expect("a refusal")), ["minted_field"]);
}
