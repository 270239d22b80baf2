//! One run, from its launch to its end: drives the host that runs the handler, serves its calls, and decides how it
//! ended.
//!
//! The session ends exactly once, whatever the host, the handler or the ledger does; what it returns is the run's end.
//! Calls that are still pending when the handler settles are dropped, and so are those that were made and not sent on
//! by then: all have their rows, which are closed with the run's.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::json_schema::Schema;
use crate::core::manifest::Manifest;
use crate::core::run::{RunEnd, RunSpec};
use crate::daemon::calls::Calls;
use crate::daemon::record::Record;
use crate::daemon::services::{Code, Services};
use crate::fire::{ErrorCode, Problem, RunStatus};
use crate::isolate::{Job, JobEnd, JobEvent, JobKind, Outcome, RunningJob};

/// Runs one run to its end. `abort` brings the reason when it is to be cancelled.
pub async fn run(
    services: Arc<Services>,
    spec: RunSpec,
    code: Result<Code, Problem>,
    mut abort: mpsc::Receiver<ErrorCode>,
) -> RunEnd {
    let failed = |code: ErrorCode, text: String| RunEnd::error(code, text, services.clock.now_ms());
    let code = match code {
        Ok(code) => code,
        Err(problem) => return failed(ErrorCode::HandlerLoad, problem.to_string()),
    };
    let started = tokio::time::Instant::now();
    let deadline = started + Duration::from_millis(spec.manifest.timeout_ms);
    let job = Job {
        script_name: format!("{}/handler.js", spec.handle),
        source: code.source,
        source_sha256: code.sha256,
        kind: JobKind::Automation { run_json: run_json(&spec) },
        input_json: spec.input_json.clone(),
        cpu_ms: None,
    };
    let job = tokio::select! {
        leased = services.pool.run(job) => match leased {
            Ok(job) => job,
            Err(error) => return failed(ErrorCode::Crashed, format!("no host process: {error}")),
        },
        why = abort.recv() => return RunEnd::cancelled(why.unwrap_or(ErrorCode::Cancelled), services.clock.now_ms()),
        () = tokio::time::sleep_until(deadline) => {
            let text = format!("no host process was free within its timeoutMs of {}", spec.manifest.timeout_ms);
            return failed(ErrorCode::Timeout, text);
        }
    };
    let end = drive(&services, &spec, job, deadline, abort).await;
    let at = services.clock.now_ms();
    match end {
        Verdict::Ended(end) => judge(&spec.manifest, end, at),
        Verdict::Stopped(ErrorCode::Timeout) => {
            let text = format!("the run took longer than its timeoutMs of {}", spec.manifest.timeout_ms);
            RunEnd::error(ErrorCode::Timeout, text, at)
        }
        Verdict::Stopped(ErrorCode::LimitExceeded) => {
            let text = format!("more than {} nodes in one run", services.limits.nodes);
            RunEnd::error(ErrorCode::LimitExceeded, text, at)
        }
        Verdict::Stopped(why) => RunEnd::cancelled(why, at),
    }
}

enum Verdict {
    /// The handler came to an end by itself, or its host did.
    Ended(JobEnd),
    /// It was stopped from here; what the host says after that does not count.
    Stopped(ErrorCode),
}

async fn drive(
    services: &Arc<Services>,
    spec: &RunSpec,
    job: RunningJob,
    deadline: tokio::time::Instant,
    mut abort: mpsc::Receiver<ErrorCode>,
) -> Verdict {
    let RunningJob { mut events, control } = job;
    let (ledgers, bus) = (services.ledgers.clone(), services.bus.clone());
    let record = Record::begin(ledgers, bus, &services.limits, spec.run_id.clone(), spec.handle.clone());
    let record = Arc::new(record);
    let mut calls = Calls::new(Arc::clone(services), spec, Arc::clone(&record), control.clone(), deadline);
    let mut stopped: Option<ErrorCode> = None;
    let stop = |stopped: &mut Option<ErrorCode>, why: ErrorCode| {
        if stopped.is_none() {
            *stopped = Some(why);
            control.abort(why.as_str());
        }
    };
    let end = loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(JobEvent::Batch { logs, calls: asked, tick }) => {
                    record.append_log(logs);
                    if !asked.is_empty() && calls.serve(asked, tick).is_err() {
                        stop(&mut stopped, ErrorCode::LimitExceeded);
                    }
                }
                Some(JobEvent::Abandoned { calls, tick }) => {
                    // Recorded and never made; the run's end closes them. Beyond the limit of nodes they are dropped.
                    let _ = record.open_nodes(&calls, tick, services.clock.now_ms());
                }
                Some(JobEvent::Ended(end)) => break end,
                None => {
                    let message = "its host process went away without a word".to_owned();
                    let outcome = Outcome::Failed { code: ErrorCode::Crashed, message, error_code: None };
                    break JobEnd { outcome, cpu_ms: 0, peak_bytes: None };
                }
            },
            why = abort.recv(), if stopped.is_none() => stop(&mut stopped, why.unwrap_or(ErrorCode::Cancelled)),
            () = tokio::time::sleep_until(deadline), if stopped.is_none() => stop(&mut stopped, ErrorCode::Timeout),
        }
    };
    calls.finish().await;
    // What happened in the run is told before its end is.
    record.told().await;
    stopped.map_or(Verdict::Ended(end), Verdict::Stopped)
}

