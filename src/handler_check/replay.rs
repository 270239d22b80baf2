//! What gives something else each time: the clock and chance. A retry or a replay is given the same input, and a cron
//! run knows the instant that it stands for; a handler that asks the clock instead does something else then.
//!
//! Where it makes no difference nothing is said: as the other choice beside `scheduledFor`, where two times of the same
//! run are compared, which is a duration, in how long a timer runs, and in what is logged.

use oxc_ast::AstKind;
use oxc_ast::ast::{BinaryExpression, BindingPattern, Expression, VariableDeclarator};
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
                Some(("crypto", "getRandomValues")) => (call.span, "crypto.getRandomValues()", false),
                _ if is_global(flow, &call.callee, "Date") => (call.span, "Date()", true),
                _ => continue,
            },
            AstKind::NewExpression(new) if new.arguments.is_empty() && is_global(flow, &new.callee, "Date") => {
                (new.span, "new Date()", true)
            }
            _ => continue,
        };
        if is_logged(flow, node.id()) || is_waited(flow, node.id()) || (is_time && is_harmless(flow, node.id(), span)) {
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

/// Whether it decides how long a timer runs, which is over by the next run.
fn is_waited(flow: &Flow<'_, '_>, id: NodeId) -> bool {
    let nodes = flow.semantic.nodes();
    nodes
        .ancestor_kinds(id)
        .take_while(|kind| !matches!(kind, AstKind::Function(_) | AstKind::ArrowFunctionExpression(_)))
        .any(|kind| matches!(kind, AstKind::CallExpression(call) if is_global(flow, &call.callee, "setTimeout")))
}

fn is_harmless(flow: &Flow<'_, '_>, id: NodeId, span: Span) -> bool {
    let nodes = flow.semantic.nodes();
    match flow.parent(id) {
        AstKind::LogicalExpression(either) => {
            either.operator != LogicalOperator::And && either.right.span() == span && is_scheduled_for(&either.left)
        }
        AstKind::ConditionalExpression(choice) => is_scheduled_for(&choice.test) && choice.alternate.span() == span,
        // `{ scheduledFor = Date.now() }`
        AstKind::AssignmentPattern(_) => nodes
            .ancestor_kinds(id)
            .find_map(|kind| match kind {
                AstKind::BindingProperty(property) => Some(property.key.static_name()),
                _ => None,
            })
            .is_some_and(|name| name.as_deref() == Some("scheduledFor")),
        AstKind::BinaryExpression(binary) => {
            is_of_the_clock(flow, binary, span)
                // `const deadline = Date.now() + 5000`
                || match flow.parent(nodes.parent_id(id)) {
                    AstKind::VariableDeclarator(declarator) => {
                        is_sum(binary) && is_only_compared(flow, declarator)
                    }
                    _ => false,
                }
        }
        AstKind::VariableDeclarator(declarator) => is_only_compared(flow, declarator),
        _ => false,
    }
}

/// Whether two times of the clock are compared, or one taken from another: a duration of this run.
fn is_of_the_clock(flow: &Flow<'_, '_>, binary: &BinaryExpression<'_>, one: Span) -> bool {
    let other = if binary.left.span() == one { &binary.right } else { &binary.left };
    (binary.operator == BinaryOperator::Subtraction || binary.operator.is_compare()) && is_clock(flow, other)
}

/// Whether it is the clock, or a variable made of it and nothing else.
fn is_clock(flow: &Flow<'_, '_>, expression: &Expression<'_>) -> bool {
    match expression {
        Expression::CallExpression(call) => global_member(flow, &call.callee) == Some(("Date", "now")),
        Expression::NewExpression(new) => new.arguments.is_empty() && is_global(flow, &new.callee, "Date"),
        Expression::Identifier(name) => {
            let symbol = name.reference_id.get().and_then(|id| flow.symbol(id));
            let declared = symbol.map(|symbol| flow.semantic.symbol_declaration(symbol).kind());
            match declared {
                Some(AstKind::VariableDeclarator(declarator)) => match &declarator.init {
                    Some(Expression::BinaryExpression(sum)) => {
                        is_sum(sum) && [&sum.left, &sum.right].into_iter().any(|side| is_clock_itself(flow, side))
                    }
                    Some(init) => is_clock_itself(flow, init),
                    None => false,
                },
                _ => false,
            }
        }
        _ => false,
    }
}

fn is_clock_itself(flow: &Flow<'_, '_>, expression: &Expression<'_>) -> bool {
    !matches!(expression, Expression::Identifier(_)) && is_clock(flow, expression)
}

fn is_sum(binary: &BinaryExpression<'_>) -> bool {
    matches!(binary.operator, BinaryOperator::Addition | BinaryOperator::Subtraction)
}

/// Whether a variable that holds a time is only ever compared with another one, taken from it, or logged.
fn is_only_compared(flow: &Flow<'_, '_>, declarator: &VariableDeclarator<'_>) -> bool {
    let BindingPattern::BindingIdentifier(name) = &declarator.id else { return false };
    let Some(symbol) = name.symbol_id.get().filter(|symbol| flow.is_constant(*symbol)) else { return false };
    let mut uses = flow.uses(symbol).peekable();
    uses.peek().is_some()
        && uses.all(|node| {
            is_logged(flow, node.id())
                || matches!(flow.parent(node.id()), AstKind::BinaryExpression(binary)
                    if is_of_the_clock(flow, binary, node.kind().span()))
        })
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
