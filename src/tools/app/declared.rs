//! What an `app.json` declares: the app's queries and actions, read into a form that calls can use.
//!
//! Fields that other hosts of the format know (`manifestVersion`, `confirmation`, `reads`, `knobs`, …) are left in
//! place: they are shown by `centraid_describe` and mean nothing here.
//!
//! Invariant: a declared name is a plain word, so `queries/<name>.js` cannot leave its folder.

use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::HandlerKind;
use crate::core::json_schema::{BrokenSchema, Schema};
use crate::core::shortened::shortened;

/// Problems named in one message; the rest is counted.
const SHOWN: usize = 5;
/// A day, as for automations: the longest `timeoutMs`.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// One parsed `app.json`.
#[derive(Debug, Default)]
pub struct Declared {
    pub name: Option<String>,
    pub version: Option<String>,
    pub description: Option<String>,
    pub queries: Vec<Entry>,
    pub actions: Vec<Entry>,
}

/// One entry of `queries[]` or `actions[]`.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub description: Option<String>,
    /// Tables that the action writes; announced when it succeeds.
    pub writes: Vec<String>,
    pub timeout_ms: u64,
    /// The entry as it stands in the file.
    pub raw: Value,
    input: LazySchema,
    output: LazySchema,
}

/// Compiled when first used: an app may declare many entries of which one is called, and a broken schema then stops
/// only its own entry.
#[derive(Debug, Default)]
struct LazySchema {
    source: Option<Value>,
    compiled: OnceLock<Result<Schema, BrokenSchema>>,
}

impl LazySchema {
    fn get(&self) -> Result<Option<&Schema>, &BrokenSchema> {
        let Some(source) = &self.source else { return Ok(None) };
        match self.compiled.get_or_init(|| Schema::compile(source)) {
            Ok(schema) => Ok(Some(schema)),
            Err(reason) => Err(reason),
        }
    }
}

impl Entry {
    /// The schema of the input, when one is declared.
    ///
    /// # Errors
    /// Why the declared schema is none.
    pub fn input(&self) -> Result<Option<&Schema>, &BrokenSchema> {
        self.input.get()
    }

    /// The schema of the result, when one is declared.
    ///
    /// # Errors
    /// Why the declared schema is none.
    pub fn output(&self) -> Result<Option<&Schema>, &BrokenSchema> {
        self.output.get()
    }
}

impl Declared {
    pub fn entries(&self, kind: HandlerKind) -> &[Entry] {
        match kind {
            HandlerKind::Query => &self.queries,
            HandlerKind::Action => &self.actions,
        }
    }

    /// Index into [`Self::entries`].
    pub fn find(&self, kind: HandlerKind, name: &str) -> Option<usize> {
        self.entries(kind).iter().position(|entry| entry.name == name)
    }

    /// # Errors
    /// Everything wrong with the file, in one message.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let root: Value =
            serde_json::from_slice(text).map_err(|error| format!("app.json is no valid JSON: {error}"))?;
        let Value::Object(root) = root else {
            return Err("app.json must hold a JSON object".to_owned());
        };
        let mut problems = Vec::new();
        let declared = Self {
            name: text_field(&root, "name", "name", &mut problems),
            version: text_field(&root, "version", "version", &mut problems),
            description: text_field(&root, "description", "description", &mut problems),
            queries: entries(&root, HandlerKind::Query, &mut problems),
            actions: entries(&root, HandlerKind::Action, &mut problems),
        };
        if problems.is_empty() {
            return Ok(declared);
        }
        let more = problems.len().saturating_sub(SHOWN);
        problems.truncate(SHOWN);
        let mut message = format!("app.json: {}", problems.join("; "));
        if more > 0 {
            message.push_str(&format!("; and {more} more"));
        }
        Err(message)
    }
}

/// The grammar of query and action names: `^[A-Za-z0-9_-]{1,128}$`.
pub fn is_plain_word(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

fn entries(root: &Map<String, Value>, kind: HandlerKind, problems: &mut Vec<String>) -> Vec<Entry> {
    let list = kind.folder();
    let values = match root.get(list) {
        None | Some(Value::Null) => return Vec::new(),
        Some(Value::Array(values)) => values,
        Some(_) => {
            problems.push(format!("{list} must be a list"));
            return Vec::new();
        }
    };
    let mut entries: Vec<Entry> = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        let at = format!("{list}[{index}]");
        let Some(entry) = entry(value, kind, &at, problems) else {
            continue;
        };
        if entries.iter().any(|earlier| earlier.name == entry.name) {
            problems.push(format!("{at}.name {:?} is declared twice", entry.name));
        } else {
            entries.push(entry);
        }
    }
    entries
}

