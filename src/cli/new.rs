//! `new`: scaffolds an automation. It starts disabled: what a scaffold does is not yet what a person asked for. A
//! webhook is declared as pending; minting its credentials is a step of its own.
//!
//! Editors complete and check both files at once, without a network: the manifest names its JSON Schema and the handler
//! its types by relative paths. The types stand in `<app>/automations/ctx.d.ts` and travel with the app. The schema
//! stands in `<root>/.dirigent`, because a `.json` file among the automations would be taken for one of the old shape;
//! it is brought up to date by each `new`, and by the daemon, since what is in there does not travel.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::next::bad_cron;
use crate::cli::output::{document, line};
use crate::cli::place::Place;
use crate::cli::times::rfc3339;
use crate::clock::Clock;
use crate::core::cron::CronSchedule;
use crate::core::manifest;
use crate::daemon::home;
use crate::fire::{AutomationId, Handle};
use crate::isolate::CTX_TYPES;
use crate::watch::{unusable, write_atomic};

/// In `<root>/.dirigent`.
const SCHEMA_FILE: &str = "automation.schema.json";
/// What the manifest says of it, from `<root>/<app>/automations/<id>`.
const SCHEMA_REFERENCE: &str = "../../../.dirigent/automation.schema.json";

/// Named by the `agent` template; any provider and model may stand in its place.
const TEMPLATE_MODEL: &str = "anthropic/claude-sonnet-4-5";

/// Makes a new automation: its manifest, disabled, and its handler.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent new auto.mail/digest --cron '0 9 * * mon-fri' --tz Europe/Berlin
  dirigent new auto.mail/inbound --webhook
  dirigent new auto.mail/summary --template agent

Nothing is overwritten. The app folder is made when there is none.")]
pub struct NewArgs {
    /// APP/ID
    handle: String,
    /// A cron trigger of five fields; may be given several times
    #[arg(long, value_name = "CRON", allow_hyphen_values = true)]
    cron: Vec<String>,
    /// The IANA zone of the cron triggers; UTC without
    #[arg(long, value_name = "ZONE", requires = "cron", allow_hyphen_values = true)]
    tz: Option<String>,
    /// Declare a webhook trigger, to be provisioned later
    #[arg(long)]
    webhook: bool,
    /// What the handler does to begin with
    #[arg(long, value_enum, default_value_t = Template::Minimal)]
    template: Template,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Template {
    /// Counts its runs in ctx.state
    Minimal,
    /// Describes its app, and calls a query or an action of it
    Tools,
    /// Asks a model for an answer of a given shape
    Agent,
    /// Runs other automations side by side
    Invoke,
}

impl Template {
    fn handler(self) -> &'static str {
        match self {
            Template::Minimal => include_str!("templates/minimal.js"),
            Template::Tools => include_str!("templates/tools.js"),
            Template::Agent => include_str!("templates/agent.js"),
            Template::Invoke => include_str!("templates/invoke.js"),
        }
    }

    fn prompt(self) -> &'static str {
        match self {
            Template::Minimal => "Count the runs of this automation.",
            Template::Tools => "Look at what the app offers, and call the query or action that the input names.",
            Template::Agent => "Summarise the text of the input in a title and a few points.",
            Template::Invoke => "Run the automations that the input names, side by side, and gather their results.",
        }
    }

    /// What a first run may be given, where it needs something. `sibling`: another automation of the app.
    fn input(self, sibling: Option<&str>) -> Option<String> {
        match self {
            Template::Minimal | Template::Tools => None,
            Template::Agent => Some(json!({ "text": "Bread is made of flour, water, salt and time." }).to_string()),
            Template::Invoke => Some(json!({ "handles": [sibling.unwrap_or("other-automation")] }).to_string()),
        }
    }
}

