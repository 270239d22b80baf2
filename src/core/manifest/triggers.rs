//! The `triggers` list, and the old single `trigger`.
//!
//! A webhook entry with neither `id` nor `secretHash` must say `"pending": true`; as soon as either is there, the entry
//! is a provisioned one and both are needed (the hash not, when `verify` says how posts are checked), whatever
//! `pending` says.

use super::json_tree::Node;
use super::position::Path;
use super::report::{Report, kind_of, one_of, seen};
use super::subschema::read_filter;
use super::{CronTrigger, SecretRef, Trigger, Verify, VerifyScheme, Webhook, fields};
use crate::core::cron::{CronError, CronSchedule};
use crate::core::near_name::nearest;

const CODE: &str = "invalid_trigger";

/// Longest header name that is accepted in `verify.header`; real ones have a third of it.
const MAX_HEADER_NAME: usize = 100;

pub fn read_triggers(report: &mut Report, root: &Node) -> Vec<Trigger> {
    let path = Path::Root.key("triggers");
    if let Some(list) = root.get("triggers") {
        if let Some(old) = root.get("trigger") {
            report
                .warning("unknown_field", &Path::Root.key("trigger"), old, "has no effect beside \"triggers\"")
                .hint("move it into \"triggers\", or remove it");
        }
        let Some(items) = list.items() else {
            let found = report.error(CODE, &path, list, format!("must be an array, not {}", kind_of(list)));
            if list.is_object() {
                found.hint("put the trigger in square brackets");
            }
            return Vec::new();
        };
        if let Some(second) = items.iter().filter(|item| kind_word(item) == Some("webhook")).nth(1) {
            report.error(CODE, &path, second, "may hold one webhook entry, but holds more");
        }
        return items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| read_trigger(report, item, &path.index(index)))
            .collect();
    }
    root.get("trigger").and_then(|old| read_trigger(report, old, &Path::Root.key("trigger"))).into_iter().collect()
}

fn kind_word(trigger: &Node) -> Option<&str> {
    trigger.get("kind").and_then(Node::as_str)
}

fn read_trigger(report: &mut Report, trigger: &Node, path: &Path<'_>) -> Option<Trigger> {
    const KINDS: &[&str] = &["cron", "webhook"];
    if !trigger.is_object() {
        let found =
            report.error(CODE, path, trigger, format!("must be an object with a \"kind\", not {}", seen(trigger)));
        if trigger.as_str().is_some_and(|text| text.split_whitespace().count() == 5) {
            found.hint("write { \"kind\": \"cron\", \"expr\": \"<the five fields>\" }");
        }
        return None;
    }
    match kind_word(trigger) {
        Some("cron") => read_cron(report, trigger, path).map(Trigger::Cron),
        Some("webhook") => read_webhook(report, trigger, path),
        other => {
            let rule = format!("must be {}", one_of(KINDS));
            let kind_path = path.key("kind");
            let found = match trigger.get("kind") {
                Some(kind) => report.error(CODE, &kind_path, kind, format!("{rule}, not {}", seen(kind))),
                None => report.error(CODE, &kind_path, trigger, format!("{rule}, but is absent")),
            };
            if let Some(near) = other.and_then(|text| nearest(text, KINDS)) {
                found.hint(format!("did you mean \"{near}\"?"));
            } else if trigger.get("expr").is_some() {
                found.hint("add \"kind\": \"cron\"");
            }
            None
        }
    }
}

fn read_cron(report: &mut Report, trigger: &Node, path: &Path<'_>) -> Option<CronTrigger> {
    report.check_names(trigger, path, fields::CRON);
    let expr = report.required_text(trigger, path, "expr");
    let (tz, tz_is_good) = match trigger.get("tz") {
        None => (None, true),
        Some(node) => {
            let tz = read_tz(report, node, &path.key("tz"));
            let good = tz.is_some();
            (tz, good)
        }
    };
    let expr = expr?;
    match CronSchedule::parse(&expr, tz.as_deref()) {
        Ok(schedule) => tz_is_good.then_some(CronTrigger { expr, tz, schedule }),
        Err(CronError { field, message, hint }) => {
            let node = trigger.get("expr").unwrap_or(trigger);
            let part = field.map(|field| format!("{field} ")).unwrap_or_default();
            let rule = format!("{} is no schedule: {part}{message}", seen(node));
            let found = report.error(CODE, &path.key("expr"), node, rule);
            if let Some(hint) = hint {
                found.hint(hint);
            }
            None
        }
    }
}

fn read_tz(report: &mut Report, node: &Node, path: &Path<'_>) -> Option<String> {
    let Some(tz) = node.as_str() else {
        report.error(CODE, path, node, format!("must name an IANA time zone, not {}", seen(node)));
        return None;
    };
    // An expression that matches always, so that only the zone can be at fault.
    match CronSchedule::parse("* * * * *", Some(tz)) {
        Ok(_) => Some(tz.to_owned()),
        Err(CronError { hint, .. }) => {
            let found = report.error(CODE, path, node, format!("must name an IANA time zone, not {}", seen(node)));
            found.hint(
                hint.unwrap_or_else(|| "write a name such as \"Europe/Berlin\", or leave \"tz\" out for UTC".into()),
            );
            None
        }
    }
}

