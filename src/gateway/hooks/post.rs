//! One post to a webhook, from its slug to its answer.
//!
//! In this order: the slug's automation, the secret or signature, the count, the body, the delivery's id, the fire, the
//! wait. Whoever does not hold the secret gets no further than that, and leaves nothing behind.
//!
//! A post that is dropped by its client stops waiting; what it has started goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Method, Request};
use hyper::body::Bytes;
use secrecy::ExposeSecret;
use tokio::sync::broadcast::error::RecvError;

use crate::config;
use crate::core::manifest::{SecretRef, Verify, is_slug};
use crate::core::{Answer as CoreAnswer, FireRequest, Skip, State};
use crate::daemon::{Daemon, Expected, HookRoute, RunHappening};
use crate::fire::{AppId, EpochMs, RunId, RunStatus, TriggerInfo, TriggerOrigin};
use crate::ledger::Delivery;

use super::answer::{Answer, NotRun};
use super::connections::{Phase, Slot, Tracked};
use super::deliveries::{Turns, delivery_id};
use super::payload::{self, Unread, input_of};
use super::rate::RateLimit;
use super::secret;
use super::signature::Signed;
use super::{HEALTH, PATH};

/// A secret that cannot be read is told in the log once in so long: strangers may knock as often as they like.
const WARN_EVERY_MS: i64 = 60_000;

const CANNOT_RECORD: &str = "the run cannot be recorded now";
const STOPPING: &str = "the daemon is stopping";
const BAD_WAIT: &str = "wait is a number of seconds, from 0 to 60";
const BROKEN_BODY: &str = "the body could not be read";

/// What all posts share.
pub struct Hooks {
    daemon: Daemon,
    settings: config::Hooks,
    body_time: Duration,
    rate: RateLimit,
    turns: Turns,
    warned_at: AtomicI64,
}

/// How a fire was taken.
enum Admitted {
    /// By the run of this post.
    Fired {
        run: RunId,
        status: RunStatus,
        end: Expected,
    },
    /// By an earlier post of the same delivery.
    Before {
        delivery: Key,
        first: Delivery,
    },
    Not(Answer),
}

impl Hooks {
    pub fn new(daemon: Daemon, settings: config::Hooks, body_time: Duration) -> Self {
        let rate = RateLimit::new(settings.posts_per_minute);
        Self { daemon, settings, body_time, rate, turns: Turns::default(), warned_at: AtomicI64::new(i64::MIN) }
    }

    pub async fn answer(self: Arc<Self>, request: Request<Tracked>, slot: Arc<Slot>) -> Answer {
        let path = request.uri().path();
        if path == HEALTH {
            return match *request.method() {
                Method::GET | Method::HEAD => Answer::Healthy,
                _ => Answer::MethodNotAllowed { allow: "GET, HEAD" },
            };
        }
        let Some(slug) = path.strip_prefix(PATH) else { return Answer::NotFound };
        if request.method() != Method::POST {
            return Answer::MethodNotAllowed { allow: "POST" };
        }
        if !is_slug(slug) {
            return Answer::NotFound;
        }
        let slug = slug.to_owned();
        self.post(slug, request, &slot).await.unwrap_or_else(|answer| answer)
    }

    async fn post(self: Arc<Self>, slug: String, request: Request<Tracked>, slot: &Slot) -> Result<Answer, Answer> {
        let (parts, body) = request.into_parts();
        let Some(route) = self.daemon.services().hook_routes.get(&slug) else {
            // As much work as for one that there is.
            secret::is_presented(&parts.headers, None);
            return Err(Answer::NotFound);
        };
        let now = self.daemon.services().clock.now_ms();
        let count = || self.rate.count(&slug, now).map_err(|retry_after_s| Answer::TooMany { retry_after_s });
        let (body, signed_id) = match &route.webhook.verify {
            None => {
                if !secret::is_presented(&parts.headers, route.webhook.secret_sha256.as_ref()) {
                    return Err(Answer::Unauthorized);
                }
                count()?;
                (self.read(body, slot).await?, None)
            }
            Some(verify) => {
                let signed = Signed::read(verify, &parts.headers, now.div_euclid(1000)).ok_or(Answer::Unauthorized)?;
                let body = self.read(body, slot).await?;
                if !self.holds(&route, verify, &signed, &body, now).await {
                    return Err(Answer::Unauthorized);
                }
                count()?;
                (body, signed.delivery_id)
            }
        };
        slot.note_known();
        let wait = self.wait_of(&parts)?;
        let input_json = input_of(&body);
        let most = self.daemon.services().limits.value_bytes;
        if input_json.as_ref().is_some_and(|input| input.len() as u64 > most) {
            return Err(Answer::TooLarge { most: usize::try_from(most).unwrap_or(usize::MAX) });
        }
        let skip = (!passes_filter(&route, input_json.as_deref()).await?).then_some(Skip::Filter);
        let delivery_id = delivery_id(&parts.headers, signed_id.as_deref());
        let request = FireRequest {
            trigger: TriggerInfo { slug: Some(slug), delivery_id, ..TriggerInfo::default() },
            input_json,
            synced: true,
            skip,
            ..FireRequest::new(route.handle.clone(), TriggerOrigin::Webhook)
        };
        Ok(match Arc::clone(&self).admit(request, route.manifest.enabled).await {
            Admitted::Fired { run, status, end } => self.follow(run, status, end, wait, slot).await,
            Admitted::Before { delivery, first } => self.repeat(&delivery, first, wait, slot).await,
            Admitted::Not(answer) => answer,
        })
    }