pub fn new(place: &Place, args: &NewArgs) -> Outcome {
    let handle: Handle = args
        .handle
        .parse()
        .map_err(|error: crate::fire::NameError| Failure::usage(error.to_string()).hint("a handle is <app>/<id>"))?;
    if let Some(problem) = unusable(&handle) {
        let failure = Failure::usage(problem.message);
        return Err(Failure { hint: problem.hint, ..failure });
    }
    for expr in &args.cron {
        CronSchedule::parse(expr, args.tz.as_deref()).map_err(bad_cron)?;
    }
    let manifest = manifest_text(&handle, args)?;
    let automations = place.app_dir(&handle.app).join("automations");
    let dir = automations.join(handle.automation.as_str());
    refuse_to_overwrite(&dir)?;

    let in_dir = |error: std::io::Error| Failure::io(dir.display(), &error);
    std::fs::create_dir_all(&dir).map_err(in_dir)?;
    let types = automations.join("ctx.d.ts");
    if !types.exists() {
        write_atomic(&types, CTX_TYPES.as_bytes()).map_err(in_dir)?;
    }
    let schema = write_schema(&place.root)?;
    // The manifest comes last, so that a watcher never sees it without its handler.
    write_atomic(&dir.join("handler.js"), args.template.handler().as_bytes()).map_err(in_dir)?;
    write_atomic(&dir.join("automation.json"), manifest.as_bytes()).map_err(in_dir)?;

    if place.json {
        let files = [dir.join("automation.json"), dir.join("handler.js"), types, schema];
        document(&json!({ "handle": handle, "enabled": false, "files": files }))?;
        return Ok(exit::FINE);
    }
    line(format_args!("made {}", dir.display()))?;
    let input = args.template.input(sibling(&automations, &handle).as_deref());
    let input = input.map(|input| format!(" --input '{input}'")).unwrap_or_default();
    line(format_args!(
        "
next steps:
  dirigent validate {}
  dirigent run {handle}{input}
  dirigent enable {handle}",
        shown_dir(&dir)
    ))?;
    if args.webhook {
        line("its webhook is pending: it has no route until it is provisioned")?;
    }
    Ok(exit::FINE)
}

/// Brings the schema that manifests refer to up to date, and tells where it is.
///
/// # Errors
/// When it cannot be written.
pub fn write_schema(root: &Path) -> Result<PathBuf, Failure> {
    let path = home::make_dir(root).map_err(|error| Failure::failed("io", error.to_string()))?.join(SCHEMA_FILE);
    let text = serde_json::to_string_pretty(&manifest::json_schema());
    let text = text.map_err(|error| Failure::failed("json", error.to_string()))? + "\n";
    if !std::fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
        write_atomic(&path, text.as_bytes()).map_err(|error| Failure::io(path.display(), &error))?;
    }
    Ok(path)
}

/// Another automation of the same app, if there is one: the first by name.
fn sibling(automations: &Path, handle: &Handle) -> Option<String> {
    let entries = std::fs::read_dir(automations).ok()?.flatten();
    let is_there = |name: &String| automations.join(name).join("automation.json").exists();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| AutomationId::new(name).is_ok_and(|id| id != handle.automation) && is_there(name)).min()
}

/// As a person in the current folder would write it.
fn shown_dir(dir: &Path) -> String {
    let here = std::env::current_dir().ok();
    here.and_then(|here| dir.strip_prefix(here).ok()).unwrap_or(dir).display().to_string()
}

fn refuse_to_overwrite(dir: &Path) -> Result<(), Failure> {
    let taken = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(_) => true,
    };
    if taken {
        return Err(Failure::failed(
            "exists",
            format!("{} is there already, and nothing is overwritten", dir.display()),
        )
        .hint("choose another id, or edit what is there"));
    }
    Ok(())
}

