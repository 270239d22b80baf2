//! The ledger through its public face, on real files. Time is what the tests say it is.

mod files;
mod history;
mod promises;
mod reading;

use std::path::PathBuf;

use rusqlite::Connection;

use crate::core::manifest::HistoryKeep;
use crate::core::run::RunEnd;
use crate::fire::{
    AppId, AutomationId, EpochMs, ErrorCode, Handle, NodeKind, RunId, RunStatus, TriggerInfo, TriggerOrigin,
};

use super::*;

/// A Friday; any instant would do.
pub const T0: EpochMs = 1_767_312_000_000;
pub const DAY: EpochMs = 86_400_000;

/// A root with one folder per app, and its ledgers.
pub struct Root {
    pub dir: tempfile::TempDir,
    pub ledgers: Ledgers,
}

pub fn root() -> Root {
    root_with(|_| {})
}

pub fn root_with(change: impl FnOnce(&mut LedgerConfig)) -> Root {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().to_owned();
    let mut config = LedgerConfig {
        path_of: Arc::new(move |app: &AppId| base.join(app.as_str()).join(FILE)),
        durability: Durability::Process,
        max_open: 128,
        idle_close: Duration::from_secs(10),
        state_key_bytes: 1024,
        state_bytes: 4096,
        delivery_window_ms: DAY,
    };
    change(&mut config);
    Root { dir, ledgers: Ledgers::new(config) }
}

impl Root {
    /// The path of an app's ledger; its folder is made.
    pub fn path(&self, app: &AppId) -> PathBuf {
        let folder = self.dir.path().join(app.as_str());
        std::fs::create_dir_all(&folder).unwrap();
        folder.join(FILE)
    }

    pub fn app(&self, name: &str) -> AppId {
        let app = AppId::new(name).unwrap();
        self.path(&app);
        app
    }

    pub fn reader(&self, app: &AppId) -> Reader {
        Reader::open(&self.path(app)).unwrap().unwrap()
    }

    /// Any SQLite client.
    pub fn client(&self, app: &AppId) -> Connection {
        Connection::open(self.path(app)).unwrap()
    }

    /// What a machine would find after `kill -9`: the files as they are now, in a root of their own.
    pub fn after_kill(&self, app: &AppId) -> Root {
        let next = root();
        let (from, to) = (self.path(app), next.path(app));
        std::fs::copy(&from, &to).unwrap();
        let log = schema::companion(&from, "-wal");
        if log.exists() {
            std::fs::copy(log, schema::companion(&to, "-wal")).unwrap();
        }
        next
    }

    pub async fn opened(&self, app: &AppId, run: NewRun) -> RunId {
        let id = run.run_id.clone();
        assert_eq!(self.ledgers.open_run(app, run, Durability::Process).await, Ok(Opened::Inserted));
        id
    }

    /// A run that began at `at` and ended 5 ms later.
    pub async fn ended(&self, app: &AppId, at: EpochMs, status: RunStatus, keep: HistoryKeep) -> RunId {
        let id = self.opened(app, manual(app, at)).await;
        self.ledgers.close_run(app, end(&id, at + 5, status, keep)).await.unwrap();
        id
    }
}

pub fn automation(name: &str) -> AutomationId {
    AutomationId::new(name).unwrap()
}

/// A running "Run now" of automation `a`.
pub fn manual(app: &AppId, at: EpochMs) -> NewRun {
    NewRun {
        run_id: RunId::at(at),
        app_id: app.clone(),
        automation_id: automation("a"),
        status: RunStatus::Running,
        origin: TriggerOrigin::Manual,
        trigger: TriggerInfo::default(),
        scheduled_for: None,
        input_json: None,
        parent_run_id: None,
        retry_of: None,
        attempt: 1,
        handler_hash: None,
        queued_at: at,
        started_at: Some(at),
        ended_at: None,
        summary: None,
        error: None,
    }
}

pub fn queued(app: &AppId, at: EpochMs) -> NewRun {
    NewRun { status: RunStatus::Queued, started_at: None, ..manual(app, at) }
}

/// A cron fire of trigger `key`, written at its instant.
pub fn cron(app: &AppId, key: &str, instant: EpochMs) -> NewRun {
    NewRun {
        origin: TriggerOrigin::Cron,
        trigger: TriggerInfo { key: Some(key.to_owned()), ..TriggerInfo::default() },
        scheduled_for: Some(instant),
        ..manual(app, instant)
    }
}

pub fn end(run_id: &RunId, at: EpochMs, status: RunStatus, keep: HistoryKeep) -> Arc<Close> {
    close(run_id, at, status, keep, "a", None)
}

/// An end of a run of automation `name`, with what follows from it.
pub fn close(
    run_id: &RunId,
    at: EpochMs,
    status: RunStatus,
    keep: HistoryKeep,
    name: &str,
    next: Option<NewRun>,
) -> Arc<Close> {
    let end = RunEnd {
        status,
        ended_at: at,
        summary: None,
        output_json: None,
        error: (status == RunStatus::Error).then(|| "boom".to_owned()),
        error_code: (status == RunStatus::Error).then_some(ErrorCode::HandlerThrew),
    };
    let handle = Handle::new(AppId::new("shop").unwrap(), automation(name));
    Arc::new(Close { run: run_id.clone(), handle, end, keep, next })
}

pub fn node(ordinal: u32) -> NewNode {
    NewNode {
        ordinal,
        batch_id: None,
        kind: NodeKind::Tool,
        name: "centraid_read".to_owned(),
        args_json: "{}".to_owned(),
        child_run_id: None,
        started_at: T0,
    }
}

pub fn node_end(ordinal: u32) -> NodeClose {
    NodeClose {
        ordinal,
        ok: true,
        result_json: Some("[1]".to_owned()),
        error: None,
        child_run_id: None,
        usage_json: None,
        ended_at: T0 + 1,
    }
}

pub fn is_illegal<T: std::fmt::Debug>(result: Result<T, LedgerError>) -> bool {
    matches!(result, Err(LedgerError::IllegalTransition { .. }))
}

pub fn count(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}
