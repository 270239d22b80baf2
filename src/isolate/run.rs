//! One run in one fresh isolate: load the module, call its default export, and turn the event loop until the
//! handler's promise settles, nothing is left that could settle it, or the run is stopped.
//!
//! There is no async runtime here. One turn is: run what is due, drain the microtasks, send what they asked for, wait
//! for the next frame or timer. The handler's promise is read by its state, never through its `then`, which is the
//! handler's to patch.
//!
//! When an automation's promise settles, execution is terminated: nothing of the handler runs afterwards but the getters
//! of what it returned. When that of a query or an action is fulfilled, its result is taken, and then the loop goes on
//! until every `db` call has been answered and every transaction is over, so that no write is lost because nobody waited
//! for it; only these keep it going, timers do not. What fails meanwhile and is handled by nobody fails the run.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use deno_core::v8;
use v8::MapFnTo;

use super::limits::{Next, Shared};
use super::loader::{self, CodeCache};
use super::ops::{self, State};
use super::snapshot::{Entries, Fresh};
use super::wire::ToHost;
use super::{Job, JobKind, Limits, Outcome};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::ErrorCode;
use crate::handler_check;

/// Lines of a stack that a failure's message carries.
const MAX_STACK_LINES: usize = 20;
/// Bytes of a failure's first line; an error's message may quote anything.
const MAX_MESSAGE: usize = 16 << 10;
/// Stands behind the message of a rejection that nobody handled.
const NOT_AWAITED: &str = " (not awaited by the handler: await each `db` call)";

/// Why a turn of the loop did not lead to another.
enum Stopped {
    /// Stopped by a limit; the watchdog's record says which.
    Limit,
    /// The daemon does not listen any more.
    Gone,
    End(Outcome),
}

impl From<io::Error> for Stopped {
    fn from(_: io::Error) -> Self {
        Stopped::Gone
    }
}

impl From<Outcome> for Stopped {
    fn from(outcome: Outcome) -> Self {
        Stopped::End(outcome)
    }
}

/// Runs `job` to its end. What it logged, and the calls that were never made for it, have been sent when `ended` is
/// called.
///
/// # Errors
/// When the daemon is gone.
pub(super) fn run(
    fresh: &mut Fresh,
    shared: &'static Shared,
    limits: &Limits,
    number: u32,
    job: &Job,
    cache: &mut CodeCache,
    ended: impl FnOnce(Outcome) -> io::Result<()>,
) -> io::Result<()> {
    shared.begin(fresh.isolate.thread_safe_handle(), limits, job.cpu_ms);
    let state = Rc::new(State::new(shared, limits.clone(), fresh.entries.stack.clone()));
    fresh.isolate.set_slot(state.clone());

    v8::scope!(let scope, &mut fresh.isolate);
    let context = v8::Local::new(scope, &fresh.context);
    let scope = &mut v8::ContextScope::new(scope, context);
    let is_automation = matches!(job.kind, JobKind::Automation { .. });
    let entries = &fresh.entries;
    let mut turn = Turn { state: &state, entries, shared, number, is_automation, aborted: false, module: None };
    let outcome = match turn.whole(scope, job, cache) {
        Ok(outcome) | Err(Stopped::End(outcome)) => outcome,
        Err(Stopped::Limit) => Outcome::Aborted,
        Err(Stopped::Gone) => return Err(io::ErrorKind::BrokenPipe.into()),
    };
    let stopped = shared.stopped();
    let outcome = match stopped {
        Some(why) => why.outcome(),
        None if turn.aborted => Outcome::Aborted,
        None => outcome,
    };
    let settled = matches!(outcome, Outcome::Settled { .. } | Outcome::Returned { .. });
    if stopped.is_none() && !turn.aborted {
        if is_automation {
            state.log_pending();
        } else {
            turn.log_rejections(scope);
            state.log_unsent();
        }
    }
    // A run that was stopped by a limit tells of no calls: its host has done enough for it.
    state.flush_last(is_automation && stopped.is_none())?;
    ended(outcome)?;
    if let Some(module) = turn.module.filter(|_| settled) {
        let module = v8::Local::new(scope, module);
        cache.keep(scope, job, module);
    }
    Ok(())
}

