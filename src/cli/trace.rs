//! `trace`: one run as a tree, with the runs that it invoked inside the calls that invoked them.

use std::fmt::Write as _;

use owo_colors::OwoColorize;
use serde_json::{Value, json};

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::follow::{log_line, pretty};
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{BAD, DIM, GOOD, HINT, STRONG, document, line, shortened, shown_lines, status_style};
use crate::cli::place::Place;
use crate::cli::times::{duration, local, with_rfc3339};
use crate::ledger::{JsonText, LogRow, NodeRow, Reader, RunRow};

/// A value that is longer is cut, unless all of it is asked for.
const VALUE_CHARS: usize = 160;
/// Invocation is limited to fewer levels; a ledger that was edited by hand may say otherwise.
const MAX_DEPTH: usize = 32;

/// Shows one run as a tree: calls with timings, invoked runs inside, logs, result.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent trace 0123456789ab
  dirigent trace 0123456789ab --full
  dirigent trace 0123456789ab --json | jq '.nodes[].name'")]
pub struct TraceArgs {
    /// The run's id, or six or more characters of its beginning or end
    run: String,
    /// Show arguments, results, input and output whole
    #[arg(long)]
    full: bool,
}

/// A run with all that belongs to it.
struct Traced {
    run: RunRow,
    nodes: Vec<(NodeRow, Option<Traced>)>,
    logs: Vec<LogRow>,
}

pub fn trace(place: &Place, args: &TraceArgs) -> Outcome {
    let ledgers = Ledgers::open(place)?;
    let (reader, row) = ledgers.resolve(&args.run)?;
    let traced = read(&ledgers, reader, row, 0)?;
    if place.json {
        document(&with_rfc3339(to_json(&traced)?))?;
    } else {
        let tree = Tree { full: args.full };
        for text in tree.lines(&traced) {
            line(text)?;
        }
    }
    Ok(exit::FINE)
}

fn read(ledgers: &Ledgers, reader: &Reader, run: RunRow, depth: usize) -> Result<Traced, Failure> {
    let logs = reader.logs(&run.run_id, None, usize::MAX)?;
    let mut nodes = Vec::new();
    for node in reader.nodes(&run.run_id)? {
        // It may be in another app's ledger, and its history shorter than its parent's.
        let child = node.child_run_id.as_ref().filter(|_| depth < MAX_DEPTH).and_then(|id| ledgers.find(id));
        let child = child.map(|(reader, row)| read(ledgers, reader, row, depth + 1)).transpose()?;
        nodes.push((node, child));
    }
    Ok(Traced { run, nodes, logs })
}

fn to_json(traced: &Traced) -> Result<Value, Failure> {
    let json_of = |value: Result<Value, serde_json::Error>| value.map_err(|e| Failure::failed("json", e.to_string()));
    let mut nodes = Vec::new();
    for (node, child) in &traced.nodes {
        let mut value = json_of(serde_json::to_value(node))?;
        if let (Value::Object(members), Some(child)) = (&mut value, child) {
            members.insert("child".to_owned(), to_json(child)?);
        }
        nodes.push(value);
    }
    Ok(json!({
        "run": json_of(serde_json::to_value(&traced.run))?,
        "nodes": nodes,
        "logs": json_of(serde_json::to_value(&traced.logs))?,
    }))
}

struct Tree {
    full: bool,
}

impl Tree {
    fn lines(&self, traced: &Traced) -> Vec<String> {
        let mut lines = Vec::new();
        self.run(traced, "", &mut lines);
        lines
    }

