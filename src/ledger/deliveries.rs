//! Deliveries: which run took each, so that a sender who repeats one starts nothing and learns how the first went.
//!
//! A delivery is a post to a webhook that carries an id, or a "Run now" that carries an idempotency key. Its *slug* is
//! the webhook's, or `run:` and the automation, which is no webhook's slug.
//!
//! Senders repeat a delivery for hours, so what is known of it must outlive the run's row, whatever retention does. It
//! is dropped by its age alone, a few at a time, whenever a new one comes.

use rusqlite::{Connection, params};
use sha2::{Digest, Sha256};

use crate::core::run::{NewRun, RunEnd};
use crate::fire::{AutomationId, EpochMs, RunId, RunStatus, TriggerOrigin};

use super::error::LedgerError;
use super::rows::{run_id, word};

/// Old deliveries that one new one drops. More than one, so that a burst is worked off.
const DROPPED_AT_ONCE: u32 = 8;

/// A delivery that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub run_id: RunId,
    /// How the run ended; `None` while it has not.
    pub status: Option<RunStatus>,
    pub summary: Option<String>,
    pub error: Option<String>,
    /// Of a "Run now", what [`fingerprint`] says of its input.
    pub fingerprint: Option<String>,
}

/// The slug of the "Run now"s of an automation.
pub fn run_now_slug(automation: &AutomationId) -> String {
    format!("run:{automation}")
}

/// Tells inputs apart: the SHA-256 of the JSON text, hex; that there is none is told from every text.
pub fn fingerprint(input_json: Option<&str>) -> String {
    input_json.map_or_else(|| "none".to_owned(), |text| hex::encode(Sha256::digest(text)))
}

pub(super) fn find(
    conn: &Connection,
    slug: &str,
    delivery_id: &str,
    since: EpochMs,
) -> Result<Option<Delivery>, LedgerError> {
    let mut statement = conn.prepare_cached(
        "SELECT run_id, status, summary, error, fingerprint FROM webhook_deliveries \
         WHERE slug = ?1 AND delivery_id = ?2 AND at > ?3",
    )?;
    let mut rows = statement.query(params![slug, delivery_id, since])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let ended: Option<String> = row.get(1)?;
    Ok(Some(Delivery {
        run_id: run_id(row, 0)?,
        status: ended.map(|_| word(row, 1, RunStatus::parse)).transpose()?,
        summary: row.get(2)?,
        error: row.get(3)?,
        fingerprint: row.get(4)?,
    }))
}

/// Notes that this run takes its delivery, if it has one. Gives the run that took it before, if one did.
pub(super) fn claim(conn: &Connection, run: &NewRun, window_ms: i64) -> Result<Option<RunId>, LedgerError> {
    let Some(delivery_id) = &run.trigger.delivery_id else { return Ok(None) };
    // A retry carries its trigger's words, and is no delivery.
    let (slug, fingerprint) = match (run.origin, &run.trigger.slug) {
        (TriggerOrigin::Webhook, Some(slug)) => (slug.clone(), None),
        (TriggerOrigin::Manual, _) => (run_now_slug(&run.automation_id), Some(fingerprint(run.input_json.as_deref()))),
        _ => return Ok(None),
    };
    let since = run.queued_at - window_ms;
    if let Some(first) = find(conn, &slug, delivery_id, since)? {
        return Ok(Some(first.run_id));
    }
    let status = (!run.status.is_open()).then(|| run.status.as_str());
    conn.prepare_cached(
        "INSERT OR REPLACE INTO webhook_deliveries (slug, delivery_id, run_id, at, status, summary, fingerprint) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![slug, delivery_id, run.run_id.as_str(), run.queued_at, status, run.summary, fingerprint])?;
    conn.prepare_cached(
        "DELETE FROM webhook_deliveries WHERE (slug, delivery_id) IN \
         (SELECT slug, delivery_id FROM webhook_deliveries WHERE at <= ?1 ORDER BY at LIMIT ?2)",
    )?
    .execute(params![since, DROPPED_AT_ONCE])?;
    Ok(None)
}

/// Keeps how a delivery's run ended.
pub(super) fn conclude(conn: &Connection, run: &RunId, end: &RunEnd) -> Result<(), LedgerError> {
    conn.prepare_cached("UPDATE webhook_deliveries SET status = ?2, summary = ?3, error = ?4 WHERE run_id = ?1")?
        .execute(params![
            run.as_str(),
            end.status.as_str(),
            end.summary,
            end.error.as_deref().map(super::stored::shorten_error)
        ])?;
    Ok(())
}
