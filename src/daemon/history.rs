//! `ctx.runs`: what a handler may see of earlier runs.
//!
//! An answer is built row by row and given up when it outgrows what one value may be: rows carry outputs of up to a
//! mebibyte each. And only a few answers are built at once, in all runs together.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::daemon::services::Services;
use crate::fire::{AppId, AutomationId, CallError, EpochMs, RunId, RunStatus};
use crate::ledger::{JsonText, LedgerError, Reader, RunQuery};

const DEFAULT_LIMIT: usize = 50;
/// More rows than this in one answer help nobody and cost memory.
const MAX_LIMIT: usize = 1000;

/// The fields of a filter; all may be absent or null.
const FIELDS: [&str; 4] = ["automationId", "status", "since", "limit"];

/// Characters of a wrong value that its message shows.
const SHOWN: usize = 100;

/// A filter that was understood.
#[derive(Debug)]
pub struct Query {
    automation: AutomationId,
    status: Option<RunStatus>,
    since: Option<EpochMs>,
    limit: usize,
    /// The run that asks; it is not among its own prior runs.
    current: RunId,
}

impl Query {
    /// Reads `{ automationId?, status?, since?, limit? }`; `since` in epoch milliseconds or as an RFC 3339 text.
    /// Without `automationId` it is about `own`.
    ///
    /// # Errors
    /// `INVALID_INPUT`, naming the field, the rule and the value.
    pub fn parse(filter_json: Option<&str>, own: &AutomationId, current: &RunId) -> Result<Self, CallError> {
        let mut query =
            Self { automation: own.clone(), status: None, since: None, limit: DEFAULT_LIMIT, current: current.clone() };
        query
            .read(filter_json.unwrap_or("null"))
            .map_err(|told| CallError::new("INVALID_INPUT", format!("ctx.runs filter: {told}")))?;
        Ok(query)
    }

    fn read(&mut self, filter_json: &str) -> Result<(), String> {
        if is_too_deep(filter_json) {
            return Err(too_deep("it"));
        }
        let fields = match serde_json::from_str(filter_json) {
            Ok(Value::Null) => return Ok(()),
            Ok(Value::Object(fields)) => fields,
            _ => return Err(format!("it must be an object with any of {}", FIELDS.join(", "))),
        };
        for (name, value) in &fields {
            if value.is_null() && FIELDS.contains(&name.as_str()) {
                continue;
            }
            match name.as_str() {
                "automationId" => self.automation = automation_id(value)?,
                "status" => self.status = Some(status(value)?),
                "since" => self.since = Some(epoch_ms(value)?),
                "limit" => self.limit = limit(value)?,
                _ => return Err(unknown_field(name)),
            }
        }
        Ok(())
    }
}

fn unknown_field(name: &str) -> String {
    let near = nearest(name, &FIELDS).map_or(String::new(), |near| format!(" (did you mean \"{near}\"?)"));
    let (name, known) = (shortened(name, SHOWN), FIELDS.join(", "));
    format!("{name:?} is not a filter field; the fields are {known}{near}")
}

fn wrong(field: &str, rule: &str, value: &Value) -> String {
    format!("{field} must be {rule}, not {}", shortened(&value.to_string(), SHOWN))
}

fn automation_id(value: &Value) -> Result<AutomationId, String> {
    let id = value.as_str().and_then(|text| AutomationId::new(text).ok());
    id.ok_or_else(|| {
        let rule = format!("the id of an automation of this app, which matches {}", AutomationId::RULE);
        wrong("automationId", &rule, value)
    })
}

fn status(value: &Value) -> Result<RunStatus, String> {
    let known = RunStatus::ALL.iter().map(|status| status.as_str()).collect::<Vec<_>>();
    value.as_str().and_then(RunStatus::parse).ok_or_else(|| {
        let near = value.as_str().and_then(|text| nearest(text, &known));
        let near = near.map_or(String::new(), |near| format!(" (did you mean \"{near}\"?)"));
        wrong("status", &format!("one of {}", known.join(", ")), value) + &near
    })
}

fn limit(value: &Value) -> Result<usize, String> {
    let whole = value.as_u64().or_else(|| {
        // Beyond 2^64 JavaScript writes an integer with an exponent.
        value.as_f64().filter(|n| n.fract() == 0.0 && *n >= 1.0).map(|_| u64::MAX)
    });
    match whole {
        Some(limit) if limit >= 1 => Ok(usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_LIMIT)),
        _ => Err(wrong("limit", "an integer of at least 1", value)),
    }
}

