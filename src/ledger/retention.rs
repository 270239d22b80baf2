//! Which ended runs go: `history.keep` of their automation, applied in small steps between other work.
//!
//! A step deletes, counts or looks at a bounded number of rows in a transaction of its own, so no write waits for
//! more than a few milliseconds behind it, and the cost of a fire does not grow with the history. What that needs is
//! kept in memory per automation that has ended a run: how many rows it has, and for `errors` which ended since.
//! "Newest" is by run id, which is by the time the run was made: the order of every list.
//!
//! Facts enter as [`Note`]s, after the transaction that made them true; a note too few would keep rows for ever, a
//! note too many would drop rows that were to be kept. When anything is in doubt (another client wrote, a step
//! failed) the automation is forgotten and counted again.

use std::collections::{HashMap, VecDeque};

use rusqlite::{Connection, OptionalExtension, params};

use crate::core::manifest::HistoryKeep;
use crate::fire::{AutomationId, EpochMs, RunId};

use super::error::LedgerError;
use super::ops::{Answer, Reply};

/// What one step may delete, in rows; a stored value counts one more per [`BYTES_PER_ROW`].
const STEP_ROWS: i64 = 200;

/// Freeing four overflow pages takes about as long as deleting a row.
const BYTES_PER_ROW: i64 = 16 * 1024;

/// Index entries that one step counts: about half a millisecond.
const STEP_COUNT: u32 = 5_000;

const DAY_MS: i64 = 86_400_000;

/// Something that was committed and that retention has to know.
#[derive(Debug)]
pub(super) enum Note {
    Inserted {
        automation: AutomationId,
        run_id: RunId,
        ended: bool,
    },
    Ended {
        automation: AutomationId,
        run_id: RunId,
        error: bool,
    },
    /// It is time to apply `keep` as of `at`.
    Due {
        automation: AutomationId,
        keep: HistoryKeep,
        at: EpochMs,
    },
}

#[derive(Default)]
pub(super) struct Retention {
    tracked: HashMap<AutomationId, Tracked>,
    /// Each has work left; served in turns.
    due: VecDeque<AutomationId>,
    waiting: Vec<(AutomationId, Answer)>,
}

struct Tracked {
    keep: HistoryKeep,
    at: EpochMs,
    walk: Walk,
    /// `Count`: rows, open ones included, as far as the walk has come.
    rows: i64,
    /// `Errors`: runs that ended otherwise since the walk began.
    ended: VecDeque<RunId>,
}

/// One pass over an automation's rows, oldest first. Rows above the boundary came after it began.
enum Walk {
    NotBegun,
    At { cursor: String, boundary: String },
    Done,
}

impl Walk {
    /// True when the walk will not come by this row (any more), so that a note is all there is of it.
    fn has_passed(&self, run_id: &RunId) -> bool {
        match self {
            Walk::NotBegun => false,
            Walk::At { cursor, boundary } => run_id.as_str() <= cursor.as_str() || run_id.as_str() > boundary.as_str(),
            Walk::Done => true,
        }
    }
}

impl Retention {
    pub(super) fn note(&mut self, note: Note) {
        match note {
            Note::Inserted { automation, run_id, ended } => {
                if let Some(tracked) = self.tracked.get_mut(&automation)
                    && tracked.walk.has_passed(&run_id)
                {
                    tracked.rows += 1;
                    tracked.note_ended(ended, run_id);
                }
            }
            Note::Ended { automation, run_id, error } => {
                if let Some(tracked) = self.tracked.get_mut(&automation) {
                    tracked.note_ended(!error, run_id);
                }
            }
            Note::Due { automation, keep: HistoryKeep::All, .. } => {
                self.tracked.remove(&automation);
                self.finish(&automation, Ok(()));
            }
            Note::Due { automation, keep, at } => {
                match self.tracked.get_mut(&automation) {
                    Some(tracked) if same_shape(tracked.keep, keep) => {
                        tracked.keep = keep;
                        tracked.at = tracked.at.max(at);
                    }
                    _ => {
                        self.tracked.insert(automation.clone(), Tracked::new(keep, at));
                    }
                }
                if !self.due.contains(&automation) {
                    self.due.push_back(automation);
                }
            }
        }
    }

    /// Answers when nothing is left to do for the automation, which may be at once.
    pub(super) fn when_done(&mut self, automation: &AutomationId, answer: Answer) {
        if self.due.contains(automation) {
            self.waiting.push((automation.clone(), answer));
        } else {
            // The asker may have gone.
            let _ = answer.send(Ok(Reply::Done));
        }
    }

    pub(super) fn has_work(&self) -> bool {
        !self.due.is_empty()
    }

