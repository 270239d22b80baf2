//! The daemon's settings: `<root>/dirigent.toml`, all of it read at start. A bad value is fatal, with the file, the line
//! and the rule; a key that nobody knows is a bad value too.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::isolate::Limits as HostLimits;
use crate::models::ModelsConfig;
use crate::tools::mcp::McpConfig;

/// The file's name below the root.
pub const FILE: &str = "dirigent.toml";

/// `dirigent.toml`, with its defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub runs: Runs,
    pub limits: Limits,
    pub ledger: Ledger,
    pub hooks: Hooks,
    pub models: ModelsConfig,
    pub mcp: McpConfig,
}

/// `[runs]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runs {
    /// Isolates that run at once, across all automations.
    pub slots: usize,
    /// Host processes that are kept ready.
    pub warm_hosts: usize,
}

impl Default for Runs {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self { slots: (4 * cores).max(8), warm_hosts: cores.max(2) }
    }
}

/// `[limits]`: what one run may use. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub cpu_ms: u64,
    pub heap_bytes: u64,
    pub external_bytes: u64,
    pub nodes: u32,
    pub calls_in_flight: u32,
    pub log_lines: u32,
    pub log_bytes: u64,
    pub value_bytes: u64,
    pub summary_bytes: u64,
    pub output_bytes: u64,
    pub state_key_bytes: u64,
    pub state_bytes: u64,
}

const MIB: u64 = 1024 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_ms: 30_000,
            heap_bytes: 128 * MIB,
            external_bytes: 256 * MIB,
            nodes: 10_000,
            calls_in_flight: 256,
            log_lines: 10_000,
            log_bytes: MIB,
            value_bytes: 16 * MIB,
            summary_bytes: 4096,
            output_bytes: MIB,
            state_key_bytes: MIB,
            state_bytes: 64 * MIB,
        }
    }
}

impl Limits {
    /// Those that a host enforces.
    pub fn for_hosts(&self) -> HostLimits {
        HostLimits {
            heap_bytes: self.heap_bytes,
            external_bytes: self.external_bytes,
            cpu_ms: self.cpu_ms,
            in_flight: self.calls_in_flight,
            max_log_lines: self.log_lines,
            max_log_bytes: self.log_bytes,
            max_value_bytes: self.value_bytes,
            max_output_bytes: self.output_bytes,
            max_summary_bytes: self.summary_bytes,
        }
    }

    fn check(&self) -> Result<(), String> {
        let at_least = |name: &str, value: u64, least: u64| {
            if value < least { Err(format!("limits.{name} is {value}; it must be at least {least}")) } else { Ok(()) }
        };
        at_least("heap_bytes", self.heap_bytes, 8 * MIB)?;
        at_least("external_bytes", self.external_bytes, 16 * MIB)?;
        at_least("cpu_ms", self.cpu_ms, 1)?;
        at_least("calls_in_flight", self.calls_in_flight.into(), 1)?;
        at_least("value_bytes", self.value_bytes, 1024)?;
        if self.value_bytes > 64 * MIB {
            return Err(format!("limits.value_bytes is {}; it must be at most {}", self.value_bytes, 64 * MIB));
        }
        Ok(())
    }
}

/// `[ledger]`
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// What an ordinary commit outlives. An accepted webhook always survives power loss.
    pub survives: Survives,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Survives {
    /// The death of the process.
    #[default]
    Crash,
    /// Loss of power: every commit is synced.
    PowerLoss,
}

/// `[hooks]`: the webhook listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// How long a post waits for its run's end when it does not say, seconds.
    pub wait_s: f64,
    /// Authenticated posts of one slug in 60 s; more are refused.
    pub posts_per_minute: u32,
    pub body_bytes: usize,
    /// For so long a delivery's id is known, seconds.
    pub delivery_window_s: u64,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { wait_s: 10.0, posts_per_minute: 60, body_bytes: 64 * 1024, delivery_window_s: 24 * 3600 }
    }
}

impl Hooks {
    /// The longest that a post may ask to wait, and that the setting may be.
    pub const MAX_WAIT_S: f64 = 60.0;

    fn check(&self) -> Result<(), String> {
        if !(0.0..=Self::MAX_WAIT_S).contains(&self.wait_s) {
            return Err(format!("hooks.wait_s is {}; it must be from 0 to {}", self.wait_s, Self::MAX_WAIT_S));
        }
        if self.posts_per_minute == 0 {
            return Err("hooks.posts_per_minute is 0; it must be at least 1".to_owned());
        }
        if !(1..=16 * 1024 * 1024).contains(&self.body_bytes) {
            return Err(format!("hooks.body_bytes is {}; it must be from 1 to 16777216", self.body_bytes));
        }
        if self.delivery_window_s > 365 * 24 * 3600 {
            return Err(format!("hooks.delivery_window_s is {}; it must be at most a year", self.delivery_window_s));
        }
        Ok(())
    }
}

/// A settings file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path}: {rule}")]
    Value { path: PathBuf, rule: String },
}

impl Config {
    /// Reads `<root>/dirigent.toml`; an absent file is all defaults.
    ///
    /// # Errors
    /// [`ConfigError`] for a file that cannot be read, is no TOML, or holds an unknown key or a bad value.
    pub fn load(root: &Path) -> Result<Self, ConfigError> {
        let path = root.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.clone(), source: Box::new(source) })?;
        config.check().map_err(|rule| ConfigError::Value { path, rule })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if !(1..=1024).contains(&self.runs.slots) {
            return Err(format!("runs.slots is {}; it must be from 1 to 1024", self.runs.slots));
        }
        if self.runs.warm_hosts > 64 {
            return Err(format!("runs.warm_hosts is {}; it must be at most 64", self.runs.warm_hosts));
        }
        if let Some(problem) = self.models.problems().into_iter().next() {
            return Err(problem);
        }
        self.hooks.check()?;
        self.mcp.check()?;
        self.limits.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Config::load(dir.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn absent_and_empty_files_are_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Config::load(dir.path()).unwrap().runs.slots >= 8);
        assert_eq!(load("").unwrap().limits.nodes, 10_000);
    }

    #[test]
    fn values_are_taken_and_bad_ones_are_told_with_their_place() {
        let config = load("[limits]\ncpu_ms = 5\n[ledger]\nsurvives = \"power-loss\"").unwrap();
        assert_eq!((config.limits.cpu_ms, config.ledger.survives), (5, Survives::PowerLoss));
        for (text, told) in [
            ("[limits]\ncpu_mss = 5", "cpu_mss"),
            ("[limits]\ncpu_ms = \"5\"", "line 2"),
            ("[limits]\nheap_bytes = 5", "at least"),
            ("[runs]\nslots = 0", "from 1 to 1024"),
            ("[hooks]\nwait_s = 61", "from 0 to 60"),
            ("[mcp]\nidle_s = 0", "from 0.01 to 86400"),
            ("nope", "line 1"),
            ("[models.local]\nbase_url = \"nowhere\"", "base_url"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(told) && error.contains(FILE), "{text}: {error}");
        }
    }
}
