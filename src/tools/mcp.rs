//! Tools of MCP servers: the client side of the Model Context Protocol, over a program's standard input and output or
//! over streamable HTTP.
//!
//! Words: a *server* is an entry of `<root>/mcp.json` ([`mod@file`]); a *connection* is one that is up ([`connection`]); a
//! call *leases* its server for as long as it lasts ([`server`]). The protocol is the SDK's (`rmcp`); what stands around
//! it here bounds what a server may do.
//!
//! Invariants:
//! - `mcp.json` is read again before every use, so a change counts at once; servers whose entry did not change are left
//!   alone, and a file that cannot be read changes nothing.
//! - Nothing of a server is trusted: the time of its start and of each call, the size and depth of its messages, the pace
//!   of what it says, and what it asks are bounded. One that misbehaves fails its own calls and nobody else's.
//! - Secrets of `env` and `headers` are taken out of whatever a server says ([`secrets`]).
//! - No process of a server is left behind: it goes when it is idle, when its entry changes, and with the daemon.
//!
//! A mistake here gives a program that somebody else wrote the daemon's secrets, or lets it stop every automation.

mod connection;
mod file;
mod http;
mod lines;
mod offer;
mod pace;
mod post;
mod process;
mod result;
mod secrets;
mod server;
mod strays;
mod watched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::time::timeout;

use self::connection::{Failed, Setup};
pub use self::file::FILE;
use self::file::{Servers, Spec, Unusable};
use self::server::Server;
use self::strays::Owner;
pub use self::watched::RunLog;
use crate::core::near_name::nearest;
use crate::fire::{CallError, Problem};
use crate::tools::no_such_server;

/// The tool's result says that it is an error.
pub const MCP_TOOL_ERROR: &str = "mcp_tool_error";
/// The server does not start, has died, or does not keep to the protocol.
pub const MCP_FAILED: &str = "mcp_failed";
/// The call took longer than it may.
pub const MCP_TIMEOUT: &str = "mcp_timeout";
/// The server's entry in mcp.json is wrong, disabled, or names a variable that is not set.
pub const MCP_NOT_CONFIGURED: &str = "mcp_not_configured";

/// While a server is up, its entry is looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// On top of the time for its start, a server gets this long to tell its tools.
const TELL_TIME: Duration = Duration::from_secs(15);
/// A response carries more than its value: the protocol's own words, and the quotes of a text that is JSON.
const MESSAGE_SPARE: u64 = 64 * 1024;

/// Looks up an environment variable.
pub type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// `[mcp]` of `dirigent.toml`; times in seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct McpConfig {
    /// How long one call may take, its server's start included.
    pub call_timeout_s: f64,
    /// How long a server may take to start and answer; the first start of a launcher such as `npx` downloads it.
    pub start_timeout_s: f64,
    /// A server that nobody has used for this long is stopped.
    pub idle_s: f64,
}

impl Default for McpConfig {
    fn default() -> Self {
        Self { call_timeout_s: 120.0, start_timeout_s: 60.0, idle_s: 300.0 }
    }
}

impl McpConfig {
    /// The rule that a value breaks, with its key; for a start that refuses bad settings.
    ///
    /// # Errors
    /// The first one.
    pub fn check(&self) -> Result<(), String> {
        let values = [
            ("call_timeout_s", self.call_timeout_s),
            ("start_timeout_s", self.start_timeout_s),
            ("idle_s", self.idle_s),
        ];
        for (name, value) in values {
            if !(0.01..=86_400.0).contains(&value) {
                return Err(format!("mcp.{name} is {value}; it must be from 0.01 to 86400"));
            }
        }
        Ok(())
    }
}

/// What one server offers, or why that cannot be said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerTools {
    pub server: String,
    /// `{name, title?, description?, inputSchema, outputSchema?, …}` each, as the server tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<CallError>,
}

/// What is wrong with the file, whatever the environment; for who does not run servers.
pub fn file_problems(root: &Path) -> Vec<Problem> {
    match file::read(&root.join(FILE)).map(|bytes| bytes.map(|bytes| file::parse(&bytes))) {
        Ok(None) => Vec::new(),
        Ok(Some(Ok(servers))) => servers.into_problems(),
        Ok(Some(Err(problem))) | Err(problem) => vec![*problem],
    }
}

/// The names in the file, of servers that cannot be used as well; `None` when the file cannot be read as a whole.
pub fn server_names(root: &Path) -> Option<Vec<String>> {
    match file::read(&root.join(FILE)).ok()? {
        None => Some(Vec::new()),
        Some(bytes) => Some(file::parse(&bytes).ok()?.entries.into_keys().collect()),
    }
}

/// The servers. Cheap to clone; when the last clone is gone, so are they.
#[derive(Clone)]
pub struct Mcp {
    inner: Arc<Inner>,
}

