//! The three-tool dispatcher over app folders: `centraid_describe`, `centraid_read`, `centraid_write`.
//!
//! Handlers of queries and actions are JavaScript and run in isolate hosts, so a call has three steps:
//! [`AppTools::plan`] finds the entry in `app.json`, validates the input and pins the source; the caller runs the
//! handler with a [`DataDb`](crate::tools::data_db::DataDb) over [`HandlerCall::data_path`]; [`HandlerCall::finish`]
//! judges what the handler returned.
//!
//! Invariants: the input that reaches a handler has been validated; only what `app.json` declares can be run; the
//! source that runs is the one whose hash is shown. An `app.json` is parsed again exactly when its bytes change, and
//! at most [`CACHED_APPS`] are remembered. A mistake here runs a handler that nobody declared, or with input that
//! its author never expected.

mod declared;
mod handler_call;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::declared::{Declared, Entry, is_plain_word};
pub use self::handler_call::HandlerCall;
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::fire::{AppId, CallError};
use crate::tools::data_db::Migrations;
use crate::tools::{
    AppFiles, Builtin, HANDLER_ERROR, INVALID_INPUT, INVALID_MANIFEST, UNKNOWN_ACTION, UNKNOWN_APP, UNKNOWN_QUERY,
    WRONG_KIND,
};

/// As for `automation.json`: more is no manifest that a person or a model wrote.
const MAX_APP_JSON_BYTES: usize = 256 * 1024;
/// As for an automation's `handler.js`.
const MAX_SOURCE_BYTES: usize = 1024 * 1024;
/// Parsed manifests kept; far more apps than one root is used with at a time, and a few MiB at most.
const CACHED_APPS: usize = 256;
/// Problems shown of one value that breaks a schema. A form needs the first, a model profits from a few.
const SHOWN_PROBLEMS: usize = 4;

/// The two kinds of handlers that an app declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandlerKind {
    /// Read-only.
    Query,
    Action,
}

impl HandlerKind {
    /// The argument that names an entry of this kind.
    pub fn word(self) -> &'static str {
        match self {
            HandlerKind::Query => "query",
            HandlerKind::Action => "action",
        }
    }

    /// The list in `app.json` and the folder of the handlers.
    pub fn folder(self) -> &'static str {
        match self {
            HandlerKind::Query => "queries",
            HandlerKind::Action => "actions",
        }
    }

    /// Wall time of a handler whose entry sets none.
    pub fn default_timeout_ms(self) -> u64 {
        match self {
            HandlerKind::Query => 10_000,
            HandlerKind::Action => 30_000,
        }
    }

    fn tool(self) -> &'static str {
        match self {
            HandlerKind::Query => Builtin::Read.name(),
            HandlerKind::Action => Builtin::Write.name(),
        }
    }

    fn other(self) -> Self {
        match self {
            HandlerKind::Query => HandlerKind::Action,
            HandlerKind::Action => HandlerKind::Query,
        }
    }

    fn unknown_code(self) -> &'static str {
        match self {
            HandlerKind::Query => UNKNOWN_QUERY,
            HandlerKind::Action => UNKNOWN_ACTION,
        }
    }
}

/// The dispatcher. Clones share one cache.
#[derive(Clone)]
pub struct AppTools {
    files: Arc<dyn AppFiles>,
    cache: Arc<Mutex<Cache>>,
}

impl AppTools {
    pub fn new(files: Arc<dyn AppFiles>) -> Self {
        Self { files, cache: Arc::default() }
    }

    /// `centraid_describe({ app?, query?, action? })`.
    ///
    /// Without `app`: `{apps: [{id, name?, version?, description?, queries: [{name, description?}], actions: […]}]}`,
    /// where an app whose `app.json` is broken has `error: {code, message}` instead of the lists. With `app`:
    /// `{app: {id, name?, version?, description?}, queries: […], actions: […]}` with the entries as they stand in the
    /// file. With `query` or `action` as well: `{app: {…}, query: {…}}`.
    ///
    /// `visible`: the apps that the caller may see; `None` is all of them.
    ///
    /// # Errors
    /// `INVALID_INPUT`, `UNKNOWN_APP`, `UNKNOWN_QUERY`, `UNKNOWN_ACTION`, `INVALID_MANIFEST`.
    pub async fn describe(&self, args: &Value, visible: Option<&[AppId]>) -> Result<Value, CallError> {
        let (this, args, visible) = (self.clone(), args.clone(), visible.map(<[AppId]>::to_vec));
        off_thread(move || this.describe_now(&args, visible.as_deref())).await
    }