fn manifest_text(handle: &Handle, args: &NewArgs) -> Result<String, Failure> {
    let mut triggers: Vec<Value> = Vec::new();
    for expr in &args.cron {
        let mut trigger = json!({ "kind": "cron", "expr": expr });
        if let Some(tz) = &args.tz {
            trigger["tz"] = json!(tz);
        }
        triggers.push(trigger);
    }
    if args.webhook {
        triggers.push(json!({ "kind": "webhook", "pending": true }));
    }
    let mut manifest = Map::new();
    let mut put = |name: &str, value: Value| manifest.insert(name.to_owned(), value);
    put("$schema", json!(SCHEMA_REFERENCE));
    put("name", json!(title(handle.automation.as_str())));
    put("version", json!("0.1.0"));
    put("prompt", json!(args.template.prompt()));
    put("enabled", json!(false));
    put("triggers", json!(triggers));
    if args.template == Template::Agent {
        put("requires", json!({ "model": TEMPLATE_MODEL }));
    }
    put("generated", json!({ "by": "dirigent new", "at": rfc3339(Clock::Real.now_ms()) }));
    let text = serde_json::to_string_pretty(&manifest).map_err(|e| Failure::failed("json", e.to_string()))? + "\n";
    // What the parser refuses must not be written; its words are the ones that `validate` would use.
    match manifest::parse(text.as_bytes(), &handle.app).problems.into_iter().find(|problem| problem.is_error()) {
        None => Ok(text),
        Some(problem) => {
            let failure = Failure::usage(problem.message);
            Err(match problem.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
    }
}

/// `daily-digest` reads as `Daily digest`.
fn title(id: &str) -> String {
    let words: Vec<&str> = id.split(['-', '_']).filter(|word| !word.is_empty()).collect();
    let text = words.join(" ");
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn args(handle: &str, template: Template) -> NewArgs {
        NewArgs {
            handle: handle.to_owned(),
            cron: vec!["0 9 * * mon-fri".to_owned()],
            tz: Some("Europe/Berlin".to_owned()),
            webhook: true,
            template,
        }
    }

    #[test]
    fn every_template_makes_a_valid_disabled_automation_and_is_never_repeated() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::find(Some(root.path()), None, true).unwrap();
        for template in Template::value_variants() {
            let word = format!("{template:?}").to_lowercase();
            let args = args(&format!("auto.new/{word}"), *template);
            assert_eq!(new(&place, &args).unwrap(), exit::FINE);
            assert_eq!(new(&place, &args).unwrap_err().code, "exists");
            let dir = root.path().join("auto.new/automations").join(&word);
            let bytes = std::fs::read(dir.join("automation.json")).unwrap();
            let parsed = manifest::parse(&bytes, &"auto.new".parse().unwrap());
            assert_eq!(parsed.problems, [], "{word}");
            let manifest = parsed.manifest.unwrap();
            assert!(!manifest.enabled);
            assert_eq!(manifest.triggers.len(), 2);
            assert!(std::fs::read_to_string(dir.join("handler.js")).unwrap().contains("export default async"));
        }
        let automations = root.path().join("auto.new/automations");
        assert!(automations.join("ctx.d.ts").is_file());
        let schema = std::fs::read(automations.join("minimal").join(SCHEMA_REFERENCE)).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&schema).unwrap(), manifest::json_schema());
        assert_eq!(place.handles().len(), 4, "the types beside them are no automation");
    }

    /// The next step that is printed works where there is something to name.
    #[test]
    fn a_template_that_needs_an_input_says_which() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::find(Some(root.path()), None, true).unwrap();
        let automations = root.path().join("a/automations");
        let handle: Handle = "a/mid".parse().unwrap();
        assert_eq!(sibling(&automations, &handle), None);
        for id in ["a/mid", "a/zed", "a/last"] {
            new(&place, &args(id, Template::Minimal)).unwrap();
        }
        std::fs::create_dir(automations.join("empty")).unwrap();
        assert_eq!(sibling(&automations, &handle).as_deref(), Some("last"));
        assert_eq!(Template::Invoke.input(Some("last")).unwrap(), r#"{"handles":["last"]}"#);
        for template in Template::value_variants() {
            let Some(input) = template.input(None) else { continue };
            // It stands between single quotes in a shell.
            assert!(!input.contains('\'') && serde_json::from_str::<Value>(&input).is_ok(), "{input}");
        }
    }

    #[test]
    fn what_cannot_be_is_wrong_usage_and_writes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let place = Place::find(Some(root.path()), None, true).unwrap();
        let mut bad_cron = args("a/x", Template::Minimal);
        bad_cron.cron.push("61 * * * *".to_owned());
        for args in [args("bare", Template::Minimal), args("../x/y", Template::Minimal), bad_cron] {
            assert_eq!(new(&place, &args).unwrap_err().exit, exit::USAGE, "{args:?}");
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_id_reads_as_a_title() {
        for (id, text) in [("daily-digest", "Daily digest"), ("x", "X"), ("a__b", "A b"), ("--", "--")] {
            assert_eq!(title(id), text);
        }
    }
}
