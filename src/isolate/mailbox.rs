//! Frames in and out of a host, as its threads share them: the main thread, and the watchdog, which reads while that one
//! is busy and says the last words.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use super::limits::EXIT_PROTOCOL;
use super::sandbox::{self, In, Input, Out};
use super::wire::{self, FrameBuffer, FromHost, ToHost};
use crate::fire::LogLine;

/// Frames that the watchdog reads ahead.
const MOST_WAITING: usize = 64;

/// Standard output, and the log lines that are to go there with the next batch.
pub(super) struct Outbox {
    out: Out,
    pub(super) logs: Vec<LogLine>,
    /// Frames being built; kept for its memory.
    pub(super) bytes: Vec<u8>,
}

impl Outbox {
    pub(super) fn open() -> Self {
        Self { out: Out::open(), logs: Vec::new(), bytes: Vec::new() }
    }

    /// Adds a frame, and writes when enough stands in `bytes` to be worth it.
    pub(super) fn add(&mut self, frame: &FromHost) -> io::Result<()> {
        wire::encode(frame, &mut self.bytes).map_err(io::Error::other)?;
        if self.bytes.len() >= wire::FULL_FRAME { self.write(None) } else { Ok(()) }
    }

    /// Writes what [`Self::add`] has left, if anything.
    pub(super) fn write_rest(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() { Ok(()) } else { self.write(None) }
    }

    /// Writes what stands in `bytes`.
    pub(super) fn write(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let result = self.out.write_all(&self.bytes, deadline);
        self.bytes.clear();
        self.bytes.shrink_to(wire::FULL_FRAME);
        result
    }
}

/// Standard input, cut into frames. Whoever holds the lock may read: the main thread when it waits, the watchdog while
/// the main thread is busy.
pub(super) struct Inbox {
    input: In,
    buffer: FrameBuffer,
    frames: VecDeque<ToHost>,
    ended: bool,
}

/// What waiting for a frame came to.
pub(super) enum Next {
    Frame(ToHost),
    Timeout,
    /// The daemon is gone, or wants this host gone.
    Ended,
}

impl Inbox {
    pub(super) fn open() -> Self {
        Self { input: In::open(), buffer: FrameBuffer::default(), frames: VecDeque::new(), ended: false }
    }

    /// One raw frame: the snapshot, before there is a watchdog.
    pub(super) fn first_frame(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.buffer.next_frame() {
                Ok(Some(body)) => return Some(body.to_vec()),
                Ok(None) => {}
                Err(_) => return None,
            }
            if !self.read_more(None) {
                return None;
            }
        }
    }

    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Next {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Next::Frame(frame);
            }
            if self.ended {
                return Next::Ended;
            }
            if self.cut() {
                continue;
            }
            if !self.read_more(deadline) && !self.ended {
                return Next::Timeout;
            }
        }
    }

    /// Takes in what is there, without waiting; true when an abort is among what waits to be taken out. At the end of
    /// input the process ends.
    pub(super) fn sees_abort(&mut self) -> bool {
        // What waits is memory of this host; what does not fit stays in the pipe.
        if self.frames.len() > MOST_WAITING {
            return false;
        }
        self.read_more(Some(Instant::now()));
        self.cut();
        if self.ended {
            sandbox::exit_now(0);
        }
        self.frames.iter().any(|frame| matches!(frame, ToHost::Abort { .. }))
    }

    /// False when nothing came (in time).
    fn read_more(&mut self, deadline: Option<Instant>) -> bool {
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match self.input.wait(timeout) {
            Ok(false) => false,
            Ok(true) => match self.input.read_into(self.buffer.tail()) {
                Ok(len @ 1..) => len > 0,
                Ok(0) | Err(_) => {
                    self.ended = true;
                    false
                }
            },
            Err(_) => {
                self.ended = true;
                false
            }
        }
    }

    /// Turns whole frames in the buffer into values; true when there was one. What is no frame ends the process: the
    /// daemon does not write such a thing, so nothing it says can be relied on.
    fn cut(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.buffer.next_frame().and_then(|body| body.map(wire::decode::<ToHost>).transpose()) {
                Ok(Some(frame)) => {
                    self.frames.push_back(frame);
                    any = true;
                }
                Ok(None) => return any,
                Err(error) => {
                    eprintln!("from the daemon: {error}");
                    sandbox::exit_now(EXIT_PROTOCOL);
                }
            }
        }
    }
}
