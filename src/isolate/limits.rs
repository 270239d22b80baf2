//! What one run may use, enforced from outside its JavaScript: a watchdog thread in the host looks at CPU time, memory
//! and the grace after an abort, and stops the isolate; when V8 does not stop in time, it ends the process.
//!
//! Words: the main thread is *busy* while it is in JavaScript and not when it waits for input. The watchdog ticks
//! only near busy times; a parked run and an idle host cost no wake-ups.
//!
//! The exit codes here tell the daemon why, when nothing else can be said any more. A mistake here lets one handler
//! eat the machine.

use std::ffi::{c_char, c_void};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use deno_core::v8;

use super::buffers::Buffers;
use super::mailbox::{Inbox, Outbox};
use super::sandbox::{self, Memory};
use super::wire::{self, FromHost};
use super::{JobEnd, Limits, Outcome};
use crate::fire::ErrorCode;

/// Near enough to stop a runaway allocation within tens of megabytes, and 1 % of a core at most.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without anything to watch before the watchdog sleeps for good.
const IDLE_TICKS: u32 = 3;
/// How long JavaScript has after an abort, and V8 after it was told to stop.
pub(super) const GRACE: Duration = Duration::from_millis(250);
/// How long last words may take when the daemon does not read.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// What V8 may still use after its heap limit was reached, so that it can stop instead of aborting the process.
const HEAP_ROOM: usize = 16 << 20;
/// How often that room is given: termination needs one, a native loop such as `Array.fill` eats any number.
const HEAP_ROOMS: usize = 2;
/// Code, stacks, V8's bookkeeping, a frame in transit: what a host has beside heap and external memory.
const OVERHEAD: u64 = 96 << 20;

pub(super) const EXIT_PROTOCOL: i32 = 80;
pub(super) const EXIT_CPU: i32 = 81;
pub(super) const EXIT_MEMORY: i32 = 82;
pub(super) const EXIT_ABORTED: i32 = 83;
pub(super) const EXIT_RETIRED: i32 = 84;

/// Why a run was stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stop {
    Cpu = 1,
    Memory = 2,
    Aborted = 3,
}

impl Stop {
    fn from_u8(value: u8) -> Option<Self> {
        [Stop::Cpu, Stop::Memory, Stop::Aborted].into_iter().find(|stop| *stop as u8 == value)
    }

    pub(super) fn exit_code(self) -> i32 {
        match self {
            Stop::Cpu => EXIT_CPU,
            Stop::Memory => EXIT_MEMORY,
            Stop::Aborted => EXIT_ABORTED,
        }
    }

    pub(super) fn from_exit_code(code: i32) -> Option<Self> {
        [Stop::Cpu, Stop::Memory, Stop::Aborted].into_iter().find(|stop| stop.exit_code() == code)
    }

    pub(super) fn outcome(self) -> Outcome {
        match self {
            Stop::Cpu => Outcome::failed(ErrorCode::CpuLimit, "the handler used more CPU time than it may"),
            Stop::Memory => Outcome::failed(ErrorCode::MemoryLimit, "the handler used more memory than it may"),
            Stop::Aborted => Outcome::Aborted,
        }
    }
}

/// The run that is being watched.
struct Active {
    isolate: v8::IsolateHandle,
    cpu_start: Duration,
    cpu_limit: Duration,
    resident_limit: Option<u64>,
    /// When the grace after an abort ends.
    abort_until: Option<Instant>,
    stopped_at: Option<Instant>,
}

/// What the threads of a host share. There is one, for the life of the process.
pub(super) struct Shared {
    pub(super) outbox: Mutex<Outbox>,
    pub(super) inbox: Mutex<Inbox>,
    pub(super) memory: Memory,
    pub(super) buffers: Buffers,
    active: Mutex<Option<Active>>,
    stop: AtomicU8,
    heap_rooms: AtomicUsize,
    peak_bytes: AtomicU64,
    busy: AtomicBool,
    asleep: AtomicBool,
    bell: (Mutex<()>, Condvar),
}

