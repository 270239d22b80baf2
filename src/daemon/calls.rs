//! The calls that a handler makes through `ctx`: recorded, routed, answered.
//!
//! All calls of one tick come as one batch. The rows of a batch are queued when it comes, and written in one
//! transaction before any of its calls leaves the process; then the calls run side by side; and those that end together
//! are closed together. The handler is answered when the closing stands in the ledger's queue, and not only when it is
//! committed: so the end of one call and the beginning of the next share a commit. A crash in between leaves an open
//! row of an interrupted run, and that is what the next start makes of it. State and history reads are no nodes and
//! leave no row.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::manifest::Manifest;
use crate::core::near_name::nearest;
use crate::core::run::{RunEnd, RunSpec};
use crate::core::{Answer, Event, FireRequest};
use crate::daemon::app_handlers;
use crate::daemon::history;
use crate::daemon::record::{Opened, Record, TooManyNodes};
use crate::daemon::services::{Door, Services};
use crate::fire::{
    AppId, AutomationId, CallError, CtxCall, CtxCallBody, CtxReply, ErrorCode, Handle, LogLine, RunId, RunStatus,
    TriggerOrigin,
};
use crate::isolate::JobControl;
use crate::ledger::NodeClose;
use crate::models::{AGENT_BAD_ARGS, AgentArgs};
use crate::tools::app::HandlerKind;
use crate::tools::{self, Access, Builtin, Route};

/// Serves the calls of one run.
pub struct Calls {
    caller: Arc<Caller>,
    control: JobControl,
    batches: JoinSet<()>,
}

/// Who calls: what every call of the run needs.
struct Caller {
    services: Arc<Services>,
    record: Arc<Record>,
    run_id: RunId,
    handle: Handle,
    manifest: Arc<Manifest>,
    /// When the run's time is over.
    deadline: Instant,
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
    /// `deadline`: when the run's time is over.
    pub fn new(
        services: Arc<Services>,
        spec: &RunSpec,
        record: Arc<Record>,
        control: JobControl,
        deadline: Instant,
    ) -> Self {
        let caller = Caller {
            services,
            record,
            run_id: spec.run_id.clone(),
            handle: spec.handle.clone(),
            manifest: Arc::clone(&spec.manifest),
            deadline,
        };
        Self { caller: Arc::new(caller), control, batches: JoinSet::new() }
    }

    /// Takes a batch in and returns at once; its rows are on their way then. `tick` is what the calls of one tick
    /// share, when it made more than one.
    ///
    /// # Errors
    /// [`TooManyNodes`] when the batch goes over the limit; none of its calls is made.
    pub fn serve(&mut self, calls: Vec<CtxCall>, tick: Option<u32>) -> Result<(), TooManyNodes> {
        while self.batches.try_join_next().is_some() {}
        let opened = self.caller.record.open_nodes(&calls, tick, self.caller.services.clock.now_ms())?;
        let (caller, control) = (Arc::clone(&self.caller), self.control.clone());
        self.batches.spawn(async move { caller.batch(calls, opened, control).await });
        Ok(())
    }

    /// Drops what is still pending, and returns when nothing of it runs any more.
    pub async fn finish(mut self) {
        self.batches.shutdown().await;
    }
}

