//! `validate`: every problem of manifests and handlers, with its place and a hint. Manifests are parsed as the daemon
//! parses them; handlers are compiled, not run, in a host process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use serde_json::json;

use crate::cli::ctx_members::unknown_members;
use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{GOOD, count, document, line, problem};
use crate::cli::place::{Place, absolute};
use crate::config::{self, Config};
use crate::core::disk::HandlerFile;
use crate::core::manifest::{self, MAX_HANDLER_BYTES, MAX_MANIFEST_BYTES};
use crate::core::registry::Registry;
use crate::fire::{AppId, Handle, Problem};
use crate::isolate::{self, Job, JobEvent, JobKind, Outcome as JobOutcome, Pool, PoolConfig};
use crate::watch;

/// Hosts that compile side by side: it takes a few milliseconds each.
const HOSTS: usize = 2;

/// Shows all problems of manifests and handlers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent validate                                   the whole root
  dirigent validate auto.mail                         one app folder
  dirigent validate auto.mail/automations/digest      one automation
  dirigent validate draft/automation.json draft/handler.js

Handlers are compiled, not run. Exit code 1 when any problem is an error.")]
pub struct ValidateArgs {
    /// Manifests, handlers, automation folders, app folders, or a root [default: the root]
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

/// A handler that is to be compiled.
struct Source {
    /// What messages show.
    path: String,
    script_name: String,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
    handlers: Vec<Source>,
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
    found.problems.extend(compile(handlers).await?);
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
    let folder = path.parent().filter(|_| matches!(name, "automation.json" | "handler.js"));
    if let Some(target) = folder.and_then(automation_target) {
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
                found.handlers.push(Source { script_name: name_of(Some(&path)).to_owned(), path: shown, bytes });
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
    if all && let Err(error) = Config::load(root) {
        found.problems.push(Problem::error("bad_config", "", error.to_string().trim_end()).in_path(config::FILE));
    }
    for automation in registry.automations() {
        let Handle { app, automation: id } = &automation.handle;
        let folder = format!("{app}/automations/{id}");
        if !asked(&folder) {
            continue;
        }
        found.automations += 1;
        let Some(app_dir) = registry.app(app).map(|app| app.dir.as_path()) else {
            continue;
        };
        if !matches!(automation.handler, HandlerFile::Present { .. }) {
            continue;
        }
        match watch::read_handler(app_dir, id) {
            Ok(bytes) => found.handlers.push(Source {
                path: format!("{folder}/handler.js"),
                script_name: format!("{}/handler.js", automation.handle),
                bytes,
            }),
            Err(problem) => found.problems.push(problem),
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

async fn compile(sources: Vec<Source>) -> Result<Vec<Problem>, Failure> {
    if sources.is_empty() {
        return Ok(Vec::new());
    }
    let hosts = HOSTS.min(sources.len());
    let pool = Pool::start(PoolConfig {
        program: isolate::own_program(),
        warm: hosts,
        max_hosts: hosts,
        ..PoolConfig::default()
    });
    let checked: Vec<Result<Vec<Problem>, Failure>> =
        futures::stream::iter(sources).map(|source| check(&pool, source)).buffered(hosts).collect().await;
    pool.shutdown().await;
    let mut problems = Vec::new();
    for found in checked {
        problems.extend(found?);
    }
    Ok(problems)
}

async fn check(pool: &Pool, source: Source) -> Result<Vec<Problem>, Failure> {
    let Source { path, script_name, bytes } = source;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let problem = Problem::error("not_utf8", "", format!("a handler must be UTF-8; byte {at} is not"));
            return Ok(vec![problem.in_path(path)]);
        }
    };
    let source: Arc<str> = Arc::from(text);
    let job = Job {
        script_name: script_name.clone(),
        source: Arc::clone(&source),
        source_sha256: String::new(),
        kind: JobKind::Check,
        input_json: None,
        cpu_ms: None,
    };
    let mut job = pool
        .run(job)
        .await
        .map_err(|error| Failure::failed("no_host", format!("handlers cannot be checked: {error}")))?;
    let mut outcome = None;
    while let Some(event) = job.events.recv().await {
        if let JobEvent::Ended(end) = event {
            outcome = Some(end.outcome);
            break;
        }
    }
    let mut problems = match outcome {
        Some(JobOutcome::Failed { code, message, .. }) => {
            vec![load_problem(code.as_str(), &message, &script_name, &source)]
        }
        Some(_) => Vec::new(),
        None => vec![Problem::error("crashed", "", "the process that compiled it went away")],
    };
    // With a syntax error in it, what the words mean is anybody's guess.
    if problems.is_empty() {
        problems = unknown_members(&source);
    }
    Ok(problems.into_iter().map(|problem| problem.in_path(path.clone())).collect())
}

/// A failure to load as a problem with its place, which its message carries as the first line of a stack.
fn load_problem(code: &str, message: &str, script_name: &str, source: &str) -> Problem {
    let told = message.lines().next().unwrap_or_default();
    let problem = Problem::error(code, "", told);
    let problem = if code == "no_default_export" {
        problem.with_hint("write `export default async ({ ctx, log, input }) => { … }`")
    } else {
        problem
    };
    match place_in(message, script_name) {
        Some((line, units)) => problem.at(line, column_of(source, line, units)),
        None => problem,
    }
}

/// `…<script>:<line>:<column>…`, both 1-based.
fn place_in(message: &str, script_name: &str) -> Option<(u32, u32)> {
    let (_, rest) = message.split_once(&format!("{script_name}:"))?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    let line = numbers.next()?.parse().ok().filter(|line| *line > 0)?;
    Some((line, numbers.next()?.parse().ok()?))
}

/// V8 counts UTF-16 units; everything here counts characters.
fn column_of(source: &str, line: u32, units: u32) -> u32 {
    let text = source.lines().nth(line as usize - 1).unwrap_or_default();
    let mut left = units.saturating_sub(1) as usize;
    let before = text
        .chars()
        .take_while(|c| {
            let fits = left >= c.len_utf16();
            left = left.saturating_sub(c.len_utf16());
            fits
        })
        .count();
    u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1)
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
        for file in ["root/a/automations/x/automation.json", "draft.json", "draft.js", "notes.txt"] {
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

    #[test]
    fn a_compiler_message_gives_place_and_words() {
        let message = "SyntaxError: Unexpected token ')'\n    at a/x/handler.js:2:7";
        let problem = load_problem("handler_load", message, "a/x/handler.js", "one\n💥 = )\n");
        assert_eq!(problem.message, "SyntaxError: Unexpected token ')'");
        assert_eq!((problem.line, problem.column), (Some(2), Some(6)), "the explosion is two units and one character");
        let missing = load_problem("no_default_export", "the module has no default export", "a/x/handler.js", "");
        assert!(missing.line.is_none() && missing.hint.is_some());
        assert_eq!(place_in("at a/x/handler.js:0:1", "a/x/handler.js"), None);
    }
}
