//! History, straight from disk: every app's ledger, read side by side. Readers never block a writer.
//!
//! One ledger that cannot be read hides nothing of the others: it is told on stderr, and a run that is found in none of
//! them is not said to be unknown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::cli::failure::Failure;
use crate::cli::output::warn;
use crate::cli::place::Place;
use crate::fire::{AppId, EpochMs, Handle, RunId};
use crate::ledger::{self, LedgerError, Reader, RunQuery, RunRow, Tally};

/// Run ids share their first digits with every run of the same seconds, so fewer characters mean nothing.
const SHORTEST_ID: usize = 6;
/// Rows that are read at once when ids are looked through.
const PAGE: usize = 256;
/// Names only the runs that an abbreviation could mean, in a message.
const SHOWN_MATCHES: usize = 5;

pub struct Ledgers {
    readers: Vec<(AppId, Reader)>,
    /// Apps whose ledger could not be read, or not all of it.
    unread: RefCell<BTreeSet<AppId>>,
}

impl Ledgers {
    /// Opens the ledgers of all apps, also of those whose code is gone.
    ///
    /// # Errors
    /// When the folder that holds them cannot be read.
    pub fn open(place: &Place) -> Result<Self, Failure> {
        let home = place.data.as_ref().unwrap_or(&place.root);
        let mut ledgers = Self { readers: Vec::new(), unread: RefCell::default() };
        for (app, path) in files(home)? {
            if let Some(reader) = ledgers.told(&app, Reader::open(&path)).flatten() {
                ledgers.readers.push((app, reader));
            }
        }
        Ok(ledgers)
    }

    fn told<T>(&self, app: &AppId, read: Result<T, LedgerError>) -> Option<T> {
        let told = read.inspect_err(|error| {
            if self.unread.borrow_mut().insert(app.clone()) {
                warn(format_args!("{app}: {error}"));
            }
        });
        told.ok()
    }

    /// Those runs of all apps (or of the one) that `query` asks for, newest first.
    pub fn runs(&self, app: Option<&AppId>, query: &RunQuery) -> Vec<RunRow> {
        let mut rows: Vec<RunRow> = self
            .readers
            .iter()
            .filter(|(name, _)| app.is_none_or(|app| app == name))
            .flat_map(|(name, reader)| self.told(name, reader.runs(query)).unwrap_or_default())
            .collect();
        // Ids rise with the time at which they were made.
        rows.sort_by(|a, b| b.run_id.cmp(&a.run_id));
        rows.truncate(query.limit);
        rows
    }

    /// What runs took, of all automations or of the one; see [`Reader::tallies`].
    pub fn tallies(&self, only: Option<&Handle>, since: Option<EpochMs>) -> Vec<(Handle, Tally)> {
        let asked = self.readers.iter().filter(|(app, _)| only.is_none_or(|only| only.app == *app));
        let of = |(app, reader): &(AppId, Reader)| {
            let read = reader.tallies(only.map(|handle| &handle.automation), since);
            let tallies = self.told(app, read).unwrap_or_default();
            tallies.into_iter().map(|(id, tally)| (Handle::new(app.clone(), id), tally)).collect::<Vec<_>>()
        };
        asked.flat_map(of).collect()
    }

    /// The run with this id, and the ledger that holds it.
    pub fn find(&self, run: &RunId) -> Option<(&Reader, RunRow)> {
        self.readers.iter().find_map(|(app, reader)| Some((reader, self.told(app, reader.run(run))??)))
    }

