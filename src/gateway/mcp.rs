//! dirigent as an MCP server: what a conversational builder needs to go from nothing to an automation that works, and no
//! more. It can look, check, write, run by hand and read what happened; it can neither enable an automation nor mint the
//! credentials of a webhook.
//!
//! The protocol is the official SDK's. The same tools are served over HTTP at `/mcp` of the admin listener, to the holder
//! of the admin token, and by `dirigent mcp` on its standard streams. What a tool gives is what the API says of the same
//! thing, cut down to what a model can take in. What it refuses comes back as an error result with `code`, `message` and
//! `hint` (and all `problems`), so that the model that asked can do better.
//!
//! Nothing here is a session: whatever a client knows of one, each call stands by itself.

mod arguments;
mod catalog;
mod drafts;
mod fitting;
mod runs;

use std::borrow::Cow;
use std::sync::Arc;

use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ErrorData, Implementation, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult,
    Resource, ResourceContents, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;

use crate::core::manifest;
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::gateway::api::Api;
use crate::gateway::problem::ProblemDocument;
use crate::isolate::CTX_TYPES;
use arguments::{Arguments, GetRun, ListAutomations, ListRuns, ListTools, ReadAutomation, RunAutomation};
use arguments::{ValidateManifest, WriteAutomation};

/// What a client tells its model of this server.
const INSTRUCTIONS: &str = include_str!("mcp/instructions.md");
const GUIDE: &str = include_str!("../../docs/builders.md");

/// On the admin listener.
pub const PATH: &str = "/mcp";
/// What the two files of an automation may take up in a message, where a line break has two characters and a quote, too.
pub const MAX_FILES: usize = 2 * (manifest::MAX_MANIFEST_BYTES + manifest::MAX_HANDLER_BYTES);

/// What a model can take in of the values of one answer.
const VALUE_BYTES: usize = 48 * 1024;
/// Problems that are listed beside other things.
const SHOWN_PROBLEMS: usize = 20;

type ToolReply = Result<Value, ProblemDocument>;

/// The tools, in the order in which a builder needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuilderTool {
    ListAutomations,
    ReadAutomation,
    ListTools,
    ValidateManifest,
    WriteAutomation,
    RunAutomation,
    GetRun,
    ListRuns,
}

impl BuilderTool {
    pub const ALL: [Self; 8] = [
        Self::ListAutomations,
        Self::ReadAutomation,
        Self::ListTools,
        Self::ValidateManifest,
        Self::WriteAutomation,
        Self::RunAutomation,
        Self::GetRun,
        Self::ListRuns,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::ListAutomations => "list_automations",
            Self::ReadAutomation => "read_automation",
            Self::ListTools => "list_tools",
            Self::ValidateManifest => "validate_manifest",
            Self::WriteAutomation => "write_automation",
            Self::RunAutomation => "run_automation",
            Self::GetRun => "get_run",
            Self::ListRuns => "list_runs",
        }
    }

    /// As clients list it.
    fn described(self) -> Tool {
        let (schema, title, text) = match self {
            Self::ListAutomations => (
                ListAutomations::schema(),
                "List automations",
                "Lists the automations: state, triggers with their next fire, last run, counts, and what is wrong with \
                 them.",
            ),
            Self::ReadAutomation => (
                ReadAutomation::schema(),
                "Read an automation",
                "Shows one automation: its manifest (automation.json) and handler (handler.js) as they are on disk, its \
                 state and its problems. `revision` is for write_automation.",
            ),
            Self::ListTools => (
                ListTools::schema(),
                "List what handlers can call",
                "Lists what `ctx.tool` of a handler can call: the built-in tools, the queries and actions of each app \
                 with their schemas, and the tools of MCP servers. When that is too much for one answer, the schemas \
                 are left out: ask again with `app` or `server`.",
            ),
            Self::ValidateManifest => (
                ValidateManifest::schema(),
                "Check a manifest and a handler",
                "Checks a manifest, a handler, or both, without writing anything. Gives every problem at once, with \
                 line, column and a hint; the handler is read, not run. With `handle`, what is not given is taken from \
                 the disk, and the answer is the one that write_automation would give.",
            ),
            Self::WriteAutomation => (
                WriteAutomation::schema(),
                "Write an automation",
                "Writes the manifest, the handler, or both; what is left out stays. Nothing is written when there is an \
                 error: then all problems come back. A new automation is always disabled, and none is enabled by this: \
                 a person does that. A webhook is declared as {\"kind\": \"webhook\", \"pending\": true}; its address \
                 and secret are minted by a person, and stay when the manifest is written again.",
            ),
            Self::RunAutomation => (
                RunAutomation::schema(),
                "Run an automation now",
                "Runs an automation by hand, also a disabled one, and waits for its end. It is a real run: what its \
                 handler does, it does. When the wait is over first, get_run tells how it went on.",
            ),
            Self::GetRun => (
                GetRun::schema(),
                "Read the trace of a run",
                "Shows one run: status, input, output, error with its place in the handler, each call that it made with \
                 arguments and result, its log, and the runs that it invoked.",
            ),
            Self::ListRuns => {
                (ListRuns::schema(), "List runs", "Lists runs, newest first, without inputs and outputs.")
            }
        };
        let hints = ToolAnnotations::with_title(title);
        let hints = match self {
            Self::WriteAutomation => hints.read_only(false).destructive(true).idempotent(true).open_world(false),
            Self::RunAutomation => hints.read_only(false).destructive(true).idempotent(false).open_world(true),
            _ => hints.read_only(true).open_world(false),
        };
        Tool::new(self.name(), text, schema).with_title(title).with_annotations(hints)
    }
}

