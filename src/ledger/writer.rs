//! One ledger's writer: a thread that owns the only connection which writes.
//!
//! It takes what its queue holds, runs all of it in one transaction, commits, and only then answers. So a hundred
//! fires that arrive together cost one sync, and nobody is told of a row that could still be lost. Each request has a
//! savepoint of its own: one that is refused takes back its own work and nobody else's. When the commit itself fails,
//! every request of the group is answered with that error, and none of them has left a trace.
//!
//! Between groups it does what nobody waits for: retention, giving pages back, and seeing that the log is copied.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rusqlite::Connection;

use crate::fire::AppId;

use super::Durability;
use super::checkpoint::{self, Advice};
use super::error::LedgerError;
use super::faults::Point;
use super::fleet::{Fleet, Message};
use super::ops::{self, Job, Op, Reply};
use super::retention::{Note, Retention};
use super::state::StateSizes;
use super::{quarantine, schema, slice};

/// Requests in one transaction. Enough to make the sync cheap for each; few enough that the first does not wait long.
const GROUP: usize = 256;

/// Background work begins when nobody has asked for anything for so long: between the requests of one run, it would
/// only make the next one wait.
const LULL: Duration = Duration::from_millis(2);

/// Under steady load, one step is done per so many groups or requests. A step drops at least as many rows as runs can
/// have ended meanwhile.
const GROUPS_PER_STEP: usize = 8;
const REQUESTS_PER_STEP: usize = 200;

/// Background steps that are still done when the ledger has to close for another: a fraction of a second.
const STEPS_BEFORE_CLOSE: u32 = 64;

/// Free pages that are worth giving back (1 MiB), and how many are kept for the next rows.
const MANY_FREE_PAGES: i64 = 256;
const SPARE_PAGES: i64 = 64;

/// Pages moved in one step: about a millisecond.
const VACUUM_PAGES: i64 = 64;

/// Serves one queue until it is told to close, or has been idle for long.
pub(super) fn run(fleet: &Arc<Fleet>, app: &AppId, queue: &Receiver<Message>) {
    slice::shorten_own();
    let mut writer = Writer { fleet, app, path: (fleet.config.path_of)(app), store: None };
    let tidy = writer.serve(queue);
    writer.close(tidy);
}

struct Writer<'a> {
    fleet: &'a Arc<Fleet>,
    app: &'a AppId,
    path: PathBuf,
    /// `None` until the first request, and after a failure that only a new connection can mend.
    store: Option<Store>,
}

