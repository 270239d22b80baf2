//! What was last published, by hash, and the differences that make the next batch.
//!
//! A refresh watches a folder, reads it, compares, and asks the gate whether the reading may be taken for final; only
//! then is it remembered and goes into the delta. A reading that was not admitted leaves no trace but in the gate,
//! which has it read again.

use std::collections::BTreeMap;
use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

use super::place::{AUTOMATIONS, Name, Place, Target};
use super::placed::Watches;
use super::settle::{Gate, OpenGate, Reading};
use super::walk::{self, AppFound, EntryFound, Front};
use super::{AppFolder, AutomationFolder, DiskBatch, FileContent, HandlerFile};
use crate::fire::{AppId, AutomationId, Problem};

/// What a refresh works with.
pub(super) struct Context<'a> {
    pub(super) watches: &'a mut dyn Watches,
    pub(super) gate: &'a mut dyn Gate,
    pub(super) delta: Delta,
}

/// What changed since the last batch.
#[derive(Default)]
pub(super) struct Delta(BTreeMap<Name, AppDelta>);

#[derive(Default)]
struct AppDelta {
    /// The app was not there before, or not in this form.
    new: bool,
    /// Says that the former folder is gone.
    removed: Option<AppFolder>,
    automations: BTreeMap<AutomationId, AutomationFolder>,
}

pub(super) struct Tree {
    root: PathBuf,
    real_root: PathBuf,
    known: BTreeMap<Name, Known>,
}

enum Known {
    Misfit(Problem),
    App(App),
}

struct App {
    id: AppId,
    real: PathBuf,
    /// Where `automations` really is.
    automations: Option<PathBuf>,
    front: Front,
    entries: BTreeMap<Name, Print>,
    misfits: BTreeMap<Name, Problem>,
    /// Folders followed on behalf of an automation with links.
    linked: BTreeMap<Name, Vec<Place>>,
}

/// What was published of an automation.
#[derive(PartialEq)]
struct Print {
    manifest: ManifestPrint,
    handler: HandlerFile,
}

#[derive(PartialEq)]
enum ManifestPrint {
    Absent,
    Hash([u8; 32]),
    Unreadable(Box<Problem>),
}

