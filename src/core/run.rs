//! A run as the core and the ledger speak of it: the row it is opened with, how it ended, what is handed to a host.

use std::sync::Arc;

use crate::core::manifest::{HistoryKeep, Manifest};
use crate::fire::{AppId, AutomationId, EpochMs, ErrorCode, Handle, RunId, RunStatus, TriggerInfo, TriggerOrigin};

/// A row of `runs` as it is first written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRun {
    pub run_id: RunId,
    pub app_id: AppId,
    pub automation_id: AutomationId,
    /// `queued`, `running` or `skipped`.
    pub status: RunStatus,
    pub origin: TriggerOrigin,
    pub trigger: TriggerInfo,
    /// Cron only.
    pub scheduled_for: Option<EpochMs>,
    /// JSON text; `None` is `undefined`.
    pub input_json: Option<String>,
    pub parent_run_id: Option<RunId>,
    pub retry_of: Option<RunId>,
    /// 1-based.
    pub attempt: u32,
    /// SHA-256 of the handler, hex; known when the run starts.
    pub handler_hash: Option<String>,
    pub queued_at: EpochMs,
    pub started_at: Option<EpochMs>,
    pub ended_at: Option<EpochMs>,
    pub summary: Option<String>,
    pub error: Option<String>,
}

impl NewRun {
    pub fn handle(&self) -> Handle {
        Handle::new(self.app_id.clone(), self.automation_id.clone())
    }

    /// The cron trigger whose instant this row stands for.
    pub fn cron_trigger(&self) -> Option<(Handle, String)> {
        let is_cron = self.origin == TriggerOrigin::Cron;
        is_cron.then(|| (self.handle(), self.trigger.key.clone().unwrap_or_default()))
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// `ok`, `error` or `cancelled`.
    pub status: RunStatus,
    pub ended_at: EpochMs,
    pub summary: Option<String>,
    pub output_json: Option<String>,
    pub error: Option<String>,
    pub error_code: Option<ErrorCode>,
}

impl RunEnd {
    pub fn error(code: ErrorCode, message: impl Into<String>, ended_at: EpochMs) -> Self {
        Self {
            status: RunStatus::Error,
            ended_at,
            summary: None,
            output_json: None,
            error: Some(message.into()),
            error_code: Some(code),
        }
    }

    pub fn cancelled(why: ErrorCode, ended_at: EpochMs) -> Self {
        let message = match why {
            ErrorCode::Superseded => "superseded by a newer fire",
            ErrorCode::ParentEnded => "the run that invoked it ended first",
            ErrorCode::Interrupted => "cancelled because dirigent was stopped",
            _ => "cancelled",
        };
        Self { status: RunStatus::Cancelled, ..Self::error(why, message, ended_at) }
    }
}

/// An end that is to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Close {
    pub run: RunId,
    /// The app whose ledger holds the row, and the automation whose history is cut.
    pub handle: Handle,
    pub end: RunEnd,
    pub keep: HistoryKeep,
    /// A `queued` row that follows from the end, written in the same transaction so that it cannot be lost between the
    /// two: the retry, or the run of the failure handler when that belongs to the same app.
    pub next: Option<NewRun>,
}

/// What a host is to run, pinned: an edit on disk during the run changes nothing in it.
#[derive(Debug, Clone)]
pub struct RunSpec {
    pub run_id: RunId,
    pub handle: Handle,
    pub manifest: Arc<Manifest>,
    pub origin: TriggerOrigin,
    pub trigger: TriggerInfo,
    pub input_json: Option<String>,
    pub attempt: u32,
    pub started_at: EpochMs,
}