    /// Prepares `centraid_read({ app, query, input })` or `centraid_write({ app, action, input })`.
    ///
    /// `default_app` stands in for an absent `app`. `CallError.path` points into the input.
    ///
    /// # Errors
    /// `INVALID_INPUT`, `UNKNOWN_APP`, `UNKNOWN_QUERY`, `UNKNOWN_ACTION`, `WRONG_KIND`, `INVALID_MANIFEST`, and
    /// `HANDLER_ERROR` when the handler's file is missing or unreadable.
    pub async fn plan(
        &self,
        kind: HandlerKind,
        args: &Value,
        default_app: Option<&AppId>,
    ) -> Result<HandlerCall, CallError> {
        let (this, args, default_app) = (self.clone(), args.clone(), default_app.cloned());
        off_thread(move || this.plan_now(kind, &args, default_app.as_ref())).await
    }

    fn plan_now(&self, kind: HandlerKind, args: &Value, default_app: Option<&AppId>) -> Result<HandlerCall, CallError> {
        let args = object(args, kind.tool())?;
        let app = match (app_argument(args)?, default_app) {
            (Some(app), _) => app,
            (None, Some(app)) => app.as_str(),
            (None, None) => return Err(missing_argument(kind, "app")),
        };
        let name = match args.get(kind.word()) {
            Some(Value::String(name)) => name.as_str(),
            Some(Value::Null) | None => {
                if let Some(other) = args.get(kind.other().word()).and_then(Value::as_str) {
                    return Err(wrong_kind(kind.other(), other, app));
                }
                return Err(missing_argument(kind, kind.word()));
            }
            Some(_) => {
                return Err(CallError::new(INVALID_INPUT, format!("`{}` must be a text", kind.word())));
            }
        };
        let (app, dir) = self.find_app(app)?;
        let declared = self.declared(&app, &dir)?;
        let Some(index) = declared.find(kind, name) else {
            return Err(self.unknown_entry(&declared, kind, name, &app, &dir));
        };
        let entry = &declared.entries(kind)[index];
        let input = match args.get("input") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(input) => input.clone(),
        };
        self.check_input(entry, kind, &app, &input)?;
        let (source, source_sha256) = self.source(&dir, kind, name, &app)?;
        Ok(HandlerCall {
            kind,
            name: name.to_owned(),
            script_name: format!("{app}/{}/{name}.js", kind.folder()),
            source,
            source_sha256,
            input_json: input.to_string(),
            timeout_ms: entry.timeout_ms,
            writes: entry.writes.clone(),
            data_path: self.files.data_dir(&app).join("data.sqlite"),
            migrations: Migrations::of_app(Arc::clone(&self.files), dir),
            declared,
            entry: index,
            app,
        })
    }

    fn check_input(&self, entry: &Entry, kind: HandlerKind, app: &AppId, input: &Value) -> Result<(), CallError> {
        let what = format!("{} {:?} of app {app}", kind.word(), entry.name);
        let schema = entry.input().map_err(|reason| {
            CallError::new(INVALID_MANIFEST, format!("the `input` schema of {what} is invalid: {reason}"))
        })?;
        let Some(Err(mismatch)) = schema.map(|schema| schema.check(input, "", SHOWN_PROBLEMS)) else {
            return Ok(());
        };
        let message = format!("{what} refuses its input: {}", mismatch.message);
        Err(CallError { path: mismatch.path, ..CallError::new(INVALID_INPUT, message) })
    }

    fn unknown_entry(&self, declared: &Declared, kind: HandlerKind, name: &str, app: &AppId, dir: &Path) -> CallError {
        if declared.find(kind.other(), name).is_some() {
            return wrong_kind(kind.other(), name, app.as_str());
        }
        let mut message = format!("app {app} has no {} {:?}", kind.word(), shortened(name, 100));
        let known: Vec<&str> = declared.entries(kind).iter().map(|entry| entry.name.as_str()).collect();
        let file = PathBuf::from(kind.folder()).join(format!("{name}.js"));
        if is_plain_word(name) && matches!(self.files.read(dir, &file, MAX_SOURCE_BYTES), Ok(Some(_))) {
            message.push_str(&format!(
                "; {}/{name}.js exists, but app.json does not list it: add {{\"name\": {name:?}}} to `{}`",
                kind.folder(),
                kind.folder()
            ));
        } else if let Some(near) = nearest(name, &known) {
            message.push_str(&format!("; did you mean {near:?}?"));
        }
        CallError::new(kind.unknown_code(), message)
    }

    fn source(&self, dir: &Path, kind: HandlerKind, name: &str, app: &AppId) -> Result<(Arc<str>, String), CallError> {
        let file = format!("{}/{name}.js", kind.folder());
        let bytes = match self.files.read(dir, Path::new(&file), MAX_SOURCE_BYTES) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let message = format!("app {app} declares {} {name:?}, but {file} does not exist", kind.word());
                return Err(CallError::new(HANDLER_ERROR, message));
            }
            Err(problem) => {
                return Err(CallError::new(HANDLER_ERROR, format!("{app}/{file}: {}", problem.message)));
            }
        };
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let source = String::from_utf8(bytes)
            .map_err(|_| CallError::new(HANDLER_ERROR, format!("{app}/{file} is no UTF-8 text")))?;
        Ok((Arc::from(source), sha256))
    }

    fn describe_now(&self, args: &Value, visible: Option<&[AppId]>) -> Result<Value, CallError> {
        let empty = Map::new();
        let args = if args.is_null() { &empty } else { object(args, Builtin::Describe.name())? };
        let may_see = |app: &AppId| visible.is_none_or(|visible| visible.contains(app));
        let wanted = |kind: HandlerKind| match args.get(kind.word()) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(name)) => Ok(Some((kind, name.as_str()))),
            Some(_) => Err(CallError::new(INVALID_INPUT, format!("`{}` must be a text", kind.word()))),
        };
        let entry = match (wanted(HandlerKind::Query)?, wanted(HandlerKind::Action)?) {
            (Some(_), Some(_)) => {
                return Err(CallError::new(INVALID_INPUT, "give `query` or `action`, not both"));
            }
            (query, action) => query.or(action),
        };
        let Some(app) = app_argument(args)? else {
            if entry.is_some() {
                return Err(CallError::new(INVALID_INPUT, "`query` and `action` need `app`"));
            }
            let mut apps = self.files.list_apps();
            apps.retain(may_see);
            apps.sort();
            return Ok(json!({ "apps": apps.iter().map(|app| self.summary(app)).collect::<Vec<_>>() }));
        };
        let (app, dir) = self.find_app(app)?;
        if !may_see(&app) {
            return Err(self.unknown_app(app.as_str()));
        }
        let declared = self.declared(&app, &dir)?;
        let Some((kind, name)) = entry else {
            let raw = |kind| declared.entries(kind).iter().map(|entry| entry.raw.clone()).collect::<Vec<_>>();
            return Ok(json!({
                "app": identity(&app, &declared),
                "queries": raw(HandlerKind::Query),
                "actions": raw(HandlerKind::Action),
            }));
        };
        let Some(index) = declared.find(kind, name) else {
            return Err(self.unknown_entry(&declared, kind, name, &app, &dir));
        };
        let mut described = Map::new();
        described.insert("app".to_owned(), identity(&app, &declared));
        described.insert(kind.word().to_owned(), declared.entries(kind)[index].raw.clone());
        Ok(Value::Object(described))
    }

    fn summary(&self, app: &AppId) -> Value {
        let declared = self.find_app(app.as_str()).and_then(|(app, dir)| self.declared(&app, &dir));
        match declared {
            Ok(declared) => {
                let names = |kind| {
                    let entries = declared.entries(kind).iter();
                    entries
                        .map(|entry| named(&[("name", Some(&entry.name)), ("description", entry.description.as_ref())]))
                };
                let mut summary = identity(app, &declared);
                summary["queries"] = names(HandlerKind::Query).collect();
                summary["actions"] = names(HandlerKind::Action).collect();
                summary
            }
            Err(error) => json!({ "id": app, "error": { "code": error.code, "message": error.message } }),
        }
    }

    fn find_app(&self, name: &str) -> Result<(AppId, PathBuf), CallError> {
        let found = AppId::new(name).ok().and_then(|app| self.files.code_dir(&app).map(|dir| (app, dir)));
        found.ok_or_else(|| self.unknown_app(name))
    }

    fn unknown_app(&self, name: &str) -> CallError {
        let apps = self.files.list_apps();
        let known: Vec<&str> = apps.iter().map(AppId::as_str).collect();
        let mut message = format!("there is no app {:?}", shortened(name, 128));
        if let Some(near) = nearest(name, &known).filter(|&near| near != name) {
            message.push_str(&format!("; did you mean {near:?}?"));
        }
        CallError::new(UNKNOWN_APP, message)
    }

    /// The parsed `app.json`; an app without one declares nothing.
    fn declared(&self, app: &AppId, dir: &Path) -> Result<Arc<Declared>, CallError> {
        let invalid = |message: String| CallError::new(INVALID_MANIFEST, format!("app {app}: {message}"));
        let bytes = self
            .files
            .read(dir, Path::new("app.json"), MAX_APP_JSON_BYTES)
            .map_err(|problem| invalid(format!("app.json: {}", problem.message)))?;
        let Some(bytes) = bytes else { return Ok(Arc::default()) };
        let hash: [u8; 32] = Sha256::digest(&bytes).into();
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(declared) = lock().get(app, hash) {
            return declared.map_err(invalid);
        }
        let declared = Declared::parse(&bytes).map(Arc::new);
        lock().put(app.clone(), hash, declared.clone());
        declared.map_err(invalid)
    }
}

