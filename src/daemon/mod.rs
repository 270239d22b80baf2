//! The daemon: the one loop that owns the [`State`], and what it takes to start and stop it.
//!
//! The loop decides nothing. It hands events to the core one by one and performs the effects in the order given
//! (`effects`); everything that takes time runs beside it and comes back as an event. Nothing blocks it.
//!
//! The same daemon serves a whole root (`Scope::Root`: it watches, schedules and recovers) and the one run of a command
//! line without a daemon (`Scope::Asked`: it runs what it is asked to, on a registry read once).

pub mod bus;
pub mod home;

mod app_handlers;
mod calls;
mod effects;
mod history;
mod hook_routes;
mod record;
mod services;
mod session;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch as watch_channel};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::{Config, Survives};
use crate::core::disk::DiskBatch;
use crate::core::{Answer, Event, FireRequest, State};
use crate::fire::{AppId, ErrorCode, RunId};
use crate::isolate::{Pool, PoolConfig};
use crate::ledger::{Durability, LedgerConfig, Ledgers};
use crate::models::Models;
use crate::tools::app::AppTools;
use crate::tools::mcp::Mcp;
use crate::watch::{self, DiskEvent, WatchConfig, Watcher, WatcherState};

pub use bus::{Bus, RunEvent, RunHappening};
pub use calls::refusal;
pub use hook_routes::{HookRoute, HookRoutes};
pub use services::{Expected, Folders, Services};

use effects::Performer;
use services::{Door, Input};

/// Host processes may outnumber the slots by the parents that wait for children, a set of slots for each level
/// (`core::admission`), and by the queries and actions that they call.
const HOSTS_PER_SLOT: usize = crate::core::MAX_INVOKE_DEPTH as usize + 2;
/// For runs that are started beyond that because nothing else runs.
const SPARE_HOSTS: usize = 64;
/// Ledgers that are open at once.
const OPEN_LEDGERS: usize = 128;
/// A ledger that nobody has used for this long is closed.
const LEDGER_IDLE: Duration = Duration::from_secs(10);
/// Reads of `ctx.runs` at once; each may hold one whole answer in memory.
const HISTORY_READS: usize = 4;
/// After the grace, cancelled runs get this long to be gone.
const CANCEL_GRACE: Duration = Duration::from_secs(2);

/// What a daemon is responsible for.
#[derive(Debug, Clone)]
pub enum Scope {
    /// A whole root: watch it, schedule, recover.
    Root { poll: bool },
    /// Only what it is asked to run; the registry is read once.
    Asked,
}

/// How to start one.
#[derive(Debug, Clone)]
pub struct Options {
    pub root: PathBuf,
    /// Where the ledgers and data are, when apart from the code.
    pub data: Option<PathBuf>,
    pub config: Config,
    pub clock: Clock,
    /// The binary that is re-executed as a host.
    pub program: PathBuf,
    pub scope: Scope,
}

/// A daemon that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Watch(#[from] watch::WatchError),
}

/// A running daemon. Cheap to clone; it goes on until [`Daemon::stop`].
#[derive(Clone)]
pub struct Daemon {
    services: Arc<Services>,
    watcher: watch_channel::Receiver<Option<WatcherState>>,
    /// Counts the loop's steps, for whoever waits for the state to become something.
    steps: watch_channel::Receiver<u64>,
    parts: Arc<Parts>,
}

