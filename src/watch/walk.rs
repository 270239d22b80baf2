//! Reads one folder at a time: what stands under a name in the root or in `automations`, and the contents there.
//!
//! Only a *real* path is opened, one without links below the app folder; a *shown* path is for people: from the root,
//! with `/`. Nothing is remembered here and nothing parsed.

use std::ffi::OsStr;
use std::fs::{FileType, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::guard::{self, broken_link, check_size, io_problem, not_regular, resolve_inside};
use super::place::{APP_JSON, AUTOMATIONS, HANDLER, INDEX_HTML, MANIFEST, Name, is_skipped};
use super::{AutomationFolder, FileContent, HandlerFile};
use crate::core::manifest::{MAX_HANDLER_BYTES, MAX_MANIFEST_BYTES};
use crate::fire::{AppId, AutomationId, NameError, Problem};

/// What a name in the root stands for.
pub(super) enum AppFound {
    /// Nothing, or nothing that matters: a file, a skipped name.
    Nothing,
    /// A folder that cannot be an app.
    Misfit(Problem),
    /// An app: its id, and where it really is.
    App(AppId, PathBuf),
}

/// What a name in `automations` stands for.
pub(super) enum EntryFound {
    Nothing,
    Misfit(Problem),
    Folder(AutomationId, PathBuf),
}

/// What is known of an app without its automations.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Front {
    pub(super) has_index_html: bool,
    pub(super) app_json: FileContent,
    pub(super) problems: Vec<Problem>,
}

/// The names in a folder that may matter, with their kinds, in order.
///
/// # Errors
/// The folder is gone or cannot be read.
pub(super) fn list(dir: &Path) -> io::Result<Vec<(Name, FileType)>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_skipped(&name) {
            // An entry that vanishes meanwhile is no entry.
            let Ok(kind) = entry.file_type() else { continue };
            names.push((Name::from(name), kind));
        }
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(names)
}

pub(super) fn find_app(real_root: &Path, name: &OsStr) -> AppFound {
    let path = real_root.join(name);
    let shown = name.to_string_lossy();
    let Ok(meta) = std::fs::symlink_metadata(&path) else {
        return AppFound::Nothing;
    };
    if is_skipped(name) || !(meta.is_dir() || meta.is_symlink()) {
        return AppFound::Nothing;
    }
    let real = match std::fs::canonicalize(&path) {
        Ok(real) if real.is_dir() => real,
        Ok(_) => return AppFound::Nothing,
        Err(_) if meta.is_symlink() => return AppFound::Misfit(broken_link(&path, &shown)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return AppFound::Nothing,
        Err(error) => return AppFound::Misfit(io_problem(&error, &shown)),
    };
    match name_of(name, AppId::new) {
        Ok(id) => AppFound::App(id, real),
        Err(problem) => AppFound::Misfit(
            problem.with_hint("rename the folder; one that starts with `.` or `_` is left alone").in_path(shown),
        ),
    }
}

pub(super) fn read_front(real_app: &Path, app: &AppId) -> Front {
    let shown = format!("{app}/{APP_JSON}");
    let (app_json, _) = read_content(real_app, &real_app.join(APP_JSON), &shown);
    let index = real_app.join(INDEX_HTML);
    let has_index_html = match std::fs::symlink_metadata(&index) {
        Ok(meta) if meta.is_symlink() => {
            matches!(resolve_inside(real_app, &index, ""), Ok(Some((_, real))) if real.is_file())
        }
        Ok(meta) => meta.is_file(),
        Err(_) => false,
    };
    Front { has_index_html, app_json, problems: Vec::new() }
}

/// Where an app's `automations` folder really is, if it has one.
pub(super) fn find_automations(real_app: &Path, app: &AppId) -> Result<Option<PathBuf>, Problem> {
    let path = real_app.join(AUTOMATIONS);
    let shown = format!("{app}/{AUTOMATIONS}");
    match std::fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_symlink() => {
            let found = resolve_inside(real_app, &path, &shown)?;
            Ok(found.map(|(_, real)| real).filter(|real| real.is_dir()))
        }
        Ok(meta) => Ok(meta.is_dir().then_some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_problem(&error, &shown)),
    }
}

