//! The native functions that `runtime-js/` calls: the run's calls, log lines, timers. No handler can reach one: they
//! live in the closures of the runtime's scripts alone.
//!
//! Nothing here trusts the realm: arguments are taken by type, objects are read by own property, and a promise is
//! settled by V8 itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deno_core::v8;
use v8::MapFnTo;

use super::limits::Shared;
use super::outgoing::{self, Outgoing, TransactionStep};
use super::rejections::Rejections;
use super::snapshot::OWN_SCRIPTS;
use super::wire::{self, FromHost};
use super::{Limits, ops_web};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::{CallError, CtxCall, CtxCallBody, CtxReply, LogLevel, LogLine};

pub(super) type Args<'s> = v8::FunctionCallbackArguments<'s>;
pub(super) type Ret<'s> = v8::ReturnValue<'s, v8::Value>;

macro_rules! op_table {
    ($($name:literal => $function:path),+ $(,)?) => {
        /// Name in JavaScript, and the function. The order is part of the snapshot.
        fn table() -> Vec<(&'static str, v8::FunctionCallback)> {
            vec![$(($name, $function.map_fn_to())),+]
        }
    };
}

op_table! {
    "call" => call,
    "callThen" => call_then,
    "log" => log,
    "timerAdd" => timer_add,
    "timerClear" => timer_clear,
    "microtask" => microtask,
    "keepAlive" => keep_alive,
    "elapsed" => elapsed,
    "isError" => ops_web::is_error,
    "kindOf" => ops_web::kind_of,
    "utf8Encode" => ops_web::utf8_encode,
    "utf8EncodeInto" => ops_web::utf8_encode_into,
    "decoderLabel" => ops_web::decoder_label,
    "decode" => ops_web::decode,
    "base64Decode" => ops_web::base64_decode,
    "base64Encode" => ops_web::base64_encode,
    "fillRandom" => ops_web::fill_random,
    "uuid" => ops_web::uuid,
    "clone" => ops_web::clone,
    "urlParse" => ops_web::url_parse,
    "urlSet" => ops_web::url_set,
    "formParse" => ops_web::form_parse,
    "formSerialize" => ops_web::form_serialize,
}

/// V8 finds native functions in a snapshot by their place in this list.
pub(super) fn external_references() -> Cow<'static, [v8::ExternalReference]> {
    table().into_iter().map(|(_, function)| v8::ExternalReference { function }).collect::<Vec<_>>().into()
}

/// An object with all of them, for the snapshot.
pub(super) fn install<'s>(scope: &mut v8::PinScope<'s, '_>) -> Option<v8::Local<'s, v8::Object>> {
    let null = v8::null(scope).into();
    let object = v8::Object::with_prototype_and_properties(scope, null, &[], &[]);
    for (name, function) in table() {
        let key = v8::String::new(scope, name)?;
        let function =
            v8::Function::builder_raw(function).constructor_behavior(v8::ConstructorBehavior::Throw).build(scope)?;
        object.set(scope, key.into(), function.into())?;
    }
    Some(object)
}

/// What the run of one isolate keeps beside V8. In the isolate's slot as `Rc<State>`.
pub(super) struct State {
    pub(super) shared: &'static Shared,
    pub(super) limits: Limits,
    started: Instant,
    next_call: Cell<u32>,
    /// Calls that were made and not yet answered, also those that were not sent yet.
    waiting: RefCell<HashMap<u32, Waiting>>,
    outgoing: RefCell<Outgoing>,
    in_flight: Cell<u32>,
    pub(super) timers: RefCell<Timers>,
    /// Transactions that were begun and whose end was not answered yet.
    open_transactions: Cell<u32>,
    pub(super) rejections: RefCell<Rejections>,
    pub(super) decoders: RefCell<ops_web::Decoders>,
    pub(super) keep_alive: Cell<bool>,
    /// Set by the reaction on the handler's promise: what stopped V8 then was the end of the run.
    pub(super) settled: Cell<bool>,
    log_lines: Cell<u32>,
    log_bytes: Cell<u64>,
    log_cut: Cell<bool>,
    pub(super) stack_entry: v8::Global<v8::Function>,
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

impl State {
    pub(super) fn new(shared: &'static Shared, limits: Limits, stack_entry: v8::Global<v8::Function>) -> Self {
        Self {
            shared,
            limits,
            started: Instant::now(),
            next_call: Cell::new(0),
            waiting: RefCell::default(),
            outgoing: RefCell::default(),
            in_flight: Cell::new(0),
            timers: RefCell::default(),
            open_transactions: Cell::new(0),
            rejections: RefCell::default(),
            decoders: RefCell::default(),
            keep_alive: Cell::new(false),
            settled: Cell::new(false),
            log_lines: Cell::new(0),
            log_bytes: Cell::new(0),
            log_cut: Cell::new(false),
            stack_entry,
        }
    }

