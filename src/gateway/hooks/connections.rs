//! The connections of the hook listener: a bounded number of them, none of which can be held by doing nothing.
//!
//! Each is in a *phase*: its next request's head is arriving, it is idle between requests, a body is arriving, its
//! request is being worked on, or it waits for a run's end. Heads and bodies have their time, and an idle connection a
//! longer one. When all places are taken, a newcomer gets one from a *stranger*, a connection on which no post has shown
//! its secret: from one that is idle, else from the one whose head or body has been arriving longest. A caller who sends
//! its post at once is through before its turn comes, however many others do not. After the strangers come known callers
//! who trickle or have been idle for a while. Only where strangers are few, because it is known callers who crowd, the
//! post that has waited longest for its run is answered now; its run goes on.
//!
//! A client that is answered before its body was read is told that the connection ends with that; and it would lose the
//! answer to a reset, so the connection is closed in two steps, ours first, and what still comes is thrown away for a
//! moment.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What a head may take; of a body as much is held at once.
const BUFFER_BYTES: usize = 32 * 1024;
/// For so long, and so many bytes, what a client still sends is thrown away after its answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;
/// A stranger's head or body has this time before it may be sent away: most good ones need a hundredth of it.
const FRESH: Duration = Duration::from_millis(250);
/// The same for known callers, and how long they are left idle.
const TRICKLES: Duration = Duration::from_secs(1);
/// Strangers are few when they hold less than one place in so many.
const FEW: usize = 4;
/// When every place is taken, it is looked again for one so often.
const FULL_PAUSE: Duration = Duration::from_millis(20);
/// After an error of the listener itself, such as no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A body that is late is answered by whoever reads it; this is for answers that cannot be written.
const SLACK: Duration = Duration::from_secs(5);

/// How many connections, and how long each phase may last.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub open: usize,
    pub head: Duration,
    pub body: Duration,
    pub idle: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { open: 512, head: Duration::from_secs(5), body: Duration::from_secs(15), idle: Duration::from_secs(60) }
    }
}

/// What a connection is at. See the module text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Head,
    Body,
    /// For a run's end.
    Waiting,
    /// Soon done.
    Working,
}

impl Phase {
    /// Who is given up first when a place is needed; `None` for those who are not. `crowded`: by known callers.
    fn rank(self, lasts: Duration, known: bool, crowded: bool) -> Option<u8> {
        match (self, known) {
            (Self::Idle, false) => Some(0),
            (Self::Head | Self::Body, false) if lasts >= FRESH => Some(1),
            (Self::Idle | Self::Head | Self::Body, true) if lasts >= TRICKLES => Some(2),
            (Self::Waiting, _) if crowded => Some(3),
            (Self::Idle, true) if crowded => Some(4),
            _ => None,
        }
    }

    /// Its client has not sent the next request whole.
    fn is_arriving(self) -> bool {
        matches!(self, Self::Idle | Self::Head | Self::Body)
    }
}

/// One connection, as the others see it.
#[derive(Debug)]
pub struct Slot {
    phase: Mutex<(Phase, Instant)>,
    leave: Notify,
    hurry: Notify,
    /// It was sent away, or hurried.
    told: AtomicBool,
    known: AtomicBool,
    /// There is more of the request's body than was read.
    unread: AtomicBool,
}

impl Slot {
    fn new() -> Self {
        Self {
            phase: Mutex::new((Phase::Head, Instant::now())),
            leave: Notify::new(),
            hurry: Notify::new(),
            told: AtomicBool::new(false),
            known: AtomicBool::new(false),
            unread: AtomicBool::new(false),
        }
    }

    pub fn enter(&self, phase: Phase) {
        *self.lock() = (phase, Instant::now());
    }

    /// A post on this connection has shown its secret.
    pub fn note_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Returns when this connection is to be answered now, because its place or the daemon is needed no longer.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, (Phase, Instant)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes have come: an idle connection begins its next request.
    fn note_bytes(&self) {
        let mut phase = self.lock();
        if phase.0 == Phase::Idle {
            *phase = (Phase::Head, Instant::now());
        }
    }

