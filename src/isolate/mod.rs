//! Running handlers. A handler is code that a model or a person generated: it is run, never trusted. So V8 is not
//! loaded into the daemon at all; it lives in *host* processes, which are this same program started again with the
//! hidden argument `__host`.
//!
//! Words: a [`Pool`] keeps *hosts*; a host runs one [`Job`] at a time, each in a fresh V8 isolate made from one
//! snapshot; a run sends [`JobEvent`]s and gets replies through its [`JobControl`]. Everything that crosses is a frame
//! of [`wire`].
//!
//! | file | side | what |
//! |---|---|---|
//! | [`pool`] | daemon | which hosts exist, who waits for one |
//! | `pipe` | daemon | writing to a host without waiting for it |
//! | `accept` | daemon | what a host may say of its run |
//! | `process` | daemon | one host seen from outside: its pipes, the run it is in |
//! | `death` | daemon | the end of a host: why, its last words, what they mean |
//! | `host` | host | entry of the process |
//! | `mailbox` | host | frames in and out, shared by the threads |
//! | `run` | host | one run: load, call, event loop, settle; what it comes to |
//! | `callbacks` | host | what V8 asks of its embedder |
//! | `loader` | host | compiling one module with no imports |
//! | `snapshot` | host | V8 set-up, the snapshot with `runtime-js/` in it, a fresh isolate |
//! | `calls`, `outgoing` | host | calls and their answers; those that were made and not sent yet |
//! | `timers` | host | a run's timers |
//! | `rejections` | host | promises that were rejected while nothing handled them |
//! | `ops`, `ops_web` | host | the only native functions that `runtime-js/` can call |
//! | `limits`, `buffers` | host | CPU, memory, grace: a watchdog thread; memory outside the heap |
//! | `sandbox` | host | what the operating system forbids, and the few things that differ between systems |
//!
//! Invariants. The daemon never executes V8. A host never sees a ledger, a secret, a file or the network. A job ends
//! exactly once, also when its host is killed. Whatever a handler does, it costs at most its own limits and its own
//! host. A mistake here lets generated code out of its box, or lets one handler stop all the others.

mod accept;
mod buffers;
mod callbacks;
mod calls;
mod death;
mod host;
mod limits;
mod loader;
mod mailbox;
mod ops;
mod ops_web;
mod outgoing;
mod pipe;
pub mod pool;
mod process;
mod rejections;
mod run;
mod sandbox;
mod snapshot;
mod timers;
pub mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use host::host_main;
pub use pool::{Pool, PoolError, PoolStats};
pub use process::{JobControl, RunningJob};

use crate::fire::{CtxCall, ErrorCode, LogLine};
use crate::handler_check::Contract;

/// The hidden first argument that makes this program a host.
pub const HOST_ARG: &str = "__host";

/// Every member of `ctx`, in the order in which messages list them.
pub const CTX_MEMBERS: &[&str] = &["tool", "agent", "state", "runs", "invoke", "run", "input", "abortSignal", "log"];

/// The types of the handler contract, as `dirigent types` prints them.
pub const CTX_TYPES: &str = include_str!("../../runtime-js/ctx.d.ts");

/// How many hosts there are, of which program, under which limits.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The program to start with [`HOST_ARG`]: this one, see [`own_program`].
    pub program: PathBuf,
    /// Hosts kept ready beyond the busy ones.
    pub warm: usize,
    /// No more processes than this at any time.
    pub max_hosts: usize,
    pub limits: Limits,
}

impl Default for PoolConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // Four runs per core and at least eight is the daemon's own limit; the rest is for queries and actions, whose
        // callers are runs that hold a host already.
        let max_hosts = (cores * 4).max(8) * 2 + 2;
        Self { program: own_program(), warm: 2, max_hosts, limits: Limits::default() }
    }
}

/// The running program. On Linux by its open file, so that replacing it on disk does not mix two versions.
pub fn own_program() -> PathBuf {
    if cfg!(target_os = "linux") {
        return PathBuf::from("/proc/self/exe");
    }
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("dirigent"))
}

