//! Calls on their way out of a host: the queue of what the handler asked for and was not sent yet, cut into the groups
//! that become frames.
//!
//! Words: a *tick* is one turn of the event loop; the calls of a tick that made several carry its number, whatever
//! frames they come in. An automation's call that is still here when the handler settles is *abandoned*: the daemon is
//! told of it, and never makes it. So a call is either sent or abandoned, never both and never neither, whatever the two
//! processes are doing at that moment. A query or an action that settles well leaves no call here; what is here when it
//! fails is dropped.

use std::collections::VecDeque;

use super::wire;
use crate::fire::{CtxCall, CtxCallBody};

#[derive(Default)]
pub(super) struct Outgoing {
    /// In the order in which they were made; their tick's number, once it is known that it made several.
    queue: VecDeque<(Option<u32>, CtxCall)>,
    tick: u32,
    made_this_tick: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, call: CtxCall) {
        self.queue.push_back((None, call));
        self.made_this_tick += 1;
    }

    /// Numbers the calls of the tick that is over.
    pub(super) fn end_tick(&mut self) {
        let made = std::mem::take(&mut self.made_this_tick);
        if made > 1 {
            let tick = self.tick;
            self.tick = tick.wrapping_add(1);
            self.queue.iter_mut().rev().take(made).for_each(|(number, _)| *number = Some(tick));
        }
    }

    /// Takes out the next calls that may share a frame, at most `most`: those of one tick, up to a full frame. None is
    /// given when none waits.
    pub(super) fn next_group(&mut self, most: usize) -> (Vec<CtxCall>, Option<u32>) {
        let (mut calls, mut size, mut number) = (Vec::new(), 0, None);
        while let Some((tick, call)) = self.queue.front() {
            let full = size >= wire::FULL_FRAME || calls.len() >= most;
            if full || (!calls.is_empty() && (tick.is_none() || *tick != number)) {
                break;
            }
            number = *tick;
            size += call_size(&call.body);
            calls.extend(self.queue.pop_front().map(|(_, call)| call));
        }
        (calls, number)
    }

    /// What the log says of the calls that are still here when a query or an action has failed; none when none is.
    pub(super) fn unsent_message(&self) -> Option<String> {
        let labels = self.queue.iter().take(SHOWN_NAMES).map(|(_, call)| label(&call.body, false)).collect();
        let (unsent, names) = (self.queue.len(), listed(self.queue.len(), labels));
        let fate = if unsent == 1 { "was not sent and is not made" } else { "were not sent and are not made" };
        let told = || format!("the handler failed: {unsent} of its `db` calls {fate}: {names}; await each call");
        (unsent > 0).then(told)
    }

    pub(super) fn clear(&mut self) {
        *self = Self { tick: self.tick, ..Self::default() };
    }
}

/// Bytes of a call's texts.
pub(super) fn call_size(body: &CtxCallBody) -> usize {
    match body {
        CtxCallBody::Tool { name, args_json } => name.len() + args_json.len(),
        CtxCallBody::Agent { args_json } | CtxCallBody::Db { args_json } => args_json.len(),
        CtxCallBody::Invoke { handle, input_json } => handle.len() + input_json.as_ref().map_or(0, String::len),
        CtxCallBody::StateGet { key } | CtxCallBody::StateDelete { key } => key.len(),
        CtxCallBody::StateSet { key, value_json } => key.len() + value_json.len(),
        CtxCallBody::RunsList { filter_json } => filter_json.as_ref().map_or(0, String::len),
    }
}

/// Names of pending calls that one log line shows, and the bytes of each name.
pub(super) const SHOWN_NAMES: usize = 3;
const SHOWN_NAME_BYTES: usize = 64;

/// A call as a log line names it: `tool centraid_write`, `state.set "last"`, `db.run`.
pub(super) fn label(body: &CtxCallBody, first_only: bool) -> String {
    let short = |text: &str| {
        let cut = &text[..text.floor_char_boundary(SHOWN_NAME_BYTES)];
        if cut.len() < text.len() { format!("{cut}…") } else { cut.to_owned() }
    };
    match body {
        CtxCallBody::Tool { name, .. } => format!("tool {}", short(name)),
        CtxCallBody::Agent { .. } => "agent".to_owned(),
        CtxCallBody::Invoke { handle, .. } => format!("invoke {}", short(handle)),
        CtxCallBody::StateGet { key } => format!("state.get {:?}", short(key)),
        CtxCallBody::StateSet { key, .. } => format!("state.set {:?}", short(key)),
        CtxCallBody::StateDelete { key } => format!("state.delete {:?}", short(key)),
        CtxCallBody::RunsList { .. } if first_only => "runs.last".to_owned(),
        CtxCallBody::RunsList { .. } => "runs.list".to_owned(),
        CtxCallBody::Db { .. } if TransactionStep::of(body).is_some() => "db.transaction".to_owned(),
        CtxCallBody::Db { args_json } => format!("db.{}", db_op(args_json)),
    }
}

