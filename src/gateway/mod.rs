//! The HTTP side: what a running daemon answers. It decides nothing about runs; it asks the daemon and the ledgers.

pub mod admin;
pub mod hooks;

mod access;
mod api;
mod dashboard;
mod events;
mod problem;
