//! An app's `data.sqlite`, as a running query or action sees it.
//!
//! One [`DataDb`] is one *session*: one handler call, one thread, one connection. Calls are performed in the order in
//! which they were made. A *query's* session is opened read-only, an *action's* may write.
//!
//! The protocol, one JSON object per call: `{op, sql?, params?, tx?}`.
//! - `get` → the first row as an object, or `undefined`; `all` → a list of rows; `run` →
//!   `{changes, lastInsertRowid}`; `exec` → `undefined`, any number of statements.
//! - `begin`, `commit`, `rollback` with `tx`, a number that the caller chooses. One transaction may be open at a time:
//!   a second `begin` is refused. A call with `tx` belongs to that transaction and is refused when it is not the open
//!   one; a call without `tx` joins whatever is open. A `commit` that fails rolls back, so that what comes after it is
//!   not lost with it.
//! - Values: see [`values`].
//!
//! Invariants: handler code reaches this one file and nothing else of the disk (see [`connection`]); migrations have
//! run before the first call; a transaction that the handler left open is rolled back; dropping the session stops
//! whatever statement runs, within milliseconds. A mistake here lets generated SQL write where a query may only read,
//! reach other files, or hold a thread of the daemon for ever.
//!
//! Errors carry SQLite's code as text (`SQLITE_CONSTRAINT`, `SQLITE_READONLY`, …) or [`INVALID_CALL`]; those of
//! [`DataDb::open`] carry `HANDLER_ERROR`. No message holds a path of the host.

mod connection;
mod migrations;
mod values;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rusqlite::{CachedStatement, Connection};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use self::connection::Denials;
pub use self::migrations::Migrations;
use self::values::{Params, RowText};
use crate::fire::{CallError, CtxReply};
use crate::tools::HANDLER_ERROR;

/// The call itself is wrong: no such `op`, parameters that do not fit, a transaction that is not open.
pub const INVALID_CALL: &str = "db_invalid_call";

/// A session. Dropping it interrupts what runs and closes the connection; [`DataDb::finish`] does so in order.
pub struct DataDb {
    requests: mpsc::UnboundedSender<Request>,
    stop: StopOnDrop,
    closed: oneshot::Receiver<()>,
}

/// Tells the session's thread that nobody waits any longer: its progress and busy handlers read it.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Request {
    args_json: String,
    reply: oneshot::Sender<CtxReply>,
}

impl DataDb {
    /// Opens `data.sqlite` at `data_path`, creating it when it does not exist, and applies pending migrations.
    ///
    /// # Errors
    /// `HANDLER_ERROR`: the file cannot be opened, is no database, or a migration failed (with its file name).
    pub async fn open(data_path: PathBuf, migrations: Migrations, read_only: bool) -> Result<Self, CallError> {
        let stop = StopOnDrop(Arc::default());
        let (requests, inbox) = mpsc::unbounded_channel();
        let (opened, ready) = oneshot::channel();
        let (closing, closed) = oneshot::channel();
        let stopped = Arc::clone(&stop.0);
        let session = move || {
            match connection::open(&data_path, &migrations, read_only, &stopped) {
                Ok((connection, denials)) => {
                    if opened.send(Ok(())).is_ok() {
                        Session { connection, denials, read_only, open_tx: None }.serve(inbox, &stopped);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
            let _ = closing.send(());
        };
        thread::Builder::new()
            .name("data-db".to_owned())
            .spawn(session)
            .map_err(|error| CallError::new(HANDLER_ERROR, format!("no thread for data.sqlite: {error}")))?;
        match ready.await {
            Ok(outcome) => outcome.map(|()| Self { requests, stop, closed }),
            Err(_) => Err(CallError::new(HANDLER_ERROR, "data.sqlite could not be opened")),
        }
    }

    /// Performs one call. Its place in the order is taken when this is called, not when the reply is awaited; the
    /// future may be dropped, and the call is performed all the same.
    ///
    /// # Errors
    /// As the module says.
    pub fn call(&self, args_json: &str) -> impl Future<Output = CtxReply> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request { args_json: args_json.to_owned(), reply });
        async move {
            let ended = || CallError::new("SQLITE_INTERRUPT", "the database session has ended");
            sent.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        }
    }

    /// Ends the session. After a success the calls that were made and that nobody waited for are still performed; after
    /// a failure what runs is interrupted. A transaction left open is rolled back either way. The connection is closed
    /// when this returns.
    pub async fn finish(self, success: bool) {
        let Self { requests, stop, closed } = self;
        if !success {
            stop.0.store(true, Ordering::Relaxed);
        }
        drop(requests);
        // An error means that the thread is gone already.
        let _ = closed.await;
        drop(stop);
    }
}

/// What the session's thread owns.
struct Session {
    connection: Connection,
    denials: Denials,
    read_only: bool,
    open_tx: Option<u64>,
}

#[derive(Deserialize)]
struct Call {
    op: String,
    #[serde(default)]
    sql: Option<String>,
    #[serde(default)]
    params: Params,
    #[serde(default)]
    tx: Option<u64>,
}

/// One row, or all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rows {
    First,
    All,
}

impl Session {
    fn serve(mut self, mut inbox: mpsc::UnboundedReceiver<Request>, stopped: &AtomicBool) {
        while let Some(Request { args_json, reply }) = inbox.blocking_recv() {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            // The handler may have given up on this call; it was made, so it is performed.
            let _ = reply.send(self.perform(&args_json));
        }
        if !self.connection.is_autocommit() {
            // Closing rolls back as well; done here so that a failure is seen.
            connection::without_limits(&mut self.connection);
            if let Err(error) = self.connection.execute_batch("ROLLBACK") {
                tracing::warn!(%error, "a transaction left open by a handler could not be rolled back in order");
            }
        }
    }

