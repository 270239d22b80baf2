//! What a server offers: its list of tools, as far as it can be used.
//!
//! The list is asked for when it is first needed and after the server has said that it changed. What a list may hold is
//! bounded; of a name that stands there twice the first tool counts, and a name that no handler could write is passed
//! over. How much was left out goes to the log.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{PaginatedRequestParams, Tool};
use rmcp::{Peer, RoleClient, ServiceError};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::watched::Watch;
use crate::core::near_name::nearest;
use crate::core::shortened::shortened;
use crate::tools::is_name_part;

/// Pages of a list; a server with more has no end of them.
const MAX_PAGES: usize = 50;
/// No server has that many; the list is held for as long as the server is up.
const MAX_TOOLS: usize = 5000;
/// Of the whole list, as JSON.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// A name that a fresh list does not have is looked for again only in an older one.
const FRESH: Duration = Duration::from_secs(2);
/// Of the names that there are, so many are told to whoever asked for another.
const TOLD_NAMES: usize = 20;

/// See the module text.
#[derive(Default)]
pub struct Offer {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When it was asked for; `None` before the first time.
    at: Option<Instant>,
    tools: Arc<Vec<Tool>>,
}

/// The list has to be asked for again, unless it came: also when whoever asked does not wait for it.
struct Asking<'w> {
    watch: &'w Watch,
    came: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.came {
            self.watch.set_stale();
        }
    }
}

impl Offer {
    /// The tools that the server has now.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn tools(&self, peer: &Peer<RoleClient>, watch: &Watch) -> Result<Arc<Vec<Tool>>, ServiceError> {
        let mut known = self.known.lock().await;
        if watch.take_stale() {
            let mut asking = Asking { watch, came: false };
            let tools = ask(peer, watch).await?;
            *known = Known { at: Some(Instant::now()), tools: Arc::new(tools) };
            asking.came = true;
        }
        Ok(Arc::clone(&known.tools))
    }

    /// Whether the server has this tool; else what to say to whoever asked for it.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn look_for(
        &self,
        tool: &str,
        peer: &Peer<RoleClient>,
        watch: &Watch,
    ) -> Result<Result<(), String>, ServiceError> {
        let has = |tools: &[Tool]| tools.iter().any(|known| known.name == tool);
        let mut tools = self.tools(peer, watch).await?;
        if !has(&tools) && self.known.lock().await.at.is_none_or(|at| at.elapsed() > FRESH) {
            watch.set_stale();
            tools = self.tools(peer, watch).await?;
        }
        if has(&tools) {
            return Ok(Ok(()));
        }
        let names: Vec<&str> = tools.iter().map(|known| known.name.as_ref()).collect();
        let hint = match nearest(tool, &names) {
            Some(near) => format!("did you mean \"{}.{near}\"?", watch.server()),
            None => format!("it has {}", listed(&names)),
        };
        let message = format!("MCP server {:?} has no tool {:?}; {hint}", watch.server(), shortened(tool, 100));
        Ok(Err(watch.redactor.text(&message).into_owned()))
    }
}

async fn ask(peer: &Peer<RoleClient>, watch: &Watch) -> Result<Vec<Tool>, ServiceError> {
    if peer.peer_info().is_some_and(|info| info.capabilities.tools.is_none()) {
        return Ok(Vec::new());
    }
    let mut list = List::default();
    let mut cursor: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let params = cursor.clone().map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
        let page = peer.list_tools(params).await?;
        page.tools.into_iter().for_each(|tool| list.take(tool));
        match page.next_cursor {
            Some(next) if !list.is_full && Some(&next) != cursor.as_ref() => cursor = Some(next),
            next => {
                cursor = next;
                break;
            }
        }
    }
    if list.left_out > 0 || cursor.is_some() {
        let (kept, left_out) = (list.tools.len(), list.left_out);
        let more = if cursor.is_some() { ", and did not come to an end" } else { "" };
        tracing::warn!(
            server = watch.server(),
            "of its tools {kept} can be used; {left_out} have a name twice, a name that cannot be called, or no \
             room{more}"
        );
    }
    Ok(list.tools)
}

/// A list of tools as it comes in.
#[derive(Default)]
struct List {
    tools: Vec<Tool>,
    names: HashSet<String>,
    bytes: usize,
    is_full: bool,
    left_out: usize,
}

impl List {
    fn take(&mut self, tool: Tool) {
        let bytes = || serde_json::to_vec(&tool).map_or(MAX_BYTES, |json| json.len());
        if self.is_full || !is_name_part(&tool.name) || self.names.contains(tool.name.as_ref()) {
            self.left_out += 1;
            return;
        }
        let bytes = bytes();
        if self.bytes + bytes > MAX_BYTES || self.tools.len() >= MAX_TOOLS {
            self.is_full = true;
            self.left_out += 1;
            return;
        }
        self.bytes += bytes;
        self.names.insert(tool.name.to_string());
        self.tools.push(tool);
    }
}

/// A few names in words.
fn listed(names: &[&str]) -> String {
    let shown: Vec<&str> = names.iter().take(TOLD_NAMES).copied().collect();
    match names.len() {
        0 => "no tools".to_owned(),
        n if n > shown.len() => format!("{} and {} more", shown.join(", "), n - shown.len()),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tool(name: &str, description: &str) -> Tool {
        let tool = json!({"name": name, "description": description, "inputSchema": {"type": "object"}});
        serde_json::from_value(tool).unwrap()
    }

    #[test]
    fn a_list_holds_what_can_be_called_once_and_within_bounds() {
        let mut list = List::default();
        let long = "x".repeat(129);
        for name in ["plain", "with.dots.in", "plain", "", "a b", "new\nline", "\u{1b}[31m", &long, "grüße", "last"] {
            list.take(tool(name, "first"));
        }
        let names = |list: &List| list.tools.iter().map(|tool| tool.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&list), ["plain", "with.dots.in", "grüße", "last"]);
        assert_eq!((list.left_out, list.is_full), (6, false));

        let mut list = List::default();
        (0..MAX_TOOLS + 5).for_each(|n| list.take(tool(&n.to_string(), "")));
        assert_eq!((list.tools.len(), list.left_out, list.is_full), (MAX_TOOLS, 5, true));

        let mut list = List::default();
        let mib = "x".repeat(1024 * 1024);
        (0..20).for_each(|n| list.take(tool(&n.to_string(), &mib)));
        assert_eq!((list.tools.len(), list.is_full), (7, true));
    }
}
