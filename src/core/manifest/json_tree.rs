//! JSON text as a tree that knows where everything stands: what problems point at and rewrites copy from.
//!
//! `serde_json` judges the text first (grammar, depth, numbers), so the scanner here only has to find the edges of
//! values in text that is known to be good. It keeps what a map would lose: repeated keys, their order, and the
//! spelling of every scalar. Members are looked up as every JSON reader does it: the last of repeated keys wins.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value;

/// As deep as `serde_json` reads; it has refused anything deeper before the scanner starts.
const MAX_DEPTH: usize = 128;

/// One JSON value and the bytes it stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub span: Range<usize>,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Object(Vec<Member>),
    Array(Vec<Node>),
    /// A string, number, boolean or null.
    Scalar(Value),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub key: String,
    pub key_span: Range<usize>,
    pub node: Node,
}

impl Node {
    /// Reads a whole text.
    ///
    /// # Errors
    /// What `serde_json` says about text that is no JSON, nests deeper than 128, or holds a number out of range.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        let text = mend_lone_surrogates(text);
        serde_json::from_str::<Value>(&text)?;
        let mut scanner = Scanner { text: &text, at: 0 };
        scanner.value(0).ok_or_else(|| serde::de::Error::custom("the text is no JSON"))
    }

    pub fn members(&self) -> Option<&[Member]> {
        match &self.kind {
            Kind::Object(members) => Some(members),
            Kind::Array(_) | Kind::Scalar(_) => None,
        }
    }

    /// The member of this name; `None` also when this is no object.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.members()?.iter().rev().find(|member| member.key == key).map(|member| &member.node)
    }

    pub fn items(&self) -> Option<&[Node]> {
        match &self.kind {
            Kind::Array(items) => Some(items),
            Kind::Object(_) | Kind::Scalar(_) => None,
        }
    }

    pub fn scalar(&self) -> Option<&Value> {
        match &self.kind {
            Kind::Scalar(value) => Some(value),
            Kind::Object(_) | Kind::Array(_) => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        self.scalar().and_then(Value::as_str)
    }

    pub fn is_true(&self) -> bool {
        self.scalar() == Some(&Value::Bool(true))
    }

    pub fn is_object(&self) -> bool {
        matches!(self.kind, Kind::Object(_))
    }

    /// The node that a JSON Pointer's decoded segments lead to, or the deepest one on the way there.
    pub fn deepest<'n, S: AsRef<str>>(&'n self, segments: &[S]) -> &'n Node {
        let mut node = self;
        for segment in segments {
            let next = match &node.kind {
                Kind::Object(_) => node.get(segment.as_ref()),
                Kind::Array(items) => segment.as_ref().parse::<usize>().ok().and_then(|index| items.get(index)),
                Kind::Scalar(_) => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node
    }

    pub fn to_value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::Array(items) => items.iter().map(Node::to_value).collect(),
            Kind::Object(members) => {
                Value::Object(members.iter().map(|member| (member.key.clone(), member.node.to_value())).collect())
            }
        }
    }
}

/// Replaces `\uD800`-like halves of a pair by `\ufffd`, byte for byte: JavaScript reads them, `serde_json` refuses
/// them, and a stray one in a prompt is no reason to refuse a manifest that runs elsewhere.
fn mend_lone_surrogates(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let unit = |at: usize| -> Option<u32> {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        let digits = std::str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut lone = Vec::new();
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == b'\\')) {
        at += found;
        at += match unit(at) {
            Some(0xD800..=0xDBFF) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => 12,
            Some(0xD800..=0xDFFF) => {
                lone.push(at);
                6
            }
            // Past the escaped character too, so that `\\ud800` is a backslash and some letters.
            _ => 2,
        };
    }
    if lone.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut mended = text.to_owned();
    for at in lone {
        mended.replace_range(at..at + 6, "\\ufffd");
    }
    Cow::Owned(mended)
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

