//! Letting a browser in and out: the one-time links of the dashboard, and the end of its sessions.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{NoBody, NoParams, Params};
use super::{Reply, openapi};
use crate::fire::EpochMs;
use crate::gateway::access::{Access, Caller};
use crate::gateway::problem::ProblemDocument;

/// What lets a browser in, once.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoginLink {
    url: String,
    /// Until when it can be opened.
    expires_at: EpochMs,
}

/// Makes a link that opens the dashboard in a browser. It works once, within two minutes.
///
/// Only the admin token makes one: a session cannot prolong itself into another.
#[utoipa::path(
    post, path = "/v1/login-links", operation_id = "makeLoginLink", tag = openapi::STATUS,
    request_body = openapi::Empty,
    responses((status = 200, description = "The link.", body = LoginLink))
)]
pub async fn link(
    Extension(access): Extension<Access>,
    Extension(caller): Extension<Caller>,
    Params(_): Params<NoParams>,
    headers: HeaderMap,
    _: NoBody,
) -> Reply<Json<LoginLink>> {
    if caller != Caller::Token {
        let detail = "a link is made with the admin token, not by session; `dirigent dashboard` does it";
        return Err(ProblemDocument::new(axum::http::StatusCode::FORBIDDEN, "token_needed", detail));
    }
    let (code, expires_at) = access.new_code().map_err(|error| ProblemDocument::internal(&error))?;
    // The guard has seen that this names us, so whoever asks can reach us by it.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    Ok(Json(LoginLink { url: format!("http://{host}/login?code={code}"), expires_at }))
}

/// What became of a session.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoggedOut {
    logged_out: bool,
}

/// Ends the session of the request, if it came by one.
#[utoipa::path(
    post, path = "/v1/logout", operation_id = "logOut", tag = openapi::STATUS,
    request_body = openapi::Empty,
    responses((status = 200, description = "There is no session any more.", body = LoggedOut))
)]
pub async fn logout(
    Extension(access): Extension<Access>,
    Params(_): Params<NoParams>,
    headers: HeaderMap,
    _: NoBody,
) -> Reply<([(header::HeaderName, HeaderValue); 1], Json<LoggedOut>)> {
    Ok(([(header::SET_COOKIE, access.log_out(&headers))], Json(LoggedOut { logged_out: true })))
}