fn object<'v>(args: &'v Value, tool: &str) -> Result<&'v Map<String, Value>, CallError> {
    args.as_object().ok_or_else(|| CallError::new(INVALID_INPUT, format!("the arguments of {tool} must be an object")))
}

fn app_argument(args: &Map<String, Value>) -> Result<Option<&str>, CallError> {
    match args.get("app") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(app)) => Ok(Some(app)),
        Some(_) => Err(CallError::new(INVALID_INPUT, "`app` must be a text: the id of an app")),
    }
}

fn missing_argument(kind: HandlerKind, missing: &str) -> CallError {
    let (tool, word) = (kind.tool(), kind.word());
    CallError::new(INVALID_INPUT, format!("`{missing}` is missing; {tool} takes {{ app, {word}, input }}"))
}

fn wrong_kind(actual: HandlerKind, name: &str, app: &str) -> CallError {
    let (word, tool, name, app) = (actual.word(), actual.tool(), shortened(name, 128), shortened(app, 128));
    let article = if actual == HandlerKind::Action { "an" } else { "a" };
    CallError::new(WRONG_KIND, format!("{name:?} is {article} {word} of app {app}; use {tool}"))
}

fn identity(app: &AppId, declared: &Declared) -> Value {
    let id = app.to_string();
    named(&[
        ("id", Some(&id)),
        ("name", declared.name.as_ref()),
        ("version", declared.version.as_ref()),
        ("description", declared.description.as_ref()),
    ])
}

