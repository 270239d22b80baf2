//! Who may ask the admin listener: a request that carries the admin token, names this listener in its `Host`, and was
//! not made by another site in somebody's browser. State changes are POST with `application/json` only, so that a form
//! on some web page cannot make one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

use crate::gateway::api::takes_no_post;
use crate::gateway::problem::ProblemDocument;

/// What a request is measured by.
#[derive(Clone)]
pub struct Access {
    pub token: Arc<str>,
    /// The address that is bound; it may be that of all interfaces.
    pub bound: SocketAddr,
}

/// This machine's end of a connection: with a listener on all interfaces, the address that the client chose.
#[derive(Debug, Clone, Copy)]
pub struct LocalEnd(Option<SocketAddr>);

impl Connected<IncomingStream<'_, TcpListener>> for LocalEnd {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().ok())
    }
}

pub async fn guard(
    State(access): State<Access>,
    ConnectInfo(LocalEnd(local)): ConnectInfo<LocalEnd>,
    request: Request,
    next: Next,
) -> Result<Response, ProblemDocument> {
    let refuse = |status, code, detail: &str| Err(ProblemDocument::new(status, code, detail));
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    if !host.is_some_and(|host| names_us(host, access.bound, local)) {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "wrong_host", "the Host header does not name this listener");
    }
    let token =
        headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok()).and_then(|h| h.strip_prefix("Bearer "));
    if !token.is_some_and(|token| bool::from(token.as_bytes().ct_eq(access.token.as_bytes()))) {
        return refuse(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the admin token is missing or wrong; it is in .dirigent/token below the root",
        );
    }
    if cross_site(headers) {
        return refuse(StatusCode::FORBIDDEN, "cross_site", "requests from another origin are refused");
    }
    if request.method() == Method::POST && !is_json(headers) && !takes_no_post(&request) {
        let detail = "a POST must say `content-type: application/json`";
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail);
    }
    Ok(next.run(request).await)
}

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
