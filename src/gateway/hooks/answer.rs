//! What a post is answered with: the one place where statuses, bodies and headers of the hook listener are.

use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::core::run::RunEnd;
use crate::fire::{RunId, RunStatus};

/// A ledger that refuses may take it in a moment, and a daemon that stops is often restarted: senders come back then.
const RETRY_SOON_S: u64 = 10;

/// Why a post was not run, although it was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRun {
    Disabled,
    Filter,
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// `GET /healthz`.
    Healthy,
    /// The run has ended, in whatever way.
    Ended {
        run: RunId,
        status: RunStatus,
        summary: Option<String>,
        error: Option<String>,
    },
    /// Its row is written, and it goes on.
    Accepted {
        run: RunId,
        status: RunStatus,
    },
    NotRun(NotRun),
    BadRequest(&'static str),
    Unauthorized,
    /// Also for whatever is closed.
    NotFound,
    MethodNotAllowed {
        allow: &'static str,
    },
    /// The body did not come in time.
    TooSlow,
    Busy {
        run: RunId,
    },
    TooLarge {
        most: usize,
    },
    TooMany {
        retry_after_s: u64,
    },
    Unavailable(&'static str),
}

impl Answer {
    pub fn ended(run: RunId, end: RunEnd) -> Self {
        Self::Ended { run, status: end.status, summary: end.summary, error: end.error }
    }

    pub fn into_response(self) -> Response<Full<Bytes>> {
        let told = |text: &str| json!({ "error": text });
        let mut retry_after_s = None;
        let mut allowed = None;
        let (status, body) = match self {
            Self::Healthy => {
                let mut response = Response::new(Full::from("ok\n"));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                return response;
            }
            Self::Ended { run, status: RunStatus::Ok, summary, .. } => {
                let mut body = json!({ "ok": true, "runId": run, "status": "ok" });
                if let Some(summary) = summary {
                    body["summary"] = Value::from(summary);
                }
                (StatusCode::OK, body)
            }
            Self::Ended { status: RunStatus::Skipped, .. } | Self::NotRun(NotRun::Filter) => {
                (StatusCode::OK, json!({ "ok": false, "skipped": "filter" }))
            }
            Self::Ended { run, status, error, .. } => {
                let error = error.unwrap_or_else(|| status.to_string());
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    json!({ "ok": false, "runId": run, "status": status, "error": error }),
                )
            }
            Self::Accepted { run, status } => {
                (StatusCode::ACCEPTED, json!({ "ok": true, "runId": run, "status": status }))
            }
            Self::NotRun(NotRun::Disabled) => {
                (StatusCode::OK, json!({ "ok": false, "skipped": "automation disabled" }))
            }
            Self::BadRequest(text) => (StatusCode::BAD_REQUEST, told(text)),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, told("the secret or signature is missing or wrong")),
            Self::NotFound => (StatusCode::NOT_FOUND, told("there is no such webhook")),
            Self::MethodNotAllowed { allow } => {
                allowed = Some(allow);
                (StatusCode::METHOD_NOT_ALLOWED, told(&format!("only {allow} is answered here")))
            }
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, told("the body did not come in time")),
            Self::Busy { run } => {
                let text = "the automation is busy, and does not take another run now";
                (StatusCode::CONFLICT, json!({ "error": text, "runId": run }))
            }
            Self::TooLarge { most } => (StatusCode::PAYLOAD_TOO_LARGE, told(&format!("a body may have {most} bytes"))),
            Self::TooMany { retry_after_s: seconds } => {
                retry_after_s = Some(seconds);
                (StatusCode::TOO_MANY_REQUESTS, told("too many posts to this webhook; come back later"))
            }
            Self::Unavailable(text) => {
                retry_after_s = Some(RETRY_SOON_S);
                (StatusCode::SERVICE_UNAVAILABLE, told(text))
            }
        };
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(allowed) = allowed {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}
