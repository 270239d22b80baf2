//! `serve`: the daemon. Takes the root's lock, binds, starts, announces itself, prints one ready line, and goes on until
//! it is told to stop: then it takes no more fires, gives runs ten seconds, and cancels what is left.
//!
//! Order at the start: what can be refused without a trace (the root, the settings, the addresses) comes first; then the
//! lock; then the listeners, so that a port in use stops the daemon before anything is fired. At the end both listeners
//! stay until the runs have had their time: who asks for a fire meanwhile is told to come back.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::oneshot;

use crate::cli::dashboard;
use crate::cli::failure::{Failure, Outcome, bad_config, exit};
use crate::cli::new::write_schema;
use crate::cli::output::{count, json_line, line, shown};
use crate::cli::place::{Place, absolute, check_root};
use crate::cli::signals::Signals;
use crate::cli::times::duration;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::State;
use crate::daemon::home::{self, DaemonInfo, HomeError, Lock};
use crate::daemon::{Daemon, Options, RunEvent, RunHappening, Scope};
use crate::fire::{EpochMs, RunId, RunStatus};
use crate::gateway::{self, hooks};
use crate::isolate;

/// What running runs get when the daemon is asked to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Streams to clients end with the daemon; those that do not are cut off after this.
const FAREWELL: Duration = Duration::from_secs(1);
/// Another command looks at the lock for a moment to see whether a daemon runs; only a lock that stays is held.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(60);

/// Runs the daemon: watches, schedules, runs, serves.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent serve ~/apps
  dirigent serve ~/apps --admin 127.0.0.1:0 --hooks 127.0.0.1:0 --json
  dirigent serve ~/apps --hooks 0.0.0.0:7391
  dirigent serve ~/apps --role desktop
  DIRIGENT_LOG=debug dirigent serve ~/apps --data /var/lib/dirigent

One ready line is printed on stdout; the log goes to stderr (DIRIGENT_LOG or RUST_LOG set its
level). SIGTERM or Ctrl-C stops it: no more fires, ten seconds for what runs, then the rest is
cancelled. A second signal cancels at once. Exit code 75 when another daemon holds the root.")]
pub struct ServeArgs {
    /// The folder that holds the app folders [default: as --root]
    root: Option<PathBuf>,
    /// Where the admin API listens; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7390", value_parser = parse_address)]
    admin: SocketAddr,
    /// Where webhooks are posted to; port 0 picks a free one [default: 127.0.0.1:7391]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address)]
    hooks: Option<SocketAddr>,
    /// What this machine is to the automations
    #[arg(long, value_enum, default_value_t = Role::Gateway)]
    role: Role,
    /// Poll instead of asking the system for changes: for network and container mounts
    #[arg(long)]
    poll: bool,
    /// Allow an --admin address that other machines can reach
    #[arg(long)]
    i_know: bool,
}

/// Who takes posts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// Webhooks are served
    Gateway,
    /// Webhooks are left to another machine: none is served, and their manifests stay as they are
    Desktop,
}

impl ServeArgs {
    /// Where webhooks are served, if they are.
    fn hooks_address(&self) -> Result<Option<SocketAddr>, Failure> {
        match (self.role, self.hooks) {
            (Role::Desktop, Some(_)) => Err(Failure::usage("--role desktop serves no webhooks, so --hooks has no use")
                .hint("leave one of the two out")),
            (Role::Desktop, None) => Ok(None),
            (Role::Gateway, address) => Ok(Some(address.unwrap_or(hooks::DEFAULT_ADDRESS))),
        }
    }

