//! What is left of an `outputSchema` when faulty keywords of it are ignored.
//!
//! Other hosts of this format read three keywords of it: `type`, `required`, and the `type` of each of `properties`.
//! They take no notice of any other, whatever its value, so a fault there is no reason to refuse a manifest that runs
//! elsewhere. [`ignore`] takes the smallest piece out that holds the fault.
//!
//! Invariant: taking out never makes the schema stricter, as far as the text around the fault tells. Hence a fault
//! within `not`, `if`, `oneOf` or `contains` takes the whole of it out (an empty `not` refuses everything), a fault in
//! a definition the whole definition (nobody knows under what it is used; references to it are faults of the next
//! round), and keywords go too that speak of what another has left over. A mistake here fails runs whose output is
//! good.

use serde_json::{Map, Value, json};

/// Keywords whose members are names of the author's choice.
const NAMES: &[&str] = &[
    "properties",
    "patternProperties",
    "dependentSchemas",
    "dependentRequired",
    "dependencies",
    "$defs",
    "definitions",
];

/// Within these, less is more: a value may fail because something below holds.
const REVERSING: &[&str] = &["not", "if", "oneOf", "contains"];

const DEFINITIONS: &[&str] = &["$defs", "definitions"];

/// A keyword, and the one beside it that means more without it.
const COUNTING_ON: &[(&str, &str)] = &[
    ("properties", "additionalProperties"),
    ("patternProperties", "additionalProperties"),
    ("prefixItems", "items"),
    ("minContains", "contains"),
];

/// Keywords that leave less over for [`LEFT_OVER`], there or anywhere above.
const EVALUATING: &[&str] = &[
    "properties",
    "patternProperties",
    "additionalProperties",
    "prefixItems",
    "items",
    "additionalItems",
    "contains",
    "minContains",
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "dependencies",
];

const LEFT_OVER: &[&str] = &["unevaluatedProperties", "unevaluatedItems"];

/// Where something stands in a schema: keys and indexes from its top.
pub type Place = Vec<String>;

/// Takes out of `schema` what holds the fault at `at`, and gives the places of all that is gone: none when an earlier
/// fault took it along. `None` when it cannot be taken out, because other hosts read it or no place is known.
pub fn ignore(schema: &mut Value, at: &[String]) -> Option<Vec<Place>> {
    let mut value = &*schema;
    // Lengths of the parts of `at` that lead to a schema.
    let mut schemas = Vec::new();
    let mut culprit = 0;
    let mut names_of: Option<&str> = None;
    for (index, segment) in at.iter().enumerate() {
        value = match value {
            Value::Object(members) => {
                let Some(child) = members.get(segment) else { return Some(Vec::new()) };
                culprit = index + 1;
                match names_of.take() {
                    Some(keyword) if DEFINITIONS.contains(&keyword) => break,
                    Some(_) => {}
                    None => {
                        schemas.push(index);
                        if REVERSING.contains(&segment.as_str()) {
                            break;
                        }
                        names_of = NAMES.contains(&segment.as_str()).then_some(segment);
                    }
                }
                child
            }
            Value::Array(items) => match segment.parse::<usize>().ok().and_then(|index| items.get(index)) {
                Some(child) => child,
                None => return Some(Vec::new()),
            },
            _ => return Some(Vec::new()),
        };
    }
    let place = &at[..culprit];
    let parts: Vec<&str> = place.iter().map(String::as_str).collect();
    if matches!(parts[..], [] | ["type"] | ["properties"] | ["properties", _] | ["properties", _, "type"]) {
        return None;
    }
    Some(take_out(schema, place, &schemas))
}

/// `schemas` are the lengths of those parts of `place` that lead to a schema; the last is that of the innermost one.
fn take_out(schema: &mut Value, place: &[String], schemas: &[usize]) -> Vec<Place> {
    let Some((&inner, (name, parents))) = schemas.last().zip(place.split_last()) else { return Vec::new() };
    let keyword = place[inner].as_str();
    let mut gone = vec![place.to_vec()];
    if let Some(members) = object_at(schema, parents) {
        let is_property = matches!(keyword, "properties" | "patternProperties") && place.len() == inner + 2;
        if is_property && members.get(name).is_some_and(|it| !it.is_object() && !it.is_boolean()) {
            // The name is still one that is spoken of.
            members.insert(name.clone(), json!({}));
            return gone;
        }
        members.shift_remove(name);
    }
    let mut take_too = |at: &[String], other: &str| {
        if object_at(schema, at).is_some_and(|members| members.shift_remove(other).is_some()) {
            gone.push(at.iter().map(String::as_str).chain([other]).map(str::to_owned).collect());
        }
    };
    for (_, other) in COUNTING_ON.iter().filter(|(first, _)| *first == keyword) {
        take_too(&place[..inner], other);
    }
    if EVALUATING.contains(&keyword) {
        for &length in schemas {
            LEFT_OVER.iter().for_each(|other| take_too(&place[..length], other));
        }
    }
    gone
}

