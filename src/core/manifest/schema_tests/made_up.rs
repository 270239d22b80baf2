//! Manifests made up at random: put together from good fields, then damaged in up to three places.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Map, Value, json};

/// Fields with values that are good in them.
pub fn good_fields() -> Vec<(&'static str, Vec<Value>)> {
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
                json!({"keep": {"days": 7}}),
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
        json!({"pattern": "("}),
        json!({"$ref": "#/nope"}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "x"}),
        json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "x"}}}}}),
        json!({"type": "object", "properties": {"a": true}, "required": ["a", "a"]}),
        json!({"type": "object", "properties": {"a": {"type": ["string", "x"]}}}),
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
        "mcps[]" | "tools[]" | "apps[]" | "required[]" => vec![json!(""), json!(" "), json!(5), json!("a")],
        "tz" => vec![json!(5), Value::Null, json!(""), json!("UTC"), json!("utc")],
        "expr" => vec![
            json!(5),
            Value::Null,
            json!([]),
            json!("0 0 1 1 *"),
            json!("0 24 * * *"),
            json!("5-1 * * * *"),
            json!("* 9-8 * * *"),
            json!("* * 2-1 * *"),
            json!("* * * DEC-jan *"),
            json!("* * * * SAT-5"),
            json!("0 0 30 2 *"),
        ],
        "filter" => vec![json!(5), Value::Null, json!("x"), json!([]), json!({}), json!(false)],
        "triggers" => {
            let webhook = json!({"kind": "webhook", "pending": true});
            vec![json!([webhook, webhook]), json!([webhook]), webhook]
        }
        "name" | "prompt" | "version" | "by" | "at" => vec![json!(""), json!(" "), json!(5)],
        "timeoutMs" => vec![json!(0), json!(1), json!(86_400_000), json!(86_400_001), json!(1.5), json!("5")],
        "max" => vec![json!(-1), json!(0), json!(1), json!(100), json!(101), json!(10_000), json!(10_001), json!(2.5)],
        "backoffMs" => vec![json!(-1), json!(0), json!(3_600_000), json!(3_600_001), json!(0.5)],
        "count" | "days" => vec![json!(-1), json!(0), json!(0.5), json!(1e300), json!("1")],
        "tokensPerFire" => vec![json!(-1), json!(-0.5), json!(0.0), json!("1")],
        "model" => vec![
            json!("centraid-mock"),
            json!("centraid-mock/x"),
            json!("centraid-mockery/x"),
            json!("x"),
            json!(""),
            json!(5),
        ],
        "onFailure" => vec![json!("a/b/c"), json!("/b"), json!("a/"), json!(".a/b"), json!("a.b"), json!("a/b\n")],
        "kind" => vec![json!("manual"), json!("Cron"), json!("webhook"), json!("cron")],
        "id" => vec![json!("a b"), json!("a.b"), json!("-"), json!("")],
        "secretHash" => {
            vec![json!("ab".repeat(31)), json!("AB".repeat(32)), json!(format!("sha1:{}", "ab".repeat(32)))]
        }
        "pending" => vec![json!(false), json!("true"), json!(1)],
        "scheme" => vec![json!("gitlab"), json!("stripe"), json!("GitHub")],
        "secretRef" => vec![
            json!("env:1"),
            json!("env:_"),
            json!("file: "),
            json!("file:a b"),
            json!("vault:x"),
            json!("file:"),
            json!("file:\t"),
            json!("file:a\u{0}"),
            json!("file:a\nb"),
            json!("file:\u{a0}"),
        ],
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
    /// A letter put somewhere into a text, or taken out of it.
    Edit(Index, Index, Option<char>),
    Replace(Index, Value),
    Remove(Index, Index),
    Insert(Index, &'static str, Value),
    Repeat(Index),
}

/// What makes one text out of another: signs of the grammars, and signs that look like them or like nothing.
const LETTERS: &[Option<char>] = &[
    None,
    Some('a'),
    Some('A'),
    Some('0'),
    Some('/'),
    Some('.'),
    Some('-'),
    Some('_'),
    Some('*'),
    Some(','),
    Some(':'),
    Some(' '),
    Some('\t'),
    Some('\n'),
    Some('\u{0}'),
    Some('\u{7f}'),
    Some('\u{85}'),
    Some('\u{a0}'),
    Some('\u{212a}'),
    Some('\u{ff10}'),
    Some('\u{feff}'),
    Some('💥'),
];

