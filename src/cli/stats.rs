//! `stats`: how each automation has done: success rates, durations, fires, and the tokens of its models beside what its
//! manifest estimates. Straight from disk and ledgers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::cli::failure::{Outcome, exit};
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{BAD, Cell, DIM, PLAIN, Table, WARN, document, line};
use crate::cli::place::Place;
use crate::cli::runs::{historic, since_when};
use crate::cli::times::{duration, rfc3339};
use crate::core::manifest::CostEstimate;
use crate::core::registry::Registry;
use crate::fire::Handle;
use crate::ledger::Tally;
use crate::watch;

/// Shows success rates, durations and tokens per automation.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Counted is what history still holds: `history.keep` in the manifest says how much.

Examples:
  dirigent stats
  dirigent stats auto.mail/digest --since 7d
  dirigent stats --json | jq '.automations[] | select(.successRate < 0.9) | .handle'")]
pub struct StatsArgs {
    /// APP/ID, or the id alone when only one app has it; also one whose folder is gone
    handle: Option<String>,
    /// Only runs since then: a span such as 7d, 24h or 30m, or a time
    #[arg(long, value_name = "SPAN|TIME", allow_hyphen_values = true)]
    since: Option<String>,
}

/// One automation: what was recorded, and what its manifest expects.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    handle: Handle,
    tally: Tally,
    estimate: Option<CostEstimate>,
}

pub fn stats(place: &Place, args: &StatsArgs) -> Outcome {
    let since = since_when(args.since.as_deref())?;
    let handle = args.handle.as_deref().map(|text| historic(place, text)).transpose()?;
    let mut lines: BTreeMap<Handle, Line> = BTreeMap::new();
    let mut registry = Registry::default();
    registry.apply(watch::scan(&place.root));
    for automation in registry.automations() {
        let estimate = automation.manifest.as_deref().and_then(|manifest| manifest.cost_estimate.clone());
        let line = Line { handle: automation.handle.clone(), tally: Tally::default(), estimate };
        lines.insert(automation.handle.clone(), line);
    }
    for (handle, tally) in Ledgers::open(place)?.tallies(handle.as_ref(), since) {
        // What has a history but no folder any more is shown too.
        let line = Line { handle: handle.clone(), tally, estimate: None };
        lines.entry(handle).and_modify(|line| line.tally = tally).or_insert(line);
    }
    let lines: Vec<Line> =
        lines.into_values().filter(|l| handle.as_ref().is_none_or(|only| *only == l.handle)).collect();
    if place.json {
        let automations: Vec<Value> = lines.iter().map(Line::json).collect();
        document(&json!({ "since": since.map(rfc3339), "automations": automations }))?;
    } else if lines.is_empty() {
        line(format_args!("There are no automations under {} yet.", place.root.display()))?;
    } else {
        table(&lines).print()?;
    }
    Ok(exit::FINE)
}

impl Line {
    /// Of the runs that ended by themselves, the part that ended well; cancelled and skipped ones say nothing.
    fn success_rate(&self) -> Option<f64> {
        ratio(self.tally.ok, self.tally.ok + self.tally.error)
    }

    /// `None` where no model was called.
    fn tokens_per_fire(&self) -> Option<f64> {
        let all = self.tally.input_tokens.saturating_add(self.tally.output_tokens);
        ratio(all, self.tally.fires).filter(|_| self.tally.agent_calls > 0)
    }

    fn json(&self) -> Value {
        let tally = &self.tally;
        json!({
            "handle": self.handle,
            "fires": tally.fires,
            "retries": tally.retries,
            "ok": tally.ok,
            "error": tally.error,
            "cancelled": tally.cancelled,
            "skipped": tally.skipped,
            "open": tally.open,
            "successRate": self.success_rate(),
            "durationMs": tally.duration.map(|took| json!({ "p50": took.p50_ms, "p95": took.p95_ms })),
            "agentCalls": tally.agent_calls,
            "tokens": {
                "input": tally.input_tokens,
                "output": tally.output_tokens,
                "perFire": self.tokens_per_fire(),
            },
            "costEstimate": self.estimate.as_ref().map(|estimate| {
                json!({ "model": estimate.model, "tokensPerFire": estimate.tokens_per_fire })
            }),
        })
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown to a few digits")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn table(lines: &[Line]) -> Table {
    let mut table =
        Table::new(&["HANDLE", "FIRES", "OK", "ERROR", "SKIPPED", "SUCCESS", "P50", "P95", "TOKENS/FIRE", "ESTIMATE"]);
    let number = |n: u64| Cell::new(&n.to_string(), if n == 0 { DIM } else { PLAIN });
    for line in lines {
        let tally = &line.tally;
        let took = |of: fn(crate::ledger::Quantiles) -> i64| tally.duration.map_or("-".to_owned(), |q| duration(of(q)));
        let mut row = vec![
            line.handle.to_string().into(),
            number(tally.fires),
            number(tally.ok),
            Cell::new(&tally.error.to_string(), if tally.error == 0 { DIM } else { BAD }),
            number(tally.skipped),
            line.success_rate().map_or("-".to_owned(), percent).into(),
            took(|q| q.p50_ms).into(),
            took(|q| q.p95_ms).into(),
        ];
        row.extend(token_cells(line.tokens_per_fire(), line.estimate.as_ref().map(|e| e.tokens_per_fire)));
        table.row(row);
    }
    table
}

/// What was measured beside what was estimated; more than that stands out.
pub(super) fn token_cells(measured: Option<f64>, estimate: Option<f64>) -> [Cell; 2] {
    let shown = |tokens: Option<f64>| tokens.map_or("-".to_owned(), rounded);
    let is_over = measured.zip(estimate).is_some_and(|(measured, estimate)| measured > estimate);
    [Cell::new(&shown(measured), if is_over { WARN } else { PLAIN }), shown(estimate).into()]
}

/// Cut, not rounded: what is not all is not 100 %.
fn percent(rate: f64) -> String {
    let tenths = (rate * 1000.0 + 1e-6).floor() / 10.0;
    format!("{tenths} %")
}

fn rounded(tokens: f64) -> String {
    format!("{tokens:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Quantiles;

    #[test]
    fn rates_are_told_of_what_there_is() {
        let line = |tally: Tally, estimate: Option<f64>| Line {
            handle: "a/x".parse().expect("a handle"),
            tally,
            estimate: estimate.map(|tokens_per_fire| CostEstimate { model: "p/m".to_owned(), tokens_per_fire }),
        };
        let none = line(Tally { skipped: 2, open: 1, fires: 1, ..Tally::default() }, None);
        let some = line(
            Tally {
                fires: 3,
                ok: 1999,
                error: 1,
                duration: Some(Quantiles { p50_ms: 7, p95_ms: 1250 }),
                agent_calls: 2,
                input_tokens: 400,
                output_tokens: 100,
                ..Tally::default()
            },
            Some(150.0),
        );
        assert_eq!((none.success_rate(), none.tokens_per_fire()), (None, None));
        assert_eq!(some.tokens_per_fire().map(rounded).as_deref(), Some("167"));
        let words: Vec<String> = table(&[none, some.clone()])
            .lines()
            .iter()
            .skip(1)
            .map(|line| anstream::adapter::strip_str(line).to_string())
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert!(words[0].ends_with("1 0 0 2 - - - - -"), "{words:?}");
        for part in ["99.9 % 7 ms 1.25 s", "167", "150"] {
            assert!(words[1].contains(part), "{part}: {words:?}");
        }
        assert_eq!(some.json()["costEstimate"], json!({"model": "p/m", "tokensPerFire": 150.0}));
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.29), "29 %");
    }
}