/// What one run may use. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// V8's own heap.
    pub heap_bytes: u64,
    /// Array buffers and whatever else lies outside V8's heap.
    pub external_bytes: u64,
    /// CPU time of one run, all threads of its host together.
    pub cpu_ms: u64,
    /// Calls sent and not yet answered; more wait inside the host.
    pub in_flight: u32,
    pub max_log_lines: u32,
    pub max_log_bytes: u64,
    /// One argument or one result of a call, as JSON text.
    pub max_value_bytes: u64,
    /// `output`, as JSON text.
    pub max_output_bytes: u64,
    /// `summary`; longer ones are cut.
    pub max_summary_bytes: u64,
}

const MIB: u64 = 1 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            heap_bytes: 128 * MIB,
            external_bytes: 256 * MIB,
            cpu_ms: 30_000,
            in_flight: 256,
            max_log_lines: 10_000,
            max_log_bytes: MIB,
            max_value_bytes: 16 * MIB,
            max_output_bytes: MIB,
            max_summary_bytes: 4096,
        }
    }
}

impl Limits {
    /// The one line that stands for all log lines beyond the limits.
    pub fn log_marker(&self) -> String {
        format!("log truncated: a run may log {} lines and {} bytes", self.max_log_lines, self.max_log_bytes)
    }
}

/// One thing to run, with everything it needs: an edit on disk during the run changes nothing in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What stacks show: `<appId>/<automationId>/handler.js`, or `<appId>/queries/<name>.js`.
    pub script_name: String,
    pub source: Arc<str>,
    /// Key of the host's cache of compiled code; empty means "do not cache".
    pub source_sha256: String,
    pub kind: JobKind,
    /// JSON text; `None` is `undefined`.
    pub input_json: Option<String>,
    /// Instead of [`Limits::cpu_ms`].
    pub cpu_ms: Option<u64>,
}

/// What the default export is called with, and what becomes of its value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JobKind {
    /// `({ ctx, log, input })`, ending in [`Outcome::Settled`]. `run_json` is `ctx.run`.
    Automation { run_json: String },
    /// `({ db, log, app, input, query }, input)`, ending in [`Outcome::Returned`]: not before every call that it made
    /// is answered and every transaction that it began is over, also of those that it did not await. A failure among
    /// these that nobody handled is one of the run.
    Query { app: String, name: String },
    /// `({ db, log, app, body, input }, input)`, ending as a query does.
    Action { app: String, name: String },
    /// Compile only: nothing is evaluated. [`Outcome::Returned`] when it would load and has a default export.
    Check,
    /// Read only: V8 never sees the text. [`Outcome::Returned`] is the [`Study`](crate::handler_check::Study) as JSON.
    /// A text that nests too deep for its reader ends the host.
    Study { contract: Contract },
}

/// What a run tells the daemon, in order.
#[derive(Debug)]
pub enum JobEvent {
    /// Log lines, and calls of one tick, in the order in which they were made.
    Batch {
        logs: Vec<LogLine>,
        calls: Vec<CtxCall>,
        /// Set when the tick made more than one call: all calls of one tick carry the same number, also when they
        /// come in several batches (because of [`Limits::in_flight`] or their size).
        tick: Option<u32>,
    },
    /// Calls that an automation's handler made and that were never sent on, because it settled (or failed) first: to be
    /// recorded as cancelled, never to be made or answered. Only more of these and the end come after it. `tick` as in a batch:
    /// calls of one tick may come in several (because of their size), and some of its calls may have been sent before.
    /// At most [`wire::MAX_ABANDONED`] in one run; what a handler made beyond that is not told.
    Abandoned { calls: Vec<CtxCall>, tick: Option<u32> },
    /// Always exactly one, and the last.
    Ended(JobEnd),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobEnd {
    pub outcome: Outcome,
    pub cpu_ms: u64,
    /// The largest resident memory of the host seen during the run, where the system tells it.
    pub peak_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// An automation's handler settled well.
    Settled { summary: Option<String>, output_json: Option<String> },
    /// A query or action returned; `None` is `undefined`.
    Returned { value_json: Option<String> },
    Failed {
        code: ErrorCode,
        /// The message; then, each on its own line, the stack: `    at work (app/auto/handler.js:3:9)`.
        message: String,
        /// `.code` of the thrown error, when it is a string.
        error_code: Option<String>,
    },
    /// Stopped because [`JobControl::abort`] or [`JobControl::kill`] asked for it.
    Aborted,
}

impl Outcome {
    pub(crate) fn failed(code: ErrorCode, message: impl Into<String>) -> Self {
        Outcome::Failed { code, message: message.into(), error_code: None }
    }
}
