//! What a server says besides its answers, and how much of it is listened to.
//!
//! [`Watched`] stands between the SDK and a transport. Progress goes to the log of the run whose call it belongs to,
//! server log messages to the logs of all runs that have a call on that server, in the order in which they came and at a
//! bounded pace (`pace`); when no call is on, log messages go to the daemon's log. Nothing is told of a call after its
//! [`Attended`] is dropped. A server that asks more than it listens to the answers of is cut off.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rmcp::RoleClient;
#[allow(deprecated, reason = "see where it is used")]
use rmcp::model::LoggingLevel;
use rmcp::model::{ClientRequest, GetExtensions, GetMeta, JsonRpcMessage, ProgressToken, ServerNotification};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::sync::Notify;

use super::pace::Pace;
use super::secrets::Redactor;
use crate::core::shortened::shortened;
use crate::fire::LogLevel;

/// Takes lines for the log of one run.
pub type RunLog = Arc<dyn Fn(LogLevel, String) + Send + Sync>;

/// Requests of a server that are not answered yet; more, and it does not read the answers.
const MAX_ASKED: usize = 64;
/// Of one message, this much is shown.
const MAX_TOLD_CHARS: usize = 2000;

/// What is known of one connection.
pub struct Watch {
    server: String,
    pub redactor: Redactor,
    state: Mutex<State>,
    /// The list of tools has changed since it was asked for.
    stale: AtomicBool,
    /// Why the connection was given up from here.
    broken: OnceLock<String>,
    gives_up: Notify,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<u64, Call>,
    next: u64,
    asked: usize,
    pace: Pace,
}

struct Call {
    tool: String,
    log: RunLog,
    /// Known once the request is on its way.
    token: Option<ProgressToken>,
}

/// Marks a request, beside its wire form, as that of an attended call.
#[derive(Clone, Copy)]
pub struct CallId(u64);

/// A call whose run listens, for as long as this lives.
pub struct Attended {
    watch: Arc<Watch>,
    pub id: CallId,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.watch.state().calls.remove(&self.id.0);
    }
}