struct Turn<'a> {
    state: &'a Rc<State>,
    entries: &'a Entries,
    shared: &'static Shared,
    number: u32,
    is_automation: bool,
    aborted: bool,
    module: Option<v8::Global<v8::Module>>,
}

impl Turn<'_> {
    fn whole(
        &mut self,
        scope: &mut v8::PinScope<'_, '_>,
        job: &Job,
        cache: &mut CodeCache,
    ) -> Result<Outcome, Stopped> {
        if let JobKind::Study { contract } = job.kind {
            let study = serde_json::to_string(&handler_check::study(&job.source, contract));
            return Ok(Outcome::Returned { value_json: study.ok() });
        }
        let module = loader::load(scope, job, cache)?;
        if matches!(job.kind, JobKind::Check) {
            return if loader::has_default_export(scope, module) {
                Ok(Outcome::Returned { value_json: None })
            } else {
                Ok(Outcome::failed(ErrorCode::NoDefaultExport, "the module has no default export"))
            };
        }
        self.module = Some(v8::Global::new(scope, module));
        // Before any code of the handler runs, so that it finds nothing patched.
        let arguments = self.arguments(scope, job)?;

        let evaluated = {
            v8::tc_scope!(let scope, scope);
            module.evaluate(scope)
        };
        let Some(promise) = evaluated.and_then(|value| value.try_cast::<v8::Promise>().ok()) else {
            return self.stopped_or(Outcome::failed(ErrorCode::HandlerLoad, "the handler cannot be evaluated"));
        };
        let promise = self.own(scope, promise);
        if let Err(error) = self.settle(scope, &promise)? {
            return Ok(self.describe(scope, error, ErrorCode::HandlerLoad, ""));
        }

        let handler = loader::default_export(scope, module)?;
        let (called, error) = {
            v8::tc_scope!(let scope, scope);
            let this = v8::undefined(scope).into();
            let called = handler.call(scope, this, &arguments);
            (called, scope.exception())
        };
        let value = match (called, error) {
            (Some(value), _) => value,
            (None, Some(error)) if self.shared.stopped().is_none() => {
                return Ok(self.describe(scope, error, ErrorCode::HandlerThrew, ""));
            }
            (None, _) => return Err(Stopped::Limit),
        };
        let result = match self.promise_of(scope, value)? {
            None => Ok(value),
            Some(promise) => self.settle(scope, &promise)?,
        };
        let outcome = match result {
            Ok(value) => self.outcome(scope, value)?,
            Err(error) => self.describe(scope, error, ErrorCode::HandlerThrew, ""),
        };
        if matches!(outcome, Outcome::Returned { .. }) {
            self.finish_calls(scope)?;
            return Ok(self.unhandled(scope).unwrap_or(outcome));
        }
        Ok(outcome)
    }

    /// The default export's arguments.
    fn arguments<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        job: &Job,
    ) -> Result<Vec<v8::Local<'s, v8::Value>>, Stopped> {
        let (entry, first, second) = match &job.kind {
            JobKind::Automation { run_json } => (&self.entries.automation, run_json.as_str(), None),
            JobKind::Query { app, name } => (&self.entries.query, app.as_str(), Some(name.as_str())),
            JobKind::Action { app, name } => (&self.entries.action, app.as_str(), Some(name.as_str())),
            JobKind::Check | JobKind::Study { .. } => return Ok(vec![]),
        };
        let texts = [Some(first), second].into_iter().flatten().map(Some).chain([job.input_json.as_deref()]);
        let mut given: Vec<v8::Local<v8::Value>> = Vec::new();
        for text in texts {
            given.push(match text {
                None => v8::undefined(scope).into(),
                Some(text) => v8::String::new(scope, text).ok_or_else(|| bad_input("it is too long"))?.into(),
            });
        }
        let made = self.call(scope, entry, &given).ok_or_else(|| bad_input("it is no JSON"))?;
        let list = made.try_cast::<v8::Array>().map_err(|_| bad_input("it is no JSON"))?;
        Ok((0..list.length()).filter_map(|index| list.get_index(scope, index)).collect())
    }

    /// Calls a function of the runtime; what it throws is not the handler's, and is dropped.
    fn call<'s>(
        &self,
        scope: &mut v8::PinScope<'s, '_>,
        entry: &v8::Global<v8::Function>,
        given: &[v8::Local<'s, v8::Value>],
    ) -> Option<v8::Local<'s, v8::Value>> {
        v8::tc_scope!(let scope, scope);
        let function = v8::Local::new(scope, entry);
        let this = v8::undefined(scope).into();
        function.call(scope, this, given)
    }

    /// A promise to wait for: the value itself, or what a thenable comes to. None for any other value.
    fn promise_of(
        &self,
        scope: &mut v8::PinScope<'_, '_>,
        value: v8::Local<'_, v8::Value>,
    ) -> Result<Option<v8::Global<v8::Promise>>, Stopped> {
        if !value.is_object() {
            return Ok(None);
        }
        v8::tc_scope!(let scope, scope);
        let promise = match value.try_cast::<v8::Promise>() {
            Ok(promise) => promise,
            Err(_) => {
                let Some(resolver) = v8::PromiseResolver::new(scope) else {
                    return Err(Stopped::Limit);
                };
                resolver.resolve(scope, value);
                resolver.get_promise(scope)
            }
        };
        if self.is_automation && promise.state() == v8::PromiseState::Pending {
            // Stops the microtasks that stand behind the handler's own end. When the handler has patched what `then`
            // looks up, this may fail; the state is looked at after every turn in any case.
            let done = v8::Function::builder_raw(on_settled.map_fn_to()).build(scope);
            if let Some(done) = done {
                promise.then2(scope, done, done);
            }
        }
        Ok(Some(self.own(scope, promise)))
    }

    /// A promise that this loop looks at by itself: its rejection is not one that nobody handles.
    fn own(&self, scope: &v8::PinScope<'_, '_>, promise: v8::Local<'_, v8::Promise>) -> v8::Global<v8::Promise> {
        promise.mark_as_handled();
        self.state.rejections.borrow_mut().forget(promise);
        v8::Global::new(scope, promise)
    }

    /// Turns the loop until the promise settles.
    fn settle<'s>(
        &mut self,
        scope: &mut v8::PinScope<'s, '_>,
        promise: &v8::Global<v8::Promise>,
    ) -> Result<Result<v8::Local<'s, v8::Value>, v8::Local<'s, v8::Value>>, Stopped> {
        loop {
            let state = v8::Local::new(scope, promise).state();
            if state == v8::PromiseState::Pending {
                v8::scope!(let scope, scope);
                scope.perform_microtask_checkpoint();
            }
            if self.state.settled.replace(false) {
                scope.cancel_terminate_execution();
            }
            if self.shared.stopped().is_some() {
                return Err(Stopped::Limit);
            }
            if self.is_automation {
                self.log_rejections(scope);
            }
            let local = v8::Local::new(scope, promise);
            match local.state() {
                v8::PromiseState::Fulfilled => return Ok(Ok(local.result(scope))),
                v8::PromiseState::Rejected => return Ok(Err(local.result(scope))),
                v8::PromiseState::Pending => {}
            }
            self.state.flush()?;
            if !self.state.has_pending() {
                return Err(Stopped::End(Outcome::failed(
                    ErrorCode::NeverSettled,
                    "the handler's promise can never settle: no call and no timer is left that could",
                )));
            }
            v8::scope!(let scope, scope);
            self.wait(scope)?;
        }
    }

    /// Turns the loop until every `db` call is answered and every transaction over, those included that the handler's
    /// code makes meanwhile: if it never comes to an end, a limit ends it.
    fn finish_calls(&mut self, scope: &mut v8::PinScope<'_, '_>) -> Result<(), Stopped> {
        loop {
            {
                v8::scope!(let scope, scope);
                scope.perform_microtask_checkpoint();
            }
            if self.shared.stopped().is_some() {
                return Err(Stopped::Limit);
            }
            self.state.flush()?;
            if !self.state.has_open_calls() {
                return Ok(());
            }
            if !self.state.has_pending() {
                return Err(Stopped::End(Outcome::failed(
                    ErrorCode::NeverSettled,
                    "a transaction that the handler did not await can never end: no call and no timer is left that could \
                     end it",
                )));
            }
            v8::scope!(let scope, scope);
            self.wait(scope)?;
        }
    }

    /// Waits for the next frame or timer, and does what it asks.
    fn wait(&mut self, scope: &mut v8::PinScope<'_, '_>) -> Result<(), Stopped> {
        let timer = self.state.timers.borrow().next_at();
        let grace = if self.aborted { self.shared.grace_ends() } else { None };
        let deadline = [timer, grace].into_iter().flatten().min();
        self.shared.set_idle();
        let next = self.shared.inbox().next(deadline);
        self.shared.set_busy();
        match next {
            Next::Frame(frame) => self.frame(scope, frame)?,
            Next::Timeout => {}
            Next::Ended => return Err(Stopped::Gone),
        }
        if self.aborted && grace.is_some_and(|at| at <= Instant::now()) {
            return Err(Stopped::End(Outcome::Aborted));
        }
        let now = Instant::now();
        loop {
            let Some(function) = self.state.timers.borrow_mut().take_due(now) else {
                return Ok(());
            };
            v8::scope!(let scope, scope);
            self.call(scope, &function, &[]);
            scope.perform_microtask_checkpoint();
            if self.shared.stopped().is_some() || self.state.settled.get() {
                return Ok(());
            }
        }
    }

    fn frame(&mut self, scope: &mut v8::PinScope<'_, '_>, frame: ToHost) -> Result<(), Stopped> {
        match frame {
            ToHost::Replies { run, replies } if run == self.number => {
                for (id, reply) in &replies {
                    v8::scope!(let scope, scope);
                    if !ops::answer(scope, self.state, *id, reply) {
                        eprintln!("an answer to call {id}, which does not wait for one");
                        return Err(Stopped::Gone);
                    }
                }
            }
            ToHost::Abort { run, reason } if run == self.number => {
                self.aborted = true;
                self.shared.start_grace();
                if let Some(reason) = v8::String::new(scope, &reason) {
                    self.call(scope, &self.entries.abort, &[reason.into()]);
                }
            }
            // What was sent before the daemon knew that the run before had ended.
            ToHost::Replies { .. } | ToHost::Abort { .. } => {}
            ToHost::Init { .. } | ToHost::Run { .. } => {
                eprintln!("a frame that has no place within a run");
                return Err(Stopped::Gone);
            }
        }
        Ok(())
    }

    /// Rejections that nobody has handled go to the log; they do not fail the run.
    fn log_rejections(&self, scope: &mut v8::PinScope<'_, '_>) {
        let (values, _) = self.state.rejections.borrow_mut().take();
        values.into_iter().for_each(|value| self.log_rejection(scope, value));
    }

    fn log_rejection(&self, scope: &mut v8::PinScope<'_, '_>, value: v8::Global<v8::Value>) {
        v8::scope!(let scope, scope);
        let value = v8::Local::new(scope, value);
        self.call(scope, &self.entries.rejected, &[value]);
    }

    /// What the first rejection that nobody has handled comes to, if there is one; the others go to the log.
    fn unhandled(&self, scope: &mut v8::PinScope<'_, '_>) -> Option<Outcome> {
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
    fn outcome(&self, scope: &mut v8::PinScope<'_, '_>, value: v8::Local<'_, v8::Value>) -> Result<Outcome, Stopped> {
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
    fn describe(
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

    fn stopped_or(&self, outcome: Outcome) -> Result<Outcome, Stopped> {
        if self.shared.stopped().is_some() { Err(Stopped::Limit) } else { Ok(outcome) }
    }
}

fn bad_input(why: &str) -> Outcome {
    Outcome::failed(ErrorCode::HandlerLoad, format!("the handler's input cannot be given to it: {why}"))
}

/// At most `most` bytes, on a character boundary.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// The handler's promise has settled: nothing that stands behind it in the queue runs any more.
fn on_settled(scope: &mut v8::PinScope<'_, '_>, _: ops::Args<'_>, _: ops::Ret<'_>) {
    if let Some(state) = ops::state(scope) {
        state.settled.set(true);
        scope.terminate_execution();
    }
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