fn entry(value: &Value, kind: HandlerKind, at: &str, problems: &mut Vec<String>) -> Option<Entry> {
    let Value::Object(fields) = value else {
        problems.push(format!("{at} must be an object such as {{\"name\": …}}"));
        return None;
    };
    let name = match fields.get("name").and_then(Value::as_str) {
        Some(name) if is_plain_word(name) => name.to_owned(),
        Some(name) => {
            problems.push(format!("{at}.name {:?} must match ^[A-Za-z0-9_-]{{1,128}}$", shortened(name, 100)));
            return None;
        }
        None => {
            problems.push(format!("{at}.name must be a text"));
            return None;
        }
    };
    let timeout_ms = match fields.get("timeoutMs") {
        None | Some(Value::Null) => kind.default_timeout_ms(),
        Some(value) => match value.as_u64().filter(|ms| (1..=MAX_TIMEOUT_MS).contains(ms)) {
            Some(ms) => ms,
            None => {
                problems.push(format!("{at}.timeoutMs must be an integer from 1 to {MAX_TIMEOUT_MS}"));
                kind.default_timeout_ms()
            }
        },
    };
    let writes = match fields.get("writes") {
        None | Some(Value::Null) => Vec::new(),
        Some(value) => serde_json::from_value(value.clone()).unwrap_or_else(|_| {
            problems.push(format!("{at}.writes must be a list of table names"));
            Vec::new()
        }),
    };
    Some(Entry {
        description: text_field(fields, "description", &format!("{at}.description"), problems),
        name,
        writes,
        timeout_ms,
        input: schema_field(fields, "input", at, problems),
        output: schema_field(fields, "output", at, problems),
        raw: value.clone(),
    })
}

fn text_field(fields: &Map<String, Value>, key: &str, at: &str, problems: &mut Vec<String>) -> Option<String> {
    match fields.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => {
            problems.push(format!("{at} must be a text"));
            None
        }
    }
}

fn schema_field(fields: &Map<String, Value>, key: &str, at: &str, problems: &mut Vec<String>) -> LazySchema {
    match fields.get(key) {
        None | Some(Value::Null) => LazySchema::default(),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
            LazySchema { source: Some(schema.clone()), compiled: OnceLock::new() }
        }
        Some(_) => {
            problems.push(format!("{at}.{key} must be a JSON Schema"));
            LazySchema::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_format_are_read() {
        let text = br#"{
            "manifestVersion": 1, "id": "todos", "name": "Todos", "version": "0.2.0", "kind": "app", "knobs": [],
            "queries": [{"name": "list", "input": {}, "reads": ["todos"]}],
            "actions": [
                {"name": "add", "confirmation": "none", "input": {"type": "object"}, "writes": ["todos"]},
                {"name": "list", "input": true, "timeoutMs": 5000}
            ]
        }"#;
        let declared = Declared::parse(text).unwrap();
        assert_eq!(declared.name.as_deref(), Some("Todos"));
        assert_eq!(declared.find(HandlerKind::Query, "list"), Some(0));
        assert_eq!(declared.find(HandlerKind::Action, "list"), Some(1));
        assert_eq!(declared.find(HandlerKind::Query, "add"), None);
        assert_eq!(declared.queries[0].timeout_ms, 10_000);
        assert_eq!((declared.actions[0].timeout_ms, declared.actions[1].timeout_ms), (30_000, 5_000));
        assert_eq!(declared.actions[0].writes, ["todos"]);
        assert_eq!(declared.actions[0].raw["confirmation"], "none");
        assert!(declared.actions[0].input().unwrap().is_some());
        assert!(declared.actions[0].output().unwrap().is_none());
        assert!(Declared::parse(b"{}").unwrap().queries.is_empty());
    }

    #[test]
    fn all_problems_are_named_at_once() {
        for (text, parts) in [
            ("{", vec!["app.json is no valid JSON"]),
            ("[]", vec!["must hold a JSON object"]),
            (r#"{"queries": {}}"#, vec!["queries must be a list"]),
            (
                r#"{"name": 1, "queries": ["list", {"name": "../x"}, {}, {"name": "a", "input": 3, "writes": "t"}]}"#,
                vec![
                    "name must be a text",
                    "queries[0] must be an object",
                    "queries[1].name \"../x\"",
                    "queries[2].name",
                ],
            ),
            (r#"{"actions": [{"name": "a", "timeoutMs": 0}]}"#, vec!["actions[0].timeoutMs must be an integer from 1"]),
            (r#"{"actions": [{"name": "a"}, {"name": "a"}]}"#, vec!["actions[1].name \"a\" is declared twice"]),
        ] {
            let message = Declared::parse(text.as_bytes()).unwrap_err();
            for part in parts {
                assert!(message.contains(part), "{text}: {message}");
            }
        }
    }

    #[test]
    fn a_broken_schema_stops_only_its_own_entry() {
        let declared =
            Declared::parse(br#"{"queries": [{"name": "a", "input": {"type": "no"}}, {"name": "b", "input": {}}]}"#)
                .unwrap();
        assert!(declared.queries[0].input().is_err());
        assert!(declared.queries[1].input().is_ok());
    }
}