struct Inner {
    root: Arc<Path>,
    path: PathBuf,
    config: McpConfig,
    max_message: usize,
    env: Env,
    owner: Arc<Owner>,
    /// One read at a time, so that none overtakes another.
    reading: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What could be read last; `None` for no file.
    bytes: Option<Vec<u8>>,
    /// Why those bytes do not count; then the servers are those of the file before.
    problem: Option<Problem>,
    /// Why the file as it is now cannot be read.
    unreadable: Option<Problem>,
    servers: BTreeMap<String, Result<Arc<Server>, Unusable>>,
    /// What in the file has no effect.
    warnings: Vec<Problem>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        for server in known.servers.values().flatten() {
            server.retire();
        }
    }
}

impl Mcp {
    /// `value_bytes`: the limit of one result.
    pub fn new(root: &Path, config: McpConfig, value_bytes: u64, env: Env) -> Self {
        let max_message = usize::try_from(value_bytes.saturating_mul(2).saturating_add(MESSAGE_SPARE));
        let inner = Inner {
            root: Arc::from(root),
            path: root.join(FILE),
            config,
            max_message: max_message.unwrap_or(usize::MAX / 16),
            env,
            owner: Arc::new(Owner::new(root)),
            reading: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Calls `<server>.<tool>` and gives its result as JSON text. `log` takes what the server tells meanwhile, and is not
    /// called after the end. Drop the future to cancel the call.
    ///
    /// # Errors
    /// [`super::UNKNOWN_MCP_SERVER`], [`super::UNKNOWN_TOOL`], [`MCP_NOT_CONFIGURED`], [`MCP_TOOL_ERROR`],
    /// [`MCP_TIMEOUT`], [`MCP_FAILED`]; no message holds a secret.
    pub async fn call(
        &self,
        server: &str,
        tool: &str,
        arguments: Map<String, Value>,
        log: RunLog,
    ) -> Result<String, CallError> {
        let limit = Duration::from_secs_f64(self.inner.config.call_timeout_s);
        let call = async {
            let server = self.server(server).await?;
            let lease = self.lease(&server).await?;
            match lease.connection.call(tool, arguments.clone(), Arc::clone(&log)).await {
                Err(Failed::Session(_)) => {}
                answer => return answer.map_err(CallError::from),
            }
            // Once: a server that forgets this one, too, is not asked for ever.
            let lease = self.lease(&server).await?;
            lease.connection.call(tool, arguments, log).await.map_err(CallError::from)
        };
        timeout(limit, call).await.unwrap_or_else(|_| {
            let limit = limit.as_secs_f64();
            let message =
                format!("{server}.{tool}: no answer within {limit} s (`call_timeout_s` of `[mcp]` in dirigent.toml)");
            Err(CallError::new(MCP_TIMEOUT, message))
        })
    }

    /// What a server may take to start and to tell its tools.
    pub fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.inner.config.start_timeout_s) + TELL_TIME
    }

    /// What all servers offer, by name; they are started for it. A server that does not tell within `patience` says so.
    pub async fn catalog(&self, patience: Duration) -> Vec<ServerTools> {
        self.inner.refresh().await;
        join_all(self.names().into_iter().map(|name| self.offer(name, patience))).await
    }

    async fn offer(&self, name: String, patience: Duration) -> ServerTools {
        let asked = async {
            let server = self.server(&name).await?;
            let mut lease = self.lease(&server).await?;
            let mut tools = lease.connection.tools().await;
            if let Err(Failed::Session(_)) = tools {
                lease = self.lease(&server).await?;
                tools = lease.connection.tools().await;
            }
            let tools = tools?;
            let mut values: Vec<Value> = tools.iter().filter_map(|tool| serde_json::to_value(tool).ok()).collect();
            values.iter_mut().for_each(|tool| lease.connection.redactor().value(tool));
            Ok(values)
        };
        let told = timeout(patience, asked).await.unwrap_or_else(|_| {
            let message = format!("MCP server {name:?} did not tell its tools within {} s", patience.as_secs_f64());
            Err(CallError::new(MCP_TIMEOUT, message))
        });
        let (tools, error) = match told {
            Ok(tools) => (Some(tools), None),
            Err(error) => (None, Some(error)),
        };
        ServerTools { server: name, tools, error }
    }

    /// The configured servers, as the file was when it was last looked at.
    pub fn names(&self) -> Vec<String> {
        self.inner.known().servers.keys().cloned().collect()
    }

    /// What is wrong with mcp.json, and which variables it names that are not set here.
    pub async fn problems(&self) -> Vec<Problem> {
        self.inner.refresh().await;
        let known = self.inner.known();
        let unusable = known.servers.iter().filter_map(|(name, server)| match server {
            Err(Unusable::Wrong(problem)) => Some(problem.clone()),
            Err(Unusable::Disabled) => None,
            Ok(server) => server.setup.check().err().map(|error| {
                Problem::warning(MCP_NOT_CONFIGURED, &format!("mcpServers.{name}"), error.message).in_path(FILE)
            }),
        });
        let of_file = known.unreadable.iter().chain(&known.problem).cloned();
        of_file.chain(unusable).chain(known.warnings.iter().cloned()).collect()
    }

