//! A manifest as somebody proposes it who may write automations but not switch them on or let anybody in: a conversational
//! builder. What is written is the proposal's text with two things made sure of:
//!
//! - a new automation is disabled, and one that is disabled stays so; one that is enabled is switched off when the
//!   proposal says `"enabled": false`;
//! - the credentials of a webhook (`id`, `secretHash`, and the `verify` of one that has a route) are those that stand in
//!   the file already. A proposal repeats them or declares the webhook as pending, which keeps them; others are refused.
//!
//! A mistake here lets a model switch on what nobody has looked at, or mint credentials that it knows.

use super::json_tree::Node;
use super::parse::{Parsed, parse};
use super::position::{Path, line_column};
use super::report::Report;
use super::rewrite::{self, RewriteError};
use crate::fire::{AppId, Problem};

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
///
/// # Errors
/// What keeps a text from being rewritten: `standing` is no JSON, so that what it holds would be lost, or the result is
/// too large.
pub fn propose(text: &str, standing: Option<&str>, app: &AppId) -> Result<Proposed, RewriteError> {
    let Parsed { manifest, mut problems, .. } = parse(text.as_bytes(), app);
    let root = Node::read(text).ok();
    let standing = standing.map(|text| Ok((Node::read(text).map_err(RewriteError::invalid)?, text))).transpose()?;
    let route = standing.as_ref().and_then(|(root, _)| webhook_of(root)).filter(|entry| entry.get("id").is_some());
    if let Some(root) = &root {
        problems.extend(judge_credentials(text, root, route));
        problems.sort_by_key(|problem| (problem.line, problem.column));
    }
    let (Some(manifest), Some(root), false) = (manifest, root, problems.iter().any(Problem::is_error)) else {
        return Ok(Proposed { text: None, enabled: false, problems });
    };

    let says = root.get("enabled").is_some();
    let was_enabled = standing.as_ref().and_then(|(_, text)| parse(text.as_bytes(), app).manifest);
    let enabled = was_enabled.is_some_and(|standing| standing.enabled) && (manifest.enabled || !says);
    if says && manifest.enabled && !enabled {
        let message = "enabled is true, but it is written as false: a person enables an automation";
        let problem = Problem::warning("not_enabled", "enabled", message).with_hint("ask for `dirigent enable`");
        let (line, column) = root.get("enabled").map_or((1, 1), |node| line_column(text, node.span.start));
        problems.push(problem.at(line, column));
    }
    let mut written = rewrite::set_enabled(text, enabled)?;
    if let (Some(route), Some(entry)) = (route, webhook_of(&root))
        && entry.get("id").is_none()
    {
        let kept = CREDENTIALS.iter().filter_map(|name| Some((*name, route.get(name)?.to_value())));
        written = rewrite::keep_credentials(&written, kept)?;
    }
    // What stood there may have been faulty itself.
    let after = parse(written.as_bytes(), app).problems;
    if after.iter().any(Problem::is_error) {
        return Ok(Proposed { text: None, enabled: false, problems: after });
    }
    Ok(Proposed { text: Some(written), enabled, problems })
}

/// The first webhook entry; also under the old name `trigger`.
fn webhook_of(root: &Node) -> Option<&Node> {
    let listed = root.get("triggers").and_then(Node::items).unwrap_or_default();
    let mut entries = listed.iter().chain(root.get("trigger"));
    entries.find(|entry| entry.get("kind").and_then(Node::as_str) == Some("webhook"))
}

/// Errors for credentials that are not those of `route`, the webhook that has them.
fn judge_credentials(text: &str, root: &Node, route: Option<&Node>) -> Vec<Problem> {
    let mut report = Report::default();
    let (triggers, single) = (Path::Root.key("triggers"), Path::Root.key("trigger"));
    let listed = root.get("triggers").and_then(Node::items).unwrap_or_default().iter().enumerate();
    let entries = listed.map(|(at, entry)| (triggers.index(at), entry));
    for (path, entry) in entries.chain(root.get("trigger").map(|entry| (single, entry))) {
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
        let proposed = propose(text, standing, &"a".parse().unwrap()).unwrap();
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
            (&off, Some(&on), false, false),
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
    fn a_proposal_without_the_webhook_takes_it_away() {
        let (written, told) = judged(&manifest(""), Some(&provisioned("")));
        assert_eq!((written.unwrap().get("triggers"), told), (None, vec![]));
    }

    #[test]
    fn what_cannot_be_read_is_not_written_over() {
        let error = propose(&manifest(""), Some(r#"{"secretHash": "#), &"a".parse().unwrap()).unwrap_err();
        assert!(matches!(error, RewriteError::InvalidJson(_)));
    }
}
