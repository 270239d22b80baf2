//! Changes to a manifest's text: switch it on or off, provision its webhook, mint a new secret for it.
//!
//! The text is the user's. Key order, unknown fields, repeated keys and the spelling of every string and number stay as
//! they are; what changes is the one field asked for, the layout (two-space indent, a newline at the end), and an old
//! single `trigger`, which becomes `triggers`. A manifest with problems elsewhere can be rewritten too: the switch must
//! work on a file that is half done. Writing the result to disk is the caller's.

use std::ops::Range;

use super::MAX_MANIFEST_BYTES;
use super::json_tree::{Kind, Node};
use super::triggers::{is_slug, parse_secret_hash};

/// Why a manifest's text was left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    #[error("the manifest is not valid JSON: {0}")]
    InvalidJson(String),
    #[error("the manifest must be a JSON object")]
    NotAnObject,
    #[error("the manifest has no pending webhook trigger")]
    NoPendingWebhook,
    #[error("the manifest has no provisioned webhook trigger")]
    NoProvisionedWebhook,
    #[error("the webhook is checked by its `verify` secret; there is no other secret to rotate")]
    SecretIsElsewhere,
    /// Layout takes room: writing it would make the manifest unreadable.
    #[error("the rewritten manifest would have {0} bytes, more than a manifest may")]
    TooLarge(usize),
    #[error("a webhook id must match ^[A-Za-z0-9_-]+$")]
    InvalidId,
    #[error("a secret hash must be 64 hex digits, with or without \"sha256:\" before them")]
    InvalidSecretHash,
}

impl RewriteError {
    #[allow(clippy::needless_pass_by_value, reason = "it stands where an error is turned into another")]
    fn invalid(error: serde_json::Error) -> Self {
        Self::InvalidJson(error.to_string())
    }
}

/// Sets `enabled`. Where it is absent it goes below `name`, `version` and `description`.
///
/// # Errors
/// [`RewriteError::InvalidJson`], [`RewriteError::NotAnObject`] or [`RewriteError::TooLarge`].
pub fn set_enabled(text: &str, enabled: bool) -> Result<String, RewriteError> {
    let mut document = Document::read(text)?;
    let value = Draft::Raw(enabled.to_string());
    if let Some(old) = document.root.get_mut("enabled") {
        *old = value;
    } else {
        let heading = ["name", "version", "description"];
        let after = document.root.0.iter().rposition(|field| heading.contains(&field.name.as_str()));
        document.root.0.insert(after.map_or(0, |at| at + 1), Field::new("enabled", value));
    }
    document.finish()
}

/// Gives the pending webhook trigger its route id and secret hash, in place of `pending`; all else in it stays.
///
/// # Errors
/// [`RewriteError::NoPendingWebhook`]; a malformed argument; as [`set_enabled`].
pub fn provision_webhook(text: &str, id: &str, secret_hash: &str) -> Result<String, RewriteError> {
    if !is_slug(id) {
        return Err(RewriteError::InvalidId);
    }
    let minted = [Field::new("id", text_value(id)), Field::new("secretHash", hash_value(secret_hash)?)];
    let mut document = Document::read(text)?;
    let webhook = document
        .webhook(|entry| {
            entry.get("id").is_none()
                && entry.get("secretHash").is_none()
                && entry.get("pending").is_some_and(|pending| pending.is_raw("true"))
        })
        .ok_or(RewriteError::NoPendingWebhook)?;
    let at = webhook.0.iter().position(|field| field.name == "pending").unwrap_or(webhook.0.len());
    webhook.0.retain(|field| field.name != "pending");
    webhook.0.splice(at..at, minted);
    document.finish()
}

/// Replaces the secret hash of the provisioned webhook trigger; its id stays.
///
/// # Errors
/// [`RewriteError::NoProvisionedWebhook`]; [`RewriteError::SecretIsElsewhere`] for an entry that has `verify` and no
/// hash; a malformed argument; as [`set_enabled`].
pub fn rotate_webhook(text: &str, secret_hash: &str) -> Result<String, RewriteError> {
    let value = hash_value(secret_hash)?;
    let mut document = Document::read(text)?;
    let webhook = document.webhook(|entry| entry.get("id").is_some()).ok_or(RewriteError::NoProvisionedWebhook)?;
    if let Some(old) = webhook.get_mut("secretHash") {
        *old = value;
    } else if webhook.get("verify").is_some() {
        return Err(RewriteError::SecretIsElsewhere);
    } else {
        let after_id = webhook.0.iter().rposition(|field| field.name == "id").map_or(0, |at| at + 1);
        webhook.0.insert(after_id, Field::new("secretHash", value));
    }
    document.finish()
}

