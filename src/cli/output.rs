//! Printing: lines, tables, colours, JSON. Colours are written always and taken away by the stream where there is no
//! terminal, or `NO_COLOR` is set.
//!
//! What a handler, a model or a file said is text: control characters in it are shown, never obeyed.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use owo_colors::{OwoColorize, Style};
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::fire::{Problem, RunStatus, Severity};

/// Prints one line on stdout.
///
/// # Errors
/// A closed pipe, mostly.
pub fn line(text: impl Display) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints text on stdout as it is.
///
/// # Errors
/// As [`fn@line`].
pub fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// From now on, what is said on stderr is JSON too: `{"note": {"message"}}`, `{"warning": {"message"}}`. Set once, when
/// the command line is read.
pub fn speak_json() {
    SPEAKS_JSON.store(true, Ordering::Relaxed);
}

static SPEAKS_JSON: AtomicBool = AtomicBool::new(false);

/// Says something on stderr, beside the result.
pub fn note(text: impl Display) {
    if !say_json("note", &text) {
        say(text);
    }
}

pub fn warn(message: impl Display) {
    if !say_json("warning", &message) {
        say(format_args!("{} {message}", "warning:".style(WARN)));
    }
}

fn say_json(kind: &str, message: &impl Display) -> bool {
    let speaks = SPEAKS_JSON.load(Ordering::Relaxed);
    if speaks {
        say(said_json(kind, &message.to_string()));
    }
    speaks
}

fn said_json(kind: &str, message: &str) -> serde_json::Value {
    serde_json::json!({ kind: { "message": anstream::adapter::strip_str(message).to_string() } })
}

fn say(text: impl Display) {
    // With stderr closed there is nobody to tell.
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Prints one JSON document.
///
/// # Errors
/// As [`fn@line`].
pub fn document(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::failed("json", error.to_string()))?;
    Ok(text(&json)?)
}

/// Prints one line of JSON, as part of a stream.
///
/// # Errors
/// As [`fn@line`].
pub fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value).map_err(|error| Failure::failed("json", error.to_string()))?;
    Ok(text(&json)?)
}

/// Says on stderr why the command failed.
pub fn report(failure: &Failure, json: bool) {
    if json {
        say(failure.to_json());
        return;
    }
    say(format_args!("{} {}", "error:".style(BAD), shown_lines(&failure.message)));
    if let Some(hint) = &failure.hint {
        say(format_args!("  {} {}", "hint:".style(HINT), shown_lines(hint)));
    }
}

pub const BAD: Style = Style::new().red().bold();
pub const WARN: Style = Style::new().yellow().bold();
pub const GOOD: Style = Style::new().green();
pub const DIM: Style = Style::new().dimmed();
pub const HINT: Style = Style::new().cyan();
pub const STRONG: Style = Style::new().bold();
pub const PLAIN: Style = Style::new();

pub fn status_style(status: RunStatus) -> Style {
    match status {
        RunStatus::Ok => GOOD,
        RunStatus::Error => BAD,
        RunStatus::Cancelled => WARN,
        RunStatus::Queued | RunStatus::Running => HINT,
        RunStatus::Skipped => DIM,
    }
}

/// Foreign text on one line: control characters, line breaks and what turns the writing direction are escaped.
pub fn shown(text: &str) -> Cow<'_, str> {
    escape(text, is_unshowable)
}

/// As [`shown`], with line breaks and tabs left in.
pub fn shown_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unshowable(c) && !matches!(c, '\n' | '\t'))
}

fn escape(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !hidden(c) => out.push(c),
            // A line break from another system is no news.
            '\r' => {}
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => {
                // Writing to a string cannot fail.
                let _ = write!(out, "{}", c.escape_unicode());
            }
        }
    }
    Cow::Owned(out)
}

fn is_unshowable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// At most `chars` characters of a text on one line.
pub fn shortened(text: &str, chars: usize) -> String {
    let shown = shown(text);
    match shown.char_indices().nth(chars) {
        None => shown.into_owned(),
        Some(_) => {
            let cut = shown.char_indices().nth(chars.saturating_sub(1)).map_or(0, |(at, _)| at);
            format!("{}…", &shown[..cut])
        }
    }
}

