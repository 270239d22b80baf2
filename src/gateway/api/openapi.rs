//! The document that describes the API, made from the routes themselves: OpenAPI 3.1.
//!
//! Each handler describes what it takes and what it answers when all is well, and what is particular to it. What any of
//! them may be refused with is added here, by what they take: so none can forget one.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use axum::body::Bytes;
use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{
    AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, InfoBuilder, KnownFormat, License, OpenApi, OpenApiBuilder, Ref, RefOr,
    Response as Described, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use super::extract::{NoParams, Params};
use super::routes;
use crate::daemon::RunEvent;

/// The tags.
pub const AUTOMATIONS: &str = "automations";
pub const RUNS: &str = "runs";
pub const EVENTS: &str = "events";
pub const TOOLS: &str = "tools";
pub const STATUS: &str = "status";

/// The content type of every refusal.
pub const PROBLEM: &str = "application/problem+json";

/// Made once: the routes do not change.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let text = describe().to_json().expect("a document of text and numbers has a JSON form");
    // `EpochMs` is another name for `i64`, and the macros know only the latter.
    let text = text.replace("schemas/i64\"", "schemas/EpochMs\"").replace("\"i64\":", "\"EpochMs\":");
    Bytes::from(text)
});

/// Describes this API.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "openapi", tag = STATUS,
    responses((status = 200, description = "An OpenAPI 3.1 document.", body = Object))
)]
pub async fn document(Params(_): Params<NoParams>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}

/// Paths that take no POST.
static READ_ONLY: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let paths = describe().paths.paths.into_iter();
    paths.filter(|(_, item)| item.post.is_none()).map(|(path, _)| path).collect()
});

/// Whether a request is for a path that takes no POST, whatever a POST to it would say of itself.
pub fn takes_no_post(request: &Request) -> bool {
    request.extensions().get::<MatchedPath>().is_some_and(|path| READ_ONLY.contains(path.as_str()))
}

fn describe() -> OpenApi {
    let (open, guarded) = routes();
    let (open, mut guarded) = (open.into_openapi(), guarded.into_openapi());
    for (path, item) in &mut guarded.paths.paths {
        let operations = [(&mut item.get, false), (&mut item.post, true)];
        for (operation, changes) in operations {
            if let Some(operation) = operation {
                add_refusals(operation, path, changes);
            }
        }
    }
    let info = InfoBuilder::new()
        .title("dirigent")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "The admin API of a dirigent daemon. Instants are epoch milliseconds. Every error is an RFC 9457 problem \
             document with a stable `code`. A POST says `content-type: application/json`. Nothing may be cached.",
        ))
        .license(Some(License::new("MIT OR Apache-2.0")))
        .build();
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The admin token, from `.dirigent/token` below the root."))
        .build();
    let conflict = problem("Something that is there already is in the way; `code` says what.");
    // Those that only parameters and texts name.
    let mut run_event = vec![("RunEvent".to_owned(), RunEvent::schema())];
    RunEvent::schemas(&mut run_event);
    let components = ComponentsBuilder::new()
        .security_scheme("token", SecurityScheme::Http(token))
        .schema("ProblemDocument", ProblemSchema::schema())
        .schema("ToolName", ToolName::schema())
        .schema("Instant", Instant::schema())
        .schemas_from_iter(run_event)
        .response("Conflict", conflict)
        .build();
    let mut document = OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build();
    document.merge(open);
    document.merge(guarded);
    document
}

/// What access, the body, the path and the daemon's state may have against a request.
fn add_refusals(operation: &mut Operation, path: &str, changes: bool) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
        {
            never_null(&mut object.schema_type);
        }
    }
    let mut refuse = |status: &str, description: &str| {
        let responses = &mut operation.responses.responses;
        let refusal = RefOr::T(problem(description));
        match responses.get_mut(status) {
            // Such as a tool's own 400, which has another shape.
            Some(RefOr::T(described)) => {
                described.content.insert(PROBLEM.to_owned(), RefOr::T(problem_content()));
            }
            Some(RefOr::Ref(_)) => {}
            None => {
                responses.insert(status.to_owned(), refusal);
            }
        }
    };
    refuse("400", "The path, the query, a header or the body breaks its rule.");
    refuse("401", "The admin token is missing or wrong.");
    refuse("403", "The request comes from another site.");
    refuse("421", "The Host header does not name this listener.");
    refuse("500", "A fault of the daemon; its log says more.");
    refuse("503", "The daemon is stopping, or a ledger cannot be used; `Retry-After` says when to come back.");
    if path.contains('{') {
        refuse("404", "There is no such thing.");
    }
    if changes {
        refuse("413", "The body is too large.");
        refuse("415", "The content type is not `application/json`.");
    }
}