    async fn read(&self, body: Tracked, slot: &Slot) -> Result<Bytes, Answer> {
        let most = self.settings.body_bytes;
        slot.enter(Phase::Body);
        let read = tokio::time::timeout(self.body_time, payload::read(body, most)).await;
        slot.enter(Phase::Working);
        match read {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(Unread::TooLarge)) => Err(Answer::TooLarge { most }),
            Ok(Err(Unread::Broken)) => Err(Answer::BadRequest(BROKEN_BODY)),
            Err(_) => Err(Answer::TooSlow),
        }
    }

    /// Whether the signature was made with one of the secrets that the manifest points to.
    async fn holds(&self, route: &HookRoute, verify: &Verify, signed: &Signed, body: &[u8], now: EpochMs) -> bool {
        let secrets = match &verify.secret_ref {
            SecretRef::Env(_) => secret::read(&verify.secret_ref, None),
            SecretRef::File(_) => {
                let app_dir = self.daemon.services().folders.code(&route.handle.app);
                let secret_ref = verify.secret_ref.clone();
                let reading = tokio::task::spawn_blocking(move || secret::read(&secret_ref, app_dir.as_deref()));
                let Ok(read) = reading.await else { return false };
                read
            }
        };
        let mut held = false;
        match secrets {
            Ok(secrets) => {
                for key in &secrets {
                    match signed.holds(key.expose_secret(), body) {
                        Ok(holds) => held |= holds,
                        Err(bad) => self.warn(route, &bad, now),
                    }
                }
            }
            Err(error) => self.warn(route, &error, now),
        }
        held
    }

    fn warn(&self, route: &HookRoute, why: &dyn std::fmt::Display, now: EpochMs) {
        let last = self.warned_at.load(Ordering::Relaxed);
        if now.saturating_sub(last) >= WARN_EVERY_MS
            && self.warned_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            tracing::warn!("{}: no post can be verified, because its secret cannot be used: {why}", route.handle);
        }
    }

    fn wait_of(&self, parts: &Parts) -> Result<Duration, Answer> {
        if asks_for_no_wait(&parts.headers) {
            return Ok(Duration::ZERO);
        }
        let query = parts.uri.query().unwrap_or_default();
        let asked = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "wait");
        let seconds = match asked {
            Some((_, text)) => text.parse().map_err(|_| Answer::BadRequest(BAD_WAIT))?,
            None => self.settings.wait_s,
        };
        if !(0.0..=config::Hooks::MAX_WAIT_S).contains(&seconds) {
            return Err(Answer::BadRequest(BAD_WAIT));
        }
        Ok(Duration::from_secs_f64(seconds))
    }

    /// Has the post's row written, unless its delivery has one.
    async fn admit(self: Arc<Self>, request: FireRequest, enabled: bool) -> Admitted {
        let Some(delivery) = Key::of(&request) else {
            return if enabled { self.fire(request).await } else { Admitted::Not(Answer::NotRun(NotRun::Disabled)) };
        };
        // In a task of its own: the turn must last until the row is written, also when the client has gone.
        let admitting = tokio::spawn(async move {
            let _turn = self.turns.wait(&delivery.slug, &delivery.id).await;
            match self.first(&delivery).await {
                Err(answer) => Admitted::Not(answer),
                Ok(Some(first)) => Admitted::Before { delivery, first },
                Ok(None) if !enabled => Admitted::Not(Answer::NotRun(NotRun::Disabled)),
                Ok(None) => self.fire(request).await,
            }
        });
        admitting.await.unwrap_or(Admitted::Not(Answer::Unavailable(STOPPING)))
    }

    /// The run that took a delivery before.
    async fn first(&self, delivery: &Key) -> Result<Option<Delivery>, Answer> {
        let Key { app, slug, id } = delivery;
        let services = self.daemon.services();
        services.ledgers.delivery(app, slug, id, services.clock.now_ms()).await.map_err(|error| {
            tracing::warn!(%app, %error, "its deliveries cannot be looked up");
            Answer::Unavailable(CANNOT_RECORD)
        })
    }

    async fn fire(&self, request: FireRequest) -> Admitted {
        let (handle, delivery) = (request.handle.clone(), Key::of(&request));
        let (answer, end) = self.daemon.fire_and_follow(request).await;
        Admitted::Not(match answer {
            CoreAnswer::Accepted { run, status } => return Admitted::Fired { run, status, end },
            CoreAnswer::Redelivered { run } => {
                if let Some(delivery) = delivery
                    && let Ok(Some(first)) = self.first(&delivery).await
                {
                    return Admitted::Before { delivery, first };
                }
                Answer::Accepted { status: self.status_of(&run).await, run }
            }
            CoreAnswer::Skipped { .. } => Answer::NotRun(NotRun::Filter),
            CoreAnswer::Busy { active } => Answer::Busy { run: active },
            // It went since its route was looked up.
            CoreAnswer::Unknown | CoreAnswer::Unrunnable { .. } => Answer::NotFound,
            CoreAnswer::NotRecorded { message } => {
                tracing::warn!("{handle}: a post was not recorded: {message}");
                Answer::Unavailable(CANNOT_RECORD)
            }
            _ => Answer::Unavailable(STOPPING),
        })
    }

    /// Waits for the end of the run that this post has started.
    async fn follow(&self, run: RunId, status: RunStatus, end: Expected, wait: Duration, slot: &Slot) -> Answer {
        if !wait.is_zero() {
            slot.enter(Phase::Waiting);
            tokio::select! {
                end = end => if let Ok(CoreAnswer::Ended(end)) = end {
                    return Answer::ended(run, end);
                },
                () = tokio::time::sleep(wait) => {}
                () = slot.hurried() => {}
            }
            slot.enter(Phase::Working);
        }
        let status = match status {
            // It may have begun meanwhile.
            RunStatus::Queued if !wait.is_zero() => self.status_of(&run).await,
            status => status,
        };
        Answer::Accepted { run, status }
    }

    /// Answers as the first post of this delivery would be answered now.
    async fn repeat(&self, delivery: &Key, first: Delivery, wait: Duration, slot: &Slot) -> Answer {
        let run = first.run_id.clone();
        if let Some(answer) = concluded(first) {
            return answer;
        }
        if !wait.is_zero() {
            slot.enter(Phase::Waiting);
            tokio::select! {
                answer = self.until_ended(delivery, &run) => return answer,
                () = tokio::time::sleep(wait) => {}
                () = slot.hurried() => {}
            }
            slot.enter(Phase::Working);
        }
        Answer::Accepted { status: self.status_of(&run).await, run }
    }

    async fn until_ended(&self, delivery: &Key, run: &RunId) -> Answer {
        loop {
            // Listen first, then look: so no end falls between the two.
            let mut events = self.daemon.services().bus.runs();
            if let Ok(Some(found)) = self.first(delivery).await
                && let Some(answer) = concluded(found)
            {
                return answer;
            }
            loop {
                match events.recv().await {
                    Ok(event) if event.run_id == *run => {
                        if let RunHappening::Ended { status, summary, error, .. } = &event.what {
                            let (summary, error) = (summary.clone(), error.clone());
                            return Answer::Ended { run: run.clone(), status: *status, summary, error };
                        }
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => break,
                    // The daemon is gone; whoever waits for this waits no longer than it said.
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        }
    }

    /// What an open run does now.
    async fn status_of(&self, run: &RunId) -> RunStatus {
        let run = run.clone();
        let look = move |state: &mut State| state.open_runs().any(|open| open.run == run && open.active);
        match self.daemon.look(look).await {
            Some(true) => RunStatus::Running,
            _ => RunStatus::Queued,
        }
    }
}

/// A delivery: whose it is, and the sender's id of it.
#[derive(Debug, Clone)]
struct Key {
    app: AppId,
    slug: String,
    id: String,
}

impl Key {
    fn of(request: &FireRequest) -> Option<Self> {
        let TriggerInfo { slug, delivery_id, .. } = &request.trigger;
        Some(Self { app: request.handle.app.clone(), slug: slug.clone()?, id: delivery_id.clone()? })
    }
}

/// The answer that an ended run gives.
fn concluded(first: Delivery) -> Option<Answer> {
    let Delivery { run_id, status, summary, error, .. } = first;
    Some(Answer::Ended { run: run_id, status: status?, summary, error })
}

/// `Prefer: respond-async`
fn asks_for_no_wait(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split([',', ';'])).any(|word| word.trim().eq_ignore_ascii_case("respond-async"))
}

/// Whether the webhook's filter lets an input pass. Judging takes time that the author of the filter decides about, so
/// it is done beside the connections.
async fn passes_filter(route: &Arc<HookRoute>, input_json: Option<&str>) -> Result<bool, Answer> {
    if route.webhook.filter.is_none() {
        return Ok(true);
    }
    let (route, input_json) = (Arc::clone(route), input_json.map(str::to_owned));
    let judging = tokio::task::spawn_blocking(move || match route.filter() {
        Some(Ok(filter)) => Ok(payload::passes(filter, input_json.as_deref())),
        Some(Err(broken)) => {
            tracing::error!("{}: its filter does not compile: {broken}", route.handle);
            Err(Answer::NotFound)
        }
        None => Ok(true),
    });
    judging.await.unwrap_or(Err(Answer::Unavailable(STOPPING)))
}
