//! Copies write-ahead logs back into their databases, on one thread for all ledgers.
//!
//! A checkpoint syncs twice and may take many milliseconds. Inside a commit (SQLite's default) it would be one caller
//! in a few hundred who waits for it. From a connection of its own it runs beside the writer, who at its next commit
//! finds the log copied and starts it over.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::LedgerError;

/// Frames not yet copied that make a checkpoint worth its syncs (4 MiB at the usual page size; SQLite's default too).
const WORTHWHILE_FRAMES: i64 = 1_000;

/// A log is only started over when all of it is copied, and beside a writer that never pauses the copying thread comes
/// close to the end but not to it. From this length on (16 MiB) the writer copies the little that is left …
const LONG_LOG_FRAMES: i64 = 4_000;

/// … when it is this little …
const LITTLE_LEFT_FRAMES: i64 = 500;

/// … and at this length (64 MiB) however much it is.
const LONGEST_LOG_FRAMES: i64 = 16_000;

/// How often a writer looks at the length of its log.
pub(super) const COMMITS_PER_LOOK: u32 = 32;

/// What a look at the log calls for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    Nothing,
    /// Ask the thread.
    CopyBeside,
    /// The writer itself has to.
    CopyNow,
}

/// Looks at the log without changing anything.
pub(super) fn look(conn: &Connection) -> Result<Advice, LedgerError> {
    let (frames, copied) = conn
        .prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
        .query_row([], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)))?;
    Ok(advice(frames, frames - copied))
}

fn advice(frames: i64, left: i64) -> Advice {
    if left > 0 && (frames >= LONGEST_LOG_FRAMES || (frames >= LONG_LOG_FRAMES && left <= LITTLE_LEFT_FRAMES)) {
        Advice::CopyNow
    } else if left >= WORTHWHILE_FRAMES {
        Advice::CopyBeside
    } else {
        Advice::Nothing
    }
}

/// Copies what can be copied without waiting for anybody.
pub(super) fn copy(conn: &Connection) -> Result<(), LedgerError> {
    Ok(conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
}

/// Leaves the log as it is when the connection closes, rather than copy and delete it (SQLite's default). That makes
/// closing quick, and a file that is damaged, or no longer at its path, is not touched by it.
pub(super) fn leave_log_on_close(conn: &Connection) -> Result<(), LedgerError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

/// Copies the log and deletes it, when no other client has the file open.
pub(super) fn close_tidily(conn: Connection) -> Result<(), LedgerError> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error.into())
}

/// The thread, started when it is first needed. It ends with the last handle.
#[derive(Default)]
pub(super) struct Checkpointer {
    requests: Mutex<Option<mpsc::Sender<Request>>>,
}

struct Request {
    path: PathBuf,
    pending: Arc<AtomicBool>,
}

impl Checkpointer {
    /// Asks for a checkpoint; `pending` is true until it is done, and a request made meanwhile is none.
    pub(super) fn request(&self, path: &Path, pending: &Arc<AtomicBool>) {
        if pending.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let request = Request { path: path.to_owned(), pending: Arc::clone(pending) };
        let sent = match &*requests {
            Some(sender) => sender.send(request).is_ok(),
            None => {
                let (sender, receiver) = mpsc::channel();
                let thread = std::thread::Builder::new().name("ledger-copy".into()).spawn(move || serve(&receiver));
                let sent = thread.is_ok() && sender.send(request).is_ok();
                *requests = thread.is_ok().then_some(sender);
                sent
            }
        };
        if !sent {
            // The writer copies by itself once the log is long.
            pending.store(false, Ordering::Release);
        }
    }
}

fn serve(requests: &mpsc::Receiver<Request>) {
    for request in requests {
        if let Err(error) = copy_file(&request.path) {
            tracing::debug!(path = %request.path.display(), %error, "no checkpoint");
        }
        request.pending.store(false, Ordering::Release);
    }
}

fn copy_file(path: &Path) -> Result<(), LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let conn = Connection::open_with_flags(path, flags)?;
    leave_log_on_close(&conn)?;
    copy(&conn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_copies_only_what_is_little_or_overdue() {
        for (frames, left, expected) in [
            (0, 0, Advice::Nothing),
            (999, 999, Advice::Nothing),
            (1_000, 1_000, Advice::CopyBeside),
            (3_999, 400, Advice::Nothing),
            (4_000, 400, Advice::CopyNow),
            (4_000, 501, Advice::Nothing),
            (4_000, 1_500, Advice::CopyBeside),
            (4_000, 0, Advice::Nothing),
            (16_000, 9_000, Advice::CopyNow),
            (20_000, 0, Advice::Nothing),
        ] {
            assert_eq!(advice(frames, left), expected, "{frames} frames, {left} left");
        }
    }
}