struct Parts {
    watcher: Option<Watcher>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Daemon {
    /// Starts the daemon and returns when its registry is that of the disk.
    ///
    /// # Errors
    /// [`StartError`] when the root cannot be read.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let folders = Folders::new(&options.root, options.data.as_deref());
        let (door, inputs) = Door::new();
        let services = Arc::new(make_services(&options, folders, door));
        let scheduling = matches!(options.scope, Scope::Root { .. });
        let mut state = State::new(options.config.runs.slots, scheduling, Box::new(RunId::at));
        let mut performer = Performer::new(Arc::clone(&services));

        let (watcher_tx, watcher_state) = watch_channel::channel(None);
        let mut tasks = Vec::new();
        let mut watcher = None;
        match options.scope {
            Scope::Asked => {
                let root = options.root.clone();
                let batch = tokio::task::spawn_blocking(move || watch::scan(&root)).await.unwrap_or_default();
                services.folders.make_data_folders(&batch).await;
                take_in(&mut state, &mut performer, batch);
            }
            Scope::Root { poll } => {
                services.mcp.end_abandoned().await;
                let (tx, mut rx) = mpsc::channel(64);
                let config = WatchConfig { poll, ..WatchConfig::new(options.root.clone()) };
                let handle = tokio::runtime::Handle::current();
                // Placing ten thousand watches takes a while; the runtime goes on meanwhile.
                let started = tokio::task::spawn_blocking(move || Watcher::start(config, tx, handle)).await;
                watcher = Some(started.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?);
                // The registry is whole before anybody is let in.
                while let Some(event) = rx.recv().await {
                    match event {
                        DiskEvent::Batch(batch) => {
                            let full = batch.full;
                            services.folders.make_data_folders(&batch).await;
                            take_in(&mut state, &mut performer, batch);
                            if full {
                                break;
                            }
                        }
                        DiskEvent::Watcher(told) => {
                            watcher_tx.send_replace(Some(told));
                        }
                    }
                }
                tasks.push(tokio::spawn(forward_disk(rx, services.folders.clone(), services.door.clone(), watcher_tx)));
            }
        }
        let (steps_tx, steps) = watch_channel::channel(0);
        tasks.push(tokio::spawn(turn(state, performer, inputs, steps_tx)));
        Ok(Self { services, watcher: watcher_state, steps, parts: Arc::new(Parts { watcher, tasks }) })
    }

    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Asks for a fire; the answer says whether its row is written.
    pub async fn fire(&self, mut request: FireRequest) -> Answer {
        let answer = self.services.door.expect_answer();
        request.opened = Some(answer.token());
        self.services.door.send(Event::FireRequested(request));
        answer.await.unwrap_or(Answer::Stopping)
    }

    /// Asks for a fire and for its end. The second part fails when the daemon stops before.
    pub async fn fire_and_follow(&self, mut request: FireRequest) -> (Answer, Expected) {
        let end = self.services.door.expect_answer();
        request.ended = Some(end.token());
        (self.fire(request).await, end)
    }

    pub async fn cancel(&self, run: RunId) -> Answer {
        let answer = self.services.door.expect_answer();
        let token = Some(answer.token());
        self.services.door.send(Event::CancelRequested { run, why: ErrorCode::Cancelled, token });
        answer.await.unwrap_or(Answer::Stopping)
    }

    /// Looks at the state from inside the loop; it must be short. `None` when the daemon has stopped.
    pub async fn look<T: Send + 'static>(&self, f: impl FnOnce(&mut State) -> T + Send + 'static) -> Option<T> {
        self.services.door.look(f).await
    }

    /// Waits until the state is as `is` says, looking at it after each step of the loop. `None` when the daemon stops
    /// before.
    pub async fn wait_for(&self, is: impl Fn(&mut State) -> bool + Clone + Send + 'static) -> Option<()> {
        let mut steps = self.steps.clone();
        loop {
            steps.borrow_and_update();
            let is = is.clone();
            if self.look(move |state| is(state)).await? {
                return Some(());
            }
            steps.changed().await.ok()?;
        }
    }

    /// What the watcher last said of itself.
    pub fn watcher_state(&self) -> Option<WatcherState> {
        self.watcher.borrow().clone()
    }

    /// Takes no more fires, gives the running ones `grace`, cancels the rest, and closes the ledgers.
    pub async fn stop(&self, grace: Duration) {
        self.services.door.send(Event::Stopping);
        let idle = || self.wait_for(|state| state.is_idle());
        if tokio::time::timeout(grace, idle()).await.is_err() {
            let open = self.look(|state| state.open_runs().filter(|r| r.active).collect::<Vec<_>>()).await;
            for run in open.unwrap_or_default() {
                self.services.door.send(Event::CancelRequested {
                    run: run.run,
                    why: ErrorCode::Interrupted,
                    token: None,
                });
            }
            if tokio::time::timeout(CANCEL_GRACE, idle()).await.is_err() {
                tracing::warn!("some runs did not end; the next start records them as interrupted");
            }
        }
        self.services.mcp.stop().await;
        self.services.ledgers.close_all().await;
        self.services.pool.shutdown().await;
    }

    /// Reads the whole root again, whatever the watcher thinks.
    pub fn rescan(&self) {
        if let Some(watcher) = &self.parts.watcher {
            watcher.rescan();
        }
    }
}

