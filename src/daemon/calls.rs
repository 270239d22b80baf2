//! The calls that a handler makes through `ctx`: recorded, routed, answered.
//!
//! All calls of one tick come as one batch. The rows of a batch are written in one transaction before any of its calls
//! leaves the process; then the calls run side by side; and those that end together are closed together. The handler is
//! answered when the closing stands in the ledger's queue, and not only when it is committed: so the end of one call and
//! the beginning of the next share a commit. A crash in between leaves an open row of an interrupted run, and that is
//! what the next start makes of it. State and history reads are no nodes and leave no row.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::core::manifest::Manifest;
use crate::core::run::{RunEnd, RunSpec};
use crate::core::{Answer, Event, FireRequest};
use crate::daemon::app_handlers;
use crate::daemon::bus::RunHappening;
use crate::daemon::history;
use crate::daemon::services::Services;
use crate::fire::{
    CallError, CtxCall, CtxCallBody, CtxReply, ErrorCode, Handle, LogLine, NodeKind, RunId, RunStatus, TriggerInfo,
    TriggerOrigin,
};
use crate::isolate::JobControl;
use crate::ledger::{NewNode, NodeClose};
use crate::models::AgentArgs;
use crate::tools::app::HandlerKind;
use crate::tools::{self, Access, Builtin, Route};

/// The run made more nodes than it may.
#[derive(Debug)]
pub struct TooManyNodes;

/// Serves the calls of one run.
pub struct Calls {
    caller: Arc<Caller>,
    control: JobControl,
    next_ordinal: u32,
    batches: JoinSet<()>,
    logs: mpsc::UnboundedReceiver<Vec<LogLine>>,
    /// Ends when the last closing is written.
    closings_done: mpsc::Receiver<()>,
}

/// Who calls: what every call of the run needs.
struct Caller {
    services: Arc<Services>,
    run_id: RunId,
    handle: Handle,
    manifest: Arc<Manifest>,
    /// Where the log lines of queries and actions go: into the run's own log.
    logs: mpsc::UnboundedSender<Vec<LogLine>>,
    /// Held by each closing that is not written yet.
    closings: mpsc::Sender<()>,
}

/// What became of one call.
struct Done {
    id: u32,
    ordinal: Option<u32>,
    reply: CtxReply,
    child: Option<RunId>,
    usage_json: Option<String>,
}

impl Calls {
    pub fn new(services: Arc<Services>, spec: &RunSpec, control: JobControl) -> Self {
        let (tx, logs) = mpsc::unbounded_channel();
        let (closings, closings_done) = mpsc::channel(1);
        let caller = Caller {
            services,
            run_id: spec.run_id.clone(),
            handle: spec.handle.clone(),
            manifest: Arc::clone(&spec.manifest),
            logs: tx,
            closings,
        };
        Self { caller: Arc::new(caller), control, next_ordinal: 0, batches: JoinSet::new(), logs, closings_done }
    }

    /// Takes a batch in and returns at once. `tick` is what the calls of one tick share, when it made more than one.
    ///
    /// # Errors
    /// [`TooManyNodes`] when the batch would go over the limit; none of its calls is made.
    pub fn serve(&mut self, calls: Vec<CtxCall>, tick: Option<u32>) -> Result<(), TooManyNodes> {
        while self.batches.try_join_next().is_some() {}
        let nodes = calls.iter().filter(|c| node_of(&c.body).is_some()).count();
        let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
        if self.next_ordinal.saturating_add(nodes) > self.caller.services.limits.nodes {
            return Err(TooManyNodes);
        }
        let numbered: Vec<(Option<u32>, CtxCall)> = calls
            .into_iter()
            .map(|call| {
                let ordinal = node_of(&call.body).map(|_| {
                    self.next_ordinal += 1;
                    self.next_ordinal - 1
                });
                (ordinal, call)
            })
            .collect();
        let (caller, control) = (Arc::clone(&self.caller), self.control.clone());
        self.batches.spawn(async move { caller.batch(numbered, tick, control).await });
        Ok(())
    }