/// Gives the webhook trigger these fields, in place of `pending`; those that it has stay.
///
/// # Errors
/// [`RewriteError::NoPendingWebhook`] when there is no webhook; as [`set_enabled`].
pub(super) fn keep_credentials<'n>(
    text: &str,
    kept: impl Iterator<Item = (&'n str, serde_json::Value)>,
) -> Result<String, RewriteError> {
    let mut document = Document::read(text)?;
    let webhook = document.webhook(|_| true).ok_or(RewriteError::NoPendingWebhook)?;
    webhook.0.retain(|field| field.name != "pending");
    for (name, value) in kept {
        if webhook.get(name).is_none() {
            let text = value.to_string();
            let node = Node::read(&text).map_err(RewriteError::invalid)?;
            webhook.0.push(Field::new(name, Draft::from_node(&node, &text)));
        }
    }
    document.finish()
}

fn hash_value(secret_hash: &str) -> Result<Draft, RewriteError> {
    parse_secret_hash(secret_hash).map(|_| text_value(secret_hash)).ok_or(RewriteError::InvalidSecretHash)
}

fn text_value(text: &str) -> Draft {
    Draft::Raw(serde_json::Value::from(text).to_string())
}

struct Document {
    root: Fields,
}

impl Document {
    /// Reads the text, and turns an old `trigger` into `triggers`.
    fn read(text: &str) -> Result<Self, RewriteError> {
        let node = Node::read(text).map_err(RewriteError::invalid)?;
        let Draft::Object(mut root) = Draft::from_node(&node, text) else {
            return Err(RewriteError::NotAnObject);
        };
        if root.get("triggers").is_none()
            && let Some(at) = root.0.iter().rposition(|field| field.name == "trigger")
        {
            // Of repeated ones the last counts, and only that one may live on under the new name.
            let Field { value, .. } =
                std::mem::replace(&mut root.0[at], Field::new("triggers", Draft::Raw(String::new())));
            root.0[at].value = Draft::Array(vec![value]);
            root.0.retain(|field| field.name != "trigger");
        }
        Ok(Self { root })
    }

    /// The first webhook trigger that `fits`.
    fn webhook(&mut self, fits: impl Fn(&Fields) -> bool) -> Option<&mut Fields> {
        let Draft::Array(triggers) = self.root.get_mut("triggers")? else {
            return None;
        };
        triggers.iter_mut().find_map(|trigger| match trigger {
            Draft::Object(entry) if entry.get("kind").is_some_and(Draft::is_webhook) && fits(entry) => Some(entry),
            _ => None,
        })
    }

    fn finish(self) -> Result<String, RewriteError> {
        let mut text = String::new();
        Draft::Object(self.root).write(&mut text, 0);
        text.push('\n');
        if text.len() > MAX_MANIFEST_BYTES {
            return Err(RewriteError::TooLarge(text.len()));
        }
        Ok(text)
    }
}

/// A JSON value on its way back to text.
enum Draft {
    Object(Fields),
    Array(Vec<Draft>),
    /// A scalar as it was, or will be, spelt.
    Raw(String),
}

/// The members of an object, in order; the last of repeated names counts.
struct Fields(Vec<Field>);

struct Field {
    name: String,
    /// The name as it was spelt, with quotes and escapes.
    raw_name: String,
    value: Draft,
}

impl Field {
    fn new(name: &str, value: Draft) -> Self {
        Self { name: name.to_owned(), raw_name: serde_json::Value::from(name).to_string(), value }
    }
}

