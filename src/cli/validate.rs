//! `validate`: every problem of manifests and handlers, with its place and a hint. Manifests are parsed as the daemon
//! parses them; handlers, queries and actions are read and compiled, not run, in host processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use serde_json::json;

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{GOOD, count, document, line, problem};
use crate::cli::place::{Place, absolute};
use crate::config::{self, Config};
use crate::core::disk::HandlerFile;
use crate::core::manifest::{self, MAX_HANDLER_BYTES, MAX_MANIFEST_BYTES};
use crate::core::registry::Registry;
use crate::fire::{AppId, Handle, Problem};
use crate::handler_check::Contract;
use crate::inspect::{Reachable, Subject, inspect};
use crate::isolate::{self, Pool, PoolConfig};
use crate::tools::mcp;
use crate::watch;

/// Hosts that read side by side: it takes a few milliseconds each.
const HOSTS: usize = 2;

/// Shows all problems of manifests and handlers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent validate                                   the whole root
  dirigent validate auto.mail                         one app folder
  dirigent validate auto.mail/automations/digest      one automation
  dirigent validate draft/automation.json draft/handler.js

Handlers, queries and actions are read, not run. Exit code 1 when any problem is an error.")]
pub struct ValidateArgs {
    /// Manifests, handlers, automation folders, app folders, mcp.json, or a root [default: the root]
    paths: Vec<PathBuf>,
}

/// What one path stands for.
#[derive(Debug, PartialEq)]
enum Target {
    /// Everything under a root whose path there is `below`, or starts with it; empty for all.
    Under { root: PathBuf, below: String },
    /// A manifest that is in no automation folder.
    Manifest(PathBuf),
    /// A handler that is in no automation folder.
    Handler(PathBuf),
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    /// With the paths that messages show.
    handlers: Vec<(String, Subject)>,
    automations: usize,
}

pub async fn validate(place: &Place, args: ValidateArgs) -> Outcome {
    let mut targets = Vec::new();
    for path in &args.paths {
        targets.push(target(place, path)?);
    }
    if args.paths.is_empty() {
        targets.push(Target::Under { root: place.root.clone(), below: String::new() });
    }
    let mut found = tokio::task::spawn_blocking(move || gather(targets))
        .await
        .map_err(|error| Failure::failed("validate", error.to_string()))??;
    let handlers = std::mem::take(&mut found.handlers);
    found.problems.extend(judge(handlers).await?);
    found.problems.sort_by(|a, b| (&a.path, a.line, a.column).cmp(&(&b.path, b.line, b.column)));
    // Two paths may lead to one file.
    found.problems.dedup();
    tell(place, &found)
}

fn tell(place: &Place, found: &Found) -> Outcome {
    let errors = found.problems.iter().filter(|problem| problem.is_error()).count();
    let warnings = found.problems.len() - errors;
    if place.json {
        document(&json!({
            "problems": found.problems,
            "automations": found.automations,
            "errors": errors,
            "warnings": warnings,
        }))?;
    } else {
        use owo_colors::OwoColorize;
        for found in &found.problems {
            problem(found, "")?;
        }
        let checked = count(found.automations, "automation");
        if found.problems.is_empty() {
            line(format_args!("{} {checked} checked, no problems", "ok:".style(GOOD)))?;
        } else {
            line(format_args!("{checked} checked: {}, {}", count(errors, "error"), count(warnings, "warning")))?;
        }
    }
    Ok(if errors > 0 { exit::FAILED } else { exit::FINE })
}

/// Finds out what a path stands for, by its own name and by what is in it.
fn target(place: &Place, given: &Path) -> Result<Target, Failure> {
    let path = absolute(given)?;
    let Ok(meta) = std::fs::metadata(&path) else {
        // A handle is as good as a path.
        if let Some(handle) = given.to_str().and_then(|text| place.automation(text).ok()) {
            return Ok(under(&place.root, &[handle.app.as_str(), "automations", handle.automation.as_str()]));
        }
        return Err(Failure::usage(format!("there is nothing at {}", given.display()))
            .hint("give a manifest, an automation folder, an app folder, or a root"));
    };
    if !meta.is_dir() {
        return file_target(&path);
    }
    if path == place.root {
        return Ok(under(&path, &[]));
    }
    let has = |name: &str| path.join(name).exists();
    let target = if name_of(path.parent()) == "automations" || has("automation.json") || has("handler.js") {
        automation_target(&path)
    } else if matches!(name_of(Some(&path)), "queries" | "actions") && !has("automations") {
        tools_target(&path, None)
    } else if name_of(Some(&path)) == "automations" {
        path.parent().and_then(app_target)
    } else if has("automations") || has("app.json") || has("index.html") {
        app_target(&path)
    } else {
        Some(under(&path, &[]))
    };
    target.ok_or_else(|| {
        Failure::usage(format!("{} is not where an automation belongs", given.display()))
            .hint("its place is <root>/<app>/automations/<id>; give the two files instead to check them alone")
    })
}

