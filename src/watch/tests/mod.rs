//! A real folder, a real thread, and a model that applies every batch as a receiver does. Tests wait for the model to
//! reach a state; the time limit only bounds a failure.

mod faults;
mod folders;
mod saves;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::source::{self, MakeSource, Source};
use super::*;

const FAILURE_BOUND: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Kernel,
    Portable,
    Poll,
}

const MODES: &[Mode] = &[Mode::Kernel, Mode::Portable, Mode::Poll];

/// What a receiver knows of one app.
#[derive(Debug, Clone, Default, PartialEq)]
struct SeenApp {
    problems: Vec<String>,
    has_index_html: bool,
    app_json: Option<String>,
    /// Manifest texts; a problem's code in brackets; `-` for none.
    automations: BTreeMap<String, String>,
}

struct Harness {
    root: PathBuf,
    apps: BTreeMap<String, SeenApp>,
    root_problems: Vec<String>,
    state: Option<WatcherState>,
    /// Every published automation since the last [`Harness::forget_log`]: handle and manifest text, or `gone`.
    log: Vec<(String, String)>,
    full_batches: usize,
    rx: tokio::sync::mpsc::Receiver<DiskEvent>,
    watcher: Option<Watcher>,
    rt: tokio::runtime::Runtime,
    outside: PathBuf,
    _dir: tempfile::TempDir,
}

fn config(root: &Path, mode: Mode) -> WatchConfig {
    let poll_interval = Duration::from_millis(20);
    WatchConfig { poll: mode == Mode::Poll, poll_interval, ..WatchConfig::new(root) }
}

fn source_of(mode: Mode) -> MakeSource {
    match mode {
        Mode::Portable => Box::new(|| Ok(Box::new(native::Native::new()?) as Box<dyn Source>)),
        Mode::Kernel | Mode::Poll => Box::new(source::kernel),
    }
}

impl Harness {
    /// Starts on a root with the automations `a/x` and `a/sentinel`.
    fn new(mode: Mode) -> Self {
        Self::with(mode, source_of(mode), 16, |_| {})
    }

    fn with(mode: Mode, make_source: MakeSource, capacity: usize, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(&outside).expect("a folder");
        write_automation(&root, "a", "x", &json(0));
        write_automation(&root, "a", "sentinel", &json(0));
        prepare(&root);
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let (tx, rx) = tokio::sync::mpsc::channel(capacity);
        let watcher =
            Watcher::start_with(config(&root, mode), tx, rt.handle().clone(), make_source).expect("a watcher");
        let mut harness = Self {
            root,
            apps: BTreeMap::new(),
            root_problems: Vec::new(),
            state: None,
            log: Vec::new(),
            full_batches: 0,
            rx,
            watcher: Some(watcher),
            rt,
            outside,
            _dir: dir,
        };
        harness.until("the first batch and state", |h| h.state.is_some());
        harness.forget_log();
        harness
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    fn manifest(&self, handle: &str) -> Option<&str> {
        let (app, id) = handle.split_once('/').expect("a handle");
        self.apps.get(app)?.automations.get(id).map(String::as_str)
    }

    fn forget_log(&mut self) {
        self.log.clear();
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let received = self.rt.block_on(async { tokio::time::timeout(FAILURE_BOUND, self.rx.recv()).await });
            match received {
                Ok(Some(event)) => self.take_in(event),
                Ok(None) => panic!("waiting for {what}: the watcher ended"),
                Err(_) => panic!("waiting for {what}: nothing more came; {:#?}\n{:?}", self.apps, self.log),
            }
        }
    }

    fn until_manifest(&mut self, handle: &str, text: &str) {
        self.until(&format!("{handle} = {text}"), |h| h.manifest(handle) == Some(text));
    }

    fn until_gone(&mut self, handle: &str) {
        self.until(&format!("{handle} gone"), |h| h.manifest(handle).is_none());
    }

    /// Saves the sentinel, and waits for it: whatever was noticed before is in the log then.
    fn pass_sentinel(&mut self, n: u32) {
        save(&self.path("a/automations/sentinel/automation.json"), &json(n));
        self.until_manifest("a/sentinel", &json(n));
    }

    fn take_in(&mut self, event: DiskEvent) {
        let batch = match event {
            DiskEvent::Watcher(state) => {
                self.state = Some(state);
                return;
            }
            DiskEvent::Batch(batch) => batch,
        };
        if batch.full {
            self.full_batches += 1;
            self.apps.clear();
            self.root_problems = batch.root_problems.into_iter().map(|p| p.code).collect();
        }
        for folder in batch.apps {
            let key = if folder.app.is_some() { folder.name.clone() } else { format!("misfit {}", folder.name) };
            if !folder.present {
                self.apps.remove(&key);
                self.log.push((folder.name, "gone".to_owned()));
                continue;
            }
            let app = self.apps.entry(key).or_default();
            app.problems = folder.problems.iter().map(|p| p.code.clone()).collect();
            app.has_index_html = folder.has_index_html;
            app.app_json = Some(text_of(&folder.app_json)).filter(|text| text != "-");
            if folder.complete {
                app.automations.clear();
            }
            for automation in folder.automations {
                let id = automation.id.to_string();
                let text = if automation.present {
                    let text = text_of(&automation.manifest);
                    app.automations.insert(id.clone(), text.clone());
                    text
                } else {
                    app.automations.remove(&id);
                    "gone".to_owned()
                };
                self.log.push((format!("{}/{id}", folder.name), text));
            }
        }
    }
}

fn text_of(content: &FileContent) -> String {
    match content {
        FileContent::Absent => "-".to_owned(),
        FileContent::Bytes { bytes, .. } => String::from_utf8_lossy(bytes).into_owned(),
        FileContent::Unreadable(problem) => format!("[{}]", problem.code),
    }
}

fn json(n: u32) -> String {
    format!("{{\"name\": \"n{n}\", \"padding\": \"{}\"}}", "x".repeat(200))
}

fn write_automation(root: &Path, app: &str, id: &str, text: &str) {
    let dir = root.join(app).join("automations").join(id);
    fs::create_dir_all(&dir).expect("folders");
    fs::write(dir.join("automation.json"), text).expect("a manifest");
    fs::write(dir.join("handler.js"), "export default () => {}").expect("a handler");
}

/// As most editors do it.
fn save(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).expect("a temporary file");
    fs::rename(&temporary, path).expect("a rename");
}

fn mkfifo(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
    assert!(status.success());
}
