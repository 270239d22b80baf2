//! What the sessions of all runs share: the adapters, the clock, and the way back into the loop.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sha2::Digest;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::config::Limits;
use crate::core::{Answer, Event, State, Token};
use crate::daemon::bus::Bus;
use crate::fire::{AppId, Handle, Problem};
use crate::isolate::Pool;
use crate::ledger::Ledgers;
use crate::models::Models;
use crate::tools::AppFiles;
use crate::tools::app::AppTools;
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
    pub models: Models,
    pub bus: Bus,
    pub clock: Clock,
    pub limits: Limits,
    pub folders: Folders,
    /// Queries and actions that run at once; apart from the runs' own slots, so that a run never waits for itself.
    pub tool_slots: Semaphore,
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

    pub fn set(&self, app: &AppId, dir: Option<&Path>) {
        let mut code = self.code.write().unwrap_or_else(PoisonError::into_inner);
        let Some(dir) = dir else {
            code.remove(app);
            return;
        };
        let new = code.insert(app.clone(), dir.to_owned()).is_none();
        drop(code);
        if let Some(data) = self.data.as_ref().filter(|_| new) {
            // Without it the app's ledger cannot be made; that error is told where it is met.
            let made = std::fs::create_dir_all(data.join(app.as_str()));
            if let Err(error) = made {
                tracing::error!(%app, %error, "its data folder cannot be made");
            }
        }
    }

    /// The app's code, when there is such an app.
    pub fn code(&self, app: &AppId) -> Option<PathBuf> {
        self.code.read().unwrap_or_else(PoisonError::into_inner).get(app).cloned()
    }

    pub fn apps(&self) -> Vec<AppId> {
        self.code.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Where the app's `runtime.sqlite` and `data.sqlite` are.
    pub fn data(&self, app: &AppId) -> PathBuf {
        match &self.data {
            Some(data) => data.join(app.as_str()),
            None => self.code(app).unwrap_or_else(|| self.root.join(app.as_str())),
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
    waiting: Arc<Mutex<HashMap<Token, oneshot::Sender<Answer>>>>,
    next: Arc<AtomicU64>,
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

    /// A token, and where its answer will come. The receiver fails when the loop ends without an answer.
    pub fn expect_answer(&self) -> (Token, oneshot::Receiver<Answer>) {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(token, tx);
        (token, rx)
    }

    pub fn answer(&self, token: Token, answer: Answer) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
        if let Some(tx) = waiting {
            // Whoever asked may have gone.
            let _ = tx.send(answer);
        }
    }

    /// Takes back a token whose answer nobody will read.
    pub fn forget(&self, token: Token) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&token);
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
