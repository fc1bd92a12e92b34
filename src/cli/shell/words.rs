//! A line as words: quoted as in other shells, but without variables, patterns and operators.
//!
//! Words are parted by blanks. A backslash takes the next character as it is; so do single quotes with all between
//! them, and double quotes, in which a backslash is only special before `"` and `\\`. A `#` that begins a word
//! begins a comment.

/// One word of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// Where it begins in the line, in bytes, its quotes included.
    pub(super) start: usize,
    /// Without its quotes.
    pub(super) text: String,
}

/// A line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Line {
    pub(super) words: Vec<Word>,
    /// Whether the last word goes on: nothing after it has ended it.
    pub(super) last_is_open: bool,
    /// The quote, or the backslash, that the line ends in.
    pub(super) unclosed: Option<char>,
}

pub(super) fn split(line: &str) -> Line {
    let mut split = Line::default();
    let mut quote: Option<char> = None;
    let mut characters = line.char_indices().peekable();
    while let Some((at, c)) = characters.next() {
        if quote.is_none() && c.is_whitespace() {
            split.last_is_open = false;
            continue;
        }
        if !split.last_is_open {
            if c == '#' {
                return split;
            }
            split.words.push(Word {
                start: at,
                text: String::new(),
            });
            split.last_is_open = true;
        }
        let Some(word) = split.words.last_mut() else {
            continue;
        };
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None | Some('"'), '\\') => {
                let special = |next: char| quote.is_none() || next == '"' || next == '\\';
                match characters.peek().copied() {
                    Some((_, next)) if special(next) => {
                        word.text.push(next);
                        characters.next();
                    }
                    Some(_) => word.text.push(c),
                    None => split.unclosed = Some(c),
                }
            }
            (_, c) => word.text.push(c),
        }
    }
    split.unclosed = quote.or(split.unclosed);
    split
}

/// A word as it must be typed to be read as `text`. With `begun`, the quote that its beginning was typed with.
pub(super) fn quoted(text: &str, begun: Option<char>) -> String {
    let special = |c: char| c.is_whitespace() || "'\"\\".contains(c);
    match begun {
        Some('\'') if !text.contains('\'') => format!("'{text}"),
        Some('"') => {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
            format!("\"{escaped}")
        }
        _ => {
            let mut quoted = String::with_capacity(text.len());
            for (at, c) in text.char_indices() {
                if special(c) || (at == 0 && c == '#') {
                    quoted.push('\\');
                }
                quoted.push(c);
            }
            quoted
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        split(line).words.into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_are_quoted_as_in_other_shells() {
        assert_eq!(words("  put a\\ b  /x\t"), ["put", "a b", "/x"]);
        assert_eq!(words(r#"'a "b' "c 'd" e'f'"g""#), [r#"a "b"#, "c 'd", "efg"]);
        assert_eq!(words(r#""a\"b\\c\d" 'a\b'"#), [r#"a"b\c\d"#, r"a\b"]);
        assert_eq!(words("ls '' \"\""), ["ls", "", ""]);
        assert_eq!(words("ls a#b # the rest"), ["ls", "a#b"]);
        assert_eq!(words("# nothing"), [""; 0]);
        assert_eq!(words(" "), [""; 0]);
    }

    #[test]
    fn what_is_unfinished_is_told() {
        assert_eq!(split("ls 'a b").unclosed, Some('\''));
        assert_eq!(split("ls \"a").unclosed, Some('"'));
        assert_eq!(split("ls a\\").unclosed, Some('\\'));
        assert_eq!(split("ls 'a'").unclosed, None);
        assert!(split("ls").last_is_open && split("ls a").last_is_open);
        assert!(!split("ls ").last_is_open && !split("").last_is_open);
        let starts: Vec<usize> = split("ls 'ü x' y").words.iter().map(|word| word.start).collect();
        assert_eq!(starts, [0, 3, 10]);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(text in "\\PC{1,12}|[ '\"\\\\#a]{1,8}") {
            let line = quoted(&text, None);
            prop_assert_eq!(words(&line), [text.clone()]);
            for quote in ['"', '\''] {
                let mut line = quoted(&text, Some(quote));
                if line.starts_with(quote) {
                    line.push(quote);
                }
                prop_assert_eq!(words(&line), [text.clone()]);
            }
        }
    }
}
