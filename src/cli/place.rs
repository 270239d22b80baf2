//! Where a command works: the root, the ledgers, the daemon if there is one; and which automation a word means.

use std::path::{Path, PathBuf};

use crate::cli::failure::Failure;
use crate::core::near_name::{nearest, nearest_handle};
use crate::daemon::Folders;
use crate::daemon::home::{self, DaemonInfo};
use crate::fire::{AppId, AutomationId, Handle};

/// Handles that a hint lists.
const SHOWN_HANDLES: usize = 5;

/// The root and how to answer; made once per command.
#[derive(Debug, Clone)]
pub struct Place {
    /// Absolute.
    pub root: PathBuf,
    /// Where the ledgers are, when apart from the code.
    pub data: Option<PathBuf>,
    pub json: bool,
    /// The daemon that runs on the root.
    pub daemon: Option<DaemonInfo>,
}

impl Place {
    /// `asked`: what the command line or the environment names. A daemon's own `--data` goes before `data`, because
    /// that is where it writes.
    ///
    /// # Errors
    /// A root that is no folder.
    pub fn find(asked: Option<&Path>, data: Option<&Path>, json: bool) -> Result<Self, Failure> {
        let root = match asked {
            Some(root) => absolute(root)?,
            None => nearest_root(&current_dir()?),
        };
        check_root(&root)?;
        let daemon = home::running(&root);
        let announced = daemon.as_ref().and_then(|d| d.data.clone());
        let data = match announced {
            Some(data) => Some(data),
            None => data.map(absolute).transpose()?,
        };
        Ok(Self { root, data, json, daemon })
    }

    /// For what can be asked from anywhere: no root is looked for.
    pub fn nowhere(json: bool) -> Self {
        Self { root: PathBuf::new(), data: None, json, daemon: None }
    }

    /// The folder that holds an app's code. It may be a link.
    pub fn app_dir(&self, app: &AppId) -> PathBuf {
        self.root.join(app.as_str())
    }

    /// Where the ledgers are.
    pub fn folders(&self) -> Folders {
        Folders::new(&self.root, self.data.as_deref())
    }

    /// Every automation folder, by name alone; nothing is read.
    pub fn handles(&self) -> Vec<Handle> {
        let mut handles = Vec::new();
        for app in names(&self.root, |name| AppId::new(name).ok()) {
            let automations = self.app_dir(&app).join("automations");
            for id in names(&automations, |name| AutomationId::new(name).ok()) {
                handles.push(Handle::new(app.clone(), id));
            }
        }
        handles.sort();
        handles
    }

    /// The automation that `text` means: a handle, or an id that only one app has.
    ///
    /// # Errors
    /// `unknown_automation`, with the nearest name; `ambiguous` for an id in several apps.
    pub fn automation(&self, text: &str) -> Result<Handle, Failure> {
        if let Ok(handle) = text.parse::<Handle>()
            && self.app_dir(&handle.app).join("automations").join(handle.automation.as_str()).is_dir()
        {
            return Ok(handle);
        }
        pick(text, self.handles(), &self.root)
    }
}

/// Chooses among the handles that there are.
fn pick(text: &str, mut known: Vec<Handle>, root: &Path) -> Result<Handle, Failure> {
    let named: Vec<usize> =
        (0..known.len()).filter(|&at| known[at].automation.as_str() == text || known[at].to_string() == text).collect();
    match named.as_slice() {
        [only] => Ok(known.swap_remove(*only)),
        [] => Err(unknown(text, &known, root)),
        several => {
            let names: Vec<String> = several.iter().map(|&at| known[at].to_string()).collect();
            Err(Failure::failed("ambiguous", format!("{text:?} is in several apps: {}", names.join(", ")))
                .hint("name the app too: <app>/<id>"))
        }
    }
}

fn unknown(text: &str, known: &[Handle], root: &Path) -> Failure {
    let failure = |message: String| Failure::failed("unknown_automation", message);
    let of = |app: &str| -> Vec<&Handle> { known.iter().filter(|handle| handle.app.as_str() == app).collect() };
    let app = text.trim_end_matches('/');
    if let Ok(id) = AppId::new(app)
        && (!of(app).is_empty() || root.join(id.as_str()).is_dir())
    {
        let names = some_of(&of(app));
        let failure = failure(format!("{app} is an app, not an automation: a handle is <app>/<automation>"));
        return match names.as_str() {
            "" => failure.hint(format!("it has no automations; make one with `dirigent new {app}/<id>`")),
            names => failure.hint(format!("it has {names}")),
        };
    }
    let failure = failure(format!("there is no automation {text:?} under {}", root.display()));
    let all: Vec<&Handle> = known.iter().collect();
    if let Some(near) = nearest_handle(text, &all) {
        return failure.hint(format!("did you mean {near}?"));
    }
    let apps: Vec<&str> = known.iter().map(|handle| handle.app.as_str()).collect();
    // The app is known, or nearly, and the rest of the word is not.
    let app = text.split('/').next().unwrap_or_default();
    match apps.iter().find(|known| **known == app).copied().or_else(|| nearest(app, &apps)) {
        Some(app) => failure.hint(format!("a handle is <app>/<automation>; {app} has {}", some_of(&of(app)))),
        None if known.is_empty() => failure.hint("there are none yet; is this the right --root?"),
        None => failure.hint("`dirigent list` shows them all"),
    }
}

