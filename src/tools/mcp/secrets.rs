//! What `env` and `headers` of a server stand for, and how it is kept out of everything that is shown.
//!
//! Words: a *reference* is `${NAME}`, or `${NAME:-instead}`, in a value; it stands for a variable of the daemon's own
//! environment. What follows is *secret* to a [`Redactor`]: what a reference stood for, and a value that is written out
//! where secrets stand (an `Authorization` header, a variable called `…TOKEN`) or that looks like one (long, without
//! blanks, letters and digits mixed, and no path or address). Of an address with a password, the password alone is one
//! too, as it stands and as it is meant. What a server inherits anyway, such as `HOME`, is none, nor is text so
//! short that a redaction would only garble other text.
//!
//! A secret is known as it stands, within JSON that is quoted as text once or twice, percent-encoded, and in base64; of
//! one that has many lines, each line is a secret, too, unless it is short.
//!
//! Invariant: whatever comes from a server goes through its redactor before it reaches an isolate, a ledger, a log or a
//! message. A server is free to encode a secret in other ways before it tells it; against that there is no remedy but not
//! to give it one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::Value;

/// Stands where a secret stood.
const INSTEAD: &str = "[redacted]";
/// Shorter text is no secret, and stands in other text by chance.
const MIN_SECRET: usize = 4;
const MIN_SECRET_DIGITS: usize = 6;
/// Shorter lines of a secret that has many are no secret by themselves.
const MIN_SECRET_LINE: usize = 8;
/// A value that is written out, under a name that says nothing, is a secret only from this length on.
const MIN_UNNAMED_SECRET: usize = 16;
const SECRET_WORDS: &[&str] = &["TOKEN", "SECRET", "PASS", "KEY", "CREDENTIAL", "AUTH", "COOKIE", "SESSION", "PAT"];

/// Values with their references replaced.
pub struct Expanded {
    pub values: BTreeMap<String, String>,
    pub redactor: Redactor,
}

/// Replaces the references in all values. `env` looks up a variable; `inherited` are those that are no secret.
///
/// # Errors
/// The name of a variable that is not set.
pub fn expand(
    values: &BTreeMap<String, String>,
    env: &dyn Fn(&str) -> Option<String>,
    inherited: &[&str],
) -> Result<Expanded, String> {
    let mut secrets = Vec::new();
    let mut expanded = BTreeMap::new();
    for (name, value) in values {
        let mut text = String::new();
        let mut literal = true;
        for part in parts(value) {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Reference { name, instead } => {
                    let found = env(name).or_else(|| instead.map(str::to_owned)).ok_or_else(|| name.to_owned())?;
                    text.push_str(&found);
                    literal = false;
                    if !inherited.contains(&name) {
                        secrets.extend(passwords(&found));
                        secrets.push(found);
                    }
                }
            }
        }
        if literal && is_secret(name, &text) {
            // `Bearer <token>`: the token alone is the secret too.
            secrets.extend(text.split_once(' ').map(|(_, rest)| rest.to_owned()));
            secrets.push(text.clone());
        }
        let in_address = passwords(&text);
        if !in_address.is_empty() {
            secrets.extend(in_address);
            secrets.push(text.clone());
        }
        expanded.insert(name.clone(), text);
    }
    Ok(Expanded { values: expanded, redactor: Redactor::new(secrets) })
}

fn is_secret(name: &str, value: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let looks = || {
        value.len() >= MIN_UNNAMED_SECRET
            && !value.contains(char::is_whitespace)
            && !is_path(value)
            && value.contains(|c: char| c.is_ascii_digit())
            && value.contains(|c: char| c.is_ascii_alphabetic())
    };
    SECRET_WORDS.iter().any(|word| name.contains(word)) || looks()
}

/// A path or an address, as far as it can be told from letters and digits that hold slashes by chance.
fn is_path(value: &str) -> bool {
    let mut start = value.chars();
    let is_drive = start.next().is_some_and(|c| c.is_ascii_alphabetic()) && start.next() == Some(':');
    value.starts_with(['/', '~', '.', '@']) || value.contains("://") || (is_drive && value.contains('\\'))
}

