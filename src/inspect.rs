//! Handlers judged without running them: what their text shows, what V8 says of it, and what their manifest allows.
//!
//! Reading goes on in a host process ([`crate::handler_check`] says why); this room asks for it and puts the answers
//! together. Whoever accepts handlers (`validate`, and what writes automations for others) shows the same problems.

mod references;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::core::manifest::Manifest;
use crate::fire::{AppId, CallError, ErrorCode, Problem};
use crate::handler_check::{Contract, Study, ToolCall, place};
use crate::isolate::{Job, JobEvent, JobKind, Outcome, Pool, PoolError};
use crate::tools::{Access, Route, check_access, route};

pub use references::Reachable;

/// The text could not be read to its end, so nothing is said of its members.
const NOT_CHECKED: &str = "not_checked";

/// One handler that is to be judged.
#[derive(Debug, Clone)]
pub struct Subject {
    /// `<app>/<automation>/handler.js`, `<app>/queries/<name>.js`
    pub script_name: String,
    pub bytes: Vec<u8>,
    pub contract: Contract,
    /// What decides over tool calls: the automation's app and manifest. Without it, nothing is said of them.
    pub owner: Option<(AppId, Arc<Manifest>)>,
}

/// All problems of one handler in the order of its text, with line and column; without a path.
///
/// # Errors
/// When no host can be had.
pub async fn inspect(pool: &Pool, subject: Subject) -> Result<Vec<Problem>, PoolError> {
    let Subject { script_name, bytes, contract, owner } = subject;
    let source: Arc<str> = match String::from_utf8(bytes) {
        Ok(text) => Arc::from(text),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(&error.as_bytes()[..at]);
            let (line, column) = place(&before, u32::try_from(at).unwrap_or(u32::MAX));
            let problem = Problem::error("not_utf8", "", "a handler must be UTF-8, and this byte is not");
            return Ok(vec![problem.with_hint("save the file as UTF-8").at(line, column)]);
        }
    };
    let study = match ask(pool, &script_name, &source, JobKind::Study { contract }).await? {
        Some(Outcome::Returned { value_json: Some(json) }) => serde_json::from_str(&json).ok(),
        _ => None,
    };
    let study = study.unwrap_or_else(|| {
        let message = "the handler nests too deep, or is too long, to be read; only its syntax is checked";
        Study { problems: vec![Problem::warning(NOT_CHECKED, "", message)], is_module: true, ..Study::default() }
    });
    let mut problems = study.problems.clone();
    // What runs it has the last word.
    if study.is_module {
        match ask(pool, &script_name, &source, JobKind::Check).await? {
            Some(Outcome::Failed { code, message, .. }) => {
                problems.push(load_problem(code, &message, &script_name, &source));
            }
            Some(_) => {}
            None => problems.push(Problem::error("crashed", "", "the process that compiled it went away")),
        }
    }
    if let Some((app, manifest)) = &owner {
        problems.extend(judge(&study, app, manifest));
    } else {
        problems.extend(study.tool_calls.iter().filter_map(|call| Some(unknown_tool(&route(&call.name).err()?, call))));
    }
    problems.sort_by_key(|problem| (problem.line, problem.column));
    Ok(problems)
}

/// What the manifest of the automation says of the calls that its handler makes.
pub fn judge(study: &Study, app: &AppId, manifest: &Manifest) -> Vec<Problem> {
    let access = Access { own_app: app, apps: &manifest.apps, requires: &manifest.requires };
    let mut problems = Vec::new();
    for call in &study.tool_calls {
        let route = match route(&call.name) {
            Ok(route) => route,
            Err(error) => {
                problems.push(unknown_tool(&error, call));
                continue;
            }
        };
        let args = call.app.as_ref().map_or(Value::Null, |app| json!({ "app": app }));
        if let Err(error) = check_access(&route, &args, &access) {
            let hint = match &route {
                Route::Builtin(_) => format!("add {args} to the manifest's \"apps\"", args = args["app"]),
                Route::Mcp { .. } => format!("add {:?} to \"requires\": {{ \"tools\": […] }}", call.name),
            };
            // Behind the semicolon stands the hint for those who have no manifest before them.
            let message = error.message.split("; ").next().unwrap_or_default();
            let problem = Problem::error(&error.code, "", message).with_hint(hint);
            problems.push(problem.at(call.line, call.column));
        }
    }
    if let Some((line, column)) = study.agent_at.filter(|_| manifest.requires.model.is_none()) {
        let message = "ctx.agent rejects: the manifest names no model";
        let hint = "add \"requires\": { \"model\": \"provider/model-id\" } to automation.json";
        problems.push(Problem::warning("no_model", "", message).with_hint(hint).at(line, column));
    }
    problems
}

