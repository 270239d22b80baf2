//! The JSON Schema and the validator say the same of any manifest: what one accepts, the other accepts.
//!
//! It is asked of manifests that are made up ([`made_up`]). The only differences allowed are those that the text of
//! `schema.rs` names: [`is_beyond_schema`].

mod made_up;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};

use self::made_up::{good_fields, manifest, places};
use super::*;
use crate::core::json_schema::Schema;
use crate::fire::{AppId, Problem};

/// Rules that JSON Schema has no words for: each a code, the end of a field, and a part of the message.
const BEYOND_SCHEMA: &[(&str, &str, &str)] = &[
    // Whether a cron text ever matches.
    ("invalid_trigger", ".expr", "can never match"),
    // Whether a filter compiles: patterns, references, drafts.
    ("invalid_trigger", ".filter", ""),
];

/// Rules of the schema that no manifest tells apart from the others: what they refuse is beyond it in part, or is
/// refused by another rule, too.
const NEVER_ALONE: &[&str] = &[
    "/properties/triggers/contains/type",
    "/properties/triggers/contains/required",
    "/properties/requires/properties/model/type",
    "/$defs/cron/properties/expr/type",
    "/$defs/webhook/properties/filter/type",
    "/$defs/webhook/properties/filter/if",
    "/$defs/webhook/properties/filter/if/properties/$schema/const",
    "/$defs/webhook/properties/filter/then",
    "/$defs/webhook/properties/filter/then/$ref",
];

