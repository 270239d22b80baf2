//! What each tool takes: read whole or refused with a message, and described by the same types.

use rmcp::handler::server::common::schema_for_type;
use rmcp::model::JsonObject;
use rmcp::schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::fire::Handle;
use crate::gateway::problem::ProblemDocument;

pub trait Arguments: DeserializeOwned + JsonSchema + 'static {
    /// # Errors
    /// `bad_arguments`, with the first thing that does not fit.
    fn read(given: Map<String, Value>) -> Result<Self, ProblemDocument> {
        serde_path_to_error::deserialize(Value::Object(given)).map_err(|error| {
            let told = error.inner().to_string();
            // One that is missing or unknown is named by the error itself.
            bad_arguments(if error.path().iter().len() == 0 { told } else { format!("{}: {told}", error.path()) })
        })
    }

    fn schema() -> std::sync::Arc<JsonObject> {
        let mut schema = Value::Object((*schema_for_type::<Self>()).clone());
        for word in ["$schema", "title"] {
            schema.as_object_mut().map(|schema| schema.shift_remove(word));
        }
        for (_, property) in schema["properties"].as_object_mut().into_iter().flatten() {
            plain(property);
        }
        match schema {
            Value::Object(schema) => schema.into(),
            _ => JsonObject::new().into(),
        }
    }
}

/// Says of one that may be left out what it is when it is given: clients that make forms of schemas, and some models,
/// know no `type` of `["integer", "null"]`. A null is taken all the same.
fn plain(property: &mut Value) {
    if let Some(Value::Array(types)) = property.get_mut("type") {
        types.retain(|kind| kind != "null");
        if let [only] = &types[..] {
            property["type"] = only.clone();
        }
    }
    for word in ["format", "default"] {
        property.as_object_mut().map(|property| property.shift_remove(word));
    }
}

impl<T: DeserializeOwned + JsonSchema + 'static> Arguments for T {}

pub fn bad_arguments(told: impl Into<String>) -> ProblemDocument {
    ProblemDocument::bad_request("bad_arguments", told)
}

/// # Errors
/// `bad_arguments`: it is no handle.
pub fn handle(text: &str) -> Result<Handle, ProblemDocument> {
    text.parse().map_err(|error: crate::fire::NameError| {
        let hint = "a handle is <app>/<id>, such as auto.mail/digest";
        bad_arguments(error.to_string()).with_hint(Some(hint.to_owned()))
    })
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListTools {
    /// What this app declares only.
    pub app: Option<String>,
    /// The tools of this MCP server only.
    pub server: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListAutomations {
    /// Of this app only.
    pub app: Option<String>,
    /// At most so many; 100 when it is left out.
    #[schemars(range(min = 1, max = 500))]
    pub limit: Option<usize>,
    /// The `next` of the page before.
    pub cursor: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReadAutomation {
    /// `<app>/<id>`
    pub handle: String,
}

/// The text of a manifest, or the value that it stands for.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a manifest is an object, or the text of one")]
pub enum ManifestArgument {
    Text(String),
    Value(Map<String, Value>),
}

fn manifest_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["object", "string"] })
}

impl ManifestArgument {
    pub fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Value(value) => format!("{:#}\n", Value::Object(value)),
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValidateManifest {
    /// `<app>/<id>` of the automation that it is for, which may be there already.
    pub handle: Option<String>,
    /// automation.json, as an object or as text. Lines and columns of problems are those of the text; of an object, those
    /// of its text with an indent of two.
    #[schemars(schema_with = "manifest_schema")]
    pub manifest: Option<ManifestArgument>,
    /// The text of handler.js.
    pub handler: Option<String>,
    /// As for write_automation.
    pub remove_webhook: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WriteAutomation {
    /// `<app>/<id>`. The app's folder is made when there is none.
    pub handle: String,
    /// automation.json, as an object or as text; a new automation needs one.
    #[schemars(schema_with = "manifest_schema")]
    pub manifest: Option<ManifestArgument>,
    /// The text of handler.js; a new automation needs one.
    pub handler: Option<String>,
    /// The `revision` that read_automation gave: nothing is written when somebody has changed the files since.
    pub revision: Option<String>,
    /// Whether a webhook that a person has provisioned may be left out of the manifest. Its address and secret are then
    /// lost for good: only when the person wants that.
    pub remove_webhook: Option<bool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunAutomation {
    /// `<app>/<id>`
    pub handle: String,
    /// What the handler gets as `input`: any JSON. A text that is a JSON object or list is taken as that.
    #[serde(default, deserialize_with = "given")]
    #[schemars(schema_with = "any_json")]
    pub input: Option<Value>,
    /// How long to wait for its end; 30 when it is left out. Many clients give up after a minute, which cancels the run.
    #[schemars(range(min = 0, max = 300))]
    pub wait_seconds: Option<f64>,
}

/// In so many words: what has no type, some clients send as text.
fn any_json(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["object", "array", "string", "number", "boolean", "null"] })
}

impl RunAutomation {
    /// JSON text.
    pub fn input_json(&self) -> Option<String> {
        match self.input.as_ref()? {
            Value::String(text) if matches!(serde_json::from_str(text), Ok(Value::Object(_) | Value::Array(_))) => {
                Some(text.clone())
            }
            value => Some(value.to_string()),
        }
    }
}

/// A `null` that was given is a value, unlike an input that was not.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Value>, D::Error> {
    Deserialize::deserialize(d).map(Some)
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GetRun {
    /// As run_automation and list_runs give it.
    pub run_id: String,
    /// Bytes that values and texts may have together, 48 KiB when it is left out; what is beyond is shortened.
    #[schemars(range(min = 0, max = 4_194_304))]
    pub value_bytes: Option<usize>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListRuns {
    /// `<app>/<id>`: of this automation only.
    #[serde(alias = "automation")]
    pub handle: Option<String>,
    /// Of this app only.
    pub app: Option<String>,
    /// With one of these: queued, running, ok, error, cancelled, skipped.
    pub status: Option<Vec<String>>,
    /// Made by this: cron, webhook, manual, invoke, failure or retry.
    pub origin: Option<String>,
    /// Queued or started at or after: RFC 3339, or epoch milliseconds as text.
    pub since: Option<String>,
    /// Invoked by the run of this id.
    pub parent: Option<String>,
    /// At most so many; 20 when it is left out.
    #[schemars(range(min = 1, max = 500))]
    pub limit: Option<u32>,
    /// The `next` of the page before.
    pub cursor: Option<String>,
}
