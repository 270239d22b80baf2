//! Random schedules against three oracles that share no code with the search: a walk through real time minute by
//! minute, the `cron` crate, and the schedule's own questions against each other.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Datelike as _, NaiveDateTime, TimeDelta, Timelike as _};
use proptest::prelude::*;

use super::tests::{ms, text};
use super::*;

/// One field as a text, the values it stands for, and whether it is starred.
#[derive(Debug, Clone)]
struct Word {
    text: String,
    values: BTreeSet<u32>,
    starred: bool,
}

/// `usual` is the largest value outside of stars.
fn word(lowest: u32, highest: u32, usual: u32) -> impl Strategy<Value = Word> {
    let one = (lowest..=usual).prop_map(|value| (value.to_string(), BTreeSet::from([value])));
    let range = (lowest..=usual, lowest..=usual, proptest::option::of(1..20u32)).prop_map(|(a, b, step)| {
        let (from, until) = (a.min(b), a.max(b));
        let text = step.map_or(format!("{from}-{until}"), |step| format!("{from}-{until}/{step}"));
        (text, (from..=until).step_by(step.unwrap_or(1) as usize).collect())
    });
    let star = (any::<bool>(), proptest::option::of(1..70u32)).prop_map(move |(question, step)| {
        let star = if question { "?" } else { "*" };
        let text = step.map_or(star.to_owned(), |step| format!("{star}/{step}"));
        (text, (lowest..=highest).step_by(step.unwrap_or(1) as usize).collect())
    });
    let item = prop_oneof![4 => one, 2 => range, 2 => star];
    proptest::collection::vec(item, 1..4).prop_map(|items: Vec<(String, BTreeSet<u32>)>| {
        let text = items.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(",");
        let starred = text.starts_with(['*', '?']);
        Word { text, values: items.into_iter().flat_map(|(_, values)| values).collect(), starred }
    })
}

#[derive(Debug, Clone)]
struct Words {
    minute: Word,
    hour: Word,
    day: Word,
    month: Word,
    weekday: Word,
}

impl Words {
    fn any() -> impl Strategy<Value = Self> {
        let mostly_all =
            |lowest, highest| prop_oneof![3 => Just(all(lowest, highest)), 1 => word(lowest, highest, highest)];
        // The hours around which clocks change come up more often.
        let hour = prop_oneof![2 => word(0, 23, 23), 2 => word(0, 23, 3)];
        (word(0, 59, 59), hour, mostly_all(1, 31), mostly_all(1, 12), mostly_all(0, 7)).prop_map(
            |(minute, hour, day, month, mut weekday)| {
                if weekday.values.remove(&7) {
                    weekday.values.insert(0);
                }
                Words { minute, hour, day, month, weekday }
            },
        )
    }

    fn text(&self) -> String {
        [&self.minute, &self.hour, &self.day, &self.month, &self.weekday].map(|word| word.text.as_str()).join(" ")
    }

    fn matches(&self, wall: NaiveDateTime) -> bool {
        let day = self.day.values.contains(&wall.day());
        let weekday = self.weekday.values.contains(&wall.weekday().num_days_from_sunday());
        self.minute.values.contains(&wall.minute())
            && self.hour.values.contains(&wall.hour())
            && self.month.values.contains(&wall.month())
            && if self.day.starred || self.weekday.starred { day && weekday } else { day || weekday }
    }
}

fn all(lowest: u32, highest: u32) -> Word {
    Word { text: "*".to_owned(), values: (lowest..=highest).collect(), starred: true }
}

