//! Where in the text something stands, and what a person most likely did when it is no JSON at all.
//!
//! Lines and columns are 1-based, columns count characters. `serde_json` counts bytes, and for some errors points one
//! past the culprit; [`syntax_problem`] turns that into the character to look at.

use std::fmt;

use crate::fire::Problem;

/// Characters of a name that a path repeats, so that a hundred problems stay small whatever the names.
const MAX_KEY: usize = 100;

/// A place in the manifest, linked to its parent; its text is the `field` of a problem: `triggers[0].expr`.
#[derive(Debug, Clone, Copy)]
pub enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl<'p> Path<'p> {
    pub fn key(&'p self, key: &'p str) -> Self {
        Self::Key(self, key)
    }

    pub fn index(&'p self, index: usize) -> Self {
        Self::Index(self, index)
    }

    /// The field's text with some more segments, as a JSON Pointer into the value here would give them.
    pub fn below<S: AsRef<str>>(&self, segments: &[S]) -> String {
        match segments {
            [] => self.to_string(),
            [first, rest @ ..] => {
                let first = first.as_ref();
                match first.parse() {
                    Ok(index) => self.index(index).below(rest),
                    Err(_) => self.key(first).below(rest),
                }
            }
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Self::Key(parent, key) => {
                let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$');
                if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(plain) {
                    let short: String = key.chars().take(MAX_KEY).collect();
                    return write!(f, "{parent}[{short:?}]");
                }
                if !matches!(parent, Self::Root) {
                    write!(f, "{parent}.")?;
                }
                f.write_str(key)
            }
        }
    }
}

/// Line and column of a byte offset.
pub fn line_column(text: &str, offset: usize) -> (u32, u32) {
    Cursor::default().advance(text, offset)
}

/// Counts lines and columns from one offset to the next, so that many places cost one pass over the text.
#[derive(Debug, Default)]
pub struct Cursor {
    at: usize,
    lines: u32,
    columns: u32,
}

impl Cursor {
    /// Line and column of `offset`, which is not before the one asked for last.
    pub fn advance(&mut self, text: &str, offset: usize) -> (u32, u32) {
        let end = offset.min(text.len());
        let passed = text.as_bytes().get(self.at..end).unwrap_or_default();
        let counted = |bytes: &[u8], counts: fn(u8) -> bool| {
            u32::try_from(bytes.iter().filter(|&&byte| counts(byte)).count()).unwrap_or(u32::MAX)
        };
        let breaks = counted(passed, |byte| byte == b'\n');
        let on_line = passed.rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
        // A byte that continues a character is not counted, so this counts characters.
        let characters = counted(on_line, |byte| byte & 0xC0 != 0x80);
        self.columns = if breaks > 0 { characters } else { self.columns.saturating_add(characters) };
        self.lines = self.lines.saturating_add(breaks);
        self.at = self.at.max(end);
        (self.lines.saturating_add(1), self.columns.saturating_add(1))
    }
}

