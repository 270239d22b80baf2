//! What a manifest names outside of its app folder and is not there: servers that `mcp.json` does not have, and models
//! of providers that nobody knows.
//!
//! They are warnings. Whoever writes an automation may add the server next; until then, the calls reject.

use std::path::Path;

use serde_json::Value;

use crate::config::Config;
use crate::core::manifest::json_tree::Node;
use crate::core::manifest::position::line_column;
use crate::core::near_name::nearest;
use crate::fire::Problem;
use crate::models::{self, ModelsConfig};
use crate::tools::{Route, mcp, route};

const UNKNOWN_SERVER: &str = "unknown_mcp_server";
/// As many names as a hint lists.
const LISTED: usize = 10;

/// Whom the manifests under one root can name.
#[derive(Debug)]
pub struct Reachable {
    /// `None` when the file cannot be read, which is a problem of its own.
    servers: Option<Vec<String>>,
    /// `None` when the settings cannot be read.
    models: Option<ModelsConfig>,
}

impl Reachable {
    /// Reads `mcp.json` and `dirigent.toml`.
    pub fn under(root: &Path) -> Self {
        Self { servers: mcp::server_names(root), models: Config::load(root).ok().map(|config| config.models) }
    }

    /// The references of one manifest that lead nowhere, each with line and column and without a path. Of a text that is
    /// no manifest nothing is said.
    pub fn problems(&self, manifest: &[u8]) -> Vec<Problem> {
        let Some((text, root)) = str::from_utf8(manifest).ok().and_then(|text| Some((text, Node::read(text).ok()?)))
        else {
            return Vec::new();
        };
        let mut problems = Vec::new();
        let Some(requires) = root.get("requires") else { return problems };
        let mut add = |field: String, node: &Node, problem: Option<Problem>| {
            let (line, column) = line_column(text, node.span.start);
            problems.extend(problem.map(|problem| Problem { field, ..problem.at(line, column) }));
        };
        for (list, is_tool) in [("mcps", false), ("tools", true)] {
            for (index, node) in requires.get(list).and_then(Node::items).unwrap_or_default().iter().enumerate() {
                let Some(name) = node.as_str() else { continue };
                let problem = if is_tool { self.of_tool(name) } else { self.of_server(name, name) };
                add(format!("requires.{list}[{index}]"), node, problem);
            }
        }
        if let Some(node) = requires.get("model")
            && let Some(model) = node.as_str()
        {
            add("requires.model".to_owned(), node, self.of_model(model));
        }
        problems
    }

    fn of_tool(&self, name: &str) -> Option<Problem> {
        match route(name) {
            Ok(Route::Builtin(_)) => None,
            Ok(Route::Mcp { server, .. }) => self.of_server(&server, name),
            Err(error) => {
                let (message, hint) = error.message.split_once("; ").unwrap_or((&error.message, ""));
                Some(Problem::warning(&error.code, "", message).with_hint(hint))
            }
        }
    }

    fn of_server(&self, server: &str, named: &str) -> Option<Problem> {
        let known: Vec<&str> = self.servers.as_ref()?.iter().map(String::as_str).collect();
        if known.contains(&server) {
            return None;
        }
        let of = if server == named { String::new() } else { format!(" of {named:?}") };
        let message = format!("{} has no server {}{of}", mcp::FILE, Value::from(server));
        let hint = match nearest(server, &known) {
            Some(near) => format!("did you mean {near:?}?"),
            None if known.is_empty() => format!("add it to \"mcpServers\" of {} in the root", mcp::FILE),
            None => format!("it has: {}", known.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ")),
        };
        Some(Problem::warning(UNKNOWN_SERVER, "", message).with_hint(hint))
    }

    fn of_model(&self, model: &str) -> Option<Problem> {
        let error = models::check_name(model, self.models.as_ref()?).err()?;
        let hint = "name one of a known provider, or set the provider in dirigent.toml";
        Some(Problem::warning(&error.code, "", error.message).with_hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_nowhere_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let told = |requires: &str| -> Vec<String> {
            let text = format!("{{\n  \"requires\": {requires}\n}}");
            let problems = Reachable::under(dir.path()).problems(text.as_bytes());
            assert!(problems.iter().all(|problem| !problem.is_error()));
            let line = |problem: Problem| {
                let place = (problem.line.unwrap(), problem.column.unwrap());
                format!("{place:?} {} {}: {}", problem.code, problem.field, problem.hint.unwrap())
            };
            problems.into_iter().map(line).collect()
        };
        let add = "add it to \"mcpServers\" of mcp.json in the root";
        assert_eq!(told(r#"{"mcps": ["a"]}"#), [format!("(2, 25) unknown_mcp_server requires.mcps[0]: {add}")]);
        std::fs::write(dir.path().join("mcp.json"), r#"{"mcpServers": {"mail": {"command": "x"}, "git": {}}}"#)
            .unwrap();
        std::fs::write(dir.path().join("dirigent.toml"), "[models.local]\nbase_url = \"http://127.0.0.1/v1\"\n")
            .unwrap();
        for (requires, expected) in [
            (r#"{"mcps": ["mail", "git"], "tools": ["mail.send", "git.*", "centraid_read"]}"#, &[][..]),
            (r#"{"tools": ["mial.send"]}"#, &["(2, 26) unknown_mcp_server requires.tools[0]: did you mean \"mail\"?"]),
            (r#"{"mcps": ["crm"]}"#, &["(2, 25) unknown_mcp_server requires.mcps[0]: it has: git, mail"]),
            (r#"{"tools": ["centraid_raed"]}"#, &["(2, 26) unknown_tool requires.tools[0]: did you mean \"centraid_"]),
            (r#"{"model": "local/small"}"#, &[]),
            (r#"{"model": "openai/x"}"#, &[]),
            (r#"{"model": "opnai/x"}"#, &["(2, 25) model_not_configured requires.model: name one"]),
            (r#"{"model": "x"}"#, &["(2, 25) model_not_set requires.model: name one"]),
            ("[]", &[]),
        ] {
            let told = told(requires);
            let agrees = told.len() == expected.len() && told.iter().zip(expected).all(|(a, b)| a.starts_with(b));
            assert!(agrees, "{requires}: {told:#?}");
        }
        // What cannot be read says nothing about who is in it.
        std::fs::write(dir.path().join("mcp.json"), "{").unwrap();
        std::fs::write(dir.path().join("dirigent.toml"), "models = 5").unwrap();
        assert_eq!(told(r#"{"mcps": ["crm"], "model": "opnai/x"}"#), [""; 0]);
    }
}
