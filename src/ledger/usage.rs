//! What runs took: how they ended, how long they were at it, and the tokens that their models counted; one [`Tally`] per
//! automation, as far as retention has kept its runs. And the tokens alone, of the newest few runs, as [`NewestUsage`]:
//! it costs the same however long the history is.
//!
//! All is added up by SQLite, and durations are sorted by it, which spills to a file what is much: the memory needed here
//! grows with the automations, not with their runs. The figures of one look are of one moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rusqlite::types::Value;

use crate::fire::{AutomationId, EpochMs};

use super::error::LedgerError;
use super::read::Reader;
use super::rows::name;

/// The runs of one automation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Runs that are no retry of another and were not skipped.
    pub fires: u64,
    pub retries: u64,
    pub ok: u64,
    pub error: u64,
    pub cancelled: u64,
    pub skipped: u64,
    /// Queued or running.
    pub open: u64,
    /// Of the runs that ended in `ok` or `error`.
    pub duration: Option<Quantiles>,
    /// `ctx.agent` calls whose usage is recorded, and what they add up to; a count that the provider did not give is 0.
    pub agent_calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// Durations in ms, from a run's start to its end. At least half of the runs took no longer than `p50_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    pub p50_ms: i64,
    pub p95_ms: i64,
}

/// What the models counted in the newest runs of one automation: of the newest [`LOOKED_AT`] rows, the first [`NEWEST`]
/// that ended and were not skipped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewestUsage {
    /// Those runs, also the ones that called no model.
    pub runs: u64,
    /// `ctx.agent` calls whose usage is recorded, and what they add up to; a count that the provider did not give is 0.
    pub calls: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// `provider/model`, each once, by name.
    pub models: Vec<String>,
}

/// As many as a strip of runs shows.
pub const NEWEST: usize = 20;

/// Skipped rows may stand between two runs by the hundred; beyond this many, older runs are not looked for.
const LOOKED_AT: usize = 200;

const RAN: &str = "r.status IN ('ok', 'error') AND r.started_at IS NOT NULL AND r.ended_at IS NOT NULL";

/// Which runs count.
struct Selection {
    condition: String,
    values: Vec<Value>,
}

impl Selection {
    fn new(automation: Option<&AutomationId>, since: Option<EpochMs>) -> Self {
        let mut selection = Self { condition: "true".to_owned(), values: Vec::new() };
        if let Some(automation) = automation {
            selection.values.push(automation.as_str().to_owned().into());
            selection.condition.push_str(" AND r.automation_id = ?1");
        }
        if let Some(since) = since {
            selection.values.push(since.into());
            let at = selection.values.len();
            let _ = write!(selection.condition, " AND (r.queued_at >= ?{at} OR r.started_at >= ?{at})");
        }
        selection
    }

    fn params(&self) -> impl rusqlite::Params {
        rusqlite::params_from_iter(self.values.clone())
    }
}

impl Reader {
    /// Of all automations that have a row, or of the one; of runs that were queued or started since then, or of all.
    /// Reads every row that counts.
    ///
    /// # Errors
    /// As the file fails.
    pub fn tallies(
        &self,
        automation: Option<&AutomationId>,
        since: Option<EpochMs>,
    ) -> Result<BTreeMap<AutomationId, Tally>, LedgerError> {
        let _one_moment = self.moment()?;
        let all = Selection::new(automation, since);
        let mut tallies = self.endings(&all)?;
        for (automation, tally) in &mut tallies {
            tally.duration = self.durations(&Selection::new(Some(automation), since))?;
        }
        for (automation, calls, input, output) in self.tokens(&all)? {
            if let Some(tally) = tallies.get_mut(&automation) {
                (tally.agent_calls, tally.input_tokens, tally.output_tokens) = (calls, input, output);
            }
        }
        Ok(tallies)
    }

    fn endings(&self, selection: &Selection) -> Result<BTreeMap<AutomationId, Tally>, LedgerError> {
        let sql = format!(
            "SELECT r.automation_id, sum(r.retry_of IS NULL AND r.status <> 'skipped'), sum(r.retry_of IS NOT NULL), \
             sum(r.status = 'ok'), sum(r.status = 'error'), sum(r.status = 'cancelled'), sum(r.status = 'skipped'), \
             sum(r.status IN ('queued', 'running')) FROM runs r WHERE {} GROUP BY r.automation_id",
            selection.condition
        );
        let rows = self.read(&sql, selection.params(), |row| {
            let tally = Tally {
                fires: count(row, 1)?,
                retries: count(row, 2)?,
                ok: count(row, 3)?,
                error: count(row, 4)?,
                cancelled: count(row, 5)?,
                skipped: count(row, 6)?,
                open: count(row, 7)?,
                ..Tally::default()
            };
            Ok((name(row, 0, AutomationId::new)?, tally))
        })?;
        Ok(rows.into_iter().collect())
    }

