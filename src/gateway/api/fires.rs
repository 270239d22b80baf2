//! Run now, cancel and replay.
//!
//! A Run now may carry a key: the first with that key is the fire, and every further one within the window is told of
//! it. Which run took a key stands in the app's ledger, written with the run's own row (`ledger::Delivery`). Here,
//! posts that repeat each other only wait in line, so that the second finds what the first has written, whatever the
//! automation's concurrency would say to a second fire.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::extract::{FromQuery, IdempotencyKey, Input, NoBody, NoParams, Params, QueryPairs, Run, Target, too_large};
use super::{Api, Reply, openapi};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::run::RunEnd;
use crate::core::{Answer, FireRequest};
use crate::daemon::{Expected, refusal};
use crate::fire::{AppId, AutomationId, ErrorCode, Handle, RunId, RunStatus, TriggerInfo, TriggerOrigin};
use crate::gateway::events::{self, Told};
use crate::gateway::problem::ProblemDocument;
use crate::ledger::{self, Delivery, JsonText, RunRow};

/// The longest `?wait=`, seconds.
const MAX_WAIT_SECS: f64 = 600.0;
/// On an answer that tells of an earlier fire with the same key.
const REPLAYED: &str = "idempotency-replayed";

/// A run that has not ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    run_id: RunId,
    status: RunStatus,
}

/// A run that has ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    run_id: RunId,
    status: RunStatus,
    #[schema(required)]
    summary: Option<String>,
    #[schema(required, value_type = JsonText)]
    output: Option<Box<RawValue>>,
    #[schema(required)]
    error: Option<String>,
    /// One of the error codes; of a run of a later version, maybe another.
    #[schema(required)]
    error_code: Option<String>,
}

/// A run that is being cancelled.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cancelling {
    run_id: RunId,
    /// `cancelling`: its end follows within a second.
    status: &'static str,
}

/// `?wait=`
pub struct Wait(Duration);

impl FromQuery for Wait {
    const NAMES: &'static [&'static str] = &["wait"];

    fn from_query(query: &QueryPairs) -> Result<Self, String> {
        query.seconds("wait", MAX_WAIT_SECS).map(|wait| Self(wait.unwrap_or_default()))
    }
}

/// Runs an automation now, whether or not it has triggers or is enabled.
///
/// It is answered when the run's row is written; with `wait`, when the run has ended or that time is over. With an
/// `Idempotency-Key`, the same key for the same automation within 24 hours is answered with the first run, also after a
/// restart; the answer then carries `Idempotency-Replayed: true`.
#[utoipa::path(
    post, path = "/v1/automations/{app}/{id}/run", operation_id = "runAutomation", tag = openapi::RUNS,
    params(
        ("app" = AppId, Path, example = "auto.heartbeat"),
        ("id" = AutomationId, Path, example = "beat"),
        ("wait" = Option<f64>, Query, minimum = 0, maximum = 600,
            description = "Seconds to wait for the run's end before answering.", example = 5),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
            pattern = "^[!#-\\[\\]-~]+$", description = "Makes the fire one, however often it is asked for."),
    ),
    request_body = openapi::RunInput,
    responses(
        (status = 200, description = "The run has ended.", body = Ended),
        (status = 202, description = "The run is queued or running.", body = Accepted),
        (status = 409, response = openapi::Conflict),
        (status = 422, description = "`idempotency_key_reused`: the key was used with another input; `runId` names \
            that run.", body = openapi::ProblemSchema, content_type = openapi::PROBLEM),
    )
)]
pub async fn run(
    State(api): State<Api>,
    Target(handle): Target,
    Params(Wait(wait)): Params<Wait>,
    IdempotencyKey(key): IdempotencyKey,
    Input(input_json): Input,
) -> Reply<Response> {
    check_input(input_json.as_deref(), api.limits().value_bytes)?;
    let fingerprint = ledger::fingerprint(input_json.as_deref());
    let request = request(&handle, TriggerInfo { delivery_id: key.clone(), ..TriggerInfo::default() }, input_json);
    let Some(key) = key else { return api.fire(request).await?.answer(wait).await };
    // On its own, so that a client that goes away leaves no fire whose key is free again.
    let keyed = {
        let (api, key) = (api.clone(), key.clone());
        tokio::spawn(async move { api.fire_once(request, &key).await })
    };
    match keyed.await.map_err(|error| ProblemDocument::internal(&error))?? {
        Fired::New(started) => started.answer(wait).await,
        Fired::Before(first) => api.repeated(&handle, &key, &fingerprint, first, wait).await,
    }
}

