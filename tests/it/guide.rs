//! `docs/builders.md`, block by block: manifests are validated, handlers are checked and run with the input that stands
//! beside them, and what people are told to type is typed.
//!
//! What a block is stands behind its language: `file=<path>` is a file of the root; `input=<handle>` and
//! `output=<handle>` are one run, and `mcp-input`, `mcp-output` one that calls a published MCP server, which needs
//! Node.js; `automation` is a whole manifest and `handler` a whole handler; `fields` are further fields of a manifest and
//! `body` the body of a handler; `wrong=<code>`, `wrong-handler=<code>` and `invalid=<code>` are the same with a problem
//! in them; `settings` is a `dirigent.toml`. `sh` is run as it stands, with `daemon` while one runs; `text` is a picture.

use std::process::Command;

use dirigent::clock::{Clock, TestClock};
use dirigent::core::manifest;
use dirigent::daemon::Daemon;
use dirigent::fire::Problem;
use dirigent::isolate::CTX_TYPES;
use serde_json::{Map, Value, json};

use crate::builder;
use crate::harness::{PROGRAM, Root, Served, run};
use crate::{agent, mcp};

const GUIDE: &str = include_str!("../../docs/builders.md");

/// 2026-11-21T10:02:30Z: no example is due, and with a clock that stands none ever is.
const NOW: i64 = 1_795_255_350_000;

/// Where the settings that the guide shows say that the model `local` is.
const LOCAL_MODEL: &str = "http://127.0.0.1:8080/v1";

/// A fenced block of the guide.
struct Block {
    line: usize,
    language: &'static str,
    /// `file`, `input`, …; empty when there is none.
    kind: &'static str,
    /// What stands behind the `=`.
    name: &'static str,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut is_open = false;
    for (index, line) in GUIDE.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(_) if is_open => is_open = false,
            Some(info) => {
                is_open = true;
                let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
                let (kind, name) = rest.split_once('=').unwrap_or((rest, ""));
                found.push(Block { line: index + 1, language, kind, name, text: String::new() });
            }
            None if is_open => {
                let block = found.last_mut().expect("an open block");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!is_open, "the last block has no end");
    found
}

/// Writes every file that the guide shows, and what editors need beside them.
pub fn write_examples(root: &Root) {
    for block in blocks().iter().filter(|block| block.kind == "file") {
        root.write(block.name, &block.text);
        if let Some((automations, _)) = block.name.split_once("/automations/") {
            root.write(&format!("{automations}/automations/ctx.d.ts"), CTX_TYPES);
        }
    }
}

fn json_of(block: &Block) -> Value {
    serde_json::from_str(&block.text).unwrap_or_else(|error| panic!("line {}: {error}", block.line))
}

