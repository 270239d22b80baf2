//! A host process: `__host` reads the snapshot and its limits, shuts itself in, and runs one job after the other, each
//! in a fresh isolate. `__host --snapshot` writes the snapshot to standard output and ends.

use std::io::Write;

use super::limits::{self, EXIT_MEMORY, EXIT_PROTOCOL, EXIT_RETIRED, Shared};
use super::loader::CodeCache;
use super::mailbox::Next;
use super::wire::{self, FromHost, ToHost};
use super::{JobEnd, run, sandbox, snapshot};

/// A run that leaves this much more resident memory behind than the host began with ends the host: the next run gets
/// a process that starts small.
const RETIRE_GROWTH: u64 = 64 << 20;

/// Why a host ends before it was told to.
#[derive(Debug, thiserror::Error)]
enum HostError {
    #[error("the daemon sent no snapshot")]
    NoSnapshot,
    #[error("the daemon sent something else than was expected")]
    Unexpected,
    #[error(transparent)]
    Runtime(#[from] snapshot::RuntimeError),
    #[error("pipe to the daemon: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
}

/// The entry of the hidden `__host` command. The result is the exit code.
pub fn host_main() -> i32 {
    sandbox::tie_to_parent();
    let result = match std::env::args().nth(2).as_deref() {
        Some("--snapshot") => write_snapshot(),
        _ => serve(),
    };
    match result {
        Ok(code) => code,
        // The daemon went away, or closed the pipe because it wants no more of this host.
        Err(HostError::Io(_)) => 0,
        Err(error) => {
            eprintln!("{error}");
            EXIT_PROTOCOL
        }
    }
}

fn write_snapshot() -> Result<i32, HostError> {
    let blob = snapshot::make()?;
    let mut out = std::io::stdout().lock();
    out.write_all(&blob)?;
    out.flush()?;
    Ok(0)
}

fn serve() -> Result<i32, HostError> {
    let shared = Shared::open();
    let blob = shared.inbox().first_frame().ok_or(HostError::NoSnapshot)?;
    // V8 reads from it as long as there are isolates: until the process ends.
    let blob: &'static [u8] = blob.leak();
    let limits = match shared.inbox().next(None) {
        Next::Frame(ToHost::Init { limits }) => limits,
        Next::Ended => return Ok(0),
        _ => return Err(HostError::Unexpected),
    };
    shared.buffers.set_limit(limits.external_bytes);
    snapshot::init_v8();
    let mut next = snapshot::fresh(blob, shared, &limits)?;
    sandbox::leave_files();
    limits::start_watchdog(shared)?;
    sandbox::enter(&shared.memory, Shared::data_growth(&limits), EXIT_MEMORY);

    let resident_at_start = shared.memory.resident_bytes();
    let mut cache = CodeCache::default();
    loop {
        send(shared, &FromHost::Ready)?;
        let (number, job) = loop {
            match shared.inbox().next(None) {
                Next::Frame(ToHost::Run { run, job }) => break (run, job),
                // Late words to a run that has ended.
                Next::Frame(ToHost::Replies { .. } | ToHost::Abort { .. }) | Next::Timeout => {}
                Next::Frame(ToHost::Init { .. }) => return Err(HostError::Unexpected),
                Next::Ended => return Ok(0),
            }
        };
        run::run(&mut next, shared, &limits, number, &job, &mut cache, |outcome| {
            let (cpu_ms, peak_bytes) = shared.finish();
            let end = JobEnd { outcome, cpu_ms, peak_bytes };
            send(shared, &FromHost::Ended(end)).map_err(std::io::Error::other)
        })?;
        // The kernel takes a write to a pipe for the writer's last act, and wakes the reader on the same core: without
        // this the daemon would hear of the end when the next isolate stands, a millisecond later.
        std::thread::yield_now();
        drop(next);
        let grown = shared.memory.resident_bytes().zip(resident_at_start).map(|(now, then)| now.saturating_sub(then));
        if grown.is_some_and(|grown| grown > RETIRE_GROWTH) {
            return Ok(EXIT_RETIRED);
        }
        next = snapshot::fresh(blob, shared, &limits)?;
    }
}

fn send(shared: &Shared, frame: &FromHost) -> Result<(), HostError> {
    let mut outbox = shared.outbox();
    wire::encode(frame, &mut outbox.bytes)?;
    Ok(outbox.write(None)?)
}
