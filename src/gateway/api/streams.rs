//! Server-sent events: of one run, of all runs, and of the tables of an app's data.
//!
//! - **One run**: first what its ledger holds, then what happens, until its end. Each event's id says what was told, so
//!   a client that comes back with the last one gets exactly the rest, also from a daemon that was started since.
//! - **All runs**: `opened`, `started` and `ended` of every run, and `registry` when the automations have changed, from
//!   now on. An id names the life of the daemon and a number; whoever comes back in the same life gets exactly what it
//!   has not seen. When that cannot be had any more (the daemon was restarted, or some thousand events have gone by),
//!   one event `reset` says so, and the stream goes on from that moment: a client that loads its lists again then has
//!   missed nothing. A replay from the ledgers could not promise that, since ends are not recorded in the order of
//!   their times.
//! - **Tables**: one `change` for each table that an action announced. There is nothing to come back to: a client reads
//!   the table. A client that was too slow is told by `reset` that it may have missed some.
//!
//! Streams end when the daemon stops; a client that asks again then is refused until there is a daemon.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, Stream, StreamExt, stream};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;

use super::extract::{App, LastEventId, NoParams, Params, Run};
use super::{Api, Reply, STREAMS, openapi};
use crate::daemon::RunHappening;
use crate::daemon::bus::headlines::{Gap, Headline, Headlines};
use crate::fire::{AppId, RunId};
use crate::gateway::events::{self, Told};
use crate::gateway::problem::ProblemDocument;

/// A comment is sent when nothing else was for so long: proxies and clients then know that the stream lives.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Streams what happened to a run so far, then what happens, until its end.
///
/// `data` is a `RunEvent`. The id of each event says what was told up to it; with it as `Last-Event-ID`, exactly the
/// rest follows. When the end was told already, the answer is 204, which tells an `EventSource` not to come back.
#[utoipa::path(
    get, path = "/v1/runs/{runId}/events", operation_id = "streamRun", tag = openapi::EVENTS,
    params(
        ("runId" = RunId, Path),
        ("Last-Event-ID" = Option<String>, Header, 
            pattern = "^[0-7]\\.[0-9]{1,9}\\.[0-9]{1,9}\\.([0-9]{1,9}([+][0-9]{1,9})?(_[0-9]{1,9}([+][0-9]{1,9})?)*)?$",
            description = "The id of the last event that was seen."),
    ),
    responses(
        (status = 200, description = "Server-sent events.", body = openapi::ServerSentEvent,
            content_type = "text/event-stream"),
        (status = 204, description = "All was told up to `Last-Event-ID`."),
    )
)]
pub async fn run_events(
    State(api): State<Api>,
    Run(run): Run,
    Params(_): Params<NoParams>,
    LastEventId(last): LastEventId,
) -> Reply<Response> {
    // A run that is not there is told first: then no id is one of its events.
    let told = last.map_or(Ok(Told::default()), |id| id.parse::<Told>());
    let place = api.stream_place()?;
    // Listen first, then read: what happens in between is seen twice and told once.
    let live = api.services().bus.runs();
    let read = api.with_run(run, |reader, row| match told {
        Ok(told) if told.is_all() => Ok(Ok(None)),
        Ok(told) => events::Past::read(reader, row, told).map(|past| Ok(Some(past))),
        Err(refused) => Ok(Err(refused)),
    });
    let Some(past) = read.await?.map_err(|_| LastEventId::refused())? else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let events = events::stream(past, live).map(|(told, event)| Event::default().id(told.to_string()).json_data(event));
    Ok(api.sse(events, place))
}

/// Streams the beginnings and ends of all runs, and changes of the registry.
///
/// Events are `opened`, `started` and `ended`, whose data is a `RunEvent`, `registry` with `{}`, and `reset` with `{}`:
/// what happened between the `Last-Event-ID` and now cannot be told any more, so load again what you show. Without a
/// `Last-Event-ID` the stream begins now.
#[utoipa::path(
    get, path = "/v1/events", operation_id = "streamAll", tag = openapi::EVENTS,
    params(
        ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9a-f]{16}-[0-9]{1,18}$",
            description = "The id of the last event that was seen."),
    ),
    responses(
        (status = 200, description = "Server-sent events.", body = openapi::ServerSentEvent,
            content_type = "text/event-stream"),
    )
)]
pub async fn events(
    State(api): State<Api>,
    Params(_): Params<NoParams>,
    LastEventId(last): LastEventId,
) -> Reply<Response> {
    let headlines = api.services().bus.headlines().clone();
    let after = last.map(|id| Resume::parse(&id, headlines.boot()).ok_or_else(LastEventId::refused)).transpose()?;
    let place = api.stream_place()?;
    Ok(api.sse(all_runs(headlines, after), place))
}

