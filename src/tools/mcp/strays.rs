//! Processes that servers have started and left behind: found, wherever they went, and ended.
//!
//! A server that is a program gets a *mark* in its environment, and what it starts inherits it; so a process is known
//! whose parent has gone and which has left its group. A mark is that of one [`Owner`], which is one daemon (or command)
//! from its start to its end, and in it of one connection. An owner leaves a locked file in the daemon's folder for as
//! long as it lives; a file that nobody holds is that of one that was killed, and what it has left is ended by whoever
//! comes next.
//!
//! Invariant: only processes with a mark are touched, and only when their owner says so or is gone. A mistake here kills
//! a stranger. A process that clears its environment is not found. On Linux alone; elsewhere nothing is found.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The variable in which a mark stands.
pub const VARIABLE: &str = "DIRIGENT_MCP";
/// Where owners leave their files, below the root; only when the daemon's folder is there.
const HOME: &str = ".dirigent";
const FOLDER: &str = "mcp";
/// Bytes of an owner's name, in hex in the mark.
const NAME_BYTES: usize = 16;
/// An owner that was killed while it started a program leaves its lock to that child for some milliseconds. One that
/// lives costs a start this much, once.
const DYING_TRIES: u32 = 40;
const DYING_STEP: Duration = Duration::from_millis(5);
/// Who starts processes faster than they can be ended is left to the system in the end.
const ROUNDS: usize = 20;

/// Who starts servers.
pub struct Owner {
    home: PathBuf,
    name: String,
    next: AtomicU64,
    /// Held as soon as there is something to find.
    file: Mutex<Option<File>>,
}

impl Owner {
    /// Of a root's servers.
    pub fn new(root: &Path) -> Self {
        let mut bytes = [0; NAME_BYTES];
        // Without randomness its own are found all the same, and nobody is taken for somebody else: see `is_name`.
        let name = getrandom::fill(&mut bytes).map(|()| hex::encode(bytes)).unwrap_or_default();
        Self { home: root.join(HOME), name, next: AtomicU64::new(0), file: Mutex::default() }
    }