/// A few handles in words.
fn some_of(handles: &[&Handle]) -> String {
    let mut names: Vec<String> = handles.iter().take(SHOWN_HANDLES).map(ToString::to_string).collect();
    match handles.len().saturating_sub(SHOWN_HANDLES) {
        0 => {}
        more => names.push(format!("and {more} more")),
    }
    names.join(", ")
}

/// Folders (and links to folders) in `dir` whose name reads as a `T`.
fn names<T>(dir: &Path, read: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_str().filter(|name| !name.starts_with(['.', '_']) && *name != "node_modules")?;
            let value = read(name)?;
            entry.path().is_dir().then_some(value)
        })
        .collect()
}

/// The nearest folder, from `from` upwards, that holds `.dirigent`; else `from` itself.
fn nearest_root(from: &Path) -> PathBuf {
    from.ancestors().find(|dir| dir.join(home::DIR).is_dir()).unwrap_or(from).to_owned()
}

pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::io(path.display(), &error))
}

fn current_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| Failure::io("the current folder", &error))
}

/// # Errors
/// `no_root`, as wrong usage.
pub fn check_root(root: &Path) -> Result<(), Failure> {
    let told = match std::fs::metadata(root) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => "it is no folder".to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "there is no such folder".to_owned(),
        Err(error) => error.to_string(),
    };
    let mut failure = Failure::usage(format!("the root {} cannot be used: {told}", root.display()));
    "no_root".clone_into(&mut failure.code);
    Err(failure.hint("the root is the folder that holds the app folders; create it first, or name another"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handles(texts: &[&str]) -> Vec<Handle> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_word_means_the_one_automation_that_it_can() {
        let known = ["auto.mail/digest", "auto.mail/sync", "auto.cal/sync"];
        for (text, found) in [
            ("auto.mail/sync", Ok("auto.mail/sync")),
            ("digest", Ok("auto.mail/digest")),
            ("sync", Err("name the app too: <app>/<id>")),
            ("digset", Err("did you mean auto.mail/digest?")),
            ("auto.mail/digst", Err("did you mean auto.mail/digest?")),
            ("auto.mial/digest", Err("did you mean auto.mail/digest?")),
            ("auto.mail", Err("it has auto.mail/digest, auto.mail/sync")),
            ("auto.mail/", Err("it has auto.mail/digest, auto.mail/sync")),
            ("auto.cla", Err("a handle is <app>/<automation>; auto.cal has auto.cal/sync")),
            (
                "auto.mail/zzzzzzzz",
                Err("a handle is <app>/<automation>; auto.mail has auto.mail/digest, auto.mail/sync"),
            ),
            ("zzzzzzzz", Err("`dirigent list` shows them all")),
            ("", Err("`dirigent list` shows them all")),
        ] {
            match (pick(text, handles(&known), Path::new("/r")), found) {
                (Ok(handle), Ok(expected)) => assert_eq!(handle.to_string(), expected),
                (Err(failure), Err(hint)) => assert_eq!(failure.hint.as_deref(), Some(hint), "{text}"),
                (other, _) => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_root_is_the_nearest_folder_with_a_daemons_files() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner) = (dir.path().join("outer"), dir.path().join("outer/app/automations/x"));
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(nearest_root(&inner), inner);
        std::fs::create_dir(outer.join(home::DIR)).unwrap();
        assert_eq!(nearest_root(&inner), outer);
        assert_eq!(nearest_root(&outer), outer);
    }

    #[test]
    fn handles_are_read_off_the_folders() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["b/automations/y", "a/automations/x", "a/automations/.old", "_a/automations/x", "c"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("a/automations/file.json"), "{}").unwrap();
        let place = Place::find(Some(dir.path()), None, false).unwrap();
        assert_eq!(place.handles(), handles(&["a/x", "b/y"]));
        assert_eq!(place.automation("x").unwrap().to_string(), "a/x");
    }

    #[test]
    fn a_root_that_is_no_folder_is_wrong_usage() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        for path in ["file", "absent"] {
            let failure = Place::find(Some(&dir.path().join(path)), None, false).unwrap_err();
            assert_eq!((failure.code.as_str(), failure.exit), ("no_root", 2), "{path}");
        }
    }
}
