//! Cron expressions: five fields and a zone in, instants out. Pure; nothing here reads a clock.
//!
//! Vocabulary (`zone` has more): a *wall minute* is what the zone's clock shows; a schedule *matches* wall minutes
//! and *fires* at instants. There are two kinds of schedule:
//!
//! - *pinned*, when neither the minute nor the hour field starts with `*`: each matching wall minute fires once, at
//!   the first instant at which the clock shows it or, in a gap, something later. All of a gap's matching minutes
//!   fall together on the instant that ends it, and the second pass of an overlap fires nothing.
//! - *running*, when one of them does: it fires at every instant whose wall minute matches, so twice in an overlap,
//!   and for what a gap leaves out not at all.
//!
//! Invariants: the fires of a schedule are a fixed set of instants, whatever is asked and in whichever order, so a
//! restart in the middle of an overlap changes nothing; `next_after`, `prev_at_or_before` and `count_between` agree
//! on that set; each does bounded work whatever the gap. A mistake here fires twice, late, or never.

mod fields;
mod parse;
mod pattern;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod zone;

use std::fmt;

use chrono_tz::Tz;

use crate::core::shortened::shortened;
use crate::fire::EpochMs;
use fields::{Fields, STAR_HOUR, STAR_MINUTE};

const MS_PER_S: i64 = 1000;
const S_PER_MINUTE: i64 = 60;

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z in seconds: what RFC 3339 can write. Nothing fires outside.
const FIRST_INSTANT_S: i64 = -62_135_596_800;
const LAST_INSTANT_S: i64 = 253_402_300_799;

/// ECMA-262 regular expressions for schemas: one that a cron text matches, and those that it does not, being reversed
/// ranges. What passes is refused by [`CronSchedule::parse`] only when it can never match.
pub fn patterns() -> (String, Vec<String>) {
    (pattern::five_fields(), pattern::reversed_ranges())
}

/// The names of all zones, exactly as [`CronSchedule::parse`] takes them.
pub fn zone_names() -> Vec<&'static str> {
    chrono_tz::TZ_VARIANTS.iter().map(|tz| tz.name()).collect()
}

/// One expression in one zone. Small (32 bytes) and cheap to copy; the text is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CronSchedule {
    fields: Fields,
    tz: Tz,
}

/// Why an expression or its zone is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {message}", .field.unwrap_or("expression"))]
pub struct CronError {
    /// `minute`, `hour`, `day-of-month`, `month`, `day-of-week`; `tz` for the zone; none for the expression as a whole.
    pub field: Option<&'static str>,
    /// The rule and the value that broke it; reads on from the field's name.
    pub message: String,
    /// A remedy; an expression or zone to use instead stands in backquotes.
    pub hint: Option<String>,
}

/// A message shows at most this much of a value that may be a whole file.
const LONGEST_QUOTE: usize = 60;

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text, LONGEST_QUOTE))
}

impl CronSchedule {
    /// `tz` is an exact IANA name; without one the fields are read in UTC.
    ///
    /// # Errors
    /// [`CronError`] for the first thing that is wrong with the expression, else with the zone.
    pub fn parse(expr: &str, tz: Option<&str>) -> Result<Self, CronError> {
        let fields = parse::parse_fields(expr)?;
        let tz = tz.map_or(Ok(Tz::UTC), zone::parse_zone)?;
        Ok(Self { fields, tz })
    }

    /// The first fire after `after_ms`, that instant itself excluded. `None` only when year 9999 ends before it.
    pub fn next_after(&self, after_ms: EpochMs) -> Option<EpochMs> {
        let after = seconds(after_ms);
        let found = if self.is_running() { self.next_running(after) } else { self.next_pinned(after) };
        found.filter(|instant| (FIRST_INSTANT_S..=LAST_INSTANT_S).contains(instant)).map(|instant| instant * MS_PER_S)
    }

    /// The last fire at or before `at_ms`. `None` only when year 1 begins after it.
    pub fn prev_at_or_before(&self, at_ms: EpochMs) -> Option<EpochMs> {
        let at = seconds(at_ms);
        let found = if self.is_running() { self.prev_running(at) } else { self.prev_pinned(at) };
        found.filter(|instant| (FIRST_INSTANT_S..=LAST_INSTANT_S).contains(instant)).map(|instant| instant * MS_PER_S)
    }

    /// How many fires there are after `after_ms` up to and including `until_ms`; counting stops at `cap`. The work
    /// grows with the months and clock changes between, not with the fires: ten years take well under a millisecond.
    pub fn count_between(&self, after_ms: EpochMs, until_ms: EpochMs, cap: u64) -> u64 {
        let (after, until) = (seconds(after_ms), seconds(until_ms));
        if self.is_running() { self.count_running(after, until, cap) } else { self.count_pinned(after, until, cap) }
    }

