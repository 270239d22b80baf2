//! JSON Schemas that stand inside a manifest: `outputSchema` and a webhook's `filter`.
//!
//! What is kept of them compiles. A `filter` is this project's own, so all its faults are errors. `outputSchema` is
//! shared with hosts that read little of it: there, only faults that they refuse too are errors; see
//! [`leniency`](super::leniency).

use serde_json::Value;

use super::json_tree::{Kind, Node};
use super::leniency::{ignore, reduced};
use super::position::Path;
use super::report::{Report, kind_of, seen};
use crate::core::json_schema::{DRAFT_HINT, Schema, SchemaFault, is_known_draft, unknown_draft};
use crate::fire::Severity;

const OUTPUT_CODE: &str = "invalid_output_schema";

/// How often faults are taken out and the rest is compiled: a reference that leads nowhere is found only when the
/// faults before it are gone. No schema that was written with care needs more, and a hostile one costs the daemon's
/// loop a fraction of a second.
const MAX_ROUNDS: usize = 16;

/// Ends the message of a fault that cannot be taken out alone.
const ONLY_THE_REST: &str = "; only `required` and the types of the properties are checked";

/// Reads `outputSchema`: a schema of an object, because `output` is kept and passed on as one.
pub fn read_output_schema(report: &mut Report, root: &Node) -> Option<Value> {
    let node = root.get("outputSchema")?;
    let path = Path::Root.key("outputSchema");
    if !node.is_object() {
        report.error(OUTPUT_CODE, &path, node, format!("must be a JSON Schema object, not {}", seen(node)));
        return None;
    }
    match node.get("type") {
        Some(kind) if kind.as_str() == Some("object") => {}
        Some(kind) => {
            report.error(OUTPUT_CODE, &path.key("type"), kind, format!("must be \"object\", not {}", seen(kind)));
            return None;
        }
        None => {
            report.error(OUTPUT_CODE, &path.key("type"), node, "must be \"object\", but is absent");
            return None;
        }
    }
    // Other hosts take no notice of `$schema`, refuse an empty name in `required`, and allow one to stand there twice.
    let mut schema = node.to_value();
    if let Some(draft) = node.get("$schema")
        && let Some(uri) = draft.as_str()
        && !is_known_draft(uri)
    {
        let rule = format!("{}; 2020-12 is taken", unknown_draft(uri));
        report.warning(OUTPUT_CODE, &path.key("$schema"), draft, rule).hint(DRAFT_HINT);
        if let Some(members) = schema.as_object_mut() {
            members.shift_remove("$schema");
        }
    }
    if let Some(required) = node.get("required") {
        for (index, name) in required.items().unwrap_or_default().iter().enumerate() {
            if name.as_str() == Some("") {
                let path = path.key("required");
                report.error(OUTPUT_CODE, &path.index(index), name, "must be a non-empty string");
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
                report.warning(OUTPUT_CODE, &path.key("required"), required, "names a property twice");
            }
        }
    }
    without_faults(report, &path, node, schema)
}

/// The schema without what is faulty in it; `None` when other hosts refuse it too.
fn without_faults(report: &mut Report, path: &Path<'_>, node: &Node, mut schema: Value) -> Option<Value> {
    for _ in 0..MAX_ROUNDS {
        let faults = match Schema::compile(&schema) {
            Ok(_) => return Some(schema),
            Err(broken) => broken.faults,
        };
        let mut is_refused = false;
        let mut is_smaller = false;
        for mut fault in faults {
            if is_refused_elsewhere(node, &fault.at) {
                is_refused = true;
                report_fault(report, Severity::Error, OUTPUT_CODE, path, node, fault);
                continue;
            }
            let Some(gone) = ignore(&mut schema, &fault.at) else {
                fault.message.push_str(ONLY_THE_REST);
                report_fault(report, Severity::Warning, OUTPUT_CODE, path, node, fault);
                return compiling(reduced(&schema));
            };
            is_smaller |= !gone.is_empty();
            fault.message.push_str(&match &gone[..] {
                [only] if *only != fault.at => format!("; {} is ignored", path.below(only)),
                [] | [_] => "; the keyword is ignored".to_owned(),
                several => {
                    let fields: Vec<String> = several.iter().map(|place| path.below(place)).collect();
                    format!("; ignored are {}", fields.join(", "))
                }
            });
            report_fault(report, Severity::Warning, OUTPUT_CODE, path, node, fault);
        }
        if is_refused {
            return None;
        }
        if !is_smaller {
            break;
        }
    }
    report.warning(OUTPUT_CODE, path, node, format!("has too many faults{ONLY_THE_REST}"));
    compiling(reduced(&schema))
}

