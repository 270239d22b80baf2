//! The admin listener: the API through which the command line talks to a running daemon. Who may ask it is
//! [`access`]'s to say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::near_name::nearest_handle;
use crate::core::run::RunEnd;
use crate::core::{Answer, FireRequest};
use crate::daemon::{Daemon, refusal};
use crate::fire::{AppId, AutomationId, Handle, Problem, RunId, TriggerInfo, TriggerOrigin};
use crate::gateway::access::{self, Access, LocalEnd};
use crate::gateway::events;
use crate::gateway::problem::ProblemDocument;
use crate::ledger::{self, LogRow, NodeRow, Reader, RunRow};
use crate::overview::Overview;

/// Bodies hold an input at the most, and what stands around it.
const AROUND_AN_INPUT: u64 = 64 * 1024;
/// The longest `?wait=`.
const MAX_WAIT_SECS: f64 = 600.0;
/// How long a list waits to learn whether a ledger that could not be written can be used again.
const SECOND_TRY: Duration = Duration::from_secs(1);

type Reply<T> = Result<T, ProblemDocument>;

#[derive(Clone)]
struct Api {
    daemon: Daemon,
}

/// Serves the admin API on `listener` until `shutdown` resolves; requests that are under way are answered.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    daemon: Daemon,
    listener: TcpListener,
    token: String,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let access = Access { token: Arc::from(token), bound: listener.local_addr()? };
    let service = router(Api { daemon }, access).into_make_service_with_connect_info::<LocalEnd>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await
}

fn router(api: Api, access: Access) -> Router {
    let max_body = api.daemon.services().limits.value_bytes + AROUND_AN_INPUT;
    let guarded = Router::new()
        .route("/readyz", get(ready))
        .route("/v1/automations", get(list))
        .route("/v1/automations/{app}/{id}", get(automation))
        .route("/v1/automations/{app}/{id}/run", post(run))
        .route("/v1/runs/{run}", get(run_detail))
        .route("/v1/runs/{run}/events", get(run_events))
        .route("/v1/runs/{run}/cancel", post(cancel))
        .route("/v1/runs/{run}/replay", post(replay))
        .fallback(|| async { ProblemDocument::not_found("not_found", "there is no such resource") })
        .method_not_allowed_fallback(|| async {
            ProblemDocument::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method")
        })
        .layer(DefaultBodyLimit::max(usize::try_from(max_body).unwrap_or(usize::MAX)))
        .layer(middleware::from_fn_with_state(access, access::guard));
    Router::new().route("/healthz", get(|| async { "ok\n" })).merge(guarded).with_state(api)
}

async fn ready(State(api): State<Api>) -> Reply<&'static str> {
    api.daemon.look(|_| ()).await.map(|()| "ready\n").ok_or_else(stopping)
}

fn stopping() -> ProblemDocument {
    ProblemDocument::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the daemon is stopping")
}

async fn list(State(api): State<Api>) -> Reply<Json<Overview>> {
    let mut overview = overview(&api, None).await?;
    if let Some(state) = api.daemon.watcher_state() {
        overview.problems.extend(state.problems);
    }
    Ok(Json(overview))
}

/// The registry's view with history, of one automation or of all.
async fn overview(api: &Api, only: Option<Handle>) -> Reply<Overview> {
    let mut overview =
        api.daemon.look(|state| Overview::new(&state.registry, &state.schedule)).await.ok_or_else(stopping)?;
    if let Some(only) = only {
        overview.automations.retain(|view| view.handle == only);
    } else {
        overview.problems.extend(api.daemon.services().mcp.problems().await);
    }
    let (folders, ledgers) = (api.daemon.services().folders.clone(), api.daemon.services().ledgers.clone());
    let apps: BTreeSet<AppId> = overview.automations.iter().map(|view| view.app_id.clone()).collect();
    // What was in the way of a write may be gone, and the next fire be a week off. Recovery writes nothing.
    let blocked = apps.iter().filter(|app| ledgers.obstacle(app).is_some());
    let tries = futures::future::join_all(blocked.map(|app| ledgers.recover(app)));
    // Without an answer the obstacle is taken to stand.
    let _ = tokio::time::timeout(SECOND_TRY, tries).await;
    tokio::task::spawn_blocking(move || {
        overview.add_history(|app| folders.ledger(app), |app| ledgers.obstacle(app));
        let moved = apps.iter().filter_map(|app| Some(moved_aside(app, &ledgers.quarantined(app)?)));
        overview.problems.extend(moved);
        overview
    })
    .await
    .map_err(|error| ProblemDocument::internal(&error))
}

