//! `run` and `replay`: fire now, and tell the run as it happens. By the running daemon; without one, in this process,
//! which holds the root's lock meanwhile and records the same rows.

use std::io::Read;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use crate::cli::alone::{Held, hold, settle, start_here};
use crate::cli::client::{Accepted, Client, accepted_json};
use crate::cli::failure::{Failure, Outcome, bad_config, exit};
use crate::cli::follow::{End, Teller};
use crate::cli::ledgers::Ledgers;
use crate::cli::output::{document, line, note, warn};
use crate::cli::place::Place;
use crate::config::Config;
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::core::{Answer, FireRequest};
use crate::daemon::{Daemon, refusal};
use crate::fire::{Handle, RunId, TriggerInfo, TriggerOrigin};
use crate::ledger::{self, Reader};

/// Before a stream that broke off is asked for again.
const RECONNECT_AFTER: Duration = Duration::from_millis(100);
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
    let most = most_input_bytes(place)?;
    let input_json = args.input.as_deref().map(|given| read_input(given, most)).transpose()?;
    let handle = place.automation(&args.handle)?;
    let fire = Fire { handle, input_json, replay_of: None };
    fire_and_tell(place, fire, args.no_wait).await
}

pub async fn replay(place: &Place, args: ReplayArgs) -> Outcome {
    let fire = {
        let ledgers = Ledgers::open(place)?;
        let (reader, row) = ledgers.resolve(&args.run)?;
        let input_json = reader.input(&row.run_id)?;
        if input_json.as_deref().is_some_and(ledger::is_truncated) {
            return Err(Failure::failed("input_truncated", "its input was too long to be kept in full")
                .hint("run it anew with `dirigent run <handle> --input @file`"));
        }
        if let Some(input) = &input_json {
            check_input(input, "its input", most_input_bytes(place)?)?;
        }
        Fire { handle: Handle::new(row.app_id, row.automation_id), input_json, replay_of: Some(row.run_id) }
    };
    fire_and_tell(place, fire, args.no_wait).await
}

/// What `limits.value_bytes` says. A daemon has settings of its own, and judges by them; those on disk are then as good
/// a guess as any.
fn most_input_bytes(place: &Place) -> Result<u64, Failure> {
    match Config::load(&place.root) {
        Ok(config) => Ok(config.limits.value_bytes),
        Err(_) if place.daemon.is_some() => Ok(Config::default().limits.value_bytes),
        Err(error) => Err(bad_config(error)),
    }
}

/// A handler gets its input whole, or there is no run.
fn check_input(input_json: &str, what: &str, most: u64) -> Result<(), Failure> {
    let refuse = |code: &str, message: String| {
        let mut failure = Failure::usage(message);
        code.clone_into(&mut failure.code);
        failure
    };
    if input_json.len() as u64 > most {
        let message = format!("{what} has more than {most} bytes");
        let hint = "keep data in the app and pass where it is; `limits.value_bytes` in dirigent.toml sets the limit";
        return Err(refuse("too_large", message).hint(hint));
    }
    if is_too_deep(input_json) { Err(refuse("too_deep", too_deep(what))) } else { Ok(()) }
}

/// At most so many bytes and one more, which shows that there are too many.
fn read_text(from: impl Read, name: &str, most: u64) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::io(name, &error).exit_with(exit::USAGE))?;
    if bytes.len() as u64 > most {
        // Cut as it is, it would be told to be no UTF-8, or no JSON.
        check_input(&String::from_utf8_lossy(&bytes), name, most)?;
    }
    String::from_utf8(bytes).map_err(|error| Failure::usage(format!("{name} is not UTF-8: {error}")))
}

/// The input as JSON text.
fn read_input(given: &str, most: u64) -> Result<String, Failure> {
    let (text, from) = if given == "-" {
        (read_text(std::io::stdin(), "stdin", most)?, "stdin".to_owned())
    } else if let Some(path) = given.strip_prefix('@') {
        let file = std::fs::File::open(path).map_err(|error| Failure::io(path, &error).exit_with(exit::USAGE))?;
        (read_text(file, path, most)?, path.to_owned())
    } else {
        (given.to_owned(), "--input".to_owned())
    };
    check_input(&text, &from, most)?;
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
    let (run, app) = (accepted.run_id, fire.handle.app.clone());
    let mut teller = Teller::new(run.clone(), fire.handle, place.json)?;
    let end = follow(&client, &run, &mut teller).await?;
    // The stream tells that a run has ended; its output stands in the ledger.
    let ledger = place.folders().ledger(&app);
    let row = Reader::open(&ledger).and_then(|reader| reader.map_or(Ok(None), |reader| reader.run(&run)));
    let output = row.unwrap_or_else(|error| {
        warn(format_args!("its output cannot be read: {error}"));
        None
    });
    let output = output.and_then(|row| row.output);
    teller.finish(&end, output.as_ref().map(ledger::JsonText::as_str))
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
        tokio::time::sleep(RECONNECT_AFTER).await;
    }
}

