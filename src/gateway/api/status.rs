//! How the daemon is: alive, ready, and what is wrong under its root.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{NoParams, Params};
use super::{Api, Reply, openapi};
use crate::core::{Answer, FireRequest};
use crate::fire::{AppId, AutomationId, Handle, Problem, RunId, TriggerInfo, TriggerOrigin};
use crate::gateway::problem::ProblemDocument;

/// Everything that is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problems {
    problems: Vec<Problem>,
}

/// Says that the process is there. Needs no access.
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz", tag = openapi::STATUS, security(()),
    responses((status = 200, description = "It is there.", body = String, content_type = "text/plain",
        example = "ok\n"))
)]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Says whether fires are taken: not before the registry is read, and not while the daemon is stopping.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = openapi::STATUS,
    responses((status = 200, description = "Fires are taken.", body = String, content_type = "text/plain",
        example = "ready\n"))
)]
pub async fn readyz(State(api): State<Api>, Params(_): Params<NoParams>) -> Reply<&'static str> {
    // Asked of the door that fires come in by. This one is never let in, since nobody invokes it; but a daemon that
    // stops says so first.
    let nobody = "00000000-0000-0000-0000-000000000000";
    let (Ok(app), Ok(automation), Ok(parent)) = (AppId::new("0"), AutomationId::new("_"), RunId::new(nobody)) else {
        return Err(ProblemDocument::internal(&"fixed names break their grammar"));
    };
    let request = FireRequest {
        handle: Handle::new(app, automation),
        origin: TriggerOrigin::Invoke,
        trigger: TriggerInfo::default(),
        input_json: None,
        parent: Some(parent),
        synced: false,
        skip: None,
        opened: None,
        ended: None,
    };
    match api.daemon.fire(request).await {
        Answer::Stopping => Err(ProblemDocument::stopping()),
        _ => Ok("ready\n"),
    }
}

/// Lists everything that is wrong under the root: folders, manifests, handlers, ledgers, the watcher.
#[utoipa::path(
    get, path = "/v1/problems", operation_id = "listProblems", tag = openapi::STATUS,
    responses((status = 200, description = "All problems.", body = Problems))
)]
pub async fn problems(State(api): State<Api>, Params(_): Params<NoParams>) -> Reply<Json<Problems>> {
    let (_, problems) = api.overview(None, drop).await?;
    Ok(Json(Problems { problems }))
}
