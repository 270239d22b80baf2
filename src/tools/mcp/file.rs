//! `<root>/mcp.json`: which MCP servers there are, in the shape that other MCP hosts use.
//!
//! `{"mcpServers": {"<name>": {"command", "args"?, "env"?, "disabled"?} | {"url", "headers"?, "disabled"?}}}`, with a
//! `type` that need not be there. Keys of an entry that nobody here knows are other hosts' and are passed over with a
//! warning. A file that cannot be read as a whole is one problem, and says nothing about its servers; an entry that is
//! wrong is its own problem, and only that server cannot be used.
//!
//! Values of `env` and `headers` are kept as they are written, references and all: see [`super::secrets`]. A mistake
//! here starts a program, or calls a host, that nobody named.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::path::Path as FilePath;

use serde_json::Value;
use url::Url;

use crate::core::manifest::json_tree::Node;
use crate::core::manifest::position::{Path, syntax_problem};
use crate::core::manifest::report::{Report, kind_of};
use crate::fire::Problem;
use crate::tools::is_name_part;

/// The file's name below the root.
pub const FILE: &str = "mcp.json";
/// More is nothing that a person wrote, and it is read before every use.
const MAX_BYTES: u64 = 1024 * 1024;

/// How one server is reached. No `Debug`: it may hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Spec {
    /// A program that speaks on its standard input and output.
    Process { command: String, args: Vec<String>, env: BTreeMap<String, String> },
    /// Streamable HTTP.
    Http { url: Url, headers: BTreeMap<String, String> },
}

/// Why an entry is no server.
#[derive(Clone)]
pub enum Unusable {
    Wrong(Problem),
    /// By its own `"disabled": true`.
    Disabled,
}

/// What the file says.
#[derive(Default)]
pub struct Servers {
    /// By name.
    pub entries: BTreeMap<String, Result<Spec, Unusable>>,
    /// What has no effect.
    pub warnings: Vec<Problem>,
}

impl Servers {
    /// What is wrong with the file.
    pub fn into_problems(self) -> Vec<Problem> {
        let wrong = self.entries.into_values().filter_map(|entry| match entry {
            Err(Unusable::Wrong(problem)) => Some(problem),
            Err(Unusable::Disabled) | Ok(_) => None,
        });
        wrong.chain(self.warnings).collect()
    }
}

/// The fields of an entry.
const FIELDS: &[&str] = &["args", "command", "disabled", "env", "headers", "type", "url"];

/// The file's bytes; `None` when there is none. It may be a link, but not a pipe that nobody writes to.
///
/// # Errors
/// A problem when it is no regular file, too large, or cannot be read.
pub fn read(path: &FilePath) -> Result<Option<Vec<u8>>, Box<Problem>> {
    let refuse = |code: &str, message: String| Box::new(Problem::error(code, "", message).in_path(FILE));
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NONBLOCK);
    }
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refuse("unreadable", error.to_string())),
    };
    match file.metadata() {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(refuse("unreadable", "it must be a regular file".to_owned())),
        Err(error) => return Err(refuse("unreadable", error.to_string())),
    }
    let mut bytes = Vec::new();
    match file.take(MAX_BYTES + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > MAX_BYTES => {
            Err(refuse("too_large", format!("it may have {MAX_BYTES} bytes, and has more")))
        }
        Ok(_) => Ok(Some(bytes)),
        Err(error) => Err(refuse("unreadable", error.to_string())),
    }
}

