//! How a request reaches a provider: with its key, its retries, and a bound on what comes back.
//!
//! The protocols are `rig-core`'s, which leaves the sending to this room. So the library never holds a key: it is put
//! into the request here, as a header, after everything else, whatever place the protocol has for it.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use rig_core::http_client::{self, HttpClientExt, LazyBody, MultipartForm, Request, Response, StreamingResponse};
use tokio::time::Instant;
use url::Url;

use super::{MAX_ANSWER_BYTES, MODEL_NOT_CONFIGURED, Sleep};
use crate::core::shortened::shortened;
use crate::fire::CallError;

/// How often a request that met overload is sent again.
const RETRIES: u32 = 3;
/// Wait before the first retry when the provider names none; doubled for each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// A provider that asks for a longer wait is better reported than waited for: the run's time is passing.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Of a refusal only the message is wanted.
const MAX_REFUSAL_BYTES: usize = 64 * 1024;
/// Nothing that listens takes longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// So long a provider may say nothing at all; the largest models think for minutes before the first byte. The run's own
/// time usually ends first.
const SILENCE: Duration = Duration::from_secs(600);
/// Characters of an error that a message repeats.
const SHOWN_CHARS: usize = 300;

/// Where the protocols put a key; what stands there is the library's placeholder.
const KEY_HEADERS: [HeaderName; 3] =
    [AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("x-goog-api-key")];
/// As [`KEY_HEADERS`], in the address: Gemini's.
const KEY_PARAMETER: &str = "key";

/// No response came, or one that was too large.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("it said nothing for {} s", SILENCE.as_secs())]
    Silent,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("its answer is larger than {MAX_ANSWER_BYTES} bytes")]
    TooLarge,
    /// The library would replace what is none.
    #[error("its answer is no text: byte {0} is not UTF-8")]
    NotText(usize),
    /// A request that could not be put together, or a kind of it that is never made here.
    #[error("{0}")]
    Unsendable(String),
}

/// The way to one provider. Clones share one pool of connections.
#[derive(Clone)]
pub struct Transport {
    http: reqwest::Client,
    key: Option<(HeaderName, HeaderValue)>,
    /// No wait goes beyond it.
    until: Instant,
    sleep: Sleep,
    /// How often the last request was sent.
    asked: Arc<AtomicU32>,
}

/// The HTTP client that all providers share.
///
/// # Errors
/// [`MODEL_NOT_CONFIGURED`] when TLS cannot be set up on this machine.
pub fn http_client() -> Result<reqwest::Client, CallError> {
    // An error means that a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        // A redirected POST loses its body or takes the prompt and the key elsewhere; the message says what to set.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("dirigent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| CallError::new(MODEL_NOT_CONFIGURED, format!("no HTTPS on this machine: {}", causes(&error))))
}

impl Transport {
    pub fn new(http: reqwest::Client, key: Option<(HeaderName, HeaderValue)>, until: Instant, sleep: Sleep) -> Self {
        Self { http, key, until, sleep, asked: Arc::default() }
    }

    /// How often the last request was sent.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether there is time for this wait, and for an answer after it.
    pub fn may_wait(&self, wait: Duration) -> bool {
        wait <= LONGEST_WAIT && self.until.saturating_duration_since(Instant::now()) > wait
    }

    fn request(&self, parts: http::request::Parts, body: Bytes) -> Result<reqwest::Request, Fault> {
        let unsendable = |error: &dyn std::fmt::Display| Fault::Unsendable(format!("no address to ask: {error}"));
        let mut url = Url::parse(&parts.uri.to_string()).map_err(|error| unsendable(&error))?;
        if url.query_pairs().any(|(name, _)| name == KEY_PARAMETER) {
            let kept: Vec<(String, String)> = url
                .query_pairs()
                .filter(|(name, _)| name != KEY_PARAMETER)
                .map(|(n, v)| (n.into(), v.into()))
                .collect();
            url.set_query(None);
            if !kept.is_empty() {
                url.query_pairs_mut().extend_pairs(kept);
            }
        }
        let mut headers = parts.headers;
        for name in KEY_HEADERS {
            headers.remove(name);
        }
        headers.extend(self.key.clone());
        self.http
            .request(parts.method, url)
            .headers(headers)
            .body(body)
            .build()
            .map_err(|error| unsendable(&error.without_url()))
    }