fn file_target(path: &Path) -> Result<Target, Failure> {
    let name = name_of(Some(path));
    if matches!(name, mcp::FILE | config::FILE)
        && let Some(root) = path.parent()
    {
        return Ok(under(root, &[name]));
    }
    let folder = path.parent().filter(|_| matches!(name, "automation.json" | "handler.js"));
    if let Some(target) = folder.and_then(automation_target) {
        return Ok(target);
    }
    let tools =
        path.parent().filter(|parent| name.ends_with(".js") && matches!(name_of(Some(parent)), "queries" | "actions"));
    if let Some(target) = tools.and_then(|folder| tools_target(folder, Some(name))) {
        return Ok(target);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(Target::Manifest(path.to_owned())),
        Some("js" | "mjs") => Ok(Target::Handler(path.to_owned())),
        _ => Err(Failure::usage(format!("{} is neither a manifest nor a handler", path.display()))
            .hint("a manifest ends in .json, a handler in .js")),
    }
}

/// `<root>/<app>/automations/<id>`
fn automation_target(dir: &Path) -> Option<Target> {
    let automations = dir.parent().filter(|parent| name_of(Some(parent)) == "automations")?;
    let app = automations.parent()?;
    Some(under(app.parent()?, &[name_of(Some(app)), "automations", name_of(Some(dir))]))
}

/// `<root>/<app>/queries` and `<root>/<app>/actions`, or one file there; `None` where no app folder is around it.
fn tools_target(folder: &Path, file: Option<&str>) -> Option<Target> {
    let app = folder.parent().filter(|app| app.join("app.json").exists() || app.join("automations").exists())?;
    let below: Vec<&str> = [name_of(Some(app)), name_of(Some(folder))].into_iter().chain(file).collect();
    Some(under(app.parent()?, &below))
}

fn app_target(dir: &Path) -> Option<Target> {
    Some(under(dir.parent()?, &[name_of(Some(dir))]))
}

fn under(root: &Path, below: &[&str]) -> Target {
    Target::Under { root: root.to_owned(), below: below.join("/") }
}

fn name_of(path: Option<&Path>) -> &str {
    path.and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default()
}

/// Reads everything that the targets name.
fn gather(targets: Vec<Target>) -> Result<Found, Failure> {
    let mut found = Found::default();
    let mut by_root: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for target in targets {
        match target {
            Target::Under { root, below } => by_root.entry(root).or_default().push(below),
            Target::Manifest(path) => {
                let (bytes, shown) = read_loose(&path, MAX_MANIFEST_BYTES)?;
                let problems = manifest::parse(&bytes, &loose_app()).problems;
                found.problems.extend(problems.into_iter().map(|problem| problem.in_path(shown.clone())));
                found.automations += 1;
            }
            Target::Handler(path) => {
                let (bytes, shown) = read_loose(&path, MAX_HANDLER_BYTES)?;
                let contract = match name_of(path.parent()) {
                    "queries" => Contract::Query,
                    "actions" => Contract::Action,
                    _ => Contract::Automation,
                };
                let script_name = name_of(Some(&path)).to_owned();
                found.handlers.push((shown, Subject { script_name, bytes, contract, owner: None }));
            }
        }
    }
    for (root, below) in by_root {
        gather_root(&root, &below, &mut found);
    }
    Ok(found)
}

/// One scan, whatever is asked of the root: some problems follow from neighbours.
fn gather_root(root: &Path, below: &[String], found: &mut Found) {
    let mut registry = Registry::default();
    registry.apply(watch::scan(root));
    let asked = |path: &str| below.iter().any(|below| is_below(path, below));
    let all = asked("");
    found.problems.extend(registry.problems().into_iter().filter(|p| p.path.as_deref().map_or(all, &asked)));
    if asked(mcp::FILE) {
        found.problems.extend(mcp::file_problems(root));
    }
    if asked(config::FILE)
        && let Err(error) = Config::load(root)
    {
        found.problems.push(Problem::error("bad_config", "", error.to_string().trim_end()).in_path(config::FILE));
    }
    let reachable = Reachable::under(root);
    for automation in registry.automations() {
        let Handle { app, automation: id } = &automation.handle;
        let folder = format!("{app}/automations/{id}");
        if !asked(&folder) {
            continue;
        }
        found.automations += 1;
        if let Some(manifest) = automation.manifest_bytes().filter(|_| automation.valid) {
            let path = format!("{folder}/automation.json");
            let problems = reachable.problems(manifest);
            found.problems.extend(problems.into_iter().map(|problem| problem.in_path(path.as_str())));
        }
        let Some(app_dir) = registry.app(app).map(|app| app.dir.as_path()) else {
            continue;
        };
        if !matches!(automation.handler, HandlerFile::Present { .. }) {
            continue;
        }
        match watch::read_handler(app_dir, id) {
            Ok(bytes) => {
                let subject = Subject {
                    script_name: format!("{}/handler.js", automation.handle),
                    bytes,
                    contract: Contract::Automation,
                    owner: automation.manifest.clone().filter(|_| automation.valid).map(|it| (app.clone(), it)),
                };
                found.handlers.push((format!("{folder}/handler.js"), subject));
            }
            Err(problem) => found.problems.push(problem),
        }
    }
    for (app, folder) in registry.apps() {
        for (name, contract) in [("queries", Contract::Query), ("actions", Contract::Action)] {
            gather_tools(app, &folder.dir, name, contract, &asked, found);
        }
    }
}

