//! Who may ask the admin listener. Every request has to name this listener in its `Host`, and must not have been made by
//! another site in somebody's browser. Beyond that:
//!
//! - the **API** wants the admin token as a bearer, or the cookie of a session that a one-time link opened (see
//!   [`sessions`]). State changes are POST with `application/json` only, so that a form on some web page cannot make one,
//!   and one by session must say where it comes from, as every browser does;
//! - making a **link** needs the token: a session cannot prolong itself into another one;
//! - the **pages** (`/`, `/login`, what is below `/assets`) hold no data, and are refused to other sites only.
//!
//! Every answer, also a refusal, carries headers that keep a browser from running, framing or leaking anything.
//!
//! A mistake here costs the machine: whoever may ask can run any handler. What this cannot mend: a cookie belongs to a
//! host and not to a port, so a browser also shows it to other servers on the same address. That is why it carries the
//! port in its name, works only with this listener's `Host`, and ends with the daemon.

pub mod sessions;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::fire::EpochMs;
use crate::gateway::api::takes_no_post;
use crate::gateway::dashboard;
use crate::gateway::problem::ProblemDocument;
use sessions::Sessions;

/// What a request is measured by. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    token: Arc<str>,
    /// The address that is bound; it may be that of all interfaces.
    bound: SocketAddr,
    sessions: Arc<Sessions>,
    clock: Clock,
}

/// By what a request was let in; handlers find it among the request's extensions, beside its [`Access`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Token,
    Session,
}

/// This machine's end of a connection: with a listener on all interfaces, the address that the client chose.
#[derive(Debug, Clone, Copy)]
pub struct LocalEnd(Option<SocketAddr>);

impl Connected<IncomingStream<'_, TcpListener>> for LocalEnd {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().ok())
    }
}

/// Scripts, styles and requests from here alone; nothing inline, nothing framed. `trusted-types 'none'`: a script that
/// tried to turn text into markup would be stopped by the browser.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; \
     frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (
        HeaderName::from_static("permissions-policy"),
        HeaderValue::from_static("camera=(), geolocation=(), microphone=()"),
    ),
];

/// Puts the headers on whatever is answered. Nothing is kept by a cache unless its handler said otherwise.
pub async fn strict_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl Access {
    pub fn new(token: String, bound: SocketAddr, clock: Clock) -> Self {
        Self { token: Arc::from(token), bound, sessions: Arc::default(), clock }
    }

    /// A one-time code for a link, and until when it can be used.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn new_code(&self) -> Result<(String, EpochMs), getrandom::Error> {
        self.sessions.new_code(self.clock.now_ms())
    }

    /// Uses a code up: the `Set-Cookie` of the session that it opens, or `None` when it opens none.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn log_in(&self, code: &str) -> Result<Option<HeaderValue>, getrandom::Error> {
        let Some(session) = self.sessions.open(code, self.clock.now_ms())? else { return Ok(None) };
        let cookie = format!("{}={session}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name());
        Ok(Some(HeaderValue::from_str(&cookie).expect("a name, hex and attributes are plain ASCII")))
    }

    /// Ends the session of a request, and gives the `Set-Cookie` that takes its cookie away.
    pub fn log_out(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(session) = self.cookie(headers) {
            self.sessions.close(session);
        }
        let cookie = format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", self.cookie_name());
        HeaderValue::from_str(&cookie).expect("a name and attributes are plain ASCII")
    }

    pub fn has_session(&self, headers: &HeaderMap) -> bool {
        self.cookie(headers).is_some_and(|session| self.sessions.renew(session, self.clock.now_ms()))
    }

    /// Two daemons on one machine have different ports, and browsers tell cookies apart by name only.
    fn cookie_name(&self) -> String {
        format!("dirigent_session_{}", self.bound.port())
    }

    /// What the request has in the session's cookie.
    fn cookie<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let name = self.cookie_name();
        let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// By what a request is let in, if it is. A token that is given decides alone, also when it is wrong.
    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        if let Some(given) = headers.get(header::AUTHORIZATION) {
            let token = given.to_str().ok().and_then(|given| given.strip_prefix("Bearer "));
            let is_it = token.is_some_and(|token| bool::from(token.as_bytes().ct_eq(self.token.as_bytes())));
            return is_it.then_some(Caller::Token);
        }
        self.has_session(headers).then_some(Caller::Session)
    }

    fn is_named_by(&self, headers: &HeaderMap, local: Option<SocketAddr>) -> bool {
        let mut hosts = headers.get_all(header::HOST).into_iter();
        // Of two, whoever passed the request on may have believed the other one.
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        host.to_str().is_ok_and(|host| names_us(host, self.bound, local))
    }
}

/// Before the API.
pub async fn guard(
    State(access): State<Access>,
    ConnectInfo(LocalEnd(local)): ConnectInfo<LocalEnd>,
    mut request: Request,
    next: Next,
) -> Result<Response, ProblemDocument> {
    let refuse = |status, code, detail: &str| Err(ProblemDocument::new(status, code, detail));
    let headers = request.headers();
    if !access.is_named_by(headers, local) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "wrong_host", WRONG_HOST);
    }
    if cross_site(headers) {
        return refuse(StatusCode::FORBIDDEN, "cross_site", "requests from another origin are refused");
    }
    let Some(caller) = access.caller(headers) else {
        return refuse(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the admin token is missing or wrong (it is in .dirigent/token below the root), and there is no session",
        );
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) && caller == Caller::Session && !says_from_here(headers)
    {
        let detail = "a change by session must say that it comes from here: `Origin` or `Sec-Fetch-Site`";
        return refuse(StatusCode::FORBIDDEN, "cross_site", detail);
    }
    if request.method() == Method::POST && !is_json(headers) && !takes_no_post(&request) {
        let detail = "a POST must say `content-type: application/json`";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail);
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(access);
    Ok(next.run(request).await)
}

