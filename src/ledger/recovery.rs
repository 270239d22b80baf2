//! What a daemon finds in a ledger when it starts: runs that its predecessor left open, and up to where each cron
//! trigger has fired. It reads only open rows, so it takes as long among a million rows as among ten.
//!
//! It changes no row. Whoever asked closes each `running` one as interrupted, with its retry in the same transaction:
//! were they closed here, a second crash could come between the end and the retry, and the retry would be lost.

use std::path::PathBuf;

use rusqlite::Connection;

use crate::fire::{AutomationId, RunStatus};

use super::error::LedgerError;
use super::ops::Watermark;
use super::rows::{JsonText, NewRun, RunRow, name, run_columns, run_row};

/// What was found. Every `input_json` is the full input.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    /// Their owner is gone.
    pub running: Vec<NewRun>,
    /// Oldest first.
    pub queued: Vec<NewRun>,
    /// Of the triggers that were armed.
    pub watermarks: Vec<Watermark>,
    /// Where a corrupt ledger of this app was moved since the daemon started, if that happened.
    pub quarantined: Option<PathBuf>,
}

pub(super) fn recover(conn: &Connection) -> Result<Recovered, LedgerError> {
    Ok(Recovered {
        running: open_rows(conn, RunStatus::Running)?,
        queued: open_rows(conn, RunStatus::Queued)?,
        watermarks: watermarks(conn)?,
        quarantined: None,
    })
}

fn open_rows(conn: &Connection, status: RunStatus) -> Result<Vec<NewRun>, LedgerError> {
    let mut statement = conn.prepare(concat!(
        "SELECT ",
        run_columns!(),
        ", i.input_json FROM runs r INDEXED BY runs_open LEFT JOIN run_inputs i ON i.run_id = r.run_id \
         WHERE r.ended_at IS NULL AND r.status = ?1 ORDER BY r.queued_at, r.run_id"
    ))?;
    let mut rows = statement.query([status.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(as_opened(run_row(row)?, row.get(19)?));
    }
    Ok(found)
}

fn as_opened(row: RunRow, full_input: Option<String>) -> NewRun {
    NewRun {
        run_id: row.run_id,
        app_id: row.app_id,
        automation_id: row.automation_id,
        status: row.status,
        origin: row.origin,
        trigger: row.trigger,
        scheduled_for: row.scheduled_for,
        input_json: full_input.or(row.input.map(JsonText::into_string)),
        parent_run_id: row.parent_run_id,
        retry_of: row.retry_of,
        attempt: row.attempt,
        handler_hash: row.handler_hash,
        queued_at: row.queued_at,
        started_at: row.started_at,
        ended_at: row.ended_at,
        summary: row.summary,
        error: row.error,
    }
}

fn watermarks(conn: &Connection) -> Result<Vec<Watermark>, LedgerError> {
    let mut statement =
        conn.prepare("SELECT automation_id, trigger_key, scheduled_for FROM trigger_watermarks WHERE armed")?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((name(row, 0, AutomationId::new)?, row.get(1)?, row.get(2)?));
    }
    Ok(found)
}
