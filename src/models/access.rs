//! Which endpoint a model's name stands for: what is set, what is usual, and where the key is.
//!
//! `[models.<provider>]` with one of the known names sets that provider's own root, and its own protocol is spoken
//! there; with any other name, an OpenAI-compatible endpoint. A usual key goes to the usual host only: with a
//! `base_url`, the variable that holds the key must be named.

use std::collections::BTreeMap;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use super::{Env, MODEL_NOT_CONFIGURED, MODEL_NOT_SET};
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::fire::CallError;

/// Characters of a model's name that a message repeats.
const SHOWN_CHARS: usize = 100;

/// What is spoken at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The Messages API.
    Anthropic,
    /// OpenAI's Chat Completions, which most others offer too.
    Chat,
    /// `generateContent`.
    Gemini,
    /// Ollama's own `/api/chat`.
    Ollama,
}

/// A provider that needs no table.
struct Usual {
    name: &'static str,
    protocol: Protocol,
    base_url: &'static str,
    /// Variables that usually hold the key, the first that is set counts; none where no key is needed.
    keys: &'static [&'static str],
}

const USUAL: &[Usual] = &[
    Usual {
        name: "anthropic",
        protocol: Protocol::Anthropic,
        base_url: "https://api.anthropic.com",
        keys: &["ANTHROPIC_API_KEY"],
    },
    Usual {
        name: "gemini",
        protocol: Protocol::Gemini,
        base_url: "https://generativelanguage.googleapis.com",
        keys: &["GEMINI_API_KEY", "GOOGLE_API_KEY"],
    },
    Usual { name: "ollama", protocol: Protocol::Ollama, base_url: "http://127.0.0.1:11434", keys: &[] },
    Usual {
        name: "openai",
        protocol: Protocol::Chat,
        base_url: "https://api.openai.com/v1",
        keys: &["OPENAI_API_KEY"],
    },
];

/// Where Ollama listens, as its own programs read it.
pub const OLLAMA_HOST: &str = "OLLAMA_HOST";
const OLLAMA_PORT: u16 = 11434;

/// What a base URL may end with out of habit, because the provider's documentation shows it; the protocol adds its own.
const HABITS: &[(Protocol, &[&str])] = &[
    (Protocol::Anthropic, &["/v1/messages", "/v1"]),
    (Protocol::Chat, &["/chat/completions"]),
    (Protocol::Gemini, &["/v1beta/openai", "/v1beta"]),
    (Protocol::Ollama, &["/api/chat", "/api", "/v1"]),
];

/// `[models.<provider>]` of `dirigent.toml`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct ModelsConfig(pub BTreeMap<String, ProviderConfig>);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Of an OpenAI-compatible endpoint, up to and without `/chat/completions`; of a known provider, its root.
    /// Default: the known one of that provider.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The variable that holds the key. Default: none when `base_url` is set, so that a usual key never goes to
    /// another host; else the usual one.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// The longest answer, in tokens. Default: what the provider does without being told.
    #[serde(default)]
    pub max_tokens: Option<u64>,
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
                Some(url) => {
                    problems.extend(checked_url(url).err().map(|why| format!("models.{provider}.base_url: {why}")))
                }
                None if usual(provider).is_none() => {
                    problems.push(format!("models.{provider}.base_url is missing; {}", unknown(self, provider)));
                }
                None => {}
            }
            if config.api_key_env.as_deref().is_some_and(|name| name.is_empty() || name.contains(['=', '\0'])) {
                problems.push(format!("models.{provider}.api_key_env must be the name of an environment variable"));
            }
            if config.max_tokens.is_some_and(|tokens| !(1..=u64::from(u32::MAX)).contains(&tokens)) {
                problems.push(format!("models.{provider}.max_tokens must be from 1 to {}", u32::MAX));
            }
        }
        problems
    }
}

fn usual(provider: &str) -> Option<&'static Usual> {
    USUAL.iter().find(|usual| usual.name == provider)
}

