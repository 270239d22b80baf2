//! Arguments that stand in the text: of the wrong type, missing, or with a name that nobody reads.
//!
//! What the runtime refuses is an error; what it passes over is a warning.

use oxc_ast::AstKind;
use oxc_ast::ast::{Argument, CallExpression, Expression, ObjectExpression, ObjectPropertyKind};
use oxc_span::{GetSpan, Span};

use super::flow::Flow;
use super::shapes::Value;
use super::text::Findings;
use crate::core::near_name::nearest;
use crate::fire::Problem;

const BAD_ARGUMENT: &str = "bad_argument";
const UNKNOWN_OPTION: &str = "unknown_option";

const OF_AGENT: &[&str] = &["prompt", "json"];
const OF_INVOKE: &[&str] = &["input"];
const OF_RESULT: &[&str] = &["summary", "output"];

/// One argument of a call.
enum Given<'a> {
    Absent,
    /// Something spread stands before it.
    Unknown,
    Is(&'a Expression<'a>),
}

pub fn check(flow: &Flow<'_, '_>, findings: &mut Findings<'_>) {
    for node in flow.semantic.nodes().iter() {
        let AstKind::CallExpression(call) = node.kind() else { continue };
        let Some(Value::Function(function)) = flow.value(&call.callee) else { continue };
        match function.name {
            "ctx.tool" => {
                named(flow, findings, call, "ctx.tool(name, args)", "the name of a tool");
                not_an_object(flow, findings, call, "ctx.tool(name, args)", "args");
            }
            "ctx.invoke" => {
                named(flow, findings, call, "ctx.invoke(handle, { input })", "the handle of an automation");
                not_an_object(flow, findings, call, "ctx.invoke(handle, { input })", "the second argument");
                if let Given::Is(Expression::ObjectExpression(object)) = given(call, 1) {
                    for (name, at) in unread(object, OF_INVOKE) {
                        let message = format!("nobody reads {name:?} of ctx.invoke's second argument");
                        let hint = "what the other automation is given goes into `input`: { input: { … } }";
                        findings.add(at.start, Problem::warning(UNKNOWN_OPTION, "", message).with_hint(hint));
                    }
                }
            }
            "ctx.agent" => agent(flow, findings, call),
            _ => {}
        }
    }
}

/// What an automation returns, when it is written down: `{ result: … }` is kept nowhere.
pub fn check_result(findings: &mut Findings<'_>, object: &ObjectExpression<'_>) {
    for (name, at) in unread(object, OF_RESULT) {
        let message = format!("nobody reads {name:?} of what a handler returns");
        let hint = match nearest(&name, OF_RESULT) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "a handler returns { summary, output }: put it into `output`".to_owned(),
        };
        findings.warning(at.start, UNKNOWN_OPTION, message, hint);
    }
}

fn agent(flow: &Flow<'_, '_>, findings: &mut Findings<'_>, call: &CallExpression<'_>) {
    const SHAPE: &str = "ctx.agent({ prompt, json? })";
    let hint = "write ctx.agent({ prompt: '…' })";
    let object = match given(call, 0) {
        Given::Absent => {
            return findings.error(call.span.start, BAD_ARGUMENT, format!("{SHAPE} is given nothing"), hint);
        }
        Given::Is(Expression::ObjectExpression(object)) => object,
        Given::Is(other) => {
            if let Some(kind) = literal(flow, other) {
                let message = format!("{SHAPE} takes an object, not {kind}");
                findings.error(other.span().start, BAD_ARGUMENT, message, hint);
            }
            return;
        }
        Given::Unknown => return,
    };
    for (name, at) in unread(object, OF_AGENT) {
        let hint = match (name.as_str(), nearest(&name, OF_AGENT)) {
            ("schema" | "outputSchema", _) => "did you mean `json`? It is the JSON Schema of the answer".to_owned(),
            (_, Some(near)) => format!("did you mean `{near}`?"),
            (_, None) => "it has: prompt, json".to_owned(),
        };
        findings.error(at.start, UNKNOWN_OPTION, format!("ctx.agent has no option {name:?}, and rejects"), hint);
    }
    let mut is_open = false;
    let mut prompt = None;
    for property in &object.properties {
        match property {
            ObjectPropertyKind::SpreadProperty(_) => is_open = true,
            ObjectPropertyKind::ObjectProperty(property) => match property.key.static_name() {
                Some(name) if name == "prompt" => prompt = Some(&property.value),
                Some(_) => {}
                None => is_open = true,
            },
        }
    }
    match prompt {
        None if !is_open => {
            findings.error(object.span.start, BAD_ARGUMENT, format!("{SHAPE} has no `prompt` here"), hint);
        }
        Some(prompt) if !is_open => {
            if let Some(kind) = literal(flow, prompt).filter(|kind| *kind != TEXT) {
                let message = format!("{SHAPE}: prompt must be a text, not {kind}");
                findings.error(prompt.span().start, BAD_ARGUMENT, message, hint);
            }
        }
        _ => {}
    }
}

