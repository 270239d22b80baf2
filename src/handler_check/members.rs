//! Uses of the contract's objects: members that are not there, calls of what is no function, promises that nobody
//! awaits, and the calls that the manifest has a say in.

use oxc_ast::AstKind;
use oxc_ast::ast::{
    Argument, AssignmentTarget, AssignmentTargetMaybeDefault, AssignmentTargetProperty, BindingPattern, CallExpression,
    ChainElement, Expression, ObjectAssignmentTarget, ObjectPropertyKind,
};
use oxc_semantic::NodeId;
use oxc_span::{GetSpan, Span};
use oxc_syntax::operator::UnaryOperator;

use super::Contract;
use super::flow::{Flow, is_cancelled};
use super::guards::Guards;
use super::options;
use super::shapes::{ANY_OBJECT, Function, Kind, PROMISE_MEMBERS, Shape, UNKNOWN_ARGUMENT, Value, hint};
use super::text::Findings;
use crate::fire::{AutomationId, Handle, Problem};

const NOT_AWAITED: &str = "not_awaited";

pub fn check<'a>(flow: &Flow<'_, 'a>, contract: Contract, findings: &mut Findings<'_>) {
    let mut checker = Checker { flow, contract, findings, guards: Guards::of(flow) };
    for (pattern, value) in &flow.taken_apart {
        checker.taken_apart(pattern, *value);
    }
    for node in flow.semantic.nodes().iter() {
        checker.node(node.id(), node.kind());
    }
}

