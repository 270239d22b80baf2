//! The shared vectors, a table of refusals, and the edges. Random schedules are in `properties`.

use chrono::DateTime;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    utc: Vec<Vector>,
    zoned: Vec<Vector>,
    invalid: Vec<String>,
}

#[derive(Deserialize)]
struct Vector {
    expr: String,
    tz: Option<String>,
    start: String,
    next: Vec<String>,
    why: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../fixtures/vectors/cron.json")).unwrap()
}

fn schedule(expr: &str, tz: &str) -> CronSchedule {
    CronSchedule::parse(expr, Some(tz)).unwrap_or_else(|error| panic!("{expr:?} in {tz}: {error}"))
}

pub(super) fn ms(text: &str) -> EpochMs {
    text.parse::<DateTime<chrono::Utc>>().unwrap().timestamp_millis()
}

pub(super) fn text(at_ms: EpochMs) -> String {
    DateTime::from_timestamp_millis(at_ms).unwrap().to_rfc3339()
}

#[test]
fn vectors_fire_as_given() {
    let Vectors { utc, zoned, .. } = vectors();
    assert!(utc.len() > 20 && zoned.len() > 40);
    for Vector { expr, tz, start, next, why } in utc.into_iter().chain(zoned) {
        let schedule = CronSchedule::parse(&expr, tz.as_deref()).unwrap();
        let start = ms(&start);
        let mut at = start;
        let found: Vec<String> = next
            .iter()
            .map(|_| {
                at = schedule.next_after(at).unwrap();
                text(at)
            })
            .collect();
        let wanted: Vec<String> = next.iter().map(|at| text(ms(at))).collect();
        assert_eq!(found, wanted, "{schedule:?}: {why}");
        // The same instants backwards, and as a count.
        let backwards: Vec<String> = next
            .iter()
            .map(|_| {
                let found = schedule.prev_at_or_before(at).unwrap();
                at = found - 1;
                text(found)
            })
            .collect();
        assert_eq!(backwards, wanted.into_iter().rev().collect::<Vec<_>>(), "{schedule:?}: {why}");
        let last = ms(next.last().unwrap());
        assert_eq!(schedule.count_between(start, last, 100), next.len() as u64, "{schedule:?}: {why}");
        assert_eq!(schedule.count_between(start, last - 1, 100), next.len() as u64 - 1, "{schedule:?}: {why}");
    }
}

#[test]
fn vectors_that_are_refused() {
    let invalid = vectors().invalid;
    assert!(invalid.len() >= 15);
    for expr in invalid {
        let error = CronSchedule::parse(&expr, None).expect_err(&expr);
        assert!(error.hint.is_some(), "{expr:?}: {error} has no hint");
    }
}