/// `kind` spares a look at the disk, when a listing told it a moment ago.
pub(super) fn find_entry(
    real_app: &Path,
    automations: &Path,
    app: &AppId,
    name: &OsStr,
    kind: Option<FileType>,
) -> EntryFound {
    let path = automations.join(name);
    let shown = || format!("{app}/{AUTOMATIONS}/{}", name.to_string_lossy());
    let Some(kind) = kind.or_else(|| Some(std::fs::symlink_metadata(&path).ok()?.file_type())) else {
        return EntryFound::Nothing;
    };
    if is_skipped(name) {
        return EntryFound::Nothing;
    }
    let (real, is_dir) = if kind.is_symlink() {
        match resolve_inside(real_app, &path, &shown()) {
            Ok(Some((_, real))) => {
                let is_dir = real.is_dir();
                (real, is_dir)
            }
            Ok(None) => return EntryFound::Nothing,
            Err(problem) => return EntryFound::Misfit(problem),
        }
    } else {
        (path, kind.is_dir())
    };
    if !is_dir {
        let Some(stem) = Path::new(name).file_stem().filter(|_| Path::new(name).extension() == Some("json".as_ref()))
        else {
            return EntryFound::Nothing;
        };
        return EntryFound::Misfit(
            Problem::error(
                "flat_manifest",
                "",
                "a manifest beside the automation folders is an old shape, and not run",
            )
            .with_hint(format!("move it to {AUTOMATIONS}/{}/{MANIFEST}", stem.to_string_lossy()))
            .in_path(shown()),
        );
    }
    match name_of(name, AutomationId::new) {
        Ok(id) => EntryFound::Folder(id, real),
        Err(problem) => EntryFound::Misfit(
            problem.with_hint("rename the folder; one that starts with `.` or `_` is left alone").in_path(shown()),
        ),
    }
}

/// Reads an automation's folder. `dir` is where people find it. Beside it: the files elsewhere in the app that its own
/// are links to.
pub(super) fn read_folder(
    real_app: &Path,
    real: &Path,
    dir: PathBuf,
    app: &AppId,
    id: AutomationId,
) -> (AutomationFolder, Vec<PathBuf>) {
    let shown = format!("{app}/{AUTOMATIONS}/{id}");
    let (manifest, manifest_link) = read_content(real_app, &real.join(MANIFEST), &format!("{shown}/{MANIFEST}"));
    let (handler, handler_link) = look_at_handler(real_app, &real.join(HANDLER), &format!("{shown}/{HANDLER}"));
    let linked = manifest_link.into_iter().chain(handler_link).collect();
    (AutomationFolder { id, dir, present: true, manifest, handler }, linked)
}

fn read_content(real_app: &Path, path: &Path, shown: &str) -> (FileContent, Option<PathBuf>) {
    let opened = match guard::open_file(real_app, path, shown) {
        Ok(Some(opened)) => opened,
        Ok(None) => return (FileContent::Absent, None),
        Err(problem) => return (FileContent::Unreadable(problem), None),
    };
    let content = match guard::read_regular(opened.file, &opened.meta, MAX_MANIFEST_BYTES, shown) {
        Ok(bytes) => {
            let sha256 = Sha256::digest(&bytes).into();
            FileContent::Bytes { bytes: Arc::from(bytes), sha256 }
        }
        Err(problem) => FileContent::Unreadable(problem),
    };
    (content, opened.linked)
}

fn look_at_handler(real_app: &Path, path: &Path, shown: &str) -> (HandlerFile, Option<PathBuf>) {
    let unreadable = |problem| (HandlerFile::Unreadable(problem), None);
    let (meta, linked) = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => match resolve_inside(real_app, path, shown) {
            Ok(Some((_, real))) => match std::fs::symlink_metadata(&real) {
                Ok(meta) => (meta, Some(real)),
                Err(error) => return unreadable(io_problem(&error, shown)),
            },
            Ok(None) => return (HandlerFile::Absent, None),
            Err(problem) => return unreadable(problem),
        },
        Ok(meta) => (meta, None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (HandlerFile::Absent, None),
        Err(error) => return unreadable(io_problem(&error, shown)),
    };
    if !meta.is_file() {
        return unreadable(not_regular(&meta, shown));
    }
    if let Err(problem) = check_size(meta.len(), MAX_HANDLER_BYTES, shown) {
        return unreadable(problem);
    }
    (present(&meta), linked)
}

#[cfg(unix)]
fn present(meta: &Metadata) -> HandlerFile {
    use std::os::unix::fs::MetadataExt;
    let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    HandlerFile::Present { len: meta.len(), mtime_ns, inode: meta.ino() }
}

#[cfg(not(unix))]
fn present(meta: &Metadata) -> HandlerFile {
    HandlerFile::Present { len: meta.len(), mtime_ns: meta.modified().map_or(0, nanos), inode: 0 }
}

#[cfg(not(unix))]
pub(super) fn nanos(time: std::time::SystemTime) -> i128 {
    match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
    }
}

fn name_of<T>(name: &OsStr, new: fn(&str) -> Result<T, NameError>) -> Result<T, Problem> {
    // A name that is not UTF-8 cannot match: its printable form has the replacement character in it.
    new(&name.to_string_lossy()).map_err(|error| Problem::error("invalid_name", "", error.to_string()))
}
