//! Values between JSON and SQLite.
//!
//! In: `null`; `true` and `false` as 1 and 0; numbers as INTEGER when they are whole and fit, else REAL; texts;
//! `{"$blob": "<base64>"}` as BLOB. Any other object or list is refused.
//!
//! Out: NULL is `null`; INTEGER is a number; REAL is a number, infinite ones `null`; TEXT is a text, with broken
//! UTF-8 replaced; BLOB is `{"$blob": "<base64>"}`. An INTEGER that a JavaScript number cannot hold exactly is an
//! error which names the column and the cast that avoids it, as a silently rounded id is worse than none.
//!
//! Parameters are a list (positional) or an object (named; keys with or without `:`, `@` or `$`). A placeholder that
//! an object does not name is NULL, because an `undefined` field leaves no trace in JSON; an unknown key, or a list
//! of the wrong length, is refused.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{Row, Statement};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{Failure, INVALID_CALL};
use crate::core::shortened::shortened;
use crate::fire::CallError;

/// As for every argument and result that crosses between a handler and the daemon.
const MAX_RESULT_BYTES: usize = 16 * 1024 * 1024;
/// Beyond it neighbouring integers are one and the same JavaScript number.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// The `params` of a call.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
pub enum Params {
    #[default]
    None,
    Positional(Vec<Value>),
    Named(Map<String, Value>),
    /// Anything else, to be refused in words.
    Other(IgnoredAny),
}

impl Params {
    pub(super) fn bind(&self, statement: &mut Statement<'_>) -> Result<(), Failure> {
        let invalid = |message: String| Failure::Call(CallError::new(INVALID_CALL, message));
        let expected = statement.parameter_count();
        match self {
            Params::None => check_count(0, expected),
            Params::Positional(values) => {
                check_count(values.len(), expected)?;
                for (index, value) in values.iter().enumerate() {
                    let value = parameter(value).map_err(|why| invalid(format!("parameter {}: {why}", index + 1)))?;
                    statement.raw_bind_parameter(index + 1, value)?;
                }
                Ok(())
            }
            Params::Named(values) => {
                let mut used = HashSet::new();
                for index in 1..=expected {
                    let Some(placeholder) = statement.parameter_name(index).map(ToOwned::to_owned) else {
                        return Err(invalid(format!("placeholder {index} has no name; give parameters one by one")));
                    };
                    let bare = placeholder.trim_start_matches([':', '@', '$', '?']);
                    let given = values.get_key_value(bare).or_else(|| values.get_key_value(&placeholder));
                    let value = match given {
                        Some((key, value)) => {
                            used.insert(key.as_str());
                            parameter(value).map_err(|why| invalid(format!("parameter {placeholder}: {why}")))?
                        }
                        None => ToSqlOutput::Borrowed(ValueRef::Null),
                    };
                    statement.raw_bind_parameter(index, value)?;
                }
                match values.keys().find(|key| !used.contains(key.as_str())) {
                    Some(key) => Err(invalid(format!("the SQL has no placeholder {:?}", shortened(key, 100)))),
                    None => Ok(()),
                }
            }
            Params::Other(_) => Err(invalid("`params` must be a list, or an object for named ones".to_owned())),
        }
    }
}

fn check_count(given: usize, expected: usize) -> Result<(), Failure> {
    if given == expected {
        return Ok(());
    }
    let message = format!("the SQL has {expected} placeholders, but {given} parameters were given");
    Err(Failure::Call(CallError::new(INVALID_CALL, message)))
}

fn parameter(value: &Value) -> Result<ToSqlOutput<'_>, String> {
    Ok(match value {
        Value::Null => ToSqlOutput::Borrowed(ValueRef::Null),
        Value::Bool(truth) => ToSqlOutput::Owned(SqlValue::Integer(i64::from(*truth))),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => ToSqlOutput::Owned(SqlValue::Integer(integer)),
            (None, Some(real)) => ToSqlOutput::Owned(SqlValue::Real(real)),
            (None, None) => return Err("a number out of range".to_owned()),
        },
        Value::String(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        Value::Object(fields) => match (fields.len(), fields.get("$blob")) {
            (1, Some(Value::String(text))) => {
                let bytes = BASE64.decode(text).map_err(|error| format!("`$blob` is no base64: {error}"))?;
                ToSqlOutput::Owned(SqlValue::Blob(bytes))
            }
            _ => return Err("an object cannot be stored; give its fields, or JSON text".to_owned()),
        },
        Value::Array(_) => return Err("a list cannot be stored; give its items, or JSON text".to_owned()),
    })
}

/// The rowid of the last insert, as a text when a number could not hold it: failing would come too late.
pub fn rowid(rowid: i64) -> Value {
    if rowid.unsigned_abs() > MAX_SAFE_INTEGER { Value::from(rowid.to_string()) } else { Value::from(rowid) }
}

/// Rows written as JSON while they are read, so that a result too large is noticed before it is held.
pub struct RowText<'c> {
    columns: &'c [String],
    /// `"column":` for each.
    keys: Vec<String>,
    text: String,
}

impl<'c> RowText<'c> {
    pub fn new(columns: &'c [String]) -> Self {
        let keys = columns.iter().map(|column| format!("{}:", Value::from(column.as_str()))).collect();
        Self { columns, keys, text: String::new() }
    }

    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<(), Failure> {
        if !self.text.is_empty() {
            self.text.push(',');
        }
        self.text.push('{');
        for index in 0..self.keys.len() {
            if index > 0 {
                self.text.push(',');
            }
            self.text.push_str(&self.keys[index]);
            self.push_value(index, row.get_ref(index)?)?;
            if self.text.len() > MAX_RESULT_BYTES {
                let message = format!("the result is larger than {MAX_RESULT_BYTES} bytes; select less, or in parts");
                return Err(Failure::Call(CallError::new("SQLITE_TOOBIG", message)));
            }
        }
        self.text.push('}');
        Ok(())
    }

    fn push_value(&mut self, index: usize, value: ValueRef<'_>) -> Result<(), Failure> {
        match value {
            ValueRef::Null => self.text.push_str("null"),
            ValueRef::Integer(integer) if integer.unsigned_abs() > MAX_SAFE_INTEGER => {
                let column = shortened(&self.columns[index], 100);
                let message = format!(
                    "column {column:?} holds {integer}, which a JavaScript number cannot hold exactly; select \
                     CAST(… AS TEXT)"
                );
                return Err(Failure::Call(CallError::new("SQLITE_MISMATCH", message)));
            }
            ValueRef::Integer(integer) => self.text.push_str(&integer.to_string()),
            ValueRef::Real(real) => self.text.push_str(&Value::from(real).to_string()),
            ValueRef::Text(bytes) => {
                self.text.push_str(&Value::String(String::from_utf8_lossy(bytes).into_owned()).to_string());
            }
            ValueRef::Blob(bytes) => {
                self.text.push_str("{\"$blob\":\"");
                BASE64.encode_string(bytes, &mut self.text);
                self.text.push_str("\"}");
            }
        }
        Ok(())
    }

    /// The one row pushed.
    pub fn into_row(self) -> String {
        self.text
    }

    /// All rows pushed, as a list.
    pub fn into_list(self) -> String {
        format!("[{}]", self.text)
    }
}