    /// The mark of one more connection. May block on the disk, the first time.
    pub fn mark(&self) -> String {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() && self.home.is_dir() {
            match self.leave_file() {
                Ok(left) => *file = Some(left),
                Err(error) => tracing::debug!(%error, "no note of MCP servers is left for the next start"),
            }
        }
        format!("{}.{}.", self.name, self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn leave_file(&self) -> std::io::Result<File> {
        let folder = self.home.join(FOLDER);
        std::fs::create_dir_all(&folder)?;
        let file = File::create(folder.join(&self.name))?;
        file.try_lock()?;
        Ok(file)
    }

    /// Ends what all connections of this owner have left. Blocks.
    pub fn end_all(&self) {
        end(&self.name);
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        if file.is_some() {
            // One that stays is looked at by the next start, which finds nothing.
            let _ = std::fs::remove_file(self.home.join(FOLDER).join(&self.name));
        }
    }

    /// Ends what owners that were killed have left in this root. Blocks.
    pub fn end_abandoned(&self) {
        let Ok(entries) = std::fs::read_dir(self.home.join(FOLDER)) else { return };
        let mut tries = DYING_TRIES;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_name(name)) else { continue };
            let Ok(file) = File::open(entry.path()) else { continue };
            let mut locked = file.try_lock();
            while locked.is_err() && tries > 0 {
                std::thread::sleep(DYING_STEP);
                tries -= 1;
                locked = file.try_lock();
            }
            if locked.is_ok() {
                let ended = end(name);
                if ended > 0 {
                    tracing::info!("ended {ended} processes of MCP servers that an earlier daemon left");
                }
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    text.len() == 2 * NAME_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Ends every process with a mark that starts so, and says how many there were. Blocks until they are gone.
pub fn end(mark: &str) -> usize {
    if !mark.get(..2 * NAME_BYTES).is_some_and(is_name) {
        return 0;
    }
    let mut ended = 0;
    for _ in 0..ROUNDS {
        match system::kill_marked(mark) {
            0 => break,
            killed => ended += killed,
        }
    }
    ended
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::VARIABLE;

    /// A process that is killed is gone within this time, most often; in milliseconds.
    const GONE_MS: libc::c_int = 100;

    /// Kills those that there are now, and waits a moment for each.
    pub fn kill_marked(mark: &str) -> usize {
        let wanted = format!("{VARIABLE}={mark}");
        let Ok(entries) = fs::read_dir("/proc") else { return 0 };
        let mut killed = Vec::new();
        for entry in entries.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // Held before it is looked at: what is killed is what was seen, though its number may be given away.
            let Some(process) = pid.and_then(open) else { continue };
            let has_mark = |environment: Vec<u8>| {
                environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(wanted.as_bytes()))
            };
            if fs::read(entry.path().join("environ")).is_ok_and(has_mark) && kill(&process) {
                killed.push(process);
            }
        }
        killed.iter().for_each(wait);
        killed.len()
    }

    fn open(pid: libc::pid_t) -> Option<OwnedFd> {
        // SAFETY: a plain system call; what it returns is a new descriptor, or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: nobody else has the descriptor that was just made.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn kill(process: &OwnedFd) -> bool {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a plain system call on a descriptor that is held; no information goes with the signal.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, none, 0) == 0 }
    }

    fn wait(process: &OwnedFd) {
        let mut asked = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives as long as the call.
        unsafe { libc::poll(&raw mut asked, 1, GONE_MS) };
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn kill_marked(_: &str) -> usize {
        0
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    fn sleeper(mark: &str) -> Child {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").env(VARIABLE, mark).stdin(Stdio::null()).spawn().expect("a process")
    }

    fn signal(child: &mut Child) -> Option<i32> {
        child.wait().expect("its end").signal()
    }

    #[test]
    fn only_what_bears_the_mark_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let (owner, other) = (Owner::new(dir.path()), Owner::new(dir.path()));
        let (mark, next, foreign) = (owner.mark(), owner.mark(), other.mark());
        let (mut a, mut b, mut c, mut d) = (sleeper(&mark), sleeper(&next), sleeper(&foreign), sleeper(""));
        assert_eq!(end(&mark), 1);
        assert_eq!(signal(&mut a), Some(libc::SIGKILL));
        for nothing in ["", ".", "0"] {
            assert_eq!(end(nothing), 0);
        }
        assert!([&mut b, &mut c, &mut d].iter_mut().all(|child| child.try_wait().unwrap().is_none()));
        owner.end_all();
        assert_eq!(signal(&mut b), Some(libc::SIGKILL));
        assert!([&mut c, &mut d].iter_mut().all(|child| child.try_wait().unwrap().is_none()));
        other.end_all();
        assert_eq!(signal(&mut c), Some(libc::SIGKILL));
        d.kill().unwrap();
        d.wait().unwrap();
    }

    #[test]
    fn what_a_killed_owner_left_is_ended_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(HOME)).unwrap();
        let left = || std::fs::read_dir(dir.path().join(HOME).join(FOLDER)).unwrap().count();
        let (killed, living) = (Owner::new(dir.path()), Owner::new(dir.path()));
        let (mut lost, mut kept) = (sleeper(&killed.mark()), sleeper(&living.mark()));
        assert_eq!(left(), 2);
        // As its end closes its files.
        drop(killed);
        let next = Owner::new(dir.path());
        // Other tests start programs meanwhile, each of which holds the lock for a moment.
        while left() == 2 {
            next.end_abandoned();
        }
        assert_eq!(signal(&mut lost), Some(libc::SIGKILL));
        assert!(kept.try_wait().unwrap().is_none(), "a living owner's are left alone");
        assert_eq!(left(), 1);
        living.end_all();
        assert_eq!((signal(&mut kept), left()), (Some(libc::SIGKILL), 0));
    }
}
