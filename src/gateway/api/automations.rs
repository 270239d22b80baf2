//! Automations: the list, one of them with its files, and the switch.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use super::extract::{NoBody, NoParams, Params, Target};
use super::{Api, Reply, openapi};
use crate::core::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::edit::{self, EditError};
use crate::fire::{AppId, AutomationId, Handle, Problem};
use crate::gateway::problem::ProblemDocument;
use crate::overview::{AutomationView, Overview};
use crate::watch;

/// How long a list waits to learn whether a ledger that could not be written can be used again.
const SECOND_TRY: Duration = Duration::from_secs(1);
/// Automations that the loop is asked for at once: a few hundred microseconds of its time.
const VIEWS_AT_ONCE: usize = 256;
/// Apps whose ledgers one place among the readers goes through.
const LEDGERS_AT_ONCE: usize = 16;
/// How long a change to a manifest is waited for until the registry has it. Past it, the answer is true of the disk.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// One automation with its files.
#[derive(Debug, Serialize, ToSchema)]
pub struct AutomationDetail {
    automation: AutomationView,
    /// `automation.json`; null when it cannot be read.
    #[schema(required)]
    manifest: Option<String>,
    /// `handler.js`; null when it cannot be read.
    #[schema(required)]
    handler: Option<String>,
}

/// An [`Overview`] whose automations have become JSON where their ledgers were read: ten thousand are megabytes, too
/// much work for a thread that others wait for.
#[derive(Serialize)]
pub struct Listed {
    automations: Vec<Box<RawValue>>,
    problems: Vec<Problem>,
}

/// What became of a switch.
#[derive(Debug, Serialize, ToSchema)]
pub struct Switched {
    handle: Handle,
    enabled: bool,
    /// False when it stood that way already.
    changed: bool,
    /// Of the manifest.
    problems: Vec<Problem>,
}

/// Lists all automations, with state, triggers, next fire, last runs, measured tokens and problems.
#[utoipa::path(
    get, path = "/v1/automations", operation_id = "listAutomations", tag = openapi::AUTOMATIONS,
    responses((status = 200, description = "Every automation under the root, and all problems.", body = Overview))
)]
pub async fn list(State(api): State<Api>, Params(_): Params<NoParams>) -> Reply<Json<Listed>> {
    let (parts, problems) = api.overview(None, |views| views.iter().map(to_raw_value).collect()).await?;
    let automations: Result<Vec<_>, _> = parts.into_iter().flat_map(|part: Vec<_>| part).collect();
    let automations = automations.map_err(|error| ProblemDocument::internal(&error))?;
    Ok(Json(Listed { automations, problems }))
}

/// Shows one automation with its manifest and the source of its handler.
#[utoipa::path(
    get, path = "/v1/automations/{app}/{id}", operation_id = "getAutomation", tag = openapi::AUTOMATIONS,
    params(
        ("app" = AppId, Path, example = "auto.heartbeat"),
        ("id" = AutomationId, Path, example = "beat"),
    ),
    responses((status = 200, description = "The automation.", body = AutomationDetail))
)]
pub async fn one(
    State(api): State<Api>,
    Target(handle): Target,
    Params(_): Params<NoParams>,
) -> Reply<Json<AutomationDetail>> {
    api.automation(handle).await.map(Json)
}

/// Enables an automation: writes `"enabled": true` into its manifest.
#[utoipa::path(
    post, path = "/v1/automations/{app}/{id}/enable", operation_id = "enableAutomation", tag = openapi::AUTOMATIONS,
    params(
        ("app" = AppId, Path, example = "auto.heartbeat"),
        ("id" = AutomationId, Path, example = "beat"),
    ),
    request_body = openapi::Empty,
    responses(
        (status = 200, description = "It is enabled.", body = Switched),
        (status = 409, response = openapi::Conflict),
    )
)]
pub async fn enable(
    State(api): State<Api>,
    Target(handle): Target,
    Params(_): Params<NoParams>,
    _: NoBody,
) -> Reply<Json<Switched>> {
    switch(&api, handle, true).await
}

/// Disables an automation: writes `"enabled": false` into its manifest. It can still be run by hand.
#[utoipa::path(
    post, path = "/v1/automations/{app}/{id}/disable", operation_id = "disableAutomation", tag = openapi::AUTOMATIONS,
    params(
        ("app" = AppId, Path, example = "auto.editor"),
        ("id" = AutomationId, Path, example = "review"),
    ),
    request_body = openapi::Empty,
    responses(
        (status = 200, description = "It is disabled.", body = Switched),
        (status = 409, response = openapi::Conflict),
    )
)]
pub async fn disable(
    State(api): State<Api>,
    Target(handle): Target,
    Params(_): Params<NoParams>,
    _: NoBody,
) -> Reply<Json<Switched>> {
    switch(&api, handle, false).await
}

