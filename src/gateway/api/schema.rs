//! How the words of [`crate::fire`] stand in the OpenAPI document. They know nothing of it themselves.

use std::borrow::Cow;

use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::fire::{
    AppId, AutomationId, ErrorCode, Handle, LogLevel, NodeKind, Problem, RunId, RunStatus, Severity, TriggerInfo,
    TriggerOrigin,
};
use crate::ledger::JsonText;

/// Text with its rule.
macro_rules! text_schema {
    ($($name:ident, $pattern:expr, $description:literal, $example:literal;)+) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some($pattern));
                text.description(Some($description)).examples([$example]).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )+};
}

text_schema! {
    AppId, AppId::RULE, "The name of an app folder.", "auto.heartbeat";
    AutomationId, AutomationId::RULE, "The name of an automation folder.", "beat";
    Handle, "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}/[A-Za-z0-9_-]{1,128}$",
        "`<appId>/<automationId>`: names an automation under the root.", "auto.heartbeat/beat";
    RunId, "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        "A UUID, version 7: ids sort by the time they were made.", "019b7a00-0000-7000-8000-000000000000";
}

/// One of some words.
macro_rules! word_schema {
    ($($name:ident, $description:literal;)+) => {$(
        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let words = $name::ALL.iter().map(|word| word.as_str());
                let text = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words));
                text.description(Some($description)).into()
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed(stringify!($name))
            }
        }
    )+};
}

word_schema! {
    RunStatus, "`queued` → `running` → `ok`, `error` or `cancelled`; `skipped` is written at once.";
    TriggerOrigin, "What made the run.";
    ErrorCode, "Why a run ended in `error` or was cancelled.";
    NodeKind, "What kind of call it is.";
    LogLevel, "Of a log line.";
    Severity, "A warning hinders nothing.";
}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

fn whole_number(description: &str) -> ObjectBuilder {
    let number = ObjectBuilder::new().schema_type(Type::Integer);
    number.format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64))).description(Some(description))
}

fn reference(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .description(Some("Something wrong with a file or folder."))
            .property("code", text("Stable, such as `invalid_trigger`."))
            .property("severity", reference("Severity"))
            .property("field", text("Path of the field, such as `triggers[0].expr`; empty for the whole file."))
            .property("message", text("The rule and the observed value."))
            .property("hint", text("A remedy."))
            .property("line", whole_number("1-based."))
            .property("column", whole_number("1-based, in characters."))
            .property("path", text("The file or folder, relative to the root."))
            .required("code")
            .required("severity")
            .required("field")
            .required("message")
            .into()
    }
}

impl ToSchema for Problem {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Severity::name().into_owned(), Severity::schema()));
    }
}

impl PartialSchema for TriggerInfo {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .description(Some("Which trigger made the run, and what it stands for."))
            .property("key", text("The trigger's identity within its automation; cron only."))
            .property("expr", text("Of a cron trigger."))
            .property("tz", text("Of a cron trigger."))
            .property("scheduledFor", whole_number("Epoch milliseconds; cron only."))
            .property("missed", whole_number("How many earlier instants this run stands for."))
            .property("slug", text("The webhook that was posted to."))
            .property("deliveryId", text("The sender's id of a post, or the idempotency key of a Run now."))
            .property("reason", text("Why a `skipped` row was not run: `overlap`, `missed` or `filter`."))
            .property("notBefore", whole_number("A retry waits until then, epoch milliseconds."))
            .property("replayOf", reference("RunId"))
            .property("failedRun", reference("RunId"))
            .property("failureDepth", whole_number("Failure handlers in the chain up to here."))
            .into()
    }
}

impl ToSchema for TriggerInfo {}

/// Any JSON value.
impl PartialSchema for JsonText {
    fn schema() -> RefOr<Schema> {
        let told = "Any JSON value. One that was too long to keep is `{_truncated: true, bytes, sha256, head}`.";
        ObjectBuilder::new().schema_type(SchemaType::AnyValue).description(Some(told)).into()
    }
}

impl ToSchema for JsonText {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Value")
    }
}