fn damage() -> impl Strategy<Value = Damage> {
    let odd = odd_values;
    prop_oneof![
        12 => (any::<Index>(), any::<Index>()).prop_map(|(at, value)| Damage::Near(at, value)),
        4 => (any::<Index>(), any::<Index>(), select(LETTERS)).prop_map(|(at, within, letter)| {
            Damage::Edit(at, within, letter)
        }),
        4 => (any::<Index>(), odd()).prop_map(|(at, value)| Damage::Replace(at, value)),
        3 => (any::<Index>(), any::<Index>()).prop_map(|(at, which)| Damage::Remove(at, which)),
        2 => (any::<Index>(), select(NAMES), odd()).prop_map(|(at, name, value)| Damage::Insert(at, name, value)),
        1 => any::<Index>().prop_map(Damage::Repeat),
    ]
}

pub fn manifest() -> impl Strategy<Value = Value> {
    let mut fields: Vec<BoxedStrategy<Option<(&'static str, Value)>>> = Vec::new();
    for (name, values) in good_fields() {
        let is_required = matches!(name, "name" | "prompt" | "generated");
        // The more there is in a field, the more often it is there.
        let presence = match name {
            _ if is_required => 0.999,
            "triggers" | "requires" => 0.6,
            _ => 0.25,
        };
        fields.push(proptest::option::weighted(presence, select(values).prop_map(move |value| (name, value))).boxed());
    }
    let whole = (fields, vec(damage(), 0..=3)).prop_map(|(fields, damages)| {
        let members: Map<String, Value> =
            fields.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut manifest = Value::Object(members);
        damages.into_iter().for_each(|damage| apply(&mut manifest, damage));
        manifest
    });
    prop_oneof![500 => whole, 1 => odd_values()]
}

/// Every place below the top, as a JSON Pointer.
pub fn places(value: &Value, at: &str, found: &mut Vec<String>) {
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
    let last = |place: &String| {
        let (owner, name) = place.rsplit_once('/').unwrap();
        match name.parse::<usize>() {
            Ok(_) => format!("{}[]", owner.rsplit('/').next().unwrap()),
            Err(_) => name.to_owned(),
        }
    };
    if let Damage::Edit(..) = &damage {
        found.retain(|place| manifest.pointer(place).is_some_and(Value::is_string));
    }
    // As often in a field that stands in one place as in one that stands in ten.
    if let Damage::Near(at, which) | Damage::Edit(at, which, _) | Damage::Remove(at, which) = &damage {
        let is_any = !matches!(damage, Damage::Near(..));
        let mut names: Vec<String> =
            found.iter().map(last).filter(|name| is_any || !near_misses(name).is_empty()).collect();
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
    | Damage::Edit(at, ..)
    | Damage::Replace(at, _)
    | Damage::Remove(at, _)
    | Damage::Insert(at, ..)
    | Damage::Repeat(at)) = &damage;
    let place = at.get(&found).clone();
    let (parent, name) = place.rsplit_once('/').unwrap();
    match damage {
        Damage::Near(_, value) => {
            *manifest.pointer_mut(&place).unwrap() = value.get(&near_misses(&last(&place))).clone();
        }
        Damage::Edit(_, within, letter) => {
            if let Some(Value::String(text)) = manifest.pointer_mut(&place) {
                let mut letters: Vec<char> = text.chars().collect();
                match letter {
                    Some(letter) => letters.insert(within.index(letters.len() + 1), letter),
                    None if !letters.is_empty() => drop(letters.remove(within.index(letters.len()))),
                    None => {}
                }
                *text = letters.into_iter().collect();
            }
        }
        Damage::Replace(_, value) => *manifest.pointer_mut(&place).unwrap() = value,
        Damage::Insert(_, name, value) => match manifest.pointer_mut(&place).unwrap() {
            Value::Object(members) => {
                members.insert(name.to_owned(), value);
            }
            Value::Array(items) => items.push(value),
            other => *other = value,
        },
        Damage::Remove(..) | Damage::Repeat(_) => match manifest.pointer_mut(parent).unwrap() {
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
