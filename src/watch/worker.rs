//! The thread that follows the disk: waits for hints, reads what is due, hands over batches, and starts itself anew
//! when that fails.
//!
//! It never waits for the receiver while it holds more than one batch: as long as there is no room, hints only add to
//! the set of targets, and nothing is read.

use std::collections::VecDeque;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{OwnedPermit, Sender, error::TrySendError};

use super::place::{Files, Kind, Target, classify};
use super::placed::Placed;
use super::settle::Dirty;
use super::source::{Hint, Silent, Source, Waker};
use super::tree::{Context, Delta, Tree, root_problem};
use super::{DiskBatch, DiskEvent, WatchConfig, WatcherState};
use crate::fire::Problem;

/// How often a vanished root is looked for. Nothing tells when it is back.
const ROOT_LOOK: Duration = Duration::from_millis(500);
/// Before the first new start after a failure, doubled for each further one.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After running that long a failure counts as the first one again.
const STEADY: Duration = Duration::from_secs(60);

/// What the thread and its owner have in common.
#[derive(Default)]
pub(super) struct Shared {
    stop: AtomicBool,
    rescan: AtomicBool,
    /// Room in the channel, or that the channel is closed.
    room: Mutex<Option<Result<OwnedPermit<DiskEvent>, ()>>>,
    waker: Mutex<Option<Waker>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("stop", &self.stop).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(super) fn ask_rescan(&self) {
        self.rescan.store(true, Ordering::Release);
        self.wake();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // Cloned out: waking must not hold the lock.
        let waker = lock(&self.waker).clone();
        if let Some(waker) = waker {
            waker();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the loop ended.
enum End {
    /// It was told to, or nobody receives any more.
    Stopped,
    Broken(io::Error),
}

/// Follows the disk until it is told to stop.
pub(super) fn run(
    cfg: &WatchConfig,
    tx: &Sender<DiskEvent>,
    rt: &tokio::runtime::Handle,
    shared: &Arc<Shared>,
    make_source: &dyn Fn() -> io::Result<Box<dyn Source>>,
) {
    let mut problems = Vec::new();
    let mut pause = RESTART_PAUSE;
    loop {
        let started = now();
        let followed = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let source = if cfg.poll { Ok(Box::new(Silent::new()) as Box<dyn Source>) } else { make_source() };
            Worker::new(cfg, tx, rt, shared, source, std::mem::take(&mut problems)).follow()
        }));
        let reason = match followed {
            Ok(End::Stopped) => return,
            Ok(End::Broken(error)) => error.to_string(),
            Err(panic) => panic_text(&*panic),
        };
        tracing::warn!(%reason, "the watcher failed and starts anew");
        problems = vec![
            Problem::warning("watcher_restarted", "", format!("the watcher failed and was started anew: {reason}"))
                .with_hint("if that repeats, poll instead: dirigent serve --poll"),
        ];
        if started.elapsed() >= STEADY {
            pause = RESTART_PAUSE;
        }
        let until = now() + pause;
        *lock(&shared.waker) = Some(Silent::new().waker());
        while !shared.stopped() && now() < until {
            std::thread::park_timeout(until.saturating_duration_since(now()));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

struct Worker<'a> {
    cfg: &'a WatchConfig,
    tx: &'a Sender<DiskEvent>,
    rt: &'a tokio::runtime::Handle,
    shared: &'a Arc<Shared>,
    placed: Placed,
    tree: Tree,
    dirty: Dirty,
    outbox: VecDeque<DiskEvent>,
    /// A task waits for room in the channel.
    awaiting_room: bool,
    told: Option<WatcherState>,
    problems: Vec<Problem>,
    root_problem: Option<Problem>,
    /// The root is gone, and looked for then.
    root_look: Option<Instant>,
    next_rescan: Option<Instant>,
}

impl<'a> Worker<'a> {
    fn new(
        cfg: &'a WatchConfig,
        tx: &'a Sender<DiskEvent>,
        rt: &'a tokio::runtime::Handle,
        shared: &'a Arc<Shared>,
        source: io::Result<Box<dyn Source>>,
        problems: Vec<Problem>,
    ) -> Self {
        let placed = Placed::new(source, cfg.poll_interval);
        *lock(&shared.waker) = Some(placed.waker());
        Self {
            cfg,
            tx,
            rt,
            shared,
            placed,
            tree: Tree::new(&cfg.root),
            dirty: Dirty::new(cfg.settle),
            outbox: VecDeque::new(),
            awaiting_room: false,
            told: None,
            problems,
            root_problem: None,
            root_look: None,
            next_rescan: now().checked_add(cfg.rescan_interval),
        }
    }

    fn follow(mut self) -> End {
        // A permit that was asked for before a new start is for an event that is no more.
        lock(&self.shared.room).take();
        self.scan_anew();
        loop {
            if self.shared.stopped() {
                return End::Stopped;
            }
            match self.send() {
                Ok(true) => {
                    self.look_around();
                    if self.read_due() {
                        continue;
                    }
                }
                Ok(false) => {}
                Err(Closed) => return End::Stopped,
            }
            let timeout = self.next_wake().map(|at| at.saturating_duration_since(now()));
            let dirty = &mut self.dirty;
            if let Err(error) = self.placed.wait(timeout, &mut |hint| note(dirty, &hint)) {
                return End::Broken(error);
            }
        }
    }

    /// Forgets everything and hands over a full batch.
    fn scan_anew(&mut self) {
        let batch: DiskBatch = self.tree.first_scan(&mut self.placed);
        self.root_look = (!batch.root_problems.is_empty()).then(|| now() + ROOT_LOOK);
        self.outbox.push_back(DiskEvent::Batch(batch));
        self.tell_state();
    }

    /// Adds the targets that no hint brings: polls, rescans, a root that is back.
    fn look_around(&mut self) {
        let now = now();
        if self.root_look.is_some_and(|at| at <= now) {
            if self.tree.root_is_readable() {
                self.scan_anew();
            } else {
                self.root_look = Some(now + ROOT_LOOK);
            }
        }
        let dirty = &mut self.dirty;
        self.placed.tick(now, &mut |hint| note(dirty, &hint));
        let asked = self.shared.rescan.swap(false, Ordering::AcqRel);
        if asked || self.next_rescan.is_some_and(|at| at <= now) {
            self.dirty.note(Target::Full, Files::NONE, Kind::Listed, now);
        }
    }

    /// Reads the due targets; true when that made something to send.
    fn read_due(&mut self) -> bool {
        let now = now();
        let due = self.dirty.take_due(now);
        if self.root_look.is_some() {
            // Nothing is known to differ from; the scan anew reads it all.
            self.dirty.done();
            if due.contains(&Target::Full) || due.contains(&Target::Root) {
                self.root_look = Some(now);
            }
        } else if !due.is_empty() {
            let mut gate = self.dirty.gate(now);
            let mut cx = Context { watches: &mut self.placed, gate: &mut gate, delta: Delta::default() };
            let mut read_root = Ok(());
            if due.contains(&Target::Full) {
                read_root = self.tree.refresh_all(&mut cx);
                self.next_rescan = now.checked_add(self.cfg.rescan_interval);
            } else {
                for target in &due {
                    match target {
                        Target::Full => {}
                        Target::Root => read_root = self.tree.refresh_root(&mut cx),
                        Target::App(app) => self.tree.refresh_app(app, &mut cx),
                        Target::Front(app) => self.tree.refresh_front(app, &mut cx),
                        Target::Entry(app, entry) => self.tree.refresh_entry(app, entry, &mut cx),
                    }
                }
            }
            let delta = cx.delta;
            self.dirty.done();
            if let Some(batch) = self.tree.batch(delta) {
                self.outbox.push_back(DiskEvent::Batch(batch));
            }
            self.after_root(&read_root);
        }
        self.tell_state();
        !self.outbox.is_empty()
    }

    /// A root that is gone takes all apps with it; one that cannot be read leaves them as they were.
    fn after_root(&mut self, read: &io::Result<()>) {
        let Err(error) = read else {
            self.root_problem = None;
            return;
        };
        let problem = root_problem(&self.cfg.root, error);
        if problem.code == "root_missing" {
            // It may be back already: the scan decides.
            self.scan_anew();
        } else {
            self.root_problem = Some(problem);
        }
    }

    fn next_wake(&mut self) -> Option<Instant> {
        if !self.outbox.is_empty() {
            // Room wakes it; until then nothing may be read.
            return None;
        }
        let tick = self.placed.next_tick(now());
        [self.next_rescan, self.root_look, self.dirty.next_due(), tick].into_iter().flatten().min()
    }

    fn tell_state(&mut self) {
        let mut state = self.placed.state();
        state.problems.extend(self.problems.iter().chain(&self.root_problem).cloned());
        // The number of watches alone is not worth an event.
        if self.told.as_ref().map(|told| WatcherState { watches: state.watches, ..told.clone() }) != Some(state.clone())
        {
            self.told = Some(state.clone());
            self.outbox.push_back(DiskEvent::Watcher(state));
        }
    }

    /// Sends what there is room for; true when all is sent.
    fn send(&mut self) -> Result<bool, Closed> {
        while !self.outbox.is_empty() {
            if self.awaiting_room {
                let Some(room) = lock(&self.shared.room).take() else {
                    return Ok(false);
                };
                self.awaiting_room = false;
                let permit = room.map_err(|()| Closed)?;
                if let Some(event) = self.outbox.pop_front() {
                    permit.send(event);
                }
                continue;
            }
            let Some(event) = self.outbox.pop_front() else { break };
            match self.tx.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Closed(_)) => return Err(Closed),
                Err(TrySendError::Full(event)) => {
                    self.outbox.push_front(event);
                    self.await_room();
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn await_room(&mut self) {
        self.awaiting_room = true;
        if lock(&self.shared.room).is_some() {
            // Left by a task of an earlier start: as good as a new one.
            self.shared.wake();
            return;
        }
        let (tx, shared) = (self.tx.clone(), Arc::clone(self.shared));
        self.rt.spawn(async move {
            let room = tx.reserve_owned().await.map_err(|_| ());
            *lock(&shared.room) = Some(room);
            shared.wake();
        });
    }
}

/// Nobody receives any more.
struct Closed;

fn note(dirty: &mut Dirty, hint: &Hint<'_>) {
    let (target, files, kind) = match *hint {
        Hint::Overflow => (Target::Full, Files::NONE, Kind::Listed),
        Hint::At { place, name, kind } => match classify(place, name, kind) {
            Some((target, files)) => (target, files, kind),
            None => return,
        },
    };
    dirty.note(target, files, kind, now());
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Deadlines of this thread alone, by the monotonic clock.
fn now() -> Instant {
    Instant::now()
}
