//! What handlers can call, in as much detail as fits.

use std::time::Duration;

use serde_json::{Value, json};

use super::arguments::ListTools;
use super::fitting::cut;
use super::{Builder, SHOWN_PROBLEMS, ToolReply, VALUE_BYTES, shown};
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::gateway::problem::ProblemDocument;

/// What an MCP server gets to tell its tools; clients give a call a minute.
const PATIENCE: Duration = Duration::from_secs(45);
/// Of a description, when there is no room for schemas.
const BRIEF_CHARS: usize = 80;
/// Apps, and MCP servers, when there is no room for what they have.
const SHOWN_ENTRIES: usize = 400;

/// What apps and MCP servers have.
const PARTS: [(&str, &[&str]); 2] = [("apps", &["queries", "actions"]), ("mcp", &["tools"])];

impl Builder {
    pub(super) async fn list_tools(&self, given: ListTools) -> ToolReply {
        let mut told = shown(&self.api.catalog(PATIENCE).await)?;
        cut(&mut told, "problems", SHOWN_PROBLEMS);
        let ListTools { app, server } = given;
        let asked = [("apps", "app", app), ("mcp", "server", server)];
        if asked.iter().any(|(.., name)| name.is_some()) {
            for (list, kind, name) in asked {
                keep(&mut told, list, kind, name.as_deref())?;
            }
            return Ok(told);
        }
        for shorten in [brief, count] {
            if told.to_string().len() <= VALUE_BYTES {
                break;
            }
            told["note"] = json!("too much for one answer, so it is in brief: ask with `app` or `server` for the rest");
            shorten(&mut told);
        }
        Ok(told)
    }
}

/// Leaves of a list what was asked for by name.
fn keep(told: &mut Value, list: &str, kind: &str, name: Option<&str>) -> Result<(), ProblemDocument> {
    let entries = told[list].as_array_mut().map(std::mem::take).unwrap_or_default();
    let Some(name) = name else { return Ok(()) };
    let known: Vec<String> = entries.iter().map(|entry| name_of(entry).to_owned()).collect();
    let kept: Vec<Value> = entries.into_iter().filter(|entry| name_of(entry) == name).collect();
    if kept.is_empty() {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let near = nearest(name, &known).map(|near| format!("did you mean {near}?"));
        let detail = format!("there is no {kind} {}", shortened(name, 100));
        return Err(ProblemDocument::not_found(&format!("unknown_{kind}"), detail).with_hint(near));
    }
    told[list] = json!(kept);
    Ok(())
}

/// Of an app, or of an MCP server.
fn name_of(entry: &Value) -> &str {
    entry["app"]["id"].as_str().or_else(|| entry["server"].as_str()).unwrap_or_default()
}

/// Names and the beginnings of descriptions.
fn brief(told: &mut Value) {
    each_part(told, |tools| {
        for tool in tools.as_array_mut().into_iter().flatten() {
            let description = tool["description"].as_str().map(|text| shortened(text, BRIEF_CHARS));
            *tool = json!({ "name": tool["name"], "description": description });
        }
    });
}

/// How many there are.
fn count(told: &mut Value) {
    for (list, _) in PARTS {
        cut(told, list, SHOWN_ENTRIES);
    }
    each_part(told, |tools| *tools = json!(tools.as_array().map_or(0, Vec::len)));
}

fn each_part(told: &mut Value, shorten: impl Fn(&mut Value)) {
    for (list, parts) in PARTS {
        for entry in told[list].as_array_mut().into_iter().flatten() {
            parts.iter().for_each(|part| {
                if let Some(tools) = entry.get_mut(*part) {
                    shorten(tools);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Value {
        let tool = |n: usize| json!({ "name": format!("t{n}"), "description": "d".repeat(500), "input": {} });
        let tools: Vec<Value> = (0..150).map(tool).collect();
        json!({
            "apps": [{ "app": { "id": "shop" }, "queries": tools, "actions": [] }, { "app": { "id": "mail" }, "error": {} }],
            "mcp": [{ "server": "github", "tools": tools }, { "server": "down", "error": {} }],
        })
    }

    #[test]
    fn one_app_or_server_is_told_whole() {
        let mut told = catalog();
        keep(&mut told, "apps", "app", Some("shop")).unwrap();
        keep(&mut told, "mcp", "server", None).unwrap();
        assert_eq!((&told["apps"][0], told["apps"].as_array().unwrap().len()), (&catalog()["apps"][0], 1));
        assert_eq!(told["mcp"], json!([]));
        let refused = keep(&mut catalog(), "mcp", "server", Some("githb")).unwrap_err();
        assert_eq!(refused.status_and_code(), (404, "unknown_server"));
        assert_eq!(refused.into_members()["hint"], "did you mean github?");
    }

    #[test]
    fn in_brief_there_are_names_or_numbers() {
        let mut told = catalog();
        brief(&mut told);
        let expected = json!({ "name": "t0", "description": format!("{}…", "d".repeat(80)) });
        assert_eq!((&told["apps"][0]["queries"][0], &told["mcp"][0]["tools"][0]), (&expected, &expected));
        count(&mut told);
        assert_eq!(told["apps"][0], json!({ "app": { "id": "shop" }, "queries": 150, "actions": 0 }));
        assert_eq!(told["mcp"][0], json!({ "server": "github", "tools": 150 }));
        assert_eq!((&told["apps"][1], &told["mcp"][1]), (&catalog()["apps"][1], &catalog()["mcp"][1]));
        told["apps"] = (0..1000).map(|n| json!({ "app": { "id": n } })).collect();
        count(&mut told);
        assert_eq!((told["apps"].as_array().unwrap().len(), &told["appsLeftOut"]), (400, &json!(600)));
    }
}