/// In the middle of a run the daemon was there, so this is no case of a daemon that does not run.
fn daemon_gone(run: &RunId, failure: &Failure) -> Failure {
    Failure::failed("daemon_gone", format!("the daemon went away during run {run}: {}", failure.message))
        .with("runId", run.as_str())
        .hint("its next start records how the run ended; `dirigent trace` shows what is known")
}

async fn in_process(place: &Place, fire: Fire) -> Outcome {
    let daemon = start_here(place, Config::load(&place.root).map_err(bad_config)?).await?;
    let app = fire.handle.app.clone();
    let told = tell_in_process(place, &daemon, fire).await;
    settle(&daemon).await;
    if let Some(path) = daemon.services().ledgers.quarantined(&app) {
        warn(format_args!("the ledger of {app} was damaged; it has been moved aside to {}", path.display()));
    }
    daemon.stop(Duration::ZERO).await;
    told
}

async fn tell_in_process(place: &Place, daemon: &Daemon, fire: Fire) -> Outcome {
    let Fire { handle, input_json, replay_of } = fire;
    // Listens before it asks, so that nothing is missed.
    let mut events = daemon.services().bus.runs();
    let request = FireRequest {
        trigger: TriggerInfo { replay_of, ..TriggerInfo::default() },
        input_json,
        ..FireRequest::new(handle.clone(), TriggerOrigin::Manual)
    };
    let (answer, ended) = daemon.fire_and_follow(request).await;
    let Answer::Accepted { run, .. } = answer else {
        return Err(refused(daemon, &handle, answer));
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
        Ok(other) => Err(refused(daemon, &handle, other)),
        Err(_) => Err(Failure::failed("stopped", format!("run {run} was left without an end"))),
    }
}

fn refused(daemon: &Daemon, handle: &Handle, answer: Answer) -> Failure {
    let message = refusal(handle, Some(answer.clone()));
    match answer {
        Answer::Unknown => Failure::failed("unknown_automation", message).hint("`dirigent list` shows what there is"),
        Answer::Busy { active } => Failure::failed("busy", message).with("runId", active.as_str()),
        Answer::Unrunnable { problems } => {
            let first = problems.iter().find(|problem| problem.is_error()).map(ToString::to_string);
            let failure = Failure::failed("invalid_manifest", message).with("problems", json!(problems));
            failure.hint(first.unwrap_or_else(|| "`dirigent validate` shows what is wrong with it".to_owned()))
        }
        Answer::NotRecorded { .. } => match daemon.services().ledgers.obstacle(&handle.app) {
            Some(error) => {
                let path = daemon.services().folders.ledger(&handle.app);
                let problem = ledger::problem(&handle.app, &path, &error);
                let failure = Failure::failed("ledger", format!("{}: {}", path.display(), problem.message));
                Failure { hint: problem.hint, ..failure }
            }
            None => Failure::failed("ledger", message),
        },
        _ => Failure::failed("refused", message),
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
            assert_eq!(read_input(given, 1000).unwrap(), input);
        }
        for (given, hinted) in [("{", false), ("hello", true), ("", false), ("@/nowhere/at/all", false)] {
            let failure = read_input(given, 1000).unwrap_err();
            assert_eq!((failure.exit, failure.hint.is_some()), (exit::USAGE, hinted), "{given}");
        }
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let long = format!("\"{}\"", "ä".repeat(500));
        std::fs::write(&file, &long).unwrap();
        for (given, most, code) in [
            (long.as_str(), 1002, None),
            (&long, 1001, Some("too_large")),
            (&from_file, 1002, None),
            (&from_file, 501, Some("too_large")),
            (&nested(100), 1000, None),
            (&nested(101), 1000, Some("too_deep")),
            (&nested(200), 1000, Some("too_deep")),
        ] {
            let refused = read_input(given, most).err();
            assert_eq!(refused.as_ref().map(|failure| failure.code.as_str()), code, "{most}: {refused:?}");
            assert!(refused.is_none_or(|failure| failure.exit == exit::USAGE));
        }
    }
}
