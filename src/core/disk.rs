//! What was seen on disk, as plain data: the shape in which the watcher hands folders to the core.
//!
//! Contents travel with the event, so that nothing here has to read a file, and two readings of the same bytes are
//! recognised by their hash.

use std::path::PathBuf;
use std::sync::Arc;

use crate::fire::{AppId, AutomationId, Problem};

/// Some folders as they were read together. Order does not matter.
#[derive(Debug, Clone, Default)]
pub struct DiskBatch {
    /// A full scan: any app that is not in it is gone.
    pub full: bool,
    pub apps: Vec<AppFolder>,
    /// Problems of the root itself; valid only when `full`.
    pub root_problems: Vec<Problem>,
}

/// One app folder.
#[derive(Debug, Clone)]
pub struct AppFolder {
    /// The folder's name on disk, made printable.
    pub name: String,
    /// `None` when the name breaks the grammar: then only `problems` counts.
    pub app: Option<AppId>,
    pub dir: PathBuf,
    /// False when the folder is gone.
    pub present: bool,
    pub has_index_html: bool,
    pub app_json: FileContent,
    pub automations: Vec<AutomationFolder>,
    /// True: automations that are not listed are gone. False: only the listed ones changed.
    pub complete: bool,
    pub problems: Vec<Problem>,
}

/// One automation folder.
#[derive(Debug, Clone)]
pub struct AutomationFolder {
    pub id: AutomationId,
    pub dir: PathBuf,
    pub present: bool,
    pub manifest: FileContent,
    pub handler: HandlerFile,
}

/// A small file, whole.
#[derive(Debug, Clone, PartialEq)]
pub enum FileContent {
    Absent,
    Bytes {
        bytes: Arc<[u8]>,
        sha256: [u8; 32],
    },
    /// A FIFO, a device, a link that leads outside, a file over its limit, no permission.
    Unreadable(Problem),
}

/// `handler.js`, which is read only when it is run: enough to see that it changed.
#[derive(Debug, Clone, PartialEq)]
pub enum HandlerFile {
    Absent,
    Present { len: u64, mtime_ns: i128, inode: u64 },
    Unreadable(Problem),
}
