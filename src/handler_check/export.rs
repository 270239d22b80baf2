//! The module itself: its default export, and what it imports.

use oxc_ast::AstKind;
use oxc_ast::ast::{
    BindingPattern, Class, ExportDefaultDeclarationKind, Expression, FormalParameters, Function, IdentifierReference,
    ModuleExportName, Program, Statement,
};
use oxc_semantic::Semantic;
use oxc_span::{GetSpan, Span};

use super::Contract;
use super::shapes::UNKNOWN_ARGUMENT;
use super::text::Findings;
use crate::fire::ErrorCode;

/// The default export, when it is seen to be a function.
#[derive(Debug, Clone, Copy)]
pub struct Handler<'a> {
    pub parameters: &'a FormalParameters<'a>,
}

/// What an expression visibly is, when it is no function.
enum Seen<'a> {
    Function(&'a FormalParameters<'a>),
    /// Calling it only makes an iterator, which nobody asks for anything.
    Generator,
    NoFunction(&'static str),
    Unknown,
}

pub fn check<'a>(semantic: &Semantic<'a>, contract: Contract, findings: &mut Findings<'_>) -> Option<Handler<'a>> {
    let program = semantic.nodes().program();
    static_imports(program, findings);
    let mut named: Option<(Span, String)> = None;
    for statement in &program.body {
        match statement {
            Statement::ExportDefaultDeclaration(export) => {
                let seen = match &export.declaration {
                    // By its own name it may be called with something else.
                    ExportDefaultDeclarationKind::FunctionDeclaration(function)
                        if function.id.as_ref().and_then(|id| id.symbol_id.get()).is_some_and(|symbol| {
                            !semantic.scoping().get_resolved_reference_ids(symbol).is_empty()
                        }) =>
                    {
                        Seen::Unknown
                    }
                    ExportDefaultDeclarationKind::FunctionDeclaration(function) => of_function(function),
                    ExportDefaultDeclarationKind::ClassDeclaration(_) => Seen::NoFunction(A_CLASS),
                    other => match other.as_expression() {
                        Some(expression) => seen(semantic, expression),
                        None => Seen::Unknown,
                    },
                };
                return judged(seen, export.declaration.span(), contract, findings);
            }
            Statement::ExportNamedDeclaration(export) => {
                for specifier in &export.specifiers {
                    if specifier.exported.name() == "default" {
                        let seen = match &specifier.local {
                            ModuleExportName::IdentifierReference(name) => seen_name(semantic, name),
                            _ => Seen::Unknown,
                        };
                        return judged(seen, specifier.local.span(), contract, findings);
                    }
                    named.get_or_insert((specifier.span, specifier.local.name().to_string()));
                }
            }
            // `export { default } from …` is an import, and has been told as one.
            Statement::ExportFromDeclaration(export)
                if export.specifiers.iter().any(|specifier| specifier.exported.name() == "default") =>
            {
                return None;
            }
            Statement::ExportDeclaration(export) => {
                named.get_or_insert((export.span, String::new()));
            }
            _ => {}
        }
    }
    let offset = named.as_ref().map_or(0, |(span, _)| span.start);
    let example = example(contract);
    findings.error(
        offset,
        ErrorCode::NoDefaultExport.as_str(),
        "the module has no default export",
        if named.is_some() {
            format!("a named export is not called; write `{example}`")
        } else {
            format!("write `{example}`")
        },
    );
    None
}

const A_CLASS: &str = "a class, which cannot be called";

fn example(contract: Contract) -> &'static str {
    match contract {
        Contract::Automation => "export default async ({ ctx, log, input }) => { … }",
        Contract::Query => "export default async ({ db, input }) => { … }",
        Contract::Action => "export default async ({ db, body }) => { … }",
    }
}

fn judged<'a>(seen: Seen<'a>, span: Span, contract: Contract, findings: &mut Findings<'_>) -> Option<Handler<'a>> {
    match seen {
        Seen::Function(parameters) => {
            if contract == Contract::Automation {
                surplus(parameters, findings);
            }
            Some(Handler { parameters })
        }
        Seen::Generator => {
            let message = "the default export is a generator: a call of it runs nothing of its body";
            findings.warning(span.start, "never_run", message, format!("write `{}`", example(contract)));
            None
        }
        Seen::Unknown => None,
        Seen::NoFunction(what) => {
            let message = format!("the default export is {what}, and must be a function");
            let hint = format!("write `{}`", example(contract));
            findings.error(span.start, ErrorCode::NoDefaultExport.as_str(), message, hint);
            None
        }
    }
}

