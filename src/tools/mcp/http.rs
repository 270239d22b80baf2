//! Servers over streamable HTTP: how they are reached, and what their refusals mean.
//!
//! Headers hold secrets, so they go to the host that mcp.json names and to no other, whatever it answers. The protocol's
//! transport is the SDK's, which bounds bodies that are JSON at 16 MiB.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::time::Duration;

use rmcp::transport::streamable_http_client::{
    StreamableHttpClientTransport, StreamableHttpClientTransportConfig, StreamableHttpError,
};
use url::Url;

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

pub type HttpError = StreamableHttpError<reqwest::Error>;

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
) -> Result<StreamableHttpClientTransport<reqwest::Client>, NoTransport> {
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
    Ok(StreamableHttpClientTransport::with_client(client, config))
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

/// True for an answer that says nothing about the session: the next request may do better in the same one.
pub fn is_about_one_request(error: &HttpError) -> bool {
    matches!(
        error,
        HttpError::HttpStatus(_)
            | HttpError::ResponseBodyTooLarge { .. }
            | HttpError::UnexpectedContentType(_)
            | HttpError::AuthRequired(_)
            | HttpError::InsufficientScope(_)
    )
}

/// In words, with what to do about it, and without a secret.
pub fn explain(error: &(dyn Error + 'static), redactor: &Redactor) -> String {
    match error.downcast_ref::<HttpError>() {
        Some(HttpError::Client(error)) => deepest(error),
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
        Some(HttpError::UnexpectedServerResponse(told)) => {
            let remedy = match told.strip_prefix("HTTP ").and_then(|told| told.get(..3)) {
                Some("401" | "403") => SET_HEADERS,
                Some("404" | "405") => SET_URL,
                Some(status) if status.starts_with('3') => {
                    "; it points elsewhere, and nothing is sent there: set the final address as `url` of the server in \
                     mcp.json"
                }
                Some(_) => "",
                // The SDK shows the beginning of it, which may be half a secret.
                None => return "it answered with what is not of this protocol".to_owned(),
            };
            let told = redactor.text(told.trim_end_matches([':', ' ']));
            format!("it answered {}{remedy}", shortened(&told, SHOWN_CHARS))
        }
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
