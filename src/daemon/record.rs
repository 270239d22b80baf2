//! What a run leaves in its ledger while it goes on: its calls, as nodes, and its log. Written in order, within the
//! run's limits, and told live when it stands there.
//!
//! Invariants, and what a mistake costs:
//! - A request enters the ledger's queue when a method here is called. So whatever reached the run before its end has
//!   its row: a call that was never answered is closed with the run, and is not forgotten.
//! - Events are told in the order in which they were recorded, each only after its commit. A listener that reads the
//!   ledger when it has lost some (see `gateway::events`) finds there whatever was told.
//! - The limits are those of one run, whoever writes for it: its handler, and the queries and actions that it calls.

use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{mpsc, oneshot};

use crate::config::Limits;
use crate::daemon::bus::{Bus, RunHappening};
use crate::fire::{CtxCall, CtxCallBody, EpochMs, Handle, LogLevel, LogLine, NodeKind, RunId};
use crate::ledger::{LedgerError, Ledgers, NewNode, NodeClose};

/// Comes when what was recorded is committed, or is not.
pub type Written = Shared<BoxFuture<'static, Result<(), LedgerError>>>;

/// The run made more nodes than it may.
#[derive(Debug)]
pub struct TooManyNodes;

/// Calls that were recorded.
pub struct Opened {
    /// For each call, in order; `None` for calls that leave no row.
    pub ordinals: Vec<Option<u32>>,
    /// No call may leave the process before.
    pub written: Written,
}

/// See the module text.
pub struct Record {
    ledgers: Ledgers,
    run_id: RunId,
    handle: Handle,
    max_nodes: u32,
    log_limits: LogLimits,
    so_far: Mutex<SoFar>,
    untold: mpsc::UnboundedSender<Untold>,
}

struct LogLimits {
    lines: u32,
    bytes: u64,
    /// Stands in place of what was dropped; a host that has cut its job's lines writes the same one.
    marker: String,
}

#[derive(Default)]
struct SoFar {
    next_ordinal: u32,
    next_seq: u32,
    log_bytes: u64,
    log_cut: bool,
}

/// Events that wait for their commit.
struct Untold {
    written: BoxFuture<'static, Result<(), LedgerError>>,
    what: &'static str,
    events: Vec<RunHappening>,
}

impl Record {
    /// Needs a tokio runtime.
    pub fn begin(ledgers: Ledgers, bus: Bus, limits: &Limits, run_id: RunId, handle: Handle) -> Self {
        let (untold, queue) = mpsc::unbounded_channel();
        tokio::spawn(tell(bus, run_id.clone(), handle.clone(), queue));
        let log_limits =
            LogLimits { lines: limits.log_lines, bytes: limits.log_bytes, marker: limits.for_hosts().log_marker() };
        Self { ledgers, run_id, handle, max_nodes: limits.nodes, log_limits, so_far: Mutex::default(), untold }
    }

    /// Records the calls of one tick that are nodes. `tick` is what they share, when there are several.
    ///
    /// # Errors
    /// [`TooManyNodes`] when the limit was reached on the way: then the calls up to it are recorded, and none is to be
    /// made.
    pub fn open_nodes(&self, calls: &[CtxCall], tick: Option<u32>, at: EpochMs) -> Result<Opened, TooManyNodes> {
        let mut so_far = self.so_far();
        let mut rows = Vec::new();
        let mut too_many = false;
        let mut ordinals = Vec::with_capacity(calls.len());
        for call in calls {
            let Some((kind, name)) = node_of(&call.body) else {
                ordinals.push(None);
                continue;
            };
            if so_far.next_ordinal >= self.max_nodes {
                too_many = true;
                break;
            }
            let ordinal = so_far.next_ordinal;
            so_far.next_ordinal += 1;
            ordinals.push(Some(ordinal));
            rows.push(NewNode {
                ordinal,
                batch_id: tick,
                kind,
                name: name.to_owned(),
                args_json: args_of(&call.body),
                child_run_id: None,
                started_at: at,
            });
        }
        let written = if rows.is_empty() { std::future::ready(Ok(())).boxed().shared() } else { self.open(rows, at) };
        if too_many { Err(TooManyNodes) } else { Ok(Opened { ordinals, written }) }
    }

