//! Changes to automations on disk, for those who may make them: switch one on or off, mint the credentials of its webhook,
//! write what a builder proposes. The command line, the API and the MCP server change files through here; a daemon that
//! watches sees the new file like any other edit.
//!
//! A file is read as the daemon reads it, changed in its text alone (`core::manifest`), and replaced atomically. From
//! reading to replacing no other dirigent changes anything there: a builder's text must not undo what a person has
//! switched off meanwhile. What is minted is returned once and stands nowhere in plain text.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::Digest;

use crate::core::manifest::{self, MAX_HANDLER_BYTES, MAX_MANIFEST_BYTES, Parsed, RewriteError};
use crate::fire::{Handle, Problem};
use crate::watch;

/// Random bytes of a webhook's id, and of its secret; both are written in hex.
const ID_BYTES: usize = 12;
const SECRET_BYTES: usize = 24;

/// One change at a time in this process: two that read the same text would lose one of them.
static EDITING: Mutex<()> = Mutex::new(());

/// What another process gets to finish its change, which takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_millis(5);

/// Why a manifest was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It cannot be read; the problem says why.
    #[error("{}: {}", path, problem.message)]
    Unreadable { path: String, problem: Box<Problem> },
    #[error("{handle}: the manifest is not UTF-8: {source}")]
    NotUtf8 { handle: Handle, source: std::str::Utf8Error },
    #[error("{handle}: {source}")]
    Rewrite { handle: Handle, source: RewriteError },
    #[error("{path} cannot be written: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// What was proposed is not valid, or may not be written; the problems say why.
    #[error("{handle}: what is proposed has errors")]
    Refused { handle: Handle, problems: Vec<Problem> },
    /// Somebody else has changed it since it was read.
    #[error("{handle} is not what it was when it was read")]
    Changed { handle: Handle },
    /// Another process has been at it for too long.
    #[error("{handle}: another process is changing automations, and does not come to an end")]
    Busy { handle: Handle },
}

impl EditError {
    /// Stable, for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Unreadable { problem, .. } => &problem.code,
            Self::NotUtf8 { .. } => "not_utf8",
            Self::Rewrite { source, .. } => match source {
                RewriteError::NoPendingWebhook => "no_pending_webhook",
                RewriteError::NoProvisionedWebhook => "no_provisioned_webhook",
                RewriteError::SecretIsElsewhere => "secret_is_elsewhere",
                RewriteError::TooLarge(_) => "too_large",
                _ => "invalid_manifest",
            },
            Self::Write { .. } => "io",
            Self::Random(_) => "internal",
            Self::Refused { .. } => "invalid_proposal",
            Self::Changed { .. } => "changed_meanwhile",
            Self::Busy { .. } => "edit_busy",
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { problem, .. } => problem.hint.clone(),
            Self::NotUtf8 { handle, .. } => Some(format!("see `dirigent validate {handle}`")),
            Self::Rewrite { handle, source } => Some(match source {
                RewriteError::NoPendingWebhook => {
                    "declare one: {\"kind\": \"webhook\", \"pending\": true}; for a new secret, rotate".to_owned()
                }
                RewriteError::NoProvisionedWebhook => format!("mint one: `dirigent webhook provision {handle}`"),
                RewriteError::SecretIsElsewhere => "change it where its `secretRef` points".to_owned(),
                _ => format!("see `dirigent validate {handle}`"),
            }),
            Self::Changed { .. } => Some("read it again, and propose the change to what is there now".to_owned()),
            Self::Busy { .. } => {
                Some("try again; a dirigent that was stopped in the middle may have to be ended".to_owned())
            }
            Self::Write { source, .. } => Some(match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, and write it again".to_owned(),
                ErrorKind::ReadOnlyFilesystem => "the folder of the apps is mounted read-only".to_owned(),
                _ => "let the user that runs dirigent write the file and its folder".to_owned(),
            }),
            Self::Random(_) | Self::Refused { .. } => None,
        }
    }
}

/// What became of a switch.
#[derive(Debug)]
pub struct Switched {
    /// False when it stood that way already; then nothing was written.
    pub changed: bool,
    /// Of the manifest, as it was read.
    pub problems: Vec<Problem>,
}

