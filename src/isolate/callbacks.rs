//! What V8 asks of its embedder, whatever runs in the isolate: unhandled rejections, the text of `error.stack`, and the
//! ways to more code, all of which are refused.

use deno_core::v8;

use super::ops;
use super::rejections::on_reject;

/// To be called once for each isolate, before anything runs in it.
pub(super) fn set(isolate: &mut v8::OwnedIsolate) {
    isolate.set_promise_reject_callback(on_reject);
    isolate.set_prepare_stack_trace_callback(prepare_stack);
    isolate.set_allow_wasm_code_generation_callback(refuse_wasm);
    isolate.set_host_import_module_dynamically_callback(refuse_import);
    isolate.set_host_initialize_import_meta_object_callback(import_meta);
}

/// `error.stack`: formatted by the runtime, which leaves its own frames out. Also what keeps call sites, and with them
/// `Error.prepareStackTrace`, out of a handler's reach.
fn prepare_stack<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    error: v8::Local<'s, v8::Value>,
    sites: v8::Local<'s, v8::Array>,
) -> v8::Local<'s, v8::Value> {
    let undefined = v8::undefined(scope).into();
    let Some(state) = ops::state(scope) else {
        return undefined;
    };
    v8::tc_scope!(let scope, scope);
    let function = v8::Local::new(scope, &state.stack_entry);
    function.call(scope, undefined, &[error, sites.into()]).unwrap_or(undefined)
}

fn refuse_import<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    _options: v8::Local<'s, v8::Data>,
    _referrer: v8::Local<'s, v8::Value>,
    specifier: v8::Local<'s, v8::String>,
    _attributes: v8::Local<'s, v8::FixedArray>,
) -> Option<v8::Local<'s, v8::Promise>> {
    let name = specifier.to_rust_string_lossy(scope);
    let message = format!("import of {name:?} is not possible: a handler is one module and imports nothing");
    let message = v8::String::new(scope, &message)?;
    let error = v8::Exception::type_error(scope, message);
    let resolver = v8::PromiseResolver::new(scope)?;
    resolver.reject(scope, error)?;
    Some(resolver.get_promise(scope))
}

extern "C" fn refuse_wasm(_: v8::Local<'_, v8::Context>, _: v8::Local<'_, v8::String>) -> bool {
    false
}

/// `import.meta` is an empty object: there is nothing to say about where a handler is.
unsafe extern "C" fn import_meta(
    _: v8::Local<'_, v8::Context>,
    _: v8::Local<'_, v8::Module>,
    _: v8::Local<'_, v8::Object>,
) {
}