    /// Another client has written: what was counted may be wrong.
    pub(super) fn recount(&mut self) {
        for tracked in self.tracked.values_mut() {
            *tracked = Tracked::new(tracked.keep, tracked.at);
        }
    }

    /// One bounded step inside the caller's transaction. What it changes in memory is only true once that is
    /// committed: on any error the caller must call [`Self::step_failed`].
    pub(super) fn step(&mut self, conn: &Connection) -> Result<(), LedgerError> {
        let Some(automation) = self.due.front() else {
            return Ok(());
        };
        let Some(tracked) = self.tracked.get_mut(automation) else {
            self.due.pop_front();
            return Ok(());
        };
        let finished = match tracked.keep {
            HistoryKeep::All => true,
            HistoryKeep::Count(keep) => tracked.step_count(conn, automation, keep)?,
            HistoryKeep::Errors => tracked.step_errors(conn, automation)?,
            HistoryKeep::Days(days) => tracked.step_days(conn, automation, days)?,
        };
        // Turns: a long history of one automation does not keep the others waiting.
        let turn = self.due.pop_front();
        if !finished {
            self.due.extend(turn);
        }
        Ok(())
    }

    /// After the commit of a step: answers those whose automation has no work left.
    pub(super) fn step_committed(&mut self) {
        let due = &self.due;
        for (_, answer) in self.waiting.extract_if(.., |(automation, _)| !due.contains(automation)) {
            let _ = answer.send(Ok(Reply::Done));
        }
    }

    /// Gives up all pending work; the next end of a run brings it back.
    pub(super) fn step_failed(&mut self, error: &LedgerError) {
        self.due.clear();
        self.tracked.clear();
        for (_, answer) in self.waiting.drain(..) {
            let _ = answer.send(Err(error.clone()));
        }
    }

    fn finish(&mut self, automation: &AutomationId, result: Result<(), LedgerError>) {
        self.due.retain(|other| other != automation);
        for (_, answer) in self.waiting.extract_if(.., |(other, _)| other == automation) {
            let _ = answer.send(result.clone().map(|()| Reply::Done));
        }
    }
}

fn same_shape(a: HistoryKeep, b: HistoryKeep) -> bool {
    std::mem::discriminant(&a) == std::mem::discriminant(&b)
}

impl Tracked {
    fn new(keep: HistoryKeep, at: EpochMs) -> Self {
        Self { keep, at, walk: Walk::NotBegun, rows: 0, ended: VecDeque::new() }
    }

    fn note_ended(&mut self, droppable: bool, run_id: RunId) {
        // A row that the walk is still to see may be listed too: deleting twice deletes once.
        if droppable && self.keep == HistoryKeep::Errors && !matches!(self.walk, Walk::NotBegun) {
            self.ended.push_back(run_id);
        }
    }

    fn begin_walk(&mut self, conn: &Connection, automation: &AutomationId) -> Result<(), LedgerError> {
        let newest: Option<String> = conn
            .prepare_cached("SELECT max(run_id) FROM runs WHERE automation_id = ?1")?
            .query_row([automation.as_str()], |row| row.get(0))?;
        self.rows = 0;
        self.ended.clear();
        self.walk = match newest {
            Some(boundary) => Walk::At { cursor: String::new(), boundary },
            None => Walk::Done,
        };
        Ok(())
    }

