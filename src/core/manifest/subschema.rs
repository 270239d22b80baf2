//! JSON Schemas that stand inside a manifest: `outputSchema` and a webhook's `filter`.
//!
//! They come from people and models, so compiling one fetches nothing, whatever `$ref` says, and matching a pattern
//! costs a bounded number of steps. [`compile_schema`] is the one way to a validator, here and where values are
//! checked, so that what validation accepts also runs.

use jsonschema::{PatternOptions, Validator};
use serde_json::{Value, json};

use super::json_tree::{Kind, Node};
use super::position::Path;
use super::report::{Report, kind_of, seen};
use crate::fire::Severity;

/// Steps that one pattern may take on one string. The usual default allows ten times as many, which a hostile pattern
/// turns into seconds.
const PATTERN_STEPS: usize = 100_000;

/// Faults that are reported of one schema: one wrong level usually makes all below it wrong.
const MAX_FAULTS: usize = 10;

/// How deep a culprit is looked for; JSON text nests no deeper.
const MAX_DEPTH: usize = 128;

/// Characters of a reference or value that a message repeats.
const SHOWN_CHARS: usize = 80;

/// Something wrong with a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaFault {
    /// Keys and indexes from the schema's top to the culprit.
    pub at: Vec<String>,
    pub message: String,
    pub hint: Option<String>,
}

/// Compiles a JSON Schema of the draft that its `$schema` names, else of 2020-12. `format` is checked in the drafts
/// that say so. References resolve within the schema and to the published meta-schemas only.
///
/// # Errors
/// Every fault that the meta-schema finds, or the one that stops compilation; never an empty list.
pub fn compile_schema(schema: &Value) -> Result<Validator, Vec<SchemaFault>> {
    match jsonschema::meta::validator_for(schema) {
        Ok(meta) => {
            let mut faults: Vec<SchemaFault> = Vec::new();
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
            if !faults.is_empty() {
                return Err(faults);
            }
        }
        Err(error) => return Err(vec![fault(schema, &error)]),
    }
    jsonschema::options()
        .offline()
        .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(PATTERN_STEPS))
        .build(schema)
        .map_err(|error| vec![fault(schema, &error)])
}

