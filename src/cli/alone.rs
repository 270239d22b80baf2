//! Doing without a daemon what a daemon would do: this process holds the root's lock while a handler runs, and records
//! the same rows. Whatever it has set off goes to its end before the lock is let go.

use std::time::Duration;

use crate::cli::failure::Failure;
use crate::cli::output::note;
use crate::cli::place::Place;
use crate::clock::Clock;
use crate::config::Config;
use crate::daemon::home::{self, HomeError, Lock};
use crate::daemon::{Daemon, Options, Scope};
use crate::isolate;

/// Between two tries of a lock that another process holds, and two looks at what still runs.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// A lock that is held for less than this is a look at the lock, or a short run: nothing to speak of.
const QUIET_WAIT: Duration = Duration::from_millis(500);

/// Who has the root.
pub enum Held {
    Here(Lock),
    /// A daemon that was just starting.
    ByDaemon(Place),
}

/// Takes the root's lock, waiting while another command runs something on it.
pub async fn hold(place: &Place) -> Result<Held, Failure> {
    let since = tokio::time::Instant::now();
    let mut told = false;
    loop {
        let pid = match home::lock(&place.root) {
            Ok(lock) => {
                // One that a killed daemon left would mislead whoever looks while this process holds the lock.
                home::retract(&place.root);
                return Ok(Held::Here(lock));
            }
            Err(HomeError::Held { pid, .. }) => pid,
            Err(error) => return Err(Failure::failed("io", error.to_string())),
        };
        let now = Place::find(Some(&place.root), place.data.as_deref(), place.json)?;
        if now.daemon.as_ref().is_some_and(|daemon| daemon.pid.to_string() == pid) {
            return Ok(Held::ByDaemon(now));
        }
        if !told && since.elapsed() > QUIET_WAIT {
            told = true;
            note(format_args!("waiting: another dirigent (pid {pid}) runs something on {}", place.root.display()));
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted", "nothing was run")),
        }
    }
}

/// A daemon that does what it is asked to, in this process. For runs, the root's lock must be held.
///
/// # Errors
/// `bad_config`, `start`.
pub async fn start_here(place: &Place, config: Config) -> Result<Daemon, Failure> {
    let options = Options {
        root: place.root.clone(),
        data: place.data.clone(),
        config,
        clock: Clock::Real,
        program: isolate::own_program(),
        scope: Scope::Asked,
    };
    Daemon::start(options).await.map_err(|error| Failure::failed("start", error.to_string()))
}

/// Waits for what the run has set off, such as its failure handler. A retry that is due later is left to a daemon.
pub async fn settle(daemon: &Daemon) {
    loop {
        let Some(((in_use, _), (ready, waiting))) = daemon.look(|state| state.load()).await else {
            return;
        };
        if in_use + ready + waiting == 0 {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_EVERY / 5) => {}
            _ = tokio::signal::ctrl_c() => return,
        }
    }
    let left = daemon.look(|state| state.open_runs().count()).await.unwrap_or_default();
    if left > 0 {
        note("a retry is recorded; the next daemon on this root runs it");
    }
}
