//! `mcp`: the MCP server for builders, on standard input and output. The running daemon does what the tools say; without
//! one, this process does, which then holds the root's lock while a handler runs. Each call looks anew, so that a daemon
//! may come and go in between.
//!
//! What a call without a daemon has set off (a run that outlasts the wait, a failure handler) goes on behind it. When the
//! client goes away, or this process is told to end, it is cancelled and recorded as such, as are calls under way. As
//! handlers run one call at a time then, a further run waits for a while, and is refused with a word on who is in its way.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rmcp::model::{CallToolRequestParams, CallToolResult};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cli::alone::{Held, hold, settle, start_here};
use crate::cli::client::{Client, told};
use crate::cli::failure::{Failure, Outcome, bad_config, exit};
use crate::cli::output::note;
use crate::cli::place::Place;
use crate::cli::signals::Signals;
use crate::config::Config;
use crate::gateway::api::Api;
use crate::gateway::mcp::{Builder, BuilderTool, CallTools, Server};

/// Seconds that a run waits for those before it: as long as it would for its own end, within these. A command that looks
/// at the lock takes less; with the usual wait for its end a call stays below the minute that clients give it.
const LEAST_TURN_S: f64 = 1.0;
const MOST_TURN_S: f64 = 20.0;

/// Serves the MCP tools for builders on stdin and stdout.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
For an MCP client, which starts it by itself. Its settings, in the usual form:
  {\"mcpServers\": {\"dirigent\": {\"command\": \"dirigent\", \"args\": [\"mcp\", \"--root\", \"/path/to/apps\"]}}}

The tools list, read, check and write automations, run them by hand and read their runs. They enable
none, and mint no webhook: a person does that. The daemon serves the same tools over HTTP at /mcp of
its admin address, to whoever has the admin token.")]
pub struct McpArgs {}

pub async fn mcp(place: &Place, _: &McpArgs) -> Outcome {
    if std::io::stdin().is_terminal() {
        note("this speaks MCP on standard input and output, and is meant to be started by an MCP client; see --help");
    }
    let mut signals = Signals::listen()?;
    let (ended, is_ended) = watch::channel(false);
    let here = Here {
        root: place.root.clone(),
        data: place.data.clone(),
        ended: is_ended,
        running: Arc::default(),
        under_way: Arc::default(),
        behind: Arc::default(),
    };
    let (under_way, behind) = (Arc::clone(&here.under_way), Arc::clone(&here.behind));
    let served = async {
        let server = match rmcp::serve_server(Server(here), rmcp::transport::stdio()).await {
            Ok(server) => server,
            // A client that goes before it has said a word.
            Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => return Ok(exit::FINE),
            Err(error) => return Err(Failure::failed("mcp", told(&error))),
        };
        let quit = server.waiting().await;
        quit.map(|_| exit::FINE).map_err(|error| Failure::failed("mcp", error.to_string()))
    };
    let outcome = tokio::select! {
        outcome = served => outcome,
        () = signals.next() => Ok(exit::FINE),
    };
    ended.send_replace(true);
    // Calls end at once now, and leave what they have set off behind.
    let _none = under_way.write().await;
    let left = std::mem::take(&mut *behind.lock().unwrap_or_else(PoisonError::into_inner));
    left.join_all().await;
    outcome
}

struct Here {
    root: PathBuf,
    data: Option<PathBuf>,
    /// True when the client has gone.
    ended: watch::Receiver<bool>,
    /// Held while a handler runs here: one at a time, as the root's lock would have it, and without waiting for oneself
    /// there.
    running: Arc<tokio::sync::Mutex<()>>,
    /// Each call reads, and who writes waits for all of them.
    under_way: Arc<tokio::sync::RwLock<()>>,
    /// What goes on behind calls that were answered.
    behind: Arc<Mutex<JoinSet<()>>>,
}

impl CallTools for Here {
    async fn call(
        &self,
        tool: BuilderTool,
        given: Map<String, Value>,
        cancelled: impl Future<Output = ()> + Send,
    ) -> CallToolResult {
        let _under_way = self.under_way.read().await;
        let mut ended = self.ended.clone();
        let cancelled = async {
            tokio::select! {
                () = cancelled => {}
                // An error says that this process is at its end.
                _ = ended.wait_for(|ended| *ended) => {}
            }
        };
        let called = self.called(tool, given, cancelled).await;
        called.unwrap_or_else(|failure| CallToolResult::structured_error(failure.to_json()["error"].take()))
    }
}

impl Here {
    async fn called(
        &self,
        tool: BuilderTool,
        given: Map<String, Value>,
        cancelled: impl Future<Output = ()> + Send,
    ) -> Result<CallToolResult, Failure> {
        let place = Place::find(Some(&self.root), self.data.as_deref(), true)?;
        if let Some(daemon) = Client::of(&place)? {
            return by_daemon(&daemon, tool, given, cancelled).await;
        }
        let mut config = Config::load(&place.root).map_err(bad_config)?;
        let mut cancelled = pin!(cancelled);
        let mut lock = None;
        match tool {
            BuilderTool::RunAutomation => {
                let wait = given.get("waitSeconds").and_then(Value::as_f64).unwrap_or(MOST_TURN_S);
                let within = Duration::from_secs_f64(wait.clamp(LEAST_TURN_S, MOST_TURN_S));
                let turn = async {
                    let turn = Arc::clone(&self.running).lock_owned().await;
                    Ok::<_, Failure>((turn, hold(&place).await?))
                };
                let (turn, held) = tokio::select! {
                    held = tokio::time::timeout(within, turn) => held.map_err(|_| occupied())??,
                    () = &mut cancelled => return Err(was_cancelled()),
                };
                match held {
                    Held::Here(held) => lock = Some((turn, held)),
                    Held::ByDaemon(place) => {
                        return by_daemon(&Client::needed(&place, tool.name())?, tool, given, cancelled).await;
                    }
                }
            }
            BuilderTool::ValidateManifest | BuilderTool::WriteAutomation => {}
            // No handler is looked at.
            _ => config.runs.warm_hosts = 0,
        }
        let daemon = start_here(&place, config).await?;
        let (closing, is_closing) = watch::channel(false);
        let builder = Builder::new(Api::new(daemon.clone(), None, is_closing));
        let result = builder.call(tool, given, cancelled).await;
        let mut ended = self.ended.clone();
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        while behind.try_join_next().is_some() {}
        behind.spawn(async move {
            tokio::select! {
                () = settle(&daemon) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
            daemon.stop(Duration::ZERO).await;
            drop((closing, lock));
        });
        Ok(result)
    }
}

async fn by_daemon(
    daemon: &Client,
    tool: BuilderTool,
    given: Map<String, Value>,
    cancelled: impl Future<Output = ()> + Send,
) -> Result<CallToolResult, Failure> {
    let request = CallToolRequestParams::new(tool.name()).with_arguments(given);
    tokio::select! {
        result = daemon.call_tool(request) => result,
        () = cancelled => Err(was_cancelled()),
    }
}

/// Somebody else runs something on the root, or an earlier call of this client does.
fn occupied() -> Failure {
    let message = "an earlier run on this root has not ended, and without a daemon there is one at a time";
    Failure::failed("busy", message).hint(
        "list_runs with status \"running\" shows it; a person can start `dirigent serve`, which runs many at once",
    )
}

/// Nobody waits for it any more.
fn was_cancelled() -> Failure {
    Failure::failed("cancelled", "the call was cancelled")
}