/// Streams which tables of an app's data were written, as its actions announce them: `change` with `{"table": name}`.
///
/// `reset` with `{}` says that some may have been missed.
#[utoipa::path(
    get, path = "/centraid/{app}/_changes", operation_id = "streamChanges", tag = openapi::TOOLS,
    params(("app" = AppId, Path, example = "bookshelf")),
    responses(
        (status = 200, description = "Server-sent events.", body = openapi::ServerSentEvent,
            content_type = "text/event-stream"),
    )
)]
pub async fn changes(State(api): State<Api>, App(app): App, Params(_): Params<NoParams>) -> Reply<Response> {
    let place = api.stream_place()?;
    let live = api.services().bus.tables();
    let changes = stream::unfold((live, app), |(mut live, app)| async move {
        loop {
            let batch = match live.recv().await {
                Ok(changed) if changed.app != app => continue,
                Ok(changed) => {
                    let change = |table: &String| Event::default().event("change").json_data(json!({ "table": table }));
                    changed.tables.iter().map(change).collect()
                }
                Err(RecvError::Lagged(_)) => vec![reset()],
                Err(RecvError::Closed) => return None,
            };
            return Some((stream::iter::<Vec<_>>(batch), (live, app)));
        }
    });
    Ok(api.sse(changes.flatten(), place))
}

type Sent = Result<Event, axum::Error>;

fn reset() -> Sent {
    Ok(Event::default().event("reset").data("{}"))
}

impl Api {
    fn stream_place(&self) -> Reply<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.streams).try_acquire_owned().map_err(|_| {
            let detail = format!("{STREAMS} streams are open, and no more may be");
            ProblemDocument::unavailable("too_many_streams", detail)
        })
    }

    /// How many streams are open.
    pub(super) fn open_streams(&self) -> usize {
        STREAMS - self.shared.streams.available_permits()
    }

    fn sse(&self, events: impl Stream<Item = Sent> + Send + 'static, place: OwnedSemaphorePermit) -> Response {
        let mut closing = self.shared.closing.clone();
        // An error says that the listener is gone, and its streams with it.
        let closed = async move { closing.wait_for(|closing| *closing).map(|_| ()).await };
        let events = events.take_until(Box::pin(closed)).map(move |event| {
            let _place = &place;
            Ok::<_, Infallible>(event.unwrap_or_else(|error| {
                tracing::error!(%error, "an event has no JSON form");
                Event::default().comment("an event could not be told")
            }))
        });
        Sse::new(events.boxed()).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
    }
}

/// Where a listener to all runs goes on.
#[derive(Debug, PartialEq, Eq)]
enum Resume {
    After(u64),
    /// The id is of another life of the daemon.
    Anew,
}

impl Resume {
    /// Reads `<boot>-<number>`.
    fn parse(id: &str, boot: &str) -> Option<Self> {
        let (of, number) = id.split_once('-')?;
        let is_boot = of.len() == boot.len() && of.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = number.parse().ok().filter(|_| is_boot && number.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some(if of == boot { Self::After(number) } else { Self::Anew })
    }
}

fn all_runs(headlines: Headlines, after: Option<Resume>) -> impl Stream<Item = Sent> + Send {
    let boot = headlines.boot().to_owned();
    let (listener, first) = match after {
        Some(Resume::After(number)) => (headlines.listen(Some(number)), None),
        Some(Resume::Anew) => (headlines.listen(None), Some(reset())),
        None => (headlines.listen(None), None),
    };
    // The id alone, which a client keeps without hearing of an event: it can come back also when nothing has happened.
    let id = format!("{boot}-{}", listener.taken());
    let first = match first {
        Some(reset) => reset.map(|event| event.id(id)),
        None => Ok(Event::default().id(id)),
    };
    let rest = stream::unfold((listener, boot), |(mut listener, boot)| async move {
        let sent = match listener.next().await {
            Ok(Headline::Run(event)) => Event::default().event(kind(&event.what)).json_data(&*event),
            Ok(Headline::RegistryChanged) => Ok(Event::default().event("registry").data("{}")),
            Err(Gap) => reset(),
        };
        let id = format!("{boot}-{}", listener.taken());
        Some((sent.map(|event| event.id(id)), (listener, boot)))
    });
    stream::iter([first]).chain(rest)
}

fn kind(what: &RunHappening) -> &'static str {
    match what {
        RunHappening::Opened { .. } => "opened",
        RunHappening::Started { .. } => "started",
        RunHappening::Log { .. } => "log",
        RunHappening::NodeOpened { .. } => "nodeOpened",
        RunHappening::NodeClosed { .. } => "nodeClosed",
        RunHappening::Ended { .. } => "ended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_a_life_of_the_daemon_and_a_number() {
        let boot = "0123456789abcdef";
        for (id, resume) in [
            ("0123456789abcdef-7", Some(Resume::After(7))),
            ("ffffffffffffffff-7", Some(Resume::Anew)),
            ("0123456789abcdef-+7", None),
            ("0123456789abcdef-", None),
            ("0123456789abcdef", None),
            ("0123-7", None),
            ("0123456789abcdeg-7", None),
            ("", None),
        ] {
            assert_eq!(Resume::parse(id, boot), resume, "{id:?}");
        }
    }
}