fn moved_aside(app: &AppId, to: &std::path::Path) -> Problem {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Problem::warning("ledger_moved", "", "the app's ledger was damaged, so it was moved aside and a new one begun")
        .with_hint("`sqlite3 <file> .recover` saves what is left of it")
        .in_path(format!("{app}/{name}"))
}

async fn handle_of(api: &Api, app: &str, id: &str) -> Reply<Handle> {
    match (AppId::new(app), AutomationId::new(id)) {
        (Ok(app), Ok(id)) => Ok(Handle::new(app, id)),
        _ => Err(unknown_automation(api, &format!("{app}/{id}")).await),
    }
}

async fn unknown_automation(api: &Api, handle: &str) -> ProblemDocument {
    let known = api.daemon.look(|state| state.registry.automations().map(|a| a.handle.clone()).collect::<Vec<_>>());
    let known = known.await.unwrap_or_default();
    let document = ProblemDocument::not_found("unknown_automation", format!("there is no automation {handle}"));
    match nearest_handle(handle, &known.iter().collect::<Vec<_>>()) {
        Some(near) => document.with("hint", format!("did you mean {near}?")),
        None => document,
    }
}

async fn automation(State(api): State<Api>, Path((app, id)): Path<(String, String)>) -> Reply<Json<Value>> {
    let handle = handle_of(&api, &app, &id).await?;
    let mut overview = overview(&api, Some(handle.clone())).await?;
    let folder = api.daemon.services().folders.code(&handle.app);
    let (Some(mut view), Some(folder)) = (overview.automations.pop(), folder) else {
        return Err(unknown_automation(&api, &handle.to_string()).await);
    };
    // In the list, what is wrong with an app's ledger is told once; here it is a reason why this one does not run.
    view.problems.extend(overview.problems.into_iter().filter(|problem| problem.code == "ledger"));
    let (manifest, source) = tokio::task::spawn_blocking(move || {
        let relative = std::path::Path::new("automations").join(handle.automation.as_str()).join("automation.json");
        let max = crate::core::manifest::MAX_MANIFEST_BYTES;
        let manifest = crate::watch::read_app_file(&folder, &relative, max).ok();
        let source = crate::watch::read_handler(&folder, &handle.automation).ok();
        let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (text(manifest), text(source))
    })
    .await
    .map_err(|error| ProblemDocument::internal(&error))?;
    Ok(Json(json!({ "automation": view, "manifest": manifest, "handler": source })))
}

#[derive(Debug, serde::Deserialize)]
struct Wait {
    /// Seconds to wait for the run's end before answering.
    wait: Option<f64>,
}

async fn run(
    State(api): State<Api>,
    Path((app, id)): Path<(String, String)>,
    wait: Result<Query<Wait>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Reply<Response> {
    let handle = handle_of(&api, &app, &id).await?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(api.daemon.services().limits.value_bytes),
        status => ProblemDocument::new(status, "bad_body", "the body could not be read"),
    })?;
    let input_json = input_of(&body)?;
    let wait = wait_of(wait)?;
    fire(&api, handle, TriggerInfo::default(), input_json, wait).await
}

/// The body is `{ "input"?: any }`, or nothing.
fn input_of(body: &[u8]) -> Reply<Option<String>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default, deserialize_with = "given")]
        input: Option<Box<serde_json::value::RawValue>>,
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let parsed: Body = serde_json::from_slice(body).map_err(|error| {
        ProblemDocument::new(StatusCode::BAD_REQUEST, "bad_body", format!("the body is {{\"input\": …}}: {error}"))
    })?;
    Ok(parsed.input.map(|raw| raw.get().to_owned()))
}

/// A `null` that was given is a value, unlike a field that was not.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Box<serde_json::value::RawValue>>, D::Error> {
    serde::Deserialize::deserialize(d).map(Some)
}

