//! JSON Schemas from `app.json`: compiled once, and failures said in words.
//!
//! Invariants: nothing is ever fetched, so a `$ref` to another document is a broken schema. A message shows at most
//! a few problems and a bounded part of each, because both the schema and the value come from outside.

use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

use crate::tools::shortened;

/// Problems shown of one value; the rest is counted. A form needs the first, a model profits from a few.
const SHOWN: usize = 4;
/// Characters shown of one problem, which may quote the value.
const SHOWN_CHARS: usize = 300;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema(Validator);

/// Why a value does not validate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// All problems, or the first few, in one line.
    pub message: String,
    /// JSON pointer to the first failing value (for a missing property, to where it should be); `None` for the whole.
    pub path: Option<String>,
}

impl Schema {
    /// Draft 2020-12 unless `$schema` names another.
    ///
    /// # Errors
    /// The reason why the schema is none.
    pub fn compile(schema: &Value) -> Result<Self, String> {
        jsonschema::options()
            .offline()
            .build(schema)
            .map(Self)
            .map_err(|error| shortened(&error.to_string(), SHOWN_CHARS))
    }

    /// # Errors
    /// [`Refusal`] when the value does not validate.
    pub fn check(&self, value: &Value) -> Result<(), Refusal> {
        let mut errors = self.0.iter_errors(value);
        let Some(first) = errors.next() else { return Ok(()) };
        let path = pointer(&first);
        let mut message = described(&first);
        // Counting the problems of a huge value must not cost more than saying that there are many.
        let mut more = 0;
        for error in errors.take(100) {
            if more + 1 < SHOWN {
                message.push_str("; ");
                message.push_str(&described(&error));
            }
            more += 1;
        }
        if more >= SHOWN {
            message.push_str(&format!("; and {} more", more + 1 - SHOWN));
        }
        Err(Refusal { message, path: (!path.is_empty()).then_some(path) })
    }
}

fn described(error: &jsonschema::ValidationError) -> String {
    let text = shortened(&error.to_string(), SHOWN_CHARS);
    match error.instance_path().as_str() {
        "" => text,
        path => format!("{}: {text}", shortened(path, SHOWN_CHARS)),
    }
}

fn pointer(error: &jsonschema::ValidationError) -> String {
    let at = error.instance_path().as_str();
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default().replace('~', "~0").replace('/', "~1");
            format!("{at}/{name}")
        }
        _ => at.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_checked_and_failures_located() {
        let schema = json!({
            "type": "object",
            "required": ["text", "a/b"],
            "properties": {
                "text": {"type": "string", "minLength": 1},
                "a/b": {},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "additionalProperties": false,
        });
        let schema = Schema::compile(&schema).unwrap();
        for (value, expected) in [
            (json!({"text": "x", "a/b": 1}), None),
            (json!({"text": "", "a/b": 1}), Some((Some("/text"), "/text: \"\" is shorter than 1 character"))),
            (json!({"text": "x"}), Some((Some("/a~1b"), "\"a/b\" is a required property"))),
            (json!({"text": "x", "a/b": 1, "tags": ["a", 2]}), Some((Some("/tags/1"), "2 is not of type \"string\""))),
            (json!([]), Some((None, "[] is not of type \"object\""))),
        ] {
            let outcome = schema.check(&value).err();
            assert_eq!(outcome.is_some(), expected.is_some(), "{value}: {outcome:?}");
            if let (Some(refusal), Some((path, part))) = (outcome, expected) {
                assert_eq!(refusal.path.as_deref(), path, "{value}");
                assert!(refusal.message.contains(part), "{value}: {}", refusal.message);
            }
        }
    }

    #[test]
    fn messages_stay_short_whatever_the_value() {
        let schema = Schema::compile(&json!({"items": {"type": "string", "maxLength": 3}})).unwrap();
        let value = Value::Array((0..500).map(|_| Value::String("y".repeat(10_000))).collect());
        let refusal = schema.check(&value).unwrap_err();
        assert!(refusal.message.len() < 2000, "{}", refusal.message.len());
        assert!(refusal.message.contains("and 97 more"), "{}", refusal.message);
    }

    #[test]
    fn a_broken_or_remote_schema_is_refused() {
        for schema in [
            json!({"type": "strng"}),
            json!({"$ref": "https://example.com/schema.json"}),
            json!({"$ref": "file:///etc/passwd"}),
            json!({"pattern": "("}),
            json!(7),
        ] {
            assert!(Schema::compile(&schema).is_err(), "{schema}");
        }
    }
}