fn tools() -> Vec<Tool> {
    BuilderTool::ALL.into_iter().map(BuilderTool::described).collect()
}

fn tool_named(name: &str) -> Result<BuilderTool, ErrorData> {
    BuilderTool::ALL.into_iter().find(|tool| tool.name() == name).ok_or_else(|| {
        let near = nearest(name, &BuilderTool::ALL.map(BuilderTool::name));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        ErrorData::invalid_params(format!("there is no tool {:?}{hint}", shortened(name, 100)), None)
    })
}

/// Texts that a builder can read beside the tools: address, name, kind, what it is.
const RESOURCES: [(&str, &str, &str, &str); 3] = [
    ("dirigent://guide", "Writing automations", "text/markdown", "The whole guide, with examples."),
    ("dirigent://automation.schema.json", "Schema of automation.json", "application/schema+json", "JSON Schema."),
    ("dirigent://ctx.d.ts", "Types of the handler", "text/x-typescript", "What a handler is given."),
];

fn resources() -> ListResourcesResult {
    let all =
        RESOURCES.map(|(uri, name, kind, text)| Resource::new(uri, name).with_mime_type(kind).with_description(text));
    ListResourcesResult::with_all_items(all.into())
}

fn resource(uri: &str) -> Result<ReadResourceResult, ErrorData> {
    let text = match uri {
        "dirigent://guide" => Cow::Borrowed(GUIDE),
        "dirigent://automation.schema.json" => Cow::Owned(format!("{:#}", manifest::json_schema())),
        "dirigent://ctx.d.ts" => Cow::Borrowed(CTX_TYPES),
        _ => {
            let told = format!("there is no resource {:?}", shortened(uri, 100));
            return Err(ErrorData::resource_not_found(told, None));
        }
    };
    let mut contents = ResourceContents::text(text, uri);
    if let Some((_, _, kind, _)) = RESOURCES.iter().find(|(known, ..)| *known == uri) {
        contents = contents.with_mime_type(*kind);
    }
    Ok(ReadResourceResult::new(vec![contents]))
}

/// Whoever does what the tools say.
pub trait CallTools: Send + Sync + 'static {
    /// Calls a tool. A call that is cancelled takes the run that it waits for with it.
    fn call(
        &self,
        tool: BuilderTool,
        given: Map<String, Value>,
        cancelled: impl Future<Output = ()> + Send,
    ) -> impl Future<Output = CallToolResult> + Send;
}

/// The tools over one daemon. Cheap to clone.
#[derive(Clone)]
pub struct Builder {
    api: Api,
}

impl Builder {
    pub fn new(api: Api) -> Self {
        Self { api }
    }

    async fn with<A: Arguments, R: Future<Output = ToolReply>>(
        &self,
        given: Map<String, Value>,
        call: impl FnOnce(A) -> R,
    ) -> ToolReply {
        call(A::read(given)?).await
    }
}