fn epoch_ms(value: &Value) -> Result<EpochMs, String> {
    let at = match value {
        #[allow(clippy::cast_possible_truncation, reason = "milliseconds have no fraction worth keeping")]
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)),
        Value::String(text) => chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.timestamp_millis()),
        _ => None,
    };
    at.ok_or_else(|| wrong("since", "epoch milliseconds or an RFC 3339 time such as 2026-05-01T00:00:00Z", value))
}

/// The runs of one automation of an app, newest first, without the current one and without those that have not started.
/// JSON text of a list.
///
/// # Errors
/// `too_large` when the list would be longer than one value may be, `ledger` when the file cannot be read.
pub async fn prior_runs(services: &Services, app: &AppId, query: Query) -> Result<String, CallError> {
    let failed = |told: String| CallError::new("ledger", told);
    let turn = Arc::clone(&services.history_reads).acquire_owned().await.map_err(|error| failed(error.to_string()))?;
    let (ledger, max_bytes) = (services.folders.ledger(app), services.limits.value_bytes);
    let read = tokio::task::spawn_blocking(move || {
        // Held by the reading itself, which goes on when nobody waits for it any more.
        let _turn = turn;
        Reader::open(&ledger)?.map_or(Ok(Some("[]".to_owned())), |reader| list(&reader, &query, max_bytes))
    });
    let list = read.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
    list.ok_or_else(|| {
        let message = format!("these runs are more than the {max_bytes} bytes that one result may be");
        CallError::new("too_large", format!("{message}; ask for fewer with a smaller `limit`"))
    })
}

/// One row of the answer.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PriorRun {
    run_id: RunId,
    automation_id: AutomationId,
    status: RunStatus,
    started_at: Option<EpochMs>,
    ended_at: Option<EpochMs>,
    summary: Option<String>,
    output: Option<JsonText>,
}

