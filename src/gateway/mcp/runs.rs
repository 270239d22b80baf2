//! Running an automation and reading what happened.

use std::pin::pin;
use std::time::Duration;

use super::arguments::{GetRun, ListRuns, RunAutomation, bad_arguments, handle};
use super::fitting::{Room, cut};
use super::{Builder, SHOWN_PROBLEMS, ToolReply, VALUE_BYTES, shown};
use crate::fire::RunId;
use crate::gateway::api::{Filter, FromQuery, QueryPairs};

const DEFAULT_WAIT_S: f64 = 30.0;
const MAX_WAIT_S: f64 = 300.0;
/// The most that is read of one run, and the most that can be asked for.
const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;
/// Calls and lines of the log that are shown of one run.
const SHOWN_ENTRIES: usize = 150;
const DEFAULT_RUNS: u32 = 20;

impl Builder {
    pub(super) async fn run_automation(&self, given: RunAutomation, cancelled: impl Future<Output = ()>) -> ToolReply {
        let handle = handle(&given.handle)?;
        let wait = given.wait_seconds.unwrap_or(DEFAULT_WAIT_S);
        if !(0.0..=MAX_WAIT_S).contains(&wait) {
            return Err(bad_arguments(format!("waitSeconds is {wait}; it must be from 0 to {MAX_WAIT_S}")));
        }
        let started = self.api.run_now(&handle, given.input_json()).await?;
        let run = started.run_id().clone();
        let so_far = pin!(started.so_far(Duration::from_secs_f64(wait)));
        tokio::select! {
            so_far = so_far => {
                let mut told = shown(&so_far)?;
                if let Some(output) = told.get_mut("output") {
                    Room::of(VALUE_BYTES).fit(output);
                }
                Ok(told)
            }
            () = cancelled => {
                self.api.cancel_run(run).await;
                // Nobody reads it any more.
                Ok(serde_json::Value::Null)
            }
        }
    }

    pub(super) async fn get_run(&self, given: GetRun) -> ToolReply {
        let run = RunId::new(&given.run_id)
            .map_err(|_| bad_arguments("runId is no run's id: it is as run_automation and list_runs give it"))?;
        let bytes = given.value_bytes.unwrap_or(VALUE_BYTES);
        if bytes > MAX_VALUE_BYTES {
            return Err(bad_arguments(format!("valueBytes is {bytes}; it may be {MAX_VALUE_BYTES} at the most")));
        }
        let mut told = shown(&self.api.run_detail(run, MAX_VALUE_BYTES).await?)?;
        for list in ["nodes", "logs", "children"] {
            cut(&mut told, list, SHOWN_ENTRIES);
        }
        let mut room = Room::of(bytes);
        for name in ["output", "input"] {
            room.fit(&mut told["run"][name]);
        }
        for (list, values, texts) in [
            ("nodes", &["args", "result", "usage"][..], &["name", "error"][..]),
            ("logs", &["fields"], &["message"]),
            ("children", &[], &["summary", "error"]),
        ] {
            for entry in told[list].as_array_mut().into_iter().flatten() {
                room.fit_texts(entry, texts);
                for name in values {
                    room.fit(&mut entry[*name]);
                }
            }
        }
        Ok(told)
    }

    pub(super) async fn list_runs(&self, given: ListRuns) -> ToolReply {
        let ListRuns { handle, app, status, origin, since, parent, limit, cursor } = given;
        let limit = limit.unwrap_or(DEFAULT_RUNS).to_string();
        let pairs = [
            ("automation", handle),
            ("app", app),
            ("status", status.map(|statuses| statuses.join(","))),
            ("origin", origin),
            ("since", since),
            ("parent", parent),
            ("limit", Some(limit)),
            ("cursor", cursor),
        ];
        let query = QueryPairs::of(pairs.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let filter = Filter::from_query(&query).map_err(bad_arguments)?;
        let mut told = shown(&self.api.page(filter).await?)?;
        let mut room = Room::of(VALUE_BYTES);
        for run in told["runs"].as_array_mut().into_iter().flatten() {
            room.fit_texts(run, &["error", "summary"]);
        }
        cut(&mut told, "problems", SHOWN_PROBLEMS);
        Ok(told)
    }
}
