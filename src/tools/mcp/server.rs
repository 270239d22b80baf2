//! A configured server: started on first use, shared by all who use it, stopped when nobody does.
//!
//! Words: a *lease* is one use; while there is one, the server is not stopped for being idle. Its phases are down,
//! starting (one start at a time; all who come meanwhile wait for it) and up.
//!
//! A server that does not start, or ends soon after, is tried again only after a pause that doubles each time. Who comes
//! near the end of the pause waits for it; who comes earlier is told why, and when the next try is. One that cannot even
//! be tried, for its entry or the environment, has no pause.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::{self, Connection, Setup};
use super::{MCP_FAILED, MCP_NOT_CONFIGURED};
use crate::fire::CallError;

/// A server that was up for this long is taken to be well.
const STEADY: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A pause of which no more is left is waited for.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

/// Nobody looks more often whether a server is idle.
const MIN_WAIT: Duration = Duration::from_millis(10);

type Start = Shared<BoxFuture<'static, Result<(), CallError>>>;

pub struct Server {
    pub setup: Setup,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    leases: usize,
    /// When the last lease ended.
    used: Instant,
    /// In a row.
    failures: u32,
    pause: Option<(Instant, CallError)>,
    /// mcp.json does not have it any more, or has another one of this name.
    retired: bool,
    /// It is not started any more.
    closed: bool,
    /// Somebody looks after its idleness.
    watched: bool,
}

enum Phase {
    Down,
    Starting(Start, AbortHandle),
    Up(Arc<Connection>),
}

/// One use of a server that is up.
pub struct Lease {
    server: Arc<Server>,
    pub connection: Arc<Connection>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.server.state();
        state.leases -= 1;
        state.used = Instant::now();
        if state.retired && state.leases == 0 {
            state.go_down();
        }
    }
}

impl State {
    fn go_down(&mut self) {
        if let Phase::Up(connection) = std::mem::replace(&mut self.phase, Phase::Down) {
            if connection.is_up() && connection.age() >= STEADY {
                self.failures = 0;
            }
            connection.stop();
        }
    }

    fn failed(&mut self, error: CallError) {
        self.failures += 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(16)).min(LONGEST_PAUSE);
        self.pause = Some((Instant::now() + pause, error));
        self.phase = Phase::Down;
    }
}

enum Step {
    Wait(Instant),
    Start(Start),
}

impl Server {
    pub fn new(setup: Setup) -> Self {
        let state = State {
            phase: Phase::Down,
            leases: 0,
            used: Instant::now(),
            failures: 0,
            pause: None,
            retired: false,
            closed: false,
            watched: false,
        };
        Self { setup, state: Mutex::new(state) }
    }

    /// Starts the server if need be, and then calls `look_after`, unless somebody does: whoever is called asks
    /// [`Self::stop_if_idle`] until it is down.
    ///
    /// # Errors
    /// As [`connection::start`], also while it is too early for another try.
    pub async fn lease(self: &Arc<Self>, look_after: impl Fn()) -> Result<Lease, CallError> {
        loop {
            let step = {
                let mut state = self.state();
                if state.closed {
                    let message = format!("MCP server {:?}: the daemon is stopping", self.setup.name);
                    return Err(CallError::new(MCP_FAILED, message));
                }
                match &state.phase {
                    Phase::Up(connection) if connection.is_up() => {
                        let connection = Arc::clone(connection);
                        state.leases += 1;
                        return Ok(Lease { server: Arc::clone(self), connection });
                    }
                    Phase::Up(connection) if connection.has_given_way() => {
                        state.phase = Phase::Down;
                        continue;
                    }
                    Phase::Up(connection) => {
                        if connection.age() >= STEADY {
                            state.failures = 0;
                            state.phase = Phase::Down;
                        } else {
                            let why = connection.why_ended().map(|why| format!(": {why}")).unwrap_or_default();
                            let message = format!("MCP server {:?} ends soon after its start{why}", self.setup.name);
                            state.failed(CallError::new(MCP_FAILED, message));
                        }
                        continue;
                    }
                    Phase::Starting(start, _) => Step::Start(start.clone()),
                    Phase::Down => match state.pause.take() {
                        Some((until, error)) if until > Instant::now() => {
                            let left = until - Instant::now();
                            state.pause = Some((until, error.clone()));
                            if left > SHORT_PAUSE {
                                let left = left.as_secs_f64().ceil();
                                let message = format!("{}; the next try is in {left} s at the earliest", error.message);
                                return Err(CallError { message, ..error });
                            }
                            Step::Wait(until)
                        }
                        _ => {
                            let (start, abort) = self.begin();
                            state.phase = Phase::Starting(start.clone(), abort);
                            if !std::mem::replace(&mut state.watched, true) {
                                look_after();
                            }
                            Step::Start(start)
                        }
                    },
                }
            };
            match step {
                Step::Wait(until) => tokio::time::sleep_until(until).await,
                Step::Start(start) => start.await?,
            }
        }
    }

    /// The start goes on when whoever asked for it has gone: others may wait for it.
    fn begin(self: &Arc<Self>) -> (Start, AbortHandle) {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let started = connection::start(&this.setup).await;
            let mut state = this.state();
            match started {
                Ok(connection) => {
                    state.phase = Phase::Up(Arc::new(connection));
                    state.used = Instant::now();
                    if state.retired {
                        state.go_down();
                    }
                    Ok(())
                }
                // Nothing was started, and that is told as often as it is asked.
                Err(error) if error.code == MCP_NOT_CONFIGURED => {
                    state.phase = Phase::Down;
                    Err(error)
                }
                Err(error) => {
                    state.failed(error.clone());
                    Err(error)
                }
            }
        });
        let abort = task.abort_handle();
        let start = task.map(|done| {
            done.unwrap_or_else(|error| Err(CallError::new(MCP_FAILED, format!("the start was given up: {error}"))))
        });
        (start.boxed().shared(), abort)
    }

    /// Stops it when it has not been used for `idle`. Says for how long it need not be asked again; `None` when it is
    /// down.
    pub fn stop_if_idle(&self, idle: Duration) -> Option<Duration> {
        let mut state = self.state();
        match &state.phase {
            Phase::Starting(..) => return Some(idle),
            Phase::Up(connection) if connection.is_up() => {
                let left = idle.saturating_sub(state.used.elapsed());
                if state.leases > 0 || !left.is_zero() {
                    return Some(left.max(MIN_WAIT));
                }
                state.go_down();
            }
            // Whoever still uses it holds it.
            Phase::Up(connection) if connection.has_given_way() => state.phase = Phase::Down,
            Phase::Up(_) | Phase::Down => {}
        }
        state.watched = false;
        None
    }

    /// Stops it as soon as nobody uses it.
    pub fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        if state.leases == 0 {
            state.go_down();
        }
    }

    /// Stops it now and for good, whoever uses it; comes when nothing of it is left.
    pub async fn stop(&self) {
        let phase = {
            let mut state = self.state();
            (state.retired, state.closed) = (true, true);
            std::mem::replace(&mut state.phase, Phase::Down)
        };
        match phase {
            Phase::Up(connection) => {
                connection.stop();
                connection.ended().await;
            }
            Phase::Starting(start, abort) => {
                abort.abort();
                // It may have come up meanwhile: then it was stopped, as it is retired.
                let _ = start.await;
            }
            Phase::Down => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