/// Credentials that were just minted. The secret is in the clear here and nowhere else; it is left out of `Debug`.
pub struct Minted {
    /// The webhook's id: the last part of its address.
    pub slug: String,
    pub secret: String,
}

impl std::fmt::Debug for Minted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted").field("slug", &self.slug).finish_non_exhaustive()
    }
}

/// Writes `enabled`. `app_dir` is the app's folder.
///
/// # Errors
/// [`EditError`]; the file is then as it was.
pub fn set_enabled(app_dir: &Path, handle: &Handle, enabled: bool) -> Result<Switched, EditError> {
    let mut changed = false;
    let parsed = edit(app_dir, handle, |text, parsed| {
        let rewritten = manifest::set_enabled(text, enabled)?;
        changed = parsed.enabled_hint != enabled;
        Ok(changed.then_some(rewritten))
    })?;
    Ok(Switched { changed, problems: parsed.problems })
}

/// Mints id and secret of the pending webhook, and writes the id and the secret's hash.
///
/// # Errors
/// As [`set_enabled`].
pub fn provision_webhook(app_dir: &Path, handle: &Handle) -> Result<Minted, EditError> {
    let minted = Minted { slug: random_hex(ID_BYTES)?, secret: random_hex(SECRET_BYTES)? };
    edit(app_dir, handle, |text, _| manifest::provision_webhook(text, &minted.slug, &hash(&minted.secret)).map(Some))?;
    Ok(minted)
}

/// Mints a new secret for the provisioned webhook; its id stays.
///
/// # Errors
/// As [`set_enabled`].
pub fn rotate_webhook(app_dir: &Path, handle: &Handle) -> Result<Minted, EditError> {
    let secret = random_hex(SECRET_BYTES)?;
    let mut slug = String::new();
    edit(app_dir, handle, |text, parsed| {
        let rewritten = manifest::rotate_webhook(text, &hash(&secret))?;
        // A manifest that is not valid opens no webhook, whatever its secret.
        let webhook = parsed.manifest.as_ref().and_then(|m| m.webhook());
        slug.clone_from(&webhook.ok_or(RewriteError::NoProvisionedWebhook)?.id);
        Ok(Some(rewritten))
    })?;
    Ok(Minted { slug, secret })
}

/// An automation's two files as they are on disk.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Files {
    /// `automation.json`
    pub manifest: Option<String>,
    /// `handler.js`
    pub handler: Option<String>,
}

impl Files {
    /// Reads both; one that is not there is `None`.
    ///
    /// # Errors
    /// [`EditError::Unreadable`] for a file that is there and cannot be read, or leads elsewhere.
    pub fn read(app_dir: &Path, handle: &Handle) -> Result<Self, EditError> {
        let text = |path: &str, bytes: Result<Vec<u8>, Problem>| {
            let problem = match bytes.map(String::from_utf8) {
                Ok(Ok(text)) => return Ok(Some(text)),
                Ok(Err(_)) => Problem::error("not_utf8", "", "the file is not UTF-8"),
                Err(problem) if problem.code == "not_found" => return Ok(None),
                Err(problem) => problem,
            };
            Err(EditError::Unreadable { path: shown(handle, path), problem: Box::new(problem) })
        };
        if !app_dir.is_dir() {
            return Ok(Self::default());
        }
        let path = manifest_path(handle);
        Ok(Self {
            manifest: text(&path, watch::read_app_file(app_dir, Path::new(&path), MAX_MANIFEST_BYTES))?,
            handler: text(&handler_path(handle), watch::read_handler(app_dir, &handle.automation))?,
        })
    }

