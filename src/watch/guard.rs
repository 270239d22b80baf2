//! Opening files of an app folder: only regular ones, only inside it, only up to a size, and without ever blocking.
//!
//! The app folder itself may be a link. Below it a link is followed when it ends inside the app folder, and is a
//! problem when it does not. After a path was found to be inside, it is opened component by component without
//! following links, so that swapping one in meanwhile gains nothing.
#![cfg_attr(unix, allow(unsafe_code))]

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::place::{AUTOMATIONS, HANDLER};
use crate::core::manifest::MAX_HANDLER_BYTES;
use crate::fire::{AutomationId, Problem};

/// The code of an automation, as it is now.
///
/// # Errors
/// A problem that says why there is no such file to run: `not_found`, `not_regular`, `outside_link`, `broken_link`,
/// `too_large`, `unreadable`.
pub fn read_handler(app_dir: &Path, id: &AutomationId) -> Result<Vec<u8>, Problem> {
    let relative: PathBuf = [AUTOMATIONS, id.as_str(), HANDLER].iter().collect();
    read_app_file(app_dir, &relative, MAX_HANDLER_BYTES)
}

/// A file of an app folder, by its path in there.
///
/// # Errors
/// As [`read_handler`], and `invalid_path` for a path that is absolute or climbs.
pub fn read_app_file(app_dir: &Path, relative: &Path, max_bytes: usize) -> Result<Vec<u8>, Problem> {
    let shown = shown_path(app_dir, relative);
    check_relative(relative, &shown)?;
    let opened = match open_beneath(app_dir, relative) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        // Perhaps a link stands somewhere in the path.
        Err(error) => match resolve_inside(app_dir, &app_dir.join(relative), &shown)? {
            Some((real_app, real)) => open_beneath(&real_app, real.strip_prefix(&real_app).unwrap_or(&real)),
            None => Err(error),
        },
    };
    let file = opened.map_err(|error| io_problem(&error, &shown))?;
    let meta = file.metadata().map_err(|error| io_problem(&error, &shown))?;
    read_regular(file, &meta, max_bytes, &shown)
}

/// The names of the regular files in a folder of an app, sorted; none when there is no such folder. Names that are not
/// UTF-8 are left out: no path in a manifest can say them.
///
/// # Errors
/// As [`read_app_file`]; a link in there that leads outside fails the whole listing, as leaving one migration out
/// unseen would do harm.
pub fn list_app_dir(app_dir: &Path, relative: &Path) -> Result<Vec<String>, Problem> {
    let shown = shown_path(app_dir, relative);
    check_relative(relative, &shown)?;
    let Some((real_app, real)) = resolve_inside(app_dir, &app_dir.join(relative), &shown)? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&real).map_err(|error| io_problem(&error, &shown))? {
        let entry = entry.map_err(|error| io_problem(&error, &shown))?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let kind = entry.file_type().map_err(|error| io_problem(&error, &shown))?;
        let regular = if kind.is_symlink() {
            let shown = format!("{shown}/{name}");
            resolve_inside(&real_app, &entry.path(), &shown)?.is_some_and(|(_, real)| real.is_file())
        } else {
            kind.is_file()
        };
        if regular {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Makes a folder of an app, and the app's own, where they are missing. Gives those that it made, the outermost first.
///
/// # Errors
/// `not_a_folder`, `not_writable`, and as [`read_app_file`]: no folder is made behind a link that leads outside. What
/// was made before is gone again.
pub fn make_app_dir(app_dir: &Path, relative: &Path) -> Result<Vec<PathBuf>, Problem> {
    let shown = shown_path(app_dir, relative);
    check_relative(relative, &shown)?;
    let mut made = Vec::new();
    let all = make_each(app_dir, relative, &shown, &mut made);
    if all.is_err() {
        remove_empty(&made);
    }
    all.map(|()| made)
}

fn make_each(app_dir: &Path, relative: &Path, shown: &str, made: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let mut dir = app_dir.to_owned();
    for part in std::iter::once(None).chain(relative.components().map(Some)) {
        dir.extend(part);
        match std::fs::create_dir(&dir) {
            Ok(()) => made.push(dir.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let message = format!("the folder cannot be made: {}", error.kind());
                return Err(Problem::error("not_writable", "", message).in_path(shown));
            }
        }
        // The app itself may be a link to anywhere.
        if part.is_some() {
            resolve_inside(app_dir, &dir, shown)?;
        }
        match std::fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => {}
            Err(_) if part.is_none() => return Err(broken_link(&dir, shown)),
            _ => {
                let message = "a file stands where a folder must be";
                return Err(Problem::error("not_a_folder", "", message).in_path(shown));
            }
        }
    }
    Ok(())
}

/// Removes folders that [`make_app_dir`] made, unless something is in them by now.
pub fn remove_empty(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        // One that is not empty is somebody's.
        let _ = std::fs::remove_dir(dir);
    }
}