    /// Log lines that came from queries and actions. Never ends while the run does not.
    pub async fn next_logs(&mut self) -> Vec<LogLine> {
        // The sender lives in `self.caller`, so the channel stays open.
        self.logs.recv().await.unwrap_or_default()
    }

    /// Drops what is still pending, and returns when nothing of it runs any more and what was closed is written. Gives the
    /// log lines that are left.
    pub async fn finish(self) -> Vec<LogLine> {
        let Self { caller, mut batches, mut logs, mut closings_done, .. } = self;
        batches.shutdown().await;
        drop(caller);
        // Nobody sends: this returns when the last sender is gone.
        closings_done.recv().await;
        let mut lines = Vec::new();
        while let Ok(more) = logs.try_recv() {
            lines.extend(more);
        }
        lines
    }
}

/// Kind and name of the node that a call is; `None` for calls that leave no row.
fn node_of(body: &CtxCallBody) -> Option<(NodeKind, &str)> {
    match body {
        CtxCallBody::Tool { name, .. } => Some((NodeKind::Tool, name)),
        CtxCallBody::Agent { .. } => Some((NodeKind::Agent, "agent")),
        CtxCallBody::Invoke { handle, .. } => Some((NodeKind::Invoke, handle)),
        CtxCallBody::StateGet { .. }
        | CtxCallBody::StateSet { .. }
        | CtxCallBody::StateDelete { .. }
        | CtxCallBody::RunsList { .. }
        | CtxCallBody::Db { .. } => None,
    }
}

fn args_of(body: &CtxCallBody) -> String {
    match body {
        CtxCallBody::Tool { args_json, .. } | CtxCallBody::Agent { args_json } => args_json.clone(),
        CtxCallBody::Invoke { input_json, .. } => {
            format!("{{\"input\":{}}}", input_json.as_deref().unwrap_or("null"))
        }
        _ => "{}".to_owned(),
    }
}

impl Caller {
    async fn batch(&self, calls: Vec<(Option<u32>, CtxCall)>, batch_id: Option<u32>, control: JobControl) {
        let now = self.services.clock.now_ms();
        let rows: Vec<NewNode> = calls
            .iter()
            .filter_map(|(ordinal, call)| {
                let (kind, name) = node_of(&call.body)?;
                Some(NewNode {
                    ordinal: (*ordinal)?,
                    batch_id,
                    kind,
                    name: name.to_owned(),
                    args_json: args_of(&call.body),
                    child_run_id: None,
                    started_at: now,
                })
            })
            .collect();
        if !rows.is_empty() {
            for row in &rows {
                self.tell(RunHappening::NodeOpened {
                    ordinal: row.ordinal,
                    batch_id,
                    kind: row.kind,
                    name: row.name.clone(),
                    at: now,
                });
            }
            let opened = self.services.ledgers.open_nodes(&self.handle.app, &self.run_id, rows).await;
            if let Err(error) = opened {
                // Nothing leaves the process unrecorded.
                let refusal = CallError::new("ledger", format!("the call could not be recorded: {error}"));
                control.reply(calls.iter().map(|(_, call)| (call.id, Err(refusal.clone()))).collect());
                return;
            }
        }
        let mut running: FuturesUnordered<_> =
            calls.into_iter().map(|(ordinal, call)| self.one(ordinal, call)).collect();
        while let Some(first) = running.next().await {
            let mut done = vec![first];
            // Those that have ended by now are closed in the same transaction.
            while let Some(Some(next)) = futures::FutureExt::now_or_never(running.next()) {
                done.push(next);
            }
            self.close(done, &control);
        }
    }

    fn close(&self, done: Vec<Done>, control: &JobControl) {
        let now = self.services.clock.now_ms();
        let rows: Vec<NodeClose> = done
            .iter()
            .filter_map(|done| {
                Some(NodeClose {
                    ordinal: done.ordinal?,
                    ok: done.reply.is_ok(),
                    result_json: done.reply.as_ref().ok().cloned().flatten(),
                    error: done.reply.as_ref().err().map(|e| format!("{}: {}", e.code, e.message)),
                    child_run_id: done.child.clone(),
                    usage_json: done.usage_json.clone(),
                    ended_at: now,
                })
            })
            .collect();
        if !rows.is_empty() {
            self.write_closings(rows, now);
        }
        control.reply(done.into_iter().map(|done| (done.id, done.reply)).collect());
    }

