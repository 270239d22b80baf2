//! The problems of one manifest as they are found, and the readers of single fields that find most of them.
//!
//! Every reader takes the object that owns the field, so that an absent field can be shown where it is missing. A
//! reader answers `None` both for "absent" and for "reported"; the caller fills in the default either way, because a
//! manifest with any error is thrown away as a whole.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::json_tree::Node;
use super::position::{Cursor, Path};
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::fire::{Problem, Severity};

/// Errors, and as many warnings, that are kept of one file; past it, one more problem says how many were left out.
/// Nobody reads more, and a file of 256 KiB can hold 50,000 of them, each with a long path.
const MAX_PROBLEMS: usize = 100;

/// Characters of an observed value that a message repeats.
const SEEN_CHARS: usize = 60;

#[derive(Debug, Default)]
pub struct Report {
    found: Vec<Found>,
    errors: usize,
    warnings: usize,
    /// Takes the hint of a problem that is left out.
    left_out: Option<Found>,
}

#[derive(Debug)]
pub struct Found {
    /// Byte offset in the text.
    offset: usize,
    problem: Problem,
}

impl Found {
    pub fn hint(&mut self, hint: impl Into<String>) {
        self.problem.hint = Some(hint.into());
    }
}

impl Report {
    /// Records an error at `node`; the message is the field and the `rule` that it breaks.
    pub fn error(&mut self, code: &str, path: &Path<'_>, node: &Node, rule: impl AsRef<str>) -> &mut Found {
        self.record(Severity::Error, code, || path.to_string(), node.span.start, rule.as_ref())
    }

    pub fn warning(&mut self, code: &str, path: &Path<'_>, node: &Node, rule: impl AsRef<str>) -> &mut Found {
        self.record(Severity::Warning, code, || path.to_string(), node.span.start, rule.as_ref())
    }

    /// Like the two above, for a field whose text form and byte offset the caller works out.
    pub fn record(
        &mut self,
        severity: Severity,
        code: &str,
        field: impl FnOnce() -> String,
        offset: usize,
        rule: &str,
    ) -> &mut Found {
        let count = match severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count > MAX_PROBLEMS {
            return self.left_out.insert(Found { offset, problem: Problem::error(code, "", "") });
        }
        let field = field();
        let subject = if field.is_empty() { "the manifest" } else { field.as_str() };
        let problem = Problem { severity, ..Problem::error(code, &field, format!("{subject} {rule}")) };
        let index = self.found.len();
        self.found.push(Found { offset, problem });
        &mut self.found[index]
    }

    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// All problems in the order of the text, with line and column.
    pub fn into_problems(mut self, text: &str) -> Vec<Problem> {
        self.found.sort_by_key(|found| found.offset);
        let mut cursor = Cursor::default();
        let place = |found: Found| {
            let (line, column) = cursor.advance(text, found.offset);
            found.problem.at(line, column)
        };
        let mut problems: Vec<Problem> = self.found.into_iter().map(place).collect();
        let left_out = self.errors + self.warnings - problems.len();
        if left_out > 0 {
            let (line, column) = cursor.advance(text, text.len());
            let severity = if self.errors > MAX_PROBLEMS { Severity::Error } else { Severity::Warning };
            let message = format!("the manifest has {left_out} more problems");
            problems.push(Problem { severity, ..Problem::error("more_problems", "", message) }.at(line, column));
        }
        problems
    }

