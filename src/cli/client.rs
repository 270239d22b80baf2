//! The running daemon, as this program asks it: HTTP on the admin listener, with the token from the root's `.dirigent`.
//!
//! Only loopback is spoken to, so no proxy is used, and only the short questions have a time limit: a stream of events
//! lasts as long as its run.

use std::time::Duration;

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use rmcp::model::{CallToolRequestParams, CallToolResult};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::cli::failure::{Failure, exit};
use crate::cli::place::Place;
use crate::daemon::home;
use crate::fire::{EpochMs, Handle, Problem, RunId, RunStatus};
use crate::gateway::{self, reachable};
use crate::overview::Overview;
use crate::tools::mcp::ServerTools;

/// A daemon on this machine that does not even take the connection within this time will not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest question lists ten thousand automations with their history.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// What each MCP server gets to start and to tell its tools, when the daemon is asked for them.
const TELL_TOOLS_S: u64 = 75;

pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
    pid: u32,
}

/// A run that was accepted.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accepted {
    pub run_id: RunId,
    pub status: RunStatus,
}

/// What `ctx.tool` can reach, beside the three built-in tools.
#[derive(Debug, Deserialize)]
pub struct Catalog {
    /// `{app, queries, actions}` or `{app, error}` each.
    pub apps: Vec<Value>,
    pub mcp: Vec<ServerTools>,
    pub problems: Vec<Problem>,
}

/// What lets a browser in, once.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoginLink {
    pub url: String,
    pub expires_at: EpochMs,
}

/// An RFC 9457 document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProblemDocument {
    title: String,
    detail: String,
    code: String,
    #[serde(flatten)]
    more: Map<String, Value>,
}

impl Client {
    /// The daemon of this place; `None` when none runs.
    ///
    /// # Errors
    /// When one runs and its token cannot be read.
    pub fn of(place: &Place) -> Result<Option<Self>, Failure> {
        let Some(info) = &place.daemon else { return Ok(None) };
        let token = home::read_token(&place.root).ok_or_else(|| {
            let path = place.root.join(home::DIR).join("token");
            Failure::failed("no_token", format!("the daemon's admin token cannot be read from {}", path.display()))
                .hint("only the user who started the daemon can read it")
        })?;
        let http = http_client()?;
        Ok(Some(Self { http, base: format!("http://{}", reachable(info.admin)), token, pid: info.pid }))
    }

    /// # Errors
    /// `no_daemon` (exit 3) when none runs; as [`Self::of`].
    pub fn needed(place: &Place, what: &str) -> Result<Self, Failure> {
        Self::of(place)?.ok_or_else(|| Failure::no_daemon(what))
    }

    /// # Errors
    /// As every question: the daemon does not answer, or refuses.
    pub async fn overview(&self) -> Result<Overview, Failure> {
        self.answer(self.http.get(self.url("/v1/automations"))).await
    }

    /// What the daemon's runs can call. It takes as long as MCP servers take to start.
    ///
    /// # Errors
    /// As [`Self::overview`].
    pub async fn tools(&self) -> Result<Catalog, Failure> {
        let url = self.url(&format!("/v1/tools?wait={TELL_TOOLS_S}"));
        let response = self.checked(self.http.get(url).bearer_auth(&self.token)).await?;
        response.json().await.map_err(|error| self.silent(&error))
    }

    /// Run now. `input_json` is JSON text.
    ///
    /// # Errors
    /// `busy` (with the active `runId`), `unknown_automation`, `invalid_manifest`; as [`Self::overview`].
    pub async fn run(&self, handle: &Handle, input_json: Option<&str>) -> Result<Accepted, Failure> {
        // The text goes through as it is: a number of twenty digits keeps all of them.
        let input = input_json.map(serde_json::from_str::<&RawValue>).transpose();
        let input = input.map_err(|error| Failure::usage(format!("the input is no JSON: {error}")))?;
        let body = match input {
            Some(input) => format!("{{\"input\":{input}}}"),
            None => "{}".to_owned(),
        };
        self.answer(self.post(&format!("/v1/automations/{}/{}/run", handle.app, handle.automation)).body(body)).await
    }

    /// # Errors
    /// `unknown_run`, `input_truncated`; as [`Self::run`].
    pub async fn replay(&self, run: &RunId) -> Result<Accepted, Failure> {
        self.answer(self.post(&format!("/v1/runs/{run}/replay")).body("{}")).await
    }

    /// # Errors
    /// `unknown_run`, `not_open`; as [`Self::overview`].
    pub async fn cancel(&self, run: &RunId) -> Result<(), Failure> {
        let _: Value = self.answer(self.post(&format!("/v1/runs/{run}/cancel")).body("{}")).await?;
        Ok(())
    }

    /// A link to the dashboard.
    ///
    /// # Errors
    /// As [`Self::overview`].
    pub async fn login_link(&self) -> Result<LoginLink, Failure> {
        self.answer(self.post("/v1/login-links").body("{}")).await
    }

    /// What happened to a run so far, then what happens, each as the JSON of a `RunEvent`. It may break off before the
    /// run has ended; then ask again.
    ///
    /// # Errors
    /// As [`Self::overview`].
    pub async fn events(&self, run: &RunId) -> Result<impl Stream<Item = Value> + use<>, Failure> {
        let request = self.http.get(self.url(&format!("/v1/runs/{run}/events"))).bearer_auth(&self.token);
        let response = self.checked(request).await?;
        let events = response.bytes_stream().eventsource();
        // A broken stream ends; whoever reads it sees that the run has not.
        Ok(events
            .scan((), |(), event| std::future::ready(event.ok()))
            .filter_map(|event| std::future::ready(serde_json::from_str(&event.data).ok())))
    }

