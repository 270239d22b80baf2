//! Which hosts exist and who gets one. Keeps `warm` hosts ready beyond the busy ones, never more than `max_hosts` in
//! all; jobs wait in the order in which they came. A host that dies is replaced; a program that does not start is
//! tried again with growing pauses, and those who wait are told why.

use std::collections::{HashMap, VecDeque};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::process::{self, Died, Host, RunningJob};
use super::wire::{MAX_FRAME, WireError};
use super::{HOST_ARG, Job, PoolConfig};

/// First pause after a start that failed; it doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Why a job was not started. Nothing of it has run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PoolError {
    #[error("no handler can run: {0}")]
    CannotStart(String),
    #[error("the daemon is stopping")]
    Closed,
    #[error("the job does not fit: {0}")]
    TooLarge(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Hosts that could run a job at once.
    pub warm: usize,
    /// Hosts in a run, or preparing the next isolate after one.
    pub busy: usize,
    pub spawned_total: u64,
    /// Hosts that died on their own, of a run or otherwise.
    pub died_total: u64,
}

/// The daemon's hosts. Cheap to clone; when the last clone is gone, so are the hosts.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl Pool {
    /// Starts the warm hosts. Needs a tokio runtime; returns before they are ready.
    pub fn start(config: PoolConfig) -> Self {
        let (spawner, requests) = std_mpsc::channel();
        let runtime = tokio::runtime::Handle::current();
        let inner = Arc::new(Inner {
            config,
            spawner,
            runtime: runtime.clone(),
            state: Mutex::new(State::default()),
            emptied: Notify::new(),
        });
        let weak = Arc::downgrade(&inner);
        // A thread of its own, for as long as there is a pool: on Linux a host dies with the thread that started it.
        let thread = std::thread::Builder::new().name("isolate-spawner".into());
        if let Err(error) = thread.spawn(move || spawn_hosts(&requests, &weak, &runtime)) {
            inner.lock().broken = Some(format!("no thread to start hosts from: {error}"));
        }
        inner.maintain(&mut inner.lock());
        Self { inner }
    }

    /// Runs a job as soon as a host is ready for it.
    ///
    /// # Errors
    /// When no host can be started, the job does not fit a frame, or the pool was shut down.
    pub async fn run(&self, job: Job) -> Result<RunningJob, PoolError> {
        loop {
            let host = self.inner.lease().await?;
            match host.start(&job) {
                Ok(Some(running)) => return Ok(running),
                // It died in the meantime; its own task tells the pool.
                Ok(None) => {}
                Err(error) => {
                    self.inner.host_ready(&host);
                    return Err(PoolError::TooLarge(too_large(&error)));
                }
            }
        }
    }

    pub fn stats(&self) -> PoolStats {
        let state = self.inner.lock();
        let busy = state.hosts.values().filter(|entry| matches!(entry.phase, Phase::Busy | Phase::Renewing)).count();
        PoolStats { warm: state.ready.len(), busy, spawned_total: state.spawned_total, died_total: state.died_total }
    }

    /// Kills all hosts, and returns when they are gone. Runs that are still going end as aborted.
    pub async fn shutdown(&self) {
        let waiters = {
            let mut state = self.inner.lock();
            state.closed = true;
            state.hosts.values().for_each(|entry| entry.host.kill());
            std::mem::take(&mut state.waiters)
        };
        for waiter in waiters {
            let _ = waiter.send(Err(PoolError::Closed));
        }
        loop {
            let emptied = self.inner.emptied.notified();
            if self.inner.lock().is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

fn too_large(error: &WireError) -> String {
    match error {
        WireError::TooLarge(size) => format!("{size} bytes with source and input; the limit is {MAX_FRAME}"),
        other => other.to_string(),
    }
}

pub(super) struct Inner {
    config: PoolConfig,
    spawner: std_mpsc::Sender<u64>,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
    emptied: Notify,
}

#[derive(Default)]
struct State {
    hosts: HashMap<u64, Entry>,
    /// Most recently used last: the ones at the front are let go after a burst.
    ready: Vec<u64>,
    /// Asked of the spawner, or started and not ready yet.
    starting: usize,
    waiters: VecDeque<oneshot::Sender<Result<Lease, PoolError>>>,
    next_id: u64,
    spawned_total: u64,
    died_total: u64,
    failures: u32,
    not_before: Option<Instant>,
    /// Set when hosts can never be started.
    broken: Option<String>,
    closed: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.starting == 0
    }

    fn live(&self) -> usize {
        self.hosts.values().filter(|entry| entry.phase != Phase::Starting).count() + self.starting
    }
}

struct Entry {
    host: Arc<Host>,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    /// In a run, or about to get one.
    Busy,
    /// After a run: the next isolate is being made, which takes about a millisecond.
    Renewing,
}

/// A host on its way to who waited for it; it goes back when nobody waits any more.
struct Lease {
    host: Option<Arc<Host>>,
    pool: Weak<Inner>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(host), Some(pool)) = (self.host.take(), self.pool.upgrade()) {
            pool.host_ready(&host);
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn lease(self: &Arc<Self>) -> Result<Arc<Host>, PoolError> {
        let waiting = {
            let mut state = self.lock();
            if state.closed {
                return Err(PoolError::Closed);
            }
            if let Some(reason) = &state.broken {
                return Err(PoolError::CannotStart(reason.clone()));
            }
            while let Some(id) = state.ready.pop() {
                if let Some(entry) = state.hosts.get_mut(&id) {
                    entry.phase = Phase::Busy;
                    let host = entry.host.clone();
                    self.maintain(&mut state);
                    return Ok(host);
                }
            }
            let (sender, receiver) = oneshot::channel();
            state.waiters.push_back(sender);
            self.maintain(&mut state);
            receiver
        };
        let mut lease = waiting.await.unwrap_or(Err(PoolError::Closed))?;
        lease.host.take().ok_or(PoolError::Closed)
    }

    /// A host can run a job: whoever waits longest gets it.
    pub(super) fn host_ready(self: &Arc<Self>, host: &Arc<Host>) {
        let mut waiting = None;
        {
            let mut state = self.lock();
            let state = &mut *state;
            let Some(entry) = state.hosts.get_mut(&host.id) else {
                return;
            };
            if entry.phase == Phase::Starting {
                state.starting = state.starting.saturating_sub(1);
                state.failures = 0;
                state.not_before = None;
            }
            while let Some(waiter) = state.waiters.pop_front() {
                if !waiter.is_closed() {
                    waiting = Some(waiter);
                    break;
                }
            }
            if waiting.is_some() {
                entry.phase = Phase::Busy;
            } else if entry.phase != Phase::Ready {
                entry.phase = Phase::Ready;
                state.ready.push(host.id);
            }
        }
        if let Some(waiter) = waiting {
            let lease = Lease { host: Some(host.clone()), pool: Arc::downgrade(self) };
            // Dropped when the waiter has left at this very moment: then the lease brings the host back here.
            let _ = waiter.send(Ok(lease));
        }
    }

    /// True when this idle host is one too many; it is then no longer in the pool's reach.
    pub(super) fn give_up(&self, id: u64) -> bool {
        let mut state = self.lock();
        let at = state.ready.iter().position(|&ready| ready == id);
        match at {
            Some(at) if state.ready.len() > self.config.warm => {
                state.ready.remove(at);
                true
            }
            _ => false,
        }
    }

    /// A host's run is over; it will soon be ready again, so no other needs to be started in its place.
    pub(super) fn host_ended(&self, id: u64) {
        if let Some(entry) = self.lock().hosts.get_mut(&id) {
            entry.phase = Phase::Renewing;
        }
    }

    pub(super) fn host_died(self: &Arc<Self>, id: u64, died: Died) {
        let mut state = self.lock();
        state.ready.retain(|&ready| ready != id);
        let entry = state.hosts.remove(&id);
        if entry.is_some_and(|entry| entry.phase == Phase::Starting) {
            state.starting = state.starting.saturating_sub(1);
        }
        match died {
            Died::InOrder => {}
            Died::Later => state.died_total += 1,
            Died::AtStart(reason) => {
                state.died_total += 1;
                self.start_failed(&mut state, reason);
            }
        }
        self.maintain(&mut state);
        self.emptied.notify_waiters();
    }

    fn start_failed(self: &Arc<Self>, state: &mut State, reason: String) {
        let pause = FIRST_PAUSE.saturating_mul(1 << state.failures.min(10)).min(LAST_PAUSE);
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + pause);
        tracing::warn!(%reason, retry_in_ms = pause.as_millis(), "a handler host does not start");
        if state.hosts.values().all(|entry| entry.phase == Phase::Starting) {
            for waiter in std::mem::take(&mut state.waiters) {
                let _ = waiter.send(Err(PoolError::CannotStart(reason.clone())));
            }
        }
        let weak = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(pause).await;
            if let Some(pool) = weak.upgrade() {
                let mut state = pool.lock();
                state.not_before = None;
                pool.maintain(&mut state);
            }
        });
    }

    /// Asks for as many hosts as are wanted and missing.
    fn maintain(&self, state: &mut State) {
        if state.closed || state.broken.is_some() || state.not_before.is_some() {
            return;
        }
        let busy = state.hosts.values().filter(|entry| entry.phase == Phase::Busy).count();
        let wanted = (busy + state.waiters.len() + self.config.warm).min(self.config.max_hosts.max(1));
        for _ in state.live()..wanted {
            state.next_id += 1;
            if self.spawner.send(state.next_id).is_err() {
                return;
            }
            state.starting += 1;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lock().hosts.values().for_each(|entry| entry.host.kill());
    }
}

