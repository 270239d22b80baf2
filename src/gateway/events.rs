//! A run's events as a stream: first what the ledger holds, then what happens, each once.
//!
//! The listener was there before the ledger was read, so nothing falls between; what was both read and heard is told
//! once, because each event has its place: a log line its number, a node its ordinal, a run its one end.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, StreamExt};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::daemon::{RunEvent, RunHappening};
use crate::fire::{ErrorCode, Handle, RunId};
use crate::ledger::{LedgerError, LogRow, NodeRow, Reader, RunRow};

/// What a ledger tells of one run, in the order in which it happened.
pub struct Past {
    run_id: RunId,
    events: VecDeque<RunEvent>,
    ended: bool,
}

impl Past {
    /// # Errors
    /// When the ledger cannot be read.
    pub fn read(reader: &Reader, row: RunRow) -> Result<Self, LedgerError> {
        let nodes = reader.nodes(&row.run_id)?;
        let logs = reader.logs(&row.run_id, None, usize::MAX)?;
        Ok(Self::new(row, nodes, logs))
    }

    fn new(row: RunRow, nodes: Vec<NodeRow>, logs: Vec<LogRow>) -> Self {
        let handle = Handle::new(row.app_id.clone(), row.automation_id.clone());
        let mut timed: Vec<(i64, RunHappening)> = Vec::new();
        for log in logs {
            timed.push((
                log.at,
                RunHappening::Log {
                    seq: log.seq,
                    at: log.at,
                    level: log.level,
                    message: log.message,
                    fields: log.fields.and_then(|text| serde_json::from_str(text.as_str()).ok()),
                },
            ));
        }
        for node in nodes {
            timed.push((
                node.started_at,
                RunHappening::NodeOpened {
                    ordinal: node.ordinal,
                    batch_id: node.batch_id,
                    kind: node.kind,
                    name: node.name,
                    at: node.started_at,
                },
            ));
            if let (Some(ok), Some(at)) = (node.ok, node.ended_at) {
                timed.push((at, RunHappening::NodeClosed { ordinal: node.ordinal, ok, error: node.error, at }));
            }
        }
        // Stable: a node's end stays behind its beginning when both have one time.
        timed.sort_by_key(|(at, _)| *at);
        let opened = RunHappening::Opened { status: row.status, origin: row.origin, at: row.queued_at };
        let started = row.started_at.map(|at| RunHappening::Started { at });
        let ended = row.ended_at.filter(|_| !row.status.is_open()).map(|at| RunHappening::Ended {
            status: row.status,
            at,
            summary: row.summary.clone(),
            error: row.error.clone(),
            error_code: row.error_code.as_deref().and_then(ErrorCode::parse),
        });
        let is_ended = ended.is_some();
        let whats = std::iter::once(opened).chain(started).chain(timed.into_iter().map(|(_, what)| what)).chain(ended);
        let events = whats.map(|what| RunEvent { run_id: row.run_id.clone(), handle: handle.clone(), what }).collect();
        Self { run_id: row.run_id, events, ended: is_ended }
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

/// The past, then the present, until the run's end.
pub fn stream(past: Past, live: broadcast::Receiver<Arc<RunEvent>>) -> impl IntoResponse {
    let told: HashSet<(u8, u32)> = HashSet::new();
    let events = stream::unfold((past, live, told), |(mut past, mut live, mut told)| async move {
        loop {
            let event = if let Some(event) = past.events.pop_front() {
                event
            } else if past.ended {
                return None;
            } else {
                match live.recv().await {
                    Ok(event) if event.run_id == past.run_id => (*event).clone(),
                    Ok(_) => continue,
                    // The listener lost some, or the daemon is gone: the client asks again and reads the ledger.
                    Err(RecvError::Lagged(_) | RecvError::Closed) => return None,
                }
            };
            if !told.insert(place(&event.what)) {
                continue;
            }
            past.ended |= past.events.is_empty() && matches!(event.what, RunHappening::Ended { .. });
            let sent =
                Event::default().json_data(&event).unwrap_or_else(|error| Event::default().comment(error.to_string()));
            return Some((Ok::<_, Infallible>(sent), (past, live, told)));
        }
    });
    Sse::new(events.boxed()).keep_alive(KeepAlive::default())
}
