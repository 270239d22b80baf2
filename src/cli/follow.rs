//! One run, told as it happens: its logs and calls as they come, then its end. The same for a run in this process and
//! for one that a daemon runs, whose stream may break off and start over: what was told is not told again.

use std::collections::{HashMap, HashSet};

use owo_colors::OwoColorize;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::failure::{Failure, exit};
use crate::cli::output::{
    BAD, DIM, GOOD, HINT, PLAIN, STRONG, WARN, json_line, line, shown, shown_lines, status_style,
};
use crate::cli::times::{duration, time_of_day, with_rfc3339};
use crate::daemon::RunHappening;
use crate::fire::{EpochMs, Handle, LogLevel, NodeKind, RunId, RunStatus};

/// The place of an event within its run; no two of a run share one.
fn place(what: &RunHappening) -> (u8, u32) {
    match what {
        RunHappening::Opened { .. } => (0, 0),
        RunHappening::Started { .. } => (1, 0),
        RunHappening::Log { seq, .. } => (2, *seq),
        RunHappening::NodeOpened { ordinal, .. } => (3, *ordinal),
        RunHappening::NodeClosed { ordinal, .. } => (4, *ordinal),
        RunHappening::Ended { .. } => (5, 0),
    }
}

/// How the run ended.
#[derive(Debug, Clone)]
pub struct End {
    pub status: RunStatus,
    pub at: EpochMs,
    pub summary: Option<String>,
    pub error: Option<String>,
    pub error_code: Option<String>,
}

/// Tells one run.
pub struct Teller {
    run: RunId,
    handle: Handle,
    json: bool,
    told: HashSet<(u8, u32)>,
    /// Calls under way: what they are, and since when.
    open: HashMap<u32, (NodeKind, String, EpochMs)>,
    started_at: Option<EpochMs>,
    pub end: Option<End>,
}

impl Teller {
    /// Names the run.
    ///
    /// # Errors
    /// As all printing here: a closed pipe, mostly.
    pub fn new(run: RunId, handle: Handle, json: bool) -> Result<Self, Failure> {
        if !json {
            line(format_args!("{} {run}", handle.style(STRONG)))?;
        }
        let (told, open) = (HashSet::new(), HashMap::new());
        Ok(Self { run, handle, json, told, open, started_at: None, end: None })
    }

    /// Tells one event; one that was told before, or is of a kind that is not known, is passed over.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn event(&mut self, event: Value) -> Result<(), Failure> {
        let Ok(heard) = RunHappening::deserialize(&event) else {
            return Ok(());
        };
        if !self.told.insert(place(&heard)) {
            return Ok(());
        }
        if self.json {
            json_line(&with_rfc3339(event))?;
        }
        match heard {
            RunHappening::Opened { status: RunStatus::Queued, at, .. } => {
                self.line(at, format_args!("{}", "queued".style(DIM)))?;
            }
            RunHappening::Opened { .. } => {}
            RunHappening::Started { at } => self.started_at = Some(at),
            RunHappening::Log { at, level, message, fields, .. } => {
                let fields = fields.map(|fields| format!(" {fields}")).unwrap_or_default();
                let (word, style) = level_word(level);
                let (message, fields) = (shown_lines(&message), shown(&fields));
                self.line(at, format_args!("{} {message}{}", word.style(style), fields.style(DIM)))?;
            }
            RunHappening::NodeOpened { ordinal, kind, name, at, .. } => {
                self.line(at, format_args!("{} {kind} {}", "→".style(HINT), shown(&name)))?;
                self.open.insert(ordinal, (kind, name, at));
            }
            RunHappening::NodeClosed { ordinal, ok, error, at } => {
                let (what, took) = match self.open.remove(&ordinal) {
                    Some((kind, name, since)) => (format!("{kind} {}", shown(&name)), duration(at - since)),
                    None => (format!("call {ordinal}"), String::new()),
                };
                if ok {
                    self.line(at, format_args!("{} {what} {} {took}", "←".style(HINT), "ok".style(GOOD)))?;
                } else {
                    let error = error.unwrap_or_default();
                    let (failed, error) = ("failed".style(BAD), shown_lines(&error));
                    self.line(at, format_args!("{} {what} {failed} {took} {error}", "←".style(HINT)))?;
                }
            }
            RunHappening::Ended { status, at, summary, error, error_code } => {
                let error_code = error_code.map(|code| code.as_str().to_owned());
                self.end = Some(End { status, at, summary, error, error_code });
            }
        }
        Ok(())
    }

    fn line(&self, at: EpochMs, text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
        if !self.json {
            line(format_args!("{}  {text}", time_of_day(at).style(DIM)))?;
        }
        Ok(())
    }

    /// Tells the end, with the output as JSON text, and gives the exit code that says it too.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn finish(&self, end: &End, output_json: Option<&str>) -> Result<u8, Failure> {
        if self.json {
            let output = output_json.map(|text| serde_json::from_str(text).unwrap_or_else(|_| json!(text)));
            json_line(&json!({
                "type": "result",
                "runId": self.run,
                "handle": self.handle,
                "status": end.status,
                "summary": end.summary,
                "output": output.unwrap_or(Value::Null),
                "error": end.error,
                "errorCode": end.error_code,
            }))?;
        } else {
            self.tell_end(end, output_json)?;
        }
        Ok(if end.status == RunStatus::Ok { exit::FINE } else { exit::FAILED })
    }

    fn tell_end(&self, end: &End, output_json: Option<&str>) -> Result<(), Failure> {
        let took = self.started_at.map(|at| format!(" in {}", duration(end.at - at))).unwrap_or_default();
        let summary = end.summary.as_deref().map(|text| format!(": {}", shown_lines(text))).unwrap_or_default();
        line(format_args!("{}{took}{summary}", end.status.style(status_style(end.status))))?;
        if let Some(error) = &end.error {
            let code = end.error_code.as_deref().map(|code| format!("[{}]", shown(code))).unwrap_or_default();
            line(format_args!("{} {}", format_args!("error{code}:").style(BAD), shown_lines(error)))?;
        }
        if let Some(output) = output_json {
            line(format_args!("{}", "output:".style(STRONG)))?;
            line(pretty(output).style(PLAIN))?;
        }
        Ok(())
    }
}