/// `1 run`, `2 runs`.
pub fn count(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// A cell: its text, and how it is coloured.
#[derive(Debug, Clone)]
pub struct Cell(String, Style);

impl Cell {
    pub fn new(text: &str, style: Style) -> Self {
        Self(shown(text).into_owned(), style)
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text.as_ref(), PLAIN)
    }
}

/// Columns under a heading, two blanks apart; the last column is as long as it likes.
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(heading: &[&'static str]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub fn print(&self) -> io::Result<()> {
        self.lines().into_iter().try_for_each(line)
    }

    pub fn lines(&self) -> Vec<String> {
        let heading: Vec<Cell> = self.heading.iter().map(|text| Cell((*text).to_owned(), DIM)).collect();
        let rows: Vec<&Vec<Cell>> = std::iter::once(&heading).chain(&self.rows).collect();
        let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| columns(&c.0)).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.heading.len()).map(width).collect();
        rows.iter().map(|row| row_line(row, &widths)).collect()
    }
}

fn row_line(row: &[Cell], widths: &[usize]) -> String {
    // What is empty at the end of a row needs no blanks before it.
    let used = row.iter().rposition(|cell| !cell.0.is_empty()).map_or(0, |at| at + 1);
    let mut line = String::new();
    for (at, (Cell(text, style), width)) in row[..used].iter().zip(widths).enumerate() {
        let _ = write!(line, "{}", text.style(*style));
        if at + 1 < used {
            let blanks = width + 2 - columns(text);
            line.extend(std::iter::repeat_n(' ', blanks));
        }
    }
    line
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// A problem, with its hint below it.
///
/// # Errors
/// As [`fn@line`].
pub fn problem(problem: &Problem, indent: &str) -> io::Result<()> {
    let style = match problem.severity {
        Severity::Error => BAD,
        Severity::Warning => WARN,
    };
    let mut place = problem.path.clone().unwrap_or_default();
    if let (Some(line), Some(column)) = (problem.line, problem.column) {
        let _ = write!(place, ":{line}:{column}");
    }
    if !place.is_empty() {
        place.push_str(": ");
    }
    let kind = format!("{}[{}]", problem.severity, problem.code);
    // Most messages begin with the field's name already.
    let said = problem.field.is_empty() || problem.message.starts_with(&problem.field);
    let field = if said { String::new() } else { format!("{}: ", problem.field) };
    line(format_args!(
        "{indent}{}{}: {}{}",
        shown(&place),
        kind.style(style),
        shown(&field),
        shown_lines(&problem.message)
    ))?;
    if let Some(hint) = &problem.hint {
        line(format_args!("{indent}  {} {}", "hint:".style(HINT), shown_lines(hint)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(lines: &[String]) -> Vec<String> {
        lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect()
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&["NAME", "STATE", "LAST"]);
        table.row(vec!["a".into(), Cell::new("enabled", GOOD), "ok".into()]);
        table.row(vec!["longer/ä".into(), Cell::new("off", DIM), "".into()]);
        assert_eq!(plain(&table.lines()), ["NAME      STATE    LAST", "a         enabled  ok", "longer/ä  off"]);
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\nc\td"), "a\\u{1b}[2Jb\\nc\\td");
        assert_eq!(shown_lines("one\r\n\ttwo\u{7}"), "one\n\ttwo\\u{7}");
        assert_eq!(shown("\u{202e}gnp.exe"), "\\u{202e}gnp.exe");
        assert!(matches!(shown("plain ä ✓"), Cow::Borrowed(_)));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        for (text, chars, cut) in [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("ääää", 2, "ä…"), ("", 3, "")] {
            assert_eq!(shortened(text, chars), cut);
        }
        assert_eq!((count(1, "run"), count(0, "run")), ("1 run".to_owned(), "0 runs".to_owned()));
    }
}
