//! Where hints come from: the interface that the worker waits on.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::place::{Kind, Place};

/// One hint.
pub(super) enum Hint<'a> {
    /// Hints were lost.
    Overflow,
    At {
        place: &'a Place,
        name: Option<&'a OsStr>,
        kind: Kind,
    },
}

/// Why a folder is not watched.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It is not there (any more): its parent's hints tell about it.
    Gone,
    /// The kernel has no room, or cannot watch it; the text names the limit and the remedy.
    Refused(String),
}

/// Makes [`Source::wait`] return, from any thread. Remembered when nobody waits.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// Makes a source for a fresh start of the worker.
pub(super) type MakeSource = Box<dyn Fn() -> io::Result<Box<dyn Source>> + Send>;

/// A kernel interface that tells of changes in folders.
pub(super) trait Source {
    /// Follows `dir` (resolved, no link) as `place`. Again with the same folder is cheap and changes nothing; with
    /// another one it lets go of the former.
    fn watch(&mut self, place: &Place, dir: &Path) -> Result<(), Refusal>;

    fn unwatch(&mut self, place: &Place);

    /// Blocks until there are hints, the waker was called, or the time is over (`None`: never); then hands over all
    /// hints that are there.
    ///
    /// # Errors
    /// The source is broken and to be made anew.
    fn wait(&mut self, timeout: Option<Duration>, sink: &mut dyn FnMut(Hint<'_>)) -> io::Result<()>;

    fn waker(&self) -> Waker;

    /// Watches that the kernel holds.
    fn count(&self) -> usize;
}

/// The kernel's own interface.
///
/// # Errors
/// It has none, or no more instances of it; the text names the remedy.
pub(super) fn kernel() -> io::Result<Box<dyn Source>> {
    #[cfg(target_os = "linux")]
    {
        Ok(Box::new(super::inotify::Inotify::new()?))
    }
    #[cfg(not(target_os = "linux"))]
    {
        Ok(Box::new(super::native::Native::new()?))
    }
}

/// Tells nothing: the source where everything is polled.
pub(super) struct Silent {
    thread: std::thread::Thread,
}

impl Silent {
    /// To be waited on by the calling thread.
    pub(super) fn new() -> Self {
        Self { thread: std::thread::current() }
    }
}

impl Source for Silent {
    fn watch(&mut self, _place: &Place, _dir: &Path) -> Result<(), Refusal> {
        Err(Refusal::Refused(String::new()))
    }

    fn unwatch(&mut self, _place: &Place) {}

    fn wait(&mut self, timeout: Option<Duration>, _sink: &mut dyn FnMut(Hint<'_>)) -> io::Result<()> {
        match timeout {
            Some(timeout) => std::thread::park_timeout(timeout),
            None => std::thread::park(),
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        let thread = self.thread.clone();
        Arc::new(move || thread.unpark())
    }

    fn count(&self) -> usize {
        0
    }
}
