//! Each event once, none missing, whatever breaks off.

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
        ledgers.append_logs(&self.app, &self.run, numbers.start, numbers.clone().map(line).collect()).await.unwrap();
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
