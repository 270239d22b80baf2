//! What a command ends with when it cannot do its work: a stable code, a message, often a hint, and the exit code.

use std::fmt::Display;

use serde_json::{Map, Value, json};

/// Exit codes. Scripts test them, so they are part of the contract.
pub mod exit {
    pub const FINE: u8 = 0;
    /// The thing itself failed.
    pub const FAILED: u8 = 1;
    /// The command line, or a settings file, is wrong.
    pub const USAGE: u8 = 2;
    /// The daemon is needed and does not run.
    pub const NO_DAEMON: u8 = 3;
    /// Another daemon holds the root (`EX_TEMPFAIL`).
    pub const HELD: u8 = 75;
}

/// Of the pipe that a reader such as `head` closed: no failure, and nothing is said.
const CLOSED_PIPE: &str = "closed_pipe";

#[derive(Debug)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub hint: Option<String>,
    pub exit: u8,
    /// Further members of the JSON form, such as the id of the run that is in the way.
    pub more: Vec<(String, Value)>,
}

/// How a command ends: its exit code, or why it has none.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// The thing failed.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: None, exit: exit::FAILED, more: Vec::new() }
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: exit::USAGE, ..Self::failed("usage", message) }
    }

    pub fn no_daemon(what: &str) -> Self {
        let message = format!("{what} needs the daemon, and none runs on this root");
        Self { exit: exit::NO_DAEMON, ..Self::failed("no_daemon", message) }
            .hint("start it with `dirigent serve`, or name another root with --root")
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn exit_with(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// Something with a file went wrong.
    pub fn io(what: impl Display, error: &std::io::Error) -> Self {
        Self::failed("io", format!("{what}: {error}"))
    }

    pub fn is_closed_pipe(&self) -> bool {
        self.code == CLOSED_PIPE
    }

    /// `{"error": {"code", "message", "hint"?, …}}`
    pub fn to_json(&self) -> Value {
        let mut error = Map::new();
        error.insert("code".to_owned(), json!(self.code));
        error.insert("message".to_owned(), json!(self.message));
        if let Some(hint) = &self.hint {
            error.insert("hint".to_owned(), json!(hint));
        }
        error.extend(self.more.iter().cloned());
        json!({ "error": error })
    }
}

/// Only printing gives these without saying where; a file's errors go through [`Failure::io`].
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::failed(CLOSED_PIPE, "nobody reads the output any more").exit_with(exit::FINE);
        }
        Self::io("cannot write the output", &error)
    }
}

impl From<crate::ledger::LedgerError> for Failure {
    fn from(error: crate::ledger::LedgerError) -> Self {
        Self::failed("ledger", error.to_string())
    }
}

/// The settings cannot be read, or are wrong.
pub fn bad_config(error: crate::config::ConfigError) -> Failure {
    Failure::failed("bad_config", error.to_string().trim_end()).exit_with(exit::USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_has_the_hint_only_when_there_is_one() {
        let plain = Failure::failed("busy", "it runs").with("runId", "r");
        assert_eq!(plain.to_json(), json!({ "error": { "code": "busy", "message": "it runs", "runId": "r" } }));
        let hinted = Failure::usage("no").hint("yes");
        assert_eq!(hinted.to_json(), json!({ "error": { "code": "usage", "message": "no", "hint": "yes" } }));
        assert_eq!(hinted.exit, 2);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(closed.is_closed_pipe() && closed.exit == exit::FINE);
        assert_eq!(Failure::from(std::io::Error::other("disk full")).exit, exit::FAILED);
    }
}
