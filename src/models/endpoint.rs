//! One model at one endpoint: a conversation goes out, an answer or a refusal comes back.
//!
//! The protocols are those of `rig-core`, without its HTTP client: it builds each request and reads each body, and
//! [`Transport`] carries them. Of the kept libraries it is the one that speaks all four natively (Anthropic's Messages,
//! OpenAI's Chat Completions, Gemini's `generateContent`, Ollama's `/api/chat`) and leaves the sending to its caller, so
//! that bodies can be bounded and retries are ours; without its default features it adds a dozen small crates and half a
//! minute of compile time. `genai` speaks as many, but reads bodies without a bound through a client of its own; the
//! OpenAI-compatible faces of Anthropic and Ollama have no strict output, or cut long prompts without saying so.

use rig_core::completion::{CompletionRequest, CompletionResponse, FinishReason};
use rig_core::error::ProviderError;
use rig_core::message::Message as Said;
use rig_core::providers::openai::wire::{BodyRewrite, Dialect, OPENAI, OutputCap, Quirks};
use rig_core::providers::{anthropic, gemini, ollama, openai};
use rig_core::{Model, schemars};
use serde_json::{Value, json};

use super::access::{Access, Protocol};
use super::refusal::{Refusal, Why};
use super::schema::AnswerSchema;
use super::transport::{Fault, Transport};
use super::usage::Usage;

/// Anthropic wants a number. What every model of theirs takes, where the library knows no better; and where it does, no
/// more than can be waited for without a stream.
const ANTHROPIC_MAX_TOKENS: u64 = 8192;
const ANTHROPIC_MOST_TOKENS: u64 = 32_000;

/// Endpoints that call themselves compatible: contents are plain text, as some of them read nothing else.
const COMPATIBLE: Dialect = {
    let mut quirks = Quirks::openai();
    quirks.rewrite = BodyRewrite::Perplexity;
    Dialect::gateway("compatible", "", "").with_quirks(quirks)
};
/// OpenAI itself, whose newer models take the length of an answer under another name.
const OPENAI_ITSELF: Dialect = {
    let mut quirks = COMPATIBLE.quirks;
    quirks.output_cap = OutputCap::OpenAiReasoningFamilies;
    OPENAI.with_quirks(quirks)
};

/// One message of the conversation.
#[derive(Debug, Clone)]
pub enum Message {
    System(String),
    User(String),
    Assistant(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub usage: Usage,
}

/// One model at one endpoint.
pub struct Endpoint {
    access: Access,
    transport: Transport,
}

impl Endpoint {
    pub fn new(access: Access, transport: Transport) -> Self {
        Self { access, transport }
    }

    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Sends one conversation and waits for the answer, through all tries. With a `format`, by the provider's structured
    /// output, as far as it has one for this schema.
    pub async fn ask(&self, messages: &[Message], format: Option<&AnswerSchema>) -> Result<Answer, Refusal> {
        let mut request = CompletionRequest::new("");
        request.chat_history = messages.iter().map(spoken).collect();
        request.max_tokens = self.access.max_tokens;
        request.additional_params = self.parameters(format);
        let (id, url) = (self.access.model_id.as_str(), self.access.base_url.as_str());
        let transport = self.transport.clone();
        let reply = match self.access.protocol {
            Protocol::Anthropic => {
                let config = anthropic::AnthropicConfig::new("").with_base_url(url);
                let mut model = config.connect(transport).completion(id);
                let known = model.wire.default_max_tokens.unwrap_or(ANTHROPIC_MAX_TOKENS);
                model.wire.default_max_tokens = Some(known.min(ANTHROPIC_MOST_TOKENS));
                model.call(request).await
            }
            Protocol::Chat => {
                let dialect = if self.access.provider == "openai" { &OPENAI_ITSELF } else { &COMPATIBLE };
                let config = openai::OpenAIConfig::with_key(dialect, "").with_base_url(url);
                Model::new(config.chat(id), transport).call(request).await
            }
            Protocol::Gemini => {
                request.output_schema = format.and_then(schema_of);
                let config = gemini::GeminiConfig::new("").with_base_url(url);
                Model::new(gemini::completion::GenerateContent::new(config, id), transport).call(request).await
            }
            Protocol::Ollama => {
                request.output_schema = format.and_then(schema_of);
                let config = ollama::OllamaConfig::new().with_base_url(url);
                Model::new(ollama::Chat::new(config, id), transport).call(request).await
            }
        };
        self.read(reply.map_err(|error| refused(&error, &self.transport))?)
    }

