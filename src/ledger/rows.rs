//! The rows of a ledger as the rest of the program sees them: what is written ([`NewRun`], [`Close`], [`NewNode`],
//! [`NodeClose`]) and what is read back ([`RunRow`], [`NodeRow`], [`NodeOutline`], [`LogRow`]). In what is written, a
//! `…_json` is JSON text; in what is read, such a column is a [`JsonText`], which serializes as the value that it is.

use serde::{Serialize, Serializer};

pub use crate::core::run::{Close, NewRun};
use crate::fire::{AppId, AutomationId, EpochMs, LogLevel, NodeKind, RunId, RunStatus, TriggerInfo, TriggerOrigin};

use super::error::LedgerError;

/// A row of `run_nodes` as it is born: open.
#[derive(Debug, Clone, PartialEq)]
pub struct NewNode {
    pub ordinal: u32,
    pub batch_id: Option<u32>,
    pub kind: NodeKind,
    pub name: String,
    pub args_json: String,
    pub child_run_id: Option<RunId>,
    pub started_at: EpochMs,
}

/// The end of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeClose {
    pub ordinal: u32,
    pub ok: bool,
    pub result_json: Option<String>,
    pub error: Option<String>,
    /// `None` leaves what the node was opened with.
    pub child_run_id: Option<RunId>,
    pub usage_json: Option<String>,
    pub ended_at: EpochMs,
}

/// JSON text from a column. It serializes as the value that it is; text that is no JSON (a row edited by hand) as a
/// string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonText(String);

impl JsonText {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn into_string(self) -> String {
        self.0
    }

    /// Puts the marker of a value that is too long in its place, if it has more bytes than this and the marker is
    /// shorter.
    pub(super) fn shorten_to(&mut self, bytes: usize) {
        if self.0.len() > bytes && !self.is_truncated() {
            let marker = super::stored::marker(&self.0);
            if marker.len() < self.0.len() {
                self.0 = marker;
            }
        }
    }

    /// True when the value was too long to store: see [`super::is_truncated`].
    pub fn is_truncated(&self) -> bool {
        super::stored::is_truncated(&self.0)
    }
}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&serde_json::value::RawValue>(&self.0) {
            Ok(raw) => raw.serialize(serializer),
            Err(_) => serializer.serialize_str(&self.0),
        }
    }
}

/// A row of `runs`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RunRow {
    pub run_id: RunId,
    pub app_id: AppId,
    pub automation_id: AutomationId,
    pub status: RunStatus,
    #[serde(rename = "triggerOrigin")]
    pub origin: TriggerOrigin,
    pub trigger: TriggerInfo,
    pub scheduled_for: Option<EpochMs>,
    pub input: Option<JsonText>,
    pub output: Option<JsonText>,
    pub summary: Option<String>,
    pub error: Option<String>,
    /// Text and not [`crate::fire::ErrorCode`], so that rows of a later minor version can be read.
    pub error_code: Option<String>,
    pub parent_run_id: Option<RunId>,
    pub retry_of: Option<RunId>,
    pub attempt: u32,
    pub handler_hash: Option<String>,
    pub queued_at: EpochMs,
    pub started_at: Option<EpochMs>,
    pub ended_at: Option<EpochMs>,
}

/// A row of `run_nodes`. `ok` is `None` while it is open.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    pub run_id: RunId,
    pub ordinal: u32,
    pub batch_id: Option<u32>,
    pub kind: NodeKind,
    pub name: String,
    pub args: Option<JsonText>,
    pub result: Option<JsonText>,
    pub ok: Option<bool>,
    pub error: Option<String>,
    pub child_run_id: Option<RunId>,
    pub usage: Option<JsonText>,
    pub started_at: EpochMs,
    pub ended_at: Option<EpochMs>,
}

/// What is short of a row of `run_nodes`.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeOutline {
    pub ordinal: u32,
    pub batch_id: Option<u32>,
    pub kind: NodeKind,
    pub name: String,
    pub ok: Option<bool>,
    pub error: Option<String>,
    pub started_at: EpochMs,
    pub ended_at: Option<EpochMs>,
}

/// A row of `run_logs`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRow {
    pub run_id: RunId,
    pub seq: u32,
    pub at: EpochMs,
    pub level: LogLevel,
    pub message: String,
    pub fields: Option<JsonText>,
}