fn make_services(options: &Options, folders: Folders, door: Door) -> Services {
    let config = &options.config;
    let ledger_of = folders.clone();
    let ledgers = Ledgers::new(LedgerConfig {
        path_of: Arc::new(move |app: &AppId| ledger_of.ledger(app)),
        durability: match config.ledger.survives {
            Survives::Crash => Durability::Process,
            Survives::PowerLoss => Durability::Synced,
        },
        max_open: OPEN_LEDGERS,
        idle_close: LEDGER_IDLE,
        state_key_bytes: config.limits.state_key_bytes,
        state_bytes: config.limits.state_bytes,
        delivery_window_ms: i64::try_from(config.hooks.delivery_window_s.saturating_mul(1000)).unwrap_or(i64::MAX),
    });
    let tools = AppTools::new(Arc::new(folders.clone()));
    let env = Arc::new(|name: &str| std::env::var(name).ok());
    let mcp = Mcp::new(&options.root, config.mcp, config.limits.value_bytes, env);
    let slots = config.runs.slots;
    let pool = Pool::start(PoolConfig {
        program: options.program.clone(),
        warm: config.runs.warm_hosts,
        max_hosts: slots * HOSTS_PER_SLOT + slots + SPARE_HOSTS,
        limits: config.limits.for_hosts(),
    });
    Services {
        pool,
        ledgers,
        tools,
        mcp,
        models: Models::new(config.models.clone(), Arc::new(|name: &str| std::env::var(name).ok())),
        bus: Bus::default(),
        clock: options.clock.clone(),
        limits: config.limits.clone(),
        folders,
        hook_routes: HookRoutes::default(),
        tool_slots: Semaphore::new(slots),
        history_reads: Arc::new(Semaphore::new(HISTORY_READS)),
        door,
    }
}

fn take_in(state: &mut State, performer: &mut Performer, batch: DiskBatch) {
    let before = state.registry.revision();
    performer.follow_folders(&batch);
    step(state, performer, Event::DiskChanged(batch));
    performer.publish_hooks(&mut state.registry);
    // Told last: whoever looks then sees all of it.
    if state.registry.revision() != before {
        performer.tell_registry();
    }
}

fn step(state: &mut State, performer: &mut Performer, event: Event) {
    let effects = state.on_event(performer.now_ms(), event);
    for effect in effects {
        performer.perform(effect);
    }
}

/// The loop.
async fn turn(
    mut state: State,
    mut performer: Performer,
    mut inputs: mpsc::UnboundedReceiver<Input>,
    steps: watch_channel::Sender<u64>,
) {
    let clock = performer.clock();
    loop {
        let deadline = state.next_deadline();
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Event(Event::DiskChanged(batch))) => take_in(&mut state, &mut performer, batch),
                Some(Input::Event(event)) => step(&mut state, &mut performer, event),
                Some(Input::Look(look)) => {
                    look(&mut state);
                    continue;
                }
                None => return,
            },
            () = clock.wait_until(deadline) => step(&mut state, &mut performer, Event::ClockChecked),
        }
        steps.send_modify(|steps| *steps += 1);
    }
}

async fn forward_disk(
    mut disk: mpsc::Receiver<DiskEvent>,
    folders: Folders,
    door: Door,
    watcher: watch_channel::Sender<Option<WatcherState>>,
) {
    while let Some(event) = disk.recv().await {
        match event {
            DiskEvent::Batch(batch) => {
                folders.make_data_folders(&batch).await;
                door.send(Event::DiskChanged(batch));
            }
            DiskEvent::Watcher(state) => {
                if let Some(message) = &state.message {
                    tracing::warn!("{message}");
                }
                watcher.send_replace(Some(state));
            }
        }
    }
}
