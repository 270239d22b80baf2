//! Uses of the contract's objects: members that are not there, calls of what is no function, promises that nobody
//! awaits, and the calls that the manifest has a say in.

use std::collections::HashSet;

use oxc_ast::AstKind;
use oxc_ast::ast::{Argument, BindingPattern, CallExpression, ChainElement, Expression};
use oxc_semantic::NodeId;
use oxc_span::{GetSpan, Span};
use oxc_syntax::operator::{BinaryOperator, LogicalOperator, UnaryOperator};

use super::flow::{Flow, is_cancelled};
use super::shapes::{ANY_OBJECT, Function, Kind, PROMISE_MEMBERS, Shape, Value, hint};
use super::text::Findings;
use crate::fire::{AutomationId, Handle};

const NOT_AWAITED: &str = "not_awaited";

pub fn check<'a>(flow: &Flow<'_, 'a>, findings: &mut Findings<'_>) {
    let asked = asked_with_in(flow);
    let mut checker = Checker { flow, findings, asked };
    for (pattern, value) in &flow.taken_apart {
        checker.taken_apart(pattern, *value);
    }
    for node in flow.semantic.nodes().iter() {
        checker.node(node.id(), node.kind());
    }
}

/// Names that the handler itself asks for with `'name' in object`: it knows that they may be absent.
fn asked_with_in<'a>(flow: &Flow<'_, 'a>) -> HashSet<&'a str> {
    let names = flow.semantic.nodes().iter().filter_map(|node| match node.kind() {
        AstKind::BinaryExpression(test) if test.operator == BinaryOperator::In => flow.text(&test.left),
        _ => None,
    });
    names.collect()
}

struct Checker<'f, 's, 'a, 'x, 't> {
    flow: &'f Flow<'s, 'a>,
    findings: &'x mut Findings<'t>,
    asked: HashSet<&'a str>,
}

impl<'a> Checker<'_, '_, 'a, '_, '_> {
    fn node(&mut self, id: NodeId, kind: AstKind<'a>) {
        match kind {
            AstKind::StaticMemberExpression(member) => {
                let name = member.property.name.as_str();
                self.member(id, &member.object, name, member.property.span, member.span);
            }
            AstKind::ComputedMemberExpression(member) => {
                let span = member.expression.span();
                if let Some(name) = self.flow.text(&member.expression) {
                    self.member(id, &member.object, name, span, member.span);
                } else if matches!(member.expression, Expression::NumericLiteral(_)) {
                    self.member(id, &member.object, "0", span, member.span);
                }
            }
            AstKind::CallExpression(call) => self.call(call),
            AstKind::ExpressionStatement(statement) => self.dropped(&statement.expression),
            AstKind::LogicalExpression(logical) if logical.operator != LogicalOperator::And => {
                self.always_true(&logical.left);
            }
            AstKind::UnaryExpression(unary) if unary.operator == UnaryOperator::LogicalNot => {
                self.always_true(&unary.argument);
            }
            AstKind::IfStatement(statement) => self.always_true(&statement.test),
            AstKind::ConditionalExpression(conditional) => self.always_true(&conditional.test),
            _ => {}
        }
    }

    fn member(&mut self, id: NodeId, object: &Expression<'a>, name: &str, at: Span, whole: Span) {
        match self.flow.value(object) {
            Some(Value::Object(shape)) => match self.use_of(id, whole) {
                Use::Written => self.written(shape, name, at),
                // `delete`, and targets of patterns.
                Use::Target => {}
                usage => self.unknown(shape, name, at, usage == Use::Called),
            },
            Some(Value::Promise(function)) if !PROMISE_MEMBERS.contains(&name) && !ANY_OBJECT.contains(&name) => {
                self.not_awaited(function, at, "which has no such member");
            }
            _ => {}
        }
    }

    fn use_of(&self, id: NodeId, whole: Span) -> Use {
        match self.flow.parent(id) {
            AstKind::CallExpression(call) if call.callee.span() == whole => Use::Called,
            AstKind::AssignmentExpression(assignment) if assignment.left.span() == whole => Use::Written,
            AstKind::UpdateExpression(_) => Use::Written,
            AstKind::UnaryExpression(unary) if unary.operator == UnaryOperator::Delete => Use::Target,
            AstKind::ArrayAssignmentTarget(_)
            | AstKind::AssignmentTargetRest(_)
            | AstKind::AssignmentTargetWithDefault(_)
            | AstKind::AssignmentTargetPropertyProperty(_)
            | AstKind::ForInStatement(_)
            | AstKind::ForOfStatement(_) => Use::Target,
            _ => Use::Read,
        }
    }

    fn written(&mut self, shape: &Shape, name: &str, at: Span) {
        // The argument itself is an object like any other.
        if shape.code != "unknown_argument" {
            let message = format!("{}.{name} cannot be set: {} is read-only", shape.name, shape.name);
            let hint = "what is to last goes into ctx.state.set(key, value), all else into variables";
            self.findings.error(at.start, "read_only", message, hint);
        }
    }

