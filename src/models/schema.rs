//! The `json` of a turn: what the model is told, and how its answer is judged.

use serde_json::{Map, Value};

use super::AGENT_BAD_ARGS;
use crate::core::json_depth::{is_too_deep, too_deep};
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

    /// What is sent to OpenAI, and whether it is enforced to the letter. That takes closed objects with nothing optional;
    /// any other schema is sent as it is, as a strong hint.
    pub fn for_openai(&self) -> (Value, bool) {
        match closed(&self.source) {
            Some(schema) if self.source["type"] == "object" && is_all_required(&schema) => (schema, true),
            _ => (self.source.clone(), false),
        }
    }

    /// What is sent to Anthropic: closed, and without the bounds that are not taken there; the answer is held to them
    /// afterwards. `None` when the schema is outside of what can be enforced, and words must do.
    pub fn for_anthropic(&self) -> Option<Value> {
        let mut schema = closed(&self.source)?;
        for_each_subschema(&mut schema, &|members| {
            for bound in NO_BOUNDS {
                members.shift_remove(*bound);
            }
        });
        Some(schema)
    }

    /// The value in an answer, or what is wrong with it.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let value: Value = serde_json::from_str(unfenced(text)).map_err(|error| format!("it is no JSON: {error}"))?;
        if is_too_deep(unfenced(text)) {
            return Err(too_deep("it"));
        }
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

/// Bounds that Anthropic's structured output refuses.
const NO_BOUNDS: &[&str] = &[
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
];

/// Keywords that say nothing about the members of an object.
const PLAIN: &[&str] = &[
    "$comment",
    "$ref",
    "$schema",
    "const",
    "default",
    "deprecated",
    "description",
    "enum",
    "examples",
    "format",
    "pattern",
    "required",
    "title",
    "type",
];

/// The schema with every object closed that names its properties and does not say whether it takes others; what
/// validates against it, validates against the schema too. `None` when closing could change more than that, as in
/// objects with free names and in schemas that are combined with others.
fn closed(schema: &Value) -> Option<Value> {
    let members = schema.as_object()?;
    let mut narrowed = Map::new();
    for (keyword, value) in members {
        let value = match keyword.as_str() {
            "properties" | "$defs" | "definitions" => {
                let named = value.as_object()?.iter().map(|(name, schema)| Some((name.clone(), closed(schema)?)));
                Value::Object(named.collect::<Option<_>>()?)
            }
            "items" => closed(value)?,
            "anyOf" => Value::Array(value.as_array()?.iter().map(closed).collect::<Option<_>>()?),
            "additionalProperties" if *value == Value::Bool(false) => value.clone(),
            word if PLAIN.contains(&word) || NO_BOUNDS.contains(&word) => value.clone(),
            _ => return None,
        };
        narrowed.insert(keyword.clone(), value);
    }
    let is_object = schema["type"] == "object"
        || schema["type"].as_array().is_some_and(|types| types.iter().any(|kind| kind == "object"));
    if is_object || members.contains_key("properties") {
        let is_alone = ["anyOf", "$ref"].iter().all(|word| !members.contains_key(*word));
        if !is_object || !is_alone || !members.contains_key("properties") {
            return None;
        }
        narrowed.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    // A value of any kind is nothing that can be enforced.
    let is_said = ["type", "enum", "const", "anyOf", "$ref"].iter().any(|word| members.contains_key(*word));
    is_said.then_some(Value::Object(narrowed))
}

/// Of a schema from [`closed`].
fn is_all_required(schema: &Value) -> bool {
    let is_required =
        |name: &String| schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.is_none_or(|properties| properties.keys().all(is_required)) && subschemas(schema).all(is_all_required)
}

/// Those right below, in a schema from [`closed`].
fn subschemas(schema: &Value) -> impl Iterator<Item = &Value> {
    let named = ["properties", "$defs", "definitions"].into_iter().filter_map(|word| schema[word].as_object());
    let listed = schema["anyOf"].as_array().into_iter().flatten();
    named.flat_map(Map::values).chain(listed).chain(schema.get("items"))
}

/// Changes every schema in a schema from [`closed`], itself included.
fn for_each_subschema(schema: &mut Value, change: &impl Fn(&mut Map<String, Value>)) {
    let Some(members) = schema.as_object_mut() else { return };
    change(members);
    for (keyword, value) in members {
        match (keyword.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(named)) => {
                named.values_mut().for_each(|schema| for_each_subschema(schema, change));
            }
            ("anyOf", Value::Array(listed)) => listed.iter_mut().for_each(|schema| for_each_subschema(schema, change)),
            ("items", schema) => for_each_subschema(schema, change),
            _ => {}
        }
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
    fn what_can_be_enforced_is_closed_and_the_rest_left_alone() {
        let a = |schema: Value| json!({"type": "object", "properties": {"a": schema}, "required": ["a"]});
        let int = json!({"type": "integer"});
        // The schema; whether Anthropic can enforce it; whether OpenAI can.
        for (schema, anthropic, openai) in [
            (a(int.clone()), true, true),
            (json!({"type": "object", "properties": {"a": int, "b": int}, "required": ["a"]}), true, false),
            (a(json!({"type": "array", "items": {"type": ["string", "null"]}})), true, true),
            (a(json!({"anyOf": [a(int.clone()), {"type": "null"}]})), true, true),
            (a(json!({"type": "object", "properties": {"b": int}})), true, false),
            (a(json!({"enum": ["x", "y"]})), true, true),
            (json!({"type": "array", "items": int}), true, false),
            (a(json!({})), false, false),
            (a(json!(true)), false, false),
            (a(json!({"type": "object"})), false, false),
            (json!({"type": "object"}), false, false),
            (json!({"type": "object", "properties": {"a": int}, "additionalProperties": int}), false, false),
            (json!({"type": "object", "properties": {"a": int}, "anyOf": [{"required": ["a"]}]}), false, false),
            (json!({"allOf": [a(int.clone()), {"type": "object", "properties": {"b": int}}]}), false, false),
            (json!({"properties": {"a": int}}), false, false),
            (json!(true), false, false),
        ] {
            let compiled = AnswerSchema::compile(schema.clone()).unwrap();
            assert_eq!(compiled.for_anthropic().is_some(), anthropic, "{schema}");
            let (sent, strict) = compiled.for_openai();
            assert_eq!(strict, openai, "{schema}");
            assert!(strict || sent == schema, "{schema}: {sent}");
        }
    }

    #[test]
    fn bounds_are_taken_out_of_schemas_and_not_of_names() {
        let schema = json!({"type": "object", "required": ["minimum"], "properties": {
            "minimum": {"type": "integer", "minimum": 1, "default": {"minimum": 2}},
            "list": {"type": "array", "maxItems": 2, "items": {"anyOf": [{"type": "string", "maxLength": 9}]}},
        }});
        let compiled = AnswerSchema::compile(schema).unwrap();
        assert_eq!(
            compiled.for_anthropic().unwrap(),
            json!({"type": "object", "required": ["minimum"], "additionalProperties": false, "properties": {
                "minimum": {"type": "integer", "default": {"minimum": 2}},
                "list": {"type": "array", "items": {"anyOf": [{"type": "string"}]}},
            }})
        );
        assert!(compiled.read(r#"{"minimum": 0}"#).is_err(), "the answer is held to them all the same");
    }
}
