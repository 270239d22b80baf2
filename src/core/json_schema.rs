//! JSON Schemas that come from outside, and values judged by them: the one room for it.
//!
//! Schemas stand in manifests and in `app.json`, and handlers hand them to `ctx.agent`; people and models write them.
//! A *fault* is something wrong with a schema, a *mismatch* something wrong with a value.
//!
//! Invariants: nothing is ever fetched, whatever `$ref` says; matching a pattern costs a bounded number of steps; a
//! message shows a few problems and a bounded part of each, however large the schema or the value. What compiles once
//! compiles again, so what validation has accepted also runs. A mistake here lets a schema reach the network or a
//! file, or stops a run over a value that is right.

use std::fmt;

use jsonschema::{PatternOptions, ReferencingError, ValidationError, Validator};
use serde_json::Value;

use crate::core::shortened::shortened;

/// Steps that one pattern may take on one string. The usual default allows ten times as many, which a hostile pattern
/// turns into seconds.
const PATTERN_STEPS: usize = 100_000;

/// Faults that are reported of one schema: one wrong level usually makes all below it wrong.
const MAX_FAULTS: usize = 10;

/// Faults that the one-line text of a broken schema shows.
const FAULTS_IN_LINE: usize = 3;

/// How deep a culprit is looked for; JSON text nests no deeper.
const MAX_DEPTH: usize = 128;

/// Characters of a reference or value that a fault repeats.
const FAULT_CHARS: usize = 80;

/// Characters of one problem of a mismatch, which may quote the value.
const PROBLEM_CHARS: usize = 300;

/// Problems that are counted beyond those shown: counting all of a huge value costs more than it says.
const MAX_COUNTED: usize = 100;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema(Validator);

/// Something wrong with a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaFault {
    /// Keys and indexes from the schema's top to the culprit; empty when it is the whole, or cannot be told.
    pub at: Vec<String>,
    /// Reads on from the culprit's name.
    pub message: String,
    pub hint: Option<String>,
}

/// All faults of a schema, or the first ten of them; never none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BrokenSchema {
    pub faults: Vec<SchemaFault>,
}

impl fmt::Display for BrokenSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().take(FAULTS_IN_LINE).enumerate() {
            let at: String = fault.at.iter().map(|segment| format!("/{}", escaped(segment))).collect();
            let at = if at.is_empty() { "it".to_owned() } else { shortened(&at, PROBLEM_CHARS) };
            write!(f, "{}{at} {}", if index > 0 { "; " } else { "" }, fault.message)?;
        }
        Ok(())
    }
}

/// Why a value does not validate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The first few problems and the number of the others, in one line; each with its place, as a JSON Pointer.
    pub message: String,
    /// JSON Pointer to the first failing value (for a missing property, to where it should be); `None` for the whole.
    pub path: Option<String>,
}

impl Schema {
    /// Compiles a schema of the draft that its `$schema` names, else of 2020-12. `format` is checked in the drafts that
    /// say so. References resolve within the schema and to the published meta-schemas only.
    ///
    /// # Errors
    /// [`BrokenSchema`]: what the meta-schema finds, or what stops compilation.
    pub fn compile(schema: &Value) -> Result<Self, BrokenSchema> {
        jsonschema::options()
            .offline()
            .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(PATTERN_STEPS))
            .build(schema)
            .map(Self)
            .map_err(|error| BrokenSchema { faults: faults(schema, &error) })
    }

    pub fn is_valid(&self, value: &Value) -> bool {
        self.0.is_valid(value)
    }

    /// Judges a value. The message shows at most `shown` problems; `what` stands before the place of each, and is
    /// empty where the text around the message names the value.
    ///
    /// # Errors
    /// [`Mismatch`] when the value does not validate.
    pub fn check(&self, value: &Value, what: &str, shown: usize) -> Result<(), Mismatch> {
        let mut errors = self.0.iter_errors(value);
        let Some(first) = errors.next() else { return Ok(()) };
        let mut message = described(what, &first);
        let mut more = 0;
        for (index, error) in errors.take(shown.saturating_add(MAX_COUNTED)).enumerate() {
            if index + 1 < shown {
                message.push_str("; ");
                message.push_str(&described(what, &error));
            } else {
                more += 1;
            }
        }
        match more {
            0 => {}
            1..=MAX_COUNTED => message.push_str(&format!("; and {more} more")),
            _ => message.push_str(&format!("; and over {MAX_COUNTED} more")),
        }
        let path = pointer(&first);
        Err(Mismatch { message, path: (!path.is_empty()).then_some(path) })
    }
}

/// True when `$schema` may name this draft.
pub fn is_known_draft(uri: &str) -> bool {
    jsonschema::meta::validator_for(&serde_json::json!({ "$schema": uri })).is_ok()
}

pub const DRAFT_HINT: &str = "leave \"$schema\" out, or write \"https://json-schema.org/draft/2020-12/schema\"";

