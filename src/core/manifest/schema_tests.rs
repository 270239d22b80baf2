//! The JSON Schema and the validator say the same of any manifest: what one accepts, the other accepts.
//!
//! Manifests are put together from good fields, then damaged in up to three places. The only differences allowed are
//! those that the text of `schema.rs` names: [`is_beyond_schema`].

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

use super::*;
use crate::core::json_schema::Schema;
use crate::fire::{AppId, Problem};

/// Rules that JSON Schema has no words for: each a code, the end of a field, and a part of the message.
const BEYOND_SCHEMA: &[(&str, &str, &str)] = &[
    // What a cron text means: ranges, steps, whether it ever matches.
    ("invalid_trigger", ".expr", "is no schedule"),
    // Which time zones there are.
    ("invalid_trigger", ".tz", "must name an IANA time zone"),
    // Whether a filter compiles: patterns, references, drafts.
    ("invalid_trigger", ".filter", ""),
];

fn is_beyond_schema(problem: &Problem) -> bool {
    BEYOND_SCHEMA.iter().any(|(code, field, part)| {
        let is_field = problem.field.ends_with(field) || problem.field.contains(&format!("{field}."));
        problem.code == *code && is_field && problem.message.contains(part)
    })
}

/// Fields with values that are good in them.
fn good_fields() -> Vec<(&'static str, Vec<Value>)> {
    let hash = "ab".repeat(32);
    vec![
        ("$schema", vec![json!("../x.json"), json!(5)]),
        ("name", vec![json!("n"), json!(" ")]),
        ("prompt", vec![json!("p")]),
        ("version", vec![json!("1")]),
        ("description", vec![json!(""), json!("d")]),
        ("enabled", vec![json!(true), json!(false), json!("no"), Value::Null]),
        (
            "triggers",
            vec![
                json!([]),
                json!([{"kind": "cron", "expr": " 0 9 * * MON-fri ", "tz": "Europe/Berlin"}, {"kind": "cron", "expr": "*/5 * * * ?"}]),
                json!([{"kind": "webhook", "pending": true, "filter": {"type": "object", "required": ["a"]}}]),
                json!([{"kind": "webhook", "id": "a-b", "secretHash": hash}, {"kind": "cron", "expr": "1 2 3 4 5"}]),
                json!([{"kind": "webhook", "id": "x", "filter": true,
                    "verify": {"scheme": "github", "secretRef": "env:X", "header": "X-Sig"}}]),
            ],
        ),
        ("trigger", vec![json!({"kind": "cron", "expr": "0 0 * * *"}), json!({"kind": "webhook", "pending": true})]),
        ("requires", vec![json!({}), json!([]), json!({"mcps": ["a"], "tools": ["a.b", "c.*"], "model": "a/b"})]),
        ("apps", vec![json!([]), json!(["todos", "no such"])]),
        ("costEstimate", vec![json!({"model": "m", "tokensPerFire": 0}), json!({"model": "m", "tokensPerFire": 1.5})]),
        (
            "outputSchema",
            vec![
                json!({"type": "object"}),
                json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": ["null", "integer"]}, "c": true},
                    "required": ["a", "b"], "additionalProperties": false}),
            ],
        ),
        ("onFailure", vec![json!("rescue"), json!("ops.x/rescue")]),
        (
            "history",
            vec![
                json!({}),
                json!({"keep": "all"}),
                json!({"keep": {"count": 0}}),
                json!({"keep": {"days": 3, "count": 9}}),
            ],
        ),
        ("generated", vec![json!({"by": "b", "at": "a"})]),
        ("concurrency", vec![json!({}), json!({"mode": "queued", "max": 5}), json!({"mode": "single", "max": 2})]),
        ("timeoutMs", vec![json!(1), json!(86_400_000), json!(5000.0)]),
        ("catchUp", vec![json!("skip"), json!("all")]),
        ("retry", vec![json!({}), json!({"max": 100, "backoffMs": 3_600_000}), json!({"max": 0, "backoffMs": 0})]),
        ("unheardOf", vec![json!({"any": [1]})]),
    ]
}

/// What may stand anywhere.
fn odd_values() -> Vec<Value> {
    let numbers = [
        json!(0),
        json!(-1),
        json!(1),
        json!(1.5),
        json!(-0.0),
        json!(2.0),
        json!(100),
        json!(101),
        json!(10_000),
        json!(10_001),
        json!(3_600_000),
        json!(3_600_001),
        json!(86_400_000),
        json!(86_400_001),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(5e-324),
    ];
    let texts = [
        "",
        " ",
        "x",
        "a/b",
        "a/b/c",
        "/b",
        "a/",
        "é",
        "a b",
        "all",
        "errors",
        "cron",
        "webhook",
        "manual",
        "queued",
        "Single",
        "once",
        "object",
        "string",
        "null",
        "centraid-mock",
        "centraid-mock/x",
        "centraid-mockery/x",
        "env:X",
        "env:1",
        "file:x",
        "file: ",
        "x y",
        "github",
        "* * * * *",
        "* * * *",
        "@daily",
        "0 0 30 2 *",
        "61 * * * *",
        "0 0 1 1 0\n",
        "٣ * * * *",
        "Mars/Olympus",
        "Europe/Berlin",
        "5",
        "true",
        "(",
        "a\u{0}b",
        "-",
        "_",
        "a\n",
        "a/b\n",
    ];
    let others = [
        Value::Null,
        json!(true),
        json!(false),
        json!([]),
        json!({}),
        json!([1]),
        json!([null]),
        json!(["a", "a"]),
        json!([""]),
        json!({"x": 1}),
        json!({"keep": 1}),
        json!({"count": 1}),
        json!({"days": -1, "count": 1}),
        json!({"count": 1.5, "days": 1}),
        json!({"kind": "cron"}),
        json!({"kind": "webhook", "pending": true}),
        json!({"kind": "webhook", "pending": "yes"}),
        json!([{"kind": "webhook"}, {"kind": "webhook"}]),
        json!({"type": "string"}),
        json!({"type": ["string", "string"]}),
        json!({"type": []}),
        json!({"type": 5}),
        json!({"type": "object", "properties": {"a": {}}, "required": [""]}),
        json!("ab".repeat(32)),
        json!(format!("sha256:{}", "AB".repeat(32))),
        json!("x".repeat(129)),
        json!(format!("a/{}", "x".repeat(128))),
    ];
    numbers.into_iter().chain(texts.map(Value::from)).chain(others).collect()
}