/// A file that was opened, and where it really is when links led there.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) meta: Metadata,
    pub(super) linked: Option<PathBuf>,
}

/// Opens a file whose folders are known to hold no links. `None` when there is no such file.
pub(super) fn open_file(real_app: &Path, path: &Path, shown: &str) -> Result<Option<Opened>, Problem> {
    let (file, linked) = match open_unlinked(path) {
        Ok(file) => (file, None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => {
                let Some((_, real)) = resolve_inside(real_app, path, shown)? else {
                    return Err(broken_link(path, shown));
                };
                let relative = real.strip_prefix(real_app).unwrap_or(&real);
                let file = open_beneath(real_app, relative).map_err(|error| io_problem(&error, shown))?;
                (file, Some(real))
            }
            Ok(meta) if !meta.is_file() => return Err(not_regular(&meta, shown)),
            _ => return Err(io_problem(&error, shown)),
        },
    };
    let meta = file.metadata().map_err(|error| io_problem(&error, shown))?;
    Ok(Some(Opened { file, meta, linked }))
}

/// Reads an opened file, if it is a regular one of at most `max_bytes`.
pub(super) fn read_regular(mut file: File, meta: &Metadata, max_bytes: usize, shown: &str) -> Result<Vec<u8>, Problem> {
    if !meta.is_file() {
        return Err(not_regular(meta, shown));
    }
    check_size(meta.len(), max_bytes, shown)?;
    // One more than allowed: it may grow while it is read.
    let limit = max_bytes as u64 + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1);
    Read::by_ref(&mut file).take(limit).read_to_end(&mut bytes).map_err(|error| io_problem(&error, shown))?;
    check_size(bytes.len() as u64, max_bytes, shown)?;
    Ok(bytes)
}

pub(super) fn check_size(length: u64, max_bytes: usize, shown: &str) -> Result<(), Problem> {
    if length <= max_bytes as u64 {
        return Ok(());
    }
    let message = format!("the file has {length} bytes; at most {max_bytes} are read");
    Err(Problem::error("too_large", "", message).in_path(shown))
}

/// Where a path of the app really is, beside where the app really is. `None` when there is nothing.
pub(super) fn resolve_inside(app_dir: &Path, path: &Path, shown: &str) -> Result<Option<(PathBuf, PathBuf)>, Problem> {
    let real_app = std::fs::canonicalize(app_dir).map_err(|error| io_problem(&error, shown))?;
    match std::fs::canonicalize(path) {
        Ok(real) if real.starts_with(&real_app) => Ok(Some((real_app, real))),
        Ok(_) => Err(Problem::error("outside_link", "", "a link leads out of the app folder, and is not followed")
            .with_hint("copy what it points to into the app folder, or make the whole app folder a link")
            .in_path(shown)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => Err(broken_link(path, shown)),
            _ => Ok(None),
        },
        Err(error) => match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_symlink() => Err(broken_link(path, shown)),
            _ => Err(io_problem(&error, shown)),
        },
    }
}

pub(super) fn broken_link(path: &Path, shown: &str) -> Problem {
    let target = std::fs::read_link(path).unwrap_or_default();
    let message = format!("the link to {:?} leads nowhere", target.to_string_lossy());
    Problem::error("broken_link", "", message).with_hint("remove the link, or restore what it points to").in_path(shown)
}

pub(super) fn not_regular(meta: &Metadata, shown: &str) -> Problem {
    let message = format!("it must be a regular file, and is a {}", kind_of(meta));
    Problem::error("not_regular", "", message).in_path(shown)
}