    /// What the library does not ask for by itself, or not as it should be.
    fn parameters(&self, format: Option<&AnswerSchema>) -> Option<Value> {
        match self.access.protocol {
            // The library's own schemas would make every property required.
            Protocol::Anthropic => format
                .and_then(AnswerSchema::for_anthropic)
                .map(|schema| json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}})),
            Protocol::Chat => format.map(|format| {
                let (schema, strict) = format.for_openai();
                let named = json!({"name": "answer", "schema": schema, "strict": strict});
                json!({"response_format": {"type": "json_schema", "json_schema": named}})
            }),
            Protocol::Gemini => None,
            // Left alone, it cuts a long prompt without a word, and forgets the beginning of a long answer.
            Protocol::Ollama => Some(json!({"truncate": false, "shift": false})),
        }
    }

    fn read(&self, reply: CompletionResponse) -> Result<Answer, Refusal> {
        let usage = Usage::of(&reply.usage);
        let refusal = |why: Why, message: String| Err(Refusal::new(why, message).costing(usage));
        let declined = reply.raw["choices"][0]["message"]["refusal"].as_str().filter(|text| !text.is_empty());
        if let Some(text) = declined.filter(|_| self.access.protocol == Protocol::Chat) {
            return refusal(Why::Declined, format!("it refused: {text}"));
        }
        let text = reply.text();
        match reply.finish_reason() {
            Some(FinishReason::ContentFilter) => {
                let told = reply.error.unwrap_or_else(|| "its content filter stopped the answer".to_owned());
                return refusal(Why::Declined, told);
            }
            Some(FinishReason::Length) => {
                let counted = usage.output.map(|n| format!(" after {n} tokens")).unwrap_or_default();
                return refusal(Why::CutOff, format!("its answer was cut off{counted}"));
            }
            // Compatible endpoints have words of their own for an ordinary end.
            Some(FinishReason::Other(reason)) if self.access.protocol != Protocol::Chat || text.trim().is_empty() => {
                return refusal(Why::NoAnswer, format!("its answer is unfinished (finish reason {reason:?})"));
            }
            _ => {}
        }
        if text.trim().is_empty() {
            return refusal(Why::NoAnswer, "its answer holds no text".to_owned());
        }
        Ok(Answer { text, usage })
    }
}

fn spoken(message: &Message) -> Said {
    match message {
        Message::System(text) => Said::system(text.as_str()),
        Message::User(text) => Said::user(text.as_str()),
        Message::Assistant(text) => Said::assistant(text.as_str()),
    }
}

fn schema_of(format: &AnswerSchema) -> Option<schemars::Schema> {
    schemars::Schema::try_from(format.source().clone()).ok()
}

fn refused(error: &ProviderError, transport: &Transport) -> Refusal {
    if let Some(response) = error.provider_response() {
        return Refusal::of_response(response, transport);
    }
    match error {
        ProviderError::Http(http) => match &**http {
            rig_core::http_client::Error::Instance(fault) => match fault.downcast_ref::<Fault>() {
                Some(fault) => Refusal::of_fault(fault),
                None => Refusal::new(Why::NoAnswer, fault.to_string()),
            },
            other => Refusal::new(Why::NoAnswer, other.to_string()),
        },
        ProviderError::Json(error) => {
            Refusal::new(Why::NoAnswer, format!("its answer is not of this protocol: {error}"))
        }
        ProviderError::Truncated => {
            Refusal::new(Why::NoAnswer, "its answer is not of this protocol: it holds no message".to_owned())
        }
        other => Refusal::new(Why::NoAnswer, other.to_string()),
    }
}
