//! The end of a host: why it came, the last words, and what they mean for the run that it was in.

use std::process::ExitStatus;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::ChildStderr;

use super::Outcome;
use super::limits::Stop;
use crate::fire::ErrorCode;

/// Of what a host wrote to its standard error, this much is kept.
const STDERR_TAIL: usize = 4096;

/// What V8, and this program's allocator, say when memory runs out.
const OUT_OF_MEMORY: &[&str] =
    &["out of memory", "OOM", "Out of memory", "memory allocation of", "invalid array length", "invalid size error"];

/// Why a host is to end, seen from here.
pub(super) enum Over {
    Closed,
    Killed,
    Protocol(String),
    /// Nobody listens to the run any more.
    Unheard,
    Silent,
    Surplus,
}

/// Reads to the end; gives back the last lines.
pub(super) async fn read_stderr(stderr: ChildStderr, host: u64) -> String {
    let mut tail = String::new();
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // In pieces, so that a line without an end is no way to grow this process.
        match (&mut lines).take(STDERR_TAIL as u64).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return tail,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                tracing::debug!(host, "{}", text.trim_end());
                // V8's native backtrace tells paths of this machine, and pushes out what matters.
                if text.contains("[0x") || text.contains("C stack trace") {
                    continue;
                }
                tail.push_str(&text);
                if tail.len() > STDERR_TAIL {
                    let cut = tail.ceil_char_boundary(tail.len() - STDERR_TAIL);
                    tail.drain(..cut);
                }
            }
        }
    }
}

/// What the end of a process means for the run that it was in.
pub(super) fn death(over: &Over, status: Option<ExitStatus>, tail: &str) -> Outcome {
    let crashed = |message: String| Outcome::failed(ErrorCode::Crashed, message);
    match over {
        Over::Protocol(what) => return crashed(format!("the host process broke the protocol ({what}) and was killed")),
        Over::Silent => return crashed("the host process did not get ready in time and was killed".into()),
        Over::Killed | Over::Unheard | Over::Surplus => return Outcome::Aborted,
        Over::Closed => {}
    }
    if let Some(stop) = status.and_then(|status| status.code()).and_then(Stop::from_exit_code) {
        return stop.outcome();
    }
    if OUT_OF_MEMORY.iter().any(|words| tail.contains(words)) {
        return Stop::Memory.outcome();
    }
    let how = status.map_or_else(|| "in an unknown way".to_owned(), |status| status.to_string());
    let tail: Vec<&str> = tail.lines().map(|l| l.trim_matches([' ', '#'])).filter(|line| !line.is_empty()).collect();
    let last = tail[tail.len().saturating_sub(5)..].join("; ");
    let last = if last.is_empty() { last } else { format!(": {last}") };
    crashed(format!("the host process died ({how}){last}"))
}