/// The columns of [`RunRow`], in the order that [`run_row`] reads; input and output may be left out.
macro_rules! run_columns {
    () => {
        run_columns!("r.input_json, r.output_json")
    };
    ($values:literal) => {
        concat!(
            "r.run_id, r.app_id, r.automation_id, r.status, r.trigger_origin, r.trigger_json, r.scheduled_for, ",
            $values,
            ", r.summary, r.error, r.error_code, r.parent_run_id, r.retry_of, r.attempt, r.handler_hash, \
             r.queued_at, r.started_at, r.ended_at"
        )
    };
}
pub(super) use run_columns;

pub(super) fn run_row(row: &rusqlite::Row<'_>) -> Result<RunRow, LedgerError> {
    let trigger: Option<String> = row.get(5)?;
    Ok(RunRow {
        run_id: run_id(row, 0)?,
        app_id: name(row, 1, AppId::new)?,
        automation_id: name(row, 2, AutomationId::new)?,
        status: word(row, 3, RunStatus::parse)?,
        origin: word(row, 4, TriggerOrigin::parse)?,
        trigger: trigger.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        scheduled_for: row.get(6)?,
        input: json(row, 7)?,
        output: json(row, 8)?,
        summary: row.get(9)?,
        error: row.get(10)?,
        error_code: row.get(11)?,
        parent_run_id: optional_run_id(row, 12)?,
        retry_of: optional_run_id(row, 13)?,
        attempt: row.get(14)?,
        handler_hash: row.get(15)?,
        queued_at: row.get(16)?,
        started_at: row.get(17)?,
        ended_at: row.get(18)?,
    })
}

/// Reads `run_id, ordinal, batch_id, kind, name, args_json, result_json, ok, error, child_run_id, usage_json,
/// started_at, ended_at`.
pub(super) fn node_row(row: &rusqlite::Row<'_>) -> Result<NodeRow, LedgerError> {
    Ok(NodeRow {
        run_id: run_id(row, 0)?,
        ordinal: row.get(1)?,
        batch_id: row.get(2)?,
        kind: word(row, 3, NodeKind::parse)?,
        name: row.get(4)?,
        args: json(row, 5)?,
        result: json(row, 6)?,
        ok: row.get(7)?,
        error: row.get(8)?,
        child_run_id: optional_run_id(row, 9)?,
        usage: json(row, 10)?,
        started_at: row.get(11)?,
        ended_at: row.get(12)?,
    })
}

/// Reads `ordinal, batch_id, kind, name, ok, error, started_at, ended_at`.
pub(super) fn node_outline(row: &rusqlite::Row<'_>) -> Result<NodeOutline, LedgerError> {
    Ok(NodeOutline {
        ordinal: row.get(0)?,
        batch_id: row.get(1)?,
        kind: word(row, 2, NodeKind::parse)?,
        name: row.get(3)?,
        ok: row.get(4)?,
        error: row.get(5)?,
        started_at: row.get(6)?,
        ended_at: row.get(7)?,
    })
}

/// Reads `run_id, seq, at, level, message, fields_json`.
pub(super) fn log_row(row: &rusqlite::Row<'_>) -> Result<LogRow, LedgerError> {
    Ok(LogRow {
        run_id: run_id(row, 0)?,
        seq: row.get(1)?,
        at: row.get(2)?,
        level: word(row, 3, LogLevel::parse)?,
        message: row.get(4)?,
        fields: json(row, 5)?,
    })
}

fn json(row: &rusqlite::Row<'_>, column: usize) -> Result<Option<JsonText>, LedgerError> {
    Ok(row.get::<_, Option<String>>(column)?.map(JsonText))
}

pub(super) fn run_id(row: &rusqlite::Row<'_>, column: usize) -> Result<RunId, LedgerError> {
    name(row, column, RunId::new)
}

fn optional_run_id(row: &rusqlite::Row<'_>, column: usize) -> Result<Option<RunId>, LedgerError> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => run_id(row, column).map(Some),
    }
}

pub(super) fn name<T, E: std::fmt::Display>(
    row: &rusqlite::Row<'_>,
    column: usize,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, LedgerError> {
    let text: String = row.get(column)?;
    parse(&text).map_err(|e| LedgerError::BadRow { what: e.to_string() })
}

pub(super) fn word<T>(
    row: &rusqlite::Row<'_>,
    column: usize,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, LedgerError> {
    let text: String = row.get(column)?;
    parse(&text).ok_or_else(|| LedgerError::BadRow { what: format!("unknown word {text:?} in column {column}") })
}
