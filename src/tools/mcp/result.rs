//! What a handler gets of a tool's result.

use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::Value;

use super::secrets::Redactor;
use super::{MCP_FAILED, MCP_TOOL_ERROR};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::shortened::shortened;
use crate::fire::CallError;

/// A tool's own words, when it fails.
const MAX_ERROR_CHARS: usize = 4000;

/// As JSON text: the `structuredContent` when there is one; else what its only content says as JSON; else its text; else
/// the list of its contents.
///
/// # Errors
/// [`MCP_TOOL_ERROR`] for a result that says it is an error, with its text; [`MCP_FAILED`] for one that nests too deep.
pub fn value_of(result: CallToolResult, redactor: &Redactor) -> Result<String, CallError> {
    let text = all_text(&result.content);
    if result.is_error == Some(true) {
        let told = match (text, result.structured_content) {
            (Some(text), _) if !text.trim().is_empty() => text,
            (_, Some(value)) => value.to_string(),
            _ => "the tool failed, and said nothing".to_owned(),
        };
        return Err(CallError::new(MCP_TOOL_ERROR, shortened(&redactor.text(&told), MAX_ERROR_CHARS)));
    }
    // Some servers write an absent one as null.
    let structured = result.structured_content.filter(|value| !value.is_null());
    let mut value = match (structured, text) {
        (Some(value), _) => value,
        (None, Some(text)) => {
            let json = (result.content.len() == 1).then(|| serde_json::from_str(&text).ok()).flatten();
            json.unwrap_or(Value::String(text))
        }
        (None, None) => serde_json::to_value(&result.content)
            .map_err(|error| CallError::new(MCP_FAILED, format!("the result cannot be written as JSON: {error}")))?,
    };
    redactor.value(&mut value);
    let json = value.to_string();
    if is_too_deep(&json) {
        return Err(CallError::new(MCP_FAILED, too_deep("the result")));
    }
    Ok(json)
}

/// The text of a result that is nothing but text.
fn all_text(content: &[ContentBlock]) -> Option<String> {
    if content.is_empty() {
        return None;
    }
    let texts: Option<Vec<&str>> =
        content.iter().map(|block| block.as_text().map(|content| content.text.as_str())).collect();
    texts.map(|texts| texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_become_the_value_that_says_most() {
        let text = |text: &str| json!({"type": "text", "text": text});
        let image = json!({"type": "image", "data": "AA==", "mimeType": "image/png"});
        let deep = format!("{}{}", "[".repeat(110), "]".repeat(110));
        for (result, expected) in [
            (json!({"content": [text("x")], "structuredContent": {"a": 1}}), Ok(json!({"a": 1}))),
            (json!({"content": [text("x")], "structuredContent": null}), Ok(json!("x"))),
            (json!({"content": [text("{\"b\": [1]}")]}), Ok(json!({"b": [1]}))),
            (json!({"content": [text("42")]}), Ok(json!(42))),
            (json!({"content": [text("plain {text")]}), Ok(json!("plain {text"))),
            (json!({"content": [text("{}"), text("[]")]}), Ok(json!("{}\n[]"))),
            (json!({"content": []}), Ok(json!([]))),
            (json!({"content": [text("x"), image]}), Ok(json!([text("x"), image]))),
            (json!({"content": [text("no such issue")], "isError": true}), Err((MCP_TOOL_ERROR, "no such issue"))),
            (
                json!({"content": [], "structuredContent": {"c": 4}, "isError": true}),
                Err((MCP_TOOL_ERROR, "{\"c\":4}")),
            ),
            (json!({"content": [], "isError": true}), Err((MCP_TOOL_ERROR, "the tool failed, and said nothing"))),
            (json!({"content": [text(&deep)]}), Err((MCP_FAILED, "nests deeper"))),
        ] {
            let told = result.to_string();
            let result: CallToolResult = serde_json::from_value(result).expect("a result");
            match (value_of(result, &Redactor::default()), expected) {
                (Ok(json), Ok(value)) => assert_eq!(json, value.to_string(), "{told}"),
                (Err(error), Err((code, part))) => {
                    assert_eq!(error.code, code, "{told}");
                    assert!(error.message.contains(part), "{told}: {}", error.message);
                }
                (found, _) => panic!("{told}: {found:?}"),
            }
        }
    }
}
