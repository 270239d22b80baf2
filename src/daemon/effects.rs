//! Performs the core's effects. Every one is started at once and in order; what takes time goes on beside the loop and
//! comes back as an event.
//!
//! Order matters where a ledger is concerned: an operation enters its ledger's queue when its method is called, and the
//! queue is first in, first out. All are called here, in the order of the effects: so an app's recovery stands before its
//! first new row, a run's log before its end, and the cron instants of a trigger in their order. The one exception is the
//! row of a run that is launched at once: it carries the hash of its handler, which is read first. The core asks for that
//! only where no later row of the same trigger can follow closely: what makes up for missed fires is opened as `queued`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::core::disk::DiskBatch;
use crate::core::registry::Registry;
use crate::core::run::{Close, NewRun, RunEnd, RunSpec};
use crate::core::{Effect, Event, Recorded, Recovered, Refusal};
use crate::daemon::bus::RunHappening;
use crate::daemon::services::{Code, Services, load_handler};
use crate::daemon::session;
use crate::fire::{AppId, EpochMs, ErrorCode, Handle, Problem, RunId, RunStatus, TriggerOrigin};
use crate::ledger::{Durability, LedgerError, Opened};

/// Handlers that were read for a run whose launch is yet to come.
type Pinned = Arc<Mutex<HashMap<RunId, Result<Code, Problem>>>>;

/// See the module text. Owned by the loop.
pub struct Performer {
    services: Arc<Services>,
    pinned: Pinned,
    sessions: HashMap<RunId, mpsc::Sender<ErrorCode>>,
}

impl Performer {
    pub fn new(services: Arc<Services>) -> Self {
        Self { services, pinned: Arc::default(), sessions: HashMap::new() }
    }

    pub fn clock(&self) -> Clock {
        self.services.clock.clone()
    }

    pub fn now_ms(&self) -> i64 {
        self.services.clock.now_ms()
    }

    /// Keeps the folders of the apps current, before the core acts on them.
    pub fn follow_folders(&self, batch: &DiskBatch) {
        let folders = &self.services.folders;
        if batch.full {
            let seen: std::collections::HashSet<_> = batch.apps.iter().filter_map(|a| a.app.as_ref()).collect();
            for app in folders.apps() {
                if !seen.contains(&app) {
                    folders.set(&app, None);
                }
            }
        }
        for folder in &batch.apps {
            if let Some(app) = &folder.app {
                folders.set(app, folder.present.then_some(folder.dir.as_path()));
            }
        }
    }

    /// Opens and closes webhooks as the registry now says.
    pub fn publish_hooks(&self, registry: &mut Registry) {
        self.services.hook_routes.follow(registry);
    }

    /// Tells that automations, or what is wrong with them, have changed.
    pub fn tell_registry(&self) {
        self.services.bus.tell_registry();
    }

