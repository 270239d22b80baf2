//! One run as a whole: its row, its calls, its log, and the runs that it invoked.

use std::collections::{BTreeMap, HashSet};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{NoParams, Params, Run};
use super::runs::RunSummary;
use super::{Api, Reply, openapi};
use crate::fire::{AppId, EpochMs, Handle, LogLevel, NodeKind, RunId};
use crate::ledger::{JsonText, LogRow, NodeRow, Reader, RunRow};

/// What the values of a run's calls may take up in one answer. A run of ten thousand calls with long values would fill
/// the daemon's memory; a person reads far less.
const VALUE_BYTES: usize = 64 * 1024 * 1024;

/// A run with all that was recorded of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunDetail {
    run: RunFull,
    /// Its calls, in their order.
    nodes: Vec<Node>,
    logs: Vec<LogEntry>,
    /// The runs that it invoked, oldest first.
    children: Vec<RunSummary>,
}

/// A run with its input and output.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunFull {
    #[serde(flatten)]
    summary: RunSummary,
    #[schema(required, value_type = JsonText)]
    input: Option<JsonText>,
    #[schema(required, value_type = JsonText)]
    output: Option<JsonText>,
}

/// One call of a run through `ctx`.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    run_id: RunId,
    /// 0-based, in call order.
    #[schema(value_type = i64)]
    ordinal: u32,
    /// Calls that were made in the same tick share one.
    #[schema(required, value_type = Option<i64>)]
    batch_id: Option<u32>,
    kind: NodeKind,
    /// The tool; the handle that was invoked.
    name: String,
    #[schema(required, value_type = JsonText)]
    args: Option<JsonText>,
    #[schema(required, value_type = JsonText)]
    result: Option<JsonText>,
    /// Null while it is open.
    #[schema(required)]
    ok: Option<bool>,
    #[schema(required)]
    error: Option<String>,
    /// The run that was invoked.
    #[schema(required)]
    child_run_id: Option<RunId>,
    /// Model and token counts.
    #[schema(required, value_type = JsonText)]
    usage: Option<JsonText>,
    started_at: EpochMs,
    #[schema(required)]
    ended_at: Option<EpochMs>,
}

/// One line of a run's log.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogEntry {
    run_id: RunId,
    #[schema(value_type = i64)]
    seq: u32,
    at: EpochMs,
    level: LogLevel,
    message: String,
    #[schema(required, value_type = JsonText)]
    fields: Option<JsonText>,
}

impl From<RunRow> for RunFull {
    fn from(mut row: RunRow) -> Self {
        let (input, output) = (row.input.take(), row.output.take());
        Self { summary: row.into(), input, output }
    }
}

impl From<NodeRow> for Node {
    fn from(row: NodeRow) -> Self {
        let NodeRow { run_id, ordinal, batch_id, kind, name, args, result, ok, error, child_run_id, .. } = row;
        let NodeRow { usage, started_at, ended_at, .. } = row;
        Self {
            run_id,
            ordinal,
            batch_id,
            kind,
            name,
            args,
            result,
            ok,
            error,
            child_run_id,
            usage,
            started_at,
            ended_at,
        }
    }
}

impl From<LogRow> for LogEntry {
    fn from(LogRow { run_id, seq, at, level, message, fields }: LogRow) -> Self {
        Self { run_id, seq, at, level, message, fields }
    }
}

/// Shows one run with its calls, its log and the runs that it invoked.
#[utoipa::path(
    get, path = "/v1/runs/{runId}", operation_id = "getRun", tag = openapi::RUNS,
    params(("runId" = RunId, Path)),
    responses((status = 200, description = "The run.", body = RunDetail))
)]
pub async fn one(State(api): State<Api>, Run(run): Run, Params(_): Params<NoParams>) -> Reply<Json<RunDetail>> {
    api.run_detail(run, VALUE_BYTES).await.map(Json)
}

impl Api {
    /// One run. When the values of its calls together have more than `value_bytes`, further ones are shortened as those
    /// that are too long to store.
    pub(in crate::gateway) async fn run_detail(&self, run: RunId, value_bytes: usize) -> Reply<RunDetail> {
        let read = self.with_run(run, move |reader, row| {
            let nodes = reader.nodes_within(&row.run_id, value_bytes)?;
            let logs = reader.logs(&row.run_id, None, usize::MAX)?;
            let children = reader.children(&row.run_id)?;
            Ok((row, nodes, logs, children))
        });
        let (row, nodes, logs, mut children) = read.await?;
        let elsewhere = children_elsewhere(&row.app_id, &nodes, &children);
        if !elsewhere.is_empty() {
            let folders = self.services().folders.clone();
            let found = self.read(move || {
                let runs = elsewhere.into_iter().flat_map(|(app, runs)| read_runs(&folders.ledger(&app), &runs));
                runs.collect::<Vec<_>>()
            });
            children.extend(found.await?);
            children.sort_by(|a, b| a.run_id.cmp(&b.run_id));
        }
        self.remember(children.iter().map(|child| (child.run_id.clone(), child.app_id.clone())));
        Ok(RunDetail {
            run: row.into(),
            nodes: nodes.into_iter().map(Into::into).collect(),
            logs: logs.into_iter().map(Into::into).collect(),
            children: children.into_iter().map(Into::into).collect(),
        })
    }
}

/// Invoked runs that are not in the ledger of `app`, by the app that the call named.
fn children_elsewhere(app: &AppId, nodes: &[NodeRow], found: &[RunRow]) -> BTreeMap<AppId, Vec<RunId>> {
    let found: HashSet<&RunId> = found.iter().map(|row| &row.run_id).collect();
    let mut elsewhere: BTreeMap<AppId, Vec<RunId>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.kind == NodeKind::Invoke) {
        let child = node.child_run_id.as_ref().filter(|id| !found.contains(id));
        let handle = Handle::parse(&node.name, Some(app)).ok().filter(|handle| handle.app != *app);
        if let (Some(child), Some(handle)) = (child, handle) {
            elsewhere.entry(handle.app).or_default().push(child.clone());
        }
    }
    elsewhere
}

/// Those that there are. What hinders a ledger is told in the list of problems, and hides nothing else here.
fn read_runs(ledger: &std::path::Path, runs: &[RunId]) -> Vec<RunRow> {
    match Reader::open(ledger) {
        Ok(Some(reader)) => runs.iter().filter_map(|run| reader.run_outline(run).ok().flatten()).collect(),
        _ => Vec::new(),
    }
}
