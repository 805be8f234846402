//! Errors, as a user reads them: one line, or one chain in a line.

use std::error::Error;

/// An error and its sources, joined by colons. What a source says is not said twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !next.is_empty() && !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let mut layers = texts.iter().rev();
        let first = Layer {
            text: layers.next().unwrap(),
            source: None,
        };
        layers.fold(first, |source, text| Layer {
            text,
            source: Some(Box::new(source)),
        })
    }

    #[test]
    fn chains() {
        assert_eq!(chain(&layers(&["a"])), "a");
        assert_eq!(chain(&layers(&["a", "b", "c"])), "a: b: c");
        assert_eq!(chain(&layers(&["a: b", "b", "c"])), "a: b: c");
        assert_eq!(chain(&layers(&["a", "", "c"])), "a: c");
    }
}