/// The password in an address such as `postgres://me:password@host/db`, as it is written and as it is meant.
fn passwords(value: &str) -> Vec<String> {
    let Some((_, rest)) = value.split_once("://") else { return Vec::new() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Some((_, password)) = authority.rsplit_once('@').and_then(|(user, _)| user.split_once(':')) else {
        return Vec::new();
    };
    // Read as the value of a form, in which only these two mean something else.
    let form = format!("_={}", password.replace('+', "%2B").replace('&', "%26"));
    let meant = url::form_urlencoded::parse(form.as_bytes()).map(|(_, meant)| meant.into_owned());
    std::iter::once(password.to_owned()).chain(meant).collect()
}

enum Part<'a> {
    Text(&'a str),
    Reference { name: &'a str, instead: Option<&'a str> },
}

/// The text and the references of a value, in order. What only resembles a reference is text.
fn parts(mut value: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while let Some(start) = value.find("${") {
        let Some(len) = value[start..].find('}') else { break };
        let inner = &value[start + 2..start + len];
        let (name, instead) = match inner.split_once(":-") {
            Some((name, instead)) => (name, Some(instead)),
            None => (inner, None),
        };
        let end = start + len + 1;
        if is_variable_name(name) {
            parts.push(Part::Text(&value[..start]));
            parts.push(Part::Reference { name, instead });
        } else {
            parts.push(Part::Text(&value[..end]));
        }
        value = &value[end..];
    }
    parts.push(Part::Text(value));
    parts
}

fn is_variable_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| word(c) && !c.is_ascii_digit()) && name.chars().all(word)
}

/// A secret as it stands, and as programs write it when they put it into something else.
fn forms(secret: &str) -> Vec<String> {
    // JSON quoted as text, and such a text quoted again.
    let once = in_json(secret);
    let mut forms = vec![in_json(&once), once, url::form_urlencoded::byte_serialize(secret.as_bytes()).collect()];
    // What stays as it is differs from writer to writer; so does the case of the digits.
    for kept in ["-._~", "-._~/", "-_.!~*'()"] {
        forms.extend([true, false].map(|upper| percent_encoded(secret, kept, upper)));
    }
    forms.push(secret.to_owned());
    forms
}

/// As a JSON text, without its quotes.
fn in_json(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent_encoded(text: &str, kept: &str, upper: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || kept.contains(c) {
            encoded.push(c);
        } else if upper {
            encoded.push_str(&format!("%{byte:02X}"));
        } else {
            encoded.push_str(&format!("%{byte:02x}"));
        }
    }
    encoded
}

/// Takes secrets out of text. No `Debug`: it holds them.
#[derive(Clone, Default)]
pub struct Redactor {
    /// Finds the longest, so that none hides half of another; `None` when there is no secret.
    secrets: Option<AhoCorasick>,
}

