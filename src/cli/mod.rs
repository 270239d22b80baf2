//! The command line: one command per file, with its arguments and help on top. Nothing is decided here; commands ask the
//! daemon that runs, or read the disk and the ledgers as it does.
//!
//! Words: a command works at a [`place::Place`] (root, ledgers, daemon); it ends with an exit code or a
//! [`failure::Failure`]. Results go to stdout, everything else to stderr. With `--json`, stdout has one JSON document or
//! JSON lines, with instants as RFC 3339 in UTC, and stderr has JSON lines (`error`, `warning`, `note`, `log`); for people,
//! times are local and say their offset.
//!
//! | file | commands |
//! |---|---|
//! | `serve` | `serve` |
//! | `run`, `follow` | `run`, `replay`, and the telling of a run |
//! | `list`, `validate`, `next` | what is on disk |
//! | `runs`, `stats`, `trace`, `logs`, `ledgers` | what happened |
//! | `new`, `toggle` | `new`, `enable`, `disable` |
//! | `cancel`, `dashboard`, `client` | asking the daemon |
//! | `webhook` | `webhook provision`, `rotate`, `test` |
//! | `tools`, `mcp` | `tools`, `mcp` |
//! | `types` | `types`, `schema`, `completions` |
//! | `alone` | what `run` and `mcp` do without a daemon |
//! | `place`, `failure`, `output`, `times`, `signals`, `usage`, `log` | shared by all of them |

mod alone;
mod cancel;
mod client;
mod dashboard;
mod failure;
mod follow;
mod ledgers;
mod list;
mod log;
mod logs;
mod mcp;
mod new;
mod next;
mod output;
mod place;
mod run;
mod runs;
mod serve;
mod signals;
mod stats;
mod times;
mod toggle;
mod tools;
mod trace;
mod types;
mod usage;
mod validate;
mod webhook;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use failure::{Failure, Outcome};
use place::{Place, absolute};

/// Runs automations that live in app folders: on a schedule, by webhook, by hand.
#[derive(Debug, Parser)]
#[command(
    name = "dirigent",
    version,
    max_term_width = 100,
    after_help = "\
A first automation:
  dirigent new auto.hello/first
  dirigent run auto.hello/first
  dirigent enable auto.hello/first
  dirigent serve

Exit codes: 0 fine, 1 the thing failed, 2 wrong usage, 3 the daemon is needed and does not run,
75 another daemon holds the root. Colour only on a terminal; NO_COLOR is honoured."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The folder that holds the app folders [default: the nearest parent with .dirigent, else the current folder]
    #[arg(long, global = true, value_name = "DIR", env = "DIRIGENT_ROOT", hide_env_values = true)]
    root: Option<PathBuf>,
    /// Keep ledgers and app data in this folder instead of the app folders
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON: one document, or lines for streams
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Run(run::RunArgs),
    List(list::ListArgs),
    Validate(validate::ValidateArgs),
    Next(next::NextArgs),
    Runs(runs::RunsArgs),
    Stats(stats::StatsArgs),
    Trace(trace::TraceArgs),
    Logs(logs::LogsArgs),
    Cancel(cancel::CancelArgs),
    Replay(run::ReplayArgs),
    New(new::NewArgs),
    /// Switches an automation on: its triggers fire
    Enable(toggle::ToggleArgs),
    /// Switches an automation off: its triggers fire no more
    Disable(toggle::ToggleArgs),
    Dashboard(dashboard::DashboardArgs),
    Webhook(webhook::WebhookArgs),
    Tools(tools::ToolsArgs),
    Mcp(mcp::McpArgs),
    Types(types::TypesArgs),
    Schema(types::SchemaArgs),
    Completions(types::CompletionsArgs),
}

/// Runs the command line of this process and gives its exit code.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return i32::from(usage::answer(&error)),
    };
    let json = cli.global.json;
    if json {
        output::speak_json();
    }
    let code = dispatch(cli).unwrap_or_else(|failure| {
        if !failure.is_closed_pipe() {
            output::report(&failure, json);
        }
        failure.exit
    });
    i32::from(code)
}