impl CallTools for Builder {
    async fn call(
        &self,
        tool: BuilderTool,
        given: Map<String, Value>,
        cancelled: impl Future<Output = ()> + Send,
    ) -> CallToolResult {
        let reply = match tool {
            BuilderTool::ListAutomations => self.with(given, |given| self.list_automations(given)).await,
            BuilderTool::ReadAutomation => self.with(given, |given| self.read_automation(given)).await,
            BuilderTool::ListTools => self.with(given, |given| self.list_tools(given)).await,
            BuilderTool::ValidateManifest => self.with(given, |given| self.validate_manifest(given)).await,
            BuilderTool::WriteAutomation => self.with(given, |given| self.write_automation(given)).await,
            BuilderTool::RunAutomation => self.with(given, |given| self.run_automation(given, cancelled)).await,
            BuilderTool::GetRun => self.with(given, |given| self.get_run(given)).await,
            BuilderTool::ListRuns => self.with(given, |given| self.list_runs(given)).await,
        };
        match reply {
            Ok(value) => CallToolResult::structured(value),
            Err(problem) => {
                let mut told = problem.into_members();
                if let Some(detail) = told.shift_remove("detail") {
                    told.shift_insert(1, "message".to_owned(), detail);
                }
                CallToolResult::structured_error(Value::Object(told))
            }
        }
    }
}

/// What the API would answer with, as a value.
fn shown(told: &impl Serialize) -> ToolReply {
    serde_json::to_value(told).map_err(|error| ProblemDocument::internal(&error))
}

/// The server that a client talks to.
pub struct Server<C>(pub C);

impl<C: CallTools> ServerHandler for Server<C> {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_resources().build();
        let name = Implementation::new("dirigent", env!("CARGO_PKG_VERSION")).with_title("dirigent");
        ServerConfig::new(capabilities).with_server_info(name).with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let tool = tool_named(&request.name)?;
        Ok(self.0.call(tool, request.arguments.unwrap_or_default(), context.ct.cancelled()).await.into())
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(resources())
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        resource(&request.uri).map(Into::into)
    }
}

/// What stands at `/mcp`. Hosts, origins and the token are the admin listener's business. Calls that are under way when
/// `closing` becomes true are cancelled.
pub fn service(
    api: Api,
    max_body: usize,
    mut closing: watch::Receiver<bool>,
) -> StreamableHttpService<Server<Builder>, NeverSessionManager> {
    let builder = Builder::new(api);
    let mut config = StreamableHttpServerConfig::default().disable_allowed_hosts().with_json_response(true);
    config.legacy_session_mode = false;
    config.max_request_body_bytes = max_body;
    let ended = config.cancellation_token.clone();
    tokio::spawn(async move {
        // An error says that nobody is left who could close it.
        let _ = closing.wait_for(|closing| *closing).await;
        ended.cancel();
    });
    StreamableHttpService::new(move || Ok(Server(builder.clone())), Arc::new(NeverSessionManager::default()), config)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_tool_says_what_it_takes() {
        for tool in tools() {
            let schema = Value::Object((*tool.input_schema).clone());
            assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)));
            let empty = Map::new();
            for (name, property) in schema["properties"].as_object().unwrap_or(&empty) {
                assert!(property["description"].is_string(), "{}: {name}", tool.name);
                // `input` may be anything; a manifest two things.
                let typed = property["type"].is_string() || ["input", "manifest"].contains(&name.as_str());
                assert!(typed && property.get("anyOf").is_none(), "{}: {name}: {property}", tool.name);
            }
            assert!(jsonschema::meta::is_valid(&schema), "{}", tool.name);
            assert_eq!(tool_named(&tool.name).unwrap().name(), tool.name);
        }
        let error = tool_named("list_runz").unwrap_err();
        assert_eq!(error.message, "there is no tool \"list_runz\"; did you mean list_runs?");
    }

    #[test]
    fn every_resource_that_is_listed_can_be_read() {
        for listed in resources().resources {
            let read = serde_json::to_value(resource(&listed.uri).unwrap()).unwrap();
            let contents = &read["contents"][0];
            assert_eq!(
                (contents["uri"].as_str(), contents["mimeType"].as_str()),
                (Some(&*listed.uri), listed.mime_type.as_deref())
            );
            assert!(contents["text"].as_str().is_some_and(|text| text.len() > 100));
        }
        assert!(resource("dirigent://token").is_err());
    }
}