/// Every fire after `after_ms` and up to `until_ms`, found by living through two days before it and then each minute.
fn live_through(words: &Words, tz: Tz, after_ms: EpochMs, until_ms: EpochMs) -> Vec<EpochMs> {
    const MINUTE_MS: i64 = 60_000;
    let running = words.minute.starred || words.hour.starred;
    let show = |at: i64| DateTime::from_timestamp_millis(at).unwrap().with_timezone(&tz).naive_local();
    let minute = TimeDelta::minutes(1);
    let mut at = (after_ms.div_euclid(MINUTE_MS) - 2 * 1440) * MINUTE_MS;
    let mut before = show(at);
    let mut shown = HashSet::from([before]);
    let mut fires = vec![];
    while at + MINUTE_MS <= until_ms {
        at += MINUTE_MS;
        let wall = show(at);
        let mut fired = running && words.matches(wall);
        // The minute on the clock, and with it those that it has just jumped over.
        let mut each = if wall > before { before + minute } else { wall };
        while each <= wall {
            fired |= shown.insert(each) && !running && words.matches(each);
            each += minute;
        }
        before = wall;
        if fired && at > after_ms {
            fires.push(at);
        }
    }
    fires
}

/// A zone and an instant near one of its changes, all offsets in whole minutes.
const CHANGES: &[(Tz, &str)] = &[
    (Tz::America__New_York, "2026-03-08T07:00:00Z"),
    (Tz::America__New_York, "2026-11-01T06:00:00Z"),
    (Tz::Europe__London, "2026-03-29T01:00:00Z"),
    (Tz::Europe__Dublin, "2026-10-25T01:00:00Z"),
    (Tz::Europe__Berlin, "2028-03-26T01:00:00Z"),
    (Tz::Australia__Lord_Howe, "2026-10-03T15:30:00Z"),
    (Tz::Australia__Lord_Howe, "2026-04-04T15:00:00Z"),
    (Tz::America__Sao_Paulo, "2018-11-04T03:00:00Z"),
    (Tz::America__Sao_Paulo, "2018-02-18T02:00:00Z"),
    (Tz::Asia__Beirut, "2026-03-28T22:00:00Z"),
    (Tz::Africa__Cairo, "2026-10-29T21:00:00Z"),
    (Tz::Africa__Casablanca, "2026-02-15T02:00:00Z"),
    (Tz::Pacific__Apia, "2011-12-30T10:00:00Z"),
    (Tz::Pacific__Kwajalein, "1969-09-30T13:00:00Z"),
    (Tz::Pacific__Kwajalein, "1993-08-21T12:00:00Z"),
    (Tz::America__Nuuk, "2026-03-29T01:00:00Z"),
    (Tz::America__Nuuk, "2026-10-25T01:00:00Z"),
    (Tz::Antarctica__Troll, "2026-03-29T01:00:00Z"),
    (Tz::Antarctica__Troll, "2026-10-25T01:00:00Z"),
    (Tz::Pacific__Chatham, "2026-04-04T14:00:00Z"),
    (Tz::Asia__Kathmandu, "1985-12-31T18:30:00Z"),
    (Tz::UTC, "2028-02-29T00:00:00Z"),
];