impl Caller {
    async fn batch(&self, calls: Vec<CtxCall>, opened: Opened, control: JobControl) {
        if let Err(error) = opened.written.await {
            // Nothing leaves the process unrecorded.
            let refusal = CallError::new("ledger", format!("the call could not be recorded: {error}"));
            control.reply(calls.iter().map(|call| (call.id, Err(refusal.clone()))).collect());
            return;
        }
        let mut running: FuturesUnordered<_> =
            opened.ordinals.into_iter().zip(calls).map(|(ordinal, call)| self.one(ordinal, call)).collect();
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
        self.record.close_nodes(rows, now);
        control.reply(done.into_iter().map(|done| (done.id, done.reply)).collect());
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
                let query = history::Query::parse(filter_json.as_deref(), &self.handle.automation, &self.run_id);
                match query {
                    Ok(query) => history::prior_runs(&self.services, &self.handle.app, query).await.map(Some),
                    Err(error) => Err(error),
                }
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
        let invalid = |told: String| CallError::new("INVALID_INPUT", told);
        if is_too_deep(args_json) {
            return Err(invalid(too_deep("the arguments")));
        }
        // What a host sends is JSON as JavaScript writes it, where a text need not be Unicode.
        let args: Value = serde_json::from_str(args_json).map_err(|_| {
            invalid("the arguments are no valid JSON: a text in them holds half of a surrogate pair".to_owned())
        })?;
        if !args.is_object() {
            return Err(invalid("tool arguments must be a JSON object".to_owned()));
        }
        let access = Access { own_app: &self.handle.app, apps: &self.manifest.apps, requires: &self.manifest.requires };
        if let Err(mut error) = tools::check_access(&route, &args, &access) {
            // What is misspelled is not to be allowed, but to be spelled.
            if let Route::Mcp { server, tool } = &route
                && let Some(near) = self.services.mcp.meant(server).await
            {
                error.message = format!(
                    "tool \"{server}.{tool}\" is not allowed, and mcp.json has no MCP server {server:?}; did you mean \
                     \"{near}.{tool}\"?"
                );
            }
            return Err(error);
        }
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
                let Value::Object(args) = args else {
                    return Err(invalid("tool arguments must be a JSON object".to_owned()));
                };
                let (record, clock) = (Arc::clone(&self.record), self.services.clock.clone());
                let log = move |level, message| {
                    record.append_log(vec![LogLine { at: clock.now_ms(), level, message, fields_json: None }]);
                };
                self.services.mcp.call(&server, &tool, args, Arc::new(log)).await.map(Some)
            }
        }
    }

    async fn app_handler(&self, kind: HandlerKind, args: &Value) -> CtxReply {
        let call = self.services.tools.plan(kind, args, Some(&self.handle.app)).await?;
        app_handlers::run(&self.services, call, |lines| self.record.append_log(lines)).await.map(Some)
    }

    async fn agent(&self, args_json: &str, usage_json: &mut Option<String>) -> CtxReply {
        let args: AgentArgs = serde_json::from_str(args_json)
            .map_err(|error| CallError::new(AGENT_BAD_ARGS, format!("ctx.agent takes {{ prompt, json? }}: {error}")))?;
        let turn = self.services.models.turn(self.deadline, self.manifest.requires.model.as_deref(), args).await;
        *usage_json = turn.usage_json;
        turn.outcome.map(Some)
    }

    async fn invoke(&self, handle: &str, input_json: Option<String>, child: &mut Option<RunId>) -> CtxReply {
        let handle = Handle::parse(handle, Some(&self.handle.app))
            .map_err(|error| CallError::new("INVALID_INPUT", error.to_string()))?;
        if input_json.as_deref().is_some_and(is_too_deep) {
            return Err(CallError::new("INVALID_INPUT", too_deep("`input`")));
        }
        let door = &self.services.door;
        let (opened, ended) = (door.expect_answer(), door.expect_answer());
        door.send(Event::FireRequested(FireRequest {
            input_json,
            parent: Some(self.run_id.clone()),
            opened: Some(opened.token()),
            ended: Some(ended.token()),
            ..FireRequest::new(handle.clone(), TriggerOrigin::Invoke)
        }));
        let refused = |message: String| Err(CallError::new("invoke_failed", message));
        let run = match opened.await {
            Ok(Answer::Accepted { run, .. }) => run,
            Ok(Answer::Unknown) => {
                let mut message = refusal(&handle, Some(Answer::Unknown));
                if let Some(near) = near_handle(door, handle.clone()).await {
                    message.push_str(&format!("; did you mean \"{near}\"?"));
                }
                return refused(message);
            }
            answer => return refused(refusal(&handle, answer.ok())),
        };
        *child = Some(run.clone());
        match ended.await {
            Ok(Answer::Ended(RunEnd { status: RunStatus::Ok, output_json, .. })) => {
                let output = output_json.map_or(String::new(), |json| format!("\"output\":{json},"));
                Ok(Some(format!("{{{output}\"childRunId\":\"{run}\"}}")))
            }
            Ok(Answer::Ended(end)) => {
                let why = end.error.unwrap_or_else(|| end.status.to_string());
                let code = end.error_code.map_or(end.status.as_str(), ErrorCode::as_str);
                Err(CallError::new(code, format!("{handle} (run {run}) ended in {}: {why}", end.status)))
            }
            answer => refused(refusal(&handle, answer.ok())),
        }
    }
}

/// The automation that a handle which names none most likely meant: a near id in the same app, or else this id in
/// another app, the one nearest in name. So a look costs no more than one app's ids, however many apps there are.
async fn near_handle(door: &Door, meant: Handle) -> Option<Handle> {
    let wanted = meant.clone();
    let (ids, apps) = door
        .look(move |state| {
            let here = state.registry.app(&wanted.app).map(|app| app.automations.keys().cloned().collect());
            let apps = state.registry.apps().filter(|(_, app)| app.automations.contains_key(&wanted.automation));
            let ids: Vec<AutomationId> = here.unwrap_or_default();
            (ids, apps.map(|(id, _)| id.clone()).collect::<Vec<AppId>>())
        })
        .await?;
    let names: Vec<&str> = ids.iter().map(AutomationId::as_str).collect();
    if let Some(near) = nearest(meant.automation.as_str(), &names) {
        return AutomationId::new(near).ok().map(|id| Handle::new(meant.app, id));
    }
    let app = match apps.as_slice() {
        [only] => only.clone(),
        several => {
            let names: Vec<&str> = several.iter().map(AppId::as_str).collect();
            AppId::new(nearest(meant.app.as_str(), &names)?).ok()?
        }
    };
    Some(Handle::new(app, meant.automation))
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
