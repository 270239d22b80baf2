//! Hints from inotify, by itself rather than through a portable layer: that one cannot leave out the events of opening
//! and writing, of which the ledgers beside the manifests make thousands a second, and it keys watches by path, which
//! loses the new folder when one is deleted and made again at once.
//!
//! Watches are keyed by the kernel's descriptor. The kernel does not reuse one, so a late event of a deleted folder
//! can never be taken for its successor's. Two places may be one folder (an app that is a link to its neighbour).
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::place::{Kind, Place};
use super::source::{Hint, Refusal, Source, Waker};

/// Names appearing, going, moving, and saves. Without `IN_MODIFY`: an app folder holds its ledger.
const LISTING: u32 = libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_MOVED_FROM
    | libc::IN_MOVED_TO
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_ONLYDIR
    // Two places may share a folder: the later one adds to what the first one wants.
    | libc::IN_MASK_ADD;
const FILES: u32 = LISTING | libc::IN_CLOSE_WRITE | libc::IN_ATTRIB;

fn mask_of(place: &Place) -> u32 {
    match place {
        Place::Root | Place::Automations(_) => LISTING,
        Place::App(_) | Place::Linked(..) => FILES,
        // A program that keeps the manifest open while it writes is noticed by its writing alone.
        Place::Entry(..) => FILES | libc::IN_MODIFY,
    }
}

/// Room for some hundred events per read; 8-byte units align the kernel's records.
const BUFFER_UNITS: usize = 8192;
/// A flood that never ends must not keep the worker from reading what is due.
const READS_PER_WAIT: usize = 32;
/// The kernel's record without its name: descriptor, mask, cookie, length of the name.
const RECORD_HEAD: usize = 16;

pub(super) struct Inotify {
    fd: OwnedFd,
    wake: Arc<OwnedFd>,
    places: HashMap<i32, Vec<Place>>,
    descriptors: HashMap<Place, i32>,
    buffer: Box<[u64; BUFFER_UNITS]>,
    /// What to say about the limit, once it was met: thousands of folders may meet it.
    watch_limit: Option<String>,
}

impl Inotify {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked and owned at once.
        let fd = owned(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) }).map_err(|error| {
            if error.raw_os_error() == Some(libc::EMFILE) {
                let limit = limit_text("max_user_instances");
                io::Error::other(format!(
                    "the kernel refuses another inotify instance (fs.inotify.max_user_instances = {limit}), so \
                     folders are polled; raise it with: sudo sysctl fs.inotify.max_user_instances=512"
                ))
            } else {
                error
            }
        })?;
        // SAFETY: as above.
        let wake = Arc::new(owned(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?);
        Ok(Self {
            fd,
            wake,
            places: HashMap::new(),
            descriptors: HashMap::new(),
            buffer: Box::new([0; BUFFER_UNITS]),
            watch_limit: None,
        })
    }

    fn forget(&mut self, place: &Place, descriptor: i32) {
        if let Some(places) = self.places.get_mut(&descriptor) {
            places.retain(|p| p != place);
            if places.is_empty() {
                self.places.remove(&descriptor);
                // SAFETY: plain integers. It fails when the folder is gone, and the watch with it.
                unsafe { libc::inotify_rm_watch(self.fd.as_raw_fd(), descriptor) };
            }
        }
    }

    /// Reads what is queued, once; false when there was nothing.
    fn drain(&mut self, sink: &mut dyn FnMut(Hint<'_>)) -> io::Result<bool> {
        // SAFETY: the buffer is owned, and its size is given in bytes.
        let read = unsafe {
            libc::read(self.fd.as_raw_fd(), self.buffer.as_mut_ptr().cast(), BUFFER_UNITS * size_of::<u64>())
        };
        let Ok(read) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(false),
                io::ErrorKind::Interrupted => Ok(true),
                _ => Err(error),
            };
        };
        // SAFETY: the kernel filled that many bytes of the buffer, and any byte pattern is a u8.
        let bytes = unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>(), read) };
        let mut rest = bytes;
        let mut ignored = Vec::new();
        while let Some((head, tail)) = rest.split_at_checked(RECORD_HEAD) {
            let word = |i: usize| u32::from_ne_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let (descriptor, mask, length) = (word(0).cast_signed(), word(4), word(12) as usize);
            let Some((name, next)) = tail.split_at_checked(length) else {
                break;
            };
            rest = next;
            let name = name.split(|&b| b == 0).next().filter(|n| !n.is_empty()).map(OsStr::from_bytes);
            if mask & libc::IN_Q_OVERFLOW != 0 {
                sink(Hint::Overflow);
                continue;
            }
            // Unknown: a late event of a watch that was given up.
            let Some(places) = self.places.get(&descriptor) else {
                continue;
            };
            if let Some(kind) = kind_of(mask) {
                places.iter().for_each(|place| sink(Hint::At { place, name, kind }));
            }
            if mask & libc::IN_IGNORED != 0 {
                ignored.push(descriptor);
            }
        }
        for descriptor in ignored {
            for place in self.places.remove(&descriptor).unwrap_or_default() {
                if self.descriptors.get(&place) == Some(&descriptor) {
                    self.descriptors.remove(&place);
                }
            }
        }
        Ok(read > 0)
    }
}