    fn deadline(&self, bounds: &Bounds) -> Option<Instant> {
        let (phase, since) = *self.lock();
        match phase {
            Phase::Idle => Some(since + bounds.idle),
            Phase::Head => Some(since + bounds.head),
            Phase::Body => Some(since + bounds.body + SLACK),
            Phase::Waiting | Phase::Working => None,
        }
    }
}

/// All connections.
#[derive(Debug, Default)]
struct Table {
    slots: Mutex<HashMap<u64, Arc<Slot>>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the one away that can best be spared, if there is one that has not been told already.
    fn make_room(&self) {
        let now = Instant::now();
        let slots = self.lock();
        let strangers = slots.values().filter(|slot| !slot.known.load(Ordering::Relaxed)).count();
        let crowded = strangers * FEW < slots.len();
        let candidates = slots.values().filter(|slot| !slot.told.load(Ordering::Relaxed)).filter_map(|slot| {
            let (phase, since) = *slot.lock();
            let known = slot.known.load(Ordering::Relaxed);
            Some((phase.rank(now - since, known, crowded)?, since, phase, slot))
        });
        let Some((_, _, phase, slot)) = candidates.min_by_key(|(rank, since, ..)| (*rank, *since)) else { return };
        slot.told.store(true, Ordering::Relaxed);
        if phase.is_arriving() {
            slot.leave.notify_one();
        } else {
            slot.hurry.notify_one();
        }
    }
}

/// Accepts connections until `shutdown` is true, and returns when the last one is done. From then on nobody waits for a
/// run any more.
pub async fn serve<F, A>(listener: TcpListener, bounds: Bounds, mut shutdown: watch::Receiver<bool>, answer: F)
where
    F: Fn(Request<Tracked>, Arc<Slot>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let table = Arc::new(Table::default());
    let places = Arc::new(Semaphore::new(bounds.open));
    let mut number = 0_u64;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|told| *told) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "the hook listener could not take a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = tokio::select! {
            place = find_place(&table, &places) => place,
            _ = shutdown.wait_for(|told| *told) => break,
        };
        number += 1;
        let slot = Arc::new(Slot::new());
        table.lock().insert(number, Arc::clone(&slot));
        let seat = Seat { table: Arc::clone(&table), number, _place: place };
        let (answer, shutdown) = (answer.clone(), shutdown.clone());
        tokio::spawn(async move {
            // Nagle would hold back the last part of an answer.
            let _ = stream.set_nodelay(true);
            converse(stream, &slot, bounds, shutdown, answer).await;
            drop(seat);
        });
    }
    drop(listener);
    for slot in table.lock().values() {
        slot.hurry.notify_one();
    }
    let all = u32::try_from(bounds.open).unwrap_or(u32::MAX);
    // It is never closed.
    let _ = places.acquire_many(all).await;
}

async fn find_place(table: &Table, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(place) = Arc::clone(places).try_acquire_owned() {
        return Some(place);
    }
    loop {
        table.make_room();
        if let Ok(place) = timeout(FULL_PAUSE, Arc::clone(places).acquire_owned()).await {
            return place.ok();
        }
    }
}

/// A place among the connections, given back when the task ends, however it ends.
struct Seat {
    table: Arc<Table>,
    number: u64,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.table.lock().remove(&self.number);
    }
}