impl Redactor {
    fn new(found: Vec<String>) -> Self {
        let mut secrets: Vec<String> = Vec::new();
        for secret in found.into_iter().map(|secret| secret.trim().to_owned()) {
            // Few digits are a port or a year.
            let digits = secret.chars().all(|c| c.is_ascii_digit());
            if secret.chars().count() < if digits { MIN_SECRET_DIGITS } else { MIN_SECRET } {
                continue;
            }
            for line in secret.lines().map(str::trim) {
                // The frame of a key is everybody's.
                let is_frame = line.starts_with("-----BEGIN ") || line.starts_with("-----END ");
                if line != secret && !is_frame && line.chars().count() >= MIN_SECRET_LINE {
                    secrets.extend(forms(line));
                }
            }
            secrets.extend([STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD].map(|base64| base64.encode(&secret)));
            secrets.extend(forms(&secret));
        }
        secrets.sort();
        secrets.dedup();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&secrets);
        let finder = finder.expect("mcp.json and an environment hold far fewer than the 2^31 bytes that are too many");
        Self { secrets: (!secrets.is_empty()).then_some(finder) }
    }

    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(secrets) = self.secrets.as_ref().filter(|secrets| secrets.is_match(text)) else {
            return Cow::Borrowed(text);
        };
        let mut redacted = String::with_capacity(text.len());
        secrets.replace_all_with(text, &mut redacted, |_, _, instead| {
            instead.push_str(INSTEAD);
            true
        });
        Cow::Owned(redacted)
    }

    /// As [`Self::text`], for all texts and names in a value.
    pub fn value(&self, value: &mut Value) {
        if self.secrets.is_none() {
            return;
        }
        match value {
            Value::String(text) => {
                if let Cow::Owned(redacted) = self.text(text) {
                    *text = redacted;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(members) => {
                if members.keys().any(|name| matches!(self.text(name), Cow::Owned(_))) {
                    let renamed = std::mem::take(members).into_iter();
                    members.extend(renamed.map(|(name, value)| (self.text(&name).into_owned(), value)));
                }
                members.values_mut().for_each(|value| self.value(value));
            }
            // A secret of digits alone is a secret as a number, too.
            Value::Number(number) => {
                if self.text(&number.to_string()) == INSTEAD {
                    *value = Value::from(INSTEAD);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn env(name: &str) -> Option<String> {
        Some(match name {
            "TOKEN" => "hunter2".to_owned(),
            "DB" => "mysql://me:pass-2@db".to_owned(),
            "ODD" => "a\"b\\c".to_owned(),
            "HOME" => "/home/me".to_owned(),
            "SHORT" => "on".to_owned(),
            "PORT" => "3001".to_owned(),
            "EMPTY" => String::new(),
            "PEM" => {
                "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADAN+/Bg==\nkqhkiG9w0BAQ\nshort\n-----END PRIVATE KEY-----\n"
                    .to_owned()
            }
            _ => return None,
        })
    }

    fn of(name: &str, value: &str) -> Result<Expanded, String> {
        expand(&BTreeMap::from([(name.to_owned(), value.to_owned())]), &env, &["HOME"])
    }

    #[test]
    fn references_stand_for_the_environment() {
        for (value, expected) in [
            ("plain", Ok("plain")),
            ("${TOKEN}", Ok("hunter2")),
            ("Bearer ${TOKEN}!${TOKEN}", Ok("Bearer hunter2!hunter2")),
            ("${HOME}/x", Ok("/home/me/x")),
            ("${EMPTY}", Ok("")),
            ("${NONE}", Err("NONE")),
            ("${NONE:-x}", Ok("x")),
            ("${TOKEN:-x}", Ok("hunter2")),
            ("$TOKEN ${} ${a-b} ${1A} ${", Ok("$TOKEN ${} ${a-b} ${1A} ${")),
            ("${ü", Ok("${ü")),
        ] {
            let found = of("X", value).map(|expanded| expanded.values["X"].clone());
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{value}");
        }
    }

    #[test]
    fn secrets_are_known_by_where_they_come_from_and_stand() {
        for (name, value, text, redacted) in [
            ("X", "${TOKEN}", "it is hunter2.", "it is [redacted]."),
            ("Authorization", "Bearer ${TOKEN}", "hunter2", "[redacted]"),
            ("Authorization", "Bearer abcdef", "token abcdef, Bearer abcdef", "token [redacted], [redacted]"),
            ("GITHUB_TOKEN", "abcd", "abcd", "[redacted]"),
            ("X", "ghp_0123456789abcdef", "ghp_0123456789abcdef", "[redacted]"),
            ("X", "${ODD}", "{\\\"k\\\":\\\"a\\\"b\\\\c\\\"}", "{\\\"k\\\":\\\"[redacted]\\\"}"),
            ("X", "${ODD}", "a\"b\\c", "[redacted]"),
            ("X", "wJalrXUtnFEMI/K7MDENG+bPxRfi", "wJalrXUtnFEMI/K7MDENG+bPxRfi", "[redacted]"),
            ("DATABASE_URL", "postgres://me:p%40ss-1@db/x", "me/p@ss-1: p%40ss-1", "me/[redacted]: [redacted]"),
            ("DATABASE_URL", "postgres://me:p%40ss-1@db/x", "postgres://me:p%40ss-1@db/x", "[redacted]"),
            ("X", "${DB}", "for me: pass-2", "for me: [redacted]"),
            ("ENDPOINT", "https://host.example/v1/mcp", "https://host.example/v1/mcp", "https://host.example/v1/mcp"),
            ("DIR", "/srv/data-2026/notes", "/srv/data-2026/notes", "/srv/data-2026/notes"),
            ("TZ", "Europe/Berlin", "Europe/Berlin", "Europe/Berlin"),
            ("DIR", "${HOME}/data", "/home/me/data", "/home/me/data"),
            ("PORT", "${PORT}", "port 3001", "port 3001"),
            ("MODE", "${SHORT}", "on and on", "on and on"),
            ("MODE", "production", "production", "production"),
        ] {
            let expanded = of(name, value).unwrap_or_else(|missing| panic!("{value}: {missing}"));
            assert_eq!(expanded.redactor.text(text), redacted, "{name}={value}");
        }
    }

    #[test]
    fn secrets_are_known_in_other_forms() {
        let quoted = |text: &str| Value::from(text).to_string();
        let odd = "a\"b\\c";
        let pem = env("PEM").unwrap();
        let token = "to/ken+with ü=";
        let redactor = Redactor::new(vec![odd.to_owned(), pem.clone(), token.to_owned()]);
        for (text, redacted) in [
            (odd.to_owned(), "[redacted]".to_owned()),
            (quoted(odd), "\"[redacted]\"".to_owned()),
            (quoted(&quoted(odd)), "\"\\\"[redacted]\\\"\"".to_owned()),
            ("a%22b%5Cc, a%22b%5cc".to_owned(), "[redacted], [redacted]".to_owned()),
            (pem.clone(), "[redacted]\n".to_owned()),
            (quoted(&quoted(pem.trim())), "\"\\\"[redacted]\\\"\"".to_owned()),
            ("MIIEvQIBADAN+/Bg==".to_owned(), "[redacted]".to_owned()),
            ("  kqhkiG9w0BAQ\r".to_owned(), "  [redacted]\r".to_owned()),
            ("MIIEvQIBADAN%2B%2FBg%3D%3D".to_owned(), "[redacted]".to_owned()),
            (json!(pem.lines().collect::<Vec<_>>()).to_string(), {
                let frame = |word| format!("-----{word} PRIVATE KEY-----");
                json!([frame("BEGIN"), INSTEAD, INSTEAD, "short", frame("END")]).to_string()
            }),
            (format!("Basic {}", STANDARD.encode(token)), "Basic [redacted]".to_owned()),
            (URL_SAFE_NO_PAD.encode(pem.trim()), "[redacted]".to_owned()),
            // As encodeURIComponent, Python's quote and a form write it.
            ("to%2Fken%2Bwith%20%C3%BC%3D".to_owned(), "[redacted]".to_owned()),
            ("to/ken%2Bwith%20%C3%BC%3D".to_owned(), "[redacted]".to_owned()),
            ("to%2Fken%2Bwith+%C3%BC%3D".to_owned(), "[redacted]".to_owned()),
        ] {
            assert_eq!(redactor.text(&text), redacted, "{text}");
        }
        let mut lines = json!(pem.lines().collect::<Vec<_>>());
        redactor.value(&mut lines);
        assert_eq!((&lines[1], &lines[2]), (&json!(INSTEAD), &json!(INSTEAD)));
    }

    #[test]
    fn values_are_redacted_everywhere_in_them() {
        let redactor = Redactor::new(vec!["hunter2".to_owned(), "hunter22".to_owned(), "123456".to_owned()]);
        let mut value = json!({"a": ["x hunter22 y", {"hunter2": true}], "n": 123_456, "b": null});
        redactor.value(&mut value);
        assert_eq!(value, json!({"a": ["x [redacted] y", {"[redacted]": true}], "n": "[redacted]", "b": null}));
    }
}