fn is_beyond_schema(problem: &Problem) -> bool {
    // Of what type a thing is, the schema can say.
    if problem.message.contains(".filter must be a JSON Schema, not ") {
        return false;
    }
    BEYOND_SCHEMA.iter().any(|(code, field, part)| {
        let is_field = problem.field.ends_with(field) || problem.field.contains(&format!("{field}."));
        problem.code == *code && is_field && problem.message.contains(part)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

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

/// Texts near the grammar of cron: items of words that mean something in one field or another, and some that do not.
fn cron_text() -> impl Strategy<Value = String> {
    let value = || {
        prop_oneof![
            6 => (0..10u32).prop_map(|n| n.to_string()),
            3 => (0..70u32).prop_map(|n| n.to_string()),
            1 => (0..40u32).prop_map(|n| format!("0{n}")),
            2 => select(vec!["jan", "FEB", "Dec", "sun", "MON", "fRi", "SAT", "SUN"]).prop_map(str::to_owned),
            1 => select(vec!["", "febr", "L", "5W", "1#2", "٣", "100", "-1", "\u{17f}un"]).prop_map(str::to_owned),
        ]
    };
    let step = || {
        prop_oneof![
            8 => Just(String::new()),
            2 => (1..90u32).prop_map(|n| format!("/{n}")),
            1 => select(vec!["/0", "/00", "/", "/x", "/07", "/1/2", "/MON"]).prop_map(str::to_owned),
        ]
    };
    let star = (select(vec!["*", "?"]), step()).prop_map(|(star, step)| format!("{star}{step}"));
    let range = (value(), value(), step()).prop_map(|(from, until, step)| format!("{from}-{until}{step}"));
    let item = prop_oneof![
        12 => star,
        6 => value(),
        4 => range,
        1 => (value(), step()).prop_map(|(value, step)| format!("{value}{step}")),
        1 => select(vec!["**", "*-5", "1-2-3", "@daily"]).prop_map(str::to_owned),
    ];
    let word = prop_oneof![
        4 => proptest::collection::vec(item, 1..4).prop_map(|items| items.join(",")),
        6 => Just("*".to_owned()),
    ];
    let blank = || prop_oneof![20 => Just(" "), 1 => select(vec!["\t", "  ", "\n", "\u{a0}"])];
    let words = prop_oneof![30 => Just(5_usize), 1 => 4..7_usize];
    words
        .prop_flat_map(move |count| proptest::collection::vec((word.clone(), blank()), count))
        .prop_map(|words| words.into_iter().map(|(word, blank)| word + blank).collect::<String>())
        .prop_map(|text| text.strip_suffix(' ').map(str::to_owned).unwrap_or(text))
}

/// What the schema and the validator say of a cron trigger, with the validator's message.
fn of_cron(schema: &Schema, expr: &str, tz: &str) -> (bool, bool, String) {
    let trigger = json!({"kind": "cron", "expr": expr, "tz": tz});
    let manifest = json!({"name": "n", "prompt": "p", "generated": {"by": "b", "at": "a"}, "triggers": [trigger]});
    let parsed = parse(manifest.to_string().as_bytes(), &AppId::new("todos").unwrap());
    let told = parsed.problems.iter().map(|problem| problem.message.clone()).collect();
    (schema.is_valid(&manifest), parsed.manifest.is_some(), told)
}

#[test]
fn the_schema_knows_the_grammar_of_cron() {
    let schema = Schema::compile(&json_schema()).unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let texts = cron_text();
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let expr = texts.new_tree(&mut runner).unwrap().current();
        let (by_schema, by_parse, told) = of_cron(&schema, &expr, "UTC");
        assert!(by_schema == by_parse || (by_schema && told.contains("can never match")), "{expr:?}: {told}");
        if by_parse { good += 1 } else { bad += 1 }
    }
    assert!(good > 3_000 && bad > 3_000, "{good} and {bad}");
    // Every range of every field.
    for field in 0..5 {
        for (from, until) in (0..=61).flat_map(|from| (0..=61).map(move |until| (from, until))) {
            let mut words = ["*"; 5].map(str::to_owned);
            words[field] = format!("{from}-{until}");
            let (by_schema, by_parse, told) = of_cron(&schema, &words.join(" "), "UTC");
            assert_eq!(by_schema, by_parse, "{words:?}: {told}");
        }
    }
}

#[test]
fn the_schema_knows_the_zones() {
    let schema = Schema::compile(&json_schema()).unwrap();
    for zone in crate::core::cron::zone_names() {
        assert_eq!(of_cron(&schema, "* * * * *", zone), (true, true, String::new()), "{zone}");
        let upper = zone.to_uppercase();
        for near in [upper.as_str(), &zone.to_lowercase(), &zone[1..], &format!("{zone} "), &format!("{zone}x")] {
            let (by_schema, by_parse, _) = of_cron(&schema, "* * * * *", near);
            assert_eq!(by_schema, by_parse, "{near}");
        }
    }
    for zone in ["Mars/X", "utc", "Z", "europe/berlin", "", "+01:00", "CEST"] {
        assert!(
            !schema.is_valid(&json!({"name": "n", "prompt": "p", "generated": {"by": "b", "at": "a"},
            "triggers": [{"kind": "cron", "expr": "* * * * *", "tz": zone}]})),
            "{zone}"
        );
    }
}

/// The comparison can fail: with any one rule taken out of the schema, some of eight thousand manifests show it.
#[test]
fn a_rule_that_is_missing_is_found_out() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let app = AppId::new("todos").unwrap();
    let made_up = manifest();
    let manifests: Vec<(Value, bool)> = (0..8_000)
        .filter_map(|_| {
            let manifest = made_up.new_tree(&mut runner).unwrap().current();
            let parsed = parse(manifest.to_string().as_bytes(), &app);
            let errors = || parsed.problems.iter().filter(|problem| problem.is_error());
            let is_good = errors().next().is_none();
            let is_comparable = is_good || errors().any(|problem| !is_beyond_schema(problem));
            is_comparable.then_some((manifest, is_good))
        })
        .collect();
    let good = manifests.iter().filter(|(_, is_good)| *is_good).count();
    assert!((1_600..6_400).contains(&good), "both verdicts come up: {good}");
    let differ = |schema: &Value| {
        let schema = Schema::compile(schema).unwrap();
        manifests.iter().any(|(manifest, is_good)| schema.is_valid(manifest) != *is_good)
    };
    assert!(!differ(&json_schema()));
    let mut rules = Vec::new();
    places(&json_schema(), "", &mut rules);
    rules.retain(|place| {
        let (owner, keyword) = place.rsplit_once('/').unwrap();
        // Names of fields, not rules; and words for people.
        !owner.ends_with("/properties")
            && !place.contains("/examples")
            && !place.contains("/default")
            && !NEVER_ALONE.contains(&place.as_str())
            && keyword.parse::<usize>().is_err()
            && !matches!(
                keyword,
                "properties" | "description" | "title" | "default" | "deprecated" | "examples" | "$defs"
            )
            && !place.starts_with("/$schema")
            && !owner.ends_with("/$defs")
    });
    assert!(rules.len() > 80, "{}", rules.len());
    let mut unseen: Vec<String> = Vec::new();
    for place in rules {
        let (owner, keyword) = place.rsplit_once('/').unwrap();
        let mut schema = json_schema();
        schema.pointer_mut(owner).unwrap().as_object_mut().unwrap().shift_remove(keyword).unwrap();
        if !differ(&schema) {
            unseen.push(place);
        }
    }
    assert_eq!(unseen, [""; 0]);
}

/// Where a rule is beyond the schema, what it can say of it is said all the same: most slips are seen in the editor.
#[test]
fn what_is_beyond_the_schema_is_refused_as_far_as_it_goes() {
    let schema = Schema::compile(&json_schema()).unwrap();
    let cron = |expr: &str, tz: &str| json!({"kind": "cron", "expr": expr, "tz": tz});
    let webhook = |filter: Value| json!({"kind": "webhook", "pending": true, "filter": filter});
    for (trigger, is_good) in [
        (cron("* * * * *", "UTC"), true),
        (cron("* * * *", "UTC"), false),
        (cron("* * * * * *", "UTC"), false),
        (cron("@daily", "UTC"), false),
        (cron("٣ * * * *", "UTC"), false),
        (cron("* * * * MON#1", "UTC"), false),
        (cron("*\u{a0}* * * *", "UTC"), false),
        (cron("* * * * *\n", "UTC"), false),
        (cron("60 * * * *", "UTC"), false),
        (cron("* 24 * * *", "UTC"), false),
        (cron("* * 0 * *", "UTC"), false),
        (cron("* * * 13 *", "UTC"), false),
        (cron("* * * * 8", "UTC"), false),
        (cron("5/15 * * * *", "UTC"), false),
        (cron("*/0 * * * *", "UTC"), false),
        (cron("5-1 * * * *", "UTC"), false),
        (cron("* * * * FRI-MON", "UTC"), false),
        (cron("* * * * FRI-sun", "UTC"), true),
        (cron("1,,2 * * * *", "UTC"), false),
        (cron("* * L * *", "UTC"), false),
        (cron("* * * febr *", "UTC"), false),
        (cron("* * * * *", "Europe/Berlin\n"), false),
        (cron("* * * * *", "New York"), false),
        (webhook(json!({"type": "object"})), true),
        (webhook(json!({"type": "strng"})), false),
        (webhook(json!({"required": "a"})), false),
        (webhook(json!({"$schema": DRAFT_7, "dependencies": {"a": ["b"]}})), true),
        (json!({"kind": "webhook", "secretHash": "ab".repeat(32)}), false),
    ] {
        let manifest = json!({"name": "n", "prompt": "p", "generated": {"by": "b", "at": "a"}, "triggers": [trigger]});
        assert_eq!(schema.is_valid(&manifest), is_good, "{manifest}");
        let parsed = parse(manifest.to_string().as_bytes(), &AppId::new("todos").unwrap());
        assert_eq!(parsed.manifest.is_some(), is_good, "{manifest}: {:?}", parsed.problems);
    }
}

const DRAFT_7: &str = "http://json-schema.org/draft-07/schema#";

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
