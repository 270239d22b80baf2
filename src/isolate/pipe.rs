//! Writing to a host. A frame is written at once, in the caller's own thread, when the pipe has room: no task has to
//! wake up between a reply and the handler that waits for it. What does not fit is queued, and a task writes it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::process::ChildStdin;
use tokio::sync::Notify;

/// Bytes that wait for a host to read. Bounded by what a run may have in flight, and by the host's own limits: one
/// that does not read is stopped by its watchdog or killed after an abort.
#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    broken: bool,
}

pub(super) struct HostPipe {
    queue: Mutex<Queue>,
    more: Notify,
    #[cfg(unix)]
    pipe: tokio::net::unix::pipe::Sender,
}

impl HostPipe {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// When the host is gone.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut queue = self.queue();
        if queue.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = if queue.bytes.is_empty() {
            match self.write_now(bytes) {
                Ok(written) => written,
                Err(error) => {
                    queue.broken = true;
                    return Err(error);
                }
            }
        } else {
            0
        };
        if written < bytes.len() {
            queue.bytes.extend_from_slice(&bytes[written..]);
            self.more.notify_one();
        }
        Ok(())
    }

    fn break_off(&self) {
        *self.queue() = Queue { bytes: Vec::new(), broken: true };
    }
}

#[cfg(unix)]
impl HostPipe {
    /// # Errors
    /// When the descriptor is not what it should be.
    pub(super) fn open(stdin: ChildStdin) -> io::Result<Arc<Self>> {
        let pipe = tokio::net::unix::pipe::Sender::from_owned_fd(stdin.into_owned_fd()?)?;
        Ok(Arc::new(Self { queue: Mutex::default(), more: Notify::new(), pipe }))
    }

    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match self.pipe.try_write(&bytes[written..]) {
                Ok(len) => written += len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Writes what is queued, for ever. To be run as a task of its own.
    pub(super) async fn pump(&self) {
        loop {
            self.more.notified().await;
            while !self.queue().bytes.is_empty() {
                if self.pipe.writable().await.is_err() {
                    return self.break_off();
                }
                let mut queue = self.queue();
                match self.write_now(&queue.bytes) {
                    Ok(written) => drop(queue.bytes.drain(..written)),
                    Err(_) => {
                        drop(queue);
                        return self.break_off();
                    }
                }
            }
        }
    }
}

#[cfg(not(unix))]
mod other {
    use tokio::io::AsyncWriteExt;

    use super::*;

    impl HostPipe {
        /// # Errors
        /// None here.
        pub(in super::super) fn open(stdin: ChildStdin) -> io::Result<Arc<Self>> {
            let pipe = Arc::new(Self { queue: Mutex::default(), more: Notify::new() });
            tokio::spawn(Self::write_all(Arc::downgrade(&pipe), stdin));
            Ok(pipe)
        }

        pub(super) fn write_now(&self, _: &[u8]) -> io::Result<usize> {
            Ok(0)
        }

        async fn write_all(pipe: std::sync::Weak<Self>, mut stdin: ChildStdin) {
            while let Some(pipe) = pipe.upgrade() {
                let bytes = std::mem::take(&mut pipe.queue().bytes);
                if bytes.is_empty() {
                    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), pipe.more.notified()).await;
                } else if stdin.write_all(&bytes).await.is_err() {
                    return pipe.break_off();
                }
            }
        }

        /// The writing is done by the task that [`Self::open`] started.
        pub(in super::super) async fn pump(&self) {
            std::future::pending::<()>().await;
        }
    }
}
