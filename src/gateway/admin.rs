//! The admin listener: the API and the dashboard, before which stands [`access`]. What no route answers is told here, as
//! problem documents.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::daemon::Daemon;
use crate::gateway::access::{self, Access, LocalEnd};
use crate::gateway::api::{self, Api};
use crate::gateway::problem::ProblemDocument;
use crate::gateway::{dashboard, mcp};

/// Bodies hold an input at the most, and what stands around it.
const AROUND_AN_INPUT: u64 = 64 * 1024;

/// What the listener has to be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The admin token.
    pub token: String,
    /// Where webhooks are posted to, when this daemon serves them.
    pub hooks: Option<SocketAddr>,
}

impl From<String> for Options {
    fn from(token: String) -> Self {
        Self { token, hooks: None }
    }
}

/// Serves the admin API on `listener` until `shutdown` resolves; requests that are under way are answered, and streams
/// end.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    daemon: Daemon,
    listener: TcpListener,
    options: impl Into<Options>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let Options { token, hooks } = options.into();
    let access = Access::new(token, listener.local_addr()?, daemon.services().clock.clone());
    let (closing, is_closing) = watch::channel(false);
    let api = Api::new(daemon, hooks, is_closing.clone());
    let service = router(api, access, is_closing).into_make_service_with_connect_info::<LocalEnd>();
    let served = axum::serve(listener, service).with_graceful_shutdown(async move {
        shutdown.await;
        closing.send_replace(true);
    });
    served.await
}

fn router(api: Api, access: Access, closing: watch::Receiver<bool>) -> Router {
    let max_body = api.limits().value_bytes + AROUND_AN_INPUT;
    let (open, guarded) = api::routes();
    let tools = mcp::service(api.clone(), usize::try_from(max_body).unwrap_or(usize::MAX) + mcp::MAX_FILES, closing);
    let tools = Router::new().route_service(mcp::PATH, tools).layer(middleware::from_fn(access::token_only));
    let guarded = Router::from(guarded)
        .merge(tools)
        .fallback(|| async { ProblemDocument::not_found("not_found", "there is no such resource") })
        .method_not_allowed_fallback(not_this_method)
        .layer(DefaultBodyLimit::max(usize::try_from(max_body).unwrap_or(usize::MAX)))
        .layer(middleware::from_fn_with_state(access.clone(), access::guard));
    let open = Router::from(open).method_not_allowed_fallback(not_this_method);
    let pages = dashboard::pages(access.clone())
        .method_not_allowed_fallback(not_this_method)
        .layer(middleware::from_fn_with_state(access, access::guard_pages));
    open.merge(guarded)
        .layer(middleware::from_fn(kept_nowhere))
        .merge(pages)
        .layer(middleware::from_fn(access::strict_headers))
        .with_state(api)
}

/// The router adds which ones are.
async fn not_this_method() -> ProblemDocument {
    ProblemDocument::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method; see `Allow`")
}

/// Answers tell the state of a moment, and some a secret: no cache may keep one.
async fn kept_nowhere(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
