//! What a ledger is asked to do, one function per kind of request. Each runs inside a transaction that the writer has
//! begun, and either does all of its work or returns an error; then the writer takes back what it did.
//!
//! Invariants: a status changes only as `RunStatus::TRANSITIONS` allows; a node is closed once; nothing is written to
//! a run that has ended; a cron instant at or below its trigger's watermark is never opened again.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::oneshot;

use crate::core::manifest::HistoryKeep;
use crate::fire::{AutomationId, EpochMs, ErrorCode, LogLine, RunId, RunStatus, TriggerOrigin};

use super::error::LedgerError;
use super::recovery::{self, Recovered};
use super::retention::Note;
use super::rows::{Close, NewNode, NewRun, NodeClose};
use super::state::{self, StateSizes};
use super::{Delivery, Durability, LedgerConfig, deliveries, stored};

pub(super) enum Op {
    OpenRun(Box<NewRun>),
    Delivery {
        slug: String,
        delivery_id: String,
        at: EpochMs,
    },
    StartRun {
        run_id: RunId,
        at: EpochMs,
        handler_hash: Option<String>,
    },
    CloseRun(Arc<Close>),
    OpenNodes {
        run_id: RunId,
        nodes: Vec<NewNode>,
    },
    CloseNodes {
        run_id: RunId,
        closes: Vec<NodeClose>,
    },
    AppendLogs {
        run_id: RunId,
        first_seq: u32,
        lines: Vec<LogLine>,
    },
    StateGet {
        automation: AutomationId,
        key: String,
    },
    StateSet {
        automation: AutomationId,
        key: String,
        value_json: String,
        at: EpochMs,
    },
    StateDelete {
        automation: AutomationId,
        key: String,
    },
    RaiseWatermarks {
        marks: Vec<Watermark>,
    },
    DisarmTriggers {
        triggers: Vec<(AutomationId, String)>,
    },
    Recover,
    /// Answered when retention has nothing left to do for this automation.
    Sweep {
        automation: AutomationId,
        keep: HistoryKeep,
        at: EpochMs,
    },
}

/// Automation, trigger key, and the latest scheduled instant that counts as done.
pub type Watermark = (AutomationId, String, EpochMs);

pub(super) enum Reply {
    Done,
    Opened(Opened),
    Delivery(Option<Box<Delivery>>),
    Value(Option<String>),
    Recovered(Box<Recovered>),
}

/// What became of a run that was to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    Inserted,
    /// This cron instant was recorded before; nothing was written.
    Duplicate,
    /// This delivery was recorded before, as that run; nothing was written.
    Redelivered(RunId),
}

pub(super) type Answer = oneshot::Sender<Result<Reply, LedgerError>>;

pub(super) struct Job {
    pub op: Op,
    pub durability: Durability,
    pub answer: Answer,
}

/// Runs one request. `notes` collects what retention has to know once the transaction has been committed.
pub(super) fn apply(
    conn: &Connection,
    op: &Op,
    config: &LedgerConfig,
    notes: &mut Vec<Note>,
    sizes: &mut StateSizes,
) -> Result<Reply, LedgerError> {
    match op {
        Op::OpenRun(run) => open_run(conn, run, config, notes).map(Reply::Opened),
        Op::Delivery { slug, delivery_id, at } => {
            let found = deliveries::find(conn, slug, delivery_id, at - config.delivery_window_ms)?;
            Ok(Reply::Delivery(found.map(Box::new)))
        }
        Op::StartRun { run_id, at, handler_hash } => start_run(conn, run_id, *at, handler_hash.as_deref()).map(done),
        Op::CloseRun(close) => close_run(conn, close, config, notes).map(done),
        Op::OpenNodes { run_id, nodes } => open_nodes(conn, run_id, nodes).map(done),
        Op::CloseNodes { run_id, closes } => close_nodes(conn, run_id, closes).map(done),
        Op::AppendLogs { run_id, first_seq, lines } => append_logs(conn, run_id, *first_seq, lines).map(done),
        Op::StateGet { automation, key } => state::get(conn, automation, key).map(Reply::Value),
        Op::StateSet { automation, key, value_json, at } => {
            state::set(conn, sizes, automation, key, value_json, *at).map(done)
        }
        Op::StateDelete { automation, key } => state::delete(conn, sizes, automation, key).map(done),
        Op::RaiseWatermarks { marks } => marks.iter().try_for_each(|mark| raise_watermark(conn, mark)).map(done),
        Op::DisarmTriggers { triggers } => triggers.iter().try_for_each(|trigger| disarm(conn, trigger)).map(done),
        Op::Recover => recovery::recover(conn).map(|found| Reply::Recovered(Box::new(found))),
        Op::Sweep { automation, keep, at } => {
            notes.push(Note::Due { automation: automation.clone(), keep: *keep, at: *at });
            Ok(Reply::Done)
        }
    }
}