    /// The root that stands on the command line, when it does not contradict `--root`.
    ///
    /// # Errors
    /// Wrong usage: two different roots.
    pub fn root(&self, asked: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
        match (&self.root, asked) {
            (Some(root), Some(asked)) if absolute(root)? != absolute(asked)? => Err(Failure::usage(format!(
                "two roots are given: {} and, by --root or DIRIGENT_ROOT, {}",
                root.display(),
                asked.display()
            ))),
            (Some(root), _) => Ok(Some(root.clone())),
            (None, asked) => Ok(asked.map(Path::to_owned)),
        }
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:") {
        let port = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| "an address is <ip>:<port>, such as 127.0.0.1:7390 or [::1]:0".to_owned())
}

/// `root` is absolute; `data` is where the ledgers are to be, when apart.
pub async fn serve(root: PathBuf, data: Option<PathBuf>, json: bool, args: &ServeArgs) -> Outcome {
    check_root(&root)?;
    if !args.admin.ip().is_loopback() && !args.i_know {
        return Err(Failure::usage(format!("{} can be reached from other machines", args.admin))
            .hint("use a loopback address, or say --i-know: whoever has the admin token can run anything here"));
    }
    let hooks_address = args.hooks_address()?;
    let config = Config::load(&root).map_err(bad_config)?;
    if let Some(data) = &data {
        std::fs::create_dir_all(data).map_err(|error| Failure::io(data.display(), &error))?;
    }
    let lock = take_lock(&root).await?;
    // One that a killed daemon left would name an address that nobody listens on.
    home::retract(&root);
    let (listener, admin) = bind(args.admin, "--admin").await?;
    let hook_listener = match hooks_address {
        Some(address) => Some(bind(address, "--hooks").await?),
        None => None,
    };
    let hook_settings = config.hooks.clone();
    let token = home::token(&root).map_err(|error| home_failure(error, &root))?;
    // For editors alone, so it hinders nothing.
    if let Err(failure) = write_schema(&root) {
        tracing::warn!("{}", failure.message);
    }
    // The signals are listened for before anything runs, so that none kills it half started.
    let mut signals = Signals::listen()?;

    let daemon = Daemon::start(Options {
        root: root.clone(),
        data: data.clone(),
        config,
        clock: Clock::Real,
        program: isolate::own_program(),
        scope: Scope::Root { poll: args.poll },
    })
    .await
    .map_err(|error| Failure::failed("start", error.to_string()))?;
    let log = tokio::spawn(log_runs(daemon.services().bus.runs()));
    let (shut, shut_rx) = oneshot::channel::<()>();
    let hooks_at = hook_listener.as_ref().map(|(_, address)| *address);
    let told = gateway::admin::Options { token, hooks: hooks_at };
    let server = tokio::spawn(gateway::admin::serve(daemon.clone(), listener, told, async {
        // An error says that the daemon is gone: all the same.
        let _ = shut_rx.await;
    }));
    let (shut_hooks, shut_hooks_rx) = oneshot::channel::<()>();
    let hook_server = hook_listener.map(|(listener, _)| {
        tokio::spawn(hooks::serve(daemon.clone(), listener, hook_settings, hooks::Bounds::default(), async {
            let _ = shut_hooks_rx.await;
        }))
    });

    let info = DaemonInfo {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        admin,
        hooks: hooks_at,
        data,
        started_at: Clock::Real.now_ms(),
    };
    let served = match home::announce(&root, &info).map_err(|error| home_failure(error, &root)) {
        Ok(()) => until_told(&daemon, &root, &info, json, &mut signals).await,
        Err(failure) => Err(failure),
    };

    tracing::info!("stopping: no more fires; what runs gets {} s", GRACE.as_secs());
    stop(&daemon, &mut signals).await;
    home::retract(&root);
    drop((shut, shut_hooks));
    let both = async {
        if let Some(server) = hook_server {
            // Its panic is logged where it happens.
            let _ = server.await;
        }
        server.await
    };
    if tokio::time::timeout(FAREWELL, both).await.is_err() {
        tracing::debug!("a client was still listening");
    }
    log.abort();
    drop(lock);
    served.map(|()| exit::FINE)
}