fn unknown_tool(error: &CallError, call: &ToolCall) -> Problem {
    let (message, hint) =
        error.message.split_once("; ").unwrap_or((error.message.as_str(), "tools are written <server>.<tool>"));
    Problem::error(&error.code, "", message).with_hint(hint).at(call.line, call.column)
}

/// How a job that touches nothing ends; `None` when its host went away without a word.
async fn ask(pool: &Pool, script_name: &str, source: &Arc<str>, kind: JobKind) -> Result<Option<Outcome>, PoolError> {
    let job = Job {
        script_name: script_name.to_owned(),
        source: Arc::clone(source),
        source_sha256: String::new(),
        kind,
        input_json: None,
        cpu_ms: None,
    };
    let mut job = pool.run(job).await?;
    while let Some(event) = job.events.recv().await {
        if let JobEvent::Ended(end) = event {
            return Ok(Some(end.outcome));
        }
    }
    Ok(None)
}

/// A failure to load as a problem with its place, which its message carries as the first line of a stack.
fn load_problem(code: ErrorCode, message: &str, script_name: &str, source: &str) -> Problem {
    let told = message.lines().next().unwrap_or_default();
    let problem = Problem::error(code.as_str(), "", told);
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
    use crate::core::manifest;
    use crate::handler_check::study;

    #[test]
    fn the_manifest_has_its_say_over_calls() {
        let app = AppId::new("shop").unwrap();
        let manifest = |fields: &str| {
            let text = format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"b","at":"a"}}{fields}}}"#);
            manifest::parse(text.as_bytes(), &app).manifest.unwrap()
        };
        let bare = manifest("");
        let granted = manifest(r#","apps":["vault"],"requires":{"tools":["github.*"],"mcps":["mail"],"model":"a/b"}"#);
        for (body, by_bare, by_granted) in [
            ("await ctx.tool('centraid_read', { query: 'q' })", None, None),
            ("await ctx.tool('centraid_read', { app: 'shop', query: 'q' })", None, None),
            ("await ctx.tool('centraid_read', { app: 'vault', query: 'q' })", Some("tool_not_allowed"), None),
            ("const app = 'vault'; await ctx.tool('centraid_read', { app })", Some("tool_not_allowed"), None),
            ("await ctx.tool('centraid_read', { app: 'other' })", Some("tool_not_allowed"), Some("tool_not_allowed")),
            ("await ctx.tool('centraid_read', { app: 'other', ...input })", None, None),
            ("await ctx.tool('centraid_read', { ['a' + 'pp']: 1, app: input })", None, None),
            ("await ctx.tool('github.create_issue')", Some("tool_not_allowed"), None),
            ("await ctx.tool('mail.send', {})", Some("tool_not_allowed"), None),
            ("await ctx.tool('maill.send', {})", Some("tool_not_allowed"), Some("tool_not_allowed")),
            ("await ctx.tool('send', {})", Some("unknown_tool"), Some("unknown_tool")),
            ("await ctx.tool(input.name, {})", None, None),
            ("const { tool } = ctx; await tool('mail.send')", Some("tool_not_allowed"), None),
            ("await ctx.agent({ prompt: 'x' })", Some("no_model"), None),
        ] {
            let source = format!("export default async ({{ ctx, input }}) => {{ {body} }}");
            let found = study(&source, Contract::Automation);
            assert_eq!(found.problems, [], "{body}");
            for (manifest, expected) in [(&bare, by_bare), (&granted, by_granted)] {
                let codes: Vec<String> = judge(&found, &app, manifest).into_iter().map(|p| p.code).collect();
                assert_eq!(codes, expected.iter().copied().collect::<Vec<_>>(), "{body}");
            }
        }
    }

    #[test]
    fn a_compiler_message_gives_place_and_words() {
        let message = "SyntaxError: Unexpected token ')'\n    at a/x/handler.js:2:7";
        let problem = load_problem(ErrorCode::HandlerLoad, message, "a/x/handler.js", "one\n💥 = )\n");
        assert_eq!(problem.message, "SyntaxError: Unexpected token ')'");
        assert_eq!((problem.line, problem.column), (Some(2), Some(6)), "the explosion is two units and one character");
        assert_eq!(place_in("at a/x/handler.js:0:1", "a/x/handler.js"), None);
    }
}