async fn converse<F, A>(
    stream: TcpStream,
    slot: &Arc<Slot>,
    bounds: Bounds,
    mut shutdown: watch::Receiver<bool>,
    answer: F,
) where
    F: Fn(Request<Tracked>, Arc<Slot>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        slot.enter(Phase::Working);
        let request = request.map(|body| Tracked::new(body, slot));
        let (answer, slot) = (answer.clone(), Arc::clone(slot));
        Box::pin(async move {
            let mut response = answer(request, Arc::clone(&slot)).await;
            slot.enter(Phase::Idle);
            if slot.told.load(Ordering::Relaxed) || slot.unread.load(Ordering::Relaxed) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut builder = http1::Builder::new();
    // The deadlines are those of the phases.
    builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER_BYTES);
    let mut connection = builder.serve_connection(TokioIo::new(Watched { stream, slot: Arc::clone(slot) }), service);
    let alarm = sleep(bounds.head);
    tokio::pin!(alarm);
    let mut leaving = false;
    loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
                return Poll::Ready(Some(ended));
            }
            let Some(deadline) = slot.deadline(&bounds) else { return Poll::Pending };
            if alarm.deadline() != deadline {
                alarm.as_mut().reset(deadline);
            }
            alarm.as_mut().poll(cx).map(|()| None)
        });
        tokio::select! {
            ended = step => match ended {
                Some(Ok(())) => break,
                // It broke, or its time is over.
                Some(Err(_)) | None => return,
            },
            () = slot.leave.notified() => {
                if slot.lock().0.is_arriving() {
                    return;
                }
                // Its request was whole in the meantime.
                slot.told.store(false, Ordering::Relaxed);
            }
            _ = shutdown.wait_for(|told| *told), if !leaving => {
                leaving = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    }
    slot.enter(Phase::Idle);
    let mut io = connection.into_parts().io.into_inner();
    tokio::select! {
        () = linger(&mut io) => {}
        () = sleep_until(Instant::now() + LINGER) => {}
        () = slot.leave.notified() => {}
    }
}

async fn linger(io: &mut Watched) {
    let mut left = LINGER_BYTES;
    let mut sink = vec![0; 4096];
    if io.shutdown().await.is_err() {
        return;
    }
    while let Ok(read) = io.read(&mut sink).await
        && read > 0
        && read < left
    {
        left -= read;
    }
}

/// A request's body, which tells its slot whether it was read whole.
pub struct Tracked {
    body: Incoming,
    slot: Arc<Slot>,
}

impl Tracked {
    fn new(body: Incoming, slot: &Arc<Slot>) -> Self {
        slot.unread.store(!body.is_end_stream(), Ordering::Relaxed);
        Self { body, slot: Arc::clone(slot) }
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.slot.unread.store(false, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The socket, which tells its slot when bytes come.
struct Watched {
    stream: TcpStream,
    slot: Arc<Slot>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.slot.note_bytes();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is sent away, in turn; and that the rest is left alone.
    fn check(in_order: &[(Phase, Duration, bool)], left: &[(Phase, Duration, bool)]) {
        let table = Table::default();
        let mut slots = Vec::new();
        for (number, (phase, lasts, known)) in (0..).zip(in_order.iter().chain(left)) {
            let slot = Arc::new(Slot::new());
            *slot.lock() = (*phase, Instant::now().checked_sub(*lasts).unwrap());
            slot.known.store(*known, Ordering::Relaxed);
            table.lock().insert(number, Arc::clone(&slot));
            slots.push(slot);
        }
        let told = || slots.iter().filter(|slot| slot.told.load(Ordering::Relaxed)).count();
        for (turn, case) in in_order.iter().enumerate() {
            table.make_room();
            assert!(slots[turn].told.load(Ordering::Relaxed) && told() == turn + 1, "{turn}: {case:?}");
        }
        table.make_room();
        assert_eq!(told(), in_order.len(), "of those who are left alone");
    }

    #[test]
    fn strangers_who_do_nothing_go_first_and_work_is_never_cut() {
        let (young, old) = (Duration::from_millis(10), Duration::from_secs(2));
        check(
            &[
                (Phase::Idle, old, false),
                (Phase::Idle, young, false),
                (Phase::Body, 2 * old, false),
                (Phase::Head, old, false),
                (Phase::Head, FRESH, false),
                (Phase::Idle, 3 * old, true),
                (Phase::Head, 2 * old, true),
            ],
            &[
                (Phase::Head, young, false),
                (Phase::Idle, young, true),
                (Phase::Body, young, true),
                (Phase::Waiting, old, true),
                (Phase::Working, old, true),
                (Phase::Working, old, false),
            ],
        );
    }

    #[test]
    fn known_callers_make_room_for_one_another() {
        let (young, old) = (Duration::from_millis(10), Duration::from_secs(2));
        check(
            &[
                (Phase::Idle, old, true),
                (Phase::Waiting, 2 * old, true),
                (Phase::Waiting, young, true),
                (Phase::Idle, young, true),
            ],
            &[(Phase::Head, young, false), (Phase::Body, young, true), (Phase::Working, old, true)],
        );
    }
}