async fn until_told(
    daemon: &Daemon,
    root: &Path,
    info: &DaemonInfo,
    json: bool,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let counts = daemon.look(Counts::of).await.unwrap_or_default();
    tell_ready(root, info, &counts, json)?;
    tracing::info!("ready; {} handles fires", info.admin);
    // Only to a person: whoever reads a log later is not to be let in by it.
    if !json
        && std::io::stdout().is_terminal()
        && let Ok(place) = Place::find(Some(root), info.data.as_deref(), json)
        && let Ok(link) = dashboard::link(&place).await
    {
        line(format_args!(
            "dashboard (works once, within two minutes; `dirigent dashboard` makes another): {}",
            link.url
        ))?;
    }
    signals.next().await;
    Ok(())
}

/// Lets what runs end; a second signal cancels it at once.
async fn stop(daemon: &Daemon, signals: &mut Signals) {
    tokio::select! {
        () = daemon.stop(GRACE) => {}
        () = signals.next() => {
            tracing::info!("told again: cancelling what runs");
            daemon.stop(Duration::ZERO).await;
        }
    }
}

async fn take_lock(root: &Path) -> Result<Lock, Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        match home::lock(root) {
            Err(HomeError::Held { .. }) if tries < LOCK_TRIES => tokio::time::sleep(LOCK_PAUSE).await,
            other => return other.map_err(|error| home_failure(error, root)),
        }
    }
}

fn home_failure(error: HomeError, root: &Path) -> Failure {
    let message = error.to_string();
    match error {
        HomeError::Held { pid, .. } => Failure::failed("root_held", message)
            .exit_with(exit::HELD)
            .with("pid", pid.parse::<u32>().map_or(serde_json::Value::Null, Into::into))
            // A daemon announces itself; a command that runs a handler does not.
            .hint(match home::running(root) {
                Some(_) => "one daemon serves a root; stop that one first, or serve another root",
                None => "it runs an automation, or is just starting or stopping; try again in a moment",
            }),
        HomeError::Io { .. } => Failure::failed("io", message),
    }
}

/// A listener and where it is. `flag` is the one that chooses the address.
async fn bind(address: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind(address).await;
    let bound = listener.and_then(|listener| listener.local_addr().map(|at| (listener, at)));
    bound.map_err(|error| {
        let failure = Failure::failed("bind", format!("cannot listen on {address}: {error}"));
        match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                failure.hint(format!("another program listens there; {flag} 127.0.0.1:0 picks a free port"))
            }
            std::io::ErrorKind::PermissionDenied => {
                failure.hint("ports below 1024 are the system's; choose a higher one")
            }
            _ => failure,
        }
    })
}

/// What the ready line says of the registry.
#[derive(Debug, Default)]
struct Counts {
    automations: usize,
    /// Apps that have automations.
    apps: usize,
    armed: usize,
}

impl Counts {
    fn of(state: &mut State) -> Self {
        Self {
            automations: state.registry.automations().count(),
            apps: state.registry.apps().filter(|(_, app)| !app.automations.is_empty()).count(),
            armed: state.schedule.armed(),
        }
    }
}

fn tell_ready(root: &Path, info: &DaemonInfo, counts: &Counts, json: bool) -> Result<(), Failure> {
    let Counts { automations, apps, armed } = *counts;
    let admin = format!("http://{}", info.admin);
    let hooks = info.hooks.as_ref().map(|hooks| format!("http://{hooks}"));
    if json {
        return json_line(&json!({
            "ready": true,
            "pid": info.pid,
            "version": info.version,
            "admin": admin,
            "hooks": hooks,
            "root": root,
            "automations": automations,
            "apps": apps,
            "armed": armed,
        }));
    }
    let (automations, apps, armed) = (count(automations, "automation"), count(apps, "app"), count(armed, "trigger"));
    Ok(line(format_args!(
        "dirigent {} ready: {automations} in {apps}, {armed} armed · admin {admin} · {} · root {}",
        info.version,
        hooks.map_or_else(|| "no hooks".to_owned(), |hooks| format!("hooks {hooks}")),
        root.display()
    ))?)
}