/// A parameter may be left out; there is no way to say null.
fn never_null(schema_type: &mut SchemaType) {
    if let SchemaType::Array(types) = schema_type {
        types.retain(|one| *one != Type::Null);
        if let [only] = types.as_slice() {
            *schema_type = SchemaType::Type(only.clone());
        }
    }
}

fn problem_content() -> Content {
    Content::new(Some(Ref::from_schema_name("ProblemDocument")))
}

fn problem(description: &str) -> Described {
    let retry = HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::Integer))).build();
    let response = ResponseBuilder::new().description(description).content(PROBLEM, problem_content());
    if description.contains("Retry-After") { response.header("Retry-After", retry).build() } else { response.build() }
}

/// The refusals that are a conflict with what is there.
pub struct Conflict;

impl<'r> utoipa::ToResponse<'r> for Conflict {
    fn response() -> (&'r str, RefOr<Described>) {
        ("Conflict", RefOr::T(Described::default()))
    }
}

/// An RFC 9457 document.
pub struct ProblemSchema;

impl PartialSchema for ProblemSchema {
    fn schema() -> RefOr<Schema> {
        let text = |description: &str| {
            ObjectBuilder::new().schema_type(Type::String).description(Some(description.to_owned()))
        };
        ObjectBuilder::new()
            .description(Some("RFC 9457. Further members depend on `code`, such as `runId` with `busy`."))
            .property("type", text("`about:blank`: the status and `code` say it all."))
            .property("title", text("The status, in words."))
            .property("status", ObjectBuilder::new().schema_type(Type::Integer).description(Some("The status.")))
            .property("code", text("Stable, such as `unknown_run`."))
            .property("detail", text("What is wrong, for people."))
            .property("hint", text("A remedy."))
            .required("type")
            .required("title")
            .required("status")
            .required("code")
            .required("detail")
            .examples([serde_json::json!({
                "type": "about:blank",
                "title": "Not Found",
                "status": 404,
                "code": "unknown_automation",
                "detail": "there is no automation auto.hartbeat/beat",
                "hint": "did you mean auto.heartbeat/beat?",
            })])
            .into()
    }
}

impl ToSchema for ProblemSchema {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ProblemDocument")
    }
}

/// The body `{}`.
pub struct Empty;

impl PartialSchema for Empty {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new().schema_type(Type::Object).description(Some("An object without members."));
        object.additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false))).into()
    }
}

impl ToSchema for Empty {}

/// The body of a Run now.
pub struct RunInput;

impl PartialSchema for RunInput {
    fn schema() -> RefOr<Schema> {
        let any = ObjectBuilder::new().schema_type(SchemaType::AnyValue);
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("input", any.description(Some("What the handler gets as its input; any JSON value.")))
            .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(false)))
            .examples([serde_json::json!({ "input": { "city": "Bern" } })])
            .into()
    }
}

impl ToSchema for RunInput {}

/// The arguments of a tool.
pub struct ToolArguments;

impl PartialSchema for ToolArguments {
    fn schema() -> RefOr<Schema> {
        let object = ObjectBuilder::new().schema_type(Type::Object);
        object.description(Some("As the tool's `inputSchema` says.")).examples([serde_json::json!({})]).into()
    }
}

impl ToSchema for ToolArguments {}

/// One of the tools over app folders.
pub struct ToolName;

impl PartialSchema for ToolName {
    fn schema() -> RefOr<Schema> {
        let names = crate::tools::Builtin::ALL.map(crate::tools::Builtin::name);
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).into()
    }
}

impl ToSchema for ToolName {}

/// One event of a stream.
pub struct ServerSentEvent;

impl PartialSchema for ServerSentEvent {
    fn schema() -> RefOr<Schema> {
        let text = |description: &str| {
            ObjectBuilder::new().schema_type(Type::String).description(Some(description.to_owned()))
        };
        let data = text("JSON: a `RunEvent`, or the object that the stream's description names.");
        ObjectBuilder::new()
            .description(Some("One server-sent event, as a client takes it apart."))
            .property("id", text("What a client that comes back says in `Last-Event-ID`."))
            .property("event", text("The kind of event, in streams that have several."))
            .property("data", data.content_media_type("application/json"))
            .into()
    }
}

impl ToSchema for ServerSentEvent {}

/// An instant in a query.
pub struct Instant;

impl PartialSchema for Instant {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(Type::Integer);
        let number = number.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)));
        let text = ObjectBuilder::new().schema_type(Type::String);
        let text = text.format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        OneOfBuilder::new().item(number).item(text).into()
    }
}

impl ToSchema for Instant {}
