//! Standard input and output by `poll`, the CPU clock, and resource limits.

use super::*;

/// Standard input.
pub(in super::super) struct In;

impl In {
    pub(in super::super) fn open() -> Self {
        Self
    }
}

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