/// Fires an automation again with the input of an earlier run.
#[utoipa::path(
    post, path = "/v1/runs/{runId}/replay", operation_id = "replayRun", tag = openapi::RUNS,
    params(
        ("runId" = RunId, Path),
        ("wait" = Option<f64>, Query, minimum = 0, maximum = 600,
            description = "Seconds to wait for the new run's end before answering."),
    ),
    request_body = openapi::Empty,
    responses(
        (status = 200, description = "The new run has ended.", body = Ended),
        (status = 202, description = "The new run is queued or running.", body = Accepted),
        (status = 409, response = openapi::Conflict),
    )
)]
pub async fn replay(
    State(api): State<Api>,
    Run(run): Run,
    Params(Wait(wait)): Params<Wait>,
    _: NoBody,
) -> Reply<Response> {
    let read = api.with_run(run, |reader, row| {
        let input = reader.input(&row.run_id)?;
        Ok((row, input))
    });
    let (row, input) = read.await?;
    if input.as_deref().is_some_and(ledger::is_truncated) {
        let detail = "its input was too long to be kept in full, so it cannot be replayed";
        return Err(ProblemDocument::new(StatusCode::CONFLICT, "input_truncated", detail));
    }
    check_input(input.as_deref(), api.limits().value_bytes)?;
    let trigger = TriggerInfo { replay_of: Some(row.run_id.clone()), ..TriggerInfo::default() };
    api.fire(request(&Handle::new(row.app_id, row.automation_id), trigger, input)).await?.answer(wait).await
}

/// Cancels an open run. Its end is recorded within a second.
#[utoipa::path(
    post, path = "/v1/runs/{runId}/cancel", operation_id = "cancelRun", tag = openapi::RUNS,
    params(("runId" = RunId, Path)),
    request_body = openapi::Empty,
    responses(
        (status = 202, description = "It is being cancelled.", body = Cancelling),
        (status = 409, response = openapi::Conflict),
    )
)]
pub async fn cancel(State(api): State<Api>, Run(run): Run, Params(_): Params<NoParams>, _: NoBody) -> Reply<Response> {
    // The daemon knows what it runs, whatever state the ledgers are in; they say what became of the rest.
    match api.daemon.cancel(run.clone()).await {
        Answer::Cancelling => {
            Ok((StatusCode::ACCEPTED, Json(Cancelling { run_id: run, status: "cancelling" })).into_response())
        }
        Answer::NotOpen => {
            let row = api.with_run(run, |_, row| Ok(row)).await?;
            let detail =
                if row.status.is_open() { "this daemon does not run it (any more)" } else { "the run has ended" };
            Err(ProblemDocument::new(StatusCode::CONFLICT, "not_open", detail).with("runStatus", row.status.as_str()))
        }
        _ => Err(ProblemDocument::stopping()),
    }
}

/// What a handler could not be given is not taken either.
fn check_input(input_json: Option<&str>, most: u64) -> Reply<()> {
    match input_json {
        Some(input) if input.len() as u64 > most => Err(too_large(most)),
        Some(input) if is_too_deep(input) => Err(ProblemDocument::bad_request("too_deep", too_deep("the input"))),
        _ => Ok(()),
    }
}

fn request(handle: &Handle, trigger: TriggerInfo, input_json: Option<String>) -> FireRequest {
    FireRequest { trigger, input_json, ..FireRequest::new(handle.clone(), TriggerOrigin::Manual) }
}