fn done((): ()) -> Reply {
    Reply::Done
}

fn open_run(
    conn: &Connection,
    run: &NewRun,
    config: &LedgerConfig,
    notes: &mut Vec<Note>,
) -> Result<Opened, LedgerError> {
    if !matches!(run.status, RunStatus::Queued | RunStatus::Running | RunStatus::Skipped) {
        return Err(LedgerError::illegal(format!("run {} cannot be born as {}", run.run_id, run.status)));
    }
    if let (TriggerOrigin::Cron, Some(instant)) = (run.origin, run.scheduled_for) {
        let key = run.trigger.key.as_deref().unwrap_or("");
        let mark: Option<EpochMs> = conn
            .prepare_cached(
                "SELECT scheduled_for FROM trigger_watermarks WHERE automation_id = ?1 AND trigger_key = ?2",
            )?
            .query_row(params![run.automation_id.as_str(), key], |row| row.get(0))
            .optional()?;
        if mark.is_some_and(|mark| instant <= mark) || cron_fire_exists(conn, run, key, instant)? {
            return Ok(Opened::Duplicate);
        }
        // It does not arm: a trigger may have been disabled while its last fire was on its way here.
        conn.prepare_cached(
            "INSERT INTO trigger_watermarks (automation_id, trigger_key, scheduled_for) VALUES (?1, ?2, ?3) \
             ON CONFLICT DO UPDATE SET scheduled_for = excluded.scheduled_for",
        )?
        .execute(params![run.automation_id.as_str(), key, instant])?;
    }
    if let Some(first) = deliveries::claim(conn, run, config.delivery_window_ms)? {
        return Ok(Opened::Redelivered(first));
    }
    insert_run(conn, run)?;
    notes.push(Note::Inserted {
        automation: run.automation_id.clone(),
        run_id: run.run_id.clone(),
        ended: !run.status.is_open(),
    });
    Ok(Opened::Inserted)
}

/// The watermark says it all, unless somebody set it back; then the rows still there have the last word.
fn cron_fire_exists(conn: &Connection, run: &NewRun, key: &str, instant: EpochMs) -> Result<bool, LedgerError> {
    Ok(conn
        .prepare_cached(
            "SELECT 1 FROM runs WHERE trigger_origin = 'cron' AND automation_id = ?1 \
             AND ifnull(json_extract(trigger_json, '$.key'), '') = ?2 AND scheduled_for = ?3",
        )?
        .exists(params![run.automation_id.as_str(), key, instant])?)
}

fn insert_run(conn: &Connection, run: &NewRun) -> Result<(), LedgerError> {
    let ended_at = if run.status.is_open() { None } else { Some(run.ended_at.unwrap_or(run.queued_at)) };
    let trigger = serde_json::to_string(&run.trigger).expect("a struct of text and numbers has a JSON form");
    let input = run.input_json.as_deref().map(stored::shorten);
    let inserted = conn
        .prepare_cached(
            "INSERT INTO runs (run_id, app_id, automation_id, status, trigger_origin, trigger_json, scheduled_for, \
             input_json, summary, error, parent_run_id, retry_of, attempt, handler_hash, queued_at, started_at, \
             ended_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17) \
             ON CONFLICT (run_id) DO NOTHING",
        )?
        .execute(params![
            run.run_id.as_str(),
            run.app_id.as_str(),
            run.automation_id.as_str(),
            run.status.as_str(),
            run.origin.as_str(),
            trigger,
            run.scheduled_for,
            input,
            run.summary,
            run.error.as_deref().map(stored::shorten_error),
            run.parent_run_id.as_ref().map(RunId::as_str),
            run.retry_of.as_ref().map(RunId::as_str),
            run.attempt,
            run.handler_hash,
            run.queued_at,
            run.started_at,
            ended_at,
        ])?;
    if inserted == 0 {
        return Err(LedgerError::illegal(format!("run {} is already recorded", run.run_id)));
    }
    // An open run may have to start after a restart, or again: its whole input stays until it has ended.
    if let Some(full) = run.input_json.as_deref().filter(|full| run.status.is_open() && stored::is_long(full)) {
        conn.prepare_cached("INSERT INTO run_inputs (run_id, input_json) VALUES (?1, ?2)")?
            .execute(params![run.run_id.as_str(), full])?;
    }
    Ok(())
}

