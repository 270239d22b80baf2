//! Everything together: a real root, real hosts, real ledgers. One binary, because V8 links slowly.

mod admin;
mod agent;
mod cli;
mod crash;
mod disk;
mod examples;
mod harness;
mod hostile;
mod isolate;
mod mcp;
mod outages;
mod recording;
mod runs;
