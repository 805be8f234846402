//! What replicas say, kept no longer than people read: a reply may have megabytes.

/// The most bytes that are kept of a text, before what says that there was more.
const MOST: usize = 1000;

/// Whether an answer says that there is no space left. Longhorn's replicas have no other way to say so.
pub(super) fn tells_no_space(answer: &str) -> bool {
    answer.contains("no space left on device")
}

/// A text, or its beginning.
pub(super) fn shortened(mut text: String) -> String {
    if text.len() > MOST {
        let mut ends = (0..=MOST).rev();
        let end = ends.find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
        text.shrink_to_fit();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{MOST, shortened};

    #[test]
    fn what_is_too_long_is_cut_between_two_letters() {
        let text = "x".repeat(MOST);
        assert_eq!(shortened(text.clone()), text);
        assert_eq!(shortened(text.clone() + "y"), text + "…");
        let letters = shortened("€".repeat(1 << 20));
        assert_eq!(letters, "€".repeat(MOST / 3) + "…");
        assert!(letters.capacity() < 2 * MOST);
        assert_eq!(shortened(String::new()), "");
    }
}
