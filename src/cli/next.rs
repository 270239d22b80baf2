//! `next`: when a cron trigger fires next; of an automation as it stands on disk, or of an expression.

use owo_colors::OwoColorize;
use serde::Serialize;

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{Cell, DIM, Table, document, line, note};
use crate::cli::place::Place;
use crate::cli::times::{INSTANT_RULE, in_zone, local, parse_instant, relative, rfc3339};
use crate::cli::toggle::refused;
use crate::clock::Clock;
use crate::core::cron::{CronError, CronSchedule};
use crate::core::manifest::{self, CronTrigger};
use crate::edit;
use crate::fire::{EpochMs, Handle};

/// Shows the next fire times of an automation, or of a cron expression.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent next auto.mail/digest
  dirigent next --expr '0 9 * * mon-fri' --tz Europe/Berlin -n 10
  dirigent next --expr '30 2 * * *' --tz Europe/Berlin --from 2026-03-28

Without a zone the five fields are read in UTC.")]
pub struct NextArgs {
    /// APP/ID, or the id alone when only one app has it
    #[arg(required_unless_present = "expr", conflicts_with = "expr")]
    handle: Option<String>,
    /// Five cron fields: minute hour day-of-month month day-of-week
    #[arg(long, value_name = "CRON", allow_hyphen_values = true)]
    expr: Option<String>,
    /// The IANA zone in which --expr is read
    #[arg(long, value_name = "ZONE", requires = "expr", conflicts_with = "handle", allow_hyphen_values = true)]
    tz: Option<String>,
    /// The instant to start from: RFC 3339, or a local time or day [default: now]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// How many fire times
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 5, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
}

impl NextArgs {
    pub fn needs_root(&self) -> bool {
        self.handle.is_some()
    }
}

/// One of the triggers that is asked about.
struct Asked {
    expr: String,
    tz: Option<String>,
    schedule: CronSchedule,
}

#[derive(Debug, Serialize)]
struct Fire {
    at: String,
    expr: String,
    tz: Option<String>,
    #[serde(skip)]
    at_ms: EpochMs,
}

pub fn next(place: &Place, args: &NextArgs) -> Outcome {
    let from = match &args.from {
        None => Clock::Real.now_ms(),
        Some(text) => parse_instant(text).ok_or_else(|| {
            Failure::usage(format!("--from {text:?} is no instant")).hint(format!("it is {INSTANT_RULE}"))
        })?,
    };
    let (asked, handle, enabled) = match (&args.handle, &args.expr) {
        (Some(handle), _) => {
            let handle = place.automation(handle)?;
            let (asked, enabled) = of_automation(place, &handle)?;
            (asked, Some(handle), enabled)
        }
        (None, expr) => {
            let expr = expr.clone().unwrap_or_default();
            let schedule = CronSchedule::parse(&expr, args.tz.as_deref()).map_err(bad_cron)?;
            (vec![Asked { expr, tz: args.tz.clone(), schedule }], None, true)
        }
    };
    let fires = upcoming(&asked, from, args.count as usize);
    if place.json {
        document(&serde_json::json!({ "handle": handle, "enabled": enabled, "from": rfc3339(from), "fires": fires }))?;
        return Ok(exit::FINE);
    }
    if asked.is_empty() {
        line("It has no cron triggers: it fires by webhook, by hand, or by `ctx.invoke`.")?;
    } else if fires.is_empty() {
        line("It never fires again.")?;
    } else {
        tell(&fires, asked.len() > 1)?;
    }
    if !enabled {
        note("It is disabled, so none of these will fire: `dirigent enable` switches it on.".style(DIM));
    }
    Ok(exit::FINE)
}

/// The cron triggers of an automation, and whether it is enabled.
fn of_automation(place: &Place, handle: &Handle) -> Result<(Vec<Asked>, bool), Failure> {
    let bytes = edit::read_manifest(&place.app_dir(&handle.app), handle).map_err(|error| refused(&error))?;
    let parsed = manifest::parse(&bytes, &handle.app);
    let Some(manifest) = parsed.manifest else {
        let first = parsed.problems.iter().find(|found| found.is_error()).map(ToString::to_string);
        return Err(Failure::failed("invalid_manifest", format!("the manifest of {handle} is not valid"))
            .hint(first.unwrap_or_else(|| format!("see `dirigent validate {handle}`"))));
    };
    let asked = crate::core::cron_triggers(&manifest)
        .map(|CronTrigger { expr, tz, schedule }| Asked { expr: expr.clone(), tz: tz.clone(), schedule: *schedule })
        .collect();
    Ok((asked, manifest.enabled))
}

pub fn bad_cron(error: CronError) -> Failure {
    let mut failure = Failure::usage(error.to_string());
    "invalid_cron".clone_into(&mut failure.code);
    match error.hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The first `count` fires of all triggers together after `from`.
fn upcoming(asked: &[Asked], from: EpochMs, count: usize) -> Vec<Fire> {
    let mut nexts: Vec<Option<EpochMs>> = asked.iter().map(|a| a.schedule.next_after(from)).collect();
    let mut fires = Vec::new();
    while fires.len() < count
        && let Some((which, at)) =
            nexts.iter().enumerate().filter_map(|(n, at)| Some((n, (*at)?))).min_by_key(|(_, at)| *at)
    {
        let Asked { expr, tz, schedule } = &asked[which];
        nexts[which] = schedule.next_after(at);
        fires.push(Fire { at: rfc3339(at), expr: expr.clone(), tz: tz.clone(), at_ms: at });
    }
    fires
}

fn tell(fires: &[Fire], several: bool) -> Result<(), Failure> {
    let now = Clock::Real.now_ms();
    let zoned = fires.iter().any(|fire| fire.tz.is_some());
    let mut heading = vec!["UTC", "LOCAL"];
    heading.extend(zoned.then_some("ZONE"));
    heading.push("");
    heading.extend(several.then_some("TRIGGER"));
    let mut table = Table::new(&heading);
    for fire in fires {
        let mut row: Vec<Cell> = vec![fire.at.as_str().into(), local(fire.at_ms).into()];
        if zoned {
            row.push(fire.tz.as_deref().and_then(|tz| in_zone(fire.at_ms, tz)).unwrap_or_default().into());
        }
        row.push(Cell::new(&relative(fire.at_ms, now), DIM));
        if several {
            row.push(fire.expr.as_str().into());
        }
        table.row(row);
    }
    Ok(table.print()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_of_several_triggers_come_in_order() {
        let asked =
            |expr: &str| Asked { expr: expr.to_owned(), tz: None, schedule: CronSchedule::parse(expr, None).unwrap() };
        let fires = upcoming(&[asked("0 * * * *"), asked("30 0 * * *")], 0, 3);
        let shown: Vec<(&str, &str)> = fires.iter().map(|f| (f.at.as_str(), f.expr.as_str())).collect();
        assert_eq!(
            shown,
            [
                ("1970-01-01T00:30:00Z", "30 0 * * *"),
                ("1970-01-01T01:00:00Z", "0 * * * *"),
                ("1970-01-01T02:00:00Z", "0 * * * *"),
            ]
        );
        assert!(upcoming(&[], 0, 3).is_empty());
    }
}
