//! `automation.json`, the manifest: what an automation is, read from disk alone.
//!
//! Bytes go in, `(value, problems)` come out: [`fn@parse`] names every problem at once, each with line and column, and
//! gives a [`Manifest`] only when none of them is an error. [`set_enabled`], [`provision_webhook`] and
//! [`rotate_webhook`] turn manifest text into manifest text; [`propose`] says what of a builder's text may be written.
//! Nothing here reads a file, a clock or the environment.
//!
//! Words: a *problem* is an error (the manifest is refused) or a warning (it runs). *Provisioned* and *pending* are the
//! two states of a webhook trigger: with a minted route id and secret hash, or merely declared by a builder.
//!
//! Invariants:
//! - Whatever other hosts of this format accept and can run is accepted here; where they are lenient (`"enabled":
//!   "yes"` means off, `{"count": 5.0}` is an integer, `requires` may be an array, most of `outputSchema` is not
//!   looked at) so is this, with a warning.
//! - Only an absent `enabled` or a literal `true` is enabled.
//! - A message never shows the value of `secretHash` or `secretRef`: people paste the plaintext there by mistake.
//! - No input makes this panic, recurse without bound, or fetch anything.
//!
//! A mistake in this module costs either an existing folder that no longer runs, or a trigger that fires although the
//! file says otherwise.

pub(crate) mod json_tree;
mod leniency;
mod parse;
pub(crate) mod position;
mod proposal;
pub(crate) mod report;
mod rewrite;
mod schema;
#[cfg(test)]
mod schema_tests;
mod subschema;
mod triggers;

#[cfg(test)]
mod fixture_tests;

use serde_json::Value;

pub use parse::{Parsed, parse};
pub use proposal::{Proposed, propose};
pub use rewrite::{RewriteError, provision_webhook, rotate_webhook, set_enabled};
pub use schema::json_schema;
pub use triggers::is_slug;

use crate::core::cron::CronSchedule;
use crate::fire::{AppId, AutomationId, Handle};

/// The largest `automation.json`, in bytes: manifests are read whole, on every event of their folder.
pub const MAX_MANIFEST_BYTES: usize = 256 * 1024;

/// The largest `handler.js`, in bytes: it is carried whole into every run.
pub const MAX_HANDLER_BYTES: usize = 1024 * 1024;

/// A valid manifest, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    pub name: String,
    pub version: String,
    pub description: Option<String>,
    /// What a person asked for; documentation, never executed.
    pub prompt: String,
    pub enabled: bool,
    /// In file order; at most one is a webhook.
    pub triggers: Vec<Trigger>,
    pub requires: Requires,
    /// Apps it is shown under. Entries that can name no app folder are dropped, with a warning.
    pub apps: Vec<AppId>,
    pub cost_estimate: Option<CostEstimate>,
    /// A JSON Schema that [`Schema::compile`] accepts: what stands in the file, without the keywords that are faulty.
    ///
    /// [`Schema::compile`]: crate::core::json_schema::Schema::compile
    pub output_schema: Option<Value>,
    pub on_failure: Option<FailureHandler>,
    pub keep: HistoryKeep,
    pub generated: Generated,
    pub concurrency: Concurrency,
    /// 1 to 86,400,000.
    pub timeout_ms: u64,
    pub catch_up: CatchUp,
    pub retry: Retry,
}

impl Manifest {
    /// The failure handler of this automation, which lives in `app`.
    pub fn on_failure_handle(&self, app: &AppId) -> Option<Handle> {
        self.on_failure.as_ref().map(|handler| match handler {
            FailureHandler::Sibling(id) => Handle::new(app.clone(), id.clone()),
            FailureHandler::Handle(handle) => handle.clone(),
        })
    }

