//! `validate` as a builder sees it: problems of handlers, with places and hints, through the real program.

use std::collections::{BTreeMap, BTreeSet};

use dirigent::fire::RunStatus;
use dirigent::handler_check::{Contract, GLOBALS, members};
use serde_json::Value;

use crate::harness::{Root, run};

/// `path:line:col code` of each problem, warnings with a `?`, and the exit code.
fn validate(root: &Root, paths: &[&str]) -> (Vec<String>, i32) {
    let args: Vec<&str> = ["--json", "validate"].iter().chain(paths).copied().collect();
    let output = root.command(&args).current_dir(root.path()).output().expect("the program runs");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |problem: &Value, key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    let line = |problem: &Value| {
        let mark = if problem["severity"] == "warning" { "?" } else { "" };
        let place = format!("{}:{}:{}", text(problem, "path"), problem["line"], problem["column"]);
        // The parser knows what it expected; only sometimes what to do.
        assert!(problem["hint"].is_string() || problem["code"] == "handler_load", "no hint: {problem}");
        format!("{place} {mark}{}", text(problem, "code"))
    };
    let problems = told["problems"].as_array().expect("problems").iter().map(line).collect();
    (problems, output.status.code().expect("an exit code"))
}

#[test]
fn handlers_queries_and_actions_are_read_with_their_manifests() {
    let root = Root::new();
    root.automation(
        "shop/report",
        r#""requires": {"tools": ["mail.send"]}, "apps": ["vault"]"#,
        "export default async ({ ctx }) => {\n\
         \x20 await ctx.tool('mail.send', {});\n\
         \x20 await ctx.tool('mail.delete', {});\n\
         \x20 await ctx.tool('centraid_read', { app: 'vault', query: 'q' });\n\
         \x20 await ctx.tool('centraid_read', { app: 'bank', query: 'q' });\n\
         \x20 ctx.state.put('x', 1);\n\
         \x20 ctx.invoke('other');\n\
         \x20 await fetch('https://example.com');\n\
         };\n",
    );
    root.automation("shop/typed", "", "export default async ({ ctx }: { ctx: any }) => {};\n");
    root.automation("shop/broken", "", "export default async () => {\n  const ö = ;\n};\n");
    root.automation("shop/bytes", "", "");
    let latin = b"export default () => {\n  return '\xc3\xa4\xe4';\n};\n";
    std::fs::write(root.join("shop/automations/bytes/handler.js"), latin).expect("a file");
    root.automation("shop/good", "", "export default async () => ({ summary: 'x' });\n");
    root.write("shop/app.json", "{}");
    root.write("mcp.json", r#"{"mcpServers": {"mail": {"command": "mail-server"}}}"#);
    root.write("shop/queries/list.js", "export default async ({ db }) => db.query('select 1');\n");
    root.write("shop/actions/add.js", "export default async ({ ctx, body }) => ({ body });\n");
    let all = [
        "shop/actions/add.js:1:25 ?unknown_argument",
        "shop/automations/broken/handler.js:2:13 handler_load",
        "shop/automations/bytes/handler.js:2:12 not_utf8",
        "shop/automations/report/handler.js:3:18 tool_not_allowed",
        "shop/automations/report/handler.js:5:18 tool_not_allowed",
        "shop/automations/report/handler.js:6:13 unknown_ctx_member",
        "shop/automations/report/handler.js:7:3 ?not_awaited",
        "shop/automations/report/handler.js:8:9 ?absent_global",
        "shop/automations/typed/handler.js:1:30 handler_load",
        "shop/queries/list.js:1:37 unknown_db_member",
    ];
    let pick =
        |part: &str| all.iter().filter(|line| line.starts_with(part)).map(|l| (*l).to_owned()).collect::<Vec<_>>();
    for (paths, expected, code) in [
        (&[][..], pick(""), 1),
        (&["shop"], pick(""), 1),
        (&["shop/good"], pick("none"), 0),
        (&["shop/report"], pick("shop/automations/report"), 1),
        (&["shop/automations/report/handler.js"], pick("shop/automations/report"), 1),
        (&["shop/automations/typed"], pick("shop/automations/typed"), 1),
        (&["shop/queries"], pick("shop/queries"), 1),
        (&["shop/actions/add.js"], pick("shop/actions"), 0),
    ] {
        assert_eq!(validate(&root, paths), (expected, code), "{paths:?}");
    }
}

/// What lies beside the apps is judged with the whole root, and alone.
#[test]
fn settings_and_references_are_read_with_the_root() {
    let root = Root::new();
    let handler = "export default async () => {};\n";
    root.automation("a/x", r#""requires": {"tools": ["mial.send"], "model": "opnai/x"}, "onFailure": "gone""#, handler);
    root.automation("a/y", r#""requires": {"mcps": ["mail", "web"]}"#, handler);
    root.write("mcp.json", "{\n  \"mcpServers\": {\n    \"mail\": {\"command\": 5},\n    \"web\": {}\n  }\n}\n");
    let codes = |paths: &[&str]| {
        let args: Vec<&str> = ["--json", "validate"].iter().chain(paths).copied().collect();
        let output = root.command(&args).current_dir(root.path()).output().expect("the program runs");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let text = |problem: &Value, key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        let line = |problem: &Value| {
            let at = format!("{}:{}", text(problem, "path"), problem["line"]);
            format!("{at} {} {} {}", text(problem, "severity"), text(problem, "code"), text(problem, "field"))
        };
        let problems: Vec<String> = told["problems"].as_array().expect("problems").iter().map(line).collect();
        (problems, output.status.code())
    };
    let of_x: Vec<String> = [
        "warning unknown_mcp_server requires.tools[0]",
        "warning model_not_configured requires.model",
        "warning invalid_on_failure onFailure",
    ]
    .map(|told| format!("a/automations/x/automation.json:5 {told}"))
    .to_vec();
    let of_servers =
        ["mcp.json:3 error invalid_field mcpServers.mail.command", "mcp.json:4 error missing_field mcpServers.web"];
    let of_servers = of_servers.map(str::to_owned).to_vec();
    assert_eq!(codes(&["a/x"]), (of_x.clone(), Some(0)));
    assert_eq!(codes(&["a/y"]), (vec![], Some(0)), "an entry that is wrong is there all the same");
    assert_eq!(codes(&["mcp.json"]), (of_servers.clone(), Some(1)));
    assert_eq!(codes(&[]), ([of_x, of_servers].concat(), Some(1)));
    root.write("mcp.json", "{");
    root.write("dirigent.toml", "modles = 5\n");
    let broken = |problems: &[&str]| (problems.iter().map(|told| (*told).to_owned()).collect::<Vec<_>>(), Some(1));
    assert_eq!(codes(&["mcp.json"]), broken(&["mcp.json:1 error invalid_json "]));
    assert_eq!(codes(&["dirigent.toml"]), broken(&["dirigent.toml:null error bad_config "]));
}

/// What the parser accepts and V8 refuses, and what ends the parser, is told as it is.
#[test]
fn v8_has_the_last_word_and_deep_texts_end_nothing() {
    let root = Root::new();
    let deep = format!("export default async () => {}1{};\n", "[".repeat(50_000), "]".repeat(50_000));
    root.automation("a/deep", "", &deep);
    let long = format!("export default async () => 1{};\n", "+1".repeat(50_000));
    root.automation("a/long", "", &long);
    let output = root.cli(&["--json", "validate"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let problems = told["problems"].as_array().expect("problems");
    let codes: BTreeSet<&str> = problems.iter().filter_map(|problem| problem["code"].as_str()).collect();
    assert!(codes.contains("not_checked"), "{codes:?}");
    assert!(codes.iter().all(|code| ["not_checked", "handler_load"].contains(code)), "{codes:?}");
}

/// Handlers as people and models write them, each in a style of its own: none is flagged, and each does run.
#[tokio::test(flavor = "multi_thread")]
async fn correct_handlers_have_no_problems_and_run_well() {
    const FIELDS: &str = r#""requires": {"tools": ["mail.send", "calendar.*"], "mcps": ["news"], "model": "a/b"}"#;
    let root = Root::new();
    root.write("apps/app.json", r#"{"queries": [{"name": "rows"}], "actions": [{"name": "add"}]}"#);
    root.write("apps/queries/rows.js", "export default () => [{ n: 1 }, { n: 2 }];\n");
    root.write("apps/actions/add.js", "export default ({ body }) => ({ body });\n");
    root.automation("apps/child", "", "export default ({ input }) => ({ output: { n: input?.n ?? 0 } });\n");
    let mut to_run = Vec::new();
    let text = include_str!("../../fixtures/handlers/correct.js");
    for part in text.split("//// ").skip(1) {
        let (title, handler) = part.split_once('\n').expect("a title");
        let (name, rest) = title.split_once(' ').unwrap_or((title, ""));
        let handle = format!("apps/{name}");
        root.automation(&handle, FIELDS, handler);
        match rest {
            "" => to_run.push(handle),
            "(not run)" => {}
            _ => panic!("{title}"),
        }
    }
    assert!(to_run.len() >= 70, "{}", to_run.len());
    root.write(
        "mcp.json",
        r#"{"mcpServers": {"mail": {"command": "x"}, "calendar": {"command": "x"}, "news": {"command": "x"}}}"#,
    );
    root.write("dirigent.toml", "[models.a]\nbase_url = \"http://127.0.0.1:9/v1\"\n");
    assert_eq!(validate(&root, &[]), (vec![], 0));
    // They run where nobody answers.
    for file in ["mcp.json", "dirigent.toml"] {
        std::fs::remove_file(root.join(file)).expect("a file");
    }
    let daemon = root.daemon().await;
    for handle in to_run {
        let (_, end) = run(&daemon, &handle, None).await;
        assert_eq!(end.status, RunStatus::Ok, "{handle}: {:?}", end.error);
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

/// The check's table of the contract, beside what handlers are really given.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_members_is_that_of_a_real_host() {
    const DATABASE: &str = "'db.prepare()': keys(db.prepare('select 1')), db: keys(db), \
        tx: await db.transaction(async (tx) => keys(tx))";
    let root = Root::new();
    root.automation(
        "a/x",
        "",
        "const { keys } = Object;\n\
         export default async (args) => {\n\
         \x20 const { ctx, log } = args;\n\
         \x20 const read = await ctx.tool('centraid_read', { query: 'q' });\n\
         \x20 const { body } = await ctx.tool('centraid_write', { action: 'a' });\n\
         \x20 const automation = { 'an automation\u{2019}s argument': keys(args), ctx: keys(ctx), log: keys(log),\n\
         \x20   'ctx.state': keys(ctx.state), 'ctx.runs': keys(ctx.runs), 'ctx.run': keys(ctx.run) };\n\
         \x20 return { output: [automation, read, body] };\n\
         };\n",
    );
    root.write("a/app.json", r#"{"queries": [{"name": "q"}], "actions": [{"name": "a"}]}"#);
    let tool = |name: &str, result: &str| {
        format!(
            "const {{ keys }} = Object;\nexport default async (args) => {{\n  const {{ db, log }} = args;\n  const \
             members = {{ '{name}': keys(args), log: keys(log), {DATABASE} }};\n  return {result};\n}};\n"
        )
    };
    root.write("a/queries/q.js", &tool("a query\u{2019}s argument", "members"));
    root.write("a/actions/a.js", &tool("an action\u{2019}s argument", "{ body: members }"));
    let daemon = root.daemon().await;
    let (_, end) = run(&daemon, "a/x", None).await;
    let output = end.output_json.unwrap_or_else(|| panic!("{:?}", end.error));
    let real: Vec<BTreeMap<String, BTreeSet<String>>> = serde_json::from_str(&output).expect("members");
    for (contract, real) in [Contract::Automation, Contract::Query, Contract::Action].into_iter().zip(real) {
        let table: BTreeMap<String, BTreeSet<String>> = members(contract)
            .into_iter()
            // What is not there in this run has no key.
            .filter(|(name, _)| *name != "ctx.run.trigger")
            .map(|(name, members)| (name.replace('\'', "\u{2019}"), members.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(table, real, "{contract:?}");
    }
    daemon.stop(std::time::Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_globals_is_that_of_a_real_host() {
    let root = Root::new();
    root.automation("a/x", "", "export default () => ({ output: Object.getOwnPropertyNames(globalThis) });\n");
    let daemon = root.daemon().await;
    let (_, end) = run(&daemon, "a/x", None).await;
    let names: BTreeSet<String> = serde_json::from_str(&end.output_json.expect("an output")).expect("names");
    assert_eq!(names, GLOBALS.iter().map(|name| (*name).to_owned()).collect());
    daemon.stop(std::time::Duration::ZERO).await;
}
