//! The vocabulary that every other room shares: ids, triggers, statuses, error codes, and what crosses between a
//! handler and the daemon. Plain data with its text forms; nothing here does anything.
//!
//! Words: an *automation* lives at `<root>/<app>/automations/<id>`; its *handle* is `<app>/<id>`. One *fire* is one
//! *run*, one row in `runs`. Each tool, agent or invoke *call* of a run is one *node*.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, by the wall clock.
pub type EpochMs = i64;

/// A name that breaks its grammar: the rule, the value, and what it was meant to name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} must match {rule}")]
pub struct NameError {
    pub what: &'static str,
    pub value: String,
    pub rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            pub const RULE: &'static str = $rule;

            /// # Errors
            /// [`NameError`] when the text breaks [`Self::RULE`].
            pub fn new(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(Arc::from(text)))
                } else {
                    Err(NameError { what: $what, value: text.chars().take(200).collect(), rule: $rule })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

name_type!(
    /// The name of an app folder.
    AppId,
    "app id",
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    |text| {
        let bytes = text.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(|&b| is_word(b) || b == b'.')
    }
);

name_type!(
    /// The name of an automation folder.
    AutomationId,
    "automation id",
    "^[A-Za-z0-9_-]{1,128}$",
    |text| (1..=128).contains(&text.len()) && text.bytes().all(is_word)
);

/// `<appId>/<automationId>`, unique under a root. In JSON it is that text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    pub app: AppId,
    pub automation: AutomationId,
}

impl Handle {
    pub fn new(app: AppId, automation: AutomationId) -> Self {
        Self { app, automation }
    }

    /// Reads `<app>/<automation>`, or a bare `<automation>` where `same_app` says which app is implied.
    ///
    /// # Errors
    /// [`NameError`] for either part, or for a bare name with no app implied.
    pub fn parse(text: &str, same_app: Option<&AppId>) -> Result<Self, NameError> {
        match (text.split_once('/'), same_app) {
            (Some((app, automation)), _) => Ok(Self::new(AppId::new(app)?, AutomationId::new(automation)?)),
            (None, Some(app)) => Ok(Self::new(app.clone(), AutomationId::new(text)?)),
            (None, None) => Err(NameError {
                what: "handle",
                value: text.chars().take(200).collect(),
                rule: "<appId>/<automationId>",
            }),
        }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.automation)
    }
}

impl FromStr for Handle {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text, None)
    }
}

impl Serialize for Handle {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A run's id: a UUIDv7 in its usual lower-case text form, so that ids sort by the time they were made.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(Arc<str>);

impl RunId {
    /// A new id whose time part is `at_ms`; the rest is random.
    pub fn at(at_ms: EpochMs) -> Self {
        let at_ms = u64::try_from(at_ms).unwrap_or(0);
        let timestamp = uuid::Timestamp::from_unix(
            uuid::NoContext,
            at_ms / 1000,
            u32::try_from(at_ms % 1000).unwrap_or(0) * 1_000_000,
        );
        Self(Arc::from(uuid::Uuid::new_v7(timestamp).hyphenated().to_string()))
    }