    /// The run that `text` means: its id, or at least six characters from the beginning or the end of it that no other
    /// run has there.
    ///
    /// # Errors
    /// `unknown_run`, or `ledger` when it may stand in one that cannot be read; `ambiguous`; wrong usage for a text that
    /// cannot be part of an id.
    pub fn resolve(&self, text: &str) -> Result<(&Reader, RunRow), Failure> {
        let wanted = text.to_ascii_lowercase();
        let unknown = || {
            let unread = self.unread.borrow();
            if unread.is_empty() {
                return Failure::failed("unknown_run", format!("there is no run {text:?}"))
                    .hint("`dirigent runs` lists them; history keeps what the manifest's `history.keep` says");
            }
            let names: Vec<&str> = unread.iter().map(AppId::as_str).collect();
            let told =
                format!("no ledger that can be read has run {text:?}; unreadable are those of {}", names.join(", "));
            Failure::failed("ledger", told).with("apps", names).hint("`dirigent list` says what is wrong with them")
        };
        if let Ok(id) = RunId::new(&wanted) {
            return self.find(&id).ok_or_else(unknown);
        }
        check_part(&wanted)?;
        let mut found = Vec::new();
        for (app, reader) in &self.readers {
            let ids = self.told(app, ids_with(reader, &wanted)).unwrap_or_default();
            found.extend(ids.into_iter().map(|id| (app, reader, id)));
        }
        match found.as_slice() {
            [] => Err(unknown()),
            [(app, reader, id)] => {
                let row = self.told(app, reader.run(id)).flatten().ok_or_else(unknown)?;
                Ok((reader, row))
            }
            several => {
                let shown: Vec<&str> = several.iter().take(SHOWN_MATCHES).map(|(_, _, id)| id.as_str()).collect();
                let more = if several.len() > shown.len() { ", …" } else { "" };
                Err(Failure::failed("ambiguous", format!("{text:?} could be any of {}{more}", shown.join(", ")))
                    .hint("the last characters of an id are the ones that differ"))
            }
        }
    }
}

/// Page by page, so that a long history is never held as a whole.
fn ids_with(reader: &Reader, part: &str) -> Result<Vec<RunId>, LedgerError> {
    let mut found = Vec::new();
    let mut query = RunQuery { limit: PAGE, ..RunQuery::default() };
    loop {
        let page: Vec<RunId> = reader.runs(&query)?.into_iter().map(|row| row.run_id).collect();
        let Some(last) = page.last().cloned() else {
            return Ok(found);
        };
        found.extend(page.into_iter().filter(|id| is_part(id.as_str(), part)));
        query.before = Some(last);
    }
}

/// The beginning or the end of an id; a person need not type its hyphens.
fn is_part(id: &str, part: &str) -> bool {
    if id.starts_with(part) || id.ends_with(part) {
        return true;
    }
    let (id, part) = (id.replace('-', ""), part.replace('-', ""));
    id.starts_with(&part) || id.ends_with(&part)
}

fn check_part(part: &str) -> Result<(), Failure> {
    let digits = part.bytes().filter(u8::is_ascii_hexdigit).count();
    if digits < SHORTEST_ID || !part.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') {
        return Err(Failure::usage(format!("{part:?} is no run id, nor {SHORTEST_ID} or more characters of one"))
            .hint("`dirigent runs` lists them"));
    }
    Ok(())
}

/// `<home>/<app>/runtime.sqlite` of every app, in the order of their names.
fn files(home: &std::path::Path) -> Result<Vec<(AppId, PathBuf)>, Failure> {
    let entries = match std::fs::read_dir(home) {
        Ok(entries) => entries,
        // A data folder that no daemon has written to yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::io(home.display(), &error)),
    };
    let mut files: Vec<(AppId, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let app = AppId::new(entry.file_name().to_str()?).ok()?;
            let path = entry.path().join(ledger::FILE);
            // Whatever stands there: what is no ledger is told, not passed over.
            path.symlink_metadata().is_ok().then_some((app, path))
        })
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_by_either_end() {
        let id = "01900000-0000-7000-8000-0123456789ab";
        for (part, is) in [
            ("019000", true),
            ("01900000-00", true),
            ("0190000000", true),
            ("6789ab", true),
            ("8000-0123456789ab", true),
            ("80000123456789ab", true),
            ("7000-8000", false),
            ("6789ac", false),
        ] {
            assert_eq!(is_part(id, part), is, "{part}");
        }
    }

    #[test]
    fn too_little_of_an_id_is_wrong_usage() {
        for (part, fine) in
            [("6789ab", true), ("6789a", false), ("6-7-8-9-a", false), ("hello-there", false), ("", false)]
        {
            assert_eq!(check_part(part).is_ok(), fine, "{part}");
        }
    }
}
