//! Reading a ledger for people and programs: the CLI, the API, `ctx.runs`. Each [`Reader`] has a connection of its own,
//! opened read-only, so it neither waits for the writer nor makes it wait, and needs no daemon. Calls block; on an
//! async thread, wrap them.
//!
//! "Newest first" is by run id, which is by the time a run was made; a cursor is the id of the last run seen, and stays
//! good when that row is gone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use crate::fire::{AutomationId, EpochMs, RunId, RunStatus, TriggerOrigin};

use super::error::LedgerError;
use super::rows::{
    LogRow, NodeOutline, NodeRow, RunRow, log_row, name, node_outline, node_row, run_columns, run_id, run_row, word,
};
use super::schema;
use super::usage::{NewestUsage, count};

/// In a write-ahead log, a reader waits only for a recovery or the very first migration.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Which runs; the default is the newest hundred of all.
#[derive(Debug, Clone)]
pub struct RunQuery {
    pub automation: Option<AutomationId>,
    /// Any of these; empty for all.
    pub statuses: Vec<RunStatus>,
    pub origin: Option<TriggerOrigin>,
    /// Queued or started at or after.
    pub since: Option<EpochMs>,
    /// Invoked by this run.
    pub parent: Option<RunId>,
    /// Only runs that used up their retries: failed, themselves a retry, and with no retry after them.
    pub dead: bool,
    /// Older than this one.
    pub before: Option<RunId>,
    /// Without input and output, which may be long: rows have `None` there.
    pub outline: bool,
    pub limit: usize,
}

impl Default for RunQuery {
    fn default() -> Self {
        Self {
            automation: None,
            statuses: Vec::new(),
            origin: None,
            since: None,
            parent: None,
            dead: false,
            before: None,
            outline: false,
            limit: 100,
        }
    }
}

/// How the runs of an automation ended, as far as retention has kept them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub ok: u64,
    pub error: u64,
    /// All rows: also open, cancelled and skipped ones.
    pub total: u64,
}

/// What the rows of an automation say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub counts: Counts,
    /// Runs that have not ended.
    pub open: u64,
    /// Newest first.
    pub recent: Vec<RecentRun>,
    /// None where no model was called of late.
    pub usage: Option<NewestUsage>,
}

/// What is short of a row of `runs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentRun {
    pub run_id: RunId,
    pub status: RunStatus,
    pub started_at: Option<EpochMs>,
    pub ended_at: Option<EpochMs>,
}

#[derive(Debug)]
pub struct Reader {
    conn: Connection,
    /// Of the original, with links resolved.
    path: PathBuf,
    /// Holds the copy that is read when the original's folder cannot be written.
    _copy: Option<tempfile::TempDir>,
}

