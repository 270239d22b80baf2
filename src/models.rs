//! `ctx.agent`: one constrained model turn, no tools.
//!
//! Words: a *model* is named `provider/model-id` by the manifest; a *provider* is who answers, at an *endpoint* that is
//! set in `dirigent.toml` or known by name (see [`access`]). A *turn* is what the handler asked for; it takes one request,
//! or two when an answer has to be repaired, or one more when structured output is refused, each with its retries.
//!
//! Invariants: a key goes to the endpoint it was set for and nowhere else, and stands in no message; with a schema,
//! what the handler gets validates against it, whatever the provider promised; an answer is held only up to
//! [`MAX_ANSWER_BYTES`], and is whole: one that was cut off is a refusal. Dropping the future of a turn ends it: nothing
//! is left running. A mistake here sends a secret to a stranger, or hands a handler data that it takes for checked.

mod access;
mod endpoint;
mod refusal;
mod schema;
mod transport;
mod usage;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

pub use self::access::{ModelsConfig, ProviderConfig, check_name};

use self::access::Access;
use self::endpoint::{Endpoint, Message};
use self::schema::AnswerSchema;
use self::transport::Transport;
use self::usage::Usage;
use crate::fire::CallError;

/// No model is named by the manifest, or not as `provider/model-id`.
pub const MODEL_NOT_SET: &str = "model_not_set";
/// The provider is neither set nor known, its settings are wrong, or its key is missing.
pub const MODEL_NOT_CONFIGURED: &str = "model_not_configured";
/// The provider is down, refuses, or answers with what is no answer.
pub const MODEL_FAILED: &str = "model_failed";
/// The arguments of the call are wrong.
pub const AGENT_BAD_ARGS: &str = "agent_bad_args";
/// The answer does not validate, not even after the repair.
pub const AGENT_BAD_JSON: &str = "agent_bad_json";

/// The body of one response, as for every argument and result that crosses between a handler and the daemon.
pub const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// The arguments of `ctx.agent`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentArgs {
    pub prompt: String,
    /// A JSON Schema; the answer is then a value that validates against it.
    #[serde(default)]
    pub json: Option<Value>,
}

/// What became of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The text as a JSON string, or the validated value.
    pub outcome: Result<String, CallError>,
    /// `{model, provider, inputTokens, outputTokens, …}`, summed over the requests; a count is `null` when the provider
    /// gave none. Also of a turn that failed after it had cost something; `None` when nothing was answered.
    pub usage_json: Option<String>,
}

type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;
type Sleep = Arc<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;