fn start_run(conn: &Connection, run_id: &RunId, at: EpochMs, handler_hash: Option<&str>) -> Result<(), LedgerError> {
    require_transition(conn, run_id, RunStatus::Running)?;
    conn.prepare_cached("UPDATE runs SET status = 'running', started_at = ?2, handler_hash = ?3 WHERE run_id = ?1")?
        .execute(params![run_id.as_str(), at, handler_hash])?;
    Ok(())
}

/// The row's end, the end of its open nodes, and the run that follows from it.
fn close_run(
    conn: &Connection,
    close: &Close,
    config: &LedgerConfig,
    notes: &mut Vec<Note>,
) -> Result<(), LedgerError> {
    let (run, end) = (&close.run, &close.end);
    require_transition(conn, run, end.status)?;
    conn.prepare_cached(
        "UPDATE runs SET status = ?2, ended_at = ?3, summary = ?4, output_json = ?5, error = ?6, error_code = ?7 \
         WHERE run_id = ?1",
    )?
    .execute(params![
        run.as_str(),
        end.status.as_str(),
        end.ended_at,
        end.summary,
        end.output_json,
        end.error.as_deref().map(stored::shorten_error),
        end.error_code.map(ErrorCode::as_str),
    ])?;
    let node_error = end.error_code.map_or("cancelled: the run ended before the call".to_owned(), |code| {
        format!("cancelled: the run ended ({code}) before the call")
    });
    conn.prepare_cached("UPDATE run_nodes SET ok = 0, error = ?2, ended_at = ?3 WHERE run_id = ?1 AND ok IS NULL")?
        .execute(params![run.as_str(), node_error, end.ended_at])?;
    conn.prepare_cached("DELETE FROM run_inputs WHERE run_id = ?1")?.execute([run.as_str()])?;
    deliveries::conclude(conn, run, end)?;
    notes.push(Note::Ended {
        automation: close.handle.automation.clone(),
        run_id: run.clone(),
        error: end.status == RunStatus::Error,
    });
    if let Some(next) = &close.next {
        let follows = [&next.retry_of, &next.trigger.failed_run].into_iter().flatten().any(|id| id == run);
        if next.status != RunStatus::Queued || !follows {
            let what = format!("run {} is no queued retry of {}, nor handles its failure", next.run_id, run);
            return Err(LedgerError::illegal(what));
        }
        open_run(conn, next, config, notes)?;
    }
    notes.push(Note::Due { automation: close.handle.automation.clone(), keep: close.keep, at: end.ended_at });
    Ok(())
}

fn open_nodes(conn: &Connection, run_id: &RunId, nodes: &[NewNode]) -> Result<(), LedgerError> {
    require_running(conn, run_id)?;
    let mut insert = conn.prepare_cached(
        "INSERT INTO run_nodes (run_id, ordinal, batch_id, kind, name, args_json, child_run_id, started_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (run_id, ordinal) DO NOTHING",
    )?;
    for node in nodes {
        let inserted = insert.execute(params![
            run_id.as_str(),
            node.ordinal,
            node.batch_id,
            node.kind.as_str(),
            node.name,
            stored::shorten(&node.args_json),
            node.child_run_id.as_ref().map(RunId::as_str),
            node.started_at,
        ])?;
        if inserted == 0 {
            return Err(LedgerError::illegal(format!("node {} of run {run_id} is already open", node.ordinal)));
        }
    }
    Ok(())
}