/// A run that was just accepted.
pub struct Started {
    accepted: Accepted,
    end: Expected,
}

enum Fired {
    New(Started),
    /// The key was taken before.
    Before(Delivery),
}

/// What there is to say of a run when the wait is over.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum SoFar {
    Ended(Ended),
    Open(Accepted),
}

impl Started {
    pub(in crate::gateway) fn run_id(&self) -> &RunId {
        &self.accepted.run_id
    }

    pub(in crate::gateway) async fn so_far(self, wait: Duration) -> SoFar {
        let Self { accepted, end } = self;
        if !wait.is_zero()
            && let Ok(Ok(Answer::Ended(end))) = tokio::time::timeout(wait, end).await
        {
            return SoFar::Ended(Ended::of(accepted.run_id, end));
        }
        SoFar::Open(accepted)
    }

    async fn answer(self, wait: Duration) -> Reply<Response> {
        Ok(match self.so_far(wait).await {
            SoFar::Ended(ended) => Json(ended).into_response(),
            SoFar::Open(accepted) => (StatusCode::ACCEPTED, Json(accepted)).into_response(),
        })
    }
}

impl Ended {
    fn of(run_id: RunId, end: RunEnd) -> Self {
        Self {
            run_id,
            status: end.status,
            summary: end.summary,
            output: end.output_json.and_then(|text| RawValue::from_string(text).ok()),
            error: end.error,
            error_code: end.error_code.map(|code| ErrorCode::as_str(code).to_owned()),
        }
    }

    fn of_row(row: RunRow) -> Self {
        Self {
            run_id: row.run_id,
            status: row.status,
            summary: row.summary,
            output: row.output.map(JsonText::into_string).and_then(|text| RawValue::from_string(text).ok()),
            error: row.error,
            error_code: row.error_code,
        }
    }
}

impl Api {
    /// Fires an automation by hand.
    pub(in crate::gateway) async fn run_now(&self, handle: &Handle, input_json: Option<String>) -> Reply<Started> {
        check_input(input_json.as_deref(), self.limits().value_bytes)?;
        self.fire(request(handle, TriggerInfo::default(), input_json)).await
    }

    async fn fire(&self, request: FireRequest) -> Reply<Started> {
        let handle = request.handle.clone();
        match self.daemon.fire_and_follow(request).await {
            (Answer::Accepted { run, status }, end) => {
                self.remember([(run.clone(), handle.app)]);
                Ok(Started { accepted: Accepted { run_id: run, status }, end })
            }
            (other, _) => Err(self.not_fired(&handle, other).await),
        }
    }

    /// Fires unless the key was taken before.
    async fn fire_once(&self, request: FireRequest, key: &str) -> Reply<Fired> {
        let handle = request.handle.clone();
        let _turn = self.shared.turns.take(&handle, key).await;
        if let Some(first) = self.delivery(&handle, key).await? {
            return Ok(Fired::Before(first));
        }
        self.fire(request).await.map(Fired::New)
    }

    async fn delivery(&self, handle: &Handle, key: &str) -> Reply<Option<Delivery>> {
        let services = self.services();
        if services.folders.code(&handle.app).is_none() {
            return Ok(None);
        }
        let (slug, at) = (ledger::run_now_slug(&handle.automation), services.clock.now_ms());
        let found = services.ledgers.delivery(&handle.app, &slug, key, at).await;
        found.map_err(|error| self.not_recorded(&handle.app, &error.to_string()))
    }

