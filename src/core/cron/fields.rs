//! The five fields as bit sets, and the walk over the calendar of wall-clock minutes they match.
//!
//! A *wall minute* counts minutes from 1970-01-01T00:00 on the wall, as though every day had 1440 of them; zones and
//! daylight saving are not known here. Searches jump by month, day, hour and minute with bit operations, so a leap
//! day decades away costs about as much as the next minute. A mistake here fires on the wrong day.

use std::fmt::Write as _;

pub(super) const MINUTES_PER_DAY: i64 = 24 * 60;

/// The calendar ends with year 9999, the last that RFC 3339 can write, so that a search always ends.
pub(super) const LAST_YEAR: i64 = 9999;

/// Mirror of [`LAST_YEAR`] for searches backwards.
pub(super) const FIRST_YEAR: i64 = 1;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fields {
    /// Bit n is minute n.
    pub minutes: u64,
    /// Bit n is hour n.
    pub hours: u32,
    /// Bit n is day n of the month; bit 0 is never set.
    pub days: u32,
    /// Bit 0 is January.
    pub months: u16,
    /// Bit 0 is Sunday; 7 was folded into it.
    pub weekdays: u8,
    /// Which fields start with `*` or `?`: the `STAR_` bits.
    pub stars: u8,
}

pub(super) const STAR_MINUTE: u8 = 1;
pub(super) const STAR_HOUR: u8 = 1 << 1;
pub(super) const STAR_DAY: u8 = 1 << 2;
pub(super) const STAR_MONTH: u8 = 1 << 3;
pub(super) const STAR_WEEKDAY: u8 = 1 << 4;

impl Fields {
    /// The first matching wall minute at or after `from`.
    pub fn next(&self, from: i64) -> Option<i64> {
        let (day, minute) = (from.div_euclid(MINUTES_PER_DAY), from.rem_euclid(MINUTES_PER_DAY));
        let day = self.next_day(day).map(|found| (found, if found == day { minute } else { 0 }))?;
        let (day, minute) = match self.next_in_day(day.1) {
            Some(minute) => (day.0, minute),
            None => (self.next_day(day.0 + 1)?, self.next_in_day(0)?),
        };
        Some(day * MINUTES_PER_DAY + minute)
    }

    /// The last matching wall minute at or before `until`.
    pub fn prev(&self, until: i64) -> Option<i64> {
        let (day, minute) = (until.div_euclid(MINUTES_PER_DAY), until.rem_euclid(MINUTES_PER_DAY));
        let last = MINUTES_PER_DAY - 1;
        let day = self.prev_day(day).map(|found| (found, if found == day { minute } else { last }))?;
        let (day, minute) = match self.prev_in_day(day.1) {
            Some(minute) => (day.0, minute),
            None => (self.prev_day(day.0 - 1)?, self.prev_in_day(last)?),
        };
        Some(day * MINUTES_PER_DAY + minute)
    }

    /// How many wall minutes match from `from` to `until`, both included; stops at `cap`. Whole months are counted at
    /// once, so the work grows with the months between, never with the matches.
    pub fn count(&self, from: i64, until: i64, cap: u64) -> u64 {
        if from > until {
            return 0;
        }
        let (first, first_minute) = (from.div_euclid(MINUTES_PER_DAY), from.rem_euclid(MINUTES_PER_DAY));
        let (last, last_minute) = (until.div_euclid(MINUTES_PER_DAY), until.rem_euclid(MINUTES_PER_DAY));
        let per_day = self.count_in_day(MINUTES_PER_DAY - 1);
        let mut total = 0;
        if self.day_matches(last) {
            total += self.count_in_day(last_minute);
        }
        // Days from `first` up to, not including, `last`; then what stands before `first_minute` is taken off again.
        total += per_day * self.count_days(first, last, cap);
        if first_minute > 0 && self.day_matches(first) {
            total -= self.count_in_day(first_minute - 1);
        }
        total.min(cap)
    }

    /// Whether any date at all matches. When both day fields must hold, only the day-of-month field can rule every
    /// date out: 400 years hold each date of the year, 29 February included, on each weekday.
    pub fn can_match(&self) -> bool {
        self.either_day_matches()
            || (1..=12)
                .any(|month| self.months >> (month - 1) & 1 == 1 && self.days & day_bits(longest_month(month)) != 0)
    }

    /// Both day fields restricted: then a day needs only one of them.
    fn either_day_matches(&self) -> bool {
        self.stars & (STAR_DAY | STAR_WEEKDAY) == 0
    }

