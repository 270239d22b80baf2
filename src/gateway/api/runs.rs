//! The list of runs, newest first, over the ledgers of all apps.
//!
//! A run's id is by the time it was made, so a page is the newest ids below its cursor, merged from as many ledgers as
//! are asked: one, when an app or an automation is named. What is recorded while somebody turns pages is newer than the
//! first, and moves nothing. A cursor stays good when its run is gone.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{FromQuery, Params, QueryPairs};
use super::{Api, READERS, Reply, openapi};
use crate::daemon::Folders;
use crate::fire::{AppId, AutomationId, EpochMs, Handle, Problem, RunId, RunStatus, TriggerInfo, TriggerOrigin};
use crate::ledger::{self, Reader, RunQuery, RunRow};

const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 500;

/// A run without its input and output.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    pub run_id: RunId,
    app_id: AppId,
    automation_id: AutomationId,
    status: RunStatus,
    trigger_origin: TriggerOrigin,
    trigger: TriggerInfo,
    /// Cron only; epoch milliseconds, as every instant.
    #[schema(required)]
    scheduled_for: Option<EpochMs>,
    #[schema(required)]
    summary: Option<String>,
    #[schema(required)]
    error: Option<String>,
    #[schema(required)]
    error_code: Option<String>,
    /// The run that invoked it.
    #[schema(required)]
    parent_run_id: Option<RunId>,
    /// The run that it is a retry of.
    #[schema(required)]
    retry_of: Option<RunId>,
    /// 1-based.
    #[schema(value_type = i32)]
    attempt: u32,
    /// SHA-256 of the handler that ran, hex.
    #[schema(required)]
    handler_hash: Option<String>,
    queued_at: EpochMs,
    #[schema(required)]
    started_at: Option<EpochMs>,
    #[schema(required)]
    ended_at: Option<EpochMs>,
}

impl From<RunRow> for RunSummary {
    fn from(row: RunRow) -> Self {
        let RunRow { run_id, app_id, automation_id, status, origin, trigger, scheduled_for, summary, error, .. } = row;
        let RunRow { error_code, parent_run_id, retry_of, attempt, handler_hash, queued_at, .. } = row;
        let RunRow { started_at, ended_at, .. } = row;
        Self {
            run_id,
            app_id,
            automation_id,
            status,
            trigger_origin: origin,
            trigger,
            scheduled_for,
            summary,
            error,
            error_code,
            parent_run_id,
            retry_of,
            attempt,
            handler_hash,
            queued_at,
            started_at,
            ended_at,
        }
    }
}

/// One page.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunPage {
    /// Newest first.
    runs: Vec<RunSummary>,
    /// The `cursor` of the next page; null when this is the last one.
    #[schema(required)]
    next: Option<RunId>,
    /// Ledgers that could not be read: their runs are missing here.
    problems: Vec<Problem>,
}

/// Which runs.
#[derive(Debug, Default)]
pub struct Filter {
    app: Option<AppId>,
    query: RunQuery,
    /// An app and an automation of another one: nothing is both.
    nothing: bool,
}

impl FromQuery for Filter {
    const NAMES: &'static [&'static str] =
        &["automation", "app", "status", "origin", "since", "parent", "limit", "cursor"];

    fn from_query(query: &QueryPairs) -> Result<Self, String> {
        let id = |text: &str| RunId::new(text).map_err(|_| "the id of a run".to_owned());
        let app = query.one("app", |text| AppId::new(text).map_err(|_| format!("an app id, {}", AppId::RULE)))?;
        let handle = query.one("automation", |text| {
            Handle::parse(text, app.as_ref()).map_err(|_| "<appId>/<automationId>".to_owned())
        })?;
        let mut statuses = Vec::new();
        for text in query.list("status") {
            let rule = || query.broken("status", text, &format!("of {}", words(RunStatus::ALL, RunStatus::as_str)));
            statuses.push(RunStatus::parse(text).ok_or_else(rule)?);
        }
        let origin = query.one("origin", |text| {
            let rule = || format!("one of {}", words(TriggerOrigin::ALL, TriggerOrigin::as_str));
            TriggerOrigin::parse(text).ok_or_else(rule)
        })?;
        let limit = query.one("limit", |text| {
            let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
            limit.ok_or_else(|| format!("a whole number from 1 to {MAX_LIMIT}"))
        })?;
        let nothing = matches!((&app, &handle), (Some(app), Some(handle)) if *app != handle.app);
        let query = RunQuery {
            statuses,
            origin,
            since: query.one("since", instant)?,
            parent: query.one("parent", id)?,
            before: query.one("cursor", id)?,
            automation: handle.as_ref().map(|handle| handle.automation.clone()),
            outline: true,
            limit: limit.unwrap_or(DEFAULT_LIMIT),
            ..RunQuery::default()
        };
        Ok(Self { app: handle.map(|handle| handle.app).or(app), query, nothing })
    }
}

