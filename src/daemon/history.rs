//! `ctx.runs`: what a handler may see of earlier runs.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::fire::{AutomationId, CallError, EpochMs, Handle, RunId, RunStatus};
use crate::ledger::{Reader, RunQuery};

const DEFAULT_LIMIT: usize = 50;
/// More rows than this in one answer help nobody and cost memory.
const MAX_LIMIT: usize = 1000;

/// `{ automationId?, status?, since?, limit? }`; `since` in epoch milliseconds or as an RFC 3339 text.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Filter {
    automation_id: Option<AutomationId>,
    status: Option<RunStatus>,
    since: Option<Value>,
    limit: Option<usize>,
}

/// The runs of one automation of the handler's app, newest first, without the current one and without those that have
/// not started. JSON text of a list.
///
/// # Errors
/// `INVALID_INPUT` for a filter of another shape, `ledger` when the file cannot be read.
pub async fn prior_runs(
    ledger: PathBuf,
    own: Handle,
    current: RunId,
    filter_json: Option<String>,
) -> Result<String, CallError> {
    let invalid = |told: String| CallError::new("INVALID_INPUT", format!("ctx.runs filter: {told}"));
    let filter: Filter = match filter_json.as_deref() {
        None | Some("null") => Filter::default(),
        Some(text) => serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?,
    };
    let since = filter.since.as_ref().map(epoch_ms).transpose().map_err(invalid)?;
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    let statuses = match filter.status {
        Some(status) => vec![status],
        None => RunStatus::ALL.iter().copied().filter(|s| *s != RunStatus::Queued).collect(),
    };
    let query = RunQuery {
        automation: Some(filter.automation_id.unwrap_or(own.automation)),
        statuses,
        since,
        // One more, because the current run is among them.
        limit: limit + 1,
        ..RunQuery::default()
    };
    let read = tokio::task::spawn_blocking(move || match Reader::open(&ledger)? {
        Some(reader) => reader.runs(&query),
        None => Ok(Vec::new()),
    })
    .await
    .map_err(|error| CallError::new("ledger", error.to_string()))?;
    let rows = read.map_err(|error| CallError::new("ledger", error.to_string()))?;
    let rows: Vec<Value> = rows
        .into_iter()
        .filter(|row| row.run_id != current)
        .take(limit)
        .map(|row| {
            json!({
                "runId": row.run_id,
                "automationId": row.automation_id,
                "status": row.status,
                "startedAt": row.started_at,
                "endedAt": row.ended_at,
                "summary": row.summary,
                "output": row.output,
            })
        })
        .collect();
    Ok(Value::from(rows).to_string())
}

fn epoch_ms(since: &Value) -> Result<EpochMs, String> {
    let told = || format!("`since` is {since}; it must be epoch milliseconds or an RFC 3339 time");
    match since {
        #[allow(clippy::cast_possible_truncation, reason = "milliseconds have no fraction worth keeping")]
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).ok_or_else(told),
        Value::String(text) => {
            chrono::DateTime::parse_from_rfc3339(text).map(|at| at.timestamp_millis()).map_err(|_| told())
        }
        _ => Err(told()),
    }
}