impl Writer<'_> {
    /// Returns whether there is time to tidy up.
    fn serve(&mut self, queue: &Receiver<Message>) -> bool {
        let mut busy = false;
        let (mut groups, mut requests) = (0, 0);
        loop {
            let patience = match (self.has_background_work(), busy) {
                (false, _) => self.fleet.config.idle_close,
                (true, true) => LULL,
                (true, false) => Duration::ZERO,
            };
            let message = match queue.recv_timeout(patience) {
                Ok(message) => message,
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) if self.has_background_work() => {
                    busy = false;
                    self.background_step();
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => match self.fleet.retire(self.app, queue) {
                    Some(message) => message,
                    None => return true,
                },
            };
            busy = true;
            let first = match message {
                Message::Job(job) => job,
                Message::Close { tidy } => return tidy,
            };
            let mut close = None;
            let mut group = vec![first];
            while group.len() < GROUP && close.is_none() {
                match queue.try_recv() {
                    Ok(Message::Job(job)) => group.push(job),
                    Ok(Message::Close { tidy }) => close = Some(tidy),
                    Err(_) => break,
                }
            }
            (groups, requests) = (groups + 1, requests + group.len());
            self.commit(group);
            if let Some(tidy) = close {
                return tidy;
            }
            if groups >= GROUPS_PER_STEP || requests >= REQUESTS_PER_STEP {
                (groups, requests) = (0, 0);
                self.background_step();
            }
        }
    }

    fn commit(&mut self, group: Vec<Job>) {
        let outcome = self.store().and_then(|store| store.commit(&group));
        let (results, failure) = match outcome {
            Ok(results) => {
                let corrupt = results.iter().find_map(|r| r.as_ref().err().filter(|e| e.is_corrupt()).cloned());
                (results, corrupt)
            }
            Err(error) => (group.iter().map(|_| Err(error.clone())).collect(), Some(error)),
        };
        self.fleet.health.note(self.app, &group, &results);
        for (job, mut result) in group.into_iter().zip(results) {
            match (&job.op, &mut result, &mut self.store) {
                (Op::Sweep { automation, .. }, Ok(_), Some(store)) => {
                    store.retention.when_done(automation, job.answer);
                    continue;
                }
                (_, Ok(Reply::Recovered(found)), _) => found.quarantined = self.fleet.quarantined(self.app),
                _ => {}
            }
            // Whoever asked may have stopped waiting; the row stands all the same.
            let _ = job.answer.send(result);
        }
        match failure {
            Some(error) => self.after_failure(&error),
            None => self.look_at_log(),
        }
    }

    /// The open store; opens it when there is none, or when the file is no longer the one at the path.
    fn store(&mut self) -> Result<&mut Store, LedgerError> {
        if self.store.take_if(|store| !store.is_still_at_its_path()).is_some() {
            tracing::warn!(path = %self.path.display(), "the ledger was removed or replaced; opening what is there");
        }
        if self.store.is_none() {
            self.store = Some(self.open()?);
        }
        // Just filled.
        self.store.as_mut().ok_or(LedgerError::WriterGone)
    }

    fn open(&self) -> Result<Store, LedgerError> {
        self.fleet.faults.visit(self.app, Point::Open)?;
        self.fleet.counters.opens.fetch_add(1, Ordering::Relaxed);
        let check = self.fleet.is_first_open(self.app);
        let conn = match schema::open_writer(&self.path, check) {
            Err(error) if error.is_corrupt() => {
                self.move_aside()?;
                schema::open_writer(&self.path, false)?
            }
            other => other?,
        };
        Store::new(self.fleet, self.app, conn, &self.path)
    }

    fn move_aside(&self) -> Result<(), LedgerError> {
        let path = quarantine::move_aside(&schema::real_path(&self.path)?)?;
        self.fleet.note_quarantined(self.app, path);
        Ok(())
    }

    fn after_failure(&mut self, error: &LedgerError) {
        let Some(store) = &self.store else { return };
        if error.is_corrupt() {
            self.store = None;
            if let Err(error) = self.move_aside() {
                tracing::error!(app = %self.app, %error, "a corrupt ledger could not be moved aside");
            }
        } else if !store.conn.is_autocommit() {
            // The rollback failed too. A new connection starts from what is committed.
            self.store = None;
        }
    }

    fn has_background_work(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.retention.has_work() || store.vacuum != Vacuum::No)
    }

    fn background_step(&mut self) {
        if !self.has_background_work() {
            return;
        }
        let Some(store) = &mut self.store else { return };
        match store.background_step() {
            Ok(()) => self.look_at_log(),
            Err(error) => {
                tracing::warn!(app = %self.app, %error, "retention could not go on");
                store.retention.step_failed(&error);
                store.vacuum = Vacuum::No;
                self.after_failure(&error);
            }
        }
    }

    fn look_at_log(&mut self) {
        if let Some(store) = &mut self.store
            && let Err(error) = store.look_at_log()
        {
            tracing::warn!(app = %self.app, %error, "the log could not be copied");
        }
    }

    fn close(mut self, tidy: bool) {
        let mut steps = 0;
        while self.has_background_work() && (tidy || steps < STEPS_BEFORE_CLOSE) {
            self.background_step();
            steps += 1;
        }
        if let (true, Some(store)) = (tidy, self.store)
            && let Err(error) = checkpoint::close_tidily(store.conn)
        {
            tracing::debug!(app = %self.app, %error, "the log stays until the next open");
        }
    }
}

/// Whether free pages are to be given back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vacuum {
    No,
    /// Rows were deleted: see whether there are many.
    Look,
    /// There were.
    On,
}

/// An open ledger and what is known of it in memory.
struct Store {
    fleet: Arc<Fleet>,
    app: AppId,
    conn: Connection,
    path: PathBuf,
    file: Option<FileIdentity>,
    /// The connection syncs at each commit.
    synced: bool,
    /// Changes when another client commits.
    data_version: i64,
    retention: Retention,
    sizes: StateSizes,
    vacuum: Vacuum,
    commits_since_look: u32,
    checkpoint_pending: Arc<AtomicBool>,
}

impl Store {
    fn new(fleet: &Arc<Fleet>, app: &AppId, conn: Connection, path: &Path) -> Result<Self, LedgerError> {
        Ok(Self {
            fleet: Arc::clone(fleet),
            app: app.clone(),
            path: schema::real_path(path)?,
            file: FileIdentity::of(path),
            synced: false,
            data_version: data_version(&conn)?,
            conn,
            retention: Retention::default(),
            sizes: StateSizes::new(fleet.config.state_key_bytes, fleet.config.state_bytes),
            vacuum: Vacuum::No,
            // So that a long log, left by a writer that had to hurry, is seen at the first commit.
            commits_since_look: checkpoint::COMMITS_PER_LOOK,
            checkpoint_pending: Arc::default(),
        })
    }

    /// Rows written into a file that somebody has deleted would be lost with this process.
    fn is_still_at_its_path(&self) -> bool {
        self.file.is_none() || FileIdentity::of(&self.path) == self.file
    }

    /// One transaction for all of the group. The outer error is everybody's.
    fn commit(&mut self, group: &[Job]) -> Result<Vec<Result<Reply, LedgerError>>, LedgerError> {
        let mut notes = Vec::new();
        let outcome = self.try_commit(group, &mut notes);
        if outcome.is_err() {
            self.take_back();
            self.sizes.forget();
        } else {
            self.fleet.counters.groups.fetch_add(1, Ordering::Relaxed);
            self.commits_since_look += 1;
            for note in notes {
                self.retention.note(note);
            }
        }
        outcome
    }

