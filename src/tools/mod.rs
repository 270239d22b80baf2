//! What a tool name means, and who may call it.
//!
//! Words: a *route* is where a name leads: to one of the three built-in tools over app folders, or to a tool of an
//! MCP server, written `<server>.<tool>`. *Access* is what one automation may reach: its own app, the apps its
//! manifest names, and the MCP tools that its `requires` lists.
//!
//! Invariants: routing looks at the name alone, and access at the manifest alone; neither reads a disk. A call that
//! [`check_access`] refuses reaches no app and no server. A mistake here lets generated code read or write another
//! app's data, or use a server that nobody granted it.

pub mod app;
pub mod data_db;
pub mod mcp;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::core::manifest::Requires;
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::fire::{AppId, CallError, Problem};

/// The call is refused by the allow-list.
pub const TOOL_NOT_ALLOWED: &str = "tool_not_allowed";
/// The name leads nowhere.
pub const UNKNOWN_TOOL: &str = "unknown_tool";
/// The name is allowed, but `mcp.json` has no such server.
pub const UNKNOWN_MCP_SERVER: &str = "unknown_mcp_server";

/// Error codes of the three built-in tools. They are part of the existing format: HTTP callers map them to statuses.
pub const UNKNOWN_APP: &str = "UNKNOWN_APP";
pub const UNKNOWN_QUERY: &str = "UNKNOWN_QUERY";
pub const UNKNOWN_ACTION: &str = "UNKNOWN_ACTION";
pub const WRONG_KIND: &str = "WRONG_KIND";
pub const INVALID_INPUT: &str = "INVALID_INPUT";
pub const INVALID_MANIFEST: &str = "INVALID_MANIFEST";
pub const HANDLER_ERROR: &str = "HANDLER_ERROR";

/// The reply status of `POST /centraid/_tool/<name>` for an error code of the built-in tools.
pub fn http_status(code: &str) -> u16 {
    match code {
        UNKNOWN_APP | UNKNOWN_QUERY | UNKNOWN_ACTION | UNKNOWN_TOOL => 404,
        WRONG_KIND | INVALID_INPUT | INVALID_MANIFEST => 400,
        _ => 500,
    }
}

/// One of the three tools over app folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Builtin {
    Describe,
    Read,
    Write,
}

impl Builtin {
    pub const ALL: [Builtin; 3] = [Builtin::Describe, Builtin::Read, Builtin::Write];

    /// The tool's name, which existing handlers and pages use.
    pub fn name(self) -> &'static str {
        match self {
            Builtin::Describe => "centraid_describe",
            Builtin::Read => "centraid_read",
            Builtin::Write => "centraid_write",
        }
    }
}

/// Where a tool name leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Route {
    Builtin(Builtin),
    Mcp { server: String, tool: String },
}

/// Reads a tool name. `<server>.<tool>` is split at its first dot, so a tool's own name may hold dots.
///
/// # Errors
/// [`UNKNOWN_TOOL`], with the nearest name when there is one.
pub fn route(name: &str) -> Result<Route, CallError> {
    if let Some(builtin) = Builtin::ALL.into_iter().find(|builtin| builtin.name() == name) {
        return Ok(Route::Builtin(builtin));
    }
    if let Some((server, tool)) = name.split_once('.')
        && is_name_part(server)
        && is_name_part(tool)
    {
        return Ok(Route::Mcp { server: server.to_owned(), tool: tool.to_owned() });
    }
    let known = Builtin::ALL.map(Builtin::name);
    let hint = match nearest(name, &known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("tools are {}, and <server>.<tool> of an MCP server", known.join(", ")),
    };
    Err(CallError::new(UNKNOWN_TOOL, format!("unknown tool {:?}; {hint}", shortened(name, 100))))
}

fn is_name_part(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// What one automation may reach.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    pub own_app: &'a AppId,
    /// The manifest's `apps`.
    pub apps: &'a [AppId],
    pub requires: &'a Requires,
}

impl Access<'_> {
    /// The apps that the built-in tools may reach: the automation's own, then those its manifest names.
    pub fn visible_apps(&self) -> Vec<AppId> {
        let mut apps = vec![self.own_app.clone()];
        for app in self.apps {
            if !apps.contains(app) {
                apps.push(app.clone());
            }
        }
        apps
    }
}

