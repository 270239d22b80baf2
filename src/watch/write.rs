//! Rewriting a file so that a reader sees the old one or the new one, also after power loss.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::path::Path;

/// Replaces `path` with `bytes`: a temporary file in the same folder, synced, renamed over it, the folder synced. Mode
/// and, where that is allowed, owner stay what they were; a new file gets the usual mode. A link is written through,
/// not replaced.
///
/// # Errors
/// Whatever the file system says; then `path` is as it was, and the temporary file is gone.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => fs::canonicalize(path)?,
        _ => path.to_owned(),
    };
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        Some(_) => Path::new("."),
        None => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file has a folder around it"));
        }
    };
    let former = match fs::metadata(&path) {
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut builder = tempfile::Builder::new();
    // The leading dot keeps it out of every listing, this program's own included.
    builder.prefix(".dirigent-").suffix(".tmp").permissions(usual_permissions(dir)?);
    let mut file = builder.tempfile_in(dir)?;
    file.write_all(bytes)?;
    if let Some(former) = former {
        keep_owner(file.as_file(), &former);
        file.as_file().set_permissions(former.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|failed| failed.error)?;
    sync_folder(dir)
}

#[cfg(unix)]
fn usual_permissions(_dir: &Path) -> io::Result<Permissions> {
    use std::os::unix::fs::PermissionsExt;
    // The process's umask takes its part away.
    Ok(Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn usual_permissions(dir: &Path) -> io::Result<Permissions> {
    let mut permissions = fs::metadata(dir)?.permissions();
    permissions.set_readonly(false);
    Ok(permissions)
}

#[cfg(unix)]
fn keep_owner(file: &File, former: &fs::Metadata) {
    use std::os::unix::fs::MetadataExt;
    // Only root may give files away; for everyone else the file is theirs already, or becomes theirs.
    let _ = std::os::unix::fs::fchown(file, Some(former.uid()), Some(former.gid()));
}

#[cfg(not(unix))]
fn keep_owner(_file: &File, _former: &fs::Metadata) {}

#[cfg(unix)]
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Folders cannot be opened as files there, and renames are journalled.
#[cfg(not(unix))]
fn sync_folder(_dir: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rewrite_replaces_the_whole_file_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("automation.json");
        write_atomic(&path, b"one, and longer").expect("a new file");
        write_atomic(&path, b"two").expect("a rewrite");
        assert_eq!(fs::read(&path).expect("the file"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 1);
        assert!(write_atomic(&dir.path().join("absent/automation.json"), b"x").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_is_kept_and_a_link_is_written_through() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().expect("a folder");
        let (real, link) = (dir.path().join("real.json"), dir.path().join("link.json"));
        write_atomic(&real, b"one").expect("a new file");
        assert_eq!(fs::metadata(&real).expect("facts").mode() & 0o600, 0o600);
        fs::set_permissions(&real, Permissions::from_mode(0o640)).expect("a mode");
        std::os::unix::fs::symlink("real.json", &link).expect("a link");
        write_atomic(&link, b"two").expect("a rewrite");
        assert!(fs::symlink_metadata(&link).expect("facts").is_symlink());
        assert_eq!(fs::read(&real).expect("the file"), b"two");
        assert_eq!(fs::metadata(&real).expect("facts").mode() & 0o777, 0o640);
    }
}
