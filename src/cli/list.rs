//! `list`: every automation under the root with its state, triggers, next fire and last result, and what its models
//! counted beside what its manifest estimates. The running daemon is asked, because it knows what is armed; without one,
//! the disk is read.

use crate::cli::client::Client;
use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{
    BAD, Cell, DIM, GOOD, PLAIN, Table, WARN, count, document, line, problem, shortened, status_style, warn,
};
use crate::cli::place::Place;
use crate::cli::stats::token_cells;
use crate::cli::times::{duration, local_minute, relative, with_rfc3339};
use crate::clock::Clock;
use crate::fire::{EpochMs, Problem};
use crate::ledger::NEWEST;
use crate::overview::{AutomationState, AutomationView, Overview, TriggerView};

/// A summary is one line of many here.
const SUMMARY_CHARS: usize = 60;

/// Lists automations with state, triggers, next fire and last result.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent list
  dirigent --root ~/apps list --json | jq '.automations[].handle'
  dirigent list --json | jq '.automations[] | select(.usage.tokensPerRun > .costEstimate.tokensPerFire) | .handle'")]
pub struct ListArgs {}

pub async fn list(place: &Place, _: ListArgs) -> Outcome {
    let overview = overview(place).await?;
    if place.json {
        let value = serde_json::to_value(&overview).map_err(|error| Failure::failed("json", error.to_string()))?;
        document(&with_rfc3339(value))?;
        return Ok(exit::FINE);
    }
    if overview.automations.is_empty() {
        line(format_args!("There are no automations under {} yet.", place.root.display()))?;
        line("Make one with `dirigent new <app>/<id>`, or name another root with --root.")?;
    } else {
        table(&overview.automations).print()?;
        if overview.automations.iter().any(|view| view.usage.is_some()) {
            line(format_args!("\nTOKENS/RUN is measured over the last {NEWEST} runs of each, skipped ones aside."))?;
        }
    }
    tell_problems(&overview)?;
    Ok(exit::FINE)
}

async fn overview(place: &Place) -> Result<Overview, Failure> {
    if let Some(client) = Client::of(place)? {
        match client.overview().await {
            Ok(overview) => return Ok(overview),
            Err(failure) if failure.code == "daemon_silent" => {
                warn(format_args!("{}; this is what the disk says", failure.message));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(Overview::from_disk(&place.root, place.data.as_deref(), Clock::Real.now_ms()))
}

fn table(automations: &[AutomationView]) -> Table {
    let now = Clock::Real.now_ms();
    // Most roots ask no models.
    let costs = automations.iter().any(|view| view.usage.is_some() || view.cost_estimate.is_some());
    let figures: &[&str] = if costs { &["TOKENS/RUN", "ESTIMATE"] } else { &[] };
    let mut table = Table::new(&[&["HANDLE", "STATE", "TRIGGERS", "NEXT"], figures, &["LAST"]].concat());
    for view in automations {
        let mut row: Vec<Cell> = vec![
            view.handle.to_string().into(),
            state_cell(view),
            match view.state {
                // Nothing is known of them.
                AutomationState::Invalid if view.triggers.is_empty() => "-".into(),
                _ => triggers_text(&view.triggers).into(),
            },
            next_text(&view.triggers, now).into(),
        ];
        if costs {
            let estimate = view.cost_estimate.as_ref().map(|cost| cost.tokens_per_fire);
            row.extend(token_cells(view.usage.as_ref().map(|usage| usage.tokens_per_run), estimate));
        }
        row.push(last_cell(view, now));
        table.row(row);
    }
    table
}

fn state_cell(view: &AutomationView) -> Cell {
    match view.state {
        AutomationState::Enabled => Cell::new("enabled", GOOD),
        AutomationState::Disabled => Cell::new("disabled", DIM),
        AutomationState::Invalid => Cell::new("invalid", BAD),
    }
}

fn triggers_text(triggers: &[TriggerView]) -> String {
    let texts: Vec<String> = triggers
        .iter()
        .map(|trigger| match trigger {
            TriggerView::Cron { expr, tz: None, .. } => format!("cron {expr}"),
            TriggerView::Cron { expr, tz: Some(tz), .. } => format!("cron {expr} {tz}"),
            TriggerView::Webhook { pending: true, .. } => "webhook (pending)".to_owned(),
            TriggerView::Webhook { open: false, .. } => "webhook (closed)".to_owned(),
            TriggerView::Webhook { .. } => "webhook".to_owned(),
        })
        .collect();
    if texts.is_empty() { "manual".to_owned() } else { texts.join(", ") }
}

fn next_text(triggers: &[TriggerView], now: EpochMs) -> String {
    let next = triggers.iter().filter_map(|trigger| match trigger {
        TriggerView::Cron { next, .. } => *next,
        TriggerView::Webhook { .. } => None,
    });
    next.min().map_or_else(|| "-".to_owned(), |at| format!("{} ({})", local_minute(at), relative(at, now)))
}

fn last_cell(view: &AutomationView, now: EpochMs) -> Cell {
    let Some(last) = &view.last_run else {
        return Cell::new("-", PLAIN);
    };
    let mut text = format!("{} {}", last.status, relative(last.ended_at.unwrap_or(last.queued_at), now));
    if let (Some(start), Some(end)) = (last.started_at, last.ended_at) {
        text.push_str(&format!(" in {}", duration(end - start)));
    }
    if let Some(told) = last.error.as_ref().or(last.summary.as_ref()) {
        let first = told.lines().next().unwrap_or_default();
        text.push_str(&format!(": {}", shortened(first, SUMMARY_CHARS)));
    }
    Cell::new(&text, status_style(last.status))
}

/// Those of each automation below its handle, then those of folders and files that belong to none.
fn tell_problems(overview: &Overview) -> Result<(), Failure> {
    let mut told: Vec<&Problem> = Vec::new();
    for view in overview.automations.iter().filter(|view| !view.problems.is_empty()) {
        line("")?;
        line(format_args!("{}:", view.handle))?;
        for found in &view.problems {
            problem(found, "  ")?;
            told.push(found);
        }
    }
    let rest: Vec<&Problem> = overview.problems.iter().filter(|found| !told.contains(found)).collect();
    if !rest.is_empty() {
        line("")?;
        line("elsewhere under the root:")?;
        for found in &rest {
            problem(found, "  ")?;
        }
    }
    let errors = told.iter().chain(&rest).filter(|found| found.is_error()).count();
    if errors > 0 {
        use owo_colors::OwoColorize;
        line("")?;
        line(format_args!("{}", count(errors, "error").style(WARN)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_told_in_a_word_each() {
        let cron = |tz: Option<&str>, next| TriggerView::Cron {
            expr: "0 9 * * *".to_owned(),
            tz: tz.map(str::to_owned),
            next,
        };
        let hook = |pending, open| TriggerView::Webhook { id: None, pending, open };
        for (triggers, text) in [
            (vec![], "manual"),
            (vec![cron(None, None)], "cron 0 9 * * *"),
            (
                vec![cron(Some("Europe/Berlin"), None), hook(true, false)],
                "cron 0 9 * * * Europe/Berlin, webhook (pending)",
            ),
            (vec![hook(false, true)], "webhook"),
            (vec![hook(false, false)], "webhook (closed)"),
        ] {
            assert_eq!(triggers_text(&triggers), text);
        }
        let two = [cron(None, Some(90_000)), cron(None, Some(7_000)), hook(false, true)];
        assert!(next_text(&two, 0).ends_with("(in 7 s)"), "the earliest counts");
        assert_eq!(next_text(&[hook(false, true)], 0), "-");
    }
}