async fn switch(api: &Api, handle: Handle, enabled: bool) -> Reply<Json<Switched>> {
    let edit::Switched { changed, problems } =
        api.edit(&handle, move |folder, handle| edit::set_enabled(folder, handle, enabled)).await?;
    Ok(Json(Switched { handle, enabled, changed, problems }))
}

impl Api {
    /// One automation with its files, as they can be shown.
    pub(in crate::gateway) async fn automation(&self, handle: Handle) -> Reply<AutomationDetail> {
        let (parts, problems) = self.overview(Some(handle.clone()), |views| views).await?;
        let folder = self.services().folders.code(&handle.app);
        let (Some(mut automation), Some(folder)) = (parts.into_iter().flatten().next(), folder) else {
            return Err(self.unknown_automation(&handle.to_string()).await);
        };
        // In the list, what is wrong with an app's ledger is told once; here it is a reason why this one does not run.
        automation.problems.extend(problems.into_iter().filter(|problem| problem.code == "ledger"));
        let (manifest, handler) = self
            .read(move || {
                let file = Path::new("automations").join(handle.automation.as_str()).join("automation.json");
                let manifest = watch::read_app_file(&folder, &file, MAX_MANIFEST_BYTES).ok();
                let source = watch::read_handler(&folder, &handle.automation).ok();
                let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                (text(manifest), text(source))
            })
            .await?;
        Ok(AutomationDetail { automation, manifest, handler })
    }