fn compiling(schema: Value) -> Option<Value> {
    Schema::compile(&schema).is_ok().then_some(schema)
}

/// True when the fault is one that other hosts refuse too: they want each property to be an object with a `type`, and
/// `required` to be a list of strings.
fn is_refused_elsewhere(schema: &Node, at: &[String]) -> bool {
    let parts: Vec<&str> = at.iter().map(String::as_str).collect();
    match parts[..] {
        ["properties"] | ["properties", _] => !schema.deepest(at).is_object(),
        ["required"] => schema.deepest(at).items().is_none(),
        ["type" | "required", ..] | ["properties", _, "type", ..] => true,
        _ => false,
    }
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
    match Schema::compile(&schema) {
        Ok(_) => Some(schema),
        Err(broken) => {
            for fault in broken.faults {
                report_fault(report, Severity::Error, code, path, node, fault);
            }
            None
        }
    }
}

fn report_fault(report: &mut Report, severity: Severity, code: &str, path: &Path<'_>, node: &Node, fault: SchemaFault) {
    let offset = node.deepest(&fault.at).span.start;
    let found = report.record(severity, code, || path.below(&fault.at), offset, &fault.message);
    if let Some(hint) = fault.hint {
        found.hint(hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::manifest::{Manifest, parse};
    use crate::fire::{AppId, Problem};
    use serde_json::json;

    fn read(schema: &Value) -> (Option<Manifest>, Vec<Problem>) {
        let text = json!({"name": "n", "prompt": "p", "generated": {"by": "b", "at": "a"}, "outputSchema": schema});
        let parsed = parse(text.to_string().as_bytes(), &AppId::new("todos").unwrap());
        (parsed.manifest, parsed.problems)
    }

    /// The rules of the other hosts.
    fn other_hosts_accept(schema: &Value) -> bool {
        let kinds = ["string", "number", "boolean", "object", "array"];
        let is_property = |property: &Value| property["type"].as_str().is_some_and(|kind| kinds.contains(&kind));
        schema["type"] == "object"
            && schema.get("properties").is_none_or(|it| it.as_object().is_some_and(|it| it.values().all(is_property)))
            && schema.get("required").is_none_or(|it| {
                it.as_array().is_some_and(|it| it.iter().all(|name| name.as_str().is_some_and(|name| !name.is_empty())))
            })
    }

    /// Every keyword that can hold a fault, in places where taking it out could make the schema stricter.
    fn rich() -> Value {
        json!({
            "type": "object",
            "required": ["a"],
            "$id": "https://example.com/s",
            "properties": {
                "a": {"type": "string", "minLength": 1, "pattern": "^x", "not": {"enum": ["no"], "maxLength": 2}},
                "b": {
                    "type": "object",
                    "properties": {"c": {"type": "number", "minimum": 0, "maximum": 9}, "not": {"type": "null"}},
                    "patternProperties": {"^d": {"type": "boolean"}},
                    "additionalProperties": false,
                    "dependentRequired": {"c": ["not"]},
                    "propertyNames": {"maxLength": 5},
                },
                "e": {
                    "type": "array",
                    "prefixItems": [{"type": "string"}, true],
                    "items": {"type": "integer", "multipleOf": 2},
                    "contains": {"type": "integer", "minimum": 2},
                    "minContains": 0,
                    "maxContains": 2,
                },
                "f": {
                    "type": "object",
                    "$ref": "#/$defs/g",
                    "allOf": [{"properties": {"h": {"type": "string"}}}],
                    "unevaluatedProperties": false,
                },
            },
            "$defs": {"g": {"$anchor": "g", "properties": {"i": {"minLength": 2}}}},
            "oneOf": [{"required": ["a"], "maxProperties": 9}, {"required": ["z"], "minProperties": 1}],
            "if": {"required": ["e"], "properties": {"e": {"minItems": 5}}},
            "then": {"required": ["f"]},
            "else": {"anyOf": [{"maxProperties": 4}, {"$ref": "#g"}]},
            "patternProperties": {"^y": {"type": "string"}},
            "unevaluatedProperties": false,
        })
    }

    /// Each place of a value, as a JSON Pointer.
    fn places(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Object(members) => members.iter().for_each(|(key, it)| places(it, &format!("{at}/{key}"), found)),
            Value::Array(items) => items.iter().enumerate().for_each(|(i, it)| places(it, &format!("{at}/{i}"), found)),
            _ => {}
        }
    }

    /// Any one place damaged in many ways: who runs elsewhere runs here, what is kept compiles, and a fault that was
    /// taken out has made nothing stricter.
    #[test]
    fn a_fault_that_others_ignore_refuses_neither_the_manifest_nor_its_output() {
        let values = [
            json!({"a": "xyz"}),
            json!({"a": "xyz", "yy": "s"}),
            json!({"a": "xyz", "b": {"d": true}, "e": ["s", 1, 4, 2]}),
            json!({"a": "xyz", "b": {"c": 3, "not": null}, "e": ["s", null]}),
            json!({"a": "xyz", "e": ["s", 1, 4, 8, 0], "f": {"h": "s", "i": "long"}}),
        ];
        let bad = [
            json!(null),
            json!(5.5),
            json!(-1),
            json!("("),
            json!("https://example.com/other"),
            json!("#/$defs/nope"),
            json!("http://[x"),
            json!(true),
            json!([]),
            json!([7]),
            json!({"minimum": "x"}),
            json!({"(": 5}),
        ];
        let whole = rich();
        let intact = Schema::compile(&whole).unwrap();
        for value in &values {
            intact.check(value, "", 9).unwrap_or_else(|mismatch| panic!("{value}: {}", mismatch.message));
        }
        let mut pointers = Vec::new();
        places(&whole, "", &mut pointers);
        let mut taken_out = 0;
        for pointer in &pointers {
            for bad in &bad {
                let is_reference = bad.as_str().is_some_and(|text| text.len() > 1);
                if is_reference && !pointer.rsplit('/').next().unwrap().starts_with('$') {
                    continue;
                }
                let mut damaged = whole.clone();
                *damaged.pointer_mut(pointer).unwrap() = bad.clone();
                let case = format!("{pointer} = {bad}");
                let (manifest, problems) = read(&damaged);
                assert_eq!(manifest.is_none(), problems.iter().any(Problem::is_error), "{case}");
                let Some(kept) = manifest.map(|manifest| manifest.output_schema.unwrap()) else {
                    assert!(!other_hosts_accept(&damaged), "{case}: {problems:?}");
                    continue;
                };
                let schema = Schema::compile(&kept).unwrap_or_else(|broken| panic!("{case}: {broken}"));
                if kept == damaged {
                    assert!(problems.is_empty(), "{case}: {problems:?}");
                    continue;
                }
                assert!(problems.iter().all(|problem| problem.message.contains("ignored")), "{case}: {problems:?}");
                if bad.is_object() || bad.is_boolean() {
                    // A schema, or names: what is well-formed of it may be stricter in its own right.
                    continue;
                }
                taken_out += 1;
                for value in &values {
                    if let Err(mismatch) = schema.check(value, "", 9) {
                        panic!("{case}: {value} fails: {}\nkept {kept}\n{problems:?}", mismatch.message);
                    }
                }
            }
        }
        assert!(taken_out > 300, "{taken_out}");
    }

    #[test]
    fn what_cannot_be_taken_out_leaves_what_others_check() {
        let draft_4 = json!({
            "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "object",
            "properties": {"n": {"type": "number", "exclusiveMaximum": true}},
        });
        let references: Value = (0..100).map(|n| json!({"$ref": format!("#/{n}")})).collect();
        let many =
            json!({"type": "object", "required": ["a"], "properties": {"n": {"type": "number"}}, "allOf": references});
        for (schema, kept) in [
            (draft_4, json!({"type": "object", "properties": {"n": {"type": "number"}}})),
            (many, json!({"type": "object", "properties": {"n": {"type": "number"}}, "required": ["a"]})),
        ] {
            let (manifest, problems) = read(&schema);
            assert_eq!(manifest.unwrap().output_schema, Some(kept), "{schema}");
            let last = problems.iter().find(|problem| problem.message.ends_with(ONLY_THE_REST));
            assert!(last.is_some(), "{problems:?}");
        }
    }
}
