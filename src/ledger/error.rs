//! What can go wrong with a ledger. One error may answer a whole group of callers, so every variant is plain data
//! that can be cloned. Messages are for people; [`LedgerError::is_unwritable`] is what "503" and "stop this app" ask.

use std::path::PathBuf;

use crate::fire::RunId;

/// Why the file could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The disk, or a quota, is full.
    Full,
    /// The file or its folder cannot be written.
    ReadOnly,
    /// The content is no SQLite database, or a damaged one.
    Corrupt,
    /// Another client held the write lock for longer than the busy timeout.
    Busy,
    /// The system refused a read, a write or a sync.
    Io,
    /// The file or its folder is missing or cannot be opened.
    CannotOpen,
    /// Anything else that SQLite reports.
    Other,
}

/// Which of the two limits on `ctx.state` was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateScope {
    Key,
    Automation,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Promise 6: nothing was changed in the file.
    #[error(
        "{}: this ledger was written by a newer version (its schema is {found}, this one knows up to {known})",
        path.display()
    )]
    NewerVersion { path: PathBuf, found: i64, known: i64 },
    /// A database that has a `runs` table of another program. It is left alone.
    #[error("{}: another program's database, not a ledger; move it away to let a new one be made", path.display())]
    Foreign { path: PathBuf },
    /// What stands at the path (or at its `-wal` or `-shm`) is no regular file; it was neither opened nor followed.
    #[error("{}: a ledger must be a regular file, this is {found}", path.display())]
    NotAFile { path: PathBuf, found: &'static str },
    #[error("the ledger cannot be used: {message}")]
    Unusable { fault: Fault, message: String },
    /// A change of a row that no correct caller asks for. The row was not touched.
    #[error("illegal ledger transition: {what}")]
    IllegalTransition { what: String },
    /// The run has ended, so nothing more is written to it.
    #[error("run {run_id} has ended")]
    RunEnded { run_id: RunId },
    #[error("no run {run_id}")]
    NoSuchRun { run_id: RunId },
    #[error("state {}: {bytes} bytes, at most {limit} are kept", match scope {
        StateScope::Key => "of one key",
        StateScope::Automation => "of one automation",
    })]
    StateLimit { scope: StateScope, bytes: u64, limit: u64 },
    /// A row that this version cannot read, such as one that was edited by hand.
    #[error("unreadable row: {what}")]
    BadRow { what: String },
    /// The writer thread ended before it answered. Nothing is known of the outcome.
    #[error("the ledger's writer stopped before it answered")]
    WriterGone,
}

impl LedgerError {
    /// True when the file itself is the obstacle: nothing can be recorded, so nothing of this app may run.
    pub fn is_unwritable(&self) -> bool {
        matches!(
            self,
            Self::NewerVersion { .. }
                | Self::Foreign { .. }
                | Self::NotAFile { .. }
                | Self::Unusable { .. }
                | Self::WriterGone
        )
    }

    /// True when the handler asked for more than `ctx.state` may hold.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::StateLimit { .. })
    }

    pub(super) fn is_corrupt(&self) -> bool {
        matches!(self, Self::Unusable { fault: Fault::Corrupt, .. })
    }

    pub(super) fn illegal(what: impl Into<String>) -> Self {
        let what = what.into();
        tracing::error!(%what, "illegal ledger transition");
        Self::IllegalTransition { what }
    }

    pub(super) fn io(context: &str, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let fault = match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Fault::Full,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Fault::ReadOnly,
            ErrorKind::NotFound => Fault::CannotOpen,
            _ => Fault::Io,
        };
        Self::Unusable { fault, message: format!("{context}: {error}") }
    }
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let fault = match error.sqlite_error_code() {
            Some(Code::DiskFull) => Fault::Full,
            Some(Code::ReadOnly | Code::PermissionDenied) => Fault::ReadOnly,
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => Fault::Corrupt,
            Some(Code::DatabaseBusy | Code::DatabaseLocked) => Fault::Busy,
            Some(Code::SystemIoFailure) => Fault::Io,
            Some(Code::CannotOpen) => Fault::CannotOpen,
            _ => Fault::Other,
        };
        Self::Unusable { fault, message: error.to_string() }
    }
}
