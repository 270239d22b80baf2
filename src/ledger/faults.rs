//! Disk errors on demand. Faults are part of the tested interface: what the ledger promises when a commit fails can
//! only be shown by letting one fail. Nothing outside tests arms it, and unarmed it costs one relaxed load per group.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fire::AppId;

/// SQLite's result codes for the usual disk errors.
pub use rusqlite::ffi::{SQLITE_CORRUPT, SQLITE_FULL, SQLITE_IOERR};

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    Open,
    Begin,
    /// After every statement of the group has run, in place of the commit.
    Commit,
}

#[derive(Debug, Default)]
pub struct Faults {
    armed: AtomicBool,
    plan: Mutex<Plan>,
}

#[derive(Debug, Default)]
struct Plan {
    strikes: HashMap<(AppId, Point), (i32, u32)>,
    page_limits: HashMap<AppId, u32>,
}

impl Faults {
    /// The next `times` visits of `point` by this app's ledger fail with SQLite's `code`.
    pub fn strike(&self, app: &AppId, point: Point, code: i32, times: u32) {
        self.lock().strikes.insert((app.clone(), point), (code, times));
        self.armed.store(true, Ordering::Release);
    }

    /// Lets SQLite itself report a full disk once the file has this many pages; `u32::MAX` lifts it again.
    pub fn limit_pages(&self, app: &AppId, pages: u32) {
        self.lock().page_limits.insert(app.clone(), pages);
        self.armed.store(true, Ordering::Release);
    }

    pub(super) fn visit(&self, app: &AppId, point: Point) -> Result<(), rusqlite::Error> {
        if !self.armed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut plan = self.lock();
        match plan.strikes.get_mut(&(app.clone(), point)) {
            Some((code, times)) if *times > 0 => {
                *times -= 1;
                let message = Some(format!("injected at {point:?}"));
                Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(*code), message))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn page_limit(&self, app: &AppId) -> Option<u32> {
        if !self.armed.load(Ordering::Acquire) {
            return None;
        }
        self.lock().page_limits.get(app).copied()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
