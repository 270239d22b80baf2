//! The grammar of the five fields: text to [`Fields`], or the first thing that is wrong with it, with a remedy.
//!
//! Where the contract leaves room, this is read as Vixie cron reads it: `*` may be one item of a list; a step larger
//! than its range picks the first value alone; leading zeros are fine. A range of weekdays may end in Sunday under
//! either name (`5-7`, `FRI-SUN`), but is never read backwards (`FRI-MON` is refused).

use super::fields::{Fields, STAR_DAY, STAR_HOUR, STAR_MINUTE, STAR_MONTH, STAR_WEEKDAY, longest_month};
use super::{CronError, quoted};

pub(super) struct Field {
    name: &'static str,
    pub(super) lowest: u32,
    pub(super) highest: u32,
    /// The names of `lowest`, `lowest + 1` and so on.
    pub(super) names: &'static [&'static str],
    /// Said when a number is out of range.
    note: &'static str,
}

const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// Sunday's other number.
pub(super) const SUNDAY: u32 = 7;

pub(super) const FIELDS: [Field; 5] = [
    Field { name: "minute", lowest: 0, highest: 59, names: &[], note: "`0` is the full hour" },
    Field { name: "hour", lowest: 0, highest: 23, names: &[], note: "`0` is midnight, `12` is noon" },
    Field { name: "day-of-month", lowest: 1, highest: 31, names: &[], note: "days of the month count from `1`" },
    Field { name: "month", lowest: 1, highest: 12, names: MONTHS, note: "`1` is January, `12` is December" },
    Field {
        name: "day-of-week",
        lowest: 0,
        highest: SUNDAY,
        names: WEEKDAYS,
        note: "`0` and `7` are Sunday, `1` is Monday",
    },
];

const ORDER: &str = "minute hour day-of-month month day-of-week";

/// What other crons take in place of five fields.
const MACROS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

pub(super) fn parse_fields(expr: &str) -> Result<Fields, CronError> {
    let words: Vec<&str> = expr.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    match read(&words) {
        Ok(fields) if fields.can_match() => Ok(fields),
        Ok(fields) => Err(never_matches(&fields, &words)),
        Err(error) => Err(CronError { hint: error.hint.filter(|hint| hint.len() <= LONGEST_HINT), ..error }),
    }
}

/// A hint may repeat what was given; one that is longer than this helps nobody.
const LONGEST_HINT: usize = 200;

fn read(words: &[&str]) -> Result<Fields, CronError> {
    let &[minute, hour, day, month, weekday] = words else {
        return Err(wrong_count(words));
    };
    let words = [minute, hour, day, month, weekday];
    let mut bits = [0; 5];
    for ((bits, field), word) in bits.iter_mut().zip(&FIELDS).zip(words) {
        *bits = field.read(word)?;
    }
    let [minutes, hours, days, months, weekdays] = bits;
    let stars = [STAR_MINUTE, STAR_HOUR, STAR_DAY, STAR_MONTH, STAR_WEEKDAY];
    let starred = stars.iter().zip(words).filter(|(_, word)| word.starts_with(['*', '?']));
    Ok(Fields {
        minutes,
        hours: hours as u32,
        days: days as u32,
        months: (months >> 1) as u16,
        weekdays: (weekdays & 0x7f | weekdays >> SUNDAY) as u8,
        stars: starred.fold(0, |stars, (star, _)| stars | star),
    })
}

impl Field {
    /// The values of one field as bits.
    fn read(&self, text: &str) -> Result<u64, CronError> {
        self.check_letters(text)?;
        let mut bits = 0;
        for item in text.split(',') {
            if item.is_empty() {
                let kept: Vec<&str> = text.split(',').filter(|item| !item.is_empty()).collect();
                let hint = (!kept.is_empty()).then(|| format!("`{}`", kept.join(",")));
                return Err(self.refuse(format!("must have no empty list item, got {}", quoted(text)), hint));
            }
            bits |= self.item(item)?;
        }
        Ok(bits)
    }

