//! `ctx.agent`: one constrained model turn, no tools.
//!
//! Words: a *model* is named `provider/model-id` by the manifest; a *provider* is an HTTP endpoint that speaks the
//! OpenAI chat completions protocol, set in `dirigent.toml` or known by name (see [`USUAL`]). A *turn* is what the
//! handler asked for; it takes one request, or two when an answer has to be repaired, each with its retries.
//!
//! Invariants: a key goes to the endpoint it was set for and nowhere else, and stands in no message; with a schema,
//! what the handler gets validates against it, whatever the provider promised; an answer is held only up to
//! [`MAX_ANSWER_BYTES`]. Dropping the future of a turn ends it: nothing is left running. A mistake here sends a
//! secret to a stranger, or hands a handler data that it takes for checked.

mod endpoint;
mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use self::endpoint::{Endpoint, Message, Refused, Usage};
use self::schema::AnswerSchema;
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

/// Providers that need no table: their OpenAI-compatible base URL, and the environment variable that usually holds
/// the key (`None`: no key is needed).
const USUAL: &[(&str, &str, Option<&str>)] = &[
    ("anthropic", "https://api.anthropic.com/v1", Some("ANTHROPIC_API_KEY")),
    ("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", Some("GEMINI_API_KEY")),
    ("ollama", "http://127.0.0.1:11434/v1", None),
    ("openai", "https://api.openai.com/v1", Some("OPENAI_API_KEY")),
];

/// `[models.<provider>]` of `dirigent.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct ModelsConfig(pub BTreeMap<String, ProviderConfig>);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Up to and without `/chat/completions`; default: the known one of that provider.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The variable that holds the key. Default: none when `base_url` is set, so that a usual key never goes to
    /// another host; else the usual one.
    #[serde(default)]
    pub api_key_env: Option<String>,
}

impl ModelsConfig {
    /// What is wrong with the settings, each with the name of its key; for a start that refuses bad settings.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (provider, config) in &self.0 {
            if provider.is_empty() || provider.contains('/') {
                problems.push(format!("[models.{provider:?}]: a provider's name is not empty and has no `/`"));
            }
            match &config.base_url {
                Some(url) => problems
                    .extend(endpoint::base_url(url).err().map(|why| format!("models.{provider}.base_url: {why}"))),
                None if usual(provider).is_none() => {
                    problems.push(format!("models.{provider}.base_url is missing; {provider:?} is no known provider"));
                }
                None => {}
            }
        }
        problems
    }
}

fn usual(provider: &str) -> Option<(&'static str, Option<&'static str>)> {
    USUAL.iter().find(|(name, ..)| *name == provider).map(|&(_, url, key)| (url, key))
}

/// The arguments of `ctx.agent`.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentArgs {
    pub prompt: String,
    /// A JSON Schema; the answer is then a value that validates against it.
    #[serde(default)]
    pub json: Option<Value>,
}

