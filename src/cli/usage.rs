//! A command line that was not understood, or that asked for help or the version: told as text, or with `--json` as
//! JSON.

use std::ffi::OsStr;

use clap::error::ErrorKind;
use serde_json::json;

use crate::cli::failure::{Failure, exit};
use crate::cli::output::{self, document};

/// Help and version are what was asked for; everything else is wrong usage. Gives the exit code.
pub fn answer(error: &clap::Error) -> u8 {
    // The command line was not understood, so the flag is looked for by hand.
    let json = std::env::args_os().any(|arg| arg == OsStr::new("--json"));
    let asked = match error.kind() {
        ErrorKind::DisplayVersion => Some(json!({ "name": "dirigent", "version": env!("CARGO_PKG_VERSION") })),
        ErrorKind::DisplayHelp => Some(json!({ "help": error.to_string() })),
        _ => None,
    };
    let told = match (&asked, json) {
        (Some(answer), true) => document(answer),
        (None, true) => {
            output::report(&failure(error), true);
            Ok(())
        }
        (_, false) => error.print().map_err(Failure::from),
    };
    // With its stream closed there is nobody to tell.
    let _ = told;
    if asked.is_some() { exit::FINE } else { exit::USAGE }
}

/// What was wrong, from the text that people get: its usage lines say nothing to a program.
fn failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let told: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let (tips, words): (Vec<&str>, Vec<&str>) = told.into_iter().partition(|line| line.starts_with("tip: "));
    let message = words.join(" ");
    let tip = tips.first().map(|tip| tip.trim_start_matches("tip: "));
    Failure::usage(message.trim_start_matches("error: "))
        .hint(tip.unwrap_or("`dirigent help` shows all commands and flags"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn what_was_wrong_is_told_whole() {
        for (line, message, hint) in [
            ("dirigent --json run", "the following required arguments were not provided: <HANDLE>", "dirigent help"),
            ("dirigent --json", "'dirigent' requires a subcommand", "dirigent help"),
            ("dirigent --json lst", "unrecognized subcommand 'lst'", "'list'"),
            ("dirigent --json list --nope", "unexpected argument '--nope' found", "dirigent help"),
            ("dirigent --json runs --status failed", "a status is one of", "dirigent help"),
            ("dirigent --json new a/x --template min", "[possible values: minimal, tools", "minimal"),
            ("dirigent --json next --expr * -n -1", "invalid value '-1' for '--count <N>'", "dirigent help"),
            ("dirigent --json runs -n -1", "invalid value '-1' for '--limit <N>'", "dirigent help"),
        ] {
            let failure = failure(&Cli::try_parse_from(line.split(' ')).unwrap_err());
            assert!(failure.message.contains(message), "{line}: {:?}", failure.message);
            assert!(failure.hint.as_deref().is_some_and(|told| told.contains(hint)), "{line}: {:?}", failure.hint);
            assert!(!failure.message.contains("Usage") && !failure.message.starts_with("error"), "{failure:?}");
        }
    }
}
