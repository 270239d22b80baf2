//! Where a host meets the operating system: standard input and output as frames need them, what is measured (CPU,
//! memory), and what is given up before a handler runs. Everything that differs between systems is here.
//!
//! On Linux a host gives up: life beyond its parent, core dumps, descriptors other than 0-2, new privileges, all files
//! (Landlock), and all system calls but those that V8 and the memory allocator need (seccomp).
//! Landlock and seccomp are kept where the kernel has them; elsewhere the isolate itself is the wall.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

use std::io;
use std::time::{Duration, Instant};

#[cfg(not(unix))]
pub(super) use other::{In, Out, cpu_time, exit_now};
#[cfg(unix)]
pub(super) use unix::{In, Out, cpu_time, exit_now};

/// Waiting for input, for a time or for ever.
pub(super) trait Input {
    /// True when a read will not block (data, or the end).
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool>;
    /// Appends what there is; 0 is the end. Call it after [`Input::wait`] said true.
    fn read_into(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize>;
}

/// Resident memory of this process, now (or its peak, where the system tells only that).
pub(super) struct Memory {
    #[cfg(target_os = "linux")]
    statm: Option<std::fs::File>,
}

impl Memory {
    /// To be opened before [`enter`], which forbids opening.
    pub(super) fn open() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            statm: std::fs::File::open("/proc/self/statm").ok(),
        }
    }

    /// One number of `/proc/self/statm`, in bytes.
    #[cfg(target_os = "linux")]
    fn statm(&self, field: usize) -> Option<u64> {
        use std::os::unix::fs::FileExt;
        let mut text = [0u8; 128];
        let len = self.statm.as_ref()?.read_at(&mut text, 0).ok()?;
        let pages: u64 = std::str::from_utf8(&text[..len]).ok()?.split(' ').nth(field)?.parse().ok()?;
        Some(pages * page_size())
    }

    #[cfg(target_os = "linux")]
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        self.statm(1)
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        // SAFETY: getrusage fills the struct that it is given.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
                return None;
            }
            usage
        };
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        u64::try_from(usage.ru_maxrss).ok().map(|size| size * unit)
    }

    #[cfg(not(unix))]
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        None
    }
}

#[cfg(target_os = "linux")]
fn page_size() -> u64 {
    // SAFETY: sysconf reads a constant of the running system.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// First thing in a host: die with the daemon. The end of standard input says the same, a little later.
pub(super) fn tie_to_parent() {
    #[cfg(target_os = "linux")]
    // SAFETY: plain system calls on this process.
    unsafe {
        let parent = libc::getppid();
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(0);
        }
    }
}

/// Gives up all files. Call it when V8 is up and before any thread is started: it binds this thread and those it starts.
pub(super) fn leave_files() {
    #[cfg(target_os = "linux")]
    if let Err(error) = linux::forbid_files() {
        eprintln!("landlock is not in force: {error}");
    }
}

/// Gives up what else a host does not need. Call it when all threads are up.
///
/// `growth` caps private writable memory beyond what is mapped now, as a last wall behind the watchdog. Where that wall
/// makes an allocation fail whose caller can only abort, the process ends with `out_of_memory` as its exit code.
pub(super) fn enter(memory: &Memory, growth: u64, out_of_memory: i32) {
    #[cfg(unix)]
    unix::set_limits();
    #[cfg(target_os = "linux")]
    linux::enter(memory, growth, out_of_memory);
    #[cfg(not(target_os = "linux"))]
    let _ = (memory, growth, out_of_memory);
}