fn wait_of(wait: Result<Query<Wait>, QueryRejection>) -> Reply<Duration> {
    let bad = |told: String| ProblemDocument::new(StatusCode::BAD_REQUEST, "bad_query", told);
    let Query(Wait { wait }) = wait.map_err(|rejection| bad(rejection.body_text()))?;
    let seconds = wait.unwrap_or(0.0);
    if !(0.0..=MAX_WAIT_SECS).contains(&seconds) {
        return Err(bad(format!("wait is {seconds}; it must be from 0 to {MAX_WAIT_SECS} seconds")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn too_large(most: u64) -> ProblemDocument {
    let detail = format!("an input may have {most} bytes (`limits.value_bytes`)");
    ProblemDocument::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

/// What a handler could not be given is not taken either.
fn check_input(input_json: Option<&str>, most: u64) -> Reply<()> {
    match input_json {
        Some(input) if input.len() as u64 > most => Err(too_large(most)),
        Some(input) if is_too_deep(input) => {
            Err(ProblemDocument::new(StatusCode::BAD_REQUEST, "too_deep", too_deep("the input")))
        }
        _ => Ok(()),
    }
}

async fn fire(
    api: &Api,
    handle: Handle,
    trigger: TriggerInfo,
    input_json: Option<String>,
    wait: Duration,
) -> Reply<Response> {
    check_input(input_json.as_deref(), api.daemon.services().limits.value_bytes)?;
    let request = FireRequest {
        handle: handle.clone(),
        origin: TriggerOrigin::Manual,
        trigger,
        input_json,
        parent: None,
        synced: false,
        skip: None,
        opened: None,
        ended: None,
    };
    let (answer, end) = api.daemon.fire_and_follow(request).await;
    let (run, status) = match answer {
        Answer::Accepted { run, status } => (run, status),
        other => return Err(refused(api, &handle, other).await),
    };
    if !wait.is_zero()
        && let Ok(Ok(Answer::Ended(end))) = tokio::time::timeout(wait, end).await
    {
        return Ok((StatusCode::OK, Json(ended(&run, &end))).into_response());
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "runId": run, "status": status }))).into_response())
}

fn ended(run: &RunId, end: &RunEnd) -> Value {
    let output = end.output_json.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({
        "runId": run,
        "status": end.status,
        "summary": end.summary,
        "output": output,
        "error": end.error,
        "errorCode": end.error_code,
    })
}

async fn refused(api: &Api, handle: &Handle, answer: Answer) -> ProblemDocument {
    let detail = refusal(handle, Some(answer.clone()));
    match answer {
        Answer::Unknown => unknown_automation(api, &handle.to_string()).await,
        Answer::Busy { active } => {
            ProblemDocument::new(StatusCode::CONFLICT, "busy", detail).with("runId", active.as_str())
        }
        Answer::Unrunnable { problems } => {
            ProblemDocument::new(StatusCode::CONFLICT, "invalid_manifest", detail).with("problems", json!(problems))
        }
        Answer::NotRecorded { message } => not_recorded(api, &handle.app, &message),
        _ => stopping(),
    }
}

/// Why a row could not be written: what is in the way of the ledger, or else what the caller was answered with.
fn not_recorded(api: &Api, app: &AppId, message: &str) -> ProblemDocument {
    let services = api.daemon.services();
    let ledger = services.folders.ledger(app);
    let (message, hint) = match services.ledgers.obstacle(app) {
        Some(error) => {
            let problem = ledger::problem(app, &ledger, &error);
            (problem.message, problem.hint)
        }
        None => (ledger::without_host_paths(app, &ledger, message), None),
    };
    let detail = format!("{app}/{}: {message}", ledger::FILE);
    let document = ProblemDocument::new(StatusCode::SERVICE_UNAVAILABLE, "ledger", detail);
    match hint {
        Some(hint) => document.with("hint", hint),
        None => document,
    }
}

fn run_id_of(run: &str) -> Reply<RunId> {
    RunId::new(run).map_err(|_| unknown_run())
}

fn unknown_run() -> ProblemDocument {
    ProblemDocument::not_found("unknown_run", "there is no such run")
}

/// Finds the app whose ledger holds a run, and reads from it. A ledger that cannot be read stops its own app only: the
/// run may stand in another one; when it stands in none of those that can be read, that is all that can be said.
async fn with_run<T: Send + 'static>(
    api: &Api,
    run: RunId,
    read: impl FnOnce(&Reader, RunRow) -> Result<T, ledger::LedgerError> + Send + 'static,
) -> Reply<T> {
    let folders = api.daemon.services().folders.clone();
    let found = tokio::task::spawn_blocking(move || {
        let mut unread = Vec::new();
        for app in folders.apps() {
            let found = Reader::open(&folders.ledger(&app))
                .and_then(|reader| reader.map(|reader| Ok((reader.run(&run)?, reader))).transpose());
            match found {
                Ok(Some((Some(row), reader))) => return read(&reader, row).map(Ok),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%app, %error, "its ledger cannot be read");
                    unread.push(app);
                }
            }
        }
        Ok::<_, ledger::LedgerError>(Err(unread))
    })
    .await
    .map_err(|error| ProblemDocument::internal(&error))?;
    found.map_err(|error| ProblemDocument::internal(&error))?.map_err(|unread| {
        if unread.is_empty() {
            return unknown_run();
        }
        let names: Vec<&str> = unread.iter().map(AppId::as_str).collect();
        let detail = format!("no ledger that can be read has this run; unreadable are those of {}", names.join(", "));
        ProblemDocument::new(StatusCode::SERVICE_UNAVAILABLE, "ledger", detail).with("apps", names)
    })
}