    /// Queues the closings now, and tells of them live when they are written.
    fn write_closings(&self, rows: Vec<NodeClose>, at: i64) {
        let told: Vec<RunHappening> = rows
            .iter()
            .map(|row| RunHappening::NodeClosed { ordinal: row.ordinal, ok: row.ok, error: row.error.clone(), at })
            .collect();
        let written = self.services.ledgers.close_nodes(&self.handle.app, &self.run_id, rows);
        let (services, run_id, handle) = (Arc::clone(&self.services), self.run_id.clone(), self.handle.clone());
        let pending = self.closings.clone();
        tokio::spawn(async move {
            match written.await {
                Ok(()) => told.into_iter().for_each(|what| services.bus.tell(&run_id, &handle, what)),
                // The run's own end closes what is left open.
                Err(error) => tracing::warn!(%handle, run = %run_id, %error, "nodes could not be closed"),
            }
            drop(pending);
        });
    }

    fn tell(&self, what: RunHappening) {
        self.services.bus.tell(&self.run_id, &self.handle, what);
    }

    async fn one(&self, ordinal: Option<u32>, call: CtxCall) -> Done {
        let mut done = Done { id: call.id, ordinal, reply: Ok(None), child: None, usage_json: None };
        let (ledgers, app, automation) = (&self.services.ledgers, &self.handle.app, &self.handle.automation);
        done.reply = match call.body {
            CtxCallBody::Tool { name, args_json } => self.tool(&name, &args_json).await,
            CtxCallBody::Agent { args_json } => self.agent(&args_json, &mut done.usage_json).await,
            CtxCallBody::Invoke { handle, input_json } => self.invoke(&handle, input_json, &mut done.child).await,
            CtxCallBody::StateGet { key } => ledgers.state_get(app, automation, &key).await.map_err(state_error),
            CtxCallBody::StateSet { key, value_json } => {
                let at = self.services.clock.now_ms();
                ledgers.state_set(app, automation, &key, value_json, at).await.map(|()| None).map_err(state_error)
            }
            CtxCallBody::StateDelete { key } => {
                ledgers.state_delete(app, automation, &key).await.map(|_| None).map_err(state_error)
            }
            CtxCallBody::RunsList { filter_json } => {
                let path = self.services.folders.ledger(app);
                history::prior_runs(path, self.handle.clone(), self.run_id.clone(), filter_json).await.map(Some)
            }
            CtxCallBody::Db { .. } => {
                Err(CallError::new("not_allowed", "an automation has no database handle; use ctx.tool"))
            }
        };
        if let Ok(Some(text)) = &done.reply
            && text.len() as u64 > self.services.limits.value_bytes
        {
            let (len, max) = (text.len(), self.services.limits.value_bytes);
            done.reply = Err(CallError::new("too_large", format!("the result is {len} bytes; at most {max} may be")));
        }
        done
    }

    async fn tool(&self, name: &str, args_json: &str) -> CtxReply {
        let route = tools::route(name)?;
        let args: Value = serde_json::from_str(args_json)
            .map_err(|error| CallError::new("INVALID_INPUT", format!("the arguments are no JSON: {error}")))?;
        if !args.is_object() {
            return Err(CallError::new("INVALID_INPUT", "tool arguments must be a JSON object"));
        }
        let access = Access { own_app: &self.handle.app, apps: &self.manifest.apps, requires: &self.manifest.requires };
        tools::check_access(&route, &args, &access)?;
        match route {
            Route::Builtin(Builtin::Describe) => {
                let mut visible = vec![self.handle.app.clone()];
                visible.extend(self.manifest.apps.iter().cloned());
                let value = self.services.tools.describe(&args, Some(&visible)).await?;
                Ok(Some(value.to_string()))
            }
            Route::Builtin(Builtin::Read) => self.app_handler(HandlerKind::Query, &args).await,
            Route::Builtin(Builtin::Write) => self.app_handler(HandlerKind::Action, &args).await,
            Route::Mcp { server, tool } => {
                let message = format!("{server}.{tool}: this dirigent has no MCP client, so no MCP tool can be called");
                Err(CallError::new(tools::UNKNOWN_MCP_SERVER, message))
            }
        }
    }