impl Tree {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), real_root: root.to_owned(), known: BTreeMap::new() }
    }

    /// Forgets everything, reads everything as it is, and makes a full batch of it.
    pub(super) fn first_scan(&mut self, watches: &mut dyn Watches) -> DiskBatch {
        self.forget_all(watches);
        let mut cx = Context { watches, gate: &mut OpenGate, delta: Delta::default() };
        let root_problems = match self.refresh_all(&mut cx) {
            Ok(()) => Vec::new(),
            Err(error) => vec![root_problem(&self.root, &error)],
        };
        let delta = std::mem::take(&mut cx.delta);
        DiskBatch { full: true, root_problems, ..self.batch(delta).unwrap_or_default() }
    }

    /// Refreshes every app that is there or was.
    ///
    /// # Errors
    /// The root is gone or cannot be listed; then nothing was done.
    pub(super) fn refresh_all(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        for name in self.list_root(cx)? {
            self.refresh_app(&name, cx);
        }
        Ok(())
    }

    /// Refreshes the apps that appeared, went away, or are links that lead elsewhere now.
    ///
    /// # Errors
    /// As [`Self::refresh_all`].
    pub(super) fn refresh_root(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        for name in self.list_root(cx)? {
            let same = match (walk::find_app(&self.real_root, &name), self.known.get(&name)) {
                (AppFound::App(_, real), Some(Known::App(app))) => real == app.real,
                (AppFound::Misfit(problem), Some(Known::Misfit(known))) => problem == *known,
                (AppFound::Nothing, None) => true,
                _ => false,
            };
            if !same {
                self.refresh_app(&name, cx);
            }
        }
        Ok(())
    }

    /// The names in the root, and those known from before.
    fn list_root(&mut self, cx: &mut Context<'_>) -> io::Result<Vec<Name>> {
        self.real_root = std::fs::canonicalize(&self.root)?;
        cx.watches.watch(&Place::Root, &self.real_root);
        let listed = walk::list(&self.real_root)?;
        let mut names: Vec<Name> = listed.into_iter().map(|(name, _)| name).collect();
        names.extend(self.known.keys().cloned());
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Refreshes one app with all its automations.
    pub(super) fn refresh_app(&mut self, name: &Name, cx: &mut Context<'_>) {
        let (id, real) = match walk::find_app(&self.real_root, name) {
            AppFound::App(id, real) => (id, real),
            AppFound::Misfit(problem) => return self.set_misfit(name, problem, cx),
            AppFound::Nothing => {
                if self.known.contains_key(name) && cx.gate.admits(&Target::App(name.clone()), &Reading::Gone) {
                    self.remove(name, cx);
                }
                return;
            }
        };
        cx.watches.watch(&Place::App(name.clone()), &real);
        if !matches!(self.known.get(name), Some(Known::App(_))) {
            self.remove(name, cx);
            let front = walk::read_front(&real, &id);
            self.known.insert(name.clone(), Known::App(App::new(id, real, front)));
            cx.delta.of(name).new = true;
        } else if let Some(Known::App(app)) = self.known.get_mut(name) {
            app.real = real;
        }
        let Some(Known::App(app)) = self.known.get_mut(name) else {
            return;
        };
        app.refresh_front(name, cx);
        let listed = match app.list_automations(name, cx.watches) {
            Ok(listed) => {
                app.set_front_problems(name, Vec::new(), cx);
                listed
            }
            Err(problem) => {
                // Not knowing what is in there is no reason to stop what runs; a link outside is knowing.
                let unknown = problem.code == "unreadable";
                app.set_front_problems(name, vec![problem], cx);
                if unknown {
                    return;
                }
                Vec::new()
            }
        };
        let dir = self.root.join(&**name);
        let gone = app.entries.keys().chain(app.misfits.keys());
        let gone: Vec<Name> = gone.filter(|n| listed.binary_search_by(|(l, _)| l.cmp(n)).is_err()).cloned().collect();
        for (entry, kind) in listed {
            app.refresh_entry(name, &dir, &entry, Some(kind), cx);
        }
        for entry in gone {
            app.refresh_entry(name, &dir, &entry, None, cx);
        }
    }

    /// Refreshes `app.json` and `index.html`.
    pub(super) fn refresh_front(&mut self, name: &Name, cx: &mut Context<'_>) {
        if let Some(Known::App(app)) = self.known.get_mut(name) {
            app.refresh_front(name, cx);
        }
    }

    /// Refreshes what stands under one name in `automations`.
    pub(super) fn refresh_entry(&mut self, name: &Name, entry: &Name, cx: &mut Context<'_>) {
        let dir = self.root.join(&**name);
        if let Some(Known::App(app)) = self.known.get_mut(name) {
            app.refresh_entry(name, &dir, entry, None, cx);
        } else {
            cx.watches.unwatch(&Place::Entry(name.clone(), entry.clone()));
        }
    }

    /// The batch that tells a delta; none when nothing changed.
    pub(super) fn batch(&self, delta: Delta) -> Option<DiskBatch> {
        let mut apps = Vec::new();
        for (name, app) in delta.0 {
            let now = self.known.get(&name).map(|known| self.folder(&name, known));
            // Gone and back in the same form is a change, not a removal.
            apps.extend(app.removed.filter(|gone| now.as_ref().is_none_or(|now| now.app != gone.app)));
            apps.extend(now.map(|now| AppFolder {
                complete: app.new,
                automations: app.automations.into_values().collect(),
                ..now
            }));
        }
        if apps.is_empty() { None } else { Some(DiskBatch { full: false, apps, root_problems: Vec::new() }) }
    }

    pub(super) fn root_is_readable(&self) -> bool {
        std::fs::read_dir(&self.root).is_ok()
    }

    fn set_misfit(&mut self, name: &Name, problem: Problem, cx: &mut Context<'_>) {
        match self.known.get(name) {
            Some(Known::Misfit(known)) if *known == problem => return,
            _ => self.remove(name, cx),
        }
        self.known.insert(name.clone(), Known::Misfit(problem));
        cx.delta.of(name).new = true;
    }

    fn remove(&mut self, name: &Name, cx: &mut Context<'_>) {
        let Some(known) = self.known.remove(name) else { return };
        known.unwatch(name, cx.watches);
        let gone = AppFolder { present: false, complete: true, ..self.folder(name, &known) };
        let app = cx.delta.of(name);
        app.automations.clear();
        // What the receiver knows is the form before this batch: a second removal within it is of no concern.
        if !app.new {
            app.removed = Some(gone);
        }
    }

    fn forget_all(&mut self, watches: &mut dyn Watches) {
        for (name, known) in std::mem::take(&mut self.known) {
            known.unwatch(&name, watches);
        }
        watches.unwatch(&Place::Root);
    }

    /// The folder without its automations.
    fn folder(&self, name: &Name, known: &Known) -> AppFolder {
        let (app, front, misfits) = match known {
            Known::App(app) => (Some(app.id.clone()), Some(&app.front), Some(&app.misfits)),
            Known::Misfit(_) => (None, None, None),
        };
        let problems = match known {
            Known::Misfit(problem) => vec![problem.clone()],
            Known::App(app) => {
                app.front.problems.iter().chain(misfits.into_iter().flat_map(BTreeMap::values)).cloned().collect()
            }
        };
        AppFolder {
            name: name.to_string_lossy().into_owned(),
            app,
            dir: self.root.join(&**name),
            present: true,
            has_index_html: front.is_some_and(|f| f.has_index_html),
            app_json: front.map_or(FileContent::Absent, |f| f.app_json.clone()),
            automations: Vec::new(),
            complete: false,
            problems,
        }
    }
}

