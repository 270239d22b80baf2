//! Calls in functions whose promises nobody takes: `forEach`, timers, and lists of promises that are never used. They
//! are cancelled when the handler settles, however well they are awaited inside.
//!
//! Whoever makes a promise of his own around such a function waits in another way, and nothing is said.

use std::collections::HashSet;

use oxc_ast::AstKind;
use oxc_ast::ast::{BindingPattern, CallExpression, ChainElement, Expression};
use oxc_semantic::NodeId;
use oxc_span::{GetSpan, Span};

use super::flow::{Flow, is_cancelled};
use super::shapes::{PROMISE_MEMBERS, Value};
use super::text::Findings;

const NOT_AWAITED: &str = "not_awaited";

/// Globals that call a function later, and take nothing that it gives.
const LATER: &[&str] = &["setTimeout", "setInterval", "queueMicrotask"];

pub fn check(flow: &Flow<'_, '_>, findings: &mut Findings<'_>) {
    let mut told: HashSet<u32> = HashSet::new();
    for node in flow.semantic.nodes().iter() {
        let AstKind::CallExpression(call) = node.kind() else { continue };
        let Some(Value::Function(function)) = flow.value(&call.callee) else { continue };
        if !function.result().is_some_and(is_cancelled) {
            continue;
        }
        let Some((callback, taker)) = lost_in(flow, node.id(), call.span) else { continue };
        if told.insert(callback) {
            let message =
                format!("nobody awaits this {} in {taker}: it is cancelled when the handler settles", function.name);
            let hint = "write `for (const item of items) await …`, or await Promise.all(items.map(async (item) => …))";
            findings.warning(call.span.start, NOT_AWAITED, message, hint);
        }
    }
}

/// The callback around a call, and what drops the promise that the callback gives for it.
fn lost_in(flow: &Flow<'_, '_>, call: NodeId, span: Span) -> Option<(u32, String)> {
    let mut around = flow.semantic.nodes().ancestor_kinds(call).filter(|kind| kind.span() != span);
    let mut value = span;
    // Of the promise itself: what is awaited, or given on, after any `.then(…)`.
    let (mut is_whole, mut is_awaited, mut is_returned) = (true, false, false);
    let callback = loop {
        let kind = around.next()?;
        match kind {
            AstKind::ArrowFunctionExpression(arrow) => {
                let is_body = arrow.body.as_expression().is_some_and(|body| body.span() == value);
                is_returned |= is_whole && is_body;
                break (arrow.span, arrow.r#async);
            }
            AstKind::Function(function) => break (function.span, function.r#async),
            AstKind::ReturnStatement(_) => is_returned |= is_whole,
            AstKind::AwaitExpression(_) => {
                is_awaited |= is_whole;
                is_whole = false;
            }
            AstKind::StaticMemberExpression(member) if PROMISE_MEMBERS.contains(&member.property.name.as_str()) => {}
            AstKind::CallExpression(then) if then.callee.span() == value => {}
            AstKind::ChainExpression(_) | AstKind::LogicalExpression(_) | AstKind::ConditionalExpression(_) => {}
            _ => is_whole = false,
        }
        value = kind.span();
    };
    let (callback, is_async) = callback;
    if !(is_returned || is_awaited && is_async) {
        return None;
    }
    let AstKind::CallExpression(taker) = around.next()? else { return None };
    let is_given = taker.arguments.iter().any(|argument| argument.span() == callback);
    let is_later = |callee: &Expression<'_>| {
        matches!(callee, Expression::Identifier(name) if LATER.contains(&name.name.as_str())
            && name.reference_id.get().is_some_and(|id| flow.symbol(id).is_none()))
    };
    let name = match method(taker) {
        _ if !is_given => return None,
        Some("forEach") => "forEach(…), which takes no promises".to_owned(),
        Some(name @ ("map" | "flatMap")) if is_unused(flow, &mut around) => {
            format!("{name}(…), whose list of promises is not used")
        }
        None if is_later(&taker.callee) => "a timer, which takes no promises".to_owned(),
        _ => return None,
    };
    let is_in_promise = around.any(|kind| {
        matches!(kind, AstKind::NewExpression(new)
            if matches!(&new.callee, Expression::Identifier(name) if name.name == "Promise"))
    });
    (!is_in_promise).then_some((callback.start, name))
}

fn method<'a>(call: &CallExpression<'a>) -> Option<&'a str> {
    match &call.callee {
        Expression::StaticMemberExpression(member) => Some(member.property.name.as_str()),
        Expression::ChainExpression(chain) => match &chain.expression {
            ChainElement::StaticMemberExpression(member) => Some(member.property.name.as_str()),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a value is dropped where it stands, or kept in a variable that is never read. An `await` of a list waits for
/// nothing.
fn is_unused<'a>(flow: &Flow<'_, 'a>, around: &mut impl Iterator<Item = AstKind<'a>>) -> bool {
    loop {
        match around.next() {
            Some(AstKind::ChainExpression(_) | AstKind::AwaitExpression(_)) => {}
            Some(AstKind::ExpressionStatement(_)) => return true,
            Some(AstKind::VariableDeclarator(declarator)) => {
                let BindingPattern::BindingIdentifier(name) = &declarator.id else { return false };
                return name.symbol_id.get().is_some_and(|symbol| flow.uses(symbol).next().is_none());
            }
            _ => return false,
        }
    }
}
