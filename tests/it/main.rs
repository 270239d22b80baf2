//! Everything together: a real root, real hosts, real ledgers. One binary, because V8 links slowly.

mod access;
mod admin;
mod agent;
mod api;
mod builder;
mod cli;
mod crash;
mod dashboard;
mod disk;
mod examples;
mod guide;
mod harness;
mod hooks;
mod hostile;
mod isolate;
mod mcp;
mod outages;
mod recording;
mod runs;
mod streams;
mod types;
mod validate;
