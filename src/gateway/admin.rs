//! The admin listener: the API through which the command line talks to a running daemon.
//!
//! Every request but `/healthz` needs the admin token, and names this listener in its `Host`. State changes are POST
//! with `application/json` only, so that a form on some web page cannot make one.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::core::run::RunEnd;
use crate::core::{Answer, FireRequest};
use crate::daemon::{Daemon, refusal};
use crate::fire::{AppId, AutomationId, Handle, RunId, TriggerInfo, TriggerOrigin};
use crate::gateway::events;
use crate::gateway::problem::ProblemDocument;
use crate::ledger::{self, LogRow, NodeRow, Reader, RunRow};
use crate::overview::Overview;

/// Bodies hold an input at the most.
const MAX_BODY: usize = 17 * 1024 * 1024;
/// The longest `?wait=`.
const MAX_WAIT_SECS: f64 = 600.0;

type Reply<T> = Result<T, ProblemDocument>;

#[derive(Clone)]
struct Api {
    daemon: Daemon,
    token: Arc<str>,
    hosts: Arc<[String]>,
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
    let address = listener.local_addr()?;
    let port = address.port();
    let hosts =
        [address.to_string(), format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")];
    let api = Api { daemon, token: Arc::from(token), hosts: Arc::from(hosts) };
    axum::serve(listener, router(api)).with_graceful_shutdown(shutdown).await
}

fn router(api: Api) -> Router {
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
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(api.clone(), guard));
    Router::new().route("/healthz", get(|| async { "ok\n" })).merge(guarded).with_state(api)
}

async fn guard(State(api): State<Api>, request: Request, next: Next) -> Reply<Response> {
    let refuse = |status, code, detail: &str| Err(ProblemDocument::new(status, code, detail));
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    if !host.is_some_and(|host| api.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "wrong_host", "the Host header does not name this listener");
    }
    let token =
        headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok()).and_then(|h| h.strip_prefix("Bearer "));
    if !token.is_some_and(|token| bool::from(token.as_bytes().ct_eq(api.token.as_bytes()))) {
        return refuse(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the admin token is missing or wrong; it is in .dirigent/token below the root",
        );
    }
    if cross_site(headers) {
        return refuse(StatusCode::FORBIDDEN, "cross_site", "requests from another origin are refused");
    }
    if request.method() == Method::POST && !is_json(headers) {
        let detail = "a POST must say `content-type: application/json`";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail);
    }
    Ok(next.run(request).await)
}

/// What a browser says of a request that another site made it send.
fn cross_site(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let origin = text(header::ORIGIN);
    let host = text(header::HOST).unwrap_or_default();
    let foreign = origin.is_some_and(|origin| origin.strip_prefix("http://") != Some(host));
    let site = headers.get("sec-fetch-site").map(|value| value.to_str().unwrap_or("?"));
    foreign || site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
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
    }
    let folders = api.daemon.services().folders.clone();
    tokio::task::spawn_blocking(move || {
        overview.add_history(|app| folders.ledger(app));
        overview
    })
    .await
    .map_err(|error| ProblemDocument::internal(&error))
}

fn handle_of(app: &str, id: &str) -> Reply<Handle> {
    match (AppId::new(app), AutomationId::new(id)) {
        (Ok(app), Ok(id)) => Ok(Handle::new(app, id)),
        _ => Err(unknown_automation(&format!("{app}/{id}"))),
    }
}

fn unknown_automation(handle: &str) -> ProblemDocument {
    ProblemDocument::not_found("unknown_automation", format!("there is no automation {handle}"))
}

