//! `runtime-js/ctx.d.ts` as editors use it: TypeScript checks every handler that this repository shows to people.
//!
//! TypeScript comes from npm, so these tests are asked for by name: `npm ci --prefix tests/types`, then
//! `cargo test --test it types -- --ignored`. The gate does both; without the compiler they fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use crate::guide;
use crate::harness::Root;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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
