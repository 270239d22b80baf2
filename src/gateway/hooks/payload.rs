//! The body of a post: read within its limit as it streams, and turned into the run's input.
//!
//! JSON text is the input as it stands. Anything else is a string: of bytes that are no UTF-8, with U+FFFD in their place;
//! and JSON that nests deeper than any other value may (`core::json_depth`), as its text. An empty body is no input.

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::core::json_depth::is_too_deep;
use crate::core::json_schema::Schema;

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub enum Unread {
    TooLarge,
    /// The connection, or its framing, broke.
    Broken,
}

/// Reads a body whole.
///
/// # Errors
/// [`Unread`]; at most one frame more than the limit was read.
pub async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B, most: usize) -> Result<Bytes, Unread> {
    if body.size_hint().lower() > most as u64 {
        return Err(Unread::TooLarge);
    }
    let mut read = Bytes::new();
    let mut more = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers say nothing here.
        let Ok(data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        if data.len() > most - read.len() - more.len() {
            return Err(Unread::TooLarge);
        }
        // Nearly always there is one frame, and it need not be copied.
        if read.is_empty() && more.is_empty() {
            read = data;
        } else {
            more.extend_from_slice(&std::mem::take(&mut read));
            more.extend_from_slice(&data);
        }
    }
    Ok(if more.is_empty() { read } else { Bytes::from(more) })
}

/// The input that a body is, as JSON text; `None` when it is empty.
pub fn input_of(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    // A byte order mark is no part of the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.is_empty() {
        return None;
    }
    let is_json = serde_json::from_str::<&RawValue>(text).is_ok() && !is_too_deep(text);
    Some(if is_json { text.trim().to_owned() } else { Value::from(text).to_string() })
}

/// Whether an input passes a filter. What cannot be judged does not (a number or an escape that is JSON, and no value);
/// no input at all is judged as `null`.
pub fn passes(filter: &Schema, input_json: Option<&str>) -> bool {
    serde_json::from_str::<Value>(input_json.unwrap_or("null")).is_ok_and(|value| filter.is_valid(&value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::json_depth::MAX_JSON_DEPTH;
    use futures::StreamExt;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    #[test]
    fn a_body_is_json_else_a_string_else_nothing() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let (deep, deeper) = (nested(MAX_JSON_DEPTH), nested(20_000));
        let as_text = format!("\"{deeper}\"");
        for (body, input) in [
            (b"".as_slice(), None),
            (b"{\"a\": 1}", Some("{\"a\": 1}")),
            (b" [1]\r\n", Some("[1]")),
            (b"\xef\xbb\xbf[1]", Some("[1]")),
            (b"\xef\xbb\xbf", None),
            (b"null", Some("null")),
            (b"\"text\"", Some("\"text\"")),
            (b"12345678901234567890123", Some("12345678901234567890123")),
            (b"1e999", Some("1e999")),
            (br#""\ud800""#, Some(r#""\ud800""#)),
            (b"plain", Some("\"plain\"")),
            (b"a=1&b=2", Some("\"a=1&b=2\"")),
            (b" ", Some("\" \"")),
            (b"{\"a\":", Some("\"{\\\"a\\\":\"")),
            (b"NaN", Some("\"NaN\"")),
            (b"{} {}", Some("\"{} {}\"")),
            (b"a\0b\n", Some("\"a\\u0000b\\n\"")),
            (b"\xff\xfe", Some("\"\u{fffd}\u{fffd}\"")),
            (deep.as_bytes(), Some(deep.as_str())),
            (deeper.as_bytes(), Some(as_text.as_str())),
        ] {
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            assert_eq!(input_of(body).as_deref(), input, "{shown:?}");
        }
    }

    #[test]
    fn a_filter_judges_values_and_lets_nothing_else_pass() {
        let objects = Schema::compile(&serde_json::json!({ "type": "object", "required": ["a"] })).unwrap();
        let anything = Schema::compile(&serde_json::json!(true)).unwrap();
        for (input, object, any) in [
            (Some("{\"a\":1}"), true, true),
            (Some("{\"b\":1}"), false, true),
            (Some("\"text\""), false, true),
            (None, false, true),
            (Some(r#"{"a":"\ud800"}"#), false, false),
            (Some(r#"{"a":1e999}"#), false, false),
        ] {
            assert_eq!((passes(&objects, input), passes(&anything, input)), (object, any), "{input:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_counted_as_it_streams() {
        let frames = |sizes: &[usize]| {
            let frames: Vec<_> = sizes
                .iter()
                .map(|size| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![b'x'; *size]))))
                .collect();
            StreamBody::new(futures::stream::iter(frames))
        };
        for (sizes, read_bytes) in [
            (vec![], Ok(0)),
            (vec![10], Ok(10)),
            (vec![3, 0, 7], Ok(10)),
            (vec![0, 10], Ok(10)),
            (vec![11], Err(Unread::TooLarge)),
            (vec![5, 5, 1], Err(Unread::TooLarge)),
        ] {
            assert_eq!(read(frames(&sizes), 10).await.map(|bytes| bytes.len()), read_bytes, "{sizes:?}");
        }
        assert_eq!(read(Full::new(Bytes::from(vec![0; 11])), 10).await, Err(Unread::TooLarge), "told beforehand");
        let endless = futures::stream::repeat(()).map(|()| Ok::<_, std::io::Error>(Frame::data(Bytes::from("xxx"))));
        assert_eq!(read(StreamBody::new(endless), 10).await, Err(Unread::TooLarge));
        let broken = futures::stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("gone"))]);
        assert_eq!(read(StreamBody::new(broken), 10).await, Err(Unread::Broken));
    }
}