    /// # Errors
    /// [`NameError`] when the text is no UUID.
    pub fn new(text: &str) -> Result<Self, NameError> {
        match uuid::Uuid::try_parse(text) {
            Ok(id) => Ok(Self(Arc::from(id.hyphenated().to_string()))),
            Err(_) => Err(NameError { what: "run id", value: text.chars().take(200).collect(), rule: "a UUID" }),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Gives an enum its one text form: `as_str`, `parse`, `Display`, and serde with the same words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// What made a run start: `runs.trigger_origin`.
    TriggerOrigin {
        Cron = "cron",
        Webhook = "webhook",
        Manual = "manual",
        Invoke = "invoke",
        Failure = "failure",
        Retry = "retry",
    }
);

words!(
    /// `runs.status`.
    RunStatus {
        Queued = "queued",
        Running = "running",
        Ok = "ok",
        Error = "error",
        Cancelled = "cancelled",
        Skipped = "skipped",
    }
);

impl RunStatus {
    /// Every change that a row may make after it was written; anything else is a bug to be reported.
    /// A row is born as `queued`, `running` or `skipped`.
    pub const TRANSITIONS: &'static [(RunStatus, RunStatus)] = &[
        (RunStatus::Queued, RunStatus::Running),
        (RunStatus::Queued, RunStatus::Cancelled),
        (RunStatus::Queued, RunStatus::Error),
        (RunStatus::Running, RunStatus::Ok),
        (RunStatus::Running, RunStatus::Error),
        (RunStatus::Running, RunStatus::Cancelled),
    ];

    pub fn may_become(self, next: RunStatus) -> bool {
        Self::TRANSITIONS.contains(&(self, next))
    }

    /// True for `queued` and `running`: the row is still to change, and retention leaves it alone.
    pub fn is_open(self) -> bool {
        matches!(self, RunStatus::Queued | RunStatus::Running)
    }
}

words!(
    /// Why a run ended in `error` (or was cancelled): `runs.error_code`. This is the one list of them.
    ErrorCode {
        /// The handler threw, or its promise was rejected.
        HandlerThrew = "handler_threw",
        /// The handler could not be read, parsed or evaluated.
        HandlerLoad = "handler_load",
        /// The module has no default export, or it is not a function.
        NoDefaultExport = "no_default_export",
        /// `output` is no JSON, or over its size limit.
        BadOutput = "bad_output",
        /// `output` does not validate against the manifest's `outputSchema`.
        OutputSchema = "output_schema",
        /// Wall time: the manifest's `timeoutMs`.
        Timeout = "timeout",
        CpuLimit = "cpu_limit",
        MemoryLimit = "memory_limit",
        /// Nothing is left that could settle the handler's promise.
        NeverSettled = "never_settled",
        /// More nodes than a run may make.
        LimitExceeded = "limit_exceeded",
        /// The host process died for another reason.
        Crashed = "crashed",
        /// The daemon died, or was stopped, while the run was open.
        Interrupted = "interrupted",
        /// The run failed with a call that its allow-list refuses.
        ToolNotAllowed = "tool_not_allowed",
        /// Cancelled by a person or a program.
        Cancelled = "cancelled",
        /// Cancelled because a newer fire of a `restart` automation took its place.
        Superseded = "superseded",
        /// Cancelled because the run that invoked it ended first.
        ParentEnded = "parent_ended",
    }
);

words!(
    /// `run_nodes.kind`.
    NodeKind { Tool = "tool", Agent = "agent", Invoke = "invoke" }
);

words!(
    /// `run_logs.level`.
    LogLevel { Info = "info", Warn = "warn", Error = "error" }
);

/// One line of a run's log, as the handler gave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    pub at: EpochMs,
    pub level: LogLevel,
    pub message: String,
    /// JSON text, when the handler gave fields.
    pub fields_json: Option<String>,
}

/// `runs.trigger_json`: which trigger made the run, and what it stood for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TriggerInfo {
    /// The trigger's identity within its automation, cron only: see `core::schedule`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expr: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tz: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_for: Option<EpochMs>,
    /// How many earlier instants this run stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// The webhook that was posted to, and the sender's id of that delivery when it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery_id: Option<String>,
    /// Why a `skipped` row was not run: `overlap`, `missed` or `filter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// A retry waits until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<EpochMs>,
    /// The run that was replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<RunId>,
    /// The failed run that this one handles, and how many failure handlers stand in the chain up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_run: Option<RunId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_depth: Option<u32>,
}

words!(
    Severity { Error = "error", Warning = "warning" }
);

/// Something wrong with a file or folder, in the words that every place shows: the CLI, the API, the dashboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Stable code, such as `invalid_trigger`.
    pub code: String,
    pub severity: Severity,
    /// Path of the field, such as `triggers[0].expr`; empty for the whole file.
    pub field: String,
    /// The rule and the observed value.
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// 1-based; columns count characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// The file or folder, relative to the root, with `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

impl Problem {
    pub fn error(code: &str, field: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            severity: Severity::Error,
            field: field.to_owned(),
            message: message.into(),
            hint: None,
            line: None,
            column: None,
            path: None,
        }
    }

    pub fn warning(code: &str, field: &str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, field, message) }
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn at(mut self, line: u32, column: u32) -> Self {
        (self.line, self.column) = (Some(line), Some(column));
        self
    }

    #[must_use]
    pub fn in_path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{path}:")?;
        }
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}:")?;
        }
        if self.path.is_some() || self.line.is_some() {
            f.write_str(" ")?;
        }
        write!(f, "{}[{}]: {}", self.severity, self.code, self.message)
    }
}

/// One call that a handler made through `ctx` (or, inside a query or action, through `db`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CtxCall {
    /// Chosen by the host, unique within the run; the reply carries it back.
    pub id: u32,
    pub at: EpochMs,
    pub body: CtxCallBody,
}

/// What is asked. Every `…_json` is JSON text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CtxCallBody {
    Tool {
        name: String,
        args_json: String,
    },
    Agent {
        args_json: String,
    },
    Invoke {
        handle: String,
        input_json: Option<String>,
    },
    StateGet {
        key: String,
    },
    StateSet {
        key: String,
        value_json: String,
    },
    StateDelete {
        key: String,
    },
    RunsList {
        filter_json: Option<String>,
    },
    /// `{op: "get"|"all"|"run"|"exec"|"begin"|"commit"|"rollback", sql?, params?, tx?}`.
    Db {
        args_json: String,
    },
}

/// The answer to a [`CtxCall`]: JSON text (`None` is `undefined`), or an error to reject with.
pub type CtxReply = Result<Option<String>, CallError>;

/// What a rejected call shows to the handler: an `Error` with `message`, `code` and, when given, `path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    pub code: String,
    pub message: String,
    pub path: Option<String>,
}

impl CallError {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), path: None }
    }
}
