//! `logs`: the log of one run, and with `-f` what it logs until it ends. Read from the ledger, so that it works for a
//! run of a daemon as for one of another command.

use std::time::Duration;

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::follow::log_line;
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{json_line, line, note};
use crate::cli::place::Place;
use crate::cli::times::with_rfc3339;
use crate::ledger::{LogRow, Reader};

/// Fast enough for eyes, and one small indexed read each time.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Rows that are read at once.
const PAGE: usize = 1000;

/// Shows the log of one run.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent logs 0123456789ab
  dirigent logs 0123456789ab -f
  dirigent logs 0123456789ab --json | jq 'select(.level == \"error\")'")]
pub struct LogsArgs {
    /// The run's id, or six or more characters of its beginning or end
    run: String,
    /// Go on until the run ends
    #[arg(short, long)]
    follow: bool,
}

pub async fn logs(place: &Place, args: &LogsArgs) -> Outcome {
    let ledgers = Ledgers::open(place)?;
    let (reader, mut row) = ledgers.resolve(&args.run)?;
    let mut last = None;
    loop {
        // Whether it is open is known before its lines are read, so that none is missed at the end.
        let open = row.status.is_open();
        tell(place, reader, &row.run_id, &mut last)?;
        if !open || !args.follow {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        // Retention may take a run away right after its end.
        let Some(now) = reader.run(&row.run_id)? else { break };
        row = now;
    }
    if last.is_none() && !place.json {
        note("it has logged nothing");
    }
    Ok(exit::FINE)
}

fn tell(place: &Place, reader: &Reader, run: &crate::fire::RunId, last: &mut Option<u32>) -> Result<(), Failure> {
    loop {
        let rows = reader.logs(run, *last, PAGE)?;
        for row in &rows {
            tell_row(place, row)?;
            *last = Some(row.seq);
        }
        if rows.len() < PAGE {
            return Ok(());
        }
    }
}

fn tell_row(place: &Place, row: &LogRow) -> Result<(), Failure> {
    if place.json {
        let value = serde_json::to_value(row).map_err(|error| Failure::failed("json", error.to_string()))?;
        return json_line(&with_rfc3339(value));
    }
    Ok(line(log_line(row.at, row.level, &row.message, row.fields.as_ref().map(|text| text.as_str())))?)
}
