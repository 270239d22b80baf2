//! One model at one OpenAI-compatible endpoint: a request, its retries, and what came back.
//!
//! The protocol is `async-openai`'s: it builds the request, its URL and headers, and reads the body. The transport
//! below it is replaced here, because its own reads bodies without a bound and knows other retry rules.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use async_openai::Client;
use async_openai::config::Config;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use async_openai::types::chat::{
    ChatCompletionRequestAssistantMessage, ChatCompletionRequestMessage, ChatCompletionRequestSystemMessage,
    ChatCompletionRequestUserMessage, CreateChatCompletionRequest, ResponseFormat, ResponseFormatJsonSchema,
};
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::schema::AnswerSchema;
use super::{MAX_ANSWER_BYTES, MODEL_FAILED, MODEL_NOT_CONFIGURED, Sleep};
use crate::core::shortened::shortened;
use crate::fire::CallError;

/// Requests sent for one answer, the first included.
const TRIES: u32 = 3;
/// Wait before the second try when the provider names none; doubled for the third.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// A provider that asks for a longer wait is better reported than waited for: the run's time is passing.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Of a refusal only the message is wanted.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Characters of a foreign text that a message repeats.
const SHOWN_CHARS: usize = 300;
/// Nothing that listens takes longer. The answer itself may take as long as the run has.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One message of the conversation.
#[derive(Debug, Clone)]
pub enum Message {
    System(String),
    User(String),
    Assistant(String),
}

/// Token counts, as far as the provider gave them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: Option<u64>,
    pub output: Option<u64>,
}

impl Usage {
    pub fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (one, other) => one.or(other),
        };
        Self { input: sum(self.input, other.input), output: sum(self.output, other.output) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub usage: Usage,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The last HTTP status that was no success.
    pub status: Option<u16>,
    pub message: String,
}

impl Refused {
    fn because(message: impl Into<String>) -> Self {
        Self { status: None, message: message.into() }
    }
}

/// One model at one endpoint.
pub struct Endpoint {
    client: Client<Access>,
    provider: String,
    model_id: String,
    key: Option<String>,
}

/// Where to, and with which key.
struct Access {
    base_url: String,
    authorization: Option<HeaderValue>,
    /// Empty: asked for by the trait, and used by calls that are never made here.
    no_key: SecretString,
}

