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

/// Manifests that came from another machine refer to a schema that did not.
#[test]
fn a_daemon_brings_the_schema_for_editors() {
    let root = Root::new();
    let schema = root.join(".dirigent/automation.schema.json");
    root.write(".dirigent/automation.schema.json", "{}");
    let _daemon = root.serve();
    let text = std::fs::read(&schema).expect("a schema");
    let printed = json(&root.cli(&["schema"]));
    assert_eq!(serde_json::from_slice::<Value>(&text).expect("JSON"), printed);
}

/// A variable that only the daemon has tells who started the MCP server.
#[test]
fn tools_are_asked_of_the_daemon_when_one_runs() {
    let root = Root::copy_of("fixtures/apps");
    root.write("broken/app.json", "{\"queries\": 5}");
    root.write(
        "mcp.json",
        r#"{"mcpServers": {"one": {"command": "no-such-program", "env": {"K": "${ONLY_THE_DAEMON}"}}, "half": {}}}"#,
    );
    let tools = || json(&root.cli(&["tools", "--json"]));
    let error = |told: &Value, server: &str| {
        let servers = told["mcp"].as_array().expect("servers").clone();
        servers.into_iter().find(|entry| entry["server"] == server).expect("listed")["error"]["code"].clone()
    };
    let alone = tools();
    assert_eq!(error(&alone, "one"), "mcp_not_configured");

    let mut daemon = root.serve_with(&["--hooks", "127.0.0.1:0"], &[("ONLY_THE_DAEMON", "x")]);
    let asked = tools();
    assert_eq!((error(&asked, "one"), error(&asked, "half")), ("mcp_failed".into(), "mcp_not_configured".into()));
    assert_eq!((&asked["apps"], &asked["builtin"]), (&alone["apps"], &alone["builtin"]));
    assert_eq!(asked["problems"][0]["field"], "mcpServers.half");
    let shown = root.cli(&["tools"]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("bookshelf: query books") && text.contains("no-such-program"), "{text}");
    assert!(!String::from_utf8_lossy(&shown.stderr).contains("asking"), "{shown:?}");

    daemon.kill();
    assert_eq!(error(&tools(), "one"), "mcp_not_configured");
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

/// Every line of stderr, which with `--json` is JSON too.
fn said(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {output:?}"))).collect()
}

#[test]
fn wrong_usage_is_told_in_our_words_and_as_json() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => {};");
    for (args, code_told, told) in [
        (&["next", "--expr", "-1 * * * *"][..], "invalid_cron", "both sides of `-`"),
        (&["next", "--expr", "* * * * *", "--from", "-1"], "usage", "--from \"-1\" is no instant"),
        (&["next", "--expr", "* * * * *", "--tz", "-1"], "invalid_cron", "-1"),
        (&["next", "--expr", "* * * * *", "-n", "-1"], "usage", "--count"),
        (&["runs", "--since", "-7d"], "usage", "--since \"-7d\""),
        (&["new", "a/y", "--cron", "-1 * * * *"], "invalid_cron", "both sides of `-`"),
        (&["run", "a/x", "--input", "-x"], "usage", "--input is no JSON"),
        (&["run"], "usage", "<HANDLE>"),
        (&["list", "--nope"], "usage", "--nope"),
    ] {
        let output = root.cli(args);
        assert_eq!(code(&output), Some(2), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(told), "{args:?}: {output:?}");
        let output = root.cli(&[&["--json"], args].concat());
        assert_eq!((code(&output), output.stdout.is_empty()), (Some(2), true), "{args:?}: {output:?}");
        let [error] = said(&output).try_into().expect("one error");
        assert_eq!(error["error"]["code"], code_told, "{error}");
        assert!(error["error"]["message"].as_str().is_some_and(|text| text.contains(told)), "{error}");
    }
    assert_eq!(code(&root.cli(&["run", "a/x", "--input", "-1"])), Some(0), "a number is JSON");
    let version = root.cli(&["--json", "--version"]);
    assert_eq!((code(&version), json(&version)["version"].as_str()), (Some(0), Some(env!("CARGO_PKG_VERSION"))));
    let help = root.cli(&["run", "--help", "--json"]);
    assert!(code(&help) == Some(0) && json(&help)["help"].as_str().is_some_and(|text| text.contains("--input")));
}

#[test]
fn an_input_over_its_limits_is_wrong_usage() {
    let root = Root::new();
    root.write("dirigent.toml", "[limits]\nvalue_bytes = 1024\n");
    root.write("long.json", &format!("\"{}\"", "x".repeat(2000)));
    root.automation("a/x", "", "export default ({ input }) => ({ summary: typeof input });");
    let from_file = format!("@{}", root.join("long.json").display());
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let mut served = None;
    for daemon in [false, true] {
        if daemon {
            served = Some(root.serve());
        }
        for (input, refused) in [
            (format!("\"{}\"", "x".repeat(1022)), None),
            (format!("\"{}\"", "x".repeat(1023)), Some("too_large")),
            (from_file.clone(), Some("too_large")),
            (nested(100), None),
            (nested(101), Some("too_deep")),
        ] {
            let output = root.cli(&["--json", "run", "a/x", "--input", &input]);
            assert_eq!(code(&output), Some(if refused.is_some() { 2 } else { 0 }), "{daemon}: {output:?}");
            let errors = said(&output);
            assert_eq!(errors.first().and_then(|told| told["error"]["code"].as_str()), refused, "{daemon}: {errors:?}");
        }
    }
    drop(served);
    assert_eq!(root.sql("a", "select status, count(*) from runs group by 1"), ["ok|4"]);
}

