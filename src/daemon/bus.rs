//! What happens to runs, told live to whoever listens: the command line's streams and the server-sent events.
//!
//! Every event stands in the ledger before it is told here, and the events of one run are told in the order in which
//! they were recorded, its end last. One thing is told by no event of its own: the nodes that are open at the run's
//! end are closed with it. A listener that is too slow loses events and is told so; it can read what it lost from the
//! ledger.
//!
//! Whoever follows all runs, and not one, takes the [`headlines`], which are numbered and kept for a while.

pub mod headlines;
pub mod tally;

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use utoipa::ToSchema;

use self::headlines::{Headline, Headlines};
use self::tally::{Figures, Tally};
use crate::fire::{AppId, EpochMs, ErrorCode, Handle, LogLevel, NodeKind, RunId, RunStatus, TriggerOrigin};

/// Events that a slow listener may lag behind before it loses some.
const CAPACITY: usize = 4096;

/// Something that happened to a run.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunEvent {
    pub run_id: RunId,
    pub handle: Handle,
    #[serde(flatten)]
    pub what: RunHappening,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum RunHappening {
    /// The row was written.
    Opened {
        status: RunStatus,
        origin: TriggerOrigin,
        at: EpochMs,
    },
    Started {
        at: EpochMs,
    },
    Log {
        seq: u32,
        at: EpochMs,
        level: LogLevel,
        message: String,
        fields: Option<serde_json::Value>,
    },
    NodeOpened {
        ordinal: u32,
        #[serde(rename = "batchId")]
        batch_id: Option<u32>,
        kind: NodeKind,
        name: String,
        at: EpochMs,
    },
    NodeClosed {
        ordinal: u32,
        ok: bool,
        error: Option<String>,
        at: EpochMs,
    },
    Ended {
        status: RunStatus,
        at: EpochMs,
        summary: Option<String>,
        error: Option<String>,
        #[serde(rename = "errorCode")]
        error_code: Option<ErrorCode>,
    },
}

/// Tables of an app's data that a write announced.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TablesChanged {
    pub app: AppId,
    pub tables: Vec<String>,
}

/// All streams. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    runs: broadcast::Sender<Arc<RunEvent>>,
    tables: broadcast::Sender<Arc<TablesChanged>>,
    headlines: Headlines,
    tally: Arc<Mutex<Tally>>,
}

impl Default for Bus {
    fn default() -> Self {
        Self {
            runs: broadcast::Sender::new(CAPACITY),
            tables: broadcast::Sender::new(CAPACITY),
            headlines: Headlines::default(),
            tally: Arc::default(),
        }
    }
}

impl RunHappening {
    /// Whether it concerns those who follow all runs.
    fn is_headline(&self) -> bool {
        matches!(self, Self::Opened { .. } | Self::Started { .. } | Self::Ended { .. })
    }
}

impl Bus {
    pub fn tell(&self, run_id: &RunId, handle: &Handle, what: RunHappening) {
        let is_headline = what.is_headline();
        if !is_headline && self.runs.receiver_count() == 0 {
            return;
        }
        let event = Arc::new(RunEvent { run_id: run_id.clone(), handle: handle.clone(), what });
        if is_headline {
            self.tally.lock().unwrap_or_else(PoisonError::into_inner).count(run_id, &event.what);
            self.headlines.tell(Headline::Run(Arc::clone(&event)));
        }
        // An error only says that nobody listens.
        let _ = self.runs.send(event);
    }

    /// Automations, or what is wrong with them, have changed.
    pub fn tell_registry(&self) {
        self.headlines.tell(Headline::RegistryChanged);
    }

    pub fn tell_tables(&self, app: &AppId, tables: &[String]) {
        if !tables.is_empty() && self.tables.receiver_count() > 0 {
            let _ = self.tables.send(Arc::new(TablesChanged { app: app.clone(), tables: tables.to_vec() }));
        }
    }

    pub fn runs(&self) -> broadcast::Receiver<Arc<RunEvent>> {
        self.runs.subscribe()
    }

    pub fn headlines(&self) -> &Headlines {
        &self.headlines
    }

    /// Counted since the start.
    pub fn figures(&self) -> Figures {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).figures.clone()
    }

    pub fn tables(&self) -> broadcast::Receiver<Arc<TablesChanged>> {
        self.tables.subscribe()
    }
}
