//! The native functions that `runtime-js/` calls, as one table, and what they share. No handler can reach one: they live
//! in the closures of the runtime's scripts alone.
//!
//! Nothing here trusts the realm: arguments are taken by type, objects are read by own property, and a promise is
//! settled by V8 itself.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use deno_core::v8;
use v8::MapFnTo;

use super::calls::{self, Calls};
use super::limits::Shared;
use super::rejections::Rejections;
use super::timers::{self, Timers};
use super::{Limits, ops_web};
use crate::core::json_depth::{is_too_deep, too_deep};
use crate::fire::{LogLevel, LogLine};

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
    "call" => calls::call,
    "callThen" => calls::call_then,
    "log" => log,
    "timerAdd" => timers::add,
    "timerClear" => timers::clear,
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
    pub(super) calls: Calls,
    pub(super) timers: RefCell<Timers>,
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

impl State {
    pub(super) fn new(shared: &'static Shared, limits: Limits, stack_entry: v8::Global<v8::Function>) -> Self {
        Self {
            shared,
            limits,
            started: Instant::now(),
            calls: Calls::default(),
            timers: RefCell::default(),
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
        self.calls.are_waiting() || !self.timers.borrow().is_empty() || self.keep_alive.get()
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
