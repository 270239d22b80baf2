//! The admin API. One file per resource; each handler carries its description, and [`openapi`] makes the document from
//! them, so that what is served and what is described are the same list.
//!
//! Whatever reads ledgers does so on the blocking pool, a few at a time, whoever asks: a ledger that cannot be read is
//! told of and hides no other. The daemon's loop is asked in small portions, however many automations there are.

mod automations;
mod detail;
mod extract;
mod fires;
mod logins;
mod metrics;
mod openapi;
mod runs;
mod schema;
mod status;
mod streams;
mod tools;
mod webhooks;

pub use self::extract::{FromQuery, QueryPairs};
pub use self::openapi::takes_no_post;
pub use self::runs::Filter;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::Limits;
use crate::core::near_name::nearest_handle;
use crate::daemon::{Daemon, Services};
use crate::fire::{AppId, Handle, RunId};
use crate::gateway::problem::ProblemDocument;
use crate::isolate::Pool;
use crate::ledger::{LedgerError, Reader, RunRow};

/// Requests that read ledgers at once. Each may hold one answer in memory; a disk gains nothing from more.
const READERS: usize = 4;
/// Streams of events at once: far more than people and programs on one machine open, and far less than a machine can
/// hold.
const STREAMS: usize = 256;
/// Runs whose app is remembered, so that it need not be looked for.
const KNOWN_RUNS: usize = 16 * 1024;

type Reply<T> = Result<T, ProblemDocument>;

/// What every handler has at hand. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    daemon: Daemon,
    shared: Arc<Shared>,
}

struct Shared {
    hooks: Option<SocketAddr>,
    readers: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    turns: Turns,
    /// In whose ledger a run is, of those that were told lately.
    homes: Mutex<HashMap<RunId, AppId>>,
    closing: watch::Receiver<bool>,
    started_at_ms: i64,
}

/// The routes for everybody, and those that need access.
pub fn routes() -> (OpenApiRouter<Api>, OpenApiRouter<Api>) {
    let open = OpenApiRouter::new().routes(routes!(status::healthz));
    let guarded = OpenApiRouter::new()
        .routes(routes!(automations::list))
        .routes(routes!(automations::one))
        .routes(routes!(fires::run))
        .routes(routes!(automations::enable))
        .routes(routes!(automations::disable))
        .routes(routes!(webhooks::provision))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(runs::list))
        .routes(routes!(detail::one))
        .routes(routes!(streams::run_events))
        .routes(routes!(streams::events))
        .routes(routes!(fires::cancel))
        .routes(routes!(fires::replay))
        .routes(routes!(tools::catalog))
        .routes(routes!(tools::call))
        .routes(routes!(streams::changes))
        .routes(routes!(status::problems))
        .routes(routes!(status::readyz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(logins::link))
        .routes(routes!(logins::logout))
        .routes(routes!(openapi::document));
    (open, guarded)
}

