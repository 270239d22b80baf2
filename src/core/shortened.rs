//! Text that somebody else chose, cut to what a message can bear.

/// At most `max_chars` characters of a text, and a `…` where it was cut.
pub fn shortened(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters() {
        for (text, max_chars, expected) in
            [("", 0, ""), ("ab", 0, "…"), ("ab", 2, "ab"), ("abc", 2, "ab…"), ("äöü", 2, "äö…"), ("äö", 2, "äö")]
        {
            assert_eq!(shortened(text, max_chars), expected, "{text:?} {max_chars}");
        }
    }
}
