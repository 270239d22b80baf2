//! Names that are declared nowhere: globals that a handler has, globals that it has not, and slips of the keyboard.

use std::collections::HashSet;

use oxc_ast::AstKind;
use oxc_ast::ast::{AssignmentTarget, Expression, IdentifierName};
use oxc_semantic::Semantic;
use oxc_syntax::operator::{BinaryOperator, UnaryOperator};

use super::Contract;
use super::export::IMPORT_HINT;
use super::guards::is_tested;
use super::shapes::{NO_NETWORK, arguments};
use super::text::Findings;
use crate::core::near_name::nearest;
use crate::fire::ErrorCode;

/// Every global that a handler has; a test compares it with a real one.
pub const GLOBALS: &[&str] = &[
    "AbortController",
    "AbortSignal",
    "AggregateError",
    "Array",
    "ArrayBuffer",
    "AsyncDisposableStack",
    "BigInt",
    "BigInt64Array",
    "BigUint64Array",
    "Boolean",
    "DOMException",
    "DataView",
    "Date",
    "DisposableStack",
    "Error",
    "EvalError",
    "Event",
    "EventTarget",
    "FinalizationRegistry",
    "Float16Array",
    "Float32Array",
    "Float64Array",
    "Function",
    "Infinity",
    "Int16Array",
    "Int32Array",
    "Int8Array",
    "Intl",
    "Iterator",
    "JSON",
    "Map",
    "Math",
    "NaN",
    "Number",
    "Object",
    "Promise",
    "Proxy",
    "RangeError",
    "ReferenceError",
    "Reflect",
    "RegExp",
    "Set",
    "String",
    "SuppressedError",
    "Symbol",
    "SyntaxError",
    "TextDecoder",
    "TextEncoder",
    "TypeError",
    "URIError",
    "URL",
    "URLSearchParams",
    "Uint16Array",
    "Uint32Array",
    "Uint8Array",
    "Uint8ClampedArray",
    "WeakMap",
    "WeakRef",
    "WeakSet",
    "atob",
    "btoa",
    "clearInterval",
    "clearTimeout",
    "console",
    "crypto",
    "decodeURI",
    "decodeURIComponent",
    "encodeURI",
    "encodeURIComponent",
    "escape",
    "eval",
    "globalThis",
    "isFinite",
    "isNaN",
    "parseFloat",
    "parseInt",
    "queueMicrotask",
    "setInterval",
    "setTimeout",
    "structuredClone",
    "undefined",
    "unescape",
];

/// What the language gives without a declaration, though it is no global.
const IMPLIED: &[&str] = &["arguments"];

/// What people expect to be there, and what to write instead.
const ABSENT: &[(&[&str], &str)] = &[
    (
        &["fetch", "XMLHttpRequest", "WebSocket", "EventSource", "axios", "Request", "Response", "Headers", "FormData"],
        NO_NETWORK,
    ),
    (&["require", "module", "exports", "__dirname", "__filename"], IMPORT_HINT),
    (&["process"], "there is no environment; give values by input or keep them in ctx.state"),
    (&["Deno", "Bun", "__bootstrap"], "a handler has `ctx` and the language, and nothing of its host"),
    (&["Buffer"], "use TextEncoder, TextDecoder, atob and btoa"),
    (&["setImmediate"], "use setTimeout(work, 0)"),
    (&["global", "window", "self"], "the global object is `globalThis`"),
    (
        &["document", "localStorage", "sessionStorage", "navigator", "location", "alert"],
        "a handler has no page; what is to last goes into ctx.state",
    ),
    (&["performance"], "use Date.now()"),
    (&["WebAssembly", "SharedArrayBuffer", "Atomics", "Worker"], "a handler is plain JavaScript on one thread"),
    (&["Blob", "File", "ReadableStream"], "use text, arrays and Uint8Array"),
];

