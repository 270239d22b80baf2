//! Systems without `poll`: a thread reads standard input, and writes may block.

use std::io::{Read, Write};
use std::sync::mpsc;

use super::*;

/// Standard input, read by a thread of its own, since a pipe cannot be waited for with a timeout here.
pub(in super::super) struct In {
    chunks: mpsc::Receiver<Vec<u8>>,
    next: Option<Vec<u8>>,
    ended: bool,
}

impl In {
    pub(in super::super) fn open() -> Self {
        let (send, chunks) = mpsc::sync_channel(16);
        std::thread::spawn(move || {
            let mut input = io::stdin().lock();
            let mut chunk = vec![0; 64 << 10];
            while let Ok(len @ 1..) = input.read(&mut chunk) {
                if send.send(chunk[..len].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { chunks, next: None, ended: false }
    }
}

impl Input for In {
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if self.next.is_some() || self.ended {
            return Ok(true);
        }
        let got = match timeout {
            None => self.chunks.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            Some(timeout) => self.chunks.recv_timeout(timeout),
        };
        match got {
            Ok(chunk) => self.next = Some(chunk),
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
            Err(mpsc::RecvTimeoutError::Disconnected) => self.ended = true,
        }
        Ok(true)
    }

    fn read_into(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let chunk = self.next.take().unwrap_or_default();
        bytes.extend_from_slice(&chunk);
        Ok(chunk.len())
    }
}

pub(in super::super) struct Out;

impl Out {
    pub(in super::super) fn open() -> Self {
        Self
    }

    pub(in super::super) fn write_all(&mut self, bytes: &[u8], _deadline: Option<Instant>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }
}

/// Without a portable clock of CPU time, the time since the first call stands for it: never less than the truth
/// for one busy thread.
pub(in super::super) fn cpu_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

pub(in super::super) fn exit_now(code: i32) -> ! {
    std::process::exit(code)
}
