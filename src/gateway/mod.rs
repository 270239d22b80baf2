//! The HTTP side: what a running daemon answers. It decides nothing about runs; it asks the daemon and the ledgers.

pub mod admin;
pub mod hooks;
pub mod mcp;

mod access;
pub(crate) mod api;
mod dashboard;
mod events;
mod problem;