pub fn check(semantic: &Semantic<'_>, contract: Contract, findings: &mut Findings<'_>) {
    let nodes = semantic.nodes();
    let mut asked_for: HashSet<&str> = HashSet::new();
    let mut makes_globals = false;
    let mut members: Vec<&IdentifierName<'_>> = Vec::new();
    for node in nodes.iter() {
        match node.kind() {
            AstKind::UnaryExpression(unary) if unary.operator == UnaryOperator::Typeof => {
                if let Expression::Identifier(name) = &unary.argument {
                    asked_for.insert(name.name.as_str());
                }
            }
            AstKind::AssignmentExpression(assignment) => {
                makes_globals |= match &assignment.left {
                    AssignmentTarget::StaticMemberExpression(member) => is_global_this(&member.object),
                    AssignmentTarget::ComputedMemberExpression(member) => is_global_this(&member.object),
                    _ => false,
                };
            }
            AstKind::NewExpression(new) if is_free(semantic, &new.callee, "Function") => {
                compiles(findings, new.span.start);
            }
            // Handed on, anybody may write to it.
            AstKind::CallExpression(call) => {
                if is_free(semantic, &call.callee, "eval") || is_free(semantic, &call.callee, "Function") {
                    compiles(findings, call.span.start);
                }
                let mut arguments = call.arguments.iter().filter_map(|argument| argument.as_expression());
                makes_globals |= arguments.any(is_global_this);
            }
            AstKind::ImportExpression(import) => {
                let message = "import() is not possible: a handler is one module and imports nothing";
                findings.error(import.span.start, ErrorCode::HandlerLoad.as_str(), message, IMPORT_HINT);
            }
            AstKind::BinaryExpression(test) if test.operator == BinaryOperator::In => {
                if let Expression::StringLiteral(name) = &test.left {
                    asked_for.insert(name.value.as_str());
                }
            }
            AstKind::StaticMemberExpression(member) if is_global_this(&member.object) => {
                if is_tested(semantic, node.id(), member.span) {
                    asked_for.insert(member.property.name.as_str());
                } else {
                    members.push(&member.property);
                }
            }
            _ => {}
        }
    }
    for property in members {
        let name = property.name.as_str();
        if let Some(hint) = absent(name).filter(|_| !asked_for.contains(name)) {
            absent_global(findings, property.span.start, name, hint.to_owned());
        }
    }
    for (name, references) in semantic.scoping().root_unresolved_references() {
        let name = name.as_str();
        if GLOBALS.contains(&name) || IMPLIED.contains(&name) || asked_for.contains(name) || makes_globals {
            continue;
        }
        let hint = absent(name).map_or_else(|| unknown_hint(name, contract), str::to_owned);
        for reference in references {
            let node = nodes.get_node(semantic.scoping().get_reference(*reference).node_id());
            if let AstKind::IdentifierReference(identifier) = node.kind() {
                absent_global(findings, identifier.span.start, name, hint.clone());
            }
        }
    }
}

fn compiles(findings: &mut Findings<'_>, offset: u32) {
    let message = "a handler cannot run text as code: eval and Function throw";
    findings.warning(offset, "absent_global", message, "write the code itself");
}

/// Whether it is a name that the handler does not declare.
fn is_free(semantic: &Semantic<'_>, expression: &Expression<'_>, name: &str) -> bool {
    let Expression::Identifier(identifier) = expression else { return false };
    let reference = identifier.reference_id.get().map(|id| semantic.scoping().get_reference(id));
    identifier.name == name && reference.is_some_and(|reference| reference.symbol_id().is_none())
}

fn absent_global(findings: &mut Findings<'_>, offset: u32, name: &str, hint: String) {
    findings.warning(offset, "absent_global", format!("`{name}` does not exist in a handler"), hint);
}

fn absent(name: &str) -> Option<&'static str> {
    ABSENT.iter().find(|(names, _)| names.contains(&name)).map(|(_, hint)| *hint)
}

fn unknown_hint(name: &str, contract: Contract) -> String {
    if arguments(contract).member(name).is_some() {
        return format!("`{name}` is given to the default export; hand it on to the function that uses it");
    }
    match nearest(name, GLOBALS) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "declare it with `const`, or correct its name".to_owned(),
    }
}

fn is_global_this(expression: &Expression<'_>) -> bool {
    matches!(expression, Expression::Identifier(name) if name.name == "globalThis")
}
