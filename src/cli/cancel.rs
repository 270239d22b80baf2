//! `cancel`: stops a run of the daemon.

use serde_json::json;

use crate::cli::client::Client;
use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{document, line};
use crate::cli::place::Place;
use crate::fire::RunId;

/// Stops a run: it ends as `cancelled`, its isolate is gone within a second.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  dirigent cancel 0123456789ab

A run that `dirigent run` does in its own process is cancelled there, with Ctrl-C.")]
pub struct CancelArgs {
    /// The run's id, or six or more characters of its beginning or end
    run: String,
}

pub async fn cancel(place: &Place, args: &CancelArgs) -> Outcome {
    let client = Client::needed(place, "cancel")?;
    let run = match RunId::new(&args.run) {
        // The daemon knows its runs, also those whose ledger cannot be read any more.
        Ok(run) => run,
        Err(_) => Ledgers::open(place)?.resolve(&args.run)?.1.run_id,
    };
    client.cancel(&run).await.map_err(ended_already)?;
    if place.json {
        document(&json!({ "runId": run, "status": "cancelling" }))?;
    } else {
        line(format_args!("cancelling {run}"))?;
    }
    Ok(exit::FINE)
}

fn ended_already(failure: Failure) -> Failure {
    if failure.code == "not_open" { failure.hint("there is nothing left to cancel") } else { failure }
}
