//! Finds uses of `ctx` members that do not exist, without running a handler: `ctx.tools(…)` loads well and then fails
//! in the middle of the night.
//!
//! This reads words and signs, not the language. It looks only at `ctx.<name>` and at the two objects below it, and
//! stays silent where `ctx` may be something else, because the handler declares one of its own.

use crate::core::near_name::nearest;
use crate::fire::Problem;
use crate::isolate::CTX_MEMBERS;

/// Objects below `ctx` that refuse unknown members too.
const NESTED: &[(&str, &[&str])] = &[("state", &["get", "set", "delete", "del"]), ("runs", &["last", "list"])];

/// What every object answers to, `ctx` included.
const INHERITED: &[&str] = &[
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "then",
    "toJSON",
    "toLocaleString",
    "toString",
    "valueOf",
];

/// One problem for each use of a member that is not there.
pub fn unknown_members(source: &str) -> Vec<Problem> {
    let tokens = tokens(source);
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
    let declared = (1..tokens.len()).any(|at| {
        tokens[at].text == "ctx"
            && matches!(tokens[at - 1].text, "const" | "let" | "var" | "function" | "class" | "import")
    });
    if declared {
        return Vec::new();
    }
    let member = |at: usize| {
        let dotted = is(at, ".") || is(at, "?.");
        tokens.get(at + 1).filter(|token| dotted && token.is_word)
    };
    let mut problems = Vec::new();
    for at in 0..tokens.len() {
        if tokens[at].text != "ctx" || (at > 0 && matches!(tokens[at - 1].text, "." | "?." | "#")) {
            continue;
        }
        let Some(first) = member(at + 1) else { continue };
        problems.extend(check("ctx", CTX_MEMBERS, first));
        let nested = NESTED.iter().find(|(name, _)| *name == first.text);
        if let Some((name, members)) = nested
            && let Some(second) = member(at + 3)
        {
            problems.extend(check(&format!("ctx.{name}"), members, second));
        }
    }
    problems
}

fn check(owner: &str, members: &[&str], used: &Token<'_>) -> Option<Problem> {
    let name = used.text;
    if members.contains(&name) || INHERITED.contains(&name) {
        return None;
    }
    let hint = match nearest(name, members) {
        Some(near) => format!("did you mean `{owner}.{near}`?"),
        None => format!("{owner} has: {}", members.join(", ")),
    };
    let problem = Problem::error("unknown_ctx_member", "", format!("{owner}.{name} does not exist"));
    Some(problem.with_hint(hint).at(used.line, used.column))
}

