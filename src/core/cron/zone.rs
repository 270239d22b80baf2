//! What the wall clock of one zone shows, and when it jumps.
//!
//! Vocabulary: an *instant* is seconds since the Unix epoch; a *wall second* is what the zone's clock shows, counted
//! the same way as though it were UTC (instant + offset). A *change* is an instant at which the offset differs from
//! the second before: a *gap* when the clock jumps forward, an *overlap* when it jumps back.
//!
//! chrono-tz gives the offset at an instant but not its table of changes, so changes are found by comparing offsets
//! a few days apart and bisecting. A mistake here fires at the wrong hour twice a year.

use chrono::{DateTime, Offset as _, TimeZone as _};
use chrono_tz::Tz;

use super::CronError;

const HOUR_S: i64 = 3600;
const DAY_S: i64 = 24 * HOUR_S;

/// Larger than any offset that a zone has had (Manila before 1844: -15:56).
const MAX_OFFSET_S: i64 = 16 * HOUR_S;

/// Larger than the difference of any two offsets of one zone (Alaska 1867 and Samoa 2011 moved by a day).
pub(super) const SKEW_S: i64 = 2 * DAY_S;

/// Two equal offsets this far apart have no change between them: the shortest time for which a zone left an offset
/// and came back to it is 6.9 days (Recife in October 2000, Gaza in 2040).
const PROBE_S: i64 = 4 * DAY_S;

/// No zone's table has a change before 1840 or after 2100; there is no point in looking for one.
const FIRST_CHANGE_S: i64 = -4_102_444_800;
const LAST_CHANGE_S: i64 = 4_133_980_800;

/// Seconds to add to UTC to get the wall clock.
pub(super) fn offset_at(tz: Tz, instant: i64) -> i64 {
    match DateTime::from_timestamp(instant, 0) {
        Some(utc) => i64::from(tz.offset_from_utc_datetime(&utc.naive_utc()).fix().local_minus_utc()),
        // Past chrono's calendar, and far past the one of this module.
        None => 0,
    }
}

/// The first change after `from` and at or before `until`.
pub(super) fn next_change(tz: Tz, from: i64, until: i64) -> Option<i64> {
    let (mut low, until) = (from.max(FIRST_CHANGE_S), until.min(LAST_CHANGE_S));
    if low >= until {
        return None;
    }
    let before = offset_at(tz, low);
    while low < until {
        let mut high = until.min(low + PROBE_S);
        if offset_at(tz, high) == before {
            low = high;
            continue;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if offset_at(tz, middle) == before { low = middle } else { high = middle }
        }
        return Some(high);
    }
    None
}

/// The last change after `from` and at or before `until`, which are at most [`SKEW_S`] apart.
pub(super) fn last_change(tz: Tz, from: i64, until: i64) -> Option<i64> {
    let (mut low, mut high) = (from, until);
    let after = offset_at(tz, high);
    if low >= high || offset_at(tz, low) == after {
        return None;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if offset_at(tz, middle) == after { high = middle } else { low = middle }
    }
    Some(high)
}

/// The latest wall second that the clock has ever shown up to `instant`, that included: in the second pass of an
/// overlap this stands still at the end of the first.
pub(super) fn furthest_wall(tz: Tz, instant: i64) -> i64 {
    let mut start = instant - SKEW_S;
    let mut furthest = i64::MIN;
    loop {
        let offset = offset_at(tz, start);
        let change = next_change(tz, start, instant);
        furthest = furthest.max(change.map_or(instant, |change| change - 1) + offset);
        match change {
            Some(change) => start = change,
            None => return furthest,
        }
    }
}

/// The first instant at which the clock shows `wall` or later: its first occurrence, or the end of the gap it is in.
pub(super) fn first_reaching(tz: Tz, wall: i64) -> i64 {
    let mut start = wall - MAX_OFFSET_S;
    loop {
        let offset = offset_at(tz, start);
        if start + offset >= wall {
            return start;
        }
        match next_change(tz, start, wall - offset) {
            Some(change) => start = change,
            None => return wall - offset,
        }
    }
}

