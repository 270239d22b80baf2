//! How many fires there were, how they ended and how long they ran: figures since the start, for metrics.
//!
//! Counted where runs are told, so that a count and an event never disagree. It costs a look into a map of the open
//! runs for each of the two or three events of a run; its calls and log lines are not looked at.

use std::collections::HashMap;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::RunHappening;
use crate::fire::{EpochMs, RunId, RunStatus, TriggerOrigin};

/// Open runs whose origin and start are remembered. Beyond it, which only an app with a ledger that refuses every end
/// comes near, a run is counted as one of unknown origin.
const MAX_OPEN: usize = 100_000;

/// Upper bounds of run durations, seconds: a trivial handler, a few calls, a model's turn, the longest timeout.
const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 3600.0, 86_400.0];

/// The labels of a fire that has ended or was skipped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FireLabels {
    /// `unknown` for one that an earlier daemon opened.
    pub origin: &'static str,
    pub status: &'static str,
}

/// The labels of a run that has started and ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RunLabels {
    pub status: &'static str,
}

/// Clones are the same figures.
#[derive(Debug, Clone)]
pub struct Figures {
    pub fires: Family<FireLabels, Counter>,
    /// Seconds from start to end.
    pub durations: Family<RunLabels, Histogram, fn() -> Histogram>,
}

impl Default for Figures {
    fn default() -> Self {
        Self { fires: Family::default(), durations: Family::new_with_constructor(|| Histogram::new(BOUNDS)) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub figures: Figures,
    open: HashMap<RunId, Open>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Open {
    origin: Option<TriggerOrigin>,
    started_at: Option<EpochMs>,
}

impl Tally {
    pub fn count(&mut self, run: &RunId, what: &RunHappening) {
        match what {
            RunHappening::Opened { status, origin, .. } if !status.is_open() => self.fire(Some(*origin), *status),
            RunHappening::Opened { origin, .. } => self.note(run, |open| open.origin = Some(*origin)),
            RunHappening::Started { at } => self.note(run, |open| open.started_at = Some(*at)),
            RunHappening::Ended { status, at, .. } => {
                let open = self.open.remove(run).unwrap_or_default();
                self.fire(open.origin, *status);
                if let Some(started_at) = open.started_at {
                    #[allow(clippy::cast_precision_loss, reason = "a duration in ms is far below 2^52")]
                    let seconds = (at - started_at).max(0) as f64 / 1000.0;
                    self.figures.durations.get_or_create(&RunLabels { status: status.as_str() }).observe(seconds);
                }
            }
            RunHappening::Log { .. } | RunHappening::NodeOpened { .. } | RunHappening::NodeClosed { .. } => {}
        }
    }

    fn fire(&self, origin: Option<TriggerOrigin>, status: RunStatus) {
        let origin = origin.map_or("unknown", TriggerOrigin::as_str);
        self.figures.fires.get_or_create(&FireLabels { origin, status: status.as_str() }).inc();
    }

    fn note(&mut self, run: &RunId, note: impl FnOnce(&mut Open)) {
        if let Some(open) = self.open.get_mut(run) {
            note(open);
        } else if self.open.len() < MAX_OPEN {
            note(self.open.entry(run.clone()).or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fire_counts_once_by_how_it_ended() {
        let mut tally = Tally::default();
        let ended = |status, at| RunHappening::Ended { status, at, summary: None, error: None, error_code: None };
        let opened = |status, origin| RunHappening::Opened { status, origin, at: 1000 };
        let (manual, cron) = (TriggerOrigin::Manual, TriggerOrigin::Cron);
        for (what, events) in [
            (
                "ran",
                vec![
                    opened(RunStatus::Running, manual),
                    RunHappening::Started { at: 1000 },
                    ended(RunStatus::Ok, 3000),
                ],
            ),
            ("cancelled in its lane", vec![opened(RunStatus::Queued, manual), ended(RunStatus::Cancelled, 9000)]),
            ("skipped", vec![opened(RunStatus::Skipped, cron)]),
            ("of an earlier daemon", vec![RunHappening::Started { at: 1000 }, ended(RunStatus::Error, 1000)]),
        ] {
            let run = RunId::at(1000);
            events.iter().for_each(|event| tally.count(&run, event));
            assert!(tally.open.is_empty(), "{what}");
        }
        let Figures { fires, durations } = tally.figures;
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("fires", "", fires);
        registry.register("took", "", durations);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut told: Vec<&str> =
            text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket")).collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                r#"fires_total{origin="cron",status="skipped"} 1"#,
                r#"fires_total{origin="manual",status="cancelled"} 1"#,
                r#"fires_total{origin="manual",status="ok"} 1"#,
                r#"fires_total{origin="unknown",status="error"} 1"#,
                r#"took_count{status="error"} 1"#,
                r#"took_count{status="ok"} 1"#,
                r#"took_sum{status="error"} 0.0"#,
                r#"took_sum{status="ok"} 2.0"#,
            ]
        );
    }
}