    fn next_in_day(&self, from: i64) -> Option<i64> {
        let (hour, minute) = (from / 60, from % 60);
        let rest = self.minutes >> minute;
        if self.hours >> hour & 1 == 1 && rest != 0 {
            return Some(from + i64::from(rest.trailing_zeros()));
        }
        let later = u64::from(self.hours) >> (hour + 1);
        (later != 0 && self.minutes != 0)
            .then(|| (hour + 1 + i64::from(later.trailing_zeros())) * 60 + i64::from(self.minutes.trailing_zeros()))
    }

    fn prev_in_day(&self, until: i64) -> Option<i64> {
        let (hour, minute) = (until / 60, until % 60);
        if self.hours >> hour & 1 == 1
            && let Some(minute) = highest_bit(self.minutes & up_to(minute))
        {
            return Some(hour * 60 + minute);
        }
        let earlier = highest_bit(u64::from(self.hours) & (up_to(hour) >> 1))?;
        Some(earlier * 60 + highest_bit(self.minutes)?)
    }

    /// Matching minutes of one matching day, up to and including minute `until` of it.
    fn count_in_day(&self, until: i64) -> u64 {
        let (hour, minute) = (until / 60, until % 60);
        let whole = (u64::from(self.hours) & (up_to(hour) >> 1)).count_ones() * self.minutes.count_ones();
        let part = if self.hours >> hour & 1 == 1 { (self.minutes & up_to(minute)).count_ones() } else { 0 };
        u64::from(whole + part)
    }

    fn day_matches(&self, day: i64) -> bool {
        let (month, day_of_month) = month_and_day(day);
        self.days_of(month) >> day_of_month & 1 == 1
    }

    fn next_day(&self, from: i64) -> Option<i64> {
        let (start, day_of_month) = month_and_day(from);
        let mut bits = self.days_of(start) & (u32::MAX << day_of_month);
        let mut month = start;
        while bits == 0 {
            month = self.next_month(month + 1)?;
            bits = self.days_of(month);
        }
        Some(month.first_day() + i64::from(bits.trailing_zeros()) - 1)
    }

    fn prev_day(&self, until: i64) -> Option<i64> {
        let (start, day_of_month) = month_and_day(until);
        let mut bits = self.days_of(start) & day_bits(day_of_month);
        let mut month = start;
        loop {
            if let Some(day_of_month) = highest_bit(u64::from(bits)) {
                return Some(month.first_day() + day_of_month - 1);
            }
            month = self.prev_month(month - 1)?;
            bits = self.days_of(month);
        }
    }

    /// Matching days from `from` up to, not including, `until`; may stop early once `cap` is passed.
    fn count_days(&self, from: i64, until: i64, cap: u64) -> u64 {
        if from >= until {
            return 0;
        }
        let (first, first_day) = month_and_day(from);
        let (last, last_day) = month_and_day(until);
        let mut total = 0;
        let mut month = Some(first);
        while let Some(at) = month.filter(|&at| at <= last) {
            let mut bits = self.days_of(at);
            if at == first {
                bits &= u32::MAX << first_day;
            }
            if at == last {
                bits &= day_bits(last_day - 1);
            }
            total += u64::from(bits.count_ones());
            // One more than the cap: the caller may take a part of the first day off again.
            if total > cap {
                break;
            }
            month = self.next_month(at + 1);
        }
        total
    }

    /// The matching days of one month as bits 1 to 31.
    fn days_of(&self, month: Month) -> u32 {
        if self.months >> month.index() & 1 == 0 {
            return 0;
        }
        let first = month.first_day();
        let length = (month + 1).first_day() - first;
        // 1970-01-01 was a Thursday. Turn the week so that its bit 0 is the weekday of the first, then repeat it.
        let first_weekday = (first + 4).rem_euclid(7) as u32;
        let week = u64::from(self.weekdays);
        let turned = (week >> first_weekday | week << (7 - first_weekday)) & 0x7f;
        let by_weekday = ((turned * EVERY_SEVENTH_BIT) << 1) as u32;
        let days = if self.either_day_matches() { self.days | by_weekday } else { self.days & by_weekday };
        days & day_bits(length)
    }

    fn next_month(&self, from: Month) -> Option<Month> {
        let rest = self.months >> from.index();
        let found = match rest {
            0 => Month::of(from.year() + 1, i64::from(self.months.trailing_zeros())),
            rest => from + i64::from(rest.trailing_zeros()),
        };
        (found.year() <= LAST_YEAR && self.months != 0).then_some(found)
    }

    fn prev_month(&self, from: Month) -> Option<Month> {
        let months = u64::from(self.months);
        let found = match highest_bit(months & up_to(from.index())) {
            Some(index) => Month::of(from.year(), index),
            None => Month::of(from.year() - 1, highest_bit(months)?),
        };
        (found.year() >= FIRST_YEAR).then_some(found)
    }