/// The problems that `validate` shows for the whole root.
fn problems(root: &Root) -> Vec<Problem> {
    let output = root.cli(&["--json", "validate"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    serde_json::from_value(told["problems"].clone()).expect("problems")
}

#[test]
fn every_block_says_what_it_is() {
    let mut examples = 0;
    for Block { line, language, kind, name, .. } in blocks() {
        let is_known = match (language, kind) {
            ("json", "file" | "input" | "output" | "mcp-input" | "mcp-output" | "invalid")
            | ("js", "file" | "wrong" | "wrong-handler")
            | ("sql", "file") => !name.is_empty(),
            ("json", "call") => !name.is_empty(),
            ("json", "automation" | "fields" | "gives" | "refuses" | "mcp-server")
            | ("js", "handler" | "body")
            | ("toml", "settings")
            | ("sh", "" | "daemon")
            | ("text", "") => name.is_empty(),
            _ => false,
        };
        assert!(is_known, "line {line}: {language} {kind}={name}");
        examples += usize::from(name.ends_with("/handler.js"));
    }
    assert_eq!(examples, 11, "ten examples, and the one of MCP servers");
}

#[test]
fn manifests_of_the_guide_are_good_or_wrong_as_it_says() {
    for block in blocks().iter().filter(|block| matches!(block.kind, "automation" | "fields" | "invalid")) {
        let mut fields = Map::new();
        if block.kind != "automation" {
            fields.extend([("name", "n"), ("prompt", "p")].map(|(key, text)| (key.to_owned(), json!(text))));
            fields.insert("generated".to_owned(), json!({ "by": "b", "at": "a" }));
        }
        fields.extend(json_of(block).as_object().expect("an object").clone());
        let parsed = manifest::parse(Value::Object(fields).to_string().as_bytes(), &"shop".parse().expect("an app"));
        let codes: Vec<&str> = parsed.problems.iter().map(|problem| problem.code.as_str()).collect();
        let expected: &[&str] = if block.kind == "invalid" { &[block.name] } else { &[] };
        assert_eq!(codes, expected, "line {}: {:?}", block.line, parsed.problems);
    }
}

#[test]
fn handlers_of_the_guide_are_good_or_wrong_as_it_says() {
    let root = Root::new();
    write_examples(&root);
    root.write("dirigent.toml", "[models.local]\nbase_url = \"http://127.0.0.1:9/v1\"\n");
    assert_eq!(problems(&root), [], "the examples have no problems");

    let shown: Vec<Block> = blocks()
        .into_iter()
        .filter(|block| matches!(block.kind, "handler" | "body" | "wrong" | "wrong-handler"))
        .collect();
    let root = Root::new();
    for block in &shown {
        let handler = match block.kind {
            "handler" | "wrong-handler" => block.text.clone(),
            _ => format!("export default async ({{ ctx, log, input }}) => {{\n{}}};\n", block.text),
        };
        root.automation(&format!("shop/at-{}", block.line), "", &handler);
    }
    let found = problems(&root);
    for block in &shown {
        let path = format!("shop/automations/at-{}/handler.js", block.line);
        let of_block = found.iter().filter(|problem| problem.path.as_deref() == Some(&path));
        let codes: Vec<&str> = of_block.map(|problem| problem.code.as_str()).collect();
        let expected: &[&str] = if block.kind.starts_with("wrong") { &[block.name] } else { &[] };
        assert_eq!(codes, expected, "line {}: {found:?}", block.line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_do_what_the_guide_says() {
    let root = Root::new();
    write_examples(&root);
    let answer = agent::answered("local", r#"{"urgency":"high","reason":"Something burns."}"#);
    let (base, _) = agent::server(vec![(200, answer)]).await;
    let settings = blocks().into_iter().find(|block| block.kind == "settings").expect("settings");
    assert!(settings.text.contains(LOCAL_MODEL), "the model of the example stands in them");
    root.write("dirigent.toml", &settings.text.replace(LOCAL_MODEL, &format!("{base}/v1")));
    let clock = TestClock::at(NOW);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    let runs = runs_are_as_shown(&daemon, &clock, ("input", "output")).await;
    assert!(runs >= 15, "{runs} runs");
    daemon.stop(std::time::Duration::ZERO).await;
}

/// The server that the guide names is the one that the tests install; only how it is started differs.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node.js and `npm ci --prefix tests/mcp-servers`"]
async fn the_example_of_mcp_servers_does_what_the_guide_says() {
    let root = Root::new();
    write_examples(&root);
    let text = std::fs::read_to_string(root.join("mcp.json")).expect("mcp.json");
    let mut servers: Value = serde_json::from_str(&text).expect("JSON");
    let entry = &mut servers["mcpServers"]["everything"];
    let package: Value = serde_json::from_str(include_str!("../mcp-servers/package.json")).expect("JSON");
    let version = &package["dependencies"]["@modelcontextprotocol/server-everything"];
    let named = format!("@modelcontextprotocol/server-everything@{}", version.as_str().expect("a version"));
    assert_eq!(*entry, json!({ "command": "npx", "args": ["-y", named] }));
    *entry = json!({ "command": "node", "args": [mcp::everything()] });
    root.write("mcp.json", &servers.to_string());
    let clock = TestClock::at(NOW);
    let daemon = root.daemon_at(Clock::Test(clock.clone())).await;
    assert_eq!(runs_are_as_shown(&daemon, &clock, ("mcp-input", "mcp-output")).await, 2);
    daemon.stop(std::time::Duration::ZERO).await;
}

/// Makes the runs that blocks of these two kinds show, in their order; how many.
async fn runs_are_as_shown(daemon: &Daemon, clock: &TestClock, (given, gives): (&str, &str)) -> i64 {
    let mut input: Option<Block> = None;
    let mut runs = 0_i64;
    for block in blocks() {
        match block.kind {
            kind if kind == given => input = Some(block),
            kind if kind == gives => {
                let given = input.take().inspect(|given| assert_eq!(given.name, block.name, "line {}", given.line));
                let (_, end) = run(daemon, block.name, given.map(|given| json_of(&given).to_string()).as_deref()).await;
                let expected = json_of(&block);
                let output = end.output_json.as_deref().map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
                let mut came = json!({});
                for (key, value) in [
                    ("summary", end.summary.clone().map(Value::from)),
                    ("output", output),
                    ("errorCode", end.error_code.map(|code| json!(code))),
                    // The message; the stack stands on the lines behind it.
                    ("error", end.error.as_deref().and_then(|text| text.lines().next()).map(Value::from)),
                ] {
                    if let Some(value) = value {
                        came[key] = value;
                    }
                }
                assert_eq!(came, expected, "line {}: {end:?}", block.line);
                runs += 1;
                // Runs of one instant have no order, and the last example asks for the newest.
                clock.set(NOW + runs);
            }
            _ => {}
        }
    }
    assert!(input.is_none(), "an input without what it gives");
    runs
}

#[test]
#[cfg(unix)]
fn what_the_guide_types_works() {
    let programs = Root::new();
    std::os::unix::fs::symlink(PROGRAM, programs.join("dirigent")).expect("a link");
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap_or_default());
    let root = Root::new();
    let mut daemon: Option<Served> = None;
    let mut told = String::new();
    for block in blocks().into_iter().filter(|block| block.language == "sh") {
        if block.kind == "daemon" && daemon.is_none() {
            daemon = Some(root.serve());
        }
        let output = Command::new("sh")
            .args(["-euc", &block.text])
            .current_dir(root.path())
            .env("PATH", &path)
            .env_remove("DIRIGENT_ROOT")
            .output()
            .expect("a shell");
        assert!(output.status.success(), "line {}: {output:?}", block.line);
        told.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    assert!(daemon.is_some() && told.contains("200 ok"), "{told}");
    let manifest =
        std::fs::read_to_string(root.join("auto.mine/automations/hello/automation.json")).expect("a manifest");
    assert!(manifest.contains("\"enabled\": true"), "{manifest}");
    assert!(root.join(".dirigent/automation.schema.json").is_file());
    let input = root.sql("auto.mine", "select input_json from runs where trigger_origin = 'webhook'");
    assert_eq!(input, [r#"{"order": "o-1"}"#]);
}

/// Whether `told` has all that is shown of it.
fn holds(told: &Value, shown: &Value) -> bool {
    match (told, shown) {
        (Value::Object(told), Value::Object(shown)) => {
            shown.iter().all(|(name, value)| told.get(name).is_some_and(|told| holds(told, value)))
        }
        (Value::Array(told), Value::Array(shown)) => {
            told.len() == shown.len() && told.iter().zip(shown).all(|(told, shown)| holds(told, shown))
        }
        (told, shown) => told == shown,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_for_assistants_answer_as_the_guide_shows() {
    let root = Root::new();
    let (_child, client) = builder::stdio(&root).await;
    let mut answers = 0;
    let mut result = None;
    for block in blocks() {
        match block.kind {
            "call" => result = Some(builder::call(&client, block.name, json_of(&block)).await),
            "gives" | "refuses" => {
                let result = result.take().expect("a call before it");
                assert_eq!(result.is_error == Some(true), block.kind == "refuses", "line {}: {result:?}", block.line);
                let told = result.structured_content.expect("a value");
                assert!(holds(&told, &json_of(&block)), "line {}: {told:#}", block.line);
                answers += 1;
            }
            "mcp-server" => {
                let entry = json_of(&block)["mcpServers"]["dirigent"].take();
                assert_eq!(entry["command"], "dirigent");
                let args: Vec<&str> =
                    entry["args"].as_array().expect("a list").iter().flat_map(Value::as_str).collect();
                assert_eq!(args, ["mcp", "--root", "/path/to/apps"], "as `builder::stdio` starts it");
            }
            _ => {}
        }
    }
    assert_eq!(answers, 5);
}