/// Reads the file's text.
///
/// # Errors
/// The problem of a file that says nothing: no UTF-8, no JSON, or without `mcpServers`.
pub fn parse(bytes: &[u8]) -> Result<Servers, Box<Problem>> {
    let whole = |code: &str, message: String| Box::new(Problem::error(code, "", message).in_path(FILE).at(1, 1));
    let text = str::from_utf8(bytes)
        .map_err(|error| whole("not_utf8", format!("byte {} is not UTF-8", error.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = Node::read(text).map_err(|error| {
        let mut problem = syntax_problem(text, &error).in_path(FILE);
        problem.message = problem.message.replacen("the manifest", FILE, 1);
        Box::new(problem)
    })?;
    let Some(servers) = root.get("mcpServers") else {
        let message = "it must be an object with `mcpServers`".to_owned();
        let problem = whole("missing_field", message);
        return Err(Box::new(problem.with_hint(r#"such as {"mcpServers": {"github": {"command": "…"}}}"#)));
    };
    let Some(members) = servers.members() else {
        let mut report = Report::default();
        let rule = format!("must be a JSON object, not {}", kind_of(servers));
        report.error("invalid_field", &Path::Root.key("mcpServers"), servers, rule);
        return Err(Box::new(first(report, text)));
    };
    // Of a name that stands there twice the last one counts, as for every JSON reader.
    let mut servers = Servers::default();
    for member in members {
        let entry = entry(text, &member.key, &member.node, &mut servers.warnings);
        servers.entries.insert(member.key.clone(), entry);
    }
    Ok(servers)
}

fn first(report: Report, text: &str) -> Problem {
    let mut problems = report.into_problems(text).into_iter().filter(Problem::is_error);
    problems.next().unwrap_or_else(|| Problem::error("invalid_field", "", "it cannot be used")).in_path(FILE)
}

fn entry(text: &str, name: &str, node: &Node, warnings: &mut Vec<Problem>) -> Result<Spec, Unusable> {
    let mut report = Report::default();
    let at = Path::Root.key("mcpServers");
    let at = at.key(name);
    match node.get("disabled").map(|disabled| (disabled, disabled.scalar().and_then(Value::as_bool))) {
        // Whatever else it says is of no account until it is enabled.
        Some((_, Some(true))) => return Err(Unusable::Disabled),
        Some((disabled, None)) => {
            let rule = format!("must be true or false, not {}", kind_of(disabled));
            report.error("invalid_field", &at.key("disabled"), disabled, rule);
        }
        Some((_, Some(false))) | None => {}
    }
    match spec(&mut report, name, node) {
        Some(spec) if !report.has_errors() => {
            report.check_names(node, &at, FIELDS);
            warnings.extend(report.into_problems(text).into_iter().map(|problem| problem.in_path(FILE)));
            Ok(spec)
        }
        _ => Err(Unusable::Wrong(first(report, text))),
    }
}

fn spec(report: &mut Report, name: &str, node: &Node) -> Option<Spec> {
    let servers = Path::Root.key("mcpServers");
    let at = servers.key(name);
    if name.contains('.') || !is_name_part(name) {
        report
            .error("invalid_field", &at, node, "a server's name has 1 to 128 characters, no blank and no dot")
            .hint("its tools are called as <name>.<tool>");
        return None;
    }
    if !node.is_object() {
        report.error("invalid_field", &at, node, format!("must be a JSON object, not {}", kind_of(node)));
        return None;
    }
    if node.get("type").and_then(Node::as_str) == Some("sse") {
        report
            .error("invalid_field", &at.key("type"), node, "the old SSE transport is not spoken")
            .hint("most servers offer streamable HTTP as well, often at /mcp");
        return None;
    }
    match (node.get("command"), node.get("url")) {
        (Some(command), None) => {
            let command = text_of(report, &at.key("command"), command)?;
            let args = match node.get("args") {
                None => Vec::new(),
                Some(args) => {
                    let path = at.key("args");
                    let Some(items) = args.items() else {
                        report.error("invalid_field", &path, args, "must be a list of texts");
                        return None;
                    };
                    let texts = items.iter().enumerate().map(|(i, item)| match item.as_str() {
                        Some(text) if !text.contains('\0') => Some(text.to_owned()),
                        _ => {
                            report.error("invalid_field", &path.index(i), item, "must be a text");
                            None
                        }
                    });
                    texts.collect::<Option<Vec<String>>>()?
                }
            };
            let env = texts_by_name(report, &at.key("env"), node.get("env"), |name, value| {
                !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
            })?;
            Some(Spec::Process { command, args, env })
        }
        (None, Some(url)) => {
            let path = at.key("url");
            let text = text_of(report, &path, url)?;
            let parsed =
                Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            let Some(parsed) = parsed else {
                report.error("invalid_field", &path, url, "must be a URL that starts with http:// or https://");
                return None;
            };
            let headers = texts_by_name(report, &at.key("headers"), node.get("headers"), |name, _| {
                http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            })?;
            Some(Spec::Http { url: parsed, headers })
        }
        (Some(_), Some(_)) => {
            report.error("invalid_field", &at, node, "has both `command` and `url`; a server is one or the other");
            None
        }
        (None, None) => {
            report.error("missing_field", &at, node, "needs `command` (a program) or `url` (streamable HTTP)");
            None
        }
    }
}

fn text_of(report: &mut Report, path: &Path<'_>, node: &Node) -> Option<String> {
    match node.as_str() {
        Some(text) if !text.trim().is_empty() && !text.contains('\0') => Some(text.to_owned()),
        _ => {
            report.error("invalid_field", path, node, "must be a text that is not empty");
            None
        }
    }
}

fn texts_by_name(
    report: &mut Report,
    path: &Path<'_>,
    node: Option<&Node>,
    fits: fn(&str, &str) -> bool,
) -> Option<BTreeMap<String, String>> {
    let Some(node) = node else { return Some(BTreeMap::new()) };
    let Some(members) = node.members() else {
        report.error("invalid_field", path, node, "must be a JSON object of texts");
        return None;
    };
    let mut texts = BTreeMap::new();
    for member in members {
        match member.node.as_str() {
            // The value is not shown: it may be a secret.
            Some(text) if fits(&member.key, text) => {
                texts.insert(member.key.clone(), text.to_owned());
            }
            Some(_) => {
                report.error("invalid_field", &path.key(&member.key), &member.node, "has a name that cannot be used");
                return None;
            }
            None => {
                report.error("invalid_field", &path.key(&member.key), &member.node, "must be a text");
                return None;
            }
        }
    }
    Some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_both_kinds_are_read_and_foreign_keys_passed_over() {
        let text = r#"{"$schema": "x", "inputs": [], "mcpServers": {
            "github": {"type": "stdio", "command": "npx", "args": ["-y", ""], "env": {"T": "${T}"}, "disabled": false},
            "linear": {"type": "http", "url": "https://mcp.linear.app/mcp", "headers": {"Authorization": "Bearer ${K}"}}
        }}"#;
        let Servers { entries, warnings } = parse(text.as_bytes()).unwrap();
        assert_eq!(warnings, []);
        let Ok(Spec::Process { command, args, env }) = &entries["github"] else { panic!("no process") };
        assert_eq!(
            (command.as_str(), args.as_slice(), env["T"].as_str()),
            ("npx", &["-y".into(), "".into()][..], "${T}")
        );
        let Ok(Spec::Http { url, headers }) = &entries["linear"] else { panic!("no url") };
        assert_eq!((url.as_str(), headers["Authorization"].as_str()), ("https://mcp.linear.app/mcp", "Bearer ${K}"));
    }

    #[test]
    fn a_file_that_says_nothing_is_one_problem_with_its_place() {
        for (text, code, place) in [
            (&b"{\n  \"mcpServers\": {\n    \"a\": }\n}"[..], "invalid_json", (3, 10)),
            (b"", "invalid_json", (1, 1)),
            (b"[]", "missing_field", (1, 1)),
            (b"{\n \"mcpServers\": []}", "invalid_field", (2, 16)),
            (b"\xff", "not_utf8", (1, 1)),
        ] {
            let problem = *parse(text).err().unwrap();
            assert_eq!((problem.code.as_str(), problem.line.zip(problem.column)), (code, Some(place)), "{problem}");
            assert_eq!(problem.path.as_deref(), Some(FILE));
            assert!(!problem.message.contains("the manifest"), "{problem}");
        }
    }

    #[test]
    fn a_wrong_entry_spoils_only_itself() {
        for (entry, field) in [
            (r#""a": 1"#, "mcpServers.a"),
            (r#""a": {}"#, "mcpServers.a"),
            (r#""a": {"command": "x", "url": "http://h"}"#, "mcpServers.a"),
            (r#""a": {"command": ""}"#, "mcpServers.a.command"),
            (r#""a": {"command": "x", "args": "y"}"#, "mcpServers.a.args"),
            (r#""a": {"command": "x", "args": ["y", 1]}"#, "mcpServers.a.args[1]"),
            (r#""a": {"command": "x", "env": {"N": 1}}"#, "mcpServers.a.env.N"),
            (r#""a": {"command": "x", "env": {"N=": "s3cret"}}"#, "mcpServers.a.env"),
            (r#""a": {"url": "ftp://h"}"#, "mcpServers.a.url"),
            (r#""a": {"url": "http://h", "headers": {"b d": "s3cret"}}"#, "mcpServers.a.headers"),
            (r#""a": {"type": "sse", "url": "http://h/sse"}"#, "mcpServers.a.type"),
            (r#""a": {"command": "x", "disabled": "yes"}"#, "mcpServers.a.disabled"),
            (r#""a.b": {"command": "x"}"#, "mcpServers"),
        ] {
            let text = format!("{{\"mcpServers\": {{{entry}, \"good\": {{\"command\": \"x\"}}}}}}");
            let servers = parse(text.as_bytes()).unwrap();
            assert!(servers.entries["good"].is_ok());
            let problems = servers.into_problems();
            let problem = &problems[0];
            assert!(problem.field.starts_with(field) && problem.line == Some(1), "{entry}: {problem:?}");
            assert!(!problem.to_string().contains("s3cret"), "{problem}");
        }
    }

    #[test]
    fn a_disabled_entry_is_no_server_and_no_problem() {
        let text = br#"{"mcpServers": {"a": {"command": "x", "disabled": true}, "b": {"disabled": true}}}"#;
        let servers = parse(text).unwrap();
        assert!(servers.entries.values().all(|entry| matches!(entry, Err(Unusable::Disabled))));
        assert_eq!(servers.into_problems(), []);
    }

    #[test]
    fn a_field_that_nobody_reads_is_a_warning_with_the_near_name() {
        let text = b"{\"mcpServers\": {\"a\": {\"command\": \"x\",\n\"disable\": true,\n\"cwd\": \"/\"}}}";
        let servers = parse(text).unwrap();
        assert!(servers.entries["a"].is_ok());
        let told: Vec<_> = servers.into_problems().into_iter().map(|p| (p.field, p.line, p.hint)).collect();
        let hint = Some("did you mean \"disabled\"?".to_owned());
        assert_eq!(told[0], ("mcpServers.a.disable".to_owned(), Some(2), hint));
        assert_eq!((told[1].0.as_str(), told[1].1, told.len()), ("mcpServers.a.cwd", Some(3), 2));
    }

    #[cfg(unix)]
    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert!(read(&path).unwrap().is_none());
        std::fs::create_dir(&path).unwrap();
        assert_eq!(read(&path).unwrap_err().code, "unreadable");
        std::fs::remove_dir(&path).unwrap();
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a plain system call with a string that ends in NUL.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert_eq!(read(&path).unwrap_err().code, "unreadable");
        std::fs::remove_file(&path).unwrap();
        // A link is followed: it is the owner's own file. One that leads nowhere is no file, one in a circle is broken.
        let link = |to: &std::path::Path| std::os::unix::fs::symlink(to, &path).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        link(&elsewhere);
        assert!(read(&path).unwrap().is_none());
        std::fs::write(&elsewhere, "{}").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"{}"[..]));
        std::fs::remove_file(&path).unwrap();
        link(&path);
        assert_eq!(read(&path).unwrap_err().code, "unreadable");
        let most = usize::try_from(MAX_BYTES).unwrap();
        for (len, code) in [(most, None), (most + 1, Some("too_large")), (50 << 20, Some("too_large"))] {
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, vec![b' '; len]).unwrap();
            assert_eq!(read(&path).err().map(|problem| problem.code).as_deref(), code, "{len}");
        }
    }

    /// Whoever reads while another program writes sees the beginning of the file.
    #[test]
    fn half_a_file_says_nothing_and_shows_no_secret() {
        let whole = r#"{"mcpServers": {"a": {"command": "x", "env": {"TOKEN": "hunter2hunter2"}}}}"#;
        for len in 0..whole.len() {
            let problem = *parse(&whole.as_bytes()[..len]).err().unwrap();
            assert_eq!(problem.code, "invalid_json", "{len}");
            assert!(!problem.to_string().contains("hunt"), "{problem}");
        }
    }
}