    /// The fields as text that parses to the same fields: two expressions fire alike when these texts are equal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Sets start at the lowest value of their field: bit 0 of each is that value, named by `lowest`.
        let fields = [
            (self.minutes, 60, 0, STAR_MINUTE),
            (u64::from(self.hours), 24, 0, STAR_HOUR),
            (u64::from(self.days >> 1), 31, 1, STAR_DAY),
            (u64::from(self.months), 12, 1, STAR_MONTH),
            (u64::from(self.weekdays), 7, 0, STAR_WEEKDAY),
        ];
        for (set, size, lowest, star) in fields {
            if !out.is_empty() {
                out.push(' ');
            }
            write_field(&mut out, set, size, lowest, self.stars & star != 0);
        }
        out
    }
}

/// Seven times five bits reach past day 31.
const EVERY_SEVENTH_BIT: u64 = 1 | 1 << 7 | 1 << 14 | 1 << 21 | 1 << 28;

fn write_field(out: &mut String, set: u64, size: u32, lowest: u32, star: bool) {
    let mut rest = set;
    if star {
        // A starred set holds every n-th value from the lowest on for some n; n = size is the lowest value alone.
        let every = |n: u32| (0..size).step_by(n as usize).fold(0u64, |bits, at| bits | 1 << at);
        let step = (1..=size).find(|&n| every(n) & !set == 0).unwrap_or(size);
        rest &= !every(step);
        out.push('*');
        if step > 1 {
            let _ = write!(out, "/{step}");
        }
    }
    let mut first = !star;
    while rest != 0 {
        let from = rest.trailing_zeros();
        let run = (rest >> from).trailing_ones();
        if !first {
            out.push(',');
        }
        first = false;
        let _ = match run {
            1 => write!(out, "{}", from + lowest),
            _ => write!(out, "{}-{}", from + lowest, from + run - 1 + lowest),
        };
        rest &= !(up_to(i64::from(run) - 1) << from);
    }
}

/// Bits 0 to `bit`, which is at most 63.
fn up_to(bit: i64) -> u64 {
    u64::MAX >> (63 - bit)
}

/// Bits 1 to `day`, which is at most 31.
fn day_bits(day: i64) -> u32 {
    (up_to(day) & !1) as u32
}

fn highest_bit(bits: u64) -> Option<i64> {
    bits.checked_ilog2().map(i64::from)
}

/// The most days that `month`, 1 to 12, can have.
pub(super) fn longest_month(month: u32) -> i64 {
    match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Months since January of year 0, in the Gregorian calendar without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Month(i64);

impl Month {
    /// `index` is 0 for January.
    fn of(year: i64, index: i64) -> Self {
        Self(year * 12 + index)
    }

    fn year(self) -> i64 {
        self.0.div_euclid(12)
    }

    fn index(self) -> i64 {
        self.0.rem_euclid(12)
    }

    /// Its first day, in days since 1970-01-01.
    fn first_day(self) -> i64 {
        // Years that start in March put the leap day last; see Hinnant, "chrono-compatible low-level date algorithms".
        let from_march = self.0 - 2;
        let (year, month) = (from_march.div_euclid(12), from_march.rem_euclid(12));
        let day_of_year = (153 * month + 2) / 5;
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - DAYS_TO_1970
    }
}

impl std::ops::Add<i64> for Month {
    type Output = Self;
    fn add(self, months: i64) -> Self {
        Self(self.0 + months)
    }
}

impl std::ops::Sub<i64> for Month {
    type Output = Self;
    fn sub(self, months: i64) -> Self {
        Self(self.0 - months)
    }
}

/// From 1 March of year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;

/// The month that `day` (days since 1970-01-01) lies in, and its number in that month from 1.
fn month_and_day(day: i64) -> (Month, i64) {
    // A month is 30.436875 days on average; the estimate is off by one at most, which the two loops put right.
    let mut month = Month((day + DAYS_TO_1970 + 60) * 10_000 / 304_369);
    while month.first_day() > day {
        month = month - 1;
    }
    while (month + 1).first_day() <= day {
        month = month + 1;
    }
    (month, day - month.first_day() + 1)
}

#[cfg(test)]
mod tests {
    use chrono::Datelike as _;

    use super::*;

    #[test]
    fn the_calendar_agrees_with_chrono() {
        let epoch = chrono::NaiveDate::from_ymd_opt(1970, 1, 1).unwrap();
        for day in (-719_162..=2_932_896).step_by(13).chain(-800..800).chain(10_957..12_500) {
            let date = epoch + chrono::TimeDelta::days(day);
            let (month, day_of_month) = month_and_day(day);
            assert_eq!(
                (month.year(), month.index() + 1, day_of_month),
                (i64::from(date.year()), i64::from(date.month()), i64::from(date.day())),
                "{date}"
            );
        }
    }
}
