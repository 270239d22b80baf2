//! Where the objects of the contract go in one handler: which variable, which expression holds which of them.
//!
//! A variable is known when it is written once, and the value there is known. A parameter of a function of the
//! handler's own is known when every call of the function is seen ([`super::functions`]), and all give the same.
//! Facts only grow, round by round, until nothing is new.

use std::collections::{HashMap, HashSet};

use oxc_ast::AstKind;
use oxc_ast::ast::{
    Argument, AssignmentTarget, BindingPattern, CallExpression, ChainElement, Expression, ObjectExpression,
    ObjectPattern, ObjectPropertyKind, PropertyKind,
};
use oxc_semantic::{AstNode, NodeId, Semantic, SymbolId};
use oxc_span::{GetSpan, Span};
use oxc_syntax::operator::{AssignmentOperator, LogicalOperator};

use super::Contract;
use super::export::Handler;
use super::functions::{self, Followed};
use super::shapes::{self, Kind, Outcome, TX, UNKNOWN_ARGUMENT, Value};

/// Rounds after which facts may stay unknown: each carries them one function further.
const MAX_ROUNDS: usize = 20;

/// Links of one chain of members and calls that are followed.
const MAX_LINKS: usize = 30;

/// Choices and calls that are looked at for the texts of one expression.
const MAX_TEXT_STEPS: usize = 200;

pub struct Flow<'s, 'a> {
    pub semantic: &'s Semantic<'a>,
    values: HashMap<SymbolId, Value>,
    /// Variables that hold one text for ever.
    texts: HashMap<SymbolId, &'a str>,
    /// Variables that are declared without a value, and the one that they get.
    late: Vec<(SymbolId, &'a Expression<'a>)>,
    /// What the parameters of the handler's own functions are given, by each call that gives something.
    given: HashMap<SymbolId, Vec<&'a Expression<'a>>>,
    /// The parameters of the default export, by which it is known.
    pub handler: Option<Span>,
    /// What is taken apart by which pattern.
    pub taken_apart: Vec<(&'a BindingPattern<'a>, Value)>,
    /// Some statement writes to `….ctx` or the like, so the argument of the handler may not be what it was.
    arguments_change: bool,
}

struct TextSearch<'a> {
    found: Vec<(Span, &'a str)>,
    /// Parameters whose calls were looked at.
    entered: HashSet<SymbolId>,
    steps: usize,
}

/// What one call tells of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Value(Value),
    /// It hands on what it was given itself.
    Same,
}

type Bound = HashMap<SymbolId, Told>;

impl<'s, 'a> Flow<'s, 'a> {
    pub fn of(semantic: &'s Semantic<'a>, handler: Option<Handler<'a>>, contract: Contract) -> Self {
        let mut flow = Self {
            semantic,
            handler: handler.map(|handler| handler.parameters.span),
            values: HashMap::new(),
            texts: HashMap::new(),
            given: HashMap::new(),
            late: Vec::new(),
            taken_apart: Vec::new(),
            arguments_change: false,
        };
        let functions = functions::followed(semantic);
        flow.gather(contract, &functions);
        for _ in 0..MAX_ROUNDS {
            let known = flow.values.len();
            flow.taken_apart.clear();
            flow.round(handler, contract, &functions);
            if flow.values.len() == known {
                break;
            }
        }
        flow
    }

    /// What an expression holds, when that is an object of the contract.
    pub fn value(&self, expression: &Expression<'a>) -> Option<Value> {
        self.value_within(expression, MAX_LINKS)
    }

    fn value_within(&self, expression: &Expression<'a>, links: usize) -> Option<Value> {
        let links = links.checked_sub(1)?;
        match expression {
            Expression::Identifier(identifier) => {
                self.values.get(&self.symbol(identifier.reference_id.get()?)?).copied()
            }
            Expression::StaticMemberExpression(member) => {
                self.member(self.value_within(&member.object, links)?, member.property.name.as_str())
            }
            Expression::ComputedMemberExpression(member) => {
                self.member(self.value_within(&member.object, links)?, self.text(&member.expression)?)
            }
            Expression::CallExpression(call) => self.called(call, links),
            Expression::ChainExpression(chain) => match &chain.expression {
                ChainElement::CallExpression(call) => self.called(call, links),
                ChainElement::StaticMemberExpression(member) => {
                    self.member(self.value_within(&member.object, links)?, member.property.name.as_str())
                }
                _ => None,
            },
            // What the contract gives is never null.
            Expression::LogicalExpression(either) if either.operator != LogicalOperator::And => {
                self.value_within(&either.left, links).filter(|value| *value != Value::Other)
            }
            _ => None,
        }
    }

