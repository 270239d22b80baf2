//! One host as the daemon sees it: its pipes, the run it is in, its death, and what that death means for the run.
//!
//! Each host has one task, [`drive`], which alone reads from it and alone says that a run has ended. A host that
//! breaks the protocol is killed: it runs code that nobody trusts, so nothing it says after that counts.

use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::accept::{self, Accepted};
use super::death::{Over, death, read_stderr};
use super::limits::EXIT_RETIRED;
use super::pipe::HostPipe;
use super::pool::Inner;
use super::wire::{self, FrameBuffer, FromHost, ToHost};
use super::{HOST_ARG, Job, JobEnd, JobEvent, Limits, Outcome, PoolConfig};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::{CallError, CtxReply};

/// Batches that wait for the daemon; then the host waits.
const EVENT_QUEUE: usize = 64;
/// From an abort to the kill: the handler's grace, V8's time to stop, and some for the way.
const KILL_AFTER: Duration = Duration::from_millis(750);
/// A new process has this long to say that it is ready; a loaded machine included.
const START_TIME: Duration = Duration::from_secs(30);
/// The same after a run, for the next isolate.
const RENEW_TIME: Duration = Duration::from_secs(10);
/// Hosts beyond the warm ones stay this long for the next burst.
const SPARE_TIME: Duration = Duration::from_secs(30);
/// What a dead host's pipes and status may take to be read.
const LAST_TIME: Duration = Duration::from_secs(1);
/// A job that has been handed to a host. Dropping `events` before [`JobEvent::Ended`] kills the host.
#[derive(Debug)]
pub struct RunningJob {
    pub events: mpsc::Receiver<JobEvent>,
    pub control: JobControl,
}

/// How the daemon talks to a running job. After the job's end everything here does nothing.
#[derive(Clone)]
pub struct JobControl {
    host: Arc<Host>,
    run: u32,
}

impl std::fmt::Debug for JobControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobControl").field("host", &self.host.id).field("run", &self.run).finish()
    }
}

impl JobControl {
    /// Answers calls; all answers of one `reply` reach the handler in one tick. A result over the limit of one value,
    /// or that nests too deep, becomes an error; an id that no call waits under is a bug of the caller, and is dropped.
    pub fn reply(&self, replies: Vec<(u32, CtxReply)>) {
        // Every byte of the results is looked at: before the lock is taken.
        let replies: Vec<_> = replies.into_iter().map(|(id, reply)| (id, self.host.fitting(reply))).collect();
        let mut state = self.host.state();
        let Some(current) = state.current.as_mut().filter(|current| current.run == self.run) else {
            return;
        };
        let mut bytes = Vec::new();
        let mut group = Vec::new();
        let mut size = 0;
        for (id, reply) in replies {
            if !current.accepted.answer(id) {
                tracing::warn!(id, "a reply to a call that is not open");
                continue;
            }
            size += reply.as_ref().map_or(0, |json| json.as_ref().map_or(0, String::len));
            group.push((id, reply));
            if size >= wire::FULL_FRAME {
                size = 0;
                self.encode_replies(std::mem::take(&mut group), &mut bytes);
            }
        }
        if !group.is_empty() {
            self.encode_replies(group, &mut bytes);
        }
        drop(state);
        // A host that does not read any more is dead or dying; its task says so.
        let _ = self.host.pipe.send(&bytes);
    }

    fn encode_replies(&self, replies: Vec<(u32, CtxReply)>, bytes: &mut Vec<u8>) {
        if let Err(error) = wire::encode(&ToHost::Replies { run: self.run, replies }, bytes) {
            tracing::error!(%error, "replies cannot be sent");
            self.kill();
        }
    }