    /// The expression in its normal form. It parses to an equal schedule; equal schedules have the same.
    pub fn expr(&self) -> String {
        self.fields.text()
    }

    pub fn tz_name(&self) -> &'static str {
        self.tz.name()
    }

    fn is_running(&self) -> bool {
        self.fields.stars & (STAR_MINUTE | STAR_HOUR) != 0
    }

    fn next_pinned(&self, after: i64) -> Option<i64> {
        let wall = self.next_wall(zone::furthest_wall(self.tz, after) + 1)?;
        Some(zone::first_reaching(self.tz, wall))
    }

    fn prev_pinned(&self, at: i64) -> Option<i64> {
        let wall = self.prev_wall(zone::furthest_wall(self.tz, at))?;
        Some(zone::first_reaching(self.tz, wall))
    }

    fn next_running(&self, after: i64) -> Option<i64> {
        let mut from = after + 1;
        loop {
            let offset = zone::offset_at(self.tz, from);
            let instant = self.next_wall(from + offset)? - offset;
            let horizon = from + zone::SKEW_S;
            match zone::next_change(self.tz, from, instant.min(horizon)) {
                Some(change) => from = change,
                None if instant <= horizon => return Some(instant),
                // Nothing fires up to the horizon, and after it the clock is past where it stood at `from`, so what
                // fires next is this wall minute or a later one, at an offset that is less than SKEW_S from this one.
                None => from = horizon.max(instant - zone::SKEW_S),
            }
        }
    }

    /// [`Self::next_running`] in the mirror.
    fn prev_running(&self, at: i64) -> Option<i64> {
        let mut until = at;
        loop {
            let offset = zone::offset_at(self.tz, until);
            let instant = self.prev_wall(until + offset)? - offset;
            let horizon = until - zone::SKEW_S;
            match zone::last_change(self.tz, instant.max(horizon), until) {
                Some(change) => until = change - 1,
                None if instant >= horizon => return Some(instant),
                None => until = horizon.min(instant + zone::SKEW_S),
            }
        }
    }

    fn count_running(&self, after: i64, until: i64, cap: u64) -> u64 {
        let mut total = 0;
        let mut from = after + 1;
        while from <= until && total < cap {
            let change = zone::next_change(self.tz, from, until);
            let last = change.map_or(until, |change| change - 1);
            let offset = zone::offset_at(self.tz, from);
            total += self.count_walls(from + offset, last + offset, cap - total);
            from = last + 1;
        }
        total
    }

    fn count_pinned(&self, after: i64, until: i64, cap: u64) -> u64 {
        let mut total = 0;
        let mut from = after + 1;
        // Walls before this one have had their fire.
        let mut fresh = zone::furthest_wall(self.tz, after) + 1;
        while from <= until && total < cap {
            let change = zone::next_change(self.tz, from, until);
            let last = change.map_or(until, |change| change - 1);
            let offset = zone::offset_at(self.tz, from);
            // All that a gap left out, and what its end itself shows, is one fire.
            total += self.count_walls(fresh, from + offset, 1);
            fresh = fresh.max(from + offset + 1);
            total += self.count_walls(fresh, last + offset, cap - total.min(cap));
            fresh = fresh.max(last + offset + 1);
            from = last + 1;
        }
        total.min(cap)
    }

    /// The first matching wall second at or after `from`.
    fn next_wall(&self, from: i64) -> Option<i64> {
        Some(self.fields.next(minute_at_or_after(from))? * S_PER_MINUTE)
    }

    /// The last matching wall second at or before `until`.
    fn prev_wall(&self, until: i64) -> Option<i64> {
        Some(self.fields.prev(until.div_euclid(S_PER_MINUTE))? * S_PER_MINUTE)
    }

    /// Matching wall seconds from `from` to `until`, both included, up to `cap`.
    fn count_walls(&self, from: i64, until: i64, cap: u64) -> u64 {
        self.fields.count(minute_at_or_after(from), until.div_euclid(S_PER_MINUTE), cap)
    }
}

impl fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CronSchedule({:?} {})", self.expr(), self.tz_name())
    }
}

fn minute_at_or_after(wall_s: i64) -> i64 {
    (wall_s + S_PER_MINUTE - 1).div_euclid(S_PER_MINUTE)
}

/// The second that holds `at_ms`, kept within the calendar. One second of room before it lets its first be "after".
fn seconds(at_ms: EpochMs) -> i64 {
    at_ms.div_euclid(MS_PER_S).clamp(FIRST_INSTANT_S - 1, LAST_INSTANT_S)
}