    /// The run's own line, then everything of it below `indent`.
    fn run(&self, traced: &Traced, indent: &str, lines: &mut Vec<String>) {
        let run = &traced.run;
        let handle = format!("{}/{}", run.app_id, run.automation_id);
        let took = match (run.started_at, run.ended_at) {
            (Some(start), Some(end)) => format!(" in {}", duration(end - start)),
            _ => String::new(),
        };
        let summary = run.summary.as_deref().map(|text| format!(": {}", shown_lines(text))).unwrap_or_default();
        lines.push(format!(
            "{indent}{} {}{took}{summary}",
            handle.style(STRONG),
            run.status.style(status_style(run.status))
        ));
        lines.push(format!("{indent}{}", origin_text(run).style(DIM)));
        if let Some(input) = &run.input {
            self.value("input", input.as_str(), indent, lines);
        }
        let began = run.started_at.unwrap_or(run.queued_at);
        let mut items = items(traced).peekable();
        while let Some(item) = items.next() {
            let (joint, rail) = if items.peek().is_some() { ("├─ ", "│  ") } else { ("└─ ", "   ") };
            match item {
                Item::Log(log) => lines.push(format!("{indent}{joint}{}", shown_log(log))),
                Item::Node(node, child) => {
                    lines.push(format!("{indent}{joint}{}", node_line(node, began)));
                    self.below_node(node, child, &format!("{indent}{rail}"), lines);
                }
            }
        }
        if let Some(output) = &run.output {
            self.value("output", output.as_str(), indent, lines);
        }
        if let Some(error) = &run.error {
            let code = run.error_code.as_deref().map(|code| format!("[{code}]")).unwrap_or_default();
            block(&format!("{} {}", format!("error{code}:").style(BAD), shown_lines(error)), indent, lines);
        }
    }

    fn below_node(&self, node: &NodeRow, child: Option<&Traced>, indent: &str, lines: &mut Vec<String>) {
        let mut show = |name: &str, json: &Option<JsonText>| {
            if let Some(json) = json {
                self.value(name, json.as_str(), indent, lines);
            }
        };
        show("args", &node.args);
        if child.is_none() {
            show("result", &node.result);
        }
        show("usage", &node.usage);
        if let Some(child) = child {
            self.run(child, indent, lines);
        }
        if let Some(error) = &node.error {
            block(&format!("{} {}", "error:".style(BAD), shown_lines(error)), indent, lines);
        }
    }

    fn value(&self, name: &str, json: &str, indent: &str, lines: &mut Vec<String>) {
        let text = if self.full { pretty(json) } else { shortened(json, VALUE_CHARS) };
        block(&format!("{} {text}", format!("{name}:").style(DIM)), indent, lines);
    }
}

enum Item<'a> {
    Node(&'a NodeRow, Option<&'a Traced>),
    Log(&'a LogRow),
}

/// Calls and log lines in the order of their times.
fn items(traced: &Traced) -> impl Iterator<Item = Item<'_>> {
    let mut logs = traced.logs.iter().peekable();
    let mut nodes = traced.nodes.iter().peekable();
    std::iter::from_fn(move || {
        let node_at = nodes.peek().map_or(i64::MAX, |(node, _)| node.started_at);
        if let Some(log) = logs.next_if(|log| log.at < node_at) {
            return Some(Item::Log(log));
        }
        match nodes.next() {
            Some((node, child)) => Some(Item::Node(node, child.as_ref())),
            None => logs.next().map(Item::Log),
        }
    })
}

fn node_line(node: &NodeRow, began: i64) -> String {
    let name = crate::cli::output::shown(&node.name).into_owned();
    let mut text =
        format!("{} {} {}", node.kind.style(HINT), name, format!("+{}", duration(node.started_at - began)).style(DIM));
    if let Some(end) = node.ended_at {
        let _ = write!(text, " {}", duration(end - node.started_at));
    }
    if let Some(batch) = node.batch_id {
        let _ = write!(text, " {}", format!("batch {batch}").style(DIM));
    }
    let _ = match node.ok {
        Some(true) => write!(text, " {}", "ok".style(GOOD)),
        Some(false) => write!(text, " {}", "failed".style(BAD)),
        None => write!(text, " {}", "open".style(HINT)),
    };
    text
}

fn origin_text(run: &RunRow) -> String {
    let mut text = format!("{}  {} at {}", run.run_id, run.origin, local(run.started_at.unwrap_or(run.queued_at)));
    if let Some(start) = run.started_at
        && start - run.queued_at >= 1
    {
        let _ = write!(text, ", queued {}", duration(start - run.queued_at));
    }
    if let Some(at) = run.scheduled_for {
        let _ = write!(text, ", scheduled for {}", local(at));
    }
    if let Some(missed) = run.trigger.missed.filter(|missed| *missed > 0) {
        let _ = write!(text, ", {missed} missed before it");
    }
    if let Some(of) = &run.retry_of {
        let _ = write!(text, ", attempt {} after {of}", run.attempt);
    }
    if let Some(of) = &run.trigger.replay_of {
        let _ = write!(text, ", replay of {of}");
    }
    if let Some(of) = &run.trigger.failed_run {
        let _ = write!(text, ", for the failed {of}");
    }
    text
}