impl Config for Access {
    fn headers(&self) -> HeaderMap {
        self.authorization.iter().map(|value| (AUTHORIZATION, value.clone())).collect()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn api_base(&self) -> &str {
        &self.base_url
    }

    fn api_key(&self) -> &SecretString {
        &self.no_key
    }
}

/// The HTTP client that all endpoints share.
///
/// # Errors
/// [`MODEL_NOT_CONFIGURED`] when TLS cannot be set up on this machine.
pub fn http_client() -> Result<reqwest::Client, CallError> {
    // An error means that a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        // A redirected POST loses its body or sends the prompt elsewhere; the message says what to set instead.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("dirigent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| CallError::new(MODEL_NOT_CONFIGURED, format!("no HTTPS on this machine: {}", causes(&error))))
}

/// A base URL without its trailing slash.
///
/// # Errors
/// The rule that the text breaks.
pub fn base_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("{error}; it must be such as https://host/v1"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("it must start with http:// or https:// and name a host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("it may hold no user, password, query or fragment; keys go into the environment".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

impl Endpoint {
    /// `None` when the key cannot stand in a header.
    pub fn new(
        http: reqwest::Client,
        provider: &str,
        base_url: String,
        model_id: &str,
        key: Option<String>,
        sleep: Sleep,
    ) -> Option<Self> {
        let authorization = match &key {
            None => None,
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let transport = http.clone();
        let client = Client::build(http, Access { base_url, authorization, no_key: SecretString::default() })
            .with_http_service(tower::service_fn(move |request: HttpRequestFactory| {
                let (transport, sleep) = (transport.clone(), Arc::clone(&sleep));
                async move { send(&transport, &request, &sleep).await }
            }));
        Some(Self { client, provider: provider.to_owned(), model_id: model_id.to_owned(), key })
    }

    /// [`Self::request`], with its error put in words.
    pub async fn ask(&self, messages: &[Message], format: Option<&AnswerSchema>) -> Result<Answer, CallError> {
        self.request(messages, format).await.map_err(|refused| self.explained(refused))
    }

    /// Sends one conversation and waits for the answer, through up to [`TRIES`] tries.
    pub async fn request(&self, messages: &[Message], format: Option<&AnswerSchema>) -> Result<Answer, Refused> {
        let request = CreateChatCompletionRequest {
            model: self.model_id.clone(),
            messages: messages.iter().map(spoken).collect(),
            response_format: format.map(|schema| ResponseFormat::JsonSchema {
                json_schema: ResponseFormatJsonSchema {
                    description: None,
                    name: "answer".to_owned(),
                    schema: schema.source().clone(),
                    strict: Some(schema.is_strict()),
                },
            }),
            ..CreateChatCompletionRequest::default()
        };
        let completion: Completion = self.client.chat().create_byot(request).await.map_err(refused)?;
        completion.answer()
    }

    /// An error for the handler, with the provider's name and without the key.
    pub fn explained(&self, refused: Refused) -> CallError {
        let status = refused.status.map(|status| format!(" (HTTP {status})")).unwrap_or_default();
        let hint = match refused.status {
            Some(401 | 403) => format!("; check the key set for `[models.{}]`", self.provider),
            Some(404) => format!("; check `requires.model` and `base_url` of `[models.{}]`", self.provider),
            _ => String::new(),
        };
        let provider = &self.provider;
        let message = format!("model provider {provider:?} gave no answer{status}: {}{hint}", refused.message);
        CallError::new(MODEL_FAILED, self.redacted(&message))
    }

    /// Providers quote keys in their messages, and a misled model may repeat anything.
    pub fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.as_str(), "[key]"),
            None => text.to_owned(),
        }
    }
}

fn spoken(message: &Message) -> ChatCompletionRequestMessage {
    match message {
        Message::System(text) => ChatCompletionRequestSystemMessage::from(text.clone()).into(),
        Message::User(text) => ChatCompletionRequestUserMessage::from(text.clone()).into(),
        Message::Assistant(text) => ChatCompletionRequestAssistantMessage::from(text.clone()).into(),
    }
}

/// The parts of a completion that matter. Endpoints that call themselves compatible leave out much of the rest.
#[derive(Debug, Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Value,
    /// Some gateways answer with status 200 and an error.
    #[serde(default)]
    error: Value,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    message: Value,
    #[serde(default)]
    finish_reason: Value,
}

impl Completion {
    fn answer(self) -> Result<Answer, Refused> {
        if !self.error.is_null() {
            return Err(Refused::because(shortened(&error_text(&self.error), SHOWN_CHARS)));
        }
        let Some(choice) = self.choices.unwrap_or_default().into_iter().next() else {
            return Err(Refused::because("its answer holds no choices"));
        };
        let text = match &choice.message["content"] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            _ => String::new(),
        };
        if text.trim().is_empty() {
            let why = match (choice.message["refusal"].as_str(), choice.finish_reason.as_str()) {
                (Some(refusal), _) => format!("it refused: {}", shortened(refusal, SHOWN_CHARS)),
                (None, Some(reason)) => {
                    format!("its answer holds no text (finish_reason {:?})", shortened(reason, SHOWN_CHARS))
                }
                (None, None) => "its answer holds no text".to_owned(),
            };
            return Err(Refused::because(why));
        }
        let count = |name: &str| self.usage.get(name).and_then(Value::as_u64);
        Ok(Answer { text, usage: Usage { input: count("prompt_tokens"), output: count("completion_tokens") } })
    }
}

