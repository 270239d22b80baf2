//! "Did you mean": the known name that a misspelt one most likely stands for.

use crate::fire::Handle;

/// Longer names are no slip of the keyboard, and comparing them would cost time that the input decides.
const LONGEST: usize = 40;

/// The known name nearest to `name`, when one is near enough to be worth a hint.
pub fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let plain = plain_letters(name);
    if let Some(same) = known.iter().find(|&&candidate| plain_letters(candidate) == plain) {
        return Some(same);
    }
    known
        .iter()
        .filter_map(|&candidate| {
            let target = plain_letters(candidate);
            // A third of the letters may differ: "expresion" is no "tz", and "mx" is still "max".
            let allowed = (target.len().max(plain.len()) / 3).max(1);
            let distance = edit_distance(&plain, &target);
            let extends = plain.len() >= 4 && (target.starts_with(&plain) || plain.starts_with(&target));
            (extends || (distance <= allowed && distance < target.len())).then_some((distance, candidate))
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// The automation that `text`, a handle or a bare id that names none, most likely stands for.
pub fn nearest_handle<'k>(text: &str, known: &[&'k Handle]) -> Option<&'k Handle> {
    let Some((app, id)) = text.split_once('/') else {
        return nearest_id(text, known);
    };
    let of = |app: &str| -> Vec<&'k Handle> { known.iter().copied().filter(|h| h.app.as_str() == app).collect() };
    if let Some(found) = nearest_id(id, &of(app)) {
        return Some(found);
    }
    let mut apps: Vec<&str> = known.iter().map(|h| h.app.as_str()).collect();
    apps.sort_unstable();
    apps.dedup();
    if let Some(found) = nearest(app, &apps).and_then(|app| nearest_id(id, &of(app))) {
        return Some(found);
    }
    // The right id in the wrong app.
    let mut elsewhere = known.iter().copied().filter(|h| h.automation.as_str() == id);
    elsewhere.next().filter(|_| elsewhere.next().is_none())
}

fn nearest_id<'k>(id: &str, known: &[&'k Handle]) -> Option<&'k Handle> {
    let ids: Vec<&str> = known.iter().map(|h| h.automation.as_str()).collect();
    let near = if ids.contains(&id) { Some(id) } else { nearest(id, &ids) };
    near.and_then(|near| known.iter().copied().find(|h| h.automation.as_str() == near))
}

/// Lower case, without `-`, `_` and blanks: `timeout_ms` and `timeoutMs` are the same name in two habits.
fn plain_letters(name: &str) -> Vec<char> {
    name.chars().filter(|c| !matches!(c, '-' | '_' | ' ')).flat_map(char::to_lowercase).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from `a` to `b`.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &to) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(from != to)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from == b[j - 1] && a[i - 1] == to {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["timeoutMs", "triggers", "trigger", "prompt", "max", "tz", "expr", "secretRef"];
        for (name, expected) in [
            ("timeout_ms", Some("timeoutMs")),
            ("timeout", Some("timeoutMs")),
            ("TimeoutMS", Some("timeoutMs")),
            ("tirgger", Some("trigger")),
            ("promt", Some("prompt")),
            ("mx", Some("max")),
            ("expression", Some("expr")),
            ("secret", Some("secretRef")),
            ("vault", None),
            ("", None),
            ("ab", None),
            ("é", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(nearest(&"timeoutMs".repeat(20), &known), None);
    }

    #[test]
    fn a_handle_is_known_by_either_part() {
        let known: Vec<Handle> = ["auto.mail/digest", "auto.mail/sync", "auto.cal/sync", "bookshelf/weekly-digest"]
            .map(|text| text.parse().expect("a handle"))
            .to_vec();
        let known: Vec<&Handle> = known.iter().collect();
        for (text, expected) in [
            ("auto.mail/digst", Some("auto.mail/digest")),
            ("auto.mial/digest", Some("auto.mail/digest")),
            ("automail/sinc", Some("auto.mail/sync")),
            ("nowhere/weekly-digest", Some("bookshelf/weekly-digest")),
            ("nowhere/sync", None),
            ("weekly", Some("bookshelf/weekly-digest")),
            ("auto.mail/", None),
            ("/", None),
            ("zzzz/zzzz", None),
        ] {
            let found = nearest_handle(text, &known).map(Handle::to_string);
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