/// Decides whether the automation may make this call. A built-in tool without an `app` argument means the own app
/// (or, for `centraid_describe`, the visible ones), and an `app` that is no text is left to the tool to refuse.
///
/// # Errors
/// [`TOOL_NOT_ALLOWED`], naming the manifest field that would allow the call.
pub fn check_access(route: &Route, args: &Value, access: &Access) -> Result<(), CallError> {
    match route {
        Route::Builtin(_) => {
            let Some(app) = args.get("app").and_then(Value::as_str) else {
                return Ok(());
            };
            if app == access.own_app.as_str() || access.apps.iter().any(|allowed| allowed.as_str() == app) {
                return Ok(());
            }
            Err(CallError::new(
                TOOL_NOT_ALLOWED,
                format!(
                    "app {:?} is neither this automation's own app ({}) nor named by its manifest's `apps`",
                    shortened(app, 128),
                    access.own_app
                ),
            ))
        }
        Route::Mcp { server, tool } => {
            let by_server = access.requires.mcps.iter().any(|allowed| allowed == server);
            let by_tool =
                || {
                    access.requires.tools.iter().any(|allowed| {
                        allowed.split_once('.').is_some_and(|(s, t)| s == server && (t == tool || t == "*"))
                    })
                };
            if by_server || by_tool() {
                return Ok(());
            }
            Err(CallError::new(
                TOOL_NOT_ALLOWED,
                format!(
                    "tool \"{server}.{tool}\" is not allowed; name it in the manifest's `requires.tools` (or \
                     \"{server}.*\"), or its server in `requires.mcps`"
                ),
            ))
        }
    }
}

/// The rejection of an allowed call to a server that `mcp.json` does not have.
///
/// `configured`: the servers that it has.
pub fn no_such_server(server: &str, configured: &[&str]) -> CallError {
    let hint = match nearest(server, configured) {
        Some(near) => format!("did you mean {near:?}?"),
        None => "add it to `mcpServers` in mcp.json".to_owned(),
    };
    CallError::new(UNKNOWN_MCP_SERVER, format!("no MCP server named {server:?} is configured; {hint}"))
}

/// How the built-in tools reach app folders. The implementation guards every read: nothing that resolves outside
/// the app folder, no special files, no more than the given bytes. It may block; it is called off the async threads.
pub trait AppFiles: Send + Sync {
    /// The folder that holds an app's code; `None` when there is no such app.
    fn code_dir(&self, app: &AppId) -> Option<PathBuf>;
    /// The folder that holds (or is to hold) an app's `data.sqlite`.
    fn data_dir(&self, app: &AppId) -> PathBuf;
    fn list_apps(&self) -> Vec<AppId>;
    /// The file's bytes; `Ok(None)` when it does not exist.
    ///
    /// # Errors
    /// A [`Problem`] when it exists but may not or cannot be read, or is larger than `max_bytes`.
    fn read(&self, app_dir: &Path, relative: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>, Box<Problem>>;
    /// The names in a folder, in any order; none when the folder does not exist.
    ///
    /// # Errors
    /// A [`Problem`] when it cannot be listed.
    fn list(&self, app_dir: &Path, relative: &Path) -> Result<Vec<String>, Box<Problem>>;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::io::ErrorKind;

    /// App folders below a temporary folder, read without the guards of the real thing.
    pub struct Folder(pub tempfile::TempDir);

    impl Folder {
        pub fn with(files: &[(&str, &str)]) -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                folder.write(path, text);
            }
            folder
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl AppFiles for Folder {
        fn code_dir(&self, app: &AppId) -> Option<PathBuf> {
            let dir = self.0.path().join(app.as_str());
            dir.is_dir().then_some(dir)
        }

        fn data_dir(&self, app: &AppId) -> PathBuf {
            self.0.path().join(app.as_str())
        }

        fn list_apps(&self) -> Vec<AppId> {
            let entries = fs::read_dir(self.0.path()).unwrap();
            entries.filter_map(|entry| AppId::new(entry.unwrap().file_name().to_str()?).ok()).collect()
        }

        fn read(&self, app_dir: &Path, relative: &Path, max_bytes: usize) -> Result<Option<Vec<u8>>, Box<Problem>> {
            match fs::read(app_dir.join(relative)) {
                Ok(bytes) if bytes.len() > max_bytes => Err(Box::new(Problem::error("too_large", "", "too large"))),
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Box::new(Problem::error("unreadable", "", error.kind().to_string()))),
            }
        }

        fn list(&self, app_dir: &Path, relative: &Path) -> Result<Vec<String>, Box<Problem>> {
            let Ok(entries) = fs::read_dir(app_dir.join(relative)) else {
                return Ok(Vec::new());
            };
            // Backwards, as nothing may depend on the order.
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names.reverse();
            Ok(names)
        }
    }