    fn try_commit(
        &mut self,
        group: &[Job],
        notes: &mut Vec<Note>,
    ) -> Result<Vec<Result<Reply, LedgerError>>, LedgerError> {
        let configured = self.fleet.config.durability == Durability::Synced;
        self.set_synced(configured || group.iter().any(|job| job.durability == Durability::Synced))?;
        if let Some(pages) = self.fleet.faults.page_limit(&self.app) {
            self.conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
        }
        self.begin()?;
        let mut results = Vec::with_capacity(group.len());
        // One request alone needs no savepoint: the transaction is its own.
        let alone = group.len() == 1;
        for job in group {
            if !alone {
                self.execute("SAVEPOINT request")?;
            }
            let before = notes.len();
            let result = ops::apply(&self.conn, &job.op, &self.fleet.config, notes, &mut self.sizes);
            if let Err(error) = &result {
                notes.truncate(before);
                self.sizes.forget();
                // After some errors SQLite has taken everything back by itself, the others' work too.
                if self.conn.is_autocommit() || error.is_corrupt() {
                    return Err(error.clone());
                }
                if alone {
                    self.execute("ROLLBACK")?;
                    return Ok(vec![result]);
                }
                self.execute("ROLLBACK TO request")?;
            }
            if !alone {
                self.execute("RELEASE request")?;
            }
            results.push(result);
        }
        self.fleet.faults.visit(&self.app, Point::Commit)?;
        self.execute("COMMIT")?;
        Ok(results)
    }

    fn begin(&mut self) -> Result<(), LedgerError> {
        self.fleet.faults.visit(&self.app, Point::Begin)?;
        self.execute("BEGIN IMMEDIATE")?;
        let version = data_version(&self.conn)?;
        if version != self.data_version {
            self.data_version = version;
            self.retention.recount();
            self.sizes.forget();
        }
        Ok(())
    }

    fn take_back(&self) {
        if !self.conn.is_autocommit()
            && let Err(error) = self.execute("ROLLBACK")
        {
            tracing::warn!(app = %self.app, %error, "a rollback failed");
        }
    }

    fn background_step(&mut self) -> Result<(), LedgerError> {
        // Nobody was promised that a deletion survives power loss.
        self.set_synced(false)?;
        if !self.retention.has_work() {
            return self.vacuum_step();
        }
        let changes = self.conn.total_changes();
        let stepped = self.begin().and_then(|()| self.retention.step(&self.conn)).and_then(|()| self.execute("COMMIT"));
        if stepped.is_err() {
            self.take_back();
            return stepped;
        }
        self.retention.step_committed();
        if self.conn.total_changes() != changes {
            self.commits_since_look += 1;
            if self.vacuum == Vacuum::No {
                self.vacuum = Vacuum::Look;
            }
        }
        Ok(())
    }

    /// Gives some pages back, once there are many: after each run, the next one would only have to ask for them again.
    fn vacuum_step(&mut self) -> Result<(), LedgerError> {
        let free: i64 = self.conn.prepare_cached("PRAGMA freelist_count")?.query_row([], |row| row.get(0))?;
        let enough = if self.vacuum == Vacuum::On { SPARE_PAGES } else { MANY_FREE_PAGES };
        self.vacuum = if free > enough { Vacuum::On } else { Vacuum::No };
        if self.vacuum == Vacuum::On {
            let pages = VACUUM_PAGES.min(free - SPARE_PAGES);
            let mut statement = self.conn.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
            let mut rows = statement.query([])?;
            // Each row is one page moved.
            while rows.next()?.is_some() {}
            self.commits_since_look += 1;
        }
        Ok(())
    }

    fn look_at_log(&mut self) -> Result<(), LedgerError> {
        if self.commits_since_look < checkpoint::COMMITS_PER_LOOK {
            return Ok(());
        }
        self.commits_since_look = 0;
        match checkpoint::look(&self.conn)? {
            Advice::Nothing => {}
            Advice::CopyBeside => self.fleet.checkpointer.request(&self.path, &self.checkpoint_pending),
            Advice::CopyNow => checkpoint::copy(&self.conn)?,
        }
        Ok(())
    }

    /// `synchronous` can only be changed between transactions.
    fn set_synced(&mut self, synced: bool) -> Result<(), LedgerError> {
        if self.synced != synced {
            self.conn.execute_batch(if synced {
                "PRAGMA synchronous = FULL"
            } else {
                "PRAGMA synchronous = NORMAL"
            })?;
            self.synced = synced;
        }
        Ok(())
    }

    fn execute(&self, sql: &'static str) -> Result<(), LedgerError> {
        self.conn.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

fn data_version(conn: &Connection) -> Result<i64, LedgerError> {
    Ok(conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
}

/// Tells whether two looks at a path met the same file. Where the system has no such thing, files that are open cannot
/// be removed either.
#[derive(PartialEq, Eq)]
struct FileIdentity(u64, u64);

impl FileIdentity {
    #[cfg(unix)]
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        path.symlink_metadata().ok().map(|meta| Self(meta.dev(), meta.ino()))
    }

    #[cfg(not(unix))]
    fn of(_: &Path) -> Option<Self> {
        None
    }
}