    /// Warns about fields of `owner` that nobody reads, and about names that stand in it twice.
    pub fn check_names(&mut self, owner: &Node, path: &Path<'_>, known: &[&'static str]) {
        for member in owner.members().unwrap_or_default() {
            let name = member.key.as_str();
            if known.contains(&name) {
                continue;
            }
            let rule = "is not a known field; it is kept and has no effect";
            let is_shown = self.warnings < MAX_PROBLEMS;
            let found = self.record(
                Severity::Warning,
                "unknown_field",
                || path.key(name).to_string(),
                member.key_span.start,
                rule,
            );
            if is_shown && let Some(near) = nearest(name, known) {
                found.hint(format!("did you mean \"{near}\"?"));
            }
        }
    }

    /// Warns, at every depth, about names that stand twice in one object.
    pub fn check_repeats(&mut self, node: &Node, path: &Path<'_>) {
        if let Some(members) = node.members() {
            let mut seen = std::collections::HashSet::new();
            for member in members {
                let path = path.key(&member.key);
                if !seen.insert(member.key.as_str()) {
                    let offset = member.key_span.start;
                    let rule = "stands twice in the same object; the last one counts";
                    self.record(Severity::Warning, "duplicate_field", || path.to_string(), offset, rule)
                        .hint("remove the one that is not meant");
                }
                self.check_repeats(&member.node, &path);
            }
        }
        for (index, item) in node.items().unwrap_or_default().iter().enumerate() {
            self.check_repeats(item, &path.index(index));
        }
    }

    /// A string that must be there and not be empty, else `missing_field`.
    pub fn required_text(&mut self, owner: &Node, path: &Path<'_>, key: &str) -> Option<String> {
        let path = path.key(key);
        let rule = "must be a non-empty string";
        match owner.get(key) {
            None => {
                self.error("missing_field", &path, owner, format!("{rule}, but is absent"));
            }
            Some(node) => match node.as_str() {
                Some("") => {
                    self.error("missing_field", &path, node, format!("{rule}, but is empty"));
                }
                Some(text) => return Some(text.to_owned()),
                None => {
                    self.error("missing_field", &path, node, format!("{rule}, not {}", kind_of(node)));
                }
            },
        }
        None
    }

    /// An array of non-empty strings, each with its index and node; empty when absent.
    pub fn texts<'n>(&mut self, owner: &'n Node, path: &Path<'_>, key: &str) -> Vec<(usize, &'n Node, &'n str)> {
        let path = path.key(key);
        let Some(list) = owner.get(key) else { return Vec::new() };
        let Some(items) = list.items() else {
            let found =
                self.error("invalid_field", &path, list, format!("must be an array of strings, not {}", kind_of(list)));
            if let Some(text) = list.as_str().filter(|text| text.len() <= SEEN_CHARS) {
                found.hint(format!("write [{}]", Value::from(text)));
            }
            return Vec::new();
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match item.as_str() {
                Some(text) if !text.is_empty() => texts.push((index, item, text)),
                _ => {
                    let rule = format!("must be a non-empty string, not {}", seen(item));
                    self.error("invalid_field", &path.index(index), item, rule);
                }
            }
        }
        texts
    }

    /// One of a few words, else `invalid_field`.
    pub fn word<T>(
        &mut self,
        owner: &Node,
        path: &Path<'_>,
        key: &str,
        words: &[&'static str],
        parse: fn(&str) -> Option<T>,
    ) -> Option<T> {
        let node = owner.get(key)?;
        let parsed = node.as_str().and_then(parse);
        if parsed.is_none() {
            let rule = format!("must be {}, not {}", one_of(words), seen(node));
            let found = self.error("invalid_field", &path.key(key), node, rule);
            if let Some(near) = node.as_str().and_then(|text| nearest(text, words)) {
                found.hint(format!("did you mean \"{near}\"?"));
            }
        }
        parsed
    }

    /// A whole number within `range`, else `invalid_field`; `unit` follows the figures in the message.
    pub fn whole_number(
        &mut self,
        owner: &Node,
        path: &Path<'_>,
        key: &str,
        range: &RangeInclusive<u64>,
        unit: &str,
    ) -> Option<u64> {
        let node = owner.get(key)?;
        let number = as_whole_number(node).and_then(|n| u64::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            let rule = format!("must be a whole number from {low} to {high}{unit}, not {}", seen(node));
            let found = self.error("invalid_field", &path.key(key), node, rule);
            if node.as_str().is_some_and(|text| text.trim().parse::<u64>().is_ok()) {
                found.hint("write the number without quotes");
            }
        }
        number
    }
}

/// The number as an integer when it is one, however it is spelt: `5`, `5.0` and `5e0` are the same to JavaScript.
pub fn as_whole_number(node: &Node) -> Option<i128> {
    let Some(Value::Number(number)) = node.scalar() else {
        return None;
    };
    if let Some(unsigned) = number.as_u64() {
        return Some(unsigned.into());
    }
    if let Some(signed) = number.as_i64() {
        return Some(signed.into());
    }
    // `as` saturates, far outside of every range that is accepted.
    number.as_f64().filter(|float| float.fract() == 0.0).map(|float| float as i128)
}

/// What stands there, for a message: short values themselves, long ones cut, containers by kind.
pub fn seen(node: &Node) -> String {
    match node.scalar() {
        Some(Value::String(text)) => Value::from(shortened(text, SEEN_CHARS)).to_string(),
        Some(other) => other.to_string(),
        None => kind_of(node).to_owned(),
    }
}

/// The kind of value that stands there, without the value.
pub fn kind_of(node: &Node) -> &'static str {
    match node.scalar() {
        Some(Value::Null) => "null",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Number(_)) => "a number",
        Some(Value::String(_)) => "a string",
        Some(_) | None if node.is_object() => "an object",
        Some(_) | None => "an array",
    }
}

/// `"a", "b" or "c"`
pub fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("\"{only}\""),
        [others @ .., last] => {
            let others: Vec<String> = others.iter().map(|word| format!("\"{word}\"")).collect();
            format!("{} or \"{last}\"", others.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_however_they_are_spelt() {
        for (text, expected) in [
            ("5", Some(5)),
            ("5.0", Some(5)),
            ("5e2", Some(500)),
            ("-0", Some(0)),
            ("-3", Some(-3)),
            ("5.5", None),
            ("18446744073709551615", Some(18_446_744_073_709_551_615)),
            ("1e300", Some(i128::MAX)),
            ("\"5\"", None),
            ("true", None),
            ("[5]", None),
        ] {
            assert_eq!(as_whole_number(&Node::read(text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn a_flood_of_warnings_does_not_hide_the_error() {
        let text = format!("{{{}\"last\": 1}}", "\"x\": 1,\n".repeat(5_000));
        let root = Node::read(&text).unwrap();
        let mut report = Report::default();
        report.check_names(&root, &Path::Root, &[]);
        report.error("invalid_field", &Path::Root.key("last"), root.get("last").unwrap(), "is wrong");
        let problems = report.into_problems(&text);
        assert_eq!(problems.len(), MAX_PROBLEMS + 2);
        assert!(problems.iter().any(|problem| problem.code == "invalid_field" && problem.line == Some(5001)));
        let more = problems.last().unwrap();
        assert_eq!((more.code.as_str(), more.severity), ("more_problems", Severity::Warning));
        assert_eq!(more.message, "the manifest has 4901 more problems");
    }

    #[test]
    fn lists_of_words_read_as_english() {
        assert_eq!(one_of(&["a"]), "\"a\"");
        assert_eq!(one_of(&["a", "b", "c"]), "\"a\", \"b\" or \"c\"");
    }
}