fn object_at<'v>(schema: &'v mut Value, at: &[String]) -> Option<&'v mut Map<String, Value>> {
    at.iter()
        .try_fold(schema, |value, segment| match value {
            Value::Object(members) => members.get_mut(segment),
            Value::Array(items) => segment.parse::<usize>().ok().and_then(|index| items.get_mut(index)),
            _ => None,
        })?
        .as_object_mut()
}

/// What other hosts read of a schema, and nothing else. It compiles when nothing in it is refused elsewhere.
pub fn reduced(schema: &Value) -> Value {
    let mut kept = json!({ "type": "object" });
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        let of_type = |(name, property): (&String, &Value)| match property.get("type") {
            Some(kind) => (name.clone(), json!({ "type": kind })),
            None => (name.clone(), property.as_bool().map_or_else(|| json!({}), Value::from)),
        };
        kept["properties"] = Value::Object(properties.iter().map(of_type).collect());
    }
    if let Some(required) = schema.get("required") {
        kept["required"] = required.clone();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_harmless_piece_is_taken_out() {
        for (schema, at, expected, gone) in [
            (json!({"minimum": "x", "maximum": 1}), "minimum", json!({"maximum": 1}), "minimum"),
            (
                json!({"properties": {"a": {"type": "string", "items": {"enum": 1}}}}),
                "properties/a/items/enum",
                json!({"properties": {"a": {"type": "string", "items": {}}}}),
                "properties/a/items/enum",
            ),
            (json!({"allOf": [1, {}]}), "allOf/0", json!({}), "allOf"),
            (json!({"allOf": [{"minimum": "x"}]}), "allOf/0/minimum", json!({"allOf": [{}]}), "allOf/0/minimum"),
            (json!({"not": {"minimum": "x"}, "$id": "a"}), "not/minimum", json!({"$id": "a"}), "not"),
            (
                json!({"properties": {"not": {"minimum": "x"}}}),
                "properties/not/minimum",
                json!({"properties": {"not": {}}}),
                "properties/not/minimum",
            ),
            (json!({"$defs": {"a": {"items": 5}, "b": {}}}), "$defs/a/items", json!({"$defs": {"b": {}}}), "$defs/a"),
            (json!({"$defs": 5}), "$defs", json!({}), "$defs"),
            (
                json!({"items": {"properties": {"a": 5}, "additionalProperties": false}}),
                "items/properties/a",
                json!({"items": {"properties": {"a": {}}, "additionalProperties": false}}),
                "items/properties/a",
            ),
            (
                json!({"items": {"properties": 5, "additionalProperties": false}}),
                "items/properties",
                json!({"items": {}}),
                "items/properties items/additionalProperties",
            ),
            (
                json!({"patternProperties": {"(": {}}, "additionalProperties": false}),
                "patternProperties",
                json!({}),
                "patternProperties additionalProperties",
            ),
            (
                json!({"unevaluatedProperties": false, "allOf": [{"unevaluatedItems": false, "$ref": "#/x"}]}),
                "allOf/0/$ref",
                json!({"allOf": [{}]}),
                "allOf/0/$ref unevaluatedProperties allOf/0/unevaluatedItems",
            ),
            (json!({"contains": {}, "minContains": "0"}), "minContains", json!({}), "minContains contains"),
            (json!({"a": 1}), "not/minimum", json!({"a": 1}), ""),
        ] {
            let mut left = schema.clone();
            let places = ignore(&mut left, &at.split('/').map(str::to_owned).collect::<Vec<_>>()).unwrap();
            let places: Vec<String> = places.iter().map(|place| place.join("/")).collect();
            assert_eq!((left, places.join(" ").as_str()), (expected, gone), "{schema}");
        }
    }

    #[test]
    fn what_other_hosts_read_stays() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "string", "minLength": "x"}, "b": true}});
        for at in [&[][..], &["type"], &["properties"], &["properties", "a"], &["properties", "a", "type"]] {
            let mut left = schema.clone();
            let at: Vec<String> = at.iter().map(|&segment| segment.to_owned()).collect();
            assert_eq!((ignore(&mut left, &at), &left), (None, &schema), "{at:?}");
        }
        assert_eq!(reduced(&schema), json!({"type": "object", "properties": {"a": {"type": "string"}, "b": true}}),);
    }
}
