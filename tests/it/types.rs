//! `runtime-js/ctx.d.ts` and the manifest's JSON Schema as editors use them: TypeScript checks every handler that this
//! repository shows to people, and what completes and checks in VS Code is asked about a scaffold.
//!
//! These programs come from npm, so the tests that need them are asked for by name: `npm ci --prefix tests/types`, then
//! `cargo test --test it types -- --ignored`. The gate does both; without the programs they fail.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dirigent::handler_check::{Contract, members};
use dirigent::isolate::CTX_TYPES;
use serde_json::{Value, json};

use crate::guide;
use crate::harness::{PROGRAM, Root, run};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Members of each interface of the types, with those that it inherits.
fn interfaces() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut parents = Vec::new();
    let mut open = None;
    let mut depth = 0_i32;
    for line in CTX_TYPES.lines() {
        if let Some(head) = line.strip_prefix("export interface ") {
            let name = head.split([' ', '<']).next().expect("a name");
            if let Some((_, parent)) = head.split_once(" extends ") {
                parents.push((name, parent.trim_end_matches(" {")));
            }
            found.entry(name).or_default();
            open = Some(name);
        } else if let Some(name) = open.filter(|_| depth == 1) {
            let member = line.trim_start().trim_start_matches("readonly ");
            let end = member.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(member.len());
            let is_member = line.starts_with("  ") && !line.starts_with("   ") && end > 0;
            if is_member && member[end..].starts_with([':', '?', '(', '<']) {
                found.get_mut(name).expect("it is open").insert(&member[..end]);
            }
        }
        if !line.trim_start().starts_with(['*', '/']) {
            depth += i32::try_from(line.matches('{').count()).expect("few");
            depth -= i32::try_from(line.matches('}').count()).expect("few");
        }
        if depth == 0 {
            open = None;
        }
    }
    for (name, parent) in parents {
        let inherited = found.get(parent).cloned().unwrap_or_default();
        found.get_mut(name).expect("declared").extend(inherited);
    }
    found
}

/// The types name what there is, and no more. The table is compared with a running host by `validate`'s tests.
#[test]
fn the_types_have_the_members_of_the_contract() {
    let types = interfaces();
    for contract in [Contract::Automation, Contract::Query, Contract::Action] {
        for (shape, members) in members(contract) {
            let name = match shape {
                "an automation's argument" => "HandlerArgs",
                "a query's argument" => "QueryArgs",
                "an action's argument" => "ActionArgs",
                "ctx" => "Ctx",
                "ctx.state" => "State",
                "ctx.runs" => "Runs",
                "ctx.run" => "Run",
                "ctx.run.trigger" => "Trigger",
                "log" => "Log",
                "db" => "Database",
                // Its `transaction` only says that there is none.
                "tx" => "Queryable",
                "db.prepare()" => "Statement",
                other => panic!("no type for {other}"),
            };
            let members: BTreeSet<&str> =
                members.into_iter().filter(|member| !(shape == "tx" && *member == "transaction")).collect();
            assert_eq!(types.get(name), Some(&members), "{shape}");
        }
    }
}

/// What a running host gives in answer to calls, key by key.
#[tokio::test(flavor = "multi_thread")]
async fn the_types_of_answers_are_those_of_a_real_host() {
    let root = Root::new();
    root.write(
        "a/app.json",
        r#"{"queries": [{"name": "q", "input": {"type": "object", "required": ["x"]}}],
        "actions": [{"name": "w"}]}"#,
    );
    root.write("a/queries/q.js", "export default () => 1;\n");
    root.write(
        "a/actions/w.js",
        "export default async ({ db }) => {\n\
         \x20 await db.exec('create table if not exists t (n)');\n\
         \x20 return { status: 201, body: await db.prepare('insert into t values (1)').run() };\n\
         };\n",
    );
    root.automation("a/child", "", "export default () => ({ output: 1 });\n");
    root.automation("a/told", "", "export default ({ input }) => ({ output: input });\n");
    root.automation("a/fails", r#""onFailure": "told""#, "export default () => { throw new Error('no'); };\n");
    root.automation(
        "a/x",
        "",
        "export default async ({ ctx }) => {\n\
         \x20 const invoked = await ctx.invoke('child', {});\n\
         \x20 const refused = await ctx.tool('centraid_read', { query: 'q', input: {} }).catch((error) => error);\n\
         \x20 const written = await ctx.tool('centraid_write', { action: 'w', input: {} });\n\
         \x20 const row = await ctx.runs.last({ automationId: 'child' });\n\
         \x20 const failure = (await ctx.runs.last({ automationId: 'told', status: 'ok' })).output;\n\
         \x20 const own = (error) => ['code', 'path'].filter((key) => error[key] !== undefined);\n\
         \x20 const output = { InvokeResult: invoked, ActionResult: written, Changes: written.body, RunRow: row, failure };\n\
         \x20 return { output: { ...output, CallError: own(refused), isError: refused instanceof Error } };\n\
         };\n",
    );
    let daemon = root.daemon().await;
    let mut events = daemon.services().bus.runs();
    run(&daemon, "a/fails", None).await;
    let told = "select status from runs where automation_id = 'told'";
    root.sql_becomes(&mut events, "a", told, &["ok"]).await;
    let (_, end) = run(&daemon, "a/x", None).await;
    let told: Value =
        serde_json::from_str(&end.output_json.unwrap_or_else(|| panic!("{:?}", end.error))).expect("JSON");
    let types = interfaces();
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().expect("an object").keys().cloned().collect() };
    for (name, value) in [
        ("InvokeResult", &told["InvokeResult"]),
        ("ActionResult", &told["ActionResult"]),
        ("Changes", &told["Changes"]),
        ("RunRow", &told["RunRow"]),
        ("FailureInput", &told["failure"]),
        ("FailedRun", &told["failure"]["failedRun"]),
    ] {
        let typed: BTreeSet<String> = types[name].iter().map(|member| (*member).to_owned()).collect();
        assert_eq!(typed, keys(value), "{name}");
    }
    assert_eq!(told["CallError"], json!(types["CallError"]));
    assert_eq!(told["isError"], true);
    daemon.stop(std::time::Duration::ZERO).await;
}