fn words<T: Copy>(all: &[T], text: fn(T) -> &'static str) -> String {
    all.iter().map(|word| text(*word)).collect::<Vec<_>>().join(", ")
}

/// Epoch milliseconds, or RFC 3339.
fn instant(text: &str) -> Result<EpochMs, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    // In a query, a `+` that was not encoded is a blank.
    let text = text.replace(' ', "+");
    let parsed = chrono::DateTime::parse_from_rfc3339(&text);
    parsed.map(|at| at.timestamp_millis()).map_err(|_| "epoch milliseconds or an RFC 3339 time".to_owned())
}

/// Lists runs, newest first, without their inputs and outputs.
#[utoipa::path(
    get, path = "/v1/runs", operation_id = "listRuns", tag = openapi::RUNS,
    params(
        ("automation" = Option<Handle>, Query, description = "Of this automation.", example = "auto.heartbeat/beat"),
        ("app" = Option<AppId>, Query, description = "Of this app.", example = "auto.heartbeat"),
        ("status" = Option<Vec<RunStatus>>, Query, style = Form, explode = false, min_items = 1,
            description = "With one of these."),
        ("origin" = Option<TriggerOrigin>, Query, description = "Made by this."),
        ("since" = Option<openapi::Instant>, Query,
            description = "Queued or started at or after: epoch milliseconds or RFC 3339."),
        ("parent" = Option<RunId>, Query, description = "Invoked by this run."),
        ("limit" = Option<i32>, Query, minimum = 1, maximum = 500,
            description = "Runs on the page; 50 when it is not given."),
        ("cursor" = Option<RunId>, Query, description = "The `next` of the page before."),
    ),
    responses((status = 200, description = "A page.", body = RunPage))
)]
pub async fn list(State(api): State<Api>, Params(filter): Params<Filter>) -> Reply<Json<RunPage>> {
    api.page(filter).await.map(Json)
}

impl Api {
    /// One page of runs.
    pub(in crate::gateway) async fn page(&self, filter: Filter) -> Reply<RunPage> {
        if filter.nothing {
            return Ok(RunPage { runs: Vec::new(), next: None, problems: Vec::new() });
        }
        let folders = self.services().folders.clone();
        let apps = match filter.app {
            Some(app) => folders.code(&app).map(|_| app).into_iter().collect(),
            None => folders.apps(),
        };
        let limit = filter.query.limit;
        // One more, which tells whether there is a next page.
        let query = Arc::new(RunQuery { limit: limit + 1, ..filter.query });
        let parts = apps.chunks(apps.len().div_ceil(READERS).max(1)).map(|apps| {
            let (apps, folders, query) = (apps.to_vec(), folders.clone(), Arc::clone(&query));
            self.read(move || Newest::of(&apps, &folders, &query))
        });
        let mut newest = Newest::default();
        for part in futures::future::join_all(parts).await {
            let part = part?;
            newest.runs.extend(part.runs);
            newest.problems.extend(part.problems);
        }
        let more = newest.runs.len() > limit;
        let runs: Vec<RunSummary> = newest.runs.into_values().take(limit).collect();
        self.remember(runs.iter().map(|run| (run.run_id.clone(), run.app_id.clone())));
        let next = runs.last().filter(|_| more).map(|run| run.run_id.clone());
        Ok(RunPage { runs, next, problems: newest.problems })
    }
}

/// The newest runs of several ledgers.
#[derive(Default)]
struct Newest {
    runs: BTreeMap<Reverse<RunId>, RunSummary>,
    problems: Vec<Problem>,
}

impl Newest {
    /// Of each ledger no more is read than may be on the page.
    fn of(apps: &[AppId], folders: &Folders, query: &RunQuery) -> Self {
        let mut newest = Self::default();
        for app in apps {
            let path = folders.ledger(app);
            let read = Reader::open(&path).and_then(|reader| match reader {
                Some(reader) => reader.each_run(query, |row| newest.take(row, query.limit)),
                None => Ok(()),
            });
            if let Err(error) = read {
                newest.problems.push(ledger::problem(app, &path, &error));
            }
        }
        newest
    }

    /// Breaks when this run, and so every older one, is too old.
    fn take(&mut self, row: RunRow, limit: usize) -> ControlFlow<()> {
        if self.runs.len() == limit {
            match self.runs.last_entry() {
                Some(oldest) if oldest.key().0 < row.run_id => oldest.remove(),
                _ => return ControlFlow::Break(()),
            };
        }
        self.runs.insert(Reverse(row.run_id.clone()), row.into());
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_milliseconds_or_rfc_3339() {
        for (text, at) in [
            ("0", Some(0)),
            ("-5", Some(-5)),
            ("1767312000000", Some(1_767_312_000_000)),
            ("2026-01-02T00:00:00Z", Some(1_767_312_000_000)),
            ("2026-01-02T01:00:00.5 01:00", Some(1_767_312_000_500)),
            ("yesterday", None),
            ("", None),
            ("1e3", None),
        ] {
            assert_eq!(instant(text).ok(), at, "{text:?}");
        }
    }
}