    /// Changes when one of the files does.
    pub fn revision(&self) -> String {
        let mut hash = sha2::Sha256::new();
        for file in [&self.manifest, &self.handler] {
            // With its length, so that nothing can move from one into the other; and none is not empty.
            hash.update(file.as_ref().map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
            hash.update(file.as_deref().unwrap_or_default());
        }
        hex::encode(&hash.finalize()[..16])
    }

    /// With what is proposed in place of what is there.
    #[must_use]
    pub fn with(self, proposed: &Self) -> Self {
        let Self { manifest, handler } = proposed.clone();
        Self { manifest: manifest.or(self.manifest), handler: handler.or(self.handler) }
    }
}

/// What a builder proposes.
#[derive(Debug, Default, Clone)]
pub struct Proposal {
    /// What is to be written; a file that is left out stays.
    pub files: Files,
    /// Of the files that it goes by ([`Files::revision`]).
    pub revision: Option<String>,
    /// Whether a webhook may go with its credentials.
    pub removes_webhook: bool,
}

impl Proposal {
    /// What is to be said of it by its parts: what is missing, too large, or named as nothing can be. The rest is
    /// [`manifest::propose`]'s. `standing`: the files that are there.
    pub fn shortcomings(&self, handle: &Handle, standing: &Files) -> Vec<Problem> {
        let mut problems: Vec<Problem> = watch::unusable(handle).into_iter().collect();
        let missing = |code, name| Problem::error(code, "", format!("{handle} has no {name} yet: propose one, too"));
        if self.files.manifest.is_none() && standing.manifest.is_none() {
            problems.push(missing("no_manifest", "manifest").in_path(shown(handle, &manifest_path(handle))));
        }
        let path = shown(handle, &handler_path(handle));
        match &self.files.handler {
            None if standing.handler.is_none() => problems.push(missing("missing_handler", "handler").in_path(path)),
            Some(handler) if handler.len() > MAX_HANDLER_BYTES => {
                let message = format!("the handler may have {MAX_HANDLER_BYTES} bytes, but has {}", handler.len());
                problems.push(Problem::error("too_large", "", message).in_path(path));
            }
            _ => {}
        }
        problems
    }
}

/// What became of a proposal.
#[derive(Debug)]
pub struct Written {
    /// It was not there before.
    pub created: bool,
    pub enabled: bool,
    pub files: Files,
    /// Warnings of the manifest.
    pub problems: Vec<Problem>,
}

/// Writes what a builder proposes: the manifest, the handler, or both.
///
/// The handler is written before the manifest, so that no watcher sees a manifest without one.
///
/// # Errors
/// [`EditError`]. [`EditError::Refused`] has every problem, and nothing was written; after [`EditError::Write`] the
/// handler may be the new one, but of a new automation nothing is left.
pub fn write_proposed(app_dir: &Path, handle: &Handle, proposal: &Proposal) -> Result<Written, EditError> {
    let _alone = Alone::with(app_dir, handle)?;
    let standing = Files::read(app_dir, handle)?;
    if proposal.revision.as_ref().is_some_and(|revision| *revision != standing.revision()) {
        return Err(EditError::Changed { handle: handle.clone() });
    }
    let refused = |problems| EditError::Refused { handle: handle.clone(), problems };
    let shortcomings = proposal.shortcomings(handle, &standing);
    let files = standing.clone().with(&proposal.files);
    let (Some(text), Some(handler), true) = (&files.manifest, &files.handler, shortcomings.is_empty()) else {
        return Err(refused(shortcomings));
    };
    let judged = manifest::propose(text, standing.manifest.as_deref(), &handle.app, proposal.removes_webhook);
    let Some(text) = judged.text else { return Err(refused(judged.problems)) };
    // Proposed alone, a handler leaves the manifest as it is laid out.
    let text = standing.manifest.clone().filter(|_| proposal.files.manifest.is_none()).unwrap_or(text);

    let folder = format!("automations/{}", handle.automation);
    let made = watch::make_app_dir(app_dir, Path::new(&folder))
        .map_err(|problem| EditError::Unreadable { path: shown(handle, &folder), problem: Box::new(problem) })?;
    let new = [(handler_path(handle), &standing.handler, handler), (manifest_path(handle), &standing.manifest, &text)];
    for (path, standing, text) in &new {
        if standing.as_ref() == Some(*text) {
            continue;
        }
        if let Err(source) = watch::write_atomic(&app_dir.join(path), text.as_bytes()) {
            undo(app_dir, handle, &made);
            return Err(EditError::Write { path: shown(handle, path), source });
        }
    }
    Ok(Written {
        created: standing.manifest.is_none(),
        enabled: judged.enabled,
        files: Files { manifest: Some(text), handler: Some(handler.clone()) },
        problems: judged.problems,
    })
}

/// Half an automation in a folder of its own is worth nothing, and would be shown as a broken one.
fn undo(app_dir: &Path, handle: &Handle, made: &[PathBuf]) {
    if !made.is_empty() {
        // It may not have come that far.
        let _ = std::fs::remove_file(app_dir.join(handler_path(handle)));
        watch::remove_empty(made);
    }
}

/// Nobody else changes automations beside this app while it lives: no thread of this process, and no other dirigent.
struct Alone {
    _here: MutexGuard<'static, ()>,
    /// Locked. None where that cannot be had: a folder that may not be read, or a system that opens none.
    _folder: Option<File>,
}

impl Alone {
    fn with(app_dir: &Path, handle: &Handle) -> Result<Self, EditError> {
        let here = EDITING.lock().unwrap_or_else(PoisonError::into_inner);
        // The folder around the app, because a new app has none. By its real name, as an app may be a link.
        let real = std::fs::canonicalize(app_dir).unwrap_or_else(|_| app_dir.to_owned());
        let folder = real.parent().and_then(|folder| File::open(folder).ok());
        let since = std::time::Instant::now();
        let locked = |folder: &File| loop {
            match folder.try_lock() {
                Ok(()) => return Ok(true),
                Err(TryLockError::Error(_)) => return Ok(false),
                Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => std::thread::sleep(RETRY_EVERY),
                Err(TryLockError::WouldBlock) => return Err(EditError::Busy { handle: handle.clone() }),
            }
        };
        let folder = match folder {
            Some(folder) => locked(&folder)?.then_some(folder),
            None => None,
        };
        Ok(Self { _here: here, _folder: folder })
    }
}

/// The bytes of an automation's manifest, read as the daemon reads it.
///
/// # Errors
/// [`EditError::Unreadable`].
pub fn read_manifest(app_dir: &Path, handle: &Handle) -> Result<Vec<u8>, EditError> {
    let path = manifest_path(handle);
    watch::read_app_file(app_dir, Path::new(&path), MAX_MANIFEST_BYTES)
        .map_err(|problem| EditError::Unreadable { path: shown(handle, &path), problem: Box::new(problem) })
}

/// Of a manifest's bytes, as the registry keeps it of what it has read.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    sha2::Sha256::digest(bytes).into()
}