/// Who is not known, and who might have been meant.
fn unknown(config: &ModelsConfig, provider: &str) -> String {
    let own = config.0.keys().map(String::as_str).filter(|name| *name != provider);
    let known: Vec<&str> = USUAL.iter().map(|usual| usual.name).chain(own).collect();
    let near = nearest(provider, &known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
    format!("{:?} is no known provider{near}", shortened(provider, SHOWN_CHARS))
}

/// Whether a manifest may name this model, whatever keys there are; for who only reads.
///
/// # Errors
/// [`MODEL_NOT_SET`] for what is no `provider/model-id`, [`MODEL_NOT_CONFIGURED`] for a provider that is neither known
/// nor set.
pub fn check_name(model: &str, config: &ModelsConfig) -> Result<(), CallError> {
    let (provider, _) = named(model)?;
    let is_set = config.0.get(provider).is_some_and(|settings| settings.base_url.is_some());
    if is_set || usual(provider).is_some() { Ok(()) } else { Err(no_provider(config, provider)) }
}

/// Provider and model id.
fn named(model: &str) -> Result<(&str, &str), CallError> {
    model.split_once('/').filter(|(provider, id)| !provider.is_empty() && !id.is_empty()).ok_or_else(|| {
        let shown = shortened(model, SHOWN_CHARS);
        let rule = format!("`requires.model` in automation.json must be \"provider/model-id\", not {shown:?}");
        CallError::new(MODEL_NOT_SET, rule)
    })
}

fn no_provider(config: &ModelsConfig, provider: &str) -> CallError {
    let message = format!(
        "{}: `requires.model` may name one of {}, or any OpenAI-compatible endpoint that `[models.{}]` in \
         dirigent.toml sets with `base_url` and `api_key_env`",
        unknown(config, provider),
        USUAL.iter().map(|usual| usual.name).collect::<Vec<_>>().join(", "),
        shortened(provider, SHOWN_CHARS),
    );
    CallError::new(MODEL_NOT_CONFIGURED, message)
}

/// One model at one endpoint, and the key to it.
pub struct Access {
    pub protocol: Protocol,
    pub provider: String,
    /// As the provider calls it.
    pub model_id: String,
    /// Without a trailing slash, and without what the protocol adds itself.
    pub base_url: String,
    /// True when `base_url` is set, here or by [`OLLAMA_HOST`].
    pub is_set: bool,
    pub max_tokens: Option<u64>,
    pub key: Option<Key>,
}

/// A key and the variable that it came from.
pub struct Key {
    secret: String,
    pub variable: String,
}

impl Access {
    /// What `requires.model` stands for.
    ///
    /// # Errors
    /// [`MODEL_NOT_SET`] for what is no `provider/model-id`, [`MODEL_NOT_CONFIGURED`] for a provider without address or
    /// key; the message says what to set where.
    pub fn of(model: &str, config: &ModelsConfig, env: &Env) -> Result<Self, CallError> {
        let (provider, id) = named(model)?;
        let unset = |message: String| CallError::new(MODEL_NOT_CONFIGURED, message);
        let (settings, usual) = (config.0.get(provider), usual(provider));
        let protocol = usual.map_or(Protocol::Chat, |usual| usual.protocol);
        let set_url = settings.and_then(|settings| settings.base_url.clone());
        let (base_url, keys, source) = match (set_url, usual) {
            (Some(url), _) => (url, &[][..], format!("`base_url` of `[models.{provider}]` in dirigent.toml")),
            (None, Some(usual)) if protocol == Protocol::Ollama => match value_of(env, OLLAMA_HOST) {
                Some(host) => (ollama_url(&host), usual.keys, format!("the environment variable {OLLAMA_HOST}")),
                None => (usual.base_url.to_owned(), usual.keys, String::new()),
            },
            (None, Some(usual)) => (usual.base_url.to_owned(), usual.keys, String::new()),
            (None, None) => return Err(no_provider(config, provider)),
        };
        let mut base_url = checked_url(&base_url).map_err(|why| unset(format!("{source}: {why}")))?;
        let habits = HABITS.iter().filter(|(of, _)| *of == protocol).flat_map(|(_, endings)| *endings);
        if let Some(ending) = habits.into_iter().find(|ending| base_url.ends_with(**ending)) {
            base_url.truncate(base_url.len() - ending.len());
        }
        let model_id = match protocol {
            Protocol::Gemini => gemini_id(id)?,
            _ => id.to_owned(),
        };
        let key = match settings.and_then(|settings| settings.api_key_env.as_deref()) {
            Some(name) => Some(key_in(env, &[name])),
            None if keys.is_empty() => None,
            None => Some(key_in(env, keys)),
        };
        let key = key.transpose().map_err(|missing| {
            unset(format!(
                "no key for model provider {provider:?}: set the environment variable {missing} for the daemon, or \
                 name another in `api_key_env` of `[models.{provider}]` in dirigent.toml"
            ))
        })?;
        Ok(Self {
            protocol,
            provider: provider.to_owned(),
            model_id,
            base_url,
            is_set: !source.is_empty(),
            max_tokens: settings.and_then(|settings| settings.max_tokens),
            key,
        })
    }

    /// The header that carries the key.
    ///
    /// # Errors
    /// [`MODEL_NOT_CONFIGURED`] for a key that no header can carry.
    pub fn key_header(&self) -> Result<Option<(HeaderName, HeaderValue)>, CallError> {
        let Some(key) = &self.key else { return Ok(None) };
        let (name, text) = match self.protocol {
            Protocol::Anthropic => (HeaderName::from_static("x-api-key"), key.secret.clone()),
            Protocol::Gemini => (HeaderName::from_static("x-goog-api-key"), key.secret.clone()),
            Protocol::Chat | Protocol::Ollama => (AUTHORIZATION, format!("Bearer {}", key.secret)),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| {
            let message = format!("the key in {} holds what no header can carry", key.variable);
            CallError::new(MODEL_NOT_CONFIGURED, message)
        })?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }

    /// Providers quote keys in their messages, and a misled model may repeat anything.
    pub fn redacted(&self, text: &str) -> String {
        match &self.key {
            Some(key) => text.replace(key.secret.as_str(), "[key]"),
            None => text.to_owned(),
        }
    }
}

fn value_of(env: &Env, name: &str) -> Option<String> {
    env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// The key in the first variable that has one, or the names of all.
fn key_in(env: &Env, names: &[&str]) -> Result<Key, String> {
    let found = names.iter().find_map(|name| Some(Key { secret: value_of(env, name)?, variable: (*name).to_owned() }));
    found.ok_or_else(|| names.join(" or "))
}

/// A base URL without its trailing slash, or the rule that the text breaks.
fn checked_url(text: &str) -> Result<String, String> {
    let url = Url::parse(text).map_err(|error| format!("{error}; it must be such as https://host/v1"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("it must start with http:// or https:// and name a host".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err("it may hold no user, password, query or fragment; keys go into the environment".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// What `OLLAMA_HOST` means: `host`, `host:port`, `:port` or a URL. An address to listen on everywhere is asked at home.
fn ollama_url(host: &str) -> String {
    let host = host.trim_matches(['"', '\'']);
    let (scheme, rest) = host.split_once("://").unwrap_or(("http", host));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    // A scheme that was named has its own usual port.
    let port = if host.contains("://") { None } else { Some(OLLAMA_PORT) };
    let bracketed = authority.rfind(']').map_or(0, |at| at + 1);
    let (name, named_port) = match authority[bracketed..].rfind(':') {
        Some(at) => (&authority[..bracketed + at], Some(&authority[bracketed + at + 1..])),
        None => (authority, None),
    };
    let name = if matches!(name, "" | "0.0.0.0" | "[::]") { "127.0.0.1" } else { name };
    let port = named_port.map(str::to_owned).or(port.map(|port| port.to_string()));
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{name}{port}/{path}")
}

/// The id stands in the address there, so it must not be able to name another one.
fn gemini_id(id: &str) -> Result<String, CallError> {
    let id = id.strip_prefix("models/").unwrap_or(id);
    let fits = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fits && !id.is_empty() && !id.contains("..") {
        return Ok(id.to_owned());
    }
    let shown = shortened(id, SHOWN_CHARS);
    let rule =
        format!("a Gemini model is named such as \"gemini/gemini-2.5-flash\" in `requires.model`, not {shown:?}");
    Err(CallError::new(MODEL_NOT_SET, rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        for (config, part) in [
            ("[openai]", None),
            ("[openai]\napi_key_env = \"MY_KEY\"\nmax_tokens = 100", None),
            ("[x]\nbase_url = \"https://host/v1\"", None),
            ("[x]\napi_key_env = \"K\"", Some("models.x.base_url is missing; \"x\" is no known provider")),
            ("[antropic]", Some("did you mean \"anthropic\"?")),
            ("[x]\nbase_url = \"host/v1\"", Some("models.x.base_url")),
            ("[x]\nbase_url = \"file:///x\"", Some("http://")),
            ("[x]\nbase_url = \"https://u:p@host\"", Some("no user, password")),
            ("[x]\nbase_url = \"https://host?key=1\"", Some("query")),
            ("[openai]\napi_key_env = \"\"", Some("models.openai.api_key_env must be the name")),
            ("[openai]\nmax_tokens = 0", Some("models.openai.max_tokens must be from 1")),
            ("[\"a/b\"]\nbase_url = \"https://host\"", Some("no `/`")),
        ] {
            let problems = toml::from_str::<ModelsConfig>(config).unwrap().problems();
            match part {
                None => assert!(problems.is_empty(), "{config}: {problems:?}"),
                Some(part) => assert!(problems.iter().any(|problem| problem.contains(part)), "{config}: {problems:?}"),
            }
        }
        assert!(toml::from_str::<ModelsConfig>("[x]\nbase_uri = \"y\"").is_err());
    }

    #[test]
    fn an_endpoint_is_known_by_name_or_by_its_settings() {
        let config = "[proxy]\nbase_url = \"https://proxy/v1/\"\napi_key_env = \"PROXY_KEY\"\n\
                      [anthropic]\nbase_url = \"https://claude.example/v1\"\n\
                      [gemini]\nbase_url = \"https://g/v1beta/openai\"\napi_key_env = \"PROXY_KEY\"";
        let config: ModelsConfig = toml::from_str(config).unwrap();
        let plain = ModelsConfig::default();
        let set = |names: &'static [&'static str]| -> Env {
            std::sync::Arc::new(move |name| {
                let (name, value) = names.chunks(2).map(|pair| (pair[0], pair[1])).find(|(n, _)| *n == name)?;
                Some(value.to_owned()).filter(|_| !name.is_empty())
            })
        };
        let key = "Bearer k";
        for (config, model, env, base_url, header) in [
            (&plain, "openai/gpt-5", &["OPENAI_API_KEY", " k\n"][..], "https://api.openai.com/v1", key),
            (&plain, "anthropic/c", &["ANTHROPIC_API_KEY", "k"], "https://api.anthropic.com", "k"),
            (&plain, "gemini/g", &["GOOGLE_API_KEY", "k"], "https://generativelanguage.googleapis.com", "k"),
            (
                &plain,
                "gemini/g",
                &["GOOGLE_API_KEY", "o", "GEMINI_API_KEY", "k"],
                "https://generativelanguage.googleapis.com",
                "k",
            ),
            (&plain, "ollama/q:8b", &[], "http://127.0.0.1:11434", ""),
            (&plain, "ollama/q", &["OLLAMA_HOST", "gpu"], "http://gpu:11434", ""),
            (&plain, "ollama/q", &["OLLAMA_HOST", "0.0.0.0:99"], "http://127.0.0.1:99", ""),
            (&plain, "ollama/q", &["OLLAMA_HOST", ":99"], "http://127.0.0.1:99", ""),
            (&plain, "ollama/q", &["OLLAMA_HOST", "[::1]"], "http://[::1]:11434", ""),
            (&plain, "ollama/q", &["OLLAMA_HOST", "[::1]:99"], "http://[::1]:99", ""),
            (&plain, "ollama/q", &["OLLAMA_HOST", "https://gpu.example/up/"], "https://gpu.example/up", ""),
            (&config, "proxy/a/b", &["PROXY_KEY", "k"], "https://proxy/v1", key),
            // A usual key is not for another host.
            (&config, "anthropic/c", &["ANTHROPIC_API_KEY", "k"], "https://claude.example", ""),
            (&config, "gemini/g", &["PROXY_KEY", "k", "GEMINI_API_KEY", "o"], "https://g", "k"),
        ] {
            let access = Access::of(model, config, &set(env)).unwrap();
            assert_eq!(access.base_url, base_url, "{model} {env:?}");
            let header_found = access.key_header().unwrap().map(|(_, value)| value.to_str().unwrap().to_owned());
            assert_eq!(header_found.unwrap_or_default(), header, "{model} {env:?}");
        }
        for (model, env, code, part) in [
            ("gemini/x/../y", &["GEMINI_API_KEY", "k"][..], MODEL_NOT_SET, "gemini-2.5-flash"),
            ("gemini/x?y", &["GEMINI_API_KEY", "k"], MODEL_NOT_SET, "gemini-2.5-flash"),
            ("gemini/models/", &["GEMINI_API_KEY", "k"], MODEL_NOT_SET, "gemini-2.5-flash"),
            ("gemini/x", &[], MODEL_NOT_CONFIGURED, "GEMINI_API_KEY or GOOGLE_API_KEY"),
            ("ollama/x", &["OLLAMA_HOST", "a b"], MODEL_NOT_CONFIGURED, "the environment variable OLLAMA_HOST: "),
            ("openia/x", &[], MODEL_NOT_CONFIGURED, "\"openia\" is no known provider; did you mean \"openai\"?"),
        ] {
            let error = Access::of(model, &plain, &set(env)).map(|_| ()).unwrap_err();
            assert_eq!(error.code, code, "{model}: {}", error.message);
            assert!(error.message.contains(part), "{model}: {}", error.message);
        }
    }
}
