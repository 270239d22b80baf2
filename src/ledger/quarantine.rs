//! A damaged ledger is moved aside, never deleted: `runtime.sqlite.corrupt-<UTC time>` with its `-wal` and `-shm`
//! under the same name, so that `sqlite3 … .recover` finds all three.

use std::path::{Path, PathBuf};

use super::error::LedgerError;
use super::schema::companion;

/// Renames the three files and gives the new path of the database.
///
/// The log goes before the database: were it the other way round and the power failed in between, a fresh database
/// would be made beside the old log, and SQLite deletes a log that has no database.
pub(super) fn move_aside(path: &Path) -> Result<PathBuf, LedgerError> {
    let target = free_name(path);
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (companion(path, suffix), companion(&target, suffix));
        match std::fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(LedgerError::io(&format!("cannot move {} aside", from.display()), &error));
            }
        }
    }
    tracing::error!(from = %path.display(), to = %target.display(), "a corrupt ledger was moved aside");
    Ok(target)
}

fn free_name(path: &Path) -> PathBuf {
    // A name for people; nothing is decided by this reading of the clock.
    #[allow(clippy::disallowed_methods, reason = "part of a file name; nothing is decided by it")]
    let stamp = chrono::Utc::now().format("%Y%m%dT%H%M%SZ");
    let base = companion(path, &format!(".corrupt-{stamp}"));
    (1..)
        .map(|n| if n == 1 { base.clone() } else { companion(&base, &format!("-{n}")) })
        .find(|name| ["", "-wal", "-shm"].iter().all(|suffix| companion(name, suffix).symlink_metadata().is_err()))
        .unwrap_or(base)
}