fn level_word(level: LogLevel) -> (&'static str, owo_colors::Style) {
    match level {
        LogLevel::Info => ("info ", GOOD),
        LogLevel::Warn => ("warn ", WARN),
        LogLevel::Error => ("error", BAD),
    }
}

/// One line of a run's log, as people read it.
pub fn log_line(at: EpochMs, level: LogLevel, message: &str, fields_json: Option<&str>) -> String {
    let (word, style) = level_word(level);
    let fields = fields_json.map(|fields| format!(" {}", shown(fields))).unwrap_or_default();
    format!("{}  {} {}{}", time_of_day(at).style(DIM), word.style(style), shown_lines(message), fields.style(DIM))
}

/// JSON text, indented; anything else as it is.
pub fn pretty(json: &str) -> String {
    let value: Option<Value> = serde_json::from_str(json).ok();
    let text = value.and_then(|value| serde_json::to_string_pretty(&value).ok());
    shown_lines(text.as_deref().unwrap_or(json)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::RunEvent;
    use crate::fire::{ErrorCode, TriggerOrigin};

    fn ids() -> (RunId, Handle) {
        (RunId::new("01900000-0000-7000-8000-0123456789ab").unwrap(), "a/x".parse().unwrap())
    }

    /// Every kind of event that a daemon tells is understood here.
    #[test]
    fn all_that_is_told_is_heard() {
        let all = [
            RunHappening::Opened { status: RunStatus::Queued, origin: TriggerOrigin::Manual, at: 1 },
            RunHappening::Started { at: 1 },
            RunHappening::Log { seq: 3, at: 1, level: LogLevel::Warn, message: "m".into(), fields: Some(json!({})) },
            RunHappening::NodeOpened { ordinal: 2, batch_id: None, kind: NodeKind::Tool, name: "t".into(), at: 1 },
            RunHappening::NodeClosed { ordinal: 2, ok: false, error: Some("e".into()), at: 2 },
            RunHappening::Ended {
                status: RunStatus::Error,
                at: 5,
                summary: None,
                error: Some("e".into()),
                error_code: Some(ErrorCode::Timeout),
            },
        ];
        let mut places = HashSet::new();
        for what in all {
            let (run_id, handle) = ids();
            let event = serde_json::to_value(RunEvent { run_id, handle, what }).unwrap();
            let heard = RunHappening::deserialize(&event).unwrap_or_else(|error| panic!("{event}: {error}"));
            assert!(places.insert(place(&heard)), "{event}");
        }
    }

    #[test]
    fn the_end_is_taken_in_once_and_gives_the_exit_code() {
        let (run, handle) = ids();
        let mut teller = Teller::new(run, handle, true).unwrap();
        for (status, code) in [("ok", 0), ("error", 1)] {
            teller.event(json!({ "type": "ended", "status": status, "at": 1 })).unwrap();
            teller.event(json!({ "type": "unheard of" })).unwrap();
            let end = teller.end.clone().unwrap();
            // The second end stands at the same place, and was not told again.
            assert_eq!(end.status, RunStatus::Ok);
            let end = End { status: RunStatus::parse(status).unwrap(), ..end };
            assert_eq!(teller.finish(&end, Some("{}")).unwrap(), code);
        }
    }
}
