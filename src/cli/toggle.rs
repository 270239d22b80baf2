//! `enable` and `disable`: rewrite one field of a manifest, atomically, and leave everything else as it is. A daemon
//! that watches sees the new file like any other edit.

use std::path::Path;

use serde_json::json;

use crate::cli::failure::{Failure, Outcome, exit};
use crate::cli::output::{document, line, warn};
use crate::cli::place::Place;
use crate::core::manifest::{self, MAX_MANIFEST_BYTES};
use crate::fire::Handle;
use crate::watch;

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
    let bytes = read_manifest(place, &handle)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| Failure::failed("not_utf8", format!("the manifest of {handle} is not UTF-8: {error}")))?;
    let rewritten = manifest::set_enabled(text, enabled).map_err(|error| {
        Failure::failed("invalid_manifest", format!("{handle}: {error}"))
            .hint(format!("see `dirigent validate {handle}`"))
    })?;
    let parsed = manifest::parse(&bytes, &handle.app);
    let changed = parsed.enabled_hint != enabled;
    if changed {
        let path = place.app_dir(&handle.app).join(manifest_path(&handle));
        watch::write_atomic(&path, rewritten.as_bytes()).map_err(|error| Failure::io(path.display(), &error))?;
    }
    if place.json {
        document(&json!({ "handle": handle, "enabled": enabled, "changed": changed }))?;
    } else if changed {
        line(format_args!("{handle} is {word}"))?;
    } else {
        line(format_args!("{handle} was {word} already; nothing changed"))?;
    }
    if enabled && let Some(problem) = parsed.problems.iter().find(|problem| problem.is_error()) {
        warn(format_args!("its manifest is not valid, so it will not run: {problem}"));
    }
    Ok(exit::FINE)
}

/// The bytes of an automation's manifest, read as the daemon reads it.
///
/// # Errors
/// When there is none, or it is nothing that may be read.
pub fn read_manifest(place: &Place, handle: &Handle) -> Result<Vec<u8>, Failure> {
    watch::read_app_file(&place.app_dir(&handle.app), Path::new(&manifest_path(handle)), MAX_MANIFEST_BYTES).map_err(
        |problem| {
            let failure = Failure::failed(&problem.code, format!("{}: {}", shown_path(handle), problem.message));
            match problem.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        },
    )
}

/// Below the app folder.
fn manifest_path(handle: &Handle) -> String {
    format!("automations/{}/automation.json", handle.automation)
}

/// Below the root.
fn shown_path(handle: &Handle) -> String {
    format!("{}/{}", handle.app, manifest_path(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

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
