//! Automations as they are shown: the one shape that the command line, the API and the dashboard list.
//!
//! Built from the registry (what the disk says) and the ledgers (what happened); the same with a daemon and without.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::core::disk::HandlerFile;
use crate::core::manifest::Trigger;
use crate::core::registry::{Automation, Registry};
use crate::core::schedule::Schedule;
use crate::fire::{AppId, AutomationId, EpochMs, Handle, Problem, RunId, RunStatus, TriggerOrigin};
use crate::ledger::{self, History, LedgerError, Reader};
use crate::tools;
use crate::watch;

/// Runs in an automation's history strip.
const RECENT: usize = ledger::NEWEST;

/// Everything under a root.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    pub automations: Vec<AutomationView>,
    /// All problems under the root, those of the automations included.
    pub problems: Vec<Problem>,
}

/// One automation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AutomationView {
    pub handle: Handle,
    pub app_id: AppId,
    pub automation_id: AutomationId,
    pub name: Option<String>,
    pub description: Option<String>,
    pub enabled: bool,
    /// The manifest on disk is valid now; when it is not, the last good one is in force, if there was one.
    pub valid: bool,
    pub state: AutomationState,
    pub triggers: Vec<TriggerView>,
    pub problems: Vec<Problem>,
    pub last_run: Option<LastRun>,
    pub counts: Counts,
    /// `ok / (ok + error)`; none without either.
    pub success_rate: Option<f64>,
    /// The newest rows, newest first.
    pub recent: Vec<RecentRun>,
    /// Runs that have not ended.
    pub active_runs: u64,
    pub cost_estimate: Option<CostEstimate>,
    /// None when no model was called of late.
    pub usage: Option<MeasuredUsage>,
}

/// What the manifest says a fire costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CostEstimate {
    pub model: String,
    pub tokens_per_fire: f64,
}

/// What the models counted in an automation's newest runs: the last 20 that ended and were not skipped, as far as the
/// newest 200 rows hold so many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredUsage {
    /// How many runs this is of, also those that called no model: 1 to 20.
    pub runs: u64,
    /// Model calls of these runs.
    pub calls: u64,
    /// Of all calls together.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// `(inputTokens + outputTokens) / runs`: what `costEstimate.tokensPerFire` is to be compared with.
    pub tokens_per_run: f64,
    /// The models that were asked, as `provider/model`.
    pub models: Vec<String>,
}

/// One of the newest rows of an automation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecentRun {
    pub run_id: RunId,
    pub status: RunStatus,
    pub started_at: Option<EpochMs>,
    pub ended_at: Option<EpochMs>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AutomationState {
    /// Enabled, and it can run.
    Enabled,
    /// Switched off. It can be run by hand.
    Disabled,
    /// It cannot run as it stands: its manifest is invalid, or its handler is missing or unreadable. What its last good
    /// manifest schedules still fires, and records why it failed.
    Invalid,
}

/// One trigger.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum TriggerView {
    Cron {
        expr: String,
        tz: Option<String>,
        /// The next fire, epoch ms; none while disabled.
        next: Option<EpochMs>,
    },
    Webhook {
        /// None while it is pending.
        id: Option<String>,
        pending: bool,
        /// A post to it is taken: provisioned, enabled, valid, and nobody else claims the id.
        open: bool,
    },
}

/// The newest row of an automation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastRun {
    pub run_id: RunId,
    pub status: RunStatus,
    pub origin: TriggerOrigin,
    pub queued_at: EpochMs,
    pub started_at: Option<EpochMs>,
    pub ended_at: Option<EpochMs>,
    pub summary: Option<String>,
    pub error: Option<String>,
}

/// Rows that history still holds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub total: u64,
    pub ok: u64,
    pub error: u64,
}

impl Overview {
    /// What the registry and the schedule say; history is still to be added with [`Self::add_history`].
    pub fn new(registry: &Registry, schedule: &Schedule) -> Self {
        let automations = registry.automations().map(|a| AutomationView::new(registry, schedule, a)).collect();
        Self { automations, problems: registry.problems() }
    }

    /// Reads the whole root from disk, without a daemon.
    pub fn from_disk(root: &Path, data: Option<&Path>, now: EpochMs) -> Self {
        let batch = watch::scan(root);
        let folders: HashMap<AppId, PathBuf> =
            batch.apps.iter().filter_map(|a| Some((a.app.clone()?, a.dir.clone()))).collect();
        let mut registry = Registry::default();
        registry.apply(batch);
        let mut schedule = Schedule::default();
        for automation in registry.automations() {
            let manifest = automation.manifest.as_deref().filter(|m| m.enabled);
            schedule.follow(&automation.handle, manifest, now, false);
        }
        let mut overview = Self::new(&registry, &schedule);
        let ledger_of = |app: &AppId| {
            let dir = data.map(|data| data.join(app.as_str())).or_else(|| folders.get(app).cloned());
            dir.unwrap_or_else(|| root.join(app.as_str())).join(crate::ledger::FILE)
        };
        overview.add_history(ledger_of, |_| None);
        overview.problems.extend(tools::mcp::file_problems(root));
        overview
    }