    fn perform(&mut self, args_json: &str) -> CtxReply {
        let call: Call = serde_json::from_str(args_json)
            .map_err(|error| CallError::new(INVALID_CALL, format!("malformed database call: {error}")))?;
        match call.op.as_str() {
            "begin" => return self.begin(call.tx).map(|()| None),
            "commit" | "rollback" => return self.end(&call.op, call.tx).map(|()| None),
            _ => {}
        }
        if let Some(tx) = call.tx
            && self.open_tx != Some(tx)
        {
            return Err(CallError::new(INVALID_CALL, "the transaction of this call has ended"));
        }
        let Some(sql) = call.sql.as_deref() else {
            return Err(CallError::new(INVALID_CALL, format!("`sql` of {:?} must be a text", call.op)));
        };
        self.denials.clear();
        let outcome = match call.op.as_str() {
            "get" => self.rows(sql, &call.params, Rows::First),
            "all" => self.rows(sql, &call.params, Rows::All),
            "run" => self.run(sql, &call.params),
            "exec" => self.exec(sql),
            op => Err(Failure::Call(CallError::new(
                INVALID_CALL,
                format!("no database operation {:?}", crate::core::shortened::shortened(op, 50)),
            ))),
        };
        if self.connection.is_autocommit() {
            // A failed statement may have rolled the whole transaction back, and so may SQL given to `exec`.
            self.open_tx = None;
        }
        outcome.map_err(|failure| match failure {
            Failure::Call(error) => error,
            Failure::Sqlite(error) => self.explained(&error),
        })
    }

    fn begin(&mut self, tx: Option<u64>) -> Result<(), CallError> {
        let Some(tx) = tx else {
            return Err(CallError::new(INVALID_CALL, "`begin` needs `tx`"));
        };
        if self.open_tx.is_some() || !self.connection.is_autocommit() {
            return Err(CallError::new(
                INVALID_CALL,
                "a transaction is open already; transactions do not nest, so await one before the next begins",
            ));
        }
        // A writer takes its lock at once: upgrading later fails at once when another session has written meanwhile.
        let sql = if self.read_only { "BEGIN" } else { "BEGIN IMMEDIATE" };
        self.connection.execute_batch(sql).map_err(|error| self.explained(&error))?;
        self.open_tx = Some(tx);
        Ok(())
    }

    fn end(&mut self, op: &str, tx: Option<u64>) -> Result<(), CallError> {
        if tx.is_none() || self.open_tx != tx {
            return Err(CallError::new(INVALID_CALL, format!("`{op}`: that transaction is not open")));
        }
        let outcome = self.connection.execute_batch(if op == "commit" { "COMMIT" } else { "ROLLBACK" });
        if outcome.is_err() && op == "commit" && !self.connection.is_autocommit() {
            // A deferred constraint. The handler is told of the commit's own error, and cannot try again.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        if self.connection.is_autocommit() {
            self.open_tx = None;
        }
        outcome.map_err(|error| self.explained(&error))
    }

    fn rows(&self, sql: &str, params: &Params, wanted: Rows) -> Result<Option<String>, Failure> {
        let mut statement = self.prepared(sql)?;
        params.bind(&mut statement)?;
        let columns: Vec<String> = statement.column_names().map(ToOwned::to_owned).collect();
        let mut text = RowText::new(&columns);
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            // A statement that writes and gives no columns still has to be stepped to its end.
            if columns.is_empty() {
                continue;
            }
            text.push(row)?;
            if wanted == Rows::First {
                return Ok(Some(text.into_row()));
            }
        }
        Ok((wanted == Rows::All).then(|| text.into_list()))
    }

    fn run(&self, sql: &str, params: &Params) -> Result<Option<String>, Failure> {
        let before = self.connection.total_changes();
        let mut statement = self.prepared(sql)?;
        params.bind(&mut statement)?;
        let mut rows = statement.raw_query();
        while rows.next()?.is_some() {}
        drop(rows);
        // SQLite's own count is that of the last statement which changed rows; this one may not have been such.
        let changes = if self.connection.total_changes() == before { 0 } else { self.connection.changes() };
        let rowid = values::rowid(self.connection.last_insert_rowid());
        Ok(Some(serde_json::json!({ "changes": changes, "lastInsertRowid": rowid }).to_string()))
    }

    fn exec(&self, sql: &str) -> Result<Option<String>, Failure> {
        self.connection.execute_batch(sql)?;
        Ok(None)
    }

    /// One statement, remembered so that a loop of inserts compiles it once.
    fn prepared(&self, sql: &str) -> Result<CachedStatement<'_>, Failure> {
        match self.connection.prepare_cached(sql) {
            Ok(statement) => Ok(statement),
            Err(rusqlite::Error::MultipleStatement) => Err(Failure::Call(CallError::new(
                INVALID_CALL,
                "`prepare` takes one statement; use `exec` for several",
            ))),
            Err(error) => Err(Failure::Sqlite(error)),
        }
    }

    fn explained(&self, error: &rusqlite::Error) -> CallError {
        let described = connection::described(error);
        match described.code.as_str() {
            "SQLITE_AUTH" => match self.denials.last() {
                Some(denial) => CallError::new("SQLITE_AUTH", denial),
                None => described,
            },
            "SQLITE_READONLY" if self.read_only => CallError::new(
                "SQLITE_READONLY",
                "a query may only read data.sqlite; write in an action (attempt to write a readonly database)",
            ),
            _ => described,
        }
    }
}

/// Why a call failed, before it is put in words.
enum Failure {
    Call(CallError),
    Sqlite(rusqlite::Error),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Failure::Call(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Sqlite(error)
    }
}

#[cfg(test)]
mod tests;
