//! What only Linux can forbid: files (Landlock) and system calls (seccomp).

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

pub(super) fn enter(memory: &super::Memory, growth: u64, out_of_memory: i32) {
    limit_data(memory, growth, out_of_memory);
    // The one descriptor to spare beside the standard ones.
    let kept = memory.statm.as_ref().map_or(2, |file| file.as_raw_fd().unsigned_abs());
    // SAFETY: plain system calls on this process, in which nothing else holds a descriptor.
    unsafe {
        if kept > 3 {
            libc::syscall(libc::SYS_close_range, 3, kept - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, kept + 1, libc::c_uint::MAX, 0);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    if let Err(error) = only_allowed_calls().and_then(|program| seccompiler::apply_filter_all_threads(&program)) {
        eprintln!("seccomp is not in force: {error}");
    }
}

static STATM: AtomicI32 = AtomicI32::new(-1);
static MANY_PAGES: AtomicU64 = AtomicU64::new(u64::MAX);
static OUT_OF_MEMORY: AtomicI32 = AtomicI32::new(0);

/// What is mapped as data now is mostly V8's reservations, and depends on its version: only growth is limited.
fn limit_data(memory: &super::Memory, growth: u64, out_of_memory: i32) {
    let (Some(statm), Some(now)) = (&memory.statm, memory.statm(5)) else { return };
    super::unix::limit(libc::RLIMIT_DATA, now + growth);
    STATM.store(statm.as_raw_fd(), Ordering::SeqCst);
    // A container that doubles fails when it holds a third of what there is.
    MANY_PAGES.store((now + growth / 4) / super::page_size(), Ordering::SeqCst);
    OUT_OF_MEMORY.store(out_of_memory, Ordering::SeqCst);
    // Code that cannot report a failed allocation (V8's own containers) calls `abort` without a word.
    // SAFETY: the handler does nothing but read a file, count, and end the process.
    unsafe { libc::signal(libc::SIGABRT, on_abort as *const () as libc::sighandler_t) };
}

/// Returns when memory is not the reason; `abort` then ends the process as it always does.
extern "C" fn on_abort(_: libc::c_int) {
    let mut text = [0u8; 128];
    // SAFETY: pread fills the buffer that it is given.
    let len = unsafe { libc::pread(STATM.load(Ordering::SeqCst), text.as_mut_ptr().cast(), text.len(), 0) };
    let text = &text[..usize::try_from(len).unwrap_or(0)];
    // The sixth number: pages of data and stack.
    let data = text.split(|&byte| byte == b' ').nth(5).unwrap_or_default();
    let pages = data.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit.wrapping_sub(b'0') % 10));
    if pages > MANY_PAGES.load(Ordering::SeqCst) {
        super::exit_now(OUT_OF_MEMORY.load(Ordering::SeqCst));
    }
}

/// A ruleset that handles every kind of access and allows none.
pub(super) fn forbid_files() -> Result<RulesetStatus, landlock::RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// What V8, the allocator, the standard library's locks and the two pipes need once everything is up. Anything
/// else fails with EPERM, as if the system did not have it.
const ALLOWED: &[libc::c_long] = &[
    // Pipes.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_ppoll,
    libc::SYS_close,
    libc::SYS_fcntl,
    // Memory. mprotect and the pkey calls are how V8 guards its compiled code.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_pkey_mprotect,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads, locks and time.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    // Ending, also by abort().
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

fn only_allowed_calls() -> Result<BpfProgram, seccompiler::Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|&call| (call, vec![])).collect();
    // For abort() alone: no signals to anybody else.
    let to_itself = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(std::process::id()))?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![to_itself])?]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind::PermissionDenied;

    use super::*;

    /// Both walls bind the thread that puts them up, so a thread of its own is enough to see them.
    fn in_a_thread(check: impl FnOnce() + Send + 'static) {
        std::thread::spawn(check).join().expect("the checks hold");
    }

    #[test]
    fn no_file_can_be_opened() {
        in_a_thread(|| {
            let status = forbid_files().expect("a ruleset");
            if status != RulesetStatus::NotEnforced {
                for path in ["/etc/passwd", "/", "/proc/self/environ", "/dev/null"] {
                    assert_eq!(File::open(path).expect_err(path).kind(), PermissionDenied, "{path}");
                }
                assert_eq!(File::create("/tmp/x").expect_err("no").kind(), PermissionDenied);
            }
        });
    }

    #[test]
    fn no_call_but_the_allowed_ones_works() {
        let me = std::process::id();
        let parent = std::os::unix::process::parent_id();
        in_a_thread(move || {
            let program = only_allowed_calls().expect("a filter");
            if seccompiler::apply_filter(&program).is_err() {
                return;
            }
            let refused = |error: std::io::Error| assert_eq!(error.kind(), PermissionDenied, "{error}");
            refused(File::open("/dev/null").expect_err("open"));
            refused(std::net::UdpSocket::bind("127.0.0.1:0").expect_err("socket"));
            refused(std::process::Command::new("/bin/true").spawn().expect_err("spawn"));
            refused(std::thread::Builder::new().spawn(|| {}).expect_err("thread"));
            // SAFETY: signal 0 only asks whether a signal could be sent.
            let signal = |pid: u32| unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) };
            assert_eq!((signal(me), signal(parent)), (0, -1));
            // What a host does all the time.
            let text = vec![b'x'; 8 << 20];
            assert_eq!(text.len(), 8 << 20);
            assert!(super::super::cpu_time() > std::time::Duration::ZERO);
        });
    }
}