/// Each method answers `None` for text that is no JSON, which `Node::read` has ruled out before.
impl Scanner<'_> {
    fn value(&mut self, depth: usize) -> Option<Node> {
        if depth > MAX_DEPTH {
            return None;
        }
        let start = self.skip_blanks();
        let kind = match self.peek()? {
            b'{' => Kind::Object(self.members(depth)?),
            b'[' => Kind::Array(self.items(depth)?),
            b'"' => Kind::Scalar(Value::String(self.string()?)),
            _ => {
                let rest = self.text.get(start..)?;
                let length = rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(rest.len());
                self.at += length;
                Kind::Scalar(serde_json::from_str(&rest[..length]).ok()?)
            }
        };
        Some(Node { span: start..self.at, kind })
    }

    fn members(&mut self, depth: usize) -> Option<Vec<Member>> {
        let mut members = Vec::new();
        self.at += 1;
        self.skip_blanks();
        while self.peek()? != b'}' {
            let start = self.skip_blanks();
            let key = self.string()?;
            let key_span = start..self.at;
            self.skip_blanks();
            self.take(b':')?;
            members.push(Member { key, key_span, node: self.value(depth + 1)? });
            self.separator(b'}')?;
        }
        self.at += 1;
        Some(members)
    }

    fn items(&mut self, depth: usize) -> Option<Vec<Node>> {
        let mut items = Vec::new();
        self.at += 1;
        self.skip_blanks();
        while self.peek()? != b']' {
            items.push(self.value(depth + 1)?);
            self.separator(b']')?;
        }
        self.at += 1;
        Some(items)
    }

    /// Past a comma, or up to the closing bracket.
    fn separator(&mut self, close: u8) -> Option<()> {
        self.skip_blanks();
        if self.peek()? == close {
            return Some(());
        }
        self.take(b',')?;
        self.skip_blanks();
        Some(())
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.take(b'"')?;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        serde_json::from_str(self.text.get(start..self.at)?).ok()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_blanks(&mut self) -> usize {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_are_those_of_the_values() {
        let text = "{ \"a\" : [1.0e2, \"x\\\"]\" , {}],\n\"a\":null , \"é\": true}";
        let node = Node::read(text).unwrap();
        let members = node.members().unwrap();
        let slice = |node: &Node| &text[node.span.clone()];
        assert_eq!(slice(&node), text);
        assert_eq!(slice(&members[0].node), "[1.0e2, \"x\\\"]\" , {}]");
        assert_eq!(
            members[0].node.items().unwrap().iter().map(slice).collect::<Vec<_>>(),
            ["1.0e2", "\"x\\\"]\"", "{}"]
        );
        assert_eq!(&text[members[2].key_span.clone()], "\"é\"");
        assert!(node.get("é").unwrap().is_true());
        assert_eq!(node.get("a").unwrap().scalar(), Some(&Value::Null), "the last of repeated keys wins");
    }

    #[test]
    fn lone_surrogates_are_mended_and_pairs_are_kept() {
        for (text, expected) in [
            (r#""\ud83d\ude00""#, "😀"),
            (r#""a\ud83db""#, "a\u{fffd}b"),
            (r#""\udc00\ud800""#, "\u{fffd}\u{fffd}"),
            (r#""\\ud800""#, "\\ud800"),
            (r#""\ud800\ud83d\ude00""#, "\u{fffd}😀"),
        ] {
            assert_eq!(Node::read(text).unwrap().as_str(), Some(expected), "{text}");
        }
        assert!(Node::read(r#""\ud8""#).is_err());
    }

    #[test]
    fn deep_text_is_refused_and_not_followed() {
        assert!(Node::read(&format!("{}{}", "[".repeat(120), "]".repeat(120))).is_ok());
        assert!(Node::read(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))).is_err());
        assert!(Node::read(&"{\"a\":".repeat(100_000)).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_scanner_reads_what_serde_reads(value in any_json(), pretty in any::<bool>()) {
            let write = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            let text = write(&value).unwrap();
            prop_assert_eq!(Node::read(&text).unwrap().to_value(), value);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\",:\\\\ud8é0-9truefalsn \n-]{0,40}") {
            if let Ok(node) = Node::read(&text) {
                prop_assert_eq!(node.span, (text.len() - text.trim_start().len())..text.trim_end().len());
            }
        }
    }
}
