//! The tables, how a file gets them, and how a connection is set up.
//!
//! `runs`, `run_nodes`, `run_logs` and `automation_state` are a contract: people query them with any SQLite client.
//! The other tables are this program's own. `PRAGMA user_version` counts the steps that a file has taken; steps are
//! only ever appended, and each runs in a transaction of its own. A step that was released is never edited: files out
//! there have already taken it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::checkpoint;
use super::error::{Fault, LedgerError};

/// How long a write waits for another client's lock before it fails with [`Fault::Busy`].
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Statements kept prepared per connection: all that the writer has.
const STATEMENT_CACHE: usize = 96;

/// Of page cache per connection. A fire touches the right edge of a few trees; with a hundred ledgers open, more
/// would only be memory held.
const CACHE_KIB: u32 = 1024;

/// After a burst the write-ahead log is cut back to this when it starts over. Not to zero: overwriting in place
/// syncs faster than growing.
const WAL_KEEP_BYTES: u32 = 8 * 1024 * 1024;

/// Files up to this many pages are checked whole when they are first opened; it takes a few milliseconds. In longer
/// ones, damage shows when the damaged page is met.
const QUICK_CHECK_PAGES: i64 = 1024;

/// Step 1: the tables of the contract.
const CONTRACT: &str = "
CREATE TABLE runs (
    run_id         TEXT PRIMARY KEY NOT NULL,
    app_id         TEXT NOT NULL,
    automation_id  TEXT NOT NULL,
    status         TEXT NOT NULL,
    trigger_origin TEXT NOT NULL,
    trigger_json   TEXT,
    scheduled_for  INTEGER,
    input_json     TEXT,
    output_json    TEXT,
    summary        TEXT,
    error          TEXT,
    error_code     TEXT,
    parent_run_id  TEXT,
    retry_of       TEXT,
    attempt        INTEGER NOT NULL DEFAULT 1,
    handler_hash   TEXT,
    queued_at      INTEGER NOT NULL,
    started_at     INTEGER,
    ended_at       INTEGER
);
CREATE TABLE run_nodes (
    run_id       TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
    ordinal      INTEGER NOT NULL,
    batch_id     INTEGER,
    kind         TEXT NOT NULL,
    name         TEXT NOT NULL,
    args_json    TEXT,
    result_json  TEXT,
    ok           INTEGER,
    error        TEXT,
    child_run_id TEXT,
    usage_json   TEXT,
    started_at   INTEGER NOT NULL,
    ended_at     INTEGER,
    PRIMARY KEY (run_id, ordinal)
) WITHOUT ROWID;
CREATE TABLE run_logs (
    run_id      TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
    seq         INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    level       TEXT NOT NULL,
    message     TEXT NOT NULL,
    fields_json TEXT,
    PRIMARY KEY (run_id, seq)
) WITHOUT ROWID;
CREATE TABLE automation_state (
    automation_id TEXT NOT NULL,
    key           TEXT NOT NULL,
    value_json    TEXT NOT NULL,
    updated_at    INTEGER NOT NULL,
    PRIMARY KEY (automation_id, key)
) WITHOUT ROWID;
";

/// Step 2: how the rows are found, and what only this program reads.
///
/// Each index costs every write, so: one for lists and retention (run ids sort by time), one that holds only open
/// rows, one for the identity of cron fires, and two that only rows of retries and invoked runs enter. A row is open
/// exactly while `ended_at` is null.
const OWN: &str = "
CREATE INDEX runs_by_automation ON runs (automation_id, run_id);
CREATE INDEX runs_open ON runs (automation_id, queued_at) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX runs_cron_fire
    ON runs (automation_id, ifnull(json_extract(trigger_json, '$.key'), ''), scheduled_for)
    WHERE trigger_origin = 'cron';
CREATE INDEX runs_by_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_by_retried ON runs (retry_of) WHERE retry_of IS NOT NULL;
CREATE TABLE trigger_watermarks (
    automation_id TEXT NOT NULL,
    trigger_key   TEXT NOT NULL,
    scheduled_for INTEGER NOT NULL,
    PRIMARY KEY (automation_id, trigger_key)
) WITHOUT ROWID;
CREATE TABLE run_inputs (
    run_id     TEXT PRIMARY KEY NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE,
    input_json TEXT NOT NULL
) WITHOUT ROWID;
";

/// Step 3: a trigger that was disabled, edited away or removed is known as such after a restart, too.
const ARMED: &str = "ALTER TABLE trigger_watermarks ADD COLUMN armed INTEGER NOT NULL DEFAULT 1;";

/// Step 4: which run took each delivery (see `deliveries`), and how it ended: an answer that outlives the run's row. A
/// run is found here when it ends, and what is old is dropped by its time.
const DELIVERIES: &str = "
CREATE TABLE webhook_deliveries (
    slug        TEXT NOT NULL,
    delivery_id TEXT NOT NULL,
    run_id      TEXT NOT NULL,
    at          INTEGER NOT NULL,
    status      TEXT,
    summary     TEXT,
    error       TEXT,
    fingerprint TEXT,
    PRIMARY KEY (slug, delivery_id)
) WITHOUT ROWID;
CREATE INDEX webhook_deliveries_by_run ON webhook_deliveries (run_id);
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (at);
";

