//! The calls of a run, from the native functions that make them to the answers that come back.
//!
//! Calls are collected until the tick ends, and sent as many at a time as may be in flight (`outgoing` keeps the rest).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use deno_core::v8;

use super::ops::{Args, Ret, State, now_ms, state, string};
use super::outgoing::{self, Outgoing, TransactionStep};
use super::snapshot::OWN_SCRIPTS;
use super::wire::{self, FromHost};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::{CallError, CtxCall, CtxCallBody, CtxReply, LogLevel};

/// Those of one run.
#[derive(Default)]
pub(super) struct Calls {
    next: Cell<u32>,
    /// Calls that were made and not yet answered, also those that were not sent yet.
    waiting: RefCell<HashMap<u32, Waiting>>,
    outgoing: RefCell<Outgoing>,
    in_flight: Cell<u32>,
    /// Transactions that were begun and whose end was not answered yet.
    open_transactions: Cell<u32>,
}

/// Who gets an answer, what it is called in the log, and where the call was made.
struct Waiting {
    to: Answer,
    first_only: bool,
    label: String,
    transaction: Option<TransactionStep>,
    site: Option<v8::Global<v8::StackTrace>>,
}

enum Answer {
    Promise(v8::Global<v8::PromiseResolver>),
    Functions { ok: v8::Global<v8::Function>, failed: v8::Global<v8::Function> },
}

/// Frames of the call's own stack that a rejection shows.
const CALL_SITE_FRAMES: usize = 10;

impl Calls {
    /// True while one is not answered.
    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }
}

impl State {
    /// True while a call is not answered, or a transaction not over. Meant for a run that has `db` calls alone.
    pub(super) fn has_open_calls(&self) -> bool {
        self.calls.are_waiting() || self.calls.open_transactions.get() > 0
    }

    /// Ends a tick: sends its log lines and calls, as many as may be in flight.
    ///
    /// # Errors
    /// When the daemon does not read any more.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        let mut outgoing = self.calls.outgoing.borrow_mut();
        outgoing.end_tick();
        let mut outbox = self.shared.outbox();
        let mut logs = std::mem::take(&mut outbox.logs);
        loop {
            let free = self.limits.in_flight.saturating_sub(self.calls.in_flight.get());
            let (calls, tick) = outgoing.next_group(free as usize);
            if calls.is_empty() && logs.is_empty() {
                return outbox.write_rest();
            }
            // As many as were free at most, so they can be counted.
            self.calls.in_flight.set(self.calls.in_flight.get() + calls.len() as u32);
            outbox.add(&FromHost::Batch { logs: std::mem::take(&mut logs), calls, tick })?;
        }
    }

    /// Ends the last tick: sends its log lines, and, when these are to be told, the calls that were not sent yet as
    /// abandoned.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(super) fn flush_last(&self, tells_abandoned: bool) -> std::io::Result<()> {
        let mut outgoing = self.calls.outgoing.borrow_mut();
        outgoing.end_tick();
        if !tells_abandoned {
            outgoing.clear();
        }
        let mut outbox = self.shared.outbox();
        let logs = std::mem::take(&mut outbox.logs);
        if !logs.is_empty() {
            outbox.add(&FromHost::Batch { logs, calls: vec![], tick: None })?;
        }
        let mut left = wire::MAX_ABANDONED;
        loop {
            let (calls, tick) = outgoing.next_group(left);
            if calls.is_empty() {
                return outbox.write_rest();
            }
            left -= calls.len();
            outbox.add(&FromHost::Abandoned { calls, tick })?;
        }
    }

    /// Tells in the log of the calls that nothing will come of, because an automation's handler has settled.
    pub(super) fn log_pending(&self) {
        let waiting = self.calls.waiting.borrow();
        if waiting.is_empty() {
            return;
        }
        let mut ids: Vec<u32> = waiting.keys().copied().collect();
        ids.sort_unstable();
        let labels = ids.iter().take(outgoing::SHOWN_NAMES).filter_map(|id| Some(waiting.get(id)?.label.clone()));
        let message = outgoing::pending_message(waiting.len(), labels.collect());
        self.add_log(LogLevel::Warn, message, None);
    }

    /// Tells in the log of the `db` calls that are not made, because the handler failed before they were sent. Those
    /// that were sent are made.
    pub(super) fn log_unsent(&self) {
        if let Some(message) = self.calls.outgoing.borrow().unsent_message() {
            self.add_log(LogLevel::Warn, message, None);
        }
    }
}

