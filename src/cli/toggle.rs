//! `enable` and `disable`: rewrite one field of a manifest, atomically, and leave everything else as it is. A daemon
//! that watches sees the new file like any other edit.

use serde_json::json;

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{document, line, warn};
use crate::cli::place::Place;
use crate::edit::{self, EditError, Switched};

/// Which automation.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  dirigent enable auto.mail/digest
  dirigent disable digest

Only this field of automation.json is written; Run now works for disabled automations too.")]
pub struct ToggleArgs {
    /// APP/ID, or the id alone when only one app has it
    handle: String,
}

pub fn toggle(place: &Place, args: &ToggleArgs, enabled: bool) -> Outcome {
    let handle = place.automation(&args.handle)?;
    let word = if enabled { "enabled" } else { "disabled" };
    let Switched { changed, problems } =
        edit::set_enabled(&place.app_dir(&handle.app), &handle, enabled).map_err(|error| refused(&error))?;
    if place.json {
        document(&json!({ "handle": handle, "enabled": enabled, "changed": changed }))?;
    } else if changed {
        line(format_args!("{handle} is {word}"))?;
    } else {
        line(format_args!("{handle} was {word} already; nothing changed"))?;
    }
    if enabled && let Some(problem) = problems.iter().find(|problem| problem.is_error()) {
        warn(format_args!("its manifest is not valid, so it will not run: {problem}"));
    }
    Ok(exit::FINE)
}

/// An edit that was not made, in the command line's words.
pub fn refused(error: &EditError) -> Failure {
    let failure = Failure::failed(error.code(), error.to_string());
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::manifest;

    #[test]
    fn the_switch_writes_only_when_it_changes_something() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/automations/x");
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("automation.json");
        let place = Place::find(Some(root.path()), None, true).unwrap();
        let args = ToggleArgs { handle: "x".to_owned() };
        let absent = r#"{"name":"n","prompt":"p","generated":{"by":"t","at":"now"}}"#;
        for (before, enabled, written) in [
            (absent.to_owned(), true, false),
            (absent.to_owned(), false, true),
            (absent.replace("{\"name", "{\"enabled\":\"yes\",\"name"), false, false),
            (absent.replace("{\"name", "{\"enabled\":false,\"name"), true, true),
        ] {
            std::fs::write(&file, &before).unwrap();
            assert_eq!(toggle(&place, &args, enabled).unwrap(), exit::FINE);
            let after = std::fs::read_to_string(&file).unwrap();
            assert_eq!(after != before, written, "{before} -> {enabled}");
            assert_eq!(manifest::parse(after.as_bytes(), &"a".parse().unwrap()).enabled_hint, enabled);
        }
        std::fs::write(&file, "{").unwrap();
        assert_eq!(toggle(&place, &args, true).unwrap_err().code, "invalid_manifest");
    }
}
