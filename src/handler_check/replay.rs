//! What gives something else each time: the clock and chance. A retry or a replay is given the same input, and a cron
//! run knows the instant that it stands for; a handler that asks the clock instead does something else then.
//!
//! Where it makes no difference nothing is said: as the other choice beside `scheduledFor`, in a difference of two
//! times, which is a duration, and in what is logged.

use oxc_ast::AstKind;
use oxc_ast::ast::{BindingPattern, Expression};
use oxc_semantic::NodeId;
use oxc_span::{GetSpan, Span};
use oxc_syntax::operator::{BinaryOperator, LogicalOperator};

use super::flow::Flow;
use super::shapes::Value;
use super::text::Findings;

const CODE: &str = "differs_on_replay";

const TIME_HINT: &str = "a cron run knows its instant: ctx.run.trigger.scheduledFor ?? Date.now()";
const CHANCE_HINT: &str = "derive it from ctx.run.id or the input, or keep it in ctx.state";

pub fn check(flow: &Flow<'_, '_>, findings: &mut Findings<'_>) {
    for node in flow.semantic.nodes().iter() {
        let (span, what, is_time) = match node.kind() {
            AstKind::CallExpression(call) => match global_member(flow, &call.callee) {
                Some(("Date", "now")) => (call.span, "Date.now()", true),
                Some(("Math", "random")) => (call.span, "Math.random()", false),
                Some(("crypto", "randomUUID")) => (call.span, "crypto.randomUUID()", false),
                _ => continue,
            },
            AstKind::NewExpression(new) if new.arguments.is_empty() && is_global(flow, &new.callee, "Date") => {
                (new.span, "new Date()", true)
            }
            _ => continue,
        };
        if is_logged(flow, node.id()) || (is_time && is_harmless(flow, node.id(), span)) {
            continue;
        }
        let message = format!("{what} gives something else when this run is retried or replayed");
        findings.warning(span.start, CODE, message, if is_time { TIME_HINT } else { CHANCE_HINT });
    }
}

fn global_member<'a>(flow: &Flow<'_, 'a>, callee: &Expression<'a>) -> Option<(&'a str, &'a str)> {
    let Expression::StaticMemberExpression(member) = callee else { return None };
    let Expression::Identifier(owner) = &member.object else { return None };
    let is_global = is_global(flow, &member.object, owner.name.as_str());
    is_global.then(|| (owner.name.as_str(), member.property.name.as_str()))
}

fn is_global(flow: &Flow<'_, '_>, expression: &Expression<'_>, name: &str) -> bool {
    matches!(expression, Expression::Identifier(identifier)
        if identifier.name == name && identifier.reference_id.get().is_some_and(|id| flow.symbol(id).is_none()))
}

/// Whether it stands in what `log` or `console` is given.
fn is_logged(flow: &Flow<'_, '_>, id: NodeId) -> bool {
    let nodes = flow.semantic.nodes();
    nodes
        .ancestor_kinds(id)
        .take_while(|kind| !matches!(kind, AstKind::Function(_) | AstKind::ArrowFunctionExpression(_)))
        .any(|kind| match kind {
            AstKind::CallExpression(call) => match flow.value(&call.callee) {
                Some(Value::Function(function)) => function.name.starts_with("log."),
                _ => matches!(global_member(flow, &call.callee), Some(("console", _))),
            },
            _ => false,
        })
}

fn is_harmless(flow: &Flow<'_, '_>, id: NodeId, span: Span) -> bool {
    match flow.parent(id) {
        AstKind::LogicalExpression(either) => {
            either.operator != LogicalOperator::And && either.right.span() == span && is_scheduled_for(&either.left)
        }
        AstKind::BinaryExpression(difference) => difference.operator == BinaryOperator::Subtraction,
        // A beginning that is only ever subtracted.
        AstKind::VariableDeclarator(declarator) => {
            let BindingPattern::BindingIdentifier(name) = &declarator.id else { return false };
            let Some(symbol) = name.symbol_id.get().filter(|symbol| flow.is_constant(*symbol)) else { return false };
            let mut uses = flow.uses(symbol).peekable();
            uses.peek().is_some()
                && uses.all(|node| {
                    matches!(flow.parent(node.id()), AstKind::BinaryExpression(difference)
                        if difference.operator == BinaryOperator::Subtraction)
                })
        }
        _ => false,
    }
}

/// `….scheduledFor`, also when it is reached through `?.` or has been given a name.
fn is_scheduled_for(expression: &Expression<'_>) -> bool {
    match expression {
        Expression::StaticMemberExpression(member) => member.property.name == "scheduledFor",
        Expression::Identifier(name) => name.name == "scheduledFor",
        Expression::ChainExpression(chain) => {
            chain.expression.member_expression().and_then(|member| member.static_property_name())
                == Some("scheduledFor")
        }
        _ => false,
    }
}
