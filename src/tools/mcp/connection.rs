//! One connection to one server, from its start to its end: the SDK's client over one of the two transports, and, for a
//! server that is a program, its process.
//!
//! A connection has one task, [`keep`], which alone waits for its end and makes the process go; [`Connection::ended`]
//! comes when nothing of it is left. A call whose future is dropped tells the server that it is cancelled.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotification, CancelledNotificationParam, ClientCapabilities,
    ClientConfig, ClientNotification, ClientRequest, Implementation, JsonObject, ProtocolVersion, RequestId,
    ServerResult, Tool,
};
use rmcp::service::{ClientInitializeError, PeerRequestOptions, RunningService};
use rmcp::transport::Transport;
use rmcp::{ClientHandler, ClientLifecycleMode, Peer, RoleClient, ServiceError};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::file::Spec;
use super::http::{self, HttpError, Means, NoTransport};
use super::lines::Lines;
use super::offer::Offer;
use super::process::{self, INHERITED, LastWords, Process, Program};
use super::result::value_of;
use super::secrets::{self, Expanded, Redactor};
use super::strays::Owner;
use super::watched::{RunLog, Watch, Watched, on_one_line};
use super::{Env, MCP_FAILED, MCP_NOT_CONFIGURED};
use crate::core::shortened::shortened;
use crate::fire::CallError;
use crate::tools::UNKNOWN_TOOL;

/// The SDK's own end takes up to 5 s when the server has asked something.
const GOODBYE: Duration = Duration::from_secs(6);
/// What a foreign message may add to one of ours.
const MAX_REASON_CHARS: usize = 1000;

/// What a connection is made of.
pub struct Setup {
    pub name: String,
    pub spec: Spec,
    /// The folder in which a program runs.
    pub root: Arc<Path>,
    pub env: Env,
    pub owner: Arc<Owner>,
    pub start_time: Duration,
    /// Bytes of the longest message that is taken.
    pub max_message: usize,
}

impl Setup {
    fn expanded(&self) -> Result<Expanded, CallError> {
        let (values, key) = match &self.spec {
            Spec::Process { env, .. } => (env, "env"),
            Spec::Http { headers, .. } => (headers, "headers"),
        };
        secrets::expand(values, &*self.env, INHERITED).map_err(|missing| {
            let message = format!(
                "MCP server {:?} cannot be used: `{key}` in mcp.json names ${{{missing}}}, and the environment variable \
                 {missing} is not set; set it for the daemon and restart it",
                self.name
            );
            CallError::new(MCP_NOT_CONFIGURED, message)
        })
    }

    /// # Errors
    /// Why the server cannot be used in this environment, without starting it.
    pub fn check(&self) -> Result<(), CallError> {
        self.expanded().map(|_| ())
    }

    fn failed(&self, why: &str) -> CallError {
        CallError::new(MCP_FAILED, format!("MCP server {:?} could not be started: {why}", self.name))
    }
}

/// What dirigent is to a server.
struct Client;

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let this = Implementation::new("dirigent", env!("CARGO_PKG_VERSION"));
        let mut info = ClientConfig::new(ClientCapabilities::default(), this);
        info.protocol_version = ProtocolVersion::LATEST_WITH_INITIALIZE;
        info
    }
}

/// See the module text. Dropping it ends it.
pub struct Connection {
    name: String,
    is_http: bool,
    peer: Peer<RoleClient>,
    watch: Arc<Watch>,
    offer: Offer,
    started: Instant,
    /// See [`Self::give_way`].
    gives_way: AtomicBool,
    stop: watch::Sender<Stop>,
    /// How it ended, once it has.
    end: watch::Receiver<Option<String>>,
}

/// Whether it is to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// The server has gone, as a call has found.
    Lost,
    Asked,
}

/// Why there is no connection.
enum NotUp {
    /// It answered, and does not know the usual greeting: newer servers need not.
    Refused(CallError),
    Failed(CallError),
}

impl From<CallError> for NotUp {
    fn from(error: CallError) -> Self {
        Self::Failed(error)
    }
}

/// Why what was asked has no answer.
pub enum Failed {
    /// The session is gone, and the server has done nothing: a new connection may be asked the same.
    Session(CallError),
    Other(CallError),
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        Self::Other(error)
    }
}

impl From<Failed> for CallError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Session(error) | Failed::Other(error) => error,
        }
    }
}