static SHARED: OnceLock<Shared> = OnceLock::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// To be called once, before [`sandbox::enter`].
    pub(super) fn open() -> &'static Self {
        SHARED.get_or_init(|| Self {
            outbox: Mutex::new(Outbox::open()),
            inbox: Mutex::new(Inbox::open()),
            memory: Memory::open(),
            buffers: Buffers::default(),
            active: Mutex::new(None),
            stop: AtomicU8::new(0),
            heap_rooms: AtomicUsize::new(0),
            peak_bytes: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            bell: (Mutex::new(()), Condvar::new()),
        })
    }

    pub(super) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        lock(&self.outbox)
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        lock(&self.inbox)
    }

    /// How much private writable memory the process may map beyond what it starts with: above everything that the
    /// watchdog allows, since it only has to hold between two of its ticks.
    pub(super) fn data_growth(limits: &Limits) -> u64 {
        limits.heap_bytes + limits.external_bytes + 2 * OVERHEAD + (HEAP_ROOM * (HEAP_ROOMS + 1)) as u64
    }

    /// A run starts: from here its CPU time and memory count.
    pub(super) fn begin(&self, isolate: v8::IsolateHandle, limits: &Limits, cpu_ms: Option<u64>) {
        let resident = self.memory.resident_bytes();
        self.stop.store(0, Ordering::SeqCst);
        self.heap_rooms.store(0, Ordering::SeqCst);
        self.peak_bytes.store(resident.unwrap_or(0), Ordering::SeqCst);
        self.buffers.begin();
        *lock(&self.active) = Some(Active {
            isolate,
            cpu_start: sandbox::cpu_time(),
            cpu_limit: Duration::from_millis(cpu_ms.unwrap_or(limits.cpu_ms)),
            resident_limit: resident.map(|now| now + limits.heap_bytes + limits.external_bytes + OVERHEAD / 2),
            abort_until: None,
            stopped_at: None,
        });
        self.set_busy();
    }

    /// The run is over; gives its CPU time and its peak of resident memory.
    pub(super) fn finish(&self) -> (u64, Option<u64>) {
        let active = lock(&self.active).take();
        self.busy.store(false, Ordering::SeqCst);
        let cpu = active.map_or(Duration::ZERO, |run| sandbox::cpu_time().saturating_sub(run.cpu_start));
        let now = self.memory.resident_bytes();
        let peak = now.map(|now| now.max(self.peak_bytes.load(Ordering::SeqCst)));
        (u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX), peak)
    }

    /// The main thread is about to run JavaScript.
    pub(super) fn set_busy(&self) {
        self.busy.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            // Having held the lock once is enough: the watchdog looks at `busy` under it before it sleeps.
            drop(lock(&self.bell.0));
            self.bell.1.notify_one();
        }
    }

    /// The main thread is about to wait.
    pub(super) fn set_idle(&self) {
        self.busy.store(false, Ordering::SeqCst);
    }

    /// Why the current run was stopped, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        Stop::from_u8(self.stop.load(Ordering::SeqCst))
    }

    /// An abort came in: JavaScript has [`GRACE`] from now.
    pub(super) fn start_grace(&self) {
        if let Some(run) = lock(&self.active).as_mut() {
            run.abort_until.get_or_insert_with(|| Instant::now() + GRACE);
        }
    }

    /// When the grace ends, if there was an abort.
    pub(super) fn grace_ends(&self) -> Option<Instant> {
        lock(&self.active).as_ref().and_then(|run| run.abort_until)
    }

    /// Stops the current run; the first reason stands. Called by V8 in the midst of things, so it does not wait for
    /// the watchdog, which may be waiting for V8: if it is at work now, it sees the reason at its next tick.
    fn stop(&self, why: Stop) {
        let _ = self.stop.compare_exchange(0, why as u8, Ordering::SeqCst, Ordering::SeqCst);
        if let Ok(mut active) = self.active.try_lock()
            && let Some(run) = active.as_mut()
        {
            self.stop_run(run, why);
        }
    }

    fn stop_run(&self, run: &mut Active, why: Stop) {
        let _ = self.stop.compare_exchange(0, why as u8, Ordering::SeqCst, Ordering::SeqCst);
        run.stopped_at.get_or_insert_with(Instant::now);
        run.isolate.terminate_execution();
    }

    fn watch(&self) {
        let mut idle = 0;
        loop {
            if self.busy.load(Ordering::SeqCst) {
                idle = 0;
            } else {
                idle += 1;
            }
            if idle > IDLE_TICKS {
                self.sleep_until_busy();
                idle = 0;
            }
            std::thread::sleep(TICK);
            if self.busy.load(Ordering::SeqCst) {
                self.read_while_busy();
                self.check();
            }
        }
    }

    fn sleep_until_busy(&self) {
        let mut held = lock(&self.bell.0);
        self.asleep.store(true, Ordering::SeqCst);
        while !self.busy.load(Ordering::SeqCst) {
            held = self.bell.1.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Sees an abort, or the end of the daemon, that JavaScript keeps the main thread from reading.
    fn read_while_busy(&self) {
        let Ok(mut inbox) = self.inbox.try_lock() else { return };
        if inbox.sees_abort() {
            self.start_grace();
        }
    }

    fn check(&self) {
        let resident = self.memory.resident_bytes();
        self.peak_bytes.fetch_max(resident.unwrap_or(0), Ordering::SeqCst);
        let mut active = lock(&self.active);
        let Some(run) = active.as_mut() else { return };
        if let Some(at) = run.stopped_at {
            if at.elapsed() > GRACE {
                let cpu = sandbox::cpu_time().saturating_sub(run.cpu_start);
                drop(active);
                self.die(self.stopped().unwrap_or(Stop::Aborted), cpu);
            }
            return;
        }
        if let Some(why) = self.stopped() {
            self.stop_run(run, why);
        } else if resident.zip(run.resident_limit).is_some_and(|(now, most)| now > most) {
            self.stop_run(run, Stop::Memory);
        } else if sandbox::cpu_time().saturating_sub(run.cpu_start) > run.cpu_limit {
            self.stop_run(run, Stop::Cpu);
        } else if run.abort_until.is_some_and(|until| until < Instant::now()) {
            self.stop_run(run, Stop::Aborted);
        }
    }

    /// Last words, if they can be said, and the end of this process.
    fn die(&self, why: Stop, cpu: Duration) -> ! {
        let deadline = Instant::now() + LAST_WORDS;
        let outbox = loop {
            match self.outbox.try_lock() {
                Ok(outbox) => break Some(outbox),
                Err(TryLockError::Poisoned(poisoned)) => break Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if let Some(mut outbox) = outbox {
            outbox.bytes.clear();
            let logs = std::mem::take(&mut outbox.logs);
            let end = JobEnd {
                outcome: why.outcome(),
                cpu_ms: u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX),
                peak_bytes: Some(self.peak_bytes.load(Ordering::SeqCst)).filter(|&peak| peak > 0),
            };
            // Without lines no batch: none may come after abandoned calls, which may have been sent already.
            let said = (!logs.is_empty()).then_some(FromHost::Batch { logs, calls: vec![], tick: None });
            let mut frames = said.into_iter().chain([FromHost::Ended(end)]);
            let encoded = frames.all(|frame| wire::encode(&frame, &mut outbox.bytes).is_ok());
            if encoded {
                let _ = outbox.write(Some(deadline));
            }
        }
        sandbox::exit_now(why.exit_code())
    }
}

/// Starts the watchdog. It lives as long as the process.
pub(super) fn start_watchdog(shared: &'static Shared) -> io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).stack_size(128 << 10).spawn(move || shared.watch())?;
    Ok(())
}

/// Puts the limits on a new isolate.
pub(super) fn guard(isolate: &mut v8::OwnedIsolate) {
    isolate.add_near_heap_limit_callback(near_heap_limit, std::ptr::null_mut());
    isolate.set_oom_error_handler(out_of_memory);
}

unsafe extern "C" fn near_heap_limit(_: *mut c_void, current: usize, _initial: usize) -> usize {
    let Some(shared) = SHARED.get() else { return current };
    shared.stop(Stop::Memory);
    let given = shared.heap_rooms.fetch_add(1, Ordering::SeqCst);
    if given < HEAP_ROOMS { current + HEAP_ROOM } else { current }
}

/// V8 is about to abort the process; the reason is known here, so it is said.
unsafe extern "C" fn out_of_memory(_location: *const c_char, _details: &v8::OomDetails) {
    let Some(shared) = SHARED.get() else { sandbox::exit_now(EXIT_MEMORY) };
    // The lock may be held by this very thread, deep inside V8: then the run's CPU time is not known.
    let cpu = shared
        .active
        .try_lock()
        .ok()
        .and_then(|active| active.as_ref().map(|run| sandbox::cpu_time().saturating_sub(run.cpu_start)));
    shared.die(Stop::Memory, cpu.unwrap_or_default())
}

/// The current run wants more memory than it may have, as V8's allocator sees it.
pub(super) fn stop_for_memory() {
    if let Some(shared) = SHARED.get() {
        shared.stop(Stop::Memory);
    }
}
