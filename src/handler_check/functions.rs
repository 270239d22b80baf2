//! The handler's own functions that can be followed: those of which every call is seen. What they are given is then
//! what their calls give.
//!
//! Followed are functions with a name that nobody hands on, functions that are called where they are written, and the
//! methods of an object that is only ever asked for one of them to call it.

use oxc_ast::AstKind;
use oxc_ast::ast::{
    BindingPattern, CallExpression, Expression, FormalParameters, Function, ObjectExpression, ObjectPropertyKind,
    PropertyKind,
};
use oxc_semantic::{AstNode, NodeId, Semantic, SymbolId};
use oxc_span::{GetSpan, Span};

/// A function, all of whose uses are calls.
pub struct Followed<'a> {
    pub parameters: &'a FormalParameters<'a>,
    pub calls: Vec<&'a CallExpression<'a>>,
}

/// Written once: where it is declared, or, after a bare `let name;`, in one other place.
pub fn is_constant(semantic: &Semantic<'_>, symbol: SymbolId) -> bool {
    let scoping = semantic.scoping();
    if !scoping.symbol_redeclarations(symbol).is_empty() {
        return false;
    }
    if !scoping.symbol_is_mutated(symbol) {
        return true;
    }
    let declaration = scoping.symbol_declaration(symbol);
    let nodes = semantic.nodes();
    let is_bare = matches!(nodes.kind(declaration), AstKind::VariableDeclarator(declarator)
        if declarator.init.is_none() && matches!(declarator.id, BindingPattern::BindingIdentifier(_)));
    // The head of a loop gives it a value, too.
    let is_looped = matches!(
        nodes.parent_kind(nodes.parent_id(declaration)),
        AstKind::ForOfStatement(_) | AstKind::ForInStatement(_)
    );
    let writes = scoping.get_resolved_references(symbol).filter(|reference| reference.is_write()).take(2);
    is_bare && !is_looped && writes.count() == 1
}

/// Where a variable is read.
pub fn uses<'s, 'a>(
    semantic: &'s Semantic<'a>,
    symbol: SymbolId,
) -> impl Iterator<Item = &'s AstNode<'a>> + use<'s, 'a> {
    let nodes = semantic.nodes();
    semantic.scoping().get_resolved_references(symbol).map(move |reference| nodes.get_node(reference.node_id()))
}

pub fn followed<'a>(semantic: &Semantic<'a>) -> Vec<Followed<'a>> {
    let mut found = Vec::new();
    let mut this: Vec<u32> = semantic
        .nodes()
        .iter()
        .filter_map(|node| match node.kind() {
            AstKind::ThisExpression(this) => Some(this.span.start),
            _ => None,
        })
        .collect();
    this.sort_unstable();
    let has_this = |within: Span| {
        let first = this.partition_point(|at| *at < within.start);
        this.get(first).is_some_and(|at| *at < within.end)
    };
    for node in semantic.nodes().iter() {
        match node.kind() {
            AstKind::VariableDeclarator(declarator) => {
                let BindingPattern::BindingIdentifier(name) = &declarator.id else { continue };
                let (Some(symbol), Some(init)) = (name.symbol_id.get(), &declarator.init) else { continue };
                if !is_constant(semantic, symbol) {
                    continue;
                }
                if let Some(parameters) = parameters(semantic, init) {
                    found.extend(named(semantic, symbol, parameters));
                } else if let Expression::ObjectExpression(object) = init {
                    // Through `this` a method could call its neighbours.
                    if !has_this(object.span) {
                        found.extend(methods(semantic, symbol, object));
                    }
                }
            }
            AstKind::Function(function) if function.is_declaration() => {
                let symbol = function.id.as_ref().and_then(|id| id.symbol_id.get());
                if let Some(symbol) = symbol.filter(|symbol| is_constant(semantic, *symbol)) {
                    found.extend(named(semantic, symbol, &function.params));
                }
            }
            AstKind::CallExpression(call) => {
                if let Some(parameters) = parameters(semantic, &call.callee) {
                    found.push(Followed { parameters, calls: vec![call] });
                }
            }
            _ => {}
        }
    }
    found
}

/// Of a function that is written here.
fn parameters<'a>(semantic: &Semantic<'a>, expression: &'a Expression<'a>) -> Option<&'a FormalParameters<'a>> {
    match expression {
        Expression::ArrowFunctionExpression(arrow) => Some(&arrow.params),
        Expression::FunctionExpression(function) if !calls_itself(semantic, function) => Some(&function.params),
        _ => None,
    }
}

/// By a name of its own.
fn calls_itself(semantic: &Semantic<'_>, function: &Function<'_>) -> bool {
    let own = function.id.as_ref().map(|id| id.symbol_id.get());
    own.is_some_and(|symbol| symbol.is_none_or(|symbol| uses(semantic, symbol).next().is_some()))
}

fn named<'a>(semantic: &Semantic<'a>, symbol: SymbolId, parameters: &'a FormalParameters<'a>) -> Option<Followed<'a>> {
    let calls: Option<Vec<_>> = uses(semantic, symbol).map(|node| call_of(semantic, node.id())).collect();
    Some(Followed { parameters, calls: calls? })
}

/// The methods of an object all of whose uses are `object.method(…)`.
fn methods<'a>(semantic: &Semantic<'a>, symbol: SymbolId, object: &'a ObjectExpression<'a>) -> Vec<Followed<'a>> {
    let mut calls: Vec<(&'a str, &'a CallExpression<'a>)> = Vec::new();
    for node in uses(semantic, symbol) {
        let parent = semantic.nodes().parent_id(node.id());
        let AstKind::StaticMemberExpression(member) = semantic.nodes().kind(parent) else { return Vec::new() };
        match call_of(semantic, parent) {
            Some(call) if member.object.span() == node.kind().span() => {
                calls.push((member.property.name.as_str(), call));
            }
            _ => return Vec::new(),
        }
    }
    let mut found: Vec<(String, Followed<'a>)> = Vec::new();
    for property in &object.properties {
        let ObjectPropertyKind::ObjectProperty(property) = property else { return Vec::new() };
        let Some(name) = property.key.static_name().filter(|_| property.kind == PropertyKind::Init) else {
            return Vec::new();
        };
        if let Some(parameters) = parameters(semantic, &property.value) {
            let calls = calls.iter().filter(|(called, _)| *called == name).map(|(_, call)| *call).collect();
            // The last of one name counts.
            found.retain(|(known, _)| *known != name);
            found.push((name.into_owned(), Followed { parameters, calls }));
        }
    }
    found.into_iter().map(|(_, followed)| followed).collect()
}

/// The call that calls what stands at `node`.
fn call_of<'a>(semantic: &Semantic<'a>, node: NodeId) -> Option<&'a CallExpression<'a>> {
    match semantic.nodes().parent_kind(node) {
        AstKind::CallExpression(call) if call.callee.span() == semantic.nodes().kind(node).span() => Some(call),
        _ => None,
    }
}
