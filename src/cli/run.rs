//! `run` and `replay`: fire now, and tell the run as it happens. By the running daemon; without one, in this process,
//! which holds the root's lock meanwhile and records the same rows.

use std::io::Read;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::cli::client::{Accepted, Client, accepted_json};
use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::follow::{End, Teller};
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{document, line, note, warn};
use crate::cli::place::Place;
use crate::clock::Clock;
use crate::config::Config;
use crate::core::{Answer, FireRequest};
use crate::daemon::home::{self, HomeError, Lock};
use crate::daemon::{Daemon, Options, Scope, refusal};
use crate::fire::{Handle, RunId, TriggerInfo, TriggerOrigin};
use crate::isolate;

/// Between two tries of a lock that another process holds, and two looks at what still runs.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// A lock that is held for less than this is a look at the lock, or a short run: nothing to speak of.
const QUIET_WAIT: Duration = Duration::from_millis(500);
/// A stream that broke off this often without any news is given up.
const MOST_BREAKS: u32 = 20;

/// Fires an automation now.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent run auto.mail/digest
  dirigent run digest --input '{\"day\": \"2026-03-01\"}'
  dirigent run digest --input @input.json
  echo '{\"a\": 1}' | dirigent --json run digest --input -

Exit code 0 when the run ends well, 1 when it fails or is cancelled. Ctrl-C cancels the run.")]
pub struct RunArgs {
    /// APP/ID, or the id alone when only one app has it
    handle: String,
    /// The run's input: JSON, @file, or - for stdin
    #[arg(long, value_name = "JSON|@FILE|-", allow_hyphen_values = true)]
    input: Option<String>,
    /// Print the run's id and leave it to the daemon
    #[arg(long)]
    no_wait: bool,
}

/// Fires again what a run did, with the same input.
#[derive(Debug, clap::Args)]
#[command(after_help = "The new run is one of its own; it uses the handler and manifest as they are now.")]
pub struct ReplayArgs {
    /// The run's id, or six or more characters of its beginning or end
    run: String,
    /// Print the new run's id and leave it to the daemon
    #[arg(long)]
    no_wait: bool,
}

pub async fn run(place: &Place, args: RunArgs) -> Outcome {
    let input_json = args.input.as_deref().map(read_input).transpose()?;
    let handle = place.automation(&args.handle)?;
    let fire = Fire { handle, input_json, replay_of: None };
    fire_and_tell(place, fire, args.no_wait).await
}

pub async fn replay(place: &Place, args: ReplayArgs) -> Outcome {
    let fire = {
        let ledgers = Ledgers::open(place)?;
        let (reader, row) = ledgers.resolve(&args.run)?;
        let input_json = reader.input(&row.run_id)?;
        if input_json.as_deref().is_some_and(crate::ledger::is_truncated) {
            return Err(Failure::failed("input_truncated", "its input was too long to be kept in full")
                .hint("run it anew with `dirigent run <handle> --input @file`"));
        }
        Fire { handle: Handle::new(row.app_id, row.automation_id), input_json, replay_of: Some(row.run_id) }
    };
    fire_and_tell(place, fire, args.no_wait).await
}

/// The input as JSON text.
fn read_input(given: &str) -> Result<String, Failure> {
    let (text, from) = if given == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::io("stdin", &error))?;
        (text, "stdin".to_owned())
    } else if let Some(path) = given.strip_prefix('@') {
        let text = std::fs::read_to_string(path).map_err(|error| Failure::io(path, &error).exit_with(exit::USAGE))?;
        (text, path.to_owned())
    } else {
        (given.to_owned(), "--input".to_owned())
    };
    match serde_json::from_str::<&serde_json::value::RawValue>(&text) {
        Ok(raw) => Ok(raw.get().to_owned()),
        Err(error) => {
            let failure = Failure::usage(format!("{from} is no JSON: {error}"));
            let bare_word = !given.is_empty() && !text.trim_start().starts_with(['{', '[', '"']);
            Err(if bare_word && from == "--input" {
                failure
                    .hint(format!("a text needs its quotes: --input '{}'; a file needs an @ before it", json!(given)))
            } else {
                failure
            })
        }
    }
}

/// What is to be fired.
struct Fire {
    handle: Handle,
    /// JSON text.
    input_json: Option<String>,
    replay_of: Option<RunId>,
}

async fn fire_and_tell(place: &Place, fire: Fire, no_wait: bool) -> Outcome {
    if place.daemon.is_some() {
        return by_daemon(place, fire, no_wait).await;
    }
    if no_wait {
        return Err(Failure::no_daemon("--no-wait"));
    }
    match hold(place).await? {
        Held::Here(lock) => {
            let ended = in_process(place, fire).await;
            drop(lock);
            ended
        }
        Held::ByDaemon(place) => by_daemon(&place, fire, no_wait).await,
    }
}