fn settings(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(settings(400))]

    #[test]
    fn living_through_a_change_finds_the_same_fires(
        words in Words::any(),
        (tz, change) in proptest::sample::select(CHANGES),
        lead_minutes in 0..2000i64,
        odd_ms in 0..60_000i64,
    ) {
        let Ok(schedule) = CronSchedule::parse(&words.text(), Some(tz.name())) else {
            // Drawn from the grammar, so the one fault that it can have is that it never matches.
            let all_days = (0..146_097).map(|day| NaiveDateTime::default() + TimeDelta::days(day));
            let any_time = Words { minute: all(0, 59), hour: all(0, 23), ..words.clone() };
            prop_assert!(!all_days.into_iter().any(|day| any_time.matches(day)), "{} is refused", words.text());
            return Ok(());
        };
        prop_assert_eq!(&CronSchedule::parse(&schedule.expr(), Some(tz.name())).unwrap(), &schedule);
        let after = ms(change) - lead_minutes * 60_000 + odd_ms;
        let until = after + 2 * 86_400_000;
        let fires = live_through(&words, tz, after, until);

        let mut at = after;
        let mut found = vec![];
        while let Some(next) = schedule.next_after(at).filter(|next| *next <= until) {
            found.push(next);
            at = next;
        }
        prop_assert_eq!(&found, &fires, "{:?} forwards", schedule);
        prop_assert_eq!(schedule.count_between(after, until, u64::MAX), fires.len() as u64, "{:?}", schedule);
        prop_assert_eq!(schedule.count_between(after, until, 2), fires.len().min(2) as u64, "{:?}", schedule);

        let mut at = until;
        let mut backwards = vec![];
        while let Some(prev) = schedule.prev_at_or_before(at).filter(|prev| *prev > after) {
            backwards.push(prev);
            at = prev - 1;
        }
        backwards.reverse();
        prop_assert_eq!(&backwards, &fires, "{:?} backwards", schedule);

        // The answer depends on the instant alone: asked anywhere between two fires it is the same.
        for pair in fires.windows(2).take(50) {
            let middle = pair[0] + (pair[1] - pair[0]) / 2;
            prop_assert_eq!(schedule.next_after(middle), Some(pair[1]), "{:?} after {}", schedule, text(middle));
            prop_assert_eq!(schedule.prev_at_or_before(middle), Some(pair[0]), "{:?}", schedule);
        }
    }

    #[test]
    fn the_cron_crate_finds_the_same_fires_in_utc(words in Words::any(), start in 0..4_000_000_000i64) {
        // That crate knows no either-day rule.
        prop_assume!(words.day.starred || words.weekday.starred);
        let Ok(schedule) = CronSchedule::parse(&words.text(), None) else { return Ok(()) };
        let list = |values: &BTreeSet<u32>, add: u32| {
            values.iter().map(|value| (value + add).to_string()).collect::<Vec<_>>().join(",")
        };
        let Words { minute, hour, day, month, weekday } = &words;
        let theirs = format!(
            "0 {} {} {} {} {}",
            list(&minute.values, 0),
            list(&hour.values, 0),
            list(&day.values, 0),
            list(&month.values, 0),
            list(&weekday.values, 1), // it counts Sunday as 1
        );
        let theirs: cron::Schedule = theirs.parse().unwrap();
        let mut at = start * 1000;
        // It gives up at 2100.
        for wanted in theirs.after(&DateTime::from_timestamp(start, 0).unwrap()).take(5) {
            at = schedule.next_after(at).unwrap();
            prop_assert_eq!(text(at), wanted.to_rfc3339(), "{:?}", schedule);
        }
    }

    #[test]
    fn the_three_questions_agree_in_any_zone_and_century(
        words in Words::any(),
        tz in proptest::sample::select(&chrono_tz::TZ_VARIANTS[..]),
        start in -6_000_000_000_000..12_000_000_000_000i64,
    ) {
        let Ok(schedule) = CronSchedule::parse(&words.text(), Some(tz.name())) else { return Ok(()) };
        let mut at = start;
        let mut before = schedule.prev_at_or_before(start);
        for count in 1..=8 {
            let next = schedule.next_after(at).unwrap();
            prop_assert!(next > at);
            prop_assert_eq!(schedule.prev_at_or_before(next), Some(next), "{:?} {}", schedule, text(next));
            prop_assert_eq!(schedule.prev_at_or_before(next - 1), before, "{:?} {}", schedule, text(next));
            prop_assert_eq!(schedule.next_after(next - 1), Some(next), "{:?} {}", schedule, text(next));
            prop_assert_eq!(schedule.count_between(start, next, 100), count, "{:?} {}", schedule, text(next));
            prop_assert_eq!(schedule.count_between(start, next - 1, 100), count - 1, "{:?} {}", schedule, text(next));
            before = Some(next);
            at = next;
        }
    }

    #[test]
    fn any_text_is_answered(expr in "[-0-9*?/, LWa-z#@\t\n٣]{0,40}", tz in "\\PC{0,12}") {
        if let Ok(schedule) = CronSchedule::parse(&expr, None) {
            prop_assert!(schedule.next_after(0).is_some());
        }
        let _ = CronSchedule::parse("* * * * *", Some(&tz));
    }
}
