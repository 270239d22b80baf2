//! Which ledgers are open: a writer thread for each, at most `max_open` of them, the least recently used closed first.
//!
//! A request enters its app's queue when it is made, synchronously, and each queue is first in, first out, also while
//! the ledger is being closed and opened again. An app never has two writers: whatever arrives while one is closing
//! waits for the next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::Notify;

use crate::fire::AppId;

use super::LedgerConfig;
use super::checkpoint::Checkpointer;
use super::error::LedgerError;
use super::faults::Faults;
use super::health::Health;
use super::ops::Job;
use super::writer;

/// SQLite's JSON functions recurse; half of what a thread usually gets is ample for them.
const STACK_BYTES: usize = 1024 * 1024;

pub(super) enum Message {
    Job(Job),
    /// Nothing comes after it.
    Close {
        /// Copy the log back and empty it, rather than leave it for the next open.
        tidy: bool,
    },
}

/// What all writers share.
pub(super) struct Fleet {
    pub config: LedgerConfig,
    pub checkpointer: Checkpointer,
    pub faults: Faults,
    pub health: Health,
    pub counters: Counters,
    slots: Mutex<Slots>,
    /// A writer has ended.
    ended: Notify,
    /// Where each app's corrupt ledger was last moved.
    quarantined: Mutex<HashMap<AppId, PathBuf>>,
    checked: Mutex<HashSet<AppId>>,
}

#[derive(Default)]
pub(super) struct Counters {
    pub requests: AtomicU64,
    pub groups: AtomicU64,
    pub opens: AtomicU64,
}

#[derive(Default)]
struct Slots {
    by_app: HashMap<AppId, Slot>,
    /// Threads, closing ones included.
    writers: usize,
    closing: usize,
    /// Apps whose slot is `Waiting`, in turn.
    waiting: VecDeque<AppId>,
    /// Counts requests and writers: the clock of "least recently used", and the writers' names.
    tick: u64,
}

enum Slot {
    Open {
        writer: u64,
        queue: mpsc::Sender<Message>,
        used: u64,
    },
    Closing {
        writer: u64,
        then: Vec<Job>,
    },
    /// For room.
    Waiting {
        jobs: Vec<Job>,
    },
}

impl Slot {
    fn writer(&self) -> Option<u64> {
        match self {
            Slot::Open { writer, .. } | Slot::Closing { writer, .. } => Some(*writer),
            Slot::Waiting { .. } => None,
        }
    }
}

impl Fleet {
    pub(super) fn new(mut config: LedgerConfig) -> Arc<Self> {
        config.max_open = config.max_open.max(1);
        Arc::new(Self {
            config,
            checkpointer: Checkpointer::default(),
            faults: Faults::default(),
            health: Health::default(),
            counters: Counters::default(),
            slots: Mutex::default(),
            ended: Notify::new(),
            quarantined: Mutex::default(),
            checked: Mutex::default(),
        })
    }

