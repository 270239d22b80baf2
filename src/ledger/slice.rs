//! A short scheduler slice for a writer thread, where the kernel has it.
//!
//! A writer sleeps in `fdatasync` and wakes for microseconds of work. With every core busy, it would wait for the
//! running thread's slice to end (about 4 ms a commit). Asking EEVDF for a short slice of its own (Linux 6.12 and
//! later, no privilege) brings its deadline forward and the commit back to 0.1 ms. Where that is refused or unknown,
//! nothing is lost but this.

/// The shortest slice that the kernel grants.
#[cfg(target_os = "linux")]
const SLICE_NS: u64 = 100_000;

/// Asks for a short slice for the calling thread. Fails soft.
#[cfg(target_os = "linux")]
pub(super) fn shorten_own() {
    let size = std::mem::size_of::<libc::sched_attr>();
    // SAFETY: `sched_attr` is plain integers, for which zero is a value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes into `attr`, which is that large and outlives the call.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) };
    // Another policy (a real-time one set from outside) is somebody's decision, and is left alone.
    if got != 0 || attr.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attr.size = u32::try_from(size).unwrap_or(0);
    attr.sched_runtime = SLICE_NS;
    // SAFETY: the kernel only reads `attr`, whose size it is told.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if set != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "no short scheduler slice for the ledger's writer");
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn shorten_own() {}