impl Reader {
    /// Opens the ledger at `path`. `None` when there is none yet.
    ///
    /// # Errors
    /// `NewerVersion`, `Foreign`, `NotAFile`, `Unusable`.
    pub fn open(path: &Path) -> Result<Option<Self>, LedgerError> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LedgerError::io(&path.display().to_string(), &error)),
            Ok(_) => {}
        }
        let path = schema::real_path(path)?;
        schema::require_regular(&path)?;
        let reader = match Self::open_live(&path) {
            Err(error) if needs_a_writable_folder(&error) => Self::open_still(&path)?,
            other => Self { conn: other?, path: path.clone(), _copy: None },
        };
        reader.conn.busy_timeout(BUSY_TIMEOUT)?;
        schema::keep_plans(&reader.conn)?;
        match schema::user_version(&reader.conn)? {
            0 if reader.has_tables()? => Err(LedgerError::Foreign { path }),
            // Made, but not yet migrated.
            0 => Ok(None),
            found if found > schema::known_version() => {
                Err(LedgerError::NewerVersion { path, found, known: schema::known_version() })
            }
            _ => Ok(Some(reader)),
        }
    }

    fn open_live(path: &Path) -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, read_only() | OpenFlags::SQLITE_OPEN_NOFOLLOW)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        // Opening reads nothing; what is in the way shows at the first look.
        conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(conn)
    }

    /// For a ledger whose folder cannot be written, such as a backup on a read-only mount: nobody can be writing it,
    /// but SQLite wants its companion files beside it. Without a log it is read as it is; with one, from a copy.
    pub(super) fn open_still(path: &Path) -> Result<Self, LedgerError> {
        let log = schema::companion(path, "-wal");
        if log.metadata().map_or(0, |meta| meta.len()) == 0 {
            let uri = format!("file:{}?immutable=1", percent_encoded(path));
            let conn = Connection::open_with_flags(uri, read_only() | OpenFlags::SQLITE_OPEN_URI)?;
            return Ok(Self { conn, path: path.to_owned(), _copy: None });
        }
        let told = |error: std::io::Error| LedgerError::io("cannot copy the ledger to read it", &error);
        let folder = tempfile::tempdir().map_err(told)?;
        let copy = folder.path().join(super::FILE);
        std::fs::copy(path, &copy).map_err(told)?;
        std::fs::copy(&log, schema::companion(&copy, "-wal")).map_err(told)?;
        let conn = Connection::open(&copy)?;
        conn.pragma_update(None, "query_only", true)?;
        Ok(Self { conn, path: path.to_owned(), _copy: Some(folder) })
    }

    /// Where it can be opened again.
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[cfg(test)]
    pub(super) fn conn_for_tests(&self) -> &Connection {
        &self.conn
    }

    fn has_tables(&self) -> Result<bool, LedgerError> {
        Ok(self.conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))? > 0)
    }

    /// Newest first.
    pub fn runs(&self, query: &RunQuery) -> Result<Vec<RunRow>, LedgerError> {
        let mut found = Vec::new();
        self.each_run(query, |row| {
            found.push(row);
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Newest first, one at a time, until `see` has enough: for whoever must not hold them all.
    pub fn each_run(
        &self,
        query: &RunQuery,
        mut see: impl FnMut(RunRow) -> ControlFlow<()>,
    ) -> Result<(), LedgerError> {
        let all = concat!("SELECT ", run_columns!(), " FROM runs r WHERE true");
        let outline = concat!("SELECT ", run_columns!("NULL, NULL"), " FROM runs r WHERE true");
        let mut sql = if query.outline { outline } else { all }.to_owned();
        let mut values: Vec<Value> = Vec::new();
        let mut bind = |value: Value| {
            values.push(value);
            values.len()
        };
        if let Some(automation) = &query.automation {
            let _ = write!(sql, " AND r.automation_id = ?{}", bind(automation.as_str().to_owned().into()));
        }
        if !query.statuses.is_empty() {
            let any: Vec<_> =
                query.statuses.iter().map(|s| format!("?{}", bind(s.as_str().to_owned().into()))).collect();
            let _ = write!(sql, " AND r.status IN ({})", any.join(", "));
        }
        if let Some(origin) = query.origin {
            let _ = write!(sql, " AND r.trigger_origin = ?{}", bind(origin.as_str().to_owned().into()));
        }
        if let Some(since) = query.since {
            let at = bind(since.into());
            let _ = write!(sql, " AND (r.queued_at >= ?{at} OR r.started_at >= ?{at})");
        }
        if let Some(parent) = &query.parent {
            let _ = write!(sql, " AND r.parent_run_id = ?{}", bind(parent.as_str().to_owned().into()));
        }
        if query.dead {
            sql.push_str(
                " AND r.status = 'error' AND r.attempt > 1 AND r.retry_of IS NOT NULL \
                 AND NOT EXISTS (SELECT 1 FROM runs next WHERE next.retry_of = r.run_id)",
            );
        }
        if let Some(before) = &query.before {
            let _ = write!(sql, " AND r.run_id < ?{}", bind(before.as_str().to_owned().into()));
        }
        let limit = bind(i64::try_from(query.limit).unwrap_or(i64::MAX).into());
        let _ = write!(sql, " ORDER BY r.run_id DESC LIMIT ?{limit}");
        let mut statement = self.conn.prepare_cached(&sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(values))?;
        while let Some(row) = rows.next()? {
            if see(run_row(row)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub fn run(&self, id: &RunId) -> Result<Option<RunRow>, LedgerError> {
        let sql = concat!("SELECT ", run_columns!(), " FROM runs r WHERE r.run_id = ?1");
        Ok(self.read(sql, [id.as_str()], run_row)?.pop())
    }

    /// Without input and output: see [`RunQuery::outline`].
    pub fn run_outline(&self, id: &RunId) -> Result<Option<RunRow>, LedgerError> {
        let sql = concat!("SELECT ", run_columns!("NULL, NULL"), " FROM runs r WHERE r.run_id = ?1");
        Ok(self.read(sql, [id.as_str()], run_row)?.pop())
    }

    /// In call order.
    pub fn nodes(&self, id: &RunId) -> Result<Vec<NodeRow>, LedgerError> {
        self.nodes_within(id, usize::MAX)
    }

    /// As [`Self::nodes`]; but when the arguments and results together have more than `most` bytes, further long ones
    /// are shortened as if they had been too long to store.
    pub fn nodes_within(&self, id: &RunId, most: usize) -> Result<Vec<NodeRow>, LedgerError> {
        let mut left = most;
        let mut nodes = Vec::new();
        let mut statement = self.conn.prepare_cached(
            "SELECT run_id, ordinal, batch_id, kind, name, args_json, result_json, ok, error, child_run_id, \
             usage_json, started_at, ended_at FROM run_nodes WHERE run_id = ?1 ORDER BY ordinal",
        )?;
        let mut rows = statement.query([id.as_str()])?;
        while let Some(row) = rows.next()? {
            let mut node = node_row(row)?;
            for value in [&mut node.args, &mut node.result].into_iter().flatten() {
                value.shorten_to(left);
                left = left.saturating_sub(value.as_str().len());
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    /// In call order, those after `after`; without what they were asked and what they answered, which may be long.
    pub fn node_outlines(&self, id: &RunId, after: Option<u32>, limit: usize) -> Result<Vec<NodeOutline>, LedgerError> {
        self.read(
            "SELECT ordinal, batch_id, kind, name, ok, error, started_at, ended_at FROM run_nodes \
             WHERE run_id = ?1 AND ordinal > ?2 ORDER BY ordinal LIMIT ?3",
            params![id.as_str(), after.map_or(-1, i64::from), i64::try_from(limit).unwrap_or(i64::MAX)],
            node_outline,
        )
    }

    /// In order, those after `after_seq`.
    pub fn logs(&self, id: &RunId, after_seq: Option<u32>, limit: usize) -> Result<Vec<LogRow>, LedgerError> {
        self.read(
            "SELECT run_id, seq, at, level, message, fields_json FROM run_logs WHERE run_id = ?1 AND seq > ?2 \
             ORDER BY seq LIMIT ?3",
            params![id.as_str(), after_seq.map_or(-1, i64::from), i64::try_from(limit).unwrap_or(i64::MAX)],
            log_row,
        )
    }

    /// The runs of this app that a run invoked, oldest first, without input and output. Those in other apps are in
    /// their ledgers; the node's `child_run_id` names them.
    pub fn children(&self, id: &RunId) -> Result<Vec<RunRow>, LedgerError> {
        let sql =
            concat!("SELECT ", run_columns!("NULL, NULL"), " FROM runs r WHERE r.parent_run_id = ?1 ORDER BY r.run_id");
        self.read(sql, [id.as_str()], run_row)
    }

    /// What the rows of each automation say together, or those of one; of the newest `recent`, each by itself. All of
    /// one moment.
    ///
    /// Looks at one entry of an index for every row, and at the newest rows of each automation: with a million rows,
    /// some tenths of a second.
    pub fn history(
        &self,
        only: Option<&AutomationId>,
        recent: usize,
    ) -> Result<BTreeMap<AutomationId, History>, LedgerError> {
        let _one_moment = self.moment()?;
        let mut found: BTreeMap<AutomationId, History> = BTreeMap::new();
        for (automation, status, rows) in self.rows_by_status(only)? {
            found.entry(automation).or_default().count(status, rows);
        }
        let with_models = self.has_usage()?;
        for (automation, history) in &mut found {
            history.recent = self.read(
                "SELECT run_id, status, started_at, ended_at FROM runs WHERE automation_id = ?1 \
                 ORDER BY run_id DESC LIMIT ?2",
                params![automation.as_str(), i64::try_from(recent).unwrap_or(i64::MAX)],
                recent_run,
            )?;
            if with_models {
                history.usage = self.newest_usage(automation)?;
            }
        }
        Ok(found)
    }

    /// How many rows of each automation stand in each status.
    fn rows_by_status(&self, only: Option<&AutomationId>) -> Result<Vec<(AutomationId, RunStatus, u64)>, LedgerError> {
        let counted = |which: &str| {
            let of_one = if only.is_some() { "AND automation_id = ?1" } else { "" };
            format!(
                "SELECT automation_id, status, count(*) FROM runs WHERE ended_at IS {which} {of_one} \
                 GROUP BY automation_id, status"
            )
        };
        // Two questions, because what is open and what has ended have an index each.
        let sql = format!("{} UNION ALL {}", counted("NOT NULL"), counted("NULL"));
        self.read(&sql, rusqlite::params_from_iter(only.map(AutomationId::as_str)), |row| {
            Ok((name(row, 0, AutomationId::new)?, word(row, 1, RunStatus::parse)?, count(row, 2)?))
        })
    }

    /// The ids of open runs, oldest first.
    pub fn open_runs(&self) -> Result<Vec<RunId>, LedgerError> {
        self.read("SELECT run_id FROM runs WHERE ended_at IS NULL ORDER BY queued_at, run_id", [], |row| run_id(row, 0))
    }

    /// The input as it was given. For a run that has ended, a long one is only kept shortened: see
    /// [`super::is_truncated`].
    pub fn input(&self, id: &RunId) -> Result<Option<String>, LedgerError> {
        // A ledger of the first version keeps none.
        let kept: bool = self.conn.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'run_inputs'")?.exists([])?;
        if kept {
            let full = self
                .conn
                .query_row("SELECT input_json FROM run_inputs WHERE run_id = ?1", [id.as_str()], |row| row.get(0))
                .optional()?;
            if full.is_some() {
                return Ok(full);
            }
        }
        Ok(self.run(id)?.and_then(|row| row.input).map(super::JsonText::into_string))
    }

    /// All reads until it is dropped see the same moment.
    pub(super) fn moment(&self) -> Result<rusqlite::Transaction<'_>, LedgerError> {
        Ok(self.conn.unchecked_transaction()?)
    }

    pub(super) fn read<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl Fn(&rusqlite::Row<'_>) -> Result<T, LedgerError>,
    ) -> Result<Vec<T>, LedgerError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(read(row)?);
        }
        Ok(found)
    }
}

impl History {
    fn count(&mut self, status: RunStatus, rows: u64) {
        self.counts.total += rows;
        match status {
            RunStatus::Ok => self.counts.ok += rows,
            RunStatus::Error => self.counts.error += rows,
            _ if status.is_open() => self.open += rows,
            _ => {}
        }
    }
}

/// Reads `run_id, status, started_at, ended_at`.
fn recent_run(row: &rusqlite::Row<'_>) -> Result<RecentRun, LedgerError> {
    Ok(RecentRun {
        run_id: run_id(row, 0)?,
        status: word(row, 1, RunStatus::parse)?,
        started_at: row.get(2)?,
        ended_at: row.get(3)?,
    })
}

fn read_only() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn needs_a_writable_folder(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

/// A path as it stands in a `file:` URI.
fn percent_encoded(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(*byte)),
            _ if byte.is_ascii_alphanumeric() => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}
