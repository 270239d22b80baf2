//! The HTTP side: what a running daemon answers. It decides nothing about runs; it asks the daemon and the ledgers.

pub mod admin;
pub mod hooks;
pub mod mcp;

mod access;
pub(crate) mod api;
mod dashboard;
mod events;
mod problem;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where to connect to a listener: one on all interfaces is also on this machine's own.
pub fn reachable(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_interfaces_is_reached_on_loopback() {
        for (listener, reached) in [
            ("127.0.0.1:7390", "127.0.0.1:7390"),
            ("0.0.0.0:7390", "127.0.0.1:7390"),
            ("[::]:7390", "[::1]:7390"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(reachable(listener.parse().unwrap()).to_string(), reached);
        }
    }
}
