//! The transport of a server that is a program: one JSON-RPC message per line on its standard input and output.
//!
//! What the SDK's own transport passes over in silence, so that a call waits for its time to run out, is told here: a
//! response that is too long, or that is none, rejects the call that it answers. A line that is no JSON is chatter, which
//! many servers print at their start, and goes to the log. No more than one message is held, of [`Lines::max`] bytes at
//! most.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rmcp::RoleClient;
use rmcp::model::{ErrorCode, ErrorData, JsonRpcMessage, RequestId};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::watched::Watch;

type Received = RxJsonRpcMessage<RoleClient>;

/// A server that has not taken a message by then does not read any more.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// Longer lines are parsed beside the async threads.
const LONG_LINE: usize = 256 * 1024;
/// Of a line that is too long, both ends are kept: they say which call it answers.
const KEPT_END: usize = 128;
/// A line this many times too long is no answer any more.
const HOPELESS: usize = 8;

pub struct Lines {
    stdout: BufReader<ChildStdout>,
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    watch: Arc<Watch>,
    /// Bytes of the longest line that is taken.
    max: usize,
    line: Vec<u8>,
    skipped: Option<Skipped>,
    parsing: Option<JoinHandle<Parsed>>,
}

/// A line that is too long, as it goes by.
struct Skipped {
    len: usize,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Skipped {
    fn pass(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(KEPT_END)..]);
        self.tail.drain(..self.tail.len().saturating_sub(KEPT_END));
    }
}

enum Parsed {
    Message(Box<Received>),
    /// A response that cannot be read, and why.
    Broken(RequestId, String),
    Chatter(String),
    Nothing,
}

enum Step {
    More,
    Line,
    TooLong(Skipped),
    Broken,
    End,
}

impl Lines {
    pub fn new(stdout: ChildStdout, stdin: ChildStdin, max: usize, watch: Arc<Watch>) -> Self {
        let stdin = Arc::new(Mutex::new(Some(stdin)));
        let stdout = BufReader::new(stdout);
        Self { stdout, stdin, watch, max, line: Vec::new(), skipped: None, parsing: None }
    }

    /// Takes in what has come. A dropped future has lost nothing.
    async fn step(&mut self) -> Step {
        let bytes = match self.stdout.fill_buf().await {
            Ok([]) | Err(_) => return Step::End,
            Ok(bytes) => bytes,
        };
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let used = end.map_or(bytes.len(), |end| end + 1);
        let mut step = Step::More;
        if let Some(skipped) = &mut self.skipped {
            skipped.pass(part);
        } else if self.line.len() + part.len() > self.max {
            let head = self.line.iter().chain(part).copied().take(KEPT_END).collect();
            let mut skipped = Skipped { len: 0, head, tail: Vec::new() };
            skipped.pass(&self.line);
            skipped.pass(part);
            self.line = Vec::new();
            self.skipped = Some(skipped);
        } else {
            self.line.extend_from_slice(part);
            if end.is_some() {
                step = Step::Line;
            }
        }
        self.stdout.consume(used);
        match self.skipped.take() {
            Some(skipped) if skipped.len > HOPELESS * self.max => Step::Broken,
            Some(skipped) if end.is_some() => Step::TooLong(skipped),
            skipped => {
                self.skipped = skipped;
                step
            }
        }
    }

    fn too_long(&self, len: usize) -> String {
        format!("it sent a message of {len} bytes; at most {} are taken", self.max)
    }

    fn judge(&self, parsed: Parsed) -> Option<Received> {
        match parsed {
            Parsed::Message(message) => Some(*message),
            Parsed::Broken(id, why) => Some(refusal(id, why)),
            Parsed::Chatter(text) => {
                self.watch.chatter(&text);
                None
            }
            Parsed::Nothing => None,
        }
    }
}

