//! What the sessions of all runs share: the adapters, the clock, and the way back into the loop.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};

use sha2::Digest;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::config::Limits;
use crate::core::disk::DiskBatch;
use crate::core::{Answer, Event, State, Token};
use crate::daemon::bus::Bus;
use crate::daemon::hook_routes::HookRoutes;
use crate::fire::{AppId, Handle, Problem};
use crate::isolate::Pool;
use crate::ledger::Ledgers;
use crate::models::Models;
use crate::tools::AppFiles;
use crate::tools::app::AppTools;
use crate::tools::mcp::Mcp;
use crate::watch;

/// A handler's source, pinned for one run.
#[derive(Debug, Clone)]
pub struct Code {
    pub source: Arc<str>,
    /// SHA-256 of the bytes, hex.
    pub sha256: String,
}

/// What the loop takes in.
#[allow(clippy::large_enum_variant, reason = "an event is moved once; a box would cost an allocation for each")]
pub enum Input {
    Event(Event),
    /// A look at the state, on the loop's own time: it must be short.
    Look(Box<dyn FnOnce(&mut State) + Send>),
}

/// See the module text.
pub struct Services {
    pub pool: Pool,
    pub ledgers: Ledgers,
    pub tools: AppTools,
    pub mcp: Mcp,
    pub models: Models,
    pub bus: Bus,
    pub clock: Clock,
    pub limits: Limits,
    pub folders: Folders,
    pub hook_routes: HookRoutes,
    /// Queries and actions that run at once; apart from the runs' own slots, so that a run never waits for itself.
    pub tool_slots: Semaphore,
    /// Reads of `ctx.runs` that go on at once, in all runs together.
    pub history_reads: Arc<Semaphore>,
    pub door: Door,
}

/// Where each app's folders are. Cheap to clone; the loop keeps it current.
#[derive(Clone)]
pub struct Folders {
    code: Arc<RwLock<BTreeMap<AppId, PathBuf>>>,
    root: Arc<Path>,
    data: Option<Arc<Path>>,
}

impl Folders {
    pub fn new(root: &Path, data: Option<&Path>) -> Self {
        Self { code: Arc::default(), root: Arc::from(root), data: data.map(Arc::from) }
    }

    /// Where an app's code is now; `None` when it is gone. Only remembers it: see [`Self::make_data_folders`].
    pub fn set(&self, app: &AppId, dir: Option<&Path>) {
        let mut code = self.code.write().unwrap_or_else(PoisonError::into_inner);
        match dir {
            Some(dir) => code.insert(app.clone(), dir.to_owned()),
            None => code.remove(app),
        };
    }

    /// Makes the data folders of apps that a batch brings, when data stands apart from code; to be awaited before
    /// the loop hears of them, whose first step may be to write into their ledgers. A ledger never makes its folder: an
    /// app that was deleted while a run was ending would come back, empty.
    pub async fn make_data_folders(&self, batch: &DiskBatch) {
        let Some(data) = self.data.clone() else { return };
        let present = batch.apps.iter().filter(|folder| folder.present).filter_map(|folder| folder.app.clone());
        // A full scan shows all apps again, and most of them have their folders.
        let new: Vec<AppId> = present.filter(|app| !batch.full || self.code(app).is_none()).collect();
        if new.is_empty() {
            return;
        }
        let making = tokio::task::spawn_blocking(move || {
            for app in new {
                // Without it the app's ledger cannot be made; that error is told where it is met.
                if let Err(error) = std::fs::create_dir_all(data.join(app.as_str())) {
                    tracing::error!(%app, %error, "its data folder cannot be made");
                }
            }
        });
        if let Err(error) = making.await {
            tracing::error!(%error, "data folders were not made");
        }
    }

    /// The app's code, when there is such an app.
    pub fn code(&self, app: &AppId) -> Option<PathBuf> {
        self.code.read().unwrap_or_else(PoisonError::into_inner).get(app).cloned()
    }

    pub fn root(&self) -> Arc<Path> {
        Arc::clone(&self.root)
    }

    /// The app's code; where there is no such app, the folder that would make one.
    pub fn code_or_new(&self, app: &AppId) -> PathBuf {
        self.code(app).unwrap_or_else(|| self.root.join(app.as_str()))
    }

    pub fn apps(&self) -> Vec<AppId> {
        self.code.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Where the app's `runtime.sqlite` and `data.sqlite` are.
    pub fn data(&self, app: &AppId) -> PathBuf {
        match &self.data {
            Some(data) => data.join(app.as_str()),
            None => self.code_or_new(app),
        }
    }

    /// The app's ledger file.
    pub fn ledger(&self, app: &AppId) -> PathBuf {
        self.data(app).join(crate::ledger::FILE)
    }
}

impl AppFiles for Folders {
    fn code_dir(&self, app: &AppId) -> Option<PathBuf> {
        self.code(app)
    }

    fn data_dir(&self, app: &AppId) -> PathBuf {
        self.data(app)
    }

    fn list_apps(&self) -> Vec<AppId> {
        self.apps()
    }

    fn read(&self, app_dir: &Path, relative: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>, Box<Problem>> {
        match watch::read_app_file(app_dir, relative, max_bytes) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(problem) if problem.code == "not_found" => Ok(None),
            Err(problem) => Err(Box::new(problem)),
        }
    }