async fn run_detail(State(api): State<Api>, Path(run): Path<String>) -> Reply<Json<Value>> {
    let detail: (RunRow, Vec<NodeRow>, Vec<LogRow>) = with_run(&api, run_id_of(&run)?, |reader, row| {
        let (nodes, logs) = (reader.nodes(&row.run_id)?, reader.logs(&row.run_id, None, usize::MAX)?);
        Ok((row, nodes, logs))
    })
    .await?;
    Ok(Json(json!({ "run": detail.0, "nodes": detail.1, "logs": detail.2 })))
}

async fn run_events(State(api): State<Api>, Path(run): Path<String>) -> Reply<Response> {
    // Listen first, then read: what happens in between is seen twice and told once.
    let live = api.daemon.services().bus.runs();
    let past = with_run(&api, run_id_of(&run)?, events::Past::read).await?;
    Ok(events::stream(past, live).into_response())
}

async fn cancel(State(api): State<Api>, Path(run): Path<String>) -> Reply<Response> {
    let run = run_id_of(&run)?;
    // The daemon knows what it runs, whatever state the ledgers are in; they say what became of the rest.
    match api.daemon.cancel(run.clone()).await {
        Answer::Cancelling => {
            Ok((StatusCode::ACCEPTED, Json(json!({ "runId": run, "status": "cancelling" }))).into_response())
        }
        Answer::NotOpen => {
            let row = with_run(&api, run, |_, row| Ok(row)).await?;
            let detail =
                if row.status.is_open() { "this daemon does not run it (any more)" } else { "the run has ended" };
            Err(ProblemDocument::new(StatusCode::CONFLICT, "not_open", detail).with("status", row.status.as_str()))
        }
        _ => Err(stopping()),
    }
}

async fn replay(
    State(api): State<Api>,
    Path(run): Path<String>,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Reply<Response> {
    let wait = wait_of(wait)?;
    let (row, input) = with_run(&api, run_id_of(&run)?, |reader, row| {
        let input = reader.input(&row.run_id)?;
        Ok((row, input))
    })
    .await?;
    if input.as_deref().is_some_and(ledger::is_truncated) {
        let detail = "its input was too long to be kept in full, so it cannot be replayed";
        return Err(ProblemDocument::new(StatusCode::CONFLICT, "input_truncated", detail));
    }
    let trigger = TriggerInfo { replay_of: Some(row.run_id.clone()), ..TriggerInfo::default() };
    fire(&api, Handle::new(row.app_id, row.automation_id), trigger, input, wait).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_input_or_nothing() {
        assert_eq!(input_of(b" ").unwrap(), None);
        assert_eq!(input_of(b"{}").unwrap(), None);
        assert_eq!(input_of(br#"{"input": {"a": 1}}"#).unwrap().as_deref(), Some(r#"{"a": 1}"#));
        assert_eq!(input_of(br#"{"input": null}"#).unwrap().as_deref(), Some("null"));
        for bad in ["[", r#"{"inputs": 1}"#, "3"] {
            assert!(input_of(bad.as_bytes()).is_err(), "{bad}");
        }
    }

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
            assert_eq!(taken.err().map(|document| document.status_and_code()), refused, "{}", input.len());
        }
    }
}