/// `ctx.run`, as JSON text.
fn run_json(spec: &RunSpec) -> String {
    let mut trigger = serde_json::json!({ "origin": spec.origin });
    if let Some(at) = spec.trigger.scheduled_for {
        trigger["scheduledFor"] = at.into();
    }
    if let Some(missed) = spec.trigger.missed {
        trigger["missed"] = missed.into();
    }
    if let Some(id) = &spec.trigger.delivery_id {
        trigger["deliveryId"] = id.as_str().into();
    }
    serde_json::json!({
        "id": spec.run_id,
        "automationId": spec.handle.automation,
        "appId": spec.handle.app,
        "attempt": spec.attempt,
        "trigger": trigger,
    })
    .to_string()
}

/// The run's end from what its host said.
fn judge(manifest: &Manifest, end: JobEnd, at: i64) -> RunEnd {
    match end.outcome {
        Outcome::Settled { summary, output_json } => {
            if output_json.as_deref().is_some_and(is_too_deep) {
                // Not kept: not everyone who reads a run could read it.
                return RunEnd { summary, ..RunEnd::error(ErrorCode::BadOutput, too_deep("output"), at) };
            }
            if let Some(told) = breaks_schema(manifest, output_json.as_deref()) {
                return RunEnd { summary, output_json, ..RunEnd::error(ErrorCode::OutputSchema, told, at) };
            }
            RunEnd { status: RunStatus::Ok, ended_at: at, summary, output_json, error: None, error_code: None }
        }
        Outcome::Returned { .. } => RunEnd {
            status: RunStatus::Ok,
            ended_at: at,
            summary: None,
            output_json: None,
            error: None,
            error_code: None,
        },
        Outcome::Failed { code: ErrorCode::HandlerThrew, message, error_code: Some(code) }
            if code == ErrorCode::ToolNotAllowed.as_str() =>
        {
            RunEnd::error(ErrorCode::ToolNotAllowed, message, at)
        }
        Outcome::Failed { code, message, .. } => RunEnd::error(code, message, at),
        Outcome::Aborted => RunEnd::error(ErrorCode::Crashed, "its host stopped it unasked", at),
    }
}

/// Problems shown of one output that breaks its schema; the first few say what the rest repeat.
const SHOWN_PROBLEMS: usize = 5;

/// What is wrong with an output by the manifest's `outputSchema`; `None` when it validates or there is no schema.
fn breaks_schema(manifest: &Manifest, output_json: Option<&str>) -> Option<String> {
    let schema = manifest.output_schema.as_ref()?;
    let Some(text) = output_json else {
        return Some("the manifest has an outputSchema, and the handler returned no output".to_owned());
    };
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return Some(format!("output is no JSON: {error}")),
    };
    match Schema::compile(schema) {
        Ok(schema) => schema.check(&value, "output", SHOWN_PROBLEMS).err().map(|mismatch| mismatch.message),
        Err(broken) => Some(format!("outputSchema cannot be used: {broken}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fire::AppId;

    fn manifest(extra: &str) -> Manifest {
        let text = format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}}{extra}}}"#);
        crate::core::manifest::parse(text.as_bytes(), &AppId::new("a").unwrap()).manifest.expect("valid")
    }

    fn settled(output: Option<&str>) -> JobEnd {
        let outcome = Outcome::Settled { summary: Some("s".into()), output_json: output.map(str::to_owned) };
        JobEnd { outcome, cpu_ms: 0, peak_bytes: None }
    }

    #[test]
    fn an_output_is_judged_by_its_schema() {
        let schema = r#","outputSchema":{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}"#;
        let with = manifest(schema);
        let ignored = r#"{"type":"integer","minimum":"zero","$ref":"https://example.com/n"}"#;
        let lenient = manifest(&schema.replace(r#"{"type":"integer"}"#, ignored));
        for (manifest, output, code) in [
            (&with, Some(r#"{"n":1}"#), None),
            (&with, Some(r#"{"n":"1"}"#), Some(ErrorCode::OutputSchema)),
            (&with, Some("[]"), Some(ErrorCode::OutputSchema)),
            (&with, None, Some(ErrorCode::OutputSchema)),
            (&lenient, Some(r#"{"n":1}"#), None),
            (&lenient, Some(r#"{"n":"1"}"#), Some(ErrorCode::OutputSchema)),
            (&manifest(""), None, None),
        ] {
            let end = judge(manifest, settled(output), 5);
            assert_eq!(end.error_code, code, "{output:?}: {:?}", end.error);
            assert_eq!(end.output_json.as_deref(), output, "what was returned is kept either way");
        }
    }

    #[test]
    fn an_output_that_nests_too_deep_is_refused_and_not_kept() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (depth, code) in [(100, None), (101, Some(ErrorCode::BadOutput)), (500, Some(ErrorCode::BadOutput))] {
            let output = format!("{}{}", &deep[500 - depth..500], &deep[500..500 + depth]);
            let end = judge(&manifest(""), settled(Some(&output)), 5);
            assert_eq!((end.error_code, end.output_json.is_some()), (code, code.is_none()), "{depth}");
        }
    }

    #[test]
    fn a_refused_tool_that_nobody_caught_gives_the_run_its_code() {
        let failed = |code: &str| JobEnd {
            outcome: Outcome::Failed {
                code: ErrorCode::HandlerThrew,
                message: "m".into(),
                error_code: Some(code.to_owned()),
            },
            cpu_ms: 0,
            peak_bytes: None,
        };
        assert_eq!(judge(&manifest(""), failed("tool_not_allowed"), 0).error_code, Some(ErrorCode::ToolNotAllowed));
        assert_eq!(judge(&manifest(""), failed("timeout"), 0).error_code, Some(ErrorCode::HandlerThrew));
    }
}