    /// Adds last runs and counts from each app's ledger. A ledger that cannot be read or written becomes a problem:
    /// nothing of its app runs. `obstacle_of`: what last kept an app's ledger from being written, if a writer knows.
    pub fn add_history(
        &mut self,
        ledger_of: impl Fn(&AppId) -> PathBuf,
        obstacle_of: impl Fn(&AppId) -> Option<LedgerError>,
    ) {
        let mut by_app: BTreeMap<AppId, Vec<&mut AutomationView>> = BTreeMap::new();
        for view in &mut self.automations {
            by_app.entry(view.app_id.clone()).or_default().push(view);
        }
        for (app, views) in by_app {
            let path = ledger_of(&app);
            let usable = add_app_history(&path, views).and_then(|()| ledger::check_writable(&path));
            let obstacle = usable.err().or_else(|| obstacle_of(&app).filter(|error| error.may_still_stand(&path)));
            self.problems.extend(obstacle.map(|error| ledger::problem(&app, &path, &error)));
        }
    }
}

fn add_app_history(ledger: &Path, views: Vec<&mut AutomationView>) -> Result<(), LedgerError> {
    let Some(reader) = Reader::open(ledger)? else { return Ok(()) };
    // One automation is found through the index; for several, the file is read once.
    let only = match views.as_slice() {
        [view] => Some(view.automation_id.clone()),
        _ => None,
    };
    let mut history = reader.history(only.as_ref(), RECENT)?;
    for view in views {
        let Some(found) = history.remove(&view.automation_id) else { continue };
        let newest = found.recent.first().map(|run| reader.run_outline(&run.run_id)).transpose()?.flatten();
        view.last_run = newest.map(|row| LastRun {
            run_id: row.run_id,
            status: row.status,
            origin: row.origin,
            queued_at: row.queued_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            summary: row.summary,
            error: row.error,
        });
        view.take_history(found);
    }
    Ok(())
}

impl AutomationView {
    fn take_history(&mut self, history: History) {
        let ledger::Counts { ok, error, total } = history.counts;
        self.counts = Counts { total, ok, error };
        #[allow(clippy::cast_precision_loss, reason = "a rate of counts needs no more than 52 bits of them")]
        let rate = || ok as f64 / (ok + error) as f64;
        self.success_rate = (ok + error > 0).then(rate);
        self.active_runs = history.open;
        let recent = |run: ledger::RecentRun| {
            let ledger::RecentRun { run_id, status, started_at, ended_at } = run;
            RecentRun { run_id, status, started_at, ended_at }
        };
        self.recent = history.recent.into_iter().map(recent).collect();
        self.usage = history.usage.map(MeasuredUsage::from);
    }

    /// What the registry and the schedule say of one automation, without its history.
    pub fn new(registry: &Registry, schedule: &Schedule, automation: &Automation) -> Self {
        let manifest = automation.manifest.as_deref();
        let mut next = schedule.next_fires(&automation.handle).into_iter();
        let triggers = manifest.into_iter().flat_map(|m| &m.triggers).map(|trigger| match trigger {
            Trigger::Cron(cron) => {
                TriggerView::Cron { expr: cron.expr.clone(), tz: cron.tz.clone(), next: next.next().flatten() }
            }
            Trigger::Webhook(webhook) => TriggerView::Webhook {
                id: Some(webhook.id.clone()),
                pending: false,
                open: automation.enabled() && registry.by_webhook(&webhook.id).is_some(),
            },
            Trigger::WebhookPending { .. } => TriggerView::Webhook { id: None, pending: true, open: false },
        });
        let triggers = triggers.collect();
        let runnable = automation.valid && matches!(automation.handler, HandlerFile::Present { .. });
        Self {
            handle: automation.handle.clone(),
            app_id: automation.handle.app.clone(),
            automation_id: automation.handle.automation.clone(),
            name: manifest.map(|m| m.name.clone()),
            description: manifest.and_then(|m| m.description.clone()),
            enabled: automation.enabled(),
            valid: automation.valid,
            state: match (runnable, automation.enabled()) {
                (false, _) => AutomationState::Invalid,
                (true, true) => AutomationState::Enabled,
                (true, false) => AutomationState::Disabled,
            },
            triggers,
            problems: registry.problems_of(automation),
            last_run: None,
            counts: Counts::default(),
            success_rate: None,
            recent: Vec::new(),
            active_runs: 0,
            usage: None,
            cost_estimate: manifest
                .and_then(|m| m.cost_estimate.as_ref())
                .map(|cost| CostEstimate { model: cost.model.clone(), tokens_per_fire: cost.tokens_per_fire }),
        }
    }
}

impl From<ledger::NewestUsage> for MeasuredUsage {
    #[allow(clippy::cast_precision_loss, reason = "shown to a few digits")]
    fn from(newest: ledger::NewestUsage) -> Self {
        let ledger::NewestUsage { runs, calls, input_tokens, output_tokens, models } = newest;
        let tokens_per_run = input_tokens.saturating_add(output_tokens) as f64 / runs.max(1) as f64;
        Self { runs, calls, input_tokens, output_tokens, tokens_per_run, models }
    }
}
