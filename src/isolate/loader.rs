//! Compiling a handler: one ES module, nothing imported. Its name in stacks is `<app>/<automation>/handler.js`.

use std::collections::VecDeque;

use deno_core::v8;

use super::{Job, Outcome, snapshot};
use crate::fire::ErrorCode;

/// V8's compiled code of the handlers that this host ran last, by the hash of their source.
#[derive(Default)]
pub(super) struct CodeCache {
    /// Newest last.
    entries: VecDeque<(String, Vec<u8>)>,
}

/// Small sources are parsed faster than their cache is read.
const WORTH_CACHING: usize = 2048;
/// A host serves every automation in turn; beyond this many the oldest is forgotten.
const MAX_CACHED: usize = 32;
/// What one entry may hold, so that all of them stay within a few megabytes.
const MAX_CACHED_BYTES: usize = 256 << 10;

impl CodeCache {
    fn get(&mut self, key: &str) -> Option<&[u8]> {
        let at = self.entries.iter().position(|(known, _)| known == key)?;
        let entry = self.entries.remove(at)?;
        self.entries.push_back(entry);
        self.entries.back().map(|(_, code)| code.as_slice())
    }

    fn put(&mut self, key: &str, code: Vec<u8>) {
        if code.len() > MAX_CACHED_BYTES {
            return;
        }
        self.entries.retain(|(known, _)| known != key);
        if self.entries.len() >= MAX_CACHED {
            self.entries.pop_front();
        }
        self.entries.push_back((key.to_owned(), code));
    }

    fn wants(&self, job: &Job) -> bool {
        !job.source_sha256.is_empty() && job.source.len() >= WORTH_CACHING
    }

    /// Keeps what V8 made of a module that ran: by now its functions are compiled too.
    pub(super) fn keep(&mut self, scope: &v8::PinScope<'_, '_>, job: &Job, module: v8::Local<'_, v8::Module>) {
        if self.wants(job)
            && !self.entries.iter().any(|(known, _)| known == &job.source_sha256)
            && let Some(code) = module.get_unbound_module_script(scope).create_code_cache()
        {
            self.put(&job.source_sha256, code.to_vec());
        }
    }
}

/// Compiles and links; evaluates nothing.
///
/// # Errors
/// `handler_load`, with the place.
pub(super) fn load<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    job: &Job,
    cache: &mut CodeCache,
) -> Result<v8::Local<'s, v8::Module>, Outcome> {
    v8::tc_scope!(let scope, scope);
    let source = v8::String::new(scope, &job.source);
    let origin = snapshot::origin(scope, &job.script_name, true);
    let (Some(text), Some(origin)) = (source, origin) else {
        return Err(Outcome::failed(ErrorCode::HandlerLoad, "the handler is too long"));
    };
    let cached = if cache.wants(job) { cache.get(&job.source_sha256) } else { None };
    let module = match cached {
        Some(code) => {
            let code = v8::script_compiler::CachedData::new(code);
            let mut source = v8::script_compiler::Source::new_with_cached_data(text, Some(&origin), code);
            v8::script_compiler::compile_module2(
                scope,
                &mut source,
                v8::script_compiler::CompileOptions::ConsumeCodeCache,
                v8::script_compiler::NoCacheReason::NoReason,
            )
        }
        None => {
            let mut source = v8::script_compiler::Source::new(text, Some(&origin));
            v8::script_compiler::compile_module(scope, &mut source)
        }
    };
    let Some(module) = module else {
        return Err(load_error(scope, &job.script_name));
    };

    let requests = module.get_module_requests();
    let first = requests.get(scope, 0).and_then(|request| request.try_cast::<v8::ModuleRequest>().ok());
    if let Some(request) = first.filter(|_| requests.length() > 0) {
        let place = module.source_offset_to_location(request.get_source_offset());
        let name = request.get_specifier().to_rust_string_lossy(scope);
        return Err(Outcome::failed(
            ErrorCode::HandlerLoad,
            format!(
                "import of {name:?} is not possible: a handler is one module and imports nothing\n    at {}:{}:{}",
                job.script_name,
                place.get_line_number() + 1,
                place.get_column_number() + 1
            ),
        ));
    }
    match module.instantiate_module(scope, no_module) {
        Some(true) => Ok(module),
        _ => Err(load_error(scope, &job.script_name)),
    }
}

/// Links nothing: a module with imports does not get this far.
fn no_module<'s>(
    _: v8::Local<'s, v8::Context>,
    _: v8::Local<'s, v8::String>,
    _: v8::Local<'s, v8::FixedArray>,
    _: v8::Local<'s, v8::Module>,
) -> Option<v8::Local<'s, v8::Module>> {
    None
}

fn load_error(scope: &v8::PinnedRef<'_, v8::TryCatch<v8::HandleScope>>, script_name: &str) -> Outcome {
    let Some(message) = scope.message() else {
        return Outcome::failed(ErrorCode::HandlerLoad, "the handler cannot be compiled");
    };
    let text = message.get(scope).to_rust_string_lossy(scope);
    let text = text.strip_prefix("Uncaught ").unwrap_or(&text);
    // A text that nests too deep has no place: its column is -1.
    let place = message.get_line_number(scope).zip(message.get_start_column().checked_add(1));
    let place = place.map(|(line, column)| format!("\n    at {script_name}:{line}:{column}"));
    Outcome::failed(ErrorCode::HandlerLoad, text.to_owned() + &place.unwrap_or_default())
}

/// Whether the linked module exports `default`, without running any of it.
pub(super) fn has_default_export(scope: &v8::PinScope<'_, '_>, module: v8::Local<'_, v8::Module>) -> bool {
    let key = v8::String::new(scope, "default");
    let namespace = module.get_module_namespace().try_cast::<v8::Object>();
    key.zip(namespace.ok()).and_then(|(key, namespace)| namespace.has(scope, key.into())).unwrap_or(false)
}

/// The default export of an evaluated module, when it is a function.
pub(super) fn default_export<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    module: v8::Local<'s, v8::Module>,
) -> Result<v8::Local<'s, v8::Function>, Outcome> {
    let missing = |message: &str| Outcome::failed(ErrorCode::NoDefaultExport, message);
    if !has_default_export(scope, module) {
        return Err(missing(
            "the module has no default export; write `export default async ({ ctx, log, input }) => {…}`",
        ));
    }
    let key = v8::String::new(scope, "default");
    let namespace = module.get_module_namespace().try_cast::<v8::Object>();
    let value = key.zip(namespace.ok()).and_then(|(key, namespace)| namespace.get(scope, key.into()));
    value
        .and_then(|value| value.try_cast::<v8::Function>().ok())
        .ok_or_else(|| missing("the default export is not a function"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_forgets_what_was_used_least_lately() {
        let mut cache = CodeCache::default();
        for n in 0..MAX_CACHED {
            cache.put(&n.to_string(), vec![0; 8]);
        }
        assert!(cache.get("0").is_some());
        cache.put("new", vec![0; 8]);
        assert!(cache.get("0").is_some() && cache.get("new").is_some());
        assert!(cache.get("1").is_none());
        cache.put("large", vec![0; MAX_CACHED_BYTES + 1]);
        assert!(cache.get("large").is_none());
    }
}