    /// Ends the processes of servers that a daemon of this root left when it was killed.
    pub async fn end_abandoned(&self) {
        let owner = Arc::clone(&self.inner.owner);
        // Fails only when the runtime is ending.
        let _ = tokio::task::spawn_blocking(move || owner.end_abandoned()).await;
    }

    /// Stops all servers, for good; comes when their processes are gone.
    pub async fn stop(&self) {
        let servers: Vec<Arc<Server>> = self.inner.known().servers.values().flatten().cloned().collect();
        join_all(servers.iter().map(|server| server.stop())).await;
        let owner = Arc::clone(&self.inner.owner);
        let _ = tokio::task::spawn_blocking(move || owner.end_all()).await;
    }

    async fn server(&self, name: &str) -> Result<Arc<Server>, CallError> {
        self.inner.refresh().await;
        let known = self.inner.known();
        match known.servers.get(name) {
            Some(Ok(server)) => Ok(Arc::clone(server)),
            Some(Err(Unusable::Wrong(problem))) => {
                Err(CallError::new(MCP_NOT_CONFIGURED, format!("MCP server {name:?} cannot be used: {problem}")))
            }
            Some(Err(Unusable::Disabled)) => {
                let message = format!("MCP server {name:?} is disabled; take `disabled` out of its entry in mcp.json");
                Err(CallError::new(MCP_NOT_CONFIGURED, message))
            }
            None => {
                let names: Vec<&str> = known.servers.keys().map(String::as_str).collect();
                let mut error = no_such_server(name, &names);
                if let Some(problem) = known.unreadable.as_ref().or(known.problem.as_ref()) {
                    error.message.push_str(&format!(" ({problem})"));
                }
                Err(error)
            }
        }
    }

    /// The server of mcp.json that is most likely meant by a name that it does not have; `None` for one that it has.
    pub async fn meant(&self, name: &str) -> Option<String> {
        self.inner.refresh().await;
        let known = self.inner.known();
        let names: Vec<&str> = known.servers.keys().map(String::as_str).collect();
        if names.contains(&name) { None } else { nearest(name, &names).map(str::to_owned) }
    }

    async fn lease(&self, server: &Arc<Server>) -> Result<server::Lease, CallError> {
        let idle = Duration::from_secs_f64(self.inner.config.idle_s);
        let look_after = || {
            tokio::spawn(stop_when_idle(Arc::downgrade(server), Arc::downgrade(&self.inner), idle));
        };
        server.lease(look_after).await
    }
}

/// Looks after one server while it is up.
async fn stop_when_idle(server: Weak<Server>, mcp: Weak<Inner>, idle: Duration) {
    let mut wait = idle;
    loop {
        tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
        let Some(inner) = mcp.upgrade() else { return };
        inner.refresh().await;
        let Some(server) = server.upgrade() else { return };
        match server.stop_if_idle(idle) {
            Some(left) => wait = left,
            None => return,
        }
    }
}

impl Inner {
    /// Brings what is known in line with the file.
    async fn refresh(&self) {
        let _one = self.reading.lock().await;
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || file::read(&path)).await;
        let mut known = self.known();
        let bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(problem)) => {
                known.unreadable = Some(*problem);
                return;
            }
            Err(error) => {
                tracing::error!(%error, "mcp.json could not be read");
                return;
            }
        };
        known.unreadable = None;
        if known.bytes == bytes {
            return;
        }
        let Servers { entries, warnings } = match bytes.as_deref().map(file::parse) {
            None => Servers::default(),
            Some(Ok(servers)) => servers,
            Some(Err(problem)) => {
                tracing::warn!("{problem}; the servers stay as they were");
                known.bytes = bytes;
                known.problem = Some(*problem);
                return;
            }
        };
        known.bytes = bytes;
        known.problem = None;
        known.warnings = warnings;
        let mut before = std::mem::take(&mut known.servers);
        for (name, entry) in entries {
            let server = entry.map(|spec| match before.remove(&name) {
                Some(Ok(server)) if server.setup.spec == spec => server,
                gone => {
                    gone.into_iter().flatten().for_each(|server| server.retire());
                    Arc::new(Server::new(self.setup(&name, spec)))
                }
            });
            known.servers.insert(name, server);
        }
        before.into_values().flatten().for_each(|server| server.retire());
    }

    fn setup(&self, name: &str, spec: Spec) -> Setup {
        Setup {
            name: name.to_owned(),
            spec,
            root: Arc::clone(&self.root),
            env: Arc::clone(&self.env),
            owner: Arc::clone(&self.owner),
            start_time: Duration::from_secs_f64(self.config.start_timeout_s),
            max_message: self.max_message,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