/// Finds a zone by its exact IANA name.
pub(super) fn parse_zone(name: &str) -> Result<Tz, CronError> {
    name.parse().map_err(|_| CronError {
        field: Some("tz"),
        message: format!("must be the exact name of an IANA time zone, got {}", super::quoted(name)),
        hint: nearest_zone(name).map(|near| format!("did you mean `{near}`?")),
    })
}

/// The longest zone name has 32 letters; nothing much longer is a slip of the finger.
const LONGEST_GUESS: usize = 40;

fn nearest_zone(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > LONGEST_GUESS {
        return None;
    }
    let plain = |text: &str| text.trim().replace([' ', '-'], "_").to_ascii_lowercase();
    let wanted = plain(name);
    let city = |zone: &str| plain(zone.rsplit('/').next().unwrap_or(zone));
    let named = || chrono_tz::TZ_VARIANTS.iter().map(|tz| tz.name());
    if let Some(found) =
        named().find(|zone| plain(zone) == wanted).or_else(|| named().find(|zone| city(zone) == wanted))
    {
        return Some(found);
    }
    // A third of the letters wrong is another word.
    let limit = (wanted.len() / 3).min(3);
    let by_distance =
        |zone: &'static str| (edit_distance(&plain(zone), &wanted).min(edit_distance(&city(zone), &wanted)), zone);
    named().map(by_distance).min().filter(|&(distance, _)| distance <= limit).map(|(_, zone)| zone)
}

/// Letters to insert, delete or replace to get from one text to the other.
fn edit_distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_hold_for_every_zone() {
        const MONTH_S: i64 = 30 * DAY_S;
        for &tz in &chrono_tz::TZ_VARIANTS {
            let offsets: Vec<i64> =
                (FIRST_CHANGE_S / MONTH_S..=LAST_CHANGE_S / MONTH_S).map(|at| offset_at(tz, at * MONTH_S)).collect();
            let (low, high) = (*offsets.iter().min().unwrap(), *offsets.iter().max().unwrap());
            assert!(-MAX_OFFSET_S < low && high < MAX_OFFSET_S && high - low < SKEW_S, "{tz}: {low} to {high}");
            for years in (1..400).step_by(7) {
                let (early, late) = (FIRST_CHANGE_S - years * MONTH_S * 7, LAST_CHANGE_S + years * MONTH_S * 7);
                assert_eq!(offset_at(tz, early), offset_at(tz, FIRST_CHANGE_S), "{tz} before the first change");
                assert_eq!(offset_at(tz, late), offset_at(tz, LAST_CHANGE_S), "{tz} after the last change");
            }
        }
    }

    /// The zones that came back soonest to an offset they had left, each with the month it happened in.
    #[test]
    fn probing_misses_no_change() {
        for (tz, from) in [
            (Tz::America__Recife, 970_358_400),
            (Tz::Asia__Gaza, 2_233_440_000),
            (Tz::Africa__Tunis, -843_523_200),
            (Tz::Europe__Simferopol, -813_000_000),
            (Tz::Africa__Casablanca, 1_740_000_000),
        ] {
            let until = from + 60 * DAY_S;
            let hourly: Vec<i64> = (from / HOUR_S + 1..=until / HOUR_S)
                .map(|hour| hour * HOUR_S)
                .filter(|&at| offset_at(tz, at) != offset_at(tz, at - 1))
                .collect();
            assert!(hourly.len() >= 2, "{tz} has two changes in these days");
            let mut found = vec![];
            let mut at = from;
            while let Some(change) = next_change(tz, at, until) {
                found.push(change);
                at = change;
            }
            assert_eq!(found, hourly, "{tz}");
            for change in hourly {
                assert_eq!(last_change(tz, change - HOUR_S, change + HOUR_S), Some(change), "{tz}");
                assert_eq!(last_change(tz, change, change + HOUR_S), None, "{tz}");
                assert_eq!(next_change(tz, change - 1, change), Some(change), "{tz}");
                assert_eq!(next_change(tz, change - 2, change - 1), None, "{tz}");
            }
        }
    }
}
