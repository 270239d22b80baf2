//! One message to a server over HTTP, and what its answer is worth.
//!
//! The SDK's own client passes a refusal whose body is an error of the protocol on as an answer, without its status: one
//! that names no request then answers nobody, and a session that the server has forgotten stays in use. Here whatever is
//! not 2xx is a [`Failure`] of the request that it refuses, and so is a success that holds no answer to it. The greetings
//! are the exception: what refuses one tells which other to try.
//!
//! A mistake here lets a call wait for its whole time, or sends it twice.

use std::collections::HashMap;
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, ErrorData, JsonRpcMessage, RequestId, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    AuthRequiredError, InsufficientScopeError, SseError, StreamableHttpClient, StreamableHttpError,
    StreamableHttpPostResponse,
};
use serde_json::Value;
use sse_stream::{Sse, SseStream};
use tokio::time::timeout;

const SESSION: &str = "mcp-session-id";
const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";
/// Headers that are the protocol's own.
const RESERVED: &[&str] = &["accept", "last-event-id", SESSION];
/// Of a body that is JSON.
const MAX_BODY: usize = 16 * 1024 * 1024;
/// Of a refusal's body; a longer one is not shown, nor one that takes longer than this to come.
const MAX_REFUSAL: usize = 64 * 1024;
const REFUSAL_TIME: Duration = Duration::from_secs(5);

pub type HttpError = StreamableHttpError<Failure>;
type Events = BoxStream<'static, Result<Sse, SseError>>;

/// Why a request has no answer, as far as the SDK has no word for it. What a server told is not redacted yet.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] reqwest::Error),
    /// `told` may be empty; `in_session`: the request named a session.
    #[error("it answered HTTP {status}")]
    Refused { status: StatusCode, told: String, in_session: bool },
    #[error("{0}")]
    NoAnswer(&'static str),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The session may be gone: many servers say so with 404, and as many with 400.
    pub fn may_be_of_session(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::BAD_REQUEST, in_session: true, .. })
    }

    /// The server says that it is the session, so it has not looked at what was asked.
    pub fn is_of_session(&self) -> bool {
        let Self::Refused { told, .. } = self else { return false };
        let told = told.to_ascii_lowercase();
        self.may_be_of_session() && (told.contains("session") || told.contains("not initialized"))
    }
}

/// The SDK's client, but for what the module text says.
#[derive(Clone)]
pub struct Client(pub reqwest::Client);

impl StreamableHttpClient for Client {
    type Error = Failure;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        self.post_message_with_max_sse_event_size(uri, message, session, auth, headers, MAX_BODY).await
    }

    async fn post_message_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        max_event: usize,
    ) -> Result<StreamableHttpPostResponse, HttpError> {
        let in_session = session.is_some();
        let mut request = self.0.post(uri.as_ref()).header(ACCEPT, format!("{EVENTS}, {JSON}"));
        if let Some(auth) = auth {
            request = request.bearer_auth(auth);
        }
        for (name, value) in headers {
            if RESERVED.contains(&name.as_str()) {
                return Err(HttpError::ReservedHeaderConflict(name.to_string()));
            }
            request = request.header(name, value);
        }
        if let Some(session) = session {
            request = request.header(SESSION, session.as_ref());
        }
        let response = request.json(&message).send().await.map_err(of_client)?;
        let status = response.status();
        if !status.is_success() {
            return refused(response, &message, in_session).await;
        }
        // Nothing is to be said to anything else.
        let JsonRpcMessage::Request(request) = &message else { return Ok(StreamableHttpPostResponse::Accepted) };
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Err(no_answer("it took the request and answered nothing (HTTP 202 or 204)"));
        }
        let header = |name: &str| {
            response.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (kind, session) = (header(CONTENT_TYPE.as_str()), header(SESSION));
        match kind.as_deref() {
            Some(kind) if kind.starts_with(EVENTS) => {
                let events = SseStream::from_bytes_stream(bounded(response.bytes_stream(), max_event)).boxed();
                Ok(StreamableHttpPostResponse::Sse(events, session))
            }
            Some(kind) if kind.starts_with(JSON) => {
                let body = body_of(response, MAX_BODY).await?;
                let answer = serde_json::from_slice::<ServerJsonRpcMessage>(&body)
                    .map_err(|error| HttpError::UnexpectedServerResponse(error.to_string().into()))?;
                if !answers(&answer, &request.id) {
                    return Err(no_answer("it answered what was not asked: its answer names another request"));
                }
                Ok(StreamableHttpPostResponse::Json(answer, session))
            }
            _ => Err(HttpError::UnexpectedContentType(kind)),
        }
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), HttpError> {
        self.0.delete_session(uri, session, auth, headers).await.map_err(of_sdk)
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<Events, HttpError> {
        self.0.get_stream(uri, session, last_event, auth, headers).await.map_err(of_sdk)
    }

    async fn get_stream_with_max_sse_event_size(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event: Option<String>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        max_event: usize,
    ) -> Result<Events, HttpError> {
        let events = self.0.get_stream_with_max_sse_event_size(uri, session, last_event, auth, headers, max_event);
        events.await.map_err(of_sdk)
    }
}

fn of_client(error: reqwest::Error) -> HttpError {
    HttpError::Client(Failure::Client(error))
}

fn no_answer(why: &'static str) -> HttpError {
    HttpError::Client(Failure::NoAnswer(why))
}