    fn open(&self, rows: Vec<NewNode>, at: EpochMs) -> Written {
        let opened = |row: &NewNode| RunHappening::NodeOpened {
            ordinal: row.ordinal,
            batch_id: row.batch_id,
            kind: row.kind,
            name: row.name.clone(),
            at,
        };
        let events = rows.iter().map(opened).collect();
        let written = self.ledgers.open_nodes(&self.handle.app, &self.run_id, rows).boxed().shared();
        self.tell_when(written.clone(), "calls could not be recorded", events);
        written
    }

    /// Records the end of nodes, together. The run's own end closes what is left open.
    pub fn close_nodes(&self, rows: Vec<NodeClose>, at: EpochMs) {
        if rows.is_empty() {
            return;
        }
        let closed = |row: &NodeClose| RunHappening::NodeClosed {
            ordinal: row.ordinal,
            ok: row.ok,
            error: row.error.clone(),
            at,
        };
        let events = rows.iter().map(closed).collect();
        let written = self.ledgers.close_nodes(&self.handle.app, &self.run_id, rows);
        self.tell_when(written, "nodes could not be closed", events);
    }

    /// Appends to the run's log what its limits allow. All that is beyond them is dropped, with one line that says so.
    pub fn append_log(&self, lines: Vec<LogLine>) {
        let mut so_far = self.so_far();
        let first_seq = so_far.next_seq;
        let lines = so_far.fitting(lines, &self.log_limits);
        if lines.is_empty() {
            return;
        }
        let logged = |(seq, line): (u32, &LogLine)| RunHappening::Log {
            seq,
            at: line.at,
            level: line.level,
            message: line.message.clone(),
            fields: line.fields_json.as_deref().and_then(|text| serde_json::from_str(text).ok()),
        };
        let events = (first_seq..).zip(&lines).map(logged).collect();
        // Still under the lock: the numbers are in the order of the queue.
        let written = self.ledgers.append_logs(&self.handle.app, &self.run_id, first_seq, lines);
        self.tell_when(written, "log lines could not be written", events);
    }

    /// Returns when all that was recorded before is written (or could not be) and told.
    pub async fn told(&self) {
        let (reached, rest) = oneshot::channel();
        let written = async move {
            // Whoever asked may have gone.
            let _ = reached.send(());
            Ok(())
        };
        self.tell_when(written, "", Vec::new());
        // An error says that the task is gone, with the runtime.
        let _ = rest.await;
    }

    fn tell_when(
        &self,
        written: impl Future<Output = Result<(), LedgerError>> + Send + 'static,
        what: &'static str,
        events: Vec<RunHappening>,
    ) {
        // Fails only when the runtime is ending, and nobody listens.
        let _ = self.untold.send(Untold { written: written.boxed(), what, events });
    }