/// Names that a field may be given to beside its own.
const NAMES: &[&str] = &[
    "name",
    "kind",
    "expr",
    "tz",
    "id",
    "secretHash",
    "pending",
    "verify",
    "filter",
    "scheme",
    "secretRef",
    "header",
    "mcps",
    "tools",
    "model",
    "tokensPerFire",
    "type",
    "properties",
    "required",
    "keep",
    "count",
    "days",
    "by",
    "at",
    "mode",
    "max",
    "backoffMs",
    "trigger",
    "triggers",
    "enabled",
    "x",
];

#[derive(Debug, Clone)]
enum Damage {
    Replace(Index, Value),
    Remove(Index),
    Insert(Index, &'static str, Value),
    Repeat(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let odd = || select(odd_values());
    prop_oneof![
        4 => (any::<Index>(), odd()).prop_map(|(at, value)| Damage::Replace(at, value)),
        1 => any::<Index>().prop_map(Damage::Remove),
        2 => (any::<Index>(), select(NAMES), odd()).prop_map(|(at, name, value)| Damage::Insert(at, name, value)),
        1 => any::<Index>().prop_map(Damage::Repeat),
    ]
}

fn manifest() -> impl Strategy<Value = Value> {
    let mut fields: Vec<BoxedStrategy<Option<(&'static str, Value)>>> = Vec::new();
    for (name, values) in good_fields() {
        let is_required = matches!(name, "name" | "prompt" | "generated");
        let presence = if is_required { 0.999 } else { 0.3 };
        fields.push(proptest::option::weighted(presence, select(values).prop_map(move |value| (name, value))).boxed());
    }
    (fields, vec(damage(), 0..=3)).prop_map(|(fields, damages)| {
        let members: Map<String, Value> =
            fields.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut manifest = Value::Object(members);
        damages.into_iter().for_each(|damage| apply(&mut manifest, damage));
        manifest
    })
}

/// Every place below the top, as a JSON Pointer.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut child = |name: String, it: &Value| {
        let place = format!("{at}/{name}");
        found.push(place.clone());
        places(it, &place, found);
    };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, it)| child(name.replace('~', "~0").replace('/', "~1"), it));
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(index, it)| child(index.to_string(), it)),
        _ => {}
    }
}

fn apply(manifest: &mut Value, damage: Damage) {
    let mut found = Vec::new();
    places(manifest, "", &mut found);
    if found.is_empty() {
        return;
    }
    let (Damage::Replace(at, _) | Damage::Remove(at) | Damage::Insert(at, ..) | Damage::Repeat(at)) = &damage;
    let place = at.get(&found).clone();
    let (parent, name) = place.rsplit_once('/').unwrap();
    match damage {
        Damage::Replace(_, value) => *manifest.pointer_mut(&place).unwrap() = value,
        Damage::Insert(_, name, value) => match manifest.pointer_mut(&place).unwrap() {
            Value::Object(members) => {
                members.insert(name.to_owned(), value);
            }
            Value::Array(items) => items.push(value),
            other => *other = value,
        },
        Damage::Remove(_) | Damage::Repeat(_) => match manifest.pointer_mut(parent).unwrap() {
            Value::Object(members) => {
                members.shift_remove(name);
            }
            Value::Array(items) => {
                let index: usize = name.parse().unwrap();
                if matches!(damage, Damage::Repeat(_)) {
                    items.push(items[index].clone());
                } else {
                    items.remove(index);
                }
            }
            _ => {}
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_schema_and_the_validator_agree(manifest in manifest()) {
        thread_local! {
            static SCHEMA: Schema = Schema::compile(&json_schema()).unwrap();
        }
        let app = AppId::new("todos").unwrap();
        let parsed = parse(manifest.to_string().as_bytes(), &app);
        let told = SCHEMA.with(|schema| schema.check(&manifest, "", 5).err().map(|mismatch| mismatch.message));
        let errors: Vec<&Problem> = parsed.problems.iter().filter(|problem| problem.is_error()).collect();
        match told {
            Some(told) => prop_assert!(!errors.is_empty(), "only the schema refuses it: {told}\n{manifest}"),
            None => {
                let unsaid: Vec<_> = errors.into_iter().filter(|problem| !is_beyond_schema(problem)).collect();
                prop_assert!(unsaid.is_empty(), "only the validator refuses it: {unsaid:#?}\n{manifest}");
            }
        }
    }
}

/// Most of what is put together is accepted before it is damaged, so that both verdicts are tested.
#[test]
fn good_fields_are_good() {
    let schema = Schema::compile(&json_schema()).unwrap();
    for (name, values) in good_fields() {
        for value in values {
            let mut manifest = json!({"name": "n", "prompt": "p", "generated": {"by": "b", "at": "a"}});
            manifest[name] = value;
            let parsed = parse(manifest.to_string().as_bytes(), &AppId::new("todos").unwrap());
            assert!(parsed.manifest.is_some() && schema.is_valid(&manifest), "{manifest}: {:?}", parsed.problems);
        }
    }
}
