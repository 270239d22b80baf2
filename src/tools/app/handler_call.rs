//! A planned call, and how the value that its handler returned becomes the tool's result.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::declared::Declared;
use super::{HandlerKind, SHOWN_PROBLEMS};
use crate::core::shortened::shortened;
use crate::fire::{AppId, CallError};
use crate::tools::data_db::Migrations;
use crate::tools::{HANDLER_ERROR, INVALID_MANIFEST};

/// As for every argument and result that crosses between a handler and the daemon.
pub(super) const MAX_RESULT_BYTES: usize = 16 * 1024 * 1024;

/// A handler ready to be run.
#[derive(Clone)]
pub struct HandlerCall {
    pub app: AppId,
    pub kind: HandlerKind,
    pub name: String,
    /// `<app>/queries/<name>.js` or `<app>/actions/<name>.js`: what stacks show.
    pub script_name: String,
    pub source: Arc<str>,
    /// Lower-case hex.
    pub source_sha256: String,
    /// The validated input; `{}` when the caller gave none.
    pub input_json: String,
    pub timeout_ms: u64,
    /// Tables that the entry says it writes; see [`Self::changed_tables`].
    pub writes: Vec<String>,
    /// The app's `data.sqlite`, which may not exist yet.
    pub data_path: PathBuf,
    pub migrations: Migrations,
    pub(super) declared: Arc<Declared>,
    /// Index into the declared entries of this kind.
    pub(super) entry: usize,
}

impl HandlerCall {
    /// Judges what the handler returned (`None` is `undefined`) and gives the tool's result as JSON text.
    ///
    /// A query may return any JSON. An action returns `{ status?, body }`, or nothing, which is `{ body: null }`. The
    /// declared `output` describes the query's value or the action's body; it does not bind the body of a status of
    /// 400 and more, which tells of a failure.
    ///
    /// # Errors
    /// `HANDLER_ERROR` for another shape, or a value that breaks the `output` schema; `INVALID_MANIFEST` when that
    /// schema is none.
    pub fn finish(&self, returned_json: Option<String>) -> Result<String, CallError> {
        let what = format!("{} {:?} of app {}", self.kind.word(), self.name, self.app);
        let failed = |message: String| CallError::new(HANDLER_ERROR, format!("{what} {message}"));
        let text = returned_json.unwrap_or_else(|| "null".to_owned());
        if text.len() > MAX_RESULT_BYTES {
            return Err(failed(format!("returned {} bytes, more than {MAX_RESULT_BYTES}", text.len())));
        }
        // What a host sends is JSON as JavaScript writes it, where a text need not be Unicode.
        let value: Value = serde_json::from_str(&text).map_err(|_| {
            failed("returned no valid JSON: a text in it holds half of a surrogate pair, or it is cut short".to_owned())
        })?;
        let result = match self.kind {
            HandlerKind::Query => value,
            HandlerKind::Action => action_result(value).map_err(failed)?,
        };
        let schema = self.declared.entries(self.kind)[self.entry].output().map_err(|reason| {
            CallError::new(INVALID_MANIFEST, format!("the `output` schema of {what} is invalid: {reason}"))
        })?;
        let judged = match self.kind {
            HandlerKind::Query => Some(&result),
            HandlerKind::Action if is_failure(&result) => None,
            HandlerKind::Action => result.get("body"),
        };
        if let (Some(schema), Some(judged)) = (schema, judged)
            && let Err(mismatch) = schema.check(judged, "", SHOWN_PROBLEMS)
        {
            let error = failed(format!("returned what its `output` schema refuses: {}", mismatch.message));
            return Err(CallError { path: mismatch.path, ..error });
        }
        Ok(match self.kind {
            HandlerKind::Query => text,
            HandlerKind::Action => result.to_string(),
        })
    }

    /// The tables to announce as changed, given the result of [`Self::finish`]: the entry's `writes`, unless this is
    /// a query or the action answered with a status of 400 and more.
    pub fn changed_tables(&self, result_json: &str) -> &[String] {
        let failure = || serde_json::from_str(result_json).is_ok_and(|result: Value| is_failure(&result));
        if self.kind == HandlerKind::Query || self.writes.is_empty() || failure() { &[] } else { &self.writes }
    }
}

/// `{ status?, body }` with both in their types, and nothing else.
pub(super) fn action_result(returned: Value) -> Result<Value, String> {
    const SHAPE: &str = "must return { status?, body }";
    let mut fields = match returned {
        Value::Null => Map::new(),
        Value::Object(fields) => fields,
        _ => return Err(format!("{SHAPE}, or nothing")),
    };
    if !fields.is_empty() && !fields.contains_key("status") && !fields.contains_key("body") {
        let keys: Vec<String> = fields.keys().take(5).map(|key| shortened(key, 50)).collect();
        return Err(format!("{SHAPE}, not an object with {}", keys.join(", ")));
    }
    let mut result = Map::new();
    match fields.remove("status") {
        None | Some(Value::Null) => {}
        Some(status) if status.as_u64().is_some_and(|status| (100..=599).contains(&status)) => {
            result.insert("status".to_owned(), status);
        }
        Some(_) => return Err("must return an HTTP status (100 to 599) as `status`".to_owned()),
    }
    result.insert("body".to_owned(), fields.remove("body").unwrap_or(Value::Null));
    Ok(Value::Object(result))
}

fn is_failure(result: &Value) -> bool {
    result.get("status").and_then(Value::as_u64).is_some_and(|status| status >= 400)
}
