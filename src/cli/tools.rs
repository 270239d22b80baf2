//! `tools`: everything that `ctx.tool` can reach from this root. The running daemon is asked, because its MCP servers are
//! the ones that runs use; without one, the disk is read, and the servers are started here, with this shell's
//! environment.

use serde_json::{Map, Value, json};

use crate::cli::client::{Catalog, Client};
use crate::cli::failure::{Failure, Outcome, bad_config, exit};
use crate::cli::output::{BAD, Cell, DIM, Table, count, document, line, note, problem, shortened, warn};
use crate::cli::place::Place;
use crate::config::Config;
use crate::fire::Problem;
use crate::tools::Builtin;
use crate::tools::app::AppTools;
use crate::tools::mcp::{Mcp, ServerTools};
use crate::watch;

/// A description is one line of many here.
const DESCRIPTION_CHARS: usize = 90;

/// Lists the tools that handlers can call: the built-in ones with their apps' queries and actions, and those of the MCP
/// servers in mcp.json.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent tools
  dirigent tools --json | jq '.mcp[].tools[].name'

The running daemon is asked. Without one, MCP servers are started here, with the environment of this
shell, and stopped again. A handler may call what its manifest's `requires.tools` or `requires.mcps`
names.")]
pub struct ToolsArgs {}

pub async fn tools(place: &Place, _: &ToolsArgs) -> Outcome {
    let Found { apps, servers, problems } = match asked(place).await? {
        Some(found) => found,
        None => looked_up(place).await?,
    };
    if place.json {
        let builtin: Vec<Value> =
            Builtin::ALL.iter().map(|tool| json!({ "name": tool.name(), "description": what(*tool) })).collect();
        document(&json!({ "builtin": builtin, "apps": apps, "mcp": servers, "problems": problems }))?;
    } else {
        tell(&apps, &servers, &problems)?;
    }
    Ok(exit::FINE)
}

struct Found {
    /// As `centraid_describe` summarises them.
    apps: Vec<Value>,
    servers: Vec<ServerTools>,
    problems: Vec<Problem>,
}

/// What the running daemon says; `None` when there is none that answers.
async fn asked(place: &Place) -> Result<Option<Found>, Failure> {
    let Some(client) = Client::of(place)? else { return Ok(None) };
    match client.tools().await {
        Ok(Catalog { apps, mcp, problems }) => {
            Ok(Some(Found { apps: apps.into_iter().map(summary).collect(), servers: mcp, problems }))
        }
        Err(failure) if failure.code == "daemon_silent" => {
            warn(format_args!("{}; this is what the disk says", failure.message));
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// One app in short: `{id, …, queries: [{name, description?}], actions: […]}`, or with its `error`.
fn summary(described: Value) -> Value {
    let Value::Object(mut described) = described else { return described };
    let mut short = match described.remove("app") {
        Some(Value::Object(app)) => app,
        _ => Map::new(),
    };
    for (key, value) in described {
        let value = match value {
            Value::Array(entries) => entries.iter().map(in_short).collect(),
            other => other,
        };
        short.insert(key, value);
    }
    Value::Object(short)
}

fn in_short(entry: &Value) -> Value {
    let members = ["name", "description"].into_iter().filter_map(|key| Some((key.to_owned(), entry.get(key)?.clone())));
    Value::Object(members.collect())
}

/// What the disk says. Servers are started for it, and stopped again.
async fn looked_up(place: &Place) -> Result<Found, Failure> {
    let config = Config::load(&place.root).map_err(bad_config)?;
    let apps = apps(place).await?;
    let mcp = Mcp::new(
        &place.root,
        config.mcp,
        config.limits.value_bytes,
        std::sync::Arc::new(|name: &str| std::env::var(name).ok()),
    );
    let problems = mcp.problems().await;
    let configured = mcp.names();
    if !configured.is_empty() && !place.json {
        note(format_args!("asking {}: {}", count(configured.len(), "MCP server"), configured.join(", ")));
    }
    let servers = mcp.catalog(mcp.patience()).await;
    mcp.stop().await;
    Ok(Found { apps, servers, problems })
}

/// What every built-in tool is for.
fn what(tool: Builtin) -> &'static str {
    match tool {
        Builtin::Describe => "what apps there are, and their queries and actions with schemas",
        Builtin::Read => "runs a query of an app: { app, query, input }",
        Builtin::Write => "runs an action of an app: { app, action, input }",
    }
}

/// As `centraid_describe` summarises them.
async fn apps(place: &Place) -> Result<Vec<Value>, Failure> {
    let folders = place.folders();
    let root = place.root.clone();
    let batch = tokio::task::spawn_blocking(move || watch::scan(&root)).await;
    for folder in batch.map_err(|error| Failure::failed("scan", error.to_string()))?.apps {
        if let Some(app) = &folder.app {
            folders.set(app, folder.present.then_some(folder.dir.as_path()));
        }
    }
    let tools = AppTools::new(std::sync::Arc::new(folders));
    let told = tools.describe(&Value::Null, None).await;
    let mut told = told.map_err(|error| Failure::failed(&error.code, error.message))?;
    match told["apps"].take() {
        Value::Array(apps) => Ok(apps),
        _ => Ok(Vec::new()),
    }
}

fn tell(apps: &[Value], servers: &[ServerTools], problems: &[Problem]) -> Result<(), Failure> {
    let mut table = Table::new(&["TOOL", "DESCRIPTION"]);
    for tool in Builtin::ALL {
        table.row(vec![tool.name().into(), what(tool).into()]);
    }
    for app in apps {
        let id = app["id"].as_str().unwrap_or_default();
        if let Some(why) = app["error"]["message"].as_str() {
            table.row(vec![id.into(), Cell::new(&shortened(why, DESCRIPTION_CHARS), BAD)]);
        }
        for (kind, list) in [("query", "queries"), ("action", "actions")] {
            for entry in app[list].as_array().into_iter().flatten() {
                let name = entry["name"].as_str().unwrap_or_default();
                table.row(vec![format!("  {id}: {kind} {name}").into(), description(entry)]);
            }
        }
    }
    for server in servers {
        if let Some(error) = &server.error {
            table.row(vec![format!("{}.*", server.server).into(), Cell::new(&error.message, BAD)]);
        }
        if server.tools.as_ref().is_some_and(Vec::is_empty) {
            table.row(vec![format!("{}.*", server.server).into(), Cell::new("it has no tools", DIM)]);
        }
        for tool in server.tools.iter().flatten() {
            let name = tool["name"].as_str().unwrap_or_default();
            table.row(vec![format!("{}.{name}", server.server).into(), description(tool)]);
        }
    }
    table.print()?;
    // A server that cannot be used says so above.
    for found in problems.iter().filter(|found| found.is_error()) {
        line("")?;
        problem(found, "")?;
    }
    Ok(())
}

fn description(entry: &Value) -> Cell {
    let text = entry["description"].as_str().or(entry["title"].as_str()).unwrap_or_default();
    let first = text.trim().lines().next().unwrap_or_default();
    Cell::new(&shortened(first, DESCRIPTION_CHARS), DIM)
}