/// Stands for a response that cannot be had.
fn refusal(id: RequestId, why: String) -> Received {
    JsonRpcMessage::error(ErrorData::new(ErrorCode::INTERNAL_ERROR, why, None), Some(id))
}

fn parse(line: &[u8]) -> Parsed {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.iter().all(u8::is_ascii_whitespace) {
        return Parsed::Nothing;
    }
    let error = match serde_json::from_slice::<Received>(line) {
        Ok(message) => return Parsed::Message(Box::new(message)),
        Err(error) => error,
    };
    match serde_json::from_slice::<Value>(line) {
        Ok(Value::Object(object)) => {
            let id = object.get("id").and_then(|id| serde_json::from_value::<RequestId>(id.clone()).ok());
            match (id, object.contains_key("method")) {
                (Some(id), false) => Parsed::Broken(id, format!("it sent a response that is none: {error}")),
                // A notification of a kind that is not known, or what is none.
                _ => Parsed::Nothing,
            }
        }
        // Deeper than a parser goes, or with a number that none can hold, but an answer nevertheless.
        Err(error) if line.starts_with(b"{") => match answered(line, line) {
            Some(id) => Parsed::Broken(id, format!("it sent a response that cannot be read: {error}")),
            None => Parsed::Chatter(String::from_utf8_lossy(line).into_owned()),
        },
        _ => Parsed::Chatter(String::from_utf8_lossy(line).into_owned()),
    }
}