/// Below the app's folder.
fn manifest_path(handle: &Handle) -> String {
    format!("automations/{}/automation.json", handle.automation)
}

fn handler_path(handle: &Handle) -> String {
    format!("automations/{}/handler.js", handle.automation)
}

/// A path below the app's folder, from the root.
fn shown(handle: &Handle, path: &str) -> String {
    format!("{}/{path}", handle.app)
}

fn edit(
    app_dir: &Path,
    handle: &Handle,
    change: impl FnOnce(&str, &Parsed) -> Result<Option<String>, RewriteError>,
) -> Result<Parsed, EditError> {
    let _alone = Alone::with(app_dir, handle)?;
    let bytes = read_manifest(app_dir, handle)?;
    let text = std::str::from_utf8(&bytes).map_err(|source| EditError::NotUtf8 { handle: handle.clone(), source })?;
    let parsed = manifest::parse(&bytes, &handle.app);
    let rewritten = change(text, &parsed).map_err(|source| EditError::Rewrite { handle: handle.clone(), source })?;
    if let Some(rewritten) = rewritten {
        let path = manifest_path(handle);
        watch::write_atomic(&app_dir.join(&path), rewritten.as_bytes())
            .map_err(|source| EditError::Write { path: shown(handle, &path), source })?;
    }
    Ok(parsed)
}

fn random_hex(bytes: usize) -> Result<String, EditError> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).map_err(EditError::Random)?;
    Ok(hex::encode(random))
}