    /// `ctx.abortSignal` is aborted with `reason`. The handler may clean up for 250 ms, then it is stopped, and after
    /// 750 ms its process is killed; the job ends in [`Outcome::Aborted`] whatever it did meanwhile.
    pub fn abort(&self, reason: &str) {
        {
            let mut state = self.host.state();
            let Some(current) = state.current.as_mut().filter(|current| current.run == self.run) else {
                return;
            };
            if std::mem::replace(&mut current.aborted, true) {
                return;
            }
        }
        let mut bytes = Vec::new();
        let reason = reason.chars().take(4096).collect();
        if wire::encode(&ToHost::Abort { run: self.run, reason }, &mut bytes).is_ok() {
            let _ = self.host.pipe.send(&bytes);
        }
        let control = self.clone();
        self.host.runtime.spawn(async move {
            tokio::time::sleep(KILL_AFTER).await;
            control.kill();
        });
    }

    /// The process that the job runs in, while it runs.
    pub fn host_pid(&self) -> Option<u32> {
        let state = self.host.state();
        state.current.as_ref().filter(|current| current.run == self.run).and(self.host.pid)
    }

    /// Ends the job's process now.
    pub fn kill(&self) {
        let mut state = self.host.state();
        if let Some(current) = state.current.as_mut().filter(|current| current.run == self.run) {
            current.aborted = true;
            state.kill = true;
            self.host.bell.notify_one();
        }
    }
}

/// The daemon's side of one process.
pub(super) struct Host {
    pub(super) id: u64,
    pid: Option<u32>,
    pipe: Arc<HostPipe>,
    limits: Limits,
    runtime: tokio::runtime::Handle,
    state: Mutex<HostState>,
    /// Wakes the host's task: to kill, or to watch over a new run.
    bell: Notify,
}

#[derive(Default)]
struct HostState {
    last_run: u32,
    current: Option<Current>,
    kill: bool,
    dead: bool,
}

struct Current {
    run: u32,
    events: mpsc::Sender<JobEvent>,
    accepted: Accepted,
    aborted: bool,
}

impl Host {
    fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fitting(&self, reply: CtxReply) -> CtxReply {
        let most = self.limits.max_value_bytes;
        match reply {
            Ok(Some(json)) if json.len() as u64 > most => {
                let size = json.len();
                Err(CallError::new("too_large", format!("the result is {size} bytes of JSON; the limit is {most}")))
            }
            Ok(Some(json)) if is_too_deep(&json) => Err(CallError::new("too_deep", too_deep("the result"))),
            Err(mut error) if error.message.len() > wire::FULL_FRAME => {
                error.message.truncate(error.message.floor_char_boundary(wire::FULL_FRAME));
                Err(error)
            }
            other => other,
        }
    }

    /// Judges calls of the current run; gives who is to hear of it.
    fn accept(
        &self,
        judge: impl FnOnce(&mut Accepted) -> Result<(), &'static str>,
    ) -> Result<mpsc::Sender<JobEvent>, Over> {
        let mut state = self.state();
        let Some(current) = state.current.as_mut() else {
            return Err(Over::Protocol("calls or log lines outside a run".into()));
        };
        judge(&mut current.accepted).map_err(|rule| Over::Protocol(rule.into()))?;
        // Always the sender of the run that is current now: one that was looked up before the frame came may be that
        // of no run, and the frame would be lost.
        Ok(current.events.clone())
    }

    /// Hands over a job. None when the host has died meanwhile.
    ///
    /// # Errors
    /// When the job does not fit a frame.
    pub(super) fn start(self: &Arc<Self>, job: &Job) -> Result<Option<RunningJob>, wire::WireError> {
        let mut state = self.state();
        if state.dead || state.kill {
            return Ok(None);
        }
        let run = state.last_run.wrapping_add(1);
        let mut bytes = Vec::new();
        wire::encode(&ToHost::Run { run, job: job.clone() }, &mut bytes)?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        state.last_run = run;
        state.current = Some(Current { run, events, accepted: Accepted::default(), aborted: false });
        if self.pipe.send(&bytes).is_err() {
            state.current = None;
            return Ok(None);
        }
        drop(state);
        self.bell.notify_one();
        Ok(Some(RunningJob { events: receiver, control: JobControl { host: self.clone(), run } }))
    }

    pub(super) fn kill(&self) {
        let mut state = self.state();
        state.kill = true;
        if let Some(current) = state.current.as_mut() {
            current.aborted = true;
        }
        self.bell.notify_one();
    }
}