    fn item(&self, item: &str) -> Result<u64, CronError> {
        let (base, step) = match item.split_once('/') {
            Some((base, step)) => (base, Some(self.step(item, step)?)),
            None => (item, None),
        };
        let (from, until) = if base == "*" || base == "?" {
            (self.lowest, self.highest)
        } else if base.contains(['*', '?']) {
            let hint = format!("`{0}` stands alone, or as `{0}/n`", if base.contains('*') { '*' } else { '?' });
            return Err(self.refuse(format!("cannot read {}", quoted(item)), Some(hint)));
        } else if let Some((from, until)) = base.split_once('-') {
            self.range(item, from, until)?
        } else {
            let value = self.value(base)?;
            if let Some(step) = step {
                return Err(self.step_without_range(item, base, value, step));
            }
            (value, value)
        };
        let step = step.unwrap_or(1).min(self.highest + 1);
        Ok((from..=until).step_by(step as usize).fold(0, |bits, value| bits | 1 << value))
    }

    fn step(&self, item: &str, step: &str) -> Result<u32, CronError> {
        match number(step) {
            Some(0) => Err(self.refuse(
                format!("must have a step of 1 or more, got {}", quoted(item)),
                Some("leave `/0` out, or write `/1`".to_owned()),
            )),
            Some(step) => Ok(step),
            None => Err(self.refuse(
                format!("must have a number after `/`, got {}", quoted(item)),
                Some(format!("`{}` is every second value", if self.lowest == 0 { "*/2" } else { "1-9/2" })),
            )),
        }
    }

    fn range(&self, item: &str, from: &str, until: &str) -> Result<(u32, u32), CronError> {
        if from.is_empty() || until.is_empty() {
            return Err(self.refuse(
                format!("must have a number on both sides of `-`, got {}", quoted(item)),
                Some(format!("`{}-{}` is the whole range", self.lowest, self.highest)),
            ));
        }
        let (first, mut last) = (self.value(from)?, self.value(until)?);
        if first > last && until.eq_ignore_ascii_case(WEEKDAYS[0]) {
            last = SUNDAY;
        }
        if first > last {
            // The same days or times, written as the two ranges that they are; Sunday may close the first of them.
            let hint = match (self.highest, first, last) {
                (SUNDAY, SUNDAY, _) => format!("`0-{last}`"),
                (SUNDAY, _, 0) => format!("`{from}-{SUNDAY}`"),
                (highest, ..) => {
                    let end = if highest == SUNDAY { SUNDAY - 1 } else { highest };
                    format!("`{from}-{},{}-{until}`", self.spelt_like(from, end), self.spelt_like(until, self.lowest))
                }
            };
            return Err(self.refuse(format!("must not have a reversed range, got {}", quoted(item)), Some(hint)));
        }
        Ok((first, last))
    }

    /// `5/15`: some crons start at 5, others fire at 5 alone.
    fn step_without_range(&self, item: &str, base: &str, value: u32, step: u32) -> CronError {
        // The last day of a week that starts on Sunday as 0 is 6; 7 has nothing after it.
        let end = if self.highest == SUNDAY && value < SUNDAY { SUNDAY - 1 } else { self.highest };
        let hint =
            if value == end { format!("`{base}`") } else { format!("`{base}-{}/{step}`", self.spelt_like(base, end)) };
        self.refuse(format!("must have `*` or a range before a step, got {} (ambiguous)", quoted(item)), Some(hint))
    }

    /// A number or a name of this field.
    fn value(&self, text: &str) -> Result<u32, CronError> {
        let Some(value) = number(text).or_else(|| self.named(text)) else {
            return Err(self.not_a_value(text));
        };
        if value < self.lowest || value > self.highest {
            let message = format!("must be {} to {}, got {}", self.lowest, self.highest, quoted(text));
            return Err(self.refuse(message, Some(self.note.to_owned())));
        }
        Ok(value)
    }

    fn named(&self, text: &str) -> Option<u32> {
        let index = self.names.iter().position(|name| name.eq_ignore_ascii_case(text))?;
        Some(self.lowest + index as u32)
    }

    /// `value` as a name where `sample` is one, else as a number.
    fn spelt_like(&self, sample: &str, value: u32) -> String {
        match self.names.get((value - self.lowest) as usize) {
            Some(name) if self.named(sample).is_some() => (*name).to_owned(),
            _ => value.to_string(),
        }
    }

