//! dirigent: a disk-first automation runtime for app folders.
//!
//! A root holds app folders; `<app>/automations/<id>/automation.json` declares an automation, and `handler.js` beside it
//! is what runs. This library watches the root, fires cron, webhook and manual triggers, runs each handler in a V8 isolate inside
//! a supervised host process, and writes every fire into the app's own `runtime.sqlite`.
//!
//! Layers, and imports go down only:
//!
//! - edges: [`cli`], [`gateway`], [`overview`], the one shape that both of them list, and [`inspect`], which judges
//!   handlers without running them;
//! - [`daemon`]: one loop that performs what the core decides;
//! - adapters: [`watch`], [`ledger`], [`isolate`], [`tools`], [`models`], [`clock`], [`config`], and [`edit`], which changes
//!   automations on disk;
//! - [`core`]: the functional core, which decides everything and does nothing; and [`handler_check`], which reads a
//!   handler's text;
//! - [`fire`]: the words that all of them share.
//!
//! One fire: the core admits it and asks for its row ([`core::Effect::OpenRun`]); the ledger commits it; the core
//! launches it ([`core::Effect::Launch`]); a session drives a host and serves the handler's `ctx` calls, each a row of
//! its own; the run's end goes back through the core into the ledger ([`core::Effect::CloseRun`]).
//!
//! `ARCHITECTURE.md` has the map of the code and the invariants.

pub mod cli;
pub mod clock;
pub mod config;
pub mod core;
pub mod daemon;
pub mod edit;
pub mod fire;
pub mod gateway;
pub mod handler_check;
pub mod inspect;
pub mod isolate;
pub mod ledger;
pub mod models;
pub mod overview;
pub mod tools;
pub mod watch;
