//! Opening `data.sqlite`, and what SQL from a handler or a migration may do with it.
//!
//! SQLite asks an *authorizer* about everything that a statement would do, before it runs. Refused are: other files
//! (`ATTACH`, `VACUUM`, extensions), pragmas that are not known to be harmless, and writes to the table of applied
//! migrations. Limits bound single values; a progress handler and a busy handler watch the session's stop flag, so
//! that neither a runaway statement nor a wait for a lock outlives its handler.
//!
//! The file itself is opened without following a link below the data folder, and must be a regular file.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization, TransactionOperation};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::migrations::{self, Migrations};
use crate::fire::CallError;
use crate::tools::HANDLER_ERROR;

/// How long a statement waits for another session's write lock.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Another session may be applying migrations, which takes longer than a handler's statement.
const MIGRATION_BUSY_WAIT: Duration = Duration::from_secs(30);
/// Virtual machine steps between looks at the stop flag: well under a millisecond.
const STEPS_PER_LOOK: i32 = 4096;
/// One value or row. Larger than a result may be, so that rows of large blobs can still be counted and deleted; far
/// below what would hurt the daemon.
const MAX_VALUE_BYTES: i32 = 64 * 1024 * 1024;
/// Matching takes time in proportion to pattern and text, in one step that no handler interrupts.
const MAX_LIKE_PATTERN_BYTES: i32 = 4096;

/// Pragmas that only tell something, in every form.
const TELLING_PRAGMAS: &[&str] = &[
    "collation_list",
    "compile_options",
    "data_version",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "module_list",
    "page_count",
    "pragma_list",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
];
/// Pragmas that may be read, but not set.
const READABLE_PRAGMAS: &[&str] = &[
    "application_id",
    "auto_vacuum",
    "encoding",
    "journal_mode",
    "page_size",
    "query_only",
    "schema_version",
    "user_version",
];
/// Pragmas that may be set: they last as long as the connection and concern it alone.
const SETTABLE_PRAGMAS: &[&str] = &[
    "case_sensitive_like",
    "defer_foreign_keys",
    "foreign_keys",
    "optimize",
    "recursive_triggers",
    "reverse_unordered_selects",
];

/// Why the authorizer last said no; SQLite itself only says "not authorized".
#[derive(Clone, Default)]
pub struct Denials(Arc<Mutex<Option<String>>>);

impl Denials {
    pub fn clear(&self) {
        *self.lock() = None;
    }

    pub fn last(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose SQL is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    Handler,
    /// Its transaction belongs to the runner: it may not begin or end one.
    Migration,
}

/// Opens the file for a session, with everything pending applied.
pub fn open(
    path: &Path,
    migrations: &Migrations,
    read_only: bool,
    stopped: &Arc<AtomicBool>,
) -> Result<(Connection, Denials), CallError> {
    let failed = |message: String| CallError::new(HANDLER_ERROR, message);
    let denials = Denials::default();
    let path = resolved(path).map_err(failed)?;
    let prepared = if read_only && path.exists() {
        let connection = connect(&path, true, stopped).map_err(|error| failed(opening(&error)))?;
        let pending = migrations::pending(&connection, migrations).map_err(failed)?;
        pending.is_empty().then_some(connection)
    } else {
        None
    };
    let mut connection = match prepared {
        Some(connection) => connection,
        None => {
            let mut writer = connect(&path, false, stopped).map_err(|error| failed(opening(&error)))?;
            wait_for_locks(&mut writer, MIGRATION_BUSY_WAIT, stopped).map_err(|error| failed(opening(&error)))?;
            migrations::apply(&mut writer, migrations, &denials).map_err(failed)?;
            if read_only {
                // Kept until the reader is open, so that the reader finds the write-ahead log in place.
                connect(&path, true, stopped).map_err(|error| failed(opening(&error)))?
            } else {
                writer
            }
        }
    };
    let ready = wait_for_locks(&mut connection, BUSY_WAIT, stopped)
        .and_then(|()| authorize(&mut connection, Some(Author::Handler), &denials));
    ready.map_err(|error| failed(opening(&error)))?;
    Ok((connection, denials))
}

/// The path with its folder resolved and created; its last part is never a link, as SQLite is told not to follow one.
fn resolved(path: &Path) -> Result<std::path::PathBuf, String> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err("data.sqlite has no folder".to_owned());
    };
    let folder = fs::create_dir_all(folder)
        .and_then(|()| folder.canonicalize())
        .map_err(|error| format!("the folder of data.sqlite cannot be used: {}", error.kind()))?;
    let path = folder.join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.is_file() => Err("data.sqlite is not a regular file".to_owned()),
        Ok(_) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path),
        Err(error) => Err(format!("data.sqlite cannot be read: {}", error.kind())),
    }
}

fn connect(path: &Path, read_only: bool, stopped: &Arc<AtomicBool>) -> rusqlite::Result<Connection> {
    let access = if read_only {
        OpenFlags::SQLITE_OPEN_READ_ONLY
    } else {
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE
    };
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(path, flags)?;
    wait_for_locks(&mut connection, BUSY_WAIT, stopped)?;
    let looks = Arc::clone(stopped);
    connection.progress_handler(STEPS_PER_LOOK, Some(move || looks.load(Ordering::Relaxed)))?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_LIKE_PATTERN_BYTES)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    if read_only {
        connection.pragma_update(None, "query_only", true)?;
        // Opening reads nothing yet; what is no database is to be noticed now.
        connection.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
    } else {
        // Readers and the writer then do not wait for each other; NORMAL loses no commit when only the process dies.
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
    }
    Ok(connection)
}

