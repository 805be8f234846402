//! What came from a server, and through it from guests and users, so that it can be printed: no terminal obeys anything in it.
//!
//! A terminal obeys control characters: C0 (`ESC`), `DEL`, and C1, of which U+009B alone begins a sequence. All that is printed goes
//! through here: texts in [`Page`](super::render::Page)s, and the rest in [`Output`](super::output::Output).

/// A text for one line: every control character is shown as an escape.
pub fn line(text: &str) -> String {
    shown(text, |_| false)
}

/// A text of several lines, with tabs: every other control character is shown as an escape.
pub fn lines(text: &str) -> String {
    shown(text, |c| matches!(c, '\n' | '\t'))
}

fn shown(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !keep(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// The same JSON without control characters other than new lines and tabs. The text must be JSON: then those are in its strings, where
/// they can be escaped, or carriage returns between its values.
pub fn json(text: &str) -> String {
    let mut same = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => same.push(c),
            '\r' => same.push(' '),
            c if c.is_control() => same.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => same.push(c),
        }
    }
    same
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        let text = "a\x1b[2J\u{9b}1m\x7f\0é\tb\r\nc";
        let escaped = r"a\u{1b}[2J\u{9b}1m\u{7f}\u{0}é";
        assert_eq!(line(text), escaped.to_owned() + r"\tb\r\nc");
        assert_eq!(lines(text), escaped.to_owned() + "\tb\\r\nc");
    }

    #[test]
    fn json_stays_what_it_is() {
        let text = "{\r\n\t\"a\u{9b}2J\":\"\u{7f}\\u001b\\n\u{85}é\"\r}";
        let same = json(text);
        assert_eq!(same, "{ \n\t\"a\\u009b2J\":\"\\u007f\\u001b\\n\\u0085é\" }");
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(read(&same), read(text));
    }

    proptest! {
        #[test]
        fn no_text_is_obeyed(text: String) {
            let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
            prop_assert!(!line(&text).chars().any(char::is_control));
            prop_assert!(!lines(&text).chars().any(obeyed));
            let written = serde_json::to_string(&text).unwrap();
            let same = json(&written);
            prop_assert!(!same.chars().any(obeyed));
            prop_assert_eq!(serde_json::from_str::<String>(&same).unwrap(), text);
        }
    }
}