    pub fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::RecoverLedger { app } => self.recover(app),
            Effect::CloseLedger { app } => {
                let closed = self.services.ledgers.close_app(&app);
                tokio::spawn(closed);
            }
            Effect::SetWatermarks { app, marks } => {
                let written = self.services.ledgers.raise_watermarks(&app, marks);
                self.noted(app, written);
            }
            Effect::DisarmTriggers { app, triggers } => {
                let written = self.services.ledgers.disarm_triggers(&app, triggers);
                self.noted(app, written);
            }
            Effect::OpenRun { run, synced } => self.open(run, synced),
            Effect::StartRun { run, handle, at } => self.start(run, handle, at),
            Effect::Launch(spec) => self.launch(spec),
            Effect::AbortRun { run, why } => {
                if let Some(session) = self.sessions.get(&run) {
                    // A full channel holds an abort already.
                    let _ = session.try_send(why);
                }
            }
            Effect::CloseRun(close) => self.close(close),
            Effect::SweepHistory { handle, keep } => {
                let at = self.now_ms();
                let swept = self.services.ledgers.sweep(&handle.app, &handle.automation, keep, at);
                // The next end, or the next hour, sweeps again.
                tokio::spawn(async move {
                    if let Err(error) = swept.await {
                        tracing::warn!(%handle, %error, "its history could not be swept");
                    }
                });
            }
            Effect::Answer { token, answer } => self.services.door.answer(token, answer),
            Effect::Notice(text) => tracing::warn!("{text}"),
        }
    }

    fn recover(&self, app: AppId) {
        let recovered = self.services.ledgers.recover(&app);
        let door = self.services.door.clone();
        tokio::spawn(async move {
            let result = match recovered.await {
                Ok(found) => {
                    if let Some(path) = &found.quarantined {
                        tracing::error!(%app, "its ledger was corrupt and has been moved aside to {}", path.display());
                    }
                    Ok(Recovered { running: found.running, queued: found.queued, watermarks: found.watermarks })
                }
                Err(error) => Err(refusal(&error)),
            };
            door.send(Event::LedgerRecovered { app, result });
        });
    }

    fn open(&self, mut row: NewRun, synced: bool) {
        let durability = if synced { Durability::Synced } else { Durability::Process };
        let services = Arc::clone(&self.services);
        if row.status != RunStatus::Running {
            let opening = Opening::of(&row);
            let opened = services.ledgers.open_run(&opening.handle.app, row, durability);
            tokio::spawn(async move { opening.tell(&services, opened.await) });
            return;
        }
        let pinned = Arc::clone(&self.pinned);
        tokio::spawn(async move {
            let opening = Opening::of(&row);
            let code = load_handler(&services.folders, &opening.handle).await;
            row.handler_hash = code.as_ref().ok().map(|code| code.sha256.clone());
            let opened = services.ledgers.open_run(&opening.handle.app, row, durability).await;
            if opened == Ok(Opened::Inserted) {
                pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(opening.run.clone(), code);
            }
            opening.tell(&services, opened);
        });
    }

    fn noted<F>(&self, app: AppId, written: F)
    where
        F: Future<Output = Result<(), LedgerError>> + Send + 'static,
    {
        let door = self.services.door.clone();
        tokio::spawn(async move {
            let result = written.await.map_err(|error| refusal(&error));
            door.send(Event::TriggersNoted { app, result });
        });
    }

    fn start(&self, run: RunId, handle: Handle, at: i64) {
        let services = Arc::clone(&self.services);
        let pinned = Arc::clone(&self.pinned);
        tokio::spawn(async move {
            let code = load_handler(&services.folders, &handle).await;
            let hash = code.as_ref().ok().map(|code| code.sha256.clone());
            let started = services.ledgers.start_run(&handle.app, &run, at, hash).await;
            if started.is_ok() {
                pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone(), code);
            }
            let result = started.map_err(|error| refusal(&error));
            services.door.send(Event::RunStarted { run, app: handle.app, result });
        });
    }

    fn launch(&mut self, spec: RunSpec) {
        let code = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).remove(&spec.run_id);
        let code = code.unwrap_or_else(|| Err(Problem::error("missing_handler", "", "its handler was not read")));
        let (abort, aborted) = mpsc::channel(1);
        self.sessions.insert(spec.run_id.clone(), abort);
        let services = Arc::clone(&self.services);
        services.bus.tell(&spec.run_id, &spec.handle, RunHappening::Started { at: spec.started_at });
        tokio::spawn(async move {
            let run = spec.run_id.clone();
            let session = tokio::spawn(session::run(Arc::clone(&services), spec, code, aborted));
            // A bug in the session must not leave the run open.
            let end = session.await.unwrap_or_else(|error| {
                let at = services.clock.now_ms();
                RunEnd::error(ErrorCode::Crashed, format!("the run's session failed: {error}"), at)
            });
            services.door.send(Event::RunEnded { run, end });
        });
    }

    fn close(&mut self, close: Arc<Close>) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).remove(&close.run);
        self.sessions.remove(&close.run);
        let closed = self.services.ledgers.close_run(&close.handle.app, Arc::clone(&close));
        let services = Arc::clone(&self.services);
        tokio::spawn(async move {
            let result = closed.await;
            let Close { run, handle, end, next, .. } = &*close;
            if result.is_ok() {
                let ended = RunHappening::Ended {
                    status: end.status,
                    at: end.ended_at,
                    summary: end.summary.clone(),
                    error: end.error.clone(),
                    error_code: end.error_code,
                };
                services.bus.tell(run, handle, ended);
                if let Some(next) = next {
                    Opening::of(next).tell_live(&services);
                }
            }
            let (run, app) = (run.clone(), handle.app.clone());
            services.door.send(Event::RunClosed { run, app, result: result.map_err(|error| refusal(&error)) });
        });
    }
}

/// What is told of a row that is being opened.
struct Opening {
    run: RunId,
    handle: Handle,
    status: RunStatus,
    origin: TriggerOrigin,
    at: EpochMs,
}

impl Opening {
    fn of(row: &NewRun) -> Self {
        let NewRun { run_id, status, origin, queued_at, .. } = row;
        Self { run: run_id.clone(), handle: row.handle(), status: *status, origin: *origin, at: *queued_at }
    }

    fn tell_live(&self, services: &Services) {
        let Self { status, origin, at, .. } = *self;
        services.bus.tell(&self.run, &self.handle, RunHappening::Opened { status, origin, at });
    }

    fn tell(self, services: &Services, opened: Result<Opened, LedgerError>) {
        let result = match opened {
            Ok(Opened::Inserted) => {
                self.tell_live(services);
                Ok(Recorded::Inserted)
            }
            Ok(Opened::Duplicate) => Ok(Recorded::Duplicate),
            Ok(Opened::Redelivered(first)) => Ok(Recorded::Redelivered(first)),
            Err(error) => Err(refusal(&error)),
        };
        services.door.send(Event::RunOpened { run: self.run, result });
    }
}

fn refusal(error: &LedgerError) -> Refusal {
    Refusal { message: error.to_string(), passing: error.is_unwritable() }
}