fn dispatch(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    let place = || Place::find(global.root.as_deref(), global.data.as_deref(), global.json);
    match command {
        Command::Serve(args) => {
            // Whoever reads the ready line need not read the log.
            log::start("info", false);
            let asked = args.root(global.root.as_deref())?;
            // A root that was named is served as it is named; otherwise the usual search applies.
            let root = match asked {
                Some(root) => absolute(&root)?,
                None => place()?.root,
            };
            let data = global.data.as_deref().map(absolute).transpose()?;
            block_on(serve::serve(root, data, global.json, &args))
        }
        Command::Run(args) => with_log(global.json, async { run::run(&place()?, args).await }),
        Command::Replay(args) => with_log(global.json, async { run::replay(&place()?, args).await }),
        Command::Cancel(args) => block_on(async { cancel::cancel(&place()?, &args).await }),
        Command::List(args) => block_on(async { list::list(&place()?, args).await }),
        Command::Validate(args) => with_log(global.json, async { validate::validate(&place()?, args).await }),
        Command::Logs(args) => block_on(async { logs::logs(&place()?, &args).await }),
        Command::Next(args) => {
            // An expression alone is asked about from anywhere.
            let place = if args.needs_root() { place()? } else { Place::nowhere(global.json) };
            next::next(&place, &args)
        }
        Command::Runs(args) => runs::runs(&place()?, &args),
        Command::Stats(args) => stats::stats(&place()?, &args),
        Command::Trace(args) => trace::trace(&place()?, &args),
        Command::New(args) => new::new(&place()?, &args),
        Command::Enable(args) => toggle::toggle(&place()?, &args, true),
        Command::Disable(args) => toggle::toggle(&place()?, &args, false),
        Command::Dashboard(args) => block_on(async { dashboard::dashboard(&place()?, &args).await }),
        Command::Webhook(args) => block_on(async { webhook::webhook(&place()?, args).await }),
        Command::Tools(args) => with_log(global.json, async { tools::tools(&place()?, &args).await }),
        Command::Mcp(args) => {
            log::start("warn", false);
            block_on(async { mcp::mcp(&place()?, &args).await })
        }
        Command::Types(_) => types::types(global.json),
        Command::Schema(_) => types::schema(),
        Command::Completions(args) => types::completions(&args, global.json),
    }
}

fn block_on(work: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the runtime cannot be started", &error))?;
    let outcome = runtime.block_on(work);
    // A blocked thread, such as one that waits for stdin, must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// For commands that run handlers here: trouble of the machinery is told to people, its routine is not. Programs get the
/// result and the error; more is told when it is asked for.
fn with_log(json: bool, work: impl Future<Output = Outcome>) -> Outcome {
    log::start(if json { "off" } else { "warn" }, json);
    block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_for_all_commands_stand_before_or_after_them() {
        for line in [
            "dirigent --json --root /r list",
            "dirigent list --json --root /r",
            "dirigent serve /r --admin 127.0.0.1:0 --json",
            "dirigent run a/x --input -",
            "dirigent run x --input {}",
            "dirigent runs x --status error --status ok --since 7d --dead -n 3",
            "dirigent next --expr * --tz UTC -n 1",
            "dirigent next --expr -1 --tz -x --from -1",
            "dirigent runs --since -7d",
            "dirigent run a/x --input -1",
            "dirigent new a/x --cron -1",
            "dirigent new a/x --cron * --cron * --tz UTC --webhook --template agent",
            "dirigent logs 012345 -f",
            "dirigent dashboard --no-open --json",
            "dirigent tools --json",
            "dirigent mcp --root /r",
            "dirigent completions zsh",
            "dirigent serve --hooks localhost:0 --role gateway",
            "dirigent webhook provision a/x --json",
            "dirigent webhook test x --body - --secret s --wait 0",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "dirigent",
            "dirigent next",
            "dirigent next a/x --expr *",
            "dirigent next a/x --tz UTC",
            "dirigent new a/x --tz UTC",
            "dirigent run",
            "dirigent runs --status failed",
            "dirigent serve --admin nowhere",
            "dirigent webhook",
            "dirigent webhook a/x",
            "dirigent serve --role laptop",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