/// A word, or a sign. Strings, comments, templates' texts and regular expressions are none.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Token<'s> {
    text: &'s str,
    is_word: bool,
    /// 1-based; columns count characters.
    line: u32,
    column: u32,
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { source, at: 0, line: 1, column: 1, tokens: Vec::new(), braces: Vec::new() };
    lexer.run();
    lexer.tokens
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    column: u32,
    tokens: Vec<Token<'s>>,
    /// For each open brace, whether its end goes on with a template.
    braces: Vec<bool>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        if c == '\n' {
            (self.line, self.column) = (self.line + 1, 1);
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn skip_while(&mut self, matches: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&matches) {
            self.next();
        }
    }

    fn run(&mut self) {
        while let Some(c) = self.peek() {
            let rest = self.rest();
            match c {
                _ if c.is_whitespace() => self.skip_while(char::is_whitespace),
                '/' if rest.starts_with("//") => self.skip_while(|c| c != '\n'),
                '/' if rest.starts_with("/*") => self.comment(),
                '/' if self.regex_may_stand_here() => self.regex(),
                '"' | '\'' => self.string(c),
                '`' => {
                    self.next();
                    self.template();
                }
                _ if is_word_char(c) => self.word(),
                '{' => {
                    self.braces.push(false);
                    self.sign(1);
                }
                '}' => {
                    self.sign(1);
                    if self.braces.pop() == Some(true) {
                        self.template();
                    }
                }
                // `a?.5:b` is a condition, and no member of anything.
                '?' if rest.starts_with("?.") && !rest[2..].starts_with(|c: char| c.is_ascii_digit()) => self.sign(2),
                _ => self.sign(c.len_utf8()),
            }
        }
    }

    fn word(&mut self) {
        let (start, line, column) = (self.at, self.line, self.column);
        self.skip_while(is_word_char);
        self.push(start, line, column, true);
    }

    fn sign(&mut self, bytes: usize) {
        let (start, line, column) = (self.at, self.line, self.column);
        while self.at < start + bytes && self.next().is_some() {}
        self.push(start, line, column, false);
    }

    fn push(&mut self, start: usize, line: u32, column: u32, is_word: bool) {
        self.tokens.push(Token { text: &self.source[start..self.at], is_word, line, column });
    }

    fn comment(&mut self) {
        self.next();
        self.next();
        while !self.rest().is_empty() && !self.rest().starts_with("*/") {
            self.next();
        }
        self.next();
        self.next();
    }

    fn string(&mut self, quote: char) {
        self.next();
        while let Some(c) = self.next() {
            match c {
                '\\' => {
                    self.next();
                }
                // A string that does not end on its line is an error that the compiler tells.
                _ if c == quote || c == '\n' => return,
                _ => {}
            }
        }
    }

    /// From inside a template, to its end or its next expression.
    fn template(&mut self) {
        while let Some(c) = self.next() {
            match c {
                '\\' => {
                    self.next();
                }
                '`' => return,
                '$' if self.peek() == Some('{') => {
                    self.braces.push(true);
                    self.sign(1);
                    return;
                }
                _ => {}
            }
        }
    }

    fn regex(&mut self) {
        self.next();
        let mut in_class = false;
        while let Some(c) = self.next() {
            match c {
                '\\' => {
                    self.next();
                }
                '[' => in_class = true,
                ']' => in_class = false,
                '\n' => return,
                '/' if !in_class => return,
                _ => {}
            }
        }
    }

    /// After a value a slash divides; elsewhere it begins a regular expression.
    fn regex_may_stand_here(&self) -> bool {
        let Some(before) = self.tokens.last() else { return true };
        if before.is_word {
            return matches!(
                before.text,
                "return"
                    | "typeof"
                    | "case"
                    | "in"
                    | "of"
                    | "do"
                    | "else"
                    | "void"
                    | "delete"
                    | "throw"
                    | "new"
                    | "await"
                    | "yield"
            );
        }
        !matches!(before.text, ")" | "]" | "}")
    }
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_not_there_are_found_with_their_place() {
        for (source, found) in [
            ("await ctx.tool('a.b', {})", vec![]),
            ("await ctx.tools('a')", vec!["1:11 ctx.tools did you mean `ctx.tool`?"]),
            (
                "ctx\n  .fetch()",
                vec!["2:4 ctx.fetch ctx has: tool, agent, state, runs, invoke, run, input, abortSignal, log"],
            ),
            ("ctx.state.gett('a')", vec!["1:11 ctx.state.gett did you mean `ctx.state.get`?"]),
            ("ctx?.runs?.list().first", vec![]),
            ("ctx.state.get('a').anything; ctx.run.anything; ctx.input.anything", vec![]),
            ("// ctx.nope\n/* ctx.nope */ 'ctx.nope' + \"ctx.nope\" + /ctx.nope/.source", vec![]),
            ("`ctx.nope ${ `${ctx.nope}` } ctx.nope`", vec!["1:21 ctx.nope ctx has"]),
            ("a = b / ctx.nope / 2", vec!["1:13 ctx.nope ctx has"]),
            ("my.ctx.nope; this.#ctx.nope; ctx.toString(); ctxx.nope", vec![]),
            ("const ctx = canvas.getContext('2d'); ctx.fillRect()", vec![]),
            ("const ä = 'ö'; ctx.nope", vec!["1:20 ctx.nope ctx has"]),
        ] {
            let problems = unknown_members(source);
            assert_eq!(problems.len(), found.len(), "{source}: {problems:?}");
            for (problem, start) in problems.iter().zip(found) {
                let (line, column) = (problem.line.unwrap(), problem.column.unwrap());
                let name = problem.message.trim_end_matches(" does not exist");
                let told = format!("{line}:{column} {name} {}", problem.hint.as_deref().unwrap());
                assert!(told.starts_with(start), "{told}");
            }
        }
    }

    #[test]
    fn the_templates_use_only_what_there_is() {
        for source in [
            include_str!("templates/minimal.js"),
            include_str!("templates/tools.js"),
            include_str!("templates/agent.js"),
            include_str!("templates/invoke.js"),
        ] {
            assert_eq!(unknown_members(source), []);
        }
    }

    #[test]
    fn any_text_comes_to_an_end() {
        for source in ["`${", "/*", "'", "`", "/[", "\\", "}}}`", "ctx.", "ctx?.", "ctx", "💥ctx.💥"] {
            unknown_members(source);
        }
    }
}
