//! Queries and actions of an app: run in the same hosts and under the same limits as automations, with `db` in place of
//! `ctx`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::core::json_depth::{is_too_deep, too_deep};
use crate::daemon::services::Services;
use crate::fire::{CallError, CtxCall, CtxCallBody, LogLine};
use crate::isolate::{Job, JobControl, JobEvent, JobKind, Outcome, RunningJob};
use crate::tools::Builtin;
use crate::tools::app::{HandlerCall, HandlerKind};
use crate::tools::data_db::DataDb;

impl Services {
    /// Calls one of the tools over app folders for somebody who may see all apps, outside of any run. What a query or
    /// action logs goes to the daemon's log. The result is JSON text.
    ///
    /// # Errors
    /// Those of the tools: see [`crate::tools`].
    pub async fn call_tool(&self, tool: Builtin, args: &Value) -> Result<String, CallError> {
        let kind = match tool {
            Builtin::Describe => return self.tools.describe(args, None).await.map(|value| value.to_string()),
            Builtin::Read => HandlerKind::Query,
            Builtin::Write => HandlerKind::Action,
        };
        let call = self.tools.plan(kind, args, None).await?;
        run(self, call, |lines| lines.iter().for_each(|line| tracing::info!("{}", line.message))).await
    }
}

/// Runs a planned query or action to its end. Returns the tool's result as JSON text. `log` takes its log lines.
///
/// # Errors
/// `HANDLER_ERROR` when the handler throws, is stopped by a limit, or returns what its entry does not allow.
pub async fn run(services: &Services, call: HandlerCall, log: impl Fn(Vec<LogLine>)) -> Result<String, CallError> {
    let _slot =
        services.tool_slots.acquire().await.map_err(|_| CallError::new("HANDLER_ERROR", "the daemon is stopping"))?;
    let limit = Duration::from_millis(call.timeout_ms);
    let mut db = None;
    let outcome = match timeout(limit, drive(services, &call, &mut db, &log)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(failed(&call, format!("took longer than {} ms", call.timeout_ms))),
    };
    let result = outcome.and_then(|returned| call.finish(returned));
    if let Some(db) = db {
        db.finish(result.is_ok()).await;
    }
    if let Ok(result) = &result {
        services.bus.tell_tables(&call.app, call.changed_tables(result));
    }
    result
}

async fn drive(
    services: &Services,
    call: &HandlerCall,
    db: &mut Option<DataDb>,
    log: &impl Fn(Vec<LogLine>),
) -> Result<Option<String>, CallError> {
    let (app, name) = (call.app.to_string(), call.name.clone());
    let job = Job {
        script_name: call.script_name.clone(),
        source: call.source.clone(),
        source_sha256: call.source_sha256.clone(),
        kind: match call.kind {
            HandlerKind::Query => JobKind::Query { app, name },
            HandlerKind::Action => JobKind::Action { app, name },
        },
        input_json: Some(call.input_json.clone()),
        cpu_ms: None,
    };
    // Dropping the job, as a timeout does, kills its host.
    let RunningJob { mut events, control } =
        services.pool.run(job).await.map_err(|error| failed(call, error.to_string()))?;
    let marker = services.limits.for_hosts().log_marker();
    while let Some(event) = events.recv().await {
        match event {
            JobEvent::Batch { logs, calls, .. } => {
                if !logs.is_empty() {
                    log(logs.into_iter().map(|line| named(call, line, &marker)).collect());
                }
                for asked in calls {
                    serve(call, db, asked, &control).await;
                }
            }
            // A query or action has no nodes of its own.
            JobEvent::Abandoned { .. } => {}
            JobEvent::Ended(end) => {
                return match end.outcome {
                    Outcome::Returned { value_json: Some(json) } if is_too_deep(&json) => {
                        Err(failed(call, too_deep("what it returned")))
                    }
                    Outcome::Returned { value_json } => Ok(value_json),
                    Outcome::Failed { message, .. } => Err(failed(call, message)),
                    Outcome::Settled { .. } | Outcome::Aborted => Err(failed(call, "was stopped".to_owned())),
                };
            }
        }
    }
    Err(failed(call, "its host process went away".to_owned()))
}

/// A line that says whose it is, in the log of the run that called. What stands for dropped lines speaks of the run.
fn named(call: &HandlerCall, line: LogLine, marker: &str) -> LogLine {
    if line.message == marker {
        return line;
    }
    LogLine { message: format!("[{}] {}", call.script_name, line.message), ..line }
}

async fn serve(call: &HandlerCall, db: &mut Option<DataDb>, asked: CtxCall, control: &JobControl) {
    let CtxCallBody::Db { args_json } = asked.body else {
        let error = CallError::new("not_allowed", "queries and actions have `db` and `log` only");
        control.reply(vec![(asked.id, Err(error))]);
        return;
    };
    if db.is_none() {
        match open(call).await {
            Ok(opened) => *db = Some(opened),
            Err(error) => {
                control.reply(vec![(asked.id, Err(error))]);
                return;
            }
        }
    }
    if let Some(db) = db {
        let reply = db.call(&args_json).await;
        control.reply(vec![(asked.id, reply)]);
    }
}

async fn open(call: &HandlerCall) -> Result<DataDb, CallError> {
    let read_only = call.kind == HandlerKind::Query;
    DataDb::open(call.data_path.clone(), call.migrations.clone(), read_only).await
}

fn failed(call: &HandlerCall, message: String) -> CallError {
    CallError::new("HANDLER_ERROR", format!("{}: {message}", call.script_name))
}
