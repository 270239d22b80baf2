//! A run's events as a stream: first what the ledger holds, then what happens, each once, none missing.
//!
//! The listener was there before the ledger was read, so nothing falls between; what was both read and heard is told
//! once, because each event has its place: a log line its number, a node its ordinal, a run its one end. Each carries as its
//! id what was told up to and with it ([`Told`]), so that a listener that was cut off gets exactly the rest.
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
mod tests {
    use super::*;
    use crate::core::manifest::HistoryKeep;
    use crate::daemon::Bus;
    use crate::fire::{AppId, LogLevel, LogLine, RunStatus};
    use crate::ledger::tests::{Root, T0, end, manual, node, node_end, root};
    use crate::ledger::{NewNode, NodeClose};

    struct Bench {
        root: Root,
        app: AppId,
        bus: Bus,
        run: RunId,
        handle: Handle,
    }

    impl Bench {
        async fn new() -> Self {
            let root = root();
            let app = root.app("shop");
            let row = manual(&app, T0);
            let handle = row.handle();
            let run = root.opened(&app, row).await;
            Self { root, app, bus: Bus::default(), run, handle }
        }

        fn follow(&self) -> Follow {
            self.follow_after(Told::default())
        }

        fn follow_after(&self, told: Told) -> Follow {
            let live = self.bus.runs();
            let reader = self.root.reader(&self.app);
            let row = reader.run(&self.run).unwrap().unwrap();
            Follow::new(Past::read(&reader, row, told).unwrap(), live)
        }

        /// Lines and then nodes, one of each per millisecond; the nodes that `closed` names end 10 ms later.
        async fn write(&self, numbers: std::ops::Range<u32>, closed: impl Fn(u32) -> bool) {
            let ledgers = &self.root.ledgers;
            let at = |n: u32| T0 + i64::from(n);
            let line = |n: u32| LogLine {
                at: at(n),
                level: LogLevel::Info,
                message: n.to_string(),
                fields_json: Some("{\"a\":1}".to_owned()),
            };
            ledgers
                .append_logs(&self.app, &self.run, numbers.start, numbers.clone().map(line).collect())
                .await
                .unwrap();
            let opened = |n: u32| NewNode { started_at: at(n), ..node(n) };
            ledgers.open_nodes(&self.app, &self.run, numbers.clone().map(opened).collect()).await.unwrap();
            let close = |n: u32| NodeClose { ended_at: at(n) + 10, ..node_end(n) };
            let closes = numbers.filter(|&n| closed(n)).map(close).collect();
            ledgers.close_nodes(&self.app, &self.run, closes).await.unwrap();
        }

        async fn end(&self) {
            let end = end(&self.run, T0 + 1_000_000, RunStatus::Ok, HistoryKeep::All);
            self.root.ledgers.close_run(&self.app, end).await.unwrap();
        }

        fn tell(&self, what: RunHappening) {
            self.bus.tell(&self.run, &self.handle, what);
        }

        fn tell_end(&self) {
            let (at, status) = (T0 + 1_000_000, RunStatus::Ok);
            self.tell(RunHappening::Ended { status, at, summary: None, error: None, error_code: None });
        }

        fn tell_line(&self, seq: u32) {
            let (at, level, message) = (T0 + i64::from(seq), LogLevel::Info, seq.to_string());
            self.tell(RunHappening::Log { seq, at, level, message, fields: None });
        }
    }

    /// An event's place within its run; no two events of a run share one.
    fn place(what: &RunHappening) -> (u8, u32) {
        match what {
            RunHappening::Opened { .. } => (0, 0),
            RunHappening::Started { .. } => (1, 0),
            RunHappening::Log { seq, .. } => (2, *seq),
            RunHappening::NodeOpened { ordinal, .. } => (3, *ordinal),
            RunHappening::NodeClosed { ordinal, .. } => (4, *ordinal),
            RunHappening::Ended { .. } => (5, 0),
        }
    }

    async fn all(mut follow: Follow) -> Vec<(u8, u32)> {
        let mut seen = Vec::new();
        while let Some(event) = follow.next().await {
            seen.push(place(&event.what));
        }
        seen
    }