async fn by_daemon(place: &Place, fire: Fire, no_wait: bool) -> Outcome {
    let what = if fire.replay_of.is_some() { "replay" } else { "run" };
    let client = Client::needed(place, what)?;
    let accepted = match &fire.replay_of {
        Some(run) => client.replay(run).await?,
        None => client.run(&fire.handle, fire.input_json.as_deref()).await?,
    };
    if no_wait {
        return tell_accepted(place, &accepted);
    }
    let run = accepted.run_id;
    let mut teller = Teller::new(run.clone(), fire.handle, place.json)?;
    let end = follow(&client, &run, &mut teller).await?;
    // The stream tells that a run has ended; its output stands in the ledger.
    let output = Ledgers::open(place)?.find(&run).and_then(|(_, row)| row.output);
    teller.finish(&end, output.as_ref().map(crate::ledger::JsonText::as_str))
}

fn tell_accepted(place: &Place, accepted: &Accepted) -> Outcome {
    if place.json {
        document(&accepted_json(accepted))?;
    } else {
        line(format_args!("{} {}", accepted.run_id, accepted.status))?;
    }
    Ok(exit::FINE)
}

/// Tells a run of the daemon to its end. Ctrl-C cancels it; a second one leaves it alone.
async fn follow(client: &Client, run: &RunId, teller: &mut Teller) -> Result<End, Failure> {
    let mut breaks = 0;
    let mut cancelling = false;
    loop {
        let events = client.events(run).await;
        let mut events =
            pin!(events.map_err(|failure| if breaks > 0 { daemon_gone(run, &failure) } else { failure })?);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => {
                        breaks = 0;
                        teller.event(event)?;
                    }
                    None => break,
                },
                _ = tokio::signal::ctrl_c() => {
                    if cancelling {
                        return Err(Failure::failed("interrupted", "stopped watching; the run is being cancelled"));
                    }
                    cancelling = true;
                    note("cancelling…");
                    match client.cancel(run).await {
                        // It ended first; its end is on its way.
                        Err(failure) if failure.code == "not_open" => {}
                        cancelled => cancelled?,
                    }
                }
            }
            if let Some(end) = teller.end.take() {
                return Ok(end);
            }
        }
        // The daemon stopped, or we were too slow for it: what was missed stands in the ledger.
        breaks += 1;
        if breaks > MOST_BREAKS {
            return Err(Failure::failed("daemon_silent", format!("the daemon tells nothing more of run {run}"))
                .hint("`dirigent trace` shows what is recorded"));
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// In the middle of a run the daemon was there, so this is no case of a daemon that does not run.
fn daemon_gone(run: &RunId, failure: &Failure) -> Failure {
    Failure::failed("daemon_gone", format!("the daemon went away during run {run}: {}", failure.message))
        .with("runId", run.as_str())
        .hint("its next start records how the run ended; `dirigent trace` shows what is known")
}

/// Who has the root.
enum Held {
    Here(Lock),
    /// A daemon that was just starting.
    ByDaemon(Place),
}

/// Takes the root's lock, waiting while another command runs something on it.
async fn hold(place: &Place) -> Result<Held, Failure> {
    let since = tokio::time::Instant::now();
    let mut told = false;
    loop {
        let pid = match home::lock(&place.root) {
            Ok(lock) => {
                // One that a killed daemon left would mislead whoever looks while this process holds the lock.
                home::retract(&place.root);
                return Ok(Held::Here(lock));
            }
            Err(HomeError::Held { pid, .. }) => pid,
            Err(error) => return Err(Failure::failed("io", error.to_string())),
        };
        let now = Place::find(Some(&place.root), place.data.as_deref(), place.json)?;
        if now.daemon.as_ref().is_some_and(|daemon| daemon.pid.to_string() == pid) {
            return Ok(Held::ByDaemon(now));
        }
        if !told && since.elapsed() > QUIET_WAIT {
            told = true;
            note(format_args!("waiting: another dirigent (pid {pid}) runs something on {}", place.root.display()));
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Err(Failure::failed("interrupted", "nothing was run")),
        }
    }
}

async fn in_process(place: &Place, fire: Fire) -> Outcome {
    let config = Config::load(&place.root).map_err(bad_config)?;
    let daemon = Daemon::start(Options {
        root: place.root.clone(),
        data: place.data.clone(),
        config,
        clock: Clock::Real,
        program: isolate::own_program(),
        scope: Scope::Asked,
    })
    .await
    .map_err(|error| Failure::failed("start", error.to_string()))?;
    let told = tell_in_process(place, &daemon, fire).await;
    settle(&daemon).await;
    daemon.stop(Duration::ZERO).await;
    told
}

pub fn bad_config(error: crate::config::ConfigError) -> Failure {
    Failure::failed("bad_config", error.to_string().trim_end()).exit_with(exit::USAGE)
}

async fn tell_in_process(place: &Place, daemon: &Daemon, fire: Fire) -> Outcome {
    let Fire { handle, input_json, replay_of } = fire;
    // Listens before it asks, so that nothing is missed.
    let mut events = daemon.services().bus.runs();
    let request = FireRequest {
        handle: handle.clone(),
        origin: TriggerOrigin::Manual,
        trigger: TriggerInfo { replay_of, ..TriggerInfo::default() },
        input_json,
        parent: None,
        synced: false,
        opened: None,
        ended: None,
    };
    let (answer, ended) = daemon.fire_and_follow(request).await;
    let Answer::Accepted { run, .. } = answer else {
        return Err(refused(&handle, answer));
    };
    let mut teller = Teller::new(run.clone(), handle.clone(), place.json)?;
    let mut ended = pin!(ended);
    let answer = loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Ok(event) if event.run_id == run => teller.event(json!(*event))?,
                Ok(_) => {}
                Err(RecvError::Lagged(lost)) => warn(format_args!("{lost} events came too fast to be shown")),
                Err(RecvError::Closed) => break ended.await,
            },
            answer = &mut ended => break answer,
            _ = tokio::signal::ctrl_c() => {
                note("cancelling…");
                daemon.cancel(run.clone()).await;
            }
        }
    };
    loop {
        match events.try_recv() {
            Ok(event) if event.run_id == run => teller.event(json!(*event))?,
            Ok(_) | Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    match answer {
        Ok(Answer::Ended(end)) => {
            let told = End {
                status: end.status,
                at: end.ended_at,
                summary: end.summary,
                error: end.error,
                error_code: end.error_code.map(|code| code.as_str().to_owned()),
            };
            teller.finish(&told, end.output_json.as_deref())
        }
        Ok(other) => Err(refused(&handle, other)),
        Err(_) => Err(Failure::failed("stopped", format!("run {run} was left without an end"))),
    }
}

fn refused(handle: &Handle, answer: Answer) -> Failure {
    let message = refusal(handle, Some(answer.clone()));
    match answer {
        Answer::Unknown => Failure::failed("unknown_automation", message).hint("`dirigent list` shows what there is"),
        Answer::Busy { active } => Failure::failed("busy", message).with("runId", active.as_str()),
        Answer::Unrunnable { problems } => {
            let first = problems.iter().find(|problem| problem.is_error()).map(ToString::to_string);
            let failure = Failure::failed("invalid_manifest", message).with("problems", json!(problems));
            failure.hint(first.unwrap_or_else(|| "`dirigent validate` shows what is wrong with it".to_owned()))
        }
        Answer::NotRecorded { .. } => Failure::failed("ledger", message),
        _ => Failure::failed("refused", message),
    }
}

/// Waits for what the run has set off, such as its failure handler. A retry that is due later is left to a daemon.
async fn settle(daemon: &Daemon) {
    loop {
        let Some(((in_use, _), (ready, waiting))) = daemon.look(|state| state.load()).await else {
            return;
        };
        if in_use + ready + waiting == 0 {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_EVERY / 5) => {}
            _ = tokio::signal::ctrl_c() => return,
        }
    }
    let left = daemon.look(|state| state.open_runs().count()).await.unwrap_or_default();
    if left > 0 {
        note("a retry is recorded; the next daemon on this root runs it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_json_from_wherever_it_comes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("input.json");
        std::fs::write(&file, " {\"n\": 12345678901234567890123} \n").unwrap();
        let from_file = format!("@{}", file.display());
        // The text is kept as it is: a long number loses no digits.
        for (given, input) in
            [("{\"a\":1}", "{\"a\":1}"), (" 3 ", "3"), (&from_file, "{\"n\": 12345678901234567890123}")]
        {
            assert_eq!(read_input(given).unwrap(), input);
        }
        for (given, hinted) in [("{", false), ("hello", true), ("", false), ("@/nowhere/at/all", false)] {
            let failure = read_input(given).unwrap_err();
            assert_eq!((failure.exit, failure.hint.is_some()), (exit::USAGE, hinted), "{given}");
        }
    }
}