    /// Puts the job into its app's queue, and sees to it that somebody serves that.
    pub(super) fn submit(self: &Arc<Self>, app: &AppId, job: Job) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let mut slots = self.lock();
        slots.tick += 1;
        let now = slots.tick;
        match slots.by_app.get_mut(app) {
            Some(Slot::Open { queue, used, .. }) => {
                *used = now;
                if let Err(mpsc::SendError(Message::Job(job))) = queue.send(Message::Job(job)) {
                    // Its thread panicked and is about to leave its slot.
                    let _ = job.answer.send(Err(LedgerError::WriterGone));
                }
            }
            Some(Slot::Closing { then, .. }) => then.push(job),
            Some(Slot::Waiting { jobs }) => jobs.push(job),
            None => {
                slots.by_app.insert(app.clone(), Slot::Waiting { jobs: vec![job] });
                slots.waiting.push_back(app.clone());
                self.make_room(&mut slots);
            }
        }
    }

    /// True when the app's ledger is open or about to be.
    pub(super) fn is_in_use(&self, app: &AppId) -> bool {
        self.lock().by_app.contains_key(app)
    }

    /// Threads that exist.
    pub(super) fn open(&self) -> usize {
        self.lock().writers
    }

    /// Tells one ledger to close after what is queued now, or all, and returns a future of when that is done. All also
    /// means those that are opened meanwhile.
    pub(super) fn close(self: Arc<Self>, only: Option<&AppId>) -> impl Future<Output = ()> + Send + use<> {
        let all = only.is_none();
        let told = self.lock().close_open(only);
        async move {
            loop {
                // Before looking, so that no end falls between the look and the wait.
                let ended = self.ended.notified();
                {
                    let mut slots = self.lock();
                    let done = if all {
                        slots.close_open(None);
                        slots.by_app.is_empty()
                    } else {
                        !slots.by_app.values().any(|slot| slot.writer().is_some_and(|writer| told.contains(&writer)))
                    };
                    if done {
                        return;
                    }
                }
                ended.await;
            }
        }
    }

    /// An idle writer asks whether it may go: the message to serve instead, if one has come meanwhile.
    pub(super) fn retire(&self, app: &AppId, queue: &mpsc::Receiver<Message>) -> Option<Message> {
        let mut slots = self.lock();
        if let Ok(message) = queue.try_recv() {
            return Some(message);
        }
        slots.begin_closing(app);
        None
    }

    pub(super) fn quarantined(&self, app: &AppId) -> Option<PathBuf> {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).get(app).cloned()
    }

    pub(super) fn note_quarantined(&self, app: &AppId, path: PathBuf) {
        self.quarantined.lock().unwrap_or_else(PoisonError::into_inner).insert(app.clone(), path);
    }

    /// True the first time: only then a small file is checked whole.
    pub(super) fn is_first_open(&self, app: &AppId) -> bool {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).insert(app.clone())
    }

    /// Starts writers for those who wait, as far as there is room, and closes as many as then still wait.
    fn make_room(self: &Arc<Self>, slots: &mut Slots) {
        while slots.writers < self.config.max_open
            && let Some(app) = slots.waiting.pop_front()
        {
            self.start(slots, app);
        }
        // A little room is made ahead, so that the next app need not wait for a close.
        let ahead = (slots.writers - slots.closing).saturating_sub(self.config.max_open - self.config.max_open / 8);
        let wanted = ahead.max(slots.waiting.len().saturating_sub(slots.closing));
        for _ in 0..wanted {
            let Some(app) = slots.least_recently_used() else { break };
            slots.close(&app, false);
        }
    }

    fn start(self: &Arc<Self>, slots: &mut Slots, app: AppId) {
        let Some(Slot::Waiting { jobs }) = slots.by_app.remove(&app) else {
            return;
        };
        let (queue, messages) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("ledger {app}")).stack_size(STACK_BYTES);
        let (fleet, own) = (Arc::clone(self), app.clone());
        let spawned = thread.spawn(move || {
            let seat = Seat { fleet, app: own };
            writer::run(&seat.fleet, &seat.app, &messages);
        });
        match spawned {
            Ok(_) => {
                for job in jobs {
                    // The receiver lives in the thread, which ends only after a `Close`.
                    let _ = queue.send(Message::Job(job));
                }
                slots.writers += 1;
                slots.tick += 1;
                slots.by_app.insert(app, Slot::Open { writer: slots.tick, queue, used: slots.tick });
            }
            Err(error) => {
                let error = LedgerError::io("cannot start a ledger's thread", &error);
                for job in jobs {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slots {
    fn least_recently_used(&self) -> Option<AppId> {
        let open = self.by_app.iter().filter_map(|(app, slot)| match slot {
            Slot::Open { used, .. } => Some((*used, app)),
            _ => None,
        });
        open.min().map(|(_, app)| app.clone())
    }

    fn close(&mut self, app: &AppId, tidy: bool) {
        if let Some(Slot::Open { queue, .. }) = self.by_app.get(app) {
            // A thread that is gone leaves its slot by itself.
            let _ = queue.send(Message::Close { tidy });
            self.begin_closing(app);
        }
    }

    fn begin_closing(&mut self, app: &AppId) {
        if let Some(slot) = self.by_app.get_mut(app)
            && let Slot::Open { writer, .. } = slot
        {
            *slot = Slot::Closing { writer: *writer, then: Vec::new() };
            self.closing += 1;
        }
    }

    /// Tells those that are open to close and tidy up; gives the writers that are closing now.
    fn close_open(&mut self, only: Option<&AppId>) -> Vec<u64> {
        let apps: Vec<AppId> = match only {
            Some(app) => vec![app.clone()],
            None => self.by_app.keys().cloned().collect(),
        };
        for app in &apps {
            self.close(app, true);
        }
        apps.iter().filter_map(|app| self.by_app.get(app)?.writer()).collect()
    }
}

/// A writer's place. It is given back when the thread ends, also by a panic: otherwise the app would wait for ever.
struct Seat {
    fleet: Arc<Fleet>,
    app: AppId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut slots = self.fleet.lock();
        slots.writers -= 1;
        if let Some(Slot::Closing { then, .. }) = slots.by_app.remove(&self.app) {
            slots.closing -= 1;
            if !then.is_empty() {
                slots.by_app.insert(self.app.clone(), Slot::Waiting { jobs: then });
                slots.waiting.push_back(self.app.clone());
            }
        }
        self.fleet.make_room(&mut slots);
        drop(slots);
        self.fleet.ended.notify_waiters();
    }
}