/// Waits for a lock in short naps, so that a session that is over stops waiting.
fn wait_for_locks(connection: &mut Connection, at_most: Duration, stopped: &Arc<AtomicBool>) -> rusqlite::Result<()> {
    let stopped = Arc::clone(stopped);
    let mut since = Instant::now();
    connection.busy_handler(Some(move |tries: i32| {
        if tries == 0 {
            since = Instant::now();
        }
        if stopped.load(Ordering::Relaxed) || since.elapsed() >= at_most {
            return false;
        }
        thread::sleep(Duration::from_millis(if tries < 10 { 1 } else { 10 }));
        true
    }))
}

/// Lifts the watch from a session that is over, so that its rollback is not interrupted.
pub fn without_limits(connection: &mut Connection) {
    // Failing to remove a handler leaves the rollback to the closing of the connection.
    let _ = connection.progress_handler(0, None::<fn() -> bool>);
    let _ = connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>);
}

/// Sets whose SQL runs next; `None` is this program's own.
pub fn authorize(connection: &mut Connection, author: Option<Author>, denials: &Denials) -> rusqlite::Result<()> {
    let Some(author) = author else {
        return connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>);
    };
    let denials = denials.clone();
    connection.authorizer(Some(move |context: AuthContext<'_>| match refusal(author, &context.action) {
        None => Authorization::Allow,
        Some(reason) => {
            *denials.lock() = Some(reason);
            Authorization::Deny
        }
    }))
}

fn refusal(author: Author, action: &AuthAction<'_>) -> Option<String> {
    match *action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
            Some("other database files are out of reach: no ATTACH, DETACH or VACUUM".to_owned())
        }
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            Some("extensions cannot be loaded".to_owned())
        }
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let is_in = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(pragma_name));
            let allowed = is_in(TELLING_PRAGMAS)
                || is_in(SETTABLE_PRAGMAS)
                || (pragma_value.is_none() && is_in(READABLE_PRAGMAS))
                // Some existing migrations number themselves; what is recorded is decided by the runner.
                || (author == Author::Migration && pragma_name.eq_ignore_ascii_case("user_version"));
            (!allowed).then(|| format!("PRAGMA {pragma_name} is not allowed here"))
        }
        AuthAction::Transaction { operation } if author == Author::Migration => {
            let operation = match operation {
                TransactionOperation::Begin => "BEGIN",
                TransactionOperation::Rollback => "ROLLBACK",
                _ => "COMMIT",
            };
            Some(format!("a migration runs in its own transaction; remove {operation}"))
        }
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::CreateTable { table_name }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::CreateTempTrigger { table_name, .. }
            if table_name.eq_ignore_ascii_case(migrations::TABLE) =>
        {
            Some(format!("the table {} is not the app's own", migrations::TABLE))
        }
        AuthAction::Unknown { code, .. } => Some(format!("an unknown kind of statement ({code})")),
        _ => None,
    }
}

/// An error of SQLite with its code as text. Messages of SQLite name SQL and tables, never files; rusqlite adds the
/// file's path when opening fails, which is left out here.
pub fn described(error: &rusqlite::Error) -> CallError {
    let (code, message) = match error {
        rusqlite::Error::SqliteFailure(failure, message) => {
            let fallback = || rusqlite::ffi::code_to_str(failure.extended_code).to_owned();
            let message = match failure.code {
                ErrorCode::CannotOpen => "unable to open database file".to_owned(),
                _ => message.clone().unwrap_or_else(fallback),
            };
            (code_name(failure.extended_code), message)
        }
        rusqlite::Error::SqlInputError { error, msg, .. } => (code_name(error.extended_code), msg.clone()),
        other => ("SQLITE_ERROR", other.to_string()),
    };
    CallError::new(code, message)
}

fn opening(error: &rusqlite::Error) -> String {
    let error = described(error);
    format!("data.sqlite cannot be opened: {} ({})", error.message, error.code)
}

/// The primary code's name.
fn code_name(extended_code: i32) -> &'static str {
    match extended_code & 0xff {
        2 => "SQLITE_INTERNAL",
        3 => "SQLITE_PERM",
        4 => "SQLITE_ABORT",
        5 => "SQLITE_BUSY",
        6 => "SQLITE_LOCKED",
        7 => "SQLITE_NOMEM",
        8 => "SQLITE_READONLY",
        9 => "SQLITE_INTERRUPT",
        10 => "SQLITE_IOERR",
        11 => "SQLITE_CORRUPT",
        13 => "SQLITE_FULL",
        14 => "SQLITE_CANTOPEN",
        17 => "SQLITE_SCHEMA",
        18 => "SQLITE_TOOBIG",
        19 => "SQLITE_CONSTRAINT",
        20 => "SQLITE_MISMATCH",
        21 => "SQLITE_MISUSE",
        23 => "SQLITE_AUTH",
        25 => "SQLITE_RANGE",
        26 => "SQLITE_NOTADB",
        _ => "SQLITE_ERROR",
    }
}