/// The first argument of `ctx.tool` and `ctx.invoke`.
fn named(flow: &Flow<'_, '_>, findings: &mut Findings<'_>, call: &CallExpression<'_>, shape: &str, what: &str) {
    let hint = format!("write {shape}");
    match given(call, 0) {
        Given::Absent => {
            findings.error(call.span.start, BAD_ARGUMENT, format!("{shape} is not given {what}"), hint);
        }
        Given::Is(name) => {
            let kind = literal(flow, name).filter(|kind| *kind != TEXT);
            let kind = kind.or_else(|| (flow.text(name) == Some("")).then_some("an empty one"));
            if let Some(kind) = kind {
                let message = format!("{shape} takes {what} as a text, not {kind}");
                findings.error(name.span().start, BAD_ARGUMENT, message, hint);
            }
        }
        Given::Unknown => {}
    }
}

/// The second argument of `ctx.tool` and `ctx.invoke`, which may be left out.
fn not_an_object(flow: &Flow<'_, '_>, findings: &mut Findings<'_>, call: &CallExpression<'_>, shape: &str, what: &str) {
    let Given::Is(given) = given(call, 1) else { return };
    let is_list = matches!(given, Expression::ArrayExpression(_));
    if let Some(kind) = literal(flow, given)
        && !matches!(given, Expression::ObjectExpression(_) | Expression::NullLiteral(_) | Expression::RegExpLiteral(_))
        && !(is_list && shape.starts_with("ctx.invoke"))
    {
        let message = format!("{shape}: {what} must be an object, not {kind}");
        findings.error(given.span().start, BAD_ARGUMENT, message, format!("write {shape}"));
    }
}

fn given<'a>(call: &'a CallExpression<'a>, index: usize) -> Given<'a> {
    if call.arguments.iter().take(index + 1).any(Argument::is_spread) {
        return Given::Unknown;
    }
    match call.arguments.get(index).map(Argument::as_expression) {
        None => Given::Absent,
        Some(None) => Given::Unknown,
        Some(Some(expression)) => Given::Is(expression),
    }
}

/// Names in an object literal that are none of `known`.
fn unread(object: &ObjectExpression<'_>, known: &[&str]) -> Vec<(String, Span)> {
    let property = |property: &ObjectPropertyKind<'_>| match property {
        ObjectPropertyKind::ObjectProperty(property) => {
            let name = property.key.static_name().filter(|name| !known.contains(&&**name) && *name != "__proto__")?;
            Some((name.into_owned(), property.key.span()))
        }
        ObjectPropertyKind::SpreadProperty(_) => None,
    };
    object.properties.iter().filter_map(property).collect()
}

const TEXT: &str = "a text";

/// What an expression is, when that stands in the text.
fn literal(flow: &Flow<'_, '_>, expression: &Expression<'_>) -> Option<&'static str> {
    Some(match expression {
        Expression::StringLiteral(_) | Expression::TemplateLiteral(_) => TEXT,
        Expression::NumericLiteral(_) => "a number",
        Expression::BooleanLiteral(_) => "a boolean",
        Expression::NullLiteral(_) => "null",
        Expression::BigIntLiteral(_) => "a bigint",
        Expression::RegExpLiteral(_) => "a regular expression",
        Expression::ArrayExpression(_) => "a list",
        Expression::ObjectExpression(_) => "an object",
        Expression::ArrowFunctionExpression(_) | Expression::FunctionExpression(_) => "a function",
        _ => return flow.text(expression).map(|_| TEXT),
    })
}
