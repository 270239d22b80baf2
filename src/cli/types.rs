//! `types`, `schema` and `completions`: what this program knows, for editors and shells.

use clap::CommandFactory;
use serde_json::json;

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{document, text};
use crate::core::manifest;
use crate::isolate::CTX_TYPES;

/// Prints the TypeScript types of the handler contract.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  dirigent types > auto.mail/automations/ctx.d.ts

A handler refers to it in a comment before its export:
  /** @type {import('../ctx').Handler} */")]
pub struct TypesArgs {}

/// Prints the JSON Schema of automation.json.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  dirigent schema > .dirigent/automation.schema.json

A manifest refers to it, for editors:
  \"$schema\": \"../../../.dirigent/automation.schema.json\"
`dirigent new` writes both.")]
pub struct SchemaArgs {}

/// Prints a shell's completion script.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent completions bash > ~/.local/share/bash-completion/completions/dirigent
  dirigent completions zsh > ~/.zfunc/_dirigent
  dirigent completions fish > ~/.config/fish/completions/dirigent.fish")]
pub struct CompletionsArgs {
    shell: clap_complete::Shell,
}

pub fn types(json: bool) -> Outcome {
    if json {
        document(&json!({ "types": CTX_TYPES }))?
    } else {
        text(CTX_TYPES)?
    }
    Ok(exit::FINE)
}

/// It is one JSON document either way.
pub fn schema() -> Outcome {
    document(&manifest::json_schema())?;
    Ok(exit::FINE)
}

pub fn completions(args: &CompletionsArgs, json: bool) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "dirigent", &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::failed("completions", error.to_string()))?;
    if json {
        document(&json!({ "shell": args.shell.to_string(), "script": script }))?;
    } else {
        text(&script)?;
    }
    Ok(exit::FINE)
}