/// The providers. Clones share one HTTP client.
#[derive(Clone)]
pub struct Models {
    config: Arc<ModelsConfig>,
    env: Env,
    http: Arc<OnceLock<reqwest::Client>>,
    sleep: Sleep,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Models {
    /// `env` looks up an environment variable.
    pub fn new(config: ModelsConfig, env: Env) -> Self {
        Self {
            config: Arc::new(config),
            env,
            http: Arc::default(),
            sleep: Arc::new(|wait| Box::pin(tokio::time::sleep(wait))),
        }
    }

    /// Performs one turn with the manifest's `requires.model`. Drop the future to cancel it. An overloaded provider is
    /// not waited for beyond `until`, when nobody would be left to have the answer.
    ///
    /// The outcome's errors are [`MODEL_NOT_SET`], [`MODEL_NOT_CONFIGURED`], [`MODEL_FAILED`], [`AGENT_BAD_ARGS`] and
    /// [`AGENT_BAD_JSON`]; the message says what to set where.
    pub async fn turn(&self, until: Instant, model: Option<&str>, args: AgentArgs) -> Turn {
        let mut spent = Spent::default();
        let outcome = self.outcome(until, model, args, &mut spent).await;
        Turn { outcome, usage_json: spent.json }
    }

    async fn outcome(
        &self,
        until: Instant,
        model: Option<&str>,
        args: AgentArgs,
        spent: &mut Spent,
    ) -> Result<String, CallError> {
        let Some(model) = model else {
            return Err(CallError::new(
                MODEL_NOT_SET,
                "no model is set: name one in automation.json, `\"requires\": {\"model\": \"provider/model-id\"}`",
            ));
        };
        if args.prompt.trim().is_empty() {
            return Err(CallError::new(AGENT_BAD_ARGS, "`prompt` must be a text that is not empty"));
        }
        let schema = args.json.map(AnswerSchema::compile).transpose()?;
        let endpoint = self.endpoint(model, until)?;
        let mut conversation = Conversation { endpoint: &endpoint, model, spent };
        match schema {
            None => Ok(Value::from(conversation.text(args.prompt).await?).to_string()),
            Some(schema) => Ok(conversation.value(args.prompt, &schema).await?.to_string()),
        }
    }

    fn endpoint(&self, model: &str, until: Instant) -> Result<Endpoint, CallError> {
        let access = Access::of(model, &self.config, &self.env)?;
        let key = access.key_header()?;
        let client = match self.http.get() {
            Some(client) => client.clone(),
            None => {
                let client = transport::http_client()?;
                self.http.get_or_init(|| client).clone()
            }
        };
        Ok(Endpoint::new(access, Transport::new(client, key, until, Arc::clone(&self.sleep))))
    }
}

/// What a turn has cost by now.
#[derive(Default)]
struct Spent {
    usage: Usage,
    json: Option<String>,
}

/// One turn with an endpoint that is known.
struct Conversation<'t> {
    endpoint: &'t Endpoint,
    model: &'t str,
    spent: &'t mut Spent,
}

impl Conversation<'_> {
    async fn text(&mut self, prompt: String) -> Result<String, CallError> {
        let asked = self.endpoint.ask(&[Message::User(prompt)], None).await;
        match asked {
            Ok(answer) => {
                self.spend(answer.usage);
                Ok(answer.text)
            }
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    /// Structured output where the endpoint has it, one repair, then rejection.
    async fn value(&mut self, prompt: String, schema: &AnswerSchema) -> Result<Value, CallError> {
        // Said in words too: some endpoints take the schema and ignore it, or know only a part of it.
        let mut messages = vec![Message::System(schema.instruction()), Message::User(prompt)];
        let mut format = Some(schema);
        let mut repaired = false;
        loop {
            let answer = match self.endpoint.ask(&messages, format).await {
                Err(refusal) if format.is_some() && refusal.may_be_about_format() => {
                    format = None;
                    continue;
                }
                Err(refusal) => return Err(self.refused(&refusal)),
                Ok(answer) => answer,
            };
            self.spend(answer.usage);
            let problem = match schema.read(&answer.text) {
                Ok(value) => return Ok(value),
                Err(problem) => problem,
            };
            if repaired {
                // Read again without the key: a message shows only the beginning of a value, and could show half of it.
                let problem = schema.read(&self.endpoint.access().redacted(&answer.text)).err().unwrap_or(problem);
                let told = "the model's answer does not validate against `json`, also after a repair";
                return Err(CallError::new(AGENT_BAD_JSON, format!("{told}: {problem}")));
            }
            repaired = true;
            messages.push(Message::Assistant(answer.text));
            messages.push(Message::User(format!(
                "That answer is not valid: {problem}\nAnswer again, with nothing but one JSON value that validates."
            )));
        }
    }

    fn refused(&mut self, refusal: &refusal::Refusal) -> CallError {
        if refusal.usage != Usage::default() {
            self.spend(refusal.usage);
        }
        refusal.explained(self.endpoint.access())
    }

    fn spend(&mut self, usage: Usage) {
        self.spent.usage = self.spent.usage.plus(usage);
        self.spent.json = Some(self.spent.usage.json(self.model, &self.endpoint.access().provider));
    }
}

#[cfg(test)]
mod tests;
