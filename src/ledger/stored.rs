//! How long values are stored: in full up to [`FULL_VALUE_BYTES`], beyond it as a marker object with the length, the
//! hash and the first part. The marker is for people who read a trace; whoever needs the value itself (a replay) has
//! to ask [`is_truncated`] first, or a handler would be given the marker as its input.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Requests and responses up to this many bytes of JSON text are stored as they are.
pub const FULL_VALUE_BYTES: usize = 256 * 1024;

/// Enough of the value to recognise it; small, so that lists of runs stay small.
const HEAD_BYTES: usize = 4096;

/// A message that explains is far shorter; a handler may throw megabytes.
const ERROR_BYTES: usize = 64 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker<'a> {
    _truncated: bool,
    bytes: u64,
    sha256: Cow<'a, str>,
    head: Cow<'a, str>,
}

pub(super) fn is_long(json: &str) -> bool {
    json.len() > FULL_VALUE_BYTES
}

/// The text to store for a JSON value.
pub(super) fn shorten(json: &str) -> Cow<'_, str> {
    if is_long(json) { Cow::Owned(marker(json)) } else { Cow::Borrowed(json) }
}

/// What stands for a value.
pub(super) fn marker(json: &str) -> String {
    let marker = Marker {
        _truncated: true,
        bytes: json.len() as u64,
        sha256: Cow::Owned(hex::encode(Sha256::digest(json.as_bytes()))),
        head: Cow::Borrowed(cut(json, HEAD_BYTES)),
    };
    serde_json::to_string(&marker).expect("a struct of text and numbers has a JSON form")
}

/// True when `json` is the marker that stands for a value too long to store.
pub fn is_truncated(json: &str) -> bool {
    // The cheap look first: nearly every value is no marker, and may be long.
    json.starts_with(r#"{"_truncated":true,"#)
        && serde_json::from_str::<Marker>(json).is_ok_and(|m| m._truncated && m.bytes > FULL_VALUE_BYTES as u64)
}

/// The text to store for an error message.
pub(super) fn shorten_error(message: &str) -> &str {
    cut(message, ERROR_BYTES)
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_up_to_the_limit_and_marked_beyond_it() {
        let quoted = |n: usize| format!("\"{}\"", "ä".repeat((n - 2) / 2));
        for (bytes, marked) in [(2, false), (FULL_VALUE_BYTES, false), (FULL_VALUE_BYTES + 2, true), (3_000_000, true)]
        {
            let value = quoted(bytes);
            assert_eq!(value.len(), bytes);
            let stored = shorten(&value);
            assert_eq!(is_truncated(&stored), marked, "{bytes}");
            if marked {
                let marker: serde_json::Value = serde_json::from_str(&stored).unwrap();
                assert_eq!(marker["bytes"], bytes);
                assert_eq!(marker["sha256"], hex::encode(Sha256::digest(value.as_bytes())));
                assert!(value.starts_with(marker["head"].as_str().unwrap()));
                assert!(stored.len() < 2 * HEAD_BYTES);
            } else {
                assert_eq!(stored, value);
            }
        }
    }

    #[test]
    fn a_look_alike_is_no_marker() {
        for text in [
            r#"{"_truncated":true}"#,
            r#"{"_truncated":true,"bytes":12,"sha256":"","head":""}"#,
            r#"{"_truncated":true,"bytes":999999999,"sha256":"","head":"","more":1}"#,
            r#""_truncated""#,
        ] {
            assert!(!is_truncated(text), "{text}");
        }
    }
}