impl Known {
    fn unwatch(&self, name: &Name, watches: &mut dyn Watches) {
        let Known::App(app) = self else { return };
        watches.unwatch(&Place::App(name.clone()));
        watches.unwatch(&Place::Automations(name.clone()));
        for entry in app.entries.keys() {
            watches.unwatch(&Place::Entry(name.clone(), entry.clone()));
        }
        app.linked.values().flatten().for_each(|place| watches.unwatch(place));
    }
}

impl App {
    fn new(id: AppId, real: PathBuf, front: Front) -> Self {
        Self {
            id,
            real,
            automations: None,
            front,
            entries: BTreeMap::new(),
            misfits: BTreeMap::new(),
            linked: BTreeMap::new(),
        }
    }

    fn refresh_front(&mut self, name: &Name, cx: &mut Context<'_>) {
        let front = Front { problems: self.front.problems.clone(), ..walk::read_front(&self.real, &self.id) };
        if front == self.front {
            return;
        }
        let reading =
            if front.app_json == self.front.app_json { Reading::Other } else { Reading::Json(&front.app_json) };
        if cx.gate.admits(&Target::Front(name.clone()), &reading) {
            self.front = front;
            cx.delta.of(name);
        }
    }

    fn set_front_problems(&mut self, name: &Name, problems: Vec<Problem>, cx: &mut Context<'_>) {
        if problems != self.front.problems {
            self.front.problems = problems;
            cx.delta.of(name);
        }
    }