    fn so_far(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SoFar {
    /// What of these lines is to be written, and counts it.
    fn fitting(&mut self, lines: Vec<LogLine>, limits: &LogLimits) -> Vec<LogLine> {
        let mut kept = Vec::new();
        for line in lines {
            if self.log_cut {
                break;
            }
            let size = (line.message.len() + line.fields_json.as_ref().map_or(0, String::len)) as u64;
            self.log_bytes = self.log_bytes.saturating_add(size);
            self.log_cut = line.message == limits.marker;
            let line = if !self.log_cut && (self.next_seq >= limits.lines || self.log_bytes > limits.bytes) {
                self.log_cut = true;
                LogLine { at: line.at, level: LogLevel::Warn, message: limits.marker.clone(), fields_json: None }
            } else {
                line
            };
            self.next_seq += 1;
            kept.push(line);
        }
        kept
    }
}

/// Tells one after the other, each when its commit is done. Ends with the record.
async fn tell(bus: Bus, run_id: RunId, handle: Handle, mut queue: mpsc::UnboundedReceiver<Untold>) {
    while let Some(Untold { written, what, events }) = queue.recv().await {
        match written.await {
            Ok(()) => events.into_iter().for_each(|event| bus.tell(&run_id, &handle, event)),
            Err(error) => tracing::warn!(%handle, run = %run_id, %error, "{what}"),
        }
    }
}

/// Kind and name of the node that a call is; `None` for calls that leave no row.
fn node_of(body: &CtxCallBody) -> Option<(NodeKind, &str)> {
    match body {
        CtxCallBody::Tool { name, .. } => Some((NodeKind::Tool, name)),
        CtxCallBody::Agent { .. } => Some((NodeKind::Agent, "agent")),
        CtxCallBody::Invoke { handle, .. } => Some((NodeKind::Invoke, handle)),
        CtxCallBody::StateGet { .. }
        | CtxCallBody::StateSet { .. }
        | CtxCallBody::StateDelete { .. }
        | CtxCallBody::RunsList { .. }
        | CtxCallBody::Db { .. } => None,
    }
}

fn args_of(body: &CtxCallBody) -> String {
    match body {
        CtxCallBody::Tool { args_json, .. } | CtxCallBody::Agent { args_json } => args_json.clone(),
        CtxCallBody::Invoke { input_json, .. } => {
            format!("{{\"input\":{}}}", input_json.as_deref().unwrap_or("null"))
        }
        _ => "{}".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::manifest::HistoryKeep;
    use crate::fire::{AppId, RunStatus};
    use crate::ledger::Reader;
    use crate::ledger::faults::{Point, SQLITE_FULL};
    use crate::ledger::tests::{Root, T0, end, manual, root};

    /// A run that is running, and its record.
    struct Bench {
        root: Root,
        app: AppId,
        bus: Bus,
        run: RunId,
        record: Record,
    }

    impl Bench {
        async fn new(change: impl FnOnce(&mut Limits)) -> Self {
            let root = root();
            let app = root.app("shop");
            let row = manual(&app, T0);
            let handle = row.handle();
            let run = root.opened(&app, row).await;
            let mut limits = Limits::default();
            change(&mut limits);
            let bus = Bus::default();
            let record = Record::begin(root.ledgers.clone(), bus.clone(), &limits, run.clone(), handle);
            Self { root, app, bus, run, record }
        }

        fn reader(&self) -> Reader {
            self.root.reader(&self.app)
        }

        fn logged(&self) -> Vec<String> {
            self.reader().logs(&self.run, None, 1000).unwrap().into_iter().map(|line| line.message).collect()
        }
    }

    fn tool(id: u32) -> CtxCall {
        let body = CtxCallBody::Tool { name: format!("t{id}"), args_json: "{}".to_owned() };
        CtxCall { id, at: 0, body }
    }

    fn line(message: &str) -> LogLine {
        LogLine { at: 5, level: LogLevel::Info, message: message.to_owned(), fields_json: None }
    }

    #[tokio::test]
    async fn calls_that_are_never_made_have_their_rows_up_to_the_limit() {
        let bench = Bench::new(|limits| limits.nodes = 3).await;
        let state = CtxCall { id: 9, at: 0, body: CtxCallBody::StateGet { key: "k".to_owned() } };
        let opened = bench.record.open_nodes(&[tool(0), state], None, 5).unwrap();
        assert_eq!(opened.ordinals, [Some(0), None]);
        // Nobody awaits `written`: the rows are in the queue all the same.
        assert!(bench.record.open_nodes(&[tool(1), tool(2), tool(3), tool(4)], Some(7), 6).is_err());
        assert!(bench.record.open_nodes(&[tool(5)], None, 7).is_err());
        let end = end(&bench.run, T0 + 9, RunStatus::Ok, HistoryKeep::All);
        bench.root.ledgers.close_run(&bench.app, end).await.unwrap();
        let rows = bench.reader().nodes(&bench.run).unwrap();
        let rows: Vec<_> =
            rows.iter().map(|n| (n.ordinal, n.name.as_str(), n.batch_id, n.ok, n.ended_at.is_some())).collect();
        assert_eq!(
            rows,
            [
                (0, "t0", None, Some(false), true),
                (1, "t1", Some(7), Some(false), true),
                (2, "t2", Some(7), Some(false), true)
            ]
        );
    }

    #[tokio::test]
    async fn nothing_is_told_that_does_not_stand_in_the_ledger() {
        let bench = Bench::new(|_| {}).await;
        let mut told = bench.bus.runs();
        bench.root.ledgers.faults().strike(&bench.app, Point::Commit, SQLITE_FULL, 1);
        let lost = bench.record.open_nodes(&[tool(0)], None, 5).unwrap();
        assert!(lost.written.await.is_err());
        bench.root.ledgers.faults().strike(&bench.app, Point::Commit, SQLITE_FULL, 1);
        bench.record.append_log(vec![line("lost")]);
        bench.record.told().await;
        assert!(told.try_recv().is_err(), "neither was written");

        bench.record.append_log(vec![line("one"), line("two")]);
        bench.record.open_nodes(&[tool(1)], None, 6).unwrap();
        let close = NodeClose {
            ordinal: 1,
            ok: true,
            result_json: None,
            error: None,
            child_run_id: None,
            usage_json: None,
            ended_at: 7,
        };
        bench.record.close_nodes(vec![close], 7);
        bench.record.append_log(vec![line("three")]);
        bench.record.told().await;
        let mut seen = Vec::new();
        while let Ok(event) = told.try_recv() {
            seen.push(match &event.what {
                RunHappening::Log { seq, message, .. } => format!("{seq} {message}"),
                RunHappening::NodeOpened { ordinal, .. } => format!("opened {ordinal}"),
                RunHappening::NodeClosed { ordinal, .. } => format!("closed {ordinal}"),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(seen, ["1 one", "2 two", "opened 1", "closed 1", "3 three"]);
        assert_eq!(bench.logged(), ["one", "two", "three"]);
    }

    #[tokio::test]
    async fn a_log_has_its_limits_and_one_marker() {
        let marker = |lines: u32, bytes: u64| format!("log truncated: a run may log {lines} lines and {bytes} bytes");
        let long = "x".repeat(60);
        for (what, lines, bytes, batches, kept) in [
            ("lines", 3, 1000, vec![vec!["1", "2"], vec!["3", "4", "5"], vec!["6"]], vec!["1", "2", "3", "!"]),
            ("just enough", 3, 1000, vec![vec!["1", "2", "3"]], vec!["1", "2", "3"]),
            ("bytes", 100, 100, vec![vec![&*long], vec![&*long, "a"], vec!["b"]], vec![&*long, "!"]),
            ("the host has cut first", 100, 1000, vec![vec!["1", "!"], vec!["2"]], vec!["1", "!"]),
            ("both cut", 2, 1000, vec![vec!["1", "2", "!"], vec!["3"]], vec!["1", "2", "!"]),
        ] {
            let bench = Bench::new(|limits| (limits.log_lines, limits.log_bytes) = (lines, bytes)).await;
            let real = |word: &str| if word == "!" { marker(lines, bytes) } else { word.to_owned() };
            for batch in batches {
                bench.record.append_log(batch.into_iter().map(|word| line(&real(word))).collect());
            }
            bench.record.told().await;
            assert_eq!(bench.logged(), kept.into_iter().map(real).collect::<Vec<_>>(), "{what}");
        }
    }
}
