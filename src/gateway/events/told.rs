//! What of a run a listener has been told, small enough to travel as the id of every event. A listener that comes back
//! with one gets exactly the rest, also from another daemon: the id leans on nothing but the run's rows.
//!
//! The text form is `<heads>.<logs>.<nodes>.<closed>`, decimal: which of the run's own events were told (1 opened, 2
//! started, 4 ended), how many log lines and nodes (they are told in the order of their numbers), and the nodes whose
//! end was told, as `0+7_9_12+1`: where a row of them begins, and how many more follow. Nodes end in any order, but at
//! most a few hundred are under way at once, so there are as few gaps.

use std::fmt;
use std::str::FromStr;

use crate::daemon::RunHappening;

const OPENED: u8 = 1;
const STARTED: u8 = 2;
const ENDED: u8 = 4;

/// Longer than any id that was given out: with a gap for each of the calls that may be under way, and some.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// See the module text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    heads: u8,
    /// The number after the highest that was told.
    logs: u32,
    nodes: u32,
    closed: Ranges,
}

/// An id that was not given out by a stream of a run's events.
#[derive(Debug, PartialEq, Eq)]
pub struct NoSuchId;

impl Told {
    /// Takes an event in; false when it was told before.
    pub fn take(&mut self, what: &RunHappening) -> bool {
        match what {
            RunHappening::Opened { .. } => self.take_head(OPENED),
            RunHappening::Started { .. } => self.take_head(STARTED),
            RunHappening::Ended { .. } => self.take_head(ENDED),
            RunHappening::Log { seq, .. } => raise(&mut self.logs, *seq),
            RunHappening::NodeOpened { ordinal, .. } => raise(&mut self.nodes, *ordinal),
            RunHappening::NodeClosed { ordinal, .. } => self.closed.insert(*ordinal),
        }
    }

    /// The run's end was told, and with it everything.
    pub fn is_all(&self) -> bool {
        self.heads & ENDED != 0
    }

    /// The last log line up to which all were told.
    pub fn logs_done(&self) -> Option<u32> {
        self.logs.checked_sub(1)
    }

    /// The last node up to which all beginnings and ends were told.
    pub fn nodes_done(&self) -> Option<u32> {
        self.closed.prefix().min(self.nodes).checked_sub(1)
    }

    fn take_head(&mut self, head: u8) -> bool {
        let new = self.heads & head == 0;
        self.heads |= head;
        new
    }
}

fn raise(next: &mut u32, number: u32) -> bool {
    let new = number >= *next;
    if new {
        *next = number.saturating_add(1);
    }
    new
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.{}", self.heads, self.logs, self.nodes, self.closed)
    }
}

impl FromStr for Told {
    type Err = NoSuchId;

    fn from_str(text: &str) -> Result<Self, NoSuchId> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(NoSuchId);
        }
        let mut parts = text.splitn(4, '.');
        let mut part = || parts.next().ok_or(NoSuchId);
        let heads = number(part()?)?;
        let (logs, nodes, closed) = (number(part()?)?, number(part()?)?, part()?.parse()?);
        let heads = u8::try_from(heads).ok().filter(|heads| *heads <= OPENED | STARTED | ENDED).ok_or(NoSuchId)?;
        Ok(Self { heads, logs, nodes, closed })
    }
}

fn number(text: &str) -> Result<u32, NoSuchId> {
    // `parse` would take a sign.
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().map_err(|_| NoSuchId) } else { Err(NoSuchId) }
}

/// Numbers, as ranges that neither touch nor overlap, in order; both ends belong to a range.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// False when it was there.
    fn insert(&mut self, number: u32) -> bool {
        // The first range that does not end before the number.
        let at = self.0.partition_point(|&(_, end)| end < number);
        if self.0.get(at).is_some_and(|&(start, _)| start <= number) {
            return false;
        }
        let joins_before = at > 0 && self.0[at - 1].1.checked_add(1) == Some(number);
        let joins_after = self.0.get(at).is_some_and(|&(start, _)| number.checked_add(1) == Some(start));
        match (joins_before, joins_after) {
            (true, true) => {
                let (_, end) = self.0.remove(at);
                self.0[at - 1].1 = end;
            }
            (true, false) => self.0[at - 1].1 = number,
            (false, true) => self.0[at].0 = number,
            (false, false) => self.0.insert(at, (number, number)),
        }
        true
    }

    /// All numbers below this one are there.
    fn prefix(&self) -> u32 {
        match self.0.first() {
            Some(&(0, end)) => end.saturating_add(1),
            _ => 0,
        }
    }
}

impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, &(start, end)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "_" };
            match end - start {
                0 => write!(f, "{comma}{start}")?,
                more => write!(f, "{comma}{start}+{more}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Ranges {
    type Err = NoSuchId;

    fn from_str(text: &str) -> Result<Self, NoSuchId> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for part in text.split('_').filter(|_| !text.is_empty()) {
            let (start, more) = part.split_once('+').unwrap_or((part, "0"));
            let start = number(start)?;
            ranges.push((start, start.saturating_add(number(more)?)));
        }
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins = next.0 <= before.1.saturating_add(1);
            if joins {
                before.1 = before.1.max(next.1);
            }
            joins
        });
        Ok(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fire::RunStatus;

    #[test]
    fn an_id_says_what_was_told() {
        let at = 0;
        let closed = |ordinal| RunHappening::NodeClosed { ordinal, ok: true, error: None, at };
        let log = |seq| RunHappening::Log {
            seq,
            at,
            level: crate::fire::LogLevel::Info,
            message: String::new(),
            fields: None,
        };
        let ended = RunHappening::Ended { status: RunStatus::Ok, at, summary: None, error: None, error_code: None };
        let mut told = Told::default();
        for (what, new, id) in [
            (RunHappening::Started { at }, true, "2.0.0."),
            (RunHappening::Started { at }, false, "2.0.0."),
            (log(0), true, "2.1.0."),
            (log(3), true, "2.4.0."),
            (log(2), false, "2.4.0."),
            (closed(1), true, "2.4.0.1"),
            (closed(3), true, "2.4.0.1_3"),
            (closed(2), true, "2.4.0.1+2"),
            (closed(2), false, "2.4.0.1+2"),
            (closed(0), true, "2.4.0.0+3"),
            (closed(9), true, "2.4.0.0+3_9"),
            (ended, true, "6.4.0.0+3_9"),
        ] {
            assert_eq!(told.take(&what), new, "{what:?} before {told}");
            assert_eq!(told.to_string(), id);
            assert_eq!(id.parse().as_ref(), Ok(&told), "{id}");
        }
        assert_eq!((told.is_all(), told.logs_done(), told.nodes_done()), (true, Some(3), None));
        let told: Told = "3.0.5.0+8".parse().unwrap();
        assert_eq!((told.is_all(), told.logs_done(), told.nodes_done()), (false, None, Some(4)));
    }

    #[test]
    fn no_other_text_is_an_id() {
        for text in [
            "",
            "1",
            "1.2.3",
            "8.0.0.",
            "1.0.0.x",
            "1.0.0.3-1",
            "1.0.0._1",
            "-1.0.0.",
            "+1.0.0.",
            "1.0.0.1.2",
            "1.99999999999.0.",
            "1..0.",
            "1.0.0.+1",
            "1.0.0.1+",
            " 1.0.0.",
            "é",
            "1.0.0.1+2+3",
        ] {
            assert_eq!(text.parse::<Told>(), Err(NoSuchId), "{text:?}");
        }
        assert_eq!(format!("1.0.0.{}", "1_".repeat(MAX_TEXT_BYTES)).parse::<Told>(), Err(NoSuchId));
        let untidy: Told = "1.0.0.7+1_1_2_5+9".parse().unwrap();
        assert_eq!(untidy.to_string(), "1.0.0.1+1_5+9");
        assert!("7.4294967295.4294967295.0+4294967295".parse::<Told>().is_ok());
    }

    proptest! {
        #[test]
        fn ranges_hold_what_a_set_holds(numbers in prop::collection::vec(0u32..40, 0..60)) {
            let mut set = std::collections::BTreeSet::new();
            let mut ranges = Ranges::default();
            for number in numbers {
                prop_assert_eq!(ranges.insert(number), set.insert(number));
                prop_assert_eq!(&ranges.to_string().parse::<Ranges>(), &Ok(ranges.clone()));
                let held: Vec<u32> = ranges.0.iter().flat_map(|&(start, end)| start..=end).collect();
                prop_assert!(held.iter().eq(set.iter()));
                let prefix = (0u32..).find(|n| !set.contains(n));
                prop_assert_eq!(Some(ranges.prefix()), prefix);
            }
        }
    }
}
