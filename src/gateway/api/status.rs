//! How the daemon is: alive, ready, and what is wrong under its root.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{NoParams, Params};
use super::{Api, Reply, openapi};
use crate::fire::Problem;
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
    match api.daemon.look(|state| state.is_stopping()).await {
        Some(false) => Ok("ready\n"),
        Some(true) | None => Err(ProblemDocument::stopping()),
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
