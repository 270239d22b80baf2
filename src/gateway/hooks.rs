//! The hook listener: what a gateway exposes. `POST /_centraid-hook/<slug>` fires the automation whose webhook has that
//! id; `GET /healthz` says that somebody is there; nothing else is answered.
//!
//! - `connections` takes callers in and sees to it that none of them holds the others up;
//! - `post` is the way of one post: `secret` and `signature` say who may, `rate` how often, `payload` reads the body,
//!   `deliveries` keeps a repeated delivery from being two;
//! - `answer` has the statuses and bodies.
//!
//! Invariants: a caller without the secret costs a hash and leaves nothing behind. A secret that was replaced on disk is
//! refused from the moment on in which the registry has the new file (`daemon::hook_routes`). Nobody is told that a run
//! was accepted before its row would survive a loss of power. Bodies are not logged and headers are not stored.
//!
//! A mistake here is open to the internet.

mod answer;
mod connections;
mod deliveries;
mod payload;
mod post;
mod rate;
pub mod secret;
pub mod signature;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::watch;

pub use connections::Bounds;

use crate::config;
use crate::daemon::Daemon;
use crate::gateway::reachable;
use post::Hooks;

/// Where webhooks are; the slug follows.
pub const PATH: &str = "/_centraid-hook/";
const HEALTH: &str = "/healthz";
/// Where the listener stands when nothing else is said.
pub const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7391);

/// The address to post to from this machine.
pub fn url(listener: SocketAddr, slug: &str) -> String {
    format!("http://{}{PATH}{slug}", reachable(listener))
}

/// Serves webhooks on `listener` until `shutdown` resolves. Then no connection is taken any more, posts that wait for a
/// run are answered with what is known of it, and it returns when the last answer is sent.
pub async fn serve(
    daemon: Daemon,
    listener: TcpListener,
    settings: config::Hooks,
    bounds: Bounds,
    shutdown: impl Future<Output = ()> + Send,
) {
    let hooks = Arc::new(Hooks::new(daemon, settings, bounds.body));
    let (tell, told) = watch::channel(false);
    let serving = connections::serve(listener, bounds, told, move |request, slot| {
        let hooks = Arc::clone(&hooks);
        async move { hooks.answer(request, slot).await.into_response() }
    });
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return,
        () = shutdown => {}
    }
    tell.send_replace(true);
    serving.await;
}
