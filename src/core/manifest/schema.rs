//! The JSON Schema of `automation.json`, for editors and for the models that write manifests.
//!
//! It accepts what [`fn@super::parse`] accepts and refuses what that refuses, so far as JSON Schema can say it. Beyond
//! it are:
//!
//! - whether a cron text ever matches;
//! - whether a webhook's `filter` compiles: its patterns, its references, another draft;
//! - what is wrong with the text before it is JSON: its size, its encoding, its depth;
//! - all that is only a warning: fields that nobody knows, names that stand twice, `max` with a mode that has none.
//!
//! `schema_tests.rs` compares the two, and lists the first two again.

use serde_json::{Value, json};

use super::{CatchUp, ConcurrencyMode, VerifyScheme, limits};
use crate::core::cron;
use crate::fire::{AppId, AutomationId};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema, of draft 2020-12.
pub fn json_schema() -> Value {
    json!({
        "$schema": DRAFT,
        "title": "automation.json",
        "description": "What an automation is: when it runs, what its handler may use, what is kept of its runs.",
        "type": "object",
        "required": ["name", "prompt", "generated"],
        "properties": {
            "$schema": { "description": "The schema of this file, for editors." },
            "name": text("What people see."),
            "version": with(text("The automation's own version."), "default", limits::DEFAULT_VERSION.into()),
            "description": { "type": "string" },
            "prompt": text("The human intent behind the handler. Documentation, never executed."),
            "enabled": {
                "description": "Only an absent field or a literal true is enabled.",
                "default": true,
                "examples": [true, false],
            },
            "triggers": {
                "description": "What fires it. Empty: by hand and by ctx.invoke only.",
                "type": "array",
                "default": [],
                "items": { "$ref": "#/$defs/trigger" },
                "contains": {
                    "type": "object",
                    "required": ["kind"],
                    "properties": { "kind": { "const": "webhook" } },
                },
                "minContains": 0,
                "maxContains": 1,
            },
            "trigger": { "description": "Old form of a list of one.", "deprecated": true },
            "requires": requires(),
            "apps": texts("Ids of the apps that it is shown under, and whose tools it may use."),
            "costEstimate": cost_estimate(),
            "outputSchema": output_schema(),
            "onFailure": {
                "description": "The automation fired when a run of this one ends in error: <app>/<automation>, or \
                    <automation> in the same app.",
                "type": "string",
                "pattern": handle_pattern(),
            },
            "history": history(),
            "generated": {
                "description": "Who wrote the automation, and when.",
                "type": "object",
                "required": ["by", "at"],
                "properties": { "by": text("Who."), "at": text("When; usually RFC 3339.") },
            },
            "concurrency": concurrency(),
            "timeoutMs": whole_number("Longest run, in milliseconds.", &limits::TIMEOUT_MS, limits::DEFAULT_TIMEOUT_MS),
            "catchUp": {
                "description": "What becomes of cron fires missed while nothing ran.",
                "enum": CatchUp::WORDS,
                "default": CatchUp::Once.as_str(),
            },
            "retry": {
                "description": "Whole-run retries after an error.",
                "type": "object",
                "properties": {
                    "max": whole_number("Retries after the first attempt.", &limits::RETRY_MAX, 0),
                    "backoffMs": whole_number(
                        "Wait before the first retry, in milliseconds; it doubles from there.",
                        &limits::BACKOFF_MS,
                        limits::DEFAULT_BACKOFF_MS,
                    ),
                },
            },
        },
        "if": { "not": { "required": ["triggers"] } },
        "then": { "properties": { "trigger": { "$ref": "#/$defs/trigger" } } },
        "$defs": { "trigger": trigger(), "cron": cron_trigger(), "webhook": webhook(), "verify": verify() },
    })
}

fn text(description: &str) -> Value {
    json!({ "description": description, "type": "string", "minLength": 1 })
}

fn texts(description: &str) -> Value {
    json!({ "description": description, "type": "array", "items": { "type": "string", "minLength": 1 } })
}

fn with(mut schema: Value, keyword: &str, value: Value) -> Value {
    schema[keyword] = value;
    schema
}

fn whole_number(description: &str, range: &std::ops::RangeInclusive<u64>, default: u64) -> Value {
    json!({
        "description": description,
        "type": "integer",
        "minimum": range.start(),
        "maximum": range.end(),
        "default": default,
    })
}

fn requires() -> Value {
    json!({
        "description": "What the handler may use.",
        "type": ["object", "array"],
        "properties": {
            "mcps": texts("MCP servers that the handler may use."),
            "tools": texts("Tools that the handler may use: <server>.<tool>, or <server>.*"),
            "model": {
                "description": "The model of ctx.agent: provider/model-id.",
                "type": "string",
                "minLength": 1,
                "not": { "pattern": "^centraid-mock(/|$)" },
            },
        },
    })
}

fn cost_estimate() -> Value {
    json!({
        "type": "object",
        "required": ["model", "tokensPerFire"],
        "properties": { "model": text("A model."), "tokensPerFire": { "type": "number", "minimum": 0 } },
    })
}

