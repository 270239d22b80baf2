//! Performs the core's effects. Every one is started at once and in order; what takes time goes on beside the loop and
//! comes back as an event.
//!
//! Order matters where a ledger is concerned: an operation enters its ledger's queue when it is performed here, and the
//! queue is first in, first out. So an app's recovery stands before its first new row, and a run's log before its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch as watch_channel};

use crate::clock::Clock;
use crate::core::disk::DiskBatch;
use crate::core::manifest::HistoryKeep;
use crate::core::run::{NewRun, RunEnd, RunSpec};
use crate::core::{Answer, Effect, Event, Recorded, Recovered, Token};
use crate::daemon::bus::RunHappening;
use crate::daemon::services::{Code, Services, load_handler};
use crate::daemon::session;
use crate::fire::{AppId, ErrorCode, Handle, Problem, RunId, RunStatus};
use crate::ledger::{Durability, Opened, RunClose};

/// Handlers that were read for a run whose launch is yet to come.
type Pinned = Arc<Mutex<HashMap<RunId, Result<Code, Problem>>>>;

/// See the module text. Owned by the loop.
pub struct Performer {
    services: Arc<Services>,
    pinned: Pinned,
    sessions: HashMap<RunId, mpsc::Sender<ErrorCode>>,
    running: watch_channel::Sender<usize>,
}

impl Performer {
    pub fn new(services: Arc<Services>, running: watch_channel::Sender<usize>) -> Self {
        Self { services, pinned: Arc::default(), sessions: HashMap::new(), running }
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

    pub fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::RecoverLedger { app } => self.recover(app),
            Effect::CloseLedger { app } => {
                let closed = self.services.ledgers.close_app(&app);
                tokio::spawn(closed);
            }
            Effect::SetWatermarks { app, marks } => {
                let written = self.services.ledgers.raise_watermarks(&app, marks);
                report(app, "watermarks", written);
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
            Effect::CloseRun { run, handle, end, keep, retry, ended } => {
                self.close(run, handle, end, keep, retry, ended);
            }
            Effect::SweepHistory { handle, keep } => {
                let at = self.now_ms();
                let swept = self.services.ledgers.sweep(&handle.app, &handle.automation, keep, at);
                report(handle.app, "sweep", swept);
            }
            Effect::Answer { token, answer } => self.services.door.answer(token, answer),
            Effect::Notice(text) => tracing::warn!("{text}"),
        }
    }

    fn recover(&self, app: AppId) {
        let recovered = self.services.ledgers.recover(&app);
        let door = self.services.door.clone();
        tokio::spawn(async move {
            let found = match recovered.await {
                Ok(found) => {
                    if let Some(path) = &found.quarantined {
                        tracing::error!(%app, "its ledger was corrupt and has been moved aside to {}", path.display());
                    }
                    Recovered { running: found.running, queued: found.queued, watermarks: found.watermarks }
                }
                Err(error) => {
                    tracing::error!(%app, %error, "its ledger cannot be used");
                    Recovered::default()
                }
            };
            door.send(Event::LedgerRecovered { app, found });
        });
    }

    fn open(&self, mut row: NewRun, synced: bool) {
        let services = Arc::clone(&self.services);
        let pinned = Arc::clone(&self.pinned);
        tokio::spawn(async move {
            let (run, handle) = (row.run_id.clone(), row.handle());
            if row.status == RunStatus::Running {
                let code = load_handler(&services.folders, &handle).await;
                row.handler_hash = code.as_ref().ok().map(|code| code.sha256.clone());
                pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone(), code);
            }
            let (status, origin, at) = (row.status, row.origin, row.queued_at);
            let durability = if synced { Durability::Synced } else { Durability::Process };
            let result = match services.ledgers.open_run(&handle.app, row, durability).await {
                Ok(Opened::Inserted) => {
                    services.bus.tell(&run, &handle, RunHappening::Opened { status, origin, at });
                    Ok(Recorded::Inserted)
                }
                Ok(Opened::Duplicate) => Ok(Recorded::Duplicate),
                Err(error) => {
                    tracing::error!(%handle, %error, "a fire could not be recorded, so it is not run");
                    Err(error.to_string())
                }
            };
            if result != Ok(Recorded::Inserted) {
                pinned.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
            }
            services.door.send(Event::RunOpened { run, result });
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
            services.door.send(Event::RunStarted { run, result: started.map_err(|error| error.to_string()) });
        });
    }

    fn launch(&mut self, spec: RunSpec) {
        let code = self.pinned.lock().unwrap_or_else(PoisonError::into_inner).remove(&spec.run_id);
        let code = code.unwrap_or_else(|| Err(Problem::error("missing_handler", "", "its handler was not read")));
        let (abort, aborted) = mpsc::channel(1);
        self.sessions.insert(spec.run_id.clone(), abort);
        self.running.send_modify(|running| *running += 1);
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

    fn close(
        &mut self,
        run: RunId,
        handle: Handle,
        end: RunEnd,
        keep: HistoryKeep,
        retry: Option<NewRun>,
        ended: Option<Token>,
    ) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).remove(&run);
        let retried = retry.as_ref().map(|retry| (retry.run_id.clone(), retry.queued_at));
        let closed = self.services.ledgers.close_run(
            &handle.app,
            RunClose {
                run_id: run.clone(),
                automation_id: handle.automation.clone(),
                status: end.status,
                ended_at: end.ended_at,
                summary: end.summary.clone(),
                output_json: end.output_json.clone(),
                error: end.error.clone(),
                error_code: end.error_code,
                keep,
                retry,
            },
        );
        let services = Arc::clone(&self.services);
        let running = self.sessions.remove(&run).map(|_| self.running.clone());
        tokio::spawn(async move {
            match closed.await {
                Ok(()) => {
                    services.bus.tell(
                        &run,
                        &handle,
                        RunHappening::Ended {
                            status: end.status,
                            at: end.ended_at,
                            summary: end.summary.clone(),
                            error: end.error.clone(),
                            error_code: end.error_code,
                        },
                    );
                    if let Some((retry, at)) = retried {
                        let origin = crate::fire::TriggerOrigin::Retry;
                        services.bus.tell(
                            &retry,
                            &handle,
                            RunHappening::Opened { status: RunStatus::Queued, origin, at },
                        );
                    }
                }
                // The next start finds the row open and closes it as interrupted.
                Err(error) => tracing::error!(%handle, %run, %error, "the end of a run could not be recorded"),
            }
            if let Some(token) = ended {
                services.door.answer(token, Answer::Ended(end));
            }
            // Only now is the run over for a daemon that waits to stop.
            if let Some(running) = running {
                running.send_modify(|running| *running = running.saturating_sub(1));
            }
        });
    }
}

/// Waits for a write that nobody else waits for, and tells when it fails.
fn report<F>(app: AppId, what: &'static str, write: F)
where
    F: Future<Output = Result<(), crate::ledger::LedgerError>> + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = write.await {
            tracing::warn!(%app, %error, "{what} could not be written");
        }
    });
}
