//! V8 itself: its flags, the snapshot that holds `runtime-js/`, and a fresh isolate made from it.
//!
//! The snapshot is made by a short-lived host at the pool's start, so that making an isolate costs well under a
//! millisecond and no script is parsed. Snapshot and isolate must come from the same program with the same flags.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::sync::{Once, OnceLock};

use deno_core::v8;

use super::limits::{self, Shared};
use super::{Limits, callbacks, ops};

/// In load order. The names are what V8 knows the scripts by; stacks leave out what starts with `dirigent:`.
const SCRIPTS: &[(&str, &str)] = &[
    ("dirigent:01_primordials", include_str!("../../runtime-js/01_primordials.js")),
    ("dirigent:02_inspect", include_str!("../../runtime-js/02_inspect.js")),
    ("dirigent:03_log", include_str!("../../runtime-js/03_log.js")),
    ("dirigent:04_timers", include_str!("../../runtime-js/04_timers.js")),
    ("dirigent:05_events", include_str!("../../runtime-js/05_events.js")),
    ("dirigent:06_encoding", include_str!("../../runtime-js/06_encoding.js")),
    ("dirigent:07_url", include_str!("../../runtime-js/07_url.js")),
    ("dirigent:08_ctx", include_str!("../../runtime-js/08_ctx.js")),
    ("dirigent:09_db", include_str!("../../runtime-js/09_db.js")),
    ("dirigent:99_entry", include_str!("../../runtime-js/99_entry.js")),
];

/// The prefix of script names that are the runtime's own.
pub(super) const OWN_SCRIPTS: &str = "dirigent:";

/// What is wrong with the runtime itself: a bug of this program, never of a handler.
#[derive(Debug, thiserror::Error)]
#[error("the handler runtime does not start: {0}")]
pub(super) struct RuntimeError(pub(super) String);

/// The functions of `rt.entry`, in the order in which the snapshot holds them.
macro_rules! entries {
    ($($name:ident),+) => {
        pub(super) struct Entries { $(pub(super) $name: v8::Global<v8::Function>),+ }

        const ENTRY_NAMES: &[&str] = &[$(stringify!($name)),+];

        impl Entries {
            fn from_snapshot(scope: &v8::PinScope<'_, '_>) -> Result<Self, RuntimeError> {
                let mut index = 0;
                let mut next = || {
                    let found = scope.get_context_data_from_snapshot_once::<v8::Function>(index);
                    index += 1;
                    found.map(|f| v8::Global::new(scope, f)).map_err(|e| RuntimeError(format!("entry {index}: {e}")))
                };
                Ok(Self { $($name: next()?),+ })
            }
        }
    };
}
entries!(automation, query, action, outcome, returned, describe, abort, rejected, stack);

/// What V8 puts into every realm and a handler is not to have. V8 itself needs them while it sets a realm up, so they
/// go when that is done.
const WITHHELD: &[&str] = &["WebAssembly", "SharedArrayBuffer", "Atomics"];

/// Sets V8 up for this process, once.
///
/// One thread only: a host runs one isolate, and V8's helper threads would cost memory in every host and CPU time
/// that is not the handler's.
pub(super) fn init_v8() -> v8::SharedRef<v8::Platform> {
    static PLATFORM: OnceLock<v8::SharedRef<v8::Platform>> = OnceLock::new();
    PLATFORM
        .get_or_init(|| {
            v8::V8::set_flags_from_string("--single-threaded --no-flush-bytecode");
            // V8 would read a device file, which a host cannot open, and then seed itself from the clock.
            v8::V8::set_entropy_source(|bytes: &mut [u8]| getrandom::fill(bytes).is_ok());
            let platform = v8::new_single_threaded_default_platform(false).make_shared();
            v8::V8::initialize_platform(platform.clone());
            v8::V8::initialize();
            platform
        })
        .clone()
}

fn own_error(scope: &v8::PinnedRef<'_, v8::TryCatch<v8::HandleScope>>, what: &str) -> RuntimeError {
    let message = scope.message().map(|m| {
        let line = m.get_line_number(scope).unwrap_or(0);
        format!("{} (line {line})", m.get(scope).to_rust_string_lossy(scope))
    });
    RuntimeError(format!("{what}: {}", message.unwrap_or_else(|| "no reason given".to_owned())))
}

/// Runs `runtime-js/` once and keeps the realm that it made.
pub(super) fn make() -> Result<Vec<u8>, RuntimeError> {
    init_v8();
    let mut isolate = v8::Isolate::snapshot_creator(Some(ops::external_references()), None);
    let built = build(&mut isolate);
    // V8 insists on being asked for the blob, also after a failure.
    let blob = isolate.create_blob(v8::FunctionCodeHandling::Keep);
    built?;
    blob.map(|blob| blob.to_vec()).ok_or_else(|| RuntimeError("V8 made no snapshot".into()))
}