#[test]
fn what_a_run_says_beside_its_result_is_json_too() {
    let root = Root::new();
    root.automation(
        "a/x",
        r#""retry": {"max": 1, "backoffMs": 3600000}"#,
        "export default () => { throw new Error('no'); };",
    );
    let output = root.cli(&["--json", "run", "a/x"]);
    assert_eq!((code(&output), &lines(&output).pop().unwrap()["errorCode"]), (Some(1), &Value::from("handler_threw")));
    let [note] = said(&output).try_into().expect("one note");
    assert!(note["note"]["message"].as_str().is_some_and(|text| text.contains("retry")), "{note}");
}

#[test]
fn a_word_that_names_no_automation_leads_to_one() {
    let root = Root::new();
    for id in ["digest", "sync"] {
        root.automation(&format!("auto.mail/{id}"), "", "export default () => {};");
    }
    for command in ["run", "enable", "disable"] {
        for (word, hint) in [
            ("digset", "did you mean auto.mail/digest?"),
            ("auto.mail/digset", "did you mean auto.mail/digest?"),
            ("auto.mail", "it has auto.mail/digest, auto.mail/sync"),
            ("automail", "a handle is <app>/<automation>; auto.mail has auto.mail/digest, auto.mail/sync"),
        ] {
            let output = root.cli(&["--json", command, word]);
            let [error] = said(&output).try_into().expect("one error");
            assert_eq!((code(&output), &error["error"]["code"]), (Some(1), &Value::from("unknown_automation")));
            assert_eq!(error["error"]["hint"], hint, "{command} {word}");
        }
    }
}

#[test]
fn what_cannot_run_does_not_look_well() {
    let root = Root::new();
    for (app, handler) in [("fine", true), ("bare", false), ("folder", true)] {
        root.manifest(&format!("{app}/x"), r#""triggers": [{"kind": "cron", "expr": "0 9 * * *"}]"#);
        if handler {
            root.write(&format!("{app}/automations/x/handler.js"), "export default () => {};");
        }
    }
    std::fs::create_dir(root.join("folder/runtime.sqlite")).expect("a folder");
    let mut served = None;
    for daemon in [false, true] {
        if daemon {
            served = Some(root.serve());
        }
        let list = json(&root.cli(&["--json", "list"]));
        let view = |app: &str| {
            let views = list["automations"].as_array().expect("views");
            views.iter().find(|view| view["appId"] == app).expect("listed").clone()
        };
        assert_eq!(view("fine")["state"], "enabled", "daemon: {daemon}");
        let bare = view("bare");
        assert_eq!((&bare["state"], &bare["enabled"], &bare["valid"]), (&"invalid".into(), &true.into(), &true.into()));
        assert_eq!(bare["problems"][0]["code"], "missing_handler");
        assert!(bare["triggers"][0]["next"].is_string(), "it still fires, and records why it failed: {bare}");
        let problems = list["problems"].as_array().expect("problems");
        let ledgers: Vec<&Value> = problems.iter().filter(|problem| problem["code"] == "ledger").collect();
        assert_eq!(ledgers.len(), 1, "daemon: {daemon}: {list}");
        assert_eq!(ledgers[0]["path"], "folder/runtime.sqlite");
        assert!(ledgers[0]["hint"].is_string());
        let shown = root.cli(&["list"]);
        let shown = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.contains("folder/runtime.sqlite: error[ledger]: nothing of this app can be recorded"), "{shown}");
    }
    drop(served);
    // What fires says so in its row.
    let failed = root.cli(&["run", "bare/x"]);
    assert_eq!(code(&failed), Some(1), "{failed:?}");
    assert_eq!(root.sql("bare", "select status, error_code from runs"), ["error|handler_load"]);
}

/// Rights bind everybody but the superuser, so a test that runs as that one asks as nobody.
#[cfg(unix)]
#[test]
fn a_ledger_without_the_right_to_write_it_is_a_problem_and_looking_changes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let root = Root::new();
    for app in ["file", "folder", "fine"] {
        root.automation(&format!("{app}/x"), "", "export default () => {};");
        if app != "folder" {
            assert_eq!(code(&root.cli(&["run", &format!("{app}/x")])), Some(0));
        }
    }
    let chmod = |path: &str, mode| {
        std::fs::set_permissions(root.join(path), std::fs::Permissions::from_mode(mode)).expect("a mode");
    };
    // SAFETY: a plain system call without arguments.
    let superuser = unsafe { libc::geteuid() } == 0;
    let files = |app: &str| -> Vec<String> {
        let entries = std::fs::read_dir(root.join(app)).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| format!("{app}/{}", entry.unwrap().file_name().display())).collect();
        names.sort();
        names
    };
    for app in ["file", "folder", "fine"] {
        chmod(app, if app == "folder" { 0o555 } else { 0o777 });
        for path in files(app).iter().filter(|path| path.contains(".sqlite")) {
            chmod(path, if app == "file" { 0o444 } else { 0o666 });
        }
    }
    chmod(".", 0o755);
    let before = files("folder");
    let mut command = root.command(&["--json", "list"]);
    if superuser {
        command.uid(NOBODY);
    }
    // Where nobody may start the program, there is nobody to ask.
    let Ok(output) = command.output() else { return };
    let list = json(&output);
    let problems = list["problems"].as_array().expect("problems");
    let told: Vec<&str> = problems.iter().map(|problem| problem["path"].as_str().unwrap_or_default()).collect();
    assert_eq!(told, ["file/runtime.sqlite", "folder/runtime.sqlite"], "{list}");
    for problem in problems {
        let (message, hint) = (problem["message"].as_str(), problem["hint"].as_str());
        assert!(message.is_some_and(|text| text.contains("it cannot be written")), "{problem}");
        assert!(hint.is_some_and(|text| text.contains("chmod u+w")), "{problem}");
    }
    assert_eq!(files("folder"), before, "nothing is made");
    chmod("folder", 0o755);
}
