//! A manifest as somebody proposes it who may write automations but not switch them on or let anybody in: a conversational
//! builder. What is written is the proposal's text with two things made sure of:
//!
//! - a new automation is disabled, and one that is disabled stays so; one that is enabled is switched off when the
//!   proposal says `"enabled": false`;
//! - the credentials of a webhook (`id`, `secretHash`, and the `verify` of one that has a route) are those that stand in
//!   the file already. A proposal repeats them or leaves them out, which keeps them too; others are refused. They go with
//!   their webhook, when the proposal is said to take it away.
//!
//! A name that stands twice in an object is an error here: the person who looks before enabling might read the wrong one.
//!
//! A mistake here lets a model switch on what nobody has looked at, or mint credentials that it knows, or lose those that
//! nobody can restore.

use super::json_tree::Node;
use super::parse::{Parsed, parse};
use super::position::{Path, line_column};
use super::report::Report;
use super::rewrite::{self, RewriteError};
use crate::fire::{AppId, Problem, Severity};

/// What lets somebody in. `verify` names a secret, so it counts among them once there is a route.
const CREDENTIALS: [&str; 3] = ["id", "secretHash", "verify"];

/// What may be written, and what is to be said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposed {
    /// The text to write; none when a problem is an error.
    pub text: Option<String>,
    /// What `text` says.
    pub enabled: bool,
    /// Of the proposal, as its own text has them.
    pub problems: Vec<Problem>,
}

/// Judges a proposal for an automation of `app`. `standing`: the manifest that is there now, if one is.
/// `removes_webhook`: whether a webhook with credentials may go.
pub fn propose(text: &str, standing: Option<&str>, app: &AppId, removes_webhook: bool) -> Proposed {
    let Parsed { manifest, mut problems, .. } = parse(text.as_bytes(), app);
    let root = Node::read(text).ok();
    // What stands there and is repeated to the letter is the person's own.
    if let Some(root) = root.as_ref().filter(|_| standing != Some(text)) {
        problems.retain(|problem| problem.code != "duplicate_field");
        problems.extend(repeats(text, root));
    }
    let standing = match standing.map(|text| Node::read(text).map(|root| (root, text))).transpose() {
        Ok(standing) => standing,
        Err(error) => {
            let message = format!("the file that is there now is not valid JSON ({error}); it is not written over");
            let hint = "it may hold a webhook's credentials: a person mends it, or removes it";
            problems.push(Problem::error("broken_file", "", message).with_hint(hint));
            None
        }
    };
    let minted = |entry: &&Node| entry.get("id").is_some();
    let route = standing.as_ref().and_then(|(root, _)| webhooks(root).find(minted));
    if let Some(root) = &root {
        problems.extend(judge_credentials(text, root, route));
        if route.is_some() && !removes_webhook && webhooks(root).next().is_none() {
            let (line, column) = root.get("triggers").map_or((1, 1), |node| line_column(text, node.span.start));
            let message = "the webhook is left out, and its address and secret would be lost for good";
            let hint = "declare {\"kind\": \"webhook\", \"pending\": true}, which keeps them; `removeWebhook: true` removes it";
            let problem = Problem::error("webhook_left_out", "triggers", message).with_hint(hint);
            problems.push(problem.at(line, column));
        }
        problems.sort_by_key(|problem| (problem.line, problem.column));
    }
    let refused = |problems| Proposed { text: None, enabled: false, problems };
    let (Some(manifest), Some(root), false) = (manifest, root, problems.iter().any(Problem::is_error)) else {
        return refused(problems);
    };

    let says = root.get("enabled").is_some();
    let was_enabled = standing.as_ref().and_then(|(_, text)| parse(text.as_bytes(), app).manifest);
    let was_enabled = was_enabled.is_some_and(|standing| standing.enabled);
    let enabled = was_enabled && (manifest.enabled || !says);
    let switch = match (manifest.enabled, was_enabled) {
        (true, false) if says => Some((
            "not_enabled",
            "enabled is true, but it is written as false: a person enables an automation",
            "ask for `dirigent enable`",
        )),
        (false, true) => Some((
            "switched_off",
            "the automation is enabled, and this switches it off: only a person can enable it again",
            "leave `enabled` out, and it stays as it is",
        )),
        _ => None,
    };
    if let Some((code, message, hint)) = switch {
        let (line, column) = root.get("enabled").map_or((1, 1), |node| line_column(text, node.span.start));
        problems.push(Problem::warning(code, "enabled", message).with_hint(hint).at(line, column));
    }
    let kept = route.filter(|_| webhooks(&root).next().is_some());
    let written = match with_kept(text, enabled, kept) {
        Ok(written) => written,
        Err(error) => {
            let code = if matches!(error, RewriteError::TooLarge(_)) { "too_large" } else { "invalid_field" };
            let problem = Problem::error(code, "", error.to_string()).with_hint("keep data out of the manifest");
            problems.push(problem.at(1, 1));
            return refused(problems);
        }
    };
    // What stood there may have been faulty itself.
    let after = parse(written.as_bytes(), app).problems;
    if after.iter().any(Problem::is_error) {
        return refused(after);
    }
    Proposed { text: Some(written), enabled, problems }
}

