//! The ledger: every run, node, log line and state value of an app, in that app's own `runtime.sqlite`.
//!
//! Words: a *request* is one call of [`Ledgers`]; a *group* is the requests that share a transaction; an *open* ledger
//! has a writer thread with the only connection that writes. Reading is [`Reader`]'s, on connections of its own.
//!
//! Invariants, and what a mistake would cost:
//! - A request is answered after its commit and not before. Otherwise a handler could act, or a webhook be
//!   acknowledged, for a run that a crash then forgets.
//! - A request enters its app's queue when the method is called, not when the returned future is first polled, and the
//!   queue is first in, first out. A run's log therefore precedes its end.
//! - A cron instant is opened once, whatever retention has dropped: each trigger has a watermark of its own.
//! - A status changes only along `RunStatus::TRANSITIONS`, a node is closed once, and nothing is written to a run that
//!   has ended. Anything else is an error and leaves the rows as they were.
//! - A ledger that fails, fails alone. One that is damaged is moved aside, never deleted; one that is newer, foreign,
//!   or no regular file is left as it is.
//! - Open ledgers, and so threads, descriptors and page caches, are bounded; the others are opened when they are asked
//!   for.
//!
//! Folders are not made here: a ledger whose folder is missing cannot be written, so that an app that was deleted
//! while a run was ending does not come back as an empty folder.

mod checkpoint;
mod deliveries;
mod error;
#[doc(hidden)]
pub mod faults;
mod fleet;
mod health;
mod ops;
mod quarantine;
mod read;
mod recovery;
mod retention;
mod rows;
mod schema;
mod slice;
mod state;
mod stored;
#[cfg(test)]
pub(crate) mod tests;
mod usage;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::core::manifest::HistoryKeep;
use crate::fire::{AppId, AutomationId, EpochMs, LogLine, RunId};

pub use deliveries::{Delivery, fingerprint, run_now_slug};
pub use error::{Fault, LedgerError, StateScope};
pub use health::{check_writable, problem, without_host_paths};
pub use ops::{Opened, Watermark};
pub use read::{Counts, History, Reader, RecentRun, RunQuery};
pub use recovery::Recovered;
pub use rows::{Close, JsonText, LogRow, NewNode, NewRun, NodeClose, NodeOutline, NodeRow, RunRow};
pub use stored::{FULL_VALUE_BYTES, is_truncated};
pub use usage::{NEWEST, NewestUsage, Quantiles, Tally};

use fleet::Fleet;
use ops::{Job, Op, Reply};

/// The ledger's file name within its folder.
pub const FILE: &str = "runtime.sqlite";

/// What a commit outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process.
    Process,
    /// Loss of power.
    Synced,
}

/// How the ledgers of one root are kept.
#[derive(Clone)]
pub struct LedgerConfig {
    /// Where an app's ledger is. Called when it is opened, so it may change its mind.
    pub path_of: Arc<dyn Fn(&AppId) -> PathBuf + Send + Sync>,
    /// Of every commit; [`Ledgers::open_run`] can ask for more.
    pub durability: Durability,
    /// Ledgers that are open at once, each with one thread and three descriptors.
    pub max_open: usize,
    /// An open ledger that nobody has asked anything for so long is closed.
    pub idle_close: Duration,
    /// Of one `ctx.state` key with its value.
    pub state_key_bytes: u64,
    /// Of all `ctx.state` of one automation.
    pub state_bytes: u64,
    /// For so long a delivery's id is known, ms.
    pub delivery_window_ms: i64,
}

/// Figures since the start, for metrics and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub requests: u64,
    /// Transactions that the requests shared.
    pub groups: u64,
    /// How often a ledger was opened.
    pub opens: u64,
    /// Ledgers that are open now.
    pub open: usize,
}

/// The ledgers of all apps. A cheap handle; all clones are one.
///
/// Every method queues its request at once and returns a future for the answer. Dropping the future does not take the
/// request back. Errors are per app; besides those named, every method may fail as the file does (see
/// [`LedgerError::is_unwritable`]).
#[derive(Clone)]
pub struct Ledgers {
    fleet: Arc<Fleet>,
}