    fn called(&self, call: &CallExpression<'a>, links: usize) -> Option<Value> {
        match self.value_within(&call.callee, links)? {
            Value::Function(function) => function.result(),
            _ => None,
        }
    }

    fn member(&self, of: Value, name: &str) -> Option<Value> {
        match of {
            Value::Object(shape) if self.arguments_change && !shape.is_closed && shape.code == UNKNOWN_ARGUMENT => None,
            Value::Object(shape) => shape.member(name),
            _ => None,
        }
    }

    /// The text that an expression stands for, when it is written down.
    pub fn text(&self, expression: &Expression<'a>) -> Option<&'a str> {
        match expression {
            Expression::StringLiteral(literal) => Some(literal.value.as_str()),
            Expression::TemplateLiteral(template) => template.single_quasi().map(|text| text.as_str()),
            Expression::Identifier(identifier) => {
                self.texts.get(&self.symbol(identifier.reference_id.get()?)?).copied()
            }
            _ => None,
        }
    }

    /// All texts that an expression may stand for, with the places where they are written: both sides of a choice, and
    /// what calls give to a parameter. Others that it may stand for besides are not seen.
    pub fn texts(&self, expression: &Expression<'a>) -> Vec<(Span, &'a str)> {
        let mut search = TextSearch { found: Vec::new(), entered: HashSet::new(), steps: MAX_TEXT_STEPS };
        self.search_texts(expression, &mut search);
        search.found
    }

    fn search_texts(&self, expression: &Expression<'a>, search: &mut TextSearch<'a>) {
        let Some(left) = search.steps.checked_sub(1) else { return };
        search.steps = left;
        if let Some(text) = self.text(expression) {
            search.found.push((expression.span(), text));
            return;
        }
        match expression {
            Expression::ConditionalExpression(choice) => {
                self.search_texts(&choice.consequent, search);
                self.search_texts(&choice.alternate, search);
            }
            Expression::LogicalExpression(either) => self.search_texts(&either.right, search),
            Expression::Identifier(name) => {
                let symbol = name.reference_id.get().and_then(|reference| self.symbol(reference));
                let Some(symbol) = symbol.filter(|symbol| search.entered.insert(*symbol)) else { return };
                let given = self.given.get(&symbol).into_iter().flatten();
                given.take(MAX_TEXT_STEPS).for_each(|given| self.search_texts(given, search));
            }
            _ => {}
        }
    }

    /// The text of the argument `name` of an object literal, when nothing after it may change it.
    pub fn text_member(&self, object: &ObjectExpression<'a>, name: &str) -> Option<&'a str> {
        let mut text = None;
        for property in &object.properties {
            match property {
                ObjectPropertyKind::SpreadProperty(_) => text = None,
                ObjectPropertyKind::ObjectProperty(property) => match property.key.static_name() {
                    Some(key) if key == name => text = self.text(&property.value),
                    Some(_) => {}
                    None => text = None,
                },
            }
        }
        text
    }

    pub fn symbol(&self, reference: oxc_semantic::ReferenceId) -> Option<SymbolId> {
        self.semantic.scoping().get_reference(reference).symbol_id()
    }

    /// Where a variable is read.
    pub fn uses(&self, symbol: SymbolId) -> impl Iterator<Item = &AstNode<'a>> {
        functions::uses(self.semantic, symbol)
    }

    pub fn parent(&self, node: NodeId) -> AstKind<'a> {
        self.semantic.nodes().parent_kind(node)
    }

    pub fn is_constant(&self, symbol: SymbolId) -> bool {
        functions::is_constant(self.semantic, symbol)
    }