fn read_webhook(report: &mut Report, trigger: &Node, path: &Path<'_>) -> Option<Trigger> {
    report.check_names(trigger, path, fields::WEBHOOK);
    let filter = read_filter(report, trigger, path);
    let verify = trigger.get("verify").and_then(|node| read_verify(report, node, &path.key("verify")));
    if trigger.get("id").is_none() && trigger.get("secretHash").is_none() {
        return match trigger.get("pending") {
            Some(pending) if pending.is_true() => Some(Trigger::WebhookPending { verify, filter }),
            _ => {
                let rule = "must have \"id\" and \"secretHash\", or \"pending\": true";
                report
                    .error(CODE, path, trigger, rule)
                    .hint("write \"pending\": true, then run `dirigent webhook provision <app>/<automation>`");
                None
            }
        };
    }
    let id = report.required_text(trigger, path, "id");
    if let (Some(text), Some(node)) = (&id, trigger.get("id"))
        && !is_slug(text)
    {
        let rule = format!("must hold letters, digits, \"_\" and \"-\" only, not {}", seen(node));
        report.error(CODE, &path.key("id"), node, rule);
    }
    let secret_sha256 = match trigger.get("secretHash") {
        None if trigger.get("verify").is_some() => None,
        _ => report.required_text(trigger, path, "secretHash").and_then(|text| {
            let hash = parse_secret_hash(&text);
            if let (None, Some(node)) = (hash, trigger.get("secretHash")) {
                // Never with the value: it may well be the secret itself.
                report
                    .error(CODE, &path.key("secretHash"), node, "must be 64 hex digits, the SHA-256 of the secret")
                    .hint("`dirigent webhook rotate <app>/<automation>` mints a new secret and writes its hash");
            }
            hash
        }),
    };
    Some(Trigger::Webhook(Webhook { id: id?, secret_sha256, verify, filter }))
}

/// The grammar of a webhook's route slug: `^[A-Za-z0-9_-]+$`.
pub fn is_slug(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// 64 hex digits, with or without `sha256:` before them.
pub fn parse_secret_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text.strip_prefix("sha256:").unwrap_or(text), &mut hash).ok()?;
    Some(hash)
}

fn read_verify(report: &mut Report, node: &Node, path: &Path<'_>) -> Option<Verify> {
    if !node.is_object() {
        report.error(
            CODE,
            path,
            node,
            format!("must be an object with \"scheme\" and \"secretRef\", not {}", kind_of(node)),
        );
        return None;
    }
    report.check_names(node, path, fields::VERIFY);
    let scheme = match node.get("scheme") {
        Some(scheme) => {
            let parsed = scheme.as_str().and_then(VerifyScheme::parse);
            if parsed.is_none() {
                let rule = format!("must be {}, not {}", one_of(VerifyScheme::WORDS), seen(scheme));
                let found = report.error(CODE, &path.key("scheme"), scheme, rule);
                if let Some(near) = scheme.as_str().and_then(|text| nearest(text, VerifyScheme::WORDS)) {
                    found.hint(format!("did you mean \"{near}\"?"));
                }
            }
            parsed
        }
        None => {
            report.required_text(node, path, "scheme");
            None
        }
    };
    let secret_ref = report.required_text(node, path, "secretRef").and_then(|text| {
        let parsed = parse_secret_ref(&text);
        if let (None, Some(node)) = (&parsed, node.get("secretRef")) {
            report
                .error(CODE, &path.key("secretRef"), node, "must be \"env:NAME\" or \"file:path\"")
                .hint("the secret itself never stands in a manifest: say where it is kept");
        }
        parsed
    });
    let header = node.get("header").and_then(|header| {
        let name = header.as_str().filter(|text| is_header_name(text));
        if name.is_none() {
            report.error(
                CODE,
                &path.key("header"),
                header,
                format!("must be an HTTP header name, not {}", seen(header)),
            );
        }
        name.map(str::to_owned)
    });
    Some(Verify { scheme: scheme?, secret_ref: secret_ref?, header })
}

fn parse_secret_ref(text: &str) -> Option<SecretRef> {
    match text.split_once(':')? {
        ("env", name) => {
            let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let is_name = starts_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            is_name.then(|| SecretRef::Env(name.to_owned()))
        }
        ("file", path) => {
            let is_path = !path.trim_matches(' ').is_empty() && !path.contains(|c: char| c.is_ascii_control());
            is_path.then(|| SecretRef::File(path.to_owned()))
        }
        _ => None,
    }
}

/// A token of RFC 9110, section 5.6.2.
fn is_header_name(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    (1..=MAX_HEADER_NAME).contains(&text.len()) && text.bytes().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_references_name_a_place() {
        let env = |name: &str| Some(SecretRef::Env(name.to_owned()));
        let file = |path: &str| Some(SecretRef::File(path.to_owned()));
        for (text, expected) in [
            ("env:GITHUB_SECRET", env("GITHUB_SECRET")),
            ("env:_x1", env("_x1")),
            ("file:secrets/hook", file("secrets/hook")),
            ("file:C:\\secrets\\hook", file("C:\\secrets\\hook")),
            ("env:", None),
            ("env:1X", None),
            ("env:A B", None),
            ("file:", None),
            ("file: ", None),
            ("whsec_abc", None),
            ("vault:x", None),
        ] {
            assert_eq!(parse_secret_ref(text), expected, "{text}");
        }
    }

    #[test]
    fn secret_hashes_are_64_hex_digits() {
        let digits = "ab".repeat(32);
        for (text, good) in [
            (digits.clone(), true),
            (format!("sha256:{digits}"), true),
            (digits.to_uppercase(), true),
            (format!("sha512:{digits}"), false),
            (digits[1..].to_owned(), false),
            (format!("{digits}00"), false),
            (format!("{} ", &digits[1..]), false),
        ] {
            assert_eq!(parse_secret_hash(&text), good.then_some([0xab; 32]), "{text}");
        }
    }

    #[test]
    fn header_names_are_tokens() {
        for (text, good) in [("X-Hub-Signature-256", true), ("x y", false), ("", false), ("x:", false), ("é", false)] {
            assert_eq!(is_header_name(text), good, "{text}");
        }
    }
}