    /// True while something outside JavaScript could still make it run.
    pub(super) fn has_pending(&self) -> bool {
        !self.waiting.borrow().is_empty() || !self.timers.borrow().by_time.is_empty() || self.keep_alive.get()
    }

    /// True while a call is not answered, or a transaction not over. Meant for a run that has `db` calls alone.
    pub(super) fn has_open_calls(&self) -> bool {
        !self.waiting.borrow().is_empty() || self.open_transactions.get() > 0
    }

    pub(super) fn add_log(&self, level: LogLevel, message: String, fields_json: Option<String>) {
        let size = (message.len() + fields_json.as_ref().map_or(0, String::len)) as u64;
        let bytes = self.log_bytes.get().saturating_add(size);
        let line = if self.log_cut.get() {
            return;
        } else if self.log_lines.get() >= self.limits.max_log_lines || bytes > self.limits.max_log_bytes {
            self.log_cut.set(true);
            LogLine { at: now_ms(), level: LogLevel::Warn, message: self.limits.log_marker(), fields_json: None }
        } else {
            self.log_lines.set(self.log_lines.get() + 1);
            self.log_bytes.set(bytes);
            LogLine { at: now_ms(), level, message, fields_json }
        };
        self.shared.outbox().logs.push(line);
    }

    /// Ends a tick: sends its log lines and calls, as many as may be in flight.
    ///
    /// # Errors
    /// When the daemon does not read any more.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.end_tick();
        let mut outbox = self.shared.outbox();
        let mut logs = std::mem::take(&mut outbox.logs);
        loop {
            let free = self.limits.in_flight.saturating_sub(self.in_flight.get());
            let (calls, tick) = outgoing.next_group(free as usize);
            if calls.is_empty() && logs.is_empty() {
                return outbox.write_rest();
            }
            // As many as were free at most, so they can be counted.
            self.in_flight.set(self.in_flight.get() + calls.len() as u32);
            outbox.add(&FromHost::Batch { logs: std::mem::take(&mut logs), calls, tick })?;
        }
    }