/// What the pool is told of a host.
pub(super) enum Died {
    /// Before it was ever ready, for this reason.
    AtStart(String),
    Later,
    /// Because it was asked to, or because it chose to after a run.
    InOrder,
}

/// A process that has been started, with its pipes.
pub(super) struct Spawned {
    child: Child,
    pub(super) host: Arc<Host>,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

/// Starts a host. To be called in a thread that lives as long as the daemon: on Linux the host dies with the thread
/// that started it. A tokio runtime must be entered.
///
/// # Errors
/// When the program does not start.
pub(super) fn spawn(config: &PoolConfig, id: u64, snapshot: &[u8]) -> std::io::Result<Spawned> {
    let mut command = Command::new(&config.program);
    command
        .arg(HOST_ARG)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    #[cfg(unix)]
    {
        // In a group of its own, so that Ctrl-C in a terminal reaches the daemon alone.
        command.process_group(0);
        command.current_dir("/");
    }
    let mut child = command.spawn()?;
    let missing = || std::io::Error::other("a pipe is missing");
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    let pipe = HostPipe::open(child.stdin.take().ok_or_else(missing)?)?;
    let mut first = u32::try_from(snapshot.len()).map_err(std::io::Error::other)?.to_le_bytes().to_vec();
    first.extend_from_slice(snapshot);
    wire::encode(&ToHost::Init { limits: config.limits.clone() }, &mut first).map_err(std::io::Error::other)?;
    pipe.send(&first)?;
    let host = Arc::new(Host {
        id,
        pid: child.id(),
        pipe,
        limits: config.limits.clone(),
        runtime: tokio::runtime::Handle::current(),
        state: Mutex::default(),
        bell: Notify::new(),
    });
    Ok(Spawned { child, host, stdout, stderr })
}

/// The life of one host.
pub(super) async fn drive(spawned: Spawned, pool: Weak<Inner>) {
    let Spawned { mut child, host, stdout, stderr } = spawned;
    let pump = {
        let pipe = host.pipe.clone();
        tokio::spawn(async move { pipe.pump().await })
    };
    let tail = tokio::spawn(read_stderr(stderr, host.id));
    let mut frames = Frames { stdout, buffer: FrameBuffer::default() };
    let mut was_ready = false;
    let over = listen(&host, &mut frames, &pool, &mut was_ready).await;

    let current = {
        let mut state = host.state();
        state.dead = true;
        state.current.take()
    };
    if !matches!(over, Over::Closed) {
        let _ = child.start_kill();
    }
    // A host that closed its output is ending by itself; how it ends is what its run's end is made of.
    let status = match tokio::time::timeout(LAST_TIME, child.wait()).await {
        Ok(status) => status.ok(),
        Err(_) => {
            let _ = child.start_kill();
            child.wait().await.ok()
        }
    };
    pump.abort();
    let tail = tokio::time::timeout(LAST_TIME, tail).await.ok().and_then(Result::ok).unwrap_or_default();
    let reason = death(&over, status, &tail);
    let in_order = matches!(over, Over::Killed | Over::Surplus | Over::Unheard)
        || status.and_then(|status| status.code()).is_some_and(|code| code == EXIT_RETIRED);
    if !in_order {
        tracing::debug!(host = host.id, ?reason, "a host died");
    }
    let ended = current.map(|current| {
        let outcome = if current.aborted { Outcome::Aborted } else { reason.clone() };
        (current.events, JobEvent::Ended(JobEnd { outcome, cpu_ms: 0, peak_bytes: None }))
    });
    if let Some(pool) = pool.upgrade() {
        let died = match (in_order, was_ready, reason) {
            (true, ..) => Died::InOrder,
            (false, false, Outcome::Failed { message, .. }) => Died::AtStart(message),
            _ => Died::Later,
        };
        pool.host_died(host.id, died);
    }
    // Last, since the daemon may be slow to take it.
    if let Some((events, end)) = ended {
        let _ = events.send(end).await;
    }
}

async fn listen(host: &Arc<Host>, frames: &mut Frames, pool: &Weak<Inner>, was_ready: &mut bool) -> Over {
    let mut until = Some((Instant::now() + START_TIME, false));
    loop {
        // A wake-up for it may have been used up while an event was delivered.
        if host.state().kill {
            return Over::Killed;
        }
        let events = host.state().current.as_ref().map(|current| current.events.clone());
        let unheard = async {
            match &events {
                Some(events) => events.closed().await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match until {
                Some((at, _)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            biased;
            frame = frames.next() => frame,
            () = host.bell.notified() => {
                // A run was handed over: it has its own limits, and no time here.
                if host.state().current.is_some() {
                    until = None;
                }
                continue;
            }
            () = unheard => return Over::Unheard,
            () = late => match until {
                Some((_, true)) => match pool.upgrade() {
                    Some(pool) if !pool.give_up(host.id) => {
                        until = Some((Instant::now() + SPARE_TIME, true));
                        continue;
                    }
                    _ => return Over::Surplus,
                },
                _ => return Over::Silent,
            },
        };
        let frame = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Over::Closed,
            Err(error) => return Over::Protocol(error.to_string()),
        };
        if let Err(rule) = accept::values(&frame) {
            return Over::Protocol(rule.into());
        }
        match frame {
            FromHost::Ready => {
                if host.state().current.is_some() {
                    return Over::Protocol("ready within a run".into());
                }
                *was_ready = true;
                until = Some((Instant::now() + SPARE_TIME, true));
                match pool.upgrade() {
                    Some(pool) => pool.host_ready(host),
                    None => return Over::Killed,
                }
            }
            FromHost::Batch { logs, calls, tick } => {
                let events = match host.accept(|run| run.batch(&calls, &host.limits)) {
                    Ok(events) => events,
                    Err(over) => return over,
                };
                if let Some(over) = deliver(host, events, JobEvent::Batch { logs, calls, tick }).await {
                    return over;
                }
            }
            FromHost::Abandoned { calls, tick } => {
                let events = match host.accept(|run| run.abandoned(&calls)) {
                    Ok(events) => events,
                    Err(over) => return over,
                };
                if let Some(over) = deliver(host, events, JobEvent::Abandoned { calls, tick }).await {
                    return over;
                }
            }
            FromHost::Ended(mut end) => {
                let Some(current) = host.state().current.take() else {
                    return Over::Protocol("the end of no run".into());
                };
                if current.aborted {
                    end.outcome = Outcome::Aborted;
                }
                drop(events);
                if let Some(pool) = pool.upgrade() {
                    pool.host_ended(host.id);
                }
                until = Some((Instant::now() + RENEW_TIME, false));
                // Nobody may be listening to the end any more, and that is no fault of the host.
                let _ = deliver(host, current.events, JobEvent::Ended(end)).await;
            }
        }
    }
}

/// Gives an event to the daemon; a kill does not wait behind a daemon that is slow to take it.
async fn deliver(host: &Host, events: mpsc::Sender<JobEvent>, event: JobEvent) -> Option<Over> {
    let event = match events.try_send(event) {
        Ok(()) => return None,
        Err(mpsc::error::TrySendError::Closed(_)) => return Some(Over::Unheard),
        Err(mpsc::error::TrySendError::Full(event)) => event,
    };
    let sent = events.send(event);
    tokio::pin!(sent);
    loop {
        tokio::select! {
            result = &mut sent => return result.is_err().then_some(Over::Unheard),
            () = host.bell.notified() => if host.state().kill { return Some(Over::Killed) },
        }
    }
}

struct Frames {
    stdout: ChildStdout,
    buffer: FrameBuffer,
}

impl Frames {
    /// The next frame, or None at the end. Can be dropped and called again.
    async fn next(&mut self) -> Result<Option<FromHost>, wire::WireError> {
        loop {
            if let Some(body) = self.buffer.next_frame()? {
                return wire::decode(body).map(Some);
            }
            match self.stdout.read_buf(self.buffer.tail()).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(_) => {}
            }
        }
    }
}