impl Watch {
    pub fn new(server: &str, redactor: Redactor) -> Self {
        Self {
            server: server.to_owned(),
            redactor,
            state: Mutex::default(),
            stale: AtomicBool::new(true),
            broken: OnceLock::new(),
            gives_up: Notify::new(),
        }
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn attend(self: &Arc<Self>, tool: &str, log: RunLog) -> Attended {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.calls.insert(id, Call { tool: tool.to_owned(), log, token: None });
        Attended { watch: Arc::clone(self), id: CallId(id) }
    }

    /// Whether the list of tools has to be asked for, which whoever asks then does.
    pub fn take_stale(&self) -> bool {
        self.stale.swap(false, Ordering::AcqRel)
    }

    pub fn set_stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Gives the connection up; the first reason counts.
    pub fn broken(&self, why: String) {
        let _ = self.broken.set(why);
        self.gives_up.notify_one();
    }

    pub fn why_broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// A line that is no message.
    pub fn chatter(&self, text: &str) {
        if self.state().pace.next().is_some() {
            let told = shortened(&self.redactor.text(text.trim()), 200);
            tracing::info!(server = self.server, "said, not in the protocol: {}", on_one_line(&told));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self, token: &ProgressToken, text: &str) {
        let mut state = self.state();
        let State { calls, pace, .. } = &mut *state;
        let Some(call) = calls.values().find(|call| call.token.as_ref() == Some(token)) else { return };
        if let Some(dropped) = pace.next() {
            self.tell(call, LogLevel::Info, text, dropped);
        }
    }

    fn message(&self, level: LogLevel, text: &str) {
        let mut state = self.state();
        let State { calls, pace, .. } = &mut *state;
        let Some(dropped) = pace.next() else { return };
        for call in calls.values() {
            self.tell(call, level, text, dropped);
        }
        if calls.is_empty() {
            let told = shortened(&self.redactor.text(text), MAX_TOLD_CHARS);
            tracing::info!(server = self.server, "{}", on_one_line(&told));
        }
    }

    /// Under the lock, so that nothing comes after the call's end.
    fn tell(&self, call: &Call, level: LogLevel, text: &str, dropped: u64) {
        let from = format!("{}.{}", self.server, call.tool);
        if dropped > 0 {
            (call.log)(LogLevel::Warn, format!("{from}: {dropped} messages came too fast and are not shown"));
        }
        (call.log)(level, format!("{from}: {}", shortened(&self.redactor.text(text), MAX_TOLD_CHARS)));
    }

    /// A request leaves: from now on its progress is known.
    fn leaves(&self, message: &TxJsonRpcMessage<RoleClient>) {
        if let JsonRpcMessage::Request(request) = message
            && let ClientRequest::CallToolRequest(call) = &request.request
            && let Some(CallId(id)) = call.extensions().get::<CallId>()
            && let Some(known) = self.state().calls.get_mut(id)
        {
            known.token = request.request.get_meta().get_progress_token();
        }
    }

    /// A request of the server has its answer.
    fn answered(&self) {
        let mut state = self.state();
        state.asked = state.asked.saturating_sub(1);
    }

    /// Whether what has come is for the SDK; `None` ends the connection.
    fn passes(&self, message: &RxJsonRpcMessage<RoleClient>) -> Option<bool> {
        match message {
            JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => Some(true),
            JsonRpcMessage::Request(_) => {
                let mut state = self.state();
                state.asked += 1;
                if state.asked > MAX_ASKED {
                    drop(state);
                    self.broken(format!("it asked {MAX_ASKED} things without reading an answer"));
                    return None;
                }
                Some(true)
            }
            JsonRpcMessage::Notification(notification) => match &notification.notification {
                ServerNotification::ProgressNotification(progress) => {
                    let params = &progress.params;
                    let mut text = params.progress.to_string();
                    if let Some(total) = params.total {
                        text.push_str(&format!(" of {total}"));
                    }
                    if let Some(message) = &params.message {
                        text.push_str(&format!(": {message}"));
                    }
                    self.progress(&params.progress_token, &text);
                    Some(false)
                }
                #[allow(
                    deprecated,
                    reason = "the SDK means that newer versions of the protocol have no logging; servers do"
                )]
                ServerNotification::LoggingMessageNotification(logged) => {
                    let params = &logged.params;
                    let level = match params.level {
                        LoggingLevel::Debug | LoggingLevel::Info | LoggingLevel::Notice => LogLevel::Info,
                        LoggingLevel::Warning => LogLevel::Warn,
                        _ => LogLevel::Error,
                    };
                    match &params.data {
                        Value::String(text) => self.message(level, text),
                        data => self.message(level, &data.to_string()),
                    }
                    Some(false)
                }
                // The SDK forgets what it has cached; once is enough until it is asked again.
                ServerNotification::ToolListChangedNotification(_) => Some(!self.stale.swap(true, Ordering::AcqRel)),
                ServerNotification::CancelledNotification(_)
                | ServerNotification::SubscriptionsAcknowledgedNotification(_) => Some(true),
                _ => Some(false),
            },
        }
    }
}

/// Foreign text as one line of the daemon's log: what would move the cursor, or turn the text round, is written out.
pub fn on_one_line(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if turns || c.is_control() { shown.extend(c.escape_debug()) } else { shown.push(c) }
    }
    shown
}

/// See the module text.
pub struct Watched<T> {
    inner: T,
    watch: Arc<Watch>,
}

impl<T> Watched<T> {
    pub fn new(inner: T, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }
}

impl<T: Transport<RoleClient>> Transport<RoleClient> for Watched<T> {
    type Error = T::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleClient>,
    ) -> impl Future<Output = Result<(), T::Error>> + Send + 'static {
        self.watch.leaves(&message);
        let is_answer = matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_));
        let watch = Arc::clone(&self.watch);
        let sending = self.inner.send(message);
        async move {
            let sent = sending.await;
            // An answer that is still on its way holds the place of its question.
            if is_answer {
                watch.answered();
            }
            sent
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleClient>> {
        loop {
            let message = tokio::select! {
                message = self.inner.receive() => message?,
                () = self.watch.gives_up.notified() => return None,
            };
            if self.watch.passes(&message)? {
                return Some(message);
            }
        }
    }

    fn close(&mut self) -> impl Future<Output = Result<(), T::Error>> + Send {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_stays_one_and_keeps_its_quotes() {
        for (text, shown) in [
            (r#"[ '/tmp/x', "y" ] C:\z é ü"#, r#"[ '/tmp/x', "y" ] C:\z é ü"#),
            ("a\nb\tc\r\u{1b}[31m\0", r"a\nb\tc\r\u{1b}[31m\0"),
            ("abc\u{202e}cba\u{2028}", r"abc\u{202e}cba\u{2028}"),
        ] {
            assert_eq!(on_one_line(text), shown);
        }
    }
}