    /// Changes a manifest on disk, and waits until the registry has seen it, so that who lists next sees it too.
    pub(super) async fn edit<T: Send + 'static>(
        &self,
        handle: &Handle,
        change: impl FnOnce(&Path, &Handle) -> Result<T, EditError> + Send + 'static,
    ) -> Reply<T> {
        let Some(folder) = self.services().folders.code(&handle.app) else {
            return Err(self.unknown_automation(&handle.to_string()).await);
        };
        let target = handle.clone();
        let edited = self.read(move || {
            let changed = change(&folder, &target)?;
            // Read again, as the watcher reads it: what is there now is what is to be seen.
            let sha256 = edit::read_manifest(&folder, &target).map(|bytes| edit::sha256(&bytes)).ok();
            Ok((changed, sha256))
        });
        let (changed, sha256) = match edited.await? {
            Ok(done) => done,
            Err(error) => return Err(self.not_edited(handle, &error).await),
        };
        if let Some(sha256) = sha256 {
            self.seen(handle, sha256).await;
        }
        Ok(changed)
    }

    /// Waits a while for the registry to have a manifest. Where nobody watches, it never will.
    pub(in crate::gateway) async fn seen(&self, handle: &Handle, sha256: [u8; 32]) {
        if self.daemon.watcher_state().is_none() {
            return;
        }
        let target = handle.clone();
        let seen = self.daemon.wait_for(move |state| {
            state.registry.get(&target).is_some_and(|automation| automation.manifest_sha256() == Some(sha256))
        });
        if tokio::time::timeout(SEEN_WITHIN, seen).await.is_err() {
            tracing::debug!(%handle, "the registry has not seen a change of its manifest yet");
        }
    }

    /// What the registry says of a manifest's `onFailure`, before it has the manifest.
    pub(in crate::gateway) async fn failure_handler_problem(
        &self,
        own: &Handle,
        manifest: &Arc<Manifest>,
        at: Option<(u32, u32)>,
    ) -> Reply<Option<Problem>> {
        let (own, manifest) = (own.clone(), Arc::clone(manifest));
        let look = self.daemon.look(move |state| state.registry.failure_handler_problem(&own, &manifest, at));
        look.await.ok_or_else(ProblemDocument::stopping)
    }

    pub(in crate::gateway) async fn not_edited(&self, handle: &Handle, error: &EditError) -> ProblemDocument {
        let hint = error.hint();
        match error {
            EditError::Unreadable { problem, .. } if problem.code == "not_found" => {
                self.unknown_automation(&handle.to_string()).await
            }
            EditError::Unreadable { path, problem } => {
                let detail = format!("{path}: {}", problem.message);
                ProblemDocument::new(StatusCode::CONFLICT, &*problem.code, detail).with_hint(hint)
            }
            EditError::NotUtf8 { handle, source } => {
                let detail = format!("{handle}: byte {} of its manifest is not UTF-8", source.valid_up_to());
                ProblemDocument::new(StatusCode::CONFLICT, error.code(), detail).with_hint(hint)
            }
            EditError::Rewrite { .. } | EditError::Changed { .. } | EditError::Busy { .. } => {
                ProblemDocument::new(StatusCode::CONFLICT, error.code(), error.to_string()).with_hint(hint)
            }
            EditError::Write { path, source } => {
                tracing::error!("{error}");
                let detail = format!("{path} cannot be written: {}", source.kind());
                ProblemDocument::unavailable("not_writable", detail).with_hint(hint)
            }
            EditError::Refused { problems, .. } => {
                ProblemDocument::bad_request(error.code(), error.to_string()).with("problems", json!(problems))
            }
            EditError::Random(_) => ProblemDocument::internal(error),
        }
    }

    /// The registry's view with history, of one automation or of all, in parts; `shape` is applied to each where its
    /// ledgers are read, away from the async threads. And all problems.
    pub(in crate::gateway) async fn overview<T: Send + 'static>(
        &self,
        only: Option<Handle>,
        shape: fn(Vec<AutomationView>) -> T,
    ) -> Reply<(Vec<T>, Vec<Problem>)> {
        let all = only.is_none();
        let mut overview = self.registered(only).await?;
        let apps: BTreeSet<AppId> = overview.automations.iter().map(|view| view.app_id.clone()).collect();
        self.second_try(&apps).await;

        // By whole apps, so that each ledger is opened once.
        let mut parts: Vec<Vec<AutomationView>> = Vec::new();
        let mut apps_in_part = 0;
        for view in overview.automations.drain(..) {
            let last = parts.last().and_then(|part| part.last()).map(|last| &last.app_id);
            let same_app = last == Some(&view.app_id);
            apps_in_part += usize::from(!same_app);
            match parts.last_mut() {
                Some(part) if same_app || apps_in_part <= LEDGERS_AT_ONCE => part.push(view),
                _ => {
                    apps_in_part = 1;
                    parts.push(vec![view]);
                }
            }
        }
        let (folders, ledgers) = (&self.services().folders, &self.services().ledgers);
        let parts = parts.into_iter().map(|automations| {
            let (folders, ledgers) = (folders.clone(), ledgers.clone());
            self.read(move || {
                let mut part = Overview { automations, problems: Vec::new() };
                part.add_history(|app| folders.ledger(app), |app| ledgers.obstacle(app));
                (shape(part.automations), part.problems)
            })
        });
        let mut shaped = Vec::new();
        let mut problems = overview.problems;
        for part in futures::future::join_all(parts).await {
            let (automations, found) = part?;
            shaped.push(automations);
            problems.extend(found);
        }
        problems.extend(apps.iter().filter_map(|app| Some(moved_aside(app, &ledgers.quarantined(app)?))));
        if all {
            problems.extend(self.daemon.services().mcp.problems().await);
        }
        if all && let Some(state) = self.daemon.watcher_state() {
            problems.extend(state.problems);
        }
        Ok((shaped, problems))
    }

    /// What the registry says, asked in portions: other events go in between.
    async fn registered(&self, only: Option<Handle>) -> Reply<Overview> {
        let stopping = ProblemDocument::stopping;
        let (handles, mut problems) = match only {
            Some(handle) => (vec![handle], Vec::new()),
            None => {
                let look = self.daemon.look(|state| {
                    let handles: Vec<Handle> = state.registry.automations().map(|a| a.handle.clone()).collect();
                    (handles, state.registry.folder_problems())
                });
                look.await.ok_or_else(stopping)?
            }
        };
        let mut automations = Vec::with_capacity(handles.len());
        for portion in handles.chunks(VIEWS_AT_ONCE) {
            let portion = portion.to_vec();
            let look = self.daemon.look(move |state| {
                let known = portion.iter().filter_map(|handle| state.registry.get(handle));
                known.map(|a| AutomationView::new(&state.registry, &state.schedule, a)).collect::<Vec<_>>()
            });
            automations.extend(look.await.ok_or_else(stopping)?);
        }
        problems.extend(automations.iter().flat_map(|view| view.problems.iter().cloned()));
        Ok(Overview { automations, problems })
    }

    /// What was in the way of a write may be gone, and the next fire be a week off. Recovery writes nothing.
    async fn second_try(&self, apps: &BTreeSet<AppId>) {
        let ledgers = &self.services().ledgers;
        let blocked = apps.iter().filter(|app| ledgers.obstacle(app).is_some());
        let tries = futures::future::join_all(blocked.map(|app| ledgers.recover(app)));
        // Without an answer the obstacle is taken to stand.
        let _ = tokio::time::timeout(SECOND_TRY, tries).await;
    }
}

fn moved_aside(app: &AppId, to: &Path) -> Problem {
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Problem::warning("ledger_moved", "", "the app's ledger was damaged, so it was moved aside and a new one begun")
        .with_hint("`sqlite3 <file> .recover` saves what is left of it")
        .in_path(format!("{app}/{name}"))
}