struct Checker<'f, 's, 'a, 'x, 't> {
    flow: &'f Flow<'s, 'a>,
    contract: Contract,
    findings: &'x mut Findings<'t>,
    guards: Guards<'a>,
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
            AstKind::LogicalExpression(logical) => self.always_true(&logical.left),
            AstKind::UnaryExpression(unary) if unary.operator == UnaryOperator::LogicalNot => {
                self.always_true(&unary.argument);
            }
            AstKind::IfStatement(statement) => self.always_true(&statement.test),
            AstKind::ConditionalExpression(conditional) => self.always_true(&conditional.test),
            AstKind::WhileStatement(statement) => self.always_true(&statement.test),
            AstKind::DoWhileStatement(statement) => self.always_true(&statement.test),
            AstKind::AssignmentExpression(assignment) => {
                if let AssignmentTarget::ObjectAssignmentTarget(target) = &assignment.left {
                    self.assigned_apart(target, &assignment.right);
                }
            }
            AstKind::BinaryExpression(binary) if binary.operator.is_arithmetic() || binary.operator.is_compare() => {
                self.not_a_value(&binary.left, "and there is nothing to calculate or compare");
                self.not_a_value(&binary.right, "and there is nothing to calculate or compare");
            }
            AstKind::TemplateLiteral(template)
                if !matches!(self.flow.parent(id), AstKind::TaggedTemplateExpression(_)) =>
            {
                template.expressions.iter().for_each(|it| self.not_a_value(it, "which has no text"));
            }
            AstKind::ForOfStatement(statement) => self.not_a_value(&statement.right, "which is no list"),
            AstKind::SpreadElement(spread) => self.not_a_value(&spread.argument, "which has nothing in it"),
            AstKind::ReturnStatement(statement) => {
                if let Some(returned) = &statement.argument {
                    self.returned(id, returned);
                }
            }
            AstKind::ArrowFunctionExpression(arrow) if self.flow.handler == Some(arrow.params.span) => {
                arrow.body.as_expression().into_iter().for_each(|returned| self.result(returned));
            }
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
        if shape.code != UNKNOWN_ARGUMENT {
            let message = format!("{}.{name} cannot be set: {} is read-only", shape.name, shape.name);
            let hint = "what is to last goes into ctx.state.set(key, value), all else into variables";
            self.findings.error(at.start, "read_only", message, hint);
        }
    }

    fn unknown(&mut self, shape: &'static Shape, name: &str, at: Span, is_called: bool) {
        let is_there = shape.member(name).is_some() || ANY_OBJECT.contains(&name) || self.guards.covers(shape, name);
        if is_there {
            return;
        }
        let hint = hint(shape, name);
        if shape.is_closed {
            let message = format!("{}.{name} does not exist", shape.name);
            self.findings.error(at.start, shape.code, message, hint);
        } else if shape.code == UNKNOWN_ARGUMENT {
            let message = format!("`{name}` is no part of {}; it is undefined", shape.name);
            let problem = if is_called { Problem::error } else { Problem::warning };
            self.findings.add(at.start, problem(shape.code, "", message).with_hint(hint));
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

    /// `({ tool, tol } = ctx)`
    fn assigned_apart(&mut self, target: &ObjectAssignmentTarget<'a>, given: &Expression<'a>) {
        let Some(value) = self.flow.value(given) else { return };
        for property in &target.properties {
            let (name, at, has_default) = match property {
                AssignmentTargetProperty::AssignmentTargetPropertyIdentifier(it) => {
                    (Some(it.binding.name.as_str().into()), it.binding.span, it.init.is_some())
                }
                AssignmentTargetProperty::AssignmentTargetPropertyProperty(it) => {
                    let has_default =
                        matches!(it.binding, AssignmentTargetMaybeDefault::AssignmentTargetWithDefault(_));
                    (it.name.static_name(), it.name.span(), has_default)
                }
            };
            match (value, name) {
                (Value::Object(shape), Some(name)) if shape.is_closed || !has_default => {
                    self.unknown(shape, &name, at, false);
                }
                (Value::Promise(function), _) => {
                    self.not_awaited(function, target.span, "which has none of these members");
                }
                _ => {}
            }
        }
    }

    fn call(&mut self, call: &'a CallExpression<'a>) {
        let at = call.callee.span();
        let callee = self.flow.value(&call.callee);
        if let Some(Value::Function(_)) = callee {
            call.arguments.iter().filter_map(Argument::as_expression).for_each(|given| self.crosses(given));
        }
        match callee {
            Some(Value::Object(shape)) if shape.code != UNKNOWN_ARGUMENT => {
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
        let app = match call.arguments.get(1) {
            Some(Argument::ObjectExpression(object)) => self.flow.text_member(object, "app").map(str::to_owned),
            _ => None,
        };
        for (at, name) in self.flow.texts(first) {
            self.findings.tool_call(at.start, name, app.clone());
        }
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

    fn not_a_value(&mut self, expression: &Expression<'a>, but: &str) {
        if let Some(Value::Promise(function)) = self.flow.value(expression) {
            self.not_awaited(function, expression.span(), but);
        }
    }

    /// What leaves the handler as JSON, where a promise becomes `{}`.
    fn crosses(&mut self, expression: &Expression<'a>) {
        match expression {
            Expression::ObjectExpression(object) => {
                for property in &object.properties {
                    if let ObjectPropertyKind::ObjectProperty(property) = property {
                        self.crosses(&property.value);
                    }
                }
            }
            Expression::ArrayExpression(array) => {
                array.elements.iter().filter_map(|element| element.as_expression()).for_each(|it| self.crosses(it));
            }
            _ => self.not_a_value(expression, "which is {} in JSON"),
        }
    }

    /// `return …`, when it is the default export's own.
    fn returned(&mut self, node: NodeId, returned: &Expression<'a>) {
        let around = self.flow.semantic.nodes().ancestor_kinds(node).find_map(|kind| match kind {
            AstKind::Function(function) => Some(function.params.span),
            AstKind::ArrowFunctionExpression(arrow) => Some(arrow.params.span),
            _ => None,
        });
        if around.is_some() && around == self.flow.handler {
            self.result(returned);
        }
    }

    /// A promise in place of the whole is awaited; a promise in it is not.
    fn result(&mut self, returned: &Expression<'a>) {
        if let Expression::ObjectExpression(object) = returned {
            self.crosses(returned);
            if self.contract == Contract::Automation {
                options::check_result(self.findings, object);
            }
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