    /// Each once, none missing, lines and nodes in their order, a node's end after its beginning, the run's end last.
    fn check_whole(seen: &[(u8, u32)], count: u32) {
        let of = |kind: u8| seen.iter().filter(|(k, _)| *k == kind).map(|(_, n)| *n).collect::<Vec<_>>();
        let numbers: Vec<u32> = (0..count).collect();
        assert_eq!((of(2), of(3)), (numbers.clone(), numbers.clone()));
        let mut closed = of(4);
        closed.sort_unstable();
        assert_eq!(closed, numbers);
        let at = |place: (u8, u32)| seen.iter().position(|p| *p == place);
        assert!(numbers.iter().all(|&n| at((3, n)) < at((4, n))));
        assert_eq!((&seen[..2], seen.last()), (&[(0, 0), (1, 0)][..], Some(&(5, 0))));
        assert_eq!(seen.len(), 3 + 3 * numbers.len());
    }

    #[tokio::test]
    async fn a_long_past_is_told_page_by_page_in_order() {
        let bench = Bench::new().await;
        let count = u32::try_from(2 * PAGE + 7).unwrap();
        bench.write(0..count, |n| n % 5 != 0).await;
        bench.end().await;
        let follow = bench.follow();
        assert!(follow.ready.len() < 4 * PAGE, "only a page is held");
        let seen = all(follow).await;
        check_whole(&seen, count);
        // Merged by time: the first node ends before the twentieth line.
        let at = |place: (u8, u32)| seen.iter().position(|p| *p == place);
        assert!(at((4, 1)) < at((2, 20)));
    }

    #[tokio::test]
    async fn who_lost_events_reads_the_ledger_and_goes_on() {
        let bench = Bench::new().await;
        bench.write(0..3, |_| true).await;
        let mut follow = bench.follow();
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(place(&follow.next().await.unwrap().what));
        }
        bench.write(3..6, |n| n != 4).await;
        // So many that the receiver loses the oldest.
        let other = RunId::at(7);
        for seq in 0..5000 {
            let (at, level, message) = (T0, LogLevel::Info, String::new());
            bench.bus.tell(&other, &bench.handle, RunHappening::Log { seq, at, level, message, fields: None });
        }
        bench.tell_line(5);
        bench.write(6..7, |_| false).await;
        bench.tell_line(6);
        bench.end().await;
        bench.tell_end();
        seen.extend(all(follow).await);
        check_whole(&seen, 7);
    }

    #[tokio::test]
    async fn what_was_closed_with_the_run_is_told_before_its_end() {
        let bench = Bench::new().await;
        let follow = bench.follow();
        bench.write(0..4, |n| n == 1).await;
        // Live, a listener hears of one line, and of no node.
        bench.tell_line(0);
        bench.end().await;
        bench.tell_end();
        check_whole(&all(follow).await, 4);
    }

    #[tokio::test]
    async fn who_comes_back_gets_exactly_the_rest() {
        let bench = Bench::new().await;
        bench.write(0..9, |n| n % 3 != 0).await;
        bench.end().await;
        let mut follow = bench.follow();
        let mut whole = Vec::new();
        let mut ids = vec![Told::default().to_string()];
        while let Some(event) = follow.next().await {
            whole.push(place(&event.what));
            ids.push(follow.told.to_string());
        }
        check_whole(&whole, 9);
        for (count, id) in ids.iter().enumerate() {
            let rest = all(bench.follow_after(id.parse().unwrap())).await;
            assert_eq!(rest, whole[count..], "after {count} events, with {id}");
        }
    }

    #[tokio::test]
    async fn who_comes_back_during_a_run_gets_exactly_the_rest() {
        let bench = Bench::new().await;
        bench.write(0..4, |n| n == 2).await;
        let mut follow = bench.follow();
        let mut seen = Vec::new();
        for _ in 0..7 {
            seen.push(place(&follow.next().await.unwrap().what));
        }
        let resumed = bench.follow_after(follow.told);
        bench.write(4..6, |n| n == 5).await;
        bench.tell_line(4);
        bench.end().await;
        bench.tell_end();
        seen.extend(all(resumed).await);
        check_whole(&seen, 6);
    }

    #[tokio::test]
    async fn a_run_that_retention_has_dropped_ends_its_stream() {
        for heard in [true, false] {
            let bench = Bench::new().await;
            let follow = bench.follow();
            for seq in 0..5000 {
                bench.tell_line(seq);
            }
            bench.end().await;
            bench.root.client(&bench.app).execute_batch("DELETE FROM runs").unwrap();
            if heard {
                // The events before were lost; of this one the listener knows.
                let live = bench.bus.runs();
                let mut follow = Follow { live, ..follow };
                bench.tell_end();
                follow.ready.clear();
                assert_eq!(all(follow).await, [(5, 0)]);
            } else {
                assert_eq!(all(follow).await, [(0, 0), (1, 0)]);
            }
        }
    }
}
