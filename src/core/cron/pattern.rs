//! The grammar of the five fields as regular expressions, for editors and for models: the same table, in other words.
//!
//! They are written for ECMA-262 and for Rust's `regex` alike: without looking ahead or back. Together they refuse all
//! that [`super::CronSchedule::parse`] refuses, but for expressions that can never match.

use super::parse::{FIELDS, Field, SUNDAY};

const BLANK: &str = "[ \\t]";
const STEP: &str = "(?:/0*[1-9][0-9]*)?";

/// What five fields look like, whole: numbers in their ranges, names, lists, steps.
pub(super) fn five_fields() -> String {
    let fields: Vec<String> = FIELDS.iter().map(list).collect();
    format!("^{BLANK}*{}{BLANK}*$", fields.join(&format!("{BLANK}+")))
}

/// What a field has in it that holds a range which ends before it begins: one pattern for each field.
pub(super) fn reversed_ranges() -> Vec<String> {
    let field = |(before, field): (usize, &Field)| {
        // Sunday closes a week under its name, whatever begins it.
        let named = if field.highest == SUNDAY { field.lowest + 1 } else { field.lowest };
        let range = |first: u32| {
            format!("{}-{}", value(field, first, first, first), value(field, field.lowest, first - 1, named))
        };
        let ranges: Vec<String> = (field.lowest + 1..=field.highest).map(range).collect();
        format!("^{BLANK}*(?:[^ \\t]+{BLANK}+){{{before}}}(?:[^ \\t]*,)?(?:{})(?:[,/ \\t]|$)", ranges.join("|"))
    };
    FIELDS.iter().enumerate().map(field).collect()
}

fn list(field: &Field) -> String {
    let any = value(field, field.lowest, field.highest, field.lowest);
    let item = format!("(?:[*?]{STEP}|{any}(?:-{any}{STEP})?)");
    format!("{item}(?:,{item})*")
}

/// The numbers from `from` to `until`, and their names from `named` on.
fn value(field: &Field, from: u32, until: u32, named: u32) -> String {
    let name_of = |value: u32| field.names.get((value - field.lowest) as usize);
    let names = (named..=until).filter_map(name_of).map(|name| in_any_case(name));
    let words: Vec<String> = std::iter::once(format!("0*{}", numbers(from, until))).chain(names).collect();
    format!("(?:{})", words.join("|"))
}

/// Numbers of one or two digits.
fn numbers(from: u32, until: u32) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut at = from;
    while at <= until {
        let tens = at / 10;
        // Whole tens are written together.
        let whole = if at.is_multiple_of(10) && tens > 0 { (until + 1) / 10 } else { 0 };
        let (tens, units, next) = if whole > tens {
            (class(tens, whole - 1), class(0, 9), whole * 10)
        } else {
            let last = until.min(tens * 10 + 9);
            (if tens == 0 { String::new() } else { class(tens, tens) }, class(at % 10, last % 10), last + 1)
        };
        words.push(tens + &units);
        at = next;
    }
    if words.len() == 1 { words.remove(0) } else { format!("(?:{})", words.join("|")) }
}

fn class(from: u32, until: u32) -> String {
    if from == until { from.to_string() } else { format!("[{from}-{until}]") }
}

fn in_any_case(name: &str) -> String {
    name.chars().map(|letter| format!("[{letter}{}]", letter.to_ascii_lowercase())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::json_schema::Schema;

    #[test]
    fn numbers_in_a_range_and_no_others() {
        for (from, until) in [(0, 0), (0, 7), (1, 12), (1, 31), (0, 23), (0, 59), (5, 9), (17, 42), (20, 29), (30, 31)]
        {
            let pattern = json!({ "pattern": format!("^{}$", numbers(from, until)) });
            let schema = Schema::compile(&pattern).unwrap();
            for number in 0..200 {
                assert_eq!(
                    schema.is_valid(&json!(number.to_string())),
                    (from..=until).contains(&number),
                    "{from} {until}"
                );
            }
        }
    }
}
