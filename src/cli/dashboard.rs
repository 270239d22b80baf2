//! `dashboard`: lets a browser in. Asks the daemon for a one-time link, prints it, and opens it.

use std::io::IsTerminal;

use crate::cli::client::{Client, LoginLink};
use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{document, line, note};
use crate::cli::place::Place;
use crate::cli::times::rfc3339;

/// Opens the dashboard of the running daemon in a browser.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  dirigent dashboard
  dirigent dashboard --no-open

The printed link works once, within two minutes. It is opened here when stdout is a terminal and
there is a screen. The session that it starts ends after twelve hours without use, or with the
daemon.")]
pub struct DashboardArgs {
    /// Only print the link
    #[arg(long)]
    no_open: bool,
}

pub async fn dashboard(place: &Place, args: &DashboardArgs) -> Outcome {
    let link = link(place).await?;
    if place.json {
        document(&serde_json::json!({ "url": link.url, "expiresAt": rfc3339(link.expires_at) }))?;
        return Ok(exit::FINE);
    }
    line(&link.url)?;
    if args.no_open || !std::io::stdout().is_terminal() || !has_screen() {
        note("open it in a browser; it works once, within two minutes");
        return Ok(exit::FINE);
    }
    // The link shows for a moment in the list of processes. It works once: should somebody else be faster, the browser
    // says that it does not work any more.
    match open::that_detached(&link.url) {
        Ok(()) => note("opening it in the browser; it works once, within two minutes"),
        Err(error) => note(format_args!("no browser could be started ({error}); open the link yourself")),
    }
    Ok(exit::FINE)
}

/// A one-time link to the running daemon; what announces a daemon may print one as well.
///
/// # Errors
/// `no_daemon` (exit 3) when none runs, or when it does not answer.
pub async fn link(place: &Place) -> Result<LoginLink, Failure> {
    Client::needed(place, "dashboard")?.login_link().await
}

/// Whether a browser would have where to show itself. Without a screen, Linux systems start one in the terminal.
fn has_screen() -> bool {
    !cfg!(target_os = "linux")
        || ["DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"].iter().any(|name| std::env::var_os(name).is_some())
}