/// The spawner thread: makes the snapshot when it is first needed, then starts hosts as they are asked for.
fn spawn_hosts(requests: &std_mpsc::Receiver<u64>, pool: &Weak<Inner>, runtime: &tokio::runtime::Handle) {
    let mut snapshot = None;
    while let Ok(id) = requests.recv() {
        let Some(pool) = pool.upgrade() else { return };
        let _entered = runtime.enter();
        let started = match &snapshot {
            Some(blob) => Ok(blob),
            None => make_snapshot(&pool.config).map(|blob| &*snapshot.insert(blob)),
        }
        .and_then(|blob| {
            let name = pool.config.program.display();
            process::spawn(&pool.config, id, blob).map_err(|error| format!("{name} does not start: {error}"))
        });
        let mut state = pool.lock();
        match started {
            Ok(spawned) => {
                state.spawned_total += 1;
                let host = spawned.host.clone();
                if state.closed {
                    host.kill();
                }
                state.hosts.insert(id, Entry { host, phase: Phase::Starting });
                runtime.spawn(process::drive(spawned, Arc::downgrade(&pool)));
            }
            Err(reason) => {
                state.starting = state.starting.saturating_sub(1);
                pool.start_failed(&mut state, reason);
                pool.emptied.notify_waiters();
            }
        }
    }
}

/// Has a short-lived host make the snapshot, so that this process never executes V8.
fn make_snapshot(config: &PoolConfig) -> Result<Vec<u8>, String> {
    let name = config.program.display();
    let output = std::process::Command::new(&config.program)
        .args([HOST_ARG, "--snapshot"])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name} does not start: {error}"))?;
    if !output.status.success() || output.stdout.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} makes no snapshot ({}): {}", output.status, said.trim()));
    }
    if output.stdout.len() > MAX_FRAME {
        return Err(format!("{name} makes a snapshot of {} bytes", output.stdout.len()));
    }
    Ok(output.stdout)
}