/// Starts a server and greets it: as all servers know it, or else as the protocol wants it since 2026-07-28. In this
/// order, because older servers take the newer greeting for an error, and some of them end.
///
/// # Errors
/// [`MCP_NOT_CONFIGURED`] for a variable that is not set, [`MCP_FAILED`] for what does not start or does not answer.
pub async fn start(setup: &Setup) -> Result<Connection, CallError> {
    let refusal = match start_as(setup, ClientLifecycleMode::Initialize).await {
        Ok(connection) => return Ok(connection),
        Err(NotUp::Failed(error)) => return Err(error),
        Err(NotUp::Refused(error)) => error,
    };
    let newest = ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::LATEST] };
    start_as(setup, newest).await.map_err(|_| refusal)
}

async fn start_as(setup: &Setup, lifecycle: ClientLifecycleMode) -> Result<Connection, NotUp> {
    let Expanded { values, redactor } = setup.expanded()?;
    let watch = Arc::new(Watch::new(&setup.name, redactor));
    match &setup.spec {
        Spec::Process { command, args, .. } => {
            let owner = Arc::clone(&setup.owner);
            let mark = tokio::task::spawn_blocking(move || owner.mark()).await;
            let mark = mark.map_err(|error| setup.failed(&error.to_string()))?;
            let program = Program { server: &setup.name, command, args, env: &values, folder: &setup.root };
            let spawned = process::spawn(&program, |name| (setup.env)(name), mark, &watch.redactor);
            let (process, stdin, stdout) = spawned.map_err(|error| {
                let hint =
                    if error.kind() == std::io::ErrorKind::NotFound { "; is it installed, and in PATH?" } else { "" };
                setup.failed(&format!("the program {command:?} cannot be run: {error}{hint}"))
            })?;
            let lines = Lines::new(stdout, stdin, setup.max_message, Arc::clone(&watch));
            greet(setup, Watched::new(lines, Arc::clone(&watch)), watch, Some(process), lifecycle).await
        }
        Spec::Http { url, .. } => {
            let transport = http::transport(url, values, setup.max_message).map_err(|broken| match broken {
                NoTransport::Header(name) => {
                    let message =
                        format!("MCP server {:?}: header {name:?} holds what no header can carry", setup.name);
                    CallError::new(MCP_NOT_CONFIGURED, message)
                }
                NoTransport::Client(why) => setup.failed(&why),
            })?;
            greet(setup, Watched::new(transport, Arc::clone(&watch)), watch, None, lifecycle).await
        }
    }
}

async fn greet<T>(
    setup: &Setup,
    transport: Watched<T>,
    watch: Arc<Watch>,
    process: Option<Process>,
    lifecycle: ClientLifecycleMode,
) -> Result<Connection, NotUp>
where
    T: Transport<RoleClient> + 'static,
{
    let last_words = process.as_ref().map(Process::last_words).unwrap_or_default();
    let mut patience = process::EXIT_TIME;
    let mut refused = false;
    let why = match timeout(setup.start_time, rmcp::serve_client_with_lifecycle(Client, transport, lifecycle)).await {
        Ok(Ok(service)) => return Ok(Connection::of(setup, service, watch, process, last_words)),
        Ok(Err(error)) => {
            refused = matches!(error, ClientInitializeError::JsonRpcError(_));
            explain_start(&error, &watch.redactor)
        }
        Err(_) => {
            patience = Duration::ZERO;
            let time = setup.start_time.as_secs_f64();
            format!("it did not answer within {time} s (`start_timeout_s` of `[mcp]` in dirigent.toml)")
        }
    };
    let why = watch.why_broken().map_or(why, str::to_owned);
    let ending = match process {
        Some(process) => how_it_ended(process.leave(patience).await, &last_words),
        None => String::new(),
    };
    let error = setup.failed(&shortened(&watch.redactor.text(&format!("{why}{ending}")), MAX_REASON_CHARS));
    Err(if refused { NotUp::Refused(error) } else { NotUp::Failed(error) })
}

/// To be put behind a reason.
fn how_it_ended(status: Option<std::process::ExitStatus>, last_words: &LastWords) -> String {
    let mut text = status.map(|status| format!(" ({status})")).unwrap_or_default();
    let words = last_words.text();
    if !words.is_empty() {
        text.push_str(&format!("; it last said: {words}"));
    }
    text
}