fn build(isolate: &mut v8::OwnedIsolate) -> Result<(), RuntimeError> {
    v8::scope!(let scope, isolate);
    let context = v8::Context::new(scope, v8::ContextOptions::default());
    scope.set_default_context(context);
    let scope = &mut v8::ContextScope::new(scope, context);
    v8::tc_scope!(let scope, scope);

    let null = v8::null(scope).into();
    let runtime = v8::Object::with_prototype_and_properties(scope, null, &[], &[]);
    let natives = ops::install(scope).ok_or_else(|| RuntimeError("native functions cannot be made".into()))?;
    let key = text(scope, "ops")?;
    runtime.set(scope, key.into(), natives.into());

    for (name, source) in SCRIPTS {
        let source = text(scope, source)?;
        let origin = origin(scope, name, false).ok_or_else(|| RuntimeError((*name).into()))?;
        let made = v8::Script::compile(scope, source, Some(&origin)).and_then(|script| script.run(scope));
        let Some(function) = made.and_then(|value| value.try_cast::<v8::Function>().ok()) else {
            return Err(own_error(scope, name));
        };
        let this = v8::undefined(scope).into();
        if function.call(scope, this, &[runtime.into()]).is_none() {
            return Err(own_error(scope, name));
        }
    }

    let key = text(scope, "entry")?;
    let entry = runtime.get(scope, key.into()).and_then(|value| value.to_object(scope));
    let entry = entry.ok_or_else(|| RuntimeError("no entries".into()))?;
    for (index, name) in ENTRY_NAMES.iter().enumerate() {
        let key = text(scope, name)?;
        let function = entry.get(scope, key.into()).and_then(|value| value.try_cast::<v8::Function>().ok());
        let function = function.ok_or_else(|| RuntimeError(format!("entry {name} is missing")))?;
        if scope.add_context_data(context, function) != index {
            return Err(RuntimeError(format!("entry {name} is out of order")));
        }
    }
    Ok(())
}

fn text<'s>(scope: &v8::PinScope<'s, '_>, text: &str) -> Result<v8::Local<'s, v8::String>, RuntimeError> {
    v8::String::new(scope, text).ok_or_else(|| RuntimeError("a text is too long".into()))
}

/// Where a script comes from, as stacks show it.
pub(super) fn origin<'s>(scope: &v8::PinScope<'s, '_>, name: &str, is_module: bool) -> Option<v8::ScriptOrigin<'s>> {
    let name = v8::String::new(scope, name)?;
    Some(v8::ScriptOrigin::new(scope, name.into(), 0, 0, false, 0, None, false, false, is_module, None))
}

/// It allocates nothing; V8 reserves address space in proportion.
const KEEPER_HEAP: usize = 16 << 20;

/// V8 shares the read-only part of its heap between the isolates of a process, and drops it with the last of them. An
/// isolate that does nothing, made once, keeps it, so that each new one takes a third less time; it costs a megabyte.
fn keep_shared_parts(blob: &'static [u8]) {
    static KEEPER: Once = Once::new();
    KEEPER.call_once(|| {
        let params = v8::CreateParams::default()
            .snapshot_blob(v8::StartupData::from(Cow::Borrowed(blob)))
            .external_references(ops::external_references())
            .heap_limits(0, KEEPER_HEAP);
        // Isolates are entered and left like a stack; this one is the bottom, for ever.
        std::mem::forget(v8::Isolate::new(params));
    });
}

/// An isolate that has run nothing yet, and its one context.
pub(super) struct Fresh {
    pub(super) entries: Entries,
    pub(super) context: v8::Global<v8::Context>,
    // Last, so that the handles above are gone before it.
    pub(super) isolate: v8::OwnedIsolate,
}

/// # Errors
/// When the snapshot does not fit this program.
pub(super) fn fresh(blob: &'static [u8], shared: &'static Shared, limits: &Limits) -> Result<Fresh, RuntimeError> {
    thread_local! {
        /// V8 keeps one shared allocator alive through all isolates.
        static ALLOCATOR: OnceCell<v8::SharedRef<v8::Allocator>> = const { OnceCell::new() };
    }
    let allocator = ALLOCATOR.with(|cell| cell.get_or_init(|| shared.buffers.allocator().make_shared()).clone());
    let heap_bytes = usize::try_from(limits.heap_bytes).unwrap_or(usize::MAX);
    let params = v8::CreateParams::default()
        .snapshot_blob(v8::StartupData::from(Cow::Borrowed(blob)))
        .external_references(ops::external_references())
        .array_buffer_allocator(allocator)
        .heap_limits(0, heap_bytes)
        .allow_atomics_wait(false);
    keep_shared_parts(blob);
    let mut isolate = v8::Isolate::new(params);
    isolate.set_microtasks_policy(v8::MicrotasksPolicy::Explicit);
    limits::guard(&mut isolate);
    callbacks::set(&mut isolate);
    let (entries, context) = {
        v8::scope!(let scope, &mut isolate);
        let context = v8::Context::new(scope, v8::ContextOptions::default());
        context.set_allow_generation_from_strings(false);
        let scope = &mut v8::ContextScope::new(scope, context);
        for name in WITHHELD {
            let name = text(scope, name)?;
            if context.global(scope).delete(scope, name.into()) != Some(true) {
                return Err(RuntimeError("a global cannot be taken away".into()));
            }
        }
        (Entries::from_snapshot(scope)?, v8::Global::new(scope, context))
    };
    Ok(Fresh { entries, context, isolate })
}