pub(super) fn io_problem(error: &io::Error, shown: &str) -> Problem {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => Problem::error("not_found", "", "there is no such file"),
        io::ErrorKind::PermissionDenied => Problem::error("unreadable", "", "it may not be read: permission denied")
            .with_hint("let the daemon's user read it: chmod u+rX, or chown"),
        _ => Problem::error("unreadable", "", format!("it cannot be read: {error}")),
    };
    problem.in_path(shown)
}

fn kind_of(meta: &Metadata) -> &'static str {
    if meta.is_dir() {
        return "folder";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = meta.file_type();
        if kind.is_fifo() {
            return "FIFO";
        }
        if kind.is_socket() {
            return "socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "device";
        }
    }
    "special file"
}

fn check_relative(relative: &Path, shown: &str) -> Result<(), Problem> {
    if relative.as_os_str().is_empty() || relative.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(Problem::error("invalid_path", "", "the path must lead down from the app folder").in_path(shown));
    }
    Ok(())
}

/// `<app>/<relative>`, with `/`.
fn shown_path(app_dir: &Path, relative: &Path) -> String {
    let parts = app_dir.file_name().map(OsString::from).into_iter();
    let parts = parts.chain(relative.iter().map(OsString::from));
    parts.map(|part| part.to_string_lossy().into_owned()).collect::<Vec<_>>().join("/")
}

/// Does not follow a link, wait for a FIFO's writer, nor take a terminal.
#[cfg(unix)]
const OPEN_FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;

#[cfg(unix)]
fn open_unlinked(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(OPEN_FLAGS).open(path)
}

#[cfg(not(unix))]
fn open_unlinked(path: &Path) -> io::Result<File> {
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    File::open(path)
}