impl Api {
    /// `closing` becomes true when the listener is to go: then streams end.
    pub fn new(daemon: Daemon, hooks: Option<SocketAddr>, closing: watch::Receiver<bool>) -> Self {
        let started_at_ms = daemon.services().clock.now_ms();
        let shared = Shared {
            hooks,
            readers: Arc::new(Semaphore::new(READERS)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            turns: Turns::default(),
            homes: Mutex::default(),
            closing,
            started_at_ms,
        };
        Self { daemon, shared: Arc::new(shared) }
    }

    pub fn limits(&self) -> &Limits {
        &self.services().limits
    }

    fn services(&self) -> &Services {
        self.daemon.services()
    }

    /// Whether a whole root is served: watched, with its triggers armed.
    pub fn fires_by_itself(&self) -> bool {
        self.daemon.watcher_state().is_some()
    }

    pub fn pool(&self) -> &Pool {
        &self.services().pool
    }

    pub fn root(&self) -> Arc<Path> {
        self.services().folders.root()
    }

    /// Where an app's code is, or would be.
    pub fn app_dir(&self, handle: &Handle) -> PathBuf {
        self.services().folders.code_or_new(&handle.app)
    }

    pub async fn cancel_run(&self, run: RunId) {
        self.daemon.cancel(run).await;
    }

    /// Reads ledgers, away from the async threads.
    pub(in crate::gateway) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Reply<T> {
        let readers = Arc::clone(&self.shared.readers);
        let place = readers.acquire_owned().await.map_err(|error| ProblemDocument::internal(&error))?;
        let reading = tokio::task::spawn_blocking(move || {
            let _place: OwnedSemaphorePermit = place;
            read()
        });
        reading.await.map_err(|error| ProblemDocument::internal(&error))
    }

    /// Finds the app whose ledger holds a run, and reads from it. A ledger that cannot be read stops its own app only:
    /// the run may stand in another one; when it stands in none of those that can be read, that is all that can be
    /// said.
    async fn with_run<T: Send + 'static>(
        &self,
        run: RunId,
        read: impl FnOnce(&Reader, RunRow) -> Result<T, LedgerError> + Send + 'static,
    ) -> Reply<T> {
        let folders = self.services().folders.clone();
        let mut apps = folders.apps();
        // Usually it is known where it is; then no other ledger is opened.
        let home = self.homes().get(&run).cloned();
        if let Some(at) = home.and_then(|home| apps.iter().position(|app| *app == home)) {
            apps[..=at].rotate_right(1);
        }
        let wanted = run.clone();
        let found = self.read(move || find_run(&apps, |app| folders.ledger(app), &wanted, read)).await?;
        match found {
            Ok(Ok((app, found))) => {
                self.remember([(run, app)]);
                Ok(found)
            }
            Ok(Err(unread)) if unread.is_empty() => Err(unknown_run()),
            Ok(Err(unread)) => {
                let names: Vec<&str> = unread.iter().map(AppId::as_str).collect();
                let names_told = names.join(", ");
                let detail = format!("no ledger that can be read has this run; unreadable are those of {names_told}");
                Err(ProblemDocument::unavailable("ledger", detail).with("apps", names))
            }
            Err(error) => Err(ProblemDocument::internal(&error)),
        }
    }

    fn remember(&self, homes: impl IntoIterator<Item = (RunId, AppId)>) {
        let mut known = self.homes();
        for (run, app) in homes {
            if known.len() >= KNOWN_RUNS {
                known.clear();
            }
            known.insert(run, app);
        }
    }

    fn homes(&self) -> MutexGuard<'_, HashMap<RunId, AppId>> {
        self.shared.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unknown_automation(&self, handle: &str) -> ProblemDocument {
        let known =
            self.daemon.look(|state| state.registry.automations().map(|a| a.handle.clone()).collect::<Vec<_>>()).await;
        let known = known.unwrap_or_default();
        let near = nearest_handle(handle, &known.iter().collect::<Vec<_>>());
        let shown = crate::core::shortened::shortened(handle, 300);
        ProblemDocument::not_found("unknown_automation", format!("there is no automation {shown}"))
            .with_hint(near.map(|near| format!("did you mean {near}?")))
    }
}

fn unknown_run() -> ProblemDocument {
    ProblemDocument::not_found("unknown_run", "there is no such run")
}

fn unknown_app() -> ProblemDocument {
    ProblemDocument::not_found("unknown_app", "there is no such app")
}

/// What was read of the run and in whose ledger, or the apps whose ledgers could not be read.
type Found<T> = Result<(AppId, T), Vec<AppId>>;

fn find_run<T>(
    apps: &[AppId],
    ledger_of: impl Fn(&AppId) -> std::path::PathBuf,
    run: &RunId,
    read: impl FnOnce(&Reader, RunRow) -> Result<T, LedgerError>,
) -> Result<Found<T>, LedgerError> {
    let mut unread = Vec::new();
    for app in apps {
        let found = Reader::open(&ledger_of(app))
            .and_then(|reader| reader.map(|reader| Ok((reader.run(run)?, reader))).transpose());
        match found {
            Ok(Some((Some(row), reader))) => return read(&reader, row).map(|found| Ok((app.clone(), found))),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%app, %error, "its ledger cannot be read");
                unread.push(app.clone());
            }
        }
    }
    Ok(Err(unread))
}

/// One at a time, for each automation and key: posts that repeat each other.
#[derive(Default)]
struct Turns {
    turns: Mutex<HashMap<(Handle, String), Weak<Turn>>>,
}

/// Held by the one whose turn it is.
type Turn = tokio::sync::Mutex<()>;

impl Turns {
    async fn take(&self, handle: &Handle, key: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.entry((handle.clone(), key.to_owned())).or_default();
            turn.upgrade().unwrap_or_else(|| {
                let new = Arc::default();
                *turn = Arc::downgrade(&new);
                new
            })
        };
        turn.lock_owned().await
    }
}