impl Ledgers {
    /// Opens nothing yet.
    pub fn new(config: LedgerConfig) -> Self {
        Self { fleet: Fleet::new(config) }
    }

    /// Writes a row as `queued`, `running` or `skipped`. A cron fire with `scheduled_for` advances its trigger's
    /// watermark in the same transaction; a webhook fire or a "Run now" with a delivery id is known by it from then on.
    ///
    /// # Errors
    /// `IllegalTransition` for another status, or an id that has a row already.
    pub fn open_run(
        &self,
        app: &AppId,
        run: NewRun,
        durability: Durability,
    ) -> impl Future<Output = Result<Opened, LedgerError>> + Send + use<> {
        let answer = self.request(app, Op::OpenRun(Box::new(run)), durability);
        async move {
            match answer.await? {
                Reply::Opened(opened) => Ok(opened),
                _ => Err(LedgerError::WriterGone),
            }
        }
    }

    /// The run that took a delivery, when that was at most the window before `at`.
    pub fn delivery(
        &self,
        app: &AppId,
        slug: &str,
        delivery_id: &str,
        at: EpochMs,
    ) -> impl Future<Output = Result<Option<Delivery>, LedgerError>> + Send + use<> {
        let op = Op::Delivery { slug: slug.to_owned(), delivery_id: delivery_id.to_owned(), at };
        let answer = self.exists(app).then(|| self.request(app, op, Durability::Process));
        async move {
            let Some(answer) = answer else { return Ok(None) };
            match answer.await? {
                Reply::Delivery(found) => Ok(found.map(|found| *found)),
                _ => Err(LedgerError::WriterGone),
            }
        }
    }

