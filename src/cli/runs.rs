//! `runs`: history across all apps, newest first, straight from the ledgers.

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{Cell, DIM, Table, document, line, shortened, status_style};
use crate::cli::place::Place;
use crate::cli::times::{INSTANT_RULE, duration, local, parse_since, with_rfc3339};
use crate::clock::Clock;
use crate::fire::{EpochMs, Handle, RunStatus};
use crate::ledger::{RunQuery, RunRow};

/// The last characters of an id, which are the ones that differ; every command takes them.
pub const SHORT_ID: usize = 12;
const SUMMARY_CHARS: usize = 80;

/// Lists runs, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent runs
  dirigent runs auto.mail/digest --status error --since 7d
  dirigent runs --dead            runs that used up their retries
  dirigent runs --json | jq -r '.runs[] | select(.status == \"error\") | .runId'")]
pub struct RunsArgs {
    /// APP/ID, or the id alone when only one app has it; also one whose folder is gone
    handle: Option<String>,
    /// Only runs with this status; may be given several times
    #[arg(long, value_name = "STATUS", value_parser = parse_status)]
    status: Vec<RunStatus>,
    /// Only runs since then: a span such as 7d, 24h or 30m, or a time
    #[arg(long, value_name = "SPAN|TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Only runs that used up their retries
    #[arg(long)]
    dead: bool,
    /// At most so many
    #[arg(short = 'n', long = "limit", value_name = "N", default_value_t = 20, allow_negative_numbers = true)]
    limit: usize,
}

fn parse_status(text: &str) -> Result<RunStatus, String> {
    RunStatus::parse(text).ok_or_else(|| {
        let words: Vec<&str> = RunStatus::ALL.iter().map(|status| status.as_str()).collect();
        format!("a status is one of {}", words.join(", "))
    })
}

pub fn runs(place: &Place, args: &RunsArgs) -> Outcome {
    let since = since_when(args.since.as_deref())?;
    let handle = args.handle.as_deref().map(|text| historic(place, text)).transpose()?;
    let query = RunQuery {
        automation: handle.as_ref().map(|h| h.automation.clone()),
        statuses: args.status.clone(),
        since,
        dead: args.dead,
        limit: args.limit,
        ..RunQuery::default()
    };
    let rows = Ledgers::open(place)?.runs(handle.as_ref().map(|h| &h.app), &query);
    if place.json {
        let rows = serde_json::to_value(&rows).map_err(|error| Failure::failed("json", error.to_string()))?;
        document(&with_rfc3339(serde_json::json!({ "runs": rows })))?;
    } else if rows.is_empty() {
        line("no such runs")?;
    } else {
        table(&rows).print()?;
    }
    Ok(exit::FINE)
}

/// What `--since` means.
///
/// # Errors
/// Wrong usage.
pub fn since_when(text: Option<&str>) -> Result<Option<EpochMs>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let since = parse_since(text, Clock::Real.now_ms()).ok_or_else(|| {
        Failure::usage(format!("--since {text:?} is neither a span nor a time"))
            .hint(format!("a span is 7d, 24h, 30m or the like; a time is {INSTANT_RULE}"))
    })?;
    Ok(Some(since))
}

/// An automation that is there, or one that once was: its history outlives it.
///
/// # Errors
/// As [`Place::automation`].
pub fn historic(place: &Place, text: &str) -> Result<Handle, Failure> {
    place.automation(text).or_else(|failure| match text.parse::<Handle>() {
        Ok(handle) if place.folders().ledger(&handle.app).is_file() => {
            let query = RunQuery { automation: Some(handle.automation.clone()), limit: 1, ..RunQuery::default() };
            let known = !Ledgers::open(place)?.runs(Some(&handle.app), &query).is_empty();
            if known { Ok(handle) } else { Err(failure) }
        }
        _ => Err(failure),
    })
}

fn table(rows: &[RunRow]) -> Table {
    let now = Clock::Real.now_ms();
    let mut table = Table::new(&["RUN", "AUTOMATION", "STATUS", "BY", "STARTED", "TOOK", "SUMMARY"]);
    for row in rows {
        let took = match (row.started_at, row.ended_at) {
            (Some(start), Some(end)) => duration(end - start),
            (Some(start), None) => format!("{}…", duration(now - start)),
            (None, _) => "-".to_owned(),
        };
        let told = row.error.as_deref().or(row.summary.as_deref()).unwrap_or_default();
        let first = told.lines().next().unwrap_or_default();
        let attempt = if row.attempt > 1 { format!(" #{}", row.attempt) } else { String::new() };
        table.row(vec![
            Cell::new(short_id(row.run_id.as_str()), DIM),
            format!("{}/{}", row.app_id, row.automation_id).into(),
            Cell::new(row.status.as_str(), status_style(row.status)),
            format!("{}{attempt}", row.origin).into(),
            local(row.started_at.unwrap_or(row.queued_at)).into(),
            took.into(),
            shortened(first, SUMMARY_CHARS).into(),
        ]);
    }
    table
}

pub fn short_id(id: &str) -> &str {
    id.get(id.len().saturating_sub(SHORT_ID)..).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_id_is_the_part_that_differs() {
        assert_eq!(short_id("01900000-0000-7000-8000-0123456789ab"), "0123456789ab");
        assert_eq!(short_id("ab"), "ab");
    }

    #[test]
    fn a_status_is_one_of_the_words() {
        assert_eq!(parse_status("error"), Ok(RunStatus::Error));
        assert!(parse_status("failed").unwrap_err().contains("cancelled"));
    }
}