    /// Counts first, once; then drops the oldest ended rows until `keep` are left. True when nothing is left to do.
    fn step_count(&mut self, conn: &Connection, automation: &AutomationId, keep: u64) -> Result<bool, LedgerError> {
        if let Walk::NotBegun = self.walk {
            self.begin_walk(conn, automation)?;
        }
        if let Walk::At { cursor, boundary } = &mut self.walk {
            let (counted, last): (u32, Option<String>) = conn
                .prepare_cached(
                    "SELECT count(*), max(run_id) FROM (SELECT run_id FROM runs WHERE automation_id = ?1 \
                     AND run_id > ?2 AND run_id <= ?3 ORDER BY run_id LIMIT ?4)",
                )?
                .query_row(params![automation.as_str(), *cursor, *boundary, STEP_COUNT], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
            self.rows += i64::from(counted);
            match last {
                Some(last) if counted == STEP_COUNT => {
                    *cursor = last;
                    return Ok(false);
                }
                _ => self.walk = Walk::Done,
            }
        }
        let open: i64 = conn
            .prepare_cached("SELECT count(*) FROM runs WHERE automation_id = ?1 AND ended_at IS NULL")?
            .query_row([automation.as_str()], |row| row.get(0))?;
        let excess = self.rows.saturating_sub(open).saturating_sub(i64::try_from(keep).unwrap_or(i64::MAX));
        if excess <= 0 {
            return Ok(true);
        }
        let oldest: Vec<String> = read_all(
            conn,
            "SELECT run_id FROM runs WHERE automation_id = ?1 AND ended_at IS NOT NULL ORDER BY run_id LIMIT ?2",
            params![automation.as_str(), excess.min(STEP_ROWS)],
            |row| row.get(0),
        )?;
        if oldest.is_empty() {
            // The count was wrong. Counting again is all that can be done, at the next turn.
            *self = Tracked::new(self.keep, self.at);
            return Ok(true);
        }
        let mut budget = STEP_ROWS;
        let mut gone = 0;
        for run_id in &oldest {
            if !delete_run(conn, run_id, &mut budget)? {
                break;
            }
            gone += 1;
        }
        self.rows -= gone;
        Ok(gone == excess)
    }

    /// Drops what ended otherwise: once by looking at every row, from then on by what was noted.
    fn step_errors(&mut self, conn: &Connection, automation: &AutomationId) -> Result<bool, LedgerError> {
        let mut budget = STEP_ROWS;
        if let Walk::NotBegun = self.walk {
            self.begin_walk(conn, automation)?;
        }
        if let Walk::At { cursor, boundary } = &mut self.walk {
            let rows: Vec<(String, bool)> = read_all(
                conn,
                "SELECT run_id, ended_at IS NOT NULL AND status <> 'error' FROM runs WHERE automation_id = ?1 \
                 AND run_id > ?2 AND run_id <= ?3 ORDER BY run_id LIMIT ?4",
                params![automation.as_str(), *cursor, *boundary, STEP_ROWS],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let last = rows.len() < usize::try_from(STEP_ROWS).unwrap_or(usize::MAX);
            for (run_id, droppable) in rows {
                if droppable && !delete_run(conn, &run_id, &mut budget)? {
                    return Ok(false);
                }
                *cursor = run_id;
            }
            if !last {
                return Ok(false);
            }
            self.walk = Walk::Done;
        }
        while let Some(run_id) = self.ended.front() {
            if !delete_run(conn, run_id.as_str(), &mut budget)? {
                return Ok(false);
            }
            self.ended.pop_front();
        }
        Ok(true)
    }

    /// Drops what ended before the cutoff. A row that was made after it cannot have ended before it, so the look ends
    /// there, usually at the first row.
    fn step_days(&mut self, conn: &Connection, automation: &AutomationId, days: u64) -> Result<bool, LedgerError> {
        let cutoff = self.at.saturating_sub(i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(DAY_MS));
        let from = match &self.walk {
            Walk::At { cursor, .. } => cursor.clone(),
            _ => String::new(),
        };
        let rows: Vec<(String, EpochMs, Option<EpochMs>)> = read_all(
            conn,
            "SELECT run_id, queued_at, ended_at FROM runs WHERE automation_id = ?1 AND run_id > ?2 \
             ORDER BY run_id LIMIT ?3",
            params![automation.as_str(), from, STEP_ROWS],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )?;
        let mut budget = STEP_ROWS;
        let mut cursor = from;
        let mut last = rows.len() < usize::try_from(STEP_ROWS).unwrap_or(usize::MAX);
        for (run_id, queued_at, ended_at) in rows {
            if queued_at >= cutoff {
                last = true;
                break;
            }
            if ended_at.is_some_and(|at| at < cutoff) && !delete_run(conn, &run_id, &mut budget)? {
                last = false;
                break;
            }
            cursor = run_id;
        }
        self.walk = if last { Walk::NotBegun } else { Walk::At { cursor, boundary: String::new() } };
        Ok(last)
    }
}

/// Deletes a run with its nodes and logs, or as much of it as the budget allows (at least something). True when the
/// run is gone, also when it was before. An open one is never touched.
fn delete_run(conn: &Connection, run_id: &str, budget: &mut i64) -> Result<bool, LedgerError> {
    let bytes: Option<i64> = conn
        .prepare_cached(
            "SELECT ifnull(octet_length(input_json), 0) + ifnull(octet_length(output_json), 0) FROM runs \
             WHERE run_id = ?1 AND ended_at IS NOT NULL",
        )?
        .query_row([run_id], |row| row.get(0))
        .optional()?;
    let Some(bytes) = bytes else { return Ok(true) };
    if *budget <= 0 {
        return Ok(false);
    }
    let parts = [
        (
            "SELECT ordinal, ifnull(octet_length(args_json), 0) + ifnull(octet_length(result_json), 0) \
             FROM run_nodes WHERE run_id = ?1 ORDER BY ordinal",
            "DELETE FROM run_nodes WHERE run_id = ?1 AND ordinal <= ?2",
        ),
        (
            "SELECT seq, octet_length(message) + ifnull(octet_length(fields_json), 0) \
             FROM run_logs WHERE run_id = ?1 ORDER BY seq",
            "DELETE FROM run_logs WHERE run_id = ?1 AND seq <= ?2",
        ),
    ];
    for (select, delete) in parts {
        if let Some(upto) = affordable(conn, select, run_id, budget)? {
            conn.prepare_cached(delete)?.execute(params![run_id, upto])?;
            if *budget <= 0 {
                return Ok(false);
            }
        }
    }
    conn.prepare_cached("DELETE FROM runs WHERE run_id = ?1")?.execute([run_id])?;
    *budget -= 1 + bytes / BYTES_PER_ROW;
    Ok(true)
}

/// Spends the budget on the rows that `select` gives as (number, bytes), and tells the last number that it buys.
fn affordable(conn: &Connection, select: &str, run_id: &str, budget: &mut i64) -> Result<Option<i64>, LedgerError> {
    let mut statement = conn.prepare_cached(select)?;
    let mut rows = statement.query([run_id])?;
    let mut upto = None;
    while *budget > 0
        && let Some(row) = rows.next()?
    {
        upto = Some(row.get(0)?);
        *budget -= 1 + row.get::<_, i64>(1)? / BYTES_PER_ROW;
    }
    Ok(upto)
}

fn read_all<T>(
    conn: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, LedgerError> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params, read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::schema;

    const ROWS: i64 = 12_000;

    /// An app with `ROWS` ended runs of automation `a`, with ids that sort as their numbers do.
    fn history() -> Connection {
        let mut conn = Connection::open_in_memory().unwrap();
        schema::migrate(&mut conn, schema::STEPS).unwrap();
        conn.execute_batch("BEGIN").unwrap();
        for n in 0..ROWS {
            insert(&conn, n * 2);
        }
        conn.execute_batch("COMMIT").unwrap();
        conn
    }

    fn id(n: i64) -> RunId {
        RunId::new(&format!("00000000-0000-7000-8000-{n:012}")).unwrap()
    }

    fn insert(conn: &Connection, n: i64) {
        conn.prepare_cached(
            "INSERT INTO runs (run_id, app_id, automation_id, status, trigger_origin, queued_at, ended_at) \
             VALUES (?1, 'shop', 'a', 'ok', 'manual', ?2, ?2)",
        )
        .unwrap()
        .execute(params![id(n).as_str(), n])
        .unwrap();
    }

    #[test]
    fn rows_that_come_while_a_long_history_is_counted_are_counted_once() {
        let conn = history();
        let automation = AutomationId::new("a").unwrap();
        let keep = 11_999;
        let mut retention = Retention::default();
        let arrive = |retention: &mut Retention, n: i64| {
            insert(&conn, n);
            retention.note(Note::Inserted { automation: automation.clone(), run_id: id(n), ended: true });
        };
        arrive(&mut retention, 1);
        retention.note(Note::Due { automation: automation.clone(), keep: HistoryKeep::Count(keep), at: 0 });
        arrive(&mut retention, 3);
        retention.step(&conn).unwrap();
        // The walk has come to about number 10,000 by now: behind it, before it, and after all that was there.
        for n in [5, 23_001, 90_000, 90_002] {
            arrive(&mut retention, n);
        }
        let mut steps = 1;
        while retention.has_work() {
            retention.step(&conn).unwrap();
            steps += 1;
            assert!(steps < 10, "it must come to an end");
        }
        let (left, oldest): (u64, String) = conn
            .query_row("SELECT count(*), min(run_id) FROM runs", [], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))
            })
            .unwrap();
        // 12,000 and six, so seven have gone: 0, 1, 2, 3, 4, 5, 6.
        assert_eq!((left, oldest.as_str()), (keep, id(8).as_str()));
        assert!(steps >= 3);
    }

    #[test]
    fn one_step_drops_no_more_than_its_budget() {
        let conn = history();
        let automation = AutomationId::new("a").unwrap();
        for keep in [HistoryKeep::Errors, HistoryKeep::Days(0), HistoryKeep::Count(0)] {
            let mut retention = Retention::default();
            retention.note(Note::Due { automation: automation.clone(), keep, at: i64::MAX });
            for _ in 0..15 {
                let before = conn.total_changes();
                retention.step(&conn).unwrap();
                assert!(conn.total_changes() - before <= STEP_ROWS as u64, "{keep:?}");
            }
            assert!(retention.has_work(), "{keep:?}");
        }
    }
}
