//! Figures for Prometheus, in the OpenMetrics text form. What is counted is counted where it happens
//! (`daemon::bus::tally`, the pool, the ledgers); what is a state is looked at when it is asked for.

use std::fmt;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::extract::{NoParams, Params};
use super::{Api, Reply, STREAMS, openapi};
use crate::daemon::bus::tally::Figures;
use crate::gateway::problem::ProblemDocument;
use crate::isolate::PoolStats;
use crate::ledger::Stats;
use crate::watch::WatchMode;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Tells figures for Prometheus.
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = openapi::STATUS,
    responses((status = 200, description = "OpenMetrics text.", body = String,
        content_type = "application/openmetrics-text"))
)]
pub async fn metrics(State(api): State<Api>, Params(_): Params<NoParams>) -> Reply<Response> {
    let registry = api.registry_of_metrics().await?;
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|fmt::Error| ProblemDocument::internal(&"metrics cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// The one label of figures that are parts of a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Part {
    state: &'static str,
}

/// What the core is asked.
struct Load {
    slots: (usize, usize),
    waiting: (usize, usize),
    open: usize,
    armed: usize,
    automations: usize,
    enabled: usize,
}

impl Api {
    async fn registry_of_metrics(&self) -> Reply<Registry> {
        let look = self.daemon.look(|state| {
            let (slots, waiting) = state.load();
            let enabled = state.registry.automations().filter(|automation| automation.enabled()).count();
            let (open, armed, automations) =
                (state.open_runs().count(), state.schedule.armed(), state.registry.automations().count());
            Load { slots, waiting, open, armed, automations, enabled }
        });
        let load = look.await.ok_or_else(ProblemDocument::stopping)?;
        let services = self.services();
        let mut metrics = Registry::with_prefix("dirigent");
        self.add_process(&mut metrics);
        add_runs(&mut metrics, services.bus.figures(), &load);
        add_hosts(&mut metrics, &services.pool.stats());
        let blocked = services.folders.apps().iter().filter(|app| services.ledgers.obstacle(app).is_some()).count();
        add_ledgers(&mut metrics, &services.ledgers.stats(), blocked);
        self.add_watcher(&mut metrics);
        gauge(&mut metrics, "event_streams", "Streams of events that are open", self.open_streams());
        gauge(&mut metrics, "event_streams_limit", "Streams of events that may be open", STREAMS);
        Ok(metrics)
    }

    fn add_process(&self, metrics: &mut Registry) {
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        metrics.register("build", "This program", build);
        #[allow(clippy::cast_precision_loss, reason = "an instant in ms is far below 2^52")]
        let started = self.shared.started_at_ms as f64 / 1000.0;
        let told = "When the daemon was started, since the epoch";
        metrics.register_with_unit("start_time", told, Unit::Seconds, ConstGauge::new(started));
    }

    fn add_watcher(&self, metrics: &mut Registry) {
        let Some(state) = self.daemon.watcher_state() else { return };
        let modes = [("native", WatchMode::Native), ("mixed", WatchMode::Mixed), ("polling", WatchMode::Polling)];
        let modes = modes.map(|(name, mode)| (name, usize::from(state.mode == mode)));
        parts(metrics, "watcher_mode", "How changes on disk are noticed: 1 for the way in use", modes);
        gauge(metrics, "watcher_watches", "Folders that the kernel watches", state.watches);
        gauge(metrics, "watcher_problems", "Troubles of the watcher now", state.problems.len());
    }
}

fn add_runs(metrics: &mut Registry, figures: Figures, load: &Load) {
    let Figures { fires, durations } = figures;
    metrics.register("fires", "Fires that have ended or were skipped, since the start", fires);
    metrics.register("run_duration_seconds", "From the start of a run to its end", durations);
    gauge(metrics, "runs_open", "Runs that have not ended", load.open);
    let waiting = [("for_a_slot", load.waiting.0), ("in_line", load.waiting.1)];
    parts(metrics, "runs_waiting", "Runs that wait for a slot, or for others of their automation", waiting);
    gauge(metrics, "slots_used", "Handlers that run now", load.slots.0);
    gauge(metrics, "slots_limit", "Handlers that may run at once", load.slots.1);
    gauge(metrics, "triggers_armed", "Cron triggers that wait for their next instant", load.armed);
    let disabled = load.automations - load.enabled;
    parts(metrics, "automations", "Registered automations", [("enabled", load.enabled), ("disabled", disabled)]);
}

fn add_hosts(metrics: &mut Registry, stats: &PoolStats) {
    let hosts = [("warm", stats.warm), ("busy", stats.busy)];
    parts(metrics, "hosts", "Host processes: ready for a run, or in one", hosts);
    let (spawned, died) = (stats.spawned_total, stats.died_total);
    metrics.register("hosts_spawned", "Host processes that were started", ConstCounter::new(spawned));
    metrics.register("hosts_died", "Host processes that died on their own", ConstCounter::new(died));
}

fn add_ledgers(metrics: &mut Registry, stats: &Stats, blocked: usize) {
    gauge(metrics, "ledgers_open", "Ledgers that are open", stats.open);
    gauge(metrics, "ledgers_blocked", "Ledgers whose last write failed: nothing of their apps runs", blocked);
    metrics.register("ledger_requests", "Requests to ledgers", ConstCounter::new(stats.requests));
    metrics.register("ledger_commits", "Transactions that requests shared", ConstCounter::new(stats.groups));
    metrics.register("ledger_opens", "How often a ledger was opened", ConstCounter::new(stats.opens));
}

fn gauge(metrics: &mut Registry, name: &str, told: &str, value: usize) {
    metrics.register(name, told, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
}

fn parts<const N: usize>(metrics: &mut Registry, name: &str, told: &str, values: [(&'static str, usize); N]) {
    let family = Family::<Part, Gauge>::default();
    for (state, value) in values {
        family.get_or_create(&Part { state }).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    metrics.register(name, told, family);
}