    /// Sends a request, again where the provider is overloaded, and reads the whole body of a success. What is no
    /// success is an error that keeps status, headers and the beginning of the body.
    async fn exchange(self, parts: http::request::Parts, body: Bytes) -> http_client::Result<Response<Bytes>> {
        let (mut retried, mut backoff) = (0, FIRST_BACKOFF);
        loop {
            self.asked.store(retried + 1, Ordering::Relaxed);
            let request = self.request(parts.clone(), body.clone()).map_err(http_client::Error::instance)?;
            let mut response = self.http.execute(request).await.map_err(|error| fault(&error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            if status.is_success() {
                let read = read_up_to(&mut response, MAX_ANSWER_BYTES).await?;
                if read.len() > MAX_ANSWER_BYTES {
                    return Err(http_client::Error::instance(Fault::TooLarge));
                }
                if let Err(error) = std::str::from_utf8(&read) {
                    return Err(http_client::Error::instance(Fault::NotText(error.valid_up_to())));
                }
                let mut answer = Response::new(Bytes::from(read));
                *answer.status_mut() = status;
                *answer.headers_mut() = headers;
                return Ok(answer);
            }
            let wait = retry_after(&headers).unwrap_or(backoff);
            if is_overload(status.as_u16()) && retried < RETRIES && self.may_wait(wait) {
                drop(response);
                (self.sleep)(wait).await;
                retried += 1;
                backoff *= 2;
                continue;
            }
            let mut told = read_up_to(&mut response, MAX_REFUSAL_BYTES).await.unwrap_or_default();
            told.truncate(MAX_REFUSAL_BYTES);
            let told = String::from_utf8_lossy(&told).into_owned();
            return Err(http_client::Error::non_success_with_details(status, headers, told));
        }
    }
}

impl HttpClientExt for Transport {
    fn send<T, U>(
        &self,
        request: Request<T>,
    ) -> impl Future<Output = http_client::Result<Response<LazyBody<U>>>> + Send + 'static
    where
        T: Into<Bytes> + Send,
        U: From<Bytes> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let (transport, body) = (self.clone(), body.into());
        async move {
            let answer = transport.exchange(parts, body).await?;
            Ok(answer.map(|body| -> LazyBody<U> { Box::pin(std::future::ready(Ok(U::from(body)))) }))
        }
    }

    fn send_multipart<U>(
        &self,
        _: Request<MultipartForm>,
    ) -> impl Future<Output = http_client::Result<Response<LazyBody<U>>>> + Send + 'static
    where
        U: From<Bytes> + Send + 'static,
    {
        std::future::ready(Err(never_made("a form")))
    }

    fn send_streaming<T>(&self, _: Request<T>) -> impl Future<Output = http_client::Result<StreamingResponse>> + Send
    where
        T: Into<Bytes> + Send,
    {
        std::future::ready(Err(never_made("a stream")))
    }
}

fn never_made(what: &str) -> http_client::Error {
    http_client::Error::instance(Fault::Unsendable(format!("a model's turn is neither sent as {what} nor read as one")))
}

/// Worth another try: the provider has too much to do, or something of it is down for now.
pub fn is_overload(status: u16) -> bool {
    status == 429 || (500..600).contains(&status)
}

fn fault(error: &reqwest::Error) -> http_client::Error {
    http_client::Error::instance(if error.is_connect() {
        Fault::Unreachable(causes(error))
    } else if error.is_timeout() {
        Fault::Silent
    } else {
        Fault::Broken(causes(error))
    })
}

/// The body, or a little more than `limit` bytes of it.
async fn read_up_to(response: &mut reqwest::Response, limit: usize) -> http_client::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() <= limit
        && let Some(chunk) = response.chunk().await.map_err(|error| fault(&error))?
    {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// `retry-after-ms`, or `retry-after` as seconds or as a date, which is taken relative to the response's own date.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let seconds = |text: &str| text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    if let Some(ms) = headers.get("retry-after-ms").and_then(|value| value.to_str().ok()) {
        return seconds(ms.trim()).map(|wait| wait / 1000);
    }
    let after = text(RETRY_AFTER)?;
    seconds(after).or_else(|| {
        let date = |text: &str| chrono::DateTime::parse_from_rfc2822(text).ok();
        let wait = date(after)?.signed_duration_since(date(text(DATE)?)?);
        Some(wait.to_std().unwrap_or_default())
    })
}

/// The causes of an error, the outermost of which says nothing but the address.
fn causes(error: &reqwest::Error) -> String {
    let mut texts = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    if texts.is_empty() {
        texts.push(error.to_string());
    }
    shortened(&texts.join(": "), SHOWN_CHARS)
}
