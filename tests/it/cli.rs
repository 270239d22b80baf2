//! The command line, from outside, with a daemon and without.

use std::process::Output;

use serde_json::Value;

use crate::harness::Root;

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn a_scaffold_is_valid_runs_and_is_enabled() {
    let root = Root::new();
    for (handle, template) in [
        ("auto.one/minimal", "minimal"),
        ("auto.one/tools", "tools"),
        ("auto.one/agent", "agent"),
        ("auto.one/invoke", "invoke"),
    ] {
        let made = root.cli(&["new", handle, "--template", template, "--cron", "0 9 * * 1", "--tz", "Europe/Berlin"]);
        assert_eq!(code(&made), Some(0), "{made:?}");
        let again = root.cli(&["new", handle]);
        assert_eq!(code(&again), Some(1), "nothing is overwritten: {again:?}");
    }
    let valid = root.cli(&["--json", "validate"]);
    assert_eq!(code(&valid), Some(0), "{valid:?}");
    let run = root.cli(&["--json", "run", "auto.one/minimal", "--input", "{\"a\":1}"]);
    assert_eq!(code(&run), Some(0), "{run:?}");
    let told = lines(&run);
    assert_eq!(told.last().unwrap()["type"], "result");
    assert_eq!(told.last().unwrap()["status"], "ok");
    assert_eq!(root.sql("auto.one", "select status, trigger_origin, input_json from runs"), ["ok|manual|{\"a\":1}"]);

    let state = |root: &Root| {
        let list = json(&root.cli(&["--json", "list"]));
        let views = list["automations"].as_array().cloned().unwrap_or_default();
        views.iter().find(|v| v["handle"] == "auto.one/minimal").expect("listed")["state"].clone()
    };
    assert_eq!(state(&root), "disabled");
    assert_eq!(code(&root.cli(&["enable", "auto.one/minimal"])), Some(0));
    assert_eq!(state(&root), "enabled");
    let text = std::fs::read_to_string(root.join("auto.one/automations/minimal/automation.json")).unwrap();
    assert!(text.contains("\"enabled\": true") && text.ends_with("}\n"), "{text}");
    assert_eq!(code(&root.cli(&["disable", "auto.one/minimal"])), Some(0));
    assert_eq!(state(&root), "disabled");
}

#[test]
fn validate_tells_every_problem_with_its_place() {
    let root = Root::new();
    root.write(
        "a/automations/bad/automation.json",
        "{\n  \"name\": \"\",\n  \"prompt\": \"p\",\n  \"triggers\": [{\"kind\": \"cron\", \"expr\": \"99 * * * *\"}],\n  \"generated\": {\"by\": \"t\", \"at\": \"n\"}\n}\n",
    );
    root.write("a/automations/bad/handler.js", "export default () => {\n  const x = ;\n};\n");
    root.write("a/automations/flat.json", "{}");
    let output = root.cli(&["--json", "validate"]);
    assert_eq!(code(&output), Some(1));
    let told = json(&output);
    let problems = told["problems"].as_array().expect("problems");
    let find = |code: &str| problems.iter().find(|p| p["code"] == code).unwrap_or_else(|| panic!("{code}: {told}"));
    assert_eq!(
        (&find("missing_field")["field"], &find("missing_field")["line"]),
        (&Value::from("name"), &Value::from(2))
    );
    assert_eq!(find("invalid_trigger")["line"], 4);
    assert_eq!(find("handler_load")["line"], 2);
    assert!(find("flat_manifest")["hint"].is_string());
}

#[test]
fn exit_codes_say_what_happened() {
    let root = Root::new();
    root.automation("a/x", "", "export default ({ input }) => { if (input) throw new Error('boom'); };");
    for (args, exit) in [
        (&["run", "a/x"][..], 0),
        (&["run", "a/x", "--input", "1"], 1),
        (&["run", "a/x", "--input", "{nope"], 2),
        (&["run", "a/nope"], 1),
        (&["nope"], 2),
        (&["cancel", "00000000-0000-7000-8000-000000000000"], 3),
        (&["next", "--expr", "99 * * * *"], 2),
        (&["next", "--expr", "0 9 * * *", "--tz", "Europe/Berlin"], 0),
        (&["types"], 0),
        (&["schema"], 0),
        (&["completions", "bash"], 0),
        (&["trace", "nope-nope"], 2),
    ] {
        let output = root.cli(args);
        assert_eq!(code(&output), Some(exit), "{args:?}: {output:?}");
        let mut with_json = vec!["--json"];
        with_json.extend(args);
        let output = root.cli(&with_json);
        assert_eq!(code(&output), Some(exit), "{with_json:?}: {output:?}");
        if exit == 2 || exit == 3 {
            let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{e}: {output:?}"));
            assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string(), "{error}");
        }
    }
}

#[test]
fn history_is_read_with_and_without_a_daemon() {
    let root = Root::new();
    root.automation(
        "a/parent",
        "",
        "export default async ({ ctx, log }) => { log.warn('careful', { n: 1 }); return { summary: 'p', output: await ctx.invoke('child', { input: 1 }) }; };",
    );
    root.automation("a/child", "", "export default ({ input }) => ({ summary: 'c' + input, output: input });");
    let mut served = root.serve();
    let run = root.cli(&["--json", "run", "a/parent"]);
    assert_eq!(code(&run), Some(0), "{run:?}");
    let result = lines(&run).pop().unwrap();
    assert_eq!(result["output"]["output"], 1);
    let id = result["runId"].as_str().unwrap().to_owned();
    for daemon in [true, false] {
        if !daemon {
            assert_eq!(served.terminate(), Some(0));
        }
        let runs = json(&root.cli(&["--json", "runs"]));
        let rows = runs["runs"].as_array().or(runs.as_array()).expect("rows").clone();
        assert_eq!(rows.len(), 2, "daemon: {daemon}: {runs}");
        let trace = root.cli(&["trace", &id]);
        let text = String::from_utf8_lossy(&trace.stdout);
        assert!(text.contains("a/child") || text.contains("child"), "{text}");
        let logs = root.cli(&["logs", &id]);
        assert!(String::from_utf8_lossy(&logs.stdout).contains("careful"), "{logs:?}");
    }
    assert_eq!(code(&root.cli(&["cancel", &id])), Some(3));
    let again = root.cli(&["--json", "replay", &id]);
    assert_eq!(code(&again), Some(0), "{again:?}");
    assert_eq!(root.sql("a", "select count(*) from runs where automation_id = 'parent'"), ["2"]);
}

#[test]
fn the_daemon_follows_the_disk_while_it_serves() {
    let root = Root::new();
    let _served = root.serve();
    root.automation("late/x", "", "export default () => ({ summary: 'hello' });");
    // `run` asks the daemon, which may hear of the folder a moment later.
    let mut tries = 0;
    let output = loop {
        let output = root.cli(&["--json", "run", "late/x"]);
        tries += 1;
        if code(&output) == Some(0) || tries == 200 {
            break output;
        }
    };
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert_eq!(root.sql("late", "select summary from runs"), ["hello"]);
}
