//! How deep a JSON value may nest: one limit for whatever crosses between handlers, ledgers and clients.
//!
//! Parsers recurse, and each has a limit of its own; a value beyond some of them would be text here and a value there.
//! With one limit below all of theirs, every value that was let in can be read by everyone who gets it, wrapped in a few
//! levels of whatever carries it.

/// Arrays and objects inside one another. serde_json reads at most 127 levels; what carries a value adds a few.
pub const MAX_JSON_DEPTH: usize = 100;

/// Whether JSON text nests deeper than [`MAX_JSON_DEPTH`]. One pass, no recursion; of text that is no JSON the answer
/// means nothing.
pub fn is_too_deep(json: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// What is told of a value that [`is_too_deep`].
pub fn too_deep(what: &str) -> String {
    format!("{what} nests deeper than {MAX_JSON_DEPTH} levels of arrays and objects")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nesting_outside_strings_counts() {
        let nested = |n: usize| format!("{}1{}", "[{\"a\":".repeat(n / 2), "}]".repeat(n / 2));
        for (text, deep) in [
            (nested(MAX_JSON_DEPTH), false),
            (nested(MAX_JSON_DEPTH + 2), true),
            ("[1],".repeat(1000), false),
            (format!("\"{}\"", "[".repeat(1000)), false),
            (format!("\"\\\"{}\"", "[".repeat(1000)), false),
            (format!("[\"\\\\\",{}", "[".repeat(1000)), true),
        ] {
            assert_eq!(is_too_deep(&text), deep, "{}", &text[..text.len().min(40)]);
        }
        let widest = nested(MAX_JSON_DEPTH);
        serde_json::from_str::<serde_json::Value>(&format!("[[[[[[{widest}]]]]]]")).expect("readable when wrapped");
    }
}