    /// Texts, what parameters are given, and whether arguments change.
    fn gather(&mut self, contract: Contract, functions: &[Followed<'a>]) {
        let given = shapes::arguments(contract).names();
        let mut assigned: HashSet<SymbolId> = HashSet::new();
        for node in self.semantic.nodes().iter() {
            match node.kind() {
                AstKind::VariableDeclarator(declarator) => {
                    let BindingPattern::BindingIdentifier(name) = &declarator.id else { continue };
                    let (Some(symbol), Some(init)) = (name.symbol_id.get(), &declarator.init) else { continue };
                    let text = match init {
                        Expression::StringLiteral(literal) => Some(literal.value.as_str()),
                        Expression::TemplateLiteral(template) => template.single_quasi().map(|text| text.as_str()),
                        _ => None,
                    };
                    if let Some(text) = text.filter(|_| self.is_constant(symbol)) {
                        self.texts.insert(symbol, text);
                    }
                }
                AstKind::AssignmentExpression(assignment) => match &assignment.left {
                    AssignmentTarget::StaticMemberExpression(member) => {
                        self.arguments_change |= given.contains(&member.property.name.as_str());
                    }
                    AssignmentTarget::AssignmentTargetIdentifier(name) => {
                        let symbol = name.reference_id.get().and_then(|reference| self.symbol(reference));
                        if assignment.operator == AssignmentOperator::Assign
                            && let Some(symbol) = symbol.filter(|symbol| assigned.insert(*symbol))
                            && self.is_constant(symbol)
                        {
                            self.late.push((symbol, &assignment.right));
                        }
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        for function in functions {
            for (index, parameter) in function.parameters.items.iter().enumerate() {
                let BindingPattern::BindingIdentifier(name) = &parameter.pattern else { continue };
                let symbol = name.symbol_id.get().filter(|symbol| self.is_constant(*symbol));
                if let Some(symbol) = symbol {
                    let given = function.calls.iter().filter_map(|call| argument(call, index)).collect();
                    self.given.insert(symbol, given);
                }
            }
        }
    }

    fn round(&mut self, handler: Option<Handler<'a>>, contract: Contract, functions: &[Followed<'a>]) {
        if let Some(first) = handler.and_then(|handler| handler.parameters.items.first()) {
            let mut bound = Bound::new();
            self.bind(&first.pattern, Value::Object(shapes::arguments(contract)), &mut bound);
            self.keep(bound);
        }
        let semantic = self.semantic;
        for node in semantic.nodes().iter() {
            match node.kind() {
                AstKind::VariableDeclarator(declarator) => {
                    if let Some(init) = &declarator.init {
                        let mut bound = Bound::new();
                        self.bind_expression(&declarator.id, init, &mut bound);
                        self.keep(bound);
                    }
                }
                AstKind::CallExpression(call) => self.enter_transaction(call),
                _ => {}
            }
        }
        for index in 0..self.late.len() {
            let (symbol, given) = self.late[index];
            if let Some(value) = self.value(given) {
                self.values.entry(symbol).or_insert(value);
            }
        }
        for function in functions {
            self.enter(function);
        }
    }

    /// `db.transaction(async (tx) => …)`
    fn enter_transaction(&mut self, call: &'a CallExpression<'a>) {
        let parameters = match call.arguments.first() {
            Some(Argument::ArrowFunctionExpression(arrow)) => &arrow.params,
            Some(Argument::FunctionExpression(function)) if function.id.is_none() => &function.params,
            _ => return,
        };
        let is_transaction = matches!(
            self.value(&call.callee),
            Some(Value::Function(function)) if function.kind == Kind::Transaction
        );
        if let Some(first) = parameters.items.first().filter(|_| is_transaction) {
            let mut bound = Bound::new();
            self.bind(&first.pattern, Value::Object(&TX), &mut bound);
            self.keep(bound);
        }
    }

    fn enter(&mut self, function: &Followed<'a>) {
        for (index, parameter) in function.parameters.items.iter().enumerate() {
            let mut agreed: Option<Bound> = None;
            for call in &function.calls {
                let mut bound = Bound::new();
                if let Some(given) = argument(call, index) {
                    self.bind_expression(&parameter.pattern, given, &mut bound);
                }
                agreed = Some(match agreed {
                    None => bound,
                    Some(known) => both(&known, &bound),
                });
            }
            self.keep(agreed.unwrap_or_default());
        }
    }

    fn keep(&mut self, bound: Bound) {
        for (symbol, told) in bound {
            if let Told::Value(value) = told {
                self.values.entry(symbol).or_insert(value);
            }
        }
    }

    fn bind_expression(&mut self, pattern: &'a BindingPattern<'a>, given: &Expression<'a>, bound: &mut Bound) {
        match (pattern, given) {
            (BindingPattern::AssignmentPattern(with_default), _) if self.value(given).is_some() => {
                self.bind_expression(&with_default.left, given, bound);
            }
            (BindingPattern::ObjectPattern(pattern), Expression::ObjectExpression(object)) => {
                self.bind_members(pattern, object, bound);
            }
            (BindingPattern::BindingIdentifier(name), Expression::Identifier(identifier))
                if name.symbol_id.get().is_some()
                    && identifier.reference_id.get().and_then(|it| self.symbol(it)) == name.symbol_id.get() =>
            {
                bound.extend(name.symbol_id.get().map(|symbol| (symbol, Told::Same)));
            }
            _ => {
                if let Some(value) = self.value(given) {
                    self.bind(pattern, value, bound);
                }
            }
        }
    }

    /// `({ ctx, n: count })` given `{ ctx, n: 5 }`, member by member.
    fn bind_members(&mut self, pattern: &'a ObjectPattern<'a>, object: &ObjectExpression<'a>, bound: &mut Bound) {
        let mut members: HashMap<String, &Expression<'a>> = HashMap::new();
        for property in &object.properties {
            let ObjectPropertyKind::ObjectProperty(property) = property else { return };
            match property.key.static_name() {
                Some(name) if property.kind == PropertyKind::Init && name != "__proto__" => {
                    members.insert(name.into_owned(), &property.value);
                }
                _ => return,
            }
        }
        for property in &pattern.properties {
            if let Some(given) = property.key.static_name().and_then(|name| members.get(&*name)) {
                self.bind_expression(&property.value, given, bound);
            }
        }
    }

    fn bind(&mut self, pattern: &'a BindingPattern<'a>, value: Value, bound: &mut Bound) {
        match pattern {
            BindingPattern::BindingIdentifier(name) => {
                if let Some(symbol) = name.symbol_id.get().filter(|symbol| self.is_constant(*symbol)) {
                    bound.insert(symbol, Told::Value(value));
                }
            }
            // The value is there, so the default is not used.
            BindingPattern::AssignmentPattern(with_default) if value != Value::Other => {
                self.bind(&with_default.left, value, bound);
            }
            BindingPattern::ObjectPattern(object) => {
                self.taken_apart.push((pattern, value));
                for property in &object.properties {
                    let member = match value {
                        Value::Object(shape) => property.key.static_name().and_then(|name| shape.member(&name)),
                        _ => None,
                    };
                    if let Some(member) = member {
                        self.bind(&property.value, member, bound);
                    }
                }
            }
            BindingPattern::ArrayPattern(_) => self.taken_apart.push((pattern, value)),
            BindingPattern::AssignmentPattern(_) => {}
        }
    }
}

/// What a call gives in this place, when nothing spread before it may shift it.
fn argument<'a>(call: &'a CallExpression<'a>, index: usize) -> Option<&'a Expression<'a>> {
    let mut before = call.arguments.iter().take(index + 1);
    if before.any(Argument::is_spread) { None } else { call.arguments.get(index)?.as_expression() }
}

/// What two calls agree on.
fn both(one: &Bound, other: &Bound) -> Bound {
    let mut agreed = Bound::new();
    for (symbol, told) in one {
        match (told, other.get(symbol)) {
            (Told::Same, Some(told)) | (told, Some(Told::Same)) => {
                agreed.insert(*symbol, *told);
            }
            (told, Some(also)) if told == also => {
                agreed.insert(*symbol, *told);
            }
            _ => {}
        }
    }
    agreed
}

/// Whether a promise is lost when nobody awaits it.
pub fn is_cancelled(value: Value) -> bool {
    matches!(value, Value::Promise(function) if function.result == Outcome::Cancelled)
}
