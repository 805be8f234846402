//! Option lists: the `key=value,key=value` texts of `--disk` and its like.
//!
//! A comma in a value is written twice. A key without a value is a switch that is on. Keys and values come from the user; all
//! that is wrong with a list is reported at once.

use std::fmt;

use paddock_api::spec::ByteSize;

/// What is wrong with one option list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionError {
    /// The flag, such as `--disk`.
    pub flag: &'static str,
    /// The whole list.
    pub list: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.flag, shown(&self.list), self.detail)
    }
}

/// A text of the user's, as it may stand in a message: quoted where it would be hard to read.
pub fn shown(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| !c.is_control() && !c.is_whitespace());
    if plain {
        text.to_owned()
    } else {
        format!("{text:?}")
    }
}

/// A flag that takes an option list.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, such as `--disk`.
    pub name: &'static str,
    /// The key of a first item that is only a value, if it may be one.
    pub bare: Option<&'static str>,
    /// The keys it knows.
    pub keys: &'static [&'static str],
}

/// An option list that has been taken apart. Take out each key, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct OptionList<'a> {
    flag: Flag,
    list: &'a str,
    pairs: Vec<(&'static str, Option<String>)>,
    errors: Vec<OptionError>,
}

impl<'a> OptionList<'a> {
    /// Takes a list apart.
    #[must_use]
    pub fn parse(flag: Flag, list: &'a str) -> Self {
        let mut parsed = Self {
            flag,
            list,
            pairs: Vec::new(),
            errors: Vec::new(),
        };
        for (index, item) in split(list).into_iter().enumerate() {
            parsed.add(index, item);
        }
        parsed
    }

    fn add(&mut self, index: usize, item: String) {
        if let (0, Some(bare)) = (index, self.flag.bare) {
            if is_bare(&item, self.flag.keys) {
                return self.pairs.push((bare, Some(item)));
            }
        }
        let (key, value) = match item.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (item.as_str(), None),
        };
        let Some(known) = known_key(key, self.flag.keys) else {
            let detail = unknown_key(key, self.flag.keys);
            return self.error(detail);
        };
        self.pairs.push((known, value));
    }

    /// Adds an error.
    pub fn error(&mut self, detail: impl Into<String>) {
        self.errors.push(OptionError {
            flag: self.flag.name,
            list: self.list.to_owned(),
            detail: detail.into(),
        });
    }

    /// Takes out a text.
    pub fn text(&mut self, key: &str) -> Option<String> {
        let first = self.take(key)?;
        while self.take(key).is_some() {
            self.error(format!("{key} is given twice"));
        }
        self.value(first)
    }

    /// Takes out all texts of a key that may be given more than once.
    pub fn texts(&mut self, key: &str) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(pair) = self.take(key) {
            texts.extend(self.value(pair));
        }
        texts
    }

    fn take(&mut self, key: &str) -> Option<(&'static str, Option<String>)> {
        let at = self.pairs.iter().position(|(other, _)| *other == key)?;
        Some(self.pairs.remove(at))
    }

    fn value(&mut self, (key, value): (&'static str, Option<String>)) -> Option<String> {
        if value.is_none() {
            self.error(format!("{key} needs a value: {key}=…"));
        }
        value
    }

    /// Takes out a switch: `key`, `key=on` or `key=off`.
    pub fn switch(&mut self, key: &str) -> Option<bool> {
        if let Some(pair) = self.pairs.iter_mut().find(|(other, _)| *other == key) {
            pair.1.get_or_insert_with(|| "on".to_owned());
        }
        let words = [
            ("on", true),
            ("off", false),
            ("true", true),
            ("false", false),
        ];
        self.choice(key, &words)
    }

    /// Takes out one of some words.
    pub fn choice<T: Clone>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let value = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == value);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.error(format!(
                "{key} is {}; it takes {}",
                shown(&value),
                known.join(", ")
            ));
        }
        found.map(|(_, meaning)| meaning.clone())
    }

    /// Takes out an integer from 0 up.
    pub fn integer(&mut self, key: &str) -> Option<u64> {
        let value = self.text(key)?;
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        let number = value.parse().ok().filter(|_| digits);
        if number.is_none() {
            self.error(format!("{key} is {}; it takes an integer", shown(&value)));
        }
        number
    }

    /// Takes out a size.
    pub fn size(&mut self, key: &str) -> Option<ByteSize> {
        let value = self.text(key)?;
        match value.parse() {
            Ok(size) => Some(size),
            Err(error) => {
                self.error(format!("{key}: {error}"));
                None
            }
        }
    }

    /// What was made of the list, or all that is wrong with it.
    ///
    /// # Errors
    /// Everything that was found while the list was taken apart and its keys taken out.
    pub fn finish<T>(self, made: T) -> Result<T, Vec<OptionError>> {
        debug_assert!(
            self.pairs.is_empty(),
            "{}: keys that nobody takes out: {:?}",
            self.flag.name,
            self.pairs
        );
        if self.errors.is_empty() {
            Ok(made)
        } else {
            Err(self.errors)
        }
    }
}

/// The items of a list: split at single commas, doubled ones joined.
fn split(list: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, items.last_mut()) {
            (',', _) if chars.peek() != Some(&',') => items.push(String::new()),
            (c, Some(item)) => {
                if c == ',' {
                    chars.next();
                }
                item.push(c);
            }
            (_, None) => {}
        }
    }
    items
}

