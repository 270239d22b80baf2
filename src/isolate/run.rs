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

mod outcome;

use std::io;
use std::rc::Rc;
use std::time::Instant;

use deno_core::v8;
use v8::MapFnTo;

use super::calls;
use super::limits::Shared;
use super::loader::{self, CodeCache};
use super::mailbox::Next;
use super::ops::{self, State};
use super::snapshot::{Entries, Fresh};
use super::wire::ToHost;
use super::{Job, JobKind, Limits, Outcome};
use crate::fire::ErrorCode;
use crate::handler_check;

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
                    if !calls::answer(scope, self.state, *id, reply) {
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

    fn stopped_or(&self, outcome: Outcome) -> Result<Outcome, Stopped> {
        if self.shared.stopped().is_some() { Err(Stopped::Limit) } else { Ok(outcome) }
    }
}

fn bad_input(why: &str) -> Outcome {
    Outcome::failed(ErrorCode::HandlerLoad, format!("the handler's input cannot be given to it: {why}"))
}

/// The handler's promise has settled: nothing that stands behind it in the queue runs any more.
fn on_settled(scope: &mut v8::PinScope<'_, '_>, _: ops::Args<'_>, _: ops::Ret<'_>) {
    if let Some(state) = ops::state(scope) {
        state.settled.set(true);
        scope.terminate_execution();
    }
}
