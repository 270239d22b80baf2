//! A root in a temporary folder, with a daemon in this process or in one of its own.
//!
//! Nothing here sleeps: tests wait for the loop's steps, for a run's end, or for a line of output. [`PATIENCE`] only
//! bounds how long a failing test takes to fail.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use dirigent::clock::Clock;
use dirigent::config::Config;
use dirigent::core::run::RunEnd;
use dirigent::core::{Answer, FireRequest, State};
use dirigent::daemon::{Daemon, Expected, Options, RunEvent, Scope};
use dirigent::fire::{Handle, RunId, TriggerOrigin};

/// Longer than anything takes on two slow, busy cores.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_dirigent");

pub fn handle(text: &str) -> Handle {
    text.parse().expect("a handle")
}

/// A root folder that goes with the test.
pub struct Root {
    dir: tempfile::TempDir,
}

impl Root {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A copy of a folder of the repository.
    pub fn copy_of(relative: &str) -> Self {
        let root = Self::new();
        copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join(relative), root.path());
        root
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn join(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    pub fn write(&self, relative: &str, text: &str) {
        let path = self.join(relative);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(path, text).expect("a file");
    }

    /// Writes a manifest with these further fields, and a handler.
    pub fn automation(&self, handle: &str, fields: &str, handler: &str) {
        self.manifest(handle, fields);
        let (app, id) = handle.split_once('/').expect("a handle");
        self.write(&format!("{app}/automations/{id}/handler.js"), handler);
    }

    pub fn manifest(&self, handle: &str, fields: &str) {
        let (app, id) = handle.split_once('/').expect("a handle");
        let comma = if fields.is_empty() { "" } else { ",\n  " };
        let text = format!(
            "{{\n  \"name\": \"{id}\",\n  \"prompt\": \"a test\",\n  \"generated\": {{\"by\": \"t\", \"at\": \"now\"}}{comma}{fields}\n}}\n"
        );
        self.write(&format!("{app}/automations/{id}/automation.json"), &text);
    }

    /// One text per row, columns joined by `|`, as the `sqlite3` program prints them.
    pub fn sql(&self, app: &str, query: &str) -> Vec<String> {
        self.try_sql(app, query).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// As [`Self::sql`]; an error while there is no ledger, or no table in it yet.
    fn try_sql(&self, app: &str, query: &str) -> rusqlite::Result<Vec<String>> {
        let path = self.join(app).join("runtime.sqlite");
        let connection = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut statement = connection.prepare(query)?;
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells: Vec<String> = (0..columns)
                .map(|i| match row.get_ref(i).expect("a cell") {
                    rusqlite::types::ValueRef::Null => String::new(),
                    rusqlite::types::ValueRef::Integer(n) => n.to_string(),
                    rusqlite::types::ValueRef::Real(n) => n.to_string(),
                    rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                    rusqlite::types::ValueRef::Blob(_) => "(blob)".to_owned(),
                })
                .collect();
            Ok(cells.join("|"))
        });
        rows?.collect()
    }

    /// Waits until a query's rows are these, asking again after each event of a run.
    pub async fn sql_becomes(
        &self,
        events: &mut tokio::sync::broadcast::Receiver<std::sync::Arc<RunEvent>>,
        app: &str,
        query: &str,
        rows: &[&str],
    ) {
        while self.try_sql(app, query).ok().is_none_or(|found| found != rows) {
            within(events.recv()).await.expect("an event");
        }
    }

    /// A daemon in this process, on the real clock.
    pub async fn daemon(&self) -> Daemon {
        self.daemon_at(Clock::Real).await
    }

    pub async fn daemon_at(&self, clock: Clock) -> Daemon {
        let options = Options {
            root: self.path().to_owned(),
            data: None,
            config: Config::load(self.path()).expect("settings"),
            clock,
            program: PathBuf::from(PROGRAM),
            scope: Scope::Root { poll: false },
        };
        Daemon::start(options).await.expect("the daemon starts")
    }

    /// The command line on this root.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--root").arg(self.path()).args(args).env_remove("DIRIGENT_ROOT").env("NO_COLOR", "1");
        command
    }

    pub fn cli(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().expect("the program runs")
    }

    /// A daemon in a process of its own, ready.
    pub fn serve(&self) -> Served {
        self.serve_with(&["--hooks", "127.0.0.1:0"], &[])
    }

    /// As [`Self::serve`], with further arguments and variables.
    pub fn serve_with(&self, args: &[&str], env: &[(&str, &str)]) -> Served {
        let mut command = self.command(&["--json", "serve", "--admin", "127.0.0.1:0"]);
        command.args(args).envs(env.iter().copied());
        let log = std::fs::File::options().create(true).append(true).open(self.join("serve.log")).expect("a log");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).unwrap_or_else(|_| {
            let told = std::fs::read_to_string(self.join("serve.log")).unwrap_or_default();
            panic!("no ready line but {line:?}; it said: {told}")
        });
        Served { child, ready }
    }
}

/// `serve` in a process of its own; killed with the test.
pub struct Served {
    pub child: Child,
    pub ready: serde_json::Value,
}

impl Served {
    /// As `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it is gone");
    }

    /// SIGTERM.
    pub fn signal(&self) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: a plain system call on our own child.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }

    /// SIGTERM, and its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal();
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from).into_iter().filter_entry(|e| e.file_name() != ".dirigent") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.path().strip_prefix(from).expect("below"));
        let name = entry.file_name().to_string_lossy();
        if entry.file_type().is_dir() {
            std::fs::create_dir_all(&target).expect("a folder");
        } else if !name.contains(".sqlite") {
            std::fs::copy(entry.path(), &target).expect("a copy");
        }
    }
}

pub fn request(handle_text: &str, input_json: Option<&str>) -> FireRequest {
    let input_json = input_json.map(str::to_owned);
    FireRequest { input_json, ..FireRequest::new(handle(handle_text), TriggerOrigin::Manual) }
}

/// Fires and waits for the end.
pub async fn run(daemon: &Daemon, handle: &str, input_json: Option<&str>) -> (RunId, RunEnd) {
    let (answer, end) = daemon.fire_and_follow(request(handle, input_json)).await;
    let Answer::Accepted { run, .. } = answer else { panic!("{handle}: {answer:?}") };
    match within(end).await {
        Ok(Answer::Ended(end)) => (run, end),
        other => panic!("{handle}: {other:?}"),
    }
}

/// Fires and returns when the row is written.
pub async fn start(daemon: &Daemon, handle: &str, input_json: Option<&str>) -> (RunId, Expected) {
    let (answer, end) = daemon.fire_and_follow(request(handle, input_json)).await;
    let Answer::Accepted { run, .. } = answer else { panic!("{handle}: {answer:?}") };
    (run, end)
}

pub async fn ended(end: Expected) -> RunEnd {
    match within(end).await {
        Ok(Answer::Ended(end)) => end,
        other => panic!("{other:?}"),
    }
}

/// Waits until the daemon's state is as asked for.
pub async fn until(daemon: &Daemon, what: &str, is: impl Fn(&mut State) -> bool + Clone + Send + 'static) {
    let found = tokio::time::timeout(PATIENCE, daemon.wait_for(is)).await;
    assert!(matches!(found, Ok(Some(()))), "never came: {what}");
}

/// Bounds a wait, so that a test which would hang fails instead.
pub async fn within<T>(wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for nothing"),
    }
}
