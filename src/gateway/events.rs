//! A run's events as a stream: first what the ledger holds, then what happens, each once, none missing.
//!
//! The listener was there before the ledger was read, so nothing falls between; what was both read and heard is told
//! once, because each event has its place: a log line its number, a node its ordinal, a run its one end. Each carries
//! as its id what was told up to and with it ([`Told`]), so that a listener that was cut off gets exactly the rest.
//!
//! Every event stands in the ledger before it is heard. So a listener that was too slow reads the ledger again and goes
//! on. It does so too when it hears of the end, before it tells of it: the nodes that were open then were closed with
//! the run, and nobody told that live. (What retention has dropped by then is not told.)

mod told;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::{self, Stream};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::daemon::{RunEvent, RunHappening};
use crate::fire::{EpochMs, ErrorCode, Handle, RunId};
use crate::ledger::{LedgerError, LogRow, NodeOutline, Reader, RunRow};

pub use self::told::Told;

/// Nodes and log lines that are read at once, each: what a stream holds in memory, however long the run was.
const PAGE: usize = 256;

/// What a ledger tells of one run, in the order in which it happened: the first page of it.
pub struct Past {
    handle: Handle,
    page: Vec<RunHappening>,
    rest: Replay,
    told: Told,
}

impl Past {
    /// Without what was `told` already.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn read(reader: &Reader, row: RunRow, told: Told) -> Result<Self, LedgerError> {
        let handle = Handle::new(row.app_id.clone(), row.automation_id.clone());
        let mut rest = Replay::new(reader.path().to_owned(), row.run_id.clone(), &told);
        rest.begin(row);
        let page = rest.page(reader)?;
        Ok(Self { handle, page, rest, told })
    }
}

/// The past, then the present, until the run's end; each event with what has been told with it.
pub fn stream(past: Past, live: broadcast::Receiver<Arc<RunEvent>>) -> impl Stream<Item = (Told, RunEvent)> + Send {
    stream::unfold(Follow::new(past, live), |mut follow| async move {
        let event = follow.next().await?;
        Some(((follow.told.clone(), event), follow))
    })
}

/// One listener to one run.
struct Follow {
    run_id: RunId,
    handle: Handle,
    ledger: PathBuf,
    live: broadcast::Receiver<Arc<RunEvent>>,
    /// Next to be told, as far as they are not told yet.
    ready: VecDeque<RunHappening>,
    /// The ledger is being read, and goes before what is heard.
    replay: Option<Replay>,
    /// The end, as it was heard: told when the replay is over, should the row be gone by then.
    heard_end: Option<RunHappening>,
    told: Told,
    over: bool,
}

impl Follow {
    fn new(past: Past, live: broadcast::Receiver<Arc<RunEvent>>) -> Self {
        let Past { handle, page, rest, told } = past;
        Self {
            run_id: rest.run_id.clone(),
            handle,
            ledger: rest.ledger.clone(),
            live,
            ready: page.into(),
            replay: (!rest.is_done).then_some(rest),
            heard_end: None,
            over: told.is_all(),
            told,
        }
    }

