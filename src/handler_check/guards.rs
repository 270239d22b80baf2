//! What a handler asks for before it uses it. It knows then that the thing may not be there, and nothing is said of it.

use std::collections::HashSet;

use oxc_ast::AstKind;
use oxc_ast::ast::{Argument, AssignmentTarget, CallExpression, Expression};
use oxc_semantic::{NodeId, Semantic};
use oxc_span::{GetSpan, Span};
use oxc_syntax::operator::{BinaryOperator, UnaryOperator};

use super::flow::Flow;
use super::shapes::{Shape, UNKNOWN_ARGUMENT, Value};

/// Members that a handler asks for.
pub struct Guards<'a> {
    /// Of whatever object: `'name' in object`, `Object.hasOwn(object, 'name')`.
    named: HashSet<&'a str>,
    /// By the name of the shape, of those whose unknown members are `undefined`: `if (log.debug)`.
    tested: HashSet<(&'static str, &'a str)>,
    /// The handler puts members of its own into its argument.
    argument_grows: bool,
}

impl<'a> Guards<'a> {
    pub fn of(flow: &Flow<'_, 'a>) -> Self {
        let mut guards = Self { named: HashSet::new(), tested: HashSet::new(), argument_grows: false };
        for node in flow.semantic.nodes().iter() {
            match node.kind() {
                AstKind::BinaryExpression(test) if test.operator == BinaryOperator::In => {
                    guards.named.extend(flow.text(&test.left));
                }
                AstKind::CallExpression(call) if asks_for_own(&call.callee) => {
                    let texts = call.arguments.iter().filter_map(Argument::as_expression);
                    guards.named.extend(texts.filter_map(|argument| flow.text(argument)));
                }
                AstKind::CallExpression(call) if is_member_of(&call.callee, "Object") => {
                    let target = call.arguments.first().and_then(Argument::as_expression);
                    guards.argument_grows |= target.is_some_and(|target| is_argument(flow, target));
                }
                AstKind::AssignmentExpression(assignment) => {
                    guards.argument_grows |= match &assignment.left {
                        AssignmentTarget::StaticMemberExpression(member) => is_argument(flow, &member.object),
                        AssignmentTarget::ComputedMemberExpression(member) => is_argument(flow, &member.object),
                        _ => false,
                    };
                }
                AstKind::StaticMemberExpression(member) => {
                    if let Some(Value::Object(shape)) = flow.value(&member.object)
                        && shape.may_be_tested
                        && is_tested(flow.semantic, node.id(), member.span)
                    {
                        guards.tested.insert((shape.name, member.property.name.as_str()));
                    }
                }
                _ => {}
            }
        }
        guards
    }

    pub fn covers(&self, shape: &'static Shape, name: &str) -> bool {
        let is_own = self.argument_grows && shape.code == UNKNOWN_ARGUMENT;
        is_own || self.named.contains(name) || self.tested.contains(&(shape.name, name))
    }
}

fn is_argument<'a>(flow: &Flow<'_, 'a>, expression: &Expression<'a>) -> bool {
    matches!(flow.value(expression), Some(Value::Object(shape)) if shape.code == UNKNOWN_ARGUMENT)
}

fn is_member_of(expression: &Expression<'_>, owner: &str) -> bool {
    matches!(expression, Expression::StaticMemberExpression(member)
        if matches!(&member.object, Expression::Identifier(name) if name.name == owner))
}

/// `Object.hasOwn`, `Reflect.has`, `….hasOwnProperty`, `….hasOwnProperty.call`
fn asks_for_own(callee: &Expression<'_>) -> bool {
    let Expression::StaticMemberExpression(member) = callee else { return false };
    let is_of = |owner: &str| is_member_of(callee, owner);
    match member.property.name.as_str() {
        "hasOwn" => is_of("Object"),
        "has" => is_of("Reflect"),
        "hasOwnProperty" => true,
        "call" => matches!(&member.object, Expression::StaticMemberExpression(owner)
            if owner.property.name == "hasOwnProperty"),
        _ => false,
    }
}

/// Whether what stands at `node` is only looked at to see if it is there: in a condition, behind `typeof`, before `??`,
/// `||`, `?.`.
pub fn is_tested(semantic: &Semantic<'_>, node: NodeId, span: Span) -> bool {
    let nodes = semantic.nodes();
    let (mut node, mut span) = (node, span);
    loop {
        let parent = nodes.parent_id(node);
        match nodes.kind(parent) {
            AstKind::UnaryExpression(unary) => {
                return matches!(unary.operator, UnaryOperator::Typeof | UnaryOperator::LogicalNot);
            }
            AstKind::IfStatement(statement) => return statement.test.span() == span,
            AstKind::ConditionalExpression(conditional) => return conditional.test.span() == span,
            AstKind::LogicalExpression(logical) if logical.left.span() == span => return true,
            // Of a chain of conditions any may decide.
            AstKind::LogicalExpression(logical) => span = logical.span,
            AstKind::StaticMemberExpression(member) => return member.optional && member.object.span() == span,
            AstKind::ComputedMemberExpression(member) => return member.optional && member.object.span() == span,
            AstKind::CallExpression(CallExpression { optional, callee, .. }) => {
                return *optional && callee.span() == span;
            }
            _ => return false,
        }
        node = parent;
    }
}
