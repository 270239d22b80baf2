//! Applying an app's `migrations/*.sql` to its `data.sqlite`: in name order, once each, each in a transaction of its
//! own, before the first use.
//!
//! What was applied is a row of [`TABLE`]. Another host of the format counts instead: it names its files
//! `NNNN_<slug>.sql`, numbered from 0001 without gaps, and keeps the highest applied number in `PRAGMA user_version`.
//! Both are kept true: a numbered file that the count covers, and which is above everything recorded here, counts as
//! applied and is recorded; and after a numbered file is applied here, the count is raised to its number.
//!
//! Invariants: a file is applied and recorded in one transaction, or not at all; sessions that start at the same time
//! take turns, so that none applies what another has. A mistake here loses or repeats a change to a user's data.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use sha2::{Digest, Sha256};

use super::connection::{self, Author, Denials};
use crate::tools::AppFiles;

/// The table of applied migrations.
pub const TABLE: &str = "_dirigent_migrations";
/// One file; a migration that carries more than this is an import, not a migration.
const MAX_FILE_BYTES: usize = 4 * 1024 * 1024;

/// An app's migration files. They are listed at every open, and read only when they are to be applied.
#[derive(Clone)]
pub struct Migrations {
    files: Arc<dyn AppFiles>,
    app_dir: PathBuf,
}

impl Migrations {
    /// Those in the `migrations` folder of an app's code folder.
    pub fn of_app(files: Arc<dyn AppFiles>, app_dir: PathBuf) -> Self {
        Self { files, app_dir }
    }

    /// File names in the order of their application.
    fn names(&self) -> Result<Vec<String>, String> {
        let listed = self.files.list(&self.app_dir, Path::new("migrations"));
        let mut names = listed.map_err(|problem| format!("the migrations cannot be listed: {}", problem.message))?;
        names.retain(|name| name.ends_with(".sql") && !name.starts_with(['.', '_']));
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str) -> Result<String, String> {
        let failed = |why: &str| format!("migration {name} failed: {why}");
        let file = Path::new("migrations").join(name);
        match self.files.read(&self.app_dir, &file, MAX_FILE_BYTES) {
            Ok(Some(bytes)) => String::from_utf8(bytes).map_err(|_| failed("it is no UTF-8 text")),
            Ok(None) => Err(failed("the file is gone")),
            Err(problem) => Err(failed(&problem.message)),
        }
    }
}

/// The names that are neither recorded nor covered by the count. Reads only.
pub fn pending(connection: &Connection, migrations: &Migrations) -> Result<Vec<String>, String> {
    let mut names = migrations.names()?;
    if names.is_empty() {
        return Ok(names);
    }
    let recorded = recorded(connection).map_err(|error| bookkeeping(&error))?;
    names.retain(|name| !recorded.contains(name));
    Ok(names)
}

/// Applies what is pending.
pub fn apply(connection: &mut Connection, migrations: &Migrations, denials: &Denials) -> Result<(), String> {
    if pending(connection, migrations)?.is_empty() {
        return Ok(());
    }
    take_over(connection, migrations)?;
    for name in pending(connection, migrations)? {
        let sql = migrations.read(&name)?;
        apply_one(connection, &name, &sql, denials)?;
    }
    Ok(())
}

/// Creates the table, and records what another host's count covers.
fn take_over(connection: &mut Connection, migrations: &Migrations) -> Result<(), String> {
    let names = migrations.names()?;
    let work = |connection: &mut Connection| -> rusqlite::Result<Vec<String>> {
        let transaction = begin(connection)?;
        transaction.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {TABLE} (name TEXT PRIMARY KEY, sha256 TEXT, applied_at INTEGER NOT NULL)"
        ))?;
        let recorded = recorded(&transaction)?;
        let count = user_version(&transaction)?;
        let above = recorded.iter().filter_map(|name| number(name)).max().unwrap_or(0);
        let covered = |name: &&String| number(name).is_some_and(|number| above < number && number <= count);
        let taken: Vec<String> = names.iter().filter(covered).cloned().collect();
        for name in &taken {
            // No hash: what was applied elsewhere may have been an earlier text of this file.
            record(&transaction, name, None)?;
        }
        transaction.commit()?;
        Ok(taken)
    };
    let taken = work(connection).map_err(|error| bookkeeping(&error))?;
    if !taken.is_empty() {
        tracing::info!(files = ?taken, "migrations that another host had applied are recorded as such");
    }
    Ok(())
}

fn apply_one(connection: &mut Connection, name: &str, sql: &str, denials: &Denials) -> Result<(), String> {
    let recorded_now = |connection: &Connection| recorded(connection).map(|recorded| recorded.contains(name));
    connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| bookkeeping(&error))?;
    let outcome = (|| {
        // Another session may have been faster while this one waited for the lock.
        if recorded_now(connection).map_err(|error| bookkeeping(&error))? {
            return Ok(());
        }
        let count = user_version(connection).map_err(|error| bookkeeping(&error))?;
        denials.clear();
        connection::authorize(connection, Some(Author::Migration), denials).map_err(|error| bookkeeping(&error))?;
        let ran = connection.execute_batch(sql);
        connection::authorize(connection, None, denials).map_err(|error| bookkeeping(&error))?;
        ran.map_err(|error| {
            let why = denials.last().unwrap_or_else(|| connection::described(&error).message);
            format!("migration {name} failed: {why}")
        })?;
        let count = number(name).map_or(count, |number| number.max(count));
        record(connection, name, Some(sql))
            .and_then(|()| connection.pragma_update(None, "user_version", count))
            .map_err(|error| bookkeeping(&error))
    })();
    let ended = match outcome {
        Ok(()) => connection.execute_batch("COMMIT").map_err(|error| {
            // A deferred foreign key that does not hold shows only now.
            format!("migration {name} failed: {}", connection::described(&error).message)
        }),
        Err(error) => Err(error),
    };
    if ended.is_err() && !connection.is_autocommit() {
        connection::without_limits(connection);
        // The connection is about to be closed, which rolls back whatever this could not.
        let _ = connection.execute_batch("ROLLBACK");
    }
    ended
}

fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

fn recorded(connection: &Connection) -> rusqlite::Result<HashSet<String>> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    if connection.query_row(sql, [TABLE], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(HashSet::new());
    }
    let mut statement = connection.prepare(&format!("SELECT name FROM {TABLE}"))?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

fn record(connection: &Connection, name: &str, sql: Option<&str>) -> rusqlite::Result<()> {
    let sha256 = sql.map(|sql| hex::encode(Sha256::digest(sql)));
    let insert = format!(
        "INSERT INTO {TABLE} (name, sha256, applied_at) VALUES (?1, ?2, CAST(unixepoch('subsec') * 1000 AS INTEGER))"
    );
    connection.execute(&insert, rusqlite::params![name, sha256]).map(|_| ())
}

fn user_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// The number of `NNNN_<slug>.sql`.
fn number(name: &str) -> Option<i64> {
    let (digits, _) = name.split_once('_')?;
    (digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn bookkeeping(error: &rusqlite::Error) -> String {
    let error = connection::described(error);
    format!("the applied migrations cannot be kept in data.sqlite: {} ({})", error.message, error.code)
}
