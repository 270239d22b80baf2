//! Instants and durations as people write and read them, and as JSON has them.
//!
//! People read local time with its offset; JSON has RFC 3339 in UTC. People may write an instant, a day, a local time
//! of day, or a span that counts back from now.

use chrono::{DateTime, Local, LocalResult, NaiveDate, NaiveDateTime, SecondsFormat, TimeZone, Utc};
use serde_json::Value;

use crate::fire::EpochMs;

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// RFC 3339 in UTC, with milliseconds only where there are any.
pub fn rfc3339(at: EpochMs) -> String {
    match Utc.timestamp_millis_opt(at) {
        LocalResult::Single(at) if at.timestamp_subsec_millis() == 0 => at.to_rfc3339_opts(SecondsFormat::Secs, true),
        LocalResult::Single(at) => at.to_rfc3339_opts(SecondsFormat::Millis, true),
        // Beyond any calendar; a row that was edited by hand.
        _ => at.to_string(),
    }
}

/// `2026-03-01 12:03:01 +01:00`
pub fn local(at: EpochMs) -> String {
    format_local(at, "%Y-%m-%d %H:%M:%S %:z")
}

/// `2026-03-01 12:03 +01:00`, for what falls on whole minutes.
pub fn local_minute(at: EpochMs) -> String {
    format_local(at, "%Y-%m-%d %H:%M %:z")
}

/// `12:03:01.123`, within a stream whose day is plain.
pub fn time_of_day(at: EpochMs) -> String {
    format_local(at, "%H:%M:%S%.3f")
}

fn format_local(at: EpochMs, format: &str) -> String {
    match Local.timestamp_millis_opt(at) {
        LocalResult::Single(at) => at.format(format).to_string(),
        _ => at.to_string(),
    }
}

/// In an IANA zone: `2026-03-01 12:03 CET`. `None` for a zone that nobody knows.
pub fn in_zone(at: EpochMs, zone: &str) -> Option<String> {
    let zone: chrono_tz::Tz = zone.parse().ok()?;
    Some(zone.timestamp_millis_opt(at).single()?.format("%a %Y-%m-%d %H:%M:%S %Z").to_string())
}

/// `3 ms`, `1.25 s`, `4 min 5 s`, `2 h 3 min`, `5 d 1 h`.
pub fn duration(ms: i64) -> String {
    let ms = ms.max(0);
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big} {big_unit}"),
        _ => format!("{big} {big_unit} {small} {small_unit}"),
    };
    match ms {
        _ if ms < SECOND => format!("{ms} ms"),
        _ if ms < MINUTE => {
            // Cut, not rounded: 59.999 s must not read as 60 s.
            let hundredths = ms / 10;
            let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
            format!("{} s", text.trim_end_matches('0').trim_end_matches('.'))
        }
        _ if ms < HOUR => two(ms / MINUTE, "min", ms % MINUTE / SECOND, "s"),
        _ if ms < DAY => two(ms / HOUR, "h", ms % HOUR / MINUTE, "min"),
        _ => two(ms / DAY, "d", ms % DAY / HOUR, "h"),
    }
}

/// `in 5 min`, `3 s ago`, `now`: to the unit that matters.
pub fn relative(at: EpochMs, now: EpochMs) -> String {
    let away = at.saturating_sub(now);
    let span = away.saturating_abs();
    let text = match span {
        _ if span < SECOND => return "now".to_owned(),
        _ if span < MINUTE => format!("{} s", span / SECOND),
        _ if span < HOUR => format!("{} min", span / MINUTE),
        _ if span < DAY => format!("{} h", span / HOUR),
        _ => format!("{} d", span / DAY),
    };
    if away > 0 { format!("in {text}") } else { format!("{text} ago") }
}

/// Reads `7d`, `24h`, `30m`, `90s`, `2w`: milliseconds.
pub fn parse_span(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "ms" => 1,
        "s" => SECOND,
        "m" | "min" => MINUTE,
        "h" => HOUR,
        "d" => DAY,
        "w" => 7 * DAY,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit)
}

/// What [`parse_instant`] reads, for messages.
pub const INSTANT_RULE: &str =
    "an RFC 3339 time such as 2026-03-01T12:00:00Z, a local one such as \"2026-03-01 12:00\", or a day";