    fn not_a_value(&self, text: &str) -> CronError {
        let upper = text.to_ascii_uppercase();
        let is_quartz = |letter: char| {
            let digits = upper.replacen(letter, "", 1);
            upper.contains(letter)
                && (digits.is_empty() || digits == "W" || self.named(&digits).or(number(&digits)).is_some())
        };
        if is_quartz('L') || is_quartz('W') {
            let hint = "fire on each day that may be meant, and let the handler look at the date";
            return self
                .refuse(format!("`L`, `W` and `#` are not supported, got {}", quoted(text)), Some(hint.to_owned()));
        }
        let other = [("month", MONTHS), ("day-of-week", WEEKDAYS)]
            .into_iter()
            .find(|(field, names)| *field != self.name && names.contains(&upper.as_str()))
            .map(|(field, _)| format!("{} belongs in the {field} field; the order is: {ORDER}", quoted(text)));
        let longer = || self.names.iter().find(|name| upper.starts_with(**name)).map(|name| format!("`{name}`"));
        let rule = if self.names.is_empty() { "a number" } else { "a number or a three-letter name" };
        self.refuse(format!("must be {rule}, got {}", quoted(text)), other.or_else(longer))
    }

    /// Refuses what no item can hold, before the field is taken apart.
    fn check_letters(&self, text: &str) -> Result<(), CronError> {
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "*?,-/".contains(letter);
        let Some(letter) = text.chars().find(|&letter| !allowed(letter)) else {
            return Ok(());
        };
        Err(match letter {
            '#' => self.refuse(
                format!("`L`, `W` and `#` are not supported, got {}", quoted(text)),
                Some("fire on each such weekday, and let the handler look at the date".to_owned()),
            ),
            _ if letter.is_numeric() => self.refuse(
                format!("must be written with ASCII digits, got {}", quoted(text)),
                Some("use the digits `0` to `9`".to_owned()),
            ),
            '\u{2010}'..='\u{2015}' | '\u{2212}' => self.refuse(
                format!("must not hold {letter:?}, got {}", quoted(text)),
                Some("a range is written with an ASCII `-`".to_owned()),
            ),
            _ if letter.is_whitespace() => self.refuse(
                format!("must not hold {letter:?}, got {}", quoted(text)),
                Some("separate the fields with spaces or tabs".to_owned()),
            ),
            _ => self.refuse(format!("must not hold {letter:?}, got {}", quoted(text)), None),
        })
    }

    fn refuse(&self, message: String, hint: Option<String>) -> CronError {
        CronError { field: Some(self.name), message, hint }
    }
}

/// ASCII digits only; numbers too long for the type become its largest, which is out of every range.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u32::MAX))
}

fn wrong_count(words: &[&str]) -> CronError {
    let refuse = |message: String, hint: String| CronError { field: None, message, hint: Some(hint) };
    let readable = |words: &[&str]| (words.len() == 5 && read(words).is_ok()).then(|| words.join(" "));
    match words {
        [] => refuse(
            format!("must have five fields ({ORDER}), got none"),
            "`*/15 * * * *` is every 15 minutes".to_owned(),
        ),
        [first, ..] if first.starts_with('@') => {
            let known = MACROS.iter().find(|(name, _)| name.eq_ignore_ascii_case(first));
            let hint = known.map_or_else(|| format!("the fields are: {ORDER}"), |(_, expr)| format!("`{expr}`"));
            refuse(format!("must have five fields; {} is not supported", quoted(first)), hint)
        }
        [first, rest @ ..] if first.starts_with("TZ=") || first.starts_with("CRON_TZ=") => refuse(
            format!("must have five fields; {} is not supported", quoted(first)),
            readable(rest).map_or_else(
                || "the zone goes into `tz`".to_owned(),
                |rest| format!("the zone goes into `tz`, and `{rest}` remains"),
            ),
        ),
        [_, rest @ ..] if (5..=6).contains(&rest.len()) => {
            let (five, more) = rest.split_at(5);
            let what = if more.is_empty() { "seconds" } else { "seconds and years" };
            refuse(
                format!("must have five fields ({ORDER}), got {}; {what} are not supported", words.len()),
                readable(five).map_or_else(|| format!("the fields are: {ORDER}"), |five| format!("`{five}`")),
            )
        }
        _ => refuse(format!("must have five fields, got {}", words.len()), format!("the fields are: {ORDER}")),
    }
}

fn never_matches(fields: &Fields, words: &[&str]) -> CronError {
    let longest = (1..=12).filter(|month| fields.months >> (month - 1) & 1 == 1).map(longest_month).max().unwrap_or(31);
    let field = |at: usize| quoted(words.get(at).copied().unwrap_or_default());
    CronError {
        field: Some(FIELDS[2].name),
        message: format!("can never match: no month of {} has a day of {}", field(3), field(2)),
        hint: Some(format!("the last day that these months can have is {longest}")),
    }
}