    /// Calls a tool of the daemon's MCP server. Whoever drops this cancels the call.
    ///
    /// # Errors
    /// As [`Self::overview`].
    pub async fn call_tool(&self, request: CallToolRequestParams) -> Result<CallToolResult, Failure> {
        let config =
            StreamableHttpClientTransportConfig::with_uri(self.url(gateway::mcp::PATH)).auth_header(&*self.token);
        let transport = StreamableHttpClientTransport::with_client(self.http.clone(), config);
        let silent = |error: &(dyn std::error::Error + 'static)| {
            let (pid, base, told) = (self.pid, &self.base, told(error));
            let message = format!("the daemon (pid {pid}) does not serve the call at {base}: {told}");
            Failure::failed("daemon_silent", message)
                .exit_with(exit::NO_DAEMON)
                .hint("it may be stopping, or be of another version; otherwise restart it")
        };
        let server = rmcp::serve_client((), transport).await.map_err(|error| silent(&error))?;
        let answer = server.call_tool(request).await.map_err(|error| silent(&error));
        // The daemon keeps no session, so there is nothing to end but the task here.
        let _ = server.cancel().await;
        answer
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.post(self.url(path)).header(reqwest::header::CONTENT_TYPE, "application/json")
    }

    async fn answer<T: serde::de::DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, Failure> {
        let response = self.checked(request.bearer_auth(&self.token).timeout(ANSWER_TIMEOUT)).await?;
        response.json().await.map_err(|error| self.silent(&error))
    }

    async fn checked(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        let response = request.send().await.map_err(|error| self.silent(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        Err(refused(status.as_u16(), &body))
    }

    fn silent(&self, error: &reqwest::Error) -> Failure {
        let message = format!("the daemon (pid {}) does not answer at {}: {}", self.pid, self.base, told(error));
        Failure::failed("daemon_silent", message)
            .exit_with(exit::NO_DAEMON)
            .hint("it may be stopping; otherwise restart it")
    }
}

/// For this machine's own listeners: through no proxy, and impatient only until it is connected.
///
/// # Errors
/// `http`, which no setting of this program can cause.
pub fn http_client() -> Result<reqwest::Client, Failure> {
    // A second installation, by a library of the same process, is no harm.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT).build();
    client.map_err(|error| Failure::failed("http", told(&error)))
}

/// A refusal in the words of the problem document, or of the bare status.
fn refused(status: u16, body: &[u8]) -> Failure {
    let mut document: ProblemDocument = serde_json::from_slice(body).unwrap_or_default();
    let message = [document.detail, document.title].into_iter().find(|text| !text.is_empty());
    let message = message.unwrap_or_else(|| format!("the daemon answered with status {status}"));
    let code = if document.code.is_empty() { "http" } else { document.code.as_str() };
    let mut failure = Failure::failed(code, message);
    failure.hint = document.more.remove("hint").and_then(|hint| hint.as_str().map(str::to_owned));
    let run = document.more.get("runId").and_then(Value::as_str).map(str::to_owned);
    let more = document.more.into_iter().filter(|(name, _)| !matches!(name.as_str(), "type" | "status" | "instance"));
    failure.more.extend(more);
    if matches!(failure.code.as_str(), "too_large" | "too_deep") {
        return failure.exit_with(exit::USAGE);
    }
    match (failure.code.as_str(), run) {
        _ if failure.hint.is_some() => failure,
        ("busy", Some(run)) => {
            let hint = format!("follow it with `dirigent logs {run} -f`, or stop it with `dirigent cancel {run}`");
            failure.hint(hint)
        }
        ("invalid_manifest", _) => failure.hint("`dirigent validate` shows what is wrong with it"),
        ("unknown_automation", _) => {
            failure.hint("the daemon has not seen it (yet); `dirigent list` shows what it has")
        }
        ("unknown_run", _) => failure.hint("`dirigent runs` lists those that history has kept"),
        ("ledger", _) => failure.hint("`dirigent list` says what is wrong with it"),
        ("unauthorized", _) => failure.hint("restart the daemon: its token and the one on disk differ"),
        _ => failure,
    }
}

/// What an error comes from in the end, without the URL, which is named already, and the names of libraries' types.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().unwrap_or(error).to_string()
}

/// The JSON form of a run that was accepted and is not followed.
pub fn accepted_json(accepted: &Accepted) -> Value {
    json!({ "runId": accepted.run_id, "status": accepted.status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_code_words_and_members() {
        let body = json!({
            "type": "about:blank", "title": "Conflict", "status": 409, "code": "busy",
            "detail": "a run is active", "runId": "0190",
        });
        let failure = refused(409, body.to_string().as_bytes());
        assert_eq!((failure.code.as_str(), failure.message.as_str(), failure.exit), ("busy", "a run is active", 1));
        assert!(failure.hint.as_deref().is_some_and(|hint| hint.contains("cancel 0190")));
        assert_eq!(failure.more, [("runId".to_owned(), json!("0190"))]);

        for (code, hint, exit) in [
            ("ledger", Some("free some space"), exit::FAILED),
            ("ledger", None, exit::FAILED),
            ("unknown_automation", Some("did you mean a/x?"), exit::FAILED),
            ("too_large", None, exit::USAGE),
        ] {
            let failure = refused(503, json!({ "code": code, "detail": "d", "hint": hint }).to_string().as_bytes());
            assert_eq!((failure.code.as_str(), failure.exit), (code, exit), "{code}");
            assert!(hint.is_none_or(|hint| failure.hint.as_deref() == Some(hint)), "{code}: {:?}", failure.hint);
            assert_eq!(failure.more, [], "{code}");
        }

        let bare = refused(502, b"<html>");
        assert_eq!((bare.code.as_str(), bare.message.as_str()), ("http", "the daemon answered with status 502"));
    }
}