fn fault(schema: &Value, error: &jsonschema::ValidationError<'_>) -> SchemaFault {
    use jsonschema::ReferencingError as Reference;
    use jsonschema::error::ValidationErrorKind as Kind;

    let at = |text: &str| find_text(schema, text).unwrap_or_default();
    if let Kind::Referencing(reference) = error.kind() {
        let draft = schema.get("$schema").and_then(Value::as_str);
        let (culprit, message, hint) = match reference {
            Reference::Unretrievable { uri, .. } if draft == Some(uri) => {
                (uri.as_str(), unknown_draft(uri), Some(DRAFT_HINT))
            }
            Reference::Unretrievable { uri, .. } => (
                uri.as_str(),
                format!("refers to {:?}, and nothing is fetched from outside of the manifest", short(uri)),
                Some("put the definition under \"$defs\" and refer to it as \"#/$defs/<name>\""),
            ),
            Reference::UnknownSpecification { specification } => {
                (specification.as_str(), unknown_draft(specification), Some(DRAFT_HINT))
            }
            Reference::PointerToNowhere { pointer } => {
                (pointer.as_str(), format!("refers to {:?}, where nothing is defined", short(pointer)), None)
            }
            Reference::InvalidUri(_) => ("", "holds a reference that is no valid URI".to_owned(), None),
            other => ("", format!("cannot be resolved: {}", short(&other.to_string())), None),
        };
        return SchemaFault { at: at(culprit), message, hint: hint.map(str::to_owned) };
    }
    let at = error.instance_path().as_str().split('/').skip(1).map(unescape).collect();
    let instance = short(&error.instance().to_string());
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

const DRAFT_HINT: &str = "leave \"$schema\" out, or write \"https://json-schema.org/draft/2020-12/schema\"";

fn unknown_draft(uri: &str) -> String {
    format!("names the unknown JSON Schema draft {:?}", short(uri))
}

/// A JSON Pointer segment without its escapes.
fn unescape(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// Where the string that is, or ends with, `text` stands in `schema` under a `$…` keyword.
fn find_text(schema: &Value, text: &str) -> Option<Vec<String>> {
    fn is_below(value: &Value, text: &str, at: &mut Vec<String>) -> bool {
        if at.len() > MAX_DEPTH {
            return false;
        }
        let mut visit = |key: String, child: &Value| {
            at.push(key);
            let is_keyword = at.last().is_some_and(|key| key.starts_with('$'));
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

/// A text of the schema, cut to what a message can bear.
fn short(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

/// Reads `outputSchema`: a schema of an object, because `output` is kept and passed on as one.
pub fn read_output_schema(report: &mut Report, root: &Node) -> Option<Value> {
    const CODE: &str = "invalid_output_schema";
    let node = root.get("outputSchema")?;
    let path = Path::Root.key("outputSchema");
    if !node.is_object() {
        report.error(CODE, &path, node, format!("must be a JSON Schema object, not {}", seen(node)));
        return None;
    }
    match node.get("type") {
        Some(kind) if kind.as_str() == Some("object") => {}
        Some(kind) => {
            report.error(CODE, &path.key("type"), kind, format!("must be \"object\", not {}", seen(kind)));
            return None;
        }
        None => {
            report.error(CODE, &path.key("type"), node, "must be \"object\", but is absent");
            return None;
        }
    }
    // Hosts that know only `type`, `properties` and `required` take no notice of `$schema`, refuse an empty name in
    // `required`, and allow one to stand there twice.
    let mut schema = node.to_value();
    if let Some(draft) = node.get("$schema")
        && let Some(uri) = draft.as_str()
        && jsonschema::meta::validator_for(&json!({ "$schema": uri })).is_err()
    {
        let rule = format!("{}; 2020-12 is taken", unknown_draft(uri));
        let found = report.warning(CODE, &path.key("$schema"), draft, rule);
        found.hint(DRAFT_HINT);
        if let Some(members) = schema.as_object_mut() {
            members.shift_remove("$schema");
        }
    }
    if let Some(required) = node.get("required") {
        for (index, name) in required.items().unwrap_or_default().iter().enumerate() {
            if name.as_str() == Some("") {
                let path = path.key("required");
                report.error(CODE, &path.index(index), name, "must be a non-empty string");
            }
        }
        if let Some(names) = schema.get_mut("required").and_then(Value::as_array_mut) {
            let mut kept: Vec<Value> = Vec::new();
            names.retain(|name| {
                let first = !name.is_string() || !kept.contains(name);
                kept.push(name.clone());
                first
            });
            if names.len() < kept.len() {
                report.warning(CODE, &path.key("required"), required, "names a property twice");
            }
        }
    }
    checked(report, CODE, &path, node, schema)
}

/// Reads a webhook's `filter`; any JSON Schema will do, also `true` and `false`.
pub fn read_filter(report: &mut Report, owner: &Node, path: &Path<'_>) -> Option<Value> {
    const CODE: &str = "invalid_trigger";
    let node = owner.get("filter")?;
    let path = path.key("filter");
    match &node.kind {
        Kind::Object(_) | Kind::Scalar(Value::Bool(_)) => checked(report, CODE, &path, node, node.to_value()),
        Kind::Array(_) | Kind::Scalar(_) => {
            report.error(CODE, &path, node, format!("must be a JSON Schema, not {}", kind_of(node)));
            None
        }
    }
}

fn checked(report: &mut Report, code: &str, path: &Path<'_>, node: &Node, schema: Value) -> Option<Value> {
    let faults = match compile_schema(&schema) {
        Ok(_) => return Some(schema),
        Err(faults) => faults,
    };
    for fault in faults {
        let offset = node.deepest(&fault.at).span.start;
        let found = report.record(Severity::Error, code, || path.below(&fault.at), offset, &fault.message);
        if let Some(hint) = fault.hint {
            found.hint(hint);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (json!({"$schema": "https://example.com/s"}), "$schema", "unknown JSON Schema draft"),
        ] {
            let faults = compile_schema(&schema).unwrap_err();
            assert_eq!(faults[0].at.join(" "), at, "{schema}");
            assert!(faults[0].message.contains(message), "{schema}: {}", faults[0].message);
        }
        let several = json!({"properties": {"a": 5, "b": {"minimum": "x"}}});
        assert_eq!(compile_schema(&several).unwrap_err().len(), 2);
    }

    #[test]
    fn references_that_go_in_circles_end() {
        for schema in [
            json!({"allOf": [{"$ref": "#"}]}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"$dynamicRef": "#x", "$dynamicAnchor": "x"}),
            json!({"properties": {"a": {"$ref": "#"}}}),
        ] {
            if let Ok(validator) = compile_schema(&schema) {
                assert!(validator.is_valid(&json!({"a": {"a": {}}})), "{schema}");
            }
        }
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let validator = compile_schema(&json!({"pattern": "^(a+)+(?!b)$"})).unwrap();
        let subject = Value::from(format!("{}b", "a".repeat(64)));
        assert!(!validator.is_valid(&subject));
    }

    #[test]
    fn older_drafts_are_read_by_their_own_rules() {
        let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}]});
        assert!(!compile_schema(&schema).unwrap().is_valid(&json!([1])));
        assert!(compile_schema(&json!({"items": [{"type": "string"}]})).is_err(), "2020-12 has prefixItems for it");
    }
}