fn refused(error: OpenAIError) -> Refused {
    match error {
        OpenAIError::Boxed(error) => match error.downcast::<Refused>() {
            Ok(refused) => *refused,
            Err(error) => Refused::because(shortened(&error.to_string(), SHOWN_CHARS)),
        },
        OpenAIError::Reqwest(error) => Refused::because(causes(&error.without_url())),
        OpenAIError::JSONDeserialize(error, _) => {
            Refused::because(format!("its answer is no chat completion: {error}"))
        }
        other => Refused::because(shortened(&other.to_string(), SHOWN_CHARS)),
    }
}

/// The transport: one request with its retries, and a bounded body.
async fn send(
    http: &reqwest::Client,
    request: &HttpRequestFactory,
    sleep: &Sleep,
) -> Result<reqwest::Response, OpenAIError> {
    let (mut tried, mut backoff) = (1, FIRST_BACKOFF);
    loop {
        let mut response = http.execute(request.build().await?).await.map_err(OpenAIError::Reqwest)?;
        let status = response.status();
        if status.is_success() {
            let body = read_up_to(&mut response, MAX_ANSWER_BYTES).await?;
            if body.len() > MAX_ANSWER_BYTES {
                let message = format!("its answer is larger than {MAX_ANSWER_BYTES} bytes");
                return Err(OpenAIError::Boxed(Box::new(Refused::because(message))));
            }
            return Ok(http::Response::new(reqwest::Body::from(body)).into());
        }
        let wait = retry_after(response.headers()).unwrap_or(backoff);
        let again = (status.as_u16() == 429 || status.is_server_error()) && tried < TRIES && wait <= LONGEST_WAIT;
        if again {
            drop(response);
            sleep(wait).await;
            tried += 1;
            backoff *= 2;
            continue;
        }
        let body = read_up_to(&mut response, MAX_REFUSAL_BYTES).await.unwrap_or_default();
        let mut message = refusal_text(&body);
        if wait > LONGEST_WAIT {
            message.push_str(&format!("; it asks to wait {} s", wait.as_secs()));
        }
        return Err(OpenAIError::Boxed(Box::new(Refused { status: Some(status.as_u16()), message })));
    }
}

/// The body, or a little more than `limit` bytes of it.
async fn read_up_to(response: &mut reqwest::Response, limit: usize) -> Result<Vec<u8>, OpenAIError> {
    let mut body = Vec::new();
    while body.len() <= limit
        && let Some(chunk) = response.chunk().await.map_err(OpenAIError::Reqwest)?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// `retry-after-ms`, or `retry-after` as seconds or as a date, which is taken relative to the response's own date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let seconds = |text: &str| text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    if let Some(ms) = headers.get("retry-after-ms").and_then(|value| value.to_str().ok()) {
        return seconds(ms.trim()).map(|wait| wait / 1000);
    }
    let after = text(RETRY_AFTER)?;
    seconds(after).or_else(|| {
        let date = |text: &str| chrono::DateTime::parse_from_rfc2822(text).ok();
        let wait = date(after)?.signed_duration_since(date(text(DATE)?)?);
        Some(wait.to_std().unwrap_or_default())
    })
}

fn refusal_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let message = match serde_json::from_str::<Value>(&text) {
        Ok(value) => error_text(value.get("error").unwrap_or(&value)),
        Err(_) => text.trim().to_owned(),
    };
    if message.is_empty() { "it gave no reason".to_owned() } else { shortened(&message, SHOWN_CHARS) }
}

fn error_text(error: &Value) -> String {
    match (error.as_str(), error["message"].as_str()) {
        (Some(text), _) | (None, Some(text)) => text.to_owned(),
        (None, None) => error.to_string(),
    }
}

/// An error with its causes, the first of which rarely says anything.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    shortened(&text, SHOWN_CHARS)
}