fn close_nodes(conn: &Connection, run_id: &RunId, closes: &[NodeClose]) -> Result<(), LedgerError> {
    require_running(conn, run_id)?;
    let mut update = conn.prepare_cached(
        "UPDATE run_nodes SET ok = ?3, result_json = ?4, error = ?5, child_run_id = ifnull(?6, child_run_id), \
         usage_json = ?7, ended_at = ?8 WHERE run_id = ?1 AND ordinal = ?2 AND ok IS NULL",
    )?;
    for close in closes {
        let changed = update.execute(params![
            run_id.as_str(),
            close.ordinal,
            close.ok,
            close.result_json.as_deref().map(stored::shorten),
            close.error.as_deref().map(stored::shorten_error),
            close.child_run_id.as_ref().map(RunId::as_str),
            close.usage_json,
            close.ended_at,
        ])?;
        if changed == 0 {
            return Err(LedgerError::illegal(format!("node {} of run {run_id} is not open", close.ordinal)));
        }
    }
    Ok(())
}

fn append_logs(conn: &Connection, run_id: &RunId, first_seq: u32, lines: &[LogLine]) -> Result<(), LedgerError> {
    require_running(conn, run_id)?;
    let mut insert = conn.prepare_cached(
        "INSERT INTO run_logs (run_id, seq, at, level, message, fields_json) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT (run_id, seq) DO NOTHING",
    )?;
    for (seq, line) in (i64::from(first_seq)..).zip(lines) {
        let inserted = insert.execute(params![
            run_id.as_str(),
            seq,
            line.at,
            line.level.as_str(),
            line.message,
            line.fields_json
        ])?;
        if inserted == 0 {
            return Err(LedgerError::illegal(format!("log line {seq} of run {run_id} is already recorded")));
        }
    }
    Ok(())
}

/// Also arms the trigger. It never goes back: what lies below it has been dealt with.
fn raise_watermark(conn: &Connection, (automation, key, instant): &Watermark) -> Result<(), LedgerError> {
    let sql = "INSERT INTO trigger_watermarks (automation_id, trigger_key, scheduled_for) VALUES (?1, ?2, ?3) \
               ON CONFLICT DO UPDATE SET scheduled_for = max(scheduled_for, excluded.scheduled_for), armed = 1";
    conn.prepare_cached(sql)?.execute(params![automation.as_str(), key, instant])?;
    Ok(())
}

/// The watermark stays, so that no instant fires twice; but what lies above it was not missed.
fn disarm(conn: &Connection, (automation, key): &(AutomationId, String)) -> Result<(), LedgerError> {
    conn.prepare_cached("UPDATE trigger_watermarks SET armed = 0 WHERE automation_id = ?1 AND trigger_key = ?2")?
        .execute(params![automation.as_str(), key])?;
    Ok(())
}

fn status_of(conn: &Connection, run_id: &RunId) -> Result<RunStatus, LedgerError> {
    let text: Option<String> = conn
        .prepare_cached("SELECT status FROM runs WHERE run_id = ?1")?
        .query_row([run_id.as_str()], |row| row.get(0))
        .optional()?;
    let text = text.ok_or_else(|| LedgerError::NoSuchRun { run_id: run_id.clone() })?;
    RunStatus::parse(&text).ok_or_else(|| LedgerError::BadRow { what: format!("run {run_id} has status {text:?}") })
}

fn require_transition(conn: &Connection, run_id: &RunId, next: RunStatus) -> Result<(), LedgerError> {
    let status = status_of(conn, run_id)?;
    if status.may_become(next) {
        Ok(())
    } else {
        Err(LedgerError::illegal(format!("run {run_id} is {status} and cannot become {next}")))
    }
}

fn require_running(conn: &Connection, run_id: &RunId) -> Result<(), LedgerError> {
    match status_of(conn, run_id)? {
        RunStatus::Running => Ok(()),
        RunStatus::Queued => Err(LedgerError::illegal(format!("run {run_id} has not started"))),
        _ => Err(LedgerError::RunEnded { run_id: run_id.clone() }),
    }
}
