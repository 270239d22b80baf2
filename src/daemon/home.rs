//! `<root>/.dirigent`: the daemon's own files. The lock that keeps a second daemon out, the admin token, and
//! `daemon.json`, which tells clients where the running daemon listens.
//!
//! The lock is the operating system's: it goes with its process, so one left by a killed daemon is no obstacle. The pid
//! stands in the file for people and messages. It decides one thing: how long to believe a lock. A daemon that is killed
//! while it starts a host leaves its lock to that child until the child has become the host, some milliseconds later.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fire::EpochMs;
use crate::watch::write_atomic;

/// The folder's name below the root.
pub const DIR: &str = ".dirigent";
/// How long a lock is asked for again when its holder's process is gone. A holder that only cannot be seen from here (a
/// container on the same files) costs that much once.
const DYING: Duration = Duration::from_millis(1000);
const DYING_STEP: Duration = Duration::from_millis(5);
/// A token is this many random bytes, written in hex.
const TOKEN_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("another dirigent (pid {pid}) holds {root}")]
    Held { pid: String, root: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> HomeError {
    let path = path.to_owned();
    move |source| HomeError::Io { path, source }
}

/// The held lock; letting it go opens the root to another daemon.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// `.dirigent/daemon.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DaemonInfo {
    pub pid: u32,
    pub version: String,
    /// The admin listener; in the file `host:port`, like the next.
    pub admin: SocketAddr,
    /// The hook listener, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<SocketAddr>,
    /// Where its ledgers are, when apart from the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    pub started_at: EpochMs,
}

/// Takes the root's lock.
///
/// # Errors
/// [`HomeError::Held`] when another process has it.
pub fn lock(root: &Path) -> Result<Lock, HomeError> {
    let dir = make_dir(root)?;
    let path = dir.join("lock");
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io_error(&path))?;
    let pid = holder(&mut file);
    let locked = believe(pid.as_deref().and_then(|pid| pid.parse().ok()), || file.try_lock());
    match locked {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let pid = holder(&mut file).unwrap_or_else(|| "unknown".to_owned());
            return Err(HomeError::Held { pid, root: root.to_owned() });
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(io_error(&path)(error)),
    }
    file.set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()))
        .map_err(io_error(&path))?;
    Ok(Lock { file })
}

/// The pid in a lock file. A courtesy: without it a refusal stands all the same.
fn holder(file: &mut File) -> Option<String> {
    let mut pid = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.read_to_string(&mut pid).ok()?;
    Some(pid.trim().to_owned()).filter(|pid| !pid.is_empty())
}

/// Asks for a lock, again for a moment while it is held in the name of a process that is gone.
fn believe(
    holder: Option<u32>,
    mut ask: impl FnMut() -> Result<(), std::fs::TryLockError>,
) -> Result<(), std::fs::TryLockError> {
    let mut asked = Duration::ZERO;
    loop {
        let answer = ask();
        let held = matches!(answer, Err(std::fs::TryLockError::WouldBlock));
        if !held || asked >= DYING || holder.is_none_or(is_alive) {
            return answer;
        }
        std::thread::sleep(DYING_STEP);
        asked += DYING_STEP;
    }
}

#[cfg(unix)]
fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 is only a question; it touches no memory and no process.
    let found = unsafe { libc::kill(pid, 0) } == 0;
    found || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Elsewhere a lock does not outlive its process through a child.
#[cfg(not(unix))]
fn is_alive(_: u32) -> bool {
    true
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file gives the lock back in any case.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

/// `<root>/.dirigent`, made when there is none; for its owner alone.
///
/// # Errors
/// [`HomeError::Io`].
pub fn make_dir(root: &Path) -> Result<PathBuf, HomeError> {
    let dir = root.join(DIR);
    std::fs::create_dir_all(&dir).map_err(io_error(&dir))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The token is in here.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700)).map_err(io_error(&dir))?;
    }
    Ok(dir)
}

/// The admin token, made on first use; the file is readable by its owner alone.
///
/// # Errors
/// [`HomeError::Io`].
pub fn token(root: &Path) -> Result<String, HomeError> {
    let path = make_dir(root)?.join("token");
    if let Some(token) = read_token(root) {
        return Ok(token);
    }
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| io_error(&path)(std::io::Error::other(error)))?;
    let token = hex::encode(bytes);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).map_err(io_error(&path))?;
    file.write_all(token.as_bytes()).map_err(io_error(&path))?;
    Ok(token)
}

/// The token of the root, if there is one already.
pub fn read_token(root: &Path) -> Option<String> {
    let text = std::fs::read_to_string(root.join(DIR).join("token")).ok()?;
    let text = text.trim();
    (text.len() == 2 * TOKEN_BYTES).then(|| text.to_owned())
}

/// Writes `daemon.json`.
///
/// # Errors
/// [`HomeError::Io`].
pub fn announce(root: &Path, info: &DaemonInfo) -> Result<(), HomeError> {
    let path = root.join(DIR).join("daemon.json");
    let text = serde_json::to_vec_pretty(info).map_err(|error| io_error(&path)(error.into()))?;
    write_atomic(&path, &text).map_err(io_error(&path))
}

/// Takes `daemon.json` away.
pub fn retract(root: &Path) {
    // An absent file is what is wanted.
    let _ = std::fs::remove_file(root.join(DIR).join("daemon.json"));
}

/// The daemon that holds the root now, as it announced itself; a file that a killed daemon left does not count.
pub fn running(root: &Path) -> Option<DaemonInfo> {
    let text = std::fs::read(root.join(DIR).join("daemon.json")).ok()?;
    let info: DaemonInfo = serde_json::from_slice(&text).ok()?;
    let file = File::open(root.join(DIR).join("lock")).ok()?;
    match believe(Some(info.pid), || file.try_lock_shared()) {
        Err(std::fs::TryLockError::WouldBlock) => Some(info),
        // Nobody holds the lock, or it cannot be asked for.
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_the_second_learns_the_pid() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        match lock(dir.path()) {
            Err(HomeError::Held { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn only_a_live_daemon_counts_as_running() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let info = DaemonInfo {
            pid: std::process::id(),
            version: "v".into(),
            admin: "127.0.0.1:1".parse().unwrap(),
            hooks: None,
            data: None,
            started_at: 0,
        };
        announce(dir.path(), &info).unwrap();
        assert_eq!(running(dir.path()).unwrap().admin, info.admin);
        drop(held);
        assert!(running(dir.path()).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_in_the_name_of_a_dead_process_is_asked_for_again() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let mut left = 3;
        let mut held_for_a_while = || {
            left -= 1;
            if left == 0 { Ok(()) } else { Err(std::fs::TryLockError::WouldBlock) }
        };
        assert!(believe(Some(std::process::id()), &mut held_for_a_while).is_err(), "a living one is believed at once");
        assert!(believe(Some(dead), &mut held_for_a_while).is_ok());
    }

    #[test]
    fn the_token_is_made_once_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_token(dir.path()), None);
        let token = token(dir.path()).unwrap();
        assert_eq!(super::token(dir.path()).unwrap(), token);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(dir.path().join(DIR).join("token")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