#[test]
fn refusals_name_field_rule_and_remedy() {
    const MINUTE: Option<&str> = Some("minute");
    const HOUR: Option<&str> = Some("hour");
    const DAY: Option<&str> = Some("day-of-month");
    const MONTH: Option<&str> = Some("month");
    const WEEKDAY: Option<&str> = Some("day-of-week");
    // Expression; field; a part of the message; a part of the hint, "" for none.
    let table: &[(&str, Option<&str>, &str, &str)] = &[
        ("", None, "five fields", "`*/15 * * * *`"),
        (" \t ", None, "got none", "`*/15 * * * *`"),
        ("* * * *", None, "got 4", "minute hour day-of-month month day-of-week"),
        ("0 0 9 * * MON", None, "seconds are not supported", "`0 9 * * MON`"),
        ("0 0 9 * * ? 2027", None, "seconds and years are not supported", "`0 9 * * ?`"),
        ("0 9 1 1 * 2027", None, "got 6", "minute hour"),
        ("* * * * * * * *", None, "got 8", "minute hour"),
        ("@hourly", None, "\"@hourly\" is not supported", "`0 * * * *`"),
        ("@Daily", None, "not supported", "`0 0 * * *`"),
        ("@reboot", None, "not supported", "minute hour"),
        ("@every 5m", None, "not supported", "minute hour"),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", None, "not supported", "`tz`, and `0 9 * * *`"),
        ("60 * * * *", MINUTE, "0 to 59, got \"60\"", "`0` is the full hour"),
        ("99999999999999999999 * * * *", MINUTE, "0 to 59", "full hour"),
        ("-5 * * * *", MINUTE, "both sides", "`0-59`"),
        ("5- * * * *", MINUTE, "both sides", "`0-59`"),
        ("+5 * * * *", MINUTE, "must not hold '+'", ""),
        ("1.5 * * * *", MINUTE, "must not hold '.'", ""),
        ("5-1 * * * *", MINUTE, "reversed range, got \"5-1\"", "`5-59,0-1`"),
        ("1,,2 * * * *", MINUTE, "empty list item", "`1,2`"),
        (",1 * * * *", MINUTE, "empty list item", "`1`"),
        ("1, * * * *", MINUTE, "empty list item", "`1`"),
        (", * * * *", MINUTE, "empty list item", ""),
        ("*/0 * * * *", MINUTE, "step of 1 or more, got \"*/0\"", "`/1`"),
        ("1-5/0 * * * *", MINUTE, "step of 1 or more", "`/1`"),
        ("*/ * * * *", MINUTE, "a number after `/`", "`*/2`"),
        ("*/5/2 * * * *", MINUTE, "a number after `/`", "`*/2`"),
        ("*/-5 * * * *", MINUTE, "a number after `/`", "`*/2`"),
        ("*/x * * * *", MINUTE, "a number after `/`", "`*/2`"),
        ("/5 * * * *", MINUTE, "must be a number", ""),
        ("5/15 * * * *", MINUTE, "ambiguous", "`5-59/15`"),
        ("1,5/15 * * * *", MINUTE, "got \"5/15\"", "`5-59/15`"),
        ("59/5 * * * *", MINUTE, "ambiguous", "`59`"),
        ("** * * * *", MINUTE, "cannot read", "`*` stands alone"),
        ("*5 * * * *", MINUTE, "cannot read", "`*` stands alone"),
        ("0-? * * * *", MINUTE, "cannot read", "`?` stands alone"),
        ("1-2-3 * * * *", MINUTE, "must be a number, got \"2-3\"", ""),
        ("٣ * * * *", MINUTE, "ASCII digits", "`0` to `9`"),
        ("５ * * * *", MINUTE, "ASCII digits", "`0` to `9`"),
        ("1–5 * * * *", MINUTE, "must not hold '–'", "ASCII `-`"),
        ("0\u{a0}9 * * * *", MINUTE, "must not hold", "spaces or tabs"),
        ("0 9 * * *\n", WEEKDAY, "must not hold '\\n'", "spaces or tabs"),
        ("MON * * * *", MINUTE, "must be a number", "belongs in the day-of-week field"),
        ("* 24 * * *", HOUR, "0 to 23", "`0` is midnight"),
        ("* 22-5 * * *", HOUR, "reversed range", "`22-23,0-5`"),
        ("0 9am * * *", HOUR, "must be a number", ""),
        ("* 5/2 * * *", HOUR, "ambiguous", "`5-23/2`"),
        ("* H * * *", HOUR, "must be a number", ""),
        ("* * 0 * *", DAY, "1 to 31", "count from `1`"),
        ("* * 32 * *", DAY, "1 to 31", "count from `1`"),
        ("0 0 L * *", DAY, "`L`, `W` and `#` are not supported", "handler"),
        ("0 0 LW * *", DAY, "not supported", "handler"),
        ("0 0 15W * *", DAY, "not supported", "handler"),
        ("* * */0 * *", DAY, "step", "`/1`"),
        ("* * * 0 *", MONTH, "1 to 12", "January"),
        ("* * * 13 *", MONTH, "1 to 12", "January"),
        ("* * * JANUARY *", MONTH, "three-letter name", "`JAN`"),
        ("* * * MON *", MONTH, "three-letter name", "day-of-week field"),
        ("* * * NOV-FEB *", MONTH, "reversed", "`NOV-DEC,JAN-FEB`"),
        ("* * * 3/2 *", MONTH, "ambiguous", "`3-12/2`"),
        ("* * * * 8", WEEKDAY, "0 to 7", "`0` and `7` are Sunday"),
        ("* * * * MONDAY", WEEKDAY, "three-letter name", "`MON`"),
        ("* * * * JUL", WEEKDAY, "three-letter name", "month field"),
        ("* * * * FRI-MON", WEEKDAY, "reversed", "`FRI-SAT,SUN-MON`"),
        ("* * * * 5-0", WEEKDAY, "reversed", "`5-7`"),
        ("* * * * 7-2", WEEKDAY, "reversed", "`0-2`"),
        ("* * * * MON/2", WEEKDAY, "ambiguous", "`MON-SAT/2`"),
        ("* * * * 7/2", WEEKDAY, "ambiguous", "`7`"),
        ("* * * * MON#2", WEEKDAY, "`L`, `W` and `#`", "handler"),
        ("* * * * 5L", WEEKDAY, "`L`, `W` and `#`", "handler"),
        ("* * * * */MON", WEEKDAY, "a number after `/`", ""),
        ("0 0 30 2 *", DAY, "can never match", "is 29"),
        ("0 0 31 4,6 *", DAY, "can never match", "is 30"),
        ("0 0 31 2,9-11/2 */2", DAY, "can never match", "is 30"),
    ];
    for (expr, field, message, hint) in table {
        let error = CronSchedule::parse(expr, None).expect_err(expr);
        assert_eq!(error.field, *field, "{expr:?}: {error}");
        assert!(error.message.contains(message), "{expr:?}: {error}");
        let shown = error.hint.as_deref().unwrap_or_default();
        assert!(shown.contains(hint), "{expr:?}: {error}; hint: {shown}");
    }
}

