//! Changes to automations on disk, for those who may make them: switch one on or off, mint the credentials of its webhook,
//! write what a builder proposes. The command line, the API and the MCP server change files through here; a daemon that
//! watches sees the new file like any other edit.
//!
//! A file is read as the daemon reads it, changed in its text alone (`core::manifest`), and replaced atomically. From
//! reading to replacing no other dirigent changes anything there: a builder's text must not undo what a person has
//! switched off meanwhile. What is minted is returned once and stands nowhere in plain text.

mod proposal;

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::Digest;

use crate::core::manifest::{self, MAX_MANIFEST_BYTES, Parsed, RewriteError};
use crate::fire::{Handle, Problem};
use crate::watch;

pub use proposal::{Files, Proposal, Written, write_proposed};

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
}
