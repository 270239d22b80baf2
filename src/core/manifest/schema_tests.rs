//! The JSON Schema and the validator say the same of any manifest: what one accepts, the other accepts.
//!
//! Manifests are put together from good fields, then damaged in up to three places. The only differences allowed are
//! those that the text of `schema.rs` names: [`is_beyond_schema`].

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
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
fn odd_values() -> impl Strategy<Value = Value> + Clone {
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
    prop_oneof![select(numbers.to_vec()), select(texts.map(Value::from).to_vec()), select(others.to_vec())]
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

/// Values just within and just beyond what the field of this name may hold.
fn near_misses(name: &str) -> Vec<Value> {
    match name {
        "triggers" => {
            let webhook = json!({"kind": "webhook", "pending": true});
            vec![json!([webhook, webhook]), json!([webhook]), webhook]
        }
        "name" | "prompt" | "version" | "by" | "at" => vec![json!(""), json!(" "), json!(5)],
        "timeoutMs" => vec![json!(0), json!(1), json!(86_400_000), json!(86_400_001), json!(1.5), json!("5")],
        "max" => vec![json!(0), json!(1), json!(100), json!(101), json!(10_000), json!(10_001), json!(2.5)],
        "backoffMs" => vec![json!(-1), json!(0), json!(3_600_000), json!(3_600_001), json!(0.5)],
        "count" | "days" => vec![json!(-1), json!(0), json!(0.5), json!(1e300), json!("1")],
        "tokensPerFire" => vec![json!(-1), json!(-0.5), json!(0.0), json!("1")],
        "model" => vec![json!("centraid-mock"), json!("centraid-mock/x"), json!("centraid-mockery/x"), json!("x")],
        "onFailure" => vec![json!("a/b/c"), json!("/b"), json!("a/"), json!(".a/b"), json!("a.b"), json!("a/b\n")],
        "kind" => vec![json!("manual"), json!("Cron"), json!("webhook"), json!("cron")],
        "id" => vec![json!("a b"), json!("a.b"), json!("-"), json!("")],
        "secretHash" => {
            vec![json!("ab".repeat(31)), json!("AB".repeat(32)), json!(format!("sha1:{}", "ab".repeat(32)))]
        }
        "pending" => vec![json!(false), json!("true"), json!(1)],
        "scheme" => vec![json!("gitlab"), json!("stripe"), json!("GitHub")],
        "secretRef" => vec![json!("env:1"), json!("env:_"), json!("file: "), json!("file:a b"), json!("vault:x")],
        "header" => vec![json!("x y"), json!("X"), json!(""), json!("x".repeat(100)), json!("x".repeat(101))],
        "mode" => vec![json!("Queued"), json!("restart"), json!("")],
        "catchUp" => vec![json!("never"), json!("once"), json!("")],
        "keep" => vec![json!("none"), json!("errors"), json!({}), json!({"count": 1.5})],
        "type" => vec![json!("Object"), json!(["object"]), json!([]), json!(["null", "null"]), json!("integer")],
        _ => vec![],
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Near(Index, Index),
    Replace(Index, Value),
    Remove(Index),
    Insert(Index, &'static str, Value),
    Repeat(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let odd = odd_values;
    prop_oneof![
        8 => (any::<Index>(), any::<Index>()).prop_map(|(at, value)| Damage::Near(at, value)),
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
    // Any field that can be missed narrowly, as often in one place as in ten.
    if let Damage::Near(at, which) = &damage {
        let last = |place: &String| place.rsplit('/').next().unwrap().to_owned();
        let mut names: Vec<String> = found.iter().map(last).filter(|name| !near_misses(name).is_empty()).collect();
        names.sort();
        names.dedup();
        found.retain(|place| !names.is_empty() && last(place) == *at.get(&names));
        if !found.is_empty() {
            found = vec![which.get(&found).clone()];
        }
    }
    if found.is_empty() {
        return;
    }
    let (Damage::Near(at, _)
    | Damage::Replace(at, _)
    | Damage::Remove(at)
    | Damage::Insert(at, ..)
    | Damage::Repeat(at)) = &damage;
    let place = at.get(&found).clone();
    let (parent, name) = place.rsplit_once('/').unwrap();
    match damage {
        Damage::Near(_, value) => *manifest.pointer_mut(&place).unwrap() = value.get(&near_misses(name)).clone(),
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
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

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

/// The comparison can fail: with one rule taken out of the schema, four thousand manifests show it.
#[test]
fn a_rule_that_is_missing_is_found_out() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let app = AppId::new("todos").unwrap();
    let made_up = manifest();
    let manifests: Vec<(Value, bool)> = (0..4_000)
        .filter_map(|_| {
            let manifest = made_up.new_tree(&mut runner).unwrap().current();
            let parsed = parse(manifest.to_string().as_bytes(), &app);
            let is_comparable = !parsed.problems.iter().any(is_beyond_schema);
            is_comparable.then(|| (manifest, !parsed.problems.iter().any(Problem::is_error)))
        })
        .collect();
    let good = manifests.iter().filter(|(_, is_good)| *is_good).count();
    assert!((800..3_200).contains(&good), "both verdicts come up: {good}");
    let differ = |schema: &Value| {
        let schema = Schema::compile(schema).unwrap();
        manifests.iter().any(|(manifest, is_good)| schema.is_valid(manifest) != *is_good)
    };
    assert!(!differ(&json_schema()));
    let mut unseen: Vec<String> = Vec::new();
    for (owner, keyword) in [
        ("/properties/timeoutMs", "maximum"),
        ("/properties/timeoutMs", "minimum"),
        ("/properties/name", "minLength"),
        ("/properties/onFailure", "pattern"),
        ("/properties/requires/properties/model", "not"),
        ("/properties/retry/properties/backoffMs", "maximum"),
        ("/properties/triggers", "maxContains"),
        ("/properties/outputSchema", "required"),
        ("/$defs/webhook", "else"),
        ("/$defs/verify/properties/secretRef", "pattern"),
    ] {
        let mut schema = json_schema();
        schema.pointer_mut(owner).unwrap().as_object_mut().unwrap().shift_remove(keyword).unwrap();
        if !differ(&schema) {
            unseen.push(format!("{owner}/{keyword}"));
        }
    }
    assert_eq!(unseen, [""; 0]);
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