impl Connection {
    fn of(
        setup: &Setup,
        service: RunningService<RoleClient, Client>,
        watch: Arc<Watch>,
        process: Option<Process>,
        last_words: LastWords,
    ) -> Self {
        let (stop, stopped) = watch::channel(Stop::No);
        let (ended, end) = watch::channel(None);
        let peer = service.peer().clone();
        let is_http = process.is_none();
        let started = Instant::now();
        tokio::spawn(keep(setup.name.clone(), service, process, last_words, Arc::clone(&watch), stopped, ended));
        let gives_way = AtomicBool::new(false);
        Self { name: setup.name.clone(), is_http, peer, watch, offer: Offer::default(), started, gives_way, stop, end }
    }

    pub fn is_up(&self) -> bool {
        !self.peer.is_transport_closed()
            && *self.stop.borrow() == Stop::No
            && self.end.borrow().is_none()
            && !self.has_given_way()
    }

    /// Leaves what is asked next to a new connection. What is in flight goes on; it ends when nobody holds it.
    fn give_way(&self) {
        self.gives_way.store(true, Ordering::Release);
    }

    /// True when it was well, but is not to be used again.
    pub fn has_given_way(&self) -> bool {
        self.gives_way.load(Ordering::Acquire)
    }

    /// Why it has ended; `None` while it has not, or is still about to.
    pub fn why_ended(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    /// For how long it has been up.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends it; what is in flight fails.
    pub fn stop(&self) {
        self.stop.send_replace(Stop::Asked);
    }

    /// Ends it, unless somebody has.
    fn lost(&self) {
        self.stop.send_if_modified(|stop| std::mem::replace(stop, (*stop).max(Stop::Lost)) == Stop::No);
    }

    /// Comes when it has ended, with the reason.
    pub async fn ended(&self) -> String {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Its task is gone, with the runtime.
            Err(_) => "it was stopped".to_owned(),
        }
    }

    /// Performs one call and gives the result as JSON text. Drop the future to cancel it.
    ///
    /// # Errors
    /// [`UNKNOWN_TOOL`]; [`super::MCP_TOOL_ERROR`] for a result that is an error; [`MCP_FAILED`] when there is no result.
    pub async fn call(&self, tool: &str, arguments: JsonObject, log: RunLog) -> Result<String, Failed> {
        self.check_name(tool).await?;
        let attended = self.watch.attend(tool, log);
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let mut request = CallToolRequest::new(params);
        request.extensions.insert(attended.id);
        let request = ClientRequest::CallToolRequest(request);
        let sent = self.peer.send_request_with_option(request, PeerRequestOptions::no_options()).await;
        let answer = match sent {
            Ok(handle) => {
                let mut abandoned = Abandoned { peer: self.peer.clone(), id: Some(handle.id.clone()) };
                let answer = handle.await_response().await;
                abandoned.id = None;
                answer
            }
            Err(error) => Err(error),
        };
        drop(attended);
        let what = || format!("{}.{tool}", self.name);
        match answer {
            Ok(ServerResult::CallToolResult(result)) => Ok(value_of(result, &self.watch.redactor)?),
            Ok(ServerResult::InputRequiredResult(_)) => {
                let message = format!("{}: the tool asks for input that only a person can give", what());
                Err(CallError::new(MCP_FAILED, message).into())
            }
            Ok(_) => {
                let message = format!("{}: the server answered with what is no result", what());
                Err(CallError::new(MCP_FAILED, message).into())
            }
            Err(error) => Err(self.explained(&what(), error).await),
        }
    }

    /// The tools that the server has now; asked for only when they may have changed.
    ///
    /// # Errors
    /// [`MCP_FAILED`] when it does not tell.
    pub async fn tools(&self) -> Result<Arc<Vec<Tool>>, Failed> {
        match self.offer.tools(&self.peer, &self.watch).await {
            Ok(tools) => Ok(tools),
            Err(error) => Err(self.explained(&format!("{}: tools/list", self.name), error).await),
        }
    }

    /// A name that the server does not have is not sent to it.
    async fn check_name(&self, tool: &str) -> Result<(), Failed> {
        match self.offer.look_for(tool, &self.peer, &self.watch).await {
            Ok(found) => found.map_err(|told| CallError::new(UNKNOWN_TOOL, told).into()),
            Err(error) => Err(self.explained(&format!("{}: tools/list", self.name), error).await),
        }
    }