    /// Answers with the run that took the key.
    async fn repeated(
        &self,
        handle: &Handle,
        key: &str,
        fingerprint: &str,
        first: Delivery,
        wait: Duration,
    ) -> Reply<Response> {
        let run_id = first.run_id.clone();
        if first.fingerprint.as_deref() != Some(fingerprint) {
            let detail = "this Idempotency-Key was used with another input";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let refused = ProblemDocument::new(status, "idempotency_key_reused", detail);
            return Err(refused.with("runId", run_id.as_str()));
        }
        self.remember([(run_id.clone(), handle.app.clone())]);
        if first.status.is_none() && !wait.is_zero() {
            // When the time is over, the row says how far it is.
            let _ = tokio::time::timeout(wait, self.ended(run_id.clone())).await;
        }
        let row = self.row_in(&handle.app, &run_id).await?;
        let mut response = match row {
            Some(row) if row.status.is_open() => {
                (StatusCode::ACCEPTED, Json(Accepted { run_id, status: row.status })).into_response()
            }
            Some(row) => Json(Ended::of_row(row)).into_response(),
            // Retention has dropped the row; what is known of the key is told.
            None => {
                let Delivery { run_id, status, summary, error, .. } =
                    self.delivery(handle, key).await?.unwrap_or(first);
                let status = status.unwrap_or(RunStatus::Running);
                Json(Ended { run_id, status, summary, output: None, error, error_code: None }).into_response()
            }
        };
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        Ok(response)
    }

    /// Returns when an open run has ended.
    async fn ended(&self, run: RunId) -> Reply<()> {
        let live = self.services().bus.runs();
        let past = self.with_run(run, |reader, row| events::Past::read(reader, row, Told::default())).await?;
        events::stream(past, live).for_each(|_| std::future::ready(())).await;
        Ok(())
    }

    async fn row_in(&self, app: &AppId, run: &RunId) -> Reply<Option<RunRow>> {
        let (path, run) = (self.services().folders.ledger(app), run.clone());
        let read = self.read(move || match ledger::Reader::open(&path)? {
            Some(reader) => reader.run(&run),
            None => Ok(None),
        });
        read.await?.map_err(|error| self.not_recorded(app, &error.to_string()))
    }

    async fn not_fired(&self, handle: &Handle, answer: Answer) -> ProblemDocument {
        let detail = refusal(handle, Some(answer.clone()));
        match answer {
            Answer::Unknown => self.unknown_automation(&handle.to_string()).await,
            Answer::Busy { active } => {
                ProblemDocument::new(StatusCode::CONFLICT, "busy", detail).with("runId", active.as_str())
            }
            Answer::Unrunnable { problems } => {
                ProblemDocument::new(StatusCode::CONFLICT, "invalid_manifest", detail).with("problems", json!(problems))
            }
            Answer::NotRecorded { message } => self.not_recorded(&handle.app, &message),
            _ => ProblemDocument::stopping(),
        }
    }

    /// Why a ledger could not be written, or read: what is in its way, or else what the caller was answered with.
    fn not_recorded(&self, app: &AppId, message: &str) -> ProblemDocument {
        let services = self.services();
        let path = services.folders.ledger(app);
        let (message, hint) = match services.ledgers.obstacle(app) {
            Some(error) => {
                let problem = ledger::problem(app, &path, &error);
                (problem.message, problem.hint)
            }
            None => (ledger::without_host_paths(app, &path, message), None),
        };
        ProblemDocument::unavailable("ledger", format!("{app}/{}: {message}", ledger::FILE)).with_hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::api::extract::input_of;

    #[test]
    fn an_input_is_taken_up_to_its_limits() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let depth = crate::core::json_depth::MAX_JSON_DEPTH;
        for (input, refused) in [
            (format!("\"{}\"", "x".repeat(998)), None),
            (format!("\"{}\"", "x".repeat(999)), Some((413, "too_large"))),
            (nested(depth), None),
            (nested(depth + 1), Some((400, "too_deep"))),
            (nested(300), Some((400, "too_deep"))),
        ] {
            let taken = input_of(format!("{{\"input\":{input}}}").as_bytes());
            let taken = taken.and_then(|input| check_input(input.as_deref(), 1000));
            let got = taken.err();
            assert_eq!(got.as_ref().map(ProblemDocument::status_and_code), refused, "{}", input.len());
        }
    }
}