/// What a turn gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentReply {
    /// The text as a JSON string, or the validated value.
    pub value_json: String,
    /// `{model, inputTokens, outputTokens}`, summed over the requests; a count is `null` when the provider gave none.
    pub usage_json: String,
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

    /// Performs one turn with the manifest's `requires.model`. Drop the future to cancel it.
    ///
    /// # Errors
    /// [`MODEL_NOT_SET`], [`MODEL_NOT_CONFIGURED`], [`MODEL_FAILED`], [`AGENT_BAD_ARGS`], [`AGENT_BAD_JSON`]; the
    /// message says what to set where.
    pub async fn turn(&self, model: Option<&str>, args: AgentArgs) -> Result<AgentReply, CallError> {
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
        let endpoint = self.endpoint(model)?;
        match schema {
            None => {
                let answer = endpoint.ask(&[Message::User(args.prompt)], None).await?;
                Ok(AgentReply {
                    value_json: Value::from(answer.text).to_string(),
                    usage_json: usage_json(model, answer.usage),
                })
            }
            Some(schema) => value_turn(&endpoint, model, args.prompt, &schema).await,
        }
    }

    fn endpoint(&self, model: &str) -> Result<Endpoint, CallError> {
        let (provider, id) =
            model.split_once('/').filter(|(p, id)| !p.is_empty() && !id.is_empty()).ok_or_else(|| {
                CallError::new(
                    MODEL_NOT_SET,
                    format!("`requires.model` in automation.json must be \"provider/model-id\", not {model:?}"),
                )
            })?;
        let unset = |message: String| CallError::new(MODEL_NOT_CONFIGURED, message);
        let settings = self.config.0.get(provider);
        let set_url = settings.and_then(|settings| settings.base_url.as_deref());
        let (base_url, usual_env) = match (set_url, usual(provider)) {
            (Some(url), _) => (url, None),
            (None, Some(usual)) => usual,
            (None, None) => {
                let known: Vec<&str> = USUAL.iter().map(|(name, ..)| *name).collect();
                return Err(unset(format!(
                    "no model provider named {provider:?} is configured: set `[models.{provider}]` with `base_url` \
                     (any OpenAI-compatible endpoint) and `api_key_env` in dirigent.toml, or name one of {} in \
                     `requires.model`",
                    known.join(", ")
                )));
            }
        };
        let base_url = endpoint::base_url(base_url)
            .map_err(|why| unset(format!("`base_url` in `[models.{provider}]` of dirigent.toml: {why}")))?;
        let key_env = settings.and_then(|settings| settings.api_key_env.as_deref()).or(usual_env);
        let key = match key_env {
            None => None,
            Some(name) => {
                let key = (self.env)(name).map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
                Some(key.ok_or_else(|| {
                    unset(format!(
                        "no key for model provider {provider:?}: set the environment variable {name} for the daemon, \
                         or name another in `api_key_env` of `[models.{provider}]` in dirigent.toml"
                    ))
                })?)
            }
        };
        let bad_key = || unset(format!("the key in {} holds what no header can carry", key_env.unwrap_or_default()));
        let client = match self.http.get() {
            Some(client) => client.clone(),
            None => {
                let client = endpoint::http_client()?;
                self.http.get_or_init(|| client).clone()
            }
        };
        Endpoint::new(client, provider, base_url, id, key, Arc::clone(&self.sleep)).ok_or_else(bad_key)
    }
}

/// A turn that is to give a value: structured output when the endpoint has it, one repair, then rejection.
async fn value_turn(
    endpoint: &Endpoint,
    model: &str,
    prompt: String,
    schema: &AnswerSchema,
) -> Result<AgentReply, CallError> {
    // Said in words too: some endpoints take the schema and ignore it.
    let mut messages = vec![Message::System(schema.instruction()), Message::User(prompt)];
    let mut format = Some(schema);
    let mut usage = Usage::default();
    let mut repaired = false;
    loop {
        let answer = match endpoint.request(&messages, format).await {
            Err(Refused { status: Some(400 | 404 | 415 | 422 | 501), .. }) if format.is_some() => {
                format = None;
                continue;
            }
            outcome => outcome.map_err(|refused| endpoint.explained(refused))?,
        };
        usage = usage.plus(answer.usage);
        let problem = match schema.read(&answer.text) {
            Ok(value) => {
                return Ok(AgentReply { value_json: value.to_string(), usage_json: usage_json(model, usage) });
            }
            Err(problem) => problem,
        };
        if repaired {
            let message =
                format!("the model's answer does not validate against `json`, also after a repair: {problem}");
            return Err(CallError::new(AGENT_BAD_JSON, endpoint.redacted(&message)));
        }
        repaired = true;
        messages.push(Message::Assistant(answer.text));
        messages.push(Message::User(format!(
            "That answer is not valid: {problem}\nAnswer again, with nothing but one JSON value that validates."
        )));
    }
}

fn usage_json(model: &str, usage: Usage) -> String {
    json!({ "model": model, "inputTokens": usage.input, "outputTokens": usage.output }).to_string()
}

#[cfg(test)]
mod tests;