/// Step 5: what lists of automations add up, without a look at the rows themselves, which are long. How runs ended, in
/// an index that a run enters once, at its end; `ended_at` stands in it because a query has to name it to be answered
/// from there. And what models counted: only their calls enter it.
const FIGURES: &str = "
CREATE INDEX runs_ended ON runs (automation_id, status, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX run_nodes_usage ON run_nodes (run_id, usage_json) WHERE usage_json IS NOT NULL;
";

/// Index + 1 is the `user_version` that a step leads to.
pub(super) const STEPS: &[&str] = &[CONTRACT, OWN, ARMED, DELIVERIES, FIGURES];

/// What this version writes.
pub(super) fn known_version() -> i64 {
    i64::try_from(STEPS.len()).expect("a handful of steps")
}

/// Opens, checks, migrates and sets up the writer's connection. The file is made when it is absent.
///
/// # Errors
/// `NewerVersion`, `Foreign` and `NotAFile` leave the file as it was. [`Fault::Corrupt`] asks for it to be moved aside.
pub(super) fn open_writer(path: &Path, check: bool) -> Result<Connection, LedgerError> {
    let path = real_path(path)?;
    require_regular(&path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut conn = Connection::open_with_flags(&path, flags)?;
    checkpoint::leave_log_on_close(&conn)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    keep_plans(&conn)?;
    let found = user_version(&conn)?;
    if found > known_version() {
        return Err(LedgerError::NewerVersion { path, found, known: known_version() });
    }
    if conn.is_readonly("main")? {
        let message = format!("{} is read-only", path.display());
        return Err(LedgerError::Unusable { fault: Fault::ReadOnly, message });
    }
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if found == 0 && tables > 0 {
        return Err(LedgerError::Foreign { path });
    }
    if tables == 0 {
        // The first page is written here, and synced with the change to the write-ahead log below. Without a journal
        // file that spares a new app five syncs; a crash meanwhile leaves an empty or torn file that held nothing.
        set(&conn, "journal_mode", "MEMORY")?;
        set(&conn, "synchronous", "OFF")?;
        // Only an empty file can take this; later it would need a full vacuum.
        set(&conn, "auto_vacuum", "INCREMENTAL")?;
        set(&conn, "synchronous", "FULL")?;
    } else if check {
        quick_check(&conn)?;
    }
    let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        let message = format!("{}: the file system does not allow a write-ahead log (mode {mode})", path.display());
        return Err(LedgerError::Unusable { fault: Fault::Other, message });
    }
    set(&conn, "synchronous", "NORMAL")?;
    set(&conn, "foreign_keys", "ON")?;
    set(&conn, "temp_store", "MEMORY")?;
    set(&conn, "cache_size", &format!("-{CACHE_KIB}"))?;
    set(&conn, "journal_size_limit", &WAL_KEEP_BYTES.to_string())?;
    // Checkpoints are the checkpoint thread's: inside a commit they would make one caller in a thousand wait.
    set(&conn, "wal_autocheckpoint", "0")?;
    conn.set_prepared_statement_cache_capacity(STATEMENT_CACHE);
    migrate(&mut conn, STEPS)?;
    Ok(conn)
}

/// A prepared statement is planned once, whatever is bound to it. Otherwise SQLite plans each one that has a bound
/// `LIMIT`, or a parameter that it compared with the condition of a partial index, anew at every use from the cache:
/// that takes longer than most of them run.
pub(super) fn keep_plans(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Takes the steps that the file has not taken yet.
pub(super) fn migrate(conn: &mut Connection, steps: &[&str]) -> Result<(), LedgerError> {
    let taken = usize::try_from(user_version(conn)?).unwrap_or(0);
    for (index, step) in steps.iter().enumerate().skip(taken) {
        let transaction = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute_batch(step)?;
        // Part of the same transaction: the version lies in the file's first page.
        transaction.execute_batch(&format!("PRAGMA user_version = {}", index + 1))?;
        transaction.commit()?;
    }
    Ok(())
}

pub(super) fn user_version(conn: &Connection) -> Result<i64, LedgerError> {
    Ok(conn.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

fn set(conn: &Connection, name: &str, value: &str) -> Result<(), LedgerError> {
    Ok(conn.execute_batch(&format!("PRAGMA {name} = {value}"))?)
}

fn quick_check(conn: &Connection) -> Result<(), LedgerError> {
    let pages: i64 = conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    if pages > QUICK_CHECK_PAGES {
        return Ok(());
    }
    let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(LedgerError::Unusable { fault: Fault::Corrupt, message: verdict }) }
}

/// The path with its folder resolved: an app folder may itself be a link, and SQLite is told to follow none.
pub(super) fn real_path(path: &Path) -> Result<PathBuf, LedgerError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = path.file_name().ok_or_else(|| LedgerError::NotAFile { path: path.to_owned(), found: "a folder" })?;
    match folder.canonicalize() {
        Ok(folder) => Ok(folder.join(file)),
        Err(error) => Err(LedgerError::io(&folder.display().to_string(), &error)),
    }
}

/// Refuses anything but regular files (or nothing) at the path and its two companions. By looking only: opening a
/// FIFO could block, and opening a database's file for a look would drop the locks that this process holds on it.
pub(super) fn require_regular(path: &Path) -> Result<(), LedgerError> {
    for path in [path.to_owned(), companion(path, "-wal"), companion(path, "-shm")] {
        match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(LedgerError::io(&path.display().to_string(), &error)),
            Ok(meta) if meta.is_file() => {}
            Ok(meta) => {
                let found = if meta.is_dir() {
                    "a folder"
                } else if meta.is_symlink() {
                    "a symbolic link"
                } else {
                    "a device or pipe"
                };
                return Err(LedgerError::NotAFile { path, found });
            }
        }
    }
    Ok(())
}

/// `<path>-wal`, `<path>-shm`.
pub(super) fn companion(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