/// `[kind, a, b, c, d]` as a call. Every kind has its own arguments, all of them strings or undefined.
fn call_body(scope: &v8::PinScope<'_, '_>, args: &Args<'_>, from: i32) -> Option<(CtxCallBody, bool)> {
    let arg = |i: i32| string(scope, args.get(from + i));
    let kind = arg(0)?;
    let body = match kind.as_str() {
        "tool" => CtxCallBody::Tool { name: arg(1)?, args_json: arg(2)? },
        "agent" => CtxCallBody::Agent { args_json: arg(1)? },
        "invoke" => CtxCallBody::Invoke { handle: arg(1)?, input_json: arg(2) },
        "stateGet" => CtxCallBody::StateGet { key: arg(1)? },
        "stateSet" => CtxCallBody::StateSet { key: arg(1)?, value_json: arg(2)? },
        "stateDelete" => CtxCallBody::StateDelete { key: arg(1)? },
        "runsList" | "runsLast" => CtxCallBody::RunsList { filter_json: arg(1) },
        "db" => CtxCallBody::Db { args_json: db_json(&arg(1)?, arg(2), arg(3), arg(4)) },
        _ => return None,
    };
    Some((body, kind == "runsLast"))
}

/// `{op, sql?, params?, tx?}`; `params` is JSON text already, and so is `tx`, a number.
fn db_json(op: &str, sql: Option<String>, params: Option<String>, tx: Option<String>) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut json = format!("{{\"op\":{}", quoted(op));
    let parts = [("sql", sql.as_deref().map(quoted)), ("params", params), ("tx", tx)];
    for (name, value) in parts {
        if let Some(value) = value {
            json.push_str(&format!(",\"{name}\":{value}"));
        }
    }
    json.push('}');
    json
}

fn send(scope: &mut v8::PinScope<'_, '_>, args: &Args<'_>, from: i32, to: Answer) -> Result<(), CallError> {
    let Some(state) = state(scope) else {
        return Err(CallError::new("invalid_call", "there is no run"));
    };
    let Some((body, first_only)) = call_body(scope, args, from) else {
        return Err(CallError::new("invalid_call", "the call's arguments are not as they should be"));
    };
    let id = state.calls.next.get();
    let Some(next) = id.checked_add(1) else {
        return Err(CallError::new("limit_exceeded", "the run has made more calls than can be numbered"));
    };
    let size = outgoing::call_size(&body) as u64;
    if size > state.limits.max_value_bytes {
        let most = state.limits.max_value_bytes;
        return Err(CallError::new(
            "too_large",
            format!("the arguments are {size} bytes of JSON; the limit is {most}"),
        ));
    }
    if wire::value_of(&body).is_some_and(is_too_deep) {
        return Err(CallError::new("too_deep", too_deep("the call's argument")));
    }
    state.calls.next.set(next);
    let site = v8::StackTrace::current_stack_trace(scope, CALL_SITE_FRAMES).map(|site| v8::Global::new(scope, site));
    let label = outgoing::label(&body, first_only);
    let transaction = TransactionStep::of(&body);
    state.calls.waiting.borrow_mut().insert(id, Waiting { to, first_only, label, transaction, site });
    state.calls.outgoing.borrow_mut().push(CtxCall { id, at: now_ms(), body });
    Ok(())
}

/// `call(kind, …)`: a promise of the answer.
pub(super) fn call(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let Some(resolver) = v8::PromiseResolver::new(scope) else {
        return;
    };
    rv.set(resolver.get_promise(scope).into());
    let to = Answer::Promise(v8::Global::new(scope, resolver));
    if let Err(error) = send(scope, &args, 0, to)
        && let Some(error) = error_value(scope, &error, None)
    {
        resolver.reject(scope, error);
    }
}

/// `callThen(ok, failed, kind, …)`: calls one of the two with the answer. For the runtime's own steps, which no
/// promise of the handler's realm is to see.
pub(super) fn call_then(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
    let (Ok(ok), Ok(failed)) = (args.get(0).try_cast::<v8::Function>(), args.get(1).try_cast::<v8::Function>()) else {
        return;
    };
    let to = Answer::Functions { ok: v8::Global::new(scope, ok), failed: v8::Global::new(scope, failed) };
    if let Err(error) = send(scope, &args, 2, to)
        && let Some(error) = error_value(scope, &error, None)
    {
        let this = v8::undefined(scope).into();
        failed.call(scope, this, &[error]);
    }
}

