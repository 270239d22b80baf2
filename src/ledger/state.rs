//! `ctx.state`: the rows of `automation_state` and their two size limits. Key and value count, both in bytes.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::fire::{AutomationId, EpochMs};

use super::error::{LedgerError, StateScope};

/// The limits, and what is held so far.
pub(super) struct StateSizes {
    key_bytes: u64,
    automation_bytes: u64,
    /// Bytes per automation, as far as they were asked for. It runs ahead of the file inside a transaction, so whoever
    /// takes a transaction back must call [`StateSizes::forget`].
    held: HashMap<AutomationId, u64>,
}

impl StateSizes {
    /// `key_bytes` is for one key with its value, `automation_bytes` for all of an automation.
    pub(super) fn new(key_bytes: u64, automation_bytes: u64) -> Self {
        Self { key_bytes, automation_bytes, held: HashMap::new() }
    }

    pub(super) fn forget(&mut self) {
        self.held.clear();
    }
}

pub(super) fn get(conn: &Connection, automation: &AutomationId, key: &str) -> Result<Option<String>, LedgerError> {
    Ok(conn
        .prepare_cached("SELECT value_json FROM automation_state WHERE automation_id = ?1 AND key = ?2")?
        .query_row(params![automation.as_str(), key], |row| row.get(0))
        .optional()?)
}

pub(super) fn set(
    conn: &Connection,
    sizes: &mut StateSizes,
    automation: &AutomationId,
    key: &str,
    value_json: &str,
    at: EpochMs,
) -> Result<(), LedgerError> {
    let bytes = (key.len() + value_json.len()) as u64;
    if bytes > sizes.key_bytes {
        return Err(LedgerError::StateLimit { scope: StateScope::Key, bytes, limit: sizes.key_bytes });
    }
    let all = held_without(conn, sizes, automation, key)? + bytes;
    if all > sizes.automation_bytes {
        return Err(LedgerError::StateLimit {
            scope: StateScope::Automation,
            bytes: all,
            limit: sizes.automation_bytes,
        });
    }
    conn.prepare_cached(
        "INSERT INTO automation_state (automation_id, key, value_json, updated_at) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT DO UPDATE SET value_json = excluded.value_json, updated_at = excluded.updated_at",
    )?
    .execute(params![automation.as_str(), key, value_json, at])?;
    sizes.held.insert(automation.clone(), all);
    Ok(())
}

pub(super) fn delete(
    conn: &Connection,
    sizes: &mut StateSizes,
    automation: &AutomationId,
    key: &str,
) -> Result<(), LedgerError> {
    let rest = held_without(conn, sizes, automation, key)?;
    conn.prepare_cached("DELETE FROM automation_state WHERE automation_id = ?1 AND key = ?2")?
        .execute(params![automation.as_str(), key])?;
    sizes.held.insert(automation.clone(), rest);
    Ok(())
}

fn held_without(
    conn: &Connection,
    sizes: &StateSizes,
    automation: &AutomationId,
    key: &str,
) -> Result<u64, LedgerError> {
    Ok(held(conn, sizes, automation)?.saturating_sub(held_by_key(conn, automation, key)?))
}

fn held(conn: &Connection, sizes: &StateSizes, automation: &AutomationId) -> Result<u64, LedgerError> {
    if let Some(&bytes) = sizes.held.get(automation) {
        return Ok(bytes);
    }
    let bytes: i64 = conn
        .prepare_cached(
            "SELECT ifnull(sum(octet_length(key) + octet_length(value_json)), 0) FROM automation_state \
             WHERE automation_id = ?1",
        )?
        .query_row([automation.as_str()], |row| row.get(0))?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

fn held_by_key(conn: &Connection, automation: &AutomationId, key: &str) -> Result<u64, LedgerError> {
    let bytes: Option<i64> = conn
        .prepare_cached(
            "SELECT octet_length(key) + octet_length(value_json) FROM automation_state \
             WHERE automation_id = ?1 AND key = ?2",
        )?
        .query_row(params![automation.as_str(), key], |row| row.get(0))
        .optional()?;
    Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
}