impl Fields {
    fn get(&self, name: &str) -> Option<&Draft> {
        self.0.iter().rev().find(|field| field.name == name).map(|field| &field.value)
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut Draft> {
        self.0.iter_mut().rev().find(|field| field.name == name).map(|field| &mut field.value)
    }
}

impl Draft {
    fn from_node(node: &Node, text: &str) -> Self {
        let raw = |span: &Range<usize>| text.get(span.clone()).unwrap_or_default().to_owned();
        match &node.kind {
            Kind::Scalar(_) => Self::Raw(raw(&node.span)),
            Kind::Array(items) => Self::Array(items.iter().map(|item| Self::from_node(item, text)).collect()),
            Kind::Object(members) => Self::Object(Fields(
                members
                    .iter()
                    .map(|member| Field {
                        name: member.key.clone(),
                        raw_name: raw(&member.key_span),
                        value: Self::from_node(&member.node, text),
                    })
                    .collect(),
            )),
        }
    }

    fn is_raw(&self, expected: &str) -> bool {
        matches!(self, Self::Raw(raw) if raw == expected)
    }

    fn is_webhook(&self) -> bool {
        matches!(self, Self::Raw(raw) if serde_json::from_str::<String>(raw).is_ok_and(|kind| kind == "webhook"))
    }

    fn write(&self, out: &mut String, depth: usize) {
        let line = |out: &mut String, depth: usize| {
            out.push('\n');
            out.extend(std::iter::repeat_n("  ", depth));
        };
        match self {
            Self::Raw(raw) => out.push_str(raw),
            Self::Array(items) if items.is_empty() => out.push_str("[]"),
            Self::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    line(out, depth + 1);
                    item.write(out, depth + 1);
                }
                line(out, depth);
                out.push(']');
            }
            Self::Object(Fields(fields)) if fields.is_empty() => out.push_str("{}"),
            Self::Object(Fields(fields)) => {
                out.push('{');
                for (index, field) in fields.iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    line(out, depth + 1);
                    out.push_str(&field.raw_name);
                    out.push_str(": ");
                    field.value.write(out, depth + 1);
                }
                line(out, depth);
                out.push('}');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "sha256:abababababababababababababababababababababababababababababababab";

    #[track_caller]
    fn check(result: Result<String, RewriteError>, expected: &str) {
        assert_eq!(result.as_deref().unwrap_or_else(|error| panic!("{error}")), expected);
    }

    #[test]
    fn everything_but_the_switch_stays_as_it_was() {
        check(
            set_enabled(
                "{\"name\":\"\\u00e9\\/\",\t\"enabled\": true, \
                 \"x-mine\": [1.50, -0, 1e2, {}, [], {\"b\":null,\"a\":\"\\ud800\"}]}\r\n",
                false,
            ),
            r#"{
  "name": "\u00e9\/",
  "enabled": false,
  "x-mine": [
    1.50,
    -0,
    1e2,
    {},
    [],
    {
      "b": null,
      "a": "\ud800"
    }
  ]
}
"#,
        );
    }

    #[test]
    fn the_switch_finds_its_place() {
        for (text, enabled, expected) in [
            ("{}", true, "{\n  \"enabled\": true\n}\n"),
            (
                "{\"prompt\":1,\"name\":2,\"apps\":3}",
                false,
                "{\n  \"prompt\": 1,\n  \"name\": 2,\n  \"enabled\": false,\n  \"apps\": 3\n}\n",
            ),
            ("{\"enabled\":1,\"enabled\":\"yes\"}", true, "{\n  \"enabled\": 1,\n  \"enabled\": true\n}\n"),
            ("{\"en\\u0061bled\":true}", false, "{\n  \"en\\u0061bled\": false\n}\n"),
        ] {
            check(set_enabled(text, enabled), expected);
        }
    }