    fn list(&self, app_dir: &Path, relative: &Path) -> Result<Vec<String>, Box<Problem>> {
        watch::list_app_dir(app_dir, relative).map_err(Box::new)
    }
}

/// The front door of the loop: events in, answers out. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    inputs: mpsc::UnboundedSender<Input>,
    waiting: Arc<Mutex<Waiting>>,
    next: Arc<AtomicU64>,
}

type Waiting = HashMap<Token, oneshot::Sender<Answer>>;

/// An answer to come, as a future. It fails when the daemon is gone without one. Whoever drops it takes its token back.
#[derive(Debug)]
pub struct Expected {
    token: Token,
    answer: oneshot::Receiver<Answer>,
    /// Weak: what waits must not keep its own sender alive.
    waiting: Weak<Mutex<Waiting>>,
}

impl Expected {
    pub fn token(&self) -> Token {
        self.token
    }
}

impl Future for Expected {
    type Output = Result<Answer, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.upgrade() {
            waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
        }
    }
}

impl Door {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Input>) {
        let (inputs, outputs) = mpsc::unbounded_channel();
        (Self { inputs, waiting: Arc::default(), next: Arc::default() }, outputs)
    }

    /// Puts an event before the loop. After the loop has ended it is dropped.
    pub fn send(&self, event: Event) {
        let _ = self.inputs.send(Input::Event(event));
    }

    /// A token to ask with, and where its answer will come.
    pub fn expect_answer(&self) -> Expected {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, tx);
        Expected { token, answer, waiting: Arc::downgrade(&self.waiting) }
    }

    pub fn answer(&self, token: Token, answer: Answer) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
        if let Some(tx) = waiting {
            // Whoever asked may have gone.
            let _ = tx.send(answer);
        }
    }

    /// Looks at the state from inside the loop. `None` when the loop has ended.
    pub async fn look<T: Send + 'static>(&self, f: impl FnOnce(&mut State) -> T + Send + 'static) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        let look = Box::new(move |state: &mut State| {
            let _ = tx.send(f(state));
        });
        self.inputs.send(Input::Look(look)).ok()?;
        rx.await.ok()
    }
}

/// Reads an automation's handler as it stands on disk now.
pub async fn load_handler(folders: &Folders, handle: &Handle) -> Result<Code, Problem> {
    let path = format!("{}/automations/{}/handler.js", handle.app, handle.automation);
    let gone = || Problem::error("missing_handler", "", "there is no such file");
    let dir = folders.code(&handle.app).ok_or_else(|| gone().in_path(path.clone()))?;
    let id = handle.automation.clone();
    let read = tokio::task::spawn_blocking(move || watch::read_handler(&dir, &id)).await;
    let bytes = match read {
        Ok(read) => read?,
        Err(error) => return Err(Problem::error("unreadable", "", error.to_string()).in_path(path)),
    };
    let sha256 = hex::encode(sha2::Sha256::digest(&bytes));
    match String::from_utf8(bytes) {
        Ok(source) => Ok(Code { source: Arc::from(source), sha256 }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err(Problem::error("not_utf8", "", format!("byte {at} is not UTF-8")).in_path(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::disk::{AppFolder, FileContent};

    #[tokio::test]
    async fn an_answer_that_nobody_awaits_any_more_leaves_nothing_behind() {
        let (door, _inputs) = Door::new();
        let waiting = || door.waiting.lock().unwrap().len();
        let (kept, dropped) = (door.expect_answer(), door.expect_answer());
        let late = dropped.token();
        assert_eq!(waiting(), 2);
        drop(dropped);
        assert_eq!(waiting(), 1);
        door.answer(late, Answer::Stopping);
        door.answer(kept.token(), Answer::Cancelling);
        assert_eq!(kept.await, Ok(Answer::Cancelling));
        // A wait that is given up, as by a client that disconnects.
        let mut given_up = door.expect_answer();
        assert!(futures::FutureExt::now_or_never(&mut given_up).is_none());
        drop(given_up);
        assert_eq!(waiting(), 0);
        let orphan = door.expect_answer();
        drop(door);
        assert!(orphan.await.is_err());
    }

    #[tokio::test]
    async fn data_folders_are_made_before_the_loop_and_never_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, data) = (dir.path().join("root"), dir.path().join("data"));
        let seen = |name: &str, present: bool| AppFolder {
            name: name.to_owned(),
            app: Some(AppId::new(name).unwrap()),
            dir: root.join(name),
            present,
            has_index_html: false,
            app_json: FileContent::Absent,
            automations: Vec::new(),
            complete: true,
            problems: Vec::new(),
        };
        let batch = DiskBatch { apps: vec![seen("here", true), seen("gone", false)], ..DiskBatch::default() };
        let folders = Folders::new(&root, Some(&data));
        for folder in &batch.apps {
            folders.set(folder.app.as_ref().unwrap(), folder.present.then_some(folder.dir.as_path()));
        }
        assert!(!data.exists(), "the loop touches no disk");

        let folders = Folders::new(&root, Some(&data));
        folders.make_data_folders(&batch).await;
        assert_eq!((data.join("here").is_dir(), data.join("gone").exists()), (true, false));
        let folders = Folders::new(&root, None);
        folders.make_data_folders(&batch).await;
        assert!(!root.exists(), "beside the code there is nothing to make");
    }
}
