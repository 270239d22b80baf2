//! Handlers in their hosts, through the pool: what an isolate has and has not, what hostile code comes to, and what
//! the daemon is told.

mod calls;
mod depth;
mod endings;
mod hosts;
mod limits;
mod protocol;
mod realm;
mod statements;
mod unsent;

use std::path::PathBuf;
use std::sync::Arc;

use dirigent::fire::{CallError, CtxCall, CtxCallBody, CtxReply, ErrorCode, LogLevel, LogLine};
use dirigent::isolate::{Job, JobEnd, JobEvent, JobKind, Limits, Outcome, Pool, PoolConfig, RunningJob};

const MIB: u64 = 1 << 20;

fn pool_with(warm: usize, max_hosts: usize, limits: Limits) -> Pool {
    Pool::start(PoolConfig { program: PathBuf::from(env!("CARGO_BIN_EXE_dirigent")), warm, max_hosts, limits })
}

fn pool() -> Pool {
    pool_with(1, 2, Limits::default())
}

fn job(source: &str) -> Job {
    Job {
        script_name: "app/auto/handler.js".into(),
        source: Arc::from(source),
        source_sha256: String::new(),
        kind: JobKind::Automation {
            run_json: r#"{"id":"r1","automationId":"auto","appId":"app","attempt":1,"trigger":{"origin":"manual"}}"#
                .into(),
        },
        input_json: None,
        cpu_ms: None,
    }
}

/// What a run did, and how it ended.
struct Seen {
    logs: Vec<LogLine>,
    /// Each batch of calls, with its tick.
    batches: Vec<(Option<u32>, Vec<CtxCall>)>,
    /// The same of calls that were never sent.
    abandoned: Vec<(Option<u32>, Vec<CtxCall>)>,
    end: JobEnd,
}

impl Seen {
    fn messages(&self) -> Vec<&str> {
        self.logs.iter().map(|line| line.message.as_str()).collect()
    }

    fn failure(&self) -> (ErrorCode, &str) {
        match &self.end.outcome {
            Outcome::Failed { code, message, .. } => (*code, message),
            other => panic!("not a failure: {other:?}, logs {:?}", self.messages()),
        }
    }

    fn output(&self) -> serde_json::Value {
        match &self.end.outcome {
            Outcome::Settled { output_json: Some(json), .. } => serde_json::from_str(json).expect("output is JSON"),
            other => panic!("no output: {other:?}, logs {:?}", self.messages()),
        }
    }
}

/// Follows a job to its end; `answer` says what a call comes to, `None` leaves it open.
async fn follow(mut running: RunningJob, mut answer: impl FnMut(&CtxCall) -> Option<CtxReply>) -> Seen {
    let (mut logs, mut batches, mut abandoned) = (Vec::new(), Vec::new(), Vec::new());
    let mut end = None;
    while let Some(event) = running.events.recv().await {
        assert!(end.is_none(), "an event after the end: {event:?}");
        match event {
            JobEvent::Batch { logs: more, calls, tick } => {
                assert!(abandoned.is_empty(), "a batch after abandoned calls: {more:?} {calls:?}");
                logs.extend(more);
                let replies: Vec<_> = calls.iter().filter_map(|call| Some((call.id, answer(call)?))).collect();
                if !calls.is_empty() {
                    batches.push((tick, calls));
                }
                running.control.reply(replies);
            }
            JobEvent::Abandoned { calls, tick } => abandoned.push((tick, calls)),
            JobEvent::Ended(ended) => end = Some(ended),
        }
    }
    Seen { logs, batches, abandoned, end: end.expect("a job ends") }
}

/// A tool that gives back its arguments; state that is empty; an invoke of nothing.
fn echo(call: &CtxCall) -> Option<CtxReply> {
    Some(match &call.body {
        CtxCallBody::Tool { name, .. } if name == "fail" => {
            Err(CallError { code: "tool_failed".into(), message: "no luck".into(), path: Some("args.x".into()) })
        }
        CtxCallBody::Tool { name, .. } if name == "hang" => return None,
        CtxCallBody::Tool { args_json, .. } => Ok(Some(args_json.clone())),
        CtxCallBody::Agent { .. } => Ok(Some("\"an answer\"".into())),
        CtxCallBody::Invoke { handle, input_json } => Ok(Some(format!(
            r#"{{"output":{{"handle":"{handle}","input":{}}},"childRunId":"c1"}}"#,
            input_json.as_deref().unwrap_or("null")
        ))),
        CtxCallBody::RunsList { .. } => Ok(Some(r#"[{"runId":"b"},{"runId":"a"}]"#.into())),
        _ => Ok(None),
    })
}

async fn run_in(pool: &Pool, job: Job) -> Seen {
    follow(pool.run(job).await.expect("a host"), echo).await
}

async fn run(source: &str) -> Seen {
    let pool = pool();
    let seen = run_in(&pool, job(source)).await;
    pool.shutdown().await;
    seen
}

/// Less of everything, so that each case is over soon; the proportions are those of the defaults.
fn small_limits() -> Limits {
    Limits { heap_bytes: 48 * MIB, external_bytes: 64 * MIB, cpu_ms: 5_000, ..Limits::default() }
}

/// A handler that has logged its first line.
async fn start(pool: &Pool, source: &str) -> RunningJob {
    let mut running = pool.run(job(source)).await.expect("a host");
    match running.events.recv().await {
        Some(JobEvent::Batch { .. }) => running,
        other => panic!("{other:?}"),
    }
}

/// Whatever happened before, the pool is as good as new.
async fn assert_well(pool: &Pool) {
    let seen = run_in(pool, job("export default () => ({ summary: 'fine' })")).await;
    assert!(matches!(seen.end.outcome, Outcome::Settled { .. }));
}

/// Aborts as soon as the handler has logged `ready`.
async fn abort_when_ready(pool: &Pool, source: &str) -> (Seen, std::time::Duration) {
    let running = start(pool, source).await;
    let started = std::time::Instant::now();
    running.control.abort("cancelled by a person");
    let seen = follow(running, echo).await;
    (seen, started.elapsed())
}

#[tokio::test]
async fn a_trivial_handler_settles() {
    let seen = run("export default async ({ log, input }) => { log.info('hi', { a: 1 }); return { summary: 'done', output: { input: input ?? null } } }").await;
    assert_eq!(
        seen.end.outcome,
        Outcome::Settled { summary: Some("done".into()), output_json: Some(r#"{"input":null}"#.into()) }
    );
    assert_eq!(seen.messages(), ["hi"]);
    assert_eq!(seen.logs[0].level, LogLevel::Info);
    assert_eq!(seen.logs[0].fields_json.as_deref(), Some(r#"{"a":1}"#));
}