fn output_schema() -> Value {
    let kind = json!({ "enum": ["array", "boolean", "integer", "null", "number", "object", "string"] });
    json!({
        "description": "JSON Schema of the handler's output.",
        "type": "object",
        "required": ["type"],
        // No more than what other hosts read: a fault in any other keyword is only a warning.
        "properties": {
            "type": { "const": "object" },
            "properties": {
                "type": "object",
                "additionalProperties": {
                    "type": ["object", "boolean"],
                    "properties": {
                        "type": {
                            "anyOf": [
                                kind,
                                { "type": "array", "items": kind, "minItems": 1, "uniqueItems": true },
                            ],
                        },
                    },
                },
            },
            "required": { "type": "array", "items": { "type": "string", "minLength": 1 } },
        },
    })
}

/// `<app>/<automation>` or `<automation>`, from the grammars of the two names.
fn handle_pattern() -> String {
    let inner = |rule: &'static str| rule.trim_start_matches('^').trim_end_matches('$');
    format!("^({}/)?{}$", inner(AppId::RULE), inner(AutomationId::RULE))
}

fn history() -> Value {
    let number = json!({ "type": "integer", "minimum": 0 });
    json!({
        "description": "Which ended runs are kept.",
        "type": "object",
        "properties": {
            "keep": {
                "default": { "count": limits::DEFAULT_HISTORY_COUNT },
                "anyOf": [
                    { "enum": ["all", "errors"] },
                    { "type": "object", "required": ["count"], "properties": { "count": number } },
                    { "type": "object", "required": ["days"], "properties": { "days": number } },
                ],
            },
        },
    })
}

fn concurrency() -> Value {
    json!({
        "description": "What a fire does while a run of the same automation is active.",
        "type": "object",
        "properties": {
            "mode": { "enum": ConcurrencyMode::WORDS, "default": ConcurrencyMode::Single.as_str() },
            "max": {
                "description": format!(
                    "queued: runs that may wait (default {}); parallel: runs at once (default {}).",
                    limits::DEFAULT_QUEUED_MAX,
                    limits::DEFAULT_PARALLEL_MAX
                ),
                "type": "integer",
                "minimum": limits::CONCURRENCY_MAX.start(),
                "maximum": limits::CONCURRENCY_MAX.end(),
            },
        },
    })
}

fn trigger() -> Value {
    json!({
        "type": "object",
        "required": ["kind"],
        "properties": { "kind": { "enum": ["cron", "webhook"] } },
        "if": { "properties": { "kind": { "const": "cron" } } },
        "then": { "$ref": "#/$defs/cron" },
        "else": { "$ref": "#/$defs/webhook" },
    })
}

fn cron_trigger() -> Value {
    let (pattern, reversed) = cron::patterns();
    let reversed: Vec<Value> = reversed.into_iter().map(|pattern| json!({ "pattern": pattern })).collect();
    json!({
        "required": ["expr"],
        "properties": {
            "expr": {
                "description": "Minute, hour, day of month, month, day of week. No range may end before it begins, and an \
                    expression that can never match, such as 0 0 30 2 *, is refused as well.",
                "type": "string",
                "pattern": pattern,
                "not": { "anyOf": reversed },
                "examples": ["0 9 * * MON-FRI"],
            },
            "tz": {
                "description": "An IANA time zone by its exact name; UTC without it.",
                "enum": cron::zone_names(),
                "examples": ["Europe/Berlin"],
            },
        },
    })
}

fn webhook() -> Value {
    json!({
        "properties": {
            "verify": { "$ref": "#/$defs/verify" },
            "filter": {
                "description": "JSON Schema of the bodies that are run.",
                "type": ["object", "boolean"],
                "if": { "properties": { "$schema": { "const": DRAFT } } },
                "then": { "$ref": DRAFT },
            },
        },
        "if": { "anyOf": [{ "required": ["id"] }, { "required": ["secretHash"] }] },
        "then": {
            "required": ["id"],
            "anyOf": [{ "required": ["secretHash"] }, { "required": ["verify"] }],
            "properties": {
                "id": { "description": "The route slug.", "type": "string", "pattern": "^[A-Za-z0-9_-]+$" },
                "secretHash": {
                    "description": "SHA-256 of the secret, in hex; never the secret.",
                    "type": "string",
                    "pattern": "^(sha256:)?[0-9A-Fa-f]{64}$",
                },
            },
        },
        "else": {
            "required": ["pending"],
            "properties": { "pending": { "description": "Declared, not yet provisioned.", "const": true } },
        },
    })
}

fn verify() -> Value {
    json!({
        "description": "Checks a signature over the raw body instead of the bearer secret.",
        "type": "object",
        "required": ["scheme", "secretRef"],
        "properties": {
            "scheme": { "enum": VerifyScheme::WORDS },
            "secretRef": {
                "description": "Where the signing secret is kept; never the secret.",
                "type": "string",
                "pattern": "^(env:[A-Za-z_][A-Za-z0-9_]*|file: *[^\\x00-\\x20\\x7f][^\\x00-\\x1f\\x7f]*)$",
            },
            "header": {
                "description": "HTTP header of the signature.",
                "type": "string",
                "pattern": "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$",
            },
        },
    })
}