/// An object of the texts that are there.
fn named(fields: &[(&str, Option<&String>)]) -> Value {
    fields.iter().filter_map(|(key, text)| text.map(|text| ((*key).to_owned(), json!(text)))).collect()
}

/// Disk reads and schema checks may take long; they are kept off the async threads.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError::new(HANDLER_ERROR, "the daemon failed to prepare the call")),
    }
}

/// Parsed manifests, the least recently used one dropped first.
#[derive(Default)]
struct Cache {
    apps: HashMap<AppId, Cached>,
    uses: u64,
}

struct Cached {
    hash: [u8; 32],
    declared: Result<Arc<Declared>, String>,
    last_use: u64,
}

impl Cache {
    fn get(&mut self, app: &AppId, hash: [u8; 32]) -> Option<Result<Arc<Declared>, String>> {
        self.uses += 1;
        let cached = self.apps.get_mut(app).filter(|cached| cached.hash == hash)?;
        cached.last_use = self.uses;
        Some(cached.declared.clone())
    }

    fn put(&mut self, app: AppId, hash: [u8; 32], declared: Result<Arc<Declared>, String>) {
        self.uses += 1;
        self.apps.insert(app, Cached { hash, declared, last_use: self.uses });
        if self.apps.len() > CACHED_APPS
            && let Some(oldest) = self.apps.iter().min_by_key(|(_, cached)| cached.last_use).map(|(app, _)| app.clone())
        {
            self.apps.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests;