/// The same, in this module's words; what the SDK tells apart stays apart.
fn of_sdk(error: StreamableHttpError<reqwest::Error>) -> HttpError {
    match error {
        StreamableHttpError::Client(error) => of_client(error),
        StreamableHttpError::ServerDoesNotSupportSse => HttpError::ServerDoesNotSupportSse,
        StreamableHttpError::AuthRequired(error) => HttpError::AuthRequired(error),
        StreamableHttpError::InsufficientScope(error) => HttpError::InsufficientScope(error),
        StreamableHttpError::HttpStatus(error) => HttpError::HttpStatus(error),
        StreamableHttpError::UnexpectedContentType(kind) => HttpError::UnexpectedContentType(kind),
        other => HttpError::Client(Failure::Other(other.to_string())),
    }
}

async fn refused(
    response: reqwest::Response,
    message: &ClientJsonRpcMessage,
    in_session: bool,
) -> Result<StreamableHttpPostResponse, HttpError> {
    let status = response.status();
    let challenge = response.headers().get(WWW_AUTHENTICATE);
    let challenge = challenge.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    match (status, challenge) {
        (StatusCode::UNAUTHORIZED, Some(told)) => return Err(HttpError::AuthRequired(AuthRequiredError::new(told))),
        (StatusCode::FORBIDDEN, Some(told)) => {
            return Err(HttpError::InsufficientScope(InsufficientScopeError::new(told, None)));
        }
        // The SDK opens a new session and sends the message once more.
        (StatusCode::NOT_FOUND, _) if in_session => return Err(HttpError::SessionExpired),
        _ => {}
    }
    let body = match timeout(REFUSAL_TIME, body_of(response, MAX_REFUSAL)).await {
        Ok(Ok(body)) => body,
        // A part of it may end with half a secret.
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    if let Some(error) = answer_to_greeting(message, status, &body, in_session) {
        return Ok(StreamableHttpPostResponse::Json(error, None));
    }
    Err(HttpError::Client(Failure::Refused { status, told: told(&body), in_session }))
}

/// Servers of one age refuse the greeting of another, in whatever way; that is an answer to it.
fn answer_to_greeting(
    message: &ClientJsonRpcMessage,
    status: StatusCode,
    body: &[u8],
    in_session: bool,
) -> Option<ServerJsonRpcMessage> {
    let JsonRpcMessage::Request(request) = message else { return None };
    let may_do_without = match &request.request {
        ClientRequest::InitializeRequest(_) => false,
        ClientRequest::DiscoverRequest(_) => status.is_client_error(),
        _ => return None,
    };
    if in_session || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        return None;
    }
    let error = match serde_json::from_slice(body) {
        Ok(ServerJsonRpcMessage::Error(error)) => error.error,
        _ if may_do_without => ErrorData::invalid_request(format!("it answered HTTP {status}"), None),
        _ => return None,
    };
    // Its own may name no request, as it has not read this one.
    Some(ServerJsonRpcMessage::error(error, Some(request.id.clone())))
}

/// What a body says to a person.
fn told(body: &[u8]) -> String {
    let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let places = ["/error/message", "/message", "/error_description", "/error", "/detail"];
    let message = places.iter().find_map(|place| json.pointer(place).and_then(Value::as_str));
    message.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned)
}

/// As the SDK compares them: some servers make a text of the number.
fn answers(answer: &ServerJsonRpcMessage, asked: &RequestId) -> bool {
    let id = match answer {
        JsonRpcMessage::Response(response) => Some(&response.id),
        JsonRpcMessage::Error(error) => error.id.as_ref(),
        JsonRpcMessage::Request(_) | JsonRpcMessage::Notification(_) => None,
    };
    id.is_some_and(|id| id.to_string() == asked.to_string())
}

async fn body_of(response: reqwest::Response, most: usize) -> Result<Vec<u8>, HttpError> {
    let mut chunks = pin!(response.bytes_stream());
    let mut body = Vec::new();
    while let Some(chunk) = chunks.try_next().await.map_err(of_client)? {
        if chunk.len() > most - body.len() {
            return Err(HttpError::ResponseBodyTooLarge { max_size: most });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Bytes of events, up to the first event that has more than `most`.
fn bounded<E: Error + Send + Sync + 'static>(
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    most: usize,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let (mut held, mut at_start) = (0, true);
    bytes.map_err(std::io::Error::other).and_then(move |chunk| {
        for &byte in chunk.iter() {
            held += 1;
            match byte {
                // An empty line ends an event.
                b'\n' if at_start => held = 0,
                b'\n' => at_start = true,
                b'\r' => {}
                _ => at_start = false,
            }
            if held > most {
                let error = std::io::Error::other(format!("an event has more than {most} bytes"));
                return futures::future::ready(Err(error));
            }
        }
        futures::future::ready(Ok(chunk))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_by_its_message() {
        for (body, expected) in [
            (r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"no session"},"id":null}"#, "no session"),
            (r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"no session"}}"#, "no session"),
            (r#"{"error": "invalid_token", "error_description": "it ended"}"#, "it ended"),
            (r#"{"detail": "Not Found"}"#, "Not Found"),
            (r#"{"other": 1}"#, r#"{"other": 1}"#),
            (" plain\n", "plain"),
            ("", ""),
        ] {
            assert_eq!(told(body.as_bytes()), expected, "{body}");
        }
    }

    #[tokio::test]
    async fn an_event_has_its_bound_and_a_stream_of_them_has_none() {
        let small = "data: 1\r\n\r\n".repeat(100);
        for (text, fits) in [(small.as_str(), true), ("data: 12345678", false), ("a\nb\nc\nd\ne\nf\ng\n", false)] {
            for size in [1, 7, 2000] {
                let chunks: Vec<Bytes> = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
                let bytes = futures::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
                let passed: Result<Vec<Bytes>, _> = bounded(bytes, 12).try_collect().await;
                assert_eq!(passed.is_ok(), fits, "{text} by {size}");
            }
        }
    }
}
