//! Automations as they are shown: the one shape that the command line, the API and the dashboard list.
//!
//! Built from the registry (what the disk says) and the ledgers (what happened); the same with a daemon and without.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::core::disk::HandlerFile;
use crate::core::manifest::Trigger;
use crate::core::registry::{Automation, Registry};
use crate::core::schedule::Schedule;
use crate::fire::{AppId, AutomationId, EpochMs, Handle, Problem, RunId, RunStatus, TriggerOrigin};
use crate::ledger::{self, LedgerError, Reader, RunQuery};
use crate::tools;
use crate::watch;

/// Open runs of one app that are counted; nobody reads a larger number to the last digit.
const MAX_OPEN_RUNS: usize = 10_000;

/// Everything under a root.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Overview {
    pub automations: Vec<AutomationView>,
    /// All problems under the root, those of the automations included.
    pub problems: Vec<Problem>,
}

/// One automation.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Runs that have not ended.
    pub active_runs: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
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
            schedule.follow(&automation.handle, manifest, now);
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
    let mut last: HashMap<AutomationId, LastRun> = reader
        .last_run_per_automation()?
        .into_iter()
        .map(|(automation, row)| {
            let last = LastRun {
                run_id: row.run_id,
                status: row.status,
                origin: row.origin,
                queued_at: row.queued_at,
                started_at: row.started_at,
                ended_at: row.ended_at,
                summary: row.summary,
                error: row.error,
            };
            (automation, last)
        })
        .collect();
    let mut counts = reader.counts_per_automation()?;
    let open =
        RunQuery { statuses: vec![RunStatus::Queued, RunStatus::Running], limit: MAX_OPEN_RUNS, ..RunQuery::default() };
    let mut active: HashMap<AutomationId, usize> = HashMap::new();
    for row in reader.runs(&open)? {
        *active.entry(row.automation_id).or_default() += 1;
    }
    for view in views {
        view.last_run = last.remove(&view.automation_id);
        if let Some(found) = counts.remove(&view.automation_id) {
            view.counts = Counts { total: found.total, ok: found.ok, error: found.error };
        }
        view.active_runs = active.remove(&view.automation_id).unwrap_or(0);
    }
    Ok(())
}

impl AutomationView {
    fn new(registry: &Registry, schedule: &Schedule, automation: &Automation) -> Self {
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
            active_runs: 0,
        }
    }
}