/// Reads an instant: RFC 3339, or a local time or day without a zone. A local time that occurs twice is its first
/// occurrence; one that does not exist is none.
pub fn parse_instant(text: &str) -> Option<EpochMs> {
    let text = text.trim();
    if text == "now" {
        return Some(crate::clock::Clock::Real.now_ms());
    }
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Some(at.timestamp_millis());
    }
    let times = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
    let naive = times
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0))?;
    Local.from_local_datetime(&naive).earliest().map(|at| at.timestamp_millis())
}

/// Reads a span that counts back from `now`, or an instant.
pub fn parse_since(text: &str, now: EpochMs) -> Option<EpochMs> {
    parse_span(text).map(|span| now.saturating_sub(span)).or_else(|| parse_instant(text))
}

/// Members of rows, views and events that hold an instant in epoch milliseconds.
const INSTANTS: &[&str] =
    &["at", "next", "queuedAt", "startedAt", "endedAt", "scheduledFor", "notBefore", "retryAt", "updatedAt"];
/// Members whose content is the handler's or a caller's, and is left as it is.
const FOREIGN: &[&str] = &["input", "output", "args", "result", "fields", "usage"];

/// Turns the instants of this program's own JSON from epoch milliseconds into RFC 3339.
pub fn with_rfc3339(mut value: Value) -> Value {
    rewrite(&mut value);
    value
}

fn rewrite(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                if FOREIGN.contains(&name.as_str()) {
                    continue;
                }
                match member.as_i64().filter(|_| INSTANTS.contains(&name.as_str())) {
                    Some(at) => *member = Value::String(rfc3339(at)),
                    None => rewrite(member),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_read_as_people_say_them() {
        for (ms, text) in [
            (-5, "0 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (1_250, "1.25 s"),
            (59_999, "59.99 s"),
            (60_000, "1 min"),
            (245_000, "4 min 5 s"),
            (7_380_000, "2 h 3 min"),
            (5 * DAY + HOUR, "5 d 1 h"),
        ] {
            assert_eq!(duration(ms), text);
        }
        for (away, text) in [(500, "now"), (90_000, "in 1 min"), (-3_000, "3 s ago"), (-49 * HOUR, "2 d ago")] {
            assert_eq!(relative(1_000_000_000_000 + away, 1_000_000_000_000), text);
        }
    }

    #[test]
    fn spans_and_instants_are_read_and_nonsense_is_not() {
        for (text, ms) in [("7d", 7 * DAY), ("90s", 90_000), ("5 min", 300_000), ("2w", 14 * DAY), ("10ms", 10)] {
            assert_eq!(parse_span(text), Some(ms), "{text}");
        }
        for text in ["", "d", "7", "7x", "-7d", "99999999999999999d", "1.5h"] {
            assert_eq!(parse_span(text), None, "{text}");
        }
        assert_eq!(parse_instant("1970-01-01T00:00:01Z"), Some(1000));
        assert_eq!(parse_instant("1970-01-01T02:00:01.5+02:00"), Some(1500));
        assert_eq!(parse_since("1s", 5000), Some(4000));
        for text in ["", "tomorrow", "2026-13-01", "2026-03-01 25:00"] {
            assert_eq!(parse_instant(text), None, "{text}");
        }
        // Whatever the local zone is: what was printed can be read again.
        let at = parse_instant("2026-03-01 12:00").unwrap();
        assert!(local(at).starts_with("2026-03-01 12:00:00 "), "{}", local(at));
        assert_eq!(parse_instant("2026-03-01"), Some(at - 12 * HOUR));
    }

    #[test]
    fn instants_become_rfc_3339_and_foreign_values_stay() {
        let row = json!({
            "queuedAt": 1_500, "endedAt": null, "attempt": 1_000,
            "output": { "at": 1_000 },
            "triggers": [{ "next": 0 }],
        });
        assert_eq!(
            with_rfc3339(row),
            json!({
                "queuedAt": "1970-01-01T00:00:01.500Z", "endedAt": null, "attempt": 1_000,
                "output": { "at": 1_000 },
                "triggers": [{ "next": "1970-01-01T00:00:00Z" }],
            })
        );
        assert_eq!(rfc3339(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn a_zone_is_shown_by_its_own_clock() {
        assert_eq!(in_zone(0, "Europe/Berlin").as_deref(), Some("Thu 1970-01-01 01:00:00 CET"));
        assert_eq!(in_zone(0, "Mars/Olympus"), None);
    }
}