/// Which request a response answers that is not read as a whole: its id stands at one of its ends, as the usual
/// servers write it. In a line that is JSON, no text inside of it can look like that: its quotes would be escaped.
fn answered(head: &[u8], tail: &[u8]) -> Option<RequestId> {
    let head = String::from_utf8_lossy(&head[..head.len().min(KEPT_END)]).replace(' ', "");
    let tail = String::from_utf8_lossy(&tail[tail.len().saturating_sub(KEPT_END)..]).replace(' ', "");
    let at_start = head.strip_prefix(r#"{"jsonrpc":"2.0","id":"#).and_then(|rest| rest.split(',').next());
    let at_end = || {
        let rest = tail.trim_end().strip_suffix('}')?.rsplit_once(r#","id":"#)?.1;
        Some(rest.split(",\"jsonrpc\"").next().unwrap_or(rest))
    };
    let id = at_start.or_else(at_end)?;
    id.parse().ok().map(RequestId::Number)
}

impl Transport<RoleClient> for Lines {
    type Error = io::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), io::Error>> + Send + 'static {
        let (stdin, watch) = (Arc::clone(&self.stdin), Arc::clone(&self.watch));
        async move {
            let mut line = serde_json::to_vec(&message)?;
            line.push(b'\n');
            let mut held = stdin.lock().await;
            let stdin = held.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let writing = async {
                stdin.write_all(&line).await?;
                stdin.flush().await
            };
            if let Ok(written) = timeout(WRITE_TIME, writing).await {
                return written;
            }
            // Half a message is in it.
            held.take();
            watch.broken(format!("it did not read its input for {} s", WRITE_TIME.as_secs()));
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    async fn receive(&mut self) -> Option<Received> {
        loop {
            if let Some(parsing) = &mut self.parsing {
                let parsed = parsing.await.unwrap_or(Parsed::Nothing);
                self.parsing = None;
                match self.judge(parsed) {
                    Some(message) => return Some(message),
                    None => continue,
                }
            }
            match self.step().await {
                Step::More => {}
                Step::Line if self.line.len() > LONG_LINE => {
                    let line = std::mem::take(&mut self.line);
                    self.parsing = Some(tokio::task::spawn_blocking(move || parse(&line)));
                }
                Step::Line => {
                    let parsed = parse(&self.line);
                    self.line.clear();
                    if let Some(message) = self.judge(parsed) {
                        return Some(message);
                    }
                }
                Step::TooLong(skipped) => {
                    let why = self.too_long(skipped.len);
                    match answered(&skipped.head, &skipped.tail) {
                        Some(id) => return Some(refusal(id, why)),
                        None => {
                            self.watch.broken(why);
                            return None;
                        }
                    }
                }
                Step::Broken => {
                    self.watch
                        .broken(format!("it sent a message that does not end; at most {} bytes are taken", self.max));
                    return None;
                }
                Step::End => return None,
            }
        }
    }

    async fn close(&mut self) -> Result<(), io::Error> {
        // A write that is stuck ends when the process is killed.
        if let Ok(mut stdin) = self.stdin.try_lock() {
            stdin.take();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_that_is_not_read_says_which_call_it_answers() {
        for (head, tail, id) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"a"#, r#"x"}]}}"#, Some(7)),
            (r#"{"jsonrpc": "2.0", "id": 7, "result"#, r#"x"}]}}"#, Some(7)),
            (r#"{"result":{"content"#, r#"aaaa"}]},"jsonrpc":"2.0","id":12}"#, Some(12)),
            (r#"{"result":{"content"#, r#"aaaa"}]},"id":12,"jsonrpc":"2.0"}"#, Some(12)),
            (r#"{"result":{"content"#, r#"aaaa","id":12}}"#, None),
            (r#"{"result":{"content"#, r#"aaaa\",\"id\":12}"#, None),
            ("aaaa", "aaaa", None),
            ("", "", None),
        ] {
            assert_eq!(answered(head.as_bytes(), tail.as_bytes()), id.map(RequestId::Number), "{head} {tail}");
        }
    }

    #[test]
    fn lines_are_messages_broken_answers_or_chatter() {
        let deep = format!(r#"{{"jsonrpc":"2.0","id":3,"result":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        for (line, found) in [
            (r#"{"jsonrpc":"2.0","id":3,"result":{}}"#, "message"),
            (r#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"m"}}"#, "message"),
            (r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#, "message"),
            (r#"{"jsonrpc":"2.0","id":3,"error":"no"}"#, "broken"),
            (r#"{"jsonrpc":"2.0","id":3,"result":1e999}"#, "broken"),
            (&deep, "broken"),
            ("Server listening", "chatter"),
            ("{not json}", "chatter"),
            ("  \r", "nothing"),
            (r#"{"hello":1}"#, "nothing"),
        ] {
            let kind = match parse(line.as_bytes()) {
                Parsed::Message(_) => "message",
                Parsed::Broken(RequestId::Number(3), _) => "broken",
                Parsed::Broken(..) => "another",
                Parsed::Chatter(_) => "chatter",
                Parsed::Nothing => "nothing",
            };
            assert_eq!(kind, found, "{line}");
        }
    }

    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn a_server_that_reads_nothing_is_given_up() {
        use super::super::secrets::Redactor;
        use super::super::watched::Watched;
        use rmcp::model::{ClientNotification, CustomNotification};
        use std::process::Stdio;

        let mut sleep = tokio::process::Command::new("sleep");
        let mut child =
            sleep.arg("1000").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let watch = Arc::new(Watch::new("s", Redactor::default()));
        let lines = Lines::new(child.stdout.take().unwrap(), child.stdin.take().unwrap(), 1000, Arc::clone(&watch));
        let mut watched = Watched::new(lines, Arc::clone(&watch));
        // More than a pipe holds.
        let params = Some(serde_json::json!({"text": "x".repeat(1 << 20)}));
        let long = || ClientNotification::CustomNotification(CustomNotification::new("x", params.clone()));
        let (first, second) =
            (watched.send(JsonRpcMessage::notification(long())), watched.send(JsonRpcMessage::notification(long())));
        let (first, second, received) = tokio::join!(first, second, watched.receive());
        assert_eq!(first.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::NotConnected, "it does not wait as long again");
        assert!(received.is_none());
        assert_eq!(watch.why_broken(), Some("it did not read its input for 30 s"));
    }
}