/// A hint that shows a field or a whole expression in backquotes as the remedy must itself be accepted.
#[test]
fn expressions_in_hints_are_accepted() {
    for (expr, field) in [("5/15 * * * *", 0), ("22-5 * * * *", 0), ("* 22-5 * * *", 1), ("* * * * FRI-MON", 4)]
        .into_iter()
        .chain([("* * * NOV-FEB *", 3), ("* * * * 5-0", 4), ("* * * * MON/2", 4), ("1,,2 * * * *", 0)])
    {
        let hint = CronSchedule::parse(expr, None).unwrap_err().hint.unwrap();
        let mut words: Vec<&str> = expr.split(' ').collect();
        words[field] = hint.trim_matches('`');
        CronSchedule::parse(&words.join(" "), None).unwrap_or_else(|error| panic!("{expr:?} → {hint}: {error}"));
    }
    for expr in ["@hourly", "@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "0 0 9 * * MON"] {
        let hint = CronSchedule::parse(expr, None).unwrap_err().hint.unwrap();
        CronSchedule::parse(hint.trim_matches('`'), None).unwrap_or_else(|error| panic!("{expr:?} → {hint}: {error}"));
    }
}

#[test]
fn a_whole_file_as_expression_is_refused_in_few_words() {
    let long = "0".repeat(100_000);
    for expr in [
        format!("{long}5/15 * * * *"),
        format!("{} * * * *", "1,".repeat(50_000)),
        format!("x{long} * * * *"),
        "TZ=a ".repeat(50_000),
        "* ".repeat(50_000),
        format!("0 0 {long} * *"),
    ] {
        let error = CronSchedule::parse(&expr, None).unwrap_err();
        assert!(error.to_string().len() < 300, "{} bytes", error.to_string().len());
        assert!(error.hint.is_none_or(|hint| hint.len() < 300));
    }
}

#[test]
fn spellings_of_the_same_schedule_are_equal() {
    for (one, other, normal) in [
        ("  0\t9  * *\t1-5 ", "0 9 * * mon-Fri", "0 9 * * 1-5"),
        ("0 9 ? ? ?", "0 9 * * *", "0 9 * * *"),
        ("00 09 * * 7", "0 9 * * SUN", "0 9 * * 0"),
        ("0 0 * * FRI-SUN", "0 0 * * 5-7", "0 0 * * 0,5-6"),
        ("0 0 * * MON-SUN", "0 0 * * 0-6", "0 0 * * 0-6"),
        ("0 0 * * 0-7/7", "0 0 * * SUN,7", "0 0 * * 0"),
        ("*/15 * * * *", "?/15,30 * * * *", "*/15 * * * *"),
        ("*/99 */24 */31 */12 */7", "*/60,0 */50 */40 */13 */9", "*/60 */24 */31 */12 */7"),
        ("*/20,5,6,7 0 1 JAN-mar,3,dec *", "*/20,5-7 0 1 1,2,3,12 *", "*/20,5-7 0 1 1-3,12 *"),
        ("10-50/20 8-10/5 1 1 ?/1", "10,30,50 8 1 1 *", "10,30,50 8 1 1 *"),
    ] {
        let (a, b) = (schedule(one, "UTC"), schedule(other, "UTC"));
        assert_eq!(a, b, "{one:?} and {other:?}");
        assert_eq!((a.expr().as_str(), a.tz_name()), (normal, "UTC"), "{one:?}");
        assert_eq!(schedule(normal, "UTC"), a, "{normal:?}");
    }
    // A star is more than the values it stands for.
    assert_ne!(schedule("0 0 1-31 * 1", "UTC"), schedule("0 0 * * 1", "UTC"));
    assert_ne!(schedule("0 0 * * *", "UTC"), schedule("0 0 * * *", "Europe/London"));
    assert!(size_of::<CronSchedule>() <= 40, "{} bytes", size_of::<CronSchedule>());
}

