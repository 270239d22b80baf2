//! Whether an app's ledger can be written, told before anybody needs it, and in words that may leave the machine.
//!
//! Two sources: [`Health`] keeps what last stood in the way of each writer, and [`check_writable`] looks at the files
//! without touching them, for a ledger that no writer has open. [`problem`] puts either into words: the reason and the
//! remedy, and no path but the app's own.
//!
//! What a mistake here costs: an app whose runs are not recorded, and so not run, that looks well.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fire::{AppId, Problem};

use super::error::{Fault, LedgerError};
use super::ops::{Job, Op, Reply};
use super::schema;

/// What last kept each ledger from being written; gone with the next write that succeeds.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// False as long as nothing was ever in the way: then a commit costs one relaxed load here.
    any: AtomicBool,
    obstacles: Mutex<HashMap<AppId, LedgerError>>,
}

impl Health {
    /// Takes in how a group of requests ended. To be called before they are answered, so that whoever is refused finds
    /// the reason here.
    pub(super) fn note(&self, app: &AppId, group: &[Job], results: &[Result<Reply, LedgerError>]) {
        let obstacle = results.iter().filter_map(|result| result.as_ref().err()).find(|error| error.is_unwritable());
        if let Some(obstacle) = obstacle {
            self.any.store(true, Ordering::Relaxed);
            self.lock().insert(app.clone(), obstacle.clone());
            return;
        }
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let done = || group.iter().zip(results).filter(|(_, result)| result.is_ok());
        let wrote = done().any(|(job, _)| !matches!(job.op, Op::StateGet { .. } | Op::Recover | Op::Sweep { .. }));
        let used = done().next().is_some();
        let mut obstacles = self.lock();
        // A ledger on a full disk can be read all the same.
        if wrote || (used && !obstacles.get(app).is_some_and(LedgerError::only_a_write_meets)) {
            obstacles.remove(app);
        }
    }

    pub(super) fn obstacle(&self, app: &AppId) -> Option<LedgerError> {
        self.lock().get(app).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AppId, LedgerError>> {
        self.obstacles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerError {
    /// True for what neither opening the file nor looking at it shows.
    fn only_a_write_meets(&self) -> bool {
        matches!(self, Self::Unusable { fault: Fault::Full | Fault::Io, .. })
    }

    /// Whether what a writer met may still be so, now that [`check_writable`] has nothing to say: without a file, the
    /// next write starts with a new one.
    pub fn may_still_stand(&self, ledger: &Path) -> bool {
        self.only_a_write_meets() || ledger.symlink_metadata().is_ok()
    }
}

/// Looks whether a ledger at `path` could be written by this user: what stands there, and the rights on the file, its
/// companions and its folder. Opens nothing and changes nothing; what is in the file is [`Reader`](super::Reader)'s to
/// say.
///
/// # Errors
/// `NotAFile`, `Unusable`.
pub fn check_writable(path: &Path) -> Result<(), LedgerError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if folder.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        // The folders for ledgers apart from the code are made with the first run.
        let there = folder.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap_or(folder);
        return may_write(there).map_err(|error| LedgerError::io("its folder cannot be made", &error));
    }
    let path = schema::real_path(path)?;
    schema::require_regular(&path)?;
    let told = |path: &Path| {
        let path = path.display().to_string();
        move |error| LedgerError::io(&path, &error)
    };
    let mut to_be_made = false;
    for file in [path.clone(), schema::companion(&path, "-wal"), schema::companion(&path, "-shm")] {
        match may_write(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => to_be_made = true,
            other => other.map_err(told(&file))?,
        }
    }
    let folder = path.parent().filter(|_| to_be_made);
    folder.map_or(Ok(()), |folder| may_write(folder).map_err(told(folder)))
}

#[cfg(unix)]
fn may_write(path: &Path) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let enter = if path.metadata()?.is_dir() { libc::X_OK } else { 0 };
    let text = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `text` is a string that ends with its zero byte and lives through the call, which only reads it.
    let denied = unsafe { libc::faccessat(libc::AT_FDCWD, text.as_ptr(), libc::W_OK | enter, libc::AT_EACCESS) };
    if denied == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(not(unix))]