/// Behind [`guard`], for what is not for browsers.
pub async fn token_only(request: Request, next: Next) -> Result<Response, ProblemDocument> {
    if request.extensions().get() == Some(&Caller::Token) {
        return Ok(next.run(request).await);
    }
    Err(ProblemDocument::new(
        StatusCode::FORBIDDEN,
        "token_needed",
        "this needs the admin token; a session will not do",
    ))
}

/// Before the pages, which hold no data.
pub async fn guard_pages(
    State(access): State<Access>,
    ConnectInfo(LocalEnd(local)): ConnectInfo<LocalEnd>,
    request: Request,
    next: Next,
) -> Response {
    if !access.is_named_by(request.headers(), local) {
        return axum::response::IntoResponse::into_response(ProblemDocument::new(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            WRONG_HOST,
        ));
    }
    if cross_site(request.headers()) {
        return dashboard::came_from_elsewhere();
    }
    next.run(request).await
}

const WRONG_HOST: &str = "the Host header does not name this listener";

/// Whether a `Host` is this listener: by the bound address, by the one that the connection came in on, or by loopback.
/// Names other than `localhost` are refused, because whoever owns one decides what it resolves to.
fn names_us(host: &str, bound: SocketAddr, local: Option<SocketAddr>) -> bool {
    // Clients leave the port of the protocol out.
    let host = if bound.port() == 80 && host.parse::<SocketAddr>().is_err() && !host.ends_with(":80") {
        format!("{host}:80")
    } else {
        host.to_owned()
    };
    if host.eq_ignore_ascii_case(&format!("localhost:{}", bound.port())) {
        return true;
    }
    let Ok(named) = host.parse::<SocketAddr>() else { return false };
    // A listener for both families sees the older one's addresses inside the newer one's.
    let is = |address: IpAddr| named.ip().to_canonical() == address.to_canonical();
    let known = [Some(bound.ip()), local.map(|local| local.ip())];
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    named.port() == bound.port() && known.into_iter().flatten().chain(loopback).any(is)
}

/// What a browser says of a request that another site made it send.
fn cross_site(headers: &HeaderMap) -> bool {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let origin = text(header::ORIGIN);
    let host = text(header::HOST).unwrap_or_default();
    let foreign = origin.is_some_and(|origin| origin.strip_prefix("http://") != Some(host));
    let site = headers.get("sec-fetch-site").map(|value| value.to_str().unwrap_or("?"));
    foreign || site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

/// Whether a browser says that the request comes from this very origin. What it says wrong, [`cross_site`] has refused.
fn says_from_here(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin")
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        (&pairs).try_into().unwrap()
    }

    #[test]
    fn what_another_site_sends_is_told_apart() {
        for (pairs, cross) in [
            (vec![("host", "127.0.0.1:1")], false),
            (vec![("host", "127.0.0.1:1"), ("origin", "http://127.0.0.1:1")], false),
            (vec![("host", "127.0.0.1:1"), ("origin", "http://evil.example")], true),
            (vec![("host", "127.0.0.1:1"), ("origin", "null")], true),
            (vec![("host", "127.0.0.1:1"), ("sec-fetch-site", "cross-site")], true),
            (vec![("host", "127.0.0.1:1"), ("sec-fetch-site", "same-site")], true),
            (vec![("host", "127.0.0.1:1"), ("sec-fetch-site", "none")], false),
        ] {
            assert_eq!(cross_site(&headers(&pairs)), cross, "{pairs:?}");
        }
    }

    #[test]
    fn a_host_is_ours_by_the_address_that_was_reached() {
        for (host, bound, local, ours) in [
            ("127.0.0.1:7390", "127.0.0.1:7390", "127.0.0.1:7390", true),
            ("LocalHost:7390", "127.0.0.1:7390", "127.0.0.1:7390", true),
            ("[::1]:7390", "127.0.0.1:7390", "127.0.0.1:7390", true),
            ("127.0.0.1:7391", "127.0.0.1:7390", "127.0.0.1:7390", false),
            ("127.0.0.1", "127.0.0.1:7390", "127.0.0.1:7390", false),
            ("192.0.2.7:7390", "127.0.0.1:7390", "127.0.0.1:7390", false),
            ("192.0.2.7:7390", "0.0.0.0:7390", "192.0.2.7:7390", true),
            ("192.0.2.8:7390", "0.0.0.0:7390", "192.0.2.7:7390", false),
            ("192.0.2.7:7390", "[::]:7390", "[::ffff:192.0.2.7]:7390", true),
            ("[2001:db8:0::7]:7390", "[::]:7390", "[2001:db8::7]:7390", true),
            ("rebound.example:7390", "0.0.0.0:7390", "192.0.2.7:7390", false),
            ("localhost.evil.example:7390", "127.0.0.1:7390", "127.0.0.1:7390", false),
            ("192.0.2.7", "0.0.0.0:80", "192.0.2.7:80", true),
            ("localhost", "0.0.0.0:80", "192.0.2.7:80", true),
            ("[::1]", "[::]:80", "[::1]:80", true),
            ("", "0.0.0.0:80", "192.0.2.7:80", false),
        ] {
            let (bound, local) = (bound.parse().unwrap(), local.parse().unwrap());
            assert_eq!(names_us(host, bound, Some(local)), ours, "{host:?} on {bound}, reached at {local}");
        }
    }
}