#[test]
fn zones() {
    for (tz, hint) in [
        ("Europe/Berln", Some("Europe/Berlin")),
        ("europe/berlin", Some("Europe/Berlin")),
        ("Berlin", Some("Europe/Berlin")),
        ("America/New York", Some("America/New_York")),
        ("America/Los_Angelos", Some("America/Los_Angeles")),
        ("utc", Some("UTC")),
        (" UTC", Some("UTC")),
        ("Mars/Olympus_Mons", None),
        ("+02:00", None),
        ("", None),
        ("Ünïcode/Zone", None),
    ] {
        let error = CronSchedule::parse("0 9 * * *", Some(tz)).unwrap_err();
        assert_eq!(error.field, Some("tz"), "{tz:?}");
        assert!(error.message.contains("IANA"), "{tz:?}: {error}");
        assert_eq!(error.hint, hint.map(|zone| format!("did you mean `{zone}`?")), "{tz:?}");
    }
    assert!(CronSchedule::parse("0 9 * * *", Some(&"x".repeat(100_000))).unwrap_err().to_string().len() < 300);
    for tz in ["UTC", "Etc/GMT+5", "Europe/Kyiv", "US/Eastern"] {
        assert_eq!(schedule("0 9 * * *", tz).tz_name(), tz);
    }
}

#[test]
fn what_can_match_somewhere_is_accepted() {
    for expr in ["0 0 30 2 1", "0 0 */2 2 *", "0 0 29 2 *", "0 0 31 1-2 *", "0 0 */30 2 MON", "0 0 29 2 */7"] {
        let next = schedule(expr, "UTC").next_after(ms("2096-03-01T00:00:00Z"));
        assert!(next.is_some_and(|at| at < ms("2140-01-01T00:00:00Z")), "{expr}: {next:?}");
    }
}

/// The fire is months away, perhaps under the other offset; the search must land on neither side of it.
#[test]
fn rare_fires_of_running_schedules_are_found_across_changes() {
    for (expr, fire_month, utc_hour) in [("*/30 0 1 1 *", 1, 5), ("*/30 0 1 7 *", 7, 4)] {
        let schedule = schedule(expr, "America/New_York");
        for month in 1..=12 {
            let at = ms(&format!("2026-{month:02}-20T12:34:56Z"));
            let last = if month >= fire_month { 2026 } else { 2025 };
            let fire = |year, minute| Some(ms(&format!("{year}-{fire_month:02}-01T{utc_hour:02}:{minute:02}:00Z")));
            assert_eq!(schedule.prev_at_or_before(at), fire(last, 30), "{expr} before {}", text(at));
            assert_eq!(schedule.next_after(at), fire(last + 1, 0), "{expr} after {}", text(at));
        }
    }
}

#[test]
fn time_ends_with_year_9999_and_begins_with_year_1() {
    for (expr, tz) in
        [("* * * * *", "UTC"), ("0 0 29 2 *", "UTC"), ("*/7 3 * * *", "Asia/Tokyo"), ("0 3 * * *", "US/Hawaii")]
    {
        let schedule = schedule(expr, tz);
        for at in [i64::MAX, ms("9999-12-31T23:59:59Z")] {
            assert_eq!(schedule.next_after(at), None, "{schedule:?}");
            assert!(schedule.prev_at_or_before(at).is_some_and(|at| at > ms("9990-01-01T00:00:00Z")), "{schedule:?}");
        }
        for at in [i64::MIN, ms("0001-01-01T00:00:00Z") - 1] {
            assert_eq!(schedule.prev_at_or_before(at), None, "{schedule:?}");
            assert!(schedule.next_after(at).is_some_and(|at| at < ms("0010-01-01T00:00:00Z")), "{schedule:?}");
        }
        assert_eq!(schedule.count_between(i64::MIN, i64::MAX, 3), 3);
        assert!(schedule.count_between(i64::MIN, i64::MAX, u64::MAX) > 2000);
    }
    let each_minute = schedule("* * * * *", "UTC");
    assert_eq!(each_minute.next_after(ms("0001-01-01T00:00:00Z") - 1), Some(ms("0001-01-01T00:00:00Z")));
    assert_eq!(each_minute.prev_at_or_before(i64::MAX), Some(ms("9999-12-31T23:59:00Z")));
}

#[test]
fn counts_over_long_gaps() {
    let ten_years = (ms("2016-05-01T12:00:00Z"), ms("2026-05-01T12:00:00Z"));
    for (expr, tz, count) in [
        ("* * * * *", "UTC", 3652 * 1440),
        ("* * * * *", "Europe/London", 3652 * 1440),
        ("30 1 * * *", "Europe/London", 3652),
        ("15,45 1 * * *", "Europe/London", 3652 * 2 - 10),
        ("0 0 29 2 *", "UTC", 2),
        ("0 13 * * 1", "America/New_York", 522),
    ] {
        let schedule = schedule(expr, tz);
        assert_eq!(schedule.count_between(ten_years.0, ten_years.1, u64::MAX), count, "{schedule:?}");
        assert_eq!(schedule.count_between(ten_years.0, ten_years.1, 7), count.min(7), "{schedule:?}");
        assert_eq!(schedule.count_between(ten_years.1, ten_years.0, 7), 0, "{schedule:?}");
    }
}