async fn automation(State(api): State<Api>, Path((app, id)): Path<(String, String)>) -> Reply<Json<Value>> {
    let handle = handle_of(&app, &id)?;
    let view = overview(&api, Some(handle.clone())).await?.automations.pop();
    let view = view.ok_or_else(|| unknown_automation(&handle.to_string()))?;
    let folder = api.daemon.services().folders.code(&handle.app).ok_or_else(|| unknown_automation(&app))?;
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
    body: Bytes,
) -> Reply<Response> {
    let handle = handle_of(&app, &id)?;
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

async fn fire(
    api: &Api,
    handle: Handle,
    trigger: TriggerInfo,
    input_json: Option<String>,
    wait: Duration,
) -> Reply<Response> {
    let request = FireRequest {
        handle: handle.clone(),
        origin: TriggerOrigin::Manual,
        trigger,
        input_json,
        parent: None,
        synced: false,
        opened: None,
        ended: None,
    };
    let (answer, end) = api.daemon.fire_and_follow(request).await;
    let (run, status) = match answer {
        Answer::Accepted { run, status } => (run, status),
        other => return Err(refused(&handle, other)),
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

fn refused(handle: &Handle, answer: Answer) -> ProblemDocument {
    let detail = refusal(handle, Some(answer.clone()));
    match answer {
        Answer::Unknown => unknown_automation(&handle.to_string()),
        Answer::Busy { active } => {
            ProblemDocument::new(StatusCode::CONFLICT, "busy", detail).with("runId", active.as_str())
        }
        Answer::Unrunnable { problems } => {
            ProblemDocument::new(StatusCode::CONFLICT, "invalid_manifest", detail).with("problems", json!(problems))
        }
        Answer::NotRecorded { .. } => ProblemDocument::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ledger",
            "the run could not be recorded, so it is not run",
        ),
        _ => stopping(),
    }
}

/// Finds the app whose ledger holds a run, and reads from it.
async fn with_run<T: Send + 'static>(
    api: &Api,
    run: &str,
    read: impl FnOnce(&Reader, RunRow) -> Result<T, ledger::LedgerError> + Send + 'static,
) -> Reply<T> {
    let unknown = || ProblemDocument::not_found("unknown_run", "there is no such run");
    let run = RunId::new(run).map_err(|_| unknown())?;
    let folders = api.daemon.services().folders.clone();
    let found = tokio::task::spawn_blocking(move || {
        for app in folders.apps() {
            // A ledger that cannot be read stops its own app only: the run may stand in another one.
            let found = Reader::open(&folders.ledger(&app))
                .and_then(|reader| reader.map(|reader| Ok((reader.run(&run)?, reader))).transpose());
            let (row, reader) = match found {
                Ok(Some((Some(row), reader))) => (row, reader),
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(%app, %error, "its ledger cannot be read");
                    continue;
                }
            };
            return read(&reader, row).map(Some);
        }
        Ok::<_, ledger::LedgerError>(None)
    })
    .await
    .map_err(|error| ProblemDocument::internal(&error))?;
    found.map_err(|error| ProblemDocument::internal(&error))?.ok_or_else(unknown)
}

async fn run_detail(State(api): State<Api>, Path(run): Path<String>) -> Reply<Json<Value>> {
    let detail: (RunRow, Vec<NodeRow>, Vec<LogRow>) = with_run(&api, &run, |reader, row| {
        let (nodes, logs) = (reader.nodes(&row.run_id)?, reader.logs(&row.run_id, None, usize::MAX)?);
        Ok((row, nodes, logs))
    })
    .await?;
    Ok(Json(json!({ "run": detail.0, "nodes": detail.1, "logs": detail.2 })))
}

async fn run_events(State(api): State<Api>, Path(run): Path<String>) -> Reply<Response> {
    // Listen first, then read: what happens in between is seen twice and told once.
    let live = api.daemon.services().bus.runs();
    let past = with_run(&api, &run, events::Past::read).await?;
    Ok(events::stream(past, live).into_response())
}

async fn cancel(State(api): State<Api>, Path(run): Path<String>) -> Reply<Response> {
    let row = with_run(&api, &run, |_, row| Ok(row)).await?;
    match api.daemon.cancel(row.run_id.clone()).await {
        Answer::Cancelling => {
            Ok((StatusCode::ACCEPTED, Json(json!({ "runId": row.run_id, "status": "cancelling" }))).into_response())
        }
        Answer::NotOpen => Err(ProblemDocument::new(StatusCode::CONFLICT, "not_open", "the run has ended")
            .with("status", row.status.as_str())),
        _ => Err(stopping()),
    }
}

async fn replay(
    State(api): State<Api>,
    Path(run): Path<String>,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Reply<Response> {
    let wait = wait_of(wait)?;
    let (row, input) = with_run(&api, &run, |reader, row| {
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
    use std::collections::HashMap;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        (&pairs).try_into().unwrap()
    }

    #[test]
    fn what_another_site_sends_is_told_apart() {
        for (pairs, cross) in [
            (vec![("host", "127.0.0.1:1")], false),
            (vec![("host", "127.0.0.1:1"), ("origin", "http://127.0.0.1:1")], false),
            (vec![("host", "127.0.0.1:1"), ("origin", "http://evil.example")], true),
            (vec![("host", "127.0.0.1:1"), ("origin", "null")], true),
            (vec![("host", "127.0.0.1:1"), ("sec-fetch-site", "cross-site")], true),
            (vec![("host", "127.0.0.1:1"), ("sec-fetch-site", "same-site")], true),
            (vec![("host", "127.0.0.1:1"), ("sec-fetch-site", "none")], false),
        ] {
            assert_eq!(cross_site(&headers(&pairs)), cross, "{pairs:?}");
        }
    }

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
}