    /// Of one automation.
    fn durations(&self, selection: &Selection) -> Result<Option<Quantiles>, LedgerError> {
        let from = format!("FROM runs r WHERE {} AND {RAN}", selection.condition);
        let counted = self.read(&format!("SELECT count(*) {from}"), selection.params(), |row| count(row, 0))?;
        let ran = counted.first().copied().unwrap_or(0);
        // The nearest rank: the smallest duration that so many of a hundred runs did not exceed.
        let at = |percent: u64| -> Result<Option<i64>, LedgerError> {
            let skipped = (ran * percent).div_ceil(100).saturating_sub(1);
            let sql = format!("SELECT max(r.ended_at - r.started_at, 0) {from} ORDER BY 1 LIMIT 1 OFFSET {skipped}");
            Ok(self.read(&sql, selection.params(), |row| Ok(row.get(0)?))?.pop())
        };
        Ok(at(50)?.zip(at(95)?).map(|(p50_ms, p95_ms)| Quantiles { p50_ms, p95_ms }))
    }

    fn tokens(&self, selection: &Selection) -> Result<Vec<(AutomationId, u64, u64, u64)>, LedgerError> {
        let sql = format!(
            "SELECT r.automation_id, {COUNTED} FROM runs r JOIN run_nodes n ON n.run_id = r.run_id \
             WHERE {} AND {HAS_USAGE} GROUP BY r.automation_id",
            selection.condition
        );
        self.read(&sql, selection.params(), |row| {
            Ok((name(row, 0, AutomationId::new)?, count(row, 1)?, whole(row.get(2)?), whole(row.get(3)?)))
        })
    }

    /// False when no call of the ledger has recorded what it used, which is most ledgers.
    pub(super) fn has_usage(&self) -> Result<bool, LedgerError> {
        // Without its index, which a file of an earlier version lacks, the question is as dear as its answer.
        let indexed = self.read("SELECT 1 FROM sqlite_schema WHERE name = 'run_nodes_usage'", [], |_| Ok(()))?;
        let any = || self.read("SELECT 1 FROM run_nodes WHERE usage_json IS NOT NULL LIMIT 1", [], |_| Ok(()));
        Ok(indexed.is_empty() || !any()?.is_empty())
    }

    /// Of the newest runs of one automation; `None` when none of them has called a model.
    pub(super) fn newest_usage(&self, automation: &AutomationId) -> Result<Option<NewestUsage>, LedgerError> {
        let sql = format!(
            "SELECT {COUNTED}, count(DISTINCT r.run_id), \
             json_group_array(DISTINCT ifnull(CAST(json_extract(n.usage_json, '$.model') AS TEXT), '')) \
             FILTER (WHERE n.usage_json IS NOT NULL) \
             FROM (SELECT run_id FROM (SELECT run_id, status FROM runs WHERE automation_id = ?1 \
             ORDER BY run_id DESC LIMIT {LOOKED_AT}) WHERE status IN ('ok', 'error', 'cancelled') LIMIT {NEWEST}) r \
             LEFT JOIN run_nodes n ON n.run_id = r.run_id AND {HAS_USAGE}"
        );
        let found = self.read(&sql, [automation.as_str()], |row| {
            let mut models: Vec<String> =
                serde_json::from_str(row.get_ref(4)?.as_str().map_err(rusqlite::Error::from)?)
                    .map_err(|error| LedgerError::BadRow { what: error.to_string() })?;
            // What was edited by hand may name none.
            models.retain(|model| !model.is_empty());
            models.sort_unstable();
            Ok(NewestUsage {
                runs: count(row, 3)?,
                calls: count(row, 0)?,
                input_tokens: whole(row.get(1)?),
                output_tokens: whole(row.get(2)?),
                models,
            })
        })?;
        Ok(found.into_iter().find(|usage| usage.calls > 0))
    }
}

/// Calls, input tokens and output tokens of nodes `n`.
const COUNTED: &str = "count(n.usage_json), total(json_extract(n.usage_json, '$.inputTokens')), \
                       total(json_extract(n.usage_json, '$.outputTokens'))";

/// Of nodes `n`; only models' calls have a usage. What was edited by hand may be no JSON, and no number.
const HAS_USAGE: &str = "n.usage_json IS NOT NULL AND CASE WHEN json_valid(n.usage_json) THEN true END";

pub(super) fn count(row: &rusqlite::Row<'_>, column: usize) -> Result<u64, LedgerError> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

/// A sum of whole numbers, as SQLite's `total` gives it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast from a float is cut to the range")]
fn whole(total: f64) -> u64 {
    total as u64
}