    /// The one webhook trigger that has a route, if any.
    pub fn webhook(&self) -> Option<&Webhook> {
        self.triggers.iter().find_map(|trigger| match trigger {
            Trigger::Webhook(webhook) => Some(webhook),
            Trigger::Cron(_) | Trigger::WebhookPending { .. } => None,
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Trigger {
    Cron(CronTrigger),
    /// Provisioned: it has a route.
    Webhook(Webhook),
    /// Declared, but without a route until somebody provisions it.
    WebhookPending {
        verify: Option<Verify>,
        filter: Option<Value>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct CronTrigger {
    /// As it stands in the file.
    pub expr: String,
    /// An IANA zone; `None` is UTC.
    pub tz: Option<String>,
    pub schedule: CronSchedule,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// The route slug.
    pub id: String,
    /// SHA-256 of the bearer secret; absent only where `verify` stands in its place.
    pub secret_sha256: Option<[u8; 32]>,
    pub verify: Option<Verify>,
    /// A JSON Schema that compiles; bodies that break it are not run.
    pub filter: Option<Value>,
}

/// How the signature of a raw webhook body is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    pub scheme: VerifyScheme,
    pub secret_ref: SecretRef,
    /// An HTTP header name, as written; `None` is the scheme's usual one.
    pub header: Option<String>,
}

/// Where a signing secret is kept; never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// `env:NAME`
    Env(String),
    /// `file:path`
    File(String),
}

/// Gives an enum the words that the manifest uses for it.
macro_rules! manifest_words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every word, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($text),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

manifest_words!(VerifyScheme {
    StandardWebhooks = "standard-webhooks",
    Github = "github",
    Stripe = "stripe",
    HmacSha256 = "hmac-sha256",
});

manifest_words!(
    /// What a fire does while a run of the same automation is active.
    ConcurrencyMode { Single = "single", Queued = "queued", Parallel = "parallel", Restart = "restart" }
);

manifest_words!(
    /// What becomes of cron fires that were missed.
    CatchUp { Skip = "skip", Once = "once", All = "all" }
);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requires {
    pub mcps: Vec<String>,
    pub tools: Vec<String>,
    /// `provider/model-id`
    pub model: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CostEstimate {
    pub model: String,
    /// Finite, at least 0.
    pub tokens_per_fire: f64,
}

/// The automation that `onFailure` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureHandler {
    /// A bare id: in the same app.
    Sibling(AutomationId),
    Handle(Handle),
}

/// Which ended runs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryKeep {
    /// The newest so many.
    Count(u64),
    /// Those that ended at most so many days ago.
    Days(u64),
    All,
    /// Only failed ones.
    Errors,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    pub by: String,
    /// Free text, usually RFC 3339; other hosts do not check it either.
    pub at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    pub mode: ConcurrencyMode,
    /// `queued`: runs that may wait. `parallel`: runs at once. Otherwise 1.
    pub max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Retries after the first attempt; 0 is none.
    pub max: u32,
    /// Wait before the first retry; it doubles from there.
    pub backoff_ms: u64,
}

/// Bounds and defaults, shared by [`fn@parse`] and [`json_schema`].
mod limits {
    use std::ops::RangeInclusive;

    pub const DEFAULT_VERSION: &str = "0.1.0";
    pub const DEFAULT_HISTORY_COUNT: u64 = 100;
    pub const TIMEOUT_MS: RangeInclusive<u64> = 1..=86_400_000;
    pub const DEFAULT_TIMEOUT_MS: u64 = 300_000;
    pub const CONCURRENCY_MAX: RangeInclusive<u64> = 1..=10_000;
    pub const DEFAULT_QUEUED_MAX: u32 = 100;
    pub const DEFAULT_PARALLEL_MAX: u32 = 10;
    /// A run that failed a hundred times will fail again.
    pub const RETRY_MAX: RangeInclusive<u64> = 0..=100;
    /// No wait between retries is longer than an hour, so a first one need not be either.
    pub const BACKOFF_MS: RangeInclusive<u64> = 0..=3_600_000;
    pub const DEFAULT_BACKOFF_MS: u64 = 1_000;
}

/// The fields that are known at each level; anything else is kept, and warned about.
mod fields {
    pub const MANIFEST: &[&str] = &[
        "$schema",
        "name",
        "version",
        "description",
        "prompt",
        "enabled",
        "triggers",
        "trigger",
        "requires",
        "apps",
        "costEstimate",
        "outputSchema",
        "onFailure",
        "history",
        "generated",
        "concurrency",
        "timeoutMs",
        "catchUp",
        "retry",
    ];
    pub const CRON: &[&str] = &["kind", "expr", "tz"];
    pub const WEBHOOK: &[&str] = &["kind", "id", "secretHash", "pending", "verify", "filter"];
    pub const VERIFY: &[&str] = &["scheme", "secretRef", "header"];
    pub const REQUIRES: &[&str] = &["mcps", "tools", "model"];
    pub const COST_ESTIMATE: &[&str] = &["model", "tokensPerFire"];
    pub const HISTORY: &[&str] = &["keep"];
    pub const KEEP: &[&str] = &["count", "days"];
    pub const GENERATED: &[&str] = &["by", "at"];
    pub const CONCURRENCY: &[&str] = &["mode", "max"];
    pub const RETRY: &[&str] = &["max", "backoffMs"];
}
