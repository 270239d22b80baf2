//! Servers over streamable HTTP: how they are reached, and what their refusals mean.
//!
//! Headers hold secrets, so they go to the host that mcp.json names and to no other, whatever it answers. The protocol's
//! transport is the SDK's; how one message is sent is in [`super::post`].

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::time::Duration;

use rmcp::transport::streamable_http_client::{StreamableHttpClientTransport, StreamableHttpClientTransportConfig};
use url::Url;

pub use super::post::HttpError;
use super::post::{Client, Failure};
use super::secrets::Redactor;
use crate::core::shortened::shortened;

/// A host that does not even take the connection within this time will not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests to one server at once. What a run may have in flight is bounded elsewhere; the SDK's own bound is 16.
const MAX_CONCURRENT: usize = 1024;
/// A server that points on more often than this points in a circle.
const MAX_REDIRECTS: usize = 5;
/// Of an answer that is none, this much is shown.
const SHOWN_CHARS: usize = 300;
/// Remedies, to be put behind a reason.
pub const SET_HEADERS: &str = "; set `headers` of the server in mcp.json";
const SET_URL: &str = "; check `url` of the server in mcp.json";

/// Why a server cannot even be asked.
pub enum NoTransport {
    /// The name of a header whose value no header can carry.
    Header(String),
    Client(String),
}

/// `max_message`: bytes of the longest event that is taken.
///
/// # Errors
/// [`NoTransport`].
pub fn transport(
    url: &Url,
    values: BTreeMap<String, String>,
    max_message: usize,
) -> Result<StreamableHttpClientTransport<Client>, NoTransport> {
    let mut headers = HashMap::new();
    for (name, value) in values {
        let parsed = http::HeaderName::from_bytes(name.as_bytes()).ok();
        let (Some(parsed), Ok(mut value)) = (parsed, http::HeaderValue::from_str(value.trim())) else {
            return Err(NoTransport::Header(name));
        };
        value.set_sensitive(true);
        headers.insert(parsed, value);
    }
    let client = client().map_err(|error| NoTransport::Client(deepest(&error)))?;
    let config = StreamableHttpClientTransportConfig::with_uri(url.as_str())
        .custom_headers(headers)
        .max_concurrent_requests(MAX_CONCURRENT)
        .max_sse_event_size(max_message);
    Ok(StreamableHttpClientTransport::with_client(Client(client), config))
}

fn client() -> reqwest::Result<reqwest::Client> {
    // An error means that a provider is installed already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::custom(follow_at_home))
        // A kept connection whose last answer was not read to its end stalls the next request.
        .pool_max_idle_per_host(0)
        .user_agent(concat!("dirigent/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// `/mcp` may point to `/mcp/`. Any other host would be shown the headers, and what is secret in them; and any other
/// redirect would make a POST a GET.
fn follow_at_home(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let keeps_method = matches!(attempt.status().as_u16(), 307 | 308);
    let is_home = attempt.previous().first().is_some_and(|asked| asked.origin() == attempt.url().origin());
    if keeps_method && is_home && attempt.previous().len() <= MAX_REDIRECTS { attempt.follow() } else { attempt.stop() }
}

/// What an error means for the session in which a request was made.
pub enum Means {
    /// Nothing: the next request may do better in the same one.
    Nothing,
    /// It may be gone.
    MayBeGone,
    /// It is gone, and the server has not done what it was asked.
    Gone,
}

pub fn means(error: &HttpError) -> Means {
    match error {
        HttpError::Client(failure) if failure.is_of_session() => Means::Gone,
        HttpError::Client(failure) if failure.may_be_of_session() => Means::MayBeGone,
        HttpError::Client(Failure::Refused { .. } | Failure::NoAnswer(_))
        | HttpError::HttpStatus(_)
        | HttpError::ResponseBodyTooLarge { .. }
        | HttpError::UnexpectedContentType(_)
        | HttpError::AuthRequired(_)
        | HttpError::InsufficientScope(_) => Means::Nothing,
        _ => Means::MayBeGone,
    }
}

/// In words, with what to do about it, and without a secret.
pub fn explain(error: &(dyn Error + 'static), redactor: &Redactor) -> String {
    match error.downcast_ref::<HttpError>() {
        Some(HttpError::Client(Failure::Refused { status, told, .. })) => {
            let remedy = match status.as_u16() {
                401 | 403 => SET_HEADERS,
                404 | 405 => SET_URL,
                300..=399 => {
                    "; it points elsewhere, and nothing is sent there: set the final address as `url` of the server in \
                     mcp.json"
                }
                _ => "",
            };
            let colon = if told.is_empty() { "" } else { ": " };
            format!("it answered HTTP {status}{colon}{}{remedy}", shortened(&redactor.text(told), SHOWN_CHARS))
        }
        Some(HttpError::Client(Failure::Client(error))) => match error.url().filter(|_| error.is_connect()) {
            Some(url) => {
                let host = url.host_str().unwrap_or_default();
                let port = url.port_or_known_default().map(|port| format!(":{port}")).unwrap_or_default();
                format!("it could not be reached at {host}{port}: {}", deepest(error))
            }
            None => deepest(error),
        },
        Some(HttpError::Client(failure)) => failure.to_string(),
        Some(HttpError::AuthRequired(_)) => format!("it asks for authorization (HTTP 401){SET_HEADERS}"),
        Some(HttpError::InsufficientScope(_)) => format!("it does not allow that (HTTP 403){SET_HEADERS}"),
        Some(HttpError::HttpStatus(error)) => format!("it answered HTTP {}", error.status),
        Some(HttpError::UnexpectedContentType(Some(kind))) => {
            let kind = redactor.text(kind);
            format!("it answered with {}, which is not of this protocol{SET_URL}", shortened(&kind, SHOWN_CHARS))
        }
        Some(HttpError::UnexpectedContentType(None)) => {
            format!("it answered with what is not of this protocol{SET_URL}")
        }
        // The SDK shows the beginning of it, which may be half a secret.
        Some(HttpError::UnexpectedServerResponse(_)) => "it answered with what is not of this protocol".to_owned(),
        _ => deepest(error),
    }
}

/// The cause behind all causes; those before it repeat the URL.
pub fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}