/// Gives an answer to whoever waits for it. False when no call has that id.
pub(super) fn answer(scope: &mut v8::PinScope<'_, '_>, state: &State, id: u32, reply: &CtxReply) -> bool {
    let Some(waiting) = state.calls.waiting.borrow_mut().remove(&id) else {
        return false;
    };
    state.calls.in_flight.set(state.calls.in_flight.get().saturating_sub(1));
    match (waiting.transaction, reply) {
        (Some(TransactionStep::Begin), Ok(_)) => state.calls.open_transactions.update(|open| open + 1),
        (Some(TransactionStep::End), _) => state.calls.open_transactions.update(|open| open.saturating_sub(1)),
        _ => {}
    }
    let result = match reply {
        Ok(None) => Ok(v8::undefined(scope).into()),
        Ok(Some(json)) => parse(scope, json, waiting.first_only)
            .ok_or_else(|| CallError::new("bad_result", "the call's result is no JSON, or does not fit in memory")),
        Err(error) => Err(error.clone()),
    };
    let result = match result {
        Ok(value) => Ok(value),
        Err(error) => match error_value(scope, &error, waiting.site.as_ref()) {
            Some(error) => Err(error),
            None => return true,
        },
    };
    match waiting.to {
        Answer::Promise(resolver) => {
            let resolver = v8::Local::new(scope, resolver);
            match result {
                Ok(value) => resolver.resolve(scope, value),
                Err(error) => resolver.reject(scope, error),
            };
        }
        Answer::Functions { ok, failed } => {
            let (function, value) = match result {
                Ok(value) => (ok, value),
                Err(error) => (failed, error),
            };
            let function = v8::Local::new(scope, function);
            let this = v8::undefined(scope).into();
            function.call(scope, this, &[value]);
        }
    }
    true
}

fn parse<'s>(scope: &mut v8::PinScope<'s, '_>, json: &str, first_only: bool) -> Option<v8::Local<'s, v8::Value>> {
    v8::tc_scope!(let scope, scope);
    let text = v8::String::new(scope, json)?;
    let value = v8::json::parse(scope, text)?;
    match value.try_cast::<v8::Array>() {
        Ok(rows) if first_only && rows.length() == 0 => Some(v8::undefined(scope).into()),
        Ok(rows) if first_only => rows.get_index(scope, 0),
        _ => Some(value),
    }
}

/// An `Error` with `message`, `code`, and `path` when given; its stack is where the call was made.
fn error_value<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    error: &CallError,
    site: Option<&v8::Global<v8::StackTrace>>,
) -> Option<v8::Local<'s, v8::Value>> {
    let message = v8::String::new(scope, &error.message)?;
    let value = match error.code.as_str() {
        "invalid_call" => v8::Exception::type_error(scope, message),
        _ => v8::Exception::error(scope, message),
    };
    let object = value.try_cast::<v8::Object>().ok()?;
    let define = |name: &str, text: &str, attributes: v8::PropertyAttribute| {
        let (name, text) = (v8::String::new(scope, name)?, v8::String::new(scope, text)?);
        object.define_own_property(scope, name.into(), text.into(), attributes)
    };
    define("code", &error.code, v8::PropertyAttribute::NONE);
    if let Some(path) = &error.path {
        define("path", path, v8::PropertyAttribute::NONE);
    }
    if let Some(site) = site {
        let stack = format!("Error: {}{}", error.message, frames(scope, site));
        let (name, stack) = (v8::String::new(scope, "stack")?, v8::String::new(scope, &stack)?);
        object.define_own_property(scope, name.into(), stack.into(), v8::PropertyAttribute::DONT_ENUM);
    }
    Some(value)
}

/// `\n    at work (app/auto/handler.js:3:9)` for each frame that is not the runtime's own.
fn frames(scope: &v8::PinScope<'_, '_>, site: &v8::Global<v8::StackTrace>) -> String {
    let site = v8::Local::new(scope, site);
    let mut text = String::new();
    for index in 0..site.get_frame_count() {
        let Some(frame) = site.get_frame(scope, index) else {
            continue;
        };
        let script = frame.get_script_name(scope).map(|name| name.to_rust_string_lossy(scope)).unwrap_or_default();
        if script.is_empty() || script.starts_with(OWN_SCRIPTS) {
            continue;
        }
        let place = format!("{script}:{}:{}", frame.get_line_number(), frame.get_column());
        match frame.get_function_name(scope).map(|name| name.to_rust_string_lossy(scope)) {
            Some(name) if !name.is_empty() => text.push_str(&format!("\n    at {name} ({place})")),
            _ => text.push_str(&format!("\n    at {place}")),
        }
    }
    text
}