fn kind_of(mask: u32) -> Option<Kind> {
    if mask & (libc::IN_DELETE_SELF | libc::IN_MOVE_SELF | libc::IN_UNMOUNT | libc::IN_IGNORED) != 0 {
        Some(Kind::SelfGone)
    } else if mask & (libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO) != 0 {
        Some(Kind::Saved)
    } else if mask & libc::IN_MODIFY != 0 {
        Some(Kind::Writing)
    } else if mask & (libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_ATTRIB) != 0 {
        Some(Kind::Listed)
    } else {
        None
    }
}

impl Source for Inotify {
    fn watch(&mut self, place: &Place, dir: &Path) -> Result<(), Refusal> {
        let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else {
            return Err(Refusal::Gone);
        };
        // SAFETY: the path is a C string that outlives the call.
        let descriptor = unsafe { libc::inotify_add_watch(self.fd.as_raw_fd(), path.as_ptr(), mask_of(place)) };
        if descriptor < 0 {
            self.unwatch(place);
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::ENOSPC) => Refusal::Refused(self.watch_limit.get_or_insert_with(watch_limit_text).clone()),
                Some(libc::ENOENT | libc::ENOTDIR) => Refusal::Gone,
                _ => Refusal::Refused(format!(
                    "the kernel cannot watch {}, so it is polled: {error}; check its permissions and kind of file \
                     system with: stat -f {}",
                    dir.display(),
                    dir.display()
                )),
            });
        }
        match self.descriptors.insert(place.clone(), descriptor) {
            Some(former) if former == descriptor => return Ok(()),
            Some(former) => self.forget(place, former),
            None => {}
        }
        self.places.entry(descriptor).or_default().push(place.clone());
        Ok(())
    }

    fn unwatch(&mut self, place: &Place) {
        if let Some(descriptor) = self.descriptors.remove(place) {
            self.forget(place, descriptor);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>, sink: &mut dyn FnMut(Hint<'_>)) -> io::Result<()> {
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [entry(self.fd.as_raw_fd()), entry(self.wake.as_raw_fd())];
        let timeout = timeout.map(|t| libc::timespec {
            tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both descriptors are owned and open; array and time outlive the call.
        let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), 2, timeout, std::ptr::null()) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        if fds[1].revents != 0 {
            let mut count = 0u64;
            // SAFETY: an eventfd reads eight bytes, into eight bytes. An error means that it was empty.
            unsafe { libc::read(self.wake.as_raw_fd(), std::ptr::from_mut(&mut count).cast(), 8) };
        }
        if fds[0].revents != 0 {
            for _ in 0..READS_PER_WAIT {
                if !self.drain(sink)? {
                    break;
                }
            }
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        let wake = Arc::clone(&self.wake);
        Arc::new(move || {
            let one = 1u64;
            // SAFETY: an eventfd takes eight bytes, from eight bytes. It fails only when it is full, thus awake.
            unsafe { libc::write(wake.as_raw_fd(), std::ptr::from_ref(&one).cast(), 8) };
        })
    }

    fn count(&self) -> usize {
        self.places.len()
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made by the kernel, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn watch_limit_text() -> String {
    format!(
        "the kernel refuses more watches (fs.inotify.max_user_watches = {}), so the other folders are polled; raise \
         it with: sudo sysctl fs.inotify.max_user_watches=524288",
        limit_text("max_user_watches")
    )
}

fn limit_text(limit: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/fs/inotify/{limit}"))
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
