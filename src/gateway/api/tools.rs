//! The three tools over app folders, for programs and pages outside of a run; and the catalog of what can be called.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::extract::{Arguments, FromQuery, Name, NoParams, Params, QueryPairs, not_json};
use super::{Api, Reply, openapi};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::{CallError, Problem};
use crate::tools::mcp::ServerTools;
use crate::tools::{self, Builtin, INVALID_INPUT, Route, UNKNOWN_TOOL};

/// What an MCP server gets to tell its tools, in seconds, and what it may get.
const DEFAULT_PATIENCE: f64 = 10.0;
const MAX_PATIENCE: f64 = 120.0;

/// One tool.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tool {
    name: String,
    description: String,
    /// A JSON Schema of the arguments.
    #[schema(value_type = Object)]
    input_schema: Value,
}

/// What can be called.
#[derive(Debug, Serialize, ToSchema)]
pub struct Catalog {
    tools: Vec<Tool>,
    /// What `centraid_describe` says of each app.
    #[schema(value_type = Vec<Object>)]
    apps: Vec<Value>,
    /// What the MCP servers of `mcp.json` offer.
    mcp: Vec<McpServer>,
    /// What is wrong with `mcp.json`.
    problems: Vec<Problem>,
}

/// What an MCP server offers, or why that cannot be said.
#[derive(Debug, Serialize, ToSchema)]
pub struct McpServer {
    /// Its name in `mcp.json`; a handler calls its tools as `<server>.<tool>`.
    server: String,
    /// As the server tells them: `{name, title?, description?, inputSchema, outputSchema?, …}` each.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    tools: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ToolError>,
}

/// What a tool answered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolResult {
    is_error: bool,
    /// What the tool gives, when it is no error.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ToolError>,
}

/// Why a tool did not do what it was asked to.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToolError {
    /// `UNKNOWN_APP`, `UNKNOWN_QUERY`, `UNKNOWN_ACTION`, `WRONG_KIND`, `INVALID_INPUT`, `INVALID_MANIFEST`,
    /// `HANDLER_ERROR` or `unknown_tool`; of an MCP server, `mcp_failed`, `mcp_timeout` or `mcp_not_configured`.
    code: String,
    message: String,
    /// Where in the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

/// Lists the tools, what each app declares for them, and those of MCP servers.
///
/// MCP servers that are not up are started to be asked. One that does not tell its tools in time is listed with an error;
/// its start goes on, so that a later request may find it.
#[utoipa::path(
    get, path = "/v1/tools", operation_id = "listTools", tag = openapi::TOOLS,
    params(("wait" = Option<f64>, Query, minimum = 0, maximum = 120,
        description = "Seconds that each MCP server gets to tell its tools; 10 when it is not given.", example = 1)),
    responses((status = 200, description = "The catalog.", body = Catalog))
)]
pub async fn catalog(State(api): State<Api>, Params(Patience(patience)): Params<Patience>) -> Json<Catalog> {
    Json(api.catalog(patience).await)
}

/// `?wait=`
pub struct Patience(Duration);

impl FromQuery for Patience {
    const NAMES: &'static [&'static str] = &["wait"];

    fn from_query(query: &QueryPairs) -> Result<Self, String> {
        let seconds = query.seconds("wait", MAX_PATIENCE)?;
        Ok(Self(seconds.unwrap_or(Duration::from_secs_f64(DEFAULT_PATIENCE))))
    }
}

impl Api {
    /// Everything that can be called. `patience`: what each MCP server gets to tell its tools.
    pub(in crate::gateway) async fn catalog(&self, patience: Duration) -> Catalog {
        let services = self.services();
        let servers = services.mcp.catalog(patience);
        let mut apps = Vec::new();
        for app in services.folders.apps() {
            let described = services.tools.describe(&json!({ "app": app }), None).await;
            // One whose `app.json` is broken is listed with what is wrong with it.
            apps.push(described.unwrap_or_else(|CallError { code, message, .. }| {
                json!({ "app": { "id": app }, "error": { "code": code, "message": message } })
            }));
        }
        let mcp = servers.await.into_iter().map(McpServer::from).collect();
        let problems = services.mcp.problems().await;
        Catalog { tools: Builtin::ALL.into_iter().map(tool).collect(), apps, mcp, problems }
    }
}