    #[test]
    fn an_old_trigger_becomes_a_list() {
        check(
            set_enabled(r#"{"enabled":true,"trigger":{"kind":"cron","expr":"* * * * *"},"apps":[]}"#, true),
            "{\n  \"enabled\": true,\n  \"triggers\": [\n    {\n      \"kind\": \"cron\",\n\
             \x20     \"expr\": \"* * * * *\"\n    }\n  ],\n  \"apps\": []\n}\n",
        );
        check(
            set_enabled(r#"{"enabled":true,"trigger":1,"triggers":[]}"#, true),
            "{\n  \"enabled\": true,\n  \"trigger\": 1,\n  \"triggers\": []\n}\n",
        );
    }

    #[test]
    fn provisioning_replaces_pending_alone() {
        let expected = |wrapped: &str| wrapped.replace("HASH", HASH);
        check(
            provision_webhook(
                r#"{"triggers":[{"kind":"cron","expr":"x"},
                    {"kind":"webhook","note":1,"pending":true,"verify":{"a":1},"filter":true}]}"#,
                "a-1_B",
                HASH,
            ),
            &expected(
                r#"{
  "triggers": [
    {
      "kind": "cron",
      "expr": "x"
    },
    {
      "kind": "webhook",
      "note": 1,
      "id": "a-1_B",
      "secretHash": "HASH",
      "verify": {
        "a": 1
      },
      "filter": true
    }
  ]
}
"#,
            ),
        );
        check(
            provision_webhook(r#"{"trigger":{"kind":"webhook","pending":true}}"#, "x", HASH),
            &expected(
                "{\n  \"triggers\": [\n    {\n      \"kind\": \"webhook\",\n      \"id\": \"x\",\n\
                 \x20     \"secretHash\": \"HASH\"\n    }\n  ]\n}\n",
            ),
        );
    }

    #[test]
    fn rotating_keeps_the_id() {
        let expected = format!(
            "{{\n  \"triggers\": [\n    {{\n      \"kind\": \"webhook\",\n      \"secretHash\": \"{HASH}\",\n\
             \x20     \"id\": \"x\"\n    }}\n  ]\n}}\n"
        );
        check(rotate_webhook(r#"{"triggers":[{"kind":"webhook","secretHash":"old","id":"x"}]}"#, HASH), &expected);
        let twice = rotate_webhook(&expected, &"00".repeat(32)).unwrap();
        assert_eq!(twice, expected.replace(HASH, &"00".repeat(32)));
    }

    #[test]
    fn what_cannot_be_rewritten_is_left_alone() {
        let pending = r#"{"triggers":[{"kind":"webhook","pending":true}]}"#;
        let minted = r#"{"triggers":[{"kind":"webhook","id":"x","secretHash":"y","pending":true}]}"#;
        let verified = r#"{"triggers":[{"kind":"webhook","id":"x","verify":{}}]}"#;
        for (result, expected) in [
            (set_enabled("[]", true), RewriteError::NotAnObject),
            (set_enabled("3", true), RewriteError::NotAnObject),
            (provision_webhook(minted, "x", HASH), RewriteError::NoPendingWebhook),
            (provision_webhook("{}", "x", HASH), RewriteError::NoPendingWebhook),
            (
                provision_webhook(r#"{"triggers":{"kind":"webhook","pending":true}}"#, "x", HASH),
                RewriteError::NoPendingWebhook,
            ),
            (provision_webhook(pending, "a b", HASH), RewriteError::InvalidId),
            (provision_webhook(pending, "", HASH), RewriteError::InvalidId),
            (provision_webhook(pending, "x", "the secret"), RewriteError::InvalidSecretHash),
            (rotate_webhook(pending, HASH), RewriteError::NoProvisionedWebhook),
            (rotate_webhook(minted, "abc"), RewriteError::InvalidSecretHash),
            (rotate_webhook(verified, HASH), RewriteError::SecretIsElsewhere),
        ] {
            assert_eq!(result, Err(expected));
        }
        assert!(matches!(set_enabled("{", true), Err(RewriteError::InvalidJson(_))));
    }

    proptest! {
        #[test]
        fn a_rewrite_changes_nothing_but_layout(
            fields in prop::collection::vec(("[a-z]{1,3}", prop_oneof![
                any::<String>().prop_map(serde_json::Value::from),
                any::<f64>().prop_map(serde_json::Value::from),
                prop::collection::vec(any::<i32>(), 0..3).prop_map(serde_json::Value::from),
            ]), 0..8),
        ) {
            let mut value = serde_json::Value::Object(fields.into_iter().collect());
            let rewritten = set_enabled(&value.to_string(), true).unwrap();
            value["enabled"] = true.into();
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&rewritten).unwrap(), value);
            prop_assert_eq!(set_enabled(&rewritten, true).unwrap(), rewritten, "a second time changes nothing");
        }
    }
}
