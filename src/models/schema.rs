//! The `json` of a turn: what the model is told, and how its answer is judged.

use serde_json::Value;

use super::AGENT_BAD_ARGS;
use crate::core::json_schema::Schema;
use crate::fire::CallError;

/// Problems told to the model; the first few say what the rest repeat.
const SHOWN: usize = 8;

/// A compiled schema with its text.
pub struct AnswerSchema {
    source: Value,
    compiled: Schema,
}

impl AnswerSchema {
    /// Draft 2020-12 unless `$schema` names another; nothing is fetched.
    ///
    /// # Errors
    /// [`AGENT_BAD_ARGS`] when it is no schema.
    pub fn compile(source: Value) -> Result<Self, CallError> {
        match Schema::compile(&source) {
            Ok(compiled) => Ok(Self { source, compiled }),
            Err(broken) => Err(CallError::new(AGENT_BAD_ARGS, format!("`json` is no valid JSON Schema: {broken}"))),
        }
    }

    pub fn source(&self) -> &Value {
        &self.source
    }

    /// What stands before the prompt.
    pub fn instruction(&self) -> String {
        format!(
            "Answer with nothing but one JSON value, without code fences or comments, that validates against this \
             JSON Schema:\n{}",
            self.source
        )
    }

    /// True when providers can enforce the schema to the letter: every object names all its properties as required
    /// and allows no others. Otherwise it is a strong hint only, and asking for more is refused by some.
    pub fn is_strict(&self) -> bool {
        self.source.get("type").is_some_and(|kind| kind == "object") && objects_are_closed(&self.source)
    }

    /// The value in an answer, or what is wrong with it.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let value: Value = serde_json::from_str(unfenced(text)).map_err(|error| format!("it is no JSON: {error}"))?;
        match self.compiled.check(&value, "", SHOWN) {
            Ok(()) => Ok(value),
            Err(mismatch) => Err(mismatch.message),
        }
    }
}

/// The text within one code fence around everything, which models add by habit.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inner = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    inner.map_or(text, |inner| inner.trim_start_matches(|c: char| c.is_ascii_alphanumeric()).trim())
}

fn objects_are_closed(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            let here = match fields.get("properties").and_then(Value::as_object) {
                Some(properties) => {
                    let required = fields.get("required").and_then(Value::as_array);
                    let is_required = |name: &String| required.is_some_and(|names| names.iter().any(|n| n == name));
                    fields.get("additionalProperties") == Some(&Value::Bool(false))
                        && properties.keys().all(is_required)
                }
                None => fields.get("type").is_none_or(|kind| kind != "object"),
            };
            here && fields.values().all(objects_are_closed)
        }
        Value::Array(items) => items.iter().all(objects_are_closed),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read_and_judged() {
        let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
        let schema = AnswerSchema::compile(schema).unwrap();
        for (text, expected) in [
            (r#"{"n": 1}"#, Ok(json!({"n": 1}))),
            ("\n```json\n{\"n\": 2}\n```\n", Ok(json!({"n": 2}))),
            ("```\n{\"n\": 3}```", Ok(json!({"n": 3}))),
            (r#"Sure! {"n": 1}"#, Err("it is no JSON")),
            ("", Err("it is no JSON")),
            (r#"{"n": "x"}"#, Err("/n: \"x\" is not of type \"integer\"")),
            ("{}", Err("\"n\" is a required property")),
        ] {
            match (schema.read(text), expected) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{text}"),
                (Err(problem), Err(part)) => assert!(problem.contains(part), "{text}: {problem}"),
                (found, wanted) => panic!("{text}: {found:?}, not {wanted:?}"),
            }
        }
        assert!(schema.read(&format!("{{\"n\": \"{}\"}}", "x".repeat(100_000))).unwrap_err().len() < 2000);
    }

    #[test]
    fn a_schema_is_strict_when_every_object_is_closed() {
        for (schema, strict) in [
            (
                json!({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": false}),
                true,
            ),
            (json!({"type": "object", "properties": {"a": {}}, "additionalProperties": false}), false),
            (json!({"type": "object", "properties": {"a": {}}, "required": ["a"]}), false),
            (json!({"type": "object"}), false),
            (json!({"type": "array", "items": {"type": "string"}}), false),
            (
                json!({"type": "object", "required": ["a"], "additionalProperties": false,
                       "properties": {"a": {"type": "array", "items": {"type": "object"}}}}),
                false,
            ),
        ] {
            assert_eq!(AnswerSchema::compile(schema.clone()).unwrap().is_strict(), strict, "{schema}");
        }
    }
}
