//! What a turn cost, in tokens, as far as the provider said it.

use serde_json::{Map, Value};

/// Token counts of one request, or of all requests of a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All that was read, what came from a cache included.
    pub input: Option<u64>,
    /// All that was written, what was only thought included.
    pub output: Option<u64>,
    /// Parts of the above; 0 is told as little as nothing.
    cached: Option<u64>,
    reasoning: Option<u64>,
}

impl Usage {
    pub fn of(reported: &rig_core::completion::Usage) -> Self {
        Self {
            input: reported.input_tokens,
            output: reported.output_tokens,
            cached: reported.cached_input_tokens.filter(|n| *n > 0),
            reasoning: reported.reasoning_tokens.filter(|n| *n > 0),
        }
    }

    pub fn plus(self, other: Self) -> Self {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (one, other) => one.or(other),
        };
        Self {
            input: sum(self.input, other.input),
            output: sum(self.output, other.output),
            cached: sum(self.cached, other.cached),
            reasoning: sum(self.reasoning, other.reasoning),
        }
    }

    /// `{model, provider, inputTokens, outputTokens}`, the counts `null` where the provider gave none; and
    /// `cachedInputTokens`, `reasoningTokens` where there were any.
    pub fn json(self, model: &str, provider: &str) -> String {
        let count = |n: Option<u64>| n.map_or(Value::Null, Value::from);
        let mut members = Map::from_iter([
            ("model".to_owned(), Value::from(model)),
            ("provider".to_owned(), Value::from(provider)),
            ("inputTokens".to_owned(), count(self.input)),
            ("outputTokens".to_owned(), count(self.output)),
        ]);
        for (name, n) in [("cachedInputTokens", self.cached), ("reasoningTokens", self.reasoning)] {
            members.extend(n.map(|n| (name.to_owned(), Value::from(n))));
        }
        Value::Object(members).to_string()
    }
}