    /// Ends the last tick: sends its log lines, and, when these are to be told, the calls that were not sent yet as
    /// abandoned.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub(super) fn flush_last(&self, tells_abandoned: bool) -> std::io::Result<()> {
        let mut outgoing = self.outgoing.borrow_mut();
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
        let waiting = self.waiting.borrow();
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
        if let Some(message) = self.outgoing.borrow().unsent_message() {
            self.add_log(LogLevel::Warn, message, None);
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the times of a host are those of its own process")]
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The run that a native function was called in; none while the snapshot is made.
pub(super) fn state(scope: &v8::PinScope<'_, '_>) -> Option<Rc<State>> {
    scope.get_slot::<Rc<State>>().cloned()
}

/// The argument's text, when it is a string.
pub(super) fn string(scope: &v8::PinScope<'_, '_>, value: v8::Local<'_, v8::Value>) -> Option<String> {
    let text = value.try_cast::<v8::String>().ok()?;
    Some(text.to_rust_string_lossy(scope))
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
    let id = state.next_call.get();
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
    state.next_call.set(next);
    let site = v8::StackTrace::current_stack_trace(scope, CALL_SITE_FRAMES).map(|site| v8::Global::new(scope, site));
    let label = outgoing::label(&body, first_only);
    let transaction = TransactionStep::of(&body);
    state.waiting.borrow_mut().insert(id, Waiting { to, first_only, label, transaction, site });
    state.outgoing.borrow_mut().push(CtxCall { id, at: now_ms(), body });
    Ok(())
}

/// `call(kind, …)`: a promise of the answer.
fn call(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
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
fn call_then(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
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
    let Some(waiting) = state.waiting.borrow_mut().remove(&id) else {
        return false;
    };
    state.in_flight.set(state.in_flight.get().saturating_sub(1));
    match (waiting.transaction, reply) {
        (Some(TransactionStep::Begin), Ok(_)) => state.open_transactions.update(|open| open + 1),
        (Some(TransactionStep::End), _) => state.open_transactions.update(|open| open.saturating_sub(1)),
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

/// `log(level, message, fieldsJson?)`.
fn log(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
    let Some(state) = state(scope) else { return };
    let level = string(scope, args.get(0)).and_then(|level| LogLevel::parse(&level)).unwrap_or(LogLevel::Info);
    let message = string(scope, args.get(1)).unwrap_or_default();
    let fields = string(scope, args.get(2)).map(|json| match is_too_deep(&json) {
        true => serde_json::Value::from(too_deep("what was logged")).to_string(),
        false => json,
    });
    state.add_log(level, message, fields);
}

/// The run's timers, by their time and then by the order in which they were set.
#[derive(Default)]
pub(super) struct Timers {
    by_time: BTreeMap<(Instant, u32), Timer>,
    times: HashMap<u32, Instant>,
    next: u32,
}

pub(super) struct Timer {
    pub(super) function: v8::Global<v8::Function>,
    repeat: Option<Duration>,
}

impl Timers {
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.by_time.keys().next().map(|(at, _)| *at)
    }

    /// The function of the next timer that is due; an interval is set again at once.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<v8::Global<v8::Function>> {
        let entry = self.by_time.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let ((_, id), timer) = entry.remove_entry();
        let function = timer.function.clone();
        match timer.repeat {
            Some(every) => {
                self.by_time.insert((now + every, id), timer);
                self.times.insert(id, now + every);
            }
            None => {
                self.times.remove(&id);
            }
        }
        Some(function)
    }
}

/// `timerAdd(function, ms, repeat)`: the timer's number, from 1.
fn timer_add(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, mut rv: Ret<'_>) {
    let (Some(state), Ok(function)) = (state(scope), args.get(0).try_cast::<v8::Function>()) else {
        return;
    };
    let ms = args.get(1).number_value(scope).filter(|ms| ms.is_finite() && *ms >= 1.0).unwrap_or(1.0);
    // Fractions are dropped, as elsewhere; a day is past any run's time anyway, and its sum with now never overflows.
    let every = Duration::from_millis(ms.min(2_147_483_647.0) as u64);
    let mut timers = state.timers.borrow_mut();
    timers.next = timers.next.wrapping_add(1).max(1);
    let (id, at) = (timers.next, Instant::now() + every);
    let repeat = args.get(2).is_true().then_some(every);
    timers.by_time.insert((at, id), Timer { function: v8::Global::new(scope, function), repeat });
    timers.times.insert(id, at);
    rv.set_uint32(id);
}

/// `timerClear(number)`; an unknown number is nothing.
fn timer_clear(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
    let (Some(state), Some(id)) = (state(scope), args.get(0).uint32_value(scope)) else {
        return;
    };
    let mut timers = state.timers.borrow_mut();
    if let Some(at) = timers.times.remove(&id) {
        timers.by_time.remove(&(at, id));
    }
}

fn microtask(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
    if let Ok(function) = args.get(0).try_cast::<v8::Function>() {
        scope.enqueue_microtask(function);
    }
}

/// `keepAlive(whether)`: the run's abort signal has listeners, so an abort could still settle the handler.
fn keep_alive(scope: &mut v8::PinScope<'_, '_>, args: Args<'_>, _: Ret<'_>) {
    if let Some(state) = state(scope) {
        state.keep_alive.set(args.get(0).is_true());
    }
}

/// Milliseconds since the run began, for `Event.timeStamp`.
fn elapsed(scope: &mut v8::PinScope<'_, '_>, _: Args<'_>, mut rv: Ret<'_>) {
    let elapsed = state(scope).map_or(0.0, |state| (state.started.elapsed().as_secs_f64() * 1e4).round() / 10.0);
    rv.set_double(elapsed);
}