/// `None` as soon as the list is longer than `max_bytes`.
fn list(reader: &Reader, query: &Query, max_bytes: u64) -> Result<Option<String>, LedgerError> {
    let statuses = match query.status {
        Some(status) => vec![status],
        None => RunStatus::ALL.iter().copied().filter(|s| *s != RunStatus::Queued).collect(),
    };
    let asked = RunQuery {
        automation: Some(query.automation.clone()),
        statuses,
        since: query.since,
        // One more, because the current run may be among them.
        limit: query.limit + 1,
        ..RunQuery::default()
    };
    let mut text = "[".to_owned();
    let mut rows = 0;
    let mut fits = true;
    reader.each_run(&asked, |row| {
        if row.run_id == query.current {
            return ControlFlow::Continue(());
        }
        if rows == query.limit {
            return ControlFlow::Break(());
        }
        let row = PriorRun {
            run_id: row.run_id,
            automation_id: row.automation_id,
            status: row.status,
            started_at: row.started_at,
            ended_at: row.ended_at,
            summary: row.summary,
            output: row.output,
        };
        if rows > 0 {
            text.push(',');
        }
        rows += 1;
        text.push_str(&serde_json::to_string(&row).expect("text, numbers and JSON have a JSON form"));
        fits = (text.len() as u64) < max_bytes;
        if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    text.push(']');
    Ok(fits.then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::manifest::HistoryKeep;
    use crate::ledger::tests::{T0, end, manual, root};

    fn parse(filter: &str) -> Result<Query, String> {
        Query::parse(Some(filter), &"own".parse().unwrap(), &RunId::at(1)).map_err(|error| {
            assert_eq!(error.code, "INVALID_INPUT");
            error.message
        })
    }

    #[test]
    fn a_filter_is_read_whole() {
        let query = parse(r#"{"automationId":"x","status":"error","since":"1970-01-01T00:00:01Z","limit":7}"#).unwrap();
        assert_eq!((query.automation.as_str(), query.status), ("x", Some(RunStatus::Error)));
        assert_eq!((query.since, query.limit), (Some(1000), 7));
        for empty in ["null", "{}", r#"{"automationId":null,"status":null,"since":null,"limit":null}"#] {
            let query = parse(empty).unwrap();
            assert_eq!((query.automation.as_str(), query.status, query.since), ("own", None, None), "{empty}");
            assert_eq!(query.limit, DEFAULT_LIMIT);
        }
        for (limit, expected) in [("1", 1), ("1000", 1000), ("99999", MAX_LIMIT), ("1e300", MAX_LIMIT)] {
            assert_eq!(parse(&format!(r#"{{"limit":{limit}}}"#)).unwrap().limit, expected, "{limit}");
        }
        assert_eq!(parse(r#"{"since":1500.5}"#).unwrap().since, Some(1500));
    }

    #[test]
    fn a_wrong_filter_is_told_by_field_rule_and_value() {
        let fields = "the fields are automationId, status, since, limit";
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for (filter, told) in [
            (
                r#"{"limt":1}"#,
                format!("\"limt\" is not a filter field; {fields} (did you mean \"limit\"?)"),
            ),
            (r#"{"zzz":null}"#, format!("\"zzz\" is not a filter field; {fields}")),
            (r#"{"limit":0}"#, "limit must be an integer of at least 1, not 0".to_owned()),
            (r#"{"limit":-2}"#, "limit must be an integer of at least 1, not -2".to_owned()),
            (r#"{"limit":1.5}"#, "limit must be an integer of at least 1, not 1.5".to_owned()),
            (r#"{"limit":"3"}"#, "limit must be an integer of at least 1, not \"3\"".to_owned()),
            (
                r#"{"status":"eror"}"#,
                "status must be one of queued, running, ok, error, cancelled, skipped, not \"eror\" (did you mean \"error\"?)".to_owned(),
            ),
            (
                r#"{"status":3}"#,
                "status must be one of queued, running, ok, error, cancelled, skipped, not 3".to_owned(),
            ),
            (
                r#"{"automationId":"a/b"}"#,
                "automationId must be the id of an automation of this app, which matches ^[A-Za-z0-9_-]{1,128}$, not \"a/b\"".to_owned(),
            ),
            (
                r#"{"since":"yesterday"}"#,
                "since must be epoch milliseconds or an RFC 3339 time such as 2026-05-01T00:00:00Z, not \"yesterday\"".to_owned(),
            ),
            ("[]", "it must be an object with any of automationId, status, since, limit".to_owned()),
            (&deep, "it nests deeper than 100 levels of arrays and objects".to_owned()),
        ] {
            assert_eq!(parse(filter).unwrap_err(), format!("ctx.runs filter: {told}"));
        }
        let long = format!(r#"{{"status":"{}"}}"#, "x".repeat(100_000));
        assert!(parse(&long).unwrap_err().len() < 400);
    }

    #[tokio::test]
    async fn a_list_ends_where_one_value_may_not_grow_further() {
        let root = root();
        let app = root.app("shop");
        // Nests deeper than a parser of values would go: it is handed on as it is.
        let output = format!("{}{}", "[".repeat(600), "]".repeat(600));
        for n in 0..8 {
            let id = root.opened(&app, manual(&app, T0 + n)).await;
            let mut close = (*end(&id, T0 + n, RunStatus::Ok, HistoryKeep::All)).clone();
            close.end.output_json = Some(output.clone());
            root.ledgers.close_run(&app, std::sync::Arc::new(close)).await.unwrap();
        }
        let current = root.opened(&app, manual(&app, T0 + 100)).await;
        let reader = root.reader(&app);
        let listed = |limit: usize, max_bytes: u64| {
            let own = "a".parse().unwrap();
            let query = Query::parse(Some(&format!(r#"{{"limit":{limit}}}"#)), &own, &current).unwrap();
            list(&reader, &query, max_bytes).unwrap().map(|text| text.matches("runId").count())
        };
        for (limit, max_bytes, rows) in [
            (1, 1_000_000, Some(1)),
            (3, 1_000_000, Some(3)),
            (50, 1_000_000, Some(8)),
            (50, 5000, None),
            (2, 5000, Some(2)),
        ] {
            assert_eq!(listed(limit, max_bytes), rows, "{limit} rows within {max_bytes}");
        }
        let mut seen = 0;
        let all = RunQuery { limit: 100, ..RunQuery::default() };
        let enough = reader.each_run(&all, |_| {
            seen += 1;
            if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((enough, seen), (Ok(()), 2), "the other rows are not read");
    }
}
