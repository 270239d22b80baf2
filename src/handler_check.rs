//! What is wrong with a handler, found by reading it: it is parsed, never run.
//!
//! [`study`] takes the text of one handler and the contract that it is written for, and gives a [`Study`]: problems
//! that the text alone shows, and the calls that the manifest has a say in; `inspect` judges those.
//!
//! Words: a *shape* is an object of the contract (`ctx`, `ctx.state`, `db`) with its members; *flow* is where such an
//! object goes: into variables, out of patterns, into the parameters of the handler's own functions.
//!
//! Invariants: what cannot be decided is not mentioned. An error is something that fails whenever it is reached; a
//! warning is something that most likely was not meant. The same text gives the same study, on every machine.
//!
//! The parser goes down into the text by recursion and has no limit of its own, so a text that nests deep enough ends
//! the process. Handlers come from anybody: [`study`] is called in a host process only, where that costs nothing.

mod callbacks;
mod export;
mod flow;
mod functions;
mod globals;
mod guards;
mod members;
mod options;
mod replay;
mod shapes;
#[cfg(test)]
mod tests;
mod text;

use oxc_allocator::Allocator;
use oxc_parser::{ParseOptions, Parser, ParserReturn};
use oxc_semantic::SemanticBuilder;
use oxc_span::SourceType;
use serde::{Deserialize, Serialize};

pub use globals::GLOBALS;
pub use shapes::members;
pub use text::place;

use crate::fire::Problem;
use text::{Findings, syntax_problems};

/// What the default export is called with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Contract {
    /// `({ ctx, log, input })`
    Automation,
    /// `({ db, log, app, input, query })`
    Query,
    /// `({ db, log, app, body, input })`
    Action,
}

/// What one handler's text shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// In the order of the text, with line and column; without a path.
    pub problems: Vec<Problem>,
    /// The text is a module of the right form: what V8 says of it is worth asking.
    pub is_module: bool,
    /// Calls of tools by a name that stands in the text.
    pub tool_calls: Vec<ToolCall>,
    /// Where `ctx.agent` is called first.
    pub agent_at: Option<(u32, u32)>,
}

/// `ctx.tool('name', { app: 'app', … })`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    pub name: String,
    /// The argument `app`, when it stands in the text too.
    pub app: Option<String>,
    /// Of the name; 1-based, columns count characters.
    pub line: u32,
    pub column: u32,
}

/// Reads one handler. May end the process when the text nests very deep: see the text of this room.
pub fn study(source: &str, contract: Contract) -> Study {
    let arena = Allocator::default();
    let parsed = parse(&arena, source, SourceType::mjs());
    if parsed.panicked || parsed.diagnostics.has_errors() {
        let problems = match foreign_syntax(source) {
            Some(what) => syntax_problems(source, parsed.diagnostics.errors().take(1), Some(what)),
            None => syntax_problems(source, parsed.diagnostics.errors(), None),
        };
        return Study { problems, ..Study::default() };
    }
    let checked = SemanticBuilder::new().with_check_syntax_error(true).with_build_nodes(true).build(&parsed.program);
    if checked.diagnostics.has_errors() {
        let problems = syntax_problems(source, checked.diagnostics.errors(), None);
        return Study { problems, ..Study::default() };
    }
    let semantic = checked.semantic;
    let mut findings = Findings::new(source);
    let handler = export::check(&semantic, contract, &mut findings);
    let is_module = !findings.has_errors();
    let flow = flow::Flow::of(&semantic, handler, contract);
    members::check(&flow, contract, &mut findings);
    options::check(&flow, &mut findings);
    callbacks::check(&flow, &mut findings);
    globals::check(&semantic, contract, &mut findings);
    if contract == Contract::Automation {
        replay::check(&flow, &mut findings);
    }
    findings.into_study(is_module)
}

fn parse<'a>(arena: &'a Allocator, source: &'a str, kind: SourceType) -> ParserReturn<'a> {
    let options = ParseOptions { parse_regular_expression: true, preserve_parens: false, ..ParseOptions::default() };
    Parser::new(arena, source, kind).with_options(options).parse()
}

/// The language of a text that is no JavaScript, when it is good in that language.
fn foreign_syntax(source: &str) -> Option<&'static str> {
    let is_good = |kind| {
        let arena = Allocator::default();
        let parsed = parse(&arena, source, kind);
        !parsed.panicked && !parsed.diagnostics.has_errors()
    };
    if is_good(SourceType::ts()) {
        Some("TypeScript")
    } else if is_good(SourceType::mjs().with_jsx(true)) {
        Some("JSX")
    } else if is_good(SourceType::tsx()) {
        Some("TypeScript with JSX")
    } else {
        None
    }
}
