//! Why there is no answer, and what to do about it.
//!
//! Providers tell the same thing in many ways: a prompt that is too long is a 400 with a code here and with a sentence
//! there, and a bad key is a 401, a 403, or a 400. What cannot be told apart gets the provider's own words and no advice,
//! which is better than wrong advice.

use rig_core::ProviderResponseError;
use serde_json::Value;

use super::MODEL_FAILED;
use super::access::{Access, OLLAMA_HOST, Protocol};
use super::transport::{Fault, Transport, is_overload, retry_after};
use super::usage::Usage;
use crate::core::shortened::shortened;
use crate::fire::CallError;

/// Characters of a foreign text that a message repeats.
const SHOWN_CHARS: usize = 300;

/// What providers write when the prompt is longer than the model can take; lower case.
const TOO_LONG: &[&str] = &[
    "context_length",
    "context length",
    "context window",
    "maximum context",
    "prompt is too long",
    "input is too long",
    "exceeds the maximum number of tokens",
    "exceed context limit",
    "request_too_large",
    "exceed_context_size",
    "exceeds the available context size",
];
/// What they write when it is the key, with a status that says less; lower case.
const BAD_KEY: &[&str] =
    &["api key not valid", "api_key_invalid", "invalid_api_key", "invalid api key", "api key expired"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// A status that is no success, and that nothing below says better.
    Status(u16),
    BadKey,
    TooLong,
    /// Of its own will, or its filter's.
    Declined,
    /// The answer is longer than it may be.
    CutOff,
    Unreachable,
    /// Nothing came, or something that is no answer.
    NoAnswer,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub why: Why,
    /// Of the response that was no success.
    pub status: Option<u16>,
    /// As long as it came: it is shortened when nothing secret is left in it, so that no half of a key stays.
    pub message: String,
    /// What this room adds to it.
    note: String,
    /// Also a refusal may cost something.
    pub usage: Usage,
}

impl Refusal {
    pub fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, status: None, message: message.into(), note: String::new(), usage: Usage::default() }
    }

    pub fn costing(self, usage: Usage) -> Self {
        Self { usage, ..self }
    }

    /// A response that says that there is no answer; some gateways say so with a status of success.
    pub fn of_response(response: &ProviderResponseError, transport: &Transport) -> Self {
        let (body, wait) = (response.body.as_str(), response.headers.as_ref().and_then(retry_after));
        let status = response.status.map(|status| status.as_u16());
        let status = status.filter(|status| !(200..300).contains(status));
        let lower = body.to_lowercase();
        let is_told = |any: &[&str]| any.iter().any(|text| lower.contains(text));
        let why = match status {
            _ if response.refusal => Why::Declined,
            Some(401 | 403) => Why::BadKey,
            Some(400) if is_told(BAD_KEY) => Why::BadKey,
            Some(413) => Why::TooLong,
            Some(400 | 422 | 500) if is_told(TOO_LONG) => Why::TooLong,
            Some(status) => Why::Status(status),
            None => Why::NoAnswer,
        };
        let mut refusal = Self { status, ..Self::new(why, told(body)) };
        if let Some(wait) = wait.filter(|wait| !transport.may_wait(*wait)) {
            refusal.note = format!("; it asks to wait {} s, which is too long for this run", wait.as_secs());
        } else if status.is_some_and(is_overload) {
            refusal.note = match transport.asked() {
                1 => "; the run has no time for another try".to_owned(),
                asked => format!("; it was asked {asked} times"),
            };
        }
        refusal
    }

    pub fn of_fault(fault: &Fault) -> Self {
        let why = if matches!(fault, Fault::Unreachable(_)) { Why::Unreachable } else { Why::NoAnswer };
        Self::new(why, fault.to_string())
    }

    /// True when the endpoint may have taken offence at the structured output, so that it is worth asking in words.
    pub fn may_be_about_format(&self) -> bool {
        matches!(self.why, Why::Status(400 | 404 | 415 | 422 | 501))
    }

    /// With the provider's name, what to do, and without the key.
    pub fn explained(&self, access: &Access) -> CallError {
        let provider = &access.provider;
        let status = self.status.map(|status| format!(" (HTTP {status})")).unwrap_or_default();
        let (note, hint) = (&self.note, self.hint(access));
        let told = shortened(&access.redacted(&self.message), SHOWN_CHARS);
        CallError::new(MODEL_FAILED, format!("model provider {provider:?} gave no answer{status}: {told}{note}{hint}"))
    }

    fn hint(&self, access: &Access) -> String {
        let table = format!("`[models.{}]` in dirigent.toml", access.provider);
        match self.why {
            Why::BadKey => match &access.key {
                Some(key) => format!("; check the key in the environment variable {}", key.variable),
                None => format!("; it wants a key: name the variable that holds it in `api_key_env` of {table}"),
            },
            Why::TooLong => {
                let room =
                    if access.protocol == Protocol::Ollama { " (OLLAMA_CONTEXT_LENGTH sets Ollama's)" } else { "" };
                format!(
                    "; the prompt is too long for this model: send less, or name one with a larger context window in \
                     `requires.model`{room}"
                )
            }
            Why::CutOff => format!("; ask for a shorter answer, or raise `max_tokens` of {table}"),
            Why::Declined => "; another prompt may do".to_owned(),
            Why::Unreachable if access.protocol == Protocol::Ollama && !access.is_set => format!(
                "; start it with `ollama serve`, or say where it is with {OLLAMA_HOST} or `base_url` of {table}"
            ),
            Why::Unreachable => {
                format!("; is it running at {}? `base_url` of {table} says where it is", access.base_url)
            }
            Why::Status(300..=399) => {
                format!(
                    "; it points elsewhere, and nothing is sent there: set the final address as `base_url` of {table}"
                )
            }
            Why::Status(404) if access.protocol == Protocol::Ollama => format!(
                "; `ollama pull {}` fetches a model, `requires.model` in automation.json names it",
                shortened(&access.model_id, SHOWN_CHARS)
            ),
            Why::Status(404) => {
                format!("; check `requires.model` in automation.json, and `base_url` of {table} if it is set")
            }
            Why::Status(_) | Why::NoAnswer => String::new(),
        }
    }
}

/// What a body says, in its own words.
fn told(body: &str) -> String {
    let message = match serde_json::from_str::<Value>(body) {
        Ok(value) => {
            let error = value.get("error").unwrap_or(&value);
            match (error.as_str(), error["message"].as_str()) {
                (Some(text), _) | (None, Some(text)) => text.to_owned(),
                (None, None) => error.to_string(),
            }
        }
        Err(_) => body.trim().to_owned(),
    };
    if message.is_empty() { "it gave no reason".to_owned() } else { message }
}