/// Opens `relative` below `base`, no part of it being a link.
#[cfg(unix)]
fn open_beneath(base: &Path, relative: &Path) -> io::Result<File> {
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::OpenOptionsExt;
    let mut at = File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(base)?;
    let mut parts = relative.iter().peekable();
    while let Some(part) = parts.next() {
        let name = std::ffi::CString::new(part.as_bytes())?;
        let folder = if parts.peek().is_some() { libc::O_DIRECTORY } else { 0 };
        // SAFETY: the name is a C string that outlives the call, and the descriptor is open.
        let fd = unsafe { libc::openat(at.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | OPEN_FLAGS | folder) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made by the kernel, and nobody else knows it.
        at = unsafe { File::from_raw_fd(fd) };
    }
    Ok(at)
}

#[cfg(not(unix))]
fn open_beneath(base: &Path, relative: &Path) -> io::Result<File> {
    let mut at = base.to_owned();
    for part in relative {
        at.push(part);
        if std::fs::symlink_metadata(&at)?.is_symlink() {
            return Err(io::Error::other("a link"));
        }
    }
    open_unlinked(&at)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn mkfifo(path: &Path) {
        let status = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
        assert!(status.success());
    }

    #[test]
    fn files_are_read_only_from_inside_the_app() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        fs::create_dir_all(root.join("real/queries/deep")).expect("folders");
        fs::write(root.join("real/queries/q.js"), "q").expect("a file");
        fs::write(root.join("real/queries/big.js"), [0u8; 11]).expect("a file");
        fs::write(root.join("secret"), "s").expect("a file");
        symlink("real", root.join("app")).expect("a link");
        symlink("q.js", root.join("real/queries/alias.js")).expect("a link");
        symlink(root.join("real/queries/q.js"), root.join("real/queries/absolute.js")).expect("a link");
        symlink("queries", root.join("real/folder_alias")).expect("a link");
        symlink("../../secret", root.join("real/queries/out.js")).expect("a link");
        symlink("..", root.join("real/up")).expect("a link");
        symlink("loop.js", root.join("real/queries/loop.js")).expect("a link");
        symlink("nowhere.js", root.join("real/queries/dangling.js")).expect("a link");
        mkfifo(&root.join("real/queries/fifo.js"));
        let cases: &[(&str, Result<&str, &str>)] = &[
            ("queries/q.js", Ok("q")),
            ("queries/alias.js", Ok("q")),
            ("queries/absolute.js", Ok("q")),
            ("folder_alias/q.js", Ok("q")),
            ("queries/none.js", Err("not_found")),
            ("queries/big.js", Err("too_large")),
            ("queries/out.js", Err("outside_link")),
            ("up/secret", Err("outside_link")),
            ("queries/loop.js", Err("broken_link")),
            ("queries/dangling.js", Err("broken_link")),
            ("queries/fifo.js", Err("not_regular")),
            ("queries/deep", Err("not_regular")),
            ("queries/q.js/x", Err("unreadable")),
            ("../secret", Err("invalid_path")),
            ("/etc/hostname", Err("invalid_path")),
            ("", Err("invalid_path")),
        ];
        for (relative, expected) in cases {
            let got = read_app_file(&root.join("app"), Path::new(relative), 10);
            let got = got.as_ref().map(|b| std::str::from_utf8(b).expect("text")).map_err(|p| p.code.as_str());
            assert_eq!(&got, expected, "{relative}");
        }
        let problem = read_app_file(&root.join("app"), Path::new("queries/none.js"), 10).expect_err("absent");
        assert_eq!(problem.path.as_deref(), Some("app/queries/none.js"));
    }

    #[test]
    fn a_listing_has_regular_files_in_order_and_refuses_links_outside() {
        let dir = tempfile::tempdir().expect("a folder");
        let app = dir.path().join("app");
        fs::create_dir_all(app.join("migrations/sub")).expect("folders");
        fs::write(app.join("migrations/2.sql"), "").expect("a file");
        fs::write(app.join("migrations/1.sql"), "").expect("a file");
        symlink("1.sql", app.join("migrations/3.sql")).expect("a link");
        mkfifo(&app.join("migrations/4.sql"));
        assert_eq!(list_app_dir(&app, Path::new("migrations")).expect("names"), ["1.sql", "2.sql", "3.sql"]);
        assert_eq!(list_app_dir(&app, Path::new("queries")).expect("names"), Vec::<String>::new());
        symlink("/etc/hostname", app.join("migrations/5.sql")).expect("a link");
        assert_eq!(list_app_dir(&app, Path::new("migrations")).expect_err("outside").code, "outside_link");
    }

    #[test]
    fn folders_are_made_inside_the_app_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let (root, to_x) = (dir.path(), Path::new("automations/x"));
        fs::create_dir_all(root.join("outside")).expect("a folder");
        for app in ["linked", "filed"] {
            fs::create_dir(root.join(app)).expect("a folder");
        }
        fs::write(root.join("file"), "").expect("a file");
        fs::write(root.join("filed/automations"), "").expect("a file");
        symlink("outside", root.join("alias")).expect("a link");
        symlink("nowhere", root.join("broken")).expect("a link");
        symlink("../outside", root.join("linked/automations")).expect("a link");
        for (app, expected) in [
            ("new", Ok(3)),
            ("new", Ok(0)),
            ("alias", Ok(2)),
            ("linked", Err("outside_link")),
            ("filed", Err("not_a_folder")),
            ("file", Err("not_a_folder")),
            ("broken", Err("broken_link")),
        ] {
            let made = make_app_dir(&root.join(app), to_x);
            assert_eq!(made.as_ref().map(Vec::len).map_err(|problem| problem.code.as_str()), expected, "{app}");
        }
        assert!(root.join("outside/automations/x").is_dir(), "an app may be a link");
        assert!(!root.join("outside/x").exists());
        let made = make_app_dir(&root.join("other"), to_x).expect("folders");
        fs::write(root.join("other/mine"), "").expect("a file");
        remove_empty(&made);
        assert!(root.join("other/mine").is_file() && !root.join("other/automations").exists());
    }

    #[test]
    fn a_handler_is_read_by_its_id() {
        let dir = tempfile::tempdir().expect("a folder");
        let id = AutomationId::new("x").expect("an id");
        fs::create_dir_all(dir.path().join("automations/x")).expect("folders");
        assert_eq!(read_handler(dir.path(), &id).expect_err("absent").code, "not_found");
        fs::write(dir.path().join("automations/x/handler.js"), "js").expect("a file");
        assert_eq!(read_handler(dir.path(), &id).expect("bytes"), b"js");
        fs::write(dir.path().join("automations/x/handler.js"), vec![b' '; MAX_HANDLER_BYTES + 1]).expect("a file");
        assert_eq!(read_handler(dir.path(), &id).expect_err("large").code, "too_large");
    }
}
