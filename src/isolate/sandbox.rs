//! Where a host meets the operating system: standard input and output as frames need them, what is measured (CPU,
//! memory), and what is given up before a handler runs. Everything that differs between systems is here.
//!
//! On Linux a host gives up: life beyond its parent, core dumps, descriptors other than 0-2, new privileges, all files
//! (Landlock), and all system calls but those that V8 and the memory allocator need (seccomp).
//! Landlock and seccomp are kept where the kernel has them; elsewhere the isolate itself is the wall.

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

#[cfg(unix)]
mod unix {
    use super::*;

    /// Standard input.
    pub(in super::super) struct In;

    impl Input for In {
        fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
            poll(0, libc::POLLIN, timeout.map(|t| Instant::now() + t))
        }

        fn read_into(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
            const CHUNK: usize = 64 << 10;
            let start = bytes.len();
            bytes.resize(start + CHUNK, 0);
            // SAFETY: the pointer and length are of the room just made.
            let got = unsafe { libc::read(0, bytes[start..].as_mut_ptr().cast(), CHUNK) };
            bytes.truncate(start + usize::try_from(got).unwrap_or(0));
            if got < 0 {
                let error = io::Error::last_os_error();
                return if error.kind() == io::ErrorKind::Interrupted { self.read_into(bytes) } else { Err(error) };
            }
            Ok(bytes.len() - start)
        }
    }

    /// Standard output, non-blocking, so that the watchdog can give up on a daemon that does not read.
    pub(in super::super) struct Out;

    impl Out {
        pub(in super::super) fn open() -> Self {
            // SAFETY: fcntl on a descriptor that this process was started with.
            unsafe {
                let flags = libc::fcntl(1, libc::F_GETFL);
                if flags >= 0 {
                    libc::fcntl(1, libc::F_SETFL, flags | libc::O_NONBLOCK);
                }
            }
            Self
        }

        /// # Errors
        /// `TimedOut` past the deadline, with a part written.
        pub(in super::super) fn write_all(&mut self, mut bytes: &[u8], deadline: Option<Instant>) -> io::Result<()> {
            while !bytes.is_empty() {
                // SAFETY: pointer and length of a live slice.
                let put = unsafe { libc::write(1, bytes.as_ptr().cast(), bytes.len()) };
                if let Ok(put) = usize::try_from(put) {
                    bytes = &bytes[put..];
                    continue;
                }
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => {
                        if !poll(1, libc::POLLOUT, deadline)? {
                            return Err(io::ErrorKind::TimedOut.into());
                        }
                    }
                    _ => return Err(error),
                }
            }
            Ok(())
        }
    }

    fn poll(fd: libc::c_int, events: libc::c_short, deadline: Option<Instant>) -> io::Result<bool> {
        loop {
            // Rounded up, so that a timer is never looked at before its time.
            let timeout_ms = deadline.map_or(-1, |at| {
                let left = at.saturating_duration_since(Instant::now());
                libc::c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
            });
            let mut entry = libc::pollfd { fd, events, revents: 0 };
            // SAFETY: one valid entry.
            let ready = unsafe { libc::poll(&mut entry, 1, timeout_ms) };
            if ready >= 0 {
                return Ok(ready > 0);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// CPU time of all threads of this process.
    pub(in super::super) fn cpu_time() -> Duration {
        // SAFETY: clock_gettime fills the struct that it is given.
        let at = unsafe {
            let mut at: libc::timespec = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut at);
            at
        };
        Duration::new(u64::try_from(at.tv_sec).unwrap_or(0), u32::try_from(at.tv_nsec).unwrap_or(0))
    }

    /// Ends the process at once, whatever other threads are doing.
    pub(in super::super) fn exit_now(code: i32) -> ! {
        // SAFETY: _exit runs no handlers and does not return.
        unsafe { libc::_exit(code) }
    }

    pub(super) fn set_limits() {
        limit(libc::RLIMIT_CORE, 0);
        // Standard input, output and error, the open statm, and what a library may hold.
        limit(libc::RLIMIT_NOFILE, 16);
    }

    /// A refusal leaves the old limit.
    pub(super) fn limit(what: Resource, most: u64) {
        let most = libc::rlim_t::try_from(most).unwrap_or(libc::RLIM_INFINITY);
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: a valid struct.
        unsafe { libc::setrlimit(what, &limit) };
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    type Resource = libc::__rlimit_resource_t;
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    type Resource = libc::c_int;
}

#[cfg(not(unix))]
mod other {
    use std::io::{Read, Write};
    use std::sync::mpsc;

    use super::*;

    /// Standard input, read by a thread of its own, since a pipe cannot be waited for with a timeout here.
    pub(in super::super) struct In {
        chunks: mpsc::Receiver<Vec<u8>>,
        next: Option<Vec<u8>>,
        ended: bool,
    }

    impl In {
        pub(in super::super) fn open() -> Self {
            let (send, chunks) = mpsc::sync_channel(16);
            std::thread::spawn(move || {
                let mut input = io::stdin().lock();
                let mut chunk = vec![0; 64 << 10];
                while let Ok(len @ 1..) = input.read(&mut chunk) {
                    if send.send(chunk[..len].to_vec()).is_err() {
                        return;
                    }
                }
            });
            Self { chunks, next: None, ended: false }
        }
    }

    impl Input for In {
        fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
            if self.next.is_some() || self.ended {
                return Ok(true);
            }
            let got = match timeout {
                None => self.chunks.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                Some(timeout) => self.chunks.recv_timeout(timeout),
            };
            match got {
                Ok(chunk) => self.next = Some(chunk),
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
                Err(mpsc::RecvTimeoutError::Disconnected) => self.ended = true,
            }
            Ok(true)
        }

        fn read_into(&mut self, bytes: &mut Vec<u8>) -> io::Result<usize> {
            let chunk = self.next.take().unwrap_or_default();
            bytes.extend_from_slice(&chunk);
            Ok(chunk.len())
        }
    }

    pub(in super::super) struct Out;

    impl Out {
        pub(in super::super) fn open() -> Self {
            Self
        }

        pub(in super::super) fn write_all(&mut self, bytes: &[u8], _deadline: Option<Instant>) -> io::Result<()> {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
    }

    /// Without a portable clock of CPU time, the time since the first call stands for it: never less than the truth
    /// for one busy thread.
    pub(in super::super) fn cpu_time() -> Duration {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }

    pub(in super::super) fn exit_now(code: i32) -> ! {
        std::process::exit(code)
    }
}

#[cfg(unix)]
impl In {
    pub(super) fn open() -> Self {
        Self
    }
}

#[cfg(target_os = "linux")]
mod linux {
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
        let to_itself =
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(std::process::id()))?;
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
}
