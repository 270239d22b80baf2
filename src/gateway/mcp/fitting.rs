//! Answers cut down to what a model can take in. Whatever is left out leaves a mark that says how much it was.

use serde_json::{Value, json};

use crate::core::shortened::shortened;

/// Of a value for which there is no room, enough to recognise it.
const HEAD_CHARS: usize = 100;
/// A value that is no longer than its mark would be.
const SMALL_BYTES: usize = 200;
/// Of a list that is too long: one in so many is from its beginning, the rest from its end, where a run has failed.
const FROM_BEGINNING: usize = 4;

/// What the values of one answer may still take up together, bytes of JSON.
pub struct Room {
    left: usize,
}

impl Room {
    pub fn of(bytes: usize) -> Self {
        Self { left: bytes }
    }

    /// Leaves a value as it is, or puts its beginning there, marked as in a ledger.
    pub fn fit(&mut self, value: &mut Value) {
        let text = value.to_string();
        if self.takes(text.len()) || text.len() <= SMALL_BYTES {
            return;
        }
        if let Some(Value::String(head)) = value.get_mut("head").filter(|_| text.starts_with(r#"{"_truncated":true,"#))
        {
            *head = shortened(head, HEAD_CHARS);
        } else {
            *value = json!({ "_truncated": true, "bytes": text.len(), "head": shortened(&text, HEAD_CHARS) });
        }
    }

    /// The same for members of an object that are texts for people.
    pub fn fit_texts(&mut self, object: &mut Value, names: &[&str]) {
        for name in names {
            if let Some(Value::String(text)) = object.get_mut(*name)
                && !self.takes(text.len())
            {
                *text = shortened(text, HEAD_CHARS);
            }
        }
    }

    fn takes(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.left;
        self.left = self.left.saturating_sub(if fits { bytes } else { SMALL_BYTES });
        fits
    }
}

/// Shortens a list to `most` entries, taking them out of its middle; how many stands beside it.
pub fn cut(told: &mut Value, list: &str, most: usize) {
    let Some(entries) = told.get_mut(list).and_then(Value::as_array_mut) else { return };
    let left_out = entries.len().saturating_sub(most);
    if left_out > 0 {
        let first = most / FROM_BEGINNING;
        entries.drain(first..first + left_out);
        told[format!("{list}LeftOut")] = json!(left_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_says_how_much_of_it_is_missing() {
        let mut told = json!({ "nodes": [1, 2, 3, 4, 5, 6], "logs": [1], "none": null });
        cut(&mut told, "nodes", 4);
        cut(&mut told, "logs", 2);
        cut(&mut told, "none", 2);
        cut(&mut told, "absent", 2);
        assert_eq!(told, json!({ "nodes": [1, 4, 5, 6], "logs": [1], "none": null, "nodesLeftOut": 2 }));
    }

    #[test]
    fn values_are_whole_while_there_is_room() {
        let mut room = Room::of(1000);
        let long = json!({ "text": "ä".repeat(400) });
        let mut values = [long.clone(), long.clone(), json!([1, 2]), Value::Null];
        values.iter_mut().for_each(|value| room.fit(value));
        assert_eq!((&values[0], &values[2], &values[3]), (&long, &json!([1, 2]), &Value::Null));
        let [_, cut, ..] = &values;
        assert_eq!((&cut["_truncated"], &cut["bytes"]), (&json!(true), &json!(long.to_string().len())));
        // What a ledger has shortened keeps its own length.
        let mut marker = json!({ "_truncated": true, "bytes": 9_000_000, "sha256": "ab", "head": "x".repeat(4096) });
        room.fit(&mut marker);
        assert_eq!((&marker["bytes"], marker.to_string().len() < 250), (&json!(9_000_000), true));

        let mut entry = json!({ "message": "m".repeat(5000), "level": "info", "error": null });
        Room::of(10_000).fit_texts(&mut entry, &["message", "error", "absent"]);
        assert_eq!(entry["message"].as_str().map(str::len), Some(5000));
        Room::of(4000).fit_texts(&mut entry, &["message", "error", "absent"]);
        assert_eq!(entry["message"].as_str().map(|text| text.chars().count()), Some(HEAD_CHARS + 1));
    }
}