/// The operation of a `db` call: this runtime wrote the text, with the operation first.
fn db_op(args_json: &str) -> &str {
    args_json.strip_prefix("{\"op\":\"").and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

/// What a `db` call does to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransactionStep {
    Begin,
    /// Commit or rollback.
    End,
}

impl TransactionStep {
    pub(super) fn of(body: &CtxCallBody) -> Option<Self> {
        let CtxCallBody::Db { args_json } = body else { return None };
        match db_op(args_json) {
            "begin" => Some(Self::Begin),
            "commit" | "rollback" => Some(Self::End),
            _ => None,
        }
    }
}

/// What the log says of calls that were pending when an automation's handler settled; `labels` are those of the first
/// few.
pub(super) fn pending_message(pending: usize, labels: Vec<String>) -> String {
    let fate = if pending == 1 { "it is cancelled" } else { "they are cancelled" };
    let names = listed(pending, labels);
    format!("the handler settled before {pending} of its calls had ended, and {fate}: {names}; await each call")
}

/// `a, b, c and 6 more`, of so many in all.
fn listed(all: usize, mut labels: Vec<String>) -> String {
    labels.truncate(SHOWN_NAMES);
    let more = all.saturating_sub(labels.len());
    if more > 0 {
        labels.push(format!("{more} more"));
    }
    match labels.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => labels.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: u32) -> CtxCall {
        CtxCall { id, at: 0, body: CtxCallBody::Tool { name: "t".into(), args_json: "{}".into() } }
    }

    #[test]
    fn groups_are_of_one_tick_and_one_frame() {
        let mut outgoing = Outgoing::default();
        let mut id = 0;
        for made in [1, 3, 0, 1, 1, 5] {
            for _ in 0..made {
                outgoing.push(call(id));
                id += 1;
            }
            outgoing.end_tick();
        }
        let mut groups = Vec::new();
        loop {
            let (calls, tick) = outgoing.next_group(4);
            if calls.is_empty() {
                break;
            }
            groups.push((tick, calls.iter().map(|call| call.id).collect::<Vec<_>>()));
        }
        assert_eq!(
            groups,
            [
                (None, vec![0]),
                (Some(0), vec![1, 2, 3]),
                (None, vec![4]),
                (None, vec![5]),
                (Some(1), vec![6, 7, 8, 9]),
                (Some(1), vec![10]),
            ]
        );
    }

    #[test]
    fn a_line_names_a_few_pending_calls() {
        let labels = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let told = |pending, names: &[&str]| pending_message(pending, labels(names));
        let start = "the handler settled before";
        for (got, expected) in [
            (told(1, &["tool a"]), "1 of its calls had ended, and it is cancelled: tool a; await each call"),
            (told(2, &["a", "b"]), "2 of its calls had ended, and they are cancelled: a and b; await each call"),
            (
                told(9, &["a", "b", "c", "d"]),
                "9 of its calls had ended, and they are cancelled: a, b, c and 6 more; await each call",
            ),
        ] {
            assert_eq!(got, format!("{start} {expected}"));
        }
        let long = label(&CtxCallBody::StateGet { key: "é\n".repeat(1000) }, false);
        assert!(long.starts_with("state.get \"é\\né") && long.ends_with("…\"") && long.len() < 120, "{long}");
    }

    #[test]
    fn a_line_names_a_few_calls_that_were_not_sent() {
        let mut outgoing = Outgoing::default();
        assert_eq!(outgoing.unsent_message(), None);
        for (op, expected) in [
            ("get", "1 of its `db` calls was not sent and is not made: db.get"),
            ("begin", "2 of its `db` calls were not sent and are not made: db.get and db.transaction"),
            ("run", "3 of its `db` calls were not sent and are not made: db.get, db.transaction and db.run"),
            ("exec", "4 of its `db` calls were not sent and are not made: db.get, db.transaction, db.run and 1 more"),
        ] {
            let body = CtxCallBody::Db { args_json: format!("{{\"op\":\"{op}\",\"sql\":\"x\"}}") };
            outgoing.push(CtxCall { id: 0, at: 0, body });
            let message = outgoing.unsent_message().expect("there is one");
            assert_eq!(message, format!("the handler failed: {expected}; await each call"));
        }
    }
}
