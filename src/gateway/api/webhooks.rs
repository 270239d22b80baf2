//! The credentials of webhooks: minted once, told once.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{NoBody, NoParams, Params, Target};
use super::{Api, Reply, openapi};
use crate::edit;
use crate::fire::{AppId, AutomationId, Handle};
use crate::gateway::hooks;

/// What a sender has to be given. The secret is told here and nowhere else: only its hash is kept.
#[derive(Serialize, ToSchema)]
pub struct Credentials {
    handle: Handle,
    slug: String,
    /// Where to post to; null when this daemon serves no webhooks.
    #[schema(required)]
    url: Option<String>,
    secret: String,
}

/// Mints id and secret of a pending webhook.
#[utoipa::path(
    post, path = "/v1/automations/{app}/{id}/webhook/provision", operation_id = "provisionWebhook",
    tag = openapi::AUTOMATIONS,
    params(
        ("app" = AppId, Path, example = "bookshelf"),
        ("id" = AutomationId, Path, example = "add-from-web"),
    ),
    request_body = openapi::Empty,
    responses(
        (status = 200, description = "The credentials, told this once.", body = Credentials),
        (status = 409, response = openapi::Conflict),
    )
)]
pub async fn provision(
    State(api): State<Api>,
    Target(handle): Target,
    Params(_): Params<NoParams>,
    _: NoBody,
) -> Reply<Json<Credentials>> {
    let minted = api.edit(&handle, edit::provision_webhook).await?;
    Ok(Json(api.credentials(handle, minted)))
}

/// Mints a new secret for a webhook; its id stays.
#[utoipa::path(
    post, path = "/v1/automations/{app}/{id}/webhook/rotate", operation_id = "rotateWebhook",
    tag = openapi::AUTOMATIONS,
    params(
        ("app" = AppId, Path, example = "bookshelf"),
        ("id" = AutomationId, Path, example = "add-from-web"),
    ),
    request_body = openapi::Empty,
    responses(
        (status = 200, description = "The credentials, told this once.", body = Credentials),
        (status = 409, response = openapi::Conflict),
    )
)]
pub async fn rotate(
    State(api): State<Api>,
    Target(handle): Target,
    Params(_): Params<NoParams>,
    _: NoBody,
) -> Reply<Json<Credentials>> {
    let minted = api.edit(&handle, edit::rotate_webhook).await?;
    Ok(Json(api.credentials(handle, minted)))
}

impl Api {
    fn credentials(&self, handle: Handle, edit::Minted { slug, secret }: edit::Minted) -> Credentials {
        let url = self.shared.hooks.map(|at| hooks::url(at, &slug));
        Credentials { handle, slug, url, secret }
    }
}
