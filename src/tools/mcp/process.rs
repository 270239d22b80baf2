//! A server that is a program: how it is started, what it is given, and how it is made to go.
//!
//! It gets its `env` and a few variables that every program needs ([`INHERITED`]), never the rest of the daemon's
//! environment; the root as its folder; and a process group of its own, which is killed with it, so that what a
//! launcher such as `npx` has started goes too, and on Linux also what has left the group ([`super::strays`]). There it is
//! killed when the daemon dies; what it has started sees the end of its input then, or is ended by the next daemon. Its standard error goes to the daemon's log, line by line, no faster than [`Pace`] allows.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::pace::Pace;
use super::secrets::Redactor;
use super::strays;
use super::watched::on_one_line;
use crate::core::shortened::shortened;

/// What a server gets of the daemon's environment.
pub const INHERITED: &[&str] = &[
    "HOME",
    "LANG",
    "LC_ALL",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    // Without these, programs do not start on Windows.
    "APPDATA",
    "COMSPEC",
    "HOMEDRIVE",
    "HOMEPATH",
    "LOCALAPPDATA",
    "PATHEXT",
    "PROGRAMDATA",
    "PROGRAMFILES",
    "SYSTEMDRIVE",
    "SYSTEMROOT",
    "TEMP",
    "TMP",
    "USERNAME",
    "USERPROFILE",
    "WINDIR",
];

/// A server whose input has ended gets this long to go by itself.
pub const LEAVE_TIME: Duration = Duration::from_secs(2);
/// A program whose output has ended is ending, most often; its status and last words are worth this wait.
pub const EXIT_TIME: Duration = Duration::from_secs(1);
/// And this long after it was asked to by a signal.
const TERM_TIME: Duration = Duration::from_secs(1);
/// Of a line on standard error, no more is held, and less is shown.
const MAX_LINE_BYTES: usize = 64 * 1024;
const MAX_LINE_CHARS: usize = 2000;
/// What a dead server's last words are made of.
const LAST_LINES: usize = 4;
const MAX_WORD_CHARS: usize = 200;

/// A started server, without its standard input and output. Dropping it kills it and its group.
pub struct Process {
    child: Child,
    pid: Option<u32>,
    mark: String,
    last_words: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

/// A program as mcp.json describes it.
pub struct Program<'a> {
    pub server: &'a str,
    pub command: &'a str,
    pub args: &'a [String],
    pub env: &'a BTreeMap<String, String>,
    pub folder: &'a Path,
}

/// Starts a program. To be called in a thread that lives as long as the daemon, such as one of tokio's own: on Linux the
/// server dies with the thread that started it. `mark`: see [`strays`].
///
/// # Errors
/// When the program does not start.
pub fn spawn(
    what: &Program<'_>,
    inherited: impl Fn(&str) -> Option<String>,
    mark: String,
    redactor: &Redactor,
) -> std::io::Result<(Process, ChildStdin, ChildStdout)> {
    let mut program = Command::new(what.command);
    program
        .args(what.args)
        .env_clear()
        .envs(INHERITED.iter().filter_map(|name| Some((name, inherited(name)?))))
        .envs(what.env)
        .env(strays::VARIABLE, &mark)
        .current_dir(what.folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    program.process_group(0);
    #[cfg(target_os = "linux")]
    die_with_the_daemon(&mut program);
    let mut child = program.spawn()?;
    let missing = || std::io::Error::other("a pipe is missing");
    let stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let last_words = Arc::default();
    let reader = tokio::spawn(read_stderr(what.server.to_owned(), stderr, redactor.clone(), Arc::clone(&last_words)));
    Ok((Process { pid: child.id(), child, mark, last_words, reader }, stdin, stdout))
}

#[cfg(target_os = "linux")]
fn die_with_the_daemon(program: &mut Command) {
    let daemon = std::process::id();
    // SAFETY: between fork and exec only these system calls are made, none of which allocates or takes a lock.
    unsafe {
        program.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // It may have died in between.
            if u32::try_from(libc::getppid()) != Ok(daemon) {
                libc::_exit(0);
            }
            Ok(())
        });
    }
}

impl Process {
    /// Waits until it is gone, and asks it to go in ever clearer words: its input has ended already; after `patience` a
    /// signal, then the kill. What is left of its group, and what bears its mark, is killed in any case. Returns how it
    /// ended.
    pub async fn leave(mut self, patience: Duration) -> Option<ExitStatus> {
        let mut status = timeout(patience, self.child.wait()).await;
        if status.is_err() && !patience.is_zero() {
            #[cfg(unix)]
            self.signal(libc::SIGTERM);
            status = timeout(TERM_TIME, self.child.wait()).await;
        }
        #[cfg(unix)]
        self.signal(libc::SIGKILL);
        let status = match status {
            Ok(status) => status,
            Err(_) => {
                let _ = self.child.start_kill();
                self.child.wait().await
            }
        };
        let mark = std::mem::take(&mut self.mark);
        // Fails only when the runtime is ending.
        let _ = tokio::task::spawn_blocking(move || strays::end(&mark)).await;
        // Its last lines may still be on their way.
        let _ = timeout(EXIT_TIME, &mut self.reader).await;
        status.ok()
    }

    /// The last lines on its standard error, redacted; known for as long as somebody holds them.
    pub fn last_words(&self) -> LastWords {
        LastWords(Arc::clone(&self.last_words))
    }

    /// To the whole group.
    #[cfg(unix)]
    fn signal(&self, signal: libc::c_int) {
        if let Some(group) = self.pid.and_then(|pid| libc::pid_t::try_from(pid).ok()) {
            // SAFETY: a plain system call; the group was made for this child.
            unsafe { libc::killpg(group, signal) };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        #[cfg(unix)]
        if self.child.id().is_some() {
            self.signal(libc::SIGKILL);
        }
        self.reader.abort();
    }
}

/// See [`Process::last_words`].
#[derive(Clone, Default)]
pub struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }
}

async fn read_stderr(
    server: String,
    stderr: impl AsyncRead + Unpin,
    redactor: Redactor,
    last_words: Arc<Mutex<VecDeque<String>>>,
) {
    let mut stderr = BufReader::new(stderr);
    let mut pace = Pace::default();
    let mut line = Vec::new();
    loop {
        let (used, line_ended, all_ended) = match stderr.fill_buf().await {
            Ok([]) | Err(_) => (0, true, true),
            Ok(bytes) => {
                let end = bytes.iter().position(|&byte| byte == b'\n');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                let room = MAX_LINE_BYTES - line.len();
                line.extend_from_slice(&part[..part.len().min(room)]);
                (end.map_or(bytes.len(), |end| end + 1), end.is_some(), false)
            }
        };
        stderr.consume(used);
        if !line_ended {
            continue;
        }
        // Redacted before it is cut, or half a secret could be left at the end.
        let told = shortened(redactor.text(String::from_utf8_lossy(&line).trim_end()).as_ref(), MAX_LINE_CHARS);
        line.clear();
        if !told.is_empty() {
            let mut words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
            words.push_back(shortened(&told, MAX_WORD_CHARS));
            if words.len() > LAST_LINES {
                words.pop_front();
            }
            drop(words);
            if let Some(dropped) = pace.next() {
                if dropped > 0 {
                    tracing::info!(server, "{dropped} lines came too fast and are not shown");
                }
                tracing::info!(server, "{}", on_one_line(&told));
            }
        }
        if all_ended {
            return;
        }
    }
}