/// What a manifest keeps of a secret: SHA-256, hex.
fn hash(secret: &str) -> String {
    hex::encode(sha2::Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> (tempfile::TempDir, Handle) {
        let app = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(app.path().join("automations/x")).unwrap();
        std::fs::write(app.path().join("automations/x/automation.json"), text).unwrap();
        (app, "a/x".parse().unwrap())
    }

    fn read(app: &tempfile::TempDir) -> String {
        std::fs::read_to_string(app.path().join("automations/x/automation.json")).unwrap()
    }

    const PENDING: &str = r#"{"name":"n","own":[1],"prompt":"p","triggers":[{"kind":"webhook","pending":true}],"generated":{"by":"t","at":"now"}}"#;

    #[test]
    fn credentials_are_minted_once_and_only_their_hash_is_written() {
        let (app, handle) = with(PENDING);
        let first = provision_webhook(app.path(), &handle).unwrap();
        assert_eq!((first.slug.len(), first.secret.len()), (24, 48));
        let text = read(&app);
        assert!(text.contains(&first.slug) && text.contains(&hash(&first.secret)) && text.contains("\"own\""));
        assert!(
            !text.contains(&first.secret) && !text.contains("pending") && !format!("{first:?}").contains(&first.secret)
        );
        assert_eq!(provision_webhook(app.path(), &handle).unwrap_err().code(), "no_pending_webhook");
        let second = rotate_webhook(app.path(), &handle).unwrap();
        assert_eq!(second.slug, first.slug);
        assert!(read(&app).contains(&hash(&second.secret)) && !read(&app).contains(&hash(&first.secret)));
        assert!(manifest::parse(read(&app).as_bytes(), &handle.app).manifest.is_some());
    }

    #[test]
    fn what_cannot_be_changed_is_left_as_it_is() {
        for (text, code) in [("{", "invalid_manifest"), ("[]", "invalid_manifest")] {
            let (app, handle) = with(text);
            assert_eq!(set_enabled(app.path(), &handle, true).unwrap_err().code(), code);
            assert_eq!(rotate_webhook(app.path(), &handle).unwrap_err().code(), code);
            assert_eq!(read(&app), text);
        }
        let (app, handle) = with(&PENDING.replace(r#"{"kind":"webhook","pending":true}"#, ""));
        assert_eq!(rotate_webhook(app.path(), &handle).unwrap_err().code(), "no_provisioned_webhook");
        let gone: Handle = "a/gone".parse().unwrap();
        assert!(matches!(set_enabled(app.path(), &gone, true), Err(EditError::Unreadable { .. })));
    }

    fn proposed(manifest: Option<&str>, handler: Option<&str>) -> Proposal {
        let files = Files { manifest: manifest.map(str::to_owned), handler: handler.map(str::to_owned) };
        Proposal { files, ..Proposal::default() }
    }

    fn by(files: &Files, proposal: &Proposal) -> Proposal {
        Proposal { revision: Some(files.revision()), ..proposal.clone() }
    }

    const HANDLER: &str = "export default async () => {};";

    #[test]
    fn a_proposal_makes_and_changes_an_automation_and_never_enables_it() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        let whole = proposed(Some(&PENDING.replace("\"own\"", "\"enabled\":true,\"own\"")), Some(HANDLER));
        let written = write_proposed(&app, &handle, &whole).unwrap();
        assert!(written.created && !written.enabled);
        let files = Files::read(&app, &handle).unwrap();
        assert_eq!(files, written.files);
        assert!(files.manifest.as_ref().unwrap().contains("\"enabled\": false"));

        // The handler alone; the manifest stays as it is, to the byte.
        set_enabled(&app, &handle, true).unwrap();
        let before = Files::read(&app, &handle).unwrap();
        let mended = proposed(None, Some("export default async () => ({});"));
        let written = write_proposed(&app, &handle, &by(&before, &mended)).unwrap();
        assert!(!written.created && written.enabled, "one that a person has enabled goes on");
        let after = Files::read(&app, &handle).unwrap();
        assert_eq!((&after.manifest, &after.handler), (&before.manifest, &mended.files.handler));

        // By what it was before.
        let late = write_proposed(&app, &handle, &by(&before, &whole)).unwrap_err();
        assert_eq!(late.code(), "changed_meanwhile");
        assert_eq!(Files::read(&app, &handle).unwrap(), after);
    }

    #[test]
    fn what_is_refused_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        let large = "x".repeat(MAX_HANDLER_BYTES + 1);
        for (files, code) in [
            (proposed(Some("{}"), Some(HANDLER)), "missing_field"),
            (proposed(Some(PENDING), None), "missing_handler"),
            (proposed(None, Some(HANDLER)), "no_manifest"),
            (proposed(Some(PENDING), Some(&large)), "too_large"),
            (proposed(Some(&PENDING.replace("\"pending\":true", "\"id\":\"x\"")), Some(HANDLER)), "minted_field"),
        ] {
            match write_proposed(&app, &handle, &files).unwrap_err() {
                EditError::Refused { problems, .. } => {
                    assert!(problems.iter().any(|problem| problem.code == code), "{code}: {problems:?}");
                }
                other => panic!("{code}: {other}"),
            }
            assert!(!app.exists(), "{code}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_proposal_writes_nothing_outside_its_app() {
        use std::os::unix::fs::symlink;
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let whole = proposed(Some(PENDING), Some(HANDLER));
        for (app, at) in [("a", "automations"), ("b", "automations/x"), ("c", "automations/x/handler.js")] {
            let app_dir = root.path().join(app);
            let handle: Handle = format!("{app}/x").parse().unwrap();
            std::fs::create_dir_all(app_dir.join(at).parent().unwrap()).unwrap();
            symlink(outside.path().join("gone"), app_dir.join(at)).unwrap();
            assert!(write_proposed(&app_dir, &handle, &whole).is_err(), "{at}");
            std::fs::remove_file(app_dir.join(at)).unwrap();
            let target = outside.path().join("there");
            if at.ends_with(".js") {
                std::fs::write(&target, "mine").unwrap()
            } else {
                std::fs::create_dir(&target).unwrap()
            }
            symlink(&target, app_dir.join(at)).unwrap();
            assert!(write_proposed(&app_dir, &handle, &whole).is_err(), "{at}");
            if at.ends_with(".js") {
                assert_eq!(std::fs::read_to_string(&target).unwrap(), "mine");
            } else {
                assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "{at}");
                std::fs::remove_dir(&target).unwrap();
            }
        }
    }

    #[test]
    fn no_automation_is_made_where_none_would_be_seen() {
        let root = tempfile::tempdir().unwrap();
        for handle in ["node_modules/x", "a/node_modules", "a/_x", "mcp.json/x", "dirigent.toml/x"] {
            let target: Handle = handle.parse().unwrap();
            let app = root.path().join(target.app.as_str());
            match write_proposed(&app, &target, &proposed(Some(PENDING), Some(HANDLER))).unwrap_err() {
                EditError::Refused { problems, .. } => assert_eq!(problems[0].code, "invalid_name", "{handle}"),
                other => panic!("{handle}: {other}"),
            }
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_failed_write_leaves_no_half_an_automation() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        // A folder where the manifest must be: the handler is written, and then no more.
        let made = watch::make_app_dir(&app, Path::new("automations/x")).unwrap();
        std::fs::write(app.join("automations/x/handler.js"), HANDLER).unwrap();
        undo(&app, &handle, &made);
        assert!(!app.exists());
        // What somebody else has made stays.
        std::fs::create_dir_all(app.join("automations/x")).unwrap();
        std::fs::write(app.join("automations/x/handler.js"), HANDLER).unwrap();
        undo(&app, &handle, &[]);
        assert!(app.join("automations/x/handler.js").exists());
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_changed_while_another_process_changes_something() {
        let root = tempfile::tempdir().unwrap();
        let (app, handle): (_, Handle) = (root.path().join("a"), "a/x".parse().unwrap());
        write_proposed(&app, &handle, &proposed(Some(PENDING), Some(HANDLER))).unwrap();
        // Another open file is as good as another process.
        let other = File::open(root.path()).unwrap();
        other.lock().unwrap();
        let (told, is_told) = std::sync::mpsc::channel();
        let (folder, target) = (app.clone(), handle.clone());
        let switch = std::thread::spawn(move || {
            let switched = set_enabled(&folder, &target, true);
            told.send(()).unwrap();
            switched
        });
        let text = Files::read(&app, &handle).unwrap().manifest.unwrap();
        std::fs::write(app.join(manifest_path(&handle)), text.replace("\"name\": \"n\"", "\"name\": \"m\"")).unwrap();
        assert!(is_told.try_recv().is_err(), "it waits");
        drop(other);
        assert!(switch.join().unwrap().unwrap().changed);
        let text = Files::read(&app, &handle).unwrap().manifest.unwrap();
        assert!(text.contains("\"m\"") && text.contains("\"enabled\": true"), "both changes are there: {text}");
    }
}