    async fn app_handler(&self, kind: HandlerKind, args: &Value) -> CtxReply {
        let call = self.services.tools.plan(kind, args, Some(&self.handle.app)).await?;
        let log = |lines| {
            // The run may have ended; then nobody reads them.
            let _ = self.logs.send(lines);
        };
        app_handlers::run(&self.services, call, log).await.map(Some)
    }

    async fn agent(&self, args_json: &str, usage_json: &mut Option<String>) -> CtxReply {
        let args: AgentArgs = serde_json::from_str(args_json).map_err(|error| {
            CallError::new("INVALID_INPUT", format!("ctx.agent takes {{ prompt, json? }}: {error}"))
        })?;
        let reply = self.services.models.turn(self.manifest.requires.model.as_deref(), args).await?;
        *usage_json = Some(reply.usage_json);
        Ok(Some(reply.value_json))
    }

    async fn invoke(&self, handle: &str, input_json: Option<String>, child: &mut Option<RunId>) -> CtxReply {
        let handle = Handle::parse(handle, Some(&self.handle.app))
            .map_err(|error| CallError::new("INVALID_INPUT", error.to_string()))?;
        let door = &self.services.door;
        let (opened, opened_rx) = door.expect_answer();
        let (ended, ended_rx) = door.expect_answer();
        door.send(Event::FireRequested(FireRequest {
            handle: handle.clone(),
            origin: TriggerOrigin::Invoke,
            trigger: TriggerInfo::default(),
            input_json,
            parent: Some(self.run_id.clone()),
            synced: false,
            opened: Some(opened),
            ended: Some(ended),
        }));
        let refused = |message: String| Err(CallError::new("invoke_failed", message));
        match opened_rx.await {
            Ok(Answer::Accepted { run, .. }) => *child = Some(run),
            answer => {
                door.forget(ended);
                return refused(refusal(&handle, answer.ok()));
            }
        }
        let child = child.clone().map(|id| id.to_string()).unwrap_or_default();
        match ended_rx.await {
            Ok(Answer::Ended(RunEnd { status: RunStatus::Ok, output_json, .. })) => {
                let output = output_json.map_or(String::new(), |json| format!("\"output\":{json},"));
                Ok(Some(format!("{{{output}\"childRunId\":\"{child}\"}}")))
            }
            Ok(Answer::Ended(end)) => {
                let why = end.error.unwrap_or_else(|| end.status.to_string());
                let code = end.error_code.map_or(end.status.as_str(), ErrorCode::as_str);
                Err(CallError::new(code, format!("{handle} (run {child}) ended in {}: {why}", end.status)))
            }
            answer => refused(refusal(&handle, answer.ok())),
        }
    }
}

/// Why a fire was not accepted, in words.
pub fn refusal(handle: &Handle, answer: Option<Answer>) -> String {
    match answer {
        Some(Answer::Unknown) => format!("there is no automation {handle}"),
        Some(Answer::Unrunnable { problems }) => {
            let first = problems.first().map(|p| p.message.clone()).unwrap_or_default();
            format!("{handle} has no valid manifest: {first}")
        }
        Some(Answer::Busy { active }) => format!("{handle} is busy: run {active} is active"),
        Some(Answer::Refused { message } | Answer::NotRecorded { message }) => message,
        Some(Answer::Stopping) | None => "the daemon is stopping".to_owned(),
        Some(other) => format!("unexpected answer: {other:?}"),
    }
}

fn state_error(error: crate::ledger::LedgerError) -> CallError {
    CallError::new(if error.is_limit() { "state_limit" } else { "ledger" }, error.to_string())
}
