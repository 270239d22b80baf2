//! What a run comes to: what its handler returned or threw, and the rejections that nobody handled, in texts within their
//! limits.

use deno_core::v8;

use super::{Stopped, Turn};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::ErrorCode;
use crate::isolate::{Outcome, ops};

/// Lines of a stack that a failure's message carries.
const MAX_STACK_LINES: usize = 20;
/// Bytes of a failure's first line; an error's message may quote anything.
const MAX_MESSAGE: usize = 16 << 10;
/// Stands behind the message of a rejection that nobody handled.
const NOT_AWAITED: &str = " (not awaited by the handler: await each `db` call)";

impl Turn<'_> {
    /// Rejections that nobody has handled go to the log; they do not fail the run.
    pub(super) fn log_rejections(&self, scope: &mut v8::PinScope<'_, '_>) {
        let (values, _) = self.state.rejections.borrow_mut().take();
        values.into_iter().for_each(|value| self.log_rejection(scope, value));
    }

    fn log_rejection(&self, scope: &mut v8::PinScope<'_, '_>, value: v8::Global<v8::Value>) {
        v8::scope!(let scope, scope);
        let value = v8::Local::new(scope, value);
        self.call(scope, &self.entries.rejected, &[value]);
    }

    /// What the first rejection that nobody has handled comes to, if there is one; the others go to the log.
    pub(super) fn unhandled(&self, scope: &mut v8::PinScope<'_, '_>) -> Option<Outcome> {
        let (values, beyond) = self.state.rejections.borrow_mut().take();
        let mut values = values.into_iter();
        let outcome = match values.next() {
            Some(first) => {
                v8::scope!(let scope, scope);
                let first = v8::Local::new(scope, first);
                self.describe(scope, first, ErrorCode::HandlerThrew, NOT_AWAITED)
            }
            None if beyond == 0 => return None,
            None => Outcome::failed(ErrorCode::HandlerThrew, format!("a promise was rejected{NOT_AWAITED}")),
        };
        values.for_each(|value| self.log_rejection(scope, value));
        Some(outcome)
    }

    /// What the returned value says, by the kind of the job.
    pub(super) fn outcome(
        &self,
        scope: &mut v8::PinScope<'_, '_>,
        value: v8::Local<'_, v8::Value>,
    ) -> Result<Outcome, Stopped> {
        let is_automation = self.is_automation;
        let entry = if is_automation { &self.entries.outcome } else { &self.entries.returned };
        let value = v8::Local::new(scope, value);
        let [summary, json, problem] = self.three(scope, entry, value);
        if self.shared.stopped().is_some() {
            return Err(Stopped::Limit);
        }
        if let Some(problem) = problem {
            return Ok(Outcome::failed(ErrorCode::BadOutput, problem));
        }
        let limits = &self.state.limits;
        let most = if is_automation { limits.max_output_bytes } else { limits.max_value_bytes };
        if let Some(json) = json.as_ref().filter(|json| json.len() as u64 > most) {
            let size = json.len();
            let message = format!("output is {size} bytes of JSON; the limit is {most}");
            return Ok(Outcome::failed(ErrorCode::BadOutput, message));
        }
        if json.as_deref().is_some_and(is_too_deep) {
            let what = if is_automation { "output" } else { "the returned value" };
            return Ok(Outcome::failed(ErrorCode::BadOutput, too_deep(what)));
        }
        if !is_automation {
            return Ok(Outcome::Returned { value_json: json });
        }
        let most = usize::try_from(limits.max_summary_bytes).unwrap_or(usize::MAX);
        Ok(Outcome::Settled { summary: summary.map(|text| cut(text, most)), output_json: json })
    }

    /// The three texts that an entry of `99_entry.js` gives.
    fn three(
        &self,
        scope: &mut v8::PinScope<'_, '_>,
        entry: &v8::Global<v8::Function>,
        value: v8::Local<'_, v8::Value>,
    ) -> [Option<String>; 3] {
        v8::scope!(let scope, scope);
        let value = v8::Local::new(scope, value);
        let list = self.call(scope, entry, &[value]).and_then(|made| made.try_cast::<v8::Array>().ok());
        [0, 1, 2].map(|index| {
            let value = list.as_ref()?.get_index(scope, index)?;
            ops::string(scope, value)
        })
    }

    /// A failure of what was thrown; `remark` comes behind its message.
    pub(super) fn describe(
        &self,
        scope: &mut v8::PinScope<'_, '_>,
        error: v8::Local<'_, v8::Value>,
        code: ErrorCode,
        remark: &str,
    ) -> Outcome {
        let [message, stack, error_code] = self.three(scope, &self.entries.describe, error);
        let message = message.unwrap_or_else(|| "the handler threw something that cannot be shown".to_owned());
        let mut text = cut(message, MAX_MESSAGE);
        text.push_str(remark);
        let lines = stack.as_deref().unwrap_or_default().lines().filter(|line| line.starts_with("    at "));
        for line in lines.take(MAX_STACK_LINES) {
            text.push('\n');
            text.push_str(&cut(line.to_owned(), 300));
        }
        Outcome::Failed { code, message: text, error_code }
    }
}

/// At most `most` bytes, on a character boundary.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn cuts_between_characters() {
        for (most, expected) in [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (9, "aéz")] {
            assert_eq!(cut("aéz".to_owned(), most), expected, "{most}");
        }
    }
}