    fn unknown(&mut self, shape: &Shape, name: &str, at: Span, is_called: bool) {
        let is_there = shape.member(name).is_some() || ANY_OBJECT.contains(&name) || self.asked.contains(name);
        if is_there {
            return;
        }
        let hint = hint(shape, name);
        if shape.is_closed {
            let message = format!("{}.{name} does not exist", shape.name);
            self.findings.error(at.start, shape.code, message, hint);
        } else if shape.code == "unknown_argument" {
            let message = format!("`{name}` is no part of {}; it is undefined", shape.name);
            self.findings.warning(at.start, shape.code, message, hint);
        } else if is_called {
            let message = format!("{}.{name} does not exist", shape.name);
            self.findings.error(at.start, shape.code, message, hint);
        } else {
            let message = format!("{}.{name} does not exist; it is undefined", shape.name);
            self.findings.warning(at.start, shape.code, message, hint);
        }
    }

    /// `const { tool, tol } = ctx`
    fn taken_apart(&mut self, pattern: &BindingPattern<'a>, value: Value) {
        match (pattern, value) {
            (BindingPattern::ObjectPattern(object), Value::Object(shape)) => {
                for property in &object.properties {
                    let Some(name) = property.key.static_name() else { continue };
                    let has_default = matches!(property.value, BindingPattern::AssignmentPattern(_));
                    if shape.is_closed || !has_default {
                        self.unknown(shape, &name, property.key.span(), false);
                    }
                }
            }
            (BindingPattern::ObjectPattern(object), Value::Promise(function)) if !object.properties.is_empty() => {
                self.not_awaited(function, object.span, "which has none of these members");
            }
            (BindingPattern::ArrayPattern(array), Value::Promise(function)) => {
                self.not_awaited(function, array.span, "which is no list");
            }
            _ => {}
        }
    }

    fn call(&mut self, call: &'a CallExpression<'a>) {
        let at = call.callee.span();
        match self.flow.value(&call.callee) {
            Some(Value::Object(shape)) if shape.code != "unknown_argument" => {
                let message = format!("{} is no function", shape.name);
                let hint = format!("{} has: {}", shape.name, shape.names().join(", "));
                self.findings.error(at.start, "not_a_function", message, hint);
            }
            Some(Value::Promise(function)) => self.not_awaited(function, at, "which is no function"),
            Some(Value::Function(function)) => match function.kind {
                Kind::Tool => self.tool(call),
                Kind::Agent => self.findings.agent_call(at.start),
                Kind::Plain if function.name == "ctx.invoke" => self.invoke(call),
                Kind::Plain | Kind::Transaction => {}
            },
            _ => {}
        }
    }

    fn tool(&mut self, call: &'a CallExpression<'a>) {
        let Some(first) = call.arguments.first().and_then(Argument::as_expression) else { return };
        let Some(name) = self.flow.text(first) else { return };
        let app = match call.arguments.get(1) {
            Some(Argument::ObjectExpression(object)) => self.flow.text_member(object, "app").map(str::to_owned),
            _ => None,
        };
        self.findings.tool_call(first.span().start, name, app);
    }

    fn invoke(&mut self, call: &'a CallExpression<'a>) {
        let Some(first) = call.arguments.first().and_then(Argument::as_expression) else { return };
        let Some(text) = self.flow.text(first) else { return };
        let is_handle =
            if text.contains('/') { text.parse::<Handle>().is_ok() } else { AutomationId::new(text).is_ok() };
        if !is_handle {
            let message = format!("{text:?} names no automation");
            let hint = "write \"<app>/<automation>\", or \"<automation>\" for one in the same app";
            self.findings.error(first.span().start, "not_a_handle", message, hint);
        }
    }

    /// A statement whose value nobody takes.
    fn dropped(&mut self, expression: &Expression<'a>) {
        match expression {
            Expression::CallExpression(call) => self.dropped_call(call, expression.span()),
            Expression::ChainExpression(chain) => {
                if let ChainElement::CallExpression(call) = &chain.expression {
                    self.dropped_call(call, expression.span());
                }
            }
            Expression::LogicalExpression(logical) => self.dropped(&logical.right),
            Expression::ConditionalExpression(conditional) => {
                self.dropped(&conditional.consequent);
                self.dropped(&conditional.alternate);
            }
            _ => {}
        }
    }

    fn dropped_call(&mut self, call: &CallExpression<'a>, whole: Span) {
        let result = match self.flow.value(&call.callee) {
            Some(Value::Function(function)) => function.result(),
            _ => None,
        };
        match (result, &call.callee) {
            (Some(value @ Value::Promise(function)), _) if is_cancelled(value) => {
                let message = format!("nobody awaits this {}: it is cancelled when the handler settles", function.name);
                let hint = "write `await` before it, or `void` when it may be cancelled";
                self.findings.warning(whole.start, NOT_AWAITED, message, hint);
            }
            // `….then(…)`, which is as much awaited as what it stands on.
            (None, Expression::StaticMemberExpression(member))
                if PROMISE_MEMBERS.contains(&member.property.name.as_str()) =>
            {
                self.dropped(&member.object);
            }
            _ => {}
        }
    }

    fn always_true(&mut self, tested: &Expression<'a>) {
        if let Some(Value::Promise(function)) = self.flow.value(tested) {
            self.not_awaited(function, tested.span(), "which is always true");
        }
    }

    fn not_awaited(&mut self, function: &Function, at: Span, but: &str) {
        let message = format!("{}(…) gives a promise, {but}", function.name);
        self.findings.warning(at.start, NOT_AWAITED, message, "await it first: (await …)");
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Use {
    Read,
    Called,
    Written,
    Target,
}