/// Runs the compiler on a project file.
fn tsc(project: &Path) -> Output {
    let compiler = repository().join("tests/types/node_modules/typescript/bin/tsc");
    assert!(compiler.is_file(), "TypeScript is not installed; hint: npm ci --prefix tests/types");
    Command::new("node").arg(compiler).arg("-p").arg(project).output().expect("node runs; hint: install Node.js")
}

/// A project file in `root` with the settings of `tests/types/tsconfig.json`, for what stands below `root`.
fn project(root: &Root) -> PathBuf {
    let text = std::fs::read_to_string(repository().join("tests/types/tsconfig.json")).expect("the settings");
    let mut settings: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    settings["include"] = json!(["**/*.js", "**/*.d.ts"]);
    root.write("tsconfig.json", &settings.to_string());
    root.join("tsconfig.json")
}

#[track_caller]
fn passes(output: &Output) {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "needs TypeScript: npm ci --prefix tests/types"]
fn the_examples_fit_the_types_and_the_types_are_exact() {
    passes(&tsc(&repository().join("tests/types")));
}

#[test]
#[ignore = "needs TypeScript: npm ci --prefix tests/types"]
fn scaffolds_and_the_guide_fit_the_types() {
    let root = Root::new();
    for template in ["minimal", "tools", "agent", "invoke"] {
        let made = root.cli(&["new", &format!("auto.new/{template}"), "--template", template]);
        assert!(made.status.success(), "{made:?}");
    }
    guide::write_examples(&root);
    let project = project(&root);
    passes(&tsc(&project));

    // They are really read: a slip in one of them is told.
    let handler = root.join("auto.new/automations/minimal/handler.js");
    let text = std::fs::read_to_string(&handler).expect("the scaffold");
    std::fs::write(&handler, text.replace("ctx.state.get", "ctx.state.fetch")).expect("a write");
    let output = tsc(&project);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("Property 'fetch' does not exist on type 'State'"), "{told}");
}

/// Without the DOM's types an editor does not complete what a handler has not got.
#[test]
#[ignore = "needs TypeScript: npm ci --prefix tests/types"]
fn the_types_need_no_dom() {
    let root = Root::new();
    root.write("ctx.d.ts", CTX_TYPES);
    let handler = |body: &str| {
        let head = "// @ts-check\n/** @type {import('./ctx').Handler} */\nexport default async ({ ctx, log }) => {\n";
        root.write("handler.js", &format!("{head}{body}\n}};\n"));
        let project = project(&root);
        let text = std::fs::read_to_string(&project).expect("the settings");
        let mut settings: Value = serde_json::from_str(&text).expect("JSON");
        settings["compilerOptions"]["lib"] = json!(["es2022"]);
        root.write("tsconfig.json", &settings.to_string());
        tsc(&project)
    };
    let signal = "ctx.abortSignal.addEventListener('abort', () => log.warn(ctx.abortSignal.reason), { once: true });";
    passes(&handler(&format!("{signal}\nctx.abortSignal.throwIfAborted();")));
    for (body, told) in [
        ("await fetch('https://example.com');", "Cannot find name 'fetch'"),
        ("return ctx.abortSignal.abrted;", "Property 'abrted' does not exist"),
    ] {
        let output = handler(body);
        assert!(String::from_utf8_lossy(&output.stdout).contains(told), "{output:?}");
    }
}

/// Runs a script of `tests/types`.
fn script(name: &str, args: &[&Path]) -> Output {
    let folder = repository().join("tests/types");
    assert!(
        folder.join("node_modules/vscode-json-languageservice").is_dir(),
        "VS Code's JSON service is not installed; hint: npm ci --prefix tests/types"
    );
    Command::new("node").arg(folder.join(name)).args(args).output().expect("node runs; hint: install Node.js")
}

/// Nothing is set up for it but by `new`, and the references hold when the root is somewhere else.
#[test]
#[ignore = "needs TypeScript and VS Code's JSON service: npm ci --prefix tests/types"]
fn editors_complete_and_check_a_scaffold_at_once_also_after_a_move() {
    let root = Root::new();
    let before = root.join("before");
    std::fs::create_dir(&before).expect("a folder");
    let made = Command::new(PROGRAM)
        .args(["--root".as_ref(), before.as_os_str()])
        .args(["new", "auto.new/one", "--cron", "0 9 * * *"])
        .output()
        .expect("the program runs");
    assert!(made.status.success(), "{made:?}");
    passes(&script("editor.mjs", &[&before.join("auto.new/automations/one")]));
    let after = root.join("somewhere/else");
    std::fs::create_dir(root.join("somewhere")).expect("a folder");
    std::fs::rename(before, &after).expect("a move");
    passes(&script("editor.mjs", &[&after.join("auto.new/automations/one")]));
}

#[test]
#[ignore = "needs Ajv: npm ci --prefix tests/types"]
fn another_validator_reads_the_schema_as_this_one_does() {
    let root = Root::new();
    passes(&script("schema.mjs", &[Path::new(PROGRAM), root.path()]));
}