/// What is wrong with a `$schema` that names no draft that is known.
pub fn unknown_draft(uri: &str) -> String {
    format!("names the unknown JSON Schema draft {:?}", shortened(uri, FAULT_CHARS))
}

fn described(what: &str, error: &ValidationError<'_>) -> String {
    let mut text = error.to_string();
    if text.len() > PROBLEM_CHARS {
        // What is wrong stands behind the value.
        let instance = shortened(&error.instance().to_string(), FAULT_CHARS);
        text = shortened(&error.masked_with(instance).to_string(), PROBLEM_CHARS);
    }
    match (what, error.instance_path().as_str()) {
        ("", "") => text,
        (what, at) => format!("{what}{}: {text}", shortened(at, PROBLEM_CHARS)),
    }
}

fn pointer(error: &ValidationError<'_>) -> String {
    let at = error.instance_path().as_str();
    match error.kind() {
        jsonschema::error::ValidationErrorKind::Required { property } => {
            format!("{at}/{}", escaped(property.as_str().unwrap_or_default()))
        }
        _ => at.to_owned(),
    }
}

/// A segment of a JSON Pointer.
fn escaped(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

fn unescaped(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// All that the meta-schema finds; when that is nothing, what stopped the compilation.
fn faults(schema: &Value, stopper: &ValidationError<'_>) -> Vec<SchemaFault> {
    let mut faults: Vec<SchemaFault> = Vec::new();
    if let Ok(meta) = jsonschema::meta::validator_for(schema) {
        for error in meta.iter_errors(schema) {
            // The vocabularies of 2020-12 each find the same fault anew.
            let found = fault(schema, &error);
            if !faults.contains(&found) {
                faults.push(found);
            }
            if faults.len() == MAX_FAULTS {
                break;
            }
        }
    }
    if faults.is_empty() {
        faults.push(fault(schema, stopper));
    }
    faults
}

fn fault(schema: &Value, error: &ValidationError<'_>) -> SchemaFault {
    use jsonschema::error::ValidationErrorKind as Kind;

    if let Kind::Referencing(reference) = error.kind() {
        return reference_fault(schema, reference);
    }
    let at = error.instance_path().as_str().split('/').skip(1).map(unescaped).collect();
    let instance = shortened(&error.instance().to_string(), FAULT_CHARS);
    let (message, hint) = match error.kind() {
        Kind::Format { format } if format == "regex" => {
            (format!("must be a valid regular expression, not {instance}"), None)
        }
        Kind::AnyOf { .. } if error.instance_path().as_str().ends_with("/type") => (
            format!("must be a JSON Schema type, not {instance}"),
            Some("array, boolean, integer, null, number, object and string are the types".to_owned()),
        ),
        _ => (format!("breaks the rules of JSON Schema: {}", error.masked_with(instance)), None),
    };
    SchemaFault { at, message, hint }
}

/// A reference that leads nowhere. The error says what was looked for, not where that stands.
fn reference_fault(schema: &Value, reference: &ReferencingError) -> SchemaFault {
    use jsonschema::ReferencingError as Error;

    let draft = schema.get("$schema").and_then(Value::as_str);
    let short = |text: &str| shortened(text, FAULT_CHARS);
    let told = reference.to_string();
    let (culprit, message, hint) = match reference {
        Error::Unretrievable { uri, .. } if draft == Some(uri) => (uri.as_str(), unknown_draft(uri), Some(DRAFT_HINT)),
        Error::Unretrievable { uri, .. } => (
            uri.as_str(),
            format!("refers to {:?}, and nothing is fetched from outside", short(uri)),
            Some("put the definition under \"$defs\" and refer to it as \"#/$defs/<name>\""),
        ),
        Error::UnknownSpecification { specification } => {
            (specification.as_str(), unknown_draft(specification), Some(DRAFT_HINT))
        }
        Error::PointerToNowhere { pointer: wanted } | Error::NoSuchAnchor { anchor: wanted } => {
            (wanted.as_str(), format!("refers to {:?}, where nothing is defined", short(wanted)), None)
        }
        Error::InvalidUri(_) => (quoted_in(&told), "holds a reference that is no valid URI".to_owned(), None),
        _ => (quoted_in(&told), format!("cannot be resolved: {}", short(&told)), None),
    };
    let at = find_text(schema, culprit).unwrap_or_default();
    SchemaFault { at, message, hint: hint.map(str::to_owned) }
}

/// What an error of the library quotes: the reference that it is about.
fn quoted_in(message: &str) -> &str {
    message.split('\'').nth(1).unwrap_or_default()
}

/// Where the string that is, or ends with, `text` stands in `schema` under a `$…` keyword.
fn find_text(schema: &Value, text: &str) -> Option<Vec<String>> {
    fn is_below(value: &Value, text: &str, at: &mut Vec<String>) -> bool {
        if at.len() > MAX_DEPTH {
            return false;
        }
        let mut visit = |key: String, child: &Value| {
            let is_keyword = key.starts_with('$') && key != "$comment";
            at.push(key);
            let is_it = match child.as_str() {
                Some(found) => is_keyword && !found.is_empty() && (found.ends_with(text) || text.ends_with(found)),
                None => is_below(child, text, at),
            };
            if !is_it {
                at.pop();
            }
            is_it
        };
        match value {
            Value::Object(members) => members.iter().any(|(key, child)| visit(key.clone(), child)),
            Value::Array(items) => items.iter().enumerate().any(|(index, child)| visit(index.to_string(), child)),
            _ => false,
        }
    }
    let mut at = Vec::new();
    (!text.is_empty() && is_below(schema, text, &mut at)).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn faults_name_the_place() {
        for (schema, at, message) in [
            (json!({"properties": {"a/b": {"type": "bigint"}}}), "properties a/b type", "JSON Schema type"),
            (json!({"properties": {"a": 5}}), "properties a", "5 is not of types"),
            (json!({"pattern": "("}), "pattern", "regular expression"),
            (json!({"allOf": [true, {"$ref": "https://example.com/x"}]}), "allOf 1 $ref", "nothing is fetched"),
            (json!({"$ref": "file:///etc/passwd"}), "$ref", "nothing is fetched"),
            (json!({"$ref": "other.json"}), "$ref", "nothing is fetched"),
            (json!({"not": {"$ref": "#/$defs/nope"}}), "not $ref", "nothing is defined"),
            (json!({"$comment": "#nope", "not": {"$ref": "#nope"}}), "not $ref", "nothing is defined"),
            (json!({"items": {"$ref": "http://[x"}}), "items $ref", "no valid URI"),
            (json!({"$id": "http://[x"}), "$id", "no valid URI"),
            (json!({"$schema": "https://example.com/s"}), "$schema", "unknown JSON Schema draft"),
            (json!(7), "", "7 is not of types"),
        ] {
            let faults = Schema::compile(&schema).unwrap_err().faults;
            assert_eq!(faults[0].at.join(" "), at, "{schema}");
            assert!(faults[0].message.contains(message), "{schema}: {}", faults[0].message);
        }
        let several = Schema::compile(&json!({"properties": {"a": 5, "b/": {"minimum": "x"}}})).unwrap_err();
        assert_eq!(several.faults.len(), 2);
        let text = several.to_string();
        assert!(text.contains("/properties/a breaks") && text.contains("; /properties/b~1/minimum breaks"), "{text}");
    }

    #[test]
    fn references_that_go_in_circles_end() {
        for schema in [
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"$dynamicRef": "#x", "$dynamicAnchor": "x"}),
            json!({"properties": {"a": {"$ref": "#"}}}),
        ] {
            if let Ok(compiled) = Schema::compile(&schema) {
                assert!(compiled.is_valid(&json!({"a": {"a": {}}})), "{schema}");
            }
        }
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let schema = Schema::compile(&json!({"pattern": "^(a+)+(?!b)$"})).unwrap();
        let subject = Value::from(format!("{}b", "a".repeat(64)));
        assert!(!schema.is_valid(&subject));
    }

    #[test]
    fn older_drafts_are_read_by_their_own_rules() {
        let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]});
        assert!(!Schema::compile(&schema).unwrap().is_valid(&json!([1])));
        assert!(Schema::compile(&json!({"items": [{"type": "string"}]})).is_err(), "2020-12 has prefixItems for it");
        assert!(is_known_draft("http://json-schema.org/draft-07/schema#") && !is_known_draft("https://example.com/s"));
    }

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
            let outcome = schema.check(&value, "", 4).err();
            assert_eq!(outcome.is_some(), expected.is_some(), "{value}: {outcome:?}");
            assert_eq!(schema.is_valid(&value), expected.is_none(), "{value}");
            if let (Some(mismatch), Some((path, part))) = (outcome, expected) {
                assert_eq!(mismatch.path.as_deref(), path, "{value}");
                assert!(mismatch.message.contains(part), "{value}: {}", mismatch.message);
            }
        }
        let named = |value| schema.check(&value, "output", 4).unwrap_err().message;
        assert_eq!(named(json!([])), "output: [] is not of type \"object\"");
        assert_eq!(named(json!({"text": 1, "a/b": 1})), "output/text: 1 is not of type \"string\"");
    }

    #[test]
    fn messages_stay_short_whatever_the_value() {
        let schema = Schema::compile(&json!({"items": {"type": "string", "maxLength": 3}})).unwrap();
        let value = |count| Value::Array((0..count).map(|_| Value::String("y".repeat(10_000))).collect());
        for (count, shown, ending) in
            [(2, 2, "y… is longer than 3 characters"), (3, 2, "; and 1 more"), (500, 4, "; and over 100 more")]
        {
            let message = schema.check(&value(count), "", shown).unwrap_err().message;
            assert!(message.len() < 2000, "{}", message.len());
            assert!(message.ends_with(ending), "{message}");
        }
    }
}