fn may_write(path: &Path) -> std::io::Result<()> {
    let meta = path.metadata()?;
    // On a folder the mark has another meaning there.
    let denied = meta.is_file() && meta.permissions().readonly();
    if denied { Err(std::io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
}

/// What keeps the ledger of `app`, which is at `ledger`, from being used, as a problem: code `ledger`, the reason, the
/// remedy. No path of the host is in it.
pub fn problem(app: &AppId, ledger: &Path, error: &LedgerError) -> Problem {
    let shown = format!("{app}/{}", super::FILE);
    let reason = without_host_paths(app, ledger, &reason(error));
    // The problem names the file already.
    let reason = reason.strip_prefix(&format!("{shown}: ")).unwrap_or(&reason);
    // A damaged one is moved aside when it is next written to.
    let message = if error.is_unwritable() && !error.is_corrupt() {
        format!("nothing of this app can be recorded, so nothing of it runs: {reason}")
    } else {
        format!("its history cannot be read: {reason}")
    };
    let problem = Problem::error("ledger", "", message).in_path(shown.clone());
    match remedy(app, &shown, error) {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    }
}

/// A message about the ledger of `app` with the app's name in place of the folder's path.
pub fn without_host_paths(app: &AppId, ledger: &Path, message: &str) -> String {
    let folder = ledger.parent().unwrap_or(ledger);
    let mut spellings: Vec<PathBuf> = folder.canonicalize().into_iter().chain([folder.to_owned()]).collect();
    // One may be part of the other.
    spellings.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
    spellings.iter().fold(message.to_owned(), |text, path| text.replace(&path.display().to_string(), app.as_str()))
}

fn reason(error: &LedgerError) -> String {
    let (fault, message) = match error {
        LedgerError::Unusable { fault, message } => (fault, message),
        // The remedy is told apart.
        LedgerError::Foreign { .. } => return "another program's database stands in its place".to_owned(),
        other => return other.to_string(),
    };
    let what = match fault {
        Fault::Full => "the disk, or a quota, is full",
        Fault::ReadOnly => "it cannot be written",
        Fault::Corrupt => "it is damaged",
        Fault::Busy => "another program has locked it",
        Fault::Io => "the system refused to read or write it",
        Fault::CannotOpen => "it cannot be opened",
        Fault::Other => "it cannot be used",
    };
    format!("{what} ({message})")
}

fn remedy(app: &AppId, shown: &str, error: &LedgerError) -> Option<String> {
    Some(match error {
        LedgerError::NewerVersion { .. } => {
            "upgrade dirigent; or move the file away, with its -wal and -shm, and a new one is made".to_owned()
        }
        LedgerError::Foreign { .. } | LedgerError::NotAFile { .. } => {
            "move it away, and a new one is made in its place".to_owned()
        }
        LedgerError::Unusable { fault, .. } => match fault {
            Fault::Full => "free some space; the next fire tries again".to_owned(),
            Fault::ReadOnly => format!(
                "let the user that runs dirigent write the file and its folder, such as with `chmod u+w {app} {shown}*`"
            ),
            Fault::Corrupt => {
                "the next run moves it aside and makes a new one; `sqlite3 <file> .recover` saves what is left"
                    .to_owned()
            }
            Fault::Busy => "close the program that holds its lock; the next fire tries again".to_owned(),
            Fault::Io => "see to the disk; the next fire tries again".to_owned(),
            Fault::CannotOpen => "see that its folder is there and can be written".to_owned(),
            Fault::Other => return None,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppId {
        AppId::new("shop").unwrap()
    }

    #[test]
    fn every_reason_is_told_with_its_remedy_and_without_a_path_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = dir.path().join("shop/runtime.sqlite");
        let path = ledger.clone();
        let unusable = |fault| LedgerError::Unusable { fault, message: format!("{}: it says", path.display()) };
        for (error, reason, remedy) in [
            (LedgerError::NewerVersion { path: path.clone(), found: 9, known: 2 }, "newer version", "upgrade"),
            (LedgerError::Foreign { path: path.clone() }, "another program's", "move it away"),
            (LedgerError::NotAFile { path: path.clone(), found: "a folder" }, "this is a folder", "move it away"),
            (unusable(Fault::Full), "full", "free some space"),
            (unusable(Fault::ReadOnly), "cannot be written", "chmod u+w shop shop/runtime.sqlite"),
            (unusable(Fault::Corrupt), "damaged", "aside"),
            (unusable(Fault::Busy), "locked", "close the program"),
            (unusable(Fault::Io), "refused", "disk"),
            (unusable(Fault::CannotOpen), "opened", "folder"),
        ] {
            let problem = problem(&app(), &ledger, &error);
            let hint = problem.hint.as_deref().unwrap_or_default();
            assert!(problem.message.contains(reason) && hint.contains(remedy), "{problem} | {hint}");
            let stops = problem.message.contains("nothing of it runs");
            assert_eq!(stops, !error.is_corrupt(), "{problem}");
            assert!(!format!("{problem:?}").contains(&dir.path().display().to_string()), "{problem:?}");
            assert_eq!((problem.code.as_str(), problem.path.as_deref()), ("ledger", Some("shop/runtime.sqlite")));
        }
        let row = problem(&app(), &ledger, &LedgerError::BadRow { what: "no id".to_owned() });
        assert!(row.message.contains("cannot be read") && !row.message.contains("nothing of it runs"), "{row}");
    }

    #[test]
    fn what_stands_in_the_way_is_found_by_looking() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = |app: &str| dir.path().join(app).join(super::super::FILE);
        for app in ["fresh", "folder", "log"] {
            std::fs::create_dir(dir.path().join(app)).unwrap();
        }
        std::fs::create_dir(ledger("folder")).unwrap();
        std::fs::create_dir(schema::companion(&ledger("log"), "-wal")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(check_writable(&ledger("fresh")), Ok(()));
        assert_eq!(check_writable(&ledger("not-yet-made")), Ok(()));
        for app in ["folder", "log"] {
            let found = check_writable(&ledger(app));
            assert!(matches!(found, Err(LedgerError::NotAFile { found: "a folder", .. })), "{app}: {found:?}");
        }
        assert!(check_writable(&ledger("file")).is_err(), "an app folder that is a file");
        let left: Vec<_> = std::fs::read_dir(dir.path().join("fresh")).unwrap().collect();
        assert!(left.is_empty(), "nothing is made: {left:?}");
    }
}
