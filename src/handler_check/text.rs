//! Problems as they are found, and where in the text they stand.

use std::collections::HashSet;

use oxc_diagnostics::OxcDiagnostic;

use super::{Study, ToolCall};
use crate::core::shortened::shortened;
use crate::fire::{ErrorCode, Problem, Severity};

/// Problems that are told of one handler; past it, one more says how many were left out.
const MAX_PROBLEMS: usize = 50;

/// Syntax errors that are told: one wrong sign makes much behind it wrong.
const MAX_SYNTAX_PROBLEMS: usize = 5;

/// Characters of one message, which may repeat the handler's own words.
const MESSAGE_CHARS: usize = 500;

/// Line and column of a byte offset; 1-based, columns count characters.
pub fn place(source: &str, offset: u32) -> (u32, u32) {
    let mut end = (offset as usize).min(source.len());
    while !source.is_char_boundary(end) {
        end -= 1;
    }
    let before = &source[..end];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1);
    (number(before.matches('\n').count()), number(before[line_start..].trim_start_matches('\u{feff}').chars().count()))
}

#[derive(Debug)]
pub struct Findings<'s> {
    source: &'s str,
    /// With their byte offsets.
    found: Vec<(u32, Problem)>,
    /// The same thing seen twice is told once.
    seen: HashSet<(u32, String)>,
    left_out: usize,
    tool_calls: Vec<(u32, ToolCall)>,
    agent_at: Option<u32>,
}

impl<'s> Findings<'s> {
    pub fn new(source: &'s str) -> Self {
        Self { source, found: Vec::new(), seen: HashSet::new(), left_out: 0, tool_calls: Vec::new(), agent_at: None }
    }

    /// `problem` stands at the byte `offset`.
    pub fn add(&mut self, offset: u32, mut problem: Problem) {
        if !self.seen.insert((offset, problem.code.clone())) {
            return;
        }
        let warnings = self.found.iter().filter(|(_, problem)| !problem.is_error()).count();
        let of_kind = if problem.is_error() { self.found.len() - warnings } else { warnings };
        if of_kind >= MAX_PROBLEMS {
            self.left_out += 1;
            return;
        }
        problem.message = shortened(&problem.message, MESSAGE_CHARS);
        self.found.push((offset, problem));
    }

    pub fn error(&mut self, offset: u32, code: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.add(offset, Problem::error(code, "", message).with_hint(hint));
    }

    pub fn warning(&mut self, offset: u32, code: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.add(offset, Problem::warning(code, "", message).with_hint(hint));
    }

    pub fn has_errors(&self) -> bool {
        self.found.iter().any(|(_, problem)| problem.is_error())
    }

    pub fn tool_call(&mut self, offset: u32, name: &str, app: Option<String>) {
        if self.tool_calls.len() < MAX_PROBLEMS && !self.tool_calls.iter().any(|(at, _)| *at == offset) {
            let (line, column) = place(self.source, offset);
            let name = shortened(name, MESSAGE_CHARS);
            self.tool_calls.push((offset, ToolCall { name, app, line, column }));
        }
    }

    pub fn agent_call(&mut self, offset: u32) {
        self.agent_at = Some(self.agent_at.map_or(offset, |known| known.min(offset)));
    }

    pub fn into_study(mut self, is_module: bool) -> Study {
        self.found.sort_by_key(|(offset, _)| *offset);
        self.tool_calls.sort_by_key(|(offset, _)| *offset);
        let source = self.source;
        let placed = |(offset, problem): (u32, Problem)| {
            let (line, column) = place(source, offset);
            problem.at(line, column)
        };
        let mut problems: Vec<Problem> = self.found.into_iter().map(placed).collect();
        if self.left_out > 0 {
            let severity = if problems.iter().any(Problem::is_error) { Severity::Error } else { Severity::Warning };
            let message = format!("the handler has {} more problems", self.left_out);
            problems.push(Problem { severity, ..Problem::error("more_problems", "", message) });
        }
        Study {
            problems,
            is_module,
            tool_calls: self.tool_calls.into_iter().map(|(_, call)| call).collect(),
            agent_at: self.agent_at.map(|offset| place(source, offset)),
        }
    }
}

/// The parser's own words, with their places. `foreign` is the language that the text is good in, if it is any.
pub fn syntax_problems<'d>(
    source: &str,
    errors: impl Iterator<Item = &'d OxcDiagnostic>,
    foreign: Option<&str>,
) -> Vec<Problem> {
    let code = ErrorCode::HandlerLoad.as_str();
    let mut problems: Vec<Problem> = Vec::new();
    for error in errors.take(MAX_SYNTAX_PROBLEMS) {
        let problem = match foreign {
            Some(language) => {
                Problem::error(code, "", format!("this is {language}, and a handler is plain JavaScript")).with_hint(
                    if language == "JSX" {
                        "a handler has no page to show; build text with template strings"
                    } else {
                        "leave the types out, or write them in JSDoc comments: /** @type {import('../ctx').Handler} */"
                    },
                )
            }
            None => {
                let message = format!("SyntaxError: {}", error.message.trim());
                let problem = Problem::error(code, "", shortened(&message, MESSAGE_CHARS));
                match &error.help {
                    Some(help) => problem.with_hint(shortened(help, MESSAGE_CHARS)),
                    None => problem,
                }
            }
        };
        let offset = error.labels.first().map_or(0, |label| label.offset());
        let (line, column) = place(source, offset);
        problems.push(problem.at(line, column));
    }
    if problems.is_empty() {
        problems.push(Problem::error(code, "", "SyntaxError: the text cannot be read as JavaScript").at(1, 1));
    }
    problems
}