/// An automation is given one argument.
fn surplus(parameters: &FormalParameters<'_>, findings: &mut Findings<'_>) {
    let Some(second) = parameters.items.get(1).filter(|second| second.initializer.is_none()) else { return };
    let message = "an automation is given one argument; this one is undefined";
    let hint = format!("write `{}`", example(Contract::Automation));
    findings.warning(second.span.start, UNKNOWN_ARGUMENT, message, hint);
}

fn of_function<'a>(function: &'a Function<'a>) -> Seen<'a> {
    if function.generator { Seen::Generator } else { Seen::Function(&function.params) }
}

fn seen<'a>(semantic: &Semantic<'a>, expression: &'a Expression<'a>) -> Seen<'a> {
    match expression {
        Expression::ArrowFunctionExpression(arrow) => Seen::Function(&arrow.params),
        Expression::FunctionExpression(function) => of_function(function),
        Expression::ClassExpression(_) => Seen::NoFunction(A_CLASS),
        Expression::ObjectExpression(_) => Seen::NoFunction("an object"),
        Expression::ArrayExpression(_) => Seen::NoFunction("an array"),
        Expression::StringLiteral(_) | Expression::TemplateLiteral(_) => Seen::NoFunction("a string"),
        Expression::NumericLiteral(_) => Seen::NoFunction("a number"),
        Expression::BooleanLiteral(_) => Seen::NoFunction("a boolean"),
        Expression::NullLiteral(_) => Seen::NoFunction("null"),
        Expression::RegExpLiteral(_) => Seen::NoFunction("a regular expression"),
        Expression::Identifier(name) => seen_name(semantic, name),
        _ => Seen::Unknown,
    }
}

/// What a name stands for that is written where it is declared, and nowhere else.
fn seen_name<'a>(semantic: &Semantic<'a>, name: &IdentifierReference<'a>) -> Seen<'a> {
    let scoping = semantic.scoping();
    let symbol = name.reference_id.get().and_then(|id| scoping.get_reference(id).symbol_id());
    let Some(symbol) = symbol else { return Seen::Unknown };
    if scoping.symbol_is_mutated(symbol) || !scoping.symbol_redeclarations(symbol).is_empty() {
        return Seen::Unknown;
    }
    // Called by others too, it may be given something else.
    let is_only_exported = scoping.get_resolved_reference_ids(symbol).len() == 1;
    let seen = match semantic.nodes().kind(scoping.symbol_declaration(symbol)) {
        AstKind::Function(function) => of_function(function),
        AstKind::Class(Class { .. }) => return Seen::NoFunction(A_CLASS),
        AstKind::VariableDeclarator(declarator) => match (&declarator.id, &declarator.init) {
            (BindingPattern::BindingIdentifier(_), Some(Expression::Identifier(_)) | None) => Seen::Unknown,
            (BindingPattern::BindingIdentifier(_), Some(init)) => seen(semantic, init),
            _ => Seen::Unknown,
        },
        _ => Seen::Unknown,
    };
    match seen {
        Seen::Function(_) if !is_only_exported => Seen::Unknown,
        seen => seen,
    }
}

fn static_imports(program: &Program<'_>, findings: &mut Findings<'_>) {
    for statement in &program.body {
        let source = match statement {
            Statement::ImportDeclaration(import) => &import.source,
            Statement::ExportAllDeclaration(export) => &export.source,
            Statement::ExportFromDeclaration(export) => &export.source,
            _ => continue,
        };
        let message = format!(
            "import of {:?} is not possible: a handler is one module and imports nothing",
            source.value.as_str()
        );
        findings.error(source.span.start, ErrorCode::HandlerLoad.as_str(), message, IMPORT_HINT);
    }
}

pub const IMPORT_HINT: &str = "write the code into the handler; what it does to the world goes through ctx.tool";
