//! What crosses between daemon and host: frames of a little-endian `u32` length and that many bytes of postcard.
//!
//! The host side is not trusted: a length over [`MAX_FRAME`], bytes that do not decode, or bytes left over end the
//! conversation, and with it the host. The first frame to a host is the snapshot, as raw bytes.

use serde::{Deserialize, Serialize};

use super::{Job, JobEnd, Limits};
use crate::fire::{CtxCall, CtxCallBody, CtxReply, LogLine};

/// One value of at most 16 MiB, a handler's source of at most 1 MiB, and what stands around them.
pub const MAX_FRAME: usize = 18 << 20;

/// Values of several calls share a frame up to this size, so that frames stay small whatever their number.
pub const FULL_FRAME: usize = 1 << 20;

/// Calls of one run that its host may tell of as abandoned: twice the nodes that a run may have by default, so that a
/// loop that never waits is no way to fill a ledger.
pub const MAX_ABANDONED: usize = 20_000;

/// Daemon to host. `run` numbers the runs of one host, so that what arrives late for an ended run is dropped.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToHost {
    Init { limits: Limits },
    Run { run: u32, job: Job },
    Replies { run: u32, replies: Vec<(u32, CtxReply)> },
    Abort { run: u32, reason: String },
}

/// Host to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromHost {
    /// The next isolate stands by: a job sent now runs at once.
    Ready,
    Batch {
        logs: Vec<LogLine>,
        calls: Vec<CtxCall>,
        tick: Option<u32>,
    },
    /// Calls that were not sent before the handler settled; nothing but more of them and the end may follow.
    Abandoned {
        calls: Vec<CtxCall>,
        tick: Option<u32>,
    },
    Ended(JobEnd),
}

/// The JSON text that a call carries. Its depth is limited, on both sides; for `db` with the object around the
/// parameters.
pub fn value_of(body: &CtxCallBody) -> Option<&str> {
    match body {
        CtxCallBody::Tool { args_json, .. } | CtxCallBody::Agent { args_json } | CtxCallBody::Db { args_json } => {
            Some(args_json)
        }
        CtxCallBody::Invoke { input_json, .. } => input_json.as_deref(),
        CtxCallBody::StateSet { value_json, .. } => Some(value_json),
        CtxCallBody::RunsList { filter_json } => filter_json.as_deref(),
        CtxCallBody::StateGet { .. } | CtxCallBody::StateDelete { .. } => None,
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {0} bytes, over the limit of {MAX_FRAME}")]
    TooLarge(usize),
    #[error("a malformed frame: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("a frame with {0} bytes left over")]
    LeftOver(usize),
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`WireError::TooLarge`]; `out` is then as it was. (Nothing that crosses fails to serialise.)
pub fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), WireError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut filled = postcard::to_extend(value, std::mem::take(out))?;
    let len = filled.len() - start - 4;
    match u32::try_from(len) {
        Ok(length) if len <= MAX_FRAME => {
            filled[start..start + 4].copy_from_slice(&length.to_le_bytes());
            *out = filled;
            Ok(())
        }
        _ => {
            filled.truncate(start);
            *out = filled;
            Err(WireError::TooLarge(len))
        }
    }
}

/// # Errors
/// When the bytes are not exactly one `T`.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, WireError> {
    let (value, rest) = postcard::take_from_bytes(body)?;
    if rest.is_empty() { Ok(value) } else { Err(WireError::LeftOver(rest.len())) }
}

/// Bytes as they arrive, cut into frames.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// How many of them have been given out.
    taken: usize,
}

/// A buffer that once held a large frame gives its memory back beyond this.
const KEEP_CAPACITY: usize = 256 << 10;

impl FrameBuffer {
    /// Where the next bytes are to be appended.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
            if self.bytes.capacity() > KEEP_CAPACITY {
                self.bytes.shrink_to(KEEP_CAPACITY);
            }
        } else if self.taken > KEEP_CAPACITY {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        &mut self.bytes
    }

    /// The body of the next whole frame.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] as soon as the length is known, before its bytes are waited for.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, WireError> {
        let rest = &self.bytes[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*length) as usize;
        if len > MAX_FRAME {
            return Err(WireError::TooLarge(len));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.taken + 4;
        self.taken = start + len;
        Ok(Some(&self.bytes[start..start + len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&text, &mut out).expect("small");
        out
    }

    #[test]
    fn frames_survive_any_cut() {
        let bytes: Vec<u8> = [frame("one"), frame(""), frame(&"x".repeat(300))].concat();
        for step in 1..bytes.len() {
            let mut buffer = FrameBuffer::default();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(step) {
                buffer.tail().extend_from_slice(chunk);
                while let Some(body) = buffer.next_frame().expect("within the limit") {
                    seen.push(decode::<String>(body).expect("whole"));
                }
            }
            assert_eq!(seen, ["one".to_owned(), String::new(), "x".repeat(300)], "step {step}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_frame_is_refused() {
        let mut buffer = FrameBuffer::default();
        buffer.tail().extend_from_slice(&(MAX_FRAME as u32 + 1).to_le_bytes());
        assert!(matches!(buffer.next_frame(), Err(WireError::TooLarge(_))));

        let mut body = frame("one").split_off(4);
        body.push(0);
        assert!(matches!(decode::<String>(&body), Err(WireError::LeftOver(1))));
        body.truncate(2);
        assert!(matches!(decode::<String>(&body), Err(WireError::Malformed(_))));

        let mut out = frame("kept");
        let before = out.clone();
        assert!(matches!(encode(&"x".repeat(MAX_FRAME), &mut out), Err(WireError::TooLarge(_))));
        assert_eq!(out, before);
    }
}