    fn list_automations(&mut self, name: &Name, watches: &mut dyn Watches) -> Result<Vec<(Name, FileType)>, Problem> {
        let place = Place::Automations(name.clone());
        let found = walk::find_automations(&self.real, &self.id);
        if found.as_ref().err().is_none_or(|problem| problem.code != "unreadable") {
            self.automations = found.as_ref().ok().cloned().flatten();
        }
        let Some(dir) = found? else {
            watches.unwatch(&place);
            return Ok(Vec::new());
        };
        watches.watch(&place, &dir);
        match walk::list(&dir) {
            Ok(listed) => Ok(listed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(super::guard::io_problem(&error, &format!("{}/{AUTOMATIONS}", self.id))),
        }
    }

    fn refresh_entry(&mut self, name: &Name, dir: &Path, entry: &Name, kind: Option<FileType>, cx: &mut Context<'_>) {
        let found = match &self.automations {
            Some(automations) => walk::find_entry(&self.real, automations, &self.id, entry, kind),
            None => EntryFound::Nothing,
        };
        let target = Target::Entry(name.clone(), entry.clone());
        let (misfit, folder) = match found {
            EntryFound::Folder(id, real) => {
                cx.watches.watch(&Place::Entry(name.clone(), entry.clone()), &real);
                (None, Some(self.read_folder(name, dir, entry, &id, &real, cx.watches)))
            }
            EntryFound::Misfit(problem) => {
                cx.watches.unwatch(&Place::Entry(name.clone(), entry.clone()));
                (Some(problem), None)
            }
            EntryFound::Nothing => {
                cx.watches.unwatch(&Place::Entry(name.clone(), entry.clone()));
                (None, None)
            }
        };
        let known = self.entries.get(entry);
        let print = folder.as_ref().map(Print::of);
        let same = known == print.as_ref() && self.misfits.get(entry) == misfit.as_ref();
        if same && !(print.is_some() && cx.gate.insists(&target)) {
            return;
        }
        let reading = match &folder {
            None if known.is_some() && misfit.is_none() => Reading::Gone,
            None => Reading::Other,
            Some(folder) if folder.manifest == FileContent::Absent && known.is_some() => Reading::Gone,
            Some(folder) if folder.manifest == FileContent::Absent => Reading::Empty,
            Some(_) if known.map(|k| &k.manifest) == print.as_ref().map(|p| &p.manifest) => Reading::Other,
            Some(folder) => Reading::Json(&folder.manifest),
        };
        if !cx.gate.admits(&target, &reading) {
            return;
        }
        self.commit(name, dir, entry, misfit, folder.zip(print), cx);
    }

    fn commit(
        &mut self,
        name: &Name,
        dir: &Path,
        entry: &Name,
        misfit: Option<Problem>,
        folder: Option<(AutomationFolder, Print)>,
        cx: &mut Context<'_>,
    ) {
        match misfit {
            Some(problem) => self.misfits.insert(entry.clone(), problem),
            None => self.misfits.remove(entry),
        };
        let changes = cx.delta.of(name);
        if let Some((folder, print)) = folder {
            self.entries.insert(entry.clone(), print);
            changes.automations.insert(folder.id.clone(), folder);
        } else if self.entries.remove(entry).is_some() {
            for place in self.linked.remove(entry).unwrap_or_default() {
                cx.watches.unwatch(&place);
            }
            if let Ok(id) = AutomationId::new(&entry.to_string_lossy()) {
                let gone = AutomationFolder {
                    dir: dir.join(AUTOMATIONS).join(id.as_str()),
                    id: id.clone(),
                    present: false,
                    manifest: FileContent::Absent,
                    handler: HandlerFile::Absent,
                };
                changes.automations.insert(id, gone);
            }
        }
    }

    fn read_folder(
        &mut self,
        name: &Name,
        dir: &Path,
        entry: &Name,
        id: &AutomationId,
        real: &Path,
        watches: &mut dyn Watches,
    ) -> AutomationFolder {
        let read = |app: &Self| {
            let dir = dir.join(AUTOMATIONS).join(id.as_str());
            walk::read_folder(&app.real, real, dir, &app.id, id.clone())
        };
        let (folder, linked) = read(self);
        if linked.is_empty() && !self.linked.contains_key(entry) {
            return folder;
        }
        // Rare, so it may cost a second reading: what a link leads to is watched first, too.
        let mut places = Vec::new();
        for file in &linked {
            if let (Some(dir), Some(file)) = (file.parent(), file.file_name()) {
                let place = Place::Linked(name.clone(), entry.clone(), Name::from(file));
                watches.watch(&place, dir);
                places.push(place);
            }
        }
        for place in self.linked.remove(entry).unwrap_or_default() {
            if !places.contains(&place) {
                watches.unwatch(&place);
            }
        }
        if !places.is_empty() {
            self.linked.insert(entry.clone(), places);
        }
        read(self).0
    }
}

impl Print {
    fn of(folder: &AutomationFolder) -> Self {
        let manifest = match &folder.manifest {
            FileContent::Absent => ManifestPrint::Absent,
            FileContent::Bytes { sha256, .. } => ManifestPrint::Hash(*sha256),
            FileContent::Unreadable(problem) => ManifestPrint::Unreadable(Box::new(problem.clone())),
        };
        Self { manifest, handler: folder.handler.clone() }
    }
}

impl Delta {
    fn of(&mut self, name: &Name) -> &mut AppDelta {
        self.0.entry(name.clone()).or_default()
    }
}

pub(super) fn root_problem(root: &Path, error: &io::Error) -> Problem {
    let shown = root.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            Problem::error("root_missing", "", format!("the apps folder {shown} does not exist"))
                .with_hint("create it, or name another one: dirigent serve <root>")
        }
        io::ErrorKind::NotADirectory => {
            Problem::error("root_missing", "", format!("the apps folder {shown} is not a folder"))
        }
        _ => Problem::error("root_unreadable", "", format!("the apps folder {shown} cannot be read: {error}")),
    }
}