/// The queries, or the actions, of one app.
fn gather_tools(
    app: &AppId,
    app_dir: &Path,
    folder: &str,
    contract: Contract,
    asked: &dyn Fn(&str) -> bool,
    found: &mut Found,
) {
    let shown = format!("{app}/{folder}");
    let names = match watch::list_app_dir(app_dir, Path::new(folder)) {
        Ok(names) => names,
        Err(problem) => {
            found.problems.extend(Some(problem.in_path(shown.as_str())).filter(|_| asked(&shown)));
            return;
        }
    };
    for name in names.into_iter().filter(|name| name.ends_with(".js")) {
        let path = format!("{shown}/{name}");
        if !asked(&path) {
            continue;
        }
        match watch::read_app_file(app_dir, &Path::new(folder).join(&name), MAX_HANDLER_BYTES) {
            Ok(bytes) => {
                let subject = Subject { script_name: path.clone(), bytes, contract, owner: None };
                found.handlers.push((path, subject));
            }
            Err(problem) => found.problems.push(problem.in_path(path)),
        }
    }
}

/// Whether a path from the root is what was asked for, or in it.
fn is_below(path: &str, below: &str) -> bool {
    below.is_empty() || path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A manifest outside any app names its siblings in this one.
fn loose_app() -> AppId {
    AppId::new("app").expect("a plain word is an app id")
}

fn read_loose(path: &Path, max_bytes: usize) -> Result<(Vec<u8>, String), Failure> {
    let (dir, name) = (path.parent().unwrap_or(Path::new(".")), Path::new(name_of(Some(path))));
    let shown = path.display().to_string();
    match watch::read_app_file(dir, name, max_bytes) {
        Ok(bytes) => Ok((bytes, shown)),
        Err(problem) => Err(Failure::failed(&problem.code, format!("{shown}: {}", problem.message))),
    }
}

async fn judge(subjects: Vec<(String, Subject)>) -> Result<Vec<Problem>, Failure> {
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    let hosts = HOSTS.min(subjects.len());
    let pool = Pool::start(PoolConfig {
        program: isolate::own_program(),
        warm: hosts,
        max_hosts: hosts,
        ..PoolConfig::default()
    });
    let one = async |(path, subject): (String, Subject)| match inspect(&pool, subject).await {
        Ok(problems) => Ok(problems.into_iter().map(|problem| problem.in_path(path.clone())).collect()),
        Err(error) => Err(Failure::failed("no_host", format!("handlers cannot be checked: {error}"))),
    };
    let judged: Vec<Result<Vec<Problem>, Failure>> =
        futures::stream::iter(subjects).map(one).buffered(hosts).collect().await;
    pool.shutdown().await;
    let mut problems = Vec::new();
    for found in judged {
        problems.extend(found?);
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_for_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/automations/x")).unwrap();
        std::fs::create_dir_all(dir.path().join("other")).unwrap();
        for file in ["root/a/automations/x/automation.json", "root/mcp.json", "draft.json", "draft.js", "notes.txt"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let place = Place::find(Some(&root), None, false).unwrap();
        let under = |below: &str| Some(Target::Under { root: root.clone(), below: below.to_owned() });
        for (path, expected) in [
            ("root", under("")),
            ("root/a", under("a")),
            ("root/a/automations", under("a")),
            ("root/a/automations/x", under("a/automations/x")),
            ("root/a/automations/x/automation.json", under("a/automations/x")),
            ("other", Some(Target::Under { root: dir.path().join("other"), below: String::new() })),
            ("draft.json", Some(Target::Manifest(dir.path().join("draft.json")))),
            ("draft.js", Some(Target::Handler(dir.path().join("draft.js")))),
            ("root/mcp.json", under("mcp.json")),
            ("notes.txt", None),
            ("absent", None),
        ] {
            assert_eq!(target(&place, &dir.path().join(path)).ok(), expected, "{path}");
        }
        assert_eq!(target(&place, Path::new("a/x")).ok(), under("a/automations/x"), "a handle");
    }

    #[test]
    fn below_goes_by_whole_names() {
        for (path, below, is) in [
            ("a/automations/x/handler.js", "a/automations/x", true),
            ("a/automations/xy/handler.js", "a/automations/x", false),
            ("a", "a", true),
            ("anything", "", true),
            ("", "a", false),
        ] {
            assert_eq!(is_below(path, below), is, "{path} below {below}");
        }
    }
}