    fn mcp(server: &str, tool: &str) -> Route {
        Route::Mcp { server: server.to_owned(), tool: tool.to_owned() }
    }

    #[test]
    fn names_lead_to_a_tool_or_say_what_is_near() {
        for (name, expected) in [
            ("centraid_describe", Ok(Route::Builtin(Builtin::Describe))),
            ("centraid_read", Ok(Route::Builtin(Builtin::Read))),
            ("centraid_write", Ok(Route::Builtin(Builtin::Write))),
            ("github.create_issue", Ok(mcp("github", "create_issue"))),
            ("github.repo.get", Ok(mcp("github", "repo.get"))),
            ("centraid_raed", Err("did you mean \"centraid_read\"?")),
            ("centraidWrite", Err("did you mean \"centraid_write\"?")),
            ("sendMail", Err("tools are centraid_describe, centraid_read, centraid_write")),
            ("", Err("unknown tool \"\"")),
            (".tool", Err("unknown tool")),
            ("server.", Err("unknown tool")),
            ("a b.c", Err("unknown tool")),
        ] {
            match (route(name), expected) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{name}"),
                (Err(error), Err(part)) => {
                    assert_eq!(error.code, UNKNOWN_TOOL, "{name}");
                    assert!(error.message.contains(part), "{name}: {}", error.message);
                }
                (found, wanted) => panic!("{name}: {found:?}, not {wanted:?}"),
            }
        }
        assert!(route(&"x".repeat(1_000_000)).unwrap_err().message.len() < 1000);
    }

    #[test]
    fn the_manifest_decides_what_may_be_called() {
        let own_app = AppId::new("todos").unwrap();
        let apps = [AppId::new("journal").unwrap()];
        let requires = Requires {
            mcps: vec!["linear".to_owned()],
            tools: vec!["github.create_issue".to_owned(), "slack.*".to_owned(), "centraid_read".to_owned()],
            model: None,
        };
        let access = Access { own_app: &own_app, apps: &apps, requires: &requires };
        let read = Route::Builtin(Builtin::Read);
        for (route, args, allowed) in [
            (&read, json!({"app": "todos", "query": "list"}), true),
            (&read, json!({"app": "journal", "query": "list"}), true),
            (&read, json!({"query": "list"}), true),
            (&read, json!({"app": "vault", "query": "list"}), false),
            (&read, json!({"app": "Todos", "query": "list"}), false),
            (&Route::Builtin(Builtin::Write), json!({"app": "vault"}), false),
            (&Route::Builtin(Builtin::Describe), json!({"app": "vault"}), false),
            (&Route::Builtin(Builtin::Describe), json!({}), true),
            (&mcp("linear", "anything"), json!({}), true),
            (&mcp("github", "create_issue"), json!({}), true),
            (&mcp("github", "delete_repo"), json!({}), false),
            (&mcp("github", "create_issue.x"), json!({}), false),
            (&mcp("slack", "post"), json!({}), true),
            (&mcp("slackish", "post"), json!({}), false),
            (&mcp("Linear", "x"), json!({}), false),
        ] {
            let outcome = check_access(route, &args, &access);
            assert_eq!(outcome.is_ok(), allowed, "{route:?} {args}");
            if let Err(error) = outcome {
                assert_eq!(error.code, TOOL_NOT_ALLOWED);
            }
        }
        assert_eq!(access.visible_apps(), [own_app.clone(), apps[0].clone()]);
    }

    #[test]
    fn a_missing_server_is_named() {
        let error = no_such_server("githb", &["github", "linear"]);
        assert_eq!(error.code, UNKNOWN_MCP_SERVER);
        assert!(error.message.contains("no MCP server named \"githb\" is configured"), "{}", error.message);
        assert!(error.message.contains("did you mean \"github\"?"), "{}", error.message);
        assert!(no_such_server("x", &[]).message.contains("mcp.json"));
    }
}