/// One log line for the end of each run.
async fn log_runs(mut events: broadcast::Receiver<Arc<RunEvent>>) {
    let mut started: HashMap<RunId, EpochMs> = HashMap::new();
    loop {
        match events.recv().await {
            Ok(event) => log_event(&event, &mut started),
            // The log has a gap; the ledger has none.
            Err(RecvError::Lagged(lost)) => tracing::debug!(lost, "the log of runs has a gap"),
            Err(RecvError::Closed) => return,
        }
    }
}

fn log_event(event: &RunEvent, started: &mut HashMap<RunId, EpochMs>) {
    let RunEvent { run_id, handle, what } = event;
    match what {
        RunHappening::Opened { status: RunStatus::Skipped, origin, .. } => {
            tracing::info!(%run_id, "{handle} skipped ({origin})");
        }
        RunHappening::Started { at } => {
            started.insert(run_id.clone(), *at);
        }
        RunHappening::Ended { status, at, summary, error, error_code } => {
            let took = started.remove(run_id).map(|since| format!(" in {}", duration(at - since))).unwrap_or_default();
            let code = error_code.map(|code| format!(" [{code}]")).unwrap_or_default();
            let told = error.as_deref().or(summary.as_deref()).and_then(|text| text.lines().next());
            let told = told.map(|text| format!(" — {}", shown(text))).unwrap_or_default();
            if *status == RunStatus::Error {
                tracing::warn!(%run_id, "{handle} {status}{took}{code}{told}");
            } else {
                tracing::info!(%run_id, "{handle} {status}{took}{told}");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbers_or_localhost() {
        for (text, address) in [
            ("127.0.0.1:7390", Some("127.0.0.1:7390")),
            ("localhost:0", Some("127.0.0.1:0")),
            ("[::1]:80", Some("[::1]:80")),
            ("7390", None),
            ("example.org:80", None),
            ("localhost:99999", None),
        ] {
            assert_eq!(parse_address(text).ok().map(|a| a.to_string()).as_deref(), address, "{text}");
        }
    }

    #[test]
    fn a_desktop_serves_no_webhooks() {
        let address = |text: &str| Some(parse_address(text).unwrap());
        for (role, hooks, expected) in [
            (Role::Gateway, None, Ok(address("127.0.0.1:7391"))),
            (Role::Gateway, address("0.0.0.0:80"), Ok(address("0.0.0.0:80"))),
            (Role::Desktop, None, Ok(None)),
            (Role::Desktop, address("127.0.0.1:0"), Err(exit::USAGE)),
        ] {
            let admin = parse_address("localhost:0").unwrap();
            let args = ServeArgs { root: None, admin, hooks, role, poll: false, i_know: false };
            assert_eq!(args.hooks_address().map_err(|failure| failure.exit), expected, "{role:?} {hooks:?}");
        }
    }

    #[test]
    fn two_roots_that_differ_are_refused() {
        let args = |root: Option<&str>| ServeArgs {
            root: root.map(PathBuf::from),
            admin: parse_address("localhost:0").unwrap(),
            hooks: None,
            role: Role::Gateway,
            poll: false,
            i_know: false,
        };
        assert_eq!(args(Some("/a")).root(None).unwrap(), Some(PathBuf::from("/a")));
        assert_eq!(args(Some("/a")).root(Some(Path::new("/a/"))).unwrap(), Some(PathBuf::from("/a")));
        assert_eq!(args(None).root(Some(Path::new("/b"))).unwrap(), Some(PathBuf::from("/b")));
        assert_eq!(args(Some("/a")).root(Some(Path::new("/b"))).unwrap_err().exit, exit::USAGE);
    }
}