/// Whether a first item is only a value. A path may have an `=` in it, so what is before the first one must look like a key.
fn is_bare(item: &str, keys: &[&'static str]) -> bool {
    match item.split_once('=') {
        Some((key, _)) => key.contains('/'),
        None => !item.is_empty() && known_key(item, keys).is_none(),
    }
}

/// The key as it is known; `_` and `-` are the same.
fn known_key(key: &str, keys: &[&'static str]) -> Option<&'static str> {
    let key = key.replace('_', "-");
    keys.iter().find(|known| **known == key).copied()
}

fn unknown_key(key: &str, keys: &[&str]) -> String {
    let nearest = keys
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, key), known))
        .filter(|(distance, known)| *distance <= known.len() / 3 + 1)
        .min()
        .map(|(_, known)| format!("did you mean {known}? "))
        .unwrap_or_default();
    let what = if key.is_empty() {
        "there is an item without a key (a comma in a value is written twice)".to_owned()
    } else {
        format!("unknown key {}", shown(key))
    };
    format!("{what}; {nearest}the keys are {}", keys.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLAG: Flag = Flag {
        name: "--disk",
        bare: Some("path"),
        keys: &["path", "readonly", "queue-size", "size", "mode"],
    };

    fn one_error(list: &str, take: impl FnOnce(&mut OptionList<'_>)) -> String {
        let mut parsed = OptionList::parse(FLAG, list);
        take(&mut parsed);
        let errors = parsed.finish(()).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors[0].to_string()
    }

    #[test]
    fn values() {
        let mut list = OptionList::parse(FLAG, "path=a,,b=c,readonly=off,queue_size=16,size=1G");
        assert_eq!(list.text("path").as_deref(), Some("a,b=c"));
        assert_eq!(list.switch("readonly"), Some(false));
        assert_eq!(list.integer("queue-size"), Some(16));
        assert_eq!(list.size("size"), Some(ByteSize::from_mib(1024)));
        assert_eq!(list.text("mode"), None);
        assert_eq!(list.finish(1), Ok(1));
    }

    #[test]
    fn keys_that_may_be_given_more_than_once() {
        let mut list = OptionList::parse(FLAG, "path=a,mode=x,path=b,,c");
        assert_eq!(list.texts("path"), ["a", "b,c"]);
        assert_eq!(list.texts("size"), [""; 0]);
        assert_eq!(list.text("mode").as_deref(), Some("x"));
        assert_eq!(list.finish(()), Ok(()));
        let error = one_error("path=a,path", |list| assert_eq!(list.texts("path"), ["a"]));
        assert!(error.ends_with("path needs a value: path=…"), "{error}");
    }

    #[test]
    fn bare_values() {
        let path = |text| {
            let mut list = OptionList::parse(FLAG, text);
            let path = list.text("path");
            (path, list.switch("readonly"), list.finish(()))
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(path("root.img"), (is("root.img"), None, Ok(())));
        assert_eq!(
            path("root.img,readonly"),
            (is("root.img"), Some(true), Ok(()))
        );
        assert_eq!(path("/a=b/c.img"), (is("/a=b/c.img"), None, Ok(())));
        assert_eq!(path("path=/a=b"), (is("/a=b"), None, Ok(())));
        assert_eq!(path("readonly"), (None, Some(true), Ok(())));
    }

    #[test]
    fn errors_name_flag_key_and_cure() {
        assert_eq!(
            one_error("path=a,raedonly=on", |list| {
                list.text("path");
            }),
            "--disk path=a,raedonly=on: unknown key raedonly; did you mean readonly? \
             the keys are path, readonly, queue-size, size, mode"
        );
        assert_eq!(
            one_error("x=1", |_| ()),
            "--disk x=1: unknown key x; the keys are path, readonly, queue-size, size, mode"
        );
        assert_eq!(
            one_error("queue-size=1k", |list| assert_eq!(
                list.integer("queue-size"),
                None
            )),
            "--disk queue-size=1k: queue-size is 1k; it takes an integer"
        );
        assert_eq!(
            one_error("readonly=maybe", |list| assert_eq!(
                list.switch("readonly"),
                None
            )),
            "--disk readonly=maybe: readonly is maybe; it takes on, off, true, false"
        );
        assert!(
            one_error("queue-size", |list| assert_eq!(
                list.integer("queue-size"),
                None
            ))
            .ends_with("queue-size needs a value: queue-size=…")
        );
        assert!(
            one_error("mode=a,mode=b", |list| assert_eq!(
                list.text("mode").as_deref(),
                Some("a")
            ))
            .ends_with("mode is given twice")
        );
        assert!(one_error("size=1MB", |list| assert_eq!(list.size("size"), None)).contains("MiB"));
        assert!(one_error("", |_| ()).contains("an item without a key"));
        assert!(
            one_error("mode=a,", |list| assert!(list.text("mode").is_some()))
                .contains("an item without a key")
        );
        assert!(one_error("\x1b[2J=1", |_| ()).contains("\\u{1b}[2J"));
    }

    proptest! {
        #[test]
        fn any_list_is_answered(text: String) {
            let mut list = OptionList::parse(FLAG, &text);
            list.text("path");
            list.switch("readonly");
            list.integer("queue-size");
            list.size("size");
            list.choice("mode", &[("a", 1)]);
            let _ = list.finish(());
        }

        #[test]
        fn any_value_can_be_written(value: String) {
            let text = format!("path={},readonly", value.replace(',', ",,"));
            let mut list = OptionList::parse(FLAG, &text);
            prop_assert_eq!(list.text("path"), Some(value));
            prop_assert_eq!(list.switch("readonly"), Some(true));
            prop_assert_eq!(list.finish(()), Ok(()));
        }
    }
}