/// The one problem of a text that is no JSON.
pub fn syntax_problem(text: &str, error: &serde_json::Error) -> Problem {
    if text.trim().is_empty() {
        return Problem::error("invalid_json", "", "the manifest is empty")
            .with_hint("a file that is just being written is read again when it changes")
            .at(1, 1);
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    let offset = culprit(text, error);
    let (line, column) = line_column(text, offset);
    let problem =
        Problem::error("invalid_json", "", format!("the manifest is not valid JSON: {message}")).at(line, column);
    match syntax_hint(text, offset, message) {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    }
}

/// The byte offset of the character that an error is about.
fn culprit(text: &str, error: &serde_json::Error) -> usize {
    if error.is_eof() {
        return text.trim_end().len();
    }
    let line_start = match error.line().saturating_sub(2) {
        0 if error.line() < 2 => 0,
        skipped => text.match_indices('\n').nth(skipped).map_or(0, |(at, _)| at + 1),
    };
    let offset = (line_start + error.column().saturating_sub(1)).min(text.len());
    (0..=offset).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn syntax_hint(text: &str, offset: usize, message: &str) -> Option<String> {
    let rest = &text[offset..];
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').take(30).collect();
    let found = rest.chars().next();
    let before = text[..offset].trim_end();
    if message.contains("EOF") {
        return Some(
            "the text ends too early: a bracket or quote is not closed, or the file is still being written".into(),
        );
    }
    if message.contains("recursion limit") {
        return Some("values may nest 128 deep".into());
    }
    if message.contains("control character") {
        return Some("write a line break in a string as \\n and a tab as \\t".into());
    }
    if message.contains("number out of range") {
        return Some("numbers must fit a 64-bit float".into());
    }
    match found {
        Some('}' | ']') if before.ends_with(',') => Some("remove the comma before the closing bracket".into()),
        Some(',') if before.ends_with(',') => Some("remove the second comma".into()),
        Some('\'') => Some("use double quotes: JSON has no single-quoted strings".into()),
        Some('\u{201c}' | '\u{201d}' | '\u{2018}' | '\u{2019}') => {
            Some("use plain double quotes (\") in place of typographic ones".into())
        }
        Some('/' | '#') => Some("remove the comment: JSON has none".into()),
        Some('+' | '.') => Some("write numbers as 1 or 0.5, without + and with a digit before the point".into()),
        Some('=') => Some("put a colon between name and value".into()),
        Some('`') => Some("remove the backquotes: the file holds the JSON alone, not a Markdown block".into()),
        _ if message.contains("key must be a string") && !word.is_empty() => {
            Some(format!("put the field name in double quotes: \"{word}\""))
        }
        _ if matches!(word.as_str(), "NaN" | "Infinity" | "undefined" | "None") => {
            Some(format!("JSON has no {word}: leave the field out"))
        }
        _ if matches!(word.as_str(), "True" | "TRUE" | "False" | "FALSE" | "Null" | "NULL") => {
            Some(format!("write {}", word.to_lowercase()))
        }
        Some('"' | '{' | '[') if message.contains("expected `,`") => Some("put a comma between the two values".into()),
        _ if message.contains("trailing characters") => {
            Some("the file may hold one JSON object and nothing else".into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "{\n  \"é😀\": x\r\n}";
        let mut cursor = Cursor::default();
        for (offset, expected) in [(0, (1, 1)), (2, (2, 1)), (4, (2, 3)), (5, (2, 4)), (14, (2, 9)), (999, (3, 2))] {
            assert_eq!(line_column(text, offset), expected, "{offset}");
            assert_eq!(cursor.advance(text, offset), expected, "{offset}");
        }
    }

    #[test]
    fn paths_have_one_text_form() {
        let triggers = Path::Root.key("triggers");
        let first = triggers.index(0);
        assert_eq!(first.key("expr").to_string(), "triggers[0].expr");
        assert_eq!(Path::Root.key("$schema").to_string(), "$schema");
        assert_eq!(Path::Root.key("a b").to_string(), "[\"a b\"]");
        assert_eq!(first.below(&["filter", "anyOf", "1", ""]), "triggers[0].filter.anyOf[1][\"\"]");
    }

    /// `|` marks the character that the problem must point at.
    #[test]
    fn syntax_errors_point_at_the_culprit() {
        for (marked, hint) in [
            ("{\"a\": 1,|}", "remove the comma"),
            ("{\"a\": [1,\n  |]}", "remove the comma"),
            ("{|'a': 1}", "double quotes"),
            ("{\"é\": |'x'}", "double quotes"),
            ("{|a: 1}", "\"a\""),
            ("{\"a\": 1 |// no\n}", "comment"),
            ("|# no\n{}", "comment"),
            ("{\"a\": |NaN}", "no NaN"),
            ("{\"a\": |True}", "write true"),
            ("{\"a\": 1 |\"b\": 2}", "comma"),
            ("{\"a\": 1} |x", "nothing else"),
            ("{\"a\"|= 1}", "colon"),
            ("{\"é\": \"x|", "ends too early"),
            ("{\"a\": 1,|\n\n", "ends too early"),
            ("{\"a\": |\u{201c}x\u{201d}}", "plain double quotes"),
            ("|```json\n{}\n```", "Markdown"),
        ] {
            let text = marked.replacen('|', "", 1);
            let error = serde_json::from_str::<serde_json::Value>(&text).unwrap_err();
            let problem = syntax_problem(&text, &error);
            let expected = line_column(&text, marked.find('|').unwrap());
            assert_eq!((problem.line.unwrap(), problem.column.unwrap()), expected, "{marked} {error}");
            assert!(problem.hint.as_deref().unwrap_or("").contains(hint), "{marked} {:?}", problem.hint);
            assert!(!problem.message.contains(" at line "), "{}", problem.message);
        }
    }
}