impl From<ServerTools> for McpServer {
    fn from(ServerTools { server, tools, error }: ServerTools) -> Self {
        Self { server, tools, error: error.map(ToolError::from) }
    }
}

impl From<CallError> for ToolError {
    fn from(CallError { code, message, path }: CallError) -> Self {
        Self { code, message, path }
    }
}

/// Calls a tool. The body is its arguments.
///
/// A tool that is unknown, or an app, query or action that is, is 404; arguments that do not fit are 400; a handler
/// that fails is 500. Each of them is told in the same shape.
#[utoipa::path(
    post, path = "/centraid/_tool/{name}", operation_id = "callTool", tag = openapi::TOOLS,
    params(("name" = openapi::ToolName, Path, example = "centraid_describe")),
    request_body(content = openapi::ToolArguments, content_type = "application/json"),
    responses(
        (status = 200, description = "What the tool gives.", body = ToolResult),
        (status = 400, description = "The arguments do not fit.", body = ToolResult),
        (status = 404, description = "There is no such tool, app, query or action.", body = ToolResult),
        (status = 500, description = "The handler of the query or action failed.", body = ToolResult),
    )
)]
pub async fn call(
    State(api): State<Api>,
    Name(name): Name,
    Params(_): Params<NoParams>,
    Arguments(body): Arguments,
) -> Reply<Response> {
    let outcome = match arguments(&name, &body) {
        Ok((tool, arguments)) => api.services().call_tool(tool, &arguments).await,
        Err(error) => Err(error),
    };
    let result = outcome.and_then(|text| {
        RawValue::from_string(text).map_err(|_| CallError::new(tools::HANDLER_ERROR, "the result is no JSON"))
    });
    Ok(match result {
        Ok(data) => Json(ToolResult { is_error: false, data: Some(data), error: None }).into_response(),
        Err(error) => {
            let status =
                StatusCode::from_u16(tools::http_status(&error.code)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let error = Some(ToolError::from(error));
            (status, Json(ToolResult { is_error: true, data: None, error })).into_response()
        }
    })
}

fn arguments(name: &str, body: &[u8]) -> Result<(Builtin, Value), CallError> {
    let tool = match tools::route(name)? {
        Route::Builtin(tool) => tool,
        Route::Mcp { .. } => {
            let message = format!("{:?} is no tool over app folders", crate::core::shortened::shortened(name, 100));
            return Err(CallError::new(UNKNOWN_TOOL, message));
        }
    };
    let invalid = |told: String| CallError::new(INVALID_INPUT, told);
    let text = std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8".to_owned()))?;
    if is_too_deep(text) {
        return Err(invalid(too_deep("the arguments")));
    }
    let arguments: Value = serde_json::from_str(text).map_err(|error| invalid(not_json(&error)))?;
    if !arguments.is_object() {
        return Err(invalid("the arguments of a tool must be a JSON object".to_owned()));
    }
    Ok((tool, arguments))
}

fn tool(tool: Builtin) -> Tool {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let (description, properties, required) = match tool {
        Builtin::Describe => (
            "What apps there are, and the queries and actions of one, with their schemas.",
            json!({
                "app": text("The id of an app; without it, all apps in short."),
                "query": text("The name of one of its queries."),
                "action": text("The name of one of its actions."),
            }),
            json!([]),
        ),
        Builtin::Read => (
            "Runs a query of an app, which reads its data.",
            json!({ "app": text("The id of an app."), "query": text("The name of a query."), "input": {} }),
            json!(["app", "query"]),
        ),
        Builtin::Write => (
            "Runs an action of an app, which may change its data.",
            json!({ "app": text("The id of an app."), "action": text("The name of an action."), "input": {} }),
            json!(["app", "action"]),
        ),
    };
    Tool {
        name: tool.name().to_owned(),
        description: description.to_owned(),
        input_schema: json!({ "type": "object", "properties": properties, "required": required }),
    }
}