    /// An error in words; after one of the connection, the next call has a new one.
    async fn explained(&self, what: &str, error: ServiceError) -> Failed {
        let mut is_session = false;
        let why = match error {
            ServiceError::McpError(error) => error.message.into_owned(),
            ServiceError::TransportSend(error) => {
                match error.error.downcast_ref::<HttpError>() {
                    Some(refusal) => {
                        let means = http::means(refusal);
                        is_session = matches!(means, Means::Gone);
                        // Others may be on their way.
                        if !matches!(means, Means::Nothing) {
                            self.give_way();
                        }
                        http::explain(refusal, &self.watch.redactor)
                    }
                    None => {
                        self.lost();
                        self.ended().await
                    }
                }
            }
            // Of this request alone.
            ServiceError::TransportClosed if self.is_http && !self.peer.is_transport_closed() => {
                "the stream of its answer ended before the answer".to_owned()
            }
            ServiceError::TransportClosed | ServiceError::Cancelled { .. } => {
                self.lost();
                self.ended().await
            }
            other => other.to_string(),
        };
        let why = shortened(&self.watch.redactor.text(&why), MAX_REASON_CHARS);
        let error = CallError::new(MCP_FAILED, format!("{what}: {why}"));
        if is_session { Failed::Session(error) } else { Failed::Other(error) }
    }

    pub fn redactor(&self) -> &Redactor {
        &self.watch.redactor
    }
}

/// Tells the server about a request that nobody waits for any more.
struct Abandoned {
    peer: Peer<RoleClient>,
    id: Option<RequestId>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let peer = self.peer.clone();
        // Without a runtime the connection is going as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let reason = Some("the run no longer waits for it".to_owned());
            let params = CancelledNotificationParam::new(Some(id), reason);
            let notification = CancelledNotification::new(params);
            // A connection that is gone has nothing to cancel.
            let _ = peer.send_notification(ClientNotification::CancelledNotification(notification)).await;
        });
    }
}

/// The life of one connection.
async fn keep(
    name: String,
    service: RunningService<RoleClient, Client>,
    process: Option<Process>,
    last_words: LastWords,
    watch: Arc<Watch>,
    mut stopped: watch::Receiver<Stop>,
    ended: watch::Sender<Option<String>>,
) {
    let cancel = service.cancellation_token();
    let mut serving = std::pin::pin!(service.waiting());
    let stop = tokio::select! {
        _ = &mut serving => Stop::No,
        // An error: nobody holds the connection any more.
        stop = stopped.wait_for(|stop| *stop != Stop::No) => stop.map_or(Stop::Asked, |stop| *stop),
    };
    if stop != Stop::No {
        cancel.cancel();
        let _ = timeout(GOODBYE, serving).await;
    }
    let asked_to = stop == Stop::Asked;
    let reason = match (watch.why_broken(), asked_to) {
        (Some(why), _) => why.to_owned(),
        (None, true) => "the connection was closed".to_owned(),
        (None, false) => "the server ended".to_owned(),
    };
    let reason = match process {
        Some(process) => {
            let patience = if watch.why_broken().is_some() { Duration::ZERO } else { process::LEAVE_TIME };
            let status = process.leave(patience).await;
            if asked_to { reason } else { format!("{reason}{}", how_it_ended(status, &last_words)) }
        }
        None => reason,
    };
    let reason = shortened(&watch.redactor.text(&reason), MAX_REASON_CHARS);
    if asked_to {
        tracing::debug!(server = name, "stopped");
    } else {
        tracing::warn!(server = name, "{}", on_one_line(&reason));
    }
    ended.send_replace(Some(reason));
}

fn explain_start(error: &ClientInitializeError, redactor: &Redactor) -> String {
    match error {
        error if error.is_authorization_required() => {
            format!("it asks for authorization (HTTP 401){}", http::SET_HEADERS)
        }
        ClientInitializeError::TransportError { error, .. } => http::explain(error.error.as_ref(), redactor),
        ClientInitializeError::JsonRpcError(error) => format!("it refused to start a session: {}", error.message),
        ClientInitializeError::ExpectedInitResponse(_) | ClientInitializeError::ExpectedInitResult(_) => {
            "it answered the greeting with what is no answer to it".to_owned()
        }
        ClientInitializeError::ConnectionClosed(_) => "it ended before it answered".to_owned(),
        other => other.to_string(),
    }
}
