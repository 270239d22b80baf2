//! What a host may say of its run: the rules for its frames' contents, on the daemon's side.
//!
//! A host runs code that nobody trusts, so what it sends is judged as if that code had written it. A host that breaks a
//! rule is killed; what passes here can be recorded and made without asking again. An honest host keeps every rule by
//! itself, also when its handler does not.

use std::collections::HashSet;

use super::wire::{self, FromHost, MAX_ABANDONED};
use super::{Limits, Outcome};
use crate::core::json_depth::is_too_deep;
use crate::fire::{CtxCall, LogLine};

/// The calls of one run, as far as they matter for what may come next.
#[derive(Default)]
pub(super) struct Accepted {
    /// Sent and not answered.
    open: HashSet<u32>,
    /// Numbers rise, so that none is used twice; this is the lowest that may come.
    next_id: u64,
    abandoned: usize,
}

impl Accepted {
    /// # Errors
    /// The rule that was broken.
    pub(super) fn batch(&mut self, calls: &[CtxCall], limits: &Limits) -> Result<(), &'static str> {
        if self.abandoned > 0 {
            return Err("a batch after calls that were abandoned");
        }
        self.number(calls)?;
        self.open.extend(calls.iter().map(|call| call.id));
        if self.open.len() > limits.in_flight as usize {
            return Err("more calls in flight than allowed");
        }
        Ok(())
    }

    /// # Errors
    /// The rule that was broken.
    pub(super) fn abandoned(&mut self, calls: &[CtxCall]) -> Result<(), &'static str> {
        self.abandoned += calls.len();
        match calls.len() {
            0 => Err("an empty list of abandoned calls"),
            _ if self.abandoned > MAX_ABANDONED => Err("more abandoned calls than allowed"),
            _ => self.number(calls),
        }
    }

    /// False when no call with this number is open.
    pub(super) fn answer(&mut self, id: u32) -> bool {
        self.open.remove(&id)
    }

    fn number(&mut self, calls: &[CtxCall]) -> Result<(), &'static str> {
        for call in calls {
            if u64::from(call.id) < self.next_id {
                return Err("the same call twice, or out of order");
            }
            self.next_id = u64::from(call.id) + 1;
        }
        Ok(())
    }
}

/// Judges what a frame carries, whatever came before it. Reads every byte of its values, so no lock should be held.
///
/// # Errors
/// The rule that was broken.
pub(super) fn values(frame: &FromHost) -> Result<(), &'static str> {
    let (logs, calls): (&[LogLine], &[CtxCall]) = match frame {
        FromHost::Ready => return Ok(()),
        FromHost::Batch { logs, calls, .. } => (logs, calls),
        FromHost::Abandoned { calls, .. } => (&[], calls),
        FromHost::Ended(end) => {
            let result = match &end.outcome {
                Outcome::Settled { output_json, .. } => output_json.as_deref(),
                Outcome::Returned { value_json } => value_json.as_deref(),
                Outcome::Failed { .. } | Outcome::Aborted => None,
            };
            return if result.is_some_and(is_too_deep) { Err("a result that nests too deep") } else { Ok(()) };
        }
    };
    if logs.iter().any(|line| line.fields_json.as_deref().is_some_and(is_too_deep)) {
        return Err("a log line that nests too deep");
    }
    if calls.iter().any(|call| wire::value_of(&call.body).is_some_and(is_too_deep)) {
        return Err("a call whose value nests too deep");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::json_depth::MAX_JSON_DEPTH;
    use crate::fire::{CtxCallBody, LogLevel};
    use crate::isolate::JobEnd;

    fn calls(ids: impl IntoIterator<Item = u32>) -> Vec<CtxCall> {
        let call = |id| CtxCall { id, at: 0, body: CtxCallBody::StateGet { key: "k".into() } };
        ids.into_iter().map(call).collect()
    }

    #[test]
    fn an_honest_run_passes() {
        let limits = Limits { in_flight: 2, ..Limits::default() };
        let mut accepted = Accepted::default();
        assert_eq!(accepted.batch(&calls([0, 1]), &limits), Ok(()));
        assert!(accepted.answer(0) && !accepted.answer(0) && !accepted.answer(7));
        assert_eq!(accepted.batch(&calls([2]), &limits), Ok(()));
        // They are not in flight, and never answered.
        assert_eq!(accepted.abandoned(&calls(3..10_000)), Ok(()));
        assert_eq!(accepted.abandoned(&calls(10_000..20_003)), Ok(()));
        assert!(!accepted.answer(3) && accepted.answer(1));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        type Step = fn(&mut Accepted) -> Result<(), &'static str>;
        let after: &[(&str, Step)] = &[
            ("a batch", |run| run.batch(&calls([9]), &Limits::default())),
            ("a batch", |run| run.batch(&[], &Limits::default())),
            ("twice", |run| run.abandoned(&calls([5]))),
            ("out of order", |run| run.abandoned(&calls([3]))),
            ("twice", |run| run.abandoned(&calls([6, 6]))),
            ("empty", |run| run.abandoned(&[])),
            ("more abandoned", |run| run.abandoned(&calls(6..20_006))),
        ];
        for (words, step) in after {
            let mut accepted = Accepted::default();
            accepted.abandoned(&calls([5])).expect("as it should be");
            let error = step(&mut accepted).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        assert!(Accepted::default().batch(&calls(0..257), &Limits::default()).is_err());
    }

    #[test]
    fn values_nest_as_deep_as_they_may() {
        let frames = |json: String| {
            let line = LogLine { at: 0, level: LogLevel::Info, message: json.clone(), fields_json: Some(json.clone()) };
            let call = |body| vec![CtxCall { id: 0, at: 0, body }];
            let set = CtxCallBody::StateSet { key: json.clone(), value_json: json.clone() };
            let ended = |outcome| FromHost::Ended(JobEnd { outcome, cpu_ms: 0, peak_bytes: None });
            [
                FromHost::Batch { logs: vec![line], calls: vec![], tick: None },
                FromHost::Batch { logs: vec![], calls: call(set.clone()), tick: None },
                FromHost::Abandoned { calls: call(set), tick: None },
                FromHost::Abandoned { calls: call(CtxCallBody::Db { args_json: json.clone() }), tick: None },
                ended(Outcome::Settled { summary: Some(json.clone()), output_json: Some(json.clone()) }),
                ended(Outcome::Returned { value_json: Some(json) }),
            ]
        };
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        for frame in frames(nested(MAX_JSON_DEPTH)) {
            assert_eq!(values(&frame), Ok(()), "{frame:?}");
        }
        for frame in frames(nested(MAX_JSON_DEPTH + 1)) {
            assert!(values(&frame).is_err(), "{frame:?}");
        }
        let failed = Outcome::failed(crate::fire::ErrorCode::HandlerThrew, nested(MAX_JSON_DEPTH + 1));
        assert_eq!(values(&FromHost::Ended(JobEnd { outcome: failed, cpu_ms: 0, peak_bytes: None })), Ok(()));
    }
}