/// The text with its switch set, and with the credentials of `route` that it leaves out.
fn with_kept(text: &str, enabled: bool, route: Option<&Node>) -> Result<String, RewriteError> {
    let written = rewrite::set_enabled(text, enabled)?;
    let Some(route) = route else { return Ok(written) };
    let kept = CREDENTIALS.iter().filter_map(|name| Some((*name, route.get(name)?.to_value())));
    rewrite::keep_credentials(&written, kept)
}

/// The webhook entries that count. One too many is an error elsewhere.
fn webhooks(root: &Node) -> impl Iterator<Item = &Node> {
    let (listed, single) = match root.get("triggers") {
        Some(list) => (list.items().unwrap_or_default(), None),
        None => (&[][..], root.get("trigger")),
    };
    listed.iter().chain(single).filter(|entry| is_webhook(entry))
}

fn is_webhook(entry: &Node) -> bool {
    entry.get("kind").and_then(Node::as_str) == Some("webhook")
}

/// Errors for names that stand twice.
fn repeats(text: &str, root: &Node) -> impl Iterator<Item = Problem> {
    let mut report = Report::default();
    report.check_repeats(root, &Path::Root);
    report.into_problems(text).into_iter().map(|problem| Problem { severity: Severity::Error, ..problem })
}

/// Errors for credentials that are not those of `route`, the webhook that has them. Also where they have no effect: a
/// `trigger` beside `triggers` may have one some day.
fn judge_credentials(text: &str, root: &Node, route: Option<&Node>) -> Vec<Problem> {
    let mut report = Report::default();
    let (triggers, single) = (Path::Root.key("triggers"), Path::Root.key("trigger"));
    let listed = root.get("triggers").and_then(Node::items).unwrap_or_default().iter().enumerate();
    let entries = listed.map(|(at, entry)| (triggers.index(at), entry));
    let entries = entries.chain(root.get("trigger").map(|entry| (single, entry)));
    for (path, entry) in entries.filter(|(_, entry)| is_webhook(entry)) {
        for name in CREDENTIALS {
            let Some(given) = entry.get(name) else { continue };
            let rule = match route {
                Some(route) if route.get(name).is_some_and(|stands| stands.to_value() == given.to_value()) => continue,
                Some(_) => "must stay as it is in the file",
                // With a route yet to be minted, it is a wish like any other field.
                None if name == "verify" => continue,
                None => "is minted by a person, with `dirigent webhook provision`",
            };
            let found = report.error("minted_field", &path.key(name), given, rule);
            found.hint("declare {\"kind\": \"webhook\", \"pending\": true}; what the webhook has already is kept");
        }
    }
    report.into_problems(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const ID: &str = "0123456789abcdef01234567";

    fn manifest(fields: &str) -> String {
        format!(r#"{{"name":"n","prompt":"p","generated":{{"by":"t","at":"now"}}{fields}}}"#)
    }

    fn webhook(fields: &str) -> String {
        manifest(&format!(r#","triggers":[{{"kind":"cron","expr":"* * * * *"}},{{"kind":"webhook",{fields}}}]"#))
    }

    fn provisioned(rest: &str) -> String {
        webhook(&format!(r#""id":"{ID}","secretHash":"{}"{rest}"#, "ab".repeat(32)))
    }

    #[track_caller]
    fn judged(text: &str, standing: Option<&str>) -> (Option<Value>, Vec<(String, String)>) {
        let proposed = propose(text, standing, &"a".parse().unwrap(), false);
        let told = proposed.problems.iter().map(|problem| (problem.code.clone(), problem.field.clone())).collect();
        let written = proposed.text.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        if let Some(written) = &written {
            assert_eq!(written["enabled"], proposed.enabled);
        }
        (written, told)
    }

    #[test]
    fn only_what_was_enabled_stays_enabled() {
        let (bare, on, off) = (manifest(""), manifest(r#","enabled":true"#), manifest(r#","enabled":false"#));
        for (text, standing, enabled, told) in [
            (&bare, None, false, false),
            (&on, None, false, true),
            (&off, None, false, false),
            (&on, Some(&off), false, true),
            (&bare, Some(&off), false, false),
            (&bare, Some(&on), true, false),
            (&bare, Some(&bare), true, false),
            (&off, Some(&on), false, true),
            (&on, Some(&on), true, false),
            // What is not valid does not fire, whatever it says.
            (&on, Some(&r#"{"enabled":true}"#.to_owned()), false, true),
        ] {
            let (written, problems) = judged(text, standing.map(String::as_str));
            assert_eq!(written.unwrap()["enabled"], enabled, "{text} over {standing:?}");
            assert_eq!(problems.len(), usize::from(told), "{text} over {standing:?}: {problems:?}");
        }
    }

    #[test]
    fn credentials_are_neither_made_nor_changed_nor_lost() {
        let refused = |name: &str| vec![("minted_field".to_owned(), format!("triggers[1].{name}"))];
        let verify = r#","verify":{"scheme":"github","secretRef":"env:A"}"#;
        let other = r#","verify":{"scheme":"github","secretRef":"env:HOME"}"#;
        let pending = r#""pending":true"#;
        let stands = provisioned("");
        let verified = webhook(&format!(r#""id":"{ID}"{verify}"#));

        // None stands: none can be given.
        let (written, told) = judged(&provisioned(""), None);
        assert_eq!((written, told), (None, [refused("id"), refused("secretHash")].concat()));
        let (written, _) = judged(&provisioned(""), Some(&webhook(pending)));
        assert_eq!(written, None, "declared is not minted");
        let (written, told) = judged(&webhook(&format!("{pending}{verify}")), None);
        assert_eq!((written.unwrap()["triggers"][1]["verify"]["scheme"].as_str(), told), (Some("github"), vec![]));

        // What stands may be repeated, or left to stand.
        for text in [provisioned(r#","filter":true"#), webhook(&format!(r#"{pending},"filter":true"#))] {
            let (written, told) = judged(&text, Some(&stands));
            let entry = &written.unwrap()["triggers"][1];
            assert_eq!((entry["id"].as_str(), entry.get("pending"), told), (Some(ID), None, vec![]), "{text}");
            assert_eq!((entry["secretHash"].as_str().unwrap().len(), &entry["filter"]), (64, &Value::Bool(true)));
        }
        let (written, _) = judged(&webhook(pending), Some(&verified));
        assert_eq!(written.unwrap()["triggers"][1]["verify"]["secretRef"], "env:A", "nobody gets in without");

        // Another secret is another one's.
        let changed = stands.replace("abab", "abcd");
        assert_eq!(judged(&changed, Some(&stands)), (None, refused("secretHash")));
        assert_eq!(judged(&stands.replace(ID, "mine"), Some(&stands)), (None, refused("id")));
        assert_eq!(judged(&webhook(&format!("{pending}{other}")), Some(&verified)), (None, refused("verify")));
        assert_eq!(judged(&provisioned(other), Some(&stands)), (None, refused("verify")));

        // Also under the old name, and when everything else is wrong.
        let old = format!(r#"{{"trigger":{{"kind":"webhook","id":"{ID}"}}}}"#);
        let (written, told) = judged(&old, None);
        assert!(written.is_none() && told.contains(&("minted_field".to_owned(), "trigger.id".to_owned())), "{told:?}");
        assert!(told.iter().any(|(_, field)| field == "prompt"), "all of it is told at once: {told:?}");
    }

    #[test]
    fn what_a_repeated_webhook_leaves_out_is_kept() {
        let verify = r#","verify":{"scheme":"github","secretRef":"env:A"}"#;
        let stands = provisioned(verify);
        let bare = provisioned("");
        let unhashed = webhook(&format!(r#""id":"{ID}"{verify}"#));
        for text in [&stands, &bare, &unhashed, &webhook(r#""pending":true"#)] {
            let (written, told) = judged(text, Some(&stands));
            let mut entry = written.unwrap_or_else(|| panic!("{text}: {told:?}"))["triggers"][1].take();
            let mut expected: Value = serde_json::from_str(&stands).unwrap();
            entry.as_object_mut().unwrap().sort_keys();
            expected["triggers"][1].as_object_mut().unwrap().sort_keys();
            assert_eq!(
                entry, expected["triggers"][1],
                "without `verify`, an old bearer secret would be good again: {text}"
            );
        }
    }

    #[test]
    fn credentials_are_found_where_they_count() {
        // One too many in a file that is faulty: the minted one is kept.
        let entry = format!(r#"{{"kind":"webhook","id":"{ID}","secretHash":"{}"}}"#, "ab".repeat(32));
        let pending = manifest(r#","triggers":[{"kind":"webhook","pending":true}]"#);
        let two = manifest(&format!(r#","triggers":[{{"kind":"webhook","pending":true}},{entry}]"#));
        let (written, _) = judged(&pending, Some(&two));
        assert_eq!(written.unwrap()["triggers"][0]["id"], ID);
        // An old `trigger` counts alone, and has no effect beside a list.
        let (written, _) = judged(&pending, Some(&manifest(&format!(r#","trigger":{entry}"#))));
        assert_eq!(written.unwrap()["triggers"][0]["id"], ID);
        let (written, _) = judged(&pending, Some(&manifest(&format!(r#","triggers":[],"trigger":{entry}"#))));
        assert_eq!(written.unwrap()["triggers"][0].get("id"), None, "what was closed stays closed");
        let (written, told) = judged(&manifest(&format!(r#","triggers":[],"trigger":{entry}"#)), None);
        assert!(written.is_none() && told.iter().any(|(_, field)| field == "trigger.id"), "{told:?}");
        // Elsewhere an `id` is a field like any other.
        let cron = manifest(r#","triggers":[{"kind":"cron","expr":"* * * * *","id":"mine"}]"#);
        let (written, told) = judged(&cron, None);
        assert_eq!((&written.unwrap()["triggers"][0]["id"], told.len()), (&Value::from("mine"), 1), "{told:?}");
    }

    #[test]
    fn a_minted_webhook_goes_only_when_that_is_said() {
        let app = "a".parse().unwrap();
        for text in [manifest(""), manifest(r#","triggers":[{"kind":"cron","expr":"* * * * *"}]"#)] {
            let (written, told) = judged(&text, Some(&provisioned("")));
            assert_eq!((written, told), (None, vec![("webhook_left_out".to_owned(), "triggers".to_owned())]));
            let proposed = propose(&text, Some(&provisioned("")), &app, true);
            assert!(proposed.problems.is_empty() && !proposed.text.unwrap().contains(ID));
            // A wish may go any time.
            assert!(judged(&text, Some(&webhook(r#""pending":true"#))).0.is_some());
        }
    }

    #[test]
    fn names_that_stand_twice_are_refused() {
        let hidden = manifest(&format!(
            r#","triggers":[{{"kind":"webhook","id":"{ID}","secretHash":"{}"}}],"tri\u0067gers":[]"#,
            "ab".repeat(32)
        ));
        let many: String = (0..150).map(|n| format!(r#","x{n}":1"#)).collect();
        for text in [&hidden, &manifest(&format!(r#"{many},"enabled":false,"en\u0061bled":true"#))] {
            let proposed = propose(text, None, &"a".parse().unwrap(), false);
            assert!(
                proposed.text.is_none()
                    && proposed.problems.iter().any(|p| p.code == "duplicate_field" && p.is_error())
            );
        }
        // With the handler alone, a person's own file is proposed again.
        let twice = manifest(r#","version":"1","version":"2""#);
        assert!(judged(&twice, Some(&twice)).0.is_some());
    }

    #[test]
    fn what_cannot_be_written_is_told_with_the_rest() {
        let (written, told) = judged(&manifest(r#","timeoutMs":0"#), Some(r#"{"secretHash": "#));
        assert_eq!(written, None);
        let codes: Vec<&str> = told.iter().map(|(code, _)| code.as_str()).collect();
        assert_eq!(codes, ["broken_file", "invalid_field"]);
        // Layout takes room.
        let (written, told) = judged(&manifest(&format!(r#","x":[{}0]"#, "0,".repeat(100_000))), None);
        assert_eq!((written, told.last().unwrap().0.as_str()), (None, "too_large"));
    }
}
