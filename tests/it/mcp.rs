//! Tools of MCP servers: published ones that nobody here wrote (`published`), and ones that do all that a server should
//! not, as a program (`hostile`) and over HTTP (`http`, which needs nothing installed); when they come and go
//! (`lifetime`), and many calls at once (`together`).
//!
//! The published ones are installed by `npm ci --prefix tests/mcp-servers`; a test whose server is missing fails and says
//! so.

mod hostile;
mod http;
mod lifetime;
mod published;
mod together;

use std::path::{Path, PathBuf};

use dirigent::daemon::Daemon;
use dirigent::fire::{RunId, RunStatus};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Root, run, within};

/// Makes the calls it is told to, at once, and tells what became of each.
const CALLER: &str = r#"export default async ({ ctx, input }) => {
  const settle = async ([name, args]) => {
    try {
      return { ok: await ctx.tool(name, args ?? {}) };
    } catch (error) {
      return { code: error.code, message: error.message };
    }
  };
  return { output: { results: await Promise.all(input.map(settle)) } };
};"#;

const CALLER_FIELDS: &str = r#""requires": {"mcps": ["one", "two", "gone"], "tools": ["three.get-sum", "four.*"]},
  "concurrency": {"mode": "parallel", "max": 50}"#;

fn servers_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mcp-servers")
}

/// A script of an installed package, for node.
fn package(script: &str) -> String {
    let path = servers_dir().join("node_modules/@modelcontextprotocol").join(script);
    assert!(
        path.is_file(),
        "{} is not installed; run `npm ci --prefix tests/mcp-servers` (node 20 or newer)",
        path.display()
    );
    path.to_str().expect("UTF-8").to_owned()
}

pub fn everything() -> String {
    package("server-everything/dist/index.js")
}

/// The entry of the hostile server.
fn hostile(env: Value) -> Value {
    json!({"command": "node", "args": [servers_dir().join("hostile.mjs")], "env": env})
}

/// A root with these servers and the automation that calls them.
fn root_with(servers: &Value) -> Root {
    let root = Root::new();
    configure(&root, servers);
    root.automation("a/caller", CALLER_FIELDS, CALLER);
    root
}

fn configure(root: &Root, servers: &Value) {
    root.write("mcp.json", &json!({ "mcpServers": servers }).to_string());
}

/// Makes calls, `[name, args]` each, in one run; what became of each.
async fn call_in_run(daemon: &Daemon, calls: Value) -> (RunId, Vec<Value>) {
    let (run_id, end) = run(daemon, "a/caller", Some(&calls.to_string())).await;
    assert_eq!(end.status, RunStatus::Ok, "{end:?}");
    let output: Value = serde_json::from_str(&end.output_json.expect("an output")).expect("JSON");
    (run_id, output["results"].as_array().expect("results").clone())
}

async fn call(daemon: &Daemon, calls: Value) -> Vec<Value> {
    call_in_run(daemon, calls).await.1
}

async fn one(daemon: &Daemon, name: &str) -> Value {
    call(daemon, json!([[name]])).await.remove(0)
}

/// Sees processes come and go: each keeps a connection to it.
struct Witness {
    listener: TcpListener,
}

struct Seen {
    pid: u64,
    connection: BufReader<TcpStream>,
}

impl Witness {
    async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.expect("a port") }
    }

    fn port(&self) -> String {
        self.listener.local_addr().expect("an address").port().to_string()
    }

    async fn sees(&self) -> Seen {
        let (stream, _) = within(self.listener.accept()).await.expect("a connection");
        let mut connection = BufReader::new(stream);
        let mut line = String::new();
        within(connection.read_line(&mut line)).await.expect("a line");
        Seen { pid: line.trim().parse().expect("a pid"), connection }
    }
}

impl Seen {
    async fn goes(mut self) {
        let mut rest = Vec::new();
        // A process that is killed may reset its connections.
        let _ = within(self.connection.read_to_end(&mut rest)).await;
    }
}