    /// `queued` becomes `running`.
    ///
    /// # Errors
    /// `IllegalTransition`, `NoSuchRun`.
    pub fn start_run(
        &self,
        app: &AppId,
        run_id: &RunId,
        at: EpochMs,
        handler_hash: Option<String>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::StartRun { run_id: run_id.clone(), at, handler_hash })
    }

    /// Ends a run: its open nodes are closed as cancelled, the run that follows from it is written, all in one
    /// transaction. Then, after the answer, retention is applied to its automation.
    ///
    /// # Errors
    /// `IllegalTransition` for a run that has ended or a `next` that does not follow from it, `NoSuchRun`.
    pub fn close_run(
        &self,
        app: &AppId,
        close: Arc<Close>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::CloseRun(close))
    }

    /// Writes nodes as open, all or none.
    ///
    /// # Errors
    /// `RunEnded`, `NoSuchRun`, `IllegalTransition` for an ordinal that has a row already.
    pub fn open_nodes(
        &self,
        app: &AppId,
        run_id: &RunId,
        nodes: Vec<NewNode>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::OpenNodes { run_id: run_id.clone(), nodes })
    }

    /// Closes open nodes, all or none.
    ///
    /// # Errors
    /// `RunEnded`, `NoSuchRun`, `IllegalTransition` for a node that is not open.
    pub fn close_nodes(
        &self,
        app: &AppId,
        run_id: &RunId,
        closes: Vec<NodeClose>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::CloseNodes { run_id: run_id.clone(), closes })
    }

    /// Writes log lines under `first_seq`, `first_seq + 1`, …
    ///
    /// # Errors
    /// `RunEnded`, `NoSuchRun`, `IllegalTransition` for a number that has a row already.
    pub fn append_logs(
        &self,
        app: &AppId,
        run_id: &RunId,
        first_seq: u32,
        lines: Vec<LogLine>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::AppendLogs { run_id: run_id.clone(), first_seq, lines })
    }

    /// JSON text; `None` when the key is absent.
    pub fn state_get(
        &self,
        app: &AppId,
        automation: &AutomationId,
        key: &str,
    ) -> impl Future<Output = Result<Option<String>, LedgerError>> + Send + use<> {
        let op = Op::StateGet { automation: automation.clone(), key: key.to_owned() };
        let answer = self.request(app, op, Durability::Process);
        async move {
            match answer.await? {
                Reply::Value(value) => Ok(value),
                _ => Err(LedgerError::WriterGone),
            }
        }
    }

    /// # Errors
    /// `StateLimit`; the old value stays.
    pub fn state_set(
        &self,
        app: &AppId,
        automation: &AutomationId,
        key: &str,
        value_json: String,
        at: EpochMs,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::StateSet { automation: automation.clone(), key: key.to_owned(), value_json, at })
    }

    /// Deleting an absent key is fine.
    pub fn state_delete(
        &self,
        app: &AppId,
        automation: &AutomationId,
        key: &str,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::StateDelete { automation: automation.clone(), key: key.to_owned() })
    }

    /// Arms triggers, with their watermarks where those move forward.
    pub fn raise_watermarks(
        &self,
        app: &AppId,
        marks: Vec<Watermark>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::RaiseWatermarks { marks })
    }

    /// Triggers that are armed no more, by automation and key: [`Self::recover`] leaves their watermarks out.
    pub fn disarm_triggers(
        &self,
        app: &AppId,
        triggers: Vec<(AutomationId, String)>,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        self.command(app, Op::DisarmTriggers { triggers })
    }

    /// What an earlier daemon left. For an app that has no ledger: nothing, and none is made.
    pub fn recover(&self, app: &AppId) -> impl Future<Output = Result<Recovered, LedgerError>> + Send + use<> {
        let answer = self.exists(app).then(|| self.request(app, Op::Recover, Durability::Process));
        async move {
            let Some(answer) = answer else {
                return Ok(Recovered::default());
            };
            match answer.await? {
                Reply::Recovered(found) => Ok(*found),
                _ => Err(LedgerError::WriterGone),
            }
        }
    }

    /// Applies retention to one automation as of `at`; the answer comes when nothing is left to drop.
    pub fn sweep(
        &self,
        app: &AppId,
        automation: &AutomationId,
        keep: HistoryKeep,
        at: EpochMs,
    ) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        let op = Op::Sweep { automation: automation.clone(), keep, at };
        let answer = self.exists(app).then(|| self.command(app, op));
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(()),
            }
        }
    }

    /// Closes one app's ledger once what is queued is done. A later request opens it again.
    pub fn close_app(&self, app: &AppId) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.fleet).close(Some(app))
    }

    /// Closes every ledger once what is queued is done, with its log copied back: for the end of the daemon.
    pub fn close_all(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.fleet).close(None)
    }

    /// Where a corrupt ledger of this app was last moved, since the start.
    pub fn quarantined(&self, app: &AppId) -> Option<PathBuf> {
        self.fleet.quarantined(app)
    }

    /// What kept this app's ledger from being written when that was last tried. `None` after a write that succeeded.
    pub fn obstacle(&self, app: &AppId) -> Option<LedgerError> {
        self.fleet.health.obstacle(app)
    }

    pub fn stats(&self) -> Stats {
        let counters = &self.fleet.counters;
        Stats {
            requests: counters.requests.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            opens: counters.opens.load(Ordering::Relaxed),
            open: self.fleet.open(),
        }
    }

    #[doc(hidden)]
    pub fn faults(&self) -> &faults::Faults {
        &self.fleet.faults
    }

    /// Anything at the path counts: what is no ledger is then refused when it is opened.
    fn exists(&self, app: &AppId) -> bool {
        self.fleet.is_in_use(app) || (self.fleet.config.path_of)(app).symlink_metadata().is_ok()
    }

    fn command(&self, app: &AppId, op: Op) -> impl Future<Output = Result<(), LedgerError>> + Send + use<> {
        let answer = self.request(app, op, Durability::Process);
        async move { answer.await.map(|_| ()) }
    }

    /// Queues now; the future only waits.
    fn request(
        &self,
        app: &AppId,
        op: Op,
        durability: Durability,
    ) -> impl Future<Output = Result<Reply, LedgerError>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        self.fleet.submit(app, Job { op, durability, answer });
        async move { answered.await.unwrap_or(Err(LedgerError::WriterGone)) }
    }
}