    async fn next(&mut self) -> Option<RunEvent> {
        loop {
            if let Some(what) = self.ready.pop_front() {
                if !self.told.take(&what) {
                    continue;
                }
                self.over |= matches!(what, RunHappening::Ended { .. });
                return Some(RunEvent { run_id: self.run_id.clone(), handle: self.handle.clone(), what });
            }
            if self.over {
                return None;
            }
            if let Some(replay) = self.replay.take() {
                self.turn_page(replay).await;
                continue;
            }
            match self.live.recv().await {
                Ok(event) if event.run_id != self.run_id => {}
                Ok(event) if matches!(event.what, RunHappening::Ended { .. }) => {
                    self.heard_end = Some(event.what.clone());
                    self.read_again();
                }
                Ok(event) => self.ready.push_back(event.what.clone()),
                Err(RecvError::Lagged(_)) => self.read_again(),
                // The daemon is gone.
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn read_again(&mut self) {
        self.replay = Some(Replay::new(self.ledger.clone(), self.run_id.clone(), &self.told));
    }

    async fn turn_page(&mut self, mut replay: Replay) {
        let read = tokio::task::spawn_blocking(move || {
            let page = replay.next_page()?;
            Ok::<_, LedgerError>(page.map(|page| (page, replay)))
        });
        let page = match read.await {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => {
                tracing::warn!(run = %self.run_id, %error, "a stream of events cannot read its run");
                None
            }
            Err(error) => {
                tracing::error!(%error, "reading a run failed");
                None
            }
        };
        let goes_on = match page {
            Some((page, replay)) => {
                self.ready.extend(page);
                self.replay = (!replay.is_done).then_some(replay);
                true
            }
            None => false,
        };
        if self.replay.is_none() {
            self.ready.extend(self.heard_end.take());
            // The row is gone, and the run with it: a client that asks again is told so.
            self.over |= !goes_on && self.ready.is_empty();
        }
    }
}

/// Reads a run's events from its ledger page by page. Nodes and log lines are merged by their times, and keep their own
/// order whatever the clock did.
struct Replay {
    ledger: PathBuf,
    run_id: RunId,
    begun: bool,
    is_done: bool,
    head: Vec<RunHappening>,
    end: Option<RunHappening>,
    nodes: Pages<NodeOutline>,
    /// The ends of nodes whose beginning was told.
    closes: BTreeMap<(EpochMs, u32), RunHappening>,
    logs: Pages<LogRow>,
}

/// Rows that were read and not told, and where the next ones begin.
struct Pages<T> {
    rows: VecDeque<T>,
    after: Option<u32>,
    more: bool,
}

impl<T> Pages<T> {
    fn after(after: Option<u32>) -> Self {
        Self { rows: VecDeque::new(), after, more: true }
    }

    fn refill(
        &mut self,
        number: impl Fn(&T) -> u32,
        read: impl FnOnce(Option<u32>, usize) -> Result<Vec<T>, LedgerError>,
    ) -> Result<(), LedgerError> {
        if self.rows.is_empty() && self.more {
            let rows = read(self.after, PAGE)?;
            self.more = rows.len() == PAGE;
            self.after = rows.last().map(number).or(self.after);
            self.rows = rows.into();
        }
        Ok(())
    }

    /// The next row, if there is one, stands on a page that is yet to be read.
    fn is_used_up(&self) -> bool {
        self.rows.is_empty() && self.more
    }
}

impl Replay {
    /// Of what was told, no more is read again than may be needed.
    fn new(ledger: PathBuf, run_id: RunId, told: &Told) -> Self {
        Self {
            ledger,
            run_id,
            begun: false,
            is_done: false,
            head: Vec::new(),
            end: None,
            nodes: Pages::after(told.nodes_done()),
            closes: BTreeMap::new(),
            logs: Pages::after(told.logs_done()),
        }
    }

    /// Takes the run's own row. Nothing is written to a run that has ended: when this row shows the end, all that is
    /// read after it is whole.
    fn begin(&mut self, row: RunRow) {
        self.begun = true;
        self.head.push(RunHappening::Opened { status: row.status, origin: row.origin, at: row.queued_at });
        self.head.extend(row.started_at.map(|at| RunHappening::Started { at }));
        self.end = row.ended_at.filter(|_| !row.status.is_open()).map(|at| RunHappening::Ended {
            status: row.status,
            at,
            summary: row.summary,
            error: row.error,
            error_code: row.error_code.as_deref().and_then(ErrorCode::parse),
        });
    }

    /// `None` when the run is not there any more. Blocks.
    fn next_page(&mut self) -> Result<Option<Vec<RunHappening>>, LedgerError> {
        let Some(reader) = Reader::open(&self.ledger)? else { return Ok(None) };
        if !self.begun {
            let Some(row) = reader.run(&self.run_id)? else { return Ok(None) };
            self.begin(row);
        }
        self.page(&reader).map(Some)
    }

    fn page(&mut self, reader: &Reader) -> Result<Vec<RunHappening>, LedgerError> {
        self.nodes.refill(|node| node.ordinal, |after, limit| reader.node_outlines(&self.run_id, after, limit))?;
        self.logs.refill(|log| log.seq, |after, limit| reader.logs(&self.run_id, after, limit))?;
        let mut page = std::mem::take(&mut self.head);
        while !self.nodes.is_used_up() && !self.logs.is_used_up() {
            let Some(what) = self.earliest() else {
                self.is_done = true;
                page.extend(self.end.take());
                break;
            };
            page.push(what);
        }
        Ok(page)
    }

    /// Takes the earliest of what was read.
    fn earliest(&mut self) -> Option<RunHappening> {
        let log = self.logs.rows.front().map(|log| (log.at, 0));
        let node = self.nodes.rows.front().map(|node| (node.started_at, 1));
        let close = self.closes.first_key_value().map(|(&(at, _), _)| (at, 2));
        match log.into_iter().chain(node).chain(close).min()? {
            (_, 0) => self.logs.rows.pop_front().map(logged),
            (_, 1) => self.nodes.rows.pop_front().map(|node| self.open(node)),
            _ => self.closes.pop_first().map(|(_, what)| what),
        }
    }

    fn open(&mut self, node: NodeOutline) -> RunHappening {
        let NodeOutline { ordinal, batch_id, kind, name, ok, error, started_at, ended_at } = node;
        if let (Some(ok), Some(at)) = (ok, ended_at) {
            self.closes.insert((at, ordinal), RunHappening::NodeClosed { ordinal, ok, error, at });
        }
        RunHappening::NodeOpened { ordinal, batch_id, kind, name, at: started_at }
    }
}

fn logged(log: LogRow) -> RunHappening {
    RunHappening::Log {
        seq: log.seq,
        at: log.at,
        level: log.level,
        message: log.message,
        fields: log.fields.and_then(|text| serde_json::from_str(text.as_str()).ok()),
    }
}

#[cfg(test)]
mod tests;