fn shown_log(log: &LogRow) -> String {
    log_line(log.at, log.level, &log.message, log.fields.as_ref().map(JsonText::as_str))
}

/// Text of several lines, all of them below `indent`.
fn block(text: &str, indent: &str, lines: &mut Vec<String>) {
    lines.extend(text.lines().map(|text| format!("{indent}{text}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fire::{AppId, AutomationId, NodeKind, RunId, RunStatus, TriggerInfo, TriggerOrigin};

    fn run(id: u8, name: &str) -> RunRow {
        RunRow {
            run_id: RunId::new(&format!("01900000-0000-7000-8000-0000000000{id:02}")).unwrap(),
            app_id: AppId::new("a").unwrap(),
            automation_id: AutomationId::new(name).unwrap(),
            status: RunStatus::Ok,
            origin: TriggerOrigin::Manual,
            trigger: TriggerInfo::default(),
            scheduled_for: None,
            input: None,
            output: None,
            summary: Some("done".to_owned()),
            error: None,
            error_code: None,
            parent_run_id: None,
            retry_of: None,
            attempt: 1,
            handler_hash: None,
            queued_at: 0,
            started_at: Some(0),
            ended_at: Some(30),
        }
    }

    fn node(ordinal: u32, kind: NodeKind, name: &str, error: Option<&str>) -> NodeRow {
        NodeRow {
            run_id: run(1, "x").run_id,
            ordinal,
            batch_id: None,
            kind,
            name: name.to_owned(),
            args: None,
            result: None,
            ok: Some(error.is_none()),
            error: error.map(str::to_owned),
            child_run_id: None,
            usage: None,
            started_at: 10,
            ended_at: Some(15),
        }
    }

    fn log(seq: u32, at: i64) -> LogRow {
        let message = format!("line {seq}");
        LogRow { run_id: run(1, "x").run_id, seq, at, level: crate::fire::LogLevel::Info, message, fields: None }
    }

    /// `├─ 01:00:00.005  info  …` depends on the local zone.
    fn without_time(line: &str) -> String {
        match line.split_once("  info ") {
            Some((before, after)) => {
                format!("{}info {after}", before.trim_end_matches(|c: char| c.is_ascii_digit() || ":.".contains(c)))
            }
            None => line.to_owned(),
        }
    }

    #[test]
    fn a_child_stands_inside_the_call_that_invoked_it() {
        let child = Traced {
            run: run(2, "child"),
            nodes: vec![(node(0, NodeKind::Tool, "t.u", Some("no\nway")), None)],
            logs: Vec::new(),
        };
        let traced = Traced {
            run: run(1, "x"),
            nodes: vec![
                (node(0, NodeKind::Invoke, "a/child", None), Some(child)),
                (node(1, NodeKind::Tool, "centraid_read", None), None),
            ],
            logs: vec![log(0, 5), log(1, 20)],
        };
        let lines = Tree { full: false }.lines(&traced);
        let lines: Vec<String> = lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        // The lines that name ids and local times are left out.
        let told: Vec<String> =
            lines.iter().filter(|line| !line.contains("manual at")).map(|l| without_time(l)).collect();
        assert_eq!(
            told,
            [
                "a/x ok in 30 ms: done",
                "├─ info  line 0",
                "├─ invoke a/child +10 ms 5 ms ok",
                "│  a/child ok in 30 ms: done",
                "│  └─ tool t.u +10 ms 5 ms failed",
                "│     error: no",
                "│     way",
                "├─ tool centraid_read +10 ms 5 ms ok",
                "└─ info  line 1",
            ]
        );
        let json = to_json(&traced).unwrap();
        assert_eq!(json["nodes"][0]["child"]["run"]["automationId"], "child");
    }
}
